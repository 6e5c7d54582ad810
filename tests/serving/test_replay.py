"""Replays: against the environment, by hand, and what must never be lost."""

import os
import signal
import subprocess
import sys
import textwrap

import gymnasium
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

import llmgym  # noqa: F401
from llmgym import profiles, workloads
from llmgym.cli import main
from llmgym.envs.kv.provision.env import KVProvision
from llmgym.envs.kv.queue.env import KVQueue
from llmgym.errors import InvalidArgument, NoProgress, UnknownName
from llmgym.serving.replay import latency_figures, replay
from llmgym.serving.rules import CATALOGUE, Rule
from llmgym.serving.targets import Target
from llmgym.workloads import Rows

LAWS = "h100/llama-3.1-8b"
SECOND = profiles.constant(1.0)


def rows_of(arrival, prompt, output):
    return Rows(np.asarray(arrival, float), np.asarray(prompt), np.asarray(output))


def random_rows(seed, n=150, rate=20.0, longest=500):
    rng = np.random.default_rng(seed)
    arrival = np.cumsum(rng.exponential(1 / rate, n))
    return rows_of(arrival - arrival[0], rng.integers(1, longest, n), rng.integers(1, longest, n))


def environment(rows, profile, rule, **settings):
    """KVQueue with the requests of the rows and one rule, played to its end by one action; returns the records of the requests, and
    the metrics.
    """
    workload = workloads.Workload(
        "x", workloads.replay(rows, from_start=True), (workloads.RequestClass(rows=rows),)
    )
    env = gymnasium.make(
        "llmgym/KVQueue-v0",
        scenario="azure-conv",
        workload=workload,
        profile=profile,
        rate_rps=workload.mean_rate_rps,
        requests=len(rows),
        chunk=settings["budget"],
        action="rule",
        rules=(rule,),
        every=2**16,
        waiting_cap=2**20,
        **({"horizon_s": 1e6, "information": "exact"} | settings),
    )
    env.reset(seed=0)
    *_, info = env.step(0)
    return env.unwrapped.lanes.state.request[0], info["metrics"]


ENGINE = {"seats": 40, "block": 16, "overflow": "recompute", "first_token": "with-prefill"}


def check_the_same(rows, rule, **settings):
    """A replay and the environment that follows the rule: the same times to the bit. Returns the preemptions."""
    profile = profiles.load(LAWS)
    shared = ENGINE | settings
    requests, metrics = environment(rows, profile, rule, **shared)
    result = replay(rows, profile, rule=rule, information="exact", **shared)
    assert result.unfinished == 0
    np.testing.assert_array_equal(result.first_s, rows.arrival_s + requests["ttft_s"].astype(float))
    np.testing.assert_array_equal(result.last_s, rows.arrival_s + requests["e2e_s"].astype(float))
    assert result.preemptions == metrics["preemptions"]
    assert result.batches == metrics["batches"]
    assert result.kv_mean == pytest.approx(metrics["kv_mean"])
    assert result.batch_mean_s == pytest.approx(metrics["batch_mean_s"])
    return result.preemptions


@pytest.mark.parametrize("scheduling", ["sync", "async", "async-held"])
@pytest.mark.parametrize(
    "rule",
    [
        "vllm:watermark=0.02",
        "vllm:victim=largest",
        "mc-sf",
        "smallest-area",
        "faster-transformer",
        "class-budgets",
    ],
)
def test_a_replay_is_the_environment_that_follows_one_rule(scheduling, rule):
    preemptions = check_the_same(random_rows(1), rule, kv_capacity=8_000, budget=512, scheduling=scheduling)
    assert preemptions > 0 or not rule.startswith("vllm")


@pytest.mark.parametrize(("seed", "capacity"), [(4, 1504), (9, 2000), (52, 1600), (54, 1808)])
def test_a_replay_is_the_environment_also_after_clearing(seed, capacity):
    """The engine is empty then, and held up for one batch."""
    rows = random_rows(seed, n=12, rate=2.0)
    assert check_the_same(rows, "alpha-clearing", kv_capacity=capacity, budget=128, scheduling="async") > 0


