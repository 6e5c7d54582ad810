"""Conversations as traffic: properties of the compiled draw, laws, means, and who refuses them."""

import hashlib
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import llmgym  # noqa: F401
from llmgym import profiles
from llmgym.cli import main
from llmgym.envs.kv.queue.env import KVQueue
from llmgym.errors import InvalidArgument
from llmgym.serving.capacity import exact_area, safe_class_budgets
from llmgym.serving.replay import replay
from llmgym.workloads import (
    Conversations,
    Phase,
    RequestClass,
    Rows,
    Workload,
    burst,
    exponential_think,
    fixed,
    gamma,
    geometric,
    load,
    lognormal,
    lognormal_think,
    poisson,
    regular,
    uniform,
)
from llmgym.workloads.conversations import most_keys
from llmgym.workloads.traffic import Drawn, draw
from llmgym.workloads.turns import Turn, draw_turns

CHAT = RequestClass(uniform(1, 60), uniform(1, 40), 0.6)
LONG = RequestClass(lognormal(4.0, 1.0, max=900), fixed(7))


@st.composite
def workloads(draw_from):
    arrivals = draw_from(st.sampled_from([poisson(2.0), gamma(1.0, 3.0), regular(0.5), burst()]))
    think = draw_from(
        st.sampled_from([exponential_think(3.0), exponential_think(0.0), lognormal_think(2.0, 0.7)])
    )
    turns = draw_from(st.sampled_from([geometric(0.3, 9), fixed(1), uniform(2, 5), geometric(1.0, 4)]))
    new = draw_from(st.sampled_from([None, uniform(1, 20)]))
    talk = Conversations(turns, think, draw_from(st.sampled_from([2, 50, 300, 4000])), new)
    phases = draw_from(st.sampled_from([(), (Phase(0.0, (1.0, 0.0)), Phase(10.0, (0.2, 0.8)))]))
    return Workload("any", arrivals, (CHAT, LONG), phases, "time_s", conversations=talk)


def run(workload, key=7, n=80, horizon_s=math.inf, information="exact", longest=2**31 - 1):
    drawn = Turn.zeros(n)
    for name in Turn.declared:
        drawn[name] = -1
    traffic = workload.traffic(information, conversations=True)
    count = draw_turns(traffic, np.uint64(key), horizon_s, longest, drawn)
    return drawn[:count]


@settings(max_examples=150, deadline=None)
@given(
    workloads(),
    st.integers(0, 2**64 - 1),
    st.sampled_from(["exact", "noisy", "mean", "none"]),
    st.sampled_from([2, 40, 10_000]),
    st.integers(1, 80),
)
def test_turns_are_conversations_and_a_function_of_the_key(workload, key, information, longest, n):
    drawn = run(workload, key, n, information=information, longest=longest)
    assert drawn.tobytes() == run(workload, key, n, information=information, longest=longest).tobytes()
    assert len(drawn) == n and np.all(np.diff(drawn["arrival_s"]) >= 0.0)
    prompt, output, session = (drawn[name].astype(np.int64) for name in ("prompt", "output", "session"))
    most = min(longest, workload.conversations.longest)
    assert np.all((prompt >= 1) & (output >= 1) & (prompt + output <= most))
    same = np.diff(session) == 0
    assert session[0] == 0 and np.all(same | (np.diff(session) == 1))
    assert np.array_equal(drawn["follower"], np.append(np.where(same, np.arange(1, n), 0), 0))
    assert np.all(prompt[1:][same] > (prompt + output)[:-1][same])
    for name in ("arrival_s", "request_class"):
        assert np.array_equal(drawn[name][1:][same], drawn[name][:-1][same])
    assert np.all(drawn["think_s"][np.flatnonzero(~np.append(False, same))] == 0.0)
    assert np.all(drawn["think_s"] >= 0.0)
    assert np.bincount(session).max() <= workload.conversations.turns.high
    predicted = drawn["predicted"]
    if information == "exact":
        assert np.array_equal(predicted, output)
    else:
        assert np.all(predicted == 0) if information == "none" else np.all(predicted >= 1)
    assert np.all(prompt + predicted <= most)


