"""The test kit passes an environment that is right, and names what is wrong with one that is not."""

import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box

from llmgym import cli
from llmgym.core.env import LaneEnv, LaneVectorEnv
from llmgym.core.layout import Layout
from llmgym.errors import CheckFailed, InvalidArgument, UnknownName
from llmgym.testing import check
from llmgym.testing.checks import check_audit
from llmgym.testing.invariants import actions_accepted_or_safe
from tests.toy import Toy

ROOT = Path(__file__).parents[2]
KINDS = {"number": {}, "pair": {"action": "pair"}, "box": {"action": "box"}}


class Good(Toy):
    """The toy, with all that the kit asks for."""

    hidden: ClassVar = {"lane.key": "never"}

    def __init__(self, **kwargs: Any) -> None:
        if kwargs.get("invalid_action", "raise") not in ("raise", "penalize"):
            raise InvalidArgument(f"invalid_action={kwargs['invalid_action']!r}: expected raise or penalize")
        super().__init__(**kwargs)
        if isinstance(self.action_space, Box):  # gymnasium's checker warns of any other range
            self.action_space = Box(0.0, 1.0, (1,), np.float64)

    def redraw(self, state: Any, lane: int, key: int) -> None:
        state.lane["key"][lane] = key


class NoAudit(Good):
    def audit(self, state: Any, lane: int) -> dict[str, float]:
        return {}


class Undeclared(Good):
    hidden = None


class NoRedraw(Good):
    redraw = Toy.redraw


class SaysItCannotBeSeen(Good):
    hidden: ClassVar = {"lane.key": "never", "lane.queue": "never"}

    def redraw(self, state: Any, lane: int, key: int) -> None:
        state.lane["key"][lane], state.lane["queue"][lane] = key, key % 7


class OtherReturn(Good):
    def expected_return(self, metrics: dict[str, float]) -> float:
        return -2.0 * metrics["waited_s"]


class NarrowBounds(Good):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        first, *rest = self.layout
        self.layout = Layout([replace(first, high=0.1), *rest])


class WrongClock(Good):
    def audit(self, state: Any, lane: int) -> dict[str, float]:
        return {"clock_s": 2.0 * float(state.lane[lane]["clock_s"])}


class AnyArgument(Good):
    def __init__(self, no_such_argument: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)


class Busier(Good):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"arrival": 0.9, **kwargs})


class LaneByLane(Good):
    """Its vector form is another world."""


def entries(kind: type[Good], vector: type[Good] | None = None) -> tuple[type, type]:
    names = {"__module__": __name__}
    single = type(f"{kind.__name__}Env", (LaneEnv,), {"simulation_class": kind, **names})
    many = type(f"{kind.__name__}VectorEnv", (LaneVectorEnv,), {"simulation_class": vector or kind, **names})
    globals().update({single.__name__: single, many.__name__: many})  # for the other process
    return single, many


for kind in (
    Good,
    NoAudit,
    Undeclared,
    NoRedraw,
    SaysItCannotBeSeen,
    OtherReturn,
    NarrowBounds,
    WrongClock,
    AnyArgument,
):
    entries(kind)
entries(LaneByLane, Busier)


def registered(kind: type[Good]) -> str:
    env_id = f"kit-tests/{kind.__name__}-v0"
    single, many = (globals()[f"{kind.__name__}{form}"] for form in ("Env", "VectorEnv"))
    if env_id not in gymnasium.registry:
        gymnasium.register(env_id, entry_point=single, vector_entry_point=many, disable_env_checker=True)
    return env_id


def failures(kind: type[Good]) -> dict[str, str]:
    with pytest.raises(CheckFailed) as caught:
        check(registered(kind), seeds=[5], progress=False)
    return {one.check: one.reason for one in caught.value.report.of("failed")}


def test_a_right_environment_passes_with_every_kind_of_action():
    report = check(registered(Good), cases=KINDS, seeds=[0, 2**62], progress=False)
    assert report.passed and report.env_id == "kit-tests/Good-v0"
    skipped = {(one.check, one.case): one.reason for one in report.of("skipped")}
    assert skipped == {
        (
            "unmasked actions accepted, masked ones safe",
            "box",
        ): "every element of a continuous action space is allowed"
    }
    cases = {
        one.case for one in report.results if one.check == "a lane is the single environment (SAME_STEP)"
    }
    assert cases == set(KINDS)
    text = str(report)
    assert "another process, same bits" in text and "passed" in text and "skipped" in text


def test_what_is_not_offered_is_told():
    report = check(registered(NoAudit), seeds=[5], progress=False)
    told = [one for one in report.of("skipped") if one.check == "audit"]
    assert [one.case for one in told] == ["default"] and "nothing is recounted" in told[0].reason


