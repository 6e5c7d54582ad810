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
    NOW,
    ROUTE,
    SERVING,
    Params,
    State,
)

_FLOOR = 0.002
"""A type is planned for with at least this share of all requests: one that nobody expects may still come."""
_TICK_S = 1.0
"""Time between two migrations of waiting requests, seconds; ours."""
_ROUNDING = 1e-12
"""Shares and flows up to this are nothing but rounding."""


@kernel
def set_routes(state: State, params: Params, lane: int, now_s: float) -> None:
    """Work the shares out anew, for the requests that `state.plan` expects.

    Args:
        state: arrays of all lanes.
        params: numbers and tables that all lanes share.
        lane: which one.
        now_s: the time, seconds.
    """
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
            share[SERVING, j, k] = 0.0
    if episode.stopping == 1:
        for s in range(replicas.shape[1]):
            replicas[SERVING, s] = 0
        for k in range(slots.shape[0]):
            if slots[k].shape >= 0 and slots[k].ready_s <= now_s:
                replicas[SERVING, slots[k].shape] += 1
        headroom(replicas[SERVING], plan, params.type_rate, state.scratch[lane], flow)
        for j in range(config.types):
            taken = 0.0
            for s in range(replicas.shape[1]):
                taken += flow[s, j]
            if taken > 0.0:
                _spread(state, params, lane, SERVING, j, min(taken / plan[j], 1.0), now_s, True)
    episode.headroom = min(
        headroom(replicas[NOW], plan, params.type_rate, state.scratch[lane], flow), NO_LOAD
    )
    if config.dispatch == BLIND:
        _blind(state, params, lane)
        return
    for j in range(config.types):
        for k in range(slots.shape[0]):
            share[NOW, j, k] = 0.0
        _spread(state, params, lane, NOW, j, 1.0, math.inf, True)
        if config.action == ROUTE:
            _given(state, params, lane, j)
    if episode.stopping == 1:
        # what those that serve cannot take waits for those that start
        for j in range(config.types):
            served = 0.0
            for k in range(slots.shape[0]):
                served += share[SERVING, j, k]
            if served < 1.0 - _ROUNDING:
                _spread(state, params, lane, SERVING, j, 1.0 - served, now_s, False)


@kernel
def _spread(
    state: State, params: Params, lane: int, row: int, j: int, amount: float, now_s: float, serving: bool
) -> None:
    """Divide an amount of type j among the replicas that serve, or among those that do not.

    The shares are those of the flows; where the flows give the type nothing, they are those of the rates.
    """
    slots, flow, share = state.slot[lane], state.flow[lane], state.share[lane, row, j]
    replicas = state.replicas[lane, SERVING if row == SERVING and serving else NOW]
    for by_rate in range(2):
        total = 0.0
        for k in range(slots.shape[0]):
            s = slots[k].shape
            if s >= 0 and (slots[k].ready_s <= now_s) == serving:
                total += params.type_rate[s, j] if by_rate else flow[s, j] / max(replicas[s], 1)
        if total > _ROUNDING:
            for k in range(slots.shape[0]):
                s = slots[k].shape
                if s >= 0 and (slots[k].ready_s <= now_s) == serving:
                    weight = params.type_rate[s, j] if by_rate else flow[s, j] / max(replicas[s], 1)
                    share[k] += amount * weight / total
            return


@kernel
def _blind(state: State, params: Params, lane: int) -> None:
    """Write the same shares for all types, by the rate of a replica for the mix."""
    config = params.config[0]
    slots, plan = state.slot[lane], state.plan[lane]
    total = 0.0
    for k in range(slots.shape[0]):
        s = slots[k].shape
        weight = 0.0
        if s >= 0:
            work_s, arrivals = 0.0, 0.0
            for j in range(config.types):
                arrivals += plan[j]
                if params.type_rate[s, j] > 0.0:
                    work_s += plan[j] / params.type_rate[s, j]
            weight = arrivals / work_s if work_s > 0.0 else 1.0
        for j in range(config.types):
            state.share[lane, NOW, j, k] = weight if s >= 0 and params.type_rate[s, j] > 0.0 else 0.0
        total += weight
    for j in range(config.types):
        for k in range(slots.shape[0]):
            state.share[lane, NOW, j, k] /= total


