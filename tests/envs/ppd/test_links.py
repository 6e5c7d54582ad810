"""Links: how long a transfer takes, what fits into the buffer, and that no byte is lost."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmgym.envs.ppd.links import discard, has_room, idle_link, receive, send
from llmgym.errors import InvalidArgument


def link(**settings: Any) -> Any:
    return idle_link(**{"bandwidth_gb_per_s": 10.0, **settings})[0]


def test_a_transfer_takes_its_setup_and_its_bytes_at_the_slower_end() -> None:
    one = link(bandwidth_gb_per_s=150.0, receiver_gb_per_s=50.0, setup_s=0.006)
    send(one, 670e6)
    assert receive(one, 670e6) == pytest.approx(0.006 + 0.0134)
    slow = link(bandwidth_gb_per_s=10.0, receiver_gb_per_s=50.0)
    send(slow, 670e6)
    assert receive(slow, 670e6) == pytest.approx(0.067)  # 670 MB over 100GbE: section 5 of arXiv 2603.13358
    assert one["busy_s"] == pytest.approx(0.0194) and slow["busy_s"] == pytest.approx(0.067)


def test_a_full_buffer_has_no_room_but_an_empty_one_always_has() -> None:
    one = link(buffer_gb=1.0)
    assert has_room(one, 5e9)
    send(one, 0.6e9)
    assert has_room(one, 0.4e9) and not has_room(one, 0.5e9)
    discard(one, 0.6e9)
    assert has_room(one, 5e9)
    assert one["busy_s"] == 0.0 and one["received_bytes"] == 0.6e9


@given(
    st.lists(st.tuples(st.sampled_from(["send", "receive", "discard"]), st.integers(1, 2**40)), max_size=60)
)
def test_no_byte_is_lost(events: list[tuple[str, int]]) -> None:
    one = link(buffer_gb=math.inf)
    flying: list[int] = []
    for event, size in events:
        if event == "send":
            send(one, float(size))
            flying.append(size)
        elif flying:
            (receive if event == "receive" else discard)(one, float(flying.pop(0)))
        assert one["sent_bytes"] == one["received_bytes"] + one["in_flight_bytes"]
        assert one["in_flight_bytes"] == sum(flying) and one["in_flight"] == len(flying)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"bandwidth_gb_per_s": 0.0}, "bandwidth_gb_per_s=0.0"),
        ({"bandwidth_gb_per_s": -1.0}, "bandwidth_gb_per_s=-1.0"),
        ({"receiver_gb_per_s": math.nan}, "receiver_gb_per_s=nan"),
        ({"setup_s": -0.1}, "setup_s=-0.1"),
        ({"buffer_gb": 0.0}, "buffer_gb=0.0"),
    ],
)
def test_links_that_cannot_be(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidArgument, match=says):
        link(**settings)
