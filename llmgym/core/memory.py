"""The arrays of lanes: whether they fit into memory, told before it is asked for, and copies of a lane in others."""

import math
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmgym.core.lanes import Lanes, Simulation
from llmgym.errors import InvalidArgument

_COUNTED_FROM = 16
"""Lanes from which their memory is counted before it is asked for: Linux grants memory that it does not have."""
COPIED = ("obs", "mask", "ended", "steps", "seed_key", "episode")
"""What is copied of a lane beside its state."""


def make_lanes(simulation: Simulation, count: int, threads: int = 1, limit: int | None = None) -> Lanes:
    """Make the lanes of an environment, if they fit into memory.

    Args:
        simulation: the environment with its scenario.
        count: number of lanes.
        threads: number of threads that step them.
        limit: steps after which an episode is truncated; None: never.

    Returns:
        The lanes.

    Raises:
        InvalidArgument: their arrays do not fit into the memory of the machine.
    """
    if count >= _COUNTED_FROM:
        needed, there = count * bytes_of_a_lane(simulation), memory_bytes()
        if needed > there:
            raise InvalidArgument(
                f"num_envs={count}: the arrays of the lanes take {gib(needed)}, this machine has {gib(there)} of memory"
            )
    try:
        return Lanes(simulation, count, threads=threads, limit=limit)
    except MemoryError as error:
        what = f"num_envs={count}: the arrays of the lanes" if count > 1 else "the arrays of this scenario"
        size = str(error).partition(" for an array")[0]
        raise InvalidArgument(
            f"{what} do not fit into memory ({size}); fewer lanes or a smaller scenario may"
        ) from error


def arrays_of(state: Any) -> Iterator[NDArray[Any]]:
    """All arrays of a state, in order, those in tuples within it too."""
    for part in state:
        if isinstance(part, tuple):
            yield from arrays_of(part)
        elif isinstance(part, np.ndarray):
            yield part


def copy_lane(source: Any, lane: int, target: Any, lanes: int | slice = slice(None)) -> None:
    """Let lanes of other arrays stand where a lane stands now, to try there what could be done.

    Args:
        source: state arrays of all lanes, as `Simulation.allocate` makes them.
        lane: which lane of it is copied.
        target: state arrays of the same simulation, written to.
        lanes: which lanes of `target`; all if left out.
    """
    for mine, theirs in zip(arrays_of(target), arrays_of(source), strict=True):
        mine[lanes] = theirs[lane]


def copy_lanes(source: Lanes, which: NDArray[np.int64], target: Lanes) -> None:
    """Let the first lanes of others stand where some lanes stand now, to try there what could be done.

    Args:
        source: lanes that are copied; they stay as they are.
        which: numbers of these, int64 [n], n at most `target.count`; one may come several times.
        target: lanes of the same simulation, the first n of which are written to: state, observation, mask, steps,
            whether they ended, and which episodes follow.
    """
    pairs = [*zip(arrays_of(target.state), arrays_of(source.state), strict=True)]
    pairs += [(getattr(target.buffers, name), getattr(source.buffers, name)) for name in COPIED]
    for mine, theirs in pairs:
        if mine.size == 0:
            continue
        # an array can have several rows a lane, such as one for each replica
        rows = (len(mine) // target.count, *mine.shape[1:])
        out_of = theirs.reshape(source.count, *rows)
        np.take(out_of, which, axis=0, out=mine.reshape(target.count, *rows)[: len(which)], mode="clip")


def bytes_of_a_lane(simulation: Simulation) -> int:
    """Memory of one lane's state, and of what is read and written at a step (observations twice, and their bounds)."""
    two, one = (sum(array.nbytes for array in arrays_of(simulation.allocate(n))) for n in (2, 1))
    rows = 16 * simulation.layout.size + 2 * simulation.mask_size + 8 * simulation.action_size
    return max(two - one, 0) + rows + 8 * simulation.metric_size


def memory_bytes() -> float:
    """Memory of this machine, bytes; infinite where the platform does not tell."""
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (
        AttributeError,
        ValueError,
        OSError,
    ):  # not told on Windows, where memory that is not there is not granted
        return math.inf


def gib(size: float) -> str:
    """Bytes as a text in GiB, such as `"1.5 GiB"`."""
    return f"{size / 2**30:,.3g} GiB" if size < 2**30 * 1000 else f"{size / 2**30:,.0f} GiB"
