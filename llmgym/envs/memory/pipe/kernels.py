"""The compiled functions of MemPipe: place a stage, go on to the next that is ready. See `llmgym.envs.memory.pipe.env`.

Devices and links do their jobs in the order in which the jobs were given to them. So the end of a stage is known when the stage is
placed, and the next decision is that of the request whose stage is ready first.
"""

import math

import numpy as np
from numpy.typing import NDArray

from llmgym.core.jit import kernel
from llmgym.core.lanes import Kernels
from llmgym.core.rng import exponential, substream, uniform
from llmgym.core.statistics import quantile, ratio
from llmgym.envs.memory.costs import drawn
from llmgym.envs.memory.law import APPLY, COMP, FPGA, GPU, PREP, RET
from llmgym.envs.memory.observing import observe_request, scaled_intensity, squash
from llmgym.envs.memory.pipe.state import (
    ALL_PLACED,
    CROWD,
    DOWNLINK,
    TO_FPGA,
    TO_GPU,
    UPLINK,
    WAIT,
    Episode,
    Metrics,
    Observation,
    Params,
    Request,
    Span,
    State,
)
from llmgym.envs.memory.placement import copies_s
from llmgym.envs.memory.resources import IDLE, backlog_s, book

CELLS, GAPS = 0, 1
"""Sub-streams of the key of an episode."""
EMPTY, NEW, NOT_PLACED = Episode.blank, Request.blank, Span.blank


@kernel
def reset_lane(state: State, params: Params, lane: int, key: np.uint64) -> None:
    """Draw all requests; the first one arrives at time 0, and its first stage is to be placed.

    Args:
        state: arrays of all lanes.
        params: shared by all lanes.
        lane: number of the lane.
        key: seeds everything that is drawn in the episode, uint64.
    """
    state.lane[lane] = EMPTY[0]
    episode, config = state.lane[lane], params.config[0]
    episode.key = key
    for r in range(4):
        state.resource[lane, r] = IDLE[0]
    arrival_s = 0.0
    for n in range(config.requests):
        if n > 0:
            arrival_s += exponential(substream(key, GAPS), n) / config.rate_rps
        state.request[lane, n] = NEW[0]
        request = state.request[lane, n]
        request.cell = drawn(params.running, uniform(substream(key, CELLS), n))
        request.arrival_s = request.ready_s = arrival_s
        cell = params.cells[request.cell]
        request.stage = _next_stage(cell.empty, 0)
        request.weight = 1.0 / (cell.gpu_s if config.slowdown != 0 else config.mean_s)
        episode.checksum += arrival_s + request.cell
        for stage in range(4):
            state.span[lane, n, stage] = NOT_PLACED[0]


@kernel(inline=True)
def _next_stage(empty: int, stage: int) -> int:
    """The first stage from this one on that is not empty."""
    while stage < ALL_PLACED and (empty >> stage) & 1:
        stage += 1
    return stage


@kernel(inline=True)
def _may_offload(state: State, params: Params, lane: int) -> bool:
    """Whether the present stage can run on the FPGA: it does not read the index, or the index fits."""
    request = state.request[lane, state.lane[lane].current]
    return request.stage == PREP or request.stage == APPLY or params.cells[request.cell].fits != 0


@kernel
def _next_event_s(state: State, params: Params, lane: int) -> float:
    """The next time at which something ends or arrives, seconds; infinite if nothing does."""
    episode = state.lane[lane]
    soonest_s = math.inf
    for r in range(4):
        until_s = state.resource[lane, r].until_s
        if episode.clock_s < until_s < soonest_s:
            soonest_s = until_s
    for n in range(episode.oldest, params.config[0].requests):
        request = state.request[lane, n]
        if episode.clock_s < request.ready_s < soonest_s:
            soonest_s = request.ready_s
        if request.arrival_s > episode.clock_s:
            break
    return soonest_s


