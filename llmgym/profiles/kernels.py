"""Kernel sets: times of single kernels on one device, for what no model profile holds.

A set is a folder with `meta.json` (device, driver, versions, date, method, notes, skipped cases with the reason) and
`kernels.csv`, one measured case a row: `op`, `variant` (which weights, heads or features), `shape` ("batch=8 kv=1024":
whole numbers with names), `latency_us` (median), `iqr_us`, `peak_bytes` (memory beyond the inputs, where it was measured),
`power_w` (mean board power, where it was measured) and `repetitions`. What the ops are is told in `llmgym.profiles.families`,
which measures them.
"""

import csv
import json
import math
import os
from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmgym.core.checks import loaded
from llmgym.errors import InvalidArgument, ProfileError, UnknownName
from llmgym.profiles.tables import read_csv

COLUMNS = ("op", "variant", "shape", "latency_us", "iqr_us", "peak_bytes", "power_w", "repetitions")
FORMAT = 1
SHIPPED = Path(__file__).parent / "data"


class Row(NamedTuple):
    """One measured case; see the module. `peak_bytes` is -1 and `power_w` NaN where they were not measured."""

    op: str
    variant: str
    shape: tuple[tuple[str, int], ...]
    latency_us: float
    iqr_us: float
    peak_bytes: int
    power_w: float
    repetitions: int

    @property
    def key(self) -> tuple[str, str, tuple[tuple[str, int], ...]]:
        """Op, variant and shape: what tells a row from others."""
        return self.op, self.variant, self.shape

    def cells(self) -> list[str]:
        """The row as text, in the order of `COLUMNS`."""
        return [
            self.op,
            self.variant,
            " ".join(f"{name}={value}" for name, value in self.shape),
            f"{self.latency_us:.4g}" if self.latency_us < 1000 else f"{self.latency_us:.1f}",
            f"{self.iqr_us:.3g}",
            "" if self.peak_bytes < 0 else str(self.peak_bytes),
            "" if math.isnan(self.power_w) else f"{self.power_w:.1f}",
            str(self.repetitions),
        ]


def parse_row(cells: Mapping[str, str | None], where: str) -> Row:
    """A row from its text. Raises `ProfileError`, with `where`, if something in it is impossible."""
    try:
        shape = tuple(
            (name, int(value))
            for name, _, value in (part.partition("=") for part in (cells["shape"] or "").split())
        )
        row = Row(
            cells["op"] or "",
            cells["variant"] or "",
            shape,
            float(cells["latency_us"] or "nan"),
            float(cells["iqr_us"] or "nan"),
            int(cells["peak_bytes"] or -1),
            float(cells["power_w"] or "nan"),
            int(cells["repetitions"] or 0),
        )
    except (KeyError, ValueError) as error:
        raise ProfileError(f"{where}: {error}; expected the columns {', '.join(COLUMNS)}") from error
    timed = 0 < row.latency_us < math.inf and 0 <= row.iqr_us < math.inf
    if not row.op or not shape or not timed or row.repetitions < 1:
        raise ProfileError(
            f"{where}: an op, a shape, latency_us > 0, iqr_us >= 0 and repetitions >= 1 are needed"
        )
    return row


class Fit(NamedTuple):
    """time_us = alpha_us * x + beta_us by least squares on the relative error; x from `low` to `high`."""

    alpha_us: float
    beta_us: float
    r_squared: float
    low: float
    high: float


