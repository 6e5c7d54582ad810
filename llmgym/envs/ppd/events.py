"""The clock of a PPD cluster: the next event happens, until a later turn waits for its route or a time is reached.

Events are arrivals of conversations, ends of pauses and of deliveries (a heap, earliest first) and the ends of steps and
prefills (one time for each node). At equal times the heap comes first, then arrivals, then nodes by number.
"""

import math
from typing import Any

import numpy as np

from llmgym.core.jit import kernel
from llmgym.core.rng import bits, substream, uniform
from llmgym.envs.ppd.cells import cell_of, nearest
from llmgym.envs.ppd.links import clear
from llmgym.envs.ppd.nodes import (
    arrive_at_d,
    begin_step,
    decayed,
    end_step,
    end_turn,
    finish_p,
    prefill_s,
    recent_rps,
    send_on,
)
from llmgym.envs.ppd.state import (
    ASKED,
    AWAY,
    DECISION,
    FAR,
    GATE,
    HASHED,
    LOCAL,
    MOVE,
    OVERALL,
    REMOTE,
    TIME,
    D,
    Params,
    R,
    State,
)
from llmgym.profiles.cost import step_time_s
from llmgym.workloads.traffic import draw

_OPENING, _FOLLOWING, _TURNS, _PLACE = 3, 4, 5, 6
"""Numbers of streams of an episode's key."""


@kernel
def begin_world(state: State, params: Params, lane: int, key: np.uint64) -> None:
    """Draw conversations and their turns; every node is idle and empty, and nobody has come yet."""
    episode = state.lane[lane]
    config = params.config[0]
    episode.clock_s, episode.key = 0.0, key
    episode.next, episode.gate, episode.open, episode.size, episode.current = 0, 0, 0, 0, -1
    (
        episode.asked,
        episode.done,
        episode.failed,
        episode.later,
        episode.later_asked,
        episode.later_done,
        episode.later_failed,
    ) = (
        0,
        0,
        0,
        0,
        0,
        0,
        0,
    )
    (
        episode.local,
        episode.met,
        episode.ttft_missed,
        episode.tpot_missed,
        episode.invalid,
        episode.evictions,
        episode.preemptions,
    ) = (
        0,
        0,
        0,
        0,
        0,
        0,
        0,
    )
    episode.rate_sum, episode.rate_at_s, episode.first_sum, episode.first_at_s, episode.sent = (
        0.0,
        0.0,
        0.0,
        0.0,
        0,
    )
    episode.output_tokens, episode.p_tokens, episode.d_tokens = 0.0, 0.0, 0.0
    episode.ttft_gain, episode.tpot_loss, episode.crowd_loss, episode.later_ttft_s, episode.later_tpot_s = (
        0.0,
        0.0,
        0.0,
        0.0,
        0.0,
    )
    episode.penalty, episode.paid = 0.0, 0.0
    for n in range(config.nodes):
        node = state.node[lane, n]
        node.kind = params.kind[n]
        node.since_s, node.at_s, node.oldest_ask_s = 0.0, math.inf, math.inf
        node.head, node.tail, node.oldest, node.newest, node.serving = -1, -1, -1, -1, -1
        node.waiting, node.idle, node.blocked, node.running, node.decoding = 0, 0, 0, 0, 0
        node.active, node.context, node.tick, node.admitted, node.steps, node.kv_peak = 0, 0, 0, 0, 0, 0
        node.next_finish = FAR
        node.backlog_s, node.busy_s, node.mean_step_s = 0.0, 0.0, config.step_s
        state.link[lane, n] = params.links[n]
        clear(state.link[lane, n])
    _draw_turns(state, params, lane, key)


