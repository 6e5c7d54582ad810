"""Reading and writing the files of measured runs, whatever their format."""

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from llmgym.core.checks import choice, whole
from llmgym.errors import InvalidArgument, TraceError
from llmgym.workloads.runs import aiperf, guidellm, mooncake, parse, plain, sglang, vllm
from llmgym.workloads.runs.record import MeasuredRun


class _Format(NamedTuple):
    """How a format is written.

    Attributes:
        write: its objects, of a run.
        lines: whether they stand one a line, so that a file can hold many.
    """

    write: Callable[[MeasuredRun], list[dict[str, Any]]]
    lines: bool


_JSON = {
    "vllm": _Format(vllm.write, False),
    "sglang": _Format(sglang.write, True),
    "guidellm": _Format(guidellm.write, False),
    "aiperf": _Format(aiperf.write, True),
    "mooncake": _Format(mooncake.write, True),
}
FORMATS = ("vllm", "sglang", "guidellm", "aiperf", "llmgym")
"""Formats of measured runs: results of `vllm bench serve`, SGLang's `bench_serving`, GuideLLM and AIPerf, and the CSV of
`llmgym replay --out`."""
WRITTEN = (*FORMATS, "mooncake")
"""Formats that are written: those, and the requests alone as a trace in Mooncake's format."""


def read_runs(path: str | os.PathLike[str], format: str | None = None) -> list[MeasuredRun]:
    """Every run in a result file, plain or gzip, in the order of the file.

    Args:
        path: the file.
        format: a name of `FORMATS`; found from what the file holds by default.

    Raises:
        UnknownName: an unknown `format`.
        TraceError: there is no such file, it is of no known format, or tells no single requests, or something in it cannot be read.
    """
    if format is not None:
        choice("format", format, FORMATS)
    file = Path(path)
    text = _text(file)
    start = text.lstrip()[:1]
    if not start:
        raise TraceError(f"{file}: is empty")
    if format == "llmgym" or (format is None and start != "{"):
        return [_checked(file, lambda: plain.read(file, text))]
    records = _objects(file, text)
    found = format or _recognised(file, records[0])
    if found == "aiperf":
        return [_checked(file, lambda: aiperf.read(file, records))]
    if found == "guidellm":
        parts = [one for record in records for one in guidellm.split(_report(file, record))]
        if not parts:
            raise TraceError(f"{file}: its list 'benchmarks' is empty")
        return [_checked(file, lambda one=one: guidellm.read(file, one)) for one in parts]  # type: ignore[misc]
    read = vllm.read if found == "vllm" else sglang.read
    return [_checked(file, lambda one=one: read(file, one)) for one in records]  # type: ignore[misc]


def read_run(
    path: str | os.PathLike[str], format: str | None = None, number: int | None = None
) -> MeasuredRun:
    """One run of a result file.

    Args:
        path: the file.
        format: a name of `FORMATS`; found from what the file holds by default.
        number: which run of the file, from 1 on; needed where it holds several.

    Raises:
        InvalidArgument: no such run, or several and no `number`.
        UnknownName, TraceError: as `read_runs` does.
    """
    runs = read_runs(path, format)
    if number is None:
        if len(runs) > 1:
            raise InvalidArgument(
                f"number=None: {os.fspath(path)} holds {len(runs)} runs; expected which, from 1 to {len(runs)}"
            )
        return runs[0]
    return runs[whole("number", number, 1, len(runs)) - 1]


def write_run(path: str | os.PathLike[str], format: str, run: MeasuredRun) -> None:
    """Write a run; a file that is there is replaced.

    Args:
        path: the file.
        format: a name of `WRITTEN`.
        run: what is written; its arrivals have to be known.

    Raises:
        UnknownName: an unknown `format`.
        InvalidArgument: a run without arrivals, or the file cannot be written.
    """
    choice("format", format, WRITTEN)
    if run.arrival_s is None:
        raise InvalidArgument("run: its arrivals are not known; expected a run with them (`with_arrivals`)")
    if format == "llmgym":
        text = plain.write(run)
    else:
        form = _JSON[format]
        text = "".join(f"{json.dumps(record)}\n" for record in form.write(run))
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise InvalidArgument(f"path={os.fspath(path)!r}: cannot be written ({error.strerror})") from None


def is_result(head: str) -> bool:
    """Whether the first line of a file is that of a JSON result of a benchmark, and not of a trace in Mooncake's format."""
    if not head.lstrip().startswith("{"):
        return False
    try:
        record = json.loads(head)
    except ValueError:
        return head.strip() == "{" or '"benchmarks"' in head  # an object over several lines
    return any(
        known(record) for known in (vllm.recognise, sglang.recognise, guidellm.recognise, aiperf.recognise)
    )


def _checked(file: Path, read: Callable[[], MeasuredRun]) -> MeasuredRun:
    try:
        return read()
    except InvalidArgument as error:
        raise TraceError(f"{file}: {error}") from None


def _text(file: Path) -> str:
    try:
        data = file.read_bytes()
        return (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode("utf-8-sig")
    except FileNotFoundError:
        raise TraceError(f"{file}: no such file") from None
    except UnicodeDecodeError as error:
        raise TraceError(f"{file}: byte {error.start + 1} is not UTF-8 text") from None
    except (OSError, EOFError) as error:
        raise TraceError(f"{file}: cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _objects(file: Path, text: str) -> list[Any]:
    """The JSON values that follow each other in a file, at least one."""
    decoder, found, at = json.JSONDecoder(), [], 0
    while at < len(text):
        if text[at].isspace():
            at += 1
            continue
        try:
            value, at = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            raise TraceError(
                f"{file}, line {error.lineno}, column {error.colno}: not JSON: {error.msg}"
            ) from error
        except RecursionError:
            raise TraceError(f"{file}: nested too deeply for a result") from None
        found.append(value)
    return found


def _report(file: Path, record: Any) -> dict[str, Any]:
    if not guidellm.recognise(record):
        raise TraceError(f"{file}: has no list 'benchmarks', as GuideLLM's reports have")
    found: dict[str, Any] = record
    return found


def _recognised(file: Path, record: Any) -> str:
    for name, module in (("vllm", vllm), ("sglang", sglang), ("guidellm", guidellm), ("aiperf", aiperf)):
        if module.recognise(record):
            return name
    if aiperf.summary(record):
        raise TraceError(
            f"{file}: holds AIPerf's statistics and no single requests; give profile_export.jsonl, which stands beside it"
        )
    fields = ", ".join(list(record)[:6]) if isinstance(record, dict) else parse.shown(record)
    raise TraceError(
        f"{file}: no known format (its first object has {fields}); expected a result of vllm bench serve, SGLang's bench_serving, "
        "GuideLLM or AIPerf, or a CSV file"
    )
