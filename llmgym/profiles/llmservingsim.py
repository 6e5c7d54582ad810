"""Profiles out of the kernel tables of LLMServingSim 2.0, measured with vLLM: any model and tensor parallelism that has tables.

Its profiler (`profiler/perf`) times every dense layer by tokens, the output head and the sampler by sequences, the experts by
(tokens, activated experts), and attention of mixed batches by (prefill chunk, its cached tokens, decodes, cached tokens of each). A
table of tensor parallelism is one shard, measured on one GPU: the two all-reduces of each layer are added from the link between the
GPUs. A decode costs more in a batch that has a prefill chunk as well: what decodes add there is a table of its own. Host time is
not in the tables: it is another profile's.

https://github.com/casys-kaist/LLMServingSim
"""

import datetime
import os
import re
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from llmgym.core.checks import number, whole
from llmgym.errors import InvalidArgument, ProfileError, UnknownName
from llmgym.profiles.configs import shape_of
from llmgym.profiles.cost import host_s
from llmgym.profiles.models import BF16_BYTES, ModelShape
from llmgym.profiles.named import load
from llmgym.profiles.profile import Profile, Provenance, Source
from llmgym.profiles.tables import Table, finite, read_csv, tables_cost

Floats = NDArray[np.float64]

SOURCE = Source(
    "LLMServingSim 2.0 kernel profiles",
    "https://github.com/casys-kaist/LLMServingSim",
    "MIT",
    "Copyright (c) 2024, CASYS Lab at KAIST",
    "dense work, attention, experts",
)
IN_EVERY_LAYER = {
    "layernorm": 2,
    "qkv_proj": 1,
    "qk_norm": 1,
    "rotary_emb": 1,
    "o_proj": 1,
    "gate_up_proj": 1,
    "act_fn": 1,
    "down_proj": 1,
}
"""How often each row of the dense table runs in a decoder layer."""
ONCE = ("embedding", "final_layernorm")
"""Rows of the dense table that run once a step."""
PER_SEQUENCE = ("lm_head", "sampler")
ALL_REDUCES = 2
"""Of each decoder layer under tensor parallelism: after attention and after the MLP."""
ATTENTION = ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode")


@runtime_checkable
class Collectives(Protocol):
    """What GPUs need to exchange numbers, in s; bytes are float64 of any shape, of the whole result (or sum) of one call."""

    def all_reduce_s(self, size_bytes: Floats, gpus: int) -> Floats: ...

    def all_gather_s(self, size_bytes: Floats, gpus: int) -> Floats: ...

    def reduce_scatter_s(self, size_bytes: Floats, gpus: int) -> Floats: ...


@dataclass(frozen=True)
class Link:
    """The link between the GPUs of a replica, and what collectives in a ring take on it.

    Attributes:
        bandwidth_gb_per_s: what a GPU sends, GB/s (1e9 bytes).
        latency_us: of one collective, us.
    """

    bandwidth_gb_per_s: float
    latency_us: float

    def __post_init__(self) -> None:
        number("bandwidth_gb_per_s", self.bandwidth_gb_per_s)
        number("latency_us", self.latency_us, zero=True)

    def all_reduce_s(self, size_bytes: Floats, gpus: int) -> Floats:
        """Seconds of an all-reduce: every GPU sends all parts but its own, twice."""
        return self._ring_s(2 * size_bytes, gpus)

    def all_gather_s(self, size_bytes: Floats, gpus: int) -> Floats:
        """Seconds of an all-gather of so many bytes together."""
        return self._ring_s(size_bytes, gpus)

    def reduce_scatter_s(self, size_bytes: Floats, gpus: int) -> Floats:
        """Seconds of a reduce-scatter of so many bytes together."""
        return self._ring_s(size_bytes, gpus)

    def _ring_s(self, size_bytes: Floats, gpus: int) -> Floats:
        return (gpus - 1) / gpus * size_bytes / (1e9 * self.bandwidth_gb_per_s) + 1e-6 * self.latency_us


