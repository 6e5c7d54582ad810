"""Deployments: how the GPUs of a cluster are divided into replicas of different shapes, and how much of a load each can carry.

A deployment is a number of replicas of each shape of a `RateTable`. Its *headroom* for a load (requests a second of each type) is
the largest alpha such that alpha times the load can be served: with y the share of a shape's replicas that works for a type,

    max alpha   s.t.   sum_s rate_sj y_sj = alpha load_j  for every type j,   sum_j y_sj <= replicas_s  for every shape s.

That is the exact form of the lower level of OServe (Jiang et al., arXiv 2602.12151, section 4), whose network of request types and
replicas has a gain on each edge; the solution gives the routing. Here it is a small dense simplex in compiled code, a few
microseconds, so that simulations can route by it; `llmgym.baselines.oserve.policies` has the same by HiGHS and plain maximum flow.

Which deployment is best goes by order (ours; the paper compares flows only): served load, then headroom, and among those within
3 % of the best headroom the smallest expected latency of an unloaded replica.
"""

import functools
import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from llmgym.core.checks import whole
from llmgym.core.jit import kernel
from llmgym.envs.oserve.shapes import MOST_GPUS, RateTable, Shape
from llmgym.errors import InvalidArgument

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]

CLOSE = 0.03
"""Deployments whose headroom is at most this much (relative) below the best are told apart by latency."""
LOAD = 0.9
"""Share of what the best deployment could serve at which deployments are compared where only a mix is given."""
_TINY = 1e-11
"""Coefficients up to this are nothing but rounding."""
_MOST_PIVOTS = 2000
"""Bland's rule ends long before: programs have at most a few hundred columns."""
_SLACKS = 1000
"""Number of the first slack variable, above those of all others."""
_CAUTIOUS = 60
"""Pivots after which the simplex takes the first column that improves (Bland's rule, which cannot cycle)."""


def scratch_size(shapes: int, types: int) -> tuple[int, int]:
    """Rows and columns of the scratch array of `headroom`; the last row and column hold what is basic."""
    return shapes + types + 2, shapes * types + 3


@kernel
def _pivot(t: Floats, rows: int, columns: int, r: int, c: int) -> None:
    """Exchange the basic variable of row r and the variable of column c."""
    inverse = 1.0 / t[r, c]
    for j in range(columns + 1):
        t[r, j] *= inverse
    t[r, c] = inverse
    for i in range(rows + 1):
        if i != r and t[i, c] != 0.0:
            factor = t[i, c]
            for j in range(columns + 1):
                t[i, j] -= factor * t[r, j]
            t[i, c] = -factor * inverse
    basic = t[r, columns + 1]
    t[r, columns + 1] = t[rows + 1, c]
    t[rows + 1, c] = basic


@kernel
def _solve(t: Floats, rows: int, columns: int) -> None:
    """Maximise with the simplex method from a feasible dictionary (all right-hand sides >= 0)."""
    for count in range(_MOST_PIVOTS):
        c, best = -1, -_TINY
        for j in range(columns):
            if t[rows, j] < best:
                c = j
                if count > _CAUTIOUS:
                    break
                best = t[rows, j]
        if c < 0:
            return
        r, least = -1, np.inf
        for i in range(rows):
            if t[i, c] > _TINY:
                ratio = t[i, columns] / t[i, c]
                if ratio < least - _TINY or (
                    r >= 0 and ratio <= least + _TINY and t[i, columns + 1] < t[r, columns + 1]
                ):
                    r, least = i, min(ratio, least)
        if r < 0:
            return
        _pivot(t, rows, columns, r, c)


