"""MemPipe: a plain simulation beside it, resources in order, a toy with a known optimum, waiting, pictures, and wrong input."""

import copy
import itertools
from typing import Any

import gymnasium
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import llmgym  # noqa: F401
from llmgym.envs.memory.devices import DOWN, UP, copy_s
from llmgym.envs.memory.pipe.env import MemPipe, MemPipeEnv
from llmgym.envs.memory.pipe.scenarios import SCENARIOS
from llmgym.envs.memory.pipe.state import ALL_PLACED
from llmgym.envs.memory.placement import FUSED, costs, place
from llmgym.envs.memory.published import NAMES
from llmgym.errors import InvalidAction, InvalidArgument, UnknownName

ID = "llmgym/MemPipe-v0"
ALONE: dict[str, Any] = {"mix": (("paged", 1.0),), "sizes": (5, 5), "batches": (1,)}
"""Nothing but the published placement instance: 376.3 us on the GPU alone."""


def edges(cell: Any, placed: list[int], stage: int, device: int) -> tuple[float, float]:
    """Bytes down and up before a stage of a workload without empty stages, written out anew."""
    before = placed[stage - 1] if stage else 0
    flow = {0: 0.0, 1: cell["memory_down" if device else "memory_up"], 2: cell["score"], 3: cell["index"]}[
        stage
    ]
    moved = [flow] if before != device else []
    if stage == 0 and device and cell["on_gpu"]:
        moved = [cell["raw_build"]]
    if stage == 1 and device:
        moved.append(cell["query"])
    if stage == 3 and device != (0 if cell["on_gpu"] else placed[0]):
        moved.append(cell["raw_apply"])
    return (moved, []) if device else ([], moved)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("reward", ["latency", "slowdown"])
def test_a_plain_simulation_agrees(fused: bool, reward: str) -> None:
    """Random choices: a simulation of lists gives the same ends of stages, rewards, energy and latencies."""
    env = MemPipeEnv(
        mix=(("lserve", 1.0), ("dsa", 1.0), ("paged", 1.0)),
        requests=25,
        fused=fused,
        reward=reward,
        load=1.5,
        energy_weight=0.3,
        setup_s=2e-6,
    )
    simulation = env.simulation
    links = simulation.params.links
    rng = np.random.default_rng(0)
    for seed in range(3):
        env.reset(seed=seed)
        world = env.lanes.state.request[0].copy()
        cells = [simulation.params.cells[i] for i in world["cell"]]
        ready, stage = world["arrival_s"].tolist(), [0] * 25
        placed: list[list[int]] = [[] for _ in range(25)]
        free = dict.fromkeys(("gpu", "fpga", "down", "up"), 0.0)
        clock, joules, total, ended = 0.0, 0.0, 0.0, False
        while not ended:
            n = min((i for i in range(25) if stage[i] < 4), key=lambda i: (ready[i], i))
            assert n == env.lanes.state.lane[0]["current"]
            assert ready[n] == pytest.approx(clock, rel=1e-12, abs=1e-15)
            device = int(rng.integers(2))
            both = fused and device == 1 and stage[n] == 1
            down, up = edges(cells[n], placed[n], stage[n], device)
            begin = clock
            for name, moved, link in (("down", down, links[DOWN]), ("up", up, links[UP])):
                length = sum(copy_s(link, float(x), 1.0) for x in moved)
                if length:
                    begin = free[name] = max(begin, free[name]) + length
            where = "fpga" if device else "gpu"
            length = cells[n]["fused_s"] if both else cells[n]["time_s"][device, stage[n]]
            free[where] = ready[n] = max(begin, free[where]) + length
            joules += length * (40.0 if device else 100.0)
            placed[n] += [device] * (1 + both)
            stage[n] += 1 + both
            _, got, ended, _, info = env.step(device)
            total += got
            waiting = [ready[i] for i in range(25) if stage[i] < 4]
            clock = min(waiting) if waiting else max(ready)
        latency = np.array(ready) - world["arrival_s"]
        own = np.array([cell["gpu_s"] for cell in cells]) if reward == "slowdown" else simulation.mean_s
        metrics = info["metrics"]
        assert metrics["latency_mean_s"] == pytest.approx(latency.mean(), rel=1e-9)
        assert metrics["e2e_p99_s"] == pytest.approx(np.quantile(latency, 0.99), rel=1e-5)
        assert metrics["energy_j"] == pytest.approx(joules, rel=1e-9)
        expected = -(latency / own).mean() - 0.3 * joules / (25 * 100.0 * simulation.mean_s)
        assert total == pytest.approx(expected, rel=1e-9)
        assert info["metrics"]["duration_s"] == pytest.approx(max(ready))


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 2**40), choices=st.integers(0, 2**40))
def test_nothing_runs_twice_at_once_and_stages_are_in_order(seed: int, choices: int) -> None:
    env = MemPipeEnv(scenario="stress", requests=30)
    _, info = env.reset(seed=seed)
    rng, ended = np.random.default_rng(choices), False
    while not ended:
        action = int(rng.choice(np.flatnonzero(info["action_mask"])))
        *_, ended, _, info = env.step(action)
    state, cells = env.lanes.state, env.simulation.params.cells
    busy: list[list[tuple[float, float]]] = [[], [], [], []]
    for n, request in enumerate(state.request[0]):
        assert request["stage"] == ALL_PLACED
        last = float(request["arrival_s"])
        for stage in range(4):
            copy_from, copy_to, begin, end = state.span[0, n, stage]
            if (int(cells[request["cell"]]["empty"]) >> stage) & 1:
                assert end == -1.0
                continue
            device = (int(request["placed"]) >> stage) & 1
            assert last - 1e-9 <= copy_from <= copy_to <= begin + 1e-9 and begin <= end
            busy[device].append((begin, end))
            if copy_to > copy_from:
                busy[3 - device].append((copy_from, copy_to))
            last = end
        assert last == request["ready_s"]
    for row in busy:
        row.sort()
        assert all(b[0] >= a[1] - 1e-9 for a, b in itertools.pairwise(row))
    spent = [sum(b - a for a, b in row) for row in busy]
    assert spent == pytest.approx(state.resource["busy_s"][0].tolist(), rel=1e-6, abs=1e-9)


