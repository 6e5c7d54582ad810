"""A network with a memory, which is empty when an episode begins."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from llmgym.policies.layers import linear, mlp, non_linearity


class Before(NamedTuple):
    """What the networks remember before a sequence of observations.

    Attributes:
        actor: memory of the policy, float32 [lanes, width].
        critic: memory of the value network, float32 [lanes, width].
        begins: whether an episode begins with an observation, bool [steps * lanes], one step of all lanes after the other.
    """

    actor: Tensor
    critic: Tensor
    begins: Tensor

    def of(self, lanes: Tensor, steps: int) -> tuple[Tensor, "Before"]:
        """Where the rows of some lanes are among all, int64 [steps * n], and what is remembered before these.

        Args:
            lanes: numbers of lanes, int64 [n].
            steps: observations of a sequence.

        Returns:
            The rows, one step of the lanes after the other, and the memory.
        """
        rows = torch.arange(steps, device=lanes.device)[:, None] * len(self.actor) + lanes
        pick = rows.reshape(-1)
        return pick, Before(self.actor[lanes], self.critic[lanes], self.begins[pick])


class Recurrent(nn.Module):
    """Layers, a gated recurrent unit (Cho et al., EMNLP 2014), and a layer that puts out.

    Args:
        inputs: entries of an observation.
        outputs: numbers to put out.
        hidden: widths of the layers before the unit, the last of them that of the memory too.
        activation: `tanh` or `relu`.
        gain: of the last layer's initial weights.
        generator: draws the initial weights.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        hidden: tuple[int, ...],
        activation: str,
        gain: float,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.width = hidden[-1]
        self.layers = mlp([inputs, *hidden], activation, 2.0**0.5, generator)
        self.act = non_linearity(activation)
        self.into = linear(self.width, 3 * self.width, generator, 1.0)
        self.back = linear(self.width, 3 * self.width, generator, 1.0)
        self.out = linear(self.width, outputs, generator, gain)

    def forward(self, obs: Tensor, memory: Tensor, begins: Tensor) -> tuple[Tensor, Tensor]:
        """Go through sequences of the same length.

        Args:
            obs: normalised observations, float32 [steps * lanes, inputs], one step of all lanes after the other.
            memory: before them, float32 [lanes, width].
            begins: whether an episode begins with an observation, which empties the memory before it, bool [steps * lanes].

        Returns:
            For each observation what is put out, float32 [steps * lanes, outputs], and the memory after it, float32
            [steps * lanes, width].
        """
        lanes = len(memory)
        gates = self.into(self.act(self.layers(obs))).split(lanes)
        keep = (~begins).to(memory.dtype).unsqueeze(-1).split(lanes)
        after = []
        for ahead, kept in zip(gates, keep):
            memory = memory * kept
            reset, update, new = ahead.chunk(3, dim=1)
            reset_back, update_back, new_back = self.back(memory).chunk(3, dim=1)
            update = torch.sigmoid(update + update_back)
            new = torch.tanh(new + torch.sigmoid(reset + reset_back) * new_back)
            memory = new + update * (memory - new)
            after.append(memory)
        memories = torch.cat(after)
        return self.out(memories), memories
