"""Tianshou 2: DQN, which reads the mask, on native lanes."""

import gymnasium
import numpy as np
import torch
from tianshou.algorithm import DQN
from tianshou.algorithm.modelfree.dqn import DiscreteQLearningPolicy
from tianshou.algorithm.optim import AdamOptimizerFactory
from tianshou.data import Collector, VectorReplayBuffer
from tianshou.trainer import OffPolicyTrainerParams
from tianshou.utils.net.common import Net

from llmgym.libraries.tianshou import TianshouVectorEnv


def lanes(num_envs=8):
    env_id = "llmgym:llmgym/KVQueue-v1"
    return TianshouVectorEnv(
        gymnasium.make_vec(env_id, num_envs, autoreset_mode="DISABLED", requests=20, max_episode_steps=400)
    )


def dqn(envs, steps, seed=0):
    np.random.seed(seed)  # noqa: NPY002 - Tianshou draws from this one
    torch.manual_seed(seed)
    envs.seed(seed)
    entries, actions = envs.observation_space[0]["obs"].shape, envs.action_space[0]
    policy = DiscreteQLearningPolicy(
        model=Net(state_shape=entries, action_shape=actions.n, hidden_sizes=(64, 64)),
        action_space=actions,
        eps_training=0.1,
    )
    algorithm = DQN(policy=policy, optim=AdamOptimizerFactory(lr=1e-3), gamma=0.99, target_update_freq=250)
    algorithm.run_training(
        OffPolicyTrainerParams(
            training_collector=Collector(algorithm, envs, VectorReplayBuffer(20_000, len(envs))),
            max_epochs=1,
            epoch_num_steps=steps,
            collection_step_num_env_steps=128,
            update_step_num_gradient_steps_per_sample=0.125,
            test_step_num_episodes=0,
            verbose=False,
            show_progress=False,
        )
    )
    return algorithm


if __name__ == "__main__":
    algorithm = dqn(lanes(), steps=4_096)
    played = Collector(algorithm, lanes()).collect(n_episode=16, reset_before_collect=True)
    print(f"DQN: return {played.returns.mean():.2f} ± {played.returns.std():.2f}")
