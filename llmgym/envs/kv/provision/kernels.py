"""The compiled functions of KVProvision: one decision, one epoch.

What they mean is in `llmgym.envs.kv.provision.env`; the arguments of those in `KERNELS` are in `llmgym.core.lanes.Kernels`.
"""

import math

import numpy as np
from numpy.typing import NDArray

from llmgym.core.jit import kernel
from llmgym.core.lanes import Kernels
from llmgym.core.rng import substream
from llmgym.core.statistics import quantile, ratio
from llmgym.envs.kv.provision.epoch import flow, serve
from llmgym.envs.kv.provision.state import (
    DRAINING,
    E2E_S,
    FLUID,
    MOST,
    OFF,
    ON,
    STARTING,
    TPOT_S,
    TTFT_S,
    Config,
    Episode,
    Metrics,
    Observation,
    Params,
    Replica,
    State,
)
from llmgym.serving.engine import start
from llmgym.serving.requests import checksum_of, cut
from llmgym.serving.state import FAR
from llmgym.workloads.traffic import draw

HOUR_S = 3600.0
EMPTY = Episode.blank
NEW = Replica.blank


@kernel
def reset_lane(state: State, params: Params, lane: int, key: np.uint64) -> None:
    """Draw the requests of an episode; the first replicas are on and empty.

    Args:
        state: arrays of all lanes.
        params: shared by all lanes.
        lane: number of the lane.
        key: seeds everything that is drawn in the episode, uint64.
    """
    episode = state.lane[lane]
    config = params.config[0]
    requests = state.request[lane]
    state.lane[lane] = EMPTY[0]
    episode.turn = config.replicas - 1
    episode.target, episode.on = config.initial, config.initial
    episode.rate, episode.rate_ema = config.rate_start, config.rate_start
    episode.area, episode.tokens, episode.batch_s = config.area_ref, config.tokens_ref, config.batch_ref
    for i in range(state.fluid.shape[1]):
        state.fluid[lane, i] = 0.0
    for g in range(config.replicas):
        e = lane * config.replicas + g
        state.engine.lane[e] = NEW[0]
        state.engine.lane[e].mode = ON if g < config.initial else OFF
        start(state.engine, params, e, substream(key, FAR - g))
    episode.requests = draw(params.traffic, key, config.epochs * config.epoch_s, requests)
    for i in range(episode.requests):
        cut(requests[i], config.longest)
    episode.checksum = checksum_of(requests, episode.requests)
    _remember(state, lane)


@kernel
def step_lane(
    state: State, params: Params, lane: int, action: NDArray[np.float64]
) -> tuple[float, bool, bool, float]:
    """Set the target and let one epoch pass.

    Args:
        state: arrays of all lanes.
        params: shared by all lanes.
        lane: number of the lane.
        action: float64 [1], the target: replicas that shall serve.

    Returns:
        Reward, whether the episode is over, whether it is cut, and the time that passed, seconds.
    """
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
        left_h = (config.epochs - episode.epoch) * config.epoch_s / HOUR_S
        paid = episode.on + episode.starting + episode.draining
        episode.penalty += left_h * (
            config.wait_cost * episode.waiting + config.gpu_cost * config.gpus * paid
        )
    return before - _cost(config, episode), terminated, truncated, config.epoch_s


@kernel(inline=True)
def _cost(config: Config, episode: Episode) -> float:
    """Cost of the episode so far: what the return is minus of."""
    gpu = config.gpu_cost * config.gpus * episode.gpu_s / HOUR_S
    missed = config.slo_cost * (episode.served - episode.met)
    return gpu + config.wait_cost * episode.waiting_s / HOUR_S + missed + episode.penalty


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
            replica = engines[base + g]
            better = replica.mode == DRAINING and (best < 0 or engines[base + best].mode == OFF)
            if better or (replica.mode == OFF and best < 0):
                best = g
        replica = engines[base + best]
        episode.starts += 1
        if replica.mode == DRAINING:
            episode.draining -= 1
            episode.on += 1
            replica.mode = ON
        elif config.startup == 0:
            episode.on += 1
            replica.mode = ON
            replica.clock_s = max(replica.clock_s, start_s)
        else:
            episode.starting += 1
            replica.mode = STARTING
            replica.ready = episode.epoch + config.startup
    while episode.on + episode.starting > target:
        episode.stops += 1
        best = -1
        for g in range(config.replicas):
            replica = engines[base + g]
            if replica.mode == STARTING and (best < 0 or replica.ready >= engines[base + best].ready):
                best = g
        if best >= 0:
            engines[base + best].mode = OFF
            episode.starting -= 1
            continue
        fewest = FAR
        for g in range(config.replicas):
            replica = engines[base + g]
            if replica.mode == ON and replica.residents + replica.waiting <= fewest:
                best = g
                fewest = replica.residents + replica.waiting
        replica = engines[base + best]
        replica.mode = DRAINING
        replica.drained_s = start_s + config.drain_s
        episode.on -= 1
        episode.draining += 1


@kernel
def _finish_starts(state: State, params: Params, lane: int, now_s: float) -> None:
    """Replicas whose start-up is over begin to serve."""
    episode = state.lane[lane]
    config = params.config[0]
    for g in range(config.replicas):
        replica = state.engine.lane[lane * config.replicas + g]
        if replica.mode == STARTING and replica.ready <= episode.epoch:
            replica.mode = ON
            replica.clock_s = max(replica.clock_s, now_s)
            episode.starting -= 1
            episode.on += 1


