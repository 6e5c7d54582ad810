"""Settings: what a field may be is checked, told in errors, in tables and on the command line."""

import json
from dataclasses import asdict, dataclass

import numpy as np
import pytest

import llmgym
from llmgym import cli
from llmgym.core import settings
from llmgym.core.settings import count, flag, given, option, quantity, settled
from llmgym.errors import InvalidArgument, LlmgymError, UnknownArgument, UnknownName


@dataclass(frozen=True)
class Scenario:
    about: str
    law: str = given(..., "Law of the requests.")
    seats: int = count(8, "Requests that run at once.", high=64, unit="requests")
    cap: int | None = count(None, "Most requests that wait.")
    horizon_s: float = quantity(60.0, "Length of an episode, seconds.", unit="s")
    noise: float = quantity(0.0, "Standard deviation.", zero=True)
    share: float = quantity(0.5, "A share.", zero=True, high=1.0)
    angle: float = quantity(0.0, "An angle.", low=-1.0, high=1.0)
    order: str = option("fifo", "Who is first.", ("fifo", "sjf"))
    sticky: bool = flag(False, "Whether they stay.")


KNOWN = {"plain": Scenario("one line", "poisson"), "big": Scenario("another", "poisson", seats=64)}


def take(**given_settings):
    return settled("plain", KNOWN, given_settings, "Queue", ("about",))


def test_a_scenario_is_named_or_given_and_its_fields_set_anew():
    assert take(seats=3, cap=None, angle=-1, sticky=True) == Scenario(
        "one line", "poisson", seats=3, angle=-1, sticky=True
    )
    assert settled(KNOWN["big"], KNOWN, {}, "Queue") is not None
    with pytest.raises(UnknownName, match="plane"):
        settled("plane", KNOWN, {}, "Queue")
    with pytest.raises(InvalidArgument, match="expected a name or a"):
        settled(3, KNOWN, {}, "Queue")
    for name in ("seat", "about"):
        with pytest.raises(UnknownArgument, match=name):
            take(**{name: 1})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("seats", 0, "seats=0: expected a whole number from 1 to 64"),
        ("seats", 65, "from 1 to 64"),
        ("seats", 2.0, "seats=2.0"),
        ("seats", True, "seats=True"),
        ("seats", None, "seats=None"),
        ("cap", -1, "cap=-1"),
        ("horizon_s", 0.0, "horizon_s=0.0: expected a finite number > 0"),
        ("horizon_s", float("nan"), "horizon_s=nan"),
        ("horizon_s", "1", "horizon_s='1'"),
        ("noise", -0.1, "noise=-0.1: expected a finite number >= 0"),
        ("share", 1.5, "share=1.5: expected a finite number from 0 to 1"),
        ("angle", -2, "angle=-2: expected a finite number from -1 to 1"),
        ("order", "lifo", "lifo"),
        ("sticky", 1, "sticky=1: expected True or False"),
    ],
)
def test_a_value_that_is_not_allowed_is_told_with_what_is(name, value, message):
    with pytest.raises(LlmgymError) as told:
        take(**{name: value})
    assert message in str(told.value) and "\n" not in str(told.value)


def test_a_scenario_that_is_given_as_an_object_is_checked_too():
    with pytest.raises(InvalidArgument, match="seats=-1"):
        settled(Scenario("x", "poisson", seats=-1), KNOWN, {}, "Queue")


def test_the_table_tells_every_setting():
    text = settings.markdown(Scenario)
    rows = text.splitlines()[2:]
    assert [row.split("`")[1] for row in rows] == [
        "law", "seats", "cap", "horizon_s", "noise", "share", "angle", "order", "sticky",
    ]  # fmt: skip
    assert "| `seats` | `8` | 1 to 64 | requests | Requests that run at once. |" in rows
    assert "whole, from 1; `None`" in text and "`fifo`, `sjf`" in text


@pytest.mark.parametrize("env_id", llmgym.env_ids())
def test_every_setting_of_every_environment_says_what_it_is(env_id):
    known = llmgym.spec(env_id).scenarios_by_name()
    told = {name: setting for name, _, setting in settings.rows(type(next(iter(known.values()))))}
    fields = set(type(next(iter(known.values()))).__dataclass_fields__) - {"about"}
    assert set(told) == fields
    for name, setting in told.items():
        assert setting.about.endswith(".") and setting.about[0].isupper(), (name, setting.about)


def test_the_command_shows_them(capsys):
    assert cli.main(["settings", "llmgym/AFDRefill-v0", "--scenario", "small"]) == 0
    out = capsys.readouterr().out
    assert "patience" in out and "ratio" in out
    assert cli.main(["settings", "llmgym/AFDRefill-v0", "--scenario", "smal"]) == 2
    assert "smal" in capsys.readouterr().err


def test_numbers_of_numpy_become_pythons_own():
    chosen = take(seats=np.int64(3), horizon_s=np.float32(2.0), sticky=np.bool_(True))
    assert [type(x) for x in (chosen.seats, chosen.horizon_s, chosen.sticky)] == [int, float, bool]
    json.dumps(asdict(chosen))
