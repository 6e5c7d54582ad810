"""The folder of a training run: its environment, learning curve, checkpoints, progress and log, whoever trains in it.

out/checkpoint.pt            the newest checkpoint
out/checkpoint.previous.pt   the one before it
out/best.pt                  the one that was best on the worlds of the validation
out/learning_curve.csv       one row an update
out/events.out.tfevents.*    tensorboard, where asked for
"""

import contextlib
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
from llmgym.errors import CheckpointError, InvalidArgument, LlmgymError, UnknownName
from llmgym.policies import checkpoint
from llmgym.policies.callbacks import CsvLogger, Logger, TensorboardLogger
from llmgym.policies.config import Plan
from llmgym.policies.learned import policy_of
from llmgym.policies.validation import mean_return
from llmgym.version import __version__

PLAIN_LINE_EVERY_S = 10.0
"""Where stderr is no terminal, progress is one line this often."""

CHECKSUM = "world_checksum"
"""A metric that tells worlds apart; its mean means nothing."""


VALIDATION = "validation_return"
"""Column of the learning curve: mean return on the worlds of the validation, empty where there was none."""

VALIDATIONS = 20
"""Validations of a run, where the plan does not say how often."""


class TrainingResult(NamedTuple):
    """What a finished run leaves.

    Attributes:
        checkpoint: path of the newest checkpoint; `llmgym.policies.load` takes it.
        best: path of the checkpoint that was best on the worlds of the validation; the newest one where there was none.
        validation_return: mean return of that one there; NaN where there was none.
        steps: environment steps over all lanes, earlier parts of a resumed run included.
        wall_s: seconds of training, earlier parts included.
        curve: the learning curve, float64 [updates] by column name.
        seconds: where the time of this part went: `env`, `inference`, `learning`, `validation` and `other`.
    """

    checkpoint: Path
    best: Path
    validation_return: float
    steps: int
    wall_s: float
    curve: dict[str, NDArray[np.float64]]
    seconds: dict[str, float]


