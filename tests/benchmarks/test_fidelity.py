"""Replays, figures and closed forms of `benchmarks/fidelity.py`."""

import gzip
import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fidelity import kernels, silicon, validations
from fidelity.report import Sheet, Tally, comparison, picture, summary, within
from fidelity.runs import Engine, Run, own_runs, read_run
from fidelity.serving import serve
from fidelity.steps import log_of, read_log

from llmgym import profiles
from llmgym.errors import InvalidArgument

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
DATA = os.environ.get("LLMGYM_DATA", "")
needs_data = pytest.mark.skipif(
    not Path(DATA, "llmservingsim").is_dir(), reason="LLMGYM_DATA names no folder with llmservingsim/"
)
LAWS = "h100/llama-3.1-8b"


def run_of(arrival, prompt, output, engine=None, first=None, last=None, name="run"):
    n = len(arrival)
    nothing = np.full(n, np.nan)
    return Run(
        name,
        np.asarray(arrival, float),
        np.asarray(prompt, np.int64),
        np.asarray(output, np.int64),
        nothing if first is None else np.asarray(first, float),
        nothing if last is None else np.asarray(last, float),
        engine or Engine(),
    )


def random_run(seed, n=120, rate=15.0, longest=640, engine=None):
    rng = np.random.default_rng(seed)
    arrival = np.cumsum(rng.exponential(1 / rate, n))
    return run_of(arrival - arrival[0], rng.integers(1, longest, n), rng.integers(1, longest, n), engine)


# --- figures ---


def test_figures_by_hand():
    run = run_of([0, 1], [5, 5], [3, 1], first=[2, 4], last=[4, 4])
    figures = run.figures()
    assert figures["ttft_p50_s"] == pytest.approx(2.5)
    assert figures["tpot_p50_s"] == pytest.approx(1.0)  # the request with one token has none
    assert figures["e2e_p50_s"] == pytest.approx(3.5)
    assert figures["makespan_s"] == 4.0 and figures["output_tokens_per_s"] == 1.0


def test_a_duration_is_read_as_seconds(tmp_path):
    path = tmp_path / "x_requests.csv"
    path.write_text(
        "arrival_s,prompt_tokens,output_tokens,first_token_s,last_token_s\n"
        "0 days 00:01:01.5,3,2,62,63\n1 days 00:00:00,3,2,86401,86402\n0.25,3,2,1,2\n",
        encoding="utf-8",
    )
    run = read_run(path, Engine(), {})
    np.testing.assert_allclose(run.arrival_s, [0.25, 61.5, 86_400])
    np.testing.assert_allclose(run.first_s, [1, 62, 86_401])


def test_what_cannot_be_read_is_named(tmp_path):
    with pytest.raises(InvalidArgument, match=r"nothing_requests\.csv.*no such file"):
        read_run(tmp_path / "nothing_requests.csv", Engine(), {})
    path = tmp_path / "x_requests.csv"
    path.write_text("arrival_s,prompt_tokens,output_tokens,first_token_s\n0,1,1,1\n", encoding="utf-8")
    with pytest.raises(InvalidArgument, match="no column 'last_token_s'"):
        read_run(path, Engine(), {})
    with pytest.raises(InvalidArgument, match=r"x_meta\.json is missing"):
        own_runs(tmp_path)


def test_a_client_has_every_token_later():
    profile = profiles.load(LAWS)
    run = random_run(7, n=30)
    first, last, _ = serve(run, profile)
    later, latest, _ = serve(run, profile, way=0.004)
    np.testing.assert_allclose(later - first, 0.004)
    np.testing.assert_allclose(latest - last, 0.004)


# --- kernel tables ---