@kernel
def headroom(replicas: Counts, load: Floats, rate: Floats, scratch: Floats, flow: Floats) -> float:
    """The largest multiple of a load that a deployment can serve, and the flows at it.

    Args:
        replicas: int64 [shapes], replicas of each shape.
        load: float64 [types], requests a second.
        rate: float64 [shapes, types], requests a second that a replica completes.
        scratch: float64, at least `scratch_size(shapes, types)`.
        flow: float64 [shapes, types], written: requests a second that the replicas of a shape get of each type, at the multiple.

    Returns:
        alpha; infinite for no load, 0 where a type that is asked for fits into no replica (the flows are then those of the other
        types).
    """
    shapes, types = rate.shape
    t = scratch
    columns, rows = 1, 0
    stranded = False
    for s in range(shapes):
        for j in range(types):
            flow[s, j] = 0.0
    for i in range(types + shapes + 2):
        for j in range(shapes * types + 3):
            t[i, j] = 0.0
    demanded = 0
    for j in range(types):
        if load[j] > 0.0:
            able = False
            for s in range(shapes):
                able = able or (replicas[s] > 0 and rate[s, j] > 0.0)
            if able:
                demanded += 1
            else:
                stranded = True
    if demanded == 0:
        return 0.0 if stranded else np.inf
    # variables: 0 is alpha, 1 + s types + j is y_sj; basic ones are slacks, numbered from `_SLACKS` on
    scale = 0.0
    for j in range(types):
        scale += load[j]
    for s in range(shapes):
        if replicas[s] > 0:
            for j in range(types):
                if load[j] > 0.0 and rate[s, j] > 0.0:
                    columns += 1
    for j in range(types):
        if load[j] > 0.0:
            able = False
            c = 1
            for s in range(shapes):
                if replicas[s] > 0:
                    for k in range(types):
                        if load[k] > 0.0 and rate[s, k] > 0.0:
                            if k == j:
                                t[rows, c] = -rate[s, j] / scale
                                able = True
                            c += 1
            if able:
                t[rows, 0] = load[j] / scale
                rows += 1
    for s in range(shapes):
        if replicas[s] > 0:
            c = 1
            some = False
            for z in range(shapes):
                if replicas[z] > 0:
                    for k in range(types):
                        if load[k] > 0.0 and rate[z, k] > 0.0:
                            if z == s:
                                t[rows, c] = 1.0
                                some = True
                            c += 1
            if some:
                t[rows, columns] = replicas[s]
                rows += 1
    # the objective is the row below, the names of the columns that below it
    t[rows, 0] = -1.0
    for j in range(columns):
        t[rows + 1, j] = 0.0
    c = 1
    for s in range(shapes):
        if replicas[s] > 0:
            for k in range(types):
                if load[k] > 0.0 and rate[s, k] > 0.0:
                    t[rows + 1, c] = 1 + s * types + k
                    c += 1
    for i in range(rows):
        t[i, columns + 1] = _SLACKS + i
    _solve(t, rows, columns)
    alpha = 0.0
    for i in range(rows):
        name = int(t[i, columns + 1])
        if name == 0:
            alpha = t[i, columns]
        elif name < _SLACKS:
            s = (name - 1) // types
            j = (name - 1) % types
            flow[s, j] = max(t[i, columns], 0.0) * rate[s, j]
    return 0.0 if stranded else alpha


@kernel
def latency(flow: Floats, latency_s: Floats) -> float:
    """Mean latency of unloaded replicas over the requests of a flow, seconds; both float64 [shapes, types]."""
    total, weighted = 0.0, 0.0
    for s in range(flow.shape[0]):
        for j in range(flow.shape[1]):
            if flow[s, j] > 0.0:
                total += flow[s, j]
                weighted += flow[s, j] * latency_s[s, j]
    return weighted / total if total > 0.0 else 0.0


