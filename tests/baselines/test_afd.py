"""The rules of AFDRatio and AFDRefill: what they choose, what that is worth, and `llmgym plan afd`."""

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

import llmgym
from llmgym import baselines
from llmgym.baselines.afd.ratio import BASELINES, GRIDS, FixedPolicy, FormulaPolicy, OraclePolicy
from llmgym.baselines.afd.refill import BASELINES as REFILL
from llmgym.cli import main
from llmgym.core.policy import Policy
from llmgym.envs.afd.costs import PAPER, Coefficients
from llmgym.envs.afd.law import (
    barrier_ratio,
    barrier_time,
    microbatch_time,
    optimal_ratio,
    step_time,
    throughput,
)
from llmgym.envs.afd.ratio.env import AFDRatioEnv, AFDRatioVectorEnv
from llmgym.envs.afd.refill.env import AFDRefillEnv
from llmgym.errors import InvalidArgument, UnknownName

RATIO, RE = "llmgym/AFDRatio-v0", "llmgym/AFDRefill-v0"


def score(env_id: str, name: str, lanes: int = 8, seed: int = 20, **kwargs: Any) -> dict[str, float]:
    """Mean metrics of a baseline over the first episode of each lane."""
    env: Any = gymnasium.make_vec(env_id, num_envs=lanes, **{**kwargs, **baselines.env_kwargs(env_id, name)})
    policy = baselines.make(name, env)
    assert isinstance(policy, Policy) and policy.name == name
    obs, infos = env.reset(seed=seed)
    policy.reset(np.ones(lanes, np.bool_))
    ended: dict[int, dict[str, float]] = {}
    while len(ended) < lanes:
        actions = policy.act(obs, infos["action_mask"])
        assert actions.shape == (lanes,) and actions.dtype.kind == "i"
        obs, _, terminated, truncated, infos = env.step(actions)
        for lane in np.flatnonzero(terminated | truncated):
            ended.setdefault(
                int(lane), {key: float(infos["metrics"][key][lane]) for key in env.simulation.metric_names}
            )
    return {key: float(np.mean([row[key] for row in ended.values()])) for key in ended[0]}


# ---------------------------------------------------------------------------------------------------------------- AFDRatio


def observed(env: AFDRatioEnv, **fields: Any) -> Any:
    """An observation, float32 [1, d], with some fields set: numbers in the units of the field."""
    obs = np.zeros((1, env.layout.size), np.float32)
    obs[:, env.layout["coefficients"]] = 1.0
    for name, value in fields.items():
        obs[:, env.layout[name.replace("_", ".")]] = value
    return obs


@pytest.mark.parametrize("form", ["mean-field", "v1", "gaussian", "pipeline"])
@pytest.mark.parametrize("comm", ["per_instance", "aggregate"])
def test_the_formulas_are_those_of_the_paper(form: str, comm: str) -> None:
    """Throughput of every ratio by the rule is that of the public closed form, also with other coefficients."""
    env = AFDRatioEnv(scenario="stress", comm=comm, ratios=(1, 2, (7, 2), 9, 20))
    config, b = env.simulation.params.config[0], 128
    factors = np.array([1.2, 0.8, 1.1, 0.9, 1.3, 0.7])
    theta, nu = 0.4 * float(config["theta_ref"]), 0.3 * float(config["nu_ref"])
    obs = observed(env, theta=0.4, nu=0.3, coefficients=factors, prompt_mean=0.5, steps_mean=0.25)
    means = 0.5 * float(config["prompt_ref"]) + 0.25 * float(config["steps_ref"]) - 1.0
    costs = Coefficients(*(factors * np.array(PAPER.values)))
    ratio, workers = np.array([1, 2, 3.5, 9, 20]), np.array([1, 2, 7, 9, 20])
    time = {
        "mean-field": lambda: step_time(costs, b, theta, ratio, comm),
        "v1": lambda: step_time(costs, b, means, ratio, comm),
        "gaussian": lambda: barrier_time(costs, b, theta, nu, ratio, comm, workers),
        "pipeline": lambda: microbatch_time(costs, b, theta, ratio, 3, nu, comm, workers),
    }[form]()
    policy = FormulaPolicy(env, form, form)
    expected = throughput(ratio, b, time)
    assert policy.predict(obs)[0] == pytest.approx(expected, rel=1e-6)
    assert policy.act(obs, None).tolist() == [int(np.argmax(expected))]


