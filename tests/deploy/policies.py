"""Policies for `GymScheduler` that the tests name as `module:name`; imported in an engine's process, which has numpy alone."""

from typing import Any

import numpy as np


class Last:
    """Takes the last of what is allowed."""

    def __init__(self, bundle: Any, capacity: int) -> None:
        self.taken = 0

    def act(self, obs: Any, mask: Any) -> int:
        self.taken += 1
        return int(np.flatnonzero(mask)[-1])


class BreaksAtOnce(Last):
    """Cannot decide."""

    def act(self, obs: Any, mask: Any) -> int:
        raise RuntimeError("broken on purpose")


class BreaksLater(Last):
    """Decides forty times."""

    def act(self, obs: Any, mask: Any) -> int:
        if self.taken == 40:
            raise RuntimeError("broken on purpose")
        return super().act(obs, mask)


class OutOfRange(Last):
    """Says an action that there is not."""

    def act(self, obs: Any, mask: Any) -> int:
        return len(mask)


def refuses(bundle: Any, capacity: int) -> Any:
    """Makes nothing that acts."""
    return object()
