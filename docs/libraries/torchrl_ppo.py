"""TorchRL: PPO with a masked categorical on native lanes."""

import gymnasium
import torch
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.collectors import Collector
from torchrl.envs import DTypeCastTransform, GymWrapper, TransformedEnv
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import MaskedCategorical, ProbabilisticActor, ValueOperator
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE

from llmgym.core.wrappers import VectorMaskInObservation


def lanes(num_envs=8, device="cpu"):
    env_id = (
        "llmgym:llmgym/KVQueue-v1"  # TorchRL refuses NEXT_STEP, and SAME_STEP where observations are dicts
    )
    envs = gymnasium.make_vec(
        env_id, num_envs, autoreset_mode="DISABLED", requests=20, max_episode_steps=400, device=device
    )
    env = GymWrapper(VectorMaskInObservation(envs), categorical_action_encoding=True, device=device)
    return TransformedEnv(env, DTypeCastTransform(torch.int8, torch.bool, in_keys=["action_mask"]))


def network(entries, outputs):
    return nn.Sequential(
        nn.Linear(entries, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, outputs)
    )


def ppo(env, steps, seed=0, batch=1_024, epochs=10, minibatch=256):
    torch.manual_seed(seed)
    env.set_seed(seed)
    entries, actions = env.observation_spec["observation"].shape[-1], env.action_spec.space.n
    actor = ProbabilisticActor(
        TensorDictModule(network(entries, actions), ["observation"], ["logits"]),
        in_keys={"logits": "logits", "mask": "action_mask"},
        distribution_class=MaskedCategorical,
        return_log_prob=True,
    ).to(env.device)
    critic = ValueOperator(network(entries, 1)).to(env.device)
    advantage = GAE(gamma=0.99, lmbda=0.95, value_network=critic)
    loss = ClipPPOLoss(actor, critic, entropy_coeff=0.0, normalize_advantage=True)
    optimizer = torch.optim.Adam(loss.parameters(), 3e-4)
    for rollout in Collector(
        env, actor, frames_per_batch=batch, total_frames=steps, auto_register_policy_transforms=False
    ):
        for _ in range(epochs):
            data = advantage(rollout).reshape(-1)
            for rows in torch.randperm(len(data)).split(minibatch):
                terms = loss(data[rows])
                optimizer.zero_grad()
                (terms["loss_objective"] + 0.5 * terms["loss_critic"]).backward()
                nn.utils.clip_grad_norm_(loss.parameters(), 0.5)
                optimizer.step()
    return actor


if __name__ == "__main__":
    actor = ppo(lanes(), steps=4_096)
    with set_exploration_type(ExplorationType.RANDOM):
        played = lanes().rollout(200, actor, break_when_any_done=False)
    ended = played["next", "done"].sum()
    print(f"PPO: return {played['next', 'reward'].sum() / ended:.2f} in {ended} episodes")
