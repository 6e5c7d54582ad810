"""Who wins in each environment: every baseline, tuned where it has a grid, and every shipped policy, on the same worlds.

    python benchmarks/comparisons.py                                      every environment on its small scenario
    python benchmarks/comparisons.py llmgym/PPDRouting-v0 --scenarios small paper --pictures
    python benchmarks/comparisons.py --again                              beside rooms that were measured since, without playing
    python benchmarks/comparisons.py llmgym/MemPipe-v0 --scenarios small h100 --learned    policies anew, rules are kept

Writes benchmarks/results/comparisons/<environment>.md: for each scenario mean return, interval, and paired difference to the best
baseline, on 200 worlds and on 200 others. Who wins or loses does so by the intervals of both; else it is a tie. Rules are tuned and
policies were trained on other worlds than these. Environments are found by themselves; one without a scenario of a name is run with
its default. A page keeps the scenarios that are not run anew. Where the room is measured (`llmgym room ID --scenario S --out
benchmarks/results/rooms/NAME-S.json`), tables tell which share of it each policy gets. The first
worlds are those of the leaderboard: their file is written to benchmarks/results/leaderboard, for `llmgym leaderboard`.
"""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium

import llmgym
from benchmarks.site_tables import parted
from llmgym import baselines
from llmgym.errors import UnknownName
from llmgym.evaluation import Comparison, ResultTable, boards, choose_backend
from llmgym.evaluation.backends import HERE, Backend
from llmgym.evaluation.contenders import BASELINE
from llmgym.evaluation.tables import estimate

RESULTS = Path(__file__).parent / "results" / "comparisons"
ROOMS = RESULTS.parent / "rooms"
SECOND = 1_000_000
"""Seeds of the second worlds begin so much after those of the first."""


def arguments(env_id: str, scenario: str) -> dict[str, Any]:
    """Arguments of an environment for a scenario; none where it does not have it."""
    try:
        gymnasium.make(env_id, scenario=scenario).close()
    except UnknownName:
        return {}
    return {"scenario": scenario}


def on_others(second: Comparison, reference: str) -> dict[str, tuple[str, str]]:
    """The difference of each policy on the second worlds, as a cell, and its verdict there."""
    return {
        policy: (estimate(found.mean, found.interval, sign=True), found.verdict)
        for policy, found in second.differences(reference=reference).items()
    }


def agreed(first: Comparison, others: dict[str, tuple[str, str]], seeds: str) -> ResultTable:
    """The table of the first worlds, with the difference on the second, and as verdict what both say.

    Args:
        first: the comparison that is shown, which chooses the reference.
        others: of `on_others`.
        seeds: of the second worlds.
    """
    table = first.table()
    verdict, difference = (
        table.columns.index("verdict"),
        next(n for n, name in enumerate(table.columns) if name.startswith("paired difference")),
    )
    for policy, row in zip(first.policies, table.rows, strict=True):
        told, there = others.get(policy, ("", ""))
        if told and row[verdict] in ("win", "lose") and there != row[verdict]:
            row[verdict] = "tie"
        row.insert(difference + 1, told)
    table.columns.insert(difference + 1, f"on seeds {seeds}")
    table.notes.insert(
        1,
        "Verdict: win or lose by the intervals of both sets of worlds, which have none in common; else tie.",
    )
    return table


def second_told(part: str) -> tuple[str, dict[str, tuple[str, str]]]:
    """What a section of a page tells of the second worlds.

    Args:
        part: the section, in Markdown.

    Returns:
        Their seeds, empty where it tells of none; and the cell and the verdict of each policy that it has.
    """
    rows = next(iter(parted(part)[1]), [{}])
    column = next((name for name in rows[0] if name.startswith("on seeds ")), None)
    if column is None:
        return "", {}
    cells = {row["policy"].strip(" †‡"): (row[column], row["verdict"]) for row in rows if row[column]}
    return column.removeprefix("on seeds "), cells


def assembled(scenario: str, table: ResultTable, *rest: str) -> str:
    """A section of a page: its title, its table, and what follows; empty texts are left out."""
    return "\n\n".join([f"## {scenario}", table.markdown(), *filter(None, rest)])


def absent(names: Sequence[str]) -> str:
    """The line of a section that tells who does not play; empty if all do."""
    return f"Not run here: {', '.join(names)}." if names else ""


