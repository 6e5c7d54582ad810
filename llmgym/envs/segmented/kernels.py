"""The compiled functions of SegmentedPrefill: what an action does, and how time goes on. See `llmgym.envs.segmented.env`."""

import math

import numpy as np
from numpy.typing import NDArray

from llmgym.core.jit import kernel
from llmgym.core.lanes import Kernels
from llmgym.core.statistics import quantile, ratio
from llmgym.envs.segmented.law import GIB
from llmgym.envs.segmented.modes import (
    answer_quality,
    kept_bytes,
    running_bytes,
    step_time_s,
    step_tokens,
)
from llmgym.envs.segmented.observing import (
    allowed,
    decode_step_s,
    held_bytes,
    kind_of,
    observe_lane,
    pressure_of,
)
from llmgym.envs.segmented.state import (
    ADMIT,
    DECODE,
    DECODE_PRESSURE,
    DECODING,
    DONE,
    EVICT,
    LOST,
    PAST,
    PREFILL,
    REJECT,
    REJECTED,
    RUN,
    WAITING,
    Episode,
    Metrics,
    Params,
    State,
)
from llmgym.envs.segmented.world import draw

NOTHING = -1
DECODED, GONE = -1, -2
"""In place of a request in `Past`: a step of decoding, and a step that did not fit."""
EMPTY = Episode.blank


@kernel
def reset_lane(state: State, params: Params, lane: int, key: np.uint64) -> None:
    """Draw all requests; the first one arrives at time 0, and the first decision is about it.

    Args:
        state: arrays of all lanes, written to.
        params: what all lanes share.
        lane: the lane that begins anew.
        key: seeds everything that is drawn in the episode.
    """
    state.lane[lane] = EMPTY[0]
    state.lane[lane].key = key
    draw(state, params, lane, key)
    for j in range(params.config[0].seats):
        state.slot[lane, j] = NOTHING
    for k in range(PAST):
        state.past[lane, k].end_s = -1.0
    _look(state, params, lane)


@kernel
def _look(state: State, params: Params, lane: int) -> None:
    """Find the oldest waiting requests, and the oldest one that is not finished."""
    episode, config = state.lane[lane], params.config[0]
    while episode.oldest < config.requests and state.request[lane, episode.oldest].status >= DONE:
        episode.oldest += 1
    shown = 0
    for n in range(episode.oldest, config.requests):
        request = state.request[lane, n]
        if request.arrival_s > episode.clock_s or shown == config.window:
            break
        if request.status == WAITING:
            state.window[lane, shown] = n
            shown += 1
    for k in range(shown, config.window):
        state.window[lane, k] = NOTHING


@kernel
def _next_arrival_s(state: State, params: Params, lane: int) -> float:
    """Time of the next arrival, seconds; infinite where there is none."""
    episode = state.lane[lane]
    for n in range(episode.oldest, params.config[0].requests):
        if state.request[lane, n].arrival_s > episode.clock_s:
            return state.request[lane, n].arrival_s
    return math.inf


@kernel
def _pass(state: State, lane: int, dt_s: float, held: int) -> None:
    """Let time pass, while requests hold so many bytes."""
    episode = state.lane[lane]
    episode.clock_s += dt_s
    episode.held_gib_s += dt_s * held / GIB
    episode.peak_bytes = max(episode.peak_bytes, held)


@kernel
def _remember(state: State, lane: int, dt_s: float, held: int, request: int, mode: int) -> None:
    """Keep the step that has just ended, for pictures."""
    episode = state.lane[lane]
    past = state.past[lane, episode.steps % PAST]
    past.begin_s, past.end_s = episode.clock_s - dt_s, episode.clock_s
    past.held_bytes, past.request, past.mode = held, request, mode
    episode.steps += 1


