"""The compiled functions of OServe: one decision, one epoch. See `llmgym.envs.oserve.env` for what they mean."""

import numpy as np
from numpy.typing import NDArray

from llmgym.core.jit import kernel
from llmgym.core.lanes import Kernels
from llmgym.core.statistics import quantile
from llmgym.envs.oserve.actions import MOST_PLANNED, decide, mask_lane
from llmgym.envs.oserve.deployments import headroom, latency
from llmgym.envs.oserve.metrics import metrics_lane
from llmgym.envs.oserve.observation import observe_lane
from llmgym.envs.oserve.replicas import advance, arrive
from llmgym.envs.oserve.routes import migrate_waiting, send, set_routes, update_forecast
from llmgym.envs.oserve.state import (
    CONSIDERED,
    CONTROL,
    LATENCY,
    LEAST_WORK,
    MENU,
    NO_LOAD,
    NOW,
    P99,
    Config,
    Episode,
    Params,
    State,
)
from llmgym.envs.oserve.switch import changes, set_up, switch
from llmgym.envs.oserve.world import consider, draw_world

EMPTY = Episode.blank


@kernel
def reset_lane(state: State, params: Params, lane: int, key: np.uint64) -> None:
    """Start an episode: draw its requests; the first deployment serves nobody yet.

    Args:
        state: arrays of all lanes.
        params: numbers and tables that all lanes share.
        lane: which one.
        key: the world.
    """
    config = params.config[0]
    state.lane[lane] = EMPTY[0]
    draw_world(state, params, lane, key)
    state.lane[lane].deployment = config.initial
    consider(state, params, lane, config.initial)
    set_up(state, params, lane)
    for j in range(config.types):
        state.waits[lane, j] = 0
        # what a load test with the mean mix would say
        state.forecast[lane, j] = params.rate_scale[j]
        for e in range(config.epochs):
            state.counts[lane, e, j] = 0
    for i in range(state.logit.shape[1]):
        state.logit[lane, i] = 0.0
    _look(state, params, lane)


@kernel
def step_lane(
    state: State, params: Params, lane: int, action: NDArray[np.float64]
) -> tuple[float, bool, bool, float]:
    """Change the deployment or leave it, and let one epoch pass.

    Args:
        state: arrays of all lanes.
        params: numbers and tables that all lanes share.
        lane: which one.
        action: float64, an element of the action space.

    Returns:
        Reward, terminated, truncated, and the seconds that have passed.
    """
    episode, config = state.lane[lane], params.config[0]
    before = _value(config, episode)
    start_s = episode.epoch * config.epoch_s
    end_s = start_s + config.epoch_s
    if episode.stopping == 1 and episode.ready_s <= start_s:
        episode.stopping, episode.flying_bytes = 0, 0.0
    for j in range(config.types):
        state.plan[lane, j] = state.forecast[lane, j]
        if config.action == CONTROL:
            state.plan[lane, j] = action[1 + j] * MOST_PLANNED * params.rate_scale[j]
    state.ends[lane, 2] = -1
    episode.since += 1
    first = episode.done
    changed = decide(state, params, lane, action)
    if changed:
        switch(state, params, lane, start_s)
    set_routes(state, params, lane, start_s)
    _serve(state, params, lane, start_s, end_s)
    episode.epoch += 1
    _count_up(state, params, lane, first, end_s)
    terminated = episode.waiting > config.cap
    truncated = not terminated and episode.epoch >= config.epochs
    if terminated:
        episode.unstable = 1
        _give_up(config, episode)
    _look(state, params, lane)
    past = state.history[lane, episode.epoch - 1]
    past.waiting, past.p99_s, past.switched = episode.waiting, episode.p99_s, 1.0 if changed else 0.0
    return _value(config, episode) - before, terminated, truncated, config.epoch_s


