"""Rules for Forage: what they do on worlds without noise, what they are worth, and that the oracle is ahead of all."""

from typing import Any

import numpy as np
import pytest

from llmgym import baselines
from llmgym.baselines.forage.policies import BASELINES, GRIDS
from llmgym.envs.forage.env import ForageEnv
from llmgym.envs.forage.state import (
    ANSWER,
    ANSWER_CONTEXT,
    COMMIT,
    EVALUATE,
    GREP,
    READ_ALL,
    READ_ON,
    RETRIEVE,
    RETRIEVE_KEY,
    SCAN,
)
from llmgym.envs.memory.pipe.env import MemPipeEnv
from llmgym.errors import InvalidArgument
from llmgym.evaluation import run_episodes

ID = "llmgym/Forage-v0"
LOUD = {
    "scenario": "paper",
    "snippet_gap": 8.0,
    "scan_gap": 8.0,
    "listed": (0.99, 0.99, 0.99),
    "false_rate": 0.0,
    "extract": 1.0,
    "overlook": 0.0,
    "spurious": 0.0,
}


def actions(rule: str, seed: int = 0, **kwargs: Any) -> list[int]:
    """What a rule does in one episode."""
    env = ForageEnv(**{"scenario": "paper", "invalid_action": "raise", **kwargs})
    policy = baselines.make(rule, env)
    obs, info = env.reset(seed=seed)
    policy.reset(np.ones(1, np.bool_))
    done, ended = [], False
    while not ended:
        done.append(int(policy.act(obs[None], info["action_mask"][None])[0]))
        obs, _, terminated, truncated, info = env.step(done[-1])
        ended = terminated or truncated
    return done


def test_scout_without_noise() -> None:
    """Search, open the best at once, write, evaluate, answer."""
    assert actions("scout", facts=(1.0, 0.0, 0.0, 0.0), **LOUD) == [GREP, 0, COMMIT, EVALUATE, ANSWER]
    found = run_episodes(ID, "scout", 60, 0, LOUD).metrics
    facts = found["commits"]
    assert (found["accuracy"] > 0.9).all()
    assert found["reads"].mean() < 1.05 * facts.mean() and (found["false_units"] == 0).all()


def test_scout_scans_the_best_three_before_it_reads() -> None:
    done = actions("scout", 2)
    first = done.index(next(action for action in done if action < SCAN))
    before = [action for action in done[1:first] if SCAN <= action < GREP]
    assert len(before) >= 1 and all(action < SCAN + 3 for action in before)
    assert not [action for action in actions("scout-no-scan", 2) if SCAN <= action < GREP]


def test_the_ablations_leave_out_what_they_say() -> None:
    assert EVALUATE not in actions("scout-no-evaluation", 3) and EVALUATE not in actions("react", 3)
    assert actions("react", 3)[-1] == ANSWER_CONTEXT == actions("scout-no-e", 3)[-1]
    assert baselines.env_kwargs(ID, "scout-no-anchors") == {"anchors": False}


def test_retrieval_reading_in_order_and_reading_all() -> None:
    assert actions("top-k:depth=20") == [RETRIEVE + 2, ANSWER_CONTEXT]
    assert actions("read-all") == [READ_ALL]
    chain = actions(
        "iterative:depth=50", facts=(0.0, 0.0, 0.0, 1.0), chain=1.0, retrieval_gap=8.0, extract=1.0
    )
    assert [a for a in chain if a >= RETRIEVE] == [RETRIEVE_KEY + 3] * 4
    one = actions("iterative:depth=50", facts=(0.0, 0.0, 0.0, 1.0), chain=0.0)
    assert one == [RETRIEVE + 3, ANSWER_CONTEXT]
    order = actions("sequential", chunks=32)
    assert order[0] == READ_ON and order[-1] == ANSWER
    assert RETRIEVE_KEY in actions("hybrid") and order.count(READ_ON) <= 6


def test_corroboration_keeps_what_has_more_authority() -> None:
    """Where sources differ and contradict each other it is right more often than Scout."""
    kwargs = {"scenario": "sources", "authority_gap": 3.0}
    scout, both = (run_episodes(ID, rule, 300, 0, kwargs).metrics for rule in ("scout", "corroborate"))
    assert both["accuracy"].mean() > scout["accuracy"].mean() + 0.05
    assert both["false_units"].mean() < 0.6 * scout["false_units"].mean()


@pytest.mark.parametrize("scenario", ["small", "sources", "real"])
def test_nothing_is_ahead_of_the_oracle(scenario: str) -> None:
    kwargs = {"scenario": scenario}
    mean = {
        rule: run_episodes(ID, rule, 60, 0, kwargs).returns.mean()
        for rule in BASELINES
        if rule != "sequential"
    }
    assert max(mean, key=lambda rule: mean[rule]) == "oracle"
    assert mean["oracle"] > 1.05 * max(value for rule, value in mean.items() if rule != "oracle")
    assert BASELINES["oracle"](ForageEnv()).privileged


def test_the_oracle_plays_the_optimum_of_a_toy() -> None:
    toy = {**LOUD, "chunks": 16, "facts": (1.0, 0.0, 0.0, 0.0), "least": (0, 0, 0), "hits": (0.0, 0.0, 0.0)}
    assert actions("oracle", **toy) == [GREP, 0, COMMIT, ANSWER]
    assert actions("oracle", **toy, price=(0.5, 0.5)) == [ANSWER]


def test_wrong_numbers_and_wrong_environment() -> None:
    env = ForageEnv()
    for wrong, name in (
        ("scout:scan=17", "scan"),
        ("scout:read=2", "read"),
        ("hybrid:retrieve=7", "retrieve"),
        ("top-k:depth=3", "depth"),
        ("sequential:passes=0", "passes"),
    ):
        with pytest.raises(InvalidArgument, match=name):
            baselines.make(wrong, env)
    assert set(GRIDS) <= set(BASELINES)
    for name, rule in BASELINES.items():
        if name == "read-all":  # it takes no look at what it is in
            continue
        with pytest.raises(InvalidArgument, match="Forage"):
            rule(MemPipeEnv())