@kernel
def _leave(state: State, params: Params, lane: int, j: int, status: int) -> None:
    """Take the request in slot j out of the slots."""
    episode = state.lane[lane]
    state.request[lane, state.slot[lane, j]].status = status
    for k in range(j, episode.admitted - 1):
        state.slot[lane, k] = state.slot[lane, k + 1]
    episode.admitted -= 1
    state.slot[lane, episode.admitted] = NOTHING
    episode.resident_bytes = held_bytes(state, params, lane, NOTHING)


@kernel
def _finish(state: State, params: Params, lane: int, j: int) -> float:
    """The request in slot j is done. Returns what it is worth."""
    episode, config = state.lane[lane], params.config[0]
    request = state.request[lane, state.slot[lane, j]]
    request.end_s = episode.clock_s
    late = max((request.first_s - request.arrival_s) / request.limit_s - 1.0, 0.0)
    if request.output > 1:
        tpot_s = (request.end_s - request.first_s) / (request.output - 1)
        late = max(late, tpot_s / config.tpot_limit_s - 1.0)
    value = max(1.0 - late, -1.0)
    quality = answer_quality(params.modes[request.mode], request.prompt, config.output_most)
    shortfall = max(request.quality - quality, 0.0)
    episode.value += value
    episode.shortfall += shortfall
    episode.done += 1
    _leave(state, params, lane, j, DONE)
    return value - config.quality_weight * shortfall


@kernel
def _run(state: State, params: Params, lane: int, j: int) -> float:
    """Run the next step of the prompt in slot j; where it does not fit, the request is lost. Returns the reward."""
    episode, config = state.lane[lane], params.config[0]
    n = state.slot[lane, j]
    request = state.request[lane, n]
    mode = params.modes[request.mode]
    tokens = step_tokens(mode, request.prompt, request.done)
    need = running_bytes(mode, request.prompt, request.done)
    if request.done + tokens == request.prompt:
        need = max(need, kept_bytes(mode, request.prompt, config.output_most))
    held = held_bytes(state, params, lane, j) + need
    if held > config.room_bytes:
        episode.lost += 1
        _leave(state, params, lane, j, LOST)
        _remember(state, lane, 0.0, episode.resident_bytes, GONE, request.mode)
        return -config.lost_cost
    dt_s = step_time_s(mode, request.prompt, request.done)
    _pass(state, lane, dt_s, held)
    _remember(state, lane, dt_s, held, n, request.mode)
    episode.busy_s += dt_s
    episode.since_decode_s += dt_s
    episode.prompt_tokens += tokens
    request.done += tokens
    reward = -config.memory_weight * dt_s * held / GIB
    if request.done == request.prompt:
        request.first_s = episode.clock_s
        request.made = 1
        request.status = DECODE
        episode.output_tokens += 1
        if request.output == 1:
            reward += _finish(state, params, lane, j)
    episode.resident_bytes = held_bytes(state, params, lane, NOTHING)
    return reward


@kernel
def _decode(state: State, params: Params, lane: int) -> float:
    """Decode some tokens of every request whose prompt is done, until the first one ends. Returns the reward."""
    episode, config = state.lane[lane], params.config[0]
    tokens, batch = config.decode_tokens, 0
    for j in range(episode.admitted):
        request = state.request[lane, state.slot[lane, j]]
        if request.status == DECODE:
            tokens = min(tokens, request.output - request.made)
            batch += 1
    held = held_bytes(state, params, lane, NOTHING)
    dt_s = tokens * decode_step_s(state, params, lane)
    _pass(state, lane, dt_s, held)
    _remember(state, lane, dt_s, held, DECODED, NOTHING)
    episode.busy_s += dt_s
    episode.since_decode_s = 0.0
    episode.decoded_s = episode.clock_s
    episode.output_tokens += tokens * batch
    reward = -config.memory_weight * dt_s * held / GIB
    for j in range(episode.admitted - 1, -1, -1):
        request = state.request[lane, state.slot[lane, j]]
        if request.status == DECODE:
            request.made += tokens
            if request.made == request.output:
                reward += _finish(state, params, lane, j)
    return reward


