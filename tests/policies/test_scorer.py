"""One network for every row: the logit of an action comes from its row, wherever the row stands; and rules are imitated first."""

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from gymnasium.spaces import Discrete

import llmgym
from llmgym import baselines, policies
from llmgym.core.layout import Table
from llmgym.errors import CheckpointError, InvalidArgument
from llmgym.policies import Plan, PPOConfig
from llmgym.policies.checkpoint import load
from llmgym.policies.network import ActorCritic, RunningMoments
from llmgym.policies.rows import Scorer

FORAGE = "llmgym/Forage-v0"
ROWS, WIDTH = 5, 3
TABLES = (Table("queue", ((1, 2),), 2, ()), Table("candidates", ((6, WIDTH),), ROWS, (1, 7)))
"""An observation of 22 numbers: one, two rows of two, one, five rows of three, one; actions 1 to 5 and 7 to 11 belong to rows."""
INPUTS, ACTIONS = 22, 13


def scorer() -> Scorer:
    return Scorer(INPUTS, ACTIONS, TABLES, (16, 8), "tanh", 1.0, torch.Generator().manual_seed(0))


def test_rows_that_change_places_take_their_logits_with_them() -> None:
    net, obs = scorer(), torch.randn(4, INPUTS, generator=torch.Generator().manual_seed(1))
    order = [3, 0, 4, 1, 2]
    moved = obs.clone()
    moved[:, 6 : 6 + ROWS * WIDTH] = obs[:, 6 : 6 + ROWS * WIDTH].reshape(4, ROWS, WIDTH)[:, order].flatten(1)
    before, after = net(obs), net(moved)
    for first in (1, 7):
        assert torch.allclose(
            after[:, first : first + ROWS], before[:, first : first + ROWS][:, order], atol=1e-6
        )
    rest = [0, 6, 12]
    assert torch.allclose(after[:, rest], before[:, rest], atol=1e-6)
    assert not torch.allclose(before[:, 1], before[:, 2])


def test_a_row_matters_to_its_own_actions_beyond_the_summary() -> None:
    net = scorer()
    with torch.no_grad():
        net.summary.weight.zero_()
        obs = torch.zeros(1, INPUTS)
        changed = obs.clone()
        changed[0, 6 + 2 * WIDTH] = 3.0
        difference = (net(changed) - net(obs))[0]
    assert difference.nonzero().flatten().tolist() == [1 + 2, 7 + 2]


def test_rows_share_their_moments() -> None:
    rows = np.random.default_rng(0).normal(size=(500, INPUTS)).astype(np.float32)
    rows[:, 6 : 6 + ROWS * WIDTH] += np.repeat(np.arange(ROWS), WIDTH)
    moments = RunningMoments(INPUTS, TABLES)
    for part in np.split(rows, [100, 350]):
        moments.update(part)
    table = rows[:, 6 : 6 + ROWS * WIDTH].reshape(-1, WIDTH)
    assert np.allclose(moments.mean[6 : 6 + ROWS * WIDTH], np.tile(table.mean(0), ROWS))
    assert np.allclose(moments.var[6 : 6 + ROWS * WIDTH], np.tile(table.var(0), ROWS), rtol=1e-5)
    assert np.allclose(moments.mean[[0, 5, 21]], rows.mean(0)[[0, 5, 21]])


def test_weights_of_other_tables_are_refused() -> None:
    net = ActorCritic(INPUTS, Discrete(ACTIONS), (16, 8), "tanh", torch.Generator(), "scorer", TABLES)
    other = (TABLES[0], TABLES[1]._replace(actions=(1,)))
    with pytest.raises(CheckpointError, match="other tables of candidates"):
        Scorer.restored(net.state_dict(), "actor.", other, "tanh")


def plan(out: Path, **config: Any) -> Plan:
    settings = {"network": "scorer", "hidden": (16, 16), "rollout_steps": 16, "minibatch": 256, **config}
    return Plan(
        FORAGE,
        out,
        {"scenario": "small"},
        timesteps=2_000,
        lanes=32,
        progress=False,
        config=PPOConfig(**settings),
    )


