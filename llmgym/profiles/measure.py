"""Measuring a profile on the device at hand: what `llmgym profile` does.

Four families of work make up an engine step, and each is timed by itself: everything of a forward pass but attention by token
count, attention of a prefill chunk by (chunk, context), attention of the decodes by (batch, cached tokens), and copies. Host time
is a property of an engine, not of kernels: it is taken from another profile and said so.

How a case is timed is told in `llmgym.profiles.bench`. The median is kept, the interquartile range beside it. Every finished case
is a line in `rows.csv` at once, so a run that is stopped goes on where it was.

Attention is FlashAttention as shipped in torch (Dao, "FlashAttention-2", ICLR 2024), on a CPU torch's scaled_dot_product_attention.
The grids are those of the cost tables (`llmgym.profiles.tables`): powers of two, and context 0.
"""

import csv
import datetime
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from llmgym.core.checks import number, output_folder, whole
from llmgym.errors import InvalidArgument
from llmgym.profiles.bench import Device
from llmgym.profiles.laws import MAX_SEQUENCES
from llmgym.profiles.models import MODELS, ModelShape
from llmgym.profiles.named import load
from llmgym.profiles.profile import Profile, Provenance, Source
from llmgym.profiles.tables import OPS, Table

SMALL = ModelShape("small", "a toy shape of this package, for smoke runs", 2, 256, 512, 4, 2, 64, 1024)
"""What `quick` measures: seconds, even on a CPU."""

HEAD_ROWS = 256
"""Rows the output head sees at most: only the last token of a sequence needs logits."""

CACHE_BYTES = 12 * 2**30
"""Keys and values of one attention case, at most; beyond lies the far corner of the grid, which may be missing."""


class Case(NamedTuple):
    """One shape of one op; `make(torch)` gives the parts to time, each with how often a forward pass does it."""

    op: str
    shape: tuple[int, ...]
    make: Callable[[], list[tuple[float, Callable[[], Any]]]]


@dataclass(frozen=True)
class Settings:
    """What to measure and how long.

    Attributes:
        model: name of a shape in `llmgym.profiles.models`, or "small".
        tensor_parallel: the shard of one of so many GPUs is measured, without the collectives between them.
        device: a torch device, such as "cuda" or "cpu".
        minutes: time for all cases together, shared evenly; cases end earlier once they have enough repetitions.
        quick: few points of a small model: does it run at all.
        host_from: profile whose host time is taken over.
    """

    model: str = "llama-3.1-8b"
    tensor_parallel: int = 1
    device: str = "cuda"
    minutes: float = 8.0
    quick: bool = False
    host_from: str = "h100/llama-3.1-8b"

    def __post_init__(self) -> None:
        shape = self.shape()
        whole("tensor_parallel", self.tensor_parallel, 1, 64)
        number("minutes", self.minutes)
        if shape.kv_heads % self.tensor_parallel:
            raise InvalidArgument(
                f"tensor_parallel={self.tensor_parallel}: must divide the {shape.kv_heads} KV heads of {shape.name}"
            )

    def shape(self) -> ModelShape:
        """The model that is measured. Raises `InvalidArgument`."""
        known = {"small": SMALL, **MODELS}
        if self.model not in known:
            raise InvalidArgument(f"model={self.model!r}: known {', '.join(known)}")
        return SMALL if self.quick else known[self.model]

    def grid(self) -> dict[str, list[int]]:
        """Values of each variable, tokens or sequences."""
        if self.quick:
            return {
                "tokens": [1, 4, 16, 64],
                "chunk": [16, 64],
                "context": [0, 64, 128],
                "batch": [1, 4],
                "kv": [64, 256],
                "bytes": [2**16, 2**20],
            }
        return {
            "tokens": [2**i for i in range(15)],
            "chunk": [2**i for i in range(4, 14)],
            "context": [0, *(2**i for i in range(9, 17))],
            "batch": [2**i for i in range(10)],
            "kv": [2**i for i in range(6, 18)],
            "bytes": [2**i for i in range(12, 31, 2)],
        }


