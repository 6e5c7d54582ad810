"""One HTML file that needs nothing else: tables that can be sorted, one metric at a time, cards where the screen is narrow.

The reports of comparisons and the leaderboard are made of it. Without JavaScript the first metric is there, unsorted by others.
"""

import html
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from llmgym.evaluation.tables import TONES, ResultTable

COMMAND = "command"
"""A column of this name is folded: its cells are long."""
NAMES = frozenset(
    {"policy", "contender", "board", "best rule", "first learned policy", "best of third parties"}
)
"""Columns of names, which may be broken behind a comma, a colon or a slash."""


def page(title: str, lead: str, parts: Sequence[str]) -> str:
    """The whole file.

    Args:
        title: of the page, text.
        lead: a sentence or two below it, text.
        parts: what follows, HTML.
    """
    here = Path(__file__)
    style, script = (here.with_suffix(kind).read_text(encoding="utf-8") for kind in (".css", ".js"))
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        "<link rel='icon' href='data:,'>"
        f"<title>{html.escape(title)}</title><style>\n{style}</style></head><body>\n"
        f"<h1>{html.escape(title)}</h1>\n<p class='lead'>{html.escape(lead)}</p>\n"
        + "\n".join(parts)
        + f"\n<script>\n{script}</script>\n</body></html>\n"
    )


def section(heading: str, *parts: str, group: str = "", anchor: str = "") -> str:
    """A part of a page under a heading.

    Args:
        heading: text.
        *parts: HTML.
        group: the filter of the page shows or hides all sections of a group; empty: it is always shown.
        anchor: what links to it name.
    """
    marks = "".join(
        f" {name}='{html.escape(value, quote=True)}'"
        for name, value in (("id", anchor), ("data-group", group))
        if value
    )
    inside = "\n".join(parts)
    return f"<section{marks}>\n<h2>{html.escape(heading)}</h2>\n{inside}\n</section>"


def notes(table: ResultTable) -> str:
    """The notes of a table, HTML."""
    return "".join(f"<p class='note'>{html.escape(note)}</p>" for note in table.notes)


def sortable(table: ResultTable, links: Mapping[str, str] | None = None) -> str:
    """A table that can be sorted; it has to be the only one of its section.

    Args:
        table: the first column names the row.
        links: anchors of sections, by the text of the first cell of a row.
    """
    return f"<div class='controls'></div>{_scrolled(table, links=links)}{notes(table)}"


def switching(tables: Mapping[str, ResultTable], changing: tuple[int, int], above: str = "") -> str:
    """A table that shows one metric at a time; it has to be the only one of its section.

    Args:
        tables: of each metric, by its name, the one that is shown first in front; the same rows in any order, and as many
            columns, of which those outside `changing` are the same everywhere.
        changing: the first column that depends on the metric, and the first behind it that does not.
        above: HTML between the list of metrics and the table, such as pictures; what has an attribute `data-metric` is shown with
            this metric only.

    Returns:
        HTML.
    """
    first = next(iter(tables.values()))
    places = {row[0]: at for at, row in enumerate(first.rows)}
    start, end = changing
    data = {
        name: {
            "title": table.title,
            "columns": table.columns[start:end],
            "rows": [[places[row[0]], *row[start:end]] for row in table.rows],
            "notes": table.notes,
        }
        for name, table in tables.items()
    }
    # no tag in it may end the script element, or begin another
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    marks = f" data-changing='{start} {end}'"
    return (
        f"<div class='controls'></div>{above}{_scrolled(first, marks, caption=False)}"
        f"<div class='notes'>{notes(first)}</div><script type='application/json'>{text}</script>"
    )


def _scrolled(
    table: ResultTable, marks: str = "", *, caption: bool = True, links: Mapping[str, str] | None = None
) -> str:
    names = [html.escape(name) for name in table.columns]
    head = "".join(f"<th scope='col'>{name}</th>" for name in names)
    rows = "".join(
        f"<tr data-row='{at}'>{''.join(_cell(name, text, links or {}) for name, text in zip(names, row, strict=True))}</tr>\n"
        for at, row in enumerate(table.rows)
    )
    title = f"<caption>{html.escape(table.title)}</caption>" if caption and table.title else ""
    return (
        f"<div class='scroll'><table{marks}>{title}<thead><tr>{head}</tr></thead>\n"
        f"<tbody>\n{rows}</tbody></table></div>"
    )


def _cell(name: str, text: str, links: Mapping[str, str]) -> str:
    inside = html.escape(text)
    tone = text if text in TONES else ""
    if name in NAMES:
        tone = "name"
        inside = re.sub(r"([,:/])(?=\S)", r"\1<wbr>", inside)
    if name == COMMAND and text:
        inside = f"<details><summary>show</summary><code>{inside}</code></details>"
    elif text in links:
        inside = f"<a href='#{html.escape(links[text], quote=True)}'>{inside}</a>"
    marks = f" class='{tone}'" if tone else ""
    return f"<td{marks} data-label='{html.escape(name, quote=True)}'>{inside}</td>"
