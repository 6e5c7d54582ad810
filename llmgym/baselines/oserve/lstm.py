"""The forecast of OServe: an LSTM for each type of requests, on the arrivals of the last 50 minutes.

Jiang et al., arXiv 2602.12151, section 4: one LSTM a type, 50 minutes in, one out, trained on nine tenths of two weeks. Size,
loss and optimiser are not printed; here it is one layer of 64, Adam, and the squared error of counts over the mean of their
window. torch is needed to train and imported only then; the trained network runs in numpy.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmgym.baselines.oserve.forecast import WINDOW, scaled, windows
from llmgym.core.checks import number, whole

Floats = NDArray[np.float64]
Single = NDArray[np.float32]

HIDDEN = 64
_NAMES = ("w_in", "w_state", "bias", "w_out", "offset")


@dataclass(frozen=True)
class Lstm:
    """A trained network.

    Attributes:
        w_in: float32 [4 hidden, 1], weights of the count; gates are in the order input, forget, cell, output.
        w_state: float32 [4 hidden, hidden], weights of the hidden state.
        bias: float32 [4 hidden], offsets of the gates.
        w_out: float32 [1, hidden], weights of the change that is forecast.
        offset: float32 [1], offset of that change.
    """

    w_in: Single
    w_state: Single
    bias: Single
    w_out: Single
    offset: Single

    def __call__(self, counts: Floats) -> Floats:
        """[n, window] -> [n], at least 0: the last count and a learnt change."""
        x, scale = scaled(counts)
        inputs = (x - 1.0).astype(np.float32)
        hidden = self.w_state.shape[1]
        h, c = np.zeros((len(x), hidden), np.float32), np.zeros((len(x), hidden), np.float32)
        for t in range(inputs.shape[1]):
            gates = inputs[:, t : t + 1] @ self.w_in.T + h @ self.w_state.T + self.bias
            i, f, g, o = np.split(gates, 4, axis=1)
            c = _sigmoid(f) * c + _sigmoid(i) * np.tanh(g)
            h = _sigmoid(o) * np.tanh(c)
        change = (h @ self.w_out.T + self.offset)[:, 0].astype(np.float64)
        return np.maximum((x[:, -1] + change) * scale, 0.0)


def _sigmoid(x: Single) -> Single:
    return np.asarray(1.0 / (1.0 + np.exp(-x)))


def fit(
    series: Sequence[Floats],
    *,
    seed: int = 0,
    updates: int = 250,
    batch: int = 128,
    learning_rate: float = 3e-3,
    hidden: int = HIDDEN,
    window: int = WINDOW,
) -> Lstm:
    """Train a network on one series of counts or more, each [t] with t > window.

    Args:
        series: counts of one type.
        seed: seeds weights and batches.
        updates: number of updates of the weights, with a learning rate that falls to nothing.
        batch: windows of an update.
        learning_rate: first learning rate of Adam.
        hidden: width of the layer.
        window: counts that the network reads.

    Returns:
        The trained network.

    Raises:
        ImportError: torch is not installed (`pip install 'llmgym[train]'`).
        InvalidArgument: a number out of range, or a series that is too short.
    """
    import torch

    for name, value in (("updates", updates), ("batch", batch), ("hidden", hidden)):
        whole(name, value)
    number("learning_rate", learning_rate)
    pairs = [windows(counts, window) for counts in series]
    x, scale = scaled(np.concatenate([a for a, _ in pairs]))
    y = np.concatenate([b for _, b in pairs]) / scale - x[:, -1]
    inputs = torch.from_numpy((x - 1.0).astype(np.float32))[:, :, None]
    goals = torch.from_numpy(y.astype(np.float32))
    random = torch.Generator().manual_seed(seed)
    kept = torch.random.get_rng_state()
    try:
        torch.manual_seed(seed)
        network = torch.nn.LSTM(1, hidden, batch_first=True)
        out = torch.nn.Linear(hidden, 1)
    finally:
        torch.random.set_rng_state(kept)
    torch.nn.init.zeros_(out.weight)
    torch.nn.init.zeros_(out.bias)
    parts = [*network.parameters(), *out.parameters()]
    adam = torch.optim.Adam(parts, learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, updates)
    for _ in range(updates):
        which = torch.randint(len(goals), (min(batch, len(goals)),), generator=random)
        _, (state, _) = network(inputs[which])
        loss = torch.nn.functional.mse_loss(out(state[0])[:, 0], goals[which])
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parts, 1.0)
        adam.step()
        schedule.step()
    bias = network.bias_ih_l0 + network.bias_hh_l0
    weights = (network.weight_ih_l0, network.weight_hh_l0, bias, out.weight, out.bias)
    return Lstm(*(part.detach().numpy().astype(np.float32).copy() for part in weights))


def packed(networks: Sequence[Lstm]) -> dict[str, NDArray[Any]]:
    """The weights of some networks by name."""
    return {f"{k}.{name}": getattr(network, name) for k, network in enumerate(networks) for name in _NAMES}


def unpacked(arrays: Mapping[str, NDArray[Any]]) -> list[Lstm]:
    """Networks from the weights that `packed` gave. Raises `KeyError` where one is missing."""
    count = len(arrays) // len(_NAMES)
    return [Lstm(*(arrays[f"{k}.{name}"] for name in _NAMES)) for k in range(count)]
