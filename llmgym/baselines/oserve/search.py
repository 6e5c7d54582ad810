"""The two levels of OServe as functions: routing by flow or linear program, and the search over deployments.

Jiang, Fu, Wang, He and Yoneki, "OServe: Accelerating LLM Serving via Spatial-Temporal Workload Orchestration", ICML 2026 (arXiv
2602.12151), section 4. The paper solves the lower level by preflow-push on a network from request types to replicas. A replica's
capacity differs from type to type there, which is a gain on an edge that a maximum flow does not know; `route_lp` is the exact
form.
"""

import itertools
from dataclasses import dataclass

import numpy as np

from llmgym.core.checks import choice, whole
from llmgym.envs.oserve.deployments import Counts, Floats, best, catalogue, evaluate, serving_all, uniform
from llmgym.envs.oserve.shapes import RateTable, positive_demand
from llmgym.errors import InvalidArgument

STALL = 20
"""The search ends after so many iterations without a gain (section 4)."""
_UNITS = 10_000.0
"""Units of flow that the largest rate of the demand is rounded to: networkx wants whole capacities."""
_SOLVERS = ("simplex", "lp", "preflow")


@dataclass(frozen=True)
class Routing:
    """Shares of a load for the replicas of a deployment.

    Attributes:
        headroom: largest multiple of the load that can be served; for a maximum flow the share that is served, which is at most 1.
        served: share of the load that is served.
        flow: float64 [shapes, types], requests a second that all replicas of a shape get.
        utilization: float64 [shapes], share of their time that the replicas of a shape work: above 1 where a plain flow asks too
            much of them, 0 where there are none.
    """

    headroom: float
    served: float
    flow: Floats
    utilization: Floats


def _counts(table: RateTable, replicas: Counts) -> Counts:
    counts = np.asarray(replicas)
    if counts.shape != (len(table.shapes),) or counts.dtype.kind not in "iu" or (counts < 0).any():
        raise InvalidArgument(
            f"replicas={replicas!r}: expected a number >= 0 for each of {len(table.shapes)} shapes"
        )
    if not counts.any():
        raise InvalidArgument("replicas: expected one replica or more")
    return counts.astype(np.int64)


def _utilization(table: RateTable, replicas: Counts, flow: Floats) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        work = np.where(flow > 0.0, flow / table.rate, 0.0).sum(axis=1)
        return np.where(replicas > 0, work / np.maximum(replicas, 1), 0.0)


def route_lp(table: RateTable, replicas: Counts, demand: Floats) -> Routing:
    """Route by the linear program, solved by HiGHS: the most served, then the largest headroom.

    Args:
        table: rates by type.
        replicas: int [shapes], replicas of each shape.
        demand: [types], requests a second, >= 0.

    Returns:
        Headroom, served share, flow of each shape, and utilization.

    Raises:
        InvalidArgument: no replica, or a demand that is negative or of another length.
    """
    from scipy.optimize import linprog

    counts = _counts(table, replicas)
    load = positive_demand(demand, table.rate.shape[1])
    shapes, types = table.rate.shape
    cells = [(s, j) for s in range(shapes) for j in range(types) if counts[s] and table.rate[s, j] > 0.0]
    if load.sum() == 0.0 or not cells:
        none = np.zeros((shapes, types))
        return Routing(np.inf if load.sum() == 0.0 else 0.0, float(load.sum() == 0.0), none, np.zeros(shapes))
    capacity, by_type = np.zeros((shapes, len(cells) + 1)), np.zeros((types, len(cells) + 1))
    for k, (s, j) in enumerate(cells):
        capacity[s, k] = 1.0 / table.rate[s, j]
        by_type[j, k] = 1.0
    by_type[:, -1] = -load
    goal = np.zeros(len(cells) + 1)
    goal[-1] = -1.0
    result = linprog(goal, capacity, counts, by_type, np.zeros(types), method="highs")
    alpha, x = float(result.x[-1]), result.x[:-1] / max(float(result.x[-1]), 1e-300)
    if alpha < 1.0:
        goal = np.concatenate([-np.ones(len(cells)), [0.0]])
        rows, most = np.concatenate([capacity, by_type]), np.concatenate([counts.astype(float), load])
        rows[:, -1] = 0.0
        x = linprog(goal, rows, most, method="highs").x[:-1]
    flow = np.zeros((shapes, types))
    for k, (s, j) in enumerate(cells):
        flow[s, j] = max(float(x[k]), 0.0)
    served = float(flow.sum() / load.sum())
    return Routing(alpha, served, flow, _utilization(table, counts, flow))


