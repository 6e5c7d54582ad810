"""Lanes on a device play the episodes of lanes on the CPU, bit for bit, on a device that is the memory of this machine.

What a GPU computes is compared in `tests/envs/test_on_gpu.py`, where there is one.
"""

import sys
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import pytest

import llmgym
from benchmarks.events import legal_action
from llmgym.core.env import LaneVectorEnv
from llmgym.core.jit import kernel
from llmgym.core.memory import arrays_of
from llmgym.envs.kv.queue.env import KVQueueVectorEnv
from llmgym.envs.memory.place.env import MemPlaceVectorEnv
from llmgym.errors import EnvironmentClosed, InvalidAction, InvalidArgument, MissingExtra, ResetNeeded
from tests.toy import LANE, Toy, ToyVectorEnv, step_lane

torch = pytest.importorskip("torch")
from tests.core.host_card import make_on_host  # noqa: E402


def assert_same(mine: Any, theirs: Any, place: str = "") -> None:
    """Equal bits; infos of a device may have more in them, all of it of no lane."""
    if isinstance(mine, dict):
        for name, part in theirs.items():
            if name in mine:
                assert_same(mine[name], part, f"{place}.{name}")
            elif name.startswith("_"):
                assert not part.any(), f"{place}.{name}"
        assert set(mine) <= set(theirs), place
        return
    theirs = theirs.numpy() if isinstance(theirs, torch.Tensor) else theirs
    assert mine.dtype == theirs.dtype and np.array_equal(mine, theirs, equal_nan=True), place


def both(vector_class: Any, lanes: int, in_tiles: bool = False, **kwargs: Any) -> tuple[Any, Any]:
    return vector_class(lanes, **kwargs), make_on_host(vector_class, lanes, in_tiles=in_tiles, **kwargs)


def play(here: Any, there: Any, steps: int, seed: int = 3) -> int:
    """Play the same legal actions on both and compare everything; how many episodes ended."""
    (obs, infos), (obs_there, infos_there) = here.reset(seed=seed), there.reset(seed=seed)
    assert_same(obs, obs_there)
    assert_same(infos, infos_there)
    rng, ended = np.random.default_rng(0), 0
    for _ in range(steps):
        action = legal_action(here.single_action_space, infos["action_mask"], here.num_envs, rng)
        *mine, infos = here.step(action)
        *theirs, infos_there = there.step(torch.from_numpy(action))
        for a, b in zip(mine, theirs, strict=True):
            assert_same(a, b)
        assert_same(infos, infos_there)
        ended += int(mine[2].sum() + mine[3].sum())
    return ended


@pytest.mark.parametrize("mode", ["NEXT_STEP", "SAME_STEP"])
@pytest.mark.parametrize("action", ["number", "pair", "box"])
def test_a_device_plays_what_a_cpu_plays(action: str, mode: str) -> None:
    here, there = both(ToyVectorEnv, 7, action=action, autoreset_mode=mode)
    assert play(here, there, 130) > 10
    if action == "number":
        assert np.array_equal(here.action_masks(), there.action_masks().numpy())
    assert_same(here.metrics(), there.metrics())


@pytest.mark.parametrize("mode", ["NEXT_STEP", "SAME_STEP"])
def test_records_and_params_of_an_environment_on_a_device(mode: str) -> None:
    here, there = both(MemPlaceVectorEnv, 5, autoreset_mode=mode)
    assert play(here, there, 200) > 5
    assert_same(here.metrics(), there.metrics())


