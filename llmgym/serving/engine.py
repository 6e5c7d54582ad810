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
    episode = state.lane[lane]
    config = params.config[0]
    episode.key = key
    episode.clock_s = 0.0
    (
        episode.tick,
        episode.residents,
        episode.walk,
        episode.used,
        episode.unfilled,
        episode.swapped,
        episode.paused,
    ) = 0, 0, 0, 0, 0, 0, 0
    episode.growth, episode.budget_left, episode.next_finish, episode.blocked = 0, config.budget, FAR, 0
    episode.waiting, episode.done, episode.met, episode.preemptions, episode.draws, episode.batches = (
        0,
        0,
        0,
        0,
        0,
        0,
    )
    episode.waiting_area, episode.dropped, episode.prefilled, episode.decoded = 0, 0, 0, 0
    episode.batch_used, episode.batch_prefill, episode.batch_decodes, episode.kv_peak = 0, 0, 0, 0
    episode.batch_s, episode.busy_s, episode.kv_s = 0.0, 0.0, 0.0
    follow(state, params, lane, 0)
    queue.empty(state, params, lane)


@kernel
def follow(state: Any, params: Any, lane: int, number_of_rule: int) -> None:
    """Let the coming overflow be dealt with as this rule does."""
    episode = state.lane[lane]
    rule = params.rules[number_of_rule]
    episode.overflow = rule.overflow
    episode.skip = rule.skip
    episode.clear_probability = rule.clear_probability


@kernel(inline=True)
def plan(state: Any, params: Any, lane: int) -> None:
    """Decide what every resident runs in the next batch, and make room where the batch would not fit."""
    episode = state.lane[lane]
    config = params.config[0]
    episode.blocked = 0
    # Nobody prefills, nobody is held back, everything fits: by far the most frequent case, so it is told apart first.
    if episode.paused == 0 and episode.walk == episode.residents and episode.walk <= config.budget:
        episode.growth = decode_all(state, params, lane)
        episode.budget_left = config.budget - episode.walk
        if episode.used + episode.growth <= config.kv_capacity:
            return
    _plan_each(state, params, lane)


@kernel(inline=True)
def _plan_each(state: Any, params: Any, lane: int) -> None:
    episode = state.lane[lane]
    config = params.config[0]
    resident = state.resident[lane]
    if episode.paused > 0 and episode.overflow != PAUSE:
        bring_back(state, lane)
    if episode.paused == 0:
        if episode.walk > config.budget:
            episode.walk = config.budget
        left = config.budget - episode.walk
        growth = decode_all(state, params, lane)
        for i in range(episode.walk, episode.residents):
            r = resident[i]
            tokens = unit(config, r, left)
            r.run = tokens
            left -= tokens
            growth += stored_with(config, episode.tick, r, tokens)
        episode.growth = growth
        episode.budget_left = left
        if episode.used + growth <= config.kv_capacity:
            return
    if episode.overflow == PAUSE:
        pause(state, params, lane)
    elif episode.overflow == RECOMPUTE:
        preempt(state, params, lane)
    else:
        clear(state, params, lane)


@kernel(inline=True)
def fits_now(state: Any, params: Any, lane: int, request: int) -> bool:
    """Whether the engine can run the first chunk of a waiting request in the planned batch."""
    episode = state.lane[lane]
    config = params.config[0]
    if episode.blocked == 1 or episode.budget_left <= 0 or episode.residents >= config.seats:
        return False
    asked = state.request[lane, request]
    prompt = asked.prompt + asked.kept
    first = min(min(prompt, config.chunk), episode.budget_left)
    if config.first_stored == 1 and first == prompt:
        first += 1
    return episode.used + episode.growth + in_blocks(config, first) <= config.kv_capacity