@settings(max_examples=60, deadline=None)
@given(workloads(), st.integers(0, 2**64 - 1), st.floats(0.0, 40.0), st.integers(1, 79))
def test_a_horizon_cuts_and_a_longer_draw_continues(workload, key, horizon_s, n):
    whole = run(workload, key)
    shorter = run(workload, key, n)
    for name in Turn.declared:
        last = n - 1 if name == "follower" else n  # whether the last one has a follower depends on the room
        assert np.array_equal(shorter[name][:last], whole[name][:last])
    cut = run(workload, key, horizon_s=horizon_s)
    assert len(cut) == np.searchsorted(whole["arrival_s"], horizon_s, side="right")
    assert cut.tobytes() == whole[: len(cut)].tobytes()


def test_the_rate_of_sessions_moves_nothing_but_arrivals():
    slow, fast = (run(load("conversations").with_rate(rate)) for rate in (1.0, 5.0))
    for name in Turn.declared:
        same = np.array_equal(slow[name], fast[name])
        assert same == (name != "arrival_s")
    np.testing.assert_allclose(slow["arrival_s"], 5.0 * fast["arrival_s"])


def test_without_conversations_it_is_the_other_draw():
    workload = load("azure-conv-2023")
    drawn, same = Turn.zeros(50), Drawn.zeros(50)
    traffic = workload.traffic("noisy")
    assert draw_turns(traffic, np.uint64(3), math.inf, 10, drawn) == 50
    draw(traffic, np.uint64(3), math.inf, same)
    for name in Drawn.declared:
        assert np.array_equal(drawn[name], same[name])
    assert drawn["session"].tolist() == list(range(50))
    assert not drawn["follower"].any() and not drawn["think_s"].any()


def test_the_laws_are_those_that_were_asked_for():
    workload = load("conversations")
    drawn = workload.sample(np.random.default_rng(0), n=200_000)
    turns = np.bincount(drawn.session)[:-1]
    share = np.bincount(turns, minlength=9)[1:] / len(turns)
    expected = [0.25 * 0.75**k for k in range(7)]
    np.testing.assert_allclose(share, [*expected, 0.75**7], atol=0.006)
    later = drawn.turn > 0
    think = drawn.think_s[later]
    assert (think.mean(), think.std()) == pytest.approx((2.9, 2.9), rel=0.03)
    new = drawn.prompt_tokens[1:] - drawn.prompt_tokens[:-1] - drawn.output_tokens[:-1]
    assert np.log(new[later[1:]]).mean() == pytest.approx(5.56, abs=0.02)
    assert np.log(drawn.prompt_tokens[~later]).mean() == pytest.approx(6.66, abs=0.02)
    lognormal_times = replace(
        workload, conversations=replace(workload.conversations, think=lognormal_think(4.0, 0.5))
    )
    think = lognormal_times.sample(np.random.default_rng(0), n=100_000).think_s[later[:100_000]]
    think = think[think > 0.0]
    assert think.mean() == pytest.approx(4.0, rel=0.02) and np.log(think).std() == pytest.approx(
        0.5, rel=0.02
    )


def test_means_are_those_of_turns():
    workload = load("conversations").with_rate(6.0)
    assert workload.mean_rate_rps == pytest.approx(6.0)
    drawn = workload.sample(np.random.default_rng(1), n=200_000)
    assert len(drawn.session) / drawn.arrival_s[-1] == pytest.approx(6.0, rel=0.02)
    for f in (lambda s, o: s, lambda s, o: o, lambda s, o: s * o):
        found = np.mean(f(drawn.prompt_tokens.astype(float), drawn.output_tokens))
        assert workload.expectation(f) == pytest.approx(found, rel=0.03)
    # two turns of one token and one of two, an answer of three: prompts of 1 and 1 + 3 + 2
    by_hand = Conversations(fixed(2), exponential_think(1.0), 100, fixed(2))
    small = Workload("x", poisson(1.0), (RequestClass(fixed(1), fixed(3)),), conversations=by_hand)
    assert small.expectation(lambda s, o: s) == pytest.approx(3.5) and small.mean_rate_rps == pytest.approx(
        2.0
    )
    assert small.max_prompt_tokens == 99 and small.max_output_tokens == 3


def digest():
    drawn = run(load("conversations"), n=3000, information="noisy")
    return hashlib.sha256(drawn.tobytes()).hexdigest()


