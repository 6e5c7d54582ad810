"""AttentionBudget: a plain simulation beside it, conservation, a toy with a known optimum, deferring, memory, and wrong input."""

import itertools
from typing import Any

import gymnasium
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmgym import workloads
from llmgym.envs.attention.costs import PUBLISHED, measured_columns
from llmgym.envs.attention.env import AttentionBudget, AttentionBudgetEnv
from llmgym.envs.attention.prompts import quantiles
from llmgym.envs.attention.scenarios import SCENARIOS
from llmgym.envs.attention.state import PARTS, ROW, SLACK, TIME, WAITING_ROW
from llmgym.errors import InvalidAction, InvalidArgument, UnknownName

ID = "llmgym/AttentionBudget-v0"
LONG: dict[str, Any] = {
    "menu": ("fused softmax", "slay 1 8 8"),
    "short_share": 0.0,
    "long_tokens": (131072.0, 131072.0),
    "batch": 1,
    "burst": 1.0,
    "noise": 0.0,
    "classes": ((1.0, 1.0),),
}
"""Nothing but sequences of 131,072 tokens."""


def test_a_plain_simulation_agrees() -> None:
    """Random choices, also deferring: lists and numpy's interpolation give the same rewards, ends and ledger."""
    env = AttentionBudgetEnv(scenario="stress", batches=40, profile="h200/kernels", memory_gb=20.0)
    simulation, chosen = env.simulation, env.simulation.scenario
    columns = [measured_columns(chosen.profile, name, chosen.layer) for name in simulation.menu]
    rng = np.random.default_rng(0)
    for seed in range(3):
        _, info = env.reset(seed=seed)
        world = env.lanes.state.batch[0].copy()
        clock, tokens, spent, total, joules = 0.0, 0.0, 0.0, 0.0, 0.0
        waiting, ended, at = list(range(40)), False, 0
        while not ended:
            clock = max(clock, world["arrival_s"][waiting[0]])
            here = [n for n in waiting if world["arrival_s"][n] <= clock]
            n = here[at]
            assert n == env.lanes.state.lane[0]["head"]
            mask = info["action_mask"]
            assert mask[simulation.defer] == (at + 1 < min(len(here), chosen.window))
            action = int(rng.choice(np.flatnonzero(mask)))
            _, reward, ended, _, info = env.step(action)
            if action == simulation.defer:
                assert reward == 0.0 == info["dt"]
                at += 1
                continue
            k, parts = action // 4, chosen.splits[action % 4]
            requests, length = int(world["requests"][n]), float(world["length"][n])
            us = 0.0
            for i in range(parts):
                share = requests // parts + (i < requests % parts)
                one = length * (np.sqrt(share) if k < 3 else share)
                us += np.exp(np.interp(np.log(one), np.log(columns[k][0]), np.log(columns[k][1])))
            kernel = simulation.params.tables.kernels[k]
            measured = simulation.params.tables.spread[k]
            most = -(-requests // parts)
            where = max((np.log2(length * (np.sqrt(most) if k < 3 else most)) - 7) * 16, 0.0)
            sigma = np.interp(where, np.arange(161), measured)
            seconds = 12e-6 * us * max(1.0 + sigma * float(world["noise"][n]), 0.2)
            clock += seconds
            size = length * requests
            weight = size / simulation.mean_tokens / 40
            late = clock > world["due_s"][n]
            expected = -weight if late else weight
            expected -= 5.0 * weight * max(kernel["loss"] - float(world["limit"][n]), 0.0)
            joules += seconds * kernel["power_w"]
            expected -= 0.2 * seconds * kernel["power_w"] / 40 / simulation.params.config["mean_j"][0]
            tokens += size
            spent += size * kernel["loss"]
            waiting.remove(n)
            at = 0
            if not waiting:
                expected -= 5.0 * max(spent / tokens / chosen.budget - 1.0, 0.0)
            assert reward == pytest.approx(expected, rel=1e-6, abs=1e-9)
            assert env.lanes.state.batch[0]["end_s"][n] == pytest.approx(clock, rel=1e-9)
            total += reward
        metrics = info["metrics"]
        assert metrics["loss_mean_nat"] == pytest.approx(spent / tokens, rel=1e-9)
        assert metrics["energy_j"] == pytest.approx(joules, rel=1e-6)
        assert metrics["duration_s"] == pytest.approx(clock, rel=1e-9)
        assert simulation.expected_return(metrics) == pytest.approx(total, rel=1e-9)


@settings(max_examples=8, deadline=None)
@given(
    seed=st.integers(0, 2**40),
    choices=st.integers(0, 2**40),
    scenario=st.sampled_from(["small", "stress", "real"]),
)
def test_batches_are_served_once_and_one_after_the_other(seed: int, choices: int, scenario: str) -> None:
    env = AttentionBudgetEnv(scenario=scenario, batches=30)
    _, info = env.reset(seed=seed)
    rng, ended = np.random.default_rng(choices), False
    while not ended:
        *_, ended, _, info = env.step(int(rng.choice(np.flatnonzero(info["action_mask"]))))
    state, metrics = env.lanes.state, info["metrics"]
    batch = state.batch[0][np.argsort(state.batch[0]["end_s"])]
    assert (batch["action"] >= 0).all() and (np.diff(batch["end_s"]) > 0).all()
    assert (np.diff(state.batch[0]["arrival_s"]) >= 0).all() and state.batch[0]["arrival_s"][0] == 0.0
    assert (batch["end_s"] > batch["arrival_s"]).all() and (batch["due_s"] > batch["arrival_s"]).all()
    assert metrics["duration_s"] >= state.lane["busy_s"][0] - 1e-9
    assert metrics["duration_s"] == batch["end_s"][-1]
    tokens = (batch["length"].astype(float) * batch["requests"]).sum()
    assert state.lane["tokens"][0] == tokens
    assert metrics["on_time_relative"] + metrics["late_relative"] == pytest.approx(
        tokens / env.simulation.mean_tokens / 30
    )
    assert batch["length"].max() <= env.simulation.scenario.longest
    several = batch["requests"] > 1
    assert (batch["length"] * batch["requests"])[several].max(
        initial=0
    ) <= env.simulation.scenario.batch_tokens


def play(actions: tuple[int, ...], **kwargs: Any) -> float:
    """Return of serving three batches that are there at once."""
    env = AttentionBudgetEnv(**LONG, batches=3, load=1e6, **kwargs)
    env.reset(seed=1)
    return float(sum(env.step(action)[1] for action in actions))


def test_the_optimum_of_three_long_batches() -> None:
    """I12. Softmax takes 1, SLAY(1, 8, 8) 0.117 of a service time, all are due at 1.3.

    One batch may lose 0.0385 nat within a mean of 0.02: two are on time then, one is late, 1/3 in all. Three on time need two with
    SLAY, which the larger budget pays for. All eight sequences are tried.
    """
    due = {"deadline": (1.3, 1.3), "deadline_fixed": 1.0}
    simulation = AttentionBudget(**LONG, **due)
    loss = float(simulation.params.tables.kernels["loss"][1])
    assert simulation.mean_tokens == 131072 and loss > 0.03
    scores = {actions: play(actions, **due) for actions in itertools.product((0, 1), repeat=3)}
    best = max(scores.values())
    assert best == pytest.approx(1 / 3)
    assert {actions for actions, score in scores.items() if score == pytest.approx(best)} == {
        (1, 0, 0),
        (0, 1, 0),
    }
    above = 2 * loss / 3 / 0.02 - 1
    assert scores[1, 1, 0] == pytest.approx(1 - 5 * above) and scores[0, 0, 0] == pytest.approx(-1 / 3)
    rich = {actions: play(actions, **due, budget=0.03) for actions in scores}
    assert max(rich.values()) == pytest.approx(1.0)
    assert {actions for actions, score in rich.items() if score == pytest.approx(1.0)} == {
        (1, 1, 0),
        (1, 0, 1),
        (0, 1, 1),
    }


def test_deferring_looks_at_the_next_and_goes_back_to_the_oldest() -> None:
    env = AttentionBudgetEnv(**LONG, batches=5, load=1e6, window=3)
    env.reset(seed=0)
    *_, info = env.step(0)
    lane, defer = env.lanes.state.lane, env.simulation.defer
    assert lane["arrived"][0] == 5 and lane["head"][0] == 1
    for n in (2, 3):
        assert info["action_mask"][defer] == 1
        obs, reward, _, _, info = env.step(defer)
        assert lane["head"][0] == n and (reward, info["dt"]) == (0.0, 0.0)
        queue = obs[env.layout["queue"]].reshape(3, len(WAITING_ROW))
        assert queue[:, -1].tolist() == [float(n == 1 + i) for i in range(3)]
    assert info["action_mask"][defer] == 0
    *_, info = env.step(1)
    assert lane["head"][0] == 1 and lane["position"][0] == 0 and info["action_mask"][defer] == 1
    assert env.lanes.state.batch["action"][0].tolist() == [0, -1, -1, 1, -1]
    env.step(0)
    env.step(0)
    *_, ended, _, info = env.step(0)
    assert ended and info["metrics"]["deferrals"] == 2.0


def test_memory_masks_kernels_and_parts_bring_them_back() -> None:
    """Softmax written out: 8,192 tokens take 3.3 GB a sequence."""
    kwargs: dict[str, Any] = {
        **LONG,
        "menu": ("softmax", "elu"),
        "long_tokens": (8192.0, 8192.0),
        "batch": 4,
        "splits": (1, 2, 4),
        "weights_gb": 0.5,
        "batches": 200,
        "memory_gb": 8.0,
    }
    env = AttentionBudgetEnv(**kwargs)
    assert env.simulation.free_bytes == pytest.approx(7e9)
    _, info = env.reset(seed=0)
    seen, ended = set(), False
    while not ended:
        requests = int(env.lanes.state.batch["requests"][0][env.lanes.state.lane["head"][0]])
        mask = info["action_mask"][:3].tolist()
        seen.add(requests)
        assert mask == {1: [1, 0, 0], 2: [1, 1, 0], 3: [0, 1, 0], 4: [0, 1, 1]}[requests]
        *_, ended, _, info = env.step(3)
    assert seen == {1, 2, 3, 4}


def test_softmax_written_out_cannot_serve_what_was_not_measured() -> None:
    env = AttentionBudgetEnv(scenario="paper", menu=("softmax", "slay 2 16 8"), batches=60)
    _, info = env.reset(seed=0)
    masked, ended = 0, False
    while not ended:
        head = env.lanes.state.batch[0][env.lanes.state.lane["head"][0]]
        long = head["length"] > 16384
        masked += long
        assert not (long and info["action_mask"][:3].any())
        *_, ended, _, info = env.step(
            int(np.flatnonzero(info["action_mask"])[-2 if info["action_mask"][-1] else -1])
        )
    assert masked > 5
    with pytest.raises(InvalidArgument, match="nothing can serve a batch of"):
        AttentionBudget(scenario="paper", menu=("softmax",))


def test_what_is_shown_of_an_action_is_what_it_takes() -> None:
    env = AttentionBudgetEnv(scenario="small", noise=0.0, batches=30)
    obs, info = env.reset(seed=4)
    rng, ended = np.random.default_rng(0), False
    while not ended:
        action = int(rng.choice(np.flatnonzero(info["action_mask"][:-1])))
        row = obs[env.layout["action"]].reshape(-1, len(ROW))[action].astype(float)
        n, start = int(env.lanes.state.lane["head"][0]), float(env.lanes.state.lane["clock_s"][0])
        obs, _, ended, _, info = env.step(action)
        batch = env.lanes.state.batch[0, n]
        mean = env.simulation.mean_s
        assert mean * row[TIME] / (1 - row[TIME]) == pytest.approx(batch["end_s"] - start, rel=1e-4)
        left = row[SLACK] / (1 - abs(row[SLACK]))
        assert mean * left == pytest.approx(batch["due_s"] - batch["end_s"], rel=1e-4, abs=1e-6 * mean)
        assert row[PARTS] == 1.0


@pytest.mark.parametrize("burst", [1.0, 4.0])
def test_load_lengths_and_bursts(burst: float) -> None:
    """Arrivals as often as the load says, tokens as the mixture says; bursts make counts vary more."""
    env = AttentionBudgetEnv(scenario="small", batches=20_000, load=0.8, burst=burst, batch=1)
    env.reset(seed=3)
    world = env.lanes.state.batch[0]
    rate = len(world) / world["arrival_s"][-1]
    assert rate == pytest.approx(env.simulation.rate_rps, rel=0.03 if burst == 1.0 else 0.15)
    tokens = world["length"].astype(float)
    assert tokens.mean() == pytest.approx(env.simulation.mean_tokens, rel=0.03)
    assert np.mean(tokens > 10_000) == pytest.approx(0.3 * (131_072 - 10_000) / (131_072 - 8192), abs=0.03)
    assert np.median(tokens) == pytest.approx(1500 * np.exp(0.566), rel=0.1)  # the 5/7 quantile of short ones
    counts = np.histogram(world["arrival_s"], bins=np.arange(0, world["arrival_s"][-1], 20 / rate))[0]
    dispersion = counts.var() / counts.mean()
    assert (dispersion < 1.4) if burst == 1.0 else (dispersion > 3.0)
    shares = [np.mean(world["limit"] == np.float32(limit)) for limit in (0.0, 0.05, 1.0)]
    assert shares == pytest.approx([0.3, 0.5, 0.2], abs=0.015)


def test_lengths_of_workloads() -> None:
    simulation = AttentionBudget(scenario="real")
    found = quantiles(simulation.scenario)
    prompt = workloads.load("mooncake-conversation").classes[0].prompt
    assert prompt is not None
    assert found[2048] == pytest.approx(float(prompt.quantile(0.5)), rel=0.01)
    talk = workloads.load("conversations")
    turns = quantiles(AttentionBudget(lengths=talk).scenario)
    assert turns.mean() == pytest.approx(talk.expectation(lambda s, o: s), rel=0.05)
    given = AttentionBudget(lengths=workloads.load("azure-code-2023"))
    assert np.array_equal(given.params.quantiles, AttentionBudget(lengths="azure-code-2023").params.quantiles)


def test_a_lane_is_small() -> None:
    """At most 32 KB of state in the longest scenario that is named."""
    for name in SCENARIOS:
        state = AttentionBudget(scenario=name).allocate(1)
        assert sum(array.nbytes for array in state) <= 32 * 1024


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_pictures_and_texts(scenario: str) -> None:
    env = AttentionBudgetEnv(scenario=scenario, batches=30, render_mode="rgb_array")
    _, info = env.reset(seed=1)
    ended = False
    for _ in range(12):
        _, _, ended, _, info = env.step(int(np.flatnonzero(info["action_mask"])[0]))
    frame = env.render()
    assert frame.shape == (560, 900, 3) and frame.dtype == np.uint8 and frame.std() > 10
    words = env.simulation.render(env.lanes.state, 0, "ansi")
    assert "head: " in words and "served 12/30" in words
    while not ended:
        _, _, ended, _, info = env.step(int(np.flatnonzero(info["action_mask"])[0]))
    assert env.render().std() > 10 and "served 30/30" in env.simulation.render(env.lanes.state, 0, "ansi")


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"profile": "tpu/kernels"}, "tpu/kernels"),
        ({"layer": "9x9"}, "layer.*9x9"),
        ({"layer": "32x128", "profile": PUBLISHED, "menu": None}, "is of layer='8x32'"),
        ({"menu": ("bert",)}, "bert"),
        ({"menu": ()}, "menu="),
        ({"menu": "elu"}, "menu="),
        ({"menu": ("elu", "elu")}, "each once"),
        ({"splits": (2,)}, "splits="),
        ({"splits": (1, 1)}, "splits="),
        ({"memory_gb": 1.0}, "checkpoints take 1.25 GB"),
        ({"memory_gb": 1.2501}, "nothing can serve"),
        ({"lengths": "novels"}, "novels"),
        ({"lengths": 3}, "lengths=3"),
        ({"long_tokens": (9, 2)}, "long_tokens"),
        ({"long_tokens": (20_000.0, 30_000.0), "longest": 10_000}, "all of them are cut"),
        ({"burst": 6.0}, "burst=6"),
        ({"burst": 0.5}, "burst=0.5"),
        ({"load": 0.0}, "load=0.0"),
        ({"deadline": (0.0, 1.0)}, "deadline=0.0"),
        ({"classes": ()}, "classes="),
        ({"classes": ((-1.0, 1.0),)}, "classes: limit=-1.0"),
        ({"classes": ((0.1, 0.0),)}, "classes: weight=0.0"),
        ({"budget": 0.0}, "budget=0.0"),
        ({"slope": -0.1}, "slope=-0.1"),
        ({"batches": 0}, "batches=0"),
        ({"window": 2.5}, "window=2.5"),
        ({"rest": 1}, "rest=1"),
        ({"reward": "speed"}, "reward.*speed"),
        ({"queue": 3}, "queue"),
    ],
)
def test_wrong_input_is_named(arguments: dict[str, Any], match: str) -> None:
    with pytest.raises((InvalidArgument, UnknownName), match=match):
        AttentionBudget(**arguments)


@pytest.mark.parametrize("action", [6, -1, 0.5, np.nan, None, "elu"])
def test_actions_that_are_none(action: Any) -> None:
    env = gymnasium.make(ID, batches=3).unwrapped
    env.reset(seed=0)
    with pytest.raises(InvalidAction):
        env.step(action)


def test_a_masked_action_serves_with_the_first_that_is_allowed() -> None:
    """Nothing else waits, so deferring is masked."""
    env = AttentionBudgetEnv(**LONG, batches=2, load=1e-3, invalid_cost=0.5)
    env.reset(seed=0)
    _, reward, *_ = env.step(env.simulation.defer)
    assert reward == pytest.approx(0.5 - 0.5)
    assert env.lanes.state.batch["action"][0].tolist() == [0, -1]
    assert env.metrics()["invalid_actions"] == 1.0
    strict = AttentionBudgetEnv(**LONG, batches=2, load=1e-3, invalid_action="raise")
    strict.reset(seed=0)
    with pytest.raises(InvalidAction, match="masked"):
        strict.step(strict.simulation.defer)
