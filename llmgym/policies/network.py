"""The networks of the own trainer: two perceptrons or two scorers, one for the policy and one for the value, and running
moments.

Initialisation as in Huang et al., "The 37 implementation details of proximal policy optimization", ICLR blog
track 2022: orthogonal, gain sqrt(2) in hidden layers, 0.01 for the policy's output (which starts nearly
uniform) and 1 for the value's.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete, MultiDiscrete
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from llmgym.core.layout import Table
from llmgym.errors import CheckpointError, InvalidArgument

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
    """

    def __init__(self, size: int, tables: Sequence[Table] = ()) -> None:
        self.mean = np.zeros(size)
        self.var = np.ones(size)
        self.count = 0.0
        self._tables = tables

    def update(self, rows: NDArray[Any]) -> None:
        """Take in rows [n, size]."""
        self.take(len(rows), rows.mean(axis=0, dtype=np.float64), rows.var(axis=0, dtype=np.float64))

    def take(self, n: int, mean: NDArray[np.float64], var: NDArray[np.float64]) -> None:
        """Take in so many rows of which somebody else has taken mean and variance, float64 [size]; both are written to."""
        for table in self._tables:
            part = slice(table.start, table.start + table.rows * table.width)
            means, spread = (x[part].reshape(table.rows, table.width) for x in (mean, var))
            var[part] = np.tile(spread.mean(axis=0) + means.var(axis=0), table.rows)
            mean[part] = np.tile(means.mean(axis=0), table.rows)
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


def normalised(
    rows: NDArray[np.float32], moments: RunningMoments, enabled: bool, device: torch.device
) -> Tensor:
    """Observations as a network takes them.

    Args:
        rows: observations, float32 [n, size].
        moments: mean and variance to normalise with.
        enabled: False leaves the rows as they are.
        device: where the network lives.

    Returns:
        float32 [n, size] on `device`; normalised entries lie in -`CLIP`..`CLIP`.
    """
    if enabled:
        scale = np.float32(1.0) / np.sqrt(moments.var + VARIANCE_FLOOR).astype(np.float32)
        rows = np.clip((rows - moments.mean.astype(np.float32)) * scale, -CLIP, CLIP)
    return torch.from_numpy(rows).to(device)


def perceptron(
    sizes: Sequence[int], activation: str, gain: float, generator: torch.Generator
) -> nn.Sequential:
    """Linear layers with non-linearities between them, with orthogonal weights and biases of 0.

    Args:
        sizes: widths of input, hidden layers and output.
        activation: `tanh` or `relu`.
        gain: factor on the weights of the last layer; those of the others have the root of 2.
        generator: of torch; source of the weights.

    Returns:
        The layers, in float32.
    """
    layers: list[nn.Module] = []
    for index, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
        last = index == len(sizes) - 2
        linear = nn.utils.skip_init(nn.Linear, inputs, outputs)
        nn.init.orthogonal_(linear.weight, gain if last else math.sqrt(2.0), generator=generator)
        nn.init.zeros_(linear.bias)
        layers.append(linear)
        if not last:
            layers.append(nn.Tanh() if activation == "tanh" else nn.ReLU())
    return nn.Sequential(*layers)


