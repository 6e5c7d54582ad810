"""The compiled functions of PPDRouting: one decision a later turn. See `llmgym.envs.ppd.routing.env` for what they mean."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmgym.core.jit import kernel
from llmgym.core.lanes import Kernels
from llmgym.envs.ppd.cache import missing
from llmgym.envs.ppd.events import advance, begin_world, rate_rps
from llmgym.envs.ppd.metrics import earned, metrics_lane
from llmgym.envs.ppd.nodes import send_on
from llmgym.envs.ppd.state import (
    KINDS,
    LOCAL,
    OVERALL,
    REMOTE,
    TIME,
    D,
    Params,
    State,
)

FIELDS = 23 + len(KINDS)


@kernel
def reset_lane(state: State, params: Params, lane: int, key: np.uint64) -> None:
    """Draw an episode and let it run until the first later turn."""
    begin_world(state, params, lane, key)
    advance(state, params, lane, params.config[0].limit_s, -1)


@kernel
def step_lane(
    state: State, params: Params, lane: int, action: NDArray[np.float64]
) -> tuple[float, bool, bool, float]:
    """Route the turn that waits, and let the cluster run until the next one does."""
    episode = state.lane[lane]
    config = params.config[0]
    start_s = episode.clock_s
    reason = OVERALL
    if episode.current >= 0:
        c = episode.current
        route = int(action[0])
        if route == REMOTE and params.kind[state.conversation[lane, c].d] != D:
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
def _log(tokens: float, config: Any) -> float:
    return min(math.log1p(tokens) / math.log1p(float(config.longest)), 1.0)


@kernel
def observe_lane(state: State, params: Params, lane: int, out: NDArray[np.float32]) -> None:
    """Write the observation: see `layout` in `llmgym.envs.ppd.routing.env`."""
    episode = state.lane[lane]
    config = params.config[0]
    for k in range(out.shape[0]):
        out[k] = 0.0
    out[16] = min(rate_rps(config, episode) / 20.0, 4.0)
    out[17] = min(config.w_ttft / 10.0, 4.0)
    out[18] = min(config.w_tpot / 10.0, 4.0)
    for n in range(config.nodes):
        out[23 + params.kind[n]] += np.float32(1.0 / config.nodes)
    if episode.current < 0:
        return
    c = episode.current
    talk = state.conversation[lane, c]
    tokens = talk.context + talk.prompt
    predicted = talk.predicted if talk.predicted > 0 else config.default_output
    held = state.cache[lane, 2 * c + 1].tokens
    out[0] = min(talk.turn / 20.0, 1.0)
    out[1] = _log(talk.prompt, config)
    out[2] = _log(predicted, config)
    out[3] = _log(talk.context, config)
    out[4] = _log(missing(config, talk, held), config)
    if talk.p >= 0:
        p = state.node[lane, talk.p]
        out[5] = _log(tokens - state.cache[lane, 2 * c].tokens, config)
        backlog_s = p.backlog_s
        if p.serving >= 0 and p.blocked == 0:  # what is left of it as reckoned, not as it will be
            backlog_s += max(p.since_s + state.conversation[lane, p.serving].work_s - episode.clock_s, 0.0)
        out[6] = min(backlog_s / 10.0, 1.0)
        out[7] = min((p.waiting + (1 if p.serving >= 0 else 0)) / 50.0, 1.0)
        out[8] = p.blocked
    d = state.node[lane, talk.d]
    link = state.link[lane, talk.d]
    out[9] = min(d.decoding / 256.0, 1.0)
    out[10] = d.active / config.kv_capacity
    out[11] = d.idle / config.kv_capacity
    pending = 0
    for i in range(d.decoding, d.running):
        pending += state.conversation[lane, state.running[lane, talk.d, i]].left
    other = d.head
    for _ in range(d.waiting):
        asked = state.conversation[lane, other]
        if asked.moving == 0:
            pending += missing(config, asked, state.cache[lane, 2 * other + 1].tokens)
        other = asked.next
    out[12] = min(pending / 4096.0, 4.0)
    out[13] = min(link.in_flight / 8.0, 4.0)
    out[14] = min(d.mean_step_s / 0.05, 4.0)
    out[15] = 1.0 if held > 0 else 0.0
    busy_s = link.in_flight * link.setup_s + link.in_flight_bytes * link.seconds_per_byte
    out[19] = min(busy_s, 4.0)
    out[20] = min(d.waiting / 50.0, 1.0)
    out[21] = (talk.d - config.ps) / max(config.nodes - config.ps - 1, 1)
    out[22] = min(d.context / config.kv_capacity, 1.0)


@kernel
def mask_lane(state: State, params: Params, lane: int, out: NDArray[np.int8]) -> None:
    """Both routes on D; pD and R always prefill themselves."""
    episode = state.lane[lane]
    out[1] = 1
    out[0] = 1 if episode.current < 0 or params.kind[state.conversation[lane, episode.current].d] == D else 0


KERNELS = Kernels(reset_lane, step_lane, observe_lane, mask_lane, metrics_lane)
