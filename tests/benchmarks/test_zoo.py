"""The cards of the shipped policies: the kept page is that of what is shipped, and says why where nothing is won."""

import shlex
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
import llmgym
from benchmarks import zoo
from benchmarks.train_policies import settings_of
from llmgym.policies import PPOConfig, shipped

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


def test_a_card_says_how_it_was_trained(found: Any) -> None:
    said = {place: zoo.commands(*place, group) for place, group in found.items()}
    assert said["llmgym/MemPipe-v0", "h100"] == [
        "python benchmarks/train_policies.py llmgym/MemPipe-v0 --scenarios h100 --seeds 0 1 2 --steps 16000000 --out runs"
    ]
    assert all(len(lines) == 1 + bool(found[place][0].meta.get("init")) for place, lines in said.items())
    first, second = said["llmgym/KVQueue-v1", "azure-conv-tight"]
    assert first.endswith("--steps 9931766 --device cuda --out first") and " --init first --set " in second
    # what the table and the command together say is what was done
    for (env_id, scenario), group in found.items():
        lane_device = group[0].meta["config"].get("env_device", "cpu")
        words = shlex.split(said[env_id, scenario][-1])
        assert ("--on-device" in words) == (lane_device != "cpu")
        changes = words[words.index("--set") + 1 : words.index("--out")] if "--set" in words else []
        init = group[0].name if group[0].meta.get("init") else ""  # a network of the same kind
        made = settings_of(env_id, scenario, "cuda", lane_device != "cpu", changes, init)
        then = PPOConfig.from_dict(group[0].meta["config"]).to_dict()
        skipped = {"device", "env_device", "threads", *zoo.idle(made.config)}
        now = {name: value for name, value in made.config.to_dict().items() if name not in skipped}
        assert now == {name: then[name] for name in now}, (env_id, scenario)
        assert made.lanes == group[0].meta["lanes"]
