"""The proof of deployed schedulers: its page is made from the runs that are kept, and says what they say."""

import csv
import shutil
from pathlib import Path

import pytest

from benchmarks import deploy_proof
from benchmarks.fidelity.cases import DEPLOY_CASES, read_predictions, read_traffic

KEPT = deploy_proof.RESULTS / "h200"


def test_the_kept_page_is_that_of_the_kept_runs(tmp_path: Path) -> None:
    shutil.copy(KEPT / "predictions.json", tmp_path)
    words = ["--measured", str(KEPT / "runs"), "--gpu", "h200", "--out", str(tmp_path)]
    assert deploy_proof.main(words) == 0
    assert (tmp_path / "proof.md").read_text() == (KEPT / "proof.md").read_text()
    assert (tmp_path / "proof.png").stat().st_size > 10_000


@pytest.mark.parametrize("scheduler", deploy_proof.SCHEDULERS)
def test_every_run_served_the_requests_of_its_case(scheduler: str) -> None:
    for case in DEPLOY_CASES:
        asked = read_traffic(KEPT / f"{case}_traffic.csv")
        with (KEPT / "runs" / scheduler / f"{case}_requests.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert [int(row["prompt_tokens"]) for row in rows] == asked.prompt_tokens.tolist()
        assert [int(row["output_tokens"]) for row in rows] == asked.output_tokens.tolist()
        assert all(float(row["arrival_s"]) <= float(row["first_token_s"]) for row in rows)
        assert all(float(row["first_token_s"]) <= float(row["last_token_s"]) for row in rows)


@pytest.mark.parametrize("gpu", deploy_proof.GPUS)
def test_a_repeated_case_has_the_same_requests(gpu: str) -> None:
    folder = deploy_proof.RESULTS / gpu
    for again, first in deploy_proof.REPEATED.items():
        one, two = (folder / f"{case}_traffic.csv" for case in (first, again))
        assert one.read_text() == two.read_text()
        assert read_predictions(one) is not None


def test_wrong_folders_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        deploy_proof.main(["--measured", str(tmp_path), "--out", str(tmp_path)])
    assert "--predict comes first" in capsys.readouterr().err
    shutil.copy(KEPT / "predictions.json", tmp_path)
    with pytest.raises(SystemExit):
        deploy_proof.main(["--measured", str(tmp_path), "--out", str(tmp_path)])
    assert "deploy_1_requests.csv" in capsys.readouterr().err


def test_commands_name_the_policies_of_the_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert deploy_proof.main(["--commands", "runs", "--gpu", "h200"]) == 0
    said = capsys.readouterr().out
    assert said.count("engine_vllm.py") == len(deploy_proof.SCHEDULERS)
    assert "h200/rule.npz" in said and "h200/network.npz" in said and "--shortest" in said
