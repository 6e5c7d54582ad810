"""Proximal policy optimisation where the lanes live on the device of the networks: nothing but a few numbers an update leaves it.

The algorithm is that of `llmgym.policies.ppo`, rollouts and advantages as tensors; learning is the same code.
"""

import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llmgym.errors import InvalidArgument
from llmgym.policies.config import Plan, training_seed
from llmgym.policies.episodes import EPISODE_COLUMNS
from llmgym.policies.imitation import imitate
from llmgym.policies.learner import Batch, Learner, remembered
from llmgym.policies.network import normalised
from llmgym.policies.recurrent import Before
from llmgym.policies.run import Run


class Averages:
    """Sums over the episodes that ended in an update, on the device.

    Args:
        lanes: number of lanes.
        names: of the episode metrics.
        device: where lanes live.
    """

    def __init__(self, lanes: int, names: tuple[str, ...], device: torch.device) -> None:
        self._names = names
        self._returns = torch.zeros(lanes, dtype=torch.float64, device=device)
        self._lengths = torch.zeros(lanes, dtype=torch.float64, device=device)
        self._sums = torch.zeros(4 + 2 * len(names), dtype=torch.float64, device=device)

    def step(self, rewards: Tensor, ended: Tensor, metrics: Tensor) -> None:
        """Take in one step of all lanes.

        Args:
            rewards: of the step, float64 [lanes].
            ended: which episodes ended with it, bool [lanes].
            metrics: of the episodes, float64 [lanes, metrics]; only rows of those that ended are read.
        """
        self._returns += rewards
        self._lengths += 1
        over = ended.double()
        known = torch.isfinite(metrics) & ended[:, None]
        row = [over.sum(), over @ self._returns, over @ self._returns.square(), over @ self._lengths]
        values = torch.where(known, metrics, 0.0).sum(dim=0)
        self._sums += torch.cat([torch.stack(row), values, known.sum(dim=0)])
        self.drop(ended)

    def drop(self, lanes: Tensor) -> None:
        """Forget the running episodes of these lanes, bool [lanes]."""
        self._returns.masked_fill_(lanes, 0.0)
        self._lengths.masked_fill_(lanes, 0.0)

    def take(self) -> dict[str, float]:
        """Columns of the learning curve for the episodes that ended since the last call; only `episodes` if there are none."""
        count, total, squares, steps, *rest = self._sums.tolist()
        self._sums.zero_()
        if count == 0:
            return {"episodes": 0.0}
        mean, n = total / count, len(self._names)
        spread = max(squares / count - mean**2, 0.0) ** 0.5
        row = dict(zip(EPISODE_COLUMNS, (count, mean, spread, steps / count)))
        means = [value / known if known else float("nan") for value, known in zip(rest[:n], rest[n:])]
        return row | dict(zip(self._names, means))


def advantages(
    rewards: Tensor, values: Tensor, next_values: Tensor, ended: Tensor, discounts: Tensor, gae_lambda: float
) -> Tensor:
    """As `llmgym.policies.ppo.advantages`, on the device."""
    deltas = rewards + discounts * next_values - values
    carry = discounts * gae_lambda * ~ended
    result, running = torch.empty_like(deltas), torch.zeros_like(deltas[0])
    for step in range(len(deltas) - 1, -1, -1):
        running = deltas[step] + carry[step] * running
        result[step] = running
    return result


