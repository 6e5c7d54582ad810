"""What a deployed policy adds to a step of vLLM's scheduler, with many requests waiting; on a CPU and without a model.

    python benchmarks/deploy_overhead.py --policy policy.npz identity --runs 5      # in an environment with vllm and numpy

`llmgym export-policy` writes `policy.npz`. A run keeps as many requests waiting as `--waiting` says: whenever some join, as many
come. Their lengths are lognormal with the medians of conversations, and the cache is that of the scenario `azure-conv-tight`, which
holds some twenty; once more with short requests, of which 128 run. What is counted is everything that `GymScheduler` does beside
vLLM's own scheduler: what it notes of requests that come and go, the decisions, and what it notes of a step. It is the time of the
processor that the thread takes, so that others on the machine count only in so far as they share its caches; the run with the
lowest median is told.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from engine_reference import MODEL, Case, answer, build, request_of

STEPS, WARM = 2_000, 200
"""Steps of a run, and of these the first ones that are not counted."""
CASE: Case = {
    "name": "overhead",
    "policy": "fcfs",
    "scheduling": "async",
    "budget": 2_048,
    "seats": 256,
    "blocks": 2_048,
    "threshold": 0,
    "caching": False,
}


def lengths(count: int) -> tuple[list[list[Any]], list[int]]:
    """Requests as `engine_reference` has them, and predictions."""
    rng = np.random.default_rng(0)
    prompt = np.clip(rng.lognormal(6.9, 1.0, count), 8, 8_000).astype(int)
    output = np.clip(rng.lognormal(4.9, 0.9, count), 4, 1_500).astype(int)
    told = np.clip(output * rng.lognormal(0.0, 0.5, count), 1, 4_000).astype(int)
    return [[0.0, int(p), int(o), 0, -1] for p, o in zip(prompt, output)], told.tolist()


def measure(policy: str, waiting: int, seats: int, short: bool) -> dict[str, float]:
    """One run.

    Args:
        policy: what `llmgym.deploy.vllm` takes.
        waiting: requests that wait in every step.
        seats: requests that run at once.
        short: whether prompts are cut to 64 tokens, so that as many run as there are seats.

    Returns:
        Microseconds and counts by name.
    """
    from llmgym.deploy import vllm as deployed

    deployed.time = SimpleNamespace(perf_counter=time.thread_time, time=time.time)  # type: ignore[attr-defined]
    requests, predicted = lengths(20_000)
    if short:
        requests = [[a, min(p, 64), min(o, 64), x, s] for a, p, o, x, s in requests]
    case = {**CASE, "seats": seats, "requests": requests, "predicted": predicted}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(MODEL), encoding="utf-8")
        scheduler = build(case, folder, deployed.GymScheduler, {"llmgym": policy})
    if scheduler.steering is None:
        raise SystemExit(f"--policy {policy}: vLLM schedules by itself; see what it said above")
    own: list[float] = []
    spent = 0.0

    def timed(tell: Any) -> Any:
        def told(*args: Any) -> None:
            nonlocal spent
            began = time.thread_time()
            tell(*args)
            spent += time.thread_time() - began

        return told

    scheduler.waiting._tell = timed(scheduler.waiting._tell)
    coming, running = 0, []
    under_way: list[Any] = []
    decisions = []
    for _ in range(STEPS):
        while len(scheduler.waiting) < waiting and coming < len(requests):
            request = request_of(case, coming)
            request.arrival_time = time.time()
            scheduler.add_request(request)
            coming += 1
        before, taken = len(scheduler.overhead_s), scheduler.steering.decisions
        output = scheduler.schedule()
        assert len(scheduler.overhead_s) == before + 1
        under_way.append((output, answer(case, scheduler, output)))
        if len(under_way) == 2:
            scheduler.update_from_output(*under_way.pop(0))
        own.append(scheduler.overhead_s[-1] + spent)
        decisions.append(scheduler.steering.decisions - taken)
        running.append(len(scheduler.running))
        spent = 0.0
    us, asked = 1e6 * np.array(own[WARM:]), np.array(decisions[WARM:])
    deciding = us[asked > 0]
    return {
        "p50": float(np.median(us)),
        "p99": float(np.quantile(us, 0.99)),
        "deciding_p50": float(np.median(deciding)) if len(deciding) else float("nan"),
        "deciding_p99": float(np.quantile(deciding, 0.99)) if len(deciding) else float("nan"),
        "deciding": float(np.mean(asked > 0)),
        "running": float(np.mean(running[WARM:])),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; see the module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--policy", nargs="+", required=True, help="what llmgym.deploy.vllm takes")
    parser.add_argument("--waiting", type=int, default=256, help="requests that wait")
    parser.add_argument(
        "--runs", type=int, default=5, help="runs of each policy, of which the quietest is told"
    )
    parser.add_argument("--out", type=Path, help="file for the table")
    asked = parser.parse_args(argv)
    for name in ("waiting", "runs"):
        if getattr(asked, name) < 1:
            parser.error(f"--{name} {getattr(asked, name)}: expected a number from 1 on")
    lines = [
        "| policy | running | steps with a decision | p50, us | p99, us | p50 of these, us | p99 of these, us |",
        "|---|---|---|---|---|---|---|",
    ]
    for policy in asked.policy:
        for seats, short in ((256, False), (128, True)):
            runs = [measure(policy, asked.waiting, seats, short) for _ in range(asked.runs)]
            best = min(runs, key=lambda run: run["p50"])
            lines.append(
                f"| `{Path(policy).stem}` | {best['running']:.0f} | {100 * best['deciding']:.0f} % | {best['p50']:.0f} "
                f"| {best['p99']:.0f} | {best['deciding_p50']:.0f} | {best['deciding_p99']:.0f} |"
            )
    table = "\n".join(lines)
    print(table)
    if asked.out is not None:
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        asked.out.write_text(
            f"# What a deployed policy adds to a step with {asked.waiting} requests waiting\n\n"
            f"By `benchmarks/deploy_overhead.py`, time of the processor, the quietest of {asked.runs} runs of {STEPS - WARM:,} "
            f"steps.\n\n{table}\n",
            encoding="utf-8",
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
