"""Memory stages on an H100 by measured kernels, beside an FPGA by its roofline: one layer of a decode step, or one query.

The kernels are those of the family `memory` of a kernel set (`llmgym.profiles.families`): scores of an index, top-k, gather of the
selected rows, sparse attention, and a BM25 scan of every document, all in plain torch. What they are asked for (keys of an
index, scores, selected tokens) follows from the methods that He et al., ICML 2026 (arXiv 2603.29002) put on an FPGA; the FPGA is
its U55C. Shapes below the smallest measured one take as long as that, those above the largest grow in proportion.
"""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmgym.core.checks import choice, number
from llmgym.envs.memory.devices import U55C
from llmgym.envs.memory.law import APPLY, FPGA, FPGA_W, GPU, RET
from llmgym.envs.memory.published import AGENT_KV_BYTES, SAMPLE_BYTES, blank, totalled
from llmgym.profiles.cost import StepCost, prefill_attention_s, step_time_s
from llmgym.profiles.kernels import Kernels
from llmgym.profiles.named import load

H100_BYTES_PER_S = 2.7e12
"""What a decode kernel of the measured set reads in large batches."""
HIDDEN, KEY, KEY_HEADS, QUERY_HEADS, KEPT_BYTES = 4096, 128, 8, 32, 4096.0
"""Width of the model, of a key, heads, and KV bytes of a token and layer: those of Llama-3.1-8B."""
AGENT_SEGMENT, AGENT_MEMORY, AGENT_WEIGHTS = 5000, 1024, 7.6e9
"""MemAgent: tokens of a segment and of the memory that is written after each (choice); parameters of Qwen2.5-7B."""
AGENT_PROFILE = "h100/qwen2.5-7b"


class Measured(NamedTuple):
    """Curves of a kernel set, by op: (ln of entries, ln of seconds); the shortest elementwise kernel, s; power in decode, W."""

    curves: dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]
    floor_s: float
    power_w: float

    def time_s(self, op: str, entries: float) -> float:
        """Log-log between measured shapes; the smallest one's time below, in proportion to the largest one's above."""
        x, y = self.curves[op]
        at = math.log(entries)
        return math.exp(float(np.interp(at, x, y)) + max(at - float(x[-1]), 0.0))


def measured(kernels: Kernels) -> Measured:
    """What this module needs of a kernel set.

    Raises:
        UnknownName: the set lacks one of the memory operators.
    """
    curves = {}
    for op, variant in (
        ("score", "16 heads of 128"),
        ("top_k", "2048 at most"),
        ("gather", "2048 rows of 4096 bytes at most"),
        ("sparse_attention", "64 pages of 16, 32 heads of 128"),
        ("bm25", "8 terms, documents of 128 words"),
    ):
        rows = kernels.table(op, variant)
        order = np.argsort(rows["entries"])
        curves[op] = np.log(rows["entries"][order]), np.log(1e-6 * rows["latency_us"][order])
    floors = [
        kernels.table("elementwise", variant)["latency_us"].min() for variant in kernels.ops()["elementwise"]
    ]
    watts = kernels.table("power", "llama-3.1-8b layer, decode, 1024 tokens a sequence")["power_w"]
    return Measured(curves, 1e-6 * float(min(floors)), float(np.nanmin(watts)))


def _sparse(cell: Any, m: Measured, name: str, size: float, batch: int) -> None:
    """By keys of the index and scores of a sample, tokens that are selected, and heads that share a key."""
    keys, scores, selected, heads = {
        "dsa": (size, size, 2048.0, 16.0),
        "seer-topk": (KEY_HEADS * size / 64, KEY_HEADS * size / 64, 4096.0, 1.0),
        "lserve": (KEY_HEADS * 2 * size / 16, KEY_HEADS * size / 16, 1024.0, 1.0),
    }[name]
    kept = selected * KEPT_BYTES
    cell["time_s"][GPU] = (
        m.floor_s,
        m.time_s("score", keys * batch),
        m.time_s("top_k", scores * batch),
        m.time_s("gather", size)
        + m.time_s("sparse_attention", size)
        + (batch - 1) * 2 * kept / H100_BYTES_PER_S,
    )
    read, flop = 2.0 * KEY * keys * batch, 2.0 * heads * KEY * keys * batch
    written = 4.0 * scores * batch
    attention = 4.0 * QUERY_HEADS * KEY * selected * batch
    cell["time_s"][FPGA] = (
        U55C.time_s(2.0 * HIDDEN * KEY, 2.0 * HIDDEN * KEY * batch),
        U55C.time_s(read + written, flop),
        U55C.time_s(written, scores * batch) + U55C.separate_s[RET],
        U55C.time_s(kept * batch, attention) + U55C.separate_s[APPLY],
    )
    cell["fused_s"] = U55C.time_s(read, flop + scores * batch)
    sample = SAMPLE_BYTES[name]
    cell["raw_build"], cell["query"] = 2.0 * HIDDEN * batch, sample.query * batch
    cell["memory_down"] = cell["memory_up"] = sample.entry * batch
    cell["score"], cell["index"], cell["raw_apply"] = written, sample.chosen * batch, kept * batch


