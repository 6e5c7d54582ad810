"""What an edge knows of its own speed: drafting time, upload time, length of drafts, each measured while it works.

As PipeSD does (arXiv 2605.13319, and its released code):

- gamma is the mean time of the last 100 drafted tokens.
- alpha and beta are intercept and slope of a least-squares line through the mean upload time of each batch size, over the
  last 100 timed uploads, once there are eight sizes; with fewer, the last line stays. Uploads that ask for a verdict are not
  timed. Batches of one to eight tokens are sent as probes before an episode.
- N^ is the mean length of the last 100 drafts, rounded, at least 1. It starts with a hundred drafts of 20 tokens.

The plan of batches is made anew when N^ changes, or when gamma, alpha or beta are more than a fifth off what the plan was
made with.
"""

import math

import numpy as np
from numpy.typing import NDArray

from llmgym.core.jit import kernel
from llmgym.core.records import Record, Records, float32, float64, int32, int64
from llmgym.envs.pipesd.speculation import plan_batches

MEMORY = 100
"""Drafted tokens, timed uploads and drafts that are remembered, as in the released code."""
FIRST_LENGTH = 20
"""Tokens of each of the `MEMORY` drafts that are remembered when an episode begins. No source says how many there are: of the
variants that were tried this comes nearest to the paper's figures."""
SIZES = 8
"""Batch sizes that a line is put through, at least, as in the released code."""
GATE = 0.2
"""The paper's delta_2 and delta_3; their values are those of the released code."""


class Estimate(Record):
    """What one edge has measured, and what its plan was made with."""

    alpha: float = float64("Estimated time to start an upload, seconds.")
    beta: float = float64("Estimated time that a token adds to an upload, seconds.")
    gamma: float = float64("Estimated time to draft a token, seconds.")
    drafts: int = int64("Sum of the remembered lengths of drafts, tokens.", blank=MEMORY * FIRST_LENGTH)
    gammas: float = float64("Sum of the remembered times of drafted tokens, seconds.")
    tokens_seen: int = int64("Tokens that were drafted, probes included.")
    uploads_seen: int = int64("Uploads that were timed, probes included.")
    drafts_seen: int = int64("Drafts that were judged.")
    planned_tokens: int = int32("Window that the plan was made for, tokens; 0: there is no plan.")
    batches: int = int32("Batches of the plan.")
    planned_alpha: float = float64("The alpha that the plan was made with, seconds.")
    planned_beta: float = float64("The beta that the plan was made with, seconds.")
    planned_gamma: float = float64("The gamma that the plan was made with, seconds.")
    plans: int = int64("Plans that were made so far.")


class Log(Record):
    """One of the `MEMORY` places of what an edge remembers; its fields share a place and nothing else."""

    draft_s: float = float32("Time of one of the last drafted tokens, seconds.")
    upload_s: float = float32("Time of one of the last timed uploads, seconds.")
    upload: int = int32("Tokens of that upload.")
    length: int = int32("Tokens of one of the last drafts.", blank=FIRST_LENGTH)
    uploads: int = int32(
        "Remembered uploads of as many tokens as the number of the place. The last place counts larger ones too, and no line goes "
        "through it."
    )
    uploads_s: float = float64("Sum of the times of the uploads that `uploads` counts, seconds.")


NOTHING = Log.blank


@kernel
def begin(estimate: Estimate, log: Records[Log], alpha: float, beta: float, gamma: float) -> None:
    """Measure the probes: uploads of one to eight tokens and as many drafted tokens.

    Args:
        estimate: a blank one.
        log: records [MEMORY]; what is in there is forgotten.
        alpha: time to start an upload, seconds.
        beta: time of a token of an upload in the first second, seconds.
        gamma: time to draft a token, seconds.
    """
    estimate.alpha, estimate.beta = alpha, beta
    for i in range(MEMORY):
        log[i] = NOTHING[0]
    for size in range(1, SIZES + 1):
        drafted(estimate, log, gamma)
        uploaded(estimate, log, size, alpha + beta * size)


@kernel(inline=True)
def drafted(estimate: Estimate, log: Records[Log], seconds: float) -> None:
    """Measure a drafted token.

    Args:
        estimate: of the edge.
        log: records [MEMORY].
        seconds: that the token took.
    """
    place = log[estimate.tokens_seen % MEMORY]
    if estimate.tokens_seen >= MEMORY:
        estimate.gammas -= place.draft_s
    place.draft_s = seconds
    estimate.gammas += place.draft_s
    estimate.tokens_seen += 1
    estimate.gamma = estimate.gammas / min(estimate.tokens_seen, MEMORY)


@kernel(inline=True)
def uploaded(estimate: Estimate, log: Records[Log], tokens: int, seconds: float) -> None:
    """Measure an upload that is through, and fit the line again.

    Args:
        estimate: of the edge.
        log: records [MEMORY].
        tokens: of the upload.
        seconds: that it took.
    """
    place = log[estimate.uploads_seen % MEMORY]
    if estimate.uploads_seen >= MEMORY:
        forgotten = log[min(place.upload, MEMORY - 1)]
        forgotten.uploads -= 1
        forgotten.uploads_s -= place.upload_s
    place.upload, place.upload_s = tokens, seconds
    same_size = log[min(tokens, MEMORY - 1)]
    same_size.uploads += 1
    same_size.uploads_s += place.upload_s
    estimate.uploads_seen += 1
    sizes, x, y, xx, xy = 0.0, 0.0, 0.0, 0.0, 0.0
    for size in range(1, MEMORY - 1):
        if log[size].uploads > 0:
            mean = log[size].uploads_s / log[size].uploads
            sizes += 1.0
            x += size
            y += mean
            xx += size * size
            xy += size * mean
    if sizes >= SIZES:
        spread = sizes * xx - x * x
        estimate.beta = max((sizes * xy - x * y) / spread, 0.0)
        estimate.alpha = max((y - estimate.beta * x) / sizes, 0.0)


@kernel(inline=True)
def judged(estimate: Estimate, log: Records[Log], tokens: int) -> None:
    """Remember the length of a draft that was judged.

    Args:
        estimate: of the edge.
        log: records [MEMORY].
        tokens: of the draft.
    """
    place = log[estimate.drafts_seen % MEMORY]
    estimate.drafts += tokens - place.length
    place.length = tokens
    estimate.drafts_seen += 1


@kernel(inline=True)
def window(estimate: Estimate) -> int:
    """N^, the rounded mean length of the remembered drafts, tokens."""
    return max(int(math.floor(estimate.drafts / MEMORY + 0.5)), 1)


@kernel(inline=True)
def moved(now: float, planned: float) -> bool:
    """Whether a number is further than the gate from what the plan was made with."""
    return abs(now - planned) > GATE * planned


@kernel(inline=True)
def replan(estimate: Estimate, ends: NDArray[np.int32], work: NDArray[np.float64]) -> None:
    """Make the plan anew if the gates say so.

    Args:
        estimate: of the edge.
        ends: int32 [>= N^ + 1], becomes the plan as `plan_batches` writes it.
        work: float64 [>= N^ + 1], for intermediate results.
    """
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
