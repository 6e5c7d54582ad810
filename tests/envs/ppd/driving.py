"""How the tests make and play clusters of a few conversations."""

import math
from dataclasses import replace
from typing import Any

import numpy as np

from llmgym import workloads
from llmgym.envs.ppd.conversations import Conversations
from llmgym.envs.ppd.latency import LLAMA_8B_H100
from llmgym.envs.ppd.routing.env import PPDRoutingEnv
from llmgym.envs.ppd.state import turn_numbers
from llmgym.workloads import RequestClass, Rows, Workload, fixed, replay

LAW = replace(LLAMA_8B_H100, local_rate_s2=0.0)
"""Without the wait that grows with the rate of conversations, which no hand computation of one or two of them needs."""


def given_at(
    arrival_s: list[float], first: tuple[int, int], later: tuple[int, int], turns: int, **more: Any
) -> Conversations:
    """Conversations that begin at given times, all turns from the second on of one length."""
    rows = Rows(np.array(arrival_s), np.full(len(arrival_s), first[0]), np.full(len(arrival_s), first[1]))
    opening = Workload("given", replay(rows, from_start=True), (RequestClass(rows=rows),))
    following = Workload("later", workloads.poisson(1.0), (RequestClass(fixed(later[0]), fixed(later[1])),))
    return Conversations("given", opening, following, (0.0,) * (turns - 1) + (1.0,), **more)


def routing(
    arrival_s: list[float], first: Any, later: Any, turns: int = 2, think_s: float = 0.0, **kwargs: Any
):
    conversations = given_at(arrival_s, first, later, turns, think_s=think_s)
    settings = {
        "scenario": "paper",
        "reference": "idle",
        "allocation": "1P_1D",
        "conversations": len(arrival_s),
        "latencies": LAW,
    }
    rate = conversations.opening.mean_rate_rps
    return PPDRoutingEnv(
        **{**settings, "qps": rate if math.isfinite(rate) else 1.0, "workload": conversations, **kwargs}
    )


def play(env: Any, choose: Any, seed: int = 0) -> tuple[float, dict[str, float]]:
    """One episode of an action, of a list of actions or of a function of the step."""
    env.reset(seed=seed)
    total, step, done = 0.0, 0, False
    while not done:
        action = choose(step) if callable(choose) else choose[step] if isinstance(choose, list) else choose
        _, reward, terminated, truncated, info = env.step(action)
        total, step, done = total + reward, step + 1, terminated or truncated
    return total, info["metrics"]


def requests(env: Any) -> np.ndarray:
    """The turns of the episode."""
    state = env.lanes.state
    return state.request[0, turn_numbers(state, 0)]
