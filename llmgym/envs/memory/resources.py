"""Resources that do one job after the other, in the order in which the jobs were given to them.

All that needs to be known of such a resource is until when it is busy. A job begins when it is ready and the jobs before it are
done. A job keeps its place: one that is ready earlier does not overtake it.
"""

from llmgym.core.jit import kernel
from llmgym.core.records import Record, float64, int64


class Resource(Record):
    """A device or one direction of a link."""

    until_s: float = float64("Time at which it will be done with all that it has been given, seconds.")
    busy_s: float = float64("Time that its jobs take, those that are still to begin included, seconds.")
    jobs: int = int64("Jobs that it has been given.")


IDLE = Resource.blank
"""A resource that has been given nothing yet."""


@kernel(inline=True)
def backlog_s(resource: Resource, now_s: float) -> float:
    """How long a resource will still be busy with what it has been given, seconds."""
    return max(resource.until_s - now_s, 0.0)


@kernel(inline=True)
def book(resource: Resource, ready_s: float, length_s: float) -> float:
    """Give a job to a resource.

    Args:
        resource: what does the job.
        ready_s: time from which on the job can begin, seconds.
        length_s: how long the job takes, seconds.

    Returns:
        The time at which the job will be done, seconds.
    """
    done_s = max(ready_s, resource.until_s) + length_s
    resource.until_s = done_s
    resource.busy_s += length_s
    resource.jobs += 1
    return done_s
