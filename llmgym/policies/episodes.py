"""Returns, lengths and metrics of the episodes that end while a policy is trained."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

EPISODE_COLUMNS = ("episodes", "return_mean", "return_std", "episode_steps")
"""Columns of the learning curve that every environment has."""


class Episodes:
    """Sums returns, lengths and metrics of the lanes' running episodes, and averages those that ended.

    Args:
        lanes: number of lanes.
        metrics: names of the episode metrics.
    """

    def __init__(self, lanes: int, metrics: Sequence[str]) -> None:
        self.returns = np.zeros(lanes)
        self.lengths = np.zeros(lanes, np.int64)
        self.names = tuple(metrics)
        self.clear()

    def clear(self) -> None:
        """Forget the episodes that ended."""
        self._returns: list[NDArray[np.float64]] = []
        self._lengths: list[NDArray[np.int64]] = []
        self._metrics: list[NDArray[np.float64]] = []

    def step(
        self, rewards: NDArray[np.float64], ended: NDArray[np.bool_], metrics: NDArray[np.float64]
    ) -> None:
        """Take in one step of all lanes.

        Args:
            rewards: of the step, float64 [lanes].
            ended: which episodes ended with it, bool [lanes].
            metrics: of the episodes, float64 [lanes, metrics]; only rows of those that ended are read.
        """
        self.returns += rewards
        self.lengths += 1
        if ended.any():
            self._returns.append(self.returns[ended])
            self._lengths.append(self.lengths[ended])
            self._metrics.append(metrics[ended])
            self.returns[ended] = 0.0
            self.lengths[ended] = 0

    def drop(self, lanes: NDArray[np.bool_]) -> None:
        """Forget the running episodes of these lanes: they were stopped from outside."""
        self.returns[lanes] = 0.0
        self.lengths[lanes] = 0

    def averages(self) -> dict[str, float]:
        """Columns of the learning curve for the episodes that ended since `clear`; only `episodes` if there are none."""
        if not self._returns:
            return {"episodes": 0.0}
        returns = np.concatenate(self._returns)
        row = {
            "episodes": float(len(returns)),
            "return_mean": float(returns.mean()),
            "return_std": float(returns.std()),
            "episode_steps": float(np.concatenate(self._lengths).mean()),
        }
        metrics = np.concatenate(self._metrics)
        known = np.isfinite(metrics)  # a metric has no value where there was nothing to take it of
        with np.errstate(invalid="ignore"):
            means = np.where(known, metrics, 0.0).sum(axis=0) / known.sum(axis=0)
        return row | dict(zip(self.names, means.tolist()))
