"""Computed tables: what their keys depend on, and that they are computed once."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from llmgym.core import cache_folder
from llmgym.core.store import Store, key, running
from llmgym.errors import InvalidArgument
from tests.toy import Toy

MODULE = '''
"""Words."""
import functools, math
import numpy as np
from llmgym.core.jit import kernel

FACTOR = 2.0
LAW = {"a": np.arange(3), "b": (1, 2)}

class Thing:
    def method(self):
        return 1

@kernel
def inner(x):
    return FACTOR * x

@functools.cache
def helper(x):
    return x + LAW["b"][0]  # a remark

def measure(x):
    thing = Thing()
    return inner(x) + helper(x) + math.sqrt(x)

def neighbour(x):
    return x
'''


def made(monkeypatch: pytest.MonkeyPatch, old: str = "", new: str = "") -> Any:
    """The module above with a change, as another version of it would be imported."""
    module = ModuleType("of_a_store")
    monkeypatch.setitem(sys.modules, "of_a_store", module)
    assert old in MODULE
    exec(MODULE.replace(old, new), module.__dict__)
    return module.measure


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("FACTOR = 2.0", "FACTOR = 3.0"),
        ("FACTOR * x", "FACTOR + x"),
        ('LAW["b"][0]', 'LAW["b"][1]'),
        ("(1, 2)", "(1, 3)"),
        ("np.arange(3)", "np.arange(4)"),
        ("math.sqrt", "math.log"),
    ],
)
def test_a_key_knows_what_computes(monkeypatch: pytest.MonkeyPatch, old: str, new: str) -> None:
    assert key({}, (made(monkeypatch),)) != key({}, (made(monkeypatch, old, new),))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Words", "Other words"),
        ("# a remark", "# another"),
        ("return x\n", "return 2 * x\n"),
        ("return 1", "return 2"),
        ("FACTOR = 2.0", "\n\nFACTOR = 2.0"),
    ],
)
def test_a_key_knows_nothing_else(monkeypatch: pytest.MonkeyPatch, old: str, new: str) -> None:
    found = key({}, (made(monkeypatch),))
    assert found is not None and found == key({}, (made(monkeypatch, old, new),))


def test_a_key_knows_the_inputs() -> None:
    inputs: list[Any] = [
        {},
        {"rate": 1.0},
        {"rate": 1},
        {"rate": 2.0},
        {"rate": "1.0"},
        {"rate": None},
        {"rate": np.array([1.0])},
        {"rate": np.array([[1.0]])},
        {"rate": np.array([1.0], np.float32)},
        {"rate": np.array([2.0])},
    ]
    keys = [key(one, ()) for one in inputs]
    assert len(set(keys)) == len(keys) and None not in keys
    frozen = np.array([1.0])
    frozen.setflags(write=False)
    assert key({"rate": frozen}, ()) == key({"rate": np.array([1.0])}, ())


def test_a_function_that_nobody_finds_again_has_no_key() -> None:
    home: dict[str, Any] = {"__name__": "nowhere_at_all"}
    exec("def lost(): return 1", home)
    assert key({}, (home["lost"],)) is not None  # its code says all there is

    from numba import vectorize

    assert key({}, (vectorize(lambda x: x),)) is None


def test_a_key_is_the_same_in_another_process() -> None:
    code = (
        "from llmgym.core.store import key, running; from tests.toy import Toy; "
        "print(key({'a': {1.0, 2.0, 3.0}}, running(Toy)))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    other = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert other.stdout.strip() == key({"a": {1.0, 2.0, 3.0}}, running(Toy))


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(cache_folder, "cache_dir", lambda: tmp_path / "kernels")
    return tmp_path / "tables"


def counting(calls: list[float], value: float) -> Any:
    def compute() -> dict[str, Any]:
        calls.append(value)
        return {"x": np.array([value, np.nan]), "n": np.arange(3)}

    return compute


def test_what_is_computed_once_is_kept(folder: Path) -> None:
    calls: list[float] = []
    store = Store("tables", "toy")
    first = store.get("a" * 64, counting(calls, 1.0))
    assert store.get("a" * 64, counting(calls, 1.0)) is first and calls == [1.0]
    (kept,) = folder.iterdir()
    assert kept.name == f"toy-{'a' * 32}.npz"
    store.forget()
    again = store.get("a" * 64, counting(calls, 1.0))
    assert calls == [1.0] and again is not first
    for name in first:
        assert again[name].dtype == first[name].dtype
        np.testing.assert_array_equal(again[name], first[name])
        with pytest.raises(ValueError, match="read-only"):
            again[name][0] = 0
    store.get("b" * 64, counting(calls, 2.0))
    assert calls == [1.0, 2.0]


@pytest.mark.parametrize("damage", ["words", "half", "nothing", "theirs"])
def test_a_damaged_file_is_computed_anew(folder: Path, damage: str) -> None:
    calls: list[float] = []
    Store("tables", "toy").get("a" * 64, counting(calls, 1.0))
    (kept,) = folder.iterdir()
    data = kept.read_bytes()
    kept.write_bytes({"words": b"damaged", "half": data[: len(data) // 2], "nothing": b""}.get(damage, data))
    if damage == "theirs":
        if not hasattr(os, "geteuid"):
            pytest.skip("files have no modes here")
        kept.chmod(0o666)
    found = Store("tables", "toy").get("a" * 64, counting(calls, 3.0))
    assert calls == [1.0, 3.0] and found["x"][0] == 3.0
    assert Store("tables", "toy").get("a" * 64, counting(calls, 4.0))["x"][0] == 3.0


def test_without_a_key_or_a_folder_results_are_computed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[float] = []
    store = Store("tables", "toy")
    for _ in range(2):
        store.get(None, counting(calls, 1.0))
    assert calls == [1.0, 1.0] and not folder.exists()
    folder.write_text("a file where a folder should be")
    store.get("c" * 64, counting(calls, 2.0))
    assert store.get("c" * 64, counting(calls, 3.0))["x"][0] == 2.0


def test_memory_is_bounded(folder: Path) -> None:
    calls: list[float] = []
    store = Store("tables", "toy", most=2)
    first = store.get("a" * 64, counting(calls, 1.0))
    store.get("b" * 64, counting(calls, 2.0))
    assert store.get("a" * 64, counting(calls, 1.0)) is first
    store.get("c" * 64, counting(calls, 3.0))
    assert store.get("a" * 64, counting(calls, 1.0)) is first
    assert len(store._memory) == 2


@dataclass(frozen=True)
class Settings:
    load: float


def test_inputs_are_told_apart_by_what_is_in_them(monkeypatch):
    function = made(monkeypatch)
    assert key(Settings(1.0), (function,)) == key(Settings(1.0), (function,))
    assert key(Settings(1.0), (function,)) != key(Settings(2.0), (function,))
    with pytest.raises(InvalidArgument, match="has no description"):
        key({"x": object()}, (function,))


def test_a_function_that_closes_over_an_object_is_not_kept():
    thing = object()

    def measure(x: float) -> str:
        return f"{thing}{x}"

    assert key(1.0, (measure,)) is None
