"""All checks of one environment, one after the other, and the table of what they found."""

import io
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple
from unittest import SkipTest

import gymnasium
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from llmgym import baselines
from llmgym.core.checks import whole
from llmgym.core.env import LaneEnv, check_id
from llmgym.core.spec import find
from llmgym.errors import CheckFailed, InvalidArgument, LlmgymError
from llmgym.testing import hidden, invariants
from llmgym.testing.drive import MODES

PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"
SEEDS = (0, 20_001, 2**62 + 7)
RUNS = "it runs"
"""The first check of a case; where it fails, the others would say the same again."""
LANES = 4
"""Lanes that are compared with single environments."""


@dataclass(frozen=True)
class Result:
    """What one check found of one case.

    Attributes:
        check: what is checked.
        case: arguments it was checked with, by their short name; or a rule, an argument, or "" for the environment as a whole.
        status: `"passed"`, `"failed"` or `"skipped"`.
        reason: why it failed or was skipped, and what to do; "" if it passed.
        seconds: how long it took.
    """

    check: str
    case: str
    status: str
    reason: str
    seconds: float


@dataclass(frozen=True)
class Report:
    """What the test kit found of an environment; printing it gives the table.

    Attributes:
        env_id: the environment.
        results: one for each check and case.
    """

    env_id: str
    results: tuple[Result, ...]

    def of(self, status: str) -> tuple[Result, ...]:
        """The results of one status: `"passed"`, `"failed"` or `"skipped"`."""
        return tuple(result for result in self.results if result.status == status)

    @property
    def passed(self) -> bool:
        """Whether nothing failed."""
        return not self.of(FAILED)

    @property
    def summary(self) -> str:
        """One line of counts."""
        counts = ", ".join(f"{len(self.of(status))} {status}" for status in (PASSED, FAILED, SKIPPED))
        return f"{self.env_id}: {counts}, in {sum(result.seconds for result in self.results):.1f} s"

    def data(self) -> dict[str, Any]:
        """The same as numbers and texts, as JSON has them."""
        counts = {status: len(self.of(status)) for status in (PASSED, FAILED, SKIPPED)}
        return {"environment": self.env_id, **counts, "checks": [vars(one) for one in self.results]}

    def __rich__(self) -> Table:
        table = Table(title=self.summary, title_justify="left")
        for name in ("check", "case", "", "s", "why"):
            table.add_column(name, justify="right" if name == "s" else "left", overflow="fold")
        colour = {PASSED: "green", FAILED: "bold red", SKIPPED: "yellow"}
        for one in self.results:
            status = f"[{colour[one.status]}]{one.status}[/]"
            table.add_row(
                escape(one.check), escape(one.case), status, f"{one.seconds:.1f}", escape(one.reason)
            )
        return table

    def __str__(self) -> str:
        text = io.StringIO()
        Console(file=text, width=140).print(self)
        return text.getvalue()


class _Job(NamedTuple):
    check: str
    case: str
    run: Callable[[], Any]


def _jobs(
    env_id: str, module: str | None, cases: Mapping[str, Mapping[str, Any]], seeds: Sequence[int]
) -> Iterator[_Job]:
    """Every check of every case, in an order in which the first failure is the one to look at."""

    def seeded(function: Callable[..., None], kwargs: Mapping[str, Any]) -> Callable[[], None]:
        def run() -> None:
            for seed in seeds:
                function(env_id, kwargs, seed, (seed + 1) % 2**63)

        return run

    plain: tuple[tuple[str, Callable[..., None]], ...] = (
        (RUNS, invariants.it_runs),
        ("spaces and dtypes", invariants.spaces_and_types),
        ("gymnasium's checker", invariants.gymnasium_checker),
        ("audit", invariants.audit_is_told),
        ("metrics before anything happened", invariants.metrics_before_there_is_anything),
    )
    with_seeds: tuple[tuple[str, Callable[..., None]], ...] = (
        ("an episode: bounds, counts, clock, return", invariants.counts_time_bounds_and_return),
        ("same seed, same bits", invariants.same_seed_same_bits),
        ("unmasked actions accepted, masked ones safe", invariants.actions_accepted_or_safe),
        ("return with masked actions", invariants.return_with_masked_actions),
    )
    unseen: tuple[tuple[str, Callable[..., Any]], ...] = (
        ("what differs between worlds is declared", hidden.what_differs_is_declared),
        ("observations do not read what is hidden", hidden.observations_do_not_read_it),
        ("another future is another episode", hidden.another_future_is_another_episode),
        ("an episode goes on with another future", hidden.episode_goes_on_with_another_future),
    )
    lanes = [(seed + k) % 2**63 for k, seed in enumerate([*seeds] * LANES)][: max(LANES, len(seeds))]
    for case, kwargs in cases.items():
        for title, function in plain:
            yield _Job(title, case, partial(function, env_id, kwargs))
        for title, function in with_seeds:
            yield _Job(title, case, seeded(function, kwargs))
        for mode in MODES:
            yield _Job(
                f"a lane is the single environment ({mode.name})",
                case,
                partial(invariants.lane_is_single, env_id, kwargs, mode, lanes, seeds[0]),
            )
        for title, function in unseen:
            yield _Job(title, case, partial(function, env_id, kwargs))
    yield _Job("all that is hidden is drawn anew", "", partial(hidden.all_of_it_is_drawn_anew, env_id, cases))
    yield _Job(
        "another process, same bits", "", partial(invariants.another_process_same_bits, env_id, cases, module)
    )
    for argument, value in invariants.BAD_ARGUMENTS.items():
        yield _Job(
            "a bad argument is named",
            argument,
            partial(invariants.bad_argument_is_named, env_id, argument, value),
        )
    first = next(iter(cases.values()))
    for rule in baselines.names(env_id) if find(env_id) else ():
        yield _Job(
            "a rule does not read what is hidden",
            rule,
            partial(hidden.rule_does_not_read_it, env_id, rule, first),
        )


