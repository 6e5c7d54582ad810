"""`llmgym leaderboard`: every rule and every learned policy of every environment, on one page."""

import shlex
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from llmgym.core.checks import output_folder, whole
from llmgym.core.told import Told
from llmgym.errors import InvalidArgument, UnknownName


@dataclass(frozen=True)
class Leaderboard(Told):
    """Play every rule, learned policy and policy of an installed package in every environment; write one page of all of them.

    A board is one scenario of an environment, and has a file in the folder. What is in it is kept, and who is new plays on the same
    worlds; so a run that was stopped goes on, and nothing is played twice.
    """

    only: tuple[str, ...] = ()
    """Boards to play: ids of environments, or ID/SCENARIO; module:id if a module of yours registers one; all if left out. The page
    shows all that the folder has."""
    policies: tuple[str, ...] = ()
    """Who plays: names of baselines, learned and installed policies, paths of checkpoints, or policies of your own as module:name;
    all baselines, shipped policies and those of installed packages if left out."""
    episodes: int = 200
    """Worlds of a board that has no file yet; all contenders meet the same."""
    seed: int = 10_000
    """Seed of the first world of a board that has no file yet."""
    again: bool = False
    """Play the boards anew, whatever their files have."""
    rooms: Path | None = None
    """Folder with files of llmgym room --out, named as the boards are: the page then tells shares of the room."""
    out: Path = Path("results/leaderboard")
    """Folder for leaderboard.md, leaderboard.html and a JSON file a board."""
    progress: bool = True
    """Show progress and the time left on stderr."""

    def run(self, console: Console) -> dict[str, Any]:
        from llmgym.evaluation import boards, leaderboard
        from llmgym.evaluation.contenders import resolve
        from llmgym.evaluation.tuning import TUNING_SEEDS

        whole("episodes", self.episodes, 2, 10**6)
        whole("seed", self.seed, 0, TUNING_SEEDS - self.episodes)
        output_folder("out", self.out)
        if self.rooms is not None and not self.rooms.is_dir():
            raise InvalidArgument(f"rooms={str(self.rooms)!r}: no such folder")
        wanted = boards.boards(self.only)
        chosen: list[tuple[boards.Board, list[str] | None]] = []
        for board in wanted:
            names: list[str] = []
            for name in self.policies:
                try:
                    resolve(board.env_id, name)
                except UnknownName:
                    if len(wanted) == 1:
                        raise
                else:
                    names.append(name)
            if names or not self.policies:
                chosen.append((board, names or None))
        if not chosen:
            raise InvalidArgument(f"policies={list(self.policies)}: none of the boards knows one of them")
        stderr = Console(stderr=True)
        shown = self.progress and stderr.is_terminal
        start = time.monotonic()
        played: list[dict[str, Any]] = []
        for at, (board, asked) in enumerate(chosen):
            path = self.out / f"{board.name}.json"
            known = None if self.again or not path.exists() else boards.read(path)[1]
            new = asked if known is None else boards.missing(board, known, asked)
            if shown:
                left = (
                    ""
                    if not at
                    else f", about {_minutes((time.monotonic() - start) / at * (len(chosen) - at))} left"
                )
                stderr.print(f"board {at + 1} of {len(chosen)}{left}: {board.title}", highlight=False)
            if new == []:
                continue
            episodes, seed = (
                (self.episodes, self.seed) if known is None else (known.episodes, int(known.seeds[0]))
            )
            result = boards.measure(board, new, episodes=episodes, seed=seed, progress=self.progress)
            played.append({"board": board.title, "contenders": result.policies})
            boards.write(board, result if known is None else boards.joined(board, known, result), path)
        found = self._all(boards, leaderboard)
        command = ["llmgym", "leaderboard", "--out", self.out.as_posix()]
        command += [] if self.rooms is None else ["--rooms", self.rooms.as_posix()]
        written = leaderboard.write(found, self.out, shlex.join(command))
        width = max(console.width, 80) if console.is_terminal else 120
        text = leaderboard.overview(found).text(width)
        console.print(text, markup=False, highlight=False, soft_wrap=True)
        console.print(f"Written: {', '.join(map(str, written))}", soft_wrap=True)
        return {"boards": [one.data() for one in found], "played": played, "written": written}

    def _all(self, boards: Any, leaderboard: Any) -> list[Any]:
        """What the folder has: the boards of known environments in their order, then others by the names of their files."""
        order = {board.name: at for at, board in enumerate(boards.boards())}
        found = []
        for path in sorted(
            self.out.glob("*.json"), key=lambda path: (order.get(path.stem, len(order)), path.stem)
        ):
            board, result = boards.read(path)
            room = board.room(self.rooms)
            file = None if room is None or self.rooms is None else self.rooms / f"{board.name}.json"
            found.append(leaderboard.Played(board, boards.with_room(result, room), file))
        return found


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