def _retrieval(cell: Any, m: Measured, name: str, size: float, batch: int) -> None:
    """512 bytes and 6 operations for each of 128 words of a document."""
    read, flop, written = 512.0 * size * batch, 6.0 * 128 * size * batch, 4.0 * size * batch
    cell["time_s"][GPU] = (
        m.floor_s,
        m.time_s("bm25", size * batch),
        m.time_s("top_k", size * batch),
        m.floor_s,
    )
    cell["time_s"][FPGA] = (
        m.floor_s,
        U55C.time_s(read + written, flop),
        U55C.time_s(written, size * batch) + U55C.separate_s[RET],
        m.floor_s + U55C.separate_s[APPLY],
    )
    cell["fused_s"] = U55C.time_s(read, flop + size * batch)
    sample = SAMPLE_BYTES[name]
    cell["raw_build"], cell["query"], cell["score"] = sample.raw * batch, sample.query * batch, written
    cell["index"], cell["raw_apply"] = sample.chosen * batch, sample.selected * batch


@lru_cache(maxsize=1)
def _agent_cost() -> StepCost:
    """Step cost of the model that writes the memory."""
    return load(AGENT_PROFILE).step_cost()


def _agent(cell: Any, m: Measured, name: str, size: float, batch: int) -> None:
    """One segment by the profile of the model: the memory is decoded, then the next segment is read."""
    cost = _agent_cost()
    context = AGENT_SEGMENT + AGENT_MEMORY // 2
    token = step_time_s(cost, 0, 0.0, batch, batch * context, batch, 0)
    prefill = step_time_s(cost, AGENT_SEGMENT, prefill_attention_s(cost, AGENT_SEGMENT, 0), 0, 0, 1, 0)
    cell["time_s"][GPU] = AGENT_MEMORY * token, 0.0, 0.0, batch * prefill
    weights = 2.0 * AGENT_WEIGHTS
    read = weights + batch * context * AGENT_KV_BYTES
    cell["time_s"][FPGA] = (
        AGENT_MEMORY * U55C.time_s(read, weights * batch),
        0.0,
        0.0,
        U55C.time_s(weights, weights * batch * AGENT_SEGMENT),
    )
    cell["raw_build"], cell["index"] = AGENT_KV_BYTES * AGENT_SEGMENT * batch, 4.0 * AGENT_MEMORY * batch


_KINDS: dict[str, Callable[[Any, Measured, str, float, int], None]] = {
    "dsa": _sparse,
    "seer-topk": _sparse,
    "lserve": _sparse,
    "fs-rag": _retrieval,
    "memagent": _agent,
}
MEASURED = tuple(_KINDS)
"""Workloads whose operators were measured."""


def measured_cell(m: Measured, name: str, size: float, batch: int) -> Any:
    """A request on an H100 with measured kernels, beside the U55C by its roofline.

    Args:
        m: see `measured`.
        name: in `MEASURED`.
        size: tokens, or documents.
        batch: samples that run together.

    Returns:
        One record `CELL`: one layer of a decode step; of fs-rag one query, of memagent one segment.

    Raises:
        UnknownName: no such workload, or none whose operators were measured.
        InvalidArgument: a size or batch that is not above zero.
    """
    choice("workload", name, _KINDS)
    cell = blank(name, number("size", size), batch)
    _KINDS[name](cell, m, name, size, batch)
    cell["on_gpu"] = 1
    cell["power_w"][GPU], cell["power_w"][FPGA] = m.power_w, FPGA_W
    return totalled(cell)