@kernel
def _given(state: State, params: Params, lane: int, j: int) -> None:
    """Write the shares of type j that the action gives: a softmax over the replicas that can hold the type."""
    slots, share = state.slot[lane], state.share[lane, NOW, j]
    logit = state.logit[lane, j * slots.shape[0] : (j + 1) * slots.shape[0]]
    total = 0.0
    for k in range(slots.shape[0]):
        s = slots[k].shape
        share[k] = math.exp(logit[k]) if s >= 0 and params.type_rate[s, j] > 0.0 else 0.0
        total += share[k]
    for k in range(slots.shape[0]):
        share[k] /= total


@kernel(inline=True)
def choose(state: State, params: Params, lane: int, r: int, now_s: float) -> int:
    """The replica for a request.

    Args:
        state: arrays of all lanes.
        params: numbers and tables that all lanes share.
        lane: which one.
        r: number of the request.
        now_s: the time, seconds.

    Returns:
        Place of the replica; -1 where none can hold the request.
    """
    episode = state.lane[lane]
    config = params.config[0]
    slots = state.slot[lane]
    c = state.request[lane, r].request_class
    j = params.guess[c]
    stopping = episode.stopping == 1 and config.reroute == 1
    if config.dispatch == FLOW or config.dispatch == BLIND:
        share = state.share[lane, SERVING if stopping and config.dispatch == FLOW else NOW, j]
        credit = state.credit[lane, 0 if config.dispatch == BLIND else j]
        chosen = -1
        for k in range(slots.shape[0]):
            waits = stopping and config.dispatch == BLIND and slots[k].ready_s > now_s
            if able(params, slots[k], c) and not waits:
                credit[k] += share[k]
                if share[k] > 0.0 and (chosen < 0 or credit[k] > credit[chosen]):
                    chosen = k
        if chosen >= 0:
            credit[chosen] -= 1.0
            return chosen
    # those that serve first; while none of them can, those that start
    for anywhere in range(2):
        chosen, least = -1, math.inf
        for i in range(slots.shape[0]):
            k = (episode.turn + 1 + i) % slots.shape[0]
            slot = slots[k]
            if able(params, slot, c) and (slot.ready_s <= now_s or anywhere == 1 or not stopping):
                load = float(i)
                if config.dispatch == LEAST_WORK:
                    load = max(slot.work_s, 0.0) + params.known_work_s[slot.shape, c]
                elif config.dispatch == LEAST_KV:
                    load = (slot.kv + slot.waiting_kv) / params.capacity[slot.shape]
                if load < least:
                    chosen, least = k, load
        if chosen >= 0:
            episode.turn = chosen
            return chosen
    return -1


@kernel(inline=True)
def send(state: State, params: Params, lane: int, r: int, now_s: float) -> None:
    """Hand a request to a replica.

    Args:
        state: arrays of all lanes.
        params: numbers and tables that all lanes share.
        lane: which one.
        r: number of the request.
        now_s: the time, seconds.
    """
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
    """Move one waiting request a second from the replica with the most work to the one with the least, if that gains.

    Args:
        state: arrays of all lanes.
        params: numbers and tables that all lanes share.
        lane: which one.
        until_s: time up to which requests move, seconds.
    """
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
        c = state.request[lane, slots[most].head].request_class
        if not able(params, slots[least], c):
            continue
        if max(slots[least].work_s, 0.0) + params.known_work_s[slots[least].shape, c] < slots[most].work_s:
            r = dequeue(state, params, lane, most)
            enqueue(state, params, lane, least, r)
            episode.moved_waiting += 1


@kernel
def update_forecast(state: State, params: Params, lane: int) -> None:
    """Take the counts of the last epoch into the moving average.

    What is taken for a type at arrival is divided among the types as in the mean mix.

    Args:
        state: arrays of all lanes.
        params: numbers and tables that all lanes share.
        lane: which one.
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
