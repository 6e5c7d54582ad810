"""Fit the host times of a serving engine to its step logs.

    python benchmarks/fit_host.py RUNS [--profile h100/llama-3.1-8b] [--cases calibration,bursty]
    python benchmarks/fit_host.py RUNS --clock steps_calibration

RUNS is a folder that `benchmarks/engine_vllm.py` filled. Writes RUNS/host.json, from which `benchmarks/build_law_profiles.py`
takes the option `vllm-0.24-steps` of the host laws; see `fidelity/steps.py` for what is measured and how. The second writes
RUNS/clock.json, how the clock of products follows the load, for the option `following` of the dense laws.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

from fidelity.runs import Run, own_runs
from fidelity.steps import HEATING_TOKENS, Clock, fit, fit_clock, log_of
from fidelity.validations import profile_for

from llmgym.errors import InvalidArgument

HOST, CLOCK = "host.json", "clock.json"
NO_HOST = [{"law": "affine", "count": 1, "base_ms": 0.0, "per_sequence_ms": 0.0}]


def main(argv: list[str] | None = None) -> int:
    """Command line; see the module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, help="folder that benchmarks/engine_vllm.py filled")
    parser.add_argument("--profile", help="profile of the engine (default: by the GPU of a run)")
    parser.add_argument("--cases", help="runs to fit to, with commas (default: all with steps)")
    parser.add_argument("--clock", metavar="CASE", help="fit the device's clock to this run instead")
    parser.add_argument("--out", type=Path, help=f"file to write (default: RUNS/{HOST})")
    asked = parser.parse_args(argv)
    chosen = None if asked.cases is None else asked.cases.split(",")
    if asked.clock is not None:
        chosen = [asked.clock]
    try:
        found = {run.name: run for run in own_runs(asked.runs)}
        missing = [name for name in chosen or [] if name not in found]
        if missing:
            parser.error(f"--cases {','.join(missing)!r}: expected names out of {', '.join(found)}")
        all_logs = [
            (run, log_of(asked.runs, run)) for name, run in found.items() if chosen is None or name in chosen
        ]
        logs = [(run, log) for run, log in all_logs if log is not None]
        if not logs:
            parser.error(f"RUNS {str(asked.runs)!r}: no <case>_steps.csv there")
        run = logs[0][0]
        profile = profile_for(run, asked.profile, dense="sustained")
        bare = replace(
            profile, laws={**profile.laws, "host": {**profile.laws["host"], profile.host: NO_HOST}}
        )
        if asked.clock is not None:
            path = asked.runs / f"{asked.clock}_engine_steps.csv"
            return _write_clock(
                fit_clock(path, bare, replace(bare, dense="default")), run, asked.out or asked.runs / CLOCK
            )
        host = fit(logs, bare)
    except InvalidArgument as error:
        parser.error(str(error))
    source = (
        f"{run.meta['engine']} on {run.meta['gpu']}, step logs of {asked.runs.name}, {run.meta['date'][:10]}"
    )
    out = asked.out or asked.runs / HOST
    content = {
        "profile": profile.name,
        "dense": profile.dense,
        "runs": [run.name for run, _ in logs],
        "steps": dict(zip(("decode", "launch", "floor"), host.steps, strict=True)),
        "laws": host.laws(source),
    }
    out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(content["laws"], indent=1))
    print(f"written to {out}")
    return 0


def _write_clock(clock: Clock, run: Run, out: Path) -> int:
    law = {
        "law": "clock",
        "source": f"{run.meta['engine']} on {run.meta['gpu']}, run {run.name}, {run.meta['date'][:10]}",
        "count": 1,
        "cool": "default",
        "settle_ms": round(clock.settle_ms, 1),
        "above_tokens": HEATING_TOKENS,
    }
    fit = {"steps": clock.steps, "left_ms": clock.left_ms, "beyond_ms": clock.beyond_ms}
    out.write_text(json.dumps({"law": law, "fit": fit}, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(law, indent=1))
    print(f"written to {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
