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
    me = state.lane[lane]
    for i in range(me.residents):
        state.resident[lane, i].paused = 0
    me.used += me.swapped
    me.swapped, me.paused = 0, 0


@kernel
def pause(state: Any, params: Any, lane: int) -> None:
    """Run residents in order of admission while they fit, hold the others back with their cache swapped out."""
    me = state.lane[lane]
    number = params.number[0]
    resident = state.resident[lane]
    left = number.budget
    total, used, swapped, paused, walk = 0, 0, 0, 0, -1
    stopped = False
    for i in range(me.residents):
        r = resident[i]
        kv = kv_of(number, me.tick, r)
        tokens = unit(number, r, left)
        after = kv + stored_with(number, me.tick, r, tokens)  # blocks of one token: pausing knows no others
        if not stopped and total + after <= number.kv_capacity:
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
            stopped = me.skip == 0
        if walk < 0 and (r.decoding == 0 or r.run == 0):
            walk = i
    me.walk = walk if walk >= 0 else me.residents
    me.used = used
    me.swapped = swapped
    me.paused = paused
    me.growth = total - used
    me.budget_left = left
    me.blocked = 1 if paused > 0 and me.skip == 0 else 0


@kernel
def preempt(state: Any, params: Any, lane: int) -> None:
    """Serve residents oldest first; while one does not fit, the youngest loses its cache and waits to be recomputed."""
    me = state.lane[lane]
    number = params.number[0]
    resident = state.resident[lane]
    left = number.budget
    total = me.used
    walk = -1
    i = 0
    while i < me.residents:
        r = resident[i]
        tokens = unit(number, r, left)
        need = stored_with(number, me.tick, r, tokens)
        while me.residents > i and total + need > number.kv_capacity:
            total -= evict(state, params, lane, me.residents - 1, True)
        if me.residents <= i:
            break
        r.run = tokens
        total += need
        left -= tokens
        if walk < 0 and (r.decoding == 0 or tokens == 0):
            walk = i
        i += 1
    me.walk = walk if walk >= 0 else me.residents
    decode_all(state, params, lane)
    me.growth = total - me.used
    me.budget_left = left
    me.blocked = 1


@kernel
def clear(state: Any, params: Any, lane: int) -> None:
    """Throw out each resident with its progress, with the rule's probability, until the next batch fits."""
    me = state.lane[lane]
    while me.residents > 0:
        for i in range(me.residents - 1, -1, -1):
            if rng.uniform(rng.substream(me.key, 1), me.draws) < me.clear_probability:
                evict(state, params, lane, i, False)
            me.draws += 1
        if _replan(state, params, lane):
            break
    if me.residents == 0:
        _replan(state, params, lane)
    me.blocked = 1


@kernel
def _replan(state: Any, params: Any, lane: int) -> bool:
    me = state.lane[lane]
    number = params.number[0]
    resident = state.resident[lane]
    left = number.budget
    growth = 0
    me.walk = me.residents
    for i in range(me.residents):
        r = resident[i]
        r.run = unit(number, r, left)
        left -= r.run
        growth += stored_with(number, me.tick, r, r.run)
        if me.walk == me.residents and (r.decoding == 0 or r.run == 0):
            me.walk = i
    decode_all(state, params, lane)
    me.growth = growth
    me.budget_left = left
    return me.used + growth <= number.kv_capacity


@kernel
def evict(state: Any, params: Any, lane: int, index: int, keep_output: bool) -> int:
    """Take a resident out of the cache and back to the waiting requests; returns the tokens of the blocks that were freed."""
    me = state.lane[lane]
    number = params.number[0]
    resident = state.resident[lane]
    r = resident[index]
    kv = kv_of(number, me.tick, r)
    freed = in_blocks(number, kv)
    request = r.request
    state.request[lane, request].kept = output_so_far(me.tick, r) if keep_output else 0
    if r.paused == 1:
        me.swapped -= freed
        me.paused -= 1
    else:
        me.used -= freed
    me.preemptions += 1
    me.dropped += kv
    for i in range(index, me.residents - 1):
        resident[i] = resident[i + 1]
    me.residents -= 1
    if me.walk > index:
        me.walk -= 1
    wait(state, params, lane, request)
    return freed
