"""Policies away from home: the page is that of the kept figures, and every case names what there is."""

import json
from pathlib import Path

import gymnasium
import pytest

from benchmarks import transfers
from llmgym.policies import shipped


def test_cases_differ_and_name_shipped_policies() -> None:
    assert len({case.key for case in transfers.CASES}) == len(transfers.CASES)
    for case in transfers.CASES:
        environment = case.policy.partition("/")[0]
        assert shipped.path_of(case.policy)[0].parent.name == environment


@pytest.mark.parametrize("case", transfers.CASES, ids=lambda case: case.key)
def test_cases_can_be_made(case: transfers.Case) -> None:
    gymnasium.make(case.env_id, **case.kwargs).close()


def test_the_kept_page_is_that_of_the_kept_figures() -> None:
    kept = json.loads((transfers.OUT / "transfers.json").read_text())
    found = {case.key: kept[case.key] for case in transfers.CASES if case.key in kept}
    assert set(found) == set(kept)
    assert (transfers.OUT / "transfers.md").read_text() == transfers.page(found)


def test_a_case_is_played_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--only", "PipeSDBatch", "--episodes", "4", "--out", str(tmp_path)]
    transfers.main(words)
    assert "PipeSDBatch-v0/small scenario=s1" in capsys.readouterr().out
    first = (tmp_path / "transfers.json").read_text()
    (row,) = json.loads(first).values()
    assert row["interval"][0] <= row["difference"] <= row["interval"][1] and row["verdict"] in (
        "win", "tie", "lose",
    )  # fmt: skip
    transfers.main(words)
    assert capsys.readouterr().out == "" and (tmp_path / "transfers.json").read_text() == first


def test_a_policy_that_does_not_fit_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = transfers.Case("DistillProgramme-v0/real", "carbon", "carbon by the hour")
    found = transfers.measured(case, 2, 0)
    assert found["failed"].startswith("DistillProgramme-v0/ppo-real")
    assert "does not fit this environment" in found["failed"]
    assert "does not fit" in transfers.page({case.key: found})
