"""KVProvision: the fluid against hand computations, the engines against the theory, and the contract of an environment."""

import itertools
import math
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import pytest

import llmgym
from llmgym import workloads
from llmgym.core.lanes import observing
from llmgym.envs.kv import audit
from llmgym.envs.kv.provision import load
from llmgym.envs.kv.provision.env import KVProvisionEnv, KVProvisionVectorEnv
from llmgym.envs.kv.provision.load import mixtures, multipliers
from llmgym.envs.kv.provision.scenarios import SCENARIOS
from llmgym.envs.kv.provision.state import ON
from llmgym.errors import InvalidAction, InvalidArgument, ResetNeeded, UnknownName
from llmgym.workloads import RequestClass, Workload

ID = "llmgym/KVProvision-v0"
PAPER = {  # the cluster of the paper's section 5: 1:1 lengths, M = 131,000, b = 0.0372 s
    "scenario": "surge",
    "shape": None,
    "workload": "uniform-1:1",
    "min_replicas": 1,
    "waiting_cap": 150_000,
}
MU = 3.2622  # of one replica, with whole chunks: M / (b E[g]) is 3.263 as the paper writes g


def play(
    env: KVProvisionEnv, targets: Any, seed: int = 0
) -> tuple[list[float], dict[str, float], list[dict[str, float]]]:
    """Rewards, metrics and audits of an episode; `targets` is a number, a sequence or a function of the epoch."""
    env.reset(seed=seed)
    rewards, audits = [], []
    for epoch in itertools.count():
        target = targets if isinstance(targets, int) else targets[epoch]
        _, reward, terminated, truncated, info = env.step(int(target))
        rewards.append(reward)
        audits.append(audit.provision(env.simulation, env.lanes.state, 0))
        if terminated or truncated:
            return rewards, info["metrics"], audits


def loads_of(env: KVProvisionEnv) -> np.ndarray[Any, Any]:
    return load.loads(env.simulation.scenario, env.simulation.params, env.lanes.state, 0)


def waiting(audits: list[dict[str, float]]) -> np.ndarray[Any, Any]:
    return np.array([a["waiting"] for a in audits])


def steady(rate_rps: float, replicas: int = 8, epochs: int = 10, seed: int = 0, **kwargs: Any) -> Any:
    """Constant load on a fixed number of replicas of the paper's cluster: queue after each epoch of 60 s, metrics."""
    cap = int(1.1 * max(rate_rps - MU * replicas, 0.0) * 60 * epochs) + 4000
    settings = PAPER | {
        "waiting_cap": cap,
        "max_replicas": replicas,
        "initial_replicas": replicas,
        "epochs": epochs,
    }
    env = KVProvisionEnv(rate_rps=rate_rps, **(settings | kwargs))
    _, metrics, audits = play(env, replicas, seed)
    return waiting(audits), metrics, env.simulation


# ---------------------------------------------------------------------------------------------------- fluid, by hand


def test_fluid_capacity_is_the_closed_form() -> None:
    _, _, simulation = steady(8.0, epochs=1, mode="fluid")
    (full,) = simulation.saturated
    assert full.binding == "KV cache"
    assert full.rate_rps == pytest.approx(MU, rel=1e-4)
    assert full.rate_rps == pytest.approx(131_000 / (0.0372 * full.mean_area), rel=1e-12)
    assert simulation.nominal_load == pytest.approx(8.0 / MU, rel=1e-4)


def test_fluid_queue_grows_and_empties_as_computed_by_hand() -> None:
    """lambda = 10, mu = 3.2622. Two replicas: the queue grows by 60 (10 - 6.5244) an epoch; five: it falls by 6.311 a second."""
    kwargs = PAPER | {"rate_rps": 10.0, "mode": "fluid", "max_replicas": 8, "epochs": 8, "startup_epochs": 0}
    env = KVProvisionEnv(**kwargs)
    targets = [2, 2, 2, 5, 5, 5, 5, 5]
    _, metrics, audits = play(env, targets)
    mu = env.simulation.saturated[0].rate_rps
    grow, fall = 10.0 - 2 * mu, 5 * mu - 10.0
    after = [60 * grow, 120 * grow, 180 * grow, 180 * grow - 60 * fall]
    # one of the hundred parcels of an epoch may fall on the other side of its end
    assert waiting(audits)[:4] == pytest.approx(after, abs=10.0 * 60 / 100 + 1e-6)
    assert waiting(audits)[5:] == pytest.approx(0.0, abs=1e-9)
    peak = 180 * grow
    area = 0.5 * peak * 180 + 0.5 * peak * (peak / fall)  # a triangle up and one down
    assert metrics["waiting_mean"] * 480 == pytest.approx(area, rel=0.02)
    assert metrics["cost_waiting"] == pytest.approx(0.02 * metrics["waiting_mean"] * 480 / 3600, rel=1e-12)
    # three replicas more in epoch 0..2 were not there: initially ceil(10 / (0.9 mu)) = 4 are on and two drain
    drain_s = float(env.simulation.params.config["drain_s"][0])
    assert metrics["gpu_hours"] * 3600 == pytest.approx(3 * 2 * 60 + 5 * 5 * 60 + 2 * drain_s, rel=1e-12)


