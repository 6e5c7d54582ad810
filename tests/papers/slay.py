"""How far a layer with SLAY's features is from one with the exact kernel, on random input."""

from functools import partial
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from llmgym.profiles import slay
from llmgym.profiles.slay import yat_kernel


def layer_errors(
    length: int,
    budget: tuple[int, int, int],
    *,
    polynomial: str = slay.ANCHOR,
    bias: bool = True,
    seeds: int = 4,
    epsilon: float = 1e-6,
    batch: int = 8,
) -> NDArray[np.float64]:
    """Relative errors of a causal layer of 4 heads of 16 with an output projection, float64 [seeds].

    Args:
        length: tokens.
        budget: R, M, P.
        polynomial: of the features.
        bias: whether projections have one.
        seeds: how many, from 0 on.
        epsilon: of the kernel.
        batch: sequences.
    """
    torch, found = pytest.importorskip("torch"), []
    kernel = partial(yat_kernel, epsilon=epsilon)
    for seed in range(seeds):
        heads = slay.Heads.draw(torch, 4, 16, length, batch, seed, bias=bias)
        g = torch.Generator().manual_seed(100 + seed)
        own = [slay.Slay.draw(torch, 16, budget, g, polynomial=polynomial, epsilon=epsilon) for _ in range(4)]

        def features(x: Any, own: Any = own) -> Any:
            """Directions of each head's own; anchors of the layer."""
            return torch.stack(
                [f._replace(projections=own[0].projections)(x[:, i]) for i, f in enumerate(own)], 1
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
    return np.array(found)


def layer_error(*arguments: Any, **others: Any) -> float:
    """Their mean."""
    return float(layer_errors(*arguments, **others).mean())


def median_error(polynomial: str, length: int, m: int, seeds: int = 5) -> float:
    """Their median, R = 2, M = P = m."""
    return float(np.median(layer_errors(length, (2, m, m), polynomial=polynomial, seeds=seeds)))
