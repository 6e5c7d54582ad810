"""Text of phrases in a lane: drawn when an episode begins, asked about through the exact denoiser, drawn anew for tests.

See `llmgym.envs.unmask.process` for the language, and `llmgym.envs.unmask.denoiser` for the sums.
"""

import math

import numpy as np
from numpy.typing import NDArray

from llmgym.core.jit import kernel
from llmgym.core.rng import substream, uniform
from llmgym.envs.unmask.denoiser import advance, copy_law, draw_text, evidence, messages, normalise, weigh
from llmgym.envs.unmask.state import Episode, Params, State

WORLD, TEXT, DRAWS = 0, 1, 2
"""Sub-streams of the key of an episode: what it is about, the true text, and a uniform number for each position."""


@kernel(inline=True)
def begin_of(episode: Episode, params: Params) -> int:
    """Index of the first token of the present block in `State.token`."""
    return params.config[0].prompt + episode.block * params.config[0].block


@kernel(inline=True)
def distances(masked: NDArray[np.int8], i: int) -> tuple[int, int]:
    """Tokens to the nearest known one on the left, and on the right (beyond the block where there is none)."""
    left, right = 1, 1
    while left <= i and masked[i - left] != 0:
        left += 1
    while i + right < masked.shape[0] and masked[i + right] != 0:
        right += 1
    return left, right if i + right < masked.shape[0] else masked.shape[0] + 1


@kernel
def _draw(
    state: State, params: Params, lane: int, key: np.uint64, s: int, first: int, known: NDArray[np.int16]
) -> None:
    """Draw the true text of a stream from its position `first` on, at which `known` begins."""
    episode, config = state.lane[lane], params.config[0]
    language = episode.process
    draw_text(
        key,
        first,
        episode.streams,
        known,
        state.prior[lane, s],
        params.lengths[language],
        params.words[language],
        params.onward[language],
        config.noise,
        config.vocabulary,
        config.miss,
        state.ends[lane],
        state.truth[lane],
    )


@kernel
def _follow(state: State, params: Params, lane: int, s: int, first: int, stop: int) -> None:
    """Take the tokens of a stream from `first` to before `stop` into its prior."""
    episode = state.lane[lane]
    language, prior = episode.process, state.prior[lane, s]
    for i in range(first, stop, episode.streams):
        advance(
            state.token[lane, i],
            prior,
            params.lengths[language],
            params.words[language],
            params.onward[language],
            params.config[0].miss,
            state.tail[lane],
        )
        normalise(prior)


@kernel
def begin_text(state: State, params: Params, lane: int) -> None:
    """Draw the true text of the language, and take the prompt into the priors.

    Args:
        state: arrays of all lanes, written to.
        params: what all lanes share.
        lane: the lane that begins a text.
    """
    episode, config = state.lane[lane], params.config[0]
    truth, token = state.truth[lane], state.token[lane]
    for s in range(episode.streams):
        copy_law(params.start[episode.process], state.prior[lane, s])
        _draw(state, params, lane, substream(episode.key, TEXT), s, s, token[:0])
    for i in range(config.prompt):
        token[i] = truth[i]
    for s in range(episode.streams):
        _follow(state, params, lane, s, s, config.prompt)


@kernel
def end_block(state: State, params: Params, lane: int, begin: int) -> None:
    """Take a full block into the priors of the streams.

    Args:
        state: arrays of all lanes; `prior` is written to.
        params: what all lanes share.
        lane: the lane that has filled the block.
        begin: index of its first token in `state.token`, the prompt included.
    """
    streams = state.lane[lane].streams
    for s in range(streams):
        _follow(state, params, lane, s, begin + (s - begin) % streams, begin + params.config[0].block)


