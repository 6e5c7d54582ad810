"""Turns of conversations: how often they come, what they are compared with, how they end, and the pause until the next one."""

import math

import numpy as np

from llmgym.core.jit import kernel
from llmgym.core.rng import normal, substream
from llmgym.envs.ppd.cells import cell_of
from llmgym.envs.ppd.costs import prefill_s
from llmgym.envs.ppd.queues import push
from llmgym.envs.ppd.state import FAILED, OVER, THINK, Config, Episode, Params, State, turn_number
from llmgym.profiles.cost import step_time_s

RATIO_LIMIT = 5.0
"""A turn gains or loses at most so many times what it is compared with."""
_PAUSE_STREAM = 2


@kernel
def decayed(total: float, at_s: float, clock_s: float, window_s: float) -> float:
    """What a count of events that is forgotten exponentially has come down to.

    Args:
        total: the count as it was at `at_s`.
        at_s: time of the count, seconds.
        clock_s: time now, seconds.
        window_s: time constant of forgetting, seconds.

    Returns:
        The count at `clock_s`.
    """
    return total * math.exp((at_s - clock_s) / window_s)


@kernel
def recent_rps(total: float, at_s: float, clock_s: float, window_s: float) -> float:
    """Events a second of late, from a count that is forgotten exponentially; early in an episode over the time there has been.

    Args:
        total: the count as it was at `at_s`.
        at_s: time of the count, seconds.
        clock_s: time now, seconds.
        window_s: time constant of forgetting, seconds.

    Returns:
        Events a second.
    """
    seen = 1.0 - math.exp(-max(clock_s, 1.0) / window_s)
    return decayed(total, at_s, clock_s, window_s) / (window_s * seen)


@kernel
def rate_rps(config: Config, episode: Episode) -> float:
    """Estimate of requests a second: a moving average, or all requests over all time."""
    if config.average_rate == 1:
        return episode.sent / max(episode.clock_s, 1.0)
    return recent_rps(episode.rate_sum, episode.rate_at_s, episode.clock_s, config.rate_window_s)


@kernel(inline=True)
def refer(state: State, params: Params, lane: int, c: int) -> None:
    """Note what the reward compares a turn with: the table where it has an answer, else the way over P in an empty cluster.

    Args:
        state: arrays of all lanes.
        params: shared by all lanes.
        lane: number of the lane.
        c: number of the conversation; `ttft_ref_s` and `tpot_ref_s` (seconds) are written.
    """
    config = params.config[0]
    conversation = state.conversation[lane, c]
    context, turn_type = cell_of(conversation.context, conversation.prompt, conversation.output)
    conversation.ttft_ref_s = params.reference[0, context, turn_type]
    conversation.tpot_ref_s = params.reference[1, context, turn_type]
    if conversation.ttft_ref_s > 0.0:
        return
    tokens = conversation.context + conversation.prompt
    new = conversation.prompt + conversation.previous
    step_s = config.step_s
    decode_s = config.step_s + config.sequence_s + config.context_token_s * tokens
    if config.profiled == 1:
        step_s = step_time_s(params.cost, 1, 0.0, 0, 0, 1, tokens)
        decode_s = step_time_s(params.cost, 0, 0.0, 1, tokens, 1, tokens)
    link = state.link[lane, conversation.d]
    ttft = config.handoff_s + prefill_s(config, params, new, tokens - new) + config.remote_s
    ttft += config.remote_token_s * tokens + step_s
    conversation.ttft_ref_s = ttft + link.setup_s + tokens * config.kv_bytes * link.seconds_per_byte
    conversation.tpot_ref_s = decode_s


@kernel(inline=True)
def fail(state: State, lane: int, c: int) -> None:
    """A request has timed out, which ends its conversation.

    Args:
        state: arrays of all lanes.
        lane: number of the lane.
        c: number of the conversation.
    """
    episode = state.lane[lane]
    conversation = state.conversation[lane, c]
    conversation.stage = FAILED
    episode.failed += 1
    episode.open -= 1
    if conversation.turn > 0:
        episode.later_failed += 1


@kernel(inline=True)
def complete(state: State, params: Params, lane: int, c: int) -> None:
    """A request completes: note its times, and what the reward makes of them.

    Args:
        state: arrays of all lanes.
        params: shared by all lanes.
        lane: number of the lane.
        c: number of the conversation.
    """
    config = params.config[0]
    episode = state.lane[lane]
    conversation = state.conversation[lane, c]
    request = state.request[lane, turn_number(conversation, c)]
    ttft = conversation.first_s - conversation.request_s
    e2e = episode.clock_s - conversation.request_s
    request.ttft_s = ttft
    request.e2e_s = e2e
    episode.done += 1
    episode.output_tokens += conversation.output
    if conversation.turn > 0:
        episode.later_done += 1
        tpot = 0.0
        if conversation.output > 1:
            tpot = (e2e - ttft) / (conversation.output - 1)
            episode.tpot_loss += min(tpot / conversation.tpot_ref_s - 1.0, RATIO_LIMIT)
        episode.ttft_gain += max(1.0 - ttft / conversation.ttft_ref_s, -RATIO_LIMIT)
        episode.later_ttft_s += ttft
        episode.later_tpot_s += tpot
        slow_first, slow_rest = ttft > config.ttft_slo_s, tpot > config.tpot_slo_s
        episode.ttft_missed += slow_first
        episode.tpot_missed += slow_rest
        if not slow_first and not slow_rest:
            episode.met += 1
    conversation.context += conversation.prompt + conversation.output
    conversation.previous = conversation.output
    conversation.turn += 1
    conversation.stage = OVER
    if conversation.turn == conversation.turns:
        episode.open -= 1


@kernel
def pause_s(key: np.uint64, config: Config, c: int, turn: int) -> float:
    """Lognormal pause before a turn; `think_s` is its median.

    Args:
        key: of the episode.
        config: of the cluster.
        c: number of the conversation.
        turn: number of the turn in it, from 0.

    Returns:
        Seconds.
    """
    z = normal(substream(substream(key, _PAUSE_STREAM), c), turn)
    return config.think_s * math.exp(config.think_sigma * z)


@kernel(inline=True)
def think(state: State, params: Params, lane: int, c: int) -> None:
    """The user reads the answer; then the next turn comes.

    Args:
        state: arrays of all lanes.
        params: shared by all lanes.
        lane: number of the lane.
        c: number of the conversation.
    """
    config = params.config[0]
    episode = state.lane[lane]
    conversation = state.conversation[lane, c]
    conversation.stage = THINK
    conversation.at_s = episode.clock_s
    if config.think_s > 0.0:
        conversation.at_s += pause_s(episode.key, config, c, conversation.turn)
    push(state, lane, c)
