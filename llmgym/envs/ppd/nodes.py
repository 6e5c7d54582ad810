"""How the nodes of a PPD cluster work: P serves one prompt after the other, D runs one batch after the other.

The model is that of vLLM with a point-to-point KV connector, as Li et al. measured it ("Not All Prefills Are Equal: PPD
Disaggregation for Multi-turn LLM Serving", arXiv 2603.13358, sections 3 to 5 and the released code): P hands a finished prompt over
before it begins the next; D receives inside its step, so that a transfer holds the whole batch up; a prefill on D shares the
step with the decodes. Latencies are those of `llmgym.envs.ppd.latency`, or of a profile.
"""

import math
from typing import Any

import numpy as np

from llmgym.core.jit import kernel
from llmgym.core.rng import normal, substream
from llmgym.envs.ppd.cache import keep, missing, put, take
from llmgym.envs.ppd.links import discard, has_room, receive, send
from llmgym.envs.ppd.state import (
    D_RUN,
    D_WAIT,
    FAILED,
    FAR,
    LOCAL,
    MOVE,
    OVER,
    P_RUN,
    P_WAIT,
    PAPER,
    THINK,
    Params,
    R,
    State,
)
from llmgym.profiles.cost import prefill_attention_s, step_time_s

CROWD = 50
"""`interference="paper"` applies from so many decoding sequences on, where the paper's micro-benchmark begins to show."""
FULL_FACTOR, APPEND_FACTOR = 1.48, 1.02
"""Its decode slow-down by one 1024-token prefill at batch 200: a full one, one that appends."""
MEAN_STEP_WEIGHT = 0.1
_THINK = 2
"""Number of the stream of pauses."""


