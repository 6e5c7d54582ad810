"""Rules for Unmask: the sets they choose, what these are worth, and that only the privileged ones know more than is shown."""

import copy
import itertools
from typing import Any

import numpy as np
import pytest

from llmgym import baselines
from llmgym.baselines.unmask.policies import BASELINES, GRIDS
from llmgym.baselines.unmask.privileged import independent_set, mutual_information
from llmgym.baselines.unmask.sets import SetPolicy
from llmgym.core.policy import Policy
from llmgym.envs.memory.pipe.env import MemPipeEnv
from llmgym.envs.unmask.denoiser import Denoiser
from llmgym.envs.unmask.env import UnmaskEnv, UnmaskVectorEnv
from llmgym.envs.unmask.planners import best_spaced, confident, spaced, top
from llmgym.envs.unmask.schedule import dus_levels
from llmgym.errors import InvalidArgument
from llmgym.evaluation import run_episodes
from llmgym.testing import hidden

ID = "llmgym/Unmask-v0"
PRIVILEGED = {"mi-greedy", "mi-price", "look-ahead"}
ONE_PRICE = {"lambda_low": 1.0, "lambda_high": 1.0}


def sets_of(name: str, seed: int = 0, **kwargs: Any) -> list[list[int]]:
    """The positions of the calls of a rule in its first block, as it chooses them."""
    env = UnmaskEnv(**{"scenario": "small", **kwargs})
    policy = baselines.make(name, env)
    obs, info = env.reset(seed=seed)
    sets: list[list[int]] = [[]]
    block = env.simulation.scenario.block
    while env.lanes.state.lane[0]["block"] == 0:
        action = int(policy.act(obs[None], info["action_mask"][None])[0])
        if action == block:
            sets.append([])
        else:
            sets[-1].append(action)
        obs, *_, info = env.step(action)
    return sets[:-1]


def test_dus_reveals_its_levels() -> None:
    for kwargs, arguments in (("", ()), (":skip=2", (2, 2)), (":base=3", (3,))):
        expected = [level.tolist() for level in dus_levels(16, *arguments)]
        assert sets_of(f"dus{kwargs}") == expected
    assert sets_of("bisection")[:2] == [[8], [4, 12]]


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("confidence", [4, 4, 4, 4]),
        ("confidence:calls=3", [6, 5, 5]),
        ("entropy-rising", [2, 2, 4, 8]),
        ("margin", [4, 4, 4, 4]),
        ("left-to-right", [4, 4, 4, 4]),
        ("random-fixed", [4, 4, 4, 4]),
        ("random-rising", [2, 2, 4, 8]),
        ("spread", [2, 2, 4, 8]),
        ("one", [1] * 16),
        ("all", [16]),
    ],
)
def test_how_many_positions_a_call_reveals(name: str, sizes: list[int]) -> None:
    sets = sets_of(name)
    assert [len(one) for one in sets] == sizes
    assert sorted(itertools.chain(*sets)) == list(range(16))
    if name == "left-to-right":
        assert sets[0] == [0, 1, 2, 3]


def test_the_most_wanted_positions_come_first() -> None:
    env = UnmaskEnv(scenario="small")
    env.reset(seed=4)
    position = env.lanes.state.position[0]
    for name, column in (("confidence", -position["confidence"]), ("entropy", position["entropy"]),
                         ("margin", -position["margin"])):  # fmt: skip
        first = sets_of(name, seed=4)[0]
        assert column[first].max() <= np.delete(column, first).min() + 1e-6, name


