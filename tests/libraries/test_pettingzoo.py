"""The clients of PipeSDNav as agents of PettingZoo."""

import numpy as np
import pytest

pytest.importorskip("pettingzoo")

from pettingzoo.test import parallel_api_test, parallel_seed_test

from llmgym.envs.pipesd.nav.env import PipeSDNavEnv
from llmgym.errors import InvalidAction, ResetNeeded
from llmgym.libraries.pettingzoo import PipeSDClients


@pytest.mark.filterwarnings("error")
def test_pettingzoos_own_checks(capsys):
    parallel_api_test(PipeSDClients(tokens=20))
    parallel_seed_test(lambda: PipeSDClients(tokens=20))


def test_it_is_the_single_environment():
    """Whoever's turn it is sees what the single environment shows, and the return is the same."""
    many, one = PipeSDClients(tokens=30), PipeSDNavEnv(scenario="shared", tokens=30)
    rng = np.random.default_rng(0)
    for seed in (3, None):
        seen, _ = many.reset(seed=seed)
        obs, info = one.reset(seed=seed)
        done, turns = False, set()
        while not done:
            np.testing.assert_array_equal(seen[many.turn]["observation"], obs)
            np.testing.assert_array_equal(seen[many.turn]["action_mask"], info["action_mask"])
            others = [agent for agent in many.agents if agent != many.turn]
            assert all(seen[agent]["action_mask"].tolist() == [1, 0, 0] for agent in others)
            turns.add(many.turn)
            actions = {agent: int(rng.integers(3)) for agent in many.agents}
            obs, reward, done, _, info = one.step(actions[many.turn])
            before = many.agents
            seen, rewards, ended, _, infos = many.step(actions)
            assert rewards == dict.fromkeys(before, reward)
            assert all(seen[agent] in many.observation_space(agent) for agent in before)
            assert many.agents == [agent for agent in before if not ended[agent]]
        assert turns == set(many.possible_agents) and not many.agents and many.turn is None
        assert all(info["metrics"] == one.metrics() for info in infos.values())


def test_wrong_calls():
    env = PipeSDClients(tokens=5)
    with pytest.raises(ResetNeeded):
        env.step({})
    env.reset(seed=0)
    with pytest.raises(InvalidAction, match="whose turn it is"):
        env.step({})


def test_it_draws_itself():
    env = PipeSDClients(tokens=5, render_mode="rgb_array")
    env.reset(seed=0)
    frame = env.render()
    assert frame.dtype == np.uint8 and frame.ndim == 3 and frame.std() > 0
