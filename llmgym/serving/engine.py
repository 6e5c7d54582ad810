"""One inference engine under a KV-cache limit, batch by batch: what is planned, who is admitted, what a batch does.

An engine holds *residents*, requests that have been admitted, in order of admission. Every batch gives each of them one unit of
work: a chunk of its prompt, or one output token. Tokens stay in the KV cache until the request completes, in blocks of `block`
tokens that one request alone fills (1 in the queueing model, 16 in vLLM). When the next
batch would not fit, residents are paused (their cache is swapped out at no cost: the model of Nie, Si and Zhou, "A
Queueing-Theoretic Framework for Stability Analysis of LLM Inference with KV Cache Memory Constraints", ICML 2026, section 2),
or the youngest are preempted and recomputed later (vLLM V1), or the cache is cleared (Jaillet et al., arXiv 2502.07115): see
`overflow`. What a resident takes is in `residents`.

Cost of a batch, in this file's terms: residents are kept in one array, oldest first. All before index `walk` are decoding
and advance by a shared tick, without being touched; only those from `walk` on (prefilling, or held back) are visited.

The functions work on any `state` and `params` with these parts, so environments can share them:

- `state.lane` records with the fields of `residents.ENGINE`; `state.resident` records `residents.RESIDENT` [lanes, seats];
  `state.request` records `REQUEST` [lanes, n] (see `requests`); `state.queue` and `state.scratch` (see `queue`, `admission`);
- `params.number` one record with the fields of `requests.LIMITS`; `params.cost` a `StepCost`; `params.rules` and `params.orders`
  from `rules.pack`.
"""

from typing import Any

import numpy as np

from llmgym.core.jit import kernel
from llmgym.profiles.cost import prefill_attention_s, step_time_s
from llmgym.serving import queue
from llmgym.serving.overflow import bring_back, clear, pause, preempt
from llmgym.serving.requests import in_blocks, predicted_output
from llmgym.serving.residents import FAR, PAUSE, RECOMPUTE, decode_all, kv_of, stored_with, unit


@kernel
def start(state: Any, params: Any, lane: int, key: np.uint64) -> None:
    """An empty engine at time 0 that deals with overflow as the first rule does."""
    me = state.lane[lane]
    number = params.number[0]
    me.key = key
    me.clock_s = 0.0
    me.tick, me.residents, me.walk, me.used, me.unfilled, me.swapped, me.paused = 0, 0, 0, 0, 0, 0, 0
    me.growth, me.budget_left, me.next_finish, me.blocked = 0, number.budget, FAR, 0
    me.waiting, me.done, me.met, me.preemptions, me.draws, me.batches = 0, 0, 0, 0, 0, 0
    me.waiting_area, me.dropped, me.prefilled, me.decoded = 0, 0, 0, 0
    me.batch_used, me.batch_prefill, me.batch_decodes, me.kv_peak = 0, 0, 0, 0
    me.batch_s, me.busy_s, me.kv_s = 0.0, 0.0, 0.0
    follow(state, params, lane, 0)
    queue.empty(state, params, lane)


@kernel
def follow(state: Any, params: Any, lane: int, number_of_rule: int) -> None:
    """Let the coming overflow be dealt with as this rule does."""
    me = state.lane[lane]
    rule = params.rules[number_of_rule]
    me.overflow = rule.overflow
    me.skip = rule.skip
    me.clear_probability = rule.clear_probability


@kernel(inline=True)
def plan(state: Any, params: Any, lane: int) -> None:
    """Decide what every resident runs in the next batch, and make room where the batch would not fit."""
    me = state.lane[lane]
    number = params.number[0]
    me.blocked = 0
    # Nobody prefills, nobody is held back, everything fits: by far the most frequent case, so it is told apart first.
    if me.paused == 0 and me.walk == me.residents and me.walk <= number.budget:
        me.growth = decode_all(state, params, lane)
        me.budget_left = number.budget - me.walk
        if me.used + me.growth <= number.kv_capacity:
            return
    _plan_each(state, params, lane)


