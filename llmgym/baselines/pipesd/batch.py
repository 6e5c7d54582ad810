"""Rules for PipeSDBatch: Algorithm 1 of PipeSD (arXiv 2605.13319), and what it is compared with (Appendix F).

All read nothing but the observation, in which everything that the plan needs is shown.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmgym.baselines.rule import Factory, Rule
from llmgym.core.checks import whole
from llmgym.core.policy import Policy
from llmgym.envs.pipesd.batch.env import PipeSDBatch
from llmgym.envs.pipesd.batch.kernels import COUNT, HOLD, SEND
from llmgym.envs.pipesd.speculation import batch_plan

Bools = NDArray[np.bool_]


class _Rule(Rule[PipeSDBatch], ABC):
    """A rule says when to send."""

    def __init__(self, env: Any, name: str) -> None:
        super().__init__(env, name, PipeSDBatch)

    def _tokens(self, obs: NDArray[np.float32], field: str) -> NDArray[np.int64]:
        """A field that counts tokens, int64 [lanes]."""
        return np.rint(self._read(obs, field) * COUNT).astype(np.int64)

    @abstractmethod
    def sends(self, obs: NDArray[np.float32]) -> Bools:
        """Whether what is unsent goes up, bool [lanes]."""

    def act(self, obs: NDArray[np.float32], mask: NDArray[np.int8] | None) -> NDArray[Any]:
        """Actions [lanes]; after the last token, send."""
        last = self._tokens(obs, "left.tokens") == 0
        return np.where(last | self.sends(obs), SEND, HOLD)


class PlanPolicy(_Rule):
    """`dp`: the batches of Algorithm 1, planned when a window begins."""

    remembered = ("_ends",)

    def __init__(self, env: Any, name: str = "dp") -> None:
        super().__init__(env, name)
        self._ends: dict[int, set[int]] = {}

    def sends(self, obs: NDArray[np.float32]) -> Bools:
        """Where a batch of the plan ends."""
        tokens, left = self._tokens(obs, "tokens"), self._tokens(obs, "left.tokens")
        speeds = np.stack([self._read(obs, name) for name in ("alpha", "beta", "gamma")], axis=1)
        send = np.zeros(len(obs), np.bool_)
        for lane, (n, rest) in enumerate(zip(tokens.tolist(), left.tolist(), strict=True)):
            if rest == n - 1 or lane not in self._ends:
                self._ends[lane] = set(np.cumsum(batch_plan(n, *speeds[lane].tolist())).tolist())
            send[lane] = n - rest in self._ends[lane]
        return send


class ImmediatePolicy(_Rule):
    """`immediate`: every token at once."""

    def __init__(self, env: Any, name: str = "immediate") -> None:
        super().__init__(env, name)

    def sends(self, obs: NDArray[np.float32]) -> Bools:
        """Always."""
        return np.ones(len(obs), np.bool_)


class SingleBatchPolicy(_Rule):
    """`single-batch`: the whole window after its last token."""

    def __init__(self, env: Any, name: str = "single-batch") -> None:
        super().__init__(env, name)

    def sends(self, obs: NDArray[np.float32]) -> Bools:
        """Never before the end."""
        return np.zeros(len(obs), np.bool_)


class GreedyPolicy(_Rule):
    """`greedy`: all that is ready, whenever the link is free."""

    def __init__(self, env: Any, name: str = "greedy") -> None:
        super().__init__(env, name)

    def sends(self, obs: NDArray[np.float32]) -> Bools:
        """Where the link is free."""
        return self._read(obs, "link") <= 0.0


class FixedPolicy(_Rule):
    """`fixed:k=4`: every k tokens."""

    def __init__(self, env: Any, name: str = "fixed", k: int = 4) -> None:
        super().__init__(env, name)
        self.k = whole("k", k)

    def sends(self, obs: NDArray[np.float32]) -> Bools:
        """Where k tokens are unsent."""
        return self._tokens(obs, "unsent.tokens") >= self.k


class RandomPolicy(_Rule):
    """`random`: a coin for every token.

    Args:
        env: the environment.
        name: name of the policy.
        seed: seeds the coins.
    """

    draws = True

    def __init__(self, env: Any, name: str = "random", seed: int = 0) -> None:
        super().__init__(env, name)
        self._generator = np.random.default_rng(seed)

    def sends(self, obs: NDArray[np.float32]) -> Bools:
        """At random."""
        return self._generator.random(len(obs)) < 0.5


BASELINES: dict[str, Callable[[Any], Policy]] = {
    "dp": PlanPolicy,
    "immediate": ImmediatePolicy,
    "single-batch": SingleBatchPolicy,
    "greedy": GreedyPolicy,
    "fixed": Factory("fixed", FixedPolicy, {"k": int}),
    "random": RandomPolicy,
}
GRIDS: dict[str, tuple[str, ...]] = {"fixed": tuple(f"fixed:k={k}" for k in (2, 3, 4, 6, 8))}
BOARDS: dict[str, tuple[str, ...]] = {"small": (), "random": (), "s4": ()}
"""Scenarios of the leaderboard, each with the rules that are too slow to run on many of its worlds."""
