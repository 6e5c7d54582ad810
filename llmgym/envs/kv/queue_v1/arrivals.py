"""Who comes to the queue of KVQueue-v1, and when: requests by themselves, and turns that follow the answers to others."""

import math

import numpy as np

from llmgym.core.jit import kernel
from llmgym.envs.kv.queue.kernels import enter, hold, note
from llmgym.envs.kv.queue_v1.state import Params, State
from llmgym.serving import conversations, prefix
from llmgym.serving.batch_time import batch_time_s, launching_s
from llmgym.serving.engine import empty, end_batch, start
from llmgym.serving.requests import begin, checksum_of
from llmgym.workloads.turns import draw_turns


@kernel
def begin_episode(state: State, params: Params, lane: int, key: np.uint64) -> None:
    """Draw the requests of an episode, and let the first of them wait.

    Args:
        state: arrays of all lanes; the record of the lane is blank.
        params: what they share.
        lane: which one.
        key: of the world.
    """
    episode = state.lane[lane]
    config = params.config[0]
    start(state, params, lane, key)
    episode.batch_estimate_s = config.batch_ref_s
    requests = state.request[lane]
    count = draw_turns(params.traffic, key, config.horizon_s, config.longest, requests)
    for i in range(count):
        request = requests[i]
        begin(request, config.longest)
        request.priority = request.request_class
        episode.weight += params.objectives[request.request_class].weight
    episode.requests = count
    episode.per_request = 1.0 / max(count, 1)
    episode.checksum = checksum_of(requests, count)
    if config.prefix == 1:
        prefix.number_keys(state, params, lane, count)
    conversations.begin(state, params, lane, count)
    if count > 0:
        episode.clock_s = conversations.following_s(state, params, lane)
    episode.seen_s = episode.clock_s
    _arrive(state, params, lane, 0.0)


@kernel
def _arrive(state: State, params: Params, lane: int, dt: float) -> None:
    """Queue everything that has been seen to arrive, and update the estimate of the offered work."""
    episode = state.lane[lane]
    config = params.config[0]
    area = 0
    while conversations.following_s(state, params, lane) <= episode.seen_s:
        area += enter(state, params, lane, conversations.take(state, params, lane))
    if dt > 0.0:
        episode.area_rate += (area - dt * episode.area_rate) / (dt + config.window_s)


@kernel
def run_once(state: State, params: Params, lane: int) -> None:
    """Run the planned batch, or wait where there is none to run, and see who has arrived since.

    Args:
        state: arrays of all lanes.
        params: what they share.
        lane: which one.
    """
    episode = state.lane[lane]
    config = params.config[0]
    population = episode.residents - episode.leaving + episode.waiting
    queued = episode.waiting
    dt = batch_time_s(state, params, lane)
    if dt >= 0.0:
        # the host began to launch the step when it planned it, while the one before ran
        dt = max(dt, episode.seen_s + launching_s(state, params, lane) - episode.clock_s)
        end_batch(state, params, lane, dt)
    if dt <= 0.0:
        dt = hold(state, params, lane, conversations.following_s(state, params, lane))
    else:
        note(state, params, lane, dt)
    episode.in_system_s += population * dt
    episode.waiting_s += queued * dt
    _arrive(state, params, lane, dt)
    following_s = conversations.following_s(state, params, lane)
    if empty(state, lane) and following_s < math.inf:
        # An empty engine waits for the next arrival and sees it at once.
        since_s = episode.clock_s
        episode.clock_s = max(episode.clock_s, min(following_s, config.horizon_s))
        episode.seen_s = episode.clock_s
        _arrive(state, params, lane, episode.clock_s - since_s)
