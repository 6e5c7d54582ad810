"""Requests without times, to be sent to a server: the trace format of Mooncake.

One JSON object a line with `timestamp` (ms), `input_length`, `output_length` (tokens) and `hash_ids`, a number for each block of
512 tokens of the prompt; no two requests share one here. A server is asked for the same requests by AIPerf
(`--custom-dataset-type mooncake_trace`) and by vLLM (`vllm bench serve --dataset-name timed_trace`).
"""

from typing import Any

import numpy as np

from llmgym.workloads.runs.record import MeasuredRun

_BLOCK = 512
"""Tokens of a block, those of Mooncake's own traces (https://github.com/kvcache-ai/Mooncake)."""


def write(run: MeasuredRun) -> list[dict[str, Any]]:
    """The requests of a run, one a record."""
    assert run.arrival_s is not None
    ends = np.cumsum(-(-run.prompt_tokens // _BLOCK)).tolist()
    columns = (
        run.arrival_s.tolist(),
        run.prompt_tokens.tolist(),
        run.output_tokens.tolist(),
        [0, *ends],
        ends,
    )
    return [
        {
            "timestamp": round(1e3 * arrival_s, 3),
            "input_length": prompt,
            "output_length": output,
            "hash_ids": list(range(begin, end)),
        }
        for arrival_s, prompt, output, begin, end in zip(*columns)
    ]
