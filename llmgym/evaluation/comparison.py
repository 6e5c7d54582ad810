"""What episodes on the same worlds say about the policies that ran them: a `Comparison` says who wins."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmgym.core.checks import whole
from llmgym.errors import InvalidArgument, UnknownName
from llmgym.evaluation import statistics
from llmgym.evaluation.comparable import (
    CHECKSUM,
    STRATA,
    check_headline,
    check_labels,
    check_metrics,
    check_same_metrics,
    check_worlds,
    with_means,
)
from llmgym.evaluation.contenders import BASELINE
from llmgym.evaluation.export import write_csv
from llmgym.evaluation.results import NO_VERDICT, Difference, Summary
from llmgym.evaluation.rollout import RETURN, EpisodeTable
from llmgym.evaluation.room_result import RoomResult
from llmgym.evaluation.statistics import NOTHING, Interval, Paired
from llmgym.evaluation.tables import ResultTable, estimate, number, p_value

FEW = 10
"""Below this many episodes the tables warn."""


class Comparison:
    """Episodes of several policies on the same worlds, and what they say.

    Args:
        tables: episodes of each policy, all of the same environment and the same seeds.
        metrics: names of the metrics of the main table; None for the environment's headline metrics.
        confidence: confidence of all intervals, between 0 and 1.
        env_kwargs: arguments that all environments had in common; what a policy added is in its table.
        room: what there is to win in this environment; None: the tables do not tell shares of it.

    Raises:
        InvalidArgument: room of another environment, no tables, fewer than 2 episodes, two of one name, other seeds or
            environments, or other worlds (`world_checksum`, `scenario` or `task` differ between policies on one seed).
        UnknownName: a metric the environment does not report.
    """

    def __init__(
        self,
        tables: Sequence[EpisodeTable],
        *,
        metrics: Sequence[str] | None = None,
        confidence: float = 0.95,
        env_kwargs: Mapping[str, Any] | None = None,
        room: RoomResult | None = None,
    ) -> None:
        statistics.check_confidence(confidence)
        if not tables:
            raise InvalidArgument("tables=[]: expected the episodes of at least one policy")
        check_labels([table.policy for table in tables])
        first = tables[0]
        for table in tables:
            if table.env_id != first.env_id or not np.array_equal(table.seeds, first.seeds):
                raise InvalidArgument(
                    f"policies {first.policy!r} and {table.policy!r} ran different environments or seeds"
                )
            check_same_metrics(first.policy, first.metrics, table.policy, table.metrics)
        whole("episodes", len(first), 2)
        self.env_id = first.env_id
        self.env_kwargs = dict(env_kwargs or {})
        self.confidence = confidence
        self.room = room
        if room is not None:
            room.check(self.env_id, self.env_kwargs)
        self.seeds = first.seeds
        self.tables = {table.policy: table for table in tables}
        self.date = datetime.now(UTC).date().isoformat()
        self.headline = with_means(check_headline(first.headline, first.metrics), first.metrics)
        self.metric_names = [name for name in first.metrics if name not in (CHECKSUM, *STRATA)]
        self.shown = list(self.headline if metrics is None else check_metrics(metrics, self.metric_names))
        check_worlds(tables)
        self.strata = _strata(first)
        self._summaries: dict[tuple[str, str], Summary] = {}
        self._differences: dict[tuple[str, str], dict[str, Difference]] = {}
        self.policies = list(self.tables)
        self.policies = self.ranked()
        self.reference = self._find_reference()

    def ranked(self, metric: str = RETURN) -> list[str]:
        """The policies, the best by the mean of a metric first (the highest, where the environment does not say which is better).

        One that lacks values comes after those that lack fewer: a mean over some of the worlds is no match for one over all.

        Raises:
            UnknownName: no such metric.
        """
        sign = 1.0 if self.direction(self._measured(metric)) == "min" else -1.0

        def key(policy: str) -> tuple[int, float]:
            values = self.tables[policy].column(metric)
            known = values[np.isfinite(values)]
            return len(values) - len(known), sign * float(known.mean()) if len(known) else 0.0

        return sorted(self.policies, key=key)

    def _find_reference(self) -> str:
        """The best unprivileged baseline of the same world as the others; failing that, the best such policy.

        Where the observations show everybody what is hidden, the best baseline that saw no more than they show; else the best.
        """
        known = [name for name in self.policies if np.isfinite(self.tables[name].returns).any()]
        same = [name for name in known if self.tables[name].other_world is None]
        honest = [name for name in same if not self.tables[name].privileged]
        told = [name for name in same if not self.tables[name].clairvoyant]
        rules = [name for name in honest or told if self.tables[name].kind == BASELINE]
        return (rules or honest or told or same or known or self.policies)[0]

    @property
    def episodes(self) -> int:
        """Episodes a policy."""
        return len(self.seeds)

    def direction(self, metric: str) -> str | None:
        """Which is better, "max" or "min"; None where the environment does not say."""
        return "max" if metric == RETURN else self.headline.get(metric)

    def summary(self, policy: str, metric: str = RETURN) -> Summary:
        """One metric of one policy. Raises `UnknownName`."""
        key = (self._known(policy), self._measured(metric))
        if key not in self._summaries:
            self._summaries[key] = self._summarise(*key)
        return self._summaries[key]

    def mean(self, policy: str, metric: str = RETURN) -> tuple[float, Interval]:
        """The mean of one metric of one policy with its interval, which takes less time than the whole summary.

        Returns:
            NaN for both where fewer than 2 episodes have a value.

        Raises:
            UnknownName: no such policy or metric.
        """
        values = self.tables[self._known(policy)].column(self._measured(metric))
        kept = np.isfinite(values)
        if np.count_nonzero(kept) < 2:
            return math.nan, NOTHING
        strata = self._strata_of(kept)
        found = statistics.bootstrap(values[kept], confidence=self.confidence, strata=strata)
        return float(values[kept].mean()), found

    def differences(self, metric: str = RETURN, reference: str | None = None) -> dict[str, Difference]:
        """Every other policy minus `reference`, or the best unprivileged baseline. Raises `UnknownName`."""
        key = (self._measured(metric), self._known(self.reference if reference is None else reference))
        if key not in self._differences:
            self._differences[key] = self._compare(*key)
        return self._differences[key]

    def difference(self, policy: str, metric: str = RETURN, reference: str | None = None) -> Difference:
        """One policy minus the reference; its `verdict` says who wins.

        Args:
            policy: label of the policy.
            metric: name of a metric; "return" for the undiscounted return.
            reference: label of the other policy; None: the best unprivileged baseline.

        Returns:
            The difference over the worlds in which both have a finite value.

        Raises:
            UnknownName: no such policy or metric.
            InvalidArgument: the policy is the reference.
        """
        differences = self.differences(metric, reference)
        if self._known(policy) not in differences:
            raise InvalidArgument(
                f"policy={policy!r} is the reference itself; allowed: {sorted(differences)}"
            )
        return differences[policy]

    def beats(self, policy: str, reference: str | None = None, metric: str = RETURN) -> bool:
        """True if the policy is better and the interval of its difference to the reference excludes zero.

        Args:
            policy: label of the policy.
            reference: label of the other policy; None: the best unprivileged baseline.
            metric: name of a metric; "return" for the undiscounted return.

        Returns:
            True for the verdict `win` of the difference only; see `Difference`.

        Raises:
            UnknownName: no such policy or metric.
            InvalidArgument: the policy is the reference.
        """
        return self.difference(policy, metric, reference).verdict == "win"

    def table(self) -> ResultTable:
        """The main table: returns, paired differences, verdicts, means of the shown metrics; `print` it."""
        level = f"{100 * self.confidence:g}% CI"
        columns = ["policy", f"return [{level}]", "IQM", f"paired difference [{level}]", "p", "verdict"]
        columns += ["share of the room"] if self.room is not None else []
        columns += [f"{name}{ARROWS[self.direction(name)]}" for name in self.shown]
        differences = self.differences()
        rows = []
        for policy in self.policies:
            summary, difference = self.summary(policy), differences.get(policy)
            row = [self.marked(policy), estimate(summary.mean, summary.mean_interval), number(summary.iqm)]
            row += _difference_cells(difference)
            if self.room is not None:
                row.append("" if difference is None else self.room_share(difference))
            rows.append(row + [self._mean_cell(policy, name) for name in self.shown])
        made = f"{self.env_id}{in_brackets(self.env_kwargs)}"
        title = f"{made}: {self.episodes} paired episodes, seeds {self.seed_range}"
        return ResultTable(title, columns, rows, self._notes())

    def metric_table(self, metric: str = RETURN) -> ResultTable:
        """Everything about one metric, a row a policy. Raises `UnknownName`."""
        level = f"{100 * self.confidence:g}% CI"
        differences = self.differences(metric)
        columns = ["policy", f"mean [{level}]", f"IQM [{level}]", "median", "min", "max"]
        columns += [
            f"paired difference [{level}]",
            "p",
            "verdict",
            "P(better)" if self.direction(metric) else "P(higher)",
        ]
        rows, partial = [], []
        for policy in self.ranked(metric):
            summary, difference = self.summary(policy, metric), differences.get(policy)
            row = [
                self.marked(policy),
                estimate(summary.mean, summary.mean_interval),
                estimate(summary.iqm, summary.iqm_interval),
            ]
            row += [number(summary.median), number(summary.low), number(summary.high)]
            row += _difference_cells(difference)
            rows.append([*row, "" if difference is None else _share(difference.probability)])
            if summary.count < self.episodes:
                partial.append(f"{policy}: {summary.count} of {self.episodes} episodes have a value.")
        better = {"max": "higher is better", "min": "lower is better", None: "no better direction declared"}
        return ResultTable(f"{metric} ({better[self.direction(metric)]})", columns, rows, partial)

    def marked(self, policy: str) -> str:
        """The label, with † if the policy is privileged and ‡ if it plays another world."""
        table = self.tables[policy]
        marks = ["†"] * table.privileged + ["‡"] * (table.other_world is not None)
        return " ".join([policy, *marks])

    def room_share(self, difference: Difference) -> str:
        """The share of the room that a policy gets over the reference, as a cell; empty where there is none to tell."""
        if self.room is None:
            return ""
        share = self.room.share(difference.mean, self.tables[difference.reference].returns, self.seeds)
        if not difference.same_world:
            return ""
        return _share(share) if not share < -1.0 else "< -100%"

    def _mean_cell(self, policy: str, metric: str) -> str:
        """A mean, and over how many episodes where some have no value."""
        summary = self.summary(policy, metric)
        partial = f" ({summary.count}/{self.episodes})" if 0 < summary.count < self.episodes else ""
        return number(summary.mean) + partial

    @property
    def seed_range(self) -> str:
        """First and last seed."""
        return f"{self.seeds[0]}-{self.seeds[-1]}"

    def _notes(self) -> list[str]:
        differences = self.differences()
        compared = sum(difference.same_world for difference in differences.values())
        corrected = f", Holm-corrected for {compared} comparisons" if compared > 1 else ""
        notes = []
        if differences:
            notes.append(
                f"Paired difference: to {self.reference}, on the same worlds; "
                "win or lose: its interval excludes 0. "
                f"p: Wilcoxon signed-rank test{corrected}."
            )
        if self.room is not None:
            notes.append(self.room.note(self.reference))
        notes += self.marks()
        if any(0 < self.summary(p, name).count < self.episodes for p in self.policies for name in self.shown):
            notes.append(
                f"(n/{self.episodes}): only n of the episodes have a value, and the mean is over those; -: none has."
            )
        if self.strata is not None:
            notes.append(f"Intervals are stratified over {len(np.unique(self.strata))} kinds of worlds.")
        if self.episodes < FEW:
            notes.append(f"Only {self.episodes} episodes: take the intervals as rough, and run more.")
        return notes

    def marks(self) -> list[str]:
        """What † and ‡ mean here."""
        tables = list(self.tables.values())
        notes = []
        if any(table.privileged for table in tables):
            note = (
                "†: privileged, sees what a real scheduler cannot (true output lengths, future arrivals); "
                "it shows what knowing that is worth and is the reference only if no other policy is there."
            )
            if any(table.privileged_observation for table in tables):
                note += (
                    " Here the observations of the environment show it, to every policy that acts on them."
                )
            if all(table.privileged for table in tables):
                note += " All policies are: the reference is the best rule that sees no more than the observations."
            notes.append(note)
        others = {table.policy: table.other_world for table in tables if table.other_world is not None}
        if others:
            told = "; ".join(f"{policy}: {what}" for policy, what in others.items())
            note = f"‡: does not play the same world ({told}); it is not the reference and cannot win."
            if len(others) == len(tables):
                note = f"‡: no policy plays the world that was asked for ({told}); the reference is the best of them."
            notes.append(note)
        return notes

    def to_csv(self, path: str | Path) -> tuple[Path, Path]:
        """Write a row an episode to `path`, a row a policy and metric to `<name>-summary.csv` beside it."""
        return write_csv(self, path)

    def plot(self, path: str | Path, metric: str = RETURN) -> Path:
        """Draw one metric (intervals, episodes, differences) as PNG, SVG or PDF. Raises `UnknownName`."""
        from llmgym.evaluation.plots import save

        return save(self, path, self._measured(metric))

    def report(self, path: str | Path) -> Path:
        """Write one HTML file that needs nothing else: tables, pictures, versions, how to reproduce it."""
        from llmgym.evaluation.report import write_report

        return write_report(self, path)

    def _known(self, policy: str) -> str:
        if policy not in self.tables:
            raise UnknownName("policy of this comparison", policy, self.tables)
        return policy

    def _measured(self, metric: str) -> str:
        if metric != RETURN and metric not in self.metric_names:
            raise UnknownName("metric", metric, [RETURN, *self.metric_names])
        return metric

    def _strata_of(self, kept: NDArray[np.bool_]) -> NDArray[np.float64] | None:
        return None if self.strata is None else self.strata[kept]

    def _summarise(self, policy: str, metric: str) -> Summary:
        values = self.tables[policy].column(metric)
        kept = np.isfinite(values)
        values, nan = values[kept], math.nan
        count = len(values)
        if count < 2:
            return Summary(policy, metric, nan, NOTHING, nan, NOTHING, nan, nan, nan, nan, count)
        mean, mean_interval = self.mean(policy, metric)
        iqm_interval = statistics.bootstrap(
            values, statistics.iqm, confidence=self.confidence, strata=self._strata_of(kept)
        )
        return Summary(
            policy=policy,
            metric=metric,
            mean=mean,
            mean_interval=mean_interval,
            iqm=float(statistics.iqm(values)),
            iqm_interval=iqm_interval,
            median=float(np.median(values)),
            std=float(values.std(ddof=1)),
            low=float(values.min()),
            high=float(values.max()),
            count=count,
        )

    def _compare(self, metric: str, reference: str) -> dict[str, Difference]:
        direction = self.direction(metric)
        base = self.tables[reference].column(metric)
        measured: dict[str, Paired] = {}
        others = [policy for policy in self.policies if policy != reference]
        for policy in others:
            values = self.tables[policy].column(metric)
            kept = np.isfinite(values) & np.isfinite(base)
            if np.count_nonzero(kept) >= 2:
                difference = values[kept] - base[kept]
                measured[policy] = statistics.paired(
                    difference, confidence=self.confidence, strata=self._strata_of(kept)
                )
        world = self.tables[reference].other_world
        family = [policy for policy in measured if self.tables[policy].other_world == world]
        p_values = statistics.holm([measured[policy].p_wilcoxon for policy in family])
        corrected = dict(zip(family, p_values, strict=True))
        differences = {}
        for policy in others:
            paired = measured.get(policy, Paired())
            here = np.isfinite(self.tables[policy].column(metric))
            if direction == "min":
                better = paired.probability_interval.complement
                paired = replace(paired, probability=1.0 - paired.probability, probability_interval=better)
            differences[policy] = Difference(
                **vars(paired),
                policy=policy,
                reference=reference,
                metric=metric,
                direction=direction,
                p_holm=corrected.get(policy, math.nan),
                lacking=int(np.count_nonzero(np.isfinite(base) & ~here)),
                beyond=int(np.count_nonzero(here & ~np.isfinite(base))),
                same_world=self.tables[policy].other_world == world,
            )
        return differences


ARROWS = {"max": " ↑", "min": " ↓", None: ""}


def _difference_cells(difference: Difference | None) -> list[str]:
    if difference is None:
        return ["reference", "", ""]
    return [
        estimate(difference.mean, difference.interval, sign=True),
        p_value(difference.p_holm),
        "-" if difference.verdict == NO_VERDICT else difference.verdict,
    ]


def _share(probability: float) -> str:
    return "-" if math.isnan(probability) else f"{100 * probability:.0f}%"


def in_brackets(env_kwargs: Mapping[str, Any]) -> str:
    """Arguments as text, behind a blank and in brackets; "" where there are none."""
    return f" ({', '.join(f'{name}={value!r}' for name, value in env_kwargs.items())})" if env_kwargs else ""


def _strata(table: EpisodeTable) -> NDArray[np.float64] | None:
    columns = [table.metrics[name] for name in STRATA if name in table.metrics]
    if not columns:
        return None
    labels = np.unique(np.stack(columns, axis=1), axis=0, return_inverse=True)[1].astype(np.float64).ravel()
    return labels if len(np.unique(labels)) > 1 else None
