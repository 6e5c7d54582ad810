"""Rows that attend to each other, and networks with a memory."""

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from gymnasium.spaces import Discrete  # noqa: E402

from llmgym import policies  # noqa: E402
from llmgym.core.device_env import DeviceVectorEnv  # noqa: E402
from llmgym.core.layout import Table  # noqa: E402
from llmgym.errors import CheckpointError, InvalidArgument  # noqa: E402
from llmgym.policies import Plan, PPOConfig, checkpoint, learner  # noqa: E402
from llmgym.policies.network import ActorCritic, RunningMoments, normalised  # noqa: E402
from llmgym.policies.recurrent import Before, Recurrent  # noqa: E402
from llmgym.policies.rows import Scorer  # noqa: E402
from tests.core.host_card import HostCard  # noqa: E402
from tests.policies.toys import RECALL, RecallVectorEnv  # noqa: E402

FORAGE, REFILL = "llmgym/Forage-v0", "llmgym/AFDRefill-v0"
COLUMNS = Table("jobs", ((1, 1), (5, 2)), 4, (0,))
"""Four rows of three numbers, in two fields: of 14 numbers, the first and the last belong to no row."""


def attention(tables: tuple[Table, ...] = (COLUMNS,), inputs: int = 14, outputs: int = 5) -> Scorer:
    generator = torch.Generator().manual_seed(0)
    return Scorer(inputs, outputs, tables, (8, 12), "tanh", 1.0, generator, attention=True)


@pytest.mark.parametrize("network", ["scorer", "attention"])
def test_columns_of_several_fields_make_a_row(network: str) -> None:
    generator = torch.Generator().manual_seed(0)
    net = Scorer(14, 5, (COLUMNS,), (8, 12), "tanh", 1.0, generator, network == "attention")
    obs = torch.randn(3, 14, generator=generator)
    order = [2, 0, 3, 1]
    moved = obs.clone()
    moved[:, COLUMNS.entries().ravel()] = obs[:, COLUMNS.entries()[order].ravel()]
    before, after = net(obs), net(moved)
    assert torch.allclose(after[:, :4], before[:, order], atol=1e-6)
    assert torch.allclose(after[:, 4], before[:, 4], atol=1e-6)
    assert not torch.allclose(before[:, 0], before[:, 1])


def test_an_empty_row_is_as_good_as_none() -> None:
    """Four rows of which two are zero say what two rows say."""
    many, few = Table("jobs", ((1, 3),), 4, ()), Table("jobs", ((1, 3),), 2, ())
    net, small = attention((many,), 14, 1), attention((few,), 8, 1)
    small.load_state_dict(net.state_dict())
    obs = torch.randn(6, 14, generator=torch.Generator().manual_seed(1))
    obs[:, 7:13] = 0.0
    kept = torch.cat([obs[:, :7], obs[:, 13:]], dim=1)
    assert torch.allclose(net(obs), small(kept), atol=1e-6)
    obs[:, 7] = 1.0
    assert not torch.allclose(net(obs), small(kept), atol=1e-3)


def test_a_row_learns_of_the_others_by_attention_alone() -> None:
    net = attention()
    obs = torch.randn(1, 14, generator=torch.Generator().manual_seed(1))
    changed = obs.clone()
    changed[0, 1] += 3.0  # row 0
    with torch.no_grad():
        net.summary.weight.zero_()
        difference = (net(changed) - net(obs))[0]
    assert (difference[:4].abs() > 1e-4).all() and difference[4] == 0.0


def test_normalising_keeps_empty_rows() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(3.0, 2.0, (40, 14)).astype(np.float32)
    rows[:, COLUMNS.entries()[3]] = 0.0
    moments = RunningMoments(14, (COLUMNS,), keep_blank=True)
    moments.update(rows)
    out = normalised(torch.from_numpy(rows), moments, True)
    assert (out[:, COLUMNS.entries()[3]] == 0).all() and (out[:, COLUMNS.entries()[0]] != 0).all()
    moments.blank = []
    assert (normalised(torch.from_numpy(rows), moments, True)[:, COLUMNS.entries()[3]] != 0).all()


