"""The compiled functions of PipeSDNav: what a step does, what is seen. See `llmgym.envs.pipesd.nav.env` for what they mean."""

import math

import numpy as np
from numpy.typing import NDArray

from llmgym.core.jit import kernel
from llmgym.core.lanes import Kernels
from llmgym.core.statistics import ratio
from llmgym.envs.pipesd import estimates
from llmgym.envs.pipesd.speculation import next_end
from llmgym.envs.pipesd.state import DONE, RECENT, VERIFY, WAITING, Params, State
from llmgym.envs.pipesd.world import act, advance, left, must_ask, reset

REWARD_S = 0.1
"""A reward of -1 is so many seconds."""
LENGTH = 32.0
"""Tokens are shown in units of so many."""
WAIT_S = 1.0
SPEED_S = 0.25
LATE_S = 0.001
"""What an upload is shown to need at least, so that a busy link never looks free."""
FINEST, COARSEST = 1e-4, 6.0
_RANGE = 1.0 / math.log1p(COARSEST / FINEST)


@kernel
def reset_lane(state: State, params: Params, lane: int, key: np.uint64) -> None:
    """Begin an episode."""
    reset(state, params, lane, key)


@kernel
def step_lane(
    state: State, params: Params, lane: int, action: NDArray[np.float64]
) -> tuple[float, bool, bool, float]:
    """Do what was decided on the drafted token of the client whose turn it is, and run until the next one."""
    episode, config = state.lane[lane], params.config[0]
    clock, waited, energy = episode.clock_s, episode.client_s, episode.energy_j
    chosen, penalty = int(action[0]), 0.0
    if chosen != VERIFY and must_ask(state, params, lane, episode.turn):
        chosen, penalty = VERIFY, config.invalid_cost
        episode.invalid += 1
        episode.penalty += penalty
    act(state, params, lane, episode.turn, chosen)
    advance(state, params, lane)
    spent = config.energy_weight * (episode.energy_j - energy) / config.clients
    reward = -(episode.client_s - waited) / REWARD_S - spent - penalty
    return reward, episode.turn < 0, False, episode.clock_s - clock


@kernel(inline=True)
def _up_to(value: float, high: float) -> float:
    return min(max(value, 0.0), high)


@kernel
def _shown(deficit: float) -> float:
    """-ln P on a scale from 0 (sure) to 1."""
    return math.log1p(min(deficit, COARSEST) / FINEST) * _RANGE


@kernel
def _busy_s(state: State, lane: int, k: int) -> float:
    """How long the uplink will be busy, s, as an edge reckons that has timed earlier uploads but cannot know their speed to come.

    0 where nothing is in line; an upload that takes longer than reckoned is always about to be through.
    """
    link, line, estimate = state.link[lane, k], state.line[lane, k], state.estimate[lane, k]
    now, seconds = state.lane[lane].clock_s, 0.0
    for i in range(link.count):
        batch = line[(link.first + i) % line.shape[0]]
        if batch.end_s <= now:
            continue
        expected = estimate.alpha + estimate.beta * batch.tokens
        if seconds == 0.0:  # on the link; the others wait behind it
            expected = max(batch.start_s + expected - now, LATE_S)
        seconds += expected
    return seconds


