"""The compiled functions of KVProvision: one decision, one epoch. See `llmgym.envs.kv.provision.env` for what they mean."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmgym.core.jit import kernel
from llmgym.core.lanes import Kernels
from llmgym.core.rng import substream
from llmgym.core.statistics import mean, quantile, ratio
from llmgym.envs.kv.provision.epoch import flow, serve
from llmgym.envs.kv.provision.state import (
    COMMON,
    DRAINING,
    FLUID,
    OFF,
    ON,
    SCALARS,
    STARTING,
    Params,
    State,
)
from llmgym.serving.engine import start
from llmgym.serving.requests import begin
from llmgym.serving.residents import FAR
from llmgym.workloads.traffic import draw


@kernel
def reset_lane(state: State, params: Params, lane: int, key: np.uint64) -> None:
    """Draw the requests of an episode; the first replicas are on and empty."""
    me = state.lane[lane]
    number = params.number[0]
    requests = state.request[lane]
    me.epoch, me.arrived, me.next, me.door, me.rejected, me.served, me.met = 0, 0, 0, 0, 0, 0, 0
    me.turn = number.replicas - 1
    me.target, me.on, me.starting, me.draining = number.initial, number.initial, 0, 0
    me.starts, me.stops, me.invalid, me.unstable = 0, 0, 0, 0
    me.waiting, me.waiting_before, me.waiting_peak = 0.0, 0.0, 0.0
    me.arrivals, me.completed, me.output_tokens = 0.0, 0.0, 0.0
    me.rate, me.rate_ema = number.rate_start, number.rate_start
    me.area, me.tokens, me.batch_s = number.area_ref, number.tokens_ref, number.batch_ref
    me.kv_mean, me.kv_max = 0.0, 0.0
    me.gpu_s, me.used_s, me.waiting_s, me.penalty = 0.0, 0.0, 0.0, 0.0
    for i in range(state.fluid.shape[1]):
        state.fluid[lane, i] = 0.0
    for g in range(number.replicas):
        _new_replica(state, params, lane * number.replicas + g, substream(key, FAR - g))
        state.engine.lane[lane * number.replicas + g].mode = ON if g < number.initial else OFF
    me.requests = draw(params.traffic, key, number.epochs * number.epoch_s, requests)
    checksum = 0.0
    for i in range(me.requests):
        asked = requests[i]
        begin(asked, number.longest)
        checksum += asked.arrival_s + asked.prompt + 1e-3 * asked.output
    me.checksum = checksum
    _remember(state, lane)


@kernel
def _new_replica(state: State, params: Params, e: int, key: np.uint64) -> None:
    """An empty engine that follows the environment's rule."""
    start(state.engine, params, e, key)
    r = state.engine.lane[e]
    r.waiting_s, r.kv_before_s = 0.0, 0.0
    r.ready, r.filled, r.next, r.busy_batches, r.busy_batches_s, r.drained_s = 0, 0, 0, 0, 0.0, 0.0


@kernel
def step_lane(
    state: State, params: Params, lane: int, action: NDArray[np.float64]
) -> tuple[float, bool, bool, float]:
    """Set the target and let one epoch pass."""
    me = state.lane[lane]
    number = params.number[0]
    before = _cost(number, me)
    me.waiting_before = me.waiting
    target = int(action[0])
    if target < number.least:
        me.invalid += 1
        me.penalty += number.invalid_cost
        target = me.target
    me.target = target
    start_s = me.epoch * number.epoch_s
    end_s = start_s + number.epoch_s
    _switch(state, params, lane, target, start_s)
    if number.mode == FLUID:
        flow(state, params, lane, start_s, end_s)
    else:
        serve(state, params, lane, start_s, end_s)
    me.epoch += 1
    me.waiting_peak = max(me.waiting_peak, me.waiting)
    me.rate_ema += number.ema * (me.rate - me.rate_ema)
    _finish_starts(state, params, lane, end_s)
    _remember(state, lane)
    terminated = me.waiting > number.waiting_cap
    truncated = not terminated and me.epoch >= number.epochs
    if terminated:
        me.unstable = 1
        left_h = (number.epochs - me.epoch) * number.epoch_s / 3600.0
        paid = me.on + me.starting + me.draining
        me.penalty += left_h * (number.wait_cost * me.waiting + number.gpu_cost * number.gpus * paid)
    return before - _cost(number, me), terminated, truncated, number.epoch_s


