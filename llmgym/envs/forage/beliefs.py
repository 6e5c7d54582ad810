"""What an agent has read and written down: claims, the epistemic state E, its evaluation, and what an answer is worth.

E holds one claim a key, with its source. Only `commit` writes to it and only `evaluate` removes from it; the answer from E reads
nothing else.
"""

from llmgym.core.jit import kernel
from llmgym.core.rng import normal, substream, uniform
from llmgym.envs.forage.law import diluted, guessed
from llmgym.envs.forage.state import (
    CURRENT,
    GAPS,
    KEYS,
    MOST_CHUNKS,
    NOTHING,
    OPENED,
    OUTDATED,
    SUFFICIENT,
    TRUE,
    WRONG,
    Params,
    State,
)
from llmgym.envs.forage.world import AUDIT, LOOKALIKES, speaking

_SPURIOUS, _WHICH = 2 * KEYS, 2 * KEYS + 1
"""Draws of an evaluation after two for each key."""


@kernel(inline=True)
def believed(state: State, lane: int, j: int) -> int:
    """The claim that an agent goes by: that in E, or else one that it has read; `NOTHING` if there is none.

    Args:
        state: arrays of all lanes.
        lane: the lane that is asked about.
        j: number of the key, 0 to 3.

    Returns:
        `NOTHING`, `TRUE`, `OUTDATED`, or a wrong claim, `WRONG` or more.
    """
    key = state.key[lane, j]
    return int(key.claim) if key.claim != NOTHING else int(key.pending)


@kernel(inline=True)
def known(state: State, lane: int, j: int) -> bool:
    """Whether it is known what to look for: always, but on a chain only with a claim for the fact before.

    Args:
        state: arrays of all lanes.
        lane: the lane that is asked about.
        j: number of the key, 0 to 3.

    Returns:
        True where it is known.
    """
    return not state.lane[lane].chain or j == 0 or believed(state, lane, j - 1) != NOTHING


@kernel(inline=True)
def sound(state: State, lane: int, j: int) -> bool:
    """Whether what is looked for is the right thing: on a chain all claims before are true.

    Args:
        state: arrays of all lanes.
        lane: the lane that is asked about.
        j: number of the key, 0 to 3.

    Returns:
        True where it is.
    """
    if state.lane[lane].chain:
        for i in range(j):
            if believed(state, lane, i) != TRUE:
                return False
    return True


@kernel(inline=True)
def held(state: State, lane: int) -> int:
    """How many keys E has a claim for."""
    count = 0
    for j in range(state.lane[lane].facts):
        if state.key[lane, j].claim != NOTHING:
            count += 1
    return count


@kernel
def take(state: State, lane: int, j: int, i: int, gap: float) -> None:
    """Open a passage of a key: what it claims is pending then.

    Args:
        state: arrays of all lanes, written to.
        lane: the lane that reads.
        j: number of the key, 0 to 3.
        i: number of the passage among those of the key.
        gap: how much higher the source of a true claim is rated, in standard deviations.
    """
    key, passage = state.key[lane, j], state.passage[lane, j, i]
    passage.seen |= OPENED
    claims = passage.claims
    speaks = claims in (TRUE, OUTDATED)
    if claims == NOTHING or not passage.readable or (speaks and not sound(state, lane, j)):
        return
    key.pending = claims
    key.pending_source = passage.chunk
    key.authority = passage.rated + (gap if claims == TRUE else 0.0)
    if claims == TRUE:
        key.seen_true = True
    else:
        key.seen_false += 1


@kernel
def begin_again(state: State, lane: int, j: int) -> None:
    """Forget what was listed and written for a key: on a chain, where the fact before has changed, it asks for something else.

    Args:
        state: arrays of all lanes, written to.
        lane: the lane that forgets.
        j: number of the key, 0 to 3.
    """
    key = state.key[lane, j]
    key.term = key.hits = key.claim = key.source = key.support = 0
    key.pending = key.pending_source = 0
    key.authority = 0.0
    for i in range(key.passages):
        passage = state.passage[lane, j, i]
        passage.seen = 0
        passage.snippet = passage.scan = 0.0


@kernel
def commit(state: State, lane: int, j: int) -> None:
    """Write the pending claim to E. The same claim from another source supports it, another one takes its place.

    Args:
        state: arrays of all lanes, written to.
        lane: the lane that writes.
        j: number of the key, 0 to 3.
    """
    key = state.key[lane, j]
    if key.claim == key.pending:
        if key.source != key.pending_source:
            key.support += 1
    else:
        if key.claim != NOTHING and state.lane[lane].chain:
            for later in range(j + 1, KEYS):
                begin_again(state, lane, later)
        key.claim = key.pending
        key.support = 1
    key.source = key.pending_source
    key.pending = key.pending_source = 0
    key.authority = 0.0


@kernel
def evaluate(state: State, params: Params, lane: int) -> None:
    """Ask an auditor who sees the question and E alone: false claims may be exposed and go, missing facts may be overlooked.

    Args:
        state: arrays of all lanes, written to.
        params: what all lanes share.
        lane: the lane that asks.
    """
    episode, config = state.lane[lane], params.config[0]
    stream = substream(substream(episode.key, AUDIT), episode.evaluations)
    episode.evaluations += 1
    gaps = 0
    for j in range(episode.facts):
        key = state.key[lane, j]
        key.reported = False
        if key.claim != NOTHING and key.claim != TRUE and uniform(stream, 2 * j) < config.expose:
            key.claim = key.source = key.support = 0
            key.reported = True
            gaps += 1
            if episode.chain:
                for later in range(j + 1, KEYS):
                    begin_again(state, lane, later)
    for j in range(episode.facts):
        key = state.key[lane, j]
        missing = key.claim == NOTHING and not key.reported
        if missing and uniform(stream, 2 * j + 1) >= config.overlook:
            key.reported = True
            gaps += 1
    if gaps == 0 and uniform(stream, _SPURIOUS) < config.spurious:
        state.key[lane, int(uniform(stream, _WHICH) * episode.facts)].reported = True
        gaps = 1
    episode.verdict = SUFFICIENT if gaps == 0 else GAPS


