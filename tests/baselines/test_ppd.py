"""The rules of PPDRouting and PPDWeights: what they decide, and what that is worth."""

import math
from typing import Any

import gymnasium
import numpy as np
import pytest

from llmgym import baselines
from llmgym.baselines.ppd.routing import BASELINES, QueueAwarePolicy, TablePolicy
from llmgym.baselines.ppd.weights import BASELINES as WEIGHT_BASELINES
from llmgym.core.policy import Policy
from llmgym.envs.ppd.state import LOCAL, REMOTE
from llmgym.envs.ppd.weights.kernels import WEIGHTS
from llmgym.errors import InvalidArgument, UnknownName
from llmgym.evaluation import tuned
from llmgym.evaluation.rollout import run_episodes
from llmgym.evaluation.tuning import TUNING_SEEDS
from tests.envs.ppd.driving import play, requests, routing

ROUTING, WEIGHING = "llmgym/PPDRouting-v0", "llmgym/PPDWeights-v0"
FEW_RATES = (1.0, 8.0, 16.0)


def score(name: str, env_id: str = ROUTING, episodes: int = 4, **kwargs: Any) -> dict[str, float]:
    """Mean metrics of a baseline, and its mean return."""
    kwargs = {"scenario": "small", "rates": FEW_RATES, **kwargs, **baselines.env_kwargs(env_id, name)}
    table = run_episodes(env_id, name, episodes, 0, kwargs)
    return {"return": float(table.returns.mean()), **{k: float(np.mean(v)) for k, v in table.metrics.items()}}


@pytest.mark.parametrize(
    "name", [*BASELINES, "threshold:tokens=64", "table:w_tpot=6,bypass=100", "partial:share=0.3"]
)
def test_every_rule_plays(name: str) -> None:
    kwargs = {
        "scenario": "small",
        "conversations": 12,
        "rates": FEW_RATES,
        **baselines.env_kwargs(ROUTING, name),
    }
    env = gymnasium.make_vec(ROUTING, num_envs=2, **kwargs)
    policy = baselines.make(name, env)
    assert isinstance(policy, Policy) and policy.name == name
    assert policy.privileged == (name == "oracle")
    assert score(name, conversations=12)["success"] == 1.0


def test_constant_rules_and_shares() -> None:
    kwargs: dict[str, Any] = {"scenario": "paper", "reference": "idle", "conversations": 120}
    metrics = {
        name: score(name, **kwargs)
        for name in ("pd", "local", "threshold", "partial:share=0.33", "partial:share=0.67")
    }
    assert metrics["pd"]["local_fraction"] == 0.0 and metrics["local"]["local_fraction"] == 1.0
    assert 0.9 < metrics["threshold"]["local_fraction"] < 1.0
    assert metrics["partial:share=0.33"]["local_fraction"] == pytest.approx(1 / 3, abs=0.1)
    assert metrics["partial:share=0.67"]["local_fraction"] == pytest.approx(2 / 3, abs=0.1)
    assert (
        metrics["local"]["kv_moved_bytes"]
        < metrics["partial:share=0.67"]["kv_moved_bytes"]
        < metrics["pd"]["kv_moved_bytes"]
    )
    replica = score("replica", **kwargs)
    assert replica["kv_moved_bytes"] == 0.0 and replica["prefilled_p_tokens"] == 0.0


def test_a_partial_share_is_a_set_of_nodes() -> None:
    env = gymnasium.make_vec(ROUTING, num_envs=1, scenario="paper", reference="idle", conversations=60)
    policy = baselines.make("partial:share=0.34", env)
    obs, infos = env.reset(seed=0)
    routes: dict[int, set[int]] = {}
    for _ in range(60):
        state = env.lanes.state
        node = int(state.conversation[0, state.lane["current"][0]]["d"])
        actions = policy.act(obs, infos["action_mask"])
        routes.setdefault(node, set()).add(int(actions[0]))
        obs, _, _, _, infos = env.step(actions)
    assert routes == {1: {REMOTE}, 2: {REMOTE}, 3: {LOCAL}}


def test_the_table_rule_is_equation_1() -> None:
    env = gymnasium.make_vec(ROUTING, num_envs=1, scenario="small", rates=FEW_RATES)
    policy = TablePolicy(env, w_ttft=1.0, w_tpot=6.0)
    table = policy.table
    gain = (table.ttft_s[0] - table.ttft_s[1]) / table.ttft_s[0]
    loss = (table.tpot_s[1] - table.tpot_s[0]) / table.tpot_s[0]
    assert np.array_equal(policy.routes == 1, gain - 6.0 * loss > 0.0)
    assert 0.0 < policy.routes.mean() < 1.0
    assert np.array_equal(table.routes(1.0, 0.0) == 1, gain > 0.0)
    shares = [table.routes(1.0, w).mean() for w in (0, 1, 3, 6, 10, 30, 1000)]
    assert shares == sorted(shares, reverse=True)
    assert table.routes(0.0, 1.0).mean() < table.routes(1000.0, 1.0).mean() == np.mean(gain > 0.0)
    with pytest.raises(InvalidArgument, match="w_tpot=-1"):
        table.routes(1.0, -1.0)


