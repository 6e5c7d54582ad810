"""PPDRouting and PPDWeights: what is hidden, worlds and rewards, the table and its weights, pictures."""

import math
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import pytest

from llmgym.core import cache_folder
from llmgym.core.lanes import observing
from llmgym.envs.ppd import conversations as ppd_conversations
from llmgym.envs.ppd import table as ppd_table
from llmgym.envs.ppd.cells import CONTEXTS, SECOND_TURN, TYPES, cell_of, lookup, nearest
from llmgym.envs.ppd.conversations import geometric_turns
from llmgym.envs.ppd.latency import Latencies
from llmgym.envs.ppd.routing.env import PPDRouting, PPDRoutingEnv
from llmgym.envs.ppd.state import LOCAL, OVER, REMOTE
from llmgym.envs.ppd.weights.env import PPDWeightsEnv
from llmgym.envs.ppd.weights.kernels import WEIGHTS
from llmgym.errors import ResetNeeded
from tests.envs.ppd.driving import given_at, play, requests, routing


# ---------------------------------------------------------------------------------------------------------------- hidden
@pytest.mark.parametrize("information", ["none", "mean", "noisy"])
def test_nothing_hidden_is_observed(information: str) -> None:
    """I11: other true lengths of turns that have not completed, and other times to come, leave the observation as it is."""
    env = PPDRoutingEnv(scenario="stress", conversations=60, information=information)
    env.reset(seed=1)
    for step in range(40):
        obs, *_ = env.step(step % 2)
    state = env.lanes.state
    unfinished = state.request["e2e_s"][0] < 0.0
    assert unfinished.sum() > 20
    state.request["output"][0, unfinished] = 777
    state.conversation["output"][0, state.conversation["stage"][0] != OVER] = 777
    state.conversation["finish"] = 10**6
    state.conversation["turns"] += 3
    state.conversation["arrival_s"][0, state.lane["next"][0] :] *= 5.0
    again = np.zeros_like(obs)
    observing(env.simulation)(state, env.simulation.params, 0, again)
    assert np.array_equal(obs, again)
    state.conversation["prompt"][0, state.lane["current"][0]] += 1000
    observing(env.simulation)(state, env.simulation.params, 0, again)
    assert not np.array_equal(obs, again)


def test_the_mean_step_is_of_steps_that_have_ended() -> None:
    """I11: how long the running step will take is in no moving average that a router is shown."""
    env = PPDRoutingEnv(scenario="stress", conversations=60, information="none")
    _, info = env.reset(seed=3)
    nodes, rng, begun = env.lanes.state.node[0], np.random.default_rng(3), 0
    done = False
    while not done:
        before = nodes.copy()
        _, _, done, _, info = env.step(int(rng.integers(2)) if info["action_mask"][REMOTE] else LOCAL)
        none_ended = nodes["tick"] == before["tick"]
        begun += np.sum(none_ended & (nodes["steps"] > before["steps"]))
        assert np.array_equal(nodes["mean_step_s"][none_ended], before["mean_step_s"][none_ended])
    assert begun > 0


def test_weights_observe_only_what_happened() -> None:
    env = PPDWeightsEnv(scenario="small", rates=(4.0, 12.0))
    env.reset(seed=1)
    for _ in range(4):
        obs, *_ = env.step(3)
    state = env.lanes.state
    state.request["output"][0, state.request["e2e_s"][0] < 0.0] = 777
    state.conversation["arrival_s"][0, state.lane["next"][0] :] *= 5.0
    state.lane["later"] += 11
    again = np.zeros_like(obs)
    observing(env.simulation)(state, env.simulation.params, 0, again)
    assert np.array_equal(obs, again)


def test_predictions_are_as_good_as_they_are_said_to_be() -> None:
    shown = {}
    for information in ("exact", "noisy", "mean", "none"):
        env = PPDRoutingEnv(scenario="paper", reference="idle", conversations=60, information=information)
        obs, _ = env.reset(seed=4)
        done, pairs = False, []
        while not done:
            state = env.lanes.state
            conversation = state.conversation[0, state.lane["current"][0]]
            told = math.expm1(float(obs[env.layout["answer"]][0]) * math.log1p(8192))
            pairs.append((told, int(conversation["output"])))
            obs, _, done, _, _ = env.step(LOCAL)
        told, true = np.array(pairs).T
        shown[information] = (told, true)
    assert shown["exact"][0] == pytest.approx(shown["exact"][1], abs=0.01)
    assert 0.3 < np.corrcoef(np.log(shown["noisy"][0]), np.log(shown["noisy"][1]))[0, 1] < 0.999
    assert np.ptp(shown["none"][0]) < 0.01


