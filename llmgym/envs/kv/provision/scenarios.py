"""Scenarios of KVProvision: named settings of cluster, load and episode, and the workload that they describe."""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmgym import workloads
from llmgym.core.checks import choice, number, whole
from llmgym.core.settings import settled
from llmgym.envs.kv.provision.state import EVENT, FLUID
from llmgym.errors import InvalidArgument
from llmgym.serving.capacity import UNLIMITED
from llmgym.serving.settings import check_engine
from llmgym.workloads import Arrivals, Phase, Workload

MODES = {"event": EVENT, "fluid": FLUID}


@dataclass(frozen=True)
class Scenario:
    """Settings of KVProvision; every one of them is also an argument of the environment.

    Attributes:
        about: one line.
        workload: name of a workload: lengths, and arrivals where `shape` is None.
        profile: name of the cost profile of a replica.
        mode: "event" (an engine for every replica) or "fluid".
        max_replicas: G, the largest target.
        min_replicas: the smallest target that is allowed.
        initial_replicas: replicas that are on when an episode begins; None: what the paper's rule asks for then.
        startup_epochs: epochs from the decision to start a replica until it serves.
        epochs: of an episode.
        epoch_s: length of an epoch, s.
        load: mean work that arrives, as a share of what `max_replicas` can do; ignored where `rate_rps` is given.
        rate_rps: mean arrivals a second (where the multiplier of `shape` is 1).
        shape: multipliers of the rate, equally long pieces of a day, scaled to mean 1; None keeps the workload's own arrivals.
        day_s: length of the day after which `shape` repeats, s; None: the episode.
        variance: of the random level that multiplies the rate (with `shape`).
        level_s: how long a level lasts, s.
        correlation: of one level with the next.
        mix: weights of the workload's classes in equally long parts of the episode; None keeps the workload's phases.
        rule: admission rule of every replica, a name of `llmgym.serving.rules.CATALOGUE`; one that reckons with predicted
            lengths is told the mean of the request's class.
        kv_capacity: M, tokens; None takes what the profile's memory leaves.
        chunk: longest prefill chunk, tokens.
        budget: tokens of a batch.
        seats: requests that run at once on a replica.
        longest: prompt and output together, tokens; None takes M.
        overflow: "pause" (swap at no cost) or "recompute".
        first_token: when the first output token appears: "next-batch", "with-prefill" or "stored", as in KVQueue.
        waiting_cap: an episode ends as unstable when more requests wait.
        ttft_slo_s: objective for the time to the first token, s.
        tpot_slo_s: objective for the time per output token after it, s.
        gpu_cost: of a GPU-hour; what every other cost is measured against.
        wait_cost: of a request that waits for an hour.
        slo_cost: of a completed request that missed an objective (event mode).
        ema_epochs: the estimate of the arrival rate averages over about so many epochs.
        window: completed requests (batches) over which mean area and tokens (duration) are averaged.
    """

    about: str
    workload: str
    profile: str
    mode: str = "event"
    max_replicas: int = 8
    min_replicas: int = 1
    initial_replicas: int | None = None
    startup_epochs: int = 2
    epochs: int = 120
    epoch_s: float = 60.0
    load: float = 0.5
    rate_rps: float | None = None
    shape: tuple[float, ...] | None = None
    day_s: float | None = None
    variance: float = 0.0
    level_s: float = 600.0
    correlation: float = 0.8
    mix: tuple[tuple[float, ...], ...] | None = None
    rule: str = "wc-fcfs"
    kv_capacity: int | None = None
    chunk: int = 512
    budget: int = UNLIMITED
    seats: int = 256
    longest: int | None = None
    overflow: str = "pause"
    first_token: str = "next-batch"
    waiting_cap: int = 8192
    ttft_slo_s: float = 10.0
    tpot_slo_s: float = 0.1
    gpu_cost: float = 1.0
    wait_cost: float = 0.02
    slo_cost: float = 0.0
    ema_epochs: float = 3.0
    window: float = 500.0


# Quiet nights, a steep morning, a shoulder at noon, the peak late in the afternoon: chosen here, not measured.
_DAY = tuple(
    round(
        1.0
        - 0.5 * math.cos(2.0 * math.pi * (h - 3.0) / 24.0)
        - 0.15 * math.cos(4.0 * math.pi * (h - 1.0) / 24.0),
        3,
    )
    for h in range(24)
)
_SMALL = Scenario(
    "a small cache, short requests and epochs of half a second: an agent can be trained on it in minutes",
    "uniform-tiny",
    "paper/tiny",
    epoch_s=0.5,
    load=0.4,
    shape=_DAY,
    day_s=30.0,
    variance=0.04,
    level_s=5.0,
    chunk=16,
    seats=128,
    waiting_cap=2048,
    ttft_slo_s=0.5,
    tpot_slo_s=0.015,
    gpu_cost=3600.0,
    wait_cost=180.0,
)

