"""Train policies to ship: several at once, each in a process of its own.

    python benchmarks/train_policies.py --minutes 8 --device cuda:0 --device cuda:1 --out runs
    python benchmarks/train_policies.py llmgym/Forage-v0 --scenarios small --seeds 0 --steps 200000 --out runs
    python benchmarks/train_policies.py llmgym/MemPipe-v0 --scenarios h100 --seeds 0 1 2 --device cuda --on-device --out runs

The settings are those of `llmgym/policies/recipes.toml`. The best checkpoint on the worlds of the validation is left.
With `--minutes` the number of steps is chosen by the speed of the first updates, while all of them run; a checkpoint tells it.
What is left, `OUT/ENVIRONMENT/ppo-SCENARIO.pt` (second seed: `ppo-SCENARIO-s1.pt`), lacks what playing does not need: the
optimizer's moments and most of the learning curve.
`benchmarks/comparisons.py` says afterwards, on other worlds, whether they win.
"""

import argparse
import csv
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from llmgym import policies
from llmgym.evaluation import compare
from llmgym.policies import Plan, PPOConfig, meta
from llmgym.policies.recipes import Recipe, names, recipe

LOOK_SEED, LOOK_EPISODES = 30_000, 200
"""Worlds of the first look at a policy; those of `benchmarks/comparisons.py` begin at 10,000."""
VALIDATION_EPISODES = 128
"""Of each validation during training."""
CURVE_ROWS = 20
"""Rows of the learning curve that a shipped policy keeps."""
TRIAL_UPDATES = 8
"""Updates after which the speed is known."""


def settings_of(
    env_id: str, scenario: str, device: str, on_device: bool, changes: Sequence[str], init: str = ""
) -> Recipe:
    """The settings of an environment.

    Args:
        env_id: the environment.
        scenario: its scenario.
        device: where the networks live.
        on_device: whether the lanes live there too.
        changes: what replaces settings, `name=value`, values as JSON or as a text; `lanes` is one of them.
        init: checkpoint to begin with, whose network is taken, and no rule is imitated; empty: none.

    Raises:
        SystemExit: there is no such setting.
    """
    chosen = recipe(env_id, scenario, env_device=device if on_device else "cpu")
    given = {name: _value(text) for name, _, text in (one.partition("=") for one in changes)}
    lanes = given.pop("lanes", chosen.lanes)
    known = {field.name for field in fields(chosen.config)} - {"device", "env_device"}
    if unknown := sorted(given.keys() - known):
        raise SystemExit(f"--set {', '.join(unknown)}: allowed are lanes, {', '.join(sorted(known))}")
    if init:  # which would be forgotten while it imitates
        then = PPOConfig.from_dict(meta(init)["config"])
        kept = {"network": then.network, "hidden": then.hidden, "activation": then.activation}
        given = {**kept, "imitate": "", **given}
    return replace(chosen, lanes=lanes, config=replace(chosen.config, device=device, **given))


def _value(text: str) -> Any:
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return text
    return tuple(value) if isinstance(value, list) else value


