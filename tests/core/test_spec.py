"""The table of environments: what is registered once is known everywhere, and what is wrong is told when it is registered."""

import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import gymnasium
import pytest

import llmgym
from llmgym import EnvSpec
from llmgym.core import spec as table
from llmgym.errors import InvalidArgument, UnknownName

ROOT = Path(llmgym.__file__).parents[1]
TOY = EnvSpec("spec-tests/Toy-v0", "tests.toy:ToyEnv", "tests.toy:ToyVectorEnv")


@pytest.fixture
def toy():
    llmgym.register(TOY)
    yield TOY
    del table._specs[TOY.id]
    del gymnasium.registry[TOY.id]


def test_every_part_of_every_spec_is_there():
    for env_id in llmgym.env_ids():
        one = llmgym.spec(env_id)
        assert one.scenario_names() and one.test_cases() and one.baseline_module().BASELINES, env_id
        assert one.decision and one.source and (ROOT / one.docs).is_file(), env_id
        env = gymnasium.make(env_id, **next(iter(one.test_cases().values())))
        assert type(env.unwrapped.simulation).__name__ == one.name
        assert table.spec_of(env) is one


def test_an_environment_of_ones_own_is_known_everywhere(toy):
    assert toy.id in llmgym.env_ids() and llmgym.spec(f"tests.toy:{toy.id}") is toy
    assert gymnasium.make(toy.id).unwrapped.spec.id == toy.id
    assert gymnasium.make_vec(toy.id, num_envs=3).num_envs == 3
    assert (
        toy.scenario_names() == () and toy.test_cases() == {"default": {}} and toy.baseline_module() is None
    )
    assert llmgym.baselines.names(toy.id) == [] and llmgym.envs.scenario_names(toy.id) == ()
    from tests.toy import ToyEnv, ToyVectorEnv

    assert table.spec_of(ToyEnv()) is toy and table.spec_of(ToyVectorEnv(2)) is toy


def test_registering_the_same_again_changes_nothing(toy):
    before = dict(gymnasium.registry)
    llmgym.register(toy, replace(toy))
    assert gymnasium.registry == before


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"id": "Toy"}, "id='Toy': expected a name with a version"),
        ({"id": ""}, "id=''"),
        ({"env": "tests.toy"}, "env='tests.toy' of spec-tests/Toy-v0: expected 'module:name'"),
        ({"vector_env": ""}, "vector_env=''"),
        ({"scenarios": "tests.toy:"}, "scenarios='tests.toy:'"),
        ({"cases": "cases"}, "cases='cases'"),
        ({"id": "llmgym/KVQueue-v0"}, "is taken by llmgym.envs.kv.queue.env:KVQueueEnv"),
    ],
)
def test_a_wrong_spec_is_told_and_not_registered(wrong, message):
    before = llmgym.env_ids()
    with pytest.raises(InvalidArgument, match=message):
        llmgym.register(replace(TOY, **wrong))
    assert llmgym.env_ids() == before


def test_what_is_no_spec_is_told():
    with pytest.raises(InvalidArgument, match=r"expected a llmgym\.EnvSpec"):
        llmgym.register("tests.toy:ToyEnv")
    with pytest.raises(UnknownName, match="unknown environment 'me/No-v0'"):
        llmgym.spec("me/No-v0")


def installed(folder: Path, target: str, module: str) -> None:
    """A package with an entry point, as an installer would leave it."""
    (folder / "their_envs.py").write_text(module)
    info = folder / "their_envs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-envs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[llmgym.environments]\ntheirs = {target}\n")


def run(code: str, *paths: Path) -> tuple[str, str]:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import sys; sys.path[:0] = {[str(p) for p in paths]}\n{textwrap.dedent(code)}",
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip(), done.stderr


def test_an_installed_package_brings_its_environments_along(tmp_path):
    installed(
        tmp_path,
        "their_envs:SPECS",
        "from llmgym import EnvSpec\nSPECS = [EnvSpec('theirs/Toy-v1', 'tests.toy:ToyEnv', 'tests.toy:ToyVectorEnv')]\n",
    )
    out, _ = run(
        """
        import gymnasium, llmgym
        print("theirs/Toy-v1" in llmgym.env_ids(), type(gymnasium.make("theirs/Toy-v1").unwrapped).__name__)
        """,
        tmp_path,
        ROOT,
    )
    assert out == "True ToyEnv"


def test_a_package_that_cannot_be_loaded_keeps_nobody_from_working(tmp_path):
    installed(tmp_path, "their_envs:SPECS", "raise RuntimeError('broken')\n")
    out, err = run("import llmgym; print(len(llmgym.env_ids()) > 11)", tmp_path, ROOT)
    assert out == "True" and "environments of their_envs:SPECS (their-envs) are left out" in err
