"""How decoding nodes of a PPD cluster work: one batch after the other, with prefills and receives in its steps.

The model is that of vLLM with a point-to-point KV connector, as Li et al. measured it ("Not All Prefills Are Equal: PPD
Disaggregation for Multi-turn LLM Serving", arXiv 2603.13358, sections 3 to 5 and the released code): D receives inside its step,
so that a transfer holds the whole batch up; a prefill on D shares the step with the decodes. Here D stands for every node that
decodes: D, pD and R.
"""

import math

from llmgym.core.jit import kernel
from llmgym.envs.ppd.cache import keep, missing, put, take
from llmgym.envs.ppd.costs import batch_s
from llmgym.envs.ppd.links import discard, receive
from llmgym.envs.ppd.prefill import unblock
from llmgym.envs.ppd.queues import join_line, leave_line
from llmgym.envs.ppd.state import D_RUN, D_WAIT, FAR, Params, State, d_entry
from llmgym.envs.ppd.turns import RATIO_LIMIT, complete, fail, think

MEAN_STEP_WEIGHT = 0.1
"""Weight of the newest step in the moving average of their durations."""


@kernel
def arrive_at_d(state: State, params: Params, lane: int, c: int) -> None:
    """A request is visible to the scheduler of its D, which starts if it was idle.

    Args:
        state: arrays of all lanes.
        params: shared by all lanes.
        lane: number of the lane.
        c: number of the conversation whose request it is.
    """
    conversation = state.conversation[lane, c]
    conversation.stage = D_WAIT
    join_line(state, lane, conversation.d, c)
    if state.node[lane, conversation.d].at_s == math.inf:
        begin_step(state, params, lane, conversation.d)


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
    conversation = state.conversation[lane, c]
    held = conversation.context + conversation.prompt + conversation.kept
    if young < node.decoding:
        conversation.kept = node.tick - conversation.base
        held = conversation.context + conversation.prompt + conversation.kept
        node.decoding -= 1
        node.context -= held
    node.active -= held
    state.cache[lane, d_entry(c)].tokens = 0
    for i in range(young, node.running - 1):
        batch[i] = batch[i + 1]
    node.running -= 1
    conversation.stage, conversation.moving = D_WAIT, 0
    conversation.next = node.head
    if node.head < 0:
        node.tail = c
    node.head = c
    node.waiting += 1
    state.lane[lane].preemptions += 1


@kernel(inline=True)
def begin_step(state: State, params: Params, lane: int, n: int) -> None:
    """D puts its next batch together and runs it; with nothing to run it is idle.

    Args:
        state: arrays of all lanes.
        params: shared by all lanes.
        lane: number of the lane.
        n: number of the D node.
    """
    config = params.config[0]
    episode = state.lane[lane]
    node = state.node[lane, n]
    link = state.link[lane, n]
    batch = state.running[lane, n]
    # one token more for each sequence; conversations are cut so that one alone always fits
    while node.active + node.running > config.kv_capacity:
        _preempt(state, lane, n)
    budget = config.chunk
    receive_s = 0.0
    came = False
    for i in range(node.decoding, node.running):
        conversation = state.conversation[lane, batch[i]]
        conversation.run = min(conversation.left, budget)
        budget -= conversation.run
    while node.head >= 0 and node.running < config.seats:
        c = node.head
        conversation = state.conversation[lane, c]
        tokens = conversation.context + conversation.prompt + conversation.kept
        if episode.clock_s - conversation.request_s > config.timeout_s:
            leave_line(state, lane, n)
            if conversation.moving == 1:
                discard(link, tokens * config.kv_bytes)
                came = True
            fail(state, lane, c)
            continue
        if node.active + tokens + node.running + 1 > config.kv_capacity or (
            conversation.moving == 0 and budget == 0
        ):
            break
        leave_line(state, lane, n)
        held = take(state, lane, n, d_entry(c))
        conversation.left, conversation.run, conversation.full = 0, 0, 0
        if conversation.moving == 1:
            receive_s += receive(link, tokens * config.kv_bytes)
            conversation.moving = 0
            came = True
        else:
            conversation.left = missing(config, conversation, held)
            conversation.full = 1 if held == 0 else 0
            conversation.run = min(conversation.left, budget)
            budget -= conversation.run
            episode.d_tokens += conversation.left
        keep(state, lane, n, config.kv_capacity - node.active - tokens - node.running - 1)
        state.cache[lane, d_entry(c)].tokens = tokens
        node.active += tokens
        batch[node.running] = c
        node.running += 1
        node.oldest_request_s = min(node.oldest_request_s, conversation.request_s)
        conversation.age = node.admitted
        node.admitted += 1
        conversation.stage = D_RUN
    keep(state, lane, n, config.kv_capacity - node.active - node.running)
    node.kv_peak = max(node.kv_peak, node.active + node.idle)
    if came:
        unblock(state, params, lane, n)
    node.at_s = math.inf
    if node.running == 0:
        return
    dt = batch_s(state, params, lane, n) + receive_s
    node.since_s = episode.clock_s
    node.at_s = episode.clock_s + dt
    node.busy_s += dt
    node.steps += 1


