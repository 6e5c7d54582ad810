"""What OServe keeps and what it is told: the records, arrays and constants of its compiled functions."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmgym.core.records import (
    Record,
    Records,
    Records2,
    float32,
    float64,
    int16,
    int32,
    int64,
)
from llmgym.envs.oserve.placement import Place

FIXED, SPANS, WAVE, DAY = 0, 1, 2, 3
ADHOC, RELOAD, FREE = 0, 1, 2
FLOW, BLIND, ROUND_ROBIN, LEAST_WORK, LEAST_KV = 0, 1, 2, 3, 4
MENU, EDIT, PLAN, CONTROL, ROUTE = 0, 1, 2, 3, 4
LATENCY, P99, SLO = 0, 1, 2
NO_LOAD = 100.0
"""Headroom where nothing, or next to nothing, is asked for."""
NOW, SERVING, CONSIDERED = 0, 1, 2
"""Rows of `State.replicas`: all replicas, those that serve during a switch, and those of a deployment that is looked at."""


class Episode(Record):
    """One lane of OServe."""

    epoch: int = int32("Epochs that have passed.")
    deployment: int = int32("Number of the deployment; -1 where edits have made it.")
    requests: int = int32("Requests that the whole episode brings.")
    free: int = int32("First free row of `State.request` that has been in use; -1 for none.", blank=-1)
    rows: int = int32("Rows of `State.request` that have been in use.")
    next: int = int32("Number of the first request that has not arrived.")
    done: int = int32("Requests that have completed.")
    paced: int = int32("Completed requests of two output tokens or more, which have a time per output token.")
    met: int = int32("Requests that have completed within their objective.")
    waiting: int = int32("Requests that wait in the lines of the replicas.")
    running: int = int32("Requests that run.")
    waiting_peak: int = int32("Largest number of requests that have waited at once.")
    turn: int = int32("Place of the replica that the last request went to, where requests take turns.")
    switches: int = int32("Changes of the deployment.")
    since: int = int32("Epochs since the last switch.")
    changed_gpus: int = int32("GPUs whose replica has changed, summed over the switches.")
    migrated: int = int32("Running requests that have moved with their caches.")
    drained: int = int32("Running requests that have completed on a replica that stopped.")
    restarted: int = int32("Running requests that have lost their caches and begun anew.")
    rerouted: int = int32("Waiting requests that have been handed out again because their replica stopped.")
    moved_waiting: int = int32("Waiting requests that have moved to a replica with less work.")
    invalid: int = int32("Masked actions.")
    unstable: int = int32("1 where too many requests wait, which ends the episode.")
    stopping: int = int32("1 while a switch is under way.")
    ready_s: float = float64("Time at which the last switch is over, seconds.")
    open: float = float64("Requests in the system.")
    open_arrival_s: float = float64("Sum of the arrival times of the requests in the system, seconds.")
    done_s: float = float64("Sum of the times in the system of completed requests, seconds.")
    e2e_sum_s: float = float64(
        "Sum of the end-to-end times up to the last epoch's end, in single precision, seconds."
    )
    ttft_sum_s: float = float64("Sum of the times to the first token of completed requests, seconds.")
    tpot_sum_s: float = float64("Sum of the times per output token of completed requests, seconds.")
    counted_s: float = float64("Time in the system that the rewards have counted, seconds.")
    p99_sum_s: float = float64("Sum over the epochs of the P99 of the end-to-end time, seconds.")
    p99_s: float = float64(
        "P99 of the end-to-end time of requests that completed in the last epoch, seconds."
    )
    output_tokens: float = float64("Output tokens of the completed requests.")
    stopped_gpu_s: float = float64("Time that GPUs have stood still for switches, GPU seconds.")
    busy_gpu_s: float = float64("Time that the replicas which are gone have worked, GPU seconds.")
    kv_share_s: float = float64(
        "Integral of the used share of cache of the replicas which are gone, GPU seconds."
    )
    weights_bytes: float = float64("Weights that have moved, bytes.")
    kv_bytes: float = float64("Caches that have moved, bytes.")
    flying_bytes: float = float64("Weights and caches that the switch under way moves, bytes.")
    headroom: float = float64("Multiple of the load that is planned for which the deployment can serve.")
    headroom_sum: float = float64("Sum of the headroom over the epochs.")
    penalty: float = float64("Part of the return that is not time, in the unit of the return.")
    tick_s: float = float64("Time of the last migration of a waiting request, seconds.")
    checksum: float = float64(
        "Sum over the requests of arrival time (seconds) and class: tells worlds apart."
    )


class Slot(Place):
    """A place for a replica, with the replica that stands there."""

    running: int = int32("Requests that run.")
    waiting: int = int32("Requests in line.")
    head: int = int32("First request in line.", blank=-1)
    tail: int = int32("Last request in line.", blank=-1)
    kv: int = int64("Cache that is reserved for the running requests, tokens.")
    waiting_kv: int = int64("Cache to expect of the waiting requests, as far as their types tell, tokens.")
    ready_s: float = float64("Time from which the replica serves, seconds.")
    clock_s: float = float64("Time that the replica has been brought up to, seconds.")
    progress: float = float64("Time so far, as if every request had run at full speed, seconds.")
    load: float = float64("Stage time that the running requests take at full speed, a share.")
    work_s: float = float64("Stage time that its requests still need, as far as their types tell, seconds.")
    busy_s: float = float64("Time that the stages have worked, seconds.")
    kv_s: float = float64("Integral of the used share of the cache, seconds.")


class Request(Record):
    """One request that is in the system."""

    arrival_s: float = float64("Time of arrival, seconds.")
    left: float = float64("Share of its work that was left when it last began to wait.", blank=1.0)
    ttft_s: float = float32(
        "Time to the first token, seconds; -1 until it is known, with the first admission.", blank=-1.0
    )
    next: int = int32("Request behind it in line, or the next free row; -1 for none.", blank=-1)
    request_class: int = int16("Number of its class, which holds the length of the answer.")
    node: int = int16("Node on which its cache lies while it moves; -1 for none.", blank=-1)


class Candidate(Record):
    """What the observation tells of a deployment that an action can choose."""

    headroom: float = float64("Multiple of the forecast that the deployment can serve.")
    changed_gpus: float = float64("GPUs whose replica would change with the deployment.")
    latency_s: float = float64("Mean latency of a lone request, over the requests of the forecast, seconds.")


class Past(Record):
    """One epoch that has passed, for pictures."""

    waiting: float = float32("Requests that wait at its end.")
    p99_s: float = float32("P99 of the end-to-end time of the requests that completed in it, seconds.")
    switched: float = float32("1 where the deployment changed at its beginning.")


class Config(Record):
    """Numbers that all lanes share."""

    gpus: int = int32("GPUs of the cluster.")
    types: int = int32("Types of requests.")
    streams: int = int32("Streams of requests, each with its own rate.")
    classes: int = int32("Classes of requests, each with its own lengths.")
    epochs: int = int32("Epochs of an episode.")
    history: int = int32("Epochs whose counts are observed.")
    action: int = int32("What an action is: `MENU`, `EDIT`, `PLAN`, `CONTROL` or `ROUTE`.")
    reward: int = int32("What is rewarded: `LATENCY`, `P99` or `SLO`.")
    drift: int = int32("How the mix drifts: `FIXED`, `SPANS`, `WAVE` or `DAY`.")
    switching: int = int32("How the deployment changes: `ADHOC`, `RELOAD` or `FREE`.")
    dispatch: int = int32("Who gets a request: `FLOW`, `BLIND`, `ROUND_ROBIN`, `LEAST_WORK` or `LEAST_KV`.")
    reroute: int = int32("1 where requests go to other replicas while some stop.")
    initial: int = int32("Number of the first deployment.")
    cap: int = int32("Waiting requests; more of them end the episode.")
    most: int = int32("Requests that one epoch brings at most.")
    span_epochs: NDArray[np.int32] = int32("Shortest and longest span, epochs.", shape=2)
    epoch_s: float = float64("Length of an epoch, seconds.")
    cv: NDArray[np.float64] = float64("Least and largest coefficient of variation of the shares.", shape=2)
    load: NDArray[np.float64] = float64("Least and largest utilisation of the best candidate.", shape=2)
    amplitude: float = float64("Amplitude of the logarithm of a share in a wave.")
    period_epochs: float = float64("Period of waves and days, epochs.")
    day_rate_rps: float = float64("Arrivals over a day, mean, requests a second.")
    noise: float = float64("Standard deviation of the logarithm of a rate around its course.")
    correlation: float = float64("Correlation of the deviation of a rate from one epoch to the next.")
    ewma: float = float64("Weight of the last epoch in the forecast.")
    fix_s: float = float64("Time that an ad hoc switch takes besides the transfers, seconds.")
    reload_s: float = float64("Time to read the weights from disk, seconds.")
    drain_s: float = float64("Running requests that need less than this complete where they are, seconds.")
    gpu_bytes_per_s: float = float64("Bandwidth of a GPU inside its node, bytes a second.")
    node_bytes_per_s: float = float64("Bandwidth of a node to the others, bytes a second.")
    part_bytes: float = float64("Weights in one of the parts that move, bytes.")
    kv_token_bytes: float = float64("Cache of a token, bytes.")
    latency_ref_s: float = float64("Mean latency of a lone request in the static deployment, seconds.")
    backlog_s: float = float64("Time in which as many requests are expected as may wait, seconds.")
    switch_cost: float = float64("Price of a switch, in the unit of the return.")
    invalid_cost: float = float64("Price of a masked action, in the unit of the return.")


class State(NamedTuple):
    """Arrays of OServe; first axis = lane. R places for replicas, J types, S shapes, D GPUs, K candidates, n requests.

    Attributes:
        lane: records [lanes].
        slot: records [lanes, R].
        arrival_s: float64 [lanes, n], time of arrival of every request of the episode, in order, seconds.
        arrival_class: int16 [lanes, n], its class.
        request: records [lanes, rows], those that are in the system: what waits when an epoch begins is at most `Config.cap`, what
            runs has a seat, and an epoch brings at most `Config.most`.
        heap_at: float64 [lanes, R, seats], a heap: progress of its replica at which a running request completes, seconds.
        heap_id: int32 [lanes, R, seats], rows of the requests in the order of `heap_at`.
        demand: float64 [lanes, epochs, streams], true mean arrivals, requests a second.
        counts: int32 [lanes, epochs, J], arrivals so far, by the type that they are taken for.
        waits: int32 [lanes, J], waiting requests, by the type that they are taken for.
        forecast: float64 [lanes, J], moving average of the arrivals, requests a second.
        plan: float64 [lanes, J], arrivals that routing is made for, requests a second.
        share: float64 [lanes, 2, J, R], share of a type's requests for each replica; `NOW`, and `SERVING` during a switch.
        credit: float64 [lanes, J, R], requests that a replica is owed by the weighted round robin.
        logit: float64 [lanes, J R], the last action, where routes are the action.
        replicas: int64 [lanes, 3, S], replicas of each shape; the rows are `NOW`, `SERVING` and `CONSIDERED`.
        clock: float64 [lanes, 2], cosine and sine of the time of day at which the episode begins.
        flow: float64 [lanes, S, J], flows of the linear program, requests a second.
        scratch: float64 [lanes, rows, columns], tableau of the linear program.
        target: int64 [lanes, D, 2], places of the last plan; see `llmgym.envs.oserve.placement.place`.
        ranks: int64 [lanes, 2, D, 3], what each GPU holds before and after the last switch: tp, pp and rank.
        traffic: float64 [lanes, D, 4], bytes of the last switch; see `llmgym.envs.oserve.placement.ship`.
        ends: int32 [lanes, 4], first and last of the requests that a switch puts out, those that had run and those that waited.
        candidate: records [lanes, K].
        served: float32 [lanes, 3, n], end-to-end time, time to the first token and time per output token of completed
            requests, seconds; in no order, and of the last kind only those that there are.
        history: records [lanes, epochs + 1], by the epochs that have passed.
    """

    lane: Records[Episode]
    slot: Records2[Slot]
    arrival_s: NDArray[np.float64]
    arrival_class: NDArray[np.int16]
    request: Records2[Request]
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
    candidate: Records2[Candidate]
    served: NDArray[np.float32]
    history: Records2[Past]


class Params(NamedTuple):
    """What all lanes of OServe share. S shapes, C classes of requests, J types, M streams, N deployments, K candidates.

    Attributes:
        config: one record [1].
        sizes: int64 [S], GPUs of each shape.
        parallel: int64 [S, 2], tp and pp of each shape.
        capacity: int64 [S], cache of a replica, tokens.
        work_s: float64 [S, C], stage time of a request, seconds; infinite where none fits.
        latency_s: float64 [S, C], latency of a lone request, seconds.
        prefill_s: float64 [S, C], part of the latency until the first token, seconds.
        lengths: int64 [C, 2], prompt and output of a class, tokens.
        type_lengths: int64 [J, 2], prompt and output that stand for a type, tokens.
        guess: int64 [C], type that a class is taken for at arrival.
        split: float64 [J, J], share of each type among the requests that are taken for a type.
        known_work_s: float64 [S, C], stage time to expect of a request at arrival, seconds: the mean of those that are taken for
            its type.
        known_tokens: int64 [C], prompt of a request and the answer to expect of it at arrival, tokens.
        slo_s: float64 [C], objective for the end-to-end time, seconds.
        stream_cdf: float64 [M, C], distribution function of the classes of a stream.
        stream_type: float64 [M, J], share of each type in a stream.
        mix: float64 [M], mean share of each stream.
        day: float64 [M, 2 HARMONICS], cosines and sines of the course of a day, relative to the mean.
        type_rate: float64 [S, J], requests of a type that a replica completes, requests a second.
        type_latency_s: float64 [S, J], latency of a lone request of a type, seconds.
        rate_scale: float64 [J], arrivals that observations are divided by, requests a second.
        deployments: int64 [N, S], replicas of each shape.
        menu: int64 [K], numbers of the candidates.
        edits: int64 [E, 4], two shapes to take away and two to add; -1 for none.
    """

    config: Records[Config]
    sizes: NDArray[np.int64]
    parallel: NDArray[np.int64]
    capacity: NDArray[np.int64]
    work_s: NDArray[np.float64]
    latency_s: NDArray[np.float64]
    prefill_s: NDArray[np.float64]
    lengths: NDArray[np.int64]
    type_lengths: NDArray[np.int64]
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
