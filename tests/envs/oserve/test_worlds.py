"""OServe: dispatch, what a world is, and what is told of it."""

import math
from typing import Any

import numpy as np
import pytest

import llmgym
from llmgym.core.lanes import Lanes, observing
from llmgym.core.settings import settled
from llmgym.envs.oserve.env import OServe
from llmgym.envs.oserve.requests import requests_of
from llmgym.envs.oserve.scenarios import SCENARIOS
from tests.envs.oserve.playing import QUICK, four_replicas, graft, make, number_of, play


def test_dispatch_follows_the_shares() -> None:
    """The weighted round robin gives every replica its share of each type, within one request of each."""
    env = four_replicas(load=(0.5, 0.5))
    env.reset(seed=0)
    env.step(number_of(env, *[(4, 1)] * 2, (8, 1)))
    state = env.lanes.state
    share = state.share[0, 0]
    np.testing.assert_allclose(share.sum(axis=1), 1.0)
    same = [
        k for k in range(share.shape[1]) if env.simulation.table.shapes[state.slot["shape"][0, k]] == (4, 1)
    ]
    np.testing.assert_allclose(share[:, same[0]], share[:, same[1]])
    assert 0.0 < np.abs(state.credit[0]).max() < 1.0


def test_the_world_does_not_depend_on_what_is_done() -> None:
    a, b = make(**QUICK), make(**QUICK, dispatch="round-robin", action="plan", switching="free")
    first, _ = play(a, lambda step, mask: 0, seed=9)
    play(b, lambda step, mask: int(np.flatnonzero(mask)[-1]), seed=9)
    ours, theirs = a.lanes.state, b.lanes.state
    assert ours.lane["checksum"] == theirs.lane["checksum"]
    np.testing.assert_array_equal(ours.arrival_s, theirs.arrival_s)
    np.testing.assert_array_equal(ours.arrival_class, theirs.arrival_class)
    again, _ = play(a, lambda step, mask: 0, seed=9)
    assert first == again


def test_the_load_is_that_of_the_best_candidate() -> None:
    """Demand times headroom is what was asked for, in every epoch of every drift."""
    for drift in ("fixed", "spans", "wave"):
        simulation = OServe(scenario="small", drift=drift, load=(0.8, 0.8), noise=0.0)
        lanes = Lanes(simulation, 1)
        lanes.reset(None, [5])
        loads = lanes.state.demand[0] @ simulation.requests.stream_type
        alpha, _ = llmgym.envs.oserve.deployments.evaluate(
            simulation.types, simulation.deployments[simulation.menu], loads
        )
        np.testing.assert_allclose(alpha.max(axis=1), 1.0 / 0.8, rtol=1e-9)
        counts = simulation.rates(lanes.state, 0)
        assert counts.sum() * 30.0 == lanes.state.lane["requests"][0]
        np.testing.assert_allclose(counts.sum(), loads.sum(), rtol=0.05)


