"""Environments as RLlib makes them; ray is not needed."""

import numpy as np
import pytest
from gymnasium.vector import VectorEnv

from llmgym.core.wrappers import RLLIB
from llmgym.errors import InvalidArgument
from llmgym.libraries.masked import rllib_env
from llmgym.testing.drive import same

CONFIG = {"env_id": "llmgym/KVQueue-v0", "scenario": "tiny"}


def test_one_or_many():
    one, many = rllib_env(CONFIG), rllib_env({**CONFIG, "num_envs": 3})
    assert isinstance(many, VectorEnv) and many.num_envs == 3
    assert (
        list(one.observation_space) == sorted(RLLIB)
        and many.single_observation_space == one.observation_space
    )
    obs, _ = many.reset(seed=5)
    for lane in range(3):
        same({key: rows[lane] for key, rows in obs.items()}, one.reset(seed=5 + lane)[0])
    assert obs[RLLIB[1]].dtype == np.int8


def test_wrong_settings():
    with pytest.raises(InvalidArgument, match="expected env_id"):
        rllib_env({"scenario": "tiny"})
    with pytest.raises(InvalidArgument, match="NEXT_STEP"):
        rllib_env({**CONFIG, "num_envs": 2, "autoreset_mode": "SAME_STEP"})
    with pytest.raises(InvalidArgument, match="no action mask"):
        rllib_env({"env_id": "llmgym/PipeSDTune-v0"})
