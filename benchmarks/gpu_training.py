"""The own PPO with lanes and networks on a GPU: how fast it is in every environment, and that it learns what it learns on a CPU.

    python benchmarks/gpu_training.py rates --out results                  every environment, on the card and on one CPU core each
    python benchmarks/gpu_training.py rates --out results --only KVQueue   those whose names contain one of these
    python benchmarks/gpu_training.py seeds --out results --timesteps 5000000

`rates` trains a few updates, with as many lanes as `--lanes` says or as a fourth of the memory holds, and tells environment steps
a second over the second half of them, where everything is compiled and warm. On the CPU each environment has one core, 512 lanes
and the minibatches of `llmgym train`; several are measured at once, each on a core of its own.
`seeds` trains the same plan with three seeds on the CPU and with three on the card, all side by side, and plays what came out on
200 worlds: both ways learn the same if the difference of their means is within the spread of seeds.
`training.json` has everything, `training.md` the tables; both grow while there is more.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import gymnasium
import numpy as np

from llmgym import policies

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.gpu import cases
from benchmarks.throughput import where
from benchmarks.training_speed import rates as told_rates
from llmgym.core.memory import bytes_of_a_lane

SHOWCASE: tuple[str, dict[str, Any]] = ("llmgym/KVQueue-v0", {"scenario": "azure-conv-tight"})
CPU_LANES, CPU_UPDATES = 512, 6
CPU_PLAN = {"rollout_steps": 32, "minibatch": 2048, "scatter": 0}
"""Of a training on one core: an update is 16,384 transitions, learned from as in `llmgym train`."""
WORLDS, WORLDS_SEED = 200, 30_000
"""On which trained policies are compared."""
SEEDS_PLAN = {"rollout_steps": 64, "minibatch": 2048, "gamma": 0.999, "gae_lambda": 0.98, "entropy": 0.003}


def lanes_that_fit(env_id: str, kwargs: dict[str, Any], asked: int, memory: float) -> int:
    """Lanes that take a fourth of the memory of a card at most, a power of two, `asked` at most."""
    env: Any = gymnasium.make(env_id, **kwargs)
    size = bytes_of_a_lane(env.unwrapped.simulation)
    env.close()
    return min(asked, 2 ** int(np.log2(max(memory / 4 / size, 1))))


def trained(
    env_id: str, kwargs: dict[str, Any], lanes: int, updates: int, config: policies.PPOConfig
) -> dict[str, Any]:
    """Train for some updates.

    Args:
        env_id: the environment.
        kwargs: its arguments.
        lanes: how many.
        updates: how many.
        config: hyperparameters.

    Returns:
        Steps a second over all and over the second half, and seconds by part.
    """
    with tempfile.TemporaryDirectory() as folder:
        plan = policies.Plan(
            env_id, Path(folder) / "run", kwargs, timesteps=updates * config.rollout_steps * lanes, lanes=lanes,
            save_every_s=1e9, progress=False, config=config,
        )  # fmt: skip
        result = policies.train(plan)
    return {"lanes": lanes, **told_rates(result)}


def in_a_process(job: dict[str, Any], log: Path) -> dict[str, Any]:
    """Do a job (`main`) in another process; its result, or `failed` with what it said."""
    out = log.with_suffix(".json")
    with log.open("w") as file:
        done = subprocess.run(
            [sys.executable, __file__, "job", "--out", str(out), "--job", json.dumps(job)],
            stdout=file, stderr=file,
        )  # fmt: skip
    if done.returncode:
        return {"failed": log.read_text()[-600:].replace("|", "/").replace("\n", " ")}
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def do(job: dict[str, Any]) -> dict[str, Any]:
    """One training, as `in_a_process` describes it: of `rates`, or of `seeds` with what it gains on worlds not trained on."""
    config = policies.PPOConfig(**job["config"])
    if "seed" not in job:
        return trained(job["env"], job["kwargs"], job["lanes"], job["updates"], config)
    from llmgym.evaluation import run_episodes

    with tempfile.TemporaryDirectory() as folder:
        plan = policies.Plan(
            job["env"], Path(folder) / "run", job["kwargs"], seed=job["seed"], timesteps=job["timesteps"],
            lanes=job["lanes"], save_every_s=1e9, progress=False, config=config,
        )  # fmt: skip
        result = policies.train(plan)
        played = run_episodes(job["env"], str(result.checkpoint), WORLDS, WORLDS_SEED, job["kwargs"])
    returns = played.returns
    return {"steps": result.steps, "wall_s": result.wall_s, "mean": float(returns.mean())}


def rates(args: argparse.Namespace, found: dict[str, Any], told: Any) -> None:
    """Fill `found["rates"]`: first the CPU, a core an environment, then the card, one after the other.

    Args:
        args: of the command line.
        found: what is filled.
        told: called whenever there is more.
    """
    everything = [SHOWCASE, *(case for case in cases(args.only) if case != SHOWCASE)]
    if args.only:
        everything = [case for case in everything if any(part in case[0] for part in args.only)]
    rows = found["rates"] = [{"env": env_id, "kwargs": kwargs} for env_id, kwargs in everything]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(max(1, args.processes)) as pool:
        jobs = {}
        for i, (env_id, kwargs) in enumerate(everything):
            job = {
                "env": env_id, "kwargs": kwargs, "lanes": args.cpu_lanes, "updates": CPU_UPDATES,
                "config": {**CPU_PLAN, "threads": 1},
            }  # fmt: skip
            jobs[pool.submit(in_a_process, job, Path(folder) / f"cpu{i}.log")] = rows[i]
        for done in as_completed(jobs):
            jobs[done]["cpu"] = done.result()
            told()
    if args.device == "none":
        return
    for row in rows:
        lanes = lanes_that_fit(row["env"], row["kwargs"], args.lanes, args.memory_gb * 1e9)
        config = policies.PPOConfig(
            rollout_steps=args.rollout_steps, minibatch=args.minibatch, scatter=args.scatter,
            device=args.device, env_device=args.device,
        )  # fmt: skip
        try:
            row["gpu"] = trained(row["env"], row["kwargs"], lanes, args.updates, config)
        except Exception as error:  # the others are still worth measuring
            row["gpu"] = {"failed": f"{type(error).__name__}: {error}"[:600].replace("\n", " ")}
        told()


def seeds(args: argparse.Namespace, found: dict[str, Any], told: Any) -> None:
    """Fill `found["seeds"]`: the same plan with each seed on each device, side by side.

    Args:
        args: of the command line.
        found: what is filled.
        told: called whenever there is more.
    """
    env_id, kwargs = SHOWCASE
    rows = found["seeds"] = []
    devices = ["cpu"] if args.device == "none" else ["cpu", args.device]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2 * args.seeds) as pool:
        jobs = {}
        for device in devices:
            for seed in range(args.seeds):
                job = {
                    "env": env_id, "kwargs": kwargs, "lanes": args.seed_lanes, "timesteps": args.timesteps, "seed": seed,
                    "config": {**SEEDS_PLAN, "device": device, "env_device": device, "threads": 1},
                }  # fmt: skip
                rows.append({"device": device, "seed": seed})
                jobs[pool.submit(in_a_process, job, Path(folder) / f"{device}{seed}.log")] = rows[-1]
        for done in as_completed(jobs):
            jobs[done].update(done.result())
            told()


def table(found: dict[str, Any]) -> str:
    """All results as Markdown."""
    lines = []
    if "rates" in found:
        lines += [
            "| environment | lanes on the card | steps/s | with the compile | acting, learning, s | one core, steps/s | times |",
            "|---|---|---|---|---|---|---|",
        ]
        for row in found["rates"]:
            name = f"{row['env']} {row['kwargs'].get('scenario', '')}".strip()
            gpu, cpu = row.get("gpu", {}), row.get("cpu", {})
            slow, fast = (part.get("steps_per_s_second_half", float("nan")) for part in (cpu, gpu))
            acting, learning = (
                gpu.get("parts_s", {}).get(part, float("nan")) for part in ("env", "learning")
            )
            lines.append(
                f"| {name} | {gpu.get('lanes', 0):,} | {fast:,.0f} | {gpu.get('steps_per_s', float('nan')):,.0f} | "
                f"{acting:.1f}, {learning:.1f} | {slow:,.0f} | {fast / slow:.0f} |"
            )
            lines += [f"| | {part['failed']} | | | | | |" for part in (gpu, cpu) if "failed" in part]
    if "seeds" in found:
        lines += ["", "| device | seed | steps | s | mean return |", "|---|---|---|---|---|"]
        for row in found["seeds"]:
            if "mean" in row:
                lines.append(
                    f"| {row['device']} | {row['seed']} | {row['steps']:,} | {row['wall_s']:.0f} | {row['mean']:.4g} |"
                )
            elif "failed" in row:
                lines.append(f"| {row['device']} | {row['seed']} | {row['failed']} | | |")
        for device in dict.fromkeys(row["device"] for row in found["seeds"]):
            means = [row["mean"] for row in found["seeds"] if row["device"] == device and "mean" in row]
            if len(means) > 1:
                lines.append(
                    f"\n{device}: mean {np.mean(means):.4g}, deviation of seeds {np.std(means, ddof=1):.2g}"
                )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["rates", "seeds", "job"])
    parser.add_argument("--only", nargs="*", default=[], help="parts of names of environments")
    parser.add_argument("--lanes", type=int, default=32768)
    parser.add_argument("--memory-gb", type=float, default=140.0, help="of the card")
    parser.add_argument("--rollout-steps", type=int, default=16)
    parser.add_argument("--minibatch", type=int, default=131072)
    parser.add_argument("--updates", type=int, default=20)
    parser.add_argument("--scatter", type=int, default=0, help="see PPOConfig.scatter")
    parser.add_argument("--device", default="cuda", help="`none` leaves the card out")
    parser.add_argument("--processes", type=int, default=8, help="environments measured on the CPU at a time")
    parser.add_argument("--cpu-lanes", type=int, default=CPU_LANES)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seed-lanes", type=int, default=256)
    parser.add_argument("--timesteps", type=int, default=5_000_000, help="of a training with a seed")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    if args.what == "job":
        args.out.write_text(json.dumps(do(json.loads(args.job))))
        return
    args.out.mkdir(parents=True, exist_ok=True)
    stored = args.out / "training.json"
    found: dict[str, Any] = json.loads(stored.read_text()) if stored.exists() else {}
    found["where"] = where()

    def told() -> None:
        stored.write_text(json.dumps(found))
        (args.out / "training.md").write_text(f"{where()}\n\n{table(found)}")

    {"rates": rates, "seeds": seeds}[args.what](args, found, told)
    told()
    print(table(found))


if __name__ == "__main__":
    main()
