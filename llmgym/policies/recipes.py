"""How each environment is trained: the settings of `recipes.toml`, by environment and scenario."""

import functools
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from llmgym.errors import InvalidArgument
from llmgym.policies.config import PPOConfig

TABLE = Path(__file__).with_name("recipes.toml")
"""The table of all settings."""

OTHERS = "mlp"
"""Base of an environment that the table does not have."""

OF_PLAN = ("timesteps", "lanes", "patience")
"""Settings that are fields of `llmgym.policies.Plan`."""


@dataclass(frozen=True)
class Recipe:
    """Settings of a training.

    Attributes:
        name: environment and scenario that they are for, or the base.
        env_kwargs: arguments of the environment, `scenario` and `action` among them.
        timesteps: environment steps over all lanes.
        lanes: copies of the environment.
        patience: validations without a better one after which it ends; 0: it goes on to the last step.
        config: hyperparameters.
    """

    name: str
    env_kwargs: Mapping[str, Any]
    timesteps: int
    lanes: int
    patience: int
    config: PPOConfig


@functools.cache
def table() -> dict[str, Any]:
    """The table as it is written."""
    with TABLE.open("rb") as file:
        return tomllib.load(file)


def names() -> list[str]:
    """Environments of the table, without `llmgym/`."""
    return [name for name in table() if name != "bases"]


def recipe(
    env_id: str,
    scenario: str | None = None,
    action: str | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
) -> Recipe:
    """The settings of an environment.

    Those of an entry are for its action: if another one is asked for, the base's settings are taken.

    Args:
        env_id: id of the environment, with or without `llmgym/`; one that the table does not have gets the base `mlp`.
        scenario: its scenario; None: the one of the table, if no argument of the environment is given.
        action: what is decided; None: what the table says.
        env_kwargs: further arguments of the environment, which come before those of the table.

    Returns:
        The settings.

    Raises:
        InvalidArgument: the table has a setting that there is not.
    """
    given = {name: value for name, value in (("scenario", scenario), ("action", action)) if value is not None}
    given |= env_kwargs or {}
    namespace, _, name = env_id.rpartition(":")[2].rpartition("/")
    entry = table().get(name, {}) if namespace in ("", "llmgym") else {}
    if not entry:
        return _made(f"any environment (base {OTHERS})", table()["bases"][OTHERS], given)
    if not given:
        given["scenario"] = entry["scenario"]
    world = given.get("scenario")
    special = entry.get("scenarios", {}).get(world, {})
    settings = {**entry, **special}
    base = table()["bases"][settings.pop("base")]
    for word in ("scenario", "scenarios"):
        settings.pop(word, None)
    own = {"action": settings.pop("action")} if "action" in settings else {}
    own |= settings.pop("env", {})
    label = f"{name}, {world}" if special else name
    if own and given.get("action", own.get("action")) != own.get("action"):
        return _made(
            f"{name} with another action (base {entry['base']} without a rule to imitate)", base, given
        )
    return _made(label, {**base, **settings}, {**own, **given})


def _made(name: str, settings: Mapping[str, Any], env_kwargs: Mapping[str, Any]) -> Recipe:
    config: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()
    }
    plan: dict[str, int] = {key: config.pop(key, 0) for key in OF_PLAN}
    if unknown := sorted(config.keys() - {field.name for field in fields(PPOConfig)}):
        raise InvalidArgument(f"{TABLE.name}: {name} has {', '.join(unknown)}, which are no settings")
    return Recipe(name, dict(env_kwargs), config=PPOConfig(**config), **plan)
