"""What an engine does when the next batch would not fit into the cache: pause residents, preempt them, or clear the cache.

The functions work on any `state` and `params` with the parts that `llmgym.serving.engine` names.
"""

from typing import Any

from llmgym.core import rng
from llmgym.core.jit import kernel
from llmgym.serving.requests import in_blocks
from llmgym.serving.residents import decode_all, kv_of, output_so_far, stored_with, unit, wait


@kernel
def bring_back(state: Any, lane: int) -> None:
    """Another way of dealing with overflow is in force now, and it knows no paused residents."""
    episode = state.lane[lane]
    for i in range(episode.residents):
        state.resident[lane, i].paused = 0
    episode.used += episode.swapped
    episode.swapped, episode.paused = 0, 0


@kernel
def pause(state: Any, params: Any, lane: int) -> None:
    """Run residents in order of admission while they fit, hold the others back with their cache swapped out."""
    episode = state.lane[lane]
    config = params.config[0]
    resident = state.resident[lane]
    left = config.budget
    total, used, swapped, paused, walk = 0, 0, 0, 0, -1
    stopped = False
    for i in range(episode.residents):
        r = resident[i]
        kv = kv_of(config, episode.tick, r)
        tokens = unit(config, r, left)
        after = kv + stored_with(
            config, episode.tick, r, tokens
        )  # blocks of one token: pausing knows no others
        if not stopped and total + after <= config.kv_capacity:
            r.run = tokens
            r.paused = 0
            total += after
            used += kv
            left -= tokens
        else:
            r.run = 0
            r.paused = 1
            swapped += kv
            paused += 1
            stopped = episode.skip == 0
        if walk < 0 and (r.decoding == 0 or r.run == 0):
            walk = i
    episode.walk = walk if walk >= 0 else episode.residents
    episode.used = used
    episode.swapped = swapped
    episode.paused = paused
    episode.growth = total - used
    episode.budget_left = left
    episode.blocked = 1 if paused > 0 and episode.skip == 0 else 0


@kernel
def preempt(state: Any, params: Any, lane: int) -> None:
    """Serve residents oldest first; while one does not fit, the youngest loses its cache and waits to be recomputed."""
    episode = state.lane[lane]
    config = params.config[0]
    resident = state.resident[lane]
    left = config.budget
    total = episode.used
    walk = -1
    i = 0
    while i < episode.residents:
        r = resident[i]
        tokens = unit(config, r, left)
        need = stored_with(config, episode.tick, r, tokens)
        while episode.residents > i and total + need > config.kv_capacity:
            total -= evict(state, params, lane, episode.residents - 1, True)
        if episode.residents <= i:
            break
        r.run = tokens
        total += need
        left -= tokens
        if walk < 0 and (r.decoding == 0 or tokens == 0):
            walk = i
        i += 1
    episode.walk = walk if walk >= 0 else episode.residents
    decode_all(state, params, lane)
    episode.growth = total - episode.used
    episode.budget_left = left
    episode.blocked = 1


@kernel
def clear(state: Any, params: Any, lane: int) -> None:
    """Throw out each resident with its progress, with the rule's probability, until the next batch fits."""
    episode = state.lane[lane]
    while episode.residents > 0:
        for i in range(episode.residents - 1, -1, -1):
            if rng.uniform(rng.substream(episode.key, 1), episode.draws) < episode.clear_probability:
                evict(state, params, lane, i, False)
            episode.draws += 1
        if _replan(state, params, lane):
            break
    if episode.residents == 0:
        _replan(state, params, lane)
    episode.blocked = 1


@kernel
def _replan(state: Any, params: Any, lane: int) -> bool:
    episode = state.lane[lane]
    config = params.config[0]
    resident = state.resident[lane]
    left = config.budget
    growth = 0
    episode.walk = episode.residents
    for i in range(episode.residents):
        r = resident[i]
        r.run = unit(config, r, left)
        left -= r.run
        growth += stored_with(config, episode.tick, r, r.run)
        if episode.walk == episode.residents and (r.decoding == 0 or r.run == 0):
            episode.walk = i
    decode_all(state, params, lane)
    episode.growth = growth
    episode.budget_left = left
    return episode.used + growth <= config.kv_capacity


@kernel
def evict(state: Any, params: Any, lane: int, index: int, keep_output: bool) -> int:
    """Take a resident out of the cache and back to the waiting requests; returns the tokens of the blocks that were freed."""
    episode = state.lane[lane]
    config = params.config[0]
    resident = state.resident[lane]
    r = resident[index]
    kv = kv_of(config, episode.tick, r)
    freed = in_blocks(config, kv)
    request = r.request
    state.request[lane, request].kept = output_so_far(episode.tick, r) if keep_output else 0
    if r.paused == 1:
        episode.swapped -= freed
        episode.paused -= 1
    else:
        episode.used -= freed
    episode.preemptions += 1
    episode.dropped += kv
    for i in range(index, episode.residents - 1):
        resident[i] = resident[i + 1]
    episode.residents -= 1
    if episode.walk > index:
        episode.walk -= 1
    wait(state, params, lane, request)
    return freed
