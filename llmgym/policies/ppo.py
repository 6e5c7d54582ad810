"""Proximal policy optimisation on many lanes at once, in one file to read from top to bottom.

The algorithm is Schulman et al., "Proximal policy optimization algorithms" (arXiv:1707.06347), written in the
manner of CleanRL (Huang et al., JMLR 23(274), 2022). What differs from the usual single-file trainer:

- all lanes step in one compiled call, so nearly all the time is spent learning;
- an episode that was cut off (truncated) is worth the value of its last observation, one that ended is worth
nothing more
  (Pardo et al., "Time limits in reinforcement learning", ICML 2018), and neither leaks into the next one of its lane;
- discounting may follow simulated time, gamma**dt (Bradtke and Duff, NIPS 1994), since decisions are events;
- the values of a whole rollout are computed in one pass after it.
"""

import importlib
import time

import numpy as np
import torch
from numpy.typing import NDArray

from llmgym.policies.config import Plan, training_seed
from llmgym.policies.episodes import EPISODE_COLUMNS, Episodes
from llmgym.policies.imitation import imitate
from llmgym.policies.learner import LOSS_COLUMNS, Batch, Learner, remembered
from llmgym.policies.network import normalised
from llmgym.policies.recurrent import Before
from llmgym.policies.run import Run, TrainingResult, learning_threads


def advantages(
    rewards: NDArray[np.float32],
    values: NDArray[np.float32],
    next_values: NDArray[np.float32],
    ended: NDArray[np.bool_],
    discounts: NDArray[np.float32],
    gae_lambda: float,
) -> NDArray[np.float32]:
    """Generalised advantage estimates (arXiv:1506.02438, equation 16), all arrays [steps, lanes].

    Args:
        rewards: of each step.
        values: of the observation each step was taken from.
        next_values: of what the step led to: 0 where the episode terminated, the value of its true last
            observation where it was truncated, else the value of the next observation.
        ended: whether the episode ended with this step, either way: the sum is cut there.
        discounts: gamma, or gamma**dt, of each step.
        gae_lambda: lambda.

    Returns:
        The estimates, float32 [steps, lanes].
    """
    deltas = rewards + discounts * next_values - values
    carry = discounts * np.float32(gae_lambda) * ~ended
    result = np.empty_like(deltas)
    running = np.zeros(deltas.shape[1], np.float32)
    for step in range(len(deltas) - 1, -1, -1):
        running = deltas[step] + carry[step] * running
        result[step] = running
    return result


def train_ppo(plan: Plan) -> TrainingResult:
    """Train a policy, or go on training one, and leave it in `plan.out`.

    The same plan on the same machine gives the same numbers (as long as the run is not resumed: see
    docs/training.md).

    Raises:
        CheckpointError: `plan.resume` is set and there is nothing that fits to resume from.
        InvalidArgument: the plan cannot be carried out.
    """
    with Run(plan, (*EPISODE_COLUMNS, *LOSS_COLUMNS)) as run:
        with learning_threads(plan.config.threads):
            if plan.config.env_device == "cpu":
                _train(plan, run)
            else:
                importlib.import_module("llmgym.policies.ppo_device").train(plan, run)
        return run.result()


