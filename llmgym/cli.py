"""The command line, `llmgym COMMAND`; `llmgym --help` lists the commands.

Every command is a function whose arguments are its options. Mistakes of the caller end with one line on stderr and exit code 2.
"""

import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from llmgym import __version__, baselines, env_ids
from llmgym.baselines.afd.plan import Afd
from llmgym.baselines.distill.plan import Distill
from llmgym.baselines.kv.plan import Kv, Law
from llmgym.baselines.oserve.plan import Oserve
from llmgym.core.checks import keyword_arguments, number, output_folder, whole
from llmgym.core.told import Told, as_json
from llmgym.deploy.export_command import ExportPolicy
from llmgym.errors import CheckFailed, InvalidArgument, LlmgymError
from llmgym.evaluation.leaderboard_command import Leaderboard
from llmgym.evaluation.room_command import Room
from llmgym.evaluation.tune_command import Tune
from llmgym.profiles.convert_command import Convert
from llmgym.profiles.measure_command import Measure, Profiles
from llmgym.serving.replay_command import Replay
from llmgym.serving.validate_command import Validate

FAILED, USAGE = 1, 2
"""Exit codes: a check that failed, and a mistake of the caller."""


@dataclass(frozen=True)
class List(Told):
    """What there is: environments, their baselines, scenarios, workloads and profiles."""

    def run(self, console: Console) -> dict[str, Any]:
        from llmgym import policies, profiles, workloads
        from llmgym.envs import scenario_names

        environments = {
            env_id: {
                "scenarios": scenario_names(env_id),
                "baselines": baselines.names(env_id),
                "learned policies": policies.names(env_id),
            }
            for env_id in env_ids()
        }
        for env_id, lists in environments.items():
            console.print(f"[bold]{env_id}[/bold]")
            for title, known in lists.items():
                console.print(f"  {title}: {', '.join(known) or '(none shipped)'}")
        console.print("[bold]workloads[/bold]", ", ".join(workloads.names()))
        console.print("[bold]profiles[/bold]", ", ".join(profiles.names()))
        return {
            "environments": environments,
            "workloads": workloads.names(),
            "profiles": profiles.names(),
        }


@dataclass(frozen=True)
class Settings(Told):
    """What can be set of an environment: every setting of a scenario, what it may be, and its unit."""

    env: Annotated[str, tyro.conf.Positional]
    """Environment id, such as llmgym/KVQueue-v0; module:id if a module of yours registers it."""
    scenario: str | None = None
    """Show the values of this scenario; the defaults if left out."""

    def run(self, console: Console) -> dict[str, Any]:
        from llmgym import spec
        from llmgym.core import settings
        from llmgym.core.checks import choice
        from llmgym.core.env import check_id

        chosen = spec(check_id(self.env))
        known = chosen.scenarios_by_name()
        if not known:
            if self.scenario is not None:
                raise InvalidArgument(f"scenario={self.scenario!r}: {chosen.id} has no scenarios")
            table = Table("argument", "default", "type", title=f"{chosen.id} has no scenarios; it takes")
            arguments = [
                {"argument": name, "default": default, "type": kind}
                for name, default, kind in chosen.arguments()
            ]
            for one in arguments:
                table.add_row(*map(escape, one.values()))
            console.print(table)
            return {"environment": chosen.id, "arguments": arguments}
        what: Any = type(next(iter(known.values())))
        if self.scenario is not None:
            what = known[choice("scenario", self.scenario, known)]
        table = Table(title=f"{chosen.id}: {self.scenario or 'defaults'}", title_justify="left")
        for name in ("setting", "value", "allowed", "unit", "meaning"):
            table.add_column(name, overflow="fold")
        found = []
        for name, value, setting in settings.rows(what):
            allowed = setting.allowed.replace("`", "") + ("; None" if setting.optional else "")
            cells = (name, str(value), allowed.lstrip("; "), setting.unit, setting.about)
            found.append(dict(zip(("setting", "value", "allowed", "unit", "meaning"), cells, strict=True)))
            table.add_row(*map(escape, cells))
        console.print(table)
        return {"environment": chosen.id, "scenario": self.scenario, "settings": found}