@kernel(inline=True)
def _fuses(state: State, params: Params, lane: int) -> bool:
    """Whether retrieval would run in the same kernel as the present stage, if that is on the FPGA."""
    request = state.request[lane, state.lane[lane].current]
    return (
        params.config[0].fused != 0
        and request.stage == COMP
        and (params.cells[request.cell].empty >> RET) & 1 == 0
    )


@kernel
def _put(state: State, params: Params, lane: int, device: int) -> None:
    """Give the present stage to a device: copy what it reads, then run it, each after what was given before."""
    episode = state.lane[lane]
    request = state.request[lane, episode.current]
    cell = params.cells[request.cell]
    stage = request.stage
    fused = device == FPGA and _fuses(state, params, lane)
    # empty stages before this one are where the data is
    for k in range(1, stage):
        if (cell.empty >> k) & 1 and (request.placed >> (k - 1)) & 1:
            request.placed |= 1 << k
    down_s, up_s, down_bytes, up_bytes = copies_s(cell, params.links, 1.0, request.placed, stage, device)
    span = state.span[lane, episode.current, stage]
    ready_s = episode.clock_s
    if down_s > 0.0:
        ready_s = book(state.resource[lane, DOWNLINK], ready_s, down_s)
    if up_s > 0.0:
        ready_s = book(state.resource[lane, UPLINK], ready_s, up_s)
    span.copy_begin_s, span.copy_end_s = ready_s - down_s - up_s, ready_s
    length_s = cell.fused_s if fused else cell.time_s[device, stage]
    done_s = book(state.resource[lane, device], ready_s, length_s)
    span.begin_s, span.end_s = done_s - length_s, done_s
    episode.energy_j += length_s * cell.power_w[device, stage]
    episode.copied_bytes += down_bytes + up_bytes
    request.placed |= device << stage
    request.device = device
    episode.stages += 1
    episode.offloaded += device
    if fused:
        request.placed |= 1 << RET
        episode.stages += 1
        episode.offloaded += 1
    request.stage = _next_stage(cell.empty, stage + (2 if fused else 1))
    request.ready_s = done_s


@kernel
def _go_on(state: State, params: Params, lane: int) -> tuple[float, bool]:
    """Go on to the next stage that is ready, or to the end of the episode.

    Returns:
        The weighted time that requests spent in the system on the way, and whether the episode has ended.
    """
    episode = state.lane[lane]
    requests = params.config[0].requests
    soonest_s, last_s, upcoming = math.inf, episode.clock_s, -1
    for n in range(episode.oldest, requests):
        request = state.request[lane, n]
        if request.arrival_s > soonest_s:
            break
        if request.stage < ALL_PLACED:
            if request.ready_s < soonest_s:
                soonest_s, upcoming = request.ready_s, n
        else:
            last_s = max(last_s, request.ready_s)
    ended = upcoming < 0
    until_s = last_s if ended else soonest_s
    spent = 0.0
    for n in range(episode.oldest, requests):
        request = state.request[lane, n]
        if request.arrival_s >= until_s:
            break
        left_s = min(request.ready_s, until_s) if request.stage == ALL_PLACED else until_s
        if left_s > episode.clock_s:
            spent += request.weight * (left_s - max(request.arrival_s, episode.clock_s))
    episode.clock_s = until_s
    episode.current = max(upcoming, 0)
    while episode.oldest < requests:
        request = state.request[lane, episode.oldest]
        if request.stage < ALL_PLACED or request.ready_s > until_s:
            break
        episode.oldest += 1
    return spent, ended