@kernel(inline=True)
def _cost(number: Any, me: Any) -> float:
    """Cost of the episode so far: what the return is minus of."""
    gpu = number.gpu_cost * number.gpus * me.gpu_s / 3600.0
    missed = number.slo_cost * (me.served - me.met)
    return gpu + number.wait_cost * me.waiting_s / 3600.0 + missed + me.penalty


@kernel
def _remember(state: State, lane: int) -> None:
    me = state.lane[lane]
    row = state.history[lane, me.epoch]
    row[0], row[1], row[2], row[3], row[4] = me.rate, me.on, me.starting, me.draining, me.waiting


@kernel
def _switch(state: State, params: Params, lane: int, target: int, start_s: float) -> None:
    """Start or stop replicas until those that serve and those that start are as many as the target.

    A draining replica is taken back before another is started; a start is called off before a replica that serves is
    stopped; of those, the one with the fewest requests is.
    """
    me = state.lane[lane]
    number = params.number[0]
    base = lane * number.replicas
    engines = state.engine.lane
    while me.on + me.starting < target:
        best = -1
        for g in range(number.replicas):
            r = engines[base + g]
            better = r.mode == DRAINING and (best < 0 or engines[base + best].mode == OFF)
            if better or (r.mode == OFF and best < 0):
                best = g
        r = engines[base + best]
        me.starts += 1
        if r.mode == DRAINING:
            me.draining -= 1
            me.on += 1
            r.mode = ON
        elif number.startup == 0:
            me.on += 1
            r.mode = ON
            r.clock_s = max(r.clock_s, start_s)
        else:
            me.starting += 1
            r.mode = STARTING
            r.ready = me.epoch + number.startup
    while me.on + me.starting > target:
        me.stops += 1
        best = -1
        for g in range(number.replicas):
            r = engines[base + g]
            if r.mode == STARTING and (best < 0 or r.ready >= engines[base + best].ready):
                best = g
        if best >= 0:
            engines[base + best].mode = OFF
            me.starting -= 1
            continue
        fewest = FAR
        for g in range(number.replicas):
            r = engines[base + g]
            if r.mode == ON and r.residents + r.waiting <= fewest:
                best = g
                fewest = r.residents + r.waiting
        r = engines[base + best]
        r.mode = DRAINING
        r.drained_s = start_s + number.drain_s
        me.on -= 1
        me.draining += 1


@kernel
def _finish_starts(state: State, params: Params, lane: int, now_s: float) -> None:
    """Replicas whose start-up is over begin to serve."""
    me = state.lane[lane]
    number = params.number[0]
    for g in range(number.replicas):
        r = state.engine.lane[lane * number.replicas + g]
        if r.mode == STARTING and r.ready <= me.epoch:
            r.mode = ON
            r.clock_s = max(r.clock_s, now_s)
            me.starting -= 1
            me.on += 1


@kernel
def observe_lane(state: State, params: Params, lane: int, out: NDArray[np.float32]) -> None:
    """Write the observation: see `layout` in `llmgym.envs.kv.provision.env`."""
    me = state.lane[lane]
    number = params.number[0]
    replicas = float(number.replicas)
    mu = number.kv_capacity / (me.batch_s * me.area)
    day = 2.0 * math.pi * me.epoch * number.epoch_s / number.day_s
    growth = (me.waiting - me.waiting_before) / number.epoch_s / number.rate_scale
    out[0] = min(me.rate_ema / number.rate_scale, 4.0)
    out[1] = min(me.rate / number.rate_scale, 4.0)
    out[2] = min(mu / number.mu_ref, 4.0)
    out[3] = min(me.area / number.area_ref, 4.0)
    out[4] = min(me.batch_s / number.batch_ref, 4.0)
    out[5] = min(me.tokens / number.tokens_ref, 4.0)
    out[6] = min(me.rate_ema / mu / replicas, 4.0)
    out[7] = min(me.waiting / number.waiting_cap, 1.0)
    out[8] = min(math.log1p(me.waiting) / math.log1p(float(number.waiting_cap)), 1.0)
    out[9] = min(max(growth, -1.0), 1.0)
    out[10] = min(me.kv_mean, 1.0)
    out[11] = min(me.kv_max, 1.0)
    out[12] = me.on / replicas
    out[13] = me.draining / replicas
    out[14] = me.target / replicas
    out[15] = math.sin(day)
    out[16] = math.cos(day)
    out[17] = me.starting / replicas
    for k in range(SCALARS, out.shape[0]):
        out[k] = 0.0
    for g in range(number.replicas):
        r = state.engine.lane[lane * number.replicas + g]
        if r.mode == STARTING:
            out[SCALARS + r.ready - me.epoch - 1] += np.float32(1.0 / replicas)


