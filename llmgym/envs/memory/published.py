"""What the stages of a memory pipeline cost on the published pair of devices, an MI210 with a U55C.

The figures are those of He et al., ICML 2026 (arXiv 2603.29002); their laws are in `llmgym.envs.memory.law`. Stages that move take
their published share of the time. It is split between relevancy and retrieval as in the published placement instance of paged
attention, and the other stages are as much slower on the FPGA as in that instance. The fused kernel takes what the published
speed-up leaves after copies, so that the paper's mapping takes what the law says. `paged` is that instance itself, scaled with
pages and batch; `paged-decode` is that instance without the building of the index.
"""

from typing import NamedTuple

import numpy as np

from llmgym.core.checks import choice, number, whole
from llmgym.envs.memory.devices import U55C, pcie
from llmgym.envs.memory.law import (
    AGENT,
    APPLY,
    BANDS,
    COMP,
    FPGA,
    FPGA_W,
    GPU,
    GPU_W,
    MEAN_POWER_W,
    POWER_RATIO,
    PREP,
    RET,
    SPARSE,
    TOKENS_FITTING,
    TRAINING,
    WORKLOADS,
    Workload,
    moving_odds,
    moving_speedup,
    odds_of,
    paper_devices,
    rest_growth,
)
from llmgym.envs.memory.placement import FUSED, Cell, place
from llmgym.errors import InvalidArgument

NAMES = (*WORKLOADS, "paged", "paged-decode")
"""Workloads in the order of an observation: those of the paper, its placement instance, the same without building the index."""

PAGES, PAGE_TOKENS = 8192, 16
"""Pages of the published placement instance, and tokens of a page (choice: not published)."""
PAGED_GPU_US = (250.0, 82.5, 36.2, 7.6)
PAGED_FPGA_US = (1108.579, 10.940, 10.125, 28.090)
"""Published times of the four stages of that instance on each device, microseconds."""
PAGED_FLOP = (1667260419.0, 2097152.0, 1.0, 1575554.0)
"""Operations of the four stages of that instance."""
PAGED_RAW, PAGED_MEMORY, PAGED_QUERY, PAGED_SCORE = 201326592.0, 4194304.0, 512.0, 32768.0
PAGED_INDEX, PAGED_SELECTED, PAGED_TARGET = 256.0, 3145728.0, 3072.0
"""What the stages of that instance read and write, bytes."""
PAGED_BYTES = (
    PAGED_RAW + PAGED_MEMORY,
    PAGED_MEMORY + PAGED_QUERY + PAGED_SCORE,
    PAGED_SCORE + PAGED_INDEX,
    PAGED_SELECTED + PAGED_INDEX + PAGED_TARGET,
)
PAGED_FUSED_US = 1e6 * U55C.time_s(
    PAGED_MEMORY + PAGED_QUERY + PAGED_INDEX, PAGED_FLOP[COMP] + PAGED_FLOP[RET]
)

PREP_OF_REST = 0.1
"""Share of prep in the time of the stages that stay, the rest is apply (choice: not published)."""
TRAINING_SPLIT = (0.5, 0.05, 0.0, 0.45)
"""Backward pass, loss and forward pass in test-time training (choice)."""

AGENT_TOKENS, AGENT_KV_BYTES, AGENT_ID_BYTES = 131_072, 57_344.0, 4 * 26 * 1024.0
"""MemAgent: tokens of a request (choice), KV bytes of a token of Qwen2.5-7B, ids of 1,024 memory tokens in each of 26 segments."""


class SampleBytes(NamedTuple):
    """What one sample moves if a stage leaves the GPU, bytes.

    The bytes follow from the shapes of the models: heads of 128 numbers of 16 bit, scores of 4 bytes, numbers of blocks of 2
    bytes. The tokens of a block share its key.

    Attributes:
        raw: raw memory that prep reads, bytes.
        entry: what is new in the index, bytes.
        query: the query, bytes.
        score: scores, bytes for each token or document.
        chosen: numbers of the entries that were retrieved, bytes.
        selected: raw memory that apply reads, bytes.
    """

    raw: float
    entry: float
    query: float
    score: float
    chosen: float
    selected: float