def steps_a_second(curve: Path) -> float:
    """Of the later half of the updates that a learning curve tells."""
    with curve.open() as file:
        rows = [float(row["steps_per_s"]) for row in csv.DictReader(file)]
    later = rows[len(rows) // 2 :]
    return len(later) / sum(1.0 / speed for speed in later)


def train(
    env_id: str,
    scenario: str,
    seed: int,
    device: str,
    on_device: bool,
    minutes: float,
    steps: int,
    out: Path,
    changes: Sequence[str],
    init: str = "",
) -> None:
    """Train one policy and leave its checkpoint in `out`.

    Args:
        env_id: the environment.
        scenario: its scenario.
        seed: of networks and worlds.
        device: where the networks live.
        on_device: whether the lanes live there too.
        minutes: time of the training after the trial; counts where `steps` is 0.
        steps: environment steps; 0: as many as fit into `minutes`.
        out: folder of all policies.
        changes: of the settings, see `settings_of`.
        init: checkpoint to begin with, or a folder with one of the same name; empty: none.
    """
    name = f"{env_id.rpartition('/')[2]}/ppo-{scenario}" + (f"-s{seed}" if seed else "")
    if Path(init).is_dir() and init:
        init = str(Path(init) / f"{name}.pt")
    settings = settings_of(env_id, scenario, device, on_device, changes, init)
    config, lanes, kwargs = settings.config, settings.lanes, settings.env_kwargs
    with tempfile.TemporaryDirectory() as folder:
        plan = Plan(
            env_id, Path(folder) / "run", kwargs, seed=seed, lanes=lanes, config=config,
            timesteps=steps, save_every_s=60.0, validation_episodes=VALIDATION_EPISODES, init=init,
        ) if steps else None  # fmt: skip
        if plan is None:
            trial = Plan(
                env_id, Path(folder) / "trial", kwargs, seed=seed, lanes=lanes, progress=False, init=init,
                config=replace(config, imitate="", value_first=0),
                timesteps=TRIAL_UPDATES * lanes * config.rollout_steps,
            )  # fmt: skip
            policies.train(trial)
            speed = steps_a_second(trial.out / "learning_curve.csv")
            plan = replace(
                trial,
                out=Path(folder) / "run",
                config=config,
                timesteps=int(60 * minutes * speed),
                validation_episodes=VALIDATION_EPISODES,
                progress=True,
            )
        result = policies.train(plan)
        print(f"{env_id} {scenario} seed {seed}: {result.steps:,} steps in {result.wall_s:.0f} s", flush=True)
        target = out / f"{name}.pt"
        target.parent.mkdir(parents=True, exist_ok=True)
        stored = torch.load(result.best, map_location="cpu", weights_only=True)
        torch.save(slim(stored, target.stem), target)
        shutil.copy(plan.out / "learning_curve.csv", out / f"{name}.csv")
        if config.imitate:
            judge(env_id, scenario, target, config.imitate)


def slim(stored: dict[str, Any], name: str) -> dict[str, Any]:
    """A checkpoint without what playing does not need, under another name."""
    every = max(1, len(stored["curve"]) // CURVE_ROWS)
    curve = stored["curve"].flip(0)[::every].flip(0).float()
    return {**stored, "optimizer": {}, "curve": curve, "meta": {**stored["meta"], "name": name}}


def judge(env_id: str, scenario: str, path: Path, rule: str) -> None:
    """Print how a policy does beside the rule that it imitated, on worlds that are neither trained nor compared on."""
    result = compare(
        env_id, {"policy": str(path), rule: rule}, episodes=LOOK_EPISODES, seed=LOOK_SEED,
        progress=False, scenario=scenario,
    )  # fmt: skip
    gain = result.difference("policy")
    print(
        f"{env_id} {scenario} {path.stem}: {gain.mean:+.4g} [{gain.interval.low:+.4g}, {gain.interval.high:+.4g}] "
        f"to {rule}, {gain.verdict}",
        flush=True,
    )


def main() -> None:
    """Train all that was asked for, side by side."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("envs", nargs="*", help="ids; if left out, all that begin by imitating a rule")
    parser.add_argument("--scenarios", nargs="+", default=["small", "real"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--device", action="append", help="devices of torch, taken in turn")
    parser.add_argument("--on-device", action="store_true", help="lanes live on the device too, a GPU")
    parser.add_argument("--minutes", type=float, default=8.0, help="time of a training")
    parser.add_argument("--steps", type=int, default=0, help="steps of a training, instead of its time")
    parser.add_argument(
        "--set", nargs="*", default=[], help="settings of the recipe to replace, such as gamma=0.998"
    )
    parser.add_argument(
        "--init",
        default="",
        help="checkpoint to begin with, of another scenario, say; or an earlier --out, of which the one of the same name is taken",
    )
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    envs = args.envs or [f"llmgym/{name}" for name in names() if recipe(name).config.imitate]
    jobs = list(itertools.product(envs, args.scenarios, args.seeds))
    devices = args.device or ["cpu"]
    if args.on_device and "cpu" in devices:
        parser.error("--on-device: name a GPU with --device, such as cuda")
    if len(jobs) == 1:
        train(*jobs[0], devices[0], args.on_device, args.minutes, args.steps, args.out, args.set, args.init)
        return
    running = []
    for (env_id, scenario, seed), device in zip(jobs, itertools.cycle(devices)):
        words = [
            env_id, "--scenarios", scenario, "--seeds", str(seed), "--device", device,
            "--minutes", str(args.minutes), "--steps", str(args.steps), "--out", str(args.out),
            *(["--on-device"] if args.on_device else []),
            *(["--init", args.init] if args.init else []), "--set", *args.set,
        ]  # fmt: skip
        running.append(subprocess.Popen([sys.executable, __file__, *words]))
    if any([process.wait() for process in running]):
        sys.exit("some of the trainings failed; see above")


if __name__ == "__main__":
    main()
