"""Baselines of KVQueue: every rule by name, on every action mode that can play it."""

from typing import Any

import gymnasium
import numpy as np
import pytest

import llmgym
from llmgym import baselines
from llmgym.baselines.kv import queue as kv_queue
from llmgym.errors import InvalidArgument, UnknownName
from llmgym.serving import capacity
from llmgym.serving.rules import CATALOGUE, resolve

ID = "llmgym/KVQueue-v0"
SMALL = {"scenario": "tiny-overload", "requests": 80, "kv_capacity": 400, "information": "exact"}
# Both need more than this environment gives: a budget that whole prompts fit into, and classes.
PLAYED = [*(name for name in CATALOGUE if name != "class-budgets"), "area-aging"]


def run(env: Any, policy: Any, seed: int = 0) -> tuple[list[float], dict[str, float]]:
    obs, info = env.reset(seed=seed)
    rewards, end = [], False
    policy.reset(np.ones(1, np.bool_))
    while not end:
        mask = info["action_mask"][None] if info["action_mask"].size else None
        action = policy.act(obs[None], mask)[0]
        obs, reward, terminated, truncated, info = env.step(action)
        rewards.append(reward)
        end = terminated or truncated
    return rewards, info["metrics"]


def test_names_are_the_rules_of_the_catalogue() -> None:
    assert baselines.names(ID) == [*CATALOGUE, "area-aging"] == llmgym.baselines.names(ID)
    with pytest.raises(UnknownName, match=r"unknown environment 'llmgym/Nothing-v0'.*KVQueue"):
        baselines.names("llmgym/Nothing-v0")


@pytest.mark.parametrize("name", PLAYED)
def test_a_baseline_is_the_environment_with_that_one_rule(name: str) -> None:
    """Alone, or as one of several rules: the same rewards, bit for bit."""
    kwargs = {**SMALL, "horizon_s": 5.0}
    assert baselines.env_kwargs(ID, name) == {"action": "rule", "rules": (name,)}
    env = gymnasium.make(ID, **kwargs, **baselines.env_kwargs(ID, name))
    policy = baselines.make(name, env)
    assert policy.name == name and policy.privileged is False
    alone = run(env, policy)
    others = ("wc-fcfs", "mc-sf", "vllm:watermark=0.07")
    # The rule in force when the episode begins is the first one: it settles the overflow of the first batch, which is empty.
    several = gymnasium.make(ID, **kwargs, action="rule", rules=(*(o for o in others if o != name), name))
    assert run(several, baselines.make(name, several)) == alone
    direct = gymnasium.make(ID, **kwargs, action="rule", rules=(name,))
    _, info = direct.reset(seed=0)
    rewards = []
    while "metrics" not in info:
        _, reward, _, _, info = direct.step(0)
        rewards.append(reward)
    assert (rewards, info["metrics"]) == alone


def test_wc_fcfs_plays_admit() -> None:
    # The largest admission that fits, with enough slots for it, is what the rule does.
    kwargs = {**SMALL, "slots": 64}
    admit = gymnasium.make(ID, **kwargs)
    rule = gymnasium.make(ID, **kwargs, action="rule", rules=("wc-fcfs",))
    assert run(admit, baselines.make("wc-fcfs", admit)) == run(rule, baselines.make("wc-fcfs", rule))


@pytest.mark.parametrize("name", ["vllm", "vllm:watermark=0.1"])
def test_vllm_plays_watermark(name: str) -> None:
    watermark = gymnasium.make(ID, **SMALL, action="watermark")
    rule = gymnasium.make(ID, **SMALL, action="rule", rules=(name,))
    assert run(watermark, baselines.make(name, watermark)) == run(rule, baselines.make(name, rule))


