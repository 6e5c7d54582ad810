"""The compiled functions of MemPipe: place a stage, go on to the next one that is ready. See `llmgym.envs.memory.pipe.env`.

Devices and links do their jobs in the order in which they were given to them, so the end of a stage is known when it is placed, and
the next thing to decide is that of the request whose stage is ready first.
"""

import math

import numpy as np
from numpy.typing import NDArray

from llmgym.core.jit import kernel
from llmgym.core.lanes import Kernels
from llmgym.core.rng import exponential, substream, uniform
from llmgym.core.statistics import quantile, ratio
from llmgym.envs.memory.costs import BATCHES, SIZES, drawn
from llmgym.envs.memory.law import APPLY, COMP, FPGA, GPU, PREP, RET
from llmgym.envs.memory.pipe.state import ALL_PLACED, DOWNLINK, TO_FPGA, TO_GPU, UPLINK, WAIT, Params, State
from llmgym.envs.memory.placement import copies_s
from llmgym.envs.memory.published import NAMES
from llmgym.envs.memory.resources import backlog, book, clear

CELLS, GAPS = 0, 1
"""Sub-streams of the key of an episode."""
KINDS = len(NAMES)
TOP_SIZE, TOP_BATCH = SIZES - 1.0, len(BATCHES) - 1.0
CROWD = 8.0
"""Requests are shown as n / (n + 8)."""


@kernel
def reset_lane(state: State, params: Params, lane: int, key: np.uint64) -> None:
    """Draw all requests; the first arrives at time 0, and its first stage is to be placed."""
    episode, config = state.lane[lane], params.config[0]
    episode.key = key
    episode.first, episode.stages, episode.offloaded, episode.waits, episode.invalid = 0, 0, 0, 0, 0
    episode.clock, episode.joules, episode.moved, episode.weighted, episode.penalty, episode.checksum = (
        0.0,
        0.0,
        0.0,
        0.0,
        0.0,
        0.0,
    )
    for r in range(4):
        clear(state.resource[lane, r])
    arrival = 0.0
    for n in range(config.requests):
        if n > 0:
            arrival += exponential(substream(key, GAPS), n) / config.rate
        one = state.request[lane, n]
        one.cell = drawn(params.running, uniform(substream(key, CELLS), n))
        one.arrival_s = one.ready_s = arrival
        one.placed, one.device = 0, -1
        cell = params.cells[one.cell]
        one.stage = _next_stage(cell.empty, 0)
        one.weight = 1.0 / (cell.gpu_s if config.slowdown != 0 else config.mean_s)
        episode.checksum += arrival + one.cell
        for stage in range(4):
            for k in range(4):
                state.span[lane, n, stage, k] = -1.0
    episode.now = 0


@kernel(inline=True)
def _next_stage(empty: int, stage: int) -> int:
    """The first stage from this one on that is not empty."""
    while stage < ALL_PLACED and (empty >> stage) & 1:
        stage += 1
    return stage


@kernel(inline=True)
def _may_offload(state: State, params: Params, lane: int) -> bool:
    """Whether the present stage can run on the FPGA: it does not read the index, or the index fits."""
    one = state.request[lane, state.lane[lane].now]
    return one.stage == PREP or one.stage == APPLY or params.cells[one.cell].fits != 0


@kernel
def _next_event(state: State, params: Params, lane: int) -> float:
    """The next time at which something ends or arrives, s; infinite if nothing does."""
    episode = state.lane[lane]
    soonest = math.inf
    for r in range(4):
        until = state.resource[lane, r].until_s
        if episode.clock < until < soonest:
            soonest = until
    for n in range(episode.first, params.config[0].requests):
        one = state.request[lane, n]
        if episode.clock < one.ready_s < soonest:
            soonest = one.ready_s
        if one.arrival_s > episode.clock:
            break
    return soonest


@kernel
def _kernel_s(cell_time: float, fused_s: float, ret_s: float, fuses: bool, device: int) -> float:
    """Time of a stage on a device; of relevancy, where retrieval belongs to it, with that."""
    if not fuses:
        return cell_time
    return fused_s if device == FPGA else cell_time + ret_s


@kernel(inline=True)
def _fuses(state: State, params: Params, lane: int) -> bool:
    """Whether retrieval would run in the same kernel as the present stage, if that is on the FPGA."""
    one = state.request[lane, state.lane[lane].now]
    return (
        params.config[0].fused != 0 and one.stage == COMP and (params.cells[one.cell].empty >> RET) & 1 == 0
    )


