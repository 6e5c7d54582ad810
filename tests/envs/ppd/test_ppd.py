"""PPDRouting and PPDWeights: the mechanics against hand computations, what is hidden, and wrong input."""

import math
from dataclasses import replace
from itertools import product
from typing import Any

import gymnasium
import numpy as np
import pytest

import llmgym
from llmgym import profiles, workloads
from llmgym.core import cache_folder
from llmgym.core.lanes import HOLD, observing
from llmgym.envs.ppd import conversations as ppd_conversations
from llmgym.envs.ppd import table as ppd_table
from llmgym.envs.ppd.cells import CONTEXTS, SECOND_TURN, TYPES, cell_of, lookup, nearest
from llmgym.envs.ppd.conversations import Conversations, fixed_turns, geometric_turns
from llmgym.envs.ppd.latency import LLAMA_8B_H100, Latencies
from llmgym.envs.ppd.routing.env import PPDRouting, PPDRoutingEnv, PPDRoutingVectorEnv
from llmgym.envs.ppd.scenarios import SCENARIOS, parse_allocation
from llmgym.envs.ppd.state import D_RUN, D_WAIT, LOCAL, OVER, PD, REMOTE, UNROUTED, D, P, R, turn_numbers
from llmgym.envs.ppd.weights.env import PPDWeightsEnv, PPDWeightsVectorEnv
from llmgym.envs.ppd.weights.kernels import WEIGHTS
from llmgym.errors import InvalidAction, InvalidArgument, ProfileError, ResetNeeded, UnknownName
from llmgym.workloads import RequestClass, Rows, Workload, fixed, replay

ROUTING, WEIGHING = "llmgym/PPDRouting-v0", "llmgym/PPDWeights-v0"
LAW = replace(LLAMA_8B_H100, local_rate_s2=0.0)
"""Without the wait that grows with the rate of conversations, which no hand computation of one or two of them needs."""


def given_at(
    arrival_s: list[float], first: tuple[int, int], later: tuple[int, int], turns: int, **more: Any
) -> Conversations:
    """Conversations that begin at given times, all turns from the second on of one length."""
    rows = Rows(np.array(arrival_s), np.full(len(arrival_s), first[0]), np.full(len(arrival_s), first[1]))
    opening = Workload("given", replay(rows, from_start=True), (RequestClass(rows=rows),))
    following = Workload("later", workloads.poisson(1.0), (RequestClass(fixed(later[0]), fixed(later[1])),))
    return Conversations("given", opening, following, (0.0,) * (turns - 1) + (1.0,), **more)


def routing(
    arrival_s: list[float], first: Any, later: Any, turns: int = 2, think_s: float = 0.0, **kwargs: Any
):
    conversations = given_at(arrival_s, first, later, turns, think_s=think_s)
    settings = {
        "scenario": "paper",
        "reference": "idle",
        "allocation": "1P_1D",
        "conversations": len(arrival_s),
        "latencies": LAW,
    }
    rate = conversations.opening.mean_rate_rps
    return PPDRoutingEnv(
        **{**settings, "qps": rate if math.isfinite(rate) else 1.0, "workload": conversations, **kwargs}
    )


def play(env: Any, choose: Any, seed: int = 0) -> tuple[float, dict[str, float]]:
    """One episode of an action, of a list of actions or of a function of the step."""
    env.reset(seed=seed)
    total, step, done = 0.0, 0, False
    while not done:
        action = choose(step) if callable(choose) else choose[step] if isinstance(choose, list) else choose
        _, reward, terminated, truncated, info = env.step(action)
        total, step, done = total + reward, step + 1, terminated or truncated
    return total, info["metrics"]


def requests(env: Any) -> np.ndarray:
    """The turns of the episode."""
    state = env.lanes.state
    return state.request[0, turn_numbers(state, 0)]


# ---------------------------------------------------------------------------------------------------------- mechanics