@kernel
def sift_in(state: State, lane: int, c: int) -> None:
    """Put a conversation with a time onto the heap; ties go by number."""
    episode = state.lane[lane]
    heap, all_of = state.heap[lane], state.conversation[lane]
    at = episode.size
    episode.size += 1
    while at > 0:
        above = heap[(at - 1) // 2]
        if all_of[above].at_s < all_of[c].at_s or (all_of[above].at_s == all_of[c].at_s and above < c):
            break
        heap[at] = above
        at = (at - 1) // 2
    heap[at] = c


@kernel
def decayed(total: float, at_s: float, clock_s: float, window_s: float) -> float:
    """What a count of events that is forgotten exponentially has come down to, from `at_s` to `clock_s`."""
    return total * math.exp((at_s - clock_s) / window_s)


@kernel
def recent_rps(total: float, at_s: float, clock_s: float, window_s: float) -> float:
    """Events a second of late, from such a count; at the start of an episode over the time there has been."""
    seen = 1.0 - math.exp(-max(clock_s, 1.0) / window_s)
    return decayed(total, at_s, clock_s, window_s) / (window_s * seen)


@kernel
def prefill_s(config: Any, params: Params, tokens: int, before: int) -> float:
    """Time to prefill `tokens` tokens alone behind `before` cached ones, s."""
    if config.tables == 0:
        return tokens * config.prefill_token_s
    seconds = 0.0
    done = 0
    while done < tokens:
        run = min(tokens - done, config.chunk)
        attention = prefill_attention_s(params.cost, run, before + done)
        seconds += step_time_s(params.cost, run, attention, 0, 0, 1, before + done + run)
        done += run
    return seconds


@kernel
def end_turn(state: State, params: Params, lane: int, c: int, in_time: bool) -> None:
    """A request completes, or has timed out, which ends its conversation."""
    config = params.config[0]
    episode = state.lane[lane]
    talk = state.conversation[lane, c]
    later = talk.turn > 0
    if not in_time:
        talk.stage = FAILED
        episode.failed += 1
        episode.open -= 1
        if later:
            episode.later_failed += 1
        return
    asked = state.request[lane, talk.later + talk.turn - 1 if later else c]
    ttft = talk.first_s - talk.asked_s
    e2e = episode.clock_s - talk.asked_s
    asked.ttft_s = ttft
    asked.e2e_s = e2e
    episode.done += 1
    episode.output_tokens += talk.output
    if later:
        episode.later_done += 1
        tpot = 0.0
        if talk.output > 1:
            tpot = (e2e - ttft) / (talk.output - 1)
            episode.tpot_loss += min(tpot / talk.tpot_ref_s - 1.0, 5.0)
        episode.ttft_gain += max(1.0 - ttft / talk.ttft_ref_s, -5.0)
        episode.later_ttft_s += ttft
        episode.later_tpot_s += tpot
        slow_first, slow_rest = ttft > config.ttft_slo_s, tpot > config.tpot_slo_s
        episode.ttft_missed += slow_first
        episode.tpot_missed += slow_rest
        if not slow_first and not slow_rest:
            episode.met += 1
    talk.context += talk.prompt + talk.output
    talk.previous = talk.output
    talk.turn += 1
    talk.stage = OVER
    if talk.turn == talk.turns:
        episode.open -= 1


@kernel
def wait_at(state: State, lane: int, n: int, c: int) -> None:
    """Put a conversation at the end of a node's line."""
    node = state.node[lane, n]
    state.conversation[lane, c].next = -1
    if node.head < 0:
        node.head = c
    else:
        state.conversation[lane, node.tail].next = c
    node.tail = c
    node.waiting += 1


@kernel
def next_at(state: State, lane: int, n: int) -> int:
    """Take the first conversation out of a node's line."""
    node = state.node[lane, n]
    c = node.head
    node.head = state.conversation[lane, c].next
    node.waiting -= 1
    return c


# ------------------------------------------------------------------------------------------------------------------ P


@kernel
def ask_p(state: State, params: Params, lane: int, c: int) -> None:
    """A request goes to its P node."""
    config = params.config[0]
    talk = state.conversation[lane, c]
    node = state.node[lane, talk.p]
    held = state.cache[lane, 2 * c].tokens
    tokens = talk.context + talk.prompt
    talk.work_s = config.handoff_s + prefill_s(config, params, tokens - held, held)
    talk.stage = P_WAIT
    node.backlog_s += talk.work_s
    wait_at(state, lane, talk.p, c)
    if node.serving < 0:
        _serve_next(state, params, lane, talk.p)


@kernel
def _serve_next(state: State, params: Params, lane: int, n: int) -> None:
    """P begins the next prompt of its line; requests that have timed out are left out."""
    config = params.config[0]
    episode = state.lane[lane]
    node = state.node[lane, n]
    node.serving, node.blocked = -1, 0
    node.at_s = math.inf
    while node.head >= 0:
        c = next_at(state, lane, n)
        talk = state.conversation[lane, c]
        node.backlog_s -= talk.work_s
        if node.waiting == 0:
            node.backlog_s = 0.0
        if episode.clock_s - talk.asked_s > config.timeout_s:
            end_turn(state, params, lane, c, False)
            continue
        tokens = talk.context + talk.prompt
        held = take(state, lane, n, 2 * c)
        keep(state, lane, n, config.kv_capacity - tokens)
        state.cache[lane, 2 * c].tokens = tokens
        episode.p_tokens += tokens - held
        service_s = config.handoff_s + prefill_s(config, params, tokens - held, held)
        talk.stage, talk.work_s = P_RUN, service_s
        node.serving, node.since_s = c, episode.clock_s
        node.busy_s += service_s
        node.at_s = episode.clock_s + service_s
        break


@kernel
def finish_p(state: State, params: Params, lane: int, n: int) -> None:
    """P has a prompt done: its KV goes to D, and the next one begins; or P waits for room in D's buffer."""
    config = params.config[0]
    episode = state.lane[lane]
    node = state.node[lane, n]
    c = node.serving
    talk = state.conversation[lane, c]
    tokens = talk.context + talk.prompt
    link = state.link[lane, talk.d]
    if not has_room(link, tokens * config.kv_bytes):
        node.blocked = 1
        node.at_s = math.inf
        return
    send(link, tokens * config.kv_bytes)
    request = talk.later + talk.turn - 1 if talk.turn > 0 else c
    state.request[lane, request].moved_bytes = tokens * config.kv_bytes
    put(state, lane, n, 2 * c)
    talk.stage = MOVE
    talk.at_s = episode.clock_s + config.remote_s + config.remote_token_s * tokens
    sift_in(state, lane, c)
    _serve_next(state, params, lane, n)


@kernel
def _unblock(state: State, params: Params, lane: int, d: int) -> None:
    """The buffer of D has changed: P nodes that wait for it try again."""
    config = params.config[0]
    for n in range(config.ps):
        node = state.node[lane, n]
        if node.blocked == 1 and state.conversation[lane, node.serving].d == d:
            finish_p(state, params, lane, n)


# ------------------------------------------------------------------------------------------------------------------ D


@kernel
def _preempt(state: State, lane: int, n: int) -> None:
    """The youngest sequence loses its cache and waits first in line, to be prefilled anew with the answer so far."""
    node = state.node[lane, n]
    batch = state.running[lane, n]
    young = 0
    for i in range(1, node.running):
        if state.conversation[lane, batch[i]].age > state.conversation[lane, batch[young]].age:
            young = i
    c = batch[young]
    talk = state.conversation[lane, c]
    held = talk.context + talk.prompt + talk.kept
    if young < node.decoding:
        talk.kept = node.tick - talk.base
        held = talk.context + talk.prompt + talk.kept
        node.decoding -= 1
        node.context -= held
    node.active -= held
    state.cache[lane, 2 * c + 1].tokens = 0
    for i in range(young, node.running - 1):
        batch[i] = batch[i + 1]
    node.running -= 1
    talk.stage, talk.moving = D_WAIT, 0
    talk.next = node.head
    if node.head < 0:
        node.tail = c
    node.head = c
    node.waiting += 1
    state.lane[lane].preemptions += 1


@kernel
def begin_step(state: State, params: Params, lane: int, n: int) -> None:
    """D puts its next batch together and runs it; with nothing to run it is idle."""
    config = params.config[0]
    episode = state.lane[lane]
    node = state.node[lane, n]
    link = state.link[lane, n]
    batch = state.running[lane, n]
    # one token more for each sequence; conversations are cut so that one alone always fits
    while node.active + node.running > config.kv_capacity:
        _preempt(state, lane, n)
    budget = config.chunk
    prefill, attention_s, receive_s = 0, 0.0, 0.0
    full = False
    came = False
    for i in range(node.decoding, node.running):
        talk = state.conversation[lane, batch[i]]
        talk.run = min(talk.left, budget)
        budget -= talk.run
    while node.head >= 0 and node.running < config.seats:
        c = node.head
        talk = state.conversation[lane, c]
        tokens = talk.context + talk.prompt + talk.kept
        if episode.clock_s - talk.asked_s > config.timeout_s:
            next_at(state, lane, n)
            if talk.moving == 1:
                discard(link, tokens * config.kv_bytes)
                came = True
            end_turn(state, params, lane, c, False)
            continue
        if node.active + tokens + node.running + 1 > config.kv_capacity or (talk.moving == 0 and budget == 0):
            break
        next_at(state, lane, n)
        held = take(state, lane, n, 2 * c + 1)
        talk.left, talk.run, talk.full = 0, 0, 0
        if talk.moving == 1:
            receive_s += receive(link, tokens * config.kv_bytes)
            talk.moving = 0
            came = True
        else:
            talk.left = missing(config, talk, held)
            talk.full = 1 if held == 0 else 0
            talk.run = min(talk.left, budget)
            budget -= talk.run
            episode.d_tokens += talk.left
        keep(state, lane, n, config.kv_capacity - node.active - tokens - node.running - 1)
        state.cache[lane, 2 * c + 1].tokens = tokens
        node.active += tokens
        batch[node.running] = c
        node.running += 1
        node.oldest_ask_s = min(node.oldest_ask_s, talk.asked_s)
        talk.age = node.admitted
        node.admitted += 1
        talk.stage = D_RUN
    keep(state, lane, n, config.kv_capacity - node.active - node.running)
    node.kv_peak = max(node.kv_peak, node.active + node.idle)
    if came:
        _unblock(state, params, lane, n)
    node.at_s = math.inf
    if node.running == 0:
        return
    for i in range(node.decoding, node.running):
        talk = state.conversation[lane, batch[i]]
        prefill += talk.run
        full = full or (talk.run > 0 and talk.full == 1)
        if config.tables == 1 and talk.run > 0:
            held = talk.context + talk.prompt + talk.kept - talk.left
            attention_s += prefill_attention_s(params.cost, talk.run, held)
    dt = 0.0
    if config.tables == 1:
        dt = step_time_s(
            params.cost, prefill, attention_s, node.decoding, node.context, node.running, node.active
        )
    else:
        dt = config.step_s
        if prefill > 0:
            dt = max(dt, config.prefill_step_s + config.prefill_token_s * prefill)
        if node.kind == R:
            dt += config.replica_sequence_s * node.decoding + config.replica_context_token_s * node.context
            if node.decoding > 0:
                dt += config.replica_prefill_token_s * prefill
        else:
            dt += config.sequence_s * node.decoding + config.context_token_s * node.context
    if config.interference == PAPER and prefill > 0 and node.decoding >= CROWD:
        dt *= FULL_FACTOR if full else APPEND_FACTOR
    dt += receive_s
    node.since_s = episode.clock_s
    node.at_s = episode.clock_s + dt
    node.busy_s += dt
    node.steps += 1


@kernel
def end_step(state: State, params: Params, lane: int, n: int) -> None:
    """A step of D ends: who decodes has a token more, who has finished prefilling or receiving has the first one."""
    config = params.config[0]
    episode = state.lane[lane]
    node = state.node[lane, n]
    batch = state.running[lane, n]
    node.tick += 1
    node.mean_step_s += MEAN_STEP_WEIGHT * (episode.clock_s - node.since_s - node.mean_step_s)
    node.active += node.decoding
    node.context += node.decoding
    for i in range(node.decoding, node.running):
        c = batch[i]
        talk = state.conversation[lane, c]
        talk.left -= talk.run
        talk.run = 0
        if talk.left > 0:
            continue
        if talk.kept == 0:
            talk.first_s = episode.clock_s
        talk.base = node.tick - talk.kept - 1
        talk.finish = talk.base + talk.output
        node.next_finish = min(node.next_finish, talk.finish)
        node.active += 1
        node.context += talk.context + talk.prompt + talk.kept + 1
        for k in range(i, node.decoding, -1):
            batch[k] = batch[k - 1]
        batch[node.decoding] = c
        node.decoding += 1
    if node.tick >= node.next_finish or episode.clock_s - node.oldest_ask_s > config.timeout_s:
        _sweep(state, params, lane, n)


@kernel
def _excess(state: State, lane: int, n: int, c: int) -> float:
    """How far the TPOT of a decoding sequence is above what rewards compare it with so far, as a share of that; at most 5."""
    talk = state.conversation[lane, c]
    tokens = state.node[lane, n].tick - talk.base - 1
    if tokens < 1:
        return 0.0
    tpot_s = (state.lane[lane].clock_s - talk.first_s) / tokens
    return min(tpot_s / talk.tpot_ref_s - 1.0, 5.0)


@kernel
def _charge_crowd(state: State, params: Params, lane: int, n: int) -> None:
    """Charge the later turns that complete now for how slowly the others of their batch decode."""
    episode = state.lane[lane]
    node = state.node[lane, n]
    batch = state.running[lane, n]
    crowd = 0.0
    for i in range(node.decoding):
        crowd += _excess(state, lane, n, batch[i])
    for i in range(node.decoding):
        talk = state.conversation[lane, batch[i]]
        in_time = episode.clock_s - talk.asked_s <= params.config[0].timeout_s
        if talk.turn > 0 and talk.finish <= node.tick and in_time:
            episode.crowd_loss += (crowd - _excess(state, lane, n, batch[i])) / max(node.decoding - 1, 1)


@kernel
def _sweep(state: State, params: Params, lane: int, n: int) -> None:
    """Take out of the batch who has completed or timed out."""
    config = params.config[0]
    episode = state.lane[lane]
    node = state.node[lane, n]
    batch = state.running[lane, n]
    if config.shaped == 1:
        _charge_crowd(state, params, lane, n)
    kept, decoding = 0, 0
    node.next_finish = FAR
    node.oldest_ask_s = math.inf
    for i in range(node.running):
        c = batch[i]
        talk = state.conversation[lane, c]
        decodes = i < node.decoding
        late = episode.clock_s - talk.asked_s > config.timeout_s
        if not late and not (decodes and talk.finish <= node.tick):
            batch[kept] = c
            kept += 1
            node.oldest_ask_s = min(node.oldest_ask_s, talk.asked_s)
            if decodes:
                decoding += 1
                node.next_finish = min(node.next_finish, talk.finish)
            continue
        held = talk.context + talk.prompt + talk.kept
        if decodes:
            held = talk.context + talk.prompt + node.tick - talk.base
            node.context -= held
        node.active -= held
        entry = state.cache[lane, 2 * c + 1]
        entry.tokens = 0
        if not late:
            entry.tokens = held
            put(state, lane, n, 2 * c + 1)
        end_turn(state, params, lane, c, not late)
        if not late and talk.turn < talk.turns:
            think(state, params, lane, c)
    node.running, node.decoding = kept, decoding


@kernel
def pause_s(key: np.uint64, config: Any, c: int, turn: int) -> float:
    """Lognormal time until turn `turn` of conversation c, s; `think_s` is its median."""
    z = normal(substream(substream(key, _THINK), c), turn)
    return config.think_s * math.exp(config.think_sigma * z)


@kernel
def think(state: State, params: Params, lane: int, c: int) -> None:
    """The user reads the answer; then the next turn comes."""
    config = params.config[0]
    talk = state.conversation[lane, c]
    talk.stage = THINK
    talk.at_s = state.lane[lane].clock_s
    if config.think_s > 0.0:
        talk.at_s += pause_s(state.lane[lane].key, config, c, talk.turn)
    sift_in(state, lane, c)


@kernel
def arrive_at_d(state: State, params: Params, lane: int, c: int) -> None:
    """A request is visible to the scheduler of its D, which starts if it was idle."""
    talk = state.conversation[lane, c]
    talk.stage = D_WAIT
    wait_at(state, lane, talk.d, c)
    if state.node[lane, talk.d].at_s == math.inf:
        begin_step(state, params, lane, talk.d)


@kernel
def send_on(state: State, params: Params, lane: int, c: int, route: int) -> None:
    """A request takes its route."""
    config = params.config[0]
    episode = state.lane[lane]
    talk = state.conversation[lane, c]
    talk.route = route
    request = c
    if talk.turn > 0:
        request = talk.later + talk.turn - 1
        episode.local += route == LOCAL
    state.request[lane, request].route = route
    if route == LOCAL:
        talk.moving = 0
        talk.stage = MOVE
        talk.at_s = episode.clock_s + config.local_token_s * (talk.context + talk.prompt)
        if talk.p < 0:
            talk.at_s += config.replica_s
        else:
            rate = recent_rps(episode.first_sum, episode.first_at_s, episode.clock_s, config.rate_window_s)
            talk.at_s += config.local_s + config.local_rate_s2 * rate
        sift_in(state, lane, c)
    else:
        talk.moving = 1
        ask_p(state, params, lane, c)
