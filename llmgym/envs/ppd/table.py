"""The SLO table: TTFT and TPOT of second turns on both routes, measured cell by cell by running the simulation.

Li et al., arXiv 2603.13358, section 4.2 and Algorithm 1: for each context class, workload type and request rate, conversations of
two turns arrive for 10 s, once with all second turns through P and once with all on D. A table belongs to a cluster, not to a
workload. It is kept on disk under a key of everything that it depends on.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
from numpy.typing import NDArray

from llmgym.core.checks import number
from llmgym.core.lanes import HOLD, Lanes, seeded_key
from llmgym.core.store import Store, key, running
from llmgym.envs.ppd.cells import CONTEXTS, FIRST_TURN, SECOND_TURN, TYPES, nearest
from llmgym.envs.ppd.cluster import PPDCluster, most_arrivals
from llmgym.envs.ppd.conversations import Conversations, fixed_turns
from llmgym.envs.ppd.state import LOCAL, REMOTE, P
from llmgym.workloads import Workload
from llmgym.workloads.packing import pack

TABLES = Store("tables", "ppd")

WINDOW_S = 10.0
EPISODES = 4
"""Runs of each cell; the paper has one. A rate of 0.5 a second is five conversations in a run."""
LIMIT_S = 3600.0
"""A run is cut after this time, seconds, which no cell reaches."""
LONGEST_CELL = 4096
"""Room for the longest conversation of the cells, tokens."""
_SEED = 4_000_000_000
"""Of the first run of a cell: these worlds are nobody else's."""
_IRRELEVANT = (
    "about",
    "workload",
    "profile",
    "qps",
    "conversations",
    "window_s",
    "shape",
    "day_s",
    "limit_s",
    "max_turns",
    "information",
    "noise_scale",
    "rate",
    "bypass",
    "reference",
    "w_ttft",
    "w_tpot",
    "timeout_cost",
    "ttft_slo_s",
    "tpot_slo_s",
    "epoch_s",
    "epochs",
)
"""Settings of a scenario that the runs of a table set themselves, or that change nothing in them."""


@dataclass(frozen=True)
class SloTable:
    """What was measured, and what it says.

    Attributes:
        rates: float64 [rates], conversations a second (in the cells' runs), which online stands for requests a second.
        ttft_s: float64 [2, contexts, types, rates], mean TTFT of completed second turns through P and on D; NaN
            where none completed.
        tpot_s: mean TPOT, as `ttft_s`.
        success: share of requests that completed, as `ttft_s`.
    """

    rates: NDArray[np.float64]
    ttft_s: NDArray[np.float64]
    tpot_s: NDArray[np.float64]
    success: NDArray[np.float64]

    def score(self, w_ttft: float, w_tpot: float) -> NDArray[np.float64]:
        """S of Eq. 1 in each cell.

        Args:
            w_ttft: weight of TTFT.
            w_tpot: weight of TPOT.

        Returns:
            float64 [contexts, types, rates]; infinite where the way over P failed.

        Raises:
            InvalidArgument: a weight below 0.
        """
        w_ttft, w_tpot = number("w_ttft", w_ttft, zero=True), number("w_tpot", w_tpot, zero=True)
        gain = (self.ttft_s[REMOTE] - self.ttft_s[LOCAL]) / self.ttft_s[REMOTE]
        loss = (self.tpot_s[LOCAL] - self.tpot_s[REMOTE]) / self.tpot_s[REMOTE]
        score = w_ttft * gain - w_tpot * loss
        return np.where(np.isnan(self.ttft_s[REMOTE]), math.inf, np.where(np.isnan(score), -math.inf, score))

    def routes(self, w_ttft: float, w_tpot: float) -> NDArray[np.int8]:
        """Route of each cell: local where S of Eq. 1 is above 0.

        Args:
            w_ttft: weight of TTFT.
            w_tpot: weight of TPOT.

        Returns:
            int8 [contexts, types, rates], `REMOTE` or `LOCAL`.

        Raises:
            InvalidArgument: a weight below 0.
        """
        return (self.score(w_ttft, w_tpot) > 0.0).astype(np.int8)

    def reference(self, rate: float) -> NDArray[np.float64]:
        """TTFT and TPOT through P at the nearest rate, s, float64 [2, contexts, types]; 0 where nothing was measured."""
        k = nearest(self.rates, rate)
        return np.nan_to_num(np.stack([self.ttft_s[REMOTE, ..., k], self.tpot_s[REMOTE, ..., k]]))


def cell_conversations(context: str, turn_type: str) -> Conversations:
    """The two turns of a cell."""
    return fixed_turns((FIRST_TURN[context], SECOND_TURN[turn_type]), f"{context}_{turn_type}")


