"""Admission checks against counting one by one, and batches under a token budget."""

import copy
from typing import Any

import numpy as np
import pytest

from llmgym.core.lanes import HOLD, Lanes
from llmgym.envs.kv.queue.env import KVQueue
from llmgym.serving import admission, engine, queue
from llmgym.serving.capacity import UNLIMITED
from llmgym.serving.requests import FIRST_TOKENS
from llmgym.serving.rules import DECODE_FIRST, DECODE_ONLY, PREFILL_FIRST, PREFILL_ONLY, Rule
from llmgym.workloads import RequestClass, Workload, fixed, poisson
from tests.serving.reference import Request, World


def lanes_of(rule: Any, seed: int = 0, **settings: Any) -> Lanes:
    arguments = {"scenario": "tiny", "kv_capacity": 400, "load": 1.5, "requests": 200, **settings}
    lanes = Lanes(KVQueue(action="rule", rules=(rule,), **arguments), 1)
    lanes.reset(None, [seed])
    lanes.load_action(0)
    return lanes


@pytest.mark.parametrize("first_token", FIRST_TOKENS)
@pytest.mark.parametrize("budget", [UNLIMITED, 30])
def test_admissible_is_what_admitting_one_by_one_reaches(budget: int, first_token: str) -> None:
    """Under a rule that admits at most 2, so that there is often room for more."""
    lanes = lanes_of(Rule("two", most=2), budget=budget, first_token=first_token, seats=12)
    params, seen = lanes.simulation.params, set()
    while not lanes.buffers.ended[0]:
        state = copy.deepcopy(lanes.state)
        episode = state.lane[0]
        for most in (1, 8):
            promised = admission.admissible(lanes.state, params, 0, most)
            assert promised <= most
        while episode["waiting"] > 0 and engine.fits_now(state, params, 0, queue.at(state, 0, 0, 0)):
            engine.admit(state, params, 0, queue.at(state, 0, 0, 0))
            assert (
                episode["used"] + episode["growth"] <= 400
                and episode["budget_left"] >= 0
                and episode["residents"] <= 12
            )
        admitted = int(episode["residents"] - lanes.state.lane[0]["residents"])
        assert promised == min(admitted, 8)
        seen.add(promised)
        lanes.step(HOLD)
    assert len(seen) > 2


def course_of(lanes: Lanes, r: Any) -> list[int]:
    """The future of a resident as the slow engine rolls it out."""
    episode, first = lanes.state.lane[0], lanes.simulation.scenario.first_token
    config = lanes.simulation.params.config[0]
    decoding = bool(r["decoding"])
    produced = int(episode["tick"] - r["base"]) if decoding else int(r["kept"])
    lag = 1 if first == "with-prefill" else 0
    request = Request(
        int(r["request"]),
        0.0,
        int(r["prompt"]),
        int(r["output"]),
        int(r["predicted"]),
        produced=produced,
        to_prefill=0 if decoding else int(r["prompt"] - r["prefilled"]),
        cached=int(r["prompt"] - r["kept"]) + produced - lag if decoding else int(r["prefilled"]),
    )
    idle = World.__new__(World)
    idle.first_token, idle.chunk = first, int(config["chunk"])
    return idle._future(request)


@pytest.mark.parametrize("first_token", FIRST_TOKENS)
@pytest.mark.parametrize(("overflow", "information"), [("pause", "exact"), ("recompute", "noisy")])
def test_look_ahead_is_the_sum_of_the_rolled_out_futures(
    overflow: str, information: str, first_token: str
) -> None:
    lanes = lanes_of("wc-fcfs", overflow=overflow, information=information, first_token=first_token, chunk=7)
    params, compared = lanes.simulation.params, 0
    for _ in range(150):
        lanes.step(HOLD)
        state, n = lanes.state, int(lanes.state.lane[0]["residents"])
        admission._look_ahead(state, params, 0)
        courses = [course_of(lanes, r) for r in state.resident[0, :n]]
        for j, course in enumerate(courses):
            end = len(course)
            total = sum(other[end - 1] for other in courses if len(other) >= end)
            assert state.scratch[0, admission._TOTAL, j] == total
            compared += 1
    assert compared > 300


