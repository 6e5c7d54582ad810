"""Published numbers of SLAY: kernel, quadrature, features, fidelity, latency, memory and loss.

Luna, Bouhsine and Choromanski, "SLAY", ICML 2026 (arXiv 2602.04915), with the data files of its authors' repository. Ratios of
kernels, fits and break-even lengths were worked out from its formulas and tables.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from scipy.integrate import quad

from llmgym.envs.attention import published
from llmgym.envs.attention.decoding import Decoder
from llmgym.envs.attention.law import (
    REFERENCE,
    Budget,
    break_even_tokens,
    crossover_tokens,
    equal_memory_tokens,
    quadrature_error,
    without_polynomial,
    yat_slope,
)
from llmgym.errors import InvalidArgument
from llmgym.profiles import slay
from llmgym.profiles.slay import quadrature, quadrature_kernel, yat_kernel
from tests.papers.deviations import Deviation, check, every_deviation
from tests.papers.slay import layer_error, median_error

RATIOS = {  # K_R / K at eps = 1e-3
    1: (0.736, 0.910, 0.825, 0.530, 0.247, 0.131, 0.028, 0.0014),
    2: (0.960, 0.995, 0.976, 0.806, 0.463, 0.264, 0.061, 0.0030),
    3: (0.995, 1.000, 0.997, 0.923, 0.623, 0.383, 0.095, 0.0047),
    8: (1.000, 1.000, 1.000, 0.999, 0.942, 0.757, 0.253, 0.0138),
}
COSINES = np.array([-1.0, -0.5, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0])


@pytest.mark.parametrize(
    ("nodes", "s", "w"),
    [
        (1, (0.49975,), (0.49975,)),
        (2, (0.29275, 1.70625), (0.42656, 0.07319)),
        (3, (0.20778, 1.14657, 3.14340), (0.35537, 0.13919, 0.00519)),
    ],
)
def test_nodes_and_weights(nodes: int, s: tuple[float, ...], w: tuple[float, ...]) -> None:
    found_s, found_w = quadrature(nodes)
    assert found_s == pytest.approx(s, abs=6e-6) and found_w == pytest.approx(w, abs=6e-6)


@pytest.mark.parametrize("nodes", RATIOS)
def test_what_quadrature_leaves_of_the_kernel(nodes: int) -> None:
    """To the digits that are known: the peak at x = 1 is cut off."""
    found = quadrature_kernel(COSINES, nodes) / yat_kernel(COSINES)
    assert found[:-1] == pytest.approx(RATIOS[nodes][:-1], abs=5.5e-4)
    assert found[-1] == pytest.approx(RATIOS[nodes][-1], abs=5e-5)
    assert float(yat_kernel(np.array(1.0))) == pytest.approx(1000.0)


@pytest.mark.parametrize(
    ("nodes", "error"),
    [
        (1, 0.15364),
        (2, 0.04651),
        (3, 0.02075),
        (5, 0.00600),
        (8, 0.001244),
        (10, 0.000473),
        (15, 4.81e-5),
    ],
)
def test_convergence_of_the_quadrature(nodes: int, error: float) -> None:
    """Over 100 cosines from -0.9 to 0.9, eps = 0.01."""
    assert quadrature_error(nodes, 0.01) == pytest.approx(error, rel=1e-3)


def test_kernel_without_a_polynomial_and_its_slope() -> None:
    x = np.linspace(-1.0, 0.95, 1000)
    largest = 2.001**2 / (4.0 * (2.001 - 2.0 * x))
    assert (np.abs(without_polynomial(x) - yat_kernel(x)) / largest).max() < 4e-16  # rounding
    h = 1e-6
    slope = (yat_kernel(x + h) - yat_kernel(x - h)) / (2 * h)
    assert yat_slope(x) == pytest.approx(slope, rel=1e-5, abs=1e-8)


def test_the_kernel_is_an_integral_and_positive_definite() -> None:
    """K(x) is the integral of e^(-s C) x^2 e^(2 s x); it rises to 1 / eps; matrices of unit vectors have no negative eigenvalue."""
    for x in (-1.0, -0.3, 0.0, 0.6, 0.9):
        found, _ = quad(lambda s, x=x: x * x * math.exp((2.0 * x - 2.01) * s), 0.0, np.inf)
        assert found == pytest.approx(float(yat_kernel(np.array(x), 0.01)), rel=1e-8, abs=1e-12)
    assert yat_kernel(np.linspace(-1.0, 1.0, 1001)).argmax() == 1000
    rng = np.random.default_rng(0)
    for d in (2, 3, 16):
        u = rng.normal(size=(200, d))
        u /= np.linalg.norm(u, axis=1, keepdims=True)
        for epsilon in (1e-3, 0.1):
            gram = yat_kernel(np.clip(u @ u.T, -1.0, 1.0), epsilon)
            assert np.linalg.eigvalsh(gram).min() > -1e-12 * len(u) / epsilon


def row(name: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Lengths, ms, MiB."""
    ms, mib = np.array(published.LATENCY_MS[name]), np.array(published.MEMORY_MIB[name])
    return np.array(published.LENGTHS[: len(ms)], float), ms, mib