def test_fluid_matches_a_numerical_integration() -> None:
    """Drifting lengths, swinging rate, changing replicas: small Euler steps of the same flow."""
    env = KVProvisionEnv(
        scenario="paper-drift", mode="fluid", epochs=24, day_s=720.0, load=0.9, startup_epochs=0
    )
    rng = np.random.default_rng(0)
    targets = rng.integers(6, 13, 24)
    _, _, audits = play(env, targets, seed=3)
    loads = loads_of(env)
    work = 0.0
    mine = []
    steps = 4000
    for epoch in range(24):
        for _ in range(steps):
            work = max(work + (loads[epoch] - targets[epoch]) * 60.0 / steps, 0.0)
        mine.append(work)
    assert max(mine) > 100.0 and min(mine) == 0.0
    assert [a["work_left"] for a in audits] == pytest.approx(mine, abs=0.1)
    assert audits[-1]["work_done"] + audits[-1]["work_left"] == pytest.approx(
        audits[-1]["work_asked"], rel=1e-9
    )


def test_optimum_of_a_toy() -> None:
    """Constant work for 2.4 replicas and dear waiting: of all 256 plans, three replicas throughout are best."""
    arrivals = workloads.regular(2.4 * MU)
    kwargs = PAPER | {
        "mode": "fluid",
        "epochs": 4,
        "startup_epochs": 0,
        "initial_replicas": 3,
        "max_replicas": 4,
    }
    kwargs |= {
        "workload": workloads.load("uniform-1:1").with_arrivals(arrivals),
        "rate_rps": 2.4 * MU,
        "wait_cost": 1.0,
    }
    env = KVProvisionEnv(**kwargs)
    costs = {plan: -sum(play(env, plan)[0]) for plan in itertools.product(range(1, 5), repeat=4)}
    assert min(costs, key=lambda plan: costs[plan]) == (3, 3, 3, 3)
    assert costs[3, 3, 3, 3] == pytest.approx(3 * 4 / 60, rel=1e-9)


def test_the_fluid_follows_the_same_course_of_the_rate_as_the_engines() -> None:
    loads = {}
    for mode in ("event", "fluid"):
        env = KVProvisionEnv(scenario="small", mode=mode, epochs=60, variance=0.2)
        env.reset(seed=4)
        loads[mode] = loads_of(env)
    assert np.corrcoef(loads["event"], loads["fluid"])[0, 1] > 0.98
    event, fluid = (loads[mode].reshape(6, 10).mean(axis=1) for mode in ("event", "fluid"))
    assert event == pytest.approx(fluid, rel=0.1)


# --------------------------------------------------------------------------------------------- engines and the theory


@pytest.mark.parametrize("rate_rps", [8.0, 24.0])
def test_eight_replicas_stay_bounded_below_their_capacity(rate_rps: float) -> None:
    queue, metrics, _ = steady(rate_rps, epochs=17)
    assert queue.max() < 150
    assert metrics["throughput_rps"] == pytest.approx(rate_rps, rel=0.08)
    assert metrics["unstable"] == 0


@pytest.mark.parametrize("rate_rps", [40.0, 160.0, 400.0])
def test_eight_replicas_fall_behind_by_what_exceeds_their_capacity(rate_rps: float) -> None:
    queue, _, simulation = steady(rate_rps, epochs=7)
    slope = (queue[-1] - queue[2]) / (60.0 * (len(queue) - 3))
    mu = simulation.saturated[0].rate_rps
    assert abs(slope - (rate_rps - 8 * mu)) < 0.15 * 8 + 0.02 * rate_rps


