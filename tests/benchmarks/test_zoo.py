"""The cards of the shipped policies: the kept page is that of what is shipped, and says why where nothing is won."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
import llmgym
from benchmarks import zoo
from llmgym.policies import shipped

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def found() -> dict[tuple[str, str], list[zoo.Card]]:
    return zoo.cards()


def test_every_shipped_policy_has_a_card(found: Any) -> None:
    assert {card.name for group in found.values() for card in group} == set(shipped.names())
    assert all(3 == len(group) == len({card.meta["seed"] for card in group}) for group in found.values())
    assert all((shipped.TRAINED / f"{name}.pt").stat().st_size < 1_000_000 for name in shipped.names())


def test_the_kept_page_is_that_of_what_is_shipped(found: Any) -> None:
    page = (zoo.OUT / "zoo.md").read_text(encoding="utf-8")
    assert page == zoo.page(found) and "not compared" not in page
    assert zoo.verdicts(found) in (ROOT / "README.md").read_text(encoding="utf-8")
    for env_id in dict.fromkeys(of for of, _ in found):
        docs = (ROOT / llmgym.spec(env_id).docs).read_text(encoding="utf-8")
        assert zoo.of_page(env_id, found) in docs, env_id


def test_what_is_not_won_is_explained(found: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert zoo.unexplained(found) == []
    reasons = dict(zoo.REASONS)
    del reasons["PipeSDBatch-v0 small"]
    reasons["AFDRefill-v0 small"] = "nobody knows"
    monkeypatch.setattr(zoo, "REASONS", reasons)
    assert zoo.unexplained(found) == ["AFDRefill-v0 small", "PipeSDBatch-v0 small"]
