"""Files of measured runs: what is read out of each format, what is written, and what is said of files that lack something."""

import gzip
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmgym import workloads
from llmgym.errors import InvalidArgument, TraceError, UnknownName
from llmgym.workloads import runs
from llmgym.workloads.runs import MeasuredRun
from tests.workloads import samples

FILES = {
    "vllm": samples.lines(samples.vllm()),
    "sglang": samples.lines(samples.sglang()),
    "guidellm": json.dumps(samples.guidellm(), indent=1),
    "aiperf": samples.lines(*samples.aiperf()),
    "llmgym": samples.CSV,
}


def put(folder, text, name="run.json"):
    path = folder / name
    path.write_text(text)
    return path


@pytest.mark.parametrize("format", FILES)
def test_every_format_tells_the_same_run(tmp_path, format):
    run = runs.read_run(put(tmp_path, FILES[format]))
    order = [1, 0, 2] if format == "sglang" else [0, 1, 2]  # that of the file where arrivals are not known
    assert run.format == format and len(run) == 3 and run.failed == 1
    assert run.prompt_tokens.tolist() == [samples.PROMPT[i] for i in order]
    assert run.output_tokens.tolist() == [samples.OUTPUT[i] for i in order]
    np.testing.assert_allclose(run.ttft_s, np.array(samples.TTFT_S)[order], rtol=1e-12)
    np.testing.assert_allclose(run.e2e_s, np.array(samples.E2E_S)[order], rtol=1e-12)
    if format == "sglang":
        assert run.arrival_s is None
    else:
        np.testing.assert_allclose(run.arrival_s, samples.ARRIVAL_S, atol=1e-6)
    assert runs.read_run(put(tmp_path, FILES[format]), format).format == format


def test_what_vllm_and_sglang_say_of_the_load(tmp_path):
    run = runs.read_run(put(tmp_path, FILES["vllm"]))
    assert (run.rate_rps, run.clients, run.duration_s) == (1.5, None, 3.5)
    assert run.facts["model_id"] == "some/model" and run.facts["burstiness"] == "1.0"
    burst = put(tmp_path, samples.lines(samples.vllm(request_rate="inf", max_concurrency=8)))
    assert (runs.read_run(burst).rate_rps, runs.read_run(burst).clients) == (math.inf, 8)
    burst = put(tmp_path, samples.lines(samples.sglang(request_rate=math.inf)))
    assert '"request_rate": Infinity' in burst.read_text() and runs.read_run(burst).rate_rps == math.inf
    assert runs.read_run(put(tmp_path, samples.lines(samples.sglang(request_rate="trace")))).rate_rps is None


def test_latencies_of_newer_vllm_are_used(tmp_path):
    record = samples.vllm(latencies=[0.125, 0.8, 0.0, 1.0])
    assert runs.read_run(put(tmp_path, samples.lines(record))).e2e_s.tolist() == [0.8, 0.125, 1.0]


def test_older_reports_of_guidellm(tmp_path):
    """GuideLLM 0.3 calls the start of a request `start_time`, and the gap of a single token is 0."""
    requests = []
    for i in range(3):
        one = samples.guidellm_request(
            i, inter_token_latency_ms=250.0 if i == 0 else 500.0 if i == 2 else 0.0
        )
        one["start_time"] = one.pop("request_start_time")
        del one["info"]
        requests.append(one)
    run = runs.read_run(put(tmp_path, json.dumps(samples.guidellm(requests))))
    np.testing.assert_allclose(run.e2e_s, samples.E2E_S)


def test_conversations_are_sessions(tmp_path):
    same = {"conversation_id": "a", "timings": {}}
    requests = [
        samples.guidellm_request(0, info=same),
        samples.guidellm_request(1),
        samples.guidellm_request(2, info=same),
    ]
    run = runs.read_run(put(tmp_path, json.dumps(samples.guidellm(requests))))
    assert run.session.tolist() == [0, 1, 0] and run.rows().session.tolist() == [0, 1, 0]
    assert runs.read_run(put(tmp_path, FILES["guidellm"])).session is None


def test_several_runs_in_a_file(tmp_path):
    path = put(tmp_path, samples.lines(samples.vllm(), samples.vllm(request_rate=9.0)))
    assert [run.rate_rps for run in runs.read_runs(path)] == [1.5, 9.0]
    with pytest.raises(InvalidArgument, match="holds 2 runs; expected which, from 1 to 2"):
        runs.read_run(path)
    assert runs.read_run(path, number=2).rate_rps == 9.0
    with pytest.raises(InvalidArgument, match="number=3: expected a whole number from 1 to 2"):
        runs.read_run(path, number=3)