@pytest.mark.parametrize("rate_rps", [16.0, 48.0])
def test_eight_replicas_are_eight_times_one(rate_rps: float) -> None:
    _, eight, _ = steady(rate_rps, epochs=15)
    ones = [steady(rate_rps / 8, replicas=1, epochs=15, seed=seed)[1]["throughput_rps"] for seed in range(4)]
    assert eight["throughput_rps"] / 8 == pytest.approx(np.mean(ones), rel=0.03)


def test_fluid_and_engines_agree_on_the_trend_of_the_queue() -> None:
    for rate_rps in (32.0, 48.0):
        event, _, _ = steady(rate_rps, epochs=12)
        fluid, _, _ = steady(rate_rps, epochs=12, mode="fluid")
        trends = [np.polyfit(np.arange(4, 12) * 60.0, queue[4:], 1)[0] for queue in (event, fluid)]
        assert trends[0] == pytest.approx(trends[1], abs=0.15 * 8 + 0.02 * rate_rps)
    event, _, _ = steady(20.0, epochs=12)
    fluid, _, _ = steady(20.0, epochs=12, mode="fluid")
    assert fluid.max() == 0.0 and event.max() < 60


def test_estimates_find_the_capacity() -> None:
    """With all replicas busy the observed M / (b E[g]) is the theory's, when the lengths have drifted from 2:1 to 1:2."""
    env = KVProvisionEnv(
        scenario="paper-drift", mix=((1, 0), (0, 1), (0, 1)), load=1.1, shape=None, epochs=18, max_replicas=6
    )
    env.reset(seed=0)
    for _ in range(18):
        obs, *_ = env.step(6)
    measured = obs[env.layout["mu"]][0] * env.simulation.params.config["mu_ref"][0]
    before, after = (full.rate_rps for full in env.simulation.saturated)
    assert after < 0.75 * before
    assert measured == pytest.approx(after, rel=0.04)


# ------------------------------------------------------------------------------------------------------ conservation

MANY = [
    {"scenario": "small", "epochs": 30, "load": 0.8},
    {"scenario": "small", "epochs": 30, "min_replicas": 0, "startup_epochs": 0, "load": 0.3},
    {"scenario": "small", "epochs": 20, "longest": 60},
    {"scenario": "small", "epochs": 12, "rule": "mc-sf", "epoch_s": 0.5},
    {"scenario": "small", "epochs": 12, "rule": "beta-clearing", "max_replicas": 3, "load": 1.2},
    {
        "scenario": "small",
        "epochs": 12,
        "rule": "sarathi",
        "budget": 64,
        "overflow": "recompute",
        "load": 0.8,
    },
    {"scenario": "daily", "epochs": 25, "load": 0.9, "startup_epochs": 1},
    {"scenario": "small", "mode": "fluid", "epochs": 40, "load": 0.9},
]


@pytest.mark.parametrize("kwargs", MANY, ids=lambda k: "-".join(f"{v}" for v in k.values()))
def test_nothing_is_lost(kwargs: dict[str, Any]) -> None:
    env = KVProvisionEnv(**kwargs)
    most, least = env.simulation.scenario.max_replicas, env.simulation.scenario.min_replicas
    rng = np.random.default_rng(1)
    env.reset(seed=5)
    moved = paid_before = 0.0
    for epoch in range(kwargs["epochs"]):
        _, _, terminated, truncated, info = env.step(int(rng.integers(least, most + 1)))
        a = audit.provision(env.simulation, env.lanes.state, 0)
        assert a["arrived"] == pytest.approx(
            a["waiting"] + a["running"] + a["done"] + a["rejected"], rel=1e-9
        )
        assert a["clock_s"] == (epoch + 1) * env.simulation.scenario.epoch_s == info["dt"] * (epoch + 1)
        episode = env.lanes.state.lane[0]
        if env.simulation.scenario.mode == "event":
            assert a["waiting"] == a["waiting_counted"]
            assert a["waiting_area"] == a["waiting_area_counted"]
            assert a["done"] == a["done_counted"]
            assert a["live"] == a["distinct"]
            assert a["kv_used"] == a["kv_resident"] and a["kv_fullest"] <= a["kv_capacity"]
        modes = env.lanes.state.engine.lane["mode"]
        assert [np.sum(modes == m) for m in (1, 2, 3)] == [
            episode["starting"],
            episode["on"],
            episode["draining"],
        ]
        assert paid_before <= episode["gpu_s"] <= paid_before + most * env.simulation.scenario.epoch_s + 1e-9
        moved, paid_before = max(moved, a["done"]), episode["gpu_s"]
        if terminated or truncated:
            break
    assert moved > 0


