"""What a run is worth where requests have objectives of their own: targets for each class, such as interactive and batch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from llmgym.core.checks import number
from llmgym.core.records import Records
from llmgym.errors import InvalidArgument
from llmgym.serving.state import Objective
from llmgym.workloads.arrivals import Rows


@dataclass(frozen=True)
class Target:
    """Objectives of a class of requests.

    Attributes:
        ttft_s: time from arrival to the first output token, s; infinite for none.
        tpot_s: time for each output token after the first, s; infinite for none.
        weight: what a request that is within all counts.
        e2e_s: time from arrival to the last token, s; infinite for none.

    Raises:
        InvalidArgument: a time that is not above 0, or a weight below 0.
    """

    ttft_s: float = np.inf
    tpot_s: float = np.inf
    weight: float = 1.0
    e2e_s: float = np.inf

    def __post_init__(self) -> None:
        for name in ("ttft_s", "tpot_s", "e2e_s"):
            if not getattr(self, name) > 0.0:
                raise InvalidArgument(
                    f"{name}={getattr(self, name)!r} of a target: expected a time above 0 s"
                )
        number("weight of a target", self.weight, zero=True)


class Times(Protocol):
    """When requests arrived and had their tokens, such as `llmgym.serving.replay.Replayed`; float64 [n], s, NaN where never."""

    @property
    def arrival_s(self) -> NDArray[np.float64]:
        """Arrival."""

    @property
    def first_s(self) -> NDArray[np.float64]:
        """First output token."""

    @property
    def last_s(self) -> NDArray[np.float64]:
        """Last one."""


def objective_records(targets: Sequence[Target]) -> Records[Objective]:
    """Targets of classes as compiled code reads them."""
    records = Objective.zeros(len(targets))
    for i, target in enumerate(targets):
        records[i : i + 1] = Objective.pack(target)
    return records


class Attained(NamedTuple):
    """How many requests were within the targets of their class.

    Attributes:
        share: float64 [classes], of the requests of each class; NaN for a class without any.
        weighted: of all requests, each counting with the weight of its class; NaN if no weight is above 0.
        goodput_rps: weighted requests within their targets a second, from the first arrival to the last token; NaN over no time.
    """

    share: NDArray[np.float64]
    weighted: float
    goodput_rps: float


def check_targets(rows: Rows, targets: Sequence[Target]) -> None:
    """Whether there is a target for each class of the rows.

    Raises:
        InvalidArgument: no target, a class without one, or several where the rows have no classes.
    """
    if not targets:
        raise InvalidArgument("targets: none was given; expected one for each class")
    if rows.request_class is None:
        if len(targets) > 1:
            raise InvalidArgument(
                f"targets: {len(targets)} were given for requests without a class; expected one"
            )
    elif rows.request_class.max() >= len(targets):
        worst = int(rows.request_class.argmax())
        raise InvalidArgument(
            f"targets: {len(targets)} were given, and request {worst} is of class {rows.request_class[worst]}"
        )


def attained(rows: Rows, replayed: Times, targets: Sequence[Target]) -> Attained:
    """Compare a replay with the targets of its requests. A request that never finishes is within none.

    Args:
        rows: the requests, with `request_class` if there is more than one target.
        replayed: what became of them.
        targets: of each class, in the order of their numbers.

    Raises:
        InvalidArgument: see `check_targets`.
    """
    check_targets(rows, targets)
    of = np.zeros(len(rows), np.int32) if rows.request_class is None else rows.request_class
    ttft_s = replayed.first_s - replayed.arrival_s
    with np.errstate(invalid="ignore", divide="ignore"):
        tpot_s = (replayed.last_s - replayed.first_s) / (rows.output_tokens - 1)
    e2e_s = replayed.last_s - replayed.arrival_s
    most = np.array([(one.ttft_s, one.tpot_s, one.weight, one.e2e_s) for one in targets])[of]
    # a single token has no next one to wait for
    met = (
        np.isfinite(replayed.last_s)
        & (ttft_s <= most[:, 0])
        & (e2e_s <= most[:, 3])
        & ((rows.output_tokens == 1) | (tpot_s <= most[:, 1]))
    )
    size = np.bincount(of, minlength=len(targets)).astype(np.float64)
    share = np.full(len(targets), np.nan)
    np.divide(np.bincount(of, met, len(targets)), size, out=share, where=size > 0)
    weight, good = float(most[:, 2].sum()), float(most[met, 2].sum())
    ended = replayed.last_s[np.isfinite(replayed.last_s)]
    makespan_s = float(ended.max() - np.nanmin(replayed.arrival_s)) if len(ended) else 0.0
    return Attained(
        share, good / weight if weight > 0.0 else np.nan, good / makespan_s if makespan_s > 0.0 else np.nan
    )


def slo(text: str) -> Target:
    """One objective out of a text such as `ttft=0.5,tpot=50ms,e2e=10`, times in seconds unless they end in ms.

    Raises:
        InvalidArgument: another form, a name that is there twice, or a time that is not above 0.
    """
    expected = f"slo={text!r}: expected some of ttft=, tpot= and e2e= with times in s or ms, such as ttft=0.5,tpot=50ms"
    times: dict[str, float] = {}
    for part in text.split(","):
        name, equals, value = part.strip().partition("=")
        unit = 1e-3 if value.endswith("ms") else 1.0
        try:
            time_s = unit * float(value.removesuffix("ms").removesuffix("s"))
        except ValueError:
            raise InvalidArgument(expected) from None
        if not equals or name not in ("ttft", "tpot", "e2e") or name in times or not time_s > 0.0:
            raise InvalidArgument(expected)
        times[name] = time_s
    return Target(**{f"{name}_s": time_s for name, time_s in times.items()})
