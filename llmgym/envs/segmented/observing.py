"""What SegmentedPrefill shows: the server as a whole, and one row for each candidate."""

import math

import numpy as np
from numpy.typing import NDArray

from llmgym.core.jit import kernel
from llmgym.envs.segmented.modes import (
    Mode,
    answer_quality,
    kept_bytes,
    peak_bytes,
    resident_bytes,
    rest_time_s,
    running_bytes,
    step_time_s,
    step_tokens,
)
from llmgym.envs.segmented.state import (
    ADMIT,
    CROWD,
    DECODE,
    DECODING,
    EVICT,
    FEATURES,
    KINDS,
    MOST_OCTAVES,
    PREFILL,
    REJECT,
    RUN,
    WAIT,
    WAITING,
    Config,
    Observation,
    Params,
    Request,
    State,
)

DECODE_UNIT_S = 0.1
"""Unit that the time of a token is shown in, seconds; chosen here."""


@kernel(inline=True)
def kind_of(config: Config, action: int) -> tuple[int, int, int]:
    """Kind of an action, which slot or waiting request it is about, and the mode."""
    if action < config.window * config.modes:
        return ADMIT, action // config.modes, action % config.modes
    action -= config.window * config.modes
    if config.all != 0:
        if action < config.seats:
            return RUN, action, 0
        action -= config.seats
        if action < config.seats:
            return EVICT, action, 0
        action -= config.seats
    if action < config.window:
        return REJECT, action, 0
    action -= config.window
    if config.all != 0 and action == 0:
        return DECODING, 0, 0
    return WAIT, 0, 0


@kernel
def allowed(state: State, params: Params, lane: int, action: int) -> bool:
    """Whether an action is allowed.

    Args:
        state: arrays of all lanes.
        params: what all lanes share.
        lane: the lane that decides.
        action: the number of the action, as `kind_of` reads it.

    Returns:
        True where it is.
    """
    episode, config = state.lane[lane], params.config[0]
    kind, which, _ = kind_of(config, action)
    if kind == ADMIT:
        return state.window[lane, which] >= 0 and episode.admitted < config.seats
    if kind == REJECT:
        return state.window[lane, which] >= 0
    if kind in (RUN, EVICT):
        if which >= episode.admitted:
            return False
        request = state.request[lane, state.slot[lane, which]]
        if request.status != PREFILL:
            return False
        return kind == RUN or request.evictions < config.evictions
    if kind == DECODING:
        decoding = 0
        for j in range(episode.admitted):
            if state.request[lane, state.slot[lane, j]].status == DECODE:
                decoding += 1
        return decoding > 0
    if config.all == 0 and episode.admitted > 0:
        return True
    if episode.oldest == config.requests:  # the episode is over
        return True
    return state.request[lane, config.requests - 1].arrival_s > episode.clock_s


@kernel(inline=True)
def request_bytes(params: Params, request: Request) -> int:
    """What an admitted request holds between two steps, bytes."""
    mode = params.modes[request.mode]
    if request.status == DECODE:
        return kept_bytes(mode, request.prompt, params.config[0].output_most)
    return resident_bytes(mode, request.done)


@kernel
def held_bytes(state: State, params: Params, lane: int, but: int) -> int:
    """What the admitted requests of a lane hold between two steps.

    Args:
        state: arrays of all lanes.
        params: what all lanes share.
        lane: the lane that is asked about.
        but: slot whose request does not count; -1: all count.

    Returns:
        Bytes.
    """
    total = 0
    for j in range(state.lane[lane].admitted):
        if j != but:
            total += request_bytes(params, state.request[lane, state.slot[lane, j]])
    return total


@kernel
def decode_step_s(state: State, params: Params, lane: int) -> float:
    """Time of one token of every request that decodes, seconds: weights and their caches are read once.

    Args:
        state: arrays of all lanes.
        params: what all lanes share.
        lane: the lane that is asked about.

    Returns:
        Seconds; without a request that decodes, the time of reading the weights.
    """
    read = params.config[0].weights_bytes
    for j in range(state.lane[lane].admitted):
        request = state.request[lane, state.slot[lane, j]]
        if request.status == DECODE:
            read += request_bytes(params, request)
    return read / params.config[0].bytes_per_s


@kernel
def pressure_of(state: State, params: Params, lane: int) -> float:
    """Mean time of a token so far over its limit, of the decoding request that is worst off; 0 where none decodes.

    Args:
        state: arrays of all lanes.
        params: what all lanes share.
        lane: the lane that is asked about.

    Returns:
        Time over limit; above 1 the limit is not kept.
    """
    episode, pressure = state.lane[lane], 0.0
    for j in range(episode.admitted):
        request = state.request[lane, state.slot[lane, j]]
        if request.status == DECODE:
            each_s = (episode.clock_s - request.first_s) / request.made
            pressure = max(pressure, each_s / params.config[0].tpot_limit_s)
    return pressure


@kernel(inline=True)
def squash(x: float) -> float:
    """X / (1 + |x|)."""
    return x / (1.0 + abs(x))


@kernel(inline=True)
def clip(x: float) -> float:
    """The nearest number from -1 to 1."""
    return min(max(x, -1.0), 1.0)


