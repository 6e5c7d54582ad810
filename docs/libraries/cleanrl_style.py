"""PPO in one file, in the style of CleanRL, with masks; the row after an episode's end, in which NEXT_STEP resets, is left out."""

import gymnasium
import numpy as np
import torch
from torch import nn
from torch.distributions import Categorical


def lanes(num_envs=8):
    return gymnasium.make_vec("llmgym:llmgym/KVQueue-v1", num_envs, requests=20, max_episode_steps=400)


def network(entries, outputs):
    return nn.Sequential(
        nn.Linear(entries, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, outputs)
    )


def masked(logits, mask):
    return Categorical(logits=logits.masked_fill(~mask, -1e9))


def ppo(envs, steps, seed=0, horizon=128, gamma=0.99, lam=0.95, clip=0.2):
    torch.manual_seed(seed)
    n, (entries,), actions = envs.num_envs, envs.single_observation_space.shape, envs.single_action_space.n
    actor, critic = network(entries, actions), network(entries, 1)
    optimizer = torch.optim.Adam([*actor.parameters(), *critic.parameters()], 3e-4)
    obs, infos = envs.reset(seed=seed)
    began = np.zeros(n, bool)  # whether this row is the one in which a lane is reset
    for _ in range(steps // (n * horizon)):
        rows = {
            name: [] for name in ("obs", "mask", "action", "logp", "value", "reward", "end", "cut", "keep")
        }
        with torch.no_grad():
            for _ in range(horizon):
                seen, mask = torch.as_tensor(obs), torch.as_tensor(infos["action_mask"] > 0)
                policy = masked(actor(seen), mask)
                action = policy.sample()
                value = critic(seen)[:, 0]
                obs, reward, terminated, truncated, infos = envs.step(action.numpy())
                told = (seen, mask, action, policy.log_prob(action), value)
                for name, entry in zip(rows, (*told, reward, terminated, truncated, ~began)):
                    rows[name].append(torch.as_tensor(entry))
                began = terminated | truncated
            last = critic(torch.as_tensor(obs))[:, 0]
        data = {name: torch.stack(entries) for name, entries in rows.items()}
        values, advantage = torch.cat([data["value"], last[None]]), torch.zeros(horizon + 1, n)
        for t in reversed(
            range(horizon)
        ):  # an episode that is cut off counts with the value of its last observation
            going = ~(data["end"][t] | data["cut"][t])
            delta = data["reward"][t] + gamma * values[t + 1] * ~data["end"][t] - values[t]
            advantage[t] = (delta + gamma * lam * going * advantage[t + 1]).float() * data["keep"][t]
        keep = data["keep"].flatten()
        flat = {name: entry.flatten(0, 1)[keep] for name, entry in data.items()}
        gains = advantage[:-1].flatten()[keep]
        targets = gains + flat["value"]
        for _ in range(10):
            for part in torch.randperm(len(gains)).split(256):
                policy = masked(actor(flat["obs"][part]), flat["mask"][part])
                ratio = (policy.log_prob(flat["action"][part]) - flat["logp"][part]).exp()
                gain = (gains[part] - gains[part].mean()) / (gains[part].std() + 1e-8)
                loss = -torch.min(ratio * gain, ratio.clamp(1 - clip, 1 + clip) * gain).mean()
                loss = loss + 0.5 * (critic(flat["obs"][part])[:, 0] - targets[part]).square().mean()
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_([*actor.parameters(), *critic.parameters()], 0.5)
                optimizer.step()
    return actor


if __name__ == "__main__":
    actor = ppo(lanes(), steps=4_096)
    envs, total, ended = lanes(), 0.0, 0
    obs, infos = envs.reset(seed=1_000)
    for _ in range(200):
        with torch.no_grad():
            action = masked(actor(torch.as_tensor(obs)), torch.as_tensor(infos["action_mask"] > 0)).sample()
        obs, reward, terminated, truncated, infos = envs.step(action.numpy())
        total, ended = total + reward.sum(), ended + (terminated | truncated).sum()
    print(f"PPO: return {total / ended:.2f} in {ended} episodes")
