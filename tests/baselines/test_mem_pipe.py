"""Rules for MemPipe: what they choose, what that is worth, and that none reads what is to come."""

from typing import Any

import numpy as np
import pytest

from llmgym import baselines
from llmgym.baselines.memory.pipe import BASELINES, MappedPolicy, search
from llmgym.core.lanes import observing
from llmgym.core.policy import Policy
from llmgym.envs.memory.pipe.env import MemPipe, MemPipeEnv, MemPipeVectorEnv
from llmgym.envs.memory.place.env import MemPlaceEnv
from llmgym.envs.memory.placement import FUSED
from llmgym.envs.memory.published import NAMES
from llmgym.errors import InvalidArgument
from llmgym.evaluation import run_episodes, tuned
from llmgym.evaluation.tuning import TUNING_SEEDS

ID = "llmgym/MemPipe-v0"


def metrics(name: str, lanes: int = 12, **kwargs: Any) -> dict[str, np.ndarray]:
    """Metrics of the first episode of each lane."""
    envs = MemPipeVectorEnv(lanes, autoreset_mode="DISABLED", invalid_action="raise", **kwargs)
    policy = baselines.make(name, envs)
    assert isinstance(policy, Policy) and policy.name == name and not policy.privileged
    obs, infos = envs.reset(seed=100)
    done: dict[int, dict[str, float]] = {}
    while len(done) < lanes:
        obs, _, terminated, _, infos = envs.step(policy.act(obs, infos["action_mask"]))
        for lane in np.flatnonzero(terminated).tolist():
            if lane not in done:  # later episodes of lanes that are done are not counted
                done[lane] = {
                    key: float(values[lane]) for key, values in infos["metrics"].items() if key[0] != "_"
                }
        if terminated.any():
            obs, infos = envs.reset(options={"reset_mask": terminated})
    return {key: np.array([done[lane][key] for lane in range(lanes)]) for key in done[0]}


def test_what_the_rules_choose() -> None:
    env = MemPipeEnv(scenario="rag", requests=30)
    for name, agent in (("static", 1), ("batch-aware", 0), ("gpu-only", 0), ("fpga-all", 1)):
        policy = BASELINES[name](env)
        assert isinstance(policy, MappedPolicy)
        table = policy.table
        assert table[NAMES.index("memagent"), 8, 5] & 1 == agent
        assert table[NAMES.index("flare"), 3, 2] == {"gpu-only": 0, "fpga-all": 15}.get(name, 0b0110)
    assert (search(env.simulation)[NAMES.index("flare")][:9] == FUSED).all()


def test_the_order_of_the_rules_on_the_small_scenario() -> None:
    """Beyond the GPU's own capacity: mappings help, and queues in view help more."""
    latency = {name: metrics(name, scenario="small")["latency_relative"] for name in BASELINES}
    mean = {name: float(values.mean()) for name, values in latency.items()}
    assert mean["earliest-finish"] < 0.9 * mean["static"] < 0.3 * mean["gpu-only"]
    assert mean["gpu-only"] < mean["random"] < mean["fpga-all"]
    assert np.array_equal(latency["static"], latency["brute-force"])
    assert (latency["earliest-finish"] < latency["static"]).mean() > 0.8


def test_who_is_favoured_gets_more() -> None:
    """By hand: 0.6 mean requests on the GPU, 0.7 on the FPGA."""
    env = MemPipeEnv(scenario="small")
    obs, _ = env.reset(seed=0)
    row = obs[None].copy()
    row[0, env.layout["finish"]] = np.array([0.6 / 1.6, 0.7 / 1.7])
    devices = {
        x: int(baselines.make(f"earliest-finish:favour={x}", env).act(row, None)[0])
        for x in (1, 1.15, 1.2, 2)
    }
    assert devices == {1: 0, 1.15: 0, 1.2: 1, 2: 1}  # 0.7 / 0.6 = 1.167
    assert baselines.make("earliest-finish", env).act(row, None).tolist() == [0]
    masked = np.array([[1, 0]], np.int8)
    assert baselines.make("earliest-finish:favour=2", env).act(row, masked).tolist() == [0]
    busy = [
        metrics(f"earliest-finish:favour={x}", scenario="small")["gpu_utilization"].mean()
        for x in (0.2, 1, 5)
    ]
    assert busy[0] > busy[1] + 0.1 > busy[2] + 0.2
    with pytest.raises(InvalidArgument, match="favour"):
        baselines.make("earliest-finish:favour=0", env)


def test_the_greedy_rule_is_tuned_over_its_grid() -> None:
    kwargs = {"scenario": "small"}
    chosen = tuned(ID, ["static", "earliest-finish"], episodes=3, progress=False, **kwargs)
    grid = baselines.grid(ID, "earliest-finish")
    means = {one: run_episodes(ID, one, 3, TUNING_SEEDS + 10_000, kwargs).returns.mean() for one in grid}
    assert chosen == ["static", max(means, key=lambda one: means[one])] and len(set(means.values())) > 3


def test_static_suffers_from_large_batches_of_memagent() -> None:
    static = metrics("static", 4, scenario="rag", requests=100)
    aware = metrics("batch-aware", 4, scenario="rag", requests=100)
    assert static["latency_relative"].mean() > 1.5 * aware["latency_relative"].mean()


def test_energy_of_the_devices() -> None:
    """The mapping computes less of a joule than the GPU alone, on the same requests."""
    alone = metrics("gpu-only", 6, scenario="energy", requests=60)
    mapped = metrics("static", 6, scenario="energy", requests=60)
    assert np.array_equal(alone["world_checksum"], mapped["world_checksum"])
    assert (mapped["energy_mean_j"] < alone["energy_mean_j"]).all()
    assert alone["energy_j"] == pytest.approx(100.0 * alone["gpu_utilization"] * alone["duration_s"])


def test_no_rule_reads_what_is_to_come() -> None:
    """I11: with other requests to come, the observation and every choice are the same."""
    env = MemPipeEnv(scenario="paper", requests=30)
    obs, info = env.reset(seed=3)
    for _ in range(10):
        obs, *_, info = env.step(1)
    policies = {name: BASELINES[name](env) for name in BASELINES if name != "random"}
    before = {name: int(p.act(obs[None], info["action_mask"][None])[0]) for name, p in policies.items()}
    clock_s = env.lanes.state.lane[0]["clock_s"]
    later = env.lanes.state.request[0]["arrival_s"] > clock_s
    assert later.sum() > 5
    env.lanes.state.request["arrival_s"][0, later] += 1.0
    env.lanes.state.request["cell"][0, later] = 0
    again = np.zeros_like(obs)
    observing(env.simulation)(env.lanes.state, env.simulation.params, 0, again)
    assert np.array_equal(again, obs)
    assert before == {
        name: int(p.act(again[None], info["action_mask"][None])[0]) for name, p in policies.items()
    }


def test_names_and_wrong_environment() -> None:
    assert baselines.names(ID) == list(BASELINES)
    assert MemPipe(scenario="h100").mean_s < 1e-2
    for rule in BASELINES.values():
        with pytest.raises(InvalidArgument, match="MemPipe"):
            rule(MemPlaceEnv())
