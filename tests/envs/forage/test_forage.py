"""Forage: its worlds, what actions do and cost, what E may know, and an optimum found by trying everything."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmgym import profiles
from llmgym.envs.forage.audit import forage as audit
from llmgym.envs.forage.env import ForageEnv, ForageVectorEnv
from llmgym.envs.forage.kernels import AGENT_PROMPT, PREFILL_CHUNK, PROMPT, WRITTEN
from llmgym.envs.forage.law import diluted, guessed, weight
from llmgym.envs.forage.scenarios import SCENARIOS
from llmgym.envs.forage.state import (
    ACTIONS,
    ANSWER,
    ANSWER_CONTEXT,
    COMMIT,
    CURRENT,
    EVALUATE,
    FOCUS,
    GREP,
    KEYS,
    NOTHING,
    OPENED,
    OUTDATED,
    READ_ALL,
    READ_ON,
    RETRIEVE,
    RETRIEVE_KEY,
    SCAN,
    SLOTS,
    TERMS,
    TRUE,
    WRONG,
)
from llmgym.errors import InvalidArgument, UnknownArgument, UnknownName
from llmgym.profiles import cost as costs

LOUD = {"snippet_gap": 8.0, "scan_gap": 8.0, "listed": (0.99, 0.99, 0.99), "false_rate": 0.0, "extract": 1.0}
"""Scores that tell right passages from others without fail."""


def made(seed: int = 0, **kwargs: Any) -> ForageEnv:
    env = ForageEnv(**{"scenario": "paper", "invalid_action": "raise", **kwargs})
    env.reset(seed=seed)
    return env


def do(env: ForageEnv, *actions: int) -> float:
    """Take some actions; the sum of their rewards."""
    return sum(env.step(action)[1] for action in actions)


def slots(env: ForageEnv) -> np.ndarray:
    obs = env.lanes.buffers.obs[0]
    return obs[env.layout["slot"]].reshape(SLOTS, -1)


def slot_of(env: ForageEnv, claims: int = TRUE) -> int:
    """Where the passage that claims this is among the candidates."""
    lane = env.lanes.state.lane[0]
    table = env.lanes.state.passage[0, lane["focus"]]
    for slot in range(int(lane["candidates"])):
        if table["claims"][env.lanes.state.slot[0, slot]] == claims:
            return slot
    raise AssertionError("not among the candidates")


def listed(env: ForageEnv) -> int:
    """Search until the right passage is a candidate; its slot."""
    for _ in range(TERMS):
        do(env, GREP)
        try:
            return slot_of(env)
        except AssertionError:
            continue
    pytest.skip("no term finds it")


def test_worlds_have_the_rates_of_the_scenario() -> None:
    envs = ForageVectorEnv(1500, scenario="paper")
    envs.reset(seed=0)
    state, chosen = envs.lanes.state, envs.simulation.scenario
    lane, table = state.lane, state.passage
    shares = [(lane["facts"] == k + 1).mean() for k in range(KEYS)]
    assert shares == pytest.approx(chosen.facts, abs=0.035)
    assert lane["chain"].mean() == pytest.approx(chosen.chain, abs=0.04)
    assert (table["claims"][:, :, 0] == TRUE).all() and (table["claims"][:, :, 1:] != TRUE).all()
    chunks = np.sort(table["chunk"][:, :, 0], axis=1)
    assert (np.diff(chunks, axis=1) > 0).all()
    assert chunks.min() >= 0 and chunks.max() < chosen.chunks and chunks.mean() == pytest.approx(127.5, abs=4)
    live = np.arange(table.shape[2]) < state.key["passages"][..., None]
    for t in range(TERMS):
        found = ((table["listed"] >> t) & 1) * live
        total = found.sum(axis=2)
        assert total.max() <= 20
        if t < 2:  # the third is cut
            others = chosen.least[t] + chosen.hits[t]
            # a part that is drawn twice is listed once
            distinct = 256 * (1 - math.exp(-others / 256))
            assert total.mean() == pytest.approx(chosen.listed[t] + distinct, rel=0.02)
            assert found[:, :, 0].mean() == pytest.approx(chosen.listed[t], abs=0.02)
    other = live & (table["claims"] != TRUE)
    assert (table["claims"][other] >= WRONG).mean() == pytest.approx(0.08, abs=0.005)
    assert table["readable"][:, :, 0].mean() == pytest.approx(0.97, abs=0.008)
    for name in ("line", "glance", "rated"):
        assert table[name][live].mean() == pytest.approx(0.0, abs=0.01)
        assert table[name][live].std() == pytest.approx(1.0, abs=0.01)


def test_copies_and_contradictions() -> None:
    envs = ForageVectorEnv(1000, scenario="sources")
    envs.reset(seed=0)
    claims = envs.lanes.state.passage["claims"]
    # Poisson with mean 0.8, two at most
    p = [math.exp(-0.8), 0.8 * math.exp(-0.8)]
    mean = p[1] + 2.0 * (1.0 - sum(p))
    assert (claims == TRUE).sum(axis=2).mean() == pytest.approx(1.0 + mean, abs=0.03)
    assert (claims == OUTDATED).sum(axis=2).mean() == pytest.approx(mean, abs=0.03)
    # those that speak of the fact come first
    speaks = (claims == TRUE) | (claims == OUTDATED)
    assert (np.diff(speaks.astype(int), axis=2) <= 0).all()


def test_prices_are_log_uniform() -> None:
    envs = ForageVectorEnv(2000, scenario="any-price")
    envs.reset(seed=0)
    logs = np.log(envs.lanes.state.lane["price"])
    low, high = np.log(0.001), np.log(0.03)
    assert logs.min() >= low and logs.max() <= high
    assert logs.mean() == pytest.approx(0.5 * (low + high), abs=0.06)


def test_what_an_action_costs() -> None:
    """Token by token, in the order of the episode."""
    env = made(3, facts=(1.0, 0.0, 0.0, 0.0), chain=0.0)
    lane = env.lanes.state.lane[0]
    slot = listed(env)
    greps, hits = int(lane["greps"]), int(lane["found"])
    expected = AGENT_PROMPT + greps * (150 + WRITTEN) + 45 * hits
    assert lane["tokens"] == expected
    for action, tokens in ((SCAN + slot, 250 + WRITTEN),):
        do(env, action)
        expected += tokens
        assert lane["tokens"] == expected
    do(env, slot_of(env))
    expected += 1200 + WRITTEN
    assert lane["tokens"] == expected
    if env.lanes.state.key["pending"][0, 0] != NOTHING:
        do(env, COMMIT)
        expected += 80 + WRITTEN
    held = int(env.lanes.state.key["claim"][0, 0] != NOTHING)
    do(env, EVALUATE)
    expected += 500 + 80 * held + WRITTEN
    held = int(env.lanes.state.key["claim"][0, 0] != NOTHING)
    do(env, READ_ON)
    expected += 16 * 1000 + WRITTEN
    do(env, RETRIEVE)
    expected += 5 * 1000
    do(env, RETRIEVE_KEY + 1)
    expected += 10 * 1000 + WRITTEN
    do(env, ANSWER)
    expected += 80 * held + WRITTEN
    assert lane["tokens"] == expected
    assert env.metrics()["token_cost"] == pytest.approx(0.004 * expected / 1000)


def test_a_retrieval_needs_no_prompt_of_an_agent() -> None:
    env = made()
    do(env, RETRIEVE + 1, ANSWER_CONTEXT)
    assert env.lanes.state.lane[0]["tokens"] == 10_000 + PROMPT + WRITTEN
    env = made()
    do(env, READ_ALL)
    metrics = env.metrics()
    assert metrics["tokens_k"] == pytest.approx(256.0 + 0.6)
    assert metrics["parts_opened"] == 256


def test_seconds_are_those_of_the_profile() -> None:
    """Reading everything is prefilled in pieces after what is cached; then the answer is decoded token by token."""
    env = made(chunks=64, chunk_tokens=512)
    do(env, READ_ALL)
    step = profiles.load(SCENARIOS["paper"].profile).step_cost()
    total, seconds, done = PROMPT + 64 * 512, 0.0, 0
    while done < total:
        piece = min(PREFILL_CHUNK, total - done)
        attention = costs.prefill_attention_s(step, piece, done)
        seconds += costs.step_time_s(step, piece, attention, 0, 0, 1, done + piece)
        done += piece
    middle = total + WRITTEN // 2
    seconds += WRITTEN * costs.step_time_s(step, 0, 0.0, 1, middle, 1, middle)
    assert env.metrics()["time_s"] == pytest.approx(seconds, rel=1e-12)
    assert made(second_price=0.01).step(READ_ALL)[1] < made().step(READ_ALL)[1] - 0.01


def test_the_history_is_paid_again_at_each_call() -> None:
    env = made(accounting="rebilled", cache_price=0.25)
    plain = made()
    before, again = 0.0, 0.0
    for action in (GREP, READ_ON, EVALUATE, RETRIEVE, ANSWER):
        again += 0.25 * before
        do(env, action)
        do(plain, action)
        before = float(env.lanes.state.lane[0]["tokens"])
    assert env.metrics()["repeated_k"] == pytest.approx(again / 1000)
    assert env.metrics()["tokens_k"] == plain.metrics()["tokens_k"]
    assert env.metrics()["token_cost"] - plain.metrics()["token_cost"] == pytest.approx(0.004 * again / 1000)


@pytest.mark.parametrize("seed", range(8))
def test_posteriors_and_that_of_none_add_up_to_one(seed: int) -> None:
    env = made(seed)
    do(env, GREP)
    lane, table = env.lanes.state.lane[0], env.lanes.state.passage[0, 0]
    chosen = env.simulation.scenario
    if lane["candidates"] > 2:
        do(env, SCAN, SCAN + 1, 2)
    current = ((table["seen"] & CURRENT) != 0) & ((table["seen"] & OPENED) == 0)
    hits = int(env.lanes.state.key["hits"][0, 0])
    w = np.array([weight(chosen.listed[0], hits, float(s), 1.0) for s in table["snippet"]])
    w *= np.where(table["scan"] != 0.0, np.exp(2.0 * table["scan"] - 2.0), 1.0)
    total = w[current].sum() + 1.0 - chosen.listed[0]
    count = int(lane["candidates"])
    shown = slots(env)[:count, 4]
    assert shown == pytest.approx(np.sort(w[current])[::-1][:count] / total, rel=1e-5)
    assert float(lane["null"]) == pytest.approx((1.0 - chosen.listed[0]) / total, rel=1e-6)
    if count < SLOTS:
        assert shown.sum() + float(lane["null"]) == pytest.approx(1.0, abs=1e-6)


def test_a_wrong_claim_before_makes_the_search_on_a_chain_fail() -> None:
    """Behind a false claim the right passage scores as any other, and yields nothing."""
    for seed in range(60):
        env = made(seed, facts=(0.0, 1.0, 0.0, 0.0), chain=1.0, false_rate=0.9)
        do(env, GREP)
        wrong = [s for s in range(int(env.lanes.state.lane[0]["candidates"])) if s != 0]
        state = env.lanes.state
        wrong = [s for s in wrong if state.passage[0, 0]["claims"][state.slot[0, s]] >= WRONG]
        if not wrong:
            continue
        assert not env.action_masks()[FOCUS + 1]
        do(env, wrong[0], COMMIT, FOCUS + 1)
        try:
            slot = listed(env)
        except pytest.skip.Exception:
            continue
        passage = state.passage[0, 1, state.slot[0, slot]]
        assert passage["snippet"] == passage["line"]
        do(env, slot)
        assert state.key["pending"][0, 1] == NOTHING
        return
    raise AssertionError("no such world")


def test_a_removed_claim_lets_all_after_it_on_a_chain_begin_again() -> None:
    for seed in range(60):
        env = made(seed, facts=(0.0, 1.0, 0.0, 0.0), chain=1.0, false_rate=1.0, expose=1.0)
        state = env.lanes.state
        do(env, GREP)
        slot = (
            next(s for s in range(4) if state.passage[0, 0]["claims"][state.slot[0, s]] != TRUE)
            if state.lane[0]["candidates"] >= 4
            else -1
        )
        if slot < 0:
            continue
        do(env, slot, COMMIT, FOCUS + 1, GREP)
        if state.lane[0]["candidates"] == 0:
            continue
        do(env, 0)
        do(env, EVALUATE)
        assert state.key["claim"][0].tolist() == [0, 0, 0, 0] and state.key["term"][0, 1] == 0
        assert (state.passage["seen"][0, 1] == 0).all() and state.lane[0]["focus"] == 0
        assert state.key["reported"][0, 0]
        return
    raise AssertionError("no such world")


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    action_seed=st.integers(0, 10_000),
    name=st.sampled_from(["paper", "sources", "stress"]),
)
def test_e_changes_only_by_writing_and_by_evaluation(seed: int, action_seed: int, name: str) -> None:
    """And tokens are those of the calls, claims were read before, focus is known, at every step."""
    env = made(seed, scenario=name, chunks=64, first_answer=30, max_steps=60)
    state, rng = env.lanes.state, np.random.default_rng(action_seed)
    ended = False
    while not ended:
        before = state.key["claim"].copy()
        opened = (state.passage["seen"] & OPENED) != 0
        action = int(rng.choice(np.flatnonzero(env.action_masks())))
        _, _, terminated, truncated, _ = env.step(action)
        ended = terminated or truncated
        if action not in (COMMIT, EVALUATE):
            assert np.array_equal(state.key["claim"], before)
            assert (((state.passage["seen"] & OPENED) != 0) >= opened).all()
        if action == COMMIT:
            assert (
                state.key["claim"][0, : state.lane[0]["focus"]] == before[0, : state.lane[0]["focus"]]
            ).all()
        if action == EVALUATE:
            gone = (state.key["claim"] != before)[0]
            assert (state.key["claim"][0, gone] == NOTHING).all()
            # nothing true is exposed, though on a chain it can go with what it rests on
            first = int(np.argmax(gone))
            assert not gone.any() or before[0, first] != TRUE
        told = audit(env.simulation, state, 0)
        assert told["tokens"] == told["tokens_counted"] and told["arrived"] == told["done"]
        assert told["work_done"] + told["work_left"] == told["work_asked"]


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), action_seed=st.integers(0, 10_000))
def test_the_answer_from_e_does_not_depend_on_what_was_read(seed: int, action_seed: int) -> None:
    """Whatever is searched, scanned, read and retrieved without being written: the same probability."""
    env = made(seed, facts=(0.0, 1.0, 0.0, 0.0), first_answer=0)
    rng = np.random.default_rng(action_seed)
    for _ in range(int(rng.integers(1, 25))):
        allowed = env.action_masks().copy()
        allowed[[COMMIT, EVALUATE, ANSWER, ANSWER_CONTEXT, READ_ALL]] = False
        env.step(int(rng.choice(np.flatnonzero(allowed))))
    do(env, ANSWER)
    assert env.metrics()["accuracy"] == 0.25


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), action_seed=st.integers(0, 10_000))
def test_what_is_searched_again_does_not_change_the_answer_from_a_full_e(seed: int, action_seed: int) -> None:
    """E holds a claim; searches, scans, reads and retrievals after it, in any order and again, leave the probability as it is."""
    answers = set()
    for more in (False, True):
        env = made(seed, facts=(1.0, 0.0, 0.0, 0.0), **{**LOUD, "false_rate": 0.5})
        state = env.lanes.state
        do(env, GREP)
        if not state.lane[0]["candidates"]:
            return
        do(env, 0)
        if state.key["pending"][0, 0] == NOTHING:
            return
        do(env, COMMIT)
        rng = np.random.default_rng(action_seed)
        for _ in range(20 * more):
            allowed = env.action_masks().copy()
            allowed[[COMMIT, EVALUATE, ANSWER, ANSWER_CONTEXT, READ_ALL]] = False
            env.step(int(rng.choice(np.flatnonzero(allowed))))
        do(env, ANSWER)
        answers.add(env.metrics()["accuracy"])
    assert len(answers) == 1 and answers <= {0.25, guessed(0.98, 0.25)}


def test_what_answers_are_worth() -> None:
    env = made(1, facts=(1.0, 0.0, 0.0, 0.0), **LOUD)
    slot = listed(env)
    do(env, slot, COMMIT)
    twin = made(1, facts=(1.0, 0.0, 0.0, 0.0), **LOUD)
    do(twin, listed(twin), ANSWER_CONTEXT)
    do(env, ANSWER)
    assert env.metrics()["accuracy"] == pytest.approx(guessed(0.98, 0.25))
    read = 1000.0 * twin.metrics()["tokens_k"] - WRITTEN
    assert twin.metrics()["accuracy"] == pytest.approx(guessed(0.98 * diluted(read, 351e3, 1.06), 0.25))
    assert env.metrics()["units"] == 1 and env.metrics()["false_units"] == 0


def test_the_outcome_is_drawn_with_the_probability() -> None:
    envs = ForageVectorEnv(3000, scenario="paper", reward="outcome", autoreset_mode="DISABLED")
    envs.reset(seed=0)
    _, rewards, ended, _, infos = envs.step(np.full(3000, READ_ALL))
    assert ended.all()
    outcome = infos["metrics"]["outcome"]
    assert set(np.unique(outcome)) == {0.0, 1.0}
    assert outcome.mean() == pytest.approx(infos["metrics"]["accuracy"].mean(), abs=0.03)
    assert rewards == pytest.approx(outcome - infos["metrics"]["token_cost"])


def test_an_answer_is_forced_when_tokens_or_actions_are_spent() -> None:
    env = made(budget_tokens=30_000)
    _, _, terminated, truncated, info = env.step(READ_ON)
    assert (terminated, truncated) == (False, False)
    _, _, terminated, truncated, info = env.step(READ_ON)
    assert not terminated and truncated and info["metrics"]["accuracy"] == 0.25
    env = made(max_steps=4)
    for _ in range(4):
        _, _, terminated, truncated, info = env.step(EVALUATE)
    assert truncated and info["metrics"]["steps"] == 4


def best_of_everything(env: ForageEnv) -> tuple[float, list[int]]:
    """The largest return over all sequences of allowed actions, and the first sequence that has it."""
    arrays = [*env.lanes.state, *env.lanes.buffers]
    best, plan = -math.inf, []
    kept = [array.copy() for array in arrays]
    for action in np.flatnonzero(env.action_masks()).tolist():
        _, reward, terminated, truncated, _ = env.step(action)
        rest, after = (0.0, []) if terminated or truncated else best_of_everything(env)
        if reward + rest > best + 1e-12:
            best, plan = reward + rest, [action, *after]
        for array, old in zip(arrays, kept):
            array[...] = old
    return best, plan


def test_the_optimum_of_a_toy_instance() -> None:
    """One fact, found by the first term and nothing else: search, open, write, answer; found among all sequences of four."""
    kwargs = {
        **LOUD,
        "chunks": 16,
        "facts": (1.0, 0.0, 0.0, 0.0),
        "least": (0, 0, 0),
        "hits": (0.0, 0.0, 0.0),
        "keep": 1.0,
    }
    env = made(0, max_steps=4, **kwargs)
    tokens = (AGENT_PROMPT + 150 + 45 + WRITTEN) + (1200 + WRITTEN) + (80 + WRITTEN) + (80 + WRITTEN)
    value, plan = best_of_everything(env)
    assert plan == [GREP, 0, COMMIT, ANSWER]
    assert value == pytest.approx(1.0 - 0.004 * tokens / 1000, abs=1e-12)
    # three actions are too few to write it down: a retrieval is answered from the context
    value, plan = best_of_everything(made(0, max_steps=2, **kwargs))
    known = diluted(PROMPT + 5000.0, 351e3, 1.06)
    assert plan[1] == ANSWER_CONTEXT and value == pytest.approx(guessed(known, 0.25) - 0.004 * 5.6, abs=1e-12)
    # where tokens are dear, a guess at once
    value, plan = best_of_everything(made(0, max_steps=3, price=(0.5, 0.5), **kwargs))
    assert plan == [ANSWER] and value == pytest.approx(0.25 - 0.5 * 0.6, abs=1e-12)


def test_reading_in_order_wraps_around() -> None:
    env = made(chunks=20)
    do(env, READ_ON, READ_ON)
    lane = env.lanes.state.lane[0]
    assert lane["blocked"] == 20 and lane["next_chunk"] == 20
    obs = env.lanes.buffers.obs[0]
    assert obs[env.layout["place"]][0] == 0.0 and obs[env.layout["passes"]][0] == 0.5
    found = env.lanes.state.key["pending"][0]
    first = env.lanes.state.passage[0, 0, 0]
    assert (found[0] == TRUE) == bool(first["readable"])


def test_masked_actions_do_nothing_and_cost() -> None:
    env = ForageEnv(scenario="paper", invalid_cost=0.5)
    env.reset(seed=0)
    before = env.lanes.state.passage.copy()
    assert env.step(COMMIT)[1] == -0.5
    assert np.array_equal(before, env.lanes.state.passage)
    assert env.metrics()["invalid_actions"] == 1 and env.metrics()["tokens_k"] == 0.0


def test_wrong_settings_are_named() -> None:
    for wrong, name in (
        ({"facts": (0.5, 0.5, 0.5, 0.5)}, "facts"),
        ({"facts": (1.0,)}, "facts"),
        ({"listed": (0.5, 0.5, 1.5)}, "listed"),
        ({"price": (0.1, 0.01)}, "price"),
        ({"price": "cheap"}, "price"),
        ({"chunks": 8}, "chunks"),
        ({"overlook": 1.5}, "overlook"),
        ({"anchors": 1}, "anchors"),
        ({"text": "nowhere.npz"}, "text"),
        ({"text": 3}, "text"),
    ):
        with pytest.raises(InvalidArgument, match=name):
            ForageEnv(**wrong)
    for unknown in ({"accounting": "twice"}, {"profile": "none"}, {"reward": "joy"}):
        with pytest.raises(UnknownName):
            ForageEnv(**unknown)
    with pytest.raises(UnknownArgument, match="chunk"):
        ForageEnv(chunk=3)


def test_views() -> None:
    env = ForageEnv(scenario="sources", render_mode="ansi")
    env.reset(seed=7)
    do(env, GREP, SCAN, 0)
    told = env.render()
    assert "fact 0" in told and "posterior" in told
    picture = env.simulation.render(env.lanes.state, 0, "rgb_array")
    assert picture.shape == (560, 900, 3) and picture.dtype == np.uint8 and picture.std() > 5


def test_a_lane_is_small() -> None:
    """At most 32 KB of state in every scenario that is named."""
    for name in SCENARIOS:
        assert sum(array.nbytes for array in ForageEnv(scenario=name).simulation.allocate(1)) <= 32 * 1024
    assert ForageEnv().action_space.n == ACTIONS == 51
