"""How many tokens a slot of an attention instance holds, by closed forms: the mean theta, the deviation nu, and from a cold start.

From Song et al., arXiv 2601.21351: version 1 has geometric decode lengths, later versions any law of prompts and steps.
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llmgym.core.checks import number, whole
from llmgym.errors import InvalidArgument


def _requests(prompt_tokens: ArrayLike, steps: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    prompt, length = np.asarray(prompt_tokens, np.float64), np.asarray(steps, np.float64)
    if prompt.shape != length.shape or prompt.ndim != 1 or prompt.size == 0:
        raise InvalidArgument(
            f"prompt_tokens has shape {prompt.shape}, steps {length.shape}: expected one shape [n], n >= 1"
        )
    if not (np.isfinite(prompt) & (prompt >= 0)).all():
        raise InvalidArgument("prompt_tokens: expected finite numbers >= 0")
    if not (np.isfinite(length) & (length >= 1)).all():
        raise InvalidArgument(
            "steps: expected finite numbers >= 1 (a request is in its slot for at least one step)"
        )
    return prompt, length


def theta(prompt_tokens: ArrayLike, steps: ArrayLike) -> float:
    """Mean tokens of a slot, E[P L + L (L - 1) / 2] / E[L], estimated from finished requests (version 2, renewal reward).

    A request with prompt P holds P, P + 1, ..., P + L - 1 tokens in the L steps it stays. It is a mean over steps, so long requests
    count for longer; and P and L of one request belong together, as their covariance counts.

    Args:
        prompt_tokens: P, [n], tokens.
        steps: L, [n], steps in the slot. A request with the decode length D of version 1 stays D + 1 steps.

    Returns:
        Tokens.

    Raises:
        InvalidArgument: shapes differ, no request, a negative prompt or less than one step.
    """
    p, n = _requests(prompt_tokens, steps)
    return float((p * n + n * (n - 1) / 2).sum() / n.sum())


def nu(prompt_tokens: ArrayLike, steps: ArrayLike) -> float:
    """Standard deviation of the tokens of a slot, estimated from finished requests.

    Args:
        prompt_tokens: [n], tokens.
        steps: L, [n], steps in the slot.

    Returns:
        Tokens.

    Raises:
        InvalidArgument: shapes differ, no request, a negative prompt or less than one step.
    """
    p, n = _requests(prompt_tokens, steps)
    second = (n * p * p + p * n * (n - 1) + n * (n - 1) * (2 * n - 1) / 6).sum() / n.sum()
    return math.sqrt(max(float(second) - theta(p, n) ** 2, 0.0))


def theta_geometric(mean_prompt: float, mean_decode: float) -> float:
    """`theta` of geometric decode lengths D = 0, 1, ... with prompts independent of them: mu_P + mu_D (version 1), tokens."""
    return number("mean_prompt", mean_prompt, zero=True) + number("mean_decode", mean_decode)


def nu_geometric(prompt_variance: float, mean_decode: float) -> float:
    """`nu` of geometric decode lengths with prompts independent of them: sqrt(Var(P) + mu_D (mu_D + 1)), tokens."""
    variance = number("prompt_variance", prompt_variance, zero=True)
    decode = number("mean_decode", mean_decode)
    return math.sqrt(variance + decode * (decode + 1.0))


def theta_from_moments(steps: float, steps_squared: float, prompt_steps: float) -> float:
    """`theta` from E[L], E[L^2] and E[P L], tokens.

    Args:
        steps: E[L], at least 1.
        steps_squared: E[L^2].
        prompt_steps: E[P L], tokens x steps; E[P] E[L] where they are independent.

    Returns:
        Mean tokens of a slot.

    Raises:
        InvalidArgument: a number out of range, or moments that no law has.
    """
    first, second = number("steps", steps), number("steps_squared", steps_squared)
    if first < 1.0:
        raise InvalidArgument(f"steps={steps!r}: expected a mean of at least one step")
    if second < first * first * (1.0 - 1e-12):
        raise InvalidArgument(
            f"steps_squared={steps_squared!r}: must be at least steps^2 = {first * first:g}"
        )
    return (number("prompt_steps", prompt_steps, zero=True) + (second - first) / 2.0) / first


def finite_load(batch: int, mean_prompt: float, mean_decode: float, requests: int) -> float:
    """Mean load of an instance over the steps in which it finishes `requests` requests from a cold start, tokens.

    B mu_P + B mu_D (1 - (1 - (1 - p)^K) / (K p)) with p = 1 / (mu_D + 1) and K = N / (B p) (version 1, section 4, summed in closed
    form). It tends to B (mu_P + mu_D); the ratios that the paper prints are those of this load with N = 10,000.

    Args:
        batch: B, requests of a microbatch of one instance.
        mean_prompt: mu_P, tokens.
        mean_decode: mu_D, tokens.
        requests: N, requests that finish.

    Returns:
        Tokens of an instance.

    Raises:
        InvalidArgument: a number out of range.
    """
    b, n = whole("batch", batch), whole("requests", requests)
    prompt, decode = number("mean_prompt", mean_prompt, zero=True), number("mean_decode", mean_decode)
    p = 1.0 / (decode + 1.0)
    steps = n / (b * p)
    missing = -math.expm1(steps * math.log1p(-p)) / (steps * p)
    return b * prompt + b * decode * (1.0 - missing)