def test_crossovers_of_the_published_figure() -> None:
    length, softmax_ms, softmax_mib = row("softmax")
    _, yat_ms, _ = row("yat")
    _, ms, mib = row("slay")
    n = len(length)
    assert crossover_tokens(length, ms[:n], softmax_ms) == pytest.approx(3190, rel=0.05)
    assert crossover_tokens(length, ms[:n], yat_ms) == pytest.approx(2370, rel=0.05)
    assert crossover_tokens(length, mib[:n], softmax_mib) == pytest.approx(1475, rel=0.05)
    assert softmax_ms[-1] / ms[n - 1] == pytest.approx(4.50, abs=0.005)
    assert softmax_mib[-1] / mib[n - 1] == pytest.approx(53.3, abs=0.05)
    assert mib[-1] == 2442.2


def test_laws_of_the_published_figure() -> None:
    for name, fit, within in (
        ("softmax", published.softmax_fit_ms, 0.13),
        ("slay", published.slay_fit_ms, 0.09),
        ("favor", published.favor_fit_ms, 0.12),
    ):
        length, ms, _ = row(name)
        assert np.abs(fit(length) / ms - 1).max() <= within + 0.005, name
    length, _, mib = row("softmax")
    assert published.softmax_fit_mib(length) == pytest.approx(mib, rel=0.01)
    length, _, mib = row("slay")
    assert published.slay_fit_mib(length) == pytest.approx(mib, abs=0.06)


@pytest.mark.parametrize(("tflops", "tokens"), [(50, 107e3), (100, 213e3), (150, 318e3)])
def test_published_times_lose_to_a_fused_kernel_for_long(tflops: float, tokens: float) -> None:
    """2 L^2 x 256 FLOP of a causal layer against the affine law."""
    lengths = np.geomspace(1e4, 1e6, 4000)
    fused_ms = 1e3 * 2 * lengths**2 * 256 / (1e12 * tflops)
    assert crossover_tokens(lengths, published.slay_fit_ms(lengths), fused_ms) == pytest.approx(
        tokens, rel=0.02
    )


def test_latency_of_other_budgets() -> None:
    """16 times the features take 12.7 times as long, as on a P100; the published budget takes what is published."""
    large, small, favor = (published.P100_MS[name][-1] for name in ("slay 2 16 32", "slay 2 4 8", "favor 64"))
    assert large / small == pytest.approx(12.7, abs=0.05) and favor == pytest.approx(small, rel=0.01)
    assert math.log(large / small, 16) == pytest.approx(published.SIZE_EXPONENT, abs=0.005)
    assert published.slay_ms(REFERENCE) == pytest.approx(published.LATENCY_MS["slay"])
    larger = published.slay_ms(Budget(2, 16, 32)) - published.FIXED_MS
    assert larger / (published.slay_ms(REFERENCE) - published.FIXED_MS) == pytest.approx(
        4**published.SIZE_EXPONENT
    )


