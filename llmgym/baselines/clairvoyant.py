"""What clairvoyants of several families have in common: every action that is allowed is tried in copies of the world."""

from abc import abstractmethod

import numpy as np
from numpy.typing import NDArray

from llmgym.baselines.rule import Floats, Rule, S


class TriesEveryAction(Rule[S]):
    """A policy that takes the action with the most still to come, in the world as it will be.

    What an action is worth says `worth`, of each family. It knows the future, so it is privileged.
    """

    privileged = True

    def act(self, obs: NDArray[np.float32], mask: NDArray[np.int8] | None) -> NDArray[np.int64]:
        """The actions of all lanes, int64 [lanes]."""
        lanes = self._env.lanes
        allowed = lanes.buffers.mask if mask is None else mask
        return np.array(
            [
                0 if lanes.buffers.ended[lane] else self._best(lane, np.flatnonzero(allowed[lane]))
                for lane in range(len(obs))
            ]
        )

    def _best(self, lane: int, actions: NDArray[np.int64]) -> int:
        return int(actions[0] if len(actions) == 1 else actions[self.worth(lane, actions).argmax()])

    @abstractmethod
    def worth(self, lane: int, actions: NDArray[np.int64]) -> Floats:
        """What is still to come after each of these actions.

        Args:
            lane: of the environment.
            actions: int64 [n], all of them allowed.

        Returns:
            Rewards to the end of the episode, float64 [n].
        """
