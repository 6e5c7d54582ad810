"""Write what is left to win: benchmarks/results/rooms.md and the part of each environment's page, out of measurements.

llmgym room llmgym/MemPipe-v0 --scenario small --out benchmarks/results/rooms/MemPipe-v0-small.json
python benchmarks/rooms.py
"""

import re
from collections.abc import Iterable
from pathlib import Path

import llmgym
from llmgym.evaluation import RoomResult
from llmgym.evaluation.tables import estimate, number

HERE = Path(__file__).parent
ROOMS = HERE / "results" / "rooms"
HEAD = """# What is left to win

Written by `benchmarks/rooms.py` from the files of `llmgym room ID --scenario S --out FILE` in `rooms/`. Rules were tuned on
worlds of their own. The clairvoyant tries every action in copies of the world and lets a rule go on after it; it knows what is to
come, so a gain is a lower bound of what that is worth, and no promise for a policy that does not. 95 % intervals over worlds; %:
of the size of the best rule's mean return.
"""


def table(results: Iterable[RoomResult], named: bool) -> str:
    """Measurements as a Markdown table, a row for each that knows the future.

    Args:
        results: of one environment or of several.
        named: whether rows name their environment.
    """
    head = ["environment"] * named + [
        "scenario",
        "best tuned rule",
        "its return",
        "who knows the future",
        "gain",
        "%",
        "how",
    ]
    rows = [head, ["---"] * len(head)]
    for one in results:
        best = one.rules[one.best]
        for name, returns in one.knowing.items():
            gains = returns - best
            how = f"{len(gains)} worlds, {one.date}, version {one.version}"
            if name == "clairvoyant":
                decides = "" if one.stride == 1 else f", one decision in {one.stride}"
                grid = "" if one.points is None else f", {one.points} values of each entry"
                ends = "" if one.horizon is None else f", {one.horizon} decisions ahead"
                where = "" if one.device == "cpu" else f", copies on {one.device}"
                how += f", then `{one.tail}`{decides}{grid}{ends}{where}, {one.wall_s:.0f} s"
            rows.append(
                [f"`{one.env_id}`"] * named
                + [
                    f"`{one.env_kwargs.get('scenario', 'default')}`",
                    f"`{one.best}`",
                    number(float(best.mean())),
                    name,
                    estimate(float(gains.mean()), one.interval_of(gains), sign=True),
                    number(one.percent_of(float(gains.mean())), 1),
                    how,
                ]
            )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    """Write the page of results and fill the place `<!-- room -->` of every environment's page that has one."""
    known = [RoomResult.read(path) for path in sorted(ROOMS.glob("*.json"))]
    (ROOMS.parent / "rooms.md").write_text(f"{HEAD}\n{table(known, True)}\n")
    for env_id in llmgym.env_ids():
        mine = [one for one in known if one.env_id == env_id]
        page = HERE.parent / llmgym.spec(env_id).docs
        text = page.read_text()
        if mine and "<!-- room -->" in text:
            filled = re.sub(
                r"(<!-- room -->\n).*?(<!-- end -->)",
                lambda found, mine=mine: f"{found[1]}{table(mine, False)}\n{found[2]}",
                text,
                flags=re.S,
            )
            page.write_text(filled)


if __name__ == "__main__":
    main()