@kernel
def headrooms(
    replicas: Counts,
    loads: Floats,
    rate: Floats,
    latency_s: Floats,
    scratch: Floats,
    flow: Floats,
    out: Floats,
) -> None:
    """Headroom and latency of each deployment for each load.

    Args:
        replicas: int64 [deployments, shapes], replicas of each shape.
        loads: float64 [loads, types], requests a second.
        rate: float64 [shapes, types], requests a second that a replica completes.
        latency_s: float64 [shapes, types], latency of a lone request, seconds.
        scratch: float64, at least `scratch_size(shapes, types)`.
        flow: float64 [shapes, types], written over.
        out: float64 [loads, deployments, 2], written: headroom, and mean unloaded latency, seconds.
    """
    for m in range(loads.shape[0]):
        for d in range(replicas.shape[0]):
            out[m, d, 0] = headroom(replicas[d], loads[m], rate, scratch, flow)
            out[m, d, 1] = latency(flow, latency_s)


def evaluate(table: RateTable, replicas: Counts, loads: Floats) -> tuple[Floats, Floats]:
    """Headroom and mean unloaded latency of deployments for loads.

    Args:
        table: rates; its classes are the types.
        replicas: int64 [deployments, shapes], replicas of each shape.
        loads: float64 [loads, types], requests a second.

    Returns:
        Headrooms, and mean unloaded latencies in seconds; both float64 [loads, deployments].
    """
    shapes, types = table.rate.shape
    out = np.zeros((len(loads), len(replicas), 2))
    headrooms(
        np.array(replicas, np.int64),
        np.array(loads, np.float64),
        _fixed(table.rate),
        _fixed(table.latency_s),
        np.zeros(scratch_size(shapes, types)),
        np.zeros((shapes, types)),
        out,
    )
    return out[..., 0], out[..., 1]


def flows(table: RateTable, replicas: Counts, load: Floats) -> tuple[float, Floats]:
    """Headroom of one deployment, and its flows there.

    Args:
        table: rates; its classes are the types.
        replicas: int64 [shapes], replicas of each shape.
        load: float64 [types], requests a second.

    Returns:
        The headroom, and float64 [shapes, types], requests a second that the replicas of a shape get of each type at it.
    """
    shapes, types = table.rate.shape
    flow = np.zeros((shapes, types))
    scratch = np.zeros(scratch_size(shapes, types))
    alpha = headroom(
        np.array(replicas, np.int64), np.array(load, np.float64), _fixed(table.rate), scratch, flow
    )
    return float(alpha), flow


def _fixed(values: Floats) -> Floats:
    """A view that cannot be written to: compiled code is made once for the tables of a simulation and for these."""
    view = values.view()
    view.setflags(write=False)
    return view


def best(alpha: Floats, latency_s: Floats) -> int:
    """The best of some deployments: most served, then headroom, then within 3 % of the best the smallest latency.

    Args:
        alpha: float64 [deployments], headrooms.
        latency_s: float64 [deployments], mean unloaded latencies, seconds.

    Returns:
        Its place in `alpha`.
    """
    top = float(np.max(alpha))
    near = alpha >= (1.0 - CLOSE) * top
    if top >= 1.0:
        # what serves everything comes before what does not
        near &= alpha >= 1.0
    # equal but for rounding: pipelines of one and of several stages can have the same latency
    first = latency_s <= 1.001 * np.min(latency_s[near])
    return int(np.argmax(np.where(near & first, alpha, -np.inf)))


def best_for_a_mix(alpha: Floats, latency_s: Floats) -> int:
    """The `best` of some deployments where only a mix is given: for `LOAD` of what they could serve at most."""
    return best(alpha / (LOAD * alpha.max()), latency_s)


def catalogue(shapes: Sequence[Shape], gpus: int) -> Counts:
    """Every deployment that uses all GPUs, int64 [deployments, shapes]; uniform ones are among them.

    Raises:
        InvalidArgument: no set of replicas of these shapes takes exactly so many GPUs.
    """
    whole("gpus", gpus, 1, MOST_GPUS)
    rows = np.array(list(_multisets(tuple(shape.gpus for shape in shapes), gpus)), np.int64)
    if not len(rows):
        sizes = sorted({shape.gpus for shape in shapes})
        raise InvalidArgument(
            f"gpus={gpus}: replicas of {', '.join(map(str, sizes)) or 'no'} GPUs cannot use all of them"
        )
    return rows.reshape(len(rows), len(shapes))