def test_a_failed_cell_is_local_and_zero_is_not() -> None:
    from llmgym.envs.ppd.table import SloTable

    shape = (2, 2, 9, 1)
    ttft, tpot = np.full(shape, 0.1), np.full(shape, 0.01)
    ttft[0, 0, 0, 0] = tpot[0, 0, 0, 0] = math.nan
    ttft[1, 0, 1, 0] = tpot[1, 0, 1, 0] = math.nan
    routes = SloTable(np.array([1.0]), ttft, tpot, np.ones(shape)).routes(1.0, 1.0)
    assert routes[0, 0, 0] == LOCAL  # nothing came back over P
    assert routes[0, 1, 0] == REMOTE and routes[1].max() == REMOTE  # S of 0 goes through P


def test_the_bypass_comes_before_the_table() -> None:
    env = gymnasium.make_vec(ROUTING, num_envs=1, scenario="small", rates=FEW_RATES)
    bypass = TablePolicy(env, w_tpot=1000.0, bypass=513)
    plain = TablePolicy(env, w_tpot=1000.0)
    obs, infos = env.reset(seed=0)
    assert (plain.act(obs, infos["action_mask"])[0], bypass.act(obs, infos["action_mask"])[0]) == (
        REMOTE,
        LOCAL,
    )


def test_queue_aware_goes_around_queues_and_around_decodes() -> None:
    """By hand: alone, on D; behind a loaded P even more so; but with many decodes and a heavy weight, through P."""
    env = routing([0.0], (100, 5), (1000, 20), w_tpot=1.0)
    policy = QueueAwarePolicy(env)
    obs, info = env.reset(seed=0)
    layout = env.layout
    row = obs[None].copy()
    assert policy.act(row, info["action_mask"][None]).tolist() == [LOCAL]
    row[0, layout["d.batch"]] = 40 / 256
    assert policy.act(row, None).tolist() == [REMOTE]
    assert QueueAwarePolicy(env, caution=0.0).act(row, None).tolist() == [LOCAL]  # others do not count
    assert baselines.make("queue-aware:caution=0.05", env).act(row, None).tolist() == [LOCAL]
    row[0, layout["p.backlog"]] = 0.9
    assert policy.act(row, None).tolist() == [
        REMOTE
    ]  # 40 decodes wait 27 ms each: 6.7 TPOTs of an answer of 20
    row[0, layout["d.batch"]] = 3 / 256
    assert policy.act(row, None).tolist() == [LOCAL]


def test_the_oracle_finds_the_optimum_of_the_toy() -> None:
    """The toy instances whose optimum is worked out in tests/envs/ppd/test_mechanics.py, on both sides of the break-even weight."""
    for w_tpot, optimum in ((3.0, [LOCAL, LOCAL]), (6.2, [LOCAL, REMOTE])):
        env = routing([0.0, 0.1], (30, 2), (1500, 40), w_tpot=w_tpot)
        policy = baselines.make("oracle", env)
        obs, info = env.reset(seed=0)
        before = [array.copy() for array in env.lanes.state]
        taken, done = [], False
        while not done:
            action = int(policy.act(obs[None], info["action_mask"][None])[0])
            if not taken:
                assert all(
                    np.array_equal(a, b) for a, b in zip(before, env.lanes.state)
                )  # the copy is a copy
            taken.append(action)
            obs, _, done, _, info = env.step(action)
        assert taken == optimum


def test_rules_differ_where_they_should() -> None:
    """Under stress both constants lose to the rule that looks at queues; in the paper's cluster staying on D wins."""
    stress = {
        n: score(n, scenario="stress", conversations=150)["return"] for n in ("pd", "local", "queue-aware")
    }
    assert stress["queue-aware"] > max(stress["pd"], stress["local"])
    small = {n: score(n, episodes=8)["return"] for n in ("pd", "local", "oracle")}
    assert small["oracle"] > small["local"] > small["pd"]


def test_every_weight_rule_plays() -> None:
    attained = {name: score(name, WEIGHING, 8)["slo_attainment"] for name in WEIGHT_BASELINES}
    assert len(WEIGHT_BASELINES) == len(WEIGHTS) + 3
    fixed = [attained[f"weight-{w:g}"] for w in WEIGHTS]
    assert attained["weight"] == attained["weight-1"]
    assert np.ptp(fixed) > 0.02
    assert attained["oracle"] > max(fixed)


