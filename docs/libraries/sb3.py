"""stable-baselines3: PPO and DQN on native lanes."""

import gymnasium
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.evaluation import evaluate_policy

from llmgym.policies import SB3VecEnv


def lanes(num_envs=8):
    env_id = "llmgym:llmgym/KVQueue-v1"
    return SB3VecEnv(
        gymnasium.make_vec(env_id, num_envs, autoreset_mode="SAME_STEP", requests=20, max_episode_steps=400)
    )


def ppo(envs, steps, seed=0):
    return PPO("MlpPolicy", envs, n_steps=128, batch_size=256, seed=seed, device="cpu").learn(steps)


def dqn(envs, steps, seed=0):
    return DQN("MlpPolicy", envs, learning_starts=1_000, seed=seed, device="cpu").learn(steps)


if __name__ == "__main__":
    for learn in (ppo, dqn):
        model = learn(lanes(), steps=4_096)
        mean, deviation = evaluate_policy(model, lanes(), n_eval_episodes=16, deterministic=False)
        print(f"{learn.__name__}: return {mean:.2f} ± {deviation:.2f}")
