"""The rule that chooses at random: only what is allowed, each action as often as the others, the same choices again."""

import gymnasium
import numpy as np
import pytest

from llmgym.baselines.rule import RandomPolicy
from llmgym.envs.memory.pipe.env import MemPipe
from llmgym.envs.memory.place.env import MemPlace
from llmgym.errors import InvalidArgument


def test_a_random_rule_chooses_evenly_among_what_is_allowed() -> None:
    env = gymnasium.make("llmgym/MemPlace-v0")
    obs = np.zeros((4000, 1), np.float32)
    mask = np.zeros((4000, 17), np.int8)
    mask[:, [0, 3, 16]] = 1
    chosen = RandomPolicy(env, "random", MemPlace).act(obs, mask)
    assert np.unique(chosen).tolist() == [0, 3, 16]
    assert np.bincount(chosen)[[0, 3, 16]] == pytest.approx(
        [4000 / 3] * 3, abs=120
    )  # four standard deviations
    assert np.array_equal(chosen, RandomPolicy(env, "random", MemPlace).act(obs, mask))
    assert not np.array_equal(chosen, RandomPolicy(env, "random", MemPlace, seed=1).act(obs, mask))
    assert np.unique(RandomPolicy(env, "random", MemPlace).act(obs, None)).tolist() == list(range(17))
    first = RandomPolicy(env, "random", MemPlace, actions=2)
    assert set(first.act(obs, None)) == {0, 1} and set(first.act(obs, mask)) == {0}


def test_a_random_rule_is_of_one_simulation() -> None:
    with pytest.raises(InvalidArgument, match="MemPipe"):
        RandomPolicy(gymnasium.make("llmgym/MemPlace-v0"), "random", MemPipe)
