"""Published numbers of SLAY: kernel, quadrature, features, fidelity, latency, memory and loss.

Luna, Bouhsine and Choromanski, "SLAY", ICML 2026 (arXiv 2602.04915), with the data files of its authors' repository. Ratios of
kernels, fits and break-even lengths were worked out from its formulas and tables.
"""

import math
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from llmgym.envs.attention import published
from llmgym.envs.attention.errors import error_of, provenance, table
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
from llmgym.profiles import slay
from llmgym.profiles.slay import anchor_kernel, quadrature, quadrature_kernel, yat_kernel

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
    assert found[:-1] == pytest.approx(RATIOS[nodes][:-1], abs=6e-4)
    assert found[-1] == pytest.approx(RATIOS[nodes][-1], abs=6e-5)
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
    assert quadrature_error(nodes, 0.01) == pytest.approx(error, rel=1.5e-3)


def test_kernel_without_a_polynomial_and_its_slope() -> None:
    x = np.linspace(-1.0, 0.95, 1000)
    assert np.abs(without_polynomial(x) - yat_kernel(x)).max() < 1e-14
    h = 1e-6
    slope = (yat_kernel(x + h) - yat_kernel(x - h)) / (2 * h)
    assert yat_slope(x) == pytest.approx(slope, rel=1e-5, abs=1e-8)


