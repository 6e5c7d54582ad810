import zipfile
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from llmgym import policies
from llmgym.errors import CheckpointError, InvalidAction, InvalidArgument, ResetNeeded
from llmgym.policies import FIRST_TRAINING_SEED, Plan, PPOConfig
from tests.policies.toys import GUESS, TOY, GuessEnv, GuessVectorEnv, mean_return
from tests.toy import ToyEnv, ToyVectorEnv

torch = pytest.importorskip("torch")
pytest.importorskip("stable_baselines3")
pytest.importorskip("sb3_contrib")

from sb3_contrib import MaskablePPO  # noqa: E402
from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported  # noqa: E402
from stable_baselines3 import PPO  # noqa: E402
from stable_baselines3.common.monitor import Monitor  # noqa: E402
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor  # noqa: E402

from llmgym.policies import checkpoint  # noqa: E402
from llmgym.policies.sb3 import SB3VecEnv, minibatch_size  # noqa: E402

CONFIG = PPOConfig(rollout_steps=16, minibatch=256, threads=1)
UPDATE = 16 * 32


def adapter(lanes: int = 6, *, copy: bool = False, **kwargs: Any) -> SB3VecEnv:
    return SB3VecEnv(ToyVectorEnv(lanes, autoreset_mode=AutoresetMode.SAME_STEP, copy=copy, **kwargs))


def plan(out: Path, algo: str, **changes: Any) -> Plan:
    defaults = {
        "timesteps": 8 * UPDATE,
        "lanes": 32,
        "save_every_s": 1e9,
        "progress": False,
        "config": CONFIG,
    }
    return Plan(changes.pop("env_id", TOY), out, algo=algo, **{**defaults, **changes})


@pytest.mark.parametrize("algo", policies.ALGORITHMS)
@pytest.mark.parametrize(
    ("lanes", "steps", "minibatch"), [(5, 13, 64), (3, 43, 64), (3, 43, 128), (3, 1, 2), (1, 2, 2)]
)
def test_a_last_minibatch_of_one_transition(
    tmp_path: Path, algo: str, lanes: int, steps: int, minibatch: int
) -> None:
    """Its deviation is not a number, and with it all weights were not; the learning rate was blamed."""
    config = PPOConfig(rollout_steps=steps, minibatch=minibatch, epochs=2, target_kl=None, threads=1)
    result = policies.train(plan(tmp_path, algo, lanes=lanes, timesteps=3 * lanes * steps, config=config))
    model = checkpoint.load(result.checkpoint)["model"]
    assert all(torch.isfinite(weights).all() for weights in model.values())
    assert all(np.isfinite(result.curve[name]).all() for name in ("policy_loss", "value_loss"))


def test_minibatches_are_as_asked_for_where_they_can_be() -> None:
    for batch in range(2, 150):
        for asked in range(2, 160):
            size = minibatch_size(batch, asked)
            assert 2 <= size <= batch and batch % size != 1
            closest = abs(size - min(asked, batch))
            nearer = range(min(asked, batch) - closest + 1, min(asked, batch) + closest)
            assert all(batch % other == 1 for other in nearer if 2 <= other <= batch)
    assert (
        minibatch_size(65, 64) == 63 and minibatch_size(4096, 512) == 512 and minibatch_size(100, 512) == 100
    )


@pytest.mark.parametrize("algo", ["sb3-ppo", "sb3-maskable-ppo"])
@pytest.mark.parametrize(
    ("lanes", "steps", "minibatch", "named"),
    [(1, 1, 8, "rollout_steps \\* lanes=1"), (4, 4, 1, "minibatch=1")],
)
def test_single_transitions_are_refused_before_the_run_begins(
    tmp_path: Path, algo: str, lanes: int, steps: int, minibatch: int, named: str
) -> None:
    config = PPOConfig(rollout_steps=steps, minibatch=minibatch, threads=1)
    with pytest.raises(InvalidArgument, match=f"{named}: expected at least 2"):
        policies.train(plan(tmp_path / "run", algo, lanes=lanes, config=config))
    assert not (tmp_path / "run").exists()


