"""What is exported: the layout, the networks, the rule, and what a file that is no policy gets."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from llmgym import baselines, policies
from llmgym.cli import main
from llmgym.deploy import bundle as files
from llmgym.deploy.acting import KINDS, Identity, load
from llmgym.deploy.bundle import Bundle, layout_of, read, write
from llmgym.deploy.export import described, export
from llmgym.deploy.network import network
from llmgym.errors import CheckpointError, InvalidArgument
from tests.deploy.worlds import play, random_scorer

SHIPPED = [name for name in policies.names("llmgym/KVQueue-v1")]


def make(**kwargs: Any) -> Any:
    return gymnasium.make(
        "llmgym/KVQueue-v1", **{"scenario": "azure-conv-tight", "requests": 40, **kwargs}
    ).unwrapped


@pytest.fixture(scope="module")
def seen() -> tuple[Any, np.ndarray]:
    """An environment and observations of an episode."""
    env = make()
    rule: Any = baselines.make("pick-area", env)
    return env, play(env, lambda obs, mask: int(rule.act(obs[None], mask[None])[0]), 3)[0]


@pytest.mark.parametrize("kwargs", [{}, {"slots": 6, "running": 3}, {"scenario": "sessions"}])
def test_the_fields_are_those_of_the_environment(kwargs: dict[str, Any]) -> None:
    env = make(**kwargs)
    slots, running = kwargs.get("slots", 16), kwargs.get("running", 8)
    assert layout_of(slots, running) == env.simulation.layout.signature()
    found = described(env)
    assert found.size == env.simulation.layout.size and found.engine is not None
    assert found.engine["prefix_caching"] == (kwargs.get("scenario") == "sessions")


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_policy_gives_the_logits_of_torch(tmp_path: Path, seen: Any, name: str) -> None:
    torch = pytest.importorskip("torch")
    from llmgym.policies import checkpoint
    from llmgym.policies.network import Scorer

    env, observations = seen
    bundle = export(name, tmp_path / "policy.npz")
    stored = checkpoint.load(policies.TRAINED / f"{name}.pt")
    net = Scorer.restored(
        stored["model"], "actor.", env.simulation.layout.tables(), stored["meta"]["config"]["activation"]
    )
    read_again = read(tmp_path / "policy.npz")
    assert read_again.weights is not None and read_again.scales == bundle.scales
    forward = network(read_again)
    normalised = np.clip((observations - bundle.weights["mean"]) * bundle.weights["scale"], -10.0, 10.0)  # type: ignore[index]
    with torch.no_grad():
        expected = net(torch.from_numpy(normalised.astype(np.float32))).numpy()
    found = np.stack([forward(obs) for obs in observations])
    # float32: sums of some hundred products, in another order
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)


def test_a_shipped_policy_acts_as_in_the_gym(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    env = make(requests=150)
    learned = policies.load("KVQueue-v1/ppo-azure-conv-tight", env)
    export("KVQueue-v1/ppo-azure-conv-tight", tmp_path / "policy.npz")
    _, acting = load(str(tmp_path / "policy.npz"), None, env.simulation.scenario.kv_capacity)
    pairs = []

    def act(obs: Any, mask: Any) -> int:
        pairs.append((acting.act(obs, mask), int(learned.act(obs[None], mask[None])[0])))
        return pairs[-1][0]

    play(env, act, 0)
    assert all(one == other for one, other in pairs)
    assert len({one for one, _ in pairs}) > 3


@pytest.mark.parametrize("normalise", [True, False])
def test_an_mlp_gives_the_logits_of_torch(normalise: bool) -> None:
    torch = pytest.importorskip("torch")
    from llmgym.policies.layers import mlp

    env = make(slots=4, running=2)
    found = described(env, kind="network")
    net = mlp([found.size, 16, 8, 7], "relu", 1.0, torch.Generator().manual_seed(0))
    linear = [layer for layer in net if hasattr(layer, "weight")]
    weights = {}
    for i, layer in enumerate(linear):
        weights[f"layer.{i}.weight"] = layer.weight.detach().numpy()
        weights[f"layer.{i}.bias"] = layer.bias.detach().numpy() + np.float32(0.1)
        layer.bias.data += 0.1
    rng = np.random.default_rng(0)
    said: dict[str, Any] = {"kind": "mlp", "activation": "relu"}
    obs = rng.uniform(-1, 1, (20, found.size)).astype(np.float32)
    x = obs
    if normalise:
        weights["mean"], weights["scale"] = rng.normal(size=(2, found.size)).astype(np.float32)
        said["clip"] = 0.5
        x = np.clip((obs - weights["mean"]) * weights["scale"], -0.5, 0.5)
    forward = network(replace(found, network=said, weights=weights))
    with torch.no_grad():
        expected = net(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(np.stack([forward(one) for one in obs]), expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("rule", ["pick-area", "pick-area:aging=0.3,lead_s=2,cached_s=1,watermark=0.1"])
@pytest.mark.parametrize("scenario", ["azure-conv-tight", "tiers"])
def test_the_rule_acts_as_in_the_gym(tmp_path: Path, rule: str, scenario: str) -> None:
    env = make(scenario=scenario, requests=60)
    theirs: Any = baselines.make(rule, env)
    export(rule, tmp_path / "rule.npz", scenario=scenario)
    _, acting = load(str(tmp_path / "rule.npz"), None, env.simulation.scenario.kv_capacity)
    pairs = []

    def act(obs: Any, mask: Any) -> int:
        pairs.append((acting.act(obs, mask), int(theirs.act(obs[None], mask[None])[0])))
        return pairs[-1][1]

    play(env, act, 1)
    assert all(one == other for one, other in pairs) and len(pairs) > 60


def test_the_command_writes_a_policy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(
            [
                "export-policy",
                "pick-area:aging=0.1",
                str(tmp_path / "new" / "rule.npz"),
                "--scenario",
                "tiers",
            ]
        )
        == 0
    )
    found = read(tmp_path / "new" / "rule.npz")
    assert found.numbers is not None and found.numbers["aging"] == 0.1 and len(found.objectives) == 2
    assert main(["export-policy", "edf", str(tmp_path / "rule.npz")]) == 2
    assert "cannot be played with action='pick'" in capsys.readouterr().err
    assert main(["export-policy", "identity", str(tmp_path / "rule.pt")]) == 2
    assert "ends in .npz" in capsys.readouterr().err


def test_a_policy_of_another_environment_or_layout_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    with pytest.raises(CheckpointError, match="was trained on"):
        export("PPDRouting-v0/ppo-small", tmp_path / "x.npz")
    with pytest.raises(CheckpointError, match="does not fit this environment"):
        export("KVQueue-v1/ppo-tiers", tmp_path / "x.npz", slots=8)
    with pytest.raises(InvalidArgument, match="action='pick'"):
        described(make(action="rule"))


def test_a_file_that_is_no_policy_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "policy.npz"
    with pytest.raises(CheckpointError, match="no such file"):
        read(path)
    path.write_text("x")
    with pytest.raises(CheckpointError, match="damaged or no exported policy"):
        read(path)
    np.savez(path, meta=np.array("{}"))
    with pytest.raises(CheckpointError, match="is no exported policy"):
        read(path)
    monkeypatch.setattr(files, "VERSION", 2)
    write(path, Bundle())
    monkeypatch.setattr(files, "VERSION", 1)
    with pytest.raises(CheckpointError, match="format version 2"):
        read(path)
    # another layout: one field more, and one that is called otherwise
    monkeypatch.setattr(files, "HEAD", (*files.HEAD, "new"))
    write(path, Bundle())
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="made for another observation"):
        read(path)
    monkeypatch.setattr(files, "layout_hash", lambda layout: "0")
    write(path, Bundle())
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="not the one that it has the hash of"):
        read(path)
    write(path, replace(Bundle(), lists=("alphabet",)))
    with pytest.raises(CheckpointError, match="expected orders out of"):
        read(path)
    write(path, replace(Bundle(), kind="oracle"))
    with pytest.raises(CheckpointError, match="kind='oracle'"):
        load(str(path), None, 1024)
    write(path, replace(Bundle(), kind="pick-area"))
    with pytest.raises(CheckpointError, match="lacks a part"):
        load(str(path), None, 1024)


def test_logits_that_are_not_asked_for_are_left_out() -> None:
    bundle = random_scorer(described(make(slots=4, running=2)), 0)
    forward = network(bundle)
    obs = np.random.default_rng(0).uniform(-1, 1, bundle.size).astype(np.float32)
    every = forward(obs)
    waiting, running = slice(0, 5), slice(5, 7)
    assert forward(obs, (True, False))[waiting].tolist() == every[waiting].tolist()
    assert forward(obs, (False, True))[running].tolist() == every[running].tolist()
    assert forward(obs, (True, False))[running].tolist() != every[running].tolist()
    assert forward(obs).tolist() == every.tolist()


def test_a_network_of_other_shapes_is_told() -> None:
    good = random_scorer(described(make()), 0)
    network(good)
    assert good.weights is not None and good.network is not None
    with pytest.raises(CheckpointError, match=r"\(25,\) outputs: expected 24"):
        network(replace(good, slots=15))
    with pytest.raises(CheckpointError, match="does not fit its observation"):
        network(replace(good, weights={**good.weights, "row.0.weight": good.weights["row.1.weight"]}))
    with pytest.raises(CheckpointError, match="does not fit its observation"):
        network(replace(good, weights={k: v for k, v in good.weights.items() if k != "plain.bias"}))
    with pytest.raises(CheckpointError, match="activation='sine'"):
        network(replace(good, network={**good.network, "activation": "sine"}))
    with pytest.raises(CheckpointError, match="network='attention'"):
        network(replace(good, network={**good.network, "kind": "attention"}))
    with pytest.raises(CheckpointError, match="has no layers"):
        network(replace(good, network={**good.network, "kind": "mlp"}))


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        ("fcfs", "expected 'identity', a path that ends in .npz, or module:name"),
        ("nowhere.at.all:Policy", "cannot be imported"),
        ("tests.deploy.policies:Nowhere", "cannot be imported"),
        ("tests.deploy.policies:refuses", "has no act"),
    ],
)
def test_a_policy_that_cannot_be_had_is_told(policy: str, said: str) -> None:
    with pytest.raises(InvalidArgument, match=said):
        load(policy, None, 1024)


def test_identity_and_objects_of_ones_own_take_scales(tmp_path: Path) -> None:
    write(tmp_path / "scales.npz", described(make(slots=6, running=2)))
    found, acting = load("identity", str(tmp_path / "scales.npz"), 1024)
    assert found.slots == 6 and isinstance(acting, Identity)
    found, acting = load("tests.deploy.policies:Last", str(tmp_path / "scales.npz"), 1024)
    assert acting.act(np.zeros(found.size, np.float32), np.array([1, 0, 1, 0])) == 2
    assert set(KINDS) == {"identity", "pick-area", "network"}


def test_what_runs_in_an_engine_imports_numpy_alone() -> None:
    """With gymnasium, numba, scipy and torch out of reach, as in an engine's environment; and what needs them says so."""
    code = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in ('gymnasium', 'numba', 'scipy', 'torch', 'tyro', 'rich'):
            raise ModuleNotFoundError(f'No module named {name!r}', name=name.partition('.')[0])
sys.meta_path.insert(0, Absent())
import llmgym.deploy.steering, llmgym.deploy.router
from llmgym.deploy.acting import load
print(load('identity', None, 1024)[0].name, llmgym.__version__)
try:
    llmgym.env_ids
except ModuleNotFoundError as error:
    print(error.name)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] == "identity" and done.stdout.split()[2:] == ["gymnasium"]
