"""`oracle`: knows where the facts are, tries a handful of plans in a copy of the world, and plays the best."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmgym.baselines.rule import Rule
from llmgym.core.lanes import HOLD, Lanes
from llmgym.core.memory import copy_lane
from llmgym.envs.forage.env import Forage
from llmgym.envs.forage.state import (
    ANSWER,
    ANSWER_CONTEXT,
    COMMIT,
    DEPTHS,
    FOCUS,
    GREP,
    READ_ALL,
    RETRIEVE,
    RETRIEVE_KEY,
    TERMS,
    TRUE,
)


class OraclePolicy(Rule[Forage]):
    """`oracle`: the best of a few plans, each played in a copy of the world.

    Plans: a guess at once; reading everything; a retrieval of each depth for the question; every fact by its shortest way, a
    search up to the first term that finds it or a retrieval that does, opened at once, written to E. Not the optimum, but nothing
    that does not know the truth comes near it.

    Args:
        env: the environment.
        name: of the policy.
    """

    privileged = True

    def __init__(self, env: Any, name: str = "oracle") -> None:
        super().__init__(env, name, Forage)
        self._copy = Lanes(self._simulation, 1)
        self._copy.reset(None, [0])
        self._plans: dict[int, list[int]] = {}

    def reset(self, lanes: NDArray[np.bool_]) -> None:
        """Plan anew where an episode begins."""
        for lane in np.flatnonzero(lanes).tolist():
            self._plans.pop(lane, None)

    def act(self, obs: NDArray[np.float32], mask: NDArray[np.int8] | None) -> NDArray[Any]:
        """The actions of all lanes, int64 [lanes]."""
        actions = np.full(len(obs), ANSWER)
        for lane in range(len(obs)):
            ended = bool(self._env.lanes.buffers.ended[lane])
            if not ended and not self._plans.get(lane):
                self._plans[lane] = self._plan(lane)
            if not ended:
                actions[lane] = self._plans[lane].pop(0)
        return actions

    def _plan(self, lane: int) -> list[int]:
        plans = [[ANSWER], [READ_ALL], self._forage(lane)]
        depths = np.flatnonzero(self._simulation.params.config[0]["chunks"] >= DEPTHS)
        plans += [[RETRIEVE + int(depth), ANSWER_CONTEXT] for depth in depths]
        return max(plans, key=lambda plan: self._played(lane, plan))

    def _load(self, lane: int) -> None:
        copy_lane(self._env.lanes.state, lane, self._copy.state)
        self._copy.buffers.ended[0] = False

    def _step(self, action: int) -> float:
        self._copy.buffers.action[0, 0] = action
        self._copy.step(HOLD)
        return float(self._copy.buffers.reward[0])

    def _played(self, lane: int, plan: list[int]) -> float:
        """The return of a plan from here on."""
        self._load(lane)
        total = 0.0
        for action in plan:
            total += self._step(action)
            if self._copy.buffers.ended[0]:
                break
        return total

    def _forage(self, lane: int) -> list[int]:
        """Every fact by its shortest way; only an answer where one cannot be found."""
        self._load(lane)
        state, plan = self._copy.state, []

        def do(action: int) -> None:
            plan.append(action)
            self._step(action)

        for j in range(int(state.lane["facts"][0])):
            if state.key["claim"][0, j] == TRUE:
                continue
            if state.lane["focus"][0] != j:
                do(FOCUS + j)
            for _ in range(TERMS):
                if self._open(j, do):
                    break
                if not self._ahead(j):
                    break
                do(GREP)
            self._open(j, do)
            depth = 0
            while state.key["pending"][0, j] != TRUE and depth < len(DEPTHS):
                if DEPTHS[depth] > self._simulation.params.config[0]["chunks"] or not self._worth(j, depth):
                    depth += 1
                    continue
                do(RETRIEVE_KEY + depth)
                depth += 1
            if state.key["pending"][0, j] != TRUE:
                return [ANSWER]
            do(COMMIT)
        return [*plan, ANSWER]

    def _right(self, j: int) -> NDArray[np.bool_]:
        """Which passages of a key are right and yield their fact, [64]."""
        passage = self._copy.state.passage[0, j]
        live = np.arange(len(passage)) < self._copy.state.key["passages"][0, j]
        right: NDArray[np.bool_] = live & (passage["claims"] == TRUE) & passage["readable"]
        return right

    def _ahead(self, j: int) -> bool:
        """Whether a term that is left finds a right passage."""
        term = int(self._copy.state.key["term"][0, j])
        return bool(((self._copy.state.passage["listed"][0, j] >> term) > 0)[self._right(j)].any())

    def _open(self, j: int, do: Any) -> bool:
        """Open a right passage if it is among the candidates."""
        right = self._right(j)
        state = self._copy.state
        for slot in range(int(state.lane["candidates"][0])):
            if state.key["pending"][0, j] != TRUE and right[state.slot[0, slot]]:
                do(slot)
                return True
        return bool(state.key["pending"][0, j] == TRUE)

    def _worth(self, j: int, depth: int) -> bool:
        """Whether a retrieval of this depth finds the fact, tried in a copy."""
        kept = [array.copy() for array in self._copy.state]
        self._step(RETRIEVE_KEY + depth)
        found = bool(self._copy.state.key["pending"][0, j] == TRUE)
        for array, old in zip(self._copy.state, kept):
            array[...] = old
        self._copy.buffers.ended[0] = False
        return found
