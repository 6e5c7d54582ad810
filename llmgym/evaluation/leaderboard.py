"""The leaderboard: one page of all boards, as Markdown and as one HTML file, out of what their files keep."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llmgym.evaluation import page, statistics
from llmgym.evaluation.boards import Board
from llmgym.evaluation.comparison import ARROWS, Comparison
from llmgym.evaluation.contenders import BASELINE, GIVEN, LEARNED
from llmgym.evaluation.results import NO_VERDICT
from llmgym.evaluation.rollout import RETURN
from llmgym.evaluation.tables import ResultTable, estimate, number

KINDS = {BASELINE: "rule", LEARNED: "learned", GIVEN: "third party"}
SHARE = "share of the room"
COLUMNS = (
    "contender",
    "kind",
    "mean [95% CI]",
    "IQM",
    "paired difference [95% CI]",
    "verdict",
    SHARE,
    "worlds",
    "seeds",
    page.COMMAND,
)
TITLE = "Leaderboard"
ABOUT = (
    "Every rule, tuned where it has a grid, every shipped learned policy and those of installed packages, on the same worlds of "
    "each board. Returns: higher is better. The paired difference is to the best tuned rule that sees no more than a scheduler "
    "can; win or lose: its 95 % interval excludes 0."
)


@dataclass(frozen=True)
class Played:
    """A board and what was played on it.

    Attributes:
        board: the board.
        result: the episodes, compared.
        room: file of the room that `result` tells shares of; None: there is none.
    """

    board: Board
    result: Comparison
    room: Path | None = None

    def command(self, policy: str) -> str:
        """What plays a policy and the reference again, and prints the figures of its row."""
        result = self.result
        policies = [policy] if policy == result.reference else [policy, result.reference]
        command = self.board.command(policies, result.episodes, int(result.seeds[0]))
        return command if self.room is None else f"{command} --room {self.room.as_posix()}"

    def table(self, metric: str = RETURN) -> ResultTable:
        """One metric of all contenders, the best first."""
        result = self.result
        differences = result.differences(metric)
        rows = []
        for policy in result.ranked(metric):
            mean, interval = result.mean(policy, metric)
            difference = differences.get(policy)
            told, verdict, share = "reference", "", ""
            if difference is not None:
                told = estimate(difference.mean, difference.interval, sign=True)
                verdict = "-" if difference.verdict == NO_VERDICT else difference.verdict
                share = result.room_share(difference) if metric == RETURN else ""
            rows.append(
                [
                    result.marked(policy),
                    KINDS[result.tables[policy].kind],
                    estimate(mean, interval),
                    number(self.iqm(policy, metric)),
                    told,
                    verdict,
                    share,
                    str(result.episodes),
                    result.seed_range,
                    self.command(policy),
                ]
            )
        columns = list(COLUMNS)
        if result.room is None:
            place = columns.index(SHARE)
            columns, *rows = ([*row[:place], *row[place + 1 :]] for row in (columns, *rows))
        return ResultTable(metric + ARROWS[result.direction(metric)], columns, rows, self.notes())

    def iqm(self, policy: str, metric: str) -> float:
        """Interquartile mean of the worlds in which there is a value; NaN where there are fewer than 2."""
        values = self.result.tables[policy].column(metric)
        known = values[values == values]
        return float(statistics.iqm(known)) if len(known) > 1 else float("nan")

    def notes(self) -> list[str]:
        """What the marks mean, what was left out, and what a share is of."""
        notes = self.result.marks()
        if self.board.left_out:
            notes.append(f"Too slow for so many worlds, and not played: {', '.join(self.board.left_out)}.")
        if self.result.room is not None:
            notes.append(self.result.room.note(self.result.reference))
        return notes

    def overview(self) -> list[str]:
        """The best rule, and beside it the first learned policy and the best of third parties."""
        result = self.result
        reference = result.reference
        differences = result.differences()
        row = [self.board.title, str(result.episodes), reference, estimate(*result.mean(reference))]
        learned = [name for name in result.policies if result.tables[name].kind == LEARNED]
        theirs = [name for name in result.policies if result.tables[name].kind == GIVEN]
        # of several seeds the first one, not the better one
        for name in (min(learned, key=len, default=None), theirs[0] if theirs else None):
            difference = None if name is None else differences.get(name)
            cells = ["", ""] if name is None else [result.marked(name), ""]
            if difference is not None:
                cells[1] = (
                    f"{estimate(difference.mean, difference.interval, sign=True)}: {difference.verdict}"
                )
            row += cells
        return row

    def data(self) -> dict[str, Any]:
        """The return of every contender, for programs."""
        result = self.result
        differences = result.differences()
        rows = []
        for policy in result.policies:
            mean, interval = result.mean(policy)
            table, difference = result.tables[policy], differences.get(policy)
            row = {
                "contender": policy,
                "kind": KINDS[table.kind],
                "privileged": table.privileged,
                "other_world": table.other_world,
                "mean": mean,
                "interval": interval,
                "iqm": self.iqm(policy, RETURN),
                "difference": None if difference is None else difference.mean,
                "difference_interval": None if difference is None else difference.interval,
                "verdict": "reference" if difference is None else difference.verdict,
                "share_of_the_room": None,
                "command": self.command(policy),
            }
            if difference is not None and result.room is not None and difference.same_world:
                reference = result.tables[result.reference].returns
                row["share_of_the_room"] = result.room.share(difference.mean, reference, result.seeds)
            rows.append(row)
        return {
            "environment": self.board.env_id,
            "scenario": self.board.scenario,
            "worlds": result.episodes,
            "first_seed": int(result.seeds[0]),
            "reference": result.reference,
            "left_out": self.board.left_out,
            "contenders": rows,
        }


def overview(played: Sequence[Played]) -> ResultTable:
    """A row a board."""
    columns = [
        "board",
        "worlds",
        "best rule",
        "its mean [95% CI]",
        "first learned policy",
        "its difference [95% CI]",
        "best of third parties",
        "its difference [95% CI]",
    ]
    rows = [one.overview() for one in played]
    if not any(row[6] for row in rows):
        columns, rows = columns[:6], [row[:6] for row in rows]
    return ResultTable("", columns, rows)


def markdown(played: Sequence[Played], command: str) -> str:
    """The page as Markdown: all boards in one table, and the returns of each.

    Args:
        played: the boards.
        command: that writes the page.
    """
    parts = [
        f"# {TITLE}",
        f"Written by `{command}`. {ABOUT}",
        "Each row was played for itself by the command in it.",
        "## All boards",
        _body(overview(played)),
    ]
    for one in played:
        table = one.table()
        place = table.columns.index(page.COMMAND)
        for row in table.rows:
            row[place] = f"`{row[place]}`"
        parts += [f"## {one.board.title}", _body(table), *table.notes]
    return "\n\n".join(parts) + "\n"


def _body(table: ResultTable) -> str:
    """The rows alone, as Markdown."""
    return replace(table, title="", notes=[]).markdown()


def html(played: Sequence[Played], command: str) -> str:
    """The page as one HTML file, with every headline metric of every board."""
    links = {one.board.title: one.board.name for one in played}
    parts = [
        page.section("All boards", page.sortable(overview(played), links)),
        "<div class='controls filter'></div>",
    ]
    for one in played:
        tables: Mapping[str, ResultTable] = {
            metric: one.table(metric) for metric in (RETURN, *one.result.headline)
        }
        columns = tables[RETURN].columns
        changing = (columns.index("kind") + 1, columns.index("worlds"))
        parts.append(
            page.section(
                one.board.title,
                page.switching(tables, changing),
                group=one.board.env_id,
                anchor=one.board.name,
            )
        )
    return page.page(f"llmgym: {TITLE.lower()}", f"Written by {command}. {ABOUT}", parts)


def write(played: Sequence[Played], folder: Path, command: str) -> list[Path]:
    """Write `leaderboard.md` and `leaderboard.html` to a folder; the same boards give the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / "leaderboard.md", folder / "leaderboard.html"]
    written[0].write_text(markdown(played, command), encoding="utf-8")
    written[1].write_text(html(played, command), encoding="utf-8")
    return written
