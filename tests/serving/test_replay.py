"""Replays: against the environment, by hand, and what must never be lost."""

import gymnasium
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

import llmgym  # noqa: F401
from llmgym import profiles, workloads
from llmgym.errors import InvalidArgument, UnknownName
from llmgym.serving.replay import latency_figures, replay
from llmgym.workloads import Rows

LAWS = "h100/llama-3.1-8b"
SECOND = profiles.constant(1.0)


def rows_of(arrival, prompt, output):
    return Rows(np.asarray(arrival, float), np.asarray(prompt), np.asarray(output))


def random_rows(seed, n=150, rate=20.0, longest=500):
    rng = np.random.default_rng(seed)
    arrival = np.cumsum(rng.exponential(1 / rate, n))
    return rows_of(arrival - arrival[0], rng.integers(1, longest, n), rng.integers(1, longest, n))


@pytest.mark.parametrize("scheduling", ["sync", "async"])
@pytest.mark.parametrize("rule", ["vllm:watermark=0.02", "mc-sf", "faster-transformer"])
def test_a_replay_is_the_environment_that_follows_one_rule(scheduling, rule):
    """The same times to the bit, with preemption."""
    rows = random_rows(1)
    profile = profiles.load(LAWS)
    workload = workloads.Workload(
        "x", workloads.replay(rows, from_start=True), (workloads.RequestClass(rows=rows),)
    )
    shared = {"kv_capacity": 8_000, "budget": 512, "seats": 40, "block": 16, "scheduling": scheduling}
    shared |= {"overflow": "recompute", "first_token": "with-prefill"}
    env = gymnasium.make(
        "llmgym/KVQueue-v0",
        scenario="azure-conv",
        workload=workload,
        profile=profile,
        rate_rps=workload.mean_rate_rps,
        requests=len(rows),
        chunk=512,
        information="none",
        action="rule",
        rules=(rule,),
        every=2**30,
        horizon_s=1e6,
        waiting_cap=2**20,
        **shared,
    )
    env.reset(seed=0)
    *_, info = env.step(0)
    asked = env.unwrapped.lanes.state.request[0]
    found = replay(rows, profile, rule=rule, **shared)
    np.testing.assert_array_equal(found.first_s, rows.arrival_s + asked["ttft_s"].astype(float))
    np.testing.assert_array_equal(found.last_s, rows.arrival_s + asked["e2e_s"].astype(float))
    assert found.preemptions == info["metrics"]["preemptions"]
    assert found.batches == info["metrics"]["batches"]
    assert found.kv_mean == pytest.approx(info["metrics"]["kv_mean"])
    assert found.batch_mean_s == pytest.approx(info["metrics"]["batch_mean_s"])


def test_ranks_wait_for_the_slowest():
    """A rank that decodes one token a step takes as long as the other's prefill of 2,000."""
    law = profiles.linear(1.0, 0.0, 1e-3)
    rows = rows_of([0.0, 3.5], [1, 2000], [6, 1])
    found = replay(rows, law, ranks=2, scheduling="sync", kv_capacity=4_096)
    alone = replay(rows_of([0.0], [1], [6]), law, scheduling="sync", kv_capacity=4_096)
    assert alone.last_s[0] == pytest.approx(6.001)
    # Four steps of 1 s, the fourth ends at 4.001; then one of 1 + 2 s with the prefill, then the last of 1 s.
    assert found.first_s[1] == pytest.approx(7.001)
    assert found.last_s[0] == pytest.approx(8.001)
    assert found.rank.tolist() == [0, 1]


def test_clients_keep_their_requests_in_flight():
    rows = rows_of([0.0] * 6, [4] * 6, [3] * 6)
    found = replay(rows, SECOND, scheduling="sync", kv_capacity=1_000, clients=2)
    np.testing.assert_allclose(found.arrival_s, [0, 0, 3, 3, 6, 6])
    np.testing.assert_allclose(found.last_s, [3, 3, 6, 6, 9, 9])


def test_with_asynchronous_scheduling_an_arrival_misses_a_step():
    rows = rows_of([0.0, 0.5], [4, 4], [3, 1])
    found = replay(rows, SECOND, kv_capacity=1_000)
    np.testing.assert_allclose(found.first_s, [1.0, 3.0])


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    ranks=st.integers(1, 3),
    clients=st.none() | st.integers(1, 8),
    capacity=st.integers(70, 400),
)
def test_every_request_is_served_once_and_in_order_of_time(seed, ranks, clients, capacity):
    rows = random_rows(seed, n=40, longest=480)
    rows = rows_of(rows.arrival_s, rows.prompt_tokens, rows.output_tokens)
    found = replay(rows, SECOND, kv_capacity=16 * capacity, ranks=ranks, clients=clients, seats=8)
    assert np.isfinite(found.last_s).all() and found.kv_peak <= 1.0
    assert (found.first_s > found.arrival_s).all() and (found.last_s >= found.first_s).all()
    assert ((found.last_s - found.first_s) >= rows.output_tokens - 1 - 1e-3).all()
    if clients is not None:
        events = np.concatenate([found.arrival_s, found.last_s])
        change = np.repeat([1, -1], 40)
        for rank in range(ranks):
            mine = np.tile(found.rank == rank, 2)
            order = np.lexsort((change[mine], np.round(events[mine], 3)))
            assert np.cumsum(change[mine][order]).max() <= clients


def test_figures_by_hand():
    figures = latency_figures(*(np.array(x, float) for x in ([0, 1], [2, 4], [4, 4])), np.array([3, 1]))
    assert figures["ttft_p50_s"] == pytest.approx(2.5) and figures["e2e_p50_s"] == pytest.approx(3.5)
    assert figures["tpot_p99_s"] == pytest.approx(1.0)  # the request with one token has none
    assert figures["makespan_s"] == 4.0 and figures["output_tokens_per_s"] == 1.0


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"ranks": 0}, InvalidArgument, "ranks=0: expected a whole number from 1 to 2"),
        ({"ranks": 3}, InvalidArgument, "ranks=3"),
        ({"clients": 0}, InvalidArgument, "clients=0"),
        ({"budget": 0}, InvalidArgument, "budget=0"),
        ({"seats": -1}, InvalidArgument, "seats=-1"),
        ({"block": 12}, InvalidArgument, "block=12: expected a power of two"),
        ({"kv_capacity": 40}, InvalidArgument, "kv_capacity=32: request 1 needs 50 tokens"),
        ({"scheduling": "later"}, UnknownName, "later"),
        ({"overflow": "explode"}, UnknownName, "explode"),
        ({"first_token": "never"}, UnknownName, "never"),
        ({"rule": "nobody"}, UnknownName, "nobody"),
    ],
)
def test_wrong_arguments_are_told(change, error, message):
    with pytest.raises(error, match=message):
        replay(rows_of([0, 0], [10, 25], [10, 25]), SECOND, **({"kv_capacity": 1_000} | change))
