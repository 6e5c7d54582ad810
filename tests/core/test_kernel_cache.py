"""The disk cache of compiled kernels: never stale, never needed twice, harmless when damaged or shared."""

import hashlib
import os
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

import llmgym
from llmgym.core import cache_folder, fingerprint, jit
from llmgym.envs.kv.queue.env import KVQueue

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


DAMAGES = {
    "cut": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "nonsense": lambda data: b"nonsense" + data,
}


@pytest.mark.parametrize(
    "how", ["cut", *(pytest.param(how, marks=pytest.mark.slow) for how in ("empty", "nonsense"))]
)
def test_a_damaged_file_is_ignored_with_a_warning_and_replaced(farm, how):
    run(farm, FARM_SCRIPT)
    files = list((farm / "cache").rglob("*.nbc"))
    assert files
    for path in files:
        path.write_bytes(DAMAGES[how](path.read_bytes()))
    out, err = run(farm, FARM_SCRIPT)
    assert out == "7.0" and "ignoring a damaged kernel cache file" in err
    assert run(farm, FARM_SCRIPT) == ("7.0", "")


@pytest.mark.slow
def test_two_processes_may_compile_at_once(package):
    both = [start(package, TOY_SCRIPT) for _ in range(2)]
    said = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert said[0][0] == said[1][0]
    assert not list((package / "cache").rglob("*.tmp"))
    assert run(package, TOY_SCRIPT)[1] == ""


@pytest.mark.slow
def test_a_folder_that_cannot_be_written_gives_way_to_the_next(farm):
    """As root, permissions stop nobody; a file in the place of a folder does."""
    (farm / "taken").write_text("")
    elsewhere = {"LLMGYM_CACHE_DIR": str(farm / "taken" / "cache"), "XDG_CACHE_HOME": str(farm / "home")}
    if sys.platform != "linux":
        pytest.skip("XDG_CACHE_HOME moves the cache on Linux alone")
    for _ in range(2):
        out, err = run(farm, FARM_SCRIPT, **elsewhere)
        assert out == "7.0"
        assert f"nothing is kept in LLMGYM_CACHE_DIR={farm}/taken/cache: {farm}/taken is not a folder" in err
        assert f"compiled kernels are kept in {farm}/home/llmgym/kernels" in err
    assert "compiling" not in err
    assert list((farm / "home" / "llmgym").rglob("*.nbc"))


@pytest.mark.slow
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


@pytest.mark.slow
def test_quiet(farm):
    assert run(farm, FARM_SCRIPT, LLMGYM_QUIET="1") == ("7.0", "")


KV_QUEUE_USES = [
    "llmgym.envs.kv.queue.kernels",
    "llmgym.serving.engine",
    "llmgym.serving.overflow",
    "llmgym.serving.residents",
    "llmgym.serving.requests",
    "llmgym.serving.queue",
    "llmgym.serving.admission",
    "llmgym.workloads.traffic",
    "llmgym.profiles.cost",
    "llmgym.core.rng",
]


def test_what_kvqueue_calls_is_part_of_its_key():
    for lane_kernel in KVQueue.kernels:
        fingerprint.describe(lane_kernel)
    assert set(KV_QUEUE_USES) <= {known.__module__ for known in fingerprint._settled}


@pytest.mark.parametrize("edited", KV_QUEUE_USES)
def test_the_fingerprint_of_a_module_covers_what_it_imports(edited, monkeypatch):
    source = fingerprint.source
    try:
        before = jit.fingerprint("llmgym.envs.kv.queue.kernels")
        unrelated = jit.fingerprint("llmgym.errors")
        jit.fingerprint.cache_clear()
        monkeypatch.setattr(
            fingerprint,
            "source",
            lambda module: source(module) + b"\n# edited" if module == edited else source(module),
        )
        assert jit.fingerprint("llmgym.envs.kv.queue.kernels") != before
        assert jit.fingerprint("llmgym.errors") == unrelated
    finally:
        jit.fingerprint.cache_clear()