def test_the_reactive_rule_moves_by_what_was_missed() -> None:
    env = gymnasium.make_vec(WEIGHING, num_envs=4, scenario="small", rates=FEW_RATES)
    policy = baselines.make("reactive", env)
    obs, _ = env.reset(seed=0)
    layout = env.layout
    rows = obs.copy()
    rows[:, layout["weight"]] = 0.0
    rows[:, layout["weight"].start + 3] = 1.0
    rows[:, [layout["missed.tpot"].start]] = [[0.5], [0.0], [0.2], [0.0]]
    rows[:, [layout["missed.ttft"].start]] = [[0.1], [0.3], [0.2], [0.0]]
    assert policy.act(rows, None).tolist() == [4, 2, 3, 3]
    # 0.5 against 2 x 0.1, 0 against 2 x 0.3, 0.2 against 2 x 0.2
    assert baselines.make("reactive:ttft=2", env).act(rows, None).tolist() == [4, 2, 2, 3]
    assert baselines.make("reactive:stride=4", env).act(rows, None).tolist() == [7, 0, 3, 3]


def test_one_weight_is_one_of_the_weights() -> None:
    env = gymnasium.make_vec(WEIGHING, num_envs=2, scenario="small", rates=FEW_RATES)
    obs, _ = env.reset(seed=0)
    for k, w in enumerate(WEIGHTS):
        assert baselines.make(f"weight:w={w:g}", env).act(obs, None).tolist() == [k, k]
        assert baselines.make(f"weight-{w:g}", env).act(obs, None).tolist() == [k, k]
    with pytest.raises(InvalidArgument, match=r"w=5\.0: expected one of 0, 0\.5, 1"):
        baselines.make("weight:w=5", env)


@pytest.mark.parametrize(
    ("env_id", "names"),
    [(ROUTING, ("queue-aware", "table", "threshold")), (WEIGHING, ("weight", "reactive"))],
)
def test_rules_are_tuned_over_their_grids(env_id: str, names: tuple[str, ...]) -> None:
    kwargs = {"scenario": "small", "rates": FEW_RATES}
    chosen = tuned(env_id, [*names, "oracle"], episodes=2, progress=False, **kwargs)
    assert chosen[-1] == "oracle"
    for name, variant in zip(names, chosen, strict=False):
        grid = baselines.grid(env_id, name)
        means = {
            one: run_episodes(env_id, one, 2, TUNING_SEEDS + 10_000, kwargs).returns.mean() for one in grid
        }
        assert variant in grid and means[variant] == max(means.values())
        assert len(set(means.values())) > 1, "all values of the grid are alike"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("threshold:m=3", "threshold:argument=number with tokens"),
        ("threshold:tokens=x", "argument=number"),
        ("threshold:tokens=1.5", "tokens=1.5"),
        ("pd:x=1", "no arguments"),
        ("partial:share=2", "share=2"),
        ("table:w_tpot=-1", "w_tpot=-1"),
        ("queue-aware:caution=-1", "caution=-1"),
    ],
)
def test_wrong_numbers_are_named(name: str, says: str) -> None:
    env = gymnasium.make_vec(ROUTING, num_envs=1, scenario="small", rates=FEW_RATES)
    with pytest.raises(InvalidArgument, match=says):
        baselines.make(name, env)


def test_rules_are_for_their_environment() -> None:
    env = gymnasium.make_vec(WEIGHING, num_envs=1, scenario="small", rates=FEW_RATES)
    with pytest.raises(InvalidArgument, match="for PPDRouting"):
        QueueAwarePolicy(env)
    with pytest.raises(UnknownName, match="queue-aware"):
        baselines.make("queue-awful", gymnasium.make_vec(ROUTING, num_envs=1))


def test_a_rule_reads_nothing_but_the_observation() -> None:
    """I11: with other true lengths behind it the same observation gives the same action."""
    env = routing([0.0, 0.1], (30, 20), (900, 40), information="none")
    obs, info = env.reset(seed=0)
    rules = [baselines.make(n, env) for n in ("pd", "local", "partial", "table", "threshold", "queue-aware")]
    first = [rule.act(obs[None], info["action_mask"][None])[0] for rule in rules]
    env.lanes.state.request["output"] = 999
    env.lanes.state.conversation["output"] = 999
    assert [rule.act(obs[None], info["action_mask"][None])[0] for rule in rules] == first
    play(env, REMOTE)
    assert len(requests(env)) == 4
