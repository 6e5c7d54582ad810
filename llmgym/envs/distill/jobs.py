"""Jobs of DistillProgramme in compiled code: what they take, how they begin, what they use up as time goes on, how they end."""

import math

from llmgym.core.jit import kernel
from llmgym.envs.distill.grid import intensity_g
from llmgym.envs.distill.published import KD, LOGITS, SYNTHETIC, TEXT
from llmgym.envs.distill.state import (
    ARTEFACTS,
    DONE,
    DROPPED,
    EVALUATE,
    MAIN,
    MAKES,
    PREPARE,
    RUNNING,
    TRAINS,
    WAITING,
    Config,
    Episode,
    Job,
    Params,
    State,
)
from llmgym.envs.distill.world import made_stretch, next_change_h

BLANK = Job.blank
W_PER_KW = 1000.0


@kernel(inline=True)
def artefact_of(pipeline: int, dataset: int) -> int:
    """The artefact that a pipeline needs, -1: none."""
    if pipeline == KD:
        return 2 * dataset + LOGITS
    return 2 * dataset + TEXT if pipeline == SYNTHETIC else -1


@kernel(inline=True)
def free_gpu(state: State, params: Params, lane: int) -> int:
    """The first GPU without a job; -1 where all work.

    Args:
        state: arrays of all lanes.
        params: what all lanes share.
        lane: the lane that is asked about.

    Returns:
        Its index, or -1.
    """
    for gpu in range(params.config[0].gpus):
        if state.running[lane, gpu] < 0:
            return gpu
    return -1


@kernel(inline=True)
def student_cost(params: Params, pipeline: int, size: int, cap: int, prepared: int) -> tuple[float, float]:
    """Expected time (h) and energy (kWh) of a student's job, artefact apart.

    Args:
        params: what all lanes share.
        pipeline: one of `SFT` to `ONLINE`.
        size: of the student, 0, 1 or 2 for 1B, 7B and 13B.
        cap: index of the power cap; 0: none.
        prepared: 0: the data of the dataset has to be prepared first; else it is there.

    Returns:
        Hours and kWh.
    """
    config = params.config[0]
    train_h, evaluate_h = params.train_h[pipeline, size, cap], params.evaluate_h[size, cap]
    watt_h = train_h * params.train_w[pipeline, size, cap] + evaluate_h * params.evaluate_w[cap]
    hours = train_h + evaluate_h
    if prepared == 0:
        hours += config.prepare_h
        watt_h += config.prepare_h * config.prepare_w
    return hours, watt_h / W_PER_KW


@kernel(inline=True)
def artefact_cost(params: Params, artefact: int, cap: int, prepared: int) -> tuple[float, float]:
    """Expected time (h) and energy (kWh) of the job that makes an artefact.

    Args:
        params: what all lanes share.
        artefact: 2 x dataset + `LOGITS` or `TEXT`.
        cap: index of the power cap; 0: none.
        prepared: 0: the data of the dataset has to be prepared first; else it is there.

    Returns:
        Hours and kWh.
    """
    config = params.config[0]
    hours = params.make_h[artefact, cap]
    watt_h = hours * params.make_w[artefact, cap]
    if prepared == 0:
        hours += config.prepare_h
        watt_h += config.prepare_h * config.prepare_w
    return hours, watt_h / W_PER_KW


@kernel
def begin(state: State, params: Params, lane: int, kind: int, which: int, pipeline: int, cap: int) -> None:
    """Begin a job on the first free GPU.

    Args:
        state: arrays of all lanes.
        params: what all lanes share.
        lane: which one.
        kind: trains a student or makes an artefact.
        which: the student or artefact.
        pipeline: of a student; not read of an artefact.
        cap: index of the power cap.
    """
    episode, config = state.lane[lane], params.config[0]
    gpu = free_gpu(state, params, lane)
    number = episode.jobs
    state.job[lane, number] = BLANK[0]
    job = state.job[lane, number]
    job.gpu, job.kind, job.which, job.cap, job.version = gpu, kind, which, cap, episode.version
    job.begin_h = episode.clock_h
    if kind == TRAINS:
        student = state.student[lane, which]
        dataset = student.dataset
        student.status, student.pipeline = RUNNING, pipeline
        job.main_h = params.train_h[pipeline, student.size, cap]
        job.power_w[MAIN] = params.train_w[pipeline, student.size, cap]
        stretch, evaluate_h = student.stretch, params.evaluate_h[student.size, cap]
        job.power_w[EVALUATE] = params.evaluate_w[cap]
        changes = params.caps[cap] < params.train_w[pipeline, student.size, 0]
        artefact = artefact_of(pipeline, dataset)
        if artefact >= 0:
            state.artefact[lane, artefact].uses += 1
            episode.distilled += 1
    else:
        dataset = which // 2
        state.artefact[lane, which].making = True
        job.main_h = params.make_h[which, cap]
        job.power_w[MAIN] = params.make_w[which, cap]
        stretch, evaluate_h = made_stretch(config, episode.key, episode.begun), 0.0
        changes = params.caps[cap] < params.make_w[which, 0]
        episode.begun += 1
    prepare_h = 0.0 if episode.prepared[dataset] != 0 else config.prepare_h
    job.power_w[PREPARE] = config.prepare_w
    episode.prepared[dataset] = 1
    job.end_h[PREPARE] = job.begin_h + prepare_h
    job.end_h[MAIN] = job.end_h[PREPARE] + stretch * job.main_h
    job.end_h[EVALUATE] = job.end_h[MAIN] + evaluate_h
    job.expected_h = job.begin_h + prepare_h + job.main_h + evaluate_h
    episode.capped += changes
    episode.jobs += 1
    state.running[lane, gpu] = number


