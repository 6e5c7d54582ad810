"""What is known of the demand in a scenario of OServe before an episode begins: rates, room, and a request's work at arrival.

Everything here follows from the settings alone, never from a drawn world: observations and the end of an episode may use it.
"""

import math

import numpy as np
from numpy.typing import NDArray

from llmgym.envs.oserve.daily import DAYS
from llmgym.envs.oserve.deployments import evaluate, mixes
from llmgym.envs.oserve.scenarios import Requests, Scenario
from llmgym.envs.oserve.shapes import RateTable
from llmgym.envs.oserve.state import HARMONICS
from llmgym.errors import InvalidArgument

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]

_PARTS = 96
"""Times of a day, or phases of a wave, that stand for all of them."""
_CVS = 9


def harmonics(streams: int) -> Floats:
    """Cosines and sines of the course of a day of each stream, float64 [streams, 2 HARMONICS]."""
    return np.array([DAYS[i % len(DAYS)].harmonics for i in range(streams)])


def _shapes(asked: Requests) -> Floats:
    """Relative rate of each stream through a day, float64 [96, streams]."""
    day = harmonics(len(asked.mix))
    angle = 2.0 * np.pi * np.arange(_PARTS)[:, None] / _PARTS
    shape = np.ones((_PARTS, len(day)))
    for h in range(HARMONICS):
        shape += day[:, 2 * h] * np.cos((h + 1) * angle) + day[:, 2 * h + 1] * np.sin((h + 1) * angle)
    return asked.mix * np.maximum(shape, 0.05)


def day_rate_rps(scenario: Scenario, asked: Requests, types: RateTable, menu: Counts) -> float:
    """Arrivals a second such that the busiest hour of a mean day takes the largest `load` of what the best candidate can do.

    Args:
        scenario: the settings.
        asked: its requests.
        types: rates by type.
        menu: the candidates, int64 [candidates, shapes].
    """
    alpha, _ = evaluate(types, menu, _shapes(asked) @ asked.stream_type)
    return scenario.load[1] * float(alpha.max(axis=1).min())


def expected_rps(scenario: Scenario, asked: Requests, types: RateTable, menu: Counts) -> float:
    """Arrivals a second, mean over the worlds that a scenario can draw; the arguments are those of `day_rate_rps`."""
    streams = len(asked.mix)
    if scenario.drift == "day":
        shape = _shapes(asked).sum(axis=1)
        return day_rate_rps(scenario, asked, types, menu) * float(shape.mean())
    shares, weight = asked.mix[None], np.ones(1)
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
        shares = asked.mix * np.exp(scenario.amplitude * np.cos(2.0 * np.pi * turn))
        weight = np.ones(_PARTS)
    shares = shares / shares.sum(axis=1, keepdims=True)
    alpha, _ = evaluate(types, menu, shares @ asked.stream_type)
    return 0.5 * sum(scenario.load) * float(np.average(alpha.max(axis=1), weights=weight))


def room(scenario: Scenario, asked: Requests, types: RateTable, menu: Counts) -> int:
    """Requests to have room for: an episode of the mix that asks for the most of them, and six deviations.

    The arguments are those of `day_rate_rps`.

    Raises:
        InvalidArgument: more than fit into memory.
    """
    if scenario.drift == "day":
        rate = day_rate_rps(scenario, asked, types, menu)
        rate *= 1.0 + float(np.abs(harmonics(len(asked.mix))).sum(axis=1).max())
    else:
        loads = asked.stream_type
        if scenario.drift == "fixed":
            loads = (asked.mix @ asked.stream_type)[None]
        elif scenario.drift == "spans":
            # no mix is purer than the largest CV allows
            grid = mixes(len(asked.mix), 8 if len(asked.mix) < 5 else 3)
            spread = grid.std(axis=1) / grid.mean(axis=1) <= scenario.cv[1] + 0.2
            loads = grid[spread] @ asked.stream_type
        alpha, _ = evaluate(types, menu, loads)
        rate = scenario.load[1] * float(alpha.max())
    expected = rate * scenario.epochs * scenario.epoch_s * math.exp(3.0 * scenario.noise)
    n = math.ceil(expected + 6.0 * math.sqrt(expected) + 64)
    if n > 2**26:
        raise InvalidArgument(
            f"epochs={scenario.epochs} of {scenario.epoch_s:g} s: {n:,} requests an episode are too many"
        )
    return n


def known_at_arrival(asked: Requests, work_s: Floats) -> tuple[Floats, Counts]:
    """What is known of a request when it comes: its prompt and its type (or a guess of it), not its answer.

    Args:
        asked: the requests of the scenario.
        work_s: stage time of each class in each shape, float64 [shapes, classes]; infinite where it does not fit.

    Returns:
        The mean work in each shape of the classes that are taken for the same type and fit, float64 [shapes, classes] (infinite
        where the class itself does not fit), and the prompt with the mean answer of these classes, int64 [classes].
    """
    share = np.maximum(asked.mix @ asked.stream_class, 1e-12)
    together = (asked.guess[:, None] == asked.guess[None, :]) * share
    lengths = np.array(asked.kinds, np.int64)
    answer = (together / together.sum(axis=1, keepdims=True)) @ lengths[:, 1]
    expected = np.full(work_s.shape, np.inf)
    for row, work in zip(expected, work_s, strict=True):
        fits = np.isfinite(work)
        weight = together[np.ix_(fits, fits)]
        row[fits] = (weight / weight.sum(axis=1, keepdims=True)) @ work[fits]
    return expected, lengths[:, 0] + np.rint(answer).astype(np.int64)
