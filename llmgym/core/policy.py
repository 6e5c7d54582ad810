"""The face every policy has, whether a paper's rule or a trained network."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray


@runtime_checkable
class Policy(Protocol):
    """Decides for one lane or for many.

    Attributes:
        name: how tables call it.
        privileged: True if it sees what a real scheduler could not (true output lengths, future arrivals, a cloned simulator).
        env_kwargs: arguments the environment has to be made with for this policy to act on it (such as its action mode).
    """

    name: str
    privileged: bool
    env_kwargs: Mapping[str, Any]

    def act(self, obs: NDArray[np.float32], mask: NDArray[np.int8] | None) -> NDArray[Any]:
        """Actions [lanes, ...] for observations [lanes, d] and masks [lanes, actions] (None where there are none)."""
        ...

    def reset(self, lanes: NDArray[np.bool_]) -> None:
        """Forget what was learned within an episode, in the lanes [lanes] whose episode just began."""
        ...
