"""How the rules of DistillProgramme decide, in compiled code that reads an observation and the expected costs alone.

All planning rules do the same in three steps: which artefacts are worth having (`wanted`), which pipeline each waiting student gets
then, and what is begun now. They differ in the first step. Lambert and Luccioni, ICML 2026, arXiv 2605.13981: N* and the account
of a pipeline; several sizes and artefacts are a facility location problem, which falls apart by dataset.
"""

import math

import numpy as np
from numpy.typing import NDArray

from llmgym.core.jit import kernel
from llmgym.core.records import Record, Records, float64, int32, viewing
from llmgym.envs.distill.jobs import artefact_cost, artefact_of, student_cost
from llmgym.envs.distill.observing import rows
from llmgym.envs.distill.published import KD, SFT, SYNTHETIC
from llmgym.envs.distill.state import (
    BY_LOGITS,
    BY_TEXT,
    CAPPED,
    DATASET,
    ENERGY,
    ENERGY_KWH,
    FEATURES,
    FEW,
    FORECAST_H,
    HALF_DAY_H,
    HALF_HOURS,
    HALF_VALUE,
    HOURS,
    MARGIN,
    SIZE,
    SLACK,
    STARTS,
    VALUE,
    Observation,
    Params,
)

ALL_SFT, NAIVE, N_STAR, PORTFOLIO, REUSE_FIRST = range(5)
"""Kinds of rules."""
SPARE_H = 12.0
"""Time to its deadline that a stage keeps which waits for cleaner hours, hours."""
SAME = 1e-6
"""Energies that differ by less, in kWh, are a tie."""


class Options(Record):
    """A rule and its numbers."""

    kind: int = int32("Kind of rule.")
    future: float = float64("Weight of the students that are expected.")
    margin_h: float = float64("Time to the deadline that a power cap must leave, hours; infinite: no caps.")
    guard: int = int32("1: nothing is begun that the budget does not cover.")
    dense: int = int32("1: students in the order of value an hour of a GPU; 0: by deadline.")
    worth: float = float64("Least value a kWh of a student that is begun.")
    eager: int = int32("1: who would wait for an artefact that is being made is trained without it.")
    clean: int = int32("1: what has time to its deadline begins when the grid is cleanest.")


_seen = viewing(Observation)


@kernel(inline=True)
def _many(y: float) -> float:
    """A number from how it is shown, n / (n + 4)."""
    return round(FEW * y / (1.0 - y)) if y < 1.0 else math.inf


@kernel(inline=True)
def _signed(y: float, half: float) -> float:
    """A number from how it is shown, x / (|x| + half)."""
    return y * half / max(1.0 - abs(y), 1e-9)


@kernel(inline=True)
def _unsigned(y: float, half: float) -> float:
    """A number from how it is shown, x / (x + half)."""
    return y * half / max(1.0 - y, 1e-9)


@kernel(inline=True)
def _cheapest(params: Params, size: int, kinds: int) -> float:
    """Energy of a student by the cheapest of fine-tuning and the kinds of artefacts that it may use, kWh."""
    kwh = student_cost(params, SFT, size, 0, 1)[1]
    if kinds & BY_LOGITS:
        kwh = min(kwh, student_cost(params, KD, size, 0, 1)[1])
    if kinds & BY_TEXT:
        kwh = min(kwh, student_cost(params, SYNTHETIC, size, 0, 1)[1])
    return kwh


@kernel
def wanted(seen: Observation, params: Params, future: float) -> int:
    """The artefacts that are worth having: those there are, and those that save energy in total.

    Args:
        seen: the observation.
        params: expected costs.
        future: weight of the students that are expected to be ordered yet.

    Returns:
        Bits, artefact by artefact.
    """
    found = 0
    for dataset in range(params.config[0].datasets):
        there = 0
        for kind in range(2):
            if seen.ready[2 * dataset + kind] > 0.0 or seen.making[2 * dataset + kind] > 0.0:
                there |= 1 << kind
        best, chosen = math.inf, there
        for bits in range(4):
            if bits & there != there:
                continue
            total = 0.0
            for kind in range(2):
                if (bits >> kind) & 1 and not (there >> kind) & 1:
                    total += artefact_cost(params, 2 * dataset + kind, 0, 1)[1]
            for size in range(3):
                cell = 3 * size + dataset
                for may in range(4):
                    total += _many(seen.demand[4 * cell + may]) * _cheapest(params, size, may & bits)
                expected = future * _unsigned(seen.expected[cell], FEW)
                if expected > 0.0:
                    logits, text = params.may[size, 0], params.may[size, 1]
                    both = min(logits, text)
                    total += expected * both * _cheapest(params, size, bits)
                    total += expected * (logits - both) * _cheapest(params, size, bits & BY_LOGITS)
                    total += expected * (text - both) * _cheapest(params, size, bits & BY_TEXT)
                    rest = 1.0 - max(logits, text)
                    total += expected * rest * _cheapest(params, size, 0)
            if total < best - SAME:
                best, chosen = total, bits
        found |= chosen << (2 * dataset)
    return found


