"""sb3-contrib: MaskablePPO, which asks the lanes for their masks, and RecurrentPPO."""

import gymnasium
from sb3_contrib import MaskablePPO, RecurrentPPO
from sb3_contrib.common.maskable.evaluation import evaluate_policy

from llmgym.policies import SB3VecEnv


def lanes(num_envs=8):
    env_id = "llmgym:llmgym/KVQueue-v1"
    return SB3VecEnv(
        gymnasium.make_vec(env_id, num_envs, autoreset_mode="SAME_STEP", requests=20, max_episode_steps=400)
    )


def maskable_ppo(envs, steps, seed=0):
    return MaskablePPO("MlpPolicy", envs, n_steps=128, batch_size=256, seed=seed, device="cpu").learn(steps)


def recurrent_ppo(envs, steps, seed=0):
    return RecurrentPPO("MlpLstmPolicy", envs, n_steps=128, n_epochs=4, seed=seed, device="cpu").learn(steps)


if __name__ == "__main__":
    mean, deviation = evaluate_policy(
        maskable_ppo(lanes(), steps=4_096), lanes(), n_eval_episodes=16, deterministic=False
    )
    print(f"MaskablePPO: return {mean:.2f} ± {deviation:.2f}")
    recurrent_ppo(lanes(), steps=1_024)
