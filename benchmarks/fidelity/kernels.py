"""Step costs of published kernel tables, in the shape llmgym reads them.

LLMServingSim 2.0 (https://github.com/casys-kaist/LLMServingSim, `profiler/perf`, MIT; vLLM 0.19 kernels on RTX PRO 6000 and RTX
4090): time of each dense layer by tokens, of the output head and the sampler by sequences, of the experts by (tokens, activated
experts), and of attention in MIXED batches by (prefill chunk, its cached tokens, decodes, cached tokens of each).

A decode costs more in a batch that has a prefill chunk as well: what decodes add there is a table of its own.
"""

import csv
import gzip
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.interpolate import RegularGridInterpolator

from fidelity.prototype import Step
from llmgym.errors import InvalidArgument
from llmgym.profiles.cost import prefill_attention_s, step_time_s
from llmgym.profiles.profile import Profile, Provenance, Source
from llmgym.profiles.tables import Table

SOURCE = Source(
    "LLMServingSim 2.0 kernel profiles, vLLM 0.19 (commit 5daddb2)",
    "https://github.com/casys-kaist/LLMServingSim",
    "MIT",
    "Copyright (c) 2024, CASYS Lab at KAIST",
)
HOST_S = 0.85e-3
"""Host time of a step: the default host law of `h100/llama-3.1-8b`, from a run on another GPU with another version of vLLM."""


@dataclass(frozen=True)
class Shape:
    """What is not in the tables of a model.

    Attributes:
        layers: decoder layers.
        calls: how often each dense layer runs in a decoder layer; layers that are not named run once a step.
        kv_bytes_per_token: of all layers.
        weight_bytes: on one GPU.
        hidden: width of the residual stream.
        experts: of a layer; 0 for a dense model.
        experts_per_token: that a token is sent to.
    """

    layers: int
    calls: dict[str, int]
    kv_bytes_per_token: int
    weight_bytes: int
    hidden: int
    experts: int = 0
    experts_per_token: int = 0


_ATTENTION = {"layernorm": 2, "qkv_proj": 1, "rotary_emb": 1, "o_proj": 1}
_GATED = {"gate_up_proj": 1, "act_fn": 1, "down_proj": 1}
SHAPES = {
    "Llama-3.1-8B": Shape(32, _ATTENTION | _GATED, 131_072, 16_060_522_496, 4_096),
    "Qwen3-30B-A3B-Instruct-2507": Shape(
        48, _ATTENTION | {"qk_norm": 1}, 98_304, 32_000_000_000, 2_048, 128, 8
    ),
}
"""From the public `config.json` of meta-llama/Llama-3.1-8B and Qwen/Qwen3-30B-A3B-Instruct-2507 on Hugging Face; weights of the
second with its experts on two GPUs."""


