"""How OServe changes its deployment: which replicas stay, what moves, what becomes of the requests in those that stop.

Section 5 of the paper: only replicas whose GPUs or shape change stop; weights move between GPUs by the greedy plan of
`llmgym.envs.oserve.placement`; requests with little left drain on the old replica, the KV caches of the others move. Times are ours
(the paper prints under 10 s instead of over 50 s for 70B): `fix_s` for process groups, graphs and memory, and what the links take.

- "adhoc": running requests that need less than `drain_s` finish while the change goes on; the others move, with their caches, to
  the replicas that start.
- "reload": weights come from disk, caches are lost, all running requests of the replicas that stop begin anew.
- "free": as "adhoc" in no time, for comparison.

In all of them waiting requests of replicas that stop are handed out again.
"""

import numpy as np
from numpy.typing import NDArray

from llmgym.core.jit import kernel
from llmgym.core.records import Records
from llmgym.envs.oserve.placement import place, ship, shipping_s
from llmgym.envs.oserve.replicas import able, enqueue, finish
from llmgym.envs.oserve.shapes import NODE_GPUS
from llmgym.envs.oserve.state import ADHOC, CONSIDERED, NOW, RELOAD, Params, Request, Slot, State

EMPTY = Slot.blank
_STARTS = 1e300
"""Stands for the time at which a replica will serve until that time is known, seconds."""


@kernel
def changes(state: State, params: Params, lane: int) -> int:
    """GPUs whose replica would change, if the deployment in the last row of `replicas` were the next.

    Args:
        state: arrays of all lanes.
        params: numbers and tables that all lanes share.
        lane: which one.

    Returns:
        Number of GPUs; where each replica would go is written to `state.target`.
    """
    wanted = state.replicas[lane, CONSIDERED]
    return place(state.slot[lane], params.sizes, wanted, params.config[0].gpus, state.target[lane])


@kernel
def set_up(state: State, params: Params, lane: int) -> None:
    """Put the first deployment, which is in the last row of `replicas`, on an empty cluster.

    Args:
        state: arrays of all lanes.
        params: numbers and tables that all lanes share.
        lane: which one.
    """
    slots = state.slot[lane]
    for k in range(slots.shape[0]):
        _clear(state, lane, k)
    changes(state, params, lane)
    for s in range(params.sizes.shape[0]):
        state.replicas[lane, NOW, s] = state.replicas[lane, CONSIDERED, s]
    _build(state, params, lane, 0.0, 0.0)


@kernel
def _clear(state: State, lane: int, k: int) -> None:
    """Empty a place, and forget what its last replica was owed."""
    state.slot[lane, k] = EMPTY[0]
    for j in range(state.credit.shape[1]):
        state.credit[lane, j, k] = 0.0


@kernel
def _build(state: State, params: Params, lane: int, now_s: float, ready_s: float) -> None:
    """Put the replicas of the plan in `target` that do not stand yet into free places."""
    slots, target = state.slot[lane], state.target[lane]
    k = 0
    for g in range(params.config[0].gpus):
        s = target[g, 0]
        if s >= 0 and target[g, 1] == 0:
            while slots[k].shape >= 0:
                k += 1
            _clear(state, lane, k)
            slots[k].shape, slots[k].gpu, slots[k].gpus = s, g, params.sizes[s]
            slots[k].clock_s, slots[k].ready_s = now_s, ready_s


@kernel
def _note_ranks(state: State, params: Params, lane: int, row: int) -> None:
    """Write to a row of `ranks` what every GPU holds: tp, pp and its rank."""
    slots, ranks = state.slot[lane], state.ranks[lane, row]
    for g in range(ranks.shape[0]):
        ranks[g, 0], ranks[g, 1], ranks[g, 2] = 0, 0, 0
    for k in range(slots.shape[0]):
        s = slots[k].shape
        if s >= 0:
            for i in range(slots[k].gpus):
                g = slots[k].gpu + i
                ranks[g, 0], ranks[g, 1], ranks[g, 2] = params.parallel[s, 0], params.parallel[s, 1], i


@kernel
def _leave(state: State, params: Params, lane: int, k: int, now_s: float, ends: NDArray[np.int32]) -> None:
    """Empty replica k, which stops: what drains completes, what has run goes to one line and what waits to another.

    `ends`, int32 [4], has the first and last request of the first line, then those of the second; -1 for none.
    """
    episode = state.lane[lane]
    config = params.config[0]
    slot = state.slot[lane, k]
    s = slot.shape
    requests = state.request[lane]
    # a heap of running requests, the next to complete first
    speed = 1.0 if slot.load <= 1.0 else 1.0 / slot.load
    for i in range(slot.running):
        r = state.heap_id[lane, k, i]
        request = requests[r]
        c = request.request_class
        remaining = max(state.heap_at[lane, k, i] - slot.progress, 0.0)
        if config.switching == ADHOC and remaining / speed < config.drain_s:
            episode.drained += 1
            finish(state, params, lane, r, now_s + remaining / speed)
            continue
        episode.running -= 1
        if config.switching == RELOAD:
            episode.restarted += 1
            request.left, request.ttft_s = 1.0, -1.0
        else:
            episode.migrated += 1
            request.left = min(remaining / params.latency_s[s, c], 1.0)
            request.node = slot.gpu // NODE_GPUS
        _append(requests, ends, 0, r)
    while slot.waiting > 0:
        r = slot.head
        slot.head = requests[r].next
        slot.waiting -= 1
        episode.waiting -= 1
        state.waits[lane, params.guess[requests[r].request_class]] -= 1
        episode.rerouted += 1
        _append(requests, ends, 2, r)
    episode.busy_gpu_s += slot.gpus * slot.busy_s
    episode.kv_share_s += slot.gpus * slot.kv_s
    slot.shape = -1


