"""How an epoch of KVProvision passes: as a fluid in closed form, or with an engine for every replica.

The engine functions index their arrays by one number; here it is `lane * G + g` for replica g of a lane, into a NamedTuple
`Engines` of its own. A replica's requests are numbered by slot; when an epoch ends, the slots of completed requests are
closed up, so that a replica needs room for the requests in the system and not for all of an episode.
"""

import math
from typing import Any

from llmgym.core.jit import kernel
from llmgym.envs.kv.provision.state import (
    AREA,
    BATCHES,
    BUSY,
    DRAINING,
    OFF,
    ON,
    REQUESTS,
    STARTING,
    TOKENS,
    WORK_S,
    Engines,
    Params,
    State,
)
from llmgym.serving import queue
from llmgym.serving.admission import admit_by_rule, compose
from llmgym.serving.engine import empty, held_up_s, plan, run_batch
from llmgym.serving.requests import remaining_area, time_per_token
from llmgym.serving.residents import wait


@kernel
def flow(state: State, params: Params, lane: int, start_s: float, end_s: float) -> None:
    """An epoch of the fluid, in closed form.

    Work is counted in seconds of a saturated replica (area times batch duration over M). With an inflow of w(in) and G
    replicas on for T seconds, `max(0, w + w(in) - G T)` of it is left; requests, area and tokens leave in the proportion
    in which they are there. The line of waiting requests is straight, or falls to zero after w / (G - w(in) / T) seconds.
    """
    episode = state.lane[lane]
    config = params.config[0]
    stock = state.fluid[lane]
    epoch_s = config.epoch_s
    waiting, backlog_s = stock[REQUESTS], stock[WORK_S]
    parcels = 0
    while episode.arrived < episode.requests and state.request[lane, episode.arrived].arrival_s < end_s:
        kind = state.request[lane, episode.arrived].kind
        for i in range(stock.shape[0]):
            stock[i] += config.parcel * params.work[kind, i]
        episode.arrived += 1
        parcels += 1
    episode.next = episode.arrived
    episode.arrivals += parcels * config.parcel
    episode.rate = parcels * config.parcel / epoch_s
    capacity_s = episode.on * epoch_s
    total_s = stock[WORK_S]
    share = 1.0
    if total_s > capacity_s:
        share = capacity_s / total_s
    completed, area, tokens, batches = stock[REQUESTS], stock[AREA], stock[TOKENS], stock[BATCHES]
    for i in range(stock.shape[0]):
        stock[i] *= 1.0 - share
    if share < 1.0:
        episode.waiting_s += 0.5 * (waiting + stock[REQUESTS]) * epoch_s
    elif backlog_s > 0.0:
        episode.waiting_s += 0.5 * waiting * backlog_s / (episode.on - (total_s - backlog_s) / epoch_s)
    episode.waiting = stock[REQUESTS]
    episode.completed += share * completed
    episode.used_s += share * total_s
    load = share * total_s / capacity_s if capacity_s > 0.0 else 0.0
    episode.kv_mean, episode.kv_max = load, load
    _learn(config, episode, share * completed, share * area, share * tokens)
    if load > BUSY:
        _learn_batch(config, episode, share * batches, share * total_s)
    for g in range(config.replicas):
        r = state.engine.lane[lane * config.replicas + g]
        if r.mode == DRAINING:
            episode.gpu_s += min(max(r.drained_s - start_s, 0.0), epoch_s)
            if r.drained_s <= end_s:
                r.mode = OFF
                episode.draining -= 1
        elif r.mode != OFF:
            episode.gpu_s += epoch_s


@kernel
def _learn(config: Any, episode: Any, completed: float, area: float, tokens: float) -> None:
    """Update the mean area and tokens of a request from those that completed in this epoch."""
    if completed > 0.0:
        weight = 1.0 - math.exp(-completed / config.window)
        episode.area += weight * (area / completed - episode.area)
        episode.tokens += weight * (tokens / completed - episode.tokens)


@kernel
def _learn_batch(config: Any, episode: Any, batches: float, seconds: float) -> None:
    """Update the mean duration of a batch near saturation."""
    if batches > 0.0:
        episode.batch_s += (1.0 - math.exp(-batches / config.window)) * (seconds / batches - episode.batch_s)


@kernel
def serve(state: State, params: Params, lane: int, start_s: float, end_s: float) -> None:
    """An epoch of engines: hand out its requests, let every replica run, look at what completed."""
    episode = state.lane[lane]
    config = params.config[0]
    base = lane * config.replicas
    arrived = _hand_out(state, params, lane, start_s, end_s)
    episode.arrivals += arrived
    episode.rate = arrived / config.epoch_s
    episode.waiting = episode.door
    episode.kv_mean, episode.kv_max = 0.0, 0.0
    serving = 0
    before = episode.served
    area, tokens, batches, batches_s = 0.0, 0.0, 0, 0.0
    for g in range(config.replicas):
        r = state.engine.lane[base + g]
        if r.mode == OFF:
            continue
        episode.gpu_s += config.epoch_s
        if r.mode == STARTING:
            continue
        r.waiting_s, r.kv_before_s, r.busy_batches, r.busy_batches_s = 0.0, r.kv_s, 0, 0.0
        output_before = r.decoded
        _run_replica(state.engine, params, base + g, start_s, end_s)
        done_area, done_tokens = _close_up(state, params, lane, base + g)
        area += done_area
        tokens += done_tokens
        batches += r.busy_batches
        batches_s += r.busy_batches_s
        episode.waiting_s += r.waiting_s
        episode.waiting += r.waiting
        episode.output_tokens += r.decoded - output_before
        used_s = (r.kv_s - r.kv_before_s) / config.kv_capacity
        episode.used_s += used_s
        if r.mode == DRAINING:
            if r.residents + r.waiting == 0 and r.clock_s < end_s:
                episode.gpu_s -= min(end_s - r.clock_s, config.epoch_s)
                r.mode = OFF
                episode.draining -= 1
        else:
            serving += 1
            episode.kv_mean += used_s / config.epoch_s
            episode.kv_max = max(episode.kv_max, used_s / config.epoch_s)
    episode.kv_mean /= max(serving, 1)
    episode.completed = episode.served
    _learn(config, episode, float(episode.served - before), area, tokens)
    _learn_batch(config, episode, float(batches), batches_s)
    episode.met = 0
    for g in range(config.replicas):
        episode.met += state.engine.lane[base + g].met