def test_waiting_is_what_the_requests_waited() -> None:
    """All are served: the integral of waiting requests is the sum of the waits, which are the TTFT less two batches.

    Where the peak is reserved nobody is paused, and a prompt of one chunk gives its first token in the second batch.
    """
    arrivals = workloads.poisson(1.0).shaped((0.0, 15.0), (1.0, 0.0))
    short = Workload("short", arrivals, (RequestClass(workloads.fixed(16), workloads.fixed(20)),))
    env = KVProvisionEnv(
        scenario="small",
        workload=short,
        shape=None,
        rule="reserve-peak",
        max_replicas=2,
        initial_replicas=2,
        load=0.35,
        epochs=60,
    )
    _, metrics, _ = play(env, 2, seed=2)
    assert metrics["completed"] == metrics["requests"] > 2000
    assert metrics["waiting_peak"] > 20 and metrics["waiting_end"] == 0
    waited_s = (metrics["ttft_mean_s"] - 2 * 0.01) * metrics["completed"]
    assert metrics["waiting_mean"] * metrics["duration_s"] == pytest.approx(waited_s, rel=1e-4)
    assert metrics["wait_mean_s"] == pytest.approx(metrics["ttft_mean_s"] - 2 * 0.01, rel=1e-4)


def test_requests_wait_at_the_door_while_no_replica_is_on() -> None:
    env = KVProvisionEnv(
        scenario="small", min_replicas=0, initial_replicas=0, startup_epochs=2, epochs=12, load=0.1
    )
    _, metrics, audits = play(env, [0, 0, 4] + [4] * 9)
    assert [a["done"] for a in audits[:4]] == [0, 0, 0, 0]
    assert audits[3]["waiting"] == audits[3]["arrived"] > 50
    assert audits[-1]["waiting"] < 20
    assert metrics["gpu_hours"] * 3600 == pytest.approx(4 * 10 * 0.5)
    arrival_s = env.lanes.state.request["arrival_s"][0, : int(metrics["requests"])]
    assert metrics["ttft_p99_s"] > 2.0 - arrival_s[0] - 0.5


# ------------------------------------------------------------------------------------------------------ the decision


def test_a_replica_starts_after_its_delay_and_costs_from_the_start() -> None:
    for delay in (0, 1, 3):
        env = KVProvisionEnv(scenario="small", startup_epochs=delay, initial_replicas=2, epochs=8)
        env.reset(seed=0)
        serving, paid = [], []
        for _ in range(6):
            obs, *_ = env.step(5)
            serving.append(round(8 * float(obs[env.layout["on"]][0])))
            paid.append(float(env.lanes.state.lane[0]["gpu_s"]))
            arriving = obs[env.layout["starting.in"]]
            assert round(8 * float(arriving.sum())) == 5 - serving[-1]
        # seen at the end of an epoch: what serves in the next
        assert serving == [2] * max(delay - 1, 0) + [5] * (6 - max(delay - 1, 0))
        assert paid == pytest.approx([5 * 0.5 * (i + 1) for i in range(6)])


def test_a_stopped_replica_drains_and_takes_nothing_new() -> None:
    """Requests of the paper's 1:1 lengths run for about 30 s: with epochs of 10 s, a replica drains for several."""
    env = KVProvisionEnv(
        scenario="surge", initial_replicas=4, max_replicas=4, load=0.5, shape=None, epochs=30, epoch_s=10.0
    )
    env.reset(seed=1)
    for _ in range(9):
        env.step(4)
    engines = env.lanes.state.engine.lane
    env.step(3)
    (stopped,) = np.flatnonzero(engines["mode"] != ON)
    before, epochs = engines["residents"][stopped], 1
    assert before > 10
    while engines["mode"][stopped] != 0:
        env.step(3)
        epochs += 1
        assert engines["waiting"][stopped] == 0
        assert engines["residents"][stopped] <= before
        before = engines["residents"][stopped]
    assert before == 0 and 3 <= epochs <= 7
    drained_s = env.lanes.state.lane[0]["gpu_s"] - 10.0 * (9 * 4 + epochs * 3)
    assert 10.0 * (epochs - 1) <= drained_s <= 10.0 * epochs
    assert drained_s == pytest.approx(engines["clock_s"][stopped] - 90.0, rel=1e-9)


