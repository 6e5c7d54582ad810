"""What is observed of OServe: the fields of an observation, and the compiled function that writes them."""

import math

import numpy as np
from numpy.typing import NDArray

from llmgym.core.jit import kernel
from llmgym.core.layout import Field, Layout
from llmgym.core.records import Record, shown
from llmgym.envs.oserve.shapes import SEATS
from llmgym.envs.oserve.state import DAY, MENU, Candidate, Config, Episode, Params, State

CANDIDATE_FIELDS = len(Candidate.declared)
REPLICA_FIELDS = 5
"""Entries of a replica besides those that tell its shape."""

# What fields are divided by, and where they are cut: scales of ours, so that most values lie between 0 and 1.
_SINCE_EPOCHS = 20.0
_MINUTE_S = 60.0
_HEADROOM = 4.0
_P99_REFS = 8.0
_MOST_P99 = 4.0
_MOST_OPEN = 4.0
_COUNTED_MEANS = 4.0
_MOST_COUNTED = 2.0
_MOST_FORECAST = 16.0
_CANDIDATE_HEADROOM = 2.0
_CANDIDATE_REFS = 4.0
_MOST_CANDIDATE_HEADROOM = 2.0
_MOST_CANDIDATE_LATENCY = 4.0
_LOAD = 4.0
_MOST_WORK = 16.0


class Observation(Record):
    """The fields that do not depend on the settings."""

    epoch: float = shown("epochs so far", unit="episode")
    since: float = shown("epochs since the last switch", unit="20")
    stopped: float = shown("time until the switch under way is over", unit="min")
    headroom: float = shown("multiple of the forecast that the deployment can serve", unit="4")
    waiting: float = shown("log(1 + requests waiting)", unit="log(1 + cap)")
    running: float = shown("requests running", unit="seats")
    p99: float = shown(
        "P99 of the end-to-end times of requests that completed in the last epoch",
        unit="8 latency_ref",
        high=_MOST_P99,
    )
    open: float = shown(
        "requests in the system over those that arrive in an epoch", unit="mean epoch", high=_MOST_OPEN
    )
    day_cos: float = shown("cosine of the time of day (drift day)", low=-1.0001, high=1.0001, name="day.cos")
    day_sin: float = shown("sine of the time of day (drift day)", low=-1.0001, high=1.0001, name="day.sin")


def layout(history: int, types: int, shapes: int, candidates: int, places: int) -> Layout:
    """The fields of an observation.

    Args:
        history: epochs whose counts are observed.
        types: types of requests.
        shapes: shapes of replicas.
        candidates: deployments to choose from; 0 where the action is another.
        places: places for replicas.

    Returns:
        The layout, whose head is `Observation`.
    """
    fields = []
    if history:
        fields.append(
            Field(
                "counts",
                types * history,
                0,
                _MOST_COUNTED,
                "log(1 + 4 mean)",
                "log(1 + arrivals), for each type the last epochs, newest first",
            )
        )
    fields += [
        Field(
            "forecast", types, 0, _MOST_FORECAST, "mean", "arrivals to expect of each type, moving average"
        ),
        Field(
            "backlog", types, 0, 1, "log(1 + cap)", "log(1 + requests waiting) of each type, or taken for it"
        ),
        Field("deployment", shapes, 0, 1, "GPUs", "share of the GPUs in replicas of each shape"),
    ]
    if candidates:
        fields.append(
            Field(
                "candidates",
                CANDIDATE_FIELDS * candidates,
                0,
                _MOST_CANDIDATE_LATENCY,
                "see text",
                "each candidate's headroom over the deployment's, halved; GPUs that change, share; unloaded latency, 4 latency_ref",
                rows=candidates,
                actions=(1,),
            )
        )
    fields.append(
        Field(
            "replicas",
            (shapes + REPLICA_FIELDS) * places,
            0,
            _MOST_WORK,
            "see text",
            "of each replica, large ones first: shape; load / 4, log of the line, cache, minutes of work, minutes until it serves",
            rows=places,
        )
    )
    return Layout(fields, Observation)


