"""What KVProvision keeps and what it is told: the dtypes, arrays and constants of its compiled functions."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmgym.profiles.cost import StepCost
from llmgym.serving.requests import LIMITS
from llmgym.serving.residents import ENGINE
from llmgym.workloads.traffic import Traffic

EVENT, FLUID = 0, 1
OFF, STARTING, ON, DRAINING = 0, 1, 2, 3
REQUESTS, AREA, WORK_S, TOKENS, BATCHES = 0, 1, 2, 3, 4
"""What a request brings into the fluid, and the columns of `Params.work`: 1, tokens x batches, seconds of a saturated replica,
tokens, and the batches it accounts for at saturation (work over the duration of a batch)."""

BUSY = 0.8
"""The duration of a batch is measured in batches that use more than this share of the cache: near saturation."""
SCALARS = 18
HISTORY = 5

LANE = np.dtype(
    [
        ("epoch", "i4"),
        ("requests", "i4"),  # of this episode; parcels of the fluid
        ("arrived", "i4"),  # of those, by now
        ("next", "i4"),  # first one that no replica has got
        ("door", "i4"),  # accepted, but no replica has them
        ("rejected", "i4"),
        ("turn", "i4"),  # replica that got the last request
        ("target", "i4"),
        ("on", "i4"),
        ("starting", "i4"),
        ("draining", "i4"),
        ("starts", "i4"),
        ("stops", "i4"),
        ("invalid", "i4"),
        ("unstable", "i4"),
        ("served", "i4"),  # rows of `State.served`
        ("met", "i4"),
        ("waiting", "f8"),  # at the end of the epoch
        ("waiting_before", "f8"),
        ("waiting_peak", "f8"),
        ("arrivals", "f8"),
        ("completed", "f8"),
        ("output_tokens", "f8"),
        ("rate", "f8"),  # arrivals a second of the last epoch
        ("rate_ema", "f8"),
        ("area", "f8"),  # estimates, from what was measured
        ("tokens", "f8"),
        ("batch_s", "f8"),
        ("kv_mean", "f8"),  # of the last epoch, over the replicas that are on
        ("kv_max", "f8"),
        ("gpu_s", "f8"),  # seconds of replicas that are paid for
        ("used_s", "f8"),  # seconds of a full cache that were used
        ("waiting_s", "f8"),  # integral of waiting requests
        ("penalty", "f8"),
        ("checksum", "f8"),
    ],
    align=True,
)

REPLICA = np.dtype(
    [
        *ENGINE,
        ("mode", "i4"),
        ("ready", "i4"),  # starting: the epoch in which it begins to serve
        ("filled", "i4"),  # slots in use
        ("next", "i4"),  # first slot whose request is still to arrive
        ("waiting_s", "f8"),
        ("kv_before_s", "f8"),  # kv_s when the epoch began
        ("busy_batches", "i4"),
        ("busy_batches_s", "f8"),
        ("drained_s", "f8"),  # fluid: when a draining replica is empty
    ],
    align=True,
)

NUMBER = np.dtype(
    [
        *LIMITS,
        ("mode", "i4"),
        ("replicas", "i4"),  # G_max
        ("least", "i4"),
        ("initial", "i4"),
        ("startup", "i4"),  # epochs
        ("epochs", "i4"),
        ("longest", "i4"),  # tokens a request may reach
        ("waiting_cap", "i4"),
        ("gpus", "i4"),  # of a replica
        ("epoch_s", "f8"),
        ("day_s", "f8"),
        ("idle_s", "f8"),
        ("ema", "f8"),  # weight of the last epoch in the estimate of the rate
        ("window", "f8"),  # completed requests, or batches, that the other estimates average over
        ("gpu_cost", "f8"),  # a GPU-hour
        ("wait_cost", "f8"),  # a request-hour
        ("slo_cost", "f8"),  # a completed request that missed its objectives
        ("invalid_cost", "f8"),
        ("parcel", "f8"),  # fluid: requests that one arrival stands for
        ("drain_s", "f8"),  # fluid: how long a replica takes to become empty
        ("rate_scale", "f8"),
        ("rate_start", "f8"),
        ("mu_ref", "f8"),
        ("area_ref", "f8"),
        ("batch_ref", "f8"),
        ("tokens_ref", "f8"),
    ],
    align=True,
)

COMMON = (
    "requests",
    "completed",
    "waiting_end",
    "waiting_mean",
    "waiting_peak",
    "wait_mean_s",
    "throughput_rps",
    "gpu_hours",
    "gpus_mean",
    "utilization",
    "switches",
    "cost",
    "cost_gpu",
    "cost_waiting",
    "cost_slo",
    "penalty",
    "invalid_actions",
    "unstable",
    "duration_s",
    "world_checksum",
)
"""NaN, with nothing to take it of: `wait_mean_s` where nobody came or everybody was rejected; `waiting_mean`, `throughput_rps` and
`gpus_mean` over no time; `utilization` where no GPU was paid."""
REQUEST_LEVEL = (
    "rejected",
    "e2e_mean_s",
    "e2e_p50_s",
    "e2e_p99_s",
    "ttft_mean_s",
    "ttft_p50_s",
    "ttft_p99_s",
    "tpot_mean_s",
    "tpot_p99_s",
    "goodput_rps",
    "slo_attainment",
    "output_tokens_per_s",
    "kv_mean",
    "preemptions",
    "dropped_tokens",
)
"""Metrics that only event mode has: a fluid has no requests to ask.

NaN, with nothing to take it of: `e2e_*` and `ttft_*` where no request has completed; `tpot_*` where none of those has two tokens or
more; `slo_attainment` where nobody came; rates over no time; `kv_mean` without a batch.
"""


class Engines(NamedTuple):
    """The replicas of all lanes, as `llmgym.serving.engine` wants its state; first axis = lane * G + replica."""

    lane: NDArray[Any]
    resident: NDArray[Any]
    request: NDArray[Any]
    queue: NDArray[np.int32]
    scratch: NDArray[np.int32]
    moved: NDArray[np.int32]


class State(NamedTuple):
    """Arrays of KVProvision; first axis = lane.

    Attributes:
        lane: records `LANE` [lanes].
        engine: the replicas.
        request: records `REQUEST` [lanes, n], every request of the episode; a rejected one has a prompt of 0.
        served: float32 [lanes, 3, n], TTFT, E2E and time per output token of completed requests, s.
        fluid: float64 [lanes, 5], what waits in the fluid, see `REQUESTS`.
        history: float32 [lanes, epochs + 1, 5], for pictures: rate (req/s), on, starting, draining, waiting after each epoch.
    """

    lane: NDArray[Any]
    engine: Engines
    request: NDArray[Any]
    served: NDArray[np.float32]
    fluid: NDArray[np.float64]
    history: NDArray[np.float32]


class Params(NamedTuple):
    """What all lanes of KVProvision share; `work` is float64 [classes, 5], see `REQUESTS`."""

    config: NDArray[Any]
    rules: NDArray[Any]
    class_budgets: NDArray[np.int32]
    orders: NDArray[np.int64]
    cost: StepCost
    traffic: Traffic
    work: NDArray[np.float64]
