"""What a request asks of an engine: its lengths, and the tokens x batches it will occupy the KV cache for."""

import math
from typing import Any

from llmgym.core.jit import kernel
from llmgym.core.records import Records
from llmgym.profiles.cost import NO_LAUNCHES, Launches
from llmgym.serving.state import Limits, Request

FIRST_TOKENS = {"next-batch": (0, 0), "with-prefill": (1, 0), "stored": (1, 1)}
"""When a request's first output token appears, as (first, first_stored): one batch after its prompt is done (the queueing
model), with the last chunk of the prompt (real engines), or with it and its KV stored in the same batch (the unit-time model
of MC-SF)."""

OUTPUT_WEIGHT = 1e-3
"""Weight of an output token in the checksum of a world."""


def derived_limits(
    chunk: int,
    first_token: str,
    held: bool = False,
    alone: bool = False,
    prefix: bool = False,
    conversations: bool = False,
    host_tokens: int = 0,
    copy_s: tuple[float, float] = (0.0, 0.0),
    launches: Launches = NO_LAUNCHES,
) -> dict[str, Any]:
    """The fields of `Limits` that follow from other settings.

    Args:
        chunk: longest prefill chunk, tokens.
        first_token: a key of `FIRST_TOKENS`.
        held: whether a completed request keeps its seat and blocks while the next batch is planned.
        alone: whether `chunk` does not bind a request that is alone in the engine.
        prefix: whether prefixes are cached.
        conversations: whether turns arrive after the turn before them.
        host_tokens: cache that the host's memory holds, tokens; 0: nothing is copied.
        copy_s: time to copy a token of the cache to the host, and back, s.
        launches: what the host takes to launch a step in pieces, counted from its plan on.
    """
    first, first_stored = FIRST_TOKENS[first_token]
    return {
        "first": first,
        "first_stored": first_stored,
        "held": int(held),
        "alone": int(alone),
        "prefix": int(prefix),
        "conversations": int(conversations),
        "host_tokens": host_tokens,
        "to_host_s": copy_s[0],
        "to_device_s": copy_s[1],
        "launch_above": launches.above_tokens,
        "launch_s": launches.launch_s,
        "floor_s": launches.floor_s,
        "per_chunk": 1.0 / chunk,
    }


@kernel(inline=True)
def time_per_token(ttft_s: float, e2e_s: float, output: int) -> float:
    """TPOT of a request: (last token - first token) / (output - 1).

    Args:
        ttft_s: time from arrival to the first output token, s.
        e2e_s: time from arrival to the last one, s.
        output: length of the output, tokens.

    Returns:
        Seconds; NaN where a single token has no next one to wait for.
    """
    return (e2e_s - ttft_s) / (output - 1) if output > 1 else math.nan


@kernel(inline=True)
def in_blocks(config: Limits, tokens: int) -> int:
    """Tokens of the whole blocks that so many tokens need."""
    return (tokens + config.block - 1) & -config.block


@kernel(inline=True)
def chunks_of(config: Limits, tokens: int) -> int:
    """ceil(tokens / chunk). The half keeps the product clear of whole numbers, so it is exact, and far cheaper than dividing."""
    return int(math.floor((tokens + config.chunk - 0.5) * config.per_chunk))


@kernel(inline=True)
def remaining_area(
    config: Limits, prompt: int, prefilled: int, kept: int, decoded: int, decoding: int, output: int
) -> int:
    """The area a request still has to take, if chunks are never cut short.

    For a fresh request this is `g_exact` of the queueing model: `chunk n (n-1) / 2 + s + s o + o (o+1) / 2` with n chunks.

    Args:
        config: limits of the engine.
        prompt: tokens to prefill, with the output kept from before a preemption.
        prefilled: tokens of these that have been prefilled.
        kept: output kept from before a preemption, tokens.
        decoded: output so far, tokens.
        decoding: 1 if the request decodes, 0 if it waits or prefills.
        output: length of the whole output, tokens.

    Returns:
        Tokens x batches.
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
def cut(request: Any, longest: int) -> None:
    """A freshly drawn request ends where prompt and output together reach `longest` tokens; a scheduler knows that limit too."""
    room = max(longest - request.prompt, 1)
    request.output = min(request.output, room)
    request.predicted = min(request.predicted, room)


@kernel(inline=True)
def begin(request: Request, longest: int) -> None:
    """Nothing of a freshly drawn request is done yet, and it ends as `cut` says."""
    cut(request, longest)
    request.kept = 0
    request.hosted = 0
    request.area = 0
    request.ttft_s = -1.0
    request.e2e_s = -1.0


@kernel
def checksum_of(requests: Records[Any], count: int) -> float:
    """A number that tells a world of requests from others: the sum of their arrival times and lengths.

    Outputs have a weight of their own, so that a prompt and an output cannot change places unnoticed.
    """
    checksum = 0.0
    for i in range(count):
        request = requests[i]
        checksum += request.arrival_s + request.prompt + OUTPUT_WEIGHT * request.output
    return checksum


@kernel(inline=True)
def predicted_output(config: Limits, predicted: int) -> int:
    """The output length a scheduler reckons with."""
    return predicted if predicted > 0 else config.default_output


@kernel(inline=True)
def predicted_area(config: Limits, request: Request) -> int:
    """Predicted tokens x batches of a waiting request."""
    kept = request.kept
    output = max(predicted_output(config, request.predicted), kept + 1)
    return remaining_area(config, request.prompt + kept, request.hosted, kept, kept, 0, output)
