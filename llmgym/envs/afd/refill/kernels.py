"""The compiled functions of AFDRefill: place a request, run the bundle. See `llmgym.envs.afd.refill.env` for what they mean."""

import math

import numpy as np
from numpy.typing import NDArray

from llmgym.core.jit import kernel
from llmgym.core.lanes import Kernels
from llmgym.core.rng import normal, substream
from llmgym.core.statistics import ratio
from llmgym.envs.afd.refill.state import EXACT, GLOBALS, MEAN, NOISY, PICK, THROUGHPUT, Params, State
from llmgym.envs.afd.slots import NEVER, advance, clear, draw, draw_running, place

REQUESTS, AGES, NOISE = 0, 1, 2
"""Sub-streams of the key of an episode."""


@kernel
def reset_lane(state: State, params: Params, lane: int, key: np.uint64) -> None:
    """Fill the slots and the window of waiting requests, and run until a slot is free; the episode begins there."""
    me = state.lane[lane]
    number = params.number[0]
    me.key = key
    me.tick, me.left, me.invalid, me.most_skips, me.newest = 0, 0, 0, 0, -1
    me.drawn, me.placed, me.skips, me.completed = 0, 0, 0, 0
    me.clock, me.tau, me.penalty, me.tokens = 0.0, 0.0, 0.0, 0
    ages = substream(key, AGES)
    for i in range(number.workers):
        slots, wheel, table = state.slot[lane, i], state.wheel[lane, i], state.table[lane, i]
        state.order[lane, i] = i
        clear(slots, wheel, table)
        for b in range(number.batch):
            age = 0
            if number.stationary != 0:
                row, age = draw_running(params.law[0], params.until, ages, i * number.batch + b)
            else:
                row = draw(params.law[0], ages, i * number.batch + b)
            place(slots, wheel, table, 0, params.requests[row, 0], params.requests[row, 1], age, NEVER)
    checksum = 0.0
    for k in range(number.window):
        _arrive(state, params, lane, k)
        checksum += state.waiting[lane, k].prompt + 1e-3 * state.waiting[lane, k].steps
    while me.left == 0:
        _cycle(state, params, lane)
    me.cycle, me.completed, me.tokens, me.timed, me.tpot, me.clock = 0, 0, 0, 0, 0.0, 0.0
    me.excess, me.relative_excess, me.relative, me.load, me.output = 0.0, 0.0, 0.0, 0.0, 0.0
    me.taken, me.asked_steps = number.window, 0
    for i in range(number.workers):
        me.taken += state.table[lane, i].occupied
        checksum += (i + 1) * state.table[lane, i].load
        for b in range(number.batch):
            slot = state.slot[lane, i, b]
            if slot.end > me.tick:
                me.asked_steps += slot.end - me.tick
    me.checksum = checksum
    _sort(state, params, lane)


@kernel
def _arrive(state: State, params: Params, lane: int, place_in_window: int) -> None:
    """The next request of the backlog comes into view."""
    me = state.lane[lane]
    number = params.number[0]
    row = draw(params.law[0], substream(me.key, REQUESTS), me.drawn)
    w = state.waiting[lane, place_in_window]
    w.number, w.skips, w.chosen = me.drawn, 0, 0
    w.prompt, w.steps = params.requests[row, 0], params.requests[row, 1]
    w.predicted = 0
    if number.information == EXACT:
        w.predicted = w.steps
    elif number.information == MEAN:
        w.predicted = number.default_steps
    elif number.information == NOISY:
        error = number.noise * normal(substream(me.key, NOISE), me.drawn)
        w.predicted = max(1, int(math.floor(w.steps * math.exp(min(error, 10.0)) + 0.5)))
    me.drawn += 1
    me.taken += 1


@kernel
def _sort(state: State, params: Params, lane: int) -> None:
    """Instances by rising load, by their number where loads are equal."""
    order, tables = state.order[lane], state.table[lane]
    for i in range(1, params.number[0].workers):
        moved = order[i]
        k = i - 1
        while k >= 0:
            ahead = tables[order[k]].load - tables[moved].load
            if ahead < 0.0 or (ahead == 0.0 and order[k] < moved):
                break
            order[k + 1] = order[k]
            k -= 1
        order[k + 1] = moved


@kernel(inline=True)
def _current(state: State, params: Params, lane: int) -> int:
    """The instance with the least load among those with a free slot (the first one where none is free)."""
    number = params.number[0]
    for k in range(number.workers):
        i = state.order[lane, k]
        if state.table[lane, i].occupied < number.batch:
            return i
    return state.order[lane, 0]


