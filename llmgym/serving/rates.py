"""How latency grows with the rate at which requests come, and where it bends.

The knee is that of Satopaa, Albrecht, Irwin and Raghavan, "Finding a 'Kneedle' in a Haystack", ICDCS Workshops 2011: rates and
latencies are scaled to 0 to 1, and it is the point farthest below the straight line between the ends of the curve.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmgym.errors import InvalidArgument, NoProgress
from llmgym.profiles.profile import Profile
from llmgym.serving.replay import latency_figures, replay
from llmgym.serving.targets import Target, attained
from llmgym.workloads import Rows

MOST_RATES = 200
"""Rates of one sweep, at most."""
BEND = 0.1
"""Distance below the straight line, as a share of the range of latencies, from which a curve has a knee: at less it is nearly
straight, as far below saturation or far above it. Chosen here."""
KNEE_OF = "ttft_mean_s"
"""The latency whose bend is marked: mean time to the first token, which holds the wait for a place in the batch."""


@dataclass(frozen=True)
class AtRate:
    """A replay at one rate.

    Attributes:
        rate_rps: requests a second.
        figures: of `latency_figures`, with means.
        requests_per_s: requests that finished a second, over the makespan.
        unfinished: requests that never finish.
        preemptions: how often a request lost its cache.
        load: rate over the saturated rate in closed form.
        within: share of the requests within the objective; NaN without one.
        goodput_rps: requests within it a second; NaN without one.
    """

    rate_rps: float
    figures: dict[str, float]
    requests_per_s: float
    unfinished: int
    preemptions: int
    load: float
    within: float
    goodput_rps: float


def rates_of(text: str) -> list[float]:
    """Rates of a text: a number, or FIRST:LAST:STEP with both ends.

    Raises:
        InvalidArgument: it is neither, a number is not above 0, the last is before the first, or there are more than `MOST_RATES`.
    """
    expected = f"rate={text!r}: expected requests a second above 0, or FIRST:LAST:STEP such as 2:20:2"
    try:
        numbers = [float(part) for part in text.split(":")]
    except ValueError:
        raise InvalidArgument(expected) from None
    if len(numbers) not in (1, 3) or not all(0.0 < x < np.inf for x in numbers):
        raise InvalidArgument(expected)
    if len(numbers) == 1:
        return numbers
    first, last, step = numbers
    if last < first:
        raise InvalidArgument(f"{expected}; {last:g} is before {first:g}")
    steps = (last - first) / step + 1e-9  # 2:20:0.1 has its last rate too, whatever 18 / 0.1 is rounded to
    if steps >= MOST_RATES:
        raise InvalidArgument(f"rate={text!r}: {int(steps) + 1:,} rates; expected {MOST_RATES} at most")
    return [float(f"{first + i * step:.12g}") for i in range(int(steps) + 1)]


def at_rate(
    rows: Rows,
    profile: Profile,
    rate_rps: float,
    target: Target | None,
    settings: dict[str, Any],
    share: float,
) -> AtRate:
    """Replay requests that come at one rate.

    Args:
        rows: the requests, at that rate.
        profile: what a step costs.
        rate_rps: the rate, requests/s.
        target: objective of every request; None for none.
        settings: other arguments of `replay`.
        share: rate over the saturated rate in closed form.

    Raises:
        NoProgress: nobody finishes.
        LlmgymError: as `replay` does.
    """
    served = replay(rows, profile, **settings)
    if served.unfinished == len(rows):
        raise NoProgress(f"rate={rate_rps:g}: none of {len(rows)} requests finishes")
    figures = latency_figures(served.arrival_s, served.first_s, served.last_s, rows.output_tokens, means=True)
    found = None if target is None else attained(rows, served, for_all(rows, target))
    makespan_s = figures["makespan_s"]
    return AtRate(
        rate_rps,
        figures,
        (len(rows) - served.unfinished) / makespan_s if makespan_s > 0.0 else np.nan,
        served.unfinished,
        served.preemptions,
        share,
        np.nan if found is None else found.weighted,
        np.nan if found is None else found.goodput_rps,
    )


def for_all(rows: Rows, target: Target) -> list[Target]:
    """One objective for every class of the rows."""
    classes = 1 if rows.request_class is None else int(rows.request_class.max()) + 1
    return [target] * classes


def knee(rates: Sequence[float], latencies: Sequence[float]) -> int | None:
    """Where a curve of latency against rate bends upwards.

    Args:
        rates: requests/s, increasing.
        latencies: of each, in any unit.

    Returns:
        Position of the knee; None with fewer than three points, a latency that is not finite, or a curve that is nearly straight or
        bends downwards.
    """
    x, y = np.asarray(rates, np.float64), np.asarray(latencies, np.float64)
    if len(x) < 3 or not np.all(np.isfinite(y)) or y[-1] <= y[0]:
        return None
    below = (x - x[0]) / (x[-1] - x[0]) - (y - y[0]) / (y[-1] - y[0])
    best = int(below.argmax())
    return best if below[best] >= BEND else None
