"""Checkpoints: one file that holds all there is to know about a policy and its training so far.

The file is a `torch.save` archive of plain dicts, lists, numbers, texts and tensors, and is read with `weights_only=True`:
loading one runs no code from it. It is written to a temporary file, flushed to the disk and moved into place, and the file it
replaces is kept beside it as `*.previous.pt`, so a process that is killed at any moment leaves a whole checkpoint.
"""

import contextlib
import json
import os
import pickle
import shutil
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete, MultiDiscrete

from llmgym.core.layout import Layout
from llmgym.errors import CheckpointError, InvalidArgument, OutputError
from llmgym.policies.config import PPOConfig

FORMAT = "llmgym-checkpoint"
VERSION = 1
PARTS = ("meta", "model", "optimizer", "normaliser", "rng", "curve")
META = (
    "algo",
    "env_id",
    "env_kwargs",
    "interface",
    "layout",
    "action_space",
    "config",
    "steps",
    "timesteps",
    "wall_s",
)


def describe_space(space: Any) -> dict[str, Any]:
    """The action space in plain numbers, as a checkpoint stores it."""
    if isinstance(space, Discrete):
        return {"type": "Discrete", "n": int(space.n)}
    if isinstance(space, MultiDiscrete):
        return {"type": "MultiDiscrete", "nvec": space.nvec.tolist()}
    if isinstance(space, Box):
        return {
            "type": "Box",
            "shape": list(space.shape),
            "low": space.low.tolist(),
            "high": space.high.tolist(),
        }
    raise InvalidArgument(f"action space {space}: policies are made for Discrete, MultiDiscrete and Box")


def check_plain(name: str, values: Mapping[str, Any]) -> None:
    """Raise `InvalidArgument` for values that a checkpoint cannot store."""
    for key, value in values.items():
        try:
            same = json.loads(json.dumps(value)) == (list(value) if isinstance(value, tuple) else value)
        except (TypeError, ValueError):
            same = False
        if not same:
            raise InvalidArgument(
                f"{name}[{key!r}]={value!r} cannot be stored in a checkpoint: "
                "allowed are numbers, texts, booleans, None, and lists or dicts of them"
            )


def previous(path: Path) -> Path:
    """Where the checkpoint that the newest one replaced is kept."""
    return path.with_suffix(f".previous{path.suffix}")


@contextlib.contextmanager
def whole_or_not_at_all(path: Path, *temporary: Path) -> Iterator[None]:
    """Turn a failure to write `path` into an `OutputError`; however the block ends, its temporary files are gone."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch says of a full disk that its writer failed
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__context__
        if cause is None and "inline_container" not in str(error):
            raise
        why = getattr(cause, "strerror", None) or (str(cause) if cause else "the disk may be full")
        kept = "; the one before it is kept" if path.exists() else ""
        raise OutputError(f"{path} cannot be written: {why}{kept}") from error
    finally:
        for file in temporary:
            with contextlib.suppress(OSError):
                file.unlink(missing_ok=True)


def save(path: Path, payload: Mapping[str, Any], keep: bool = True) -> None:
    """Write a checkpoint so that `path` is whole at every moment.

    Args:
        path: where to; its folder must exist.
        payload: the `PARTS`, in plain types and tensors.
        keep: whether the checkpoint that it replaces is kept beside it.

    Raises:
        OutputError: it cannot be written; what was there before is still there, and nothing half written.
    """
    temporary, kept = path.with_suffix(".tmp"), previous(path).with_suffix(".tmp")
    with whole_or_not_at_all(path, temporary, kept):
        with open(temporary, "wb") as file:
            torch.save({"format": FORMAT, "version": VERSION, **payload}, file)
            file.flush()
            os.fsync(file.fileno())
        if keep and path.exists():
            kept.unlink(missing_ok=True)
            try:
                os.link(path, kept)
            except OSError:  # file systems without hard links
                shutil.copy2(path, kept)
            os.replace(kept, previous(path))
        os.replace(temporary, path)
    with contextlib.suppress(OSError):  # not every system can flush a folder
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint.

    Raises:
        CheckpointError: there is none, it is damaged, not one of ours, or of a later version; the message says which.
    """
    if not path.is_file():
        raise CheckpointError(f"no such file: {path}")
    hint = f"; the save before it is kept in {previous(path)}" if previous(path).is_file() else ""
    try:
        # torch does not look at the checksums of its own archive
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged:
            raise CheckpointError(f"{path} is damaged: the checksum of its part {damaged!r} is wrong{hint}")
        payload = torch.load(path, map_location="cpu", weights_only=True)
    except (
        zipfile.BadZipFile,
        EOFError,
        RuntimeError,
        pickle.UnpicklingError,
        KeyError,
        OSError,
        ValueError,
    ) as error:
        if isinstance(error, CheckpointError):
            raise
        what = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"{path} is truncated or not a checkpoint ({what[:120]}){hint}") from error
    if not isinstance(payload, dict) or payload.get("format") != FORMAT:
        raise CheckpointError(f"{path} is a torch file, but not a checkpoint of this package")
    version = payload.get("version")
    if not isinstance(version, int) or version > VERSION:
        written = (payload.get("meta") or {}).get("llmgym_version", "unknown")
        raise CheckpointError(
            f"{path} has format version {version}; this llmgym reads up to {VERSION}. "
            f"It was written by llmgym {written}: upgrade with pip install -U llmgym"
        )
    missing = [part for part in PARTS if part not in payload]
    missing += [f"meta.{key}" for key in META if key not in (payload.get("meta") or {})]
    if missing:
        raise CheckpointError(f"{path} lacks {', '.join(missing)}: it was not written by llmgym's trainers")
    return payload


