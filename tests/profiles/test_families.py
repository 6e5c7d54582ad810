"""What a kernel set is measured from: kernels that compute what they should, and a run that can be stopped."""

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from llmgym.errors import InvalidArgument, UnknownName  # noqa: E402
from llmgym.profiles import linear_attention as kernels  # noqa: E402
from llmgym.profiles import paper_families  # noqa: E402
from llmgym.profiles.bench import Device  # noqa: E402
from llmgym.profiles.families import QUICK as QUICK_GRID  # noqa: E402
from llmgym.profiles.families import Families, mixture  # noqa: E402
from llmgym.profiles.measure_kernels import FAMILIES, measure_kernels  # noqa: E402

QUICK = {"device": "cpu", "minutes": 0.01, "quick": True}


def heads(length: int, dim: int = 8) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(length)
    return tuple(torch.randn(2, length, dim, generator=generator) for _ in range(3))


def features(name: str, length: int) -> object:
    generator = torch.Generator().manual_seed(1)
    return {
        "elu": lambda: kernels.elu(torch),
        "cosformer": lambda: kernels.cosformer(torch, length),
        "favor": lambda: kernels.favor(torch, 8, 16, generator, "cpu"),
        "slay": lambda: kernels.slay(torch, 8, 2, 4, 3, generator, "cpu"),
    }[name]()


@pytest.mark.parametrize("length", [64, 384])
@pytest.mark.parametrize("name", ["elu", "cosformer", "favor", "slay"])
def test_chunks_give_what_the_whole_matrix_gives(name: str, length: int) -> None:
    q, k, v = heads(length)
    f = features(name, length)
    weights = (f(q) @ f(k).transpose(-1, -2)).tril()
    assert (weights >= 0).all()
    whole = (weights @ v) / (weights.sum(-1, keepdim=True) + kernels.DELTA)
    torch.testing.assert_close(kernels.linear(torch, q, k, v, f), whole, rtol=1e-4, atol=1e-5)


def test_slay_features_estimate_its_kernel() -> None:
    """E[F(q) . F(k)] = (1 + 2 x^2) / (d (d + 2)) times the quadrature of exp(2 s x) (arXiv 2602.04915, section 3)."""
    import numpy as np

    generator = torch.Generator().manual_seed(0)
    q, k = torch.nn.functional.normalize(torch.randn(2, 1, 8, generator=generator), dim=-1)
    x = float(q[0] @ k[0])
    nodes, weights = np.polynomial.laguerre.laggauss(2)
    c = 2 + kernels.EPSILON
    exact = (1 + 2 * x * x) / 80 * float((weights / c * np.exp(2 * nodes / c * x)).sum())
    found = []
    for _ in range(300):
        f = kernels.slay(torch, 8, 2, 32, 32, generator, "cpu")
        found.append(float((f(q) * f(k)).sum()))
    assert np.mean(found) == pytest.approx(exact, abs=4 * np.std(found) / len(found) ** 0.5)


def test_yat_is_its_definition() -> None:
    q, k, v = heads(12)
    found = kernels.yat(torch, q, k, v)
    for i in range(12):
        a, b = q[0, i] / q[0, i].norm(), k[0, : i + 1] / k[0, : i + 1].norm(dim=-1, keepdim=True)
        x = b @ a
        weight = x**2 / (2 + kernels.EPSILON - 2 * x)
        torch.testing.assert_close(
            found[0, i], weight @ v[0, : i + 1] / (weight.sum() + kernels.DELTA), rtol=1e-3, atol=1e-4
        )


def test_a_mixture_sends_each_token_to_its_experts() -> None:
    generator = torch.Generator().manual_seed(3)
    x, router = torch.randn(9, 6, generator=generator), torch.randn(5, 6, generator=generator)
    up, down = torch.randn(5, 6, 8, generator=generator), torch.randn(5, 4, 6, generator=generator)
    found = mixture(torch, x, router, up, down, 2)
    for i in range(9):
        share, chosen = (x[i] @ router.T).softmax(-1).topk(2)
        expected = torch.zeros(6)
        for w, e in zip(share, chosen, strict=True):
            left, right = (x[i] @ up[e]).chunk(2)
            expected += w * (torch.nn.functional.silu(left) * right) @ down[e]
        torch.testing.assert_close(found[i], expected, rtol=1e-4, atol=1e-5)


def test_no_family_is_left_out_of_the_order() -> None:
    common = Families(Device("cpu"), QUICK_GRID)
    known = [*common.known, *paper_families.known(common)]
    assert sorted(FAMILIES) == sorted(known)


def test_a_stopped_run_goes_on_and_a_failing_case_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    families = ("memory", "host", "paged")
    seen: list[str] = []

    def stop(at: int, total: int, what: str) -> None:
        seen.append(what)
        if at == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_kernels(tmp_path, families=families, progress=stop, **QUICK)
    log = tmp_path / "rows.csv"
    log.write_bytes(log.read_bytes()[:-5])  # as if it had been killed while it wrote
    again: list[str] = []
    found = measure_kernels(
        tmp_path, families=families, progress=lambda at, total, what: again.append(what), **QUICK
    )
    assert len(again) == 16 - 3 and set(again) | set(seen) == set(again) | set(seen[:3])
    assert found.ops().keys() == {"score", "top_k", "gather", "sparse_attention", "bm25", "host_step"}
    assert {skipped["reason"] for skipped in found.meta["skipped"]} == {
        "RuntimeError: Triton needs a CUDA device"
    }
    times = [row.latency_us for row in found.rows]
    monkeypatch.setattr(
        "llmgym.profiles.measure_kernels._measure_case", lambda *_: pytest.fail("measured twice")
    )
    assert [row.latency_us for row in measure_kernels(tmp_path, families=families, **QUICK).rows] == times


def test_wrong_input(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match=r"unknown family 'memry'. Did you mean 'memory'"):
        measure_kernels(tmp_path, families=("memry",), **QUICK)
    (tmp_path / "rows.csv").write_text("# kernels on another machine\n")
    with pytest.raises(InvalidArgument, match="holds 'kernels on another machine'"):
        measure_kernels(tmp_path, families=("host",), **QUICK)
    with pytest.raises(InvalidArgument, match="minutes=0"):
        measure_kernels(tmp_path / "new", families=("host",), device="cpu", minutes=0, quick=True)


@pytest.mark.slow
def test_every_family_runs_on_a_cpu(tmp_path: Path) -> None:
    found = measure_kernels(tmp_path, **QUICK)
    assert set(found.ops()) >= {
        "gemm",
        "moe",
        "prefill_attention",
        "ffn_part",
        "denoiser_layer",
        "segment",
        "causal_attention",
    }
    assert {skipped["op"] for skipped in found.meta["skipped"]} == {"paged_decode"}
    assert Families.__doc__
