"""Requests drawn in compiled code: arrival times, lengths and length predictions as a pure function of a 64-bit key.

A `Traffic` is a workload packed into two arrays, so that it costs little to hand to a compiled function. `draw` fills the arrays of
one lane from it. Every quantity has its own counter-based stream (`llmgym.core.rng`), numbered by request: changing the arrival
rate leaves the lengths as they were, and a longer draw starts with the shorter one.

Arrivals live in operational time (Cox and Lewis, "The Statistical Analysis of Series of Events", 1966, section 2): a unit-rate
renewal process is mapped through the integral of the rate. The rate is piecewise constant, the product of a base rate, an on/off
switch, a random level per period (AR(1) in Gaussian space) and a deterministic profile. `llmgym.workloads.packing` builds a
`Traffic` and explains the layout of `table`.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from llmgym.core.jit import kernel
from llmgym.core.records import Record, Records, float64, int32, int64
from llmgym.core.rng import exponential, gamma, integer, normal, substream, uniform

RENEWAL, REGULAR, BURST, REPLAY = 0, 1, 2, 3  # head.process
NO_PREDICTION, EXACT, NOISY, CLASS_MEAN = 0, 1, 2, 3  # head.information
BY_TIME, BY_REQUEST, BY_FRACTION = 0, 1, 2  # head.phase_by
LAWS, ROWS_AT_RANDOM, ROWS_IN_ORDER = 0, 1, 2  # first number of a class
UNIFORM, QUANTILES = 0, 1  # first number of a law
CLASS_WIDTH = 8
LEVEL_SPAN = 6.0  # the table of random rate levels covers this many standard deviations either side

STREAMS = 7
_GAPS, _SWITCH, _LEVEL, _KIND, _LENGTH, _NOISE, _START = range(STREAMS)  # numbers of the streams of a key
_BELOW_ONE = 1.0 - 2.0**-53
_LARGEST = 2147483647.0


class Head(Record):
    """Scalars of a workload, and where each table begins; fields `*_at` are positions in `Traffic.table`."""

    process: int = int64("`RENEWAL`, `REGULAR`, `BURST` or `REPLAY`.")
    information: int = int64(
        "What is told of output lengths: `NO_PREDICTION`, `EXACT`, `NOISY` or `CLASS_MEAN`."
    )
    rate_rps: float = float64("Arrivals a second where every multiplier is 1; while on, if there is an off.")
    shape: float = float64("Shape of the gamma law of operational gaps: 1 / CV^2.")
    varying: int = int64("1 where the rate varies with time, else 0.")
    on_s: float = float64("Mean length of an on phase, seconds.")
    off_s: float = float64("Mean length of an off phase, seconds; 0: always on.")
    level_period_s: float = float64("Length of a period of the random level, seconds; 0: no random level.")
    level_correlation: float = float64(
        "Correlation of the normal scores of two periods that follow each other."
    )
    level_at: int = int64("Where the rate levels begin.")
    level_knots: int = int64("Number of rate levels.")
    profile_at: int = int64("Where the profile begins.")
    profile_pieces: int = int64("Pieces of the profile; 0: no profile.")
    profile_period_s: float = float64(
        "Period of the profile, seconds; 0: one shot, the last multiplier holds."
    )
    replay_at: int = int64("Where the replayed arrival times begin.")
    replay_rows: int = int64("Number of replayed rows.")
    replay_cycle_s: float = float64("Time after which the trace begins anew, seconds of the trace.")
    replay_scale: float = float64("Seconds of the replay for each second of the trace.")
    replay_from_start: int = int64("1: the replay begins with the first row; 0: with a random one.")
    classes: int = int64("Number of classes.")
    class_at: int = int64("Where the classes begin.")
    phases: int = int64("Number of phases.")
    phase_at: int = int64("Where the phases begin.")
    phase_by: int = int64("What a phase begins by: `BY_TIME`, `BY_REQUEST` or `BY_FRACTION`.")
    noise_at: int = int64("Where the law of prediction errors begins.")
    noise_scale: float = float64("Factor of the prediction errors.")
    conversations: int = int64("1 where what arrives are sessions; see `llmgym.workloads.turns`.")
    turns_at: int = int64("Where the law of the number of turns begins.")
    new_at: int = int64(
        "Where the law of new tokens after the first turn begins; -1: the prompts of its class."
    )
    think_law: int = int64(
        "Law of the time to think: `EXPONENTIAL` or `LOGNORMAL` of `llmgym.workloads.turns`."
    )
    think_s: float = float64("Mean time to think, seconds.")
    think_sigma: float = float64("Standard deviation of its logarithm.")
    longest: int = int64("Prompt and output of a turn together, tokens at most.")


class Drawn(Record):
    """What `draw` writes for each request."""

    arrival_s: float = float64("Time of arrival, seconds.")
    prompt: int = int32("Prompt, tokens.")
    output: int = int32("Output, tokens.")
    predicted: int = int32("Output told to the scheduler, tokens; 0 where nothing is told.")
    request_class: int = int32("Number of the class.")


class Traffic(NamedTuple):
    """A workload as compiled code sees it; make one with `Workload.traffic`.

    Attributes:
        head: scalars, and where each table begins, [1].
        table: laws, classes, phases, profile, levels and rows of a trace, float64 [m].
    """

    head: Records[Head]
    table: npt.NDArray[np.float64]


@kernel(inline=True)
def quantile(table: npt.NDArray[np.float64], at: int, u: float) -> float:
    """Inverse distribution function of a law.

    Args:
        table: that of the traffic, float64 [m].
        at: where the law begins.
        u: a probability, 0 to 1.

    Returns:
        A length, tokens, not rounded where the law is given by quantiles.
    """
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
def whole_tokens(x: float) -> int:
    """A length as a whole number of tokens, 1 or more."""
    return int(min(max(math.floor(x + 0.5), 1.0), _LARGEST))


@kernel(inline=True)
def _level(table: npt.NDArray[np.float64], at: int, knots: int, z: float) -> float:
    """Rate level at a normal score, linear between the knots of the table."""
    x = min(max((z + LEVEL_SPAN) / (2.0 * LEVEL_SPAN), 0.0), 1.0) * (knots - 1)
    i = min(int(x), knots - 2)
    return float(table[at + i] + (table[at + i + 1] - table[at + i]) * (x - i))


@kernel
def _operational_gap(gaps: np.uint64, i: int, process: int, shape: float) -> float:
    """Gap before event `i` of the unit-rate process. The first gap makes it stationary; a regular one begins with an event at 0."""
    if process == REGULAR:
        if i == 0:
            return 0.0
        return 1.0
    if shape == 1.0:
        return exponential(gaps, i)
    if i == 0:
        # The wait of a stationary renewal process is a uniform part of a length-biased gap; both laws are gamma.
        return uniform(gaps, 0) * gamma(gaps, 1, shape + 1.0) / shape
    return gamma(gaps, i + 1, shape) / shape


@kernel(inline=True)
def _first_row(head: Head, key: np.uint64) -> int:
    """The row of the trace that a replay begins with."""
    if head.replay_from_start != 0:
        return 0
    return int(min(integer(substream(key, _START), 0, 0, head.replay_rows - 1), head.replay_rows - 1))


@kernel
def _arrivals(
    head: Head,
    table: npt.NDArray[np.float64],
    key: np.uint64,
    horizon_s: float,
    requests: Records[Drawn],
) -> int:
    """Write arrival times until the horizon or the end of the records; returns how many were written."""
    gaps, switch, levels = substream(key, _GAPS), substream(key, _SWITCH), substream(key, _LEVEL)
    t = 0.0

    row, since = 0, 0.0
    if head.process == REPLAY:
        row = _first_row(head, key)
        since = -table[head.replay_at + row]

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
        if head.process == REPLAY:
            t = (table[head.replay_at + row] + since) * head.replay_scale
            row += 1
            if row == head.replay_rows:
                row = 0
                since += head.replay_cycle_s
        elif head.process != BURST and head.varying == 0:
            if head.process == REGULAR:
                t = i / head.rate_rps  # not a running sum, whose error would grow
            else:
                t += _operational_gap(gaps, i, head.process, head.shape) / head.rate_rps
        elif head.process != BURST:
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
def scores(table: npt.NDArray[np.float64], at: int, lengths: np.uint64, i: int) -> tuple[float, float]:
    """Probabilities of the prompt and the output of a request, correlated as its class says.

    Args:
        table: that of the traffic, float64 [m].
        at: where the class begins.
        lengths: stream of lengths, uint64.
        i: number of the request in that stream.

    Returns:
        Two numbers from 0 to 1.
    """
    correlation = table[at + 1]
    if correlation == 0.0:
        return uniform(lengths, 2 * i), uniform(lengths, 2 * i + 1)
    radius = math.sqrt(-2.0 * math.log(uniform(lengths, 2 * i)))
    angle = 2.0 * math.pi * uniform(lengths, 2 * i + 1)
    z_prompt = radius * math.cos(angle)
    z_output = correlation * z_prompt + table[at + 2] * radius * math.sin(angle)
    return 0.5 * math.erfc(-z_prompt * math.sqrt(0.5)), 0.5 * math.erfc(-z_output * math.sqrt(0.5))


@kernel(inline=True)
def told(head: Head, table: npt.NDArray[np.float64], kind: int, output: int, noise: np.uint64, i: int) -> int:
    """What a scheduler is told of an output length.

    Args:
        head: that of the traffic.
        table: that of the traffic, float64 [m].
        kind: number of the request's class.
        output: its output, tokens.
        noise: stream of prediction errors, uint64.
        i: number of the request in that stream.

    Returns:
        Tokens; 0 where nothing is told.
    """
    if head.information == EXACT:
        return output
    if head.information == NOISY:
        error = quantile(table, head.noise_at, uniform(noise, i))
        return whole_tokens(output * math.exp(head.noise_scale * error))
    if head.information == CLASS_MEAN:
        return whole_tokens(table[head.class_at + kind * CLASS_WIDTH + 3])
    return 0


@kernel
def draw(
    traffic: Traffic,
    key: np.uint64,
    horizon_s: float,
    requests: Records[Any],
) -> int:
    """Fill one lane's requests in order of arrival; the same traffic and key give the same bits.

    Args:
        traffic: the packed workload.
        key: seeds this world, uint64.
        horizon_s: stop before the first arrival later than this, seconds; `inf` fills all records.
        requests: records [n] with the fields of `Drawn`; other fields are left alone. Arrival times never decrease, lengths are 1
            or more, and so is the output length told to the scheduler, unless nothing is told.

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
            u_prompt, u_output = scores(table, at, lengths, i)
            r.prompt = whole_tokens(quantile(table, int(table[at + 4]), u_prompt))
            r.output = whole_tokens(quantile(table, int(table[at + 5]), u_output))
        else:
            rows = int(table[at + 7])
            if table[at] == ROWS_IN_ORDER:
                j = (row + i) % rows
            else:
                j = min(int(uniform(lengths, 2 * i) * rows), rows - 1)
            r.prompt = int(table[int(table[at + 6]) + j])
            r.output = int(table[int(table[at + 6]) + rows + j])
        r.request_class = c
        r.predicted = told(head, table, c, r.output, noise, i)
    return count