def rows_of(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file, gzipped or not.

    Raises:
        InvalidArgument: there is no such file.
    """
    if not path.is_file():
        raise InvalidArgument(f"data: {path} is missing")
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
        return list(csv.DictReader(file))


def columns(path: Path, *names: str) -> Any:
    """Columns of a CSV file as one float64 array, [rows, names]."""
    return np.array([[float(row[name]) for name in names] for row in rows_of(path)])


def _by_layer(path: Path, axis: str) -> dict[str, tuple[Any, Any]]:
    """For each layer the values of its axis and its microseconds, both float64, sorted."""
    found: dict[str, list[tuple[float, float]]] = {}
    for row in rows_of(path):
        found.setdefault(row["layer"], []).append((float(row[axis]), float(row["time_us"])))
    return {layer: tuple(np.array(sorted(points)).T) for layer, points in found.items()}  # type: ignore[misc]


def _table(shape: Any, latency_us: Any) -> Table:
    shape = np.atleast_2d(np.asarray(shape, np.int64))
    if shape.shape[0] == 1:
        shape = shape.T
    n = len(shape)
    order = np.lexsort(shape.T[::-1])
    return Table(shape[order], np.asarray(latency_us)[order], np.zeros(n), np.full(n, np.nan), ("bf16",) * n)


@dataclass(frozen=True)
class Mixed:
    """Microseconds of one layer's attention.

    Attributes:
        chunk: float64 [c], prefill chunks, tokens.
        context: float64 [k], their cached tokens.
        prefill_us: float64 [c, k], alone.
        batch: float64 [b], decodes.
        kv: float64 [m], cached tokens of each.
        decode_us: float64 [b, m], alone.
        beside_us: float64 [b, m], what they add to a prefill chunk: median over chunks and contexts.
        ratio: float64 [rows], sum of parts over measured, of every mixed batch.
        rows: float64 [rows, 5]: chunk, context, batch, kv, microseconds of every mixed batch.
    """

    chunk: Any
    context: Any
    prefill_us: Any
    batch: Any
    kv: Any
    decode_us: Any
    beside_us: Any
    ratio: Any
    rows: Any


def mixed_attention(path: Path) -> Mixed:
    """Take the table of mixed batches apart: chunks alone, decodes alone, decodes beside a chunk.

    Only values on full grids are kept: chunks and contexts that are powers of two (and 0), every number of decodes.
    """
    rows = columns(path, "prefill_chunk", "kv_prefill", "n_decode", "kv_decode", "time_us")
    parts = {tuple(row[:4]): row[4] for row in rows}
    mixed = rows[(rows[:, 0] > 0) & (rows[:, 2] > 0)]
    prefill = np.array([parts[c, k, 0.0, 0.0] for c, k, *_ in mixed])
    decode = np.array([parts[0.0, 0.0, b, m] for _, _, b, m, _ in mixed])
    chunk = np.array([c for c in np.unique(rows[:, 0]) if c > 0 and c == 2 ** round(np.log2(c))])
    context = np.array([k for k in np.unique(rows[:, 1]) if all((c, k, 0.0, 0.0) in parts for c in chunk)])
    batch = np.unique(rows[rows[:, 2] > 0, 2])
    kv = np.unique(rows[rows[:, 3] > 0, 3])
    decode_us = np.array([[parts[0.0, 0.0, b, m] for m in kv] for b in batch])
    beside = np.full_like(decode_us, np.nan)
    extra = mixed[:, 4] - prefill
    for i, b in enumerate(batch):
        for j, m in enumerate(kv):
            chosen = (mixed[:, 2] == b) & (mixed[:, 3] == m)
            if chosen.any():
                beside[i, j] = max(np.median(extra[chosen]), decode_us[i, j])
    for i in range(len(batch)):  # what was not measured beside a chunk keeps the factor of the nearest batch
        for j in range(len(kv)):
            if np.isnan(beside[i, j]):
                beside[i, j] = decode_us[i, j] * beside[i - 1, j] / decode_us[i - 1, j]
    return Mixed(
        chunk,
        context,
        np.array([[parts[c, k, 0.0, 0.0] for k in context] for c in chunk]),
        batch,
        kv,
        decode_us,
        beside,
        (prefill + decode) / mixed[:, 4],
        mixed,
    )


def profile_of(
    folder: Path, gpu: str, model: str, memory_bytes: int, extra_s: Any = None
) -> tuple[Profile, Mixed]:
    """A profile of the kernel tables of a model on one GPU.

    Args:
        folder: the tables, `<gpu>/<model>_tp1_*.csv.gz`.
        gpu: its folder.
        model: a key of `SHAPES`.
        memory_bytes: of the GPU.
        extra_s: seconds of what the tables of dense layers leave out, of token counts [n]; the experts and their
            collectives. None for nothing.
    """
    if model not in SHAPES:
        raise InvalidArgument(f"model={model!r}: expected one of {', '.join(SHAPES)}")
    shape = SHAPES[model]
    at = folder / gpu
    dense = _by_layer(at / f"{model}_tp1_dense.csv.gz", "tokens")
    tokens = next(iter(dense.values()))[0]
    seconds = (
        sum(
            np.interp(tokens, *dense[layer]) * (shape.calls.get(layer, 0) * shape.layers or 1)
            for layer in dense
        )
        * 1e-6
    )
    if extra_s is not None:
        seconds = seconds + extra_s(tokens)
    each = _by_layer(at / f"{model}_tp1_per_sequence.csv.gz", "sequences")
    sequences = next(iter(each.values()))[0]
    once = sum(np.interp(sequences, *each[layer]) for layer in each) * 1e-6 + HOST_S
    mixed = mixed_attention(at / f"{model}_tp1_attention.csv.gz")
    chunks = [(c, k) for c in mixed.chunk for k in mixed.context]
    decodes = [(b, b * m) for b in mixed.batch for m in mixed.kv]
    tables = {
        "dense": _table(tokens, seconds * 1e6),
        "prefill_attention": _table(chunks, mixed.prefill_us.ravel() * shape.layers),
        "decode_attention": _table(decodes, mixed.decode_us.ravel() * shape.layers),
        "decode_attention_beside": _table(decodes, mixed.beside_us.ravel() * shape.layers),
        "host": _table(sequences, once * 1e6),
    }
    provenance = Provenance("measured", "2026-08-21", (SOURCE,), versions={"engine": "vLLM 0.19"})
    profile = Profile(
        f"{gpu}/{model}",
        gpu,
        model,
        1,
        "bf16",
        provenance,
        memory_bytes=memory_bytes,
        weight_bytes=shape.weight_bytes,
        kv_bytes_per_token=shape.kv_bytes_per_token,
        tables=tables,
    )
    return profile, mixed


def expert_layers_s(data: Path, gpu: str, system: str, model: str, ranks: int) -> Any:
    """Seconds of the expert layers and their collectives, of tokens on one of `ranks` GPUs that share the experts.

    Every rank sends its tokens to all (all-gather) and gets its sums back (reduce-scatter); with as many tokens on the others,
    one rank computes as many pairs of token and expert as it has tokens times experts a token, over the experts it holds.

    Args:
        data: folder with `llmservingsim` and `aiconfigurator`.
        gpu: of the expert table.
        system: of the table of collectives (NCCL, 16-bit; its sizes are elements).
        model: a key of `SHAPES`.
        ranks: GPUs.

    Returns:
        A function of tokens, float64 [n], to seconds.
    """
    shape = SHAPES[model]
    rows = columns(
        data / "llmservingsim" / gpu / f"{model}_tp1_moe.csv.gz", "tokens", "activated_experts", "time_us"
    )
    tokens_at, experts_at = np.unique(rows[:, 0]), np.unique(rows[:, 1])
    table = np.full((len(tokens_at), len(experts_at)), np.nan)
    table[np.searchsorted(tokens_at, rows[:, 0]), np.searchsorted(experts_at, rows[:, 1])] = np.log(
        rows[:, 2]
    )
    for j in range(
        1, len(experts_at)
    ):  # fewer tokens cannot activate so many experts: the value is never used
        table[:, j] = np.where(np.isnan(table[:, j]), table[:, j - 1] + np.log(2.0), table[:, j])
    grid = RegularGridInterpolator(
        (np.log(tokens_at), np.log(experts_at)), table, bounds_error=False, fill_value=None
    )
    collectives = rows_of(data / "aiconfigurator" / system / "nccl.csv.gz")

    def collective_us(name: str, elements: Any) -> Any:
        points = sorted(
            (float(row["message_size"]), 1e3 * float(row["latency_ms"]))
            for row in collectives
            if (row["op_name"], row["nccl_dtype"], row["num_gpus"]) == (name, "half", str(ranks))
        )
        size, time = np.log(np.array(points)).T
        return np.exp(np.interp(np.log(elements), size, time))

    def seconds(tokens: Any) -> Any:
        held = shape.experts / ranks
        missed = (1 - shape.experts_per_token / shape.experts) ** (ranks * tokens)
        active = np.maximum(held * (1 - missed), shape.experts_per_token)
        experts = np.exp(grid(np.log(np.stack([tokens, active], -1))))
        moved = ranks * tokens * shape.hidden
        both = collective_us("all_gather", moved) + collective_us("reduce_scatter", moved)
        return 1e-6 * shape.layers * (experts + both)

    return seconds


def summed_step(profile: Profile) -> Step:
    """Duration of a batch as the compiled engine has it."""
    cost = profile.step_cost()

    def step(chunks: Sequence[tuple[int, int]], decodes: int, kv_tokens: int) -> float:
        attention = sum(prefill_attention_s(cost, tokens, context) for tokens, context in chunks)
        return float(
            step_time_s(
                cost,
                sum(tokens for tokens, _ in chunks),
                attention,
                decodes,
                kv_tokens,
                decodes + len(chunks),
                0,
            )
        )

    return step
