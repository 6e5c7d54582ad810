"""How OServe hands requests to replicas: shares by the linear program, and single requests by credits or by load.

The shares of a type are the flows at the largest headroom (`llmgym.envs.oserve.deployments.headroom`), the same for replicas of one
shape. Single requests follow them by a weighted round robin: every replica earns its share with each request, the one with the
largest credit gets it and pays one (interleaved weighted round robin, as in Helix, arXiv 2406.01566).
"""

import math

from llmgym.core.jit import kernel
from llmgym.envs.oserve.deployments import headroom
from llmgym.envs.oserve.replicas import able, advance, dequeue, enqueue
from llmgym.envs.oserve.state import (
    BLIND,
    FLOW,
    LEAST_KV,
    LEAST_WORK,
    NO_LOAD,
    ROUTE,
    Params,
    State,
)

_FLOOR = 0.002
"""A type is planned for with at least this share of all requests: one that nobody expects may still come."""
_TICK_S = 1.0


@kernel
def set_routes(state: State, params: Params, lane: int, now_s: float) -> None:
    """Work the shares out anew, for the requests that `state.plan` expects."""
    episode = state.lane[lane]
    config = params.config[0]
    slots, plan, share = state.slot[lane], state.plan[lane], state.share[lane]
    total = 0.0
    for j in range(config.types):
        total += plan[j]
    for j in range(config.types):
        plan[j] = max(plan[j], _FLOOR * total)
    replicas, flow = state.replicas[lane], state.flow[lane]
    for k in range(slots.shape[0]):
        for j in range(config.types):
            share[1, j, k] = 0.0
    if episode.stopping == 1:
        for s in range(replicas.shape[1]):
            replicas[1, s] = 0
        for k in range(slots.shape[0]):
            if slots[k].shape >= 0 and slots[k].ready_s <= now_s:
                replicas[1, slots[k].shape] += 1
        headroom(replicas[1], plan, params.type_rate, state.scratch[lane], flow)
        for j in range(config.types):
            taken = 0.0
            for s in range(replicas.shape[1]):
                taken += flow[s, j]
            if taken > 0.0:
                _spread(state, params, lane, 1, j, min(taken / plan[j], 1.0), now_s, True)
    episode.headroom = min(headroom(replicas[0], plan, params.type_rate, state.scratch[lane], flow), NO_LOAD)
    if config.dispatch == BLIND:
        _blind(state, params, lane)
        return
    for j in range(config.types):
        for k in range(slots.shape[0]):
            share[0, j, k] = 0.0
        _spread(state, params, lane, 0, j, 1.0, math.inf, True)
        if config.action == ROUTE:
            _given(state, params, lane, j)
    if episode.stopping == 1:
        # what those that serve cannot take waits for those that start
        for j in range(config.types):
            given = 0.0
            for k in range(slots.shape[0]):
                given += share[1, j, k]
            if given < 1.0 - 1e-12:
                _spread(state, params, lane, 1, j, 1.0 - given, now_s, False)


@kernel
def _spread(
    state: State, params: Params, lane: int, row: int, j: int, amount: float, now_s: float, serving: bool
) -> None:
    """Divide `amount` of a type among the replicas that serve (or that do not), as the flows say; by rate where these say
    nothing.
    """
    slots, flow, share = state.slot[lane], state.flow[lane], state.share[lane, row, j]
    for by_flow in range(2):
        total = 0.0
        for k in range(slots.shape[0]):
            s = slots[k].shape
            if s >= 0 and (slots[k].ready_s <= now_s) == serving:
                weight = params.type_rate[s, j]
                if by_flow == 0:
                    weight = flow[s, j] / max(state.replicas[lane, 1 if row == 1 and serving else 0, s], 1)
                total += weight
        if total > 1e-12:
            for k in range(slots.shape[0]):
                s = slots[k].shape
                if s >= 0 and (slots[k].ready_s <= now_s) == serving:
                    weight = params.type_rate[s, j]
                    if by_flow == 0:
                        weight = flow[s, j] / max(
                            state.replicas[lane, 1 if row == 1 and serving else 0, s], 1
                        )
                    share[k] += amount * weight / total
            return


@kernel
def _blind(state: State, params: Params, lane: int) -> None:
    """The same shares for all types, by the rate of a replica for the mix."""
    config = params.config[0]
    slots, plan = state.slot[lane], state.plan[lane]
    total = 0.0
    for k in range(slots.shape[0]):
        s = slots[k].shape
        weight = 0.0
        if s >= 0:
            work_s, asked = 0.0, 0.0
            for j in range(config.types):
                asked += plan[j]
                if params.type_rate[s, j] > 0.0:
                    work_s += plan[j] / params.type_rate[s, j]
            weight = asked / work_s if work_s > 0.0 else 1.0
        for j in range(config.types):
            state.share[lane, 0, j, k] = weight if s >= 0 and params.type_rate[s, j] > 0.0 else 0.0
        total += weight
    for j in range(config.types):
        for k in range(slots.shape[0]):
            state.share[lane, 0, j, k] /= total


