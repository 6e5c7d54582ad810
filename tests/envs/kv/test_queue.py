"""KVQueue: its decisions, rewards, episode ends, metrics, and what it refuses."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest

import llmgym  # noqa: F401
from llmgym import profiles, workloads
from llmgym.envs.kv.queue.env import DEFAULT_RULES, MODES, REWARDS, KVQueue
from llmgym.envs.kv.queue.scenarios import SCENARIOS, Scenario
from llmgym.errors import InvalidAction, InvalidArgument, LlmgymError, UnknownName
from llmgym.serving.replay import latency_figures
from llmgym.serving.rules import CATALOGUE, Rule

ID = "llmgym/KVQueue-v0"
SMALL = {"scenario": "tiny", "requests": 120, "load": 1.1}
CROWDED = {"scenario": "tiny", "requests": 150, "load": 1.5, "kv_capacity": 400}


def make(**kwargs: Any) -> Any:
    return gymnasium.make(ID, **kwargs).unwrapped


def choose(env: Any, info: dict[str, Any], rng: np.random.Generator) -> Any:
    """A random action that is allowed."""
    if env.simulation.mask_size == 0:
        return env.action_space.low + rng.random(1) * (env.action_space.high - env.action_space.low)
    return int(rng.choice(np.flatnonzero(info["action_mask"])))


def play(
    env: Any, policy: Callable[..., Any], seed: int = 0, most: int = 100_000
) -> tuple[float, dict[str, float]]:
    """One episode: its return and its metrics."""
    rng = np.random.default_rng(seed)
    _, info = env.reset(seed=seed)
    total = 0.0
    for _ in range(most):
        _, reward, terminated, truncated, info = env.step(policy(env, info, rng))
        total += reward
        if terminated or truncated:
            return total, info["metrics"]
    raise AssertionError("the episode did not end")


def greedy(env: Any, info: dict[str, Any], rng: np.random.Generator) -> int:
    """Admit as many as fit (`admit`), or pick while anything fits (`pick`)."""
    return int(np.flatnonzero(info["action_mask"])[-1])


# -- decisions -------------------------------------------------------------------------------------------------------


def test_spaces_of_every_mode() -> None:
    assert make(**SMALL).action_space == gymnasium.spaces.Discrete(9)
    assert make(**SMALL, action="pick", slots=5).action_space == gymnasium.spaces.Discrete(6)
    assert make(**SMALL, action="watermark").action_space == gymnasium.spaces.Box(0.0, 0.3, (1,), np.float64)
    assert make(**SMALL, action="rule").action_space == gymnasium.spaces.Discrete(len(DEFAULT_RULES))
    assert make(**SMALL, action="rule", rules=("vllm", "mc-sf")).action_space == gymnasium.spaces.Discrete(2)
    for slots in (1, 5):
        env = make(**SMALL, slots=slots)
        assert env.observation_space.shape == (env.layout.size,) and env.observation_space.dtype == np.float32
        queue = env.layout["queue"]
        assert queue.stop - queue.start == 4 * slots


def test_admitting_n_takes_the_first_n() -> None:
    env = make(**CROWDED, overflow="pause")
    _, info = env.reset(seed=1)
    rng, seen = np.random.default_rng(0), set()
    state = env.lanes.state
    for _ in range(150):
        line = state.queue[0, 0]
        waiting = line[2 + line[0] : 2 + line[1]].tolist()
        before = state.resident[0, : state.lane[0]["residents"]]["request"].tolist()
        action = choose(env, info, rng)
        _, _, terminated, _, info = env.step(action)
        if terminated:
            break
        after = state.resident[0, : state.lane[0]["residents"]]["request"].tolist()
        done = state.request["e2e_s"][0] >= 0
        assert [r for r in before + waiting[:action] if not done[r]] == after
        seen.add(action)
    assert len(seen) > 3


@pytest.mark.parametrize("order", ["arrival", "shortest-output", "smallest-area"])
def test_picking_until_nothing_fits_is_admitting_as_many_as_fit(order: str) -> None:
    """The same engine through two action spaces: with enough slots for a whole batch both meet the same clocks."""
    pick, admit = (make(**CROWDED, action=action, order=order, slots=40) for action in ("pick", "admit"))
    (_, chosen), (_, info) = pick.reset(seed=2), admit.reset(seed=2)
    for _ in range(1000):
        picked, dt = 0, 0.0
        while chosen["action_mask"][1]:
            _, reward, _, _, chosen = pick.step(1)
            assert reward == 0.0 == chosen["dt"]
            picked += 1
        _, reward_pick, end_pick, _, chosen = pick.step(0)
        assert picked == np.flatnonzero(info["action_mask"])[-1]
        _, reward, end, _, info = admit.step(picked)
        dt = info["dt"]
        assert (reward_pick, end_pick, chosen["dt"]) == (reward, end, dt)
        if end:
            break
    assert end
    one, other = chosen["metrics"], info["metrics"]
    assert one == other and one["invalid_actions"] == 0


@pytest.mark.parametrize("watermark", [0.0, 0.05, 0.3])
def test_watermark_is_that_of_the_rule(watermark: float) -> None:
    box = make(**CROWDED, overflow="recompute", action="watermark")
    rule = make(**CROWDED, overflow="recompute", action="rule", rules=(f"vllm:watermark={watermark}",))
    assert play(box, lambda *_: np.array([watermark])) == play(rule, lambda *_: 0)


def test_a_decision_can_last_several_batches() -> None:
    every = make(**CROWDED, action="rule", rules=("mc-sf", "vllm"), every=4)
    each = make(**CROWDED, action="rule", rules=("mc-sf", "vllm"))
    rng = np.random.default_rng(0)
    every.reset(seed=0)
    each.reset(seed=0)
    end = False
    while not end:
        action = int(rng.integers(2))
        obs, reward, end, truncated, info = every.step(action)
        total, dt = 0.0, 0.0
        for _ in range(4):
            other, r, done, _, each_info = each.step(action)
            total, dt = total + r, dt + each_info["dt"]
            if done:
                break
        assert (obs == other).all() and end == done and not truncated
        assert reward == pytest.approx(total, abs=1e-12) and info["dt"] == pytest.approx(dt)
    assert info["metrics"] == each_info["metrics"]


@pytest.mark.parametrize("mode", ["admit", "pick"])
@pytest.mark.parametrize("reward", REWARDS)
def test_masked_actions_are_counted_charged_and_admit_nobody(mode: str, reward: str) -> None:
    env = make(**CROWDED, action=mode, reward=reward, invalid_cost=0.25)
    _, info = env.reset(seed=0)
    masked, total, episode = 0, 0.0, env.lanes.state.lane[0]
    for k in range(400):
        refused = np.flatnonzero(info["action_mask"] == 0)
        residents = int(episode["residents"])
        if k % 3 == 0 and len(refused):
            _, r, terminated, truncated, info = env.step(int(refused[-1]))
            masked += 1
            assert episode["residents"] <= residents and info["dt"] > 0
        else:
            _, r, terminated, truncated, info = env.step(greedy(env, info, np.random.default_rng()))
        total += r
        assert episode["invalid"] == masked
        if terminated or truncated:
            break
    metrics = info.get("metrics") or env.metrics()
    assert masked > 20 and metrics["invalid_actions"] == masked
    assert metrics["penalty"] == pytest.approx(0.25 * masked)
    assert total == pytest.approx(env.simulation.expected_return(metrics), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("mode", ["admit", "pick"])
def test_doing_nothing_on_an_idle_engine_is_masked(mode: str) -> None:
    env = make(**SMALL, action=mode)
    _, info = env.reset(seed=0)
    assert info["action_mask"][0] == 0 and info["action_mask"][1] == 1
    _, _, _, _, info = env.step(0)
    assert env.metrics()["invalid_actions"] == 1 and env.lanes.state.lane[0]["residents"] == 0
    strict = make(**SMALL, action=mode, invalid_action="raise")
    strict.reset(seed=0)
    with pytest.raises(InvalidAction, match=r"masked; allowed: \[1"):
        strict.step(0)
    strict.step(1)


@pytest.mark.parametrize(
    ("mode", "action"),
    [
        *(
            (mode, bad)
            for mode in ("admit", "pick", "rule")
            for bad in (-1, 9, 1.0, math.nan, "1", None, [1, 2])
        ),
        *(("watermark", bad) for bad in ([0.31], [-0.1], [math.nan], [[0.1]], 0.1, ["a"], None)),
    ],
)
def test_actions_that_cannot_be_meant_are_errors(mode: str, action: Any) -> None:
    env = make(**SMALL, action=mode)
    env.reset(seed=0)
    before = env.lanes.state.lane.copy()
    with pytest.raises(InvalidAction):
        env.step(action)
    assert env.lanes.state.lane == before


# -- rewards -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("reward", REWARDS)
@pytest.mark.parametrize("overflow", ["pause", "recompute"])
def test_return_is_what_the_metrics_say(overflow: str, reward: str, mode: str) -> None:
    env = make(
        **CROWDED,
        action=mode,
        reward=reward,
        overflow=overflow,
        drop_cost=0.5,
        ttft_slo_s=0.8,
        tpot_slo_s=0.02,
    )
    total, metrics = play(env, choose)
    assert total == pytest.approx(env.simulation.expected_return(metrics), rel=1e-9)
    requests = env.lanes.state.request[0]
    ttft_s, e2e_s, output = requests["ttft_s"], requests["e2e_s"], requests["output"]
    assert metrics["completed"] == 150
    if reward == "latency":
        dropped = 0.5 * metrics["dropped_tokens"] / 400
        assert total == pytest.approx(-e2e_s.mean() - dropped, rel=1e-5)
        assert (dropped > 0) == (overflow == "recompute")
    elif reward == "slo":
        met = (ttft_s <= 0.8) & ((e2e_s - ttft_s) / np.maximum(output - 1, 1) <= 0.02)
        # Stored as float32: a request a hair from its objective may fall on either side.
        assert total == pytest.approx(met.mean(), abs=1.5 / 150) and 0 < met.mean() < 1


def test_stability_reward_is_the_free_share_of_each_batch() -> None:
    env = make(**CROWDED, reward="stability")
    _, info = env.reset(seed=0)
    episode, end = env.lanes.state.lane[0], False
    while not end:
        batches = int(episode["batches"])
        _, reward, end, _, info = env.step(greedy(env, info, np.random.default_rng()))
        assert episode["batches"] == batches + 1
        assert reward == pytest.approx(episode["batch_used"] / 400 - 1, abs=1e-12)


def test_littles_law_also_where_an_episode_is_cut() -> None:
    """latency_mean_s counts everybody who arrived, up to the end of the episode."""
    env = make(scenario="tiny", requests=2000, load=1.5, horizon_s=3.0)
    total, metrics = play(env, greedy)
    episode, state = env.lanes.state.lane[0], env.lanes.state
    arrived = np.arange(int(episode["next"]))
    spent = np.where(
        state.request["e2e_s"][0, arrived] >= 0,
        state.request["e2e_s"][0, arrived],
        episode["clock_s"] - state.request["arrival_s"][0, arrived],
    )
    assert metrics["completed"] < len(arrived) <= metrics["requests"]
    assert total == pytest.approx(-spent.sum() / metrics["requests"], rel=1e-5)


# -- ends ----------------------------------------------------------------------------------------------------------------


def test_truncation_at_the_horizon() -> None:
    env = make(scenario="tiny", requests=5000, horizon_s=2.0)
    _, info = env.reset(seed=0)
    truncated = False
    while not truncated:
        assert env.lanes.state.lane[0]["clock_s"] < 2.0
        _, _, terminated, truncated, info = env.step(greedy(env, info, np.random.default_rng()))
        assert not terminated
    assert 2.0 <= env.lanes.state.lane[0]["clock_s"] <= 2.01 + 1e-9
    assert info["metrics"]["unstable"] == 0 and info["metrics"]["penalty"] == 0


@pytest.mark.parametrize("reward", REWARDS)
def test_too_long_a_line_ends_the_episode_with_its_charge(reward: str) -> None:
    env = make(scenario="tiny", requests=400, load=4.0, waiting_cap=30, horizon_s=20.0, reward=reward)
    total, metrics = play(env, greedy)
    episode = env.lanes.state.lane[0]
    assert metrics["unstable"] == 1 and metrics["waiting_end"] > 30
    left_s = 20.0 - episode["clock_s"]
    charge = {
        "latency": (episode["residents"] + episode["waiting"]) * left_s / 400,
        "slo": 0.0,
        "stability": left_s / 0.01,
    }[reward]
    assert metrics["penalty"] == pytest.approx(charge) and metrics["invalid_actions"] == 0
    assert total == pytest.approx(env.simulation.expected_return(metrics), rel=1e-9)


def test_served_and_rejected_requests_end_the_episode() -> None:
    """A prompt that leaves no room for one output token is rejected on arrival; outputs are cut at the longest sequence."""
    env = make(**SMALL, longest=40)
    total, metrics = play(env, greedy)
    requests = env.lanes.state.request[0]
    too_long = requests["prompt"] >= 40
    assert metrics["rejected"] == too_long.sum() > 10
    assert metrics["completed"] + metrics["rejected"] == metrics["requests"] == 120
    assert (requests["prompt"] + requests["output"])[~too_long].max() == 40
    assert (requests["ttft_s"][too_long] == -1).all() and (requests["e2e_s"][too_long] == -1).all()
    assert total == pytest.approx(env.simulation.expected_return(metrics), rel=1e-9)


def test_nothing_but_rejected_requests() -> None:
    total, metrics = play(make(**SMALL, longest=1), lambda *_: 0)
    assert metrics["rejected"] == metrics["requests"] == 120 and metrics["completed"] == 0
    assert total == pytest.approx(-metrics["penalty"])
    without = {name for name, value in metrics.items() if math.isnan(value)}
    times = (
        "e2e_mean_s",
        "e2e_p50_s",
        "e2e_p99_s",
        "ttft_mean_s",
        "ttft_p50_s",
        "ttft_p99_s",
        "tpot_mean_s",
        "tpot_p99_s",
    )
    assert without == {*times, "latency_mean_s", "kv_mean", "batch_mean_s"}
    assert metrics["slo_attainment"] == 0.0 and metrics["throughput_rps"] == 0.0


def test_an_episode_without_requests_ends_at_once() -> None:
    env = make(**SMALL, horizon_s=1e-9)
    env.reset(seed=0)
    _, reward, terminated, truncated, info = env.step(0)
    assert terminated or truncated
    assert reward == 0.0 and info["metrics"]["requests"] == info["metrics"]["duration_s"] == 0
    assert math.isnan(info["metrics"]["slo_attainment"]) and math.isnan(info["metrics"]["throughput_rps"])
    assert env.simulation.expected_return(info["metrics"]) == 0.0


def test_where_nobody_is_served_times_have_no_value() -> None:
    """A prompt of 512 tokens never fits into a batch of 256 of `vllm-prefill-only`: not the best of all latencies, but none."""
    rows = workloads.Rows([0.0, 1.0, 2.0, 3.0], [512] * 4, [20] * 4)
    workload = workloads.Workload(
        "w", workloads.replay(rows, from_start=True), (workloads.RequestClass(rows=rows),)
    )
    env = make(
        scenario="azure-conv",
        workload=workload,
        requests=4,
        rate_rps=1.0,
        horizon_s=60.0,
        budget=256,
        action="rule",
        rules=("vllm-prefill-only", "vllm"),
    )
    _, frozen = play(env, lambda *_: 0)
    _, served = play(env, lambda *_: 1)
    assert frozen["completed"] == 0 and served["completed"] == 4
    for name in (
        "e2e_mean_s",
        "e2e_p50_s",
        "e2e_p99_s",
        "ttft_mean_s",
        "ttft_p50_s",
        "ttft_p99_s",
        "tpot_mean_s",
    ):
        assert math.isnan(frozen[name]) and served[name] > 0, name
    assert frozen["latency_mean_s"] > 50 > served["latency_mean_s"] and frozen["slo_attainment"] == 0.0


def test_time_per_token_leaves_out_requests_of_one_token() -> None:
    """As a replay does: half of the requests have one token, and the mean is that of the others."""
    rows = workloads.Rows(np.arange(40.0), [200] * 40, [1, 101] * 20)
    workload = workloads.Workload(
        "w", workloads.replay(rows, from_start=True), (workloads.RequestClass(rows=rows),)
    )
    env = make(scenario="azure-conv", workload=workload, requests=40, rate_rps=1.0)
    _, metrics = play(env, greedy)
    requests = env.lanes.state.request[0]
    each = (requests["e2e_s"] - requests["ttft_s"])[1::2] / 100
    assert metrics["completed"] == 40
    assert metrics["tpot_mean_s"] == pytest.approx(each.mean(), rel=1e-5)
    figures = latency_figures(
        requests["arrival_s"],
        requests["arrival_s"] + requests["ttft_s"],
        requests["arrival_s"] + requests["e2e_s"],
        requests["output"],
    )
    assert metrics["tpot_p99_s"] == pytest.approx(figures["tpot_p99_s"], rel=1e-5)
    alone = workloads.Workload(
        "w", workloads.burst(), (workloads.RequestClass(workloads.fixed(4), workloads.fixed(1)),)
    )
    _, metrics = play(make(**SMALL, workload=alone), greedy)
    assert metrics["completed"] == 120 and math.isnan(metrics["tpot_mean_s"])


def test_exact_information_is_exact_where_outputs_are_cut() -> None:
    env = make(**SMALL, longest=40)
    env.reset(seed=0)
    requests = env.lanes.state.request[0]
    served = requests["prompt"] < 40
    assert (requests["output"] == requests["predicted"])[served].all()


# -- worlds ----------------------------------------------------------------------------------------------------------------


def test_one_seed_is_one_world_whoever_acts() -> None:
    sums = set()
    for kwargs in (
        {"action": "admit"},
        {"action": "admit", "order": "smallest-area"},
        {"action": "pick"},
        {"action": "watermark"},
        *(
            {"action": "rule", "rules": (name,)}
            for name in CATALOGUE
            if name not in ("class-budgets", "vllm-prefill-only")
        ),
        {"reward": "slo"},
        {"overflow": "recompute"},
        {"information": "none"},
        {"kv_capacity": 500},
    ):
        env = make(**{**SMALL, "rate_rps": 150.0, **kwargs})
        sums.add(play(env, choose, seed=7)[1]["world_checksum"])
    assert len(sums) == 1
    assert play(make(**SMALL, rate_rps=150.0), choose, seed=8)[1]["world_checksum"] not in sums


@pytest.mark.parametrize("information", ["exact", "noisy", "mean", "none"])
def test_information(information: str) -> None:
    env = make(**SMALL, information=information)
    env.reset(seed=0)
    output, told = env.lanes.state.request["output"][0], env.lanes.state.request["predicted"][0]
    if information == "exact":
        assert (told == output).all()
    elif information == "noisy":
        assert np.mean(told != output) > 0.2 and np.corrcoef(told, output)[0, 1] > 0.3
    elif information == "mean":
        assert set(told.tolist()) <= {27, 28}
    else:
        assert not told.any()


# -- scenarios ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_scenario_runs(scenario: str, mode: str) -> None:
    env = make(scenario=scenario, action=mode)
    rng = np.random.default_rng(0)
    obs, info = env.reset(seed=0)
    for _ in range(60):
        assert obs in env.observation_space
        obs, reward, terminated, truncated, info = env.step(choose(env, info, rng))
        assert math.isfinite(reward) and info["dt"] >= 0
        assert not (terminated or truncated)
    assert env.simulation.settings()["about"] == SCENARIOS[scenario].about


def test_load_is_a_fraction_of_the_predicted_rate() -> None:
    simulation = KVQueue(scenario="tiny", load=0.5)
    assert simulation.predicted is not None
    assert simulation.scenario.rate_rps == pytest.approx(0.5 * simulation.predicted.rate_rps)
    assert KVQueue(scenario="tiny", rate_rps=3.0).scenario.rate_rps == 3.0


def test_a_scenario_of_ones_own() -> None:
    own = Scenario("mine", "uniform-tiny", "paper/tiny", requests=30, chunk=16)
    assert play(make(scenario=own), greedy) == play(
        make(scenario="tiny", requests=30, seats=256, horizon_s=3600.0), greedy
    )
    assert play(make(scenario=dataclasses.replace(own, requests=20)), greedy)[1]["requests"] == 20
    law = workloads.Workload(
        "w", workloads.burst(), (workloads.RequestClass(workloads.fixed(4), workloads.fixed(3)),)
    )
    env = make(scenario=own, workload=law, profile=profiles.constant(2.0), kv_capacity=1000)
    _, metrics = play(env, greedy)
    assert (
        metrics["e2e_p50_s"] == 2.0 * 4 + 2.0 * 1
    )  # 8 at a time: one chunk and three outputs, the second 8 a batch later


# -- metrics -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overflow", ["pause", "recompute"])
def test_metrics_are_those_of_the_raw_times(overflow: str) -> None:
    env = make(
        **{**CROWDED, "horizon_s": 4.0, "requests": 300}, overflow=overflow, ttft_slo_s=0.5, tpot_slo_s=0.03
    )
    _, metrics = play(env, greedy)
    episode, state = env.lanes.state.lane[0], env.lanes.state
    n = int(episode["next"])
    ttft, e2e = state.request["ttft_s"][0, :n].astype(float), state.request["e2e_s"][0, :n].astype(float)
    done, started = e2e >= 0, ttft >= 0
    output = state.request["output"][0, :n]
    tpot = ((e2e - ttft) / np.maximum(output - 1, 1))[done]
    met = int(((ttft[done] <= 0.5) & (tpot <= 0.03)).sum())
    tpot = tpot[output[done] > 1]
    duration = episode["clock_s"] - state.request["arrival_s"][0, 0]
    expected = {
        "requests": episode["requests"],
        "completed": done.sum(),
        "waiting_end": n
        - started.sum()
        - sum(r["decoding"] == 0 and r["kept"] == 0 for r in state.resident[0, : episode["residents"]]),
        "e2e_mean_s": e2e[done].mean(),
        "e2e_p50_s": np.quantile(e2e[done], 0.5),
        "e2e_p99_s": np.quantile(e2e[done], 0.99),
        "ttft_mean_s": ttft[started].mean(),
        "ttft_p50_s": np.quantile(ttft[started], 0.5),
        "ttft_p99_s": np.quantile(ttft[started], 0.99),
        "tpot_mean_s": tpot.mean(),
        "tpot_p99_s": np.quantile(tpot, 0.99),
        "throughput_rps": done.sum() / duration,
        "duration_s": duration,
        "batches": episode["batches"],
        "batch_mean_s": 0.01,
    }
    if overflow == "recompute":
        del expected["waiting_end"]  # preempted requests wait too, with their first token behind them
        assert metrics["preemptions"] > 0 < metrics["dropped_tokens"]
        assert metrics["dropped_of_capacity"] == pytest.approx(metrics["dropped_tokens"] / 400)
    for name, value in expected.items():
        assert metrics[name] == pytest.approx(float(value), rel=1e-5), name
    assert metrics["slo_attainment"] == pytest.approx(met / metrics["requests"], abs=1.5 / 300)
    assert metrics["goodput_rps"] == pytest.approx(metrics["slo_attainment"] * metrics["requests"] / duration)
    assert 0 < metrics["slo_attainment"] < 1 and metrics["kv_mean"] < metrics["kv_peak"] <= 1


def test_means_over_time_are_integrals() -> None:
    env = make(**CROWDED)
    _, info = env.reset(seed=0)
    episode, end = env.lanes.state.lane[0], False
    held, waiting, tokens = 0.0, 0.0, 0
    while not end:
        left = int(episode["waiting"]) - greedy(env, info, np.random.default_rng())
        _, _, end, _, info = env.step(greedy(env, info, np.random.default_rng()))
        held += episode["batch_used"] * episode["batch_s"]
        waiting += left * episode["batch_s"]
        tokens += int(episode["batch_decodes"])
    metrics = info["metrics"]
    assert metrics["kv_mean"] == pytest.approx(held / (metrics["batches"] * 0.01) / 400)
    # Between two batches the line also holds, for part of a batch, whoever arrived during it: half a batch on average.
    arrived = metrics["requests"] * 0.005
    assert metrics["waiting_mean"] * metrics["duration_s"] == pytest.approx(waiting + arrived, rel=0.02)
    assert metrics["output_tokens_per_s"] == pytest.approx(tokens / metrics["duration_s"])
    assert tokens == env.lanes.state.request["output"][0].sum()


# -- wrong input --------------------------------------------------------------------------------------------------------------

NAMES = [
    ("scenario", "tinny", "unknown scenario 'tinny'. Did you mean 'tiny'? Known: 8:1-guess, azure-code"),
    ("workload", "uniform-3:1", "unknown workload 'uniform-3:1'"),
    ("profile", "h100/llama-9", "h100/llama-9"),
    ("action", "choose", "unknown action 'choose'. Known: admit, pick, rule, watermark"),
    ("scheduling", "later", "unknown scheduling 'later'. Known: async, async-held, sync"),
    ("order", "random", "unknown order 'random'. Known: arrival, shortest-output, smallest-area"),
    ("reward", "money", "unknown reward 'money'. Known: latency, slo, stability"),
    ("overflow", "swap", "unknown overflow 'swap'. Known: pause, recompute"),
    ("first_token", "soon", "unknown first_token 'soon'. Known: next-batch, stored, with-prefill"),
    ("information", "all", "unknown information 'all'. Known: exact, mean, noisy, none"),
    ("invalid_action", "ignore", "unknown invalid_action 'ignore'. Known: penalize, raise"),
    ("kv_capasity", 3, "unexpected keyword argument 'kv_capasity'. Did you mean 'kv_capacity'?"),
    ("about", "x", "unexpected keyword argument 'about'"),
]


@pytest.mark.parametrize(("argument", "value", "words"), NAMES)
def test_unknown_names_list_the_known_ones(argument: str, value: Any, words: str) -> None:
    with pytest.raises(UnknownName) as raised:
        KVQueue(**{argument: value})
    assert words in str(raised.value) and "Known: " in str(raised.value)


WHOLE = (
    "requests",
    "kv_capacity",
    "chunk",
    "budget",
    "seats",
    "block",
    "longest",
    "waiting_cap",
    "slots",
    "every",
)
POSITIVE = ("rate_rps", "load", "horizon_s", "ttft_slo_s", "tpot_slo_s")


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        (argument, value)
        for argument in WHOLE
        for value in (0, -1, 1.5, math.nan, "8", True, 2**31)
        # A longest sequence beyond the cache means the cache; for a text see `test_values_of_a_wrong_kind`.
        if argument != "longest" or value not in ("8", 2**31)
    ],
)
def test_whole_numbers(argument: str, value: Any) -> None:
    with pytest.raises(InvalidArgument, match=rf"{argument}={value!r}: expected a whole number from 1"):
        KVQueue(**{argument: value})


@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf, "1", True])
@pytest.mark.parametrize("argument", POSITIVE)
def test_positive_numbers(argument: str, value: Any) -> None:
    with pytest.raises(InvalidArgument, match=rf"{argument}={value!r}: expected a finite number > 0"):
        KVQueue(**{argument: value})


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf])
@pytest.mark.parametrize("argument", ["drop_cost", "invalid_cost", "noise_scale"])
def test_costs(argument: str, value: float) -> None:
    with pytest.raises(InvalidArgument, match=rf"{argument}={value!r}"):
        KVQueue(**{argument: value})


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"block": 12, "overflow": "recompute"}, "block=12: expected a power of two"),
        ({"block": 16}, "block=16: more than 1 needs overflow='recompute'"),
        (
            {"block": 64, "overflow": "recompute", "kv_capacity": 63},
            "kv_capacity=63: less than one block of 64 tokens",
        ),
        ({"rules": ("vllm",)}, r"rules=\('vllm',\) needs action='rule', not 'admit'"),
        ({"rules": ("vllm",), "action": "watermark"}, "needs action='rule', not 'watermark'"),
        ({"rules": (), "action": "rule"}, r"rules=\[\]: expected at least one"),
        ({"rules": ("vlm",), "action": "rule"}, "unknown rule 'vlm'. Did you mean 'vllm'"),
        ({"rules": ("vllm", "vllm"), "action": "rule"}, "each once"),
        ({"every": 2}, "every=2: more than 1 needs action='rule' or 'watermark', not 'admit'"),
        (
            {"rules": (Rule("b", check="class-budget", class_budgets=(1, 2)),), "action": "rule"},
            "rule 'b' has 2 class budgets, the workload has 1 classes",
        ),
    ],
)
def test_rules_that_do_not_fit(kwargs: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        KVQueue(**kwargs)


def test_a_profile_without_a_cache_needs_one() -> None:
    with pytest.raises(LlmgymError, match="has no memory size; choose the KV capacity"):
        KVQueue(profile="paper/token-batch-codellama-34b")
    assert KVQueue(profile="paper/token-batch-codellama-34b", kv_capacity=500).scenario.kv_capacity == 500


@pytest.mark.parametrize(
    "kwargs",
    [
        {"scenario": 5},
        {"scenario": None},
        {"longest": "8"},
        {"drop_cost": "high"},
        {"invalid_cost": None},
        {"action": ["admit"]},
    ],
    ids=str,
)
def test_values_of_a_wrong_kind(kwargs: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument, match=next(iter(kwargs))):
        KVQueue(**kwargs)


# -- pictures -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kwargs", [SMALL, {**CROWDED, "overflow": "pause"}, {**CROWDED, "first_token": "stored", "budget": 40}]
)
def test_pictures(kwargs: dict[str, Any]) -> None:
    picture, text = (make(**kwargs, render_mode=mode) for mode in ("rgb_array", "ansi"))
    for env in (picture, text):
        _, info = env.reset(seed=0)
        for _ in range(60):
            _, _, _, _, info = env.step(greedy(env, info, np.random.default_rng()))
    image = picture.render()
    assert image.shape == (420, 760, 3) and image.dtype == np.uint8 and image.std() > 10
    words, episode = text.render(), text.lanes.state.lane[0]
    assert len(words.splitlines()) == 3
    assert (
        f"{episode['done']}/{episode['requests']}" in words and f"{episode['residents']} residents" in words
    )
    assert f"{episode['waiting']} waiting" in words
    silent = make(**kwargs)
    silent.reset(seed=0)
    assert silent.render() is None


def test_pictures_of_a_vector() -> None:
    envs = gymnasium.make_vec(ID, 2, **SMALL, render_mode="ansi")
    envs.reset(seed=0)
    one, two = envs.render()
    assert isinstance(one, str) and one != two
