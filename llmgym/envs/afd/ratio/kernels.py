"""The compiled functions of AFDRatio: one decision, one epoch. See `llmgym.envs.afd.ratio.env` for what they mean."""

import math

import numpy as np
from numpy.typing import NDArray

from llmgym.core.jit import kernel
from llmgym.core.lanes import Kernels
from llmgym.core.rng import integer, substream, uniform
from llmgym.core.statistics import ratio
from llmgym.envs.afd.ratio.epoch import COEFFICIENTS, SCHEDULE, WINDOW, empty, remember, run, switch, tally
from llmgym.envs.afd.ratio.state import (
    DELTA,
    GAUSSIAN,
    LOG2_MOST_BATCH,
    MOST_SHOWN,
    Episode,
    Metrics,
    Observation,
    Params,
    State,
)
from llmgym.envs.afd.slots import draw

EMPTY = Episode.blank


@kernel
def reset_lane(state: State, params: Params, lane: int, key: np.uint64) -> None:
    """Draw when the law of requests changes, and the coefficients; no instance runs yet.

    Args:
        state: arrays of all lanes.
        params: shared by all lanes.
        lane: number of the lane.
        key: seeds everything that is drawn in the episode, uint64.
    """
    state.lane[lane] = EMPTY[0]
    episode = state.lane[lane]
    config = params.config[0]
    episode.key, episode.choice = key, config.initial
    empty(state, lane)
    laws = params.law.shape[0]
    schedule = substream(key, SCHEDULE)
    law = integer(schedule, 0, 0, laws - 1)
    episode.first_law = law
    episode.checksum = uniform(schedule, 1)
    for epoch in range(config.epochs):
        if epoch > 0 and laws > 1 and uniform(schedule, 2 * epoch) < config.switch_chance:
            law = (law + 1 + integer(schedule, 2 * epoch + 1, 0, laws - 2)) % laws
        state.law[lane, epoch] = law
        episode.checksum += (epoch + 1) * law
    factors = substream(key, COEFFICIENTS)
    for i in range(params.coefficients.shape[0]):
        factor = 1.0 + config.spread * (2.0 * uniform(factors, i) - 1.0)
        state.coefficients[lane, i] = params.coefficients[i] * factor
    _fill_window(state, params, lane, episode.first_law, 0, config.window)
    tally(state, lane)


@kernel
def _fill_window(state: State, params: Params, lane: int, law: int, epoch: int, count: int) -> None:
    """Put requests of a law into the window: those of a load test, or those that finish in an epoch without slots."""
    stream = substream(substream(state.lane[lane].key, WINDOW), epoch)
    for i in range(count):
        row = draw(params.law[law], stream, i)
        remember(state, params, lane, params.requests[row, 0], params.requests[row, 1])


@kernel
def step_lane(
    state: State, params: Params, lane: int, action: NDArray[np.float64]
) -> tuple[float, bool, bool, float]:
    """Set the ratio and let one epoch pass.

    Args:
        state: arrays of all lanes.
        params: shared by all lanes.
        lane: number of the lane.
        action: float64 [1], index of the ratio in `params.ratios`, or 0, 1, 2 for one place down, stay, one place up.

    Returns:
        Reward, whether the episode is over, whether it is cut, and the time that passed, seconds.
    """
    episode = state.lane[lane]
    config = params.config[0]
    law = state.law[lane, episode.epoch]
    start, penalty = episode.clock, 0.0
    instance_time, output = episode.instance_time, episode.output
    cycle_time, cycle = episode.cycle_time, episode.cycle
    choice = int(action[0])
    if config.action == DELTA:
        choice = episode.choice + choice - 1
        if choice < 0 or choice >= params.ratios.shape[0]:
            choice = episode.choice
            episode.invalid += 1
            penalty = config.invalid_cost
    episode.bound_attention, episode.bound_comm = 0.0, 0.0
    switch(state, params, lane, choice, law)
    run(state, params, lane, law)
    if config.mode <= GAUSSIAN:
        finished = episode.workers * config.batch * config.cycles / params.law[law].mean_steps
        _fill_window(
            state, params, lane, law, episode.epoch + 1, min(config.window, int(math.ceil(finished)))
        )
    tally(state, lane)
    cycles = episode.cycle - cycle
    time = episode.cycle_time - cycle_time
    episode.tau = time / cycles
    rate = (episode.output - output) / (episode.instance_time - instance_time)
    relative = rate / params.law[episode.first_law].best
    episode.relative += relative
    episode.penalty += penalty
    episode.bound_attention_sum += episode.bound_attention
    episode.bound_comm_sum += episode.bound_comm
    episode.bound_attention /= cycles
    episode.bound_comm /= cycles
    episode.attention_idle_sum += episode.idle_attention * time
    episode.ffn_idle_sum += episode.idle_ffn * time
    episode.ratio_sum += episode.workers / episode.ffn
    past = state.history[lane, episode.epoch]
    past.ratio, past.relative = episode.workers / episode.ffn, relative
    past.idle_attention, past.idle_ffn = episode.idle_attention, episode.idle_ffn
    past.theta, past.tau = params.law[law].theta, episode.tau
    episode.epoch += 1
    stopped = config.stop > 0 and episode.completed >= config.stop * episode.workers
    truncated = stopped or episode.epoch >= config.epochs
    return relative - penalty, False, truncated, (episode.clock - start) * config.cycle_s


