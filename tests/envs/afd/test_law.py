"""Attention and FFN pools: requests as tables, latencies of GPUs, and the wrong numbers of the closed forms.

What the closed forms say is tested against the paper in `tests/papers/test_afd_law.py`.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from llmgym import profiles, workloads
from llmgym.envs.afd import law as forms
from llmgym.envs.afd import occupancy
from llmgym.envs.afd.costs import PAPER, fit, from_shape
from llmgym.envs.afd.law import optimal_ratio
from llmgym.envs.afd.occupancy import theta
from llmgym.envs.afd.requests import Requests, load, of_arrays, of_workload
from llmgym.errors import InvalidArgument
from llmgym.workloads import RequestClass, Rows, Workload, poisson, replay


def test_requests_from_laws_workloads_and_traces() -> None:
    rng = np.random.default_rng(0)
    prompts, steps = rng.integers(1, 50, 500), rng.integers(1, 90, 500)
    rows = Rows(np.arange(500.0), prompts.astype(np.int32), steps.astype(np.int32))
    trace = Workload("trace", replay(rows), (RequestClass(rows=rows),))
    for made in (of_workload(trace), of_arrays(prompts, steps)):
        assert made.prompt_tokens.tolist() == prompts.tolist() and made.steps.tolist() == steps.tolist()
        assert made.theta == theta(prompts, steps)
    conversation = workloads.load("azure-conv-2023")
    exact = conversation.expectation(lambda s, o: s * o + o * (o - 1) / 2) / conversation.expectation(
        lambda s, o: o
    )
    assert of_workload(conversation).theta == pytest.approx(exact, rel=5e-3)
    uniform_pair = workloads.load("uniform-1:1")
    assert of_workload(uniform_pair).mean_prompt == pytest.approx(805, rel=1e-3)
    talk = workloads.load("conversations")
    assert of_workload(talk).mean_prompt == pytest.approx(talk.expectation(lambda s, o: s), rel=0.03)
    mixed = of_workload(workloads.load("uniform-mixed"))
    assert mixed.mean_prompt == pytest.approx((1071.5 + 538) / 2, rel=2e-3)
    law = load("geometric:prompt=100,decode=500")
    assert abs(np.corrcoef(law.prompt_tokens, law.steps)[0, 1]) < 2e-3
    assert (law.mean_prompt, law.mean_steps) == pytest.approx((100, 501), rel=1e-3)
    assert load(trace).name == "trace" and load(law) is law


def test_latencies_of_a_gpu() -> None:
    """From sizes, and fitted to the shipped profiles: R^2 above 0.999, slopes within the figures that bandwidth and rate give."""
    made = from_shape(
        kv_bytes_per_token=131_072,
        flop_per_token=16e9,
        activation_bytes_per_token=524_288,
        hbm_gb_per_s=3000.0,
        tflop_per_s=800.0,
        link_gb_per_s=50.0,
    )
    assert made.values == pytest.approx((0.04369, 0.0, 20.0, 0.0, 10.48576, 10.0), rel=1e-3)
    slopes = {}
    for gpu in ("h100", "h200"):
        fitted = fit(profiles.load(f"{gpu}/llama-3.1-8b"), 128, 50.0)
        assert min(fitted.attention_r2, fitted.ffn_r2) > 0.999
        slopes[gpu] = fitted.coefficients.values
    # 131,072 bytes a token at 3.35 and 4.8 TB/s take 0.0391 and 0.0273 us
    assert slopes["h100"][0] == pytest.approx(0.0391, rel=0.15)
    assert slopes["h200"][0] == pytest.approx(0.0273, rel=0.15)
    # 2 x 7.5e9 operations a token (without embedding) at 989 TFLOP/s take 15.2 us; kernels reach 80 % of that
    assert slopes["h100"][2] == pytest.approx(15.2 / 0.8, rel=0.1)
    assert slopes["h100"][4] == pytest.approx(2 * 32 * 4096 * 2 / 50e3)


@pytest.mark.parametrize("name", ["alpha_attention", "alpha_ffn", "cycle_s"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf"), "1"])
def test_slopes_must_be_positive(name: str, value: Any) -> None:
    with pytest.raises(InvalidArgument, match=name):
        replace(PAPER, **{name: value})


@pytest.mark.parametrize("name", ["beta_attention", "beta_ffn", "alpha_comm", "beta_comm"])
def test_the_others_must_not_be_negative(name: str) -> None:
    with pytest.raises(InvalidArgument, match=name):
        replace(PAPER, **{name: -1e-9})
    free = replace(PAPER, **{name: 0.0})
    assert optimal_ratio(free, 256, 600.0).ratio > 0


def test_wrong_numbers_of_the_closed_forms_are_named() -> None:
    for call, named in (
        (lambda: forms.optimal_ratio(PAPER, 0, 600.0), "batch"),
        (lambda: forms.optimal_ratio(PAPER, 256, 0.0), "theta"),
        (lambda: forms.optimal_ratio(PAPER, 256, -600.0), "theta"),
        (lambda: forms.optimal_ratio(PAPER, 256, 600.0, "none"), "comm"),
        (lambda: forms.optimal_ratio(PAPER, 256, 600.0, instances=1), "instances"),
        (lambda: forms.barrier_ratio(PAPER, 256, 600.0, -1.0), "nu"),
        (lambda: forms.microbatch_ratio(PAPER, 256, 600.0, 0), "batches"),
        (lambda: forms.step_time(PAPER, 256, 600.0, [1.0, 0.0]), "ratio"),
        (lambda: forms.barrier_time(PAPER, 256, 600.0, 1.0, 2.0, workers=0), "workers"),
        (lambda: forms.throughput(-1.0, 256, 300.0), "ratio"),
        (lambda: occupancy.finite_load(256, 100.0, 0.0, 10), "mean_decode"),
        (lambda: occupancy.finite_load(256, 100.0, 5.0, 0), "requests"),
        (lambda: occupancy.theta([1.0], [0.0]), "steps"),
        (lambda: occupancy.theta([-1.0], [2.0]), "prompt_tokens"),
        (lambda: occupancy.theta([], []), "n >= 1"),
        (lambda: occupancy.theta([1.0, 2.0], [2.0]), "shape"),
        (lambda: occupancy.theta_from_moments(0.5, 1.0, 1.0), "steps"),
        (lambda: occupancy.theta_from_moments(5.0, 20.0, 1.0), "steps_squared"),
        (lambda: forms.feasible_ratios(1), "instances"),
        (lambda: Requests("x", np.array([1]), np.array([0])), "steps"),
        (lambda: Requests("x", np.array([1, 2]), np.array([3])), "shape"),
        (lambda: of_arrays([1.0], [np.nan]), "steps"),
        (lambda: fit(profiles.load("paper/tiny"), 8, 50.0), "no kernel costs"),
        (lambda: fit(profiles.load("h100/llama-3.1-8b"), 8, 0.0), "link_gb_per_s"),
        (lambda: fit(profiles.load("h100/llama-3.1-8b"), 0, 50.0), "batch"),
        (lambda: fit(profiles.load("h100/llama-3.1-8b"), 60_000, 50.0), "batch"),
        (lambda: Workload("w", poisson(1.0), (RequestClass(),)), "prompt"),
    ):
        with pytest.raises(InvalidArgument, match=named):
            call()
