"""The compiled functions of PipeSDBatch, and what they keep. See `llmgym.envs.pipesd.batch.env` for what they mean."""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmgym.core.jit import kernel
from llmgym.core.lanes import Kernels
from llmgym.core.rng import integer, uniform
from llmgym.core.statistics import ratio
from llmgym.envs.pipesd.speculation import plan_batches, plan_time

HOLD, SEND = 0, 1
SECONDS, RELATIVE = 0, 1
COUNT = 32.0
"""Tokens are shown in units of so many."""

LANE = np.dtype(
    [
        ("tokens", "i4"),  # N
        ("drafted", "i4"),
        ("sent", "i4"),
        ("batches", "i4"),
        ("invalid", "i4"),
        ("planned", "i4"),  # batches of the best plan
        ("alpha", "f8"),
        ("beta", "f8"),
        ("gamma", "f8"),
        ("clock_s", "f8"),  # when the last token was drafted
        ("free_s", "f8"),  # when everything sent is through
        ("reached_s", "f8"),  # the later of these
        ("busy_s", "f8"),
        ("best_s", "f8"),
        ("penalty", "f8"),
    ],
    align=True,
)
NUMBER = np.dtype(
    [
        ("reward", "i4"),
        ("least", "i4"),
        ("most", "i4"),
        ("alpha", "f8", (2,)),
        ("beta", "f8", (2,)),
        ("gamma", "f8", (2,)),
        ("invalid_cost", "f8"),
    ],
    align=True,
)
METRICS = (
    "finish_s",
    "best_finish_s",
    "regret",
    "tokens",
    "batches",
    "best_batches",
    "link_utilisation",
    "penalty",
    "invalid_actions",
    "duration_s",
    "world_checksum",
)
"""`link_utilisation` is NaN before anything was sent."""


class State(NamedTuple):
    """Arrays of PipeSDBatch; first axis = lane.

    Attributes:
        lane: records `LANE` [lanes].
        ends: int32 [lanes, N + 2], the best plan.
        work: float64 [lanes, N + 2].
        history: float64 [lanes, N, 3]: tokens, start and end of each batch sent.
    """

    lane: NDArray[Any]
    ends: NDArray[np.int32]
    work: NDArray[np.float64]
    history: NDArray[np.float64]


class Params(NamedTuple):
    """What all lanes share.

    Attributes:
        number: record `NUMBER` [1].
    """

    number: NDArray[Any]


@kernel
def _between(key: np.uint64, number: int, low: float, high: float) -> float:
    """A draw from low..high; `low` itself where they are the same."""
    return low + (high - low) * uniform(key, number)


@kernel
def reset_lane(state: State, params: Params, lane: int, key: np.uint64) -> None:
    """Draw a window; its first token is drafted."""
    me, number = state.lane[lane], params.number[0]
    me.tokens = integer(key, 0, number.least, number.most)
    me.alpha = _between(key, 1, number.alpha[0], number.alpha[1])
    me.beta = _between(key, 2, number.beta[0], number.beta[1])
    me.gamma = _between(key, 3, number.gamma[0], number.gamma[1])
    me.drafted, me.sent, me.batches, me.invalid = 1, 0, 0, 0
    me.clock_s, me.free_s, me.reached_s, me.busy_s, me.penalty = me.gamma, 0.0, 0.0, 0.0, 0.0
    me.planned = plan_batches(me.tokens, me.alpha, me.beta, me.gamma, state.ends[lane], state.work[lane])
    me.best_s = plan_time(state.ends[lane], me.planned, me.alpha, me.beta, me.gamma)


@kernel
def step_lane(
    state: State, params: Params, lane: int, action: NDArray[np.float64]
) -> tuple[float, bool, bool, float]:
    """Send what is unsent, or hold it; then the next token is drafted."""
    me, number = state.lane[lane], params.number[0]
    before, reached, penalty = me.reached_s, max(me.clock_s, me.free_s), 0.0
    send = int(action[0]) == SEND
    last = me.drafted == me.tokens
    if last and not send:
        send = True
        penalty = number.invalid_cost
        me.invalid += 1
        me.penalty += penalty
    if send:
        tokens = me.drafted - me.sent
        start = max(me.clock_s, me.free_s)
        me.free_s = start + me.alpha + me.beta * tokens
        row = state.history[lane, me.batches]
        row[0], row[1], row[2] = tokens, start, me.free_s
        me.busy_s += me.free_s - start
        me.batches += 1
        me.sent = me.drafted
    if not last:
        me.drafted += 1
        me.clock_s += me.gamma
    me.reached_s = max(me.clock_s, me.free_s)
    scale = 1.0 / me.best_s if number.reward == RELATIVE else 1.0
    elapsed = me.reached_s - max(reached, before)
    return -scale * (me.reached_s - before) - penalty, last, False, elapsed


@kernel
def observe_lane(state: State, params: Params, lane: int, out: NDArray[np.float32]) -> None:
    """Write the observation: see `layout` in `llmgym.envs.pipesd.batch.env`."""
    me = state.lane[lane]
    unit = me.alpha + me.beta + me.gamma
    unsent, busy = me.drafted - me.sent, max(me.free_s - me.clock_s, 0.0)
    out[0] = me.drafted / me.tokens
    out[1] = unsent / me.tokens
    out[2] = min(me.tokens / COUNT, 4.0)
    out[3] = min(unsent / COUNT, 4.0)
    out[4] = min((me.tokens - me.drafted) / COUNT, 4.0)
    out[5] = min(busy / (8.0 * unit), 4.0)
    out[6] = min(math.log1p(busy / me.gamma) / 4.0, 4.0)
    out[7] = me.alpha / unit
    out[8] = me.beta / unit
    out[9] = me.gamma / unit


@kernel
def mask_lane(state: State, params: Params, lane: int, out: NDArray[np.int8]) -> None:
    """After the last token everything must be sent."""
    me = state.lane[lane]
    out[HOLD] = 0 if me.drafted == me.tokens else 1
    out[SEND] = 1


@kernel
def metrics_lane(state: State, params: Params, lane: int, out: NDArray[np.float64]) -> None:
    """Write the episode's metrics, in the order of `METRICS`."""
    me = state.lane[lane]
    out[0] = me.reached_s
    out[1] = me.best_s
    out[2] = me.reached_s / me.best_s - 1.0
    out[3] = me.tokens
    out[4] = me.batches
    out[5] = me.planned
    out[6] = ratio(me.busy_s, me.reached_s)
    out[7] = me.penalty
    out[8] = me.invalid
    out[9] = me.reached_s
    out[10] = me.tokens + me.alpha + 2.0 * me.beta + 3.0 * me.gamma


KERNELS = Kernels(reset_lane, step_lane, observe_lane, mask_lane, metrics_lane)
