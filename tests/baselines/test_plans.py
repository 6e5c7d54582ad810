"""`llmgym plan kv`, `law`, `oserve` and `afd`: what does not fit is an error that names it, what fits in part is said."""

import re
from pathlib import Path

import numpy as np
import pytest

from llmgym import profiles, workloads
from llmgym.baselines.kv.plan import Kv, simulated_rate
from llmgym.cli import main
from llmgym.envs.oserve.shapes import rate_table
from llmgym.serving.capacity import area, saturation

FEW = [(100, 50), (300, 20), (1000, 24)]


def trace(path: Path, lengths: list[tuple[int, int]]) -> str:
    rows = [f"{i},{s},{o}" for i, (s, o) in enumerate(lengths)]
    path.write_text("\n".join(["arrival_s,prompt_tokens,output_tokens", *rows]))
    return str(path)


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What a plan prints, on one line."""
    assert main(["plan", *arguments]) == 0
    return " ".join(capsys.readouterr().out.split())


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The error of a plan that is refused, before anything is printed."""
    assert main(["plan", *arguments]) == 2
    out, error = capsys.readouterr()
    assert not out and error.startswith("llmgym: ") and error.count("\n") == 1, (out, error)
    return error


KV = ("kv", "--no-simulate", "--rate", "4")
LAW = ("law", "--rate", "4", "--batch-s", "0.01", "--kv-capacity", "100000")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("kv", "--rate", "0"), "rate=0.0: expected a finite number > 0"),
        (("kv", "--rate", "-1"), "rate=-1.0"),
        (("kv", "--rate", "nan"), "rate=nan"),
        (("kv", "--rate", "inf"), "rate=inf"),
        (("kv", "--no-simulate", "--rate", "1e308"), "rate_rps=1e+308: needs more than"),
        ((*KV, "--utilization", "nan"), "utilization=nan"),
        ((*KV, "--utilization", "1e-320"), "rate_rps=4.0: needs more than"),
        ((*KV, "--kv-capacity", "0"), "kv_capacity=0: expected a whole number"),
        ((*KV, "--kv-capacity", "3000000000"), "kv_capacity=3000000000: expected a whole number"),
        ((*KV, "--kv-capacity", "10"), "kv_capacity=10: next to none of the requests of azure-conv-2023 fit"),
        ((*KV, "--chunk", "0"), "chunk=0"),
        ((*KV, "--budget", "-1"), "budget=-1"),
        ((*KV, "--seats", "0"), "seats=0"),
        ((*KV, "--seats", "2000000000"), "seats=2000000000"),
        ((*KV, "--workload", "none.csv"), "none.csv: no such file"),
        ((*KV, "--profile", "./none"), "./none: no such file or folder"),
        ((*LAW, "--rate", "0"), "rate=0.0"),
        ((*LAW, "--rate", "nan"), "rate=nan"),
        ((*LAW, "--batch-s", "0"), "batch_s=0.0"),
        ((*LAW, "--batch-s", "nan"), "batch_s=nan"),
        ((*LAW, "--batch-s", "-1"), "batch_s=-1.0"),
        ((*LAW, "--chunk", "0"), "chunk=0"),
        ((*LAW, "--chunk", "-5"), "chunk=-5"),
        ((*LAW, "--kv-capacity", "-5"), "kv_capacity=-5"),
        (
            (*LAW, "--kv-capacity", "19"),
            "kv_capacity=19: none of the requests of uniform-1:1 fit into the cache; prompt and "
            "output take 20 tokens at least and 1,610 on average",
        ),
        (("oserve", "--rates", "0", "0", "0", "0"), "rates=(0.0, 0.0, 0.0, 0.0)"),
        (("oserve", "--rates", "nan", "1", "1", "1"), "rates=nan"),
        (("oserve", "--rates", "-1", "1", "1", "1"), "rates=-1.0"),
        (("oserve", "--rates", "1e300", "1", "1", "1"), "expected 0 or 1e-6 to 1e6"),
        (("oserve", "--rates", "1e-300", "1", "1", "1"), "expected 0 or 1e-6 to 1e6"),
        (("oserve", "--rates", "1", "1"), "rates has 2 entries"),
        (("oserve", "--gpus", "1"), "at most gpus=1"),
        (("oserve", "--gpus", "5"), "gpus=5"),
        (
            ("oserve", "--prompts", "100", "99000000", "--outputs", "10", "10", "--rates", "1", "1"),
            "a request of 99,000,000 + 10 tokens fits into no replica of llama-2-70b on gpus=16",
        ),
        (("afd", "--batch", "0"), "batch=0"),
        (("afd", "--batch", "70000", "--profile", "paper"), "batch=70000"),
        (("afd", "--batches", "0"), "batches=0"),
        (("afd", "--instances", "1"), "instances=1"),
        (("afd", "--instances", "300"), "instances=300"),
        (("afd", "--profile", "paper", "--link-gb-per-s", "nan"), "link_gb_per_s=nan"),
        (("afd", "--profile", "paper", "--link-gb-per-s", "0"), "link_gb_per_s=0.0"),
        (("afd", "--profile", "paper", "--link-latency-us", "-1"), "link_latency_us=-1.0"),
        (
            ("afd", "--requests", "geometric:prompt=100,decode=1e12"),
            "steps: expected numbers from 1 to 16777216",
        ),
        (("afd", "--requests", "geometric:prompt=nan,decode=100"), "prompt=nan"),
        (
            ("afd", "--requests", "mooncake-conversation", "--batch", "2000", "--batches", "8"),
            "of KV cache on an attention instance; h100 has",
        ),
        (("afd", "--trace", "none.csv"), "none.csv: no such file"),
    ],
)
def test_what_does_not_fit_is_named(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], words: str
) -> None:
    assert words in refused(capsys, *arguments)


