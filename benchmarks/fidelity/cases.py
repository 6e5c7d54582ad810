"""The traffic that `benchmarks/engine_vllm.py` sends and `benchmarks/fidelity.py` predicts.

Lengths and arrivals are drawn by llmgym's workloads with fixed seeds; a machine that measures can do without llmgym when the
requests are read from files. Rates were chosen from the saturated rates that llmgym predicts for Llama-3.1-8B on one H100: 22.7
conversations and 20.2 code completions a second, 9.1 conversations with the small cache.
"""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

LONGEST_TOKENS = 8_192
"""Longest prompt and output together."""
BLOCK_TOKENS = 16
SMALL_CACHE_BLOCKS = 1_640
"""26,240 tokens."""


@dataclass(frozen=True)
class Case:
    """One kind of traffic on one engine.

    Attributes:
        name: of the case.
        about: what it shows.
        lengths: a named workload of llmgym for prompt and output lengths, or four bounds of uniform lengths.
        rate_rps: mean arrival rate.
        requests: number of requests.
        cv: coefficient of variation of the gaps between arrivals; 1 is Poisson, more is bursty.
        blocks: KV blocks of the engine; None lets it take what memory leaves.
        seats: requests that run at once (`max_num_seqs`).
        budget_tokens: tokens of a batch (`max_num_batched_tokens`).
        seed: of arrivals and lengths.
        stream: the client gets every token on its own, not the first and then all others.
        logged: the engine writes down every step it plans and launches.
    """

    name: str
    about: str
    lengths: str | tuple[int, int, int, int]
    rate_rps: float
    requests: int
    cv: float = 1.0
    blocks: int | None = None
    seats: int = 256
    budget_tokens: int = 2_048
    seed: int = 0
    stream: bool = False
    logged: bool = False

    @property
    def engine(self) -> tuple[int | None, int, int, bool]:
        """Settings that need an engine of their own."""
        return self.blocks, self.seats, self.budget_tokens, self.logged


CASES = {
    case.name: case
    for case in (
        Case(
            "calibration",
            "host time and a request's way are taken from it",
            (16, 1024, 16, 256),
            8.0,
            320,
            seed=11,
        ),
        Case(
            "bursty",
            "conversations in bursts, half the capacity",
            "azure-conv-2023",
            11.0,
            500,
            cv=3.0,
            seed=12,
        ),
        Case(
            "near_saturation",
            "conversations at nine tenths of the predicted capacity",
            "azure-conv-2023",
            20.0,
            900,
            seed=13,
        ),
        Case(
            "overload",
            "conversations at 1.25 times the predicted capacity",
            "azure-conv-2023",
            28.0,
            840,
            seed=14,
        ),
        Case(
            "prefill_heavy",
            "code completion: long prompts, short outputs",
            "azure-code-2023",
            15.0,
            600,
            seed=15,
        ),
        Case(
            "small_kv",
            "conversations near the capacity of a cache so small that requests are preempted",
            "azure-conv-2023",
            9.0,
            400,
            blocks=SMALL_CACHE_BLOCKS,
            seed=16,
        ),
        Case(
            "queue_paper",
            "the experiment of arXiv 2605.04595, scaled down: uniform lengths, overload, bound by the KV cache",
            (10, 640, 10, 640),
            24.0,
            720,
            blocks=SMALL_CACHE_BLOCKS,
            seed=17,
        ),
    )
}

UNSTREAMED = (
    Case(
        "steps_calibration",
        "bursts of uniform lengths, for steps of all kinds; the only case to calibrate with",
        (16, 1536, 16, 256),
        11.0,
        330,
        cv=2.0,
        blocks=SMALL_CACHE_BLOCKS,
        seed=21,
        logged=True,
    ),
    Case(
        "steps_overload",
        "uniform lengths, overload, bound by the KV cache",
        (10, 640, 10, 640),
        24.0,
        600,
        blocks=SMALL_CACHE_BLOCKS,
        seed=22,
        logged=True,
    ),
    Case(
        "steps_preempting",
        "conversations above the capacity of a cache so small that requests are preempted",
        "azure-conv-2023",
        11.0,
        330,
        blocks=SMALL_CACHE_BLOCKS,
        seed=23,
        logged=True,
    ),
)
STEP_CASES = {
    case.name: case
    for case in (
        *UNSTREAMED,
        *(replace(once, name=f"{once.name}_streamed", stream=True) for once in UNSTREAMED),
    )
}
"""The experiment on step times: three kinds of traffic on one warm engine, each with two kinds of client. Rates were chosen so
that all of it takes less than seven minutes on an H200, the engine's start included."""
DEPLOY_CASES = {
    f"deploy_{name}": Case(
        f"deploy_{name}",
        "a world of KVQueue-v1's azure-conv-tight, whose requests come with predicted lengths",
        "azure-conv-2023",
        12.09,
        400,
        blocks=2_049,
        seed=90_000 + int(name[0]),
    )
    for name in ("1", "2", "3", "2_again")
}
"""The experiment on deployed schedulers; `benchmarks/deploy_proof.py` writes its requests. The second is repeated, to see how much
runs of the same requests differ. vLLM keeps a block for itself, so that 32,768 tokens are left."""
ALL_CASES = CASES | STEP_CASES | DEPLOY_CASES