@dataclass(frozen=True)
class Kernels:
    """A kernel set.

    Attributes:
        name: of the set.
        meta: what `meta.json` holds.
        rows: the measured cases.
    """

    name: str
    meta: dict[str, Any]
    rows: tuple[Row, ...]

    def ops(self) -> dict[str, list[str]]:
        """Every op with its variants."""
        ops: dict[str, list[str]] = {}
        for row in self.rows:
            variants = ops.setdefault(row.op, [])
            if row.variant not in variants:
                variants.append(row.variant)
        return ops

    def table(self, op: str, variant: str) -> dict[str, NDArray[np.float64]]:
        """The rows of one op and variant as columns: each name of its shape, latency_us, iqr_us, peak_bytes, power_w.

        Raises:
            UnknownName: there is no such op, or it has no such variant.
        """
        known = self.ops()
        if op not in known:
            raise UnknownName("op", op, known)
        if variant not in known[op]:
            raise UnknownName(f"variant of {op}", variant, known[op])
        rows = [row for row in self.rows if (row.op, row.variant) == (op, variant)]
        columns = {
            name: np.array([dict(row.shape)[name] for row in rows], np.float64) for name, _ in rows[0].shape
        }
        for name in ("latency_us", "iqr_us", "peak_bytes", "power_w"):
            columns[name] = np.array([getattr(row, name) for row in rows], np.float64)
        return columns

    def time_us(self, op: str, variant: str, **shape: float) -> float:
        """Time of a shape, linear between measured ones in the logarithms of shape and time.

        Args:
            op: see `ops`.
            variant: see `ops`.
            shape: a value for each name of the op's shape.

        Returns:
            Microseconds.

        Raises:
            UnknownName: no such op or variant.
            InvalidArgument: a name of the shape is missing or not known, or the shape lies outside what was measured.
        """
        from scipy.interpolate import LinearNDInterpolator

        columns = self.table(op, variant)
        names = [name for name in columns if name not in ("latency_us", "iqr_us", "peak_bytes", "power_w")]
        if sorted(shape) != sorted(names):
            raise InvalidArgument(f"shape of {op}={sorted(shape)}: expected {', '.join(names)}")
        varying = [name for name in names if len(np.unique(columns[name])) > 1]
        for name in names:
            low, high = columns[name].min(), columns[name].max()
            if not low <= shape[name] <= high:
                raise InvalidArgument(f"{name}={shape[name]!r} of {op}: measured from {low:g} to {high:g}")
        points = np.column_stack(
            [_position(columns[name], columns[name]) for name in varying] or [columns[names[0]]]
        )
        wanted = np.array([_position(np.array([float(shape[name])]), columns[name])[0] for name in varying])
        values = np.log(columns["latency_us"])
        if not varying:
            return float(columns["latency_us"][0])
        if len(varying) == 1:
            order = np.argsort(points[:, 0])
            return float(np.exp(np.interp(wanted[0], points[order, 0], values[order])))
        logarithm = float(LinearNDInterpolator(points, values)(wanted)[0])
        if math.isnan(logarithm):
            raise InvalidArgument(f"shape={shape} of {op}: no measured cases around it")
        return math.exp(logarithm)

    def affine(self, op: str, variant: str, x: str, within: float = 0.1, **where: int) -> Fit:
        """The affine law of an op in one of its variables, such as the alpha and beta of attention-FFN disaggregation.

        Small shapes often follow another law (a GPU takes as long for one token as for sixteen), so the smallest are left out
        one by one until the law holds; where it does is told by `Fit.low`.

        Args:
            op: see `ops`.
            variant: see `ops`.
            x: name of the variable; a product as "batch*kv".
            within: largest relative error of a row.
            where: values that other variables must have; rows with others are left out.

        Returns:
            The law, in microseconds, and the range of x in which it holds.

        Raises:
            UnknownName: no such op or variant.
            InvalidArgument: a name that the op's shape does not have, or fewer than three rows are left.
        """
        columns = self.table(op, variant)
        for name in (*x.split("*"), *where):
            if name not in columns:
                raise InvalidArgument(f"x={x!r}, where={where}: {op} has {', '.join(columns)}")
        keep = np.ones(len(columns["latency_us"]), np.bool_)
        for name, value in where.items():
            keep &= columns[name] == value
        if keep.sum() < 3:
            raise InvalidArgument(f"where={where}: {int(keep.sum())} rows of {op} are left, three are needed")
        values = np.prod([columns[name] for name in x.split("*")], axis=0)[keep]
        time = columns["latency_us"][keep]
        order = np.argsort(values)
        values, time = values[order], time[order]
        while True:
            design = np.column_stack([values, np.ones_like(values)]) / time[:, None]
            alpha, beta = np.linalg.lstsq(design, np.ones_like(time), rcond=None)[0]
            rest = time - (alpha * values + beta)
            more = values > values[0]
            if np.abs(rest / time).max() <= within or more.sum() < 3:
                break
            values, time = values[more], time[more]
        r_squared = 1.0 - float(rest @ rest) / float(((time - time.mean()) ** 2).sum())
        return Fit(float(alpha), float(beta), r_squared, float(values.min()), float(values.max()))

    def crossover(self, op: str, first: str, second: str, x: str, **where: int) -> float:
        """The value of a variable from which on one variant of an op is faster than another.

        Args:
            op: see `ops`.
            first: the variant that is faster in the end.
            second: the other one.
            x: name of the variable.
            where: values that other variables must have.

        Returns:
            The value, log-log between measured ones; the smallest measured one if it is always faster, infinity if it is slower at
            the largest.

        Raises:
            UnknownName: no such op or variant.
            InvalidArgument: the two have not two values of `x` in common.
        """
        times = []
        for variant in (first, second):
            table = self.table(op, variant)
            keep = np.ones(len(table[x]), np.bool_)
            for name, value in where.items():
                keep &= table[name] == value
            times.append(dict(zip(table[x][keep].tolist(), table["latency_us"][keep].tolist(), strict=True)))
        common = sorted(set(times[0]) & set(times[1]))
        if len(common) < 2:
            raise InvalidArgument(
                f"where={where}: {first!r} and {second!r} share {len(common)} values of {x}"
            )
        gap = [math.log(times[0][n] / times[1][n]) for n in common]
        if gap[-1] >= 0:
            return math.inf
        for i in range(len(common) - 1, 0, -1):
            if gap[i - 1] >= 0:
                part = gap[i - 1] / (gap[i - 1] - gap[i])
                return float(common[i - 1] * (common[i] / common[i - 1]) ** part)
        return float(common[0])


