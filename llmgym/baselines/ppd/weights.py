"""Rules for PPDWeights: one weight throughout, a controller on what was missed, and a lookahead.

The weights are those of the operator's knob of Li et al., arXiv 2603.13358 (Eq. 1); the paper sets one by hand.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmgym.baselines.rule import Factory, Rule
from llmgym.core.checks import number, whole
from llmgym.core.lanes import HOLD, Lanes
from llmgym.core.memory import copy_lane
from llmgym.core.policy import Policy
from llmgym.envs.ppd.weights.env import PPDWeights
from llmgym.envs.ppd.weights.kernels import WEIGHTS
from llmgym.errors import InvalidArgument


class WeightPolicy(Rule[PPDWeights]):
    """`weight`, `weight-1`, ...: one weight of TPOT for the whole episode, as an operator would set it.

    Args:
        env: the environment.
        name: of the policy.
        w: weight of TPOT, one of `WEIGHTS`.

    Raises:
        InvalidArgument: another number.
    """

    def __init__(self, env: Any, name: str = "weight", w: float = 1.0) -> None:
        super().__init__(env, name, PPDWeights)
        if w not in WEIGHTS:
            raise InvalidArgument(f"w={w!r}: expected one of {', '.join(f'{one:g}' for one in WEIGHTS)}")
        self.action = WEIGHTS.index(w)

    def act(self, obs: NDArray[np.float32], mask: NDArray[np.int8] | None) -> NDArray[Any]:
        """Numbers of weights [lanes]."""
        return np.full(len(obs), self.action, np.int64)


class ReactivePolicy(Rule[PPDWeights]):
    """`reactive`: a larger weight after an epoch that missed TPOT more often than TTFT, a smaller one after the other.

    Args:
        env: the environment.
        name: of the policy.
        ttft: how many times a turn that missed TTFT counts.
        stride: weights of the list that the rule goes up or down at once.

    Raises:
        InvalidArgument: `ttft` is below 0, or `stride` is not from 1 to the number of weights.
    """

    def __init__(self, env: Any, name: str = "reactive", ttft: float = 1.0, stride: int = 1) -> None:
        super().__init__(env, name, PPDWeights)
        self.ttft, self.stride = number("ttft", ttft, zero=True), whole("stride", stride, 1, len(WEIGHTS))

    def act(self, obs: NDArray[np.float32], mask: NDArray[np.int8] | None) -> NDArray[Any]:
        """Numbers of weights [lanes]."""
        now = np.argmax(obs[:, self._simulation.layout["weight"]], axis=1)
        more = self._read(obs, "missed.tpot") - self.ttft * self._read(obs, "missed.ttft")
        return np.clip(now + self.stride * np.sign(more).astype(np.int64), 0, len(WEIGHTS) - 1)


class WeightOraclePolicy(Rule[PPDWeights]):
    """`oracle`: every weight is tried in a copy of the world for some epochs, and the one that earned most is taken.

    Privileged: it sees the lengths and arrivals to come.

    Args:
        env: the environment.
        name: of the policy.
        epochs: how many epochs a copy runs, all with its weight.

    Raises:
        InvalidArgument: `epochs` is not a whole number from 1 on.
    """

    privileged = True

    def __init__(self, env: Any, name: str = "oracle", epochs: int = 3) -> None:
        super().__init__(env, name, PPDWeights)
        self.epochs = whole("epochs", epochs)
        self._copies = Lanes(self._simulation, len(WEIGHTS))

    def act(self, obs: NDArray[np.float32], mask: NDArray[np.int8] | None) -> NDArray[Any]:
        """Numbers of weights [lanes]."""
        copies = self._copies
        best = np.zeros(len(obs), np.int64)
        for lane in range(len(obs)):
            copy_lane(self._env.lanes.state, lane, copies.state)
            copies.buffers.ended[:] = False
            copies.buffers.action[:, 0] = np.arange(len(WEIGHTS))
            total = np.zeros(len(WEIGHTS))
            for _ in range(self.epochs):
                if not copies.buffers.ended.all():
                    copies.step(HOLD)
                    total += copies.buffers.reward
            best[lane] = int(np.argmax(total))
        return best


BASELINES: dict[str, Callable[[Any], Policy]] = {
    **{f"weight-{w:g}": Factory(f"weight-{w:g}", WeightPolicy, w=w) for w in WEIGHTS},
    "weight": Factory("weight", WeightPolicy, {"w": float}),
    "reactive": Factory("reactive", ReactivePolicy, {"ttft": float, "stride": int}),
    "oracle": Factory("oracle", WeightOraclePolicy, {"epochs": int}),
}

GRIDS: dict[str, tuple[str, ...]] = {
    "weight": tuple(f"weight:w={w:g}" for w in WEIGHTS),
    "reactive": tuple(
        f"reactive:ttft={ttft},stride={stride}" for ttft in (0.25, 1, 2) for stride in (1, 2, 4)
    ),
}
"""The values over which a rule is tuned before it is compared (`llmgym.evaluation.tuned`)."""
BOARDS: dict[str, tuple[str, ...]] = {"small": (), "stress": (), "paper": ("oracle",), "real": ("oracle",)}
"""Scenarios of the leaderboard, each with the rules that are too slow to run on many of its worlds."""
