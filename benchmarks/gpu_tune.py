"""How long a step takes on a GPU with fewer registers a thread and other sizes of blocks.

    python benchmarks/gpu_tune.py --out results/tune

With fewer registers more threads run at once, and some values go to memory instead. `tune.json` has milliseconds of the call
`step` at 131,072 lanes for each pair.
"""

import argparse
import json
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from benchmarks.gpu import chooser
from llmgym.core.cuda import MOST_REGISTERS, Compiler, Entry
from llmgym.core.device import LIST_THREADS, MOST_THREADS, in_tiles, one_lane
from llmgym.core.threads import TURNS

CASES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("llmgym/KVQueue-v0", {"scenario": "azure-conv-tight"}),
    ("llmgym/PipeSDNav-v0", {}),
    ("llmgym/AFDRefill-v0", {}),
    ("llmgym/SegmentedPrefill-v0", {}),
)
REGISTERS = (64, 96, 128, MOST_REGISTERS)
BLOCKS = (64, 256)


def codes(case: tuple[str, dict[str, Any], tuple[int, int]]) -> dict[int, Any]:
    """The call `step` of an environment with each number of registers."""
    env_id, kwargs, capability = case
    simulation: Any = gymnasium.make(env_id, **kwargs).unwrapped.simulation  # type: ignore[attr-defined]
    head, metrics = simulation.layout.head, simulation.metrics
    compiler = Compiler(simulation.kernels, head, metrics, capability, False, in_tiles(simulation))
    arrays = one_lane(simulation)
    return {number: compiler.code("step", arrays, number) for number in REGISTERS}


def times(env_id: str, kwargs: dict[str, Any], found: dict[int, Any], lanes: int) -> list[dict[str, Any]]:
    """Milliseconds of a step for each pair of registers and threads of a block."""
    import torch

    envs: Any = gymnasium.make_vec(env_id, lanes, device="cuda", copy=False, **kwargs).unwrapped
    choose = chooser(envs.single_action_space, envs.device)
    _, infos = envs.reset(seed=0)
    began = time.perf_counter()
    while time.perf_counter() - began < 1.0:  # until lanes are in different states
        infos = envs.step(choose(infos["action_mask"]))[4]
        torch.cuda.synchronize()
    rows = []
    for code in found.values():
        for block in BLOCKS:
            envs.lanes._made["step"] = Entry(code, envs.lanes._frame, block)
            taken = []
            for _ in range(12):
                envs.lanes.load_actions(choose(infos["action_mask"]))
                inner, turn = envs.lanes, envs.lanes._turn
                inner._call("begin", LIST_THREADS, envs._mode, turn)
                before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                before.record()
                inner._call("step", MOST_THREADS, envs._mode, turn)
                after.record()
                torch.cuda.synchronize()
                taken.append(before.elapsed_time(after))
                inner._call("finish", LIST_THREADS, envs._mode, turn)
                inner._turn = (turn + 1) % TURNS
            rows.append(
                {
                    "env": env_id,
                    "registers": code.registers,
                    "spilt": code.spill_bytes,
                    "block": block,
                    "ms": float(np.median(taken[2:])),
                }
            )
    return rows


def main() -> None:
    """Measure, print and write."""
    import torch

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lanes", type=int, default=131072)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    capability = torch.cuda.get_device_capability()
    rows: list[dict[str, Any]] = []
    with ProcessPoolExecutor(len(CASES), mp_context=multiprocessing.get_context("spawn")) as pool:
        jobs = [pool.submit(codes, (env_id, kwargs, capability)) for env_id, kwargs in CASES]
        for (env_id, kwargs), job in zip(CASES, jobs, strict=True):
            try:
                rows += times(env_id, kwargs, job.result(), args.lanes)
            except Exception as error:
                rows.append({"env": env_id, "error": repr(error)[:300]})
            (args.out / "tune.json").write_text(json.dumps(rows))
    for row in rows:
        print(row, flush=True)


if __name__ == "__main__":
    main()
