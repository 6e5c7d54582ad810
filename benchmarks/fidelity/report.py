"""Tables on the terminal and in Markdown, and the picture of predicted against measured."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

BAR_PCT = 10.0
"""Error up to which a figure of a replay is said to be met."""


@dataclass(frozen=True)
class Sheet:
    """A table.

    Attributes:
        title: what it is.
        header: names of the columns.
        rows: their texts.
        note: what to know before reading it.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""

    def markdown(self) -> str:
        """The table in Markdown, with its title as a heading."""
        lines = [f"## {self.title}", ""]
        if self.note:
            lines += [self.note, ""]
        lines.append(f"| {' | '.join(self.header)} |")
        lines.append(f"|{'---|' * len(self.header)}")
        lines += [f"| {' | '.join(row)} |" for row in self.rows]
        return "\n".join([*lines, ""])

    def show(self, console: Console) -> None:
        """Print it."""
        title, note = escape(self.title), escape(self.note)
        table = Table(
            *map(escape, self.header), title=title, caption=note, title_justify="left", caption_justify="left"
        )
        for row in self.rows:
            table.add_row(*map(escape, row))
        console.print(table)


def comparison(
    title: str, measured: dict[str, float], columns: dict[str, dict[str, float]], note: str = ""
) -> Sheet:
    """Figures measured, and predicted in one or more ways with their errors.

    Args:
        title: of the sheet.
        measured: figure to value.
        columns: name of a prediction to its figures.
        note: of the sheet.
    """
    header = ["figure", "measured"]
    for name in columns:
        header += [name, "error %"]
    rows = []
    for figure, value in measured.items():
        row = [figure, f"{value:.4g}"]
        for predicted in columns.values():
            row += [f"{predicted[figure]:.4g}", f"{100 * (predicted[figure] / value - 1):+.1f}"]
        rows.append(tuple(row))
    met = []
    for name, predicted in columns.items():
        within = sum(
            abs(100 * (predicted[figure] / value - 1)) <= BAR_PCT for figure, value in measured.items()
        )
        met.append(f"{name}: {within} of {len(measured)} figures within {BAR_PCT:.0f} %")
    return Sheet(title, tuple(header), tuple(rows), " ".join(filter(None, (note, "; ".join(met) + "."))))


def picture(path: Path, groups: Mapping[str, Sequence[tuple[float, float]]]) -> None:
    """Predicted against measured seconds, log-log, with a band of 10 %.

    Args:
        path: of the PNG.
        groups: name to pairs (measured, predicted), both in s.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 7), dpi=130, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots()
    values = [value for pairs in groups.values() for pair in pairs for value in pair if value > 0]
    ends = (0.7 * min(values), 1.4 * max(values))
    axes.fill_between(
        ends, [0.9 * end for end in ends], [1.1 * end for end in ends], color="#dddddd", label="within 10 %"
    )
    axes.plot(ends, ends, color="#888888", linewidth=0.8)
    colours = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
    for i, (name, pairs) in enumerate(groups.items()):
        small = len(pairs) > 100
        measured, predicted = zip(*pairs, strict=True)
        axes.scatter(
            measured,
            predicted,
            s=8 if small else 34,
            alpha=0.45 if small else 0.9,
            color=colours[i % len(colours)],
            label=name,
            linewidths=0,
            zorder=1 if small else 2,
        )
    axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends, xlabel="measured, s", ylabel="predicted, s")
    axes.set_aspect("equal")
    axes.legend(fontsize=8, loc="upper left")
    canvas.print_png(str(path))
