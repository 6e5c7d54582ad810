"""The package as a whole: what importing it costs, which names it has, which way its imports point."""

import ast
import importlib
import inspect
import os
import subprocess
import sys
from pathlib import Path

import gymnasium
import networkx
import pytest

import llmgym
from llmgym import baselines, errors

ROOT = Path(llmgym.__file__).parents[1]


def run(code: str) -> str:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_is_light():
    heavy = [
        "torch",
        "stable_baselines3",
        "sb3_contrib",
        "ray",
        "matplotlib",
        "numba",
        "scipy",
        "networkx",
        "tensorboard",
    ]
    code = f"import llmgym, sys; print([name for name in {heavy!r} if name in sys.modules])"
    assert run(code) == "[]"


def test_registering_needs_no_import_of_an_environment():
    code = "import llmgym, sys; print([m for m in sys.modules if m.startswith('llmgym.envs.')], len(llmgym.env_ids()))"
    assert run(code) == f"[] {len(llmgym.env_ids())}"


def test_the_prefix_form_needs_no_import_of_the_package():
    code = (
        "import gymnasium, sys\n"
        "env = gymnasium.make('llmgym:llmgym/KVQueue-v0', requests=5)\n"
        "envs = gymnasium.make_vec('llmgym:llmgym/KVQueue-v0', num_envs=2, requests=5)\n"
        "print(env.spec.id, type(envs).__name__)"
    )
    assert run(code) == "llmgym/KVQueue-v0 KVQueueVectorEnv"


@pytest.mark.filterwarnings("error")
def test_a_second_import_registers_nothing_twice():
    before = dict(gymnasium.registry)
    llmgym.envs.register_all()
    assert gymnasium.registry == before


def test_env_ids_are_registered_with_both_entry_points():
    ids = llmgym.env_ids()
    assert "llmgym/KVQueue-v0" in ids and ids == sorted(set(ids))
    for env_id in ids:
        spec = gymnasium.spec(env_id)
        assert spec.entry_point.endswith("Env") and spec.vector_entry_point.endswith("VectorEnv")
        assert spec.entry_point.partition(":")[0] == spec.vector_entry_point.partition(":")[0]


PUBLIC = {
    "env_ids": (),
    "compare": ("env_id", "policies", "episodes", "seed"),
    "baselines.names": ("env_id",),
    "baselines.make": ("name", "env"),
    "policies.names": ("env_id",),
    "policies.load": (None, "env"),
    "profiles.names": (),
    "profiles.load": (None,),
    "workloads.names": (),
    "workloads.load": (None,),
    "workloads.from_trace": ("path",),
}


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names(name):
    value = llmgym
    for part in name.split("."):
        value = getattr(value, part)
    parameters = list(inspect.signature(value).parameters)
    for place, expected in enumerate(PUBLIC[name]):
        assert expected is None or parameters[place] == expected, parameters


def test_every_listed_name_resolves_and_no_other_does():
    for name in llmgym.__all__:
        assert getattr(llmgym, name) is not None
        assert name in dir(llmgym)
    with pytest.raises(AttributeError, match="no attribute 'no_such_name'"):
        _ = llmgym.no_such_name


def test_errors_are_of_one_family_and_value_errors():
    mine = [value for value in vars(errors).values() if getattr(value, "__module__", "") == errors.__name__]
    family = [value for value in mine if isinstance(value, type)]
    assert len(family) >= 8
    assert all(issubclass(kind, errors.LlmgymError) for kind in family)
    for kind in (errors.InvalidArgument, errors.UnknownName, errors.InvalidAction, errors.TraceError):
        assert issubclass(kind, ValueError)
    assert issubclass(errors.ResetNeeded, RuntimeError) and issubclass(errors.MissingExtra, ImportError)


