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
    me = state.lane[lane]
    number = params.number[0]
    me.key = key
    me.epoch, me.choice, me.built, me.workers, me.ffn, me.paid, me.turn = 0, number.initial, 0, 0, 0, 0, 0
    me.switches, me.invalid, me.seen, me.newest = 0, 0, 0, 0
    me.cycle, me.taken, me.completed, me.asked_steps, me.tokens = 0, 0, 0, 0, 0
    me.done_tokens, me.early_tokens, me.early, me.timed, me.tpot = 0, 0, 0.0, 0, 0.0
    me.tau, me.idle_attention, me.idle_ffn, me.load_mean, me.load_max = 0.0, 0.0, 0.0, 0.0, 0.0
    me.bound_attention, me.bound_comm = 0.0, 0.0
    me.relative, me.instance_time, me.output, me.cycle_time, me.excess = 0.0, 0.0, 0.0, 0.0, 0.0
    me.load_sum, me.attention_idle_sum, me.ffn_idle_sum = 0.0, 0.0, 0.0
    me.bound_attention_sum, me.bound_comm_sum, me.switch_time = 0.0, 0.0, 0.0
    me.ratio_sum, me.penalty = 0.0, 0.0
    me.sum_prompt, me.sum_steps, me.sum_load, me.sum_square = 0, 0, 0, 0
    empty(state, params, lane)
    laws = params.law.shape[0]
    schedule = substream(key, SCHEDULE)
    law = integer(schedule, 0, 0, laws - 1)
    me.first_law = law
    me.checksum = uniform(schedule, 1)
    for epoch in range(number.epochs):
        if epoch > 0 and laws > 1 and uniform(schedule, 2 * epoch) < number.switch_chance:
            law = (law + 1 + integer(schedule, 2 * epoch + 1, 0, laws - 2)) % laws
        state.law[lane, epoch] = law
        me.checksum += (epoch + 1) * law
    factors = substream(key, COEFFICIENTS)
    for i in range(6):
        factor = 1.0 + number.spread * (2.0 * uniform(factors, i) - 1.0)
        state.coefficients[lane, i] = params.coefficients[i] * factor
    _look(state, params, lane, me.first_law, 0, number.window)


@kernel
def _look(state: State, params: Params, lane: int, law: int, epoch: int, count: int) -> None:
    """Fill the window with requests of a law: of a load test, or those that finish in an epoch without slots."""
    me = state.lane[lane]
    stream = substream(substream(me.key, WINDOW), epoch)
    for i in range(count):
        row = draw(params.law[law], stream, i)
        see(state, params, lane, params.requests[row, 0], params.requests[row, 1])


@kernel
def step_lane(
    state: State, params: Params, lane: int, action: NDArray[np.float64]
) -> tuple[float, bool, bool, float]:
    """Set the ratio and let one epoch pass."""
    me = state.lane[lane]
    number = params.number[0]
    law = state.law[lane, me.epoch]
    start, penalty = me.clock, 0.0
    instance_time, output, cycle_time, cycle = me.instance_time, me.output, me.cycle_time, me.cycle
    choice = int(action[0])
    if number.action == DELTA:
        choice = me.choice + choice - 1
        if choice < 0 or choice >= params.ratios.shape[0]:
            choice = me.choice
            me.invalid += 1
            penalty = number.invalid_cost
    me.bound_attention, me.bound_comm = 0.0, 0.0
    switch(state, params, lane, choice, law)
    run(state, params, lane, law)
    if number.mode <= GAUSSIAN:
        finished = me.workers * number.batch * number.cycles / params.law[law].mean_steps
        _look(state, params, lane, law, me.epoch + 1, min(number.window, int(math.ceil(finished))))
    cycles = me.cycle - cycle
    me.tau = (me.cycle_time - cycle_time) / cycles
    relative = (me.output - output) / (me.instance_time - instance_time) / params.law[me.first_law].best
    me.relative += relative
    me.penalty += penalty
    me.bound_attention_sum += me.bound_attention
    me.bound_comm_sum += me.bound_comm
    me.bound_attention /= cycles
    me.bound_comm /= cycles
    time = me.cycle_time - cycle_time
    me.attention_idle_sum += me.idle_attention * time
    me.ffn_idle_sum += me.idle_ffn * time
    me.ratio_sum += me.workers / me.ffn
    row = state.history[lane, me.epoch]
    row[0], row[1], row[2], row[3] = me.workers / me.ffn, relative, me.idle_attention, me.idle_ffn
    row[4], row[5] = params.law[law].theta, me.tau
    me.epoch += 1
    stopped = number.stop > 0 and me.completed >= number.stop * me.workers
    truncated = stopped or me.epoch >= number.epochs
    return relative - penalty, False, truncated, (me.clock - start) * number.cycle_s


