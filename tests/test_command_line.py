"""Mistakes on the command line end with one line on stderr and exit status 2, before anything is computed."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium
import pytest

import llmgym
from llmgym import cli
from tests.core.test_stale_code import TWO_QUEUES

ROOT = Path(llmgym.__file__).parents[1]
KV = "llmgym/KVQueue-v0"


@pytest.fixture
def nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail if an episode runs, a rule is tuned or a kernel is measured."""

    def runs(*arguments: Any, **keywords: Any) -> None:
        pytest.fail("work begins before the mistake is told")

    for name in ("run_episodes", "tuning.run_all", "paired.run_all"):
        monkeypatch.setattr(f"llmgym.evaluation.{name}", runs)
    monkeypatch.setattr("llmgym.profiles.bench.Device.time_us", runs)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare", KV, "--out", "file/out"], "out='file/out': cannot be written to: "),
        (["compare", KV, "--out", "file"], "out='file': cannot be written to: "),
        (["compare", KV, "--episodes", "0"], "episodes=0: expected a whole number from 2"),
        (["compare", KV, "--episodes", "1"], "episodes=1: expected"),
        (["compare", KV, "--episodes", "-3"], "episodes=-3: expected"),
        (["compare", KV, "--seed", "-1"], "seed=-1: expected a whole number from 0"),
        (["compare", KV, "--seed", str(2**40)], f"seed={2**40}: expected"),
        (
            ["compare", KV, "--policies", "vllm", "nope"],
            "unknown policy (or checkpoint path) for llmgym/KVQueue-v0 'nope'",
        ),
        (["compare", KV, "--policies", "vllm", "runs/none.pt"], "no such file: runs/none.pt"),
        (
            ["compare", KV, "--policies", "vllm", "no_module:Rule"],
            "policy 'no_module:Rule' cannot be made",
        ),
        (
            ["compare", KV, "--policies", "vllm", "llmgym.cli:Rule"],
            "policy 'llmgym.cli:Rule' cannot be made",
        ),
        (["compare", "llmgym/KVQeue-v0"], "Did you mean 'llmgym/KVQueue-v0'?"),
        (["compare", "no_module:me/Env-v0"], "module 'no_module' cannot be imported"),
        (
            ["compare", "broken:me/Env-v0"],
            "module 'broken' cannot be imported: No module named 'missing_library'",
        ),
        (["compare", KV, "--policies", "llmgym.core.policy:Policy"], "cannot be made: Protocols"),
        (["compare", "CartPole-v1"], "not a LaneVectorEnv"),
        (["throughput", "llmgym/KVQeue-v0"], "unknown environment id 'llmgym/KVQeue-v0'. Did you mean"),
        (["throughput", "nonsense id"], "unknown environment id 'nonsense id'"),
        (["throughput", "CartPole-v1"], "not a LaneVectorEnv"),
        (["throughput", "--lanes", "0"], "num_envs=0"),
        (["throughput", "--lanes", str(10**9)], "num_envs=1000000000: the arrays of the lanes take"),
        (["throughput", "--seconds", "0"], "seconds=0.0: expected"),
        (["throughput", "--seconds", "nan"], "seconds=nan: expected"),
        (["throughput", "--env-args", "num_envs=3"], "num_envs: set by the number of lanes"),
        (["throughput", "--env-args", "scenario"], "'scenario': expected name=value"),
    ],
    ids=" ".join,
)
def test_mistakes(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
    nothing_runs: None,
    arguments: list[str],
    message: str,
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "broken.py").write_text("import missing_library")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("llmgym: ") and message in error and error.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "__pycache__") == [
        "broken.py",
        "file",
    ]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["file/out"], "out='file/out': cannot be written to: "),
        (["file/out", "--kernels"], "out='file/out': cannot be written to: "),
        (["out", "--host-from", "nope"], "unknown profile (there is no such folder either) 'nope'"),
        (["out", "--device", "nope"], "device='nope' cannot be used"),
        (["out", "--families", "dense"], "needs --kernels"),
        (["out", "--kernels", "--families", "nope"], "unknown family 'nope'"),
        (["out", "--minutes", "0"], "minutes=0.0"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_mistakes_of_profile(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
    nothing_runs: None,
    more: list[str],
    message: str,
) -> None:
    pytest.importorskip("torch")
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["profile", *more, "--quick", *([] if "--device" in more else ["--device", "cpu"])]) == 2
    error = capsys.readouterr().err
    assert error.startswith("llmgym: ") and message in error and error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_disk_that_is_full_at_the_end_is_one_line(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device", "comparison.csv")

    monkeypatch.setattr("llmgym.evaluation.Comparison.to_csv", full)
    monkeypatch.setenv("LLMGYM_QUIET", "1")  # what is compiled is told on stderr too
    arguments = [
        "compare",
        KV,
        "--policies",
        "vllm",
        "--env-args",
        "requests=5",
        "--episodes",
        "2",
        "--out",
        str(tmp_path),
    ]
    assert cli.main([*arguments, "--no-progress", "--no-tune"]) == 2
    assert capsys.readouterr().err == "llmgym: comparison.csv: No space left on device\n"


def test_ctrl_c_is_one_line(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.List, "run", stop)
    assert cli.main(["list"]) == 130
    assert capsys.readouterr().err == "llmgym: stopped\n"


def test_version(capsys: Any) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"llmgym {llmgym.__version__}\n"


def test_a_reader_that_has_seen_enough() -> None:
    command = f"{sys.executable} -m llmgym.cli list | head -1"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.count("\n") == 1 and done.stderr == ""


MINE = (
    TWO_QUEUES.partition("env = CountEnv()")[0].format(reward="action[0]")
    + """
from llmgym.core.env import LaneVectorEnv

class CountVectorEnv(LaneVectorEnv):
    simulation_class = Count

gymnasium.register("me/Count-v0", entry_point=CountEnv, vector_entry_point=CountVectorEnv)

class Always:
    name, privileged, env_kwargs = "always", False, {}

    def act(self, obs, mask):
        return np.ones(len(obs), int)

    def reset(self, lanes):
        pass

class Slow(Always):
    name, calls = "slow", 0

    def act(self, obs, mask):
        self.calls += 1
        return np.full(len(obs), self.calls % 2)

SLOW = Slow()
"""
)


FEW = ("--episodes", "4", "--no-progress")


def command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """In the folder of their module, as an installed command, which does not look into the current folder by itself."""
    start = "import sys; sys.path = [p for p in sys.path if p]; from llmgym.cli import main; sys.exit(main())"
    (folder / "mine.py").write_text(MINE)
    return subprocess.run(
        [sys.executable, "-P", "-c", start, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "LLMGYM_QUIET": "1"},
        capture_output=True,
        text=True,
    )


def test_an_environment_and_policies_of_ones_own(tmp_path: Path) -> None:
    done = command(tmp_path, "compare", "mine:me/Count-v0", "--policies", "mine:Always", "mine:SLOW", *FEW)
    assert done.returncode == 0, done.stderr
    assert (
        "me/Count-v0: 4 paired episodes" in done.stdout and "always" in done.stdout and "slow" in done.stdout
    )
    assert (tmp_path / "results" / "Count-v0" / "comparison.csv").is_file()


@pytest.mark.slow
def test_other_commands_on_an_environment_of_ones_own(tmp_path: Path) -> None:
    done = command(tmp_path, "throughput", "mine:me/Count-v0", "--lanes", "4", "--seconds", "0.01")
    assert done.returncode == 0 and "steps/s" in done.stdout
    for wrong, why in (("me/Coun-v0", "Known: me/Count-v0"), ("llmgym/KVQueue-v0x", "Known: me/Count-v0")):
        done = command(tmp_path, "compare", f"mine:{wrong}", *FEW)
        assert done.returncode == 2 and why in done.stderr
    done = command(tmp_path, "compare", "mine:me/Count-v0", *FEW)
    assert (
        done.returncode == 2
        and "no known policy fits me/Count-v0" in done.stderr
        and done.stderr.count("\n") == 1
    )


def test_settings_of_an_environment_without_scenarios(capsys):
    import tests.toy  # noqa: F401

    spec = llmgym.EnvSpec("tests/NoScenarios-v0", "tests.toy:ToyEnv", "tests.toy:ToyVectorEnv")
    llmgym.register(spec)
    try:
        assert cli.main(["settings", "tests/NoScenarios-v0"]) == 0
        told = " ".join(capsys.readouterr().out.split())
        assert "has no scenarios; it takes" in told and "│ arrival │ 0.6 │ float │" in told
        assert cli.main(["settings", "tests/NoScenarios-v0", "--scenario", "small"]) == 2
        assert "scenario='small': tests/NoScenarios-v0 has no scenarios" in capsys.readouterr().err
    finally:
        llmgym.core.spec._specs.pop("tests/NoScenarios-v0")
        gymnasium.registry.pop("tests/NoScenarios-v0")


def test_train_is_a_command(capsys, tmp_path):
    """Found here: an installed package lacks the script train.py, which its texts named."""
    assert cli.main(["train", "--algo", "dqn", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("llmgym train: unknown algorithm 'dqn'")
    done = subprocess.run(
        [sys.executable, "-m", "llmgym", "train", "--help"],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "80"},
    )
    assert done.returncode == 0 and "llmgym train --env llmgym/KVQueue-v0 --out runs/queue" in done.stdout
    assert "python train.py" not in done.stdout


def test_train_without_torch_says_what_to_install(capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert cli.main(["train", "--out", str(tmp_path / "run"), "--no-progress"]) == 2
    assert "pip install 'llmgym[train]'" in capsys.readouterr().err
