"""The compiled functions of Unmask: choose positions, fire the denoiser, reveal. See `llmgym.envs.unmask.env`."""

import math

import numpy as np
from numpy.typing import NDArray

from llmgym.core.jit import kernel
from llmgym.core.lanes import Kernels
from llmgym.core.rng import integer, substream, uniform
from llmgym.core.statistics import ratio
from llmgym.envs.unmask.excerpts import damage_of_chosen, denoise_excerpt, log_true
from llmgym.envs.unmask.phrases import (
    WORLD,
    begin_of,
    begin_text,
    denoise_phrases,
    distances,
    end_block,
    redraw_text,
)
from llmgym.envs.unmask.planners import best_spaced, bits, budget, next_level, top
from llmgym.envs.unmask.state import (
    CHOSEN,
    CONFIDENCE,
    ENTROPY,
    FALL,
    FEATURES,
    LEFT,
    LEVEL,
    MACROS,
    MARGIN,
    MASKED,
    NEAR,
    PATIENCE,
    PLACE,
    PRICE_DECADES,
    RIGHT,
    Episode,
    Metrics,
    Observation,
    Params,
    Position,
    State,
)

EXCERPTS = 3
"""Sub-stream of the key of an episode: the blocks of measured text; others are those of `llmgym.envs.unmask.phrases`."""
EMPTY, UNSEEN = Episode.blank, Position.blank
COLUMNS = len(FEATURES)
SURE_1, SURE_8, EB_05, EB_2, SPACED, ALL = 1, 4, 5, 7, 8, 9
"""Macro actions; see `llmgym.envs.unmask.state.MACROS`."""
SPACED_PARTS = 4
"""The macro `spaced` reveals a quarter of what is masked."""


@kernel
def reset_lane(state: State, params: Params, lane: int, key: np.uint64) -> None:
    """Draw language, price and prompt; nothing of the first block is known.

    Args:
        state: arrays of all lanes, written to.
        params: what all lanes share.
        lane: the lane that begins anew.
        key: seeds everything that is drawn in the episode.
    """
    state.lane[lane] = EMPTY[0]
    episode, config = state.lane[lane], params.config[0]
    world = substream(key, WORLD)
    episode.key = key
    episode.process = integer(world, 0, 0, config.processes - 1)
    episode.kind = integer(world, 1, 0, params.streams.shape[0] - 1)
    episode.streams = params.streams[episode.kind]
    episode.price = config.lambda_low * (config.lambda_high / config.lambda_low) ** uniform(world, 2)
    for i in range(state.token.shape[1]):
        state.token[lane, i] = -1
    if config.measured == 0:
        begin_text(state, params, lane)
    episode.checksum = checksum_of(state, params, lane)
    for i in range(config.tokens):
        state.call_of[lane, i] = -1
        state.gap[lane, i] = 0.0
    _begin_block(state, params, lane)


@kernel(inline=True)
def _excerpt_of(episode: Episode, params: Params, block: int) -> int:
    """The measured block that a block of the text is."""
    return integer(substream(episode.key, EXCERPTS), block, 0, params.measured.shape[0] - 1)


@kernel
def checksum_of(state: State, params: Params, lane: int) -> float:
    """Sum of all that was drawn at the start, weighted by its place.

    Args:
        state: arrays of all lanes.
        params: what all lanes share.
        lane: the lane that is asked about.

    Returns:
        The sum; equal for equal worlds.
    """
    episode, truth = state.lane[lane], state.truth[lane]
    total = episode.process + episode.streams + episode.price
    for i in range(truth.shape[0]):
        total += (i + 1.0) * truth[i]
    if params.config[0].measured != 0:
        for b in range(params.call_s.shape[0]):
            total += (b + 1.0) * _excerpt_of(episode, params, b)
    return total


@kernel
def redraw_lane(state: State, params: Params, lane: int, key: np.uint64) -> None:
    """Draw anew all that is still to come of a text, given what is known of it, and the numbers that tokens are drawn by.

    Args:
        state: arrays of all lanes, written to.
        params: what all lanes share.
        lane: the lane that gets another future.
        key: of the new draws, which takes the place of the episode's.
    """
    episode, config = state.lane[lane], params.config[0]
    episode.key = key
    if config.measured == 0 and episode.revealed < config.tokens:
        redraw_text(state, params, lane)
    episode.checksum = checksum_of(state, params, lane)


@kernel
def denoise(state: State, params: Params, lane: int) -> None:
    """Ask the denoiser: write what it says of all positions of the block.

    Args:
        state: arrays of all lanes; `position` and scratch are written to.
        params: what all lanes share.
        lane: the lane that asks the denoiser.
    """
    if params.config[0].measured != 0:
        denoise_excerpt(state, params, lane)
    else:
        denoise_phrases(state, params, lane)


