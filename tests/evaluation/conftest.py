from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
import numpy as np
import pytest

TOY, WORLDS = "toyeval/Queue-v0", "toyeval/Worlds-v0"


@pytest.fixture(autouse=True, scope="session")
def _registered() -> None:
    for env_id, module, name in (
        (TOY, "tests.toy", "Toy"),
        (WORLDS, "tests.evaluation.worlds", "Worlds"),
    ):
        gymnasium.register(
            env_id,
            entry_point=f"{module}:{name}Env",
            vector_entry_point=f"{module}:{name}VectorEnv",
            disable_env_checker=True,
        )


class Fake:
    """A policy out of a function, which remembers what it was called with."""

    def __init__(
        self,
        name: str,
        decide: Callable[[Any, Any], Any],
        *,
        privileged: bool = False,
        env_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        self.name, self.privileged, self.env_kwargs = name, privileged, dict(env_kwargs or {})
        self.decide = decide
        self.seen: list[tuple[Any, Any]] = []
        self.resets: list[Any] = []

    def act(self, obs: Any, mask: Any) -> Any:
        self.seen.append((obs, mask))
        return self.decide(obs, mask)

    def reset(self, lanes: Any) -> None:
        self.resets.append(lanes)


def always(action: int, name: str | None = None, **kwargs: Any) -> Fake:
    return Fake(name or f"always {action}", lambda obs, mask: np.full(len(obs), action), **kwargs)
