"""llmgym: Gymnasium environments for the scheduling problems of efficient LLM inference.

Importing the package registers its environments. Everything else is loaded when first used:

    import gymnasium, llmgym
    env = gymnasium.make("llmgym/KVQueue-v0", scenario="tiny")
    policy = llmgym.baselines.make("mc-sf", env)
    print(llmgym.compare("llmgym/KVQueue-v0", scenario="tiny").table())
"""

import importlib
from typing import TYPE_CHECKING, Any

from llmgym.version import __version__ as __version__

try:
    from llmgym.core.spec import EnvSpec, env_ids, register, spec
    from llmgym.envs import register_all
except ModuleNotFoundError as error:
    if error.name != "gymnasium":
        raise
    # an engine's process runs `llmgym.deploy` with numpy alone; everything else says what it lacks when it is asked for
else:
    register_all()

if TYPE_CHECKING:
    from llmgym import (
        baselines,
        core,
        envs,
        errors,
        evaluation,
        policies,
        profiles,
        serving,
        testing,
        workloads,
    )
    from llmgym.evaluation import compare

__all__ = [
    "EnvSpec",
    "baselines",
    "compare",
    "core",
    "env_ids",
    "envs",
    "errors",
    "evaluation",
    "policies",
    "profiles",
    "register",
    "serving",
    "spec",
    "testing",
    "workloads",
]


def __getattr__(name: str) -> Any:
    if name == "compare":
        return importlib.import_module("llmgym.evaluation").compare
    if name in ("EnvSpec", "env_ids", "register", "spec"):  # they are there where gymnasium is
        return getattr(importlib.import_module("llmgym.core.spec"), name)
    if name in __all__:
        return importlib.import_module(f"llmgym.{name}")
    raise AttributeError(f"module 'llmgym' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
