"""Lanes of the CPU are copied to a device in one piece, and play there what they play on the CPU, decided by numpy."""

from typing import Any, NamedTuple

import gymnasium
import numpy as np
import pytest

import llmgym
from benchmarks.events import legal_action
from llmgym.core import tiles
from llmgym.core.lanes import HOLD, Lanes
from llmgym.core.memory import arrays_of, copy_lanes
from llmgym.errors import InvalidAction, InvalidArgument
from tests.toy import LANE, Toy, ToyVectorEnv

pytest.importorskip("torch")
from llmgym.core.at_hand import LanesAtHand
from llmgym.core.device import DeviceLanes
from tests.core.host_card import HostCard


def bits(array: Any) -> list[bytes]:
    """The bytes of an array, field by field where it has records: what is between them is nothing."""
    if array.dtype.names:
        return [part for name in array.dtype.names for part in bits(array[name])]
    return [array.tobytes()]


def assert_copied(source: Any, which: Any, there: Any, rows: Any) -> None:
    """The arrays of these lanes are those of the lanes that they stand for."""
    for n in rows:
        for mine, theirs in zip(arrays_of(there.state_of(n)), arrays_of(source.state), strict=True):
            if mine.size:
                assert bits(mine) == bits(theirs.reshape(source.count, -1)[which[n]])
    for name in ("obs", "mask", "ended", "steps", "seed_key", "episode"):
        mine, theirs = getattr(there.buffers, name)[: len(which)], getattr(source.buffers, name)[which]
        assert mine.numpy().tobytes() == theirs.tobytes(), name


def played(env_id: str, lanes: int) -> Any:
    """An environment after some random steps, so that no two lanes are the same."""
    env: Any = gymnasium.make_vec(
        env_id, num_envs=lanes, **next(iter(llmgym.spec(env_id).test_cases().values()))
    ).unwrapped
    _, infos = env.reset(seed=5)
    rng = np.random.default_rng(0)
    for _ in range(4):
        action = legal_action(env.single_action_space, infos["action_mask"], lanes, rng)
        infos = env.step(action)[4]
    return env


@pytest.mark.parametrize("in_tiles", [False, True])
@pytest.mark.parametrize("env_id", llmgym.env_ids())
def test_copied_lanes_are_read_back_as_they_were(env_id: str, in_tiles: bool) -> None:
    env = played(env_id, 3)
    there = DeviceLanes(env.simulation, 70, HostCard(2**33, in_tiles))
    before = list(arrays_of(there.state_of(69)))
    which = np.random.default_rng(1).integers(0, 3, 67)
    there.take(env.lanes, which)
    assert_copied(env.lanes, which, there, (0, 1, 31, 32, 63, 64, 66))
    for mine, theirs in zip(arrays_of(there.state_of(69)), before, strict=True):
        assert bits(mine) == bits(theirs)  # nothing else is written to
    assert there.buffers.ended[67:].all()


@pytest.mark.parametrize("count", [1, 31, 32, 33, 96, 100])
def test_in_pieces_as_in_one(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "AT_ONCE_BYTES", 1)
    env = played("llmgym/MemPlace-v0", 7)
    there = DeviceLanes(env.simulation, 100, HostCard(in_tiles=True))
    which = np.random.default_rng(count).integers(0, 7, count)
    there.take(env.lanes, which)
    assert_copied(env.lanes, which, there, range(count))


class WithTable(NamedTuple):
    lane: Any
    table: Any


class TableToy(Toy):
    """A queue whose state has an array that all lanes share."""

    def allocate(self, lanes: int) -> Any:
        return WithTable(np.zeros(lanes, LANE), np.zeros((3, 2)))


@pytest.mark.parametrize("in_tiles", [False, True])
def test_an_array_of_all_lanes_is_copied_as_a_whole(in_tiles: bool) -> None:
    lanes = Lanes(TableToy(), 2)
    lanes.reset(None, [1, 2])
    lanes.state.table[:] = np.arange(6.0).reshape(3, 2)
    there = DeviceLanes(lanes.simulation, 5, HostCard(in_tiles=in_tiles))
    there.take(lanes, np.array([1, 0, 1]))
    for n, lane in enumerate((1, 0, 1)):
        state = there.state_of(n)
        assert bits(state.lane[0]) == bits(lanes.state.lane[lane])
        assert state.table.tolist() == [[0, 1], [2, 3], [4, 5]]


@pytest.mark.parametrize("in_tiles", [False, True])
@pytest.mark.parametrize("action", ["number", "pair", "box"])
def test_copies_play_what_copies_on_the_cpu_play(action: str, in_tiles: bool) -> None:
    """Lanes that have ended, and those that no copy needs, wait with the reward 0."""
    env = ToyVectorEnv(4, action=action, horizon=9)
    _, infos = env.reset(seed=3)
    rng = np.random.default_rng(2)
    for _ in range(3):
        infos = env.step(legal_action(env.single_action_space, infos["action_mask"], 4, rng))[4]
    here = Lanes(env.simulation, 40)
    here.reset(None, [0] * 40)
    there = LanesAtHand(DeviceLanes(env.simulation, 40, HostCard(in_tiles=in_tiles)))
    for _ in range(2):  # the second time over what the first left
        which = rng.integers(0, 4, 35)
        copy_lanes(env.lanes, which, here)
        here.buffers.ended[35:] = True
        there.take(env.lanes, which)
        ended = 0
        for _ in range(12):
            chosen = legal_action(env.single_action_space, here.buffers.mask, 40, rng)
            for lanes in (here, there):
                lanes.load_actions(chosen)
            running = ~here.buffers.ended
            ended += here.step(HOLD)
            there.step(HOLD)
            assert there.buffers.reward.tolist() == here.buffers.reward.tolist()
            assert not there.buffers.reward[~running].any()
            assert there.buffers.ended.tolist() == here.buffers.ended.tolist()
            now = ~here.buffers.ended
            for name in ("obs", "mask"):
                assert (getattr(there.buffers, name)[now] == getattr(here.buffers, name)[now]).all()
        assert ended == 35 and here.buffers.ended.all()


def test_what_lanes_at_hand_do_not_take() -> None:
    there = LanesAtHand(DeviceLanes(Toy(), 3, HostCard()))
    with pytest.raises(InvalidArgument, match=r"the states of these lanes are on cpu: .* needs device='cpu'"):
        _ = there.state
    with pytest.raises(InvalidAction, match=r"actions outside Discrete\(3\): smallest 0, largest 3"):
        there.load_actions(np.array([0, 3, 0]))
    lanes = Lanes(there.simulation, 1)
    lanes.reset(None, [0])
    there.take(lanes, np.zeros(2, np.int64))
    there.buffers.action[1] = 7.0
    with pytest.raises(InvalidAction, match="lane 1 in an earlier step was outside"):
        there.step(HOLD)
    assert there.buffers.ended.tolist() == [False, False, True]