@pytest.mark.slow
def test_what_no_run_has_used_for_a_month_is_removed(farm):
    run(farm, FARM_SCRIPT)
    kernels = farm / "cache" / "kernels"
    used = sorted(kernels.rglob("whole-*"))
    (kernels / "other").mkdir()
    orphans = [kernels / "other" / "old.nbc", kernels / "other" / "old.nbc.tmp"]
    month_ago = time.time() - (jit.STALE_AFTER_DAYS + 1) * 86400
    for path in orphans:
        path.write_text("")
    for path in (*used, *orphans):
        os.utime(path, (month_ago, month_ago))
    assert run(farm, FARM_SCRIPT) == ("7.0", ""), "nothing was stored, so nothing is removed"
    edit(farm / "farm" / "c.py", "2.0", "5.0")
    assert run(farm, FARM_SCRIPT)[0] == "16.0"
    assert not list((kernels / "other").iterdir())
    assert used and all(path.exists() for path in used), "the second run has used it"


NEEDS_OWNERS = pytest.mark.skipif(not hasattr(os, "geteuid"), reason="files have no owners here")


@pytest.fixture
def candidates(tmp_path, monkeypatch):
    """The three folders that are tried, in a place of their own."""
    monkeypatch.setattr(cache_folder.tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(
        cache_folder.platformdirs, "user_cache_dir", lambda *a, **k: str(tmp_path / "home" / "llmgym")
    )
    monkeypatch.setenv("LLMGYM_CACHE_DIR", str(tmp_path / "asked"))
    cache_folder.cache_dir.cache_clear()
    yield {
        "asked": tmp_path / "asked",
        "platform": tmp_path / "home" / "llmgym",
        "temporary": tmp_path / "temporary" / f"llmgym-cache-{os.geteuid()}",
    }
    cache_folder.cache_dir.cache_clear()


def spoil_others_may_write(folder, monkeypatch):
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    return "others may write to it \\(mode 0777"


def spoil_group_may_write(folder, monkeypatch):
    folder.mkdir(parents=True)
    folder.chmod(0o770)
    return "others may write to it \\(mode 0770"


def spoil_others_may_write_inside(folder, monkeypatch):
    (folder / "kernels").mkdir(parents=True)
    (folder / "kernels").chmod(0o777)
    return "others may write to it"


def spoil_link(folder, monkeypatch):
    folder.parent.mkdir(parents=True, exist_ok=True)
    target = folder.with_name("target")
    target.mkdir(mode=0o700)
    folder.symlink_to(target)
    return "it is a symbolic link"


def spoil_link_to_nothing(folder, monkeypatch):
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.symlink_to(folder.with_name("nothing"))
    return "is not a folder|it is a symbolic link"


def spoil_owner(folder, monkeypatch):
    folder.mkdir(parents=True, mode=0o700)
    if os.geteuid() == 0:
        os.chown(folder, 12345, 12345)
        return "it belongs to user 12345, not to user 0"
    true = Path.lstat

    def other(self):
        status = true(self)
        return os.stat_result([*status[:4], 12345, *status[5:10]]) if self == folder else status

    monkeypatch.setattr(Path, "lstat", other)
    return "it belongs to user 12345"


SPOIL = [value for name, value in list(globals().items()) if name.startswith("spoil_")]


@NEEDS_OWNERS
@pytest.mark.parametrize("spoil", SPOIL, ids=[spoil.__name__ for spoil in SPOIL])
@pytest.mark.parametrize("which", ["asked", "platform", "temporary"])
def test_a_folder_that_others_could_have_written_to_is_never_used(candidates, monkeypatch, spoil, which):
    """Files in it are unpickled and run."""
    names = list(candidates)
    for earlier in names[: names.index(which)]:  # nothing before it can be used
        candidates[earlier].parent.mkdir(parents=True, exist_ok=True)
        candidates[earlier].write_text("")
    why = spoil(candidates[which], monkeypatch)
    planted = candidates[which] / "kernels" if candidates[which].is_dir() else None
    with pytest.warns(UserWarning, match=f"nothing is kept in .*{candidates[which].name}: .*({why})"):
        found = cache_folder.cache_dir()
    assert found != candidates[which] / "kernels"
    later = names[names.index(which) + 1 :]
    if later:
        assert found == candidates[later[0]] / "kernels"
    else:
        assert found.name == "kernels" and found.parent.name.startswith("llmgym-cache-")
        assert found.parents[1] == candidates["temporary"].parent
    for folder in (found, found.parent):
        assert stat.S_IMODE(folder.lstat().st_mode) == 0o700 and folder.lstat().st_uid == os.geteuid()
    assert planted is None or not planted.exists() or not list(planted.iterdir())


@NEEDS_OWNERS
def test_a_folder_of_ones_own_is_used_without_a_word(candidates, recwarn):
    candidates["asked"].mkdir(mode=0o755)
    assert cache_folder.cache_dir() == candidates["asked"] / "kernels"
    assert stat.S_IMODE((candidates["asked"] / "kernels").stat().st_mode) == 0o700
    assert not recwarn.list


@pytest.mark.slow
@NEEDS_OWNERS
def test_a_fresh_folder_ends_with_its_process(farm):
    for name in ("asked", "home"):
        (farm / name).write_text("")
    (farm / "tmp").mkdir()
    (farm / "tmp" / f"llmgym-cache-{os.geteuid()}").mkdir(mode=0o777)
    (farm / "tmp" / f"llmgym-cache-{os.geteuid()}").chmod(0o777)
    nowhere = {
        "LLMGYM_CACHE_DIR": str(farm / "asked"),
        "XDG_CACHE_HOME": str(farm / "home"),
        "HOME": str(farm / "home"),
    }
    out, err = run(farm, FARM_SCRIPT, TMPDIR=str(farm / "tmp"), **nowhere)
    assert out == "7.0" and f"LLMGYM_CACHE_DIR={farm}/asked" in err and "others may write to it" in err
    assert [path.name for path in (farm / "tmp").iterdir()] == [f"llmgym-cache-{os.geteuid()}"]
    assert not list((farm / "tmp").rglob("*.nbc"))


@NEEDS_OWNERS
@pytest.mark.parametrize(
    "how",
    ["mode", pytest.param("link", marks=pytest.mark.slow), pytest.param("owner", marks=pytest.mark.slow)],
)
def test_a_file_of_somebody_else_is_not_run(farm, how):
    """Whoever can put a file into the folder is stopped at the file itself."""
    run(farm, FARM_SCRIPT)
    code = f"import os; os.system('touch {farm}/ran')"
    evil = f"cbuiltins\nexec\n(V{code}\ntR.".encode()
    for path in (farm / "cache").rglob("whole-*.nbc"):
        path.unlink()
        target = path.with_suffix(".elsewhere") if how == "link" else path
        target.write_bytes(hashlib.sha256(evil).digest() + evil)
        if how == "mode":
            path.chmod(0o666)
        elif how == "link":
            path.symlink_to(target)
        elif os.geteuid() == 0:
            os.chown(path, 12345, 12345)
        else:
            pytest.skip("only root can give files away")
    out, err = run(farm, FARM_SCRIPT)
    assert out == "7.0" and "ignoring a damaged kernel cache file" in err
    assert not (farm / "ran").exists()


def test_users_are_kept_apart_by_other_means_where_files_have_no_owners(candidates, monkeypatch):
    """As on Windows."""
    monkeypatch.delattr(cache_folder.os, "geteuid")
    candidates["asked"].mkdir(mode=0o777)
    candidates["asked"].chmod(0o777)
    assert cache_folder.cache_dir() == candidates["asked"] / "kernels"
