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
    me = state.lane[lane]
    number = params.number[0]
    stock = state.fluid[lane]
    epoch_s = number.epoch_s
    waiting, backlog_s = stock[REQUESTS], stock[WORK_S]
    parcels = 0
    while me.arrived < me.requests and state.request[lane, me.arrived].arrival_s < end_s:
        kind = state.request[lane, me.arrived].kind
        for i in range(stock.shape[0]):
            stock[i] += number.parcel * params.work[kind, i]
        me.arrived += 1
        parcels += 1
    me.next = me.arrived
    me.arrivals += parcels * number.parcel
    me.rate = parcels * number.parcel / epoch_s
    capacity_s = me.on * epoch_s
    total_s = stock[WORK_S]
    share = 1.0
    if total_s > capacity_s:
        share = capacity_s / total_s
    completed, area, tokens, batches = stock[REQUESTS], stock[AREA], stock[TOKENS], stock[BATCHES]
    for i in range(stock.shape[0]):
        stock[i] *= 1.0 - share
    if share < 1.0:
        me.waiting_s += 0.5 * (waiting + stock[REQUESTS]) * epoch_s
    elif backlog_s > 0.0:
        me.waiting_s += 0.5 * waiting * backlog_s / (me.on - (total_s - backlog_s) / epoch_s)
    me.waiting = stock[REQUESTS]
    me.completed += share * completed
    me.used_s += share * total_s
    load = share * total_s / capacity_s if capacity_s > 0.0 else 0.0
    me.kv_mean, me.kv_max = load, load
    _learn(number, me, share * completed, share * area, share * tokens)
    if load > BUSY:
        _learn_batch(number, me, share * batches, share * total_s)
    for g in range(number.replicas):
        r = state.engine.lane[lane * number.replicas + g]
        if r.mode == DRAINING:
            me.gpu_s += min(max(r.drained_s - start_s, 0.0), epoch_s)
            if r.drained_s <= end_s:
                r.mode = OFF
                me.draining -= 1
        elif r.mode != OFF:
            me.gpu_s += epoch_s


@kernel
def _learn(number: Any, me: Any, completed: float, area: float, tokens: float) -> None:
    """Update the mean area and tokens of a request from those that completed in this epoch."""
    if completed > 0.0:
        weight = 1.0 - math.exp(-completed / number.window)
        me.area += weight * (area / completed - me.area)
        me.tokens += weight * (tokens / completed - me.tokens)


@kernel
def _learn_batch(number: Any, me: Any, batches: float, seconds: float) -> None:
    """Update the mean duration of a batch near saturation."""
    if batches > 0.0:
        me.batch_s += (1.0 - math.exp(-batches / number.window)) * (seconds / batches - me.batch_s)


@kernel
def serve(state: State, params: Params, lane: int, start_s: float, end_s: float) -> None:
    """An epoch of engines: hand out its requests, let every replica run, look at what completed."""
    me = state.lane[lane]
    number = params.number[0]
    base = lane * number.replicas
    arrived = _hand_out(state, params, lane, start_s, end_s)
    me.arrivals += arrived
    me.rate = arrived / number.epoch_s
    me.waiting = me.door
    me.kv_mean, me.kv_max = 0.0, 0.0
    serving = 0
    before = me.served
    area, tokens, batches, batches_s = 0.0, 0.0, 0, 0.0
    for g in range(number.replicas):
        r = state.engine.lane[base + g]
        if r.mode == OFF:
            continue
        me.gpu_s += number.epoch_s
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
        me.waiting_s += r.waiting_s
        me.waiting += r.waiting
        me.output_tokens += r.decoded - output_before
        used_s = (r.kv_s - r.kv_before_s) / number.kv_capacity
        me.used_s += used_s
        if r.mode == DRAINING:
            if r.residents + r.waiting == 0 and r.clock_s < end_s:
                me.gpu_s -= min(end_s - r.clock_s, number.epoch_s)
                r.mode = OFF
                me.draining -= 1
        else:
            serving += 1
            me.kv_mean += used_s / number.epoch_s
            me.kv_max = max(me.kv_max, used_s / number.epoch_s)
    me.kv_mean /= max(serving, 1)
    me.completed = me.served
    _learn(number, me, float(me.served - before), area, tokens)
    _learn_batch(number, me, float(batches), batches_s)
    me.met = 0
    for g in range(number.replicas):
        me.met += state.engine.lane[base + g].met


@kernel
def _hand_out(state: State, params: Params, lane: int, start_s: float, end_s: float) -> int:
    """Give the requests of the epoch to the replicas that are on, in turn; returns how many arrived.

    Where none is on (or the next one in turn has no slot left) they wait at the door until the next epoch.
    """
    me = state.lane[lane]
    number = params.number[0]
    engines = state.engine
    requests = state.request[lane]
    base = lane * number.replicas
    came = 0
    while me.arrived < me.requests and state.request[lane, me.arrived].arrival_s < end_s:
        if requests[me.arrived].prompt >= number.longest:
            requests[me.arrived].prompt = 0
            me.rejected += 1
        else:
            me.door += 1
        me.arrived += 1
        came += 1
    while me.next < me.arrived and me.on > 0:
        request = me.next
        if requests[request].prompt > 0:
            turn = (me.turn + 1) % number.replicas
            while engines.lane[base + turn].mode != ON:
                turn = (turn + 1) % number.replicas
            e = base + turn
            slot = engines.lane[e].filled
            if slot == engines.request.shape[1]:
                break
            me.turn = turn
            me.door -= 1
            engines.lane[e].filled = slot + 1
            engines.request[e, slot] = requests[request]
        me.next += 1
    for request in range(me.next, me.arrived):
        if requests[request].prompt > 0:
            me.waiting_s += end_s - max(requests[request].arrival_s, start_s)
    return came


@kernel
def _run_replica(engine: Engines, params: Params, e: int, start_s: float, end_s: float) -> None:
    """Run batches until the epoch is over; the last one may end after it, and the next epoch begins there."""
    r = engine.lane[e]
    number = params.number[0]
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
            dt = held_up_s(engine, e, following_s, number.idle_s)
            r.clock_s += dt
        elif r.batch_used > BUSY * number.kv_capacity:
            r.busy_batches += 1
            r.busy_batches_s += dt
        r.waiting_s += queued * dt


@kernel
def _close_up(state: State, params: Params, lane: int, e: int) -> tuple[float, float]:
    """Take completed requests out of a replica's slots; returns their tokens x batches and their tokens.

    The others keep their order, which is all the queue needs.
    """
    me = state.lane[lane]
    number = params.number[0]
    engine = state.engine
    r = engine.lane[e]
    requests, moved = engine.request[e], engine.moved[e]
    area, total = 0.0, 0.0
    keep = 0
    for i in range(r.filled):
        asked = requests[i]
        if asked.e2e_s >= 0.0:
            area += remaining_area(number, asked.prompt, 0, 0, 0, 0, asked.output)
            total += asked.prompt + asked.output
            state.served[lane, 0, me.served] = asked.ttft_s
            state.served[lane, 1, me.served] = asked.e2e_s
            state.served[lane, 2, me.served] = time_per_token(asked.ttft_s, asked.e2e_s, asked.output)
            me.served += 1
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