def test_a_memory_goes_on_over_sequences_and_is_emptied_when_an_episode_begins() -> None:
    generator = torch.Generator().manual_seed(0)
    net = Recurrent(3, 2, (6, 5), "tanh", 1.0, generator)
    steps, lanes = 7, 4
    obs = torch.randn(steps * lanes, 3, generator=generator)
    begins = torch.rand(steps * lanes, generator=generator) < 0.3
    memory = torch.randn(lanes, 5, generator=generator)
    with torch.no_grad():
        out, memories = net(obs, memory, begins)
        now = memory
        for t in range(steps):
            part = slice(t * lanes, (t + 1) * lanes)
            one, now = net(obs[part], now, begins[part])
            assert torch.allclose(one, out[part], atol=1e-6) and torch.allclose(
                now, memories[part], atol=1e-6
            )
        fresh, _ = net(obs[-lanes:], torch.randn(lanes, 5), torch.ones(lanes, dtype=torch.bool))
        empty, _ = net(obs[-lanes:], torch.zeros(lanes, 5), torch.zeros(lanes, dtype=torch.bool))
    assert torch.equal(fresh, empty)
    # a minibatch is some lanes with all of their steps
    before = Before(memory, memory, begins)
    pick, some = before.of(torch.tensor([2, 0]), steps)
    with torch.no_grad():
        assert torch.allclose(net(obs[pick], some.actor, some.begins)[0], out[pick], atol=1e-6)
    drawn = list(
        learner.minibatches(steps * lanes, 2 * steps, before, np.random.default_rng(0), torch.device("cpu"))
    )
    assert sorted(torch.cat([rows for rows, _ in drawn]).tolist()) == list(range(steps * lanes))
    assert [len(rows) for rows, _ in drawn] == [2 * steps, 2 * steps]


def recall(out: Path, network: str, **changes: Any) -> Plan:
    config = {
        "network": network,
        "hidden": (16,),
        "rollout_steps": 16,
        "minibatch": 512,
        "threads": 1,
        "gamma": 0.5,
    }
    config |= {"learning_rate": 5e-3, "scatter": 8} | changes.pop("config", {})
    settings = {"timesteps": 60_000, "lanes": 64, "save_every_s": 1e9, "progress": False, **changes}
    return Plan(RECALL, out, config=PPOConfig(**config), **settings)


def returns(policy: Any, env: Any, vector: bool) -> float:
    """Mean return of 40 episodes of five steps, played with `reset` where one begins."""
    total = 0.0
    if vector:
        obs, infos = env.reset(seed=5)
        policy.reset(np.ones(40, np.bool_))
        for _ in range(5):
            obs, reward, terminated, _, infos = env.step(policy.act(obs, infos["action_mask"]))
            total += reward.sum()
        assert terminated.all()
        return total / 40
    for seed in range(40):
        obs, info = env.reset(seed=seed)
        policy.reset(np.ones(1, np.bool_))
        for _ in range(5):
            obs, reward, *_, info = env.step(policy.act(obs[None], info["action_mask"][None])[0])
            total += float(reward)
    return total / 40


@pytest.mark.parametrize("device", ["cpu", pytest.param("card", marks=pytest.mark.slow)])
def test_what_was_seen_once_is_remembered(tmp_path: Path, monkeypatch: Any, device: str) -> None:
    """Who forgets is right once an episode, and in half of the other four steps."""
    monkeypatch.setattr(DeviceVectorEnv, "_card", staticmethod(lambda device, exact: HostCard()))
    config = {} if device == "cpu" else {"env_device": "cuda"}
    result = policies.train(recall(tmp_path / "run", "recurrent", config=config))
    vector = RecallVectorEnv(40, autoreset_mode="SAME_STEP")
    policy = policies.load(result.checkpoint, vector)
    assert returns(policy, vector, True) > 4.8
    assert returns(policy, vector, True) > 4.8  # a second game does not remember the first
    single = gymnasium.make(RECALL)
    assert returns(policies.load(result.checkpoint, single), single, False) > 4.8


def test_who_forgets_is_right_by_chance(tmp_path: Path) -> None:
    result = policies.train(recall(tmp_path / "run", "mlp"))
    vector = RecallVectorEnv(40, autoreset_mode="SAME_STEP")
    assert 2.0 < returns(policies.load(result.checkpoint, vector), vector, True) < 4.0


def test_a_memory_is_saved_and_resumed(tmp_path: Path) -> None:
    short = {"timesteps": 2_048, "config": {"learning_rate": 1e-3}}
    policies.train(recall(tmp_path / "run", "recurrent", **short))
    longer = recall(tmp_path / "run", "recurrent", timesteps=4_096, resume=True, validation_episodes=8)
    assert policies.train(longer).steps == 4_096
    with pytest.raises(CheckpointError, match="network='recurrent', not 'mlp'"):
        policies.train(recall(tmp_path / "run", "mlp", timesteps=8_192, resume=True))


