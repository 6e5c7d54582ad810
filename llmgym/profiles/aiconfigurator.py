"""Profiles out of NVIDIA's AIConfigurator tables (package `aiconfigurator-core`, Apache-2.0): A100 to B200, three engines' kernels.

The package ships times of matrix products by (m, n, k), of attention by (batch, length, heads) and of all-reduces by size, measured
with vLLM, SGLang and TensorRT-LLM. Here they become a profile of one model: products of a layer and of the output head, elementwise
kernels at the memory's peak bandwidth, all-reduces where there are several GPUs, attention of whole prompts and of decodes, each
interpolated log-log between measured shapes. A chunk that follows cached tokens takes what the longer prompt takes more, and never
less than the chunk alone. Host time is not in the tables: it is another profile's.

https://github.com/ai-dynamo/aiconfigurator; install with `pip install 'llmgym[aiconfigurator]'`.
"""

import datetime
import importlib.util
from collections.abc import Callable
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import RegularGridInterpolator

from llmgym.core.checks import choice, whole
from llmgym.errors import InvalidArgument, MissingExtra, ProfileError
from llmgym.profiles.cost import host_s
from llmgym.profiles.models import MODELS, ModelShape
from llmgym.profiles.named import load
from llmgym.profiles.profile import Profile, Provenance, Source
from llmgym.profiles.tables import Table

LOGIT_ROWS = 256
"""Rows the output head sees at most: only the last token of a sequence needs logits."""
TOKENS = tuple(sorted({*range(1, 17), *(2**i for i in range(5, 15)), *(3 * 2**i for i in range(4, 13))}))
CHUNKS, CONTEXTS = tuple(2**i for i in range(15)), (0, *(2**i for i in range(6, 15)))
BATCHES, LENGTHS = tuple(2**i for i in range(11)), tuple(2**i for i in range(4, 17))

Floats = NDArray[np.float64]


def systems() -> list[str]:
    """GPUs that the installed package has products for. Raises `MissingExtra`."""
    return sorted(path.parent.name for path in (_root() / "data").glob("*/gemm"))


def _root() -> Path:
    package = importlib.util.find_spec("aiconfigurator_core")
    if package is None or package.origin is None:
        raise MissingExtra("a profile from AIConfigurator's tables", "aiconfigurator")
    return Path(package.origin).parent / "systems"


def _newest(folder: Path) -> Path:
    """The folder of the newest version."""
    versions = [path for path in folder.glob("*") if path.is_dir() and any(path.glob("*.parquet"))]
    if not versions:
        raise ProfileError(f"{folder}: there are no tables")
    return max(versions, key=lambda path: [int(n) if n.isdigit() else -1 for n in path.name.split(".")])


def _fill(values: Floats) -> None:
    """Fill the far corner of a grid of logarithms, where memory ended: the slope along each axis is kept."""
    for at in np.argwhere(np.isnan(values)):  # in order, so that what lies before is filled
        guesses = []
        for axis in range(values.ndim):
            if at[axis] >= 2:
                one, two = at.copy(), at.copy()
                one[axis] -= 1
                two[axis] -= 2
                guesses.append(2 * values[tuple(one)] - values[tuple(two)])
        if guesses and not np.isnan(guesses).all():
            values[tuple(at)] = np.nanmean(guesses)


