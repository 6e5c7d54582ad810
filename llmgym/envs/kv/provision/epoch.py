"""How an epoch of KVProvision passes: as a fluid in closed form, or with an engine for every replica.

The engine functions index their arrays by one number; here it is `lane * G + g` for replica g of a lane, into a NamedTuple
`Engines` of its own. A replica's requests are numbered by slot; when an epoch ends, the slots of completed requests are
closed up, so that a replica needs room for the requests in the system and not for all of an episode.
"""

import math

import numpy as np

from llmgym.core.jit import kernel
from llmgym.envs.kv.provision.state import (
    AREA,
    BATCHES,
    DRAINING,
    E2E_S,
    OFF,
    ON,
    REQUESTS,
    STARTING,
    TOKENS,
    TPOT_S,
    TTFT_S,
    WORK_S,
    Config,
    Engines,
    Episode,
    Params,
    State,
)
from llmgym.serving import queue
from llmgym.serving.admission import admit_by_rule, compose
from llmgym.serving.engine import empty, held_up_s, plan, run_batch
from llmgym.serving.requests import remaining_area, time_per_token
from llmgym.serving.residents import wait
from llmgym.serving.rules import AS_ADMITTED
from llmgym.serving.state import Request
from llmgym.workloads.traffic import Drawn

BUSY = 0.8
"""The duration of a batch is measured in batches that use more than this share of the cache: near saturation."""


@kernel
def flow(state: State, params: Params, lane: int, start_s: float, end_s: float) -> None:
    """Let an epoch of the fluid pass, in closed form.

    Work is counted in seconds of a saturated replica (area times batch duration over M). With an inflow of w(in) and G
    replicas on for T seconds, `max(0, w + w(in) - G T)` of it is left; requests, area and tokens leave in the proportion
    in which they are there. The line of waiting requests is straight, or falls to zero after w / (G - w(in) / T) seconds.

    Args:
        state: arrays of all lanes.
        params: what all lanes share.
        lane: which one.
        start_s: begin of the epoch, s.
        end_s: its end, s.
    """
    episode = state.lane[lane]
    config = params.config[0]
    stock = state.fluid[lane]
    epoch_s = config.epoch_s
    waiting, backlog_s = stock[REQUESTS], stock[WORK_S]
    parcels = 0
    while episode.arrived < episode.requests and state.request[lane, episode.arrived].arrival_s < end_s:
        request_class = state.request[lane, episode.arrived].request_class
        for i in range(stock.shape[0]):
            stock[i] += config.parcel * params.work[request_class, i]
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
        replica = state.engine.lane[lane * config.replicas + g]
        if replica.mode == DRAINING:
            episode.gpu_s += min(max(replica.drained_s - start_s, 0.0), epoch_s)
            if replica.drained_s <= end_s:
                replica.mode = OFF
                episode.draining -= 1
        elif replica.mode != OFF:
            episode.gpu_s += epoch_s


@kernel
def _learn(config: Config, episode: Episode, completed: float, area: float, tokens: float) -> None:
    """Update the mean area and tokens of a request from those that completed in this epoch."""
    if completed > 0.0:
        weight = 1.0 - math.exp(-completed / config.window)
        episode.area += weight * (area / completed - episode.area)
        episode.tokens += weight * (tokens / completed - episode.tokens)


@kernel
def _learn_batch(config: Config, episode: Episode, batches: float, seconds: float) -> None:
    """Update the mean duration of a batch near saturation."""
    if batches > 0.0:
        episode.batch_s += (1.0 - math.exp(-batches / config.window)) * (seconds / batches - episode.batch_s)


@kernel
def serve(state: State, params: Params, lane: int, start_s: float, end_s: float) -> None:
    """Let an epoch of engines pass: hand out its requests, let every replica run, look at what completed.

    Args:
        state: arrays of all lanes.
        params: what all lanes share.
        lane: which one.
        start_s: begin of the epoch, s.
        end_s: its end, s.
    """
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
        replica = state.engine.lane[base + g]
        if replica.mode == OFF:
            continue
        episode.gpu_s += config.epoch_s
        if replica.mode == STARTING:
            continue
        replica.waiting_s, replica.kv_before_s, replica.busy_batches, replica.busy_batches_s = (
            0.0,
            replica.kv_s,
            0,
            0.0,
        )
        output_before = replica.decoded
        _run_replica(state.engine, params, base + g, start_s, end_s)
        done_area, done_tokens = _close_up(state, params, lane, base + g)
        area += done_area
        tokens += done_tokens
        batches += replica.busy_batches
        batches_s += replica.busy_batches_s
        episode.waiting_s += replica.waiting_s
        episode.waiting += replica.waiting
        episode.output_tokens += replica.decoded - output_before
        used_s = (replica.kv_s - replica.kv_before_s) / config.kv_capacity
        episode.used_s += used_s
        if replica.mode == DRAINING:
            if replica.residents + replica.waiting == 0 and replica.clock_s < end_s:
                episode.gpu_s -= min(end_s - replica.clock_s, config.epoch_s)
                replica.mode = OFF
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
            _take(engines.request[e, slot], requests[request])
        episode.next += 1
    for request in range(episode.next, episode.arrived):
        if requests[request].prompt > 0:
            episode.waiting_s += end_s - max(requests[request].arrival_s, start_s)
    return came


