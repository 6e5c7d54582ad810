"""The traffic that is sent to vLLM, and what is written about it, with an engine that answers at once."""

import importlib.metadata
import json
import math
from dataclasses import replace

import engine_vllm
import numpy as np
import pytest
from fidelity.cases import (
    BLOCK_TOKENS,
    CASES,
    LONGEST_TOKENS,
    Traffic,
    draw,
    read_traffic,
    write_traffic,
)
from fidelity.runs import own_runs

from tests.benchmarks import fake_vllm


@pytest.mark.parametrize("name", CASES)
def test_every_request_fits_into_its_engine(name):
    case = CASES[name]
    asked = draw(case)
    assert len(asked.asked_s) == case.requests
    assert asked.asked_s[0] == 0.0 and np.all(np.diff(asked.asked_s) >= 0)
    assert asked.prompt_tokens.min() >= 1 and asked.output_tokens.min() >= 1
    together = asked.prompt_tokens + asked.output_tokens
    assert together.max() < LONGEST_TOKENS
    if case.blocks:
        assert together.max() <= case.blocks * BLOCK_TOKENS // 2


def test_bursty_arrivals_have_the_spread_that_is_asked_for():
    gaps = np.diff(draw(replace(CASES["bursty"], requests=20_000)).asked_s)
    assert np.std(gaps) / np.mean(gaps) == pytest.approx(CASES["bursty"].cv, rel=0.1)
    assert 1 / np.mean(gaps) == pytest.approx(CASES["bursty"].rate_rps, rel=0.1)


def test_traffic_survives_its_file(tmp_path):
    written = write_traffic(tmp_path / "new", CASES["calibration"])
    found = read_traffic(tmp_path / "new" / "calibration_traffic.csv")
    for one, other in zip(written, found, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_dry_run_needs_neither_vllm_nor_a_folder(capsys):
    assert engine_vllm.main(["--dry-run", "--cases", "small_kv,calibration"]) == 0
    said = capsys.readouterr().out
    assert "small_kv" in said and "calibration" in said and "2 engines" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--dry-run", "--cases", "calm"], "expected names out of calibration, bursty"),
        (["--dry-run", "--cases", ""], "expected names out of"),
        (["--cases", "bursty"], "--out is needed"),
        (["--dry-run", "--minutes", "0"], "expected a number > 0"),
        (["--dry-run", "--traffic", "nowhere"], "calibration_traffic.csv is missing"),
    ],
)
def test_wrong_arguments_are_told(arguments, said, capsys):
    with pytest.raises(SystemExit) as stopped:
        engine_vllm.main(arguments)
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err


@pytest.fixture
def small(monkeypatch, tmp_path):
    """A folder with short traffic for three cases, vllm replaced, no warm-up."""
    fake_vllm.install(monkeypatch)
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: {"vllm": "0.24.0", "torch": "2.11.0"}.get(name, "1")
    )
    monkeypatch.setattr(
        engine_vllm, "warm_up", lambda seats, blocks: Traffic(np.zeros(1), np.array([4]), np.array([2]))
    )
    asked = Traffic(np.array([0.0, 0.01, 0.01]), np.array([5, 6, 7]), np.array([1, 4, 3]))
    rows = [",".join(map(str, row)) for row in zip(*asked, strict=True)]
    for name in ("calibration", "bursty", "overload"):
        text = "\n".join(["arrival_s,prompt_tokens,output_tokens", *rows]) + "\n"
        (tmp_path / f"{name}_traffic.csv").write_text(text, encoding="utf-8")
    return tmp_path


def run(folder, *arguments):
    return engine_vllm.main(
        ["--in-process", "--traffic", str(folder), "--out", str(folder / "runs"), *arguments]
    )


def test_what_is_written_is_what_fidelity_reads(small):
    assert run(small, "--cases", "calibration") == 0
    (found,) = own_runs(small / "runs")
    assert found.name == "calibration"
    np.testing.assert_array_equal(np.sort(found.prompt_tokens), [5, 6, 7])
    np.testing.assert_array_equal(found.output_tokens[np.argsort(found.prompt_tokens)], [1, 4, 3])
    assert np.all(found.first_s >= found.arrival_s) and np.all(found.last_s >= found.first_s)
    assert found.engine.kv_tokens == 28_171 * BLOCK_TOKENS
    assert (found.engine.seats, found.engine.budget_tokens, found.engine.block_tokens) == (256, 2048, 16)
    assert found.meta["preemptions"] == 5  # one each time the engine spoke
    assert found.meta["asynchronous_scheduling"] is True
    header, *steps = (small / "runs" / "calibration_steps.csv").read_text(encoding="utf-8").splitlines()
    assert header == ",".join(engine_vllm.STEP_COLUMNS) and len(steps) == 5
    (engine,) = fake_vllm.Engine.started
    assert engine.stopped
    assert engine.arguments.load_format == "dummy" and engine.arguments.skip_tokenizer_init


def test_a_case_that_fails_leaves_the_others(small):
    assert run(small, "--cases", "calibration,bursty,overload") == 0
    assert [found.name for found in own_runs(small / "runs")] == ["calibration", "overload"]
    (line,) = (small / "runs" / "skipped.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(line) == {"case": "bursty", "reason": "RuntimeError: out of memory"}


def test_a_second_run_measures_only_what_is_missing(small):
    run(small, "--cases", "calibration")
    before = (small / "runs" / "calibration_requests.csv").read_bytes()
    run(small, "--cases", "calibration,overload")
    assert (small / "runs" / "calibration_requests.csv").read_bytes() == before
    assert (small / "runs" / "overload_requests.csv").is_file()


def test_a_case_for_which_no_time_is_left_is_skipped(small):
    run(small, "--cases", "calibration", "--minutes", "0.01")
    assert own_runs(small / "runs") == []
    (line,) = (small / "runs" / "skipped.jsonl").read_text(encoding="utf-8").splitlines()
    assert "were not left" in json.loads(line)["reason"]


def test_an_engine_whose_process_dies_is_recorded(small, monkeypatch):
    monkeypatch.setattr(engine_vllm.subprocess, "run", lambda command: type("Done", (), {"returncode": -9}))
    assert (
        engine_vllm.main(
            [
                "--traffic",
                str(small),
                "--out",
                str(small / "runs"),
                "--cases",
                "calibration,overload",
            ]
        )
        == 0
    )
    lines = (small / "runs" / "skipped.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["case"] for line in lines] == ["calibration", "overload"]
    assert all("ended with -9" in line for line in lines)


def test_a_warm_up_fits_into_a_small_cache():
    asked = engine_vllm.warm_up(256, 1_640)
    at, crowd = np.unique(asked.asked_s, return_counts=True)
    assert crowd.max() * 512 <= 1_640 * BLOCK_TOKENS
    assert np.all(np.diff(asked.asked_s) >= 0) and math.isclose(at[0], 0.0)
    assert (asked.prompt_tokens + asked.output_tokens).max() < LONGEST_TOKENS