def _run(job: _Job) -> Result:
    start = time.perf_counter()
    status, reason = PASSED, ""
    try:
        job.run()
    except SkipTest as why:
        status, reason = SKIPPED, str(why)
    except AssertionError as error:
        status, reason = FAILED, str(error) or "an assertion of the environment's own failed"
    except LlmgymError as error:
        status, reason = FAILED, f"raises {type(error).__name__}: {error}"
    except Exception as error:  # whatever an environment of somebody else raises
        where = f" ({_where(error)})" if _where(error) else ""
        status, reason = FAILED, f"raises {type(error).__name__}{where}: {error}"
    return Result(job.check, job.case, status, reason, time.perf_counter() - start)


def _where(error: BaseException) -> str:
    """File and line in which an error was raised."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace is not None else ""


def check(
    env_id: str,
    *,
    cases: Mapping[str, Mapping[str, Any]] | None = None,
    seeds: Sequence[int] = SEEDS,
    progress: bool = True,
) -> Report:
    """Hold an environment to everything that the environments of this package are held to.

    Spaces and dtypes; the same seed gives the same bits, in another process too; a lane is the single environment, bit for bit, in
    all three autoreset modes; every unmasked action is accepted and a masked one is safe; audits add up and the return is its
    metric; metrics are finite or NaN; neither observations nor rules read what is hidden; bad arguments are named; gymnasium's
    checker agrees.

    Args:
        env_id: id of a registered environment; `module:id` if a module registers it.
        cases: arguments to make it with, a mapping from short names to keyword arguments; those of its `EnvSpec` if None. Cheap
            ones: each is played for thousands of steps.
        seeds: of the worlds of each check, each from 0 to 2**63 - 1.
        progress: show on stderr which check runs, where that is a terminal.

    Returns:
        The report; every check passed or was skipped with a reason.

    Raises:
        CheckFailed: something does not hold; its `report` has everything, its message what failed.
        UnknownName: no such environment.
        InvalidArgument: an argument is wrong, or the environment is none of lanes.
    """
    if not __debug__:
        raise InvalidArgument("python -O leaves out assertions, which the checks are made of: run without -O")
    name = check_id(env_id)
    if isinstance(seeds, str) or not isinstance(seeds, Sequence) or not seeds:
        raise InvalidArgument(f"seeds={seeds!r}: expected at least one whole number")
    for seed in seeds:
        whole("seeds", seed, 0, 2**63 - 1)
    if cases is None:
        spec = find(name)
        cases = spec.test_cases() if spec else {"default": {}}
    if not isinstance(cases, Mapping) or not cases or not all(isinstance(x, Mapping) for x in cases.values()):
        raise InvalidArgument(
            f"cases={cases!r}: expected a mapping from names to keyword arguments, at least one"
        )
    entry: Any = gymnasium.spec(name).entry_point
    entry = gymnasium.envs.registration.load_env_creator(entry) if isinstance(entry, str) else entry
    if not (isinstance(entry, type) and issubclass(entry, LaneEnv)):
        raise InvalidArgument(f"env_id={env_id!r}: its class is {entry!r}, not a llmgym.core.env.LaneEnv")
    module = str(env_id).rpartition(":")[0] or None
    jobs = list(_jobs(name, module, cases, [int(seed) for seed in seeds]))
    console = Console(stderr=True)
    columns = (TextColumn("{task.description:60}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    results = []
    shown = progress and console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=not shown) as bar:
        task = bar.add_task("", total=len(jobs))
        for job in jobs:
            bar.update(task, description=escape(f"{job.check} {job.case}"))
            results.append(_run(job))
            bar.advance(task)
            if job.check == RUNS and results[-1].status == FAILED:  # so would everything else
                break
    report = Report(name, tuple(results))
    if not report.passed:
        failed = [
            f"{one.check}{f' [{one.case}]' if one.case else ''}: {one.reason}" for one in report.of(FAILED)
        ]
        raise CheckFailed(name, len(results), failed, report)
    return report
