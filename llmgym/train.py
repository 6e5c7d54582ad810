"""Train a policy and say whether it wins.

Without arguments, KVQueue-v0 in overload with the own PPO: about three minutes.

    llmgym train
    llmgym train --scenario azure-conv --timesteps 20000000 --out runs/azure
    llmgym train --out runs/azure --resume --timesteps 40000000
    llmgym train --algo sb3-maskable-ppo --lanes 64 --minibatch 512
    llmgym train --env my_module:me/My-v0

A resumed run goes on with the settings it was started with. An environment of your own is named with the module that
registers it, which is looked for in the current folder too.

The run folder then holds checkpoint.pt, learning_curve.csv and .png, comparison.png and .csv, and
report.html: the policy against every baseline of the environment, on worlds it never met (training uses seeds
of 2**32 and above, the comparison those from `--eval-seed`, 10,000, on).
"""

import json
import os
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch is imported; see PPOConfig.threads

import tyro
from rich.console import Console

from llmgym import baselines, policies
from llmgym.core.env import check_id
from llmgym.errors import CheckpointError, InvalidArgument, LlmgymError, UnknownName
from llmgym.policies import FIRST_TRAINING_SEED, Plan, PPOConfig

SHOWCASE = {
    "llmgym/KVQueue-v0": (
        "tiny-overload",
        "rule",
        (
            "every=4",
            'rules=["smallest-area", "area-watermark", "area-watermark:watermark=0.1", "mc-sf", "vllm", "wc-skip"]',
        ),
    )
}
"""Scenario, action mode and further arguments of an environment for which none of them is given: something in which there
is something to learn. In KVQueue, a burst at 1.3 times the capacity with noisy length predictions and recompute on overflow:
no rule is best in all of its phases (filling up, overloaded, draining), so choosing among the rules, every four batches, is
worth learning; at loads below the capacity all sensible rules are nearly alike."""

USAGE = 2
"""Exit code for a mistake of the caller."""


def default_config() -> PPOConfig:
    """Hyperparameters for scheduling: episodes of hundreds of decisions, effects that show late."""
    return PPOConfig(
        rollout_steps=64,
        minibatch=2048,
        gamma=0.999,
        gae_lambda=0.98,
        entropy=0.003,
        learning_rate=1e-3,
        target_kl=0.06,
    )


@dataclass(frozen=True)
class Args:
    """Train a policy, compare it with every baseline on held-out seeds, and write a report."""

    env: str = "llmgym/KVQueue-v0"
    """Id of the environment; module:id if a module of yours registers it."""
    scenario: str | None = None
    """Scenario of the environment. If neither this nor --action nor --env-args is given, KVQueue is trained in an overload
    where order and admission matter (see `llmgym.train.SHOWCASE`), other environments with their defaults."""
    action: str | None = None
    """What is decided, for environments that offer a choice; its default if left out."""
    env_args: tuple[str, ...] = ()
    """Further arguments of the environment, each as name=value; the value is read as JSON if it is JSON, else
    as a text."""
    algo: str = "ppo"
    """ppo (this package's own), sb3-ppo or sb3-maskable-ppo."""
    timesteps: int = 3_000_000
    """Steps of the whole run over all lanes, what was done before a resume included; rounded up to whole
    updates."""
    seed: int = 0
    """Of networks, exploration and training worlds."""
    lanes: int = 256
    """Copies of the environment that step together."""
    out: Path | None = None
    """Folder of the run; runs/<environment>-<algo>-s<seed> if left out."""
    resume: bool = False
    """Go on from the checkpoint in the folder; everything not given on the command line stays as it was."""
    save_every_s: float = 20.0
    """Seconds between checkpoints: as much is lost at most if the process is killed."""
    eval_episodes: int = 30
    """Episodes a policy in the comparison at the end; 0 leaves the comparison out."""
    eval_seed: int = 10_000
    """Seed of the first episode of the comparison at the end; it must stay below 2**32, where the training seeds begin."""
    log: bool = False
    """Write tensorboard files into the folder of the run."""
    progress: bool = True
    """Show progress on stderr."""
    config: Annotated[PPOConfig, tyro.conf.arg(name="")] = field(default_factory=default_config)
    """Hyperparameters."""


