"""OServe: conservation, hand computations of single requests, switching, routing, worlds, wrong input, a toy with a known
optimum.
"""

import itertools
import math
from typing import Any

import gymnasium
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import llmgym
from llmgym.core.lanes import Lanes
from llmgym.envs.oserve.env import OServe
from llmgym.envs.oserve.scenarios import CORNERS, requests_of, resolve_scenario, spatial_mix
from llmgym.envs.oserve.state import METRICS
from llmgym.errors import InvalidArgument, UnknownName
from llmgym.testing.drive import audited, legal_action

ID = "llmgym/OServe-v0"
QUICK = {"scenario": "small", "epochs": 12}


def make(**kwargs: Any) -> Any:
    return gymnasium.make(ID, **kwargs).unwrapped


def play(env: Any, actions: Any, seed: int = 0) -> tuple[float, dict[str, float]]:
    """Return and metrics of an episode; `actions(step, mask)` decides."""
    _, info = env.reset(seed=seed)
    total, step, ended = 0.0, 0, False
    while not ended:
        _, reward, terminated, truncated, info = env.step(actions(step, info["action_mask"]))
        total, step, ended = total + reward, step + 1, terminated or truncated
    return total, info["metrics"]


# --------------------------------------------------------------------------------------------- conservation, over all modes


@settings(max_examples=6, deadline=None)
@given(
    seed=st.integers(0, 2**40),
    action=st.sampled_from(["menu", "edit", "plan", "control", "route"]),
    switching=st.sampled_from(["adhoc", "reload", "free"]),
    dispatch=st.sampled_from(["flow", "blind", "round-robin", "least-work", "least-kv"]),
    reroute=st.booleans(),
)
def test_nothing_is_lost(seed: int, action: str, switching: str, dispatch: str, reroute: bool) -> None:
    """Requests, cache, GPUs and bytes add up in every mode, through switch after switch; the return is its metric."""
    env = make(**QUICK, action=action, switching=switching, dispatch=dispatch, reroute=reroute)
    _, info = env.reset(seed=seed)
    rng = np.random.default_rng(seed)
    total, ended = 0.0, False
    while not ended:
        _, reward, terminated, truncated, info = env.step(legal_action(env, info["action_mask"], rng))
        audit = audited(env)
        total, ended = total + reward, terminated or truncated
        assert audit["arrived"] == audit["waiting"] + audit["running"] + audit["done"]
        for name in audit:
            if name.endswith("_counted"):
                assert audit[name] == audit[name.removesuffix("_counted")], name
        assert audit["distinct"] == audit["live"]
        assert audit["kv_used"] == audit["kv_resident"] and audit["kv_fullest"] <= 1.0
        assert audit["bytes_sent"] == audit["bytes_received"] + audit["bytes_in_flight"]
        state = env.lanes.state
        assert float(state.lane[0]["open_arrival_s"]) == pytest.approx(audit["open_arrival_s"], abs=1e-2)
    assert total == pytest.approx(env.simulation.expected_return(info["metrics"]), rel=1e-9)


@pytest.mark.parametrize("reward", ["latency", "p99", "slo"])
@pytest.mark.parametrize("backlog_s", [1200.0, 3.0])
def test_the_return_is_the_metric(reward: str, backlog_s: float) -> None:
    env = make(**QUICK, reward=reward, backlog_s=backlog_s, load=(1.3, 1.3), switch_cost=0.01)
    total, metrics = play(env, lambda step, mask: int(np.flatnonzero(mask)[step % mask.sum()]))
    assert metrics["unstable"] == (backlog_s == 3.0)
    assert total == pytest.approx(env.simulation.expected_return(metrics), rel=1e-9)
    assert metrics["penalty"] >= 0.01 * metrics["switches"] - 1e-12


def test_time_in_the_system_is_end_to_end_time_plus_ages() -> None:
    env = make(**QUICK)
    total, metrics = play(env, lambda step, mask: 0, seed=3)
    state, lane = env.lanes.state, env.lanes.state.lane[0]
    requests = state.request[0, : lane["next"]]
    done = requests["e2e_s"] >= 0.0
    ages = 12 * 30.0 - requests["arrival_s"][~done]
    by_hand = requests["e2e_s"][done].astype(float).sum() + ages.sum()
    assert metrics["system_mean_s"] == pytest.approx(by_hand / lane["requests"], rel=1e-6)
    assert total == pytest.approx(-metrics["system_mean_s"] / env.simulation.latency_ref_s, rel=1e-9)