class Scorer(nn.Module):
    """One small network that looks at every row of the tables alike, and at the rest of the observation once.

    A row is scored by what it says and by a summary of everything: the entries outside the tables, and mean and maximum over the
    rows of each table (as in Zaheer et al., "Deep sets", NIPS 2017). So what is learned of one candidate holds for all, and nothing
    depends on their number. Actions without a row get their logits from the summary; a constant is learned for every action.

    Args:
        inputs: entries of an observation.
        outputs: numbers to put out, one an action.
        tables: fields of the observation that are rows; those with actions give the actions' logits.
        hidden: two widths, of a row's features and of the summary.
        activation: `tanh` or `relu`.
        gain: of the last layers' initial weights.
        generator: draws the initial weights.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        tables: Sequence[Table],
        hidden: Sequence[int],
        activation: str,
        gain: float,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        width, middle = hidden
        self.tables, self.outputs = tuple(tables), outputs
        self.act = torch.tanh if activation == "tanh" else torch.relu
        inside = np.zeros(inputs, bool)
        for table in self.tables:
            inside[table.start : table.start + table.rows * table.width] = True
        self.register_buffer("outside", torch.from_numpy(np.flatnonzero(~inside)), False)

        def layer(a: int, b: int, scale: float = math.sqrt(2.0)) -> nn.Linear:
            linear = nn.utils.skip_init(nn.Linear, a, b)
            nn.init.orthogonal_(linear.weight, scale, generator=generator)
            nn.init.zeros_(linear.bias)
            return linear

        self.rest = layer(int((~inside).sum()), width)
        self.row = nn.ModuleList([layer(table.width, width) for table in self.tables])
        self.summary = layer(width * (1 + 2 * len(self.tables)), middle)
        self.own = nn.ModuleList([layer(width, middle) for table in self.tables if table.actions])
        self.link = nn.ModuleList([layer(middle, middle) for table in self.tables if table.actions])
        self.score = nn.ModuleList(
            [layer(middle, len(table.actions), gain) for table in self.tables if table.actions]
        )
        self.plain = layer(middle, outputs, gain)
        # where in [plain outputs, scores of the first table with actions, ...] the logit of each action is
        place = np.arange(outputs)
        start = outputs
        for table in self.tables:
            for k, first in enumerate(table.actions):
                place[first : first + table.rows] = start + np.arange(table.rows) * len(table.actions) + k
            start += table.rows * len(table.actions)
        self.register_buffer("place", torch.from_numpy(place), False)

    @classmethod
    def restored(
        cls, model: Mapping[str, Tensor], prefix: str, tables: Sequence[Table], activation: str
    ) -> "Scorer":
        """The network whose weights a checkpoint has.

        Args:
            model: tensors by name.
            prefix: what the names of its tensors begin with, such as `actor.`.
            tables: of the observation.
            activation: `tanh` or `relu`.

        Returns:
            The network, with these weights.

        Raises:
            CheckpointError: the tensors are those of other tables.
        """
        weights = {k.removeprefix(prefix): v for k, v in model.items() if k.startswith(prefix)}
        inputs = weights["rest.weight"].shape[1] + sum(table.rows * table.width for table in tables)
        hidden = weights["rest.weight"].shape[0], weights["summary.weight"].shape[0]
        try:
            net = cls(
                inputs, weights["plain.weight"].shape[0], tables, hidden, activation, 1.0, torch.Generator()
            )
            net.load_state_dict(weights)
        except (RuntimeError, IndexError, ValueError) as error:
            raise CheckpointError(f"the network was made for other tables of candidates: {error}") from error
        return net

    def forward(self, obs: Tensor) -> Tensor:
        """Outputs [n, outputs] of normalised observations [n, inputs]."""
        rest = self.rest(obs[:, self.outside])
        parts, features = [self.act(rest)], []
        for table, row in zip(self.tables, self.row):
            size = table.rows * table.width
            rows = obs[:, table.start : table.start + size].reshape(-1, table.rows, table.width)
            features.append(self.act(row(rows) + rest[:, None]))
            parts += [features[-1].mean(dim=1), features[-1].amax(dim=1)]
        summary = self.act(self.summary(torch.cat(parts, dim=1)))
        out = [functional.linear(summary, self.plain.weight)]
        scored = (f for table, f in zip(self.tables, features) if table.actions)
        for own, link, score, feature in zip(self.own, self.link, self.score, scored):
            out.append(score(self.act(own(feature) + link(summary)[:, None])).flatten(1))
        return torch.cat(out, dim=1)[:, self.place] + self.plain.bias


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
        tables: None makes two perceptrons; else two `Scorer`s over these tables, which may be none.

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
        tables: Sequence[Table] | None = None,
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
        if tables is None:
            self.actor = perceptron([inputs, *hidden, outputs], activation, 0.01, generator)
            self.critic = perceptron([inputs, *hidden, 1], activation, 1.0, generator)
        else:
            unscored = [table._replace(actions=()) for table in tables]
            self.actor = Scorer(inputs, outputs, tables, hidden, activation, 0.01, generator)
            self.critic = Scorer(inputs, 1, unscored, hidden, activation, 1.0, generator)

    def value(self, obs: Tensor) -> Tensor:
        """Expected scaled return [n] of normalised observations [n, inputs]."""
        values: Tensor = self.critic(obs)
        return values.squeeze(-1)

    def log_probabilities(self, obs: Tensor, mask: Tensor | None) -> Tensor:
        """Log probabilities [n, parts, widest] of discrete actions; masks are bool [n, actions], flat over the parts."""
        logits = self.actor(obs)
        if mask is not None:
            logits = torch.where(mask, logits, MASKED)
        if not self.even:
            padding = logits.new_full((len(logits), 1), MASKED)
            logits = torch.cat([logits, padding], dim=1)[:, self.place]
        return torch.log_softmax(logits.reshape(len(obs), self.parts, self.widest), dim=-1)

    def sample(self, obs: Tensor, mask: Tensor | None, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw actions from the policy.

        Args:
            obs: normalised observations, float32 [n, inputs].
            mask: what is allowed, bool [n, actions], flat over the parts; None: everything. A Box does not look at it.
            generator: of torch; source of the draws.

        Returns:
            Actions [n, parts], int64, or float32 in bound units for a Box, and their log probabilities, float32 [n].
        """
        if self.continuous:
            mean = self.actor(obs)
            noise = torch.randn(mean.shape, generator=generator, device=generator.device).to(mean.device)
            return mean + noise * self.log_std.exp(), self._gaussian(noise)
        log_p = self.log_probabilities(obs, mask)
        # Gumbel's trick; the clamp keeps the noise finite, so that a masked action can never win
        noise = torch.rand(log_p.shape, generator=generator, device=generator.device)
        noise = noise.to(log_p.device).clamp_(min=1e-12)
        action = (log_p - noise.log_().neg_().log_()).argmax(dim=-1)
        return action, log_p.gather(-1, action.unsqueeze(-1)).squeeze(-1).sum(-1)

    def evaluate(self, obs: Tensor, mask: Tensor | None, action: Tensor) -> tuple[Tensor, Tensor]:
        """Log probability of actions taken earlier, and the entropy of the policy, as its weights are now.

        Args:
            obs: normalised observations, float32 [n, inputs], in which they were taken.
            mask: what was allowed, bool [n, actions], flat over the parts; None: everything. A Box does not look at it.
            action: actions as `sample` gives them, [n, parts].

        Returns:
            Log probabilities and entropies (nats), float32 [n] each.
        """
        if self.continuous:
            log_p = self._gaussian((action - self.actor(obs)) / self.log_std.exp())
            return log_p, (self.log_std + 0.5 * math.log(2 * math.pi * math.e)).sum().expand(len(obs))
        log_p = self.log_probabilities(obs, mask)
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
