"""Tuners of PipeSDTune: how many evaluations, what they hold, when they begin anew, wrong numbers."""

from typing import Any

import numpy as np
import pytest

import llmgym
from llmgym.envs.pipesd.tune.env import PipeSDTuneEnv, PipeSDTuneVectorEnv
from llmgym.errors import InvalidArgument

SEARCHES = ("bo", "random-search", "grid-search")


def made(name: str, **kwargs: Any) -> Any:
    policy = llmgym.baselines.make(name, PipeSDTuneEnv(**kwargs))
    policy.reset(np.ones(1, np.bool_))
    return policy


def drive(
    policy: Any, cost: Any, steps: int, noise: float = 0.0, time: float = 0.0
) -> list[tuple[float, float]]:
    """Feed a tuner times per token that a function of the pair gives, `time` at first; returns the pairs it chose."""
    rng = np.random.default_rng(0)
    pairs = []
    for _ in range(steps):
        obs = np.zeros((1, 10), np.float32)
        obs[0, 0] = time / 0.25
        pair = tuple(policy.act(obs, None)[0].tolist())
        pairs.append(pair)
        time = cost(*pair) * (1 + noise * rng.standard_normal())
    return pairs


def bowl(sequence: float, token: float) -> float:
    return 0.1 + 0.2 * ((sequence - 0.7) ** 2 + (token - 0.3) ** 2)


@pytest.mark.parametrize("name", SEARCHES)
def test_sixteen_evaluations_then_one_pair(name: str) -> None:
    pairs = drive(made(name), bowl, 40)
    assert len(set(pairs[:16])) == 16 and len(set(pairs[16:])) == 1 and pairs[16] in pairs[:16]
    if name != "bo":
        assert pairs[16] == min(pairs[:16], key=lambda pair: bowl(*pair))
    assert all(0 <= value <= 1 for pair in pairs for value in pair)


def test_the_grid_is_four_by_four() -> None:
    pairs = drive(made("grid-search"), bowl, 16)
    assert sorted(pairs) == [
        (r, c) for r in (0.125, 0.375, 0.625, 0.875) for c in (0.125, 0.375, 0.625, 0.875)
    ]
    assert len(drive(made("grid-search:side=2"), bowl, 5)) == 5


@pytest.mark.slow
def test_bayesian_optimisation_finds_the_bottom_of_a_bowl() -> None:
    """Nearer than random search on the mean of some seeds, with noise of a tenth."""
    above: dict[str, list[float]] = {"bo": [], "random-search": []}
    for name, costs in above.items():
        env = PipeSDTuneEnv()
        for seed in range(6):
            policy = llmgym.baselines.make(name, env)
            policy._seed = seed
            policy.reset(np.ones(1, np.bool_))
            costs.append(bowl(*drive(policy, bowl, 17, noise=0.1)[-1]) - 0.1)
    assert np.mean(above["bo"]) < 0.5 * np.mean(above["random-search"])
    assert np.mean(above["bo"]) < 0.015


@pytest.mark.parametrize("name", ["bo:evaluations=4", "random-search:evaluations=4", "grid-search:side=2"])
def test_a_search_begins_anew_when_the_time_changes_by_a_fifth(name: str) -> None:
    factor = [1.0]
    policy = made(name)
    drive(policy, lambda s, t: factor[0] * 0.1, 40)
    assert policy._best[0] is not None and len(policy._held[0]) == 35
    factor[0] = 1.15
    drive(policy, lambda s, t: factor[0] * 0.1, 40, time=0.1)
    assert len(policy._held[0]) == 75
    factor[0] = 1.3
    drive(policy, lambda s, t: factor[0] * 0.1, 12, time=0.13)
    assert policy._best[0] is None or len(policy._held[0]) < 12


def test_lanes_search_apart() -> None:
    policy = llmgym.baselines.make("random-search", PipeSDTuneVectorEnv(3))
    policy.reset(np.ones(3, np.bool_))
    first = policy.act(np.zeros((3, 10), np.float32), None)
    assert len({tuple(row) for row in first.tolist()}) == 3
    policy.reset(np.array([False, True, False]))
    assert [len(tried) for tried in policy._tried] == [1, 0, 1]


def test_fixed_pairs() -> None:
    for scenario, pair in (("s1", [0.95, 0.9]), ("s1-gsm8k", [0.5, 0.8])):
        assert made("fixed", scenario=scenario).act(np.zeros((1, 10)), None).tolist() == [pair]
    assert made("fixed-tuned:sequence=0.8,token=0").act(np.zeros((2, 10)), None).tolist() == [[0.8, 0.0]] * 2


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("bo:evaluations=0", "evaluations=0"),
        ("bo:xi=-1", "xi=-1"),
        ("random-search:evaluations=-3", "evaluations=-3"),
        ("grid-search:side=0", "side=0"),
        ("fixed-tuned:sequence=1.2", "sequence=1.2"),
        ("fixed-tuned:token=-0.2", "token=-0.2"),
    ],
)
def test_wrong_numbers_are_named(name: str, named: str) -> None:
    with pytest.raises(InvalidArgument, match=named):
        made(name)