def test_planners_by_hand() -> None:
    score = np.array([0.9, 0.8, 0.1, 0.7, 0.6, 0.95])
    masked = np.array([1, 1, 1, 1, 1, 0], np.int8)
    out = np.zeros(6, np.int8)
    top(masked, score, 2, out)
    assert out.tolist() == [1, 1, 0, 0, 0, 0]
    confident(masked, score, 0.65, out)
    assert out.tolist() == [1, 1, 0, 1, 0, 0]
    confident(masked, score, 0.99, out)
    assert out.tolist() == [1, 0, 0, 0, 0, 0]
    spaced(masked, score, 2, out)
    assert out.tolist() == [1, 0, 0, 1, 0, 0]
    best_spaced(masked, score, 2, out)  # gap 5 // 2 = 2
    assert out.tolist() == [1, 0, 0, 1, 0, 0]
    best_spaced(masked, score, 5, out)
    assert out.tolist() == masked.tolist()


def test_rules_that_know_the_price_change_with_it() -> None:
    few = [len(sets_of("eb-price", lambda_low=x, lambda_high=x)) for x in (0.1, 1.0, 10.0)]
    assert few[0] < few[1] < few[2]
    assert sets_of("switch", lambda_low=0.1, lambda_high=0.1) == sets_of("dus:skip=2")
    assert sets_of("switch", lambda_low=1.0, lambda_high=1.0) == sets_of("dus")
    assert sets_of("switch", lambda_low=9.0, lambda_high=9.0) == sets_of(
        "eb", lambda_low=9.0, lambda_high=9.0
    )


def test_deferring_waits_for_sure_positions() -> None:
    assert sets_of("dus-skip:threshold=0") == sets_of("dus")
    sets = sets_of("dus-skip:threshold=0.9")
    assert len(sets) == 4 and len(sets[-1]) > 8 and sorted(itertools.chain(*sets)) == list(range(16))


@pytest.mark.parametrize("name", BASELINES)
def test_every_rule_plays_one_lane_as_many(name: str) -> None:
    """Without a masked action, in both kinds of actions; one that draws at random differs between lanes."""
    texts = {}
    for lanes in (1, 3):
        envs = UnmaskVectorEnv(
            lanes, tokens=16, block=8, processes=2, autoreset_mode="DISABLED", invalid_action="raise"
        )
        policy = baselines.make(name, envs)
        assert isinstance(policy, Policy) and policy.name == name
        assert policy.privileged == (name in PRIVILEGED)
        obs, infos = envs.reset(seed=7)
        while not envs.lanes.buffers.ended[0]:
            if envs.lanes.buffers.ended.any():  # play on with those that have not ended
                ended = envs.lanes.buffers.ended.copy()
                obs, infos = envs.reset(options={"reset_mask": ended})
                policy.reset(ended)
            obs, *_, infos = envs.step(policy.act(obs, infos["action_mask"]))
        texts[lanes] = envs.lanes.state.token[0].tolist(), envs.lanes.state.call_of[0].tolist()
    if "random" not in name:
        assert texts[1] == texts[3]


def test_sets_at_once_are_the_same_sets() -> None:
    for name in ("dus", "eb", "hybrid-cb", "mi-greedy"):
        texts = []
        for action in ("add", "set"):
            env = UnmaskEnv(scenario="small", tokens=32, action=action)
            policy = baselines.make(name, env)
            obs, info = env.reset(seed=2)
            ended = False
            while not ended:
                obs, _, ended, _, info = env.step(policy.act(obs[None], info["action_mask"][None])[0])
            texts.append((env.lanes.state.call_of[0].tolist(), info["metrics"]["kl_nats"]))
        assert texts[0] == texts[1], name


def test_a_rule_that_comes_in_the_middle_of_a_call() -> None:
    """A set that somebody else began is finished with what the rule wants."""
    env = UnmaskEnv(scenario="small")
    policy = baselines.make("dus", env)
    env.reset(seed=0)
    obs, *_, info = env.step(5)
    actions = []
    for _ in range(3):
        action = int(policy.act(obs[None], info["action_mask"][None])[0])
        actions.append(action)
        obs, *_, info = env.step(action)
    assert actions == [0, 8, 16] and env.lanes.state.masked[0].sum() == 13


