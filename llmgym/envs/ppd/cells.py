"""The grid of the SLO table: context classes, workload types and request rates.

Li et al., arXiv 2603.13358, section 4.2, with the bounds of the released decision engine (github.com/freelulul/vllm-ppd).
"""

import numpy as np
from numpy.typing import NDArray

from llmgym.core.jit import kernel

CONTEXTS = ("small", "large")
SMALL_CONTEXT_TOKENS = 512
"""Contexts up to here are small, above it large: the bound of the paper's released code."""
GENERATES_BELOW, PASTES_ABOVE = 0.25, 2.0
"""New tokens for each token of the answer: below the first bound a turn generates, above the second it pastes, between them it is
balanced. These bounds and those that follow are from the paper's released code."""
ANSWER_TOKENS, BALANCED_TOKENS, PASTE_TOKENS = (64, 256, 512), (64,), (256, 512)
"""Longest answers of the first types that generate, and most new tokens of the first ones that are balanced, and that paste."""
TYPES = (
    "tiny",
    "short_gen",
    "long_gen",
    "very_long_gen",
    "small_bal",
    "mid_bal",
    "mid_paste",
    "big_paste",
    "huge_paste",
)
RATES_RPS = (0.5, 1.0, 2.0, 4.0, 6.0, 8.0, 10.0, 12.0, 16.0, 20.0)
FIRST_TURN = {"small": (128, 128), "large": (1024, 1024)}
"""New tokens and answer of the first turn in the runs that fill the table, by size of the context."""
SECOND_TURN = {
    "tiny": (16, 32),
    "short_gen": (32, 256),
    "long_gen": (32, 512),
    "very_long_gen": (64, 1024),
    "small_bal": (64, 64),
    "mid_bal": (128, 128),
    "mid_paste": (256, 64),
    "big_paste": (512, 64),
    "huge_paste": (1024, 32),
}
"""New tokens and answer of the second turn in the runs that fill the table, by type of turn."""


@kernel(inline=True)
def _place(tokens: int, bounds: tuple[int, ...]) -> int:
    """How many of the bounds are below a number of tokens."""
    count = 0
    for bound in bounds:
        count += tokens > bound
    return count


@kernel
def cell_of(context: int, prompt: int, output: int) -> tuple[int, int]:
    """Context class and workload type of a turn: numbers in `CONTEXTS` and `TYPES`.

    Args:
        context: tokens of the conversation so far.
        prompt: new tokens.
        output: expected tokens of the answer.

    Returns:
        Two numbers from 0.
    """
    large = 0 if context <= SMALL_CONTEXT_TOKENS else 1
    ratio = prompt / max(output, 1)
    if ratio < GENERATES_BELOW:
        turn_type = _place(output, ANSWER_TOKENS)
    elif ratio <= PASTES_ABOVE:
        turn_type = len(ANSWER_TOKENS) + 1 + _place(prompt, BALANCED_TOKENS)
    else:
        turn_type = len(ANSWER_TOKENS) + len(BALANCED_TOKENS) + 2 + _place(prompt, PASTE_TOKENS)
    return large, turn_type


@kernel
def nearest(rates: NDArray[np.float64], rate: float) -> int:
    """Number of the nearest of rates that rise (float64 [n]); of two equally near ones the upper."""
    best = 0
    for i in range(1, rates.shape[0]):
        if abs(rates[i] - rate) <= abs(rates[best] - rate):
            best = i
    return best


@kernel
def lookup(
    routes: NDArray[np.int8], rates: NDArray[np.float64], rows: NDArray[np.float64], out: NDArray[np.int64]
) -> None:
    """What a table says of many turns.

    Args:
        routes: int8 [contexts, types, rates].
        rates: float64 [rates].
        rows: float64 [n, 4]: context, new tokens, expected answer (tokens) and request rate (req/s).
        out: int64 [n], written.
    """
    for i in range(rows.shape[0]):
        context, turn_type = cell_of(int(rows[i, 0]), int(rows[i, 1]), int(rows[i, 2]))
        out[i] = routes[context, turn_type, nearest(rates, rows[i, 3])]