def shown(picture: Path | None) -> str:
    """The line of a section that shows a picture; empty if there is none."""
    return "" if picture is None else f"![returns and differences]({picture.name})"


def told_again(env_id: str, part: str, leaderboard: Path, rooms: Path) -> str:
    """A section of a page beside the room that is measured now, without playing anything.

    Args:
        env_id: id of the environment.
        part: the section, which is left as it is where there is no room, where it tells no second worlds, and where there is no
            file of its first worlds with the same returns.
        leaderboard: folder with the file of the first worlds.
        rooms: folder of the rooms.
    """
    scenario = part.removeprefix("## ").partition("\n")[0]
    board = boards.Board(env_id, None if scenario == "default" else scenario)
    kept, room = leaderboard / f"{board.name}.json", board.room(rooms)
    titles, (rows, *_) = parted(part)
    known = {row["policy"].strip(" †‡"): row for row in rows}
    seeds, others = second_told(part)
    if room is None or not seeds or not kept.exists():
        return part
    first = boards.with_room(boards.read(kept)[1], room)
    returns = first.table().columns[1]
    if any(known.get(row[0].strip(" †‡"), {}).get(returns) != row[1] for row in first.table().rows):
        return part  # the file is of another time
    table = agreed(first, others, seeds)
    after = part[titles[0].end() :].partition("\n\n")[2].split("\n\n")
    rest = [text for text in after if text.startswith(("Not run here", "!["))]
    return assembled(scenario, table, *rest)


def learned_again(
    env_id: str,
    part: str,
    picture: Path | None,
    leaderboard: Path,
    rooms: Path,
    backend: Backend = HERE,
    left: tuple[str, ...] = (),
) -> str:
    """A section of a page with the policies that are shipped now and rules that it lacks; of the others the best plays again.

    Where a new rule is the best, all play again on the second worlds, for the differences to it.

    Args:
        env_id: id of the environment.
        part: the section, which has its rules on both sets of worlds.
        picture: file for a picture of the first set; None: none, and a picture that the section shows stays.
        leaderboard: folder with the file of the first worlds, which is written anew.
        rooms: folder of the rooms.
        backend: where episodes are played.
        left: further baselines that are not run.

    Raises:
        SystemExit: the page has not what is to be kept.
    """
    scenario = part.removeprefix("## ").partition("\n")[0]
    named = None if scenario == "default" else scenario
    board = boards.Board(env_id, named, (*baselines.boards(env_id).get(named, ()), *left))
    kept = leaderboard / f"{board.name}.json"
    seeds, cells = second_told(part)
    if not seeds or not kept.exists():
        raise SystemExit(f"{env_id}, {scenario}: the page has no second worlds, or {kept} is missing")
    _, known = boards.read(kept)
    first_seed, episodes = int(known.seeds[0]), len(known.seeds)
    if seeds != (there := f"{first_seed + SECOND}-{first_seed + SECOND + episodes - 1}"):
        raise SystemExit(f"{env_id}, {scenario}: the page tells of seeds {seeds}, not {there}")
    names = [*boards.missing(board, known, board.rules()), *board.learned()]
    played = boards.measure(board, names, episodes=episodes, seed=first_seed, backend=backend)
    rules = [table for table in known.tables.values() if table.kind == BASELINE]  # policies may have gone
    joint = Comparison([*rules, *played.tables.values()], env_kwargs=board.env_kwargs)
    first = boards.with_room(joint, board.room(rooms))
    was = next(row["policy"].strip(" †‡") for row in parted(part)[1][0] if "reference" in row.values())
    again = [name for name in first.tables if name not in cells or name in played.tables]
    again = list(dict.fromkeys([first.reference, *again])) if was == first.reference else list(first.tables)
    second = boards.measure(
        board, again, episodes=episodes, seed=first_seed + SECOND, tune=False, backend=backend
    )
    boards.write(board, joint, kept)
    if picture is not None:
        first.plot(picture)
    others = cells | on_others(second, first.reference)
    texts = part.split("\n\n")
    before = next((text for text in texts if text.startswith("Not run here: ")), "")
    still = [name for name in re.findall(r"[\w-]+", before.partition(": ")[2]) if not _plays(name, first)]
    kept_picture = next((text for text in texts if text.startswith("![")), "")
    return assembled(scenario, agreed(first, others, seeds), absent(still), shown(picture) or kept_picture)


def _plays(name: str, result: Comparison) -> bool:
    """Whether a rule, tuned or not, is in a comparison."""
    return any(played.partition(":")[0] == name for played in result.tables)