@kernel(inline=True)
def _plan_each(state: Any, params: Any, lane: int) -> None:
    me = state.lane[lane]
    number = params.number[0]
    resident = state.resident[lane]
    if me.paused > 0 and me.overflow != PAUSE:
        bring_back(state, lane)
    if me.paused == 0:
        if me.walk > number.budget:
            me.walk = number.budget
        left = number.budget - me.walk
        growth = decode_all(state, params, lane)
        for i in range(me.walk, me.residents):
            r = resident[i]
            tokens = unit(number, r, left)
            r.run = tokens
            left -= tokens
            growth += stored_with(number, me.tick, r, tokens)
        me.growth = growth
        me.budget_left = left
        if me.used + growth <= number.kv_capacity:
            return
    if me.overflow == PAUSE:
        pause(state, params, lane)
    elif me.overflow == RECOMPUTE:
        preempt(state, params, lane)
    else:
        clear(state, params, lane)


@kernel(inline=True)
def fits_now(state: Any, params: Any, lane: int, request: int) -> bool:
    """Whether the engine can run the first chunk of a waiting request in the planned batch."""
    me = state.lane[lane]
    number = params.number[0]
    if me.blocked == 1 or me.budget_left <= 0 or me.residents >= number.seats:
        return False
    asked = state.request[lane, request]
    prompt = asked.prompt + asked.kept
    first = min(min(prompt, number.chunk), me.budget_left)
    if number.first_stored == 1 and first == prompt:
        first += 1
    return me.used + me.growth + in_blocks(number, first) <= number.kv_capacity


@kernel(inline=True)
def admit(state: Any, params: Any, lane: int, request: int) -> None:
    """Make a waiting request the youngest resident; its first chunk joins the planned batch. Call only if `fits_now`."""
    me = state.lane[lane]
    number = params.number[0]
    asked = state.request[lane, request]
    me.waiting_area -= asked.area
    me.waiting -= 1
    queue.remove(state, params, lane, request)
    r = state.resident[lane, me.residents]
    kept = asked.kept
    r.request = request
    r.kept = kept
    r.prompt = asked.prompt + kept
    r.prefilled = 0
    r.output = asked.output
    r.predicted = predicted_output(number, asked.predicted)
    r.base = 0
    r.finish = FAR
    r.decoding = 0
    r.paused = 0
    r.run = unit(number, r, me.budget_left)
    me.growth += stored_with(number, me.tick, r, r.run)
    me.budget_left -= r.run
    me.residents += 1


@kernel(inline=True)
def empty(state: Any, lane: int) -> bool:
    """Whether nobody is in an engine. One that holds requests and has nothing to run in its next batch is not empty, but held up:
    it has cleared its cache, say, and admits nobody before the batch after.
    """
    return state.lane[lane].residents + state.lane[lane].waiting == 0


@kernel(inline=True)
def held_up_s(state: Any, lane: int, following_s: float, idle_s: float) -> float:
    """For how long an engine that is held up waits before it plans again: `idle_s`, or until the next arrival if that is sooner.

    Args:
        state: see the module.
        lane: which lane.
        following_s: time of the next arrival, s; infinite if nobody comes.
        idle_s: at most so long, s.
    """
    return min(idle_s, max(following_s - state.lane[lane].clock_s, 0.0))


@kernel(inline=True)
def run_batch(state: Any, params: Any, lane: int) -> float:
    """Run the planned batch: the clock moves by its duration, residents advance, completed ones leave. Returns s.

    Returns 0 and changes nothing if there is nothing to run.
    """
    seconds = batch_time_s(state, params, lane)
    if seconds < 0.0:
        return 0.0
    end_batch(state, params, lane, seconds)
    return seconds


