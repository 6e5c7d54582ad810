"""The compiled functions of PipeSDBatch, and what they keep. See `llmgym.envs.pipesd.batch.env` for what they mean."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmgym.core.jit import kernel
from llmgym.core.lanes import Kernels
from llmgym.core.records import Record, Records, Records2, float64, int32, metric, shown
from llmgym.core.rng import integer, uniform
from llmgym.core.statistics import ratio
from llmgym.envs.pipesd.speculation import plan_batches, plan_time

HOLD, SEND = 0, 1
"""What can be done after a drafted token."""
SECONDS, RELATIVE = 0, 1
"""What a reward is measured in: seconds, or the time of the best plan."""
COUNT = 32.0
"""Tokens are shown in units of so many."""
LINK_UNITS = 8.0
"""The time until the link is free is shown in units of so many times alpha + beta + gamma."""
LOG_UNIT = 4.0
"""Logarithms are shown in units of so much."""
MOST = 4.0
"""Largest value that is shown of a number of tokens or a time, in its unit."""
TOKENS, ALPHA, BETA, GAMMA = range(4)
"""Draws of an episode."""


class Episode(Record):
    """One lane: a window, what was sent of it, and the best plan."""

    tokens: int = int32("Tokens N of the window.")
    drafted: int = int32("Tokens that are drafted.", blank=1)
    sent: int = int32("Tokens that were sent.")
    batches: int = int32("Batches that were sent.")
    invalid: int = int32("Masked actions so far.")
    planned: int = int32("Batches of the best plan.")
    alpha: float = float64("Time to start an upload, seconds.")
    beta: float = float64("Time that a token adds to an upload, seconds.")
    gamma: float = float64("Time to draft a token, seconds.")
    clock_s: float = float64("Time at which the last token was drafted, seconds.")
    free_s: float = float64("Time at which everything sent is through, seconds.")
    reached_s: float = float64(
        "The later of the last token and the end of the last batch, after the last step, seconds."
    )
    busy_s: float = float64("Time that the batches take on the link, seconds.")
    best_s: float = float64("T(B) of the best plan, seconds.")
    penalty: float = float64("Price of the masked actions so far.")


class Sent(Record):
    """A batch that was sent."""

    tokens: int = int32("Tokens of the batch.")
    start_s: float = float64("Time at which its upload starts, seconds.")
    end_s: float = float64("Time at which its upload is through, seconds.")


class Config(Record):
    """What a scenario and the arguments of the environment come to."""

    reward: int = int32("What a reward is measured in: SECONDS or RELATIVE.")
    tokens: NDArray[np.int32] = int32("Smallest and largest N.", shape=2)
    alpha_s: NDArray[np.float64] = float64("Least and most time to start an upload, seconds.", shape=2)
    beta_s: NDArray[np.float64] = float64(
        "Least and most time that a token adds to an upload, seconds.", shape=2
    )
    gamma_s: NDArray[np.float64] = float64("Least and most time to draft a token, seconds.", shape=2)
    invalid_cost: float = float64("Price of a masked action, in units of reward.")


class Observation(Record):
    """What is seen after a token."""

    drafted: float = shown("tokens of the window that are drafted", unit="N")
    unsent: float = shown("drafted tokens that are held back", unit="N")
    tokens: float = shown("tokens of the window, N", unit="32 tokens", high=MOST)
    unsent_tokens: float = shown(
        "drafted tokens that are held back", unit="32 tokens", high=MOST, name="unsent.tokens"
    )
    left_tokens: float = shown("tokens still to be drafted", unit="32 tokens", high=MOST, name="left.tokens")
    link: float = shown("time until the link is free", unit="8 (alpha + beta + gamma)", high=MOST)
    link_drafts: float = shown(
        "log(1 + tokens that can be drafted until the link is free)",
        unit="log / 4",
        high=MOST,
        name="link.drafts",
    )
    alpha: float = shown("time to start an upload", unit="alpha + beta + gamma")
    beta: float = shown("time that a token adds to an upload", unit="alpha + beta + gamma")
    gamma: float = shown("time to draft a token", unit="alpha + beta + gamma")


class Metrics(Record):
    """What is measured of an episode."""

    finish_s: float = metric("Time T(B) until everything drafted is through, s.", best="min")
    best_finish_s: float = metric("T(B) of the best plan, s.")
    regret: float = metric("T(B) over that of the best plan, less 1.", best="min")
    tokens: float = metric("Tokens of the window.")
    batches: float = metric("Batches that were sent.", best="min")
    best_batches: float = metric("Batches of the best plan.")
    link_utilisation: float = metric(
        "Share of the time in which the link was busy; NaN before anything was sent."
    )
    penalty: float = metric("Price of the masked actions.")
    invalid_actions: float = metric("Masked actions.")
    duration_s: float = metric("Length of the episode, s.")
    world_checksum: float = metric("Number that tells worlds apart.")


HEADLINE = {name: Metrics.declared[name].best for name in ("regret", "finish_s", "batches")}


class State(NamedTuple):
    """Arrays of PipeSDBatch; first axis = lane.

    Attributes:
        lane: records [lanes].
        ends: the best plan, int32 [lanes, N + 2].
        work: intermediate results of planning, float64 [lanes, N + 2].
        sent: batches that were sent, records [lanes, N].
    """

    lane: Records[Episode]
    ends: NDArray[np.int32]
    work: NDArray[np.float64]
    sent: Records2[Sent]


class Params(NamedTuple):
    """What all lanes share.

    Attributes:
        config: record [1].
    """

    config: Records[Config]


EMPTY = Episode.blank


@kernel
def _between(key: np.uint64, draw: int, limits: NDArray[np.float64]) -> float:
    """One draw of `key` from the least to the most of `limits`; exactly the least where both are the same."""
    return limits[0] + (limits[1] - limits[0]) * uniform(key, draw)


@kernel
def reset_lane(state: State, params: Params, lane: int, key: np.uint64) -> None:
    """Draw a window; its first token is drafted.

    Args:
        state: arrays of all lanes.
        params: shared by all lanes.
        lane: number of the lane.
        key: seeds everything that is drawn in the episode, uint64.
    """
    state.lane[lane] = EMPTY[0]
    episode, config, ends = state.lane[lane], params.config[0], state.ends[lane]
    episode.tokens = integer(key, TOKENS, config.tokens[0], config.tokens[1])
    episode.alpha = _between(key, ALPHA, config.alpha_s)
    episode.beta = _between(key, BETA, config.beta_s)
    episode.gamma = _between(key, GAMMA, config.gamma_s)
    episode.clock_s = episode.gamma
    alpha, beta, gamma = episode.alpha, episode.beta, episode.gamma
    episode.planned = plan_batches(episode.tokens, alpha, beta, gamma, ends, state.work[lane])
    episode.best_s = plan_time(ends, episode.planned, alpha, beta, gamma)


@kernel
def step_lane(
    state: State, params: Params, lane: int, action: NDArray[np.float64]
) -> tuple[float, bool, bool, float]:
    """Send what is unsent, or hold it; then the next token is drafted.

    Args:
        state: arrays of all lanes.
        params: shared by all lanes.
        lane: number of the lane.
        action: float64 [1], HOLD or SEND.

    Returns:
        Reward, whether the episode is over, whether it is cut, and the time that passed, seconds.
    """
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
        batch = state.sent[lane, episode.batches]
        batch.tokens, batch.start_s, batch.end_s = tokens, start, episode.free_s
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
def observe_lane(
    state: State, params: Params, lane: int, out: Observation, rest: NDArray[np.float32]
) -> None:
    """Write what is seen after a token.

    Args:
        state: arrays of all lanes.
        params: shared by all lanes.
        lane: number of the lane.
        out: the record of the observation, written.
        rest: float32 [0], not used: the record is the whole observation.
    """
    episode = state.lane[lane]
    unit = episode.alpha + episode.beta + episode.gamma
    unsent, busy = episode.drafted - episode.sent, max(episode.free_s - episode.clock_s, 0.0)
    out.drafted = episode.drafted / episode.tokens
    out.unsent = unsent / episode.tokens
    out.tokens = min(episode.tokens / COUNT, MOST)
    out.unsent_tokens = min(unsent / COUNT, MOST)
    out.left_tokens = min((episode.tokens - episode.drafted) / COUNT, MOST)
    out.link = min(busy / (LINK_UNITS * unit), MOST)
    out.link_drafts = min(math.log1p(busy / episode.gamma) / LOG_UNIT, MOST)
    out.alpha = episode.alpha / unit
    out.beta = episode.beta / unit
    out.gamma = episode.gamma / unit


@kernel
def mask_lane(state: State, params: Params, lane: int, out: NDArray[np.int8]) -> None:
    """After the last token everything must be sent.

    Args:
        state: arrays of all lanes.
        params: shared by all lanes.
        lane: number of the lane.
        out: int8 [2], written: 1 for what is allowed of HOLD and SEND, 0 for the rest.
    """
    episode = state.lane[lane]
    out[HOLD] = 0 if episode.drafted == episode.tokens else 1
    out[SEND] = 1


@kernel
def metrics_lane(state: State, params: Params, lane: int, out: Metrics) -> None:
    """Write the episode's metrics.

    Args:
        state: arrays of all lanes.
        params: shared by all lanes.
        lane: number of the lane.
        out: the record of the metrics, written.
    """
    episode = state.lane[lane]
    out.finish_s = episode.reached_s
    out.best_finish_s = episode.best_s
    out.regret = episode.reached_s / episode.best_s - 1.0
    out.tokens = episode.tokens
    out.batches = episode.batches
    out.best_batches = episode.planned
    out.link_utilisation = ratio(episode.busy_s, episode.reached_s)
    out.penalty = episode.penalty
    out.invalid_actions = episode.invalid
    out.duration_s = episode.reached_s
    out.world_checksum = episode.tokens + episode.alpha + 2.0 * episode.beta + 3.0 * episode.gamma


KERNELS = Kernels(reset_lane, step_lane, observe_lane, mask_lane, metrics_lane)
