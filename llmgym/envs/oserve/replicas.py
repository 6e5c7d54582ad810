"""How replicas of OServe serve: a line in order of arrival, admission under the cache, processor sharing of the running requests.

A running request of class c in a replica of shape s would take `latency_s[s, c]` alone. The requests of a replica share one unit of
stage time: each needs 1 / rate of it in all, so at full speed they take `load` = sum of (1 / rate) / latency of it, and if that
is more than one all slow down by the same factor. With the progress of the replica, seconds at full speed, as time every request
completes at a fixed progress, and a heap of these is all it takes. Between two visits a replica is left alone; `advance` brings
it up to a time.

What a scheduler may read of requests that have not completed (`work_s`, `waiting_kv`, `State.waits`) goes by the type that they
were taken for at arrival, not by their true class, which holds the length of the answer.
"""

import math

import numpy as np
from numpy.typing import NDArray

from llmgym.core.jit import kernel
from llmgym.envs.oserve.state import Params, Request, Slot, State
from llmgym.serving.requests import time_per_token

NEW = Request.blank


@kernel(inline=True)
def _push(at: NDArray[np.float64], ids: NDArray[np.int32], size: int, value: float, request: int) -> None:
    """Add a request to a heap of `size` entries, whose smallest value is the first."""
    i = size
    while i > 0:
        above = (i - 1) // 2
        if at[above] <= value:
            break
        at[i], ids[i] = at[above], ids[above]
        i = above
    at[i], ids[i] = value, request


@kernel(inline=True)
def _pop(at: NDArray[np.float64], ids: NDArray[np.int32], size: int) -> None:
    """Take the first entry away from a heap of `size` entries."""
    value, request = at[size - 1], ids[size - 1]
    i = 0
    while True:
        below = 2 * i + 1
        if below >= size - 1:
            break
        if below + 1 < size - 1 and at[below + 1] < at[below]:
            below += 1
        if at[below] >= value:
            break
        at[i], ids[i] = at[below], ids[below]
        i = below
    at[i], ids[i] = value, request


@kernel(inline=True)
def arrive(state: State, lane: int, number: int) -> int:
    """Let a request of the episode into the system.

    Args:
        state: arrays of all lanes.
        lane: which one.
        number: of the request, in order of arrival.

    Returns:
        Its row in `State.request`.
    """
    episode = state.lane[lane]
    r = episode.free
    if r >= 0:
        episode.free = state.request[lane, r].next
    else:
        r = episode.rows
        episode.rows += 1
    state.request[lane, r] = NEW[0]
    request = state.request[lane, r]
    request.arrival_s, request.request_class = (
        state.arrival_s[lane, number],
        state.arrival_class[lane, number],
    )
    return int(r)


@kernel(inline=True)
def finish(state: State, params: Params, lane: int, r: int, at_s: float) -> None:
    """Count a request that completes, and free its row.

    Args:
        state: arrays of all lanes.
        params: numbers and tables that all lanes share.
        lane: which one.
        r: row of the request.
        at_s: time of its completion, seconds.
    """
    episode = state.lane[lane]
    request = state.request[lane, r]
    c = request.request_class
    e2e_s = at_s - request.arrival_s
    state.served[lane, 0, episode.done] = e2e_s
    state.served[lane, 1, episode.done] = request.ttft_s
    episode.ttft_sum_s += request.ttft_s
    if params.lengths[c, 1] > 1:
        tpot_s = np.float32(time_per_token(request.ttft_s, e2e_s, params.lengths[c, 1]))
        state.served[lane, 2, episode.paced] = tpot_s
        episode.tpot_sum_s += float(tpot_s)
        episode.paced += 1
    request.next = episode.free
    episode.free = r
    episode.done += 1
    episode.running -= 1
    episode.open -= 1.0
    episode.open_arrival_s -= request.arrival_s
    episode.done_s += e2e_s
    episode.output_tokens += params.lengths[c, 1]
    if e2e_s <= params.slo_s[c]:
        episode.met += 1


@kernel(inline=True)
def _admit(state: State, params: Params, lane: int, k: int) -> None:
    """Let requests of replica k out of its line and into its batch, as long as the first one fits."""
    episode = state.lane[lane]
    slot = state.slot[lane, k]
    s = slot.shape
    while slot.waiting > 0 and slot.running < state.heap_at.shape[2]:
        r = slot.head
        request = state.request[lane, r]
        c = request.request_class
        tokens = params.lengths[c, 0] + params.lengths[c, 1]
        if slot.kv + tokens > params.capacity[s]:
            break
        slot.head = request.next
        slot.waiting -= 1
        slot.waiting_kv -= params.known_tokens[c]
        slot.kv += tokens
        slot.load += params.work_s[s, c] / params.latency_s[s, c]
        if request.ttft_s < 0.0:
            # the first token comes at the speed of the moment
            request.ttft_s = slot.clock_s - request.arrival_s + params.prefill_s[s, c] * max(slot.load, 1.0)
        request.node = -1
        _push(
            state.heap_at[lane, k],
            state.heap_id[lane, k],
            slot.running,
            slot.progress + request.left * params.latency_s[s, c],
            r,
        )
        slot.running += 1
        episode.waiting -= 1
        state.waits[lane, params.guess[c]] -= 1
        episode.running += 1


