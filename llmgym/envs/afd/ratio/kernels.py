"""The compiled functions of AFDRatio: one decision, one epoch. See `llmgym.envs.afd.ratio.env` for what they mean."""

import math

import numpy as np
from numpy.typing import NDArray

from llmgym.core.jit import kernel
from llmgym.core.lanes import Kernels
from llmgym.core.rng import integer, substream, uniform
from llmgym.core.statistics import ratio
from llmgym.envs.afd.ratio.epoch import (
    COEFFICIENTS,
    SCHEDULE,
    WINDOW,
    empty,
    run,
    see,
    switch,
)
from llmgym.envs.afd.ratio.state import DELTA, GAUSSIAN, Params, State
from llmgym.envs.afd.slots import draw


@kernel
def reset_lane(state: State, params: Params, lane: int, key: np.uint64) -> None:
    """Draw when the law of requests changes, and the coefficients; no instance runs yet."""
    episode = state.lane[lane]
    config = params.config[0]
    episode.key = key
    episode.epoch, episode.choice, episode.built, episode.workers, episode.ffn, episode.paid, episode.turn = (
        0,
        config.initial,
        0,
        0,
        0,
        0,
        0,
    )
    episode.switches, episode.invalid, episode.seen, episode.newest = 0, 0, 0, 0
    episode.cycle, episode.taken, episode.completed, episode.asked_steps, episode.tokens = 0, 0, 0, 0, 0
    episode.done_tokens, episode.early_tokens, episode.early, episode.timed, episode.tpot = 0, 0, 0.0, 0, 0.0
    episode.tau, episode.idle_attention, episode.idle_ffn, episode.load_mean, episode.load_max = (
        0.0,
        0.0,
        0.0,
        0.0,
        0.0,
    )
    episode.bound_attention, episode.bound_comm = 0.0, 0.0
    episode.relative, episode.instance_time, episode.output, episode.cycle_time, episode.excess = (
        0.0,
        0.0,
        0.0,
        0.0,
        0.0,
    )
    episode.load_sum, episode.attention_idle_sum, episode.ffn_idle_sum = 0.0, 0.0, 0.0
    episode.bound_attention_sum, episode.bound_comm_sum, episode.switch_time = 0.0, 0.0, 0.0
    episode.ratio_sum, episode.penalty = 0.0, 0.0
    episode.sum_prompt, episode.sum_steps, episode.sum_load, episode.sum_square = 0, 0, 0, 0
    empty(state, params, lane)
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
    for i in range(6):
        factor = 1.0 + config.spread * (2.0 * uniform(factors, i) - 1.0)
        state.coefficients[lane, i] = params.coefficients[i] * factor
    _look(state, params, lane, episode.first_law, 0, config.window)


@kernel
def _look(state: State, params: Params, lane: int, law: int, epoch: int, count: int) -> None:
    """Fill the window with requests of a law: of a load test, or those that finish in an epoch without slots."""
    episode = state.lane[lane]
    stream = substream(substream(episode.key, WINDOW), epoch)
    for i in range(count):
        row = draw(params.law[law], stream, i)
        see(state, params, lane, params.requests[row, 0], params.requests[row, 1])


@kernel
def step_lane(
    state: State, params: Params, lane: int, action: NDArray[np.float64]
) -> tuple[float, bool, bool, float]:
    """Set the ratio and let one epoch pass."""
    episode = state.lane[lane]
    config = params.config[0]
    law = state.law[lane, episode.epoch]
    start, penalty = episode.clock, 0.0
    instance_time, output, cycle_time, cycle = (
        episode.instance_time,
        episode.output,
        episode.cycle_time,
        episode.cycle,
    )
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
        _look(state, params, lane, law, episode.epoch + 1, min(config.window, int(math.ceil(finished))))
    cycles = episode.cycle - cycle
    episode.tau = (episode.cycle_time - cycle_time) / cycles
    relative = (
        (episode.output - output)
        / (episode.instance_time - instance_time)
        / params.law[episode.first_law].best
    )
    episode.relative += relative
    episode.penalty += penalty
    episode.bound_attention_sum += episode.bound_attention
    episode.bound_comm_sum += episode.bound_comm
    episode.bound_attention /= cycles
    episode.bound_comm /= cycles
    time = episode.cycle_time - cycle_time
    episode.attention_idle_sum += episode.idle_attention * time
    episode.ffn_idle_sum += episode.idle_ffn * time
    episode.ratio_sum += episode.workers / episode.ffn
    row = state.history[lane, episode.epoch]
    row[0], row[1], row[2], row[3] = (
        episode.workers / episode.ffn,
        relative,
        episode.idle_attention,
        episode.idle_ffn,
    )
    row[4], row[5] = params.law[law].theta, episode.tau
    episode.epoch += 1
    stopped = config.stop > 0 and episode.completed >= config.stop * episode.workers
    truncated = stopped or episode.epoch >= config.epochs
    return relative - penalty, False, truncated, (episode.clock - start) * config.cycle_s


