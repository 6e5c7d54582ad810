"""What a comparison says: one metric of one policy, a paired difference with its verdict, and what is written of both."""

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from llmgym.evaluation.rollout import RETURN, EpisodeTable
from llmgym.evaluation.statistics import Interval, Paired
from llmgym.evaluation.tables import ResultTable

OTHER_WORLD, NO_VERDICT = "other world", "n/a"
"""Verdicts that are none: the two policies did not play the same world; values are missing."""


@dataclass(frozen=True)
class Summary:
    """One metric of one policy over its episodes.

    Attributes:
        policy: label of the policy.
        metric: name of the metric; "return" for the undiscounted return.
        mean: mean over the episodes.
        mean_interval: bootstrap interval of the mean.
        iqm: interquartile mean over the episodes.
        iqm_interval: bootstrap interval of the interquartile mean.
        median: median over the episodes.
        std: sample standard deviation.
        low: smallest value.
        high: largest value.
        count: episodes in which the metric is finite; only those enter, and fewer than 2 give NaN.
    """

    policy: str
    metric: str
    mean: float
    mean_interval: Interval
    iqm: float
    iqm_interval: Interval
    median: float
    std: float
    low: float
    high: float
    count: int


@dataclass(frozen=True, kw_only=True)
class Difference(Paired):
    """A policy minus the reference, over the worlds in which both have a finite value.

    `probability` is the share of the worlds where the policy is better, or higher, if the environment does not say what is better.

    Attributes:
        policy: label of the policy.
        reference: label of the reference.
        metric: name of the metric; "return" for the undiscounted return.
        direction: "max" if higher is better, "min" if lower is, None if the environment does not say.
        p_holm: `p_wilcoxon`, corrected for all policies compared with this reference; NaN for one of another world.
        lacking: worlds in which only the reference has a finite value.
        beyond: worlds in which only the policy has a finite value.
        same_world: False if the two did not play the same world, so that neither can win.
    """

    policy: str
    reference: str
    metric: str
    direction: str | None
    p_holm: float = math.nan
    lacking: int = 0
    beyond: int = 0
    same_world: bool = True

    @property
    def verdict(self) -> str:
        """`win`, `lose`, `tie` (the interval contains zero); `higher`, `lower` where neither is better.

        `other world` where the two did not play the same one. `n/a` where there are no values to compare, and where one would be
        better only in the worlds in which it has a value: who serves nobody has no bad latency.
        """
        if not self.same_world:
            return OTHER_WORLD
        if math.isnan(self.mean):
            return NO_VERDICT
        if not self.interval.excludes_zero:
            return "tie"
        if self.direction is None:
            return "higher" if self.mean > 0 else "lower"
        better = (self.mean > 0) == (self.direction == "max")
        if (self.lacking if better else self.beyond) > 0:
            return NO_VERDICT
        return "win" if better else "lose"


class Results(Protocol):
    """What CSV files, pictures and the report read of a comparison; a `Comparison` is one, and its methods say more.

    Attributes:
        env_id: id of the environment.
        env_kwargs: arguments that all environments had in common.
        confidence: confidence of all intervals, between 0 and 1.
        seeds: seeds of the episodes, int64 [episodes].
        tables: episodes of each policy, by its label.
        date: date of the comparison, ISO.
        headline: "min" or "max" of the metrics that the environment declares as its headline, by name.
        metric_names: names of all metrics but those that describe the world.
        shown: names of the metrics of the main table.
        policies: labels of the policies, the best first.
        reference: label of the policy that the others are compared with.
    """

    env_id: str
    env_kwargs: dict[str, Any]
    confidence: float
    seeds: NDArray[np.int64]
    tables: dict[str, EpisodeTable]
    date: str
    headline: dict[str, str]
    metric_names: list[str]
    shown: list[str]
    policies: list[str]
    reference: str

    @property
    def episodes(self) -> int:
        """Episodes a policy."""

    @property
    def seed_range(self) -> str:
        """First and last seed."""

    def ranked(self, metric: str = RETURN) -> list[str]:
        """The policies, the best by the mean of a metric first."""

    def direction(self, metric: str) -> str | None:
        """Which is better, "max" or "min"; None where the environment does not say."""

    def summary(self, policy: str, metric: str = RETURN) -> Summary:
        """One metric of one policy."""

    def differences(self, metric: str = RETURN) -> dict[str, Difference]:
        """Every other policy minus the reference."""

    def marked(self, policy: str) -> str:
        """The label with its marks."""

    def table(self) -> ResultTable:
        """The main table."""

    def metric_table(self, metric: str = RETURN) -> ResultTable:
        """Everything about one metric."""