@pytest.mark.parametrize(
    ("vector_class", "lanes", "kwargs"),
    [
        (ToyVectorEnv, 70, {}),
        (MemPlaceVectorEnv, 40, {}),
        pytest.param(
            KVQueueVectorEnv, 33, {"scenario": "tiny-overload", "requests": 12}, marks=pytest.mark.slow
        ),
    ],
)
def test_states_in_tiles_play_the_same(vector_class: Any, lanes: int, kwargs: Any) -> None:
    """Records with fields of several sizes, arrays of numbers, and records that are stored whole."""
    here, there = both(vector_class, lanes, in_tiles=True, **kwargs)
    assert play(here, there, 120) > 10
    assert_same(here.metrics(), there.metrics())
    state = there.lanes.state_of(lanes - 1)
    for mine, theirs in zip(arrays_of(here.lanes.state), arrays_of(state), strict=True):
        assert mine.dtype == theirs.dtype and mine[lanes - 1].shape == theirs[0].shape
        for name in mine.dtype.names or ():
            assert np.array_equal(mine[lanes - 1][name], theirs[0][name], equal_nan=True), name
    assert there.lanes._tiled.count(True) > 0


class Kept(NamedTuple):
    lane: Any
    spare: Any
    blank: Any


BLANK = np.zeros(1, LANE)


@kernel
def keep_and_step(state: Any, params: Any, lane: int, action: Any) -> tuple[float, bool, bool, float]:
    """A step that first takes the record of its lane elsewhere, empties it and takes it back."""
    state.spare[2 * lane + 1] = state.lane[lane]
    state.blank[lane, 1] = state.lane[lane]
    state.lane[lane] = BLANK[0]
    if state.blank[lane, 1].step % 2 == 0:
        state.lane[lane] = state.spare[2 * lane + 1]
    else:
        state.lane[lane] = state.blank[lane, 1]
    return step_lane(state, params, lane, action)


class KeepingToy(Toy):
    """A queue with arrays of three kinds: in tiles, in tiles with two axes, and not in tiles."""

    kernels = Toy.kernels._replace(step_lane=keep_and_step)

    def allocate(self, lanes: int) -> Any:
        return Kept(np.zeros(lanes, LANE), np.zeros(2 * lanes, LANE), np.zeros((lanes, 3), LANE))


class KeepingVectorEnv(LaneVectorEnv):
    simulation_class = KeepingToy


@pytest.mark.parametrize("in_tiles", [False, True])
def test_whole_records_go_into_tiles_and_out_of_them(in_tiles: bool) -> None:
    here, there = both(ToyVectorEnv, 37)[0], make_on_host(KeepingVectorEnv, 37, in_tiles=in_tiles)
    assert there.lanes._tiled == [in_tiles, False, in_tiles]
    assert play(here, there, 90) > 37


def test_a_limit_of_steps() -> None:
    here, there = both(ToyVectorEnv, 3, max_episode_steps=5)
    assert play(here, there, 30) >= 12


def test_disabled_lanes_wait_until_they_are_reset() -> None:
    here, there = both(ToyVectorEnv, 4, autoreset_mode="DISABLED", horizon=3, arrival=0.01)
    for envs in (here, there):
        envs.reset(seed=1)
        for _ in range(3):
            *_, cut, _ = envs.step(np.zeros(4, np.int64))
        assert cut.all()
        with pytest.raises(ResetNeeded, match=r"lanes \[0, 1, 2, 3\] have ended"):
            envs.step(np.zeros(4, np.int64))
    mask = np.array([True, False, True, True])
    assert_same(here.reset(options={"reset_mask": mask})[0], there.reset(options={"reset_mask": mask})[0])
    with pytest.raises(ResetNeeded, match=r"lanes \[1\] have ended"):
        there.step(np.zeros(4, np.int64))
    last = torch.tensor([False, True, False, False])
    obs, infos = here.reset(options={"reset_mask": last.numpy()}, seed=[None, 9, None, None])
    obs_there, infos_there = there.reset(options={"reset_mask": last}, seed=[None, 9, None, None])
    assert_same(obs, obs_there)
    assert_same(infos, infos_there)
    for a, b in zip(here.step(np.ones(4, np.int64))[:4], there.step(np.ones(4, np.int64))[:4], strict=True):
        assert_same(a, b)


