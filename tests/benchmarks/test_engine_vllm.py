"""The traffic that is sent to vLLM, and what is written about it, with an engine that answers at once."""

import csv
import importlib
import importlib.metadata
import json
import math
import sys
from dataclasses import replace
from types import ModuleType, SimpleNamespace

import engine_vllm
import numpy as np
import pytest
from fidelity.cases import (
    ALL_CASES,
    BLOCK_TOKENS,
    CASES,
    LONGEST_TOKENS,
    STEP_CASES,
    Traffic,
    draw,
    read_traffic,
    write_traffic,
)
from fidelity.runs import own_runs

from tests.benchmarks import fake_vllm


@pytest.mark.parametrize("name", ALL_CASES)
def test_every_request_fits_into_its_engine(name):
    case = ALL_CASES[name]
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


def test_the_experiment_on_steps_is_one_engine_with_two_clients(capsys):
    assert engine_vllm.main(["--dry-run", "--steps"]) == 0
    said = capsys.readouterr().out
    assert "1 engines" in said and all(name in said for name in STEP_CASES)
    for name, case in STEP_CASES.items():
        assert case.logged and case.stream == name.endswith("_streamed")
        for one, other in zip(draw(case), draw(STEP_CASES[name.removesuffix("_streamed")]), strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--dry-run", "--cases", "calm"], "expected names out of calibration, bursty"),
        (["--dry-run", "--cases", ""], "expected names out of"),
        (["--cases", "bursty"], "--out is needed"),
        (["--dry-run", "--minutes", "0"], "expected a number > 0"),
        (["--dry-run", "--traffic", "nowhere"], "calibration_traffic.csv is missing"),
        (["--dry-run", "--cases", "deploy_1"], "--traffic is needed for deploy_1"),
        (["--dry-run", "--steps", "--scheduler-cls", "a.B"], "have a scheduler of their own"),
        (["--dry-run", "--policy", "x.npz"], "needs --scheduler-cls"),
        (["--dry-run", "--scheduler-cls", "a.B", "--shortest"], "goes without --scheduler-cls"),
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
    for name in ("calibration", "bursty", "overload", *STEP_CASES):
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
    assert found.engine.kv_tokens == 28_170 * BLOCK_TOKENS  # vLLM keeps one block for itself
    assert (found.engine.seats, found.engine.budget_tokens, found.engine.block_tokens) == (256, 2048, 16)
    assert found.meta["preemptions"] == 5  # one each time the engine spoke
    assert found.meta["asynchronous_scheduling"] is True
    header, *steps = (small / "runs" / "calibration_steps.csv").read_text(encoding="utf-8").splitlines()
    assert header == ",".join(engine_vllm.STEP_COLUMNS) and len(steps) == 5
    (engine,) = fake_vllm.Engine.started
    assert engine.stopped
    assert engine.arguments.load_format == "dummy" and engine.arguments.skip_tokenizer_init


def test_a_scheduler_and_what_it_is_told_reach_the_engine(small):
    for name in ("deploy_1", "deploy_2"):
        (small / f"{name}_traffic.csv").write_text(
            "arrival_s,prompt_tokens,output_tokens,predicted_tokens\n0.0,5,1,3\n0.01,6,4,9\n",
            encoding="utf-8",
        )
    own = ["--scheduler-cls", "llmgym.deploy.vllm.GymScheduler", "--policy", "x.npz"]
    assert run(small, "--cases", "deploy_1", *own) == 0
    assert run(small, "--cases", "deploy_2", "--shortest") == 0
    mine, shortest = fake_vllm.Engine.started
    assert mine.arguments.scheduler_cls == own[1] and mine.arguments.num_gpu_blocks_override == 2_049
    assert mine.arguments.additional_config["llmgym"]["policy"] == "x.npz"
    assert not hasattr(mine.arguments, "scheduling_policy")
    assert mine.told[1:] == [({"predicted_output_tokens": n}, 0) for n in (3, 9)]
    assert shortest.arguments.scheduling_policy == "priority" and not hasattr(
        shortest.arguments, "scheduler_cls"
    )
    assert shortest.told == [(None, 0)] + [({"predicted_output_tokens": n}, n) for n in (3, 9)]
    meta = json.loads((small / "runs" / "deploy_1_meta.json").read_text(encoding="utf-8"))
    assert meta["scheduling"] == {"scheduler_cls": own[1], "policy": "x.npz", "shortest": False}
    with pytest.raises(SystemExit):
        run(small, "--cases", "overload", "--shortest")


@pytest.mark.slow
def test_every_step_of_a_logged_case_is_written(small):
    assert run(small, "--cases", "calibration") == 0
    assert run(small, "--steps") == 0
    engine = fake_vllm.Engine.started[-1]
    assert engine.arguments.scheduler_cls == "fidelity.engine_steps.Scheduler"
    assert engine.arguments.worker_extension_cls == "fidelity.engine_steps.Steps"
    assert not hasattr(fake_vllm.Engine.started[0].arguments, "scheduler_cls")
    assert engine.intervals == [2**30] * 10 + [1] * 9  # the warm-up, three cases of three, three of three
    for name in STEP_CASES:
        with (small / "runs" / f"{name}_engine_steps.csv").open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == 5 and tuple(rows[0]) == engine_vllm.ENGINE_COLUMNS
        assert sorted({row["tokens"] for row in rows}) == ["5", "6", "7"]
        assert {(row["device_gap_ms"], row["device_ms"]) for row in rows} == {("0.2500", "nan")}
        assert all(0 <= float(row["start_s"]) < 5 for row in rows)
        meta = json.loads((small / "runs" / f"{name}_meta.json").read_text(encoding="utf-8"))
        assert meta["case"]["stream"] == name.endswith("_streamed")
    assert not (small / "runs" / "calibration_engine_steps.csv").exists()


def test_the_engine_notes_what_it_plans(monkeypatch):
    """Two steps of a prompt and a decode, in vLLM's order: plan, launch, sample, plan the next, take the tokens."""
    pytest.importorskip("torch")

    class Plain:
        def __init__(self):
            self.waiting = ["c"]
            self.requests = {
                "a": SimpleNamespace(num_prompt_tokens=100, num_computed_tokens=0),
                "b": SimpleNamespace(num_prompt_tokens=10, num_computed_tokens=25),
            }
            pool = SimpleNamespace(num_gpu_blocks=50, get_num_free_blocks=lambda: 40)
            self.kv_cache_manager = SimpleNamespace(block_pool=pool)
            self.plans = [{"a": 64, "b": 1}, {"a": 36}, {}]
            self.taken = []

        def schedule(self):
            run = self.plans.pop(0)
            for name, tokens in run.items():
                self.requests[name].num_computed_tokens += tokens
            gone = {"b"} if run == {"a": 36} else None
            return SimpleNamespace(
                num_scheduled_tokens=run, total_num_scheduled_tokens=sum(run.values()), preempted_req_ids=gone
            )

        def update_from_output(self, scheduler_output, model_runner_output):
            self.taken.append(model_runner_output)

    class Worker:
        def execute_model(self, scheduler_output):
            return "executed"

        def sample_tokens(self, grammar):
            return "sampled"

    for name, content in (
        ("vllm.v1.core.sched.async_scheduler", {"AsyncScheduler": Plain}),
        ("vllm.v1.worker.gpu_worker", {"Worker": Worker}),
    ):
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "fidelity.engine_steps", raising=False)
    steps = importlib.import_module("fidelity.engine_steps")
    monkeypatch.delitem(sys.modules, "fidelity.engine_steps")
    scheduler, worker = steps.Scheduler(), Worker()
    plans = []
    for _ in range(3):
        plans.append(scheduler.schedule())
        assert worker.execute_model(plans[-1]) == "executed" and worker.sample_tokens(None) == "sampled"
        if len(plans) > 1:
            scheduler.update_from_output(plans[-2], len(plans))
    assert scheduler.taken == [2, 3]
    rows = [dict(zip(engine_vllm.ENGINE_COLUMNS, row, strict=True)) for row in steps.Steps().take_steps()]
    counts = ("tokens", "sequences", "prefill_tokens", "chunks", "chunk_cached", "decode_cached", "blocks")
    assert [[row[key] for key in counts] for row in rows] == [
        [65, 2, 64, 1, 0, 25, 9],
        [36, 1, 36, 1, 64, 0, 9],
    ]
    assert [row["preempted"] for row in rows] == [0, 1] and [row["waiting"] for row in rows] == [1, 1]
    times = ("start_s", "planned_s", "launch_s", "launched_s", "sampled_s", "done_s")
    for row in rows:
        assert sorted(row[key] for key in times) == [row[key] for key in times]
    assert steps.Steps().take_steps() == []


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