class Traffic(NamedTuple):
    """Requests of a case, in order of arrival: float64 [n] in s, and two int64 [n] in tokens."""

    asked_s: Any
    prompt_tokens: Any
    output_tokens: Any


def draw(case: Case) -> Traffic:
    """The requests of a case, drawn with llmgym's workloads; the same on every machine.

    Lengths are cut so that a request fits into the longest context and half the cache.
    """
    from llmgym import workloads

    if isinstance(case.lengths, str):
        classes = workloads.load(case.lengths).classes
    else:
        a, b, c, d = case.lengths
        classes = (workloads.RequestClass(workloads.uniform(a, b), workloads.uniform(c, d)),)
    workload = workloads.Workload(case.name, workloads.gamma(case.rate_rps, case.cv), classes)
    drawn = workload.sample(np.random.default_rng(case.seed), case.requests)
    longest = min(LONGEST_TOKENS, (case.blocks or 2**20) * BLOCK_TOKENS // 2) - 1
    prompt = np.minimum(drawn.prompt_tokens.astype(np.int64), longest * 7 // 8)
    output = np.minimum(drawn.output_tokens.astype(np.int64), longest - prompt)
    return Traffic(drawn.arrival_s - drawn.arrival_s[0], prompt, output)


def warm_up(seats: int, blocks: int) -> Traffic:
    """Requests of all sizes in growing crowds, so that every kernel and graph has run before anything is measured."""
    rng = np.random.default_rng(1)
    crowds = [
        n for n in (1, 2, 4, 8, 16, 32, 64, 128, 256) if n <= seats and n * 512 <= blocks * BLOCK_TOKENS
    ]
    asked, prompt, output = [], [], []
    at = 0.0
    for _ in range(2):
        for n in crowds:
            asked += [at] * n
            prompt += rng.integers(8, 512, n).tolist()
            output += rng.integers(8, 40, n).tolist()
            at += 0.4
        for n in (500, 700, 1_000, 1_500, 2_000, 3_000, 6_000):
            asked.append(at)
            prompt.append(n)
            output.append(16)
            at += 0.15
    return Traffic(np.array(asked), np.array(prompt), np.array(output))


def write_traffic(folder: Path, case: Case) -> Traffic:
    """Draw a case and write `<case>_traffic.csv`, with which a machine without llmgym can measure it."""
    found = draw(case)
    folder.mkdir(parents=True, exist_ok=True)
    rows = zip(*(column.tolist() for column in found), strict=True)
    write_rows(folder / f"{case.name}_traffic.csv", ("arrival_s", "prompt_tokens", "output_tokens"), rows)
    return found


def read_traffic(path: Path) -> Traffic:
    """Read what `write_traffic` wrote."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return Traffic(
        np.array([float(row["arrival_s"]) for row in rows]),
        np.array([int(row["prompt_tokens"]) for row in rows]),
        np.array([int(row["output_tokens"]) for row in rows]),
    )


def read_predictions(path: Path) -> Any:
    """The predicted lengths of the outputs of a traffic file, int64 [n]; None where it has none."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not rows or "predicted_tokens" not in rows[0]:
        return None
    return np.array([int(row["predicted_tokens"]) for row in rows])


def describe(case: Case, traffic: Traffic) -> str:
    """One line on the traffic of a case."""
    last = float(traffic.asked_s[-1])
    return (
        f"{case.name:16} {len(traffic.asked_s):4d} requests in {last:5.1f} s, {len(traffic.asked_s) / last:5.2f} a second, "
        f"prompt {traffic.prompt_tokens.mean():6.0f} (longest {traffic.prompt_tokens.max()}), "
        f"output {traffic.output_tokens.mean():5.0f} (longest {traffic.output_tokens.max()}), "
        f"KV blocks {case.blocks or 'all'}: {case.about}"
    )


def write_rows(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV file so that it is there whole or not at all."""
    part = path.with_suffix(".part")
    with part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
    part.replace(path)
