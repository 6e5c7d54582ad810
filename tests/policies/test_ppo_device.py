"""The trainer on lanes of a device, which here is the memory of the machine: it learns what the trainer on the CPU learns."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from llmgym import policies
from llmgym.errors import InvalidArgument
from tests.policies.test_ppo import plan
from tests.policies.toys import GUESS, TOY, GuessVectorEnv, mean_return
from tests.toy import ToyVectorEnv

torch = pytest.importorskip("torch")
from llmgym.core.device_env import DeviceVectorEnv  # noqa: E402
from llmgym.policies import ppo, ppo_device  # noqa: E402
from llmgym.policies.episodes import Episodes  # noqa: E402
from llmgym.policies.network import RunningMoments, normalised  # noqa: E402
from tests.core.host_card import HostCard  # noqa: E402


@pytest.fixture(autouse=True)
def host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DeviceVectorEnv, "_card", staticmethod(lambda device, exact: HostCard()))


def test_learns_the_toy_and_leaves_a_policy(tmp_path: Path) -> None:
    result = policies.train(
        plan(
            tmp_path / "run",
            timesteps=160_000,
            env_kwargs={"invalid_action": "raise"},
            config={"env_device": "cuda", "scatter": 40},
        )
    )
    policy = policies.load(result.checkpoint, ToyVectorEnv(invalid_action="raise"))
    assert mean_return(TOY, policy.act, invalid_action="raise") > -1.0
    curve = result.curve
    known = curve["episodes"] > 0
    assert curve["episodes"].sum() > 3000 and np.isfinite(curve["explained_variance"]).all()
    assert np.allclose(curve["return_mean"][known], -curve["waited_s"][known])


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "least"), [("multi", 14.5), ("box", -2.0)])
def test_learns_several_parts_and_real_numbers(tmp_path: Path, kind: str, least: float) -> None:
    result = policies.train(
        plan(
            tmp_path / "run",
            GUESS,
            timesteps=300_000,
            env_kwargs={"kind": kind},
            config={"env_device": "cuda", "learning_rate": 3e-3},
        )
    )
    policy = policies.load(result.checkpoint, GuessVectorEnv(kind=kind))
    assert mean_return(GUESS, policy.act, kind=kind) > least


def test_the_parts_are_those_of_the_cpu() -> None:
    rng = np.random.default_rng(0)
    T, N = 7, 5
    arrays = [rng.normal(size=(T, N)).astype(np.float32) for _ in range(3)]
    ended, discounts = rng.random((T, N)) < 0.2, rng.random((T, N)).astype(np.float32)
    here = ppo.advantages(*arrays, ended, discounts, 0.9)
    there = ppo_device.advantages(
        *map(torch.from_numpy, arrays), torch.from_numpy(ended), torch.from_numpy(discounts), 0.9
    )
    assert np.allclose(here, there.numpy(), rtol=1e-5, atol=1e-6)

    moments, rows = RunningMoments(4), rng.normal(3.0, 2.0, (50, 4)).astype(np.float32)
    moments.update(rows)
    again = RunningMoments(4)
    again.take(*ppo_device._moments(torch.from_numpy(rows)))
    assert np.allclose(moments.mean, again.mean) and np.allclose(moments.var, again.var)
    for enabled in (True, False):
        found = normalised(torch.from_numpy(rows), moments, enabled).numpy()
        want = np.clip((rows - moments.mean) / np.sqrt(moments.var + 1e-4), -10, 10) if enabled else rows
        assert np.allclose(found, want, atol=1e-5)

    host, device = Episodes(N, ("a", "b")), ppo_device.Averages(N, ("a", "b"), torch.device("cpu"))
    for _ in range(20):
        rewards, over, metrics = rng.normal(size=N), rng.random(N) < 0.3, rng.normal(size=(N, 2))
        metrics[0, 1] = np.nan
        host.step(rewards, over, metrics)
        device.step(torch.from_numpy(rewards), torch.from_numpy(over), torch.from_numpy(metrics))
    want, found = host.averages(), device.take()
    assert want.keys() == found.keys() and want["episodes"] > 5
    assert all(found[name] == pytest.approx(want[name]) for name in want)
    assert device.take() == {"episodes": 0.0}


def test_the_networks_live_where_the_lanes_do(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="device='meta'"):
        policies.train(plan(tmp_path / "run", config={"env_device": "cuda", "device": "meta"}))


def test_stable_baselines_stays_on_the_cpu(tmp_path: Path) -> None:
    pytest.importorskip("stable_baselines3")
    wrong = dataclasses.replace(plan(tmp_path / "run", config={"env_device": "cuda"}), algo="sb3-ppo")
    with pytest.raises(InvalidArgument, match='env_device="cuda"'):
        policies.train(wrong)
