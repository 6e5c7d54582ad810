"""Speculative decoding across a network: when to send drafted tokens, when to have them verified, what a verification costs.

From "PipeSD: An Efficient Cloud-Edge Collaborative Pipeline Inference Framework with Speculative Decoding" (ICML 2026, arXiv
2605.13319). An edge drafts N tokens, one every gamma seconds, and sends them in batches over a link that carries one batch at
a time, k tokens in alpha + beta k seconds. `batch_plan` is the paper's Algorithm 1, whose sizes finish the window soonest
(Theorem 4.1):

    dp[0] = 0,  dp[j] = min over i < j of max(dp[i], gamma j) + alpha + beta (j - i)

A plan is cyclic: tokens beyond its last one begin it anew.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from llmgym.core.checks import number, whole
from llmgym.core.jit import kernel
from llmgym.errors import InvalidArgument

NAV_ENERGY_J, NAV_ENERGY_PER_TOKEN_J = 1.39, 0.435
"""Energy of one verification of n tokens: 1.39 + 0.435 (n + 1) J, least squares on the paper's Tables 2 and 7 (A800 GPU)."""


@kernel
def plan_batches(
    tokens: int,
    alpha: float,
    beta: float,
    gamma: float,
    ends: NDArray[np.int32],
    finish: NDArray[np.float64],
) -> int:
    """Plan the batches of a window by Algorithm 1.

    Args:
        tokens: N, at least 1.
        alpha: time to start an upload, seconds.
        beta: time that a token adds to an upload, seconds.
        gamma: time to draft a token, seconds.
        ends: int32 [>= N + 1]; `ends[:batches]` becomes the last token of each batch, counted from 1.
        finish: float64 [>= N + 1], for intermediate results.

    Returns:
        The number of batches. Of equal plans the one with the longest last batch.
    """
    finish[0] = 0.0
    for j in range(1, tokens + 1):
        best, first = math.inf, 0
        for i in range(j):
            done = max(finish[i], gamma * j) + alpha + beta * (j - i)
            if done < best:
                best, first = done, i
        finish[j] = best
        ends[j] = first  # where the batch that ends here begins
    batches, j = 0, tokens
    while j > 0:
        batches += 1
        j = ends[j]
    # The chain of beginnings is turned round in place: what is overwritten lies behind what is still to be read.
    j, k = tokens, batches
    while j > 0:
        before = ends[j]
        finish[k] = j  # the times but the last are not needed any more
        k -= 1
        j = before
    for k in range(batches):
        ends[k] = int(finish[k + 1])
    return batches


def batch_plan(tokens: int, alpha: float, beta: float, gamma: float) -> tuple[int, ...]:
    """Sizes of the batches that upload a window soonest (Algorithm 1).

    Args:
        tokens: N, tokens drafted in the window.
        alpha: time to start an upload, seconds.
        beta: time that a token adds to an upload, seconds.
        gamma: time to draft a token, seconds.

    Returns:
        The size of each batch, tokens.

    Raises:
        InvalidArgument: N below 1, a negative time, or gamma not above zero.
    """
    whole("tokens", tokens, 1, 100_000)
    number("alpha", alpha, zero=True), number("beta", beta, zero=True), number("gamma", gamma)
    ends = np.zeros(tokens + 2, np.int32)
    batches = plan_batches(tokens, alpha, beta, gamma, ends, np.zeros(tokens + 2))
    return tuple(np.diff(ends[:batches], prepend=0).tolist())


def finish_time(sizes: Sequence[int], alpha: float, beta: float, gamma: float) -> float:
    """T(B), the time until batches of these sizes are all uploaded, which Theorem 4.1 is about.

    Args:
        sizes: of the batches in order, tokens.
        alpha: time to start an upload, seconds.
        beta: time that a token adds to an upload, seconds.
        gamma: time to draft a token, seconds.

    Returns:
        The time from the beginning of the window, seconds.

    Raises:
        InvalidArgument: no batch, or one without tokens.
    """
    if not len(sizes) or min(sizes) < 1:
        raise InvalidArgument(f"sizes={sizes!r}: expected at least one batch, each with at least one token")
    drafted, done = 0.0, 0.0
    for size in sizes:
        drafted += gamma * size
        done = max(done, drafted) + alpha + beta * size
    return done


@kernel
def plan_time(ends: NDArray[np.int32], batches: int, alpha: float, beta: float, gamma: float) -> float:
    """T(B) of a plan.

    Args:
        ends: int32 [>= batches], as `plan_batches` writes it.
        batches: of the plan.
        alpha: time to start an upload, seconds.
        beta: time that a token adds to an upload, seconds.
        gamma: time to draft a token, seconds.

    Returns:
        The time from the beginning of the window, seconds.
    """
    done, sent = 0.0, 0
    for k in range(batches):
        done = max(done, gamma * ends[k]) + alpha + beta * (ends[k] - sent)
        sent = ends[k]
    return done


@kernel(inline=True)
def next_end(ends: NDArray[np.int32], batches: int, sent: int) -> int:
    """When a cyclic plan uploads next.

    Args:
        ends: int32 [>= batches], as `plan_batches` writes it.
        batches: of the plan.
        sent: tokens that were uploaded by now.

    Returns:
        The tokens that are drafted then.
    """
    cycle = ends[batches - 1]
    base = (sent // cycle) * cycle
    k = 0
    while base + ends[k] <= sent:
        k += 1
    return base + ends[k]


@kernel(inline=True)
def wants_verdict(confidence: float, product: float, sequence: float, token: float) -> bool:
    """The dual threshold: whether C_1 <= R_1 or P(D_n) <= R_2. With R_2 <= R_1 the second never fires alone.

    Args:
        confidence: P(D_n), the draft's probability of its newest token.
        product: C_1, the product of the confidences of the draft.
        sequence: R_1.
        token: R_2.

    Returns:
        Whether the rule asks for a verdict.
    """
    return product <= sequence or confidence <= token


@kernel(inline=True)
def verification_energy(tokens: int) -> float:
    """Energy that the cloud's GPU takes to verify a draft, J."""
    return NAV_ENERGY_J + NAV_ENERGY_PER_TOKEN_J * (tokens + 1)


def without_overlap(
    tokens: int, accepted: float, alpha: float, beta: float, gamma: float, verify: float
) -> float:
    """Time per token where an edge drafts n tokens, sends them all, and waits: (n (gamma + beta) + alpha + t) / (a + 1).

    Args:
        tokens: n.
        accepted: a, the mean number of tokens that a verdict accepts.
        alpha: time to start an upload, seconds.
        beta: time that a token adds to an upload, seconds.
        gamma: time to draft a token, seconds.
        verify: t, time of a verification, seconds.

    Returns:
        Seconds per output token.
    """
    return (tokens * (gamma + beta) + alpha + verify) / (accepted + 1.0)