@pytest.mark.parametrize("mode", ["NEXT_STEP", "SAME_STEP"])
def test_a_reset_between_the_end_of_an_episode_and_the_next(mode: str) -> None:
    here, there = both(ToyVectorEnv, 6, autoreset_mode=mode, horizon=3)
    rng = np.random.default_rng(1)
    assert_same(here.reset(seed=2)[0], there.reset(seed=2)[0])
    for step in range(24):
        action = rng.integers(0, 2, 6)
        *mine, infos = here.step(action)
        *theirs, infos_there = there.step(action)
        for a, b in zip(mine, theirs, strict=True):
            assert_same(a, b)
        assert_same(infos, infos_there)
        if step % 4 == 2 or step % 7 == 3:  # with some lanes that have just ended, and some that run
            options = {"reset_mask": rng.random(6) < 0.5}
            options["reset_mask"][0] = True
            seed = [7, *[None] * 5] if step % 8 == 2 else None
            obs, infos = here.reset(options=options, seed=seed)
            obs_there, infos_there = there.reset(options=options, seed=seed)
            assert_same(obs, obs_there)
            assert_same(infos, infos_there)


def test_streams_go_on_and_begin_anew_as_on_a_cpu() -> None:
    here, there = both(ToyVectorEnv, 3)
    for seed in (5, None, [None, 7, 8], 5):
        assert_same(here.reset(seed=seed)[0], there.reset(seed=seed)[0])
        for _ in range(4):
            assert_same(here.step(np.zeros(3, int))[0], there.step(np.zeros(3, int))[0])


def test_without_copies_the_buffers_are_handed_out_and_with_numpy_arrays() -> None:
    envs = make_on_host(ToyVectorEnv, 2, copy=False)
    first, _ = envs.reset(seed=0)
    second = envs.step(np.zeros(2, int))[0]
    assert first.data_ptr() == second.data_ptr()
    envs = make_on_host(ToyVectorEnv, 2)
    assert envs.reset(seed=0)[0].data_ptr() != envs.step(np.zeros(2, int))[0].data_ptr()
    envs = make_on_host(ToyVectorEnv, 2, arrays="numpy")
    obs, infos = envs.reset(seed=0)
    *arrays, more = envs.step(np.zeros(2, int))
    for array in (obs, infos["action_mask"], *arrays, more["metrics"]["waited_s"], more["_metrics"]):
        assert isinstance(array, np.ndarray)


def test_an_array_of_another_library_is_taken_as_it_is() -> None:
    class Other:
        def __init__(self, tensor: Any) -> None:
            self.tensor = tensor

        def __dlpack__(self, **kwargs: Any) -> Any:
            return self.tensor.__dlpack__()

        def __dlpack_device__(self) -> Any:
            return self.tensor.__dlpack_device__()

    envs = make_on_host(ToyVectorEnv, 2)
    envs.reset(seed=0)
    theirs = torch.tensor([1, 0])
    assert envs.lanes.tensor("actions", Other(theirs)).data_ptr() == theirs.data_ptr()
    envs.step(Other(theirs))
    assert envs.lanes.buffers.action.reshape(-1).tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    ("action", "match"),
    [
        (np.zeros(3, int), r"shape \(3,\), expected \(2,\)"),
        (np.zeros(2), "dtype torch.float64, expected an integer type"),
        (np.zeros(2, bool), "dtype torch.bool"),
        ("no", "no array of numbers"),
        (torch.zeros(2, dtype=torch.int64, device="meta"), "actions are on meta, the environment is on cpu"),
    ],
)
def test_wrong_actions_are_named_before_anything_moves(action: Any, match: str) -> None:
    envs = make_on_host(ToyVectorEnv, 2)
    envs.reset(seed=0)
    with pytest.raises(InvalidAction, match=match):
        envs.step(action)


