"""Measured tables of a profile: reading, checking, writing `tables.csv`, and putting them on the knots of a
`StepCost`.

One row is one measured shape: `op, dtype`, the shape in the columns its op uses (others empty), `latency_us` (median of the
repetitions, microseconds, for one whole forward pass: all layers), `iqr_us` (their interquartile range) and, where it was
measured, `power_w`. Ops and their shape columns are in `OPS`; the first four are needed for a step cost.

Attention is measured on a grid, each variable on its own list of values. The far corner (large batch and long
context) may be missing, as memory ends there; a gap anywhere else is an error.
"""

import csv
import gzip
import math
import zlib
from collections.abc import Collection, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmgym.errors import ProfileError
from llmgym.profiles.cost import Range, StepCost, axes, table_cost
from llmgym.profiles.laws import MAX_SEQUENCES, MAX_TOKENS

Floats = NDArray[np.float64]

OPS: dict[str, tuple[str, ...]] = {
    "dense": ("tokens",),
    "prefill_attention": ("chunk", "context"),
    "decode_attention": ("batch", "kv_tokens"),
    "host": ("sequences",),
    "decode_attention_beside": ("batch", "kv_tokens"),
    "all_reduce": ("bytes",),
    "send_recv": ("bytes",),
    "copy_on_device": ("bytes",),
    "copy_to_device": ("bytes",),
    "copy_to_host": ("bytes",),
}
"""Shape columns of each op. `kv_tokens` is the total over the batch, a multiple of it. `decode_attention_beside` is what the
decodes add in one kernel with a prefill chunk; it has the shapes of `decode_attention`."""
REQUIRED_OPS = ("dense", "prefill_attention", "decode_attention", "host")
SHAPE_COLUMNS = ("tokens", "chunk", "context", "batch", "kv_tokens", "sequences", "bytes")
COLUMNS = ("op", "dtype", *SHAPE_COLUMNS, "latency_us", "iqr_us", "power_w")


class Table(NamedTuple):
    """Measured rows of one op.

    Attributes:
        shape: int64 [rows, len(OPS[op])].
        latency_us: float64 [rows], median, microseconds.
        iqr_us: float64 [rows], interquartile range, microseconds.
        power_w: float64 [rows], mean board power in watts, NaN where it was not measured.
        dtype: str [rows].
    """

    shape: NDArray[np.int64]
    latency_us: Floats
    iqr_us: Floats
    power_w: Floats
    dtype: tuple[str, ...]