@kernel
def _hand_out(state: State, params: Params, lane: int, start_s: float, end_s: float) -> int:
    """Give the requests of the epoch to the replicas that are on, in turn; returns how many arrived.

    Where none is on (or the next one in turn has no slot left) they wait at the door until the next epoch.
    """
    episode = state.lane[lane]
    config = params.config[0]
    engines = state.engine
    requests = state.request[lane]
    base = lane * config.replicas
    came = 0
    while episode.arrived < episode.requests and state.request[lane, episode.arrived].arrival_s < end_s:
        if requests[episode.arrived].prompt >= config.longest:
            requests[episode.arrived].prompt = 0
            episode.rejected += 1
        else:
            episode.door += 1
        episode.arrived += 1
        came += 1
    while episode.next < episode.arrived and episode.on > 0:
        request = episode.next
        if requests[request].prompt > 0:
            turn = (episode.turn + 1) % config.replicas
            while engines.lane[base + turn].mode != ON:
                turn = (turn + 1) % config.replicas
            e = base + turn
            slot = engines.lane[e].filled
            if slot == engines.request.shape[1]:
                break
            episode.turn = turn
            episode.door -= 1
            engines.lane[e].filled = slot + 1
            engines.request[e, slot] = requests[request]
        episode.next += 1
    for request in range(episode.next, episode.arrived):
        if requests[request].prompt > 0:
            episode.waiting_s += end_s - max(requests[request].arrival_s, start_s)
    return came


@kernel
def _run_replica(engine: Engines, params: Params, e: int, start_s: float, end_s: float) -> None:
    """Run batches until the epoch is over; the last one may end after it, and the next epoch begins there."""
    r = engine.lane[e]
    config = params.config[0]
    rule = params.rules[0]
    requests = engine.request[e]
    while True:
        while r.next < r.filled and requests[r.next].arrival_s <= r.clock_s:
            # what it waited at the door in earlier epochs was counted there
            r.waiting_s += r.clock_s - max(requests[r.next].arrival_s, start_s)
            wait(engine, params, e, r.next)
            r.next += 1
        if r.clock_s >= end_s:
            break
        if empty(engine, e):
            if r.next < r.filled:
                r.clock_s = requests[r.next].arrival_s
                continue
            if r.mode == DRAINING:
                r.clock_s = max(r.clock_s, start_s)
                break
            r.clock_s = end_s
            break
        plan(engine, params, e)
        admit_by_rule(engine, params, e, 0, rule.watermark)
        if rule.batch != 0:
            compose(engine, params, e, rule.batch)
        queued = r.waiting
        dt = run_batch(engine, params, e)
        if dt == 0.0:
            following_s = requests[r.next].arrival_s if r.next < r.filled else math.inf
            dt = held_up_s(engine, e, following_s, config.idle_s)
            r.clock_s += dt
        elif r.batch_used > BUSY * config.kv_capacity:
            r.busy_batches += 1
            r.busy_batches_s += dt
        r.waiting_s += queued * dt


@kernel
def _close_up(state: State, params: Params, lane: int, e: int) -> tuple[float, float]:
    """Take completed requests out of a replica's slots; returns their tokens x batches and their tokens.

    The others keep their order, which is all the queue needs.
    """
    episode = state.lane[lane]
    config = params.config[0]
    engine = state.engine
    r = engine.lane[e]
    requests, moved = engine.request[e], engine.moved[e]
    area, total = 0.0, 0.0
    keep = 0
    for i in range(r.filled):
        asked = requests[i]
        if asked.e2e_s >= 0.0:
            area += remaining_area(config, asked.prompt, 0, 0, 0, 0, asked.output)
            total += asked.prompt + asked.output
            state.served[lane, 0, episode.served] = asked.ttft_s
            state.served[lane, 1, episode.served] = asked.e2e_s
            state.served[lane, 2, episode.served] = time_per_token(asked.ttft_s, asked.e2e_s, asked.output)
            episode.served += 1
            continue
        moved[i] = keep
        if keep < i:
            requests[keep] = asked
        keep += 1
    for i in range(r.residents):
        engine.resident[e, i].request = moved[engine.resident[e, i].request]
    for row in range(params.orders.shape[0]):
        line = engine.queue[e, row]
        head, tail = line[queue.HEAD], line[queue.TAIL]
        for k in range(head, tail):
            line[queue.FIRST + k - head] = moved[line[queue.FIRST + k]]
        line[queue.HEAD], line[queue.TAIL] = 0, tail - head
    r.filled = keep
    r.next = keep
    return area, total
