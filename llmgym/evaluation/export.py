"""Results as CSV files: every episode, and a summary of every metric."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from llmgym.errors import InvalidArgument
from llmgym.evaluation.results import Results
from llmgym.evaluation.rollout import RETURN

_POLICY = ("policy", "kind", "privileged", "other_world")
_SUMMARY = (
    *(*_POLICY, "metric", "better", "episodes"),
    *("mean", "mean_low", "mean_high", "iqm", "iqm_low", "iqm_high", "median", "std", "min", "max"),
    *("reference", "difference", "difference_low", "difference_high"),
    *("p_better", "p_better_low", "p_better_high", "p_wilcoxon", "p_sign", "p_holm", "verdict"),
)


def output_path(path: str | Path, suffixes: Sequence[str]) -> Path:
    """The path to write to, its folder made. Raises `InvalidArgument` for a folder or another suffix."""
    target = Path(path)
    if target.suffix.lower() not in suffixes or target.is_dir():
        raise InvalidArgument(f"path={str(path)!r}: expected a file that ends in {', '.join(suffixes)}")
    target.parent.mkdir(parents=True, exist_ok=True)
    return target


def write_csv(comparison: Results, path: str | Path) -> tuple[Path, Path]:
    """Write a row an episode to `path`, a row a policy and metric to `<name>-summary.csv` beside it, the best of a metric first.

    A metric without a value is `nan`, which every reader of CSV files knows.
    """
    target = output_path(path, (".csv",))
    summary = target.with_name(f"{target.stem}-summary{target.suffix}")
    names = list(next(iter(comparison.tables.values())).metrics)
    header = [*_POLICY, "seed", RETURN, "steps", "simulated_s", "terminated", "truncated", *names]
    _write(target, header, _episodes(comparison, names))
    _write(summary, _SUMMARY, _summaries(comparison))
    return target, summary


def _write(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def _episodes(comparison: Results, names: Sequence[str]) -> Iterable[list[Any]]:
    for policy in comparison.policies:
        table = comparison.tables[policy]
        columns = [table.seeds, table.returns, table.steps, table.simulated_s]
        flags = [table.terminated.astype(int), table.truncated.astype(int)]
        lists = [column.tolist() for column in [*columns, *flags, *(table.metrics[name] for name in names)]]
        for cells in zip(*lists, strict=True):
            yield [policy, table.kind, int(table.privileged), table.other_world or "", *cells]


def _summaries(comparison: Results) -> Iterable[list[Any]]:
    for metric in (RETURN, *comparison.metric_names):
        differences = comparison.differences(metric)
        for policy in comparison.ranked(metric):
            table, summary = comparison.tables[policy], comparison.summary(policy, metric)
            row = [policy, table.kind, int(table.privileged), table.other_world or "", metric]
            row += [comparison.direction(metric) or "", summary.count]
            row += [summary.mean, *summary.mean_interval, summary.iqm, *summary.iqm_interval]
            row += [summary.median, summary.std, summary.low, summary.high, comparison.reference]
            if policy in differences:
                gap = differences[policy]
                row += [gap.mean, *gap.interval, gap.probability, *gap.probability_interval]
                row += [gap.p_wilcoxon, gap.p_sign, gap.p_holm, gap.verdict]
            else:
                row += [""] * 9 + ["reference"]
            yield row


def data(comparison: Results) -> dict[str, Any]:
    """A comparison as JSON has it: what was compared, the policies with the best first, and a record a policy and metric.

    The records have the columns of the summary that `write_csv` writes; times and other units are in the names of the metrics.
    """
    return {
        "environment": comparison.env_id,
        "arguments": comparison.env_kwargs,
        "episodes": comparison.episodes,
        "seeds": comparison.seeds,
        "confidence": comparison.confidence,
        "reference": comparison.reference,
        "policies": comparison.policies,
        "summary": [dict(zip(_SUMMARY, row, strict=True)) for row in _summaries(comparison)],
    }
