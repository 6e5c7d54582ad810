"""What KVQueue keeps, shows and measures: the records and arrays of its compiled functions."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmgym.core.records import Record, Records, Records2, float64, int32, int64, metric, shown
from llmgym.profiles.cost import StepCost
from llmgym.serving.state import CompiledRule, Engine, Limits, Objective, Order, Prefixes, Request, Resident
from llmgym.workloads.traffic import Traffic

ADMIT, PICK, WATERMARK, RULE = 0, 1, 2, 3
LATENCY, SLO, STABILITY = 0, 1, 2
TTFT_S, E2E_S, TPOT_S = 0, 1, 2
"""Kinds of times that metrics are taken of."""
HISTOGRAM = 8
"""Bins of a histogram of the residents."""
PER_REQUEST = 4
"""Numbers that an observation tells of a waiting request."""
MOST = 4.0
"""Ratios to a reference are shown up to this: what lies beyond is overload all the same."""
MOST_PROGRESS = 2.0
"""The progress is shown up to this: expected requests are an estimate, and more may come."""
BIN_SHIFT = 20
"""Bins per batch and per token are whole numbers, times 2 to this power: a shift is far cheaper than a division."""


class Episode(Engine):
    """The engine of a lane, and the rest of its episode."""

    requests: int = int32("Requests of this episode.")
    per_request: float = float64("1 / requests, for the return, which nobody sees before the end.")
    next: int = int32("Number of the next arrival.")
    seen_s: float = float64("The scheduler knows who arrived by this time, seconds.")
    rejected: int = int32("Requests whose prompt leaves no room for an output.")
    rule: int = int32("Number of the rule in force.")
    invalid: int = int32("Masked actions so far.")
    decisions: int = int32("Decisions so far.")
    allowed: int = int32("Requests the coming batch can admit from the front of the line, at most `visible`.")
    picked: int = int32("Requests picked for the coming batch.")
    in_system_s: float = float64(
        "Integral of requests in the system, the sum of all latencies so far, seconds."
    )
    waiting_s: float = float64("Integral of waiting requests, seconds.")
    area_rate: float = float64("Estimate of the predicted area that arrives, tokens x batches a second.")
    batch_estimate_s: float = float64("Moving average of the duration of a batch, seconds.")
    stability: float = float64("Sum over batches of the used share of the cache, minus 1.")
    penalty: float = float64("Cost of masked actions and of an unstable end, in units of the return.")
    unstable: int = int32("1 once more than `waiting_cap` requests wait.")
    checksum: float = float64("Sum over all requests of the world that tells it from others.")


class Config(Limits):
    """What is set for all lanes."""

    mode: int = int32("What is decided: ADMIT, PICK, WATERMARK or RULE.")
    every: int = int32("Batches that a decision lasts.")
    ahead: int = int32("1 if a batch is planned while the one before it runs.")
    visible: int = int32("Waiting requests that an observation shows, and the largest admission.")
    reward: int = int32("LATENCY, SLO or STABILITY.")
    waiting_cap: int = int32("The episode ends as unstable when more requests wait.")
    longest: int = int32("Prompt and output of a request together, tokens at most.")
    horizon_s: float = float64("The episode is cut after this time, seconds.")
    idle_s: float = float64("Time after which an engine that is held up plans again, seconds.")
    batch_ref_s: float = float64("Reference duration of a batch, seconds.")
    window_s: float = float64("Time over which the estimate of the offered load averages, seconds.")
    drop_cost: float = float64("Cost of dropping a whole cache of tokens, in units of the return.")
    invalid_cost: float = float64("Cost of a masked action, in units of the return.")
    steps_per_bin: float = float64("Width of a bin of remaining batches.")
    bins_per_step: int = int64("Bins of a batch, times 2**BIN_SHIFT.")
    bins_per_token: int = int64("Bins of a token, times 2**BIN_SHIFT.")
    # Reciprocals of the scales of an observation: multiplying is several times faster than dividing.
    per_capacity: float = float64("Reciprocal of the capacity of the cache, 1/tokens.")
    per_seat: float = float64("Reciprocal of the number of seats.")
    per_cap: float = float64("Reciprocal of `waiting_cap`.")
    per_horizon: float = float64("Reciprocal of `horizon_s`, 1/seconds.")
    per_batch: float = float64("Reciprocal of `batch_ref_s`, 1/seconds.")
    per_prefill: float = float64("Reciprocal of the most prompt tokens of a batch, 1/tokens.")
    per_prompt: float = float64("Reciprocal of a long prompt, 1/tokens.")
    per_output: float = float64("Reciprocal of a long output, 1/tokens.")
    per_area: float = float64("Reciprocal of the area of a long request, 1/(tokens x batches).")
    per_expected: float = float64("Reciprocal of the expected number of requests.")


class Observation(Record):
    """What a scheduler can know, before the first waiting requests."""

    used: float = shown("tokens in the cache", unit="M", name="kv.used")
    free: float = shown("tokens left after the coming batch", unit="M", name="kv.free")
    peak: float = shown(
        "predicted peak of the residents, by bins of remaining batches", unit="M", high=MOST, name="kv.peak"
    )
    residents: float = shown("requests in the batch", unit="seats")
    waiting: float = shown("requests waiting", unit="waiting_cap")
    backlog: float = shown("predicted tokens x batches left in the system", unit="100 M")
    load: float = shown(
        "estimate of the offered load: predicted area that arrives", unit="M per batch", high=MOST
    )
    batch_time: float = shown(
        "duration of the last batch", unit="reference batch", high=MOST, name="batch.time"
    )
    batch_prefill: float = shown("prompt tokens of the last batch", unit="budget or M", name="batch.prefill")
    blocked: float = shown("1 if the coming batch had to pause or preempt: no admission")
    preemptions: float = shown("preemptions so far", unit="expected requests")
    progress: float = shown(
        "requests completed; expected are rate x horizon, at most `requests`",
        unit="expected requests",
        high=MOST_PROGRESS,
    )
    time: float = shown("clock", unit="horizon_s")
    picked: float = shown("requests picked for the coming batch (action='pick')", unit="seats")
    remaining: NDArray[np.float32] = shown(
        "histogram of predicted remaining batches", unit="seats", size=HISTOGRAM, name="residents.remaining"
    )
    footprint: NDArray[np.float32] = shown(
        "histogram of tokens held", unit="seats", high=1.0001, size=HISTOGRAM, name="residents.footprint"
    )


class Metrics(Record):
    """Metrics of an episode."""

    requests: float = metric("Requests of the episode.")
    completed: float = metric("Requests that completed.")
    rejected: float = metric("Requests whose prompt left no room for an output.")
    waiting_end: float = metric("Requests that waited at the end.", best="min")
    e2e_mean_s: float = metric("Mean time from arrival to last token, s; NaN where no request has completed.")
    e2e_p50_s: float = metric(
        "Median time from arrival to last token, s; NaN where no request has completed."
    )
    e2e_p99_s: float = metric(
        "99th percentile of the time from arrival to last token, s; NaN where no request has completed.",
        best="min",
    )
    ttft_mean_s: float = metric(
        "Mean time from arrival to first token, s; NaN where there is no first token."
    )
    ttft_p50_s: float = metric(
        "Median time from arrival to first token, s; NaN where there is no first token.", best="min"
    )
    ttft_p99_s: float = metric(
        "99th percentile of the time from arrival to first token, s; NaN where there is no first token.",
        best="min",
    )
    tpot_mean_s: float = metric(
        "Mean time per output token after the first, s; NaN where no completed request has two tokens."
    )
    tpot_p99_s: float = metric(
        "99th percentile of the time per output token after the first, s; NaN where no completed request has two tokens."
    )
    latency_mean_s: float = metric(
        "Time in the system so far, mean over all requests, s; NaN where every request was rejected.",
        best="min",
    )
    throughput_rps: float = metric("Requests completed a second; NaN over no time.")
    output_tokens_per_s: float = metric("Output tokens a second; NaN over no time.")
    goodput_rps: float = metric(
        "Requests completed within both objectives a second; NaN over no time.", best="max"
    )
    slo_attainment: float = metric(
        "Share of the requests completed within both objectives; NaN without a request."
    )
    kv_mean: float = metric("Share of the cache in use, mean over the time of batches; NaN without a batch.")
    kv_peak: float = metric("Largest share of the cache in use.")
    preemptions: float = metric("How often a resident lost its cache.", best="min")
    dropped_tokens: float = metric("Tokens thrown away by preemption.")
    dropped_of_capacity: float = metric("Tokens thrown away by preemption, in capacities of the cache.")
    batches: float = metric("Batches that ran.")
    batch_mean_s: float = metric("Mean duration of a batch, s; NaN without a batch.")
    duration_s: float = metric("Time since the first arrival, s.")
    waiting_mean: float = metric("Requests waiting, mean over time; NaN over no time.")
    invalid_actions: float = metric("Masked actions.")
    penalty: float = metric("Cost of masked actions and of an unstable end, in units of the return.")
    stability: float = metric("Sum over batches of the used share of the cache, minus 1.")
    unstable: float = metric("1 if more than `waiting_cap` requests waited.")
    world_checksum: float = metric("A number that tells this world from others.")


HEADLINE = (
    "latency_mean_s",
    "e2e_p99_s",
    "ttft_p50_s",
    "ttft_p99_s",
    "goodput_rps",
    "waiting_end",
    "preemptions",
)
"""The order of the metrics that tables begin with."""


class State(NamedTuple):
    """Arrays of KVQueue, an `EngineState`; the first axis is the lane.

    Attributes:
        lane: one record for each lane.
        resident: its residents [seats].
        request: every request of the episode [n].
        queue: its waiting requests.
        prefix: nothing: prefixes are not cached.
        scratch: intermediate results.
        times: float32 [lanes, n], seconds of one kind while metrics are taken of them.
    """

    lane: Records[Episode]
    resident: Records2[Resident]
    request: Records2[Request]
    queue: NDArray[np.int32]
    prefix: Prefixes
    scratch: NDArray[np.int32]
    times: NDArray[np.float32]


class Params(NamedTuple):
    """What all lanes of KVQueue share, an `EngineParams`."""

    config: Records[Config]
    rules: Records[CompiledRule]
    class_budgets: NDArray[np.int32]
    orders: Records[Order]
    objectives: Records[Objective]
    cost: StepCost
    traffic: Traffic