@pytest.mark.parametrize("answer_kv_hit", [False, True])
def test_one_conversation_alone_takes_what_the_law_says(answer_kv_hit: bool) -> None:
    """TTFT of both routes on an idle cluster, and TPOT, token by token."""
    env = routing([1.0], (300, 50), (200, 40), answer_kv_hit=answer_kv_hit)
    tokens = 300 + 50 + 200
    play(env, REMOTE)
    first, second = requests(env)
    assert first["ttft_s"] == pytest.approx(LAW.remote_ttft_s(300, 300), rel=1e-6)
    # P has the first prompt but not the answer, which D made
    assert second["ttft_s"] == pytest.approx(LAW.remote_ttft_s(50 + 200, tokens), rel=1e-6)
    steps = np.arange(1, 40)
    rest_s = np.sum(LAW.step_s + LAW.sequence_s + LAW.context_token_s * (tokens + steps))
    assert second["e2e_s"] - second["ttft_s"] == pytest.approx(rest_s, rel=1e-5)
    assert env.metrics()["kv_moved_bytes"] == (300 + tokens) * 131072

    play(env, LOCAL)
    second = requests(env)[1]
    new = 200 if answer_kv_hit else 250
    assert second["ttft_s"] == pytest.approx(LAW.local_ttft_s(new, tokens), rel=1e-6)
    assert env.metrics()["kv_moved_bytes"] == 300 * 131072
    assert env.metrics()["prefilled_d_tokens"] == new


def test_a_turn_on_d_waits_for_the_rate_of_conversations_and_no_other_does() -> None:
    """100 conversations, 5 a second: 15 ms on average on D, nothing through P and nothing on replicas."""
    arrivals = [0.2 * i for i in range(100)]
    slow = replace(LAW, local_rate_s2=3e-3)
    for allocation, route, wait_s in (("1P_1D", LOCAL, 0.015), ("1P_1D", REMOTE, 0.0), ("2R", LOCAL, 0.0)):
        ttft_s = []
        for law in (LAW, slow):
            env = routing(arrivals, (10, 2), (10, 2), latencies=law, allocation=allocation)
            play(env, route)
            ttft_s.append(float(np.mean(requests(env)["ttft_s"][100:])))
        # a step of 8 ms that has just begun is waited for or not
        assert ttft_s[1] - ttft_s[0] == pytest.approx(wait_s, abs=0.004 if wait_s else 1e-9)


def test_p_forgets_what_it_never_saw() -> None:
    """After a local turn P lacks two answers and a prompt."""
    env = routing([0.0], (100, 10), (40, 20), turns=3)
    play(env, [LOCAL, REMOTE])
    third = requests(env)[2]
    assert third["ttft_s"] == pytest.approx(LAW.remote_ttft_s(10 + 40 + 20 + 40, 210), rel=1e-6)
    play(env, [REMOTE, REMOTE])
    assert requests(env)[2]["ttft_s"] == pytest.approx(LAW.remote_ttft_s(20 + 40, 210), rel=1e-6)


def test_a_slow_link_lengthens_the_step_that_receives() -> None:
    fast, slow = (routing([0.0], (1000, 2), (1000, 2), link_gb_per_s=b) for b in (150.0, 10.0))
    for env in (fast, slow):
        play(env, REMOTE)
    more_s = 2002 * (131072 / 10e9 - LAW.receive_token_s)
    assert requests(slow)[1]["ttft_s"] - requests(fast)[1]["ttft_s"] == pytest.approx(more_s, rel=1e-5)


def test_a_receive_and_a_prefill_hold_up_who_decodes() -> None:
    """Conversation 0 decodes while the second turn of conversation 1 comes in, on either way."""
    quiet = routing([0.0], (100, 400), (100, 2))
    play(quiet, LOCAL)
    alone_s = requests(quiet)[0]["e2e_s"]
    slow = {}
    for route in (LOCAL, REMOTE):
        env = routing([0.0, 0.5], (100, 400), (1000, 2), limit_s=30.0)
        # the first turns are equal, so the second turn of conversation 0 comes first
        play(env, [route, LOCAL])
        slow[route] = requests(env)[1]["e2e_s"]
    assert slow[LOCAL] > alone_s and slow[REMOTE] > alone_s
    # what a prefill of 1400 tokens takes beyond a memory-bound step, against one receive; each held up decodes in one step
    extra_s = max(LAW.prefill_step_s + LAW.prefill_token_s * 1400 - LAW.step_s, 0.0)
    receive_s = LAW.receive_s + LAW.receive_token_s * 1500
    assert slow[LOCAL] - slow[REMOTE] == pytest.approx(extra_s - receive_s, abs=1.5e-3)


def test_p_serves_in_turn_and_its_hand_over_does_not_overlap() -> None:
    env = routing([0.0, 0.0, 0.0], (500, 2), (10, 2))
    play(env, LOCAL)
    first = np.sort(requests(env)["ttft_s"][:3])
    assert np.diff(first) == pytest.approx([LAW.handoff_s + 500 * LAW.prefill_token_s] * 2, abs=0.012)