def make_lanes(
    env_id: str, lanes: int, env_kwargs: Mapping[str, Any], device: str = "cpu", threads: int = 1
) -> LaneVectorEnv:
    """Make the native vector environment a policy is trained on, in `SAME_STEP` mode and without copies.

    Args:
        env_id: a registered id.
        lanes: number of lanes.
        env_kwargs: arguments of the environment, plain values by name.
        device: where the lanes live.
        threads: that step them, on the CPU.

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
    where: dict[str, Any] = {"threads": threads} if device == "cpu" else {"device": device}
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


OWN_KWARGS = frozenset({"num_envs", "autoreset_mode", "copy", "device", "threads"})
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

    A trainer calls `start` before the first step, `stepped` after each, `rolled_out` before it learns, and `end_update` after it.

    Args:
        plan: what was asked for.
        columns: of the learning curve, after `steps`, `wall_s` and `steps_per_s`.

    Attributes:
        env: the lanes to train on.
        steps: environment steps done so far.
        stored: the checkpoint to resume from, or None.
        state: gives what a checkpoint stores of the networks and the optimizer; `start` sets it.
        seconds: wall time spent in `env`, `inference`, `learning` and `validation`; the trainer adds to the first three.
        best_return: the best mean return on the worlds of the validation so far.
        saving: called before the newest checkpoint is written, for what a trainer keeps beside it.
    """

    state: Callable[[], Mapping[str, Any]]

    def __init__(self, plan: Plan, columns: Sequence[str]) -> None:
        self.plan = plan
        self.path = output_folder("out", plan.out) / "checkpoint.pt"
        self.best_path = plan.out / "best.pt"
        self.stored: dict[str, Any] | None = None
        if plan.resume:
            if not self.path.exists():
                raise CheckpointError(f"no such file: {self.path}, so there is nothing to resume")
            self.stored = checkpoint.load_latest(self.path)
        elif self.path.exists():
            raise InvalidArgument(f"{plan.out} already holds a run: resume it, or choose another folder")
        threads = max(1, plan.config.threads)
        self.env = make_lanes(plan.env_id, plan.lanes, plan.env_kwargs, plan.config.env_device, threads)
        own = ["steps", "wall_s", "steps_per_s", *columns]
        # a metric that has the name of a column is left out
        metrics = [name for name in self.env.simulation.metric_names if name not in (*own, CHECKSUM)]
        self.columns = [*own, *metrics, VALIDATION]
        self.steps, self.earlier_s = 0, 0.0
        self.rows: list[list[float]] = []
        self.best_return, self.stale = -math.inf, 0
        if self.stored is not None:
            self._restore(self.stored["meta"], self.stored["curve"])
        self._worlds = None
        if plan.validation_episodes:
            self._worlds = make_lanes(plan.env_id, plan.validation_episodes, plan.env_kwargs, threads=threads)
        updates = -(-plan.timesteps // (plan.config.rollout_steps * plan.lanes))
        self._validate_every = plan.validate_every or max(1, updates // VALIDATIONS)
        self._ended = False
        self.saving: Callable[[], None] = lambda: None
        self.interface = interface_kwargs(self.env, plan.env_id, plan.env_kwargs)
        self.seconds = {"env": 0.0, "inference": 0.0, "learning": 0.0, "validation": 0.0}
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
        checkpoint.check_network(meta, plan.config, str(self.path), "resume with that")
        self.steps, self.earlier_s = int(meta["steps"]), float(meta["wall_s"])
        for row in curve.tolist():
            known = dict(zip(meta["curve_columns"], row))
            self.rows.append([known.get(name, math.nan) for name in self.columns])
        self.stale = int(meta.get("stale", 0))
        if plan.patience and self.stale >= plan.patience:  # it had ended for that, and is to go on
            self.stale = 0
        if not (plan.validation_episodes and self.best_path.is_file()):
            return
        with contextlib.suppress(CheckpointError):  # a damaged one is replaced by the next validation
            best = checkpoint.load(self.best_path)["meta"]
            if best.get("validation_episodes") == plan.validation_episodes:
                self.best_return = float(best["best_return"])

    def __enter__(self) -> "Run":
        plan = self.plan
        plan.out.mkdir(parents=True, exist_ok=True)
        # rows after the checkpoint belong to steps that are taken anew
        self._loggers: list[Logger] = [CsvLogger(plan.out / "learning_curve.csv", self.columns, self.rows)]
        if plan.log:
            self._loggers.append(TensorboardLogger(plan.out))
        self._loggers += plan.loggers
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

    def __exit__(self, *exc: object) -> None:
        if self._handler is not None:
            signal.signal(signal.SIGINT, self._handler)
        self._bar.stop()
        for logger in self._loggers:
            with contextlib.suppress(OSError):  # each row was written, or told of, when it was made
                logger.close()
        self.env.close()
        if self._worlds is not None:
            self._worlds.close()

    @property
    def wall_s(self) -> float:
        """Seconds of training so far, earlier parts of a resumed run included."""
        return self.earlier_s + time.perf_counter() - self._begun

    @property
    def finished(self) -> bool:
        """True once all steps of the plan were taken, a callback has ended it, or the policy no longer gets better."""
        return self._ended or self.steps >= self.plan.timesteps

    def start(self, state: Callable[[], Mapping[str, Any]]) -> None:
        """Begin, with what gives a checkpoint's `model`, `optimizer`, `normaliser` and `rng`."""
        self.state = state
        for callback in self.plan.callbacks:
            callback.on_training_start(self)

    def stepped(self) -> None:
        """Tell of a step of all lanes."""
        for callback in self.plan.callbacks:
            self._obey(callback.on_step(self))

    def rolled_out(self) -> None:
        """Tell that all steps of an update were taken."""
        for callback in self.plan.callbacks:
            self._obey(callback.on_rollout_end(self))

    def _obey(self, said: bool | None) -> None:
        self._ended = self._ended or said is False

    def say(self, line: str) -> None:
        """Print a line of progress, if progress is wanted."""
        if self.plan.progress:
            self._console.print(f"{self.plan.env_id}: {line}", highlight=False, soft_wrap=True)

    def record(self, values: Mapping[str, float]) -> dict[str, float]:
        """Add a row to the learning curve and show progress.

        Args:
            values: by column; those that are missing, or NaN, stay empty.

        Returns:
            The row by column, without those that are empty.

        Raises:
            LlmgymError: the losses are not finite.
        """
        now = time.perf_counter()
        speed = (self.steps - self._last_steps) / max(now - self._last, 1e-9)
        self._last, self._last_steps = now, self.steps
        row = {**values, "steps": float(self.steps), "wall_s": self.wall_s, "steps_per_s": speed}
        for name in ("policy_loss", "value_loss"):
            if not math.isfinite(row.get(name, 0.0)):
                raise LlmgymError(
                    f"training diverged: {name} is {row[name]} after {self.steps:,} steps; try a smaller learning_rate or clip"
                    + (f". The last checkpoint is kept: {self.path}" if self.path.exists() else "")
                )
        self.rows.append([float(row.get(name, math.nan)) for name in self.columns])
        told = {name: value for name, value in row.items() if not math.isnan(value)}
        for logger in self._loggers:
            logger.write(told)
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
        return told

    def end_update(self, values: Mapping[str, float], last: bool = False) -> None:
        """Validate if it is time, add a row to the learning curve, and save if it is time or the last update.

        Args:
            values: the row, by column.
            last: whether this update is the last one, whatever `finished` says.

        Raises:
            KeyboardInterrupt: Ctrl-C was pressed during the update.
        """
        better, found = False, {}
        over = last or self.finished
        if self._worlds is not None and (over or (len(self.rows) + 1) % self._validate_every == 0):
            found[VALIDATION] = self._validate()
            better = found[VALIDATION] > self.best_return
            self.stale = 0 if better else self.stale + 1
        row = self.record({**values, **found})
        if better:
            self.best_return = found[VALIDATION]
            self._save(self.best_path, keep=False)
        elif found and self.plan.patience and self.stale >= self.plan.patience:
            self._ended = True
            self.say(
                f"no better in {self.stale} validations: the training ends, the best return was {self.best_return:.4g}"
            )
        for callback in self.plan.callbacks:
            self._obey(callback.on_update(self, row))
        over = last or self.finished
        if over or self.stopping or time.perf_counter() - self._saved >= self.plan.save_every_s:
            self.saving()
            self._save(self.path)
            self._saved = time.perf_counter()
        if self.stopping:
            raise KeyboardInterrupt
        if over:
            for callback in self.plan.callbacks:
                callback.on_training_end(self)

    def _validate(self) -> float:
        """Mean return of the policy as it is now, the most likely action taken, on the worlds of the validation."""
        assert self._worlds is not None
        began = time.perf_counter()
        state = self.state()
        model = {name: weights.cpu() for name, weights in state["model"].items()}
        policy = policy_of({**state, "model": model, "meta": self.meta()}, self._worlds.simulation, "now")
        value = mean_return(policy, self._worlds)
        self.seconds["validation"] += time.perf_counter() - began
        return value

    def meta(self) -> dict[str, Any]:
        """What a checkpoint says about the run so far."""
        plan = self.plan
        return {
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
            "save_every_s": float(plan.save_every_s),
            "init": plan.init,
            "validation_episodes": int(plan.validation_episodes),
            "validate_every": int(plan.validate_every),
            "patience": int(plan.patience),
            "stale": self.stale,
            "best_return": self.best_return,
            "llmgym_version": __version__,
            "torch_version": str(torch.__version__),
            "written": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "curve_columns": self.columns,
        }

    def _save(self, path: Path, keep: bool = True) -> None:
        """Write a checkpoint of all that the trainer and this run know; `keep` says whether the one before it is kept."""
        curve = torch.tensor(self.rows, dtype=torch.float64).reshape(-1, len(self.columns))
        checkpoint.save(path, {"meta": self.meta(), "curve": curve, **self.state()}, keep=keep)

    def result(self) -> TrainingResult:
        """What the run leaves."""
        rows = np.array(self.rows, dtype=np.float64).reshape(-1, len(self.columns))
        spent = time.perf_counter() - self._begun
        seconds = {**self.seconds, "other": spent - sum(self.seconds.values())}
        curve = {name: rows[:, index] for index, name in enumerate(self.columns)}
        validated = math.isfinite(self.best_return) and self.best_path.is_file()
        best = (self.best_path, self.best_return) if validated else (self.path, math.nan)
        return TrainingResult(self.path, *best, self.steps, self.wall_s, curve, seconds)
