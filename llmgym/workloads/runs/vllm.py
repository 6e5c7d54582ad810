"""Results of `vllm bench serve --save-result --save-detailed`, vLLM 0.24 to 0.31.

One JSON object, or one a line with `--append-result`. Per request it has the lists `input_lens`, `output_lens` (tokens), `ttfts`,
`itls` (s; the gaps between the messages that hold the tokens) and `start_times` (s, on a clock of any zero), and from 0.31 on
`latencies` (s). Who failed has an output of 0 tokens and an entry in `errors`. Without `--save-detailed` none of these are there.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np

from llmgym.errors import TraceError
from llmgym.workloads.runs import parse
from llmgym.workloads.runs.record import MeasuredRun

_FACTS = ("date", "backend", "model_id", "num_prompts", "burstiness")
_P = 99
"""The percentile that vLLM prints unless it is asked for others."""


def recognise(record: Any) -> bool:
    """Whether an object is such a result."""
    return isinstance(record, dict) and "model_id" in record and "endpoint_type" in record


def read(file: Path, record: dict[str, Any]) -> MeasuredRun:
    """One result.

    Args:
        file: where it stands, for messages.
        record: the object.

    Raises:
        TraceError: it has no times of single requests, or one that cannot be read.
    """
    needs_details(file, record, "vllm bench serve with --save-result --save-detailed")
    start = record.get("start_times")
    return from_lists(file, record, "vllm", start, record.get("latencies"), _FACTS)


def needs_details(file: Path, record: dict[str, Any], command: str) -> None:
    """Raise `TraceError` where a result has no times of single requests, and say which command writes them."""
    if "ttfts" not in record:
        raise TraceError(f"{file}: has no times of single requests ('ttfts'); run {command}")


def from_lists(
    file: Path, record: dict[str, Any], format: str, start: Any, latencies: Any, names: tuple[str, ...]
) -> MeasuredRun:
    """A run out of the lists that vLLM and SGLang have in common.

    Args:
        file: where it stands, for messages.
        record: the object, with `input_lens`, `output_lens`, `ttfts`, `itls` and perhaps `errors`.
        format: of the file.
        start: list of the times at which requests were sent, s; None if there is none.
        latencies: list of the times from sending to the last token, s; None: a first token and all gaps after it.
        names: further fields that are told as they are.

    Raises:
        TraceError: a list is missing, has another length, or an entry that cannot be read.
    """
    prompt = np.array(
        parse.column(
            file, "input_lens", parse.entry(file, "the run", record, "input_lens"), None, parse.whole
        ),
        np.int64,
    )
    n = len(prompt)

    def values(name: str, read: Any) -> list[Any]:
        return parse.column(file, name, parse.entry(file, "the run", record, name), n, read)

    output = np.array(values("output_lens", parse.whole), np.int64)
    ttft = np.array(values("ttfts", parse.number), np.float64)
    if latencies is None:
        e2e = ttft + np.array(values("itls", _total), np.float64)
    else:
        e2e = np.array(parse.column(file, "latencies", latencies, n, parse.number), np.float64)
    arrival = None
    if start is not None:
        arrival = np.array(parse.column(file, "start_times", start, n, parse.number), np.float64)
    errors = record.get("errors") or [""] * n
    good = (output > 0) & np.array([not text for text in parse.column(file, "errors", errors, n, _as_it_is)])
    if not good.any():
        raise TraceError(f"{file}: none of {n} requests was answered")
    if not ttft[good].any():
        raise TraceError(
            f"{file}: all 'ttfts' are 0: the answers were not streamed, so nobody saw first tokens"
        )
    rate = record.get("request_rate")
    clients = record.get("max_concurrency")
    return MeasuredRun(
        format,
        prompt[good],
        output[good],
        ttft[good],
        e2e[good],
        None if arrival is None else arrival[good],
        parse.number(file, "duration", record["duration"]) if "duration" in record else None,
        int(n - good.sum()),
        None if clients is None else parse.whole(file, "max_concurrency", clients),
        math.inf if rate in ("inf", math.inf) else rate if isinstance(rate, float | int) else None,
        facts=parse.facts(record, names),
    )


def _total(file: Path, name: str, gaps: Any) -> float:
    return math.fsum(parse.column(file, name, gaps, None, parse.number))


def _as_it_is(file: Path, name: str, value: Any) -> Any:
    return value


def write(run: MeasuredRun) -> list[dict[str, Any]]:
    """A run as vLLM writes it: the lists and the statistics, without texts. Gaps between tokens are all the mean one."""
    assert run.arrival_s is not None
    seconds, figures = duration_s(run), summary(run)
    tokens_in, tokens_out = int(run.prompt_tokens.sum()), int(run.output_tokens.sum())
    return [
        {
            "date": run.facts.get("date", ""),
            "endpoint_type": "llmgym",
            "backend": "llmgym",
            "label": None,
            "model_id": run.facts.get("model", ""),
            "tokenizer_id": run.facts.get("model", ""),
            "num_prompts": len(run) + run.failed,
            "request_rate": "inf" if run.rate_rps is None or math.isinf(run.rate_rps) else run.rate_rps,
            "burstiness": 1.0,
            "max_concurrency": run.clients,
            "duration": seconds,
            "completed": len(run),
            "failed": run.failed,
            "total_input_tokens": tokens_in,
            "total_output_tokens": tokens_out,
            "request_throughput": len(run) / seconds,
            "request_goodput": None,
            "output_throughput": tokens_out / seconds,
            "total_token_throughput": (tokens_in + tokens_out) / seconds,
            **lists(run),
            "latencies": run.e2e_s.tolist(),
            "start_times": run.arrival_s.tolist(),
            **{
                f"{name}_{key}_ms": value
                for name, key, value in figures
                if name in ("mean", "median", "std", f"p{_P}")
            },
        }
    ]


def lists(run: MeasuredRun) -> dict[str, list[Any]]:
    """The lists that vLLM and SGLang have in common, without texts; every gap of a request is its mean one."""
    gaps = run.token_gap_s()
    return {
        "input_lens": run.prompt_tokens.tolist(),
        "output_lens": run.output_tokens.tolist(),
        "ttfts": run.ttft_s.tolist(),
        "itls": [
            [gap] * (count - 1) for gap, count in zip(gaps.tolist(), run.output_tokens.tolist(), strict=True)
        ],
        "generated_texts": [""] * len(run),
        "errors": [""] * len(run),
    }


def summary(run: MeasuredRun) -> list[tuple[str, str, float]]:
    """Statistics of a run as (statistic, figure, ms): mean, median, std, p90, p95, p99 of ttft, tpot, itl and e2el."""
    several = run.output_tokens > 1
    gaps = run.token_gap_s()
    times = {
        "ttft": run.ttft_s,
        "tpot": gaps[several],
        "itl": np.repeat(gaps, run.output_tokens - 1),
        "e2el": run.e2e_s,
    }
    found = []
    for key, values in times.items():
        ms = 1e3 * (values if len(values) else np.zeros(1))
        found += [("mean", key, float(ms.mean())), ("median", key, float(np.median(ms)))]
        found += [("std", key, float(ms.std()))]
        found += [(f"p{p}", key, float(np.percentile(ms, p))) for p in (90, 95, 99)]
    return found


def duration_s(run: MeasuredRun) -> float:
    """From the first arrival to the last token, s."""
    assert run.arrival_s is not None
    return float((run.arrival_s + run.e2e_s).max())
