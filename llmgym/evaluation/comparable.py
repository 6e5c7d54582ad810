"""What can be compared: metrics and labels that fit together, and the same worlds for every policy."""

import re
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from llmgym.errors import InvalidArgument, UnknownName
from llmgym.evaluation.rollout import EpisodeTable

CHECKSUM = "world_checksum"
"""A metric of this name is a fingerprint of the world alone, so it must not depend on the policy."""

STRATA = ("scenario", "task")
"""Metrics of these names number groups of worlds; bootstrap samples are drawn within each group."""

PERCENTILE = re.compile(r"_p\d+_")
"""What names of percentiles have where that of the mean has `_mean_`."""


def check_metrics(metrics: Sequence[str], names: Sequence[str]) -> list[str]:
    """The metrics to show. Raises `UnknownName`, or `InvalidArgument` for a string or a repeated name."""
    if isinstance(metrics, str):
        raise InvalidArgument(f"metrics={metrics!r}: expected a list of names, such as [{metrics!r}]")
    for name in metrics:
        if name not in names:
            raise UnknownName("metric", name, names)
    if len(set(metrics)) < len(metrics):
        raise InvalidArgument(f"metrics={list(metrics)!r}: a name is given twice")
    return list(metrics)


def check_headline(headline: Mapping[str, str], names: Collection[str]) -> dict[str, str]:
    """The simulation's `headline_metrics`. Raises `InvalidArgument` where they do not fit its metrics."""
    for name, direction in headline.items():
        if name not in names or direction not in ("min", "max"):
            raise InvalidArgument(
                f"headline_metrics[{name!r}]={direction!r}: expected 'min' or 'max' for one of {list(names)}"
            )
    return dict(headline)


def with_means(headline: Mapping[str, str], names: Collection[str]) -> dict[str, str]:
    """A headline with the mean beside each percentile, in front of the first one, where there is such a metric.

    Args:
        headline: "min" or "max" of metrics; percentiles are named as `ttft_p99_s` is.
        names: of all metrics; the mean of `ttft_p99_s` is `ttft_mean_s`.
    """
    found: dict[str, str] = {}
    for name, direction in headline.items():
        mean = PERCENTILE.sub("_mean_", name)
        if mean != name and mean in names and mean not in headline:
            found.setdefault(mean, direction)
        found[name] = direction
    return found


def check_labels(labels: Sequence[str]) -> None:
    """Raise `InvalidArgument` if two policies have one label."""
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise InvalidArgument(
            f"policies: {twice} more than once; a dict of label -> policy tells objects of one name apart"
        )


def check_same_metrics(a: str, names: Collection[str], b: str, other: Collection[str]) -> None:
    """Check that the environments of two policies report metrics of the same names.

    Args:
        a: label of a policy.
        names: of the metrics that its environment reports.
        b: label of the other policy.
        other: names of the metrics that the environment of `b` reports.

    Raises:
        InvalidArgument: a metric is in one of them only.
    """
    if set(names) != set(other):
        raise InvalidArgument(
            f"policies {a!r} and {b!r} act in environments with other metrics: "
            f"{sorted(set(names) ^ set(other))} in one only"
        )


def check_worlds(tables: Sequence[EpisodeTable]) -> None:
    """Raise `InvalidArgument` if two policies met other worlds on one seed."""
    first = tables[0]
    for name in (CHECKSUM, *STRATA):
        for table in tables[1:] if name in first.metrics else ():
            a, b = first.metrics[name], table.metrics[name]
            other = np.flatnonzero((a != b) & ~(np.isnan(a) & np.isnan(b)))
            if len(other):
                row = int(other[0])
                raise InvalidArgument(
                    f"policies {first.policy!r} and {table.policy!r} met other worlds "
                    f"on seed {first.seeds[row]} ({name} {a[row]} and {b[row]}), so they do not pair up; "
                    f"environment arguments {dict(first.env_kwargs)!r} and {dict(table.env_kwargs)!r}"
                )
