"""The SLO table: TTFT and TPOT of second turns on both routes, measured cell by cell by running the simulation.

Li et al., arXiv 2603.13358, section 4.2 and Algorithm 1: for each context class, workload type and request rate, conversations of
two turns arrive for 10 s, once with all second turns through P and once with all on D. A table belongs to a cluster, not to a
workload.
Tables are kept on disk under a key of everything that they depend on.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
from numpy.typing import NDArray

from llmgym.core.checks import number
from llmgym.core.lanes import HOLD, Lanes, seeded_key
from llmgym.core.store import Store, key, running
from llmgym.envs.ppd.cells import CONTEXTS, FIRST_TURN, SECOND_TURN, TYPES
from llmgym.envs.ppd.cluster import PPDCluster
from llmgym.envs.ppd.conversations import Conversations, fixed_turns
from llmgym.envs.ppd.scenarios import Scenario
from llmgym.envs.ppd.state import LOCAL, REMOTE, P
from llmgym.workloads import Workload
from llmgym.workloads.packing import pack

TABLES = Store("tables", "ppd")

WINDOW_S = 10.0
EPISODES = 4
"""Runs of each cell; the paper has one. A rate of 0.5 a second is five conversations in a run."""
_SEED = 4_000_000_000
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
        tpot_s: the same of TPOT.
        success: the same of the share of requests that completed.
    """

    rates: NDArray[np.float64]
    ttft_s: NDArray[np.float64]
    tpot_s: NDArray[np.float64]
    success: NDArray[np.float64]

    def score(self, w_ttft: float, w_tpot: float) -> NDArray[np.float64]:
        """S of Eq. 1 in each cell, float64 [contexts, types, rates]; infinite where the way over P failed."""
        w_ttft, w_tpot = number("w_ttft", w_ttft, zero=True), number("w_tpot", w_tpot, zero=True)
        gain = (self.ttft_s[REMOTE] - self.ttft_s[LOCAL]) / self.ttft_s[REMOTE]
        loss = (self.tpot_s[LOCAL] - self.tpot_s[REMOTE]) / self.tpot_s[REMOTE]
        score = w_ttft * gain - w_tpot * loss
        return np.where(np.isnan(self.ttft_s[REMOTE]), math.inf, np.where(np.isnan(score), -math.inf, score))

    def routes(self, w_ttft: float, w_tpot: float) -> NDArray[np.int8]:
        """Route of each cell, int8 [contexts, types, rates]: local where S is above 0."""
        return (self.score(w_ttft, w_tpot) > 0.0).astype(np.int8)

    def reference(self, rate: float) -> NDArray[np.float64]:
        """TTFT and TPOT through P at the nearest rate, s, float64 [2, contexts, types]; 0 where nothing was measured."""
        distance = np.abs(self.rates - rate)
        at = len(distance) - 1 - int(np.argmin(distance[::-1]))
        return np.nan_to_num(np.stack([self.ttft_s[REMOTE, ..., at], self.tpot_s[REMOTE, ..., at]]))


def cell_conversations(context: str, kind: str) -> Conversations:
    """The two turns of a cell."""
    return fixed_turns((FIRST_TURN[context], SECOND_TURN[kind]), f"{context}_{kind}")


def run_cell(
    cluster: PPDCluster,
    router: type[PPDCluster],
    context: str,
    kind: str,
    rate: float,
    routes: Sequence[int] = (REMOTE, LOCAL),
    episodes: int = EPISODES,
) -> list[dict[str, float]]:
    """Metrics of a cell on each of the routes: means over requests, sums over `episodes` runs, the same worlds for all routes.

    Args:
        cluster: whose nodes and costs.
        router: the simulation that routes turn by turn (`PPDRouting`), which is run.
        context: of `CONTEXTS`.
        kind: of `TYPES`.
        rate: conversations a second.
        routes: `REMOTE`, `LOCAL`.
        episodes: runs of each.
    """
    longest = max(cluster.scenario.longest, 4096)
    scenario = replace(
        cluster.scenario,
        profile=None,
        qps=rate,
        conversations=math.ceil(rate * WINDOW_S + 8.0 * math.sqrt(rate * WINDOW_S) + 32),
        window_s=WINDOW_S,
        shape=None,
        limit_s=3600.0,
        max_turns=2,
        information="exact",
        reference="idle",
        bypass=0,
        longest=longest,
        kv_capacity=max(cluster.kv_capacity, longest + 1),
    )
    simulation = router(
        scenario=scenario,
        workload=cell_conversations(context, kind),
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
        for part in np.split(lanes.buffers.metrics, len(routes))
    ]