@kernel(inline=True)
def used_kwh(job: Job, stage: int, begin_h: float, end_h: float) -> float:
    """Energy of one stage of a job between two times, kWh.

    Args:
        job: the job.
        stage: `PREPARE`, `MAIN` or `EVALUATE`.
        begin_h: since midnight of the first day, hours.
        end_h: since midnight of the first day, hours.

    Returns:
        kWh; 0 where the stage does not run between these times.
    """
    first_h = job.begin_h if stage == PREPARE else job.end_h[stage - 1]
    hours = min(end_h, job.end_h[stage]) - max(begin_h, first_h)
    return max(hours, 0.0) * job.power_w[stage] / W_PER_KW


@kernel
def next_event_h(state: State, params: Params, lane: int) -> float:
    """The next time at which a job ends, a student is ordered, the teacher changes or the programme ends, hours.

    Args:
        state: arrays of all lanes.
        params: what all lanes share.
        lane: the lane that is asked about.

    Returns:
        Hours since midnight of the first day.
    """
    episode, config = state.lane[lane], params.config[0]
    soonest_h = min(config.horizon_h, episode.change_h)
    for gpu in range(config.gpus):
        if state.running[lane, gpu] >= 0:
            soonest_h = min(soonest_h, state.job[lane, state.running[lane, gpu]].end_h[EVALUATE])
    if episode.arrived < episode.students:
        soonest_h = min(soonest_h, state.student[lane, episode.arrived].arrival_h)
    return soonest_h


@kernel
def run_until(state: State, params: Params, lane: int, until_h: float) -> None:
    """Let time go on, hour by hour, with the energy and the emissions of what runs; a hard budget stops it.

    Args:
        state: arrays of all lanes, written to.
        params: what all lanes share.
        lane: the lane that goes on.
        until_h: since midnight of the first day, hours; a hard budget can stop it before.
    """
    episode, config = state.lane[lane], params.config[0]
    while episode.clock_h < until_h:
        hour = int(math.floor(episode.clock_h))
        begin_h, stop_h = episode.clock_h, min(until_h, hour + 1.0)
        if (
            config.hard != 0
        ):  # power is constant within a piece, so that the moment at which the budget is up is exact
            for gpu in range(config.gpus):
                number = state.running[lane, gpu]
                for stage in range(3 if number >= 0 else 0):
                    end_h = state.job[lane, number].end_h[stage]
                    if begin_h < end_h < stop_h:
                        stop_h = end_h
        total, teacher, idle, working = 0.0, 0.0, 0.0, 0
        for gpu in range(config.gpus):
            number = state.running[lane, gpu]
            if number < 0:
                idle += (stop_h - begin_h) * config.idle_w / W_PER_KW
                continue
            working += 1
            job = state.job[lane, number]
            for stage in range(3):
                kwh = used_kwh(job, stage, begin_h, stop_h)
                total += kwh
                if job.kind == MAKES and stage == MAIN:
                    teacher += kwh
        total += idle
        share = 1.0
        left = config.budget_kwh - episode.energy_kwh
        if config.hard != 0 and total > 0.0 and total >= left:
            share = max(left, 0.0) / total
            until_h = -math.inf
        episode.energy_kwh += share * total
        episode.teacher_kwh += share * teacher
        episode.idle_kwh += share * idle
        episode.busy_h += share * working * (stop_h - begin_h)
        grams = (
            share * total * config.pue * intensity_g(params.intensity, state.day[lane], episode.month, hour)
        )
        episode.co2_kg += grams / 1000.0
        episode.clock_h = stop_h if share == 1.0 else begin_h + share * (stop_h - begin_h)