class _Bench:
    """Tensors and kernels on one device."""

    def __init__(self, settings: Settings) -> None:
        self.device = Device(settings.device)
        self.torch, self.cuda, self.random = self.device.torch, self.device.cuda, self.device.random
        self.shape, self.tp = settings.shape(), settings.tensor_parallel
        self.grid = settings.grid()
        self._weights: dict[str, Any] = {}

    def cases(self) -> Iterator[Case]:
        """Every case, the cheap ones first."""
        for tokens in self.grid["tokens"]:
            yield Case("dense", (tokens,), lambda tokens=tokens: self._dense(tokens))  # type: ignore[misc]
        heads = self.shape.kv_heads // self.tp
        per_token = 4 * heads * self.shape.head_dim
        for chunk in self.grid["chunk"]:
            for context in self.grid["context"]:
                yield Case(
                    "prefill_attention",
                    (chunk, context),
                    lambda c=chunk, p=context: self._attention(1, c, p + c),  # type: ignore[misc]
                )
        for batch in self.grid["batch"]:
            for kv in self.grid["kv"]:
                if batch * kv * per_token <= CACHE_BYTES:
                    yield Case(
                        "decode_attention",
                        (batch, batch * kv),
                        lambda b=batch, n=kv: self._attention(b, 1, n),  # type: ignore[misc]
                    )
        for op in ("copy_on_device", "copy_to_device", "copy_to_host") if self.cuda else ():
            for size in self.grid["bytes"]:
                yield Case(op, (size,), lambda op=op, n=size: self._copy(op, n))  # type: ignore[misc]

    def _prepare(self) -> dict[str, Any]:
        """Weights of one layer and of the output head; a layer is larger than any cache, so one copy is enough."""
        if not self._weights:
            for gemm in (*self.shape.gemms(self.tp), self.shape.output_head(self.tp)):
                self._weights[gemm.name] = self.random(gemm.n, gemm.k, scale=gemm.k**-0.5)
            self._weights["norm"] = self.random(self.shape.hidden)
            self._weights["parts"] = fused(self.torch, self.cuda)
        return self._weights

    def _dense(self, tokens: int) -> list[tuple[float, Callable[[], Any]]]:
        torch, shape = self.torch, self.shape
        linear = torch.nn.functional.linear
        w = self._prepare()
        add_norm, rotary, gate = w["parts"]
        d = shape.head_dim
        q, kv = shape.q_heads // self.tp, shape.kv_heads // self.tp
        x, residual = self.random(tokens, shape.hidden), self.random(tokens, shape.hidden)
        angle = torch.rand(tokens, 1, d // 2, device=self.device.device)
        cos, sin = angle.cos(), angle.sin()
        cache = self.random(tokens, 2 * kv, d)
        slots = torch.randperm(tokens, device=self.device.device)
        attended = self.random(tokens, q * d)  # stands in for the output of attention

        def layer() -> Any:
            normed, added = add_norm(x, residual, w["norm"])
            heads = linear(normed, w["qkv"]).view(tokens, q + 2 * kv, d)
            rotary(heads[:, : q + kv], cos, sin)
            cache.index_copy_(0, slots, heads[:, q:])
            out = linear(attended, w["attention_output"])
            normed, added = add_norm(out, added, w["norm"])
            return linear(gate(linear(normed, w["gate_up"])), w["down"])

        last = x[: min(tokens, HEAD_ROWS)].contiguous()
        return [(float(shape.layers), layer), (1.0, lambda: linear(last, w["output_head"]))]

    def _attention(self, batch: int, queries: int, keys: int) -> list[tuple[float, Callable[[], Any]]]:
        torch, shape = self.torch, self.shape
        q_heads, kv_heads, d = shape.q_heads // self.tp, shape.kv_heads // self.tp, shape.head_dim
        q = self.random(batch, queries, q_heads, d)
        k, v = self.random(batch, keys, kv_heads, d), self.random(batch, keys, kv_heads, d)
        return [(float(shape.layers), lambda: attention(torch, q, k, v))]

    def _copy(self, op: str, size: int) -> list[tuple[float, Callable[[], Any]]]:
        torch = self.torch
        here = torch.empty(size, dtype=torch.int8, device=self.device.device)
        if op == "copy_on_device":
            there = torch.empty_like(here)
        else:
            there = torch.empty(size, dtype=torch.int8, pin_memory=True)
        target, source = (there, here) if op == "copy_to_host" else (here, there)
        return [(1.0, lambda: target.copy_(source, non_blocking=True))]


def fused(torch: Any, compiled: bool) -> tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]:
    """Norm with residual, rotary embedding and gated activation; `compiled` makes one kernel of each."""

    def add_norm(x: Any, residual: Any, weight: Any) -> tuple[Any, Any]:
        residual = x + residual
        wide = residual.float()
        scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5)
        return (wide * scale).to(x.dtype) * weight, residual

    def rotary(x: Any, cos: Any, sin: Any) -> Any:
        low, high = x.float().chunk(2, dim=-1)
        return torch.cat([low * cos - high * sin, high * cos + low * sin], dim=-1).to(x.dtype)

    def gate(x: Any) -> Any:
        left, right = x.chunk(2, dim=-1)
        return torch.nn.functional.silu(left) * right

    parts = (add_norm, rotary, gate)
    if compiled:
        parts = tuple(torch.compile(part, dynamic=True) for part in parts)  # type: ignore[assignment]
    return parts


