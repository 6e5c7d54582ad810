"""AFDRatio: formulas and Gaussian loads against the closed forms, what is hidden, decisions and endings, and the contract."""

import copy
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

import llmgym
from llmgym.core.lanes import observing
from llmgym.envs.afd.costs import PAPER, Coefficients, fit
from llmgym.envs.afd.law import barrier_time, feasible_ratios, step_time, throughput
from llmgym.envs.afd.occupancy import nu, theta
from llmgym.envs.afd.ratio.env import AFDRatioEnv, AFDRatioVectorEnv
from llmgym.envs.afd.ratio.scenarios import SCENARIOS
from llmgym.envs.afd.slots import NEVER
from llmgym.errors import InvalidAction, InvalidArgument, ProfileError, UnknownName
from llmgym.workloads import RequestClass, Rows, Workload, replay

ID = "llmgym/AFDRatio-v0"
TINY: dict[str, Any] = {
    "scenario": "small",
    "requests": "geometric:prompt=5,decode=6",
    "coefficients": Coefficients(0.5, 3.0, 1.0, 4.0, 0.3, 2.0),
    "batch": 4,
    "ratios": (1, 2, 3, 5),
    "cycles": 9,
    "epochs": 8,
    "switch_epochs": None,
    "window": 16,
}


def play(env: AFDRatioEnv, actions: Sequence[int], seed: int = 0) -> tuple[list[float], dict[str, float]]:
    """Rewards of the actions, and the metrics after them."""
    env.reset(seed=seed)
    rewards = []
    for action in actions:
        _, reward, _, truncated, _ = env.step(action)
        rewards.append(reward)
        if truncated:
            break
    return rewards, env.metrics()


# ------------------------------------------------------------------------------------------------------------ by formula


@pytest.mark.parametrize("comm", ["per_instance", "aggregate"])
def test_the_mean_field_is_the_formula(comm: str) -> None:
    env = AFDRatioEnv(scenario="paper-stationary", fidelity="meanfield", epochs=5, comm=comm, instances=9)
    simulation = env.simulation
    law, c, cycles, b = simulation.laws[0], simulation.coefficients, 500, 256
    pairs = simulation.ratios
    assert pairs == feasible_ratios(9) and len(pairs) == 27
    choices = [3, 3, 17, 26, 0]
    rewards, metrics = play(env, choices)
    cost = 5.0 * float(c.attention(b * law.theta))
    tokens = instance_time = clock = 0.0
    for epoch, choice in enumerate(choices):
        x, y = pairs[choice]
        tau = float(step_time(c, b, law.theta, x / y, comm))
        spent = cycles * tau + (cost if epoch and choice != choices[epoch - 1] else 0.0)
        assert rewards[epoch] == pytest.approx(
            x * b * cycles / ((x + y) * spent) / simulation.best[0], rel=1e-12
        )
        if spent == cycles * tau:
            rate = float(throughput(x / y, b, tau))
            assert rewards[epoch] == pytest.approx(rate / simulation.best[0], rel=1e-12)
        tokens, instance_time, clock = tokens + x * b * cycles, instance_time + (x + y) * spent, clock + spent
    assert metrics["throughput_tokens_per_cycle"] == pytest.approx(tokens / instance_time, rel=1e-12)
    assert metrics["duration_s"] == pytest.approx(clock * c.cycle_s, rel=1e-12)
    assert metrics["switches"] == 3
    assert metrics["switch_time_s"] == pytest.approx(3 * cost * c.cycle_s, rel=1e-12)
    assert simulation.best[0] == pytest.approx(
        max(
            float(throughput(x / y, b, barrier_time(c, b, law.theta, law.nu, x / y, comm, x)))
            for x, y in pairs
        ),
        rel=1e-12,
    )


