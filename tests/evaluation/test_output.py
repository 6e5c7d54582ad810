import csv
import dataclasses
import html.parser
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from rich.console import Console

from llmgym.errors import InvalidArgument
from llmgym.evaluation import Comparison, ResultTable, compare
from llmgym.evaluation.plots import draw
from llmgym.evaluation.report import digest, reproduce
from llmgym.evaluation.statistics import Interval
from llmgym.evaluation.tables import estimate, number, p_value
from tests.evaluation.conftest import TOY, always
from tests.evaluation.test_comparison import NOISE, WORLD, contest, episodes_of


@pytest.mark.parametrize(
    ("value", "places", "text"),
    [
        (0.0, None, "0"),
        (12.0, None, "12"),
        (3.14159, None, "3.142"),
        (-0.04128, None, "-0.04128"),
        (123456.7, None, "123,457"),
        (2.5e-7, None, "2.500e-07"),
        (3e12, None, "3.000e+12"),
        (float("nan"), None, "-"),
        (float("-inf"), None, "-inf"),
        (-0.001, 1, "0.0"),
        (1234.56, 1, "1,234.6"),
    ],
)
def test_numbers(value, places, text):
    assert number(value, places) == text


def test_estimates_are_as_precise_as_their_interval():
    assert estimate(12.3456, Interval(11.9, 12.7)) == "12.35 [11.90, 12.70]"
    assert estimate(12345.6, Interval(11000.0, 13000.0)) == "12,346 [11,000, 13,000]"
    assert estimate(0.5, Interval(-0.25, 1.25), sign=True) == "+0.50 [-0.25, +1.25]"
    assert estimate(0.0, Interval(0.0, 0.0), sign=True) == "0"
    # an interval that excludes zero is not shown as if it reached it
    assert estimate(-12.53, Interval(-22.89, -0.176), sign=True) == "-12.5 [-22.9, -0.2]"
    assert estimate(12.53, Interval(0.004, 22.89), sign=True) == "+12.530 [+0.004, +22.890]"
    assert estimate(-12.53, Interval(-22.89, 0.0), sign=True) == "-13 [-23, 0]"
    assert estimate(2.0, Interval(2.0, 2.0), sign=True) == "+2"
    assert estimate(float("nan"), Interval(0.0, 0.0)) == "-"
    assert [p_value(p) for p in (0.0, 0.04, 1.0, float("nan"))] == ["<0.001", "0.040", "1.000", "-"]


def test_table_holds_what_a_reader_asks_for():
    result = contest(metrics=["late_s"])
    table = result.table()
    assert table.columns[:3] == ["policy", "return [95% CI]", "IQM"] and table.columns[-1] == "late_s"
    cells = {row[0]: row for row in table.rows}
    assert [row[0] for row in table.rows][:2] == ["oracle †", "net"]
    assert cells["net"][5] == "win" and cells["worse"][5] == "lose" and cells["net"][3].startswith("+0.")
    assert cells[result.reference][3:6] == ["reference", "", ""]
    notes = " ".join(table.notes)
    assert (
        f"to {result.reference}" in notes
        and "†: privileged" in notes
        and "Holm" in notes
        and "4 comp" in notes
    )
    assert "100-124" in table.title and "25 paired episodes" in table.title


def apart():
    """A rule of another world, and metrics that not every episode has."""
    late = np.where(np.arange(25) < 4, np.nan, WORLD)
    tables = [
        episodes_of("free", WORLD + 3.0, other_world="switches take no time", late_s=WORLD, never_s=WORLD),
        episodes_of("rule", WORLD, late_s=WORLD + 1.0, never_s=WORLD),
        episodes_of("idle", WORLD - 1.0, late_s=late, never_s=np.full(25, np.nan)),
    ]
    tables = [dataclasses.replace(table, headline={"late_s": "min", "never_s": "min"}) for table in tables]
    return Comparison(tables)