@pytest.mark.filterwarnings("error:.*degrees of freedom")
def test_the_own_trainer_learns_from_single_transitions(tmp_path: Path) -> None:
    config = PPOConfig(rollout_steps=1, minibatch=8, threads=1)
    result = policies.train(plan(tmp_path, "ppo", lanes=1, timesteps=5, config=config))
    assert np.isfinite(result.curve["explained_variance"]).all()


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (ToyEnv, "a single environment, which PPO takes as it is"),
        (lambda: gymnasium.make("llmgym/KVQueue-v0", scenario="tiny"), "a single environment"),
        (lambda: gymnasium.make_vec("CartPole-v1", num_envs=2, vectorization_mode="sync"), "no native lanes"),
        (lambda: "llmgym/KVQueue-v0", "no native lanes"),
    ],
    ids=["single", "made", "other lanes", "name"],
)
def test_the_adapter_takes_native_lanes_alone(make: Any, what: str) -> None:
    with pytest.raises(InvalidArgument, match=f"{what}.*; SB3VecEnv takes gymnasium.make_vec"):
        SB3VecEnv(make())


def test_the_adapter_shows_nothing_before_the_first_reset() -> None:
    envs = adapter()
    for method in ("action_masks", "metrics", "render"):
        with pytest.raises(ResetNeeded):
            envs.env_method(method)
    with pytest.raises(ResetNeeded):
        get_action_masks(envs)


@pytest.mark.parametrize("copy", [False, True])
@pytest.mark.parametrize("pair", [(ToyVectorEnv, ToyEnv, {"arrival": 0.9}), (GuessVectorEnv, GuessEnv, {})])
def test_equals_a_dummy_vec_env_of_single_environments(pair: Any, copy: bool) -> None:
    vector, single, kwargs = pair
    lanes = 6
    ours = SB3VecEnv(vector(lanes, autoreset_mode=AutoresetMode.SAME_STEP, copy=copy, **kwargs))
    theirs = DummyVecEnv([lambda: Monitor(single(**kwargs)) for _ in range(lanes)])
    assert ours.observation_space == theirs.observation_space and ours.action_space == theirs.action_space
    ours.seed(11)
    theirs.seed(11)
    first = ours.reset()
    assert np.array_equal(first, theirs.reset())
    kept = first.copy()
    ours.action_space.seed(0)
    ended = cut_off = 0
    for _ in range(150):
        masks = np.stack(theirs.env_method("action_masks"))
        assert np.array_equal(get_action_masks(ours), masks)
        # all serve nothing in lanes 0-2, so that episodes of the queue terminate; the others run to the limit
        actions = np.array([ours.action_space.sample() for _ in range(lanes)])
        if single is ToyEnv:
            actions = np.where(np.arange(lanes) < 3, 0, masks[:, 1].astype(int))
        obs, rewards, dones, infos = ours.step(actions)
        obs2, rewards2, dones2, infos2 = theirs.step(actions)
        assert np.array_equal(obs, obs2) and obs.dtype == obs2.dtype
        assert np.array_equal(rewards, rewards2) and rewards.dtype == rewards2.dtype
        assert np.array_equal(dones, dones2) and dones.dtype == dones2.dtype
        for lane in np.flatnonzero(dones):
            a, b = infos[lane], infos2[lane]
            assert np.array_equal(a["terminal_observation"], b["terminal_observation"])
            assert a["TimeLimit.truncated"] == b["TimeLimit.truncated"]
            assert a["episode"]["l"] == b["episode"]["l"]
            assert a["episode"]["r"] == pytest.approx(b["episode"]["r"], abs=1e-5)
            assert a["metrics"] == b["metrics"] and a["dt"] == b["dt"]
            assert np.array_equal(a["action_mask"], b["action_mask"])
            ended += 1
            cut_off += a["TimeLimit.truncated"]
        assert all(infos[lane] == {} for lane in np.flatnonzero(~dones))
    assert cut_off > 5 and (single is GuessEnv or ended > cut_off)
    assert np.array_equal(first, kept), "an observation that was handed out has changed"