def test_a_long_prompt_is_prefilled_in_chunks() -> None:
    env = routing([0.0], (100, 2), (4000, 2), chunk=1000)
    play(env, LOCAL)
    steps_s = 4 * (LAW.prefill_step_s + 1000 * LAW.prefill_token_s) + LAW.step_s
    expected = (
        LAW.local_s + 4102 * LAW.local_token_s + steps_s
    )  # 4002 tokens miss: 4 chunks of 1000 and 2 tokens
    assert requests(env)[1]["ttft_s"] == pytest.approx(expected, rel=1e-5)


def test_an_evicted_conversation_is_prefilled_whole() -> None:
    """Two conversations that do not both fit into the cache: the one that pauses is thrown out."""
    env = routing([0.0, 1.0], (1500, 10), (50, 10), think_s=2.0, kv_capacity=2500, longest=2400)
    obs, _ = env.reset(seed=0)
    assert obs[env.layout["d.resident"]] == 0.0
    env.step(LOCAL)
    metrics = env.metrics()
    assert metrics["evictions"] >= 1
    play(env, LOCAL)
    assert env.metrics()["prefilled_d_tokens"] == 2 * (1500 + 10 + 50)
    roomy = routing([0.0, 1.0], (1500, 10), (50, 10), think_s=2.0)
    play(roomy, LOCAL)
    assert roomy.metrics()["prefilled_d_tokens"] == 2 * (10 + 50) and roomy.metrics()["evictions"] == 0


def test_who_does_not_fit_any_more_is_preempted_and_still_answers_in_full() -> None:
    env = routing([0.0, 0.01, 0.02], (300, 300), (10, 300), kv_capacity=1300, longest=1000)
    _, metrics = play(env, LOCAL)
    assert metrics["preemptions"] > 0 and metrics["success"] == 1.0 and metrics["kv_peak"] <= 1.0
    answered = requests(env)
    assert metrics["output_tokens_per_s"] * metrics["duration_s"] == pytest.approx(answered["output"].sum())


def test_p_waits_while_the_buffer_of_d_is_full() -> None:
    """D takes one sequence at a time, and its buffer holds one transfer."""
    one = 500 * 131072 / 1e9
    env = routing([0.0] * 4, (500, 60), (10, 2), seats=1, buffer_gb=1.5 * one)
    env.reset(seed=0)
    roomy = routing([0.0] * 4, (500, 60), (10, 2), seats=1)
    roomy.reset(seed=0)
    # when the first conversation has been answered, D takes the second; two others are through P, or only one
    assert env.lanes.state.link["in_flight"][0, 1] == 1
    assert roomy.lanes.state.link["in_flight"][0, 1] == 2
    for lane_env in (env, roomy):
        _, metrics = play(lane_env, LOCAL)
        assert metrics["completed"] == 8


def test_a_timeout_ends_a_conversation_and_costs() -> None:
    env = routing([0.0], (100, 2), (50, 400), turns=4, timeout_s=1.0)
    total, metrics = play(env, LOCAL)
    assert metrics["timeouts"] == metrics["later_timeouts"] == 1 and metrics["requests"] == 2
    assert total == -5.0
    assert env.lanes.state.lane["open"][0] == 0


def test_the_gate_lets_so_many_in_and_no_more() -> None:
    env = PPDRoutingEnv(scenario="paper", reference="idle", conversations=80, qps=50.0, max_inflight=7)
    env.reset(seed=0)
    most = 0
    while not env.step(LOCAL)[2]:
        state = env.lanes.state
        stages = state.conversation["stage"][0]
        open_now = int(np.sum((stages >= 2) & (stages < OVER)))
        assert open_now == state.lane["open"][0] <= 7
        most = max(most, open_now)
    assert most == 7


def test_replicas_and_pd_nodes_have_no_other_route() -> None:
    env = PPDRoutingEnv(
        scenario="small", allocation="1P_1D_1pD_1R", gpus=4, conversations=40, invalid_cost=0.5
    )
    _, info = env.reset(seed=3)
    seen = set()
    done, mask = False, info["action_mask"]
    invalid = 0
    while not done:
        state = env.lanes.state
        conversation = state.conversation[0, state.lane["current"][0]]
        role = int(env.simulation.nodes[conversation["d"]])
        assert mask.tolist() == ([1, 1] if role == D else [0, 1])
        assert (conversation["p"] == -1) == (role == R)
        seen.add(role)
        invalid += role != D
        _, _, done, _, info = env.step(REMOTE)
        mask = info["action_mask"]
    assert seen == {D, PD, R}
    assert info["metrics"]["invalid_actions"] == invalid and info["metrics"]["penalty"] == 0.5 * invalid
    strict = PPDRoutingEnv(scenario="small", allocation="2R", conversations=5, invalid_action="raise")
    strict.reset(seed=0)
    with pytest.raises(InvalidAction, match="masked"):
        strict.step(REMOTE)


