"""Train a policy and say whether it wins.

Without arguments, AttentionBudget-v0 on prompts of a public trace with the own PPO, which beats the best rule there: about two
minutes on two cores.

    llmgym train
    llmgym train --env llmgym/KVQueue-v0 --out runs/queue
    llmgym train --out runs/queue --resume --timesteps 8000000
    llmgym train --env llmgym/AFDRefill-v0 --imitate min-max --seeds 3
    llmgym train --env llmgym/KVProvision-v0 --init runs/fluid/best.pt
    llmgym train --algo sb3-maskable-ppo --lanes 64 --minibatch 512
    llmgym train --backend rllib --workers 8
    llmgym train --env my_module:me/My-v0

Each environment has settings of its own, in llmgym/policies/recipes.toml; what is given here comes first. A
resumed run goes on with the settings it was started with. An environment of your own is named with the module that
registers it, which is looked for in the current folder too.

The run folder then holds checkpoint.pt, best.pt (the best in validation), learning_curve.csv and .png,
comparison.png and .csv, and report.html: the best policy against every baseline of the environment, on worlds
it never met (training uses seeds of 2**32 and above, validation those from 4,000,000,000 on, the comparison
those from `--eval-seed`, 10,000, on).
"""

import contextlib
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch is imported; see PPOConfig.threads

import tyro
from rich.console import Console

from llmgym import baselines, policies
from llmgym.core.checks import keyword_arguments
from llmgym.core.env import check_id
from llmgym.core.told import Told, as_json
from llmgym.errors import CheckpointError, InvalidArgument, LlmgymError, UnknownName
from llmgym.policies import Plan, PPOConfig, TrainingResult
from llmgym.policies.recipes import Recipe, recipe

MOST_EVAL_SEED = 2_000_000_000
"""Seeds of comparisons stay below: baselines are tuned on worlds that many seeds above, and validation follows on those."""

USAGE = 2
"""Exit code for a mistake of the caller."""


@dataclass(frozen=True)
class Args(Told):
    """Train a policy, compare it with every baseline on held-out seeds, and write a report."""

    env: str = "llmgym/AttentionBudget-v0"
    """Id of the environment; module:id if a module of yours registers it."""
    scenario: str | None = None
    """Scenario of the environment. If neither this nor --action nor --env-args is given, the one of its settings."""
    action: str | None = None
    """What is decided, for environments that offer a choice; if left out, what the settings say, or its default."""
    env_args: tuple[str, ...] = ()
    """Further arguments of the environment, each as name=value; the value is read as JSON if it is JSON, else
    as a text."""
    algo: str = "ppo"
    """ppo (this package's own), sb3-ppo or sb3-maskable-ppo."""
    backend: Literal["local", "rllib"] = "local"
    """rllib: RLlib's PPO, whose workers step the lanes on a cluster of Ray. It has an mlp and knows no rule to imitate."""
    workers: int | None = None
    """With rllib, processes that step lanes; one a core but one if left out."""
    address: str | None = None
    """With rllib, a Ray cluster that runs, as host:port, ray://host:port or auto; one on this machine if left out."""
    timesteps: int = 3_000_000
    """Steps of the whole run over all lanes, what was done before a resume included; rounded up to whole
    updates."""
    seed: int = 0
    """Of networks, exploration and training worlds."""
    seeds: tuple[int, ...] = ()
    """Train once with each of these seeds, each in a folder of its own, and compare all; a single number n: 0 to n - 1."""
    init: str = ""
    """A checkpoint, or the name of a shipped policy, to begin with; from another scenario, for instance. The network is its."""
    recipe: Path | None = None
    """A file of settings of your own, as `llmgym tune` writes it; what is not in it is as in the package's."""
    lanes: int = 256
    """Copies of the environment that step together."""
    out: Path | None = None
    """Folder of the run; runs/<environment>-<algo>-s<seed> if left out (without -s<seed> for several seeds)."""
    resume: bool = False
    """Go on from the checkpoint in the folder; everything not given on the command line stays as it was."""
    save_every_s: float = 20.0
    """Seconds between checkpoints: as much is lost at most if the process is killed."""
    validation_episodes: int = 64
    """Episodes of a validation during training, on worlds of its own; the best checkpoint is kept as best.pt. 0: none."""
    validate_every: int = 0
    """Updates between validations; 0: about twenty in all."""
    patience: int = 0
    """Validations without a better one after which the training ends; 0: it goes on to the last step."""
    eval_episodes: int = 30
    """Episodes a policy in the comparison at the end; 0 leaves the comparison out."""
    eval_seed: int = 10_000
    """Seed of the first episode of the comparison at the end; it must stay below 2,000,000,000, where other seeds begin."""
    log: bool = False
    """Write tensorboard files into the folder of the run."""
    progress: bool = True
    """Show progress on stderr."""
    config: Annotated[PPOConfig, tyro.conf.arg(name="")] = field(default_factory=PPOConfig)
    """Hyperparameters."""