def _places(folder: Path, model: str, tensor_parallel: int, table: str) -> list[Path]:
    """Where a table may be: as the profiler writes it, or all in one folder, compressed or not."""
    names = (
        f"{model}/bf16/tp{tensor_parallel}/{table}.csv",
        f"{model}_tp{tensor_parallel}_{table}.csv",
    )
    return [folder / f"{name}{end}" for name in names for end in ("", ".gz")]


def known_models(folder: str | os.PathLike[str]) -> dict[str, list[int]]:
    """Models that a folder has tables of, each with its degrees of tensor parallelism, sorted."""
    root = Path(folder)
    found: dict[str, set[int]] = {}
    for path in root.glob("**/*dense.csv*"):
        name = path.relative_to(root).as_posix()
        match = re.fullmatch(r"(.+)(?:/bf16/tp(\d+)/|_tp(\d+)_)dense\.csv(?:\.gz)?", name)
        if match:
            found.setdefault(match[1], set()).add(int(match[2] or match[3]))
    return {model: sorted(found[model]) for model in sorted(found)}


def table_path(folder: str | os.PathLike[str], model: str, tensor_parallel: int, table: str) -> Path:
    """The file of a table.

    Args:
        folder: tables of one GPU, with files `<model>/bf16/tp<n>/<table>.csv` or `<model>_tp<n>_<table>.csv`; either may be `.gz`.
        model: as the files name it, such as "Qwen/Qwen3-32B".
        tensor_parallel: GPUs that share each layer.
        table: "dense", "per_sequence", "attention" or "moe".

    Raises:
        InvalidArgument: there is no such folder, or no tables of the model for so many GPUs.
        UnknownName: there are no tables of the model.
        ProfileError: there are, but this one is missing.
    """
    root = Path(folder)
    if not root.is_dir():
        raise InvalidArgument(f"folder={str(folder)!r}: there is no such folder")
    places = _places(root, model, tensor_parallel, table)
    for path in places:
        if path.is_file():
            return path
    known = known_models(root)
    if model not in known:
        raise UnknownName("model", model, known, f"model={model!r}: {root} has no tables of it")
    if tensor_parallel not in known[model]:
        there = ", ".join(map(str, known[model]))
        raise InvalidArgument(f"tensor_parallel={tensor_parallel}: {root} has tables of {model} for {there}")
    raise ProfileError(f"{places[0]} is missing (so is {places[2].name})")


def _rows(
    path: Path, axes: tuple[str, ...], layers: bool = False
) -> list[tuple[str, tuple[int, ...], float]]:
    """Rows of a table, sorted: its layer if it has layers, its whole numbers, us. Each shape is there once.

    Newer tables of experts have a column `ep` and rows of shards of experts, which are left out.
    """
    found: dict[tuple[str, tuple[int, ...]], float] = {}
    for where, row in read_csv(path, (*(("layer",) if layers else ()), *axes, "time_us")):
        if row.get("ep", "1") != "1":
            continue
        counts = []
        for name in axes:
            value = finite(row, name, where)
            if value != int(value) or value < 0:
                raise ProfileError(f"{where}: field {name!r} is {row[name]!r}; expected a whole number >= 0")
            counts.append(int(value))
        time_us = finite(row, "time_us", where)
        if time_us <= 0:
            raise ProfileError(f"{where}: field 'time_us' is {row['time_us']!r}; expected a number > 0")
        key = (row["layer"] if layers else "", tuple(counts))
        if key in found:
            raise ProfileError(f"{where}: the same shape was there before")
        found[key] = time_us
    if not found:
        raise ProfileError(f"{path}: there are no rows")
    return sorted((*key, time_us) for key, time_us in found.items())


