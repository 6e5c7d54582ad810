"""Bandwidth of an uplink over time: constant, a new level now and then, a fitted random walk, or a trace.

A law is drawn at the start of an episode into a table with one number for each second, so that a world does not depend on what is
done in it.

The random walk is of ln(Mbit/s), x' = mu + rho (x - mu) + N(0, innovation^2), a second a step. Its parameters were fitted to
public traces of downloads in mobile networks, which are not part of this package: US 4G of Narayanan et al., "A Variegated
Look at 5G in the Wild" (SIGCOMM 2021), and the 5G production dataset of Raca et al., "Beyond Throughput, the Next Generation"
(MMSys 2020). An uplink is slower; `scale` says how much.
"""

import csv
import math
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmgym.core.checks import number, whole
from llmgym.core.jit import kernel
from llmgym.core.records import Record, Records, float64, int32
from llmgym.core.rng import integer, normal
from llmgym.errors import InvalidArgument, UnknownName

CONSTANT, LEVELS, WALK, TRACE = 0, 1, 2, 3
SECONDS = 1024
"""Length of a drawn table, seconds; it is gone through again where an episode lasts longer."""

MB_PER_MBIT = 1.0 / 8.0


class Law(Record):
    """A law of bandwidth as compiled code reads it."""

    kind: int = int32("CONSTANT, LEVELS, WALK or TRACE.")
    every_s: int = int32("Time until a new level is drawn, seconds.")
    mu: float = float64("Mean of ln(Mbit/s) of a random walk.")
    rho: float = float64("Correlation of a second of a random walk with the next.")
    innovation: float = float64("Standard deviation of what a second adds to ln(Mbit/s) of a random walk.")
    scale: float = float64("MB/s of one Mbit/s of the law.")
    floor: float = float64("Least bandwidth of a random walk, MB/s.")
    ceiling: float = float64("Largest bandwidth of a random walk, MB/s.")


@dataclass(frozen=True)
class Bandwidth:
    """A law of Mbit/s over time.

    Attributes:
        kind: `CONSTANT`, `LEVELS`, `WALK` or `TRACE`.
        levels_mbps: the constant, the levels that are drawn from, or the trace with one number a second, Mbit/s.
        every_s: time until a new level is drawn, seconds.
        mu: mean of ln(Mbit/s) of a random walk.
        rho: correlation of a second of a random walk with the next.
        innovation: standard deviation of what a second adds to ln(Mbit/s) of a random walk.
        floor_mbps: least bandwidth of a random walk, Mbit/s.
        ceiling_mbps: largest bandwidth of a random walk, Mbit/s.
        source: where the numbers come from.
    """

    kind: int
    levels_mbps: tuple[float, ...] = (1.0,)
    every_s: int = 20
    mu: float = 0.0
    rho: float = 0.0
    innovation: float = 0.0
    floor_mbps: float = 0.5
    ceiling_mbps: float = 400.0
    source: str = ""

    @property
    def seconds(self) -> int:
        """Length of a drawn table, seconds."""
        if self.kind == CONSTANT:
            return 1
        return len(self.levels_mbps) if self.kind == TRACE else SECONDS


def constant(mbps: float) -> Bandwidth:
    """A bandwidth that is always the same, Mbit/s. Raises `InvalidArgument` unless it is above zero."""
    return Bandwidth(CONSTANT, (number("bandwidth", mbps),))


def levels(mbps: tuple[float, ...], every_s: int = 20) -> Bandwidth:
    """A level drawn anew every so many seconds, all equally likely. Raises `InvalidArgument` for one that is not above zero."""
    if not mbps:
        raise InvalidArgument("bandwidth=(): expected at least one level, Mbit/s")
    checked = tuple(number("bandwidth", level) for level in mbps)
    return Bandwidth(LEVELS, checked, whole("every_s", every_s))