def test_the_formulas_find_the_optima_of_the_baseline() -> None:
    """9, 10 and (two microbatches, barrier) 9; the means alone, mu_P + mu_D, ask for twice what constant answers need."""
    chosen = {}
    env = AFDRatioEnv(scenario="paper-stationary", window=2**15)
    obs, _ = env.reset(seed=0)
    for name in ("mean-field", "v1", "gaussian"):
        chosen[name] = 1 + int(baselines.make(name, env).act(obs[None], None)[0])
    assert chosen == {"mean-field": 9, "v1": 9, "gaussian": 10}
    flight = AFDRatioEnv(scenario="paper-stationary", window=2**15, fidelity="pipeline")
    obs, _ = flight.reset(seed=0)
    # with a barrier the form says 0.7201 at 9 and 0.7184 at 8; the simulation has it the other way round, by 1 %
    assert 1 + int(baselines.make("pipeline", flight).act(obs[None], None)[0]) == 9
    same = AFDRatioEnv(scenario="paper-stationary", requests="constant:prompt=100,steps=501")
    obs, _ = same.reset(seed=0)
    assert [1 + int(baselines.make(n, same).act(obs[None], None)[0]) for n in ("v1", "mean-field")] == [9, 4]
    assert optimal_ratio(PAPER, 256, 350.0).attention_instances == 4
    assert barrier_ratio(PAPER, 256, 600.0, 500.5, instances=24).feasible_throughput >= 0.7184


def test_a_margin_keeps_the_ratio_for_a_small_gain() -> None:
    env = AFDRatioEnv(scenario="paper-stationary")
    theta = 600.0 / float(env.simulation.params.config["theta_ref"][0])
    obs = observed(env, theta=theta, ratio=8 / 32)  # 0.7499 against 0.7593 at 9: 1.25 %
    assert baselines.make("mean-field", env).act(obs, None).tolist() == [8]
    assert baselines.make("mean-field:margin=0.01", env).act(obs, None).tolist() == [8]
    assert baselines.make("mean-field:margin=0.02", env).act(obs, None).tolist() == [7]


def test_hill_climbing_turns_round_where_throughput_falls() -> None:
    """On the mean field, where what is measured is exact, it climbs from the start to the best ratio and stays near."""
    kwargs = {"scenario": "paper-stationary", "fidelity": "meanfield", "epochs": 40, "max_ratio": 20}
    envs = AFDRatioVectorEnv(1, **kwargs, requests="constant:prompt=100,steps=501")
    policy = baselines.make("probe:tolerance=0.0,patience=1", envs)
    obs, infos = envs.reset(seed=0)
    choices = []
    for _ in range(39):
        action = policy.act(obs, infos["action_mask"])
        choices.append(1 + int(action[0]))
        obs, _, _, _, infos = envs.step(action)
    assert choices[0] == 9  # what the means say; 4 or 5 is right
    assert set(choices[-12:]) <= {3, 4, 5, 6} and 4 in choices[-12:]
    policy.reset(np.ones(1, np.bool_))
    assert policy.act(observed(AFDRatioEnv(**kwargs), theta=0.5), None).shape == (1,)


def test_idle_balance_follows_the_pool_that_waits() -> None:
    env = AFDRatioEnv(scenario="paper-stationary")
    policy = baselines.make("idle-balance", env)

    def ask(attention: float, ffn: float) -> int:
        obs = observed(env, ratio=8 / 32, idle_attention=attention, idle_ffn=ffn)
        return 1 + int(policy.act(obs, None)[0])

    assert [ask(0.1, 0.3), ask(0.3, 0.1), ask(0.3, 0.32), ask(0.0, 0.0)] == [9, 7, 8, 8]
    metrics = score(RATIO, "idle-balance", lanes=2, scenario="paper-stationary", epochs=40)
    assert abs(metrics["idle_attention"] - metrics["idle_ffn"]) < 0.1


def test_fixed_ratios_are_the_closest_there_are() -> None:
    env = AFDRatioEnv(scenario="paper-stationary", ratios=(2, 5, (15, 2)))
    assert [FixedPolicy(env, "f", r).choice for r in (1, 4, 7, 16)] == [0, 1, 2, 2]
    assert (
        baselines.make("fixed-8", AFDRatioEnv(scenario="paper-stationary"))
        .act(np.zeros((3, 23)), None)
        .tolist()
        == [7] * 3
    )
    with pytest.raises(InvalidArgument, match="ratio"):
        FixedPolicy(env, "f", 0.0)


