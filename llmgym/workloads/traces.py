"""Readers of public trace files; each gives a `Workload` that replays the file.

- azure (github.com/Azure/AzurePublicDataset, 2023 and 2024): `TIMESTAMP,ContextTokens,GeneratedTokens`, a
  date and time;
- mooncake (github.com/kvcache-ai/Mooncake): one JSON object a line, `timestamp` (ms), `input_length`,
  `output_length`;
- burstgpt (github.com/HPMLL/BurstGPT, 6 or 8 columns): `Timestamp` (s), `Request tokens`, `Response tokens`;
- vidur (github.com/microsoft/vidur): `arrived_at` (s), `num_prefill_tokens`, `num_decode_tokens`;
- csv: `arrival_s`, `prompt_tokens`, `output_tokens`.

Columns are found by name in the first line; others are ignored.
"""

import csv
import gzip
import json
import math
import os
import zlib
from array import array
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from llmgym.errors import InvalidArgument, TraceError
from llmgym.workloads.arrivals import Rows, replay
from llmgym.workloads.lengths import MAX_TOKENS, RequestClass
from llmgym.workloads.workload import Workload


class _Format(NamedTuple):
    columns: tuple[str, str, str]  # arrival, prompt, output
    second: float  # units of time in a second; 0 for date and time
    source: str


_FORMATS = {
    "azure": _Format(
        ("TIMESTAMP", "ContextTokens", "GeneratedTokens"), 0.0, "https://github.com/Azure/AzurePublicDataset"
    ),
    "mooncake": _Format(
        ("timestamp", "input_length", "output_length"), 1e3, "https://github.com/kvcache-ai/Mooncake"
    ),
    "burstgpt": _Format(
        ("Timestamp", "Request tokens", "Response tokens"), 1.0, "https://github.com/HPMLL/BurstGPT"
    ),
    "vidur": _Format(
        ("arrived_at", "num_prefill_tokens", "num_decode_tokens"), 1.0, "https://github.com/microsoft/vidur"
    ),
    "csv": _Format(("arrival_s", "prompt_tokens", "output_tokens"), 1.0, ""),
}


def from_trace(path: str | os.PathLike[str], format: str | None = None) -> Workload:
    """Read a trace file (plain or gzip) as a workload that replays it.

    The replay begins at a row chosen by the seed and goes round; `replay(rows, from_start=True)` of the
    workload's `arrivals.rows` repeats it as recorded. `with_rate` scales its time, `with_arrivals` keeps only
    its lengths. Time 0 is the first request.

    Args:
        path: the file.
        format: "azure", "mooncake", "burstgpt", "vidur" or "csv"; found from the first line by default.

    Raises:
        InvalidArgument: an unknown `format`.
        TraceError: the file cannot be read, is empty, is of no known format, lacks a column, or has a row
            that is not a number, is negative, goes back in time or has no prompt or no output token; names
            file, line and column.
    """
    if format is not None and format not in _FORMATS:
        raise InvalidArgument(f"format={format!r}: must be one of {', '.join(_FORMATS)}")
    file = Path(path)
    times, prompts, outputs = array("d"), array("i"), array("i")
    try:
        with file.open("rb") as raw:
            opener: Callable[..., IO[str]] = gzip.open if raw.read(2) == b"\x1f\x8b" else open
        with opener(file, "rt", encoding="utf-8-sig", newline="") as text:
            found = _read(file, text, format, times, prompts, outputs)
    except (OSError, EOFError, zlib.error) as error:
        raise TraceError(f"{file}: cannot be read: {error}") from error
    except UnicodeDecodeError as error:
        raise TraceError(f"{file}: is not UTF-8 text: {error}") from error
    rows = Rows(np.frombuffer(times), np.frombuffer(prompts, np.int32), np.frombuffer(outputs, np.int32))
    return Workload(
        file.name.partition(".")[0],
        replay(rows),
        (RequestClass(rows=rows),),
        description=f"Replay of {file.name} ({found}), {len(rows)} requests over {rows.arrival_s[-1]:.1f} s.",
        source=_FORMATS[found].source or str(file),
    )


