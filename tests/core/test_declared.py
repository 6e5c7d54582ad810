"""A simulation that lacks something, or says it wrongly, is told so before anything of it runs."""

import os
import re
import subprocess
import sys
from types import ModuleType
from typing import NamedTuple

import pytest
from gymnasium.spaces import Dict, Discrete, MultiDiscrete

import llmgym
from llmgym.core.env import env_classes
from llmgym.core.jit import kernel
from llmgym.core.lanes import Kernels, Simulation
from llmgym.core.layout import Layout
from llmgym.core.records import Record, float64, int64, metric, shown
from llmgym.core.spec import EnvSpec, register
from llmgym.errors import EnvironmentClosed, InvalidArgument, UnknownArgument
from tests.toy import ToyEnv, ToyVectorEnv


class Params(NamedTuple):
    rate: float


class Seen(Record):
    clock: float = shown("time that has passed")


class Kept(Record):
    clock: float = float64("Time that has passed.")


class Told(Record):
    clock_s: float = metric("time that has passed")


@kernel
def reset_lane(state, params, lane, key):
    pass


@kernel
def step_lane(state, params, lane, action):
    return 0.0, False, False, 1.0


@kernel
def observe_lane(state, params, lane, out, rest):
    pass


@kernel
def metrics_lane(state, params, lane, out):
    pass


class Whole(Simulation):
    kernels = Kernels.of(reset_lane, step_lane, observe_lane, metrics_lane)
    episode = Kept
    metrics = Told
    layout = Layout(head=Seen)
    action_space = Discrete(2)
    params = Params(1.0)

    def expected_return(self, metrics):
        return 0.0


def test_a_whole_one_is_made():
    env, _ = env_classes(Whole)
    assert env().reset(seed=0)[0].shape == (1,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metrics": None}, "has no `metrics`: name the record of its metric(...) fields"),
        (
            {"action_space": Discrete(2, start=1)},
            "action_space=Discrete(2, start=1): expected actions that begin with 0",
        ),
        ({"action_space": MultiDiscrete([2, 2], start=[0, 1])}, "expected actions that begin with 0"),
        ({"action_space": Dict()}, "expected Discrete, MultiDiscrete or Box"),
        ({"layout": (1,)}, "layout=(1,): expected a Layout"),
        ({"kernels": (reset_lane,)}, "expected Kernels(...) or Kernels.of(...)"),
        (
            {"kernels": Kernels.of(metrics_lane, observe_lane, observe_lane, metrics_lane)},
            "step_lane takes 5 arguments (state, params, lane, out, rest); expected step_lane(state, params, lane, action)",
        ),
        (
            {"kernels": Kernels.of(reset_lane, step_lane, metrics_lane, metrics_lane)},
            "observe_lane takes 4 arguments (state, params, lane, out); expected observe_lane(state, params, lane, out, rest)",
        ),
        (
            {"kernels": Kernels.of(None, step_lane, observe_lane, metrics_lane)},
            "reset_lane=None is no function",
        ),
    ],
)
def test_what_is_wrong_with_a_simulation_is_named(change, message):
    parts = (
        {**vars(Whole), **change, "metric_names": ()}
        if "metrics" not in change
        else {**vars(Whole), **change}
    )
    parts.pop("metric_names", None)
    part = type("Part", (Simulation,), parts)
    env, _ = env_classes(part)
    with pytest.raises(InvalidArgument, match=re.escape(message)):
        env()


@pytest.mark.parametrize("name", ["kernels", "layout", "action_space", "params"])
def test_what_a_simulation_lacks_is_named(name):
    part = type("Part", (Simulation,), {key: value for key, value in vars(Whole).items() if key != name})
    with pytest.raises(InvalidArgument, match=f"Part has no `{name}`"):
        env_classes(part)[0]()


@pytest.mark.parametrize(
    ("declare", "message"),
    [
        (
            lambda: shown("Share.", low=1.0, high=0.0),
            "'Share.': low=1.0, high=0.0: expected the smaller first",
        ),
        (lambda: shown("Share.", size=0), "'Share.': size=0: expected a whole number from 1"),
        (lambda: metric("Time.", best="least"), "'Time.': best='least': expected 'min', 'max' or None"),
        (lambda: int64(3), "about=3: expected a sentence"),
        (lambda: float64("Rows.", shape=(2, -1)), "'Rows.': size=-1: expected a whole number from 1"),
    ],
)
def test_a_field_that_contradicts_itself_is_refused(declare, message):
    with pytest.raises(InvalidArgument, match=re.escape(message)):
        declare()