@kernel
def _put(state: State, params: Params, lane: int, device: int) -> None:
    """Give the present stage to a device: copy what it reads, then run it, each after what was given before."""
    episode = state.lane[lane]
    one = state.request[lane, episode.now]
    cell = params.cells[one.cell]
    stage = one.stage
    fused = device == FPGA and _fuses(state, params, lane)
    # empty stages before this one are where the data is
    for k in range(1, stage):
        if (cell.empty >> k) & 1 and (one.placed >> (k - 1)) & 1:
            one.placed |= 1 << k
    down, up, down_bytes, up_bytes = copies_s(cell, params.links, 1.0, one.placed, stage, device)
    span = state.span[lane, episode.now, stage]
    ready = episode.clock
    if down > 0.0:
        ready = book(state.resource[lane, DOWNLINK], ready, down)
    if up > 0.0:
        ready = book(state.resource[lane, UPLINK], ready, up)
    span[0], span[1] = ready - down - up, ready
    length = cell.fused_s if fused else cell.time_s[device, stage]
    done = book(state.resource[lane, device], ready, length)
    span[2], span[3] = done - length, done
    episode.joules += length * cell.power_w[device, stage]
    episode.moved += down_bytes + up_bytes
    one.placed |= device << stage
    one.device = device
    episode.stages += 1
    episode.offloaded += device
    if fused:
        one.placed |= 1 << RET
        episode.stages += 1
        episode.offloaded += 1
    one.stage = _next_stage(cell.empty, stage + (2 if fused else 1))
    one.ready_s = done


@kernel
def _go_on(state: State, params: Params, lane: int) -> tuple[float, bool]:
    """To the next stage that is ready, or to the end; returns the weighted time spent in the system on the way."""
    episode = state.lane[lane]
    requests = params.config[0].requests
    soonest, last, found = math.inf, episode.clock, -1
    for n in range(episode.first, requests):
        one = state.request[lane, n]
        if one.arrival_s > soonest:
            break
        if one.stage < ALL_PLACED:
            if one.ready_s < soonest:
                soonest, found = one.ready_s, n
        else:
            last = max(last, one.ready_s)
    until = last if found < 0 else soonest
    spent = 0.0
    for n in range(episode.first, requests):
        one = state.request[lane, n]
        if one.arrival_s >= until:
            break
        left = min(one.ready_s, until) if one.stage == ALL_PLACED else until
        if left > episode.clock:
            spent += one.weight * (left - max(one.arrival_s, episode.clock))
    episode.clock = until
    episode.now = max(found, 0)
    while episode.first < requests:
        one = state.request[lane, episode.first]
        if one.stage < ALL_PLACED or one.ready_s > until:
            break
        episode.first += 1
    return spent, found < 0


@kernel
def step_lane(
    state: State, params: Params, lane: int, action: NDArray[np.float64]
) -> tuple[float, bool, bool, float]:
    """Place a stage, or wait; time goes on to the next stage that is ready."""
    episode, config = state.lane[lane], params.config[0]
    choice, cost = int(action[0]), 0.0
    start, before = episode.clock, episode.joules
    later = _next_event(state, params, lane) if choice == WAIT else 0.0
    if (choice == TO_FPGA and not _may_offload(state, params, lane)) or later == math.inf:
        episode.invalid += 1
        cost = config.invalid_cost
        choice = TO_GPU
    if choice == WAIT:
        episode.waits += 1
        state.request[lane, episode.now].ready_s = later
    else:
        _put(state, params, lane, choice)
    spent, ended = _go_on(state, params, lane)
    episode.weighted += spent
    episode.penalty += cost
    reward = -spent / config.requests - cost
    reward -= config.energy_weight * (episode.joules - before) / (config.requests * config.mean_j)
    return reward, ended, False, episode.clock - start


@kernel(inline=True)
def squash(value: float) -> float:
    """X / (1 + x), in [0, 1)."""
    return value / (1.0 + value)


@kernel
def _observe_devices(state: State, params: Params, lane: int, out: NDArray[np.float32]) -> None:
    """For each device kernel, copies, and when the stage would be done; then the rest of the request: 10 entries."""
    episode, config = state.lane[lane], params.config[0]
    one = state.request[lane, episode.now]
    cell = params.cells[one.cell]
    stage, fuses = one.stage, _fuses(state, params, lane)
    for device in range(2):
        time = _kernel_s(cell.time_s[device, stage], cell.fused_s, cell.time_s[GPU, RET], fuses, device)
        down, up, _, _ = copies_s(cell, params.links, 1.0, one.placed, stage, device)
        ready = down + up
        if down > 0.0:
            ready += backlog(state.resource[lane, DOWNLINK], episode.clock)
        if up > 0.0:
            ready += backlog(state.resource[lane, UPLINK], episode.clock)
        done = max(ready, backlog(state.resource[lane, device], episode.clock)) + time
        out[device] = squash(time / config.mean_s)
        out[2 + device] = squash((down + up) / config.mean_s)
        out[4 + device] = squash(done / config.mean_s)
    rest = 0.0
    for later in range(stage + (2 if fuses else 1), 4):
        rest += cell.time_s[GPU, later]
    out[6] = squash(rest / config.mean_s)
    out[7] = (one.placed >> (stage - 1)) & 1 if stage > PREP else 0.0
    out[8] = one.placed & 1
    out[9] = squash((episode.clock - one.arrival_s) / config.mean_s)


