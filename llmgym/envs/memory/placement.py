"""What it costs to place the four stages of a memory pipeline on a GPU and an FPGA: kernels, copies between them, energy.

The rules are those of the cost model that He et al. published with "Understand and Accelerate Memory Processing Pipeline for
Large Language Model Inference" (arXiv 2603.29002; github.com/OswaldHe/HeteroLLM). Stages run one after the other. What a stage
reads and its device lacks is copied there first. What a stage writes lies on its own device. Relevancy and retrieval can run as
one fused kernel on the FPGA, which then writes no scores.

A placement is a whole number: bit i is set where stage i (prep, comp, ret, apply) is on the FPGA; `FUSED` is relevancy and
retrieval fused on the FPGA and the rest on the GPU.
"""

import numpy as np
from numpy.typing import NDArray

from llmgym.core.jit import kernel
from llmgym.core.records import Record, Records, float64, int32
from llmgym.envs.memory.devices import DOWN, UP, Link, copy_s
from llmgym.envs.memory.law import APPLY, COMP, FPGA, GPU, PREP, RET
from llmgym.errors import InvalidArgument

GENERAL = 0b0110
"""The placement with relevancy and retrieval on the FPGA, as two kernels."""
FUSED = 16
"""The placement with relevancy and retrieval on the FPGA, as one kernel."""
PLACEMENTS = 17
"""How many placements there are: 16 of four stages on two devices, and `FUSED`."""


class Cell(Record):
    """What one workload costs at one size and batch, on one pair of devices."""

    workload: int = int32("Index of the workload in `llmgym.envs.memory.published.NAMES`.")
    size_index: int = int32("Index of the size, 0 to 9.")
    batch_index: int = int32("Index of the batch in `llmgym.envs.memory.costs.BATCHES`.")
    size: float = float64("Entries of the memory: tokens or documents.")
    batch: int = int32("Samples that run together.")
    empty: int = int32("Stages that the workload lacks: bit i is set where there is no stage i.")
    fits: int = int32("1 where the FPGA can hold the index, else 0.")
    on_gpu: int = int32(
        "1 where raw memory lives on the GPU; 0 where it is made on the device that reads it first."
    )
    time_s: NDArray[np.float64] = float64(
        "Time of a stage on its own, by device and stage, seconds.", shape=(2, 4)
    )
    fused_s: float = float64("Time of relevancy and retrieval in one kernel on the FPGA, seconds.")
    power_w: NDArray[np.float64] = float64(
        "Power of a device while it runs a stage, by device and stage, watts.", shape=(2, 4)
    )
    intensity: NDArray[np.float64] = float64(
        "Arithmetic intensity of each stage, FLOP per byte: the upper end of the published band.", shape=4
    )
    raw_build: float = float64("Raw memory that prep reads, bytes.")
    memory_down: float = float64(
        "Index that comp reads on the FPGA after prep on the GPU, bytes; 0 where it is streamed while it is built."
    )
    memory_up: float = float64("Index that comp reads on the GPU after prep on the FPGA, bytes.")
    query: float = float64("Query that comp reads, which comes from the GPU, bytes.")
    score: float = float64("Scores that ret reads, bytes.")
    index: float = float64("Indices of the retrieved entries, which apply reads, bytes.")
    raw_apply: float = float64("Selected raw memory that apply reads, bytes.")
    gpu_s: float = float64("Time of all stages on the GPU, seconds.")
    gpu_j: float = float64("Energy of all stages on the GPU, joules.")


@kernel
def copies_s(
    cell: Cell, links: Records[Link], scale: float, placed: int, stage: int, device: int
) -> tuple[float, float, float, float]:
    """Cost of the copies before a stage, once the earlier stages are placed.

    Args:
        cell: the request.
        links: both directions of the link, [2].
        scale: multiplies the bandwidth of both directions.
        placed: devices of the earlier stages, bit i for stage i; an empty stage has the bit of the stage before it.
        stage: the stage that is next.
        device: where that stage is to run.

    Returns:
        Seconds down, seconds up, bytes down, bytes up.
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
def allowed(cell: Cell, placement: int) -> bool:
    """Whether a request can be placed so: it puts on the FPGA no stage that is empty, and none whose index does not fit."""
    bits = GENERAL if placement == FUSED else placement
    if bits & cell.empty:
        return False
    return cell.fits != 0 or bits & GENERAL == 0


@kernel
def place(
    cell: Cell, links: Records[Link], scale: float, placement: int, error: NDArray[np.float64]
) -> tuple[float, float, float, float]:
    """Cost of a request with a placement.

    Args:
        cell: the request.
        links: both directions of the link, [2].
        scale: multiplies the bandwidth of both directions.
        placement: 0 to 16; the module says what each means.
        error: factors by which the times of kernels differ from those of the cell, by device and stage, float64 [2, 4].

    Returns:
        Seconds of the request, seconds of these for copies, joules, bytes copied.
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


def costs(cell: Cell, links: Records[Link], scale: float = 1.0) -> NDArray[np.float64]:
    """Cost of a request with every placement.

    Args:
        cell: the request.
        links: both directions of the link, [2].
        scale: multiplies the bandwidth of both directions.

    Returns:
        float64 [17, 4], a row for each placement: seconds, seconds of these for copies, joules, bytes copied; NaN where the
        placement is not allowed.
    """
    exact = np.ones((2, 4))
    rows = np.full((PLACEMENTS, 4), np.nan)
    for placement in range(PLACEMENTS):
        if allowed(cell, placement):
            rows[placement] = place(cell, links, scale, placement, exact)
    return rows


def letters(placement: int) -> str:
    """A placement in letters, stage by stage, such as "GFFG" or "GFFG fused". Raises `InvalidArgument`."""
    if not 0 <= placement < PLACEMENTS:
        raise InvalidArgument(f"placement={placement!r}: expected a whole number from 0 to {FUSED}")
    bits = GENERAL if placement == FUSED else placement
    text = "".join("GF"[(bits >> stage) & 1] for stage in range(APPLY + 1))
    return text + (" fused" if placement == FUSED else "")


def parse(text: str) -> int:
    """The placement that `letters` writes so: "GFFG" is 6, "GFFG fused" is 16. Raises `InvalidArgument`."""
    for placement in range(PLACEMENTS):
        if letters(placement) == text:
            return placement
    raise InvalidArgument(
        f"placement={text!r}: expected four letters G or F (prep, comp, ret, apply) or 'GFFG fused'"
    )
