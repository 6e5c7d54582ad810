"""What AFDRatio and AFDRefill share: slots that requests move through, and the requests that fill them.

Song et al., arXiv 2601.21351v1, sections 3 and 4: an attention instance has B slots for each microbatch, and a request that
is done frees its slot, which is refilled before the next step. A microbatch of one instance is a *table* here: its slots,
the steps at which they will be free (a wheel of linked lists, so that a step costs what finishes in it and not B), and its load,
which grows by one token for every occupied slot and step.

Steps of a microbatch are counted by its `tick`. A request placed at tick t with L steps holds its prompt at t, one token
more at each later step, and is done when the tick is t + L.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmgym.core.jit import kernel
from llmgym.core.rng import integer, uniform

NONE = -1
NEVER = -1.0

SLOT = np.dtype(
    [
        ("began", "f8"),  # time of the first step; NEVER where it was not seen
        ("prompt", "i4"),
        ("steps", "i4"),
        ("end", "i4"),  # tick at which it is free
        ("next", "i4"),  # slot after it in its list
    ],
    align=True,
)
TABLE = np.dtype(
    [
        ("load", "f8"),  # tokens; whole numbers in all modes with slots
        ("occupied", "i4"),
        ("free", "i4"),  # first free slot
    ],
    align=True,
)


def wheel_size(mean_steps: float) -> int:
    """Buckets of a wheel: a power of two near the mean stay, at most 1,024."""
    size = 8
    while size < min(mean_steps, 1024.0):
        size *= 2
    return size


@kernel(inline=True)
def draw(law: Any, key: np.uint64, number: int) -> int:
    """Row of request `number` of a stream: each of the law's rows is equally likely."""
    return law.begin + min(int(uniform(key, number) * law.count), law.count - 1)


@kernel
def draw_running(law: Any, until: NDArray[np.int64], key: np.uint64, number: int) -> tuple[int, int]:
    """A request met in a slot in the long run, and the steps it has had: longer ones are met more often.

    Returns:
        Its row, and its age in 0..steps - 1.
    """
    last = law.begin + law.count - 1
    point = min(integer(key, number, 0, until[last] - 1), until[last] - 1)
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
def clear(slots: NDArray[Any], wheel: NDArray[np.int32], table: Any) -> None:
    """Make every slot of a table free."""
    last = slots.shape[0] - 1
    for s in range(last + 1):
        slots[s].next = s + 1 if s < last else NONE
    for k in range(wheel.shape[0]):
        wheel[k] = NONE
    table.load, table.occupied, table.free = 0.0, 0, 0


@kernel
def place(
    slots: NDArray[Any],
    wheel: NDArray[np.int32],
    table: Any,
    tick: int,
    prompt: int,
    steps: int,
    age: int,
    began: float,
) -> None:
    """Put a request that has had `age` steps into the first free slot."""
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
def advance(slots: NDArray[Any], wheel: NDArray[np.int32], table: Any, tick: int) -> int:
    """Let a table take the step that ends with this tick; returns how many requests are done with it.

    Their slots are the first of the free ones, in turn.
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


def _running(slots: NDArray[Any], wheel: NDArray[np.int32]) -> list[int]:
    """The slots of one table that hold a request."""
    found = []
    for head in wheel:
        s = int(head)
        while s != NONE:
            found.append(s)
            s = int(slots["next"][s])
    return found


def redraw_steps(
    slots: NDArray[Any],
    wheel: NDArray[np.int32],
    tick: int,
    steps: NDArray[np.int32],
    rng: np.random.Generator,
) -> int:
    """Give every request in a table other steps, more than it has had: what it holds stays, when it will be done does not.

    Args:
        slots: records `SLOT` [B].
        wheel: int32 [buckets].
        tick: steps of the microbatch so far.
        steps: of the requests to draw from, each equally likely, rising; the last is more than any request here has had.
        rng: draws them.

    Returns:
        By how many the steps of all requests together have grown.
    """
    running = np.array(_running(slots, wheel), np.int64)
    old, end = slots["steps"][running], slots["end"][running]
    had = old - (end - tick)
    drawn = steps[rng.integers(np.searchsorted(steps, had, side="right"), len(steps))]
    slots["steps"][running], slots["end"][running] = drawn, end + drawn - old
    wheel[:] = NONE
    for s in running.tolist():
        bucket = int(slots["end"][s]) & (len(wheel) - 1)
        slots["next"][s], wheel[bucket] = wheel[bucket], s
    return int(drawn.sum() - old.sum())


def recount(slots: NDArray[Any], wheel: NDArray[np.int32], tick: int) -> tuple[int, int, int, int]:
    """Requests, tokens, steps had and steps left of one table, from its slots and not from its counters."""
    running = _running(slots, wheel)
    mine = slots[np.array(running, np.int64)]
    left = (mine["end"] - tick).astype(np.int64)
    had = mine["steps"] - left
    return len(np.unique(running)), int((mine["prompt"] + had).sum()), int(had.sum()), int(left.sum())
