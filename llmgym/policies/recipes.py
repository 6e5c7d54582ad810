"""How each environment is trained: the settings of `recipes.toml`, by environment and scenario."""

import functools
import json
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

GPU = "on_gpu"
"""Settings where the lanes are on a GPU: of all environments, of one, or of a scenario."""

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
    return [name for name in table() if name not in ("bases", GPU)]


def recipe(
    env_id: str,
    scenario: str | None = None,
    action: str | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    file: Path | None = None,
    env_device: str = "cpu",
) -> Recipe:
    """The settings of an environment.

    Those of an entry are for its action: if another one is asked for, the base's settings are taken.

    Args:
        env_id: id of the environment, with or without `llmgym/`; one that the table does not have gets the base `mlp`.
        scenario: its scenario; None: the one of the table, if no argument of the environment is given.
        action: what is decided; None: what the table says.
        env_kwargs: further arguments of the environment, which come before those of the table.
        file: entries of one's own, which come before those of the table; ids outside `llmgym/` are written in full.
        env_device: where the lanes live; on a GPU they are more, and so are the steps.

    Returns:
        The settings.

    Raises:
        InvalidArgument: the table has a setting that there is not, or the file cannot be read or lacks the environment.
    """
    own_entry, own_gpu = (None, {}) if file is None else _of_file(file, env_id.rpartition(":")[2])
    given = {name: value for name, value in (("scenario", scenario), ("action", action)) if value is not None}
    given |= env_kwargs or {}
    namespace, _, name = env_id.rpartition(":")[2].rpartition("/")
    entry = table().get(name, {}) if namespace in ("", "llmgym") else {}
    entry = entry if own_entry is None else own_entry
    where = {} if env_device == "cpu" else {"device": env_device, "env_device": env_device}
    everywhere = {**table().get(GPU, {}), **own_gpu} if where else {}
    if not entry:
        base = table()["bases"][OTHERS]
        return _made(f"any environment (base {OTHERS})", {**base, **everywhere, **where}, given)
    if not given and "scenario" in entry:
        given["scenario"] = entry["scenario"]
    world = given.get("scenario")
    special = entry.get("scenarios", {}).get(world, {})
    settings = {**entry, **special}
    base = table()["bases"][settings.pop("base", OTHERS)]
    for word in ("scenario", "scenarios", GPU):
        settings.pop(word, None)
    there = {**entry.get(GPU, {}), **special.get(GPU, {})} if where else {}
    own = {"action": settings.pop("action")} if "action" in settings else {}
    own |= settings.pop("env", {})
    label = f"{name}, {world}" if special else name
    if own and given.get("action", own.get("action")) != own.get("action"):
        return _made(
            f"{name} with another action (base {entry.get('base', OTHERS)} without a rule to imitate)",
            {**base, **everywhere, **where},
            given,
        )
    if own_entry is None:
        settings |= everywhere
    else:  # whose settings come before those of all
        base = {**base, **everywhere}
    return _made(label, {**base, **settings, **there, **where}, {**own, **given}, file or TABLE)


def _of_file(file: Path, env_id: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The entry that a file of the user's has for an environment, and what it says of GPUs for all."""
    try:
        entries = tomllib.loads(file.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidArgument(f"recipe={str(file)!r} cannot be read: {error}") from error
    for name in (env_id, env_id.removeprefix("llmgym/")):
        if isinstance(entries.get(name), dict):
            entry = dict(entries[name])
            parts = [entries, entry, *entry.get("scenarios", {}).values()]
            if wrong := [part[GPU] for part in parts if not isinstance(part.get(GPU, {}), dict)]:
                raise InvalidArgument(
                    f"recipe={str(file)!r}: {GPU} = {wrong[0]!r}: expected settings, such as {{ lanes = 4096 }}"
                )
            return entry, dict(entries.get(GPU, {}))
    raise InvalidArgument(f"recipe={str(file)!r}: has {', '.join(entries) or 'nothing'}, but not {env_id}")


def written(env_id: str, made: Recipe, about: str) -> str:
    """Settings as an entry of a table, which `llmgym train --recipe` takes.

    Args:
        env_id: id of the environment.
        made: the settings.
        about: a comment above them.
    """
    defaults = PPOConfig()
    kwargs = dict(made.env_kwargs)
    entry: dict[str, Any] = {"scenario": kwargs.pop("scenario")} if "scenario" in kwargs else {}
    entry |= {"action": kwargs.pop("action")} if "action" in kwargs else {}
    entry |= {"env": kwargs} if kwargs else {}
    entry |= {name: getattr(made, name) for name in OF_PLAN}
    base = PPOConfig(**{k: v for k, v in table()["bases"][OTHERS].items() if k not in OF_PLAN})
    values = made.config.to_dict()
    entry |= {k: v for k, v in values.items() if v != defaults.to_dict()[k] or v != base.to_dict()[k]}
    lines = [f"# {line}" for line in about.splitlines()]
    name = env_id.rpartition(":")[2].removeprefix("llmgym/")
    lines.append(f"[{json.dumps(name) if '/' in name else name}]")
    lines += [f"{key} = {_toml(value)}" for key, value in entry.items() if value is not None]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{json.dumps(k)} = {_toml(v)}" for k, v in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False)  # of a text, a number and a truth value, TOML has the same


def _made(
    name: str, settings: Mapping[str, Any], env_kwargs: Mapping[str, Any], file: Path = TABLE
) -> Recipe:
    config: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()
    }
    plan: dict[str, int] = {key: config.pop(key, 0) for key in OF_PLAN}
    if unknown := sorted(config.keys() - {field.name for field in fields(PPOConfig)}):
        raise InvalidArgument(f"{file.name}: {name} has {', '.join(unknown)}, which are no settings")
    return Recipe(name, dict(env_kwargs), config=PPOConfig(**config), **plan)