@kernel
def observe_lane(
    state: State, params: Params, lane: int, out: Observation, rest: NDArray[np.float32]
) -> None:
    """Write the observation of a lane.

    Args:
        state: arrays of all lanes.
        params: numbers and tables that all lanes share.
        lane: which one.
        out: the fields that do not depend on the settings, written.
        rest: float32, written: all the other fields of `layout`.
    """
    episode, config = state.lane[lane], params.config[0]
    now_s = episode.epoch * config.epoch_s
    full_line = math.log1p(float(config.cap))
    for i in range(rest.shape[0]):
        rest[i] = 0.0
    out.epoch = episode.epoch / config.epochs
    out.since = min(episode.since / _SINCE_EPOCHS, 1.0)
    out.stopped = 0.0
    if episode.stopping == 1:
        out.stopped = min(max(episode.ready_s - now_s, 0.0) / _MINUTE_S, 1.0)
    out.headroom = min(episode.headroom / _HEADROOM, 1.0)
    out.waiting = min(math.log1p(float(episode.waiting)) / full_line, 1.0)
    out.running = min(episode.running / (float(SEATS) * state.slot.shape[1]), 1.0)
    out.p99 = min(episode.p99_s / config.latency_ref_s / _P99_REFS, _MOST_P99)
    out.open = min(episode.open / max(config.epoch_s * _sum(params.rate_scale), 1e-9), _MOST_OPEN)
    out.day_cos, out.day_sin = 0.0, 0.0
    if config.drift == DAY:
        # the hour is known to everybody; the phase at which an episode begins is in the first sine and cosine alone
        cosine, sine = state.clock[lane, 0], state.clock[lane, 1]
        angle = _angle(config, episode)
        out.day_cos = cosine * math.cos(angle) - sine * math.sin(angle)
        out.day_sin = sine * math.cos(angle) + cosine * math.sin(angle)
    start = _observe_types(state, params, lane, rest, full_line)
    for s in range(params.sizes.shape[0]):
        rest[start + s] = state.replicas[lane, 0, s] * params.sizes[s] / config.gpus
    start += params.sizes.shape[0]
    if config.action == MENU:
        for i in range(params.menu.shape[0]):
            candidate = state.candidate[lane, i]
            rest[start] = min(
                candidate.headroom / max(episode.headroom, 1e-9) / _CANDIDATE_HEADROOM,
                _MOST_CANDIDATE_HEADROOM,
            )
            rest[start + 1] = candidate.changed_gpus / config.gpus
            rest[start + 2] = min(
                candidate.latency_s / config.latency_ref_s / _CANDIDATE_REFS, _MOST_CANDIDATE_LATENCY
            )
            start += CANDIDATE_FIELDS
    _observe_replicas(state, params, lane, rest[start:], full_line)


@kernel
def _observe_types(
    state: State, params: Params, lane: int, rest: NDArray[np.float32], full_line: float
) -> int:
    """Write counts, forecast and backlog of each type from the beginning of `rest` on; returns how many entries these are."""
    episode, config = state.lane[lane], params.config[0]
    types = config.types
    start = 0
    for j in range(types):
        full = math.log1p(_COUNTED_MEANS * params.rate_scale[j] * config.epoch_s)
        for h in range(config.history):
            e = episode.epoch - 1 - h
            if e >= 0:
                rest[start + h] = min(math.log1p(float(state.counts[lane, e, j])) / full, _MOST_COUNTED)
        start += config.history
    for j in range(types):
        rest[start + j] = min(state.forecast[lane, j] / params.rate_scale[j], _MOST_FORECAST)
        rest[start + types + j] = min(math.log1p(float(state.waits[lane, j])) / full_line, 1.0)
    return start + 2 * types


@kernel
def _observe_replicas(
    state: State, params: Params, lane: int, rest: NDArray[np.float32], full_line: float
) -> None:
    """Write the replicas from the beginning of `rest` on: large ones first, then by place on the cluster."""
    config = params.config[0]
    slots = state.slot[lane]
    shapes = params.sizes.shape[0]
    now_s = state.lane[lane].epoch * config.epoch_s
    start = 0
    size = config.gpus
    while size >= 1:
        for g in range(config.gpus):
            for k in range(slots.shape[0]):
                slot = slots[k]
                if slot.shape >= 0 and slot.gpu == g and slot.gpus == size:
                    rest[start + slot.shape] = 1.0
                    f = start + shapes
                    rest[f] = min(slot.load / _LOAD, 1.0)
                    rest[f + 1] = min(math.log1p(float(slot.waiting)) / full_line, 1.0)
                    rest[f + 2] = min(slot.kv / params.capacity[slot.shape], 1.0)
                    rest[f + 3] = min(max(slot.work_s, 0.0) / _MINUTE_S, _MOST_WORK)
                    rest[f + 4] = min(max(slot.ready_s - now_s, 0.0) / _MINUTE_S, 1.0)
                    start += shapes + REPLICA_FIELDS
        size -= 1


@kernel(inline=True)
def _angle(config: Config, episode: Episode) -> float:
    """The time of day that has passed since the episode began, as an angle."""
    return 2.0 * math.pi * episode.epoch / config.period_epochs


@kernel
def _sum(values: NDArray[np.float64]) -> float:
    total = 0.0
    for i in range(values.shape[0]):
        total += values[i]
    return total