def test_compressed_files_are_read(tmp_path):
    path = tmp_path / "run.json.gz"
    path.write_bytes(gzip.compress(FILES["vllm"].encode()))
    assert len(runs.read_run(path)) == 3 and len(workloads.load(str(path)).arrivals.rows) == 3


NO_START = {name: value for name, value in samples.vllm().items() if name != "ttfts"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\n", "is empty"),
        ("arrival_s,prompt_tokens,output_tokens\n0,1,1\n", "no column 'first_token_s'; a measured run needs"),
        (samples.CSV.replace("5.25", "soon"), "line 2, column 'first_token_s': 'soon' is not a number"),
        (samples.CSV.replace("5.5,40,1,5.625,5.625", "5.5,40,1,5.4,5.4"), "ttft_s: -0.0999"),
        (samples.CSV.replace(",40,", ",4.5,"), "prompt_tokens is 4.5, expected a whole number"),
        (samples.CSV.split("5.0")[0], "none of 0 requests was answered"),
        ("{", "line 1, column 2: not JSON"),
        ('{"a": 1, "b": 2}', r"no known format \(its first object has a, b\)"),
        (samples.lines(NO_START), "run vllm bench serve with --save-result --save-detailed"),
        (
            samples.lines({k: v for k, v in samples.sglang().items() if k != "ttfts"}),
            "run SGLang's bench_serving with --output-details",
        ),
        (samples.lines(samples.vllm(ttfts=[0.1])), "'ttfts' has 1 entries, expected 4, one a request"),
        (
            samples.lines(samples.vllm(ttfts=[0.1, None, 0, 1])),
            r"ttfts\[1\] is None, expected a finite number",
        ),
        (samples.lines(samples.vllm(ttfts=[0.1, math.nan, 0, 1])), r"ttfts\[1\] is nan"),
        (samples.lines(samples.vllm(ttfts=[0.0] * 4)), "all 'ttfts' are 0: the answers were not streamed"),
        (samples.lines(samples.vllm(ttfts=[0.0, 0.1, 0.0, 0.1])), "ttft_s: 0.0 of request 0"),
        (
            samples.lines(samples.vllm(output_lens=[1, 2.5, 0, 2])),
            r"output_lens\[1\] is 2.5, expected a whole number",
        ),
        (samples.lines(samples.vllm(output_lens=[True, 2, 0, 2])), r"output_lens\[0\] is True"),
        (samples.lines(samples.vllm(output_lens=[0] * 4)), "none of 4 requests was answered"),
        (samples.lines(samples.vllm(itls=[[], "x", [], []])), r"'itls\[1\]' is 'x', expected a list"),
        (samples.lines(samples.vllm(input_lens={})), "'input_lens' is an object, expected a list"),
        (json.dumps({"benchmarks": []}), "its list 'benchmarks' is empty"),
        (json.dumps({"benchmarks": [{}]}), "the benchmark has no 'requests'"),
        (
            json.dumps({"benchmarks": [{"requests": {"successful": []}}]}),
            "no request in 'requests.successful'",
        ),
        (
            json.dumps({"benchmarks": [{"request_samples": {}, "requests": {}}]}),
            "holds a sample of the requests only",
        ),
        (
            json.dumps(samples.guidellm([samples.guidellm_request(0, time_to_first_token_ms=None)])),
            "has no time of its first token: the answer was not streamed",
        ),
        (
            json.dumps(samples.guidellm([samples.guidellm_request(0, prompt_tokens=None)])),
            r"successful\[0\].prompt_tokens is None",
        ),
        (
            json.dumps({"request_latency": {"unit": "ms", "avg": 1.0}}),
            "give profile_export.jsonl, which stands beside it",
        ),
        (
            samples.lines(samples.aiperf_record(0, request_latency={"value": 1, "unit": "day"})),
            "unit 'day' of request_latency of request 1, expected one of ns, us, ms, sec",
        ),
        (samples.lines(samples.aiperf_record(0, error={"code": 1})), "no request of the phase 'profiling'"),
        (
            samples.lines(samples.aiperf_record(0) | {"metrics": {}}),
            "request 1 has no time_to_first_token; run aiperf with --streaming",
        ),
    ],
)
def test_what_a_file_lacks_is_told(tmp_path, text, message):
    path = put(tmp_path, text)
    with pytest.raises(TraceError, match=message) as told:
        runs.read_run(path)
    assert str(told.value).startswith(str(path))