def test_gaussian_loads_have_the_law_and_the_time_of_the_barrier_form() -> None:
    ratios = (1, 4, 10, 16)
    env = AFDRatioVectorEnv(32, scenario="paper-stationary", fidelity="gaussian", ratios=ratios, epochs=60)
    env.reset(seed=0)
    loads: list[Any] = []
    for _ in range(59):
        env.step(np.arange(32) % 4)
        loads.append(env.lanes.state.table["load"][3::4] / 256)
    law = env.simulation.laws[0]
    sample = np.array(loads)
    assert sample.mean() == pytest.approx(law.theta, rel=0.005)
    assert sample.std() * 16 == pytest.approx(law.nu, rel=0.03)
    lagged = np.corrcoef(sample[:-1].ravel(), sample[1:].ravel())[0, 1]
    assert lagged == pytest.approx(np.exp(-500 / law.mean_steps), abs=0.05)
    tau = env.metrics()["tau_mean_cycles"].reshape(-1, 4).mean(axis=0)
    assert tau == pytest.approx(barrier_time(PAPER, 256, law.theta, law.nu, ratios), rel=0.01)


def test_gaussian_loads_of_a_new_instance_begin_at_fresh_prompts_and_rise() -> None:
    env = AFDRatioEnv(scenario="paper-stationary", fidelity="gaussian", cycles=1, epochs=6000, ratios=(2, 4))
    env.reset(seed=0)
    env.step(0)
    env.step(1)
    first = env.lanes.state.table["load"][0].copy()
    for _ in range(5000):
        env.step(1)
    assert (np.abs(first[2:] / 256 - 100) < 10).all()
    assert env.lanes.state.table["load"][0, 2:].mean() / 256 > 450


# ------------------------------------------------------------------------------------------------------------- with slots


def test_a_cold_start_begins_with_prompts() -> None:
    env = AFDRatioEnv(**{**TINY, "start": "cold", "cycles": 1, "requests": "constant:prompt=7,steps=50"})
    env.reset(seed=0)
    env.step(2)
    assert env.lanes.state.table["load"][0, :3].tolist() == [4 * 8.0] * 3


def test_the_window_estimates_theta_from_finished_requests_alone() -> None:
    env = AFDRatioEnv(**{**TINY, "requests": ("geometric:prompt=5,decode=6", "constant:prompt=40,steps=20")})
    env.reset(seed=1)
    layout, config, episode = env.layout, env.simulation.params.config[0], env.lanes.state.lane[0]
    first = env.simulation.laws[int(env.lanes.state.law[0, 0])]
    assert set(map(tuple, env.lanes.state.window[0].tolist())) <= set(
        zip(first.prompt_tokens.tolist(), first.steps.tolist(), strict=True)
    )
    for _ in range(7):
        obs, *_ = env.step(3)
        prompts, steps = env.lanes.state.window[0].T
        assert obs[layout["theta"]] == pytest.approx(theta(prompts, steps) / config["theta_ref"], rel=1e-6)
        assert obs[layout["nu"]] == pytest.approx(nu(prompts, steps) / config["nu_ref"], rel=1e-6)
        assert obs[layout["prompt.mean"]] == pytest.approx(prompts.mean() / config["prompt_ref"], rel=1e-6)
        assert obs[layout["steps.mean"]] == pytest.approx(steps.mean() / config["steps_ref"], rel=1e-6)
    assert episode["completed"] > 16


def test_observations_do_not_know_what_is_to_come() -> None:
    """I11: neither how long running requests will stay, nor the law of later epochs."""
    env = AFDRatioEnv(**{**TINY, "requests": ("geometric:prompt=5,decode=6", "constant:prompt=40,steps=20")})
    env.reset(seed=2)
    for action in (1, 3, 2):
        env.step(action)
    other = copy.deepcopy(env)
    slots = other.lanes.state.slot[0]
    later = slots["end"] > 0
    slots["steps"][later] += 8 * 100  # a multiple of the wheel: each stays in its list, for longer
    slots["end"][later] += 8 * 100
    other.lanes.state.law[0, 4:] = 1 - other.lanes.state.law[0, 4:]
    rows = [np.zeros(env.layout.size, np.float32) for _ in range(2)]
    for one, row in zip((env, other), rows, strict=True):
        observing(one.simulation)(one.lanes.state, one.simulation.params, 0, row)
    assert rows[0].tobytes() == rows[1].tobytes()
    third, fourth = copy.deepcopy(env), copy.deepcopy(env)
    fourth.lanes.state.law[0, 4:] = 1 - fourth.lanes.state.law[0, 4:]
    assert third.step(2)[0].tobytes() == fourth.step(2)[0].tobytes()
    assert third.step(2)[0].tobytes() != fourth.step(2)[0].tobytes()  # what was changed matters
    assert env.step(2)[0].tobytes() != other.step(2)[0].tobytes()


