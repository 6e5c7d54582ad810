"""Resources that do one job after the other, in the order in which the jobs were given to them.

Of such a resource nothing needs to be known but until when it is busy: a job begins when it is ready and the ones before it are
done. A job keeps its place: one that is ready earlier does not overtake it.
"""

from typing import Any

import numpy as np

from llmgym.core.jit import kernel

RESOURCE = np.dtype(
    [
        ("until_s", "f8"),  # busy until then
        ("busy_s", "f8"),  # time spent on jobs so far, those that are booked included
        ("jobs", "i8"),  # given so far
    ],
    align=True,
)


@kernel(inline=True)
def clear(resource: Any) -> None:
    """Nothing has been given to it yet."""
    resource.until_s, resource.busy_s, resource.jobs = 0.0, 0.0, 0


@kernel(inline=True)
def backlog(resource: Any, now_s: float) -> float:
    """How long it will still be busy with what it has been given, s."""
    return max(resource.until_s - now_s, 0.0)


@kernel(inline=True)
def book(resource: Any, ready_s: float, length_s: float) -> float:
    """Give it a job that can begin at `ready_s`; returns when the job will be done, s."""
    done: float = max(ready_s, resource.until_s) + length_s
    resource.until_s = done
    resource.busy_s += length_s
    resource.jobs += 1
    return done
