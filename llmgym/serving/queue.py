"""Waiting requests, kept sorted in every order a scheduler asks for.

`state.queue` is int32 [engines, orders, 2 + n]: for each order the index of its first and one past its last entry, then the
request numbers. Requests are numbered by arrival, so `BY_ARRIVAL` is the order of the numbers; where conversations run it is that
of the tickets (`llmgym.serving.conversations`). A preempted request goes back to where its arrival puts it, which under
first-come-first-served is the front of the line. Taking from the front is one step; anything else shifts the shorter side.
`params.orders` says which orders are kept.
"""

from llmgym.core.jit import kernel
from llmgym.serving.requests import predicted_output
from llmgym.serving.state import EngineParams, EngineState, Order

BY_ARRIVAL, BY_OUTPUT, BY_AREA, BY_PRIORITY, BY_AGED_AREA, BY_DEADLINE, BY_AGED_PRIORITY, BY_PREFIX = range(8)
ORDERS = {
    "arrival": BY_ARRIVAL,
    "shortest-output": BY_OUTPUT,
    "smallest-area": BY_AREA,
    "priority": BY_PRIORITY,
    "aging": BY_AGED_AREA,
    "deadline": BY_DEADLINE,
    "priority-aging": BY_AGED_PRIORITY,
    "longest-prefix": BY_PREFIX,
}
"""Kinds of orders by name. Requests wait in the order of a key that does not change while they wait: with aging, the key grows with
the time of arrival, so that who has waited for long comes before who arrives now. The longest prefix does change, with the cache:
there requests are kept by arrival, and looked through by `llmgym.serving.admission`."""

HEAD, TAIL, FIRST = 0, 1, 2


@kernel(inline=True)
def at(state: EngineState, lane: int, row: int, position: int) -> int:
    """The request at a position of an order.

    Args:
        state: the arrays of the engines.
        lane: number of the engine.
        row: the order, a row of `params.orders`.
        position: 0 is the front.

    Returns:
        Number of the request.
    """
    return state.queue[lane, row, FIRST + state.queue[lane, row, HEAD] + position]


@kernel
def empty(state: EngineState, params: EngineParams, lane: int) -> None:
    """Let nobody wait.

    Args:
        state: the arrays of the engines.
        params: what the engines share.
        lane: number of the engine.
    """
    for row in range(params.orders.shape[0]):
        state.queue[lane, row, HEAD] = 0
        state.queue[lane, row, TAIL] = 0


@kernel
def _key(state: EngineState, params: EngineParams, lane: int, order: Order, number: int) -> float:
    request = state.request[lane, number]
    kind = order.kind
    if kind in (BY_ARRIVAL, BY_PREFIX):
        return 0.0
    if kind == BY_OUTPUT:
        return float(predicted_output(params.config[0], request.predicted))
    if kind == BY_PRIORITY:
        return float(request.priority)
    if kind == BY_AGED_AREA:
        return request.area + order.weight * request.arrival_s
    if kind == BY_DEADLINE:
        return request.arrival_s + params.objectives[request.request_class].ttft_s
    if kind == BY_AGED_PRIORITY:
        return request.arrival_s + order.weight * request.priority
    return float(request.area)


@kernel(inline=True)
def earlier(state: EngineState, params: EngineParams, lane: int, one: int, other: int) -> bool:
    """Whether a request arrived before another.

    Args:
        state: the arrays of the engines.
        params: what the engines share.
        lane: number of the engine.
        one: number of a request.
        other: number of another one.
    """
    if params.config[0].conversations == 0:
        return one < other
    return state.request[lane, one].ticket < state.request[lane, other].ticket


@kernel
def _place(state: EngineState, params: EngineParams, lane: int, row: int, request: int) -> int:
    """Index of the first entry of an order that does not come before the request."""
    line = state.queue[lane, row]
    order = params.orders[row]
    key = _key(state, params, lane, order, request)
    low, high = line[HEAD], line[TAIL]
    while low < high:
        middle = (low + high) // 2
        other = line[FIRST + middle]
        other_key = _key(state, params, lane, order, other)
        if other_key < key or (other_key == key and earlier(state, params, lane, other, request)):
            low = middle + 1
        else:
            high = middle
    return low


@kernel(inline=True)
def insert(state: EngineState, params: EngineParams, lane: int, request: int) -> None:
    """Add a request to every order.

    Args:
        state: the arrays of the engines.
        params: what the engines share.
        lane: number of the engine.
        request: its number.
    """
    for row in range(params.orders.shape[0]):
        line = state.queue[lane, row]
        tail = line[TAIL]
        last = params.orders[row].kind == BY_ARRIVAL and (
            tail == line[HEAD] or earlier(state, params, lane, line[FIRST + tail - 1], request)
        )
        if last and FIRST + tail < line.shape[0]:
            line[FIRST + tail] = request
            line[TAIL] = tail + 1
        else:
            _squeeze_in(state, params, lane, row, request)


@kernel
def _squeeze_in(state: EngineState, params: EngineParams, lane: int, row: int, request: int) -> None:
    line = state.queue[lane, row]
    place = _place(state, params, lane, row, request)
    head, tail = line[HEAD], line[TAIL]
    if head > 0 and (place - head <= tail - place or FIRST + tail == line.shape[0]):
        for i in range(head, place):
            line[FIRST + i - 1] = line[FIRST + i]
        line[HEAD] = head - 1
        line[FIRST + place - 1] = request
    else:
        for i in range(tail, place, -1):
            line[FIRST + i] = line[FIRST + i - 1]
        line[TAIL] = tail + 1
        line[FIRST + place] = request


@kernel(inline=True)
def remove(state: EngineState, params: EngineParams, lane: int, request: int) -> None:
    """Take a request out of every order.

    Args:
        state: the arrays of the engines.
        params: what the engines share.
        lane: number of the engine.
        request: its number.
    """
    for row in range(params.orders.shape[0]):
        line = state.queue[lane, row]
        if line[FIRST + line[HEAD]] == request:
            line[HEAD] += 1
        else:
            _take_out(state, params, lane, row, request)


@kernel
def _take_out(state: EngineState, params: EngineParams, lane: int, row: int, request: int) -> None:
    line = state.queue[lane, row]
    place = _place(state, params, lane, row, request)
    head, tail = line[HEAD], line[TAIL]
    if place - head <= tail - 1 - place:
        for i in range(place, head, -1):
            line[FIRST + i] = line[FIRST + i - 1]
        line[HEAD] = head + 1
    else:
        for i in range(place, tail - 1):
            line[FIRST + i] = line[FIRST + i + 1]
        line[TAIL] = tail - 1
