"""A lane of the vector environment is the single environment; the vector environment does as gymnasium's own."""

import copy
import pickle

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st

from llmgym.errors import InvalidArgument, ResetNeeded
from llmgym.testing.drive import (
    MODES,
    check_lanes_are_singles,
    check_same_as_sync,
    legal_actions,
    same,
    same_where_told,
)
from tests.toy import Toy, ToyEnv, ToyVectorEnv

LANE_STEPS = 3_000
ID = "llmgym-tests/Toy-v0"

seeds = st.integers(0, 2**63 - 1)
lane_seeds = st.lists(seeds, min_size=1, max_size=9)


@pytest.fixture
def toy_id():
    gymnasium.register(
        ID,
        entry_point="tests.toy:ToyEnv",
        vector_entry_point="tests.toy:ToyVectorEnv",
        disable_env_checker=True,
    )
    yield ID
    del gymnasium.registry[ID]


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
@settings(max_examples=4, deadline=None)
@given(lane_seeds, seeds, st.sampled_from(["number", "pair", "box"]))
def test_a_lane_is_the_single_environment(mode, lanes, action_seed, action):
    episodes = check_lanes_are_singles(
        lambda: ToyEnv(action=action),
        lambda n, **kwargs: ToyVectorEnv(n, action=action, **kwargs),
        lanes,
        mode,
        -(-LANE_STEPS // len(lanes)),
        action_seed,
    )
    assert episodes > LANE_STEPS // 50


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
@settings(max_examples=4, deadline=None)
@given(lane_seeds, seeds, st.booleans())
def test_equals_sync_vector_env(mode, lanes, action_seed, by_number):
    native = ToyVectorEnv(len(lanes), autoreset_mode=mode)
    sync = SyncVectorEnv([ToyEnv] * len(lanes), autoreset_mode=mode)
    assert check_same_as_sync(native, sync, lanes[0] // 2 if by_number else lanes, 300, action_seed) > 0


def test_a_number_seeds_lane_i_with_seed_plus_i():
    whole = ToyVectorEnv(3)
    parts = ToyVectorEnv(3)
    whole.reset(seed=7)
    parts.reset(seed=np.array([7, 8, 9]))
    for _ in range(100):
        same(whole.step(np.array([1, 0, 1])), parts.step(np.array([1, 0, 1])))


def test_lanes_without_a_seed_get_worlds_of_their_own():
    envs = ToyVectorEnv(16)
    for first in (None, [None] * 16):
        envs = ToyVectorEnv(16)
        other = ToyVectorEnv(16)
        envs.reset(seed=first)
        other.reset(seed=first)
        assert len(set(envs.lanes.buffers.seed_key)) == 16
        assert not set(envs.lanes.buffers.seed_key) & set(other.lanes.buffers.seed_key)


def test_none_in_a_seed_list_lets_that_lane_go_on():
    envs, twin = ToyVectorEnv(2), ToyVectorEnv(2)
    envs.reset(seed=[1, 2])
    twin.reset(seed=[1, 2])
    got, _ = envs.reset(seed=[5, None])
    expected, _ = twin.reset()
    assert envs.lanes.buffers.episode.tolist() == [0, 1]
    same(envs.lanes.state.lane["key"][1], twin.lanes.state.lane["key"][1])
    same(got[1], expected[1])


@pytest.mark.parametrize(
    "mask",
    [
        [True, False],
        np.array([1, 0]),
        np.array([True]),
        np.array([[True, False]]),
        np.array([False, False]),
    ],
    ids=["list", "int", "short", "2-d", "empty"],
)
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_reset_masks_that_are_refused(mask, mode):
    envs, twin = ToyVectorEnv(2, autoreset_mode=mode), ToyVectorEnv(2, autoreset_mode=mode)
    sync = SyncVectorEnv([ToyEnv] * 2, autoreset_mode=mode)
    for one in (envs, twin, sync):
        one.reset(seed=3)
    with pytest.raises((ValueError, TypeError, AssertionError)):  # the last in gymnasium 1.2
        sync.reset(options={"reset_mask": mask})
    with pytest.raises(InvalidArgument, match="reset_mask"):
        envs.reset(options={"reset_mask": mask})
    same(envs.step(np.array([0, 0])), twin.step(np.array([0, 0])))


def test_the_first_reset_starts_every_lane():
    envs = ToyVectorEnv(2)
    with pytest.raises(ResetNeeded):
        envs.reset(seed=1, options={"reset_mask": np.array([True, False])})
    with pytest.raises(ResetNeeded):
        envs.step(np.array([0, 0]))


def test_infos_of_a_partial_reset_do_not_change_with_the_callers_mask():
    envs = ToyVectorEnv(2)
    envs.reset(seed=1)
    mask = np.array([True, False])
    _, infos = envs.reset(options={"reset_mask": mask})
    mask[:] = False
    assert infos["_dt"].tolist() == [True, False]


def test_copy_returns_fresh_arrays_and_no_copy_the_buffers():
    for wanted in (True, False):
        envs = ToyVectorEnv(3, copy=wanted)
        envs.reset(seed=0)
        one = envs.step(np.zeros(3, int))
        kept = copy.deepcopy(one)
        two = envs.step(np.zeros(3, int))
        for part in range(4):
            assert np.shares_memory(one[part], two[part]) is not wanted
        assert np.shares_memory(one[4]["action_mask"], two[4]["action_mask"]) is not wanted
        if wanted:
            same(one, kept)
        else:
            same(one[0], two[0])


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_threads_and_copy_change_no_bit(mode):
    plain = ToyVectorEnv(7, autoreset_mode=mode)
    others = [
        ToyVectorEnv(7, autoreset_mode=mode, threads=2),
        ToyVectorEnv(7, autoreset_mode=mode, threads=16),
        ToyVectorEnv(7, autoreset_mode=mode, copy=False),
    ]
    rng = np.random.default_rng(0)
    _, infos = plain.reset(seed=5)
    for other in others:
        same(other.reset(seed=5)[1], infos)
    for _ in range(200):
        actions = legal_actions(plain.single_action_space, infos["action_mask"], rng)
        expected = plain.step(actions)
        for other in others:
            got = other.step(actions)
            for part in range(4):
                same(got[part], expected[part])
            same(got[4], expected[4])
        infos = expected[4]
        ended = expected[2] | expected[3]
        if mode == AutoresetMode.DISABLED and ended.any():
            _, infos = plain.reset(options={"reset_mask": ended})
            for other in others:
                same(other.reset(options={"reset_mask": ended})[1], infos)
    for other in others:
        other.close()


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_a_step_limit_through_make_vec(toy_id, mode):
    native = gymnasium.make_vec(toy_id, num_envs=4, max_episode_steps=7, autoreset_mode=mode)
    assert isinstance(native, ToyVectorEnv)
    sync = gymnasium.make_vec(
        toy_id,
        num_envs=4,
        max_episode_steps=7,
        vectorization_mode="sync",
        vector_kwargs={"autoreset_mode": mode},
    )
    rng = np.random.default_rng(1)
    _, infos = native.reset(seed=2)
    sync.reset(seed=2)
    cut = 0
    for step in range(60):
        actions = legal_actions(native.single_action_space, infos["action_mask"], rng)
        got, expected = native.step(actions), sync.step(actions)
        for part in range(4):
            same(got[part], expected[part], f"step {step}, part {part}")
        infos = got[4]
        ended = got[2] | got[3]
        cut += int(got[3].sum())
        if got[3].any():
            told = infos["final_info"] if mode == AutoresetMode.SAME_STEP else infos
            assert told["metrics"]["duration_s"][got[3]].tolist() == [7.0] * int(got[3].sum())
        if mode == AutoresetMode.DISABLED and ended.any():
            _, infos = native.reset(options={"reset_mask": ended})
            sync.reset(options={"reset_mask": ended})
    assert cut > 10


def test_a_time_limit_of_gymnasium_leaves_the_metrics_to_be_asked_for(toy_id):
    env = gymnasium.make(toy_id, max_episode_steps=5)
    env.reset(seed=0)
    for _ in range(5):
        *_, truncated, info = env.step(0)
    assert truncated and "metrics" not in info
    assert env.unwrapped.metrics()["duration_s"] == 5.0


def test_modes_by_name_and_by_value():
    for mode in MODES:
        for given_as in (mode, mode.name, mode.value):
            envs = ToyVectorEnv(1, autoreset_mode=given_as)
            assert envs.metadata["autoreset_mode"] is envs.autoreset_mode is mode


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))], ids=["deepcopy", "pickle"]
)
def test_a_copy_goes_on_with_the_same_bits_and_by_itself(duplicate):
    env, envs = ToyEnv(), ToyVectorEnv(5, threads=2)
    env.reset(seed=1)
    envs.reset(seed=1)
    for _ in range(3):
        env.step(0)
        envs.step(np.zeros(5, int))
    other, others = duplicate(env), duplicate(envs)
    for _ in range(100):
        actions = np.ones(5, int)
        same(list(others.step(actions)[:4]), list(envs.step(actions)[:4]))
    expected = [duplicate(env).step(1)[:4] for _ in range(2)]
    assert expected[0][1:] == expected[1][1:] == other.step(1)[1:4]
    same(other.reset(seed=4)[0], env.reset(seed=4)[0])
    envs.close()
    others.close()


