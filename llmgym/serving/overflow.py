"""What an engine does when the next batch would not fit into the cache: pause residents, preempt them, or clear the cache."""

from llmgym.core import rng
from llmgym.core.jit import kernel
from llmgym.serving import host, prefix, queue
from llmgym.serving.requests import in_blocks
from llmgym.serving.residents import decode_all, kv_of, output_so_far, stored_with, unit, wait
from llmgym.serving.state import EngineParams, EngineState

PAUSE, RECOMPUTE, CLEAR = 0, 1, 2
"""Ways of dealing with an overflow."""
YOUNGEST, OLDEST, LARGEST, LEAST_COMPUTED, WORST_PRIORITY = 0, 1, 2, 3, 4
VICTIMS = {
    "youngest": YOUNGEST,
    "oldest": OLDEST,
    "largest": LARGEST,
    "least-computed": LEAST_COMPUTED,
    "worst-priority": WORST_PRIORITY,
}
"""Whom preemption takes: by admission, by tokens in the cache, or by (priority, arrival) as vLLM does under `priority`."""
CHOSEN = 5
"""Nobody by itself: the plan stops as `Engine.short`, somebody chooses with `evict`, and plans again."""


PAUSED, JUST_PAUSED = 1, 2
"""Values of `Resident.paused`; the second only while a batch is planned."""


@kernel
def bring_back(state: EngineState, params: EngineParams, lane: int) -> None:
    """Swap all paused residents in again: the way of dealing with overflow that is in force now knows none."""
    engine = state.lane[lane]
    if params.config[0].host_tokens > 0:
        host.swap(state, params, lane, 0, engine.swapped)
    for i in range(engine.residents):
        state.resident[lane, i].paused = 0
    engine.used += engine.swapped
    engine.swapped, engine.paused = 0, 0


@kernel
def pause(state: EngineState, params: EngineParams, lane: int) -> None:
    """Run residents in order of admission while they fit, hold the others back with their cache swapped out.

    Args:
        state: the arrays of the engines.
        params: what the engines share.
        lane: number of the engine.
    """
    engine = state.lane[lane]
    config = params.config[0]
    residents = state.resident[lane]
    left = config.budget
    total, used, swapped, paused, walk, back = 0, 0, 0, 0, -1, 0
    stopped = False
    for i in range(engine.residents):
        resident = residents[i]
        kv = kv_of(config, engine.tick, resident)
        tokens = unit(engine.chunk, resident, left)
        # blocks of one token: pausing knows no others
        after = kv + stored_with(config, engine.tick, resident, tokens)
        if not stopped and total + after <= config.kv_capacity:
            resident.run = tokens
            if resident.paused != 0:
                back += kv
            resident.paused = 0
            total += after
            used += kv
            left -= tokens
        else:
            resident.run = 0
            if resident.paused == 0:
                resident.paused = JUST_PAUSED if config.host_tokens > 0 else PAUSED
            swapped += kv
            paused += 1
            stopped = engine.skip == 0
        if walk < 0 and (resident.decoding == 0 or resident.run == 0):
            walk = i
    engine.walk = walk if walk >= 0 else engine.residents
    engine.used = used
    engine.swapped = swapped
    engine.paused = paused
    engine.growth = total - used
    engine.budget_left = left
    engine.blocked = 1 if paused > 0 and engine.skip == 0 else 0
    if config.host_tokens > 0:
        _swap_out(state, params, lane, back)


@kernel
def _swap_out(state: EngineState, params: EngineParams, lane: int, back: int) -> None:
    """Copy those that have just been paused to the host, and `back` tokens from there; preempt the youngest that have no room."""
    engine = state.lane[lane]
    config = params.config[0]
    residents = state.resident[lane]
    i = engine.residents - 1
    while i >= 0 and engine.swapped + engine.hosted > config.host_tokens:
        if residents[i].paused != 0:
            evict(state, params, lane, i, True)
            engine.blocked = 1
        i -= 1
    out = 0
    for i in range(engine.residents):
        if residents[i].paused == JUST_PAUSED:
            residents[i].paused = PAUSED
            out += kv_of(config, engine.tick, residents[i])
    host.swap(state, params, lane, out, back)