def test_a_request_alone_takes_what_the_placement_costs() -> None:
    """With nothing to wait for: every placement of the published instance has its published total."""
    rows = None
    for fused, placement in [(False, p) for p in range(16)] + [(True, FUSED)]:
        env = MemPipeEnv(scenario="paper", **ALONE, requests=1, fused=fused)
        env.reset(seed=0)
        cell = env.simulation.params.cells[0]
        rows = costs(cell, env.simulation.params.links)
        bits = 0b0110 if placement == FUSED else placement
        ended, stage, total = False, 0, 0.0
        while not ended:
            stage = int(env.lanes.state.request[0, 0]["stage"])
            *_, ended, _, info = env.step((bits >> stage) & 1)
            total += info["dt"]
        assert total == pytest.approx(rows[placement, 0], rel=1e-9)
        assert info["metrics"]["latency_relative"] == pytest.approx(rows[placement, 0] / 376.3e-6, rel=1e-9)
    assert rows is not None and np.nanmin(rows[:, 0]) == pytest.approx(269.2e-6, rel=1e-4)


def play(actions: tuple[int, ...], **kwargs: Any) -> float | None:
    """Return of a sequence of actions; None if it is not as long as the episode."""
    env = MemPipeEnv(scenario="paper", **kwargs)
    env.reset(seed=4)
    total = 0.0
    for i, action in enumerate(actions):
        if not env.action_masks()[action]:
            return None
        _, reward, ended, _, _ = env.step(action)
        total += reward
        if ended:
            return total if i == len(actions) - 1 else None
    return None


