"""What MemPlace keeps, shows and measures, and what its compiled functions are told."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmgym.core.records import (
    Record,
    Records,
    Records2,
    float32,
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

LINK_OCTAVES = 10.0
"""Octaves from the published bandwidth to the ends of the field `link`; the setting `link` allows no more."""
TIME_DECADES, TIME_OFFSET = 8.0, 5.0
"""The field `time` reaches from 10^-5 s over eight decades to 1,000 s."""
BYTES_OCTAVES = 40.0
"""The field `bytes` reaches from 0 to 2^40 bytes."""


class Episode(Record):
    """One lane of MemPlace."""

    key: np.uint64 = uint64("Seeds everything that is drawn.")
    request: int = int32(
        "Number of the request that is to be placed; after the last request, how many there were."
    )
    cell: int = int32("Index of that request in the table of cells.")
    placement: int = int32("Placement of the request before, -1 where there is none.", blank=-1)
    best: int = int32(
        "Best placement that the request before could have had, -1 where there is none.", blank=-1
    )
    optimal: int = int32("Requests that were placed as well as possible.")
    offloaded: int = int32("Requests of which a stage ran on the FPGA.")
    invalid: int = int32("Masked actions.")
    scale: float = float64(
        "Bandwidth of the link for the request that is to be placed, over the published bandwidth."
    )
    clock_s: float = float64("Time that all requests so far have taken, seconds.")
    copying_s: float = float64("Time of copies in it, seconds.")
    energy_j: float = float64("Energy so far, joules.")
    copied_bytes: float = float64("Bytes that were copied so far.")
    log_speedup: float = float64("Sum of ln(time on the GPU alone / time) over the requests so far.")
    log_saving: float = float64("Sum of ln(energy on the GPU alone / energy) over the requests so far.")
    regret: float = float64(
        "Sum of the reward of the best placement less that of the chosen one over the requests so far."
    )
    penalty: float = float64("What masked actions have cost.")
    checksum: float = float64("Sum of all that was drawn so far.")


class Past(Record):
    """One request that was placed, for pictures."""

    log_speedup: float = float32("ln(time on the GPU alone / time).")
    regret: float = float32("Reward of the best placement less that of the chosen one.")
    placed: float = float32("1 for a request that was placed, 0 for one that is still to come.")


class Config(Record):
    """Settings that the compiled functions read."""

    requests: int = int32("Requests of an episode.")
    noise: float = float64("Standard deviation of the log error of every predicted kernel time.")
    energy_weight: float = float64("Weight of the logarithm of energy in the reward.")
    invalid_cost: float = float64("Cost of a masked action.")
    link_low: float = float64("Lowest bandwidth over the published one, log2.")
    link_high: float = float64("Highest bandwidth over the published one, log2.")


class Observation(Record):
    """What MemPlace shows of the request that is to be placed."""

    workload: NDArray[np.float32] = shown(", ".join(NAMES), unit="one of", size=WORKLOADS)
    request_size: float = shown("tokens or documents, in octaves", unit="index / 9", name="size")
    batch: float = shown("1, 2, 4, 8, 16, 32", unit="index / 5")
    time: float = shown("predicted time on the GPU alone, T", unit="(log10 s + 5) / 8")
    fused: float = shown("predicted time of relevancy and retrieval fused on the FPGA", unit="x / (T + x)")
    link: float = shown("bandwidth over the published one", unit="log2 / 10", low=-1.0)
    setup: float = shown("fixed time of a copy", unit="x / (T + x)")
    progress: float = shown("requests placed", unit="episode")
    intensity: NDArray[np.float32] = shown(
        "arithmetic intensity of prep, comp, ret, apply",
        unit=f"log10(1 + FLOP/B) / {INTENSITY_DECADES}",
        size=4,
    )
    gpu: NDArray[np.float32] = shown("predicted time of each stage on the GPU", unit="T", size=4)
    fpga: NDArray[np.float32] = shown("predicted time of each on the FPGA", unit="x / (T + x)", size=4)
    bytes: NDArray[np.float32] = shown(
        "raw memory that prep reads; index to and from the FPGA; query; scores; indices; selected raw memory",
        unit="log2(1 + B) / 40",
        size=7,
    )


class Metrics(Record):
    """Metrics of an episode of MemPlace. Means and shares are NaN before the first request."""

    speedup_geomean: float = metric("Geometric mean of time on the GPU alone over time.", best="max")
    energy_saving_geomean: float = metric(
        "Geometric mean of energy on the GPU alone over energy.", best="max"
    )
    regret_mean: float = metric(
        "Mean of the reward of the best placement less that of the chosen one.", best="min"
    )
    optimal_share: float = metric("Share of requests that were placed as well as possible.", best="max")
    request_mean_s: float = metric("Mean time of a request, seconds.")
    energy_mean_j: float = metric("Mean energy of a request, joules.")
    copy_share: float = metric("Share of time spent on copies; NaN over no time.", best="min")
    copied_bytes: float = metric("Bytes that were copied.")
    offloaded_share: float = metric("Share of requests of which a stage ran on the FPGA.")
    requests: float = metric("Requests that were placed.")
    penalty: float = metric("What masked actions cost.")
    invalid_actions: float = metric("Masked actions.")
    energy_j: float = metric("Energy of all requests, joules.")
    duration_s: float = metric("Time of all requests, seconds.")
    world_checksum: float = metric("Sum of all that was drawn, whatever was decided.")


class State(NamedTuple):
    """Arrays of MemPlace; the first axis is the lane.

    Attributes:
        lane: the episodes, [lanes].
        error: true over predicted time of each kernel of the request, by device and stage, float64 [lanes, 2, 4].
        history: the requests that were placed, [lanes, requests].
    """

    lane: Records[Episode]
    error: NDArray[np.float64]
    history: Records2[Past]


class Params(NamedTuple):
    """What all lanes of MemPlace share.

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
