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
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from llmgym import policies
from llmgym.errors import CheckpointError, InvalidArgument
from llmgym.policies import checkpoint
from llmgym.policies.config import Plan, training_seed
from llmgym.policies.episodes import EPISODE_COLUMNS, Episodes
from llmgym.policies.imitation import imitate
from llmgym.policies.network import CLIP, VARIANCE_FLOOR, ActorCritic, RunningMoments, normalised
from llmgym.policies.recurrent import Before
from llmgym.policies.run import Run, TrainingResult, learning_threads

LOSS_COLUMNS = (
    "policy_loss", "value_loss", "entropy", "approx_kl", "clip_fraction",
    "explained_variance", "learning_rate", "epochs",
)  # fmt: skip


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


class Batch(NamedTuple):
    """What an update learns from; the first axis is the transition.

    Attributes:
        states: normalised observations, float32 [n, inputs].
        masks: what was allowed, bool [n, actions]; None where actions have no masks.
        actions: as `ActorCritic.sample` gives them, [n, parts].
        log_probabilities: of these actions when they were taken, float32 [n].
        targets: returns as estimated, float32 [n].
        weights: advantages, normalised, float32 [n].
        before: what networks with a memory remembered before the first step; None: they have none.
    """

    states: torch.Tensor
    masks: torch.Tensor | None
    actions: torch.Tensor
    log_probabilities: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor
    before: Before | None = None