@kernel
def observe_lane(state: State, params: Params, lane: int, out: NDArray[np.float32]) -> None:
    """Write the observation: see `layout` in `llmgym.envs.memory.pipe.env`."""
    episode, config = state.lane[lane], params.config[0]
    one = state.request[lane, episode.now]
    cell = params.cells[one.cell]
    for k in range(KINDS):
        out[k] = 1.0 if k == cell.workload else 0.0
    at = KINDS
    for stage in range(4):
        out[at + stage] = 1.0 if stage == one.stage else 0.0
    out[at + 4] = cell.size_index / TOP_SIZE
    out[at + 5] = cell.batch_index / TOP_BATCH
    at += 6
    if one.stage < ALL_PLACED:
        out[at] = math.log10(1.0 + cell.intensity[one.stage]) / 3.01
        _observe_devices(state, params, lane, out[at + 1 : at + 11])
    else:  # the episode has ended
        for k in range(11):
            out[at + k] = 0.0
    at += 11
    for r in range(4):
        out[at + r] = squash(backlog(state.resource[lane, r], episode.clock) / config.mean_s)
    at += 4
    on_gpu, on_fpga, inside = 0.0, 0.0, 0.0
    for n in range(episode.first, config.requests):
        other = state.request[lane, n]
        if other.arrival_s > episode.clock:
            break
        if other.stage < ALL_PLACED or other.ready_s > episode.clock:
            inside += 1.0
        if other.ready_s > episode.clock and other.device == GPU:
            on_gpu += 1.0
        elif other.ready_s > episode.clock and other.device == FPGA:
            on_fpga += 1.0
    out[at] = on_gpu / (on_gpu + CROWD)
    out[at + 1] = on_fpga / (on_fpga + CROWD)
    out[at + 2] = inside / (inside + CROWD)
    out[at + 3] = squash(config.load)
    out[at + 4] = episode.first / config.requests


@kernel
def mask_lane(state: State, params: Params, lane: int, out: NDArray[np.int8]) -> None:
    """Write what is allowed: the GPU always, the FPGA where the index fits, waiting while there is something to wait for."""
    out[TO_GPU] = 1
    out[TO_FPGA] = 1 if _may_offload(state, params, lane) else 0
    if params.config[0].wait != 0:
        out[WAIT] = 1 if _next_event(state, params, lane) < math.inf else 0


@kernel(inline=True)
def _share(busy_s: float, clock: float) -> float:
    """Of the time, at most all of it; NaN over no time."""
    return min(busy_s / clock, 1.0) if clock > 0.0 else math.nan


@kernel
def metrics_lane(state: State, params: Params, lane: int, out: NDArray[np.float64]) -> None:
    """Write the episode's metrics, in the order of `METRICS`; NaN where there is nothing to take them of, see there."""
    episode, config = state.lane[lane], params.config[0]
    done, latency, slowdown = 0, 0.0, 0.0
    values = state.scratch[lane]
    for n in range(config.requests):
        one = state.request[lane, n]
        if one.stage == ALL_PLACED and one.ready_s <= episode.clock:
            time = one.ready_s - one.arrival_s
            values[done] = time
            done += 1
            latency += time
            slowdown += time / params.cells[one.cell].gpu_s
    count, clock = float(done), episode.clock
    out[0] = episode.weighted / config.requests
    out[1] = ratio(latency, count)
    out[2] = quantile(values[:done], 0.5)
    out[3] = quantile(values[:done], 0.99)
    out[4] = ratio(slowdown, count)
    out[5] = ratio(done, clock)
    out[6] = ratio(episode.joules, count)
    out[7] = episode.joules / (config.requests * config.mean_j)
    for device in range(2):
        out[8 + device] = _share(state.resource[lane, device].busy_s, clock)
    links = state.resource[lane, DOWNLINK].busy_s + state.resource[lane, UPLINK].busy_s
    out[10] = _share(0.5 * links, clock)
    out[11] = ratio(episode.offloaded, episode.stages)
    out[12] = episode.moved
    out[13] = done
    out[14] = episode.waits
    out[15] = episode.penalty
    out[16] = episode.invalid
    out[17] = episode.joules
    out[18] = episode.clock
    out[19] = episode.checksum


KERNELS = Kernels(reset_lane, step_lane, observe_lane, mask_lane, metrics_lane)