@pytest.mark.parametrize("env_id", [FORAGE, REFILL])
@pytest.mark.parametrize("network", ["attention", "scorer", "recurrent", "mlp"])
def test_every_network_imitates_trains_and_plays(tmp_path: Path, env_id: str, network: str) -> None:
    rule = "min-max" if env_id == REFILL else "hybrid:retrieve=5,read=0.4,evaluations=0"
    config = PPOConfig(
        network=network, hidden=(8, 8), rollout_steps=8, minibatch=64, imitate=rule, imitate_steps=512, imitate_rounds=1,
        dagger_rounds=1, value_first=1, threads=1,
    )  # fmt: skip
    plan = Plan(
        env_id, tmp_path / "run", {"scenario": "small"}, timesteps=512, lanes=16, progress=False, config=config,
        validation_episodes=4,
    )  # fmt: skip
    result = policies.train(plan)
    assert np.isfinite(result.validation_return)
    env: Any = gymnasium.make_vec(env_id, num_envs=5, scenario="small")
    policy = policies.load(result.best, env)
    obs, infos = env.reset(seed=5)
    actions = policy.act(obs, infos["action_mask"])
    assert infos["action_mask"][np.arange(5), actions].all()
    # the same logits from the network that was trained, step after step
    stored = checkpoint.load(result.best)
    layout = env.unwrapped.layout
    tables = layout.tables() if network in ("attention", "scorer") else ()
    net = ActorCritic(
        layout.size,
        Discrete(len(infos["action_mask"][0])),
        (8, 8),
        "tanh",
        torch.Generator(),
        network,
        tables,
    )
    net.load_state_dict(stored["model"])
    moments = RunningMoments(layout.size, tables, network == "attention")
    moments.restore(stored["normaliser"]["observations"])
    begins = torch.ones(5, dtype=torch.bool)
    before = Before(torch.zeros(5, 8), torch.zeros(5, 8), begins) if net.memory else None
    policy.reset(np.ones(5, np.bool_))
    for _ in range(3):
        mask = torch.from_numpy(infos["action_mask"]).bool()
        with torch.no_grad():
            seen = normalised(torch.from_numpy(obs), moments, True)
            law = net.log_probabilities(seen, mask, before)[:, 0]
            if before is not None:
                memory = net.sample(seen, mask, torch.Generator(), before)[2]
                assert memory is not None
                before = Before(memory, memory, ~begins)
        actions = policy.act(obs, infos["action_mask"])
        chosen = law.gather(1, torch.from_numpy(actions)[:, None]).squeeze(1)
        assert torch.allclose(chosen, law.max(dim=1).values, atol=1e-5)
        obs, _, _, _, infos = env.step(actions)


@pytest.mark.parametrize("network", ["mlp", "scorer", "attention", "recurrent"])
def test_every_network_imitates_and_trains_on_lanes_of_a_device(
    tmp_path: Path, monkeypatch: Any, capsys: Any, network: str
) -> None:
    """The rule plays on the CPU, in lanes of its own."""
    monkeypatch.setattr(DeviceVectorEnv, "_card", staticmethod(lambda device, exact: HostCard()))
    config = PPOConfig(
        network=network, hidden=(8, 8), rollout_steps=8, minibatch=64, env_device="cuda", threads=1, imitate="min-max",
        imitate_steps=256, imitate_rounds=1, dagger_rounds=1, value_first=1,
    )  # fmt: skip
    plan = Plan(REFILL, tmp_path / "run", {"scenario": "small"}, timesteps=256, lanes=16, config=config)
    result = policies.train(plan)
    assert np.isfinite(result.curve["policy_loss"]).all() and result.steps == 256
    assert "imitating min-max: part 2 of 2" in capsys.readouterr().err


def test_widths_that_attention_cannot_have() -> None:
    with pytest.raises(InvalidArgument, match=r"hidden=\(6, 8\): attention has 4 heads"):
        PPOConfig(network="attention", hidden=(6, 8))


def test_names_of_older_checkpoints_are_known() -> None:
    old = {"network": "perceptron", "teacher": "min-max", "teacher_steps": 7, "hidden": [8]}
    assert PPOConfig.from_dict(old) == PPOConfig(
        network="mlp", imitate="min-max", imitate_steps=7, hidden=(8,)
    )
