"""Scenarios of OServe: named settings of model, cluster, requests and drift."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmgym import workloads
from llmgym.core.checks import choice, number, whole
from llmgym.core.settings import settled
from llmgym.envs.oserve.placement import INFINIBAND_GB_PER_S, NVLINK_GB_PER_S
from llmgym.envs.oserve.shapes import MODELS, RateTable, RequestType, check_type
from llmgym.envs.oserve.state import (
    ADHOC,
    BLIND,
    DAY,
    FIXED,
    FLOW,
    FREE,
    LEAST_KV,
    LEAST_WORK,
    RELOAD,
    ROUND_ROBIN,
    SPANS,
    WAVE,
)
from llmgym.errors import InvalidArgument
from llmgym.workloads import Workload

DRIFTS = {"fixed": FIXED, "spans": SPANS, "wave": WAVE, "day": DAY}
SWITCHING = {"adhoc": ADHOC, "reload": RELOAD, "free": FREE}
DISPATCH = {
    "flow": FLOW,
    "blind": BLIND,
    "round-robin": ROUND_ROBIN,
    "least-work": LEAST_WORK,
    "least-kv": LEAST_KV,
}

CORNERS = ((496, 18), (496, 510), (2455, 18), (2455, 510))
"""Prompt and output tokens: the corners of the grid of an earlier study of the same group (Jiang et al., arXiv 2502.00722)."""


@dataclass(frozen=True)
class Scenario:
    """Settings of OServe; every one of them is also an argument of the environment.

    Attributes:
        about: one line.
        model: name in `llmgym.envs.oserve.shapes.MODELS`.
        kernels: kernel set for times of dense layers and attention; None: the roofline.
        gpus: of the cluster, nodes of eight.
        types: prompt and output tokens of each type of requests; ignored with `workloads`.
        workloads: names of workloads, whose lengths are clustered into types.
        clusters: types with `workloads`.
        cells: classes of lengths that stand for the requests of `workloads`.
        mix: mean shares of the types (of the workloads); None: equal ones.
        drift: of the mix: "fixed", "spans" (one dominates for a while, then another), "wave" (each in turn) or "day" (each
            follows its own course of a day).
        span_epochs: spans: shortest and longest, epochs.
        cv: spans: least and largest coefficient of variation of the shares.
        amplitude: wave: shares are proportional to exp(amplitude cos).
        period_epochs: wave and day: after so many epochs all is as before.
        load: least and largest utilisation of the best deployment, if all were known; drawn anew for each span.
        noise: deviation of the logarithm of a rate from one epoch to another.
        correlation: of that deviation from epoch to epoch.
        epochs: of an episode.
        epoch_s: s.
        history: epochs of counts in the observation.
        ewma: weight of the last epoch in the forecast.
        candidates: deployments to choose from at most (action "menu").
        initial: shapes (tp, pp) of the first replicas; None: the best uniform ones for `mix`.
        switching: "adhoc", "reload" or "free".
        fix_s: adhoc: process groups, graphs and memory, s.
        disk_gb_per_s: reload: what weights are read with.
        nvlink_gb_per_s: of a GPU inside its node.
        infiniband_gb_per_s: of a node.
        drain_s: requests that need less finish on the replica that stops, s.
        reroute: while some replicas stop, requests go to the others; False: they wait.
        dispatch: "flow" (by type, as the linear program says), "blind" (the same for all types, by mean rate), "round-robin",
            "least-work" (with migration of a waiting request a second) or "least-kv".
        types_known: the type of a request is known at arrival; False: guessed from its prompt.
        backlog_s: an episode ends as unstable when more requests wait than are expected to arrive in this time.
        slo_scale: objective for the end-to-end time, in latencies of the static plan's replicas.
        switch_cost: of each switch, in the unit of the return.
    """

    about: str
    model: str = "llama-2-70b"
    kernels: str | None = None
    gpus: int = 16
    types: tuple[tuple[int, int], ...] = CORNERS
    workloads: tuple[str, ...] = ()
    clusters: int = 4
    cells: int = 32
    mix: tuple[float, ...] | None = None
    drift: str = "spans"
    span_epochs: tuple[int, int] = (5, 10)
    cv: tuple[float, float] = (0.1, 0.7)
    amplitude: float = 1.0
    period_epochs: float = 24.0
    load: tuple[float, float] = (0.85, 0.9)
    noise: float = 0.0
    correlation: float = 0.8
    epochs: int = 50
    epoch_s: float = 60.0
    history: int = 50
    ewma: float = 0.3
    candidates: int = 12
    initial: tuple[tuple[int, int], ...] | None = None
    switching: str = "adhoc"
    fix_s: float = 6.0
    disk_gb_per_s: float = 2.8
    nvlink_gb_per_s: float = NVLINK_GB_PER_S
    infiniband_gb_per_s: float = INFINIBAND_GB_PER_S
    drain_s: float = 5.0
    reroute: bool = True
    dispatch: str = "flow"
    types_known: bool = True
    backlog_s: float = 1200.0
    slo_scale: float = 3.0
    switch_cost: float = 0.0


_SMALL = Scenario(
    "OPT-66B on 16 GPUs, strong drift, 40 decisions of half a minute: an agent can be trained on it in minutes",
    "opt-66b",
    span_epochs=(8, 16),
    cv=(0.8, 1.7),
    load=(0.85, 0.95),
    epochs=40,
    epoch_s=30.0,
    history=6,
    ewma=0.85,
    candidates=8,
    backlog_s=300.0,
)

SCENARIOS: dict[str, Scenario] = {
    "paper": Scenario(
        "Llama2-70B on 16 H100s, 50 minutes, spans of 5 to 10 minutes with one dominant type: the paper's short trace",
    ),
    "paper-long": Scenario(
        "the same for OPT-66B over 800 minutes with spans of one to two and a half hours: the paper's long trace",
        "opt-66b",
        span_epochs=(60, 150),
        epochs=800,
    ),
    "real": Scenario(
        "Llama-3.1-70B from measured kernels; Azure's conversations and code, each with its own course of a day (in 2 hours)",
        "llama-3.1-70b",
        "h100/kernels",
        workloads=("azure-conv-2023", "azure-code-2023"),
        mix=(0.6, 0.4),
        drift="day",
        period_epochs=120.0,
        load=(0.9, 0.9),
        noise=0.1,
        epochs=120,
    ),
    "stress": Scenario(
        "OPT-66B on 32 GPUs, a slow network, abrupt and strong drift with bursts, up to and above what can be served",
        "opt-66b",
        gpus=32,
        span_epochs=(2, 6),
        cv=(0.6, 1.7),
        load=(0.8, 1.05),
        noise=0.25,
        correlation=0.6,
        ewma=0.7,
        infiniband_gb_per_s=10.0,
        candidates=24,
        backlog_s=600.0,
    ),
    "small": _SMALL,
}


def spatial_mix(cv: float, dominant: int, types: int = 4) -> tuple[float, ...]:
    """Shares with one dominant type and equal others, whose coefficient of variation (deviation over mean) is `cv`.

    The reading that Jiang et al. (arXiv 2602.12151, section 6) allow of "CV of the workload"; with four types the dominant one has
    0.25 + 0.433 cv.

    Raises:
        InvalidArgument: no such type, or a CV that shares cannot have.
    """
    whole("types", types, 2, 16)
    whole("dominant", dominant, 0, types - 1)
    share = 1.0 / types + number("cv", cv, zero=True) * math.sqrt(types - 1) / types
    if share > 1.0 + 1e-12:
        raise InvalidArgument(f"cv={cv!r}: expected at most {math.sqrt(types - 1):.3f} for {types} types")
    rest = max(1.0 - share, 0.0) / (types - 1)
    return tuple(share if j == dominant else rest for j in range(types))


def resolve_scenario(scenario: str | Scenario, settings: dict[str, Any]) -> Scenario:
    """The scenario with the arguments put in, checked.

    Raises:
        UnknownName: a scenario, a setting or a choice that does not exist.
        InvalidArgument: a number out of range.
    """
    chosen: Scenario = settled(scenario, SCENARIOS, settings, "OServe", ("about",))
    for name, known in (
        ("model", MODELS),
        ("drift", DRIFTS),
        ("switching", SWITCHING),
        ("dispatch", DISPATCH),
    ):
        choice(name, getattr(chosen, name), known)
    whole("gpus", chosen.gpus, 1, 32)
    whole("epochs", chosen.epochs, high=10_000)
    whole("history", chosen.history, 0, 1000)
    whole("candidates", chosen.candidates, 1, 64)
    whole("clusters", chosen.clusters, 1, 9)
    whole("cells", chosen.cells, chosen.clusters, 256)
    for name in (
        "epoch_s",
        "period_epochs",
        "disk_gb_per_s",
        "nvlink_gb_per_s",
        "infiniband_gb_per_s",
        "backlog_s",
        "slo_scale",
    ):
        number(name, getattr(chosen, name))
    for name in ("amplitude", "noise", "fix_s", "drain_s", "switch_cost"):
        number(name, getattr(chosen, name), zero=True)
    for name, high in (("ewma", 1.0), ("correlation", 0.999)):
        if number(name, getattr(chosen, name), zero=True) > high:
            raise InvalidArgument(f"{name}={getattr(chosen, name)!r}: expected a number from 0 to {high}")
    if chosen.epoch_s < max(10.0, chosen.drain_s):
        raise InvalidArgument(
            f"epoch_s={chosen.epoch_s!r}: expected at least 10 s, and no less than drain_s={chosen.drain_s!r}"
        )
    for name in ("reroute", "types_known"):
        if not isinstance(getattr(chosen, name), bool):
            raise InvalidArgument(f"{name}={getattr(chosen, name)!r}: expected True or False")
    _pair("span_epochs", chosen.span_epochs, True)
    _pair("load", chosen.load, False)
    streams = len(chosen.workloads) or len(chosen.types)
    if not 1 <= streams <= 9:
        raise InvalidArgument(
            f"types={chosen.types!r}: expected prompt and output tokens of 1 to 9 types (or names of workloads)"
        )
    _, high = _pair("cv", chosen.cv, False)
    if high > math.sqrt(streams - 1) + 1e-9 and chosen.drift == "spans" and streams > 1:
        raise InvalidArgument(
            f"cv={chosen.cv!r}: expected at most {math.sqrt(streams - 1):.3f} for {streams} types"
        )
    if chosen.mix is not None:
        mix = tuple(number("mix", share, zero=True) for share in chosen.mix)
        if len(mix) != streams or sum(mix) <= 0.0:
            raise InvalidArgument(f"mix={chosen.mix!r}: expected {streams} numbers >= 0, not all of them 0")
    return chosen


def _pair(name: str, value: Any, whole_numbers: bool) -> tuple[float, float]:
    try:
        low, high = value
    except (TypeError, ValueError):
        raise InvalidArgument(f"{name}={value!r}: expected two numbers, the smaller first") from None
    for part in (low, high):
        if whole_numbers:
            whole(name, part)
        else:
            number(name, part, zero=True)
    if low > high:
        raise InvalidArgument(f"{name}={value!r}: expected two numbers, the smaller first")
    return low, high


@dataclass(frozen=True)
class Requests:
    """The classes of requests of a scenario, and what kinds of types and streams they form.

    Attributes:
        kinds: lengths of each class.
        type_of: int64 [classes].
        guess: int64 [classes], the type that the prompt alone suggests.
        centroids: lengths that stand for each type.
        stream_class: float64 [streams, classes], shares.
        mix: float64 [streams], mean shares of the streams.
    """

    kinds: tuple[RequestType, ...]
    type_of: NDArray[np.int64]
    guess: NDArray[np.int64]
    centroids: tuple[RequestType, ...]
    stream_class: NDArray[np.float64]
    mix: NDArray[np.float64]

    @property
    def types(self) -> int:
        """Number of types."""
        return len(self.centroids)

    @property
    def split(self) -> NDArray[np.float64]:
        """Share of each type among the requests that are taken for a type, by the mean mix; float64 [types, types]."""
        share = self.mix @ self.stream_class
        counted = np.zeros((self.types, self.types))
        np.add.at(counted, (self.guess, self.type_of), share)
        total = counted.sum(axis=1, keepdims=True)
        return np.where(total > 0.0, counted / np.maximum(total, 1e-300), np.eye(self.types))

    @property
    def stream_type(self) -> NDArray[np.float64]:
        """Share of each type in each stream, float64 [streams, types]."""
        return self.stream_class @ np.eye(self.types)[self.type_of]


def requests_of(scenario: Scenario) -> Requests:
    """Classes, types and streams of a scenario."""
    streams = len(scenario.workloads) or len(scenario.types)
    mix = np.full(streams, 1.0) if scenario.mix is None else np.array(scenario.mix, np.float64)
    mix = mix / mix.sum()
    if not scenario.workloads:
        kinds = tuple(check_type(kind) for kind in scenario.types)
        type_of = np.arange(streams)
        shares = np.eye(streams)
        centroids = kinds
    else:
        kinds, type_of, centroids, shares = clustered(
            [workloads.load(name) for name in scenario.workloads], mix, scenario.clusters, scenario.cells
        )
    guess = type_of.astype(np.int64)
    if not scenario.types_known:
        guess = _guessed(kinds, type_of, mix @ shares)
    return Requests(kinds, type_of.astype(np.int64), guess, centroids, shares, mix)


def _guessed(
    kinds: Sequence[RequestType], type_of: NDArray[np.int64], share: NDArray[np.float64]
) -> NDArray[np.int64]:
    """For each class the type of the most requests with about its prompt (within a factor of 1.5)."""
    prompts = np.log([kind.prompt for kind in kinds])
    near = np.abs(prompts[:, None] - prompts[None, :]) <= math.log(1.5)
    votes = (near * share) @ np.eye(type_of.max() + 1)[type_of]
    return np.argmax(votes, axis=1).astype(np.int64)


SAMPLES = 4000
"""Requests of each workload that are clustered."""


def clustered(
    asked: Sequence[Workload], mix: NDArray[np.float64], types: int, cells: int
) -> tuple[tuple[RequestType, ...], NDArray[np.int64], tuple[RequestType, ...], NDArray[np.float64]]:
    """Cluster the lengths of workloads: k-means of log(1 + tokens), as raw lengths would be split by the prompt alone.

    Twice: into the types, and the requests of each type into cells, whose mean lengths are the classes that are simulated.

    Args:
        asked: the workloads.
        mix: float64 [workloads], weights.
        types: J.
        cells: classes in all.

    Returns:
        Lengths of the classes, type of each, lengths of the types, and shares of the classes in each workload.
    """
    from scipy.cluster.vq import kmeans2

    lengths, source = [], []
    for i, workload in enumerate(asked):
        drawn = workload.sample(np.random.default_rng(0), n=max(int(SAMPLES * mix[i] * len(asked)), 200))
        lengths.append(np.column_stack([drawn.prompt_tokens, drawn.output_tokens]))
        source.append(np.full(len(lengths[-1]), i))
    tokens, of = np.concatenate(lengths), np.concatenate(source)
    logs = np.log1p(tokens)
    _, label = kmeans2(logs, types, minit="++", seed=0)
    # numbered by length of prompt, so that numbers mean something
    order = np.argsort([logs[label == j, 0].mean() if (label == j).any() else np.inf for j in range(types)])
    label = np.argsort(order)[label]
    kinds: list[RequestType] = []
    type_of: list[int] = []
    cell = np.zeros(len(tokens), np.int64)
    for j in range(types):
        mine = np.flatnonzero(label == j)
        parts = max(1, round(cells / types))
        _, inner = kmeans2(logs[mine], min(parts, len(mine)), minit="++", seed=j)
        for part in np.unique(inner):
            those = mine[inner == part]
            cell[those] = len(kinds)
            kinds.append(RequestType(*(max(1, round(float(x))) for x in tokens[those].mean(axis=0))))
            type_of.append(j)
    centroids = tuple(
        RequestType(*(max(1, round(float(x))) for x in np.expm1(logs[label == j].mean(axis=0))))
        for j in range(types)
    )
    shares = np.zeros((len(asked), len(kinds)))
    for i in range(len(asked)):
        shares[i] = np.bincount(cell[of == i], minlength=len(kinds))
        shares[i] /= shares[i].sum()
    return tuple(kinds), np.array(type_of), centroids, shares


def type_table(table: RateTable, asked: Requests) -> RateTable:
    """Rates by type: of a type's classes the harmonic mean of rates (work adds up) and the mean latency.

    A shape that cannot hold some class of a type counts as unable to serve the type.
    """
    weight = asked.mix @ asked.stream_class
    shares = np.zeros((len(asked.kinds), asked.types))
    shares[np.arange(len(asked.kinds)), asked.type_of] = np.maximum(weight, 1e-12)
    shares /= shares.sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        rate = 1.0 / _mean(np.where(table.rate > 0.0, 1.0 / table.rate, np.inf), shares)
    return RateTable(
        table.shapes,
        asked.centroids,
        np.where(np.isfinite(rate), rate, 0.0),
        _mean(table.latency_s, shares),
        _mean(table.prefill_s, shares),
        table.capacity,
    )


def _mean(values: NDArray[np.float64], shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means over classes, float64 [shapes, types], of values [shapes, classes] with shares [classes, types]; infinity counts only
    where its share is not 0.
    """
    with np.errstate(invalid="ignore"):
        parts = shares[None] * values[:, :, None]
    return np.asarray(np.where(shares[None] > 0.0, parts, 0.0).sum(axis=1))
