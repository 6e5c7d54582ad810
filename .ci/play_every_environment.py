"""Play one episode of every environment, with random legal actions; llmgym must be installed, and not from its source tree."""

from pathlib import Path

import gymnasium
import numpy as np
from gymnasium.spaces import Box

import llmgym

home = Path(llmgym.__file__)
assert "site-packages" in home.parts, f"llmgym comes from {home}"
for env_id in llmgym.env_ids():
    kwargs = next(iter(llmgym.spec(env_id).test_cases().values()))
    env = gymnasium.make(env_id, **kwargs)
    rng = np.random.default_rng(0)
    _, info = env.reset(seed=0)
    total, steps, ended = 0.0, 0, False
    while not ended:
        if isinstance(env.action_space, Box):
            action = rng.uniform(env.action_space.low, env.action_space.high)
        else:
            action = int(rng.choice(np.flatnonzero(info["action_mask"])))
        _, reward, terminated, truncated, info = env.step(action)
        total, steps, ended = total + reward, steps + 1, terminated or truncated
    print(f"{env_id}: {steps} decisions, return {total:.4g}")