@kernel
def observe_lane(state: State, params: Params, lane: int, out: NDArray[np.float32]) -> None:
    """Write the observation: see `layout` in `llmgym.envs.pipesd.nav.env`."""
    episode, config = state.lane[lane], params.config[0]
    k = max(episode.turn, 0)
    c, estimate = state.client[lane, k], state.estimate[lane, k]
    waiting = c.phase == WAITING
    out[0] = c.confidence
    out[1] = c.product
    out[2] = _shown(-math.log(max(c.product, 1e-12)))
    for i in range(RECENT):
        out[3 + i] = _shown(c.recent[i])
    at = 3 + RECENT
    out[at] = _up_to(c.block / LENGTH, 4.0)
    out[at + 1] = _up_to((c.block - c.sent) / LENGTH, 4.0)
    planned = next_end(state.ends[lane, k], estimate.batches, c.sent) - c.block
    out[at + 2] = _up_to(planned / LENGTH, 4.0)
    out[at + 3] = _up_to(_busy_s(state, lane, k) / WAIT_S, 4.0)
    out[at + 4] = 1.0 if waiting else 0.0
    out[at + 5] = _up_to((episode.clock_s - c.asked_s) / WAIT_S, 4.0) if waiting else 0.0
    out[at + 6] = _shown(c.guessed) if waiting else 0.0
    out[at + 7] = _up_to(c.awaited / LENGTH, 4.0) if waiting else 0.0
    out[at + 8] = c.awaited_product if waiting else 0.0
    out[at + 9] = _up_to(estimate.alpha / SPEED_S, 4.0)
    out[at + 10] = _up_to(estimate.beta / SPEED_S, 4.0)
    out[at + 11] = _up_to(estimate.gamma / SPEED_S, 4.0)
    out[at + 12] = (c.accepted + 1.0) / (c.judged + 1.0)
    out[at + 13] = _up_to(estimates.window(estimate) / LENGTH, 4.0)
    out[at + 14] = _up_to(c.last / LENGTH, 4.0)
    out[at + 15] = _up_to(c.last_accepted / LENGTH, 4.0)
    out[at + 16] = c.last_product
    out[at + 17] = _up_to(c.last_s / WAIT_S, 4.0)
    out[at + 18] = min(c.verdicts / 2.0, 1.0)
    out[at + 19] = _up_to(left(state, params, lane, k) / config.tokens, 1.0)
    out[at + 20] = k / config.clients


@kernel
def mask_lane(state: State, params: Params, lane: int, out: NDArray[np.int8]) -> None:
    """Only a verdict can be asked for where the draft is as long as it may be."""
    turn = state.lane[lane].turn
    free = 1
    if turn >= 0 and must_ask(state, params, lane, turn):
        free = 0
    for action in range(out.shape[0]):
        out[action] = free
    out[VERIFY] = 1


@kernel
def metrics_lane(state: State, params: Params, lane: int, out: NDArray[np.float64]) -> None:
    """Write the episode's metrics, in the order of `METRICS`; NaN where there is nothing to take them of, see there."""
    episode, config = state.lane[lane], params.config[0]
    tpt, output, accepted, judged, navs, rollbacks = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    promoted, dropped, wasted, uploads, carried, busy, plans = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    for k in range(config.clients):
        c, link = state.client[lane, k], state.link[lane, k]
        end = c.finish_s if c.phase == DONE else episode.clock_s
        tpt += ratio(end, c.made) / config.clients
        output += c.output
        accepted += c.accepted
        judged += c.judged
        navs += c.verdicts_all
        rollbacks += c.rollbacks
        promoted += c.promoted
        dropped += c.dropped
        wasted += c.wasted
        uploads += c.uploads
        carried += link.queued
        busy += link.busy_s
        plans += state.estimate[lane, k].plans
    clock = episode.clock_s
    out[0] = 1000.0 * tpt
    out[1] = episode.clock_s
    out[2] = episode.client_s
    out[3] = output
    out[4] = accepted
    out[5] = ratio(navs, output)
    out[6] = ratio(judged, navs)
    out[7] = ratio(accepted, navs)
    out[8] = ratio(accepted, judged)
    out[9] = ratio(rollbacks, navs)
    out[10] = episode.energy_j
    out[11] = ratio(100.0 * episode.energy_j, output)
    out[12] = promoted
    out[13] = dropped
    out[14] = uploads
    out[15] = ratio(wasted, carried)
    out[16] = ratio(busy, clock) / config.clients
    out[17] = ratio(episode.cloud_busy_s, clock)
    out[18] = plans
    out[19] = episode.penalty
    out[20] = episode.invalid
    out[21] = episode.checksum


KERNELS = Kernels(reset_lane, step_lane, observe_lane, mask_lane, metrics_lane)
