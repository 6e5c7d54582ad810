"""How a question and its document are drawn: the passages that terms find, those that speak of the facts, what a retrieval opens.

All of it depends on the key of the episode alone. Passages that speak of a fact come first in the table of its key: the right one,
further right ones, outdated ones; then those that terms merely find.
"""

import math

import numpy as np

from llmgym.core.jit import kernel
from llmgym.core.rng import bits, integer, normal, substream, uniform
from llmgym.envs.forage.state import (
    KEYS,
    LIST,
    MOST_CHUNKS,
    NOTHING,
    OUTDATED,
    TERMS,
    TRUE,
    WRONG,
    Key,
    Params,
    Passage,
    State,
)

QUESTION, PASSAGES, DRAWS, AUDIT, EMBEDDING, ANSWERED, LOOKALIKES = 0, 1, 2, 3, 4, 5, 6
"""Sub-streams of the key of an episode. `DRAWS` holds one stream a key, `PASSAGES` one a key and part."""
MOST_COPIES = 2
"""Further right passages of a fact, and outdated ones, at most."""
REFERENCE_CHUNKS, GROWTH = 256.0, 0.1
"""The number of passages that a term finds is that of 256 parts, times parts / 256 to this power."""
NEW_KEY, NEW_PASSAGE = Key.blank, Passage.blank


@kernel(inline=True)
def poisson(mean: float, u: float, most: int) -> int:
    """The number, at most `most`, at which the Poisson distribution of this mean passes `u`.

    Args:
        mean: of the distribution.
        u: probability, 0 to 1.
        most: largest number that is returned.

    Returns:
        The number, 0 to `most`.
    """
    term = math.exp(-mean)
    total, count = term, 0
    while u > total and count < most:
        count += 1
        term *= mean / count
        total += term
    return count


@kernel
def _add(state: State, params: Params, lane: int, j: int, chunk: int, claims: int) -> int:
    """Put a passage into the table of a key; its scores depend on key and part alone. Returns where it is."""
    episode, key, config = state.lane[lane], state.key[lane, j], params.config[0]
    n = int(key.passages)
    state.passage[lane, j, n] = NEW_PASSAGE[0]
    passage = state.passage[lane, j, n]
    stream = substream(substream(episode.key, PASSAGES), j * MOST_CHUNKS + chunk)
    passage.chunk = chunk
    passage.claims = claims
    if claims == NOTHING and uniform(stream, 0) < config.false_rate:
        passage.claims = WRONG + chunk
    passage.readable = claims != TRUE or uniform(stream, 1) < config.extract
    passage.line = normal(stream, 2)
    passage.glance = normal(stream, 3)
    passage.rated = normal(stream, 4)
    key.passages = n + 1
    return n


@kernel(inline=True)
def _place(state: State, lane: int, j: int, chunk: int) -> int:
    """Where in the table of a key the passage of a part is; -1 if it is not."""
    for i in range(state.key[lane, j].passages):
        if state.passage[lane, j, i].chunk == chunk:
            return i
    return -1


@kernel
def _draw_list(state: State, params: Params, lane: int, j: int, t: int, copies: int) -> None:
    """Draw which passages term `t` of key `j` finds: those that speak of the fact by chance, others anywhere, `LIST` at most."""
    episode, config = state.lane[lane], params.config[0]
    stream = substream(substream(episode.key, DRAWS), 8 * j + t)
    mean = config.hits[t] * (config.chunks / REFERENCE_CHUNKS) ** GROWTH
    wanted = config.least[t] + poisson(mean, uniform(stream, 0), 4 * LIST)
    mine, others = 0, 0
    for i in range(copies):
        if uniform(stream, 1 + i) < config.listed[t]:
            state.passage[lane, j, i].listed |= 1 << t
            mine += 1
    # a list longer than LIST is cut at a random place: each passage stays with the same chance
    total = wanted + mine
    if total > LIST:
        left = 0
        for i in range(copies):
            if (state.passage[lane, j, i].listed >> t) & 1:
                if uniform(stream, 8 + i) * total < LIST:
                    left += 1
                else:
                    state.passage[lane, j, i].listed &= 255 ^ (1 << t)
        mine = left
    for d in range(wanted):
        if mine + others >= LIST:
            break
        chunk = integer(stream, 16 + d, 0, config.chunks - 1)
        i = _place(state, lane, j, chunk)
        if i < 0:
            i = _add(state, params, lane, j, chunk, NOTHING)
        elif i < copies or (state.passage[lane, j, i].listed >> t) & 1:
            continue
        state.passage[lane, j, i].listed |= 1 << t
        others += 1


@kernel
def _draw_key(state: State, params: Params, lane: int, j: int) -> None:
    """Draw the passages of a key: those that speak of its fact, then its three lists."""
    episode, config = state.lane[lane], params.config[0]
    stream = substream(substream(episode.key, DRAWS), 8 * j + TERMS)
    right = 1 + poisson(config.duplicates, uniform(stream, 0), MOST_COPIES)
    outdated = poisson(config.contradictions, uniform(stream, 1), MOST_COPIES)
    draw = 2
    for copy in range(right + outdated):
        while True:
            chunk = integer(stream, draw, 0, config.chunks - 1)
            draw += 1
            taken = _place(state, lane, j, chunk) >= 0
            # the right passages of two facts are never in one part
            for other in range(j):
                taken |= state.passage[lane, other, 0].chunk == chunk and copy == 0
            if not taken:
                break
        _add(state, params, lane, j, chunk, TRUE if copy < right else OUTDATED)
    for t in range(TERMS):
        _draw_list(state, params, lane, j, t, right + outdated)