def test_draining_and_starting_replicas_are_the_first_to_be_taken() -> None:
    env = KVProvisionEnv(
        scenario="surge",
        initial_replicas=4,
        max_replicas=6,
        load=0.5,
        shape=None,
        startup_epochs=3,
        epoch_s=10.0,
    )
    env.reset(seed=1)
    for _ in range(6):
        env.step(4)
    episode = env.lanes.state.lane[0]
    env.step(3)
    assert (episode["on"], episode["draining"], episode["starts"], episode["stops"]) == (3, 1, 0, 1)
    env.step(5)
    assert (episode["on"], episode["draining"], episode["starting"], episode["starts"]) == (4, 0, 1, 2)
    env.step(4)
    assert (episode["on"], episode["draining"], episode["starting"], episode["stops"]) == (4, 0, 0, 2)


def test_masked_targets_are_a_counted_no_op_or_an_error() -> None:
    env = KVProvisionEnv(
        scenario="fluid-small", min_replicas=2, initial_replicas=3, invalid_cost=5.0, epochs=3
    )
    _, info = env.reset(seed=0)
    assert info["action_mask"].tolist() == [0, 0] + [1] * 7
    _, metrics, _ = play(env, [1, 3, 3])
    _, allowed, _ = play(env, [3, 3, 3])
    assert metrics["invalid_actions"] == 1 and metrics["penalty"] == 5.0
    assert metrics["cost"] == pytest.approx(allowed["cost"] + 5.0)
    strict = KVProvisionEnv(scenario="fluid-small", min_replicas=2, invalid_action="raise")
    strict.reset(seed=0)
    with pytest.raises(InvalidAction, match="masked"):
        strict.step(1)


# ----------------------------------------------------------------------------------------------- reward and contract


@pytest.mark.parametrize(
    "kwargs",
    [
        {"scenario": "small", "epochs": 40, "slo_cost": 0.3, "ttft_slo_s": 0.04},
        {"scenario": "fluid-small"},
        {"scenario": "small", "load": 2.0, "waiting_cap": 500},
        {"scenario": "fluid-small", "load": 2.0},
    ],
    ids=lambda k: "-".join(f"{v}" for v in k.values()),
)
def test_the_return_is_minus_the_cost(kwargs: dict[str, Any]) -> None:
    env = KVProvisionEnv(**kwargs)
    rng = np.random.default_rng(0)
    rewards, metrics, _ = play(env, np.where(rng.random(200) < 0.1, 0, rng.integers(5, 9, 200)))
    assert sum(rewards) == pytest.approx(env.simulation.expected_return(metrics), rel=1e-9)
    parts = metrics["cost_gpu"] + metrics["cost_waiting"] + metrics["cost_slo"] + metrics["penalty"]
    assert metrics["cost"] == pytest.approx(parts, rel=1e-12)
    chosen = env.simulation.scenario
    assert metrics["cost_gpu"] == pytest.approx(chosen.gpu_cost * metrics["gpu_hours"])
    waited_h = metrics["waiting_mean"] * metrics["duration_s"] / 3600
    assert metrics["cost_waiting"] == pytest.approx(chosen.wait_cost * waited_h)
    assert metrics["unstable"] == (chosen.load > 1)
    assert metrics["invalid_actions"] > 0
    if chosen.slo_cost > 0:
        missed = metrics["completed"] - metrics["slo_attainment"] * metrics["requests"]
        assert metrics["cost_slo"] == pytest.approx(0.3 * missed) and missed > 0


def test_gpus_of_a_replica_are_paid() -> None:
    env = KVProvisionEnv(scenario="daily", profile="a100/llama-2-70b-tp4", epochs=2, initial_replicas=3)
    _, metrics, _ = play(env, 3)
    assert metrics["gpu_hours"] == pytest.approx(4 * 3 * 2 / 60)


