"""What a request asks of an engine: its lengths, and the tokens x batches it will occupy the KV cache for."""

import math
from typing import Any

import numpy as np

from llmgym.core.jit import kernel

REQUEST = np.dtype(
    [
        ("arrival_s", "f8"),
        ("area", "i8"),  # predicted tokens x batches, as of when it last began to wait
        ("prompt", "i4"),  # tokens
        ("output", "i4"),  # tokens; a scheduler cannot know it
        ("predicted", "i4"),  # output tokens told to the scheduler; 0: none
        ("kept", "i4"),  # output tokens that a preempted request has already produced and keeps
        ("kind", "i4"),  # number of its class
        ("ttft_s", "f4"),  # -1 until then
        ("e2e_s", "f4"),  # -1 until then
    ],
    align=True,
)
"""One request of a lane. A record and not an array for each field, so that an arrival touches one line of memory."""

LIMITS = [
    ("kv_capacity", "i4"),
    ("chunk", "i4"),  # longest prefill chunk of one request in one batch
    ("budget", "i4"),  # tokens of a batch
    ("seats", "i4"),  # residents
    ("block", "i4"),  # tokens of a cache block, a power of two: the cache is handed out in whole blocks
    (
        "first",
        "i4",
    ),  # 1 if the last prefill chunk yields the first output token (real engines), 0 if the next batch does
    ("first_stored", "i4"),  # 1 if that token's KV is stored in the same batch
    ("per_chunk", "f8"),  # 1 / chunk
    ("default_output", "i4"),  # stands in for a prediction where there is none
    ("ttft_slo_s", "f8"),
    ("tpot_slo_s", "f8"),
]
"""Fields of the record `params.number[0]` that the engine reads; tokens and seconds."""

FIRST_TOKENS = {"next-batch": (0, 0), "with-prefill": (1, 0), "stored": (1, 1)}
"""When a request's first output token appears, as (first, first_stored): one batch after its prompt is done (the queueing
model), with the last chunk of the prompt (real engines), or with it and its KV stored in the same batch (the unit-time model
of MC-SF)."""


def set_limits(
    record: Any,
    *,
    kv_capacity: int,
    chunk: int,
    budget: int,
    seats: int,
    block: int,
    first_token: str,
    default_output: int,
    ttft_slo_s: float,
    tpot_slo_s: float,
) -> None:
    """Write the fields of `LIMITS` into a record; `first_token` is a key of `FIRST_TOKENS`."""
    record["kv_capacity"], record["chunk"], record["budget"], record["seats"] = (
        kv_capacity,
        chunk,
        budget,
        seats,
    )
    record["block"] = block
    record["first"], record["first_stored"] = FIRST_TOKENS[first_token]
    record["per_chunk"] = 1.0 / chunk
    record["default_output"] = default_output
    record["ttft_slo_s"], record["tpot_slo_s"] = ttft_slo_s, tpot_slo_s


@kernel(inline=True)
def time_per_token(ttft_s: float, e2e_s: float, output: int) -> float:
    """TPOT of a request: (last token - first token) / (output - 1), s; NaN where a single token has no next one to wait for."""
    return (e2e_s - ttft_s) / (output - 1) if output > 1 else math.nan


@kernel(inline=True)
def in_blocks(config: Any, tokens: int) -> int:
    """Tokens of the whole blocks that so many tokens need."""
    return (tokens + config.block - 1) & -config.block


@kernel(inline=True)
def chunks_of(config: Any, tokens: int) -> int:
    """ceil(tokens / chunk). The half keeps the product clear of whole numbers, so it is exact, and far cheaper than dividing."""
    return int(math.floor((tokens + config.chunk - 0.5) * config.per_chunk))


@kernel(inline=True)
def remaining_area(
    config: Any, prompt: int, prefilled: int, kept: int, decoded: int, decoding: int, output: int
) -> int:
    """Tokens x batches a request still has to occupy the cache for, if chunks are never cut short.

    For a fresh request this is `g_exact` of the queueing model: `chunk n (n-1) / 2 + s + s o + o (o+1) / 2` with n chunks.
    """
    area = 0
    done = decoded
    if decoding == 0:
        left = prompt - prefilled
        if left > 0:
            chunks = chunks_of(config, left)
            area += (
                config.chunk * (chunks * (chunks - 1) // 2)
                + prefilled * (chunks - 1)
                + prompt
                + config.first_stored
            )
            done = kept + config.first
        else:
            done = kept
    more = output - done
    if more > 0:
        start = prompt - kept - (config.first - config.first_stored)
        area += more * start + (output * (output + 1) - done * (done + 1)) // 2
    return area


@kernel(inline=True)
def begin(request: Any, longest: int) -> None:
    """Nothing of a freshly drawn request is done yet. It ends where prompt and output together reach `longest` tokens; a
    scheduler knows that limit too.
    """
    room = max(longest - request.prompt, 1)
    request.output = min(request.output, room)
    request.predicted = min(request.predicted, room)
    request.kept = 0
    request.area = 0
    request.ttft_s = -1.0
    request.e2e_s = -1.0


@kernel(inline=True)
def predicted_output(config: Any, predicted: int) -> int:
    """The output length a scheduler reckons with."""
    return predicted if predicted > 0 else config.default_output


@kernel(inline=True)
def predicted_area(config: Any, request: Any) -> int:
    """Predicted tokens x batches of a waiting request."""
    kept = request.kept
    output = max(predicted_output(config, request.predicted), kept + 1)
    return remaining_area(config, request.prompt + kept, 0, kept, kept, 0, output)
