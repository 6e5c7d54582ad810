"""The compiled functions of AFDRefill: place a request, run the bundle. See `llmgym.envs.afd.refill.env` for what they mean."""

import math

import numpy as np
from numpy.typing import NDArray

from llmgym.core.jit import kernel
from llmgym.core.lanes import Kernels
from llmgym.core.rng import normal, substream
from llmgym.core.statistics import ratio
from llmgym.envs.afd.refill.state import (
    EXACT,
    FREE_SHOWN,
    MEAN,
    MOST_SHOWN,
    NOISY,
    PICK,
    THROUGHPUT,
    Episode,
    Metrics,
    Observation,
    Params,
    State,
)
from llmgym.envs.afd.slots import NEVER, advance, clear, draw, draw_running, place

REQUESTS, AGES, NOISE = 0, 1, 2
"""Sub-streams of the key of an episode."""
MOST_LOG_ERROR = 10.0
"""Predictions are at most e^10 times the truth, twenty standard deviations with the default `noise_scale`; chosen here."""
STEPS_IN_CHECKSUM = 1e-3
"""Weight of a step beside a prompt's token in the checksum of a world."""
EMPTY = Episode.blank


@kernel
def reset_lane(state: State, params: Params, lane: int, key: np.uint64) -> None:
    """Fill the slots and the window of waiting requests, and run until a slot is free; the episode begins there.

    Args:
        state: arrays of all lanes.
        params: shared by all lanes.
        lane: number of the lane.
        key: seeds everything that is drawn in the episode, uint64.
    """
    state.lane[lane] = EMPTY[0]
    episode = state.lane[lane]
    config = params.config[0]
    episode.key = key
    ages = substream(key, AGES)
    for i in range(config.workers):
        slots, wheel, table = state.slot[lane, i], state.wheel[lane, i], state.table[lane, i]
        state.order[lane, i] = i
        clear(slots, wheel, table)
        for b in range(config.batch):
            age = 0
            if config.stationary != 0:
                row, age = draw_running(params.law[0], params.until, ages, i * config.batch + b)
            else:
                row = draw(params.law[0], ages, i * config.batch + b)
            place(slots, wheel, table, 0, params.requests[row, 0], params.requests[row, 1], age, NEVER)
    checksum = 0.0
    for k in range(config.window):
        _arrive(state, params, lane, k)
        checksum += state.waiting[lane, k].prompt + STEPS_IN_CHECKSUM * state.waiting[lane, k].steps
    while episode.left == 0:
        _cycle(state, params, lane)
    tick, left, drawn, tau = episode.tick, episode.left, episode.drawn, episode.tau
    state.lane[lane] = EMPTY[0]  # what has happened so far is not of the episode
    episode.key, episode.tick, episode.left, episode.drawn, episode.tau = key, tick, left, drawn, tau
    episode.taken = config.window
    for i in range(config.workers):
        episode.taken += state.table[lane, i].occupied
        checksum += (i + 1) * state.table[lane, i].load
        for b in range(config.batch):
            slot = state.slot[lane, i, b]
            if slot.end > episode.tick:
                episode.demand_steps += slot.end - episode.tick
    episode.checksum = checksum
    _sort(state, params, lane)


@kernel
def _arrive(state: State, params: Params, lane: int, place_in_window: int) -> None:
    """The next request of the backlog comes into view."""
    episode = state.lane[lane]
    config = params.config[0]
    row = draw(params.law[0], substream(episode.key, REQUESTS), episode.drawn)
    request = state.waiting[lane, place_in_window]
    request.number, request.skips, request.chosen = episode.drawn, 0, 0
    request.prompt, request.steps = params.requests[row, 0], params.requests[row, 1]
    request.predicted = 0
    if config.information == EXACT:
        request.predicted = request.steps
    elif config.information == MEAN:
        request.predicted = config.default_steps
    elif config.information == NOISY:
        error = config.noise * normal(substream(episode.key, NOISE), episode.drawn)
        predicted = request.steps * math.exp(min(error, MOST_LOG_ERROR))
        request.predicted = max(1, int(math.floor(predicted + 0.5)))
    episode.drawn += 1
    episode.taken += 1


@kernel
def _sort(state: State, params: Params, lane: int) -> None:
    """Instances by rising load, by their number where loads are equal."""
    order, tables = state.order[lane], state.table[lane]
    for i in range(1, params.config[0].workers):
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
    config = params.config[0]
    for k in range(config.workers):
        i = state.order[lane, k]
        if state.table[lane, i].occupied < config.batch:
            return i
    return state.order[lane, 0]