@pytest.mark.parametrize("scenario", ["small", "fluid-small"])
def test_a_vector_lane_is_the_single_environment(scenario: str) -> None:
    kwargs: dict[str, Any] = {"scenario": scenario, "epochs": 12, "rule": "beta-clearing", "load": 0.9}
    lanes = 3
    many = KVProvisionVectorEnv(lanes, threads=2, autoreset_mode="SAME_STEP", **kwargs)
    ones = [KVProvisionEnv(**kwargs) for _ in range(lanes)]
    obs, _ = many.reset(seed=7)
    for lane, one in enumerate(ones):
        first, _ = one.reset(seed=7 + lane)
        assert np.array_equal(obs[lane], first)
    rng = np.random.default_rng(3)
    for step in range(30):
        actions = rng.integers(1, 9, lanes)
        obs, rewards, terminated, truncated, infos = many.step(actions)
        for lane, one in enumerate(ones):
            mine, reward, over, cut, info = one.step(int(actions[lane]))
            assert (reward, over, cut) == (rewards[lane], terminated[lane], truncated[lane]), step
            if over or cut:
                ended = infos["final_info"]["metrics"]
                assert {k: ended[k][lane] for k in info["metrics"]} == info["metrics"]
                assert np.array_equal(mine, infos["final_obs"][lane])
                mine, _ = one.reset()
            assert np.array_equal(obs[lane], mine)


def test_observations_stay_in_their_bounds_and_episodes_repeat() -> None:
    for scenario in ("small", "fluid-small", "surge"):
        env = gymnasium.make(ID, scenario=scenario, epochs=20, load=1.1).unwrapped
        assert isinstance(env, KVProvisionEnv)
        traces = []
        for _ in range(2):
            rng = np.random.default_rng(9)
            rows = [env.reset(seed=11)[0]]
            while True:
                obs, _, terminated, truncated, info = env.step(int(rng.integers(1, 9)))
                assert env.observation_space.contains(obs)
                rows.append(obs)
                if terminated or truncated:
                    break
            traces.append((np.array(rows), info["metrics"]))
        assert np.array_equal(traces[0][0], traces[1][0]) and traces[0][1] == traces[1][1]
        other = play(env, 3, seed=12)[1]
        assert other["world_checksum"] != traces[0][1]["world_checksum"]


def test_two_policies_meet_the_same_world() -> None:
    env = KVProvisionEnv(scenario="small", epochs=10)
    assert play(env, 2, 4)[1]["world_checksum"] == play(env, 8, 4)[1]["world_checksum"]


def test_nothing_hidden_is_observed() -> None:
    """Other lengths of unfinished and other times of future requests leave the observation as it is."""
    env = KVProvisionEnv(scenario="small", epochs=20, load=1.0)
    env.reset(seed=1)
    for _ in range(8):
        obs, *_ = env.step(6)
    state = env.lanes.state
    episode = state.lane[0]
    state.request["arrival_s"][0, episode["arrived"] :] *= 7.0
    state.request["prompt"][0, episode["arrived"] :] = 3
    state.request["output"][0, episode["arrived"] :] = 999
    state.engine.request["output"][:] = 777
    state.engine.resident["output"] = 777
    again = np.zeros_like(obs)
    observing(env.simulation)(state, env.simulation.params, 0, again)
    assert np.array_equal(obs, again)
    mine = env.step(6)[0]
    assert not np.array_equal(obs, mine)


def test_stepping_needs_an_episode() -> None:
    env = KVProvisionEnv(scenario="fluid-small", epochs=1)
    with pytest.raises(ResetNeeded):
        env.step(1)
    play(env, 1)
    with pytest.raises(ResetNeeded):
        env.step(1)


@pytest.mark.parametrize("mode", ["rgb_array", "ansi"])
def test_pictures(mode: str) -> None:
    env = KVProvisionEnv(scenario="fluid-small", epochs=10, render_mode=mode)
    env.reset(seed=0)
    empty = env.render()
    for _ in range(6):
        env.step(5)
    picture = env.render()
    if mode == "ansi":
        assert "replicas [#####..." in picture and picture != empty
    else:
        assert picture.shape == (480, 760, 3) and picture.dtype == np.uint8
        assert not np.array_equal(picture, empty)


# --------------------------------------------------------------------------------------------------------- workloads


