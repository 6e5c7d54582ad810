"""What a scenario of KVProvision asks of a cluster: its workload, the course of the load, and the room that it takes."""

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from llmgym import workloads
from llmgym.envs.kv.provision.scenarios import Scenario
from llmgym.envs.kv.provision.state import AREA, WORK_S, Params, State
from llmgym.errors import InvalidArgument
from llmgym.serving.capacity import exact_area
from llmgym.serving.requests import FIRST_TOKENS
from llmgym.workloads import Arrivals, Phase, Workload

DEVIATIONS = 6.0
"""Standard deviations of the number of requests that there is room for."""
SPARE = 64
"""Requests that there is room for besides, where few are expected."""


def resolve_workload(scenario: Scenario, workload: Workload) -> Workload:
    """The workload with the arrivals and the drift that a scenario describes; its phases begin at seconds.

    Raises:
        InvalidArgument: arrivals without a rate, phases by request number, or a mix that does not fit the classes.
    """
    horizon_s = scenario.epochs * scenario.epoch_s
    if scenario.shape is not None:
        arrivals = workloads.poisson(1.0)
        if scenario.variance > 0.0:
            arrivals = arrivals.modulated(scenario.level_s, scenario.variance, scenario.correlation)
        day_s = horizon_s if scenario.day_s is None else scenario.day_s
        pieces = len(scenario.shape)
        starts = [day_s * i / max(pieces, 1) for i in range(pieces)]
        workload = workload.with_arrivals(arrivals.shaped(starts, scenario.shape, day_s))
    if not math.isfinite(workload.mean_rate_rps):
        raise InvalidArgument(
            f"workload={workload.name!r}: all its requests come at once; give it a rate (see `shape`)"
        )
    if scenario.mix is not None:
        parts = len(scenario.mix)
        phases = tuple(Phase(horizon_s * i / parts, tuple(part)) for i, part in enumerate(scenario.mix))
        return replace(workload, phases=phases, phase_by="time_s")
    if len(workload.phases) > 1 and workload.phase_by == "request":
        raise InvalidArgument(
            f"workload={workload.name!r}: its phases begin at request numbers; give them in seconds"
        )
    if workload.phase_by == "fraction":
        phases = tuple(Phase(horizon_s * p.start, p.weights) for p in workload.phases)
        return replace(workload, phases=phases, phase_by="time_s")
    return workload


def multipliers(arrivals: Arrivals, epochs: int, epoch_s: float) -> NDArray[np.float64]:
    """Mean multiplier of the known rate profile in each epoch.

    Args:
        arrivals: with the profile.
        epochs: number of epochs.
        epoch_s: length of one, s.

    Returns:
        float64 [epochs].
    """
    profile = arrivals.profile
    if profile is None:
        return np.ones(epochs)
    edges = np.arange(epochs + 1, dtype=np.float64) * epoch_s
    if profile.period_s is None:
        return np.diff(_integral(profile.starts_s, profile.multipliers, edges)) / epoch_s
    cycles = np.floor(edges / profile.period_s)
    rest = np.maximum(edges - cycles * profile.period_s, 0.0)
    area = cycles * profile.period_s + _integral(profile.starts_s, profile.multipliers, rest)
    return np.asarray(np.diff(area) / epoch_s)


def _integral(
    starts: tuple[float, ...], values: tuple[float, ...], until: NDArray[np.float64]
) -> NDArray[np.float64]:
    begin, height = np.asarray(starts), np.asarray(values)
    before = np.concatenate([[0.0], np.cumsum(np.diff(begin) * height[:-1])])
    piece = np.searchsorted(begin, until, side="right") - 1
    return np.asarray(before[piece] + (until - begin[piece]) * height[piece])


def mixtures(workload: Workload, epochs: int, epoch_s: float) -> NDArray[np.float64]:
    """Share of each class among the requests of each epoch, at its middle.

    Args:
        workload: with phases that begin at seconds.
        epochs: number of epochs.
        epoch_s: length of one, s.

    Returns:
        float64 [epochs, classes].
    """
    starts = np.array([p.start for p in workload.phases])
    weights = np.array([p.weights for p in workload.phases], np.float64)
    weights /= weights.sum(axis=1, keepdims=True)
    middle = (np.arange(epochs) + 0.5) * epoch_s
    return np.asarray(weights[np.searchsorted(starts, middle, side="right") - 1])


def room(arrivals: Arrivals, expected: float, horizon_s: float) -> int:
    """Requests to have room for, so that an episode practically never runs out of it.

    Args:
        arrivals: of the requests.
        expected: mean number of them.
        horizon_s: length of the episode, s.

    Returns:
        Number of requests.
    """
    spread = 0.0
    if arrivals.process in ("on-off", "replay"):
        spread = 1.0
    elif arrivals.modulation is not None:
        m = arrivals.modulation
        lasting = m.period_s * (1.0 + m.correlation) / (1.0 - m.correlation)
        spread = DEVIATIONS * math.sqrt(m.variance * min(1.0, lasting / horizon_s))
    return math.ceil(
        expected * (1.0 + spread) + DEVIATIONS * arrivals.cv * math.sqrt(expected * (1.0 + spread)) + SPARE
    )


def loads(
    scenario: Scenario, params: Params, state: State, lane: int, epochs: int | None = None
) -> NDArray[np.float64]:
    """Work that arrives in each epoch of an episode, from the true lengths, which a real operator cannot know.

    Args:
        scenario: the settings.
        params: what all lanes share.
        state: arrays of all lanes.
        lane: which one.
        epochs: the first so many, also those that have not begun; None: all.

    Returns:
        Replicas that the arrivals of each epoch keep busy, float64 [epochs].
    """
    count = scenario.epochs if epochs is None else epochs
    requests = state.request[lane, : state.lane[lane]["requests"]]
    per_class = params.work[requests["request_class"], WORK_S]
    if scenario.mode == "fluid":
        work_s = params.config["parcel"][0] * per_class
    else:
        first, _ = FIRST_TOKENS[scenario.first_token]
        areas = exact_area(requests["prompt"], requests["output"], scenario.chunk, first)
        accepted = (requests["prompt"] > 0) & (requests["prompt"] < scenario.longest)
        work_s = np.where(accepted, areas * per_class / params.work[requests["request_class"], AREA], 0.0)
    epoch = (requests["arrival_s"] / scenario.epoch_s).astype(np.int64)
    return np.bincount(epoch, work_s, minlength=count)[:count] / scenario.epoch_s