def algorithm(args: Args) -> str:
    """Name of the algorithm, the backend's where that has its own."""
    return policies.RLLIB if args.backend == "rllib" else args.algo


def folder(args: Args) -> Path:
    """Where the run lives."""
    name = args.env.rpartition(":")[2].rpartition("/")[2]
    return args.out or Path("runs") / (f"{name}-{algorithm(args)}" + ("" if args.seeds else f"-s{args.seed}"))


def runs(args: Args) -> dict[int, Path]:
    """The folder of each seed's run."""
    if not args.seeds:
        return {args.seed: folder(args)}
    if len(args.seeds) == 1 and args.seeds[0] < 1:
        raise InvalidArgument(
            f"--seeds {args.seeds[0]}: expected a number of seeds, at least 1, or several seeds"
        )
    seeds = range(args.seeds[0]) if len(args.seeds) == 1 else args.seeds
    return {seed: folder(args) / f"seed-{seed}" for seed in seeds}


def given_kwargs(args: Args) -> dict[str, Any]:
    """Arguments of the environment."""
    kwargs = keyword_arguments(args.env_args)
    for name in ("scenario", "action"):
        if getattr(args, name) is not None:
            kwargs[name] = getattr(args, name)
    return kwargs


def with_recipe(args: Args) -> tuple[Args, Recipe]:
    """The settings of the environment and scenario, as defaults for the command line that asked for them."""
    chosen = recipe(
        args.env, args.scenario, args.action, given_kwargs(args), args.recipe, args.config.env_device
    )
    config = chosen.config
    if args.init:
        then = PPOConfig.from_dict(policies.meta(args.init)["config"])
        config = replace(
            config, network=then.network, hidden=then.hidden, activation=then.activation, imitate=""
        )
    if algorithm(args) != "ppo":  # which is the only one that can do these
        config = replace(config, network="mlp", imitate="")
    made = Args(timesteps=chosen.timesteps, lanes=chosen.lanes, patience=chosen.patience, config=config)
    return with_world(made, chosen.env_kwargs), chosen


def with_world(args: Args, env_kwargs: Mapping[str, Any]) -> Args:
    """The same with these arguments of the environment."""
    kwargs = dict(env_kwargs)
    scenario, action = kwargs.pop("scenario", None), kwargs.pop("action", None)
    items = tuple(f"{name}={json.dumps(value)}" for name, value in kwargs.items())
    return replace(args, scenario=scenario, action=action, env_args=items)


def resumed(args: Args) -> Args:
    """The settings a run was started with, as defaults for the command line that resumes it."""
    path = folder(args) / "checkpoint.pt"
    several = sorted(int(file.parent.name[5:]) for file in folder(args).glob("seed-*/checkpoint.pt"))
    if several and not path.is_file():
        path = folder(args) / f"seed-{several[0]}" / "checkpoint.pt"
    if not path.is_file():
        raise CheckpointError(f"--resume: no such file: {path}; name the run's folder with --out")
    from llmgym.policies.checkpoint import load_latest

    meta = load_latest(path)["meta"]
    was = Args(
        env=":".join(filter(None, (meta.get("env_module"), meta["env_id"]))),
        algo="ppo" if meta["algo"] == policies.RLLIB else meta["algo"],
        backend="rllib" if meta["algo"] == policies.RLLIB else "local",
        timesteps=meta["timesteps"],
        seed=meta["seed"],
        lanes=meta["lanes"],
        out=folder(args),
        config=PPOConfig.from_dict(meta["config"]),
        **{
            name: meta[name]
            for name in ("init", "validation_episodes", "validate_every", "patience")
            if name in meta
        },
    )
    if path.parent != folder(args):
        # a single number would be how many
        was = replace(was, seeds=tuple(several) if len(several) > 1 else (several[0] + 1,))
    return with_world(was, meta["env_kwargs"])


