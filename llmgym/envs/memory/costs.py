"""Tables of what requests of a memory pipeline cost on a pair of devices, by workload, size and batch.

`mi210+u55c` is the published pair (`llmgym.envs.memory.published`), `h100+u55c` an H100 by measured kernels beside the same FPGA
(`llmgym.envs.memory.measured`). Sizes are 4,096 to 2,097,152 tokens or 78,125 to 40 million documents, in octaves; the
largest of each does not fit the FPGA.
"""

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmgym.core.checks import choice, number, whole
from llmgym.core.jit import kernel
from llmgym.envs.memory.law import CORPUS, LONG, RAG, WORKLOADS
from llmgym.envs.memory.measured import MEASURED, measured, measured_cell
from llmgym.envs.memory.placement import CELL
from llmgym.envs.memory.published import NAMES, published_cell
from llmgym.errors import InvalidArgument
from llmgym.profiles.kernels import load_kernels

HARDWARE = {"mi210+u55c": NAMES, "h100+u55c": MEASURED}
"""Pairs of devices, each with the workloads that there are figures of."""
SIZES = 10
REFERENCE_SIZE = SIZES - 2
BATCHES = (1, 2, 4, 8, 16, 32)


def size_of(name: str, index: int) -> float:
    """Tokens, or documents, of a size index: 8 is 1,048,576 tokens or 20 million documents.

    Raises:
        UnknownName: no such workload.
        InvalidArgument: an index outside 0..9.
    """
    choice("workload", name, NAMES)
    family = WORKLOADS[name].family if name in WORKLOADS else ""
    reference = CORPUS if family == RAG else LONG
    return float(reference * 2.0 ** (whole("index", index, 0, SIZES - 1) - REFERENCE_SIZE))


@lru_cache(maxsize=8)
def cells(hardware: str = "mi210+u55c", kernels: str = "h100/kernels") -> NDArray[Any]:
    """Every request of a pair of devices.

    Args:
        hardware: one of `HARDWARE`.
        kernels: the kernel set of an H100, a name or a folder.

    Returns:
        Records `CELL` [workloads, 10, 6], by `NAMES`, size and batch, read-only; without figures all is zero.

    Raises:
        UnknownName: no such pair, or no such kernel set.
    """
    names = HARDWARE[choice("hardware", hardware, HARDWARE)]
    m = measured(load_kernels(kernels)) if hardware == "h100+u55c" else None
    table = np.zeros((len(NAMES), SIZES, len(BATCHES)), CELL)
    for name in names:
        for i in range(SIZES):
            for j, batch in enumerate(BATCHES):
                size = size_of(name, i)
                cell = published_cell(name, size, batch) if m is None else measured_cell(m, name, size, batch)
                cell["size_index"], cell["batch_index"] = i, j
                table[NAMES.index(name), i, j] = cell
    table.setflags(write=False)
    return table


Mix = tuple[tuple[str, float], ...]
"""Workloads, each with its weight."""


def mixture(
    hardware: str,
    mix: Mix,
    sizes: tuple[int, int],
    batches: tuple[int, ...],
    *,
    kernels: str = "h100/kernels",
    copied_index: bool = False,
    by_load: bool = False,
) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """The requests of a mix of workloads: a workload by its weight, then any of the sizes and batches.

    Args:
        hardware: one of `HARDWARE`.
        mix: workloads with their weights.
        sizes: first and last size index.
        batches: some of `BATCHES`.
        kernels: the kernel set of an H100.
        copied_index: the index of `paged` is copied to the FPGA when it is needed there, and not streamed while it is built.
        by_load: weights are shares of the GPU's time, not of the requests.

    Returns:
        Records `CELL` [n], and their running probabilities, float64 [n], the last one 1.

    Raises:
        UnknownName: no such pair, kernel set or workload, or one that the pair has no figures of.
        InvalidArgument: an empty mix, a workload that comes twice, a weight, size or batch that is not allowed.
    """
    table = cells(hardware, kernels)
    if (
        not isinstance(mix, tuple)
        or not mix
        or not all(isinstance(row, tuple) and len(row) == 2 for row in mix)
    ):
        raise InvalidArgument(f"mix={mix!r}: expected pairs of a workload and a weight, at least one")
    names = [choice(f"workload of {hardware}", name, HARDWARE[hardware]) for name, _ in mix]
    if len(set(names)) < len(names):
        raise InvalidArgument(f"mix={mix!r}: a workload comes twice")
    if not isinstance(sizes, tuple) or len(sizes) != 2:
        raise InvalidArgument(f"sizes={sizes!r}: expected the first and the last size index")
    first, last = whole("sizes", sizes[0], 0, SIZES - 1), whole("sizes", sizes[1], 0, SIZES - 1)
    known = isinstance(batches, tuple) and batches and all(batch in BATCHES for batch in batches)
    if first > last or not known or len(set(batches)) < len(batches):
        raise InvalidArgument(
            f"sizes={sizes!r}, batches={batches!r}: expected rising sizes, and some of {BATCHES}, each once"
        )
    columns = [BATCHES.index(batch) for batch in batches]
    chosen, weights = [], []
    for name, weight in mix:
        some = table[NAMES.index(name), first : last + 1][:, columns].ravel()
        chosen.append(some)
        share = number(f"weight of {name}", weight) / len(some)
        weights.append(np.full(len(some), share / some["gpu_s"].mean() if by_load else share))
    rows = np.concatenate(chosen)
    if copied_index:
        paged = np.isin(rows["workload"], [NAMES.index("paged"), NAMES.index("paged-decode")])
        rows["memory_down"] = np.where(paged, rows["memory_up"], rows["memory_down"])
    running = np.cumsum(np.concatenate(weights))
    running /= running[-1]
    running[-1] = 1.0
    return rows, running


@kernel
def drawn(running: NDArray[np.float64], uniform: float) -> int:
    """The request at a uniform number in (0, 1): the first whose running probability exceeds it."""
    low, high = 0, running.shape[0] - 1
    while low < high:
        middle = (low + high) // 2
        if running[middle] > uniform:
            high = middle
        else:
            low = middle + 1
    return low
