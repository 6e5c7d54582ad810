"""Sweeps of rates, objectives and the files that a replay writes."""

import json

import numpy as np
import pytest

from llmgym import profiles, workloads
from llmgym.cli import main
from llmgym.errors import InvalidArgument
from llmgym.serving.rates import MOST_RATES, at_rate, knee, rates_of
from llmgym.serving.replay import latency_figures, replay
from llmgym.serving.targets import Target, slo
from llmgym.workloads import Rows, runs

SECOND = profiles.constant(1.0)


@pytest.mark.parametrize(
    ("text", "rates"),
    [
        ("2.5", [2.5]),
        ("2:8:2", [2, 4, 6, 8]),
        ("2:9:2", [2, 4, 6, 8]),
        ("0.1:0.5:0.1", [0.1, 0.2, 0.3, 0.4, 0.5]),
        ("3:3:1", [3]),
    ],
)
def test_rates_of_a_text(text, rates):
    assert rates_of(text) == rates


@pytest.mark.parametrize(
    "text", ["", "x", "0", "-1", "nan", "inf", "1:2", "1:2:0", "1:2:3:4", "5:2:1", f"1:{MOST_RATES + 1}:1"]
)
def test_texts_that_are_no_rates(text):
    with pytest.raises(InvalidArgument, match="rate="):
        rates_of(text)
    assert len(rates_of(f"1:{MOST_RATES}:1")) == MOST_RATES


def test_the_knee_is_where_a_curve_bends():
    rates = [1, 2, 3, 4, 5, 6]
    assert knee(rates, [1, 1, 1, 1, 10, 20]) == 3  # the corner of a flat and a steep piece
    assert knee(rates, [1, 1, 1, 1, 1, 20]) == 4
    assert knee(np.array(rates) * 7.0, np.array([1, 1, 1, 1, 10, 20]) * 0.01) == 3  # whatever the units
    for straight in (
        [1, 2, 3, 4, 5, 6],
        [1, 4, 5, 5.5, 5.8, 6],
        [6, 5, 4, 3, 2, 1],
        [1, 1, np.nan, 1, 1, 5],
        [2] * 6,
    ):
        assert knee(rates, straight) is None
    assert knee([1, 2], [1, 5]) is None


def test_what_is_told_at_a_rate():
    """Steps of 1 s: two requests at once have their tokens after 1 and 2 s; the one that waits is outside of 1.5 s."""
    rows = Rows([0.0, 0.0], [8, 8], [2, 2], request_class=[0, 1])
    engine = {"kv_capacity": 64, "seats": 1, "scheduling": "sync"}
    point = at_rate(rows, SECOND, 3.0, Target(1.5), engine, 0.5)
    assert point.figures["ttft_mean_s"] == pytest.approx(2.0) and point.requests_per_s == pytest.approx(0.5)
    assert (point.within, point.goodput_rps) == (0.5, pytest.approx(0.25))
    assert (point.rate_rps, point.load, point.unfinished) == (3.0, 0.5, 0)
    assert np.isnan(at_rate(rows, SECOND, 3.0, None, engine, 0.5).goodput_rps)


def test_means_stand_beside_percentiles_where_they_are_asked_for():
    arrays = [np.array(x, float) for x in ([0, 1, 1], [2, 4, np.nan], [4, 4, np.nan])]
    plain = latency_figures(*arrays, np.array([3, 1, 5]))
    found = latency_figures(*arrays, np.array([3, 1, 5]), means=True)
    assert {k: v for k, v in found.items() if "mean" not in k} == plain
    assert (found["ttft_mean_s"], found["tpot_mean_s"], found["e2e_mean_s"]) == (2.5, 1.0, 3.5)
    nobody = latency_figures(*(np.full(1, x) for x in (0.0, np.nan, np.nan)), np.array([1]), means=True)
    assert all(np.isnan(nobody[f"{name}_mean_s"]) for name in ("ttft", "tpot", "e2e"))


def test_objectives_in_words():
    assert slo("ttft=0.5,tpot=50ms,e2e=10s") == Target(0.5, 0.05, e2e_s=10.0)
    assert slo("tpot=0.1") == Target(tpot_s=0.1)
    for wrong in (
        "",
        "ttft",
        "ttft=",
        "ttft=x",
        "ttft=0",
        "ttft=-1",
        "ttft=nan",
        "ttft=1,ttft=2",
        "itl=1",
        "ttft=1 tpot=2",
    ):
        with pytest.raises(InvalidArgument, match=r"slo=.*expected some of ttft="):
            slo(wrong)


