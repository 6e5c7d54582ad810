"""`llmgym new` writes an environment that passes the kit, is compared and trains, and never writes over anything."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import llmgym
from llmgym import cli
from llmgym.errors import InvalidArgument
from llmgym.testing.new import new

ROOT = Path(llmgym.__file__).parents[1]
MOST_LINES = 70
"""Of code, blank lines left out."""


def run(folder: Path, *command: str) -> str:
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "LLMGYM_QUIET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return " ".join(done.stdout.split())


def test_a_new_environment_passes_the_kit(tmp_path):
    told = run(tmp_path, "-m", "llmgym", "new", "my_env")
    assert "Written: my_env.py" in told and "llmgym check my_env:me/My-v0" in told
    assert "llmgym train --env my_env:me/My-v0" in told
    lines = (tmp_path / "my_env.py").read_text().splitlines()
    assert sum(bool(line.strip()) for line in lines) <= MOST_LINES
    checked = run(tmp_path, "-m", "llmgym.cli", "check", "my_env:me/My-v0", "--no-progress")
    assert " 0 failed, 0 skipped" in checked, checked


@pytest.mark.slow
def test_a_new_environment_is_compared_and_trained(tmp_path):
    new("my_env", tmp_path)
    compared = run(
        tmp_path, "-m", "llmgym.cli", "compare", "my_env:me/My-v0", "--episodes", "4", "--no-progress"
    )
    assert "shortest" in compared and "fast" in compared and "waited_s" in compared
    assert (tmp_path / "results" / "My-v0" / "report.html").is_file()
    pytest.importorskip("torch")
    settings = "--timesteps 512 --lanes 8 --rollout-steps 16 --minibatch 64 --eval-episodes 2 --no-progress"
    trained = run(
        tmp_path, "-m", "llmgym", "train", "--env", "my_env:me/My-v0", "--out", "run", *settings.split()
    )
    assert "shortest" in trained and (tmp_path / "run" / "report.html").is_file()


def test_names_of_files_and_classes_follow(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert new("two_queues") == (Path("two_queues.py"), "me/TwoQueues-v0")
    assert new("far_env")[1] == "me/Far-v0"
    text = (tmp_path / "two_queues.py").read_text()
    assert "my_env" not in text and "MyEnv" not in text
    assert (
        "TwoQueuesEnv, TwoQueuesVectorEnv = env_classes(TwoQueues)" in text
        and "class TwoQueues(Simulation)" in text
    )
    compile(text, "two_queues.py", "exec")


def test_nothing_is_overwritten(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_env.py").write_text("mine")
    with pytest.raises(InvalidArgument, match=r"name='my_env': my_env\.py exists already"):
        new("my_env")
    assert (tmp_path / "my_env.py").read_text() == "mine"


@pytest.mark.parametrize(
    "name",
    [
        "",
        "my-env",
        "params",
        "my env",
        "1st",
        "class",
        "a.b",
        "../my_env",
        "_",
        "__",
        "_1",
        "é",
        "json",
        "llmgym",
        "numpy",
    ],
)
def test_names_that_cannot_be_imported_are_refused(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["new", name]) == 2
    told = capsys.readouterr().err
    assert f"name={name!r}: " in told and len(told.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_told(tmp_path):
    with pytest.raises(InvalidArgument, match="no such folder"):
        new("my_env", tmp_path / "none")