def route_preflow(table: RateTable, replicas: Counts, demand: Floats) -> Routing:
    """Route by a maximum flow (preflow-push): the paper's network with one capacity a replica, its mean rate over the types.

    Exact only if every replica's rates are the same multiple of every other's. Otherwise replicas get more of the types they are
    bad at than they can serve: `utilization` of the result says how much.

    Args:
        table: rates by type.
        replicas: int [shapes], replicas of each shape.
        demand: [types], requests a second, >= 0.

    Returns:
        Served share, which is the headroom too, flow of each shape, and utilization.

    Raises:
        InvalidArgument: no replica, or a demand that is negative or of another length.
    """
    import networkx
    from networkx.algorithms.flow import preflow_push

    counts = _counts(table, replicas)
    load = positive_demand(demand, table.rate.shape[1])
    units = _UNITS / max(float(load.max()), 1e-9)
    machines = [s for s in range(len(counts)) for _ in range(counts[s])]
    # nodes are numbers: networkx keeps them in sets, and the order of names in a set changes from process to process
    types, size = len(load), len(machines)
    source, sink = types + 2 * size, types + 2 * size + 1
    graph = networkx.DiGraph()
    graph.add_nodes_from(range(sink + 1))
    for j, rate in enumerate(load):
        graph.add_edge(source, j, capacity=round(rate * units))
    for k, s in enumerate(machines):
        able = table.rate[s] > 0.0
        for j in np.flatnonzero(able).tolist():
            graph.add_edge(j, types + k, capacity=round(table.rate[s, j] * units))
        mean = round(float(table.rate[s][able].mean()) * units) if able.any() else 0
        graph.add_edge(types + k, types + size + k, capacity=mean)
        graph.add_edge(types + size + k, sink)
    residual = preflow_push(graph, source, sink)
    flow = np.zeros(table.rate.shape)
    for k, s in enumerate(machines):
        for j in range(types):
            flow[s, j] += residual.edges.get((j, types + k), {"flow": 0})["flow"] / units
    served = float(flow.sum() / load.sum()) if load.sum() > 0.0 else 1.0
    return Routing(served, served, flow, _utilization(table, counts, flow))


@dataclass(frozen=True)
class SearchResult:
    """The best deployment that a search has come across.

    Attributes:
        replicas: int64 [shapes], replicas of each shape.
        headroom: multiple of the load that they can serve.
        latency_s: mean unloaded latency, seconds.
        most: largest headroom of all that was looked at; up to 3 % of it are given up for latency.
        iterations: iterations of the search.
        evaluated: deployments that were looked at.
    """

    replicas: Counts
    headroom: float
    latency_s: float
    most: float
    iterations: int
    evaluated: int


def _value(table: RateTable, rows: Counts, load: Floats, solver: str) -> tuple[Floats, Floats]:
    """Headroom and unloaded latency (seconds) of deployments; 0 where one cannot serve every type of the load."""
    if solver == "simplex":
        alpha, latency_s = evaluate(table, rows, load[None])
        return alpha[0], latency_s[0]
    route = route_lp if solver == "lp" else route_preflow
    values, times = [], []
    with np.errstate(invalid="ignore"):
        for row in rows:
            routing = route(table, row, load)
            values.append(routing.headroom)
            spent = np.where(routing.flow > 0.0, routing.flow * table.latency_s, 0.0).sum()
            times.append(spent / max(float(routing.flow.sum()), 1e-12))
    return np.array(values), np.array(times)


def brute_force(table: RateTable, demand: Floats, gpus: int) -> SearchResult:
    """The best of all deployments that use all GPUs.

    Args:
        table: rates by type.
        demand: [types], requests a second, >= 0.
        gpus: GPUs of the cluster.

    Returns:
        The best deployment, with the number of deployments that were looked at.

    Raises:
        InvalidArgument: a demand that is negative, GPUs that no replicas fill, or a demand that no deployment can serve.
    """
    load = positive_demand(demand, table.rate.shape[1])
    rows = catalogue(table.shapes, gpus)
    rows = rows[serving_all(table, rows)]
    if not len(rows):
        raise InvalidArgument(f"gpus={gpus}: no deployment can serve every type")
    alpha, latency_s = evaluate(table, rows, load[None])
    d = best(alpha[0], latency_s[0])
    return SearchResult(rows[d], float(alpha[0, d]), float(latency_s[0, d]), float(alpha.max()), 1, len(rows))


