"""Settings: what a field may be is checked, told in errors, in tables and on the command line."""

import inspect
import json
import re
from dataclasses import asdict, dataclass

import gymnasium
import numpy as np
import pytest

import llmgym
from llmgym import cli
from llmgym.core import settings
from llmgym.core.settings import count, flag, given, numbers, option, quantity, settled, some_of
from llmgym.envs.ppd.weights.env import PPDWeights
from llmgym.errors import InvalidArgument, LlmgymError, ProfileError, TraceError, UnknownArgument, UnknownName


@dataclass(frozen=True)
class Scenario:
    about: str
    law: str = given(..., "Law of the requests.", check=lambda name, value: None)
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


WRONG = (3, -1, 1.5, "nope", True, None, [], {}, object(), (), (3,), ("nope",), float("nan"), 10**400, b"x")


@pytest.mark.parametrize("env_id", llmgym.env_ids())
def test_every_setting_of_every_environment_takes_a_wrong_value_or_names_itself(env_id, monkeypatch):
    """Found here: types, profiles, workloads, kernels and mixes of a wrong kind ended in errors of Python deep inside."""
    spec = llmgym.spec(env_id)
    cheap = next(iter(spec.test_cases().values()))
    simulation = gymnasium.make(env_id, **cheap).unwrapped.simulation
    if isinstance(
        simulation, PPDWeights
    ):  # whose table takes a simulation of its own, which no setting is refused by
        monkeypatch.setattr("llmgym.envs.ppd.weights.env.table_of", lambda *_: simulation.table)
        monkeypatch.setattr(
            "llmgym.envs.ppd.weights.env.reference_of", lambda *_: simulation.params.reference
        )
    arguments = inspect.signature(type(simulation).__init__).parameters.values()
    names = [name for name, _, _ in settings.rows(type(next(iter(spec.scenarios_by_name().values()))))]
    names += [one.name for one in arguments if one.kind is one.KEYWORD_ONLY]
    taken = 0
    for name in dict.fromkeys(names):
        for value in WRONG:
            try:
                type(simulation)(**{**cheap, name: value})
                taken += 1
            except LlmgymError as error:
                assert name in str(error), f"{name}={value!r}: {error}"
    assert 0 < taken < len(names) * len(WRONG) / 3


@pytest.mark.parametrize("env_id", llmgym.env_ids())
def test_every_default_is_allowed(env_id):
    dataclass_of_them = type(next(iter(llmgym.spec(env_id).scenarios_by_name().values())))
    for name, default, setting in settings.rows(dataclass_of_them):
        if default != "" and not (default is None and setting.optional):
            setting.check(name, default)


@pytest.mark.parametrize(
    ("declare", "message"),
    [
        (lambda: count(0, "Seats.", low=1), "'Seats.': default=0: expected a whole number from 1"),
        (lambda: count(3, "Seats.", low=5, high=4), "low=5, high=4: expected the smaller first"),
        (lambda: count("Seats.", 3), "about=3: expected a sentence"),
        (lambda: quantity(2.0, "Share.", high=1.0), "default=2.0: expected a finite number above 0, up to 1"),
        (lambda: quantity(0.0, "Share."), "default=0.0: expected a finite number > 0"),
        (lambda: quantity(..., "Share.", high=-1.0), "high=-1.0"),
        (lambda: option("lifo", "Order.", ("fifo", "sjf")), "unknown default 'lifo'"),
        (lambda: option("f", "Order.", "fifo"), "choices='fifo': expected names"),
        (lambda: flag(1, "Whether."), "default=1: expected True or False"),
        (lambda: numbers((1.0,), "Pair.", size=2), "default=(1.0,): expected two numbers > 0"),
        (lambda: numbers([1.0], "Load."), "it can be changed; use a tuple"),
        (lambda: some_of((3,), "Sizes.", (1, 2)), "default=(3,): expected some of 1, 2, each once"),
        (lambda: given(None, "", check=print), "about='': expected a sentence"),
    ],
)
def test_a_declaration_that_contradicts_itself_is_refused(declare, message):
    with pytest.raises(InvalidArgument, match=re.escape(message)):
        declare()


@dataclass(frozen=True)
class Several:
    about: str
    span: tuple[int, int] = numbers((1, 4), "Span.", size=2, integers=True, high=9, order="pair")
    caps: tuple[float, ...] = numbers((), "Caps.", size=(0, 2), low=10.0, order="falling")
    shares: tuple[float, ...] = numbers((0.5, 0.5), "Shares.", zero=True, high=1.0, total=1.0)
    mix: tuple[float, ...] | None = numbers(None, "Mix.", zero=True, some=True)
    ways: tuple[str, ...] = some_of(("a",), "Ways.", ("a", "b"), first="a")
    least: int = count(2, "Least.")

    def check_together(self):
        if self.least > self.span[1]:
            raise InvalidArgument(
                f"least={self.least}: expected no more than {self.span[1]}, the end of span"
            )


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("span", (4, 1), "two whole numbers from 1 to 9, the smaller first"),
        ("span", (1, 4, 5), "two whole numbers from 1 to 9"),
        ("span", (1.0, 2), "two whole numbers from 1 to 9"),
        ("span", (1, 10), "two whole numbers from 1 to 9"),
        ("caps", (10.0, 11.0), "up to 2 numbers >= 10, falling"),
        ("caps", (20.0, 15.0, 11.0), "up to 2 numbers >= 10, falling"),
        ("shares", (0.5, 0.4), "from 0 to 1, adding up to 1"),
        ("mix", (0.0, 0.0), "1 or more numbers >= 0, not all 0"),
        ("mix", (), "1 or more numbers >= 0"),
        ("ways", ("b", "a"), "some of a, b, each once, a first"),
        ("ways", ("a", "a"), "each once"),
        ("least", 5, "expected no more than 4"),
    ],
)
def test_several_numbers_or_names(name, value, expected):
    with pytest.raises(InvalidArgument, match=f"^{name}=.*: expected") as told:
        settled(Several(""), {"one": Several("")}, {name: value}, "Several")
    assert expected in str(told.value)


def test_lists_and_arrays_become_tuples_of_pythons_numbers():
    """Settings that come from JSON are lists; scenarios are compared and hashed."""
    changes = {"span": np.array([2, 3]), "caps": [np.float64(20.0)], "ways": ["a", "b"], "mix": [1, 0]}
    chosen = settled("one", {"one": Several("")}, changes, "Several")
    assert chosen == Several("", span=(2, 3), caps=(20.0,), ways=("a", "b"), mix=(1, 0))
    assert type(chosen.span[0]) is int and type(chosen.caps[0]) is float
    hash(chosen)


def test_kernels_that_are_not_used_are_checked_too():
    with pytest.raises(UnknownName, match="kernels='nope': unknown kernel set 'nope'"):
        gymnasium.make("llmgym/MemPipe-v0", scenario="small", kernels="nope")


def test_what_is_loaded_is_named_by_its_argument(tmp_path):
    with pytest.raises(UnknownName, match="workload='x': unknown requests 'x'"):
        gymnasium.make("llmgym/AFDRatio-v0", workload="x")
    with pytest.raises(TraceError, match=r"workload='.*x\.csv': .*no such file"):
        gymnasium.make("llmgym/KVQueue-v0", workload=str(tmp_path / "x.csv"))
    with pytest.raises(ProfileError, match="profile='/nowhere': /nowhere: no such file or folder"):
        gymnasium.make("llmgym/Forage-v0", profile="/nowhere")