def test_an_action_outside_the_space_leaves_its_lane_and_is_told_at_the_next_call() -> None:
    here, there = both(ToyVectorEnv, 2)
    here.reset(seed=0), there.reset(seed=0)
    obs, reward, *_ = there.step(np.array([7, 0]))
    assert reward[0] == 0.0
    with pytest.raises(InvalidAction, match=r"lane 0 in an earlier step was outside Discrete\(3\)"):
        there.step(np.array([0, 0]))
    assert_same(here.step(np.array([0, 0]))[0][1], obs[1])
    there.step(np.array([0, 0]))  # told once; the lane steps now
    envs = make_on_host(ToyVectorEnv, 2, action="box")
    envs.reset(seed=0)
    envs.step(np.array([[0.5], [np.nan]]))
    with pytest.raises(InvalidAction, match="lane 1"):
        envs.reset(seed=0)


def test_a_masked_action_is_an_error_where_that_is_asked_for() -> None:
    envs = make_on_host(ToyVectorEnv, 2, invalid_action="raise")
    _, infos = envs.reset(seed=0)
    assert infos["action_mask"][:, 2].sum() == 0
    envs.step(np.array([0, 2]))
    with pytest.raises(InvalidAction, match=r'lane 1 .* or masked, with invalid_action="raise"'):
        envs.step(np.array([0, 0]))


def test_what_a_device_does_not_take() -> None:
    with pytest.raises(InvalidArgument, match="threads=2: a device has a thread for each lane"):
        make_on_host(ToyVectorEnv, 2, threads=2)
    with pytest.raises(InvalidArgument, match="unknown arrays 'jax'"):
        make_on_host(ToyVectorEnv, 2, arrays="jax")
    with pytest.raises(InvalidArgument, match=r"num_envs=1000: .* take .* GiB, cpu has .* free: 7 lanes"):
        size = make_on_host(ToyVectorEnv, 1).lanes.bytes_of_a_lane
        make_on_host(ToyVectorEnv, 1000, free=7 * size + 1)
    envs = make_on_host(ToyVectorEnv, 2)
    with pytest.raises(ResetNeeded, match="call reset"):
        envs.step(np.zeros(2, int))
    with pytest.raises(InvalidArgument, match="reset_mask are on meta"):
        envs.reset(options={"reset_mask": torch.ones(2, dtype=torch.bool, device="meta")})
    envs.reset(seed=0)
    envs.close()
    with pytest.raises(EnvironmentClosed):
        envs.step(np.zeros(2, int))


def test_evaluation_and_stable_baselines_stay_on_the_cpu() -> None:
    with pytest.raises(InvalidArgument, match="device='cuda': evaluation runs on the cpu"):
        llmgym.compare("llmgym/MemPlace-v0", device="cuda")
    pytest.importorskip("stable_baselines3")
    from llmgym.policies import SB3VecEnv

    with pytest.raises(InvalidArgument, match="stable-baselines3 takes lanes on the cpu"):
        SB3VecEnv(make_on_host(ToyVectorEnv, 2, autoreset_mode="SAME_STEP"))


def test_the_state_of_a_lane_is_drawn_as_on_a_cpu() -> None:
    here, there = both(ToyVectorEnv, 3, render_mode="ansi", arrival=0.99)
    for envs in (here, there):
        envs.reset(seed=0)
        for _ in range(3):
            envs.step(np.array([0, 1, 0]))
    assert here.render() == there.render() and "#" in here.render()[0]


def test_no_gpu_and_no_library_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    make = lambda device: gymnasium.make_vec("llmgym/MemPlace-v0", 2, device=device)  # noqa: E731
    with pytest.raises(InvalidArgument, match="device='tpu': allowed 'cpu', 'cuda'"):
        make("tpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InvalidArgument, match="device='cuda': torch finds no NVIDIA GPU here"):
        make("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(InvalidArgument, match="device='cuda:3': this machine has 1 GPU"):
        make("cuda:3")
    monkeypatch.delitem(sys.modules, "llmgym.core.cuda", raising=False)
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(MissingExtra, match=r"pip install 'llmgym\[cuda\]'"):
        make("cuda:0")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtra, match=r"pip install 'llmgym\[cuda\]'"):
        make("cuda")
