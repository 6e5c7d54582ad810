"""Conversations in a closed loop: by hand, what must always hold, and a measured run."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from llmgym import profiles, workloads
from llmgym.cli import main
from llmgym.envs.kv.queue.env import KVQueue
from llmgym.errors import InvalidArgument, TraceError
from llmgym.serving import conversations, prefix
from llmgym.serving.replay import latency_figures, replay
from llmgym.serving.rules import Rule
from llmgym.serving.state import Request
from llmgym.workloads import Rows
from llmgym.workloads.conversations import most_keys
from llmgym.workloads.turns import draw_turns

SECOND = profiles.constant(1.0)
DATA = Path(os.environ.get("LLMGYM_DATA", "")) / "vllm_h100_sessions" / "light_requests.csv"


def talk(arrival, prompt, output, session, turn, think, **more):
    return Rows(arrival, prompt, output, session=session, turn=turn, think_s=think, **more)


@pytest.mark.parametrize("scheduling", ["sync", "async", "async-held"])
def test_a_turn_comes_when_the_client_has_thought(scheduling):
    """Steps of 1 s. The client sees the last token when the step ends, also where the next one is planned before."""
    rows = talk([0, 0, 1, 1], [4, 10, 8, 20], [3, 2, 2, 1], [5, 1, 5, 5], [0, 0, 1, 2], [9, 9, 2.5, 0.25])
    found = replay(rows, SECOND, kv_capacity=160, scheduling=scheduling)
    np.testing.assert_allclose(found.arrival_s, [0, 0, 3 + 2.5, 7.5 + 0.25])
    np.testing.assert_allclose(found.first_s, [1, 1, 6.5, 8.75])
    np.testing.assert_allclose(found.last_s, [3, 2, 7.5, 8.75])


@pytest.mark.parametrize(("scheduling", "first"), [("sync", 4.0), ("async", 5.0)])
def test_a_turn_without_thinking_is_seen_as_any_arrival(scheduling, first):
    """Somebody else decodes all the time. What comes when a step ends misses the next one if that is planned already."""
    rows = talk([0, 0, 0], [4, 4, 8], [9, 3, 1], [0, 1, 1], [0, 0, 1], [0, 0, 0])
    found = replay(rows, SECOND, kv_capacity=160, scheduling=scheduling)
    assert found.arrival_s[2] == 3.0 and found.first_s[2] == first


WAITS = talk([0, 0, 3, 5], [4, 5, 4, 4], [1, 2, 20, 2], [0, 0, 1, 2], [0, 1, 0, 0], [0, 9, 0, 0])
"""Row 1 arrives at 10 s, after row 3, while row 2 decodes from 3 s to 23 s."""


def test_the_line_is_by_arrival_and_not_by_row():
    found = replay(WAITS, SECOND, kv_capacity=160, scheduling="sync", seats=1, log=True)
    assert found.arrival_s.tolist() == [0, 10, 3, 5]
    assert [step.run[0][0] for step in found.steps] == [0, *[2] * 20, 3, 3, 1, 1]


def test_whoever_came_last_is_preempted_and_comes_back_last():
    """Four blocks: rows 3 and 1 begin at 5 s and 10 s with row 2 and grow out of one block each."""
    lengths, session = ([4, 8, 4, 8], [1, 20, 30, 20]), [0, 0, 1, 2]
    rows = talk([0, 0, 3, 5], *lengths, session, [0, 1, 0, 0], [0, 9, 0, 0], priority=[2, 2, 2, 2])
    rule = Rule("own", order="arrival", check="whole-prompt", victim="worst-priority")
    found = replay(rows, SECOND, kv_capacity=64, scheduling="sync", rule=rule, log=True)
    assert next(one for step in found.steps for one in step.preempted) == 1
    assert found.unfinished == 0


def random_talk(seed, sessions=12):
    """Conversations of one to five turns, their rows mixed as they may come."""
    rng = np.random.default_rng(seed)
    rows = []
    for session in range(sessions):
        start, so_far = rng.uniform(0, 20), 0
        for turn in range(rng.integers(1, 6)):
            prompt, output = so_far + int(rng.integers(0 if turn else 1, 80)), int(rng.integers(1, 40))
            rows.append((start, prompt, output, session, turn, rng.choice([0.0, rng.exponential(5.0)])))
            so_far = prompt + output
            start += rng.exponential(3.0)
    rows.sort()
    return talk(*(np.array(column) for column in zip(*rows, strict=True)))


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    ranks=st.integers(1, 3),
    capacity=st.integers(40, 120),
    scheduling=st.sampled_from(["sync", "async", "async-held"]),
    caching=st.booleans(),
)
def test_every_turn_follows_the_one_before(seed, ranks, capacity, scheduling, caching):
    rows = random_talk(seed)
    shared = {"ranks": ranks, "scheduling": scheduling, "prefix_caching": caching, "seats": 6, "budget": 128}
    found = replay(rows, profiles.linear(0.5, 0.0, 1e-3), kv_capacity=16 * capacity, **shared)
    assert found.unfinished == 0 and found.kv_peak <= 1.0
    first = rows.turn == 0
    np.testing.assert_array_equal(found.arrival_s[first], rows.arrival_s[first])
    for session in range(12):
        own = np.flatnonzero(rows.session == session)
        assert len(set(found.rank[own])) == 1
        # single precision holds the time from arrival to last token
        waited = found.arrival_s[own[1:]] - found.last_s[own[:-1]]
        np.testing.assert_allclose(waited, rows.think_s[own[1:]], atol=1e-4)
    assert (found.first_s > found.arrival_s).all() and (found.last_s >= found.first_s).all()


def test_without_followers_tickets_change_nothing():
    rng = np.random.default_rng(4)
    arrival, n = np.cumsum(rng.exponential(0.02, 80)), 80
    prompt, output, own = rng.integers(1, 300, n), rng.integers(1, 200, n), np.arange(n)
    law = profiles.load("h100/llama-3.1-8b")
    for rule in ("vllm:watermark=0", "vllm-priority", "mc-sf"):
        more = {"priority": rng.integers(0, 4, n), "predicted_tokens": output}
        shared = {"kv_capacity": 2_000, "budget": 256, "rule": rule, "log": True, "ranks": 2}
        open_loop = replay(Rows(arrival, prompt, output, session=own, **more), law, **shared)
        closed = replay(
            talk(arrival, prompt, output, own, np.zeros(n, int), np.zeros(n), **more), law, **shared
        )
        assert closed.steps == open_loop.steps and open_loop.preemptions + (rule == "mc-sf") > 0
        np.testing.assert_array_equal(closed.last_s, open_loop.last_s)


def digest():
    found = replay(
        random_talk(8, 40), profiles.load("h100/llama-3.1-8b"), kv_capacity=1_600, prefix_caching=True
    )
    return hashlib.sha256(b"".join(column.tobytes() for column in found[:4])).hexdigest()


def test_another_process_finds_the_same():
    script = "from tests.serving.test_conversations import digest; print(digest())"
    root = Path(__file__).parents[2]
    asked = {"capture_output": True, "text": True, "cwd": root, "check": True}
    assert subprocess.run([sys.executable, "-c", script], **asked).stdout.strip() == digest()


def test_a_turn_after_one_that_never_ends_never_comes():
    rows = talk([0, 0, 5], [300, 310, 4], [5, 2, 3], [0, 0, 1], [0, 1, 0], [0, 1, 0])
    found = replay(rows, SECOND, kv_capacity=8_000, budget=256, rule="vllm-prefill-only")
    assert found.unfinished == 3 and found.batches == 0
    assert np.isnan(found.arrival_s).tolist() == [False, True, False]


# ------------------------------------------------------------------------------------------------------- wrong turns

FINE = {"session": [0, 0, 1], "turn": [0, 1, 0], "think_s": [0.0, 1.0, 0.0], "prompt_tokens": [4, 9, 4]}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"session": None}, "turn: a turn without its session"),
        ({"turn": None}, "think_s: without turn"),
        ({"think_s": None}, "turn: without think_s"),
        ({"turn": [0, 2, 0]}, "turn: 2 in row 1, where turn 1 of session 0 is expected"),
        ({"turn": [1, 2, 0]}, "turn: 1 in row 0, where turn 0 of session 0 is expected"),
        ({"turn": [0, 0, 0]}, "turn: 0 in row 1, where turn 1"),
        ({"turn": [0, -1, 0]}, "turn: must be whole numbers from 0"),
        ({"think_s": [0.0, -1.0, 0.0]}, "think_s: -1.0 in row 1; must be seconds, 0 or more"),
        ({"think_s": [0.0, np.nan, 0.0]}, "think_s: nan in row 1"),
        ({"think_s": [0.0, 1.0]}, r"think_s: shape \(2,\)"),
        (
            {"prompt_tokens": [4, 8, 4]},
            r"prompt_tokens: 8 in row 1, shorter than the 9 tokens of the conversation before it \(prompt and output of row 0\)",
        ),
    ],
)
def test_turns_that_are_no_conversation_are_told(changes, said):
    Rows([0.0, 0.0, 1.0], output_tokens=[5, 1, 1], **FINE)
    with pytest.raises(InvalidArgument, match=said):
        Rows([0.0, 0.0, 1.0], output_tokens=[5, 1, 1], **(FINE | changes))


def test_clients_do_not_send_turns():
    with pytest.raises(InvalidArgument, match="clients=2: the rows have turns"):
        replay(WAITS, SECOND, kv_capacity=160, clients=2)


HEADER = "arrival_s,prompt_tokens,output_tokens,session,turn,think_s\n"


def test_the_command_replays_the_turns_of_a_trace(tmp_path, capsys):
    path, out = tmp_path / "talk.csv", tmp_path / "times.csv"
    path.write_text(HEADER + "2,40,8,0,0,0\n2,60,4,0,1,2.5\n3,5,4,1,0,7\n")
    rows = workloads.load(str(path)).arrivals.rows
    assert rows.turn.tolist() == [0, 1, 0] and rows.think_s.tolist() == [0.0, 2.5, 7.0]
    assert main(["replay", str(path), "--prefix-caching", "--out", str(out)]) == 0
    assert "30.5 % of prompt tokens found in the cache" in " ".join(capsys.readouterr().out.split())
    times = np.genfromtxt(out, delimiter=",", names=True)
    assert times["arrival_s"][1] == pytest.approx(times["last_token_s"][0] + 2.5, abs=2e-6)
    assert times["arrival_s"][[0, 2]].tolist() == [0.0, 1.0]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("0,40,8,0,0,0\n1,60,4,0,2,1\n", "turn: 2 in row 1"),
        ("0,40,8,0,0,0\n1,47,4,0,1,1\n", "prompt_tokens: 47 in row 1"),
        ("0,40,8,0,0,-1\n", "line 2, column 'think_s': '-1' is not a time"),
        ("0,40,8,,0,0\n", "turn: a turn without its session"),
    ],
)
def test_a_trace_with_wrong_turns_is_told(tmp_path, rows, said):
    path = tmp_path / "talk.csv"
    path.write_text(HEADER + rows)
    with pytest.raises(TraceError, match=rf"talk.csv.*{said}"):
        workloads.load(str(path))


# ------------------------------------------------------------------------------------------- the functions themselves

SIMULATION = KVQueue(scenario="tiny", requests=12, chunk=4)
PARAMS = SIMULATION.params


def arrays(followers):
    """A lane of twelve requests, with a row for those that are coming."""
    state = SIMULATION.allocate(1)
    state.request["follower"][0] = followers
    return state._replace(queue=np.zeros((1, len(PARAMS.orders) + 1, 14), np.int32))


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_who_comes_next_is_the_first_of_a_sorted_list(data):
    """Three conversations of four turns, whose turns have any numbers but those of first turns, and ties among the times."""
    rest = data.draw(st.permutations(range(3, 12)))
    chains = [[head, *rest[3 * head : 3 * head + 3]] for head in range(3)]
    follower = np.zeros(12, np.int32)
    for chain in chains:
        follower[chain[:-1]] = chain[1:]
    state = arrays(follower)
    times = st.integers(0, 3).map(float)
    state.request["arrival_s"][0, :3] = sorted(data.draw(times) for _ in range(3))
    state.request["think_s"][0] = [data.draw(times) for _ in range(12)]
    conversations.begin(state, PARAMS, 0, 12)
    coming = [(state.request["arrival_s"][0, head], head) for head in range(3)]
    for ticket in range(12):
        coming.sort()
        assert conversations.following_s(state, PARAMS, 0) == coming[0][0]
        expected = coming.pop(0)
        number = conversations.take(state, PARAMS, 0)
        assert (number, state.request["ticket"][0, number]) == (expected[1], ticket)
        state.lane[0]["clock_s"] = max(state.lane[0]["clock_s"], expected[0]) + data.draw(times)
        conversations.answer(state, PARAMS, 0, number)
        if follower[number] > 0:
            later = state.lane[0]["clock_s"] + state.request["think_s"][0, follower[number]]
            coming.append((later, int(follower[number])))
    assert conversations.following_s(state, PARAMS, 0) == np.inf


def test_the_turns_of_a_conversation_have_the_same_keys():
    """Blocks of one token; a conversation has a key for each token of its last turn."""
    follower = np.zeros(12, np.int32)
    follower[[0, 1, 4]] = [1, 2, 5]
    state = arrays(follower)
    state.request["prompt"][0], state.request["output"][0] = np.arange(1, 13), 2
    assert prefix.number_keys(state, PARAMS, 0, 6) == 5 + 6 + 8
    assert state.request["first_key"][0, :6].tolist() == [0, 0, 0, 5, 11, 11]
    assert PARAMS.config["block"][0] == 1


def test_drawn_keys_fit_into_what_is_kept_for_them():
    workload = workloads.load("conversations")
    traffic = workload.traffic("none", conversations=True)
    state = SIMULATION.allocate(1)._replace(request=Request.zeros(1, 500))
    for key in range(5):
        assert draw_turns(traffic, np.uint64(key), np.inf, 2**30, state.request[0]) == 500
        keys = prefix.number_keys(state, PARAMS, 0, 500)
        first, reach = state.request["first_key"][0], state.request["prompt"][0] + state.request["output"][0]
        assert keys <= most_keys(workload.conversations, workload.classes, 500, 2**30, 1)
        session = state.request["session"][0]
        for number in range(session[-1] + 1):
            own = session == number
            assert len(set(first[own])) == 1
            last = first[session == number + 1][:1] if number < session[-1] else [keys]
            assert first[own][0] + reach[own].max() == last[0]


# ---------------------------------------------------------------------------------------------------- a measured run


@pytest.mark.data
@pytest.mark.skipif(not DATA.is_file(), reason="LLMGYM_DATA names no folder with vllm_h100_sessions/")
def test_a_measured_run_is_met_when_only_first_turns_are_given():
    """Every later arrival is found by the replay. The bar is 10 %; the first tokens miss it, and by how much is pinned here."""
    rows = workloads.load(str(DATA)).arrivals.rows
    table = np.genfromtxt(DATA, delimiter=",", names=True)
    law = profiles.load("h100/llama-3.1-8b", dense="sustained", host="vllm-0.24")
    found = replay(rows, law, kv_capacity=16 * 4095, scheduling="async-held", prefix_caching=True)
    assert found.unfinished == 0
    assert abs(found.reused - table["cached_tokens"].sum()) < 0.02 * rows.prompt_tokens.sum()
    measured = latency_figures(
        table["arrival_s"], table["first_token_s"], table["last_token_s"], rows.output_tokens
    )
    figures = latency_figures(found.arrival_s, found.first_s, found.last_s, rows.output_tokens)
    errors = {name: figures[name] / measured[name] - 1.0 for name in measured}
    for name, within in {"e2e": 0.03, "tpot": 0.05}.items():
        for p in (50, 90, 99):
            assert abs(errors[f"{name}_p{p}_s"]) <= within
    missed = {
        "ttft_p50_s": 0.119,
        "ttft_p90_s": 0.151,
        "ttft_p99_s": 0.227,
    }  # why is not known: docs/engine.md
    assert {name: errors[name] for name in missed} == pytest.approx(missed, abs=0.01)
    assert figures["makespan_s"] == pytest.approx(measured["makespan_s"], rel=0.01)
