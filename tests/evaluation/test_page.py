"""Reports and the leaderboard in a browser: what a reader sees and can do, without an error.

The page is in a frame of the width that is tested; a script in it does what a reader would do and leaves what it found in the
document.
"""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from llmgym.evaluation import boards, compare, leaderboard, page
from llmgym.evaluation.tables import ResultTable

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--enable-logging=stderr", "--virtual-time-budget=5000"),
)

ASK = """
const errors = [];
addEventListener("error", (event) => errors.push(event.message));
addEventListener("load", () => {
  const column = (table, at) => Array.from(table.tBodies[0].rows, (row) => row.cells[at].textContent.trim());
  const choose = (select, value) => { select.value = value; select.dispatchEvent(new Event("change")); };
  const visible = (element) => element.getClientRects().length > 0;
  const found = {};
  try { (%s)(found, column, choose, visible); } catch (error) { errors.push(String(error)); }
  const wide = document.documentElement;
  found.page = [wide.scrollWidth, wide.clientWidth];
  found.wider = Array.from(document.querySelectorAll("body *"))
    .filter((one) => visible(one) && one.getBoundingClientRect().right > wide.clientWidth + 0.5 && !one.closest("pre, .scroll"))
    .map((one) => one.tagName + " " + one.textContent.slice(0, 40));
  found.hidden = getComputedStyle(document.querySelector("thead")).position === "absolute";
  found.errors = errors;
  parent.document.body.setAttribute("data-found", JSON.stringify(found));
});
"""


