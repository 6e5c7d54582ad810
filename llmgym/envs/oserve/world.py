"""The world of an episode of OServe: how the mix of request types drifts, and the requests themselves, drawn at reset.

The rates are scaled to what the best of the candidate deployments could serve of the mix of the moment, so that an episode is hard
everywhere: `load` is its utilisation, if nothing had to be forecast or switched.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmgym.core.jit import kernel
from llmgym.core.rng import exponential, integer, normal, substream, uniform
from llmgym.envs.oserve.deployments import headroom
from llmgym.envs.oserve.state import DAY, HARMONICS, SPANS, WAVE, Params, State

_GAPS, _KINDS, _SPANS, _NOISE = 0, 1, 2, 3


@kernel
def consider(state: State, params: Params, lane: int, d: int) -> None:
    """Write a deployment to the last row of `replicas`."""
    for s in range(params.sizes.shape[0]):
        state.replicas[lane, 2, s] = params.deployments[d, s]


@kernel
def capacity_rps(state: State, params: Params, lane: int, mix: NDArray[np.float64]) -> float:
    """Arrivals a second, with shares `mix` of the streams (float64 [streams]), that the best candidate can serve."""
    number = params.number[0]
    wanted = state.plan[lane]
    total = 0.0
    for j in range(number.types):
        wanted[j] = 0.0
        for m in range(number.streams):
            wanted[j] += mix[m] * params.stream_type[m, j]
        total += wanted[j]
    most = 0.0
    for i in range(params.menu.shape[0]):
        consider(state, params, lane, params.menu[i])
        alpha = headroom(
            state.replicas[lane, 2], wanted, params.type_rate, state.scratch[lane], state.flow[lane]
        )
        most = max(most, alpha)
    return most * total


@kernel
def _mixes(state: State, params: Params, lane: int, key: np.uint64) -> None:
    """Shares of the streams, times the load, in every epoch; not yet scaled to what can be served."""
    number = params.number[0]
    demand = state.demand[lane]
    streams = number.streams
    phase = uniform(key, 0)
    state.clock[lane, 0], state.clock[lane, 1] = (
        math.cos(2.0 * math.pi * phase),
        math.sin(2.0 * math.pi * phase),
    )
    draws = 1
    left, dominant, share, load = 0, -1, 0.0, number.load_low
    for e in range(number.epochs):
        if left == 0:
            load = number.load_low + uniform(key, draws) * (number.load_high - number.load_low)
            left = integer(key, draws + 1, number.span_low, number.span_high)
            cv = number.cv_low + uniform(key, draws + 2) * (number.cv_high - number.cv_low)
            share = min(1.0 / streams + cv * math.sqrt(streams - 1.0) / streams, 1.0)
            # another one than before
            other = integer(key, draws + 3, 0, streams - (1 if dominant < 0 else 2))
            dominant = other + (1 if 0 <= dominant <= other else 0)
            draws += 4
        left -= 1
        total = 0.0
        for m in range(streams):
            weight = params.mix[m]
            if number.drift == SPANS:
                weight = share if m == dominant else (1.0 - share) / max(streams - 1, 1)
            elif number.drift == WAVE:
                turn = (e + 0.5) / number.period + phase - m / streams
                weight *= math.exp(number.amplitude * math.cos(2.0 * math.pi * turn))
            elif number.drift == DAY:
                time = (e + 0.5) / number.period + phase
                shape = 1.0
                for h in range(HARMONICS):
                    angle = 2.0 * math.pi * (h + 1) * time
                    shape += params.day[m, 2 * h] * math.cos(angle) + params.day[m, 2 * h + 1] * math.sin(
                        angle
                    )
                weight *= max(shape, 0.05)
            demand[e, m] = weight
            total += weight
        for m in range(streams):
            demand[e, m] *= number.day_rate if number.drift == DAY else load / total


@kernel
def draw_world(state: State, params: Params, lane: int, key: np.uint64) -> None:
    """Draw demand and requests of an episode."""
    number = params.number[0]
    demand = state.demand[lane]
    streams = number.streams
    _mixes(state, params, lane, substream(key, _SPANS))
    noise = substream(key, _NOISE)
    for e in range(number.epochs):
        if number.drift != DAY:
            same = e > 0
            total = 0.0
            for m in range(streams):
                total += demand[e, m]
            if same:
                # spans last for many epochs: the same mix has the same capacity
                for m in range(streams):
                    same = same and demand[e, m] == state.heap_at[lane, 0, m]
            if not same:
                for m in range(streams):
                    state.heap_at[lane, 0, m] = demand[e, m]
                    state.heap_at[lane, 0, streams + m] = demand[e, m] / total
                state.heap_at[lane, 0, 2 * streams] = capacity_rps(
                    state, params, lane, state.heap_at[lane, 0, streams : 2 * streams]
                )
            for m in range(streams):
                demand[e, m] *= state.heap_at[lane, 0, 2 * streams]
    if number.noise > 0.0:
        fresh = math.sqrt(1.0 - number.correlation * number.correlation)
        for m in range(streams):
            level = normal(noise, m)
            for e in range(number.epochs):
                demand[e, m] *= math.exp(number.noise * (level - 0.5 * number.noise))
                level = number.correlation * level + fresh * normal(noise, streams + e * streams + m)
    _draw_requests(state, params, lane, key)


@kernel
def _draw_requests(state: State, params: Params, lane: int, key: np.uint64) -> None:
    """Poisson arrivals with the rates of each epoch."""
    me = state.lane[lane]
    number = params.number[0]
    gaps, kinds = substream(key, _GAPS), substream(key, _KINDS)
    requests, demand = state.request[lane], state.demand[lane]
    count, checksum, at_s = 0, 0.0, 0.0
    for e in range(number.epochs):
        total = 0.0
        for m in range(number.streams):
            total += demand[e, m]
        begin_s, end_s = e * number.epoch_s, (e + 1) * number.epoch_s
        at_s = begin_s
        while count < requests.shape[0] and total > 0.0:
            # a Poisson process has no memory: it may begin anew with every epoch
            at_s += exponential(gaps, count + e) / total
            if at_s >= end_s:
                break
            asked = requests[count]
            m, mark = 0, uniform(kinds, 2 * count) * total
            while m + 1 < number.streams and mark >= demand[e, m]:
                mark -= demand[e, m]
                m += 1
            c, u = 0, uniform(kinds, 2 * count + 1)
            while c + 1 < number.classes and u >= params.stream_cdf[m, c]:
                c += 1
            asked.arrival_s, asked.kind, asked.node = at_s, c, -1
            asked.left, asked.began_s, asked.e2e_s, asked.ttft_s, asked.next = 1.0, -1.0, -1.0, -1.0, -1
            checksum += at_s + c
            count += 1
    me.requests = count
    me.checksum = checksum


@kernel(inline=True)
def begin_lane(me: Any) -> None:
    """Nothing has happened yet."""
    me.epoch, me.next, me.done, me.met, me.waiting, me.running, me.waiting_peak, me.turn = (
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
    )
    me.switches, me.since, me.changed_gpus, me.migrated, me.drained, me.restarted = 0, 0, 0, 0, 0, 0
    me.rerouted, me.moved_waiting, me.invalid, me.unstable, me.stopping = 0, 0, 0, 0, 0
    me.ready_s, me.open, me.open_arrival_s, me.done_s, me.counted_s = 0.0, 0.0, 0.0, 0.0, 0.0
    me.p99_sum_s, me.p99_s, me.output_tokens, me.stopped_gpu_s, me.busy_gpu_s = 0.0, 0.0, 0.0, 0.0, 0.0
    me.kv_share_s, me.weights_bytes, me.kv_bytes, me.flying_bytes = 0.0, 0.0, 0.0, 0.0
    me.headroom, me.headroom_sum, me.penalty, me.tick_s = 0.0, 0.0, 0.0, 0.0
