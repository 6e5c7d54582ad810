"""Native lanes as a vector environment of Tianshou."""

import numpy as np
import pytest

pytest.importorskip("tianshou")

from tianshou.env import DummyVectorEnv

from llmgym.core.wrappers import TIANSHOU, MaskInObservation
from llmgym.errors import InvalidArgument, ResetNeeded
from llmgym.libraries.tianshou import TianshouVectorEnv
from llmgym.testing.drive import same
from tests.toy import ToyEnv, ToyVectorEnv


def native(lanes=4, masks=True):
    return TianshouVectorEnv(ToyVectorEnv(lanes, autoreset_mode="DISABLED"), masks)


@pytest.mark.parametrize("masks", [True, False])
def test_it_is_tianshous_own_vector(masks):
    """Some lanes step, the others stay; ended ones are reset by number."""
    mine = native(masks=masks)
    theirs = DummyVectorEnv([lambda: MaskInObservation(ToyEnv(), TIANSHOU) if masks else ToyEnv()] * 4)
    assert mine.action_space == theirs.action_space and len(mine) == len(theirs) == 4
    rng = np.random.default_rng(0)
    mine.seed(5)
    theirs.seed(5)
    for got, wanted in zip(mine.reset(), theirs.reset()):
        same(list(got), list(wanted))
    ends = 0
    for _ in range(250):
        lanes = np.flatnonzero(rng.random(4) < 0.7)
        if not len(lanes):
            continue
        actions = rng.integers(mine.action_space[0].n, size=len(lanes))
        got, wanted = mine.step(actions, lanes), theirs.step(actions, lanes)
        for one, other in zip(got, wanted):
            same(list(one), list(other))
        ended = lanes[got[2] | got[3]]
        ends += len(ended)
        if len(ended):
            with pytest.raises(ResetNeeded):
                mine.step([0] * len(ended), ended)
            for one, other in zip(mine.reset(ended), theirs.reset(ended)):
                same(list(one), list(other))
    assert ends > 10


def test_wrong_lanes():
    with pytest.raises(InvalidArgument, match="DISABLED"):
        TianshouVectorEnv(ToyVectorEnv(2))
    with pytest.raises(InvalidArgument, match="DISABLED"):
        TianshouVectorEnv(ToyEnv())
    with pytest.raises(InvalidArgument, match="no action mask"):
        TianshouVectorEnv(ToyVectorEnv(2, action="box", autoreset_mode="DISABLED"))
    with pytest.raises(InvalidArgument, match="leave id out"):
        native().set_env_attr("copy", False, [1])


def test_a_collector_gathers_the_same_from_both():
    """A greedy network, with lanes left out at the end: every entry of the buffer agrees, last observations too."""
    import torch
    from tianshou.algorithm.modelfree.dqn import DiscreteQLearningPolicy
    from tianshou.data import Collector, VectorReplayBuffer
    from tianshou.utils.net.common import Net

    buffers = []
    for envs in (
        native(3),
        DummyVectorEnv([lambda: MaskInObservation(ToyEnv(), TIANSHOU)] * 3),
    ):
        torch.manual_seed(0)
        actions = envs.action_space[0]
        net = Net(state_shape=(ToyEnv().observation_space.shape), action_shape=actions.n, hidden_sizes=(8,))
        policy = DiscreteQLearningPolicy(model=net, action_space=actions)
        envs.seed(1)
        collector = Collector(policy, envs, VectorReplayBuffer(900, 3))
        assert collector.collect(n_episode=7, reset_before_collect=True).n_collected_episodes == 7
        buffers.append(collector.buffer)
    one, other = buffers
    assert len(one) == len(other) and one.done.any()
    for name in ("act", "rew", "done", "terminated", "truncated"):
        same(one.get(slice(None), name), other.get(slice(None), name))
    for key in TIANSHOU:
        same(one.obs[key], other.obs[key])
        same(one.obs_next[key], other.obs_next[key])
