"""A deployed policy as one `.npz` file: weights, scales of the observation, and the layout that it was made for.

Read with numpy alone, and without running any code of the file. `llmgym.deploy.export` writes it.
"""

import hashlib
import json
import math
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmgym.errors import CheckpointError

FORMAT = "llmgym-deployed-policy"
VERSION = 1
PER_WAITING, PER_RUNNING, HISTOGRAM = 11, 9, 8
"""Numbers that an observation of KVQueue-v1 tells of a waiting request, of a running one, and bins of a histogram."""
ORDERS = ("arrival", "smallest-area", "shortest-output", "deadline")
"""Orders whose first waiting requests can be candidates."""
HEAD = (
    "kv.used",
    "kv.free",
    "kv.peak",
    "residents",
    "waiting",
    "backlog",
    "load",
    "batch.time",
    "batch.prefill",
    "blocked",
    "preemptions",
    "progress",
    "time",
    "picked",
    "residents.remaining",
    "residents.footprint",
    "short",
    "late",
    "kv.reused",
)
"""Fields of an observation of KVQueue-v1 before the candidates, in order."""
WIDE = {"residents.remaining": HISTOGRAM, "residents.footprint": HISTOGRAM}
"""Entries of those that are more than one number."""


def layout_of(slots: int, running: int) -> list[list[Any]]:
    """Names and sizes of the fields of an observation of KVQueue-v1.

    Args:
        slots: candidates of the queue.
        running: candidates of the running batch.
    """
    head: list[list[Any]] = [[name, WIDE.get(name, 1)] for name in HEAD]
    return [*head, ["waiting.candidates", PER_WAITING * slots], ["running.candidates", PER_RUNNING * running]]


def layout_hash(layout: Sequence[Sequence[Any]]) -> str:
    """SHA-256 of names and sizes of the fields of an observation, in order."""
    return hashlib.sha256(json.dumps([list(field) for field in layout]).encode()).hexdigest()


@dataclass(frozen=True)
class Objective:
    """What a class of requests is promised: s to the first and to the last token, infinite for none."""

    ttft_s: float = math.inf
    e2e_s: float = math.inf


@dataclass(frozen=True)
class Scales:
    """What an observation is measured in; reciprocals are multiplied with.

    Attributes:
        per_cap: 1 / requests that may wait.
        per_horizon: 1 / s.
        per_batch: 1 / s, of a reference batch.
        per_prompt: 1 / tokens of a long prompt.
        per_output: 1 / tokens of a long output.
        per_area: 1 / (tokens x batches) of a long request.
        per_expected: 1 / requests of an episode.
        per_class: 1 / (classes - 1), or 0.
        window_s: time over which the load is averaged, s.
        batch_ref_s: duration of a reference batch, s.
        default_output: stands in for a prediction where there is none, tokens.
        steps_per_bin: width of a bin of remaining batches.
        bins_per_step: bins of a batch, times 2**20.
        bins_per_token: bins of a token, times 2**20.
    """

    per_cap: float = 1.0 / 4096
    per_horizon: float = 1.0 / 3600
    per_batch: float = 50.0
    per_prompt: float = 1.0 / 4096
    per_output: float = 1.0 / 1024
    per_area: float = 1.0 / 2**22
    per_expected: float = 1.0 / 400
    per_class: float = 0.0
    window_s: float = 2.0
    batch_ref_s: float = 0.02
    default_output: int = 256
    steps_per_bin: float = 128.0
    bins_per_step: int = 8192
    bins_per_token: int = 1639


@dataclass(frozen=True)
class Bundle:
    """Everything that an engine has to know of a policy.

    Attributes:
        name: of the policy.
        kind: `identity`, `pick-area` or `network`.
        lists: orders whose first waiting requests are candidates.
        slots: candidates of the queue, the same number from each list.
        running: candidates of the running batch.
        scales: of the observation.
        objectives: of each class.
        engine: settings of the engine that it was made for, by the names of KVQueue-v1.
        numbers: of a rule, by name.
        network: `kind` (`mlp`, `scorer`), `activation` and `clip` of a network.
        weights: its arrays by name.
    """

    name: str = "identity"
    kind: str = "identity"
    lists: tuple[str, ...] = ("arrival",)
    slots: int = 1
    running: int = 1
    scales: Scales = Scales()
    objectives: tuple[Objective, ...] = (Objective(),)
    engine: Mapping[str, Any] | None = None
    numbers: Mapping[str, float] | None = None
    network: Mapping[str, Any] | None = None
    weights: Mapping[str, NDArray[np.float32]] | None = None

    @property
    def size(self) -> int:
        """Entries of an observation."""
        return sum(int(size) for _, size in layout_of(self.slots, self.running))