@pytest.mark.parametrize("first_token", FIRST_TOKENS)
@pytest.mark.parametrize("rule", ["mc-sf", "fcfs-lookahead", "smallest-area", "reserve-peak"])
def test_exact_predictions_never_overflow(rule: str, first_token: str) -> None:
    lanes = lanes_of(rule, overflow="recompute", first_token=first_token)
    while not lanes.buffers.ended[0]:
        lanes.step(HOLD)
    metrics = lanes.metrics(0)
    assert metrics["completed"] == 200 and metrics["preemptions"] == 0 and 0.7 < metrics["kv_peak"] <= 1.0


def planned(lanes: Lanes, batch: int) -> tuple[Any, Any, int]:
    """A copy of the state with the batch composed anew: lane record, residents, and the tokens the cache grows by."""
    state = copy.deepcopy(lanes.state)
    admission.compose(state, lanes.simulation.params, 0, batch)
    episode = state.lane[0]
    residents = state.resident[0, : episode["residents"]]
    stored = lanes.simulation.params.config[0]["first_stored"]
    ends = (residents["decoding"] == 0) & (residents["run"] > 0)
    ends &= residents["prefilled"] + residents["run"] == residents["prompt"]
    return episode, residents, int(residents["run"].sum() + (stored * ends).sum())


@pytest.mark.parametrize("first_token", FIRST_TOKENS)
@pytest.mark.parametrize(("budget", "capacity"), [(12, 2000), (12, 400), (60, 400)])
def test_composed_batches_respect_budget_memory_and_their_own_order(
    budget: int, capacity: int, first_token: str
) -> None:
    lanes = lanes_of("wc-fcfs", budget=budget, first_token=first_token, chunk=9, kv_capacity=capacity)
    cut, mixed = 0, 0
    while not lanes.buffers.ended[0]:
        for batch in (DECODE_FIRST, PREFILL_FIRST, PREFILL_ONLY, DECODE_ONLY):
            episode, residents, grown = planned(lanes, batch)
            run, prefills = residents["run"], residents["prefilled"] < residents["prompt"]
            active = residents["paused"] == 0
            assert (run >= 0).all() and not run[~active].any()
            assert run.sum() + episode["budget_left"] == budget and episode["budget_left"] >= 0
            assert episode["growth"] == grown and episode["used"] + grown <= capacity
            assert (run[~prefills] <= 1).all()
            full = episode["used"] + grown + 2 + 9 > capacity
            chunk = np.minimum(9, residents["prompt"] - residents["prefilled"])
            assert batch == PREFILL_ONLY or (run[prefills] <= chunk[prefills]).all()
            short = np.where(prefills, run < chunk, run == 0) & active  # got less than a whole unit of work
            if batch in (DECODE_FIRST, PREFILL_FIRST) and not full:
                assert episode["budget_left"] == 0 or not short.any()
                first = prefills if batch == PREFILL_FIRST else ~prefills
                if short[first].any():  # then nothing is left for the others
                    assert not run[~first].any()
                cut += int(short[~first].any())
            if batch == PREFILL_ONLY and prefills[active].any():
                whole = residents["prompt"] - residents["prefilled"]
                assert ((run == 0) | (run == whole))[prefills].all()
                assert not (run[prefills].any() and run[~prefills].any())
                if (
                    episode["used"] + whole[prefills & active].max() < capacity
                ):  # the cache holds no prompt back
                    assert not run[~prefills].any()
            if batch == DECODE_ONLY and (~prefills).any():
                assert run[prefills].sum() == 0
            mixed += int(run[prefills].any() and run[~prefills].any())
        lanes.step(HOLD)
    assert mixed > 0 and (cut > 0 or budget == 60)


