"""The common record of a measured run, whatever benchmark wrote it."""

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from llmgym.errors import InvalidArgument
from llmgym.workloads.arrivals import Rows

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_COLUMNS = ("prompt_tokens", "output_tokens", "ttft_s", "e2e_s", "arrival_s", "session", "priority")


@dataclass(frozen=True, eq=False)
class MeasuredRun:
    """Requests that a server answered, in order of arrival where that is known, else in the order of the file.

    Attributes:
        format: a key of `llmgym.workloads.runs.FORMATS`.
        prompt_tokens: int64 [n], at least 1.
        output_tokens: int64 [n], at least 1.
        ttft_s: float64 [n], from sending a request to its first output token, s.
        e2e_s: float64 [n], from sending it to its last output token, s.
        arrival_s: float64 [n], when each was sent, s after the first one, never decreasing; None where the file does not tell.
        duration_s: of the run as its benchmark says, s; None where it does not.
        failed: requests without an answer, which are in none of the arrays.
        clients: requests that the client kept in flight at most; None where there was no limit, or the file does not tell.
        rate_rps: requests a second that the client meant to send, infinite for all at once; None where the file does not tell.
        session: int32 [n], number of the conversation of each; None where each stands alone, or the file does not tell.
        priority: int32 [n], lower ones first; None where all are alike, or the file does not tell.
        facts: what else the file says of the run, such as its model, as texts.

    Raises:
        InvalidArgument: no request, arrays of different lengths, or a value out of its range.
    """

    format: str
    prompt_tokens: Ints
    output_tokens: Ints
    ttft_s: Floats
    e2e_s: Floats
    arrival_s: Floats | None = None
    duration_s: float | None = None
    failed: int = 0
    clients: int | None = None
    rate_rps: float | None = None
    session: NDArray[np.int32] | None = None
    priority: NDArray[np.int32] | None = None
    facts: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = len(self.prompt_tokens)
        if n == 0:
            raise InvalidArgument("prompt_tokens: no request; expected one or more that were answered")
        for name in _COLUMNS:
            column = getattr(self, name)
            if column is not None and column.shape != (n,):
                raise InvalidArgument(f"{name}: shape {column.shape}, expected ({n},)")
        _check("prompt_tokens", self.prompt_tokens, self.prompt_tokens >= 1, "at least 1")
        _check("output_tokens", self.output_tokens, self.output_tokens >= 1, "at least 1")
        _check("ttft_s", self.ttft_s, self.ttft_s > 0.0, "a time above 0 s")
        _check("e2e_s", self.e2e_s, self.e2e_s >= self.ttft_s, "no time before the first token, ttft_s")
        for name in ("ttft_s", "e2e_s", "arrival_s"):
            column = getattr(self, name)
            if column is not None:
                _check(name, column, np.isfinite(column), "finite")
        if self.arrival_s is not None:
            order = np.argsort(self.arrival_s, kind="stable")
            for name in _COLUMNS:
                column = getattr(self, name)
                if column is not None:
                    object.__setattr__(self, name, column[order])
            object.__setattr__(self, "arrival_s", self.arrival_s - self.arrival_s[0])

    def __len__(self) -> int:
        return len(self.prompt_tokens)

    def with_arrivals(self, arrival_s: Floats) -> "MeasuredRun":
        """The same run with the times at which its requests were sent (s, float64 [n], in the order of this record)."""
        return replace(self, arrival_s=np.asarray(arrival_s, np.float64))

    def rows(self) -> Rows:
        """The requests as a replay takes them; all arrive at 0 s where arrivals are not known."""
        arrival_s = np.zeros(len(self)) if self.arrival_s is None else self.arrival_s
        return Rows(
            arrival_s,
            self.prompt_tokens.astype(np.int32),
            self.output_tokens.astype(np.int32),
            priority=self.priority,
            session=self.session,
        )

    def token_gap_s(self) -> Floats:
        """Time for each output token after the first, s, float64 [n]; 0 for outputs of one token."""
        return (self.e2e_s - self.ttft_s) / np.maximum(self.output_tokens - 1, 1)


def _check(name: str, column: NDArray[np.generic], good: NDArray[np.bool_], allowed: str) -> None:
    if not np.all(good):
        worst = int(np.argmin(good))
        raise InvalidArgument(f"{name}: {column[worst]} of request {worst}; expected {allowed}")