@kernel(inline=True)
def end_step(state: State, params: Params, lane: int, n: int) -> None:
    """A step of D ends: who decodes has a token more, who has finished prefilling or receiving has the first one.

    Args:
        state: arrays of all lanes.
        params: shared by all lanes.
        lane: number of the lane.
        n: number of the D node.
    """
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
        conversation = state.conversation[lane, c]
        conversation.left -= conversation.run
        conversation.run = 0
        if conversation.left > 0:
            continue
        if conversation.kept == 0:
            conversation.first_s = episode.clock_s
        conversation.base = node.tick - conversation.kept - 1
        conversation.finish = conversation.base + conversation.output
        node.next_finish = min(node.next_finish, conversation.finish)
        node.active += 1
        node.context += conversation.context + conversation.prompt + conversation.kept + 1
        for k in range(i, node.decoding, -1):
            batch[k] = batch[k - 1]
        batch[node.decoding] = c
        node.decoding += 1
    if node.tick >= node.next_finish or episode.clock_s - node.oldest_request_s > config.timeout_s:
        _sweep(state, params, lane, n)


@kernel(inline=True)
def _excess(state: State, lane: int, n: int, c: int) -> float:
    """How far the TPOT of a decoding sequence is above what rewards compare it with so far, as a share of that."""
    conversation = state.conversation[lane, c]
    tokens = state.node[lane, n].tick - conversation.base - 1
    if tokens < 1:
        return 0.0
    tpot_s = (state.lane[lane].clock_s - conversation.first_s) / tokens
    return min(tpot_s / conversation.tpot_ref_s - 1.0, RATIO_LIMIT)


@kernel(inline=True)
def _charge_crowd(state: State, params: Params, lane: int, n: int) -> None:
    """Charge the later turns that complete now for how slowly the others of their batch decode."""
    episode = state.lane[lane]
    node = state.node[lane, n]
    batch = state.running[lane, n]
    crowd = 0.0
    for i in range(node.decoding):
        crowd += _excess(state, lane, n, batch[i])
    for i in range(node.decoding):
        conversation = state.conversation[lane, batch[i]]
        in_time = episode.clock_s - conversation.request_s <= params.config[0].timeout_s
        if conversation.turn > 0 and conversation.finish <= node.tick and in_time:
            episode.crowd_loss += (crowd - _excess(state, lane, n, batch[i])) / max(node.decoding - 1, 1)


@kernel(inline=True)
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
    node.oldest_request_s = math.inf
    for i in range(node.running):
        c = batch[i]
        conversation = state.conversation[lane, c]
        decodes = i < node.decoding
        late = episode.clock_s - conversation.request_s > config.timeout_s
        if not late and not (decodes and conversation.finish <= node.tick):
            batch[kept] = c
            kept += 1
            node.oldest_request_s = min(node.oldest_request_s, conversation.request_s)
            if decodes:
                decoding += 1
                node.next_finish = min(node.next_finish, conversation.finish)
            continue
        held = conversation.context + conversation.prompt + conversation.kept
        if decodes:
            held = conversation.context + conversation.prompt + node.tick - conversation.base
            node.context -= held
        node.active -= held
        entry = state.cache[lane, d_entry(c)]
        entry.tokens = 0
        if late:
            fail(state, lane, c)
            continue
        entry.tokens = held
        put(state, lane, n, d_entry(c))
        complete(state, params, lane, c)
        if conversation.turn < conversation.turns:
            think(state, params, lane, c)
    node.running, node.decoding = kept, decoding
