"""The compiled functions of PipeSDTune: some tokens under one pair of thresholds.

What they mean is told in `llmgym.envs.pipesd.tune.env`.
"""

import numpy as np
from numpy.typing import NDArray

from llmgym.core.jit import kernel
from llmgym.core.lanes import Kernels
from llmgym.core.records import Record, metric, shown
from llmgym.core.statistics import ratio
from llmgym.envs.pipesd import state as pipesd_state
from llmgym.envs.pipesd.nav.kernels import LENGTH, MOST, REWARD_S, SPEED_S, measure
from llmgym.envs.pipesd.speculation import next_end, wants_verdict
from llmgym.envs.pipesd.state import CONTINUE, UPLOAD, VERIFY, Params, State
from llmgym.envs.pipesd.world import act, advance, must_ask, reset

HELD = 32.0
"""Steps with the same thresholds are shown in units of so many."""


class Observation(Record):
    """What is seen after a step; estimates are those of client 0."""

    tpt: float = shown("time per token of the last step", unit="0.25 s", high=MOST)
    acceptance: float = shown("accepted share of the tokens judged in the last step", unit="share")
    length: float = shown("mean draft judged in the last step", unit="32 tokens", high=MOST)
    alpha: float = shown("estimated time to start an upload", unit="0.25 s", high=MOST)
    beta: float = shown("estimated time of a token of an upload", unit="0.25 s", high=MOST)
    gamma: float = shown("estimated time to draft a token", unit="0.25 s", high=MOST)
    sequence: float = shown("threshold of the product in the last step", unit="R_1")
    token: float = shown("threshold of a confidence in the last step", unit="R_2")
    held: float = shown("steps since the thresholds were changed", unit="32 steps", high=MOST)
    progress: float = shown("steps so far", unit="episode")


class Metrics(pipesd_state.Metrics):
    """What is measured of an episode: that of the world, and of the steps."""

    step_tpt_mean_ms: float = metric(
        "Mean over steps of the time per token, ms; NaN before the first step.", best="min"
    )
    steps: float = metric("Steps.")
    threshold_moves: float = metric("Steps with other thresholds than the step before.", best="min")


@kernel
def step_lane(
    state: State, params: Params, lane: int, action: NDArray[np.float64]
) -> tuple[float, bool, bool, float]:
    """Run PipeSD's rule with these thresholds until the clients have made so many tokens.

    Args:
        state: arrays of all lanes.
        params: shared by all lanes.
        lane: number of the lane.
        action: float64 [2], thresholds R_1 of the product of confidences and R_2 of a confidence, 0 to 1.

    Returns:
        Reward, whether the episode is over, whether it is cut, and the time that passed, seconds.
    """
    episode, config = state.lane[lane], params.config[0]
    clock, made, verdicts, judged, accepted = episode.clock_s, 0, 0, 0, 0
    for k in range(config.clients):
        client = state.client[lane, k]
        made -= client.made
        verdicts -= client.verdicts_all
        judged -= client.judged
        accepted -= client.accepted
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
        client, estimate = state.client[lane, turn], state.estimate[lane, turn]
        chosen = CONTINUE
        if must_ask(state, params, lane, turn) or wants_verdict(
            client.confidence, client.product, episode.sequence, episode.token
        ):
            chosen = VERIFY
        elif next_end(state.ends[lane, turn], estimate.batches, client.sent) <= client.block:
            chosen = UPLOAD
        act(state, params, lane, turn, chosen)
        advance(state, params, lane)
        new = made
        for k in range(config.clients):
            new += state.client[lane, k].made
    for k in range(config.clients):
        client = state.client[lane, k]
        verdicts += client.verdicts_all
        judged += client.judged
        accepted += client.accepted
    episode.step_tpt_s = (episode.clock_s - episode.mark_s) * config.clients / new
    episode.mark_s = episode.clock_s
    episode.tpt_sum_s += episode.step_tpt_s
    episode.step_acceptance = accepted / max(judged, 1)
    episode.step_length = judged / max(verdicts, 1)
    episode.steps += 1
    return -episode.step_tpt_s / REWARD_S, False, episode.steps >= config.steps, episode.clock_s - clock


@kernel
def observe_lane(
    state: State, params: Params, lane: int, out: Observation, rest: NDArray[np.float32]
) -> None:
    """Write what is seen after a step.

    Args:
        state: arrays of all lanes.
        params: shared by all lanes.
        lane: number of the lane.
        out: the record of the observation, written.
        rest: float32 [0], not used: the record is the whole observation.
    """
    episode, config, estimate = state.lane[lane], params.config[0], state.estimate[lane, 0]
    out.tpt = min(episode.step_tpt_s / SPEED_S, MOST)
    out.acceptance = episode.step_acceptance
    out.length = min(episode.step_length / LENGTH, MOST)
    out.alpha = min(estimate.alpha / SPEED_S, MOST)
    out.beta = min(estimate.beta / SPEED_S, MOST)
    out.gamma = min(estimate.gamma / SPEED_S, MOST)
    out.sequence = episode.sequence
    out.token = episode.token
    out.held = min(episode.held / HELD, MOST)
    out.progress = episode.steps / config.steps


world_metrics = kernel(measure)


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
    world_metrics(state, params, lane, out)
    out.step_tpt_mean_ms = ratio(1000.0 * episode.tpt_sum_s, episode.steps)
    out.steps = episode.steps
    out.threshold_moves = episode.moves


_FIRST = "step_tpt_mean_ms tpt_ms nav_per_token acceptance ecs_j_per_100_tokens threshold_moves"
HEADLINE = {name: Metrics.declared[name].best for name in _FIRST.split()}
KERNELS = Kernels.of(reset, step_lane, observe_lane, metrics_lane)
