"""Compiles every environment to machine code of a GPU, which needs no GPU, and tells what a thread of it takes.

    python benchmarks/gpu_code.py --capability 9.0 --out benchmarks/results/gpu_code.md

A kernel that does not compile for a GPU (it makes arrays, or raises errors) is an error here. The table has registers, bytes of the
stack and bytes that were spilt because there were too few registers, of each of the three calls of a step, and bytes a lane.
"""

import argparse
import functools
import multiprocessing
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import gymnasium

import llmgym
from llmgym.core.cuda import Code, Compiler
from llmgym.core.device import in_tiles, lane_bytes, one_lane
from llmgym.errors import KernelError

THREADS = ("step", "finish", "begin")
HEAD = [
    "| environment | registers: step | finish | begin | stack, bytes | spilt, bytes | code, KiB | bytes a lane | compiled in, s |",
    "|---|---|---|---|---|---|---|---|---|",
]


def compiled(
    env_id: str, capability: tuple[int, int], exact: bool, **kwargs: Any
) -> tuple[dict[str, Code], int, float]:
    """Machine code of an environment.

    Args:
        env_id: the environment.
        capability: of the GPU, such as (9, 0).
        exact: as for `gymnasium.make_vec`.
        **kwargs: the environment's own arguments.

    Returns:
        What each call of a step is, bytes a lane, and the seconds it took.

    Raises:
        KernelError: something does not compile.
    """
    simulation: Any = gymnasium.make(env_id, **kwargs).unwrapped.simulation  # type: ignore[attr-defined]
    began = time.perf_counter()
    head, metrics = simulation.layout.head, simulation.metrics
    compiler = Compiler(simulation.kernels, head, metrics, capability, exact, in_tiles(simulation))
    arrays = one_lane(simulation)
    codes = {name: compiler.code(name, arrays) for name in THREADS}
    return codes, lane_bytes(arrays), time.perf_counter() - began


def line(env_id: str, codes: dict[str, Code], size: int, seconds: float) -> str:
    """A row of the table."""
    registers = " | ".join(str(codes[name].registers) for name in THREADS)
    stack, spilt = (
        max(getattr(code, name) for code in codes.values()) for name in ("stack_bytes", "spill_bytes")
    )
    kib = sum(len(code.image) for code in codes.values()) / 1024
    return f"| {env_id} | {registers} | {stack} | {spilt} | {kib:,.0f} | {size:,} | {seconds:.0f} |"


def _row(env_id: str, capability: tuple[int, int], exact: bool) -> tuple[str, bool]:
    try:
        return line(env_id, *compiled(env_id, capability, exact)), True
    except KernelError as error:
        return f"| {env_id} | {error} | | | | | | | |", False


def main() -> int:
    """Compile, print and write the table; how many environments did not compile."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--capability", default="9.0", help="of the GPU: 9.0 is sm_90")
    parser.add_argument("--exact", action="store_true", help="without fused multiply-add")
    parser.add_argument("--processes", type=int, default=1, help="environments compiled at a time")
    parser.add_argument("--out", type=Path, help="Markdown file to write")
    parser.add_argument("ids", nargs="*", help="environments; all if none is named")
    args = parser.parse_args()
    major, _, minor = args.capability.partition(".")
    lines, failed = list(HEAD), 0
    print("\n".join(lines), flush=True)
    rows = functools.partial(_row, capability=(int(major), int(minor)), exact=args.exact)
    with ProcessPoolExecutor(args.processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        for row, good in pool.map(rows, args.ids or llmgym.env_ids()):
            lines.append(row)
            failed += not good
            print(row, flush=True)
    if args.out:
        args.out.write_text("\n".join(lines) + "\n")
    return failed


if __name__ == "__main__":
    sys.exit(main())
