"""Rules for OServe: forecasts and policies."""

from typing import Any

import gymnasium
import numpy as np
import pytest

import llmgym
from llmgym import baselines
from llmgym.baselines.oserve import forecast as oserve_forecast
from llmgym.baselines.oserve import trained as oserve_trained
from llmgym.baselines.oserve.policies import (
    GAIN,
    MenuOncePolicy,
    PlannerPolicy,
    StaticPolicy,
)
from llmgym.core import cache_folder
from llmgym.envs.oserve import daily
from llmgym.envs.oserve.env import OServe
from llmgym.envs.oserve.scenarios import SCENARIOS
from llmgym.errors import InvalidArgument
from llmgym.evaluation import tuned
from llmgym.evaluation.rollout import run_episodes
from llmgym.evaluation.tuning import TUNING_SEEDS
from tests.envs.oserve.playing import graft

ID = "llmgym/OServe-v0"
QUICK = {"scenario": "small", "epochs": 10}


# ------------------------------------------------------------------------------------------------------------ forecasts


def test_forecasts_by_hand() -> None:
    counts = np.array([[1.0, 2.0, 4.0], [8.0, 8.0, 8.0]])
    assert oserve_forecast.last_value(counts).tolist() == [4.0, 8.0]
    assert oserve_forecast.moving_average(counts).tolist() == [7.0 / 3.0, 8.0]
    assert oserve_forecast.ewma(0.5)(counts).tolist() == [0.5 * 4 + 0.25 * 2 + 0.25 * 1, 8.0]
    assert oserve_forecast.rrmse(np.array([1.0, 3.0]), np.array([2.0, 2.0])) == 0.5
    assert oserve_forecast.padded(counts, 5)[0].tolist() == [1.0, 1.0, 1.0, 2.0, 4.0]
    with pytest.raises(InvalidArgument, match="weight"):
        oserve_forecast.ewma(1.5)
    with pytest.raises(InvalidArgument, match="window"):
        oserve_forecast.windows(np.ones(20))


def test_a_ridge_learns_a_line_and_not_a_scale() -> None:
    series = 100.0 + np.arange(400.0)
    learnt = oserve_forecast.fit_ridge([series], window=10, penalty=1e-6)
    x, y = oserve_forecast.windows(series[300:], 10)
    np.testing.assert_allclose(learnt(x), y, rtol=1e-3)
    np.testing.assert_allclose(learnt(7.0 * x), 7.0 * learnt(x), rtol=1e-9)


def test_an_lstm_is_kept_whole(tmp_path: Any) -> None:
    torch = pytest.importorskip("torch")
    from llmgym.baselines.oserve import lstm as oserve_lstm

    series = 100.0 * (2.0 + np.sin(np.arange(200.0)))
    state = torch.random.get_rng_state()
    made = [oserve_lstm.fit([series], updates=3, hidden=8, seed=k) for k in range(2)]
    assert torch.equal(state, torch.random.get_rng_state())
    np.savez(tmp_path / "x.npz", **oserve_lstm.packed(made))
    with np.load(tmp_path / "x.npz") as stored:
        read = oserve_lstm.unpacked({name: stored[name] for name in stored.files})
    x, _ = oserve_forecast.windows(series)
    for network, other in zip(made, read, strict=True):
        np.testing.assert_array_equal(network(x), other(x))
    with pytest.raises(KeyError):
        oserve_lstm.unpacked({str(k): np.zeros(1) for k in range(5)})