def draw_curve(curve: dict[str, Any], title: str, path: Path) -> None:
    """Draw the mean return of finished episodes over the steps of training, with its spread, and the validations.

    Args:
        curve: arrays [updates] by name: `steps`, `return_mean`, `return_std` and `validation_return`.
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
    axis.plot(
        steps, mean, color="#0072B2", label="mean of the episodes that ended in an update, while exploring"
    )
    axis.fill_between(
        steps, mean - spread, mean + spread, color="#0072B2", alpha=0.15, linewidth=0, label="± 1 deviation"
    )
    tried = np.isfinite(curve["validation_return"])
    if tried.any():
        at, value = curve["steps"][tried], curve["validation_return"][tried]
        axis.plot(
            at, value, color="#D55E00", marker="o", markersize=3, label="validation, the most likely actions"
        )
        best = value.argmax()
        axis.plot(
            at[best], value[best], color="#D55E00", marker="*", markersize=12, label="best", linestyle=""
        )
    axis.set(xlabel="environment steps", ylabel="return of an episode", title=title)
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def evaluate(args: Args, console: Console, learned: Mapping[str, Path]) -> dict[str, Any]:
    """Compare policies with every baseline, tuned where it has a grid, write the files, and say who wins.

    Args:
        args: arguments of the command.
        console: where the result is told.
        learned: checkpoints of the policies, by name.

    Returns:
        The comparison as JSON has it.
    """
    from llmgym.evaluation import compare, export, tuned

    out = folder(args)
    env_id = args.env
    own = policies.env_kwargs(next(iter(learned.values())))
    world = {name: value for name, value in given_kwargs(args).items() if name not in own}
    rivals = rivals_of(env_id)
    learned = {f"learned:{name}" if name in rivals else name: path for name, path in learned.items()}
    slow = [name for name in rivals if name in too_slow(env_id, world.get("scenario"))]
    if slow:
        console.print(f"Not compared with here, as they take long: {', '.join(slow)}; llmgym compare does.")
        rivals = [name for name in rivals if name not in slow]
    if rivals:
        rivals = tuned(env_id, rivals, seed=args.eval_seed, progress=args.progress, **world)
    contenders = {name: str(path) for name, path in learned.items()} | {name: name for name in rivals}
    result = compare(
        env_id, contenders, episodes=args.eval_episodes, seed=args.eval_seed, progress=args.progress, **world
    )
    if not args.json:
        print(result.table().text(max(console.width, 80) if console.is_terminal else 120))
    result.plot(out / "comparison.png")
    result.to_csv(out / "comparison.csv")
    result.report(out / "report.html")
    best = result.reference
    if best in learned:
        console.print(f"[bold]There is no baseline without privileges to compare {best} with.[/bold]")
        return export.data(result)
    for label in learned:
        difference = result.difference(label)
        verdict = {"win": "beats", "lose": "loses to", "tie": "cannot be told apart from"}[difference.verdict]
        which = f"The learned policy{f' {label}' if len(learned) > 1 else ''}"
        console.print(
            f"[bold]{which} {verdict} the best baseline, {best}[/bold]: return {difference.mean:+.4g} "
            f"on the same {result.episodes} worlds ({100 * result.confidence:g}% interval "
            f"{difference.interval.low:+.4g} to {difference.interval.high:+.4g}).",
            highlight=False,
            soft_wrap=True,
        )
    return export.data(result)


def rivals_of(env_id: str) -> list[str]:
    """The baselines of an environment; none for one of the user's own."""
    try:
        return baselines.names(env_id)
    except UnknownName:
        return []


def too_slow(env_id: str, scenario: str | None) -> tuple[str, ...]:
    """The baselines that the leaderboard leaves out on a scenario, as they take long."""
    return baselines.boards(env_id).get(scenario, ())


