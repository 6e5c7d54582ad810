"""A measured run against its replay."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest

from llmgym import profiles
from llmgym.cli import main
from llmgym.errors import InvalidArgument, NoProgress
from llmgym.serving.replay import replay
from llmgym.serving.validate import Figure, closed_loop, measured_figures, validate
from llmgym.workloads import runs
from llmgym.workloads.runs import MeasuredRun
from tests.workloads import samples

SECOND = profiles.constant(1.0)
DATA = Path(os.environ.get("LLMGYM_DATA", "")) / "vllm_h100" / "conv_light_requests.csv"


def run_of(**changes):
    """Two requests at 0 and 10 s, of 3 tokens and 1."""
    fields = {
        "prompt_tokens": np.array([8, 8]),
        "output_tokens": np.array([3, 1]),
        "ttft_s": np.array([1.25, 1.0]),
        "e2e_s": np.array([3.25, 1.0]),
        "arrival_s": np.array([0.0, 10.0]),
    }
    return MeasuredRun("vllm", **(fields | changes))


def test_figures_by_hand():
    """Steps of 1 s: the first request has its tokens after 1, 2 and 3 s, the second after 1 s."""
    found = validate(run_of(), SECOND, kv_capacity=64, scheduling="sync")
    figures = {one.name: one for one in found.figures}
    assert figures["ttft_mean_s"].measured == pytest.approx(1.125)
    assert figures["ttft_mean_s"].predicted == pytest.approx(1.0)
    assert figures["ttft_mean_s"].error == pytest.approx(1 / 1.125 - 1)
    assert (figures["tpot_p50_s"].measured, figures["tpot_p50_s"].predicted) == (pytest.approx(1.0),) * 2
    assert figures["makespan_s"].measured == pytest.approx(11.0) and figures[
        "output_tokens_per_s"
    ].error == pytest.approx(0.0)
    measured, predicted = found.times()
    assert measured["end to end"].tolist() == [3.25, 1.0] and predicted["time per output token"].tolist() == [
        1.0
    ]


def test_errors_and_bars():
    assert Figure("x", 2.0, 2.1).error == pytest.approx(0.05)
    assert Figure("x", 2.0, 1.9).within(0.0501) and not Figure("x", 2.0, 1.7).within(0.1)
    assert math.isnan(Figure("x", 0.0, 1.0).error) and not Figure("x", 1.0, math.nan).within(1.0)


def test_when_requests_were_sent():
    """Arrivals of the file before all; else what follows from the client's settings; else an error that says what is missing."""
    silent = {"arrival_s": None}
    assert closed_loop(run_of(clients=8)) is None and closed_loop(run_of(), 4) == 4
    assert closed_loop(run_of(**silent, rate_rps=math.inf, clients=8)) == 8
    assert closed_loop(run_of(**silent, rate_rps=math.inf)) is None
    for rate in (None, 2.0):
        with pytest.raises(
            InvalidArgument, match="a result of vllm that does not tell when its requests were sent"
        ):
            closed_loop(run_of(**silent, rate_rps=rate, clients=8))
    assert closed_loop(run_of(**silent, rate_rps=2.0), 8) == 8


def test_a_closed_loop_is_replayed_as_one():
    found = validate(
        run_of(arrival_s=None, rate_rps=math.inf, clients=1), SECOND, kv_capacity=64, scheduling="sync"
    )
    assert found.clients == 1 and found.replayed.arrival_s.tolist() == [0.0, 3.0]


def test_the_makespan_of_a_run_without_arrivals_is_its_duration():
    silent = {"arrival_s": None, "clients": 1, "rate_rps": 3.0}
    figures = measured_figures(run_of(**silent, duration_s=8.0))
    assert figures["makespan_s"] == 8.0 and figures["output_tokens_per_s"] == 0.5
    assert math.isnan(measured_figures(run_of(**silent))["output_tokens_per_s"])
    burst = measured_figures(run_of(arrival_s=None, rate_rps=math.inf))
    assert burst["makespan_s"] == pytest.approx(3.25)


def test_requests_that_do_not_finish_are_no_comparison():
    with pytest.raises(NoProgress, match="2 of 2 requests do not finish in the replay"):
        validate(run_of(), SECOND, kv_capacity=64, rule="vllm-prefill-only", budget=4)


# ----------------------------------------------------------------------------------------------------------- the command


def put(folder, text, name="run.json"):
    path = folder / name
    path.write_text(text)
    return str(path)