def _by_layer(
    path: Path, axis: str, known: tuple[str, ...], needed: tuple[str, ...]
) -> tuple[Floats, dict[str, Floats]]:
    """Values of the axis of a table [n], and us of each layer there [n]."""
    found: dict[str, list[tuple[int, float]]] = {}
    for layer, (at,), time_us in _rows(path, (axis,), layers=True):
        if layer not in known:
            raise ProfileError(f"{path}: layer {layer!r} is not known; known are {', '.join(known)}")
        if at < 1:
            raise ProfileError(f"{path}: layer {layer!r} has {axis}={at}; expected a whole number >= 1")
        found.setdefault(layer, []).append((at, time_us))
    for layer in needed:
        if layer not in found:
            raise ProfileError(f"{path}: layer {layer!r} is missing")
    points = {layer: np.array(rows, np.float64).T for layer, rows in found.items()}
    first = points[needed[0]][0]
    for layer, (at, _) in points.items():
        if len(at) < 2 or (at[0], at[-1]) != (first[0], first[-1]):
            raise ProfileError(
                f"{path}: layer {layer!r} has {axis} {at[0]:g} to {at[-1]:g}, {needed[0]!r} has {first[0]:g} to {first[-1]:g}; "
                "expected the same for all, two or more values"
            )
    return first, {layer: np.interp(first, *both) for layer, both in points.items()}


@dataclass(frozen=True)
class Mixed:
    """Microseconds of one layer's attention; NaN where nothing was measured.

    Attributes:
        chunk: float64 [c], prefill chunks, tokens.
        context: float64 [k], their cached tokens.
        prefill_us: float64 [c, k], alone.
        batch: float64 [b], decodes.
        kv: float64 [m], cached tokens of each.
        decode_us: float64 [b, m], alone.
        beside_us: float64 [b, m], what they add to a prefill chunk: median over chunks and contexts; empty without mixed batches.
        rows: float64 [rows, 5]: chunk, context, batch, kv, microseconds of every mixed batch.
        ratio: float64 [rows], sum of the two parts alone over measured.
        error: float64 [rows], chunk alone and what the decodes add, over measured, less 1.
    """

    chunk: Floats
    context: Floats
    prefill_us: Floats
    batch: Floats
    kv: Floats
    decode_us: Floats
    beside_us: Floats
    rows: Floats
    ratio: Floats
    error: Floats


def mixed_attention(path: Path) -> Mixed:
    """Take a table of mixed batches apart: chunks alone, decodes alone, decodes beside a chunk.

    Chunks are the powers of two where most of them were measured, else all; contexts are those measured with every chunk.

    Raises:
        ProfileError: the file is not such a table, or lacks chunks or decodes alone.
    """
    parts = {shape: time_us for _, shape, time_us in _rows(path, ATTENTION)}
    table = np.array([(*shape, time_us) for shape, time_us in parts.items()], np.float64)
    chunks = np.unique(table[table[:, 0] > 0, 0])
    batch = np.unique(table[(table[:, 0] == 0) & (table[:, 2] > 0), 2])
    kv = np.unique(table[(table[:, 0] == 0) & (table[:, 3] > 0), 3])
    if len(chunks) < 2 or len(batch) < 2 or len(kv) < 2:
        raise ProfileError(
            f"{path}: two or more values of prefill_chunk, and alone of n_decode and kv_decode, are needed"
        )
    powers = chunks[chunks == np.exp2(np.round(np.log2(chunks)))]
    chunk = powers if len(powers) > np.log2(chunks[-1] / chunks[0]) / 2 else chunks

    def alone(c: float, k: float, b: float, m: float) -> float:
        return parts.get((int(c), int(k), int(b), int(m)), np.nan)

    contexts = np.unique(table[table[:, 0] > 0, 1])
    context = np.array([k for k in contexts if all(alone(c, k, 0, 0) > 0 for c in chunk)])
    if len(context) < 2 or context[0] != 0:
        raise ProfileError(
            f"{path}: every prefill_chunk alone is needed with kv_prefill 0 and one or more others"
        )
    decode_us = np.array([[alone(0, 0, b, m) for m in kv] for b in batch])
    mixed = table[(table[:, 0] > 0) & (table[:, 2] > 0)]
    prefill = np.array([alone(c, k, 0, 0) for c, k, *_ in mixed])
    decode = np.array([alone(0, 0, b, m) for _, _, b, m, _ in mixed])
    beside = _beside(mixed, mixed[:, 4] - prefill, batch, kv, decode_us) if len(mixed) else np.empty((0, 0))
    at = np.searchsorted(batch, mixed[:, 2]), np.searchsorted(kv, mixed[:, 3])
    inside = ~np.isnan(prefill + decode)
    error = np.full(len(mixed), np.nan)
    if len(mixed):
        error[inside] = (prefill[inside] + beside[at[0][inside], at[1][inside]]) / mixed[inside, 4] - 1
    return Mixed(
        chunk,
        context,
        np.array([[alone(c, k, 0, 0) for k in context] for c in chunk]),
        batch,
        kv,
        decode_us,
        beside,
        mixed,
        (prefill + decode) / mixed[:, 4],
        error,
    )