def test_a_copied_simulation_needs_no_second_compilation(capfd, monkeypatch):
    env = ToyEnv()
    env.reset(seed=1)
    env.step(0)
    monkeypatch.delenv("LLMGYM_QUIET", raising=False)
    step = env.lanes._step
    other = copy.deepcopy(env)
    other.step(1)
    assert other.lanes._step is step and len(step.signatures) == len(set(step.signatures))
    assert "compiling" not in capfd.readouterr().err


def test_params_are_read_only():
    class Table(Toy):
        def __init__(self) -> None:
            super().__init__()
            self.params = (np.zeros(3), (np.ones(2), 1.0))

    env = type("TableEnv", (ToyEnv,), {"simulation_class": Table})()
    with pytest.raises(ValueError, match="read-only"):
        env.simulation.params[0][0] = 1.0
    with pytest.raises(ValueError, match="read-only"):
        env.simulation.params[1][0][0] = 2.0


def test_metrics_so_far_and_at_the_end():
    env, envs = ToyEnv(), ToyVectorEnv(1)
    env.reset(seed=0)
    envs.reset(seed=[0])
    total = 0.0
    for _ in range(40):
        _, reward, terminated, truncated, info = env.step(0)
        envs.step([0])
        total += reward
        assert env.metrics()["waited_s"] == -total
        same({k: v[0] for k, v in envs.metrics().items()}, env.metrics())
        if terminated or truncated:
            break
    assert info["metrics"] == env.metrics()
    assert env.simulation.expected_return(info["metrics"]) == total


