"""Rooms measured in processes of their own: what is written, kept, left out and told."""

from pathlib import Path
from typing import Any

import llmgym
from benchmarks import gpu_rooms
from llmgym import cli
from llmgym.evaluation import RoomResult

CASE = ("PipeSDBatch-v0", "small", 2, "--tuning 2 --against dp greedy")


def test_a_room_is_measured_once(tmp_path: Path) -> None:
    told = gpu_rooms.measure(CASE, tmp_path, "cpu", 300.0)
    assert told.startswith("PipeSDBatch-v0-small: ") and told.endswith(" s"), told
    result = RoomResult.read(tmp_path / "PipeSDBatch-v0-small.json")
    assert result.seeds.tolist() == [10_000, 10_001] and set(result.rules) == {"dp", "greedy"}
    assert gpu_rooms.measure(CASE, tmp_path, "cpu", 300.0).endswith(": is there")


def test_what_does_not_come_about_is_told(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    assert gpu_rooms.measure(CASE, tmp_path, "cpu", 0.01).endswith(": left out after 0.01 s")
    monkeypatch.setattr(gpu_rooms, "CASES", (CASE, ("MemPipe-v0", "small", 2, "")))
    words = ["gpu_rooms", "--out", str(tmp_path), "--device", "tpu", "--only", "PipeSDBatch-v0-small"]
    monkeypatch.setattr("sys.argv", words)
    gpu_rooms.main()
    shown = capsys.readouterr().out
    assert "PipeSDBatch-v0-small: failed: " in shown and "device='tpu': allowed" in " ".join(shown.split())
    assert "MemPipe" not in shown and not list(tmp_path.iterdir())


def test_every_case_can_be_asked_for() -> None:
    """Names, arguments and scenarios, without playing."""
    for env, scenario, worlds, further in gpu_rooms.CASES:
        env_id = f"llmgym/{env}"
        assert env_id in llmgym.env_ids() and worlds >= 2
        assert cli.main(["settings", env_id, "--scenario", scenario]) == 0
        assert len(further.split()) % 2 == 0, further
    assert len({case[:2] for case in gpu_rooms.CASES}) == len(gpu_rooms.CASES)
