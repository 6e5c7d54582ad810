"""The clock of a PPD cluster: the next event happens, until a later turn waits for its route or a time is reached.

Events are arrivals of conversations, ends of pauses and of deliveries (a heap, earliest first) and the ends of steps and
prefills (one time for each node). At equal times the heap comes first, then arrivals, then nodes by number.
"""

import math

from llmgym.core.jit import kernel
from llmgym.envs.ppd.cells import cell_of, nearest
from llmgym.envs.ppd.decode import arrive_at_d, begin_step, end_step
from llmgym.envs.ppd.prefill import arrive_at_p, finish_prompt
from llmgym.envs.ppd.queues import pop, push
from llmgym.envs.ppd.state import (
    DECISION,
    FAR,
    GATE,
    HASHED,
    LOCAL,
    MOVE,
    OVERALL,
    REMOTE,
    TIME,
    UNROUTED,
    D,
    Params,
    R,
    State,
    turn_number,
)
from llmgym.envs.ppd.turns import decayed, fail, rate_rps, recent_rps, refer

NOTHING, TIMER, ARRIVAL = -3, -2, -1
"""Events without a node: none is left; the earliest time of the heap; a conversation arrives."""


@kernel(inline=True)
def _begin_turn(state: State, params: Params, lane: int, c: int, since_s: float) -> None:
    """A turn comes: load it, and count it in the rate."""
    episode = state.lane[lane]
    config = params.config[0]
    conversation = state.conversation[lane, c]
    request = state.request[lane, turn_number(conversation, c)]
    request.arrival_s = since_s
    conversation.prompt, conversation.output = request.prompt, request.output
    conversation.predicted = request.predicted
    conversation.request_s, conversation.first_s, conversation.kept = since_s, -1.0, 0
    conversation.stage = UNROUTED
    episode.sent += 1
    episode.rate_sum = 1.0 + decayed(
        episode.rate_sum, episode.rate_at_s, episode.clock_s, config.rate_window_s
    )
    episode.rate_at_s = episode.clock_s
    if conversation.turn == 0:
        episode.first_sum = 1.0 + decayed(
            episode.first_sum, episode.first_at_s, episode.clock_s, config.rate_window_s
        )
        episode.first_at_s = episode.clock_s
    else:
        episode.requests += 1
        episode.later_requests += 1
    if conversation.turn > 0 or config.shaped == 1:
        refer(state, params, lane, c)


@kernel(inline=True)
def send_on(state: State, params: Params, lane: int, c: int, route: int) -> None:
    """A request takes its route.

    Args:
        state: arrays of all lanes.
        params: shared by all lanes.
        lane: number of the lane.
        c: number of the conversation.
        route: `REMOTE` or `LOCAL`.
    """
    config = params.config[0]
    episode = state.lane[lane]
    conversation = state.conversation[lane, c]
    conversation.route = route
    if conversation.turn > 0:
        episode.local += route == LOCAL
    state.request[lane, turn_number(conversation, c)].route = route
    if route == REMOTE:
        conversation.moving = 1
        arrive_at_p(state, params, lane, c)
        return
    conversation.moving = 0
    conversation.stage = MOVE
    tokens = conversation.context + conversation.prompt
    conversation.at_s = episode.clock_s + config.local_token_s * tokens
    if conversation.p < 0:
        conversation.at_s += config.replica_s
    else:
        rate = recent_rps(episode.first_sum, episode.first_at_s, episode.clock_s, config.rate_window_s)
        conversation.at_s += config.local_s + config.local_rate_s2 * rate
    push(state, lane, c)


@kernel(inline=True)
def _let_in(state: State, params: Params, lane: int) -> None:
    """Conversations that have come are let in, as far as the limit allows; their first turn goes through P, or to their R."""
    episode = state.lane[lane]
    config = params.config[0]
    while episode.gate < episode.next and (config.max_inflight == 0 or episode.open < config.max_inflight):
        c = episode.gate
        conversation = state.conversation[lane, c]
        episode.gate += 1
        episode.open += 1
        if episode.clock_s - conversation.arrival_s > config.timeout_s:
            fail(state, lane, c)
            continue
        _begin_turn(state, params, lane, c, conversation.arrival_s)
        if config.placement != HASHED:
            _place(state, params, lane, c)
        send_on(state, params, lane, c, LOCAL if conversation.p < 0 else REMOTE)