def _beside(mixed: Floats, extra: Floats, batch: Floats, kv: Floats, decode_us: Floats) -> Floats:
    """What decodes add to a chunk, us [b, m]; where that was not measured they keep the factor of the nearest batch."""
    beside = np.full_like(decode_us, np.nan)
    for i, b in enumerate(batch):
        for j, m in enumerate(kv):
            chosen = (mixed[:, 2] == b) & (mixed[:, 3] == m) & ~np.isnan(extra)
            if chosen.any():
                beside[i, j] = max(np.median(extra[chosen]), decode_us[i, j])
    measured = ~np.isnan(beside)
    for j in range(len(kv)):
        rows = np.flatnonzero(measured[:, j]).tolist()
        for i in np.flatnonzero(~measured[:, j]).tolist():
            beside[i, j] = decode_us[i, j]
            if rows:
                near = rows[max(bisect_left(rows, i) - 1, 0)]
                beside[i, j] *= beside[near, j] / decode_us[near, j]
    return beside


def _experts_s(path: Path, shape: ModelShape, gpus: int, tokens: Floats) -> Floats:
    """Seconds of one layer's experts on one of `gpus` that share them.

    A token is as likely sent to one expert as to another, so each GPU computes as many pairs of token and expert as `tokens` have,
    over the experts that it holds.

    Args:
        path: the table.
        shape: of the model.
        gpus: that share the experts.
        tokens: of the batch, over `gpus`, float64 [n].
    """
    from scipy.interpolate import RegularGridInterpolator

    rows = np.array([(*at, us) for _, at, us in _rows(path, ("tokens", "activated_experts"))], np.float64)
    tokens_at, experts_at = np.unique(rows[:, 0]), np.unique(rows[:, 1])
    if len(tokens_at) < 2 or len(experts_at) < 2 or tokens_at[0] < 1 or experts_at[0] < 1:
        raise ProfileError(
            f"{path}: two or more values of tokens and activated_experts are needed, from 1 on"
        )
    table = np.full((len(tokens_at), len(experts_at)), np.nan)
    table[np.searchsorted(tokens_at, rows[:, 0]), np.searchsorted(experts_at, rows[:, 1])] = np.log(
        rows[:, 2]
    )
    if np.isnan(table[:, 0]).any():
        raise ProfileError(f"{path}: some tokens lack activated_experts={experts_at[0]:g}")
    for j in range(1, len(experts_at)):  # so few tokens do not activate so many experts: never used
        table[:, j] = np.where(np.isnan(table[:, j]), table[:, j - 1] + np.log(2.0), table[:, j])
    grid = RegularGridInterpolator(
        (np.log(tokens_at), np.log(experts_at)), table, bounds_error=False, fill_value=None
    )
    missed = (1 - shape.experts_per_token / shape.experts) ** (gpus * tokens)
    active = np.maximum(shape.experts / gpus * (1 - missed), shape.experts_per_token)
    points = np.stack([np.log(np.maximum(tokens, tokens_at[0])), np.log(active)], -1)
    result: Floats = 1e-6 * np.exp(grid(points))
    return result