@kernel(inline=True)
def _upto(value: float, most: float) -> float:
    return min(max(value, 0.0), most)


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
    episode = state.lane[lane]
    config = params.config[0]
    x, y = episode.workers, episode.ffn
    if episode.built == 0 and config.action == DELTA:
        x, y = params.ratios[episode.choice, 0], params.ratios[episode.choice, 1]
    out.ratio = x / max(y, 1) / config.ratio_scale
    out.instances = episode.paid / config.instance_scale
    out.load_mean = _upto(episode.load_mean / config.theta_ref, MOST_SHOWN)
    out.load_max = _upto(episode.load_max / config.theta_ref, MOST_SHOWN)
    out.tau = _upto(episode.tau / config.tau_ref, MOST_SHOWN)
    out.idle_attention, out.idle_ffn = _upto(episode.idle_attention, 1.0), _upto(episode.idle_ffn, 1.0)
    out.bound_attention, out.bound_comm = episode.bound_attention, episode.bound_comm
    out.throughput, out.bound_ffn = 0.0, 0.0
    if episode.built != 0:
        out.throughput = _upto(x * config.batch / ((x + y) * episode.tau) / config.throughput_ref, MOST_SHOWN)
        out.bound_ffn = _upto(1.0 - episode.bound_attention - episode.bound_comm, 1.0)
    count = float(max(episode.seen, 1))
    steps = float(max(episode.sum_steps, 1))
    theta = episode.sum_load / steps
    variance = max(episode.sum_square / steps - theta * theta, 0.0)
    out.prompt_mean = _upto(episode.sum_prompt / count / config.prompt_ref, MOST_SHOWN)
    out.steps_mean = _upto(steps / count / config.steps_ref, MOST_SHOWN)
    out.theta = _upto(theta / config.theta_ref, MOST_SHOWN)
    out.nu = _upto(math.sqrt(variance) / config.nu_ref, MOST_SHOWN)
    for i in range(params.coefficients.shape[0]):
        nominal = params.coefficients[i]
        out.coefficients[i] = state.coefficients[lane, i] / nominal if nominal > 0.0 else 1.0
    out.batch = math.log2(float(config.batch)) / LOG2_MOST_BATCH
    out.reference = params.law[episode.first_law].best / config.throughput_ref


@kernel
def mask_lane(state: State, params: Params, lane: int, out: NDArray[np.int8]) -> None:
    """Write which actions are allowed: every ratio, or the steps that stay on the grid.

    Args:
        state: arrays of all lanes.
        params: shared by all lanes.
        lane: number of the lane.
        out: int8 [actions], written: 1 for what is allowed, 0 for the rest.
    """
    episode = state.lane[lane]
    for i in range(out.shape[0]):
        out[i] = 1
    if params.config[0].action == DELTA:
        out[0] = 1 if episode.choice > 0 else 0
        out[2] = 1 if episode.choice + 1 < params.ratios.shape[0] else 0


@kernel
def metrics_lane(state: State, params: Params, lane: int, out: Metrics) -> None:
    """Write the metrics of the episode so far.

    Args:
        state: arrays of all lanes.
        params: shared by all lanes.
        lane: number of the lane.
        out: the record of the metrics, written.
    """
    episode = state.lane[lane]
    config = params.config[0]
    epochs, cycles, elapsed = float(episode.epoch), float(episode.cycle), episode.cycle_time
    rate = ratio(episode.output, episode.instance_time)
    out.relative_throughput = ratio(episode.relative, epochs)
    out.throughput_tokens_per_cycle = rate
    out.throughput_tokens_per_s = rate / config.cycle_s
    early_rate = ratio(episode.early_tokens, episode.early)
    out.thr80_tokens_per_cycle = ratio(early_rate, episode.workers + episode.ffn)
    out.tpot_mean_s = ratio(elapsed, cycles) * config.cycle_s
    if config.mode > GAUSSIAN:
        out.tpot_mean_s = ratio(episode.tpot, episode.timed) * config.cycle_s
    out.tau_mean_cycles = ratio(elapsed, cycles)
    out.barrier_excess_cycles = ratio(episode.excess, cycles)
    out.load_mean_tokens = ratio(episode.load_sum, cycles)
    out.idle_attention = ratio(episode.attention_idle_sum, elapsed)
    out.idle_ffn = ratio(episode.ffn_idle_sum, elapsed)
    out.bound_attention = ratio(episode.bound_attention_sum, cycles)
    out.bound_communication = ratio(episode.bound_comm_sum, cycles)
    out.bound_ffn = math.nan
    if episode.cycle > 0:
        out.bound_ffn = max(1.0 - out.bound_attention - out.bound_communication, 0.0)
    out.ratio_mean = ratio(episode.ratio_sum, epochs)
    out.instances_mean = ratio(episode.instance_time, episode.clock)
    out.switches = episode.switches
    out.switch_time_s = episode.switch_time * config.cycle_s
    out.completed = episode.completed
    out.output_tokens = episode.output
    out.epochs = episode.epoch
    out.penalty = episode.penalty
    out.invalid_actions = episode.invalid
    out.duration_s = episode.clock * config.cycle_s
    out.world_checksum = episode.checksum


KERNELS = Kernels(reset_lane, step_lane, observe_lane, mask_lane, metrics_lane)
"""The compiled functions of AFDRatio."""