class TestFeatures:
    """What needs torch."""

    torch: Any = pytest.importorskip("torch")

    def generator(self, seed: int) -> Any:
        return self.torch.Generator().manual_seed(seed)

    def pair(self, d: int, cosine: float) -> tuple[Any, Any]:
        q, k = self.torch.zeros(2, 1, d, dtype=self.torch.float64)
        q[0, 0], k[0, 0], k[0, 1] = 1.0, cosine, math.sqrt(1.0 - cosine**2)
        return q, k

    def test_positive_random_features_are_unbiased(self) -> None:
        """Within three standard errors of e^(2 s x) = 1.241 at s = 0.13, x = 0.83."""
        torch, s, x = self.torch, 0.13, 0.83
        q, k = self.pair(8, x)
        omega = torch.randn(400_000, 8, generator=self.generator(0), dtype=torch.float64)
        root = math.sqrt(2 * s)
        found = ((root * omega @ q[0] - s).exp() * (root * omega @ k[0] - s).exp()).numpy()
        assert math.exp(2 * s * x) == pytest.approx(1.241, abs=5e-4)
        assert found.mean() == pytest.approx(math.exp(2 * s * x), abs=3 * found.std() / math.sqrt(len(found)))

    def test_random_features_of_the_class_estimate_the_quadrature(self) -> None:
        """With the exact polynomial, E[F(q) . F(k)] is K_R."""
        torch, x = self.torch, 0.6
        q, k = self.pair(6, x)
        found = []
        for seed in range(300):
            f = slay.Slay.draw(
                torch, 6, (3, 64, 0), self.generator(seed), polynomial=slay.EXACT, dtype=torch.float64
            )
            found.append(float((f(q) * f(k)).sum()))
        exact = float(quadrature_kernel(np.array(x), 3))
        assert np.mean(found) == pytest.approx(exact, abs=3.5 * np.std(found) / math.sqrt(len(found)))

    @pytest.mark.parametrize(("x", "expected"), [(0.0, 1.0), (0.5, 1.5), (1.0, 3.0)])
    def test_anchors_have_a_bias(self, x: float, expected: float) -> None:
        """E[(a.q)^2 (a.k)^2] d (d + 2) = 1 + 2 x^2, within 1 %."""
        torch, d = self.torch, 16
        q, k = self.pair(d, x)
        a = torch.nn.functional.normalize(
            torch.randn(400_000, d, generator=self.generator(1), dtype=torch.float64), dim=-1
        )
        found = float(((a @ q[0]) ** 2 * (a @ k[0]) ** 2).mean()) * d * (d + 2)
        assert found == pytest.approx(expected, rel=0.01)
        s, w = quadrature(2)
        ratio = float(anchor_kernel(np.array(x), d, 2)) / float((w * np.exp(2 * s * x)).sum())
        assert ratio * d * (d + 2) == pytest.approx(expected)

    @pytest.mark.parametrize("budget", [(1, 4, 8), (2, 16, 8), (3, 8, 16)])
    @pytest.mark.parametrize("length", [1, 64, 200, 384])
    def test_three_forms_agree(self, budget: tuple[int, int, int], length: int) -> None:
        """Recurrent, chunked and quadratic, to 1e-5 and far better in float64; no score is negative."""
        torch = self.torch
        heads = slay.Heads.draw(torch, 2, 16, length, 2, length, dtype=torch.float64)
        f = slay.Slay.draw(torch, 16, budget, self.generator(3), dtype=torch.float64)
        fq, fk = f(heads.q), f(heads.k)
        assert f.size == fq.shape[-1] == math.prod(budget) and (fq >= 0).all()
        scores = fq @ fk.transpose(-1, -2)
        assert (scores >= 0).all() and (scores.tril().sum(-1) > 0).all()
        whole = slay.quadratic(fq, fk, heads.v)
        for found in (slay.recurrent(torch, fq, fk, heads.v), slay.chunked(torch, fq, fk, heads.v)):
            assert float((found - whole).abs().max()) < 1e-10
        odd = slay.chunked(torch, fq, fk, heads.v, chunk=37)
        assert float((odd - whole).abs().max()) < 1e-10

    def test_three_forms_agree_in_float32(self) -> None:
        torch = self.torch
        heads = slay.Heads.draw(torch, 4, 32, 512, 1, 5)
        f = slay.Slay.draw(torch, 32, (2, 16, 8), self.generator(3))
        fq, fk = f(heads.q), f(heads.k)
        whole = slay.quadratic(fq, fk, heads.v)
        for found in (slay.recurrent(torch, fq, fk, heads.v), slay.chunked(torch, fq, fk, heads.v)):
            assert float((found - whole).abs().max()) < 1e-5

    def test_the_profiled_kernel_is_the_reference(self) -> None:
        from llmgym.profiles import linear_attention

        torch = self.torch
        heads = slay.Heads.draw(torch, 2, 16, 384, 1, 9)
        f = linear_attention.slay(torch, 16, 2, 8, 4, self.generator(4), "cpu")
        q, k, v = (x[0] for x in heads)
        found = linear_attention.linear(torch, q, k, v, f)
        assert float((found - slay.quadratic(f(q), f(k), v)).abs().max()) < 1e-5
        exact = slay.exact(torch, q, k, v)
        assert float((linear_attention.yat(torch, q, k, v) - exact).abs().max()) < 1e-6

    def test_norms_do_not_matter_and_zeros_are_safe(self) -> None:
        torch = self.torch
        heads = slay.Heads.draw(torch, 1, 8, 32, 1, 2, dtype=torch.float64)
        f = slay.Slay.draw(torch, 8, (2, 8, 8), self.generator(1), dtype=torch.float64)
        assert float((f(1e3 * heads.q) - f(heads.q)).abs().max()) < 1e-12
        empty = torch.zeros_like(heads.q)
        assert torch.isfinite(slay.quadratic(f(empty), f(empty), heads.v)).all()

    def errors(
        self,
        length: int,
        budget: tuple[int, int, int],
        *,
        polynomial: str = slay.ANCHOR,
        bias: bool = True,
        seeds: int = 4,
    ) -> float:
        """Relative error of a module of 4 heads of 16 with an output projection, batch 8, causal, eps = 1e-6."""
        torch, found = self.torch, []
        kernel = partial(yat_kernel, epsilon=1e-6)
        for seed in range(seeds):
            heads = slay.Heads.draw(torch, 4, 16, length, 8, seed, bias=bias)
            g = self.generator(100 + seed)
            own = [
                slay.Slay.draw(torch, 16, budget, g, polynomial=polynomial, epsilon=1e-6) for _ in range(4)
            ]

            def features(x: Any, own: Any = own) -> Any:
                """Directions of each head's own; anchors of the layer."""
                return torch.stack(
                    [f._replace(anchors=own[0].anchors)(x[:, i]) for i, f in enumerate(own)], 1
                )

            mix, offset = (2.0 * torch.rand(*size, generator=g) - 1.0 for size in ((64, 64), (64,)))
            outputs = []
            for y in (
                slay.quadratic(features(heads.q), features(heads.k), heads.v),
                slay.exact(torch, heads.q, heads.k, heads.v, kernel),
            ):
                joined = y.transpose(1, 2).flatten(-2) @ (mix / 8.0)
                outputs.append(joined + offset / 8.0 if bias else joined)
            found.append(slay.relative_error(torch, *outputs))
        return float(np.mean(found))

    @pytest.mark.parametrize(
        ("length", "budget", "published", "reproduced", "plain"),
        [
            (128, (2, 8, 8), 0.663, 0.669, 0.87),
            (256, (2, 16, 16), 0.567, 0.555, 0.80),
            (512, (2, 32, 32), 0.494, 0.469, 0.76),
        ],
    )
    def test_fidelity_of_anchors(
        self, length: int, budget: tuple[int, int, int], published: float, reproduced: float, plain: float
    ) -> None:
        """The three sizes of the ablation, within 0.03 of the paper's numbers and of a reproduction of them."""
        seeds = 1024 // length
        found = self.errors(length, budget, seeds=seeds)
        assert found == pytest.approx(published, abs=0.03) and found == pytest.approx(reproduced, abs=0.03)
        assert self.errors(length, budget, bias=False, seeds=seeds // 2) == pytest.approx(plain, abs=0.05)

    @pytest.mark.parametrize(
        ("length", "budget", "published"), [(128, (2, 64, 0), 0.587), (256, (2, 256, 0), 0.542)]
    )
    def test_fidelity_without_a_polynomial(
        self, length: int, budget: tuple[int, int, int], published: float
    ) -> None:
        """With as many features in all as anchors have, which is what the paper's times of it say."""
        found = self.errors(length, budget, polynomial=slay.LAPLACE)
        assert found == pytest.approx(published, abs=0.04)

    @pytest.mark.parametrize("budget", [Budget(1, 8, 8), Budget(2, 16, 8)])
    def test_the_shipped_errors_are_measured_anew(self, budget: Budget) -> None:
        """Other seeds, within three standard errors."""
        torch, found = self.torch, []
        for seed in range(50, 58):
            heads = slay.Heads.draw(torch, 1, 32, 256, 2, seed)
            f = slay.Slay.draw(torch, 32, budget, self.generator(seed))
            exact = slay.exact(torch, heads.q, heads.k, heads.v)
            found.append(slay.relative_error(torch, slay.quadratic(f(heads.q), f(heads.k), heads.v), exact))
        row = table()[32, "anchor", budget]
        assert np.mean(found) == pytest.approx(row.error, abs=3 * row.spread * math.sqrt(1 / 8 + 1 / 12))


def test_more_features_help_down_to_the_bias_of_anchors() -> None:
    """The floor is that of anchors; the quadrature is a hundredth of it."""
    assert set(provenance()) == {"date", "script", "method", "versions"}
    for d in (16, 32, 64, 128):
        limit = table()[d, "limit", Budget(3, 0, 0)].error
        errors = [error_of(Budget(3, m, 32), d) for m in (4, 8, 16, 32)]
        assert all(a > b for a, b in pairwise(errors)) and errors[-1] > limit
        assert table()[d, "quadrature", Budget(3, 0, 0)].error < 0.03 * limit
        assert table()[d, "exact", Budget(3, 32, 0)].error < 0.6 * limit


def test_errors_of_single_heads_by_budget() -> None:
    """Means of three seeds elsewhere, d = 64: within 0.03."""
    known = {(1, 4, 8): 0.880, (1, 8, 8): 0.823, (2, 16, 8): 0.793, (2, 16, 32): 0.721, (3, 32, 32): 0.701}
    for budget, error in known.items():
        assert error_of(Budget(*budget), 64) == pytest.approx(error, abs=0.03)
    assert table()[64, "limit", Budget(2, 0, 0)].error == pytest.approx(0.640, abs=0.03)


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
    sixteenfold = 16.0**published.SIZE_EXPONENT
    assert sixteenfold == pytest.approx(12.7, rel=0.02)
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
