"""One inference engine under a KV-cache limit, batch by batch: residents, growth, overflow, progress.

An engine holds *residents*, requests that have been admitted, in order of admission. Every batch gives each of them one unit of
work: a chunk of its prompt, or one output token. Tokens stay in the KV cache until the request completes, in blocks of `block`
tokens that one request alone fills (1 in the queueing model, 16 in vLLM). When the next
batch would not fit, residents are paused (their cache is swapped out at no cost: the model of Nie, Si and Zhou, "A
Queueing-Theoretic Framework for Stability Analysis of LLM Inference with KV Cache Memory Constraints", ICML 2026, section 2),
or the youngest are preempted and recomputed later (vLLM V1), or the cache is cleared (Jaillet et al., arXiv 2502.07115).

Cost of a batch, in this file's terms: residents are kept in one array, oldest first. All before index `walk` are decoding
and advance by a shared tick, without being touched; only those from `walk` on (prefilling, or held back) are visited.

The functions work on any `state` and `params` with these parts, so environments can share them:

- `state.lane` records with the fields of `ENGINE`; `state.resident` records `RESIDENT` [lanes, seats];
  `state.request` records `REQUEST` [lanes, n] (see `requests`); `state.queue` and `state.scratch` (see `queue`, `admission`);
- `params.number` one record with the fields of `requests.LIMITS`; `params.cost` a `StepCost`; `params.rules` and `params.orders`
  from `rules.pack`.
"""

from typing import Any

import numpy as np

from llmgym.core import rng
from llmgym.core.jit import kernel
from llmgym.profiles.cost import prefill_attention_s, step_time_s
from llmgym.serving import queue
from llmgym.serving.requests import in_blocks, predicted_area, predicted_output

PAUSE, RECOMPUTE, CLEAR = 0, 1, 2

ENGINE = [
    ("clock_s", "f8"),
    ("key", "u8"),
    ("tick", "i4"),  # batches so far: the shared progress of the decoding residents
    ("residents", "i4"),
    ("walk", "i4"),  # first resident that is not simply decoding
    ("used", "i4"),  # tokens of the blocks that residents hold who are not paused
    ("unfilled", "i4"),  # of those, not filled yet, of the residents before `walk`
    ("swapped", "i4"),  # tokens of paused residents
    ("paused", "i4"),
    ("growth", "i4"),  # tokens the planned batch adds to the cache
    ("budget_left", "i4"),  # tokens the planned batch may still take
    ("next_finish", "i4"),  # no resident completes before this tick
    ("blocked", "i4"),  # 1 if the plan had to pause or preempt: no admission in this batch
    ("overflow", "i4"),  # PAUSE, RECOMPUTE or CLEAR, in force when the batch was planned
    ("skip", "i4"),  # pausing skips misfits instead of pausing everything younger
    ("clear_probability", "f8"),
    ("waiting", "i4"),
    ("waiting_area", "i8"),  # predicted tokens x batches of the waiting requests
    ("done", "i4"),
    ("met", "i4"),  # completed requests whose TTFT and TPOT were both within their objectives
    ("preemptions", "i4"),
    ("dropped", "i8"),  # tokens thrown away by preemption
    ("draws", "i4"),  # numbers drawn within the episode
    ("batches", "i4"),
    ("batch_used", "i4"),  # tokens in the cache of the residents that ran in the last batch
    ("batch_prefill", "i4"),
    ("batch_decodes", "i4"),
    ("batch_s", "f8"),
    ("busy_s", "f8"),
    ("kv_s", "f8"),  # integral of batch_used over busy time
    ("kv_peak", "i4"),
    ("prefilled", "i8"),
    ("decoded", "i8"),
]

RESIDENT = np.dtype(
    [
        ("request", "i4"),
        ("prompt", "i4"),  # tokens to prefill: the prompt, and after a preemption also the kept output
        ("prefilled", "i4"),
        ("output", "i4"),
        ("predicted", "i4"),
        ("kept", "i4"),  # output tokens from before a preemption
        ("base", "i4"),  # decoding: output so far = tick - base
        ("finish", "i4"),  # decoding: completes when the tick reaches this
        ("run", "i4"),  # tokens planned for the next batch
        ("decoding", "i2"),
        ("paused", "i2"),
    ],
    align=True,
)

FAR = 2**31 - 1


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
def output_so_far(tick: int, r: Any) -> int:
    """Output tokens a resident has produced."""
    return tick - r.base if r.decoding == 1 else r.kept


