"""A loop in the style of EnvPool, `(obs, rew, term, trunc, info)`: any legal action in many lanes."""

import gymnasium
import numpy as np


def lanes(num_envs=8):
    return gymnasium.make_vec("llmgym:llmgym/KVQueue-v1", num_envs, requests=20, max_episode_steps=400)


def play(envs, steps, seed=0):
    rng = np.random.default_rng(seed)
    _obs, info = envs.reset(seed=seed)
    returns, running = [], np.zeros(envs.num_envs)
    for _ in range(steps // envs.num_envs):
        act = (rng.random(info["action_mask"].shape) * info["action_mask"]).argmax(axis=1)
        _obs, rew, term, trunc, info = envs.step(act)  # the step after an end resets, as in EnvPool: rew is 0
        running += rew
        done = term | trunc
        returns += running[done].tolist()
        running[done] = 0.0
    return returns


if __name__ == "__main__":
    returns = play(lanes(), steps=20_000)
    print(f"any legal action: return {np.mean(returns):.2f} in {len(returns)} episodes")
