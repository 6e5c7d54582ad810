"""Reports of GuideLLM (`benchmarks.json`), GuideLLM 0.3 to 0.8.

One JSON object with a list `benchmarks`, one for each load; each has `requests`, an object of the lists `successful`, `incomplete`
and `errored`. Of a request these are read: `prompt_tokens`, `output_tokens`, `request_start_time` (s since 1970; `start_time` in
0.3), `time_to_first_token_ms` and `inter_token_latency_ms` (ms; the mean of a request). Its last token is the first plus the gaps;
`request_latency`, which also counts the end of the connection, is not read.
"""

from pathlib import Path
from typing import Any

import numpy as np

from llmgym.errors import TraceError
from llmgym.workloads.runs import parse
from llmgym.workloads.runs.record import MeasuredRun

_START = ("request_start_time", "start_time")


def recognise(record: Any) -> bool:
    """Whether an object is such a report."""
    return isinstance(record, dict) and isinstance(record.get("benchmarks"), list)


def split(record: dict[str, Any]) -> list[Any]:
    """The benchmarks of a report."""
    return list(record["benchmarks"])


def read(file: Path, record: dict[str, Any]) -> MeasuredRun:
    """One benchmark of a report.

    Args:
        file: where it stands, for messages.
        record: the object out of `benchmarks`.

    Raises:
        TraceError: there is no request that was answered, only a sample was kept, or a time or length is missing or cannot be read.
    """
    if record.get("request_samples") is not None:
        raise TraceError(
            f"{file}: holds a sample of the requests only ('request_samples'); a replay needs all of them"
        )
    groups = parse.entry(file, "the benchmark", record, "requests")
    answered = parse.entry(file, "'requests'", groups, "successful")
    if not isinstance(answered, list) or not answered:
        raise TraceError(f"{file}: no request in 'requests.successful'")
    rows = [_request(file, f"requests.successful[{i}]", one) for i, one in enumerate(answered)]
    start, prompt, output, ttft, e2e = np.array(rows, np.float64).T
    talks = [one.get("info", {}).get("conversation_id") for one in answered]
    lost = sum(len(groups.get(name) or []) for name in ("incomplete", "errored"))
    return MeasuredRun(
        "guidellm",
        prompt.astype(np.int64),
        output.astype(np.int64),
        ttft,
        e2e,
        start,
        failed=lost,
        session=sessions(talks),
        facts=parse.facts(record, ("type_",)),
    )


def _request(file: Path, where: str, one: Any) -> tuple[float, int, int, float, float]:
    def value(name: str) -> Any:
        return parse.entry(file, where, one, name)

    start = value(next((name for name in _START if isinstance(one, dict) and name in one), _START[0]))
    prompt = parse.whole(file, f"{where}.prompt_tokens", value("prompt_tokens"))
    output = parse.whole(file, f"{where}.output_tokens", value("output_tokens"))
    if value("time_to_first_token_ms") is None:
        raise TraceError(f"{file}: {where} has no time of its first token: the answer was not streamed")
    ttft_ms = parse.number(file, f"{where}.time_to_first_token_ms", value("time_to_first_token_ms"))
    gap_ms = 0.0
    if output > 1:
        gap_ms = parse.number(file, f"{where}.inter_token_latency_ms", value("inter_token_latency_ms"))
    e2e_ms = ttft_ms + gap_ms * max(output - 1, 0)
    started = parse.number(file, f"{where}.{_START[0]}", start)
    return started, prompt, output, 1e-3 * ttft_ms, 1e-3 * e2e_ms


def sessions(names: list[Any]) -> Any:
    """Numbers of conversations, int32 [n], by their names; None where no two requests share one, or one has none."""
    if any(name is None for name in names) or len(set(names)) == len(names):
        return None
    known: dict[Any, int] = {}
    return np.array([known.setdefault(name, len(known)) for name in names], np.int32)


def write(run: MeasuredRun) -> list[dict[str, Any]]:
    """A report with the requests of a run as GuideLLM 0.4 to 0.8 has them; its own statistics are not in it."""
    assert run.arrival_s is not None
    gaps_ms = 1e3 * run.token_gap_s()
    requests = []
    for i in range(len(run)):
        start, ttft, e2e = float(run.arrival_s[i]), float(run.ttft_s[i]), float(run.e2e_s[i])
        prompt, output = int(run.prompt_tokens[i]), int(run.output_tokens[i])
        requests.append(
            {
                "type_": "generative_request_stats",
                "request_id": str(i),
                "info": {
                    "request_id": str(i),
                    "status": "completed",
                    "timings": {
                        "targeted_start": start,
                        "resolve_start": start,
                        "request_start": start,
                        "first_token_iteration": start + ttft,
                        "last_token_iteration": start + e2e,
                        "token_iterations": output,
                        "request_end": start + e2e,
                        "resolve_end": start + e2e,
                    },
                },
                "input_metrics": {"text_tokens": prompt},
                "output_metrics": {"text_tokens": output},
                "request_start_time": start,
                "request_end_time": start + e2e,
                "request_latency": e2e,
                "prompt_tokens": prompt,
                "output_tokens": output,
                "total_tokens": prompt + output,
                "time_to_first_token_ms": 1e3 * ttft,
                "time_per_output_token_ms": 1e3 * e2e / output,
                "inter_token_latency_ms": float(gaps_ms[i]) if output > 1 else None,
            }
        )
    benchmark = {
        "type_": "generative_benchmark",
        "requests": {"successful": requests, "incomplete": [], "errored": []},
    }
    return [{"metadata": {"version": 1}, "benchmarks": [benchmark]}]
