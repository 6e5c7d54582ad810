"""A clairvoyant for every environment: each action is tried in copies of the world, and a rule goes on after it."""

import itertools
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from gymnasium.spaces import Box, Discrete, MultiDiscrete
from numpy.typing import NDArray

from llmgym.core.at_hand import LanesAtHand
from llmgym.core.checks import whole
from llmgym.core.env import LaneVectorEnv
from llmgym.core.lanes import HOLD
from llmgym.core.memory import bytes_of_a_lane, copy_lanes
from llmgym.core.policy import Policy
from llmgym.errors import InvalidArgument
from llmgym.evaluation.rollout import load_decision

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

MOST_ACTIONS = 512
"""Actions that are tried at a decision of one world."""
MOST_COPIES = 1024
"""Copies that are played together on the CPU."""
COPIES_BYTES = 2**31
"""Memory that they may take there, bytes."""
MOST_COPIES_ON_GPU = 65_536
"""Copies that are played together on a GPU."""
GPU_SHARE = 0.75
"""Share of the free memory of a GPU that they may take."""


def candidates(space: Any, points: int | None) -> Floats:
    """All actions of a space, those of a Box on a grid.

    Args:
        space: `Discrete`, `MultiDiscrete` or `Box` of one lane.
        points: values of each entry of a Box, from its lowest to its highest; None: the space has to be discrete.

    Returns:
        float64 [actions, entries].

    Raises:
        InvalidArgument: a Box without a grid, a grid for another space, or more than 512 actions.
    """
    if isinstance(space, Box):
        if points is None:
            raise InvalidArgument(
                f"points=None: the actions are {space}; say how many values of each entry are tried"
            )
        whole("points", points, 2, MOST_ACTIONS)
        low, high = (np.broadcast_to(end, space.shape).ravel() for end in (space.low, space.high))
        if not np.isfinite([low, high]).all():
            raise InvalidArgument(f"points={points!r}: the actions are {space}, which has no ends")
        parts = [np.linspace(a, b, points) for a, b in zip(low.tolist(), high.tolist(), strict=True)]
    else:
        if points is not None:
            raise InvalidArgument(f"points={points!r}: the actions are {space}, all of which are tried")
        sizes = [space.n] if isinstance(space, Discrete) else space.nvec.ravel()
        parts = [np.arange(size) for size in sizes]
    count = math.prod(len(part) for part in parts)
    if count > MOST_ACTIONS:
        raise InvalidArgument(f"{count:,} actions a decision ({space}): at most {MOST_ACTIONS} can be tried")
    return np.array(list(itertools.product(*parts)), np.float64)


def check_tail(rule: Policy, device: str) -> None:
    """Raise `InvalidArgument` for a rule that cannot go on in copies on this device."""
    if device != "cpu" and rule.privileged:
        raise InvalidArgument(
            f"tail={rule.name!r}: it is privileged, and what it reads of the states of lanes is not on the CPU with "
            f"device={device!r}; name another rule, or leave out the device"
        )


def _fit(one: LaneVectorEnv) -> int:
    """How many lanes fit into the memory of a device, by an environment of one lane there."""
    there: Any = one.lanes
    return int(GPU_SHARE * there.card.free_bytes()) // int(there.bytes_of_a_lane)


