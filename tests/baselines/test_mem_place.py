"""Rules for MemPlace: what they choose, what that is worth, and that none but the oracle reads what is hidden."""

from typing import Any

import numpy as np
import pytest

import llmgym
from llmgym import baselines
from llmgym.baselines.memory.place import BASELINES, FIXED, placements, possible
from llmgym.core.policy import Policy
from llmgym.envs.kv.queue.env import KVQueueEnv
from llmgym.envs.memory.costs import BATCHES, cells
from llmgym.envs.memory.place.env import MemPlaceEnv, MemPlaceVectorEnv
from llmgym.envs.memory.placement import allowed, letters
from llmgym.envs.memory.published import NAMES
from llmgym.errors import InvalidArgument

ID = "llmgym/MemPlace-v0"


def chosen(name: str, workload: str, size: int, batch: int) -> str:
    table = placements(FIXED[name], cells().ravel())
    return letters(int(table[NAMES.index(workload), size, BATCHES.index(batch)]))


def test_what_the_rules_choose() -> None:
    assert chosen("static", "dsa", 8, 32) == chosen("band", "dsa", 8, 32) == "GFFG fused"
    assert chosen("static", "memagent", 8, 32) == "FGGG"
    assert chosen("batch-aware", "memagent", 8, 2) == chosen("band", "memagent", 8, 2) == "FGGG"
    assert chosen("batch-aware", "memagent", 8, 4) == chosen("band", "memagent", 8, 4) == "GGGG"
    assert chosen("band", "memory-as-context", 8, 2) == "GFFG fused"
    assert chosen("band", "memory-as-context", 8, 4) == "GGFG"
    assert chosen("static", "lserve", 9, 1) == "GGGG" == chosen("static", "ttt", 0, 1)
    assert chosen("fpga-all", "lserve", 8, 1) == "FFFF" and chosen("fpga-all", "lserve", 9, 1) == "FGGF"
    assert chosen("fpga-all", "memagent", 8, 1) == "FGGF"
    for rule in FIXED.values():
        for cell in cells().ravel():
            wanted = rule(NAMES[cell["workload"]], int(cell["batch"]))
            assert allowed(cell, possible(cell, wanted))


def returns(name: str, lanes: int = 16, **kwargs: Any) -> np.ndarray:
    envs = MemPlaceVectorEnv(lanes, autoreset_mode="DISABLED", invalid_action="raise", **kwargs)
    policy = BASELINES[name](envs)
    assert isinstance(policy, Policy) and policy.name == name
    obs, infos = envs.reset(seed=100)
    policy.reset(np.ones(lanes, np.bool_))
    total, ended = np.zeros(lanes), np.zeros(lanes, np.bool_)
    while not ended.any():
        obs, rewards, ended, _, infos = envs.step(policy.act(obs, infos["action_mask"]))
        total += rewards
    return total


@pytest.mark.parametrize("scenario", ["paper", "paged", "stress", "small"])
def test_nothing_beats_the_oracle_and_nothing_certain_the_search(scenario: str) -> None:
    got = {name: returns(name, scenario=scenario) for name in BASELINES}
    assert all((got["oracle"] >= values - 1e-9).all() for values in got.values())
    if scenario in ("paper", "paged"):
        assert got["brute-force"] == pytest.approx(got["oracle"])
    else:
        assert got["brute-force"].mean() < got["oracle"].mean() - 0.1
        rivals = set(got) - {"oracle", "brute-force"}
        assert got["brute-force"].mean() > max(got[name].mean() for name in rivals)
    assert (got["gpu-only"] == 0.0).all()


def test_batch_aware_is_optimal_on_the_published_pair_and_static_is_not() -> None:
    """On the paper's own figures its mapping is the best there is, but for MemAgent in batches above two."""
    assert returns("batch-aware", scenario="paper") == pytest.approx(returns("oracle", scenario="paper"))
    assert returns("static", scenario="paper").mean() < returns("batch-aware", scenario="paper").mean() - 1.0


def test_only_the_oracle_is_privileged_and_reads_errors() -> None:
    env = MemPlaceEnv(scenario="small")
    assert [name for name in BASELINES if BASELINES[name](env).privileged] == ["oracle"]
    obs, info = env.reset(seed=0)
    mask = info["action_mask"][None]
    before = {name: BASELINES[name](env).act(obs[None], mask)[0] for name in BASELINES}
    error = env.lanes.state.error
    error[0, 0] = 1e6  # everything is slow on the GPU
    after = {name: BASELINES[name](env).act(obs[None], mask)[0] for name in BASELINES}
    assert [name for name in BASELINES if before[name] != after[name]] == ["oracle"]


def test_names_and_wrong_environment() -> None:
    assert baselines.names(ID) == list(BASELINES)
    with pytest.raises(InvalidArgument, match="MemPlace"):
        BASELINES["static"](KVQueueEnv())
    table = llmgym.compare(ID, ["static", "oracle"], episodes=2, scenario="paper", progress=False).table()
    assert "static" in table.markdown()
