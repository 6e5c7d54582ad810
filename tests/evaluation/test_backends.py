"""Where episodes are played changes nothing, and what goes wrong there is told."""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

import llmgym
from llmgym import cli
from llmgym.core import spec
from llmgym.errors import InvalidAction, InvalidArgument, LlmgymError, MissingExtra
from llmgym.evaluation import backend, compare, rollout, run_episodes, tuned
from llmgym.evaluation.comparison import Comparison
from llmgym.evaluation.rollout import EpisodeTable
from tests.evaluation.conftest import Fake, always
from tests.evaluation.mortal import DIES, ID, SPEC

ROOT = Path(__file__).parents[2]
RULES = ["serves", "serves:serve=0", "mortal:serve=2"]


@pytest.fixture(autouse=True)
def _mortal() -> Iterator[None]:
    """The environment of tests/evaluation/mortal.py is known during a test and unknown after it."""
    llmgym.register(SPEC)
    yield
    for table in (spec._specs, gymnasium.registry):
        table.pop(ID)


def test_what_kills_is_known_to_nobody_else() -> None:
    known = "import llmgym, tests.evaluation.test_backends; print(*llmgym.env_ids())"
    shown = subprocess.run(
        [sys.executable, "-c", known], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert ID not in shown.stdout.split() and "llmgym/KVQueue-v1" in shown.stdout


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollout, "LANES_AT_ONCE", 4)


def assert_same_table(one: EpisodeTable, other: EpisodeTable) -> None:
    for name in ("seeds", "returns", "steps", "simulated_s", "terminated", "truncated"):
        assert getattr(one, name).tobytes() == getattr(other, name).tobytes()
    assert one.metrics.keys() == other.metrics.keys()
    assert all(one.metrics[name].tobytes() == other.metrics[name].tobytes() for name in one.metrics)
    assert (one.kind, one.source, one.privileged, one.calls) == (
        other.kind,
        other.source,
        other.privileged,
        other.calls,
    )


def assert_same(one: Comparison, other: Comparison) -> None:
    """All that is not a time, to the bit, and the table as it is printed."""
    assert one.policies == other.policies
    for name in one.policies:
        assert_same_table(one.tables[name], other.tables[name])
    assert one.table().text(200) == other.table().text(200)


@pytest.mark.usefixtures("small_blocks")
def test_a_rule_is_played_in_blocks_and_what_goes_on_in_one() -> None:
    def of(policy: Any) -> list[tuple[int, int, int]]:
        contender = rollout.resolve(ID, policy)
        return [(b.seed, b.episodes, b.lanes) for b in rollout.blocks(ID, contender, 10, 5, {})]

    assert of("serves") == [(5, 4, 4), (9, 4, 4), (13, 2, 4)]
    assert of(always(1)) == [(5, 10, 4)]
    random = rollout.resolve("llmgym/AFDRefill-v0", "random")
    assert len(rollout.blocks("llmgym/AFDRefill-v0", random, 10, 5, {})) == 1


@pytest.mark.usefixtures("small_blocks")
def test_blocks_are_the_episodes_of_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    blocks = run_episodes(ID, "serves:serve=2", 10, 5, progress=lambda *told: seen.append(told))
    assert seen[0] == (0, 4, 1) and seen[-1][:2] == (10, 0) and max(sum(told[:2]) for told in seen) == 10
    monkeypatch.setattr(rollout, "LANES_AT_ONCE", 256)
    whole = run_episodes(ID, "serves:serve=2", 10, 5)
    assert np.array_equal(blocks.returns, whole.returns) and blocks.seeds.tolist() == whole.seeds.tolist()
    assert blocks.calls == 3 * whole.calls


def test_wrong_input(capsys: Any, tmp_path: Path) -> None:
    for arguments, message in (
        ({"name": "slurm"}, "unknown backend 'slurm'. Known: local, ray"),
        ({"workers": 0}, "workers=0: expected"),
        ({"address": "auto"}, "address='auto': only backend='ray' has one"),
    ):
        with pytest.raises(InvalidArgument, match=message), backend(**arguments):
            pytest.fail("it was taken")
    assert cli.main(["compare", ID, "--address", "here:1", "--out", str(tmp_path)]) == 2
    assert "address='here:1': only backend='ray'" in capsys.readouterr().err