def test_table_marks_other_worlds_and_missing_values():
    table = apart().table()
    cells = {row[0]: row for row in table.rows}
    assert list(cells) == ["free ‡", "rule", "idle"]
    assert cells["rule"][3:6] == ["reference", "", ""]
    assert cells["free ‡"][3].startswith("+3") and cells["free ‡"][4:6] == ["-", "other world"]
    assert cells["idle"][6].endswith(" (21/25)") and cells["idle"][7] == "-"
    notes = " ".join(table.notes)
    assert "‡: does not play the same world (free: switches take no time)" in notes and "†" not in notes
    assert "only n of the episodes have a value" in notes and "Holm" not in notes
    late = apart().metric_table("late_s")
    assert [row[0] for row in late.rows] == ["free ‡", "rule", "idle"]
    assert "idle: 21 of 25 episodes have a value." in late.notes
    never = apart().metric_table("never_s")
    assert [row[0] for row in never.rows][-1] == "idle"
    assert set(never.rows[-1][1:]) == {"-"} and "idle: 0 of 25 episodes have a value." in never.notes


def test_files_and_pictures_mark_other_worlds_and_missing_values(tmp_path):
    result = apart()
    written, summary = result.to_csv(tmp_path / "r.csv")
    assert {row["policy"]: row["other_world"] for row in csv.DictReader(written.open())} == {
        "free": "switches take no time",
        "rule": "",
        "idle": "",
    }
    rows = [row for row in csv.DictReader(summary.open()) if row["metric"] == "never_s"]
    assert rows[-1]["policy"] == "idle" and rows[-1]["episodes"] == "0" and rows[-1]["mean"] == "nan"
    assert {row["policy"]: row["verdict"] for row in rows} == {
        "free": "other world",
        "rule": "reference",
        "idle": "n/a",
    }
    figure = draw(result, "never_s")
    figure.canvas.draw()
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()][-1] == "idle"
    assert "- (no value)" in [text.get_text() for text in figure.axes[0].texts]
    told = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "‡ does not play the same world" in told and "another world: no verdict" in told
    assert "no verdict: values are missing" not in told
    _, text = read(result.report(tmp_path / "r.html"))
    assert "in another world, so not compared: free ‡" in text and "plays another world: switches" in text
    assert "better than rule" not in text


def test_table_says_nothing_of_what_is_not_there():
    alone = Comparison([episodes_of("a", WORLD)])
    assert alone.table().notes == []
    few = Comparison([episodes_of("a", WORLD[:5]), episodes_of("b", WORLD[:5] - 1)])
    notes = " ".join(few.table().notes)
    assert "Only 5 episodes" in notes and "†" not in notes and "Holm" not in notes


def test_every_form_of_a_table_has_every_cell():
    table = ResultTable(
        "a | title", ["policy", "x|y", "z"], [["<p>", "1", "win"], ["q", "2", "lose"]], ["a note"]
    )
    console = Console(width=60, record=True, file=io.StringIO())
    console.print(table)
    for text in (str(table), console.export_text(), table.markdown().replace("\\|", "|"), table.html()):
        for cell in ("a | title", "x|y", "z", "q", "1", "2", "win", "lose", "a note"):
            assert cell in text
    assert "&lt;p&gt;" in table.html() and "<p>" not in table.html()
    assert table._repr_html_() == table.html()
    assert table.markdown().splitlines()[2:4] == ["| policy | x\\|y | z |", "|---|---:|---:|"]


def test_plain_text_folds_columns_and_repeats_the_names():
    table = ResultTable("t", ["policy", "aaaaaaaaaa", "bbbbbbbbbb"], [["one", "1", "2"]])
    assert len(table.text(120).split("\n\n")) == 2
    folded = table.text(20)
    assert folded.count("one") == 2 and max(map(len, folded.splitlines())) <= 20