def test_ranks_wait_for_the_slowest():
    """A rank that decodes one token a step takes as long as the other's prefill of 2,000."""
    law = profiles.linear(1.0, 0.0, 1e-3)
    rows = rows_of([0.0, 3.5], [1, 2000], [6, 1])
    result = replay(rows, law, ranks=2, scheduling="sync", kv_capacity=4_096)
    alone = replay(rows_of([0.0], [1], [6]), law, scheduling="sync", kv_capacity=4_096)
    assert alone.last_s[0] == pytest.approx(6.001)
    # Four steps of 1 s, the fourth ends at 4.001; then one of 1 + 2 s with the prefill, then the last of 1 s.
    assert result.first_s[1] == pytest.approx(7.001)
    assert result.last_s[0] == pytest.approx(8.001)
    assert result.rank.tolist() == [0, 1]


def test_clients_keep_their_requests_in_flight():
    rows = rows_of([0.0] * 6, [4] * 6, [3] * 6)
    result = replay(rows, SECOND, scheduling="sync", kv_capacity=1_000, clients=2)
    np.testing.assert_allclose(result.arrival_s, [0, 0, 3, 3, 6, 6])
    np.testing.assert_allclose(result.last_s, [3, 3, 6, 6, 9, 9])


def test_with_asynchronous_scheduling_an_arrival_misses_a_step():
    rows = rows_of([0.0, 0.5], [4, 4], [3, 1])
    result = replay(rows, SECOND, kv_capacity=1_000)
    np.testing.assert_allclose(result.first_s, [1.0, 3.0])


def launching(launch_s, floor_s=0.0):
    """Steps of a second, launched from their plan on in so many s if they hold more than 512 tokens or else a prompt."""
    cost = SECOND.step_cost()
    head = cost.head.copy()
    head["launch_above"], head["launch_s"], head["floor_s"], head["launch_ahead"] = 512, launch_s, floor_s, 1
    profile = profiles.constant(1.0)
    object.__setattr__(profile, "step_cost", lambda: cost._replace(head=head))
    return profile


def test_launches_count_from_the_plan_and_hide_the_tokens_of_the_step_before():
    """Steps of A alone begin at 0, 1, 2, 3. B is seen at 3, when the step after is planned: launched at 5.5, so that step lasts
    from 4 to 5.5. The next is planned then, with C, and launched at 8; what the step to 5.5 gave is seen at 8 too: B's first token,
    A's last.
    """
    rows = rows_of([0.0, 2.5, 5.2], [4, 600, 600], [5, 3, 2])
    kept = replay(rows, launching(2.5), kv_capacity=4_096, scheduling="async-held")
    np.testing.assert_allclose(kept.first_s, [1.0, 8.0, 8.0], rtol=1e-6)
    np.testing.assert_allclose(kept.last_s, [8.0, 9.0, 9.0], rtol=1e-6)
    freed = replay(rows, launching(2.5), kv_capacity=4_096, scheduling="async")
    np.testing.assert_allclose(freed.first_s, [1.0, 8.0, 8.0], rtol=1e-6)
    np.testing.assert_allclose(
        freed.last_s, [5.5, 9.0, 9.0], rtol=1e-6
    )  # whoever is done has left, and is not told later
    # No step takes longer, but C's step is planned at 6 and launched at 7.9, and only then B's last token is seen, of 7.
    quick = replay(rows, launching(1.9), kv_capacity=4_096, scheduling="async-held")
    np.testing.assert_allclose(quick.first_s, [1.0, 5.0, 8.0], rtol=1e-6)
    np.testing.assert_allclose(quick.last_s, [5.0, 7.9, 9.0], rtol=1e-6)


@pytest.mark.slow
def test_a_clock_follows_the_load():
    """Prompts of 600 tokens take a device that was idle 0.6 s and one under steady load 1 s; the clock settles in a second, so
    after a load of s seconds the next one takes 1 - 0.4 exp(-s).
    """
    law = profiles.load(LAWS)
    head = law.step_cost().head.copy()
    dense = np.full(2 * 2_049 + 2, 1.0, np.float32)
    dense[2_049:2_051] = 0.0  # no host time
    dense[2_051:] = 0.6
    for name, value in (
        *(("dense_max", 2_048), ("host_at", 2_049), ("host_max", 1), ("host_slope_s", 0.0)),
        *(("settle_s", 1.0), ("heating_above", 512), ("cool_at", 2_051), ("dense_slope", 1.0)),
    ):
        head[name] = value
    cost = law.step_cost()
    # attention of next to no time
    grids = np.full_like(cost.grids, -40.0)
    profile = profiles.constant(1.0)
    object.__setattr__(profile, "step_cost", lambda: cost._replace(head=head, lines=dense, grids=grids))
    rows = rows_of([0.0, 0.1, 10.0], [600, 600, 600], [1, 1, 1])
    found = replay(rows, profile, kv_capacity=4_096, budget=600, scheduling="sync")
    second_s = 1.0 - 0.4 * np.exp(-0.6)
    after = 1.0 - np.exp(-(0.6 + second_s))
    third_s = 1.0 - 0.4 * (1.0 - after * np.exp(-(10.0 - 0.6 - second_s)))
    np.testing.assert_allclose(found.last_s, [0.6, 0.6 + second_s, 10.0 + third_s], rtol=1e-5)


