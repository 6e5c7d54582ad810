"""A clairvoyant for KVQueue-v1: every action is tried in copies of the world, with the requests that are really to come."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmgym.baselines.clairvoyant import TriesEveryAction
from llmgym.core.checks import whole
from llmgym.core.jit import kernel
from llmgym.core.memory import copy_lane
from llmgym.envs.kv.queue_v1.env import KVQueue
from llmgym.envs.kv.queue_v1.kernels import step_lane
from llmgym.envs.kv.queue_v1.state import RULE, Params, State
from llmgym.errors import InvalidArgument
from llmgym.serving.engine import follow, plan

MOST_DECISIONS = 2**20
"""Decisions after which a copy is stopped; an episode ends long before."""


@kernel
def play_out(
    state: State,
    pick: Params,
    rule: Params,
    decision: NDArray[np.float64],
    actions: NDArray[np.float64],
    out: NDArray[np.float64],
) -> None:
    """Take an action in each lane, and go on with a rule to the end of the episode.

    Args:
        state: arrays of the copies, all alike.
        pick: params of the environment.
        rule: the same, where a rule decides.
        decision: float64 [1], number of the rule.
        actions: float64 [n, 1], one for each of the first lanes.
        out: float64 [n], receives the rewards to the end.
    """
    number = int(decision[0])
    for lane in range(actions.shape[0]):
        params, action = pick, actions[lane]
        total, steps = 0.0, 0
        terminated, truncated = False, False
        while not (terminated or truncated) and steps <= MOST_DECISIONS:
            reward, terminated, truncated, _ = step_lane(state, params, lane, action)
            total += reward
            if steps == 0:
                params, action = rule, decision
                state.lane[lane].rule = number
                follow(state, params, lane, number)
                if state.lane[lane].short == 1:
                    plan(state, params, lane)
            steps += 1
        out[lane] = total


class RolloutPolicy(TriesEveryAction[KVQueue]):
    """`rollout`: the action after which a rule does best in the world as it will be.

    At every decision each allowed action is tried in a copy of the lane, which goes on with a rule to the end of the episode. It
    knows arrivals, lengths and turns, which no scheduler does, and it is slow: seconds an episode.

    Args:
        env: the environment, with `action="pick"`.
        name: of the policy.
        tail: number of the rule in `simulation.rules` that goes on after an action.
    """

    def __init__(self, env: Any, name: str = "rollout", *, tail: int = 2) -> None:
        super().__init__(env, name, KVQueue)
        if self._simulation.action_mode != "pick":
            raise InvalidArgument(
                f"policy {name!r} needs action='pick', not {self._simulation.action_mode!r}"
            )
        self._tail = whole("tail", tail, 0, len(self._simulation.rules) - 1)
        self._copies = self._simulation.allocate(self._simulation.action_space.n)
        params = self._simulation.params
        config = params.config.copy()
        config["mode"], config["every"] = RULE, 1
        config.setflags(write=False)  # as that of the environment: compiled code takes the one for the other
        self._rule = params._replace(config=config)

    def worth(self, lane: int, actions: NDArray[np.int64]) -> NDArray[np.float64]:
        """What is still to come when one of these actions is taken, and then what the rule says.

        Args:
            lane: of the environment.
            actions: int64 [n], all of them allowed.

        Returns:
            Rewards to the end of the episode, float64 [n].
        """
        n = len(actions)
        copy_lane(self._env.lanes.state, lane, self._copies, slice(n))
        out = np.zeros(n)
        play_out(
            self._copies,
            self._simulation.params,
            self._rule,
            np.array([float(self._tail)]),
            actions[:, None].astype(np.float64),
            out,
        )
        return out