def train(plan: Plan, run: Run) -> None:
    """Train a policy on lanes of a device; see `llmgym.policies.ppo.train_ppo`.

    Raises:
        InvalidArgument: the networks live elsewhere, or the rule to imitate cannot be.
    """
    config, env, learner = plan.config, run.env, Learner(plan, run)
    lanes: Any = env.lanes
    device = lanes.card.device
    if learner.device.type != device.type:
        raise InvalidArgument(
            f"env_device={config.env_device!r}: device={config.device!r} has to be the same"
        )
    if config.imitate and run.stored is None:
        imitate(run, learner)
    T, N, parts = config.rollout_steps, plan.lanes, env.simulation.action_size
    net, actions_total, batch = learner.net, env.simulation.mask_size, T * N
    sampler = torch.Generator(device).manual_seed(training_seed(plan.seed, run.steps) % 2**63)

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    obs, masks = empty(T + 1, N, env.layout.size), empty(T, N, actions_total, dtype=torch.bool)
    actions = empty(T, N, parts, dtype=torch.float32 if net.continuous else torch.int64)
    log_probabilities, rewards, discounts, discounted_returns = (empty(T, N) for _ in range(4))
    terminated, truncated = empty(T, N, dtype=torch.bool), empty(T, N, dtype=torch.bool)
    discounted = torch.zeros(N, dtype=torch.float64, device=device)
    episodes = Averages(N, env.simulation.metric_names, device)
    restart_at = learner.shuffler.integers(1, config.scatter + 1, N) if config.scatter else np.zeros(N, int)
    restart_at = torch.from_numpy(restart_at).to(device)
    env.reset(seed=training_seed(plan.seed, run.steps))
    buffers, taken = lanes.buffers, 0

    begins = torch.ones(T + 1, N, dtype=torch.bool, device=device)  # of episodes, for networks with a memory
    before = learner.nothing_remembered(begins[0])

    def looked_at(rows: Tensor) -> Tensor:
        return normalised(rows, learner.obs_moments, config.normalise_observations)

    def finish() -> float:
        """Wait for the device; the time."""
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    while not run.finished:
        # ---- act
        began = time.perf_counter()
        last_obs, last_at = [], []
        first = before
        for t in range(T):
            obs[t] = buffers.obs
            masks[t] = buffers.mask
            with torch.no_grad():
                action, log_probabilities[t], memory = net.sample(
                    looked_at(obs[t]), masks[t] if actions_total else None, sampler, before
                )
                actions[t] = action
                sent = net.bounded(action)
            env.step(sent)
            terminated[t], truncated[t] = buffers.terminated, buffers.truncated
            ended = terminated[t] | truncated[t]
            cut_off = (truncated[t] & ~terminated[t]).nonzero().reshape(-1)
            last_obs.append(buffers.final_obs[cut_off])
            last_at.append(t * N + cut_off)
            episodes.step(buffers.reward, ended, lanes.metric_columns())
            rewards[t] = buffers.reward
            discounts[t] = config.gamma if config.discount == "step" else config.gamma**buffers.dt
            discounted = discounted * discounts[t] + buffers.reward
            discounted_returns[t] = discounted
            taken += 1
            if taken <= config.scatter:
                restart = (restart_at == taken) & ~ended
                truncated[t] |= restart
                last_obs.append(buffers.obs[restart])
                last_at.append(t * N + restart.nonzero().reshape(-1))
                lanes.begin(restart)
                episodes.drop(restart)
                ended = ended | restart
            discounted.masked_fill_(ended, 0.0)
            begins[t + 1] = ended
            if before is not None and memory is not None:
                before = Before(memory, before.critic, ended)
            run.stepped()
        obs[T] = buffers.obs
        run.steps += batch
        run.rolled_out()
        acted = finish()
        run.seconds["env"] += acted - began

        # ---- judge
        if config.scale_rewards:
            learner.return_moments.take(*_moments(discounted_returns.reshape(-1, 1)))
            rewards /= float(np.sqrt(learner.return_moments.var[0] + 1e-8))
        states = looked_at(obs.reshape(-1, obs.shape[-1]))
        if first is not None:
            first = first._replace(begins=begins.reshape(-1).clone())
        with torch.no_grad():
            judged, memories = net.value(states, first)
            values = judged.reshape(T + 1, N)
            ended_all = terminated | truncated
            next_values = torch.where(ended_all, 0.0, values[1:])
            at = torch.cat(last_at)
            if len(at):
                final = looked_at(torch.cat(last_obs))
                next_values.reshape(-1)[at] = net.value(final, remembered(memories, at))[0]
            gae = advantages(rewards, values[:-1], next_values, ended_all, discounts, config.gae_lambda)
            targets = (gae + values[:-1]).reshape(-1)
            weights = ((gae - gae.mean()) / (gae.std(unbiased=False) + 1e-8)).reshape(-1)
        if before is not None and memories is not None:
            before = before._replace(critic=memories[(T - 1) * N : batch])
        begins[0] = begins[T]

        # ---- learn
        learned = learner.learn(
            Batch(
                states,
                masks.reshape(batch, -1) if actions_total else None,
                actions.reshape(batch, parts),
                log_probabilities.reshape(batch),
                targets,
                weights,
                first,
            ),
            judging=run.stored is None and taken <= config.value_first * T,
        )
        if config.normalise_observations:
            learner.obs_moments.take(*_moments(obs[:T].reshape(batch, -1)))
        left = targets - values[:-1].reshape(-1)
        spread = float(targets.var(unbiased=False))
        learned["explained_variance"] = 1.0 - float(left.var(unbiased=False)) / max(spread, 1e-12)
        run.seconds["learning"] += finish() - acted
        run.end_update({**learned, **episodes.take()})


def _moments(rows: Tensor) -> tuple[int, Any, Any]:
    """How many rows there are, and mean and variance of each column, float64."""
    wide = rows.double()
    return len(rows), wide.mean(dim=0).cpu().numpy(), wide.var(dim=0, unbiased=False).cpu().numpy()
