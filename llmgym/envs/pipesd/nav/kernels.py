"""The compiled functions of PipeSDNav: what a step does, what is seen. See `llmgym.envs.pipesd.nav.env` for what they mean."""

import math

import numpy as np
from numpy.typing import NDArray

from llmgym.core.jit import kernel
from llmgym.core.lanes import Kernels
from llmgym.core.records import Record, shown
from llmgym.core.statistics import ratio
from llmgym.envs.pipesd import estimates
from llmgym.envs.pipesd.speculation import next_end
from llmgym.envs.pipesd.state import DONE, RECENT, VERIFY, WAITING, Metrics, Params, State
from llmgym.envs.pipesd.world import LEAST_CONFIDENCE, act, advance, left, must_ask, reset

REWARD_S = 0.1
"""A reward of -1 is so many seconds."""
LENGTH = 32.0
"""Tokens are shown in units of so many."""
WAIT_S = 1.0
"""Times of the uplink and the cloud are shown in units of so many seconds."""
SPEED_S = 0.25
"""alpha, beta and gamma are shown in units of so many seconds."""
MOST = 4.0
"""Largest value that is shown of a number of tokens or a time, in its unit."""
LATE_S = 0.001
"""What an upload is shown to need at least, so that a busy link never looks free."""
FINEST, COARSEST = 1e-4, 6.0
"""Of -ln P, where the scale on which it is shown begins to be logarithmic, and where it ends."""
_RANGE = 1.0 / math.log1p(COARSEST / FINEST)


class Observation(Record):
    """What the client sees whose turn it is."""

    confidence: float = shown("the draft's probability of its newest token, P(D_n)", unit="probability")
    product: float = shown("product of the confidences of this draft, C_1", unit="probability")
    product_deficit: float = shown(
        "-ln C_1, from 0 (certain) to 1 (6 or more)", unit="log scale", name="product.deficit"
    )
    recent_deficit: NDArray[np.float32] = shown(
        "-ln P of the last tokens, the newest first", unit="log scale", size=RECENT, name="recent.deficit"
    )
    block: float = shown(
        "tokens drafted since the last request (while waiting: ahead)", unit="32 tokens", high=MOST
    )
    unsent: float = shown("drafted tokens that are not yet uploaded", unit="32 tokens", high=MOST)
    plan: float = shown(
        "tokens still to be drafted before the plan of batches uploads; 0: now", unit="32 tokens", high=MOST
    )
    link: float = shown(
        "time until what is in line on the uplink will be through, by alpha and beta; 0: it is free",
        unit="s",
        high=MOST,
    )
    waiting: float = shown("a verdict is awaited: the tokens of this draft are ahead of it", unit="flag")
    waiting_elapsed: float = shown(
        "time since the request whose verdict is awaited", unit="s", high=MOST, name="waiting.elapsed"
    )
    waiting_guess: float = shown(
        "-ln P of the guess of the target's own token", unit="log scale", name="waiting.guess"
    )
    waiting_tokens: float = shown("tokens at the cloud", unit="32 tokens", high=MOST, name="waiting.tokens")
    waiting_product: float = shown(
        "product of the confidences of the tokens at the cloud", unit="probability", name="waiting.product"
    )
    alpha: float = shown("estimated time to start an upload", unit="0.25 s", high=MOST)
    beta: float = shown("estimated time of a token of an upload", unit="0.25 s", high=MOST)
    gamma: float = shown("estimated time to draft a token", unit="0.25 s", high=MOST)
    acceptance: float = shown("accepted share of the tokens judged so far (and one more)", unit="share")
    window: float = shown("mean length of the last drafts, N^", unit="32 tokens", high=MOST)
    last_tokens: float = shown("tokens of the last verdict", unit="32 tokens", high=MOST, name="last.tokens")
    last_accepted: float = shown(
        "accepted tokens of the last verdict", unit="32 tokens", high=MOST, name="last.accepted"
    )
    last_product: float = shown(
        "product of the confidences of the tokens of the last verdict",
        unit="probability",
        name="last.product",
    )
    last_seconds: float = shown(
        "time from the end of the last request's upload to its verdict",
        unit="s",
        high=MOST,
        name="last.seconds",
    )
    verdicts: float = shown("verdicts that came since this client's last turn", unit="2")
    left: float = shown("tokens still to make (waiting: if all are accepted)", unit="episode")
    client: float = shown("number of the client whose turn it is", unit="clients")


@kernel
def step_lane(
    state: State, params: Params, lane: int, action: NDArray[np.float64]
) -> tuple[float, bool, bool, float]:
    """Do what was decided on the drafted token of the client whose turn it is, and run until the next one.

    Args:
        state: arrays of all lanes.
        params: shared by all lanes.
        lane: number of the lane.
        action: float64 [1], CONTINUE, UPLOAD or VERIFY.

    Returns:
        Reward, whether the episode is over, whether it is cut, and the time that passed, seconds.
    """
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
def _in_units(value: float, unit: float) -> float:
    """A number of tokens or a time as it is shown, from 0 to `MOST` units."""
    return min(max(value / unit, 0.0), MOST)


@kernel
def _on_log_scale(deficit: float) -> float:
    """-ln P as it is shown, from 0 (sure) to 1."""
    return math.log1p(min(deficit, COARSEST) / FINEST) * _RANGE