def test_scenarios_are_what_they_say() -> None:
    for name, scenario in SCENARIOS.items():
        simulation = KVProvisionEnv(scenario=name).simulation
        load = simulation.nominal_load
        assert load.shape == (scenario.epochs,)
        assert load.mean() == pytest.approx(scenario.load * scenario.max_replicas, rel=1e-9)
        assert load.max() < scenario.max_replicas
        assert {s.binding for s in simulation.saturated} == {"KV cache"}
        assert set(simulation.headline_metrics) <= set(simulation.metric_names)
    drift = KVProvisionEnv(scenario="paper-drift").simulation
    # the same tokens, 1.74 times the area, 1.37 times the work: b is shorter where less is prefilled
    assert drift.params.work[1, 3] == pytest.approx(drift.params.work[0, 3], rel=1e-3)
    assert drift.params.work[1, 1] / drift.params.work[0, 1] == pytest.approx(1_339_675 / 770_034, rel=1e-3)
    assert drift.params.work[1, 2] / drift.params.work[0, 2] == pytest.approx(3.956 / 2.902, rel=0.01)


def test_arrivals_follow_the_shape_and_lengths_the_mix() -> None:
    env = KVProvisionEnv(scenario="paper-drift", variance=0.0, epochs=40, day_s=1200.0)
    total = np.zeros(40)
    for seed in range(6):
        env.reset(seed=seed)
        total += loads_of(env) / 6
    assert total == pytest.approx(env.simulation.nominal_load, rel=0.12)
    workload = env.simulation.workload
    shares = mixtures(workload, 40, 60.0)
    assert (
        shares[0].tolist() == [1, 0] and shares[-1].tolist() == [0, 1] and shares[20].tolist() == [0.5, 0.5]
    )
    assert multipliers(workload.arrivals, 40, 60.0).mean() == pytest.approx(1.0)
    assert multipliers(workload.arrivals, 20, 60.0)[:3] == pytest.approx([0.8, 0.8, 0.9])


def test_workloads_of_ones_own() -> None:
    one_shot = workloads.poisson(200.0).shaped((0.0, 5.0), (1.0, 2.0))
    own = workloads.load("uniform-tiny").with_arrivals(one_shot)
    env = KVProvisionEnv(scenario="small", shape=None, workload=own, epochs=20, rate_rps=200.0)
    rate = env.simulation.nominal_load * env.simulation.saturated[0].rate_rps
    assert rate == pytest.approx([200.0] * 10 + [400.0] * 10)
    _, metrics, _ = play(env, 5)
    assert metrics["requests"] == pytest.approx(3000, rel=0.07)
    mixed = KVProvisionEnv(scenario="paper-drift", mix=None, epochs=10).simulation
    assert mixed.workload.phase_by == "time_s" and mixed.workload.phases[1].start == 300.0


# ------------------------------------------------------------------------------------------------------- wrong input


