"""The compiled functions of AttentionBudget: serve the head, or look at the next batch. See `llmgym.envs.attention.env`."""

import math

import numpy as np
from numpy.typing import NDArray

from llmgym.core.jit import kernel
from llmgym.core.lanes import Kernels
from llmgym.core.rng import exponential, normal, substream, uniform
from llmgym.core.statistics import quantile, ratio
from llmgym.envs.attention.costs import attention_bytes, attention_us, first_choice, step_s
from llmgym.envs.attention.state import (
    AGE,
    ALLOWED,
    CROWD,
    DEFER,
    EXCESS,
    HEAD,
    LEFT,
    LENGTH,
    LIMIT,
    LOSS,
    MEMORY,
    NEEDS,
    PARTS,
    RECENT,
    REQUESTS,
    ROW,
    SLACK,
    TIME,
    WAITING_ROW,
    WAITS,
    Batch,
    Config,
    Episode,
    Metrics,
    Observation,
    Params,
    State,
)

GAPS, PHASES, SIZES, COUNTS, CLASSES, DEADLINES, NOISES = range(7)
"""Sub-streams of the key of an episode."""
MOST_SIGMA = 3.0
"""Deviations of a time are cut off at so many standard deviations."""
LEAST_FACTOR = 0.2
"""No time is shorter than this part of the measured one."""
LOG_LONGEST = 17.0
"""Lengths are shown as log2(tokens) / 17."""
EMPTY, NEW = Episode.blank, Batch.blank


@kernel(inline=True)
def squash(x: float) -> float:
    """A number from 0 on in [0, 1)."""
    return x / (1.0 + x)


@kernel(inline=True)
def signed(x: float) -> float:
    """Any number in (-1, 1)."""
    return x / (1.0 + abs(x))


@kernel(inline=True)
def length_of(quantiles: NDArray[np.float64], longest: int, u: float) -> int:
    """The length of prompts at a probability, whole tokens.

    Args:
        quantiles: lengths of prompts at evenly spaced probabilities, tokens, float64 [knots].
        longest: longer prompts are cut to this length, tokens.
        u: the probability, 0 to 1.

    Returns:
        Tokens, 1 to `longest`.
    """
    at = u * (quantiles.shape[0] - 1)
    i = min(int(at), quantiles.shape[0] - 2)
    length = quantiles[i] + (at - i) * (quantiles[i + 1] - quantiles[i])
    return int(min(max(math.floor(length + 0.5), 1.0), longest))


