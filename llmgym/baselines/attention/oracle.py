"""`rollout`: every action tried in a copy of the world with its true future, then the rule `priced` to the end.

The compiled `decide` is that rule on the arrays of a lane; `llmgym.baselines.attention.policies` has it on observations.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmgym.baselines.rule import Rule
from llmgym.core.checks import number
from llmgym.core.jit import kernel
from llmgym.envs.attention.env import AttentionBudget
from llmgym.envs.attention.kernels import allowed, next_waiting, service_s, step_lane
from llmgym.envs.attention.state import Params, State

NEAR = 1e-12
"""Worths that differ by less are equal."""
LEAST_LEFT, MOST_LEFT = 0.02, 50.0
"""What the ledger has left per token to come, in budgets, counts as no less and no more than this."""


@kernel
def decide(
    state: State, params: Params, lane: int, prices: NDArray[np.float64], action: NDArray[np.float64]
) -> None:
    """Write the action of the rule `priced`.

    Args:
        state: arrays of all lanes.
        params: what all lanes share.
        lane: that decides.
        prices: loss, time, pace and skip of the rule, float64 [4].
        action: float64 [1], written to.
    """
    time, pace, skip = prices[1], prices[2], prices[3]
    episode, config = state.lane[lane], params.config[0]
    batch = state.batch[lane, episode.head]
    serving = params.tables.kernels.shape[0] * params.splits.shape[0]
    tokens = float(batch.length) * batch.requests / config.mean_tokens
    weight = 1.0 if config.even != 0 else tokens
    others = 0
    for n in range(episode.oldest, episode.arrived):
        others += 1 if state.batch[lane, n].action < 0 else 0
    all_tokens = episode.tokens + (config.batches - episode.done) * config.mean_tokens
    left = max(1.0 - episode.spent / (all_tokens * config.budget), -1.0)
    left *= config.batches / (config.batches - episode.done)
    loss = prices[0] * min(max(left, LEAST_LEFT), MOST_LEFT) ** -pace
    best, best_worth, best_s, makes = 0, -math.inf, math.inf, False
    for a in range(serving):
        if not allowed(params, batch, a):
            continue
        one = params.tables.kernels[a // params.splits.shape[0]]
        seconds = service_s(params, batch, a, 0.0)
        on_time = episode.clock_s + seconds <= batch.due_s
        makes = makes or on_time
        worth = weight if on_time else -config.late_weight * weight
        worth -= weight * config.excess_weight * max(one.loss - batch.limit, 0.0)
        worth -= loss * tokens * one.loss / config.budget
        worth -= time * (others - 1) * seconds / config.mean_s
        if worth > best_worth + NEAR or (worth > best_worth - NEAR and seconds < best_s):
            best, best_worth, best_s = a, worth, seconds
    action[0] = best
    if skip != 0.0 and not makes and next_waiting(state, params, lane) >= 0:
        action[0] = serving


@kernel
def copy_lane(source: State, target: State, lane: int) -> None:
    """Write a lane into the only lane of other arrays.

    Args:
        source: arrays of all lanes.
        target: arrays of one lane, written.
        lane: the lane of `source` that is copied.
    """
    target.lane[0] = source.lane[lane]
    for n in range(source.batch.shape[1]):
        target.batch[0, n] = source.batch[lane, n]


@kernel
def play_on(state: State, params: Params, prices: NDArray[np.float64], action: NDArray[np.float64]) -> float:
    """Return of an episode from here on: one action, then the rule.

    Args:
        state: arrays of one lane, which is played to its end.
        params: what all lanes share.
        prices: loss, time, pace and skip of the rule, float64 [4].
        action: the first action, float64 [1]; written to.

    Returns:
        Sum of the rewards.
    """
    total, ended = 0.0, False
    while not ended:
        reward, ended, _, _ = step_lane(state, params, 0, action)
        total += reward
        if not ended:
            decide(state, params, 0, prices, action)
    return total


@kernel
def best_action(
    state: State,
    params: Params,
    lane: int,
    prices: NDArray[np.float64],
    copied: State,
    scratch: NDArray[np.float64],
) -> int:
    """The action whose future is best.

    Args:
        state: arrays of all lanes.
        params: what all lanes share.
        lane: that decides.
        prices: of the rule that plays on, each a row of loss, time, pace and skip, float64 [rules, 4].
        copied: arrays of one lane, written to.
        scratch: float64 [1], written to.

    Returns:
        The number of the action, as `step_lane` takes it.
    """
    episode = state.lane[lane]
    batch = state.batch[lane, episode.head]
    serving = params.tables.kernels.shape[0] * params.splits.shape[0]
    best, best_return = 0, -math.inf
    for action in range(serving + 1):
        if action < serving and not allowed(params, batch, action):
            continue
        if action == serving and next_waiting(state, params, lane) < 0:
            continue
        for i in range(prices.shape[0]):
            copy_lane(state, copied, lane)
            scratch[0] = action
            total = play_on(copied, params, prices[i], scratch)
            if total > best_return + NEAR:
                best, best_return = action, total
    return best


class RolloutPolicy(Rule[AttentionBudget]):
    """`rollout`: each action is tried in a copy of the world, then `priced` plays to the end; the best one is taken.

    With prices of 0 for loss and time it plays on with several sets of prices, of which the best counts. No return is below that of
    the rules it plays on with, in the same world. It is no optimum.

    Args:
        env: the environment.
        name: of the policy.
        loss: price of the ledger; together with `time` 0: several.
        time: price of time.
        pace: as in `priced`.
        skip: as in `priced`.
    """

    privileged = True
    SEVERAL = tuple((loss, time, 1.0, 1.0) for loss in (0.2, 0.5, 1.0) for time in (0.1, 0.5))
    """Loss, time, pace and skip of the rules where no prices are given."""

    def __init__(
        self,
        env: Any,
        name: str = "rollout",
        loss: float = 0.0,
        time: float = 0.0,
        pace: float = 1.0,
        skip: int = 1,
    ) -> None:
        super().__init__(env, name, AttentionBudget)
        given = {"loss": loss, "time": time, "pace": pace, "skip": skip}
        one = tuple(number(key, value, zero=True) for key, value in given.items())
        self._prices = np.array(self.SEVERAL if one[:2] == (0.0, 0.0) else [one], np.float64)
        self._copy: State = self._simulation.allocate(1)
        self._scratch = np.zeros(1)

    def act(self, obs: NDArray[np.float32], mask: NDArray[np.int8] | None) -> NDArray[Any]:
        """The actions of all lanes, int64 [lanes]; 0 where an episode is over."""
        state, params = self._env.lanes.state, self._simulation.params
        ended = state.lane["done"] == self._simulation.scenario.batches
        return np.array(
            [
                0
                if ended[lane]
                else best_action(state, params, lane, self._prices, self._copy, self._scratch)
                for lane in range(len(obs))
            ],
            np.int64,
        )
