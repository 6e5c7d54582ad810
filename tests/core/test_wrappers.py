"""The mask in the observation, and gymnasium's own wrappers on the native vector environment."""

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import DictInfoToList, NormalizeReward, RecordEpisodeStatistics

from llmgym.core.wrappers import PETTINGZOO, RLLIB, TIANSHOU, MaskInObservation, VectorMaskInObservation
from llmgym.errors import InvalidArgument
from llmgym.testing.drive import MODES, legal_action, legal_actions, row, same
from tests.toy import ToyEnv, ToyVectorEnv

KEYS = [RLLIB, PETTINGZOO, TIANSHOU, ("see", "may")]
modes = pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)


@pytest.fixture
def toy_id():
    name = "llmgym-tests/Toy-v0"
    gymnasium.register(name, entry_point="tests.toy:ToyEnv", disable_env_checker=True)
    yield name
    del gymnasium.registry[name]


@pytest.mark.parametrize("keys", KEYS, ids=str)
@pytest.mark.parametrize("kind", ["number", "pair"])
def test_single(keys, kind):
    env, plain = MaskInObservation(ToyEnv(action=kind), keys), ToyEnv(action=kind)
    assert list(env.observation_space) == sorted(keys)
    rng = np.random.default_rng(0)
    for seed in (5, None, None):
        both, info = env.reset(seed=seed)
        obs, plain_info = plain.reset(seed=seed)
        done = False
        while not done:
            assert both in env.observation_space
            same(both, {keys[0]: obs, keys[1]: plain_info["action_mask"]})
            same(info, plain_info)
            same(env.action_masks(), plain.action_masks())
            assert both[keys[1]] is not info["action_mask"]
            action = legal_action(plain, plain_info["action_mask"], rng)
            both, *rest, info = env.step(action)
            obs, *plain_rest, plain_info = plain.step(action)
            same(rest, plain_rest)
            done = rest[1] or rest[2]
        assert info["metrics"] == plain_info["metrics"]


@pytest.mark.filterwarnings("ignore:.*is different from the unwrapped version")
@pytest.mark.filterwarnings("error")
def test_single_passes_gymnasiums_checker(toy_id):
    check_env(MaskInObservation(gymnasium.make(toy_id)))


@modes
@pytest.mark.parametrize("keys", KEYS, ids=str)
def test_vector_is_the_wrapped_single(keys, mode):
    """In every mode as `SyncVectorEnv` of wrapped single environments, with `final_obs` and partial resets."""
    native = VectorMaskInObservation(ToyVectorEnv(4, autoreset_mode=mode), keys)
    sync = SyncVectorEnv([lambda: MaskInObservation(ToyEnv(), keys)] * 4, autoreset_mode=mode)
    assert native.observation_space == sync.observation_space
    assert native.single_observation_space == sync.single_observation_space
    assert native.autoreset_mode == mode  # where TorchRL looks for it
    rng = np.random.default_rng(0)
    obs, infos = native.reset(seed=1)
    same(obs, dict(sync.reset(seed=1)[0]))
    finals = 0
    for _ in range(200):
        actions = legal_actions(native.single_action_space, obs[keys[1]], rng)
        obs, *rest, infos = native.step(actions)
        expected, *expected_rest, expected_infos = sync.step(actions)
        assert obs in native.observation_space
        same(obs, dict(expected))
        same(rest, expected_rest)
        assert set(infos) == set(expected_infos)
        same(native.action_masks(), obs[keys[1]].astype(bool))
        ended = rest[1] | rest[2]
        if mode == AutoresetMode.SAME_STEP and ended.any():
            for lane in range(4):
                assert (infos["final_obs"][lane] is not None) == ended[lane]
                if ended[lane]:
                    finals += 1
                    same(infos["final_obs"][lane], expected_infos["final_obs"][lane])
                    same(row(infos["final_info"], lane), row(expected_infos["final_info"], lane))
        else:
            assert "final_obs" not in infos
        if mode == AutoresetMode.DISABLED and ended.any():
            obs, _ = native.reset(options={"reset_mask": ended})
            same(obs, dict(sync.reset(options={"reset_mask": ended})[0]))
    assert finals > 5 or mode != AutoresetMode.SAME_STEP


@pytest.mark.parametrize("keys", [("a", "a"), ("a",), ("a", "b", "c"), ("a", 1), "ab c"], ids=str)
def test_bad_keys(keys):
    with pytest.raises(InvalidArgument, match="keys="):
        MaskInObservation(ToyEnv(), keys)
    with pytest.raises(InvalidArgument, match="keys="):
        VectorMaskInObservation(ToyVectorEnv(2), keys)


def test_without_masks_there_is_nothing_to_wrap():
    with pytest.raises(InvalidArgument, match=r"no action mask.*Box"):
        MaskInObservation(ToyEnv(action="box"))
    with pytest.raises(InvalidArgument, match=r"no action mask.*Box"):
        VectorMaskInObservation(ToyVectorEnv(2, action="box"))
    with pytest.raises(InvalidArgument, match="no action mask"):
        MaskInObservation(gymnasium.make("CartPole-v1"))