def test_a_cache_that_holds_no_request_serves_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = trace(tmp_path / "long.csv", [(5000, 50)] * 29)
    for plan in (("kv", "--rate", "4"), ("law", "--rate", "4", "--batch-s", "0.01")):
        error = refused(capsys, *plan, "--workload", long, "--kv-capacity", "5049")
        assert "kv_capacity=5049: none of the requests of" in error and "5,050 tokens at least" in error
        assert "Partial" not in said(
            capsys,
            *plan[:1],
            *plan[1:],
            "--workload",
            long,
            "--kv-capacity",
            "5050",
            *(("--no-simulate",) if plan[0] == "kv" else ()),
        )


def test_a_plan_for_a_part_of_the_requests_says_so_and_counts_only_that(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three of four requests fit: the plan is that of the three alone, at three quarters of the rate."""
    some, fit = trace(tmp_path / "some.csv", [*FEW, (5000, 50)]), trace(tmp_path / "fit.csv", FEW)
    part = said(capsys, "kv", "--no-simulate", "--kv-capacity", "1024", "--workload", some, "--rate", "40")
    alone = said(capsys, "kv", "--no-simulate", "--kv-capacity", "1024", "--workload", fit, "--rate", "30")
    assert "Partial: 75.00% of the requests fit into the cache" in part and "Partial" not in alone
    assert "Of 40 req/s, 30 are served." in part
    found = saturation(
        workloads.load(fit), profiles.load("h100/llama-3.1-8b"), 1024, 2048, 2048, 256, first=1
    )
    gpus = int(np.ceil(30 / (0.9 * found.rate_rps)))
    for text in (part, alone):
        assert f"{gpus} GPUs = ceil(30 / (0.9 x {found.rate_rps:.4g}))" in text
    g = area(*np.array(FEW).T, 512).mean()
    mu = 1024 / (0.01 * g)
    law = said(
        capsys, "law", "--rate", "40", "--batch-s", "0.01", "--kv-capacity", "1024", "--workload", some
    )
    assert f"mu = 1,024 / (0.01 x E(g)) = {mu:.4g} req/s" in law and "with delta = 1.0000" in law
    assert f"{int(np.ceil(30 / (0.9 * mu)))} GPU" in law


@pytest.mark.slow
def test_the_simulated_engine_serves_whole_requests_only(tmp_path: Path) -> None:
    """It completes the requests that fit as fast as if there were no others, and is not fed what it would cut short."""
    profile, plan = profiles.load("h100/llama-3.1-8b"), Kv(rate=1.0)
    some, fit = (
        workloads.load(trace(tmp_path / f"{len(x)}.csv", x)) for x in ([*FEW, (1000, 5000), (5000, 50)], FEW)
    )
    part, alone = (simulated_rate(w, profile, 1024, plan) for w in (some, fit))
    assert part == pytest.approx(alone, rel=0.05)


def test_more_cache_than_the_memory_holds_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    most = profiles.load("h100/llama-3.1-8b").kv_capacity_tokens(1.0)
    assert "Memory:" not in said(capsys, *KV, "--kv-capacity", str(most))
    text = said(capsys, *KV, "--kv-capacity", str(most + 1))
    assert f"Memory: a cache of {most + 1:,} tokens does not fit" in text and f"; {most:,} do." in text


def test_an_overloaded_cluster_says_how_much_of_each_type_it_serves(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Far above what can be served, the most requests are served by the type that is cheapest, on every replica."""
    text = said(capsys, "oserve", "--rates", "500", "500", "500", "500")
    table = rate_table("llama-2-70b", ((496, 18), (496, 510), (2455, 18), (2455, 510)), 16)
    rate = {str(shape): row for shape, row in zip(table.shapes, table.rate, strict=True)}
    replicas = re.findall(r"│ (\d+) (TP\S+) │ [\d.]+ │ [\d.]+ │ [\d.]+ │ [\d.]+ │ 100% │", text)
    served = sum(int(n) * rate[shape][0] for n, shape in replicas)
    assert sum(int(n) for n, _ in replicas) == 4
    assert "Overload: this deployment serves 1.3% of every type" in text
    assert f"it serves {served:.4g} of 2000 req/s ({served / 2000:.1%})." in text
    assert f"│ served │ {served / 500:.1%} │ 0.0% │ 0.0% │ 0.0% │ {served / 2000:.1%} │" in text
    enough = said(capsys, "oserve")
    assert "Overload" not in enough and "│ served │ 100.0% │ 100.0% │ 100.0% │ 100.0% │ 100.0% │" in enough


def test_bundles_of_many_instances_are_planned_and_simulated_in_part(
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = said(
        capsys, "afd", "--profile", "paper", "--instances", "64", "--requests", "uniform-1:1", "--batch", "8"
    )
    tried = re.search(r"Simulated pipeline with 2 microbatches, (\d+) ratios", text)
    assert tried is not None and 30 < int(tried[1]) < 60


def test_a_pipeline_too_large_to_simulate_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "afd", "--profile", "paper", "--batch", "60000"]) == 2
    assert "leave the simulation out with --no-simulate" in capsys.readouterr().err
