"""The waiting lines against sorted Python lists."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmgym.envs.kv.queue.env import KVQueue
from llmgym.serving import queue, residents

SIZE = 12
RULES = ("wc-fcfs", "mc-sf", "smallest-area")  # one rule for each order
SIMULATION = KVQueue(scenario="tiny", requests=SIZE, chunk=4, action="rule", rules=RULES)
PARAMS = SIMULATION.params


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
    assert PARAMS.orders.tolist() == [queue.BY_ARRIVAL, queue.BY_OUTPUT, queue.BY_AREA]
    state = SIMULATION.allocate(1)
    default = int(PARAMS.config[0]["default_output"])
    state.request["prompt"][0], state.request["predicted"][0] = np.array(lengths).T
    state.request["output"][0] = 9
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
        ]
        assert state.lane[0]["waiting"] == len(inside)
        assert state.lane[0]["waiting_area"] == sum(map(size, inside))


@pytest.mark.parametrize("backwards", [False, True])
def test_a_full_line_holds_every_request_in_both_directions(backwards: bool) -> None:
    """Everybody waits at once, twice over: the line must not run out at either end of its array."""
    state = SIMULATION.allocate(1)
    state.request["prompt"][0], state.request["output"][0], state.request["predicted"][0] = 3, 9, 5
    numbers = range(SIZE - 1, -1, -1) if backwards else range(SIZE)
    for _ in range(3):
        for number in numbers:
            residents.wait(state, PARAMS, 0, number)
        assert lines(state) == [list(range(SIZE))] * 3
        for number in reversed(numbers):
            queue.remove(state, PARAMS, 0, number)
        assert lines(state) == [[], [], []]
