"""Profiles: what one model on one group of GPUs costs, with the origin of every number.

A profile is a directory: `meta.json` (what it describes, provenance, memory) and either `tables.csv` (measured, see
`llmgym.profiles.tables`) or `laws.json` (formulas, see `llmgym.profiles.laws`). Both become the same compiled `StepCost`. A
number without provenance is refused: sources with licences, the method, the date, and for measured and law-based profiles the
error figures are required fields.
"""

import datetime
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from llmgym.errors import InvalidArgument, ProfileError, UnknownName
from llmgym.profiles import laws as law_forms
from llmgym.profiles.cost import StepCost
from llmgym.profiles.kernels import load_kernels
from llmgym.profiles.laws import law_cost
from llmgym.profiles.tables import Table, read_tables, tables_cost, write_tables

METHODS = ("measured", "law", "paper", "synthetic")
FORMAT = 1


@dataclass(frozen=True)
class Source:
    """Where numbers come from.

    Attributes:
        title: what it is.
        url: its public address ("-" for numbers a caller chose).
        licence: SPDX name, or what stands in its place.
        attribution: whom to name.
        used_for: what was taken from it.
    """

    title: str
    url: str
    licence: str
    attribution: str = ""
    used_for: str = ""


@dataclass(frozen=True)
class Provenance:
    """How the numbers of a profile came about.

    Attributes:
        method: "measured", "law" (formulas fitted to measurements), "paper" (stated in one) or "synthetic"
            (chosen).
        date: ISO date on which the profile was made.
        sources: one or more.
        errors: for each law or table its error figures, e.g. {"gemm": {"mape_pct": 8.0, "p90_ape_pct": 16.5,
            "n": 12506}}.
        versions: versions of what was measured with (driver, libraries, engine).
        notes: what a reader must know before trusting the numbers.
    """

    method: str
    date: str
    sources: tuple[Source, ...]
    errors: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Profile:
    """What one model on one group of GPUs costs.

    Attributes:
        name: such as "h100/llama-3.1-8b".
        gpu: device.
        model: model.
        tensor_parallel: GPUs a replica spans.
        dtype: of weights and cache.
        provenance: where every number comes from.
        memory_bytes: memory of all GPUs of a replica; 0 where the profile has none.
        weight_bytes: weights of the model, over all GPUs of a replica.
        kv_bytes_per_token: what one cached token takes, over all GPUs of a replica; 0 where the profile has
            none.
        stated_kv_tokens: tokens the cache holds where the source states it; None where memory decides.
        tables: measured tables by op; empty for profiles made of laws.
        laws: content of `laws.json`; empty for measured profiles.
        dense: which option of the dense laws to use.
        host: which option of the host laws to use.
    """

    name: str
    gpu: str
    model: str
    tensor_parallel: int
    dtype: str
    provenance: Provenance
    memory_bytes: int = 0
    weight_bytes: int = 0
    kv_bytes_per_token: int = 0
    stated_kv_tokens: int | None = None
    tables: Mapping[str, Table] = field(default_factory=dict, repr=False)
    laws: Mapping[str, Any] = field(default_factory=dict, repr=False)
    dense: str = "default"
    host: str = "default"

    @property
    def kind(self) -> str:
        """Kind of the step cost: "constant", "linear", "staircase" or "tables"."""
        kind = self.laws.get("kind", "components")
        return "tables" if kind == "components" else str(kind)

    @property
    def options(self) -> dict[str, tuple[str, ...]]:
        """Names that `dense` and `host` can take."""
        if self.kind != "tables" or self.tables:
            return {"dense": ("default",), "host": ("default",)}
        return {part: tuple(self.laws[part]) for part in ("dense", "host")}

    @cached_property
    def _cost(self) -> StepCost:
        where = f"profile {self.name}"
        if self.tables:
            for part, chosen in (("dense", self.dense), ("host", self.host)):
                if chosen != "default":
                    raise ProfileError(f"{where}: a measured profile has no option {chosen!r} of {part}")
            return tables_cost(self.tables, where)
        return law_cost(self.laws, where, self.dense, self.host)

    def step_cost(self) -> StepCost:
        """The compiled cost: read-only arrays for the kernels of `llmgym.profiles.cost`. Made once."""
        return self._cost

    def kv_capacity_tokens(self, utilization: float = 0.9) -> int:
        """Tokens the KV cache of one replica holds.

        Args:
            utilization: share of the memory the engine may take for weights and cache, in (0, 1]. Activations, graphs and
                allocator losses have to fit in the rest.

        Raises:
            InvalidArgument: `utilization` is out of range, or the profile says nothing about memory.
            ProfileError: the weights do not fit.
        """
        if not 0 < utilization <= 1:
            raise InvalidArgument(f"utilization is {utilization!r}; expected a number in (0, 1]")
        if self.stated_kv_tokens is not None:
            return self.stated_kv_tokens
        if not self.memory_bytes or not self.kv_bytes_per_token:
            raise InvalidArgument(
                f"profile {self.name!r} has no memory size; choose the KV capacity yourself"
            )
        tokens = int((self.memory_bytes * utilization - self.weight_bytes) // self.kv_bytes_per_token)
        if tokens <= 0:
            raise ProfileError(
                f"profile {self.name!r}: weights of {self.weight_bytes:,} bytes leave no KV cache in "
                f"{utilization:.0%} of {self.memory_bytes:,} bytes"
            )
        return tokens

    def copy_s_per_token(self) -> tuple[float, float]:
        """Time to copy one cached token to the pinned memory of the host, and back, s.

        That of the largest copy that was measured, by bytes, with the profile or in the kernel set of its GPU; small copies
        take longer by byte. The GPUs of a replica copy their parts at the same time.

        Raises:
            InvalidArgument: the profile does not say what a token takes, or no copies were measured.
        """
        if not self.kv_bytes_per_token:
            raise InvalidArgument(f"profile {self.name!r} does not say how many bytes a cached token takes")
        found = []
        for op in ("copy_to_host", "copy_to_device"):
            if op in self.tables:
                table = self.tables[op]
                largest = int(table.shape[:, 0].argmax())
                size, latency_us = float(table.shape[largest, 0]), float(table.latency_us[largest])
            else:
                size, latency_us = _measured_copy(self, op)
            found.append(1e-6 * latency_us / size * self.kv_bytes_per_token / self.tensor_parallel)
        return found[0], found[1]

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the profile as a directory (made if needed) that `load` reads back unchanged.

        Returns:
            The directory.
        """
        _check(self, f"profile {self.name}")
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        meta: dict[str, Any] = {"format": FORMAT, **{name: getattr(self, name) for name in _META}}
        origin = self.provenance
        meta["provenance"] = {
            "method": origin.method,
            "date": origin.date,
            "sources": [{k: v for k, v in vars(source).items() if v} for source in origin.sources],
            "errors": {key: dict(value) for key, value in origin.errors.items()},
            "versions": dict(origin.versions),
            "notes": list(origin.notes),
        }
        if self.tables:
            write_tables(folder / "tables.csv", self.tables)
            (folder / "laws.json").unlink(missing_ok=True)
        else:
            (folder / "laws.json").write_text(_dump(self.laws), encoding="utf-8")
            (folder / "tables.csv").unlink(missing_ok=True)
        (folder / "meta.json").write_text(_dump(meta), encoding="utf-8")
        return folder


def _measured_copy(profile: Profile, op: str) -> tuple[float, float]:
    """Bytes and time (us) of the largest copy in the kernel set of a profile's GPU. Raises `InvalidArgument`."""
    try:
        rows = [row for row in load_kernels(f"{profile.gpu}/kernels").rows if row.op == op]
    except UnknownName:
        rows = []
    if not rows:
        raise InvalidArgument(
            f"profile {profile.name!r}: no copies between the GPU and the host were measured with it, and no kernel set of "
            f"gpu={profile.gpu!r} has any; take one of an H100 or H200, or measure it with llmgym profile"
        )
    largest = max(rows, key=lambda row: row.shape)
    return float(dict(largest.shape)["bytes"]), largest.latency_us


_META = {
    "name": str,
    "gpu": str,
    "model": str,
    "tensor_parallel": int,
    "dtype": str,
    "memory_bytes": int,
    "weight_bytes": int,
    "kv_bytes_per_token": int,
    "stated_kv_tokens": int,
}


def _dump(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file. Raises `ProfileError`."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ProfileError(
            f"{path}: no such file; a profile is meta.json and either tables.csv or laws.json"
        ) from None
    except OSError as error:
        raise ProfileError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ProfileError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ProfileError(f"{path}: expected an object, got {type(content).__name__}")
    return content


def _check(profile: Profile, where: str) -> None:
    """Refuse a profile without provenance or with impossible sizes; `where` is the file to name."""
    origin = profile.provenance
    if origin.method not in METHODS:
        raise ProfileError(
            f"{where}: provenance.method is {origin.method!r}; expected one of {', '.join(METHODS)}"
        )
    try:
        datetime.date.fromisoformat(origin.date)
    except ValueError:
        raise ProfileError(
            f"{where}: provenance.date is {origin.date!r}; expected a date as YYYY-MM-DD"
        ) from None
    if not origin.sources:
        raise ProfileError(f"{where}: provenance.sources is empty; no number without provenance")
    for index, source in enumerate(origin.sources):
        for name in ("title", "url", "licence"):
            if not getattr(source, name):
                raise ProfileError(f"{where}: provenance.sources[{index}].{name} is empty")
    if origin.method in ("measured", "law") and not origin.errors:
        raise ProfileError(
            f"{where}: provenance.errors is empty; a {origin.method} profile states its errors"
        )
    if origin.method == "measured" and not origin.versions:
        raise ProfileError(f"{where}: provenance.versions is empty; a measured profile states what it ran on")
    for key, figures in origin.errors.items():
        for name, figure in figures.items():
            law_forms.number(figure, f"{where}: provenance.errors.{key}.{name}", zero=True)
    if profile.tensor_parallel < 1:
        raise ProfileError(
            f"{where}: tensor_parallel is {profile.tensor_parallel}; expected a whole number >= 1"
        )
    for name in ("memory_bytes", "weight_bytes", "kv_bytes_per_token"):
        if getattr(profile, name) < 0:
            raise ProfileError(f"{where}: {name} is {getattr(profile, name)}; expected a whole number >= 0")
    if profile.stated_kv_tokens is not None and profile.stated_kv_tokens < 1:
        raise ProfileError(
            f"{where}: stated_kv_tokens is {profile.stated_kv_tokens}; expected a whole number >= 1"
        )
    if bool(profile.tables) == bool(profile.laws):
        raise ProfileError(f"{where}: a profile has either tables or laws")


def _provenance(meta: Mapping[str, Any], where: str) -> Provenance:
    provenance = meta.get("provenance")
    if not isinstance(provenance, dict):
        raise ProfileError(f"{where}: field 'provenance' is missing; no number without provenance")
    for name, kind in (("method", str), ("date", str), ("sources", list)):
        if not isinstance(provenance.get(name), kind):
            raise ProfileError(f"{where}: field 'provenance.{name}' is missing or is not a {kind.__name__}")
    sources = []
    for index, source in enumerate(provenance["sources"]):
        here = f"{where}: provenance.sources[{index}]"
        if not isinstance(source, dict):
            raise ProfileError(f"{here} must be an object with title, url and licence, got {source!r}")
        for name in ("title", "url", "licence"):
            if not isinstance(source.get(name), str):
                raise ProfileError(f"{here}: field {name!r} is missing or is not a text")
        known = Source.__dataclass_fields__
        unknown = [name for name in source if name not in known]
        if unknown:
            raise ProfileError(f"{here}: unknown field {unknown[0]!r}; expected {', '.join(known)}")
        sources.append(Source(**source))
    for name in ("errors", "versions"):
        if not isinstance(provenance.get(name, {}), dict):
            raise ProfileError(
                f"{where}: field 'provenance.{name}' must be an object, got {provenance[name]!r}"
            )
    for key, figures in provenance.get("errors", {}).items():
        if not isinstance(figures, dict):
            raise ProfileError(f"{where}: field 'provenance.errors.{key}' must be an object, got {figures!r}")
    notes = tuple(provenance.get("notes", ()))
    return Provenance(
        provenance["method"],
        provenance["date"],
        tuple(sources),
        provenance.get("errors", {}),
        provenance.get("versions", {}),
        notes,
    )


def read_folder(folder: Path) -> Profile:
    """The profile that a folder holds. Raises `ProfileError` where its files are incomplete or wrong."""
    path = folder / "meta.json"
    meta = read_json(path)
    if meta.get("format") != FORMAT:
        raise ProfileError(
            f"{path}: field 'format' is {meta.get('format')!r}; this version reads format {FORMAT}"
        )
    values: dict[str, Any] = {}
    for name, kind in _META.items():
        if name == "stated_kv_tokens" and meta.get(name) is None:
            continue
        if not isinstance(meta.get(name), kind) or isinstance(meta[name], bool):
            raise ProfileError(f"{path}: field {name!r} is missing or is not a {kind.__name__}")
        values[name] = meta[name]
    tables, laws = folder / "tables.csv", folder / "laws.json"
    if tables.is_file() == laws.is_file():
        both = "both tables.csv and laws.json" if tables.is_file() else "neither tables.csv nor laws.json"
        raise ProfileError(f"{folder} has {both}; a profile has exactly one of them")
    if tables.is_file():
        values["tables"] = read_tables(tables)
        tables_cost(values["tables"], str(tables))
    else:
        values["laws"] = read_json(laws)
        law_cost(values["laws"], str(laws))
    profile = Profile(provenance=_provenance(meta, str(path)), **values)
    _check(profile, str(path))
    return profile


def from_law(
    name: str,
    kind: str,
    provenance: Provenance,
    numbers: Mapping[str, float],
    *,
    kv_tokens: int | None = None,
) -> Profile:
    """A profile whose step cost is one scalar law.

    Args:
        name: of the profile.
        kind: "constant", "linear" or "staircase".
        provenance: where the numbers come from.
        numbers: parameters of the law, those that `llmgym.profiles.laws.SCALAR_KINDS` names.
        kv_tokens: tokens the KV cache holds, if it is known.

    Returns:
        The profile; its model, GPU and engine are "any".

    Raises:
        ProfileError: the provenance or a parameter is missing or impossible.
    """
    laws = {"kind": kind, **{key: float(value) for key, value in numbers.items()}}
    profile = Profile(name, "any", "any", 1, "any", provenance, stated_kv_tokens=kv_tokens, laws=laws)
    _check(profile, f"profile {name}")
    profile.step_cost()
    return profile


def _chosen(name: str, kind: str, kv_capacity_tokens: int | None, **numbers: float) -> Profile:
    for argument, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
            raise InvalidArgument(f"{argument} is {value!r}; expected a finite number of seconds >= 0")
    if kv_capacity_tokens is not None and kv_capacity_tokens < 1:
        raise InvalidArgument(
            f"kv_capacity_tokens is {kv_capacity_tokens!r}; expected a whole number >= 1 or None"
        )
    if not sum(numbers.values()):
        raise InvalidArgument(f"{', '.join(numbers)} are all 0; a step must take time")
    source = Source("chosen by the caller", "-", "none needed")
    today = datetime.date.today().isoformat()
    origin = Provenance("synthetic", today, (source,))
    return from_law(name, kind, origin, numbers, kv_tokens=kv_capacity_tokens)


def constant(seconds: float, *, kv_capacity_tokens: int | None = None) -> Profile:
    """A profile in which every engine step takes the same time.

    Args:
        seconds: duration of a step, s.
        kv_capacity_tokens: what `Profile.kv_capacity_tokens` returns, tokens; None if it is given elsewhere.

    Raises:
        InvalidArgument: a number is negative, not finite, or no time at all.
    """
    return _chosen("constant", "constant", kv_capacity_tokens, c0_s=seconds)


def linear(c0_s: float, c_kv_s: float, c_tok_s: float, *, kv_capacity_tokens: int | None = None) -> Profile:
    """A profile in which a step takes c0_s + c_kv_s * resident tokens + c_tok_s * prefill tokens.

    Args:
        c0_s: floor of a step, s.
        c_kv_s: s for each token in the KV cache during the step.
        c_tok_s: s for each prompt token processed in the step.
        kv_capacity_tokens: what `Profile.kv_capacity_tokens` returns, tokens; None if it is given elsewhere.

    Returns:
        The profile.

    Raises:
        InvalidArgument: a number is negative, not finite, or all are 0.
    """
    return _chosen("linear", "linear", kv_capacity_tokens, c0_s=c0_s, c_kv_s=c_kv_s, c_tok_s=c_tok_s)