@kernel
def denoise_phrases(state: State, params: Params, lane: int) -> None:
    """Ask the exact denoiser: write what it says of all positions of the block, and the probability of what is known of it.

    Args:
        state: arrays of all lanes; `position`, `log_here` and scratch are written to.
        params: what all lanes share.
        lane: the lane that asks the denoiser.
    """
    episode, config = state.lane[lane], params.config[0]
    language, streams = episode.process, episode.streams
    lengths, words = params.lengths[language], params.words[language]
    onward, back = params.onward[language], params.back[language]
    begin = begin_of(episode, params)
    ends, now, law = state.ends[lane], state.now[lane], state.law[lane, : config.vocabulary]
    log_here = 0.0
    for s in range(streams):
        first = (s - begin) % streams
        known = state.token[lane, begin + first : begin + config.block : streams]
        messages(known, lengths, words, back, config.miss, ends)
        log_here += math.log(evidence(known, state.prior[lane, s], lengths, words, config.miss, ends))
        copy_law(state.prior[lane, s], now)
        left = 0
        for t in range(known.shape[0]):
            left += 1 if known[t] < 0 else 0
        log_here += (known.shape[0] - left) * math.log(config.match)
        for t in range(known.shape[0]):
            i = first + t * streams
            if known[t] < 0:
                weigh(known, t, now, lengths, words, config.noise, config.miss, ends, law)
                _disturb(state, params, lane, i, law)
                _describe(state, params, lane, i, law)
                left -= 1
            else:
                position = state.position[lane, i]
                position.confidence, position.margin, position.entropy, position.fall = 1.0, 1.0, 0.0, 0.0
            if left == 0 and known[t] < 0:
                # nothing to say of what follows but that it is known
                for later in range(t + 1, known.shape[0]):
                    position = state.position[lane, first + later * streams]
                    position.confidence, position.margin, position.entropy, position.fall = 1.0, 1.0, 0.0, 0.0
                break
            if left > 0:
                advance(known[t], now, lengths, words, onward, config.miss, state.tail[lane])
    episode.log_here = log_here


@kernel
def _disturb(state: State, params: Params, lane: int, i: int, law: NDArray[np.float64]) -> None:
    """Mix the error of the denoiser into a marginal: more of the uniform law, the farther what is known."""
    config = params.config[0]
    if config.denoiser_error <= 0.0:
        return
    left, right = distances(state.masked[lane], i)
    weight = config.denoiser_error * (1.0 - math.exp((1.0 - min(left, right)) / config.error_tokens))
    for v in range(law.shape[0]):
        law[v] = (1.0 - weight) * law[v] + weight / law.shape[0]


@kernel
def _describe(state: State, params: Params, lane: int, i: int, law: NDArray[np.float64]) -> None:
    """Write what a marginal says of a position, and the token that it would be given."""
    episode, config = state.lane[lane], params.config[0]
    position = state.position[lane, i]
    at = begin_of(episode, params) + i
    first, second, likeliest, entropy = 0.0, 0.0, 0, 0.0
    left, drawn = uniform(substream(episode.key, DRAWS), at), -1
    for v in range(law.shape[0]):
        mass = law[v]
        if mass > first:
            first, second, likeliest = mass, first, v
        elif mass > second:
            second = mass
        if mass > 0.0:
            entropy -= mass * math.log(mass)
            if left > 0.0:
                drawn = v
                left -= mass
    if config.score != 0:
        drawn = state.truth[lane, at]
    entropy = max(entropy, 0.0)
    position.fall = position.entropy - entropy
    position.confidence, position.margin, position.entropy = first, first - second, entropy
    position.drawn, position.log_drawn = drawn, math.log(law[drawn])
    position.right = 1 if drawn == likeliest else 0


@kernel
def redraw_text(state: State, params: Params, lane: int) -> None:
    """Draw the masked tokens of the true text anew by the key of the episode, given those that are known.

    Args:
        state: arrays of all lanes; `truth`, `position` and scratch are written to.
        params: what all lanes share.
        lane: the lane that gets another text.
    """
    episode, config = state.lane[lane], params.config[0]
    begin, language = begin_of(episode, params), episode.process
    for s in range(episode.streams):
        first = (s - begin) % episode.streams
        known = state.token[lane, begin + first : begin + config.block : episode.streams]
        messages(
            known,
            params.lengths[language],
            params.words[language],
            params.back[language],
            config.miss,
            state.ends[lane],
        )
        _draw(state, params, lane, substream(episode.key, TEXT), s, begin + first, known)
    here = episode.log_here
    denoise_phrases(state, params, lane)
    episode.log_here = here