def write_gz(path, header, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt") as file:
        file.write("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n")


@pytest.fixture
def tables(tmp_path):
    """Kernel tables in which a decode costs three times as much beside a prefill chunk."""
    chunks, contexts, batches, kvs = (16, 64, 256), (0, 64, 256), (1, 4, 16), (64, 256, 1024)

    def chunk_us(c, k):
        return 2.0 * c + 0.5 * k

    def decode_us(b, m):
        return 0.1 * b * m

    rows = [(c, k, 0, 0, chunk_us(c, k)) for c in chunks for k in contexts]
    rows += [(0, 0, b, m, decode_us(b, m)) for b in batches for m in kvs]
    rows += [
        (c, k, b, m, chunk_us(c, k) + 3 * decode_us(b, m))
        for c in chunks
        for k in contexts
        for b in batches
        for m in kvs
    ]
    base = tmp_path / "GPU" / "Llama-3.1-8B_tp1"
    header = "prefill_chunk,kv_prefill,n_decode,kv_decode,time_us"
    write_gz(Path(f"{base}_attention.csv.gz"), header, rows)
    layers = ("layernorm", "qkv_proj", "o_proj", "gate_up_proj", "down_proj", "embedding")
    dense = [(layer, tokens, 10.0) for layer in layers for tokens in (1, 64, 1024)]
    write_gz(Path(f"{base}_dense.csv.gz"), "layer,tokens,time_us", dense)
    head = [(layer, n, 100.0) for layer in ("lm_head", "sampler") for n in (1, 64)]
    write_gz(Path(f"{base}_per_sequence.csv.gz"), "layer,sequences,time_us", head)
    return profiles.from_llmservingsim(
        tmp_path / "GPU", "Llama-3.1-8B", kernels.SHAPES["Llama-3.1-8B"], memory_bytes=80 * 2**30
    )


def test_the_sum_of_parts_is_the_sum_of_the_tables(tables):
    dense_us = 32 * (2 * 10 + 4 * 10) + 10  # two norms and four products in every layer, one embedding
    attention_us = 32 * (2.0 * 64 + 0.5 * 256 + 0.1 * 4 * 256)
    expected_s = 1e-6 * (dense_us + attention_us + 200) + kernels.HOST_S
    apart = {op: table for op, table in tables.tables.items() if op != "decode_attention_beside"}
    found = kernels.summed_step(replace(tables, tables=apart))([(64, 256)], 4, 4 * 256)
    assert found == pytest.approx(expected_s, rel=1e-5)


def test_decodes_cost_more_beside_a_chunk(tables):
    np.testing.assert_allclose(
        tables.tables["decode_attention_beside"].latency_us, 3 * tables.tables["decode_attention"].latency_us
    )
    apart = {op: table for op, table in tables.tables.items() if op != "decode_attention_beside"}
    summed, beside = kernels.summed_step(replace(tables, tables=apart)), kernels.summed_step(tables)
    more_s = beside([(64, 256)], 4, 4 * 256) - summed([(64, 256)], 4, 4 * 256)
    assert more_s == pytest.approx(1e-6 * 32 * 2 * 0.1 * 4 * 256, rel=1e-4)
    assert beside([], 4, 1024) == pytest.approx(summed([], 4, 1024), rel=1e-6)
    assert beside([(64, 0)], 0, 0) == pytest.approx(summed([(64, 0)], 0, 0), rel=1e-6)


def test_collectives_of_nccl(tmp_path):
    rows = [("all_gather", "half", 2, 1024, 0.01), ("all_gather", "half", 2, 4096, 0.04)]
    rows += [("all_gather", "half", 4, 1024, 9.0), ("all_gather", "int8", 2, 1024, 9.0)]
    header = "op_name,nccl_dtype,num_gpus,message_size,latency_ms"
    write_gz(tmp_path / "aiconfigurator" / "sys" / "nccl.csv.gz", header, rows)
    nccl = kernels.Nccl(tmp_path, "sys")
    sizes = 2.0 * np.array([1024, 2048, 4096])  # bytes of 16-bit numbers
    np.testing.assert_allclose(nccl.all_gather_s(sizes, 2), [1e-5, 2e-5, 4e-5])
    with pytest.raises(InvalidArgument, match="is missing"):
        kernels.Nccl(tmp_path, "other").all_reduce_s(sizes, 2)


# --- closed forms ---


class Simple:
    """A server whose steps take a millisecond for every token, two for a chunk's attention and one for the rest."""

    host_s = 1e-3

    def head_s(self, sequences):
        return 0.0

    def decode_attention_s(self, batch, kv_tokens):
        return 1e-6 * batch * kv_tokens

    def prefill_attention_s(self, chunk, context):
        return 2e-3

    def dense_s(self, tokens):
        return 1e-3 * tokens


def test_the_closed_form_by_hand():
    ttft_s, tpot_s = silicon.closed_form(Simple(), prompt=100, output=50, batch=4, asynchronous=False)
    decodes_s = 1e-3 + 4e-3 + 1e-6 * 4 * 125
    adds_s = 0.1 + 2e-3
    assert tpot_s == pytest.approx(decodes_s + 3 * adds_s / 50)
    busy = 3 / 50
    assert ttft_s == pytest.approx(decodes_s + adds_s + 0.5 * (decodes_s + busy * adds_s))
    later_s, _ = silicon.closed_form(Simple(), 100, 50, 4, asynchronous=True)
    assert later_s - ttft_s == pytest.approx(decodes_s + busy * adds_s)


def test_a_loop_of_one_request_waits_for_nothing():
    way_s = silicon.SERVER_WAY_S
    second = profiles.constant(1.0)
    assert silicon.loop(second, 100, 5, 1, False, 1.0) == pytest.approx(1.0 + way_s)
    # The other request's decode takes a token of the budget, so a prompt as long as the budget needs two steps.
    assert silicon.loop(second, silicon.BUDGET_TOKENS, 5, 2, False, 1.0) == pytest.approx(2.0 + way_s)


def test_a_burst_waits_for_all_that_is_before_it():
    """Four prompts as long as the budget, sent together and once: the first is done after a step. The second begins beside its
    decode, a token short, and so on.
    """
    found = silicon.loop(profiles.constant(1.0), silicon.BUDGET_TOKENS, 5, 4, False, 1.0, each=1)
    assert found == pytest.approx(np.mean([1, 3, 4, 5]) + silicon.SERVER_WAY_S)


def test_medians_of_groups():
    def point(system, predicted, loop):
        return silicon.Point(system, "m", "b", 1, (predicted, 1.0), (2 * predicted, 1.0), loop, (1, 1, 1))

    found = [point("a", 1.1, 1.0), point("a", 1.3, math.nan), point("b", 0.5, math.nan)]
    rows = silicon.errors(found, ("system",))
    assert rows[0] == ("a", "2", "140.0", "+140.0", "20.0", "+20.0", "0.0", "+0.0", "1")
    assert rows[1] == ("b", "1", "0.0", "+0.0", "50.0", "-50.0", "-", "-", "0")


# --- rates, steps ---


def test_the_completion_rate_leaves_out_both_ends():
    last = np.concatenate([np.linspace(10, 20, 20), np.linspace(20.5, 40, 40), np.linspace(60, 100, 5)])
    arrival = np.linspace(0, 38, len(last))
    assert validations.completion_rate(arrival, last) == pytest.approx(2.0, rel=0.05)
    with pytest.raises(InvalidArgument, match="expected 3 or more"):
        validations.completion_rate(np.zeros(2), np.array([1.0, 2.0]))


def test_the_profile_of_a_gpu():
    run = Run(**{**vars(run_of([0.0], [1], [1])), "meta": {"gpu": "NVIDIA H200"}})
    assert validations.profile_for(run, None).name == "h200/llama-3.1-8b"
    assert validations.profile_for(run, "b200/qwen2.5-7b").name == "b200/qwen2.5-7b"
    other = Run(**{**vars(run), "meta": {"gpu": "NVIDIA TITAN"}})
    with pytest.raises(InvalidArgument, match="NVIDIA TITAN"):
        validations.profile_for(other, None)


def test_steps_are_compared_by_their_decodes(tmp_path):
    """Steps around the end of a prompt are left out, with those before it that may hold its chunks."""
    profile = profiles.load(LAWS)
    run = run_of([0.0], [1], [1], Engine(kv_tokens=100_000))
    run = Run(**{**vars(run), "meta": {"gpu": "NVIDIA H100"}})
    step_s = 1.25 * kernels.summed_step(profile)([], 8, 8_000)
    path = tmp_path / "x_steps.csv"
    rows = [f"{i * step_s:.9f},8,0,0.08,8,{900 * (i == 20)},0" for i in range(30)]
    header = "time_s,running,waiting,kv_usage,output_tokens,prompt_tokens,preempted"
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    sheet = validations.step_times(read_log(path), run, profile)
    (row,) = sheet.rows
    assert row[0] == "8 to 15" and row[-1] == "-20.0"
    assert row[1] == str(29 - 7)  # the end of a prompt at 20, five steps before it and the one after


# --- tables, picture, command line ---


def test_a_comparison_counts_what_is_within_the_bar():
    sheet = comparison("t", {"a_s": 2.0, "b_s": 1.0}, {"model": {"a_s": 2.08, "b_s": 2.0}}, "Note.")
    assert sheet.rows[0] == ("a_s", "2", "2.08", "+4.0")
    assert sheet.note == "Note. model: 1 and 1 of 2 figures within 5 and 10 %."
    assert sheet.markdown().splitlines()[4:6] == [
        "| figure | measured | model | error % |",
        "|---|---|---|---|",
    ]


def test_runs_are_summed_up_by_kind():
    """An error below 5 % counts within both; a run without a prediction leaves its column empty, and so does the sum of all."""
    figures = {"a_s": 2.0, "b_s": 1.0}
    near, far = {"a_s": 2.09, "b_s": 1.08}, {"a_s": 3.0, "b_s": 0.97}
    sheet = summary(
        [
            Tally("own", "one", figures, {"old": far, "new": near}),
            Tally("own", "two", figures, {"old": far, "new": far}),
            Tally("other", "three", figures, {"new": near}),
        ]
    )
    assert sheet.header[3:] == ("old: within 5 %", "old: within 10 %", "new: within 5 %", "new: within 10 %")
    assert sheet.rows == (
        ("own", "one", "2", "1 (50 %)", "1 (50 %)", "1 (50 %)", "2 (100 %)"),
        ("own", "two", "2", "1 (50 %)", "1 (50 %)", "1 (50 %)", "1 (50 %)"),
        ("own", "all of these", "4", "2 (50 %)", "2 (50 %)", "2 (50 %)", "3 (75 %)"),
        ("other", "three", "2", "", "", "1 (50 %)", "2 (100 %)"),
        ("other", "all of these", "2", "", "", "1 (50 %)", "2 (100 %)"),
        ("all", "", "6", "", "", "3 (50 %)", "5 (83 %)"),
    )


def test_the_experiment_on_steps_tells_what_the_host_takes_and_how_alike_two_runs_are(tmp_path):
    """Every tenth step has a prompt, and every twentieth one of 600 tokens; the second run is a tenth slower."""
    header = (
        "start_s,planned_s,launch_s,launched_s,sampled_s,done_s,tokens,sequences,prefill_tokens,chunks,chunk_cached,"
        "decode_cached,blocks,waiting,preempted,device_gap_ms,device_ms"
    )
    rows = []
    for i in range(100):
        prompt = 600 if i % 20 == 10 else 90 if i % 20 == 0 else 0
        launch_ms = {0: 2.0, 90: 12.0, 600: 30.0}[prompt]
        stamps = np.cumsum([0.05 * i, 0.5e-3, 1e-4, 1e-3 * launch_ms, 1e-3, 2e-3])
        counts = [prompt + 5, 5 + (prompt > 0), prompt, int(prompt > 0), 0, 500, 50, 0, 0]
        rows.append(",".join(map(repr, [*map(float, stamps), *counts, 0.0, 7.0])))
    (tmp_path / "a_engine_steps.csv").write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    run = run_of([0.0, 1.0], [5, 5], [3, 3], first=[2.0, 3.0], last=[4.0, 5.0], name="a")
    slow = run_of([0.0, 1.0], [5, 5], [3, 3], first=[2.2, 3.2], last=[4.4, 5.4], name="a_streamed")
    sheet = validations.launched(tmp_path, [run, slow])
    assert [row[1:5] for row in sheet.rows] == [
        ("decodes", "90", "2.0 (2.0 to 2.0)", "0.50"),
        ("a prompt, to 512 tokens", "5", "12.0 (12.0 to 12.0)", "0.50"),
        ("above 512 tokens", "5", "30.0 (30.0 to 30.0)", "0.50"),
    ]
    again = validations.twice([slow, run])
    assert dict(again.rows)["ttft_p50_s"] == "+10.0" and again.header == ("figure", "a")
    assert validations.twice([run]).rows == ()
    log = log_of(tmp_path, Run(**{**vars(run), "engine": Engine(kv_tokens=1_600)}))
    assert log.prompt.sum() == 5 * 690 and set(log.output) == {5.0, 6.0} and set(log.usage) == {0.5}
    assert log_of(tmp_path, slow) is None


def test_a_table_may_hold_brackets(capsys):
    from rich.console import Console

    Sheet("E[g]", ("[a]",), (("[b]",),), "mu = M / E[g]").show(Console())
    said = capsys.readouterr().out
    assert "E[g]" in said and "[a]" in said and "[b]" in said


def test_the_picture_is_drawn(tmp_path):
    path = tmp_path / "p.png"
    picture(path, {"one": [(1.0, 1.1)], "two": [(0.01, 0.02)] * 70})
    assert path.read_bytes().startswith(b"\x89PNG")


def fidelity(*arguments):
    command = [sys.executable, str(BENCHMARKS / "fidelity.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.slow
def test_predictions_are_those_that_are_compared_later(tmp_path):
    """Predict a case, let an engine behave as predicted, and compare: no error but the rounding of the files."""
    done = fidelity("--predict", str(tmp_path), "--cases", "queue_paper")
    assert done.returncode == 0, done.stderr
    stored = json.loads((tmp_path / "predictions.json").read_text(encoding="utf-8"))
    case = stored["cases"]["queue_paper"]
    assert case["metrics"]["preemptions"] > 0
    closed, replayed = case["rates_rps"].values()
    assert 0.75 * closed < replayed < closed
    from fidelity.cases import CASES, draw

    asked = draw(CASES["queue_paper"])
    engine = Engine(kv_tokens=CASES["queue_paper"].blocks * 16)
    run = run_of(*asked, engine)
    best = validations.with_options(profiles.load(LAWS), stored["options"])
    assert (best.dense, best.host) == ("sustained", "vllm-0.24-steps")
    first, last, _ = serve(run, best, way=stored["ways"]["in-process"])
    rows = zip(*asked, first, last, strict=True)
    header = "arrival_s,prompt_tokens,output_tokens,first_token_s,last_token_s"
    text = "\n".join([header, *(",".join(map(repr, map(float, row))) for row in rows)]) + "\n"
    (tmp_path / "queue_paper_requests.csv").write_text(text, encoding="utf-8")
    meta = {
        "engine": "vllm 0.24.0",
        "gpu": "NVIDIA H100 80GB HBM3",
        "max_num_batched_tokens": 2048,
        "max_num_seqs": 256,
        "blocks": CASES["queue_paper"].blocks + 1,
        "block_size": 16,
    }
    (tmp_path / "queue_paper_meta.json").write_text(json.dumps(meta), encoding="utf-8")
    done = fidelity("--runs", str(tmp_path), "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    written = (tmp_path / "out" / "fidelity.md").read_text(encoding="utf-8")
    assert "stored before: 11 and 11 of 11 figures within 5 and 10 %" in written
    assert "; llmgym: 11 and 11 of 11 figures within 5 and 10 %;" in written
    assert "critical rate" in written
    assert (tmp_path / "out" / "fidelity.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "--data or --runs is needed"),
        (("--data", "nowhere"), "there is no such folder"),
        (("--predict", "x", "--cases", "calm"), "expected names out of calibration"),
    ],
)
def test_wrong_arguments_are_told(arguments, said):
    done = fidelity(*arguments)
    assert done.returncode == 2 and said in done.stderr


def test_an_empty_folder_is_told(tmp_path):
    done = fidelity("--data", str(tmp_path), "--out", str(tmp_path / "out"))
    assert done.returncode == 2 and "nothing to compare" in done.stderr


# --- published measurements ---


@pytest.mark.data
@needs_data
def test_the_published_overload_run_is_met_once_mixed_batches_cost_what_they_cost():
    """LLMServingSim's run of vLLM 0.19, Llama-3.1-8B on RTX PRO 6000: every figure within 10 %."""
    report = validations.Report()
    validations.published_runs(Path(DATA), report)
    met = [within(tally.measured, tally.columns["llmgym"]) for tally in report.tallies]
    assert met == [(9, 11), (0, 8)]  # the second shares its experts among two GPUs


@pytest.mark.data
@needs_data
def test_time_per_output_token_of_published_servers():
    """AIConfigurator's dense servers: median absolute error of TPOT in closed form below 15 %."""
    found = silicon.points(Path(DATA), with_loop=False)
    wrong = np.array([abs(p.tpot_s[0] / p.tpot_s[1] - 1) for p in found])
    assert len(found) > 400 and np.median(wrong) < 0.15
