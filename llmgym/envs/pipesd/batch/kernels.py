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
        config: record `NUMBER` [1].
    """

    config: NDArray[Any]


@kernel
def _between(key: np.uint64, number: int, low: float, high: float) -> float:
    """A draw from low..high; `low` itself where they are the same."""
    return low + (high - low) * uniform(key, number)


@kernel
def reset_lane(state: State, params: Params, lane: int, key: np.uint64) -> None:
    """Draw a window; its first token is drafted."""
    episode, config = state.lane[lane], params.config[0]
    episode.tokens = integer(key, 0, config.least, config.most)
    episode.alpha = _between(key, 1, config.alpha[0], config.alpha[1])
    episode.beta = _between(key, 2, config.beta[0], config.beta[1])
    episode.gamma = _between(key, 3, config.gamma[0], config.gamma[1])
    episode.drafted, episode.sent, episode.batches, episode.invalid = 1, 0, 0, 0
    episode.clock_s, episode.free_s, episode.reached_s, episode.busy_s, episode.penalty = (
        episode.gamma,
        0.0,
        0.0,
        0.0,
        0.0,
    )
    episode.planned = plan_batches(
        episode.tokens, episode.alpha, episode.beta, episode.gamma, state.ends[lane], state.work[lane]
    )
    episode.best_s = plan_time(state.ends[lane], episode.planned, episode.alpha, episode.beta, episode.gamma)


@kernel
def step_lane(
    state: State, params: Params, lane: int, action: NDArray[np.float64]
) -> tuple[float, bool, bool, float]:
    """Send what is unsent, or hold it; then the next token is drafted."""
    episode, config = state.lane[lane], params.config[0]
    before, reached, penalty = episode.reached_s, max(episode.clock_s, episode.free_s), 0.0
    send = int(action[0]) == SEND
    last = episode.drafted == episode.tokens
    if last and not send:
        send = True
        penalty = config.invalid_cost
        episode.invalid += 1
        episode.penalty += penalty
    if send:
        tokens = episode.drafted - episode.sent
        start = max(episode.clock_s, episode.free_s)
        episode.free_s = start + episode.alpha + episode.beta * tokens
        row = state.history[lane, episode.batches]
        row[0], row[1], row[2] = tokens, start, episode.free_s
        episode.busy_s += episode.free_s - start
        episode.batches += 1
        episode.sent = episode.drafted
    if not last:
        episode.drafted += 1
        episode.clock_s += episode.gamma
    episode.reached_s = max(episode.clock_s, episode.free_s)
    scale = 1.0 / episode.best_s if config.reward == RELATIVE else 1.0
    elapsed = episode.reached_s - max(reached, before)
    return -scale * (episode.reached_s - before) - penalty, last, False, elapsed


@kernel
def observe_lane(state: State, params: Params, lane: int, out: NDArray[np.float32]) -> None:
    """Write the observation: see `layout` in `llmgym.envs.pipesd.batch.env`."""
    episode = state.lane[lane]
    unit = episode.alpha + episode.beta + episode.gamma
    unsent, busy = episode.drafted - episode.sent, max(episode.free_s - episode.clock_s, 0.0)
    out[0] = episode.drafted / episode.tokens
    out[1] = unsent / episode.tokens
    out[2] = min(episode.tokens / COUNT, 4.0)
    out[3] = min(unsent / COUNT, 4.0)
    out[4] = min((episode.tokens - episode.drafted) / COUNT, 4.0)
    out[5] = min(busy / (8.0 * unit), 4.0)
    out[6] = min(math.log1p(busy / episode.gamma) / 4.0, 4.0)
    out[7] = episode.alpha / unit
    out[8] = episode.beta / unit
    out[9] = episode.gamma / unit


@kernel
def mask_lane(state: State, params: Params, lane: int, out: NDArray[np.int8]) -> None:
    """After the last token everything must be sent."""
    episode = state.lane[lane]
    out[HOLD] = 0 if episode.drafted == episode.tokens else 1
    out[SEND] = 1


@kernel
def metrics_lane(state: State, params: Params, lane: int, out: NDArray[np.float64]) -> None:
    """Write the episode's metrics, in the order of `METRICS`."""
    episode = state.lane[lane]
    out[0] = episode.reached_s
    out[1] = episode.best_s
    out[2] = episode.reached_s / episode.best_s - 1.0
    out[3] = episode.tokens
    out[4] = episode.batches
    out[5] = episode.planned
    out[6] = ratio(episode.busy_s, episode.reached_s)
    out[7] = episode.penalty
    out[8] = episode.invalid
    out[9] = episode.reached_s
    out[10] = episode.tokens + episode.alpha + 2.0 * episode.beta + 3.0 * episode.gamma


KERNELS = Kernels(reset_lane, step_lane, observe_lane, mask_lane, metrics_lane)