def _position(values: NDArray[np.float64], measured: NDArray[np.float64]) -> NDArray[np.float64]:
    """Where values lie on an axis that is logarithmic, or linear up to the first positive measured value if 0 was measured."""
    first = float(measured[measured > 0].min())
    if measured.min() > 0:
        return np.log2(values / first)
    result: NDArray[np.float64] = np.where(
        values < first, values / first, 1.0 + np.log2(np.maximum(values, first) / first)
    )
    return result


def kernel_names() -> list[str]:
    """Names of the sets that ship."""
    return sorted(str(path.parent.relative_to(SHIPPED)) for path in SHIPPED.glob("*/kernels/kernels.csv"))


def load_kernels(name: str | os.PathLike[str]) -> Kernels:
    """A kernel set by name ("h100/kernels") or folder.

    Raises:
        UnknownName: there is no such set and no such folder.
        ProfileError: the set is damaged; the message names file and row.
    """
    folder = _folder(name)
    if not folder.is_relative_to(SHIPPED):
        return _read(os.fspath(name), folder)
    kernels = _shipped(os.fspath(name), folder)
    return replace(kernels, meta=deepcopy(kernels.meta))


def _read(name: str, folder: Path) -> Kernels:
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ProfileError(f"{folder / 'meta.json'}: {error}") from error
    if meta.get("format") != FORMAT:
        raise ProfileError(
            f"{folder / 'meta.json'}: format {meta.get('format')!r}; this version reads {FORMAT}"
        )
    missing = [key for key in ("device", "date", "method", "versions") if not meta.get(key)]
    if missing:
        raise ProfileError(f"{folder / 'meta.json'}: {missing[0]!r} is missing")
    rows = [parse_row(cells, where) for where, cells in read_csv(folder / "kernels.csv", COLUMNS)]
    keys = [row.key for row in rows]
    if not rows or len(set(keys)) < len(keys):
        raise ProfileError(f"{folder / 'kernels.csv'}: there are no rows, or two of the same case")
    return Kernels(name, meta, tuple(rows))


_shipped = cache(_read)
"""Files of the package do not change while it is imported."""


def check_kernels(argument: str, value: Any) -> None:
    """Check a setting that names a kernel set, without reading it.

    Args:
        argument: of which function, for messages.
        value: what was given.

    Raises:
        UnknownName: there is no such set and no such folder.
        InvalidArgument: `value` is no text or path.
    """
    loaded(argument, value, _folder, "the name of a kernel set, or its folder")


def _folder(name: str | os.PathLike[str]) -> Path:
    folder = Path(name) if Path(name).is_dir() else SHIPPED / Path(name)
    if not (folder / "kernels.csv").is_file():
        raise UnknownName("kernel set", os.fspath(name), kernel_names())
    return folder


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write `kernels.csv`."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(row.cells() for row in rows)