@kernel(inline=True)
def most_requests(config: Config, length: int) -> int:
    """Most sequences of a batch of this length."""
    return max(min(config.most, config.most_tokens // length), 1)


@kernel
def draw_batches(state: State, params: Params, lane: int, first: int, clock_s: float, phase: int) -> None:
    """Draw the batches of a lane from a number on, from its key.

    Args:
        state: arrays of all lanes.
        params: what all lanes share.
        lane: whose batches.
        first: number of the first that is drawn; batch 0 arrives at once.
        clock_s: time from which on they arrive, seconds.
        phase: 1 if that is in a burst, 0 if it is not; -1: drawn.
    """
    config, key = params.config[0], state.lane[lane].key
    splits = params.splits
    if phase < 0:
        phase = 1 if uniform(substream(key, PHASES), 0) < config.burst_share else 0
    draws = 1
    time_s, until_s = clock_s, math.inf
    if config.burst_s > 0.0:
        mean_s = config.burst_s if phase == 1 else config.calm_s
        until_s = clock_s + mean_s * exponential(substream(key, PHASES), draws)
    for n in range(first, config.batches):
        need = exponential(substream(key, GAPS), n) if n > 0 else 0.0
        rate = config.burst_rps if phase == 1 else config.calm_rps
        while need > (until_s - time_s) * rate:
            need -= (until_s - time_s) * rate
            time_s, phase, draws = until_s, 1 - phase, draws + 1
            rate = config.burst_rps if phase == 1 else config.calm_rps
            mean_s = config.burst_s if phase == 1 else config.calm_s
            until_s = time_s + mean_s * exponential(substream(key, PHASES), draws)
        if need > 0.0:
            time_s += need / rate
        state.batch[lane, n] = NEW[0]
        batch = state.batch[lane, n]
        batch.arrival_s, batch.burst = time_s, phase
        batch.length = length_of(params.quantiles, config.longest, uniform(substream(key, SIZES), n))
        most = most_requests(config, batch.length)
        batch.requests = 1 + int(uniform(substream(key, COUNTS), n) * most)
        u, i = uniform(substream(key, CLASSES), n), 0
        while i < params.running.shape[0] - 1 and u >= params.running[i]:
            i += 1
        batch.limit = params.limits[i]
        factor = config.soonest + (config.latest - config.soonest) * uniform(substream(key, DEADLINES), n)
        tokens = batch.length * batch.requests
        grown = config.fixed + (1.0 - config.fixed) * tokens / config.mean_tokens
        batch.due_s = time_s + factor * grown * config.mean_s
        batch.noise = min(max(normal(substream(key, NOISES), n), -MOST_SIGMA), MOST_SIGMA)
        _, batch.reference_s = first_choice(
            params.tables, splits, batch.length, batch.requests, config.layers, config.free_bytes
        )


@kernel(inline=True)
def weigh(state: State, lane: int) -> float:
    """A number that tells one world from another."""
    total = 0.0
    for n in range(state.batch.shape[1]):
        batch = state.batch[lane, n]
        total += batch.arrival_s + batch.due_s + batch.length * batch.requests + batch.limit + batch.noise
    return total


@kernel
def reset_lane(state: State, params: Params, lane: int, key: np.uint64) -> None:
    """Draw all batches; the first one arrives at time 0 and is decided on.

    Args:
        state: arrays of all lanes, written to.
        params: what all lanes share.
        lane: the lane that begins anew.
        key: seeds everything that is drawn in the episode.
    """
    state.lane[lane] = EMPTY[0]
    state.lane[lane].key = key
    draw_batches(state, params, lane, 0, 0.0, -1)
    state.lane[lane].checksum = weigh(state, lane)
    _go_on(state, params, lane)


@kernel
def _go_on(state: State, params: Params, lane: int) -> None:
    """Decide on the oldest batch that waits; if none does, time goes on to the next arrival."""
    episode, batches = state.lane[lane], params.config[0].batches
    while episode.oldest < batches and state.batch[lane, episode.oldest].action >= 0:
        episode.oldest += 1
    if episode.oldest < batches:
        episode.clock_s = max(episode.clock_s, state.batch[lane, episode.oldest].arrival_s)
    while episode.arrived < batches and state.batch[lane, episode.arrived].arrival_s <= episode.clock_s:
        episode.arrived += 1
    episode.head, episode.position = min(episode.oldest, batches - 1), 0


@kernel(inline=True)
def next_waiting(state: State, params: Params, lane: int) -> int:
    """The next waiting batch of the window behind the head, the one that is decided on.

    Args:
        state: arrays of all lanes.
        params: what all lanes share.
        lane: the lane that is asked about.

    Returns:
        The number of the batch in the order of arrival, or -1.
    """
    episode = state.lane[lane]
    if episode.position + 1 >= params.config[0].window:
        return -1
    for n in range(episode.head + 1, episode.arrived):
        if state.batch[lane, n].action < 0:
            return n
    return -1


@kernel
def allowed(params: Params, batch: Batch, action: int) -> bool:
    """Whether an action can serve a batch: parts, memory, and that its time was measured.

    Args:
        params: what all lanes share.
        batch: the batch.
        action: kernel x splits + split, below kernels x splits.

    Returns:
        True where it can.
    """
    config, splits = params.config[0], params.splits
    k, parts = action // splits.shape[0], splits[action % splits.shape[0]]
    if parts > batch.requests or batch.length > params.tables.kernels[k].longest:
        return False
    if attention_bytes(params.tables, k, batch.length, batch.requests, parts) > config.free_bytes:
        return False
    return attention_us(params.tables, k, batch.length, batch.requests, parts) < math.inf


@kernel
def service_s(params: Params, batch: Batch, action: int, noise: float) -> float:
    """Time that an action takes for a batch.

    Args:
        params: what all lanes share.
        batch: the batch.
        action: one that is allowed for it, and serves it.
        noise: deviation in standard deviations of its kernel; 0 gives the expected time.

    Returns:
        Seconds.
    """
    config, splits = params.config[0], params.splits
    k, parts = action // splits.shape[0], splits[action % splits.shape[0]]
    seconds, sigma = step_s(params.tables, k, batch.length, batch.requests, parts, config.layers)
    return seconds * max(1.0 + config.noise * sigma * noise, LEAST_FACTOR)


@kernel
def _serve(state: State, params: Params, lane: int, action: int) -> float:
    """Serve the head; the reward of that, but for the ledger."""
    episode, config = state.lane[lane], params.config[0]
    batch = state.batch[lane, episode.head]
    one = params.tables.kernels[action // params.splits.shape[0]]
    seconds = service_s(params, batch, action, batch.noise)
    episode.clock_s += seconds
    batch.end_s, batch.action = episode.clock_s, action
    tokens = float(batch.length) * batch.requests
    weight = (1.0 if config.even != 0 else tokens / config.mean_tokens) / config.batches
    excess = weight * max(one.loss - batch.limit, 0.0)
    energy_j = seconds * one.power_w
    reward = -config.excess_weight * excess
    reward -= config.energy_weight * energy_j / (config.batches * config.mean_j)
    if batch.end_s <= batch.due_s:
        episode.on_time += 1
        episode.tokens_on_time += tokens
        episode.value += weight
        reward += weight
    else:
        episode.late += weight
        reward -= config.late_weight * weight
    episode.excess += excess
    episode.tokens += tokens
    episode.tokens_exact += tokens if one.loss == 0.0 else 0.0
    episode.spent += tokens * one.loss
    episode.busy_s += seconds
    episode.energy_j += energy_j
    episode.done += 1
    return reward


@kernel(inline=True)
def overspent(episode: Episode, budget: float) -> float:
    """Mean loss above the budget, in budgets; 0 where nothing was served."""
    return max(episode.spent / (episode.tokens * budget) - 1.0, 0.0) if episode.tokens > 0.0 else 0.0


@kernel
def step_lane(
    state: State, params: Params, lane: int, action: NDArray[np.float64]
) -> tuple[float, bool, bool, float]:
    """Serve the head, or look at the next waiting batch; after a batch, time goes on to its end or to the next arrival.

    Args:
        state: arrays of all lanes, written to.
        params: what all lanes share.
        lane: the lane that decides.
        action: float64 [1]: kernel x splits + split; the number after the last of these defers the head.

    Returns:
        Reward, whether the episode has ended, False, as none is cut, and the seconds that have passed.
    """
    episode, config = state.lane[lane], params.config[0]
    decision, penalty, before_s = int(action[0]), 0.0, episode.clock_s
    serving = params.tables.kernels.shape[0] * params.splits.shape[0]
    upcoming = next_waiting(state, params, lane) if decision == serving else -1
    if upcoming >= 0:
        episode.head, episode.position = upcoming, episode.position + 1
        episode.deferrals += 1
        return 0.0, False, False, 0.0
    batch = state.batch[lane, episode.head]
    if decision == serving or not allowed(params, batch, decision):
        penalty = config.invalid_cost
        episode.invalid += 1
        decision = 0
        while decision < serving - 1 and not allowed(params, batch, decision):
            decision += 1
    reward = _serve(state, params, lane, decision)
    episode.penalty += penalty
    _go_on(state, params, lane)
    ended = episode.done == config.batches
    if ended:
        reward -= config.overspend_weight * overspent(episode, config.budget)
    return reward - penalty, ended, False, episode.clock_s - before_s


@kernel
def _observe_queue(
    state: State, params: Params, lane: int, out: Observation, rest: NDArray[np.float32]
) -> None:
    """Write the block of waiting batches, and what is told of all that wait."""
    episode, config = state.lane[lane], params.config[0]
    width = len(WAITING_ROW)
    waiting, work_s = 0, 0.0
    for i in range(config.window * width):
        rest[i] = 0.0
    for n in range(episode.oldest, episode.arrived):
        batch = state.batch[lane, n]
        if batch.action >= 0:
            continue
        if waiting < config.window:
            row = rest[waiting * width : (waiting + 1) * width]
            row[WAITS] = 1.0
            row[LENGTH] = math.log2(float(batch.length)) / LOG_LONGEST
            row[REQUESTS] = batch.requests / (batch.requests + CROWD)
            row[NEEDS] = squash(batch.reference_s / config.mean_s)
            row[LEFT] = signed((batch.due_s - episode.clock_s) / config.mean_s)
            row[LIMIT] = squash(batch.limit / config.budget)
            row[AGE] = squash((episode.clock_s - batch.arrival_s) / config.mean_s)
            row[HEAD] = 1.0 if n == episode.head else 0.0
        waiting += 1
        work_s += batch.reference_s
    out.waiting = waiting / (waiting + CROWD)
    out.backlog = squash(work_s / config.mean_s)


@kernel
def _observe_actions(state: State, params: Params, lane: int, rest: NDArray[np.float32]) -> None:
    """Write the block of actions: a row for each kernel and number of parts, and one for deferring."""
    episode, config, splits = state.lane[lane], params.config[0], params.splits
    batch = state.batch[lane, episode.head]
    width, serving = len(ROW), params.tables.kernels.shape[0] * splits.shape[0]
    for i in range((serving + 1) * width):
        rest[i] = 0.0
    if episode.done == config.batches:
        return
    for action in range(serving):
        row = rest[action * width : (action + 1) * width]
        one, parts = params.tables.kernels[action // splits.shape[0]], splits[action % splits.shape[0]]
        row[LOSS] = squash(one.loss / config.budget)
        row[EXCESS] = squash(max(one.loss - batch.limit, 0.0) / config.budget)
        row[PARTS] = 1.0 / parts
        if not allowed(params, batch, action):
            continue
        k = action // splits.shape[0]
        seconds = service_s(params, batch, action, 0.0)
        used = attention_bytes(params.tables, k, batch.length, batch.requests, parts)
        row[TIME] = squash(seconds / config.mean_s)
        row[SLACK] = signed((batch.due_s - episode.clock_s - seconds) / config.mean_s)
        row[MEMORY] = min(used / config.free_bytes, 1.0)
        row[ALLOWED] = 1.0
    rest[serving * width + DEFER] = 1.0
    rest[serving * width + ALLOWED] = 1.0 if next_waiting(state, params, lane) >= 0 else 0.0


@kernel
def observe_lane(
    state: State, params: Params, lane: int, out: Observation, rest: NDArray[np.float32]
) -> None:
    """Write the observation.

    Args:
        state: arrays of all lanes.
        params: what all lanes share.
        lane: the lane that is shown.
        out: the fields of the observation before the rows, written.
        rest: rows of the waiting batches (WAITING_ROW), then of the actions (ROW), written, float32 [window * 8 + actions * 8].
    """
    episode, config = state.lane[lane], params.config[0]
    width = config.window * len(WAITING_ROW)
    _observe_queue(state, params, lane, out, rest[:width])
    _observe_actions(state, params, lane, rest[width:])
    batch = state.batch[lane, episode.head]
    here = 1.0 if episode.done < config.batches else 0.0
    out.length = here * math.log2(float(batch.length)) / LOG_LONGEST
    out.requests = here * batch.requests / (batch.requests + CROWD)
    out.slack = here * signed((batch.due_s - episode.clock_s) / config.mean_s)
    out.limit = here * squash(batch.limit / config.budget)
    out.age = here * squash((episode.clock_s - batch.arrival_s) / config.mean_s)
    out.position = episode.position / config.window
    out.spent = squash(episode.spent / (episode.tokens * config.budget)) if episode.tokens > 0.0 else 0.0
    total = episode.tokens + (config.batches - episode.done) * config.mean_tokens
    out.left = max(1.0 - episode.spent / (total * config.budget), -1.0)
    since = max(episode.arrived - 1 - RECENT, 0)
    passed_s = max(episode.clock_s - state.batch[lane, since].arrival_s, 1e-9 * config.mean_s)
    out.rate = squash((episode.arrived - 1 - since) * config.mean_s / passed_s)
    out.load = squash(config.load)
    out.progress = episode.done / config.batches


@kernel
def mask_lane(state: State, params: Params, lane: int, out: NDArray[np.int8]) -> None:
    """Write what is allowed: kernels whose time was measured and whose memory there is, and deferring while another waits.

    Args:
        state: arrays of all lanes.
        params: what all lanes share.
        lane: the lane that decides.
        out: 1 for each allowed action, else 0, written, int8 [actions].
    """
    serving = params.tables.kernels.shape[0] * params.splits.shape[0]
    if state.lane[lane].done == params.config[0].batches:
        out[:] = 0
        out[0] = 1
        return
    batch = state.batch[lane, state.lane[lane].head]
    for action in range(serving):
        out[action] = 1 if allowed(params, batch, action) else 0
    out[serving] = 1 if next_waiting(state, params, lane) >= 0 else 0


@kernel
def metrics_lane(state: State, params: Params, lane: int, out: Metrics) -> None:
    """Write the metrics of the episode so far.

    Args:
        state: arrays of all lanes; `scratch` is written to.
        params: what all lanes share.
        lane: the lane that is measured.
        out: the metrics, written.
    """
    episode, config = state.lane[lane], params.config[0]
    latencies, done = state.scratch[lane], 0
    for n in range(config.batches):
        batch = state.batch[lane, n]
        if batch.action >= 0:
            latencies[done] = batch.end_s - batch.arrival_s
            done += 1
    ended = episode.done == config.batches
    out.goodput_share = ratio(episode.tokens_on_time, episode.tokens)
    out.slo_attainment = ratio(episode.on_time, episode.done)
    out.loss_mean_nat = ratio(episode.spent, episode.tokens)
    out.overspent_nat = math.nan if episode.done == 0 else config.budget * overspent(episode, config.budget)
    out.on_time_relative = episode.value
    out.late_relative = episode.late
    out.excess_relative = episode.excess
    out.overspent_budgets = overspent(episode, config.budget) if ended else 0.0
    out.e2e_p50_s = quantile(latencies[:done], 0.5)
    out.e2e_p99_s = quantile(latencies[:done], 0.99)
    out.exact_share = ratio(episode.tokens_exact, episode.tokens)
    out.throughput_tokens_per_s = ratio(episode.tokens, episode.clock_s)
    out.utilization = min(ratio(episode.busy_s, episode.clock_s), 1.0) if episode.clock_s > 0.0 else math.nan
    out.energy_j = episode.energy_j
    out.energy_relative = episode.energy_j / (config.batches * config.mean_j)
    out.batches = episode.done
    out.deferrals = episode.deferrals
    out.penalty = episode.penalty
    out.invalid_actions = episode.invalid
    out.duration_s = episode.clock_s
    out.world_checksum = episode.checksum


KERNELS = Kernels(reset_lane, step_lane, observe_lane, mask_lane, metrics_lane)