def test_losses() -> None:
    gaps = {
        "slay": 0.0343,
        "yat": 0.0763,
        "elu": 0.4467,
        "cosformer": 0.5566,
        "favor": 0.8107,
        "exact yat": -0.0670,
    }
    for name, gap in gaps.items():
        assert published.loss_gap(name) == gap
    for name, loss in published.LOSS.items():
        assert math.exp(loss) == pytest.approx(published.PERPLEXITY[name], rel=1e-3)


def test_break_even_in_operations_and_in_memory() -> None:
    budget = Budget(2, 8, 16)
    assert budget.size == 256
    assert break_even_tokens(budget, 32, causal=False) == pytest.approx(940, rel=0.005)
    assert break_even_tokens(budget, 32) == pytest.approx(1880, rel=0.005)
    assert equal_memory_tokens(REFERENCE, 64) == pytest.approx(260, rel=0.001)


def test_what_decoding_holds_and_takes() -> None:
    """Softmax grows by 4 d L bytes a head and layer, SLAY does not grow; counts and times by hand."""
    one = Decoder(
        heads=8, head_dim=64, layers=12, weights_bytes=1e9, free_bytes=8e9, bandwidth_bytes_per_s=2e12
    )
    for context in (100, 260, 1000, 131_072):
        assert one.sequence_bytes(context) == 4 * 64 * context * 8 * 12
        assert one.sequence_bytes(context, REFERENCE) == 4 * 256 * 65 * 8 * 12
        held = one.most_sequences(context)
        assert held * one.sequence_bytes(context) <= 8e9 < (held + 1) * one.sequence_bytes(context)
        assert (held < one.most_sequences(context, REFERENCE)) == (context > 260)  # where both hold as much
    assert one.most_sequences(131_072) == 2 and one.most_sequences(131_072, REFERENCE) == 1252
    assert one.token_s(2, 131_072) == pytest.approx((1e9 + 2 * 4 * 64 * 131_072 * 96) / 2e12, rel=1e-12)
    assert one.token_s(3, 131_072) == math.inf
    # the sums are written, too
    assert one.faster_from_tokens(REFERENCE) == pytest.approx(520)
    assert one.token_s(9, 519) < one.token_s(9, 519, REFERENCE) and one.token_s(9, 521) > one.token_s(
        9, 521, REFERENCE
    )
    assert one.token_s(0, 1) == 1e9 / 2e12


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda one: one.token_s(-1, 5), "sequences=-1"),
        (lambda one: one.sequence_bytes(0), "context=0"),
        (lambda one: replace(one, layers=0), "layers=0"),
        (lambda one: replace(one, free_bytes=0.0), "free_bytes=0"),
    ],
)
def test_wrong_numbers_of_a_decoder(call: Any, match: str) -> None:
    with pytest.raises(InvalidArgument, match=match):
        call(Decoder(8, 64, 12, 1e9, 8e9, 2e12))


OURS: dict[str, Callable[[], float]] = {
    "slay/fidelity without a bias 128": lambda: layer_error(128, (2, 8, 8), bias=False, seeds=8),
    **{
        f"slay/fidelity hadamard {length}": partial(
            layer_error, length, (2, m, 0), polynomial=slay.HADAMARD, seeds=1024 // length
        )
        for length, m in ((128, 8), (512, 32))
    },
    **{
        f"slay/fidelity nystrom {length}": partial(median_error, slay.NYSTROM, length, m)
        for length, m in ((128, 8), (256, 16))
    },
    "slay/fidelity nystrom 512": partial(median_error, slay.NYSTROM, 512, 32, 3),
    "slay/fidelity sketch 128": partial(median_error, slay.SKETCH, 128, 8),
    "slay/fidelity maclaurin 128": partial(median_error, slay.MACLAURIN, 128, 8),
}
"""What is printed elsewhere and not reached, as it is here."""


@every_deviation("slay")
def test_deviations(row: Deviation) -> None:
    check(row, OURS)
