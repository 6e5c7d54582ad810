"""How long requests are: laws of prompt and output lengths, in tokens.

Real lengths are mixtures with spikes and hard limits that no single lognormal or gamma fits, so beside the
parametric laws there is the empirical one, a table of quantiles. Every law is used through its inverse
distribution function, which is what lets one Gaussian copula correlate any two of them.
"""

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from llmgym.core.checks import number
from llmgym.errors import InvalidArgument
from llmgym.workloads.arrivals import Rows

MAX_TOKENS = 2**31 - 1
_Z_SPAN, _Z_KNOTS = 6.0, 513  # knots of a parametric law: even in the normal score, out to 1e-9 either side
_EXACT_POINTS = 4_000_000


def _whole(name: str, value: int) -> int:
    try:
        tokens = operator.index(value)
    except TypeError:
        raise InvalidArgument(f"{name}={value!r}: must be a whole number of tokens") from None
    if not 1 <= tokens <= MAX_TOKENS:
        raise InvalidArgument(f"{name}={value!r}: must be from 1 to {MAX_TOKENS} tokens")
    return tokens


@dataclass(frozen=True)
class Lengths:
    """A law of a length in tokens; make one with `fixed`, `uniform`, `lognormal`, `mixture` or `quantiles`.

    Attributes:
        low: smallest length (tokens).
        high: largest length (tokens).
        probabilities: of the knots of the quantile table, from 0 to 1; empty for the uniform law.
        tokens: length at each knot, not rounded (tokens); empty for the uniform law.
        text: how the law was made.
    """

    low: int
    high: int
    probabilities: tuple[float, ...] = ()
    tokens: tuple[float, ...] = ()
    text: str = ""

    def __repr__(self) -> str:
        return self.text

    def quantile(self, u: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Length (tokens) at each probability of `u`, the same rounding as in compiled code."""
        at = np.clip(np.asarray(u, dtype=np.float64), 0.0, 1.0 - 2.0**-53)
        if not self.probabilities:
            width = self.high - self.low + 1
            return self.low + np.minimum(np.floor(at * width), width - 1).astype(np.int64)
        value = np.floor(np.interp(at, self.probabilities, self.tokens) + 0.5)
        return np.maximum(value, 1.0).astype(np.int64)

    @cached_property
    def mean_tokens(self) -> float:
        """Mean length (tokens), exact for the rounded law."""
        if not self.probabilities:
            return 0.5 * (self.low + self.high)
        total = 0.0
        v, p = np.asarray(self.tokens), np.asarray(self.probabilities)
        for v0, v1, weight in zip(v, v[1:], np.diff(p), strict=False):
            total += weight * _mean_rounded(float(v0), float(v1))
        return total


def _mean_rounded(low: float, high: float) -> float:
    """Mean of max(floor(x + 1/2), 1) for x uniform in [low, high]."""
    if high <= low:
        return max(math.floor(low + 0.5), 1.0)

    def integral(x: float) -> float:
        # of the integrand from 1/2 on: the steps n = 1, 2, ... have width 1; below 1/2 the integrand is 1
        if x <= 0.5:
            return x - 0.5
        n = math.floor(x + 0.5)
        return 0.5 * n * (n - 1.0) + n * (x - (n - 0.5))

    return (integral(high) - integral(low)) / (high - low)


def uniform(low: int, high: int) -> Lengths:
    """Whole numbers from `low` to `high` (tokens), both included, each as likely."""
    low, high = _whole("low", low), _whole("high", high)
    if low > high:
        raise InvalidArgument(f"low={low}, high={high}: low must not be above high")
    return Lengths(low, high, text=f"fixed({low})" if low == high else f"uniform({low}, {high})")


def fixed(tokens: int) -> Lengths:
    """Always `tokens` tokens."""
    return uniform(tokens, tokens)


def quantiles(probabilities: Sequence[float], tokens: Sequence[float], text: str = "") -> Lengths:
    """Empirical law: length at given probabilities, interpolated between them and rounded, at least 1.

    Args:
        probabilities: never decreasing, from exactly 0 to exactly 1; two equal ones make a jump.
        tokens: length at each of them (tokens), never decreasing.
        text: how to print the law.

    Returns:
        The law.

    Raises:
        InvalidArgument: wrong ends, order or number of knots.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    v = np.asarray(tokens, dtype=np.float64)
    if p.ndim != 1 or p.size < 2 or p.shape != v.shape:
        raise InvalidArgument(
            f"probabilities, tokens: shapes {p.shape}, {v.shape}; must be two lists of equal length >= 2"
        )
    if not (p[0] == 0.0 and p[-1] == 1.0 and np.all(np.diff(p) >= 0.0)):
        raise InvalidArgument("probabilities: must go from 0 to 1 and never decrease")
    if not (np.all(np.isfinite(v)) and np.all(np.diff(v) >= 0.0) and v[0] >= 0.0 and v[-1] <= MAX_TOKENS):
        raise InvalidArgument(f"tokens: must never decrease and lie in 0..{MAX_TOKENS}")
    low, high = (max(1, math.floor(x + 0.5)) for x in (v[0], v[-1]))
    return Lengths(
        low, high, tuple(p.tolist()), tuple(v.tolist()), text or f"quantiles({p.size} knots, {low}..{high})"
    )


def _parametric(
    weights: npt.NDArray[np.float64], mu: Sequence[float], sigma: Sequence[float], top: int, text: str
) -> Lengths:
    from scipy.special import ndtr

    z = np.linspace(-_Z_SPAN, _Z_SPAN, _Z_KNOTS)
    inner = np.asarray(ndtr(z[1:-1]))
    m, s = np.asarray(mu), np.asarray(sigma)
    if m.size == 1:
        x = m[0] + s[0] * z[1:-1]
    else:
        # Bisection on the log-length; every component's own quantile brackets that of the mixture.
        own = m[:, None] + s[:, None] * z[None, 1:-1]
        below, above = own.min(axis=0), own.max(axis=0)
        for _ in range(80):
            x = 0.5 * (below + above)
            under = np.einsum("c,ck->k", weights, ndtr((x - m[:, None]) / s[:, None])) < inner
            below, above = np.where(under, x, below), np.where(under, above, x)
        x = 0.5 * (below + above)
    # What lies beyond the span (1e-9 of the requests) gets the length at its edge.
    v = np.exp(np.minimum(np.concatenate([x[:1], x, x[-1:]]), math.log(top)))
    return quantiles(np.concatenate([[0.0], inner, [1.0]]).tolist(), np.clip(v, 1.0, top).tolist(), text)


def lognormal(mu: float, sigma: float, max: int) -> Lengths:
    """Lognormal length clipped to [1, `max`] tokens.

    Args:
        mu: mean of ln(tokens).
        sigma: standard deviation of ln(tokens), above 0.
        max: largest length (tokens).

    Returns:
        The law.

    Raises:
        InvalidArgument: `mu` is not finite, `sigma` not above 0, or `max` no length.
    """
    return mixture([1.0], [mu], [sigma], max)


def mixture(weights: Sequence[float], mu: Sequence[float], sigma: Sequence[float], max: int) -> Lengths:
    """Mixture of lognormals clipped to [1, `max`] tokens.

    Args:
        weights: of the components; scaled to sum to 1.
        mu: mean of ln(tokens) of each.
        sigma: standard deviation of ln(tokens) of each.
        max: largest length (tokens).

    Returns:
        The law.

    Raises:
        InvalidArgument: lists of different length, a weight below zero, a sigma not above zero, a mu that is
            not finite.
    """
    w = np.array([number("weights", x, zero=True) for x in weights], dtype=np.float64)
    top = _whole("max", max)
    if w.size == 0 or not w.size == len(mu) == len(sigma) or w.sum() <= 0.0:
        raise InvalidArgument(
            f"weights={list(weights)!r}: must have a positive sum and as many entries as mu ({len(mu)}) "
            f"and sigma ({len(sigma)})"
        )
    scales = [number("sigma", x) for x in sigma]
    if not np.all(np.isfinite(np.asarray(mu, dtype=np.float64))):
        raise InvalidArgument(f"mu={list(mu)!r}: must be finite")
    if w.size == 1:
        text = f"lognormal({mu[0]:g}, {sigma[0]:g}, max={top})"
    else:
        text = f"mixture({list(weights)}, {list(mu)}, {list(sigma)}, max={top})"
    return _parametric(w / w.sum(), mu, scales, top, text)


@dataclass(frozen=True)
class RequestClass:
    """One kind of request: a law of prompts and one of outputs, or the rows of a trace.

    Attributes:
        prompt: law of the prompt length, or None with `rows`.
        output: law of the output length, or None with `rows`.
        correlation: of the Gaussian copula between the two, in (-1, 1).
        name: for people.
        rows: pairs of lengths taken from a trace: in its order where the same rows are replayed, at random
            otherwise.
    """

    prompt: Lengths | None = None
    output: Lengths | None = None
    correlation: float = 0.0
    name: str = ""
    rows: Rows | None = None

    def __post_init__(self) -> None:
        laws = isinstance(self.prompt, Lengths) and isinstance(self.output, Lengths)
        if self.rows is None and not laws:
            raise InvalidArgument(
                f"prompt={self.prompt!r}, output={self.output!r}: must be two laws of length"
            )
        if self.rows is not None and (
            self.prompt is not None or self.output is not None or self.correlation != 0.0
        ):
            raise InvalidArgument("rows: a class has laws or rows, not both")
        if not -1.0 < self.correlation < 1.0:
            raise InvalidArgument(f"correlation={self.correlation!r}: must be above -1 and below 1")

    @property
    def max_prompt_tokens(self) -> int:
        """Longest prompt (tokens)."""
        return int(self.rows.prompt_tokens.max()) if self.rows is not None else self._laws()[0].high

    @property
    def max_output_tokens(self) -> int:
        """Longest output (tokens)."""
        return int(self.rows.output_tokens.max()) if self.rows is not None else self._laws()[1].high

    @property
    def mean_output_tokens(self) -> float:
        """Mean output length (tokens)."""
        return float(self.rows.output_tokens.mean()) if self.rows is not None else self._laws()[1].mean_tokens

    def _laws(self) -> tuple[Lengths, Lengths]:
        assert self.prompt is not None and self.output is not None
        return self.prompt, self.output

    def points(
        self, nodes: int = 1024
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """Lengths and probabilities whose weighted sum is an expectation.

        Rows, and uncorrelated uniform or fixed laws with at most 4 million pairs, are enumerated. Otherwise it is a midpoint rule
        of `nodes` x `nodes` points, even in the two normal scores of the copula.

        Returns:
            prompt int64 [k], output int64 [k], weight float64 [k] (sums to 1).
        """
        if self.rows is not None:
            n = len(self.rows)
            s, o = self.rows.prompt_tokens.astype(np.int64), self.rows.output_tokens.astype(np.int64)
            return s, o, np.full(n, 1.0 / n)
        prompt, output = self._laws()
        pairs = (prompt.high - prompt.low + 1) * (output.high - output.low + 1)
        finite = not prompt.probabilities and not output.probabilities
        if finite and self.correlation == 0.0 and pairs <= _EXACT_POINTS:
            s, o = np.meshgrid(
                np.arange(prompt.low, prompt.high + 1), np.arange(output.low, output.high + 1), indexing="ij"
            )
            return s.ravel(), o.ravel(), np.full(pairs, 1.0 / pairs)
        from scipy.special import ndtr

        edges = np.linspace(-8.0, 8.0, nodes + 1)
        z = 0.5 * (edges[1:] + edges[:-1])
        w = np.diff(ndtr(edges))
        w /= w.sum()
        s = np.repeat(prompt.quantile(ndtr(z)), nodes)
        rho = self.correlation
        z_output = rho * z[:, None] + math.sqrt(1.0 - rho * rho) * z[None, :]
        return s, output.quantile(ndtr(z_output)).ravel(), np.outer(w, w).ravel()
