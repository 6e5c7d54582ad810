"""What may follow a training from outside: callbacks in the manner of stable-baselines3, and loggers.

class StopAt(Callback):
    def on_update(self, run, row):
        return not row["return_mean"] > 50.0

policies.train(Plan("llmgym/KVQueue-v0", Path("runs/mine"), callbacks=(StopAt(),)))
"""

import csv
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from llmgym.errors import MissingExtra, OutputError


class Training(Protocol):
    """What hooks see of a training.

    Attributes:
        plan: what was asked for, a `Plan`.
        env: the lanes, a `LaneVectorEnv`.
        path: of the newest checkpoint.
        steps: environment steps done so far.
        state: gives what a checkpoint stores of the networks and the optimizer.
    """

    plan: Any
    env: Any
    path: Path
    steps: int
    state: Callable[[], Mapping[str, Any]]


class Callback:
    """Hooks of a training; override those that you need.

    One that returns False ends the training as if its steps were over: after the update in which it did, with everything saved.
    `Training` says what they see of it.
    """

    def on_training_start(self, run: Training) -> None:
        """Before the first step; what is resumed has been restored."""

    def on_step(self, run: Training) -> bool | None:
        """After a step of all lanes."""
        return None

    def on_rollout_end(self, run: Training) -> bool | None:
        """After the steps of an update, before it is learned from."""
        return None

    def on_update(self, run: Training, row: Mapping[str, float]) -> bool | None:
        """After an update; `row` is that of the learning curve, without the columns that have no value."""
        return None

    def on_training_end(self, run: Training) -> None:
        """After the last checkpoint; not after an error."""


class Logger(Protocol):
    """Where the learning curve is written to."""

    def write(self, row: Mapping[str, float]) -> None:
        """Take a row: values by column, always with `steps`; columns without a value are missing."""

    def close(self) -> None:
        """Write what is left."""


class CsvLogger:
    """A table with one row an update, whose columns are known from the beginning.

    Args:
        path: file to write; what was there is lost.
        columns: names.
        rows: to begin with, each as long as the columns; NaN stays empty.

    Raises:
        OutputError: it cannot be written.
    """

    def __init__(self, path: Path, columns: Sequence[str], rows: Iterable[Sequence[float]] = ()) -> None:
        self._columns = columns
        self._file = open(path, "w", newline="")  # noqa: SIM115  closed by `close`
        self._csv = csv.writer(self._file)
        self._csv.writerow(columns)
        for row in rows:
            self._csv.writerow(["" if math.isnan(value) else f"{value:.10g}" for value in row])
        self._flush()

    def write(self, row: Mapping[str, float]) -> None:
        """Add a row; columns that are missing stay empty, others than the known ones are left out."""
        self._csv.writerow([f"{row[name]:.10g}" if name in row else "" for name in self._columns])
        self._flush()

    def _flush(self) -> None:
        try:
            self._file.flush()
        except OSError as error:
            raise OutputError(f"{self._file.name} cannot be written: {error.strerror}") from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class TensorboardLogger:
    """Files for tensorboard.

    Args:
        folder: where to.

    Raises:
        MissingExtra: tensorboard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingExtra("logging for tensorboard", "train") from error
        self._writer: Any = SummaryWriter(str(folder))

    def write(self, row: Mapping[str, float]) -> None:
        """Write every column but the steps as a scalar over them."""
        for name, value in row.items():
            if name != "steps":
                self._writer.add_scalar(name, value, int(row["steps"]))

    def close(self) -> None:
        """Close the files."""
        self._writer.close()
