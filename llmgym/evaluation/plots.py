"""Pictures of a comparison.

Colours are those of Okabe and Ito, "Color universal design" (2008), which readers with any colour vision tell apart; the verdict
is in the marker's shape as well.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from llmgym.evaluation.export import output_path
from llmgym.evaluation.results import NO_VERDICT, OTHER_WORLD, Results
from llmgym.evaluation.rollout import RETURN

INK, GREY, PALE, BLUE, VERMILION = "#222222", "#6e6e6e", "#8a8a8a", "#0072b2", "#d55e00"
LOOKS = {
    "win": (BLUE, "^", "win"),
    "lose": (VERMILION, "v", "lose"),
    "higher": (BLUE, "^", "higher"),
    "lower": (VERMILION, "v", "lower"),
    "tie": (GREY, "o", "tie: contains 0"),
    NO_VERDICT: (PALE, "X", "no verdict: values are missing"),
    OTHER_WORLD: (PALE, "s", "another world: no verdict"),
}
WIDE = 50.0
"""Where everything together is this much wider than one policy, the axis is logarithmic beyond the middle."""

MAX_DOTS = 300
"""Most episodes drawn a policy; beyond this the dots are a blot."""

LABEL = 34
"""Longest policy name drawn, in characters."""

LINE = 26
"""Longest name that fits behind "Paired difference to" on one line."""


def save(comparison: Results, path: str | Path, metric: str) -> Path:
    """Draw the picture of a comparison to a file of the format its suffix names.

    Args:
        comparison: the policies compared.
        path: file to write; its folder is made. Ends in .png, .svg or .pdf.
        metric: name of the metric that is drawn.

    Returns:
        The path of the file.

    Raises:
        UnknownName: no such metric.
        InvalidArgument: the path is a folder, or has another suffix.
    """
    target = output_path(path, (".png", ".svg", ".pdf"))
    draw(comparison, metric).savefig(target, dpi=150)
    return target


def draw(comparison: Results, metric: str = RETURN) -> Figure:
    """A picture: on the left means and intervals over the dots of the episodes, best on top; on the right paired differences."""
    order = comparison.ranked(metric)
    alone = len(order) == 1
    figure = Figure(figsize=(11.5, 2.4 + 0.4 * max(2, len(order))), layout="constrained")
    FigureCanvasAgg(figure)
    widths = [1] if alone else [1.15, 1]
    axes = figure.subplots(1, len(widths), squeeze=False, sharey=True, width_ratios=widths)[0]
    handles = _levels(comparison, axes[0], order, metric)
    if not alone:
        handles += _differences(comparison, axes[1], order, metric)
    axes[0].set_yticks(range(len(order)), [_short(comparison.marked(policy)) for policy in order])
    axes[0].set_ylim(len(order) - 0.4, -0.6)
    for axis in axes:
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.tick_params(axis="y", length=0)
        axis.grid(axis="x", color="#e3e3e3", linewidth=0.8)
        axis.set_axisbelow(True)
        for row in range(0, len(order), 2):
            axis.axhspan(row - 0.5, row + 0.5, color="#f6f6f6", zorder=0, linewidth=0)
    title = (
        f"{comparison.env_id}: {comparison.episodes} paired episodes a policy, seeds {comparison.seed_range}"
    )
    figure.suptitle(title, fontsize=12, color=INK)
    columns = 5
    if any(table.privileged for table in comparison.tables.values()):
        handles.append(Line2D([], [], linestyle="", label="† privileged: sees what a real scheduler cannot"))
        columns = 6
    if any(table.other_world is not None for table in comparison.tables.values()):
        handles.append(Line2D([], [], linestyle="", label="‡ does not play the same world"))
        columns = math.ceil(len(handles) / 2)  # on one line they would be cut off at both ends
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=columns,
        fontsize=8.5,
        frameon=False,
        handlelength=1.6,
    )
    return figure


def _levels(comparison: Results, axis: Any, order: Sequence[str], metric: str) -> list[Line2D]:
    rng = np.random.default_rng(0)
    everything = []
    for row, policy in enumerate(order):
        values = comparison.tables[policy].column(metric)
        values = values[np.isfinite(values)]
        everything.append(values)
        dots = values[:MAX_DOTS]
        heights = row + rng.uniform(-0.28, 0.28, len(dots))
        axis.plot(dots, heights, "o", color=PALE, markersize=3, alpha=0.45, markeredgewidth=0, zorder=2)
        summary = comparison.summary(policy, metric)
        _interval(axis, row, summary.mean, summary.mean_interval, INK, "D")
        if not len(values):
            where = axis.get_yaxis_transform()
            axis.text(0.01, row, "- (no value)", transform=where, va="center", fontsize=9, color=GREY)
    told = [values for values in everything if len(values)]
    spreads = [float(np.subtract(*np.quantile(values, [0.9, 0.1]))) for values in told]
    sizes = [float(np.median(np.abs(values))) for values in told]
    _scale(axis, np.concatenate(everything), spreads, sizes)
    axis.set_xlabel(_axis_label(comparison, metric) + _log_note(axis))
    level = f"{100 * comparison.confidence:g}% interval"
    axis.set_title(f"Mean with {level}", fontsize=10.5, loc="left", color=INK)
    return [
        Line2D([], [], color=INK, marker="D", markersize=5, linewidth=2, label=f"mean and {level}"),
        Line2D([], [], color=PALE, marker="o", markersize=4, linestyle="", alpha=0.7, label="one episode"),
    ]


def _differences(comparison: Results, axis: Any, order: Sequence[str], metric: str) -> list[Line2D]:
    differences = comparison.differences(metric)
    ends, sizes = [0.0], []
    seen: dict[str, Line2D] = {}
    for row, policy in enumerate(order):
        if policy == comparison.reference or math.isnan(differences[policy].mean):
            continue
        difference = differences[policy]
        colour, marker, text = LOOKS[difference.verdict]
        _interval(axis, row, difference.mean, difference.interval, colour, marker)
        ends += difference.interval
        sizes.append(max(map(abs, difference.interval)))
        handle = Line2D([], [], color=colour, marker=marker, markersize=7, linewidth=2, label=text)
        seen[difference.verdict] = handle
    axis.axvline(0.0, color=INK, linewidth=1.0, zorder=1)
    row = order.index(comparison.reference)
    axis.plot([0.0], [row], "o", markersize=6, markerfacecolor="white", markeredgecolor=INK, zorder=4)
    # On the side where the axis has room.
    side = -1 if abs(min(ends)) > max(ends) else 1
    style = {"ha": "left" if side > 0 else "right", "va": "center", "fontsize": 9, "color": GREY}
    axis.annotate("reference", (0.0, row), xytext=(7 * side, 0), textcoords="offset points", **style)
    _scale(axis, np.array(ends), sizes, sizes)
    better = {"max": ", right is better", "min": ", left is better", None: ""}[comparison.direction(metric)]
    axis.set_xlabel(f"difference in {metric}{better}{_log_note(axis)}")
    name = _short(comparison.reference)
    gap = "\n" if len(name) > LINE else " "
    axis.set_title(f"Paired difference to{gap}{name}", fontsize=10.5, loc="left", color=INK)
    return [seen[verdict] for verdict in LOOKS if verdict in seen]


def _interval(axis: Any, row: int, value: float, interval: Any, colour: str, marker: str) -> None:
    if math.isfinite(value):
        line = {"linewidth": 2.4, "solid_capstyle": "butt", "zorder": 3}
        point = {"markersize": 6, "markeredgecolor": "white", "markeredgewidth": 0.7, "zorder": 4}
        axis.plot(interval, [row, row], color=colour, **line)
        axis.plot([value], [row], marker, color=colour, **point)


def _scale(axis: Any, values: Any, spreads: Sequence[float], sizes: Sequence[float]) -> None:
    """A symmetric logarithmic axis where a few policies would squeeze all others into one spot.

    Args:
        axis: to scale.
        values: everything drawn on it.
        spreads: of each policy, how far its own values lie apart.
        sizes: of each policy, how far from zero they typically are.
    """
    extent = float(np.ptp(values)) if len(values) else 0.0
    if extent <= WIDE * _lower_quartile(spreads, extent):
        return
    linear = _lower_quartile(sizes, extent)
    axis.set_xscale("symlog", linthresh=linear)
    below, above = _decades(-float(np.min(values)), linear), _decades(float(np.max(values)), linear)
    ticks = [*(-tick for tick in below), 0.0, *above]
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.minorticks_off()


def _lower_quartile(values: Sequence[float], otherwise: float) -> float:
    """Lower quartile of the positive values, itself one of them."""
    positive = [value for value in values if value > 0.0]
    return float(np.quantile(positive, 0.25, method="lower")) if positive else otherwise


def _decades(largest: float, linear: float) -> list[float]:
    """Round numbers up to `largest`, at most five and none so close to zero that labels would touch."""
    if largest < linear:
        return []
    low, high = math.floor(math.log10(linear)), math.floor(math.log10(largest))
    powers = [10.0**power for power in range(low, high + 1)]
    fine = [
        factor * power for power in powers for factor in (1, 2, 5) if 2 * linear <= factor * power <= largest
    ]
    coarse = [power for power in powers if 2 * linear <= power]
    ticks = fine if len(fine) <= 4 else coarse[:: math.ceil(len(coarse) / 5)]
    return ticks or [float(f"{largest:.0e}")]


def _log_note(axis: Any) -> str:
    return "\n(logarithmic beyond the middle)" if axis.get_xscale() == "symlog" else ""


def _axis_label(comparison: Results, metric: str) -> str:
    name = "return (undiscounted sum of rewards)" if metric == RETURN else metric
    better = {"max": ", higher is better", "min": ", lower is better", None: ""}[comparison.direction(metric)]
    return f"{name}{better}"


def _short(label: str) -> str:
    """The name, its middle cut out where it would not fit."""
    return label if len(label) <= LABEL else f"{label[: LABEL // 2 - 1]}…{label[-(LABEL // 2) :]}"