def test_infos_are_fresh_and_can_be_written_to() -> None:
    env = adapter(4)
    env.reset()
    infos = env.step(np.zeros(4, int))[3]
    infos[0]["mine"] = 1
    assert env.step(np.zeros(4, int))[3][0] == {}
    assert len({id(info) for info in infos}) == 4
    # a wrapper that writes into infos works on top
    monitored = VecMonitor(env)
    monitored.reset()
    for _ in range(60):
        *_, dones, infos = monitored.step(np.zeros(4, int))
        assert all(("episode" in info) == done for info, done in zip(infos, dones, strict=True))


def test_methods_and_attributes() -> None:
    env = adapter(4, render_mode="rgb_array")
    env.reset()
    assert is_masking_supported(env) and env.has_attr("layout") and not env.has_attr("nonsense")
    assert env.get_attr("render_mode", indices=[1, 2]) == ["rgb_array"] * 2
    assert env.get_attr("action_space") == [env.action_space] * 4
    assert env.env_method("action_masks", indices=2)[0].tolist() == [True, False, False]
    assert env.get_attr("action_masks")[3]().tolist() == [True, False, False]
    assert [m["waited_s"] for m in env.env_method("metrics")] == [0.0] * 4
    env.set_attr("note", 7)
    assert env.get_attr("note") == [7] * 4 and env.venv.note == 7
    with pytest.raises(InvalidArgument, match="lanes share"):
        env.set_attr("note", 8, indices=[0])
    with pytest.raises(AttributeError, match="no method 'fly'"):
        env.env_method("fly")
    assert env.env_is_wrapped(Monitor, indices=[0, 1]) == [True, True]
    assert len(env.get_images()) == 4 and env.render().ndim == 3
    assert env.seed(5) == [5, 6, 7, 8]
    again = env.reset()
    env.seed(5)
    assert np.array_equal(again, env.reset())
    with pytest.raises(InvalidArgument, match="SAME_STEP"):
        SB3VecEnv(ToyVectorEnv(2))


def test_their_own_classes_train_on_it() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # threads that spin wait for whoever else uses the machine
    for algorithm in (PPO, MaskablePPO):
        model = algorithm(
            "MlpPolicy", adapter(16), n_steps=32, batch_size=128, n_epochs=2, seed=0, device="cpu"
        )
        model.learn(3_000)
        assert model.num_timesteps >= 3_000 and len(model.ep_info_buffer) > 10
    torch.set_num_threads(threads)


def test_maskable_learns_and_sends_nothing_masked(tmp_path: Path) -> None:
    kwargs = {"invalid_action": "raise"}
    result = policies.train(
        plan(tmp_path / "run", "sb3-maskable-ppo", timesteps=60 * UPDATE, env_kwargs=kwargs)
    )
    env = ToyVectorEnv(**kwargs)
    policy = policies.load(result.checkpoint, env)
    assert (
        mean_return(TOY, policy.act, **kwargs)
        > mean_return(TOY, lambda obs, mask: np.zeros(len(obs), int)) + 15
    )
    curve = result.curve
    assert curve["steps"][-1] == result.steps == 60 * UPDATE
    for name in ("policy_loss", "value_loss", "entropy", "approx_kl", "learning_rate"):
        assert np.isfinite(curve[name]).all()
    seen = np.isfinite(curve["return_mean"])
    assert np.allclose(curve["return_mean"][seen], -curve["waited_s"][seen])
    # the archive for stable-baselines3's own users, read by them and by us; its observations are normalised
    # outside
    assert MaskablePPO.load(tmp_path / "run" / "sb3.zip", device="cpu").num_timesteps == 60 * UPDATE
    with pytest.raises(InvalidAction, match="masked"):
        policies.train(plan(tmp_path / "unmasked", "sb3-ppo", env_kwargs=kwargs))


def test_training_avoids_held_out_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[int] = []
    real = ToyVectorEnv.reset

    def reset(self: Any, *, seed: Any = None, options: Any = None) -> Any:
        used.extend([seed] if isinstance(seed, int) else seed or [])
        return real(self, seed=seed, options=options)

    monkeypatch.setattr(ToyVectorEnv, "reset", reset)
    for algo in policies.ALGORITHMS:
        policies.train(plan(tmp_path / algo, algo, timesteps=UPDATE))
    assert len(used) == 1 + 32 + 32 and min(used) >= FIRST_TRAINING_SEED


