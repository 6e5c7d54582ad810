"""From what a user names (a baseline, a learned policy, a checkpoint, an object) to what can be run."""

import functools
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from llmgym.core import env as core_env
from llmgym.core.env import LaneVectorEnv
from llmgym.core.policy import Policy
from llmgym.errors import InvalidArgument, LlmgymError, UnknownName
from llmgym.evaluation import installed

BASELINE, LEARNED, GIVEN = "baseline", "learned", "given"
"""Kinds: a rule of `llmgym.baselines`, a network of `llmgym.policies`, an object of the user's."""

check_id = core_env.check_id

_OF_THE_RETURN = frozenset({"reward", "drop_cost"})
"""Arguments that change what a return counts, where they are no settings."""
_TOLD_OTHERWISE = frozenset({"information"})
"""A policy that is told the truth plays the same world: it is marked as privileged."""

_OURS = frozenset({"num_envs", "autoreset_mode", "copy"})
"""Arguments of the vector environment that the evaluation sets itself."""


@dataclass(frozen=True)
class Contender:
    """A policy that is not bound to an environment yet.

    Attributes:
        label: name of the policy in tables.
        kind: `BASELINE`, `LEARNED` or `GIVEN`.
        source: name or path that the user gave; None for an object.
        env_kwargs: arguments that its environment has to be made with.
        build: makes the policy for an environment.
    """

    label: str
    kind: str
    source: str | None
    env_kwargs: Mapping[str, Any]
    build: Callable[[LaneVectorEnv], Policy]


def resolve(env_id: str, policy: str | Policy, label: str | None = None) -> Contender:
    """Find a policy: the name of a baseline, of a learned or of an installed policy, a checkpoint, `module:name`, or an object.

    Args:
        env_id: id of the environment.
        policy: the policy.
        label: name of the policy in tables; None: the name given, or that of the object.

    Returns:
        The policy, not bound to an environment yet.

    Raises:
        UnknownName: a string that is none of these.
        InvalidArgument: an object that is not a policy, or a module that does not have it.
        CheckpointError: the path of a checkpoint that cannot be read.
    """
    if isinstance(policy, str):
        return _named(env_id, policy, label or policy)
    needed = ("name", "privileged", "env_kwargs", "act", "reset")
    missing = [attribute for attribute in needed if not hasattr(policy, attribute)]
    if missing or isinstance(policy, type):
        why = (
            "is a class, not an object of it" if isinstance(policy, type) else f"has no {', '.join(missing)}"
        )
        raise InvalidArgument(
            f"policy {policy!r} {why}; a policy is a name, a path or an object with {', '.join(needed)}"
        )
    home = type(policy).__module__
    kind = GIVEN
    for ours, package in ((BASELINE, "llmgym.baselines"), (LEARNED, "llmgym.policies")):
        if home == package or home.startswith(f"{package}."):
            kind = ours
    return Contender(
        label or policy.name, kind, None, dict(policy.env_kwargs), functools.partial(_given, policy)
    )


# What `Contender.build` is made of: functions of a module, which another process finds under their names.


def _given(policy: Policy, env: LaneVectorEnv) -> Policy:
    return policy


def _rule(name: str, env: LaneVectorEnv) -> Policy:
    from llmgym import baselines

    return baselines.make(name, env)


def _learned(name: str, env: LaneVectorEnv) -> Policy:
    from llmgym import policies

    return policies.load(name, env)


def rules_of(env_id: str) -> list[str]:
    """Names of the baselines of an environment, which may be one of the user's own; none where it has no `llmgym.spec`."""
    from llmgym import baselines

    try:
        return list(baselines.names(env_id))
    except UnknownName:
        return []


def _names(env_id: str) -> tuple[list[str], list[str]]:
    """Baselines and shipped learned policies of an environment."""
    from llmgym import policies

    return rules_of(env_id), list(policies.names(env_id))


def _named(env_id: str, name: str, label: str) -> Contender:
    from llmgym import baselines, policies

    rules, learned = _names(env_id)
    theirs = installed.policies(env_id)
    # Numbers can follow a baseline's name, as in "vllm:watermark=0.05".
    if name in rules or name.partition(":")[0] in rules:
        kwargs = baselines.env_kwargs(env_id, name)
        return Contender(label, BASELINE, name, dict(kwargs), functools.partial(_rule, name))
    shipped = name in learned or _stands_for_seeds(env_id, name)
    if shipped or Path(name).exists() or Path(name).suffix in (".pt", ".zip"):
        kwargs = policies.env_kwargs(name)
        found = name if shipped else str(Path(name).resolve())  # others may work in another folder
        return Contender(label, LEARNED, name, dict(kwargs), functools.partial(_learned, found))
    if name in theirs:
        given = theirs[name]() if isinstance(theirs[name], type) else theirs[name]
        resolved = resolve(env_id, str(given) if isinstance(given, Path) else given, label)
        return replace(resolved, kind=GIVEN, source=name)
    module, _, attribute = name.partition(":")
    if attribute.isidentifier():
        given = _of_module(module, attribute)
        return resolve(env_id, given, label if label != name else None)
    raise UnknownName(f"policy (or checkpoint path) for {env_id}", name, [*rules, *learned, *theirs])