SCENARIOS: dict[str, Scenario] = {
    "paper-drift": Scenario(
        "lengths drift from 2:1 to 1:2 prompt:decode (as many tokens, 1.7 times the area) while the load swings twice",
        "uniform-mixed",
        "paper/kv-queue-linear",
        max_replicas=12,
        load=0.5,
        shape=(0.8, 1.0, 1.2, 1.3, 1.2, 1.0, 0.8, 0.7),
        day_s=3600.0,
        variance=0.02,
        mix=((1, 0), (1, 0), (1, 0), (3, 1), (1, 1), (1, 3), (0, 1), (0, 1)),
    ),
    "daily": Scenario(
        "conversation lengths of Azure 2023, Qwen2.5-14B on A100s, a day compressed into two hours",
        "azure-conv-2023",
        "a100/qwen2.5-14b",
        load=0.42,
        shape=_DAY,
        day_s=7200.0,
        variance=0.03,
        rule="vllm",
        chunk=2048,
        budget=2048,
        overflow="recompute",
        first_token="with-prefill",
        ttft_slo_s=2.0,
        tpot_slo_s=0.2,
    ),
    "surge": Scenario(
        "the paper's 1:1 lengths; the rate jumps to 2.5 times and back, and is uncertain throughout",
        "uniform-1:1",
        "paper/kv-queue-1:1",
        max_replicas=10,
        epochs=90,
        load=0.34,
        shape=(1.0, 1.0, 2.5, 1.0, 1.0),
        variance=0.06,
        level_s=900.0,
        correlation=0.3,
    ),
    "small": _SMALL,
    "fluid-small": replace(
        _SMALL, about="the same cluster as a fluid: hundreds of thousands of steps a second", mode="fluid"
    ),
}


def resolve_scenario(scenario: str | Scenario, settings: dict[str, Any]) -> Scenario:
    """The scenario with the arguments put in, checked.

    Raises:
        UnknownName: a scenario, a setting or a choice that does not exist.
        InvalidArgument: a number out of range.
    """
    chosen: Scenario = settled(scenario, SCENARIOS, settings, "KVProvision", ("about", "workload", "profile"))
    choice("mode", chosen.mode, MODES)
    check_engine(
        chunk=chosen.chunk,
        budget=chosen.budget,
        seats=chosen.seats,
        overflow=chosen.overflow,
        first_token=chosen.first_token,
    )
    for name in ("max_replicas", "epochs", "waiting_cap"):
        whole(name, getattr(chosen, name))
    most = whole("max_replicas", chosen.max_replicas, high=1024)
    whole("min_replicas", chosen.min_replicas, 0, most)
    whole("startup_epochs", chosen.startup_epochs, 0, 64)
    if chosen.initial_replicas is not None:
        whole("initial_replicas", chosen.initial_replicas, chosen.min_replicas, most)
    for name in (
        "epoch_s",
        "load",
        "level_s",
        "ttft_slo_s",
        "tpot_slo_s",
        "gpu_cost",
        "ema_epochs",
        "window",
    ):
        number(name, getattr(chosen, name))
    for name in ("wait_cost", "slo_cost", "variance"):
        number(name, getattr(chosen, name), zero=True)
    for name in ("rate_rps", "day_s"):
        if getattr(chosen, name) is not None:
            number(name, getattr(chosen, name))
    if chosen.mode == "fluid" and chosen.slo_cost > 0.0:
        raise InvalidArgument(
            f"slo_cost={chosen.slo_cost!r}: needs mode='event', a fluid has no requests that could miss"
        )
    return chosen


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
    """Mean multiplier of the known rate profile in each epoch, float64 [epochs]."""
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
    starts: tuple[float, ...], values: tuple[float, ...], at: NDArray[np.float64]
) -> NDArray[np.float64]:
    begin, height = np.asarray(starts), np.asarray(values)
    before = np.concatenate([[0.0], np.cumsum(np.diff(begin) * height[:-1])])
    piece = np.searchsorted(begin, at, side="right") - 1
    return np.asarray(before[piece] + (at - begin[piece]) * height[piece])


def mixtures(workload: Workload, epochs: int, epoch_s: float) -> NDArray[np.float64]:
    """Share of each class among the requests of each epoch (at its middle), float64 [epochs, classes]."""
    starts = np.array([p.start for p in workload.phases])
    weights = np.array([p.weights for p in workload.phases], np.float64)
    weights /= weights.sum(axis=1, keepdims=True)
    middle = (np.arange(epochs) + 0.5) * epoch_s
    return np.asarray(weights[np.searchsorted(starts, middle, side="right") - 1])


def room(arrivals: Arrivals, expected: float, horizon_s: float) -> int:
    """Requests to have room for, so that an episode practically never runs out of it (six standard deviations)."""
    spread = 0.0
    if arrivals.process in ("on-off", "replay"):
        spread = 1.0
    elif arrivals.modulation is not None:
        m = arrivals.modulation
        lasting = m.period_s * (1.0 + m.correlation) / (1.0 - m.correlation)
        spread = 6.0 * math.sqrt(m.variance * min(1.0, lasting / horizon_s))
    return math.ceil(
        expected * (1.0 + spread) + 6.0 * arrivals.cv * math.sqrt(expected * (1.0 + spread)) + 64
    )
