"""Readers of public trace files; each gives a `Workload` that replays the file.

- azure (github.com/Azure/AzurePublicDataset, 2023 and 2024): `TIMESTAMP,ContextTokens,GeneratedTokens`, a date and time;
- mooncake (github.com/kvcache-ai/Mooncake): one JSON object a line, `timestamp` (ms), `input_length`,
  `output_length`; mooncake-s: the same with `timestamp` in seconds;
- burstgpt (github.com/HPMLL/BurstGPT, 6 or 8 columns): `Timestamp` (s), `Request tokens`, `Response tokens`;
- vidur (github.com/microsoft/vidur): `arrived_at` (s), `num_prefill_tokens`, `num_decode_tokens`;
- csv: `arrival_s`, `prompt_tokens`, `output_tokens`, and where they are there `predicted_tokens`, `priority`, `session`,
  `request_class`, `turn` and `think_s`;
- the requests of a measured run, a JSON result of `vllm bench serve`, SGLang, GuideLLM or AIPerf (`llmgym.workloads.runs`).

Columns are found by name in the first line; others are ignored. Header and rows of all but Mooncake are read by
the same strict reader of CSV (RFC 4180), with one restriction: a row is one line, so that a quote that is never
closed cannot swallow the rows below it.
"""

import csv
import gzip
import json
import math
import os
import re
import warnings
import zlib
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from llmgym.errors import InvalidArgument, TraceError
from llmgym.workloads.arrivals import Rows, replay
from llmgym.workloads.lengths import MAX_TOKENS, RequestClass
from llmgym.workloads.runs import is_result, read_run
from llmgym.workloads.workload import Workload

_LATEST_S = 1e12  # doubles still tell 0.1 ms apart, and no rate computed from a span overflows
_SHORTEST_SPAN_S = 1e-9
_PLAINLY_SECONDS_RPS = 100.0  # Mooncake's own traces have 3 to 10 req/s
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)


class _Format(NamedTuple):
    columns: tuple[str, str, str]  # arrival, prompt, output
    second: float  # units of time in a second; 0 for date and time
    source: str


_MOONCAKE = ("timestamp", "input_length", "output_length")
_FORMATS = {
    "azure": _Format(
        ("TIMESTAMP", "ContextTokens", "GeneratedTokens"), 0.0, "https://github.com/Azure/AzurePublicDataset"
    ),
    "mooncake": _Format(_MOONCAKE, 1e3, "https://github.com/kvcache-ai/Mooncake"),
    "mooncake-s": _Format(_MOONCAKE, 1.0, ""),
    "burstgpt": _Format(
        ("Timestamp", "Request tokens", "Response tokens"), 1.0, "https://github.com/HPMLL/BurstGPT"
    ),
    "vidur": _Format(
        ("arrived_at", "num_prefill_tokens", "num_decode_tokens"), 1.0, "https://github.com/microsoft/vidur"
    ),
    "csv": _Format(("arrival_s", "prompt_tokens", "output_tokens"), 1.0, ""),
}
_MORE = {
    "predicted_tokens": 1,
    "priority": -(2**31),
    "session": 0,
    "request_class": 0,
    "turn": 0,
    "think_s": 0,
}
"""Columns that a file of the format csv may have besides, and their least values; one without any value is left out."""
_TIMES = ("think_s",)
"""Those of these that are seconds; the others are whole numbers."""
_JSON = ("mooncake", "mooncake-s")
_RESULTS = ("vllm", "sglang", "guidellm", "aiperf")
_FOUND = {name: form for name, form in _FORMATS.items() if name not in _JSON}  # by their header


class _Place(NamedTuple):
    """A line of a file, for messages."""

    file: Path
    line: int

    def error(self, column: str | int, what: str) -> TraceError:
        return TraceError(f"{self.file}, line {self.line}, column {column!r}: {what}")


