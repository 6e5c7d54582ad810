"""What it costs to place the four stages of a memory pipeline on a GPU and an FPGA: kernels, copies between them, energy.

The rule of the cost model that He et al. published with "Understand and Accelerate Memory Processing Pipeline for Large Language
Model Inference" (arXiv 2603.29002; github.com/OswaldHe/HeteroLLM): stages run one after the other; what a stage reads and its
device does not have is copied there first; what it writes lies on its own device. Relevancy and retrieval can run as one fused
kernel on the FPGA, which then writes no scores.

A placement is a whole number: bit i is set where stage i (prep, comp, ret, apply) is on the FPGA; `FUSED` is relevancy and
retrieval fused on the FPGA and the rest on the GPU.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmgym.core.jit import kernel
from llmgym.envs.memory.devices import DOWN, UP, copy_s
from llmgym.envs.memory.law import APPLY, COMP, FPGA, GPU, PREP, RET
from llmgym.errors import InvalidArgument

GENERAL = 0b0110
"""Relevancy and retrieval on the FPGA, two kernels."""
FUSED = 16
"""The same as one kernel."""
PLACEMENTS = 17

CELL = np.dtype(
    [
        ("workload", "i4"),  # in `llmgym.envs.memory.costs.NAMES`
        ("size_index", "i4"),
        ("batch_index", "i4"),
        ("size", "f8"),  # tokens or documents
        ("batch", "i4"),
        ("empty", "i4"),  # bit i: there is no stage i
        ("fits", "i4"),  # the FPGA can hold the index
        ("on_gpu", "i4"),  # raw memory lives on the GPU; else it is made where it is read first
        ("time_s", "f8", (2, 4)),  # of a stage on its own, by device and stage
        ("fused_s", "f8"),  # relevancy and retrieval in one kernel, on the FPGA
        ("power_w", "f8", (2, 4)),  # while that stage runs on that device
        ("intensity", "f8", (4,)),  # FLOP per byte, the upper end of the published band
        ("raw_build", "f8"),  # bytes: raw memory that prep reads
        ("memory_down", "f8"),  # index that comp reads; 0 where it is streamed while it is built
        ("memory_up", "f8"),
        ("query", "f8"),  # from the GPU, that comp reads
        ("score", "f8"),  # that ret reads
        ("index", "f8"),  # that apply reads
        ("raw_apply", "f8"),  # selected raw memory that apply reads
        ("gpu_s", "f8"),  # all stages on the GPU
        ("gpu_j", "f8"),
    ],
    align=True,
)
"""One kind of request: a workload at a size and a batch, on one pair of devices."""


@kernel
def copies_s(
    cell: Any, links: Any, scale: float, placed: int, stage: int, device: int
) -> tuple[float, float, float, float]:
    """Copies before a stage, with earlier stages placed: seconds down and up, bytes down and up.

    Args:
        cell: record `CELL`.
        links: records `llmgym.envs.memory.devices.LINK` [2].
        scale: multiplies the bandwidth of both directions.
        placed: bits of the earlier stages; an empty stage has the bit of the one before it.
        stage: the next.
        device: where it is to run.
    """
    before = GPU if stage == PREP else (placed >> (stage - 1)) & 1
    raw, flow = 0.0, 0.0
    from_gpu = device == FPGA
    if stage == PREP:
        if cell.on_gpu != 0 and from_gpu:
            raw = cell.raw_build
    elif stage == COMP:
        if from_gpu:
            raw = cell.query
        if before != device:
            flow = cell.memory_down if from_gpu else cell.memory_up
    elif stage == RET:
        if before != device:
            flow = cell.score
    else:
        if before != device:
            flow = cell.index
        home = GPU if cell.on_gpu != 0 else placed & 1
        if home != device:
            raw = cell.raw_apply
    if from_gpu:
        link = links[DOWN]
        return copy_s(link, raw, scale) + copy_s(link, flow, scale), 0.0, raw + flow, 0.0
    link = links[UP]
    return 0.0, copy_s(link, raw, scale) + copy_s(link, flow, scale), 0.0, raw + flow


@kernel(inline=True)
def allowed(cell: Any, placement: int) -> bool:
    """Whether a placement is one of the request: nothing on the FPGA that is empty or does not fit, nothing fused that is empty."""
    bits = GENERAL if placement == FUSED else placement
    if bits & cell.empty:
        return False
    return cell.fits != 0 or bits & GENERAL == 0


@kernel
def place(
    cell: Any, links: Any, scale: float, placement: int, error: NDArray[np.float64]
) -> tuple[float, float, float, float]:
    """Cost of a placement: seconds, of these for copies, joules, bytes copied.

    Args:
        cell: record `CELL`.
        links: records `LINK` [2].
        scale: multiplies the bandwidth.
        placement: see the module.
        error: float64 [2, 4], factors by which the kernels' times differ from those of the cell.
    """
    fused = placement == FUSED
    bits = GENERAL if fused else placement
    placed, seconds, copying, joules, moved = 0, 0.0, 0.0, 0.0, 0.0
    for stage in range(4):
        if (cell.empty >> stage) & 1:
            if stage > PREP and (placed >> (stage - 1)) & 1:
                placed |= 1 << stage
            continue
        device = (bits >> stage) & 1
        time = cell.time_s[device, stage] * error[device, stage]
        if fused and stage == COMP:
            time = cell.fused_s * error[FPGA, COMP]
        if not (fused and stage == RET):
            down, up, down_bytes, up_bytes = copies_s(cell, links, scale, placed, stage, device)
            copying += down + up
            moved += down_bytes + up_bytes
            seconds += time
            joules += time * cell.power_w[device, stage]
        placed |= device << stage
    return seconds + copying, copying, joules, moved


def costs(cell: Any, links: Any, scale: float = 1.0) -> NDArray[np.float64]:
    """Cost of every placement of a request.

    Args:
        cell: record `CELL`.
        links: records `LINK` [2].
        scale: multiplies the bandwidth.

    Returns:
        float64 [17, 4]: seconds, of these for copies, joules, bytes copied; NaN where the placement is not allowed.
    """
    exact = np.ones((2, 4))
    rows = np.full((PLACEMENTS, 4), np.nan)
    for placement in range(PLACEMENTS):
        if allowed(cell, placement):
            rows[placement] = place(cell, links, scale, placement, exact)
    return rows


def letters(placement: int) -> str:
    """A placement in letters, stage by stage: "GFFG"; "GFFG fused". Raises `InvalidArgument`."""
    if not 0 <= placement < PLACEMENTS:
        raise InvalidArgument(f"placement={placement!r}: expected a whole number from 0 to {FUSED}")
    bits = GENERAL if placement == FUSED else placement
    text = "".join("GF"[(bits >> stage) & 1] for stage in range(APPLY + 1))
    return text + (" fused" if placement == FUSED else "")


def parse(text: str) -> int:
    """The placement of four letters G or F, such as "GFFG", or of these and " fused". Raises `InvalidArgument`."""
    for placement in range(PLACEMENTS):
        if letters(placement) == text:
            return placement
    raise InvalidArgument(
        f"placement={text!r}: expected four letters G or F (prep, comp, ret, apply) or 'GFFG fused'"
    )