@kernel(inline=True)
def admit(state: Any, params: Any, lane: int, request: int) -> None:
    """Make a waiting request the youngest resident; its first chunk joins the planned batch. Call only if `fits_now`."""
    episode = state.lane[lane]
    config = params.config[0]
    asked = state.request[lane, request]
    episode.waiting_area -= asked.area
    episode.waiting -= 1
    queue.remove(state, params, lane, request)
    r = state.resident[lane, episode.residents]
    kept = asked.kept
    r.request = request
    r.kept = kept
    r.prompt = asked.prompt + kept
    r.prefilled = 0
    r.output = asked.output
    r.predicted = predicted_output(config, asked.predicted)
    r.base = 0
    r.finish = FAR
    r.decoding = 0
    r.paused = 0
    r.run = unit(config, r, episode.budget_left)
    episode.growth += stored_with(config, episode.tick, r, r.run)
    episode.budget_left -= r.run
    episode.residents += 1


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
    episode = state.lane[lane]
    config = params.config[0]
    resident = state.resident[lane]
    walk = episode.walk
    decodes = walk
    prefill = 0
    prefill_s = 0.0
    idle_kv = episode.unfilled
    sequences = walk
    for i in range(walk, episode.residents):
        r = resident[i]
        if r.paused == 1:
            continue
        if r.prefilled < r.prompt:
            idle_kv += in_blocks(config, r.prefilled)
            if r.run > 0:
                prefill += r.run
                prefill_s += prefill_attention_s(params.cost, r.run, r.prefilled)
                sequences += 1
        elif r.run > 0:
            decodes += 1
            sequences += 1
            kv = kv_of(config, episode.tick, r)
            idle_kv += in_blocks(config, kv) - kv
        else:
            idle_kv += in_blocks(config, kv_of(config, episode.tick, r))
    if sequences == 0:
        return -1.0
    used = episode.used + episode.growth
    episode.batch_used = used
    episode.batch_prefill = prefill
    episode.batch_decodes = decodes
    return step_time_s(params.cost, prefill, prefill_s, decodes, episode.used - idle_kv, sequences, used)


@kernel(inline=True)
def end_batch(state: Any, params: Any, lane: int, seconds: float) -> None:
    """What `batch_time_s` looked at has run, in so many s (an engine may have waited for another that it steps together with)."""
    episode = state.lane[lane]
    used = episode.batch_used
    episode.clock_s += seconds
    episode.tick += 1
    episode.batches += 1
    episode.batch_s = seconds
    episode.busy_s += seconds
    episode.kv_s += used * seconds
    episode.kv_peak = max(episode.kv_peak, used)
    episode.prefilled += episode.batch_prefill
    episode.decoded += episode.batch_decodes
    episode.used = used
    if episode.walk < episode.residents:
        _advance(state, params, lane)
    if episode.tick >= episode.next_finish:
        _complete(state, params, lane)


@kernel(inline=True)
def _advance(state: Any, params: Any, lane: int) -> None:
    """Give the residents from `walk` on what they ran in the batch that just ended."""
    episode = state.lane[lane]
    config = params.config[0]
    resident = state.resident[lane]
    walk = -1
    for i in range(episode.walk, episode.residents):
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
                    episode.decoded += config.first
                    starts = config.first == 1 or r.kept > 0
                    r.base = episode.tick - r.kept - config.first
            else:
                starts = True
                r.base = episode.tick - 1
            if starts:
                r.decoding = 1
                r.finish = r.base + r.output
                episode.next_finish = min(episode.next_finish, r.finish)
                if r.kept == 0:
                    asked = state.request[lane, r.request]
                    asked.ttft_s = episode.clock_s - asked.arrival_s
        if r.decoding == 0 and walk < 0:
            walk = i
    episode.walk = walk if walk >= 0 else episode.residents


@kernel(inline=True)
def _complete(state: Any, params: Any, lane: int) -> None:
    """Remove the residents that have produced all their output and free their cache."""
    episode = state.lane[lane]
    config = params.config[0]
    resident = state.resident[lane]
    walk = episode.walk
    nearest = FAR
    kept = 0
    while resident[kept].finish > episode.tick:
        nearest = min(nearest, resident[kept].finish)
        kept += 1
        if kept == episode.residents:
            # A resident that was held back has moved its end: nobody completes after all.
            episode.next_finish = nearest
            return
    for i in range(kept, episode.residents):
        r = resident[i]
        if r.finish <= episode.tick:
            episode.used -= in_blocks(config, kv_of(config, episode.tick, r))
            asked = state.request[lane, r.request]
            e2e = episode.clock_s - asked.arrival_s
            ttft = asked.ttft_s
            asked.e2e_s = e2e
            episode.done += 1
            if ttft <= config.ttft_slo_s and e2e - ttft <= config.tpot_slo_s * max(r.output - 1, 1):
                episode.met += 1
            if i < episode.walk:
                walk -= 1
        else:
            nearest = min(nearest, r.finish)
            resident[kept] = r
            kept += 1
    episode.residents = kept
    episode.walk = walk
    episode.next_finish = nearest