@kernel
def _wait(state: State, params: Params, lane: int, until_s: float) -> float:
    """Let the card idle until then. Returns the reward."""
    episode = state.lane[lane]
    dt_s = until_s - episode.clock_s
    held = episode.resident_bytes
    _pass(state, lane, dt_s, held)
    episode.clock_s = until_s
    return -params.config[0].memory_weight * dt_s * held / GIB


@kernel
def _serve(state: State, params: Params, lane: int) -> float:
    """First in, first out: the oldest admitted prompt; decode when later tokens are pressed for time. Returns the reward.

    Where the next step of that prompt does not fit, requests decode until it does; where none decodes, it runs, and is lost.
    """
    episode, config = state.lane[lane], params.config[0]
    oldest, decoding, fits = NOTHING, False, False
    for j in range(episode.admitted):
        request = state.request[lane, state.slot[lane, j]]
        if request.status == DECODE:
            decoding = True
        elif oldest < 0:
            oldest = j
            mode = params.modes[request.mode]
            need = running_bytes(mode, request.prompt, request.done)
            need = max(need, kept_bytes(mode, request.prompt, config.output_most))
            fits = held_bytes(state, params, lane, j) + need <= config.room_bytes
    pressed = episode.since_decode_s > 0.0 and pressure_of(state, params, lane) > DECODE_PRESSURE
    if decoding and (pressed or not fits):
        return _decode(state, params, lane)
    if oldest >= 0:
        return _run(state, params, lane, oldest)
    soonest_s = _next_arrival_s(state, params, lane)
    if soonest_s < math.inf:
        return _wait(state, params, lane, soonest_s)
    return _reject(state, params, lane, 0)


@kernel
def _reject(state: State, params: Params, lane: int, k: int) -> float:
    """Reject the k-th waiting request. Returns the reward."""
    state.request[lane, state.window[lane, k]].status = REJECTED
    state.lane[lane].rejected += 1
    return -params.config[0].reject_cost


@kernel
def _do(state: State, params: Params, lane: int, action: int) -> float:
    """Do what an allowed action says. Returns the reward."""
    episode, config = state.lane[lane], params.config[0]
    kind, which, mode = kind_of(config, action)
    if kind == ADMIT:
        n = state.window[lane, which]
        state.request[lane, n].status = PREFILL
        state.request[lane, n].mode = mode
        state.request[lane, n].done = 0
        state.slot[lane, episode.admitted] = n
        episode.admitted += 1
        return 0.0
    if kind == RUN:
        return _run(state, params, lane, which)
    if kind == EVICT:
        request = state.request[lane, state.slot[lane, which]]
        request.evictions += 1
        request.done = 0
        request.mode = -1
        episode.evicted += 1
        _leave(state, params, lane, which, WAITING)
        return 0.0
    if kind == REJECT:
        return _reject(state, params, lane, which)
    if kind == DECODING:
        return _decode(state, params, lane)
    if config.all == 0 and episode.admitted > 0:
        return _serve(state, params, lane)
    return _wait(state, params, lane, _next_arrival_s(state, params, lane))


@kernel
def _settle(state: State, params: Params, lane: int) -> tuple[float, bool, bool]:
    """Go on to the next moment at which there is something to decide.

    Returns:
        The reward on the way, and whether the episode is over, and whether it is cut.
    """
    episode, config = state.lane[lane], params.config[0]
    reward = 0.0
    while True:
        _look(state, params, lane)
        if episode.oldest == config.requests:
            return reward, True, False
        if episode.lost >= config.most_lost or episode.clock_s >= config.horizon_s:
            episode.forfeited = config.requests - episode.done - episode.rejected - episode.lost
            return reward - config.reject_cost * episode.forfeited, False, True
        waiting = state.window[lane, 0] >= 0
        if config.all != 0:
            if waiting or episode.admitted > 0:
                return reward, False, False
        elif waiting and episode.admitted < config.seats:
            return reward, False, False
        reward += _serve(state, params, lane)


