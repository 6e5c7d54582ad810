"""SLAY in torch, as the paper defines it: kernel, quadrature, features, and one attention in three forms.

Luna, Bouhsine and Choromanski, "SLAY", ICML 2026 (arXiv 2602.04915), section 3. Queries and keys become unit vectors with cosine x.
The spherical Yat kernel K(x) = x^2 / (C - 2 x), C = 2 + eps, is an integral over s of e^(-s C) x^2 e^(2 s x). Gauss-Laguerre
quadrature makes a sum of R terms of it, K_R(x) = x^2 sum_r w_r e^(2 s_r x). Each term is the product of a polynomial and of an
exponential, and each of these gets features: squared projections on P anchors, and M positive random features. A feature of the
whole has m = R P M entries, none negative.

`quadratic` writes the matrix of scores out, `recurrent` keeps one sum of m (dv + 1) numbers and reads it token by token, as a
decoder does, and `chunked` is between the two, as a prefill is run. They are one function up to rounding. The features are those
that `llmgym.profiles.linear_attention` times. Everything works in the dtype of the features, float32 or float64.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmgym.errors import UnknownName

EPSILON = 1e-3
"""eps of the kernel in the paper's language models."""
DELTA = 1e-6
"""Added to denominators (`delta` of the paper)."""
FLOOR = 1e-6
"""Least norm that a query or key is divided by."""
CLIP = 20.0
"""Exponents of the random features are cut off at plus and minus this value, as in the authors' code."""
CHUNK = 128
"""Tokens of a chunk, as in the authors' code."""

ANCHOR, EXACT, LAPLACE = "anchor", "exact", "laplace"
HADAMARD, NYSTROM, SKETCH, MACLAURIN = "hadamard", "nystrom", "sketch", "maclaurin"
POLYNOMIALS = (ANCHOR, EXACT, LAPLACE, HADAMARD, NYSTROM, SKETCH, MACLAURIN)
"""What stands for x^2. `ANCHOR` has squared projections on anchors, `EXACT` all products of two entries, `LAPLACE` nothing. The
others are those that the paper compares with. `HADAMARD` pairs each random feature with an anchor instead of all of them, so that
m = R M. `NYSTROM` are squared projections on landmarks, whitened (Williams and Seeger, NIPS 2000). `SKETCH` is a TensorSketch (Pham
and Pagh, KDD 2013), `MACLAURIN` random Maclaurin features (Kar and Karnick, AISTATS 2012): both estimate x^2 without a bias, and
some scores are negative."""
RIDGE = 1e-6
"""Least eigenvalue of the landmarks' matrix that `NYSTROM` divides by."""