class KernelTables:
    """The tables of one system and engine, read when they are asked for: bf16, seconds of one call on one GPU."""

    def __init__(self, system: str, backend: str) -> None:
        self.folder = _root() / "data" / system
        self.where = f"{system}, {backend}"
        self.backend = backend

    def read(self, family: str, name: str) -> Any:
        """A table as a pandas frame."""
        import pandas  # type: ignore[import-untyped,unused-ignore]  # comes with aiconfigurator-core

        return pandas.read_parquet(_newest(self.folder / family / self.backend) / f"{name}_perf.parquet")

    @cached_property
    def gemm(self) -> tuple[Any, float]:
        """ln(s) of bf16 products over ln(m, n, k), and the widest measured n and k."""
        table = self.read("gemm", "gemm")
        table = table[table["gemm_dtype"] == "bfloat16"]
        points = table[["m", "n", "k"]].to_numpy(np.float64)
        axes = [np.unique(points[:, i]) for i in range(3)]
        values = np.full([len(axis) for axis in axes], np.nan)
        cells = tuple(np.searchsorted(axis, points[:, i]) for i, axis in enumerate(axes))
        values[cells] = np.log(1e-3 * table["latency"].to_numpy(np.float64))
        # Odd rows are measured for few widths; the widest products only with few rows, as memory ends there.
        full = (~np.isnan(values)).mean(axis=(1, 2)) > 0.5
        axes[0], values = axes[0][full], values[full]
        if len(axes[0]) < 2:
            raise ProfileError(f"{self.where}: too few bf16 products")
        _fill(values)
        grid = RegularGridInterpolator(
            [np.log(axis) for axis in axes], values, bounds_error=False, fill_value=None
        )
        return grid, float(axes[1][-1])

    def gemm_s(self, m: Floats, n: float, k: float) -> Floats:
        """Seconds of products of matrices; one that is wider than the widest measured is made of equal parts.

        Args:
            m: rows of the result, float64 of any shape.
            n: columns of the result.
            k: entries summed for each of them.

        Returns:
            Seconds of one product for each m, float64 of its shape.

        Raises:
            ProfileError: the tables lack too many bf16 products.
        """
        grid, widest = self.gemm
        parts = 1
        while n > widest:
            n, parts = n / 2, parts * 2
        points = np.stack([np.log(m), np.full_like(m, np.log(n)), np.full_like(m, np.log(k))], -1)
        result: Floats = parts * np.exp(grid(points))
        return result

    def attention(
        self, name: str, length: str, q: int, kv: int, dim: int
    ) -> Callable[[Floats, Floats], Floats]:
        """Time of one layer's attention as a function of the batch and the length.

        Args:
            name: of the table: "context_attention" or "generation_attention".
            length: column of the table with the length (tokens): "isl" or "step".
            q: query heads of one GPU.
            kv: key heads of one GPU.
            dim: entries of a head.

        Returns:
            A function from sequences and tokens of each, float64 that are broadcast, to seconds.

        Raises:
            ProfileError: the table is missing, or lacks these heads or cells of the grid.
        """
        table = self.read("attention", name)
        chosen = (table["num_heads"] == q) & (table["num_key_value_heads"] == kv)
        for column, value in (("head_dim", dim), ("window_size", 0), ("kv_cache_dtype", "bfloat16")):
            if column in table:  # older tables have heads of 128 and no windows
                chosen &= table[column] == value
        table = table[chosen]
        if table.empty:
            raise ProfileError(f"{self.where}: no {name} with {q} query and {kv} key heads of {dim}")
        table = table.groupby(["batch_size", length], as_index=False)[
            "latency"
        ].min()  # the best of its kernels
        batch, lengths = (np.unique(table[key].to_numpy(np.float64)) for key in ("batch_size", length))
        values = np.full((len(batch), len(lengths)), np.nan)
        cells = np.searchsorted(batch, table["batch_size"]), np.searchsorted(lengths, table[length])
        values[cells] = np.log(1e-3 * table["latency"].to_numpy(np.float64))
        _fill(values)
        if np.isnan(values).any():
            raise ProfileError(f"{self.where}: {name} has a hole")
        grid = RegularGridInterpolator(
            (np.log(batch), np.log(lengths)), values, bounds_error=False, fill_value=None
        )

        def seconds(b: Floats, n: Floats) -> Floats:
            points = np.stack(np.broadcast_arrays(np.log(b), np.log(np.maximum(n, 1.0))), -1)
            result: Floats = np.exp(grid(points))
            return result

        return seconds

    def all_reduce_s(self, elements: Floats, gpus: int) -> Floats:
        """Seconds of an all-reduce of 16-bit numbers by the engine's own kernel."""
        table = self.read("comm", "custom_allreduce")
        table = table[table["num_gpus"] == gpus].groupby("message_size", as_index=False)["latency"].min()
        if table.empty:
            raise ProfileError(f"{self.where}: no all-reduce between {gpus} GPUs")
        size, time = np.log(table["message_size"]), np.log(1e-3 * table["latency"])
        result: Floats = np.exp(np.interp(np.log(elements), size, time))
        return result


