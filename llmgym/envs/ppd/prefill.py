"""How P nodes of a PPD cluster work: one prompt after the other, each handed over to its D before the next one begins.

The model is that of vLLM with a point-to-point KV connector, as Li et al. measured it ("Not All Prefills Are Equal: PPD
Disaggregation for Multi-turn LLM Serving", arXiv 2603.13358, sections 3 to 5 and the released code).
"""

import math

from llmgym.core.jit import kernel
from llmgym.envs.ppd.cache import keep, put, take
from llmgym.envs.ppd.costs import prefill_s
from llmgym.envs.ppd.links import has_room, send
from llmgym.envs.ppd.queues import join_line, leave_line, push
from llmgym.envs.ppd.state import MOVE, P_RUN, P_WAIT, Params, State, p_entry, turn_number
from llmgym.envs.ppd.turns import fail


@kernel(inline=True)
def arrive_at_p(state: State, params: Params, lane: int, c: int) -> None:
    """A request comes to its P node, which starts if it was idle.

    Args:
        state: arrays of all lanes.
        params: shared by all lanes.
        lane: number of the lane.
        c: number of the conversation whose request it is.
    """
    config = params.config[0]
    conversation = state.conversation[lane, c]
    node = state.node[lane, conversation.p]
    held = state.cache[lane, p_entry(c)].tokens
    tokens = conversation.context + conversation.prompt
    conversation.work_s = config.handoff_s + prefill_s(config, params, tokens - held, held)
    conversation.stage = P_WAIT
    node.backlog_s += conversation.work_s
    join_line(state, lane, conversation.p, c)
    if node.serving < 0:
        _serve_next(state, params, lane, conversation.p)


@kernel(inline=True)
def _serve_next(state: State, params: Params, lane: int, n: int) -> None:
    """P begins the next prompt of its line; requests that have timed out are left out."""
    config = params.config[0]
    episode = state.lane[lane]
    node = state.node[lane, n]
    node.serving, node.blocked = -1, 0
    node.at_s = math.inf
    while node.head >= 0:
        c = leave_line(state, lane, n)
        conversation = state.conversation[lane, c]
        node.backlog_s -= conversation.work_s
        if node.waiting == 0:
            node.backlog_s = 0.0
        if episode.clock_s - conversation.request_s > config.timeout_s:
            fail(state, lane, c)
            continue
        tokens = conversation.context + conversation.prompt
        held = take(state, lane, n, p_entry(c))
        keep(state, lane, n, config.kv_capacity - tokens)
        state.cache[lane, p_entry(c)].tokens = tokens
        episode.p_tokens += tokens - held
        service_s = config.handoff_s + prefill_s(config, params, tokens - held, held)
        conversation.stage, conversation.work_s = P_RUN, service_s
        node.serving, node.since_s = c, episode.clock_s
        node.busy_s += service_s
        node.at_s = episode.clock_s + service_s
        break


@kernel(inline=True)
def finish_prompt(state: State, params: Params, lane: int, n: int) -> None:
    """P has a prompt done: its KV goes to D, and the next one begins; or P waits for room in D's buffer.

    Args:
        state: arrays of all lanes.
        params: shared by all lanes.
        lane: number of the lane.
        n: number of the node, which serves a prompt.
    """
    config = params.config[0]
    episode = state.lane[lane]
    node = state.node[lane, n]
    c = node.serving
    conversation = state.conversation[lane, c]
    tokens = conversation.context + conversation.prompt
    link = state.link[lane, conversation.d]
    if not has_room(link, tokens * config.kv_bytes):
        node.blocked = 1
        node.at_s = math.inf
        return
    send(link, tokens * config.kv_bytes)
    state.request[lane, turn_number(conversation, c)].moved_bytes = tokens * config.kv_bytes
    put(state, lane, n, p_entry(c))
    conversation.stage = MOVE
    conversation.at_s = episode.clock_s + config.remote_s + config.remote_token_s * tokens
    push(state, lane, c)
    _serve_next(state, params, lane, n)


@kernel(inline=True)
def unblock(state: State, params: Params, lane: int, d: int) -> None:
    """The buffer of a D node has changed: P nodes that wait for room in it try again.

    Args:
        state: arrays of all lanes.
        params: shared by all lanes.
        lane: number of the lane.
        d: number of the D node.
    """
    config = params.config[0]
    for n in range(config.ps):
        node = state.node[lane, n]
        if node.blocked == 1 and state.conversation[lane, node.serving].d == d:
            finish_prompt(state, params, lane, n)