@kernel
def step_lane(
    state: State, params: Params, lane: int, action: NDArray[np.float64]
) -> tuple[float, bool, bool, float]:
    """Place a stage, or wait; time goes on to the next stage that is ready.

    Args:
        state: arrays of all lanes.
        params: shared by all lanes.
        lane: number of the lane.
        action: float64 [1], TO_GPU, TO_FPGA or WAIT.

    Returns:
        Reward, whether the episode is over, whether it is cut, and the time that passed, seconds.
    """
    episode, config = state.lane[lane], params.config[0]
    decision, penalty = int(action[0]), 0.0
    start_s, before_j = episode.clock_s, episode.energy_j
    later_s = _next_event_s(state, params, lane) if decision == WAIT else 0.0
    if (decision == TO_FPGA and not _may_offload(state, params, lane)) or later_s == math.inf:
        episode.invalid += 1
        penalty = config.invalid_cost
        decision = TO_GPU
    if decision == WAIT:
        episode.waits += 1
        state.request[lane, episode.current].ready_s = later_s
    else:
        _put(state, params, lane, decision)
    spent, ended = _go_on(state, params, lane)
    episode.weighted += spent
    episode.penalty += penalty
    reward = -spent / config.requests - penalty
    reward -= config.energy_weight * (episode.energy_j - before_j) / (config.requests * config.mean_j)
    return reward, ended, False, episode.clock_s - start_s


@kernel
def _observe_stage(state: State, params: Params, lane: int, out: Observation) -> None:
    """Write what each device would take for the present stage, and what the request needs after it."""
    episode, config = state.lane[lane], params.config[0]
    request = state.request[lane, episode.current]
    cell = params.cells[request.cell]
    stage, fuses = request.stage, _fuses(state, params, lane)
    out.intensity = scaled_intensity(cell.intensity[stage])
    for device in range(2):
        kernel_s = cell.time_s[device, stage]
        if fuses:
            kernel_s = cell.fused_s if device == FPGA else kernel_s + cell.time_s[GPU, RET]
        down_s, up_s, _, _ = copies_s(cell, params.links, 1.0, request.placed, stage, device)
        ready_s = down_s + up_s
        if down_s > 0.0:
            ready_s += backlog_s(state.resource[lane, DOWNLINK], episode.clock_s)
        if up_s > 0.0:
            ready_s += backlog_s(state.resource[lane, UPLINK], episode.clock_s)
        done_s = max(ready_s, backlog_s(state.resource[lane, device], episode.clock_s)) + kernel_s
        out.kernel[device] = squash(kernel_s / config.mean_s)
        out.copies[device] = squash((down_s + up_s) / config.mean_s)
        out.finish[device] = squash(done_s / config.mean_s)
    rest_s = 0.0
    for later in range(stage + (2 if fuses else 1), 4):
        rest_s += cell.time_s[GPU, later]
    out.rest = squash(rest_s / config.mean_s)
    out.on_fpga[0] = (request.placed >> (stage - 1)) & 1 if stage > PREP else 0
    out.on_fpga[1] = request.placed & 1
    out.age = squash((episode.clock_s - request.arrival_s) / config.mean_s)


@kernel(inline=True)
def _observe_no_stage(out: Observation) -> None:
    """Write that there is nothing to place: the episode has ended."""
    out.intensity = out.rest = out.age = 0.0
    for device in range(2):
        out.kernel[device] = out.copies[device] = out.finish[device] = out.on_fpga[device] = 0.0


@kernel
def observe_lane(
    state: State, params: Params, lane: int, out: Observation, rest: NDArray[np.float32]
) -> None:
    """Write the observation.

    Args:
        state: arrays of all lanes.
        params: shared by all lanes.
        lane: number of the lane.
        out: the record of the observation, written.
        rest: float32 [0], not used: the record is the whole observation.
    """
    episode, config = state.lane[lane], params.config[0]
    request = state.request[lane, episode.current]
    observe_request(params.cells[request.cell], out)
    for stage in range(4):
        out.stage[stage] = 1.0 if stage == request.stage else 0.0
    if request.stage < ALL_PLACED:
        _observe_stage(state, params, lane, out)
    else:
        _observe_no_stage(out)
    for r in range(4):
        out.backlog[r] = squash(backlog_s(state.resource[lane, r], episode.clock_s) / config.mean_s)
    on_gpu, on_fpga, inside = 0.0, 0.0, 0.0
    for n in range(episode.oldest, config.requests):
        other = state.request[lane, n]
        if other.arrival_s > episode.clock_s:
            break
        if other.stage < ALL_PLACED or other.ready_s > episode.clock_s:
            inside += 1.0
        if other.ready_s > episode.clock_s and other.device == GPU:
            on_gpu += 1.0
        elif other.ready_s > episode.clock_s and other.device == FPGA:
            on_fpga += 1.0
    out.queue[0] = on_gpu / (on_gpu + CROWD)
    out.queue[1] = on_fpga / (on_fpga + CROWD)
    out.inside = inside / (inside + CROWD)
    out.load = squash(config.load)
    out.progress = episode.oldest / config.requests