@kernel
def _begin_block(state: State, params: Params, lane: int) -> None:
    """Mask a block and ask the denoiser for it. (That is part of the call that will reveal its first tokens.)"""
    for i in range(params.config[0].block):
        state.masked[lane, i] = 1
        state.chosen[lane, i] = 0
        state.position[lane, i] = UNSEEN[0]
    episode = state.lane[lane]
    episode.calls_here = 0
    episode.excerpt = _excerpt_of(episode, params, episode.block)
    denoise(state, params, lane)
    episode.log_here = 0.0
    for i in range(params.config[0].block):
        state.position[lane, i].fall = 0.0


@kernel
def fire(state: State, params: Params, lane: int) -> tuple[float, bool, float]:
    """One denoiser call: reveal the chosen positions, which are masked and at least one.

    Args:
        state: arrays of all lanes, written to.
        params: what all lanes share.
        lane: the lane that makes the call.

    Returns:
        The reward, whether the text is complete, and what the call took, seconds.
    """
    episode, config = state.lane[lane], params.config[0]
    masked, chosen, begin = state.masked[lane], state.chosen[lane], begin_of(episode, params)
    cost, took_s = params.call_cost[episode.block], params.call_s[episode.block]
    log_drawn, log_joint, before, last, left = 0.0, 0.0, episode.log_here, -1, 0
    if config.measured != 0:
        episode.damage += damage_of_chosen(state, params, lane)
    for i in range(config.block):
        if chosen[i] != 0:
            position = state.position[lane, i]
            state.token[lane, begin + i] = position.drawn
            state.call_of[lane, begin + i - config.prompt] = episode.calls
            log_drawn += position.log_drawn
            episode.right += position.right
            if config.measured != 0:
                log_joint += log_true(state, params, lane, i)
            masked[i], chosen[i] = 0, 0
            episode.revealed += 1
            if last >= 0:
                episode.apart += i - last
                episode.neighbours += 1
            last = i
        left += masked[i]
    denoise(state, params, lane)
    if config.measured != 0:
        episode.log_here += log_joint
    gap = log_drawn - (episode.log_here - before)
    if config.score != 0:
        gap = -gap
    state.gap[lane, episode.calls] = gap
    episode.kl += gap
    episode.worst = max(episode.worst, gap)
    episode.calls += 1
    episode.calls_here += 1
    episode.cost += cost
    episode.clock_s += took_s
    if left == 0:
        episode.log_p += episode.log_here
        episode.log_here = 0.0
        episode.block += 1
        if episode.revealed < config.tokens:
            if config.measured == 0:
                end_block(state, params, lane, begin)
            _begin_block(state, params, lane)
    return -cost - episode.price * gap, episode.revealed == config.tokens, took_s