def test_csv_has_every_episode_and_every_summary(tmp_path):
    result = contest()
    written, summary = result.to_csv(tmp_path / "made" / "result.csv")
    assert summary.name == "result-summary.csv"
    rows = list(csv.DictReader(written.open()))
    assert len(rows) == 5 * 25
    net = [row for row in rows if row["policy"] == "net"]
    assert [int(row["seed"]) for row in net] == list(range(100, 125))
    assert [float(row["return"]) for row in net] == result.tables["net"].returns.tolist()
    assert [float(row["late_s"]) for row in net] == result.tables["net"].metrics["late_s"].tolist()
    assert {row["privileged"] for row in rows if row["policy"] == "oracle"} == {"1"}
    table = {(row["policy"], row["metric"]): row for row in csv.DictReader(summary.open())}
    assert len(table) == 5 * 2
    gap = result.difference("net")
    row = table["net", "return"]
    assert (float(row["difference"]), float(row["difference_low"])) == (gap.mean, gap.interval.low)
    assert float(row["iqm_high"]) == result.summary("net").iqm_interval.high
    assert (row["verdict"], row["reference"], row["kind"]) == ("win", result.reference, "learned")
    assert table[result.reference, "return"]["verdict"] == "reference"


def many(count):
    tables = [
        episodes_of(f"policy number {i}", WORLD * (1 + 0.1 * i) + NOISE[i % 6], late_s=WORLD)
        for i in range(count)
    ]
    return Comparison(tables)