def told(capsys, words):
    assert main(["validate", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_table_and_its_files(tmp_path, capsys):
    run = put(tmp_path, samples.lines(samples.vllm(max_concurrency=8)))
    picture, out = tmp_path / "p.svg", tmp_path / "times.csv"
    words = [run, "--scheduling", "async-held", "--picture", str(picture), "--out", str(out)]
    assert main(["validate", *words]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert (
        "3 requests of" in shown and "(vllm) on h100/llama-3.1-8b" in shown and "first token p90, s" in shown
    )
    assert "makespan, s" in shown
    assert "1 of 4 requests were not answered; they are left out of both." in shown
    assert (
        "The client kept at most 8 requests in flight" in shown
        and "--clients 8 replays the client too" in shown
    )
    assert picture.read_text().lstrip().startswith("<?xml")
    expected = replay(runs.read_run(run).rows(), profiles.load("h100/llama-3.1-8b"), scheduling="async-held")
    np.testing.assert_allclose(runs.read_run(out).e2e_s, expected.last_s - expected.arrival_s, atol=2e-6)
    found = told(capsys, words)
    within = found["within"]
    assert len(found["figures"]) == 14 and within["0.05"] <= within["0.1"] and found["failed"] == 1
    assert f"Of 14 figures {within['0.05']} within 5 %, {within['0.1']} within 10 %" in shown
    assert found["written"] == [str(picture), str(out)] and found["clients"] is None
    assert told(capsys, [run, "--clients", "2"])["clients"] == 2


def test_arrivals_from_a_trace(tmp_path, capsys):
    record = samples.sglang()
    for name in ("input_lens", "output_lens", "ttfts", "itls", "generated_texts", "errors"):
        del record[name][2]  # the one that failed
    run = put(tmp_path, samples.lines(record))
    trace = put(tmp_path, "arrival_s,prompt_tokens,output_tokens\n0,40,1\n0.5,100,3\n2,60,2\n", "trace.csv")
    found = told(capsys, [run, "--arrivals", trace])
    assert {one["name"]: one for one in found["figures"]}["makespan_s"]["measured"] == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("record", "more", "message"),
    [
        (samples.sglang(), [], "a result of sglang that does not tell when its requests were sent"),
        (
            samples.vllm(start_times=None),
            [],
            "a result of vllm that does not tell when its requests were sent",
        ),
        (samples.vllm(), ["--arrivals", "trace.csv"], "tells them itself; expected none"),
        (samples.sglang(), ["--arrivals", "trace.csv"], "1 failed, so that rows and requests do not match"),
        (
            samples.sglang(errors=[""] * 4, output_lens=[1, 3, 5, 2], ttfts=[1.0] * 4),
            ["--arrivals", "trace.csv"],
            "1 rows; expected 4 rows",
        ),
        (samples.vllm(), ["--format", "guidellm"], "has no list 'benchmarks'"),
        (samples.vllm(), ["--number", "2"], "number=2: expected a whole number from 1 to 1"),
        (samples.vllm(), ["--profile", "nope"], "nope"),
        (samples.vllm(), ["--picture", "x.bmp"], "picture='x.bmp': expected a file that ends in .png"),
        (samples.vllm(), ["--out", "no/x.csv"], "out='no/x.csv': cannot be written"),
        (samples.vllm(), ["--kv-capacity", "32"], "kv_capacity=32: request 0 needs 103 tokens"),
        (samples.vllm(), ["--prefix-caching"], "prefix_caching=True: the rows have no session"),
        (samples.vllm(input_lens=None), [], "'input_lens' is None, expected a list"),
    ],
)
def test_mistakes(tmp_path, monkeypatch, capsys, record, more, message):
    monkeypatch.chdir(tmp_path)
    put(tmp_path, "arrival_s,prompt_tokens,output_tokens\n0,40,1\n", "trace.csv")
    assert main(["validate", put(tmp_path, samples.lines(record)), *more]) == 2
    output = capsys.readouterr()
    assert message in output.err and output.err.count("\n") == 1 and not output.out


@pytest.mark.data
@pytest.mark.skipif(not DATA.is_file(), reason="LLMGYM_DATA names no folder with vllm_h100/")
def test_a_run_of_vllm_on_an_h100(capsys):
    """Measured on 2026-11-23 (docs/fidelity.md): time per token within 5 %, end to end within 7 %."""
    engine = [
        "--dense",
        "sustained",
        "--host",
        "vllm-0.24-steps",
        "--scheduling",
        "async-held",
        "--way",
        "streaming",
    ]
    found = told(capsys, [str(DATA), *engine, "--kv-capacity", "450720"])
    errors = {one["name"]: abs(one["error"]) for one in found["figures"]}
    assert (
        errors["tpot_p50_s"] < 0.05
        and max(errors[f"e2e_{key}_s"] for key in ("mean", "p50", "p90", "p99")) < 0.07
    )