def from_trace(path: str | os.PathLike[str], format: str | None = None) -> Workload:
    """Read a trace file (plain or gzip) as a workload that replays it.

    The replay begins at a row chosen by the seed and goes round; `replay(rows, from_start=True)` of the
    workload's `arrivals.rows` repeats it as recorded. `with_rate` scales its time, `with_arrivals` keeps only
    its lengths. Time 0 is the first request.

    Args:
        path: the file.
        format: "azure", "mooncake", "mooncake-s", "burstgpt", "vidur" or "csv", or "vllm", "sglang", "guidellm" or "aiperf" for the
            requests of a measured run; found from the first line by default. Timestamps of "mooncake" are milliseconds, those
            of "mooncake-s" seconds.

    Warns:
        UserWarning: the format "mooncake" was found rather than given, and its timestamps are plainly seconds:
            read as milliseconds, more than 100 requests arrive each second.

    Raises:
        InvalidArgument: an unknown `format`.
        TraceError: there is no such file, or it cannot be read, is empty, is of no known format, lacks a column or has one twice,
            or has a row with too few or too many values, or a value that is not a number, is negative, goes back in time, is
            beyond 1e12 s or has no prompt or no output token; names file, line and column. Or its turns are not those of
            conversations (see `Rows`).
    """
    if format is not None and format not in (*_FORMATS, *_RESULTS):
        raise InvalidArgument(f"format={format!r}: must be one of {', '.join((*_FORMATS, *_RESULTS))}")
    file = Path(path)
    if format in _RESULTS or (format is None and _is_result(file)):
        return _of_run(file, format)
    times, prompts, outputs = array("d"), array("i"), array("i")
    more: dict[str, array[Any]] = {}
    try:
        with file.open("rb") as raw:
            opener: Callable[..., IO[str]] = gzip.open if raw.read(2) == b"\x1f\x8b" else open
        # bytes that are no UTF-8 come through as surrogates, so that _lines can say where they are
        with opener(file, "rt", encoding="utf-8-sig", errors="surrogateescape", newline="") as text:
            read_as = _read(file, text, format, times, prompts, outputs, more)
    except FileNotFoundError:
        raise TraceError(f"{file}: no such file") from None
    except (OSError, EOFError, zlib.error) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise TraceError(f"{file}: cannot be read: {why}") from error
    try:
        rows = Rows(
            np.frombuffer(times),
            np.frombuffer(prompts, np.int32),
            np.frombuffer(outputs, np.int32),
            **{name: np.frombuffer(values, values.typecode) for name, values in more.items()},
        )
    except InvalidArgument as error:
        raise TraceError(f"{file}: {error}") from None
    arrivals = replay(rows)
    if read_as == "mooncake" and format is None and _PLAINLY_SECONDS_RPS < arrivals.rate_rps < math.inf:
        warnings.warn(
            f"{file}: {arrivals.rate_rps:,.0f} requests arrive each second if its timestamps are milliseconds, as "
            "Mooncake's are; if they are seconds, read it with format='mooncake-s', else with format='mooncake'",
            stacklevel=2,
        )
    return Workload(
        file.name.partition(".")[0],
        arrivals,
        (RequestClass(rows=rows),),
        description=f"Replay of {file.name} ({read_as}), {len(rows)} requests over {rows.arrival_s[-1]:.1f} s.",
        source=_FORMATS[read_as].source or str(file),
    )


def _is_result(file: Path) -> bool:
    """Whether a file begins as a result of a benchmark does; False where it cannot be read."""
    try:
        with file.open("rb") as raw:
            opener: Callable[..., IO[str]] = gzip.open if raw.read(2) == b"\x1f\x8b" else open
        with opener(file, "rt", encoding="utf-8-sig", errors="surrogateescape") as text:
            return is_result(text.readline())
    except (OSError, EOFError, zlib.error):
        return False


def _of_run(file: Path, format: str | None) -> Workload:
    """The requests of a measured run as a workload."""
    run = read_run(file, format)
    if run.arrival_s is None and not run.rate_rps == math.inf:
        raise TraceError(f"{file}: does not tell when its requests were sent")
    rows = run.rows()
    return Workload(
        file.name.partition(".")[0],
        replay(rows),
        (RequestClass(rows=rows),),
        description=f"Replay of {file.name} ({run.format}), {len(rows)} requests over {rows.arrival_s[-1]:.1f} s.",
        source=str(file),
    )


