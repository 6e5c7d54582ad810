"""What the observations of MemPlace and of MemPipe have in common: how they tell a request, and how they scale numbers."""

import math
from typing import Any

from llmgym.core.jit import kernel
from llmgym.envs.memory.costs import BATCHES, SIZES
from llmgym.envs.memory.placement import Cell
from llmgym.envs.memory.published import NAMES

WORKLOADS = len(NAMES)
TOP_SIZE, TOP_BATCH = SIZES - 1.0, len(BATCHES) - 1.0
INTENSITY_DECADES = 3.01
"""Scale of arithmetic intensities: the largest of `llmgym.envs.memory.law.BANDS` is 1,000, of which log10(1 + x) is 3.0004."""


@kernel(inline=True)
def squash(value: float) -> float:
    """X / (1 + x), which lies in [0, 1) for x of 0 or more."""
    return value / (1.0 + value)


@kernel(inline=True)
def scaled_intensity(flop_per_byte: float) -> float:
    """Arithmetic intensity as observations show it, in [0, 1)."""
    return math.log10(1.0 + flop_per_byte) / INTENSITY_DECADES


@kernel(inline=True)
def observe_request(cell: Cell, out: Any) -> None:
    """Write the fields `workload`, `request_size` and `batch` of an observation."""
    for k in range(WORKLOADS):
        out.workload[k] = 1.0 if k == cell.workload else 0.0
    out.request_size = cell.size_index / TOP_SIZE
    out.batch = cell.batch_index / TOP_BATCH