@kernel
def _draw_turns(state: State, params: Params, lane: int, key: np.uint64) -> None:
    episode = state.lane[lane]
    config = params.config[0]
    request = state.request[lane]
    room = state.conversation.shape[1]
    count = draw(params.opening, substream(key, _OPENING), config.window_s, request[:room])
    episode.conversations = count
    slots = config.nodes - config.ps
    total = count
    counts, places = substream(key, _TURNS), substream(key, _PLACE)
    for c in range(count):
        talk = state.conversation[lane, c]
        talk.arrival_s = request[c].arrival_s
        talk.later = total
        talk.turns = 1
        u = uniform(counts, c)
        while talk.turns < config.max_turns and u > params.turns[talk.turns - 1]:
            talk.turns += 1
        total += talk.turns - 1
        # one number for both, as a conversation's id is hashed once
        hashed = int(bits(places, c) >> np.uint64(33))
        talk.d = config.ps + hashed % slots
        talk.p = hashed % config.ps if params.kind[talk.d] != R else -1
        talk.turn, talk.stage, talk.route, talk.moving, talk.context, talk.previous = 0, AWAY, -1, 0, 0, 0
        talk.prompt, talk.output, talk.predicted = request[c].prompt, request[c].output, request[c].predicted
        talk.kept, talk.left, talk.run, talk.full, talk.next = 0, 0, 0, 0, -1
        for side in range(2):
            entry = state.cache[lane, 2 * c + side]
            entry.tokens, entry.older, entry.newer, entry.listed = 0, -1, -1, 0
    draw(params.following, substream(key, _FOLLOWING), math.inf, request[count:total])
    checksum = 0.0
    for c in range(count):
        talk = state.conversation[lane, c]
        context = 0
        for turn in range(talk.turns):
            asked = request[talk.later + turn - 1 if turn > 0 else c]
            asked.route, asked.ttft_s, asked.e2e_s, asked.moved_bytes = -1, -1.0, -1.0, 0.0
            if turn == 0:
                asked.prompt = min(asked.prompt, config.longest - 1)
                asked.output = min(asked.output, config.longest - asked.prompt)
            elif context + asked.prompt + asked.output > config.longest:
                talk.turns = turn
                break
            asked.predicted = min(asked.predicted, config.longest - context - asked.prompt)
            context += asked.prompt + asked.output
            checksum += asked.prompt + 1e-3 * asked.output
        checksum += talk.arrival_s
        episode.later += talk.turns - 1
    episode.checksum = checksum


@kernel
def _pop(state: State, lane: int) -> int:
    """Take the conversation with the earliest time off the heap."""
    episode = state.lane[lane]
    heap, talks = state.heap[lane], state.conversation[lane]
    top = heap[0]
    episode.size -= 1
    last = heap[episode.size]
    at = 0
    while True:
        below = 2 * at + 1
        if below >= episode.size:
            break
        for k in range(below + 1, min(below + 2, episode.size)):
            other, first = talks[heap[k]], talks[heap[below]]
            if other.at_s < first.at_s or (other.at_s == first.at_s and heap[k] < heap[below]):
                below = k
        child = talks[heap[below]]
        if talks[last].at_s < child.at_s or (talks[last].at_s == child.at_s and last < heap[below]):
            break
        heap[at] = heap[below]
        at = below
    heap[at] = last
    return top


@kernel
def _ask(state: State, params: Params, lane: int, c: int, since_s: float) -> None:
    """A turn is asked: load it, and count it in the rate."""
    episode = state.lane[lane]
    config = params.config[0]
    talk = state.conversation[lane, c]
    asked = state.request[lane, talk.later + talk.turn - 1 if talk.turn > 0 else c]
    asked.arrival_s = since_s
    talk.prompt, talk.output, talk.predicted = asked.prompt, asked.output, asked.predicted
    talk.asked_s, talk.first_s, talk.kept = since_s, -1.0, 0
    talk.stage = ASKED
    episode.sent += 1
    episode.rate_sum = 1.0 + decayed(
        episode.rate_sum, episode.rate_at_s, episode.clock_s, config.rate_window_s
    )
    episode.rate_at_s = episode.clock_s
    if talk.turn == 0:
        episode.first_sum = 1.0 + decayed(
            episode.first_sum, episode.first_at_s, episode.clock_s, config.rate_window_s
        )
        episode.first_at_s = episode.clock_s
    else:
        episode.asked += 1
        episode.later_asked += 1
    if talk.turn > 0 or config.shaped == 1:
        refer(state, params, lane, c)


@kernel
def refer(state: State, params: Params, lane: int, c: int) -> None:
    """What the reward compares this turn with: the table where it has an answer, else the way over P in an empty cluster."""
    config = params.config[0]
    talk = state.conversation[lane, c]
    context, kind = cell_of(talk.context, talk.prompt, talk.output)
    talk.ttft_ref_s = params.reference[0, context, kind]
    talk.tpot_ref_s = params.reference[1, context, kind]
    if talk.ttft_ref_s > 0.0:
        return
    tokens = talk.context + talk.prompt
    new = talk.prompt + talk.previous
    step_s = config.step_s
    decode_s = config.step_s + config.sequence_s + config.context_token_s * tokens
    if config.tables == 1:
        step_s = step_time_s(params.cost, 1, 0.0, 0, 0, 1, tokens)
        decode_s = step_time_s(params.cost, 0, 0.0, 1, tokens, 1, tokens)
    link = state.link[lane, talk.d]
    ttft = config.handoff_s + prefill_s(config, params, new, tokens - new) + config.remote_s
    ttft += config.remote_token_s * tokens + step_s
    talk.ttft_ref_s = ttft + link.setup_s + tokens * config.kv_bytes * link.seconds_per_byte
    talk.tpot_ref_s = decode_s