@dataclass(frozen=True)
class Compare(Told):
    """Run policies on the same worlds and say who wins: a table, CSV files, a picture and an HTML report."""

    env: Annotated[str, tyro.conf.Positional]
    """Environment id, such as llmgym/KVQueue-v0; module:id if a module of yours registers it."""
    policies: tuple[str, ...] = ()
    """Baselines, learned policies, paths of checkpoints, or policies of your own as module:name; "rules" and "learned" stand for
    all baselines and all shipped policies, "all" for both and those of installed packages; all if left out."""
    scenario: Annotated[str | None, tyro.conf.arg(aliases=("--test-on",))] = None
    """Scenario of the environment; its default if left out."""
    trained_on: Annotated[str | None, tyro.conf.arg(aliases=("--train-on",))] = None
    """Of the shipped policies, take those that were trained on this scenario, to see how they do on another one."""
    env_args: tuple[str, ...] = ()
    """Further arguments of the environment, as name=value."""
    episodes: int = 30
    """Episodes a policy, each on a world of its own; all policies meet the same worlds."""
    seed: int = 10_000
    """Seed of the first world."""
    tune: bool = True
    """First tune the rules that have a grid, on other worlds than those of the comparison."""
    room: Path | None = None
    """File of `llmgym room --out`: the table then tells which share of the room each policy gets."""
    backend: Literal["local", "ray"] = "local"
    """Where episodes are played: in processes of this machine, or as tasks of Ray. Results do not depend on it."""
    workers: int | None = None
    """How many pieces of the work are done at once: 1 if left out, with Ray as many as there are cores."""
    address: str | None = None
    """A Ray cluster that runs, as host:port, ray://host:port or auto; one on this machine, for the time being, if left out."""
    out: Path | None = None
    """Folder for comparison.csv, comparison.png and report.html; results/<environment>-<scenario> if left out."""
    progress: bool = True
    """Show progress on stderr."""

    def run(self, console: Console) -> dict[str, Any]:
        from llmgym import evaluation
        from llmgym.evaluation import contenders, export
        from llmgym.evaluation.choose_backend import of_command
        from llmgym.evaluation.paired import GROUPS, members
        from llmgym.evaluation.tuning import TUNING_SEEDS

        episodes = whole("episodes", self.episodes, 2, 10**6)
        whole("seed", self.seed, 0, TUNING_SEEDS - episodes)
        env_id = contenders.check_id(self.env)
        for name in self.policies:
            if name not in GROUPS:
                contenders.resolve(env_id, name)
        out = self.out or Path("results") / "-".join(filter(None, (env_id.rpartition("/")[2], self.scenario)))
        output_folder("out", out)
        kwargs = keyword_arguments(self.env_args)
        if self.scenario is not None:
            kwargs["scenario"] = self.scenario
        room = None if self.room is None else evaluation.RoomResult.read(self.room)
        if room is not None:
            room.check(env_id, kwargs)
        names: list[str] | None = None
        if self.policies or self.trained_on is not None:
            names = members(env_id, self.policies or ("all",), kwargs, self.trained_on)
        with of_command(self.backend, self.workers, self.address) as backend:
            common = {"seed": self.seed, "progress": self.progress, "backend": backend, **kwargs}
            if self.tune and env_id in env_ids():
                names = evaluation.tuned(self.env, names, **common)
            result = evaluation.compare(self.env, names, episodes=self.episodes, room=room, **common)
        if not self.json:
            print(result.table().text(max(console.width, 80) if console.is_terminal else 120))
        out.mkdir(parents=True, exist_ok=True)
        result.to_csv(out / "comparison.csv")
        result.plot(out / "comparison.png")
        result.report(out / "report.html")
        written = [out / name for name in ("comparison.csv", "comparison.png", "report.html")]
        console.print(f"Written: {', '.join(map(str, written))}")
        return export.data(result) | {"written": written}


@dataclass(frozen=True)
class Train:
    """Train a policy and say whether it wins; `llmgym train --help` tells its options."""

    def run(self, console: Console) -> dict[str, Any]:
        raise InvalidArgument(
            "llmgym train: give it first"
        )  # `main` hands everything after it to `llmgym.train`