def _table(shapes: Any, time_us: Any) -> Table:
    """A table of a profile, without the shapes that were not measured."""
    rows, taken = np.array(shapes, np.int64), np.asarray(time_us, np.float64).ravel()
    rows, taken = rows[~np.isnan(taken)], taken[~np.isnan(taken)]
    blank = np.full(len(rows), np.nan)
    return Table(rows, taken, np.zeros(len(rows)), blank, ("bf16",) * len(rows))


def from_llmservingsim(
    folder: str | os.PathLike[str],
    model: str,
    shape: ModelShape | str | os.PathLike[str],
    *,
    tensor_parallel: int = 1,
    link: Collectives | None = None,
    expert_ranks: int = 1,
    memory_bytes: int = 0,
    host_from: str = "h100/llama-3.1-8b",
) -> Profile:
    """A bf16 profile of a model on a GPU that LLMServingSim has tables of.

    Experts are held whole by one GPU or another (vLLM's `--enable-expert-parallel`), and the router sends a token to each with the
    same probability.

    Args:
        folder: tables of one GPU, as `profiler/perf/<gpu>` of LLMServingSim has them; its name is taken for the GPU's.
        model: as the files name it, such as "Qwen/Qwen3-32B" (see `table_path`).
        shape: of the model: a `ModelShape`, the name of one in `llmgym.profiles.models`, or the path of a config.json.
        tensor_parallel: GPUs that share each layer; there must be tables of their shards.
        link: between the GPUs, needed where there are several; a `Link`, or measured collectives.
        expert_ranks: data-parallel engines of one GPU each that share the experts; the profile is that of one of them.
        memory_bytes: of one GPU; 0 where it is not known.
        host_from: profile whose host time is taken over.

    Raises:
        UnknownName: no tables of the model, no such shape, no such profile for the host.
        InvalidArgument: a number or a link that does not do, or heads that cannot be shared by so many GPUs.
        ProfileError: a table or a config.json is missing, or lacks a column, a layer or a number.
    """
    known = shape_of(shape)
    tp, ranks = whole("tensor_parallel", tensor_parallel, 1, 64), whole("expert_ranks", expert_ranks, 1, 1024)
    memory = whole("memory_bytes", memory_bytes, 0, 2**62)
    if known.kv_heads % tp or known.q_heads % tp:
        raise InvalidArgument(
            f"tensor_parallel={tp}: must divide the {known.q_heads} query and {known.kv_heads} KV heads"
        )
    if ranks > 1 and (not known.experts or tp > 1 or known.experts % ranks):
        raise InvalidArgument(
            f"expert_ranks={ranks}: needs tensor_parallel=1 and a number of experts that it divides, not {known.experts}"
        )
    gpus = max(tp, ranks)
    if gpus > 1 and not isinstance(link, Collectives):
        raise InvalidArgument(
            f"link={link!r}: {gpus} GPUs need the link between them, Link(bandwidth_gb_per_s=..., latency_us=...)"
        )
    mlp = () if known.experts else ("gate_up_proj", "down_proj")
    dense_path = table_path(folder, model, tp, "dense")
    tokens, layers = _by_layer(dense_path, "tokens", (*IN_EVERY_LAYER, *ONCE), ("qkv_proj", "o_proj", *mlp))
    calls = {layer: IN_EVERY_LAYER.get(layer, 0) * known.layers or 1 for layer in layers}
    dense = sum(layers[layer] * calls[layer] for layer in layers) * 1e-6
    if known.experts:
        experts = table_path(folder, model, 1, "moe")  # of whole experts, so of one GPU's
        dense = dense + known.layers * _experts_s(experts, known, gpus, tokens / tp)
    if link is not None:
        moved = BF16_BYTES * known.hidden * tokens
        if tp > 1:
            dense = dense + known.layers * ALL_REDUCES * link.all_reduce_s(moved, tp)
        if ranks > 1:
            both = link.all_gather_s(ranks * moved, ranks) + link.reduce_scatter_s(ranks * moved, ranks)
            dense = dense + known.layers * both
    sequences, once = _by_layer(
        table_path(folder, model, tp, "per_sequence"), "sequences", PER_SEQUENCE, PER_SEQUENCE
    )
    cost = load(host_from).step_cost()
    host = np.array([host_s(cost, int(n)) for n in sequences])
    mixed = mixed_attention(table_path(folder, model, tp, "attention"))
    decodes = [(b, b * m) for b in mixed.batch for m in mixed.kv]
    tables = {
        "dense": _table(tokens[:, None], 1e6 * dense),
        "prefill_attention": _table(
            [(c, k) for c in mixed.chunk for k in mixed.context], mixed.prefill_us * known.layers
        ),
        "decode_attention": _table(decodes, mixed.decode_us * known.layers),
        "host": _table(sequences[:, None], sum(once.values()) + 1e6 * host),
    }
    if mixed.beside_us.size:
        tables["decode_attention_beside"] = _table(decodes, mixed.beside_us * known.layers)
    root = Path(folder).resolve()
    tables_cost(tables, str(root))
    short = model.rpartition("/")[2]
    elsewhere = BF16_BYTES * known.expert_parameters * (ranks - 1) // ranks
    return Profile(
        f"{root.name}/{short}{f'-tp{tp}' if tp > 1 else ''}",
        root.name,
        known.name,
        tp,
        "bf16",
        _provenance(dense_path, known, tables, mixed, host_from, link, tp, ranks),
        memory_bytes=memory * tp,
        weight_bytes=known.weight_bytes - elsewhere,
        kv_bytes_per_token=known.kv_bytes_per_token,
        tables=tables,
    )