@kernel
def _busy_s(state: State, lane: int, k: int) -> float:
    """How long a client's uplink will be busy, s, as an edge reckons that has timed earlier uploads but not those to come.

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
def observe_lane(
    state: State, params: Params, lane: int, out: Observation, rest: NDArray[np.float32]
) -> None:
    """Write what the client sees whose turn it is, or the first where all are done.

    Args:
        state: arrays of all lanes.
        params: shared by all lanes.
        lane: number of the lane.
        out: the record of the observation, written.
        rest: float32 [0], not used: the record is the whole observation.
    """
    episode, config = state.lane[lane], params.config[0]
    k = max(episode.turn, 0)
    client, estimate = state.client[lane, k], state.estimate[lane, k]
    out.confidence = client.confidence
    out.product = client.product
    out.product_deficit = _on_log_scale(-math.log(max(client.product, LEAST_CONFIDENCE)))
    for i in range(RECENT):
        out.recent_deficit[i] = _on_log_scale(client.recent[i])
    out.block = _in_units(client.block, LENGTH)
    out.unsent = _in_units(client.block - client.sent, LENGTH)
    out.plan = _in_units(next_end(state.ends[lane, k], estimate.batches, client.sent) - client.block, LENGTH)
    out.link = _in_units(_busy_s(state, lane, k), WAIT_S)
    waiting = client.phase == WAITING
    out.waiting = 1.0 if waiting else 0.0
    out.waiting_elapsed = _in_units(episode.clock_s - client.request_s, WAIT_S) if waiting else 0.0
    out.waiting_guess = _on_log_scale(client.guessed) if waiting else 0.0
    out.waiting_tokens = _in_units(client.awaited, LENGTH) if waiting else 0.0
    out.waiting_product = client.awaited_product if waiting else 0.0
    out.alpha = _in_units(estimate.alpha, SPEED_S)
    out.beta = _in_units(estimate.beta, SPEED_S)
    out.gamma = _in_units(estimate.gamma, SPEED_S)
    out.acceptance = (client.accepted + 1.0) / (client.judged + 1.0)
    out.window = _in_units(estimates.window(estimate), LENGTH)
    out.last_tokens = _in_units(client.last, LENGTH)
    out.last_accepted = _in_units(client.last_accepted, LENGTH)
    out.last_product = client.last_product
    out.last_seconds = _in_units(client.last_s, WAIT_S)
    out.verdicts = min(client.verdicts / 2.0, 1.0)
    out.left = min(max(left(state, params, lane, k) / config.tokens, 0.0), 1.0)
    out.client = k / config.clients


@kernel
def mask_lane(state: State, params: Params, lane: int, out: NDArray[np.int8]) -> None:
    """Only a verdict can be asked for where the draft is as long as it may be.

    Args:
        state: arrays of all lanes.
        params: shared by all lanes.
        lane: number of the lane.
        out: int8 [3], written: 1 for what is allowed of CONTINUE, UPLOAD and VERIFY, 0 for the rest.
    """
    turn = state.lane[lane].turn
    free = 1
    if turn >= 0 and must_ask(state, params, lane, turn):
        free = 0
    for action in range(out.shape[0]):
        out[action] = free
    out[VERIFY] = 1


def measure(state: State, params: Params, lane: int, out: Metrics) -> None:
    """Write the episode's metrics; no kernel yet, as each record of metrics needs one of its own.

    Args:
        state: arrays of all lanes.
        params: shared by all lanes.
        lane: number of the lane.
        out: the record of the metrics, written.
    """
    episode, config, clock = state.lane[lane], params.config[0], state.lane[lane].clock_s
    tpt, output, accepted, judged, verdicts, rollbacks = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    promoted, dropped, wasted, uploads, queued, busy, plans = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    for k in range(config.clients):
        client, link = state.client[lane, k], state.link[lane, k]
        end = client.finish_s if client.phase == DONE else clock
        tpt += ratio(end, client.made) / config.clients
        output += client.output
        accepted += client.accepted
        judged += client.judged
        verdicts += client.verdicts_all
        rollbacks += client.rollbacks
        promoted += client.promoted
        dropped += client.dropped
        wasted += client.wasted
        uploads += client.uploads
        queued += link.queued
        busy += link.busy_s
        plans += state.estimate[lane, k].plans
    out.tpt_ms = 1000.0 * tpt
    out.duration_s = clock
    out.client_mean_s = episode.client_s
    out.output_tokens = output
    out.accepted_tokens = accepted
    out.nav_per_token = ratio(verdicts, output)
    out.draft_mean_tokens = ratio(judged, verdicts)
    out.accepted_mean_tokens = ratio(accepted, verdicts)
    out.acceptance = ratio(accepted, judged)
    out.rollback_rate = ratio(rollbacks, verdicts)
    out.energy_j = episode.energy_j
    out.ecs_j_per_100_tokens = ratio(100.0 * episode.energy_j, output)
    out.promoted_tokens = promoted
    out.dropped_tokens = dropped
    out.uploads = uploads
    out.upload_wasted_share = ratio(wasted, queued)
    out.link_utilisation = ratio(busy, clock) / config.clients
    out.cloud_utilisation = ratio(episode.cloud_busy_s, clock)
    out.plans = plans
    out.penalty = episode.penalty
    out.invalid_actions = episode.invalid
    out.world_checksum = episode.checksum


metrics_lane = kernel(measure)

_FIRST = "tpt_ms nav_per_token acceptance ecs_j_per_100_tokens draft_mean_tokens upload_wasted_share"
HEADLINE = {name: Metrics.declared[name].best for name in _FIRST.split()}
KERNELS = Kernels(reset, step_lane, observe_lane, mask_lane, metrics_lane)