def _together(rows: dict[str, NDArray[np.float64]]) -> dict[str, float]:
    """Metrics of several runs as of one: means weighted by completed second turns, everything else summed.

    A run without any has no mean, and no weight.
    """
    found = {name: float(values.sum()) for name, values in rows.items()}
    for name in ("ttft_mean_s", "tpot_mean_s", "e2e_mean_s"):
        there = np.isfinite(rows[name])
        values, weights = rows[name][there], rows["later_completed"][there]
        found[name] = float(values @ weights / weights.sum()) if weights.sum() else math.nan
    found["success"] = found["completed"] / max(found["completed"] + found["timeouts"], 1.0)
    return found


def build(cluster: PPDCluster, router: type[PPDCluster], episodes: int = EPISODES) -> SloTable:
    """Measure every cell on both routes; arguments as for `run_cell`."""
    rates = np.array(cluster.scenario.rates)
    shape = (2, len(CONTEXTS), len(TYPES), len(rates))
    ttft, tpot, success = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    for i, j, k in np.ndindex(shape[1:]):
        both = run_cell(cluster, router, CONTEXTS[i], TYPES[j], float(rates[k]), (REMOTE, LOCAL), episodes)
        for route, found in enumerate(both):
            ttft[route, i, j, k], tpot[route, i, j, k] = found["ttft_mean_s"], found["tpot_mean_s"]
            success[route, i, j, k] = found["success"]
    return SloTable(rates, ttft, tpot, success)


def table_key(cluster: PPDCluster, router: type[PPDCluster], episodes: int = EPISODES) -> str | None:
    """What a table depends on, as a key: cluster, costs, grid, and the functions that measure it; arguments as for `run_cell`."""
    settings = {name: value for name, value in asdict(cluster.scenario).items() if name not in _IRRELEVANT}
    inputs = {
        "settings": settings,
        "latencies": cluster.latencies.as_dict(),
        "cells": [FIRST_TURN, SECOND_TURN],
        "run": [WINDOW_S, episodes, _SEED],
        "nodes": [cluster.nodes, cluster.kv_bytes, cluster.kv_capacity],
        "cost": None if cluster.profile is None else tuple(cluster.profile.step_cost()),
    }
    making = (PPDCluster._params, PPDCluster.allocate, Workload.with_rate, pack)
    return key(inputs, (*running(router), *making, build))


def table_of(cluster: PPDCluster, router: type[PPDCluster], episodes: int = EPISODES) -> SloTable:
    """The table of a cluster: from memory, from disk, or measured now (some seconds) and kept; arguments as for `run_cell`."""
    arrays = TABLES.get(table_key(cluster, router, episodes), lambda: vars(build(cluster, router, episodes)))
    return SloTable(**arrays)


def reference_of(cluster: PPDCluster, router: type[PPDCluster], chosen: Scenario) -> NDArray[np.float64]:
    """TTFT and TPOT through P in the table of the cluster; without a P, of one in which one node is P and the others D.

    Args:
        cluster: whose nodes and costs.
        router: as for `run_cell`.
        chosen: the settings of the cluster.

    Returns:
        float64 [2, contexts, types], s; zeros for a single node without a P, which cannot be divided.
    """
    measured = cluster
    if P not in cluster.nodes:
        if len(cluster.nodes) == 1:
            return np.zeros((2, len(CONTEXTS), len(TYPES)))
        other = replace(chosen, allocation=f"1P_{len(cluster.nodes) - 1}D", reference="idle", profile=None)
        measured = router(
            scenario=other, workload=cluster.workload, profile=cluster.profile, latencies=cluster.latencies
        )
    return table_of(measured, router).reference(chosen.qps)