def load_latest(path: Path) -> dict[str, Any]:
    """Read a checkpoint to resume from; where it is damaged, the one before it, with a warning.

    Raises:
        CheckpointError: neither can be read.
    """
    try:
        return load(path)
    except CheckpointError as error:
        if not previous(path).is_file():
            raise
        payload = load(previous(path))
        warnings.warn(f"{error}. Going on from the save before it.", stacklevel=2)
        return payload


def check_network(meta: Mapping[str, Any], config: PPOConfig, where: str, advice: str) -> None:
    """Check that the weights of a checkpoint are those of a network.

    Args:
        meta: of the checkpoint.
        config: says which network.
        where: the checkpoint's path, for the message.
        advice: what to do if they are not, the end of the message.

    Raises:
        CheckpointError: they are not.
    """
    then, now = PPOConfig.from_dict(meta["config"]), config
    for name in ("hidden", "activation", "network"):
        had, has = then.to_dict()[name], now.to_dict()[name]
        if had != has:
            raise CheckpointError(f"{where} was trained with {name}={had!r}, not {has!r}: {advice}")


def check_environment(
    meta: Mapping[str, Any], layout: Layout, space: Any, env_id: str | None, where: str
) -> None:
    """Check that a policy can act in an environment.

    Args:
        meta: of the checkpoint.
        layout: observation layout of the environment.
        space: action space of one lane.
        env_id: registered id of the environment, None if it has none.
        where: the checkpoint's path, for the message.

    Raises:
        CheckpointError: it cannot; the message says what differs and what to do.
    """
    differences = []
    if env_id is not None and env_id.rpartition(":")[2] != meta["env_id"].rpartition(":")[2]:
        differences.append(f"it was trained on {meta['env_id']}, this is {env_id}")
    then, now = (
        dict((str(name), int(size)) for name, size in s) for s in (meta["layout"], layout.signature())
    )
    for name in then.keys() | now.keys():
        if name not in now:
            differences.append(f"observation field {name!r} ({then[name]} entries) no longer exists")
        elif name not in then:
            differences.append(f"observation field {name!r} ({now[name]} entries) is new")
        elif then[name] != now[name]:
            differences.append(f"observation field {name!r} had {then[name]} entries, now {now[name]}")
    if not differences and list(then) != list(now):
        differences.append(
            f"the observation fields were in the order {', '.join(then)}, now {', '.join(now)}"
        )
    if describe_space(space) != meta["action_space"]:
        differences.append(
            f"actions were {_short(meta['action_space'])}, now {_short(describe_space(space))}"
        )
    if differences:
        made_with = ", ".join(f"{k}={v!r}" for k, v in meta["env_kwargs"].items()) or "no arguments"
        raise CheckpointError(
            f"{where} does not fit this environment: {'; '.join(sorted(differences))}. "
            f"It was trained on {meta['env_id']} with {made_with}: "
            "make the environment like that, or train anew"
        )


def _short(space: Mapping[str, Any]) -> str:
    if space["type"] == "Box":
        low, high = np.asarray(space["low"]), np.asarray(space["high"])
        return f"Box of shape {tuple(space['shape'])} in [{low.min():g}, {high.max():g}]"
    return f"{space['type']}({space['n'] if space['type'] == 'Discrete' else space['nvec']})"
