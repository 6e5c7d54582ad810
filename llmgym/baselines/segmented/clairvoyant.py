"""A clairvoyant for SegmentedPrefill: every action is tried in copies of the world, with the requests that are really to come."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmgym.baselines.clairvoyant import TriesEveryAction
from llmgym.baselines.segmented.rules import ServerRule
from llmgym.baselines.segmented.triage import TriagePolicy
from llmgym.core.lanes import HOLD, Lanes
from llmgym.core.memory import copy_lane
from llmgym.envs.segmented.env import SegmentedPrefill

MOST_STEPS = 5000
"""Steps after which a copy is stopped; a rule never needs as many."""


class ClairvoyantPolicy(TriesEveryAction[SegmentedPrefill]):
    """`clairvoyant`: the action after which a rule does best in the world as it will be.

    At every decision each allowed action is tried in copies of the lane, which go on with one rule each to the end of the episode.
    It knows arrivals, lengths and outputs, which no scheduler does. It is slow: seconds for an episode of ten requests.

    Args:
        env: the environment.
        name: of the policy.
        rules: names with numbers of what goes on after the action, of the baselines of this family; None: two that do well.
    """

    def __init__(
        self, env: Any, name: str = "clairvoyant", rules: Sequence[ServerRule] | None = None
    ) -> None:
        super().__init__(env, name, SegmentedPrefill)
        if rules is None:
            rules = [TriagePolicy(env), TriagePolicy(env, short=10.0, give_up=0.3)]
        self.rules = list(rules)
        self._copies = Lanes(self._simulation, self._simulation.rows)

    def worth(self, lane: int, actions: NDArray[np.int64]) -> NDArray[np.float64]:
        """Of the best of the rules; see `TriesEveryAction.worth`."""
        worth: NDArray[np.float64] = np.max(
            [self.returns(rule, lane, actions) for rule in self.rules], axis=0
        )
        return worth

    def returns(self, rule: ServerRule, lane: int, actions: NDArray[np.int64]) -> NDArray[np.float64]:
        """What is still to come when one of these actions is taken, and then what a rule says.

        Args:
            rule: of this family.
            lane: of the environment.
            actions: int64 [n], all of them allowed.

        Returns:
            Rewards to the end of the episode, float64 [n].
        """
        copies, n = self._copies, len(actions)
        copy_lane(self._env.lanes.state, lane, copies.state, slice(n))
        buffers = copies.buffers
        buffers.ended[:] = np.arange(copies.count) >= n
        buffers.action[:n, 0] = actions
        total = np.zeros(n)
        for _ in range(MOST_STEPS):
            copies.step(HOLD)
            total += buffers.reward[:n]
            going = np.flatnonzero(~buffers.ended)
            if len(going) == 0:
                return total
            buffers.action[going, 0] = rule.act(buffers.obs[going], buffers.mask[going])
        return total