def test_without_ray_one_line_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtra, match=r"pip install 'llmgym\[ray\]'"), backend("ray"):
        pytest.fail("Ray is not there")
    assert cli.main(["compare", ID, "--backend", "ray", "--out", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "llmgym: the backend ray needs the optional 'ray' extra: pip install 'llmgym[ray]'"


@pytest.mark.slow
@pytest.mark.usefixtures("small_blocks")
def test_processes_play_the_same() -> None:
    here = compare(ID, RULES, episodes=10)
    with backend(workers=2) as there:
        assert_same(here, compare(ID, RULES, episodes=10, backend=there))
        with pytest.raises(InvalidAction, match="policy 'wild', decision 1 "):
            compare(ID, ["serves", "wild"], episodes=10, backend=there)
    with backend(workers=2) as there, pytest.raises(InvalidArgument, match="must be one of a module"):
        compare(ID, [Fake("closure", lambda obs, mask: 1)], episodes=10, backend=there)
    with backend(workers=2) as there, pytest.raises(LlmgymError, match="a process has died and its work"):
        compare(ID, ["serves", "doomed"], episodes=10, backend=there)


@pytest.mark.slow
@pytest.mark.parametrize("env_id", llmgym.env_ids())
def test_rules_that_are_played_in_blocks_do_not_go_on(monkeypatch: pytest.MonkeyPatch, env_id: str) -> None:
    """What says that it draws nothing decides the same in another block, in a policy that is made anew."""
    played = 0
    for kwargs in llmgym.spec(env_id).test_cases().values():
        for name in llmgym.baselines.names(env_id):
            try:
                whole = run_episodes(env_id, name, 3, 7, kwargs)
            except InvalidArgument:  # it needs other arguments
                continue
            with monkeypatch.context() as patch:
                patch.setattr(rollout, "LANES_AT_ONCE", 2)
                contender = rollout.resolve(env_id, name)
                if len(rollout.blocks(env_id, contender, 3, 7, kwargs)) == 1:
                    continue
                parts = run_episodes(env_id, name, 3, 7, kwargs)
            assert parts.returns.tobytes() == whole.returns.tobytes(), name
            assert parts.steps.tolist() == whole.steps.tolist(), name
            played += 1
        if played:
            return
    pytest.fail("no rule was played")


# With Ray


needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    ray = pytest.importorskip("ray")
    yield ray
    ray.shutdown()


@needs_ray
@pytest.mark.slow
@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("workers", [1, 2])
def test_ray_plays_the_same(ray: Any, workers: int) -> None:
    here = compare(ID, [*RULES, always(2)], episodes=10)
    with backend("ray", workers) as there:
        assert there.workers == workers
        assert_same(here, compare(ID, [*RULES, always(2)], episodes=10, backend=there))
        assert tuned(ID, ["serves", "mortal"], episodes=6, backend=there) == tuned(
            ID, ["serves", "mortal"], episodes=6
        )
        with pytest.raises(InvalidAction, match="policy 'wild', decision 1 "):
            compare(ID, ["serves", "wild"], episodes=10, backend=there)
    assert not ray.is_initialized()


@needs_ray
@pytest.mark.slow
@pytest.mark.usefixtures("small_blocks")
def test_a_killed_worker_costs_its_episodes_and_nothing_else(
    ray: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    here = compare(ID, RULES, episodes=10)
    dies = tmp_path / "dies"
    monkeypatch.setenv(DIES, str(dies))
    with backend("ray", 2) as there:
        dies.touch()
        result = compare(ID, RULES, episodes=10, backend=there)
        assert not dies.exists()  # a worker has taken it away, and has died
        assert_same(here, result)
        chosen = tuned(ID, ["mortal"], episodes=6)
        dies.touch()
        assert tuned(ID, ["mortal"], episodes=6, backend=there) == chosen and not dies.exists()
    words = ["compare", ID, "--policies", *RULES, "--episodes", "10", "--json"]
    told, csv = [], []
    for where in (["local"], ["ray", "--workers", "2"]):
        if where[0] == "ray":
            dies.touch()
        capsys.readouterr()
        assert cli.main([*words, "--out", str(tmp_path / where[0]), "--backend", *where]) == 0
        told.append(json.loads(capsys.readouterr().out))  # and nothing else is on stdout
        csv.append((tmp_path / where[0] / "comparison.csv").read_bytes())
    assert not dies.exists() and csv[0] == csv[1] and told[0]["summary"] == told[1]["summary"]


@needs_ray
@pytest.mark.slow
def test_what_kills_its_worker_each_time_comes_to_an_end(ray: Any) -> None:
    with backend("ray", 1) as there, pytest.raises(LlmgymError, match="was lost 5 times with the worker"):
        compare(ID, ["doomed"], episodes=2, backend=there)


@needs_ray
@pytest.mark.slow
def test_a_cluster_that_runs(ray: Any, tmp_path: Path, capsys: Any) -> None:
    from ray.cluster_utils import Cluster

    here = compare(ID, RULES, episodes=4)
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "include_dashboard": False, "object_store_memory": 10**8},
    )
    try:
        with backend("ray", address=cluster.address) as there:
            assert there.workers == 1
            assert_same(here, compare(ID, RULES, episodes=4, backend=there))
        words = [*("compare", f"tests.evaluation.mortal:{ID}", "--policies", "serves", "--episodes", "2")]
        words += ["--backend", "ray", "--address", cluster.address, "--out", str(tmp_path / "out"), "--json"]
        assert cli.main(words) == 0
    finally:
        cluster.shutdown()


@needs_ray
@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("127.0.0.1:1", "Connection refused"),
        ("ray://127.0.0.1:1", "Connection refused"),
        ("nonsense", "expected host:port, ray://host:port or auto"),
        ("host:99999999", ""),
    ],
)
def test_an_address_where_nobody_answers(ray: Any, address: str, why: str) -> None:
    with (
        pytest.raises(InvalidArgument, match=rf"address='{address}': no Ray cluster there \({why}"),
        backend("ray", address=address),
    ):
        pytest.fail("nobody is there")
