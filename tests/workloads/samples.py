"""Small results of benchmarks, made by hand: three requests and one that failed, in the form in which each tool writes them.

The requests, in order of arrival: 100 tokens and 3 of output, sent at 0 s, tokens at 0.25, 0.5 and 0.75 s; 40 and 1, sent at 0.5 s,
at 0.625 s; 60 and 2, sent at 2 s, at 2.5 and 3 s. The failed one is in between.
"""

import json

ARRIVAL_S = [0.0, 0.5, 2.0]
PROMPT = [100, 40, 60]
OUTPUT = [3, 1, 2]
TTFT_S = [0.25, 0.125, 0.5]
E2E_S = [0.75, 0.125, 1.0]
ZERO_NS = 1_790_000_000_000_000_123


def vllm(**changes):
    """As `vllm bench serve --save-result --save-detailed` of 0.24 writes it; the requests are not in order of arrival there."""
    return {
        "date": "20261128-120000",
        "endpoint_type": "vllm",
        "backend": "vllm",
        "label": None,
        "model_id": "some/model",
        "tokenizer_id": "some/model",
        "num_prompts": 4,
        "request_rate": 1.5,
        "burstiness": 1.0,
        "max_concurrency": None,
        "duration": 3.5,
        "completed": 3,
        "failed": 1,
        "total_input_tokens": 200,
        "total_output_tokens": 6,
        "input_lens": [40, 100, 77, 60],
        "output_lens": [1, 3, 0, 2],
        "ttfts": [0.125, 0.25, 0.0, 0.5],
        "itls": [[], [0.25, 0.25], [], [0.5]],
        "start_times": [1000.5, 1000.0, 1001.0, 1002.0],
        "generated_texts": ["a", "b", "", "c"],
        "errors": ["", "", "Connection reset", ""],
        "mean_ttft_ms": 291.7,
    } | changes


def sglang(**changes):
    """As SGLang 0.5.23 writes a line with `--output-details`: without the times at which requests were sent."""
    record = vllm()
    for name in ("date", "endpoint_type", "label", "model_id", "tokenizer_id", "start_times", "num_prompts"):
        del record[name]
    return (
        record
        | {
            "tag": None,
            "dataset_name": "random",
            "random_range_ratio": 0.0,
            "request_rate": 1.5,
            "server_info": {},
        }
        | changes
    )


def guidellm_request(i, **changes):
    """As GuideLLM 0.8 writes a request that was answered."""
    start = 1.79e9 + ARRIVAL_S[i]
    return {
        "type_": "generative_request_stats",
        "request_id": str(i),
        "info": {"conversation_id": f"talk-{i}", "timings": {"request_start": start}},
        "request_start_time": start,
        "request_latency": E2E_S[i] + 0.01,
        "prompt_tokens": PROMPT[i],
        "output_tokens": OUTPUT[i],
        "time_to_first_token_ms": 1e3 * TTFT_S[i],
        "inter_token_latency_ms": 1e3 * (E2E_S[i] - TTFT_S[i]) / (OUTPUT[i] - 1) if OUTPUT[i] > 1 else None,
    } | changes


def guidellm(requests=None):
    """A report with one load."""
    requests = [guidellm_request(i) for i in (1, 0, 2)] if requests is None else requests
    groups = {"successful": requests, "incomplete": [], "errored": [{"request_id": "9"}]}
    return {"metadata": {"version": 1}, "benchmarks": [{"type_": "generative_benchmark", "requests": groups}]}


def aiperf_record(i, phase="profiling", error=None, **metrics):
    """As AIPerf 0.13 writes a line of profile_export.jsonl."""
    start_ns = ZERO_NS + round(1e9 * ARRIVAL_S[i])
    return {
        "metadata": {
            "session_num": i,
            "x_correlation_id": f"talk-{i}",
            "request_start_ns": start_ns,
            "request_end_ns": start_ns + round(1e9 * E2E_S[i]),
            "worker_id": "w",
            "record_processor_id": "p",
            "benchmark_phase": phase,
            "was_cancelled": False,
        },
        "metrics": {
            "input_sequence_length": {"value": PROMPT[i], "unit": "tokens"},
            "output_sequence_length": {"value": OUTPUT[i], "unit": "tokens"},
            "time_to_first_token": {"value": 1e3 * TTFT_S[i], "unit": "ms"},
            "request_latency": {"value": E2E_S[i], "unit": "sec"},
        }
        | metrics,
        "error": error,
    }


def aiperf():
    """A file: a warm-up, the three and one with an error."""
    return [
        aiperf_record(2, phase="warmup"),
        *(aiperf_record(i) for i in (1, 0, 2)),
        aiperf_record(1, error={"code": 500, "type": "x", "message": "y"}),
    ]


CSV = """arrival_s,prompt_tokens,output_tokens,first_token_s,last_token_s,rank
5.0,100,3,5.25,5.75,0
5.5,40,1,5.625,5.625,0
6.0,77,9,nan,nan,0
7.0,60,2,7.5,8.0,0
"""


def lines(*records):
    """JSON objects, one a line."""
    return "".join(json.dumps(record) + "\n" for record in records)