@kernel
def rate_rps(config: Any, episode: Any) -> float:
    """Estimate of requests a second: a moving average, or all requests over all time."""
    if config.average_rate == 1:
        return episode.sent / max(episode.clock_s, 1.0)
    return recent_rps(episode.rate_sum, episode.rate_at_s, episode.clock_s, config.rate_window_s)


@kernel
def _let_in(state: State, params: Params, lane: int) -> None:
    """Conversations that have come are let in, as far as the limit allows; their first turn goes through P, or to their R."""
    episode = state.lane[lane]
    config = params.config[0]
    while episode.gate < episode.next and (config.max_inflight == 0 or episode.open < config.max_inflight):
        c = episode.gate
        talk = state.conversation[lane, c]
        episode.gate += 1
        episode.open += 1
        if episode.clock_s - talk.arrival_s > config.timeout_s:
            end_turn(state, params, lane, c, False)
            continue
        _ask(state, params, lane, c, talk.arrival_s)
        if config.placement != HASHED:
            _place(state, params, lane, c)
        send_on(state, params, lane, c, LOCAL if talk.p < 0 else REMOTE)


@kernel
def _freest(state: State, lane: int, first: int, last: int) -> int:
    """The node with the fewest requests, the first of them where several have."""
    best, fewest = first, FAR
    for n in range(first, last):
        node = state.node[lane, n]
        count = node.waiting + node.running + (1 if node.serving >= 0 else 0)
        if count < fewest:
            best, fewest = n, count
    return best


@kernel
def _place(state: State, params: Params, lane: int, c: int) -> None:
    """Give a new conversation to the nodes with the fewest requests."""
    config = params.config[0]
    talk = state.conversation[lane, c]
    talk.d = _freest(state, lane, config.ps, config.nodes)
    talk.p = _freest(state, lane, 0, config.ps)
    if params.kind[talk.d] == R:
        talk.p = -1


@kernel
def table_route(state: State, params: Params, lane: int, c: int, weight: int) -> int:
    """What the table says of a later turn, at the present rate."""
    config = params.config[0]
    talk = state.conversation[lane, c]
    output = talk.predicted if talk.predicted > 0 else config.default_output
    if params.kind[talk.d] != D or talk.prompt < config.bypass:
        return LOCAL
    context, kind = cell_of(talk.context, talk.prompt, output)
    at = nearest(params.rates, rate_rps(config, state.lane[lane]))
    return params.routes[weight, context, kind, at]


@kernel
def advance(state: State, params: Params, lane: int, until_s: float, weight: int) -> int:
    """Let events happen up to a time.

    Args:
        state: of all lanes.
        params: shared.
        lane: which.
        until_s: s; where nothing is left to happen before, the clock stands still instead.
        weight: number of the table that routes later turns; -1 to stop at each of them.

    Returns:
        `DECISION`, `TIME` or `OVERALL`.
    """
    episode = state.lane[lane]
    config = params.config[0]
    while True:
        if episode.gate < episode.next:
            _let_in(state, params, lane)
        at_s, what = math.inf, -3
        if episode.size > 0:
            at_s, what = state.conversation[lane, state.heap[lane, 0]].at_s, -2
        if episode.next < episode.conversations and state.conversation[lane, episode.next].arrival_s < at_s:
            at_s, what = state.conversation[lane, episode.next].arrival_s, -1
        for n in range(config.nodes):
            if state.node[lane, n].at_s < at_s:
                at_s, what = state.node[lane, n].at_s, n
        if what == -3:
            return OVERALL
        if at_s > until_s:
            episode.clock_s = until_s
            return TIME
        episode.clock_s = at_s
        if what == -2:
            c = _pop(state, lane)
            talk = state.conversation[lane, c]
            if talk.stage == MOVE:
                arrive_at_d(state, params, lane, c)
            else:
                _ask(state, params, lane, c, at_s)
                if weight < 0:
                    episode.current = c
                    return DECISION
                send_on(state, params, lane, c, table_route(state, params, lane, c, weight))
        elif what == -1:
            state.conversation[lane, episode.next].stage = GATE
            episode.next += 1
            episode.asked += 1
        elif what < config.ps:
            finish_p(state, params, lane, what)
        else:
            end_step(state, params, lane, what)
            begin_step(state, params, lane, what)
