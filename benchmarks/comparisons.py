"""Who wins in each environment: every baseline, tuned where it has a grid, and every shipped policy, on the same worlds.

    python benchmarks/comparisons.py                                      every environment on its small scenario
    python benchmarks/comparisons.py llmgym/PPDRouting-v0 --scenarios small paper --pictures

Writes benchmarks/results/comparisons/<environment>.md: for each scenario mean return, interval, and paired difference to the best
baseline, on 200 worlds and on 200 others. Who wins or loses does so by the intervals of both; else it is a tie. Rules are tuned and
policies were trained on other worlds than these. Environments are found by themselves; one without a scenario of a name is run with
its default. A page keeps the scenarios that are not run anew. Where the room is measured (`llmgym room ID --scenario S --out
benchmarks/results/rooms/NAME-S.json`), tables tell which share of it each policy gets. The first
worlds are those of the leaderboard: their file is written to benchmarks/results/leaderboard, for `llmgym leaderboard`.
"""

import argparse
from pathlib import Path
from typing import Any

import gymnasium

import llmgym
from llmgym import baselines
from llmgym.errors import UnknownName
from llmgym.evaluation import Comparison, ResultTable, boards
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


def agreed(first: Comparison, second: Comparison) -> ResultTable:
    """The table of the first worlds, with the difference on the second, and as verdict what both say.

    Args:
        first: the comparison that is shown, which chooses the reference.
        second: the same policies on other worlds.
    """
    table = first.table()
    verdict, difference = (
        table.columns.index("verdict"),
        next(n for n, name in enumerate(table.columns) if name.startswith("paired difference")),
    )
    others = second.differences(reference=first.reference)
    for policy, row in zip(first.policies, table.rows, strict=True):
        told = ""
        if policy in others:
            told = estimate(others[policy].mean, others[policy].interval, sign=True)
            if row[verdict] in ("win", "lose") and others[policy].verdict != row[verdict]:
                row[verdict] = "tie"
        row.insert(difference + 1, told)
    table.columns.insert(difference + 1, f"on seeds {second.seed_range}")
    table.notes.insert(
        1,
        "Verdict: win or lose by the intervals of both sets of worlds, which have none in common; else tie.",
    )
    return table


def section(
    env_id: str,
    scenario: str,
    episodes: int,
    seed: int,
    picture: Path | None,
    left: tuple[str, ...] = (),
    leaderboard: Path = RESULTS.parent / "leaderboard",
    variants: tuple[str, ...] = (),
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
    """
    named = arguments(env_id, scenario).get("scenario")
    left_out = tuple(dict.fromkeys((*baselines.boards(env_id).get(named, ()), *left)))
    board = boards.Board(env_id, named, left_out)
    names = [*(variants or board.rules()), *board.learned()]
    played = boards.measure(board, names, episodes=episodes, seed=seed, tune=not variants)
    boards.write(board, played, leaderboard / f"{board.name}.json")
    first = boards.with_room(played, board.room(ROOMS))
    second = boards.measure(board, list(first.tables), episodes=episodes, seed=seed + SECOND, tune=False)
    if picture is not None:
        first.plot(picture)
    parts = [f"## {named or 'default'}", agreed(first, second).markdown()]
    if left_out:
        parts.append(f"Not run here: {', '.join(left_out)}.")
    if picture is not None:
        parts.append(f"![returns and differences]({picture.name})")
    return "\n\n".join(parts)


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
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for env_id in args.envs or llmgym.env_ids():
        name = env_id.rpartition("/")[2]
        page = args.out / f"{name}.md"
        old = page.read_text().split("\n## ")[1:] if page.exists() else []
        kept = {part.partition("\n")[0]: "## " + part.strip() for part in old}
        done: dict[str, str] = {}
        for scenario in args.scenarios:
            key = arguments(env_id, scenario).get("scenario", "default")
            if key not in done:
                picture = args.out / f"{name}-{key}.png" if args.pictures else None
                left = tuple(args.leave_out)
                done[key] = section(
                    env_id, scenario, args.episodes, args.seed, picture, left, args.out.parent / "leaderboard",
                    tuple(args.variants),
                )  # fmt: skip
                print(f"{env_id}\n\n{done[key]}\n", flush=True)
        head = (
            f"# {env_id}: every baseline and every shipped policy\n\nWritten by `benchmarks/comparisons.py`."
        )
        page.write_text("\n\n".join([head, *{**kept, **done}.values()]) + "\n")


if __name__ == "__main__":
    main()