def test_the_forecast_is_the_moving_average_of_the_counts() -> None:
    env = make(**QUICK)
    expected = None
    obs, _ = env.reset(seed=2)
    for _ in range(6):
        obs, *_ = env.step(0)
        counts = env.lanes.state.counts[0, env.lanes.state.lane["epoch"][0] - 1] / 30.0
        expected = counts if expected is None else expected + 0.85 * (counts - expected)
    field = obs[env.layout["forecast"]] * env.simulation.params.rate_scale
    np.testing.assert_allclose(field, np.minimum(expected, 16 * env.simulation.params.rate_scale), rtol=1e-5)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"load": (1.2, 1.3)},
        {"load": (1.2, 1.3), "action": "edit", "drift": "day"},
        {"load": (1.2, 1.3), "action": "plan", "drift": "wave", "noise": 0.3, "dispatch": "least-work"},
        {"load": (1.2, 1.3), "backlog_s": 3.0, "reward": "p99"},
    ],
    ids=["spans", "day", "wave", "ends"],
)
def test_observations_do_not_read_the_future(kwargs: dict[str, Any]) -> None:
    """I11: with all that comes after the fourth epoch drawn anew (how much, when, of which classes), nothing differs until then.

    Not the observation, not the mask, and not the end of the episode.
    """
    env, other = make(**QUICK, **kwargs), make(**QUICK, **kwargs)
    waited, ended = 0.0, False
    for seed in range(3):
        graft(env, other, seed, 4)
        assert env.lanes.state.lane["requests"][0] != other.lanes.state.lane["requests"][0]
        mask = env.action_masks()
        rng = np.random.default_rng(seed)
        for step in range(4):
            action = int(rng.choice(np.flatnonzero(mask)))
            a, b = env.step(action), other.step(action)
            np.testing.assert_array_equal(a[0], b[0], f"seed {seed}, epoch {step}")
            np.testing.assert_array_equal(a[4]["action_mask"], b[4]["action_mask"])
            assert a[2] == b[2]
            waited, mask, ended = (
                max(waited, float(a[0][env.layout["waiting"]][0])),
                a[4]["action_mask"],
                a[2],
            )
            if ended:
                break
        if not ended:
            a, b = env.step(int(np.flatnonzero(mask)[0])), other.step(int(np.flatnonzero(mask)[0]))
            assert not np.array_equal(a[0], b[0])  # what was changed matters
    assert waited > 0.1  # a queue, so that what scales it shows
    assert ended == ("backlog_s" in kwargs)


def test_a_backlog_is_measured_in_the_mean_rate_of_the_scenario() -> None:
    """Not in the arrivals of the episode, which nobody knows before its end."""
    for kwargs in (
        {"drift": "fixed", "mix": (0.4, 0.3, 0.2, 0.1)},
        {"drift": "spans", "span_epochs": (3, 3), "load": (0.4, 0.9)},
        {"drift": "wave", "amplitude": 1.5, "period_epochs": 7.0},
        {"drift": "day", "period_epochs": 12.0},
        {"scenario": "real", "epochs": 12, "period_epochs": 12.0},
    ):
        simulation = OServe(**{**QUICK, "epoch_s": 20.0, **kwargs})
        lanes = Lanes(simulation, 1)
        drawn = []
        for seed in range(150):
            lanes.reset(None, [seed])
            drawn.append(lanes.state.demand[0].sum(axis=1).mean())
        error = np.std(drawn, ddof=1) / math.sqrt(len(drawn))
        assert abs(simulation.expected_rps - np.mean(drawn)) < 4.0 * error + 1e-6 * np.mean(drawn), kwargs
        backlog_s = simulation.scenario.backlog_s
        assert simulation.params.config["cap"][0] == 1 + int(backlog_s * simulation.expected_rps)
    assert OServe(**QUICK, backlog_s=1e12).params.config["cap"][0] == 2**31 - 1


def test_what_waits_is_told_by_type_and_not_by_answer() -> None:
    """I11: other requests of the same types, with other answers, in the lines change nothing that is observed.

    Of a type with many lengths (`real`), and of types that are guessed from the prompt.
    """
    for kwargs in (
        {"scenario": "real", "epochs": 12, "load": (1.6, 1.6), "noise": 0.0},
        {**QUICK, "types_known": False, "load": (1.6, 1.6), "dispatch": "least-work"},
        {**QUICK, "types_known": False, "load": (1.6, 1.6), "dispatch": "least-kv"},
    ):
        env = make(**kwargs)
        env.reset(seed=2)
        for _ in range(3):
            env.step(0)
        requests, state, simulation = env.simulation.requests, env.lanes.state, env.simulation
        before = observe(env)
        changed = 0
        for slot in state.slot[0][state.slot[0]["shape"] >= 0]:
            r = int(slot["head"])
            for _ in range(slot["waiting"]):
                request_class = int(state.request["request_class"][0, r])
                twins = [
                    c
                    for c in range(len(requests.classes))
                    if c != request_class
                    and requests.guess[c] == requests.guess[request_class]
                    and np.isfinite(simulation.params.work_s[slot["shape"], c])
                ]
                if twins:
                    state.request["request_class"][0, r] = twins[0]
                    changed += 1
                r = int(state.request["next"][0, r])
        assert changed > 10
        known = recount(env)
        state.slot[0]["work_s"] = known["work_s"]
        state.slot[0]["waiting_kv"] = known["waiting_kv"]
        state.waits[0] = known["waits"]
        # what the kernels had counted is what the types say, up to rounding
        np.testing.assert_allclose(observe(env), before, rtol=1e-4, atol=1e-6)