def _train(plan: Plan, run: Run) -> None:
    config, env = plan.config, run.env
    T, N, d = config.rollout_steps, plan.lanes, env.layout.size
    actions_total = env.simulation.mask_size
    batch = T * N
    clock = time.perf_counter
    learner = Learner(plan, run)
    net, obs_moments, return_moments = learner.net, learner.obs_moments, learner.return_moments
    generator, shuffler, device = learner.generator, learner.shuffler, learner.device

    def seen(rows: NDArray[np.float32]) -> torch.Tensor:
        return normalised(torch.from_numpy(rows).to(device), obs_moments, config.normalise_observations)

    if config.imitate and run.stored is None:
        imitate(run, learner)
    # ---- the rollout, [steps, lanes, ...]
    obs = np.empty((T + 1, N, d), np.float32)
    masks = np.empty((T, N, actions_total), np.bool_)
    parts = env.simulation.action_size
    actions = torch.empty((T, N, parts), dtype=torch.float32 if net.continuous else torch.int64)
    log_probabilities = torch.empty((T, N))
    rewards, discounts = np.empty((T, N), np.float32), np.empty((T, N), np.float32)
    terminated, truncated = np.empty((T, N), np.bool_), np.empty((T, N), np.bool_)
    discounted_returns = np.empty((T, N))
    discounted = np.zeros(N)
    episodes = Episodes(N, env.simulation.metric_names)

    begins = np.ones((T + 1, N), np.bool_)  # of episodes, for networks with a memory
    before = learner.nothing_remembered(torch.from_numpy(begins[0]).to(device))

    current, infos = env.reset(seed=training_seed(plan.seed, run.steps))
    restart_at = shuffler.integers(1, config.scatter + 1, N) if config.scatter else np.zeros(N, np.int64)
    taken = 0
    while not run.finished:
        # ---- act
        last_obs, last_at = [], []
        first = before
        for t in range(T):
            began = clock()
            obs[t] = current
            masks[t] = infos["action_mask"]
            with torch.no_grad():
                mask = torch.from_numpy(masks[t]).to(device) if actions_total else None
                action, log_probabilities[t], memory = net.sample(seen(obs[t]), mask, generator, before)
                actions[t] = action
                sent = net.to_environment(action)
            acted = clock()
            current, reward, terminated[t], truncated[t], infos = env.step(sent)
            dt = infos["dt"]
            ended = terminated[t] | truncated[t]
            if ended.any():
                dt = (
                    dt + infos["final_info"]["dt"]
                )  # in SAME_STEP mode `dt` of an ended lane is that of its reset
                cut_off = np.flatnonzero(truncated[t] & ~terminated[t])
                last_obs.append(infos["final_obs"][cut_off])
                last_at.append(t * N + cut_off)
            episodes.step(reward, ended, env.lanes.metric_columns())
            rewards[t] = reward
            discounts[t] = config.gamma if config.discount == "step" else config.gamma**dt
            discounted = discounted * discounts[t] + reward
            discounted_returns[t] = discounted
            taken += 1
            restart = (restart_at == taken) & ~ended
            if restart.any():
                truncated[t] |= restart
                last_obs.append(current[restart])
                last_at.append(t * N + np.flatnonzero(restart))
                current, fresh = env.reset(options={"reset_mask": restart})
                infos = {"action_mask": fresh["action_mask"]}
                episodes.drop(restart)
                ended = ended | restart
            discounted[ended] = 0.0
            begins[t + 1] = ended
            if before is not None and memory is not None:
                before = Before(memory, before.critic, torch.from_numpy(ended).to(device))
            run.stepped()
            run.seconds["inference"] += acted - began
            run.seconds["env"] += clock() - acted
        obs[T] = current
        run.steps += batch
        run.rolled_out()

        # ---- judge
        began = clock()
        if config.scale_rewards:
            return_moments.update(discounted_returns.reshape(-1, 1))
            rewards /= np.float32(np.sqrt(return_moments.var[0] + 1e-8))
        states = seen(obs.reshape(-1, d))
        if first is not None:
            first = first._replace(begins=torch.from_numpy(begins.reshape(-1).copy()).to(device))
        with torch.no_grad():
            judged, memories = net.value(states, first)
            values = judged.cpu().numpy().reshape(T + 1, N)
            next_values = values[1:].copy()
            ended_all = terminated | truncated
            next_values[ended_all] = 0.0
            if last_at and len(at := np.concatenate(last_at)):
                final, last = seen(np.concatenate(last_obs)), remembered(memories, torch.from_numpy(at))
                next_values.reshape(-1)[at] = net.value(final, last)[0].cpu().numpy()
        if before is not None and memories is not None:
            before = before._replace(critic=memories[(T - 1) * N : batch])
        begins[0] = begins[T]
        gae = advantages(rewards, values[:-1], next_values, ended_all, discounts, config.gae_lambda)
        targets = torch.from_numpy((gae + values[:-1]).reshape(-1)).to(device)
        weights = torch.from_numpy(((gae - gae.mean()) / (gae.std() + 1e-8)).reshape(-1)).to(device)

        # ---- learn
        learned = learner.learn(
            Batch(
                states,
                torch.from_numpy(masks.reshape(batch, -1)).to(device) if actions_total else None,
                actions.reshape(batch, parts).to(device),
                log_probabilities.reshape(batch).to(device),
                targets,
                weights,
                first,
            ),
            judging=run.stored is None and taken <= config.value_first * T,
        )
        # acting and learning of one update see the same moments, so they move between updates
        if config.normalise_observations:
            obs_moments.update(obs[:T].reshape(-1, d))
        run.seconds["learning"] += clock() - began

        # ---- report
        aims = targets.cpu().numpy()
        spread = float(aims.var())
        learned["explained_variance"] = 1.0 - float((aims - values[:-1].reshape(-1)).var()) / max(
            spread, 1e-12
        )
        run.end_update({**learned, **episodes.averages()})
        episodes.clear()
