"""A table of results in every form a reader wants: terminal, plain text, Markdown, HTML."""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table
from rich.text import Text

TONES = {"win": "green", "lose": "red", "tie": "dim"}
TEXT_WIDTH = 120
GAP = "  "


@dataclass
class ResultTable:
    """Rows of text under columns, with a title above and notes below.

    `str()` and `print` give aligned plain text, a rich console and Jupyter their own forms.

    Attributes:
        title: one line; empty: there is none.
        columns: headers; the first column names the row and is aligned left, the others right.
        rows: cells, one list a row.
        notes: sentences that explain marks and terms.
    """

    title: str
    columns: list[str]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return self.text()

    def __rich__(self) -> Table:
        return self.rich()

    def _repr_html_(self) -> str:
        return self.html()

    def text(self, width: int = TEXT_WIDTH) -> str:
        """Aligned plain text; columns beyond `width` characters follow below, beside the names again."""
        widths = [max(len(row[i]) for row in [self.columns, *self.rows]) for i in range(len(self.columns))]
        blocks: list[list[int]] = [[]]
        for column in range(1, len(self.columns)):
            used = widths[0] + sum(len(GAP) + widths[i] for i in blocks[-1])
            if blocks[-1] and used + len(GAP) + widths[column] > width:
                blocks.append([])
            blocks[-1].append(column)
        parts = [self.title] if self.title else []
        for block in blocks:
            lines = [
                _line([row[i] for i in (0, *block)], [widths[i] for i in (0, *block)])
                for row in [self.columns, *self.rows]
            ]
            rule = GAP.join("-" * widths[i] for i in (0, *block))
            parts.append("\n".join([lines[0], rule, *lines[1:]]))
        if self.notes:
            parts.append("\n".join(self.notes))
        return "\n\n".join(parts)

    def rich(self) -> Table:
        """A `rich.table.Table`, coloured by verdict."""
        table = Table(title=Text(self.title), caption=Text("\n".join(self.notes)), caption_justify="left")
        for index, name in enumerate(self.columns):
            table.add_column(Text(name), justify="left" if index == 0 else "right", overflow="fold")
        for row in self.rows:
            table.add_row(*(Text(cell, style=TONES.get(cell, "")) for cell in row))
        return table

    def markdown(self) -> str:
        """A GitHub-flavoured Markdown table with title and notes."""
        rows = [[cell.replace("|", "\\|") for cell in row] for row in [self.columns, *self.rows]]
        lines = ["| " + " | ".join(row) + " |" for row in rows]
        lines.insert(1, "|---|" + "---:|" * (len(self.columns) - 1))
        title = [f"**{self.title}**"] if self.title else []
        return "\n\n".join([*title, "\n".join(lines), *self.notes])

    def html(self) -> str:
        """A `<table>` with its notes; all text is escaped, verdicts carry a class of their name."""
        head = "".join(f"<th>{html.escape(name)}</th>" for name in self.columns)
        body = "".join("<tr>" + "".join(map(_html_cell, row)) + "</tr>" for row in self.rows)
        notes = "".join(f"<p class='note'>{html.escape(note)}</p>" for note in self.notes)
        title = html.escape(self.title)
        inside = f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
        return f"<table><caption>{title}</caption>{inside}</table>{notes}"


def _html_cell(cell: str) -> str:
    tone = f" class='{cell}'" if cell in TONES else ""
    return f"<td{tone}>{html.escape(cell)}</td>"


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = [
        cells[0].ljust(widths[0]),
        *(cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)),
    ]
    return GAP.join(padded).rstrip()


def decimals(scale: float) -> int:
    """Decimal places that show two significant digits of `scale`."""
    if not math.isfinite(scale) or scale == 0.0:
        return 3
    return min(12, max(0, 1 - math.floor(math.log10(abs(scale)))))


def number(value: float, places: int | None = None) -> str:
    """A number for people: four significant digits, or the given decimal places; "-" for NaN."""
    if math.isnan(value):
        return "-"
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    size = abs(value)
    if places is None:
        if size and (size < 1e-4 or size >= 1e9):
            return f"{value:.3e}"
        places = (
            0
            if not size or size >= 1e4 or value == round(value)
            else max(0, 3 - math.floor(math.log10(size)))
        )
    elif size >= 1e9 or places > 8:
        return f"{value:.3e}"
    text = f"{value:,.{places}f}"
    return text[1:] if text.startswith("-") and not text.strip("-0.,") else text


def estimate(value: float, interval: Any, *, sign: bool = False) -> str:
    """`12.3 [11.9, 12.7]`, as precise as the interval is; with `sign`, a plus before what is positive.

    With `sign` it matters on which side of zero an end is: where it would be rounded to zero, as many places are added as show it,
    but no more than four.

    Args:
        value: the estimate.
        interval: an `Interval`, in the unit of `value`.
        sign: show a plus before what is positive.

    Returns:
        The text; `-` where `value` is NaN, no interval where it has no width.
    """
    if math.isnan(value):
        return "-"
    width = interval.high - interval.low
    if width == 0.0:
        shown = number(value)
        return f"+{shown}" if sign and value > 0 else shown
    places = decimals(width / 2.0)
    for end in interval if sign else ():
        if end != 0.0 and abs(end) < 0.5 * 10.0**-places:
            places = min(places + 4, decimals(end) - 1)
    parts = [number(part, places) for part in (value, interval.low, interval.high)]
    if sign:
        parts = [f"+{part}" if not part.startswith("-") and part.strip("0.,") else part for part in parts]
    return f"{parts[0]} [{parts[1]}, {parts[2]}]"


def p_value(p: float) -> str:
    """A p value, never shown as zero; "-" for NaN."""
    if math.isnan(p):
        return "-"
    return "<0.001" if p < 0.001 else f"{p:.3f}"
