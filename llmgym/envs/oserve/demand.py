"""What is known of the demand in a scenario of OServe before an episode begins: rates, room, and a request's work at arrival.

Everything here follows from the settings alone, never from a drawn world: observations and the end of an episode may use it.
"""

import math

import numpy as np
from numpy.typing import NDArray

from llmgym.envs.oserve.daily import DAYS, HARMONICS, LEAST_RATE
from llmgym.envs.oserve.deployments import evaluate, mixes
from llmgym.envs.oserve.requests import Requests
from llmgym.envs.oserve.scenarios import Scenario
from llmgym.envs.oserve.shapes import RateTable
from llmgym.errors import InvalidArgument

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]

_PARTS = 96
"""Times of a day, or phases of a wave, that stand for all of them."""
_CVS = 9
"""Coefficients of variation that stand for all of them."""
_MOST_REQUESTS = 2**26
"""Requests of an episode; a lane of so many takes 1.5 GB."""
_DEVIATIONS = 6.0
"""Deviations of the number of arrivals that there is room for: more come once in a thousand million episodes."""
_NOISE_DEVIATIONS = 3.0
"""Standard deviations of the logarithm of the rate that there is room for."""
_SPARE = 64
_BETWEEN = 1.25
"""Room in one epoch for mixes between those of the grid that the largest rate is looked for on; ours."""


def harmonics(streams: int) -> Floats:
    """Cosines and sines of the course of a day of each stream, float64 [streams, 2 HARMONICS]."""
    return np.array([DAYS[i % len(DAYS)].harmonics for i in range(streams)])


def _shapes(requests: Requests) -> Floats:
    """Relative rate of each stream through a day, float64 [96, streams]."""
    day = harmonics(len(requests.mix))
    angle = 2.0 * np.pi * np.arange(_PARTS)[:, None] / _PARTS
    shape = np.ones((_PARTS, len(day)))
    for h in range(HARMONICS):
        shape += day[:, 2 * h] * np.cos((h + 1) * angle) + day[:, 2 * h + 1] * np.sin((h + 1) * angle)
    return requests.mix * np.maximum(shape, LEAST_RATE)


def day_rate_rps(scenario: Scenario, requests: Requests, types: RateTable, menu: Counts) -> float:
    """Mean arrivals with which the busiest hour of a mean day takes the largest `load` of what the best candidate can do.

    Args:
        scenario: the settings.
        requests: classes, types and streams of its requests.
        types: rates by type.
        menu: int64 [candidates, shapes], replicas of each shape.

    Returns:
        Requests a second.
    """
    alpha, _ = evaluate(types, menu, _shapes(requests) @ requests.stream_type)
    return scenario.load[1] * float(alpha.max(axis=1).min())


def expected_rps(scenario: Scenario, requests: Requests, types: RateTable, menu: Counts) -> float:
    """Mean arrivals over the worlds that a scenario can draw.

    Args:
        scenario: the settings.
        requests: classes, types and streams of its requests.
        types: rates by type.
        menu: int64 [candidates, shapes], replicas of each shape.

    Returns:
        Requests a second.
    """
    streams = len(requests.mix)
    if scenario.drift == "day":
        shape = _shapes(requests).sum(axis=1)
        return day_rate_rps(scenario, requests, types, menu) * float(shape.mean())
    shares, weight = requests.mix[None], np.ones(1)
    if scenario.drift == "spans":
        cv = np.linspace(*scenario.cv, _CVS)
        largest = np.minimum(1.0 / streams + cv * math.sqrt(streams - 1.0) / streams, 1.0)[:, None, None]
        dominant = np.eye(streams)
        shares = largest * dominant + (1.0 - largest) / max(streams - 1, 1) * (1.0 - dominant)
        shares = shares.reshape(-1, streams)
        # trapezoids: the two ends stand for half as many worlds
        weight = np.repeat(np.where(np.isin(np.arange(_CVS), (0, _CVS - 1)), 0.5, 1.0), streams)
    elif scenario.drift == "wave":
        turn = np.arange(_PARTS)[:, None] / _PARTS - np.arange(streams) / streams
        shares = requests.mix * np.exp(scenario.amplitude * np.cos(2.0 * np.pi * turn))
        weight = np.ones(_PARTS)
    shares = shares / shares.sum(axis=1, keepdims=True)
    alpha, _ = evaluate(types, menu, shares @ requests.stream_type)
    return 0.5 * sum(scenario.load) * float(np.average(alpha.max(axis=1), weights=weight))


