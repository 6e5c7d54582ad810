"""What learns: a policy and a value network, which share nothing, and running moments of what they see."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete, MultiDiscrete
from numpy.typing import NDArray
from torch import Tensor, nn

from llmgym.core.layout import Table
from llmgym.errors import InvalidArgument
from llmgym.policies.layers import mlp
from llmgym.policies.recurrent import Before, Recurrent
from llmgym.policies.rows import Scorer

MASKED = -1e8
"""Logit of a masked action: its probability is exactly zero in float32, its gradient finite."""

VARIANCE_FLOOR = 1e-4
"""Added to variances of observations: an entry that hardly moves is not blown up beyond a hundred times."""

CLIP = 10.0
"""Normalised observations are cut off here."""


class RunningMoments:
    """Mean and variance of rows seen so far, merged batch by batch (Chan, Golub, LeVeque 1979); float64 [size].

    Args:
        size: entries of a row.
        tables: parts of a row whose own rows share their moments column by column, since one network looks at all of them.
        keep_blank: whether `normalised` leaves rows of tables that are all zero as they are, so that a network knows them.
    """

    def __init__(self, size: int, tables: Sequence[Table] = (), keep_blank: bool = False) -> None:
        self.mean = np.zeros(size)
        self.var = np.ones(size)
        self.count = 0.0
        self._tables = tables
        self.blank = [torch.from_numpy(table.entries()) for table in tables] if keep_blank else []

    def update(self, rows: NDArray[Any]) -> None:
        """Take in rows [n, size]."""
        self.take(len(rows), rows.mean(axis=0, dtype=np.float64), rows.var(axis=0, dtype=np.float64))

    def take(self, n: int, mean: NDArray[np.float64], var: NDArray[np.float64]) -> None:
        """Take in so many rows of which somebody else has taken mean and variance, float64 [size]; both are written to."""
        for table in self._tables:
            where = table.entries()
            means, spread = mean[where], var[where]
            var[where] = spread.mean(axis=0) + means.var(axis=0)
            mean[where] = means.mean(axis=0)
        total = self.count + n
        delta = mean - self.mean
        self.var = (self.var * self.count + var * n + delta**2 * self.count * n / total) / total
        self.mean = self.mean + delta * n / total
        self.count = total

    def state(self) -> dict[str, Any]:
        """Mean, variance and count of rows as a checkpoint stores them."""
        return {"mean": torch.from_numpy(self.mean), "var": torch.from_numpy(self.var), "count": self.count}

    def restore(self, state: dict[str, Any]) -> None:
        """Take over mean, variance and count of rows from a checkpoint."""
        self.mean, self.var = state["mean"].numpy().copy(), state["var"].numpy().copy()
        self.count = float(state["count"])


def normalised(rows: Tensor, moments: RunningMoments, enabled: bool) -> Tensor:
    """Observations as a network takes them.

    Args:
        rows: observations, float32 [n, size].
        moments: mean and variance to normalise with.
        enabled: False leaves the rows as they are.

    Returns:
        float32 [n, size] on the same device; normalised entries lie in -`CLIP`..`CLIP`.
    """
    if not enabled:
        return rows
    mean = torch.from_numpy(moments.mean.astype(np.float32)).to(rows.device)
    scale = np.float32(1.0) / np.sqrt(moments.var + VARIANCE_FLOOR).astype(np.float32)
    out = rows.sub(mean).mul_(torch.from_numpy(scale).to(rows.device)).clamp_(-CLIP, CLIP)
    for entries in moments.blank:
        where = entries.to(rows.device)
        there = (rows[:, where] != 0).any(dim=-1, keepdim=True)
        out[:, where] *= there
    return out


class ActorCritic(nn.Module):
    """Policy and value of normalised observations, for `Discrete`, `MultiDiscrete` (both masked) and `Box`
    actions.

    A `Box` is acted on in units where its bounds are -1 and 1: the policy is Gaussian there, with one learned
    deviation an entry, and what the environment is sent is cut off at the bounds.

    Args:
        inputs: entries of an observation.
        space: the actions.
        hidden: widths of the hidden layers.
        activation: `tanh` or `relu`.
        generator: draws the initial weights.
        network: one of `llmgym.policies.config.NETWORKS`.
        tables: of a scorer, or attention: parts of the observation that are rows; there may be none.

    Attributes:
        memory: width of the memory of each of the two networks; 0: they have none.

    Raises:
        InvalidArgument: the actions are of another kind, or a `Box` without finite bounds.
    """

    def __init__(
        self,
        inputs: int,
        space: Any,
        hidden: Sequence[int],
        activation: str,
        generator: torch.Generator,
        network: str = "mlp",
        tables: Sequence[Table] = (),
    ) -> None:
        super().__init__()
        self.continuous = isinstance(space, Box)
        self.shape: tuple[int, ...] = tuple(space.shape)
        if isinstance(space, Box):
            if not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
                raise InvalidArgument(f"action space {space}: a Box needs finite bounds to be learned on")
            outputs = int(np.prod(space.shape))
            self.log_std = nn.Parameter(torch.full((outputs,), -0.5))
            self.low, self.high = space.low, space.high
            self.register_buffer("least", torch.from_numpy(space.low.ravel()).double(), False)
            self.register_buffer("most", torch.from_numpy(space.high.ravel()).double(), False)
            self.register_buffer(
                "middle", torch.from_numpy((space.high + space.low).ravel() / 2).float(), False
            )
            self.register_buffer(
                "half_width", torch.from_numpy((space.high - space.low).ravel() / 2).float(), False
            )
        elif isinstance(space, (Discrete, MultiDiscrete)):
            sizes = np.atleast_1d(space.n if isinstance(space, Discrete) else space.nvec.ravel())
            outputs, widest = int(sizes.sum()), int(sizes.max())
            self.even = bool((sizes == widest).all())
            self.parts, self.widest = len(sizes), widest
            # parts of different size are padded to the widest with a column that is always masked
            starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
            place = np.where(np.arange(widest) < sizes[:, None], starts[:, None] + np.arange(widest), outputs)
            self.register_buffer("place", torch.from_numpy(place), False)
        else:
            raise InvalidArgument(f"action space {space}: allowed are Discrete, MultiDiscrete and Box")
        self.actor: nn.Module
        self.critic: nn.Module
        self.memory = 0
        if network == "mlp":
            self.actor = mlp([inputs, *hidden, outputs], activation, 0.01, generator)
            self.critic = mlp([inputs, *hidden, 1], activation, 1.0, generator)
        elif network == "recurrent":
            self.memory = hidden[-1]
            self.actor = Recurrent(inputs, outputs, tuple(hidden), activation, 0.01, generator)
            self.critic = Recurrent(inputs, 1, tuple(hidden), activation, 1.0, generator)
        else:
            attention = network == "attention"
            unscored = [table._replace(actions=()) for table in tables]
            self.actor = Scorer(inputs, outputs, tables, hidden, activation, 0.01, generator, attention)
            self.critic = Scorer(inputs, 1, unscored, hidden, activation, 1.0, generator, attention)

    def value(self, obs: Tensor, before: Before | None = None) -> tuple[Tensor, Tensor | None]:
        """Expected scaled returns.

        Args:
            obs: normalised observations, float32 [n, inputs].
            before: what networks with a memory remember before the n observations.

        Returns:
            The returns, float32 [n], and the memory of the value network after each observation, float32 [n, memory], or None.
        """
        if before is None:
            return self.critic(obs).squeeze(-1), None
        values, memories = self.critic(obs, before.critic, before.begins)
        return values.squeeze(-1), memories

    def _act(self, obs: Tensor, before: Before | None) -> tuple[Tensor, Tensor | None]:
        """Logits or means [n, outputs], and the memory of the policy after each observation [n, memory], or None."""
        if before is None:
            return self.actor(obs), None
        out, memories = self.actor(obs, before.actor, before.begins)
        return out, memories

    def log_probabilities(self, obs: Tensor, mask: Tensor | None, before: Before | None = None) -> Tensor:
        """Log probabilities of discrete actions.

        Args:
            obs: normalised observations, float32 [n, inputs].
            mask: what is allowed, bool [n, actions], flat over the parts; None: everything.
            before: what networks with a memory remember before the n observations.

        Returns:
            float32 [n, parts, widest].
        """
        return self._law(self._act(obs, before)[0], mask)

    def _law(self, logits: Tensor, mask: Tensor | None) -> Tensor:
        """Log probabilities [n, parts, widest] of logits [n, actions]."""
        if mask is not None:
            logits = torch.where(mask, logits, MASKED)
        if not self.even:
            padding = logits.new_full((len(logits), 1), MASKED)
            logits = torch.cat([logits, padding], dim=1)[:, self.place]
        return torch.log_softmax(logits.reshape(len(logits), self.parts, self.widest), dim=-1)

    def sample(
        self, obs: Tensor, mask: Tensor | None, generator: torch.Generator, before: Before | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Draw actions from the policy.

        Args:
            obs: normalised observations, float32 [n, inputs].
            mask: what is allowed, bool [n, actions], flat over the parts; None: everything. A Box does not look at it.
            generator: of torch; source of the draws.
            before: what networks with a memory remember before the n observations.

        Returns:
            Actions [n, parts], int64, or float32 in bound units for a Box; their log probabilities, float32 [n]; and the memory of
            the policy afterwards, float32 [n, memory], or None.
        """
        out, memories = self._act(obs, before)
        if self.continuous:
            noise = torch.randn(out.shape, generator=generator, device=generator.device).to(out.device)
            return out + noise * self.log_std.exp(), self._gaussian(noise), memories
        log_p = self._law(out, mask)
        # Gumbel's trick; the clamp keeps the noise finite, so that a masked action can never win
        noise = torch.rand(log_p.shape, generator=generator, device=generator.device)
        noise = noise.to(log_p.device).clamp_(min=1e-12)
        action = (log_p - noise.log_().neg_().log_()).argmax(dim=-1)
        return action, log_p.gather(-1, action.unsqueeze(-1)).squeeze(-1).sum(-1), memories

    def evaluate(
        self, obs: Tensor, mask: Tensor | None, action: Tensor, before: Before | None = None
    ) -> tuple[Tensor, Tensor]:
        """Log probability of actions taken earlier, and the entropy of the policy, as its weights are now.

        Args:
            obs: normalised observations, float32 [n, inputs], in which they were taken.
            mask: what was allowed, bool [n, actions], flat over the parts; None: everything. A Box does not look at it.
            action: actions as `sample` gives them, [n, parts].
            before: what networks with a memory remembered before the n observations.

        Returns:
            Log probabilities and entropies (nats), float32 [n] each.
        """
        out, _ = self._act(obs, before)
        if self.continuous:
            log_p = self._gaussian((action - out) / self.log_std.exp())
            return log_p, (self.log_std + 0.5 * math.log(2 * math.pi * math.e)).sum().expand(len(obs))
        log_p = self._law(out, mask)
        chosen = log_p.gather(-1, action.unsqueeze(-1)).squeeze(-1).sum(-1)
        return chosen, -(log_p.exp() * log_p).sum(dim=(-2, -1))

    def _gaussian(self, deviations: Tensor) -> Tensor:
        return (-0.5 * deviations**2 - self.log_std - 0.5 * math.log(2 * math.pi)).sum(-1)

    def to_environment(self, action: Tensor) -> NDArray[Any]:
        """Sampled actions as the environment takes them, [n, *shape of the space]."""
        if self.continuous:
            units = (action * self.half_width + self.middle).cpu().numpy().reshape(len(action), *self.shape)
            bounded: NDArray[Any] = np.clip(units, self.low, self.high)
            return bounded
        discrete: NDArray[Any] = action.cpu().numpy().reshape(len(action), *self.shape)
        return discrete

    def bounded(self, action: Tensor) -> Tensor:
        """Sampled actions as an environment on the same device takes them, [n, *shape of the space]."""
        if self.continuous:
            units = (action * self.half_width + self.middle).double()
            action = torch.minimum(torch.maximum(units, self.least), self.most)
        return action.reshape(len(action), *self.shape)
