"""Environment steps a second of the own PPO, on a GPU or a CPU.

    python benchmarks/training_speed.py --out results/training
    python benchmarks/training_speed.py --device cpu --env-device cpu --lanes 1024 --minibatch 8192 --threads 2 --out results

Trains on KVQueue `azure-conv-tight` for `--updates` updates of `--rollout-steps` steps in `--lanes` lanes, and tells the rate
over all of them and over the second half, where everything is compiled and warm; `training.json` has it. On a CPU set
`OMP_WAIT_POLICY=passive`; there it also tells what bounds the rate: the products of matrices that a step needs
(`products_flop_a_step`), at the rate at which torch multiplies rows of observations with a layer here (`products_flop_per_s`),
if nothing else took any time (`bound_steps_per_s`).
"""

import argparse
import itertools
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llmgym import policies
from llmgym.policies.run import learning_threads

KIND = "llmgym/KVQueue-v0"


def products_flop(config: policies.PPOConfig, inputs: int, outputs: int) -> float:
    """Floating-point operations of the products of matrices for one environment step, with two `mlp`s.

    The policy acts, the value network judges, and in every epoch both go forward and back; nobody needs the gradient of an
    observation.

    Args:
        config: widths and epochs.
        inputs: entries of an observation.
        outputs: actions.
    """
    forward = {
        last: 2.0 * sum(a * b for a, b in itertools.pairwise([inputs, *config.hidden, last]))
        for last in (outputs, 1)
    }
    back = sum(2.0 * flop - 2.0 * inputs * config.hidden[0] for flop in forward.values())
    return sum(forward.values()) * (1 + config.epochs) + back * config.epochs


def multiplied_flop_per_s(rows: int, inputs: int, width: int, threads: int) -> float:
    """The best of 20 products of observations and a layer: floating-point operations a second.

    Args:
        rows: of a minibatch.
        inputs: entries of an observation.
        width: of the layer.
        threads: of torch.
    """
    left, right, best = torch.randn(rows, inputs), torch.randn(inputs, width), float("inf")
    with learning_threads(threads):
        for _ in range(20):
            began = time.perf_counter()
            left @ right
            best = min(best, time.perf_counter() - began)
    return 2.0 * rows * inputs * width / best


def rates(result: policies.TrainingResult) -> dict[str, Any]:
    """Steps of a training, steps a second over all of it and over its second half, where all is compiled, and seconds by part."""
    curve = result.curve
    half = len(curve["steps"]) // 2
    steps, seconds = (np.diff(curve[name][[half, -1]])[0] for name in ("steps", "wall_s"))
    return {
        "steps": result.steps,
        "steps_per_s": result.steps / result.wall_s,
        "steps_per_s_second_half": float(steps / seconds),
        "parts_s": result.seconds,
    }


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
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--env-device", default="cuda")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    config = policies.PPOConfig(
        rollout_steps=args.rollout_steps,
        minibatch=args.minibatch,
        scatter=args.scatter,
        epochs=args.epochs,
        threads=args.threads,
        device=args.device,
        env_device=args.env_device,
    )
    with tempfile.TemporaryDirectory() as folder:
        plan = policies.Plan(
            KIND,
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
        meta = policies.meta(result.checkpoint)
    inputs, outputs = sum(size for _, size in meta["layout"]), meta["action_space"]["n"]
    curve = result.curve
    half = len(curve["steps"]) // 2
    found: dict[str, Any] = {
        "arguments": {name: str(value) for name, value in vars(args).items()},
        "seconds": time.perf_counter() - began,
        **rates(result),
        "parts_us_a_step": {name: 1e6 * spent / result.steps for name, spent in result.seconds.items()},
        "return_mean": curve["return_mean"][[0, half, -1]].tolist(),
        "episodes": float(np.nansum(curve["episodes"])),
    }
    if args.device == "cpu":
        flop = products_flop(config, inputs, outputs)
        rate = multiplied_flop_per_s(args.minibatch, inputs, config.hidden[0], args.threads)
        found |= {"products_flop_a_step": flop, "products_flop_per_s": rate, "bound_steps_per_s": rate / flop}
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "training.json").write_text(json.dumps(found))
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