def test_the_numpy_network_is_torchs() -> None:
    torch = pytest.importorskip("torch")
    from llmgym.baselines.oserve import lstm as oserve_lstm

    made = oserve_lstm.fit([100.0 * (2.0 + np.sin(np.arange(120.0)))], updates=2, hidden=6)
    network = torch.nn.LSTM(1, 6, batch_first=True)
    with torch.no_grad():
        network.weight_ih_l0.copy_(torch.from_numpy(made.w_in))
        network.weight_hh_l0.copy_(torch.from_numpy(made.w_state))
        network.bias_ih_l0.copy_(torch.from_numpy(made.bias))
        network.bias_hh_l0.zero_()
        counts = np.random.default_rng(0).poisson(50.0, (5, 50)).astype(np.float64)
        scaled, scale = oserve_forecast.scaled(counts)
        _, (state, _) = network(torch.from_numpy((scaled - 1.0).astype(np.float32))[:, :, None])
        change = state[0].numpy() @ made.w_out.T + made.offset
    np.testing.assert_allclose(made(counts), (scaled[:, -1] + change[:, 0]) * scale, rtol=1e-4)


def test_courses_of_a_day() -> None:
    days = np.arange(0, 7, 1 / 144) + 1 / 288
    for course in daily.DAYS:
        shape = course.shape(days)
        assert shape.mean() == pytest.approx(1.0, abs=0.06) and shape.min() > 0.0
        assert len(course.week) == 7 and np.mean(course.week) == pytest.approx(1.0, abs=0.01)
    counts = daily.counts(np.random.default_rng(3), per_minute=200.0, days=2)
    assert counts.shape == (4, 2880) and (counts >= 0).all()
    np.testing.assert_array_equal(counts, daily.counts(np.random.default_rng(3), per_minute=200.0, days=2))
    for wrong in ({"days": 0}, {"per_minute": -1.0}, {"noise": -0.5}):
        with pytest.raises(InvalidArgument, match=next(iter(wrong))):
            daily.counts(np.random.default_rng(0), **wrong)


# ------------------------------------------------------------------------------------------------------------- policies


FAST = [name for name in baselines.names(ID) if name not in ("oserve-lstm", "oserve-preflow")]


@pytest.mark.parametrize("name", FAST)
def test_every_rule_acts(name: str) -> None:
    kwargs = baselines.env_kwargs(ID, name)
    envs = gymnasium.make_vec(ID, 3, **QUICK, **kwargs)
    policy = baselines.make(name, envs)
    assert policy.privileged == (name == "oserve-oracle")
    obs, infos = envs.reset(seed=0)
    policy.reset(np.ones(3, np.bool_))
    for _ in range(6):
        actions = policy.act(obs, infos["action_mask"])
        obs, _, _, _, infos = envs.step(actions)
    metrics = envs.metrics()
    assert (metrics["invalid_actions"] == 0.0).all()
    if name.startswith(("static", "route", "llumnix", "autoscale", "stay")):
        assert (metrics["switches"] <= 1.0).all()


def test_the_preflow_rule_acts() -> None:
    run = run_episodes(ID, "oserve-preflow", 1, 0, {**QUICK, "epochs": 3})
    assert np.isfinite(run.returns).all()


def test_the_lstm_rule_learns_once_and_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    pytest.importorskip("torch")
    from llmgym.baselines.oserve import lstm as oserve_lstm

    calls = []
    real = oserve_lstm.fit

    def few(series: Any, **kwargs: Any) -> Any:
        calls.append(len(series))
        return real(series, **{**kwargs, "updates": 2, "hidden": 4})

    monkeypatch.setattr(oserve_lstm, "fit", few)
    monkeypatch.setattr(oserve_trained, "_TRAIN_COUNTS", 60)
    monkeypatch.setattr(cache_folder, "cache_dir", lambda: tmp_path / "kernels")
    oserve_trained.FORECASTS.forget()
    env = gymnasium.make(ID, **QUICK, action="control")
    policy = baselines.make("oserve-lstm", env)
    obs, _ = env.reset(seed=0)
    for _ in range(3):
        obs, *_ = env.step(policy.act(obs[None], None)[0])
    assert len(calls) == 4 and list((tmp_path / "forecasts").glob("*.npz"))
    oserve_trained.FORECASTS.forget()
    baselines.make("oserve-lstm", env)
    assert len(calls) == 4
    oserve_trained.FORECASTS.forget()


