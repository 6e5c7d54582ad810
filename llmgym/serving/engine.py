"""One inference engine under a KV-cache limit, batch by batch: what is planned, who is admitted, what a batch does.

An engine holds *residents*, requests that have been admitted, in order of admission. Every batch gives each of them one unit of
work: a chunk of its prompt, or one output token. Tokens stay in the KV cache until the request completes, in blocks of `block`
tokens that one request alone fills (1 in the queueing model, 16 in vLLM). When the next batch would not fit, residents are paused
(their cache is swapped out at no cost: the model of Nie, Si and Zhou, "A Queueing-Theoretic Framework for Stability Analysis of
LLM Inference with KV Cache Memory Constraints", ICML 2026, section 2), or the youngest are preempted and recomputed later (vLLM
V1), or the cache is cleared (Jaillet et al., arXiv 2502.07115): see `overflow`. What a resident takes is in `residents`. With
`host_tokens` what is swapped out or preempted goes to the host's memory, at the time that its copies take: see `host`.

Cost of a batch, in this file's terms: residents are kept in one array, oldest first. All before index `walk` are decoding
and advance by a shared tick, without being touched; only those from `walk` on (prefilling, or held back) are visited.

The functions work on any `state` and `params` with the parts of `EngineState` and `EngineParams` in `llmgym.serving.state`, so that
environments can share them.
"""

import numpy as np

from llmgym.core.jit import kernel
from llmgym.serving import conversations, host, prefix, queue
from llmgym.serving.batch_time import batch_time_s
from llmgym.serving.overflow import CHOSEN, PAUSE, RECOMPUTE, YOUNGEST, bring_back, clear, pause, preempt
from llmgym.serving.requests import in_blocks, predicted_output
from llmgym.serving.residents import decode_all, kv_of, stored_with, unit
from llmgym.serving.state import FAR, EngineParams, EngineState, Resident

NEWCOMER = Resident.blank


@kernel
def start(state: EngineState, params: EngineParams, lane: int, key: np.uint64) -> None:
    """Let an engine whose record is `Engine.blank` begin at time 0, empty, and deal with overflow as the first rule does.

    Args:
        state: the arrays of the engines.
        params: what the engines share.
        lane: number of the engine.
        key: seeds what the engine draws.
    """
    engine = state.lane[lane]
    engine.key = key
    engine.budget_left = params.config[0].budget
    engine.chunk = params.config[0].chunk
    follow(state, params, lane, 0)
    queue.empty(state, params, lane)
    if params.config[0].prefix == 1:
        prefix.forget_all(state, lane)


@kernel
def follow(state: EngineState, params: EngineParams, lane: int, number_of_rule: int) -> None:
    """Let the coming overflow be dealt with as a rule does.

    Args:
        state: the arrays of the engines.
        params: what the engines share.
        lane: number of the engine.
        number_of_rule: index into `params.rules`.
    """
    engine = state.lane[lane]
    rule = params.rules[number_of_rule]
    engine.overflow = rule.overflow
    engine.skip = rule.skip
    engine.victim = rule.victim
    engine.clear_probability = rule.clear_probability


@kernel(inline=True)
def plan(state: EngineState, params: EngineParams, lane: int) -> None:
    """Decide what every resident runs in the next batch, and make room where the batch would not fit.

    Args:
        state: the arrays of the engines.
        params: what the engines share.
        lane: number of the engine.
    """
    engine = state.lane[lane]
    config = params.config[0]
    engine.blocked, engine.short = 0, 0
    engine.chunk = config.chunk
    if config.alone == 1 and engine.residents + engine.waiting <= 1:
        engine.chunk = config.budget
    # Nobody prefills, nobody is held back, everything fits: by far the most frequent case, so it is told apart first.
    if engine.paused == 0 and engine.walk == engine.residents and engine.walk <= config.budget:
        engine.growth = decode_all(state, params, lane)
        engine.budget_left = config.budget - engine.walk
        if engine.used + engine.growth <= config.kv_capacity:
            if config.prefix == 1:
                _fill_all(state, params, lane)
            return
    _plan_each(state, params, lane)