def test_worlds_do_not_depend_on_what_is_done() -> None:
    envs = AFDRatioVectorEnv(
        4, **{**TINY, "switch_epochs": 2.0, "spread": 0.3, "requests": ("uniform", "constant")}
    )
    envs.reset(seed=[9] * 4)
    state = envs.lanes.state
    for _ in range(7):
        envs.step(np.arange(4))
    metrics = envs.metrics()
    assert len(set(metrics["world_checksum"])) == 1
    assert (state.law == state.law[0]).all() and (state.coefficients == state.coefficients[0]).all()
    assert len(set(metrics["ratio_mean"])) == 4
    envs.reset(seed=range(4))
    assert len(set(envs.metrics()["world_checksum"])) == 4
    factors = state.coefficients / envs.simulation.params.coefficients
    assert (np.abs(factors - 1) <= 0.3).all() and factors.std() > 0.1


def test_laws_take_turns_at_the_rate_that_was_asked_for() -> None:
    laws = tuple(f"constant:prompt={p},steps=3" for p in (1, 2, 3))
    envs = AFDRatioVectorEnv(
        200, **{**TINY, "fidelity": "meanfield", "requests": laws, "switch_epochs": 5.0, "epochs": 50}
    )
    envs.reset(seed=0)
    schedule = envs.lanes.state.law
    assert (np.diff(schedule, axis=1) != 0).mean() == pytest.approx(1 / 5, abs=0.015)
    assert np.bincount(schedule.ravel()) / schedule.size == pytest.approx([1 / 3] * 3, abs=0.03)
    still = AFDRatioVectorEnv(50, **{**TINY, "fidelity": "meanfield", "requests": laws, "epochs": 50})
    still.reset(seed=0)
    assert (np.diff(still.lanes.state.law, axis=1) == 0).all()
    assert len(np.unique(still.lanes.state.law[:, 0])) == 3


# -------------------------------------------------------------------------------------------------- decisions and endings


def test_the_optimum_of_a_toy() -> None:
    """I12: one law, changes that cost: of all 4^4 plans of the mean field the best is the best ratio throughout.

    With B = 4, theta = 9: t_A = 0.5 x 36 + 3 = 21, t_F = 4 r + 4, t_C = 3.2. r_A = 4.25; throughput 4 r / ((r + 1) 21) up to
    there: 5 takes 24 and makes 20 / 144 = 0.1389 an instance, 3 makes 12 / 84 = 0.1429.
    """
    env = AFDRatioEnv(
        **{**TINY, "fidelity": "meanfield", "requests": "constant:prompt=7,steps=5", "epochs": 4, "cycles": 3}
    )
    assert env.simulation.laws[0].theta == 9.0
    returns = {plan: sum(play(env, plan)[0]) for plan in itertools.product(range(4), repeat=4)}
    best = max(returns, key=lambda plan: returns[plan])
    assert best == (2, 2, 2, 2)
    assert returns[best] == pytest.approx(4 * (12 / 84) / env.simulation.best[0], rel=1e-12)
    assert sorted(returns.values())[-2] < returns[best] - 1e-6


