"""RLlib's PPO behind the plan, folder and checkpoints of the other trainers."""

import importlib.util
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from llmgym import policies, train
from llmgym.errors import InvalidArgument, MissingExtra
from llmgym.policies import RLLIB, Callback, Plan, PPOConfig
from tests.policies.toys import TOY

pytest.importorskip("torch")

QUICK = PPOConfig(rollout_steps=16, minibatch=64, epochs=1, learning_rate=3e-3, threads=1)


def plan(out: Path, **others: Any) -> Plan:
    given: dict[str, Any] = {"timesteps": 1024, "lanes": 16, "workers": 1, "validation_episodes": 4}
    return Plan(TOY, out, algo=RLLIB, progress=False, config=QUICK, save_every_s=0.0, **{**given, **others})


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--workers", "2"], "--workers 2: only --backend rllib has it"),
        (["--address", "auto"], "--address auto: only --backend rllib has it"),
        (["--backend", "rllib", "--algo", "sb3-ppo"], "--algo sb3-ppo: --backend rllib has its own"),
    ],
)
def test_mistakes(words: list[str], message: str, tmp_path: Path, capsys: Any) -> None:
    assert train.main([*words, "--out", str(tmp_path / "run")]) == 2
    assert message in capsys.readouterr().err


def test_without_rllib_one_line_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtra, match=r"pip install 'llmgym\[rllib\]'"):
        policies.train(plan(tmp_path))
    assert train.main(["--backend", "rllib", "--out", str(tmp_path / "run"), "--no-progress"]) == 2
    assert "the backend rllib needs the optional 'rllib' extra" in capsys.readouterr().err


needs_rllib = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None or importlib.util.find_spec("ray.rllib") is None,
    reason="RLlib is not installed",
)


def runners() -> list[int]:
    """Processes of RLlib's workers that this process has started."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            name, process = (folder / "cmdline").read_text(), int(folder.name)
            if not name.startswith("ray::SingleAgentEnvRunner"):
                continue
            while process not in (0, 1, os.getpid()):
                process = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has just ended
            continue
        if process == os.getpid():
            found.append(int(folder.name))
    return found


class Kills(Callback):
    """Kills a worker after the first update."""

    killed = 0

    def on_update(self, run: Any, row: Mapping[str, float]) -> None:
        if not self.killed:
            self.killed, *_ = runners()
            os.kill(self.killed, signal.SIGKILL)


@needs_rllib
@pytest.mark.slow
def test_a_run_is_loaded_without_ray_and_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = policies.train(plan(tmp_path, timesteps=512))
    assert first.steps == 512 and first.best.name == "best.pt" and np.isfinite(first.validation_return)
    again = policies.train(plan(tmp_path, resume=True))
    assert again.steps == 1024 and again.curve["steps"].tolist() == [256.0, 512.0, 768.0, 1024.0]
    assert np.isfinite(again.curve["policy_loss"]).all()
    assert again.curve["learning_rate"][-1] == pytest.approx(0.0, abs=1e-9)
    monkeypatch.setitem(sys.modules, "ray", None)
    envs = gymnasium.make_vec(TOY, num_envs=4)
    policy = policies.load(again.checkpoint, envs)
    obs, infos = envs.reset(seed=0)
    chosen = policy.act(obs, infos["action_mask"])
    assert (
        infos["action_mask"][np.arange(4), chosen].all() and policies.meta(again.checkpoint)["algo"] == RLLIB
    )


@needs_rllib
@pytest.mark.slow
def test_a_killed_worker_is_replaced(tmp_path: Path) -> None:
    kills = Kills()
    result = policies.train(plan(tmp_path, callbacks=(kills,)))
    assert kills.killed and result.steps >= 1024 and np.isfinite(result.curve["policy_loss"]).all()


@needs_rllib
@pytest.mark.slow
@pytest.mark.parametrize("action", ["pair", "box"])
def test_other_actions(tmp_path: Path, action: str) -> None:
    result = policies.train(plan(tmp_path, timesteps=256, env_kwargs={"action": action}))
    envs = gymnasium.make_vec(TOY, num_envs=4, action=action)
    obs, infos = envs.reset(seed=0)
    chosen = policies.load(result.checkpoint, envs).act(obs, infos["action_mask"])
    assert all(envs.single_action_space.contains(one) for one in chosen)


@needs_rllib
@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"config": PPOConfig(network="scorer")}, "network='scorer': RLlib does not do that here"),
        ({"config": PPOConfig(imitate="serves")}, "imitate='serves'"),
        ({"init": "some.pt"}, "init='some.pt'"),
        ({"lanes": 15, "workers": 2}, "lanes=15: expected a multiple of the 2 workers"),
        ({"address": "127.0.0.1:1"}, "no Ray cluster there"),
    ],
)
def test_what_rllib_does_not_do(tmp_path: Path, others: dict[str, Any], message: str) -> None:
    given = {**vars(plan(tmp_path)), **others}
    with pytest.raises(InvalidArgument, match=message):
        policies.train(Plan(**given))
