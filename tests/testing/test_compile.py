"""`llmgym compile` leaves nothing to be compiled."""

import os
import subprocess
import sys
from pathlib import Path

import llmgym
from llmgym import cli

ROOT = Path(llmgym.__file__).parents[1]
PLAY = """
import gymnasium, my_env
env = gymnasium.make("me/My-v0")
env.reset(seed=0), env.step(0), env.unwrapped.metrics()
env = gymnasium.make_vec("me/My-v0", num_envs=3)
env.reset(seed=0)
env.lanes.run()
"""


def run(folder: Path, *command: str) -> tuple[str, str]:
    clean = {name: value for name, value in os.environ.items() if name != "LLMGYM_QUIET"}
    clean |= {"PYTHONPATH": os.pathsep.join([str(ROOT), "."]), "LLMGYM_CACHE_DIR": "cache"}
    done = subprocess.run([sys.executable, *command], cwd=folder, env=clean, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def test_what_was_compiled_beforehand_is_not_compiled_again(tmp_path):
    run(tmp_path, "-m", "llmgym.cli", "new", "my_env")
    out, err = run(tmp_path, "-m", "llmgym.cli", "compile", "my_env:me/My-v0")
    assert "me/My-v0" in out and "kept in" in out
    assert "compiling My for" in err and "compiling My (whole episodes)" in err
    kept = sorted(path.name for path in (tmp_path / "cache").rglob("*.nbc"))
    assert kept
    _, err = run(tmp_path, "-c", PLAY)
    assert err == "" and sorted(path.name for path in (tmp_path / "cache").rglob("*.nbc")) == kept


def test_an_unknown_environment_is_told_before_anything_is_compiled(capsys):
    assert cli.main(["compile", "llmgym/KVQueue-v0", "llmgym/No-v0"]) == 2
    out, err = capsys.readouterr()
    assert "'llmgym/No-v0'" in err and len(err.splitlines()) == 1 and out == ""


def test_what_has_no_kernels_is_told(capsys):
    assert cli.main(["compile", "CartPole-v1"]) == 2
    assert "which has no kernels" in capsys.readouterr().err