@modes
def test_record_episode_statistics(mode):
    """The wrapper counts on the native environment what it counts on `SyncVectorEnv`."""
    native = RecordEpisodeStatistics(ToyVectorEnv(3, autoreset_mode=mode, horizon=9))
    sync = RecordEpisodeStatistics(SyncVectorEnv([lambda: ToyEnv(horizon=9)] * 3, autoreset_mode=mode))
    rng = np.random.default_rng(0)
    _, infos = native.reset(seed=0)
    sync.reset(seed=0)
    told, first = 0, np.ones(3, bool)
    for _ in range(60):
        actions = legal_actions(native.single_action_space, infos["action_mask"], rng)
        _, _, terminated, truncated, infos = native.step(actions)
        *_, expected = sync.step(actions)
        assert ("episode" in infos, "_episode" in infos) == ("episode" in expected, "_episode" in expected)
        ended = terminated | truncated
        if ended.any():
            got, wanted = (
                i["episode"] if "episode" in i else i["final_info"]["episode"] for i in (infos, expected)
            )
            same(got["r"], wanted["r"])
            same(got["l"], wanted["l"])
            metrics = infos.get("final_info", infos)["metrics"]
            # later ones are one step short under gymnasium 1.2 in SAME_STEP mode
            same(got["r"][ended & first], -metrics["waited_s"][ended & first])
            same(got["l"][ended & first], metrics["duration_s"][ended & first].astype(got["l"].dtype))
            told, first = told + int(ended.sum()), first & ~ended
            if mode == AutoresetMode.DISABLED:
                _, infos = native.reset(options={"reset_mask": ended})
                sync.reset(options={"reset_mask": ended})
    assert told >= 12 and not first.any()


@modes
def test_normalize_reward_and_dict_info_to_list(mode):
    envs = ToyVectorEnv(3, autoreset_mode=mode, horizon=9)
    plain = ToyVectorEnv(3, autoreset_mode=mode, horizon=9)
    wrapped = DictInfoToList(NormalizeReward(envs))
    _, infos = wrapped.reset(seed=0)
    _, plain_infos = plain.reset(seed=0)
    ends = 0
    for _ in range(40):
        _, rewards, terminated, truncated, infos = wrapped.step([0, 0, 0])
        *_, plain_infos = plain.step([0, 0, 0])
        assert np.isfinite(rewards).all() and isinstance(infos, list) and len(infos) == 3
        ended = terminated | truncated
        for lane in range(3):
            same(infos[lane]["action_mask"], plain_infos["action_mask"][lane])
            source = infos[lane]["final_info"] if "final_info" in infos[lane] else infos[lane]
            assert ("metrics" in source) == ended[lane]
            if ended[lane]:
                ends += 1
                expected = plain_infos.get("final_info", plain_infos)["metrics"]
                same(source["metrics"]["waited_s"], expected["waited_s"][lane])
        if mode == AutoresetMode.DISABLED and ended.any():
            wrapped.reset(options={"reset_mask": ended})
            plain.reset(options={"reset_mask": ended})
    assert ends > 6


def test_a_wrapper_of_the_other_kind():
    with pytest.raises(InvalidArgument, match="many lanes take VectorMaskInObservation"):
        MaskInObservation(ToyVectorEnv(2))
    with pytest.raises(InvalidArgument, match="a single one takes MaskInObservation"):
        VectorMaskInObservation(ToyEnv())


@pytest.mark.parametrize("env_id", [env_id for env_id in gymnasium.registry if env_id.startswith("llmgym/")])
def test_the_bases_of_a_class_say_what_it_is(env_id):
    """skrl looks at the direct bases of an environment's class, and at no others, for a name of gymnasium's."""
    spec = gymnasium.spec(env_id)
    for entry, base in (
        (spec.entry_point, gymnasium.Env),
        (spec.vector_entry_point, gymnasium.vector.VectorEnv),
    ):
        assert base in gymnasium.envs.registration.load_env_creator(entry).__bases__


def test_skrl_takes_native_lanes_for_lanes():
    wrap_env = pytest.importorskip("skrl.envs.wrappers.torch").wrap_env
    envs = wrap_env(gymnasium.make_vec("llmgym/KVQueue-v0", num_envs=3, scenario="tiny"), verbose=False)
    obs, _ = envs.reset()
    assert envs.num_envs == 3 and obs.shape[0] == 3
    import torch

    obs, reward, *_ = envs.step(torch.zeros((3, 1), dtype=torch.int64))
    assert obs.shape[0] == 3 and reward.shape == (3, 1)
    assert wrap_env(ToyEnv(), verbose=False).num_envs == 1


def test_torchrl_makes_an_environment_by_its_id():
    env = pytest.importorskip("torchrl.envs.libs.gym").GymEnv("llmgym:llmgym/KVQueue-v0", scenario="tiny")
    assert env.rollout(3)["next", "reward"].shape == (3, 1)
