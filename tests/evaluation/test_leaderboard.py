"""Boards, their files, the page of all of them, and who enters it."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

import llmgym
from llmgym import baselines, cli
from llmgym.errors import InvalidArgument, UnknownName
from llmgym.evaluation import RoomResult, boards, installed, leaderboard
from llmgym.evaluation.boards import Board

ROOT = Path(__file__).parents[2]
KEPT = ROOT / "benchmarks/results/leaderboard"
SMALL = "llmgym/MemPlace-v0/small"
RULES = ["static", "earliest-finish", "oracle"]


def run(*words: str | Path) -> int:
    return cli.main(["leaderboard", *map(str, words), "--no-progress"])


@pytest.fixture(scope="module")
def played() -> leaderboard.Played:
    (board,) = boards.boards([SMALL])
    return leaderboard.Played(board, boards.measure(board, RULES, episodes=4))


def test_every_environment_has_boards_of_scenarios_that_it_has():
    found = [board for board in boards.boards() if board.env_id.startswith("llmgym/")]
    assert {board.env_id for board in found} == {one for one in llmgym.env_ids() if one.startswith("llmgym/")}
    assert len({board.name for board in found}) == len(found) > 30
    for board in found:
        assert board.scenario in llmgym.spec(board.env_id).scenario_names()
        assert set(board.left_out) <= set(baselines.names(board.env_id))


def test_boards_by_name():
    assert [board.scenario for board in boards.boards(["llmgym/MemPlace-v0"])] == ["small", "paper", "h100"]
    (board,) = boards.boards(["llmgym/MemPlace-v0/energy", "llmgym/MemPlace-v0/energy"])  # not published
    assert board == Board("llmgym/MemPlace-v0", "energy") and board.name == "MemPlace-v0-energy"
    assert Board("me/My-v0", None).name == "me-My-v0" and Board("me/My-v0", None).title == "me/My-v0"
    with pytest.raises(UnknownName, match="nope"):
        boards.boards(["llmgym/MemPlace-v0/nope"])
    with pytest.raises(UnknownName, match="environment"):
        boards.boards(["llmgym/Nope-v0"])
    with pytest.raises(UnknownName, match="environment"):
        boards.boards(["small"])


def test_a_file_says_everything_again(played, tmp_path):
    path = tmp_path / "a.json"
    boards.write(played.board, played.result, path)
    board, result = boards.read(path)
    assert board == played.board and str(result.table()) == str(played.result.table())
    assert json.loads(path.read_text())["worlds"]["world_checksum"]  # who enters later is checked by it
    boards.write(board, result, tmp_path / "b.json")
    assert (tmp_path / "b.json").read_bytes() == path.read_bytes()
    assert boards.missing(board, result, ["gpu-only", *RULES]) == ["gpu-only"]
    for text in ("{}", "nothing", '{"environment": 1, "scenario": null, "left_out": [], "worlds": {}}'):
        path.write_text(text)
        with pytest.raises(InvalidArgument, match="no file of the leaderboard"):
            boards.read(path)


def test_a_row_says_what_it_is(played):
    table = played.table()
    rows = {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    assert list(rows) == ["oracle †", "earliest-finish", "static"]
    assert rows["earliest-finish"]["paired difference [95% CI]"] == "reference"
    assert rows["oracle †"]["kind"] == "rule" and rows["oracle †"]["worlds"] == "4"
    assert rows["static"]["seeds"] == "10000-10003" and rows["static"]["verdict"] == "lose"
    assert rows["static"]["command"] == (
        "llmgym compare llmgym/MemPlace-v0 --scenario small --policies static earliest-finish "
        "--episodes 4 --seed 10000 --no-tune"
    )
    assert any(note.startswith("†: privileged") for note in table.notes)
    data = played.data()
    assert data["reference"] == "earliest-finish" and [row["contender"] for row in data["contenders"]] == [
        "oracle",
        "earliest-finish",
        "static",
    ]


@pytest.mark.slow  # it draws the pictures of the report too
def test_the_command_of_a_row_gives_its_figures(played, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = played.command("static").split()[1:]
    assert cli.main([*words, "--no-progress"]) == 0
    shown = capsys.readouterr().out
    row = next(row for row in played.table().rows if row[0] == "static")
    assert all(text in shown for text in (row[2], row[3], row[4]))


def test_shares_of_the_room(played):
    returns = {name: table.returns for name, table in played.result.tables.items()}
    room = RoomResult(
        env_id=played.board.env_id,
        env_kwargs=played.board.env_kwargs,
        seeds=played.result.seeds,
        rules={"earliest-finish": returns["earliest-finish"]},
        knowing={"oracle": returns["oracle"]},
        tail="earliest-finish",
        metrics={},
        wall_s=1.0,
        date="2026-01-01",
        version="0",
    )
    told = leaderboard.Played(played.board, boards.with_room(played.result, room), Path("rooms/a.json"))
    rows = {row[0]: row for row in told.table().rows}
    assert rows["oracle †"][6] == "100%" and rows["static"][6] == "< -100%"
    assert told.command("static").endswith("--room rooms/a.json")
    assert told.data()["contenders"][0]["share_of_the_room"] == pytest.approx(1.0)


def test_a_folder_is_gone_on_with(tmp_path, capsys):
    out = ["--out", tmp_path, "--episodes", "3", "--only", SMALL]
    assert run(*out, "--policies", "static", "gpu-only") == 0
    first = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(first) == {"MemPlace-v0-small.json", "leaderboard.md", "leaderboard.html"}
    capsys.readouterr()
    assert run(*out, "--policies", "static", "--json") == 0
    assert json.loads(capsys.readouterr().out)["played"] == []
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == first  # to the byte
    assert run(*out[:2], "--only", SMALL, "--policies", "random", "static", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["played"] == [{"board": "llmgym/MemPlace-v0, small", "contenders": ["random"]}]
    assert told["boards"][0]["worlds"] == 3 and len(told["boards"][0]["contenders"]) == 3
    before = json.loads(first["MemPlace-v0-small.json"])["policies"]
    assert json.loads((tmp_path / "MemPlace-v0-small.json").read_text())["policies"][:2] == before
    assert run(*out[:2], "--only", SMALL, "--policies", "static", "--episodes", "2", "--again") == 0
    assert boards.read(tmp_path / "MemPlace-v0-small.json")[1].policies == ["static"]
    page = (tmp_path / "leaderboard.md").read_text()
    assert "## llmgym/MemPlace-v0, small" in page and "| static | rule |" in page


@pytest.mark.parametrize(
    "words,says",
    [
        (["--only", "llmgym/Nope-v0"], "Nope-v0"),
        (["--only", SMALL, "--policies", "nope"], "unknown policy"),
        (["--policies", "nope"], "none of the boards knows one of them"),
        (["--episodes", "1"], "episodes=1"),
        (["--rooms", "not-there"], "rooms='not-there': no such folder"),
    ],
)
def test_mistakes_are_told_before_anything_is_played(words, says, tmp_path, capsys):
    assert run(*words, "--out", tmp_path / "out") == 2
    assert says in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "name",
    [
        "MemPlace-v0-small",
        pytest.param("MemPipe-v0-small", marks=pytest.mark.slow),
        pytest.param("PipeSDBatch-v0-small", marks=pytest.mark.slow),
    ],
)
def test_a_kept_board_is_played_again(name):
    """World by world, to the digits that a file keeps."""
    board, kept = boards.read(KEPT / f"{name}.json")
    rules = {
        name: table for name, table in kept.tables.items() if table.kind == "baseline"
    }  # networks of other versions of torch may round another way
    again = boards.measure(board, board.rules(), episodes=kept.episodes, seed=int(kept.seeds[0]))
    assert set(again.tables) == set(rules)
    for policy, table in rules.items():
        new = again.tables[policy]
        np.testing.assert_allclose(new.returns, table.returns, rtol=1e-9, atol=1e-12)
        for metric, values in table.metrics.items():
            np.testing.assert_allclose(new.metrics[metric], values, rtol=1e-6, atol=1e-9)


@pytest.mark.slow
def test_the_kept_page_is_that_of_the_kept_boards(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    command = cli.Leaderboard(
        only=(SMALL,), out=Path("benchmarks/results/leaderboard"), rooms=Path("benchmarks/results/rooms")
    )
    found = command._all(boards, leaderboard)
    assert {one.board.name for one in found} == {path.stem for path in KEPT.glob("*.json")}
    words = "llmgym leaderboard --out benchmarks/results/leaderboard --rooms benchmarks/results/rooms"
    for path in leaderboard.write(found, tmp_path, words):
        assert path.read_bytes() == (KEPT / path.name).read_bytes()


THEIRS = """
class First:
    name, privileged, env_kwargs = "first", False, {}
    def act(self, obs, mask):
        return mask.argmax(axis=1)
    def reset(self, lanes):
        pass