def from_aiconfigurator(
    system: str,
    model: str,
    tensor_parallel: int = 1,
    *,
    backend: str = "vllm",
    host_from: str = "h100/llama-3.1-8b",
) -> Profile:
    """A bf16 profile of a model on a GPU that AIConfigurator has tables of.

    Args:
        system: one of `systems()`, such as "h100_sxm".
        model: name of a shape in `llmgym.profiles.models`.
        tensor_parallel: GPUs that share each layer.
        backend: whose kernels: "vllm", "sglang" or "trtllm"; not every system has all.
        host_from: profile whose host time is taken over.

    Returns:
        The profile.

    Raises:
        MissingExtra: `aiconfigurator-core` is not installed.
        UnknownName: no such system, model or engine.
        InvalidArgument: the heads or the vocabulary cannot be shared by so many GPUs.
        ProfileError: the package has no table of what is needed.
    """
    import yaml  # type: ignore[import-untyped,unused-ignore]  # comes with aiconfigurator-core

    choice("system", system, systems())
    shape: ModelShape = MODELS[choice("model", model, MODELS)]
    tp = whole("tensor_parallel", tensor_parallel, 1, 64)
    if shape.kv_heads % tp or shape.vocab % tp:
        raise InvalidArgument(
            f"tensor_parallel={tp}: must divide the {shape.kv_heads} KV heads and the vocabulary"
        )
    engines = [path.name for path in (_root() / "data" / system / "gemm").iterdir()]
    tables = KernelTables(system, choice("backend", backend, engines))
    gpu = yaml.safe_load((_root() / f"{system}.yaml").read_text(encoding="utf-8"))["gpu"]

    tokens = np.array(TOKENS, np.float64)
    layer = sum((tables.gemm_s(tokens, n, k) for _, n, k in shape.gemms(tp)), np.zeros_like(tokens))
    layer += shape.elementwise_bytes_per_token(tp) * tokens / float(gpu["mem_bw"])
    if tp > 1:
        layer += 2 * tables.all_reduce_s(tokens * shape.hidden, tp)
    head = shape.output_head(tp)
    dense = shape.layers * layer + tables.gemm_s(np.minimum(tokens, LOGIT_ROWS), head.n, head.k)

    heads = shape.q_heads // tp, shape.kv_heads // tp, shape.head_dim
    whole_prompt = tables.attention("context_attention", "isl", *heads)
    chunk, context = (np.array(x, np.float64) for x in np.meshgrid(CHUNKS, CONTEXTS, indexing="ij"))
    one = np.ones_like(chunk)
    alone = whole_prompt(one, chunk)
    after = whole_prompt(one, chunk + context) - whole_prompt(one, context)
    prefill = shape.layers * np.maximum.accumulate(
        np.where(context > 0, np.maximum(after, alone), alone), axis=1
    )
    batch, each = (np.array(x, np.float64) for x in np.meshgrid(BATCHES, LENGTHS, indexing="ij"))
    decode = shape.layers * tables.attention("generation_attention", "step", *heads)(batch, each)

    host = load(host_from)
    cost = host.step_cost()
    sequences = np.array([1, 2048])

    def table(shapes: Any, seconds: Any) -> Table:
        rows = np.array(shapes, np.int64)
        blank = np.full(len(rows), np.nan)
        return Table(
            rows, 1e6 * np.asarray(seconds).ravel(), np.zeros(len(rows)), blank, ("bf16",) * len(rows)
        )

    release = version("aiconfigurator-core")
    provenance = Provenance(
        "measured",
        datetime.date.today().isoformat(),
        (
            Source(
                f"NVIDIA AIConfigurator, kernel tables of {backend} (aiconfigurator-core {release})",
                "https://github.com/ai-dynamo/aiconfigurator",
                "Apache-2.0",
                "Copyright (c) 2025-2026 NVIDIA CORPORATION & AFFILIATES",
                "dense work, attention, all-reduce",
            ),
            Source("Model shape", shape.source, "facts", used_for="shapes"),
        ),
        versions={"aiconfigurator-core": release, backend: _newest(tables.folder / "gemm" / backend).name},
        notes=(
            f"Host time is not in the tables: it is that of profile {host_from}.",
            "Elementwise kernels take their bytes over peak bandwidth. A chunk after cached tokens takes what the longer prompt "
            "takes more, never less than the chunk alone.",
        ),
    )
    return Profile(
        f"{system}/{shape.name}{f'-tp{tp}' if tp > 1 else ''}-{backend}",
        system,
        shape.name,
        tp,
        "bf16",
        provenance,
        memory_bytes=int(gpu["mem_capacity"]) * tp,
        weight_bytes=shape.weight_bytes,
        kv_bytes_per_token=shape.kv_bytes_per_token,
        tables={
            "dense": table(tokens[:, None], dense),
            "prefill_attention": table(np.stack([chunk.ravel(), context.ravel()], -1), prefill),
            "decode_attention": table(np.stack([batch.ravel(), (batch * each).ravel()], -1), decode),
            "host": table(sequences[:, None], [host_s(cost, int(n)) for n in sequences]),
        },
    )
