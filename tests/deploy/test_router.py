"""The rules of PPDRouting behind `route_request`, with a fleet of fakes."""

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from llmgym import baselines
from llmgym.deploy.export_routes import export_routes
from llmgym.deploy.router import WINDOW_S, PPDRouter, Route, TableRule, ThresholdRule, Turn
from llmgym.envs.ppd.cells import lookup
from llmgym.errors import CheckpointError, InvalidArgument


@dataclass
class Endpoint:
    url: str
    model_label: str


@dataclass
class Stats:
    num_running_requests: int = 0
    num_queuing_requests: int = 0


@dataclass
class Request:
    headers: dict[str, str] = field(default_factory=dict)


FLEET = [Endpoint(f"http://p{i}", f"prefill-{i}") for i in range(2)] + [
    Endpoint(f"http://d{i}", "decode") for i in range(3)
]


def ask(
    router: PPDRouter, session: str | None, body: dict[str, Any], stats: Any = None, fleet: Any = FLEET
) -> Route:
    headers = {} if session is None else {"x-session-id": session}
    return router.route(fleet, stats or {}, Request(headers), body)


def chat(*tokens: int) -> dict[str, Any]:
    """Turns of so many tokens, questions and answers in turn."""
    return {
        "messages": [
            {"role": "assistant" if i % 2 else "user", "content": "x" * 4 * n} for i, n in enumerate(tokens)
        ]
    }


@pytest.fixture(scope="module")
def routes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("routes") / "routes.npz"
    export_routes(path, scenario="small")
    return path


def test_the_table_says_what_that_of_the_gym_says(routes: Path) -> None:
    rule = TableRule.read(routes)
    env = gymnasium.make("llmgym/PPDRouting-v0", scenario="small")
    theirs: Any = baselines.make("table", env)
    rng = np.random.default_rng(0)
    rows = np.stack(
        [
            rng.choice([0, 100, 512, 513, 4000], 4000),
            rng.integers(1, 1200, 4000),
            rng.integers(1, 1200, 4000),
            rng.choice([0.1, 0.75, 1.5, 3.0, 5.0, 9.0, 40.0], 4000),
        ],
        axis=1,
    ).astype(np.float64)
    expected = np.zeros(len(rows), np.int64)
    lookup(theirs.routes, theirs.table.rates, rows, expected)
    found = [rule.local(Turn(int(a), int(b), int(c), d)) for a, b, c, d in rows]
    assert found == (expected == 1).tolist()
    assert 0 < sum(found) < len(found)


def test_a_first_turn_is_prefilled_and_handed_over_and_later_ones_stay_with_their_node() -> None:
    router = PPDRouter(ThresholdRule(100))
    stats = {
        "http://d0": Stats(3, 1),
        "http://d1": Stats(1, 0),
        "http://d2": Stats(2),
        "http://p0": Stats(0, 2),
    }
    assert ask(router, "a", chat(50), stats) == Route("http://p1", "http://d1")
    # the others are idler by now, but the conversation is on d1
    assert ask(router, "a", chat(50, 300, 99), {"http://d1": Stats(90)}) == Route(None, "http://d1")
    assert ask(router, "a", chat(50, 300, 99, 10, 101)) == Route("http://p0", "http://d1")
    # the node is gone: a first turn again
    without = [one for one in FLEET if one.url != "http://d1"]
    assert ask(router, "a", chat(50, 300, 5), fleet=without) == Route("http://p0", "http://d0")
    assert ask(router, None, chat(50, 300, 5)) == Route("http://p0", "http://d0")
    assert ask(router, "b", chat(5), fleet=FLEET[2:]) == Route(None, "http://d0")


def test_a_production_router_calls_it() -> None:
    router = PPDRouter(ThresholdRule(100))
    urls = [
        asyncio.run(router.route_request(FLEET, {}, {}, Request({"x-session-id": "s"}), body))
        for body in (chat(10), chat(10, 10, 10), {"prompt": "x" * 4 * 500})
    ]
    assert urls == ["http://p0", "http://d0", "http://p0"]
    assert asyncio.run(router.route_request(FLEET, {}, {}, Request())) == "http://p0"


def test_a_turn_is_told_with_its_context_its_answer_and_the_rate_of_requests() -> None:
    now = [0.0]
    told: list[Turn] = []

    class Notes:
        def local(self, turn: Turn) -> bool:
            told.append(turn)
            return True

    router = PPDRouter(Notes(), clock=lambda: now[0])
    ask(router, "a", chat(5))
    for k in range(1, 5):
        now[0] = k
        ask(router, "a", {**chat(40, 200, 7), "max_tokens": 33})
    now[0] = 4 + WINDOW_S
    ask(router, "a", {"messages": [{"role": "user", "content": [{"type": "text", "text": "x" * 8}]}]})
    assert told[3] == Turn(240, 7, 33, 5 / WINDOW_S)
    assert told[4] == Turn(0, 2, 256, 2 / WINDOW_S)


def test_a_rule_that_fails_leaves_a_turn_with_its_conversation(caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        def local(self, turn: Turn) -> bool:
            raise RuntimeError("broken on purpose")

    router = PPDRouter(Broken())
    first = ask(router, "a", chat(5))
    assert ask(router, "a", chat(5, 5, 5)) == Route(None, first.decode)
    assert "broken on purpose" in caplog.text


def test_wrong_input_is_told(tmp_path: Path, routes: Path) -> None:
    with pytest.raises(InvalidArgument, match="none of 2 decodes"):
        ask(PPDRouter(ThresholdRule()), "a", {}, fleet=FLEET[:2])
    with pytest.raises(InvalidArgument, match="tokens=-1"):
        ThresholdRule(-1)
    with pytest.raises(CheckpointError, match="no such file"):
        TableRule.read(tmp_path / "nowhere.npz")
    (tmp_path / "text.npz").write_text("x")
    with pytest.raises(CheckpointError, match="damaged or no table"):
        TableRule.read(tmp_path / "text.npz")
    (tmp_path / "half.npz").write_bytes(routes.read_bytes()[:-50])
    with pytest.raises(CheckpointError, match="damaged or no table"):
        TableRule.read(tmp_path / "half.npz")
    np.savez(tmp_path / "other.npz", format=np.array("other"))
    with pytest.raises(CheckpointError, match="no table of routes"):
        TableRule.read(tmp_path / "other.npz")
    with pytest.raises(CheckpointError, match=r"ends in \.npz"):
        export_routes(tmp_path / "routes.txt")