def test_the_optimum_of_two_requests_that_meet() -> None:
    """I12. Two of MemAgent at once: both decode on the FPGA, one after the other, and the second's cache is copied meanwhile.

    One on each is worse, though both decode at once: the GPU decodes for 177 s and holds up the other's prefill. All 16
    sequences of actions are tried.
    """
    kwargs: dict[str, Any] = {
        "mix": (("memagent", 1.0),),
        "sizes": (8, 8),
        "batches": (1,),
        "requests": 2,
        "load": 1e6,
    }
    scores: dict[tuple[int, ...], float] = {}
    for actions in itertools.product((0, 1), repeat=4):
        score = play(actions, **kwargs)
        assert score is not None
        scores[actions] = score
    best = max(scores, key=scores.__getitem__)
    env = MemPipeEnv(scenario="paper", **kwargs)
    cell, links = env.simulation.params.cells[0], env.simulation.params.links
    decode, prefill = float(cell["time_s"][0, 0]), float(cell["time_s"][0, 3])
    slow = float(cell["time_s"][1, 0])
    copying = place(cell, links, 1.0, 1, np.ones((2, 4)))[1]
    unit = env.simulation.mean_s
    assert best == (1, 1, 0, 0)
    assert scores[best] == pytest.approx(-(copying + 1.5 * slow + prefill) / unit, rel=1e-4)
    assert scores[(1, 0, 0, 0)] == pytest.approx(-(decode + 1.5 * prefill) / unit, rel=1e-4)
    # on the GPU alone the first one's prefill waits for the second's decoding
    assert scores[(0, 0, 0, 0)] == pytest.approx(-(2 * decode + 1.5 * prefill) / unit, rel=1e-4)


def test_waiting() -> None:
    """Waiting goes on to the next thing that ends or arrives, and is masked when there is nothing to wait for."""
    env = MemPipeEnv(scenario="paper", **ALONE, requests=2, wait=True, load=0.01)
    _, info = env.reset(seed=0)
    second = float(env.lanes.state.request[0, 1]["arrival_s"])
    assert info["action_mask"].tolist() == [1, 1, 1]
    *_, info = env.step(2)
    assert info["dt"] == second and env.lanes.state.lane[0]["clock_s"] == second
    assert env.lanes.state.lane[0]["current"] == 0
    assert info["action_mask"].tolist() == [1, 1, 0]
    with pytest.raises(InvalidAction, match="masked"):
        strict = MemPipeEnv(scenario="paper", **ALONE, requests=1, wait=True, invalid_action="raise")
        strict.reset(seed=0)
        strict.step(2)
    loose = MemPipeEnv(scenario="paper", **ALONE, requests=1, wait=True, invalid_cost=0.5)
    loose.reset(seed=0)
    assert loose.step(2)[1] == pytest.approx(-0.5 - 250 / 376.3)
    assert loose.metrics()["invalid_actions"] == 1.0


def test_the_fpga_takes_no_index_that_does_not_fit() -> None:
    env = MemPipeEnv(mix=(("seer-topk", 1.0),), sizes=(9, 9), requests=10)
    _, info = env.reset(seed=0)
    ended, masked = False, 0
    while not ended:
        stage = int(env.lanes.state.request[0, env.lanes.state.lane[0]["current"]]["stage"])
        assert info["action_mask"].tolist() == [1, int(stage in (0, 3))]
        masked += stage in (1, 2)
        *_, ended, _, info = env.step(0)
    assert masked == 20 and info["metrics"]["offloaded_share"] == 0.0


def test_the_finish_that_is_shown_is_the_finish() -> None:
    """Of every stage that does not run fused, on the device that is chosen."""
    env = MemPipeEnv(scenario="paper", fused=False, requests=40)
    obs, _ = env.reset(seed=2)
    rng, ended = np.random.default_rng(0), False
    while not ended:
        n, clock = int(env.lanes.state.lane[0]["current"]), float(env.lanes.state.lane[0]["clock_s"])
        device = int(rng.integers(2))
        shown = float(obs[env.layout["finish"]][device])
        obs, _, ended, _, _ = env.step(device)
        left = (float(env.lanes.state.request[0, n]["ready_s"]) - clock) / env.simulation.mean_s
        assert shown == pytest.approx(left / (1 + left), rel=1e-5)