@pytest.mark.parametrize("count", [1, 2, 12])
def test_picture_shows_every_policy_once_sorted(count):
    result = many(count)
    figure = draw(result)
    figure.canvas.draw()
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == result.policies and len(figure.axes) == (1 if count == 1 else 2)
    for axis in figure.axes:
        assert axis.get_xlabel() and axis.get_title(loc="left")
    boxes = [label.get_window_extent() for label in figure.axes[0].get_yticklabels()]
    assert all(not a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert min(box.x0 for box in boxes) >= 0  # nothing is cut off at the left


def test_a_picture_explains_every_mark_inside_of_it():
    """The legend that is longest: wins, losses, ties, missing values, another world and what a real scheduler cannot see."""
    tables = [
        episodes_of(name, WORLD + gap, privileged=name == "seer")
        for name, gap in (("rule", 0.0), ("seer", 1.0), ("bad", -1.0), ("same", NOISE[0]))
    ]
    result = Comparison([*tables, episodes_of("free", WORLD + 2.0, other_world="switches take no time")])
    figure = draw(result)
    figure.canvas.draw()
    legend = figure.legends[0]
    assert [text.get_text()[0] for text in legend.get_texts()][-2:] == ["†", "‡"]
    box, whole = legend.get_window_extent(), figure.bbox
    assert whole.x0 <= box.x0 and box.x1 <= whole.x1 and whole.y0 <= box.y0


@pytest.mark.parametrize("name", ["rule", "r" * 26, "r" * 34, "a-rule:number=0.95,another=4,one-more=17"])
def test_a_picture_names_its_reference_inside_of_it(name):
    result = Comparison([episodes_of(name, WORLD), episodes_of("worse", WORLD - 1.0 + NOISE[0])])
    figure = draw(result)
    figure.canvas.draw()
    title = figure.axes[1]._left_title.get_window_extent()
    assert result.reference == name and title.x1 <= figure.bbox.x1
    assert title.y1 <= figure._suptitle.get_window_extent().y0, "it runs into the title of the picture"


def test_picture_of_a_metric_puts_the_best_on_top():
    tables = [
        episodes_of(name, WORLD, late_s=WORLD + gap, headline={"late_s": "min"})
        for name, gap in (("late", 2.0), ("early", 0.0), ("middle", 1.0))
    ]
    figure = draw(Comparison(tables), "late_s")
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["early", "middle", "late"]
    assert "lower is better" in figure.axes[0].get_xlabel()


def test_picture_of_values_far_apart_is_logarithmic_with_labels_on_both_sides():
    tables = [
        episodes_of("a", -WORLD),
        episodes_of("b", -WORLD + 3 + NOISE[0]),
        episodes_of("c", -1e5 * WORLD),
    ]
    figure = draw(Comparison(tables))
    assert [axis.get_xscale() for axis in figure.axes] == ["symlog", "symlog"]
    ticks = figure.axes[1].get_xticks()
    assert min(ticks) < 0 <= max(ticks) and "logarithmic" in figure.axes[1].get_xlabel()


def test_picture_files(tmp_path):
    result = many(3)
    image = matplotlib.image.imread(result.plot(tmp_path / "a.png"))
    assert image.shape[1] > 1200 and image.std() > 0.05
    assert result.plot(tmp_path / "deep" / "a.svg").read_text().startswith("<?xml")
    for wrong in ("a.bmp", "a", "a.csv"):
        with pytest.raises(InvalidArgument, match=r"ends in \.png, \.svg, \.pdf"):
            result.plot(tmp_path / wrong)


class Reader(html.parser.HTMLParser):
    """Collects tags, checks that they nest, and keeps attributes and text."""

    VOID = frozenset({"meta", "img", "br", "link"})

    def __init__(self):
        super().__init__()
        self.open, self.attributes, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def read(path):
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    assert reader.open == []
    return reader, " ".join(reader.text)


def test_report_is_one_file_that_tells_everything(tmp_path):
    result = contest(metrics=["late_s"], env_kwargs={"scenario": "<b>tiny</b>"})
    reader, text = read(result.report(tmp_path / "report.html"))
    for word in (
        "made/Up-v0",
        "seeds 100-124",
        "numpy",
        np.__version__,
        "better than",
        "late_s",
        "oracle †",
        result.date,
    ):
        assert word in text
    assert "<b>tiny</b>" in text and ("b", "", "") not in reader.attributes  # escaped, not interpreted
    links = [value for tag, name, value in reader.attributes if name in ("src", "href") and value != "data:,"]
    assert len(links) == 2 and all(value.startswith("data:image/png;base64,") for value in links)
    assert not re.search(r"https?://|@import|url\(", (tmp_path / "report.html").read_text())
    assert digest(result) in text


def test_report_names_no_machine(tmp_path):
    text = contest().report(tmp_path / "report.html").read_text()
    assert os.uname().nodename not in re.sub(r"base64,[^']*", "", text) and str(Path.cwd()) not in text


def test_report_of_one_policy(tmp_path):
    _, text = read(Comparison([episodes_of("a", WORLD)]).report(tmp_path / "a.html"))
    assert "nothing to compare" in text


def test_command_runs_the_comparison_again(tmp_path):
    env_id, names = "llmgym/KVQueue-v0", ["wc-fcfs", "mc-sf"]
    result = compare(env_id, names, episodes=3, metrics=["ttft_p99_s"], scenario="tiny", requests=40)
    command = reproduce(result, "again.html")
    assert command.startswith("python -c '") and "\\" not in command
    root = Path(__file__).parents[2]
    done = subprocess.run(
        ["bash", "-c", command.replace("python", sys.executable, 1)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(root), "LLMGYM_QUIET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert digest(result) in (tmp_path / "again.html").read_text()


def test_script_names_the_objects_it_needs():
    result = compare(TOY, [always(1), always(2)], episodes=2)
    script = reproduce(result, "r.html")
    compile(script, "script", "exec")
    assert "policy_1 = ...  # the object that was given as 'always 1'" in script
    assert '"always 2": policy_2' in script


def test_importing_the_package_is_light():
    code = (
        "import sys, llmgym, llmgym.evaluation as e; assert 'compare' in dir(e);"
        "print([m for m in ('scipy', 'matplotlib', 'torch', 'rich') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert done.stdout.strip() == "[]", done.stderr
    code = (
        "import sys; from llmgym import compare; print('matplotlib' in sys.modules, 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert done.stdout.strip() == "False False", done.stderr


def test_compare_is_the_function_whatever_was_imported_before():
    import llmgym
    from llmgym import evaluation
    from llmgym.evaluation import paired  # noqa: F401  a submodule must not take the function's place

    assert callable(evaluation.compare) and llmgym.compare is evaluation.compare
    with pytest.raises(AttributeError, match="nothing"):
        evaluation.nothing  # noqa: B018