def test_a_small_prompt_has_a_floor():
    """An idle engine launches it in full; beside a step that runs, half of it is over when that ends."""
    rows = rows_of([0.0, 3.25], [4, 5], [6, 1])
    result = replay(rows, launching(9.0, 1.5), kv_capacity=4_096)
    # A's steps end at 1.5, 2.5, 3.5; the step to 4.5 was planned at 2.5, that to 5.5 at 3.5.
    np.testing.assert_allclose(result.first_s, [1.5, 5.5], rtol=1e-6)
    late = replay(rows, launching(9.0, 2.25), kv_capacity=4_096)
    # A's steps end at 2.25, 3.25; B is there when the step from 3.25 begins, at which the one after is planned: 5.5, not 5.25.
    np.testing.assert_allclose(late.first_s, [2.25, 5.5], rtol=1e-6)


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
    result = replay(rows, SECOND, kv_capacity=16 * capacity, ranks=ranks, clients=clients, seats=8)
    assert np.isfinite(result.last_s).all() and result.kv_peak <= 1.0
    assert (result.first_s > result.arrival_s).all() and (result.last_s >= result.first_s).all()
    assert ((result.last_s - result.first_s) >= rows.output_tokens - 1 - 1e-3).all()
    if clients is not None:
        events = np.concatenate([result.arrival_s, result.last_s])
        change = np.repeat([1, -1], 40)
        for rank in range(ranks):
            mine = np.tile(result.rank == rank, 2)
            order = np.lexsort((change[mine], np.round(events[mine], 3)))
            assert np.cumsum(change[mine][order]).max() <= clients


def test_figures_by_hand():
    figures = latency_figures(*(np.array(x, float) for x in ([0, 1], [2, 4], [4, 4])), np.array([3, 1]))
    assert figures["ttft_p50_s"] == pytest.approx(2.5) and figures["e2e_p50_s"] == pytest.approx(3.5)
    assert figures["tpot_p99_s"] == pytest.approx(1.0)  # the request with one token has none
    assert figures["makespan_s"] == 4.0 and figures["output_tokens_per_s"] == 1.0


def test_figures_are_of_the_requests_that_finished():
    nan = np.nan
    figures = latency_figures(
        *(np.array(x, float) for x in ([0, 1, 2], [2, nan, 4], [4, nan, 4])), np.array([3, 9, 1])
    )
    assert figures["ttft_p50_s"] == 2.0 and figures["e2e_p50_s"] == 3.0
    assert figures["makespan_s"] == 4.0 and figures["output_tokens_per_s"] == 1.0
    none = latency_figures(*(np.array(x, float) for x in ([0, 1], [nan, nan], [nan, nan])), np.array([3, 1]))
    assert all(np.isnan(value) for value in none.values())


# ---------------------------------------------------------------------------------------- requests that do not finish


def test_after_clearing_the_engine_serves_on():
    """It is empty and lets nobody in for one batch; whoever it threw out is served all the same, as in the environment."""
    rows = rows_of([0.0] * 3, [512] * 3, [256] * 3)
    result = replay(rows, profiles.load(LAWS), kv_capacity=1152, rule="beta-clearing")
    assert result.unfinished == 0 and result.preemptions > 0
    assert (result.first_s > 0).all() and (result.last_s > result.first_s).all()


def test_a_prompt_that_no_batch_holds_freezes_the_engine_as_in_the_environment():
    """vllm-prefill-only waits for ever for a batch with room for 300 tokens, and decodes nobody meanwhile."""
    rows = rows_of([0.0, 5.0, 5.5, 1e9], [10, 300, 10, 10], [50, 5, 50, 50])
    profile = profiles.load(LAWS)
    shared = ENGINE | {"kv_capacity": 8_000, "budget": 256, "scheduling": "sync"}
    result = replay(rows, profile, rule="vllm-prefill-only", **shared)
    requests, metrics = environment(rows, profile, "vllm-prefill-only", horizon_s=30.0, **shared)
    assert metrics["completed"] == 1 and metrics["requests"] == 3
    assert result.unfinished == 3
    for times, column in ((result.first_s, "ttft_s"), (result.last_s, "e2e_s")):
        assert times[0] == requests[column][0].astype(float) and np.isnan(times[1:]).all()
    figures = latency_figures(result.arrival_s, result.first_s, result.last_s, rows.output_tokens)
    assert figures["e2e_p99_s"] == result.last_s[0] and figures["output_tokens_per_s"] > 0