@kernel
def group_pipeline(seen: Observation, params: Params, size: int, dataset: int) -> int:
    """The pipeline of the least mean energy for the waiting students of one size and dataset; of equal ones, fine-tuning.

    Args:
        seen: the observation.
        params: expected costs.
        size: of the students, 0, 1 or 2 for 1B, 7B and 13B.
        dataset: of the students, 0, 1 or 2 for tulu, math and code.

    Returns:
        `SFT`, `KD` or `SYNTHETIC`.
    """
    best, pipeline = student_cost(params, SFT, size, 0, 1)[1], SFT
    cell = 3 * size + dataset
    for kind in range(2):
        students = _many(seen.demand[4 * cell + (BY_LOGITS if kind == 0 else BY_TEXT)])
        students += _many(seen.demand[4 * cell + BY_LOGITS + BY_TEXT])
        if students <= 0.0:
            continue
        artefact = 2 * dataset + kind
        there = seen.ready[artefact] > 0.0 or seen.making[artefact] > 0.0
        made = 0.0 if there else artefact_cost(params, artefact, 0, 1)[1]
        which = KD if kind == 0 else SYNTHETIC
        kwh = made / students + student_cost(params, which, size, 0, 1)[1]
        if kwh < best - SAME:
            best, pipeline = kwh, which
    return pipeline


@kernel(inline=True)
def _mean_from(seen: Observation, start: int, hours: float) -> float:
    """Mean of the forecast over so many hours from hour `start` on; after a day it repeats itself."""
    days = int(hours) // FORECAST_H
    left = max(int(math.ceil(hours - days * FORECAST_H)), 1 if days == 0 else 0)
    total = 0.0
    for k in range(FORECAST_H):
        total += days * seen.forecast[k]
        if k < left:
            total += seen.forecast[(start + k) % FORECAST_H]
    return total / (days * FORECAST_H + left)


@kernel
def cleanest_start(seen: Observation, hours: float, spare_h: float) -> int:
    """In how many hours, up to a day and the time to spare, a stage would begin for the least mean intensity.

    Args:
        seen: the observation, with the forecast.
        hours: that the stage takes.
        spare_h: hours by which it can begin later; 0 or less: none.

    Returns:
        Whole hours from now, 0 to 23; of equal ones the first.
    """
    best, start = math.inf, 0
    for k in range(min(FORECAST_H, int(max(spare_h, 0.0)) + 1)):
        mean = _mean_from(seen, k, hours)
        if mean < best - 1e-9:
            best, start = mean, k
    return start


@kernel
def _pipeline_of(
    seen: Observation, rest: NDArray[np.float32], params: Params, options: Options, slot: int, want: int
) -> int:
    """Which of the scenario's pipelines the student of a slot gets, -1: none.

    Where the rule plans, it is the one of the least energy that is expected to meet floor and deadline with the wanted artefacts.
    """
    count, caps = params.pipelines.shape[0], params.caps.shape[0]
    first = slot * count * caps * FEATURES
    size, dataset = int(round(2.0 * rest[first + SIZE])), int(round(2.0 * rest[first + DATASET]))
    group = group_pipeline(seen, params, size, dataset) if options.kind == N_STAR else -1
    best, chosen = math.inf, -1
    for k in range(count):
        pipeline = params.pipelines[k]
        at = first + k * caps * FEATURES
        if options.kind == ALL_SFT or options.kind == NAIVE:
            if pipeline == (SFT if options.kind == ALL_SFT else KD):
                return k
            continue
        if rest[at + MARGIN] < 0.0 or rest[at + SLACK] < 0.0:
            continue
        artefact = artefact_of(pipeline, dataset)
        if artefact >= 0 and options.eager != 0 and seen.making[artefact] > 0.0:
            continue
        kwh = rest[at + ENERGY] * ENERGY_KWH
        if options.kind == REUSE_FIRST:
            if artefact >= 0 and seen.ready[artefact] <= 0.0:
                continue
            kwh -= ENERGY_KWH if artefact >= 0 else 0.0
        elif options.kind == N_STAR:
            if artefact >= 0 and pipeline != group:
                continue
            kwh -= ENERGY_KWH if pipeline == group else 0.0
        elif artefact >= 0 and not (want >> artefact) & 1:
            continue
        if kwh < best - SAME:
            best, chosen = kwh, k
    return chosen


