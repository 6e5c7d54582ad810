"""Rules for AFDRefill: first come first served, random, the longest prompt to the least loaded instance, and one-step min-max.

First come, first served is the buffer of Song et al., arXiv 2601.21351v1, section 4, which names load balancing (Chen et al., arXiv
2601.17855) as the remedy for the barrier; the balancing rules here are greedy ones and not those of that paper. All read nothing
but the observation.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmgym.baselines.rule import Rule
from llmgym.core.policy import Policy
from llmgym.envs.afd.refill.env import AFDRefill
from llmgym.errors import InvalidArgument

Floats = NDArray[np.float64]


class _Rule(Rule[AFDRefill], ABC):
    """A rule prefers some waiting requests to others; the largest preference that is allowed is placed."""

    env_kwargs: Mapping[str, Any] = MappingProxyType({"action": "pick"})

    def __init__(self, env: Any, name: str) -> None:
        super().__init__(env, name, AFDRefill)
        simulation = self._simulation
        self._scores = simulation.action_mode == "score"
        self._config, self._window = simulation.params.config[0], simulation.scenario.window

    def _left(self, obs: NDArray[np.float32]) -> NDArray[np.int64]:
        """Free slots still to fill, as many as the window has at most: int64 [lanes]."""
        return np.maximum(np.rint(self._read(obs, "left") * self._window), 1).astype(np.int64)

    @abstractmethod
    def preferences(self, obs: NDArray[np.float32]) -> Floats:
        """How much each waiting request is preferred, in [0, 1]: float64 [lanes, window]."""

    def act(self, obs: NDArray[np.float32], mask: NDArray[np.int8] | None) -> NDArray[Any]:
        """Waiting requests [lanes], or scores [lanes, window] on an environment made with `action="score"`."""
        wanted = self.preferences(obs)
        if self._scores:
            return wanted
        return np.where(mask == 1, wanted, -1.0).argmax(axis=1) if mask is not None else wanted.argmax(axis=1)


class FcfsPolicy(_Rule):
    """`fcfs`: the oldest request."""

    def __init__(self, env: Any, name: str = "fcfs") -> None:
        super().__init__(env, name)

    def preferences(self, obs: NDArray[np.float32]) -> Floats:
        """The older a request, the more it is preferred."""
        return np.tile(np.linspace(1.0, 0.0, self._window), (len(obs), 1))


class RandomPolicy(_Rule):
    """`random`: any request of the window.

    Args:
        env: the environment.
        name: of the policy.
        seed: of the choices.
    """

    draws = True

    def __init__(self, env: Any, name: str = "random", seed: int = 0) -> None:
        super().__init__(env, name)
        self._generator = np.random.default_rng(seed)

    def preferences(self, obs: NDArray[np.float32]) -> Floats:
        """Uniform random numbers."""
        return self._generator.random((len(obs), self._window))


class LeastLoadedPolicy(_Rule):
    """`least-loaded`: of the requests whose turn it is, as many as there are free slots, the longest prompt goes first.

    As the next slot is always that of the least loaded instance, that pairs long prompts with light instances, and no request is
    overtaken by one that came for a later cycle.
    """

    def __init__(self, env: Any, name: str = "least-loaded") -> None:
        super().__init__(env, name)

    def preferences(self, obs: NDArray[np.float32]) -> Floats:
        """The longest prompt first among the oldest, as many as there are free slots; after them the others, the oldest first."""
        turn = np.arange(self._window) < self._left(obs)[:, None]
        prompt = self._rows(obs, "window.prompt")
        return np.where(turn, 0.5 + 0.5 * prompt, np.linspace(0.4, 0.0, self._window))


class MinMaxPolicy(_Rule):
    """`min-max`: the longest prompt of the window that leaves the largest load as it is; if none does, the shortest.

    One step ahead this keeps max_j T_j as small as any choice can, and fills the light instance as far as that allows. It
    overtakes freely, up to the limit on skipping. Needs `action="pick"`: the choice depends on the instance that is next.
    """

    def __init__(self, env: Any, name: str = "min-max") -> None:
        super().__init__(env, name)
        if self._scores:
            raise InvalidArgument(
                "baseline 'min-max' needs action='pick', the environment was made with 'score'"
            )

    def preferences(self, obs: NDArray[np.float32]) -> Floats:
        """Above 1/2 for prompts that fit under the largest load, the longer the better; below for others."""
        prompt = self._rows(obs, "window.prompt")
        tokens = np.expm1(prompt / self._config["log_prompt"])
        room = self._read(obs, "room") * self._config["load_scale"]
        return np.where(tokens <= room[:, None] + 0.5, 0.5 + 0.5 * prompt, 0.49 * (1.0 - prompt))


BASELINES: dict[str, Callable[[Any], Policy]] = {
    "fcfs": FcfsPolicy,
    "random": RandomPolicy,
    "least-loaded": LeastLoadedPolicy,
    "min-max": MinMaxPolicy,
}
BOARDS: dict[str, tuple[str, ...]] = {"small": (), "real": ()}
"""Scenarios of the leaderboard, each with the rules that are too slow to run on many of its worlds."""