@kernel(inline=True)
def kv_of(number: Any, tick: int, r: Any) -> int:
    """Tokens of a resident in the cache."""
    if r.decoding == 1:
        return r.prompt - r.kept + (tick - r.base) - (number.first - number.first_stored)
    return r.prefilled


@kernel(inline=True)
def unit(number: Any, r: Any, left: int) -> int:
    """Tokens a resident would take in the next batch if `left` tokens of the budget are free."""
    if r.prefilled < r.prompt:
        return min(min(r.prompt - r.prefilled, number.chunk), left)
    return min(1, left)


@kernel(inline=True)
def stored_with(number: Any, tick: int, r: Any, tokens: int) -> int:
    """Tokens of the blocks the cache grows by when a resident runs `tokens`.

    Where prefill stores its first output as well, that is one token more.
    """
    kv = kv_of(number, tick, r)
    after = kv + tokens
    if number.first_stored == 1 and r.decoding == 0 and tokens > 0 and r.prefilled + tokens == r.prompt:
        after += 1
    return in_blocks(number, after) - in_blocks(number, kv)


@kernel(inline=True)
def _decode_all(state: Any, params: Any, lane: int) -> int:
    """Tokens of the blocks that one token each for the residents before `walk` takes; notes what they have not filled."""
    me = state.lane[lane]
    number = params.number[0]
    me.unfilled = 0
    if number.block == 1:
        return me.walk
    growth, unfilled = 0, 0
    for i in range(me.walk):
        kv = kv_of(number, me.tick, state.resident[lane, i])
        held = in_blocks(number, kv)
        unfilled += held - kv
        growth += in_blocks(number, kv + 1) - held
    me.unfilled = unfilled
    return growth


@kernel(inline=True)
def plan(state: Any, params: Any, lane: int) -> None:
    """Decide what every resident runs in the next batch, and make room where the batch would not fit."""
    me = state.lane[lane]
    number = params.number[0]
    me.blocked = 0
    # Nobody prefills, nobody is held back, everything fits: by far the most frequent case, so it is told apart first.
    if me.paused == 0 and me.walk == me.residents and me.walk <= number.budget:
        me.growth = _decode_all(state, params, lane)
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
        _bring_back(state, lane)
    if me.paused == 0:
        if me.walk > number.budget:
            me.walk = number.budget
        left = number.budget - me.walk
        growth = _decode_all(state, params, lane)
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
        _pause(state, params, lane)
    elif me.overflow == RECOMPUTE:
        _preempt(state, params, lane)
    else:
        _clear(state, params, lane)


@kernel
def _bring_back(state: Any, lane: int) -> None:
    """Another way of dealing with overflow is in force now, and it knows no paused residents."""
    me = state.lane[lane]
    for i in range(me.residents):
        state.resident[lane, i].paused = 0
    me.used += me.swapped
    me.swapped, me.paused = 0, 0


@kernel
def _pause(state: Any, params: Any, lane: int) -> None:
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
def _preempt(state: Any, params: Any, lane: int) -> None:
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
    _decode_all(state, params, lane)
    me.growth = total - me.used
    me.budget_left = left
    me.blocked = 1


@kernel
def _clear(state: Any, params: Any, lane: int) -> None:
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
    _decode_all(state, params, lane)
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


@kernel(inline=True)
def wait(state: Any, params: Any, lane: int, request: int) -> None:
    """Put a request among the waiting ones, in every order that is kept."""
    me = state.lane[lane]
    asked = state.request[lane, request]
    area = predicted_area(params.number[0], asked)
    asked.area = area
    me.waiting_area += area
    me.waiting += 1
    queue.insert(state, params, lane, request)


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
def run_batch(state: Any, params: Any, lane: int) -> float:
    """Run the planned batch: the clock moves by its duration, residents advance, completed ones leave. Returns s.

    Returns 0 and changes nothing if there is nothing to run.
    """
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
        return 0.0
    used = me.used + me.growth
    seconds = step_time_s(params.cost, prefill, prefill_s, decodes, me.used - idle_kv, sequences, used)
    me.clock_s += seconds
    me.tick += 1
    me.batches += 1
    me.batch_used = used
    me.batch_prefill = prefill
    me.batch_decodes = decodes
    me.batch_s = seconds
    me.busy_s += seconds
    me.kv_s += used * seconds
    me.kv_peak = max(me.kv_peak, used)
    me.prefilled += prefill
    me.decoded += decodes
    me.used = used
    if me.walk < me.residents:
        _advance(state, params, lane)
    if me.tick >= me.next_finish:
        _complete(state, params, lane)
    return seconds


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
