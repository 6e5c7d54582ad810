"""Closed forms of SLAY: what it computes, what it remembers, and from which length on that is less than attention's matrix.

Luna, Bouhsine and Choromanski, "SLAY", ICML 2026 (arXiv 2602.04915), section 3, counted here: a product of matrices is two FLOP an
entry and term. The kernel itself, its quadrature and its features are in `llmgym.profiles.slay`.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmgym.profiles.slay import CHUNK, EPSILON, quadrature_kernel, yat_kernel

FLOAT32, BFLOAT16 = 4, 2
"""Bytes of a number."""


class Budget(NamedTuple):
    """Features of SLAY: R quadrature nodes, M random features of each, P anchors."""

    nodes: int
    features: int
    anchors: int

    @property
    def size(self) -> int:
        """Entries of a feature, m = R M P."""
        return self.nodes * self.features * self.anchors


REFERENCE = Budget(2, 16, 8)
"""The budget of the paper's language model, with the R of the released configuration."""


def yat_slope(x: NDArray[np.float64], epsilon: float = EPSILON) -> NDArray[np.float64]:
    """K'(x) of the spherical Yat kernel."""
    c = 2.0 + epsilon
    return 2.0 * x * (c - x) / (c - 2.0 * x) ** 2


def without_polynomial(x: NDArray[np.float64], epsilon: float = EPSILON) -> NDArray[np.float64]:
    """The spherical Yat kernel as C^2 / (4 (C - 2 x)) - C / 4 - x / 2, equal to `yat_kernel` and no sum of positive terms."""
    c = 2.0 + epsilon
    return c * c / (4.0 * (c - 2.0 * x)) - c / 4.0 - 0.5 * x


def quadrature_error(nodes: int, epsilon: float, reach: float = 0.9, points: int = 100) -> float:
    """Mean relative error of the quadrature over evenly spaced cosines.

    Args:
        nodes: R.
        epsilon: of the kernel.
        reach: cosines go from minus to plus this value.
        points: so many cosines.

    Returns:
        Mean of |quadrature - kernel| / kernel.
    """
    x = np.linspace(-reach, reach, points)
    exact = yat_kernel(x, epsilon)
    return float(np.mean(np.abs(quadrature_kernel(x, nodes, epsilon) - exact) / exact))


def linear_flop(budget: Budget, head_dim: int, chunk: int = CHUNK) -> float:
    """FLOP of SLAY per token and head: features, sums read and written, and the scores inside a chunk.

    Args:
        budget: of SLAY.
        head_dim: d, also of the values.
        chunk: tokens of a chunk.

    Returns:
        FLOP.
    """
    d, m = head_dim, budget.size
    features = 4.0 * (d * budget.anchors + budget.nodes * d * budget.features) + 4.0 * m
    sums = 4.0 * m * d + 2.0 * m
    inside = 2.0 * chunk * m + 2.0 * chunk * d * budget.nodes
    return features + sums + inside


def quadratic_flop(length: float, head_dim: int, causal: bool = True) -> float:
    """FLOP of attention with a matrix, per token and head.

    Args:
        length: of the sequence, tokens.
        head_dim: d, also of the values.
        causal: whether the matrix is only half computed.

    Returns:
        FLOP.
    """
    return (2.0 if causal else 4.0) * head_dim * length


def break_even_tokens(budget: Budget, head_dim: int, causal: bool = True, chunk: int = CHUNK) -> float:
    """The length from which on SLAY needs fewer FLOP; what it takes longer than that is measured (`Kernels.crossover`).

    Args:
        budget: of SLAY.
        head_dim: d, also of the values.
        causal: whether the matrix is only half computed.
        chunk: tokens of a chunk.

    Returns:
        Tokens, not rounded.
    """
    return linear_flop(budget, head_dim, chunk) / quadratic_flop(1.0, head_dim, causal)


def state_bytes(budget: Budget, head_dim: int) -> float:
    """Bytes that decoding remembers per head, in float32, however long the context is."""
    return float(FLOAT32 * budget.size * (head_dim + 1))


def cache_bytes(length: float, head_dim: int) -> float:
    """Bytes of keys and values per head in bfloat16."""
    return 2.0 * BFLOAT16 * head_dim * length


def equal_memory_tokens(budget: Budget, head_dim: int) -> float:
    """The length at which the cache of softmax attention is as large as the sums of SLAY: about m."""
    return state_bytes(budget, head_dim) / cache_bytes(1.0, head_dim)


def crossover_tokens(
    lengths: NDArray[np.float64], first: NDArray[np.float64], second: NDArray[np.float64]
) -> float:
    """The length from which on the first of two kernels takes less, logarithmic between those that were measured.

    Args:
        lengths: float64 [n], rising.
        first: what the kernel that wins in the end takes at each, float64 [n].
        second: what the other one takes.

    Returns:
        The length; infinity where the second takes less at the longest one, the first length where it never does.
    """
    gap = np.log(first / second)
    if gap[-1] >= 0.0:
        return float("inf")
    behind = np.flatnonzero(gap >= 0.0)
    if not len(behind):
        return float(lengths[0])
    i = int(behind[-1])
    part = gap[i] / (gap[i] - gap[i + 1])
    return float(lengths[i] * (lengths[i + 1] / lengths[i]) ** part)