def folder(args: Args) -> Path:
    """Where the run lives."""
    name = args.env.rpartition(":")[2].rpartition("/")[2]
    return args.out or Path("runs") / f"{name}-{args.algo}-s{args.seed}"


def env_kwargs(args: Args) -> dict[str, Any]:
    """Arguments of the environment."""
    kwargs: dict[str, Any] = {}
    for item in args.env_args:
        name, equals, text = item.partition("=")
        if not equals or not name:
            raise InvalidArgument(f"--env-args {item!r}: expected name=value")
        try:
            kwargs[name] = json.loads(text)
        except ValueError:
            kwargs[name] = text
    for name in ("scenario", "action"):
        if getattr(args, name) is not None:
            kwargs[name] = getattr(args, name)
    return kwargs


def resumed(args: Args) -> Args:
    """The settings a run was started with, as defaults for the command line that resumes it."""
    path = folder(args) / "checkpoint.pt"
    if not path.is_file():
        raise CheckpointError(f"--resume: no such file: {path}; name the run's folder with --out")
    from llmgym.policies.checkpoint import load_latest

    meta = load_latest(path)["meta"]
    kwargs = dict(meta["env_kwargs"])
    return Args(
        env=":".join(filter(None, (meta.get("env_module"), meta["env_id"]))),
        scenario=kwargs.pop("scenario", None),
        action=kwargs.pop("action", None),
        env_args=tuple(f"{name}={json.dumps(value)}" for name, value in kwargs.items()),
        algo=meta["algo"],
        timesteps=meta["timesteps"],
        seed=meta["seed"],
        lanes=meta["lanes"],
        out=path.parent,
        config=PPOConfig.from_dict(meta["config"]),
    )


def draw_curve(curve: dict[str, Any], title: str, path: Path) -> None:
    """Draw the mean return of finished episodes over the steps of training, with its spread.

    Args:
        curve: arrays [updates] by name: `steps`, `return_mean` and `return_std`.
        title: of the picture.
        path: image file to write.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    shown = np.isfinite(curve["return_mean"])
    steps, mean, spread = (curve[name][shown] for name in ("steps", "return_mean", "return_std"))
    figure, axis = plt.subplots(figsize=(8, 4.5), layout="constrained")
    axis.plot(steps, mean, color="#0072B2", label="mean of the episodes that ended in an update")
    axis.fill_between(
        steps, mean - spread, mean + spread, color="#0072B2", alpha=0.15, linewidth=0, label="± 1 deviation"
    )
    axis.set(xlabel="environment steps", ylabel="return of an episode (while exploring)", title=title)
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def evaluate(args: Args, console: Console, checkpoint: Path) -> None:
    """Compare the policy with every baseline, tuned where it has a grid, write the files, and say who wins.

    Args:
        args: arguments of the command.
        console: where the result is told.
        checkpoint: path of the policy.
    """
    from llmgym.evaluation import compare, tuned

    out = folder(args)
    env_id = args.env
    own = policies.env_kwargs(checkpoint)
    world = {name: value for name, value in env_kwargs(args).items() if name not in own}
    label = out.resolve().name
    rivals = rivals_of(env_id)
    if label in rivals:
        label = f"learned:{label}"
    if rivals:
        rivals = tuned(env_id, rivals, seed=args.eval_seed, progress=args.progress, **world)
    contenders = {label: str(checkpoint), **{name: name for name in rivals}}
    result = compare(
        env_id, contenders, episodes=args.eval_episodes, seed=args.eval_seed, progress=args.progress, **world
    )
    print(result.table().text(max(console.width, 80) if console.is_terminal else 120))
    result.plot(out / "comparison.png")
    result.to_csv(out / "comparison.csv")
    result.report(out / "report.html")
    best = result.reference
    if best == label:
        console.print(f"[bold]There is no baseline without privileges to compare {label} with.[/bold]")
        return
    difference = result.difference(label)
    verdict = {"win": "beats", "lose": "loses to", "tie": "cannot be told apart from"}[difference.verdict]
    console.print(
        f"[bold]The learned policy {verdict} the best baseline, {best}[/bold]: return {difference.mean:+.4g} "
        f"on the same {result.episodes} worlds ({100 * result.confidence:g}% interval "
        f"{difference.interval.low:+.4g} to {difference.interval.high:+.4g}).",
        highlight=False,
        soft_wrap=True,
    )


def rivals_of(env_id: str) -> list[str]:
    """The baselines of an environment; none for one of the user's own."""
    try:
        return baselines.names(env_id)
    except UnknownName:
        return []