def test_steps_on_the_grid() -> None:
    env = AFDRatioEnv(**{**TINY, "action": "delta", "initial": 1, "fidelity": "meanfield"})
    obs, info = env.reset(seed=0)
    scale = 5.0
    assert obs[env.layout["ratio"]][0] * scale == pytest.approx(2.0)
    assert info["action_mask"].tolist() == [1, 1, 1]
    ratios = []
    for action in (2, 2, 2, 0, 1, 0, 0, 0):
        obs, _, _, truncated, info = env.step(action)
        ratios.append(round(float(obs[env.layout["ratio"]][0]) * scale))
    assert ratios == [3, 5, 5, 3, 3, 2, 1, 1] and truncated
    assert info["action_mask"].tolist() == [0, 1, 1]
    assert info["metrics"]["invalid_actions"] == 2
    assert info["metrics"]["penalty"] == pytest.approx(0.02)
    strict = AFDRatioEnv(**{**TINY, "action": "delta", "initial": 0, "invalid_action": "raise"})
    strict.reset(seed=0)
    with pytest.raises(InvalidAction, match="masked"):
        strict.step(0)


def test_an_instance_that_is_taken_out_drains_and_is_paid_for() -> None:
    env = AFDRatioEnv(**{**TINY, "requests": "constant:prompt=2,steps=20", "start": "cold", "cycles": 5})
    env.reset(seed=0)
    env.step(3)
    episode = env.lanes.state.lane[0]
    assert (episode["workers"], episode["paid"]) == (5, 6)
    env.step(0)
    assert (episode["workers"], episode["paid"]) == (1, 6)
    assert env.lanes.state.table["occupied"][0].tolist() == [4] * 5
    env.step(0)
    env.step(0)  # 20 steps are over
    assert episode["paid"] == 2
    assert env.lanes.state.table["occupied"][0].tolist() == [4, 0, 0, 0, 0]
    before = int(episode["taken"])
    env.step(2)
    assert episode["taken"] == before + 2 * 4


def test_an_episode_stops_when_the_requests_are_done() -> None:
    env = AFDRatioEnv(**{**TINY, "stop": 10, "start": "cold", "requests": "constant:prompt=2,steps=5"})
    env.reset(seed=0)
    *_, truncated, info = env.step(1)
    assert not truncated
    _, _, terminated, truncated, info = env.step(1)
    assert truncated and not terminated
    metrics = info["metrics"]
    # 8 slots: 8 requests each 5 cycles; 16 of 20 after 10 cycles, 24 after 15
    assert metrics["completed"] == 24
    clock = env.lanes.state.lane[0]["clock"]
    tau = clock / 15
    assert metrics["thr80_tokens_per_cycle"] == pytest.approx(16 * 5 / (2 + 1) / (10 * tau), rel=1e-9)
    assert metrics["tpot_mean_s"] == pytest.approx(tau * 1e-6, rel=1e-9)


def test_starting_ages_are_not_counted_in_the_time_per_token() -> None:
    env = AFDRatioEnv(**{**TINY, "requests": "constant:prompt=2,steps=6"})
    env.reset(seed=0)
    env.step(2)
    episode, slots = env.lanes.state.lane[0], env.lanes.state.slot[0, :3]
    assert episode["completed"] >= 12 and episode["timed"] < episode["completed"]
    assert (slots["began"] != NEVER).any()
    _, metrics = play(env, [2] * 8)
    assert metrics["tpot_mean_s"] == pytest.approx(metrics["tau_mean_cycles"] * 1e-6, rel=0.02)


# ------------------------------------------------------------------------------------------- requests, latencies, scenarios


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_scenario_runs(name: str) -> None:
    short = {"cycles": 20, "epochs": 3, "stop": 0} if name != "paper" else {"stop": 5}
    env = gymnasium.make(ID, scenario=name, **short)
    env.reset(seed=0)
    obs, reward, *_ = env.step(1)
    assert obs in env.observation_space and reward > 0
    settings = env.unwrapped.simulation.settings()
    assert settings["coefficients"]["alpha_attention"] > 0 and settings["requests"]


