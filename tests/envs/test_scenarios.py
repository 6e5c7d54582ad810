"""The scenarios that `llmgym list` names are those that the environment takes."""

import gymnasium
import pytest

import llmgym
from llmgym.envs import scenario_names
from llmgym.errors import UnknownName


@pytest.mark.parametrize("env_id", llmgym.env_ids())
def test_listed_scenarios_are_those_that_the_environment_takes(env_id: str) -> None:
    with pytest.raises(UnknownName) as raised:
        gymnasium.make(env_id, scenario="no such")
    assert raised.value.kind == "scenario"
    assert raised.value.known == sorted(scenario_names(env_id))


def test_an_unknown_environment_is_told() -> None:
    for name in ("llmgym/KVQueue", "KVQueue-v0", "CartPole-v1", ""):
        with pytest.raises(UnknownName, match="unknown environment"):
            scenario_names(name)