class LookAhead:
    """The action after which a rule does best in the world as it will be.

    At a decision each allowed action, and that of the rule, is tried in a copy of the lane, which goes on with the rule. All copies
    of all lanes are lanes of one environment and step together. It knows what is to come, so it is privileged.
    The same actions have the same consequences in a copy: deciding every time and playing to the end, it never earns less than the
    rule, unless that draws random numbers or remembers its own choices.

    Args:
        env: the environment.
        make: makes an environment of so many lanes with the same arguments, on the device of the copies.
        build: makes the rule for an environment.
        name: of the policy.
        stride: it decides at every so many decisions of a lane, and the rule at the others.
        horizon: decisions of the rule after which a copy is cut off; None: none.
        points: values of each entry of a Box that are tried.
        device: where the copies are: `"cpu"`, or a GPU such as `"cuda"`, where many more of them step together; the rule acts on
            the CPU all the same.

    Attributes:
        name: how tables call it.
        privileged: True.
        env_kwargs: empty.

    Raises:
        InvalidArgument: too many actions, no whole number, a rule that does not say what it remembers, or a privileged one with
            copies on a GPU.
    """

    privileged = True

    def __init__(
        self,
        env: LaneVectorEnv,
        make: Callable[[int], LaneVectorEnv],
        build: Callable[[LaneVectorEnv], Policy],
        *,
        name: str = "clairvoyant",
        stride: int = 1,
        horizon: int | None = None,
        points: int | None = None,
        device: str = "cpu",
    ) -> None:
        self.name, self._env = name, env
        self.env_kwargs: Mapping[str, Any] = MappingProxyType({})
        self._stride = whole("stride", stride)
        self._horizon = math.inf if horizon is None else whole("horizon", horizon)
        self._actions = candidates(env.single_action_space, points)
        self._tail = build(env)
        check_tail(self._tail, device)
        most = MOST_COPIES if device == "cpu" else MOST_COPIES_ON_GPU
        fit = COPIES_BYTES // bytes_of_a_lane(env.simulation) if device == "cpu" else _fit(make(1))
        self._count = max(1, min(fit, most, env.num_envs * (len(self._actions) + 1)))
        self._copies = make(self._count)
        if device == "cpu":
            self._copies.reset(seed=0)
        else:
            there: Any = self._copies.lanes
            self._copies.lanes = LanesAtHand(there)
        self._follow = build(self._copies)
        if not hasattr(self._follow, "take"):
            raise InvalidArgument(
                f"tail={self._follow.name!r}: a policy that goes on in copies says what it remembers of a lane; give it "
                "`take(other, lanes)` as `llmgym.baselines.rule.Rule` has it"
            )
        self._follow.reset(np.ones(self._count, np.bool_))

    def reset(self, lanes: NDArray[np.bool_]) -> None:
        """The rule forgets what it remembers of these lanes."""
        self._tail.reset(lanes)

    def act(self, obs: NDArray[np.float32], mask: NDArray[np.int8] | None) -> NDArray[Any]:
        """The actions of all lanes, as the environment takes them."""
        said = np.asarray(self._tail.act(obs, mask))
        chosen = said.reshape(len(obs), -1).astype(np.float64)
        buffers = self._env.lanes.buffers
        decides = np.flatnonzero(~buffers.ended & (buffers.steps % self._stride == 0))
        own = chosen[decides]
        others = (self._actions != own[:, None]).any(axis=2)
        if mask is not None:
            others &= self._allowed(mask[decides])
        # first what the rule says: of equals the first is taken
        tried = np.concatenate([others.any(axis=1, keepdims=True), others], axis=1)
        rows, columns = tried.nonzero()
        if len(rows):
            actions = np.where(columns[:, None] == 0, own[rows], self._actions[columns - 1])
            worth = np.full(tried.shape, -np.inf)
            worth[rows, columns] = self._worth(decides[rows], actions)
            best = worth.argmax(axis=1)
            chosen[decides] = np.where(best[:, None] == 0, own, self._actions[best - 1])
        return chosen.reshape(said.shape).astype(said.dtype)

    def _allowed(self, mask: NDArray[np.int8]) -> NDArray[np.bool_]:
        """Which actions the rows of a mask allow, bool [rows, actions]."""
        space = self._env.single_action_space
        parts = self._actions.astype(np.int64)
        if isinstance(space, MultiDiscrete):
            parts = parts + np.concatenate([[0], np.cumsum(space.nvec.ravel())[:-1]])
        return np.asarray(mask[:, parts].all(axis=2))

    def _worth(self, which: Ints, actions: Floats) -> Floats:
        """Rewards from here on if a lane takes an action and the rule goes on, float64 [n].

        Args:
            which: lanes, int64 [n].
            actions: one for each, float64 [n, entries].
        """
        worth = np.zeros(len(which))
        copies = self._copies.lanes
        buffers, there = copies.buffers, isinstance(copies, LanesAtHand)
        for first in range(0, len(which), self._count):
            here = slice(first, min(first + self._count, len(which)))
            lanes = which[here]
            n = len(lanes)
            if isinstance(copies, LanesAtHand):
                copies.take(self._env.lanes, lanes)
            else:
                copy_lanes(self._env.lanes, lanes, copies)
                buffers.ended[n:] = True
            self._follow.take(self._tail, np.concatenate([lanes, np.zeros(self._count - n, np.int64)]))  # type: ignore[attr-defined]
            buffers.action[:n] = actions[here]
            for step in itertools.count():
                copies.step(HOLD)
                worth[here] += buffers.reward[:n]
                if buffers.ended.all() or step >= self._horizon:
                    break
                load_decision(self._copies, self._follow, self._follow.name, step, copy=not there)
        return worth
