"""The pages of comparisons: policies that play anew beside rules that are kept give the page that all give who play anew."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("torch")
from benchmarks import comparisons
from llmgym.evaluation import Comparison, boards

WORDS = ["comparisons.py", "llmgym/MemPlace-v0", "--scenarios", "h100", "--episodes", "6"]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("results") / "comparisons"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [*WORDS, "--out", str(out)])
        comparisons.main()
    return out / "MemPlace-v0.md"


def test_policies_anew_beside_rules_that_are_kept(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = page.read_text()
    assert "MemPlace-v0/ppo-h100-s1" in text and "on seeds 1010000-1010005" in text
    kept = page.parents[1] / "leaderboard" / "MemPlace-v0-h100.json"
    board, before = boards.read(kept)
    played: list[list[str]] = []
    measure = boards.measure

    def noted(board: boards.Board, policies: list[str], **words: object) -> object:
        played.append(policies)
        return measure(board, policies, **words)  # type: ignore[arg-type]

    monkeypatch.setattr(boards, "measure", noted)
    monkeypatch.setattr(sys, "argv", [*WORDS[:4], "--learned", "--out", str(page.parent)])
    comparisons.main()
    assert page.read_text() == text
    assert played[0] == board.learned() and played[1][0] == before.reference
    assert sorted(played[1][1:]) == sorted(board.learned())
    _, after = boards.read(kept)
    assert {name: table.returns.tolist() for name, table in after.tables.items()} == {
        name: table.returns.tolist() for name, table in before.tables.items()
    }


def test_nothing_to_keep(page: Path, tmp_path: Path) -> None:
    part = "## h100\n" + page.read_text().partition("## h100\n")[2]
    with pytest.raises(SystemExit, match=r"MemPlace-v0-h100.json is missing"):
        comparisons.learned_again("llmgym/MemPlace-v0", part, None, tmp_path, tmp_path)
    seeds, cells = comparisons.second_told(part)
    assert seeds == "1010000-1010005" and "brute-force" not in cells and "gpu-only" in cells
    one = part.replace("on seeds 1010000-1010005", "elsewhere")
    assert comparisons.second_told(one) == ("", {})


def test_a_rule_that_the_page_lacks_plays_too(page: Path, tmp_path: Path) -> None:
    text = page.read_text()
    kept = page.parents[1] / "leaderboard" / "MemPlace-v0-h100.json"
    board, before = boards.read(kept)
    rest = [table for name, table in before.tables.items() if name != "gpu-only"]
    boards.write(board, Comparison(rest, env_kwargs=board.env_kwargs), tmp_path / kept.name)
    lines = [line for line in text.splitlines() if not line.startswith("| gpu-only ")]
    part = "## h100\n" + "\n".join(lines).partition("## h100\n")[2]
    again = comparisons.learned_again("llmgym/MemPlace-v0", part, None, tmp_path, comparisons.ROOMS)
    assert again == ("## h100\n" + text.partition("## h100\n")[2]).strip()


def test_a_new_rule_that_is_the_best(page: Path, tmp_path: Path) -> None:
    """The page was told beside another rule: differences to that one do not stay."""
    text = page.read_text()
    kept = page.parents[1] / "leaderboard" / "MemPlace-v0-h100.json"
    board, before = boards.read(kept)
    rest = [table for name, table in before.tables.items() if name != before.reference]
    boards.write(board, Comparison(rest, env_kwargs=board.env_kwargs), tmp_path / kept.name)
    lines = [line for line in text.splitlines() if not line.startswith(f"| {before.reference} ")]
    (second,) = (line for line in lines if line.startswith("| earliest-finish "))
    cells = second.split(" | ")
    lines[lines.index(second)] = " | ".join([*cells[:3], "reference", *cells[4:]])
    part = "## h100\n" + "\n".join(lines).partition("## h100\n")[2]
    again = comparisons.learned_again("llmgym/MemPlace-v0", part, None, tmp_path, comparisons.ROOMS)
    expected = ("## h100\n" + text.partition("## h100\n")[2]).strip()
    assert sorted(again.splitlines()) == sorted(expected.splitlines())  # ties are in another order


def test_a_rule_without_second_worlds_and_a_policy_that_has_gone(page: Path, tmp_path: Path) -> None:
    """As an interrupted run may leave them."""
    text = page.read_text()
    kept = page.parents[1] / "leaderboard" / "MemPlace-v0-h100.json"
    board, before = boards.read(kept)
    gone = replace(before.tables["MemPlace-v0/ppo-h100"], policy="MemPlace-v0/ppo-h100-s9")
    more = Comparison([*before.tables.values(), gone], env_kwargs=board.env_kwargs)
    boards.write(board, more, tmp_path / kept.name)
    lines = [line for line in text.splitlines() if not line.startswith("| gpu-only ")]
    part = "## h100\n" + "\n".join(lines).partition("## h100\n")[2]
    part += "\n\nNot run here: gpu-only, slow-one.\n\n![kept](picture.png)"
    again = comparisons.learned_again("llmgym/MemPlace-v0", part, None, tmp_path, comparisons.ROOMS)
    expected = ("## h100\n" + text.partition("## h100\n")[2]).strip()
    assert again == f"{expected}\n\nNot run here: slow-one.\n\n![kept](picture.png)"
    assert list(boards.read(tmp_path / kept.name)[1].tables) == list(before.tables)


def test_words_that_do_not_go_together(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [*WORDS[:4], "--learned", "--again", "--out", str(page.parent)])
    with pytest.raises(SystemExit):
        comparisons.main()
    monkeypatch.setattr(sys, "argv", [*WORDS[:3], "small", "--learned", "--out", str(page.parent)])
    with pytest.raises(SystemExit, match="MemPlace-v0, small: the page has no second worlds"):
        comparisons.main()