def test_a_vector_of_lanes() -> None:
    envs = gymnasium.make_vec(ID, 3, **SMALL, action="rule", rules=("mc-sf", "vllm"))
    policy = baselines.make("vllm", envs)
    obs, info = envs.reset(seed=0)
    actions = policy.act(obs, info["action_mask"])
    assert actions.tolist() == [1, 1, 1] and actions.dtype == np.int64
    admit = gymnasium.make_vec(ID, 2, **SMALL)
    obs, info = admit.reset(seed=0)
    info["action_mask"][:] = [[1, 1, 1, 0, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0, 0, 0]]
    assert baselines.make("wc-fcfs", admit).act(obs, info["action_mask"]).tolist() == [2, 0]


@pytest.mark.parametrize(
    ("name", "kwargs", "words"),
    [
        ("mc-sf", {}, "rule 'mc-sf' cannot be played with action='admit'.*action='rule'"),
        ("vllm", {}, "rule 'vllm' cannot be played with action='admit'"),
        ("wc-fcfs", {"order": "shortest-output"}, "rule 'wc-fcfs' cannot be played with action='admit'"),
        ("wc-fcfs", {"action": "pick"}, "cannot be played with action='pick'"),
        ("wc-fcfs", {"action": "watermark"}, "cannot be played with action='watermark'"),
        ("vllm", {"action": "rule", "rules": ("mc-sf",)}, r"rules=\['mc-sf'\], which do not include 'vllm'"),
        (
            "vllm:watermark=0.1",
            {"action": "rule", "rules": ("vllm",)},
            "which do not include 'vllm:watermark=0.1'",
        ),
    ],
)
def test_rules_that_the_environment_cannot_play(name: str, kwargs: dict[str, Any], words: str) -> None:
    env = gymnasium.make(ID, **SMALL, **kwargs)
    with pytest.raises(InvalidArgument, match=words):
        baselines.make(name, env)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("vlm", "baseline of llmgym/KVQueue-v0 'vlm'. Did you mean 'vllm'.*wc-fcfs"),
        ("vllm:w=1", "number of rule 'vllm' 'w'.*watermark"),
    ],
)
def test_unknown_names(name: str, words: str) -> None:
    env = gymnasium.make(ID, **SMALL, action="rule")
    with pytest.raises(UnknownName, match=words):
        baselines.make(name, env)


def test_grids_are_variants_of_their_rules() -> None:
    for base, grid in kv_queue.GRIDS.items():
        rules = resolve(grid)
        assert len(rules) >= 3 and all(rule.name.partition(":")[0] == base for rule in rules)
        for name in grid:
            assert baselines.env_kwargs(ID, name) == {"action": "rule", "rules": (name,)}


CLOSED_FORMS = (
    "Saturation",
    "area",
    "budget_rate",
    "critical_rate",
    "exact_area",
    "gap",
    "gpus_needed",
    "mean_area",
    "mixture_rate",
    "reserve_rate",
    "safe_class_budgets",
    "saturation",
    "slack",
)


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_closed_forms_are_those_of_capacity(name: str) -> None:
    assert getattr(kv_queue, name) is getattr(capacity, name)
    assert name in kv_queue.__all__


def test_class_budgets_are_derived_for_the_workload() -> None:
    env = gymnasium.make(ID, scenario="mixed", requests=20, action="rule", rules=("class-budgets",))
    simulation = env.unwrapped.simulation
    budgets = capacity.safe_class_budgets(
        simulation.workload, simulation.scenario.kv_capacity, simulation.scenario.chunk
    )
    assert simulation.rules[0].class_budgets == budgets and len(budgets) == 2


def test_area_with_aging_is_area_alone_where_nobody_ages() -> None:
    """Without aging the order is that of `area-watermark`; with much of it that of arrival, as `vllm` has it."""
    rewards = []
    for name in ("area-watermark", "area-aging:aging=0", "vllm", "area-aging:aging=1000000"):
        env = gymnasium.make(ID, **SMALL, **baselines.env_kwargs(ID, name))
        rewards.append(run(env, baselines.make(name, env)))
    assert rewards[0] == rewards[1] and rewards[2] == rewards[3] and rewards[0] != rewards[2]
