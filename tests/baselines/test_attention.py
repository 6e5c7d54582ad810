"""Rules for AttentionBudget: what they choose, what that is worth, and that plans are optimal where they should be."""

import itertools
from typing import Any

import numpy as np
import pytest

from llmgym import baselines
from llmgym.baselines.attention.offline import Labels, plan, thinned, undominated
from llmgym.baselines.attention.oracle import decide
from llmgym.baselines.attention.policies import BASELINES, GRIDS, Rows, least
from llmgym.envs.attention.env import AttentionBudgetEnv
from llmgym.errors import InvalidArgument
from llmgym.evaluation import run_episodes, tuned

ID = "llmgym/AttentionBudget-v0"


def episodes(name: str, count: int = 10, **kwargs: Any) -> Any:
    return run_episodes(ID, name, count, 100, {"scenario": "small", "invalid_action": "raise", **kwargs})


def chosen(name: str, **kwargs: Any) -> tuple[AttentionBudgetEnv, np.ndarray[Any, Any]]:
    """An episode of a rule, and the kernel of each batch."""
    env = AttentionBudgetEnv(**{"scenario": "small", "invalid_action": "raise", **kwargs})
    policy = baselines.make(name, env)
    obs, info = env.reset(seed=5)
    policy.reset(np.ones(1, np.bool_))
    ended = False
    while not ended:
        obs, _, ended, _, info = env.step(int(policy.act(obs[None], info["action_mask"][None])[0]))
    return env, env.lanes.state.batch["action"][0] // len(env.simulation.splits)


def test_one_kernel_throughout_and_its_loss() -> None:
    """The ledger of SLAY ends with its published gap, that of softmax with nothing."""
    for name, kernel, loss in (
        ("always-flash", "fused softmax", 0.0),
        ("always-slay", "slay 2 16 8", 0.0343),
        ("always-favor", "favor 256", 0.8107),
    ):
        env, kernels = chosen(name)
        assert {env.simulation.menu[k] for k in kernels} == {kernel}
        assert env.metrics()["loss_mean_nat"] == pytest.approx(loss, rel=1e-12, abs=0.0)
        assert not BASELINES[name](env).privileged


def test_softmax_written_out_gives_way_beyond_its_memory_and_measurement() -> None:
    """Under the paper's figure only; the fused kernel serves everything."""
    env, kernels = chosen("always-flash", scenario="paper", batches=60)
    length = env.lanes.state.batch["length"][0]
    softmax = env.simulation.menu.index("softmax")
    assert (kernels[length > 16384] != softmax).all() and (length > 16384).sum() > 5
    assert (kernels[length <= 8000] == softmax).mean() > 0.9
    env, kernels = chosen("always-flash", scenario="h100", batches=60)
    assert {env.simulation.menu[k] for k in kernels} == {"fused softmax"}


def test_the_crossover_is_the_measured_one() -> None:
    env, kernels = chosen("crossover", batches=200)
    length = env.lanes.state.batch["length"][0]
    names = np.array(env.simulation.menu)[kernels]
    assert set(names[length < 25_174]) == {"fused softmax"} and set(names[length >= 25_175]) == {
        "slay 2 16 8"
    }
    env, kernels = chosen("crossover:tokens=60000", batches=200)
    length = env.lanes.state.batch["length"][0]
    assert ((kernels == env.simulation.menu.index("slay 2 16 8")) == (length >= 60_000)).all()
    # without a linear kernel to cross to, nothing does
    _, kernels = chosen("crossover", menu=("fused softmax", "elu"), batches=20)
    assert (kernels == 0).all()


def test_deadlines_first() -> None:
    """Of what makes the deadline the least loss, else the fastest: checked at every decision."""
    env = AttentionBudgetEnv(scenario="small", noise=0.0)
    policy = baselines.make("slo-greedy", env)
    obs, info = env.reset(seed=1)
    ended, kinds = False, set()
    loss = env.simulation.params.tables.kernels["loss"]
    while not ended:
        rows = policy.rows(obs[None], info["action_mask"][None])
        action = int(policy.act(obs[None], info["action_mask"][None])[0])
        makes = rows.slack[0] >= 0
        if makes.any():
            assert loss[action] == loss[makes].min() and makes[action]
        else:
            assert rows.time[0, action] == rows.time[0].min()
        kinds.add(bool(makes.any()))
        obs, _, ended, _, info = env.step(action)
    assert kinds == {True, False}


def test_the_price_of_the_dual_rule() -> None:
    """It is 0, then moves by rate x (mean loss - budget) after each batch and is never below 0."""
    env = AttentionBudgetEnv(scenario="small")
    policy = baselines.make("dual-budget:rate=7", env)
    obs, info = env.reset(seed=2)
    expected, ended = 0.0, False
    while not ended:
        action = int(policy.act(obs[None], info["action_mask"][None])[0])
        lane = env.lanes.state.lane[0]
        if lane["done"]:
            mean = float(lane["spent"]) / float(lane["tokens"])
            expected = max(expected + 7 * (mean - 0.02), 0.0)
        assert policy._price[0] == pytest.approx(expected, rel=1e-3, abs=1e-5)
        obs, _, ended, _, info = env.step(action)
    assert expected > 0.0
    policy.reset(np.ones(1, np.bool_))
    assert policy._price[0] == 0.0