@dataclass(frozen=True)
class Plan:
    """Size a system with the closed forms."""

    what: (
        Annotated[Kv, tyro.conf.subcommand("kv")]
        | Annotated[Law, tyro.conf.subcommand("law")]
        | Annotated[Afd, tyro.conf.subcommand("afd")]
        | Annotated[Oserve, tyro.conf.subcommand("oserve")]
        | Annotated[Distill, tyro.conf.subcommand("distill")]
    )

    def run(self, console: Console) -> dict[str, Any]:
        return self.what.run(console)

    @property
    def json(self) -> bool:
        """Whether JSON is asked for."""
        return self.what.json


@dataclass(frozen=True)
class Throughput(Told):
    """Steps a second of the native vector environment on this machine, one thread."""

    env: Annotated[str, tyro.conf.Positional] = "llmgym/KVQueue-v0"
    """Environment id; module:id if a module of yours registers it."""
    lanes: int = 1024
    """Copies that step together."""
    env_args: tuple[str, ...] = ()
    """Arguments of the environment, as name=value."""
    seconds: float = 3.0
    """How long to measure."""

    def run(self, console: Console) -> dict[str, Any]:
        from llmgym.evaluation.contenders import make_env

        number("seconds", self.seconds)
        envs = make_env(self.env, self.lanes, keyword_arguments(self.env_args))
        envs.reset(seed=0)
        envs.action_space.seed(0)
        actions = [envs.action_space.sample() for _ in range(16)]
        envs.step(actions[0])
        steps, start = 0, time.perf_counter()
        while time.perf_counter() - start < self.seconds:
            for action in actions:
                envs.step(action)
            steps += len(actions)
        rate = steps * self.lanes / (time.perf_counter() - start)
        console.print(
            f"{self.env}: {rate:,.0f} steps/s over {self.lanes:,} lanes (random actions, one thread)"
        )
        return {"environment": self.env, "lanes": self.lanes, "steps_per_s": rate}


@dataclass(frozen=True)
class Check(Told):
    """Run the test kit on an environment: everything that the environments of this package are held to.

    The exit status is 1 if a check failed.
    """

    env: Annotated[str, tyro.conf.Positional]
    """Environment id, such as llmgym/KVQueue-v0; module:id if a module of yours registers it."""
    progress: bool = True
    """Show progress on stderr."""

    def run(self, console: Console) -> dict[str, Any]:
        from llmgym.testing import check

        try:
            report = check(self.env, progress=self.progress)
        except CheckFailed as failed:
            console.print(failed.report)
            if self.json:
                print(as_json(failed.report.data()))
            raise
        console.print(report)
        found: dict[str, Any] = report.data()
        return found


@dataclass(frozen=True)
class New(Told):
    """Write an environment of your own, one file that runs, trains and passes the test kit, to be changed from there."""

    name: Annotated[str, tyro.conf.Positional]
    """Name of the module, such as my_env, which is written to my_env.py."""

    def run(self, console: Console) -> dict[str, Any]:
        from llmgym.testing.new import new

        path, env_id = new(self.name)
        named = f"{self.name}:{env_id}"
        console.print(f"Written: {path}. Go on with", soft_wrap=True)
        commands = (f"llmgym check {named}", f"llmgym compare {named}", f"llmgym train --env {named}")
        for command in commands:
            console.print(f"  {command}", soft_wrap=True, highlight=False)
        return {"written": [path], "environment": env_id, "next": commands}


