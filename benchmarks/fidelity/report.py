"""Tables on the terminal and in Markdown, and the picture of predicted against measured."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

BARS_PCT = (5.0, 10.0)
"""Errors up to which figures of a replay are counted."""


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
    met = [f"{name}: {counted(measured, predicted)}" for name, predicted in columns.items()]
    return Sheet(title, tuple(header), tuple(rows), " ".join(filter(None, (note, "; ".join(met) + "."))))


def within(measured: Mapping[str, float], predicted: Mapping[str, float]) -> tuple[int, ...]:
    """How many figures are met within each of `BARS_PCT`."""
    errors = [100 * abs(predicted[figure] / value - 1) for figure, value in measured.items()]
    return tuple(sum(error <= bar for error in errors) for bar in BARS_PCT)


def counted(measured: Mapping[str, float], predicted: Mapping[str, float]) -> str:
    """`within` in words."""
    near, far = within(measured, predicted)
    return f"{near} and {far} of {len(measured)} figures within {BARS_PCT[0]:.0f} and {BARS_PCT[1]:.0f} %"


@dataclass(frozen=True)
class Tally:
    """A run in the table of all runs.

    Attributes:
        kind: of runs that are summed up together.
        run: its name.
        measured: figure to value.
        columns: name of a prediction to its figures.
    """

    kind: str
    run: str
    measured: Mapping[str, float]
    columns: Mapping[str, Mapping[str, float]]


def summary(tallies: Sequence[Tally]) -> Sheet:
    """How many figures of each run, of each kind of runs and of all are met; empty where a run has no such prediction."""
    names = tuple(max((tally.columns for tally in tallies), key=len))
    rows = []
    for kind in dict.fromkeys(tally.kind for tally in tallies):
        members = [tally for tally in tallies if tally.kind == kind]
        rows += [(kind, tally.run, *_cells([tally], names)) for tally in members]
        rows.append((kind, "all of these", *_cells(members, names)))
    rows.append(("all", "", *_cells(tallies, names)))
    header = [
        "kind",
        "run",
        "figures",
        *(f"{name}: within {bar:.0f} %" for name in names for bar in BARS_PCT),
    ]
    return Sheet("Figures within 5 and 10 per cent, run by run", tuple(header), tuple(rows))


def _cells(tallies: Sequence[Tally], names: Sequence[str]) -> list[str]:
    figures = sum(len(tally.measured) for tally in tallies)
    cells = [str(figures)]
    for name in names:
        if all(name in tally.columns for tally in tallies):
            found = [within(tally.measured, tally.columns[name]) for tally in tallies]
            counts = [sum(column) for column in zip(*found, strict=True)]
            cells += [f"{count} ({100 * count / figures:.0f} %)" for count in counts]
        else:
            cells += [""] * len(BARS_PCT)
    return cells


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
        small = len(pairs) > 200
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
