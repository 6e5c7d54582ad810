"""OServe: conservation, hand computations of single requests, switching, pictures, and a toy with a known optimum."""

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmgym.envs.oserve.hidden import in_system
from llmgym.testing.drive import audited, legal_action
from tests.envs.oserve.playing import QUICK, four_replicas, make, number_of, play

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
    ages = 12 * 30.0 - state.request["arrival_s"][0, np.concatenate(in_system(state, 0))]
    assert len(ages) == lane["next"] - lane["done"]
    by_hand = state.served[0, 0, : lane["done"]].astype(float).sum() + ages.sum()
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


@pytest.mark.parametrize("load", [0.5, pytest.param(1.2, marks=pytest.mark.slow)])
def test_a_replica_against_small_steps_of_time(load: float) -> None:
    env = one_type(load=(load, load))
    play(env, lambda step, mask: 0, seed=1)
    state, simulation = env.lanes.state, env.simulation
    arrival_s = state.arrival_s[0, : state.lane[0]["requests"]]
    rate, latency_s = simulation.types.rate[0, 0], simulation.types.latency_s[0, 0]
    seats = min(256, int(simulation.table.capacity[0] // (2455 + 510)))
    times = reference(arrival_s, 1.0 / rate, latency_s, seats, 250.0)
    # requests that are all alike complete in the order in which they came
    done = int(state.lane[0]["done"])
    assert done > 100 and abs(done - int((arrival_s + times <= 240.0).sum())) <= 1
    np.testing.assert_allclose(
        np.sort(state.served[0, 0, :done]), np.sort(times[:done]), rtol=4e-3, atol=5e-3
    )


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


def test_replicas_that_stay_serve_on_and_take_over() -> None:
    """(4,1) x 4 -> (4,1) x 3 + (2,2): one replica stops for 6 s and the transfer; the others never do."""
    env = four_replicas()
    env.reset(seed=0)
    stay, other = number_of(env, *[(4, 1)] * 4), number_of(env, *[(4, 1)] * 3, (2, 2))
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
    env = four_replicas(switching="reload", epoch_s=20.0)
    env.reset(seed=0)
    stay, other = number_of(env, *[(4, 1)] * 4), number_of(env, (8, 1), (8, 1))
    env.step(stay)
    _, _, _, _, info = env.step(other)
    ready = env.lanes.state.slot["ready_s"][0].max() - 20.0
    assert ready == pytest.approx(138e9 / 2.8e9, rel=1e-9)
    assert env.metrics()["restarted"] > 0.0 and env.metrics()["kv_moved_bytes"] == 0.0
    assert np.flatnonzero(info["action_mask"]).tolist() == [other]
    assert env.metrics()["throughput_rps"] < 0.8 * env.metrics()["requests"] / 120.0


def test_a_free_switch_takes_no_time() -> None:
    env = four_replicas(switching="free")
    env.reset(seed=0)
    env.step(number_of(env, *[(4, 1)] * 4))
    env.step(number_of(env, (8, 1), (8, 1)))
    assert env.metrics()["stopped_gpu_s"] == 0.0 and env.metrics()["migrated"] > 0.0
    assert env.metrics()["drained"] == 0.0


def test_migrated_requests_go_on_where_they_were() -> None:
    """A free switch to the same kind of replicas on other GPUs changes no completion by more than the sharing does."""
    env = one_type(
        load=(0.05, 0.05), action="plan", switching="free", epochs=20, gpus=8, initial=((4, 1),) * 2
    )
    a, b = number_of(env, (4, 1), (4, 1)), number_of(env, (8, 1))
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
    state, done = env.lanes.state, []
    for _ in range(3):
        env.step(number_of(env, *[(2, 1)] * 4, (8, 1)))
        came = np.bincount(state.arrival_class[0, : state.lane[0]["next"]], minlength=4)
        waiting, running = in_system(state, 0)
        line = state.request["request_class"][0, waiting]
        here = np.concatenate([line, state.request["request_class"][0, running]])
        done.append(came - np.bincount(here, minlength=4))
        if len(done) == 1:
            assert (line == 3).sum() == came[3] > 30  # none has begun
    slots = state.slot[0]
    ready_s = float(slots["ready_s"][slots["shape"] == shapes.index("TP8")][0])
    assert 30.0 < ready_s < 60.0
    assert done[0][3] == 0 < done[2][3] and done[0][0] > 10
    audit = audited(env)
    assert audit["arrived"] == audit["waiting"] + audit["running"] + audit["done"]


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
    returns = {
        plan: play(env, lambda step, mask, plan=plan: plan[step], seed=seed)[0]
        for plan in itertools.product((short, long), repeat=3)
    }
    mixes_ = env.lanes.state.demand[0] / env.lanes.state.demand[0].sum(axis=1, keepdims=True)
    wanted = tuple(short if mix[0] > 0.5 else long for mix in mixes_)
    assert len(set(wanted)) == 2
    assert max(returns, key=returns.get) == wanted


def _turns(env: Any, seed: int) -> bool:
    """Whether the mix of this world begins with nothing but one type and ends with nothing but the other."""
    env.reset(seed=seed)
    demand = env.lanes.state.demand[0]
    share = demand[:, 0] / demand.sum(axis=1)
    return bool(share[0] > 0.99 and share[2] < 0.01 and (share[1] > 0.99 or share[1] < 0.01))


# --------------------------------------------------------------------------------------------------------------- pictures


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


# ---------------------------------------------------------------------------------------------- rows of what is inside


@pytest.mark.parametrize("backlog_s", [1e9, 20.0])
def test_rows_are_used_again_and_never_run_out(backlog_s: float) -> None:
    """At most as many rows are in use as there is room for, in overload too; what completes leaves its row to who comes next."""
    env = make(**QUICK, load=(1.5, 1.6), backlog_s=backlog_s)
    simulation, ended = env.simulation, False
    _, info = env.reset(seed=4)
    rng = np.random.default_rng(0)
    while not ended:
        _, _, terminated, truncated, info = env.step(legal_action(env, info["action_mask"], rng))
        ended = terminated or truncated
        lane, inside = env.lanes.state.lane[0], np.concatenate(in_system(env.lanes.state, 0))
        assert len(np.unique(inside)) == len(inside) == lane["next"] - lane["done"]
        assert inside.max() < lane["rows"] <= simulation.rows <= simulation.room
        free, r = [], int(lane["free"])
        while r >= 0:
            free.append(r)
            r = int(env.lanes.state.request["next"][0, r])
        assert sorted([*inside.tolist(), *free]) == list(range(lane["rows"]))
    assert terminated == (backlog_s == 20.0)
    assert lane["rows"] < lane["next"]
    came = np.bincount((env.lanes.state.arrival_s[0, : lane["requests"]] // 30.0).astype(int))
    assert came.max() <= simulation.most


def test_an_epoch_brings_no_more_than_there_is_room_for() -> None:
    """Where a rate is drawn that is beyond what there is room for, the rest of the epoch brings nobody."""
    env = make(**QUICK)
    env.simulation.params.config.setflags(write=True)
    env.simulation.params.config["most"] = 40
    env.reset(seed=0)
    state = env.lanes.state
    came = np.bincount((state.arrival_s[0, : state.lane[0]["requests"]] // 30.0).astype(int), minlength=12)
    assert came.tolist() == [40] * 12
