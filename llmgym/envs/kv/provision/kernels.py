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
    episode = state.lane[lane]
    config = params.config[0]
    requests = state.request[lane]
    (
        episode.epoch,
        episode.arrived,
        episode.next,
        episode.door,
        episode.rejected,
        episode.served,
        episode.met,
    ) = 0, 0, 0, 0, 0, 0, 0
    episode.turn = config.replicas - 1
    episode.target, episode.on, episode.starting, episode.draining = config.initial, config.initial, 0, 0
    episode.starts, episode.stops, episode.invalid, episode.unstable = 0, 0, 0, 0
    episode.waiting, episode.waiting_before, episode.waiting_peak = 0.0, 0.0, 0.0
    episode.arrivals, episode.completed, episode.output_tokens = 0.0, 0.0, 0.0
    episode.rate, episode.rate_ema = config.rate_start, config.rate_start
    episode.area, episode.tokens, episode.batch_s = config.area_ref, config.tokens_ref, config.batch_ref
    episode.kv_mean, episode.kv_max = 0.0, 0.0
    episode.gpu_s, episode.used_s, episode.waiting_s, episode.penalty = 0.0, 0.0, 0.0, 0.0
    for i in range(state.fluid.shape[1]):
        state.fluid[lane, i] = 0.0
    for g in range(config.replicas):
        _new_replica(state, params, lane * config.replicas + g, substream(key, FAR - g))
        state.engine.lane[lane * config.replicas + g].mode = ON if g < config.initial else OFF
    episode.requests = draw(params.traffic, key, config.epochs * config.epoch_s, requests)
    checksum = 0.0
    for i in range(episode.requests):
        asked = requests[i]
        begin(asked, config.longest)
        checksum += asked.arrival_s + asked.prompt + 1e-3 * asked.output
    episode.checksum = checksum
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
    episode = state.lane[lane]
    config = params.config[0]
    before = _cost(config, episode)
    episode.waiting_before = episode.waiting
    target = int(action[0])
    if target < config.least:
        episode.invalid += 1
        episode.penalty += config.invalid_cost
        target = episode.target
    episode.target = target
    start_s = episode.epoch * config.epoch_s
    end_s = start_s + config.epoch_s
    _switch(state, params, lane, target, start_s)
    if config.mode == FLUID:
        flow(state, params, lane, start_s, end_s)
    else:
        serve(state, params, lane, start_s, end_s)
    episode.epoch += 1
    episode.waiting_peak = max(episode.waiting_peak, episode.waiting)
    episode.rate_ema += config.ema * (episode.rate - episode.rate_ema)
    _finish_starts(state, params, lane, end_s)
    _remember(state, lane)
    terminated = episode.waiting > config.waiting_cap
    truncated = not terminated and episode.epoch >= config.epochs
    if terminated:
        episode.unstable = 1
        left_h = (config.epochs - episode.epoch) * config.epoch_s / 3600.0
        paid = episode.on + episode.starting + episode.draining
        episode.penalty += left_h * (
            config.wait_cost * episode.waiting + config.gpu_cost * config.gpus * paid
        )
    return before - _cost(config, episode), terminated, truncated, config.epoch_s


@kernel(inline=True)
def _cost(config: Any, episode: Any) -> float:
    """Cost of the episode so far: what the return is minus of."""
    gpu = config.gpu_cost * config.gpus * episode.gpu_s / 3600.0
    missed = config.slo_cost * (episode.served - episode.met)
    return gpu + config.wait_cost * episode.waiting_s / 3600.0 + missed + episode.penalty


@kernel
def _remember(state: State, lane: int) -> None:
    episode = state.lane[lane]
    row = state.history[lane, episode.epoch]
    row[0], row[1], row[2], row[3], row[4] = (
        episode.rate,
        episode.on,
        episode.starting,
        episode.draining,
        episode.waiting,
    )


@kernel
def _switch(state: State, params: Params, lane: int, target: int, start_s: float) -> None:
    """Start or stop replicas until those that serve and those that start are as many as the target.

    A draining replica is taken back before another is started; a start is called off before a replica that serves is
    stopped; of those, the one with the fewest requests is.
    """
    episode = state.lane[lane]
    config = params.config[0]
    base = lane * config.replicas
    engines = state.engine.lane
    while episode.on + episode.starting < target:
        best = -1
        for g in range(config.replicas):
            r = engines[base + g]
            better = r.mode == DRAINING and (best < 0 or engines[base + best].mode == OFF)
            if better or (r.mode == OFF and best < 0):
                best = g
        r = engines[base + best]
        episode.starts += 1
        if r.mode == DRAINING:
            episode.draining -= 1
            episode.on += 1
            r.mode = ON
        elif config.startup == 0:
            episode.on += 1
            r.mode = ON
            r.clock_s = max(r.clock_s, start_s)
        else:
            episode.starting += 1
            r.mode = STARTING
            r.ready = episode.epoch + config.startup
    while episode.on + episode.starting > target:
        episode.stops += 1
        best = -1
        for g in range(config.replicas):
            r = engines[base + g]
            if r.mode == STARTING and (best < 0 or r.ready >= engines[base + best].ready):
                best = g
        if best >= 0:
            engines[base + best].mode = OFF
            episode.starting -= 1
            continue
        fewest = FAR
        for g in range(config.replicas):
            r = engines[base + g]
            if r.mode == ON and r.residents + r.waiting <= fewest:
                best = g
                fewest = r.residents + r.waiting
        r = engines[base + best]
        r.mode = DRAINING
        r.drained_s = start_s + config.drain_s
        episode.on -= 1
        episode.draining += 1