def minibatches(
    size: int, wanted: int, before: Before | None, shuffler: np.random.Generator, device: torch.device
) -> Iterator[tuple[torch.Tensor, Before | None]]:
    """Go through transitions once, in random order; where networks have a memory, lane by lane.

    Args:
        size: transitions.
        wanted: transitions of a minibatch; with a memory as many lanes as make so many, at least one.
        before: what networks with a memory remember before the first of them; None: they have none.
        shuffler: orders transitions, or lanes.
        device: where the networks live.

    Yields:
        Which transitions, int64 [n], and what is remembered before them.
    """
    if before is None:
        for pick in torch.from_numpy(shuffler.permutation(size)).to(device).split(min(wanted, size)):
            yield pick, None
        return
    lanes = len(before.actor)
    steps = size // lanes
    for some in torch.from_numpy(shuffler.permutation(lanes)).to(device).split(max(1, wanted // steps)):
        yield before.of(some, steps)


class Learner:
    """What is learned, and all the state there is.

    Args:
        plan: of the run.
        run: gives the environment, and what a checkpoint has of it.

    Attributes:
        net: policy and value.
        optimizer: of their weights.
        obs_moments: of the observations.
        return_moments: of the discounted returns.
        generator: draws weights and actions.
        shuffler: orders transitions, and draws when lanes are restarted.
        device: where the networks live.
    """

    def __init__(self, plan: Plan, run: Run) -> None:
        config, env = plan.config, run.env
        self._plan, self._run = plan, run
        self.generator = torch.Generator().manual_seed(plan.seed)
        self.shuffler = np.random.Generator(np.random.PCG64(plan.seed))
        tables = env.layout.tables() if config.network in ("scorer", "attention") else ()
        self.device = learning_device(config.device)
        self.net = ActorCritic(
            env.layout.size,
            env.single_action_space,
            config.hidden,
            config.activation,
            self.generator,
            config.network,
            tables,
        )
        self.net.to(self.device)
        self.optimizer = torch.optim.Adam(
            self.net.parameters(), lr=config.learning_rate, eps=1e-5, fused=True
        )
        self.obs_moments = RunningMoments(env.layout.size, tables, config.network == "attention")
        self.return_moments = RunningMoments(1)
        if run.stored is not None:
            self._restore(run.stored)
        elif plan.init:
            self._begin_with(plan.init)
        run.start(self.state)

    def nothing_remembered(self, begins: torch.Tensor) -> Before | None:
        """Empty memories before observations that are an episode's first where `begins`, bool [n], says so; None without memory."""
        if not self.net.memory:
            return None
        empty = torch.zeros(len(begins), self.net.memory, device=self.device)
        return Before(empty, empty, begins)

    def _begin_with(self, name: str) -> None:
        """Take weights and moments of observations from another policy."""
        stored, where = policies.stored(name), f"init={name!r}"
        meta, env = stored["meta"], self._run.env
        if meta["algo"] != self._plan.algo:
            raise CheckpointError(f"{where} was trained with algo={meta['algo']!r}, not {self._plan.algo!r}")
        # another environment may do, as long as it is observed and acted on alike
        checkpoint.check_environment(meta, env.layout, env.single_action_space, None, where)
        checkpoint.check_network(meta, self._plan.config, where, "take the same network")
        self.net.load_state_dict(stored["model"])
        self.obs_moments.restore(stored["normaliser"]["observations"])

    def state(self) -> dict[str, Any]:
        """Everything that a checkpoint stores."""
        return {
            "model": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "normaliser": {
                "observations": self.obs_moments.state(),
                "returns": self.return_moments.state(),
                "enabled": self._plan.config.normalise_observations,
                "variance_floor": VARIANCE_FLOOR,
                "clip": CLIP,
            },
            "rng": {"torch": self.generator.get_state(), "numpy": _numpy_state(self.shuffler)},
        }

    def _restore(self, stored: dict[str, Any]) -> None:
        try:
            self.net.load_state_dict(stored["model"])
            self.optimizer.load_state_dict(stored["optimizer"])
            self.obs_moments.restore(stored["normaliser"]["observations"])
            self.return_moments.restore(stored["normaliser"]["returns"])
            self.generator.set_state(stored["rng"]["torch"])
            state = dict(stored["rng"]["numpy"])
            state["state"] = {key: int(value) for key, value in state["state"].items()}
            self.shuffler.bit_generator.state = state
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"the training state in the checkpoint cannot be restored: {error}"
            ) from error

    def copy(
        self,
        states: torch.Tensor,
        masks: torch.Tensor,
        actions: torch.Tensor,
        before: Before | None,
        epochs: int,
    ) -> float:
        """Raise the likelihood of actions that somebody else chose.

        Args:
            states: normalised observations, float32 [n, inputs].
            masks: what was allowed, bool [n, actions].
            actions: discrete, int64 [n, parts].
            before: what networks with a memory remember before the first observations; None: they have none.
            epochs: passes over them.

        Returns:
            The share of rows whose likeliest action is the one chosen, in the last pass.
        """
        hits = torch.zeros((), device=self.device)
        for epoch in range(epochs):
            for pick, memory in minibatches(
                len(states), self._plan.config.minibatch, before, self.shuffler, self.device
            ):
                law = self.net.log_probabilities(states[pick], masks[pick], memory)
                chosen = law.gather(-1, actions[pick].unsqueeze(-1)).squeeze(-1)
                self._descend(-chosen.sum(dim=-1).mean())
                if epoch == epochs - 1:
                    hits += (law.argmax(dim=-1) == actions[pick]).all(dim=-1).float().sum()
        return float(hits) / max(len(states), 1)

    def _descend(self, loss: torch.Tensor) -> None:
        """Take one step of the optimizer."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.net.parameters(), self._plan.config.max_grad_norm)
        self.optimizer.step()

    def learn(self, batch: Batch, judging: bool) -> dict[str, float]:
        """Take the gradient steps of an update.

        Args:
            batch: its transitions.
            judging: whether the value network alone learns.

        Returns:
            Columns of the learning curve: means of losses, `learning_rate` and `epochs`.
        """
        config, net, optimizer = self._plan.config, self.net, self.optimizer
        size = len(batch.targets)
        rate = config.learning_rate
        if config.anneal:
            rate *= max(0.0, 1.0 - (self._run.steps - size) / self._plan.timesteps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        sums, count, epochs = np.zeros(5), 0, 0
        for _ in range(config.epochs):
            epochs += 1
            kl_sum, kl_count = 0.0, 0
            parts = minibatches(size, config.minibatch, batch.before, self.shuffler, self.device)
            for pick, before in parts:
                mask = batch.masks.index_select(0, pick) if batch.masks is not None else None
                state_rows = batch.states.index_select(0, pick)  # faster than [pick] on a CPU
                log_p, entropy = net.evaluate(state_rows, mask, batch.actions.index_select(0, pick), before)
                log_ratio = log_p - batch.log_probabilities[pick]
                ratio = log_ratio.exp()
                weight = batch.weights[pick]
                policy_loss = -torch.min(
                    weight * ratio, weight * ratio.clamp(1 - config.clip, 1 + config.clip)
                ).mean()
                values, _ = net.value(state_rows, before)
                value_loss = 0.5 * (values - batch.targets[pick]).square().mean()
                bonus = entropy.mean()
                loss = config.value_weight * value_loss
                if not judging:
                    loss = loss + policy_loss - config.entropy * bonus
                self._descend(loss)
                with torch.no_grad():
                    kl = (
                        ratio - 1 - log_ratio
                    ).mean()  # Schulman's low-variance estimate, joschu.net/blog/kl-approx.html
                    clipped = ((ratio - 1).abs() > config.clip).float().mean()
                    numbers = torch.stack([policy_loss, value_loss, bonus, kl, clipped]).cpu().numpy()
                sums += numbers
                count += 1
                kl_sum, kl_count = kl_sum + float(numbers[3]), kl_count + 1
            if config.target_kl is not None and kl_sum / kl_count > config.target_kl:
                break
        means = dict(zip(LOSS_COLUMNS[:5], (sums / count).tolist()))
        return {**means, "learning_rate": rate, "epochs": float(epochs)}


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


def remembered(memories: torch.Tensor | None, at: torch.Tensor) -> Before | None:
    """What networks with a memory remember before an episode's last observations.

    Args:
        memories: of the value network after each observation of a rollout, float32 [n, memory]; None: it has none.
        at: which observations they follow on, int64 [m].

    Returns:
        The memory, that of the policy left out, or None.
    """
    if memories is None:
        return None
    at = at.to(memories.device)
    return Before(memories[:0], memories[at], torch.zeros_like(at, dtype=torch.bool))


def learning_device(name: str) -> torch.device:
    """A device of torch by its name.

    Raises:
        InvalidArgument: torch knows no such device, or this machine has none.
    """
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # some devices, such as `meta`, compute nothing
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        why = str(error).partition("\n")[0]
        raise InvalidArgument(
            f"device={name!r}: torch cannot use it here ({why}); cpu always works"
        ) from error
    return device


def _numpy_state(generator: np.random.Generator) -> dict[str, Any]:
    state = dict(generator.bit_generator.state)
    inner = state["state"]  # 128-bit integers, which only a text stores everywhere
    return {**state, "state": {key: str(value) for key, value in inner.items()}}