def test_nothing_runs_and_nothing_was_sent():
    """A closed loop behind a request that never ends: who was never sent has not arrived either."""
    rows = rows_of([0.0] * 3, [300] * 3, [5] * 3)
    result = replay(rows, SECOND, kv_capacity=8_000, budget=256, rule="vllm-prefill-only", clients=1)
    assert result.unfinished == 3 and result.batches == 0
    assert result.arrival_s[0] == 0.0 and np.isnan(result.arrival_s[1:]).all()
    assert np.isnan(result.batch_mean_s) and np.isnan(result.kv_mean)


def test_a_rule_that_serves_nobody_for_ever_is_told():
    """Two equal requests, both cleared whenever they overflow: they start anew together, and so it goes on."""
    rows = rows_of([0.0] * 6, [101, 207, 53] * 2, [611, 517, 701] * 2)
    with pytest.raises(
        NoProgress, match=r"rule='alpha-clearing': 7\d\d,\d\d\d steps .* 6 of 6 unfinished .*kv_capacity=1024"
    ):
        replay(rows, profiles.load(LAWS), kv_capacity=1024, rule="alpha-clearing", ranks=3)


LONG = """
    import signal
    import llmgym.serving.loop as module
    from llmgym import profiles
    from llmgym.serving.replay import replay
    from llmgym.workloads import Rows

    signal.signal(signal.SIGINT, signal.default_int_handler)
    run = module._run
    law = profiles.constant(1.0)
    replay(Rows([0.0], [1], [3]), law, kv_capacity=64)  # now it is compiled

    def told(*arguments):
        module._run = run
        print("inside", flush=True)
        return run(*arguments)

    module._run = told
    replay(Rows([0.0] * 50, [1] * 50, [2**30 - 65] * 50), law, kv_capacity=2**30, ranks=50)
"""


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
def test_ctrl_c_ends_a_long_replay():
    """A billion steps of fifty ranks take hours: only an interrupt ends this process."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(LONG)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline() == "inside\n"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode != 0 and "KeyboardInterrupt" in errors


# ----------------------------------------------------------------------------------------------------- predicted lengths


THREE = rows_of([0.0] * 3, [200] * 3, [300, 300, 10])


@pytest.mark.parametrize("rule", [name for name, rule in CATALOGUE.items() if rule.predicts])
def test_a_rule_that_needs_predictions_is_told_some_or_refused(rule):
    law = profiles.load(LAWS)
    for information in (None, "none"):
        with pytest.raises(InvalidArgument, match=f"rule='{rule}'.*information='exact'"):
            replay(THREE, law, kv_capacity=512, rule=rule, information=information)
    predicted = Rows(THREE.arrival_s, THREE.prompt_tokens, THREE.output_tokens, THREE.output_tokens)
    one, two = (
        replay(predicted, law, kv_capacity=512, rule=rule),
        replay(THREE, law, kv_capacity=512, rule=rule, information="exact"),
    )
    np.testing.assert_array_equal(one.last_s, two.last_s)


def test_which_rules_reckon_with_predictions():
    names = {name for name, rule in CATALOGUE.items() if rule.predicts}
    assert names == {"reserve-peak", "mc-sf", "fcfs-lookahead", "smallest-area", "area-watermark"}
    assert Rule("own", order="shortest-output").predicts and Rule("own", check="peak").predicts
    assert not Rule("own", check="headroom", skip=True).predicts


@pytest.mark.parametrize("rule", ["mc-sf", "smallest-area"])
def test_the_shortest_is_served_first_where_it_is_known(rule):
    law = profiles.load(LAWS)
    known = replay(THREE, law, kv_capacity=512, rule=rule, information="exact")
    assert known.last_s.argmin() == 2 and known.last_s[2] < 0.5
    # all are told the same: in order of arrival
    alike = replay(THREE, law, kv_capacity=512, rule=rule, information="mean")
    assert (np.diff(alike.first_s) >= 0).all() and alike.first_s[2] > alike.first_s[1]
    # what the rows say is believed, also where it is wrong; `information` goes before it
    wrong = Rows(THREE.arrival_s, THREE.prompt_tokens, THREE.output_tokens, [10, 300, 300])
    assert replay(wrong, law, kv_capacity=512, rule=rule).first_s.argmin() == 0
    np.testing.assert_array_equal(
        replay(wrong, law, kv_capacity=512, rule=rule, information="exact").last_s, known.last_s
    )


def test_noisy_predictions_are_drawn_from_the_seed():
    rows = random_rows(2)
    law = profiles.load(LAWS)
    results = [
        replay(rows, law, kv_capacity=4_000, rule="mc-sf", information=information, seed=seed).last_s
        for information, seed in (("noisy", 1), ("noisy", 1), ("noisy", 2), ("exact", 1))
    ]
    assert (results[0] == results[1]).all()
    assert (results[0] != results[2]).any() and (results[0] != results[3]).any()


def test_without_a_budget_of_its_own_a_class_budget_is_derived():
    """As in the environments."""
    assert replay(THREE, SECOND, kv_capacity=1024, rule="class-budgets").unfinished == 0
    KVProvision(rule="class-budgets")


# ------------------------------------------------------------------------------------------------------ wrong arguments


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"ranks": 0}, InvalidArgument, "ranks=0: expected a whole number from 1 to 2"),
        ({"ranks": 3}, InvalidArgument, "ranks=3"),
        ({"clients": 0}, InvalidArgument, "clients=0"),
        ({"budget": 0}, InvalidArgument, "budget=0"),
        ({"seats": -1}, InvalidArgument, "seats=-1"),
        ({"block": 12}, InvalidArgument, "block=12: expected a power of two"),
        ({"kv_capacity": 12}, InvalidArgument, "kv_capacity=12: less than one block of 16 tokens"),
        ({"information": "rumours"}, UnknownName, "rumours"),
        ({"kv_capacity": 40}, InvalidArgument, "kv_capacity=32: request 1 needs 50 tokens"),
        ({"scheduling": "later"}, UnknownName, "later"),
        ({"overflow": "explode"}, UnknownName, "explode"),
        ({"first_token": "never"}, UnknownName, "never"),
        ({"rule": "nobody"}, UnknownName, "nobody"),
        ({"information": "noisy", "seed": -1}, InvalidArgument, "seed=-1"),
        ({"seed": 0.5}, InvalidArgument, "seed=0.5"),
    ],
)
def test_wrong_arguments_are_told(change, error, message):
    with pytest.raises(error, match=message):
        replay(rows_of([0, 0], [10, 25], [10, 25]), SECOND, **({"kv_capacity": 1_000} | change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"block": 16, "overflow": "pause"}, "block=16: more than 1 needs overflow='recompute'"),
        ({"block": 24}, "block=24: expected a power of two"),
        ({"block": 0}, "block=0"),
        ({"budget": 0}, "budget=0"),
        ({"seats": True}, "seats=True"),
        ({"seats": 2**31}, "seats=2147483648"),
        ({"overflow": "swap"}, "unknown overflow 'swap'"),
        ({"first_token": "late"}, "unknown first_token 'late'"),
        ({"scheduling": "lazy"}, "unknown scheduling 'lazy'"),
    ],
)
def test_what_a_replay_refuses_the_environments_refuse(change, message):
    settings = {"block": 1, "overflow": "recompute"} | change
    with pytest.raises(InvalidArgument, match=message):
        replay(rows_of([0, 0], [10, 25], [10, 25]), SECOND, kv_capacity=1_000, **settings)
    with pytest.raises(InvalidArgument, match=message):
        KVQueue(**settings)
    if not change.keys() & {"block", "scheduling"}:
        with pytest.raises(InvalidArgument, match=message):
            KVProvision(**change)


# ----------------------------------------------------------------------------------------------------------- the command


def trace(folder, text):
    path = folder / "trace.csv"
    path.write_text("arrival_s,prompt_tokens,output_tokens\n" + textwrap.dedent(text))
    return str(path)


def test_the_command_tells_who_does_not_finish(tmp_path, capsys):
    some = trace(tmp_path, "0,10,50\n9,300,5\n9.5,10,50\n")
    out = tmp_path / "times.csv"
    assert main(["replay", some, "--rule", "vllm-prefill-only", "--budget", "256", "--out", str(out)]) == 0
    assert "2 of 3 requests do not finish" in " ".join(capsys.readouterr().out.split())
    times = np.genfromtxt(out, delimiter=",", names=True)
    assert np.isnan(times["last_token_s"]).tolist() == [False, True, True]
    none = trace(tmp_path, "0,10,50\n0.01,300,5\n0.02,10,50\n")
    assert main(["replay", none, "--rule", "vllm-prefill-only", "--budget", "256"]) == 2
    output = capsys.readouterr()
    assert "none of 3 requests finishes" in output.err and output.err.count("\n") == 1 and not output.out


def test_the_command_tells_the_rule_what_is_known(tmp_path, capsys):
    three = trace(tmp_path, "0,200,300\n0,200,300\n0,200,10\n")
    out = tmp_path / "times.csv"
    arguments = ["replay", three, "--rule", "mc-sf", "--kv-capacity", "512", "--out", str(out)]
    assert main(arguments) == 2
    assert "rule='mc-sf'" in capsys.readouterr().err and not out.exists()
    assert main([*arguments, "--information", "exact"]) == 0
    assert np.genfromtxt(out, delimiter=",", names=True)["last_token_s"].argmin() == 2
    assert main([*arguments, "--information", "rumours"]) == 2
    capsys.readouterr()
    assert main([*arguments, "--seed", "-1"]) == 2
    assert capsys.readouterr().err.startswith("llmgym: seed=-1: expected a whole number")


def test_the_command_takes_priorities_and_sessions_from_the_trace(tmp_path, capsys):
    path = tmp_path / "more.csv"
    path.write_text(
        "arrival_s,prompt_tokens,output_tokens,priority,session\n0,40,8,2,0\n0,40,8,1,1\n50,60,4,0,0\n"
    )
    out = tmp_path / "times.csv"
    shared = ["replay", str(path), "--seats", "1", "--kv-capacity", "256", "--out", str(out), "--chunk", "16"]
    assert main([*shared, "--rule", "vllm-priority", "--scheduling", "async-held", "--prefix-caching"]) == 0
    # 32 of the 140 tokens of all prompts are those of the first turn
    assert "22.9 % of prompt tokens found in the cache" in " ".join(capsys.readouterr().out.split())
    last = np.genfromtxt(out, delimiter=",", names=True)["last_token_s"]
    assert last[1] < last[0] < last[2]
    plain = trace(tmp_path, "0,10,50\n")
    assert main(["replay", plain, "--rule", "vllm-priority"]) == 2
    assert "rule='vllm-priority': it looks at the priorities" in capsys.readouterr().err
    assert main(["replay", plain, "--prefix-caching"]) == 2
    assert "prefix_caching=True: the rows have no session" in capsys.readouterr().err


@pytest.mark.parametrize("out", ["", "missing/times.csv", "trace.csv/times.csv"])
def test_a_file_that_cannot_be_written_is_told_before_the_work(tmp_path, capsys, monkeypatch, out):
    some = trace(tmp_path, "0,10,50\n")
    monkeypatch.setattr(
        "llmgym.serving.replay_command.replay", lambda *_, **__: pytest.fail("the work was done")
    )
    assert main(["replay", some, "--out", str(tmp_path / out)]) == 2
    output = capsys.readouterr().err
    assert output.startswith("llmgym: out=") and output.count("\n") == 1


# ---------------------------------------------------------------------------- orders, victims, chunks, and every batch


def test_priorities_come_before_arrivals():
    rows = Rows([0.0] * 4, [4] * 4, [2] * 4, None, [3, -1, 3, 0])
    found = replay(rows, SECOND, kv_capacity=64, seats=1, rule="vllm-priority", scheduling="sync", log=True)
    assert [step.run[0][0] for step in found.steps[::2]] == [1, 3, 0, 2]


def served(rows, rule, **others):
    found = replay(rows, SECOND, kv_capacity=256, seats=1, rule=rule, scheduling="sync", log=True, **others)
    return list(dict.fromkeys(step.run[0][0] for step in found.steps))


def test_the_earliest_deadline_comes_first():
    """A long request runs first; then two classes wait, whose first tokens are due after 100 and 10 s."""
    rows = Rows([0.0, 0.1, 0.2, 0.3], [4] * 4, [30, 2, 2, 2], None, None, None, [0, 0, 1, 0])
    assert served(rows, "edf", targets=[Target(100.0), Target(10.0)]) == [0, 2, 1, 3]
    assert served(rows, "edf", targets=[Target(10.0), Target(10.0)]) == [0, 1, 2, 3]
    with pytest.raises(InvalidArgument, match="rule='edf'"):
        served(rows, "edf")


def test_a_step_of_priority_is_some_seconds():
    rows = Rows([0.0, 1.0, 9.0], [4] * 3, [30, 2, 2], None, [0, 1, 0])
    assert served(rows, "priority-aging:lead_s=20") == [0, 2, 1]
    assert served(rows, "priority-aging:lead_s=5") == [0, 1, 2]


def test_waiting_makes_up_for_work():
    rows = Rows([0.0, 1.0, 21.0], [4] * 3, [30, 60, 2], [30, 60, 2])
    assert served(rows, "area-aging:aging=0") == [0, 2, 1]
    assert served(rows, "area-aging:aging=10") == [0, 1, 2]


def test_the_longest_cached_prefix_comes_first():
    """The first turn of session 0 runs; then a stranger and its second turn wait."""
    rows = Rows([0.0, 0.1, 0.2], [64, 64, 90], [8, 4, 4], session=[0, 1, 0])
    assert served(rows, "longest-prefix", prefix_caching=True) == [0, 2, 1]
    assert served(rows, "vllm:watermark=0", prefix_caching=True) == [0, 1, 2]


@pytest.mark.parametrize(
    ("victim", "number"),
    [("oldest", 0), ("largest", 1), ("least-computed", 2), ("worst-priority", 3), ("youngest", 4)],
)
def test_whom_preemption_takes(victim, number):
    """Five requests come together, and the cache of eleven blocks is full after a few tokens."""
    rows = Rows([0.0] * 5, [16, 60, 1, 24, 20], [40] * 5, None, [1, 2, 3, 9, 2])
    rule = Rule("own", check="whole-prompt", victim=victim)
    found = replay(rows, SECOND, kv_capacity=176, rule=rule, scheduling="sync", log=True)
    preempted = [one for step in found.steps for one in step.preempted]
    assert preempted[0] == number and found.unfinished == 0 and len(preempted) == found.preemptions


@pytest.mark.parametrize("victim", ["youngest", "oldest", "largest", "least-computed", "worst-priority"])
@pytest.mark.parametrize("scheduling", ["sync", "async", "async-held"])
@pytest.mark.parametrize("seed", range(3))
def test_every_request_is_served_whoever_is_preempted(victim, scheduling, seed):
    rows = random_rows(seed, n=80, rate=40.0)
    priority = np.random.default_rng(seed).integers(0, 5, 80)
    rows = Rows(rows.arrival_s, rows.prompt_tokens, rows.output_tokens, None, priority)
    rule = Rule("own", order="priority", check="whole-prompt", victim=victim)
    shared = {"kv_capacity": 2_000, "budget": 512, "scheduling": scheduling, "rule": rule, "chunk": 200}
    found = replay(rows, profiles.load(LAWS), log=True, **shared)
    assert found.unfinished == 0 and found.preemptions > 10
    tokens = sum(run for step in found.steps for _, run in step.run)
    # whoever is preempted computes its prompt and what it had produced once more
    assert tokens > int(rows.prompt_tokens.sum() + rows.output_tokens.sum() - 80)
    assert max(run for step in found.steps for _, run in step.run) <= 200
    assert max(step.blocks for step in found.steps) == round(found.kv_peak * 125)
    again = replay(rows, profiles.load(LAWS), **shared)
    np.testing.assert_array_equal(again.last_s, found.last_s)
    assert again.steps == () and again.batches == len(found.steps) == found.batches


def test_a_completed_request_may_hold_its_seat_for_one_plan():
    """One seat: the second request begins a step later, in which nothing runs, so no time passes; with a third it is seen."""
    rows = rows_of([0.0] * 3, [4] * 3, [3, 6, 2])
    shared = {"kv_capacity": 160, "seats": 2, "log": True}
    free, held = (
        [[number for number, _ in step.run] for step in replay(rows, SECOND, scheduling=name, **shared).steps]
        for name in ("async", "async-held")
    )
    assert free == [[0, 1], [0, 1], [0, 1], [1, 2], [1, 2], [1]]
    assert held == [[0, 1], [0, 1], [0, 1], [1], [1, 2], [1, 2]]


def test_chunks_bind_a_lone_prompt_or_not():
    rows = rows_of([0.0, 50.0, 50.0], [40, 40, 40], [1, 1, 1])
    for bound, expected in ((True, [16, 16, 8, 16, 16]), (False, [40, 16, 16])):
        found = replay(
            rows, SECOND, kv_capacity=160, chunk=16, chunk_alone=bound, scheduling="sync", log=True
        )
        runs = [run for step in found.steps for _, run in step.run]
        assert runs[: len(expected)] == expected


def test_priorities_that_are_not_there_are_told():
    with pytest.raises(InvalidArgument, match="rule='vllm-priority': it looks at the priorities"):
        replay(THREE, SECOND, kv_capacity=1_024, rule="vllm-priority")


# -------------------------------------------------------------------------------------------------- cached prefixes


def turns(session, **settings):
    """Three prompts, one after the other, in a cache of six blocks of 16 tokens; returns what each has to compute."""
    rows = Rows([0.0, 100.0, 200.0], [40, 60, 40], [8, 4, 4], session=session)
    shared = {"kv_capacity": 96, "rule": "vllm:watermark=0", "scheduling": "sync", "prefix_caching": True}
    found = replay(rows, SECOND, log=True, **(shared | settings))
    first = {}
    for step in found.steps:
        for number, tokens in step.run:
            first.setdefault(number, tokens)
    assert found.reused == sum(rows.prompt_tokens) - sum(first.values())
    return [first[number] for number in range(3)]


def test_a_turn_computes_what_is_new():
    """The first leaves 47 tokens, two full blocks; the second has three of them and more when it leaves."""
    assert turns([5, 5, 5]) == [40, 60 - 32, 40 - 32]
    assert turns([0, 1, 2]) == [40, 60, 40]
    assert turns([5, 5, 5], prefix_caching=False) == [40, 60, 40]


def test_whoever_left_longest_ago_is_forgotten_first():
    """The second needs four blocks: two that hold nothing, two free ones without a key, so one full block of the first is lost."""
    assert turns([0, 1, 0]) == [40, 60, 40 - 32]
    assert turns([0, 1, 0], kv_capacity=80) == [40, 60, 40 - 16]
    assert turns([0, 1, 0], kv_capacity=64) == [40, 60, 40]


def test_the_last_token_of_a_prompt_is_always_computed():
    rows = Rows([0.0, 100.0], [32, 32], [2, 2], session=[0, 0])
    found = replay(rows, SECOND, kv_capacity=96, prefix_caching=True, log=True)
    assert found.reused == 16 and found.steps[2].run == ((1, 16),)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"session": None}, "prefix_caching=True: the rows have no session"),
        ({"rule": "vllm-prefill-only"}, "as admitted, not rule='vllm-prefill-only'"),
        ({"rule": "alpha-clearing"}, "not rule='alpha-clearing'"),
        ({"overflow": "pause", "block": 1}, "prefix_caching=True needs overflow='recompute'"),
        ({"kv_capacity": 15}, "kv_capacity=15: less than one block of 16 tokens"),
        ({"block": 24}, "block=24: expected a power of two"),
    ],
)
def test_prefixes_that_cannot_be_cached_are_told(changes, said):
    rows = Rows([0.0], [8], [2], session=changes.pop("session", [0]))
    with pytest.raises(InvalidArgument, match=said):
        replay(rows, SECOND, **({"kv_capacity": 96, "prefix_caching": True} | changes))


def test_a_session_is_a_number_from_0_on():
    with pytest.raises(InvalidArgument, match="session: must be whole numbers from 0"):
        Rows([0.0], [1], [1], session=[-1])


def test_the_command_writes_every_step(tmp_path):
    """The steps of the command are those of `replay(log=True)`."""
    path = tmp_path / "steps.csv"
    words = [
        "replay",
        "uniform-tiny",
        "--profile",
        LAWS,
        "--requests",
        "20",
        "--kv-capacity",
        "640",
        "--block",
        "8",
    ]
    assert main([*words, "--steps", str(path)]) == 0
    lines = path.read_text().splitlines()
    assert lines[0] == "time_s,rank,requests,tokens,preempted,blocks"
    columns = np.loadtxt(lines[1:], delimiter=",")
    rows = workloads.load("uniform-tiny").sample(np.random.default_rng(0), 20, information="none")
    found = replay(
        Rows(rows.arrival_s, rows.prompt_tokens, rows.output_tokens),
        profiles.load(LAWS),
        kv_capacity=640,
        block=8,
        log=True,
    )
    assert columns[:, 3].tolist() == [sum(tokens for _, tokens in step.run) for step in found.steps]
    assert columns[:, 5].tolist() == [step.blocks for step in found.steps]


def test_the_command_names_the_file_that_cannot_be_written(capsys):
    assert main(["replay", "uniform-tiny", "--steps", "/no/such/folder/steps.csv"]) == 2
    assert "steps='/no/such/folder/steps.csv': cannot be written" in capsys.readouterr().err
