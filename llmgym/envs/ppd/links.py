"""Links that carry KV caches: bandwidth, set-up time, a receive buffer, and a book of every byte.

A link has one receiver. A sender puts a transfer on it with `send`; from then on the bytes are in flight, or wait in the buffer
of the receiver. The receiver takes transfers one after the other (`receive`), each for a set-up time and its bytes at the slower of
the link and the receiver's own copying. Where the buffer is full the sender has to wait: ask `has_room` first.

That transfers block their receiver one by one is how a point-to-point KV connector of an engine works (Li et al.,
"Not All Prefills Are Equal: PPD Disaggregation for Multi-turn LLM Serving", arXiv 2603.13358, Eq. 2 and section 5: the
delay of a slow network is added where the decode node receives, and holds its whole batch up).

Always: `sent == received + in_flight`, in bytes. A receiver that does not want a transfer any more still receives it.
"""

import math
from typing import Any

from llmgym.core.checks import number
from llmgym.core.jit import kernel
from llmgym.core.records import Record, float64, int64

GB = 1e9


class Link(Record):
    """One link. Bytes are whole numbers in float64, which are exact up to 9 PB."""

    seconds_per_byte: float = float64("Time for a byte, seconds.")
    setup_s: float = float64("Time to set a transfer up, seconds.")
    buffer_bytes: float = float64("Size of the receiver's buffer, bytes.")
    sent_bytes: float = float64("Bytes that were put on the link.")
    received_bytes: float = float64("Bytes that were taken off the link.")
    in_flight_bytes: float = float64("Bytes on the way, or in the buffer.")
    in_flight: int = int64("Transfers on the way, or in the buffer.")
    busy_s: float = float64("Time that the receiver spent receiving, seconds.")


def idle_link(
    *,
    bandwidth_gb_per_s: float,
    receiver_gb_per_s: float = math.inf,
    setup_s: float = 0.0,
    buffer_gb: float = math.inf,
) -> Any:
    """A link that has carried nothing.

    Args:
        bandwidth_gb_per_s: of the wire, GB/s (1e9 bytes); infinite where only the receiver limits.
        receiver_gb_per_s: what the receiver can take in, GB/s.
        setup_s: time to set each transfer up, seconds.
        buffer_gb: what may be in flight at once, GB; one transfer always may.

    Returns:
        Records `Link` [1].

    Raises:
        InvalidArgument: a bandwidth or a buffer that is not above zero, or a negative set-up time.
    """
    limits = (("bandwidth_gb_per_s", bandwidth_gb_per_s), ("receiver_gb_per_s", receiver_gb_per_s))
    rates = [rate if rate == math.inf else number(name, rate) for name, rate in limits]
    return Link.packed(
        seconds_per_byte=1.0 / (GB * min(rates)),
        setup_s=number("setup_s", setup_s, zero=True),
        buffer_bytes=math.inf if buffer_gb == math.inf else GB * number("buffer_gb", buffer_gb),
    )


@kernel(inline=True)
def has_room(link: Link, transfer_bytes: float) -> bool:
    """Whether a transfer may begin: its bytes fit into the buffer, or nothing else is in flight."""
    return link.in_flight == 0 or link.in_flight_bytes + transfer_bytes <= link.buffer_bytes


@kernel(inline=True)
def send(link: Link, transfer_bytes: float) -> None:
    """A transfer begins."""
    link.sent_bytes += transfer_bytes
    link.in_flight_bytes += transfer_bytes
    link.in_flight += 1


@kernel(inline=True)
def receive(link: Link, transfer_bytes: float) -> float:
    """The receiver takes a transfer; returns for how long that holds it up, seconds."""
    discard(link, transfer_bytes)
    seconds = link.setup_s + transfer_bytes * link.seconds_per_byte
    link.busy_s += seconds
    return seconds


@kernel(inline=True)
def discard(link: Link, transfer_bytes: float) -> None:
    """A transfer that nobody wants any more has come and is thrown away; that holds nobody up."""
    link.in_flight_bytes -= transfer_bytes
    link.in_flight -= 1
    link.received_bytes += transfer_bytes