def test_load_and_mix() -> None:
    """Weights are shares of the load, arrivals as often as the load says."""
    simulation = MemPipe(scenario="paper", requests=4000, load=0.7)
    shares = np.diff(simulation.params.running, prepend=0.0) * simulation.params.cells["gpu_s"]
    for name in ("dsa", "lserve", "memory-as-context"):
        mine = simulation.params.cells["workload"] == NAMES.index(name)
        assert shares[mine].sum() / shares.sum() == pytest.approx(0.2)
    env = MemPipeEnv(scenario="paper", requests=4000, load=0.7)
    env.reset(seed=0)
    world = env.lanes.state.request[0]
    own_s = simulation.params.cells["gpu_s"][world["cell"]]
    assert own_s.mean() == pytest.approx(simulation.mean_s, abs=3.0 * own_s.std() / np.sqrt(4000))
    assert 4000 / world["arrival_s"][-1] == pytest.approx(0.7 / simulation.mean_s, rel=0.05)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_pictures_and_texts(scenario: str) -> None:
    env = MemPipeEnv(scenario=scenario, requests=30, render_mode="rgb_array")
    env.reset(seed=1)
    for n in range(40):
        env.step(n % 2 if env.action_masks()[1] else 0)
    frame = env.render()
    assert frame.shape == (520, 860, 3) and frame.dtype == np.uint8 and frame.std() > 10
    words = env.simulation.render(env.lanes.state, 0, "ansi")
    assert "to place: " in words and "GPU to FPGA" in words


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"hardware": "tpu"}, "hardware.*tpu"),
        ({"mix": (("bert", 1.0),)}, "bert"),
        ({"hardware": "h100+u55c", "mix": (("flare", 1.0),)}, "flare"),
        ({"mix": (("dsa", 0.0),)}, "weight of dsa=0.0"),
        ({"sizes": (-1, 3)}, "sizes=-1"),
        ({"batches": (64,)}, "batches"),
        ({"load": 0.0}, "load=0.0"),
        ({"load": -1.0}, "load=-1.0"),
        ({"link": 0.0}, "link=0.0"),
        ({"setup_s": -1.0}, "setup_s"),
        ({"gpu_w": 0.0}, "gpu_w=0.0"),
        ({"fpga_w": -40.0}, "fpga_w"),
        ({"energy_weight": -0.1}, "energy_weight=-0.1"),
        ({"requests": 0}, "requests=0"),
        ({"requests": 2.5}, "requests=2.5"),
        ({"fused": 1}, "fused=1"),
        ({"wait": "yes"}, "wait='yes'"),
        ({"reward": "speed"}, "reward.*speed"),
        ({"invalid_cost": float("inf")}, "invalid_cost=inf"),
        ({"queue": 3}, "queue"),
    ],
)
def test_wrong_input_is_named(arguments: dict[str, Any], match: str) -> None:
    with pytest.raises((InvalidArgument, UnknownName), match=match):
        MemPipe(**arguments)


@pytest.mark.parametrize("action", [2, -1, 0.5, np.nan, None, "gpu"])
def test_actions_that_are_none(action: Any) -> None:
    env = gymnasium.make(ID, requests=3).unwrapped
    env.reset(seed=0)
    with pytest.raises(InvalidAction):
        env.step(action)


def test_another_future_is_another_moment_for_who_waits_for_an_arrival() -> None:
    """Drawn anew while a request waits: it decides at the next arrival of the other world, or when a job ends before."""
    env = MemPipeEnv(scenario="stress", requests=24)
    met = 0
    for seed in range(4):
        rng = np.random.default_rng(seed)
        _, info = env.reset(seed=seed)
        done = False
        while not done:
            requests, clock = env.lanes.state.request[0].copy(), env.lanes.state.lane["clock_s"][0]
            ahead = requests["arrival_s"] > clock
            waits = ~ahead & (requests["stage"] < ALL_PLACED)
            waits &= np.isin(requests["ready_s"], requests["arrival_s"][ahead])
            if waits.any():
                met += 1
                other = copy.deepcopy(env)
                other.simulation.redraw(other.lanes.state, 0, met)
                drawn = other.lanes.state.request[0]
                assert (drawn["arrival_s"][ahead] > clock).all()
                assert (drawn["arrival_s"][ahead] != requests["arrival_s"][ahead]).all()
                same = drawn[~ahead & ~waits] == requests[~ahead & ~waits]
                assert same.all()
                resources = env.lanes.state.resource[0]["until_s"]
                ends = [*resources, *requests["ready_s"][~ahead & ~waits]]
                soonest = min([end for end in ends if end > clock] + [drawn["arrival_s"][ahead].min()])
                assert (drawn["ready_s"][waits] == soonest).all()
            action = int((rng.random(3) * info["action_mask"]).argmax())
            _, _, terminated, truncated, info = env.step(action)
            done = terminated or truncated
    assert met > 5