_BLOCK = SampleBytes(8192.0, 32.0, 2048.0, 0.5, 1024.0, 64 * 64 * 4096.0)
_LATENT = SampleBytes(14336.0, 256.0, 4096.0, 4.0, 8192.0, 2048 * 1152.0)
_DOCUMENTS = SampleBytes(256.0, 0.0, 256.0, 4.0, 256.0, 64 * 128 * 4.0)
SAMPLE_BYTES: dict[str, SampleBytes] = {
    "dsa": _LATENT,
    "seer-topk": _BLOCK,
    "seer-threshold": _BLOCK,
    "lserve": SampleBytes(8192.0, 256.0, 8192.0, 2.0, 1024.0, 64 * 16 * 4096.0),
    "triattention": _LATENT,
    "dragin": _DOCUMENTS,
    "flare": _DOCUMENTS,
    "fs-rag": _DOCUMENTS,
    "two-stage-rag": _DOCUMENTS._replace(query=3072.0),
    "memagent": SampleBytes(AGENT_KV_BYTES * AGENT_TOKENS, 0.0, 0.0, 0.0, AGENT_ID_BYTES, 0.0),
    "memory-as-context": SampleBytes(1024 * 8192.0, 8192.0, 8192.0, 0.001, 8 * 8192.0, 0.0),
    "ttt": SampleBytes(1024 * 8192.0, 64e6, 1024 * 8192.0, 0.0, 4.0, 1024 * 8192.0),
}


def blank(name: str, size: float, batch: int) -> Cell:
    """A request without its costs.

    Args:
        name: one of `NAMES`.
        size: entries of the memory, tokens or documents.
        batch: samples that run together.

    Returns:
        The record of the request; its costs are not filled in.

    Raises:
        InvalidArgument: a batch that is no whole number from 1 to 1,024.
    """
    family, fitting, empty = SPARSE, TOKENS_FITTING, 0
    if name in WORKLOADS:
        w = WORKLOADS[name]
        family, fitting = w.family, w.fitting
        empty = sum(1 << stage for stage in range(4) if w.empty[stage])
    elif name == "paged-decode":
        empty = 1 << PREP
    return Cell.packed(
        workload=NAMES.index(name),
        size=size,
        batch=whole("batch", batch, 1, 1024),
        empty=empty,
        fits=size <= fitting,
        intensity=[band[1] if band else 0.0 for band in BANDS[family]],
    )[0]


def totalled(cell: Cell) -> Cell:
    """Set the time of empty stages to 0, and add up time and energy on the GPU alone; returns `cell`."""
    for stage in range(4):
        if (int(cell["empty"]) >> stage) & 1:
            cell["time_s"][:, stage] = 0.0
    cell["gpu_s"] = cell["time_s"][GPU].sum()
    cell["gpu_j"] = (cell["time_s"][GPU] * cell["power_w"][GPU]).sum()
    return cell


def published_cell(name: str, size: float, batch: int) -> Cell:
    """A request on the published pair.

    Args:
        name: one of `NAMES`.
        size: entries of the memory, tokens or documents.
        batch: samples that run together.

    Returns:
        The record of the request with its costs.

    Raises:
        UnknownName: no such workload.
        InvalidArgument: a size or batch that is not above zero, or where copies alone exceed what the law allows.
    """
    choice("workload", name, NAMES)
    cell = blank(name, number("size", size), batch)
    if name in WORKLOADS:
        _calibrate(cell, WORKLOADS[name])
    else:
        _scale_paged(cell)
    return totalled(cell)


