"""What MemPipe keeps and what it is told: the dtypes, arrays and constants of its compiled functions."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

TO_GPU, TO_FPGA, WAIT = 0, 1, 2
DOWNLINK, UPLINK = 2, 3
"""Rows of the resources after those of GPU and FPGA."""
ALL_PLACED = 4
"""In place of a stage: every stage of the request has its device."""

LANE = np.dtype(
    [
        ("key", "u8"),
        ("first", "i4"),  # oldest request that is not done
        ("now", "i4"),  # request whose stage is to be placed
        ("stages", "i4"),  # placed so far
        ("offloaded", "i4"),  # of these, on the FPGA
        ("waits", "i4"),
        ("invalid", "i4"),
        ("clock", "f8"),
        ("joules", "f8"),
        ("moved", "f8"),
        ("weighted", "f8"),  # time in the system, in units of the reward, over all requests
        ("penalty", "f8"),
        ("checksum", "f8"),
    ],
    align=True,
)
REQUEST = np.dtype(
    [
        ("cell", "i4"),
        ("stage", "i4"),  # to be placed next, or ALL_PLACED
        ("placed", "i4"),  # bit i: stage i is on the FPGA
        ("device", "i4"),  # of the last stage that was placed
        ("arrival_s", "f8"),
        ("ready_s", "f8"),  # when the next stage can be placed; when the request is done, if all are
        ("weight", "f8"),  # of a second in the system
    ],
    align=True,
)

NUMBER = np.dtype(
    [
        ("requests", "i4"),
        ("fused", "i4"),
        ("wait", "i4"),
        ("slowdown", "i4"),  # the reward is of each request's own time
        ("rate", "f8"),  # arrivals a second
        ("load", "f8"),
        ("mean_s", "f8"),  # of a request on the GPU alone
        ("mean_j", "f8"),
        ("energy_weight", "f8"),
        ("invalid_cost", "f8"),
    ],
    align=True,
)

METRICS = (
    "latency_relative",
    "latency_mean_s",
    "e2e_p50_s",
    "e2e_p99_s",
    "slowdown_mean",
    "throughput_rps",
    "energy_mean_j",
    "energy_relative",
    "gpu_utilization",
    "fpga_utilization",
    "link_utilization",
    "offloaded_share",
    "copied_bytes",
    "requests",
    "waits",
    "penalty",
    "invalid_actions",
    "energy_j",
    "duration_s",
    "world_checksum",
)
"""`latency_mean_s`, `e2e_*` and `slowdown_mean` are of requests that are done.

NaN, with nothing to take it of: these and `energy_mean_j` where no request is done; `offloaded_share` where no stage was placed;
rates and utilisations over no time."""


class State(NamedTuple):
    """Arrays of MemPipe; first axis = lane.

    Attributes:
        lane: records `LANE` [lanes].
        request: records `REQUEST` [lanes, requests], by arrival.
        resource: records `llmgym.envs.memory.resources.RESOURCE` [lanes, 4]: GPU, FPGA, link down, link up.
        span: float64 [lanes, requests, 4, 4], of each stage: copies begin, end, kernel begins, ends, s; -1 before.
        scratch: float32 [lanes, requests].
    """

    lane: NDArray[Any]
    request: NDArray[Any]
    resource: NDArray[Any]
    span: NDArray[np.float64]
    scratch: NDArray[np.float32]


class Params(NamedTuple):
    """What all lanes of MemPipe share.

    Attributes:
        config: record `NUMBER` [1].
        cells: records `llmgym.envs.memory.placement.CELL` [n].
        running: float64 [n], running probabilities of the cells.
        links: records `llmgym.envs.memory.devices.LINK` [2].
    """

    config: NDArray[Any]
    cells: NDArray[Any]
    running: NDArray[np.float64]
    links: NDArray[Any]