def test_another_process_draws_the_same():
    script = "from tests.workloads.test_conversations import digest; print(digest())"
    asked = {"capture_output": True, "text": True, "cwd": Path(__file__).parents[2], "check": True}
    assert subprocess.run([sys.executable, "-c", script], **asked).stdout.strip() == digest()


def test_a_drawn_world_is_replayed_in_a_closed_loop(tmp_path):
    drawn = load("conversations").sample(np.random.default_rng(2), n=120)
    rows = Rows(
        drawn.arrival_s,
        drawn.prompt_tokens,
        drawn.output_tokens,
        session=drawn.session,
        turn=drawn.turn,
        think_s=drawn.think_s,
    )
    law = profiles.load("h100/llama-3.1-8b")
    found = replay(rows, law, prefix_caching=True)
    assert found.unfinished == 0 and found.reused > 0.3 * rows.prompt_tokens.sum()
    out = tmp_path / "times.csv"
    command = ["replay", "conversations", "--requests", "120", "--seed", "2", "--prefix-caching"]
    assert main([*command, "--out", str(out)]) == 0
    times = np.genfromtxt(out, delimiter=",", names=True)
    np.testing.assert_allclose(times["arrival_s"], found.arrival_s, atol=1e-6)


# ------------------------------------------------------------------------------------------------------- wrong settings


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: geometric(1.5, 3), "end=1.5: must be at most 1"),
        (lambda: geometric(0.0, 3), "end=0.0"),
        (lambda: geometric(0.5, 0), "most=0: expected a whole number from 1 to 10000"),
        (lambda: exponential_think(-1.0), "mean_s=-1.0"),
        (lambda: lognormal_think(1.0, 0.0), "sigma=0.0"),
        (lambda: replace(exponential_think(1.0), law="gamma"), "law='gamma': must be 'exponential' or"),
        (lambda: Conversations(3, exponential_think(1.0), 100), "turns=3: must be a law"),
        (lambda: Conversations(fixed(3), 1.0, 100), "think=1.0: must be made by"),
        (lambda: Conversations(fixed(3), exponential_think(1.0), 1), "longest=1"),
        (lambda: Conversations(fixed(3), exponential_think(1.0), 100, 5), "new=5: must be a law"),
    ],
)
def test_wrong_laws_are_told(make, said):
    with pytest.raises(InvalidArgument, match=said):
        make()


def test_what_conversations_cannot_be_made_of_is_told():
    talk = Conversations(fixed(3), exponential_think(1.0), 100)
    rows = Rows([0.0], [1], [1])
    with pytest.raises(InvalidArgument, match="conversations: need laws"):
        Workload("x", poisson(1.0), (RequestClass(rows=rows),), conversations=talk)
    with pytest.raises(InvalidArgument, match="phase_by='fraction': conversations need phases by 'time_s'"):
        phases = (Phase(0.0, (1.0,)), Phase(0.5, (1.0,)))
        Workload("x", poisson(1.0), (CHAT,), phases, "fraction", conversations=talk)


def test_who_does_not_know_conversations_refuses_them():
    with pytest.raises(InvalidArgument, match="workload='conversations': its turns wait for the answer"):
        load("conversations").traffic()
    with pytest.raises(InvalidArgument, match="workload='conversations': its turns wait"):
        KVQueue(scenario="azure-conv", workload="conversations")


def test_class_budgets_count_whole_prompts():
    """Two turns of 1 and 4 tokens with one token of answer: areas 2 and 5 + 1, in chunks of 100."""
    talk = Conversations(fixed(2), exponential_think(1.0), 100, fixed(2))
    workload = Workload("x", poisson(1.0), (RequestClass(fixed(1), fixed(1)),), conversations=talk)
    area = workload.expectation(lambda s, o: exact_area(s, o, 100))
    assert area == (exact_area(1, 1, 100) + exact_area(4, 1, 100)) / 2
    assert safe_class_budgets(workload, 10 * area, 100) == (10,)


def test_keys_are_bounded_by_what_turns_add():
    talk = load("conversations")
    assert (
        most_keys(talk.conversations, talk.classes, 10, 65_536, 16) == 10 * 314
    )  # ceil((4,000 + 1,024) / 16)
    assert most_keys(talk.conversations, talk.classes, 10, 1_000, 16) == 10 * 63