def search(
    table: RateTable,
    demand: Floats,
    gpus: int,
    current: Counts | None = None,
    *,
    seed: int = 0,
    solver: str = "simplex",
    stall: int = STALL,
) -> SearchResult:
    """The upper level: move GPUs from replicas with room to those without, change strategies, merge, split, swap.

    The paper names the moves (section 4 and appendix) and the end after 20 iterations without a gain; the order of the moves is
    random here, ties too. It starts from the better of the present deployment and the best uniform one. Of everything it has
    looked at, `llmgym.envs.oserve.deployments.best` takes one.

    Args:
        table: rates by type.
        demand: [types], requests a second, >= 0.
        gpus: GPUs of the cluster.
        current: int [shapes], replicas of each shape now; None: only uniform deployments are starts.
        seed: seeds the order of moves.
        solver: what solves the lower level: "simplex" (compiled, exact), "lp" (HiGHS, the same) or "preflow".
        stall: iterations without a gain that end it.

    Returns:
        The best deployment that was found, with the number of iterations and of deployments that were looked at.

    Raises:
        UnknownName: no such solver.
        InvalidArgument: a demand that is negative, GPUs that no equal replicas fill, a `current` that is not a number >= 0 for
            each shape, or a `stall` below 1.
    """
    choice("solver", solver, _SOLVERS)
    whole("stall", stall)
    load = positive_demand(demand, table.rate.shape[1])
    rng = np.random.default_rng(seed)
    starts = catalogue_uniform(table, gpus)
    if current is not None:
        starts = np.concatenate([_counts(table, current)[None], starts])
    seen: dict[tuple[int, ...], tuple[float, float]] = {}

    def look(rows: Counts) -> Floats:
        fresh = [row for row in rows if tuple(row.tolist()) not in seen]
        if fresh:
            alpha, latency_s = _value(table, np.array(fresh), load, solver)
            for row, a, t in zip(fresh, alpha, latency_s, strict=True):
                seen[tuple(row.tolist())] = float(a), float(t)
        return np.array([seen[tuple(row.tolist())][0] for row in rows])

    values = look(starts)
    now, value = starts[int(np.argmax(values))], float(values.max())
    iterations, without = 0, 0
    moves: list[str] = []
    while without < stall:
        iterations += 1
        if not moves:
            moves = rng.permutation(["move", "merge", "split", "swap", "restrategy"]).tolist()
        rows = _neighbours(table, now, load, moves.pop(), rng)
        without += 1
        if len(rows):
            values = look(rows)
            k = int(np.argmax(values))
            if values[k] > value * (1.0 + 1e-9):
                now, value, without = rows[k], float(values[k]), 0
    names = list(seen)
    d = best(np.array([seen[name][0] for name in names]), np.array([seen[name][1] for name in names]))
    return SearchResult(np.array(names[d], np.int64), *seen[names[d]], value, iterations, len(seen))


def catalogue_uniform(table: RateTable, gpus: int) -> Counts:
    """Deployments of equal replicas that use all GPUs and can serve every type, int64 [deployments, shapes].

    Raises:
        InvalidArgument: there are none.
    """
    sizes = [shape.gpus for shape in table.shapes]
    rows = np.array([np.eye(len(sizes), dtype=np.int64)[s] * (gpus // size) for s, size in enumerate(sizes)])
    rows = rows[(rows @ sizes == gpus) & (rows.sum(axis=1) > 0)]
    rows = rows[serving_all(table, rows) & uniform(rows)]
    if not len(rows):
        raise InvalidArgument(f"gpus={gpus}: no equal replicas use all GPUs and serve every type")
    return rows


def _neighbours(table: RateTable, now: Counts, load: Floats, move: str, rng: np.random.Generator) -> Counts:
    """Deployments one move away, over all strategies of the replicas that change, int64 [n, shapes]."""
    sizes = np.array([shape.gpus for shape in table.shapes])
    machines = np.repeat(np.arange(len(now)), now)
    # how much of its stage time a replica would need if the load were divided by rate alone: hot ones first
    share = np.where(table.rate > 0.0, table.rate, 0.0) * now[:, None]
    part = share / np.maximum(share.sum(axis=0), 1e-300) * load
    need = np.where(now > 0, _utilization(table, np.maximum(now, 1), part), 0.0)
    order = machines[np.lexsort((rng.random(len(machines)), -need[machines]))]
    hot, cold = int(order[0]), int(order[-1])
    if rng.random() < 0.5:
        # the flow alone does not always show what binds
        hot, cold = (int(k) for k in rng.choice(machines, 2, replace=len(machines) < 2))
    taken, wanted = [hot], [int(sizes[hot])]
    if move == "merge":
        equal = [int(k) for k in order[::-1] if sizes[k] == sizes[cold]]
        if len(equal) < 2:
            return np.zeros((0, len(now)), np.int64)
        taken, wanted = equal[:2], [2 * int(sizes[cold])]
    elif move == "split":
        taken, wanted = [cold], [int(sizes[cold]) // 2] * 2
    elif move == "swap":
        taken, wanted = [hot, cold], [int(sizes[cold]), int(sizes[hot])]
    elif move == "move":
        half = int(sizes[cold]) // 2
        third = [int(k) for k in machines if sizes[k] == half]
        if int(sizes[hot]) == half:
            taken, wanted = [hot, cold], [2 * half, half]
        elif third:
            taken, wanted = [cold, third[0]], [half, 2 * half]
        else:
            taken, wanted = [cold], [half, half]
    options = [np.flatnonzero(sizes == size).tolist() for size in wanted]
    rest = now.copy()
    for k in taken:
        rest[k] -= 1
    if (rest < 0).any():
        return np.zeros((0, len(now)), np.int64)
    rows = []
    for added in itertools.product(*options):
        row = rest.copy()
        for k in added:
            row[k] += 1
        rows.append(row)
    distinct: Counts = np.unique(np.array(rows, np.int64).reshape(-1, len(now)), axis=0)
    return distinct[serving_all(table, distinct)] if len(distinct) else distinct
