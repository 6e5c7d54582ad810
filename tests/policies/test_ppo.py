import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmgym import policies
from llmgym.errors import InvalidAction, InvalidArgument, UnknownName
from llmgym.policies import FIRST_TRAINING_SEED, Plan, PPOConfig, training_seed
from tests.policies.toys import GUESS, TOY, Guess, GuessVectorEnv, mean_return
from tests.toy import ToyVectorEnv

torch = pytest.importorskip("torch")

from llmgym.policies import checkpoint  # noqa: E402
from llmgym.policies.network import ActorCritic, RunningMoments  # noqa: E402
from llmgym.policies.ppo import advantages  # noqa: E402

SMALL = PPOConfig(rollout_steps=16, minibatch=1024, threads=1)


def plan(out: Path, env_id: str = TOY, **changes: Any) -> Plan:
    config = dataclasses.replace(SMALL, **changes.pop("config", {}))
    defaults = {"timesteps": 8_192, "lanes": 128, "save_every_s": 1e9, "progress": False}
    return Plan(env_id, out, config=config, **{**defaults, **changes})


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> policies.TrainingResult:
    out = tmp_path_factory.mktemp("toy") / "run"
    return policies.train(plan(out, timesteps=160_000, env_kwargs={"invalid_action": "raise"}))


def test_learns_the_toy(trained: Any) -> None:
    # a masked action would have raised, in training (invalid_action="raise") and here
    env = ToyVectorEnv(invalid_action="raise")
    policy = policies.load(trained.checkpoint, env)
    rng = np.random.default_rng(0)

    def random(obs: Any, mask: Any) -> Any:
        return np.where(mask, rng.random(mask.shape), -1).argmax(1)

    learned = mean_return(TOY, policy.act, invalid_action="raise")
    idle = mean_return(TOY, lambda obs, mask: np.zeros(len(obs), int))
    # the optimum is 0: whoever arrives is served in the next slot
    assert learned > -1.0
    assert learned > mean_return(TOY, random) + 5.0
    assert learned > idle + 15.0
    drawn = policies.load(trained.checkpoint, env, sample_seed=1)
    assert mean_return(TOY, drawn.act, invalid_action="raise") > -2.0


def test_learning_curve(trained: Any) -> None:
    curve = trained.curve
    assert trained.steps == curve["steps"][-1] == 161_792  # the first whole update at or after 160,000
    assert (np.diff(curve["steps"]) == 128 * 16).all()
    seen = np.isfinite(curve["return_mean"])
    assert np.allclose(curve["return_mean"][seen], -curve["waited_s"][seen])
    assert curve["episodes"].sum() > 100
    assert np.allclose(curve["learning_rate"], 1e-3 * (1 - (curve["steps"] - 2048) / 160_000))
    rows = (trained.checkpoint.parent / "learning_curve.csv").read_text().splitlines()
    assert rows[0].startswith("steps,wall_s,steps_per_s,episodes,return_mean") and len(rows) == 1 + len(
        curve["steps"]
    )
    assert sum(trained.seconds.values()) == pytest.approx(trained.wall_s, rel=0.1)


def test_a_metric_with_the_name_of_a_column_does_not_replace_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Guess.__init__

    def other_name(self: Any, *args: Any, **kwargs: Any) -> None:
        made(self, *args, **kwargs)
        self.metric_names = ("steps",)

    monkeypatch.setattr(Guess, "__init__", other_name)
    curve = policies.train(plan(tmp_path / "run", GUESS)).curve
    assert curve["steps"].tolist() == [2_048.0, 4_096.0, 6_144.0, 8_192.0]


