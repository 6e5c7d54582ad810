"""What the papers say: one module per environment family, its closed forms and its policies.

A module has a table `BASELINES` of what can be made: name -> factory. A factory is called with an environment (single or
vector) and returns a `llmgym.core.policy.Policy`; its attribute `env_kwargs`, if it has one, says how the environment must be made.
"""

from collections.abc import Callable, Mapping
from typing import Any

from llmgym.core.policy import Policy
from llmgym.core.spec import spec, spec_of
from llmgym.errors import InvalidArgument, UnknownName


def _table(env_id: str) -> Mapping[str, Callable[[Any], Policy]]:
    table: Mapping[str, Callable[[Any], Policy]] = getattr(spec(env_id).baseline_module(), "BASELINES", {})
    return table


def _factory(env_id: str, name: str) -> Callable[[Any], Policy]:
    table = _table(env_id)
    base = name.partition(":")[0]
    if base not in table:
        raise UnknownName(f"baseline of {env_id}", name, table)
    factory = table[base]
    variant = getattr(factory, "variant", None)
    if base == name:
        return factory
    if variant is None:
        raise InvalidArgument(f"{name!r}: no numbers can follow {base}")
    return variant(name)


def names(env_id: str) -> list[str]:
    """Names of the baselines of an environment, in the order of its paper.

    Raises:
        UnknownName: there is no such environment.
    """
    return list(_table(env_id))


def env_kwargs(env_id: str, name: str) -> dict[str, Any]:
    """Arguments the environment must be made with for this baseline to act on it."""
    return dict(getattr(_factory(env_id, name), "env_kwargs", {}))


def other_world(env_id: str, name: str) -> str | None:
    """What differs in the world that a baseline plays in, if its arguments change it; None where they only say how to act."""
    found: str | None = getattr(_factory(env_id, name), "other_world", None)
    return found


def steers(env_id: str, argument: str, value: Any) -> bool:
    """Whether an argument of the environment is one that rules choose to act by, and not one that makes another world.

    It is if a rule that plays the ordinary world chooses it, and no rule of another world chooses this value.
    """
    chosen = [(name, env_kwargs(env_id, name)) for name in names(env_id)]
    chosen = [(name, kwargs) for name, kwargs in chosen if argument in kwargs]
    ordinary = [name for name, _ in chosen if other_world(env_id, name) is None]
    apart = [kwargs[argument] for name, kwargs in chosen if other_world(env_id, name) is not None]
    return bool(ordinary) and all(value != other for other in apart)


def grid(env_id: str, name: str) -> tuple[str, ...]:
    """Variants over which a baseline is tuned before it is compared; empty for one that has nothing to tune, or a variant."""
    grids: Mapping[str, tuple[str, ...]] = getattr(spec(env_id).baseline_module(), "GRIDS", {})
    return grids.get(name, ())


def boards(env_id: str) -> dict[str | None, tuple[str, ...]]:
    """Scenarios on which the leaderboard ranks policies, each with the baselines that are too slow for many of its worlds.

    They are what the module of the baselines has under the name `BOARDS`; else the scenario `small`, and where there is none the
    default of the environment, None.
    """
    known = spec(env_id)
    named: Mapping[str, tuple[str, ...]] = getattr(known.baseline_module(), "BOARDS", {})
    if named:
        return {scenario: tuple(left) for scenario, left in named.items()}
    default: dict[str | None, tuple[str, ...]] = {"small" if "small" in known.scenario_names() else None: ()}
    return default


def make(name: str, env: Any) -> Policy:
    """A baseline for an environment.

    Args:
        name: one of `names(env_id)`; numbers can follow, as in `"vllm:watermark=0.05"`.
        env: a single or vector environment of this package.

    Raises:
        UnknownName: no baseline of that name.
        InvalidArgument: numbers that the baseline does not take, or an environment made with other arguments than it needs.
    """
    return _factory(spec_of(env).id, name)(env)
