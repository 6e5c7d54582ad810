"""The compiled functions of KVQueue: one decision, one batch.

What they mean is in `llmgym.envs.kv.queue.env`; the arguments of those in `KERNELS` are in `llmgym.core.lanes.Kernels`.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmgym.core.jit import kernel
from llmgym.core.lanes import Kernels
from llmgym.core.statistics import mean, quantile, ratio
from llmgym.envs.kv.queue.state import (
    ADMIT,
    BIN_SHIFT,
    E2E_S,
    HISTOGRAM,
    LATENCY,
    MOST,
    MOST_PROGRESS,
    PER_REQUEST,
    PICK,
    SLO,
    STABILITY,
    TPOT_S,
    TTFT_S,
    WATERMARK,
    Episode,
    Metrics,
    Observation,
    Params,
    State,
)
from llmgym.serving import queue
from llmgym.serving.admission import admissible, admit_by_rule, compose
from llmgym.serving.engine import admit, empty, fits_now, follow, held_up_s, plan, run_batch, start
from llmgym.serving.requests import begin, checksum_of, chunks_of, remaining_area, time_per_token
from llmgym.serving.residents import wait
from llmgym.serving.rules import AS_ADMITTED
from llmgym.workloads.traffic import draw

BATCH_WEIGHT = 0.05
"""Weight of the last batch in the moving average of batch times: about the last twenty."""
BACKLOG_UNIT = 0.01
"""The backlog is shown in hundreds of full caches."""
EMPTY = Episode.blank


@kernel
def reset_lane(state: State, params: Params, lane: int, key: np.uint64) -> None:
    """Draw the requests of an episode and wait for the first of them."""
    state.lane[lane] = EMPTY[0]
    _begin_episode(state, params, lane, key)
    _prepare(state, params, lane)


@kernel(inline=True)
def _begin_episode(state: State, params: Params, lane: int, key: np.uint64) -> None:
    """Draw the requests of an episode, and let the first of them wait."""
    episode = state.lane[lane]
    config = params.config[0]
    start(state, params, lane, key)
    episode.batch_estimate_s = config.batch_ref_s
    requests = state.request[lane]
    count = draw(params.traffic, key, config.horizon_s, requests)
    for i in range(count):
        begin(requests[i], config.longest)
    episode.requests = count
    episode.per_request = 1.0 / max(count, 1)
    episode.checksum = checksum_of(requests, count)
    if count > 0:
        episode.clock_s = requests[0].arrival_s
    episode.seen_s = episode.clock_s
    _arrive(state, params, lane, 0.0)


@kernel(inline=True)
def _prepare(state: State, params: Params, lane: int) -> None:
    """Plan the coming batch and see how many could join it."""
    plan(state, params, lane)
    episode = state.lane[lane]
    episode.allowed = 0
    if params.config[0].mode == ADMIT and episode.waiting > 0:
        episode.allowed = admissible(state, params, lane, params.config[0].visible)


@kernel(inline=True)
def _arrive(state: State, params: Params, lane: int, dt: float) -> None:
    """Queue everything that has been seen to arrive and update the estimate of the offered work."""
    episode = state.lane[lane]
    area = 0
    if episode.next < episode.requests and state.request[lane, episode.next].arrival_s <= episode.seen_s:
        area = _enqueue(state, params, lane)
    if dt > 0.0:
        episode.area_rate += (area - dt * episode.area_rate) / (dt + params.config[0].window_s)


@kernel(inline=True)
def _enqueue(state: State, params: Params, lane: int) -> int:
    """Queue every request that has been seen to arrive, with the time it has been in the system; returns its predicted area."""
    episode = state.lane[lane]
    area = 0
    while episode.next < episode.requests and state.request[lane, episode.next].arrival_s <= episode.seen_s:
        area += enter(state, params, lane, episode.next)
    return area


@kernel(inline=True)
def enter(state: Any, params: Any, lane: int, number: int) -> int:
    """Queue the request that has arrived next, with the time it has been in the system, or reject it.

    Args:
        state: of KVQueue, any version.
        params: the same.
        lane: number of the engine.
        number: of the request.

    Returns:
        Its predicted area, tokens x batches; 0 of a rejected one.
    """
    episode = state.lane[lane]
    request = state.request[lane, number]
    episode.next += 1
    if request.prompt >= params.config[0].longest:
        episode.rejected += 1
        return 0
    since = episode.clock_s - request.arrival_s
    episode.in_system_s += since
    episode.waiting_s += since
    before = episode.waiting_area
    wait(state, params, lane, number)
    return episode.waiting_area - before


@kernel(inline=True)
def step_lane(
    state: State, params: Params, lane: int, action: NDArray[np.float64]
) -> tuple[float, bool, bool, float]:
    """Carry out one decision; unless it only picks a request, run one batch."""
    episode = state.lane[lane]
    config = params.config[0]
    before_s = episode.in_system_s
    before_dropped = episode.dropped
    before_penalty = episode.penalty
    before_met = episode.met
    before_stability = episode.stability
    start_s = episode.clock_s
    episode.decisions += 1
    rule, watermark = 0, params.rules[0].watermark
    if config.mode <= PICK:
        chosen = int(action[0])
        position, count = 0, chosen
        if config.mode == PICK:
            position, count = chosen - 1, min(chosen, 1)
            if count == 1:
                fits = position < episode.waiting and fits_now(
                    state, params, lane, queue.at(state, lane, 0, position)
                )
                count = 1 if fits else _refuse(state, params, lane)
            elif episode.residents == 0 and _one_fits(state, params, lane):
                _refuse(state, params, lane)
        elif count > episode.allowed or (count == 0 and episode.allowed > 0 and episode.residents == 0):
            count = _refuse(state, params, lane)
        for _ in range(count):
            admit(state, params, lane, queue.at(state, lane, 0, position))
        if config.mode == PICK:
            if count == 1:
                episode.picked += 1
                return 0.0, False, False, 0.0
            episode.picked = 0
    elif config.mode == WATERMARK:
        watermark = action[0]
    else:
        rule = int(action[0])
        watermark = params.rules[rule].watermark
        if rule != episode.rule:
            episode.rule = rule
            follow(state, params, lane, rule)
    terminated, truncated = False, False
    for _ in range(config.every):
        if config.mode > PICK:
            if episode.waiting > 0 and episode.blocked == 0:
                admit_by_rule(state, params, lane, rule, watermark)
            if params.rules[rule].batch != AS_ADMITTED:
                compose(state, params, lane, params.rules[rule].batch)
        _run_once(state, params, lane)
        _prepare(state, params, lane)
        terminated = episode.done + episode.rejected >= episode.requests
        if not terminated:
            if episode.waiting > config.waiting_cap:
                terminated = True
                episode.unstable = 1
                left_s = max(config.horizon_s - episode.clock_s, 0.0)
                if config.reward == LATENCY:
                    episode.penalty += (episode.residents + episode.waiting) * left_s * episode.per_request
                elif config.reward == STABILITY:
                    episode.penalty += left_s * config.per_batch
            else:
                truncated = episode.clock_s >= config.horizon_s
        if terminated or truncated:
            break
    reward = before_penalty - episode.penalty
    if config.reward == LATENCY:
        reward -= (episode.in_system_s - before_s) * episode.per_request
        reward -= config.drop_cost * (episode.dropped - before_dropped) * config.per_capacity
    elif config.reward == SLO:
        reward += (episode.met - before_met) * episode.per_request
    else:
        reward += episode.stability - before_stability
    return reward, terminated, truncated, episode.clock_s - start_s


@kernel(inline=True)
def _run_once(state: State, params: Params, lane: int) -> None:
    """Run the planned batch, or wait where there is none to run, and see who has arrived since."""
    episode = state.lane[lane]
    config = params.config[0]
    population = episode.residents - episode.leaving + episode.waiting
    queued = episode.waiting
    dt = run_batch(state, params, lane)
    if dt == 0.0:
        following_s = (
            state.request[lane, episode.next].arrival_s if episode.next < episode.requests else math.inf
        )
        dt = hold(state, params, lane, following_s)
    else:
        note(state, params, lane, dt)
    episode.in_system_s += population * dt
    episode.waiting_s += queued * dt
    _arrive(state, params, lane, dt)
    if empty(state, lane) and episode.next < episode.requests:
        # An empty engine waits for the next arrival and sees it at once.
        since_s = episode.clock_s
        episode.clock_s = max(
            episode.clock_s, min(state.request[lane, episode.next].arrival_s, config.horizon_s)
        )
        episode.seen_s = episode.clock_s
        _arrive(state, params, lane, episode.clock_s - since_s)


@kernel(inline=True)
def hold(state: Any, params: Any, lane: int, following_s: float) -> float:
    """Let an engine that has no batch to run wait until it plans again.

    Args:
        state: of KVQueue, any version.
        params: the same.
        lane: number of the engine.
        following_s: time of the next arrival, s.

    Returns:
        How long it waits, s.
    """
    episode = state.lane[lane]
    config = params.config[0]
    dt = held_up_s(state, params, lane, following_s, config.idle_s)
    episode.clock_s += dt
    episode.seen_s = episode.clock_s
    episode.stability -= dt * config.per_batch
    return dt


@kernel(inline=True)
def note(state: Any, params: Any, lane: int, dt: float) -> None:
    """Note a batch that has run: its time, how full it was, and who can be seen by now.

    Args:
        state: of KVQueue, any version.
        params: the same.
        lane: number of the engine.
        dt: what it took, s.
    """
    episode = state.lane[lane]
    config = params.config[0]
    episode.batch_estimate_s += BATCH_WEIGHT * (dt - episode.batch_estimate_s)
    episode.stability += episode.batch_used * config.per_capacity - 1.0
    episode.seen_s = episode.clock_s - dt if config.ahead == 1 else episode.clock_s


@kernel
def _one_fits(state: State, params: Params, lane: int) -> bool:
    """Whether any of the requests that an observation shows could be picked."""
    for k in range(min(params.config[0].visible, state.lane[lane].waiting)):
        if fits_now(state, params, lane, queue.at(state, lane, 0, k)):
            return True
    return False


@kernel
def _refuse(state: State, params: Params, lane: int) -> int:
    """A masked action: counted, charged, and nothing is admitted."""
    episode = state.lane[lane]
    episode.invalid += 1
    episode.penalty += params.config[0].invalid_cost
    return 0


@kernel(inline=True)
def observe_lane(
    state: State, params: Params, lane: int, out: Observation, rest: NDArray[np.float32]
) -> None:
    """Write the observation; `rest` tells the first waiting requests, four numbers each."""
    observe_engine(state, params, lane, out)
    episode = state.lane[lane]
    config = params.config[0]
    clock_s, window_s = episode.clock_s, config.window_s
    per_prompt, per_output, per_area = config.per_prompt, config.per_output, config.per_area
    waiting = episode.waiting
    i = 0
    for k in range(config.visible):
        if k < waiting:
            request = state.request[lane, queue.at(state, lane, 0, k)]
            waited = clock_s - request.arrival_s
            rest[i] = min((request.prompt + request.kept) * per_prompt, 1.0)
            rest[i + 1] = min(request.predicted * per_output, 1.0)
            rest[i + 2] = waited / (waited + window_s)
            rest[i + 3] = min(request.area * per_area, 1.0)
        else:
            for j in range(PER_REQUEST):
                rest[i + j] = 0.0
        i += PER_REQUEST


@kernel(inline=True)
def observe_engine(state: Any, params: Any, lane: int, out: Observation) -> None:
    """Write what is seen of the engine and of its residents together.

    Args:
        state: of KVQueue, any version.
        params: the same.
        lane: number of the engine.
        out: written to.
    """
    episode = state.lane[lane]
    config = params.config[0]
    residents = state.resident[lane]
    remaining = state.scratch[lane, 0]
    held = state.scratch[lane, 1]
    footprint = state.scratch[lane, 2]
    for k in range(HISTOGRAM):
        remaining[k], held[k], footprint[k] = 0, 0, 0
    per_step, per_token = config.bins_per_step, config.bins_per_token
    last = HISTOGRAM - 1
    tick = episode.tick
    lag = config.first - config.first_stored
    longest = 1
    backlog = episode.waiting_area
    for i in range(episode.residents):
        resident = residents[i]
        if resident.decoding == 1:
            produced = tick - resident.base
            prompt = resident.prompt - resident.kept - lag
            kv = prompt + produced
            predicted = max(resident.predicted, produced + 1)
            left = predicted - produced
            stays = kv
            backlog += left * prompt + (left * (predicted + produced + 1)) // 2
        else:
            kv = resident.prefilled
            predicted = max(resident.predicted, resident.kept + 1)
            chunks = chunks_of(config, resident.prompt - kv)
            left = predicted - resident.kept + chunks
            stays = resident.prompt - chunks
            backlog += remaining_area(config, resident.prompt, kv, resident.kept, resident.kept, 0, predicted)
        # Unsigned, so that numba does not ask whether an index counts from the end.
        b = np.uint64(min((left * per_step) >> BIN_SHIFT, last))
        remaining[b] += 1
        held[b] += stays
        footprint[np.uint64(min((kv * per_token) >> BIN_SHIFT, last))] += 1
        longest = max(longest, left)
    peak = 0.0
    alive, stay = 0, 0
    width = config.steps_per_bin
    seat = config.per_seat
    per_capacity = config.per_capacity
    for k in range(HISTOGRAM):
        m = last - k
        alive += remaining[m]
        stay += held[m]
        if remaining[m] > 0:
            peak = max(peak, stay + alive * min((m + 1) * width, float(longest)))
        out.remaining[m] = remaining[m] * seat
        out.footprint[m] = footprint[m] * seat
    out.used = episode.used * per_capacity
    out.free = (config.kv_capacity - episode.used - episode.growth) * per_capacity
    out.peak = min(peak * per_capacity, MOST)
    out.residents = episode.residents * seat
    out.waiting = min(episode.waiting * config.per_cap, 1.0)
    out.backlog = min(backlog * per_capacity * BACKLOG_UNIT, 1.0)
    out.load = min(episode.area_rate * episode.batch_estimate_s * per_capacity, MOST)
    out.batch_time = min(episode.batch_s * config.per_batch, MOST)
    out.batch_prefill = min(episode.batch_prefill * config.per_prefill, 1.0)
    out.blocked = episode.blocked
    out.preemptions = min(episode.preemptions * config.per_expected, 1.0)
    out.progress = min(episode.done * config.per_expected, MOST_PROGRESS)
    out.time = min(episode.clock_s * config.per_horizon, 1.0)
    out.picked = episode.picked * seat


@kernel(inline=True)
def mask_lane(state: State, params: Params, lane: int, out: NDArray[np.int8]) -> None:
    """Write which actions are allowed."""
    episode = state.lane[lane]
    config = params.config[0]
    if config.mode == ADMIT:
        least = 1 if episode.residents == 0 and episode.allowed > 0 else 0
        for k in range(config.visible + 1):
            out[k] = 1 if least <= k <= episode.allowed else 0
    elif config.mode == PICK:
        out[0] = 1
        for k in range(config.visible):
            out[k + 1] = 0
            if k < episode.waiting and fits_now(state, params, lane, queue.at(state, lane, 0, k)):
                out[k + 1] = 1
                if episode.residents == 0:
                    out[0] = 0
    else:
        for k in range(out.shape[0]):
            out[k] = 1


@kernel
def take_times(state: Any, lane: int, kind: int) -> int:
    """Write times of one kind, TTFT_S, E2E_S or TPOT_S, of the requests that have one, to `state.times`; returns how many.

    Args:
        state: of KVQueue, any version.
        lane: number of the engine.
        kind: of the times.
    """
    times = state.times[lane]
    count = 0
    for i in range(state.lane[lane].requests):
        request = state.request[lane, i]
        time_s = request.ttft_s if kind == TTFT_S else request.e2e_s
        if time_s >= 0.0:
            if kind == TPOT_S:
                time_s = time_per_token(request.ttft_s, request.e2e_s, request.output)
            if not math.isnan(time_s):
                times[count] = time_s
                count += 1
    return count


@kernel
def metrics_lane(state: State, params: Params, lane: int, out: Metrics) -> None:
    """Write the metrics of the episode so far; NaN where there is nothing to take one of."""
    episode = state.lane[lane]
    config = params.config[0]
    duration = episode.clock_s - state.request[lane, 0].arrival_s if episode.requests > 0 else 0.0
    out.requests = episode.requests
    out.completed = episode.done
    out.rejected = episode.rejected
    out.waiting_end = episode.waiting
    times = state.times[lane]  # for one kind after the other
    e2e = times[: take_times(state, lane, E2E_S)]
    out.e2e_mean_s = mean(e2e)
    out.e2e_p50_s = quantile(e2e, 0.5)
    out.e2e_p99_s = quantile(e2e, 0.99)
    ttft = times[: take_times(state, lane, TTFT_S)]
    out.ttft_mean_s = mean(ttft)
    out.ttft_p50_s = quantile(ttft, 0.5)
    out.ttft_p99_s = quantile(ttft, 0.99)
    tpot = times[: take_times(state, lane, TPOT_S)]
    out.tpot_mean_s = mean(tpot)
    out.tpot_p99_s = quantile(tpot, 0.99)
    out.latency_mean_s = math.nan
    if episode.rejected < episode.requests:
        out.latency_mean_s = episode.in_system_s / episode.requests
    out.throughput_rps = ratio(episode.done, duration)
    out.output_tokens_per_s = ratio(episode.decoded, duration)
    out.goodput_rps = ratio(episode.met, duration)
    out.slo_attainment = ratio(episode.met, episode.requests)
    out.kv_mean = ratio(episode.kv_s, episode.busy_s) / config.kv_capacity
    out.kv_peak = episode.kv_peak / config.kv_capacity
    out.preemptions = episode.preemptions
    out.dropped_tokens = episode.dropped
    out.dropped_of_capacity = episode.dropped / config.kv_capacity
    out.batches = episode.batches
    out.batch_mean_s = ratio(episode.busy_s, episode.batches)
    out.duration_s = duration
    out.waiting_mean = ratio(episode.waiting_s, duration)
    out.invalid_actions = episode.invalid
    out.penalty = episode.penalty
    out.stability = episode.stability
    out.unstable = episode.unstable
    out.world_checksum = episode.checksum


KERNELS = Kernels(reset_lane, step_lane, observe_lane, mask_lane, metrics_lane)
