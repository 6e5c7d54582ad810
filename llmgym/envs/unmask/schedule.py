"""The dilated schedule of Luxembourg, Permuter and Nachmani and the counts that its rivals are given, as plain functions.

"Plan for Speed: Dilated Scheduling for Masked Diffusion Language Models", ICML 2026 (arXiv 2506.19037), section 3, and the code
released with it. DUS reveals an evenly spaced grid of positions and makes the grid finer call by call, whatever the model says.
"""

import math

import numpy as np
from numpy.typing import NDArray

from llmgym.core.checks import number, whole

SPACING_TOKENS = 8
"""g0 of the spacing filter: the least distance of two revealed positions in a block that is all masked (section 4.4)."""
LEAST_GAP = 2
"""Least distance that the filter asks for."""


def dus_levels(block: int, base: int = 2, skip: int = 1) -> list[NDArray[np.int64]]:
    """The positions that each call of DUS reveals, as the released code has them.

    Args:
        block: positions of the block.
        base: what the stride is divided by from call to call, 2 or more.
        skip: the first stride is block // base**skip; 1 or more.

    Returns:
        One array of positions (0 to block - 1, rising) for each call.

    Raises:
        InvalidArgument: a number is out of range.
    """
    whole("block", block), whole("base", base, 2), whole("skip", skip)
    left, levels = list(range(block)), []
    stride = block // base**skip
    while stride >= 1:
        if level := [i for i in left if i % stride == 0]:
            levels.append(level)
            left = [i for i in left if i % stride]
        stride //= base
    if left:
        levels.append(left)
    if len(levels) > 1 and len(levels[-1]) < len(levels[-2]):
        levels[-2:] = [sorted(levels[-2] + levels[-1])]
    return [np.array(level) for level in levels]


def paper_levels(block: int, base: int = 2) -> list[NDArray[np.int64]]:
    """The positions that each call of DUS reveals, by the formula of section 3: strides floor(B / a^t), t = 1 to ceil(log_a B).

    Args:
        block: positions of the block.
        base: a, 2 or more.

    Returns:
        One array of positions (0 to block - 1, rising) for each call, none of them empty.

    Raises:
        InvalidArgument: a number is out of range.
    """
    whole("block", block), whole("base", base, 2)
    left, levels, power = list(range(block)), [], 1
    while left:
        power *= base
        stride = max(block // power, 1)
        if level := [i for i in left if i % stride == 0]:
            levels.append(np.array(level))
            left = [i for i in left if i % stride]
    return levels


def bisection_levels(block: int) -> list[NDArray[np.int64]]:
    """The "binary" schedule of the released code: call by call the midpoints of all intervals of a bisection of the block.

    Args:
        block: positions of the block.

    Returns:
        One array of positions (0 to block - 1, rising) for each call.
    """
    whole("block", block)
    parts, levels = [(0, block)], []
    while parts:
        middles = [(low + high) // 2 for low, high in parts]
        levels.append(np.array(sorted(middles)))
        halves = [
            half for (low, high), m in zip(parts, middles, strict=True) for half in ((low, m), (m + 1, high))
        ]
        parts = [(low, high) for low, high in halves if low < high]
    return levels


def level_of(levels: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    """The call that reveals each position, int64 [positions], from 0 on."""
    out = np.empty(sum(map(len, levels)), np.int64)
    for number_of, level in enumerate(levels):
        out[level] = number_of
    return out


def fixed_counts(positions: int, calls: int) -> NDArray[np.int64]:
    """Positions revealed by each call of a rule with a fixed count: equal, the first calls one more.

    Args:
        positions: masked positions at the beginning.
        calls: number of calls, at most as many.

    Returns:
        Counts, int64 [calls].
    """
    whole("calls", calls, 1, positions)
    return positions // calls + (np.arange(calls) < positions % calls)


def rising_counts(block: int) -> NDArray[np.int64]:
    """Positions revealed by each call of a rule with the counts of DUS, int64 [calls]."""
    return np.array([len(level) for level in dus_levels(block)])


def budget_count(entropy_bits: NDArray[np.floating], gamma: float) -> int:
    """Positions that the EB sampler reveals: the longest run of the surest ones whose entropies but the largest fit a budget.

    Ben-Hamu et al. 2025, as the released code has it: k = #{j : (e_1 + ... + e_j) - max(e_1, ..., e_j) <= gamma}, at least 1.

    Args:
        entropy_bits: of the masked positions, bits, any order.
        gamma: the budget, bits.
    """
    ordered = np.sort(np.asarray(entropy_bits, np.float64))
    return max(1, int((np.cumsum(ordered) - ordered <= gamma).sum()))


def spacing_gap(masked: int, block: int, tokens: int = SPACING_TOKENS) -> int:
    """The least distance that the spacing filter asks for: max(2, floor(M g0 / B)), section 4.4.

    Args:
        masked: masked positions that are left in the block, M.
        block: positions of the block, B.
        tokens: g0.

    Returns:
        Positions, 2 or more.
    """
    return max(LEAST_GAP, masked * tokens // block)


def calls_of(tokens: int, block: int, base: int = 2, skip: int = 1) -> int:
    """Denoiser calls (NFE) of DUS for a text.

    Args:
        tokens: of the text, a multiple of `block`.
        block: positions of a block.
        base: what the stride is divided by.
        skip: how often before the first call.

    Returns:
        Calls.

    Raises:
        InvalidArgument: a number is out of range.
    """
    return tokens // block * len(dus_levels(block, base, skip))


def sufficient_distance(terms: int, gap_nats: float, scale_nats: float, rate: float) -> int:
    """A distance at which revealing positions together costs no more than a given gap on a fast-mixing chain (Lemmas 3.5, 3.6).

    If two positions d apart share at most C rho^d nats with what lies between known ones, k of them cost at most the sum.

    Args:
        terms: positions revealed together, k.
        gap_nats: what they may cost, nats.
        scale_nats: C.
        rate: rho, between 0 and 1.

    Returns:
        Positions, 1 or more.

    Raises:
        InvalidArgument: a number of nats or a rate that is not above 0.
    """
    number("gap_nats", gap_nats), number("scale_nats", scale_nats), number("rate", rate)
    return max(1, math.ceil(math.log(terms * scale_nats / gap_nats) / -math.log(rate)))