@kernel
def mask_lane(state: State, params: Params, lane: int, out: NDArray[np.int8]) -> None:
    """Write which targets are allowed."""
    for target in range(out.shape[0]):
        out[target] = 1 if target >= params.number[0].least else 0


@kernel(allocates=True)
def metrics_lane(state: State, params: Params, lane: int, out: NDArray[np.float64]) -> None:
    """Write the episode's metrics: `COMMON`, and in event mode `REQUEST_LEVEL`; NaN where there is nothing to take them of."""
    me = state.lane[lane]
    number = params.number[0]
    duration = me.epoch * number.epoch_s
    missed = me.served - me.met
    out[0] = me.arrivals
    out[1] = me.completed
    out[2] = me.waiting
    out[3] = ratio(me.waiting_s, duration)
    out[4] = me.waiting_peak
    out[5] = math.nan
    if me.rejected < me.arrivals:
        out[5] = me.waiting_s / me.arrivals
    out[6] = ratio(me.completed, duration)
    out[7] = number.gpus * me.gpu_s / 3600.0
    out[8] = ratio(number.gpus * me.gpu_s, duration)
    out[9] = ratio(me.used_s, me.gpu_s)
    out[10] = me.starts + me.stops
    out[11] = _cost(number, me)
    out[12] = number.gpu_cost * number.gpus * me.gpu_s / 3600.0
    out[13] = number.wait_cost * me.waiting_s / 3600.0
    out[14] = number.slo_cost * missed
    out[15] = me.penalty
    out[16] = me.invalid
    out[17] = me.unstable
    out[18] = me.epoch * number.epoch_s
    out[19] = me.checksum
    if number.mode == FLUID:
        return
    ttft = state.served[lane, 0, : me.served].copy()
    e2e = state.served[lane, 1, : me.served].copy()
    tpot = state.served[lane, 2, : me.served].copy()
    several = 0
    for i in range(me.served):
        if not math.isnan(tpot[i]):
            tpot[several] = tpot[i]
            several += 1
    tpot = tpot[:several]
    kv_s, busy_s, preemptions, dropped = 0.0, 0.0, 0, 0
    for g in range(number.replicas):
        r = state.engine.lane[lane * number.replicas + g]
        kv_s += r.kv_s
        busy_s += r.busy_s
        preemptions += r.preemptions
        dropped += r.dropped
    at = len(COMMON)
    out[at] = me.rejected
    out[at + 1] = mean(e2e)
    out[at + 2] = quantile(e2e, 0.5)
    out[at + 3] = quantile(e2e, 0.99)
    out[at + 4] = mean(ttft)
    out[at + 5] = quantile(ttft, 0.5)
    out[at + 6] = quantile(ttft, 0.99)
    out[at + 7] = mean(tpot)
    out[at + 8] = quantile(tpot, 0.99)
    out[at + 9] = ratio(me.met, duration)
    out[at + 10] = ratio(me.met, me.arrivals)
    out[at + 11] = ratio(me.output_tokens, duration)
    out[at + 12] = ratio(kv_s, busy_s) / number.kv_capacity
    out[at + 13] = preemptions
    out[at + 14] = dropped


KERNELS = Kernels(reset_lane, step_lane, observe_lane, mask_lane, metrics_lane)