def test_the_oracle_knows_the_best_ratio_of_each_law() -> None:
    """By simulation, in the fidelity of the environment: 9 to 11 in step, 8 with two microbatches in flight."""
    sync = OraclePolicy(AFDRatioEnv(scenario="paper-stationary", max_ratio=16), stays=20.0)
    rates = sync.search(0, PAPER.values)
    assert 1 + int(np.argmax(rates)) in (9, 10, 11)
    expected = throughput(np.arange(1, 17), 256, barrier_time(PAPER, 256, 600.0, 500.5, np.arange(1, 17)))
    assert rates[1:] == pytest.approx(expected[1:], rel=0.03)
    flight = OraclePolicy(
        AFDRatioEnv(scenario="paper-stationary", max_ratio=12, fidelity="pipeline"), stays=20.0
    )
    assert 1 + int(np.argmax(flight.search(0, PAPER.values))) in (8, 9)
    assert sync.privileged


def test_knowing_the_law_and_theta_is_worth_something() -> None:
    """On the small scenario: the oracle first; estimates of theta with a barrier before what the means say; fixed ratios last."""
    value = {
        name: score(RATIO, name, scenario="small")["relative_throughput"]
        for name in (*baselines.names(RATIO), "gaussian:margin=0.02")
    }
    assert max(value, key=lambda name: value[name]) == "oracle"
    assert value["oracle"] > value["gaussian:margin=0.02"] > value["gaussian"] > value["v1"]
    assert value["mean-field"] > value["fixed-16"] and value["gaussian"] > value["fixed-1"] + 0.2
    marked = {name: baselines.make(name, AFDRatioEnv(scenario="small")).privileged for name in BASELINES}
    assert [name for name, privileged in marked.items() if privileged] == ["oracle"]


def test_the_oracle_follows_coefficients_that_vary() -> None:
    envs = AFDRatioVectorEnv(3, scenario="small", spread=0.6, epochs=3, cycles=20)
    policy = baselines.make("oracle", envs)
    obs, infos = envs.reset(seed=5)
    actions = policy.act(obs, infos["action_mask"])
    assert len(policy._known) == 3  # type: ignore[attr-defined]
    assert len(set(actions.tolist())) > 1


def test_every_variant_of_a_grid_can_be_made() -> None:
    env = AFDRatioEnv(scenario="small")
    assert set(GRIDS) <= set(BASELINES)
    for name in GRIDS:
        assert baselines.grid(RATIO, name) == GRIDS[name]
        for variant in GRIDS[name]:
            assert baselines.make(variant, env).name == variant


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("gaussian:width=3", "width"),
        ("gaussian:margin=wide", "margin"),
        ("gaussian:margin=-1", "margin"),
        ("probe:patience=0", "patience"),
        ("idle-balance:epsilon=-0.1", "epsilon"),
        ("fixed-8:ratio=3", "ratio"),
        ("no-such", "no-such"),
    ],
)
def test_wrong_numbers_of_rules_are_named(name: str, named: str) -> None:
    with pytest.raises((InvalidArgument, UnknownName), match=named):
        baselines.make(name, AFDRatioEnv(scenario="small"))


def test_a_rule_of_another_environment_or_action_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="AFDRatio"):
        BASELINES["gaussian"](AFDRefillEnv())
    with pytest.raises(InvalidArgument, match="AFDRefill"):
        REFILL["fcfs"](AFDRatioEnv(scenario="small"))
    with pytest.raises(InvalidArgument, match="action='ratio'"):
        BASELINES["gaussian"](AFDRatioEnv(scenario="small", action="delta"))
    assert baselines.env_kwargs(RATIO, "gaussian") == {"action": "ratio"}
    assert baselines.env_kwargs(RE, "fcfs") == {"action": "pick"}


def test_both_can_be_compared() -> None:
    """Through the package's own comparison: the same worlds for every rule, in the action mode that each asks for."""
    for env_id, names, kwargs in (
        (RATIO, ["gaussian", "fixed-4"], {"scenario": "small", "epochs": 4}),
        (RE, ["fcfs", "min-max"], {"scenario": "small", "cycles": 30}),
    ):
        table = llmgym.compare(env_id, names, episodes=4, seed=3, progress=False, **kwargs).table()
        assert all(name in table.text(120) for name in names)


# --------------------------------------------------------------------------------------------------------------- AFDRefill


def test_balancing_beats_first_come_first_served() -> None:
    for kwargs in ({"scenario": "small"}, {"scenario": "stress", "ratio": 8, "cycles": 300}):
        metrics = {name: score(RE, name, lanes=6, **kwargs) for name in REFILL}
        excess = {name: row["relative_excess"] for name, row in metrics.items()}
        assert max(excess["least-loaded"], excess["min-max"]) < 0.75 * min(excess["fcfs"], excess["random"])
        assert metrics["fcfs"]["skips_max"] == metrics["least-loaded"]["skips_max"] == 0
        assert all(row["invalid_actions"] == 0 for row in metrics.values())
        assert not any(baselines.make(name, AFDRefillEnv()).privileged for name in REFILL)


