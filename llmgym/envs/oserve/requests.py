"""The requests of a scenario of OServe: the classes that are simulated, the types that they form, and the streams they come in."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmgym import workloads
from llmgym.envs.oserve.scenarios import Scenario
from llmgym.envs.oserve.shapes import RateTable, RequestType, check_lengths
from llmgym.workloads import Workload

SAMPLES = 4000
"""Requests of each workload that are clustered."""
_LEAST_SAMPLES = 200
_NEAR = 1.5
"""Prompts within this factor of each other count as about the same; ours."""


@dataclass(frozen=True)
class Requests:
    """The classes of requests of a scenario, and the types and streams that they form.

    Attributes:
        classes: lengths of the requests of each class.
        type_of: int64 [classes], type of each class.
        guess: int64 [classes], type that a class is taken for at arrival.
        centroids: lengths that stand for each type.
        stream_class: float64 [streams, classes], share of each class in a stream.
        mix: float64 [streams], mean share of each stream.
    """

    classes: tuple[RequestType, ...]
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
        classes = tuple(check_lengths(lengths) for lengths in scenario.types)
        type_of = np.arange(streams)
        shares = np.eye(streams)
        centroids = classes
    else:
        classes, type_of, centroids, shares = clustered(
            [workloads.workload_of("workloads", name) for name in scenario.workloads],
            mix,
            scenario.clusters,
            scenario.cells,
        )
    guess = type_of.astype(np.int64)
    if not scenario.types_known:
        guess = _guessed(classes, type_of, mix @ shares)
    return Requests(classes, type_of.astype(np.int64), guess, centroids, shares, mix)


def _guessed(
    classes: Sequence[RequestType], type_of: NDArray[np.int64], share: NDArray[np.float64]
) -> NDArray[np.int64]:
    """For each class the type of the most requests with about its prompt (within a factor of 1.5)."""
    prompts = np.log([lengths.prompt for lengths in classes])
    near = np.abs(prompts[:, None] - prompts[None, :]) <= math.log(_NEAR)
    votes = (near * share) @ np.eye(type_of.max() + 1)[type_of]
    return np.argmax(votes, axis=1).astype(np.int64)


def clustered(
    sources: Sequence[Workload], mix: NDArray[np.float64], types: int, cells: int
) -> tuple[tuple[RequestType, ...], NDArray[np.int64], tuple[RequestType, ...], NDArray[np.float64]]:
    """Cluster the lengths of workloads: k-means of log(1 + tokens), as raw lengths would be split by the prompt alone.

    Requests are clustered into types, and those of each type into cells, whose mean lengths are the classes that are simulated.

    Args:
        sources: the workloads.
        mix: float64 [workloads], weights.
        types: number of types.
        cells: number of classes, of all types together.

    Returns:
        Lengths of the classes; int64 [classes], type of each; lengths of the types; and float64 [workloads, classes], shares of the
        classes in each workload.
    """
    from scipy.cluster.vq import kmeans2

    lengths, source = [], []
    for i, workload in enumerate(sources):
        n = max(int(SAMPLES * mix[i] * len(sources)), _LEAST_SAMPLES)
        drawn = workload.sample(np.random.default_rng(0), n=n)
        lengths.append(np.column_stack([drawn.prompt_tokens, drawn.output_tokens]))
        source.append(np.full(len(lengths[-1]), i))
    tokens, of = np.concatenate(lengths), np.concatenate(source)
    logs = np.log1p(tokens)
    _, label = kmeans2(logs, types, minit="++", seed=0)
    # numbered by length of prompt, so that numbers mean something
    order = np.argsort([logs[label == j, 0].mean() if (label == j).any() else np.inf for j in range(types)])
    label = np.argsort(order)[label]
    classes: list[RequestType] = []
    type_of: list[int] = []
    cell = np.zeros(len(tokens), np.int64)
    for j in range(types):
        of_type = np.flatnonzero(label == j)
        parts = max(1, round(cells / types))
        _, inner = kmeans2(logs[of_type], min(parts, len(of_type)), minit="++", seed=j)
        for part in np.unique(inner):
            members = of_type[inner == part]
            cell[members] = len(classes)
            classes.append(_rounded(tokens[members].mean(axis=0)))
            type_of.append(j)
    centroids = tuple(_rounded(np.expm1(logs[label == j].mean(axis=0))) for j in range(types))
    shares = np.zeros((len(sources), len(classes)))
    for i in range(len(sources)):
        shares[i] = np.bincount(cell[of == i], minlength=len(classes))
        shares[i] /= shares[i].sum()
    return tuple(classes), np.array(type_of), centroids, shares


def _rounded(lengths: NDArray[np.float64]) -> RequestType:
    """Mean lengths as whole tokens, at least one each."""
    prompt, output = (max(1, round(float(tokens))) for tokens in lengths)
    return RequestType(prompt, output)


def type_table(table: RateTable, requests: Requests) -> RateTable:
    """Rates by type: of a type's classes the harmonic mean of rates (work adds up) and the mean latency.

    A shape that cannot hold some class of a type counts as unable to serve the type.
    """
    weight = requests.mix @ requests.stream_class
    shares = np.zeros((len(requests.classes), requests.types))
    shares[np.arange(len(requests.classes)), requests.type_of] = np.maximum(weight, 1e-12)
    shares /= shares.sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        rate = 1.0 / _mean(np.where(table.rate > 0.0, 1.0 / table.rate, np.inf), shares)
    return RateTable(
        table.shapes,
        requests.centroids,
        np.where(np.isfinite(rate), rate, 0.0),
        _mean(table.latency_s, shares),
        _mean(table.prefill_s, shares),
        table.capacity,
    )


def _mean(values: NDArray[np.float64], shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means over classes, float64 [shapes, types], of values [shapes, classes] with shares [classes, types].

    Infinity counts only where its share is not 0.
    """
    with np.errstate(invalid="ignore"):
        parts = shares[None] * values[:, :, None]
    return np.asarray(np.where(shares[None] > 0.0, parts, 0.0).sum(axis=1))