@pytest.mark.parametrize(
    ("rule", "budget"),
    # Whole prompts: after a preemption a prompt has its output appended, and a budget of 60 could not take it any more.
    [("sarathi", 60), ("orca", 60), ("vllm-prefill-only", 100), ("faster-transformer", 60)],
)
def test_token_budget_rules_serve_everybody_within_the_budget(rule: str, budget: int) -> None:
    lanes = lanes_of(rule, budget=budget, overflow="recompute")
    episode = lanes.state.lane[0]
    while not lanes.buffers.ended[0]:
        lanes.step(HOLD)
        assert episode["batch_prefill"] + episode["batch_decodes"] <= budget and episode["batch_used"] <= 400
        if rule in ("vllm-prefill-only", "faster-transformer"):
            assert episode["batch_prefill"] == 0 or episode["batch_decodes"] == 0
    assert lanes.metrics(0)["completed"] == 200


def test_whole_prompt_batches_do_not_freeze_when_a_prompt_is_paused() -> None:
    """No budget, so no prompt exceeds it; the default scenario with its default overflow."""
    lanes = lanes_of("vllm-prefill-only", kv_capacity=2000, load=0.9)
    while not lanes.buffers.ended[0]:
        lanes.step(HOLD)
    assert lanes.metrics(0)["completed"] == 200


def test_whole_prompts_freeze_where_one_exceeds_the_budget() -> None:
    """Stated by Dai et al. of batches of whole prompts: nothing moves once a prompt is longer than K."""
    lanes = lanes_of("vllm-prefill-only", budget=30, chunk=30, horizon_s=20.0)
    while not lanes.buffers.ended[0]:
        lanes.step(HOLD)
    assert lanes.buffers.truncated[0] and lanes.metrics(0)["completed"] < 200


def test_class_budgets_hold_for_each_class_in_each_batch() -> None:
    classes = tuple(RequestClass(fixed(4), fixed(o)) for o in (3, 5, 7))
    workload = Workload("three", poisson(1.0), classes)
    rule = Rule("budgets", check="class-budget", class_budgets=(2, 0, 1))
    lanes = lanes_of(rule, workload=workload, kv_capacity=4000, load=1.5, requests=300, horizon_s=3.0)
    class_of = lanes.state.request["request_class"][0]
    assert set(class_of.tolist()) == {0, 1, 2}
    before: set[int] = set()
    most = np.zeros(3, int)
    while not lanes.buffers.ended[0]:
        lanes.step(HOLD)
        episode = lanes.state.lane[0]
        now = set(lanes.state.resident[0, : episode["residents"]]["request"].tolist())
        # Requests run for at least 4 batches, so whoever is new was admitted in the batch that just ran.
        most = np.maximum(most, np.bincount(class_of[sorted(now - before)], minlength=3))
        before = now
    assert most.tolist() == [2, 0, 1]


@pytest.mark.parametrize(("rule", "watermark"), [("vllm:watermark=0.0", 0.0), ("vllm:watermark=0.25", 0.25)])
def test_whole_prompt_check_keeps_the_watermark_free(rule: str, watermark: float) -> None:
    """After an admission the cache, with all admitted prompts, leaves w M free, but for a request admitted alone."""
    lanes = lanes_of(rule, chunk=50, overflow="recompute")
    episode, admissions = lanes.state.lane[0], 0
    while not lanes.buffers.ended[0]:
        residents = int(episode["residents"])
        lanes.step(HOLD)
        if episode["residents"] > residents > 0:
            admissions += 1
            assert episode["batch_used"] + watermark * 400 <= 400
    assert admissions > 20


def test_headroom_check_keeps_its_share_free() -> None:
    lanes = lanes_of("alpha-clearing:headroom=0.3", chunk=50, overflow="recompute")
    episode, admissions = lanes.state.lane[0], 0
    while not lanes.buffers.ended[0]:
        residents = int(episode["residents"])
        lanes.step(HOLD)
        if episode["residents"] > residents > 0:
            admissions += 1
            assert episode["batch_used"] <= 0.7 * 400
    assert admissions > 20


def test_most_limits_admissions_a_batch() -> None:
    lanes = lanes_of("wc-fcfs:most=1", load=3.0)
    episode = lanes.state.lane[0]
    while not lanes.buffers.ended[0]:
        before, done = int(episode["residents"]), int(episode["done"])
        lanes.step(HOLD)
        assert episode["residents"] + (episode["done"] - done) <= before + 1
