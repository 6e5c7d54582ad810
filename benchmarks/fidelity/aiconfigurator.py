"""Kernel tables of NVIDIA AIConfigurator (https://github.com/ai-dynamo/aiconfigurator; aiconfigurator-core 0.12.0, Apache-2.0).

Times of one call on one GPU, interpolated log-log between measured shapes. The tables have matrix products [m, k] x [k, n] by m, n,
k and number format; attention of whole prompts by (batch, prompt) and of decodes by (batch, cached tokens), by heads;
all-reduces by elements.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from scipy.interpolate import RegularGridInterpolator

from fidelity.kernels import columns, rows_of
from llmgym.errors import InvalidArgument
from llmgym.profiles.models import MODELS, ModelShape
from llmgym.profiles.profile import Profile, Provenance, Source
from llmgym.profiles.tables import Table

SOURCE = Source(
    "NVIDIA AIConfigurator: measured kernel and collective tables (package aiconfigurator-core 0.12.0)",
    "https://github.com/ai-dynamo/aiconfigurator",
    "Apache-2.0",
    "Copyright (c) 2025-2026 NVIDIA CORPORATION & AFFILIATES",
)
HOST_S = 0.85e-3
"""Host time of a step: the default host law of `h100/llama-3.1-8b`."""

SHAPES = {
    "meta-llama/Llama-3.1-8B-Instruct": MODELS["llama-3.1-8b"],
    "nvidia/Llama-3.1-8B-Instruct-FP8": MODELS["llama-3.1-8b"],
    "meta-llama/Llama-3.1-70B": replace(MODELS["llama-2-70b"], name="llama-3.1-70b", vocab=128_256),
    "Qwen/Qwen3-32B": ModelShape(
        "qwen3-32b",
        "https://huggingface.co/Qwen/Qwen3-32B/blob/main/config.json",
        layers=64,
        hidden=5_120,
        intermediate=25_600,
        q_heads=64,
        kv_heads=8,
        head_dim=128,
        vocab=151_936,
    ),
}
"""Dense models that were measured as whole servers; shapes from their public `config.json`."""


@dataclass(eq=False)
class Kernels:
    """Tables of one system.

    Attributes:
        folder: the tables.
        system: its folder, such as "h100_sxm".
        bandwidth_bytes_per_s: peak of its memory.
        memory_bytes: its memory.
    """

    folder: Path
    system: str
    bandwidth_bytes_per_s: float
    memory_bytes: int
    _grids: dict[Any, Any] = field(default_factory=dict, repr=False)

    def _grid(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self._grids:
            self._grids[key] = make()
        return self._grids[key]

    @cached_property
    def _rows(self) -> dict[str, list[dict[str, str]]]:
        names = ("gemm", "context_attention", "generation_attention", "nccl", "custom_allreduce")
        return {name: rows_of(self.folder / self.system / f"{name}.csv.gz") for name in names}

    def gemm_s(self, m: float, n: float, k: float, dtype: str) -> float:
        """Seconds of one product; n or k beyond the widest measured one is made of equal parts."""
        grid, widest = self._grid(("gemm", dtype), lambda: self._gemm(dtype))
        parts = 1
        while n > widest:
            n, parts = n / 2, parts * 2
        while k > widest:
            k, parts = k / 2, parts * 2
        return parts * float(np.exp(grid(np.log([m, n, k]))[0]))

    def _gemm(self, dtype: str) -> tuple[Any, float]:
        rows = [row for row in self._rows["gemm"] if row["gemm_dtype"] == dtype]
        if not rows:
            raise InvalidArgument(f"dtype={dtype!r}: {self.system} has no such products")
        points = np.array([[float(row[key]) for key in ("m", "n", "k", "latency_ms")] for row in rows])
        axes = [np.unique(points[:, i]) for i in range(3)]
        values = np.full([len(axis) for axis in axes], np.nan)
        values[tuple(np.searchsorted(axis, points[:, i]) for i, axis in enumerate(axes))] = np.log(
            1e-3 * points[:, 3]
        )
        full = ~np.isnan(values).any(axis=(1, 2))
        axes[0], values = axes[0][full], values[full]
        logs = [np.log(axis) for axis in axes]
        return RegularGridInterpolator(logs, values, bounds_error=False, fill_value=None), float(axes[1][-1])

    def _attention(self, name: str, axis: str, q: int, kv: int, dtype: str) -> Any:
        rows = [
            row
            for row in self._rows[name]
            if (row["num_heads"], row["num_key_value_heads"], row["kv_cache_dtype"])
            == (str(q), str(kv), dtype)
        ]
        if not rows:
            raise InvalidArgument(f"heads {q}/{kv} {dtype}: {self.system} has no such attention")
        points = np.array([[float(row[key]) for key in ("batch_size", axis, "latency_ms")] for row in rows])
        batch, length = np.unique(points[:, 0]), np.unique(points[:, 1])
        values = np.full((len(batch), len(length)), np.nan)
        values[np.searchsorted(batch, points[:, 0]), np.searchsorted(length, points[:, 1])] = np.log(
            1e-3 * points[:, 2]
        )
        for i in range(1, len(batch)):  # memory ends in the far corner: keep the slope along the other axis
            for j in range(1, len(length)):
                if np.isnan(values[i, j]):
                    values[i, j] = values[i - 1, j] + values[i, j - 1] - values[i - 1, j - 1]
        return RegularGridInterpolator(
            (np.log(batch), np.log(length)), values, bounds_error=False, fill_value=None
        )

    def decode_s(self, batch: float, kv_tokens: float, q: int, kv: int, dtype: str) -> float:
        """Attention of a layer for `batch` decodes with `kv_tokens` cached tokens each, s."""
        grid = self._grid(
            ("decode", q, kv, dtype), lambda: self._attention("generation_attention", "step", q, kv, dtype)
        )
        return float(np.exp(grid(np.log([batch, max(kv_tokens, 1)]))[0]))

    def prefill_s(self, chunk: float, context: float, q: int, kv: int, dtype: str) -> float:
        """Attention of a layer for a chunk after `context` cached tokens: whole prompt less its first part, s.

        Never less than a prompt of the chunk alone.
        """
        grid = self._grid(
            ("prefill", q, kv, dtype), lambda: self._attention("context_attention", "isl", q, kv, dtype)
        )

        def whole(tokens: float) -> float:
            return float(np.exp(grid(np.log([1, tokens]))[0]))

        return whole(chunk) if context <= 0 else max(whole(chunk + context) - whole(context), whole(chunk))

    def all_reduce_s(self, elements: float, gpus: int) -> float:
        """One all-reduce of 16-bit numbers, the faster of the engine's own kernel and NCCL, s."""
        curves = self._grid(("all_reduce", gpus), lambda: self._all_reduce(gpus))
        return min(float(np.exp(np.interp(np.log(elements), *curve))) for curve in curves)

    def _all_reduce(self, gpus: int) -> list[tuple[Any, Any]]:
        own = [row for row in self._rows["custom_allreduce"] if row["kernel_source"] == "vLLM_custom_graph"]
        nccl = [
            row
            for row in self._rows["nccl"]
            if row["op_name"] == "all_reduce" and row["nccl_dtype"] == "half"
        ]
        curves = []
        for rows in (own, nccl):
            points = sorted(
                (float(row["message_size"]), float(row["latency_ms"]))
                for row in rows
                if row["num_gpus"] == str(gpus)
            )
            if points:
                size, time = np.array(points).T
                curves.append((np.log(size), np.log(1e-3 * time)))
        if not curves:
            raise InvalidArgument(f"gpus={gpus}: {self.system} has no such all-reduce")
        return curves