@kernel(inline=True)
def batch_time_s(state: Any, params: Any, lane: int) -> float:
    """How long the planned batch takes, s; -1 if there is nothing to run. Notes what is in it."""
    me = state.lane[lane]
    number = params.number[0]
    resident = state.resident[lane]
    walk = me.walk
    decodes = walk
    prefill = 0
    prefill_s = 0.0
    idle_kv = me.unfilled
    sequences = walk
    for i in range(walk, me.residents):
        r = resident[i]
        if r.paused == 1:
            continue
        if r.prefilled < r.prompt:
            idle_kv += in_blocks(number, r.prefilled)
            if r.run > 0:
                prefill += r.run
                prefill_s += prefill_attention_s(params.cost, r.run, r.prefilled)
                sequences += 1
        elif r.run > 0:
            decodes += 1
            sequences += 1
            kv = kv_of(number, me.tick, r)
            idle_kv += in_blocks(number, kv) - kv
        else:
            idle_kv += in_blocks(number, kv_of(number, me.tick, r))
    if sequences == 0:
        return -1.0
    used = me.used + me.growth
    me.batch_used = used
    me.batch_prefill = prefill
    me.batch_decodes = decodes
    return step_time_s(params.cost, prefill, prefill_s, decodes, me.used - idle_kv, sequences, used)


@kernel(inline=True)
def end_batch(state: Any, params: Any, lane: int, seconds: float) -> None:
    """What `batch_time_s` looked at has run, in so many s (an engine may have waited for another that it steps together with)."""
    me = state.lane[lane]
    used = me.batch_used
    me.clock_s += seconds
    me.tick += 1
    me.batches += 1
    me.batch_s = seconds
    me.busy_s += seconds
    me.kv_s += used * seconds
    me.kv_peak = max(me.kv_peak, used)
    me.prefilled += me.batch_prefill
    me.decoded += me.batch_decodes
    me.used = used
    if me.walk < me.residents:
        _advance(state, params, lane)
    if me.tick >= me.next_finish:
        _complete(state, params, lane)


@kernel(inline=True)
def _advance(state: Any, params: Any, lane: int) -> None:
    """Give the residents from `walk` on what they ran in the batch that just ended."""
    me = state.lane[lane]
    number = params.number[0]
    resident = state.resident[lane]
    walk = -1
    for i in range(me.walk, me.residents):
        r = resident[i]
        if r.decoding == 1:
            if r.run == 0:
                r.base += 1
                r.finish += 1
            continue
        if r.run > 0:
            starts = False
            if r.prefilled < r.prompt:
                r.prefilled += r.run
                if r.prefilled == r.prompt:
                    me.decoded += number.first
                    starts = number.first == 1 or r.kept > 0
                    r.base = me.tick - r.kept - number.first
            else:
                starts = True
                r.base = me.tick - 1
            if starts:
                r.decoding = 1
                r.finish = r.base + r.output
                me.next_finish = min(me.next_finish, r.finish)
                if r.kept == 0:
                    asked = state.request[lane, r.request]
                    asked.ttft_s = me.clock_s - asked.arrival_s
        if r.decoding == 0 and walk < 0:
            walk = i
    me.walk = walk if walk >= 0 else me.residents


@kernel(inline=True)
def _complete(state: Any, params: Any, lane: int) -> None:
    """Remove the residents that have produced all their output and free their cache."""
    me = state.lane[lane]
    number = params.number[0]
    resident = state.resident[lane]
    walk = me.walk
    nearest = FAR
    kept = 0
    while resident[kept].finish > me.tick:
        nearest = min(nearest, resident[kept].finish)
        kept += 1
        if kept == me.residents:
            # A resident that was held back has moved its end: nobody completes after all.
            me.next_finish = nearest
            return
    for i in range(kept, me.residents):
        r = resident[i]
        if r.finish <= me.tick:
            me.used -= in_blocks(number, kv_of(number, me.tick, r))
            asked = state.request[lane, r.request]
            e2e = me.clock_s - asked.arrival_s
            ttft = asked.ttft_s
            asked.e2e_s = e2e
            me.done += 1
            if ttft <= number.ttft_slo_s and e2e - ttft <= number.tpot_slo_s * max(r.output - 1, 1):
                me.met += 1
            if i < me.walk:
                walk -= 1
        else:
            nearest = min(nearest, r.finish)
            resident[kept] = r
            kept += 1
    me.residents = kept
    me.walk = walk
    me.next_finish = nearest