def quadrature(nodes: int, epsilon: float = EPSILON) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Nodes s_r and weights w_r of the Gauss-Laguerre rule for the kernel, float64 [nodes] each."""
    t, alpha = np.polynomial.laguerre.laggauss(nodes)
    return t / (2.0 + epsilon), alpha / (2.0 + epsilon)


def yat_kernel(x: Any, epsilon: float = EPSILON) -> Any:
    """The spherical Yat kernel of cosines `x`, an array of numpy or a tensor of torch."""
    return x * x / (2.0 + epsilon - 2.0 * x)


def quadrature_kernel(x: NDArray[np.float64], nodes: int, epsilon: float = EPSILON) -> NDArray[np.float64]:
    """K_R(x): the kernel that the quadrature gives of cosines.

    Args:
        x: cosines, float64 of any shape.
        nodes: R.
        epsilon: of the kernel.

    Returns:
        float64 of the shape of `x`.
    """
    s, w = quadrature(nodes, epsilon)
    return x * x * (w * np.exp(2.0 * s * np.asarray(x)[..., None])).sum(-1)


def anchor_kernel(
    x: NDArray[np.float64], head_dim: int, nodes: int, epsilon: float = EPSILON
) -> NDArray[np.float64]:
    """What anchor features estimate, however many there are: (1 + 2 x^2) / (d (d + 2)) in the place of x^2.

    Args:
        x: cosines, float64 of any shape.
        head_dim: d, entries of a query.
        nodes: R.
        epsilon: of the kernel.

    Returns:
        float64 of the shape of `x`.
    """
    s, w = quadrature(nodes, epsilon)
    anchors = (1.0 + 2.0 * np.asarray(x) ** 2) / (head_dim * (head_dim + 2.0))
    return anchors * (w * np.exp(2.0 * s * np.asarray(x)[..., None])).sum(-1)


def unit(torch: Any, x: Any) -> Any:
    """The rows of `x` [..., size], scaled to length one."""
    return torch.nn.functional.normalize(x, dim=-1, eps=FLOOR)


class Slay(NamedTuple):
    """Features of SLAY, drawn once: call it with queries or keys.

    Attributes:
        torch: the module.
        projections: of the polynomial: anchors or landmarks, unit vectors, [P, head_dim], the latter with the root [P, P] that
            whitens them; two matrices [P, head_dim] of `SKETCH` and `MACLAURIN`; empty for others.
        directions: of the random features, times the root of 2 s, [R M, head_dim].
        nodes: s_r, [R].
        roots: the root of each weight w_r, [R].
        features: M.
        polynomial: one of `POLYNOMIALS`.
    """

    torch: Any
    projections: tuple[Any, ...]
    directions: Any
    nodes: Any
    roots: Any
    features: int
    polynomial: str

    @classmethod
    def draw(
        cls,
        torch: Any,
        head_dim: int,
        budget: tuple[int, int, int],
        generator: Any = None,
        *,
        polynomial: str = ANCHOR,
        epsilon: float = EPSILON,
        dtype: Any = None,
        device: Any = "cpu",
    ) -> "Slay":
        """Draw anchors and directions.

        Args:
            torch: the module.
            head_dim: d, entries of a query.
            budget: R nodes, M random features for each, P features of the polynomial (not used by `EXACT` and `LAPLACE`, M for
                `HADAMARD`).
            generator: of torch, on the device; None: the default one.
            polynomial: one of `POLYNOMIALS`. `LAPLACE` drops x^2 and has the weights C alpha / 4 of K's first part,
                K(x) = C^2 / (4 (C - 2 x)) - C / 4 - x / 2.
            epsilon: of the kernel.
            dtype: float32 (default) or float64.
            device: where the features are computed.

        Returns:
            The features.

        Raises:
            UnknownName: no such polynomial.
        """
        if polynomial not in POLYNOMIALS:
            raise UnknownName("polynomial", polynomial, POLYNOMIALS)
        nodes, m, anchors = budget
        dtype = torch.float32 if dtype is None else dtype
        where = {"dtype": dtype, "device": device}
        s, w = quadrature(nodes, epsilon)
        if polynomial == LAPLACE:
            w = w * (2.0 + epsilon) ** 2 / 4.0
        drawn = _projections(
            torch, polynomial, m if polynomial == HADAMARD else anchors, head_dim, generator, where
        )
        omega = torch.randn(nodes, m, head_dim, generator=generator, **where)
        at = torch.tensor(s, **where)
        directions = (omega * (2.0 * at).sqrt()[:, None, None]).reshape(nodes * m, head_dim)
        return cls(torch, drawn, directions, at, torch.tensor(np.sqrt(w), **where), m, polynomial)

    @property
    def size(self) -> int:
        """m, the entries of a feature."""
        entries = len(self.directions)
        if self.polynomial in (LAPLACE, HADAMARD):
            return entries
        return entries * (
            self.directions.shape[-1] ** 2 if self.polynomial == EXACT else len(self.projections[0])
        )

    def __call__(self, x: Any) -> Any:
        """Features [..., length, m] of queries or keys [..., length, head_dim].

        None is negative with `ANCHOR`, `HADAMARD` and `LAPLACE`; no score is with `EXACT`.
        """
        x = unit(self.torch, x.to(self.directions.dtype))
        exponent = (x @ self.directions.T).unflatten(-1, (len(self.nodes), self.features))
        exponent = exponent - self.nodes[:, None]
        random = exponent.clamp(-CLIP, CLIP).exp() * (self.features**-0.5 * self.roots[:, None])
        if self.polynomial == LAPLACE:
            return random.flatten(-2)
        if self.polynomial == HADAMARD:
            return (random * (x @ self.projections[0].T).square().unsqueeze(-2)).flatten(-2)
        return (random.unsqueeze(-1) * self._squares(x)[..., None, None, :]).flatten(-3)

    def _squares(self, x: Any) -> Any:
        """Features of x^2 of unit vectors."""
        if self.polynomial == EXACT:
            return (x.unsqueeze(-1) * x.unsqueeze(-2)).flatten(-2)
        first, *others = self.projections
        seen = x @ first.T
        if self.polynomial == ANCHOR:
            return seen.square() * len(first) ** -0.5
        if self.polynomial == NYSTROM:
            return seen.square() @ others[0]
        again = x @ others[0].T
        if self.polynomial == MACLAURIN:
            return seen * again * len(first) ** -0.5
        fft = self.torch.fft
        return fft.irfft(fft.rfft(seen) * fft.rfft(again), n=len(first))


def _projections(
    torch: Any, polynomial: str, count: int, head_dim: int, generator: Any, where: dict[str, Any]
) -> tuple[Any, ...]:
    """What a polynomial draws: see `Slay.projections`."""
    if polynomial in (EXACT, LAPLACE):
        return ()
    if polynomial in (SKETCH, MACLAURIN):
        signs = 2.0 * torch.randint(0, 2, (2, count, head_dim), generator=generator, **where) - 1.0
        if polynomial == SKETCH:  # each entry goes into one bucket
            bucket = torch.randint(0, count, (2, 1, head_dim), generator=generator, device=where["device"])
            signs = torch.zeros_like(signs).scatter_(1, bucket, signs[:, :1])
        return tuple(signs)
    drawn = unit(torch, torch.randn(count, head_dim, generator=generator, **where))
    if polynomial != NYSTROM:
        return (drawn,)
    values, vectors = torch.linalg.eigh((drawn @ drawn.T).square().double())
    root = vectors * values.clamp(min=RIDGE).rsqrt() @ vectors.T
    return drawn, root.to(drawn.dtype)


def normalized(weights: Any, v: Any) -> Any:
    """Attention of values [..., length, dv] by scores [..., length, length] that are no softmax: over their sum and delta."""
    return (weights @ v) / (weights.sum(-1, keepdim=True) + DELTA)


def exact(
    torch: Any,
    q: Any,
    k: Any,
    v: Any,
    kernel: Callable[[Any], Any] = yat_kernel,
    causal: bool = True,
) -> Any:
    """Attention with a kernel of the cosine, its matrix written out.

    Args:
        torch: the module.
        q: queries [..., length, head_dim].
        k: keys [..., length, head_dim].
        v: values [..., length, dv].
        kernel: scores of cosines; the exact spherical Yat kernel by default.
        causal: whether a token attends only to itself and those before it.

    Returns:
        [..., length, dv].
    """
    weights = kernel(unit(torch, q) @ unit(torch, k).transpose(-1, -2))
    return normalized(weights.tril() if causal else weights, v)


def quadratic(fq: Any, fk: Any, v: Any, causal: bool = True) -> Any:
    """Attention of features with the matrix of scores written out.

    Args:
        fq: features of the queries [..., length, m].
        fk: features of the keys [..., length, m].
        v: values [..., length, dv].
        causal: whether a token attends only to itself and those before it.

    Returns:
        [..., length, dv].
    """
    weights = fq @ fk.transpose(-1, -2)
    return normalized(weights.tril() if causal else weights, v)


class Sums(NamedTuple):
    """What linear attention remembers of all tokens so far; its size does not depend on how many there were.

    Attributes:
        values: sum of features times values, [..., m, dv].
        norms: sum of features, [..., m].
    """

    values: Any
    norms: Any

    @classmethod
    def empty(cls, fk: Any, v: Any) -> "Sums":
        """The sums before the first token of features [..., length, m] and values [..., length, dv]: all 0."""
        return cls(
            fk.new_zeros(*fk.shape[:-2], fk.shape[-1], v.shape[-1]),
            fk.new_zeros(*fk.shape[:-2], fk.shape[-1]),
        )

    def step(self, fq: Any, fk: Any, v: Any) -> tuple[Any, "Sums"]:
        """Take in one token, as in decoding.

        Args:
            fq: features of its query [..., m].
            fk: features of its key [..., m].
            v: its value [..., dv].

        Returns:
            What attention gives for the token, [..., dv], and the new sums.
        """
        sums = Sums(self.values + fk.unsqueeze(-1) * v.unsqueeze(-2), self.norms + fk)
        numerator = (fq.unsqueeze(-2) @ sums.values).squeeze(-2)
        return numerator / ((fq * sums.norms).sum(-1, keepdim=True) + DELTA), sums


def recurrent(torch: Any, fq: Any, fk: Any, v: Any) -> Any:
    """Causal attention token by token.

    Args:
        torch: the module.
        fq: features of the queries [..., length, m].
        fk: features of the keys, as those of the queries.
        v: values [..., length, dv].

    Returns:
        [..., length, dv].
    """
    sums, out = Sums.empty(fk, v), []
    for i in range(v.shape[-2]):
        y, sums = sums.step(fq[..., i, :], fk[..., i, :], v[..., i, :])
        out.append(y)
    return torch.stack(out, dim=-2)


def chunked(torch: Any, fq: Any, fk: Any, v: Any, chunk: int = CHUNK) -> Any:
    """Causal attention chunk by chunk: scores inside a chunk written out, the sums for all before it.

    Args:
        torch: the module.
        fq: features of the queries [..., length, m].
        fk: features of the keys, as those of the queries.
        v: values [..., length, dv]; any length.
        chunk: tokens of a chunk.

    Returns:
        [..., length, dv].
    """
    sums, out = Sums.empty(fk, v), []
    for start in range(0, v.shape[-2], chunk):
        q, k, x = (part[..., start : start + chunk, :] for part in (fq, fk, v))
        inside = (q @ k.transpose(-1, -2)).tril()
        numerator = q @ sums.values + inside @ x
        out.append(numerator / ((q @ sums.norms.unsqueeze(-1)) + inside.sum(-1, keepdim=True) + DELTA))
        sums = Sums(sums.values + k.transpose(-1, -2) @ x, sums.norms + k.sum(-2))
    return torch.cat(out, dim=-2)


class Heads(NamedTuple):
    """Queries, keys and values of random input through random projections, [batch, heads, length, head_dim] each."""

    q: Any
    k: Any
    v: Any

    @classmethod
    def draw(
        cls,
        torch: Any,
        heads: int,
        head_dim: int,
        length: int,
        batch: int,
        seed: int,
        *,
        bias: bool = True,
        dtype: Any = None,
    ) -> "Heads":
        """Normal input through three projections as torch's `Linear` draws them, which is how the paper compares features.

        The bias matters: an output is a mean of values over many tokens, in which the parts of the input cancel and the bias
        stays, so that errors relative to the output are smaller with it.

        Args:
            torch: the module.
            heads: of the layer.
            head_dim: entries of a head.
            length: tokens.
            batch: sequences.
            seed: of everything that is drawn.
            bias: whether the projections have one.
            dtype: float32 (default) or float64.

        Returns:
            Tensors on the CPU.
        """
        generator = torch.Generator().manual_seed(seed)
        width, dtype = heads * head_dim, torch.float32 if dtype is None else dtype
        bound = width**-0.5

        def even(*shape: int) -> Any:
            return bound * (2.0 * torch.rand(*shape, generator=generator, dtype=dtype) - 1.0)

        x = torch.randn(batch, length, width, generator=generator, dtype=dtype)
        parts = []
        for _ in range(3):
            y = x @ even(width, width).T
            offset = even(width)
            y = y + offset if bias else y
            parts.append(y.unflatten(-1, (heads, head_dim)).transpose(1, 2))
        return cls(*parts)


def relative_error(torch: Any, approximation: Any, reference: Any) -> float:
    """Norm of the difference over the norm of the reference, over all entries.

    Args:
        torch: the module.
        approximation: a tensor.
        reference: a tensor of this shape.

    Returns:
        The error, 0 or more.
    """
    return float(torch.linalg.vector_norm(approximation - reference) / torch.linalg.vector_norm(reference))
