"""The compiled functions of PPDRouting: one decision a later turn. See `llmgym.envs.ppd.routing.env` for what they mean."""

import math

import numpy as np
from numpy.typing import NDArray

from llmgym.core.jit import kernel
from llmgym.core.lanes import Kernels
from llmgym.core.records import Record, shown
from llmgym.envs.ppd.cache import missing
from llmgym.envs.ppd.events import advance, send_on
from llmgym.envs.ppd.metrics import earned, metrics_lane
from llmgym.envs.ppd.state import (
    BATCH_SCALE,
    LOCAL,
    MOST,
    OVERALL,
    PREFILL_SCALE,
    QUEUE_SCALE,
    RATE_SCALE_RPS,
    REMOTE,
    ROLES,
    STEP_SCALE_S,
    TIME,
    TIME_SCALE_S,
    TRANSFER_SCALE,
    TURN_SCALE,
    WEIGHT_SCALE,
    Config,
    D,
    Params,
    State,
    d_entry,
    p_entry,
)
from llmgym.envs.ppd.turns import rate_rps
from llmgym.envs.ppd.world import begin_world


class Observation(Record):
    """What a router sees; without a turn that waits for its route only the rate, the weights and the nodes are told."""

    turn: float = shown("number of the turn that waits for its route, from 0", unit="20")
    prompt: float = shown(
        "new tokens m; log(1 + tokens) over that of `longest`, as all logs here", unit="log"
    )
    answer: float = shown("tokens of the answer to expect", unit="log")
    context: float = shown("tokens n of earlier prompts and answers", unit="log")
    d_tokens: float = shown("tokens that D would have to prefill", unit="log", name="d.tokens")
    p_tokens: float = shown(
        "tokens that P would have to prefill; 0 where there is no P", unit="log", name="p.tokens"
    )
    p_backlog: float = shown(
        "work of those at this P, as reckoned from their tokens", unit="10 s", name="p.backlog"
    )
    p_queue: float = shown("requests at this P", unit="50", name="p.queue")
    p_blocked: float = shown("1: P waits for room in the receive buffer of a D", name="p.blocked")
    d_batch: float = shown("sequences that decode on this D", unit="256", name="d.batch")
    d_active: float = shown("tokens in its cache of sequences in the batch", unit="capacity", name="d.active")
    d_idle: float = shown(
        "tokens in its cache of conversations that may come back", unit="capacity", name="d.idle"
    )
    d_prefill: float = shown("tokens waiting to be prefilled on it", unit="4096", high=MOST, name="d.prefill")
    d_receives: float = shown(
        "transfers on their way to it, or in its buffer", unit="8", high=MOST, name="d.receives"
    )
    d_step: float = shown(
        "moving average of the duration of its steps that have ended", unit="50 ms", high=MOST, name="d.step"
    )
    d_resident: float = shown("1: its cache still holds this conversation", name="d.resident")
    rate: float = shown("requests a second, as the table is read by", unit="20", high=MOST)
    w_ttft: float = shown("weight of TTFT", unit="10", high=MOST, name="w.ttft")
    w_tpot: float = shown("weight of TPOT", unit="10", high=MOST, name="w.tpot")
    link_busy: float = shown(
        "time that D will spend on these transfers", unit="s", high=MOST, name="link.busy"
    )
    d_queue: float = shown("requests that wait for a place in its batch", unit="50", name="d.queue")
    d_number: float = shown(
        "which decoding node it is: 0 the first, 1 the last", unit="share", name="d.number"
    )
    d_context: float = shown("tokens that its decodes read in a step", unit="capacity", name="d.context")
    nodes: NDArray[np.float32] = shown(
        "share of P, D, pD and R among the nodes", unit="share", size=len(ROLES)
    )


@kernel
def reset_lane(state: State, params: Params, lane: int, key: np.uint64) -> None:
    """Draw an episode and let it run until the first later turn.

    Args:
        state: arrays of all lanes.
        params: shared by all lanes.
        lane: number of the lane.
        key: seeds everything that is drawn in the episode, uint64.
    """
    begin_world(state, params, lane, key)
    advance(state, params, lane, params.config[0].limit_s, -1)


@kernel
def step_lane(
    state: State, params: Params, lane: int, action: NDArray[np.float64]
) -> tuple[float, bool, bool, float]:
    """Route the turn that waits, and let the cluster run until the next one does.

    Args:
        state: arrays of all lanes.
        params: shared by all lanes.
        lane: number of the lane.
        action: float64 [1], `REMOTE` or `LOCAL`.

    Returns:
        Reward, whether the episode is over, whether it is cut, and the time that passed, seconds.
    """
    episode = state.lane[lane]
    config = params.config[0]
    start_s = episode.clock_s
    reason = OVERALL
    if episode.current >= 0:
        c = episode.current
        route = int(action[0])
        if route == REMOTE and params.role[state.conversation[lane, c].d] != D:
            episode.invalid += 1
            episode.penalty += config.invalid_cost
            route = LOCAL
        episode.current = -1
        send_on(state, params, lane, c, route)
        reason = advance(state, params, lane, config.limit_s, -1)
    elif episode.clock_s >= config.limit_s:
        reason = TIME
    total = earned(config, episode)
    reward = total - episode.paid
    episode.paid = total
    return reward, reason == OVERALL, reason == TIME, episode.clock_s - start_s


@kernel(inline=True)
def _log(tokens: float, config: Config) -> float:
    return min(math.log1p(tokens) / math.log1p(float(config.longest)), 1.0)


