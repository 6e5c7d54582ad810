"""The folder of a training run: its environment, learning curve, checkpoints, progress and log, whoever trains in it.

out/checkpoint.pt            the newest checkpoint
out/checkpoint.previous.pt   the one before it
out/learning_curve.csv       one row an update
out/events.out.tfevents.*    tensorboard, where asked for
"""

import contextlib
import csv
import inspect
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from llmgym import baselines
from llmgym.core.checks import output_folder
from llmgym.core.env import LaneVectorEnv, check_id
from llmgym.errors import (
    CheckpointError,
    InvalidArgument,
    LlmgymError,
    MissingExtra,
    OutputError,
    UnknownName,
)
from llmgym.policies import checkpoint
from llmgym.policies.config import Plan, PPOConfig
from llmgym.version import __version__

PLAIN_LINE_EVERY_S = 10.0
"""Where stderr is no terminal, progress is one line this often."""

CHECKSUM = "world_checksum"
"""A metric that tells worlds apart; its mean means nothing."""


class TrainingResult(NamedTuple):
    """What a finished run leaves.

    Attributes:
        checkpoint: path of the newest checkpoint; `llmgym.policies.load` takes it.
        steps: environment steps over all lanes, earlier parts of a resumed run included.
        wall_s: seconds of training, earlier parts included.
        curve: the learning curve, float64 [updates] by column name.
        seconds: where the time of this part went: `env`, `inference`, `learning`, and `other`.
    """

    checkpoint: Path
    steps: int
    wall_s: float
    curve: dict[str, NDArray[np.float64]]
    seconds: dict[str, float]


def make_lanes(env_id: str, lanes: int, env_kwargs: Mapping[str, Any], device: str = "cpu") -> LaneVectorEnv:
    """Make the native vector environment a policy is trained on, in `SAME_STEP` mode and without copies.

    Args:
        env_id: a registered id.
        lanes: number of lanes.
        env_kwargs: arguments of the environment, plain values by name.
        device: where the lanes live.

    Returns:
        The environment.

    Raises:
        UnknownName: no environment has this id.
        InvalidArgument: it is not one of lanes, or it does not take one of the arguments.
    """
    checkpoint.check_plain("env_kwargs", env_kwargs)
    if reserved := sorted(OWN_KWARGS & set(env_kwargs)):
        raise InvalidArgument(f"env_kwargs: {', '.join(reserved)} is set by the training itself")
    env_id = check_id(env_id)
    entry: Any = gymnasium.spec(env_id).vector_entry_point
    entry = gymnasium.envs.registration.load_env_creator(entry) if isinstance(entry, str) else entry
    if not (inspect.isclass(entry) and issubclass(entry, LaneVectorEnv)):
        raise InvalidArgument(f"env_id={env_id!r}: training needs an environment of lanes (a LaneVectorEnv)")
    where: dict[str, Any] = {} if device == "cpu" else {"device": device}
    try:
        env = gymnasium.make_vec(
            env_id,
            num_envs=lanes,
            autoreset_mode=AutoresetMode.SAME_STEP,
            copy=False,
            **{**env_kwargs, **where},
        )
    except TypeError as error:
        if isinstance(error, LlmgymError) or "unexpected keyword argument" not in str(error):
            raise
        known = sorted(set(inspect.signature(entry.simulation_class).parameters))
        raise InvalidArgument(
            f"{env_id}: {str(error).partition(') ')[2] or error}; it takes {', '.join(known)}"
        ) from error
    assert isinstance(env, LaneVectorEnv)
    return env


OWN_KWARGS = frozenset({"num_envs", "autoreset_mode", "copy", "device"})
"""Arguments of a vector environment that the training sets."""

WORLD = ("scenario", "workload", "profile")
"""Arguments that every environment has and that say which world it is; they never belong to a policy."""


