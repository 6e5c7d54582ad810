"""Pictures of replays: latency against rate, and measured against predicted.

Colours are those of Okabe and Ito, "Color universal design" (2008), which readers with any colour vision tell apart.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llmgym.errors import InvalidArgument
from llmgym.serving.rates import KNEE_OF, AtRate

INK, GREY, BLUE, VERMILION, GREEN = "#222222", "#6e6e6e", "#0072b2", "#d55e00", "#009e73"
DECADE = 10.0
"""Times that spread over more than this ratio are drawn on a logarithmic axis."""
SUFFIXES = (".png", ".svg", ".pdf")


def check_picture(name: str, path: Path) -> None:
    """Raise `InvalidArgument` unless a path ends as a picture does."""
    if path.suffix.lower() not in SUFFIXES:
        raise InvalidArgument(f"{name}={str(path)!r}: expected a file that ends in {', '.join(SUFFIXES)}")


def _figure(panels: int, title: str) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6 * panels, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, panels)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(color="#e3e3e3", linewidth=0.8)
        axis.set_axisbelow(True)
    figure.suptitle(title, fontsize=12, color=INK)
    return figure, axes


def draw_rates(points: Sequence[AtRate], bend: int | None, title: str, slo: str | None, path: Path) -> None:
    """Draw latencies and throughput of a sweep against the rate, with the knee marked.

    Args:
        points: one for each rate, increasing.
        bend: position of the knee; None where there is none.
        title: of the picture.
        slo: the objective in words; None without one.
        path: file to write, see `SUFFIXES`.

    Raises:
        InvalidArgument: another suffix.
    """
    check_picture("path", path)
    figure, axes = _figure(3, title)
    rates = [point.rate_rps for point in points]
    for axis, name, label in zip(axes, ("ttft", "e2e"), ("first token, s", "end to end, s")):
        for key, colour, style in (("mean", INK, "-"), ("p50", BLUE, "--"), ("p99", VERMILION, ":")):
            values = [point.figures[f"{name}_{key}_s"] for point in points]
            axis.plot(rates, values, style, color=colour, marker="o", markersize=3, label=key)
        axis.set_yscale("log")
        axis.set_ylabel(label)
        axis.legend(frameon=False)
    last = axes[2]
    last.plot(rates, rates, color=GREY, linewidth=0.8, label="offered")
    last.plot(
        rates, [p.requests_per_s for p in points], color=BLUE, marker="o", markersize=3, label="finished"
    )
    if slo is not None:
        goodput = [point.goodput_rps for point in points]
        last.plot(rates, goodput, color=GREEN, marker="s", markersize=3, label=f"within {slo}")
    last.set_ylabel("requests/s")
    last.set_ylim(bottom=0.0)
    if bend is not None:
        for axis in axes:
            axis.axvline(rates[bend], color=GREY, linestyle="--", linewidth=1.0)
        axes[0].plot(rates[bend], points[bend].figures[KNEE_OF], "D", color=INK, markersize=8)
        axes[0].annotate(
            f"knee: {rates[bend]:g} requests/s",
            (rates[bend], points[bend].figures[KNEE_OF]),
            xytext=(-10, 6),
            textcoords="offset points",
            ha="right",
            fontsize=9,
            color=INK,
        )
    last.legend(frameon=False)
    for axis in axes:
        axis.set_xlabel("requests/s")
    figure.savefig(path, dpi=150)


def draw_validation(
    measured: dict[str, np.ndarray[Any, Any]],
    predicted: dict[str, np.ndarray[Any, Any]],
    title: str,
    path: Path,
) -> None:
    """Draw the share of requests within each time, measured and predicted.

    Args:
        measured: times of the requests, s, by their name.
        predicted: the same of the replay.
        title: of the picture.
        path: file to write, see `SUFFIXES`.

    Raises:
        InvalidArgument: another suffix.
    """
    from matplotlib.ticker import LogLocator, NullFormatter

    check_picture("path", path)
    figure, axes = _figure(len(measured), title)
    for axis, name in zip(axes, measured):
        for what, colour, style, told in (
            (measured, INK, "-", "measured"),
            (predicted, VERMILION, "--", "predicted"),
        ):
            values = np.sort(what[name])
            axis.step(
                values, np.arange(1, len(values) + 1) / max(len(values), 1), style, color=colour, label=told
            )
        together = np.concatenate([measured[name], predicted[name]])
        axis.set_xlabel(f"{name}, s")
        axis.set_ylim(0.0, 1.02)
        if not together.min(initial=np.inf) * DECADE < together.max(initial=0.0):
            continue
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter(NullFormatter())
    axes[0].set_ylabel("share of the requests")
    axes[0].legend(frameon=False)
    figure.savefig(path, dpi=150)