def room(scenario: Scenario, requests: Requests, types: RateTable, menu: Counts) -> tuple[int, int]:
    """Requests to have room for: an episode, or one epoch, of the mix that asks for the most of them, and six deviations.

    Args:
        scenario: the settings.
        requests: classes, types and streams of its requests.
        types: rates by type.
        menu: int64 [candidates, shapes], replicas of each shape.

    Returns:
        Requests of an episode, at most 2^26, and those of an epoch, at most as many.

    Raises:
        InvalidArgument: more than fit into memory.
    """
    if scenario.drift == "day":
        rate = day_rate_rps(scenario, requests, types, menu)
        rate *= 1.0 + float(np.abs(harmonics(len(requests.mix))).sum(axis=1).max())
    else:
        loads = requests.stream_type
        if scenario.drift == "fixed":
            loads = (requests.mix @ requests.stream_type)[None]
        elif scenario.drift == "spans":
            # no mix is purer than the largest CV allows
            grid = mixes(len(requests.mix), 8 if len(requests.mix) < 5 else 3)
            spread = grid.std(axis=1) / grid.mean(axis=1) <= scenario.cv[1] + 0.2
            loads = grid[spread] @ requests.stream_type
        alpha, _ = evaluate(types, menu, loads)
        rate = scenario.load[1] * float(alpha.max())
    n = _with_deviations(
        rate * scenario.epochs * scenario.epoch_s * math.exp(_NOISE_DEVIATIONS * scenario.noise)
    )
    if n > _MOST_REQUESTS:
        raise InvalidArgument(
            f"epochs={scenario.epochs}, epoch_s={scenario.epoch_s:g}, load={scenario.load}, noise={scenario.noise:g}: "
            f"{n:,} requests an episode are too many"
        )
    most = _with_deviations(_BETWEEN * rate * scenario.epoch_s * math.exp(_DEVIATIONS * scenario.noise))
    return n, min(n, most)


def _with_deviations(expected: float) -> int:
    """The largest number of arrivals to have room for where so many are expected."""
    return math.ceil(expected + _DEVIATIONS * math.sqrt(expected) + _SPARE)


def known_at_arrival(requests: Requests, work_s: Floats) -> tuple[Floats, Counts]:
    """What is known of a request when it comes: its prompt and its type (or a guess of it), not its answer.

    Args:
        requests: classes, types and streams of the requests.
        work_s: float64 [shapes, classes], stage time of a class in a shape, seconds; infinite where it does not fit.

    Returns:
        The mean stage time in each shape of the classes that are taken for the same type and fit, float64 [shapes, classes],
        seconds (infinite where the class itself does not fit), and the prompt with the mean answer of these classes, int64
        [classes], tokens.
    """
    share = np.maximum(requests.mix @ requests.stream_class, 1e-12)
    together = (requests.guess[:, None] == requests.guess[None, :]) * share
    lengths = np.array(requests.classes, np.int64)
    answer = (together / together.sum(axis=1, keepdims=True)) @ lengths[:, 1]
    expected = np.full(work_s.shape, np.inf)
    for row, work in zip(expected, work_s, strict=True):
        fits = np.isfinite(work)
        weight = together[np.ix_(fits, fits)]
        row[fits] = (weight / weight.sum(axis=1, keepdims=True)) @ work[fits]
    return expected, lengths[:, 0] + np.rint(answer).astype(np.int64)