def test_a_conversation_keeps_its_nodes_and_the_hash_spreads_them() -> None:
    env = PPDRoutingEnv(scenario="paper", reference="idle", allocation="2P_2D", conversations=400, qps=20.0)
    env.reset(seed=1)
    before = env.lanes.state.conversation[["p", "d"]][0].copy()
    play(env, LOCAL, seed=1)
    assert np.array_equal(before, env.lanes.state.conversation[["p", "d"]][0])
    share = np.bincount(before["d"], minlength=4)[2:] / 400
    assert share == pytest.approx([0.5, 0.5], abs=0.1)
    assert np.array_equal(before["p"], before["d"] - 2)  # one hash for both


def test_the_paper_interference_multiplies_crowded_steps() -> None:
    """60 sequences decode on an R node while conversations come in: full prefills cost 48 % of a step more."""
    times = {}
    for interference in ("physical", "paper"):
        env = PPDRoutingEnv(
            scenario="paper",
            reference="idle",
            allocation="1R",
            gpus=1,
            workload="large_mid_bal",
            qps=30.0,
            conversations=90,
            max_inflight=None,
            timeout_s=300.0,
            interference=interference,
        )
        play(env, LOCAL)
        first = requests(env)[:90]
        times[interference] = float(np.mean(first["e2e_s"] - first["ttft_s"]))
    assert 1.02 < times["paper"] / times["physical"] < 1.48


