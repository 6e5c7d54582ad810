"""What all rules for Unmask have in common: a set of positions for each call, which is then chosen one position at a time."""

from abc import abstractmethod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmgym.baselines.rule import Rule
from llmgym.envs.unmask.env import Unmask
from llmgym.envs.unmask.state import (
    CHOSEN,
    CONFIDENCE,
    ENTROPY,
    FEATURES,
    MARGIN,
    MASKED,
    PRICE_DECADES,
)
from llmgym.errors import InvalidArgument


class Seen(NamedTuple):
    """What a scheduler sees of one lane when a call begins.

    Attributes:
        lane: number of the lane.
        masked: 1 where a token is not known, int8 [positions].
        confidence: probability of the likeliest token, float64 [positions].
        entropy_bits: of the marginal, float64 [positions].
        margin: confidence less the probability of the second token, float64 [positions].
        call: calls of this block so far.
        price: lambda, calls per nat.
    """

    lane: int
    masked: NDArray[np.int8]
    confidence: NDArray[np.float64]
    entropy_bits: NDArray[np.float64]
    margin: NDArray[np.float64]
    call: int
    price: float

    @property
    def left(self) -> int:
        """Masked positions."""
        return int(self.masked.sum())


class SetPolicy(Rule[Unmask]):
    """A rule that decides on the set of a call when it begins.

    Args:
        env: a single or vector environment, with `action="add"` or `action="set"`.
        name: of the policy.

    Raises:
        InvalidArgument: the environment simulates something else, or takes macros only.
    """

    remembered = ("_sets",)

    def __init__(self, env: Any, name: str) -> None:
        super().__init__(env, name, Unmask)
        scenario = self._simulation.scenario
        if scenario.action == "macro":
            raise InvalidArgument(f"baseline {name!r} needs action='add' or action='set', not 'macro'")
        self.block = scenario.block
        self._bits = float(np.log2(self._simulation.vocabulary))
        self._sets: NDArray[np.int8] = np.zeros((0, self.block), np.int8)

    @abstractmethod
    def plan(self, seen: Seen, out: NDArray[np.int8]) -> None:
        """Mark the positions that the call reveals, at least one and none that is known; `out` is int8 [positions]."""

    def reset(self, lanes: NDArray[np.bool_]) -> None:
        """Forget the sets of these lanes."""
        if len(self._sets) == len(lanes):
            self._sets[lanes] = 0

    def act(self, obs: NDArray[np.float32], mask: NDArray[np.int8] | None) -> NDArray[Any]:
        """The next position of the set of each lane, or to fire, int64 [lanes]; with `action="set"` int64 [lanes, positions]."""
        rows = self._rows(obs, "position").reshape(len(obs), self.block, len(FEATURES))
        if len(self._sets) != len(obs):
            self._sets = np.zeros((len(obs), self.block), np.int8)
        masked, chosen = rows[:, :, MASKED] > 0.5, rows[:, :, CHOSEN] > 0.5
        calls = np.rint(self._read(obs, "calls_here") * self.block).astype(np.int64)
        prices = 10.0 ** (PRICE_DECADES * self._read(obs, "lambda"))
        stale = ~chosen.any(axis=1) | (chosen & (self._sets == 0)).any(axis=1)
        for lane in np.flatnonzero(stale).tolist():
            if not masked[lane].any():  # the text is complete
                self._sets[lane] = 0
                continue
            row = np.ascontiguousarray(rows[lane].T)
            seen = Seen(
                lane,
                masked[lane].astype(np.int8),
                row[CONFIDENCE],
                row[ENTROPY] * self._bits,
                row[MARGIN],
                int(calls[lane]),
                float(prices[lane]),
            )
            self.plan(seen, self._sets[lane])
        if self._simulation.scenario.action == "set":
            return self._sets.astype(np.int64)
        missing = (self._sets == 1) & masked & ~chosen
        return np.where(missing.any(axis=1), missing.argmax(axis=1), self.block)
