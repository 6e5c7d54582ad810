"""Questions on real text: the bank that ships, the plays on it, and how one is measured."""

import json
from pathlib import Path

import numpy as np
import pytest

from llmgym.envs.forage import text
from llmgym.envs.forage.bank import SHIPPED, bank_of
from llmgym.envs.forage.env import ForageEnv, ForageVectorEnv
from llmgym.envs.forage.scenarios import SCENARIOS
from llmgym.envs.forage.state import KEYS, LIST, NOTHING, OUTDATED, PASSAGES, TERMS, TRUE
from llmgym.errors import InvalidArgument, LlmgymError


def test_the_bank_that_ships_is_what_it_says() -> None:
    bank = bank_of(SCENARIOS["real"])
    meta, passages = bank.meta, bank.passages
    present = np.arange(PASSAGES) < bank.sizes[..., None]
    assert passages.shape == (meta["questions"], KEYS, PASSAGES) and meta["bm25s"] and meta["python"]
    assert (SHIPPED / "stdlib.npz").stat().st_size < 200_000
    right, other = present & (passages["claims"] == TRUE), present & (passages["claims"] == NOTHING)
    assert (right.sum(axis=2) == text.RIGHT).all()
    assert ((present & (passages["claims"] == OUTDATED)).sum(axis=2) == text.STALE).all()
    for t in range(TERMS):
        found = ((passages["listed"] >> t) & 1) * present
        assert found.sum(axis=2).max() <= LIST
        assert found[right].mean() == pytest.approx(meta["listed"][t], abs=1e-4)
    # wrong passages score with mean 0 and deviation 1, right ones by the gap more
    for name in ("line", "glance"):
        assert passages[name][other].mean() == pytest.approx(0.0, abs=0.01)
        assert passages[name][other].std() == pytest.approx(1.0, abs=0.01)
        assert passages[name][right & (passages["listed"] != 0)].mean() == pytest.approx(0.0, abs=0.01)
    for depth, share in meta["in_first"].items():
        assert (passages["rank"][..., 1][right] < int(depth)).mean() == pytest.approx(share, abs=1e-4)
    assert passages["chunk"][present].max() < meta["chunks"]


def test_the_scenario_takes_document_and_gaps_from_the_bank() -> None:
    env = ForageEnv(scenario="real")
    meta = bank_of(SCENARIOS["real"]).meta
    assert env.simulation.scenario.chunks == meta["chunks"]
    assert env.simulation.scenario.snippet_gap == meta["snippet_gap"]
    envs = ForageVectorEnv(400, scenario="real")
    envs.reset(seed=0)
    claims = envs.lanes.state.passage["claims"]
    assert ((claims == TRUE).sum(axis=2) == 1).all()  # without duplicates
    assert 0.2 < (claims == OUTDATED).sum(axis=2).mean() < 0.45
    assert len(np.unique(envs.lanes.state.passage["chunk"][:, 0, 0])) > 60


def test_a_bank_of_a_text_of_ones_own(tmp_path: Path) -> None:
    pytest.importorskip("bm25s")
    rng = np.random.default_rng(0)
    vocabulary = np.array(
        [f"word{chr(97 + i % 26)}{chr(97 + i // 26 % 26)}{chr(97 + i // 676)}" for i in range(3000)]
    )
    words = vocabulary[np.minimum(rng.zipf(1.3, 40_000) - 1, 2999)].tolist()
    path = tmp_path / "own.npz"
    meta = text.build(path, questions=2, parts=64, words=words, about="random words")
    assert meta["questions"] == 2 and meta["text"] == "random words"
    env = ForageEnv(scenario="real", text=str(path))
    assert env.simulation.scenario.chunks == 64
    env.reset(seed=0)
    assert env.step(32)[1] < 0.0
    with pytest.raises(InvalidArgument, match="words"):
        text.build(path, questions=1, parts=24, words=["same"] * 10_000)
    with pytest.raises(InvalidArgument, match="parts"):
        text.build(path, questions=1, parts=1000, words=words)


@pytest.mark.slow
def test_the_words_of_the_standard_library_are_found() -> None:
    words = text.standard_library()
    assert len(words) > 100_000 and all(word.isascii() and word == word.lower() for word in words[:1000])


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "bm25s", None)
    with pytest.raises(LlmgymError, match=r"llmgym\[text\]"):
        text.build(
            tmp_path / "x.npz", questions=1, parts=24, words=[f"word{i * i % 997:03d}" for i in range(8000)]
        )


def test_a_file_that_is_no_bank_is_named(tmp_path: Path) -> None:
    path = tmp_path / "no.npz"
    np.savez(path, meta=np.array(json.dumps({"format": 99})))
    with pytest.raises(InvalidArgument, match="text="):
        ForageEnv(scenario="real", text=str(path))
