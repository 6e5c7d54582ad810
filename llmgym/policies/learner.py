"""What a training learns with: networks, optimizer, moments, and the gradient steps of an update."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from llmgym.errors import CheckpointError, InvalidArgument
from llmgym.policies import checkpoint
from llmgym.policies.config import Plan
from llmgym.policies.network import CLIP, VARIANCE_FLOOR, ActorCritic, RunningMoments
from llmgym.policies.recurrent import Before
from llmgym.policies.run import Run
from llmgym.policies.shipped import checkpoint_of

LOSS_COLUMNS = (
    "policy_loss", "value_loss", "entropy", "approx_kl", "clip_fraction",
    "explained_variance", "learning_rate", "epochs",
)  # fmt: skip


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
        stored, where = checkpoint.load(checkpoint_of(name)), f"init={name!r}"
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
