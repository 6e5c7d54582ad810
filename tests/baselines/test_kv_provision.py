"""The rules of KVProvision: what they ask for, and what that costs."""

import itertools
from typing import Any

import gymnasium
import numpy as np
import pytest

from llmgym import baselines
from llmgym.baselines.kv.provision import BASELINES, LawPolicy, unprivileged
from llmgym.core.policy import Policy
from llmgym.envs.kv.provision.env import KVProvisionEnv
from llmgym.errors import InvalidArgument
from llmgym.evaluation import run_episodes, tuned
from llmgym.evaluation.tuning import TUNING_SEEDS
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


@pytest.mark.parametrize(
    "kwargs",
    [
        {"scenario": "small"},
        pytest.param({"scenario": "paper-drift", "epochs": 30, "day_s": 900.0}, marks=pytest.mark.slow),
    ],
    ids=["small", "paper"],
)
def test_the_memory_law_beats_the_token_rate_where_memory_binds(kwargs: dict[str, Any]) -> None:
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


@pytest.mark.parametrize(
    "kwargs",
    [
        {"scenario": "fluid-small"},
        pytest.param({"scenario": "small", "epochs": 40}, marks=pytest.mark.slow),
        pytest.param(
            {"scenario": "surge", "mode": "fluid", "startup_epochs": 0, "epochs": 30}, marks=pytest.mark.slow
        ),
    ],
    ids=["fluid", "event", "no start-up"],
)
def test_no_rule_beats_the_oracle_on_any_world(kwargs: dict[str, Any]) -> None:
    """Rules, and all variants that they are tuned over; and the best tuned one is beaten clearly."""
    oracle = run_episodes(ID, "oracle", 4, 500, kwargs)
    assert oracle.privileged
    means = {}
    for name in unprivileged():
        one = run_episodes(ID, name, 4, 500, kwargs)
        assert not one.privileged
        np.testing.assert_array_less(one.returns - 1e-6, oracle.returns, name)
        means[name] = float(one.returns.mean())
    assert set(baselines.names(ID)) - {"oracle"} <= set(means) and len(means) > 20
    assert oracle.returns.mean() > max(means.values()) + 0.005 * abs(max(means.values()))


def test_what_the_oracle_plans_is_what_comes() -> None:
    """In a vector environment whose lanes begin anew at different times, and after somebody else has decided for a while."""
    env = gymnasium.make_vec(ID, num_envs=2, scenario="fluid-small", epochs=12)
    oracle = baselines.make("oracle:sweeps=0", env)
    obs, infos = env.reset(seed=[1, 2])
    for step in range(30):
        targets = oracle.act(obs, infos["action_mask"])
        if step in (3, 4):
            targets = np.full(2, 8)  # not its own choice: it must look anew
        obs, _, terminated, truncated, infos = env.step(targets)
        for lane in np.flatnonzero(terminated | truncated):
            cost = float(infos["metrics"]["cost"][lane])
            assert cost > 0.0 and infos["metrics"]["unstable"][lane] == 0.0
    world, start, plan = oracle._plans[0]
    assert start == 0 and len(plan) == 12 and world == float(env.unwrapped.lanes.state.lane["checksum"][0])


def test_the_oracle_finds_the_optimum_of_a_toy() -> None:
    """Over all plans of five epochs with one to three replicas, one start ahead."""
    kwargs = {
        "scenario": "fluid-small",
        "epochs": 5,
        "max_replicas": 3,
        "startup_epochs": 1,
        "load": 0.5,
        "shape": (0.3, 0.6, 2.0, 1.5, 0.5),
        "day_s": None,
    }
    found = run_episodes(ID, "oracle:sweeps=3", 3, 7, kwargs).returns
    for lane, got in enumerate(found):
        env = KVProvisionEnv(**kwargs)
        best = -np.inf
        for plan in itertools.product((1, 2, 3), repeat=5):
            env.reset(seed=7 + lane)
            best = max(best, sum(env.step(target)[1] for target in plan))
        assert got == pytest.approx(best, rel=1e-9)