@kernel
def preempt(state: EngineState, params: EngineParams, lane: int) -> None:
    """Serve residents oldest first; while one does not fit, a victim loses its cache and waits to be recomputed.

    A victim that has been served already gives back what it took. One that is the next to be served itself ends the batch: whoever
    is younger is held back, as in vLLM.

    Args:
        state: the arrays of the engines.
        params: what the engines share.
        lane: number of the engine.
    """
    engine = state.lane[lane]
    config = params.config[0]
    residents = state.resident[lane]
    for i in range(engine.residents):
        residents[i].run = 0
    engine.walk = 0
    left = config.budget
    total = engine.used
    i = 0
    ended = False
    while i < engine.residents and not ended:
        tokens = unit(engine.chunk, residents[i], left)
        need = stored_with(config, engine.tick, residents[i], tokens)
        while total + need > config.kv_capacity and not ended:
            index = _victim(state, params, lane)
            ended = index == i
            if index < i:
                left += residents[index].run
                if config.prefix == 0:
                    # where prefixes are cached, `evict` frees these blocks with the others
                    total -= stored_with(config, engine.tick, residents[index], residents[index].run)
                i -= 1
            total -= evict(state, params, lane, index, True)
        if not ended:
            residents[i].run = tokens
            if config.prefix == 1:
                prefix.fill(state, params, lane, i)
            total += need
            left -= tokens
            i += 1
    while engine.walk < engine.residents and (
        residents[engine.walk].decoding == 1 and residents[engine.walk].run == 1
    ):
        engine.walk += 1
    decode_all(state, params, lane)
    engine.growth = total - engine.used
    engine.budget_left = left
    engine.blocked = 1


@kernel
def _victim(state: EngineState, params: EngineParams, lane: int) -> int:
    """Index of the resident that is preempted next. Of several that are alike it is the youngest."""
    engine = state.lane[lane]
    config = params.config[0]
    residents = state.resident[lane]
    chosen = engine.residents - 1
    if engine.victim == OLDEST:
        return 0
    if engine.victim == YOUNGEST:
        return chosen
    for i in range(engine.residents - 2, -1, -1):
        one, best = residents[i], residents[chosen]
        if engine.victim == WORST_PRIORITY:
            mine = state.request[lane, one.request].priority
            worst = state.request[lane, best.request].priority
            if mine > worst or (
                mine == worst and queue.earlier(state, params, lane, best.request, one.request)
            ):
                chosen = i
        else:
            mine, worst = kv_of(config, engine.tick, one), kv_of(config, engine.tick, best)
            if (mine > worst) if engine.victim == LARGEST else (mine < worst):
                chosen = i
    return chosen


@kernel
def clear(state: EngineState, params: EngineParams, lane: int) -> None:
    """Throw out each resident with its progress, with the rule's probability, until the next batch fits.

    Args:
        state: the arrays of the engines.
        params: what the engines share.
        lane: number of the engine.
    """
    engine = state.lane[lane]
    while engine.residents > 0:
        for i in range(engine.residents - 1, -1, -1):
            if rng.uniform(rng.substream(engine.key, 1), engine.draws) < engine.clear_probability:
                evict(state, params, lane, i, False)
            engine.draws += 1
        if _replan(state, params, lane):
            break
    if engine.residents == 0:
        _replan(state, params, lane)
    engine.blocked = 1


@kernel
def _replan(state: EngineState, params: EngineParams, lane: int) -> bool:
    engine = state.lane[lane]
    config = params.config[0]
    residents = state.resident[lane]
    left = config.budget
    growth = 0
    engine.walk = engine.residents
    for i in range(engine.residents):
        resident = residents[i]
        resident.run = unit(engine.chunk, resident, left)
        left -= resident.run
        growth += stored_with(config, engine.tick, resident, resident.run)
        if engine.walk == engine.residents and (resident.decoding == 0 or resident.run == 0):
            engine.walk = i
    decode_all(state, params, lane)
    engine.growth = growth
    engine.budget_left = left
    return engine.used + growth <= config.kv_capacity


@kernel
def evict(state: EngineState, params: EngineParams, lane: int, index: int, keep_output: bool) -> int:
    """Take a resident out of the cache and back to the waiting requests; its cache goes to the host where that has room.

    Args:
        state: the arrays of the engines.
        params: what the engines share.
        lane: number of the engine.
        index: of the resident, 0 is the oldest.
        keep_output: whether it keeps the output it has produced.

    Returns:
        Tokens of the blocks that were freed.
    """
    engine = state.lane[lane]
    config = params.config[0]
    residents = state.resident[lane]
    resident = residents[index]
    kv = kv_of(config, engine.tick, resident)
    freed = prefix.let_go(state, params, lane, resident) if config.prefix == 1 else in_blocks(config, kv)
    request = resident.request
    state.request[lane, request].kept = output_so_far(engine.tick, resident) if keep_output else 0
    gone = resident.gone == 1
    hosted = 0
    if config.host_tokens > 0 and keep_output and not gone and resident.paused == 0:
        # the last token is computed again, as its output is not known yet
        most = resident.prompt - resident.kept + state.request[lane, request].kept - 1
        hosted = host.put(state, params, lane, request, min(kv, most))
    if resident.paused != 0:
        engine.swapped -= freed
        engine.paused -= 1
    else:
        engine.used -= freed
    if gone:
        engine.leaving -= 1
    else:
        engine.dropped += kv - hosted
    engine.preemptions += 1
    for i in range(index, engine.residents - 1):
        residents[i] = residents[i + 1]
    engine.residents -= 1
    if engine.walk > index:
        engine.walk -= 1
    if not gone:
        wait(state, params, lane, request)
    return freed
