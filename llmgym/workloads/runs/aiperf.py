"""Records of AIPerf, `profile_export.jsonl`, AIPerf 0.13.

One JSON object a line and request: `metadata` with `request_start_ns` (ns since 1970) and `benchmark_phase`, `metrics` with values
and units, and `error`. Read are `time_to_first_token`, `request_latency`, `input_sequence_length` and `output_sequence_length` of
the phase `profiling`; warm-up requests are left out, cancelled ones and those with an error are counted as failed. The statistics
in `profile_export_aiperf.json` beside it do not tell single requests.
"""

from pathlib import Path
from typing import Any

import numpy as np

from llmgym.errors import TraceError
from llmgym.workloads.runs import parse
from llmgym.workloads.runs.guidellm import sessions
from llmgym.workloads.runs.record import MeasuredRun

_NS = 1e-9
_SECONDS = {"ns": _NS, "us": 1e-6, "ms": 1e-3, "sec": 1.0}
"""Seconds of the units that AIPerf names."""


def recognise(record: Any) -> bool:
    """Whether an object is such a record."""
    return isinstance(record, dict) and isinstance(record.get("metadata"), dict) and "metrics" in record


def summary(record: Any) -> bool:
    """Whether an object is the file of statistics that stands beside the records."""
    return isinstance(record, dict) and isinstance(record.get("request_latency"), dict)


def read(file: Path, records: list[Any]) -> MeasuredRun:
    """The requests of a file.

    Args:
        file: where they stand, for messages.
        records: its objects.

    Raises:
        TraceError: there is no request that was answered, or a time or length is missing or cannot be read.
    """
    rows, talks, failed = [], [], 0
    for i, record in enumerate(records):
        where = f"request {i + 1}"
        metadata = parse.entry(file, where, record, "metadata")
        if metadata.get("benchmark_phase", "profiling") != "profiling":
            continue
        if record.get("error") or metadata.get("was_cancelled"):
            failed += 1
            continue
        metrics = parse.entry(file, where, record, "metrics")
        if "time_to_first_token" not in metrics:
            raise TraceError(f"{file}: {where} has no time_to_first_token; run aiperf with --streaming")
        start_ns = parse.entry(file, f"the metadata of {where}", metadata, "request_start_ns")
        rows.append(
            (
                parse.nanoseconds(file, f"request_start_ns of {where}", start_ns),
                _tokens(file, where, metrics, "input_sequence_length"),
                _tokens(file, where, metrics, "output_sequence_length"),
                _seconds(file, where, metrics, "time_to_first_token"),
                _seconds(file, where, metrics, "request_latency"),
            )
        )
        talks.append(metadata.get("x_correlation_id"))
    if not rows:
        raise TraceError(f"{file}: no request of the phase 'profiling' was answered")
    start, prompt, output, ttft, e2e = zip(*rows, strict=True)
    first_ns = min(start)
    return MeasuredRun(
        "aiperf",
        np.array(prompt, np.int64),
        np.array(output, np.int64),
        np.array(ttft, np.float64),
        np.array(e2e, np.float64),
        _NS * np.array([at - first_ns for at in start], np.float64),
        failed=failed,
        session=sessions(talks),
    )


def _value(file: Path, where: str, metrics: Any, name: str) -> tuple[Any, Any]:
    metric = parse.entry(file, f"metrics of {where}", metrics, name)
    what = f"{name} of {where}"
    return parse.entry(file, what, metric, "value"), parse.entry(file, what, metric, "unit")


def _seconds(file: Path, where: str, metrics: Any, name: str) -> float:
    value, unit = _value(file, where, metrics, name)
    if unit not in _SECONDS:
        raise TraceError(
            f"{file}: unit {parse.shown(unit)} of {name} of {where}, expected one of {', '.join(_SECONDS)}"
        )
    return parse.number(file, f"{name} of {where}", value) * _SECONDS[unit]


def _tokens(file: Path, where: str, metrics: Any, name: str) -> int:
    return parse.whole(file, f"{name} of {where}", _value(file, where, metrics, name)[0])


def write(run: MeasuredRun) -> list[dict[str, Any]]:
    """A run as AIPerf writes it, a record a request; its clock begins at 0 ns."""
    assert run.arrival_s is not None
    gaps_ms = 1e3 * run.token_gap_s()
    records = []
    for i in range(len(run)):
        start_s, e2e_s = float(run.arrival_s[i]), float(run.e2e_s[i])
        metrics: dict[str, tuple[float, str]] = {
            "time_to_first_token": (1e3 * float(run.ttft_s[i]), "ms"),
            "request_latency": (1e3 * e2e_s, "ms"),
            "input_sequence_length": (int(run.prompt_tokens[i]), "tokens"),
            "output_sequence_length": (int(run.output_tokens[i]), "tokens"),
        }
        if run.output_tokens[i] > 1:
            metrics["inter_token_latency"] = (float(gaps_ms[i]), "ms")
        records.append(
            {
                "metadata": {
                    "session_num": i if run.session is None else int(run.session[i]),
                    "request_start_ns": round(start_s / _NS),
                    "request_end_ns": round((start_s + e2e_s) / _NS),
                    "worker_id": "llmgym",
                    "record_processor_id": "llmgym",
                    "benchmark_phase": "profiling",
                    "was_cancelled": False,
                },
                "metrics": {name: {"value": value, "unit": unit} for name, (value, unit) in metrics.items()},
                "error": None,
            }
        )
    return records