@kernel
def _append(requests: Records[Request], ends: NDArray[np.int32], line: int, r: int) -> None:
    """Put a request at the end of the line whose first and last request are `ends[line]` and `ends[line + 1]`."""
    requests[r].next = -1
    if ends[line] < 0:
        ends[line] = r
    else:
        requests[ends[line + 1]].next = r
    ends[line + 1] = r


@kernel
def _home(state: State, params: Params, lane: int, r: int) -> int:
    """The replica on which a request that has run goes on: of those that start, the one with the least of its cache in demand."""
    slots = state.slot[lane]
    c = state.request[lane, r].request_class
    for anywhere in range(2):
        chosen, least = -1, np.inf
        for k in range(slots.shape[0]):
            slot = slots[k]
            if able(params, slot, c) and (slot.ready_s == _STARTS or anywhere == 1):
                full = (slot.kv + slot.waiting_kv) / params.capacity[slot.shape]
                if full < least:
                    chosen, least = k, full
        if chosen >= 0:
            return chosen
    return -1


@kernel
def switch(state: State, params: Params, lane: int, now_s: float) -> None:
    """Change to the deployment in the last row of `replicas`; all replicas have been brought up to this time.

    Requests that waited at replicas that stop are left in a line from `state.ends[lane, 2]` on, to be handed out when the routes
    have been set.

    Args:
        state: arrays of all lanes.
        params: numbers and tables that all lanes share.
        lane: which one.
        now_s: the time, seconds.
    """
    episode = state.lane[lane]
    config = params.config[0]
    slots, requests = state.slot[lane], state.request[lane]
    moved = changes(state, params, lane)
    _note_ranks(state, params, lane, 0)
    ends = state.ends[lane]
    for i in range(4):
        ends[i] = -1
    for k in range(slots.shape[0]):
        s = slots[k].shape
        if s >= 0 and not (
            state.target[lane, slots[k].gpu, 0] == s and state.target[lane, slots[k].gpu, 1] == 1
        ):
            _leave(state, params, lane, k, now_s, ends)
    for s in range(params.sizes.shape[0]):
        state.replicas[lane, NOW, s] = state.replicas[lane, CONSIDERED, s]
    _build(state, params, lane, now_s, _STARTS)
    _note_ranks(state, params, lane, 1)
    shipped = ship(
        state.ranks[lane, 0], state.ranks[lane, 1], config.part_bytes, NODE_GPUS, state.traffic[lane]
    )
    seconds = 0.0
    if config.switching == ADHOC:
        seconds = config.fix_s + shipping_s(
            state.traffic[lane], NODE_GPUS, config.gpu_bytes_per_s, config.node_bytes_per_s
        )
    elif config.switching == RELOAD:
        seconds = config.reload_s
        shipped = 0.0
    for g in range(config.gpus):
        for i in range(4):
            state.traffic[lane, g, i] = 0.0
    flying = shipped
    r = ends[0]
    while r >= 0:
        request = requests[r]
        after = request.next
        k = _home(state, params, lane, r)
        if config.switching != RELOAD:
            flying += _move_cache(state, params, lane, k, r)
        enqueue(state, params, lane, k, r)
        r = after
    if config.switching == ADHOC:
        seconds += shipping_s(state.traffic[lane], NODE_GPUS, config.gpu_bytes_per_s, config.node_bytes_per_s)
    episode.ready_s = now_s + seconds
    for k in range(slots.shape[0]):
        if slots[k].shape >= 0 and slots[k].ready_s == _STARTS:
            slots[k].ready_s = episode.ready_s
            episode.stopped_gpu_s += slots[k].gpus * seconds
    episode.stopping = 1 if seconds > 0.0 else 0
    episode.switches += 1
    episode.since = 0
    episode.changed_gpus += moved
    episode.penalty += config.switch_cost
    episode.weights_bytes += shipped
    episode.flying_bytes = flying if seconds > 0.0 else 0.0


@kernel
def _move_cache(state: State, params: Params, lane: int, k: int, r: int) -> float:
    """Move the cache of request r to the GPUs of replica k, an equal part to each; returns its bytes."""
    slot = state.slot[lane, k]
    request = state.request[lane, r]
    traffic = state.traffic[lane]
    tokens = (
        params.lengths[request.request_class, 0]
        + (1.0 - request.left) * params.lengths[request.request_class, 1]
    )
    moved = tokens * params.config[0].kv_token_bytes
    state.lane[lane].kv_bytes += moved
    for g in range(slot.gpu, slot.gpu + slot.gpus):
        traffic[g, 1] += moved / slot.gpus
        if g // NODE_GPUS != request.node:
            traffic[g, 3] += moved / slot.gpus
            traffic[request.node * NODE_GPUS, 2] += moved / slot.gpus
    return moved