def test_mutual_information_by_brute_force() -> None:
    env = UnmaskEnv(tokens=4, block=4, prompt=4, processes=1, phrases=3, vocabulary=3, noise=0.1)
    env.reset(seed=0)
    denoiser = Denoiser(env.simulation.processes[0], env.lanes.state.prior[0, 0])
    shared = mutual_information(env.simulation, env.lanes.state, 0)
    laws = denoiser(np.full(4, -1))[0]
    for i, j in ((0, 1), (1, 3), (0, 3)):
        expected = 0.0
        for v in range(3):
            for w in range(3):
                known = np.full(4, -1)
                known[[i, j]] = v, w
                p = np.exp(denoiser(known)[1])
                expected += p * np.log(p / (laws[i, v] * laws[j, w]))
        assert shared[i, j] == shared[j, i] == pytest.approx(expected, abs=1e-9)
    two = UnmaskEnv(scenario="columns", interleave=(2,))
    two.reset(seed=0)
    shared = mutual_information(two.simulation, two.lanes.state, 0)
    assert (shared[::2, 1::2] == 0).all() and shared[::2, ::2].max() > 0.01


def test_an_independent_set_keeps_its_budget() -> None:
    shared = np.array([[0, 0.5, 0.1, 0], [0.5, 0, 0.4, 0.1], [0.1, 0.4, 0, 0.3], [0, 0.1, 0.3, 0]])
    out = np.zeros(4, np.int8)
    independent_set(shared, np.ones(4, np.int8), 0.15, out)
    assert out.tolist() == [0, 1, 0, 1]  # position 1 tells most of all, 3 adds 0.1, and nothing more fits
    independent_set(shared, np.ones(4, np.int8), 0.0, out)
    assert out.tolist() == [0, 1, 0, 0]
    independent_set(shared, np.array([0, 0, 1, 1], np.int8), 9.0, out)
    assert out.tolist() == [0, 0, 1, 1]


def test_looking_ahead_leaves_the_world_as_it_was() -> None:
    env = UnmaskEnv(scenario="small", tokens=32)
    policy = baselines.make("look-ahead", env)
    obs, info = env.reset(seed=0)
    before = copy.deepcopy(env.lanes.state)
    policy.act(obs[None], info["action_mask"][None])
    assert hidden.changes(before, env.lanes.state) == set()


@pytest.mark.slow
def test_room_is_left_by_the_best_rules() -> None:
    """What tells how positions depend on each other saves a quarter, without a look at what will be drawn; luck saves more."""
    kwargs = {"scenario": "small"}
    returns = {
        name: run_episodes(ID, name, 24, 5000, kwargs).returns.mean()
        for name in ("dus", "switch:low=0.2,high=4,gamma=0.5", "eb", "mi-price:nats=0.2", "look-ahead")
    }
    best = max(returns["dus"], returns["switch:low=0.2,high=4,gamma=0.5"], returns["eb"])
    assert returns["mi-price:nats=0.2"] > 0.8 * best and returns["look-ahead"] > returns["mi-price:nats=0.2"]


def test_names_numbers_and_wrong_environment() -> None:
    assert baselines.names(ID) == list(BASELINES)
    env = UnmaskEnv(scenario="small")
    for name, grid in GRIDS.items():
        assert name in BASELINES
        for one in grid:
            assert isinstance(baselines.make(one, env), SetPolicy)
    for rule in BASELINES.values():
        with pytest.raises(InvalidArgument, match="Unmask"):
            rule(MemPipeEnv())
    with pytest.raises(InvalidArgument, match="macro"):
        baselines.make("dus", UnmaskEnv(scenario="small", action="macro"))
    for wrong in ("dus:base=1", "eb:gamma=-1", "confidence:calls=99", "cb:tau=x", "dus:no=1"):
        with pytest.raises(InvalidArgument):
            baselines.make(wrong, env)
