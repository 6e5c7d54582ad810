"""The compiled functions of OServe: one decision, one minute. See `llmgym.envs.oserve.env` for what they mean."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmgym.core.jit import kernel
from llmgym.core.lanes import Kernels
from llmgym.core.statistics import mean, quantile, ratio
from llmgym.envs.oserve.deployments import headroom, latency
from llmgym.envs.oserve.replicas import advance
from llmgym.envs.oserve.routes import migrate_waiting, send, set_routes, update_forecast
from llmgym.envs.oserve.state import (
    CANDIDATE_FIELDS,
    CONTROL,
    DAY,
    EDIT,
    LATENCY,
    LEAST_WORK,
    LOGIT,
    MENU,
    MOST_PLANNED,
    NO_LOAD,
    P99,
    PLAN,
    ROUTE,
    SCALARS,
    SLOT_FIELDS,
    Params,
    State,
)
from llmgym.envs.oserve.switch import changes, set_up, switch
from llmgym.envs.oserve.world import begin_lane, consider, draw_world


@kernel
def reset_lane(state: State, params: Params, lane: int, key: np.uint64) -> None:
    """Draw the requests of an episode; the first deployment serves nobody yet."""
    episode = state.lane[lane]
    config = params.config[0]
    begin_lane(episode)
    draw_world(state, params, lane, key)
    episode.deployment = config.initial
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
    _remember(state, lane, 0.0)


@kernel
def step_lane(
    state: State, params: Params, lane: int, action: NDArray[np.float64]
) -> tuple[float, bool, bool, float]:
    """Change the deployment or leave it, and let one epoch pass."""
    episode = state.lane[lane]
    config = params.config[0]
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
    changed = _decide(state, params, lane, action)
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
    _remember(state, lane, 1.0 if changed else 0.0)
    return _value(config, episode) - before, terminated, truncated, config.epoch_s


@kernel
def _decide(state: State, params: Params, lane: int, action: NDArray[np.float64]) -> bool:
    """Whether the deployment changes; to which is written to the last row of `replicas`."""
    episode = state.lane[lane]
    config = params.config[0]
    last = params.deployments.shape[0] - 1
    a = int(math.floor(action[0] * (last if config.action == CONTROL else 1) + 0.5))
    if config.action == ROUTE:
        for i in range(state.logit.shape[1]):
            state.logit[lane, i] = LOGIT * action[i]
        return False
    d = a
    if config.action == MENU:
        d = params.menu[a - 1] if a > 0 else -1
    if config.action == EDIT:
        if a == 0:
            return False
        if episode.stopping == 0 and _legal(state, params, lane, a - 1):
            episode.deployment = -1
            return True
    else:
        if d < 0 or (d == episode.deployment and config.action != MENU):
            return False
        if episode.stopping == 0 and d != episode.deployment:
            episode.deployment = d
            consider(state, params, lane, d)
            return True
    if config.action != CONTROL:
        episode.invalid += 1
        episode.penalty += config.invalid_cost
    return False


@kernel
def _edited(state: State, params: Params, lane: int, e: int) -> None:
    """Write the deployment after an edit to the last row of `replicas`."""
    replicas, edit = state.replicas[lane], params.edits[e]
    for s in range(replicas.shape[1]):
        replicas[2, s] = replicas[0, s]
    for i in range(2):
        if edit[i] >= 0:
            replicas[2, edit[i]] -= 1
        if edit[2 + i] >= 0:
            replicas[2, edit[2 + i]] += 1


@kernel
def _legal(state: State, params: Params, lane: int, e: int) -> bool:
    """Whether an edit, which is written to the last row of `replicas`, takes replicas that exist and leaves some for every type."""
    _edited(state, params, lane, e)
    replicas = state.replicas[lane, 2]
    for i in range(2):
        s = params.edits[e, i]
        if s >= 0 and state.replicas[lane, 0, s] - (1 if params.edits[e, 1 - i] == s else 0) < 1:
            return False
    for j in range(params.type_rate.shape[1]):
        found = False
        for s in range(replicas.shape[0]):
            found = found or (replicas[s] > 0 and params.type_rate[s, j] > 0.0)
        if not found:
            return False
    return True


@kernel
def _serve(state: State, params: Params, lane: int, start_s: float, end_s: float) -> None:
    """Hand out what a switch has put out and what arrives in an epoch, and bring all replicas to its end."""
    episode = state.lane[lane]
    config = params.config[0]
    requests = state.request[lane]
    moves = config.dispatch == LEAST_WORK
    again = state.ends[lane, 2]
    while True:
        r, at_s = again, start_s
        if again >= 0:
            again = requests[r].next
        else:
            r = episode.next
            if r >= episode.requests or requests[r].arrival_s >= end_s:
                break
            at_s = requests[r].arrival_s
            episode.next += 1
            episode.open += 1.0
            episode.open_arrival_s += at_s
            state.counts[lane, episode.epoch, params.guess[requests[r].kind]] += 1
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
    """What the epoch adds to sums and to the forecast."""
    episode = state.lane[lane]
    episode.counted_s = episode.done_s + episode.open * end_s - episode.open_arrival_s
    if episode.done > first:
        # reorders the epoch's part, which nobody minds
        episode.p99_s = quantile(state.served[lane, 0, first : episode.done], 0.99)
    episode.p99_sum_s += episode.p99_s
    episode.headroom_sum += episode.headroom
    update_forecast(state, params, lane)


@kernel(inline=True)
def _value(config: Any, episode: Any) -> float:
    """The return so far."""
    if config.reward == LATENCY:
        return -episode.counted_s / (max(episode.requests, 1) * config.latency_ref_s) - episode.penalty
    if config.reward == P99:
        return -episode.p99_sum_s / (config.epochs * config.latency_ref_s) - episode.penalty
    return episode.met / max(episode.requests, 1) - episode.penalty


@kernel
def _give_up(config: Any, episode: Any) -> None:
    """The rest of the episode, charged as if nobody were served any more."""
    left_s = (config.epochs - episode.epoch) * config.epoch_s
    if config.reward == LATENCY:
        waits_s = episode.open * left_s + (episode.requests - episode.next) * 0.5 * left_s
        episode.penalty += waits_s / (max(episode.requests, 1) * config.latency_ref_s)
    elif config.reward == P99:
        longest_s = max(episode.p99_s, config.backlog_s)
        episode.penalty += left_s / config.epoch_s * longest_s / (config.epochs * config.latency_ref_s)


@kernel
def _look(state: State, params: Params, lane: int) -> None:
    """Headroom, GPUs that change and unloaded latency of each candidate, for the forecast."""
    forecast, flow = state.forecast[lane], state.flow[lane]
    episode = state.lane[lane]
    last = params.menu.shape[0] if params.config[0].action == MENU else 0
    for i in range(-1, last):
        if i >= 0:
            consider(state, params, lane, params.menu[i])
        row = 0 if i < 0 else 2
        alpha = headroom(state.replicas[lane, row], forecast, params.type_rate, state.scratch[lane], flow)
        if i < 0:
            episode.headroom = min(alpha, NO_LOAD)
        else:
            candidate = state.candidate[lane, i]
            candidate[0] = min(alpha, NO_LOAD)
            candidate[1] = changes(state, params, lane)
            candidate[2] = latency(flow, params.type_latency_s)


@kernel
def _remember(state: State, lane: int, changed: float) -> None:
    episode = state.lane[lane]
    row = state.history[lane, episode.epoch]
    arrived = 0
    if episode.epoch > 0:
        for j in range(state.counts.shape[2]):
            arrived += state.counts[lane, episode.epoch - 1, j]
    row[0], row[1], row[2], row[3], row[4] = (
        arrived,
        episode.waiting,
        episode.p99_s,
        episode.headroom,
        changed,
    )
    row[5] = episode.deployment


@kernel
def observe_lane(state: State, params: Params, lane: int, out: NDArray[np.float32]) -> None:
    """Write the observation: see `layout` in `llmgym.envs.oserve.env`."""
    episode = state.lane[lane]
    config = params.config[0]
    slots = state.slot[lane]
    now_s = episode.epoch * config.epoch_s
    types, shapes = config.types, params.sizes.shape[0]
    for i in range(out.shape[0]):
        out[i] = 0.0
    waits = math.log1p(float(config.cap))
    out[0] = episode.epoch / config.epochs
    out[1] = min(episode.since / 20.0, 1.0)
    out[2] = min(max(episode.ready_s - now_s, 0.0) / 60.0, 1.0) if episode.stopping == 1 else 0.0
    out[3] = min(episode.headroom / 4.0, 1.0)
    out[4] = min(math.log1p(float(episode.waiting)) / waits, 1.0)
    out[5] = min(episode.running / (256.0 * slots.shape[0]), 1.0)
    out[6] = min(episode.p99_s / config.latency_ref_s / 8.0, 4.0)
    out[7] = min(episode.open / max(config.epoch_s * _sum(params.rate_scale), 1e-9), 4.0)
    if config.drift == DAY:
        # the hour is known to everybody; the phase at which an episode begins is in the first sine and cosine alone
        out[8] = state.clock[lane, 0] * math.cos(_angle(config, episode)) - state.clock[lane, 1] * math.sin(
            _angle(config, episode)
        )
        out[9] = state.clock[lane, 1] * math.cos(_angle(config, episode)) + state.clock[lane, 0] * math.sin(
            _angle(config, episode)
        )
    at = SCALARS
    for j in range(types):
        full = math.log1p(4.0 * params.rate_scale[j] * config.epoch_s)
        for h in range(config.history):
            e = episode.epoch - 1 - h
            if e >= 0:
                out[at + h] = min(math.log1p(float(state.counts[lane, e, j])) / full, 2.0)
        at += config.history
    for j in range(types):
        out[at] = min(state.forecast[lane, j] / params.rate_scale[j], 16.0)
        out[at + types] = min(math.log1p(float(state.waits[lane, j])) / waits, 1.0)
        at += 1
    at += types
    for s in range(shapes):
        out[at + s] = state.replicas[lane, 0, s] * params.sizes[s] / config.gpus
    at += shapes
    if config.action == MENU:
        for i in range(params.menu.shape[0]):
            row = state.candidate[lane, i]
            out[at] = min(row[0] / max(episode.headroom, 1e-9) / 2.0, 2.0)
            out[at + 1] = row[1] / config.gpus
            out[at + 2] = min(row[2] / config.latency_ref_s / 4.0, 4.0)
            at += CANDIDATE_FIELDS
    # replicas, large ones first, then by place on the cluster
    size = config.gpus
    while size >= 1:
        for g in range(0, config.gpus, 1):
            for k in range(slots.shape[0]):
                slot = slots[k]
                if slot.shape >= 0 and slot.gpu == g and slot.gpus == size:
                    s = slot.shape
                    out[at + s] = 1.0
                    f = at + shapes
                    out[f] = min(slot.load / 4.0, 1.0)
                    out[f + 1] = min(math.log1p(float(slot.waiting)) / waits, 1.0)
                    out[f + 2] = min(slot.kv / params.capacity[s], 1.0)
                    out[f + 3] = min(max(slot.work_s, 0.0) / 60.0, 16.0)
                    out[f + 4] = min(max(slot.ready_s - now_s, 0.0) / 60.0, 1.0)
                    at += shapes + SLOT_FIELDS
        size -= 1


@kernel(inline=True)
def _angle(config: Any, episode: Any) -> float:
    return 2.0 * math.pi * episode.epoch / config.period


@kernel
def _sum(values: NDArray[np.float64]) -> float:
    total = 0.0
    for i in range(values.shape[0]):
        total += values[i]
    return total


@kernel
def mask_lane(state: State, params: Params, lane: int, out: NDArray[np.int8]) -> None:
    """Write which actions are allowed."""
    episode = state.lane[lane]
    config = params.config[0]
    stopping = episode.stopping == 1 and episode.ready_s > episode.epoch * config.epoch_s
    for a in range(out.shape[0]):
        allowed = True
        if config.action == MENU:
            allowed = a == 0 or (not stopping and params.menu[a - 1] != episode.deployment)
        elif config.action == PLAN:
            allowed = a == episode.deployment or not stopping
        elif config.action == EDIT:
            allowed = a == 0 or (not stopping and _legal(state, params, lane, a - 1))
        out[a] = 1 if allowed else 0


@kernel(allocates=True)
def metrics_lane(state: State, params: Params, lane: int, out: NDArray[np.float64]) -> None:
    """Write the episode's metrics: `METRICS`; NaN where there is nothing to take them of, see there."""
    episode = state.lane[lane]
    config = params.config[0]
    duration = episode.epoch * config.epoch_s
    e2e = state.served[lane, 0, : episode.done].copy()
    ttft = state.served[lane, 1, : episode.done].copy()
    tpot = state.served[lane, 2, : episode.done].copy()
    several = 0
    for i in range(episode.done):
        if not math.isnan(tpot[i]):
            tpot[several] = tpot[i]
            several += 1
    tpot = tpot[:several]
    busy, kv = episode.busy_gpu_s, episode.kv_share_s
    for k in range(state.slot.shape[1]):
        slot = state.slot[lane, k]
        if slot.shape >= 0:
            busy += slot.gpus * slot.busy_s
            kv += slot.gpus * slot.kv_s
    out[0] = episode.requests
    out[1] = episode.done
    out[2] = episode.waiting
    out[3] = episode.waiting_peak
    out[4] = mean(e2e)
    out[5] = quantile(e2e, 0.5)
    out[6] = quantile(e2e, 0.9)
    out[7] = quantile(e2e, 0.99)
    out[8] = mean(ttft)
    out[9] = quantile(ttft, 0.99)
    out[10] = mean(tpot)
    out[11] = quantile(tpot, 0.99)
    out[12] = ratio(episode.counted_s, episode.requests)
    out[13] = episode.p99_sum_s / config.epochs if episode.done > 0 else math.nan
    out[14] = ratio(episode.done, duration)
    out[15] = ratio(episode.output_tokens, duration)
    out[16] = ratio(episode.met, duration)
    out[17] = ratio(episode.met, episode.requests)
    out[18] = ratio(busy, config.gpus * duration)
    out[19] = ratio(kv, config.gpus * duration)
    out[20] = ratio(episode.headroom_sum, episode.epoch)
    out[21] = episode.switches
    out[22] = episode.changed_gpus
    out[23] = episode.stopped_gpu_s
    out[24] = episode.weights_bytes
    out[25] = episode.kv_bytes
    out[26] = episode.migrated
    out[27] = episode.drained
    out[28] = episode.restarted
    out[29] = episode.rerouted
    out[30] = episode.invalid
    out[31] = episode.penalty
    out[32] = episode.unstable
    out[33] = episode.epoch * config.epoch_s
    out[34] = episode.checksum


KERNELS = Kernels(reset_lane, step_lane, observe_lane, mask_lane, metrics_lane)
