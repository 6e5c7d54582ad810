"""The compiled functions of PipeSDTune: some tokens under one pair of thresholds. See `llmgym.envs.pipesd.tune.env` for what they
mean.
"""

import numpy as np
from numpy.typing import NDArray

from llmgym.core.jit import kernel
from llmgym.core.lanes import Kernels
from llmgym.core.statistics import ratio
from llmgym.envs.pipesd.nav.kernels import LENGTH, REWARD_S, SPEED_S
from llmgym.envs.pipesd.nav.kernels import metrics_lane as world_metrics
from llmgym.envs.pipesd.speculation import next_end, wants_verdict
from llmgym.envs.pipesd.state import CONTINUE, METRICS, UPLOAD, VERIFY, Params, State
from llmgym.envs.pipesd.world import act, advance, must_ask, reset

TUNE_METRICS = (*METRICS, "step_tpt_mean_ms", "steps", "threshold_moves")
_FIRST = len(METRICS)
HELD = 32.0
"""Steps with the same thresholds are shown in units of so many."""


@kernel
def reset_lane(state: State, params: Params, lane: int, key: np.uint64) -> None:
    """Begin an episode."""
    reset(state, params, lane, key)


@kernel
def step_lane(
    state: State, params: Params, lane: int, action: NDArray[np.float64]
) -> tuple[float, bool, bool, float]:
    """Run PipeSD's rule with these thresholds until the clients have made so many tokens."""
    episode, config = state.lane[lane], params.config[0]
    clock, made, navs, judged, accepted = episode.clock_s, 0, 0, 0, 0
    for k in range(config.clients):
        c = state.client[lane, k]
        made -= c.made
        navs -= c.verdicts_all
        judged -= c.judged
        accepted -= c.accepted
    if episode.steps == 0 or action[0] != episode.sequence or action[1] != episode.token:
        if episode.steps > 0:
            episode.moves += 1
        episode.held = 0
    episode.held += 1
    episode.sequence, episode.token = action[0], action[1]
    goal = config.step_tokens * config.clients
    new = 0
    while new < goal:
        turn = episode.turn
        c, estimate = state.client[lane, turn], state.estimate[lane, turn]
        chosen = CONTINUE
        if must_ask(state, params, lane, turn) or wants_verdict(
            c.confidence, c.product, episode.sequence, episode.token
        ):
            chosen = VERIFY
        elif next_end(state.ends[lane, turn], estimate.batches, c.sent) <= c.block:
            chosen = UPLOAD
        act(state, params, lane, turn, chosen)
        advance(state, params, lane)
        new = made
        for k in range(config.clients):
            new += state.client[lane, k].made
    for k in range(config.clients):
        c = state.client[lane, k]
        navs += c.verdicts_all
        judged += c.judged
        accepted += c.accepted
    episode.step_tpt_s = (episode.clock_s - episode.mark_s) * config.clients / new
    episode.mark_s = episode.clock_s
    episode.tpt_sum_s += episode.step_tpt_s
    episode.step_acceptance = accepted / max(judged, 1)
    episode.step_length = judged / max(navs, 1)
    episode.steps += 1
    return -episode.step_tpt_s / REWARD_S, False, episode.steps >= config.steps, episode.clock_s - clock


@kernel
def observe_lane(state: State, params: Params, lane: int, out: NDArray[np.float32]) -> None:
    """Write the observation: see `layout` in `llmgym.envs.pipesd.tune.env`."""
    episode, config, estimate = state.lane[lane], params.config[0], state.estimate[lane, 0]
    out[0] = min(episode.step_tpt_s / SPEED_S, 4.0)
    out[1] = episode.step_acceptance
    out[2] = min(episode.step_length / LENGTH, 4.0)
    out[3] = min(estimate.alpha / SPEED_S, 4.0)
    out[4] = min(estimate.beta / SPEED_S, 4.0)
    out[5] = min(estimate.gamma / SPEED_S, 4.0)
    out[6] = episode.sequence
    out[7] = episode.token
    out[8] = min(episode.held / HELD, 4.0)
    out[9] = episode.steps / config.steps


@kernel
def mask_lane(state: State, params: Params, lane: int, out: NDArray[np.int8]) -> None:
    """Thresholds have no mask."""


@kernel
def metrics_lane(state: State, params: Params, lane: int, out: NDArray[np.float64]) -> None:
    """Write the episode's metrics, in the order of `TUNE_METRICS`."""
    episode = state.lane[lane]
    world_metrics(state, params, lane, out)
    out[_FIRST] = ratio(1000.0 * episode.tpt_sum_s, episode.steps)
    out[_FIRST + 1] = episode.steps
    out[_FIRST + 2] = episode.moves


KERNELS = Kernels(reset_lane, step_lane, observe_lane, mask_lane, metrics_lane)