# ----------------------------------------------------------------------------------------------------------- the command

FEW = ["replay", "uniform-tiny", "--requests", "40"]


def told(capsys, words):
    assert main([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_sweep_is_a_replay_at_each_rate(tmp_path, capsys):
    picture = tmp_path / "rates.png"
    words = [*FEW, "--slo", "ttft=30ms", "--seats", "4"]
    found = told(capsys, [*words, "--rate", "20:220:50", "--picture", str(picture)])
    assert [point["rate_rps"] for point in found["rates"]] == [20, 70, 120, 170, 220]
    alone = told(capsys, [*words, "--rate", "120"])
    assert found["rates"][2]["figures"] == alone["figures"] and found["rates"][2]["load"] == alone["load"]
    assert found["rates"][2]["goodput_rps"] == alone["slo"]["goodput_rps"]
    assert found["written"] == [str(picture)] and picture.read_bytes().startswith(b"\x89PNG")
    values = [point["figures"]["ttft_mean_s"] for point in found["rates"]]
    bend = knee([20, 70, 120, 170, 220], values)
    assert found["knee_rps"] == (None if bend is None else 20 + 50 * bend)
    assert main([*words, "--rate", "20:220:50", "--picture", str(tmp_path / "rates.svg")]) == 0
    shown = capsys.readouterr().out
    assert "goodput" not in shown and "good" in shown and "nee" in shown


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--rate", "2:20"], "rate='2:20': expected requests a second above 0, or FIRST:LAST:STEP"),
        (["--rate", "1:3:1", "--out", "x.csv"], "out='x.csv': needs one rate, and rate='1:3:1' gives 3"),
        (["--rate", "1:3:1", "--write", "vllm", "x.json"], "write='x.json': needs one rate"),
        (["--rate", "1:3:1", "--clients", "4"], "clients=4: a closed loop has no rate"),
        (["--picture", "x.png"], "picture='x.png': needs several rates"),
        (["--rate", "1:3:1", "--picture", "x.bmp"], "picture='x.bmp': expected a file that ends in .png"),
        (["--write", "vlm", "x.json"], "unknown write 'vlm'. Did you mean 'vllm'"),
        (["--write", "vllm", "no/x.json"], "write='no/x.json': cannot be written"),
        (["--slo", "ttft=x"], "slo='ttft=x': expected"),
    ],
)
def test_mistakes(tmp_path, monkeypatch, capsys, more, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "llmgym.serving.replay_command.replay", lambda *_, **__: pytest.fail("the work was done")
    )
    assert main([*FEW, *more]) == 2
    output = capsys.readouterr()
    assert message in output.err and output.err.count("\n") == 1 and not output.out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("format", runs.FORMATS)
def test_what_a_replay_writes(tmp_path, capsys, format):
    """The times of each request are those of the replay, and a validation against the same engine has no error."""
    path = tmp_path / "run"
    words = ["--seats", "4", "--scheduling", "async-held"]
    assert main([*FEW, *words, "--rate", "100", "--write", format, str(path)]) == 0
    drawn = (
        workloads.load("uniform-tiny")
        .with_rate(100.0)
        .sample(np.random.default_rng(0), 40, information="none")
    )
    rows = Rows(drawn.arrival_s, drawn.prompt_tokens, drawn.output_tokens)
    expected = replay(rows, profiles.load("h100/llama-3.1-8b"), seats=4, scheduling="async-held")
    run = runs.read_run(path)
    np.testing.assert_allclose(run.ttft_s, expected.first_s - rows.arrival_s, atol=2e-6)
    np.testing.assert_allclose(run.e2e_s, expected.last_s - rows.arrival_s, atol=2e-6)
    capsys.readouterr()

    found = told(capsys, ["validate", str(path), *words])
    # arrivals rounded to a microsecond may move a request to another step of a busy engine; not here
    assert max(abs(one["error"]) for one in found["figures"]) < 1e-3 and len(found["figures"]) == 14


def test_requests_that_do_not_finish_count_as_failed(tmp_path):
    trace = tmp_path / "trace.csv"
    trace.write_text("arrival_s,prompt_tokens,output_tokens\n0,10,50\n9,300,5\n9.5,10,50\n")
    path = tmp_path / "run.json"
    assert (
        main(
            [
                "replay",
                str(trace),
                "--rule",
                "vllm-prefill-only",
                "--budget",
                "256",
                "--write",
                "vllm",
                str(path),
            ]
        )
        == 0
    )
    record = json.loads(path.read_text())
    assert (record["completed"], record["failed"], record["num_prompts"]) == (1, 2, 3)
