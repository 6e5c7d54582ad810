"""What an edge knows of its own speed: drafting time, upload time, length of drafts, each measured while it works.

As PipeSD does (arXiv 2605.13319, and its released code):

- gamma: seconds of the last 100 drafted tokens over their number;
- alpha, beta: intercept and slope of a least-squares line through the mean upload time of each batch size, over the last 100
timed uploads, once there
  are eight sizes; with fewer, the last line stays. Uploads that ask for a verdict are not timed. Batches of one to eight
  tokens are sent as probes beforehand;
- N^: mean length of the last 100 drafts, rounded, at least 1. It starts with a hundred drafts of 20 tokens.

The plan of batches is made anew when N^ changes, or when gamma, alpha or beta are more than a fifth off what the plan was made
with.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmgym.core.jit import kernel
from llmgym.envs.pipesd.speculation import plan_batches

MEMORY = 100
FIRST_LENGTH = 20
SIZES = 8
"""Sizes that a line is put through, at least."""
GATE = 0.2
"""The paper's delta_2 and delta_3; their values are those of the released code."""

ESTIMATE = np.dtype(
    [
        ("alpha", "f8"),
        ("beta", "f8"),
        ("gamma", "f8"),
        ("drafts", "i8"),  # sum of the remembered lengths
        ("gammas", "f8"),  # sum of the remembered times
        ("tokens_seen", "i8"),
        ("uploads_seen", "i8"),
        ("drafts_seen", "i8"),
        ("planned_tokens", "i4"),
        ("batches", "i4"),
        ("planned_alpha", "f8"),
        ("planned_beta", "f8"),
        ("planned_gamma", "f8"),
        ("plans", "i8"),  # made so far
    ],
    align=True,
)
LOG = np.dtype(
    [
        ("draft_s", "f4"),  # of one of the last tokens
        ("upload_s", "f4"),  # of one of the last uploads, and
        ("upload", "i4"),  # its tokens
        ("length", "i4"),  # of one of the last drafts
        (
            "uploads",
            "i4",
        ),  # remembered ones of as many tokens as the place says (the last place: or more, which no line goes through),
        ("uploads_s", "f8"),  # and their sum
    ],
    align=True,
)
"""What is remembered, `MEMORY` places; fields share a place and nothing else."""


@kernel
def begin(estimate: Any, log: Any, alpha: float, beta: float, gamma: float) -> None:
    """After the probes: uploads of one to eight tokens and as many drafted tokens, at the speed of the first second."""
    estimate.tokens_seen, estimate.uploads_seen, estimate.drafts_seen = 0, 0, 0
    estimate.gammas, estimate.alpha, estimate.beta = 0.0, alpha, beta
    estimate.planned_tokens, estimate.batches, estimate.plans = 0, 0, 0
    estimate.drafts = MEMORY * FIRST_LENGTH
    for i in range(MEMORY):
        log[i].length, log[i].uploads, log[i].uploads_s = FIRST_LENGTH, 0, 0.0
    for k in range(1, SIZES + 1):
        drafted(estimate, log, gamma)
        uploaded(estimate, log, k, alpha + beta * k)


@kernel
def drafted(estimate: Any, log: Any, seconds: float) -> None:
    """A token took so long to draft."""
    row = log[estimate.tokens_seen % MEMORY]
    if estimate.tokens_seen >= MEMORY:
        estimate.gammas -= row.draft_s
    row.draft_s = seconds
    estimate.gammas += row.draft_s
    estimate.tokens_seen += 1
    estimate.gamma = estimate.gammas / min(estimate.tokens_seen, MEMORY)


@kernel
def uploaded(estimate: Any, log: Any, tokens: int, seconds: float) -> None:
    """A timed upload is through: fit the line again."""
    row = log[estimate.uploads_seen % MEMORY]
    if estimate.uploads_seen >= MEMORY:
        size = log[min(row.upload, MEMORY - 1)]
        size.uploads -= 1
        size.uploads_s -= row.upload_s
    row.upload, row.upload_s = tokens, seconds
    size = log[min(tokens, MEMORY - 1)]
    size.uploads += 1
    size.uploads_s += row.upload_s
    estimate.uploads_seen += 1
    total, x, y, xx, xy = 0.0, 0.0, 0.0, 0.0, 0.0
    for tokens in range(1, MEMORY - 1):
        if log[tokens].uploads > 0:
            mean = log[tokens].uploads_s / log[tokens].uploads
            total += 1.0
            x += tokens
            y += mean
            xx += tokens * tokens
            xy += tokens * mean
    if total >= SIZES:
        spread = total * xx - x * x
        estimate.beta = max((total * xy - x * y) / spread, 0.0)
        estimate.alpha = max((y - estimate.beta * x) / total, 0.0)


@kernel
def finished(estimate: Any, log: Any, tokens: int) -> None:
    """A draft of so many tokens was judged."""
    row = log[estimate.drafts_seen % MEMORY]
    estimate.drafts += tokens - row.length
    row.length = tokens
    estimate.drafts_seen += 1


@kernel(inline=True)
def window(estimate: Any) -> int:
    """N^, tokens."""
    return max(int(math.floor(estimate.drafts / MEMORY + 0.5)), 1)


@kernel(inline=True)
def moved(now: float, planned: float) -> bool:
    """Whether a number is further than the gate from what the plan was made with."""
    return abs(now - planned) > GATE * planned


@kernel
def replan(estimate: Any, ends: NDArray[np.int32], work: NDArray[np.float64]) -> None:
    """Make the plan anew if the gates say so; `ends` and `work` as in `plan_batches`."""
    tokens = min(window(estimate), ends.shape[0] - 1)
    if (
        tokens != estimate.planned_tokens
        or moved(estimate.gamma, estimate.planned_gamma)
        or moved(estimate.alpha, estimate.planned_alpha)
        or moved(estimate.beta, estimate.planned_beta)
    ):
        estimate.batches = plan_batches(tokens, estimate.alpha, estimate.beta, estimate.gamma, ends, work)
        estimate.planned_tokens, estimate.planned_alpha = tokens, estimate.alpha
        estimate.planned_beta, estimate.planned_gamma = estimate.beta, estimate.gamma
        estimate.plans += 1