def attention(torch: Any, q: Any, k: Any, v: Any) -> Any:
    """Attention of the last queries of a sequence to all its keys, causal; heads in groups.

    Args:
        torch: the module.
        q: [batch, queries, query heads, head_dim].
        k: [batch, keys, key heads, head_dim]; keys >= queries.
        v: [batch, keys, key heads, head_dim].

    Returns:
        [batch, queries, query heads, head_dim].
    """
    queries, keys = q.shape[1], k.shape[1]
    if (
        q.is_cuda
    ):  # aligns the causal mask at the last key, and splits long caches among blocks for single queries
        return torch.ops.aten._flash_attention_forward(
            q, k, v, None, None, queries, keys, 0.0, queries > 1, False
        )[0]
    mask = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries) if queries > 1 else None
    out = torch.nn.functional.scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask, enable_gqa=True
    )
    return out.transpose(1, 2)


def measure(
    settings: Settings, out: Path, *, progress: Callable[[int, int, str], None] | None = None
) -> Profile:
    """Measure what is not in `out/rows.csv` yet, and write the profile into `out`.

    Args:
        settings: what to measure.
        out: folder of the profile.
        progress: called before every case with its number, the number of cases, and what it is.

    Returns:
        The profile, as it lies in `out`.

    Raises:
        InvalidArgument: the device cannot be used, `out` cannot be written to, or it holds measurements of something else.
        MissingExtra: torch is not installed.
    """
    output_folder("out", out)
    load(settings.host_from)  # a name that is not known is told before anything is measured
    bench = _Bench(settings)
    cases = list(bench.cases())
    about = f"{settings.shape().name}, tp {settings.tensor_parallel}, {bench.device.title}"
    rows = _read_rows(out, about)
    with _open_rows(out, about) as file:
        writer = csv.writer(file, lineterminator="\n")
        for at, case in enumerate(cases):
            key = (case.op, case.shape)
            if key in rows:
                continue
            if progress:
                progress(at, len(cases), f"{case.op} {'x'.join(map(str, case.shape))}")
            parts = case.make()
            share = settings.minutes * 60 / len(cases) / len(parts) * 0.7
            latency = spread = 0.0
            for times, call in parts:
                taken = bench.device.time_us(call, share)
                low, median, high = np.quantile(taken, [0.25, 0.5, 0.75])
                latency += times * float(median)
                spread += times * float(high - low)
            rows[key] = (latency, spread)
            writer.writerow([case.op, *case.shape, *[""] * (2 - len(case.shape)), latency, spread])
            file.flush()
            os.fsync(file.fileno())
            del parts
    return _profile(settings, bench, rows, out)


