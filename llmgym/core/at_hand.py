"""Lanes on a device whose observations, masks and actions are at hand on the CPU, for policies that decide there."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmgym.core.device import DeviceLanes
from llmgym.core.lanes import Lanes
from llmgym.errors import InvalidArgument


class AtHand(NamedTuple):
    """Buffers of all lanes in the memory of the machine; names and shapes are those of `Buffers`."""

    action: NDArray[np.float64]
    obs: NDArray[np.float32]
    mask: NDArray[np.int8]
    reward: NDArray[np.float64]
    ended: NDArray[np.bool_]


class LanesAtHand(Lanes):
    """Copies of lanes of the CPU that live on a device, read and written as lanes of the CPU are.

    A step takes the actions there and brings back rewards, which lanes have ended, and the observations and masks of those that
    have not; the rows of others stay as they were. All lanes have ended until `take`.

    Args:
        there: the lanes on the device; nobody else steps them.
    """

    def __init__(self, there: DeviceLanes) -> None:
        self.simulation, self.count, self._there = there.simulation, there.count, there
        self._torch = there._torch
        self._host = {name: self._pinned(getattr(there.buffers, name)) for name in AtHand._fields}
        self.buffers: Any = AtHand(**{name: tensor.numpy() for name, tensor in self._host.items()})
        first = Lanes(self.simulation, 1)
        first.reset(None, [0])
        # a policy decides on lanes that nobody uses too
        self.buffers.obs[:], self.buffers.mask[:] = first.buffers.obs, first.buffers.mask
        self.buffers.ended[:] = True
        self._discrete, self._rows = False, np.arange(self.count)

    def _pinned(self, tensor: Any) -> Any:
        on_card = tensor.device.type == "cuda" and tensor.numel() > 0
        return self._torch.zeros(tuple(tensor.shape), dtype=tensor.dtype, pin_memory=on_card)

    @property
    def state(self) -> Any:  # type: ignore[override]
        """Raises `InvalidArgument`: the states are on the device."""
        raise InvalidArgument(
            f"the states of these lanes are on {self._there.card.device}: a policy that reads `lanes.state` needs device='cpu'"
        )

    def take(self, source: Lanes, which: NDArray[np.int64]) -> None:
        """Let the first lanes stand where some lanes stand now, with their observations; the others have ended.

        Args:
            source: lanes of the same simulation.
            which: numbers of these, int64 [n], n at most `count`.
        """
        n = len(which)
        self._there.take(source, which)
        for name in ("obs", "mask", "ended"):
            getattr(self.buffers, name)[:n] = getattr(source.buffers, name)[which]
        self.buffers.ended[n:] = True
        self._there.buffers.ended.copy_(self._host["ended"])

    def step(self, mode: int) -> int:
        """Advance every lane by the actions in `buffers.action`; returns how many episodes ended in this step.

        Raises:
            InvalidAction: an action outside the space.
            KernelError: a function does not compile for the device.
        """
        there, host = self._there.buffers, self._host
        before = int(np.count_nonzero(self.buffers.ended))
        there.action.copy_(host["action"], non_blocking=True)
        self._there.step(mode)
        for name in ("ended", "reward"):
            host[name].copy_(getattr(there, name))
        self._there.check()
        running = np.flatnonzero(~self.buffers.ended)
        if len(running) == self.count:
            for name in ("obs", "mask"):
                host[name].copy_(getattr(there, name))
        elif len(running):
            rows = self._torch.from_numpy(running).to(there.obs.device)
            for name in ("obs", "mask"):
                getattr(self.buffers, name)[running] = getattr(there, name)[rows].cpu().numpy()
        return self.count - len(running) - before

    def close(self) -> None:
        """Free the memory of the device."""
        self._there.close()