@kernel
def _copy_key(state: State, params: Params, lane: int, j: int, question: int) -> None:
    """Take the passages of a key from the bank; claims, outdated passages, authority and extraction are drawn all the same."""
    episode, config = state.lane[lane], params.config[0]
    stream = substream(substream(episode.key, DRAWS), 8 * j + TERMS)
    outdated = poisson(config.contradictions, uniform(stream, 1), MOST_COPIES)
    right = 1 + poisson(config.duplicates, uniform(stream, 0), MOST_COPIES)
    key = state.key[lane, j]
    for i in range(params.sizes[question, j]):
        passage = state.passage[lane, j, key.passages]
        passage.claims = NOTHING
        state.passage[lane, j, key.passages] = params.bank[question, j, i]
        passage = state.passage[lane, j, key.passages]
        draws = substream(substream(episode.key, PASSAGES), j * MOST_CHUNKS + passage.chunk)
        if passage.claims == TRUE:
            # copies that this question does not have are not in its document
            if right == 0:
                continue
            right -= 1
        elif passage.claims == OUTDATED:
            if outdated == 0:
                continue
            outdated -= 1
        elif uniform(draws, 0) < config.false_rate:
            passage.claims = WRONG + passage.chunk
        passage.readable = passage.claims != TRUE or uniform(draws, 1) < config.extract
        passage.rated = normal(draws, 4)
        key.passages += 1


@kernel
def draw_world(state: State, params: Params, lane: int) -> None:
    """Draw the question, its price and all passages; `state.lane[lane].key` says which.

    Args:
        state: arrays of all lanes, written to.
        params: what all lanes share.
        lane: the lane that gets the question.
    """
    episode, config = state.lane[lane], params.config[0]
    stream = substream(episode.key, QUESTION)
    u = uniform(stream, 0)
    episode.facts = 1
    while episode.facts < KEYS and u >= config.facts[episode.facts - 1]:
        episode.facts += 1
    episode.chain = uniform(stream, 1) < config.chain
    episode.price = config.price_low * (config.price_high / config.price_low) ** uniform(stream, 2)
    questions = params.sizes.shape[0]
    question = int(bits(stream, 3) % np.uint64(max(questions, 1)))
    episode.checksum = episode.facts + (1.0 if episode.chain else 0.0) + episode.price + question
    for j in range(KEYS):
        state.key[lane, j] = NEW_KEY[0]
        if questions > 0:
            _copy_key(state, params, lane, j, question)
        else:
            _draw_key(state, params, lane, j)
        for i in range(state.key[lane, j].passages):
            passage = state.passage[lane, j, i]
            episode.checksum += passage.chunk + passage.listed + 0.001 * passage.claims + passage.line


@kernel(inline=True)
def speaking(state: State, lane: int, j: int) -> int:
    """How many passages of a key speak of its fact, rightly or not; they come first.

    Args:
        state: arrays of all lanes.
        lane: the lane that is asked about.
        j: number of the key, 0 to 3.

    Returns:
        Their number.
    """
    n = 0
    while n < state.key[lane, j].passages and (
        state.passage[lane, j, n].claims == TRUE or state.passage[lane, j, n].claims == OUTDATED
    ):
        n += 1
    return n


@kernel
def rank(state: State, params: Params, lane: int, focus: int, sound: bool) -> None:
    """Find how many parts an embedding prefers to each passage that speaks of a fact, and write it to `ahead`.

    The score of a part is standard normal, and higher by `retrieval_gap` where it holds a fact that is asked for, by `hop_gap`
    where only another fact leads to it. Where scores were measured, so were the ranks.

    Args:
        state: arrays of all lanes.
        params: what all lanes share.
        lane: which.
        focus: key that is asked for; -1 for the question as a whole.
        sound: whether that key is asked for by its right name.
    """
    episode, config = state.lane[lane], params.config[0]
    first, last = (0, episode.facts - 1) if focus < 0 else (focus, focus)
    measured = params.sizes.shape[0] > 0
    stream = substream(substream(episode.key, EMBEDDING), focus + 1)
    for j in range(first, last + 1):
        gap = config.hop_gap if focus < 0 and episode.chain and j > 0 else config.retrieval_gap
        for i in range(speaking(state, lane, j)):
            passage = state.passage[lane, j, i]
            passage.ahead = 0
            if measured:
                hop = focus < 0 and episode.chain and j > 0
                # the question as a whole was measured with all four facts in it
                passage.ahead = passage.rank[0 if focus < 0 and episode.facts > 1 else 1]
                if hop or not sound:
                    # nobody has asked for it: it is anywhere
                    passage.ahead = integer(stream, passage.chunk, 0, config.chunks - 1)
            else:
                passage.score = normal(stream, passage.chunk) + (gap if sound else 0.0)
    if measured:
        return
    for chunk in range(config.chunks):
        z = normal(stream, chunk)
        for j in range(first, last + 1):
            for i in range(speaking(state, lane, j)):
                passage = state.passage[lane, j, i]
                if chunk != passage.chunk and z > passage.score:
                    passage.ahead += 1
    # those that are lifted themselves
    for j in range(first, last + 1):
        for i in range(speaking(state, lane, j)):
            passage = state.passage[lane, j, i]
            for k in range(first, last + 1):
                for m in range(speaking(state, lane, k)):
                    other = state.passage[lane, k, m]
                    if other.score > passage.score >= normal(stream, other.chunk):
                        passage.ahead += 1
