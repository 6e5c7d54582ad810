"""The rules of KVProvision: what they ask for, and what that costs."""

from typing import Any

import gymnasium
import numpy as np
import pytest

from llmgym import baselines
from llmgym.baselines.kv_provision import BASELINES, LawPolicy
from llmgym.core.policy import Policy
from llmgym.envs.kv_provision import KVProvisionEnv
from llmgym.errors import InvalidArgument
from llmgym.serving.capacity import UNLIMITED

ID = "llmgym/KVProvision-v0"
MU = 3.2622  # req/s of one replica of the paper's cluster


def score(name: str, lanes: int = 4, seed: int = 20, **kwargs: Any) -> dict[str, float]:
    """Mean metrics of a baseline over the first episode of each lane."""
    env = gymnasium.make_vec(ID, num_envs=lanes, **kwargs)
    policy = baselines.make(name, env)
    assert isinstance(policy, Policy) and policy.name == name
    obs, infos = env.reset(seed=seed)
    policy.reset(np.ones(lanes, np.bool_))
    found: dict[int, dict[str, float]] = {}
    while len(found) < lanes:
        actions = policy.act(obs, infos["action_mask"])
        assert actions.shape == (lanes,) and actions.dtype.kind == "i"
        obs, _, terminated, truncated, infos = env.step(actions)
        for lane in np.flatnonzero(terminated | truncated):
            row = {
                name: float(infos["metrics"][name][lane]) for name in env.unwrapped.simulation.metric_names
            }
            found.setdefault(int(lane), row)
    return {key: float(np.mean([row[key] for row in found.values()])) for key in found[0]}


def test_the_memory_law_beats_the_token_rate_where_memory_binds() -> None:
    for kwargs in ({"scenario": "small"}, {"scenario": "paper-drift", "epochs": 30, "day_s": 900.0}):
        law, tokens = score("kv-law", **kwargs), score("token-rate", **kwargs)
        assert law["cost"] < 0.5 * tokens["cost"]
        assert law["unstable"] == 0 and law["waiting_end"] < tokens["waiting_end"]
        assert tokens["gpus_mean"] < law["gpus_mean"]


def test_knowing_the_future_helps() -> None:
    cost = {name: score(name, scenario="fluid-small", lanes=8)["cost"] for name in baselines.names(ID)}
    assert min(cost, key=lambda name: cost[name]) == "oracle"
    assert cost["kv-law-0.8"] < cost["static-peak"] < cost["static-mean"]
    assert {name: baselines.make(name, KVProvisionEnv()).privileged for name in cost if name != "oracle"} == {
        name: False for name in cost if name != "oracle"
    }
    assert baselines.make("oracle", KVProvisionEnv()).privileged


def test_the_law_asks_for_what_the_formula_says() -> None:
    env = KVProvisionEnv(
        scenario="surge", max_replicas=12, rate_rps=20.0, shape=None, initial_replicas=8, epochs=20
    )
    policy = baselines.make("kv-law", env)
    obs, _ = env.reset(seed=0)
    assert policy.act(obs[None], None).tolist() == [int(np.ceil(20.0 / (0.9 * MU)))] == [7]
    tokens = baselines.make("token-rate", env)
    # 512 tokens in 0.0372 s; mean of 1,610 tokens a request
    assert tokens.act(obs[None], None).tolist() == [int(np.ceil(20.0 * 1610 / (0.9 * 512 / 0.0372)))] == [3]
    assert env.simulation.scenario.budget == UNLIMITED
    hold = baselines.make("hold", env)
    obs, *_ = env.step(5)
    assert hold.act(obs[None], None).tolist() == [5]


def test_reactive_follows_the_queue_with_hysteresis() -> None:
    env = KVProvisionEnv(scenario="surge", max_replicas=8, initial_replicas=4)
    policy = baselines.make("reactive", env)
    layout, number = env.layout, env.simulation.params.number[0]
    obs = np.zeros((1, layout.size), np.float32)
    obs[:, layout["target"]] = obs[:, layout["on"]] = 4 / 8

    def ask(queue: float, used: float, starting: float = 0.0) -> int:
        obs[:, layout["waiting"]] = queue / number["waiting_cap"]
        obs[:, layout["kv.mean"]], obs[:, layout["starting"]] = used, starting / 8
        return int(policy.act(obs, None)[0])

    assert [ask(10, 1.0), ask(17, 1.0), ask(300, 1.0), ask(300, 1.0, 1)] == [4, 5, 6, 4]
    assert [ask(0, 0.3) for _ in range(7)] == [4, 4, 3, 4, 4, 3, 4]
    policy.reset(np.ones(1, np.bool_))
    assert [ask(0, 0.3), ask(0, 0.9), ask(0, 0.3), ask(0, 0.3), ask(0, 0.3)] == [4, 4, 4, 4, 3]


def test_a_baseline_of_another_environment_is_refused() -> None:
    other = gymnasium.make("llmgym/KVQueue-v0")
    with pytest.raises(InvalidArgument, match="KVProvision"):
        BASELINES["hold"](other)
    with pytest.raises(InvalidArgument, match="utilization"):
        LawPolicy(KVProvisionEnv(), utilization=1.2)
