"""Features of SLAY in torch: means, signs, three forms of attention, and the published errors of layers and single heads.

Luna, Bouhsine and Choromanski, "SLAY", ICML 2026 (arXiv 2602.04915); the grid of errors was worked out elsewhere from its formulas.
"""

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from llmgym.envs.attention.errors import error_of, provenance, table
from llmgym.envs.attention.law import Budget, state_bytes
from llmgym.errors import UnknownName
from llmgym.profiles import slay
from llmgym.profiles.slay import anchor_kernel, quadrature, quadrature_kernel
from tests.papers.deviations import KNOWN
from tests.papers.slay import layer_error


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
        found = layer_error(length, budget, seeds=seeds)
        assert found == pytest.approx(published, abs=0.03) and found == pytest.approx(reproduced, abs=0.03)
        if f"slay/fidelity without a bias {length}" not in KNOWN:
            assert layer_error(length, budget, bias=False, seeds=seeds // 2) == pytest.approx(plain, abs=0.03)

    @pytest.mark.parametrize(
        ("length", "budget", "published", "reproduced"),
        [
            (128, (2, 64, 0), 0.587, 0.590),
            (256, (2, 256, 0), 0.542, 0.525),
            pytest.param(512, (2, 1024, 0), 0.485, 0.454, marks=pytest.mark.slow),
        ],
    )
    def test_fidelity_without_a_polynomial(
        self, length: int, budget: tuple[int, int, int], published: float, reproduced: float
    ) -> None:
        """With as many features in all as anchors have, which is what the paper's times of it say."""
        found = layer_error(length, budget, polynomial=slay.LAPLACE, seeds=max(1024 // length, 3))
        assert found == pytest.approx(published, abs=0.04) and found == pytest.approx(reproduced, abs=0.04)

    def test_fidelity_of_pairs(self) -> None:
        """The middle one of three sizes; for the others see the deviations."""
        assert layer_error(256, (2, 16, 0), polynomial=slay.HADAMARD) == pytest.approx(0.661, abs=0.03)

    @pytest.mark.parametrize("polynomial", [slay.SKETCH, slay.MACLAURIN])
    def test_features_with_a_sign_are_of_no_use(self, polynomial: str) -> None:
        """Sums of scores come near 0 and the output far from it: errors above 5 where anchors have 0.67."""
        assert layer_error(128, (2, 8, 8), polynomial=polynomial, seeds=3) > 5.0

    @pytest.mark.parametrize("polynomial", [slay.SKETCH, slay.MACLAURIN])
    @pytest.mark.parametrize("x", [0.0, 0.6, -0.9])
    def test_sketches_estimate_the_square_without_a_bias(self, polynomial: str, x: float) -> None:
        """Within 3.5 standard errors of K_1, whatever P is; with more nodes the mean has too long a tail to be tested."""
        torch, found, g = self.torch, [], self.generator(0)
        q, k = self.pair(6, x)
        for _ in range(300):
            f = slay.Slay.draw(torch, 6, (1, 16, 8), g, polynomial=polynomial, dtype=torch.float64)
            assert f.size == f(q).shape[-1] == 128
            found.append(float((f(q) * f(k)).sum()))
        exact = float(quadrature_kernel(np.array(x), 1))
        assert np.mean(found) == pytest.approx(exact, abs=3.5 * np.std(found) / math.sqrt(len(found)))

    def test_landmarks_that_span_all_squares_are_exact(self) -> None:
        """d (d + 1) / 2 of them and more: x^2 to rounding; with fewer the kernel of what they span, which is no larger."""
        torch, d = self.torch, 4
        q, k = self.pair(d, 0.37)
        whole = slay.Slay.draw(torch, d, (1, 8, 32), self.generator(0), dtype=torch.float64)
        for anchors, exact in ((32, True), (4, False)):
            f = slay.Slay.draw(
                torch, d, (1, 8, anchors), self.generator(0), polynomial=slay.NYSTROM, dtype=torch.float64
            )
            assert f.size == f(q).shape[-1] == 8 * anchors
            random = whole._replace(polynomial=slay.LAPLACE, directions=f.directions)
            squared = float((f(q) * f(k)).sum() / (random(q) * random(k)).sum())
            own = float((f(q) * f(q)).sum() / (random(q) * random(q)).sum())
            assert (squared == pytest.approx(0.37**2, rel=1e-4)) == exact
            assert own < 1.0 + 1e-6 and (own > 1.0 - 1e-4) == exact

    def test_pairs_of_features_have_the_mean_of_all_of_them(self) -> None:
        """Each random feature times one anchor: R M features, whose mean kernel is the one of R M P."""
        torch, x, found, g = self.torch, 0.6, [], self.generator(0)
        q, k = self.pair(6, x)
        for _ in range(300):
            f = slay.Slay.draw(torch, 6, (1, 32, 0), g, polynomial=slay.HADAMARD, dtype=torch.float64)
            assert f.size == f(q).shape[-1] == 32
            found.append(float((f(q) * f(k)).sum()))
        exact = float(anchor_kernel(np.array(x), 6, 1))
        assert np.mean(found) == pytest.approx(exact, abs=3.5 * np.std(found) / math.sqrt(len(found)))

    def test_only_positive_features_keep_denominators_positive(self) -> None:
        """Sketches, Maclaurin features and landmarks have negative scores; of the sums over them a tenth to a third is negative
        with the first two at R = 2, M = P = 16 (the authors measure 15 to 19 %, at sizes that are not told). Anchors have none.
        """
        torch = self.torch
        heads = slay.Heads.draw(torch, 4, 16, 256, 1, 0)
        for polynomial in slay.POLYNOMIALS:
            negative = []
            for seed in range(4):
                budget = (2, 16, 16)
                f = slay.Slay.draw(torch, 16, budget, self.generator(seed), polynomial=polynomial)
                scores = (f(heads.q) @ f(heads.k).transpose(-1, -2)).tril()
                negative.append(((scores < -1e-6).float().mean(), (scores.sum(-1) < 0).float().mean()))
            single, sums = np.mean(negative, axis=0)
            assert (single > 0.01) == (polynomial in (slay.NYSTROM, slay.SKETCH, slay.MACLAURIN)), polynomial
            if polynomial in (slay.SKETCH, slay.MACLAURIN):
                assert 0.1 < sums < 0.33, polynomial
            else:
                assert sums < (0.01 if polynomial == slay.NYSTROM else 1e-12), polynomial

    def test_what_decoding_remembers_does_not_grow(self) -> None:
        """m (dv + 1) numbers a head in float32, after one token as after many."""
        torch, budget = self.torch, Budget(2, 4, 8)
        heads = slay.Heads.draw(torch, 1, 16, 40, 1, 0)
        f = slay.Slay.draw(torch, 16, tuple(budget), self.generator(0))
        sums = slay.Sums.empty(f(heads.k), heads.v)
        for i in range(40):
            _, sums = sums.step(*(x[..., i, :] for x in (f(heads.q), f(heads.k), heads.v)))
            held = sum(part.numel() * part.element_size() for part in sums)
            assert held == budget.size * (16 + 1) * 4 == state_bytes(budget, 16)
        assert sums.values.dtype is torch.float32

    def test_exponents_are_cut_off(self) -> None:
        """At plus and minus 20."""
        torch = self.torch
        f = slay.Slay.draw(torch, 4, (1, 2, 1), self.generator(0), polynomial=slay.LAPLACE)
        far = f._replace(directions=1e4 * f.directions)
        x = torch.tensor([[1.0, 0.0, 0.0, 0.0]])
        scale = math.sqrt(2.001**2 / 4.0 * 0.49975 / 2.0)
        ends = np.sign(far.directions[:, 0].numpy()) * 20.0
        assert far(x)[0].numpy() == pytest.approx(np.exp(ends) * scale, rel=1e-4)

    def test_a_polynomial_that_is_none(self) -> None:
        with pytest.raises(UnknownName, match="cubic"):
            slay.Slay.draw(self.torch, 4, (1, 2, 1), polynomial="cubic")

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


GRID = {  # M = 4, 8, 16, 32, and P = 8, 16, 32 of each; three seeds elsewhere
    (16, 1): ".658 .640 .617 .622 .591 .570 .604 .574 .551 .570 .542 .526",
    (16, 2): ".621 .601 .589 .616 .586 .562 .588 .560 .546 .570 .538 .521",
    (16, 3): ".640 .605 .591 .599 .579 .557 .586 .558 .538 .571 .539 .524",
    (64, 1): ".880 .835 .811 .823 .776 .755 .796 .749 .722 .778 .731 .707",
    (64, 2): ".854 .810 .785 .800 .759 .738 .793 .746 .721 .769 .729 .700",
    (64, 3): ".841 .794 .769 .794 .758 .734 .780 .741 .717 .766 .734 .701",
}
OTHER_POLYNOMIALS = {  # exact x^2 with M = 4, 8, 16, 32; quadrature alone; anchors and random features without end
    (16, 1): (0.422, 0.340, 0.287, 0.228, 0.085, 0.470),
    (16, 2): (0.380, 0.349, 0.314, 0.261, 0.030, 0.443),
    (16, 3): (0.371, 0.356, 0.299, 0.249, 0.012, 0.437),
    (64, 1): (0.536, 0.413, 0.326, 0.252, 0.021, 0.647),
    (64, 2): (0.455, 0.379, 0.332, 0.277, 0.002, 0.640),
    (64, 3): (0.422, 0.367, 0.318, 0.286, 0.000, 0.640),
}


def cells(d: int, nodes: int) -> dict[Budget, float]:
    """The anchors' part of the grid."""
    values = GRID[d, nodes].split()
    return {
        Budget(nodes, (4, 8, 16, 32)[n // 3], (8, 16, 32)[n % 3]): float(values[n])
        for n in range(len(values))
    }


@pytest.mark.parametrize(("d", "nodes"), GRID)
def test_the_grid_of_errors_of_shipped_budgets(d: int, nodes: int) -> None:
    """Heads of 64, and what is not anchors: within three standard errors, of three seeds there and twelve here."""
    *exact, alone, limit = OTHER_POLYNOMIALS[d, nodes]
    expected = {("exact", Budget(nodes, m, 0)): exact[i] for i, m in enumerate((4, 8, 16, 32))}
    expected |= {("quadrature", Budget(nodes, 0, 0)): alone, ("limit", Budget(nodes, 0, 0)): limit}
    if d == 64:
        expected |= {("anchor", budget): value for budget, value in cells(d, nodes).items()}
    for (polynomial, budget), value in expected.items():
        found = table()[d, polynomial, budget]
        margin = 3.0 * found.spread * math.sqrt(1 / 3 + 1 / 12) + 5e-4
        assert found.error == pytest.approx(value, abs=margin), (polynomial, budget)


def close_to_grid(budget: Budget, expected: float) -> None:
    """Within three standard errors: of three seeds there and four here, which spread by 0.0226 on average over the grid."""
    found = layer_error(256, tuple(budget), epsilon=1e-3, batch=4)
    assert found == pytest.approx(expected, abs=3.0 * 0.0226 * math.sqrt(1 / 3 + 1 / 4)), budget


@pytest.mark.parametrize("nodes", [1, 2, 3])
def test_the_grid_of_errors_of_a_layer_of_heads_of_16(nodes: int) -> None:
    """The smallest budget, the largest and one between."""
    grid = cells(16, nodes)
    for budget in (Budget(nodes, 4, 8), Budget(nodes, 16, 16), Budget(nodes, 32, 32)):
        close_to_grid(budget, grid[budget])


@pytest.mark.slow
@pytest.mark.parametrize("nodes", [1, 2, 3])
def test_the_whole_grid_of_errors_of_a_layer(nodes: int) -> None:
    for budget, expected in cells(16, nodes).items():
        close_to_grid(budget, expected)
