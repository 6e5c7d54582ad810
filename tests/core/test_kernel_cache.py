"""The disk cache of compiled kernels: never stale, never needed twice, harmless when damaged or shared."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import llmgym
from llmgym.core import jit

PACKAGE = Path(llmgym.__file__).parent
TOY = Path(__file__).parents[1] / "toy.py"

TOY_SCRIPT = """
import toy
env = toy.ToyEnv()
env.reset(seed=1)
for _ in range(6):
    result = env.step(0)
print(result[1].hex(), toy.rng.__file__)
"""

FARM = {
    "__init__": "",
    # a kernel, what it calls in another module, and a constant that one takes from a third
    "a": "from llmgym.core.jit import kernel\nfrom farm import b\n\n\n"
    '@kernel(announce="farm")\ndef whole(x):\n    return b.twice(x) + 1.0\n',
    "b": "from llmgym.core.jit import kernel\nfrom .c import FACTOR\n\n\n@kernel\ndef twice(x):\n    return FACTOR * x\n",
    "c": "FACTOR = 2.0\n",
}
FARM_SCRIPT = "from farm.a import whole; print(whole(3.0))"


def start(folder: Path, script: str, **environment: str) -> subprocess.Popen[str]:
    clean = {key: value for key, value in os.environ.items() if key not in ("LLMGYM_QUIET", "PYTHONPATH")}
    clean |= {"PYTHONPATH": str(folder), "LLMGYM_CACHE_DIR": str(folder / "cache"), **environment}
    return subprocess.Popen(
        [sys.executable, "-B", "-c", script],
        cwd=folder,
        env=clean,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def run(folder: Path, script: str, **environment: str) -> tuple[str, str]:
    """What a new process says on stdout and on stderr."""
    process = start(folder, script, **environment)
    out, err = process.communicate()
    assert process.returncode == 0, err
    return out.strip(), err.strip()


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A folder with a copy of the package and the toy environment."""
    shutil.copytree(PACKAGE, tmp_path / "llmgym", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(TOY, tmp_path / "toy.py")
    return tmp_path


@pytest.fixture
def farm(package: Path) -> Path:
    """The same with a package of three small modules, `a` calling into `b`, which reads `c`."""
    (package / "farm").mkdir()
    for name, text in FARM.items():
        (package / "farm" / f"{name}.py").write_text(text)
    return package


def test_editing_a_shared_helper_changes_what_a_new_process_computes(package):
    before = {path for path in package.rglob("*") if "cache" not in path.parts}
    first, announced = run(package, TOY_SCRIPT)
    assert first.endswith(str(package / "llmgym" / "core" / "rng.py"))
    assert "compiling Toy for this machine" in announced
    again, silent = run(package, TOY_SCRIPT)
    assert (again, silent) == (first, ""), "an unedited second process compiles nothing"

    helper = package / "llmgym" / "core" / "rng.py"
    original = helper.read_text()
    edit(helper, "return (float(bits(key, number) >> _S12) + 0.5) * _TO_UNIT", "return 0.999")
    edited, announced = run(package, TOY_SCRIPT)
    assert "compiling Toy for this machine" in announced
    assert float.fromhex(edited.split()[0]) == 0.0 > float.fromhex(first.split()[0]), (
        "nobody arrives any more"
    )

    helper.write_text(original)
    assert run(package, TOY_SCRIPT) == (first, ""), "the old code is still there"
    assert {path for path in package.rglob("*") if "cache" not in path.parts} == before, (
        "nothing beside the cache"
    )


def test_a_change_is_seen_through_any_number_of_modules(farm):
    first, _ = run(farm, FARM_SCRIPT)
    assert first == "7.0"
    assert run(farm, FARM_SCRIPT) == ("7.0", "")
    edit(farm / "farm" / "c.py", "2.0", "5.0")
    second, announced = run(farm, FARM_SCRIPT)
    assert second == "16.0" and "compiling farm" in announced
    edit(farm / "farm" / "b.py", "return FACTOR * x", "return FACTOR * x * x")
    assert run(farm, FARM_SCRIPT)[0] == "46.0"


def test_a_damaged_file_is_ignored_with_a_warning_and_replaced(farm):
    run(farm, FARM_SCRIPT)
    files = list((farm / "cache").rglob("*.nbc"))
    assert files
    damages = [lambda data: b"", lambda data: data[: len(data) // 2], lambda data: b"nonsense" + data]
    for damage in damages:
        for path in files:
            path.write_bytes(damage(path.read_bytes()))
        out, err = run(farm, FARM_SCRIPT)
        assert out == "7.0" and "ignoring a damaged kernel cache file" in err
        assert run(farm, FARM_SCRIPT) == ("7.0", "")


def test_two_processes_may_compile_at_once(package):
    both = [start(package, TOY_SCRIPT) for _ in range(2)]
    said = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert said[0][0] == said[1][0]
    assert not list((package / "cache").rglob("*.tmp"))
    assert run(package, TOY_SCRIPT)[1] == ""


def test_a_folder_that_cannot_be_written_gives_way_to_the_next(farm):
    """As root, permissions stop nobody; a file in the place of a folder does."""
    (farm / "taken").write_text("")
    elsewhere = {"LLMGYM_CACHE_DIR": str(farm / "taken" / "cache"), "XDG_CACHE_HOME": str(farm / "home")}
    if sys.platform != "linux":
        pytest.skip("XDG_CACHE_HOME moves the cache on Linux alone")
    assert run(farm, FARM_SCRIPT, **elsewhere)[0] == "7.0"
    assert list((farm / "home" / "llmgym").rglob("*.nbc"))
    assert run(farm, FARM_SCRIPT, **elsewhere) == ("7.0", "")


def test_a_read_only_installation(farm):
    folders = [path for path in (farm, *farm.rglob("*")) if path.is_dir()]
    (farm / "cache").mkdir()
    for path in folders:
        path.chmod(0o555)
    try:
        assert run(farm, FARM_SCRIPT)[0] == "7.0"
        assert run(farm, FARM_SCRIPT) == ("7.0", "")
    finally:
        for path in folders:
            path.chmod(0o755)
    assert not list((farm / "llmgym").rglob("*.nbc")) and not list((farm / "llmgym").rglob("__pycache__"))


def test_quiet(farm):
    assert run(farm, FARM_SCRIPT, LLMGYM_QUIET="1") == ("7.0", "")


KV_QUEUE_USES = [
    "llmgym.envs.kv_queue_kernels",
    "llmgym.serving.engine",
    "llmgym.serving.overflow",
    "llmgym.serving.residents",
    "llmgym.serving.requests",
    "llmgym.serving.queue",
    "llmgym.serving.admission",
    "llmgym.workloads.traffic",
    "llmgym.profiles.cost",
    "llmgym.core.rng",
    "llmgym.core.jit",
]


@pytest.mark.parametrize("edited", KV_QUEUE_USES)
def test_the_fingerprint_of_kvqueue_covers_what_it_calls(edited, monkeypatch):
    source = jit._source
    try:
        before = jit.fingerprint("llmgym.envs.kv_queue_kernels")
        unrelated = jit.fingerprint("llmgym.errors")
        jit.fingerprint.cache_clear()
        monkeypatch.setattr(
            jit,
            "_source",
            lambda module: source(module) + b"\n# edited" if module == edited else source(module),
        )
        assert jit.fingerprint("llmgym.envs.kv_queue_kernels") != before
        assert jit.fingerprint("llmgym.errors") == unrelated
    finally:
        jit.fingerprint.cache_clear()


def test_old_folders_of_a_module_are_removed(tmp_path, monkeypatch):
    (tmp_path / "kernels").mkdir()
    monkeypatch.setattr(jit, "cache_dir", lambda: tmp_path / "kernels")
    folders = {name: tmp_path / "kernels" / name for name in ("m-old", "m-new", "other-old")}
    for name, folder in folders.items():
        folder.mkdir()
        if name.endswith("old"):
            month_ago = folder.stat().st_mtime - (jit.STALE_AFTER_DAYS + 1) * 86400
            os.utime(folder, (month_ago, month_ago))

    def function() -> None: ...

    function.__module__ = "m"
    jit._KernelCache(function, None)._remove_stale()
    assert {name for name, folder in folders.items() if folder.exists()} == {"m-new", "other-old"}
