import errno
import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium
import pytest

from llmgym import baselines, policies
from tests.policies.toys import TOY

pytest.importorskip("torch")

from llmgym.policies import run

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
        (["--eval-seed", str(2 * 10**9)], "--eval-seed 2000000000: expected 0 up to 2,000,000,000 less"),
        (["--seeds", "0"], "--seeds 0"),
        (["--patience", "-1"], "patience=-1"),
        (["--init", "nowhere.pt"], "no such file: nowhere.pt"),
        (["--resume"], "--resume: no such file: "),
        (["--seed", "-1"], "seed=-1"),
        (["--seed", str(2**32)], "seed=4294967296"),
        (["--lanes", str(10**9)], "num_envs=1000000000: the arrays of the lanes take"),
        (["--eval-episodes", "1"], "--eval-episodes 1"),
        (["--eval-seed", "-1"], "--eval-seed -1"),
        (["--env-args", "num_envs=3"], "num_envs is set by the training itself"),
        (["--env-args", "nope=3"], "got an unexpected keyword argument 'nope'"),
        (["--env", "no_module:me/Env-v0"], "module 'no_module' cannot be imported"),
        (["--env", "tests.toy:me/Nope-v0"], "unknown environment id 'tests.toy:me/Nope-v0'"),
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


def test_rules_that_take_long_are_left_out_and_named(
    script: Any, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    env = "llmgym/KVQueue-v0"
    kept, slow = baselines.names(env)[:2]
    monkeypatch.setattr(baselines, "names", lambda env_id: [kept, slow])
    monkeypatch.setattr(baselines, "boards", lambda env_id: {"tiny": (slow,)})
    arguments = [
        "--env",
        env,
        "--scenario",
        "tiny",
        "--env-args",
        "requests=10",
        "--out",
        str(tmp_path / "run"),
        *QUICK,
    ]
    few = ["--validation-episodes", "0", "--eval-episodes", "2", "--timesteps", "256"]
    assert script.main([*arguments, *few]) == 0
    assert f"as they take long: {slow}; llmgym compare does." in " ".join(capsys.readouterr().out.split())
    played = (tmp_path / "run" / "comparison.csv").read_text(encoding="utf-8")
    assert kept in played and slow not in played


def test_a_run_from_start_to_report(script: Any, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    env = "llmgym/KVQueue-v0"
    few = baselines.names(env)[:2]
    monkeypatch.setattr(baselines, "names", lambda env_id: few)
    out = tmp_path / "small"
    arguments = ["--env", env, "--out", str(out), "--scenario", "tiny", "--env-args", "requests=20", *QUICK]
    few_worlds = ["--validation-episodes", "4"]
    assert script.main([*arguments, *few_worlds, "--timesteps", "512", "--eval-episodes", "3"]) == 0
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
    assert (
        script.main(["--out", str(out), "--resume", "--timesteps", "1024", "--eval-episodes", "2", "--json"])
        == 0
    )
    told = json.loads(capsys.readouterr().out)
    assert told["runs"][0]["steps"] == 1024
    assert sorted(told["comparison"]["policies"]) == sorted([*few, "small"])
    meta = policies.meta(out / "checkpoint.pt")
    assert meta["steps"] == 1024 and meta["lanes"] == 16 and meta["config"]["minibatch"] == 256
    assert meta["env_kwargs"] == {"scenario": "tiny", "requests": 20} and meta["validation_episodes"] == 4
    assert (out / "best.pt").exists()
    assert script.main(["--out", str(out), "--resume", "--hidden", "8", "--timesteps", "2048"]) == 2
    assert "hidden" in capsys.readouterr().err


def test_an_environment_of_ones_own_is_trained_and_compared_with_nothing(
    script: Any, tmp_path: Path, capsys: Any
) -> None:
    out = tmp_path / "run"
    arguments = ["--env", f"tests.policies.toys:{TOY}", "--out", str(out), "--timesteps", "256", *QUICK]
    assert script.main([*arguments, "--eval-episodes", "2"]) == 0
    assert "There is no baseline without privileges to compare run with." in capsys.readouterr().out
    assert policies.meta(out)["env_id"] == TOY and policies.meta(out)["env_module"] == "tests.policies.toys"
    again = ["--out", str(out), "--resume", "--timesteps", "512", "--eval-episodes", "0", "--no-progress"]
    before = gymnasium.registry.pop(TOY)
    del sys.modules["tests.policies.toys"]
    try:  # a new process has not imported the module: the run knows it
        assert script.main(again) == 0
    finally:
        gymnasium.registry.setdefault(TOY, before)
    assert policies.meta(out / "checkpoint.pt")["steps"] == 512


@pytest.mark.slow
def test_several_seeds_are_trained_and_compared(
    script: Any, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    env, out = "llmgym/AFDRefill-v0", tmp_path / "all"
    monkeypatch.setattr(baselines, "names", lambda env_id: ["fcfs"])
    arguments = [
        "--env",
        env,
        "--out",
        str(out),
        "--imitate-steps",
        "256",
        "--validation-episodes",
        "2",
        *QUICK,
    ]
    assert script.main([*arguments, "--seeds", "2", "--timesteps", "256", "--eval-episodes", "2"]) == 0
    printed = capsys.readouterr().out
    assert f"{env}: the settings are those of AFDRefill-v0, and what was given" in printed
    for seed in (0, 1):
        meta = policies.meta(out / f"seed-{seed}")
        assert meta["seed"] == seed and meta["config"]["imitate"] == "min-max"
        assert meta["config"]["network"] == "scorer" and meta["env_kwargs"]["scenario"] == "small"
        assert f"seed {seed}: best return in validation {meta['best_return']:.4g}" in printed
        assert f"The learned policy seed-{seed} " in printed
    better = max((0, 1), key=lambda seed: policies.meta(out / f"seed-{seed}")["best_return"])
    assert f"seed {better}: {out}/seed-{better}/best.pt" in printed
    assert (out / "report.html").exists()
    # one of them is gone, and is trained anew; the other goes on
    for file in (out / "seed-1").iterdir():
        file.unlink()
    more = ["--out", str(out), "--resume", "--seeds", "2", "--timesteps", "512", "--eval-episodes", "0"]
    assert script.main([*more, "--no-progress"]) == 0
    assert [policies.meta(out / f"seed-{seed}" / "checkpoint.pt")["steps"] for seed in (0, 1)] == [512, 512]
    assert script.main([*more[:3], "--timesteps", "768", "--eval-episodes", "0", "--no-progress"]) == 0
    assert [policies.meta(out / f"seed-{seed}" / "checkpoint.pt")["steps"] for seed in (0, 1)] == [768, 768]


def test_a_run_begins_with_the_network_of_another(script: Any, tmp_path: Path, capsys: Any) -> None:
    env = ["--env", "llmgym/AFDRefill-v0", "--validation-episodes", "0", "--eval-episodes", "0", *QUICK]
    first = [*env, "--out", str(tmp_path / "a"), "--hidden", "8", "4", "--imitate", "", "--timesteps", "256"]
    assert script.main(first) == 0
    start = str(tmp_path / "a" / "checkpoint.pt")
    second = [*env, "--out", str(tmp_path / "b"), "--init", start, "--env-args", "window=5"]
    assert script.main(second) == 2
    assert "does not fit this environment" in capsys.readouterr().err
    third = [*env, "--out", str(tmp_path / "c"), "--init", start, "--timesteps", "256"]
    assert script.main(third) == 0
    meta = policies.meta(tmp_path / "c")
    assert (
        meta["config"]["hidden"] == [8, 4] and meta["config"]["network"] == "scorer" and meta["init"] == start
    )


def test_an_algorithm_of_others_gets_what_it_can_do(script: Any, tmp_path: Path) -> None:
    pytest.importorskip("sb3_contrib")
    out = tmp_path / "run"
    arguments = ["--env", "llmgym/AFDRefill-v0", "--algo", "sb3-maskable-ppo", "--out", str(out), *QUICK]
    assert (
        script.main([*arguments, "--timesteps", "256", "--validation-episodes", "2", "--eval-episodes", "0"])
        == 0
    )
    assert policies.meta(out)["config"]["network"] == "mlp" and (out / "best.pt").exists()


@pytest.mark.parametrize("folder", ["file/run", "file", "file/a/b"])
def test_a_folder_that_cannot_be_written_is_said_before_training(
    script: Any, tmp_path: Path, capsys: Any, monkeypatch: Any, folder: str
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(run.Run, "__enter__", lambda self: pytest.fail("training begins"))
    assert script.main(["--out", str(tmp_path / folder), *QUICK]) == 2
    error = capsys.readouterr().err
    assert (
        error.startswith(f"train.py: out='{tmp_path / folder}': cannot be written to: ")
        and error.count("\n") == 1
    )


OWN = ["--env", TOY, "--timesteps", "100000", "--eval-episodes", "0", "--save-every-s", "1e9", *QUICK]
OWN += ["--validation-episodes", "0"]


@pytest.fixture
def interrupts() -> Any:
    """Ctrl-C as in a terminal; a process that was started in the background is told to ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interrupts")
@pytest.mark.parametrize("algo", policies.ALGORITHMS)
def test_ctrl_c_before_the_first_checkpoint_saves_one(
    script: Any, tmp_path: Path, capsys: Any, monkeypatch: Any, algo: str
) -> None:
    """It advised --resume, and there was nothing to resume."""
    record, updates = run.Run.record, []

    def interrupted(self: run.Run, values: Any) -> Any:
        updates.append(self.steps)
        if len(updates) == 2:
            signal.raise_signal(signal.SIGINT)
        return record(self, values)

    monkeypatch.setattr(run.Run, "record", interrupted)
    out = tmp_path / "run"
    assert script.main(["--out", str(out), "--algo", algo, *OWN]) == 130
    told = capsys.readouterr().err
    assert (
        f"train.py: stopped; go on with --out {out} --resume\n" in told
        and "stopping after this update" in told
    )
    assert policies.meta(out / "checkpoint.pt")["steps"] == updates[-1] == 2 * 16 * 16 and len(updates) == 2
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    monkeypatch.setattr(run.Run, "record", record)
    assert (
        script.main(
            ["--out", str(out), "--resume", "--timesteps", "1024", "--eval-episodes", "0", "--no-progress"]
        )
        == 0
    )
    assert policies.meta(out / "checkpoint.pt")["steps"] == 1024


@pytest.mark.usefixtures("interrupts")
@pytest.mark.parametrize("where", ["make_lanes", "Run.record"])
def test_ctrl_c_with_nothing_to_save_does_not_advise_to_resume(
    script: Any, tmp_path: Path, capsys: Any, monkeypatch: Any, where: str
) -> None:
    def stop(*arguments: Any) -> None:
        for _ in range(2):  # the second one does not wait for the update
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(f"llmgym.policies.run.{where}", stop)
    assert script.main(["--out", str(tmp_path / "run"), *OWN]) == 130
    told = capsys.readouterr().err
    assert "train.py: stopped; there is no checkpoint yet, so the same command begins anew\n" in told
    assert "--resume" not in told and not (tmp_path / "run" / "checkpoint.pt").exists()


def test_a_full_disk_is_one_line(script: Any, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    out = tmp_path / "run"
    monkeypatch.setattr(os, "fsync", full)
    assert script.main(["--out", str(out), *OWN, "--timesteps", "256"]) == 2
    error = capsys.readouterr().err
    assert error == f"train.py: {out / 'checkpoint.pt'} cannot be written: No space left on device\n"
    assert [path.name for path in out.iterdir()] == ["learning_curve.csv"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_learning_curve_that_cannot_be_written_is_one_line(
    script: Any, tmp_path: Path, capsys: Any
) -> None:
    (tmp_path / "learning_curve.csv").symlink_to("/dev/full")
    assert script.main(["--out", str(tmp_path), *OWN]) == 2
    error = capsys.readouterr().err
    assert (
        error == f"train.py: {tmp_path / 'learning_curve.csv'} cannot be written: No space left on device\n"
    )


def test_help_shows_each_example_in_one_line(script: Any) -> None:
    shown = subprocess.run(
        [sys.executable, str(SCRIPT), "--help"],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "80"},
    )
    lines = [line.rstrip() for line in shown.stdout.splitlines()]
    assert "The defaults shown are the settings of AttentionBudget-v0, real." in lines
    examples = [line for line in script.__doc__.splitlines() if "python train.py" in line]
    assert len(examples) == 8 and all(example in lines and len(example) < 80 for example in examples)
    assert all(
        example.startswith("    python train.py") and example.count("python") == 1 for example in examples
    )