def test_forecasts_of_policies_are_what_they_say() -> None:
    env = gymnasium.make(ID, **QUICK, action="control")
    last, oracle, average = (PlannerPolicy(env, "test", forecast) for forecast in ("last", "oracle", "ewma"))
    obs, _ = env.reset(seed=1)
    state = env.unwrapped.lanes.state
    for epoch in range(5):
        counts = state.counts[0] / 30.0
        np.testing.assert_allclose(average.demand(obs[None])[0], state.forecast[0], rtol=1e-5)
        coming = oracle.demand(obs[None])[0].copy()
        if epoch:
            np.testing.assert_allclose(last.demand(obs[None])[0], counts[epoch - 1], rtol=1e-6)
        obs, *_ = env.step(average.act(obs[None], None)[0])
        np.testing.assert_allclose(coming, state.counts[0, epoch] / 30.0)


def test_a_switch_must_gain() -> None:
    """A large gain never switches, a gain of 1 at least as often as the paper's rule."""
    switches = [
        float(run_episodes(ID, f"oserve:gain={gain}", 4, 0, QUICK).metrics["switches"].mean())
        for gain in (1.0, GAIN, 50.0)
    ]
    assert switches[0] >= switches[1] > switches[2] == 0.0


def test_the_menu_with_the_least_work_differs_in_who_gets_a_request_alone() -> None:
    assert baselines.env_kwargs(ID, "menu-least-work") == {"dispatch": "least-work"}
    plain, other = (
        gymnasium.make(ID, **QUICK).unwrapped,
        gymnasium.make(ID, **QUICK, dispatch="least-work").unwrapped,
    )
    assert plain.action_space == other.action_space and baselines.other_world(ID, "menu-least-work") is None
    obs, _ = plain.reset(seed=3)
    same, _ = other.reset(seed=3)
    assert np.array_equal(obs, same)
    rules = [baselines.make(name, env) for name, env in (("menu-greedy", plain), ("menu-least-work", other))]
    assert rules[0].act(obs[None], None).tolist() == rules[1].act(obs[None], None).tolist()
    greedy, least = (run_episodes(ID, name, 4, 0, QUICK) for name in ("menu-greedy", "menu-least-work"))
    assert greedy.metrics["world_checksum"].tolist() == least.metrics["world_checksum"].tolist()
    assert greedy.returns.tolist() != least.returns.tolist() and least.other_world is None


def test_the_menu_once_changes_to_its_candidate_and_stays() -> None:
    """One switch at the first decision, as played by hand; none to the first deployment, and none beyond the menu."""
    env: Any = gymnasium.make(ID, **QUICK).unwrapped
    menu = env.simulation.menu.tolist()
    there = menu.index(env.simulation.static) + 1
    other = next(n for n in range(1, len(menu) + 1) if n != there)
    stays = run_episodes(ID, "stay", 3, 0, QUICK).returns
    for candidate in (there, len(menu) + 1):
        assert np.array_equal(
            run_episodes(ID, f"menu-once:candidate={candidate}", 3, 0, QUICK).returns, stays
        )
    played = run_episodes(ID, f"menu-once:candidate={other}", 3, 0, QUICK)
    assert played.metrics["switches"].tolist() == [1.0] * 3
    for seed, told in enumerate(played.returns):
        env.reset(seed=seed)
        total, action, ended = 0.0, other, False
        while not ended:
            _, reward, terminated, truncated, _ = env.step(action)
            total, action, ended = total + reward, 0, terminated or truncated
        assert total == pytest.approx(told, rel=1e-12)


@pytest.mark.parametrize(
    "name", ["oserve:gain=0.5", "oserve:price=3", "menu-greedy:gain=0", "menu-once:candidate=0"]
)
def test_wrong_numbers_of_rules(name: str) -> None:
    env = gymnasium.make(ID, **QUICK, **baselines.env_kwargs(ID, name.partition(":")[0]))
    with pytest.raises(InvalidArgument):
        baselines.make(name, env)


