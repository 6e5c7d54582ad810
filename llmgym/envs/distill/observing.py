"""What DistillProgramme shows, in compiled code: clock, budget, GPUs, artefacts, demand, and a row for each candidate."""

import math

import numpy as np
from numpy.typing import NDArray

from llmgym.core.jit import kernel
from llmgym.envs.distill.grid import MOST_G, forecast_g, intensity_g
from llmgym.envs.distill.jobs import artefact_cost, artefact_of, free_gpu, student_cost
from llmgym.envs.distill.published import KD, KINDS, LIMIT_W, LOGITS, SFT, SYNTHETIC
from llmgym.envs.distill.scenarios import MOST_GPUS
from llmgym.envs.distill.state import (
    ALLOWED,
    ARTEFACTS,
    BY_LOGITS,
    BY_TEXT,
    CAP,
    CAPPED,
    DATASET,
    DISTILS,
    EMISSIONS,
    ENERGY,
    ENERGY_KWH,
    EVALUATE,
    EXPECTED,
    FEATURES,
    FEW,
    FORECAST_H,
    HALF_DAY_H,
    HALF_HOURS,
    HALF_KG,
    HALF_KWH,
    HALF_VALUE,
    HOURS,
    MAIN,
    MAKES,
    MAKES_IT,
    MARGIN,
    MARGIN_SCALE,
    MOST_MADE,
    PREPARE,
    SAVING,
    SIZE,
    SLACK,
    STARTS,
    VALUE,
    WAITING,
    WAITS,
    Observation,
    Params,
    State,
    Student,
)


@kernel(inline=True)
def rows(params: Params) -> int:
    """How many candidates there are: students by pipeline and cap, artefacts by cap, and waiting."""
    starts = params.config[0].window * params.pipelines.shape[0]
    return (starts + ARTEFACTS) * params.caps.shape[0] + 1


@kernel(inline=True)
def decoded(params: Params, row: int) -> tuple[int, int, int]:
    """Slot, pipeline and cap of a candidate that starts a student; -1, artefact and cap of one that makes an artefact."""
    caps, pipelines = params.caps.shape[0], params.pipelines.shape[0]
    cap, rest = row % caps, row // caps
    if rest < params.config[0].window * pipelines:
        return rest // pipelines, params.pipelines[rest % pipelines], cap
    return -1, rest - params.config[0].window * pipelines, cap


@kernel(inline=True)
def allowed(state: State, params: Params, lane: int, row: int) -> bool:
    """Whether a candidate can be chosen; waiting always can.

    Args:
        state: arrays of all lanes.
        params: what all lanes share.
        lane: the lane that decides.
        row: of the candidate; the last one waits.

    Returns:
        True where it can.
    """
    if row == rows(params) - 1:
        return True
    if free_gpu(state, params, lane) < 0:
        return False
    slot, which, cap = decoded(params, row)
    if slot < 0:
        if which >= 2 * params.config[0].datasets or state.lane[lane].begun >= MOST_MADE:
            return False
        if cap > 0 and params.caps[cap] >= params.make_w[which, 0]:
            return False
        return not state.artefact[lane, which].making
    if state.slot[lane, slot] < 0:
        return False
    student = state.student[lane, state.slot[lane, slot]]
    if cap > 0 and params.caps[cap] >= params.train_w[which, student.size, 0]:
        return False
    artefact = artefact_of(which, student.dataset)
    return artefact < 0 or bool(state.artefact[lane, artefact].ready)


