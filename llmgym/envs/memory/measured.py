"""Memory stages on an H100 by measured kernels, beside an FPGA by its roofline: one layer of a decode step, or one query.

The kernels are those of the family `memory` of a kernel set (`llmgym.profiles.families`): scores of an index, top-k, gather of the
selected rows, sparse attention, and a BM25 scan of every document, all in plain torch. Their shapes (keys of an index, scores,
selected tokens) follow from the methods that He et al., ICML 2026 (arXiv 2603.29002) put on an FPGA; the FPGA is the U55C of that
paper. A shape below the smallest measured one takes as long as that one; above the largest measured one, time grows in proportion.
"""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmgym.core.checks import choice, number
from llmgym.envs.memory.devices import U55C
from llmgym.envs.memory.law import APPLY, FPGA, FPGA_W, GPU, RET
from llmgym.envs.memory.placement import Cell
from llmgym.envs.memory.published import AGENT_KV_BYTES, SAMPLE_BYTES, blank, totalled
from llmgym.profiles.cost import StepCost, prefill_attention_s, step_time_s
from llmgym.profiles.kernels import Kernels
from llmgym.profiles.named import load

H100_BYTES_PER_S = 2.7e12
"""Bandwidth that a decode kernel of the measured set reaches in large batches, bytes per second."""
HIDDEN, KEY, KEY_HEADS, QUERY_HEADS, KEPT_BYTES = 4096, 128, 8, 32, 4096.0
"""Llama-3.1-8B: width of the model and of a key, heads of keys and of queries, and KV bytes of a token in one layer."""
DOCUMENT_BYTES, DOCUMENT_FLOP = 512.0, 6.0 * 128
"""BM25: a document has 128 words of 4 bytes, and each word takes 6 operations."""
AGENT_SEGMENT, AGENT_MEMORY, AGENT_WEIGHTS = 5000, 1024, 7.6e9
"""MemAgent: tokens of a segment and of the memory that is written after each (choice); parameters of Qwen2.5-7B."""
AGENT_PROFILE = "h100/qwen2.5-7b"


class Measured(NamedTuple):
    """What a kernel set says of an H100.

    Attributes:
        curves: ln of the entries of a shape and ln of its seconds, by operator, float64 [shapes] each, rising in the entries.
        floor_s: time of the shortest elementwise kernel, seconds.
        power_w: power of the GPU while it decodes, watts.
    """

    curves: dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]
    floor_s: float
    power_w: float

    def time_s(self, op: str, entries: float) -> float:
        """Time of an operator on a number of entries, seconds.

        Time is linear between measured shapes, both in logarithms. Below the smallest shape it is that of the smallest; above
        the largest it grows in proportion.
        """
        x, y = self.curves[op]
        wanted = math.log(entries)
        return math.exp(float(np.interp(wanted, x, y)) + max(wanted - float(x[-1]), 0.0))


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


def _sparse(cell: Cell, m: Measured, name: str, size: float, batch: int) -> None:
    """Fill in the costs of sparse attention, from keys and scores of a sample, selected tokens, and heads that share a key."""
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


def _retrieval(cell: Cell, m: Measured, name: str, size: float, batch: int) -> None:
    """Fill in the costs of a scan of all documents."""
    read, flop, written = DOCUMENT_BYTES * size * batch, DOCUMENT_FLOP * size * batch, 4.0 * size * batch
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
    """Step cost of the model with which MemAgent writes its memory."""
    return load(AGENT_PROFILE).step_cost()


def _agent(cell: Cell, m: Measured, name: str, size: float, batch: int) -> None:
    """Fill in the costs of one segment of MemAgent: the memory is decoded, then the next segment is read."""
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


_WORKLOADS: dict[str, Callable[[Cell, Measured, str, float, int], None]] = {
    "dsa": _sparse,
    "seer-topk": _sparse,
    "lserve": _sparse,
    "fs-rag": _retrieval,
    "memagent": _agent,
}
MEASURED = tuple(_WORKLOADS)
"""Workloads whose operators were measured."""


def measured_cell(m: Measured, name: str, size: float, batch: int) -> Cell:
    """A request on an H100 with measured kernels, beside the U55C by its roofline.

    Args:
        m: what the kernel set says, from `measured`.
        name: one of `MEASURED`.
        size: entries of the memory, tokens or documents.
        batch: samples that run together.

    Returns:
        The cost of one layer of a decode step; for fs-rag of one query, for memagent of one segment.

    Raises:
        UnknownName: no such workload, or none whose operators were measured.
        InvalidArgument: a size or batch that is not above zero.
    """
    choice("workload", name, _WORKLOADS)
    cell = blank(name, number("size", size), batch)
    _WORKLOADS[name](cell, m, name, size, batch)
    cell["on_gpu"] = 1
    cell["power_w"][GPU], cell["power_w"][FPGA] = m.power_w, FPGA_W
    return totalled(cell)