def _read(
    file: Path,
    text: IO[str],
    format: str | None,
    times: "array[float]",
    prompts: "array[int]",
    outputs: "array[int]",
) -> str:
    first = text.readline()
    number = 1
    while first and not first.strip():
        first, number = text.readline(), number + 1
    if not first:
        raise TraceError(f"{file}: is empty: no line with a header or a request")
    found = format or _detect(file, number, first)
    columns = _FORMATS[found].columns
    if found == "mooncake":
        lines = _json_rows(file, number, first, text, columns)
    else:
        lines = _csv_rows(file, number, first, text, columns)
    start = before = 0.0
    for line, (time, prompt, output) in lines:
        at = _seconds(file, line, columns[0], time, _FORMATS[found].second)
        if not times:
            start = before = at
        if at < before:
            raise TraceError(
                f"{file}, line {line}, column {columns[0]!r}: {time!r} is before the row above; sort the file"
            )
        before = at
        prompts.append(_count(file, line, columns[1], prompt, ""))
        hint = (
            " (BurstGPT without failed requests: BurstGPT_without_fails_*.csv)" if found == "burstgpt" else ""
        )
        outputs.append(_count(file, line, columns[2], output, hint))
        times.append(at - start)
    if not times:
        raise TraceError(f"{file}: is empty: a header but no request")
    return found


def _detect(file: Path, number: int, first: str) -> str:
    if first.lstrip().startswith("{"):
        return "mooncake"
    header = {name.strip() for name in first.strip().split(",")}
    for name, form in _FORMATS.items():
        if name != "mooncake" and header.issuperset(form.columns):
            return name
    known = "; ".join(f"{name}: {', '.join(form.columns)}" for name, form in _FORMATS.items())
    best = max(_FORMATS, key=lambda name: len(header.intersection(_FORMATS[name].columns)))
    missing = [c for c in _FORMATS[best].columns if c not in header]
    if len(missing) < 3:
        raise TraceError(f"{file}, line {number}: missing column {missing[0]!r} of the {best} format")
    raise TraceError(f"{file}, line {number}: no known format; columns needed: {known}")


def _csv_rows(
    file: Path, number: int, first: str, text: IO[str], columns: tuple[str, str, str]
) -> Iterator[tuple[int, tuple[str, str, str]]]:
    header = [name.strip() for name in first.strip().split(",")]
    missing = [c for c in columns if c not in header]
    if missing:
        raise TraceError(f"{file}, line {number}: missing column {missing[0]!r}; found {', '.join(header)}")
    a, b, c = (header.index(name) for name in columns)
    reader = csv.reader(text)
    try:
        for row in reader:
            line = number + reader.line_num
            if not row or (len(row) == 1 and not row[0].strip()):
                continue
            if len(row) <= max(a, b, c):
                lost = next(name for name, i in zip(columns, (a, b, c), strict=True) if i >= len(row))
                raise TraceError(
                    f"{file}, line {line}, column {lost!r}: missing, the row has {len(row)} values"
                )
            yield line, (row[a], row[b], row[c])
    except csv.Error as error:
        raise TraceError(f"{file}, line {number + reader.line_num}: {error}") from error


def _json_rows(
    file: Path, number: int, first: str, text: IO[str], columns: tuple[str, str, str]
) -> Iterator[tuple[int, tuple[object, object, object]]]:
    line_text, line = first, number
    while line_text:
        if line_text.strip():
            try:
                row = json.loads(line_text)
            except json.JSONDecodeError as error:
                raise TraceError(
                    f"{file}, line {line}, column {error.colno}: not JSON: {error.msg}"
                ) from error
            if not isinstance(row, dict):
                raise TraceError(f"{file}, line {line}: {line_text.strip()[:40]!r} is not a JSON object")
            for name in columns:
                if name not in row:
                    raise TraceError(f"{file}, line {line}, column {name!r}: missing")
            a, b, c = (row[name] for name in columns)
            yield line, (a, b, c)
        line_text, line = text.readline(), line + 1


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return math.nan
    try:
        return float(value)
    except (ValueError, OverflowError):
        return math.nan


def _seconds(file: Path, line: int, column: str, value: object, second: float) -> float:
    where = f"{file}, line {line}, column {column!r}"
    if second > 0.0:
        number = _number(value)
        if not math.isfinite(number) or number < 0.0:
            raise TraceError(f"{where}: {value!r} is not a time; must be a number, zero or more")
        return number / second
    try:
        moment = datetime.fromisoformat(str(value).strip())
    except ValueError:
        raise TraceError(
            f"{where}: {value!r} is not a date and time such as 2023-11-16 18:15:46.6805900"
        ) from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _count(file: Path, line: int, column: str, value: object, hint: str) -> int:
    number = _number(value)
    if not (number.is_integer() and 1.0 <= number <= MAX_TOKENS):
        raise TraceError(
            f"{file}, line {line}, column {column!r}: {value!r} is not a number of tokens; "
            f"must be whole, 1 or more{hint}"
        )
    return int(number)