# ---------------------------------------------------------------------------------------------------- worlds and rewards
def test_two_policies_meet_the_same_world() -> None:
    env = PPDRoutingEnv(scenario="small")
    worlds = [play(env, route, seed=7)[1]["world_checksum"] for route in (REMOTE, LOCAL)]
    assert worlds[0] == worlds[1] != play(env, LOCAL, seed=8)[1]["world_checksum"]
    weights = PPDWeightsEnv(scenario="small", rates=(4.0,))
    assert play(weights, 0, seed=7)[1]["world_checksum"] == worlds[0]


def test_conversations_are_what_they_say() -> None:
    env = PPDRoutingEnv(scenario="paper", reference="idle", conversations=3000, qps=100.0, max_inflight=None)
    env.reset(seed=0)
    turns = env.lanes.state.conversation["turns"][0]
    assert turns.mean() == pytest.approx(4.3, abs=0.15) and turns.min() == 2
    assert requests(env)["output"].mean() == pytest.approx(305, rel=0.05)
    mooncake = ppd_conversations.load("mooncake")
    assert mooncake.mean_turns == pytest.approx(1.47, abs=0.02)
    assert mooncake.opening.classes[0].points()[0].mean() > 10_000
    assert geometric_turns(2, 4.3, 64)[1] == pytest.approx(1.0 / 3.3)
    waves = PPDRoutingEnv(scenario="small", conversations=600)
    waves.reset(seed=0)
    arrivals = waves.lanes.state.conversation["arrival_s"][0]
    counts = np.bincount((arrivals % 9.0 // 3.0).astype(int), minlength=3)
    assert counts / counts.sum() == pytest.approx(np.array([0.5, 1.6, 0.9]) / 3.0, abs=0.06)


def test_contexts_stay_below_the_longest() -> None:
    env = PPDRoutingEnv(scenario="paper", reference="idle", conversations=300, longest=900, qps=20.0)
    play(env, LOCAL)
    conversations = env.lanes.state.conversation[0]
    assert conversations["context"].max() <= 900
    assert conversations["turns"].mean() < 4.0


def test_limit_and_epochs_cut_an_episode() -> None:
    env = PPDRoutingEnv(scenario="small", limit_s=4.0)
    env.reset(seed=0)
    truncated = terminated = False
    while not truncated:
        *_, terminated, truncated, info = env.step(LOCAL)
        assert not terminated
    assert info["metrics"]["duration_s"] == 4.0
    weights = PPDWeightsEnv(scenario="small", epochs=3, rates=(4.0,))
    weights.reset(seed=0)
    flags = [weights.step(2)[2:4] for _ in range(3)]
    assert flags == [(False, False), (False, False), (False, True)]
    with pytest.raises(ResetNeeded):
        weights.step(2)


def test_nobody_ever_answers_again() -> None:
    """An episode without a single later turn ends at the first step."""
    single = replace(given_at([0.0, 0.1], (10, 5), (10, 5), 2), turns=(1.0,))
    env = PPDRoutingEnv(scenario="small", workload=single, conversations=2)
    _, info = env.reset(seed=0)
    assert info["action_mask"].tolist() == [1, 1]
    *_, terminated, _, info = env.step(REMOTE)
    assert terminated and info["metrics"]["completed"] == 2 and info["metrics"]["later_turns"] == 0


@pytest.mark.parametrize("reward", ["relative", "slo"])
def test_where_no_later_turn_is_answered_times_have_no_value(reward: str) -> None:
    """Nobody served is not the fastest of all."""
    env = gymnasium.make(
        "llmgym/PPDRouting-v0", scenario="small", conversations=6, timeout_s=1e-6, reward=reward
    )
    total, metrics = play(env.unwrapped, lambda *_: LOCAL)
    assert metrics["completed"] == 0 and metrics["success"] == 0.0 and metrics["timeouts"] == 6
    for name in (
        "ttft_mean_s",
        "ttft_p99_s",
        "tpot_mean_s",
        "e2e_p50_s",
        "ttft_gain",
        "tpot_loss",
        "local_fraction",
    ):
        assert math.isnan(metrics[name]), name
    assert metrics["slo_attainment"] == 0.0
    assert total == pytest.approx(env.unwrapped.simulation.expected_return(metrics))


def test_references_come_from_the_table_of_a_cluster_with_p() -> None:
    """T0 and P0 of a cell; replicas alone are compared with one P and as many D as are left."""
    kwargs: dict[str, Any] = {"scenario": "small", "rates": (4.0,), "reference": "table", "conversations": 20}
    pair = PPDRoutingEnv(**kwargs)
    table = ppd_table.table_of(pair.simulation, PPDRouting)
    assert np.array_equal(pair.simulation.params.reference[0], table.ttft_s[REMOTE, ..., 0])
    replicas = PPDRoutingEnv(**kwargs, allocation="2R")
    assert np.array_equal(replicas.simulation.params.reference, pair.simulation.params.reference)
    assert PPDRoutingEnv(**kwargs, allocation="1R").simulation.params.reference.max() == 0.0
    total, metrics = play(pair, LOCAL)
    later = requests(pair)[20:]
    context, turn_type = cell_of(256, 512, 64)
    gain = 1.0 - later["ttft_s"] / table.ttft_s[REMOTE, context, turn_type, 0]
    assert metrics["ttft_gain"] == pytest.approx(float(gain.mean()), rel=1e-5)
    tpot = (later["e2e_s"] - later["ttft_s"]) / 63
    assert metrics["tpot_loss"] == pytest.approx(
        float(np.mean(tpot / table.tpot_s[REMOTE, context, turn_type, 0])) - 1.0, abs=1e-5
    )
    assert total == pytest.approx(20 * (metrics["ttft_gain"] - 6.0 * metrics["tpot_loss"]), rel=1e-6)


def test_rewards_are_paid_when_turns_complete() -> None:
    env = routing([0.0, 0.05], (100, 5), (50, 5), reward="slo", ttft_slo_s=0.05, tpot_slo_s=0.02)
    env.reset(seed=0)
    rewards = [env.step(action)[1] for action in (LOCAL, REMOTE)]
    assert sum(rewards) == pytest.approx(0.5)
    assert env.metrics()["slo_attainment"] == 0.5


def test_shaped_rewards_charge_for_the_neighbours() -> None:
    """By hand: a short turn completes while another decodes; what that one's TPOT is above its reference so far is charged."""
    plain, shaped = (
        routing([0.0, 0.1], (30, 2), (1500, 40), w_tpot=3.0, shaped=flag) for flag in (False, True)
    )
    (base, without), (total, charged) = play(plain, LOCAL), play(shaped, LOCAL)
    assert without["crowd_loss"] == 0.0 < charged["crowd_loss"]
    assert all(without[name] == charged[name] for name in charged if name != "crowd_loss")
    assert total == pytest.approx(base - 3.0 * 2 * charged["crowd_loss"], rel=1e-9)
    assert total == pytest.approx(shaped.simulation.expected_return(charged), rel=1e-9)
    # the first turn to complete had the second one beside it, whose prefill it had waited for; that one was alone at its end
    done = requests(shaped)[2:]
    end_s = done["arrival_s"] + done["e2e_s"]
    first, last = np.argsort(end_s)
    began_s = done["arrival_s"][last] + done["ttft_s"][last]
    state = shaped.lanes.state
    reference_s = float(state.conversation["tpot_ref_s"][0, last])
    rest_s = end_s[first] - began_s
    per_token_s = (done["e2e_s"][last] - done["ttft_s"][last]) / 39
    tokens = round(float(rest_s / per_token_s))
    assert charged["crowd_loss"] == pytest.approx((rest_s / tokens / reference_s - 1.0) / 2, rel=1e-3)


# --------------------------------------------------------------------------------------------------------------- weights
def test_the_compiled_rule_is_the_table() -> None:
    """A table that says local in some cells only: PPDWeights routes every turn as it says."""
    env = PPDWeightsEnv(scenario="paper", conversations=60, rates=(1.0, 8.0), reference="idle")
    table, params = env.simulation.table, env.simulation.params
    for k, weight in enumerate(WEIGHTS):
        assert np.array_equal(params.routes[k], table.routes(1.0, weight))
    routes = np.zeros_like(params.routes)
    routes[4, :, 2] = 1  # long_gen only
    env.simulation.params = params._replace(routes=routes)
    env.lanes.simulation = env.simulation
    env.lanes._start()
    play(env, 4)
    later = requests(env)[60:]
    conversations = env.lanes.state.conversation[0]
    contexts = []
    for c in conversations:
        first = env.lanes.state.request[0, np.flatnonzero(conversations["later"] == c["later"])[0]]
        context = first["prompt"] + first["output"]
        for turn in env.lanes.state.request[0, c["later"] : c["later"] + c["turns"] - 1]:
            contexts.append(context)
            context += turn["prompt"] + turn["output"]
    types = [cell_of(n, turn["prompt"], turn["output"])[1] for n, turn in zip(contexts, later)]
    assert np.array_equal(later["route"] == LOCAL, np.array(types) == 2)
    assert 0 < np.sum(later["route"] == LOCAL) < len(later)


def test_cells_are_those_of_the_released_code() -> None:
    for context in CONTEXTS:
        for turn_type, (prompt, output) in SECOND_TURN.items():
            tokens = 256 if context == "small" else 2048
            # 16 new tokens and an answer of 32 fill the "tiny" cells, but are looked up as balanced: their ratio is 0.5
            cell = "small_bal" if turn_type == "tiny" else turn_type
            assert cell_of(tokens, prompt, output) == (CONTEXTS.index(context), TYPES.index(cell))
    assert TYPES[cell_of(0, 10, 64)[1]] == "tiny"
    assert (
        cell_of(0, 1, 1)[0] == cell_of(512, 1, 1)[0] == 0
        and cell_of(513, 1, 1)[0] == cell_of(9000, 1, 1)[0] == 1
    )
    assert TYPES[cell_of(0, 25, 100)[1]] == "small_bal"  # 0.25 is balanced already
    assert TYPES[cell_of(0, 10, 0)[1]] == "mid_paste"
    rates = np.array([0.5, 1.0, 2.0, 4.0])
    assert [nearest(rates, q) for q in (0.0, 0.75, 1.4, 3.0, 99.0)] == [0, 1, 1, 3, 3]
    out = np.zeros(2, np.int64)
    routes = np.zeros((2, 9, 4), np.int8)
    routes[1, 8, 3] = 1
    lookup(routes, rates, np.array([[5000.0, 1024, 32, 7.0], [5000.0, 1024, 32, 1.0]]), out)
    assert out.tolist() == [1, 0]


def test_a_run_in_which_nobody_was_served_does_not_count_in_the_mean_of_a_cell() -> None:
    nan, names = math.nan, ("ttft_mean_s", "tpot_mean_s", "e2e_mean_s")
    rows = {
        "later_completed": np.array([3.0, 0.0, 1.0]),
        "completed": np.array([6.0, 0, 2]),
        "timeouts": np.array([0.0, 8, 0]),
    }
    rows |= {name: np.array([2.0, nan, 6.0]) for name in names}
    cell = ppd_table._together(rows)
    assert [cell[name] for name in names] == [3.0, 3.0, 3.0] and cell["success"] == 0.5
    none = ppd_table._together({name: values[1:2] for name, values in rows.items()})
    assert all(math.isnan(none[name]) for name in names)


def test_a_table_is_measured_once_and_its_key_knows_the_cluster(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setattr(cache_folder, "cache_dir", lambda: tmp_path / "kernels")
    ppd_table.TABLES.forget()
    built = []
    run_cell = ppd_table.run_cell
    monkeypatch.setattr(ppd_table, "run_cell", lambda *args: built.append(1) or run_cell(*args))
    cluster = PPDRouting(scenario="small", rates=(8.0,))
    first = ppd_table.table_of(cluster, PPDRouting, 1)
    cells = len(CONTEXTS) * len(TYPES)
    assert ppd_table.table_of(cluster, PPDRouting, 1).ttft_s is first.ttft_s and len(built) == cells
    ppd_table.TABLES.forget()
    again = ppd_table.table_of(PPDRouting(scenario="small", rates=(8.0,), w_tpot=1.0, qps=2.0), PPDRouting, 1)
    assert len(built) == cells
    assert all(
        np.array_equal(a, b, equal_nan=True) for a, b in zip(vars(first).values(), vars(again).values())
    )
    (stored,) = (tmp_path / "tables").iterdir()
    stored.write_bytes(b"damaged")
    ppd_table.TABLES.forget()
    ppd_table.table_of(cluster, PPDRouting, 1)
    assert len(built) == 2 * cells
    key = ppd_table.table_key(cluster, PPDRouting)
    for kwargs in (
        {"link_gb_per_s": 5.0},
        {"allocation": "1P_1pD"},
        {"latencies": Latencies(handoff_s=0.01)},
        {"profile": "h100/llama-3.1-8b"},
        {"rates": (4.0,)},
    ):
        other = PPDRouting(**{"scenario": "small", "rates": (8.0,), **kwargs})
        assert ppd_table.table_key(other, PPDRouting) != key, kwargs
    ppd_table.TABLES.forget()


# -------------------------------------------------------------------------------------------------------------- pictures
@pytest.mark.parametrize("mode", ["rgb_array", "ansi"])
@pytest.mark.parametrize("allocation", ["2P_2D", "4R"])
def test_pictures(mode: str, allocation: str) -> None:
    env = PPDRoutingEnv(scenario="stress", allocation=allocation, render_mode=mode, qps=6.0)
    env.reset(seed=0)
    early = env.render()
    for _ in range(60):
        env.step(LOCAL)
    late = env.render()
    if mode == "ansi":
        assert "waits" in late or "new tokens behind" in late
        assert late.count("\n") == 5 and late != early
    else:
        assert late.shape == (520, 860, 3) and late.dtype == np.uint8
        assert not np.array_equal(early, late)
