"""The scripts that write tables of results: throughput of every environment, and comparisons of every environment."""

from functools import partial
from pathlib import Path

import comparisons
import numpy as np
import pytest
import throughput
from gymnasium.spaces import Box, Discrete, MultiDiscrete

import llmgym
from benchmarks import events
from benchmarks.site_tables import parted
from llmgym import evaluation
from llmgym.evaluation import Comparison, EpisodeTable, boards
from llmgym.evaluation.tables import estimate


def test_random_actions_are_legal() -> None:
    rng = np.random.default_rng(1)
    mask = (rng.random((200, 5)) < 0.4).astype(np.int8)
    mask[:, 3] = 1
    taken = throughput.legal_action(Discrete(5), mask, 200, rng)
    assert taken.shape == (200,) and mask[np.arange(200), taken].all() and len(np.unique(taken)) == 5
    parts = throughput.legal_action(MultiDiscrete([2, 3]), np.tile([0, 1, 1, 0, 1], (200, 1)), 200, rng)
    assert np.array_equal(parts[:, 0], np.ones(200)) and set(parts[:, 1]) == {0, 2}
    scores = throughput.legal_action(Box(0.0, 1.0, (4,)), None, 7, rng)
    assert scores.shape == (7, 4) and Box(0.0, 1.0, (4,)).contains(scores[0])


def test_a_part_takes_the_place_of_its_former_self() -> None:
    old = "# Throughput of llmgym/KVQueue-v0, scenario tiny, one thread\n\n1\n\n# Other\n\n2\n"
    every = [throughput.EVERY, "", "3"]
    once = throughput.merged(old, [every])
    assert once == old + f"\n{throughput.EVERY}\n\n3\n"
    assert throughput.merged(once, [every]) == once
    queue = [f"{throughput.QUEUE}, scenario mixed, one thread", "", "4"]
    again = throughput.merged(once, [queue, [throughput.EVERY, "", "5"]])
    assert (
        again
        == f"{throughput.QUEUE}, scenario mixed, one thread\n\n4\n\n# Other\n\n2\n\n{throughput.EVERY}\n\n5\n"
    )


@pytest.mark.parametrize("env_id", ["llmgym/AFDRefill-v0", "llmgym/KVQueue-v0"])
def test_rates_of_an_environment(env_id: str) -> None:
    import gymnasium

    kwargs = throughput.smallest_scenario(env_id)
    assert kwargs == ({"scenario": "small"} if env_id == "llmgym/AFDRefill-v0" else {})
    for mode in (None, "sync"):
        more = {} if mode is None else {"vectorization_mode": mode}
        assert throughput.legal_rate(gymnasium.make_vec(env_id, 3, **more, **kwargs), 0.01)() > 0.0


def test_what_a_step_simulates(monkeypatch: pytest.MonkeyPatch) -> None:
    """AFDRefill counts cycles, and one step of PPDRouting brings the tokens of its metrics; others have no events."""
    monkeypatch.setattr(events, "PLAYED_STEPS", 16)
    kwargs = {"scenario": "small"}
    assert events.simulated("llmgym/AFDRefill-v0", kwargs) > 0.0
    assert events.told_simulated("llmgym/Unmask-v0", {}) == "-"
    told = {"output_tokens_per_s": 3.0, "duration_s": 7.0}
    assert events._events("llmgym/PPDRouting-v0", told) == 21.0
    assert set(events.SIMULATED) <= set(llmgym.env_ids())
    step_us, world_us, look_us = events.shares("llmgym/AFDRefill-v0", kwargs, 1)
    assert step_us > 0.0 and world_us >= 0.0 and look_us > 0.0