@kernel
def observe_lane(
    state: State, params: Params, lane: int, out: Observation, rest: NDArray[np.float32]
) -> None:
    """Write the observation.

    Args:
        state: arrays of all lanes.
        params: shared by all lanes.
        lane: number of the lane.
        out: the record of the observation, written.
        rest: float32 [0], not used: the record is the whole observation.
    """
    episode = state.lane[lane]
    config = params.config[0]
    out.rate = min(rate_rps(config, episode) / RATE_SCALE_RPS, MOST)
    out.w_ttft = min(config.w_ttft / WEIGHT_SCALE, MOST)
    out.w_tpot = min(config.w_tpot / WEIGHT_SCALE, MOST)
    for role in range(len(ROLES)):
        out.nodes[role] = 0.0
    for n in range(config.nodes):
        out.nodes[params.role[n]] += np.float32(1.0 / config.nodes)
    if episode.current >= 0:
        _observe_turn(state, params, lane, out)
        _observe_p(state, params, lane, out)
        _observe_d(state, params, lane, out)
        return
    out.turn = out.prompt = out.answer = out.context = out.d_tokens = out.d_resident = out.d_number = 0.0
    out.p_tokens = out.p_backlog = out.p_queue = out.p_blocked = 0.0
    out.d_batch = out.d_active = out.d_idle = out.d_prefill = out.d_receives = out.d_step = 0.0
    out.link_busy = out.d_queue = out.d_context = 0.0


@kernel(inline=True)
def _observe_turn(state: State, params: Params, lane: int, out: Observation) -> None:
    """Write what is known of the turn that waits for its route."""
    config = params.config[0]
    c = state.lane[lane].current
    conversation = state.conversation[lane, c]
    predicted = conversation.predicted if conversation.predicted > 0 else config.default_output
    held = state.cache[lane, d_entry(c)].tokens
    out.turn = min(conversation.turn / TURN_SCALE, 1.0)
    out.prompt = _log(conversation.prompt, config)
    out.answer = _log(predicted, config)
    out.context = _log(conversation.context, config)
    out.d_tokens = _log(missing(config, conversation, held), config)
    out.d_resident = 1.0 if held > 0 else 0.0
    out.d_number = (conversation.d - config.ps) / max(config.nodes - config.ps - 1, 1)


@kernel(inline=True)
def _observe_p(state: State, params: Params, lane: int, out: Observation) -> None:
    """Write how the P node of the turn that waits is; zeros where it has none."""
    config = params.config[0]
    episode = state.lane[lane]
    c = episode.current
    conversation = state.conversation[lane, c]
    if conversation.p < 0:
        out.p_tokens = out.p_backlog = out.p_queue = out.p_blocked = 0.0
        return
    node = state.node[lane, conversation.p]
    tokens = conversation.context + conversation.prompt
    out.p_tokens = _log(tokens - state.cache[lane, p_entry(c)].tokens, config)
    backlog_s = node.backlog_s
    if node.serving >= 0 and node.blocked == 0:  # what is left of it as reckoned, not as it will be
        reckoned_s = state.conversation[lane, node.serving].work_s
        backlog_s += max(node.since_s + reckoned_s - episode.clock_s, 0.0)
    out.p_backlog = min(backlog_s / TIME_SCALE_S, 1.0)
    out.p_queue = min((node.waiting + (1 if node.serving >= 0 else 0)) / QUEUE_SCALE, 1.0)
    out.p_blocked = node.blocked


@kernel(inline=True)
def _observe_d(state: State, params: Params, lane: int, out: Observation) -> None:
    """Write how the decoding node of the turn that waits, and the link to it, are."""
    config = params.config[0]
    d = state.conversation[lane, state.lane[lane].current].d
    node, link = state.node[lane, d], state.link[lane, d]
    pending = 0
    for i in range(node.decoding, node.running):
        pending += state.conversation[lane, state.running[lane, d, i]].left
    c = node.head
    for _ in range(node.waiting):
        conversation = state.conversation[lane, c]
        if conversation.moving == 0:
            pending += missing(config, conversation, state.cache[lane, d_entry(c)].tokens)
        c = conversation.next
    busy_s = link.in_flight * link.setup_s + link.in_flight_bytes * link.seconds_per_byte
    out.d_batch = min(node.decoding / BATCH_SCALE, 1.0)
    out.d_active = node.active / config.kv_capacity
    out.d_idle = node.idle / config.kv_capacity
    out.d_prefill = min(pending / PREFILL_SCALE, MOST)
    out.d_receives = min(link.in_flight / TRANSFER_SCALE, MOST)
    out.d_step = min(node.mean_step_s / STEP_SCALE_S, MOST)
    out.link_busy = min(busy_s, MOST)
    out.d_queue = min(node.waiting / QUEUE_SCALE, 1.0)
    out.d_context = min(node.context / config.kv_capacity, 1.0)


@kernel
def mask_lane(state: State, params: Params, lane: int, out: NDArray[np.int8]) -> None:
    """Allow both routes on D; pD and R always prefill themselves.

    Args:
        state: arrays of all lanes.
        params: shared by all lanes.
        lane: number of the lane.
        out: int8 [2], written: 1 for what is allowed of REMOTE and LOCAL, 0 for the rest.
    """
    current = state.lane[lane].current
    out[LOCAL] = 1
    out[REMOTE] = 1 if current < 0 or params.role[state.conversation[lane, current].d] == D else 0


KERNELS = Kernels(reset_lane, step_lane, observe_lane, mask_lane, metrics_lane)
