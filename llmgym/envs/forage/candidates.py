"""The candidates of the key in focus: passages of its latest list that are not opened yet, and how likely each is the right one."""

import math

from llmgym.core.jit import kernel
from llmgym.envs.forage.law import weight
from llmgym.envs.forage.state import CURRENT, OPENED, SCANNED, SLOTS, Params, State


@kernel
def _weight(state: State, params: Params, lane: int, j: int, i: int) -> float:
    """Weight of a passage of the latest list: its prior times the likelihood ratios of the scores that were seen of it."""
    config, key, passage = params.config[0], state.key[lane, j], state.passage[lane, j, i]
    w = weight(config.listed[key.term - 1], key.hits, passage.snippet, config.snippet_gap)
    if passage.seen & SCANNED:
        w *= math.exp(config.scan_gap * passage.scan - 0.5 * config.scan_gap * config.scan_gap)
    return w


@kernel
def order(state: State, params: Params, lane: int) -> None:
    """Write the candidates of the focus, the likeliest first, with the posterior of each and of none of them being right.

    As if one passage alone were right, and found by the term with the probability that the scenario says: then the posteriors of
    all unopened passages of the list and of none add up to 1. Ties are in the order of the document.

    Args:
        state: arrays of all lanes; `slot`, `posterior` and the episode are written to.
        params: what all lanes share.
        lane: the lane that is asked about.
    """
    episode = state.lane[lane]
    j = episode.focus
    key = state.key[lane, j]
    count, total = 0, 0.0
    for i in range(key.passages if key.term > 0 else 0):
        passage = state.passage[lane, j, i]
        if passage.seen & CURRENT == 0 or passage.seen & OPENED:
            continue
        w = _weight(state, params, lane, j, i)
        total += w
        place = min(count, SLOTS)
        while place > 0:
            before = state.posterior[lane, place - 1]
            ahead = state.passage[lane, j, state.slot[lane, place - 1]]
            if before > w or (before == w and ahead.chunk < passage.chunk):
                break
            if place < SLOTS:
                state.posterior[lane, place] = before
                state.slot[lane, place] = state.slot[lane, place - 1]
            place -= 1
        if place < SLOTS:
            state.posterior[lane, place] = w
            state.slot[lane, place] = i
        count = min(count + 1, SLOTS)
    missed = 1.0 - params.config[0].listed[key.term - 1] if key.term > 0 else 1.0
    total += missed
    for slot in range(SLOTS):
        if slot < count:
            state.posterior[lane, slot] /= total
        else:
            state.posterior[lane, slot] = 0.0
            state.slot[lane, slot] = 0
    episode.candidates = count
    episode.null = missed / total
