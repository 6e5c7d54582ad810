"""What AFDRatio and AFDRefill share: slots that requests move through, and the requests that fill them.

Song et al., arXiv 2601.21351v1, sections 3 and 4: an attention instance has B slots for each microbatch, and a request that is done
frees its slot, which is refilled before the next step. A microbatch of one instance is a *table* here: its slots, the steps at
which they will be free (a wheel of linked lists, so that a step costs what finishes in it and not B), and its load, which grows by
one token for every occupied slot and step.

Steps of a microbatch are counted by its `tick`. A request placed at tick t with L steps holds its prompt at t, one token more at
each later step, and is done when the tick is t + L.
"""

import numpy as np
from numpy.typing import NDArray

from llmgym.core.jit import kernel
from llmgym.core.records import Record, Records, float64, int32
from llmgym.core.rng import integer, uniform
from llmgym.envs.afd.requests import Law

NONE = -1
"""Ends a list of slots."""
NEVER = -1.0
"""The first step of a request that was already running when the episode began."""
LEAST_BUCKETS, MOST_BUCKETS = 8, 1024
"""Sizes of a wheel, chosen here: larger ones take more memory than they save time."""


class Slot(Record):
    """A place for one request on an attention instance."""

    began: float = float64("Time of the request's first step, cycles; NEVER where it was not seen.")
    prompt: int = int32("Prompt of the request, tokens.")
    steps: int = int32("Steps that the request stays.")
    end: int = int32("Tick at which the slot is free.")
    next: int = int32("Slot after this one in its list; NONE for the last.")


class Table(Record):
    """The slots of one microbatch on one attention instance."""

    load: float = float64("Tokens in the KV cache; a whole number wherever requests have slots.")
    occupied: int = int32("Slots that hold a request.")
    free: int = int32("First free slot; NONE if all are occupied.")


def wheel_size(mean_steps: float) -> int:
    """Buckets of a wheel: a power of two near the mean stay of a request (in steps), 8 to 1,024."""
    size = LEAST_BUCKETS
    while size < min(mean_steps, MOST_BUCKETS):
        size *= 2
    return size


@kernel(inline=True)
def draw(law: Law, key: np.uint64, index: int) -> int:
    """Draw request `index` of a stream: the row of the table of requests, each row of the law being equally likely.

    Args:
        law: of the requests.
        key: of the stream, uint64.
        index: of the draw, 0 or more.

    Returns:
        The row in the table of requests.
    """
    return law.begin + min(int(uniform(key, index) * law.count), law.count - 1)


@kernel
def draw_running(law: Law, until: NDArray[np.int64], key: np.uint64, index: int) -> tuple[int, int]:
    """Draw a request as it is met in a slot in the long run, where longer ones are met more often.

    Args:
        law: of the requests.
        until: int64 [rows], running sums of the steps of the law's rows.
        key: of the stream.
        index: of the draw.

    Returns:
        Its row in the table of requests, and the steps it has had, 0..steps - 1.
    """
    last = law.begin + law.count - 1
    point = min(integer(key, index, 0, until[last] - 1), until[last] - 1)
    low, high = law.begin, last
    while low < high:
        middle = (low + high) // 2
        if until[middle] > point:
            high = middle
        else:
            low = middle + 1
    if low > law.begin:
        point -= until[low - 1]
    return low, point


@kernel
def clear(slots: Records[Slot], wheel: NDArray[np.int32], table: Table) -> None:
    """Free every slot of a table.

    Args:
        slots: [B], of the table.
        wheel: int32 [buckets], of the table.
        table: its load and its free slots.
    """
    last = slots.shape[0] - 1
    for s in range(last + 1):
        slots[s].next = s + 1 if s < last else NONE
    for bucket in range(wheel.shape[0]):
        wheel[bucket] = NONE
    table.load, table.occupied, table.free = 0.0, 0, 0


@kernel
def place(
    slots: Records[Slot],
    wheel: NDArray[np.int32],
    table: Table,
    tick: int,
    prompt: int,
    steps: int,
    age: int,
    began: float,
) -> None:
    """Put a request into the first free slot.

    Args:
        slots: [B], of the table.
        wheel: int32 [buckets], of the table.
        table: its load and its free slots, of which there is at least one.
        tick: steps of the microbatch so far.
        prompt: of the request, tokens.
        steps: that the request stays in all.
        age: steps that it has had.
        began: time of its first step, cycles; NEVER where it was not seen.
    """
    s = table.free
    slot = slots[s]
    table.free = slot.next
    table.occupied += 1
    table.load += prompt + age
    slot.prompt, slot.steps, slot.end, slot.began = prompt, steps, tick + steps - age, began
    bucket = slot.end & (wheel.shape[0] - 1)
    slot.next = wheel[bucket]
    wheel[bucket] = s


@kernel
def advance(slots: Records[Slot], wheel: NDArray[np.int32], table: Table, tick: int) -> int:
    """Let a table take the step that ends with this tick.

    Args:
        slots: [B], of the table.
        wheel: int32 [buckets], of the table.
        table: its load and its free slots.
        tick: steps of the microbatch, this one included.

    Returns:
        How many requests are done with the step. Their slots are the first of the free ones, in turn.
    """
    table.load += table.occupied
    bucket = tick & (wheel.shape[0] - 1)
    s = wheel[bucket]
    wheel[bucket] = NONE
    done = 0
    while s != NONE:
        slot = slots[s]
        after = slot.next
        if slot.end == tick:
            table.load -= slot.prompt + slot.steps
            table.occupied -= 1
            slot.next = table.free
            table.free = s
            done += 1
        else:
            slot.next = wheel[bucket]
            wheel[bucket] = s
        s = after
    return done


def running_slots(slots: Records[Slot], wheel: NDArray[np.int32]) -> NDArray[np.int64]:
    """The slots [B] of one table that hold a request, read from its wheel (int32 [buckets]): int64 [requests]."""
    running = []
    for head in wheel:
        s = int(head)
        while s != NONE:
            running.append(s)
            s = int(slots["next"][s])
    return np.array(running, np.int64)


def redraw_steps(
    slots: Records[Slot],
    wheel: NDArray[np.int32],
    tick: int,
    steps: NDArray[np.int32],
    rng: np.random.Generator,
) -> int:
    """Give every request in a table other steps, more than it has had: what it holds stays, when it will be done does not.

    Args:
        slots: [B], of the table.
        wheel: int32 [buckets], of the table.
        tick: steps of the microbatch so far.
        steps: int32 [n], of the requests to draw from, each equally likely, rising; the last is more than any request here has had.
        rng: draws them.

    Returns:
        By how many the steps of all requests together have grown.
    """
    running = running_slots(slots, wheel)
    old, end = slots["steps"][running], slots["end"][running]
    had = old - (end - tick)
    drawn = steps[rng.integers(np.searchsorted(steps, had, side="right"), len(steps))]
    slots["steps"][running], slots["end"][running] = drawn, end + drawn - old
    wheel[:] = NONE
    for s in running.tolist():
        bucket = int(slots["end"][s]) & (len(wheel) - 1)
        slots["next"][s], wheel[bucket] = wheel[bucket], s
    return int(drawn.sum() - old.sum())