def observe(env: Any) -> np.ndarray:
    """The observation of the state as it is now."""
    out = np.zeros(env.layout.size, np.float32)
    observing(env.simulation)(env.lanes.state, env.simulation.params, 0, out)
    return out


def recount(env: Any) -> dict[str, np.ndarray]:
    """Expected work and cache of each replica's waiting requests and their number by type, from the raw requests."""
    state, params = env.lanes.state, env.simulation.params
    work_s, waiting_kv = np.zeros(len(state.slot[0])), np.zeros(len(state.slot[0]))
    waits = np.zeros(params.type_rate.shape[1])
    for k, slot in enumerate(state.slot[0]):
        if slot["shape"] < 0:
            continue
        r = int(slot["head"])
        for _ in range(slot["waiting"]):
            c = int(state.request["request_class"][0, r])
            together = np.flatnonzero(params.guess == params.guess[c])
            share = env.simulation.requests.mix @ env.simulation.requests.stream_class
            fits = together[np.isfinite(params.work_s[slot["shape"], together])]
            work_s[k] += state.request["left"][0, r] * np.average(
                params.work_s[slot["shape"], fits], weights=share[fits]
            )
            answer = np.average(params.lengths[together, 1], weights=share[together])
            waiting_kv[k] += params.lengths[c, 0] + round(float(answer))
            waits[params.guess[c]] += 1
            r = int(state.request["next"][0, r])
        for i in range(slot["running"]):
            r = int(state.heap_id[0, k, i])
            c = int(state.request["request_class"][0, r])
            together = np.flatnonzero(params.guess == params.guess[c])
            share = env.simulation.requests.mix @ env.simulation.requests.stream_class
            fits = together[np.isfinite(params.work_s[slot["shape"], together])]
            hoped_s = np.average(params.work_s[slot["shape"], fits], weights=share[fits])
            full_s = float(params.latency_s[slot["shape"], c])
            started = float(state.request["left"][0, r])
            left = (float(state.heap_at[0, k, i]) - float(slot["progress"])) / full_s
            # what it got so far is known, what it will still take is not
            work_s[k] += started * hoped_s - (started - left) * params.work_s[slot["shape"], c]
    return {"work_s": work_s, "waiting_kv": waiting_kv, "waits": waits}


@pytest.mark.parametrize("kwargs", [{}, {"types_known": False}, {"scenario": "real"}], ids=str)
def test_expected_work_is_that_of_the_requests_in_a_replica(kwargs: dict[str, Any]) -> None:
    env = make(**{**QUICK, "load": (1.3, 1.3), **kwargs})
    _, info = env.reset(seed=5)
    rng = np.random.default_rng(0)
    for _ in range(8):
        _, _, terminated, _, info = env.step(int(rng.choice(np.flatnonzero(info["action_mask"]))))
        known, slots = recount(env), env.lanes.state.slot[0]
        here = slots["shape"] >= 0
        np.testing.assert_allclose(slots["work_s"][here], known["work_s"][here], rtol=1e-6, atol=1e-6)
        np.testing.assert_array_equal(slots["waiting_kv"][here], known["waiting_kv"][here])
        np.testing.assert_array_equal(env.lanes.state.waits[0], known["waits"])
        if terminated:
            break
    assert env.lanes.state.lane["done"][0] > 100


def test_types_that_are_not_known_are_guessed_from_the_prompt() -> None:
    scenario = settled("small", SCENARIOS, {"types_known": False, "mix": (0.4, 0.1, 0.1, 0.4)}, "OServe")
    requests = requests_of(scenario)
    assert requests.guess.tolist() == [0, 0, 3, 3]
    np.testing.assert_allclose(requests.split[0], [0.8, 0.2, 0.0, 0.0])
    env = make(**QUICK, types_known=False)
    _, metrics = play(env, lambda step, mask: 0)
    assert metrics["completed"] > 0
