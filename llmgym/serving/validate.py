"""A measured run against its replay, figure by figure."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmgym.errors import InvalidArgument, NoProgress
from llmgym.profiles.profile import Profile
from llmgym.serving.replay import Replayed, latency_figures, replay
from llmgym.workloads.arrivals import Rows
from llmgym.workloads.runs import MeasuredRun

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Figure:
    """One figure of a run.

    Attributes:
        name: a key of `llmgym.serving.replay.latency_figures`.
        measured: s, or tokens/s.
        predicted: the same of the replay.
    """

    name: str
    measured: float
    predicted: float

    @property
    def error(self) -> float:
        """Predicted over measured, less one; NaN where one of them is missing."""
        return self.predicted / self.measured - 1.0 if self.measured > 0.0 else np.nan

    def within(self, share: float) -> bool:
        """Whether the error is at most a share, either way."""
        return bool(abs(self.error) <= share)


@dataclass(frozen=True)
class Validation:
    """A measured run and its replay.

    Attributes:
        run: what was measured.
        rows: the requests as they were replayed.
        replayed: what became of them.
        clients: requests kept in flight in the replay; None where requests arrived as the rows say.
        figures: those that both have.
    """

    run: MeasuredRun
    rows: Rows
    replayed: Replayed
    clients: int | None
    figures: list[Figure]

    def times(self) -> tuple[dict[str, Floats], dict[str, Floats]]:
        """First token, time per output token and end to end of every request, s, measured and predicted."""
        several = self.run.output_tokens > 1
        found = self.replayed
        gap_s = (found.last_s - found.first_s) / np.maximum(self.rows.output_tokens - 1, 1)
        names = ("first token", "time per output token", "end to end")
        measured = (self.run.ttft_s, self.run.token_gap_s()[several], self.run.e2e_s)
        predicted = (found.first_s - found.arrival_s, gap_s[several], found.last_s - found.arrival_s)
        return dict(zip(names, measured, strict=True)), dict(zip(names, predicted, strict=True))


def measured_figures(run: MeasuredRun) -> dict[str, float]:
    """The figures of a measured run, with means, as `latency_figures` defines them.

    Where arrivals are not known, the makespan is the duration that the benchmark tells, or NaN.
    """
    arrival_s = run.rows().arrival_s
    figures = latency_figures(
        arrival_s, arrival_s + run.ttft_s, arrival_s + run.e2e_s, run.output_tokens, means=True
    )
    if run.arrival_s is None and run.rate_rps != np.inf:
        figures["makespan_s"] = np.nan if run.duration_s is None else run.duration_s
        figures["output_tokens_per_s"] = float(run.output_tokens.sum()) / figures["makespan_s"]
    return figures


def closed_loop(run: MeasuredRun, clients: int | None = None) -> int | None:
    """Requests that a replay of a run keeps in flight; None where they arrive as the run tells.

    Args:
        run: what was measured.
        clients: what was asked for; None: what follows from the run.

    Returns:
        `clients` if given. Else None where arrivals are known, or all were sent at once; and the limit of the client where it sent
        whatever that allowed.

    Raises:
        InvalidArgument: nothing tells when requests were sent.
    """
    if clients is not None or run.arrival_s is not None:
        return clients
    if run.rate_rps != np.inf:
        raise InvalidArgument(
            f"run: a result of {run.format} that does not tell when its requests were sent, and they were not sent at once; "
            "expected arrivals (a trace with a row for each request), or clients, the number that was kept in flight"
        )
    return run.clients


def validate(
    run: MeasuredRun, profile: Profile, *, clients: int | None = None, **settings: Any
) -> Validation:
    """Replay the requests of a measured run, and compare.

    Args:
        run: what was measured.
        profile: what a step costs.
        clients: requests kept in flight on each rank; None: as `closed_loop` finds.
        settings: other arguments of `replay`.

    Raises:
        InvalidArgument: nothing tells when requests were sent, or as `replay` does.
        NoProgress: requests do not finish, so that there is nothing to compare.
    """
    rows, loop = run.rows(), closed_loop(run, clients)
    replayed = replay(rows, profile, clients=loop, **settings)
    if replayed.unfinished:
        raise NoProgress(
            f"{replayed.unfinished} of {len(rows)} requests do not finish in the replay, and did when they were measured; the "
            "rule, the budget or the cache is not that of the engine"
        )
    measured = measured_figures(run)
    predicted = latency_figures(
        replayed.arrival_s, replayed.first_s, replayed.last_s, rows.output_tokens, means=True
    )
    both = [Figure(name, value, predicted[name]) for name, value in measured.items()]
    return Validation(run, rows, replayed, loop, [one for one in both if not np.isnan(one.error)])


def as_run(
    rows: Rows,
    replayed: Replayed,
    *,
    clients: int | None = None,
    rate_rps: float | None = None,
    facts: dict[str, str] | None = None,
) -> MeasuredRun:
    """A replay as if it had been measured, to be written as a benchmark writes its runs.

    Args:
        rows: the requests.
        replayed: what became of them; those that never finish count as failed.
        clients: requests kept in flight, if the loop was closed.
        rate_rps: requests/s that were meant, if known.
        facts: texts such as `model`.

    Raises:
        InvalidArgument: nobody finished.
    """
    done = np.isfinite(replayed.last_s)
    first_s, last_s, arrival_s = (x[done] for x in (replayed.first_s, replayed.last_s, replayed.arrival_s))
    return MeasuredRun(
        "llmgym",
        rows.prompt_tokens[done].astype(np.int64),
        rows.output_tokens[done].astype(np.int64),
        first_s - arrival_s,
        last_s - arrival_s,
        arrival_s,
        failed=int((~done).sum()),
        clients=clients,
        rate_rps=rate_rps,
        session=None if rows.session is None else rows.session[done],
        facts=facts or {},
    )
