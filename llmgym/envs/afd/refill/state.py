"""What AFDRefill keeps and what it is told: the dtypes, arrays and constants of its compiled functions."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

PICK, SCORE = 0, 1
EXCESS, THROUGHPUT = 0, 1
NO_PREDICTION, EXACT, NOISY, MEAN = 0, 1, 2, 3
GLOBALS = 7
"""Fields of an observation before those of each worker and each waiting request."""

LANE = np.dtype(
    [
        ("key", "u8"),  # of the episode's requests
        ("cycle", "i4"),
        ("tick", "i4"),  # steps of the bundle, those before the episode included
        ("left", "i4"),  # free slots
        ("invalid", "i4"),
        ("most_skips", "i4"),
        ("drawn", "i8"),  # requests of the stream so far
        ("newest", "i8"),  # number of the youngest request placed since the last cycle
        ("taken", "i8"),  # requests of the episode, the waiting ones included
        ("placed", "i8"),
        ("skips", "i8"),  # of the placed ones
        ("completed", "i8"),
        ("asked_steps", "i8"),  # of the placed ones
        ("tokens", "i8"),  # of these, produced
        ("timed", "i8"),  # completions whose whole stay was seen, and
        ("tpot", "f8"),  # the sum of their times per token
        ("clock", "f8"),
        ("tau", "f8"),  # of the last cycle
        ("excess", "f8"),  # sums over the cycles: alpha_A (max - mean),
        ("relative_excess", "f8"),  # (tau - ideal) / ideal,
        ("relative", "f8"),  # throughput over the best,
        ("load", "f8"),  # tokens of a slot,
        ("output", "f8"),  # and tokens produced
        ("penalty", "f8"),
        ("checksum", "f8"),
    ],
    align=True,
)
WAITING = np.dtype(
    [
        ("number", "i8"),  # in the stream
        ("prompt", "i4"),
        ("steps", "i4"),
        ("predicted", "i4"),
        ("skips", "i4"),
        ("chosen", "i4"),
    ],
    align=True,
)

NUMBER = np.dtype(
    [
        ("action", "i4"),
        ("reward", "i4"),
        ("information", "i4"),
        ("batch", "i4"),  # B
        ("workers", "i4"),  # r
        ("window", "i4"),  # W
        ("cycles", "i4"),  # of an episode
        ("patience", "i4"),  # A: times a request may be skipped
        ("stationary", "i4"),
        ("default_steps", "i4"),
        ("noise", "f8"),
        ("invalid_cost", "f8"),
        ("cycle_s", "f8"),
        ("alpha_attention", "f8"),
        ("beta_attention", "f8"),
        ("alpha_ffn", "f8"),
        ("beta_ffn", "f8"),
        ("comm", "f8"),  # t_C
        ("best", "f8"),  # throughput of the mean field, tokens per cycle and instance
        ("attention_ref", "f8"),  # t_A at B theta
        ("load_scale", "f8"),  # tokens
        ("log_prompt", "f8"),  # 1 / log(1 + the longest prompt)
        ("log_steps", "f8"),
    ],
    align=True,
)

METRICS = (
    "relative_excess",
    "barrier_excess_cycles",
    "tau_mean_cycles",
    "relative_throughput",
    "throughput_tokens_per_cycle",
    "throughput_tokens_per_s",
    "tpot_mean_s",
    "load_mean_tokens",
    "completed",
    "placed",
    "skips_mean",
    "skips_max",
    "cycles",
    "penalty",
    "invalid_actions",
    "duration_s",
    "world_checksum",
)
"""TPOT counts from a request's entry into its slot, where the first token of its prefill is already there, over the tokens after
that.

NaN, with nothing to take it of: `tpot_mean_s` where no request that was placed in the episode has completed; `skips_mean` where
none was placed; every other mean and rate before the first cycle."""


class State(NamedTuple):
    """Arrays of AFDRefill; first axis = lane.

    Attributes:
        lane: records `LANE` [lanes].
        table: records `TABLE` [lanes, r], one attention instance each.
        slot: records `SLOT` [lanes, r, B].
        wheel: int32 [lanes, r, buckets].
        waiting: records `WAITING` [lanes, W], the next requests of the backlog, oldest first.
        order: int32 [lanes, r], instances by rising load.
        history: float32 [lanes, cycles, 2], for pictures: slowest and mean attention, cycles.
    """

    lane: NDArray[Any]
    table: NDArray[Any]
    slot: NDArray[Any]
    wheel: NDArray[np.int32]
    waiting: NDArray[Any]
    order: NDArray[np.int32]
    history: NDArray[np.float32]


class Params(NamedTuple):
    """What all lanes of AFDRefill share.

    Attributes:
        config: record `NUMBER` [1].
        law: record `LAW` [1].
        requests: int32 [rows, 2], prompt and steps.
        until: int64 [rows], running sums of the steps.
    """

    config: NDArray[Any]
    law: NDArray[Any]
    requests: NDArray[np.int32]
    until: NDArray[np.int64]
