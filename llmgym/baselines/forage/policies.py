"""Rules for Forage by name, and the numbers over which they are tuned."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from llmgym.baselines.forage.oracle import OraclePolicy
from llmgym.baselines.forage.retrieval import RetrievalPolicy, SequentialPolicy
from llmgym.baselines.forage.scout import ScoutPolicy
from llmgym.baselines.rule import Factory, RandomPolicy, rule
from llmgym.core.policy import Policy
from llmgym.envs.forage.env import Forage
from llmgym.envs.forage.state import READ_ALL

_SCOUT = {
    "scan": int,
    "read": float,
    "least": float,
    "evaluations": int,
    "retrieve": int,
    "sources": int,
    "trust": float,
}

BASELINES: dict[str, Callable[[Any], Policy]] = {
    "scout": Factory("scout", ScoutPolicy, _SCOUT),
    "scout-no-scan": Factory("scout-no-scan", ScoutPolicy, _SCOUT, scan=0),
    "scout-no-evaluation": Factory("scout-no-evaluation", ScoutPolicy, _SCOUT, evaluations=0),
    "scout-no-e": Factory("scout-no-e", partial(ScoutPolicy, context=True), _SCOUT),
    "scout-no-anchors": Factory(
        "scout-no-anchors",
        ScoutPolicy,
        _SCOUT,
        {"anchors": False},
        "claims carry no source, so that an evaluation exposes fewer false ones",
    ),
    "react": Factory("react", partial(ScoutPolicy, context=True), _SCOUT, evaluations=0),
    "corroborate": Factory("corroborate", ScoutPolicy, _SCOUT, sources=2),
    "hybrid": Factory("hybrid", ScoutPolicy, _SCOUT, retrieve=5),
    "top-k": Factory("top-k", RetrievalPolicy, {"depth": int}),
    "iterative": Factory("iterative", partial(RetrievalPolicy, hops=True), {"depth": int}),
    "sequential": Factory("sequential", SequentialPolicy, {"passes": int}),
    "read-all": rule("read-all", lambda field, mask: np.full(len(mask), READ_ALL)),
    "oracle": Factory("oracle", OraclePolicy),
    "random": Factory("random", partial(RandomPolicy, simulation_class=Forage)),
}

_THRESHOLDS = tuple(
    f"scan={scan},read={read},evaluations={evaluations}"
    for scan in (2, 3, 5)
    for read in (0.4, 0.6)
    for evaluations in (0, 2, 4)
)
GRIDS: dict[str, tuple[str, ...]] = {
    "scout": tuple(f"scout:{numbers}" for numbers in _THRESHOLDS),
    "corroborate": tuple(
        f"corroborate:evaluations={evaluations},trust={trust}"
        for evaluations in (0, 2, 4)
        for trust in (0.0, 0.5, 1.0)
    ),
    "hybrid": tuple(
        f"hybrid:retrieve={retrieve},read={read},evaluations={evaluations}"
        for retrieve in (5, 10)
        for read in (0.4, 0.6)
        for evaluations in (0, 1, 4)
    ),
    "top-k": tuple(f"top-k:depth={depth}" for depth in (5, 10, 20, 50)),
    "iterative": tuple(f"iterative:depth={depth}" for depth in (5, 10, 20, 50)),
}
"""The values over which a rule is tuned before it is compared (`llmgym.evaluation.tuned`)."""
BOARDS: dict[str, tuple[str, ...]] = {"small": (), "real": ()}
"""Scenarios of the leaderboard, each with the rules that are too slow to run on many of its worlds."""