@kernel
def _serve(state: State, params: Params, lane: int, start_s: float, end_s: float) -> None:
    """Hand out what a switch has put out and what arrives in an epoch, and bring all replicas to its end."""
    episode, config = state.lane[lane], params.config[0]
    requests = state.request[lane]
    moves = config.dispatch == LEAST_WORK
    again = state.ends[lane, 2]
    while True:
        r, at_s = again, start_s
        if again >= 0:
            again = requests[r].next
        else:
            number = episode.next
            if number >= episode.requests or state.arrival_s[lane, number] >= end_s:
                break
            at_s = state.arrival_s[lane, number]
            r = arrive(state, lane, number)
            episode.next += 1
            episode.open += 1.0
            episode.open_arrival_s += at_s
            state.counts[lane, episode.epoch, params.guess[requests[r].request_class]] += 1
        if episode.stopping == 1 and at_s >= episode.ready_s:
            episode.stopping, episode.flying_bytes = 0, 0.0
        if moves:
            migrate_waiting(state, params, lane, at_s)
        send(state, params, lane, r, at_s)
        episode.waiting_peak = max(episode.waiting_peak, episode.waiting)
    if moves:
        migrate_waiting(state, params, lane, end_s)
    for k in range(state.slot.shape[1]):
        if state.slot[lane, k].shape >= 0:
            advance(state, params, lane, k, end_s)
    if episode.stopping == 1 and episode.ready_s <= end_s:
        episode.stopping, episode.flying_bytes = 0, 0.0


@kernel
def _count_up(state: State, params: Params, lane: int, first: int, end_s: float) -> None:
    """Add an epoch, in which the completions from number `first` on took place, to the sums and to the forecast."""
    episode = state.lane[lane]
    episode.counted_s = episode.done_s + episode.open * end_s - episode.open_arrival_s
    if episode.done > first:
        # reorders the epoch's part, which nobody minds
        episode.p99_s = quantile(state.served[lane, 0, first : episode.done], 0.99)
        for i in range(first, episode.done):
            episode.e2e_sum_s += state.served[lane, 0, i]
    episode.p99_sum_s += episode.p99_s
    episode.headroom_sum += episode.headroom
    update_forecast(state, params, lane)


@kernel(inline=True)
def _value(config: Config, episode: Episode) -> float:
    """The return so far."""
    if config.reward == LATENCY:
        return -episode.counted_s / (max(episode.requests, 1) * config.latency_ref_s) - episode.penalty
    if config.reward == P99:
        return -episode.p99_sum_s / (config.epochs * config.latency_ref_s) - episode.penalty
    return episode.met / max(episode.requests, 1) - episode.penalty


@kernel
def _give_up(config: Config, episode: Episode) -> None:
    """Charge the rest of the episode as if nobody were served any more."""
    left_s = (config.epochs - episode.epoch) * config.epoch_s
    if config.reward == LATENCY:
        waits_s = episode.open * left_s + (episode.requests - episode.next) * 0.5 * left_s
        episode.penalty += waits_s / (max(episode.requests, 1) * config.latency_ref_s)
    elif config.reward == P99:
        longest_s = max(episode.p99_s, config.backlog_s)
        episode.penalty += left_s / config.epoch_s * longest_s / (config.epochs * config.latency_ref_s)


@kernel
def _look(state: State, params: Params, lane: int) -> None:
    """Work out the headroom of the deployment for the forecast, and what the observation tells of each candidate."""
    episode = state.lane[lane]
    forecast, flow, scratch = state.forecast[lane], state.flow[lane], state.scratch[lane]
    last = params.menu.shape[0] if params.config[0].action == MENU else 0
    for i in range(-1, last):
        if i >= 0:
            consider(state, params, lane, params.menu[i])
        row = NOW if i < 0 else CONSIDERED
        alpha = headroom(state.replicas[lane, row], forecast, params.type_rate, scratch, flow)
        if i < 0:
            episode.headroom = min(alpha, NO_LOAD)
        else:
            candidate = state.candidate[lane, i]
            candidate.headroom = min(alpha, NO_LOAD)
            candidate.changed_gpus = changes(state, params, lane)
            candidate.latency_s = latency(flow, params.type_latency_s)


KERNELS = Kernels(reset_lane, step_lane, observe_lane, mask_lane, metrics_lane)