@kernel
def step_lane(
    state: State, params: Params, lane: int, action: NDArray[np.float64]
) -> tuple[float, bool, bool, float]:
    """Admit, run, evict, reject, decode or wait; time goes on to the next decision.

    Args:
        state: arrays of all lanes, written to.
        params: what all lanes share.
        lane: the lane that decides.
        action: float64 [1], the number of an action as `llmgym.envs.segmented.observing.kind_of` reads it; in place of one that
            is not allowed, the oldest prompt or decoding goes on.

    Returns:
        Reward, whether the episode has ended, whether it was cut, and the seconds that have passed.
    """
    episode, config = state.lane[lane], params.config[0]
    start_s = episode.clock_s
    chosen = int(action[0])
    if allowed(state, params, lane, chosen):
        reward = _do(state, params, lane, chosen)
    else:
        episode.invalid += 1
        episode.penalty += config.invalid_cost
        reward = _serve(state, params, lane) - config.invalid_cost
    more, ended, cut = _settle(state, params, lane)
    return reward + more, ended, cut, episode.clock_s - start_s


@kernel
def mask_lane(state: State, params: Params, lane: int, out: NDArray[np.int8]) -> None:
    """Write what is allowed.

    Args:
        state: arrays of all lanes.
        params: what all lanes share.
        lane: the lane that decides.
        out: 1 for each allowed action, else 0, written, int8 [actions].
    """
    for action in range(out.shape[0]):
        out[action] = 1 if allowed(state, params, lane, action) else 0


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
    first, timed, in_time, good = 0, 0, 0, 0
    ttft_s, tpot_s, e2e_s, quality_sum = 0.0, 0.0, 0.0, 0.0
    times = state.scratch[lane]
    for n in range(config.requests):
        request = state.request[lane, n]
        if request.first_s < 0.0:
            continue
        took_s = request.first_s - request.arrival_s
        times[first] = took_s
        first += 1
        ttft_s += took_s
        if request.status != DONE:
            continue
        e2e_s += request.end_s - request.arrival_s
        later_s = 0.0
        if request.output > 1:
            later_s = (request.end_s - request.first_s) / (request.output - 1)
            tpot_s += later_s
            timed += 1
        quality = answer_quality(params.modes[request.mode], request.prompt, config.output_most)
        quality_sum += quality
        if took_s <= request.limit_s and later_s <= config.tpot_limit_s:
            in_time += 1
            if quality >= request.quality:
                good += 1
    done = float(episode.done)
    finished = done + episode.rejected + episode.lost + episode.forfeited
    out.value = episode.value
    out.slo_attainment = ratio(in_time, finished)
    out.good_share = ratio(good, finished)
    out.ttft_mean_s = ratio(ttft_s, first)
    out.ttft_p50_s = quantile(times[:first], 0.5)
    out.ttft_p99_s = quantile(times[:first], 0.99)
    out.tpot_mean_s = ratio(tpot_s, timed)
    out.e2e_mean_s = ratio(e2e_s, done)
    out.quality_mean = ratio(quality_sum, done)
    out.shortfall = episode.shortfall
    out.peak_memory_gib = (config.weights_bytes + episode.peak_bytes) / GIB
    out.memory_gib_s = episode.held_gib_s
    out.utilization = min(ratio(episode.busy_s, episode.clock_s), 1.0) if episode.clock_s > 0.0 else math.nan
    out.goodput_rps = ratio(in_time, episode.clock_s)
    out.prompt_tokens = episode.prompt_tokens
    out.output_tokens = episode.output_tokens
    out.completed = done
    out.rejected = episode.rejected
    out.lost = episode.lost
    out.forfeited = episode.forfeited
    out.evicted = episode.evicted
    out.penalty = episode.penalty
    out.invalid_actions = episode.invalid
    out.duration_s = episode.clock_s
    out.world_checksum = episode.checksum


KERNELS = Kernels(reset_lane, step_lane, observe_lane, mask_lane, metrics_lane)