def _read(
    file: Path,
    text: IO[str],
    format: str | None,
    times: "array[float]",
    prompts: "array[int]",
    outputs: "array[int]",
    more: "dict[str, array[Any]]",
) -> str:
    lines = _lines(file, text)
    first = next(lines, None)
    if first is None:
        raise TraceError(f"{file}: is empty: no line with a header or a request")
    place, head = first
    rows: Iterator[tuple[_Place, list[Any]]]
    others: tuple[str, ...] = ()
    if format in _JSON or (format is None and head.lstrip().startswith("{")):
        read_as = format or "mooncake"
        rows = _json_rows(chain([first], lines))
    else:
        header = [name.strip() for name in _cells(place, head, [])]
        read_as = format or _detect(place, header)
        others = tuple(name for name in _MORE if read_as == "csv" and name in header)
        rows = _csv_rows(place, header, (*_FORMATS[read_as].columns, *others), lines)
    (arrival, prompt, output), second = _FORMATS[read_as].columns, _FORMATS[read_as].second
    hint = (
        " (BurstGPT without failed requests: BurstGPT_without_fails_*.csv)" if read_as == "burstgpt" else ""
    )
    start = before = 0.0
    for place, values in rows:
        arrival_s = _seconds(place, arrival, values[0], second)
        if not times:
            start = before = arrival_s
            more.update(
                (name, array("d" if name in _TIMES else "i"))
                for name, value in zip(others, values[3:])
                if value.strip(" \t")
            )
        if arrival_s < before:
            raise place.error(arrival, f"{_shown(values[0])} is before the row above; sort the file")
        before = arrival_s
        prompts.append(_count(place, prompt, values[1]))
        outputs.append(_count(place, output, values[2], hint))
        for name, value in zip(others, values[3:]):
            if name in more:
                more[name].append(
                    _seconds(place, name, value, 1.0)
                    if name in _TIMES
                    else _whole(place, name, value, _MORE[name])
                )
            elif value.strip(" \t"):
                raise place.error(name, f"{_shown(value)} where the first row has no value")
        times.append(arrival_s - start)
    if not times:
        raise TraceError(f"{file}: is empty: a header but no request")
    if 0.0 < times[-1] < _SHORTEST_SPAN_S:
        raise place.error(
            arrival, f"all requests within {times[-1]:g} s; must be one instant, or 1e-9 s or more"
        )
    return read_as


def _lines(file: Path, text: IO[str]) -> Iterator[tuple[_Place, str]]:
    """The lines that are not blank, each with its place."""
    for number, line in enumerate(text, start=1):
        place = _Place(file, number)
        if not line.isascii():
            try:
                line.encode()
            except UnicodeEncodeError as error:
                raise place.error(error.start + 1, "is not UTF-8 text") from None
        if line.strip(" \t\r\n"):
            yield place, line


def _cells(place: _Place, line: str, header: list[str]) -> list[str]:
    """The values of one line of CSV; `header` names the columns in messages."""
    try:
        return next(csv.reader((line,), strict=True))
    except csv.Error as error:
        what = str(error)
    if what.startswith("unexpected end"):
        at, what = len(line), "a quote is opened here and not closed on this line"
    else:
        # The reader says what is wrong, not where: at the end of the shortest beginning of the line that it refuses so.
        at = bisect_left(range(len(line)), True, key=lambda end: _csv_error(line[: end + 1]) == what)
    before = next(csv.reader((line[:at],)), [])
    raise place.error(_column(header, max(len(before) - 1, 0)), what)


def _csv_error(text: str) -> str:
    try:
        next(csv.reader((text,), strict=True), None)
    except csv.Error as error:
        return str(error)
    return ""


def _column(header: list[str], at: int) -> str | int:
    """Name of a column, or its number from 1 where the header has none."""
    return header[at] if at < len(header) else at + 1


