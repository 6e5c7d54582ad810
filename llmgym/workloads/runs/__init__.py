"""Measured runs: what benchmarks of serving engines write, request by request, in one record.

`read_run` takes results of `vllm bench serve`, SGLang's `bench_serving`, GuideLLM and AIPerf, and the CSV of `llmgym replay --out`;
`write_run` writes them.
"""

from llmgym.workloads.runs.files import FORMATS, WRITTEN, is_result, read_run, read_runs, write_run
from llmgym.workloads.runs.record import MeasuredRun

__all__ = ["FORMATS", "WRITTEN", "MeasuredRun", "is_result", "read_run", "read_runs", "write_run"]