def trace(path: str | PathLike[str], column: int | str = 0) -> Bandwidth:
    """The law of a file with one number a second, Mbit/s.

    Args:
        path: a CSV file, with or without a header.
        column: number of the column, or its name in the header.

    Raises:
        InvalidArgument: no such file or column, or a value that is no number above zero; the message names the line.
    """
    try:
        rows = list(csv.reader(Path(path).read_text(encoding="utf-8").splitlines()))
    except OSError as error:
        raise InvalidArgument(f"bandwidth trace {str(path)!r}: {error.strerror}") from None
    place = column
    if isinstance(column, str):
        if not rows or column not in rows[0]:
            raise InvalidArgument(f"bandwidth trace {str(path)!r} has no column {column!r}")
        place = rows[0].index(column)
    values = []
    for line, row in enumerate(rows, 1):
        if not row:
            continue
        try:
            value = float(row[int(place)])
        except (ValueError, IndexError):
            if line == 1:
                continue  # a header
            raise InvalidArgument(
                f"bandwidth trace {str(path)!r}, line {line}: {row} has no number in column {column}"
            ) from None
        if not math.isfinite(value) or value <= 0.0:
            raise InvalidArgument(
                f"bandwidth trace {str(path)!r}, line {line}: {value} Mbit/s, expected a number > 0"
            )
        values.append(value)
    if not values:
        raise InvalidArgument(f"bandwidth trace {str(path)!r} is empty")
    return Bandwidth(TRACE, tuple(values), floor_mbps=min(values), ceiling_mbps=max(values), source=str(path))


_4G = "US 4G, Narayanan et al., SIGCOMM 2021: parameters of an AR(1) of the logarithm"
_5G = "Ireland 5G, Raca et al., MMSys 2020: parameters of an AR(1) of the logarithm"
NAMED = {
    "4g-walking": Bandwidth(WALK, mu=3.1995, rho=0.9134, innovation=0.4901, source=_4G),
    "4g-driving": Bandwidth(WALK, mu=3.2496, rho=0.8787, innovation=0.6455, source=_4G),
    "5g-static": Bandwidth(WALK, mu=2.8629, rho=0.6501, innovation=1.8668, source=_5G),
    "5g-driving": Bandwidth(WALK, mu=1.6598, rho=0.6754, innovation=1.6620, source=_5G),
    "10-80-mbps": levels(tuple(float(m) for m in range(10, 81, 10))),
}
"""Laws by name. The last is the paper's scenario 4, whose exact levels are not published."""


def load(law: Any) -> Bandwidth:
    """A law from a name, Mbit/s, or a `Bandwidth`. Raises `UnknownName` or `InvalidArgument`."""
    if isinstance(law, Bandwidth):
        return law
    if isinstance(law, str):
        if law not in NAMED:
            raise UnknownName("bandwidth", law, NAMED)
        return NAMED[law]
    return constant(law)


def pack(law: Bandwidth, scale: float = 1.0) -> tuple[Records[Law], NDArray[np.float32]]:
    """The law as compiled code reads it: a record `Law` [1], and its levels, float32 [levels], MB/s."""
    scale *= MB_PER_MBIT
    walk = law.kind == WALK
    floor = scale * law.floor_mbps if walk else 0.0
    ceiling = scale * law.ceiling_mbps if walk else math.inf
    record = Law.pack(law, scale=scale, floor=floor, ceiling=ceiling)
    return record, np.array(law.levels_mbps, np.float32) * np.float32(scale)


@kernel
def draw_rates(law: Law, known: NDArray[np.float32], key: np.uint64, out: NDArray[np.float32]) -> None:
    """Draw the bandwidth of every second.

    Args:
        law: as `pack` makes it.
        known: float32 [levels], MB/s, as `pack` makes them.
        key: seeds the draws.
        out: float32 [seconds], becomes MB/s.
    """
    x, level = 0.0, 0
    if law.kind == WALK:
        x = law.innovation / math.sqrt(1.0 - law.rho * law.rho) * normal(key, out.shape[0])
    for s in range(out.shape[0]):
        if law.kind == WALK:
            rate = law.scale * math.exp(law.mu + x)
            out[s] = min(max(rate, law.floor), law.ceiling)
            x = law.rho * x + law.innovation * normal(key, s)
        else:
            if law.kind == TRACE:
                level = s
            elif law.kind == LEVELS and s % law.every_s == 0:
                level = integer(key, s, 0, known.shape[0] - 1)
            out[s] = known[level]