@kernel(inline=True)
def _freest(state: State, lane: int, first: int, last: int) -> int:
    """The node with the fewest requests, the first of them where several have."""
    best, fewest = first, FAR
    for n in range(first, last):
        node = state.node[lane, n]
        count = node.waiting + node.running + (1 if node.serving >= 0 else 0)
        if count < fewest:
            best, fewest = n, count
    return best


@kernel(inline=True)
def _place(state: State, params: Params, lane: int, c: int) -> None:
    """Give a new conversation to the nodes with the fewest requests."""
    config = params.config[0]
    conversation = state.conversation[lane, c]
    conversation.d = _freest(state, lane, config.ps, config.nodes)
    conversation.p = _freest(state, lane, 0, config.ps)
    if params.role[conversation.d] == R:
        conversation.p = -1


@kernel(inline=True)
def table_route(state: State, params: Params, lane: int, c: int, weight: int) -> int:
    """What the table says of a later turn, at the present rate.

    Args:
        state: arrays of all lanes.
        params: shared by all lanes.
        lane: number of the lane.
        c: number of the conversation.
        weight: number of the table.

    Returns:
        `REMOTE` or `LOCAL`.
    """
    config = params.config[0]
    conversation = state.conversation[lane, c]
    output = conversation.predicted if conversation.predicted > 0 else config.default_output
    if params.role[conversation.d] != D or conversation.prompt < config.bypass:
        return LOCAL
    context, turn_type = cell_of(conversation.context, conversation.prompt, output)
    rate = nearest(params.rates, rate_rps(config, state.lane[lane]))
    return params.routes[weight, context, turn_type, rate]


@kernel(inline=True)
def advance(state: State, params: Params, lane: int, until_s: float, weight: int) -> int:
    """Let events happen up to a time.

    Args:
        state: arrays of all lanes.
        params: shared by all lanes.
        lane: number of the lane.
        until_s: time, seconds; where nothing is left to happen before, the clock stands still instead.
        weight: number of the table that routes later turns; -1 to stop at each of them.

    Returns:
        `DECISION`, `TIME` or `OVERALL`.
    """
    episode = state.lane[lane]
    config = params.config[0]
    while True:
        if episode.gate < episode.next:
            _let_in(state, params, lane)
        at_s, event = math.inf, NOTHING
        if episode.size > 0:
            at_s, event = state.conversation[lane, state.heap[lane, 0]].at_s, TIMER
        if episode.next < episode.conversations and state.conversation[lane, episode.next].arrival_s < at_s:
            at_s, event = state.conversation[lane, episode.next].arrival_s, ARRIVAL
        for n in range(config.nodes):
            if state.node[lane, n].at_s < at_s:
                at_s, event = state.node[lane, n].at_s, n
        if event == NOTHING:
            return OVERALL
        if at_s > until_s:
            episode.clock_s = until_s
            return TIME
        episode.clock_s = at_s
        if event == TIMER:
            c = pop(state, lane)
            conversation = state.conversation[lane, c]
            if conversation.stage == MOVE:
                arrive_at_d(state, params, lane, c)
            else:
                _begin_turn(state, params, lane, c, at_s)
                if weight < 0:
                    episode.current = c
                    return DECISION
                send_on(state, params, lane, c, table_route(state, params, lane, c, weight))
        elif event == ARRIVAL:
            state.conversation[lane, episode.next].stage = GATE
            episode.next += 1
            episode.requests += 1
        elif event < config.ps:
            finish_prompt(state, params, lane, event)
        else:
            end_step(state, params, lane, event)
            begin_step(state, params, lane, event)
