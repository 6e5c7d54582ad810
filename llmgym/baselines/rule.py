"""What the rules of several papers have in common: reading an observation by field, and numbers behind a name."""

import copy
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from llmgym.core.lanes import Simulation
from llmgym.core.policy import Policy
from llmgym.errors import InvalidArgument

Floats = NDArray[np.float64]
S = TypeVar("S", bound=Simulation)


class Rule(Generic[S]):
    """A policy of one class of simulations; what it decides is `act` of each rule.

    Args:
        env: a single or vector environment.
        name: of the policy.
        simulation_class: what the environment must simulate.

    Raises:
        InvalidArgument: it simulates something else.
    """

    privileged = False
    other_world: str | None = None
    """What differs in the world that this rule plays in, where that is not the one of the others; None where it is."""
    env_kwargs: Mapping[str, Any] = MappingProxyType({})
    draws: ClassVar[bool] = False
    """Whether it draws random numbers, which go on from one episode to the next."""
    remembered: ClassVar[tuple[str, ...]] = ()
    """Names of what it remembers of each lane: arrays [lanes, ...], lists by lane, or dicts by its number."""

    def __init__(self, env: Any, name: str, simulation_class: type[S]) -> None:
        simulation = env.unwrapped.simulation
        if not isinstance(simulation, simulation_class):
            raise InvalidArgument(
                f"baseline {name!r} is for {simulation_class.__name__}, not for {type(simulation).__name__}"
            )
        self.name = name
        self._env, self._simulation = env.unwrapped, simulation

    def _rows(self, obs: NDArray[np.float32], field: str) -> Floats:
        """All entries of a field, float64 [lanes, size]."""
        return obs[:, self._simulation.layout[field]].astype(np.float64)

    def _read(self, obs: NDArray[np.float32], field: str) -> Floats:
        """The first entry of a field, float64 [lanes]."""
        return obs[:, self._simulation.layout[field].start].astype(np.float64)

    def reset(self, lanes: NDArray[np.bool_]) -> None:
        """Nothing is remembered."""

    def take(self, other: "Rule[S]", lanes: NDArray[np.int64]) -> None:
        """Remember of its own lanes what another policy of the same rule remembers of some of its lanes.

        Args:
            other: of the same rule; it forgets nothing.
            lanes: which lane of it each of its own lanes follows, int64 [lanes].
        """
        for name in self.remembered:
            theirs = getattr(other, name)
            if isinstance(theirs, np.ndarray):
                setattr(self, name, theirs[lanes])
            elif isinstance(theirs, dict):
                kept = {n: copy.deepcopy(theirs[k]) for n, k in enumerate(lanes.tolist()) if k in theirs}
                setattr(self, name, kept)
            else:
                setattr(self, name, [copy.deepcopy(theirs[lane]) for lane in lanes.tolist()])


class RandomPolicy(Rule[S]):
    """`random`: any action that is allowed, each as likely as the others.

    Args:
        env: a single or vector environment of discrete actions.
        name: of the policy.
        simulation_class: what the environment must simulate.
        actions: it chooses among the first so many actions; None: among all.
        seed: of the choices.

    Raises:
        InvalidArgument: the environment simulates something else.
    """

    draws = True

    def __init__(
        self, env: Any, name: str, simulation_class: type[S], *, actions: int | None = None, seed: int = 0
    ) -> None:
        super().__init__(env, name, simulation_class)
        self._actions = self._simulation.mask_size if actions is None else actions
        self._generator = np.random.default_rng(seed)

    def act(self, obs: NDArray[np.float32], mask: NDArray[np.int8] | None) -> NDArray[Any]:
        """The actions of all lanes, int64 [lanes]; without a mask, any of them."""
        chances = self._generator.random((len(obs), self._actions))
        if mask is not None:
            chances *= mask[:, : self._actions]
        return chances.argmax(axis=1)


class Factory:
    """Makes a rule; numbers can follow its name, as in `"threshold:tokens=256"`.

    Args:
        name: of the rule.
        build: called with the environment, the name and the numbers.
        known: numbers that may follow the name, each with `int` or `float`.
        env_kwargs: what the environment must be made with.
        other_world: what these arguments change of the world (free switches, more GPUs); None where they only say how to act in it.
        **numbers: those that are given already.
    """

    def __init__(
        self,
        name: str,
        build: Callable[..., Any],
        known: Mapping[str, type] | None = None,
        env_kwargs: Mapping[str, Any] | None = None,
        other_world: str | None = None,
        **numbers: float,
    ) -> None:
        self.name, self._build, self._known, self._numbers = name, build, dict(known or {}), numbers
        self.env_kwargs, self.other_world = dict(env_kwargs or {}), other_world

    def __call__(self, env: Any) -> Policy:
        policy: Any = self._build(env, self.name, **self._numbers)
        policy.env_kwargs, policy.other_world = self.env_kwargs, self.other_world
        made: Policy = policy
        return made

    def variant(self, name: str) -> "Factory":
        """The same rule with other numbers.

        Raises:
            InvalidArgument: what follows the name is not `argument=number` with arguments of the rule.
        """
        numbers: dict[str, float] = {}
        for part in name.partition(":")[2].split(","):
            argument, _, value = part.partition("=")
            try:
                number = float(value)
            except ValueError:
                number = math.nan
            if argument not in self._known or not math.isfinite(number):
                raise InvalidArgument(
                    f"{name!r}: expected {self.name}:argument=number with {', '.join(self._known) or 'no arguments'}"
                )
            whole = self._known[argument] is int and number == int(number)
            numbers[argument] = int(number) if whole else number
        known, kept = self._known, {**self._numbers, **numbers}
        return Factory(name, self._build, known, self.env_kwargs, self.other_world, **kept)


class _Decided(Rule[Simulation]):
    def __init__(self, env: Any, name: str, decide: Callable[..., NDArray[Any]]) -> None:
        super().__init__(env, name, Simulation)  # type: ignore[type-abstract]
        self._decide = decide

    def act(self, obs: NDArray[np.float32], mask: NDArray[np.int8]) -> NDArray[Any]:
        """The actions of all lanes."""
        return self._decide(lambda field: self._rows(obs, field), mask)


def rule(name: str, decide: Callable[..., NDArray[Any]]) -> Factory:
    """A rule without numbers or memory, for a table of baselines.

    Args:
        name: of the rule.
        decide: `(field, mask)`: the actions of all lanes; `field("waiting")` is that part of the observation, float64
            [lanes, size], and `mask` int8 [lanes, actions].
    """
    return Factory(name, lambda env, known_as: _Decided(env, known_as, decide))
