"""Measure what is left to win with the copies of the clairvoyant on a GPU, several environments side by side.

    python benchmarks/gpu_rooms.py --out benchmarks/results/rooms --processes 8 --limit 500

Each case is a call of `llmgym room`; its file is in the folder as soon as it is done. A file that is there already is kept, and a
case that takes longer than the limit is left out and told.
"""

import argparse
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

CASES: tuple[tuple[str, str, int, str], ...] = (
    ("AFDRatio-v0", "small", 200, ""),
    ("AFDRefill-v0", "small", 200, "--stride 4"),
    ("AttentionBudget-v0", "small", 200, ""),
    ("DistillProgramme-v0", "small", 100, "--stride 4"),
    ("Forage-v0", "small", 100, "--stride 4"),
    ("KVQueue-v1", "sessions", 100, "--stride 20"),
    ("MemPipe-v0", "small", 200, ""),
    ("MemPlace-v0", "small", 200, ""),
    ("PPDRouting-v0", "real", 100, "--stride 4"),
    ("PPDRouting-v0", "small", 200, ""),
    ("PPDWeights-v0", "small", 200, ""),
    ("PipeSDNav-v0", "small", 200, ""),
    ("PipeSDTune-v0", "small", 200, "--points 5"),
    ("SegmentedPrefill-v0", "small", 50, "--stride 4"),
    ("Unmask-v0", "small", 100, ""),
)
"""Environment, scenario, worlds, and further words for `llmgym room`."""


def measure(case: tuple[str, str, int, str], out: Path, device: str, limit_s: float) -> str:
    """Measure one room.

    Args:
        case: of `CASES`.
        out: folder of the file.
        device: where the copies are, such as `"cuda"`.
        limit_s: it is left out after this time, seconds.

    Returns:
        What is told of it, one line.
    """
    env, scenario, worlds, further = case
    path = out / f"{env}-{scenario}.json"
    if path.exists():
        return f"{path.stem}: is there"
    words = [sys.executable, "-m", "llmgym", "room", f"llmgym/{env}", "--scenario", scenario, "--worlds"]
    words += [str(worlds), *further.split(), "--device", device, "--out", str(path), "--no-progress"]
    began = time.perf_counter()
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=limit_s, check=False)
    except subprocess.TimeoutExpired:
        return f"{path.stem}: left out after {limit_s:g} s"
    if done.returncode:
        return f"{path.stem}: failed: {(done.stderr.strip() or done.stdout.strip())[-300:]}"
    return f"{path.stem}: {time.perf_counter() - began:.0f} s"


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--only", nargs="*", default=[], help="names of files, such as PPDRouting-v0-small")
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--limit", type=float, default=500.0, help="seconds of one case")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    chosen = [case for case in CASES if not args.only or f"{case[0]}-{case[1]}" in args.only]
    with ThreadPoolExecutor(args.processes) as pool:
        jobs = [pool.submit(measure, case, args.out, args.device, args.limit) for case in chosen]
        for job in as_completed(jobs):
            print(job.result(), flush=True)


if __name__ == "__main__":
    main()