@kernel
def _cap_of(rest: NDArray[np.float32], caps: int, at: int, spare_h: float, margin_h: float) -> int:
    """The lowest cap that leaves the margin to the deadline, of the candidate at `at`, which has so much time without a cap."""
    for cap in range(caps - 1, 0, -1):
        row = at + cap * FEATURES
        if rest[row + CAPPED] <= 0.0:
            continue
        longer_h = _unsigned(rest[row + HOURS], HALF_HOURS) - _unsigned(rest[at + HOURS], HALF_HOURS)
        if spare_h - longer_h >= margin_h:
            return cap
    return 0


@kernel
def choose(row: NDArray[np.float32], width: int, params: Params, options: Options) -> int:
    """The action of a rule.

    Args:
        row: the observation, float32.
        width: numbers of it before the candidates.
        params: expected costs.
        options: the rule.

    Returns:
        Row of a candidate; the last one waits.
    """
    seen, rest = _seen(row), row[width:]
    config = params.config[0]
    count, caps = params.pipelines.shape[0], params.caps.shape[0]
    makes = config.window * count * caps
    wait = rows(params) - 1
    # what idle GPUs will need is not free to be used
    idle_kw, left_h = config.idle_w / 1000.0, (1.0 - seen.progress) * config.horizon_h
    left_kwh = (seen.budget - seen.committed) * config.budget_kwh
    for gpu in range(config.gpus):
        left_kwh -= idle_kw * max(left_h - _unsigned(seen.gpu_left[gpu], HALF_DAY_H), 0.0)
    want = wanted(seen, params, options.future) if options.kind == PORTFOLIO else 0
    best, action = -math.inf, wait
    for slot in range(config.window):
        first = slot * count * caps
        if rest[first * FEATURES + STARTS] <= 0.0:
            break
        k = _pipeline_of(seen, rest, params, options, slot, want)
        if k < 0:
            continue
        start = first + k * caps
        at = start * FEATURES
        dataset = int(round(2.0 * rest[at + DATASET]))
        artefact = artefact_of(params.pipelines[k], dataset)
        spare_h = _signed(rest[at + SLACK], HALF_HOURS)
        fresh = artefact < 0 or (
            seen.ready[artefact] > 0.0 and (options.kind != NAIVE or seen.uses[artefact] <= 0.0)
        )
        needs_kwh = 0.0
        if not fresh:
            if seen.making[artefact] > 0.0:
                continue
            needs_kwh = rest[at + ENERGY] * ENERGY_KWH
            start = makes + artefact * caps
            at = start * FEATURES
        cap = _cap_of(rest, caps, at, spare_h, options.margin_h)
        chosen = start + cap
        kwh = rest[chosen * FEATURES + ENERGY] * ENERGY_KWH
        hours = _unsigned(rest[chosen * FEATURES + HOURS], HALF_HOURS)
        longer_h = hours - _unsigned(rest[at + HOURS], HALF_HOURS)
        value = _unsigned(rest[(first + k * caps) * FEATURES + VALUE], HALF_VALUE)
        if options.guard != 0 and kwh + needs_kwh - idle_kw * hours > left_kwh:
            continue
        if value < options.worth * (kwh + needs_kwh):
            continue
        if options.clean != 0 and cleanest_start(seen, hours, spare_h - longer_h - SPARE_H) > 0:
            continue
        score = value / max(hours, 1e-9) if options.dense != 0 else -float(slot)
        if score > best:
            best, action = score, chosen
        if options.dense == 0:
            break
    return action


@kernel
def choose_all(
    obs: NDArray[np.float32], width: int, params: Params, options: Records[Options], out: NDArray[np.int64]
) -> None:
    """Write the actions of a rule for the observations of all lanes.

    Args:
        obs: observations, float32 [lanes, size].
        width: numbers of each before the candidates.
        params: expected costs.
        options: the rule, [1].
        out: the actions, int64 [lanes].
    """
    for lane in range(out.shape[0]):
        out[lane] = choose(obs[lane], width, params, options[0])
