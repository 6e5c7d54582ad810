"""What AFDRatio keeps and what it is told: the dtypes, arrays and constants of its compiled functions."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

MEANFIELD, GAUSSIAN, SLOT_LEVEL, PIPELINE = 0, 1, 2, 3
ABSOLUTE, DELTA = 0, 1
SCALARS = 23

LANE = np.dtype(
    [
        ("key", "u8"),  # of the episode's requests
        ("epoch", "i4"),
        ("choice", "i4"),  # index of the ratio
        ("built", "i4"),  # 0 until the first decision
        ("workers", "i4"),  # x: attention instances that take requests
        ("ffn", "i4"),  # y
        ("paid", "i4"),  # instances of the last cycle, draining ones included
        ("turn", "i4"),  # microbatch of the next step
        ("switches", "i4"),
        ("invalid", "i4"),
        ("seen", "i4"),  # requests in the window, and
        ("newest", "i4"),  # where the next one goes
        ("cycle", "i8"),  # steps of any microbatch
        ("taken", "i8"),  # requests drawn
        ("completed", "i8"),
        ("asked_steps", "i8"),  # of all requests drawn, from when they were placed
        ("tokens", "i8"),  # produced
        ("done_tokens", "i8"),  # of completed requests
        ("early_tokens", "i8"),  # of the first 80 % of `stop` completions
        ("early", "f8"),  # time of the last of them
        ("timed", "i8"),  # completions whose whole stay was seen, and
        ("tpot", "f8"),  # the sum of their times per token
        ("clock", "f8"),
        ("ffn_free", "f8"),
        ("first_law", "i4"),
        # of the last epoch
        ("tau", "f8"),
        ("idle_attention", "f8"),
        ("idle_ffn", "f8"),
        ("load_mean", "f8"),  # tokens of an attention instance over B
        ("load_max", "f8"),
        ("bound_attention", "f8"),
        ("bound_comm", "f8"),
        # sums over the episode
        ("relative", "f8"),
        ("instance_time", "f8"),
        ("output", "f8"),  # tokens, also where there are no slots
        ("cycle_time", "f8"),
        ("excess", "f8"),
        ("load_sum", "f8"),
        ("attention_idle_sum", "f8"),
        ("ffn_idle_sum", "f8"),
        ("bound_attention_sum", "f8"),
        ("bound_comm_sum", "f8"),
        ("switch_time", "f8"),
        ("ratio_sum", "f8"),
        ("penalty", "f8"),
        ("checksum", "f8"),
        ("sum_prompt", "i8"),  # over the window: prompts,
        ("sum_steps", "i8"),  # steps,
        ("sum_load", "i8"),  # tokens x steps,
        ("sum_square", "i8"),  # and tokens^2 x steps
    ],
    align=True,
)
WORKER = np.dtype([("free", "f8"), ("busy", "f8"), ("occupied", "i4")], align=True)
MICROBATCH = np.dtype([("back", "f8"), ("tick", "i4")], align=True)  # time its tokens are back at attention

NUMBER = np.dtype(
    [
        ("mode", "i4"),
        ("action", "i4"),
        ("batch", "i4"),  # B
        ("batches", "i4"),  # m
        ("workers", "i4"),  # most attention instances of any ratio
        ("cycles", "i4"),  # of an epoch
        ("epochs", "i4"),
        ("stop", "i4"),  # requests per attention instance that end an episode; 0: none
        ("stationary", "i4"),
        ("aggregate", "i4"),
        ("initial", "i4"),
        ("stride", "i4"),  # cycles between two draws of the Gaussian loads
        ("window", "i4"),
        ("switch_chance", "f8"),
        ("spread", "f8"),  # of the coefficients
        ("switch_cost", "f8"),
        ("invalid_cost", "f8"),
        ("cycle_s", "f8"),
        ("ratio_scale", "f8"),
        ("instance_scale", "f8"),
        ("theta_ref", "f8"),
        ("nu_ref", "f8"),
        ("prompt_ref", "f8"),
        ("steps_ref", "f8"),
        ("tau_ref", "f8"),
        ("throughput_ref", "f8"),
    ],
    align=True,
)

METRICS = (
    "relative_throughput",
    "throughput_tokens_per_cycle",
    "throughput_tokens_per_s",
    "thr80_tokens_per_cycle",
    "tpot_mean_s",
    "tau_mean_cycles",
    "barrier_excess_cycles",
    "load_mean_tokens",
    "idle_attention",
    "idle_ffn",
    "bound_attention",
    "bound_communication",
    "bound_ffn",
    "ratio_mean",
    "instances_mean",
    "switches",
    "switch_time_s",
    "completed",
    "output_tokens",
    "epochs",
    "penalty",
    "invalid_actions",
    "duration_s",
    "world_checksum",
)
"""TPOT counts from a request's entry into its slot, where the first token of its prefill is already there, over the tokens after
that.

NaN, with nothing to take it of: `thr80_tokens_per_cycle` without `stop`, or where 80 % of its requests have not completed (and in
the modes without requests); `tpot_mean_s` in the modes with requests where none that began in the episode has completed; every
other mean, share and rate before the first epoch."""


class State(NamedTuple):
    """Arrays of AFDRatio; first axis = lane. Table `x * workers + i` is microbatch x of attention instance i.

    Attributes:
        lane: records `LANE` [lanes].
        worker: records `WORKER` [lanes, workers].
        microbatch: records `MICROBATCH` [lanes, batches].
        table: records `TABLE` [lanes, batches * workers].
        slot: records `SLOT` [lanes, batches * workers, B].
        wheel: int32 [lanes, batches * workers, buckets].
        coefficients: float64 [lanes, 6], alpha_A, beta_A, alpha_F, beta_F, alpha_C, beta_C of this episode.
        window: int32 [lanes, window, 2], prompt and steps of the requests that finished last.
        law: int32 [lanes, epochs], number of the law in each epoch.
        history: float32 [lanes, epochs, 6], for pictures: ratio, relative throughput, idle attention, idle FFN, theta, tau.
    """

    lane: NDArray[Any]
    worker: NDArray[Any]
    microbatch: NDArray[Any]
    table: NDArray[Any]
    slot: NDArray[Any]
    wheel: NDArray[np.int32]
    coefficients: NDArray[np.float64]
    window: NDArray[np.int32]
    law: NDArray[np.int32]
    history: NDArray[np.float32]


class Params(NamedTuple):
    """What all lanes of AFDRatio share.

    Attributes:
        config: record `NUMBER` [1].
        ratios: int32 [ratios, 2], attention and FFN instances of each action.
        law: records `LAW` [laws].
        requests: int32 [rows, 2], prompt and steps.
        until: int64 [rows], running sums of the steps of each law.
        coefficients: float64 [6], before they are varied.
    """

    config: NDArray[Any]
    ratios: NDArray[np.int32]
    law: NDArray[Any]
    requests: NDArray[np.int32]
    until: NDArray[np.int64]
    coefficients: NDArray[np.float64]
