"""An uplink that carries one batch of tokens at a time, at a bandwidth that changes, with a book of what it carries.

A batch of k tokens that starts at time t takes alpha + k beta(t) seconds, beta(t) = bytes of a token / bandwidth at t. Batches
go in the order
they were put on the link (PipeSD, arXiv 2605.13319). Those that have not started can be withdrawn; one that has
started goes through, and
keeps the link busy, even where nobody wants it any more.

Always: `queued == carried + on the link or in line`, in tokens.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmgym.core.jit import kernel

UPLINK = np.dtype(
    [
        ("free_s", "f8"),  # when the last batch in line will be through
        ("queued", "i8"),  # tokens put on the link and not withdrawn
        ("carried", "i8"),
        ("first", "i4"),  # of the line, a ring
        ("count", "i4"),
        ("busy_s", "f8"),  # of batches that went through
    ],
    align=True,
)
BATCH = np.dtype(
    [("start_s", "f8"), ("end_s", "f8"), ("tokens", "i4"), ("measured", "i4")],
    align=True,
)
"""A batch in line or on the link; `measured` says whether the edge times it."""


@kernel(inline=True)
def clear(link: Any) -> None:
    """Nothing is on the link."""
    link.free_s, link.busy_s, link.queued, link.carried, link.first, link.count = 0.0, 0.0, 0, 0, 0, 0


@kernel(inline=True)
def put(
    link: Any,
    line: Any,
    rates: NDArray[np.float32],
    now: float,
    tokens: int,
    alpha: float,
    megabytes: float,
    measured: int,
) -> float:
    """A batch gets in line; returns when it will be through.

    Args:
        link: record `UPLINK`.
        line: records `BATCH` [places], a ring; the caller makes sure that there is room.
        rates: float32 [seconds], MB/s in each second; after the last one they begin anew.
        now: s.
        tokens: of the batch; 0 for a bare request.
        alpha: s, to start.
        megabytes: of a token.
        measured: whether the edge times it.
    """
    start = max(now, link.free_s)
    rate = rates[int(math.floor(start)) % rates.shape[0]]
    end = start + alpha + tokens * megabytes / rate
    batch = line[(link.first + link.count) % line.shape[0]]
    batch.start_s, batch.end_s, batch.tokens, batch.measured = start, end, tokens, measured
    link.count += 1
    link.queued += tokens
    link.free_s = end
    return end


@kernel(inline=True)
def take(link: Any, line: Any) -> int:
    """The batch at the head is through; returns its place in the ring."""
    place = link.first
    batch = line[place]
    link.carried += batch.tokens
    link.busy_s += batch.end_s - batch.start_s
    link.first = (link.first + 1) % line.shape[0]
    link.count -= 1
    return place


@kernel(inline=True)
def withdraw(link: Any, line: Any, now: float) -> None:
    """Batches that have not started leave the line."""
    while link.count > 0:
        batch = line[(link.first + link.count - 1) % line.shape[0]]
        if batch.start_s < now:
            break
        link.count -= 1
        link.queued -= batch.tokens
        link.free_s = batch.start_s  # no later than the batch before it is through, or now
    if link.count > 0:
        link.free_s = line[(link.first + link.count - 1) % line.shape[0]].end_s