@kernel(inline=True)
def _plan_each(state: EngineState, params: EngineParams, lane: int) -> None:
    engine = state.lane[lane]
    config = params.config[0]
    residents = state.resident[lane]
    if engine.paused > 0 and engine.overflow != PAUSE:
        bring_back(state, params, lane)
    if engine.paused == 0:
        if engine.walk > config.budget:
            engine.walk = config.budget
        left = config.budget - engine.walk
        growth = decode_all(state, params, lane)
        for i in range(engine.walk, engine.residents):
            resident = residents[i]
            tokens = unit(engine.chunk, resident, left)
            resident.run = tokens
            left -= tokens
            growth += stored_with(config, engine.tick, resident, tokens)
        engine.growth = growth
        engine.budget_left = left
        if engine.used + growth <= config.kv_capacity:
            if config.prefix == 1:
                _fill_all(state, params, lane)
            return
    if engine.overflow == PAUSE:
        pause(state, params, lane)
    elif engine.overflow == RECOMPUTE:
        if engine.victim == CHOSEN:
            engine.short = 1
        else:
            preempt(state, params, lane)
    else:
        clear(state, params, lane)


@kernel
def _fill_all(state: EngineState, params: EngineParams, lane: int) -> None:
    for i in range(state.lane[lane].residents):
        prefix.fill(state, params, lane, i)


@kernel(inline=True)
def fits_now(state: EngineState, params: EngineParams, lane: int, number: int) -> bool:
    """Whether an engine can run the first chunk of a waiting request in the planned batch.

    Args:
        state: the arrays of the engines.
        params: what the engines share.
        lane: number of the engine.
        number: of the request.
    """
    engine = state.lane[lane]
    config = params.config[0]
    if engine.blocked == 1 or engine.budget_left <= 0 or engine.residents >= config.seats:
        return False
    request = state.request[lane, number]
    prompt = request.prompt + request.kept - request.hosted
    more = 0
    if config.prefix == 1:
        prefix.look_up(state, params, lane, number)
        prompt -= engine.found
        more = engine.revived
    first = min(min(prompt, engine.chunk), engine.budget_left)
    if config.first_stored == 1 and first == prompt:
        first += 1
    return (
        engine.used + engine.growth + more + in_blocks(config, request.hosted + first) <= config.kv_capacity
    )


@kernel(inline=True)
def admit(state: EngineState, params: EngineParams, lane: int, number: int) -> None:
    """Make a waiting request the youngest resident; its first chunk joins the planned batch. Call only if `fits_now`.

    Args:
        state: the arrays of the engines.
        params: what the engines share.
        lane: number of the engine.
        number: of the request.
    """
    engine = state.lane[lane]
    config = params.config[0]
    request = state.request[lane, number]
    engine.waiting_area -= request.area
    engine.waiting -= 1
    queue.remove(state, params, lane, number)
    state.resident[lane, engine.residents] = NEWCOMER[0]
    resident = state.resident[lane, engine.residents]
    resident.request = number
    resident.kept = request.kept
    resident.prompt = request.prompt + request.kept
    resident.output = request.output
    resident.predicted = predicted_output(config, request.predicted)
    if config.prefix == 1:
        prefix.take_found(state, params, lane, engine.residents)
        resident.prefilled = engine.found
        engine.growth += engine.revived
        engine.reused += engine.found
    elif config.host_tokens > 0 and request.hosted > 0:
        host.take_back(state, params, lane, number)
        resident.prefilled = request.hosted
        request.hosted = 0
    resident.run = unit(engine.chunk, resident, engine.budget_left)
    engine.growth += stored_with(config, engine.tick, resident, resident.run)
    engine.budget_left -= resident.run
    if config.prefix == 1:
        prefix.fill(state, params, lane, engine.residents)
    engine.residents += 1