@kernel(inline=True)
def _due(state: State, params: Params, lane: int) -> int:
    """Waiting requests that must not be skipped again. They are the oldest: who is skipped, is skipped with all older ones."""
    number = params.number[0]
    due = 0
    while due < number.window and state.waiting[lane, due].skips >= number.patience:
        due += 1
    return due


@kernel
def _put(state: State, params: Params, lane: int, choice: int) -> None:
    """Move a waiting request into the least loaded instance that has a free slot."""
    me = state.lane[lane]
    i = _current(state, params, lane)
    w = state.waiting[lane, choice]
    me.newest = max(me.newest, w.number)
    me.placed += 1
    me.skips += w.skips
    me.most_skips = max(me.most_skips, w.skips)
    me.asked_steps += w.steps
    me.left -= 1
    place(
        state.slot[lane, i],
        state.wheel[lane, i],
        state.table[lane, i],
        me.tick,
        w.prompt,
        w.steps,
        0,
        me.clock,
    )
    _sort(state, params, lane)


@kernel
def _close(state: State, params: Params, lane: int, choice: int) -> None:
    """Close the gap of a placed request: the younger ones move up, and the backlog sends the next."""
    waiting = state.waiting[lane]
    last = params.number[0].window - 1
    for k in range(choice, last):
        waiting[k] = waiting[k + 1]
    _arrive(state, params, lane, last)


@kernel
def _pass_over(state: State, params: Params, lane: int) -> None:
    """At the end of a refill: who waits while a younger request was placed has been skipped."""
    me = state.lane[lane]
    for k in range(params.number[0].window):
        w = state.waiting[lane, k]
        if w.number < me.newest:
            w.skips += 1


@kernel
def _by_score(state: State, params: Params, lane: int, scores: NDArray[np.float64]) -> None:
    """Fill all free slots: those that must not be skipped and the best scores, in the order of scores."""
    me = state.lane[lane]
    window = params.number[0].window
    waiting = state.waiting[lane]
    count = min(me.left, window)
    due = min(_due(state, params, lane), count)
    for k in range(due):
        waiting[k].chosen = 1
    for _ in range(due, count):
        best = -1
        for k in range(window):
            if waiting[k].chosen == 0 and (best < 0 or scores[k] > scores[best]):
                best = k
        waiting[best].chosen = 1
    for _ in range(count):
        best = -1
        for k in range(window):
            if waiting[k].chosen == 1 and (best < 0 or scores[k] > scores[best]):
                best = k
        waiting[best].chosen = 2
        _put(state, params, lane, best)
    for k in range(window - 1, -1, -1):
        if waiting[k].chosen == 2:
            _close(state, params, lane, k)
    while me.left > 0:  # more free slots than the window shows
        _put(state, params, lane, 0)
        _close(state, params, lane, 0)


@kernel
def _cycle(state: State, params: Params, lane: int) -> float:
    """One step of the bundle; returns its reward."""
    me = state.lane[lane]
    number = params.number[0]
    slowest, total = 0.0, 0.0
    for i in range(number.workers):
        load = state.table[lane, i].load
        slowest = max(slowest, load)
        total += load
    mean = total / number.workers
    requests = number.workers * number.batch
    floor = max(number.comm, number.alpha_ffn * requests + number.beta_ffn)
    tau = max(number.alpha_attention * slowest + number.beta_attention, floor)
    ideal = max(number.alpha_attention * mean + number.beta_attention, floor)
    throughput = requests / ((number.workers + 1) * tau)
    if me.cycle < state.history.shape[1]:
        row = state.history[lane, me.cycle]
        row[0] = number.alpha_attention * slowest + number.beta_attention
        row[1] = number.alpha_attention * mean + number.beta_attention
    me.cycle += 1
    me.tick += 1
    me.tau = tau
    me.clock += tau
    me.tokens += requests
    me.excess += number.alpha_attention * (slowest - mean)
    me.relative_excess += (tau - ideal) / ideal
    me.relative += throughput / number.best
    me.load += mean / number.batch
    me.output += requests
    for i in range(number.workers):
        slots, table = state.slot[lane, i], state.table[lane, i]
        done = advance(slots, state.wheel[lane, i], table, me.tick)
        s = table.free
        for _ in range(done):
            slot = slots[s]
            if slot.began != NEVER:
                me.timed += 1
                me.tpot += (me.clock - slot.began) / slot.steps
            s = slot.next
        me.completed += done
        me.left += done
    _sort(state, params, lane)
    if number.reward == THROUGHPUT:
        return float(throughput / number.best)
    return float((ideal - tau) / ideal)


