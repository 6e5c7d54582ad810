"""PPDRouting: the mechanics against hand computations, token by token, and the optimum of toy instances."""

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest

from llmgym import profiles
from llmgym.envs.ppd.routing.env import PPDRoutingEnv
from llmgym.envs.ppd.state import LOCAL, OVER, PD, REMOTE, D, R
from llmgym.errors import InvalidAction
from tests.envs.ppd.driving import LAW, play, requests, routing


# ------------------------------------------------------------------------------------------------------------- mechanics
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


# --------------------------------------------------------------------------------------------------------------- optimum
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