@kernel(inline=True)
def empty(state: EngineState, lane: int) -> bool:
    """Whether nobody is in an engine.

    One that holds requests and has nothing to run in its next batch is not empty, but held up: it has cleared its cache, say, and
    admits nobody before the batch after.
    """
    return state.lane[lane].residents + state.lane[lane].waiting == 0


@kernel
def release(state: EngineState, params: EngineParams, lane: int) -> bool:
    """Let the residents that are held after they completed leave without a batch, since there was none to run.

    Args:
        state: the arrays of the engines.
        params: what the engines share.
        lane: number of the engine.

    Returns:
        Whether there was any: then the engine plans again at once.
    """
    engine = state.lane[lane]
    residents = state.resident[lane]
    if engine.leaving == 0:
        return False
    kept, walk = 0, engine.walk
    for i in range(engine.residents):
        resident = residents[i]
        if resident.gone == 1:
            engine.used -= _freed(state, params, lane, resident)
            if i < engine.walk:
                walk -= 1
        else:
            residents[kept] = resident
            kept += 1
    engine.residents = kept
    engine.walk = walk
    engine.leaving = 0
    return True


@kernel(inline=True)
def held_up_s(
    state: EngineState, params: EngineParams, lane: int, following_s: float, idle_s: float
) -> float:
    """For how long an engine that is held up waits before it plans again: `idle_s`, or until the next arrival if that is sooner.

    Not at all if those that were in the way are gone now: they had completed, or were preempted last.

    Args:
        state: the arrays of the engines.
        params: what the engines share.
        lane: number of the engine.
        following_s: time of the next arrival, s; infinite if nobody comes.
        idle_s: longest wait, s.

    Returns:
        Seconds.
    """
    engine = state.lane[lane]
    made_way = engine.blocked == 1 and engine.overflow == RECOMPUTE and engine.victim != YOUNGEST
    if release(state, params, lane) or made_way:
        return 0.0
    return min(idle_s, max(following_s - engine.clock_s, 0.0))


@kernel(inline=True)
def run_batch(state: EngineState, params: EngineParams, lane: int) -> float:
    """Run the planned batch: the clock moves by its duration, residents advance, completed ones leave.

    Args:
        state: the arrays of the engines.
        params: what the engines share.
        lane: number of the engine.

    Returns:
        Duration of the batch, s; 0 if there is nothing to run, and then nothing changes.
    """
    seconds = batch_time_s(state, params, lane)
    if seconds < 0.0:
        return 0.0
    end_batch(state, params, lane, seconds)
    return seconds


@kernel(inline=True)
def end_batch(state: EngineState, params: EngineParams, lane: int, seconds: float) -> None:
    """End the batch that `batch_time_s` looked at.

    Args:
        state: the arrays of the engines.
        params: what the engines share.
        lane: number of the engine.
        seconds: what it took, s; more than `batch_time_s` said where the engine waited for others that it steps together with.
    """
    engine = state.lane[lane]
    used = engine.batch_used
    config = params.config[0]
    if config.prefix == 1 and config.held == 1:
        # What the batch before has decoded is known by now, of those too that wait for a place in this one.
        for i in range(engine.walk, engine.residents):
            resident = state.resident[lane, i]
            if resident.run == 0 and resident.gone == 0 and resident.decoding == 1:
                prefix.name(state, params, lane, resident, kv_of(config, engine.tick, resident))
    engine.clock_s += seconds
    engine.tick += 1
    engine.batches += 1
    engine.batch_s = seconds
    engine.copy_s = 0.0
    engine.busy_s += seconds
    engine.kv_s += used * seconds
    engine.kv_peak = max(engine.kv_peak, used)
    engine.prefilled += engine.batch_prefill
    engine.decoded += engine.batch_decodes
    engine.used = used
    if engine.walk < engine.residents:
        _advance(state, params, lane)
    if engine.tick >= engine.next_finish:
        _complete(state, params, lane)


