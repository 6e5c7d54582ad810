"""What there is to win was measured beside the best rule that there is."""

import pytest

from benchmarks.rooms import ROOMS
from llmgym.evaluation import RoomResult, boards

MEASURED = sorted(path.stem for path in ROOMS.glob("*.json"))


@pytest.mark.parametrize("name", MEASURED)
def test_the_best_rule_of_a_board_is_that_of_its_room(name: str) -> None:
    kept = ROOMS.parent / "leaderboard" / f"{name}.json"
    room = RoomResult.read(ROOMS / f"{name}.json")
    if not kept.exists():  # with other arguments of the environment, such as a choice among rules
        assert set(room.env_kwargs) - {"scenario"}, f"{name}: no board of this name"
        return
    board, played = boards.read(kept)
    assert dict(room.env_kwargs) == board.env_kwargs
    assert room.best == played.reference
