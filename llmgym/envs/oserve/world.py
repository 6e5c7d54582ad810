"""The world of an episode of OServe: how the mix of request types drifts, and the requests themselves, drawn at reset.

The rates are scaled to what the best of the candidate deployments could serve of the mix of the moment, so that an episode is hard
everywhere: `load` is its utilisation, if nothing had to be forecast or switched.
"""

import math

import numpy as np
from numpy.typing import NDArray

from llmgym.core.jit import kernel
from llmgym.core.rng import exponential, integer, normal, substream, uniform
from llmgym.envs.oserve.daily import HARMONICS, LEAST_RATE
from llmgym.envs.oserve.deployments import headroom
from llmgym.envs.oserve.state import CONSIDERED, DAY, SPANS, WAVE, Params, State

_GAPS, _CLASSES, _SPANS, _NOISE = 0, 1, 2, 3
"""Streams of random numbers of a world."""


@kernel
def consider(state: State, params: Params, lane: int, d: int) -> None:
    """Write a deployment to the last row of `replicas`.

    Args:
        state: arrays of all lanes.
        params: numbers and tables that all lanes share.
        lane: which one.
        d: number of the deployment.
    """
    for s in range(params.sizes.shape[0]):
        state.replicas[lane, CONSIDERED, s] = params.deployments[d, s]


@kernel
def capacity_rps(state: State, params: Params, lane: int, mix: NDArray[np.float64]) -> float:
    """Arrivals that the best candidate can serve, requests a second.

    Args:
        state: arrays of all lanes; `plan`, `flow`, `scratch` and the last row of `replicas` are written over.
        params: numbers and tables that all lanes share.
        lane: which one.
        mix: float64 [streams], shares of the streams.

    Returns:
        Requests a second of all types together.
    """
    config = params.config[0]
    wanted = state.plan[lane]
    total = 0.0
    for j in range(config.types):
        wanted[j] = 0.0
        for m in range(config.streams):
            wanted[j] += mix[m] * params.stream_type[m, j]
        total += wanted[j]
    most = 0.0
    for i in range(params.menu.shape[0]):
        consider(state, params, lane, params.menu[i])
        alpha = headroom(
            state.replicas[lane, CONSIDERED], wanted, params.type_rate, state.scratch[lane], state.flow[lane]
        )
        most = max(most, alpha)
    return most * total


@kernel
def _mixes(state: State, params: Params, lane: int, key: np.uint64) -> None:
    """Shares of the streams, times the load, in every epoch; not yet scaled to what can be served."""
    config = params.config[0]
    demand = state.demand[lane]
    streams = config.streams
    phase = uniform(key, 0)
    state.clock[lane, 0], state.clock[lane, 1] = (
        math.cos(2.0 * math.pi * phase),
        math.sin(2.0 * math.pi * phase),
    )
    draws = 1
    left, dominant, share, load = 0, -1, 0.0, config.load[0]
    for e in range(config.epochs):
        if left == 0:
            load = config.load[0] + uniform(key, draws) * (config.load[1] - config.load[0])
            left = integer(key, draws + 1, config.span_epochs[0], config.span_epochs[1])
            cv = config.cv[0] + uniform(key, draws + 2) * (config.cv[1] - config.cv[0])
            share = min(1.0 / streams + cv * math.sqrt(streams - 1.0) / streams, 1.0)
            # another one than before
            other = integer(key, draws + 3, 0, streams - (1 if dominant < 0 else 2))
            dominant = other + (1 if 0 <= dominant <= other else 0)
            draws += 4
        left -= 1
        total = 0.0
        for m in range(streams):
            weight = params.mix[m]
            if config.drift == SPANS:
                weight = share if m == dominant else (1.0 - share) / max(streams - 1, 1)
            elif config.drift == WAVE:
                turn = (e + 0.5) / config.period_epochs + phase - m / streams
                weight *= math.exp(config.amplitude * math.cos(2.0 * math.pi * turn))
            elif config.drift == DAY:
                time = (e + 0.5) / config.period_epochs + phase
                shape = 1.0
                for h in range(HARMONICS):
                    angle = 2.0 * math.pi * (h + 1) * time
                    shape += params.day[m, 2 * h] * math.cos(angle) + params.day[m, 2 * h + 1] * math.sin(
                        angle
                    )
                weight *= max(shape, LEAST_RATE)
            demand[e, m] = weight
            total += weight
        for m in range(streams):
            demand[e, m] *= config.day_rate_rps if config.drift == DAY else load / total


@kernel
def draw_world(state: State, params: Params, lane: int, key: np.uint64) -> None:
    """Draw demand and requests of an episode.

    Args:
        state: arrays of all lanes; what `capacity_rps` writes over is, and the heap of the first replica.
        params: numbers and tables that all lanes share.
        lane: which one.
        key: the world.
    """
    config = params.config[0]
    demand = state.demand[lane]
    streams = config.streams
    _mixes(state, params, lane, substream(key, _SPANS))
    noise = substream(key, _NOISE)
    for e in range(config.epochs):
        if config.drift != DAY:
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
    if config.noise > 0.0:
        fresh = math.sqrt(1.0 - config.correlation * config.correlation)
        for m in range(streams):
            level = normal(noise, m)
            for e in range(config.epochs):
                demand[e, m] *= math.exp(config.noise * (level - 0.5 * config.noise))
                level = config.correlation * level + fresh * normal(noise, streams + e * streams + m)
    _draw_requests(state, params, lane, key)


@kernel
def _draw_requests(state: State, params: Params, lane: int, key: np.uint64) -> None:
    """Poisson arrivals with the rates of each epoch, as many as there is room for."""
    episode = state.lane[lane]
    config = params.config[0]
    gaps, classes = substream(key, _GAPS), substream(key, _CLASSES)
    demand = state.demand[lane]
    count, checksum, at_s = 0, 0.0, 0.0
    for e in range(config.epochs):
        total = 0.0
        for m in range(config.streams):
            total += demand[e, m]
        begin_s, end_s = e * config.epoch_s, (e + 1) * config.epoch_s
        at_s = begin_s
        last = min(count + config.most, state.arrival_s.shape[1])
        while count < last and total > 0.0:
            # a Poisson process has no memory: it may begin anew with every epoch
            at_s += exponential(gaps, count + e) / total
            if at_s >= end_s:
                break
            m, mark = 0, uniform(classes, 2 * count) * total
            while m + 1 < config.streams and mark >= demand[e, m]:
                mark -= demand[e, m]
                m += 1
            c, u = 0, uniform(classes, 2 * count + 1)
            while c + 1 < config.classes and u >= params.stream_cdf[m, c]:
                c += 1
            state.arrival_s[lane, count], state.arrival_class[lane, count] = at_s, c
            checksum += at_s + c
            count += 1
    episode.requests = count
    episode.checksum = checksum
