"""An uplink that carries one batch of tokens at a time, at a bandwidth that changes, with a book of what it carries.

A batch of k tokens that starts at time t takes alpha + k beta(t) seconds, where beta(t) is the bytes of a token over the
bandwidth at t. Batches go in the order in which they were put on the link (PipeSD, arXiv 2605.13319). Batches that have not
started can be withdrawn; one that has started goes through and keeps the link busy, even where nobody wants it any more.

Always: `queued == carried + on the link or in line`, in tokens.
"""

import math

import numpy as np
from numpy.typing import NDArray

from llmgym.core.jit import kernel
from llmgym.core.records import Record, Records, float64, int32, int64


class Uplink(Record):
    """The uplink of one client; blank, nothing is on it."""

    free_s: float = float64("Time at which the last batch in line will be through, seconds.")
    queued: int = int64("Tokens that were put on the link and not withdrawn.")
    carried: int = int64("Tokens of the batches that went through.")
    first: int = int32("Place of the batch at the head of the line, which is a ring.")
    count: int = int32("Batches in line, the one on the link included.")
    busy_s: float = float64("Time that batches which went through took, seconds.")


class Batch(Record):
    """A batch in line or on the link."""

    start_s: float = float64("Time at which the upload starts, seconds.")
    end_s: float = float64("Time at which the upload is through, seconds.")
    tokens: int = int32("Tokens of the batch; 0 for a bare request.")
    measured: int = int32("Whether the edge times the upload, 0 or 1.")


@kernel(inline=True)
def put(
    link: Uplink,
    line: Records[Batch],
    rates: NDArray[np.float32],
    now: float,
    tokens: int,
    alpha: float,
    megabytes: float,
    measured: int,
) -> float:
    """Let a batch get in line.

    Args:
        link: the uplink.
        line: its batches, records [places], a ring; the caller makes sure that there is room.
        rates: float32 [seconds], MB/s in each second; after the last one they begin anew.
        now: the time, seconds.
        tokens: of the batch; 0 for a bare request.
        alpha: time to start an upload, seconds.
        megabytes: size of a token, MB.
        measured: whether the edge times the upload, 0 or 1.

    Returns:
        The time at which the batch will be through, seconds.
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
def take(link: Uplink, line: Records[Batch]) -> int:
    """Let the batch at the head of the line, which is through, leave it; returns its place in the ring."""
    place = link.first
    batch = line[place]
    link.carried += batch.tokens
    link.busy_s += batch.end_s - batch.start_s
    link.first = (link.first + 1) % line.shape[0]
    link.count -= 1
    return place


@kernel(inline=True)
def withdraw(link: Uplink, line: Records[Batch], now: float) -> None:
    """Let the batches that have not started leave the line.

    Args:
        link: the uplink.
        line: its batches, records [places], a ring.
        now: the time, seconds.
    """
    while link.count > 0:
        batch = line[(link.first + link.count - 1) % line.shape[0]]
        if batch.start_s < now:
            break
        link.count -= 1
        link.queued -= batch.tokens
        link.free_s = batch.start_s  # no later than the batch before it is through, or now
    if link.count > 0:
        link.free_s = line[(link.first + link.count - 1) % line.shape[0]].end_s
