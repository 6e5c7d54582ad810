"""skrl: PPO on native lanes, which `wrap_env` takes for what they are. skrl knows no masks."""

import gymnasium
import torch
from skrl.agents.torch.ppo import PPO
from skrl.envs.wrappers.torch import wrap_env
from skrl.memories.torch import RandomMemory
from skrl.models.torch import CategoricalMixin, DeterministicMixin, Model
from skrl.trainers.torch import SequentialTrainer
from skrl.utils import set_seed
from torch import nn


def lanes(num_envs=8):
    env_id = "llmgym:llmgym/KVQueue-v1"
    envs = gymnasium.make_vec(
        env_id, num_envs, autoreset_mode="SAME_STEP", requests=20, max_episode_steps=400
    )
    return wrap_env(envs, verbose=False)


class Policy(CategoricalMixin, Model):
    def __init__(self, env):
        spaces = {"observation_space": env.observation_space, "action_space": env.action_space}
        Model.__init__(self, **spaces, device="cpu")
        CategoricalMixin.__init__(self)
        self.net = nn.Sequential(
            nn.Linear(self.num_observations, 64), nn.Tanh(), nn.Linear(64, self.num_actions)
        )

    def compute(self, inputs, role):
        return self.net(inputs["observations"]), {}


class Value(DeterministicMixin, Model):
    def __init__(self, env):
        spaces = {"observation_space": env.observation_space, "action_space": env.action_space}
        Model.__init__(self, **spaces, device="cpu")
        DeterministicMixin.__init__(self)
        self.net = nn.Sequential(nn.Linear(self.num_observations, 64), nn.Tanh(), nn.Linear(64, 1))

    def compute(self, inputs, role):
        return self.net(inputs["observations"]), {}


def ppo(env, steps, seed=0):
    set_seed(seed)
    settings = {"rollouts": 128, "learning_epochs": 10, "mini_batches": 4, "learning_rate": 3e-4}
    agent = PPO(
        models={"policy": Policy(env), "value": Value(env)},
        memory=RandomMemory(memory_size=128, num_envs=env.num_envs, device="cpu"),
        observation_space=env.observation_space,
        action_space=env.action_space,
        device="cpu",
        cfg=settings | {"experiment": {"write_interval": 0, "checkpoint_interval": 0}},
    )
    told = {"timesteps": steps // env.num_envs, "headless": True, "disable_progressbar": True}
    SequentialTrainer(env=env, agents=agent, cfg=told | {"close_environment_at_exit": False}).train()
    return agent


if __name__ == "__main__":
    agent = ppo(lanes(), steps=4_096)
    env, total, ended = lanes(), 0.0, 0
    obs, _ = env.reset()
    for _ in range(400):
        with torch.no_grad():
            action = agent.policy.act({"observations": obs})[0]
        obs, reward, terminated, truncated, _ = env.step(action)
        total, ended = total + float(reward.sum()), ended + int((terminated | truncated).sum())
    print(f"PPO: return {total / ended:.2f} in {ended} episodes")