@kernel(inline=True)
def _due(state: State, params: Params, lane: int) -> int:
    """Waiting requests that must not be skipped again. They are the oldest: a request is skipped together with all older ones."""
    config = params.config[0]
    due = 0
    while due < config.window and state.waiting[lane, due].skips >= config.patience:
        due += 1
    return due


@kernel
def _put(state: State, params: Params, lane: int, choice: int) -> None:
    """Move a waiting request into the least loaded instance that has a free slot."""
    episode = state.lane[lane]
    i = _current(state, params, lane)
    request = state.waiting[lane, choice]
    episode.newest = max(episode.newest, request.number)
    episode.placed += 1
    episode.skips += request.skips
    episode.most_skips = max(episode.most_skips, request.skips)
    episode.demand_steps += request.steps
    episode.left -= 1
    slots, wheel, table = state.slot[lane, i], state.wheel[lane, i], state.table[lane, i]
    place(slots, wheel, table, episode.tick, request.prompt, request.steps, 0, episode.clock)
    _sort(state, params, lane)


@kernel
def _close(state: State, params: Params, lane: int, choice: int) -> None:
    """Close the gap of a placed request: the younger ones move up, and the backlog sends the next."""
    waiting = state.waiting[lane]
    last = params.config[0].window - 1
    for k in range(choice, last):
        waiting[k] = waiting[k + 1]
    _arrive(state, params, lane, last)


@kernel
def _pass_over(state: State, params: Params, lane: int) -> None:
    """Count, at the end of a refill, every request that still waits while a younger one was placed as skipped."""
    newest = state.lane[lane].newest
    for k in range(params.config[0].window):
        request = state.waiting[lane, k]
        if request.number < newest:
            request.skips += 1


@kernel
def _by_score(state: State, params: Params, lane: int, scores: NDArray[np.float64]) -> None:
    """Fill all free slots: those that must not be skipped and the best scores, in the order of scores."""
    episode = state.lane[lane]
    window = params.config[0].window
    waiting = state.waiting[lane]
    count = min(episode.left, window)
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
    while episode.left > 0:  # more free slots than the window shows
        _put(state, params, lane, 0)
        _close(state, params, lane, 0)


@kernel
def _cycle(state: State, params: Params, lane: int) -> float:
    """One step of the bundle; returns its reward."""
    episode = state.lane[lane]
    config = params.config[0]
    slowest, total = 0.0, 0.0
    for i in range(config.workers):
        load = state.table[lane, i].load
        slowest = max(slowest, load)
        total += load
    mean = total / config.workers
    requests = config.workers * config.batch
    floor = max(config.comm, config.alpha_ffn * requests + config.beta_ffn)
    tau = max(config.alpha_attention * slowest + config.beta_attention, floor)
    ideal = max(config.alpha_attention * mean + config.beta_attention, floor)
    throughput = requests / ((config.workers + 1) * tau)
    if episode.cycle < state.history.shape[1]:
        past = state.history[lane, episode.cycle]
        past.slowest = config.alpha_attention * slowest + config.beta_attention
        past.mean = config.alpha_attention * mean + config.beta_attention
    episode.cycle += 1
    episode.tick += 1
    episode.tau = tau
    episode.clock += tau
    episode.tokens += requests
    episode.excess += config.alpha_attention * (slowest - mean)
    episode.relative_excess += (tau - ideal) / ideal
    episode.relative += throughput / config.best
    episode.load += mean / config.batch
    for i in range(config.workers):
        slots, table = state.slot[lane, i], state.table[lane, i]
        done = advance(slots, state.wheel[lane, i], table, episode.tick)
        s = table.free
        for _ in range(done):
            slot = slots[s]
            if slot.began != NEVER:
                episode.timed += 1
                episode.tpot += (episode.clock - slot.began) / slot.steps
            s = slot.next
        episode.completed += done
        episode.left += done
    _sort(state, params, lane)
    if config.reward == THROUGHPUT:
        return float(throughput / config.best)
    return float((ideal - tau) / ideal)


@kernel
def step_lane(
    state: State, params: Params, lane: int, action: NDArray[np.float64]
) -> tuple[float, bool, bool, float]:
    """Place one request, or all; when no slot is free any more, run cycles until one is.

    Args:
        state: arrays of all lanes.
        params: shared by all lanes.
        lane: number of the lane.
        action: float64, [1] the waiting request for the next free slot, 0 the oldest, or [W] a score for each waiting request.

    Returns:
        Reward, whether the episode is over, whether it is cut, and the time that passed, seconds.
    """
    episode = state.lane[lane]
    config = params.config[0]
    start, reward = episode.clock, 0.0
    if config.action == PICK:
        choice = int(action[0])
        if _due(state, params, lane) >= episode.left and choice >= episode.left:
            episode.invalid += 1
            episode.penalty += config.invalid_cost
            reward -= config.invalid_cost
            choice = 0
        _put(state, params, lane, choice)
        _close(state, params, lane, choice)
    else:
        _by_score(state, params, lane, action)
    if episode.left == 0:
        _pass_over(state, params, lane)
        episode.newest = -1
        while episode.left == 0 and episode.cycle < config.cycles:
            reward += _cycle(state, params, lane)
    return reward, False, episode.cycle >= config.cycles, (episode.clock - start) * config.cycle_s


