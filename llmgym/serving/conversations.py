"""Conversations in a closed loop: a turn arrives `think_s` after the last token of the turn before it.

Where `Limits.conversations` is 1, the requests of a lane are the turns of conversations: `Request.follower` is the number of the
next turn, and everybody whose arrival is known, first turns as well as turns that have been answered for, is *coming*. The coming
ones are a binary heap by (arrival, number) in a row of `state.queue` of its own, the one after the orders: `TAIL` is its size.
A request gets its *ticket* when it is taken from there: order of arrival is the order of tickets, not of numbers, so that the turns
of a conversation may have any numbers.

The engine calls `answer` where a request completes. With `ahead` a batch is planned before the one before it has ended, but the
client sees its last token when the batch ends, so thinking begins then.
"""

import numpy as np
from numpy.typing import NDArray

from llmgym.core.jit import kernel
from llmgym.core.records import Records
from llmgym.serving.queue import FIRST, TAIL
from llmgym.serving.state import EngineParams, EngineState, Request


@kernel
def begin(state: EngineState, params: EngineParams, lane: int, count: int) -> None:
    """Let the first turns of all conversations come, at the arrivals they have.

    Args:
        state: the arrays of the engines; `queue` has a row more than there are orders.
        params: what the engines share.
        lane: number of the engine.
        count: requests of the lane; a follower is one of them, and never number 0.
    """
    requests = state.request[lane]
    state.queue[lane, params.orders.shape[0], TAIL] = 0
    state.lane[lane].tickets = 0
    for i in range(count):
        requests[i].ticket = 0
    for i in range(count):
        if requests[i].follower > 0:
            requests[requests[i].follower].ticket = -1
    for i in range(count):
        if requests[i].ticket == 0:
            _push(requests, state.queue[lane, params.orders.shape[0]], i)
        requests[i].ticket = -1


@kernel
def answer(state: EngineState, params: EngineParams, lane: int, number: int) -> None:
    """Let the next turn of a conversation come, now that a turn has its last token.

    Args:
        state: the arrays of the engines.
        params: what the engines share.
        lane: number of the engine, whose clock says when that token was there.
        number: of the request that has completed.
    """
    requests = state.request[lane]
    follower = requests[number].follower
    if follower > 0:
        requests[follower].arrival_s = state.lane[lane].clock_s + requests[follower].think_s
        _push(requests, state.queue[lane, params.orders.shape[0]], follower)


@kernel(inline=True)
def following_s(state: EngineState, params: EngineParams, lane: int) -> float:
    """Time of the next arrival whose time is known, s; infinite if nobody is coming."""
    line = state.queue[lane, params.orders.shape[0]]
    if line[TAIL] == 0:
        return np.inf
    return state.request[lane, line[FIRST]].arrival_s


@kernel
def take(state: EngineState, params: EngineParams, lane: int) -> int:
    """Take the next arrival out of those that are coming and give it its ticket. Call only if `following_s` is finite.

    Args:
        state: the arrays of the engines.
        params: what the engines share.
        lane: number of the engine.

    Returns:
        Number of the request.
    """
    engine = state.lane[lane]
    requests = state.request[lane]
    line = state.queue[lane, params.orders.shape[0]]
    number = line[FIRST]
    requests[number].ticket = engine.tickets
    engine.tickets += 1
    size = line[TAIL] - 1
    line[TAIL] = size
    last = line[FIRST + size]
    hole = 0
    while 2 * hole + 1 < size:
        child = 2 * hole + 1
        if child + 1 < size and _sooner(requests, line[FIRST + child + 1], line[FIRST + child]):
            child += 1
        if not _sooner(requests, line[FIRST + child], last):
            break
        line[FIRST + hole] = line[FIRST + child]
        hole = child
    line[FIRST + hole] = last
    return number


@kernel
def _push(requests: Records[Request], line: NDArray[np.int32], number: int) -> None:
    hole = line[TAIL]
    line[TAIL] = hole + 1
    while hole > 0:
        parent = (hole - 1) // 2
        if not _sooner(requests, number, line[FIRST + parent]):
            break
        line[FIRST + hole] = line[FIRST + parent]
        hole = parent
    line[FIRST + hole] = number


@kernel(inline=True)
def _sooner(requests: Records[Request], one: int, other: int) -> bool:
    a, b = requests[one].arrival_s, requests[other].arrival_s
    return a < b or (a == b and one < other)