@kernel
def ready_in_h(state: State, params: Params, lane: int, artefact: int) -> float:
    """Time until an artefact could be used if it were begun now without a cap, as expected, hours; 0 if it is ready.

    Args:
        state: arrays of all lanes.
        params: what all lanes share.
        lane: the lane that is asked about.
        artefact: 2 x dataset + `LOGITS` or `TEXT`.

    Returns:
        Hours.
    """
    episode, config = state.lane[lane], params.config[0]
    if state.artefact[lane, artefact].ready:
        return 0.0
    if state.artefact[lane, artefact].making:
        for gpu in range(config.gpus):
            number = state.running[lane, gpu]
            if number >= 0:
                job = state.job[lane, number]
                if job.kind == MAKES and job.which == artefact and job.version == episode.version:
                    return max(job.expected_h - episode.clock_h, 0.0)
    return artefact_cost(params, artefact, 0, episode.prepared[artefact // 2])[0]


@kernel
def may_distil(state: State, params: Params, lane: int, student: Student) -> int:
    """What floor and deadline let a waiting student be distilled from: bits, `BY_LOGITS` and `BY_TEXT`.

    Args:
        state: arrays of all lanes.
        params: what all lanes share.
        lane: the lane that is asked about.
        student: a waiting one.

    Returns:
        Sum of the bits; 0: neither.
    """
    candidates = 0
    clock_h = state.lane[lane].clock_h
    for kind in range(2):
        pipeline = KD if kind == LOGITS else SYNTHETIC
        if params.quality[pipeline, student.size] < student.floor:
            continue
        hours, _ = student_cost(params, pipeline, student.size, 0, 1)
        hours += ready_in_h(state, params, lane, 2 * student.dataset + kind)
        if clock_h + hours <= student.deadline_h:
            candidates |= BY_LOGITS if kind == LOGITS else BY_TEXT
    return candidates


@kernel(inline=True)
def saving_kwh(params: Params, pipeline: int, size: int, cap: int) -> float:
    """Energy of a student by fine-tuning without a cap less that by a pipeline, artefact apart, kWh.

    Args:
        params: what all lanes share.
        pipeline: one of `SFT` to `ONLINE`, which is compared with fine-tuning.
        size: of the student, 0, 1 or 2 for 1B, 7B and 13B.
        cap: index of the power cap of the pipeline; 0: none.

    Returns:
        kWh; negative where fine-tuning needs less.
    """
    return student_cost(params, SFT, size, 0, 1)[1] - student_cost(params, pipeline, size, cap, 1)[1]


@kernel(inline=True)
def _signed(x: float, half: float) -> float:
    return x / (abs(x) + half)


@kernel(inline=True)
def _few(n: float) -> float:
    return n / (n + FEW)


@kernel(inline=True)
def expected_students(state: State, params: Params, lane: int, size: int, dataset: int) -> float:
    """Students of a size and dataset that are expected to be ordered yet: the mean of the posterior of the datasets' shares.

    Args:
        state: arrays of all lanes.
        params: what all lanes share.
        lane: the lane that is asked about.
        size: 0, 1 or 2 for 1B, 7B and 13B.
        dataset: 0, 1 or 2 for tulu, math and code.

    Returns:
        Their mean number; 0 for a dataset that the scenario does not have.
    """
    episode, config = state.lane[lane], params.config[0]
    if dataset >= config.datasets:
        return 0.0
    total = episode.arrived + config.concentration * config.datasets
    share = (episode.seen[dataset] + config.concentration) / total
    days = max(config.orders_h - episode.clock_h, 0.0) / 24.0
    return config.per_day * days * params.size_share[size] * share


@kernel(inline=True)
def _emissions_kg(params: Params, kwh: float, hours: float, running: NDArray[np.float32]) -> float:
    """Emissions that are expected of a job that begins now, kg: by the forecast, and after it by the forecast's mean."""
    whole = min(int(math.ceil(hours)), FORECAST_H)
    return kwh * params.config[0].pue * running[max(whole, 1) - 1] / 1000.0


@kernel
def observe_lane(
    state: State, params: Params, lane: int, out: Observation, rest: NDArray[np.float32]
) -> None:
    """Write the observation.

    Args:
        state: arrays of all lanes; `running_g` is written to.
        params: what all lanes share.
        lane: the lane that is shown.
        out: the fields of the observation before the candidates, written.
        rest: one row for each candidate, written, float32 [candidates * FEATURES].
    """
    episode, config = state.lane[lane], params.config[0]
    clock_h = episode.clock_h
    days = state.day[lane]
    hour = int(math.floor(min(clock_h, config.horizon_h - 1e-9)))
    out.progress = min(clock_h / config.horizon_h, 1.0)
    out.orders = min(max(config.orders_h - clock_h, 0.0) / config.horizon_h, 1.0)
    angle = 2.0 * math.pi * clock_h / 24.0
    out.hour[0], out.hour[1] = math.sin(angle), math.cos(angle)
    out.intensity = min(intensity_g(params.intensity, days, episode.month, hour) / MOST_G, 1.0)
    running = state.running_g[lane]
    total = 0.0
    for ahead in range(FORECAST_H):
        g = forecast_g(params.intensity, days, episode.month, hour, ahead)
        out.forecast[ahead] = min(g / MOST_G, 1.0)
        total += g
        running[ahead] = total / (ahead + 1.0)
    out.budget = min(max((config.budget_kwh - episode.energy_kwh) / config.budget_kwh, -1.0), 1.0)
    out.gpus = config.gpus / MOST_GPUS
    committed = 0.0
    for gpu in range(MOST_GPUS):
        number = state.running[lane, gpu] if gpu < config.gpus else -1
        out.gpu_left[gpu] = out.gpu_power[gpu] = 0.0
        if number >= 0:
            job = state.job[lane, number]
            left_h = max(job.expected_h - clock_h, 0.0)
            # what is left by expectation: the true ends are not known before they come
            evaluate_h = job.expected_h - job.begin_h - job.main_h - (job.end_h[PREPARE] - job.begin_h)
            in_main_h = max(left_h - evaluate_h, 0.0)
            committed += (
                in_main_h * job.power_w[MAIN] + min(left_h, evaluate_h) * job.power_w[EVALUATE]
            ) / 1000.0
            stage = 0
            while stage < EVALUATE and job.end_h[stage] <= clock_h:
                stage += 1
            out.gpu_left[gpu] = left_h / (left_h + HALF_DAY_H)
            out.gpu_power[gpu] = min(job.power_w[stage] / LIMIT_W, 1.0)
        elif gpu < config.gpus:
            out.gpu_power[gpu] = config.idle_w / LIMIT_W
    out.committed = min(committed / config.budget_kwh, 1.0)
    for a in range(ARTEFACTS):
        artefact = state.artefact[lane, a]
        there = a < 2 * config.datasets
        out.ready[a] = 1.0 if artefact.ready else 0.0
        out.making[a] = 1.0 if artefact.making else 0.0
        wait_h = ready_in_h(state, params, lane, a) if there else 0.0
        out.ready_in[a] = wait_h / (wait_h + HALF_DAY_H)
        age_h = max(clock_h - artefact.made_h, 0.0) if artefact.ready else 0.0
        out.age[a] = age_h / (age_h + HALF_DAY_H)
        out.uses[a] = _few(artefact.uses) if artefact.ready else 0.0
    for d in range(3):
        out.prepared[d] = 1.0 if episode.prepared[d] != 0 else 0.0
    _observe_demand(state, params, lane, out, rest)
    _observe_rows(state, params, lane, running, rest)


@kernel
def _observe_demand(
    state: State, params: Params, lane: int, out: Observation, rest: NDArray[np.float32]
) -> None:
    """Write who waits and who is expected; `rest` gets what each artefact would save, which the rows go on with."""
    episode = state.lane[lane]
    for k in range(36):
        out.demand[k] = 0.0
    waiting = 0
    for k in range(rest.shape[0]):
        rest[k] = 0.0
    first = (rows(params) - 1 - ARTEFACTS * params.caps.shape[0]) * FEATURES
    width = params.caps.shape[0] * FEATURES
    for i in range(episode.arrived):
        student = state.student[lane, i]
        if student.status != WAITING:
            continue
        waiting += 1
        may = may_distil(state, params, lane, student)
        out.demand[(3 * student.size + student.dataset) * 4 + may] += 1.0
        for kind in range(len(KINDS)):
            if may & (BY_LOGITS if kind == LOGITS else BY_TEXT):
                at = first + (2 * student.dataset + kind) * width
                rest[at + VALUE] += student.value
                rest[at + SAVING] += max(
                    saving_kwh(params, KD if kind == LOGITS else SYNTHETIC, student.size, 0), 0.0
                )
    for k in range(36):
        out.demand[k] = _few(out.demand[k])
    out.waiting = _few(waiting)
    for size in range(3):
        for dataset in range(3):
            n = expected_students(state, params, lane, size, dataset)
            out.expected[3 * size + dataset] = _few(n)
            for kind in range(len(KINDS)):
                saved = saving_kwh(params, KD if kind == LOGITS else SYNTHETIC, size, 0)
                at = first + (2 * dataset + kind) * width
                rest[at + EXPECTED] += n * params.may[size, kind] * max(saved, 0.0)


@kernel
def _observe_rows(
    state: State, params: Params, lane: int, running: NDArray[np.float32], rest: NDArray[np.float32]
) -> None:
    """Write a row for each candidate, whether it is allowed or not."""
    episode, config = state.lane[lane], params.config[0]
    caps, pipelines = params.caps.shape[0], params.pipelines.shape[0]
    at = 0
    for s in range(config.window):
        number = state.slot[lane, s]
        if number < 0:
            at += pipelines * caps * FEATURES
            continue
        student = state.student[lane, number]
        size, dataset = student.size, student.dataset
        for k in range(pipelines):
            pipeline = params.pipelines[k]
            artefact = artefact_of(pipeline, dataset)
            wait_h = ready_in_h(state, params, lane, artefact) if artefact >= 0 else 0.0
            open_now = artefact < 0 or state.artefact[lane, artefact].ready
            for cap in range(caps):
                changes = cap > 0 and params.caps[cap] < params.train_w[pipeline, size, 0]
                row = rest[at : at + FEATURES]
                at += FEATURES
                hours, kwh = student_cost(params, pipeline, size, cap, episode.prepared[dataset])
                row[STARTS] = 1.0
                row[DISTILS] = 1.0 if artefact >= 0 else 0.0
                row[SIZE], row[DATASET] = 0.5 * size, 0.5 * dataset
                row[SLACK] = _signed(student.deadline_h - episode.clock_h - wait_h - hours, HALF_HOURS)
                over_floor = (params.quality[pipeline, size] - student.floor) / MARGIN_SCALE
                row[MARGIN] = min(max(over_floor, -1.0), 1.0)
                row[VALUE] = student.value / (student.value + HALF_VALUE)
                row[SAVING] = _signed(saving_kwh(params, pipeline, size, cap), HALF_KWH)
                row[EXPECTED] = row[SAVING]
                row[ALLOWED] = 1.0 if open_now and (cap == 0 or changes) else 0.0
                _costs(params, row, hours, kwh, cap, changes, running)
    for a in range(ARTEFACTS):
        prepared = episode.prepared[a // 2]
        value, saved, future = rest[at + VALUE], rest[at + SAVING], rest[at + EXPECTED]
        there = a < 2 * config.datasets and episode.begun < MOST_MADE and not state.artefact[lane, a].making
        for cap in range(caps):
            row = rest[at : at + FEATURES]
            at += FEATURES
            if a >= 2 * config.datasets:
                continue
            changes = cap > 0 and params.caps[cap] < params.make_w[a, 0]
            hours, kwh = artefact_cost(params, a, cap, prepared)
            row[MAKES_IT] = 1.0
            row[DATASET] = 0.5 * (a // 2)
            row[VALUE] = value / (value + HALF_VALUE)
            row[SAVING] = _signed(saved - kwh, HALF_KWH)
            row[EXPECTED] = _signed(saved + future - kwh, HALF_KWH)
            row[ALLOWED] = 1.0 if there and (cap == 0 or changes) else 0.0
            _costs(params, row, hours, kwh, cap, changes, running)
    rest[at + WAITS] = 1.0
    rest[at + ALLOWED] = 1.0
    if free_gpu(state, params, lane) < 0:
        for row_at in range(0, at, FEATURES):
            rest[row_at + ALLOWED] = 0.0


@kernel(inline=True)
def _costs(
    params: Params,
    row: NDArray[np.float32],
    hours: float,
    kwh: float,
    cap: int,
    changes: bool,
    running: NDArray[np.float32],
) -> None:
    """Write energy, time, emissions and cap of a candidate."""
    row[ENERGY] = min(kwh / ENERGY_KWH, 1.0)
    row[HOURS] = hours / (hours + HALF_HOURS)
    kg = _emissions_kg(params, kwh, hours, running)
    row[EMISSIONS] = kg / (kg + HALF_KG)
    row[CAP] = params.caps[cap] / LIMIT_W
    row[CAPPED] = 1.0 if changes else 0.0
