"""PPDRouting and PPDWeights: wrong input is named, and everything is registered."""

from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import pytest

import llmgym
from llmgym.core.lanes import HOLD
from llmgym.envs.ppd.conversations import Conversations, fixed_turns, geometric_turns
from llmgym.envs.ppd.latency import Latencies
from llmgym.envs.ppd.routing.env import PPDRoutingEnv, PPDRoutingVectorEnv
from llmgym.envs.ppd.scenarios import SCENARIOS, parse_allocation
from llmgym.envs.ppd.state import D_RUN, D_WAIT, PD, UNROUTED, D, P
from llmgym.envs.ppd.weights.env import PPDWeightsEnv, PPDWeightsVectorEnv
from llmgym.envs.ppd.weights.kernels import WEIGHTS
from llmgym.errors import InvalidAction, InvalidArgument, ProfileError, UnknownName
from tests.envs.ppd.driving import given_at

ROUTING, WEIGHING = "llmgym/PPDRouting-v0", "llmgym/PPDWeights-v0"


@pytest.mark.parametrize(
    ("kwargs", "error", "says"),
    [
        ({"scenario": "huge"}, UnknownName, "small"),
        ({"qqps": 3.0}, UnknownName, "qps"),
        ({"reward": "latency"}, UnknownName, "relative"),
        ({"allocation": ""}, InvalidArgument, "allocation=''"),
        ({"allocation": []}, InvalidArgument, "allocation="),
        ({"allocation": "0P_2D"}, InvalidArgument, "counts from 1"),
        ({"allocation": "1P_1X"}, InvalidArgument, "1P_1X"),
        ({"allocation": "1P_1P"}, InvalidArgument, "1P_1P"),
        ({"allocation": "2P"}, InvalidArgument, "P needs D"),
        ({"allocation": "2D"}, InvalidArgument, "P needs D"),
        ({"allocation": "2P_3D", "gpus": 4}, InvalidArgument, "5 nodes.*gpus=4"),
        ({"allocation": "1P_1D", "profile": "h100/llama-2-70b-tp4"}, InvalidArgument, "4 GPU.*gpus=2"),
        ({"profile": "h100/llama-2-70b"}, ProfileError, "do not fit"),
        ({"kv_capacity": 8000}, InvalidArgument, "kv_capacity=8000.*fit nowhere"),
        ({"link_gb_per_s": 0.0}, InvalidArgument, "link_gb_per_s=0.0"),
        ({"link_gb_per_s": -5.0}, InvalidArgument, "link_gb_per_s=-5.0"),
        ({"buffer_gb": 0.0}, InvalidArgument, "buffer_gb=0.0"),
        ({"w_tpot": -1.0}, InvalidArgument, "w_tpot=-1.0"),
        ({"w_ttft": float("nan")}, InvalidArgument, "w_ttft=nan"),
        ({"qps": 0.0}, InvalidArgument, "qps=0.0"),
        ({"conversations": 0}, InvalidArgument, "conversations=0"),
        ({"max_inflight": 0}, InvalidArgument, "max_inflight=0"),
        ({"max_turns": 65}, InvalidArgument, "max_turns=65"),
        ({"rates": ()}, InvalidArgument, "rates="),
        ({"rates": (4.0, 2.0)}, InvalidArgument, "rising"),
        ({"rates": 4.0}, InvalidArgument, "rates=4.0"),
        ({"answer_kv_hit": 1}, InvalidArgument, "answer_kv_hit=1"),
        ({"interference": "none"}, UnknownName, "physical"),
        ({"workload": "chats"}, UnknownName, "chat"),
        ({"profile": 3}, InvalidArgument, "profile=3"),
        ({"latencies": {}}, InvalidArgument, "latencies="),
        ({"invalid_cost": -1.0}, InvalidArgument, "invalid_cost=-1.0"),
        ({"shaped": 1}, InvalidArgument, "shaped=1"),
        ({"shaped": True, "reward": "slo"}, InvalidArgument, "shaped=True"),
        ({"timeout_cost": -5.0}, InvalidArgument, "timeout_cost=-5.0"),
        ({"shape": (0.0, 0.0)}, InvalidArgument, "shape"),
    ],
    ids=lambda v: str(v) if isinstance(v, dict) else "",
)
def test_wrong_arguments_are_named(kwargs: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        PPDRoutingEnv(**kwargs)


@pytest.mark.parametrize(
    ("kwargs", "error", "says"),
    [
        ({"allocation": ""}, InvalidArgument, "allocation=''"),
        ({"allocation": "2P_3D", "gpus": 4}, InvalidArgument, "5 nodes.*gpus=4"),
        ({"link_gb_per_s": 0.0}, InvalidArgument, "link_gb_per_s=0.0"),
        ({"kv_capacity": 8000}, InvalidArgument, "kv_capacity=8000.*fit nowhere"),
        ({"profile": "h100/llama-2-70b"}, ProfileError, "do not fit"),
        ({"w_tpot": -1.0, "reward": "relative"}, InvalidArgument, "w_tpot=-1.0"),
        ({"epoch_s": 0.0}, InvalidArgument, "epoch_s=0.0"),
        ({"epochs": 0}, InvalidArgument, "epochs=0"),
        ({"shaped": True}, InvalidArgument, "shaped=True"),
    ],
    ids=lambda v: str(v) if isinstance(v, dict) else "",
)
def test_wrong_arguments_of_weights_are_named(
    kwargs: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        PPDWeightsEnv(**kwargs)


def test_wrong_conversations_and_latencies() -> None:
    for call, says in (
        (lambda: fixed_turns(((1, 1),)), "two pairs"),
        (lambda: fixed_turns(((1, 1), (2, 2), (3, 3))), "equal"),
        (lambda: geometric_turns(3, 2.0, 9), "mean=2.0"),
        (lambda: replace(given_at([0.0], (1, 1), (1, 1), 2), turns=()), "turns="),
        (lambda: replace(given_at([0.0], (1, 1), (1, 1), 2), think_s=-1.0), "think_s=-1.0"),
        (lambda: Conversations("x", "chat", "chat", (1.0,)), "opening='chat'"),
        (lambda: Latencies(handoff_s=-0.1), "handoff_s=-0.1"),
        (lambda: Latencies(step_s=0.0), "step_s=0.0"),
    ):
        with pytest.raises(InvalidArgument, match=says):
            call()
    assert parse_allocation("1P_2D_1pD", 4) == (P, D, D, PD)


@pytest.mark.parametrize("action", [-1, 2, 1.0, "1", None, [1]])
def test_wrong_actions_are_refused(action: Any) -> None:
    env = PPDRoutingEnv(scenario="small")
    env.reset(seed=0)
    with pytest.raises(InvalidAction):
        env.step(action)


def test_they_are_registered_and_scenarios_are_made() -> None:
    assert {ROUTING, WEIGHING} <= set(llmgym.env_ids())
    for name, scenario in SCENARIOS.items():
        env = gymnasium.make(ROUTING, scenario=name, reference="idle")
        assert env.unwrapped.simulation.scenario.about == scenario.about
        assert set(env.unwrapped.simulation.headline_metrics) <= set(env.unwrapped.simulation.metric_names)
        assert env.unwrapped.simulation.settings()["workload"] == scenario.workload
    envs = PPDRoutingVectorEnv(2, scenario="small")
    envs.reset(seed=0)
    envs.lanes.step(HOLD)
    stages = envs.lanes.state.conversation["stage"]
    assert np.isin(stages, (UNROUTED, D_RUN, D_WAIT)).any()
    assert PPDWeightsVectorEnv(2, scenario="small", rates=(4.0,)).single_action_space.n == len(WEIGHTS)
