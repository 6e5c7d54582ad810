"""The compiled engine against the plain-Python one of `reference.py`, batch by batch, on random small worlds."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmgym import profiles, workloads
from llmgym.core.lanes import HOLD, Lanes
from llmgym.envs.kv.queue.env import KVQueue
from llmgym.profiles import cost
from llmgym.serving.capacity import UNLIMITED
from tests.serving.reference import Batch, Request, World

RULES = ("wc-fcfs", "wc-skip", "vllm", "reserve-peak", "mc-sf", "fcfs-lookahead", "smallest-area")
FIRST_TOKENS = ("next-batch", "with-prefill", "stored")
# Dyadic coefficients: both simulators' clocks are then exact, so that arrivals fall into the same batch in both.
C0, C_KV, C_TOK = 2.0**-5, 2.0**-16, 2.0**-10


@dataclass
class Case:
    capacity: int
    chunk: int
    budget: int
    seats: int
    first_token: str
    overflow: str
    rule: str
    watermark: float
    information: str
    cost: str
    block: int = 1
    ahead: bool = False


def worlds(
    case: Case, rows: workloads.Rows | None, seed: int = 0, load: float = 1.2, requests: int = 0
) -> tuple[Lanes, World]:
    """The two simulators, at the start of the same episode."""
    if rows is None:
        workload = workloads.Workload(
            "drawn",
            workloads.poisson(1.0),
            (workloads.RequestClass(workloads.uniform(1, 12), workloads.uniform(1, 12)),),
        )
    else:
        workload = workloads.Workload(
            "rows", workloads.replay(rows, from_start=True), (workloads.RequestClass(rows=rows),)
        )
        requests = len(rows)
    profile = {
        "constant": lambda: profiles.constant(C0),
        "linear": lambda: profiles.linear(C0, C_KV, C_TOK),
        "tables": lambda: profiles.load("h100/llama-3.1-8b"),
    }[case.cost]()
    name = f"vllm:watermark={case.watermark}" if case.rule == "vllm" else case.rule
    simulation = KVQueue(
        workload=workload,
        profile=profile,
        action="rule",
        rules=(name,),
        kv_capacity=case.capacity,
        chunk=case.chunk,
        budget=case.budget,
        seats=case.seats,
        block=case.block,
        scheduling="async" if case.ahead else "sync",
        first_token=case.first_token,
        overflow=case.overflow,
        information=case.information,
        requests=requests,
        load=load,
        rate_rps=workload.mean_rate_rps if rows is not None and np.isfinite(workload.mean_rate_rps) else None,
        horizon_s=1e6,
        waiting_cap=10**6,
    )
    lanes = Lanes(simulation, 1)
    lanes.reset(None, [seed])
    lanes.load_action(0)
    drawn = lanes.state.request[0, : int(lanes.state.lane[0]["requests"])]
    default = int(simulation.params.config[0]["default_output"])
    list_of = [
        Request(i, float(r["arrival_s"]), int(r["prompt"]), int(r["output"]), int(r["predicted"]) or default)
        for i, r in enumerate(drawn)
    ]

    step = profile.step_cost()

    def batch_s(batch: Batch) -> float:
        if case.cost == "constant":
            return C0
        tokens = sum(tokens for tokens, _ in batch.chunks)
        if case.cost == "linear":
            return C0 + C_KV * batch.used + C_TOK * tokens
        attention_s = 0.0
        for chunk, context in batch.chunks:
            attention_s += cost.prefill_attention_s(step, chunk, context)
        sequences = len(batch.chunks) + batch.decodes
        return cost.step_time_s(step, tokens, attention_s, batch.decodes, batch.read, sequences, batch.used)

    world = World(
        list_of,
        case.capacity,
        case.chunk,
        case.budget,
        case.seats,
        case.first_token,
        case.overflow,
        case.rule,
        case.watermark,
        batch_s,
        case.block,
        case.ahead,
    )
    return lanes, world


def snapshot(lanes: Lanes) -> dict[str, Any]:
    episode, state = lanes.state.lane[0], lanes.state
    residents = []
    early = lanes.simulation.scenario.first_token
    for r in state.resident[0, : episode["residents"]]:
        decoding = bool(r["decoding"])
        produced = int(episode["tick"] - r["base"]) if decoding else int(r["kept"])
        lag = 1 if early == "with-prefill" else 0
        cached = int(r["prompt"] - r["kept"]) + produced - lag if decoding else int(r["prefilled"])
        residents.append((int(r["request"]), produced, cached, bool(r["paused"])))
    line = state.queue[0, 0]
    return {
        "clock_s": float(episode["clock_s"]),
        "residents": residents,
        "waiting": line[2 + line[0] : 2 + line[1]].tolist(),
        "preemptions": int(episode["preemptions"]),
        "batch": (int(episode["batch_used"]), int(episode["batch_prefill"]), int(episode["batch_decodes"])),
        "used": int(episode["used"]),
    }


def expected(world: World) -> dict[str, Any]:
    return {
        "clock_s": world.clock_s,
        "residents": [(r.number, r.produced, r.cached, r.paused) for r in world.started],
        "waiting": [r.number for r in world.waiting],
        "preemptions": world.preemptions,
        "batch": world.last,
        "used": sum(-(-r.cached // world.block) * world.block for r in world.started if not r.paused),
    }


def compare(lanes: Lanes, world: World, most: int = 100_000) -> tuple[int, int]:
    """Run both to the end; every batch must agree. Returns batches, and how often a request was paused or preempted."""
    overflows = 0
    for batch in range(most):
        assert snapshot(lanes) == expected(world), f"after {batch} batches"
        if all(r.completed_s is not None for r in world.requests):
            assert lanes.buffers.terminated[0]
            break
        lanes.step(HOLD)
        world.step()
        overflows += sum(r.paused for r in world.started)
    else:
        raise AssertionError("the reference did not finish")
    requests = lanes.state.request[0]
    for r in world.requests:
        assert requests["ttft_s"][r.number] == np.float32(r.first_token_s - r.arrival_s), (
            f"first token of {r.number}"
        )
        assert requests["e2e_s"][r.number] == np.float32(r.completed_s - r.arrival_s), (
            f"completion of {r.number}"
        )
    return batch, overflows + world.preemptions


@st.composite
def cases(draw: Any) -> Case:
    overflow = draw(st.sampled_from(("pause", "recompute")))
    block = draw(st.sampled_from((1, 2, 4))) if overflow == "recompute" else 1
    return Case(
        capacity=draw(st.integers(12 // block, 60 // block)) * block,
        chunk=draw(st.integers(1, 9)),
        budget=draw(st.one_of(st.just(UNLIMITED), st.integers(1, 12))),
        seats=draw(st.sampled_from((1, 2, 3, 5, 40))),
        first_token=draw(st.sampled_from(FIRST_TOKENS)),
        overflow=overflow,
        rule=draw(st.sampled_from(RULES)),
        watermark=draw(st.sampled_from((0.0, 0.0625, 0.125, 0.25))),
        information=draw(st.sampled_from(("exact", "exact", "noisy", "none"))),
        cost=draw(st.sampled_from(("constant", "linear", "tables"))),
        block=block,
        ahead=draw(st.booleans()),
    )


@st.composite
def rows(draw: Any, capacity: int) -> workloads.Rows:
    n = draw(st.integers(1, 14))
    gaps = draw(st.lists(st.integers(0, 6), min_size=n, max_size=n))
    prompt = draw(st.lists(st.integers(1, 8), min_size=n, max_size=n))
    output = [draw(st.integers(1, min(10, capacity - s))) for s in prompt]
    # in 64ths of a second: half a batch, and exact
    return workloads.Rows(np.cumsum([0, *gaps[1:]]) / 64.0, np.array(prompt), np.array(output))


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_every_batch_agrees_with_the_slow_engine_on_small_worlds(data: Any) -> None:
    case = data.draw(cases())
    compare(*worlds(case, data.draw(rows(case.capacity))))


@pytest.mark.parametrize("first_token", FIRST_TOKENS)
@pytest.mark.parametrize("overflow", ["pause", "recompute"])
@pytest.mark.parametrize("budget", [UNLIMITED, 10])
@pytest.mark.parametrize("rule", RULES)
def test_every_batch_agrees_on_a_longer_overloaded_world(
    rule: str, budget: int, overflow: str, first_token: str
) -> None:
    case = Case(64, 4, budget, 16, first_token, overflow, rule, 0.0625, "exact", "linear")  # w M is whole
    lanes, world = worlds(
        case, None, seed=hash_of(rule, budget, overflow, first_token), load=1.3, requests=80
    )
    batches, overflows = compare(lanes, world)
    assert batches > 80
    if rule == "wc-fcfs" and budget == UNLIMITED:
        assert overflows > 0  # the world is one in which the cache overflows


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("rule", ["vllm", "mc-sf", "reserve-peak"])
def test_every_batch_agrees_with_blocks_and_measured_costs(rule: str, ahead: bool) -> None:
    case = Case(128, 8, 24, 16, "with-prefill", "recompute", rule, 0.0, "exact", "tables", 16, ahead)
    lanes, world = worlds(case, None, seed=7, load=1.3, requests=120)
    batches, overflows = compare(lanes, world)
    assert batches > 100 and (overflows > 0) == (rule == "vllm")


def hash_of(*parts: object) -> int:
    return sum(ord(c) for c in "".join(map(str, parts)))


@pytest.mark.parametrize("overflow", ["pause", "recompute"])
@pytest.mark.parametrize("rule", ["mc-sf", "fcfs-lookahead", "smallest-area", "reserve-peak"])
def test_wrong_predictions_overflow_alike(rule: str, overflow: str) -> None:
    """Under-predicted outputs break the look-ahead's promise; both engines must then overflow in the same batch."""
    total = 0
    for seed in range(4):
        case = Case(60, 4, UNLIMITED, 16, "next-batch", overflow, rule, 0.0, "noisy", "constant")
        total += compare(*worlds(case, None, seed=seed, load=1.3, requests=80))[1]
    assert total > 0