def test_a_comparison_names_every_baseline(tmp_path) -> None:
    text = comparisons.section(
        "llmgym/AFDRefill-v0", "small", 3, 10_000, tmp_path / "a.png", leaderboard=tmp_path
    )
    board, played = boards.read(tmp_path / "AFDRefill-v0-small.json")
    assert (
        board.scenario == "small"
        and played.table().rows[0][:4]
        == [cell.strip() for cell in text.splitlines()[6].strip("|").split("|")][:4]
    )
    assert all(name in text for name in llmgym.baselines.names("llmgym/AFDRefill-v0"))
    assert "3 paired episodes, seeds 10000-10002" in text and (tmp_path / "a.png").stat().st_size > 10_000
    assert comparisons.arguments("llmgym/KVQueue-v0", "small") == {}


def test_a_page_is_told_again_beside_the_room_of_today(tmp_path: Path) -> None:
    """Shares of the room and nothing else change; a page of other worlds than those of the file stays as it is."""
    env_id, rooms = "llmgym/MemPlace-v0", tmp_path / "rooms"
    section = partial(
        comparisons.section, env_id, "small", picture=None, left=("brute-force",), leaderboard=tmp_path,
        variants=("gpu-only", "random"), rooms=rooms,
    )  # fmt: skip
    text = section(episodes=4, seed=10_000)
    assert comparisons.told_again(env_id, text, tmp_path, rooms) == text
    result = evaluation.room(
        env_id, scenario="small", worlds=4, seed=10_000, against=("gpu-only",), progress=False
    )
    rooms.mkdir()
    result.to_json(rooms / "MemPlace-v0-small.json")
    again = comparisons.told_again(env_id, text, tmp_path, rooms)
    before, after = (parted(one)[1][0] for one in (text, again))
    assert "share of the room" not in text and "Not run here: brute-force." in again
    assert [{k: v for k, v in row.items() if k != "share of the room"} for row in after] == before
    assert any(row["share of the room"].endswith("%") for row in after)
    assert comparisons.told_again(env_id, again, tmp_path, rooms) == again
    other = section(episodes=3, seed=10_000, leaderboard=tmp_path / "others")
    assert comparisons.told_again(env_id, other, tmp_path, rooms) == other


def test_a_verdict_needs_both_sets_of_worlds() -> None:
    """Of policies whose episodes are made up: one wins on both, one on the first alone, one loses on both."""

    def episodes(name: str, returns: np.ndarray, seed: int) -> EpisodeTable:
        count = len(returns)
        ones = np.ones(count, np.int64)
        return EpisodeTable(
            name,
            "baseline",
            name,
            False,
            "made/Up-v0",
            {},
            seed + np.arange(count),
            returns,
            ones,
            returns,
            ones == 1,
            ones == 0,
            {},
            {},
            1.0,
            1.0,
            1,
        )

    noise = np.random.default_rng(0).normal(0.0, 0.1, (2, 4, 40))
    sets = [
        Comparison(
            [
                episodes(name, gain + noise[n, k], 1000 * n)
                for k, (name, gain) in enumerate(
                    (("best", 2.0), ("lucky", gain), ("rule", 1.0), ("worse", 0.0))
                )
            ]
        )
        for n, gain in enumerate((1.5, 0.9))
    ]
    for one in sets:
        one.reference = "rule"
    assert sets[0].difference("lucky").verdict == "win" and sets[1].difference("lucky").verdict == "lose"
    others = comparisons.on_others(sets[1], "rule")
    table = comparisons.agreed(sets[0], others, sets[1].seed_range)
    verdict, told = table.columns.index("verdict"), table.columns.index("on seeds 1000-1039")
    assert {row[0]: row[verdict] for row in table.rows} == {
        "best": "win",
        "lucky": "tie",
        "rule": "",
        "worse": "lose",
    }
    cells = {row[0]: row[told] for row in table.rows}
    for name in ("best", "lucky", "worse"):
        other = sets[1].difference(name)
        assert cells[name] == estimate(other.mean, other.interval, sign=True)
    assert cells["best"][0] == "+" and cells["lucky"][0] == "-" and cells["rule"] == ""
    assert "both sets" in table.notes[1]