def test_lanes_are_brought_out_of_step(tmp_path: Path) -> None:
    """Episodes of 64 steps, updates of 16: in step, all end every fourth update; scattered, some in each."""
    kwargs = {"constant": True, "horizon": 64}
    ended = {}
    for scatter in (0, 64):
        made = plan(
            tmp_path / str(scatter),
            GUESS,
            timesteps=24 * 2048,
            env_kwargs=kwargs,
            config={"scatter": scatter},
        )
        curve = policies.train(made).curve
        ended[scatter] = curve["episodes"].tolist()
        # a restarted episode is not counted, and leaves nothing behind
        seen = curve["episodes"] > 0
        assert (curve["return_mean"][seen] == 64).all() and (curve["episode_steps"][seen] == 64).all()
    assert ended[0] == [0, 0, 0, 128] * 6
    assert min(ended[64][8:]) > 10 and sum(ended[64][8:12]) == 128


def test_same_seed_same_numbers(tmp_path: Path) -> None:
    models = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        result = policies.train(plan(tmp_path / name, seed=seed))
        models.append(checkpoint.load(result.checkpoint)["model"])
    a, b, c = models
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not torch.equal(a["actor.0.weight"], c["actor.0.weight"])


def test_masked_multidiscrete_is_learned(tmp_path: Path) -> None:
    kwargs = {"invalid_action": "raise"}
    result = policies.train(
        plan(
            tmp_path / "run",
            GUESS,
            timesteps=120_000,
            env_kwargs=kwargs,
            config={"learning_rate": 3e-3, "gamma": 0.0},
        )
    )
    policy = policies.load(result.checkpoint, GuessVectorEnv(**kwargs))
    # 16 is perfect; guessing among what is allowed gives 8
    assert mean_return(GUESS, policy.act, **kwargs) > 14.0
    drawn = policies.load(result.checkpoint, GuessVectorEnv(**kwargs), sample_seed=0)
    assert mean_return(GUESS, drawn.act, **kwargs) > 12.0


def test_a_masked_action_would_be_noticed() -> None:
    env = ToyVectorEnv(4, invalid_action="raise")
    env.reset(seed=0)
    with pytest.raises(InvalidAction, match="masked"):
        env.step(np.full(4, 2))


def test_box_actions_are_learned(tmp_path: Path) -> None:
    result = policies.train(
        plan(
            tmp_path / "run", GUESS, timesteps=120_000, env_kwargs={"kind": "box"},
            config={"learning_rate": 3e-3, "gamma": 0.0, "entropy": 0.0},
        )
    )  # fmt: skip
    policy = policies.load(result.checkpoint, GuessVectorEnv(kind="box"))
    # the best constant, 3.5, misses by 0.75 on average: -6 an episode
    assert mean_return(GUESS, policy.act, kind="box") > -2.5
    assert policy.env_kwargs == {"kind": "box"}
    extreme = policy.act(np.full((3, 3), 1e6, np.float32), None)
    space = GuessVectorEnv(kind="box").single_action_space
    assert all(space.contains(row) for row in extreme)


def _slow_advantages(rewards: Any, values: Any, after: Any, ended: Any, discounts: Any, lam: float) -> Any:
    """The definition: lambda-weighted sum of one-step errors until the episode or the rollout ends."""
    steps, lanes = rewards.shape
    result = np.zeros((steps, lanes))
    for lane in range(lanes):
        for start in range(steps):
            weight = 1.0
            for t in range(start, steps):
                error = rewards[t, lane] + discounts[t, lane] * after[t, lane] - values[t, lane]
                result[start, lane] += weight * error
                if ended[t, lane]:
                    break
                weight *= discounts[t, lane] * lam
    return result


def test_advantages_by_hand() -> None:
    """Two lanes of three steps, gamma 0.5, lambda 1: one terminates at step 1, the other is cut off there."""
    rewards = np.array([[1, 1], [2, 2], [4, 4]], np.float32)
    values = np.array([[10, 10], [20, 20], [30, 30]], np.float32)
    # next values: of the next observation; terminated 0; cut off 100, the value of its true last observation
    after = np.array([[20, 20], [0, 100], [40, 40]], np.float32)
    ended = np.array([[False, False], [True, True], [False, False]])
    got = advantages(rewards, values, after, ended, np.full((3, 2), 0.5, np.float32), 1.0)
    # lane 0: 1 + 0.5 * 2 - 10; 2 - 20; 4 + 0.5 * 40 - 30.  lane 1: 1 + 0.5 * (2 + 0.5 * 100) - 10; 2 + 50 -
    # 20
    assert got.tolist() == [[-8.0, 17.0], [-18.0, 32.0], [-6.0, -6.0]]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 9), st.integers(1, 4), st.floats(0, 1), st.floats(0, 1))