def test_specs_of_what_is_not_there(monkeypatch):
    empty = ModuleType("empty_module")
    monkeypatch.setitem(sys.modules, "empty_module", empty)
    with pytest.raises(InvalidArgument, match="module='no_such' of me/My-v0: expected one that was imported"):
        EnvSpec.of("me/My-v0", "no_such")
    with pytest.raises(
        InvalidArgument, match=r"has no MyEnv: write `MyEnv, MyVectorEnv = env_classes\(My\)`"
    ):
        EnvSpec.of("me/My-v0", "empty_module")
    with pytest.raises(InvalidArgument, match="id='My': expected a name with a version"):
        EnvSpec.of("My", "empty_module")
    empty.MyEnv, empty.MyVectorEnv = ToyEnv, ToyVectorEnv
    with pytest.raises(UnknownArgument, match="decison"):
        EnvSpec.of("me/My-v0", "empty_module", decison="which")
    with pytest.raises(
        InvalidArgument, match=r"audit='tests.toy:nothing' of me/Toy-v9: tests.toy has no nothing"
    ):
        register(
            EnvSpec("me/Toy-v9", "tests.toy:ToyEnv", "tests.toy:ToyVectorEnv", audit="tests.toy:nothing")
        )
    later = EnvSpec("me/Toy-v9", "no_such:Env", "no_such:VectorEnv", scenarios="no_such:SCENARIOS")
    with pytest.raises(
        InvalidArgument, match=r"'no_such:SCENARIOS' of a llmgym.EnvSpec: No module named 'no_such'"
    ):
        later.scenario_names()
    assert "me/Toy-v9" not in llmgym.env_ids()


@pytest.mark.parametrize("threads", [1, 2])
def test_nothing_is_stepped_after_close(threads):
    envs = ToyVectorEnv(4, threads=threads)
    envs.reset(seed=0)
    envs.close()
    for call in (lambda: envs.step([0] * 4), lambda: envs.reset(seed=0)):
        with pytest.raises(
            EnvironmentClosed, match=r"(step|reset)\(\) after close\(\): make the environment anew"
        ):
            call()
    envs.close()


PLAIN = """
import gymnasium, llmgym, numpy as np
from llmgym.testing.drive import legal_action
for env_id in {ids}:
    env = gymnasium.make(env_id, **next(iter(llmgym.spec(env_id).test_cases().values()))).unwrapped
    rng = np.random.default_rng(0)
    rows, info = [], env.reset(seed=0)[1]
    for _ in range({steps}):
        obs, reward, terminated, truncated, info = env.step(legal_action(env, info["action_mask"], rng))
        rows += [*map(float, obs), reward]
        if terminated or truncated:
            break
    print(env_id, *rows, *env.metrics().values())
"""


def played(ids: list[str], steps: int, **environment: str) -> list[list[str]]:
    code = PLAIN.format(ids=ids, steps=steps)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return [line.split() for line in done.stdout.splitlines()]


def same_without_compiling(ids: list[str], steps: int) -> None:
    plain, compiled = played(ids, steps, NUMBA_DISABLE_JIT="1"), played(ids, steps)
    assert [row[0] for row in plain] == [row[0] for row in compiled] == ids
    for one, other in zip(plain, compiled, strict=True):
        assert [float(x) for x in one[1:]] == pytest.approx(
            [float(x) for x in other[1:]], rel=1e-5, abs=1e-6, nan_ok=True
        ), one[0]


def test_kernels_run_as_plain_python():
    """Found here: records of numpy have no fields as attributes, or other things by the same names, such as `size`."""
    same_without_compiling(["llmgym/AFDRefill-v0", "llmgym/MemPlace-v0", "llmgym/PPDRouting-v0"], 5)


@pytest.mark.slow
@pytest.mark.parametrize("env_id", llmgym.env_ids())
def test_kernels_of_every_environment_run_as_plain_python(env_id):
    same_without_compiling([env_id], 3)
