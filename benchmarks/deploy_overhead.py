"""What a deployed policy adds to a step of vLLM's scheduler, with many requests waiting; on a CPU and without a model.

    python benchmarks/deploy_overhead.py --policy policy.npz identity --runs 5      # in an environment with vllm and numpy

`llmgym export-policy` writes `policy.npz`. A run keeps as many requests waiting as `--waiting` says: whenever some join, as many
come. Their lengths are lognormal with the medians of conversations, and the cache is that of the scenario `azure-conv-tight`, which
holds some twenty; once more with short requests, of which 128 run. What is counted is everything that `GymScheduler` does beside
vLLM's own scheduler: what it notes of requests that come and go, the decisions, and what it notes of a step. It is the time of the
processor that the thread takes, so that others on the machine count only in so far as they share its caches; the run with the
lowest median is told.

    python benchmarks/deploy_overhead.py --policy policy.npz --runs 3 --against ../llmgym-before

compares with another copy of the repository. Both take the same steps of the same world in one process, now the one first, now the
other, on a clock of their own that goes on `STEP_S` a step, so that what disturbs the machine disturbs both; each finds less of its
own in the caches of the processor than it would alone.
"""

import argparse
import importlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from engine_reference import MODEL, Case, answer, build, request_of

STEPS, WARM = 2_000, 200
"""Steps of a run, and of these the first ones that are not counted."""
STEP_S = 0.02
"""Time that a step takes where two copies are compared, s."""
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


def deployed_of(folder: Path | None) -> Any:
    """`llmgym.deploy.vllm`, from a copy of the repository if a folder is given."""
    if folder is None:
        return importlib.import_module("llmgym.deploy.vllm")
    here = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == "llmgym"}
    sys.path.insert(0, str(folder.resolve()))
    try:
        found = importlib.import_module("llmgym.deploy.vllm")
    finally:
        sys.path.pop(0)
        for name in [name for name in sys.modules if name.split(".")[0] == "llmgym"]:
            del sys.modules[name]
        sys.modules.update(here)
    if found.__file__ is None or not Path(found.__file__).is_relative_to(folder.resolve()):
        raise SystemExit(f"--against {folder}: there is no copy of llmgym")
    return found


def steps(
    deployed: Any, policy: str, waiting: int, seats: int, short: bool, clock: Callable[[], float]
) -> Iterator[tuple[float, int, int]]:
    """One run.

    Args:
        deployed: `llmgym.deploy.vllm`.
        policy: what it takes.
        waiting: requests that wait in every step.
        seats: requests that run at once.
        short: whether prompts are cut to 64 tokens, so that as many run as there are seats.
        clock: tells the time, s.

    Yields:
        Of a step: what was added to it, s; decisions; requests that run.
    """
    deployed.time = SimpleNamespace(perf_counter=time.thread_time, time=clock)
    requests, predicted = lengths(20_000)
    if short:
        requests = [[a, min(p, 64), min(o, 64), x, s] for a, p, o, x, s in requests]
    case = {**CASE, "seats": seats, "requests": requests, "predicted": predicted}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(MODEL), encoding="utf-8")
        scheduler = build(case, folder, deployed.GymScheduler, {"llmgym": policy})
    if scheduler.steering is None:
        raise SystemExit(f"--policy {policy}: vLLM schedules by itself; see what it said above")
    spent = 0.0

    def timed(tell: Any) -> Any:
        def told(*args: Any) -> None:
            nonlocal spent
            began = time.thread_time()
            tell(*args)
            spent += time.thread_time() - began

        return told

    scheduler.waiting._tell = timed(scheduler.waiting._tell)
    coming = 0
    under_way: list[Any] = []
    for _ in range(STEPS):
        while len(scheduler.waiting) < waiting and coming < len(requests):
            request = request_of(case, coming)
            request.arrival_time = clock()
            scheduler.add_request(request)
            coming += 1
        before, taken = len(scheduler.overhead_s), scheduler.steering.decisions
        output = scheduler.schedule()
        assert len(scheduler.overhead_s) == before + 1
        under_way.append((output, answer(case, scheduler, output)))
        if len(under_way) == 2:
            scheduler.update_from_output(*under_way.pop(0))
        yield (
            scheduler.overhead_s[-1] + spent,
            scheduler.steering.decisions - taken,
            len(scheduler.running),
        )
        spent = 0.0


def figures(run: Sequence[tuple[float, int, int]]) -> dict[str, float]:
    """Microseconds and counts of a run, by name."""
    own, asked, running = (np.array(column) for column in zip(*run[WARM:]))
    us = 1e6 * own
    deciding = us[asked > 0]
    return {
        "p50": float(np.median(us)),
        "p99": float(np.quantile(us, 0.99)),
        "deciding_p50": float(np.median(deciding)) if len(deciding) else float("nan"),
        "deciding_p99": float(np.quantile(deciding, 0.99)) if len(deciding) else float("nan"),
        "deciding": float(np.mean(asked > 0)),
        "running": float(np.mean(running)),
    }


def together(copies: Sequence[Any], *world: Any) -> list[dict[str, float]]:
    """One run of several copies side by side; the arguments behind them are those of `steps`."""
    now_s = 0.0
    runs = [steps(copy, *world, lambda: now_s) for copy in copies]
    found: list[list[tuple[float, int, int]]] = [[] for _ in runs]
    for k in range(STEPS):
        now_s = k * STEP_S
        for i in range(len(runs))[:: 1 if k % 2 else -1]:
            found[i].append(next(runs[i]))
        if len({one[-1][1:] for one in found}) > 1:
            raise SystemExit(f"step {k}: the copies decide otherwise: {[one[-1][1:] for one in found]}")
    return [figures(one) for one in found]


def row_of(name: str, run: dict[str, float]) -> str:
    """A row of the table."""
    return (
        f"| `{name}` | {run['running']:.0f} | {100 * run['deciding']:.0f} % | {run['p50']:.0f} | {run['p99']:.0f} "
        f"| {run['deciding_p50']:.0f} | {run['deciding_p99']:.0f} |"
    )


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
    parser.add_argument(
        "--against", type=Path, help="another copy of the repository to compare with, step by step"
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
    here = deployed_of(None)
    other = None if asked.against is None else deployed_of(asked.against)
    for policy in asked.policy:
        for world in ((policy, asked.waiting, 256, False), (policy, asked.waiting, 128, True)):
            name = Path(policy).stem
            if other is None:
                runs = [figures(list(steps(here, *world, time.time))) for _ in range(asked.runs)]
                lines.append(row_of(name, min(runs, key=lambda run: run["p50"])))
                continue
            for k in range(asked.runs):
                before, after = together((other, here), *world)
                lines += [
                    row_of(f"{name}, run {k + 1}, other", before),
                    row_of(f"{name}, run {k + 1}", after),
                ]
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
