"""Sets of positions to reveal, as compiled functions on one block: the rules behind macro actions and baselines.

Each reads what the denoiser says of the positions and marks those that it would reveal in `out`, int8 [positions], 0 or 1.
Positions that are known already are never marked; at least one that is masked always is.
"""

import math

import numpy as np
from numpy.typing import NDArray

from llmgym.core.jit import kernel

Flags = NDArray[np.int8]
Floats = NDArray[np.float64]


@kernel(inline=True)
def clear(out: Flags) -> None:
    """Mark nothing."""
    for i in range(out.shape[0]):
        out[i] = 0


@kernel
def _next_best(masked: Flags, score: Floats, out: Flags) -> int:
    """The masked position of the highest score that is not marked, the leftmost of equal ones; -1 where there is none."""
    best = -1
    for i in range(out.shape[0]):
        if masked[i] != 0 and out[i] == 0 and (best < 0 or score[i] > score[best]):
            best = i
    return best


@kernel
def top(masked: Flags, score: Floats, count: int, out: Flags) -> None:
    """Mark the positions of the highest scores.

    Args:
        masked: 1 where a token is not known, int8 [positions].
        score: how much each is wanted, float64 [positions].
        count: how many, at least one is marked.
        out: written.
    """
    clear(out)
    for _ in range(max(count, 1)):
        best = _next_best(masked, score, out)
        if best < 0:
            break
        out[best] = 1


@kernel
def budget(masked: Flags, entropy_bits: Floats, gamma: float, score: Floats, out: Flags) -> None:
    """Mark what the EB sampler reveals: the surest positions, as long as the sum of their entropies but the largest fits.

    Args:
        masked: 1 where a token is not known, int8 [positions].
        entropy_bits: of each position, bits, float64 [positions].
        gamma: the budget, bits.
        score: scratch, float64 [positions].
        out: written.
    """
    clear(out)
    for i in range(out.shape[0]):
        score[i] = -entropy_bits[i]
    spent = 0.0
    while spent <= gamma:
        best = _next_best(masked, score, out)
        if best < 0:
            break
        out[best] = 1
        spent += entropy_bits[best]


@kernel
def confident(masked: Flags, confidence: Floats, tau: float, out: Flags) -> None:
    """Mark what the CB sampler reveals: every position at least this confident, and always the most confident one.

    Args:
        masked: 1 where a token is not known, int8 [positions].
        confidence: probability of the likeliest token, float64 [positions].
        tau: the threshold.
        out: written.
    """
    top(masked, confidence, 1, out)
    for i in range(out.shape[0]):
        if masked[i] != 0 and confidence[i] >= tau:
            out[i] = 1


@kernel
def _spread(wanted: Flags, score: Floats, gap: int, most: int, out: Flags) -> int:
    """Mark wanted positions, the best first, each at least `gap` from all before; returns how many, at most `most`."""
    positions, found = out.shape[0], 0
    clear(out)
    # 2 marks what is too near to an accepted one
    while found < most:
        best = _next_best(wanted, score, out)
        if best < 0:
            break
        for i in range(max(best - gap + 1, 0), min(best + gap, positions)):
            if out[i] == 0:
                out[i] = 2
        out[best] = 1
        found += 1
    for i in range(positions):
        if out[i] == 2:
            out[i] = 0
    return found


@kernel
def spaced(wanted: Flags, score: Floats, gap: int, out: Flags) -> None:
    """Of the wanted positions, mark the best ones that are far enough from each other; the others wait.

    Args:
        wanted: candidates, int8 [positions], at least one.
        score: how much each is wanted, float64 [positions]; the highest first.
        gap: least distance of two.
        out: written.
    """
    _spread(wanted, score, gap, out.shape[0], out)


@kernel
def best_spaced(masked: Flags, score: Floats, count: int, out: Flags) -> None:
    """Mark that many positions of high score with the largest gap that leaves so many.

    Args:
        masked: 1 where a token is not known, int8 [positions].
        score: how much each is wanted, float64 [positions].
        count: how many; all where fewer are masked.
        out: written.
    """
    left = 0
    for i in range(masked.shape[0]):
        left += masked[i]
    count = min(max(count, 1), left)
    gap = left // max(count, 1)
    while gap > 1:
        if _spread(masked, score, gap, count, out) >= count:
            return
        gap -= 1
    top(masked, score, count, out)


@kernel
def next_level(masked: Flags, level: NDArray[np.int64], out: Flags) -> None:
    """Mark the masked positions of the first level of a schedule that has any.

    Args:
        masked: 1 where a token is not known, int8 [positions].
        level: the call that reveals each position, int64 [positions].
        out: written.
    """
    first = level.shape[0]
    for i in range(level.shape[0]):
        if masked[i] != 0:
            first = min(first, level[i])
    for i in range(level.shape[0]):
        out[i] = 1 if masked[i] != 0 and level[i] == first else 0


@kernel(inline=True)
def bits(nats: float) -> float:
    """Nats as bits."""
    return nats / math.log(2.0)