@kernel(inline=True)
def _upto(value: float, most: float) -> float:
    return min(max(value, 0.0), most)


@kernel
def observe_lane(state: State, params: Params, lane: int, out: NDArray[np.float32]) -> None:
    """Write the observation: see `layout` in `llmgym.envs.afd.ratio.env`."""
    me = state.lane[lane]
    number = params.number[0]
    x, y = me.workers, me.ffn
    if me.built == 0 and number.action == DELTA:
        x, y = params.ratios[me.choice, 0], params.ratios[me.choice, 1]
    out[0] = x / max(y, 1) / number.ratio_scale
    out[1] = me.paid / number.instance_scale
    out[2] = _upto(me.load_mean / number.theta_ref, 4.0)
    out[3] = _upto(me.load_max / number.theta_ref, 4.0)
    out[4] = _upto(me.tau / number.tau_ref, 4.0)
    out[5] = 0.0
    if me.built != 0:
        out[5] = _upto(x * number.batch / ((x + y) * me.tau) / number.throughput_ref, 4.0)
    out[6], out[7] = _upto(me.idle_attention, 1.0), _upto(me.idle_ffn, 1.0)
    out[8], out[9], out[10] = me.bound_attention, me.bound_comm, 0.0
    if me.built != 0:
        out[10] = _upto(1.0 - me.bound_attention - me.bound_comm, 1.0)
    count = float(max(me.seen, 1))
    steps = float(max(me.sum_steps, 1))
    theta = me.sum_load / steps
    variance = max(me.sum_square / steps - theta * theta, 0.0)
    out[11] = _upto(me.sum_prompt / count / number.prompt_ref, 4.0)
    out[12] = _upto(steps / count / number.steps_ref, 4.0)
    out[13] = _upto(theta / number.theta_ref, 4.0)
    out[14] = _upto(math.sqrt(variance) / number.nu_ref, 4.0)
    for i in range(6):
        nominal = params.coefficients[i]
        out[15 + i] = state.coefficients[lane, i] / nominal if nominal > 0.0 else 1.0
    out[21] = math.log2(float(number.batch)) / 16.0
    out[22] = params.law[me.first_law].best / number.throughput_ref


@kernel
def mask_lane(state: State, params: Params, lane: int, out: NDArray[np.int8]) -> None:
    """Write which actions are allowed: every ratio, or the steps that stay on the grid."""
    me = state.lane[lane]
    for i in range(out.shape[0]):
        out[i] = 1
    if params.number[0].action == DELTA:
        out[0] = 1 if me.choice > 0 else 0
        out[2] = 1 if me.choice + 1 < params.ratios.shape[0] else 0


@kernel
def metrics_lane(state: State, params: Params, lane: int, out: NDArray[np.float64]) -> None:
    """Write the episode's metrics, in the order of `METRICS`; NaN where there is nothing to take them of, see there."""
    me = state.lane[lane]
    number = params.number[0]
    epochs, cycles, elapsed = float(me.epoch), float(me.cycle), me.cycle_time
    rate = ratio(me.output, me.instance_time)
    out[0] = ratio(me.relative, epochs)
    out[1] = rate
    out[2] = rate / number.cycle_s
    out[3] = ratio(ratio(me.early_tokens, me.early), me.workers + me.ffn)
    out[4] = ratio(me.cycle_time, cycles) * number.cycle_s
    if number.mode > GAUSSIAN:
        out[4] = ratio(me.tpot, me.timed) * number.cycle_s
    out[5] = ratio(me.cycle_time, cycles)
    out[6] = ratio(me.excess, cycles)
    out[7] = ratio(me.load_sum, cycles)
    out[8] = ratio(me.attention_idle_sum, elapsed)
    out[9] = ratio(me.ffn_idle_sum, elapsed)
    out[10] = ratio(me.bound_attention_sum, cycles)
    out[11] = ratio(me.bound_comm_sum, cycles)
    out[12] = max(1.0 - out[10] - out[11], 0.0) if me.cycle > 0 else math.nan
    out[13] = ratio(me.ratio_sum, epochs)
    out[14] = ratio(me.instance_time, me.clock)
    out[15] = me.switches
    out[16] = me.switch_time * number.cycle_s
    out[17] = me.completed
    out[18] = me.output
    out[19] = me.epoch
    out[20] = me.penalty
    out[21] = me.invalid
    out[22] = me.clock * number.cycle_s
    out[23] = me.checksum


KERNELS = Kernels(reset_lane, step_lane, observe_lane, mask_lane, metrics_lane)