def check_before(args: Args) -> None:
    """What is wrong with the comparison at the end is said before the training, not after."""
    if args.algo not in policies.ALGORITHMS:
        raise UnknownName("algorithm", args.algo, policies.ALGORITHMS)
    check_id(args.env)
    if args.eval_episodes == 0:
        return
    if args.eval_episodes < 2:
        raise InvalidArgument(
            f"--eval-episodes {args.eval_episodes}: expected 0 (no comparison) or at least 2"
        )
    if not 0 <= args.eval_seed <= FIRST_TRAINING_SEED - args.eval_episodes:
        raise InvalidArgument(f"--eval-seed {args.eval_seed}: expected 0 up to 2**32 less --eval-episodes")


def described(command: str) -> str:
    """The text of `--help` where the command is called otherwise than `llmgym train`."""
    return (__doc__ or "").replace("llmgym train", command)


def run(argv: list[str], command: str) -> None:
    """Everything the command line does. Raises `LlmgymError`."""
    words: dict[str, Any] = {"prog": command, "description": described(command)}
    args = tyro.cli(Args, args=argv, **words)
    if args.resume:
        args = tyro.cli(Args, args=argv, default=resumed(args), **words)
    elif args.scenario is None and args.action is None and not args.env_args and args.env in SHOWCASE:
        scenario, action, more = SHOWCASE[args.env]
        args = replace(args, scenario=scenario, action=action, env_args=more)
    check_before(args)
    out = folder(args)
    if not args.resume and (out / "checkpoint.pt").exists():
        raise InvalidArgument(
            f"{out} already holds a run: go on with --resume, or name another folder with --out"
        )
    plan = Plan(
        args.env,
        out,
        env_kwargs(args),
        algo=args.algo,
        timesteps=args.timesteps,
        seed=args.seed,
        lanes=args.lanes,
        resume=args.resume,
        save_every_s=args.save_every_s,
        log=args.log,
        progress=args.progress,
        config=args.config,
    )
    console = Console(highlight=False)
    try:
        result = policies.train(plan)
    except KeyboardInterrupt:
        if (out / "checkpoint.pt").exists():
            resume = f"go on with --out {out} --resume"
        else:
            resume = "there is no checkpoint yet, so the same command begins anew"
        raise KeyboardInterrupt(f"stopped; {resume}") from None
    rate = result.steps / max(result.wall_s, 1e-9)
    shares = ", ".join(
        f"{name} {100 * s / max(sum(result.seconds.values()), 1e-9):.0f} %"
        for name, s in result.seconds.items()
    )
    console.print(
        f"{result.steps:,} steps in {result.wall_s:,.0f} s ({rate:,.0f} a second: {shares})", soft_wrap=True
    )
    draw_curve(result.curve, f"{args.env}, {args.algo}, seed {args.seed}", out / "learning_curve.png")
    if args.eval_episodes:
        evaluate(args, console, result.checkpoint)
    console.print(f"Everything is in {out}/", soft_wrap=True)


def main(argv: list[str], command: str = "llmgym train") -> int:
    """The command line.

    Args:
        argv: options.
        command: what it is called by, for help and messages.

    Returns:
        The exit code.
    """
    name = command.removeprefix("python ")
    if os.getcwd() not in sys.path:  # for environments of the user's own
        sys.path.append(os.getcwd())
    try:
        run(argv, command)
    except LlmgymError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return USAGE if isinstance(error, ValueError | ImportError | OSError) else 1
    except BrokenPipeError:  # whoever read the output has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # as on a full disk
        print(f"{name}: {error.filename or 'writing'}: {error.strerror or error}", file=sys.stderr)
        return USAGE
    except KeyboardInterrupt as stop:
        print(f"{name}: {str(stop) or 'stopped'}", file=sys.stderr)
        return 130
    return 0
