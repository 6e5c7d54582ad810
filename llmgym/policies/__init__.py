"""Learned policies: training them, loading them, and those that come with the package.

    llmgym.policies.names("llmgym/KVQueue-v0")                 shipped policies
    llmgym.policies.load("runs/my-run/checkpoint.pt", env)     a policy with the face of every other
    llmgym.policies.train(Plan(env_id=..., out=...))           train one, as `llmgym train` does

Nothing here imports torch or stable-baselines3 before it is needed.
"""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmgym.errors import MissingExtra, UnknownName
from llmgym.policies.callbacks import Callback, CsvLogger, Logger, TensorboardLogger
from llmgym.policies.config import (
    ALGORITHMS,
    FIRST_TRAINING_SEED,
    FIRST_VALIDATION_SEED,
    RLLIB,
    Plan,
    PPOConfig,
    training_seed,
)
from llmgym.policies.shipped import TRAINED, checkpoint_of, names, path_of

if TYPE_CHECKING:
    from llmgym.policies.learned import LearnedPolicy
    from llmgym.policies.run import TrainingResult
    from llmgym.policies.sb3 import SB3VecEnv

_HOMES = {
    "LearnedPolicy": "learned",
    "SB3VecEnv": "sb3",
    "TrainingResult": "run",
}
__all__ = [
    "ALGORITHMS",
    "FIRST_TRAINING_SEED",
    "FIRST_VALIDATION_SEED",
    "RLLIB",
    "TRAINED",
    "Callback",
    "CsvLogger",
    "LearnedPolicy",
    "Logger",
    "PPOConfig",
    "Plan",
    "SB3VecEnv",
    "TensorboardLogger",
    "TrainingResult",
    "env_kwargs",
    "load",
    "meta",
    "names",
    "train",
    "training_seed",
]


def _needs(module: str, what: str) -> None:
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingExtra(what, "train") from error


def load(name_or_path: str | Path, env: Any, *, sample_seed: int | None = None) -> "LearnedPolicy":
    """A learned policy, ready to act in `env`.

    Args:
        name_or_path: a name out of `names()`, an environment and a scenario such as `"AFDRefill-v0/small"` (of the seeds that are
            shipped the best in validation), a checkpoint (`.pt`), the folder of a run (its best checkpoint where there was a
            validation, else its newest), or an archive of stable-baselines3 (`.zip`).
        env: the environment it will act in: single or vector, wrapped or not.
        sample_seed: None takes the most likely action, a number draws actions from the policy with this seed.

    Returns:
        The policy.

    Raises:
        CheckpointError: it cannot be read, or does not fit `env`; the message says what differs and what to do.
        MissingExtra: torch is not installed.
        UnknownName: there is no such policy.
    """
    path, name = path_of(name_or_path)
    _needs("torch", "loading a learned policy")
    from llmgym.policies.learned import load_learned

    return load_learned(path, env, name=name, sample_seed=sample_seed)


def meta(name_or_path: str | Path) -> dict[str, Any]:
    """What a checkpoint says about its training: `algo, env_id, env_kwargs, config, steps, wall_s, ...`.

    Raises:
        CheckpointError: it cannot be read.
        InvalidArgument: it is an archive of stable-baselines3, which says nothing of the kind.
        UnknownName: there is no such policy.
    """
    _needs("torch", "loading a learned policy")
    from llmgym.policies.checkpoint import load as read

    return dict(read(checkpoint_of(name_or_path))["meta"])


def env_kwargs(name_or_path: str | Path) -> dict[str, Any]:
    """The arguments an environment has to be made with for a policy to act in it (such as its action mode); not the scenario it
    was trained on, which is in `meta`. Empty for an archive of stable-baselines3, which does not say.
    """
    path, _ = path_of(name_or_path)
    return {} if path.suffix == ".zip" else dict(meta(name_or_path)["interface"])


def train(plan: Plan) -> "TrainingResult":
    """Train a policy as the plan says and leave its checkpoint in `plan.out`.

    Raises:
        CheckpointError: there is nothing to resume, or what is there does not fit.
        InvalidArgument: the plan cannot be carried out.
        MissingExtra: torch, or stable-baselines3 or RLlib where the plan asks for it, is not installed.
    """
    if plan.algo not in (*ALGORITHMS, RLLIB):
        raise UnknownName("algorithm", plan.algo, (*ALGORITHMS, RLLIB))
    _needs("torch", "training a policy")
    if plan.algo == "ppo":
        from llmgym.policies.ppo import train_ppo

        return train_ppo(plan)
    if plan.algo == RLLIB:
        from llmgym.policies.cluster import import_rllib

        import_rllib()
        from llmgym.policies.rllib import train_rllib

        return train_rllib(plan)
    for module in ("stable_baselines3", "sb3_contrib"):
        _needs(module, f"the algorithm {plan.algo}")
    from llmgym.policies.sb3 import train_sb3

    return train_sb3(plan)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'llmgym.policies' has no attribute {name!r}")
    _needs("torch", name)
    if name == "SB3VecEnv":
        _needs("sb3_contrib", name)
    return getattr(importlib.import_module(f"llmgym.policies.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