def run_cell(
    cluster: PPDCluster,
    router: type[PPDCluster],
    context: str,
    turn_type: str,
    rate: float,
    routes: Sequence[int] = (REMOTE, LOCAL),
    episodes: int = EPISODES,
) -> list[dict[str, float]]:
    """Metrics of a cell on each of the routes: means over requests, sums over `episodes` runs, the same worlds for all routes.

    Args:
        cluster: whose nodes and costs count.
        router: the simulation that routes turn by turn (`PPDRouting`), which is run.
        context: one of `CONTEXTS`.
        turn_type: one of `TYPES`.
        rate: conversations a second.
        routes: `REMOTE`, `LOCAL` or both.
        episodes: runs on each route.

    Returns:
        Metrics by name, one mapping for each of the routes.
    """
    longest = max(cluster.scenario.longest, LONGEST_CELL)
    scenario = replace(
        cluster.scenario,
        profile=None,
        qps=rate,
        conversations=most_arrivals(rate * WINDOW_S),
        window_s=WINDOW_S,
        shape=None,
        limit_s=LIMIT_S,
        max_turns=2,
        information="exact",
        reference="idle",
        bypass=0,
        longest=longest,
        kv_capacity=max(cluster.kv_capacity, longest + 1),
    )
    simulation = router(
        scenario=scenario,
        workload=cell_conversations(context, turn_type),
        profile=cluster.profile,
        latencies=cluster.latencies,
        reward="slo",
    )
    lanes = Lanes(simulation, episodes * len(routes))
    lanes.reset(None, [seeded_key(_SEED + i) for i in range(episodes)] * len(routes))
    lanes.buffers.action[:, 0] = np.repeat(routes, episodes)
    while not lanes.buffers.ended.all():
        lanes.step(HOLD)
    return [
        _together(dict(zip(simulation.metric_names, part.T, strict=True)))
        for part in np.split(lanes.metric_columns(), len(routes))
    ]


def _together(rows: dict[str, NDArray[np.float64]]) -> dict[str, float]:
    """Metrics of several runs as of one: means weighted by completed second turns, everything else summed.

    A run without any has no mean, and no weight.
    """
    total = {name: float(values.sum()) for name, values in rows.items()}
    for name in ("ttft_mean_s", "tpot_mean_s", "e2e_mean_s"):
        there = np.isfinite(rows[name])
        values, weights = rows[name][there], rows["later_completed"][there]
        total[name] = float(values @ weights / weights.sum()) if weights.sum() else math.nan
    total["success"] = total["completed"] / max(total["completed"] + total["timeouts"], 1.0)
    return total


def build(cluster: PPDCluster, router: type[PPDCluster], episodes: int = EPISODES) -> SloTable:
    """Measure every cell on both routes.

    Args:
        cluster: whose nodes and costs count; its scenario has the rates.
        router: the simulation that is run (`PPDRouting`).
        episodes: runs of each cell on each route.

    Returns:
        The table.
    """
    rates = np.array(cluster.scenario.rates)
    shape = (2, len(CONTEXTS), len(TYPES), len(rates))
    ttft, tpot, success = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    for i, j, k in np.ndindex(shape[1:]):
        both = run_cell(cluster, router, CONTEXTS[i], TYPES[j], float(rates[k]), (REMOTE, LOCAL), episodes)
        for route, cell in enumerate(both):
            ttft[route, i, j, k], tpot[route, i, j, k] = cell["ttft_mean_s"], cell["tpot_mean_s"]
            success[route, i, j, k] = cell["success"]
    return SloTable(rates, ttft, tpot, success)


def table_key(cluster: PPDCluster, router: type[PPDCluster], episodes: int = EPISODES) -> str | None:
    """What a table depends on, as a key: cluster, costs, grid, and the functions that measure it.

    Args:
        cluster: whose nodes and costs count.
        router: the simulation that is run (`PPDRouting`).
        episodes: runs of each cell on each route.

    Returns:
        The key, see `llmgym.core.store.key`.
    """
    settings = {name: value for name, value in asdict(cluster.scenario).items() if name not in _IRRELEVANT}
    inputs = {
        "settings": settings,
        "latencies": cluster.latencies.as_dict(),
        "cells": [FIRST_TURN, SECOND_TURN],
        "run": [WINDOW_S, episodes, _SEED],
        "nodes": [cluster.nodes, cluster.kv_bytes, cluster.kv_capacity],
        "cost": None if cluster.profile is None else tuple(cluster.profile.step_cost()),
    }
    making = (
        PPDCluster._params,
        PPDCluster._config,
        PPDCluster._opening,
        PPDCluster.allocate,
        Workload.with_rate,
        pack,
    )
    return key(inputs, (*running(router), *making, build))


def table_of(cluster: PPDCluster, router: type[PPDCluster], episodes: int = EPISODES) -> SloTable:
    """The table of a cluster: from memory, from disk, or measured now, which takes some seconds, and kept.

    Args:
        cluster: whose nodes and costs count.
        router: the simulation that is run (`PPDRouting`).
        episodes: runs of each cell on each route.

    Returns:
        The table.
    """
    arrays = TABLES.get(table_key(cluster, router, episodes), lambda: vars(build(cluster, router, episodes)))
    return SloTable(**arrays)


def reference_of(cluster: PPDCluster, router: type[PPDCluster]) -> NDArray[np.float64]:
    """TTFT and TPOT through P in the table of the cluster; without a P, of one in which one node is P and the others D.

    Args:
        cluster: whose nodes and costs count.
        router: the simulation that is run (`PPDRouting`).

    Returns:
        float64 [2, contexts, types], seconds; zeros for a single node without a P, which cannot be divided.
    """
    chosen, measured = cluster.scenario, cluster
    if P not in cluster.nodes:
        if len(cluster.nodes) == 1:
            return np.zeros((2, len(CONTEXTS), len(TYPES)))
        other = replace(chosen, allocation=f"1P_{len(cluster.nodes) - 1}D", reference="idle", profile=None)
        measured = router(
            scenario=other, workload=cluster.workload, profile=cluster.profile, latencies=cluster.latencies
        )
    return table_of(measured, router).reference(chosen.qps)