@kernel
def known_from_e(state: State, params: Params, lane: int) -> float:
    """Probability that the answer follows from E: all facts are held, and each is used correctly.

    Args:
        state: arrays of all lanes.
        params: what all lanes share.
        lane: the lane that is asked about.

    Returns:
        Probability, guesses not included.
    """
    right = 1.0
    for j in range(state.lane[lane].facts):
        right *= params.config[0].keep if state.key[lane, j].claim == TRUE else 0.0
    return right


@kernel
def known_from_context(state: State, params: Params, lane: int) -> float:
    """Probability that the answer follows from all that was read: false claims mislead, and length dilutes.

    Args:
        state: arrays of all lanes.
        params: what all lanes share.
        lane: the lane that is asked about.

    Returns:
        Probability, guesses not included.
    """
    episode, config = state.lane[lane], params.config[0]
    right = 1.0
    for j in range(episode.facts):
        key = state.key[lane, j]
        right *= (config.keep if key.seen_true else 0.0) * config.mislead**key.seen_false
    return right * diluted(episode.tokens, config.dilution_tokens, config.dilution_power)


@kernel
def known_from_whole(state: State, params: Params, lane: int) -> float:
    """Accuracy, guesses included, of reading the document whole: outdated passages mislead, and length dilutes.

    Args:
        state: arrays of all lanes.
        params: what all lanes share.
        lane: the lane that is asked about.

    Returns:
        Accuracy, 0 to 1.
    """
    config = params.config[0]
    length = float(config.chunks) * config.chunk_tokens
    right = max(config.whole_best - config.guess, 0.0) / (1.0 - config.guess)
    right *= diluted(length, config.dilution_tokens, config.dilution_power)
    for j in range(state.lane[lane].facts):
        for i in range(speaking(state, lane, j)):
            if state.passage[lane, j, i].claims == OUTDATED:
                right *= config.mislead
    return guessed(right, config.guess)


@kernel
def open_retrieved(state: State, params: Params, lane: int, focus: int, depth: int) -> None:
    """Open the parts that an embedding ranks first; of several claims for a key the one that ranks highest is pending then.

    Args:
        state: arrays of all lanes, with the ranks of this retrieval in `ahead`.
        params: what all lanes share.
        lane: which.
        focus: key that was asked for; -1 for the question as a whole.
        depth: parts that are opened.
    """
    episode, config = state.lane[lane], params.config[0]
    first, last = (0, episode.facts - 1) if focus < 0 else (focus, focus)
    for j in range(first, last + 1):
        stream = substream(substream(episode.key, LOOKALIKES), (KEYS + 1) * j + focus + 1)
        key, count = state.key[lane, j], speaking(state, lane, j)
        for place in range(depth - 1, -1, -1):  # the best last, so that it is what is pending
            taken = False
            for i in range(count):
                passage = state.passage[lane, j, i]
                if passage.ahead == place:
                    taken = True
                    if passage.seen & OPENED == 0:
                        take(state, lane, j, i, config.authority_gap)
            if not taken and uniform(stream, 2 * place) < config.retrieval_false:
                key.pending = WRONG + MOST_CHUNKS * (focus + 2) + place
                key.pending_source = MOST_CHUNKS * (focus + 2) + place
                key.authority = normal(stream, 2 * place + 1)
                key.seen_false += 1


@kernel
def read_on(state: State, params: Params, lane: int, parts: int) -> None:
    """Open the next parts in order; a reader who has all before it in view is misled by no passage that merely looks alike.

    A fact is recognised where it is known what to look for, of which the parts before in this call are a part too.

    Args:
        state: arrays of all lanes, written to.
        params: what all lanes share.
        lane: the lane that reads.
        parts: how many.
    """
    episode, config = state.lane[lane], params.config[0]
    for chunk in range(episode.next_chunk, episode.next_chunk + parts):
        for j in range(episode.facts):
            if believed(state, lane, j) != NOTHING or not known(state, lane, j):
                continue
            for i in range(speaking(state, lane, j)):
                if state.passage[lane, j, i].chunk == chunk:
                    take(state, lane, j, i, config.authority_gap)


@kernel
def list_hits(state: State, params: Params, lane: int, j: int) -> int:
    """List what the next term of a key finds, with the scores of the lines.

    Args:
        state: arrays of all lanes, written to.
        params: what all lanes share.
        lane: the lane that searches.
        j: number of the key, 0 to 3.

    Returns:
        How many passages the term finds.
    """
    key, config = state.key[lane, j], params.config[0]
    gap = config.snippet_gap if sound(state, lane, j) else 0.0
    hits = 0
    for i in range(key.passages):
        passage = state.passage[lane, j, i]
        passage.seen &= 255 ^ CURRENT
        if (passage.listed >> key.term) & 1:
            speaks = passage.claims == TRUE or passage.claims == OUTDATED
            passage.snippet = passage.line + (gap if speaks else 0.0)
            passage.seen |= CURRENT
            hits += 1
    key.term += 1
    key.hits = hits
    return hits