def _scale_paged(cell: Cell) -> None:
    """Fill in the published instance: its roofline scales, and the fixed cost beyond the roofline stays."""
    batch = float(cell["batch"])
    pages = batch * float(cell["size"]) / PAGE_TOKENS / PAGES
    times = (pages, pages, pages, batch)
    for stage in range(4):
        fixed = 1e-6 * PAGED_FPGA_US[stage] - U55C.time_s(PAGED_BYTES[stage], PAGED_FLOP[stage])
        scaled = U55C.time_s(PAGED_BYTES[stage] * times[stage], PAGED_FLOP[stage] * times[stage])
        cell["time_s"][GPU, stage] = 1e-6 * PAGED_GPU_US[stage] * times[stage]
        cell["time_s"][FPGA, stage] = fixed + scaled
    cell["fused_s"] = 1e-6 * PAGED_FUSED_US * pages
    cell["power_w"][GPU], cell["power_w"][FPGA] = GPU_W, FPGA_W
    cell["memory_up"], cell["score"] = PAGED_MEMORY * pages, PAGED_SCORE * pages
    cell["index"], cell["raw_apply"] = PAGED_INDEX * batch, PAGED_SELECTED * batch


def _calibrate(cell: Cell, w: Workload) -> None:
    """Fill in the costs of a workload of the paper, by its laws."""
    batch = int(cell["batch"])
    rest = w.gpu_s * (1.0 - w.share) * rest_growth(w, batch)
    moving = rest * moving_odds(w, float(cell["size"]), batch)
    relevancy = PAGED_GPU_US[COMP] / (PAGED_GPU_US[COMP] + PAGED_GPU_US[RET])
    split = (
        PREP_OF_REST * rest,
        relevancy * moving,
        (1.0 - relevancy) * moving,
        (1.0 - PREP_OF_REST) * rest,
    )
    if w.family == AGENT:
        split = (moving, 0.0, 0.0, rest)
    elif w.family == TRAINING:
        a, b, c, d = TRAINING_SPLIT
        split = (a * rest, b * rest, c * rest, d * rest)
    cell["time_s"][GPU] = split
    slow = [PAGED_FPGA_US[PREP] / PAGED_GPU_US[PREP]] * 3 + [PAGED_FPGA_US[APPLY] / PAGED_GPU_US[APPLY]]
    cell["time_s"][FPGA] = [split[stage] * slow[stage] for stage in range(4)]
    cell["on_gpu"] = 1
    sample = SAMPLE_BYTES[w.name]
    for name, value in (
        ("raw_build", sample.raw),
        ("memory_down", sample.entry),
        ("memory_up", sample.entry),
        ("query", sample.query),
        ("score", sample.score * float(cell["size"])),
        ("index", sample.chosen),
        ("raw_apply", sample.selected),
    ):
        cell[name] = value * batch
    _power(cell, w)
    if w.family != TRAINING:
        _move(cell, w, moving)


def _move(cell: Cell, w: Workload, moving: float) -> None:
    """Fill in the FPGA's times of the stages that the paper moves, so that with copies its mapping takes what the law says."""
    bits = 1 << PREP if w.family == AGENT else FUSED
    _, copying, _, _ = place(cell, pcie(), 1.0, bits, np.zeros((2, 4)))
    left = moving / moving_speedup(w, int(cell["batch"])) - copying
    if left <= 0.0:
        raise InvalidArgument(
            f"size={float(cell['size'])!r}, batch={int(cell['batch'])!r} of {w.name}: copies alone take longer than the "
            "published law leaves for the FPGA"
        )
    if w.family == AGENT:
        cell["time_s"][FPGA, PREP] = left
    else:
        cell["fused_s"] = left
        for stage in (COMP, RET):
            cell["time_s"][FPGA, stage] = left * PAGED_FPGA_US[stage] / PAGED_FUSED_US


def _power(cell: Cell, w: Workload) -> None:
    """Fill in powers: at the reference the GPU's mean is 75 W, and the moving stages have their share of its energy."""
    watts = np.full(4, MEAN_POWER_W)
    if w.share:
        density = odds_of(w.energy_share) / odds_of(w.share)
        rest_w = MEAN_POWER_W / (1.0 - w.share + w.share * density)
        watts = np.where(np.array(paper_devices(w)) == FPGA, rest_w * density, rest_w)
    cell["power_w"][GPU], cell["power_w"][FPGA] = watts, POWER_RATIO * watts