def _provenance(
    path: Path,
    shape: ModelShape,
    tables: Mapping[str, Table],
    mixed: Mixed,
    host_from: str,
    link: Collectives | None,
    tp: int,
    ranks: int,
) -> Provenance:
    """Where the numbers come from; `path` is the dense table, beside whose folder the profiler writes meta.yaml."""
    errors: dict[str, dict[str, float]] = {op: {"n": len(table.shape)} for op, table in tables.items()}
    off = 100 * np.abs(mixed.error[~np.isnan(mixed.error)])
    if len(off):
        errors["decode_attention_beside"] = {
            "mape_pct": round(float(off.mean()), 2),
            "p90_ape_pct": round(float(np.quantile(off, 0.9)), 2),
            "n": len(off),
        }
    meta = path.parent.parent / "meta.yaml"
    told = re.search(r"^vllm_version: *(\S+)", meta.read_text("utf-8"), re.M) if meta.is_file() else None
    notes = [
        f"Host time is not in the tables: it is that of profile {host_from}.",
        "Errors of decode_attention_beside: a chunk alone and what the decodes add, against every mixed batch that was measured.",
    ]
    if tp > 1:
        notes.append(
            f"One shard of {tp} was measured on one GPU. Added: {ALL_REDUCES} all-reduces a layer, by {link}. The all-reduce "
            "after the embedding and the exchange of logits are not included."
        )
    if ranks > 1:
        notes.append(
            f"{ranks} engines share the experts; an all-gather and a reduce-scatter a layer, by {link}."
        )
    if shape.experts:
        notes.append("Experts are held whole by one GPU or another; every expert is as likely as the others.")
    return Provenance(
        "measured",
        datetime.date.today().isoformat(),
        (SOURCE, Source("Model shape", shape.source, "facts", used_for="shapes")),
        errors,
        {"vLLM": told[1] if told else "not told by the tables"},
        tuple(notes),
    )