@kernel
def step_lane(
    state: State, params: Params, lane: int, action: NDArray[np.float64]
) -> tuple[float, bool, bool, float]:
    """Place one request, or all; when no slot is free any more, run cycles until one is."""
    me = state.lane[lane]
    number = params.number[0]
    start, reward = me.clock, 0.0
    if number.action == PICK:
        choice = int(action[0])
        if _due(state, params, lane) >= me.left and choice >= me.left:
            me.invalid += 1
            me.penalty += number.invalid_cost
            reward -= number.invalid_cost
            choice = 0
        _put(state, params, lane, choice)
        _close(state, params, lane, choice)
    else:
        _by_score(state, params, lane, action)
    if me.left == 0:
        _pass_over(state, params, lane)
        me.newest = -1
        while me.left == 0 and me.cycle < number.cycles:
            reward += _cycle(state, params, lane)
    return reward, False, me.cycle >= number.cycles, (me.clock - start) * number.cycle_s


@kernel(inline=True)
def _within(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)


@kernel
def observe_lane(state: State, params: Params, lane: int, out: NDArray[np.float32]) -> None:
    """Write the observation: see `layout` in `llmgym.envs.afd.refill.env`."""
    me = state.lane[lane]
    number = params.number[0]
    r, window = number.workers, number.window
    total = 0.0
    for i in range(r):
        total += state.table[lane, i].load
    mean = total / r
    most = state.table[lane, state.order[lane, r - 1]].load
    mine = state.table[lane, _current(state, params, lane)].load
    floor = max(number.comm, number.alpha_ffn * r * number.batch + number.beta_ffn)
    out[0] = min(me.left / window, 1.0)
    out[1] = min(_due(state, params, lane), me.left) / max(me.left, 1)
    out[2] = _within(floor / (number.alpha_attention * mean + number.beta_attention), 0.0, 4.0)
    out[3] = _within((most - mean) / number.load_scale, 0.0, 4.0)
    out[4] = _within((mine - mean) / number.load_scale, -4.0, 4.0)
    out[5] = _within((most - mine) / number.load_scale, 0.0, 4.0)
    out[6] = me.cycle / number.cycles
    for k in range(r):
        table = state.table[lane, state.order[lane, k]]
        out[GLOBALS + k] = _within((table.load - mean) / number.load_scale, -4.0, 4.0)
        out[GLOBALS + r + k] = min((number.batch - table.occupied) / 4.0, 1.0)
    at = GLOBALS + 2 * r
    for k in range(window):
        w = state.waiting[lane, k]
        out[at + k] = min(math.log1p(float(w.prompt)) * number.log_prompt, 1.0)
        out[at + window + k] = min(math.log1p(float(w.predicted)) * number.log_steps, 1.0)
        out[at + 2 * window + k] = min(w.skips / number.patience, 1.0)


@kernel
def mask_lane(state: State, params: Params, lane: int, out: NDArray[np.int8]) -> None:
    """Write which waiting requests may be placed: all, or only those that must not be skipped again."""
    me = state.lane[lane]
    free = out.shape[0]
    if free > 0 and _due(state, params, lane) >= me.left:
        free = max(me.left, 1)
    for k in range(out.shape[0]):
        out[k] = 1 if k < free else 0


@kernel
def metrics_lane(state: State, params: Params, lane: int, out: NDArray[np.float64]) -> None:
    """Write the episode's metrics, in the order of `METRICS`; NaN where there is nothing to take them of, see there."""
    me = state.lane[lane]
    number = params.number[0]
    cycles = float(me.cycle)
    rate = ratio(me.output, (number.workers + 1) * me.clock)
    out[0] = ratio(me.relative_excess, cycles)
    out[1] = ratio(me.excess, cycles)
    out[2] = ratio(me.clock, cycles)
    out[3] = ratio(me.relative, cycles)
    out[4] = rate
    out[5] = rate / number.cycle_s
    out[6] = ratio(me.tpot, me.timed) * number.cycle_s
    out[7] = ratio(me.load, cycles)
    out[8] = me.completed
    out[9] = me.placed
    out[10] = ratio(me.skips, me.placed)
    out[11] = me.most_skips
    out[12] = me.cycle
    out[13] = me.penalty
    out[14] = me.invalid
    out[15] = me.clock * number.cycle_s
    out[16] = me.checksum


KERNELS = Kernels(reset_lane, step_lane, observe_lane, mask_lane, metrics_lane)
