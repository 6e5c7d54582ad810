"""An FPGA beside a GPU: the roofline of its kernels, and the time of a copy between the two.

Figures of He, Ma, Sun and Cong, "Understand and Accelerate Memory Processing Pipeline for Large Language Model Inference", ICML
2026 (arXiv 2603.29002), and of the cost model that its authors published (github.com/OswaldHe/HeteroLLM): an Alveo U55C (16 GB of
HBM at 460 GB/s, 9,024 DSPs) next to an MI210, peer to peer over PCIe.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmgym.core.checks import number
from llmgym.core.jit import kernel

DOWN, UP = 0, 1
"""Directions of a link: from the GPU to the FPGA, and back."""

KB = 1024.0


@dataclass(frozen=True)
class Roofline:
    """What bounds a kernel on an FPGA: bytes or multiplications in a cycle, whichever is slower.

    Attributes:
        clock_hz: of the fabric.
        bytes_per_cycle: of the memory, derated.
        flop_per_cycle: fp32 multiply-adds, three DSPs each.
        memory_bytes: of the device.
        separate_s: fixed cost of a kernel that runs on its own, by stage (prep, comp, ret, apply), s.
    """

    clock_hz: float = 250e6
    bytes_per_cycle: float = 1564.0
    flop_per_cycle: float = 6016.0
    memory_bytes: float = 16e9
    separate_s: tuple[float, float, float, float] = (0.0, 0.0, 10e-6, 20e-6)

    def __post_init__(self) -> None:
        for name in ("clock_hz", "bytes_per_cycle", "flop_per_cycle", "memory_bytes"):
            number(name, getattr(self, name))

    @property
    def ridge(self) -> float:
        """FLOP per byte from which on the multiplications bind."""
        return self.flop_per_cycle / self.bytes_per_cycle

    def cycles(self, moved_bytes: float, flop: float) -> float:
        """Cycles of a kernel that moves so many bytes and takes so many floating-point operations."""
        return max(
            number("moved_bytes", moved_bytes, zero=True) / self.bytes_per_cycle,
            number("flop", flop, zero=True) / self.flop_per_cycle,
        )

    def time_s(self, moved_bytes: float, flop: float) -> float:
        """The same in seconds, without a fixed cost."""
        return self.cycles(moved_bytes, flop) / self.clock_hz


U55C = Roofline()
"""Alveo U55C at 250 MHz, 85 % of its bandwidth (391 GB/s, 1.50 TFLOP/s)."""

LINK = np.dtype(
    [
        ("edge_kb", "f8", (2,)),  # up to here the first and the second piece
        ("slope", "f8", (2,)),  # GB/s for each KB
        ("base", "f8", (2,)),  # GB/s
        ("flat", "f8"),  # GB/s beyond the second edge
        ("scale", "f8"),  # multiplies the bandwidth
        ("setup_s", "f8"),  # of each copy
    ],
    align=True,
)
"""Bandwidth of one direction as a function of the size of a copy, linear in pieces. GB and KB are binary here, as published."""


def pcie(scale: float = 1.0, setup_s: float = 0.0) -> Any:
    """Both directions of the published link: records `LINK` [2], down and up.

    Args:
        scale: multiplies the bandwidth; 1 is the published link.
        setup_s: of each copy, s; the published curves have none.

    Raises:
        InvalidArgument: a scale that is not above zero, or a negative set-up time.
    """
    links = np.zeros(2, LINK)
    links["scale"], links["setup_s"] = number("scale", scale), number("setup_s", setup_s, zero=True)
    links[DOWN]["edge_kb"], links[DOWN]["flat"] = (128.0, 128.0), 4.0
    links[DOWN]["slope"], links[DOWN]["base"] = (0.0572196, 0.0), (0.146989, 4.0)
    links[UP]["edge_kb"], links[UP]["flat"] = (128.0, 65536.0), 6.09
    links[UP]["slope"], links[UP]["base"] = (0.0402611, 3.5729e-5), (0.263686, 4.13510)
    return links


@kernel
def copy_s(link: Any, moved_bytes: float, scale: float) -> float:
    """Time of a copy, s; nothing to copy takes no time. `scale` multiplies the bandwidth once more."""
    if moved_bytes <= 0.0:
        return 0.0
    kb = moved_bytes / KB
    rate = link.flat
    if kb <= link.edge_kb[0]:
        rate = link.slope[0] * kb + link.base[0]
    elif kb <= link.edge_kb[1]:
        rate = link.slope[1] * kb + link.base[1]
    seconds: float = link.setup_s + kb / (1048576.0 * rate * link.scale * scale)
    return seconds


def bandwidth_bytes_per_s(link: Any) -> float:
    """Of large copies."""
    return float(link["flat"]) * float(link["scale"]) * 2.0**30 if math.isfinite(link["flat"]) else math.inf
