"""What a request asks of an engine: its lengths, and the tokens x batches it will occupy the KV cache for."""

import math
from typing import Any

from llmgym.core.jit import kernel

PROMPT, OUTPUT, PREDICTED, CLASS, KEPT = 0, 1, 2, 3, 4
"""Rows of `state.tokens`, int32 [lanes, 5, n]: prompt, true output, output told to the scheduler, class, and the output that a
preempted request has already produced and keeps."""

LIMITS = [
    ("kv_capacity", "i4"),
    ("chunk", "i4"),  # longest prefill chunk of one request in one batch
    ("budget", "i4"),  # tokens of a batch
    ("seats", "i4"),  # residents
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
    record["first"], record["first_stored"] = FIRST_TOKENS[first_token]
    record["per_chunk"] = 1.0 / chunk
    record["default_output"] = default_output
    record["ttft_slo_s"], record["tpot_slo_s"] = ttft_slo_s, tpot_slo_s


@kernel(inline=True)
def chunks_of(number: Any, tokens: int) -> int:
    """ceil(tokens / chunk). The half keeps the product clear of whole numbers, so it is exact, and far cheaper than dividing."""
    return int(math.floor((tokens + number.chunk - 0.5) * number.per_chunk))


@kernel(inline=True)
def remaining_area(
    number: Any, prompt: int, prefilled: int, kept: int, decoded: int, decoding: int, output: int
) -> int:
    """Tokens x batches a request still has to occupy the cache for, if chunks are never cut short.

    For a fresh request this is `g_exact` of the queueing model: `chunk n (n-1) / 2 + s + s o + o (o+1) / 2` with n chunks.
    """
    area = 0
    done = decoded
    if decoding == 0:
        left = prompt - prefilled
        if left > 0:
            chunks = chunks_of(number, left)
            area += (
                number.chunk * (chunks * (chunks - 1) // 2)
                + prefilled * (chunks - 1)
                + prompt
                + number.first_stored
            )
            done = kept + number.first
        else:
            done = kept
    more = output - done
    if more > 0:
        start = prompt - kept - (number.first - number.first_stored)
        area += more * start + (output * (output + 1) - done * (done + 1)) // 2
    return area


@kernel(inline=True)
def cut_to(tokens: Any, request: int, longest: int) -> None:
    """End a request where prompt and output together reach `longest` tokens; a scheduler knows that limit too."""
    room = max(longest - tokens[PROMPT, request], 1)
    tokens[OUTPUT, request] = min(tokens[OUTPUT, request], room)
    tokens[PREDICTED, request] = min(tokens[PREDICTED, request], room)


@kernel(inline=True)
def predicted_output(number: Any, predicted: int) -> int:
    """The output length a scheduler reckons with."""
    return predicted if predicted > 0 else number.default_output


@kernel(inline=True)
def predicted_area(state: Any, params: Any, lane: int, request: int) -> int:
    """Predicted tokens x batches of a waiting request."""
    number = params.number[0]
    tokens = state.tokens[lane]
    kept = tokens[KEPT, request]
    output = max(predicted_output(number, tokens[PREDICTED, request]), kept + 1)
    return remaining_area(number, tokens[PROMPT, request] + kept, 0, kept, kept, 0, output)
