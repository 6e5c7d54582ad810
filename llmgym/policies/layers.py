"""Layers with initial weights from a generator of their own.

Initialisation as in Huang et al., "The 37 implementation details of proximal policy optimization", ICLR blog
track 2022: orthogonal, gain sqrt(2) in hidden layers, 0.01 for the policy's output (which starts nearly
uniform) and 1 for the value's.
"""

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

HIDDEN_GAIN = math.sqrt(2.0)
"""Factor on the orthogonal weights of a hidden layer."""


def linear(inputs: int, outputs: int, generator: torch.Generator, gain: float = HIDDEN_GAIN) -> nn.Linear:
    """A linear layer with orthogonal weights and biases of 0.

    Args:
        inputs: numbers that it takes.
        outputs: numbers that it gives.
        generator: of torch; source of the weights.
        gain: factor on the weights.

    Returns:
        The layer, in float32.
    """
    layer = nn.utils.skip_init(nn.Linear, inputs, outputs)
    nn.init.orthogonal_(layer.weight, gain, generator=generator)
    nn.init.zeros_(layer.bias)
    return layer


def mlp(sizes: Sequence[int], activation: str, gain: float, generator: torch.Generator) -> nn.Sequential:
    """Linear layers with non-linearities between them.

    Args:
        sizes: widths of input, hidden layers and output.
        activation: `tanh` or `relu`.
        gain: factor on the weights of the last layer.
        generator: of torch; source of the weights.

    Returns:
        The layers, in float32.
    """
    layers: list[nn.Module] = []
    for index, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
        last = index == len(sizes) - 2
        layers.append(linear(inputs, outputs, generator, gain if last else HIDDEN_GAIN))
        if not last:
            layers.append(nn.Tanh() if activation == "tanh" else nn.ReLU())
    return nn.Sequential(*layers)


def non_linearity(activation: str) -> Callable[[Tensor], Tensor]:
    """The function of this name, `tanh` or `relu`."""
    return torch.tanh if activation == "tanh" else torch.relu
