"""Tables of what requests of a memory pipeline cost on a pair of devices, by workload, size and batch.

`mi210+u55c` is the published pair (`llmgym.envs.memory.published`), `h100+u55c` an H100 by measured kernels beside the same FPGA
(`llmgym.envs.memory.measured`). Sizes are 4,096 to 2,097,152 tokens or 78,125 to 40 million documents, in octaves; the largest
size of each does not fit the FPGA.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmgym.core.checks import choice, members, number, whole
from llmgym.core.jit import kernel
from llmgym.core.records import Records, Records3
from llmgym.core.settings import check, given, numbers, option, some_of
from llmgym.envs.memory.law import CORPUS, LONG, RAG, WORKLOADS
from llmgym.envs.memory.measured import MEASURED, measured, measured_cell
from llmgym.envs.memory.placement import Cell
from llmgym.envs.memory.published import NAMES, published_cell
from llmgym.errors import InvalidArgument
from llmgym.profiles.kernels import check_kernels, load_kernels

HARDWARE = {"mi210+u55c": NAMES, "h100+u55c": MEASURED}
"""Pairs of devices, each with the workloads that there are figures of."""
SIZES = 10
"""How many sizes there are, each twice the one before."""
REFERENCE_SIZE = SIZES - 2
"""Index of the size at which the paper gives its figures, the largest that fits the FPGA."""
BATCHES = (1, 2, 4, 8, 16, 32)
"""Batches of the paper, samples."""
PAIR, KERNELS = "mi210+u55c", "h100/kernels"
"""The pair of devices and the kernel set of an H100 where none is named."""


def size_of(name: str, index: int) -> float:
    """Tokens or documents of a size index, 0 to 9; 8 is 1,048,576 tokens or 20 million documents.

    Raises:
        UnknownName: no such workload.
        InvalidArgument: an index outside 0..9.
    """
    choice("workload", name, NAMES)
    family = WORKLOADS[name].family if name in WORKLOADS else ""
    reference = CORPUS if family == RAG else LONG
    return float(reference * 2.0 ** (whole("index", index, 0, SIZES - 1) - REFERENCE_SIZE))


@lru_cache(maxsize=8)
def cells(hardware: str = PAIR, kernels: str = KERNELS) -> Records3[Cell]:
    """What every request costs on a pair of devices.

    Args:
        hardware: one of `HARDWARE`.
        kernels: the kernel set of an H100, a name or a folder.

    Returns:
        Records [14, 10, 6], by workload (in the order of `NAMES`), size and batch, read-only; all is zero for a workload that
        the pair has no figures of.

    Raises:
        UnknownName: no such pair, or no such kernel set.
    """
    names = HARDWARE[choice("hardware", hardware, HARDWARE)]
    m = measured(load_kernels(kernels)) if hardware == "h100+u55c" else None
    table: Records3[Cell] = Cell.zeros(len(NAMES), SIZES, len(BATCHES))
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


def evenly(names: Iterable[str]) -> Mix:
    """The named workloads, each with a weight of 1."""
    return tuple((name, 1.0) for name in names)


PUBLISHED = evenly(name for name, known in WORKLOADS.items() if known.published)
"""The workloads that the paper has results of."""


def _check_mix(name: str, value: Any) -> None:
    expected = "pairs of a workload and a weight, none twice"
    rows = [
        members(f"a part of {name}", row, "a workload and its weight")
        for row in members(name, value, expected)
    ]
    if not rows or any(len(row) != 2 or not isinstance(row[0], str) for row in rows):
        raise InvalidArgument(f"{name}={value!r}: expected {expected}")
    for workload, weight in rows:
        number(f"{name}: weight of {workload}", weight)
    if len({workload for workload, _ in rows}) < len(rows):
        raise InvalidArgument(f"{name}={value!r}: expected {expected}")


def mix_setting(default: Mix, about: str) -> Any:
    """A setting that is workloads with their weights."""
    return given(default, about, check=_check_mix, allowed="workloads of `hardware`, each once")


@dataclass(frozen=True)
class Requests:
    """Settings of which requests there are; those of MemPlace and of MemPipe begin with them."""

    about: str
    hardware: str = option(
        PAIR,
        "Pair of devices: `mi210+u55c` by published figures, or `h100+u55c` by measured kernels.",
        HARDWARE,
    )
    kernels: str = given(
        KERNELS, "Kernel set of the H100, a name or a folder.", check=check_kernels, allowed="a kernel set"
    )
    mix: tuple[tuple[str, float], ...] = mix_setting(PUBLISHED, "Workloads, each with its weight.")
    sizes: tuple[int, int] = numbers(
        (0, REFERENCE_SIZE),
        "First and last size index: 0 is 4,096 tokens or 78,125 documents, each further index is twice that, and 9 does not fit "
        "the FPGA.",
        size=2,
        integers=True,
        zero=True,
        high=SIZES - 1,
        order="pair",
    )
    batches: tuple[int, ...] = some_of(
        BATCHES, "Batches that are drawn: how many samples run together.", BATCHES, unit="samples"
    )

    def check_together(self) -> None:
        """Raise `UnknownName` for a workload of `mix` that `hardware` has no figures of."""
        for name, _ in self.mix:
            choice(f"workload of {self.hardware} in mix", name, HARDWARE[self.hardware])


def mixture(
    hardware: str,
    mix: Mix,
    sizes: tuple[int, int],
    batches: tuple[int, ...],
    *,
    kernels: str = KERNELS,
    copied_index: bool = False,
    by_load: bool = False,
) -> tuple[Records[Cell], NDArray[np.float64]]:
    """The requests of a mix of workloads: a workload by its weight, then any of the sizes and batches.

    Args:
        hardware: one of `HARDWARE`.
        mix: workloads with their weights.
        sizes: first and last size index.
        batches: some of `BATCHES`.
        kernels: the kernel set of an H100.
        copied_index: True: the index of `paged` is copied to the FPGA when the FPGA needs it; False: it is streamed there while
            it is built.
        by_load: True: weights are shares of the GPU's time; False: they are shares of the requests.

    Returns:
        Records [n], and their running probabilities, float64 [n], of which the last is 1.

    Raises:
        UnknownName: no such pair, kernel set or workload, or one that the pair has no figures of.
        InvalidArgument: an empty mix, a workload that comes twice, a weight, size or batch that is not allowed.
    """
    check(Requests("", hardware, kernels, mix, sizes, batches))
    table = cells(hardware, kernels)
    first, last = sizes
    columns = [BATCHES.index(batch) for batch in batches]
    parts, weights = [], []
    for name, weight in mix:
        part = table[NAMES.index(name), first : last + 1][:, columns].ravel()
        parts.append(part)
        share = weight / len(part)
        weights.append(np.full(len(part), share / part["gpu_s"].mean() if by_load else share))
    rows: Any = np.concatenate(parts)
    if copied_index:
        paged = np.isin(rows["workload"], [NAMES.index("paged"), NAMES.index("paged-decode")])
        rows["memory_down"] = np.where(paged, rows["memory_up"], rows["memory_down"])
    running = np.cumsum(np.concatenate(weights))
    running /= running[-1]
    running[-1] = 1.0
    return rows, running


@kernel
def drawn(running: NDArray[np.float64], uniform: float) -> int:
    """Index of the request that a uniform number in (0, 1) draws: the first whose running probability exceeds the number."""
    low, high = 0, running.shape[0] - 1
    while low < high:
        middle = (low + high) // 2
        if running[middle] > uniform:
            high = middle
        else:
            low = middle + 1
    return low
