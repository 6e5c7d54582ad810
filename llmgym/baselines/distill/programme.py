"""Rules for DistillProgramme: fine-tuning for all, the paper's number N* of students, facility location, and a look ahead.

Lambert and Luccioni, "Towards Resource-Efficient LLMs" (ICML 2026, arXiv 2605.13981), advise to reuse before to regenerate, and
give the number N* of students from which on an artefact saves energy. All rules read nothing but the observation, except `oracle`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmgym.baselines.distill.choosing import (
    ALL_SFT,
    N_STAR,
    NAIVE,
    PORTFOLIO,
    REUSE_FIRST,
    Options,
    choose_all,
)
from llmgym.baselines.distill.rollout import best_action
from llmgym.baselines.rule import Factory, RandomPolicy, Rule
from llmgym.core.checks import number, whole
from llmgym.core.memory import copy_lane
from llmgym.core.policy import Policy
from llmgym.envs.distill.env import DistillProgramme

NO_CAPS_H = 1e6
"""A margin that no cap leaves."""


class PlannedPolicy(Rule[DistillProgramme]):
    """A rule of `llmgym.baselines.distill.choosing`.

    Args:
        env: the environment.
        name: of the policy.
        kind: which rule.
        future: weight of the students that are expected to be ordered yet.
        margin: time to the deadline that a power cap must leave, hours; the lowest such cap is taken.
        guard: 1: nothing is begun that the budget does not cover; 0: the budget is not looked at.
        dense: 1: first the student with the most value an hour of a GPU; 0: that of the earliest deadline.
        worth: least value a kWh of a student that is begun.
        eager: 1: who would wait for an artefact that is being made is trained without it; 0: it waits.
        clean: 1: what has time to spare begins in the cleanest hours of the next day; 0: at once.
    """

    def __init__(
        self,
        env: Any,
        name: str,
        kind: int = PORTFOLIO,
        future: float = 0.0,
        margin: float = NO_CAPS_H,
        guard: int = 1,
        dense: int = 0,
        worth: float = 0.0,
        eager: int = 0,
        clean: int = 0,
    ) -> None:
        super().__init__(env, name, DistillProgramme)
        self.options = Options.pack(
            kind=kind,
            future=number("future", future, True),
            margin_h=number("margin", margin, True),
            guard=whole("guard", guard, 0, 1),
            dense=whole("dense", dense, 0, 1),
            worth=number("worth", worth, True),
            eager=whole("eager", eager, 0, 1),
            clean=whole("clean", clean, 0, 1),
        )
        self._width = self._simulation.layout["candidate"].start

    def act(self, obs: NDArray[np.float32], mask: NDArray[np.int8] | None) -> NDArray[Any]:
        """The actions of all lanes, int64 [lanes]."""
        out = np.zeros(len(obs), np.int64)
        rows = np.ascontiguousarray(obs, np.float32)
        choose_all(rows, self._width, self._simulation.params, self.options, out)
        return out


class OraclePolicy(PlannedPolicy):
    """`oracle`: tries every action in a copy of the world, with its true future, goes on with `thrifty`, and takes the best.

    It is privileged: it knows who will be ordered and how each stage and the grid will turn out. It is no bound: a plan that pays
    only if the next decisions differ from the rule's may be better.
    """

    privileged = True

    def __init__(self, env: Any, name: str = "oracle", margin: float = 12.0, dense: int = 1) -> None:
        super().__init__(env, name, future=1.0, margin=margin, guard=1, dense=dense)
        self._best = best_action(self._simulation)
        self._copies = self._simulation.allocate(2)

    def act(self, obs: NDArray[np.float32], mask: NDArray[np.int8] | None) -> NDArray[Any]:
        """The actions of all lanes, int64 [lanes]."""
        lanes = self._env.lanes
        out = np.zeros(len(obs), np.int64)
        for lane in range(len(obs)):
            if not lanes.buffers.ended[lane]:
                copy_lane(lanes.state, lane, self._copies, 0)
                out[lane] = self._best(self._copies, self._simulation.params, self.options)
        return out


_NUMBERS: dict[str, type] = {"margin": float, "guard": int, "dense": int, "worth": float}

BASELINES: dict[str, Callable[[Any], Policy]] = {
    "all-sft": Factory("all-sft", PlannedPolicy, kind=ALL_SFT, guard=0),
    "naive-distill": Factory("naive-distill", PlannedPolicy, kind=NAIVE, guard=0),
    "reuse-first": Factory("reuse-first", PlannedPolicy, kind=REUSE_FIRST),
    "n-star": Factory("n-star", PlannedPolicy, kind=N_STAR),
    "portfolio": Factory("portfolio", PlannedPolicy, kind=PORTFOLIO),
    "expected-reuse": Factory("expected-reuse", PlannedPolicy, {"future": float}, kind=PORTFOLIO, future=1.0),
    "carbon-aware": Factory("carbon-aware", PlannedPolicy, {"future": float}, kind=PORTFOLIO, clean=1),
    "thrifty": Factory(
        "thrifty",
        PlannedPolicy,
        {"future": float, "eager": int, "clean": int, **_NUMBERS},
        kind=PORTFOLIO,
        future=1.0,
        margin=12.0,
        dense=1,
    ),
    "oracle": Factory("oracle", OraclePolicy, {"margin": float, "dense": int}),
    "random": Factory("random", partial(RandomPolicy, simulation_class=DistillProgramme)),
}

GRIDS: dict[str, tuple[str, ...]] = {
    "expected-reuse": tuple(f"expected-reuse:future={x}" for x in (0.25, 0.5, 1, 1.5)),
    "thrifty": tuple(
        f"thrifty:margin={margin},dense={dense},worth={worth}"
        for margin in (0, 12, 48, 1_000_000)
        for dense in (0, 1)
        for worth in (0, 0.5, 0.8)
    ),
}
"""The values over which a rule is tuned before it is compared (`llmgym.evaluation.tuned`)."""
BOARDS: dict[str, tuple[str, ...]] = {"small": ("oracle",), "real": ("oracle",)}
"""Scenarios of the leaderboard, each with the rules that are too slow to run on many of its worlds."""