def check_before(args: Args) -> None:
    """What is wrong with the comparison at the end is said before the training, not after."""
    if args.algo not in policies.ALGORITHMS:
        raise UnknownName("algorithm", args.algo, policies.ALGORITHMS)
    if args.backend == "rllib" and args.algo != "ppo":
        raise InvalidArgument(
            f"--algo {args.algo}: --backend rllib has its own algorithm; leave one of them out"
        )
    for name in ("workers", "address"):
        if getattr(args, name) is not None and args.backend != "rllib":
            raise InvalidArgument(f"--{name} {getattr(args, name)}: only --backend rllib has it")
    check_id(args.env)
    if args.eval_episodes == 0:
        return
    if args.eval_episodes < 2:
        raise InvalidArgument(
            f"--eval-episodes {args.eval_episodes}: expected 0 (no comparison) or at least 2"
        )
    if not 0 <= args.eval_seed <= MOST_EVAL_SEED - args.eval_episodes:
        raise InvalidArgument(
            f"--eval-seed {args.eval_seed}: expected 0 up to 2,000,000,000 less --eval-episodes"
        )


def described(command: str) -> str:
    """The text of `--help` where the command is called otherwise than `llmgym train`."""
    return (__doc__ or "").replace("llmgym train", command)


def arguments(argv: list[str], command: str) -> tuple[Args, str]:
    """Read the command line.

    Args:
        argv: options.
        command: what it is called by, for help.

    Returns:
        The arguments, the settings of the environment (or those of the run to resume) filled in; and which settings these are.
    """
    words: dict[str, Any] = {"prog": command, "description": described(command)}
    first = tyro.cli(Args, args=[word for word in argv if word not in ("-h", "--help")], **words)
    if first.resume:
        default, name = resumed(first), "the run that is resumed"
    else:
        default, chosen = with_recipe(first)
        name = chosen.name
    words["description"] += f"\nThe defaults shown are the settings of {name}."
    args = tyro.cli(Args, args=argv, default=default, **words)
    if not first.resume:  # which has what was asked for too
        args = with_world(args, chosen.env_kwargs)
    return args, name


def train(args: Args, seed: int, out: Path, console: Console) -> TrainingResult:
    """Train with one seed, draw its learning curve, and say how fast it was.

    Args:
        args: arguments of the command.
        seed: of the run.
        out: its folder.
        console: where the result is told.
    """
    plan = Plan(
        args.env,
        out,
        given_kwargs(args),
        algo=algorithm(args),
        timesteps=args.timesteps,
        seed=seed,
        lanes=args.lanes,
        resume=args.resume and ((out / "checkpoint.pt").exists() or not args.seeds),
        save_every_s=args.save_every_s,
        log=args.log,
        progress=args.progress,
        config=args.config,
        init=args.init,
        validation_episodes=args.validation_episodes,
        validate_every=args.validate_every,
        patience=args.patience,
        workers=args.workers,
        address=args.address,
    )
    # what Ray tells of killed workers is no result
    aside = contextlib.redirect_stdout(sys.stderr) if args.backend == "rllib" else contextlib.nullcontext()
    try:
        with aside:
            result = policies.train(plan)
    except KeyboardInterrupt:
        if (out / "checkpoint.pt").exists():
            resume = f"go on with --out {folder(args)} --resume"
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
    draw_curve(result.curve, f"{args.env}, {algorithm(args)}, seed {seed}", out / "learning_curve.png")
    return result


def run(argv: list[str], command: str) -> None:
    """Everything the command line does. Raises `LlmgymError`."""
    args, settings = arguments(argv, command)
    check_before(args)
    folders = runs(args)
    for out in folders.values():
        if not args.resume and (out / "checkpoint.pt").exists():
            raise InvalidArgument(
                f"{out} already holds a run: go on with --resume, or name another folder with --out"
            )
    console = Console(highlight=False, quiet=args.json)
    console.print(f"{args.env}: the settings are those of {settings}, and what was given", soft_wrap=True)
    results = {seed: train(args, seed, out, console) for seed, out in folders.items()}
    if len(results) > 1 and args.validation_episodes:
        for seed, result in results.items():
            console.print(f"seed {seed}: best return in validation {result.validation_return:.4g}")
        best = max(results, key=lambda seed: results[seed].validation_return)
        console.print(
            f"[bold]The best in validation is that of seed {best}: {results[best].best}[/bold]",
            soft_wrap=True,
        )
    found = None
    if args.eval_episodes:
        learned = {folders[seed].resolve().name: result.best for seed, result in results.items()}
        found = evaluate(args, console, learned)
    console.print(f"Everything is in {folder(args)}/", soft_wrap=True)
    if args.json:
        runs_of = [
            {"seed": seed, "steps": result.steps, "seconds": result.wall_s, "best": result.best}
            for seed, result in results.items()
        ]
        print(as_json({"runs": runs_of, "comparison": found, "written": [folder(args)]}))


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