@pytest.mark.parametrize(
    ("kind", "name", "reason"),
    [
        (
            Undeclared,
            "what differs between worlds is declared",
            "does not declare what is hidden from a scheduler: name in",
        ),
        (NoRedraw, "observations do not read what is hidden", "has no `redraw`"),
        (
            SaysItCannotBeSeen,
            "observations do not read what is hidden",
            "['queue.length'] show what is hidden",
        ),
        (OtherReturn, "an episode: bounds, counts, clock, return", "the rewards of an episode add up to"),
        (NarrowBounds, "an episode: bounds, counts, clock, return", "'queue.length' is [0."),
        (WrongClock, "an episode: bounds, counts, clock, return", "the `dt` of all steps add up to"),
        (AnyArgument, "a bad argument is named", "no_such_argument=1 is accepted"),
        (LaneByLane, "a lane is the single environment (DISABLED)", "lane 2, AutoresetMode.DISABLED"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_what_is_wrong_is_named(kind, name, reason):
    found = failures(kind)
    assert reason in found[name], found


def test_what_does_not_run_is_told_once():
    with pytest.raises(CheckFailed, match=r"1 of 1 checks failed\n- it runs \[wrong\]: raises ") as caught:
        check(registered(Good), cases={"wrong": {"action": "no such"}, "default": {}}, progress=False)
    assert len(caught.value.report.results) == 1


def test_the_error_says_it_all_and_travels():
    with pytest.raises(
        AssertionError, match="kit-tests/AnyArgument-v0: 1 of 22 checks failed\n- a bad argument"
    ) as caught:
        check(registered(AnyArgument), seeds=[5], progress=False)
    again = pickle.loads(pickle.dumps(caught.value))
    assert str(again) == str(caught.value) and again.report == caught.value.report


@pytest.mark.parametrize(
    ("audit", "before", "message"),
    [
        ({"arrived": 3.0, "waiting": 1.0, "done": 1.0}, {}, "is lost or counted twice"),
        ({"arrived": 2.0, "waiting": 3.0, "done": -1.0}, {}, "less than nothing"),
        ({"arrived": 2.0, "done": 2.0}, {"arrived": 3.0, "done": 1.0}, "arrived went down"),
        ({"clock_s": float("nan")}, {}, "no finite numbers"),
        ({"kv_used": 3.0, "kv_resident": 2.0, "kv_capacity": 9.0}, {}, "by the residents"),
        ({"kv_used": 3.0, "kv_resident": 3.0, "kv_capacity": 2.0}, {}, "more KV than there is"),
        ({"bytes_sent": 3.0, "bytes_received": 1.0, "bytes_in_flight": 1.0}, {}, "bytes are lost"),
        ({"energy_j": 1.0}, {"energy_j": 2.0}, "energy went down"),
        ({"work_asked": 3.0, "work_done": 1.0, "work_left": 1.0}, {}, "work is lost"),
        ({"queue": 2.0, "queue_counted": 3.0}, {}, "recounted 3.0"),
    ],
)
def test_a_recount_that_does_not_add_up_is_told(audit, before, message):
    with pytest.raises(AssertionError, match=message):
        check_audit(audit, before)


def test_a_masked_action_that_is_accepted_is_told(monkeypatch):
    monkeypatch.setattr("llmgym.core.lanes.Lanes._raise_masked", lambda self, values: None)
    with pytest.raises(AssertionError, match="is accepted where masked actions are errors"):
        actions_accepted_or_safe(registered(Good), {}, 1, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seeds": []}, "seeds="),
        ({"seeds": [-1]}, "seeds=-1"),
        ({"seeds": "1"}, "seeds='1'"),
        ({"cases": {}}, "cases="),
        ({"cases": {"one": 1}}, "cases="),
    ],
)
def test_mistakes_of_the_caller_are_named(arguments, message):
    with pytest.raises(InvalidArgument, match=message):
        check(registered(Good), progress=False, **arguments)


def test_what_is_no_environment_of_lanes_is_told():
    with pytest.raises(InvalidArgument, match=r"not a llmgym\.core\.env\.LaneEnv"):
        check("CartPole-v1", progress=False)
    with pytest.raises(UnknownName, match="Did you mean"):
        check("llmgym/KVQeue-v0", progress=False)


def test_the_kit_needs_no_test_library():
    code = (
        "import sys\nfor name in ('pytest', 'hypothesis'): sys.modules[name] = None\nimport llmgym.testing\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_the_command_prints_the_table_and_says_what_failed(capsys):
    assert cli.main(["check", registered(NoAudit), "--no-progress"]) == 0
    assert "1 skipped" in " ".join(capsys.readouterr().out.split())
    assert cli.main(["check", registered(AnyArgument), "--no-progress"]) == 1
    out, err = capsys.readouterr()
    assert "failed" in out and "no_such_argument=1 is accepted" in err
    assert cli.main(["check", "kit-tests/No-v0"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