@kernel(inline=True)
def _take(slot: Request, drawn: Drawn) -> None:
    """Put a request as it was drawn into a slot."""
    slot.arrival_s, slot.prompt, slot.output = drawn.arrival_s, drawn.prompt, drawn.output
    slot.predicted, slot.request_class = drawn.predicted, drawn.request_class
    slot.area, slot.kept, slot.hosted = 0, 0, 0
    slot.ttft_s, slot.e2e_s = -1.0, -1.0


@kernel
def _run_replica(engine: Engines, params: Params, e: int, start_s: float, end_s: float) -> None:
    """Run batches until the epoch is over; the last one may end after it, and the next epoch begins there."""
    replica = engine.lane[e]
    config = params.config[0]
    rule = params.rules[0]
    requests = engine.request[e]
    while True:
        while replica.next < replica.filled and requests[replica.next].arrival_s <= replica.clock_s:
            # what it waited at the door in earlier epochs was counted there
            replica.waiting_s += replica.clock_s - max(requests[replica.next].arrival_s, start_s)
            wait(engine, params, e, replica.next)
            replica.next += 1
        if replica.clock_s >= end_s:
            break
        if empty(engine, e):
            if replica.next < replica.filled:
                replica.clock_s = requests[replica.next].arrival_s
                continue
            if replica.mode == DRAINING:
                replica.clock_s = max(replica.clock_s, start_s)
                break
            replica.clock_s = end_s
            break
        plan(engine, params, e)
        if replica.waiting > 0:
            admit_by_rule(engine, params, e, 0, rule.watermark)
        if rule.batch != AS_ADMITTED:
            compose(engine, params, e, rule.batch)
        queued = replica.waiting
        dt = run_batch(engine, params, e)
        if dt == 0.0:
            following_s = requests[replica.next].arrival_s if replica.next < replica.filled else math.inf
            dt = held_up_s(engine, params, e, following_s, config.idle_s)
            replica.clock_s += dt
        elif replica.batch_used > BUSY * config.kv_capacity:
            replica.busy_batches += 1
            replica.busy_batches_s += dt
        replica.waiting_s += queued * dt


@kernel
def _close_up(state: State, params: Params, lane: int, e: int) -> tuple[float, float]:
    """Take completed requests out of a replica's slots; returns their tokens x batches and their tokens.

    The others keep their order, which is all the queue needs.
    """
    episode = state.lane[lane]
    config = params.config[0]
    engine = state.engine
    replica = engine.lane[e]
    requests, moved = engine.request[e], engine.moved[e]
    area, total = 0.0, 0.0
    keep = 0
    for i in range(replica.filled):
        request = requests[i]
        if request.e2e_s >= 0.0:
            area += remaining_area(config, request.prompt, 0, 0, 0, 0, request.output)
            total += request.prompt + request.output
            state.served[lane, TTFT_S, episode.served] = request.ttft_s
            state.served[lane, E2E_S, episode.served] = request.e2e_s
            episode.ttft_sum_s += request.ttft_s
            episode.e2e_sum_s += request.e2e_s
            episode.served += 1
            if request.output > 1:
                tpot_s = np.float32(time_per_token(request.ttft_s, request.e2e_s, request.output))
                state.served[lane, TPOT_S, episode.paced] = tpot_s
                episode.tpot_sum_s += float(tpot_s)
                episode.paced += 1
            continue
        moved[i] = keep
        if keep < i:
            requests[keep] = request
        keep += 1
    for i in range(replica.residents):
        engine.resident[e, i].request = moved[engine.resident[e, i].request]
    for row in range(params.orders.shape[0]):
        line = engine.queue[e, row]
        head, tail = line[queue.HEAD], line[queue.TAIL]
        for k in range(head, tail):
            line[queue.FIRST + k - head] = moved[line[queue.FIRST + k]]
        line[queue.HEAD], line[queue.TAIL] = 0, tail - head
    replica.filled = keep
    replica.next = keep
    return area, total