def section(
    env_id: str,
    scenario: str,
    episodes: int,
    seed: int,
    picture: Path | None,
    left: tuple[str, ...] = (),
    leaderboard: Path = RESULTS.parent / "leaderboard",
    variants: tuple[str, ...] = (),
    rooms: Path = ROOMS,
    backend: Backend = HERE,
) -> str:
    """One comparison on two sets of worlds, as Markdown.

    Args:
        env_id: id of the environment.
        scenario: its scenario; the default where it has none of this name.
        episodes: worlds of each set.
        seed: of the first world; the second set begins `SECOND` later.
        picture: file for a picture of the first set; None: none.
        left: further baselines that are not run.
        leaderboard: folder for the file of the first set, out of which the leaderboard is written.
        variants: rules as they are to be played; none: all, tuned.
        rooms: folder of the rooms.
        backend: where episodes are played.
    """
    named = arguments(env_id, scenario).get("scenario")
    left_out = tuple(dict.fromkeys((*baselines.boards(env_id).get(named, ()), *left)))
    board = boards.Board(env_id, named, left_out)
    names = [*(variants or board.rules()), *board.learned()]
    played = boards.measure(board, names, episodes=episodes, seed=seed, tune=not variants, backend=backend)
    boards.write(board, played, leaderboard / f"{board.name}.json")
    first = boards.with_room(played, board.room(rooms))
    second = boards.measure(
        board, list(first.tables), episodes=episodes, seed=seed + SECOND, tune=False, backend=backend
    )
    if picture is not None:
        first.plot(picture)
    others = on_others(second, first.reference)
    table = agreed(first, others, second.seed_range)
    return assembled(named or "default", table, absent(left_out), shown(picture))


def main() -> None:
    """Run the comparisons and write the pages."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("envs", nargs="*", help="ids; all if left out")
    parser.add_argument("--scenarios", nargs="+", default=["small"])
    parser.add_argument("--episodes", type=int, default=200, help="worlds of each of the two sets")
    parser.add_argument("--seed", type=int, default=10_000)
    parser.add_argument("--leave-out", nargs="+", default=[], help="baselines that are not run")
    parser.add_argument(
        "--variants",
        nargs="+",
        default=[],
        help="rules as they are to be played, where tuning takes too long",
    )
    parser.add_argument("--pictures", action="store_true")
    parser.add_argument(
        "--again", action="store_true", help="write pages beside the rooms measured since, and play nothing"
    )
    parser.add_argument(
        "--learned",
        action="store_true",
        help="policies play anew, and rules that the page lacks; the others are kept as they were played",
    )
    parser.add_argument("--workers", type=int, default=1, help="processes that play")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    if args.learned and (args.again or args.variants):
        parser.error("--learned: neither --again nor --variants goes with it")
    args.out.mkdir(parents=True, exist_ok=True)
    for env_id in args.envs or llmgym.env_ids():
        name = env_id.rpartition("/")[2]
        page = args.out / f"{name}.md"
        old = page.read_text().split("\n## ")[1:] if page.exists() else []
        kept = {part.partition("\n")[0]: "## " + part.strip() for part in old}
        done: dict[str, str] = {}
        if args.again:
            kept = {
                name: told_again(env_id, part, args.out.parent / "leaderboard", args.out.parent / "rooms")
                for name, part in kept.items()
            }
        for scenario in [] if args.again else args.scenarios:
            key = arguments(env_id, scenario).get("scenario", "default")
            if key not in done:
                picture = args.out / f"{name}-{key}.png" if args.pictures else None
                left, board = tuple(args.leave_out), args.out.parent / "leaderboard"
                with choose_backend.backend(workers=args.workers) as there:
                    if args.learned:
                        old_part = kept.get(key, f"## {key}")
                        done[key] = learned_again(env_id, old_part, picture, board, ROOMS, there, left)
                    else:
                        done[key] = section(
                            env_id, scenario, args.episodes, args.seed, picture, left, board,
                            tuple(args.variants), backend=there,
                        )  # fmt: skip
                print(f"{env_id}\n\n{done[key]}\n", flush=True)
        head = (
            f"# {env_id}: every baseline and every shipped policy\n\nWritten by `benchmarks/comparisons.py`."
        )
        page.write_text("\n\n".join([head, *{**kept, **done}.values()]) + "\n")


if __name__ == "__main__":
    main()