def test_ties_go_to_the_next_key() -> None:
    ones = np.ones((1, 3))
    rows = Rows(ones, ones, ones, ones, ones, np.array([[True, True, False]]))
    assert least(rows, np.array([[1.0, 1.0, 0.0]]), np.array([[5.0, 4.0, 0.0]])).tolist() == [1]
    assert least(rows, np.array([[-9.0, -9.0 - 1e-8, 0.0]]), np.array([[4.0, 5.0, 0.0]])).tolist() == [0]


@pytest.mark.parametrize("scenario", ["small", "stress", "real"])
@pytest.mark.parametrize("prices", [(0.5, 0.3, 1.0, 1.0), (0.2, 1.0, 0.0, 0.0)])
def test_the_priced_rule_is_the_compiled_one(scenario: str, prices: tuple[float, ...]) -> None:
    """Nearly always: an observation is float32."""
    env = AttentionBudgetEnv(scenario=scenario, batches=60)
    loss, time, pace, skip = prices
    policy = baselines.make(f"priced:loss={loss},time={time},pace={pace},skip={int(skip)}", env)
    same, ended = [], False
    obs, info = env.reset(seed=3)
    row, action = np.array(prices), np.zeros(1)
    while not ended:
        mine = int(policy.act(obs[None], info["action_mask"][None])[0])
        decide(env.lanes.state, env.simulation.params, 0, row, action)
        same.append(mine == int(action[0]))
        obs, _, ended, _, info = env.step(mine)
    assert np.mean(same) > 0.97


def test_looking_ahead_is_never_worse_than_the_rule_it_plays_on_with() -> None:
    ahead = episodes("rollout:loss=0.5,time=0.3", 6, batches=24)
    rule = episodes("priced:loss=0.5,time=0.3", 6, batches=24)
    assert (ahead.returns >= rule.returns - 1e-5).all()
    assert ahead.returns.mean() > rule.returns.mean() + 0.02
    assert baselines.make("rollout", AttentionBudgetEnv()).privileged


def test_the_plan_is_the_optimum_in_order_of_arrival() -> None:
    """All 3^6 ways to serve six batches with three kernels."""
    kwargs: dict[str, Any] = {"menu": ("fused softmax", "slay 1 8 8", "elu"), "batches": 6, "load": 1.5}
    for seed in range(3):
        env = AttentionBudgetEnv(**kwargs)
        best = -np.inf
        for actions in itertools.product(range(3), repeat=6):
            env.reset(seed=seed)
            best = max(best, sum(env.step(action)[1] for action in actions))
        env.reset(seed=seed)
        actions_of_plan, value, optimum = plan(env.simulation, env.lanes.state, 0, 100_000)
        assert optimum and value == pytest.approx(best, rel=1e-6)
        assert sum(env.step(int(a))[1] for a in actions_of_plan) == pytest.approx(best, rel=1e-6)


def test_labels() -> None:
    n = np.arange(3)
    one = Labels(np.array([1.0, 2.0, 3.0]), np.array([1.0, 0.5, 1.0]), np.array([1.0, 1.0, 0.5]), n, n)
    assert sorted(undominated(one).tolist()) == [0, 1]
    rng = np.random.default_rng(0)
    many = Labels(*rng.random((3, 200)), np.arange(200), np.arange(200))
    kept = set(undominated(many).tolist())
    for i in range(200):
        beaten = any(
            many.clock_s[j] <= many.clock_s[i]
            and many.spent[j] <= many.spent[i]
            and many.value[j] >= many.value[i]
            for j in range(200)
            if j != i
        )
        assert (i in kept) != beaten
    few = thinned(many, 16)
    assert len(few.value) <= 16 and few.value.max() == many.value.max()
    assert thinned(many, 500) is many


def test_the_order_of_the_rules() -> None:
    """In the default scenario: prices beat every rule of the paper, and the future beats prices."""
    mean = {name: float(episodes(name).returns.mean()) for name in BASELINES if name != "rollout"}
    best = mean["priced"]
    assert all(mean[name] < best for name in mean if name not in ("priced", "offline-dp"))
    assert mean["offline-dp"] > best + 0.05
    assert mean["random"] < mean["always-flash"] and mean["always-favor"] < mean["always-slay"]


def test_wrong_numbers() -> None:
    env = AttentionBudgetEnv()
    for name in (
        "priced:loss=-1",
        "dual-budget:rate=0",
        "crossover:tokens=-5",
        "offline-dp:labels=0",
        "priced:speed=1",
    ):
        with pytest.raises(InvalidArgument):
            baselines.make(name, env)
    assert all(variant.partition(":")[0] == name for name, grid in GRIDS.items() for variant in grid)


@pytest.mark.slow
@pytest.mark.parametrize("scenario", ["small", "real"])
def test_there_is_room_above_the_best_tuned_rule(scenario: str) -> None:
    """On 24 worlds: to know the future is worth 5 % of all tokens and more, as bursts and long prompts are not told."""
    kwargs = {"scenario": scenario, "batches": 96}
    rules = [name for name in BASELINES if name not in ("rollout", "offline-dp")]
    best = max(
        float(run_episodes(ID, name, 24, 10_000, kwargs).returns.mean())
        for name in tuned(ID, rules, episodes=24, progress=False, **kwargs)
    )
    known = [
        run_episodes(ID, name, 24, 10_000, kwargs).returns
        for name in ("rollout:loss=0.1,time=1,pace=2", "offline-dp")
    ]
    assert float(np.maximum(*known).mean()) > best + 0.05