class Unfit(First):
    env_kwargs = {"no_such_argument": 1}
POLICIES = {"llmgym/MemPlace-v0": {"first": First, "object": First(), "unfit": Unfit}}
"""


def install(folder: Path, module: str, points: str) -> None:
    """A package with entry points, as an installer would leave it."""
    (folder / "their_rules.py").write_text(module)
    info = folder / "their_rules-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-rules\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(points)


@pytest.fixture
def fresh(monkeypatch):
    """Nobody has looked for installed policies yet, nor will what is found here stay."""
    monkeypatch.delitem(sys.modules, "their_rules", raising=False)
    installed._found.cache_clear()
    yield
    installed._found.cache_clear()


def test_policies_of_an_installed_package_enter(tmp_path, monkeypatch, capsys, fresh):
    install(tmp_path, THEIRS, "[llmgym.policies]\ntheirs = their_rules:POLICIES\n")
    monkeypatch.syspath_prepend(tmp_path)
    (board,) = boards.boards([SMALL])
    with pytest.warns(UserWarning, match="policy 'theirs/unfit' is left out"):
        assert board.installed() == ["theirs/first", "theirs/object"]
    out = tmp_path / "out"
    assert run("--out", out, "--only", SMALL, "--episodes", "2", "--policies", "theirs/first", "static") == 0
    row = next(
        row
        for row in leaderboard.Played(*boards.read(out / f"{board.name}.json")).table().rows
        if "/" in row[0]
    )
    assert row[:2] == ["theirs/first", "third party"] and "--policies theirs/first static" in row[-1]
    text = (out / "leaderboard.md").read_text()
    assert "best of third parties" in text and "| theirs/first | third party |" in text
    with pytest.raises(UnknownName, match="theirs/first"):
        llmgym.compare("llmgym/MemPlace-v0", ["theirs/nope"], episodes=2)


@pytest.mark.parametrize("module", ["raise RuntimeError('broken')", "POLICIES = ['first']"])
def test_a_package_that_cannot_be_loaded_is_left_out(module, tmp_path, monkeypatch, fresh):
    install(tmp_path, module, "[llmgym.policies]\ntheirs = their_rules:POLICIES\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.warns(UserWarning, match=r"policies of their_rules:POLICIES \(their-rules\) are left out"):
        assert installed.policies("llmgym/MemPlace-v0") == {}
    assert installed.policies("llmgym/MemPlace-v0") == {}  # told once


@pytest.mark.slow
def test_an_environment_of_an_installed_package_enters(tmp_path):
    module = """
        from llmgym import EnvSpec
        SPEC = EnvSpec("theirs/Toy-v1", "tests.toy:ToyEnv", "tests.toy:ToyVectorEnv")
    """
    rules = textwrap.dedent(module) + THEIRS.replace("llmgym/MemPlace-v0", "theirs/Toy-v1")
    points = (
        "[llmgym.environments]\ntheirs = their_rules:SPEC\n[llmgym.policies]\ntheirs = their_rules:POLICIES\n"
    )
    install(tmp_path, rules, points)
    out = tmp_path / "out"
    code = f"""
        import sys; sys.path[:0] = {[str(tmp_path), str(ROOT)]!r}
        from llmgym import cli
        sys.exit(cli.main(["leaderboard", "--only", "theirs/Toy-v1", "--episodes", "3", "--out", {str(out)!r}]))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    text = (out / "leaderboard.md").read_text()
    assert "## theirs/Toy-v1" in text and "| theirs/first | third party |" in text
    assert (out / "theirs-Toy-v1.json").exists()