@pytest.mark.parametrize(
    ("kwargs", "error", "says"),
    [
        ({"scenario": "tiny"}, UnknownName, "small"),
        ({"mode": "events"}, UnknownName, "event"),
        ({"max_replica": 3}, UnknownName, "max_replicas"),
        ({"max_replicas": 0}, InvalidArgument, "max_replicas=0"),
        ({"max_replicas": 2.0}, InvalidArgument, "max_replicas=2.0"),
        ({"min_replicas": 9}, InvalidArgument, "min_replicas=9.*0 to 8"),
        ({"initial_replicas": 0}, InvalidArgument, "initial_replicas=0.*1 to 8"),
        ({"startup_epochs": -1}, InvalidArgument, "startup_epochs=-1"),
        ({"epochs": True}, InvalidArgument, "epochs=True"),
        ({"epoch_s": 0.0}, InvalidArgument, "epoch_s=0.0"),
        ({"load": float("nan")}, InvalidArgument, "load=nan"),
        ({"rate_rps": "3"}, InvalidArgument, "rate_rps='3'"),
        ({"wait_cost": -1.0}, InvalidArgument, "wait_cost=-1.0"),
        ({"mode": "fluid", "slo_cost": 1.0}, InvalidArgument, "slo_cost=1.0.*event"),
        ({"invalid_action": "ignore"}, UnknownName, "penalize"),
        ({"invalid_cost": -1.0}, InvalidArgument, "invalid_cost=-1.0"),
        ({"rule": "fifo"}, UnknownName, "wc-fcfs"),
        ({"overflow": "swap"}, UnknownName, "pause"),
        ({"first_token": "now"}, UnknownName, "next-batch"),
        ({"workload": "nobody"}, UnknownName, "uniform-tiny"),
        ({"profile": "paper/none"}, UnknownName, "paper/tiny"),
        ({"mix": ((1, 0),)}, InvalidArgument, "weights"),
        ({"shape": (0.0, 0.0)}, InvalidArgument, "shape=.* not all 0"),
        ({"rate_rps": 1e12}, InvalidArgument, "too many"),
        ({"render_mode": "picture"}, InvalidArgument, "rgb_array"),
    ],
    ids=lambda v: str(v) if isinstance(v, dict) else "",
)
def test_wrong_arguments_are_named(kwargs: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        KVProvisionEnv(**kwargs)


def test_workloads_that_cannot_be_provisioned_for() -> None:
    burst = workloads.load("uniform-tiny").with_arrivals(workloads.burst())
    with pytest.raises(InvalidArgument, match="all its requests come at once"):
        KVProvisionEnv(workload=burst, shape=None)
    by_number = replace(workloads.load("uniform-mixed").with_requests(100), name="by-number")
    with pytest.raises(InvalidArgument, match="by-number"):
        KVProvisionEnv(scenario="paper-drift", workload=by_number, mix=None)
    on_off = workloads.load("uniform-tiny").with_arrivals(workloads.on_off(100.0, 1.0, 1.0))
    with pytest.raises(InvalidArgument, match="fluid"):
        KVProvisionEnv(mode="fluid", workload=on_off, shape=None)


@pytest.mark.parametrize("action", [-1, 9, 1.5, "2", None, [1]])
def test_wrong_actions_are_refused(action: Any) -> None:
    env = KVProvisionEnv(scenario="fluid-small")
    env.reset(seed=0)
    with pytest.raises(InvalidAction):
        env.step(action)


def test_it_is_registered() -> None:
    assert ID in llmgym.env_ids()
    env = gymnasium.make(ID)
    assert env.unwrapped.simulation.scenario.about == SCENARIOS["small"].about


def test_a_cluster_that_serves_nobody_has_no_times() -> None:
    """No replica is ever on: no latency is the best, and nothing that was paid is used in no share."""
    env = KVProvisionEnv(scenario="small", min_replicas=0, initial_replicas=0, epochs=6, load=0.1)
    rewards, metrics, _ = play(env, 0)
    assert metrics["completed"] == metrics["gpu_hours"] == 0 and metrics["requests"] > 0
    for name in (
        "e2e_mean_s",
        "e2e_p99_s",
        "ttft_p50_s",
        "ttft_p99_s",
        "tpot_mean_s",
        "utilization",
        "kv_mean",
    ):
        assert math.isnan(metrics[name]), name
    assert metrics["slo_attainment"] == metrics["throughput_rps"] == 0.0 and metrics["wait_mean_s"] > 0
    assert sum(rewards) == pytest.approx(env.simulation.expected_return(metrics))


def test_requests_of_one_token_have_no_time_per_token() -> None:
    short = Workload(
        "short", workloads.poisson(1.0), (RequestClass(workloads.fixed(16), workloads.fixed(1)),)
    )
    env = KVProvisionEnv(scenario="small", workload=short, shape=None, epochs=6, load=0.3)
    _, metrics, _ = play(env, 4)
    assert metrics["completed"] > 0 and metrics["e2e_mean_s"] > 0 and math.isnan(metrics["tpot_mean_s"])


def test_rules_that_reckon_with_lengths_are_told_the_mean_of_the_class() -> None:
    """A long class before a short one in line: `mc-sf` takes the short one first, which it can only do if it is told."""
    arrivals = workloads.poisson(1.0)
    classes = tuple(RequestClass(workloads.fixed(8), workloads.fixed(n)) for n in (40, 4))
    env = KVProvisionEnv(
        scenario="small",
        workload=Workload("two", arrivals, classes),
        shape=None,
        mix=None,
        rule="mc-sf",
        epochs=6,
    )
    env.reset(seed=0)
    requests = env.lanes.state.request[0, : int(env.lanes.state.lane["requests"][0])]
    assert (requests["predicted"] == requests["output"]).all() and set(requests["output"].tolist()) == {40, 4}