@kernel(inline=True)
def _within(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)


@kernel
def observe_lane(
    state: State, params: Params, lane: int, out: Observation, rest: NDArray[np.float32]
) -> None:
    """Write the observation: after the record the loads and free slots of r instances, then W prompts, predictions and skips.

    Args:
        state: arrays of all lanes.
        params: shared by all lanes.
        lane: number of the lane.
        out: the record of the observation, written.
        rest: float32 [2 r + 3 W], written: loads and free slots of the instances, then prompts, predictions and skips of the
            requests.
    """
    episode = state.lane[lane]
    config = params.config[0]
    r, window = config.workers, config.window
    total = 0.0
    for i in range(r):
        total += state.table[lane, i].load
    mean = total / r
    most = state.table[lane, state.order[lane, r - 1]].load
    current = state.table[lane, _current(state, params, lane)].load
    floor = max(config.comm, config.alpha_ffn * r * config.batch + config.beta_ffn)
    out.left = min(episode.left / window, 1.0)
    out.due = min(_due(state, params, lane), episode.left) / max(episode.left, 1)
    out.floor = _within(floor / (config.alpha_attention * mean + config.beta_attention), 0.0, MOST_SHOWN)
    out.spread = _within((most - mean) / config.load_scale, 0.0, MOST_SHOWN)
    out.current = _within((current - mean) / config.load_scale, -MOST_SHOWN, MOST_SHOWN)
    out.room = _within((most - current) / config.load_scale, 0.0, MOST_SHOWN)
    out.progress = episode.cycle / config.cycles
    for k in range(r):
        table = state.table[lane, state.order[lane, k]]
        rest[k] = _within((table.load - mean) / config.load_scale, -MOST_SHOWN, MOST_SHOWN)
        rest[r + k] = min((config.batch - table.occupied) / FREE_SHOWN, 1.0)
    prompts, steps, skips = 2 * r, 2 * r + window, 2 * r + 2 * window
    for k in range(window):
        request = state.waiting[lane, k]
        rest[prompts + k] = min(math.log1p(float(request.prompt)) * config.log_prompt, 1.0)
        rest[steps + k] = min(math.log1p(float(request.predicted)) * config.log_steps, 1.0)
        rest[skips + k] = min(request.skips / config.patience, 1.0)


@kernel
def mask_lane(state: State, params: Params, lane: int, out: NDArray[np.int8]) -> None:
    """Write which waiting requests may be placed: all, or only those that must not be skipped again.

    Args:
        state: arrays of all lanes.
        params: shared by all lanes.
        lane: number of the lane.
        out: int8 [W], written: 1 for what is allowed, 0 for the rest; [0] where actions are scores.
    """
    episode = state.lane[lane]
    free = out.shape[0]
    if free > 0 and _due(state, params, lane) >= episode.left:
        free = max(episode.left, 1)
    for k in range(out.shape[0]):
        out[k] = 1 if k < free else 0


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
    cycles = float(episode.cycle)
    rate = ratio(episode.tokens, (config.workers + 1) * episode.clock)
    out.relative_excess = ratio(episode.relative_excess, cycles)
    out.barrier_excess_cycles = ratio(episode.excess, cycles)
    out.tau_mean_cycles = ratio(episode.clock, cycles)
    out.relative_throughput = ratio(episode.relative, cycles)
    out.throughput_tokens_per_cycle = rate
    out.throughput_tokens_per_s = rate / config.cycle_s
    out.tpot_mean_s = ratio(episode.tpot, episode.timed) * config.cycle_s
    out.load_mean_tokens = ratio(episode.load, cycles)
    out.completed = episode.completed
    out.placed = episode.placed
    out.skips_mean = ratio(episode.skips, episode.placed)
    out.skips_max = episode.most_skips
    out.cycles = episode.cycle
    out.penalty = episode.penalty
    out.invalid_actions = episode.invalid
    out.duration_s = episode.clock * config.cycle_s
    out.world_checksum = episode.checksum


KERNELS = Kernels(reset_lane, step_lane, observe_lane, mask_lane, metrics_lane)
"""The compiled functions of AFDRefill."""
