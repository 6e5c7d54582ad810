"""An FPGA beside a GPU: the roofline of its kernels, and the time of a copy between the two.

The figures are those of He, Ma, Sun and Cong, "Understand and Accelerate Memory Processing Pipeline for Large Language Model
Inference", ICML 2026 (arXiv 2603.29002), and of the cost model that its authors published (github.com/OswaldHe/HeteroLLM). Their
pair is an Alveo U55C (16 GB of HBM at 460 GB/s, 9,024 DSPs) next to an MI210, peer to peer over PCIe.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmgym.core.checks import number
from llmgym.core.jit import kernel
from llmgym.core.records import Record, Records, float64

DOWN, UP = 0, 1
"""Directions of a link: from the GPU to the FPGA, and back."""

KB, GB = 2.0**10, 2.0**30
"""Bytes of a KB and of a GB: both are binary here, as in the published cost model."""


@dataclass(frozen=True)
class Roofline:
    """What bounds a kernel on an FPGA: bytes or multiplications in a cycle, whichever is slower.

    Attributes:
        clock_hz: clock of the fabric, cycles per second.
        bytes_per_cycle: bytes that the memory delivers in a cycle, 85 % of its peak.
        flop_per_cycle: fp32 operations in a cycle; a multiply-add is two and takes three DSPs.
        memory_bytes: memory of the device, bytes.
        separate_s: fixed cost of a kernel that runs on its own, by stage (prep, comp, ret, apply), seconds.
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
        """Cycles of a kernel that moves `moved_bytes` and takes `flop` operations. Raises `InvalidArgument`."""
        return max(
            number("moved_bytes", moved_bytes, zero=True) / self.bytes_per_cycle,
            number("flop", flop, zero=True) / self.flop_per_cycle,
        )

    def time_s(self, moved_bytes: float, flop: float) -> float:
        """Seconds of a kernel that moves `moved_bytes` and takes `flop` operations, without a fixed cost."""
        return self.cycles(moved_bytes, flop) / self.clock_hz


U55C = Roofline()
"""Alveo U55C at 250 MHz, 85 % of its bandwidth (391 GB/s, 1.50 TFLOP/s)."""


class Link(Record):
    """Bandwidth of one direction as a function of the size of a copy, linear in three pieces."""

    edge_kb: NDArray[np.float64] = float64(
        "Largest copies of the first and of the second piece, KB.", shape=2
    )
    slope: NDArray[np.float64] = float64(
        "Slope of the first and of the second piece, GB/s for each KB.", shape=2
    )
    base: NDArray[np.float64] = float64("Bandwidth of each piece where it meets a size of 0, GB/s.", shape=2)
    flat: float = float64("Bandwidth beyond the second piece, GB/s.")
    scale: float = float64("Factor of the bandwidth; 1 is the published link.")
    setup_s: float = float64("Fixed time of each copy, seconds.")


def pcie(scale: float = 1.0, setup_s: float = 0.0) -> Records[Link]:
    """Both directions of the published link, down and up, [2].

    Args:
        scale: multiplies the bandwidth; 1 is the published link.
        setup_s: fixed time of each copy, seconds; the published curves have none.

    Raises:
        InvalidArgument: a scale that is not above zero, or a negative set-up time.
    """
    links: Records[Link] = Link.zeros(2)
    links["scale"], links["setup_s"] = number("scale", scale), number("setup_s", setup_s, zero=True)
    links[DOWN]["edge_kb"], links[DOWN]["flat"] = (128.0, 128.0), 4.0
    links[DOWN]["slope"], links[DOWN]["base"] = (0.0572196, 0.0), (0.146989, 4.0)
    links[UP]["edge_kb"], links[UP]["flat"] = (128.0, 65536.0), 6.09
    links[UP]["slope"], links[UP]["base"] = (0.0402611, 3.5729e-5), (0.263686, 4.13510)
    return links


@kernel
def copy_s(link: Link, moved_bytes: float, scale: float) -> float:
    """Time of a copy, seconds; where there is nothing to copy it is 0.

    Args:
        link: one direction.
        moved_bytes: size of the copy, bytes.
        scale: multiplies the bandwidth, beside `link.scale`.

    Returns:
        Seconds.
    """
    if moved_bytes <= 0.0:
        return 0.0
    kb = moved_bytes / KB
    rate = link.flat
    if kb <= link.edge_kb[0]:
        rate = link.slope[0] * kb + link.base[0]
    elif kb <= link.edge_kb[1]:
        rate = link.slope[1] * kb + link.base[1]
    return link.setup_s + kb / (GB / KB * rate * link.scale * scale)