def _stands_for_seeds(env_id: str, name: str) -> bool:
    """Whether a name is an environment and a scenario of which policies are shipped."""
    from llmgym.policies.shipped import seeds_of

    return name.partition("/")[0] == env_id.rpartition("/")[2] and bool(seeds_of(name))


def _of_module(module: str, attribute: str) -> Policy:
    """A policy object that a module has under a name, or one of the class that it has. Raises `InvalidArgument`."""
    try:
        given = getattr(importlib.import_module(module), attribute)
        policy: Policy = given() if isinstance(given, type) else given
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise InvalidArgument(f"policy '{module}:{attribute}' cannot be made: {error}") from error
    return policy


def known(env_id: str) -> list[str]:
    """Names of every baseline, every shipped learned policy and every installed policy of an environment."""
    rules, learned = _names(env_id)
    return [*rules, *learned, *installed.policies(env_id)]


def merged_kwargs(contender: Contender, env_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of the user and those the policy needs, which may not contradict each other.

    Raises:
        InvalidArgument: the policy needs another value than the user gave, or an argument belongs to the
            evaluation.
    """
    reserved = sorted(_OURS & set(env_kwargs))
    if reserved:
        raise InvalidArgument(
            f"{', '.join(reserved)}: set by the evaluation itself, not an argument of the environment here"
        )
    for name, value in contender.env_kwargs.items():
        if name in env_kwargs and not same_value(env_kwargs[name], value):
            raise InvalidArgument(
                f"policy {contender.label!r} needs an environment with {name}={value!r}, "
                f"but {name}={env_kwargs[name]!r} was given; "
                f"leave {name} out, or compare only policies that act with it"
            )
    return {**env_kwargs, **contender.env_kwargs}


def other_world(
    env_id: str, contender: Contender, policy: Policy, env_kwargs: Mapping[str, Any], simulation: Any
) -> str | None:
    """What differs in the world that a policy played in from the one that the user wanted; None if nothing does.

    A baseline says so itself. Every other policy plays another world if it needs an argument that the user did not give, that
    changes a setting of the simulation or the reward, and that is none of those by which rules act.

    Args:
        env_id: id of the environment.
        contender: the policy before it was bound to the environment.
        policy: the policy bound to the environment.
        env_kwargs: arguments that the user gave.
        simulation: the simulation, made with these arguments and those of the policy.

    Returns:
        What a baseline says of itself, or the arguments with their values; None if nothing differs.
    """
    told: str | None = getattr(policy, "other_world", None)
    settings: dict[str, Any] = getattr(simulation, "settings", dict)()
    needed = {
        name: value
        for name, value in contender.env_kwargs.items()
        if name not in env_kwargs
        and name not in _TOLD_OTHERWISE
        and (name in settings or name in _OF_THE_RETURN)
        and not _steers(env_id, name, value)
    }
    if told is not None:
        # its arguments may be those that the user gave everybody
        return told if needed or not contender.env_kwargs else None
    if contender.kind == BASELINE or not needed:
        return None
    plain = type(simulation)(**env_kwargs)
    before: dict[str, Any] = getattr(plain, "settings", dict)()
    changed = [
        f"{name}={value!r}"
        for name, value in needed.items()
        if not same_value(
            before.get(name, getattr(plain, name, None)), settings.get(name, getattr(simulation, name, None))
        )
    ]
    return ", ".join(changed) or None


def _steers(env_id: str, name: str, value: Any) -> bool:
    from llmgym import baselines

    try:
        return baselines.steers(env_id, name, value)
    except UnknownName:
        return False


def same_value(a: Any, b: Any) -> bool:
    """Equality that also works for arrays and for objects that hold them."""
    if a is b:
        return True
    try:
        return (
            bool(np.array_equal(a, b))
            if isinstance(a, np.ndarray) or isinstance(b, np.ndarray)
            else bool(a == b)
        )
    except (TypeError, ValueError):
        return False


def make_env(env_id: str, lanes: int, env_kwargs: Mapping[str, Any]) -> LaneVectorEnv:
    """Make the vector environment of an id.

    Args:
        env_id: a registered id.
        lanes: number of lanes.
        env_kwargs: arguments of the environment, by name.

    Returns:
        The environment, without wrappers.

    Raises:
        UnknownName: no such id.
        InvalidArgument: the id has no lanes, or its environment does not know an argument.
    """
    env_id = check_id(env_id)
    if "num_envs" in env_kwargs:
        raise InvalidArgument("num_envs: set by the number of lanes, not an argument of the environment here")
    if (device := env_kwargs.get("device", "cpu")) != "cpu":
        raise InvalidArgument(f"device={device!r}: evaluation runs on the cpu")
    try:
        env = gymnasium.make_vec(env_id, num_envs=lanes, **env_kwargs)
    except TypeError as error:
        if isinstance(error, LlmgymError) or "unexpected keyword argument" not in str(error):
            raise
        raise InvalidArgument(f"{env_id} does not take one of {sorted(env_kwargs)}: {error}") from error
    if not isinstance(env.unwrapped, LaneVectorEnv):
        env.close()
        raise InvalidArgument(
            f"env_id={env_id!r}: its vector form is a {type(env.unwrapped).__name__}, not a LaneVectorEnv"
        )
    return env.unwrapped