def write(path: Path, bundle: Bundle) -> None:
    """Write a policy, whole or not at all.

    Args:
        path: where to, ending in `.npz`; its folder must exist.
        bundle: what to write.

    Raises:
        CheckpointError: the name does not end in `.npz`.
    """
    if path.suffix != ".npz":
        raise CheckpointError(f"path={str(path)!r}: expected a name that ends in .npz")
    layout = layout_of(bundle.slots, bundle.running)
    meta = {
        "format": FORMAT,
        "version": VERSION,
        "name": bundle.name,
        "kind": bundle.kind,
        "lists": list(bundle.lists),
        "slots": bundle.slots,
        "running": bundle.running,
        "layout": layout,
        "layout_hash": layout_hash(layout),
        "scales": vars(bundle.scales),
        "objectives": [_finite(vars(one)) for one in bundle.objectives],
        "engine": dict(bundle.engine or {}),
        "numbers": dict(bundle.numbers or {}),
        "network": dict(bundle.network or {}),
    }
    arrays = {f"weight/{key}": value for key, value in (bundle.weights or {}).items()}
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("wb") as file:
            np.savez(file, meta=np.array(json.dumps(meta)), **arrays)  # type: ignore[arg-type]
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _finite(values: Mapping[str, float]) -> dict[str, float | None]:
    return {key: value if math.isfinite(value) else None for key, value in values.items()}


def read(path: Path) -> Bundle:
    """Read a policy.

    Raises:
        CheckpointError: there is none, it is damaged, of another format or a later version, or was made for an observation that
            this version does not make; the message says which.
    """
    if not path.is_file():
        raise CheckpointError(f"no such file: {path}")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
        meta = json.loads(str(arrays.pop("meta")))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path} is damaged or no exported policy ({error})") from error
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise CheckpointError(f"{path} is no exported policy; `llmgym export-policy` writes one")
    if not isinstance(meta.get("version"), int) or meta["version"] > VERSION:
        raise CheckpointError(
            f"{path} has format version {meta.get('version')}; this llmgym reads up to {VERSION}"
        )
    try:
        _check_layout(path, meta)
        return Bundle(
            name=str(meta["name"]),
            kind=str(meta["kind"]),
            lists=tuple(meta["lists"]),
            slots=int(meta["slots"]),
            running=int(meta["running"]),
            scales=Scales(**meta["scales"]),
            objectives=tuple(
                Objective(**{key: math.inf if value is None else value for key, value in one.items()})
                for one in meta["objectives"]
            ),
            engine=meta["engine"],
            numbers=meta["numbers"],
            network=meta["network"],
            weights={key.removeprefix("weight/"): value for key, value in arrays.items()},
        )
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} lacks a part: {error}") from error


def _check_layout(path: Path, meta: Mapping[str, Any]) -> None:
    """Raise `CheckpointError` unless the observation is one that this version makes."""
    had = [list(field) for field in meta["layout"]]
    if layout_hash(had) != meta["layout_hash"]:
        raise CheckpointError(f"{path} is damaged: its layout is not the one that it has the hash of")
    now = layout_of(int(meta["slots"]), int(meta["running"]))
    if had != now:
        for then, here in zip(had, now):
            if then != here:
                raise CheckpointError(
                    f"{path} was made for another observation: field {then[0]!r} of {then[1]} entries is "
                    f"{here[0]!r} of {here[1]} here"
                )
        raise CheckpointError(f"{path} was made for another observation: {len(had)} fields, {len(now)} here")
    unknown = [name for name in meta["lists"] if name not in ORDERS]
    if unknown or not meta["lists"] or int(meta["slots"]) % len(meta["lists"]):
        raise CheckpointError(f"{path}: lists={meta['lists']!r}: expected orders out of {', '.join(ORDERS)}")
