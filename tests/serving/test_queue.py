"""The waiting lines against sorted Python lists."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmgym.envs.kv.queue.env import KVQueue
from llmgym.serving import queue, residents
from llmgym.serving.overflow import RECOMPUTE
from llmgym.serving.rules import pack, resolve
from llmgym.serving.targets import Target, objective_records

SIZE = 12
SIMULATION = KVQueue(scenario="tiny", requests=SIZE, chunk=4)
RULES = resolve(
    ("wc-fcfs", "mc-sf", "smallest-area", "area-aging:aging=0.5", "priority-aging:lead_s=3", "edf")
)
ORDERS = pack(RULES, RECOMPUTE, 2, area_per_s=10.0, priorities=True, objectives=True).orders
TTFT_S = (1.0, 8.0)
PARAMS = SIMULATION.params._replace(
    orders=ORDERS, objectives=objective_records([Target(limit, 1.0) for limit in TTFT_S])
)


def allocate() -> Any:
    state = SIMULATION.allocate(1)
    return state._replace(queue=np.zeros((1, len(ORDERS), SIZE + 2), np.int32))


def area(prompt: int, output: int, kept: int = 0, chunk: int = 4) -> int:
    """Tokens x batches, one by one: the prompt with what was kept is prefilled again, then the rest is decoded."""
    total, cached = 0, 0
    while cached < prompt + kept:
        cached = min(cached + chunk, prompt + kept)
        total += cached
    return total + sum(prompt + j for j in range(kept + 1, output + 1))


def lines(state: Any) -> list[list[int]]:
    return [
        [int(queue.at(state, 0, row, k)) for k in range(line[1] - line[0])]
        for row, line in enumerate(state.queue[0])
    ]


@st.composite
def operations(draw: Any) -> tuple[list[tuple[int, int]], list[tuple[str, int]]]:
    """Lengths of the requests, and a history in which each number enters (and re-enters, with output kept) and leaves."""
    lengths = [(draw(st.integers(1, 9)), draw(st.integers(0, 9))) for _ in range(SIZE)]
    inside: set[int] = set()
    history = []
    for _ in range(draw(st.integers(1, 60))):
        outside = sorted(set(range(SIZE)) - inside)
        enters = outside and (not inside or draw(st.booleans()))
        number = draw(st.sampled_from(outside if enters else sorted(inside)))
        history.append(("in" if enters else "out", number))
        inside ^= {number}
    return lengths, history


@settings(max_examples=150, deadline=None)
@given(operations())
def test_every_order_is_that_of_a_sorted_list(
    world: tuple[list[tuple[int, int]], list[tuple[str, int]]],
) -> None:
    lengths, history = world
    kinds = [queue.BY_ARRIVAL, queue.BY_OUTPUT, queue.BY_AREA, queue.BY_AGED_AREA, queue.BY_DEADLINE]
    assert PARAMS.orders["kind"].tolist() == [*kinds, queue.BY_AGED_PRIORITY]
    state = allocate()
    default = int(PARAMS.config[0]["default_output"])
    state.request["prompt"][0], state.request["predicted"][0] = np.array(lengths).T
    state.request["output"][0] = 9
    state.request["arrival_s"][0] = range(SIZE)
    state.request["priority"][0] = state.request["request_class"][0] = np.arange(SIZE) % 2
    kept = [0] * SIZE

    def told(i: int) -> int:
        return lengths[i][1] or default  # 0: nothing is told, so the mean stands in

    def size(i: int) -> int:
        return area(lengths[i][0], max(told(i), kept[i] + 1), kept[i])

    inside: list[int] = []
    for what, number in history:
        if what == "in":
            kept[number] = (number * 7 + len(inside)) % 4
            state.request["kept"][0, number] = kept[number]
            residents.wait(state, PARAMS, 0, number)
            inside.append(number)
        else:
            queue.remove(state, PARAMS, 0, number)
            inside.remove(number)
            state.lane[0]["waiting"] -= 1
            state.lane[0]["waiting_area"] -= size(number)
        assert lines(state) == [
            sorted(inside),
            sorted(inside, key=lambda i: (told(i), i)),
            sorted(inside, key=lambda i: (size(i), i)),
            sorted(
                inside, key=lambda i: (size(i) + 0.5 * 10.0 * i, i)
            ),  # a second of waiting: half of what 1 s gets through
            sorted(inside, key=lambda i: (i + TTFT_S[i % 2], i)),
            sorted(inside, key=lambda i: (i + 3.0 * (i % 2), i)),
        ]
        assert state.lane[0]["waiting"] == len(inside)
        assert state.lane[0]["waiting_area"] == sum(map(size, inside))


@pytest.mark.parametrize("backwards", [False, True])
def test_a_full_line_holds_every_request_in_both_directions(backwards: bool) -> None:
    """Everybody waits at once, twice over: the line must not run out at either end of its array."""
    state = allocate()
    state.request["prompt"][0], state.request["output"][0], state.request["predicted"][0] = 3, 9, 5
    numbers = range(SIZE - 1, -1, -1) if backwards else range(SIZE)
    for _ in range(3):
        for number in numbers:
            residents.wait(state, PARAMS, 0, number)
        assert lines(state) == [list(range(SIZE))] * len(ORDERS)
        for number in reversed(numbers):
            queue.remove(state, PARAMS, 0, number)
        assert lines(state) == [[]] * len(ORDERS)