def test_the_request_rate_is_a_moving_average_or_the_mean_of_all() -> None:
    shown = {}
    for rate in ("recent", "average"):
        env = PPDRoutingEnv(
            scenario="paper", reference="idle", workload="small_tiny", qps=4.0, conversations=120, rate=rate
        )
        obs, _ = env.reset(seed=0)
        rates, means = [], []
        done = False
        while not done:
            episode = env.lanes.state.lane[0]
            rates.append(20.0 * float(obs[env.layout["rate"]][0]))
            means.append(float(episode["sent"] / episode["clock_s"]))
            obs, _, done, _, _ = env.step(LOCAL)
        late = slice(len(rates) // 2, None)
        assert 7.0 < np.mean(rates[late]) < 10.5  # 4 conversations a second of two turns each
        shown[rate] = rates[late], means[late]
    assert shown["average"][0] == pytest.approx(shown["average"][1], rel=1e-5)
    assert np.std(shown["recent"][0]) > 2.0 * np.std(shown["average"][0])


def test_profiles_set_the_cost_of_steps() -> None:
    slow = PPDRoutingEnv(
        scenario="paper",
        reference="idle",
        conversations=40,
        profile=profiles.linear(0.02, 0.0, 1e-4, kv_capacity_tokens=400_000),
    )
    metrics = play(slow, LOCAL)[1]
    assert metrics["tpot_mean_s"] == pytest.approx(0.02, rel=0.15)
    real = PPDRoutingEnv(scenario="real", conversations=30)
    assert real.simulation.kv_capacity == real.simulation.profile.kv_capacity_tokens()
    assert play(real, REMOTE)[1]["success"] == 1.0


# ------------------------------------------------------------------------------------------------------------- optimum


def plans_of(env: Any, decisions: int) -> dict[tuple[int, ...], float]:
    """The return of every plan of an episode with so many decisions."""
    return {plan: play(env, list(plan))[0] for plan in product((REMOTE, LOCAL), repeat=decisions)}


@pytest.mark.parametrize("w_tpot", [0.0, 1.0, 10.0])
def test_the_optimum_of_a_toy_instance(w_tpot: float) -> None:
    """I12: two conversations far apart. Nobody is held up, so every turn should stay on D whatever TPOT weighs."""
    plans = plans_of(routing([0.0, 20.0], (200, 20), (100, 20), turns=3, w_tpot=w_tpot), 4)
    best = max(plans, key=plans.__getitem__)
    assert best == (LOCAL,) * 4
    gain = 0.0
    for tokens in (220 + 100, 340 + 100):
        p0 = LAW.step_s + LAW.sequence_s + LAW.context_token_s * tokens
        mean_s = LAW.step_s + LAW.sequence_s + LAW.context_token_s * (tokens + 10.0)
        gain += (
            1.0
            - LAW.local_ttft_s(120, tokens) / LAW.remote_ttft_s(120, tokens)
            - w_tpot * (mean_s / p0 - 1.0)
        )
    assert plans[best] == pytest.approx(2.0 * gain, rel=1e-4)


def test_the_optimum_of_a_toy_instance_turns_with_the_weight() -> None:
    """I12: a second conversation pastes 1500 tokens while the first decodes; where that should be prefilled depends on w_tpot.

    On D it saves time to its first token, and stops the first conversation for its prefill instead of for a receive.
    """
    tokens, new = 32 + 1500, 1502
    t0 = LAW.remote_ttft_s(new, tokens)
    gain = 1.0 - LAW.local_ttft_s(new, tokens) / t0
    stopped_s = LAW.prefill_step_s + LAW.prefill_token_s * new - LAW.step_s
    received_s = LAW.receive_s + LAW.receive_token_s * tokens
    p0 = LAW.step_s + LAW.sequence_s + LAW.context_token_s * tokens
    break_even = gain / ((stopped_s - received_s) / 39 / p0)
    assert break_even == pytest.approx(4.4, abs=0.2)
    for factor, optimum in ((0.7, (LOCAL, LOCAL)), (1.4, (LOCAL, REMOTE))):
        plans = plans_of(routing([0.0, 0.1], (30, 2), (1500, 40), w_tpot=factor * break_even), 2)
        assert max(plans, key=plans.__getitem__) == optimum, plans


# -------------------------------------------------------------------------------------------------------------- hidden


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


# ------------------------------------------------------------------------------------------------- worlds and rewards


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


# ------------------------------------------------------------------------------------------------------------- weights


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


# ------------------------------------------------------------------------------------------------------------ pictures


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


# --------------------------------------------------------------------------------------------------------- wrong input


@pytest.mark.parametrize(
    ("kwargs", "error", "says"),
    [
        ({"scenario": "huge"}, UnknownName, "small"),
        ({"qqps": 3.0}, UnknownName, "qps"),
        ({"reward": "latency"}, UnknownName, "relative"),
        ({"allocation": ""}, InvalidArgument, "allocation=''"),
        ({"allocation": []}, InvalidArgument, "allocation="),
        ({"allocation": "0P_2D"}, InvalidArgument, "counts from 1"),
        ({"allocation": "1P_1X"}, InvalidArgument, "1P_1X"),
        ({"allocation": "1P_1P"}, InvalidArgument, "1P_1P"),
        ({"allocation": "2P"}, InvalidArgument, "P needs D"),
        ({"allocation": "2D"}, InvalidArgument, "P needs D"),
        ({"allocation": "2P_3D", "gpus": 4}, InvalidArgument, "5 nodes.*gpus=4"),
        ({"allocation": "1P_1D", "profile": "h100/llama-2-70b-tp4"}, InvalidArgument, "4 GPU.*gpus=2"),
        ({"profile": "h100/llama-2-70b"}, ProfileError, "do not fit"),
        ({"kv_capacity": 8000}, InvalidArgument, "kv_capacity=8000.*fit nowhere"),
        ({"link_gb_per_s": 0.0}, InvalidArgument, "link_gb_per_s=0.0"),
        ({"link_gb_per_s": -5.0}, InvalidArgument, "link_gb_per_s=-5.0"),
        ({"buffer_gb": 0.0}, InvalidArgument, "buffer_gb=0.0"),
        ({"w_tpot": -1.0}, InvalidArgument, "w_tpot=-1.0"),
        ({"w_ttft": float("nan")}, InvalidArgument, "w_ttft=nan"),
        ({"qps": 0.0}, InvalidArgument, "qps=0.0"),
        ({"conversations": 0}, InvalidArgument, "conversations=0"),
        ({"max_inflight": 0}, InvalidArgument, "max_inflight=0"),
        ({"max_turns": 65}, InvalidArgument, "max_turns=65"),
        ({"rates": ()}, InvalidArgument, "rates="),
        ({"rates": (4.0, 2.0)}, InvalidArgument, "rising"),
        ({"rates": 4.0}, InvalidArgument, "rates=4.0"),
        ({"answer_kv_hit": 1}, InvalidArgument, "answer_kv_hit=1"),
        ({"interference": "none"}, UnknownName, "physical"),
        ({"workload": "chats"}, UnknownName, "chat"),
        ({"profile": 3}, InvalidArgument, "profile=3"),
        ({"latencies": {}}, InvalidArgument, "latencies="),
        ({"invalid_cost": -1.0}, InvalidArgument, "invalid_cost=-1.0"),
        ({"shaped": 1}, InvalidArgument, "shaped=1"),
        ({"shaped": True, "reward": "slo"}, InvalidArgument, "shaped=True"),
        ({"timeout_cost": -5.0}, InvalidArgument, "timeout_cost=-5.0"),
        ({"shape": (0.0, 0.0)}, InvalidArgument, "multipliers"),
    ],
    ids=lambda v: str(v) if isinstance(v, dict) else "",
)
def test_wrong_arguments_are_named(kwargs: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        PPDRoutingEnv(**kwargs)


@pytest.mark.parametrize(
    ("kwargs", "error", "says"),
    [
        ({"allocation": ""}, InvalidArgument, "allocation=''"),
        ({"allocation": "2P_3D", "gpus": 4}, InvalidArgument, "5 nodes.*gpus=4"),
        ({"link_gb_per_s": 0.0}, InvalidArgument, "link_gb_per_s=0.0"),
        ({"kv_capacity": 8000}, InvalidArgument, "kv_capacity=8000.*fit nowhere"),
        ({"profile": "h100/llama-2-70b"}, ProfileError, "do not fit"),
        ({"w_tpot": -1.0, "reward": "relative"}, InvalidArgument, "w_tpot=-1.0"),
        ({"epoch_s": 0.0}, InvalidArgument, "epoch_s=0.0"),
        ({"epochs": 0}, InvalidArgument, "epochs=0"),
        ({"shaped": True}, InvalidArgument, "shaped=True"),
    ],
    ids=lambda v: str(v) if isinstance(v, dict) else "",
)
def test_wrong_arguments_of_weights_are_named(
    kwargs: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        PPDWeightsEnv(**kwargs)


def test_wrong_conversations_and_latencies() -> None:
    for call, says in (
        (lambda: fixed_turns(((1, 1),)), "two pairs"),
        (lambda: fixed_turns(((1, 1), (2, 2), (3, 3))), "equal"),
        (lambda: geometric_turns(3, 2.0, 9), "mean=2.0"),
        (lambda: replace(given_at([0.0], (1, 1), (1, 1), 2), turns=()), "turns="),
        (lambda: replace(given_at([0.0], (1, 1), (1, 1), 2), think_s=-1.0), "think_s=-1.0"),
        (lambda: Conversations("x", "chat", "chat", (1.0,)), "opening='chat'"),
        (lambda: Latencies(handoff_s=-0.1), "handoff_s=-0.1"),
        (lambda: Latencies(step_s=0.0), "step_s=0.0"),
    ):
        with pytest.raises(InvalidArgument, match=says):
            call()
    assert parse_allocation("1P_2D_1pD", 4) == (P, D, D, PD)


@pytest.mark.parametrize("action", [-1, 2, 1.0, "1", None, [1]])
def test_wrong_actions_are_refused(action: Any) -> None:
    env = PPDRoutingEnv(scenario="small")
    env.reset(seed=0)
    with pytest.raises(InvalidAction):
        env.step(action)


def test_they_are_registered_and_scenarios_are_made() -> None:
    assert {ROUTING, WEIGHING} <= set(llmgym.env_ids())
    for name, scenario in SCENARIOS.items():
        env = gymnasium.make(ROUTING, scenario=name, reference="idle")
        assert env.unwrapped.simulation.scenario.about == scenario.about
        assert set(env.unwrapped.simulation.headline_metrics) <= set(env.unwrapped.simulation.metric_names)
        assert env.unwrapped.simulation.settings()["workload"] == scenario.workload
    envs = PPDRoutingVectorEnv(2, scenario="small")
    envs.reset(seed=0)
    envs.lanes.step(HOLD)
    stages = envs.lanes.state.conversation["stage"]
    assert np.isin(stages, (UNROUTED, D_RUN, D_WAIT)).any()
    assert PPDWeightsVectorEnv(2, scenario="small", rates=(4.0,)).single_action_space.n == len(WEIGHTS)