# ----------------------------------------------------------------------------------------------- one replica, by hand


def one_type(**kwargs: Any) -> Any:
    """A single replica and a single type."""
    settings_ = {
        "scenario": "small",
        "model": "llama-2-70b",
        "gpus": 4,
        "types": ((2455, 510),),
        "drift": "fixed",
        "mix": (1.0,),
        "initial": ((4, 1),),
        "epochs": 8,
        "history": 2,
    }
    return make(**{**settings_, **kwargs})


def reference(
    arrivals: np.ndarray, work_s: float, latency_s: float, seats: int, until_s: float
) -> np.ndarray:
    """End-to-end times by small steps of time: first come, first served, processor sharing; NaN if not done."""
    dt = 2e-3
    left: dict[int, float] = {}
    waiting: list[int] = []
    times = np.full(len(arrivals), np.nan)
    arrived = 0
    for n in range(int(until_s / dt)):
        now = n * dt
        while arrived < len(arrivals) and arrivals[arrived] <= now:
            waiting.append(arrived)
            arrived += 1
        while waiting and len(left) < seats:
            left[waiting.pop(0)] = 1.0
        load = len(left) * work_s / latency_s
        speed = min(1.0, 1.0 / load) if load else 1.0
        for r in list(left):
            left[r] -= speed * dt / latency_s
            if left[r] <= 0.0:
                times[r] = now + dt - arrivals[r]
                del left[r]
    return times


