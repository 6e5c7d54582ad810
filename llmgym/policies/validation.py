"""How good a policy is on worlds that are held out, while it is trained."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmgym.core.env import LaneVectorEnv
from llmgym.policies.config import FIRST_VALIDATION_SEED
from llmgym.policies.learned import LearnedPolicy


def mean_return(policy: LearnedPolicy, env: LaneVectorEnv) -> float:
    """Play one episode in every lane.

    Args:
        policy: who plays.
        env: lanes in `SAME_STEP` mode; lane i gets the world of seed `FIRST_VALIDATION_SEED` + i.

    Returns:
        The mean return.
    """
    lanes = env.num_envs
    obs, infos = env.reset(seed=FIRST_VALIDATION_SEED)
    policy.reset(np.ones(lanes, np.bool_))
    returns: NDArray[np.float64] = np.zeros(lanes)
    running = np.ones(lanes, np.bool_)
    while running.any():
        actions: Any = policy.act(obs, infos["action_mask"])
        obs, reward, terminated, truncated, infos = env.step(actions)
        returns += reward * running
        if (ended := terminated | truncated).any():
            running &= ~ended
            policy.reset(ended)
    return float(returns.mean())
