"""Closed forms of capacity: against counting, against each other, against the engine, and what they refuse."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmgym import profiles, workloads
from llmgym.envs.kv.queue.env import KVQueue
from llmgym.errors import InvalidArgument
from llmgym.serving.capacity import (
    UNLIMITED,
    area,
    budget_rate,
    critical_rate,
    exact_area,
    fitting,
    gap,
    gpus_needed,
    mean_area,
    mixture_rate,
    reserve_rate,
    safe_class_budgets,
    saturation,
    slack,
)
from tests.papers.drive import saturate

TINY = workloads.load("uniform-tiny")


@given(st.integers(1, 300), st.integers(1, 60), st.integers(1, 80))
def test_exact_area_is_the_sum_over_batches(prompt: int, output: int, chunk: int) -> None:
    prefill = [min(k * chunk, prompt) for k in range(1, math.ceil(prompt / chunk) + 1)]
    assert exact_area(prompt, output, chunk) == sum(prefill) + sum(prompt + j for j in range(1, output + 1))
    assert exact_area(prompt, output, chunk, 1) == sum(prefill) + sum(prompt + j for j in range(1, output))
    if prompt % chunk == 0:
        assert area(prompt, output, chunk) == exact_area(prompt, output, chunk)


def test_means_over_a_workload_are_means_over_its_requests() -> None:
    drawn = TINY.sample(np.random.default_rng(0), 100_000)
    s, o = drawn.prompt_tokens, drawn.output_tokens
    assert mean_area(TINY, 16) == pytest.approx(area(s, o, 16).mean(), rel=0.01)
    assert mean_area(TINY, 16, exact=True) == pytest.approx(exact_area(s, o, 16).mean(), rel=0.01)
    assert mean_area(TINY, 16, exact=True, first=1) == pytest.approx(exact_area(s, o, 16, 1).mean(), rel=0.01)
    held = ((s + o) * (np.ceil(s / 16) + o)).mean()
    assert reserve_rate(TINY, 2000, 0.01, 16) == pytest.approx(2000 / 0.01 / held, rel=0.01)
    assert budget_rate(TINY, 100, 0.01) == pytest.approx(100 / 0.01 / 55)
    assert slack(TINY, 2000) == 0.05


def rows_of(lengths: list[tuple[int, int]]) -> workloads.Workload:
    """A workload of these requests, each as likely as any other."""
    rows = workloads.Rows(np.arange(len(lengths), dtype=float), *np.array(lengths, np.int32).T.copy())
    return workloads.Workload("rows", workloads.replay(rows), (workloads.RequestClass(rows=rows),))


def test_only_requests_that_fit_count() -> None:
    few = [(100, 50), (300, 20), (1000, 24)]
    workload = rows_of([*few, (1000, 25), (5000, 50)])
    found = fitting(workload, 1024)
    assert (found.share, found.smallest_tokens, found.largest_tokens) == (pytest.approx(0.6), 150, 1024)
    assert found.mean_tokens == pytest.approx((150 + 320 + 1024 + 1025 + 5050) / 5)
    assert fitting(workload, 149).share == 0 == fitting(workload, 149).largest_tokens
    everything = fitting(TINY, 100)
    assert everything.share == 1.0 and everything.largest_tokens == 100 and everything.smallest_tokens == 10
    s, o = np.array(few).T
    assert mean_area(workload, 64, within=1024) == pytest.approx(area(s, o, 64).mean())
    assert mean_area(workload, 64, True, 1, within=1024) == pytest.approx(exact_area(s, o, 64, 1).mean())
    part, alone = (
        saturation(w, profiles.load("h100/llama-3.1-8b"), 1024, 512, 512, 8, 1, within=1024)
        for w in (workload, rows_of(few))
    )
    for name in (
        "rate_rps",
        "batch_s",
        "memory_rate_rps",
        "budget_rate_rps",
        "seats_rate_rps",
        "mean_area",
        "residents",
    ):
        assert getattr(part, name) == pytest.approx(getattr(alone, name)), name


def test_mixture_is_harmonic_and_shares_need_not_sum_to_one() -> None:
    assert mixture_rate([1, 1], [2.0, 6.0]) == pytest.approx(3.0)
    assert mixture_rate([0.25, 0.75], [2.0, 6.0]) == pytest.approx(4.0)
    assert mixture_rate([5], [2.0]) == pytest.approx(2.0)


def test_gpus_are_whole_and_enough() -> None:
    for rate in (0.1, 2.7, 2.71, 100.0):
        n = gpus_needed(rate, 3.0, 0.9)
        assert n * 3.0 * 0.9 >= rate > (n - 1) * 3.0 * 0.9
    assert gap(3.0, 4.0) == 0.25 == gap(5.0, 4.0)


def test_safe_budgets_are_safe_and_nearly_as_large_as_can_be() -> None:
    lengths = ((10, 20), (10, 40), (10, 60))
    classes = tuple(workloads.RequestClass(workloads.fixed(s), workloads.fixed(o)) for s, o in lengths)
    workload = workloads.Workload("three", workloads.poisson(1.0), classes)
    budgets = safe_class_budgets(workload, 16492, 64)
    areas = [float(exact_area(s, o, 64)) for s, o in lengths]
    held = sum(b * g for b, g in zip(budgets, areas, strict=True))
    assert held <= 16492 < held + sum(areas)
    assert safe_class_budgets(workload, 100, 64) == (1, 1, 1)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: critical_rate(0, 1.0, 1.0), "kv_capacity=0"),
        (lambda: critical_rate(1, -1.0, 1.0), "batch_s=-1.0"),
        (lambda: critical_rate(1, 1.0, math.nan), "mean_area=nan"),
        (lambda: critical_rate(math.inf, 1.0, 1.0), "kv_capacity=inf"),
        (lambda: slack(TINY, 0), "kv_capacity=0"),
        (lambda: reserve_rate(TINY, 2000, 0.0, 16), "batch_s=0.0"),
        (lambda: budget_rate(TINY, 0, 1.0), "budget=0"),
        (lambda: budget_rate(TINY, 1, math.nan), "batch_s=nan"),
        (lambda: mixture_rate([], []), "at least 1"),
        (lambda: mixture_rate([1], [1.0, 2.0]), "shares has 1 entries and rates 2"),
        (lambda: mixture_rate([1, 1], [1.0, 0.0]), r"rates\[1\]=0.0"),
        (lambda: mixture_rate([0, 0], [1.0, 1.0]), "shares=0"),
        (lambda: gpus_needed(-1.0, 1.0), "rate_rps=-1.0"),
        (lambda: gpus_needed(math.nan, 1.0), "rate_rps=nan"),
        (lambda: gpus_needed(1.0, 0.0), "rate_per_gpu=0.0"),
        (lambda: gpus_needed(1.0, 1.0, 0.0), "utilization=0.0"),
        (lambda: gpus_needed(1.0, 1.0, 1.1), "utilization=1.1"),
        (lambda: gpus_needed(1e308, 1e-10), r"rate_rps=1e\+308: needs more than"),
        (lambda: gpus_needed(1.0, 1.0, 1e-320), "rate_rps=1.0: needs more than"),
        (lambda: mean_area(TINY, 0), "chunk=0"),
        (lambda: mean_area(TINY, -5), "chunk=-5"),
        (lambda: mean_area(TINY, 16, within=9), "within=9: no request is so small"),
        (lambda: fitting(TINY, 0), "kv_capacity=0"),
        (lambda: saturation(TINY, profiles.constant(0.01), 9, 16, within=9), "within=9"),
        (lambda: saturation(TINY, profiles.constant(0.01), 0, 16), "kv_capacity=0"),
        (lambda: saturation(TINY, profiles.constant(0.01), 2000, 0), "chunk=0"),
        (lambda: saturation(TINY, profiles.constant(0.01), 2000, 16, budget=0), "budget=0"),
        (lambda: saturation(TINY, profiles.constant(0.01), 2000, 16, seats=-1), "seats=-1"),
    ],
)
def test_wrong_numbers_are_named(call: Callable[[], Any], words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        call()


@pytest.mark.parametrize("call", [lambda: mixture_rate([2, -1], [1.0, 3.0]), lambda: gap(1.0, 0.0)])
def test_wrong_numbers_that_pass(call: Callable[[], Any]) -> None:
    with pytest.raises(InvalidArgument):
        call()


def test_each_limit_can_bind() -> None:
    constant = profiles.constant(0.01)
    memory = saturation(TINY, constant, 2000, 16)
    assert memory.binding == "KV cache" and memory.kv_used == pytest.approx(1.0)
    assert memory.rate_rps == pytest.approx(critical_rate(2000, 0.01, mean_area(TINY, 16, exact=True)))
    assert memory.budget_rate_rps == memory.seats_rate_rps == math.inf
    tokens = saturation(TINY, constant, 2000, 16, budget=40)
    assert tokens.binding == "token budget" and tokens.rate_rps == pytest.approx(budget_rate(TINY, 40, 0.01))
    seats = saturation(TINY, constant, 2000, 16, seats=10)
    mean_steps = TINY.expectation(lambda s, o: np.ceil(s / 16) + o)
    assert seats.binding == "sequence limit" and seats.rate_rps == pytest.approx(10 / 0.01 / mean_steps)
    assert seats.residents == pytest.approx(10) and seats.kv_used < 1
    assert saturation(TINY, constant, 2000, 16, UNLIMITED, 10**6).binding == "KV cache"


@pytest.mark.parametrize("seats", [10, 128])
@pytest.mark.parametrize("budget", [40, UNLIMITED])
def test_predicted_saturation_of_the_small_world(budget: int, seats: int) -> None:
    predicted = KVQueue(scenario="tiny", budget=budget, seats=seats).predicted
    found = saturate("wc-fcfs", 5000, 500, scenario="tiny", budget=budget, seats=seats, load=1.1)
    assert predicted is not None
    assert found.rate_rps == pytest.approx(predicted.rate_rps, rel=0.03)
    assert found.used == pytest.approx(predicted.kv_used, abs=0.03)


# Prediction over simulation - 1 here, with vLLM's rule: +0.9 %, +5.1 %, 0.0 %, -2.5 %. (Without the check of the whole prompt the
# engine thrashes where the cache binds, as the prediction does not: azure-conv-tight +42 %, mooncake +25 %.)
@pytest.mark.parametrize(
    ("scenario", "binding"),
    [
        ("azure-conv", "sequence limit"),
        ("azure-conv-tight", "KV cache"),
        ("azure-code", "token budget"),
        ("mooncake", "KV cache"),
    ],
)
def test_predicted_saturation_of_the_real_scenarios(scenario: str, binding: str) -> None:
    """Within 15 % of an engine with vLLM's rule to which all requests come at once (bursty traces would let it run dry)."""
    simulation = KVQueue(scenario=scenario)
    predicted = simulation.predicted
    assert predicted is not None and predicted.binding == binding
    at_once = simulation.workload.with_arrivals(workloads.burst())
    found = saturate("vllm", 8000, 1000, scenario=scenario, workload=at_once)
    assert predicted.rate_rps == pytest.approx(found.rate_rps, rel=0.15)
    assert predicted.batch_s == pytest.approx(found.batch_s, rel=0.20)
    assert predicted.kv_used == pytest.approx(found.used, abs=0.15)
