"""Retrieval once and hop by hop, reading in order, and reading everything: what Scout is compared with.

Zhang et al., ICML 2026 (arXiv 2605.04496), compare with readers of everything and with agents; retrieval by embedding is the usual
other way. All read nothing but the observation.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmgym.baselines.forage.reading import Bools, Ints, first, seen
from llmgym.baselines.rule import Rule
from llmgym.core.checks import whole
from llmgym.envs.forage.env import Forage
from llmgym.envs.forage.state import (
    ANSWER,
    ANSWER_CONTEXT,
    COMMIT,
    DEPTHS,
    EVALUATE,
    FOCUS,
    KEYS,
    READ_ON,
    RETRIEVE,
    RETRIEVE_KEY,
)
from llmgym.errors import InvalidArgument

_SEQUENTIAL_PASSES = 3


class RetrievalPolicy(Rule[Forage]):
    """`top-k`: open the parts that an embedding ranks first, and answer from them. `iterative`: on a chain, once for each hop.

    Args:
        env: the environment.
        name: of the policy.
        depth: parts that a retrieval opens: 5, 10, 20 or 50.
        hops: whether a chain is followed hop by hop.

    Raises:
        InvalidArgument: another depth.
    """

    remembered = ("_next",)

    def __init__(self, env: Any, name: str = "top-k", depth: int = 10, hops: bool = False) -> None:
        super().__init__(env, name, Forage)
        if depth not in DEPTHS:
            raise InvalidArgument(f"depth={depth!r}: expected one of {', '.join(map(str, DEPTHS))}")
        self._offset, self._hops = int(np.flatnonzero(depth == DEPTHS)[0]), hops
        self._next: Ints = np.zeros(0, np.int64)

    def reset(self, lanes: NDArray[np.bool_]) -> None:
        """Begin with the first hop."""
        self._next = (
            np.where(lanes, 0, self._next)
            if len(self._next) == len(lanes)
            else np.zeros(len(lanes), np.int64)
        )

    def act(self, obs: NDArray[np.float32], mask: NDArray[np.int8] | None) -> NDArray[Any]:
        """The actions of all lanes, int64 [lanes]."""
        if len(self._next) != len(obs):
            self.reset(np.ones(len(obs), np.bool_))
        now = seen(self._simulation.layout, obs)
        lanes = np.arange(len(obs))
        hops = now.chain & self._hops
        at = np.minimum(self._next, KEYS - 1)
        more = now.exists[lanes, at] & now.known[lanes, at] & (self._next < KEYS)
        retrieve = np.where(hops, RETRIEVE_KEY, RETRIEVE) + self._offset
        action = np.where(now.focus == at, retrieve, np.where(hops, FOCUS + at, retrieve))
        more &= hops | (self._next == 0)
        action = np.where(more, action, ANSWER_CONTEXT)
        self._next = self._next + (action == retrieve)
        return action.astype(np.int64)


class SequentialPolicy(Rule[Forage]):
    """`sequential`: read in order, write down what is found, evaluate after each block and when all is held, three times through.

    Args:
        env: the environment.
        name: of the policy.
        passes: times through the document, at most.
    """

    remembered = ("_fresh", "_asked")

    def __init__(self, env: Any, name: str = "sequential", passes: int = _SEQUENTIAL_PASSES) -> None:
        super().__init__(env, name, Forage)
        self.passes = whole("passes", passes, 1, 100)
        self._fresh: Bools = np.zeros(0, np.bool_)
        self._asked: Bools = np.zeros(0, np.bool_)

    def reset(self, lanes: NDArray[np.bool_]) -> None:
        """Nothing is read."""
        if len(self._fresh) != len(lanes):
            self._fresh, self._asked = np.zeros(len(lanes), np.bool_), np.zeros(len(lanes), np.bool_)
        self._fresh = self._fresh & ~lanes
        self._asked = self._asked & ~lanes

    def act(self, obs: NDArray[np.float32], mask: NDArray[np.int8] | None) -> NDArray[Any]:
        """The actions of all lanes, int64 [lanes]."""
        if len(self._fresh) != len(obs):
            self.reset(np.ones(len(obs), np.bool_))
        now = seen(self._simulation.layout, obs)
        write = first(now.pending & now.exists & ~now.held)
        passed = self._read(obs, "passes")
        passes = np.round(passed / np.maximum(1.0 - passed, 1e-6))
        action = np.where(self._fresh & now.held.any(axis=1), EVALUATE, READ_ON)
        over = (passes >= self.passes) & ~self._fresh
        action = np.where((self._asked & now.sufficient) | over, ANSWER, action)
        at = np.minimum(write, KEYS - 1)
        commit = np.where(now.focus == at, COMMIT, FOCUS + at)
        action = np.where(write < KEYS, commit, action)
        self._fresh = (action == READ_ON) | (self._fresh & (action != EVALUATE))
        self._asked = action == EVALUATE
        return action.astype(np.int64)