def _detect(place: _Place, header: list[str]) -> str:
    for name, form in _FOUND.items():
        if set(header).issuperset(form.columns):
            return name
    best = max(_FOUND, key=lambda name: len(set(header).intersection(_FOUND[name].columns)))
    missing = [name for name in _FOUND[best].columns if name not in header]
    where = f"{place.file}, line {place.line}"
    if len(missing) < 3:
        raise TraceError(f"{where}: missing column {missing[0]!r} of the {best} format")
    known = "; ".join(f"{name}: {', '.join(form.columns)}" for name, form in _FORMATS.items())
    raise TraceError(f"{where}: no known format; columns needed: {known}")


def _csv_rows(
    place: _Place, header: list[str], columns: tuple[str, ...], lines: Iterator[tuple[_Place, str]]
) -> Iterator[tuple[_Place, list[Any]]]:
    for name in columns:
        if name not in header:
            there = _shown(", ".join(header))
            raise TraceError(f"{place.file}, line {place.line}: missing column {name!r}; found {there}")
        if header.count(name) > 1:
            raise place.error(name, f"is there {header.count(name)} times")
    chosen = [header.index(name) for name in columns]
    for place, line in lines:
        row = _cells(place, line, header)
        if len(row) < len(header):
            raise place.error(
                header[len(row)], f"missing, the row has {len(row)} values and the header {len(header)}"
            )
        if len(row) > len(header):
            raise place.error(
                len(header) + 1, f"too many, the row has {len(row)} values and the header {len(header)}"
            )
        yield place, [row[at] for at in chosen]


def _json_rows(lines: Iterator[tuple[_Place, str]]) -> Iterator[tuple[_Place, list[Any]]]:
    for place, line in lines:
        try:
            # numbers stay text: one grammar of numbers for every format, and none that is too long to convert
            row = json.loads(
                line, parse_int=str, parse_float=str, parse_constant=str, object_pairs_hook=_object
            )
        except json.JSONDecodeError as error:
            raise place.error(error.colno, f"not JSON: {error.msg}") from error
        except RecursionError:
            raise place.error(1, "nested too deeply for a request") from None
        except _Twice as error:
            raise place.error(str(error), "is there twice") from None
        if not isinstance(row, dict):
            raise place.error(1, f"{_shown(line.strip())} is not a JSON object")
        for name in _MOONCAKE:
            if name not in row:
                raise place.error(name, "missing")
        yield place, [row[name] for name in _MOONCAKE]


class _Twice(Exception):
    """A key that an object has twice."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        names = [name for name, _ in pairs]
        raise _Twice(next(name for name in names if names.count(name) > 1))
    return record


def _shown(value: object) -> str:
    """A value in a message: short, whatever it is."""
    if isinstance(value, str):
        return repr(value) if len(value) <= 40 else f"{value[:37]!r}..."
    return repr(value) if value is None or isinstance(value, bool) else f"a {type(value).__name__}"


def _number(value: object) -> float:
    """A decimal number as text, as a float (infinite if it is too large); NaN for anything else."""
    if not isinstance(value, str) or not _NUMBER.fullmatch(value.strip(" \t")):
        return math.nan
    return float(value)


def _seconds(place: _Place, column: str, value: object, second: float) -> float:
    if second > 0.0:
        at = _number(value) / second
        if not 0.0 <= at <= _LATEST_S:
            raise place.error(column, f"{_shown(value)} is not a time; must be a number from 0 to 1e12 s")
        return at
    try:
        moment = datetime.fromisoformat(str(value).strip(" \t"))
    except ValueError:
        raise place.error(
            column, f"{_shown(value)} is not a date and time such as 2023-11-16 18:15:46.6805900"
        ) from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _whole(place: _Place, column: str, value: object, least: int) -> int:
    number = _number(value)
    if not (number.is_integer() and least <= number <= 2**31 - 1):
        raise place.error(column, f"{_shown(value)} is not a whole number from {least} to 2147483647")
    return int(number)


def _count(place: _Place, column: str, value: object, hint: str = "") -> int:
    number = _number(value)
    if not (number.is_integer() and 1.0 <= number <= MAX_TOKENS):
        raise place.error(
            column,
            f"{_shown(value)} is not a number of tokens; must be whole, from 1 to {MAX_TOKENS}{hint}",
        )
    return int(number)