def test_unknown_names_say_what_there_is():
    error = errors.UnknownName("rule", "vlm", ["vllm", "mc-sf"])
    assert str(error) == "unknown rule 'vlm'. Did you mean 'vllm'? Known: mc-sf, vllm"
    assert (error.kind, error.name, error.known) == ("rule", "vlm", ["mc-sf", "vllm"])
    assert str(errors.UnknownName("rule", "x", [])) == "unknown rule 'x'. Known: (none)"
    assert "pip install 'llmgym[train]'" in str(errors.MissingExtra("PPO", "train"))


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: llmgym.workloads.load("no-such"), "no-such.*Known: "),
        (lambda: llmgym.profiles.load("no-such"), "no-such"),
        (
            lambda: gymnasium.make("llmgym/KVQueue-v0", scenario="no-such"),
            "scenario 'no-such'.*Known: .*tiny",
        ),
        (lambda: gymnasium.make("llmgym/KVQueue-v0", wrokload="x"), "'wrokload'.*Known: .*kv_capacity"),
        (
            lambda: llmgym.baselines.make("no-such", gymnasium.make("llmgym/KVQueue-v0")),
            "no-such.*Known: .*vllm",
        ),
    ],
    ids=["workload", "profile", "scenario", "argument", "baseline"],
)
def test_unknown_names_reach_the_caller(call, named):
    with pytest.raises(errors.UnknownName, match=named):
        call()


def test_imports_point_one_way(monkeypatch, tmp_path):
    pytest.importorskip("importlinter")
    from importlinter.cli import lint_imports

    contracts = (ROOT / "pyproject.toml").read_text()
    assert contracts.count('"llmgym.cli",') == 1
    if not (ROOT / "llmgym" / "cli.py").exists():
        contracts = contracts.replace('"llmgym.cli",', '"(llmgym.cli)",')  # an optional layer
    (tmp_path / "pyproject.toml").write_text(contracts)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT))
    assert lint_imports(config_filename="pyproject.toml", no_cache=True) == 0


def circles(package: str) -> list[list[str]]:
    """Groups of modules that import each other, imports in functions and under TYPE_CHECKING included."""
    graph = pytest.importorskip("grimp").build_graph(package, cache_dir=None)
    pairs = [(a, b) for a in graph.modules for b in graph.find_modules_directly_imported_by(a)]
    return [
        sorted(group)
        for group in networkx.strongly_connected_components(networkx.DiGraph(pairs))
        if len(group) > 1
    ]


def test_no_imports_go_in_a_circle():
    assert circles("llmgym") == []


@pytest.mark.parametrize(
    "back",
    [
        "from {package}.env import Env\n",
        "def picture():\n    from {package}.env import Env\n",
        "from typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n    from {package}.env import Env\n",
        "import {package}\n",
    ],
    ids=["plain", "in a function", "for types", "of the package"],
)
def test_every_kind_of_circle_is_found(back, monkeypatch, tmp_path):
    package = f"circle_{tmp_path.name}"  # a name of its own, as Python remembers where a package is
    folder = tmp_path / package
    folder.mkdir()
    (folder / "__init__.py").write_text(f"from {package}.env import Env\n")
    (folder / "env.py").write_text(f"from {package} import view\n\nEnv = view\n")
    (folder / "view.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert circles(package) == []
    (folder / "view.py").write_text(back.format(package=package))
    (found,) = circles(package)
    assert {f"{package}.env", f"{package}.view"} <= set(found)


def test_every_module_says_what_it_is():
    for path in sorted((ROOT / "llmgym").rglob("*.py")):
        assert ast.get_docstring(ast.parse(path.read_text())), f"{path} has no docstring"


def test_every_module_imports():
    for path in sorted((ROOT / "llmgym" / "core").glob("*.py")):
        name = f"llmgym.core.{path.stem}".removesuffix(".__init__")
        try:
            assert importlib.import_module(name).__name__ == name
        except errors.MissingExtra as error:
            assert (name, error.extra) == ("llmgym.core.cuda", "cuda")


@pytest.mark.parametrize("env_id", llmgym.env_ids())
def test_no_baseline_takes_a_number_that_it_does_not_have(env_id):
    """A number that is ignored would stand in the table as if it had been used."""
    for name in baselines.names(env_id):
        for change in ("nosuch=1", "", "="):
            with pytest.raises(errors.InvalidArgument):
                baselines.env_kwargs(env_id, f"{name}:{change}")