@pytest.mark.parametrize("load", [0.5, 1.2])
def test_a_replica_against_small_steps_of_time(load: float) -> None:
    env = one_type(load=(load, load))
    play(env, lambda step, mask: 0, seed=1)
    state, simulation = env.lanes.state, env.simulation
    requests = state.request[0, : state.lane[0]["requests"]]
    rate, latency_s = simulation.types.rate[0, 0], simulation.types.latency_s[0, 0]
    seats = min(256, int(simulation.table.capacity[0] // (2455 + 510)))
    times = reference(requests["arrival_s"], 1.0 / rate, latency_s, seats, 240.0)
    done = requests["e2e_s"] >= 0.0
    assert done.sum() > 100 and abs(int(done.sum()) - int(np.isfinite(times).sum())) <= 1
    both = done & np.isfinite(times)
    np.testing.assert_allclose(requests["e2e_s"][both], times[both], rtol=4e-3, atol=5e-3)


def test_a_lone_request_takes_its_latency() -> None:
    env = one_type(load=(0.02, 0.02), epochs=20)
    _, metrics = play(env, lambda step, mask: 0)
    latency_s, first_s = env.simulation.table.latency_s[0, 0], env.simulation.table.prefill_s[0, 0]
    assert metrics["e2e_p50_s"] == pytest.approx(latency_s, rel=1e-6)
    assert metrics["tpot_mean_s"] == pytest.approx((latency_s - first_s) / 509, rel=1e-3)
    busy_s = metrics["completed"] / env.simulation.types.rate[0, 0]
    assert metrics["utilization"] == pytest.approx(busy_s / metrics["duration_s"], rel=1e-6) and busy_s > 0.0


def test_saturation_throughput_is_the_rate() -> None:
    env = one_type(load=(1.5, 1.5), epochs=30)
    _, metrics = play(env, lambda step, mask: 0)
    # until the cache is full first; then it completes `rate` a second
    assert metrics["throughput_rps"] == pytest.approx(env.simulation.types.rate[0, 0], rel=0.06)
    assert metrics["utilization"] == pytest.approx(1.0, abs=0.02)


# ---------------------------------------------------------------------------------------------------------- switching


def number(env: Any, *shapes: tuple[int, int]) -> int:
    return env.simulation.number_of(shapes)


def pair(**kwargs: Any) -> Any:
    return make(
        scenario="paper", action="plan", drift="fixed", initial=((4, 1),) * 4, epochs=6, history=1, **kwargs
    )


def test_replicas_that_stay_serve_on_and_take_over() -> None:
    """(4,1) x 4 -> (4,1) x 3 + (2,2): one replica stops for 6 s and the transfer; the others never do."""
    env = pair()
    env.reset(seed=0)
    stay, other = number(env, *[(4, 1)] * 4), number(env, *[(4, 1)] * 3, (2, 2))
    env.step(stay)
    slots = env.lanes.state.slot[0]
    before = slots["busy_s"].copy()
    _, _, _, _, info = env.step(other)
    changed = [k for k in range(len(slots)) if env.simulation.table.shapes[slots["shape"][k]] == (2, 2)]
    kept = [k for k in range(len(slots)) if slots["shape"][k] >= 0 and k not in changed]
    assert len(changed) == 1 and len(kept) == 3
    assert all(slots["ready_s"][k] == 0.0 and slots["busy_s"][k] > before[k] for k in kept)
    stop_s = float(slots["ready_s"][changed[0]]) - 60.0
    assert 6.0 < stop_s < 10.0
    metrics = env.metrics()
    assert metrics["stopped_gpu_s"] == pytest.approx(4 * stop_s)
    assert metrics["switches"] == 1.0 and metrics["changed_gpus"] == 4.0
    assert metrics["drained"] > 0.0 and metrics["migrated"] > 0.0 and metrics["restarted"] == 0.0
    assert info["action_mask"].all()


def test_a_reload_takes_the_weights_from_disk_and_masks_changes() -> None:
    env = pair(switching="reload", epoch_s=20.0)
    env.reset(seed=0)
    stay, other = number(env, *[(4, 1)] * 4), number(env, (8, 1), (8, 1))
    env.step(stay)
    _, _, _, _, info = env.step(other)
    ready = env.lanes.state.slot["ready_s"][0].max() - 20.0
    assert ready == pytest.approx(138e9 / 2.8e9, rel=1e-9)
    assert env.metrics()["restarted"] > 0.0 and env.metrics()["kv_moved_bytes"] == 0.0
    assert np.flatnonzero(info["action_mask"]).tolist() == [other]
    assert env.metrics()["throughput_rps"] < 0.8 * env.metrics()["requests"] / 120.0


def test_a_free_switch_takes_no_time() -> None:
    env = pair(switching="free")
    env.reset(seed=0)
    env.step(number(env, *[(4, 1)] * 4))
    env.step(number(env, (8, 1), (8, 1)))
    assert env.metrics()["stopped_gpu_s"] == 0.0 and env.metrics()["migrated"] > 0.0
    assert env.metrics()["drained"] == 0.0


def test_migrated_requests_go_on_where_they_were() -> None:
    """A free switch to the same kind of replicas on other GPUs changes no completion by more than the sharing does."""
    env = one_type(
        load=(0.05, 0.05), action="plan", switching="free", epochs=20, gpus=8, initial=((4, 1),) * 2
    )
    a, b = number(env, (4, 1), (4, 1)), number(env, (8, 1))
    _, metrics = play(env, lambda step, mask: b if step % 2 else a)
    slow, fast = (
        float(env.simulation.table.latency_s[s, 0]) for s in (0, env.simulation.table.shapes.index((8, 1)))
    )
    times = env.lanes.state.served[0, 0, : int(metrics["completed"])]
    assert metrics["migrated"] > 3
    assert times.min() == pytest.approx(fast, rel=1e-5) and times.max() == pytest.approx(slow, rel=1e-5)
    assert ((times > fast * 1.001) & (times < slow * 0.999)).sum() >= 3


def test_zero_headroom_types_wait_for_a_replica_that_can_hold_them() -> None:
    """While the only replica for long requests starts, they wait for it; short ones are served by the others meanwhile."""
    initial = ((2, 1),) * 4 + ((4, 2),)
    env = make(scenario="small", action="plan", switching="reload", epochs=6, drift="fixed", initial=initial)
    shapes = [str(shape) for shape in env.simulation.table.shapes]
    assert env.simulation.types.rate[shapes.index("TP2"), 3] == 0.0
    env.reset(seed=0)
    for _ in range(3):
        env.step(number(env, *[(2, 1)] * 4, (8, 1)))
    slots, state = env.lanes.state.slot[0], env.lanes.state
    ready_s = float(slots["ready_s"][slots["shape"] == shapes.index("TP8")][0])
    assert 30.0 < ready_s < 60.0
    asked = state.request[0, : state.lane[0]["next"]]
    ends = np.where(asked["e2e_s"] >= 0.0, asked["arrival_s"] + asked["e2e_s"], np.inf)
    long, short = ends[asked["kind"] == 3], ends[asked["kind"] == 0]
    assert (asked["arrival_s"][asked["kind"] == 3] < ready_s).sum() > 30
    assert ready_s < long.min() < np.inf and (short < ready_s).sum() > 10
    audit = env.simulation.audit(state, 0)
    assert audit["arrived"] == audit["waiting"] + audit["running"] + audit["done"]


# -------------------------------------------------------------------------------------------------- routing and worlds


def test_dispatch_follows_the_shares() -> None:
    """The weighted round robin gives every replica its share of each type, within one request of each."""
    env = pair(load=(0.5, 0.5))
    env.reset(seed=0)
    env.step(number(env, *[(4, 1)] * 2, (8, 1)))
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
    np.testing.assert_array_equal(ours.request["arrival_s"], theirs.request["arrival_s"])
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


def graft(env: Any, other: Any, seed: int, epochs: int) -> None:
    """Begin the same world in both, which in `other` goes on as another one from the end of an epoch on.

    All that `other` derives at reset it derives from that other world: how many requests will come, their rates, their kinds.
    """
    env.reset(seed=seed), other.reset(seed=seed + 1000)
    ours, theirs = env.lanes.state, other.lanes.state
    until_s = epochs * env.simulation.scenario.epoch_s
    mine = ours.request[0, : ours.lane[0]["requests"]]
    past = mine[mine["arrival_s"] < until_s]
    new = theirs.request[0, : theirs.lane[0]["requests"]]
    joined = np.concatenate([past, new[new["arrival_s"] >= until_s]])[: theirs.request.shape[1]]
    theirs.request[0, : len(joined)] = joined
    theirs.lane["requests"] = len(joined)
    theirs.demand[0, :epochs] = ours.demand[0, :epochs]
    theirs.clock[:] = ours.clock  # the hour is known


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
    """I11: with all that comes after the fourth epoch drawn anew (how much, when, of which kinds), nothing differs until then:
    neither observation nor mask nor the end of the episode.
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
        asked, state, simulation = env.simulation.requests, env.lanes.state, env.simulation
        before = observe(env)
        changed = 0
        for slot in state.slot[0][state.slot[0]["shape"] >= 0]:
            r = int(slot["head"])
            for _ in range(slot["waiting"]):
                kind = int(state.request["kind"][0, r])
                twins = [
                    c
                    for c in range(len(asked.kinds))
                    if c != kind
                    and asked.guess[c] == asked.guess[kind]
                    and np.isfinite(simulation.params.work_s[slot["shape"], c])
                ]
                if twins:
                    state.request["kind"][0, r] = twins[0]
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
    env.simulation.kernels.observe_lane(env.lanes.state, env.simulation.params, 0, out)
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
            c = int(state.request["kind"][0, r])
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
            c = int(state.request["kind"][0, r])
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
    scenario = resolve_scenario("small", {"types_known": False, "mix": (0.4, 0.1, 0.1, 0.4)})
    asked = requests_of(scenario)
    assert asked.guess.tolist() == [0, 0, 3, 3]
    np.testing.assert_allclose(asked.split[0], [0.8, 0.2, 0.0, 0.0])
    env = make(**QUICK, types_known=False)
    _, metrics = play(env, lambda step, mask: 0)
    assert metrics["completed"] > 0


# ------------------------------------------------------------------------------------------------------ a toy optimum


def test_the_optimum_of_a_toy() -> None:
    """I12: short answers, then long ones; over all sequences of two deployments the best changes once, when the mix does."""
    env = make(
        scenario="small",
        action="plan",
        types=((496, 18), (2455, 510)),
        mix=(0.5, 0.5),
        drift="wave",
        amplitude=20.0,
        period_epochs=6.0,
        load=(0.95, 0.95),
        epochs=3,
        epoch_s=60.0,
        switching="free",
        history=1,
    )
    short, long = (env.simulation.number_of(shapes) for shapes in (((2, 4), (2, 4)), ((8, 1), (8, 1))))
    seed = next(s for s in range(50) if _turns(env, s))
    found = {
        plan: play(env, lambda step, mask, plan=plan: plan[step], seed=seed)[0]
        for plan in itertools.product((short, long), repeat=3)
    }
    mixes_ = env.lanes.state.demand[0] / env.lanes.state.demand[0].sum(axis=1, keepdims=True)
    wanted = tuple(short if mix[0] > 0.5 else long for mix in mixes_)
    assert len(set(wanted)) == 2
    assert max(found, key=found.get) == wanted


def _turns(env: Any, seed: int) -> bool:
    """Whether the mix of this world begins with nothing but one type and ends with nothing but the other."""
    env.reset(seed=seed)
    demand = env.lanes.state.demand[0]
    share = demand[:, 0] / demand.sum(axis=1)
    return bool(share[0] > 0.99 and share[2] < 0.01 and (share[1] > 0.99 or share[1] < 0.01))


# -------------------------------------------------------------------------------------------------------- wrong input


@pytest.mark.parametrize(
    ("kwargs", "named"),
    [
        ({"gpus": 1}, "gpus=1"),  # 132 GB of weights fit nowhere
        ({"model": "opt-66b", "gpus": 2, "types": ((4000, 4000),)}, "fit into no replica"),
        ({"initial": ()}, "initial"),
        ({"initial": ((8, 1), (8, 1), (4, 1))}, "gpus=16"),
        ({"initial": ((3, 1),)}, "no shape"),
        ({"initial": ((8, 1),)}, "all 16 GPUs"),
        ({"initial": ((2, 1),) * 8}, "every type"),
        ({"gpus": 64}, "gpus=64"),
        ({"nvlink_gb_per_s": 0.0}, "nvlink_gb_per_s"),
        ({"infiniband_gb_per_s": 0}, "infiniband_gb_per_s"),
        ({"disk_gb_per_s": -1.0}, "disk_gb_per_s"),
        ({"mix": (0.5, 0.5, 0.5, -0.5)}, "mix"),
        ({"mix": (0.0, 0.0, 0.0, 0.0)}, "mix"),
        ({"mix": (1.0,)}, "mix"),
        ({"types": ()}, "types"),
        ({"types": ((496,),)}, "prompt and output"),
        ({"types": ((0, 18),)}, "prompt"),
        ({"load": (0.9, 0.5)}, "load"),
        ({"cv": (0.1, 2.0)}, "cv"),
        ({"span_epochs": (0, 3)}, "span_epochs"),
        ({"epoch_s": 3.0}, "epoch_s"),
        ({"ewma": 1.5}, "ewma"),
        ({"model": "gpt-2"}, "model"),
        ({"drift": "sideways"}, "drift"),
        ({"dispatch": "magic"}, "dispatch"),
        ({"switching": "never"}, "switching"),
        ({"action": "press"}, "action"),
        ({"reward": "money"}, "reward"),
        ({"kernels": "h100/kernels"}, "measured for"),
        ({"workloads": ("nowhere",)}, "nowhere"),
        ({"reroute": 1}, "reroute"),
        ({"epochs": 0}, "epochs"),
    ],
)
def test_wrong_arguments_are_named(kwargs: dict[str, Any], named: str) -> None:
    with pytest.raises((InvalidArgument, UnknownName), match=named.replace("(", r"\(")):
        OServe(**{"scenario": "small", **kwargs})


def test_wrong_actions() -> None:
    env = make(**QUICK, action="control")
    env.reset(seed=0)
    low = np.zeros(5)
    for bad in (low - 1.0, np.full(5, np.nan), np.zeros(3)):
        with pytest.raises(llmgym.errors.InvalidAction):
            env.step(bad)
    env.step(low)  # nothing is expected: the routing falls back on rates


def test_spatial_mixes() -> None:
    for cv in (0.0, 0.112, 0.688, math.sqrt(3)):
        mix = np.array(spatial_mix(cv, 2))
        assert mix.sum() == pytest.approx(1.0) and mix.std() / mix.mean() == pytest.approx(cv, abs=1e-9)
        assert mix[2] == pytest.approx(0.25 + 0.4330127 * cv)
    with pytest.raises(InvalidArgument, match="cv"):
        spatial_mix(1.8, 0)
    with pytest.raises(InvalidArgument, match="dominant"):
        spatial_mix(0.5, 4)


def test_scenarios_are_what_they_say() -> None:
    for name, gpus in (("paper", 16), ("real", 16), ("stress", 32)):
        simulation = OServe(scenario=name)
        assert simulation.scenario.gpus == gpus
        assert simulation.menu_loss < 0.03 and len(simulation.menu) <= simulation.scenario.candidates
    real = OServe(scenario="real")
    assert real.requests.types == 4 and len(real.requests.kinds) == 32
    assert set(METRICS) == set(real.metric_names)
    assert OServe(scenario="paper").requests.centroids == CORNERS


@pytest.mark.parametrize("mode", ["rgb_array", "ansi"])
def test_pictures(mode: str) -> None:
    env = make(**QUICK, render_mode=mode)
    env.reset(seed=0)
    first = env.render()
    for action in (0, 2, 0):
        env.step(action)
    later = env.render()
    if mode == "ansi":
        assert "GPU" in later and later != first
    else:
        assert later.shape == (600, 940, 3) and later.dtype == np.uint8 and (later != first).any()
