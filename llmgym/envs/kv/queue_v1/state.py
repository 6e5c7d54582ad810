"""What KVQueue-v1 keeps, shows and measures beyond version 0: candidates, victims, late answers and classes."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmgym.core.records import Records, Records2, float64, int32, metric, shown
from llmgym.envs.kv.queue import state as v0
from llmgym.profiles.cost import StepCost
from llmgym.serving.state import CompiledRule, Objective, Order, Prefixes, Request, Resident
from llmgym.workloads.traffic import Traffic

PICK, RULE = 0, 1
LATENCY, GOODPUT = 0, 1
PER_WAITING = 11
"""Numbers that an observation tells of a waiting request."""
PER_RUNNING = 9
"""Numbers that an observation tells of a running request."""
NOBODY = -1
"""No request in a row of candidates."""


class Episode(v0.Episode):
    """The engine of a lane, and the rest of its episode."""

    choices: int = int32("Rows of the coming decision that an action may choose.")
    weight: float = float64(
        "Weights of all requests of the episode together, which nobody sees before the end."
    )
    charged: float = float64("Cost of late answers so far, in units of the return.")


class Config(v0.Config):
    """What is set for all lanes."""

    lists: int = int32("Orders of which the first waiting requests are candidates.")
    running: int = int32("Running requests that are candidates, the youngest ones.")
    late_cost: float = float64("Cost of a share of 1 of late answers, in units of the return.")
    per_class: float = float64("1 / (classes - 1), or 0.")


class Observation(v0.Observation):
    """What a scheduler can know, before the candidates."""

    short: float = shown("1 if the coming batch does not fit, and a victim is to be chosen")
    late: float = shown("completed requests that were late", unit="expected requests", high=v0.MOST_PROGRESS)
    reused: float = shown(
        "prompt tokens found in the cache so far, of all that were needed", name="kv.reused"
    )


class Metrics(v0.Metrics):
    """Metrics of an episode."""

    e2e_p90_s: float = metric(
        "90th percentile of the time from arrival to last token, s; NaN where no request has completed."
    )
    late: float = metric(
        "Share of the requests that took longer than the end-to-end objective; NaN without a request.",
        best="min",
    )
    goodput: float = metric(
        "Share of the requests within all objectives of their class, by weights; NaN where no weight is above 0.",
        best="max",
    )
    reused: float = metric("Prompt tokens found in the cache, of all that were needed; NaN where none were.")


HEADLINE = (
    "latency_mean_s",
    "e2e_p99_s",
    "late",
    "goodput",
    "ttft_p50_s",
    "ttft_p99_s",
    "preemptions",
)
"""The order of the metrics that tables begin with."""


class State(NamedTuple):
    """Arrays of KVQueue-v1, an `EngineState`; the first axis is the lane.

    Attributes:
        times: float32 [lanes, n], for one kind of times after the other.
        candidate: int32 [lanes, slots + running]: numbers of waiting requests, then indices of residents, or NOBODY.
        allowed: int8 [lanes, slots + running]: 1 where an action may choose the candidate.
    """

    lane: Records[Episode]
    resident: Records2[Resident]
    request: Records2[Request]
    queue: NDArray[np.int32]
    prefix: Prefixes
    scratch: NDArray[np.int32]
    times: NDArray[np.float32]
    candidate: NDArray[np.int32]
    allowed: NDArray[np.int8]


class Params(NamedTuple):
    """What all lanes of KVQueue-v1 share, an `EngineParams`."""

    config: Records[Config]
    rules: Records[CompiledRule]
    class_budgets: NDArray[np.int32]
    orders: Records[Order]
    objectives: Records[Objective]
    cost: StepCost
    traffic: Traffic