def test_files_that_are_no_files(tmp_path):
    with pytest.raises(TraceError, match="no such file"):
        runs.read_run(tmp_path / "none.json")
    with pytest.raises(TraceError, match="cannot be read: Is a directory"):
        runs.read_run(tmp_path)
    with pytest.raises(UnknownName, match=r"unknown format 'vlm'\. Did you mean 'vllm'"):
        runs.read_run(tmp_path / "none.json", "vlm")
    (tmp_path / "x.json").write_bytes(b"\xff{}")
    with pytest.raises(TraceError, match="byte 1 is not UTF-8"):
        runs.read_run(tmp_path / "x.json")


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_what_is_written_is_read_again(tmp_path_factory, data):
    """Every format gives the times back to a microsecond, the lengths exactly."""
    n = data.draw(st.integers(1, 8))

    def column(values):
        return np.array(data.draw(st.lists(values, min_size=n, max_size=n)))

    arrival = np.cumsum(column(st.floats(0, 100)))
    output = column(st.integers(1, 50))
    ttft = column(st.floats(1e-3, 100))
    run = MeasuredRun(
        "llmgym",
        column(st.integers(1, 10**5)),
        output,
        ttft,
        ttft + np.where(output > 1, column(st.floats(1e-3, 1e3)), 0.0),
        arrival,
    )
    folder = tmp_path_factory.mktemp("written")
    for format in runs.FORMATS:
        path = folder / format
        runs.write_run(path, format, run)
        again = runs.read_run(path)
        assert again.format == format
        for name in ("arrival_s", "ttft_s", "e2e_s"):
            np.testing.assert_allclose(getattr(again, name), getattr(run, name), rtol=1e-9, atol=2e-6)
        assert again.prompt_tokens.tolist() == run.prompt_tokens.tolist()
        assert again.output_tokens.tolist() == run.output_tokens.tolist()


def test_the_statistics_that_are_written(tmp_path):
    run = runs.read_run(put(tmp_path, FILES["vllm"]))
    runs.write_run(tmp_path / "again.json", "vllm", run)
    record = json.loads((tmp_path / "again.json").read_text())
    assert record["mean_ttft_ms"] == pytest.approx(1e3 * (0.25 + 0.125 + 0.5) / 3)
    assert record["median_tpot_ms"] == pytest.approx(375.0) and record["mean_itl_ms"] == pytest.approx(
        1e3 / 3
    )
    assert record["duration"] == pytest.approx(3.0) and record["output_throughput"] == pytest.approx(2.0)
    assert (record["completed"], record["failed"], record["num_prompts"]) == (3, 1, 4)
    runs.write_run(tmp_path / "again.jsonl", "sglang", run)
    record = json.loads((tmp_path / "again.jsonl").read_text())
    assert record["p90_e2e_latency_ms"] == pytest.approx(950.0)
    assert record["concurrency"] == pytest.approx(1.875 / 3)


def test_requests_are_written_as_a_trace(tmp_path):
    run = runs.read_run(put(tmp_path, FILES["vllm"]))
    path = tmp_path / "requests.jsonl"
    runs.write_run(path, "mooncake", run)
    rows = workloads.from_trace(path, "mooncake").arrivals.rows
    assert rows.prompt_tokens.tolist() == samples.PROMPT and rows.arrival_s.tolist() == samples.ARRIVAL_S
    first = json.loads(path.read_text().splitlines()[0])
    assert first == {"timestamp": 0.0, "input_length": 100, "output_length": 3, "hash_ids": [0]}


def test_what_cannot_be_written(tmp_path):
    run = runs.read_run(put(tmp_path, FILES["sglang"]))
    with pytest.raises(InvalidArgument, match="run: its arrivals are not known"):
        runs.write_run(tmp_path / "x", "vllm", run)
    run = run.with_arrivals(np.array([0.0, 1.0, 2.0]))
    with pytest.raises(UnknownName, match="unknown format 'csv'"):
        runs.write_run(tmp_path / "x", "csv", run)
    with pytest.raises(InvalidArgument, match="cannot be written"):
        runs.write_run(tmp_path / "no" / "x", "vllm", run)


@pytest.mark.parametrize("format", ["vllm", "guidellm", "aiperf"])
def test_the_requests_of_a_run_are_a_trace(tmp_path, format):
    path = put(tmp_path, FILES[format], "mine.json")
    for workload in (workloads.load(str(path)), workloads.from_trace(path, format)):
        assert workload.arrivals.rows.prompt_tokens.tolist() == samples.PROMPT
        assert f"Replay of mine.json ({format}), 3 requests over 2.0 s" in workload.description


def test_a_run_without_arrivals_is_no_trace(tmp_path):
    path = put(tmp_path, FILES["sglang"])
    with pytest.raises(TraceError, match="does not tell when its requests were sent"):
        workloads.from_trace(path)
    path = put(tmp_path, samples.lines(samples.sglang(request_rate=math.inf)))
    assert workloads.from_trace(path).arrivals.rows.arrival_s.tolist() == [0.0, 0.0, 0.0]
