import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

from llmgym import baselines, policies
from tests.policies.toys import TOY

pytest.importorskip("torch")
SCRIPT = Path(__file__).parents[2] / "train.py"
QUICK = ["--no-progress", "--lanes", "16", "--rollout-steps", "16", "--minibatch", "256", "--threads", "1"]


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("train_script", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["train_script"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--algo", "dqn"], "unknown algorithm 'dqn'"),
        (["--env", "llmgym/KVQeue-v0"], "Did you mean 'llmgym/KVQueue-v0'"),
        (["--scenario", "nope"], "unknown scenario 'nope'"),
        (["--env-args", "nothing"], "expected name=value"),
        (["--lanes", "0"], "lanes=0"),
        (["--minibatch", "0"], "minibatch=0"),
        (["--eval-seed", str(2**32)], "--eval-seed"),
        (["--resume"], "there is no checkpoint"),
    ],
)
def test_mistakes_of_the_caller(
    script: Any, tmp_path: Path, capsys: Any, arguments: list[str], message: str
) -> None:
    assert script.main(["--out", str(tmp_path / "run"), "--no-progress", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("train.py: ") and error.count("\n") == 1
    assert not (tmp_path / "run" / "checkpoint.pt").exists()


def test_without_torch(script: Any, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert script.main(["--out", str(tmp_path / "run"), "--no-progress"]) == 2
    assert "pip install 'llmgym[train]'" in capsys.readouterr().err


def test_without_sb3(script: Any, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sb3_contrib", None)
    assert script.main(["--out", str(tmp_path / "run"), "--no-progress", "--algo", "sb3-maskable-ppo"]) == 2
    assert "pip install 'llmgym[train]'" in capsys.readouterr().err


def test_a_run_from_start_to_report(script: Any, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    env = "llmgym/KVQueue-v0"
    few = baselines.names(env)[:2]
    monkeypatch.setattr(script.baselines, "names", lambda env_id: few)
    out = tmp_path / "small"
    arguments = ["--out", str(out), "--scenario", "tiny", "--env-args", "requests=20", *QUICK]
    assert script.main([*arguments, "--timesteps", "512", "--eval-episodes", "3"]) == 0
    printed = capsys.readouterr().out
    for name in (*few, "small", "The learned policy ", "512 steps in"):
        assert name in printed
    files = (
        "checkpoint.pt",
        "learning_curve.csv",
        "learning_curve.png",
        "comparison.png",
        "comparison.csv",
        "report.html",
    )
    assert all((out / name).stat().st_size > 100 for name in files)
    rows = (out / "comparison.csv").read_text().splitlines()
    assert len(rows) == 1 + 3 * 3 and "10002" in rows[3]

    assert script.main([*arguments, "--timesteps", "512"]) == 2
    assert "already holds a run" in capsys.readouterr().err
    # settings that are not repeated are those of the run
    assert script.main(["--out", str(out), "--resume", "--timesteps", "1024", "--eval-episodes", "0"]) == 0
    meta = policies.meta(out)
    assert meta["steps"] == 1024 and meta["lanes"] == 16 and meta["config"]["minibatch"] == 256
    assert meta["env_kwargs"] == {"scenario": "tiny", "requests": 20}
    assert script.main(["--out", str(out), "--resume", "--hidden", "8", "--timesteps", "2048"]) == 2
    assert "hidden" in capsys.readouterr().err


def test_environments_without_baselines_are_said_before_training(
    script: Any, tmp_path: Path, capsys: Any
) -> None:
    assert script.main(["--env", TOY, "--out", str(tmp_path / "run"), *QUICK]) == 2
    assert "unknown environment" in capsys.readouterr().err
    assert (
        script.main(
            [
                "--env",
                TOY,
                "--out",
                str(tmp_path / "run"),
                "--eval-episodes",
                "0",
                "--timesteps",
                "256",
                *QUICK,
            ]
        )
        == 0
    )