@kernel
def _finish_starts(state: State, params: Params, lane: int, now_s: float) -> None:
    """Replicas whose start-up is over begin to serve."""
    episode = state.lane[lane]
    config = params.config[0]
    for g in range(config.replicas):
        r = state.engine.lane[lane * config.replicas + g]
        if r.mode == STARTING and r.ready <= episode.epoch:
            r.mode = ON
            r.clock_s = max(r.clock_s, now_s)
            episode.starting -= 1
            episode.on += 1


@kernel
def observe_lane(state: State, params: Params, lane: int, out: NDArray[np.float32]) -> None:
    """Write the observation: see `layout` in `llmgym.envs.kv.provision.env`."""
    episode = state.lane[lane]
    config = params.config[0]
    replicas = float(config.replicas)
    mu = config.kv_capacity / (episode.batch_s * episode.area)
    day = 2.0 * math.pi * episode.epoch * config.epoch_s / config.day_s
    growth = (episode.waiting - episode.waiting_before) / config.epoch_s / config.rate_scale
    out[0] = min(episode.rate_ema / config.rate_scale, 4.0)
    out[1] = min(episode.rate / config.rate_scale, 4.0)
    out[2] = min(mu / config.mu_ref, 4.0)
    out[3] = min(episode.area / config.area_ref, 4.0)
    out[4] = min(episode.batch_s / config.batch_ref, 4.0)
    out[5] = min(episode.tokens / config.tokens_ref, 4.0)
    out[6] = min(episode.rate_ema / mu / replicas, 4.0)
    out[7] = min(episode.waiting / config.waiting_cap, 1.0)
    out[8] = min(math.log1p(episode.waiting) / math.log1p(float(config.waiting_cap)), 1.0)
    out[9] = min(max(growth, -1.0), 1.0)
    out[10] = min(episode.kv_mean, 1.0)
    out[11] = min(episode.kv_max, 1.0)
    out[12] = episode.on / replicas
    out[13] = episode.draining / replicas
    out[14] = episode.target / replicas
    out[15] = math.sin(day)
    out[16] = math.cos(day)
    out[17] = episode.starting / replicas
    for k in range(SCALARS, out.shape[0]):
        out[k] = 0.0
    for g in range(config.replicas):
        r = state.engine.lane[lane * config.replicas + g]
        if r.mode == STARTING:
            out[SCALARS + r.ready - episode.epoch - 1] += np.float32(1.0 / replicas)


@kernel
def mask_lane(state: State, params: Params, lane: int, out: NDArray[np.int8]) -> None:
    """Write which targets are allowed."""
    for target in range(out.shape[0]):
        out[target] = 1 if target >= params.config[0].least else 0


@kernel(allocates=True)
def metrics_lane(state: State, params: Params, lane: int, out: NDArray[np.float64]) -> None:
    """Write the episode's metrics: `COMMON`, and in event mode `REQUEST_LEVEL`; NaN where there is nothing to take them of."""
    episode = state.lane[lane]
    config = params.config[0]
    duration = episode.epoch * config.epoch_s
    missed = episode.served - episode.met
    out[0] = episode.arrivals
    out[1] = episode.completed
    out[2] = episode.waiting
    out[3] = ratio(episode.waiting_s, duration)
    out[4] = episode.waiting_peak
    out[5] = math.nan
    if episode.rejected < episode.arrivals:
        out[5] = episode.waiting_s / episode.arrivals
    out[6] = ratio(episode.completed, duration)
    out[7] = config.gpus * episode.gpu_s / 3600.0
    out[8] = ratio(config.gpus * episode.gpu_s, duration)
    out[9] = ratio(episode.used_s, episode.gpu_s)
    out[10] = episode.starts + episode.stops
    out[11] = _cost(config, episode)
    out[12] = config.gpu_cost * config.gpus * episode.gpu_s / 3600.0
    out[13] = config.wait_cost * episode.waiting_s / 3600.0
    out[14] = config.slo_cost * missed
    out[15] = episode.penalty
    out[16] = episode.invalid
    out[17] = episode.unstable
    out[18] = episode.epoch * config.epoch_s
    out[19] = episode.checksum
    if config.mode == FLUID:
        return
    ttft = state.served[lane, 0, : episode.served].copy()
    e2e = state.served[lane, 1, : episode.served].copy()
    tpot = state.served[lane, 2, : episode.served].copy()
    several = 0
    for i in range(episode.served):
        if not math.isnan(tpot[i]):
            tpot[several] = tpot[i]
            several += 1
    tpot = tpot[:several]
    kv_s, busy_s, preemptions, dropped = 0.0, 0.0, 0, 0
    for g in range(config.replicas):
        r = state.engine.lane[lane * config.replicas + g]
        kv_s += r.kv_s
        busy_s += r.busy_s
        preemptions += r.preemptions
        dropped += r.dropped
    at = len(COMMON)
    out[at] = episode.rejected
    out[at + 1] = mean(e2e)
    out[at + 2] = quantile(e2e, 0.5)
    out[at + 3] = quantile(e2e, 0.99)
    out[at + 4] = mean(ttft)
    out[at + 5] = quantile(ttft, 0.5)
    out[at + 6] = quantile(ttft, 0.99)
    out[at + 7] = mean(tpot)
    out[at + 8] = quantile(tpot, 0.99)
    out[at + 9] = ratio(episode.met, duration)
    out[at + 10] = ratio(episode.met, episode.arrivals)
    out[at + 11] = ratio(episode.output_tokens, duration)
    out[at + 12] = ratio(kv_s, busy_s) / config.kv_capacity
    out[at + 13] = preemptions
    out[at + 14] = dropped


KERNELS = Kernels(reset_lane, step_lane, observe_lane, mask_lane, metrics_lane)
