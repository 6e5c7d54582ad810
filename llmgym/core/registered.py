"""How an environment that this process knows becomes known to another."""

import importlib
from dataclasses import dataclass
from typing import Any

import gymnasium

from llmgym.core.env import check_id
from llmgym.core.spec import EnvSpec, find, register


@dataclass(frozen=True)
class Registered:
    """What this process knows of an environment, for another that may not know it.

    Attributes:
        env_id: id of the environment, without a module.
        module: module that registers it, as the user named it; empty: none was named.
        spec: what this package knows of it; None: nothing.
        theirs: what gymnasium knows of it.
    """

    env_id: str
    module: str
    spec: EnvSpec | None
    theirs: Any

    @classmethod
    def of(cls, env_id: str) -> "Registered":
        """What is known of `env_id`, which may have the module in front that registers it. Raises `UnknownName`."""
        name = check_id(env_id)
        return cls(name, str(env_id).rpartition(":")[0], find(name), gymnasium.spec(name))

    def register(self) -> str:
        """Have this process know it too; returns the id, without a module."""
        if self.module:
            importlib.import_module(self.module)
        if self.spec is not None:
            register(self.spec)
        if self.env_id not in gymnasium.registry:
            gymnasium.registry[self.env_id] = self.theirs
        return self.env_id
