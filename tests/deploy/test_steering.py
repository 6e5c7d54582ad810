"""What a live engine's requests become, with fakes instead of vLLM; decision by decision it is `test_vllm.py` that compares."""

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from llmgym.deploy.acting import Identity
from llmgym.deploy.bundle import Bundle, Objective, Scales, layout_of
from llmgym.deploy.facts import NOBODY, PREDICTED, Facts, Limits, Line
from llmgym.deploy.steering import Steering

BLOCK, CAPACITY = 16, 512
BUNDLE = Bundle(
    lists=("arrival", "smallest-area"),
    slots=4,
    running=2,
    objectives=(Objective(1.0, 20.0), Objective(math.inf, 5.0)),
    scales=replace(Scales(), per_class=1.0, per_expected=0.25),
)


class NoCache:
    def found(self, row: int) -> tuple[int, int]:
        return 0, 0

    def hold(self, row: int) -> None:
        raise AssertionError("prefixes are not cached")

    def freed(self, row: int, computed: int) -> int:
        return -(-computed // BLOCK) * BLOCK


class Script:
    """Says what it is told to say, and notes what it sees."""

    def __init__(self, *actions: int) -> None:
        self.actions, self.seen = list(actions), []

    def act(self, obs: Any, mask: Any) -> int:
        self.seen.append((obs.copy(), mask.tolist()))
        return self.actions.pop(0)


def request(name: str, prompt: int = 40, said: Any = None, priority: int = 0, **more: Any) -> Any:
    fields = {
        "request_id": name,
        "num_prompt_tokens": prompt,
        "num_computed_tokens": 0,
        "arrival_time": 0.0,
        "max_tokens": 100,
        "priority": priority,
        "sampling_params": SimpleNamespace(extra_args=said),
        "status": SimpleNamespace(name="WAITING"),
    }
    return SimpleNamespace(**{**fields, **more})


def steering(acting: Any, **limits: Any) -> Steering:
    settings = {
        "capacity": CAPACITY,
        "block": BLOCK,
        "budget": 256,
        "chunk": 256,
        "seats": 8,
        "longest": CAPACITY,
    }
    return Steering(BUNDLE, acting, Limits(**{**settings, **limits}), NoCache())


def place(name: str) -> int:
    start = 0
    for field, size in layout_of(BUNDLE.slots, BUNDLE.running):
        if field == name:
            return start
        start += size
    raise KeyError(name)


@pytest.mark.parametrize(
    ("said", "predicted"),
    [
        ({"predicted_output_tokens": 30}, 30),
        ({"predicted_output_tokens": 30.4}, 30),
        ({"predicted_output_tokens": 10_000}, CAPACITY - 40),  # no longer than there is room
        ({"predicted_output_tokens": 0}, 0),
        ({"predicted_output_tokens": math.nan}, 0),
        ({"predicted_output_tokens": True}, 0),
        ({"predicted_output_tokens": "30"}, 0),
        ({}, 0),
        (None, 0),
    ],
)
def test_a_prediction_is_a_number_from_one_on_or_none(said: Any, predicted: int) -> None:
    found = steering(Script())
    assert found.facts.whole[found.row(request("a", said=said)), PREDICTED] == predicted
    assert found.unpredicted == int(predicted == 0)


def test_the_first_request_without_a_prediction_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    found = steering(Script())
    for name in "ab":
        found.enter(request(name))
    assert found.unpredicted == 2 and caplog.text.count("expected a number from 1 on") == 1


def test_a_class_is_said_or_is_the_priority_and_one_that_there_is() -> None:
    script = Script(0)
    found = steering(script)
    runs = request("r", num_computed_tokens=40)
    found.row(runs)
    for name, said, priority in (
        ("a", {"request_class": 1}, 0),
        ("b", None, 1),
        ("c", {"request_class": 9}, 0),
        ("d", None, -3),
    ):
        found.enter(request(name, said=said, priority=priority))
    found.decide([runs], 48, 4, 2.0)
    table = script.seen[0][0][place("waiting.candidates") :].tolist()
    rows = [table[11 * k : 11 * (k + 1)] for k in range(4)]
    # two by arrival; two by area, of which the first two are there already
    assert [row[6] for row in rows] == [1.0, 1.0, 0.0, 0.0] and rows[2][0] == 0.0
    # nothing is promised of the first token of class 1, and 5 s of the last one
    assert rows[0][7] == 0.0 and rows[0][8] == pytest.approx(0.6)


def test_an_order_is_chosen_and_the_rest_is_held_back() -> None:
    script = Script(2, 1, 0)
    found = steering(script)
    runs = request("r", num_computed_tokens=40)
    found.row(runs)
    waiting = [request(name, 30) for name in "abcd"]
    for one in waiting:
        found.enter(one)
    decision = found.decide([runs], 48, 4, 0.0)
    assert [one.request_id for one in decision.admit] == ["b", "a"]
    assert decision.held_back and not decision.victims
    assert [round(8 * float(obs[place("picked")])) for obs, _ in script.seen] == [0, 1, 2]
    # nothing has changed but in thought: nobody has been told yet
    assert len(found.line) == 4 and found.line.candidates()[:2] == [
        found.row(waiting[0]),
        found.row(waiting[1]),
    ]


def test_somebody_joins_where_nobody_runs_whatever_a_policy_says() -> None:
    found = steering(Script(0, 0))
    found.enter(request("a"))
    decision = found.decide([], 0, 1, 0.0)
    assert [one.request_id for one in decision.admit] == ["a"]


def test_victims_are_chosen_until_the_rest_fits_and_nobody_joins() -> None:
    script = Script(5 + 1, 5)
    found = steering(script, capacity=128)
    runs = [request(name, 31, num_computed_tokens=32) for name in "abcd"]
    for one in runs:
        found.row(one)
    found.enter(request("w", 8))
    decision = found.decide(runs, 128, 1, 0.0)
    # all four need a block more and hold two: one who goes makes room for two, two make it for the rest
    assert [one.request_id for one in decision.victims] == ["c", "d"] and not decision.admit
    assert all(mask[:5] == [0] * 5 and mask[5:] == [1, 1] for _, mask in script.seen)
    assert found.episode.preemptions == 0 and len(found.line) == 1  # the engine has to say so first
    found.preempted(runs[2])
    assert found.episode.preemptions == 1
    # a token on its way is kept
    assert found.facts.whole[found.row(runs[2]), 1] == 2


def test_who_waits_for_something_else_is_no_candidate() -> None:
    found = steering(Script())
    blocked = request("g", status=SimpleNamespace(name="WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR"))
    found.enter(blocked)
    assert len(found.line) == 0
    blocked.status.name = "WAITING"
    found.enter(blocked)
    found.enter(blocked)
    assert len(found.line) == 1


def test_an_action_that_there_is_not_is_an_error() -> None:
    for action in (-1, 7):
        found = steering(Script(action))
        found.enter(request("a"))
        with pytest.raises(ValueError, match=f"action={action}"):
            found.decide([], 0, 1, 0.0)


def test_an_episode_ends_after_as_many_requests_and_when_nobody_is_there() -> None:
    found = steering(Identity(BUNDLE, CAPACITY))
    names = [f"{k}" for k in range(6)]
    known = {name: request(name, arrival_time=1.0) for name in names}
    for one in known.values():
        found.enter(one)
    found.decide([], 0, 6, 1.5)
    assert found.episode.zero_s == 1.0
    for name in names[:3]:
        del known[name]
    found.gone(known, 30.0)
    assert (found.episode.done, found.episode.late) == (3, 3) and len(found.line) == 3
    del known["3"]
    found.gone(known, 2.0, completed=False)
    assert found.episode.done == 3
    del known["4"]
    found.gone(known, 2.0)
    found.ended(1.5, 2.0)
    found.decide([], 0, 1, 2.5)
    assert (found.episode.done, found.episode.zero_s) == (0, 2.5)  # four are an episode
    assert found.episode.batch_s == 0.5
    found.gone({}, 3.0)
    found.enter(request("z", arrival_time=7.0))
    found.decide([], 0, 1, 7.5)
    assert found.episode.zero_s == 7.0 and found.episode.area_rate == 0.0


def test_those_that_have_gone_are_found_whoever_is_looked_at_first() -> None:
    for first in ((), ("1",), ("1", "3"), ("0", "nobody"), ("3", "1", "0")):
        found = steering(Identity(BUNDLE, CAPACITY))
        known = {name: request(name) for name in "01234"}
        for one in known.values():
            found.enter(one)
        del known["1"], known["3"]
        found.gone(known, 1.0, first=first)
        assert sorted(one.request_id for one in found.requests.values()) == ["0", "2", "4"]
        assert found.episode.done == 2 and len(found.line) == 3


def test_rows_are_used_again_and_grow() -> None:
    facts = Facts(4)
    rows = [facts.take() for _ in range(3)]
    facts.whole[rows, 0] = [1, 2, 3]
    more = [facts.take() for _ in range(4)]
    assert len({*rows, *more}) == 7 and facts.whole[rows, 0].tolist() == [1, 2, 3]
    assert facts.whole[NOBODY].tolist() == [0] * 6 and len(facts.whole) - 1 not in more
    facts.release(rows[1])
    assert facts.take() == rows[1]


def test_the_line_is_in_every_order() -> None:
    limits = Limits(CAPACITY, BLOCK, 256, 256, 8, CAPACITY)
    every = ("arrival", "smallest-area", "shortest-output", "deadline")
    facts = Facts()
    line = Line(facts, replace(BUNDLE, lists=every, slots=8), limits)
    rng = np.random.default_rng(0)
    rows = [facts.take() for _ in range(20)]
    for ticket, row in enumerate(rows):
        facts.whole[row, :3] = rng.integers(1, 100), 0, rng.integers(1, 50)
        facts.arrival_s[row] = rng.uniform()
        line.enter(row, ticket)
    gone = rows[3:9]
    for row in gone:
        line.leave(row)
    stays = [row for row in rows if row not in gone]
    keys = [
        rows.index,
        lambda row: (int(facts.whole[row, 3]), row not in stays),
        lambda row: int(facts.whole[row, 2]),
        lambda row: float(facts.arrival_s[row]),
    ]
    found, before = line.candidates(), set()
    for k, key in enumerate(keys):
        expected = sorted(stays, key=key)[:2]
        assert found[2 * k : 2 * k + 2] == [NOBODY if row in before else row for row in expected]
        before |= set(expected)
    assert line.area == int(facts.whole[stays, 3].sum()) and len(line) == len(stays)
    assert [line.place(row) for row in stays] == list(range(len(stays)))
    # whoever was chosen before, and however many
    rng.shuffle(stays)
    for away in (*(stays[:k] for k in range(len(stays) + 1)), stays[3:5], [], stays[4:5]):
        found, before = line.candidates(away), set()
        for k, key in enumerate(keys):
            expected = sorted(sorted(set(rows) - set(gone) - set(away), key=rows.index), key=key)[:2]
            padded = [NOBODY if row in before else row for row in expected] + [NOBODY] * (2 - len(expected))
            assert found[2 * k : 2 * k + 2] == padded
            before |= set(expected)


def test_prompt_tokens_of_a_batch_are_what_is_not_decoded() -> None:
    found = steering(Identity(BUNDLE, CAPACITY))
    runs = [request("a", num_computed_tokens=41), request("b", num_computed_tokens=10)]
    for one in runs:
        found.row(one)
    found.enter(request("c", 20))
    decision = found.decide(runs, 64, 1, 0.0)
    assert len(decision.admit) == 1
    found.planned(1 + 30 + 20, [(decision.admit[0], 0)], 0.0)
    assert found.episode.batch_prefill == 50 and found.episode.prefilled == 50