def test_rendering():
    for silent in (ToyEnv(), ToyVectorEnv(2)):
        silent.reset(seed=0)
        assert silent.render() is None
    for mode, kind in (("ansi", str), ("rgb_array", np.ndarray)):
        env, envs = ToyEnv(render_mode=mode), ToyVectorEnv(2, render_mode=mode)
        env.reset(seed=0)
        envs.reset(seed=0)
        assert isinstance(env.render(), kind)
        frames = envs.render()
        assert isinstance(frames, tuple) and len(frames) == 2
        same(frames[0], env.render()) if kind is np.ndarray else None


def test_same_where_told_can_fail():
    """The comparison above would notice one flipped bit."""
    envs = ToyVectorEnv(2)
    _, infos = envs.reset(seed=0)
    other = copy.deepcopy(infos)
    other["action_mask"][1, 2] ^= 1
    with pytest.raises(AssertionError):
        same_where_told(other, infos)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("piece", [1, 7, 10_000])
def test_whole_episodes_are_the_sum_of_their_steps(monkeypatch, threads, piece):
    """`Lanes.run` plays in pieces, so that Python sees signals; where the pieces end changes nothing."""
    monkeypatch.setattr("llmgym.core.lanes.RUN_STEPS", piece)
    stepped, played = ToyVectorEnv(7, autoreset_mode="DISABLED"), ToyVectorEnv(7, threads=threads)
    for envs in (stepped, played):
        envs.reset(seed=3)
        for actions in ([0, 1, 2, 0, 1, 2, 0], [1] * 7):
            envs.step(np.array(actions))
    returns, steps = np.zeros(7), 0
    ended = np.zeros(7, bool)
    last: dict = {}
    while not ended.all():
        before = ended.copy()
        stepped.lanes.load_actions(np.ones(7, np.int64))
        stepped.lanes.step(3)  # HOLD: a lane whose episode has ended waits
        buffers = stepped.lanes.buffers
        returns += np.where(before, 0.0, buffers.reward)
        steps += int((~before).sum())
        for lane in np.flatnonzero(buffers.ended & ~before):
            last[lane] = (buffers.obs[lane].copy(), buffers.metrics[lane].copy())
        ended = buffers.ended.copy()
    played.lanes.load_actions(np.ones(7, np.int64))
    assert played.lanes.run() == steps
    same(played.lanes.buffers.reward, returns)
    for lane, (obs, metrics) in last.items():
        same(played.lanes.buffers.obs[lane], obs)
        same(played.lanes.buffers.metrics[lane], metrics)
    assert played.lanes.run() == 0, "every episode has ended"
    same(played.lanes.buffers.reward, returns)
