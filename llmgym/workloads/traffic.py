"""Requests drawn in compiled code: arrival times, lengths and length predictions as a pure function of a
64-bit key.

A `Traffic` is a workload packed into two arrays, so that it costs little to hand to a compiled function.
`draw` fills the arrays of one lane from it. Every quantity has its own counter-based stream
(`llmgym.core.rng`), numbered by request: changing the arrival rate leaves the lengths as they were, and a
longer draw starts with the shorter one.

Arrivals live in operational time (Cox and Lewis, "The Statistical Analysis of Series of Events", 1966,
section 2): a unit-rate renewal process is mapped through the integral of the rate. The rate is piecewise
constant, the product of a base rate, an on/off switch, a random level per period (AR(1) in Gaussian space)
and a deterministic profile. `llmgym.workloads.packing` builds a `Traffic` and explains the layout of `table`.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from llmgym.core.jit import kernel
from llmgym.core.rng import exponential, gamma, integer, normal, substream, uniform

RENEWAL, REGULAR, BURST, REPLAY = 0, 1, 2, 3  # head.process
NO_PREDICTION, EXACT, NOISY, CLASS_MEAN = 0, 1, 2, 3  # head.information
BY_TIME, BY_REQUEST, BY_FRACTION = 0, 1, 2  # head.phase_by
LAWS, ROWS_AT_RANDOM, ROWS_IN_ORDER = 0, 1, 2  # first number of a class
UNIFORM, QUANTILES = 0, 1  # first number of a law
CLASS_WIDTH = 8
LEVEL_SPAN = 6.0  # the table of random rate levels covers this many standard deviations either side

_GAPS, _SWITCH, _LEVEL, _KIND, _LENGTH, _NOISE, _START = (
    0,
    1,
    2,
    3,
    4,
    5,
    6,
)  # numbers of the streams of a key
_BELOW_ONE = 1.0 - 2.0**-53
_LARGEST = 2147483647.0

HEAD = np.dtype(
    [
        ("process", np.int64),
        ("information", np.int64),
        ("rate_rps", np.float64),  # where every multiplier is 1; while on, if there is an off
        ("shape", np.float64),  # of the gamma law of operational gaps: 1 / CV^2
        ("varying", np.int64),
        ("on_s", np.float64),
        ("off_s", np.float64),  # 0: always on
        ("level_period_s", np.float64),  # 0: no random level
        ("level_correlation", np.float64),
        ("level_at", np.int64),
        ("level_knots", np.int64),
        ("profile_at", np.int64),
        ("profile_pieces", np.int64),  # 0: no profile
        ("profile_period_s", np.float64),  # 0: one shot, the last multiplier holds
        ("replay_at", np.int64),
        ("replay_rows", np.int64),
        ("replay_cycle_s", np.float64),
        ("replay_scale", np.float64),
        ("replay_from_start", np.int64),
        ("classes", np.int64),
        ("class_at", np.int64),
        ("phases", np.int64),
        ("phase_at", np.int64),
        ("phase_by", np.int64),
        ("noise_at", np.int64),
        ("noise_scale", np.float64),
    ],
    align=True,
)


DRAWN = np.dtype(
    [
        ("arrival_s", "f8"),  # s
        ("prompt", "i4"),  # tokens
        ("output", "i4"),  # tokens
        ("predicted", "i4"),  # output tokens told to the scheduler
        ("kind", "i4"),  # number of the class
    ],
    align=True,
)
"""What `draw` writes for each request."""


class Traffic(NamedTuple):
    """A workload as compiled code sees it; make one with `Workload.traffic`.

    Attributes:
        head: structured array of `HEAD`, shape [1]: the scalars, and where each table begins.
        table: float64, shape [m]: laws, classes, phases, profile, levels, rows of a trace.
    """

    head: npt.NDArray[np.void]
    table: npt.NDArray[np.float64]


@kernel(inline=True)
def quantile(table: npt.NDArray[np.float64], at: int, u: float) -> float:
    """Inverse distribution function, at `u` in [0, 1], of the law that begins at `table[at]`."""
    u = min(u, _BELOW_ONE)
    if table[at] == UNIFORM:
        return float(table[at + 1] + min(math.floor(u * table[at + 2]), table[at + 2] - 1.0))
    knots = int(table[at + 1])
    guides = int(table[at + 2])
    p = at + 3
    v = p + knots
    i = int(table[v + knots + int(u * guides)])
    while table[p + i + 1] < u:
        i += 1
    low = table[p + i]
    return float(table[v + i] + (table[v + i + 1] - table[v + i]) * (u - low) / (table[p + i + 1] - low))


@kernel(inline=True)
def _tokens(x: float) -> int:
    return int(min(max(math.floor(x + 0.5), 1.0), _LARGEST))


@kernel(inline=True)
def _level(table: npt.NDArray[np.float64], at: int, knots: int, z: float) -> float:
    x = min(max((z + LEVEL_SPAN) / (2.0 * LEVEL_SPAN), 0.0), 1.0) * (knots - 1)
    i = min(int(x), knots - 2)
    return float(table[at + i] + (table[at + i + 1] - table[at + i]) * (x - i))


@kernel
def _operational_gap(gaps: np.uint64, i: int, process: int, shape: float) -> float:
    """Gap before event `i` of the unit-rate process, whose first gap makes it stationary (regular: first
    event at 0).
    """
    if process == REGULAR:
        if i == 0:
            return 0.0
        return 1.0
    if shape == 1.0:
        return exponential(gaps, i)
    if i == 0:
        # The wait of a stationary renewal process: a uniform part of a length-biased gap; both laws are
        # gamma.
        return uniform(gaps, 0) * gamma(gaps, 1, shape + 1.0) / shape
    return gamma(gaps, i + 1, shape) / shape


@kernel
def _varying_arrivals(
    head: Any,
    table: npt.NDArray[np.float64],
    key: np.uint64,
    horizon_s: float,
    requests: npt.NDArray[Any],
) -> int:
    gaps, switch, levels = substream(key, _GAPS), substream(key, _SWITCH), substream(key, _LEVEL)
    t = 0.0

    on, switches, switch_at = True, 0, math.inf
    if head.off_s > 0.0:
        on = uniform(switch, 0) * (head.on_s + head.off_s) < head.on_s
        switches = 1
        switch_at = exponential(switch, 1) * (head.on_s if on else head.off_s)

    level, z, periods, level_at, first_period = 1.0, 0.0, 0, math.inf, 0.0
    if head.level_period_s > 0.0:
        z = normal(levels, 0)
        level = _level(table, head.level_at, head.level_knots, z)
        first_period = uniform(substream(levels, 1), 0) * head.level_period_s
        level_at = first_period

    part, piece, cycles, part_at = 1.0, 0, 0, math.inf
    pieces = head.profile_pieces
    if pieces > 0:
        part = table[head.profile_at + pieces]
        part_at = table[head.profile_at + 1] if pieces > 1 else math.inf

    for i in range(len(requests)):
        gap = _operational_gap(gaps, i, head.process, head.shape)
        while True:
            rate = head.rate_rps * level * part if on else 0.0
            change = min(switch_at, level_at, part_at)
            if rate > 0.0 and gap <= (change - t) * rate:
                t = min(t + gap / rate, change)
                break
            # the last piece of one shot is for good: with nothing in it, levels and switches would change for ever
            if change == math.inf or change > horizon_s or (part == 0.0 and part_at == math.inf):
                return i
            gap = max(gap - (change - t) * rate, 0.0)
            t = change
            if change == switch_at:
                on = not on
                switches += 1
                switch_at = t + exponential(switch, switches) * (head.on_s if on else head.off_s)
            if change == level_at:
                periods += 1
                rho = head.level_correlation
                z = rho * z + math.sqrt(1.0 - rho * rho) * normal(levels, periods + 1)
                level = _level(table, head.level_at, head.level_knots, z)
                level_at = first_period + periods * head.level_period_s
            if change == part_at:
                piece += 1
                if piece == pieces:
                    piece = 0
                    cycles += 1
                part = table[head.profile_at + pieces + piece]
                if piece + 1 < pieces:
                    part_at = cycles * head.profile_period_s + table[head.profile_at + piece + 1]
                elif head.profile_period_s > 0.0:
                    part_at = (cycles + 1) * head.profile_period_s
                else:
                    part_at = math.inf
        if t > horizon_s:
            return i
        requests[i].arrival_s = t
    return len(requests)


@kernel(inline=True)
def _first_row(head: Any, key: np.uint64) -> int:
    if head.replay_from_start != 0:
        return 0
    return int(min(integer(substream(key, _START), 0, 0, head.replay_rows - 1), head.replay_rows - 1))


@kernel
def _arrivals(
    head: Any,
    table: npt.NDArray[np.float64],
    key: np.uint64,
    horizon_s: float,
    requests: npt.NDArray[Any],
) -> int:
    capacity = len(requests)
    if head.process == BURST:
        if horizon_s < 0.0:
            return 0
        for i in range(capacity):
            requests[i].arrival_s = 0.0
        return capacity
    if head.process == REPLAY:
        row = _first_row(head, key)
        since = -table[head.replay_at + row]
        for i in range(capacity):
            t = (table[head.replay_at + row] + since) * head.replay_scale
            if t > horizon_s:
                return i
            requests[i].arrival_s = t
            row += 1
            if row == head.replay_rows:
                row = 0
                since += head.replay_cycle_s
        return capacity
    if head.varying != 0:
        return _varying_arrivals(head, table, key, horizon_s, requests)
    gaps = substream(key, _GAPS)
    t = 0.0
    if head.process == RENEWAL and head.shape == 1.0:
        for i in range(capacity):
            t += exponential(gaps, i) / head.rate_rps
            if t > horizon_s:
                return i
            requests[i].arrival_s = t
        return capacity
    for i in range(capacity):
        if head.process == REGULAR:
            t = i / head.rate_rps  # not a running sum, whose error would grow
        else:
            t += _operational_gap(gaps, i, head.process, head.shape) / head.rate_rps
        if t > horizon_s:
            return i
        requests[i].arrival_s = t
    return capacity


@kernel
def draw(
    traffic: Traffic,
    key: np.uint64,
    horizon_s: float,
    requests: npt.NDArray[Any],
) -> int:
    """Fill one lane's requests in order of arrival; the same traffic and key give the same bits.

    Args:
        traffic: the packed workload.
        key: uint64, the stream of this world.
        horizon_s: stop before the first arrival later than this (s); `inf` to fill the arrays.
        requests: records [n] with the fields of `DRAWN` (others are left alone): filled with arrival times that never decrease,
            lengths of at least 1, the output length told to the scheduler (at least 1; 0 with no information) and the number
            of the class.

    Returns:
        How many requests were written, at most n.
    """
    head = traffic.head[0]
    table = traffic.table
    count = _arrivals(head, table, key, horizon_s, requests)
    kinds, lengths, noise = substream(key, _KIND), substream(key, _LENGTH), substream(key, _NOISE)
    classes = head.classes
    row = 0
    if head.process == REPLAY:
        row = _first_row(head, key)
    phase = 0
    weights = head.phase_at + 1
    for i in range(count):
        r = requests[i]
        c = 0
        if classes > 1:
            position = float(i)
            if head.phase_by == BY_TIME:
                position = r.arrival_s
            elif head.phase_by == BY_FRACTION:
                position = (i + 0.5) / len(requests)
            while phase + 1 < head.phases and position >= table[weights + classes]:
                phase += 1
                weights += classes + 1
            u = uniform(kinds, i)
            while c + 1 < classes and u >= table[weights + c]:
                c += 1
        at = head.class_at + c * CLASS_WIDTH
        if table[at] == LAWS:
            correlation = table[at + 1]
            if correlation == 0.0:
                u_prompt, u_output = uniform(lengths, 2 * i), uniform(lengths, 2 * i + 1)
            else:
                radius = math.sqrt(-2.0 * math.log(uniform(lengths, 2 * i)))
                angle = 2.0 * math.pi * uniform(lengths, 2 * i + 1)
                z_prompt = radius * math.cos(angle)
                z_output = correlation * z_prompt + table[at + 2] * radius * math.sin(angle)
                u_prompt = 0.5 * math.erfc(-z_prompt * math.sqrt(0.5))
                u_output = 0.5 * math.erfc(-z_output * math.sqrt(0.5))
            r.prompt = _tokens(quantile(table, int(table[at + 4]), u_prompt))
            r.output = _tokens(quantile(table, int(table[at + 5]), u_output))
        else:
            rows = int(table[at + 7])
            if table[at] == ROWS_IN_ORDER:
                j = (row + i) % rows
            else:
                j = min(int(uniform(lengths, 2 * i) * rows), rows - 1)
            r.prompt = int(table[int(table[at + 6]) + j])
            r.output = int(table[int(table[at + 6]) + rows + j])
        r.kind = c
        if head.information == EXACT:
            r.predicted = r.output
        elif head.information == NOISY:
            error = quantile(table, head.noise_at, uniform(noise, i))
            r.predicted = _tokens(r.output * math.exp(head.noise_scale * error))
        elif head.information == CLASS_MEAN:
            r.predicted = _tokens(table[at + 3])
        else:
            r.predicted = 0
    return count
