"""What KVProvision keeps, shows and measures: the records and arrays of its compiled functions."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmgym.core.records import Record, Records, Records2, float64, int32, metric, shown
from llmgym.profiles.cost import StepCost
from llmgym.serving.state import CompiledRule, Engine, Limits, Objective, Order, Prefixes, Request, Resident
from llmgym.workloads.traffic import Drawn, Traffic

EVENT, FLUID = 0, 1
OFF, STARTING, ON, DRAINING = 0, 1, 2, 3
REQUESTS, AREA, WORK_S, TOKENS, BATCHES = 0, 1, 2, 3, 4
"""What a request brings into the fluid, and the columns of `Params.work`: 1, tokens x batches, seconds of a saturated replica,
tokens, and the batches it accounts for at saturation (work over the duration of a batch)."""
MOST = 4.0
"""Ratios to a reference are shown up to this: what lies beyond is overload all the same."""
QUANTITIES = 5
TTFT_S, E2E_S, TPOT_S = 0, 1, 2
"""Rows of `State.served`."""
TIMES = 3
HISTORY = 5
"""Columns of `State.history`."""


class Episode(Record):
    """One cluster."""

    epoch: int = int32("Epochs that have passed.")
    requests: int = int32("Requests of this episode; of the fluid, parcels.")
    arrived: int = int32("Requests that have arrived.")
    next: int = int32("Number of the first request that no replica has got.")
    door: int = int32("Requests that are accepted and that no replica has got.")
    rejected: int = int32("Requests whose prompt leaves no room for an output.")
    turn: int = int32("Replica that got the last request.")
    target: int = int32("Replicas that shall serve.")
    on: int = int32("Replicas that serve.")
    starting: int = int32("Replicas that start.")
    draining: int = int32("Replicas that finish what they have and then stop.")
    starts: int = int32("How often a replica was started.")
    stops: int = int32("How often a replica was stopped.")
    invalid: int = int32("Masked actions so far.")
    unstable: int = int32("1 once more than `waiting_cap` requests wait.")
    served: int = int32("Completed requests, in event mode.")
    paced: int = int32("Completed requests of two output tokens or more, which have a time per output token.")
    met: int = int32("Completed requests whose TTFT and TPOT were both within their objectives.")
    waiting: float = float64("Requests waiting at the end of the last epoch.")
    waiting_before: float = float64("Requests waiting at its beginning.")
    waiting_peak: float = float64("Most requests waiting at the end of an epoch.")
    arrivals: float = float64("Requests that have arrived; of the fluid, also in parts.")
    completed: float = float64("Requests that have completed; of the fluid, also in parts.")
    output_tokens: float = float64("Output of all replicas, tokens.")
    rate: float = float64("Arrivals in the last epoch, 1/seconds.")
    rate_ema: float = float64("Moving average of the arrivals, 1/seconds.")
    area: float = float64("Estimate of the mean area of a request, tokens x batches.")
    tokens: float = float64("Estimate of the mean prompt and output of a request, tokens.")
    batch_s: float = float64("Estimate of the duration of a batch near saturation, seconds.")
    kv_mean: float = float64(
        "Share of the cache in use in the last epoch, mean over the replicas that are on."
    )
    kv_max: float = float64("Share of the cache in use in the last epoch, of the fullest replica.")
    gpu_s: float = float64("Time of replicas that is paid for, seconds.")
    used_s: float = float64("Time of a full cache that was used, seconds.")
    waiting_s: float = float64("Integral of waiting requests, seconds.")
    penalty: float = float64("Cost of masked actions and of an unstable end.")
    ttft_sum_s: float = float64("Sum of the times to the first token of completed requests, seconds.")
    e2e_sum_s: float = float64("Sum of the times to the last token of completed requests, seconds.")
    tpot_sum_s: float = float64("Sum of the times per output token of completed requests, seconds.")
    checksum: float = float64("Sum over all requests of the world that tells it from others.")


class Replica(Engine):
    """The engine of a replica, and what the cluster does with it."""

    mode: int = int32("OFF, STARTING, ON or DRAINING.")
    ready: int = int32("While it starts, the epoch in which it begins to serve.")
    filled: int = int32("Slots in use.")
    next: int = int32("First slot whose request is still to arrive.")
    waiting_s: float = float64("Integral of its waiting requests in this epoch, seconds.")
    kv_before_s: float = float64("`kv_s` when the epoch began, token seconds.")
    busy_batches: int = int32("Batches of this epoch near saturation.")
    busy_batches_s: float = float64("Duration of these batches, seconds.")
    drained_s: float = float64("Time at which a draining replica of the fluid is empty, seconds.")


class Config(Limits):
    """What is set for all lanes."""

    mode: int = int32("EVENT or FLUID.")
    replicas: int = int32("G, the most replicas.")
    least: int = int32("Smallest target that is allowed.")
    initial: int = int32("Replicas that are on when an episode begins.")
    startup: int = int32("Epochs from the decision to start a replica until it serves.")
    epochs: int = int32("Epochs of an episode.")
    longest: int = int32("Prompt and output of a request together, tokens at most.")
    waiting_cap: int = int32("The episode ends as unstable when more requests wait.")
    gpus: int = int32("GPUs of a replica.")
    epoch_s: float = float64("Length of one epoch, seconds.")
    day_s: float = float64("Length of the day, seconds.")
    idle_s: float = float64("Time after which an engine that is held up plans again, seconds.")
    ema: float = float64("Weight of the last epoch in the moving average of the arrivals.")
    window: float = float64("Completed requests, or batches, that the other estimates average over.")
    gpu_cost: float = float64("Cost of a GPU-hour.")
    wait_cost: float = float64("Cost of a request that waits for an hour.")
    slo_cost: float = float64("Cost of a completed request that missed an objective.")
    invalid_cost: float = float64("Cost of a masked action.")
    parcel: float = float64("Requests that one arrival of the fluid stands for.")
    drain_s: float = float64("Time in which a draining replica of the fluid becomes empty, seconds.")
    rate_scale: float = float64("Arrivals that all replicas could serve at the beginning, 1/seconds.")
    rate_start: float = float64("Expected arrivals at the beginning, 1/seconds.")
    mu_ref: float = float64("Requests that one replica could serve at the beginning, 1/seconds.")
    area_ref: float = float64("Mean area of a request at the beginning, tokens x batches.")
    batch_ref: float = float64("Duration of a saturated batch at the beginning, seconds.")
    tokens_ref: float = float64("Mean prompt and output of a request at the beginning, tokens.")


class Observation(Record):
    """What an operator can measure, before the replicas that start."""

    rate: float = shown("arrivals a second, moving average", unit="mu_ref G", high=MOST)
    rate_last: float = shown(
        "arrivals a second in the last epoch", unit="mu_ref G", high=MOST, name="rate.last"
    )
    mu: float = shown(
        "estimate of M / (b E[g]): requests a second that one replica can serve", unit="mu_ref", high=MOST
    )
    area: float = shown(
        "estimate of E[g] from completed requests, tokens x batches", unit="area_ref", high=MOST
    )
    batch_time: float = shown(
        "estimate of b from batches with more than 0.8 M in the cache",
        unit="batch_ref",
        high=MOST,
        name="batch.time",
    )
    tokens: float = shown("mean prompt and output tokens of completed requests", unit="tokens_ref", high=MOST)
    need: float = shown("rate / mu: replicas that would be fully used", unit="G", high=MOST)
    waiting: float = shown("requests waiting, over all replicas", unit="waiting_cap")
    waiting_log: float = shown("log(1 + requests waiting)", unit="log(1 + waiting_cap)", name="waiting.log")
    waiting_growth: float = shown(
        "change of the requests waiting, a second", unit="mu_ref G", low=-1, name="waiting.growth"
    )
    kv_mean: float = shown(
        "tokens in the cache, mean over the epoch and the replicas that are on", unit="M", name="kv.mean"
    )
    kv_max: float = shown("the same of the fullest replica", unit="M", name="kv.max")
    on: float = shown("replicas that serve", unit="G")
    draining: float = shown("replicas that finish what they have and then stop", unit="G")
    target: float = shown("the previous action", unit="G")
    day_sin: float = shown("sine of the time of day", low=-1, name="day.sin")
    day_cos: float = shown("cosine of the time of day", low=-1, name="day.cos")
    starting: float = shown("replicas that start", unit="G")


class Metrics(Record):
    """Metrics of an episode: first those that both modes have."""

    requests: float = metric("Requests that arrived.")
    completed: float = metric("Requests that completed.")
    waiting_end: float = metric("Requests that waited at the end.", best="min")
    waiting_mean: float = metric("Requests waiting, mean over time; NaN over no time.", best="min")
    waiting_peak: float = metric("Most requests waiting at the end of an epoch.")
    wait_mean_s: float = metric(
        "Mean time of waiting for admission, s; NaN where nobody came or everybody was rejected."
    )
    throughput_rps: float = metric("Requests completed a second; NaN over no time.")
    gpu_hours: float = metric("GPU time that was paid for, hours.", best="min")
    gpus_mean: float = metric("GPUs that were paid for, mean over time; NaN over no time.")
    utilization: float = metric("Share of the paid caches in use; NaN where no GPU was paid.", best="max")
    switches: float = metric("How often a replica was started or stopped.", best="min")
    cost: float = metric("Cost of the episode.", best="min")
    cost_gpu: float = metric("Part of the cost that is for GPUs.")
    cost_waiting: float = metric("Part of the cost that is for waiting.")
    cost_slo: float = metric("Part of the cost that is for missed objectives.")
    penalty: float = metric("Part of the cost that is for masked actions and for an unstable end.")
    invalid_actions: float = metric("Masked actions.")
    unstable: float = metric("1 if more than `waiting_cap` requests waited.")
    duration_s: float = metric("Time that has passed, s.")
    world_checksum: float = metric("A number that tells this world from others.")
    # Those that only event mode has: a fluid has no requests to ask.
    rejected: float = metric("Requests whose prompt left no room for an output.")
    e2e_mean_s: float = metric("Mean time from arrival to last token, s; NaN where no request has completed.")
    e2e_p50_s: float = metric(
        "Median time from arrival to last token, s; NaN where no request has completed."
    )
    e2e_p99_s: float = metric(
        "99th percentile of the time from arrival to last token, s; NaN where no request has completed."
    )
    ttft_mean_s: float = metric(
        "Mean time from arrival to first token, s; NaN where no request has completed."
    )
    ttft_p50_s: float = metric(
        "Median time from arrival to first token, s; NaN where no request has completed."
    )
    ttft_p99_s: float = metric(
        "99th percentile of the time from arrival to first token, s; NaN where no request has completed.",
        best="min",
    )
    tpot_mean_s: float = metric(
        "Mean time per output token after the first, s; NaN where no completed request has two tokens."
    )
    tpot_p99_s: float = metric(
        "99th percentile of the time per output token after the first, s; NaN where no completed request has two tokens."
    )
    goodput_rps: float = metric("Requests completed within both objectives a second; NaN over no time.")
    slo_attainment: float = metric(
        "Share of the requests completed within both objectives; NaN where nobody came.", best="max"
    )
    output_tokens_per_s: float = metric("Output tokens a second; NaN over no time.")
    kv_mean: float = metric("Share of a cache in use, mean over the time of batches; NaN without a batch.")
    preemptions: float = metric("How often a resident lost its cache.")
    dropped_tokens: float = metric("Tokens thrown away by preemption.")


COMMON = Metrics.names()[: Metrics.names().index("rejected")]
"""The metrics that both modes have."""
HEADLINE = (
    "cost",
    "gpu_hours",
    "waiting_mean",
    "waiting_end",
    "switches",
    "utilization",
    "ttft_p99_s",
    "slo_attainment",
)
"""The order of the metrics that tables begin with, where the mode has them."""


class Engines(NamedTuple):
    """The replicas of all lanes, an `EngineState`; the first axis is lane * G + replica.

    Attributes:
        lane: one record for each replica.
        resident: its residents [seats].
        request: its requests by slot; when an epoch ends, the slots of completed ones are closed up.
        queue: its waiting requests.
        prefix: nothing: prefixes are not cached.
        scratch: intermediate results.
        moved: int32 [replicas, slots], where the request of a slot goes when the slots are closed up.
    """

    lane: Records[Replica]
    resident: Records2[Resident]
    request: Records2[Request]
    queue: NDArray[np.int32]
    prefix: Prefixes
    scratch: NDArray[np.int32]
    moved: NDArray[np.int32]


class State(NamedTuple):
    """Arrays of KVProvision; the first axis is the lane.

    Attributes:
        lane: one record for each lane.
        engine: the replicas.
        request: every request of the episode as it was drawn; a rejected one has a prompt of 0.
        served: float32 [lanes, 3, n], TTFT, E2E and time per output token of completed requests, seconds; in no order, and of the
            last kind only those that there are.
        fluid: float64 [lanes, 5], what waits in the fluid, by the columns of `Params.work`.
        history: float32 [lanes, epochs + 1, 5], for pictures: rate (req/s), on, starting, draining, waiting after each epoch.
    """

    lane: Records[Episode]
    engine: Engines
    request: Records2[Drawn]
    served: NDArray[np.float32]
    fluid: NDArray[np.float64]
    history: NDArray[np.float32]


class Params(NamedTuple):
    """What all lanes of KVProvision share, an `EngineParams`.

    Attributes:
        config: one record.
        rules: the rule of every replica.
        class_budgets: int32 [1, classes], admissions to a batch.
        orders: the order of the waiting requests, [1].
        objectives: of each class.
        cost: what a batch costs.
        traffic: the requests, or the parcels of the fluid.
        work: float64 [classes, 5], what a request of each class brings into the fluid, see `REQUESTS`.
    """

    config: Records[Config]
    rules: Records[CompiledRule]
    class_budgets: NDArray[np.int32]
    orders: Records[Order]
    objectives: Records[Objective]
    cost: StepCost
    traffic: Traffic
    work: NDArray[np.float64]