@kernel
def observe_lane(
    state: State, params: Params, lane: int, out: Observation, rest: NDArray[np.float32]
) -> None:
    """Write the observation; `rest` tells how many replicas serve after 1, 2, ... more epochs.

    Args:
        state: arrays of all lanes.
        params: shared by all lanes.
        lane: number of the lane.
        out: the record of the observation, written.
        rest: float32 [start-up epochs, 1 or more], written: [k] is the share of the replicas that serve after k + 1 more epochs.
    """
    episode = state.lane[lane]
    config = params.config[0]
    replicas = float(config.replicas)
    mu = config.kv_capacity / (episode.batch_s * episode.area)
    day = 2.0 * math.pi * episode.epoch * config.epoch_s / config.day_s
    growth = (episode.waiting - episode.waiting_before) / config.epoch_s / config.rate_scale
    out.rate = min(episode.rate_ema / config.rate_scale, MOST)
    out.rate_last = min(episode.rate / config.rate_scale, MOST)
    out.mu = min(mu / config.mu_ref, MOST)
    out.area = min(episode.area / config.area_ref, MOST)
    out.batch_time = min(episode.batch_s / config.batch_ref, MOST)
    out.tokens = min(episode.tokens / config.tokens_ref, MOST)
    out.need = min(episode.rate_ema / mu / replicas, MOST)
    out.waiting = min(episode.waiting / config.waiting_cap, 1.0)
    out.waiting_log = min(math.log1p(episode.waiting) / math.log1p(float(config.waiting_cap)), 1.0)
    out.waiting_growth = min(max(growth, -1.0), 1.0)
    out.kv_mean = min(episode.kv_mean, 1.0)
    out.kv_max = min(episode.kv_max, 1.0)
    out.on = episode.on / replicas
    out.draining = episode.draining / replicas
    out.target = episode.target / replicas
    out.day_sin = math.sin(day)
    out.day_cos = math.cos(day)
    out.starting = episode.starting / replicas
    for k in range(rest.shape[0]):
        rest[k] = 0.0
    for g in range(config.replicas):
        replica = state.engine.lane[lane * config.replicas + g]
        if replica.mode == STARTING:
            rest[replica.ready - episode.epoch - 1] += np.float32(1.0 / replicas)


@kernel
def mask_lane(state: State, params: Params, lane: int, out: NDArray[np.int8]) -> None:
    """Write which targets are allowed.

    Args:
        state: arrays of all lanes.
        params: shared by all lanes.
        lane: number of the lane.
        out: int8 [max_replicas + 1], written: 1 for targets that are allowed, 0 for the rest.
    """
    for target in range(out.shape[0]):
        out[target] = 1 if target >= params.config[0].least else 0


@kernel
def metrics_lane(state: State, params: Params, lane: int, out: Metrics) -> None:
    """Write the metrics of the episode so far, in fluid mode the common ones; NaN where there is nothing to take one of.

    Args:
        state: arrays of all lanes.
        params: shared by all lanes.
        lane: number of the lane.
        out: the record of the metrics, written.
    """
    episode = state.lane[lane]
    config = params.config[0]
    duration = episode.epoch * config.epoch_s
    missed = episode.served - episode.met
    out.requests = episode.arrivals
    out.completed = episode.completed
    out.waiting_end = episode.waiting
    out.waiting_mean = ratio(episode.waiting_s, duration)
    out.waiting_peak = episode.waiting_peak
    out.wait_mean_s = math.nan
    if episode.rejected < episode.arrivals:
        out.wait_mean_s = episode.waiting_s / episode.arrivals
    out.throughput_rps = ratio(episode.completed, duration)
    out.gpu_hours = config.gpus * episode.gpu_s / HOUR_S
    out.gpus_mean = ratio(config.gpus * episode.gpu_s, duration)
    out.utilization = ratio(episode.used_s, episode.gpu_s)
    out.switches = episode.starts + episode.stops
    out.cost = _cost(config, episode)
    out.cost_gpu = config.gpu_cost * config.gpus * episode.gpu_s / HOUR_S
    out.cost_waiting = config.wait_cost * episode.waiting_s / HOUR_S
    out.cost_slo = config.slo_cost * missed
    out.penalty = episode.penalty
    out.invalid_actions = episode.invalid
    out.unstable = episode.unstable
    out.duration_s = episode.epoch * config.epoch_s
    out.world_checksum = episode.checksum
    if config.mode == FLUID:
        return
    kv_s, busy_s, preemptions, dropped = 0.0, 0.0, 0, 0
    for g in range(config.replicas):
        replica = state.engine.lane[lane * config.replicas + g]
        kv_s += replica.kv_s
        busy_s += replica.busy_s
        preemptions += replica.preemptions
        dropped += replica.dropped
    out.rejected = episode.rejected
    e2e = state.served[lane, E2E_S, : episode.served]
    out.e2e_mean_s = ratio(episode.e2e_sum_s, episode.served)
    out.e2e_p50_s = quantile(e2e, 0.5)
    out.e2e_p99_s = quantile(e2e, 0.99)
    ttft = state.served[lane, TTFT_S, : episode.served]
    out.ttft_mean_s = ratio(episode.ttft_sum_s, episode.served)
    out.ttft_p50_s = quantile(ttft, 0.5)
    out.ttft_p99_s = quantile(ttft, 0.99)
    tpot = state.served[lane, TPOT_S, : episode.paced]
    out.tpot_mean_s = ratio(episode.tpot_sum_s, episode.paced)
    out.tpot_p99_s = quantile(tpot, 0.99)
    out.goodput_rps = ratio(episode.met, duration)
    out.slo_attainment = ratio(episode.met, episode.arrivals)
    out.output_tokens_per_s = ratio(episode.output_tokens, duration)
    out.kv_mean = ratio(kv_s, busy_s) / config.kv_capacity
    out.preemptions = preemptions
    out.dropped_tokens = dropped


KERNELS = Kernels(reset_lane, step_lane, observe_lane, mask_lane, metrics_lane)