def _read_rows(out: Path, about: str) -> dict[tuple[str, tuple[int, ...]], tuple[float, float]]:
    path = out / "rows.csv"
    if not path.is_file():
        return {}
    data = path.read_bytes()
    whole_lines = data[: data.rfind(b"\n") + 1]
    if len(whole_lines) < len(data):  # killed while it wrote: the last line is measured again
        path.write_bytes(whole_lines)
    lines = whole_lines.decode().splitlines()
    if not lines or lines[0] != f"# {about}":
        raise InvalidArgument(
            f"{path} holds measurements of {lines[0][2:] if lines else 'nothing'!r}, not of {about!r}: "
            "name another folder"
        )
    rows = {}
    for op, first, second, latency, spread in csv.reader(lines[1:]):
        rows[op, tuple(int(x) for x in (first, second) if x)] = (float(latency), float(spread))
    return rows


def _open_rows(out: Path, about: str) -> Any:
    out.mkdir(parents=True, exist_ok=True)
    path = out / "rows.csv"
    new = not path.is_file()
    file = path.open("a", newline="", encoding="utf-8")
    if new:
        file.write(f"# {about}\n")
    return file


def _profile(
    settings: Settings,
    bench: _Bench,
    rows: dict[tuple[str, tuple[int, ...]], tuple[float, float]],
    out: Path,
) -> Profile:
    torch, shape, tp = bench.torch, settings.shape(), settings.tensor_parallel
    host = load(settings.host_from)
    from llmgym.profiles.cost import host_s

    cost = host.step_cost()
    for sequences in (1, MAX_SEQUENCES):
        rows["host", (sequences,)] = (1e6 * host_s(cost, sequences), 0.0)
    tables, errors = {}, {}
    for op in OPS:
        measured = sorted((key[1], value) for key, value in rows.items() if key[0] == op)
        if not measured:
            continue
        latency, spread = (np.array([value[i] for _, value in measured]) for i in (0, 1))
        shapes = np.array([key for key, _ in measured], np.int64)
        blank = np.full(len(measured), math.nan)
        tables[op] = Table(shapes, latency, spread, blank, ("bf16",) * len(measured))
        relative = 100 * spread / latency
        errors[op] = {
            "iqr_pct_median": round(float(np.median(relative)), 2),
            "iqr_pct_p90": round(float(np.quantile(relative, 0.9)), 2),
            "n": len(measured),
        }
    errors["host"] = {"n": 0}
    versions, gpu = bench.device.versions(), bench.device.gpu
    memory = 0
    if bench.cuda:
        memory = int(torch.cuda.get_device_properties(bench.device.device).total_memory) * tp
    profile = Profile(
        name=f"{gpu}/{shape.name}{f'-tp{tp}' if tp > 1 else ''}-measured",
        gpu=gpu,
        model=shape.name,
        tensor_parallel=tp,
        dtype="bf16",
        provenance=Provenance(
            "measured",
            datetime.date.today().isoformat(),
            (
                Source("llmgym profile", "-", "MIT", used_for="dense work, attention, copies"),
                Source("Model shape", shape.source, "facts", used_for="shapes"),
                *(
                    Source(s.title, s.url, s.licence, s.attribution, "host time only")
                    for s in host.provenance.sources
                    if "host" in s.used_for
                ),
            ),
            errors,
            versions,
            (
                f"Host time is not measured here: it is that of profile {settings.host_from}.",
                "Medians of repetitions on random data with the second-level cache flushed; one layer, times the number of "
                "layers, and the output head on at most 256 rows.",
                "Attention: FlashAttention as shipped in torch, one contiguous cache a sequence, not paged."
                if bench.cuda
                else "Attention: torch's scaled_dot_product_attention on the CPU.",
                *(("Collectives between the shards are not included.",) if tp > 1 else ()),
            ),
        ),
        memory_bytes=memory,
        weight_bytes=shape.weight_bytes,
        kv_bytes_per_token=shape.kv_bytes_per_token,
        tables=tables,
    )
    profile.save(out)
    return load(out)
