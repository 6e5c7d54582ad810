"""How far predictions are from engines that others wrote.

    python benchmarks/fidelity.py --data DIR [--runs RUNS ...] [--out benchmarks/results]
    python benchmarks/fidelity.py --predict RUNS [--profile h200/llama-3.1-8b]

The first prints tables, and writes them as `fidelity.md` with a picture, `fidelity.png`. DIR holds measurements that are not
part of this project, in folders `llmservingsim`, `aiconfigurator`, `vllm_h100`, `vllm_h100_order` and `vllm_h100_sessions`; what
is missing is left out. RUNS is a folder that `benchmarks/engine_vllm.py` filled. The second writes what llmgym predicts for the
cases of that script, and the requests themselves, before anything is measured: `predictions.json` and `<case>_traffic.csv`.

Requests are replayed with their own arrivals and lengths by the compiled engine of llmgym (`llmgym.serving.replay`).
"""

import argparse
import sys
from datetime import date
from importlib.metadata import version
from pathlib import Path

from fidelity import orders, validations
from fidelity.cases import ALL_CASES, CASES
from fidelity.report import picture, summary
from rich.console import Console

from llmgym.errors import InvalidArgument


def main(argv: list[str] | None = None) -> int:
    """Command line; see the module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder with measurements of others")
    parser.add_argument(
        "--runs", type=Path, nargs="+", default=[], help="folders filled by benchmarks/engine_vllm.py"
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="where the tables go")
    parser.add_argument("--predict", type=Path, help="write predictions for engine_vllm.py there, and stop")
    parser.add_argument(
        "--profile", help="profile of the engine (default: by the GPU of a run; h100/llama-3.1-8b)"
    )
    parser.add_argument("--cases", default=",".join(CASES), help="cases to predict")
    parser.add_argument("--no-loop", action="store_true", help="leave out the replays of closed loops")
    asked = parser.parse_args(argv)
    console = Console(width=150)
    if asked.predict is not None:
        names = [name for name in asked.cases.split(",") if name]
        unknown = [name for name in names if name not in ALL_CASES]
        if unknown or not names:
            parser.error(f"--cases {asked.cases!r}: expected names out of {', '.join(ALL_CASES)}")
        found = validations.predict(names, asked.profile or validations.H100, asked.predict)
        for sheet in found:
            sheet.show(console)
        console.print(f"written to {asked.predict / validations.PREDICTIONS}")
        return 0
    if asked.data is None and not asked.runs:
        parser.error("--data or --runs is needed, or --predict")
    for name, folders in (("data", [asked.data] if asked.data else []), ("runs", asked.runs)):
        for folder in folders:
            if not folder.is_dir():
                parser.error(f"--{name} {folder}: there is no such folder")
    report = validations.Report()
    options = validations.WAYS_OF_COST
    try:
        if asked.data is not None:
            validations.published_runs(asked.data, report)
            validations.published_servers(asked.data, report, not asked.no_loop)
            for name in ("vllm_h100_order", "vllm_h100_sessions"):
                tables, tallies = orders.sheets(asked.data / name, validations.UNSEEN, options)
                report.sheets += tables
                report.tallies += tallies
                pairs = [
                    pair
                    for one in tallies
                    for pair in validations.pairs_of(one.measured, one.columns["llmgym"])
                ]
                report.groups.setdefault(validations.NEW_GROUP, []).extend(pairs)
        validations.own_engine(asked.data, asked.runs, asked.profile, report)
    except InvalidArgument as error:
        parser.error(str(error))
    sheets = report.sheets
    if not sheets:
        parser.error("nothing to compare was found in the folders given")
    if report.tallies:
        sheets.insert(0, summary(report.tallies))
    for sheet in sheets:
        sheet.show(console)
    asked.out.mkdir(parents=True, exist_ok=True)
    head = (
        "# Predicted against measured\n\n"
        f"{date.today().isoformat()}, llmgym {version('llmgym')}, by `benchmarks/fidelity.py`. "
        "Errors are predicted over measured, less 1. What the numbers mean and where they come from: `docs/fidelity.md`.\n\n"
        "![predicted against measured](fidelity.png)\n\n"
    )
    (asked.out / "fidelity.md").write_text(
        head + "\n".join(sheet.markdown() for sheet in sheets), encoding="utf-8"
    )
    picture(asked.out / "fidelity.png", report.groups)
    console.print(f"written to {asked.out / 'fidelity.md'} and {asked.out / 'fidelity.png'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
