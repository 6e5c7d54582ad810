"""A progress bar with an estimate of the time left, on stderr, silent where nobody watches."""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

REFRESH_S = 0.1


class Bar:
    """Counts the episodes of several policies.

    All lanes of an environment tend to end together, so counting ended episodes alone would jump from nothing to everything; the
    running ones are counted by their steps, against the longest episode seen so far.

    Args:
        policies: number of policies.
        episodes: of each policy.
        shown: whether there is a bar, where stderr is a terminal.
        longest: steps of the longest episode to expect; 0: nothing is known.
        shrinks: whether a step takes the less the later it is, as where the rest of the episode is played at each.
    """

    def __init__(
        self, policies: int, episodes: int, *, shown: bool, longest: int = 0, shrinks: bool = False
    ) -> None:
        console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not (shown and console.is_terminal),
        )
        self._task = self._progress.add_task("", total=policies * episodes)
        self._episodes = episodes
        self._before = -episodes
        self._longest, self._shrinks = longest, shrinks
        self._steps = 0
        self._updated_s = 0.0

    def __enter__(self) -> "Bar":
        self._progress.start()
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._progress.stop()

    def begin(self, label: str, before: int | None = None) -> None:
        """Episodes of a policy start, after so many that have ended; None: after all of those policies that began before."""
        self._before = self._before + self._episodes if before is None else before
        self._longest = max(self._longest, self._steps)
        self._progress.update(self._task, completed=self._before, description=label)

    def __call__(self, ended: int, running: int, steps: int) -> None:
        """Episodes of this policy that ended, episodes that run, and how many steps they have run."""
        self._steps = steps
        now = time.monotonic()
        if now - self._updated_s >= REFRESH_S or running == 0:
            self._updated_s = now
            passed = min(1.0, steps / self._longest) if self._longest else 0.0
            share = min(0.95, 1.0 - (1.0 - passed) ** 2 if self._shrinks else passed)
            self._progress.update(self._task, completed=self._before + ended + running * share)
