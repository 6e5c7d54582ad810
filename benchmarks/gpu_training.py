"""Environment steps a second of the own PPO with lanes and networks on a GPU.

    python benchmarks/gpu_training.py --out results/training

Trains on KVQueue `azure-conv-tight` for `--updates` updates of `--rollout-steps` steps in `--lanes` lanes, and tells the rate
over all of them and over the second half, where everything is compiled and warm; `training.json` has it.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np

from llmgym import policies


def main() -> None:
    """Train, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lanes", type=int, default=32768)
    parser.add_argument("--rollout-steps", type=int, default=16)
    parser.add_argument("--minibatch", type=int, default=131072)
    parser.add_argument("--updates", type=int, default=60)
    parser.add_argument("--scatter", type=int, default=512)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--env-device", default="cuda")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    config = policies.PPOConfig(
        rollout_steps=args.rollout_steps,
        minibatch=args.minibatch,
        scatter=args.scatter,
        device=args.device,
        env_device=args.env_device,
    )
    with tempfile.TemporaryDirectory() as folder:
        plan = policies.Plan(
            "llmgym/KVQueue-v0",
            Path(folder) / "run",
            {"scenario": "azure-conv-tight"},
            timesteps=args.updates * args.rollout_steps * args.lanes,
            lanes=args.lanes,
            save_every_s=1e9,
            progress=False,
            config=config,
        )
        began = time.perf_counter()
        result = policies.train(plan)
    curve = result.curve
    half = len(curve["steps"]) // 2
    steps, seconds = (np.diff(curve[name][[half, -1]])[0] for name in ("steps", "wall_s"))
    found = {
        "arguments": {name: str(value) for name, value in vars(args).items()},
        "seconds": time.perf_counter() - began,
        "steps": result.steps,
        "steps_per_s": result.steps / result.wall_s,
        "steps_per_s_second_half": float(steps / seconds),
        "parts_s": result.seconds,
        "return_mean": curve["return_mean"][[0, half, -1]].tolist(),
        "episodes": float(np.nansum(curve["episodes"])),
    }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "training.json").write_text(json.dumps(found))
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