def test_workload_and_profile_take_the_place_of_the_scenarios() -> None:
    rows = Rows(np.arange(50.0), np.arange(1, 51, dtype=np.int32), np.arange(2, 52, dtype=np.int32))
    trace = Workload("trace", replay(rows), (RequestClass(rows=rows),))
    env = AFDRatioEnv(scenario="small", workload=trace, profile="h200/llama-3.1-8b", batch=64)
    assert [law.name for law in env.simulation.laws] == ["trace"]
    assert (
        env.simulation.coefficients == fit(llmgym.profiles.load("h200/llama-3.1-8b"), 64, 50.0).coefficients
    )


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"batch": 0}, "batch"),
    ({"batch": -3}, "batch"),
    ({"batch": 2.5}, "batch"),
    ({"batches": 0}, "batches"),
    ({"ratios": ()}, "ratio"),
    ({"ratios": (1, 1)}, "ratio"),
    ({"ratios": (0,)}, "ratios"),
    ({"ratios": ((1, 0),)}, "ratios"),
    ({"ratios": 3}, "ratios"),
    ({"ratios": (2, (5, 4)), "instances": 8}, "5A-4F needs 9 instances"),
    ({"ratios": (8,), "instances": 4}, "8A-1F needs 9 instances"),
    ({"instances": 1}, "instances"),
    ({"link_gb_per_s": 0.0, "profile": "h100/llama-3.1-8b"}, "link_gb_per_s=0.0"),
    ({"link_gb_per_s": -50.0}, "link_gb_per_s=-50.0"),
    ({"profile": "h100/llama-2-70b", "coefficients": None}, "138.0 GB.*do not fit"),
    ({"initial": 99, "action": "delta"}, "initial"),
    ({"coefficients": (1, 2, 3)}, "coefficients"),
    ({"requests": "azure"}, "azure"),
    ({"requests": "geometric:mean=3"}, "geometric"),
    ({"requests": "geometric:prompt"}, "name=value"),
    ({"requests": "geometric:prompt_law=zipf"}, "prompt_law"),
    ({"requests": "geometric:decode=0"}, "decode"),
    ({"requests": "uniform:low=9,high=3"}, "low"),
    ({"requests": ()}, "requests"),
    ({"requests": 7}, "requests"),
    ({"fidelity": "exact"}, "fidelity"),
    ({"comm": "none"}, "comm"),
    ({"start": "warm"}, "start"),
    ({"action": "choose"}, "action"),
    ({"cycles": 0}, "cycles"),
    ({"cycles": 2**29}, "cycles"),
    ({"stop": 5, "fidelity": "gaussian"}, "stop"),
    ({"spread": 1.0}, "spread"),
    ({"spread": -0.1}, "spread"),
    ({"switch_epochs": 0.5}, "switch_epochs"),
    ({"switch_cycles": -1.0}, "switch_cycles"),
    ({"window": 0}, "window"),
    ({"invalid_cost": -1}, "invalid_cost"),
    ({"workload": "nothing"}, "nothing"),
]


@pytest.mark.parametrize(("kwargs", "named"), WRONG, ids=lambda value: str(value)[:40])
def test_wrong_arguments_are_named(kwargs: dict[str, Any], named: str) -> None:
    with pytest.raises((InvalidArgument, UnknownName, ProfileError), match=named):
        AFDRatioEnv(**{**TINY, **kwargs})


def test_the_page_shows_the_observation_and_every_scenario() -> None:
    page = (Path(__file__).parents[3] / "docs" / "envs" / "afd_ratio.md").read_text()
    assert AFDRatioEnv().layout.markdown() in page
    assert [name for name, s in SCENARIOS.items() if f"| `{name}` | {s.about} |" not in page] == []


@pytest.mark.parametrize("kwargs", [{}, {"fidelity": "meanfield"}, {"fidelity": "pipeline"}], ids=str)
def test_pictures(kwargs: dict[str, Any]) -> None:
    env = AFDRatioEnv(render_mode="rgb_array", **{**TINY, **kwargs})
    env.reset(seed=0)
    before = env.render()
    env.step(3)
    env.step(0)
    after = env.render()
    assert before.shape == after.shape == (480, 760, 3) and after.dtype == np.uint8
    assert (before != after).mean() > 0.01
    words = AFDRatioEnv(render_mode="ansi", **{**TINY, **kwargs})
    words.reset(seed=0)
    words.step(3)
    assert "5A-1F" in words.render() and "attention" in words.render()