def browse(path: Path, script: str, width: int, tmp_path: Path, *flags: str) -> Any:
    """What a script, the body of a function of `found`, `column`, `choose` and `visible`, finds in a page of this width."""
    assert CHROMIUM is not None
    text = path.read_text(encoding="utf-8").replace(
        "<title>", f"<script>{ASK % f'(found, column, choose, visible) => {{{script}}}'}</script><title>", 1
    )
    frame = f"<iframe style='border:0;width:{width}px;height:900px' srcdoc='{html.escape(text, quote=True)}'></iframe>"
    harness = tmp_path / "harness.html"
    harness.write_text(f"<!doctype html><meta charset='utf-8'><body>{frame}</body>", encoding="utf-8")
    done = subprocess.run(
        [CHROMIUM, *FLAGS, *flags, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", harness.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
    )
    told = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert not told, told
    match = re.search(r"data-found=\"(.*?)\"", done.stdout, re.S)
    assert match, done.stderr[-2000:]
    found = json.loads(html.unescape(match[1]))
    assert found.pop("errors") == []
    return found


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A leaderboard of two boards, and the report of a comparison."""
    folder = tmp_path_factory.mktemp("pages")
    found = [
        leaderboard.Played(board, boards.measure(board, ["static", "gpu-only", "random"], episodes=4))
        for board in boards.boards(["llmgym/MemPlace-v0/small", "llmgym/MemPlace-v0/h100"])
    ]
    leaderboard.write(found, folder, "llmgym leaderboard")
    report = compare("llmgym/MemPlace-v0", ["static", "gpu-only", "random"], episodes=4, progress=False)
    return {
        "leaderboard": folder / "leaderboard.html",
        "report": report.report(folder / "report.html"),
    }


def test_text_is_text() -> None:
    """Nothing of a table can become markup or end the script that holds the metrics."""
    rows = [["</script><b>x</b>", "</script>", "c"]]
    table = ResultTable("<i>t</i>", ["policy", "m", page.COMMAND], rows, ["<u>n</u>"])
    text = page.page("<h9>", "<lead>", [page.section("<s>", page.switching({"return": table}, (1, 2)))])
    assert text.count("</script>") == 2 and not re.search(r"<(b|i|u|s|h9|lead)>", text)
    inside = re.search(r"<script type='application/json'>(.*?)</script>", text, re.S)
    assert inside is not None and json.loads(inside[1])["return"]["rows"] == [[0, "</script>"]]
    assert not re.search(r"https?://|@import|url\(|src=", text)


def test_names_break_where_they_have_parts() -> None:
    table = ResultTable("", ["policy", "verdict"], [["a:b=1,c=2", "win"]])
    text = page.sortable(table)
    assert "a:<wbr>b=1,<wbr>c=2" in text and "<td class='win' data-label='verdict'>win</td>" in text
    assert "<caption>" not in text


needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")


@pytest.mark.slow
@needs_browser
def test_sorting(pages, tmp_path):
    """By a click on a heading, which a key presses too, up and down; texts by letter, numbers by value."""
    found = browse(
        pages["leaderboard"],
        """
        const table = document.querySelectorAll("table")[1];
        const heads = table.tHead.rows[0].cells;
        const press = (at) => { heads[at].querySelector("button").click(); return heads[at].getAttribute("aria-sort"); };
        found.rank = column(table, 0);
        found.first = [press(2), column(table, 2).map(parseFloat)];
        found.second = [press(2), column(table, 2).map(parseFloat)];
        found.name = [press(0), column(table, 0), heads[2].hasAttribute("aria-sort")];
        const button = heads[1].querySelector("button");
        button.focus();
        found.key = [document.activeElement === button, button.tabIndex, button.type];
        """,
        1280,
        tmp_path,
    )
    assert found["rank"] == ["gpu-only", "static", "random"]
    (down, falling), (up, rising), (named, names, other) = found["first"], found["second"], found["name"]
    assert (down, up, named, other) == ("descending", "ascending", "ascending", False)
    assert falling == sorted(falling, reverse=True) and rising == sorted(rising) and len(set(rising)) == 3
    assert names == sorted(names) and found["key"] == [True, 0, "button"]


@pytest.mark.slow
@needs_browser
@pytest.mark.parametrize("name,at", [("leaderboard", 1), ("report", 1)])
def test_one_metric_at_a_time(name, at, pages, tmp_path):
    found = browse(
        pages[name],
        f"""
        const table = document.querySelectorAll("table")[{at}];
        const section = table.closest("section");
        const select = section.querySelector("select");
        found.metrics = Array.from(select.options, (option) => option.value);
        found.label = select.parentElement.textContent.slice(0, 6);
        const pictures = () => Array.from(section.querySelectorAll("[data-metric]")).filter(visible).map((p) => p.dataset.metric);
        found.before = [column(table, 1), column(table, 2), pictures()];
        choose(select, "regret_mean");
        found.after = [column(table, 0), column(table, 1), column(table, 2), pictures()];
        found.labels = Array.from(table.tBodies[0].rows[0].cells, (cell) => cell.dataset.label);
        found.heads = Array.from(table.tHead.rows[0].cells, (cell) => cell.textContent);
        table.tHead.rows[0].cells[0].querySelector("button").click();
        found.sorted = column(table, 0);
        choose(select, found.metrics[0]);
        found.again = [column(table, 1), column(table, 2), pictures()];
        """,
        1280,
        tmp_path,
    )
    assert (
        found["metrics"][0] == "return" and "regret_mean" in found["metrics"] and found["label"] == "Metric"
    )
    assert (
        found["after"][0] == ["gpu-only", "static", "random"] and found["after"][1:3] != found["before"][:2]
    )
    assert found["labels"] == found["heads"] and found["sorted"] == sorted(found["sorted"])
    assert found["again"] == found["before"]
    if name == "report":
        assert found["before"][2] == ["return"] and found["after"][3] == ["regret_mean"]


@pytest.mark.slow
@needs_browser
@pytest.mark.parametrize("name", ["leaderboard", "report"])
def test_narrow_screens_have_cards(name, pages, tmp_path):
    """At 400 pixels nothing is wider than the page, every value has its label beside it, and a list sorts."""
    found = browse(
        pages[name],
        """
        const table = document.querySelectorAll("table")[1];
        const sorting = table.closest("section").querySelector(".sorting");
        found.list = visible(sorting);
        const select = sorting.querySelector("select");
        found.rank = column(table, 0);
        choose(select, "0 ascending");
        found.sorted = column(table, 0);
        choose(select, "");
        found.again = column(table, 0);
        const cells = Array.from(table.tBodies[0].rows[1].cells).slice(1).filter((cell) => cell.textContent);
        found.labels = cells.map((cell) => getComputedStyle(cell, "::before").content);
        found.sizes = cells.map((cell) => parseFloat(getComputedStyle(cell).fontSize));
        found.lefts = Array.from(table.tBodies[0].rows, (row) => row.getBoundingClientRect().left);
        const details = document.querySelector("td details");
        if (details) details.open = true;
        """,
        400,
        tmp_path,
    )
    assert found["page"] == [400, 400] and found["wider"] == [] and found["hidden"]
    assert found["list"] and found["sorted"] == sorted(found["sorted"]) and found["again"] == found["rank"]
    assert all(label not in ("none", '""') for label in found["labels"]) and min(found["sizes"]) >= 13
    assert len(set(found["lefts"])) == 1


@pytest.mark.slow
@needs_browser
def test_wide_screens_have_tables_and_a_filter(pages, tmp_path):
    found = browse(
        pages["leaderboard"],
        """
        found.list = Array.from(document.querySelectorAll(".sorting")).some(visible);
        const select = document.querySelector(".filter select");
        found.groups = Array.from(select.options, (option) => option.value);
        const shown = () => Array.from(document.querySelectorAll("section[data-group]")).filter(visible).length;
        found.shown = [shown()];
        choose(select, found.groups[1]);
        found.shown.push(shown());
        found.links = Array.from(document.querySelectorAll("td a"), (a) => !!document.getElementById(a.hash.slice(1)));
        """,
        1280,
        tmp_path,
    )
    assert not found["list"] and not found["hidden"] and found["page"][0] <= found["page"][1]
    assert found["groups"] == ["", "llmgym/MemPlace-v0"] and found["shown"] == [2, 2]
    assert found["links"] == [True, True]


@pytest.mark.slow
@needs_browser
def test_light_and_dark(pages, tmp_path):
    """Text and paper of both schemes are far enough apart to be read: 4.5 to 1 at least."""
    look = """
        const rgb = (text) => text.match(/[\\d.]+/g).slice(0, 3).map(Number);
        const style = getComputedStyle(document.body);
        const lead = getComputedStyle(document.querySelector(".lead"));
        found.colours = [rgb(style.color), rgb(style.backgroundColor), rgb(lead.color)];
    """
    dark = ("--force-dark-mode", "--blink-settings=preferredColorScheme=0")
    papers = []
    for flags in ((), dark):
        ink, paper, soft = browse(pages["report"], look, 1280, tmp_path, *flags)["colours"]
        assert min(contrast(ink, paper), contrast(soft, paper)) >= 4.5
        papers.append(sum(paper))
    assert papers[0] > 700 > 200 > papers[1]


def contrast(a: list[float], b: list[float]) -> float:
    """The contrast of two colours as WCAG 2 has it."""

    def light(colour: list[float]) -> float:
        parts = [c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    high, low = sorted((light(a), light(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)
