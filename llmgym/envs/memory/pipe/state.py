"""What MemPipe keeps, shows and measures, and what its compiled functions are told."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmgym.core.records import (
    Record,
    Records,
    Records2,
    Records3,
    float64,
    int32,
    metric,
    shown,
    uint64,
)
from llmgym.envs.memory.devices import Link
from llmgym.envs.memory.observing import INTENSITY_DECADES, WORKLOADS
from llmgym.envs.memory.placement import Cell
from llmgym.envs.memory.published import NAMES
from llmgym.envs.memory.resources import Resource

TO_GPU, TO_FPGA, WAIT = 0, 1, 2
"""Actions."""
DOWNLINK, UPLINK = 2, 3
"""Rows of the resources after those of GPU and FPGA."""
ALL_PLACED = 4
"""In place of a stage: every stage of the request has its device."""
CROWD = 8.0
"""Numbers of requests are shown as n / (n + 8)."""

_MEAN_REQUESTS, _CROWDED = "x / (1 + x), x in mean requests", "n / (n + 8)"


class Episode(Record):
    """One lane of MemPipe."""

    key: np.uint64 = uint64("Seeds everything that is drawn.")
    oldest: int = int32("Number of the oldest request that is not done.")
    current: int = int32("Number of the request whose stage is to be placed.")
    stages: int = int32("Stages that were placed so far.")
    offloaded: int = int32("Stages that were placed on the FPGA so far.")
    waits: int = int32("Times that the agent waited.")
    invalid: int = int32("Masked actions.")
    clock_s: float = float64("Simulated time, seconds.")
    energy_j: float = float64("Energy of all stages that were placed so far, joules.")
    copied_bytes: float = float64("Bytes copied for all stages that were placed so far.")
    weighted: float = float64(
        "Time that requests have spent in the system so far, in the unit of the reward."
    )
    penalty: float = float64("What masked actions have cost.")
    checksum: float = float64("Sum of all that was drawn.")


class Request(Record):
    """One request."""

    cell: int = int32("Index of the request in the table of cells.")
    stage: int = int32("Stage that is to be placed next, or `ALL_PLACED`.")
    placed: int = int32("Devices of the stages: bit i is set where stage i is on the FPGA.")
    device: int = int32("Device of the last stage that was placed, -1 where there is none.", blank=-1)
    arrival_s: float = float64("Time of its arrival, seconds.")
    ready_s: float = float64(
        "Time at which its next stage can be placed, or at which it is done where all are placed, seconds."
    )
    weight: float = float64("What a second in the system counts in the reward, 1/s.")


class Span(Record):
    """When a stage of a request is copied for and runs; -1 before the stage is placed."""

    copy_begin_s: float = float64("Begin of its copies, seconds.", blank=-1.0)
    copy_end_s: float = float64("End of its copies, seconds.", blank=-1.0)
    begin_s: float = float64("Begin of its kernel, seconds.", blank=-1.0)
    end_s: float = float64("End of its kernel, seconds.", blank=-1.0)


class Config(Record):
    """Settings that the compiled functions read."""

    requests: int = int32("Requests of an episode.")
    fused: int = int32("1: relevancy on the FPGA runs with retrieval in one kernel; 0: in two.")
    wait: int = int32("1: the agent can wait; 0: it cannot.")
    slowdown: int = int32(
        "1: the reward counts time in each request's own time; 0: in the mean time of a request."
    )
    rate_rps: float = float64("Arrivals a second.")
    load: float = float64("Arrivals over what the GPU alone could serve.")
    mean_s: float = float64("Mean time of a request on the GPU alone, seconds.")
    mean_j: float = float64("Energy of the GPU in that time, joules.")
    energy_weight: float = float64("Weight of energy in the reward.")
    invalid_cost: float = float64("Cost of a masked action.")


class Observation(Record):
    """What MemPipe shows of the stage that is to be placed, and of all that is in the system."""

    workload: NDArray[np.float32] = shown(", ".join(NAMES), unit="one of", size=WORKLOADS)
    stage: NDArray[np.float32] = shown("prep, comp, ret, apply", unit="one of", size=4)
    request_size: float = shown("tokens or documents, in octaves", unit="index / 9", name="size")
    batch: float = shown("1, 2, 4, 8, 16, 32", unit="index / 5")
    intensity: float = shown(
        "arithmetic intensity of the stage", unit=f"log10(1 + FLOP/B) / {INTENSITY_DECADES}"
    )
    kernel: NDArray[np.float32] = shown(
        "time of the stage on GPU and FPGA; of comp, where it can be fused, with ret",
        unit=_MEAN_REQUESTS,
        size=2,
        table="device",
        actions=(0,),
    )
    copies: NDArray[np.float32] = shown(
        "copies that it would need first",
        unit=_MEAN_REQUESTS,
        size=2,
        name="copy",
        table="device",
        actions=(0,),
    )
    finish: NDArray[np.float32] = shown(
        "how long until it would be done there, queues included",
        unit=_MEAN_REQUESTS,
        size=2,
        table="device",
        actions=(0,),
    )
    rest: float = shown("stages of the request after it, on the GPU", unit=_MEAN_REQUESTS)
    on_fpga: NDArray[np.float32] = shown(
        "what the stage before wrote is on the FPGA; what prep read is", unit="bit", size=2, name="data"
    )
    age: float = shown("time since the request arrived", unit=_MEAN_REQUESTS)
    backlog: NDArray[np.float32] = shown(
        "work that GPU, FPGA, link down and link up still have", unit=_MEAN_REQUESTS, size=4
    )
    queue: NDArray[np.float32] = shown(
        "requests whose stage is on the GPU, on the FPGA, or waits for it",
        unit=_CROWDED,
        size=2,
        table="device",
        actions=(0,),
    )
    inside: float = shown("requests in the system", unit=_CROWDED)
    load: float = shown("arrivals over what the GPU alone could serve", unit="x / (1 + x)")
    progress: float = shown("requests that are done, in order", unit="episode")


class Metrics(Record):
    """Metrics of an episode of MemPipe; rates and utilisations are NaN over no time."""

    latency_relative: float = metric(
        "Time in the system per request of the episode, in the unit of the reward.", best="min"
    )
    latency_mean_s: float = metric("Mean time in the system, seconds; NaN where no request is done.")
    e2e_p50_s: float = metric("Median time in the system, seconds; NaN where no request is done.")
    e2e_p99_s: float = metric(
        "99th percentile of time in the system, seconds; NaN where no request is done.", best="min"
    )
    slowdown_mean: float = metric(
        "Mean of time in the system over the request's own on the GPU alone; NaN where no request is done.",
        best="min",
    )
    throughput_rps: float = metric("Requests done a second.")
    energy_mean_j: float = metric("Energy per request that is done, joules; NaN where none is.", best="min")
    energy_relative: float = metric(
        "Energy over that of all requests of the episode on the GPU alone, on average."
    )
    gpu_utilization: float = metric("Share of time that the GPU is busy.", best="max")
    fpga_utilization: float = metric("Share of time that the FPGA is busy.")
    link_utilization: float = metric("Share of time that a direction of the link is busy, on average.")
    offloaded_share: float = metric("Share of stages on the FPGA; NaN where no stage was placed.", best="max")
    copied_bytes: float = metric("Bytes that were copied.")
    requests: float = metric("Requests that are done.")
    waits: float = metric("Times that the agent waited.")
    penalty: float = metric("What masked actions cost.")
    invalid_actions: float = metric("Masked actions.")
    energy_j: float = metric("Energy of all stages, joules.")
    duration_s: float = metric("Simulated time, seconds.")
    world_checksum: float = metric("Sum of all that was drawn, whatever was decided.")


class State(NamedTuple):
    """Arrays of MemPipe; the first axis is the lane.

    Attributes:
        lane: the episodes, [lanes].
        request: the requests in the order of their arrival, [lanes, requests].
        resource: GPU, FPGA, link down and link up, [lanes, 4].
        span: when each stage of each request runs, [lanes, requests, 4].
        scratch: room for the latencies while metrics are taken, float32 [lanes, requests].
    """

    lane: Records[Episode]
    request: Records2[Request]
    resource: Records2[Resource]
    span: Records3[Span]
    scratch: NDArray[np.float32]


class Params(NamedTuple):
    """What all lanes of MemPipe share.

    Attributes:
        config: the settings, [1].
        cells: what each request costs, [cells].
        running: running probabilities of the cells, float64 [cells].
        links: both directions of the link, [2].
    """

    config: Records[Config]
    cells: Records[Cell]
    running: NDArray[np.float64]
    links: Records[Link]