@kernel
def _finish_student(state: State, params: Params, lane: int, job: Job) -> None:
    """A student is done: its quality is known, and whether it met its deadline and floor."""
    episode, student = state.lane[lane], state.student[lane, job.which]
    student.status, student.end_h = DONE, job.end_h[EVALUATE]
    expected = params.quality[student.pipeline, student.size]
    student.quality = expected + params.config[0].quality_noise * student.luck
    episode.done += 1
    episode.quality += student.quality
    if student.end_h > student.deadline_h:
        episode.late += 1
    elif student.quality < student.floor:
        episode.below += 1
    else:
        episode.met += 1
        episode.value += student.value


@kernel
def _finish_artefact(state: State, params: Params, lane: int, job: Job) -> None:
    """An artefact is made, unless the teacher has changed meanwhile; the oldest ones make room for it."""
    episode, artefact = state.lane[lane], state.artefact[lane, job.which]
    artefact.making = False
    if job.version != episode.version:
        return
    artefact.ready, artefact.uses, artefact.made_h = True, 0, episode.clock_h
    episode.made += 1
    while True:
        stored, oldest = 0.0, -1
        for a in range(ARTEFACTS):
            other = state.artefact[lane, a]
            if other.ready:
                stored += params.gb[a]
                older = oldest < 0 or other.made_h < state.artefact[lane, oldest].made_h
                if a != job.which and older:
                    oldest = a
        if stored <= params.config[0].storage_gb or oldest < 0:
            return
        state.artefact[lane, oldest].ready = False


@kernel
def settle(state: State, params: Params, lane: int) -> None:
    """What happens at this time: jobs end, students are ordered or dropped, the teacher changes.

    Args:
        state: arrays of all lanes, written to.
        params: what all lanes share.
        lane: the lane that is brought up to date.
    """
    episode, config = state.lane[lane], params.config[0]
    for gpu in range(config.gpus):
        number = state.running[lane, gpu]
        if number >= 0 and state.job[lane, number].end_h[EVALUATE] <= episode.clock_h:
            job = state.job[lane, number]
            state.running[lane, gpu] = -1
            if job.kind == TRAINS:
                _finish_student(state, params, lane, job)
            else:
                _finish_artefact(state, params, lane, job)
    while episode.change_h <= episode.clock_h:
        episode.version += 1
        episode.changes += 1
        for a in range(ARTEFACTS):
            state.artefact[lane, a].ready = False
        episode.change_h = next_change_h(config, episode.key, episode.changes, episode.change_h)
    while episode.arrived < episode.students:
        student = state.student[lane, episode.arrived]
        if student.arrival_h > episode.clock_h:
            break
        student.status = WAITING
        episode.offered += student.value
        episode.seen[student.dataset] += 1
        episode.arrived += 1
    for i in range(episode.arrived):
        student = state.student[lane, i]
        if student.status == WAITING and student.deadline_h <= episode.clock_h:
            student.status = DROPPED
            episode.dropped += 1
    _fill_slots(state, params, lane)


@kernel
def _fill_slots(state: State, params: Params, lane: int) -> None:
    """Put the waiting students of the earliest deadlines into the slots; of equal ones, the first."""
    episode = state.lane[lane]
    last_h, last = -math.inf, -1
    for s in range(params.config[0].window):
        best = -1
        for i in range(episode.arrived):
            student = state.student[lane, i]
            at_h = student.deadline_h
            if student.status != WAITING or at_h < last_h or (at_h == last_h and i <= last):
                continue
            if best < 0 or at_h < state.student[lane, best].deadline_h:
                best = i
        state.slot[lane, s] = best
        if best >= 0:
            last_h, last = state.student[lane, best].deadline_h, best
        else:
            last_h = math.inf


@kernel(inline=True)
def over(state: State, params: Params, lane: int) -> bool:
    """Whether the episode has ended: time or a hard budget is up, or every student of it is done or dropped.

    Args:
        state: arrays of all lanes.
        params: what all lanes share.
        lane: the lane that is asked about.

    Returns:
        True where it has.
    """
    episode, config = state.lane[lane], params.config[0]
    if episode.clock_h >= config.horizon_h:
        return True
    if config.hard != 0 and episode.energy_kwh >= config.budget_kwh * (1.0 - 1e-12):
        return True
    return episode.arrived == episode.students and episode.done + episode.dropped == episode.students


@kernel(inline=True)
def overdraft_kwh(episode: Episode, config: Config) -> float:
    """Energy over the budget, kWh."""
    return max(episode.energy_kwh - config.budget_kwh, 0.0)