def _multisets(sizes: tuple[int, ...], gpus: int) -> Iterator[tuple[int, ...]]:
    if not sizes:
        if gpus == 0:
            yield ()
        return
    for count in range(gpus // sizes[0] + 1):
        for rest in _multisets(sizes[1:], gpus - count * sizes[0]):
            yield (count, *rest)


def serving_all(table: RateTable, replicas: Counts) -> NDArray[np.bool_]:
    """Which deployments can hold every class, bool [deployments]."""
    able = (table.rate > 0.0).astype(np.int64)
    return np.asarray((replicas @ able > 0).all(axis=1))


def uniform(replicas: Counts) -> NDArray[np.bool_]:
    """Which deployments have replicas of one shape only, bool [deployments]."""
    return np.asarray((replicas > 0).sum(axis=1) == 1)


def mixes(types: int, steps: int) -> Floats:
    """All shares of the types that are multiples of 1 / steps, float64 [mixes, types]."""
    grid = [part for part in itertools.product(range(steps + 1), repeat=types - 1) if sum(part) <= steps]
    return np.array([(*part, steps - sum(part)) for part in grid], np.float64) / steps


def cover(alpha: Floats, latency_s: Floats, most: int, keep: Sequence[int] = ()) -> list[int]:
    """A few deployments such that for every load one of them is about as good as the best of all.

    About as good: headroom and latency within 3 % of what `best` chooses (of the best headroom, of that one's latency). Greedy:
    each time the one that does for the most loads which none of the others does for; then the one that gains the most headroom.

    Args:
        alpha: float64 [loads, deployments], headrooms.
        latency_s: float64 [loads, deployments], mean unloaded latencies, seconds.
        most: deployments to choose.
        keep: numbers of deployments that are chosen in any case.

    Returns:
        Numbers of deployments.
    """
    first = [best_for_a_mix(*row) for row in zip(alpha, latency_s, strict=True)]
    fast = latency_s <= (1.0 + CLOSE) * np.take_along_axis(latency_s, np.array(first)[:, None], 1)
    share = alpha / alpha.max(axis=1, keepdims=True)
    does = fast & (share >= 1.0 - CLOSE)
    chosen = list(dict.fromkeys(keep))
    while len(chosen) < min(most, alpha.shape[1]):
        left = ~does[:, chosen].any(axis=1)
        now = share[:, chosen].max(axis=1) if chosen else np.zeros(len(share))
        gain = does[left].sum(axis=0) + np.mean(np.maximum(share - now[:, None], 0.0), axis=0)
        if not left.any():
            break
        chosen.append(int(np.argmax(gain)))
    return chosen


@functools.lru_cache(maxsize=32)
def _grid(types: int) -> Floats:
    """Mixes that stand for all of them: fewer steps for more types, so that there are some hundred."""
    return mixes(types, {1: 1, 2: 40, 3: 16, 4: 10}.get(types, 4))


def candidates(
    table: RateTable, replicas: Counts, most: int, keep: Sequence[int] = ()
) -> tuple[list[int], float]:
    """Deployments that together do well on all mixes of the types, and the largest share of headroom that they lose.

    Args:
        table: rates; its classes are the types.
        replicas: int64 [deployments, shapes], replicas of each shape.
        most: deployments to choose.
        keep: numbers of deployments that are chosen in any case.

    Returns:
        Numbers of deployments, and the largest share of the best headroom that they fall short of.
    """
    grid = _grid(len(table.classes))
    alpha, latency_s = evaluate(table, replicas, grid)
    chosen = cover(alpha, latency_s, most, keep)
    lost = 1.0 - alpha[:, chosen].max(axis=1) / alpha.max(axis=1)
    return chosen, float(lost.max())