def test_advantages_equal_the_definition(seed: int, steps: int, lanes: int, gamma: float, lam: float) -> None:
    rng = np.random.default_rng(seed)
    rewards, values, after = rng.normal(size=(3, steps, lanes)).astype(np.float32)
    terminated, truncated = rng.random((2, steps, lanes)) < 0.2
    ended = terminated | truncated
    after[terminated] = 0.0
    discounts = (gamma ** rng.exponential(size=(steps, lanes))).astype(np.float32)
    got = advantages(rewards, values, after, ended, discounts, lam)
    assert np.allclose(got, _slow_advantages(rewards, values, after, ended, discounts, lam), atol=1e-4)


@pytest.mark.parametrize(
    ("terminates", "discount", "first", "last"),
    [
        (False, "step", 5.0, 5.0),  # cut off: the rewards go on, 1 / (1 - 0.8)
        (True, "step", (1 - 0.8**4) / 0.2, 1.0),
        (False, "second", 1 / (1 - 0.8**0.5), 1 / (1 - 0.8**0.5)),  # a step takes 0.5 s
    ],
)
def test_value_at_the_end_of_an_episode(
    tmp_path: Path, terminates: bool, discount: Any, first: float, last: float
) -> None:
    """A reward of 1 each step, episodes of 4 steps: what is a state worth just after and just before the
    ends?"""
    kwargs = {"constant": True, "horizon": 4, "terminates": terminates}
    config = {
        "gamma": 0.8, "gae_lambda": 0.9, "discount": discount, "learning_rate": 5e-3, "scale_rewards": False,
        "epochs": 4, "value_weight": 1.0, "target_kl": None, "max_grad_norm": 10.0,
    }  # fmt: skip
    result = policies.train(
        plan(tmp_path / "run", GUESS, lanes=32, timesteps=60_000, env_kwargs=kwargs, config=config)
    )
    stored = checkpoint.load(result.checkpoint)
    net = ActorCritic(3, GuessVectorEnv().single_action_space, (64, 64), "tanh", torch.Generator())
    net.load_state_dict(stored["model"])
    moments = RunningMoments(3)
    moments.restore(stored["normaliser"]["observations"])
    # only where episodes terminate is the time observed: a limit that cuts off is not part of the state
    rows = np.array([[0.5, 0.5, 0.0], [0.5, 0.5, 0.75 * terminates]])
    rows = (rows - moments.mean) / np.sqrt(moments.var + 1e-4)
    got = net.value(torch.from_numpy(rows.astype(np.float32)))[0].detach().numpy()
    assert got == pytest.approx([first, last], rel=0.12)


def test_a_masked_action_has_no_probability() -> None:
    generator = torch.Generator().manual_seed(0)
    net = ActorCritic(3, GuessVectorEnv().single_action_space, (8,), "relu", generator)
    with torch.no_grad():
        net.actor[-1].bias += torch.tensor([0.0, 0.0, 90.0, -90.0, 0.0])
    mask = torch.tensor([[True, False, False, True, False]]).expand(4096, 5)
    action, log_p, _ = net.sample(torch.randn(4096, 3), mask, generator)
    assert (action == torch.tensor([0, 1])).all() and torch.allclose(log_p, torch.zeros(4096))
    again, entropy = net.evaluate(torch.zeros(4096, 3), mask, action)
    assert torch.allclose(again, torch.zeros(4096)) and torch.allclose(entropy, torch.zeros(4096))


