"""Results of SGLang's `bench_serving` (`sglang.benchmark.serving`) with `--output-details`, SGLang 0.5.23.

One JSON object a line, a line a run. Its lists are those of vLLM's results but for `start_times`: when a request was sent is
not in the file. Where all were sent at once, or a fixed number was kept in flight, that follows from the run's settings.
"""

from pathlib import Path
from typing import Any

from llmgym.workloads.runs import vllm
from llmgym.workloads.runs.record import MeasuredRun

_FACTS = ("tag", "backend", "dataset_name")
_NAMES = {"e2el": "e2e_latency"}


def recognise(record: Any) -> bool:
    """Whether an object is such a result."""
    return isinstance(record, dict) and "random_range_ratio" in record and "dataset_name" in record


def read(file: Path, record: dict[str, Any]) -> MeasuredRun:
    """One result.

    Args:
        file: where it stands, for messages.
        record: the object.

    Raises:
        TraceError: it has no times of single requests, or one that cannot be read.
    """
    vllm.needs_details(file, record, "SGLang's bench_serving with --output-details")
    return vllm.from_lists(file, record, "sglang", record.get("start_times"), None, _FACTS)


def write(run: MeasuredRun) -> list[dict[str, Any]]:
    """A run as SGLang writes it, and `start_times` besides. Gaps between tokens are all the mean one."""
    assert run.arrival_s is not None
    seconds = vllm.duration_s(run)
    tokens_in, tokens_out = int(run.prompt_tokens.sum()), int(run.output_tokens.sum())
    return [
        {
            "tag": None,
            "backend": "llmgym",
            "dataset_name": run.facts.get("trace", ""),
            "request_rate": float("inf") if run.rate_rps is None else run.rate_rps,
            "max_concurrency": run.clients,
            "sharegpt_output_len": None,
            "random_input_len": None,
            "random_output_len": None,
            "random_range_ratio": None,
            "duration": seconds,
            "completed": len(run),
            "total_input_tokens": tokens_in,
            "total_output_tokens": tokens_out,
            "request_throughput": len(run) / seconds,
            "input_throughput": tokens_in / seconds,
            "output_throughput": tokens_out / seconds,
            "total_throughput": (tokens_in + tokens_out) / seconds,
            **{f"{name}_{_NAMES.get(key, key)}_ms": value for name, key, value in vllm.summary(run)},
            "concurrency": float(run.e2e_s.sum()) / seconds,
            **vllm.lists(run),
            "start_times": run.arrival_s.tolist(),
        }
    ]