@kernel(inline=True)
def _upto(value: float, most: float) -> float:
    return min(max(value, 0.0), most)


@kernel
def observe_lane(state: State, params: Params, lane: int, out: NDArray[np.float32]) -> None:
    """Write the observation: see `layout` in `llmgym.envs.afd.ratio.env`."""
    episode = state.lane[lane]
    config = params.config[0]
    x, y = episode.workers, episode.ffn
    if episode.built == 0 and config.action == DELTA:
        x, y = params.ratios[episode.choice, 0], params.ratios[episode.choice, 1]
    out[0] = x / max(y, 1) / config.ratio_scale
    out[1] = episode.paid / config.instance_scale
    out[2] = _upto(episode.load_mean / config.theta_ref, 4.0)
    out[3] = _upto(episode.load_max / config.theta_ref, 4.0)
    out[4] = _upto(episode.tau / config.tau_ref, 4.0)
    out[5] = 0.0
    if episode.built != 0:
        out[5] = _upto(x * config.batch / ((x + y) * episode.tau) / config.throughput_ref, 4.0)
    out[6], out[7] = _upto(episode.idle_attention, 1.0), _upto(episode.idle_ffn, 1.0)
    out[8], out[9], out[10] = episode.bound_attention, episode.bound_comm, 0.0
    if episode.built != 0:
        out[10] = _upto(1.0 - episode.bound_attention - episode.bound_comm, 1.0)
    count = float(max(episode.seen, 1))
    steps = float(max(episode.sum_steps, 1))
    theta = episode.sum_load / steps
    variance = max(episode.sum_square / steps - theta * theta, 0.0)
    out[11] = _upto(episode.sum_prompt / count / config.prompt_ref, 4.0)
    out[12] = _upto(steps / count / config.steps_ref, 4.0)
    out[13] = _upto(theta / config.theta_ref, 4.0)
    out[14] = _upto(math.sqrt(variance) / config.nu_ref, 4.0)
    for i in range(6):
        nominal = params.coefficients[i]
        out[15 + i] = state.coefficients[lane, i] / nominal if nominal > 0.0 else 1.0
    out[21] = math.log2(float(config.batch)) / 16.0
    out[22] = params.law[episode.first_law].best / config.throughput_ref


@kernel
def mask_lane(state: State, params: Params, lane: int, out: NDArray[np.int8]) -> None:
    """Write which actions are allowed: every ratio, or the steps that stay on the grid."""
    episode = state.lane[lane]
    for i in range(out.shape[0]):
        out[i] = 1
    if params.config[0].action == DELTA:
        out[0] = 1 if episode.choice > 0 else 0
        out[2] = 1 if episode.choice + 1 < params.ratios.shape[0] else 0


@kernel
def metrics_lane(state: State, params: Params, lane: int, out: NDArray[np.float64]) -> None:
    """Write the episode's metrics, in the order of `METRICS`; NaN where there is nothing to take them of, see there."""
    episode = state.lane[lane]
    config = params.config[0]
    epochs, cycles, elapsed = float(episode.epoch), float(episode.cycle), episode.cycle_time
    rate = ratio(episode.output, episode.instance_time)
    out[0] = ratio(episode.relative, epochs)
    out[1] = rate
    out[2] = rate / config.cycle_s
    out[3] = ratio(ratio(episode.early_tokens, episode.early), episode.workers + episode.ffn)
    out[4] = ratio(episode.cycle_time, cycles) * config.cycle_s
    if config.mode > GAUSSIAN:
        out[4] = ratio(episode.tpot, episode.timed) * config.cycle_s
    out[5] = ratio(episode.cycle_time, cycles)
    out[6] = ratio(episode.excess, cycles)
    out[7] = ratio(episode.load_sum, cycles)
    out[8] = ratio(episode.attention_idle_sum, elapsed)
    out[9] = ratio(episode.ffn_idle_sum, elapsed)
    out[10] = ratio(episode.bound_attention_sum, cycles)
    out[11] = ratio(episode.bound_comm_sum, cycles)
    out[12] = max(1.0 - out[10] - out[11], 0.0) if episode.cycle > 0 else math.nan
    out[13] = ratio(episode.ratio_sum, epochs)
    out[14] = ratio(episode.instance_time, episode.clock)
    out[15] = episode.switches
    out[16] = episode.switch_time * config.cycle_s
    out[17] = episode.completed
    out[18] = episode.output
    out[19] = episode.epoch
    out[20] = episode.penalty
    out[21] = episode.invalid
    out[22] = episode.clock * config.cycle_s
    out[23] = episode.checksum


KERNELS = Kernels(reset_lane, step_lane, observe_lane, mask_lane, metrics_lane)