def test_the_law_with_the_queue_asks_for_what_the_formula_says() -> None:
    env = KVProvisionEnv(scenario="surge", max_replicas=12, startup_epochs=2)
    policy = baselines.make("kv-law-queue:utilization=0.8,window=2", env)
    layout, config = env.layout, env.simulation.params.config[0]
    obs = np.zeros((1, layout.size), np.float32)

    def ask(need: float, rate: float, queue: float = 0.0) -> int:
        obs[:, layout["need"]], obs[:, layout["mu"]] = need / 12, 1.0
        obs[:, layout["rate"]] = rate
        obs[:, layout["waiting"]] = queue / config["waiting_cap"]
        return int(policy.act(obs, None)[0])

    assert ask(4.0, 0.40) == 5  # 4 / 0.8
    assert ask(4.1, 0.41) == 6
    # 10 % more in two epochs: 15 % until a start serves, after three
    assert ask(4.4, 0.44) == int(np.ceil(4.4 * 1.15 / 0.8)) == 7
    assert ask(4.4, 0.41) == int(np.ceil(4.4 / 0.8)) == 6  # as two epochs ago
    service = float(config["mu_ref"]) * 60.0
    assert ask(4.4, 0.44, 3.5 * service) == int(np.ceil(4.4 / 0.8 + 3.5)) == 9
    assert ask(4.0, 0.01) == int(np.ceil(4.0 * 0.5 / 0.8)) == 3  # no trend is worse than one half
    policy.reset(np.ones(1, np.bool_))
    assert ask(4.0, 0.80) == 5
    plain = baselines.make("kv-law-queue:window=0,clear=2", env)
    obs[:, layout["rate"]], obs[:, layout["waiting"]] = 3.0, 4.0 * service / config["waiting_cap"]
    assert int(plain.act(obs, None)[0]) == int(np.ceil(4.0 / 0.9 + 2.0))
    for wrong, named in (("window=-1", "window"), ("clear=-1", "clear"), ("utilization=0", "utilization")):
        with pytest.raises(InvalidArgument, match=named):
            baselines.make(f"kv-law-queue:{wrong}", env)


def test_the_law_with_the_trend_does_not_look_at_the_queue() -> None:
    env = KVProvisionEnv(scenario="surge", max_replicas=12, startup_epochs=2)
    trend, both, law = (
        baselines.make(name, env)
        for name in (
            "kv-law-trend:utilization=0.8,window=2",
            "kv-law-queue:utilization=0.8,window=2",
            "kv-law-0.8",
        )
    )
    obs = np.zeros((1, env.layout.size), np.float32)
    for rate, queue in ((0.4, 0.0), (0.4, 0.5), (0.44, 0.0), (0.5, 0.5)):
        obs[:, env.layout["need"]], obs[:, env.layout["mu"]] = 10.0 * rate / 12, 1.0
        obs[:, env.layout["rate"]], obs[:, env.layout["waiting"]] = rate, queue
        targets = [int(policy.act(obs, None)[0]) for policy in (trend, both, law)]
        assert targets[0] <= targets[1] and (targets[0] == targets[1]) == (queue == 0.0)
        assert targets[0] == targets[2] if rate == 0.4 else targets[0] > targets[2]


def test_plans_are_made_for_a_utilization() -> None:
    env = KVProvisionEnv(scenario="fluid-small")
    load, most = env.simulation.nominal_load, env.simulation.scenario.max_replicas
    obs = np.zeros((1, env.layout.size), np.float32)
    for name, work in (("static-mean", load.mean()), ("static-peak", load.max())):
        for rho in (0.6, 0.9, 1.0):
            (replicas,) = baselines.make(f"{name}:utilization={rho}", env).act(obs, None)
            assert replicas == min(np.ceil(work / rho), most), (name, rho)
    rule, half = (baselines.make(f"token-rate:utilization={rho}", env) for rho in (1.0, 0.5))
    scale = env.simulation.params.config[0]
    obs[:, env.layout["tokens"]] = 0.5
    obs[:, env.layout["rate"]] = 2.9 * rule.tokens_per_s / (0.5 * scale["tokens_ref"] * scale["rate_scale"])
    assert (int(rule.act(obs, None)[0]), int(half.act(obs, None)[0])) == (3, 6)
    with pytest.raises(InvalidArgument, match="utilization"):
        baselines.make("static-mean:utilization=1.5", env)


def test_rules_are_tuned_over_their_grids() -> None:
    kwargs = {"scenario": "fluid-small", "epochs": 30}
    chosen = tuned(ID, ["kv-law", "kv-law-queue", "reactive", "hold"], episodes=3, progress=False, **kwargs)
    assert chosen[3] == "hold"
    for name, variant in zip(("kv-law", "kv-law-queue", "reactive"), chosen, strict=False):
        grid = baselines.grid(ID, name)
        assert variant in grid
        means = {one: run_episodes(ID, one, 3, TUNING_SEEDS + 10_000, kwargs).returns.mean() for one in grid}
        assert len(set(means.values())) > 1 and means[variant] == max(means.values())


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
    layout, config = env.layout, env.simulation.params.config[0]
    obs = np.zeros((1, layout.size), np.float32)
    obs[:, layout["target"]] = obs[:, layout["on"]] = 4 / 8

    def ask(queue: float, used: float, starting: float = 0.0) -> int:
        obs[:, layout["waiting"]] = queue / config["waiting_cap"]
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
