"""Tables of what requests of a memory pipeline cost on a pair of devices, by workload, size and batch.

`mi210+u55c` is the published pair (`llmgym.serving.memory_published`), `h100+u55c` an H100 by measured kernels beside the same FPGA
(`llmgym.serving.memory_measured`). Sizes are 4,096 to 2,097,152 tokens or 78,125 to 40 million documents, in octaves; the
largest of each does not fit the FPGA.
"""

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmgym import profiles
from llmgym.core.checks import choice, whole
from llmgym.serving.memory_measured import MEASURED, measured, measured_cell
from llmgym.serving.memory_pipeline import CORPUS, LONG, RAG, WORKLOADS
from llmgym.serving.memory_placement import CELL
from llmgym.serving.memory_published import NAMES, published_cell

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
    m = measured(profiles.load_kernels(kernels)) if hardware == "h100+u55c" else None
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