def test_min_max_fills_up_to_the_largest_load() -> None:
    env = AFDRefillEnv(scenario="small")
    policy, config, layout = baselines.make("min-max", env), env.simulation.params.config[0], env.layout
    obs = np.zeros((1, layout.size), np.float32)
    prompts = np.array([40, 90, 61, 7, 200, 60, 3, 500])
    obs[:, layout["window.prompt"]] = np.log1p(prompts) * float(config["log_prompt"])

    def ask(room: float) -> int:
        obs[:, layout["room"]] = room / float(config["load_scale"])
        return int(prompts[policy.act(obs, np.ones((1, 8), np.int8))[0]])

    assert [ask(61), ask(60), ask(89), ask(1e9), ask(2)] == [61, 60, 61, 500, 3]
    mask = np.array([[1, 1, 0, 0, 0, 0, 0, 0]], np.int8)
    assert policy.act(obs, mask).tolist() == [0]


def test_the_longest_prompt_of_those_whose_turn_it_is_goes_first() -> None:
    env = AFDRefillEnv(scenario="small")
    policy, layout = baselines.make("least-loaded", env), env.layout
    obs = np.zeros((1, layout.size), np.float32)
    obs[:, layout["window.prompt"]] = np.array([0.2, 0.5, 0.3, 0.9, 0.1, 0.8, 0.7, 0.6])
    chosen = []
    for left in (1, 2, 3, 4, 8):
        obs[:, layout["left"]] = left / 8
        chosen.append(int(policy.act(obs, None)[0]))
    assert chosen == [0, 1, 1, 3, 3]


def test_rules_score_too() -> None:
    """First come, first served and the longest first do the same by scores as one by one; min-max depends on the instance."""
    for name in ("fcfs", "least-loaded"):
        ends = {}
        for action in ("pick", "score"):
            env = AFDRefillEnv(scenario="small", action=action, cycles=80, window=24)
            policy = REFILL[name](env)
            obs, info = env.reset(seed=3)
            truncated = False
            while not truncated:
                mask = info["action_mask"][None] if action == "pick" else None
                obs, _, _, truncated, info = env.step(policy.act(obs[None], mask)[0])
            ends[action] = info["metrics"]["duration_s"]
        assert ends["pick"] == pytest.approx(ends["score"], rel=1e-12), name
    with pytest.raises(InvalidArgument, match="pick"):
        REFILL["min-max"](AFDRefillEnv(action="score"))


# ------------------------------------------------------------------------------------------------------- llmgym plan afd


def test_the_plan_prints_ratio_regime_and_throughput(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A trace of two kinds of requests on the paper's coefficients, checked by hand, with a simulation behind it."""
    trace = tmp_path / "trace.csv"
    rows = ["arrival_s,prompt_tokens,output_tokens"]
    rows += [f"{0.1 * i},{100 + 300 * (i % 2)},{400 - 200 * (i % 2)}" for i in range(400)]
    trace.write_text("\n".join(rows) + "\n")
    arguments = ["plan", "afd", "--trace", str(trace), "--profile", "paper", "--batch", "256"]
    assert main(arguments) == 0
    out = " ".join(capsys.readouterr().out.split())
    theta = (100 * 400 + 400 * 399 / 2 + 400 * 200 + 200 * 199 / 2) / 600
    best = optimal_ratio(PAPER, 256, theta)
    assert f"{best.ratio:.2f}: attention binds" in out
    assert (
        f"{best.attention_instances}A-1F by the mean field: {best.feasible_throughput * 1e6:,.0f} tokens/s"
        in out
    )
    assert "Simulated pipeline with 2 microbatches" in out


def test_the_plan_for_a_profile_says_where_the_line_does_not_reach(
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["plan", "afd", "--no-simulate", "--requests", "azure-conv-2023"]
    assert main([*arguments, "--batch", "64", "--instances", "9"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "R^2 1.0000 (attention)" in out and "not compute bound" in out
    assert main([*arguments, "--batch", "192"]) == 0
    assert "KV cache:" in capsys.readouterr().out
    assert main([*arguments, "--requests", "mooncake-conversation", "--batch", "256"]) == 2
    assert "batch=256, batches=2: 12,961 tokens a slot on average take 870 GB" in capsys.readouterr().err
    for wrong, named in (
        (["--batch", "0"], "batch"),
        (["--trace", "nowhere.csv"], "nowhere.csv"),
        (["--profile", "no-such"], "no-such"),
        (["--instances", "1"], "instances"),
        (["--comm", "x"], "comm"),
    ):
        assert main(["plan", "afd", *wrong]) == 2
        assert named in capsys.readouterr().err