def load_kernels(data: Path, system: str) -> Kernels:
    """Tables of one system below the folder `aiconfigurator`."""
    specs = {row["system"]: row for row in rows_of(data / "aiconfigurator" / "system_specs.csv")}
    if system not in specs:
        raise InvalidArgument(f"system={system!r}: expected one of {', '.join(specs)}")
    spec = specs[system]
    return Kernels(data / "aiconfigurator", system, float(spec["mem_bw_Bps"]), int(spec["mem_capacity_B"]))


@dataclass(frozen=True)
class Server:
    """A dense model on a tensor-parallel group of GPUs.

    Attributes:
        kernels: tables of its GPU.
        shape: the model.
        gpus: of the group.
        gemm: number format of products: "bfloat16", "fp8" or "fp8_block".
        kv: number format of the cache: "bf16" or "fp8".
        host_s: what a step adds, s.
    """

    kernels: Kernels
    shape: ModelShape
    gpus: int = 1
    gemm: str = "bfloat16"
    kv: str = "bf16"
    host_s: float = HOST_S

    @property
    def heads(self) -> tuple[int, int]:
        """Query and key-value heads on one GPU."""
        return self.shape.q_heads // self.gpus, max(self.shape.kv_heads // self.gpus, 1)

    def dense_s(self, tokens: float) -> float:
        """Everything but attention and the output head for `tokens` tokens, s."""
        shape, kernels = self.shape, self.kernels
        layer = sum(kernels.gemm_s(tokens, n, k, self.gemm) for _, n, k in shape.gemms(self.gpus))
        layer += shape.elementwise_bytes_per_token(self.gpus) * tokens / kernels.bandwidth_bytes_per_s
        if self.gpus > 1:
            layer += 2 * kernels.all_reduce_s(tokens * shape.hidden, self.gpus)
        return layer * shape.layers

    def head_s(self, sequences: float) -> float:
        """The output head for `sequences` rows, s; 16-bit in all checkpoints."""
        _, n, k = self.shape.output_head(self.gpus)
        return self.kernels.gemm_s(sequences, n, k, "bfloat16")

    def decode_attention_s(self, batch: float, kv_tokens: float) -> float:
        """Attention of all layers for `batch` decodes with `kv_tokens` cached tokens each, s."""
        return self.shape.layers * self.kernels.decode_s(batch, kv_tokens, *self.heads, self.kv)

    def prefill_attention_s(self, chunk: float, context: float) -> float:
        """Attention of all layers for one prefill chunk, s."""
        return self.shape.layers * self.kernels.prefill_s(chunk, context, *self.heads, self.kv)

    def profile(self) -> Profile:
        """The same as a profile that the compiled engine reads."""
        tokens = np.array(
            [*range(1, 18), *(2**i for i in range(5, 15)), *(2**i + 2 ** (i - 1) for i in range(5, 14))]
        )
        tokens = np.unique(
            np.concatenate([tokens, [80, 112, 160, 224, 257, 513, 769, 1025, 1280, 1792, 2049, 2560, 3584]])
        )
        chunk = 2 ** np.arange(0, 15)
        context = np.concatenate([[0], 2 ** np.arange(6, 15)])
        batch, each = 2 ** np.arange(0, 11), 2 ** np.arange(4, 17)
        sequences = 2 ** np.arange(0, 12)
        shapes = {
            "dense": tokens[:, None],
            "prefill_attention": np.array([(c, k) for c in chunk for k in context]),
            "decode_attention": np.array([(b, b * m) for b in batch for m in each]),
            "host": sequences[:, None],
        }
        seconds = {
            "dense": [self.dense_s(t) for t in tokens],
            "prefill_attention": [self.prefill_attention_s(c, k) for c in chunk for k in context],
            "decode_attention": [self.decode_attention_s(b, m) for b in batch for m in each],
            "host": [self.head_s(s) + self.host_s for s in sequences],
        }
        tables = {
            op: Table(
                shape.astype(np.int64),
                1e6 * np.array(seconds[op]),
                np.zeros(len(shape)),
                np.full(len(shape), np.nan),
                (self.gemm,) * len(shape),
            )
            for op, shape in shapes.items()
        }
        shape = self.shape
        return Profile(
            f"{self.kernels.system}/{shape.name}-tp{self.gpus}",
            self.kernels.system,
            shape.name,
            self.gpus,
            self.gemm,
            Provenance("measured", "2026-08-21", (SOURCE,)),
            memory_bytes=self.kernels.memory_bytes * self.gpus,
            weight_bytes=shape.weight_bytes,
            kv_bytes_per_token=shape.kv_bytes_per_token,
            tables=tables,
        )


def measured_servers(data: Path) -> list[dict[str, str]]:
    """Rows of whole dense servers in aggregated mode, 16-bit or fp8, on systems that have tables."""
    found = []
    for row in rows_of(data / "aiconfigurator" / "e2e_silicon_sample.csv.gz"):
        dense = row["model_path"] in SHAPES and row["mode"] == "agg"
        numbers = row["gemm_quant_mode"] in ("", "fp8", "fp8_block") and row["precision"] in (
            "",
            "bf16",
            "fp8",
        )
        known = (data / "aiconfigurator" / row["system"] / "gemm.csv.gz").is_file()
        if dense and numbers and known and row["pp_size"] == "1":
            found.append(row)
    return found


__all__ = ["SHAPES", "Kernels", "Server", "columns", "load_kernels", "measured_servers"]