@kernel
def choose_macro(state: State, params: Params, lane: int, macro: int) -> None:
    """Mark as chosen what one of the known rules would reveal.

    Args:
        state: arrays of all lanes; `chosen` and scratch are written to.
        params: what all lanes share.
        lane: the lane that decides.
        macro: index into `MACROS`.
    """
    masked, chosen = state.masked[lane], state.chosen[lane]
    block = params.config[0].block
    score, entropy = state.law[lane, :block], state.tail[lane, :block]
    left = 0
    for i in range(block):
        left += masked[i]
        score[i] = state.position[lane, i].confidence
        entropy[i] = bits(state.position[lane, i].entropy)
    if macro == 0:
        next_level(masked, params.level, chosen)
    elif macro <= SURE_8:
        top(masked, score, 1 << (macro - SURE_1), chosen)
    elif macro <= EB_2:
        budget(masked, entropy, 0.5 * (1 << (macro - EB_05)), score, chosen)
    elif macro == SPACED:
        best_spaced(masked, score, left // SPACED_PARTS, chosen)
    else:
        for i in range(block):
            chosen[i] = masked[i]


@kernel
def step_lane(
    state: State, params: Params, lane: int, action: NDArray[np.float64]
) -> tuple[float, bool, bool, float]:
    """Choose a position, or fire the call; a masked action does nothing but cost.

    Args:
        state: arrays of all lanes, written to.
        params: what all lanes share.
        lane: the lane that decides.
        action: float64 [1]: a position of the block, the number after them fires; as a set one flag for each position, [block];
            as a macro [1], index into `MACROS`.

    Returns:
        Reward, whether the episode has ended, whether it was cut, and the seconds that have passed.
    """
    episode, config = state.lane[lane], params.config[0]
    masked, chosen = state.masked[lane], state.chosen[lane]
    invalid, fires = False, True
    episode.steps += 1
    if config.set_action == 0:
        which, some = int(action[0]), False
        for i in range(config.block):
            some = some or chosen[i] != 0
        if which < config.block:
            fires = False
            invalid = masked[which] == 0 or chosen[which] != 0
            if not invalid:
                chosen[which] = 1
        else:
            fires = some
            invalid = not some
    elif config.set_action == 1:
        some = False
        for i in range(config.block):
            wanted = action[i] > 0.5
            invalid = invalid or (wanted and masked[i] == 0)
            chosen[i] = 1 if wanted and masked[i] != 0 else 0
            some = some or chosen[i] != 0
        if not some:
            choose_macro(state, params, lane, SURE_1)
    else:
        choose_macro(state, params, lane, int(action[0]))
    reward, ended, took_s = 0.0, False, 0.0
    if fires:
        reward, ended, took_s = fire(state, params, lane)
    if invalid:
        episode.invalid += 1
        episode.penalty += config.invalid_cost
        reward -= config.invalid_cost
    return reward, ended, not ended and episode.steps >= PATIENCE * config.tokens, took_s


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
        rest: one row of `FEATURES` for each position, written, float32 [block * COLUMNS].
    """
    episode, config = state.lane[lane], params.config[0]
    masked, chosen, block = state.masked[lane], state.chosen[lane], config.block
    scale, levels = math.log(config.vocabulary), 0
    left, marked = 0, 0
    for i in range(block):
        left += masked[i]
        marked += chosen[i]
        levels = max(levels, params.level[i] + 1)
    out.block = episode.block * block / config.tokens
    out.calls = episode.calls / config.tokens
    out.masked = left / block
    out.calls_here = episode.calls_here / block
    out.chosen = marked / block
    out.price = math.log10(episode.price) / PRICE_DECADES
    cost = params.call_cost[min(episode.block, params.call_cost.shape[0] - 1)]
    out.call = cost / (1.0 + cost)
    out.streams = 0.25 * episode.streams if config.show_interleave != 0 else 0.0
    for i in range(block):
        position, row = state.position[lane, i], rest[COLUMNS * i : COLUMNS * (i + 1)]
        before, after = distances(masked, i)
        near = block
        for j in range(block):
            if chosen[j] != 0 and j != i:
                near = min(near, abs(i - j))
        row[MASKED] = masked[i]
        row[CHOSEN] = chosen[i]
        row[CONFIDENCE] = position.confidence
        row[ENTROPY] = min(position.entropy / scale, 1.0)
        row[MARGIN] = position.margin
        row[LEFT] = min(before / block, 1.0)
        row[RIGHT] = min(after / block, 1.0)
        row[NEAR] = near / block
        row[PLACE] = i / (block - 1.0)
        row[LEVEL] = params.level[i] / max(levels - 1.0, 1.0)
        row[FALL] = min(max(position.fall / scale, -1.0), 1.0)


@kernel
def mask_lane(state: State, params: Params, lane: int, out: NDArray[np.int8]) -> None:
    """Write what is allowed: a masked position that is not chosen, firing once one is; as a set any masked ones; every macro.

    Args:
        state: arrays of all lanes.
        params: what all lanes share.
        lane: the lane that decides.
        out: 1 for what is allowed, else 0, written, int8 [block + 1]; as a set [2 * block], not to choose and to choose each
            position; as macros [macros].
    """
    config = params.config[0]
    masked, chosen = state.masked[lane], state.chosen[lane]
    some = 0
    if config.set_action == 0:
        for i in range(config.block):
            out[i] = 1 if masked[i] != 0 and chosen[i] == 0 else 0
            some += chosen[i]
        # a text that is complete needs an action that is allowed, too
        out[config.block] = 1 if some > 0 or state.lane[lane].revealed == config.tokens else 0
    elif config.set_action == 1:
        for i in range(config.block):
            out[2 * i] = 1
            out[2 * i + 1] = masked[i]
    else:
        for i in range(len(MACROS)):
            out[i] = 1


@kernel
def metrics_lane(state: State, params: Params, lane: int, out: Metrics) -> None:
    """Write the metrics of the episode so far.

    Args:
        state: arrays of all lanes.
        params: what all lanes share.
        lane: the lane that is measured.
        out: the metrics, written.
    """
    episode, config = state.lane[lane], params.config[0]
    calls = float(episode.calls)
    finished = float(episode.block * config.block)
    out.nfe = calls
    out.kl_nats = episode.kl
    out.objective = episode.cost + episode.price * episode.kl
    out.speedup = ratio(float(episode.revealed), calls)
    out.typical = math.nan
    if episode.revealed == config.tokens and config.measured == 0:
        likely = episode.log_p >= params.typical[episode.process, episode.kind]
        out.typical = 1.0 if likely else 0.0
    out.accuracy = ratio(float(episode.right), float(episode.revealed if config.score != 0 else 0))
    out.scorer_nats = episode.damage if config.measured != 0 else math.nan
    out.nll_nats_per_token = ratio(-episode.log_p, finished)
    out.time_s = episode.clock_s
    out.cost_calls = episode.cost
    out.lambda_calls_per_nat = episode.price
    out.worst_call_nats = episode.worst if episode.calls > 0 else math.nan
    out.spacing_mean_tokens = ratio(episode.apart, float(episode.neighbours))
    out.interleave = episode.streams
    out.output_tokens = episode.revealed
    out.penalty = episode.penalty
    out.invalid_actions = episode.invalid
    out.world_checksum = episode.checksum


KERNELS = Kernels(reset_lane, step_lane, observe_lane, mask_lane, metrics_lane)