@kernel
def _row(
    request: Request,
    mode: Mode,
    config: Config,
    clock_s: float,
    others: int,
    going: int,
    out: NDArray[np.float32],
) -> None:
    """Write what one request in one mode would take.

    Args:
        request: the one that waits or is admitted.
        mode: its mode, or the one that it could have.
        config: the settings.
        clock_s: the present, seconds.
        others: what all others hold now, bytes.
        going: what all others are going to keep, bytes.
        out: the row, float32 [FEATURES]; the kinds are written elsewhere.
    """
    prompt, done, most = request.prompt, request.done, config.output_most
    room = float(config.room_bytes)
    rest_s = rest_time_s(mode, prompt, done)
    left_s = request.arrival_s + request.limit_s - clock_s
    quality = answer_quality(mode, prompt, most)
    kept = kept_bytes(mode, prompt, most)
    need = running_bytes(mode, prompt, done)
    if done + step_tokens(mode, prompt, done) == prompt:
        need = max(need, kept)
    peak = peak_bytes(mode, prompt, most)
    late = max(rest_s - left_s, 0.0) / request.limit_s
    out[KINDS] = math.log2(prompt) / MOST_OCTAVES
    out[KINDS + 1] = done / prompt
    out[KINDS + 2] = squash(rest_s / config.unit_s)
    out[KINDS + 3] = squash(step_time_s(mode, prompt, done) / config.unit_s)
    out[KINDS + 4] = squash(left_s / config.unit_s)
    out[KINDS + 5] = max(1.0 - late, -1.0)
    out[KINDS + 6] = 0.5 * quality
    out[KINDS + 7] = max(request.quality - quality, 0.0)
    out[KINDS + 8] = min(peak / room, 1.0)
    out[KINDS + 9] = min(kept / room, 1.0)
    out[KINDS + 10] = clip((room - others - need) / room)
    out[KINDS + 11] = clip((room - going - peak) / room)


@kernel(inline=True)
def _going_bytes(params: Params, request: Request) -> int:
    """The most that an admitted request is going to hold between its steps, bytes."""
    mode = params.modes[request.mode]
    kept = kept_bytes(mode, request.prompt, params.config[0].output_most)
    if request.status == DECODE:
        return kept
    return max(kept, resident_bytes(mode, request.prompt))


@kernel
def _observe_candidates(
    state: State, params: Params, lane: int, going: int, rest: NDArray[np.float32]
) -> None:
    """Write a row for each action; that of one that is not allowed is all zeros."""
    episode, config = state.lane[lane], params.config[0]
    held = held_bytes(state, params, lane, -1)
    for action in range(rest.shape[0] // FEATURES):
        out = rest[action * FEATURES : (action + 1) * FEATURES]
        for k in range(FEATURES):
            out[k] = 0.0
        if not allowed(state, params, lane, action):
            continue
        kind, which, mode = kind_of(config, action)
        out[kind] = 1.0
        if kind == ADMIT:
            request = state.request[lane, state.window[lane, which]]
            _row(request, params.modes[mode], config, episode.clock_s, held, going, out)
        elif kind == REJECT:
            request = state.request[lane, state.window[lane, which]]
            _row(request, params.modes[config.paper], config, episode.clock_s, held, going, out)
        elif kind in (RUN, EVICT):
            request = state.request[lane, state.slot[lane, which]]
            others, other_going = (
                held_bytes(state, params, lane, which),
                going - _going_bytes(params, request),
            )
            _row(request, params.modes[request.mode], config, episode.clock_s, others, other_going, out)
        elif kind == DECODING:
            step_s = config.decode_tokens * decode_step_s(state, params, lane)
            out[KINDS + 3] = squash(step_s / config.unit_s)


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
        rest: one row of `ROW` for each action, written, float32 [actions * FEATURES].
    """
    episode, config = state.lane[lane], params.config[0]
    room = float(config.room_bytes)
    prefilling, decoding, going, backlog_s = 0, 0, 0, 0.0
    for j in range(episode.admitted):
        request = state.request[lane, state.slot[lane, j]]
        going += _going_bytes(params, request)
        if request.status == DECODE:
            decoding += 1
        else:
            prefilling += 1
            backlog_s += rest_time_s(params.modes[request.mode], request.prompt, request.done)
    waiting, arrived, oldest_s = 0, episode.oldest, 0.0
    for n in range(episode.oldest, config.requests):
        request = state.request[lane, n]
        if request.arrival_s > episode.clock_s:
            break
        arrived += 1
        if request.status == WAITING:
            waiting += 1
            oldest_s = max(oldest_s, episode.clock_s - request.arrival_s)
    out.waiting = waiting / (waiting + CROWD)
    out.prefilling = prefilling / (prefilling + CROWD)
    out.decoding = decoding / (decoding + CROWD)
    out.seats = episode.admitted / config.seats
    held = held_bytes(state, params, lane, -1)
    out.held = min(held / room, 1.0)
    out.growth = min(max(going - held, 0) / room, 1.0)
    out.backlog = squash(backlog_s / config.unit_s)
    out.queue_age = squash(oldest_s / config.unit_s)
    out.since_decode = squash(episode.since_decode_s / config.unit_s)
    out.decode_s = squash(decode_step_s(state, params, lane) / DECODE_UNIT_S)
    out.pressure = squash(pressure_of(state, params, lane))
    out.lost = min(episode.lost / config.most_lost, 1.0)
    out.finished = (episode.done + episode.rejected + episode.lost) / config.requests
    out.arrived = arrived / config.requests
    out.load = squash(config.load)
    _observe_candidates(state, params, lane, going, rest)