def test_sampling_follows_the_probabilities() -> None:
    generator = torch.Generator().manual_seed(0)
    net = ActorCritic(3, GuessVectorEnv().single_action_space, (8,), "tanh", generator)
    with torch.no_grad():
        net.actor[-1].bias.copy_(torch.tensor([0.0, 1.0, 0.0, 1.0, 2.0]))
    obs = torch.zeros(40_000, 3)
    action, log_p, _ = net.sample(obs, None, generator)
    expected = np.exp([0, 1, 2]) / np.exp([0, 1, 2]).sum()
    got = np.bincount(action[:, 1].numpy(), minlength=3) / 40_000
    assert np.abs(got - expected).max() < 0.01
    again, _ = net.evaluate(obs, None, action)
    assert torch.allclose(again, log_p, atol=1e-5)


def test_running_moments() -> None:
    rows = np.random.default_rng(0).normal(3, 2, (1000, 2)).astype(np.float32)
    moments = RunningMoments(2)
    for part in np.split(rows, [10, 500]):
        moments.update(part)
    assert np.allclose(moments.mean, rows.mean(0)) and np.allclose(moments.var, rows.var(0), rtol=1e-5)


def test_training_seeds_stay_clear_of_the_held_out_ones() -> None:
    drawn = [training_seed(seed, steps) for seed in range(50) for steps in (0, 1000, 10**9)]
    assert min(drawn) >= FIRST_TRAINING_SEED == 2**32
    assert len(set(drawn)) == len(drawn)


def test_what_cannot_be_trained_is_said(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="algorithm 'dqn'"):
        policies.train(plan(tmp_path, algo="dqn"))
    with pytest.raises(UnknownName, match="environment id 'toy/Toi-v0'"):
        policies.train(plan(tmp_path, "toy/Toi-v0"))
    with pytest.raises(InvalidArgument, match="unexpected keyword argument 'speed'"):
        policies.train(plan(tmp_path, env_kwargs={"speed": 3}))
    with pytest.raises(InvalidArgument, match="cannot be stored"):
        policies.train(plan(tmp_path, env_kwargs={"arrival": object()}))
    with pytest.raises(InvalidArgument, match="lanes=0"):
        plan(tmp_path, lanes=0)
    with pytest.raises(InvalidArgument, match=r"gamma=1.5"):
        PPOConfig(gamma=1.5)
    for name in ("rollout_steps", "epochs", "minibatch", "scatter", "threads"):
        for value in (-1, 2.5, True, "4"):
            with pytest.raises(InvalidArgument, match=f"{name}={value!r}: expected a whole number"):
                PPOConfig(**{name: value})
    for widths in ((0,), (64, 2.5)):
        with pytest.raises(InvalidArgument, match=f"hidden={widths[-1]}: expected a whole number"):
            PPOConfig(hidden=widths)
    with pytest.raises(InvalidArgument, match="minibatch=0"):
        PPOConfig(minibatch=0)
    for seed in (-1, 2**32, 1.0):
        with pytest.raises(
            InvalidArgument, match=f"seed={seed}: expected a whole number from 0 to 4294967295"
        ):
            plan(tmp_path, seed=seed)


def test_importing_the_package_imports_no_learning_library() -> None:
    code = (
        "import sys, llmgym, llmgym.policies as p; p.names('llmgym/KVQueue-v0'); p.PPOConfig(); "
        "assert not {'torch', 'stable_baselines3', 'sb3_contrib', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_learning_curve_leaves_out_what_has_no_value():
    """A metric is NaN in an episode that had nothing to take it of; where none has a value, the cell is empty."""
    from llmgym.policies.episodes import Episodes

    episodes = Episodes(3, ("some_s", "none_s"))
    ended = np.ones(3, np.bool_)
    episodes.step(
        np.array([1.0, 2.0, 3.0]), ended, np.array([[1.0, np.nan], [np.nan, np.nan], [5.0, np.nan]])
    )
    row = episodes.averages()
    assert row["episodes"] == 3.0 and row["return_mean"] == 2.0
    assert row["some_s"] == 3.0 and np.isnan(row["none_s"])
