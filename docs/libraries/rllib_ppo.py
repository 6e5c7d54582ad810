"""RLlib, new API stack: PPO with masks on native lanes."""

import gymnasium
from ray import tune
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.examples.rl_modules.classes.action_masking_rlm import ActionMaskingTorchRLModule

from llmgym.libraries.masked import rllib_env

tune.register_env("llmgym-with-mask", rllib_env)


def ppo(steps, seed=0, num_envs=8, lanes=gymnasium.VectorizeMode.VECTOR_ENTRY_POINT):
    config = (
        PPOConfig()
        .environment(
            "llmgym-with-mask",
            env_config={"env_id": "llmgym/KVQueue-v1", "requests": 20, "max_episode_steps": 400},
        )
        .env_runners(num_env_runners=0, num_envs_per_env_runner=num_envs, gym_env_vectorize_mode=lanes)
        .rl_module(rl_module_spec=RLModuleSpec(module_class=ActionMaskingTorchRLModule))
        .training(train_batch_size=1_024, minibatch_size=256, num_epochs=10, lr=3e-4, gamma=0.99)
        .debugging(seed=seed, log_level="ERROR")
    )
    algorithm = config.build_algo()
    for _ in range(steps // 1_024):
        algorithm.train()
    return algorithm


if __name__ == "__main__":
    result = ppo(steps=3_072).train()["env_runners"]
    print(
        f"PPO: return {result['episode_return_mean']:.2f}, {result['episode_len_mean']:.0f} steps an episode"
    )
