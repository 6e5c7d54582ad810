"""What a denoiser call takes, seconds: the paper's own wall clock, or measured kernels of an 8B model.

Luxembourg, Permuter and Nachmani (arXiv 2506.19037), Table 12: LLaDA-8B takes 24.6 s for 256 calls, one for each token, on an
RTX 6000 Ada. The kernel sets are those of `llmgym.profiles.kernels`: one layer of a denoiser of the shape of Llama-3.1-8B, in which
every query sees every key, and the head with softmax and likeliest token.
"""

import functools

import numpy as np
from numpy.typing import NDArray

from llmgym.core.checks import choice
from llmgym.profiles.kernels import Kernels, load_kernels

PUBLISHED_S = 0.096
"""A call of LLaDA-8B on an RTX 6000 Ada, seconds: 24.6 s / 256."""
LAYERS = 32
"""Layers of LLaDA-8B, as of Llama-3.1-8B."""
MODEL = "llama-3.1-8b"
FEWEST_QUERIES = 32
"""Smallest number of queries in the kernel sets; fewer take as long (a decode step reads the same weights)."""
KERNELS = {"h100": "h100/kernels", "h200": "h200/kernels"}
CLOCKS = ("published", *KERNELS)


@functools.cache
def _kernels(clock: str) -> Kernels:
    return load_kernels(KERNELS[clock])


@functools.lru_cache(maxsize=4096)
def _layers_s(clock: str, queries: int, keys: int, scored: int) -> float:
    """Seconds of all layers and of the head."""
    kernels = _kernels(clock)
    layer_us = kernels.time_us("denoiser_layer", MODEL, batch=1, queries=queries, keys=keys)
    return 1e-6 * (LAYERS * layer_us + kernels.time_us("confidence", MODEL, tokens=scored))


def call_times(clock: str, tokens: int, block: int, context: int, reuse: bool) -> NDArray[np.float64]:
    """Seconds of a denoiser call while each block is being filled.

    Args:
        clock: `published`, `h100` or `h200`.
        tokens: tokens to generate.
        block: positions of a block; the head scores these.
        context: tokens of the prompt.
        reuse: whether keys and values of the prompt and of earlier blocks are kept, and later blocks left out, so that a call
            computes one block; otherwise it computes the prompt and all tokens, as in the paper.

    Returns:
        Seconds, float64 [blocks].

    Raises:
        UnknownName: no such clock.
        InvalidArgument: more tokens than the kernels were measured for.
    """
    choice("clock", clock, CLOCKS)
    blocks = np.arange(tokens // block)
    if clock == "published":
        return np.full(len(blocks), PUBLISHED_S)
    if not reuse:
        length = max(context + tokens, FEWEST_QUERIES)
        return np.full(len(blocks), _layers_s(clock, length, length, block))
    queries = max(block, FEWEST_QUERIES)
    return np.array(
        [
            _layers_s(clock, queries, max(context + int(b + 1) * block, queries), block)
            for b in blocks.tolist()
        ]
    )