def test_a_scorer_is_trained_saved_loaded_and_resumed(tmp_path: Path) -> None:
    result = policies.train(plan(tmp_path / "run"))
    env = gymnasium.make_vec(FORAGE, num_envs=6, scenario="small")
    policy = policies.load(result.checkpoint, env)
    obs, infos = env.reset(seed=5)
    actions = policy.act(obs, infos["action_mask"])
    assert (infos["action_mask"][np.arange(6), actions] == 1).all()
    stored = load(result.checkpoint)
    layout = env.unwrapped.layout
    net = ActorCritic(
        layout.size, env.single_action_space, (16, 16), "tanh", torch.Generator(), "scorer", layout.tables()
    )
    net.load_state_dict(stored["model"])
    moments = stored["normaliser"]["observations"]
    seen = (torch.from_numpy(obs) - moments["mean"].float()) / (moments["var"] + 1e-4).sqrt().float()
    logits = net.actor(seen.clamp(-10, 10)).masked_fill(
        torch.from_numpy(infos["action_mask"]) == 0, -torch.inf
    )
    assert (logits.argmax(1).numpy() == actions).all()
    longer = plan(tmp_path / "run")
    resumed = policies.train(Plan(**{**vars(longer), "resume": True, "timesteps": 3_000}))
    assert resumed.steps >= 3_000
    with pytest.raises(CheckpointError, match="network='scorer'"):
        policies.train(Plan(**{**vars(longer), "resume": True, "config": PPOConfig(hidden=(16, 16))}))


def test_a_rule_is_imitated(tmp_path: Path) -> None:
    """After some thousand of its choices the network makes nearly all of them, where a blind guess makes a few per cent."""
    teacher = "hybrid:retrieve=5,read=0.4,evaluations=0"
    result = policies.train(
        plan(tmp_path / "run", imitate=teacher, imitate_steps=12_000, value_first=10**6, learning_rate=3e-3)
    )
    env = gymnasium.make_vec(FORAGE, num_envs=64, autoreset_mode="SAME_STEP", scenario="small")
    policy, rule = policies.load(result.checkpoint, env), baselines.make(teacher, env)
    obs, infos = env.reset(seed=5)
    same = []
    for _ in range(20):
        mask = infos["action_mask"]
        actions = rule.act(obs, mask)
        same.append(np.mean(policy.act(obs, mask) == actions))
        obs, _, terminated, truncated, infos = env.step(actions)
        rule.reset(terminated | truncated)
    assert np.mean(same) > 0.8


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"imitate": "oracle"}, "imitate='oracle' sees what a policy does not"),
        ({"imitate": "nobody"}, "nobody"),
        ({"hidden": (16,)}, r'hidden=\(16,\): network="scorer" has two widths'),
        ({"network": "tree"}, "network='tree': allowed mlp, scorer, attention, recurrent"),
        ({"device": "toaster"}, "device='toaster': torch cannot use it here"),
        ({"imitate_steps": 0}, "imitate_steps=0"),
    ],
)
def test_what_cannot_be_done_is_said(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    with pytest.raises((InvalidArgument, llmgym.errors.UnknownName), match=message):
        policies.train(plan(tmp_path / "run", **config))


@pytest.mark.parametrize("config", [{"network": "scorer"}, {"imitate": "scout"}, {"device": "cuda"}])
def test_stable_baselines3_is_told_apart(tmp_path: Path, config: dict[str, Any]) -> None:
    pytest.importorskip("stable_baselines3")
    one = Plan(
        FORAGE,
        tmp_path / "run",
        algo="sb3-ppo",
        timesteps=100,
        lanes=2,
        progress=False,
        config=PPOConfig(**config),
    )
    with pytest.raises(InvalidArgument, match=r"stable-baselines3|own trainer"):
        policies.train(one)