def read_csv(path: Path, columns: Collection[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """The rows of a CSV file by column, each with its place for messages.

    Args:
        path: the file; its text is compressed where the name ends in .gz.
        columns: those that it must have.

    Raises:
        ProfileError: the file cannot be read, is no strict CSV, lacks a column, or has a row with too few or too many
            values.
    """
    above = 0  # the last line that was read well: where a quote is opened, not where the reader gives up
    try:
        opener = gzip.open if path.suffix == ".gz" else open
        with opener(path, "rt", newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file, strict=True)
            missing = [name for name in columns if name not in (reader.fieldnames or ())]
            if missing:
                raise ProfileError(f"{path}: column {missing[0]!r} is missing; expected {', '.join(columns)}")
            above = 1
            for row in reader:
                above = reader.line_num
                where = f"{path}, row {above}"
                if None in row or None in row.values():
                    raise ProfileError(f"{where}: expected {len(reader.fieldnames or ())} values")
                yield where, row
    except (OSError, EOFError, zlib.error) as error:
        raise ProfileError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    except UnicodeDecodeError as error:
        raise ProfileError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from None
    except csv.Error as error:
        raise ProfileError(f"{path}, row {above + 1}: {error}") from None


def finite(row: Mapping[str, str], field: str, where: str) -> float:
    """The number in a field of a row. Raises `ProfileError` where there is none."""
    text = row[field]
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ProfileError(f"{where}: field {field!r} is {text!r}; expected a finite number")
    return value


def read_tables(path: Path) -> dict[str, Table]:
    """Read and check `tables.csv`.

    Raises:
        ProfileError: a column, an op or a value is missing or impossible; the message names file, row and
            field.
    """
    rows: dict[str, list[tuple[tuple[int, ...], float, float, float, str]]] = {}
    needed = [name for name in COLUMNS if name != "power_w"]
    for where, row in read_csv(path, needed):
        op = row["op"]
        if op not in OPS:
            raise ProfileError(f"{where}: field 'op' is {op!r}; expected one of {', '.join(OPS)}")
        shape = []
        for name in OPS[op]:
            size = finite(row, name, where)
            if size != int(size) or not (0 if name == "context" else 1) <= size < 2**63:
                low = "0" if name == "context" else "1"
                raise ProfileError(
                    f"{where}: field {name!r} is {row[name]!r}; expected a whole number >= {low}"
                )
            shape.append(int(size))
        latency, spread = finite(row, "latency_us", where), finite(row, "iqr_us", where)
        if latency <= 0:
            raise ProfileError(f"{where}: field 'latency_us' is {latency!r}; expected a number > 0")
        if spread < 0:
            raise ProfileError(f"{where}: field 'iqr_us' is {spread!r}; expected a number >= 0")
        power = math.nan
        if row.get("power_w"):
            power = finite(row, "power_w", where)
            if power <= 0:
                raise ProfileError(f"{where}: field 'power_w' is {power!r}; expected a number > 0 or nothing")
        if op.startswith("decode_attention") and shape[1] % shape[0]:
            raise ProfileError(
                f"{where}: field 'kv_tokens' is {shape[1]}; expected a multiple of batch {shape[0]}"
            )
        rows.setdefault(op, []).append((tuple(shape), latency, spread, power, row["dtype"]))
    for op in REQUIRED_OPS:
        if op not in rows:
            raise ProfileError(
                f"{path}: there is no row with op {op!r}; needed are {', '.join(REQUIRED_OPS)}"
            )
    tables = {}
    for op, entries in rows.items():
        entries.sort()
        shapes = [entry[0] for entry in entries]
        for first, second in pairwise(shapes):
            if first == second:
                raise ProfileError(f"{path}: op {op!r} has the shape {dict(zip(OPS[op], first))} twice")
        if len(shapes) < 2:
            raise ProfileError(f"{path}: op {op!r} has one row only; two or more are needed to interpolate")
        medians, spreads, powers = (
            np.array([entry[at] for entry in entries], np.float64) for at in (1, 2, 3)
        )
        dtypes = tuple(entry[4] for entry in entries)
        tables[op] = Table(np.array(shapes, np.int64), medians, spreads, powers, dtypes)
    return tables


def write_tables(path: Path, tables: Mapping[str, Table]) -> None:
    """Write `tables.csv`; numbers with all their digits, so that reading gives the same bits."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for op, table in tables.items():
            for at, shape in enumerate(table.shape.tolist()):
                row: dict[str, object] = {"op": op, "dtype": table.dtype[at], **dict(zip(OPS[op], shape))}
                row["latency_us"], row["iqr_us"] = (
                    repr(float(table.latency_us[at])),
                    repr(float(table.iqr_us[at])),
                )
                power = float(table.power_w[at])
                row["power_w"] = "" if math.isnan(power) else repr(power)
                writer.writerow(row)


def _distinct(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sorted, each once. `np.unique` would import masked arrays, which takes longer than loading a profile."""
    return np.array(sorted(set(values.tolist())), np.int64)


def _grid(op: str, rows: NDArray[np.int64], columns: NDArray[np.int64], values: Floats, where: str) -> Floats:
    """Logarithm of `values` as a grid over the distinct rows and columns; the far corner is filled, other gaps are errors."""
    row_names, column_names = OPS[op]
    row_at, column_at = _distinct(rows), _distinct(columns)
    if len(row_at) < 2 or len(column_at) < 2:
        raise ProfileError(
            f"{where}: op {op!r} needs two or more values of {row_names!r} and of {column_names!r}"
        )
    grid = np.full((len(row_at), len(column_at)), np.nan)
    grid[np.searchsorted(row_at, rows), np.searchsorted(column_at, columns)] = np.log(values)
    for i in range(len(row_at)):
        for j in range(len(column_at)):
            if not np.isnan(grid[i, j]):
                continue
            if i == 0 or j == 0 or not np.isnan(grid[i:, j:]).all():
                each = " a sequence" if op.startswith("decode_attention") else ""
                raise ProfileError(
                    f"{where}: op {op!r} has a hole at {row_names}={row_at[i]}, "
                    f"{column_names}={column_at[j]}{each}; only the far corner of the grid may be missing"
                )
    for i in range(1, len(row_at)):
        for j in range(1, len(column_at)):
            if np.isnan(grid[i, j]):
                grid[i, j] = grid[i - 1, j] + max(grid[i, j - 1] - grid[i - 1, j - 1], 0.0)
    return grid


def _line(x: Floats, knots: Floats, values: Floats) -> Floats:
    """Linear interpolation along the last axis of `values`, with the slopes of the outer segments beyond the
    ends.
    """
    cell = np.clip(np.searchsorted(knots, x, side="right") - 1, 0, len(knots) - 2)
    part = (x - knots[cell]) / (knots[cell + 1] - knots[cell])
    result: Floats = values[..., cell] + part * (values[..., cell + 1] - values[..., cell])
    return result


def _context_position(context: Floats, step: float) -> Floats:
    """Position on the axis of context: linear up to `step` tokens, then log2, as the compiled lookup has it."""
    result: Floats = np.where(context < step, context / step, 1.0 + np.log2(np.maximum(context, step) / step))
    return result


def tables_cost(tables: Mapping[str, Table], where: str) -> StepCost:
    """The compiled cost of measured tables: the same piecewise log-log surface, on the knots of a `StepCost`.

    Between measured values the surface is the straight line in log-log space; it is exact at those measured
    values that are knots (powers of two, and 0 for context).
    """
    dense, prefill, decode, host = (tables[op] for op in REQUIRED_OPS)
    batch, each = decode.shape[:, 0], decode.shape[:, 1] // decode.shape[:, 0]
    chunk, context = prefill.shape[:, 0], prefill.shape[:, 1]
    if context.min() != 0:
        raise ProfileError(
            f"{where}: op 'prefill_attention' starts at context={context.min()}; it must have context 0"
        )
    prefill_grid = _grid("prefill_attention", chunk, context, prefill.latency_us * 1e-6, where)
    decode_grid = _grid("decode_attention", batch, each, decode.latency_us * 1e-6, where)
    tokens = dense.shape[:, 0].astype(np.float64)

    def ends(values: NDArray[np.int64]) -> tuple[float, float]:
        return float(values.min()), float(values.max())

    measured = Range(
        tokens=ends(dense.shape[:, 0]),
        chunk=ends(chunk),
        context=ends(context),
        batch=ends(batch),
        kv=ends(each),
        kv_total=float(decode.shape[:, 1].max()),
    )
    knots = axes(measured)
    counts = np.arange(1.0, min(MAX_TOKENS, int(tokens[-1])) + 1)
    dense_time = np.exp(_line(np.log(counts), np.log(tokens), np.log(dense.latency_us * 1e-6)))
    sequences = np.arange(1.0, MAX_SEQUENCES + 1)
    host_time = np.maximum(_line(sequences, host.shape[:, 0].astype(np.float64), host.latency_us * 1e-6), 0.0)
    step = knots.context[1]
    across = _line(
        _context_position(knots.context, step),
        _context_position(_distinct(context).astype(float), step),
        prefill_grid,
    )
    prefill_knots = _line(np.log2(knots.chunk), np.log2(_distinct(chunk)), across.T).T

    def on_knots(grid: Floats) -> Floats:
        across = _line(np.log2(knots.kv), np.log2(_distinct(each)), grid)
        return np.exp(_line(np.log2(knots.batch), np.log2(_distinct(batch)), across.T).T)

    beside = None
    if "decode_attention_beside" in tables:
        measured_beside = tables["decode_attention_beside"]
        if not np.array_equal(measured_beside.shape, decode.shape):
            raise ProfileError(
                f"{where}: 'decode_attention_beside' must have the shapes of 'decode_attention'"
            )
        beside = on_knots(
            _grid("decode_attention_beside", batch, each, measured_beside.latency_us * 1e-6, where)
        )
    return table_cost(
        dense=np.concatenate([[0.0], dense_time]),
        prefill=np.exp(prefill_knots),
        decode=on_knots(decode_grid),
        host=np.concatenate([[0.0], host_time]),
        knots=knots,
        measured=measured,
        beside=beside,
    )