@kernel(inline=True)
def _pass(params: Params, slot: Slot, seconds: float) -> None:
    """Let time pass in which the same requests run in a replica."""
    used = min(slot.load, 1.0)
    slot.clock_s += seconds
    slot.busy_s += used * seconds
    slot.kv_s += seconds * slot.kv / params.capacity[slot.shape]
    slot.work_s -= used * seconds


@kernel(inline=True)
def advance(state: State, params: Params, lane: int, k: int, to_s: float) -> None:
    """Bring a replica up to a time.

    Args:
        state: arrays of all lanes.
        params: numbers and tables that all lanes share.
        lane: which one.
        k: place of the replica.
        to_s: the time, seconds.
    """
    slot = state.slot[lane, k]
    if slot.clock_s < slot.ready_s:
        slot.clock_s = min(slot.ready_s, to_s)
        if slot.clock_s < slot.ready_s:
            return
    _admit(state, params, lane, k)
    while slot.running > 0:
        speed = 1.0 if slot.load <= 1.0 else 1.0 / slot.load
        completes = state.heap_at[lane, k, 0]
        seconds = max(completes - slot.progress, 0.0) / speed
        if slot.clock_s + seconds > to_s:
            seconds = to_s - slot.clock_s
            _pass(params, slot, seconds)
            slot.progress += speed * seconds
            break
        _pass(params, slot, seconds)
        slot.progress = max(completes, slot.progress)
        r = state.heap_id[lane, k, 0]
        _pop(state.heap_at[lane, k], state.heap_id[lane, k], slot.running)
        slot.running -= 1
        s, c = slot.shape, state.request[lane, r].request_class
        slot.kv -= params.lengths[c, 0] + params.lengths[c, 1]
        slot.load -= params.work_s[s, c] / params.latency_s[s, c]
        # it is known now what the request took
        slot.work_s += state.request[lane, r].left * (params.work_s[s, c] - params.known_work_s[s, c])
        if slot.running == 0:
            # rounding errors must not add up; the heap may begin anew
            slot.load, slot.progress = 0.0, 0.0
        finish(state, params, lane, r, slot.clock_s)
        _admit(state, params, lane, k)
        if slot.running == 0 and slot.waiting == 0:
            slot.work_s = 0.0
    slot.clock_s = to_s


@kernel(inline=True)
def enqueue(state: State, params: Params, lane: int, k: int, r: int) -> None:
    """Put a request at the end of a replica's line; the replica has been brought up to this time.

    Args:
        state: arrays of all lanes.
        params: numbers and tables that all lanes share.
        lane: which one.
        k: place of the replica.
        r: number of the request.
    """
    episode = state.lane[lane]
    slot = state.slot[lane, k]
    request = state.request[lane, r]
    c = request.request_class
    request.next = -1
    if slot.waiting == 0:
        slot.head = r
    else:
        state.request[lane, slot.tail].next = r
    slot.tail = r
    slot.waiting += 1
    slot.waiting_kv += params.known_tokens[c]
    slot.work_s += request.left * params.known_work_s[slot.shape, c]
    episode.waiting += 1
    state.waits[lane, params.guess[c]] += 1
    if slot.clock_s >= slot.ready_s:
        _admit(state, params, lane, k)


@kernel(inline=True)
def dequeue(state: State, params: Params, lane: int, k: int) -> int:
    """Take the first request out of a replica's line.

    Args:
        state: arrays of all lanes.
        params: numbers and tables that all lanes share.
        lane: which one.
        k: place of the replica, at which a request waits.

    Returns:
        Number of the request.
    """
    slot = state.slot[lane, k]
    r = slot.head
    request = state.request[lane, r]
    c = request.request_class
    slot.head = request.next
    slot.waiting -= 1
    slot.waiting_kv -= params.known_tokens[c]
    slot.work_s -= request.left * params.known_work_s[slot.shape, c]
    state.lane[lane].waiting -= 1
    state.waits[lane, params.guess[c]] -= 1
    return int(r)


@kernel(inline=True)
def able(params: Params, slot: Slot, c: int) -> bool:
    """Whether there is a replica, and it can hold a request of a class.

    Args:
        params: numbers and tables that all lanes share.
        slot: the place of the replica.
        c: number of the class.

    Returns:
        True if the replica can hold the request.
    """
    return slot.shape >= 0 and params.work_s[slot.shape, c] < math.inf