def test_rules_need_their_environment() -> None:
    menu, control = gymnasium.make(ID, **QUICK), gymnasium.make(ID, **QUICK, action="control", history=0)
    with pytest.raises(InvalidArgument, match="control"):
        baselines.make("oserve", menu)
    with pytest.raises(InvalidArgument, match="menu"):
        baselines.make("menu-greedy", control)
    with pytest.raises(InvalidArgument, match="history"):
        baselines.make("oserve-last", control)
    with pytest.raises(InvalidArgument, match="static-tp8"):
        baselines.make("static-tp8", gymnasium.make("llmgym/PPDRouting-v0"))


@pytest.mark.slow
def test_real_load_gains_from_planning() -> None:
    """Where the mix drifts slowly the planner beats the static plan: lengths of Azure, measured kernels."""
    returns = {
        name: float(np.mean(run_episodes(ID, name, 3, 50, {"scenario": "real", "epochs": 60}).returns))
        for name in ("static-uniform", "oserve")
    }
    assert returns["oserve"] > returns["static-uniform"]
    simulation = OServe(scenario="real")
    centroids = np.array(simulation.requests.centroids)
    assert (centroids[:, 0] > 50).all() and len({tuple(c) for c in centroids.tolist()}) == 4
    assert llmgym.baselines.names(ID)[0] == "static-uniform"


@pytest.mark.slow
def test_every_rule_that_switches_is_tuned() -> None:
    """How much a switch must gain depends on what it costs and on how far the forecast is off."""
    for name in baselines.names(ID):
        env = gymnasium.make(ID, **{**QUICK, **baselines.env_kwargs(ID, name)})
        rule = baselines.make(name, env) if name != "oserve-lstm" else None
        switches = rule is None or (hasattr(rule, "gain") and not isinstance(rule, StaticPolicy))
        assert bool(baselines.grid(ID, name)) == (switches or isinstance(rule, MenuOncePolicy)), name
    menus = [len(gymnasium.make(ID, scenario=name).unwrapped.simulation.menu) for name in SCENARIOS]
    assert max(menus) == len(baselines.grid(ID, "menu-once"))
    kwargs = {"scenario": "small", "epochs": 20}
    (chosen,) = tuned(ID, ["reload-adhoc"], episodes=3, progress=False, **kwargs)
    means = {
        rule_name: run_episodes(ID, rule_name, 3, TUNING_SEEDS + 10_000, kwargs).returns.mean()
        for rule_name in baselines.grid(ID, "reload-adhoc")
    }
    assert means[chosen] == max(means.values()) and len(set(means.values())) > 1


# ----------------------------------------------------------------------------------------------------------- the future


@pytest.mark.parametrize("name", ["oserve", "oserve-oracle"])
def test_a_rule_does_not_read_the_future_and_the_oracle_does(name: str) -> None:
    """I11: with all requests after the fourth epoch drawn anew, a rule decides as before until then; the oracle does not."""
    kwargs = {**QUICK, "load": (1.2, 1.3), "history": 4, **baselines.env_kwargs(ID, name)}
    env, other = (gymnasium.make(ID, **kwargs).unwrapped for _ in range(2))
    rules = [baselines.make(name, its_env) for its_env in (env, other)]
    same = []
    for seed in (0, 1):
        graft(env, other, seed, 4)
        for rule in rules:
            rule.reset(np.ones(1, np.bool_))
        for _ in range(5):
            decided = []
            for rule, its_env in zip(rules, (env, other), strict=True):
                mask = its_env.lanes.buffers.mask.copy()
                decided.append(rule.act(its_env.lanes.buffers.obs.copy(), mask if mask.size else None)[0])
            same.append(np.array_equal(*decided))
            ends = [its_env.step(decided[0])[2] for its_env in (env, other)]
            if any(ends):
                break
    assert len(same) > 5
    assert all(same) != rules[0].privileged
