"""What MemPlace keeps and what it is told: the dtypes, arrays and constants of its compiled functions."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

LINK_OCTAVES = 10.0
"""Octaves of the bandwidth from the published one to the end of its field."""
EDGES = 7
"""Fields of a cell that are bytes."""

LANE = np.dtype(
    [
        ("key", "u8"),
        ("request", "i4"),  # that is to be placed
        ("cell", "i4"),
        ("placement", "i4"),  # of the request before, and
        ("best", "i4"),  # the best one there was
        ("optimal", "i4"),
        ("offloaded", "i4"),
        ("invalid", "i4"),
        ("scale", "f8"),  # of the link
        ("clock", "f8"),
        ("copying", "f8"),
        ("joules", "f8"),
        ("moved", "f8"),
        ("log_speedup", "f8"),
        ("log_saving", "f8"),
        ("regret", "f8"),
        ("penalty", "f8"),
        ("checksum", "f8"),
    ],
    align=True,
)

NUMBER = np.dtype(
    [
        ("requests", "i4"),
        ("noise", "f8"),
        ("energy_weight", "f8"),
        ("invalid_cost", "f8"),
        ("link_low", "f8"),  # log2
        ("link_high", "f8"),
    ],
    align=True,
)

METRICS = (
    "speedup_geomean",
    "energy_saving_geomean",
    "regret_mean",
    "optimal_share",
    "request_mean_s",
    "energy_mean_j",
    "copy_share",
    "copied_bytes",
    "offloaded_share",
    "requests",
    "penalty",
    "invalid_actions",
    "energy_j",
    "duration_s",
    "world_checksum",
)
"""Means and shares are NaN before the first request, `copy_share` over no time."""


class State(NamedTuple):
    """Arrays of MemPlace; first axis = lane.

    Attributes:
        lane: records `LANE` [lanes].
        error: float64 [lanes, 2, 4], true over predicted time of each kernel of the request, by device and stage.
        history: float32 [lanes, requests, 3], for pictures: log speed-up, regret, and 1 for a request that was placed.
    """

    lane: NDArray[Any]
    error: NDArray[np.float64]
    history: NDArray[np.float32]


class Params(NamedTuple):
    """What all lanes of MemPlace share.

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
