"""LLMGYM_DEBUG=1 checks indices, and a kernel that cannot be compiled is told by file and line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import llmgym
from llmgym.core.jit import explained
from llmgym.testing.new import new

ROOT = Path(llmgym.__file__).parents[1]
PLAY = """
import gymnasium
env = gymnasium.make("my_env:me/My-v0")
env.reset(seed=0)
for k in range(60):
    env.step(k % 2)
print(env.unwrapped.metrics())
"""


def play(
    folder: Path, old: str = "", wrong: str = "", code: str = PLAY, **environment: str
) -> tuple[str, str, int]:
    """What a process says that plays the new environment with one change, and the line of the change."""
    path = folder / "my_env.py"
    if not path.exists():
        new("my_env", folder)
    text = path.read_text()
    assert not old or text.count(old) == 1
    path.write_text(text.replace(old, wrong) if old else text)
    line = text[: text.index(old)].count("\n") + 1
    clean = {
        name: value for name, value in os.environ.items() if name not in ("LLMGYM_QUIET", "LLMGYM_DEBUG")
    }
    clean |= {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)]),
        "LLMGYM_CACHE_DIR": str(folder / "cache"),
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env={**clean, **environment}, cwd=folder, capture_output=True, text=True
    )
    return done.stdout, done.stderr, line


@pytest.mark.parametrize(
    ("old", "wrong", "message"),
    [
        (
            "now.waited_s += spent_s",
            "now.waitd_s += spent_s",
            "in step_lane: the record has no field 'waitd_s'. Did you mean 'waited_s'? It has: key, waiting, arrived",
        ),
        pytest.param(
            "state.episode[lane].key = key",
            "state.episode[lane].zzz = key",
            "in reset_lane: the record has no field 'zzz'. It has",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "now.second >= params.seconds",
            "now.second >= params.secnds",
            "numba cannot compile this: Unknown attribute 'secnds' of",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "    full = max(now.waiting[0], now.waiting[1])",
            "    full = now.waiting.max()",
            "No implementation of function",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_what_cannot_be_compiled_is_told_by_file_and_line(tmp_path, old, wrong, message):
    _, err, line = play(tmp_path, old, wrong)
    last = err.strip().splitlines()[-1]
    assert last.startswith(f"llmgym.errors.KernelError: {tmp_path / 'my_env.py'}:{line}"), err[-2000:]
    assert message in last


@pytest.mark.slow
def test_a_name_that_is_not_there_is_told_by_its_function(tmp_path):
    _, err, _ = play(tmp_path, "    full = max(", "    full = no_such_name(")
    last = err.strip().splitlines()[-1]
    told = "in step_lane: numba cannot compile this: NameError: name 'no_such_name' is not defined"
    assert last == f"llmgym.errors.KernelError: {told}"


@pytest.mark.slow
def test_the_command_line_tells_it_in_one_line(tmp_path):
    code = "import sys; from llmgym.cli import main; sys.exit(main(['compile', 'my_env:me/My-v0']))"
    _, err, line = play(tmp_path, "now.waited_s += spent_s", "now.waitd_s += spent_s", code, LLMGYM_QUIET="1")
    assert (
        err.startswith(f"llmgym: {tmp_path / 'my_env.py'}:{line}, in step_lane: ") and err.count("\n") == 1
    ), err


OUT_OF_BOUNDS = ("now.waiting[int(action[0])] += 1", "now.waiting[int(action[0]) + now.second // 9] += 1")


def test_an_index_out_of_bounds_is_told_under_debug_alone(tmp_path):
    out, err, line = play(tmp_path, *OUT_OF_BOUNDS, LLMGYM_DEBUG="1")
    last = err.strip().splitlines()[-1]
    assert (
        last
        == f"IndexError: {tmp_path / 'my_env.py'}:{line}, in step_lane: index is out of bounds for axis 0"
    ), err
    assert "with bounds checks" in err and out == ""


@pytest.mark.slow
def test_debug_changes_no_bit_and_has_kernels_of_its_own(tmp_path):
    plain, err, _ = play(tmp_path)
    assert plain and "with bounds checks" not in err
    before = {path.name for path in (tmp_path / "cache").rglob("*.nbc")}
    checked, err, _ = play(tmp_path, LLMGYM_DEBUG="1")
    assert checked == plain and "with bounds checks" in err
    after = {path.name for path in (tmp_path / "cache").rglob("*.nbc")}
    assert before < after
    assert play(tmp_path, LLMGYM_DEBUG="1")[:2] == (plain, "") and play(tmp_path, LLMGYM_DEBUG="0")[:2] == (
        plain,
        "",
    )


def test_an_error_that_is_not_about_compiling_stays_as_it_is():
    for error in (KeyError("a"), IndexError("b"), ZeroDivisionError()):
        try:
            raise error
        except Exception as caught:
            assert explained(caught) is error


def test_colours_are_left_out():
    """Where colorama is installed, numba colours its errors."""
    from numba.core.errors import TypingError

    from llmgym.core.jit import explained

    bold, plain = "\x1b[1m", "\x1b[0m"
    told = TypingError(
        f"{bold}{bold}Failed in nopython mode pipeline (step: nopython frontend){plain}\n{bold}Untyped global name 'a'{plain}\n"
    )
    assert str(explained(told)) == "numba cannot compile this: Untyped global name 'a'"