@kernel(inline=True)
def _advance(state: EngineState, params: EngineParams, lane: int) -> None:
    """Give the residents from `walk` on what they ran in the batch that just ended."""
    engine = state.lane[lane]
    config = params.config[0]
    residents = state.resident[lane]
    walk = -1
    for i in range(engine.walk, engine.residents):
        resident = residents[i]
        if resident.decoding == 1:
            if resident.run == 0:
                resident.base += 1
                resident.finish += 1
            continue
        if resident.run > 0:
            starts = False
            if resident.prefilled < resident.prompt:
                resident.prefilled += resident.run
                if resident.prefilled == resident.prompt:
                    engine.decoded += config.first
                    starts = config.first == 1 or resident.kept > 0
                    resident.base = engine.tick - resident.kept - config.first
            else:
                starts = True
                resident.base = engine.tick - 1
            if starts:
                resident.decoding = 1
                resident.finish = resident.base + resident.output
                engine.next_finish = min(engine.next_finish, resident.finish)
                if resident.kept == 0:
                    request = state.request[lane, resident.request]
                    request.ttft_s = engine.clock_s - request.arrival_s
        if resident.decoding == 0 and walk < 0:
            walk = i
    engine.walk = walk if walk >= 0 else engine.residents


@kernel(inline=True)
def _complete(state: EngineState, params: EngineParams, lane: int) -> None:
    """Residents that have produced all their output leave and free their cache; if they are held, one batch later."""
    engine = state.lane[lane]
    config = params.config[0]
    residents = state.resident[lane]
    before_walk, first_gone = 0, engine.residents
    nearest = FAR
    kept = 0
    while residents[kept].finish > engine.tick:
        nearest = min(nearest, residents[kept].finish)
        kept += 1
        if kept == engine.residents:
            # A resident that was held back has moved its end: nobody completes after all.
            engine.next_finish = nearest
            return
    for i in range(kept, engine.residents):
        resident = residents[i]
        if resident.finish <= engine.tick:
            if resident.gone == 0:
                _record(state, params, lane, resident)
                if config.held == 1:
                    resident.gone = 1
                    engine.leaving += 1
                    nearest = engine.tick + 1
                    first_gone = min(first_gone, kept)
                    residents[kept] = resident
                    kept += 1
                    continue
            else:
                engine.leaving -= 1
            engine.used -= _freed(state, params, lane, resident)
            if i < engine.walk:
                before_walk += 1
        else:
            nearest = min(nearest, resident.finish)
            residents[kept] = resident
            kept += 1
    engine.residents = kept
    engine.walk = min(engine.walk - before_walk, first_gone)
    engine.next_finish = nearest


@kernel(inline=True)
def _freed(state: EngineState, params: EngineParams, lane: int, resident: Resident) -> int:
    """Tokens of the blocks that are free when a resident that has completed leaves."""
    config = params.config[0]
    kv = kv_of(config, state.lane[lane].tick, resident)
    if config.prefix == 0:
        return in_blocks(config, kv)
    prefix.name(state, params, lane, resident, kv)
    return prefix.let_go(state, params, lane, resident)


@kernel(inline=True)
def _record(state: EngineState, params: EngineParams, lane: int, resident: Resident) -> None:
    """Note when a request had its last token, and whether it was within the objectives; then the next turn may come."""
    engine = state.lane[lane]
    request = state.request[lane, resident.request]
    e2e = engine.clock_s - request.arrival_s
    ttft = request.ttft_s
    request.e2e_s = e2e
    engine.done += 1
    promised = params.objectives[request.request_class]
    if e2e > promised.e2e_s:
        engine.late += 1
    elif ttft <= promised.ttft_s and e2e - ttft <= promised.tpot_s * max(resident.output - 1, 1):
        engine.met += 1
        engine.met_weight += promised.weight
    if params.config[0].conversations == 1:
        conversations.answer(state, params, lane, resident.request)