@dataclass(frozen=True)
class Compile(Told):
    """Compile the kernels of environments beforehand, with their defaults and their test cases; kept on disk, they load at once."""

    envs: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Environment ids; module:id if a module of yours registers one; all if left out."""
    progress: bool = True
    """Show progress on stderr."""

    def run(self, console: Console) -> dict[str, Any]:
        import gymnasium
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        from llmgym.core.cache_folder import cache_dir
        from llmgym.core.env import LaneEnv, check_id
        from llmgym.core.spec import find

        names = [check_id(name) for name in self.envs] or env_ids()
        jobs: list[tuple[str, str, dict[str, Any]]] = []
        for name in names:
            spec = find(name)
            cases: dict[str, dict[str, Any]] = {"defaults": {}} | (spec.test_cases() if spec else {})
            jobs += [(name, case, kwargs) for case, kwargs in cases.items()]
        columns = (
            TextColumn("{task.description:48}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        stderr = Console(stderr=True)
        seconds = dict.fromkeys(names, 0.0)
        shown = self.progress and stderr.is_terminal
        with Progress(*columns, console=stderr, transient=True, disable=not shown) as bar:
            task = bar.add_task("", total=len(jobs))
            for name, case, kwargs in jobs:
                bar.update(task, description=f"{name} {case}")
                start = time.perf_counter()
                env = gymnasium.make(name, **kwargs).unwrapped
                if not isinstance(env, LaneEnv):
                    raise InvalidArgument(
                        f"envs={name!r}: it is a {type(env).__name__}, which has no kernels"
                    )
                env.lanes.compile()
                env.reset(seed=0)
                env.metrics()
                env.close()
                seconds[name] += time.perf_counter() - start
                bar.advance(task)
        table = Table(title=f"compiled, kept in {cache_dir()}", title_justify="left")
        table.add_column("environment")
        table.add_column("s", justify="right")
        for name, taken in seconds.items():
            table.add_row(name, f"{taken:.1f}")
        console.print(table)
        return {"folder": cache_dir(), "seconds": seconds}


@dataclass(frozen=True)
class Arguments:
    """llmgym: scheduling problems of LLM inference as Gymnasium environments.

    llmgym --version says which version this is.
    """

    command: (
        Annotated[List, tyro.conf.subcommand("list")]
        | Annotated[Settings, tyro.conf.subcommand("settings")]
        | Annotated[Compare, tyro.conf.subcommand("compare")]
        | Annotated[Room, tyro.conf.subcommand("room")]
        | Annotated[Leaderboard, tyro.conf.subcommand("leaderboard")]
        | Annotated[Train, tyro.conf.subcommand("train")]
        | Annotated[Tune, tyro.conf.subcommand("tune")]
        | Annotated[Plan, tyro.conf.subcommand("plan")]
        | Annotated[Replay, tyro.conf.subcommand("replay")]
        | Annotated[Validate, tyro.conf.subcommand("validate")]
        | Annotated[Profiles, tyro.conf.subcommand("profiles")]
        | Annotated[Measure, tyro.conf.subcommand("profile")]
        | Annotated[Convert, tyro.conf.subcommand("convert")]
        | Annotated[Throughput, tyro.conf.subcommand("throughput")]
        | Annotated[Check, tyro.conf.subcommand("check")]
        | Annotated[New, tyro.conf.subcommand("new")]
        | Annotated[Compile, tyro.conf.subcommand("compile")]
        | Annotated[ExportPolicy, tyro.conf.subcommand("export-policy")]
    ) = field(default_factory=List)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    if given == ["--version"]:
        print(f"llmgym {__version__}")
        return 0
    if given[:1] == ["train"]:
        from llmgym import train

        return train.main(given[1:])
    if os.getcwd() not in sys.path:  # for environments of the user's own
        sys.path.append(os.getcwd())
    parsed = tyro.cli(
        tyro.conf.OmitArgPrefixes[tyro.conf.OmitSubcommandPrefixes[Arguments]], args=arguments, prog="llmgym"
    )
    try:
        found = parsed.command.run(Console(quiet=parsed.command.json))
        if parsed.command.json:
            print(as_json(found))
    except BrokenPipeError:  # whoever read the output has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except LlmgymError as error:
        print(f"llmgym: {error}", file=sys.stderr)
        return FAILED if isinstance(error, CheckFailed) else USAGE
    except OSError as error:  # as on a full disk
        print(f"llmgym: {error.filename or 'writing'}: {error.strerror or error}", file=sys.stderr)
        return USAGE
    except KeyboardInterrupt as stop:
        print(f"llmgym: {str(stop) or 'stopped'}", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