def interface_kwargs(env: LaneVectorEnv, env_id: str, env_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Select the arguments that belong to the policy: what it observes and decides, but not which world it meets.

    Nobody declares them: an argument other than those of `WORLD` belongs to the policy if observation or actions are
    others without it, or if a baseline of the environment chooses it too and does not make another world of it.

    Args:
        env: the environment, made with `env_kwargs`.
        env_id: id of the environment.
        env_kwargs: arguments that it was made with, by name.

    Returns:
        The arguments selected, by name.
    """

    def chosen_by_rules(name: str, value: Any) -> bool:
        try:
            return baselines.steers(env_id, name, value)
        except UnknownName:
            return False

    steering = {}
    for name, value in env_kwargs.items():
        if name in WORLD:
            continue
        try:
            other = env.simulation_class(**{k: v for k, v in env_kwargs.items() if k != name})
            same = checkpoint.describe_space(other.action_space) == checkpoint.describe_space(
                env.single_action_space
            )
            same = same and other.layout.signature() == env.layout.signature()
        except (LlmgymError, ValueError, TypeError):  # another argument cannot do without it
            same = False
        if not same or chosen_by_rules(name, value):
            steering[name] = value
    return steering


@contextlib.contextmanager
def learning_threads(threads: int) -> Iterator[None]:
    """Have torch use `threads` threads inside the block; 0 lets this function choose.

    OpenMP's threads spin while they wait for each other, and where another program wants a core as well, two of them are up to
    ten times slower than one. With `OMP_WAIT_POLICY=passive`, which has to be set before torch is imported, they sleep. So more
    than one is chosen only with it.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    sleeping = os.environ.get("OMP_WAIT_POLICY", "").lower() == "passive"
    before = torch.get_num_threads()
    torch.set_num_threads(threads or (min(cores, 4) if sleeping else 1))
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Run:
    """Everything of a training run that is not learning; use it as a context manager.

    Args:
        plan: what was asked for.
        columns: of the learning curve, after `steps`, `wall_s` and `steps_per_s`.

    Attributes:
        env: the lanes to train on.
        steps: environment steps done so far.
        stored: the checkpoint to resume from, or None.
        seconds: wall time spent in `env`, `inference` and `learning`; the trainer adds to it.
    """

    def __init__(self, plan: Plan, columns: Sequence[str]) -> None:
        self.plan = plan
        self.path = output_folder("out", plan.out) / "checkpoint.pt"
        self.stored: dict[str, Any] | None = None
        if plan.resume:
            if not self.path.exists():
                raise CheckpointError(f"no such file: {self.path}, so there is nothing to resume")
            self.stored = checkpoint.load_latest(self.path)
        elif self.path.exists():
            raise InvalidArgument(f"{plan.out} already holds a run: resume it, or choose another folder")
        self.env = make_lanes(plan.env_id, plan.lanes, plan.env_kwargs, plan.config.env_device)
        metrics = [name for name in self.env.simulation.metric_names if name not in (*columns, CHECKSUM)]
        self.columns = ["steps", "wall_s", "steps_per_s", *columns, *metrics]
        self.steps, self.earlier_s = 0, 0.0
        self.rows: list[list[float]] = []
        if self.stored is not None:
            self._restore(self.stored["meta"], self.stored["curve"])
        self.interface = interface_kwargs(self.env, plan.env_id, plan.env_kwargs)
        self.seconds = {"env": 0.0, "inference": 0.0, "learning": 0.0}
        self._console = Console(stderr=True)
        self._last_return = math.nan

    def _restore(self, meta: Mapping[str, Any], curve: Any) -> None:
        plan = self.plan
        if meta["algo"] != plan.algo:
            raise CheckpointError(
                f"{self.path} was trained with algo={meta['algo']!r}, not {plan.algo!r}: resume with that"
            )
        checkpoint.check_environment(
            meta, self.env.layout, self.env.single_action_space, plan.env_id, str(self.path)
        )
        for name in ("hidden", "activation", "network"):
            now = plan.config.to_dict()[name]
            then = meta["config"].get(name, PPOConfig().to_dict()[name])
            if then != now:
                raise CheckpointError(
                    f"{self.path} was trained with {name}={then!r}, not {now!r}: resume with that"
                )
        self.steps, self.earlier_s = int(meta["steps"]), float(meta["wall_s"])
        if meta["curve_columns"] == self.columns:
            self.rows = curve.tolist()

    def __enter__(self) -> "Run":
        plan = self.plan
        plan.out.mkdir(parents=True, exist_ok=True)
        # rows after the checkpoint belong to steps that are taken anew
        self._file = open(plan.out / "learning_curve.csv", "w", newline="")
        self._csv = csv.writer(self._file)
        self._csv.writerow(self.columns)
        for row in self.rows:
            self._csv.writerow(_cells(row))
        self._flush()
        self._writer = _tensorboard(plan.out) if plan.log else None
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("steps  {task.fields[speed]:,.0f}/s  return {task.fields[mean_return]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            disable=not (plan.progress and self._console.is_terminal),
        )
        self._task = self._bar.add_task(
            plan.env_id, total=plan.timesteps, completed=self.steps, speed=0.0, mean_return="-"
        )
        self._bar.start()
        self._begun = self._saved = self._said = self._last = time.perf_counter()
        self._last_steps = self._first_steps = self.steps
        self.stopping = False
        self._handler: Any = None
        if (
            threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        ):
            self._handler = signal.signal(signal.SIGINT, self._ask_to_stop)
        return self

    def _ask_to_stop(self, *signal_and_frame: object) -> None:
        """What Ctrl-C does: the first one lets the update come to its end, where the state is whole and is saved."""
        if self.stopping:
            raise KeyboardInterrupt
        self.stopping = True
        self._console.print("stopping after this update; Ctrl-C again stops at once", highlight=False)

    def _flush(self) -> None:
        try:
            self._file.flush()
        except OSError as error:
            raise OutputError(f"{self._file.name} cannot be written: {error.strerror}") from error

    def __exit__(self, *exc: object) -> None:
        if self._handler is not None:
            signal.signal(signal.SIGINT, self._handler)
        self._bar.stop()
        with contextlib.suppress(OSError):  # each row was written, or told of, when it was made
            self._file.close()
        if self._writer is not None:
            self._writer.close()
        self.env.close()

    @property
    def wall_s(self) -> float:
        """Seconds of training so far, earlier parts of a resumed run included."""
        return self.earlier_s + time.perf_counter() - self._begun

    @property
    def finished(self) -> bool:
        """True once all steps of the plan were taken."""
        return self.steps >= self.plan.timesteps

    def say(self, line: str) -> None:
        """Print a line of progress, if progress is wanted."""
        if self.plan.progress:
            self._console.print(f"{self.plan.env_id}: {line}", highlight=False, soft_wrap=True)

    def record(self, values: Mapping[str, float]) -> None:
        """Add a row to the learning curve (columns that are missing stay empty) and show progress."""
        now = time.perf_counter()
        speed = (self.steps - self._last_steps) / max(now - self._last, 1e-9)
        self._last, self._last_steps = now, self.steps
        row = {"steps": float(self.steps), "wall_s": self.wall_s, "steps_per_s": speed, **values}
        for name in ("policy_loss", "value_loss"):
            if not math.isfinite(row.get(name, 0.0)):
                raise LlmgymError(
                    f"training diverged: {name} is {row[name]} after {self.steps:,} steps; try a smaller learning_rate or clip"
                    + (f". The last checkpoint is kept: {self.path}" if self.path.exists() else "")
                )
        self.rows.append([float(row.get(name, math.nan)) for name in self.columns])
        self._csv.writerow(_cells(self.rows[-1]))
        self._flush()
        if self._writer is not None:
            for name, value in row.items():
                if name != "steps" and not math.isnan(value):
                    self._writer.add_scalar(name, value, self.steps)
        if not math.isnan(row.get("return_mean", math.nan)):
            self._last_return = row["return_mean"]
        shown = "-" if math.isnan(self._last_return) else f"{self._last_return:.4g}"
        self._bar.update(self._task, completed=self.steps, speed=speed, mean_return=shown)
        if self.plan.progress and not self._console.is_terminal and now - self._said > PLAIN_LINE_EVERY_S:
            self._said = now
            overall = (self.steps - self._first_steps) / max(now - self._begun, 1e-9)
            left_s = (self.plan.timesteps - self.steps) / max(overall, 1e-9)
            self._console.print(
                f"{self.plan.env_id}: {self.steps:,} of {self.plan.timesteps:,} steps, {speed:,.0f}/s, "
                f"return {shown}, about {left_s:,.0f} s left",
                highlight=False,
                soft_wrap=True,
            )

    def end_update(self, state: Callable[[], Mapping[str, Any]], last: bool) -> None:
        """Save if it is time, after the last update, and before a stop that was asked for.

        Raises:
            KeyboardInterrupt: Ctrl-C was pressed during the update.
        """
        if last or self.stopping or time.perf_counter() - self._saved >= self.plan.save_every_s:
            self.save(state())
        if self.stopping:
            raise KeyboardInterrupt

    def save(self, state: Mapping[str, Any]) -> None:
        """Write a checkpoint: the trainer's `model`, `optimizer`, `normaliser` and `rng`, and all that this run knows."""
        plan = self.plan
        meta = {
            "name": plan.out.resolve().name,
            "algo": plan.algo,
            "env_id": plan.env_id.rpartition(":")[2],
            "env_module": plan.env_id.rpartition(":")[0],
            "env_kwargs": dict(plan.env_kwargs),
            "interface": self.interface,
            "layout": self.env.layout.signature(),
            "action_space": checkpoint.describe_space(self.env.single_action_space),
            "config": plan.config.to_dict(),
            "seed": int(plan.seed),
            "lanes": int(plan.lanes),
            "steps": self.steps,
            "timesteps": int(plan.timesteps),
            "wall_s": self.wall_s,
            "llmgym_version": __version__,
            "torch_version": str(torch.__version__),
            "written": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "curve_columns": self.columns,
        }
        curve = torch.tensor(self.rows, dtype=torch.float64).reshape(-1, len(self.columns))
        checkpoint.save(self.path, {"meta": meta, "curve": curve, **state})
        self._saved = time.perf_counter()

    def result(self) -> TrainingResult:
        """What the run leaves."""
        rows = np.array(self.rows, dtype=np.float64).reshape(-1, len(self.columns))
        spent = time.perf_counter() - self._begun
        seconds = {**self.seconds, "other": spent - sum(self.seconds.values())}
        curve = {name: rows[:, index] for index, name in enumerate(self.columns)}
        return TrainingResult(self.path, self.steps, self.wall_s, curve, seconds)


class Episodes:
    """Sums returns, lengths and metrics of the lanes' running episodes, and averages those that ended.

    Args:
        lanes: number of lanes.
        metrics: names of the episode metrics.
    """

    def __init__(self, lanes: int, metrics: Sequence[str]) -> None:
        self.returns = np.zeros(lanes)
        self.lengths = np.zeros(lanes, np.int64)
        self.names = tuple(metrics)
        self.clear()

    def clear(self) -> None:
        """Forget the episodes that ended."""
        self._returns: list[NDArray[np.float64]] = []
        self._lengths: list[NDArray[np.int64]] = []
        self._metrics: list[NDArray[np.float64]] = []

    def step(
        self, rewards: NDArray[np.float64], ended: NDArray[np.bool_], metrics: NDArray[np.float64]
    ) -> None:
        """Take in one step of all lanes.

        Args:
            rewards: of the step, float64 [lanes].
            ended: which episodes ended with it, bool [lanes].
            metrics: of the episodes, float64 [lanes, metrics]; only rows of those that ended are read.
        """
        self.returns += rewards
        self.lengths += 1
        if ended.any():
            self._returns.append(self.returns[ended])
            self._lengths.append(self.lengths[ended])
            self._metrics.append(metrics[ended])
            self.returns[ended] = 0.0
            self.lengths[ended] = 0

    def drop(self, lanes: NDArray[np.bool_]) -> None:
        """Forget the running episodes of these lanes: they were stopped from outside."""
        self.returns[lanes] = 0.0
        self.lengths[lanes] = 0

    def averages(self) -> dict[str, float]:
        """Columns of the learning curve for the episodes that ended since `clear`; only `episodes` if there are none."""
        if not self._returns:
            return {"episodes": 0.0}
        returns = np.concatenate(self._returns)
        row = {
            "episodes": float(len(returns)),
            "return_mean": float(returns.mean()),
            "return_std": float(returns.std()),
            "episode_steps": float(np.concatenate(self._lengths).mean()),
        }
        metrics = np.concatenate(self._metrics)
        known = np.isfinite(metrics)  # a metric has no value where there was nothing to take it of
        with np.errstate(invalid="ignore"):
            means = np.where(known, metrics, 0.0).sum(axis=0) / known.sum(axis=0)
        return row | dict(zip(self.names, means.tolist()))


EPISODE_COLUMNS = ("episodes", "return_mean", "return_std", "episode_steps")


def _cells(row: Sequence[float]) -> list[str]:
    return ["" if math.isnan(value) else f"{value:.10g}" for value in row]


def _tensorboard(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingExtra("logging for tensorboard", "train") from error
    return SummaryWriter(str(folder))
