"""What OServe keeps and what it is told: the dtypes, arrays and constants of its compiled functions."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

FIXED, SPANS, WAVE, DAY = 0, 1, 2, 3
ADHOC, RELOAD, FREE = 0, 1, 2
FLOW, BLIND, ROUND_ROBIN, LEAST_WORK, LEAST_KV = 0, 1, 2, 3, 4
MENU, EDIT, PLAN, CONTROL, ROUTE = 0, 1, 2, 3, 4
LATENCY, P99, SLO = 0, 1, 2
HARMONICS = 3
NO_LOAD = 100.0
"""Headroom where nothing, or next to nothing, is asked for."""
MOST_PLANNED = 32.0
"""Action "control": the largest demand, in mean arrivals of the type."""
LOGIT = 8.0
"""Action "route": the largest logit."""
HISTORY = 6
SCALARS = 10
"""Entries of the observation that are neither of types, candidates nor replicas."""
CANDIDATE_FIELDS = 3
SLOT_FIELDS = 5

LANE = np.dtype(
    [
        ("epoch", "i4"),
        ("deployment", "i4"),  # its number; -1 where edits have made it
        ("requests", "i4"),  # of this episode
        ("next", "i4"),  # first that has not arrived
        ("done", "i4"),
        ("met", "i4"),  # completed within the objective
        ("waiting", "i4"),
        ("running", "i4"),
        ("waiting_peak", "i4"),
        ("turn", "i4"),
        ("switches", "i4"),
        ("since", "i4"),  # epochs since the last switch
        ("changed_gpus", "i4"),
        ("migrated", "i4"),
        ("drained", "i4"),
        ("restarted", "i4"),
        ("rerouted", "i4"),
        ("moved_waiting", "i4"),
        ("invalid", "i4"),
        ("unstable", "i4"),
        ("stopping", "i4"),  # 1: a switch is under way
        ("ready_s", "f8"),  # when it is over
        ("open", "f8"),  # requests in the system
        ("open_arrival_s", "f8"),  # sum of their arrival times
        ("done_s", "f8"),  # sum of the times in the system of completed ones
        ("counted_s", "f8"),  # seconds in the system that rewards have counted
        ("p99_sum_s", "f8"),
        ("p99_s", "f8"),  # of the last epoch
        ("output_tokens", "f8"),
        ("stopped_gpu_s", "f8"),
        ("busy_gpu_s", "f8"),
        ("kv_share_s", "f8"),
        ("weights_bytes", "f8"),
        ("kv_bytes", "f8"),
        ("flying_bytes", "f8"),  # of the switch under way
        ("headroom", "f8"),  # of the deployment, for the load that is planned for
        ("headroom_sum", "f8"),
        ("penalty", "f8"),
        ("tick_s", "f8"),  # next migration of a waiting request
        ("checksum", "f8"),
    ],
    align=True,
)

SLOT = np.dtype(
    [
        ("shape", "i4"),  # number of the shape; -1: no replica
        ("gpu", "i4"),
        ("gpus", "i4"),
        ("running", "i4"),
        ("waiting", "i4"),
        ("head", "i4"),
        ("tail", "i4"),
        ("kv", "i8"),  # tokens that its running requests may need
        ("waiting_kv", "i8"),  # tokens that the waiting ones may need, as far as their types say
        ("ready_s", "f8"),
        ("clock_s", "f8"),
        ("progress", "f8"),  # seconds at full speed so far
        ("load", "f8"),  # stage time that its running requests would take at full speed
        ("work_s", "f8"),  # stage time that those in it still need, as far as their types say
        ("busy_s", "f8"),
        ("kv_s", "f8"),  # integral of the used share of the cache
    ],
    align=True,
)
"""A place for a replica."""

REQUEST = np.dtype(
    [
        ("arrival_s", "f8"),
        ("left", "f8"),  # share of the work that is left
        ("began_s", "f8"),  # first admission; -1
        ("e2e_s", "f4"),  # -1: not completed
        ("ttft_s", "f4"),
        ("next", "i4"),  # in the line of its replica
        ("kind", "i2"),  # class
        ("node", "i2"),  # where its cache is while it migrates; -1
    ],
    align=True,
)

NUMBER = np.dtype(
    [
        ("gpus", "i4"),
        ("types", "i4"),
        ("streams", "i4"),
        ("classes", "i4"),
        ("epochs", "i4"),
        ("history", "i4"),
        ("action", "i4"),
        ("reward", "i4"),
        ("drift", "i4"),
        ("switching", "i4"),
        ("dispatch", "i4"),
        ("reroute", "i4"),
        ("initial", "i4"),  # number of the first deployment
        ("cap", "i4"),  # waiting requests that end the episode
        ("span_low", "i4"),
        ("span_high", "i4"),
        ("epoch_s", "f8"),
        ("cv_low", "f8"),
        ("cv_high", "f8"),
        ("load_low", "f8"),
        ("load_high", "f8"),
        ("amplitude", "f8"),
        ("period", "f8"),  # epochs
        ("day_rate", "f8"),  # arrivals a second, mean over a day
        ("noise", "f8"),
        ("correlation", "f8"),
        ("ewma", "f8"),
        ("fix_s", "f8"),
        ("reload_s", "f8"),
        ("drain_s", "f8"),
        ("gpu_bytes_per_s", "f8"),
        ("node_bytes_per_s", "f8"),
        ("part_bytes", "f8"),  # a 64th of the weights
        ("kv_token_bytes", "f8"),
        ("latency_ref_s", "f8"),
        ("backlog_s", "f8"),
        ("slo_s", "f8"),  # multiple of the reference latency of its class
        ("switch_cost", "f8"),
        ("invalid_cost", "f8"),
    ],
    align=True,
)

METRICS = (
    "requests",
    "completed",
    "waiting_end",
    "waiting_peak",
    "e2e_mean_s",
    "e2e_p50_s",
    "e2e_p90_s",
    "e2e_p99_s",
    "ttft_mean_s",
    "ttft_p99_s",
    "tpot_mean_s",
    "tpot_p99_s",
    "system_mean_s",
    "epoch_p99_mean_s",
    "throughput_rps",
    "output_tokens_per_s",
    "goodput_rps",
    "slo_attainment",
    "utilization",
    "kv_mean",
    "headroom_mean",
    "switches",
    "changed_gpus",
    "stopped_gpu_s",
    "weights_moved_bytes",
    "kv_moved_bytes",
    "migrated",
    "drained",
    "restarted",
    "rerouted",
    "invalid_actions",
    "penalty",
    "unstable",
    "duration_s",
    "world_checksum",
)
"""NaN, with nothing to take it of: `e2e_*`, `ttft_*` and `epoch_p99_mean_s` where no request has completed; `tpot_*` where none
of those has two tokens or more; `system_mean_s` and `slo_attainment` where nobody came; rates, `utilization`, `kv_mean` and
`headroom_mean` over no time."""


class State(NamedTuple):
    """Arrays of OServe; first axis = lane. R places for replicas, J types, S shapes, D GPUs.

    Attributes:
        lane: records `LANE` [lanes].
        slot: records `SLOT` [lanes, R].
        request: records `REQUEST` [lanes, n], every request of the episode in order of arrival.
        heap_at: float64 [lanes, R, seats]: progress of its replica at which a running request completes; a heap.
        heap_id: int32 [lanes, R, seats]: the requests.
        demand: float64 [lanes, epochs, streams]: true mean arrivals a second.
        counts: int32 [lanes, epochs, J]: arrivals so far, by the type that they are taken for.
        waits: int32 [lanes, J]: waiting requests, by the type that they are taken for.
        forecast: float64 [lanes, J]: arrivals a second, moving average.
        plan: float64 [lanes, J]: arrivals a second that routing is made for.
        share: float64 [lanes, 2, J, R]: of a type's requests for each replica; normally, and during a switch.
        credit: float64 [lanes, J, R]: of the weighted round robin.
        logit: float64 [lanes, J R]: of the last action, where routes are the action.
        replicas: int64 [lanes, 3, S]: of each shape; all, those that serve during a switch, and those of a deployment to consider.
        clock: float64 [lanes, 2]: cosine and sine of the time of day at which the episode begins.
        flow: float64 [lanes, S, J], scratch: float64 [lanes, rows, columns]: of the linear program.
        target: int64 [lanes, D, 2], ranks: int64 [lanes, 2, D, 3], traffic: float64 [lanes, D, 4]: of the last switch.
        ends: int32 [lanes, 4]: first and last of the requests that a switch puts out, those that had run and those that waited.
        candidate: float64 [lanes, K, 3]: headroom, GPUs that change, unloaded latency.
        served: float32 [lanes, 3, n]: end-to-end time, time to the first token, time per output token of completed requests, s.
        history: float32 [lanes, epochs + 1, 6], for pictures.
    """

    lane: NDArray[Any]
    slot: NDArray[Any]
    request: NDArray[Any]
    heap_at: NDArray[np.float64]
    heap_id: NDArray[np.int32]
    demand: NDArray[np.float64]
    counts: NDArray[np.int32]
    waits: NDArray[np.int32]
    forecast: NDArray[np.float64]
    plan: NDArray[np.float64]
    share: NDArray[np.float64]
    credit: NDArray[np.float64]
    logit: NDArray[np.float64]
    replicas: NDArray[np.int64]
    clock: NDArray[np.float64]
    flow: NDArray[np.float64]
    scratch: NDArray[np.float64]
    target: NDArray[np.int64]
    ranks: NDArray[np.int64]
    traffic: NDArray[np.float64]
    ends: NDArray[np.int32]
    candidate: NDArray[np.float64]
    served: NDArray[np.float32]
    history: NDArray[np.float32]


class Params(NamedTuple):
    """What all lanes of OServe share. S shapes, C classes of requests, J types, M streams, N deployments, K candidates.

    Attributes:
        config: record `NUMBER` [1].
        sizes: int64 [S], GPUs.
        parallel: int64 [S, 2], tp and pp.
        capacity: int64 [S], tokens of cache.
        work_s: float64 [S, C], stage time of a request; infinite where none fits.
        latency_s: float64 [S, C], alone in a replica.
        prefill_s: float64 [S, C], part of it until the first token.
        lengths: int64 [C, 2], prompt and output tokens.
        type_of: int64 [C].
        guess: int64 [C], the type that is taken for it at arrival.
        split: float64 [J, J], share of each type among the requests that are taken for a type.
        known_work_s: float64 [S, C], stage time to expect of a request at arrival: the mean of those that are taken for its type.
        known_tokens: int64 [C], its prompt and the answer to expect of it at arrival.
        slo_s: float64 [C], objective for the end-to-end time.
        stream_cdf: float64 [M, C].
        stream_type: float64 [M, J], share of each type.
        mix: float64 [M], mean share of each stream.
        day: float64 [M, 2 HARMONICS], cosine and sine of relative rate over a day.
        type_rate: float64 [S, J].
        type_latency_s: float64 [S, J].
        rate_scale: float64 [J], arrivals a second that observations are divided by.
        deployments: int64 [N, S].
        menu: int64 [K], numbers of deployments.
        edits: int64 [E, 4], shapes to take away and to add; -1 for none.
    """

    config: NDArray[Any]
    sizes: NDArray[np.int64]
    parallel: NDArray[np.int64]
    capacity: NDArray[np.int64]
    work_s: NDArray[np.float64]
    latency_s: NDArray[np.float64]
    prefill_s: NDArray[np.float64]
    lengths: NDArray[np.int64]
    type_of: NDArray[np.int64]
    guess: NDArray[np.int64]
    split: NDArray[np.float64]
    known_work_s: NDArray[np.float64]
    known_tokens: NDArray[np.int64]
    slo_s: NDArray[np.float64]
    stream_cdf: NDArray[np.float64]
    stream_type: NDArray[np.float64]
    mix: NDArray[np.float64]
    day: NDArray[np.float64]
    type_rate: NDArray[np.float64]
    type_latency_s: NDArray[np.float64]
    rate_scale: NDArray[np.float64]
    deployments: NDArray[np.int64]
    menu: NDArray[np.int64]
    edits: NDArray[np.int64]