@kernel
def _given(state: State, params: Params, lane: int, j: int) -> None:
    """Shares from the action: a softmax over the replicas that can hold the type."""
    slots, share = state.slot[lane], state.share[lane, 0, j]
    logit = state.logit[lane, j * slots.shape[0] : (j + 1) * slots.shape[0]]
    total = 0.0
    for k in range(slots.shape[0]):
        s = slots[k].shape
        share[k] = math.exp(logit[k]) if s >= 0 and params.type_rate[s, j] > 0.0 else 0.0
        total += share[k]
    for k in range(slots.shape[0]):
        share[k] /= total


@kernel
def choose(state: State, params: Params, lane: int, r: int, now_s: float) -> int:
    """The replica for a request."""
    episode = state.lane[lane]
    config = params.config[0]
    slots = state.slot[lane]
    c = state.request[lane, r].kind
    j = params.guess[c]
    stopping = episode.stopping == 1 and config.reroute == 1
    if config.dispatch == FLOW or config.dispatch == BLIND:
        share = state.share[lane, 1 if stopping and config.dispatch == FLOW else 0, j]
        credit = state.credit[lane, 0 if config.dispatch == BLIND else j]
        at = -1
        for k in range(slots.shape[0]):
            waits = stopping and config.dispatch == BLIND and slots[k].ready_s > now_s
            if able(params, slots[k], c) and not waits:
                credit[k] += share[k]
                if share[k] > 0.0 and (at < 0 or credit[k] > credit[at]):
                    at = k
        if at >= 0:
            credit[at] -= 1.0
            return at
    # those that serve first; while none of them can, those that start
    for waits in range(2):
        at, least = -1, math.inf
        for i in range(slots.shape[0]):
            k = (episode.turn + 1 + i) % slots.shape[0]
            slot = slots[k]
            if able(params, slot, c) and (slot.ready_s <= now_s or waits == 1 or not stopping):
                load = float(i)
                if config.dispatch == LEAST_WORK:
                    load = max(slot.work_s, 0.0) + params.known_work_s[slot.shape, c]
                elif config.dispatch == LEAST_KV:
                    load = (slot.kv + slot.waiting_kv) / params.capacity[slot.shape]
                if load < least:
                    at, least = k, load
        if at >= 0:
            episode.turn = at
            return at
    return -1


@kernel
def send(state: State, params: Params, lane: int, r: int, now_s: float) -> None:
    """Hand a request to a replica."""
    config = params.config[0]
    slots = state.slot[lane]
    if config.dispatch == LEAST_WORK or config.dispatch == LEAST_KV:
        for k in range(slots.shape[0]):
            if slots[k].shape >= 0:
                advance(state, params, lane, k, now_s)
    k = choose(state, params, lane, r, now_s)
    advance(state, params, lane, k, now_s)
    enqueue(state, params, lane, k, r)


@kernel
def migrate_waiting(state: State, params: Params, lane: int, until_s: float) -> None:
    """Every second one waiting request goes from the replica with the most work to the one with the least, if that gains."""
    episode = state.lane[lane]
    slots = state.slot[lane]
    while episode.tick_s + _TICK_S <= until_s:
        episode.tick_s += _TICK_S
        most, least = -1, -1
        for k in range(slots.shape[0]):
            if slots[k].shape >= 0 and slots[k].ready_s <= episode.tick_s:
                advance(state, params, lane, k, episode.tick_s)
                if slots[k].waiting > 0 and (most < 0 or slots[k].work_s > slots[most].work_s):
                    most = k
                if least < 0 or slots[k].work_s < slots[least].work_s:
                    least = k
        if most < 0 or least == most:
            continue
        c = state.request[lane, slots[most].head].kind
        if not able(params, slots[least], c):
            continue
        if max(slots[least].work_s, 0.0) + params.known_work_s[slots[least].shape, c] < slots[most].work_s:
            r = dequeue(state, params, lane, most)
            enqueue(state, params, lane, least, r)
            episode.moved_waiting += 1


@kernel
def update_forecast(state: State, params: Params, lane: int) -> None:
    """Take the counts of the last epoch into the moving average; what is taken for a type is divided among types as in
    the mean mix.
    """
    config = params.config[0]
    e = state.lane[lane].epoch - 1
    for j in range(config.types):
        now = 0.0
        for g in range(config.types):
            now += state.counts[lane, e, g] * params.split[g, j]
        now /= config.epoch_s
        old = state.forecast[lane, j]
        state.forecast[lane, j] = now if e == 0 else old + config.ewma * (now - old)