@kernel
def mask_lane(state: State, params: Params, lane: int, out: NDArray[np.int8]) -> None:
    """Write what is allowed: the GPU always, the FPGA where the index fits, waiting while there is something to wait for.

    Args:
        state: arrays of all lanes.
        params: shared by all lanes.
        lane: number of the lane.
        out: int8 [2], or [3] where waiting is an action, written: 1 for what is allowed, 0 for the rest.
    """
    out[TO_GPU] = 1
    out[TO_FPGA] = 1 if _may_offload(state, params, lane) else 0
    if params.config[0].wait != 0:
        out[WAIT] = 1 if _next_event_s(state, params, lane) < math.inf else 0


@kernel(inline=True)
def _share(busy_s: float, clock_s: float) -> float:
    """Share of the time so far, at most all of it; NaN over no time."""
    return min(busy_s / clock_s, 1.0) if clock_s > 0.0 else math.nan


@kernel
def metrics_lane(state: State, params: Params, lane: int, out: Metrics) -> None:
    """Write the metrics of the episode so far.

    Args:
        state: arrays of all lanes.
        params: shared by all lanes.
        lane: number of the lane.
        out: the record of the metrics, written.
    """
    episode, config = state.lane[lane], params.config[0]
    done, latency_s, slowdown = 0, 0.0, 0.0
    latencies = state.scratch[lane]
    for n in range(config.requests):
        request = state.request[lane, n]
        if request.stage == ALL_PLACED and request.ready_s <= episode.clock_s:
            inside_s = request.ready_s - request.arrival_s
            latencies[done] = inside_s
            done += 1
            latency_s += inside_s
            slowdown += inside_s / params.cells[request.cell].gpu_s
    count, clock_s = float(done), episode.clock_s
    links_s = state.resource[lane, DOWNLINK].busy_s + state.resource[lane, UPLINK].busy_s
    out.latency_relative = episode.weighted / config.requests
    out.latency_mean_s = ratio(latency_s, count)
    out.e2e_p50_s = quantile(latencies[:done], 0.5)
    out.e2e_p99_s = quantile(latencies[:done], 0.99)
    out.slowdown_mean = ratio(slowdown, count)
    out.throughput_rps = ratio(count, clock_s)
    out.energy_mean_j = ratio(episode.energy_j, count)
    out.energy_relative = episode.energy_j / (config.requests * config.mean_j)
    out.gpu_utilization = _share(state.resource[lane, GPU].busy_s, clock_s)
    out.fpga_utilization = _share(state.resource[lane, FPGA].busy_s, clock_s)
    out.link_utilization = _share(0.5 * links_s, clock_s)
    out.offloaded_share = ratio(episode.offloaded, episode.stages)
    out.copied_bytes = episode.copied_bytes
    out.requests = count
    out.waits = episode.waits
    out.penalty = episode.penalty
    out.invalid_actions = episode.invalid
    out.energy_j = episode.energy_j
    out.duration_s = clock_s
    out.world_checksum = episode.checksum


KERNELS = Kernels(reset_lane, step_lane, observe_lane, mask_lane, metrics_lane)
