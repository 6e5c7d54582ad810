"""Networks that look at every row of an observation's tables alike: a scorer, and one whose rows attend to each other."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from llmgym.core.layout import Table
from llmgym.errors import CheckpointError
from llmgym.policies.layers import linear, non_linearity

HEADS = 4
"""Heads of attention; the width of a row's features is a multiple of it. Ours."""


class Attention(nn.Module):
    """One block of self-attention over tokens (Vaswani et al., "Attention is all you need", NIPS 2017).

    Each half is normalised before it (Xiong et al., "On layer normalization in the transformer architecture", ICML 2020).

    Args:
        width: numbers of a token, a multiple of `HEADS`.
        generator: draws the initial weights.
    """

    def __init__(self, width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.before = nn.LayerNorm(width)
        self.ask = linear(width, 3 * width, generator, 1.0)
        self.answer = linear(width, width, generator, 1.0)
        self.between = nn.LayerNorm(width)
        self.wide = linear(width, 2 * width, generator)
        self.narrow = linear(2 * width, width, generator, 1.0)

    def forward(self, tokens: Tensor, shown: Tensor) -> Tensor:
        """Tokens [n, tokens, width] after the block; nobody attends to one where `shown`, bool [n, tokens], is False."""
        n, count, width = tokens.shape
        asked = self.ask(self.before(tokens)).reshape(n, count, 3, HEADS, width // HEADS)
        query, key, value = asked.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=shown[:, None, None])
        tokens = tokens + self.answer(mixed.transpose(1, 2).reshape(n, count, width))
        out: Tensor = tokens + self.narrow(torch.relu(self.wide(self.between(tokens))))
        return out


class Scorer(nn.Module):
    """One small network that looks at every row of the tables alike, and at the rest of the observation once.

    A row is scored by what it says and by a summary of everything: the entries outside the tables, and mean and maximum over the
    rows of each table (as in Zaheer et al., "Deep sets", NIPS 2017). So what is learned of one candidate holds for all, and nothing
    depends on their number. Actions without a row get their logits from the summary; a constant is learned for every action.

    With attention, the rows of all tables and a token for the rest of the observation attend to each other first, and the summary
    is that token and the mean over the rows. A row of zeros is empty: nobody attends to it, and no mean counts it.

    Args:
        inputs: entries of an observation.
        outputs: numbers to put out, one an action.
        tables: parts of the observation that are rows; those with actions give the actions' logits.
        hidden: two widths, of a row's features and of the summary.
        activation: `tanh` or `relu`.
        gain: of the last layers' initial weights.
        generator: draws the initial weights.
        attention: whether rows attend to each other.
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
        attention: bool = False,
    ) -> None:
        super().__init__()
        width, middle = hidden
        self.tables, self.outputs = tuple(tables), outputs
        self.act = non_linearity(activation)
        inside = np.zeros(inputs, bool)
        for index, table in enumerate(self.tables):
            inside[table.entries()] = True
            self.register_buffer(f"entries{index}", torch.from_numpy(table.entries().ravel()), False)
        self.register_buffer("outside", torch.from_numpy(np.flatnonzero(~inside)), False)
        scored = [table for table in self.tables if table.actions]
        self.rest = linear(int((~inside).sum()), width, generator)
        self.row = nn.ModuleList([linear(table.width, width, generator) for table in self.tables])
        summaries = 1 if attention else 2
        self.summary = linear(width * (1 + summaries * len(self.tables)), middle, generator)
        self.own = nn.ModuleList([linear(width, middle, generator) for _ in scored])
        self.link = nn.ModuleList([linear(middle, middle, generator) for _ in scored])
        self.score = nn.ModuleList([linear(middle, len(table.actions), generator, gain) for table in scored])
        self.plain = linear(middle, outputs, generator, gain)
        self.attention = Attention(width, generator) if attention else None
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
        outputs, attention = weights["plain.weight"].shape[0], "attention.ask.weight" in weights
        try:
            net = cls(inputs, outputs, tables, hidden, activation, 1.0, torch.Generator(), attention)
            net.load_state_dict(weights)
        except (RuntimeError, IndexError, ValueError) as error:
            raise CheckpointError(f"the network was made for other tables of candidates: {error}") from error
        return net

    def _rows(self, obs: Tensor, index: int) -> Tensor:
        """The rows of a table, [n, rows, width]."""
        table = self.tables[index]
        if len(table.parts) == 1:
            start = table.parts[0][0]
            flat = obs[:, start : start + table.rows * table.width]
        else:
            flat = obs[:, self.get_buffer(f"entries{index}")]
        return flat.reshape(-1, table.rows, table.width)

    def forward(self, obs: Tensor) -> Tensor:
        """Outputs [n, outputs] of normalised observations [n, inputs]."""
        rest = self.rest(obs[:, self.outside])
        tables = [self._rows(obs, index) for index in range(len(self.tables))]
        features = [self.act(row(rows) + rest[:, None]) for row, rows in zip(self.row, tables)]
        parts = [self.act(rest)]
        if self.attention is None:
            for feature in features:
                parts += [feature.mean(dim=1), feature.amax(dim=1)]
        else:
            features, parts = self._attend(tables, features, parts[0])
        summary = self.act(self.summary(torch.cat(parts, dim=1)))
        out = [functional.linear(summary, self.plain.weight)]
        scored = (f for table, f in zip(self.tables, features) if table.actions)
        for own, link, score, feature in zip(self.own, self.link, self.score, scored):
            out.append(score(self.act(own(feature) + link(summary)[:, None])).flatten(1))
        return torch.cat(out, dim=1)[:, self.place] + self.plain.bias

    def _attend(
        self, tables: Sequence[Tensor], features: Sequence[Tensor], rest: Tensor
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Let rows and the rest of the observation attend to each other.

        Args:
            tables: normalised rows of each table, float32 [n, rows, width].
            features: of these rows, float32 [n, rows, features].
            rest: features of the rest, float32 [n, features].

        Returns:
            The features of the rows of each table afterwards, and the parts of the summary, float32 [n, features] each.
        """
        assert self.attention is not None
        shown = [(rows != 0).any(dim=-1) for rows in tables]
        always = torch.ones_like(rest[:, :1], dtype=torch.bool)
        tokens = torch.cat([rest[:, None], *features], dim=1)
        tokens = self.attention(tokens, torch.cat([always, *shown], dim=1))
        first, *after = tokens.split([1, *(table.rows for table in self.tables)], dim=1)
        parts = [first.squeeze(1)]
        for feature, there in zip(after, shown):
            weight = there[..., None].to(feature.dtype)
            parts.append((feature * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1.0))
        return after, parts