def test_the_policy_acts_as_theirs(tmp_path: Path) -> None:
    """A checkpoint and an archive give the actions of stable-baselines3's own `predict`."""
    config = PPOConfig(
        rollout_steps=16, minibatch=256, threads=1, normalise_observations=False, activation="relu"
    )
    result = policies.train(plan(tmp_path / "run", "sb3-maskable-ppo", timesteps=20 * UPDATE, config=config))
    archive = tmp_path / "run" / "sb3.zip"
    model = MaskablePPO.load(archive, device="cpu")
    rng = np.random.default_rng(0)
    obs = rng.random((256, 2), dtype=np.float32)
    mask = np.concatenate([np.ones((256, 1), np.int8), rng.integers(0, 2, (256, 2), np.int8)], axis=1)
    expected, _ = model.predict(obs, action_masks=mask.astype(bool), deterministic=True)
    for source in (result.checkpoint, archive):
        assert (policies.load(source, ToyEnv()).act(obs, mask) == expected).all()
    assert policies.env_kwargs(archive) == {}


def test_box_actions(tmp_path: Path) -> None:
    result = policies.train(
        plan(tmp_path / "run", "sb3-ppo", env_id=GUESS, env_kwargs={"kind": "box"}, timesteps=4 * UPDATE)
    )
    env = GuessVectorEnv(5, kind="box")
    obs, _ = env.reset(seed=0)
    actions = policies.load(result.checkpoint, env).act(obs, None)
    env.step(actions)
    stored = checkpoint.load(result.checkpoint)
    model = PPO.load(tmp_path / "run" / "sb3.zip", device="cpu")
    moments = stored["normaliser"]["observations"]
    rows = (obs - moments["mean"].numpy()) / np.sqrt(moments["var"].numpy() + 1e-8)
    expected, _ = model.predict(np.clip(rows, -10, 10).astype(np.float32), deterministic=True)
    assert np.allclose(actions, expected, atol=1e-5)


def test_spoiled_archives(tmp_path: Path) -> None:
    policies.train(plan(tmp_path / "run", "sb3-ppo", timesteps=UPDATE))
    archive = tmp_path / "run" / "sb3.zip"
    with pytest.raises(CheckpointError, match=r"takes 2 observation entries and has 3 outputs"):
        policies.load(archive, GuessEnv())
    (tmp_path / "short.zip").write_bytes(archive.read_bytes()[:3000])
    with pytest.raises(CheckpointError, match="truncated or not a stable-baselines3 archive"):
        policies.load(tmp_path / "short.zip", ToyEnv())
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as file:
        file.writestr("readme", "hello")
    with pytest.raises(CheckpointError, match="not a stable-baselines3 archive"):
        policies.load(tmp_path / "other.zip", ToyEnv())


@pytest.mark.parametrize("algo", ["sb3-ppo", "sb3-maskable-ppo"])
def test_resume(tmp_path: Path, algo: str) -> None:
    out = tmp_path / "run"
    policies.train(plan(out, algo, timesteps=5 * UPDATE))
    before = checkpoint.load(out / "checkpoint.pt")
    result = policies.train(plan(out, algo, timesteps=9 * UPDATE, resume=True))
    after = checkpoint.load(out / "checkpoint.pt")
    assert result.steps == after["meta"]["steps"] == 9 * UPDATE
    assert result.curve["steps"].tolist() == [UPDATE * (i + 1) for i in range(9)]
    for name in ("observations", "returns"):
        counts = [stored["normaliser"][name]["count"] for stored in (before, after)]
        assert counts[1] >= counts[0] + 4 * UPDATE
    assert after["rng"]["updates"] > before["rng"]["updates"] > 0
    steps = [float(stored["optimizer"]["state"][0]["step"]) for stored in (before, after)]
    assert steps[1] > steps[0] > 0
    assert policies.train(plan(out, algo, timesteps=9 * UPDATE, resume=True)).steps == 9 * UPDATE


def test_what_they_cannot_do(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match='discount="second"'):
        policies.train(plan(tmp_path / "a", "sb3-ppo", config=PPOConfig(discount="second")))
    with pytest.raises(InvalidArgument, match="Box action cannot be masked"):
        policies.train(plan(tmp_path / "b", "sb3-maskable-ppo", env_id=GUESS, env_kwargs={"kind": "box"}))
