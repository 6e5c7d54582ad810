"""The loop of a replay: engines that step together, from the first request to the last; see `llmgym.serving.replay`."""

import math
import time
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmgym.core.jit import kernel
from llmgym.core.records import Record, Records, Records2, float64, int32, int64
from llmgym.profiles.cost import StepCost, cooler_s
from llmgym.serving import conversations
from llmgym.serving.admission import admit_by_rule, compose
from llmgym.serving.batch_time import batch_time_s, launching_s
from llmgym.serving.engine import (
    empty,
    end_batch,
    held_up_s,
    plan,
    release,
    start,
)
from llmgym.serving.residents import wait
from llmgym.serving.state import CompiledRule, Engine, Limits, Objective, Order, Prefixes, Request, Resident


class Rank(Engine):
    """An engine and its requests."""

    next: int = int32("Number of its next arrival.")
    sent: int = int32("Requests whose arrival is known.")
    requests: int = int32("Requests in all.")
    warmth: float = float64("How far its device's clock is on the way from idle to steady load, 0 to 1.")


class Config(Limits):
    """What is set for all ranks."""

    ahead: int = int32("1 if a batch is planned while the one before it runs.")
    clients: int = int32("Requests kept in flight on each rank; 0 if they arrive by themselves.")
    idle_s: float = float64("Time after which an engine that is held up plans again, seconds.")
    way_s: float = float64("A client has its tokens so much later, seconds.")


class Loop(Record):
    """Where the loop over the steps stands, so that it can be left and entered again."""

    clock_s: float = float64("Simulated time, seconds.")
    seen_s: float = float64("The schedulers know who arrived by this time, seconds.")
    left: int = int64("Requests that have not finished.")
    launched_s: float = float64("The host has launched the planned step by this time, seconds.")
    step_s: float = float64("Duration of the planned step, seconds; -1 if nobody has anything to run.")
    fruitless: int = int64("Steps since the last one that finished a request.")
    patience: int = int64("So many fruitless steps are too many.")
    still: int = int64("Steps in turn in which nothing ran, nobody was admitted and nobody was thrown out.")


GOES_ON, OVER, STUCK, FRUITLESS = 0, 1, 2, 3
PIECE_S = 0.1
"""A compiled call takes about so long: Python sees to signals (Ctrl-C) in between."""
PATIENCE = 1_000
"""A rule may throw work away as often as it takes to serve the longest request so many times, without finishing anybody."""


class State(NamedTuple):
    """Arrays of a replay, an `EngineState`; the first axis is the rank."""

    lane: Records[Rank]
    resident: Records2[Resident]
    request: Records2[Request]
    queue: NDArray[np.int32]
    prefix: Prefixes
    scratch: NDArray[np.int32]


class Params(NamedTuple):
    """What the ranks share, an `EngineParams`."""

    config: Records[Config]
    rules: Records[CompiledRule]
    class_budgets: NDArray[np.int32]
    orders: Records[Order]
    objectives: Records[Objective]
    cost: StepCost


@kernel
def _arrive(state: State, params: Params, rank: int, seen_s: float) -> None:
    """Queue what has arrived by then."""
    engine = state.lane[rank]
    if params.config[0].conversations == 1:
        while conversations.following_s(state, params, rank) <= seen_s:
            wait(state, params, rank, conversations.take(state, params, rank))
    while engine.next < engine.sent and state.request[rank, engine.next].arrival_s <= seen_s:
        wait(state, params, rank, engine.next)
        engine.next += 1


@kernel
def _following_s(state: State, params: Params, rank: int) -> float:
    """Time of the next arrival, s; infinite if nobody comes."""
    engine = state.lane[rank]
    if params.config[0].conversations == 1:
        return conversations.following_s(state, params, rank)
    return state.request[rank, engine.next].arrival_s if engine.next < engine.sent else np.inf


@kernel
def _send(state: State, rank: int, done_before: int, way_s: float) -> None:
    """A closed loop sends a request for each that has ended since, once its client knows."""
    engine = state.lane[rank]
    for _ in range(engine.done - done_before):
        if engine.sent < engine.requests:
            state.request[rank, engine.sent].arrival_s = engine.clock_s + way_s
            engine.sent += 1


@kernel
def begin(state: State, params: Params, loop: Records[Loop]) -> None:
    """Let every engine begin, empty, at time 0."""
    config = params.config[0]
    for rank in range(state.lane.shape[0]):
        engine = state.lane[rank]
        start(state, params, rank, np.uint64(rank))
        if config.conversations == 1:
            conversations.begin(state, params, rank, engine.requests)
        else:
            engine.sent = min(config.clients, engine.requests) if config.clients > 0 else engine.requests
        loop[0].left += engine.requests


@kernel
def _plan_rank(state: State, params: Params, rank: int, clock_s: float, seen_s: float) -> bool:
    """Put the next batch of a rank together; returns whether anybody was admitted or thrown out."""
    engine = state.lane[rank]
    rule = params.rules[0]
    engine.clock_s = clock_s
    before = engine.preemptions + engine.draws
    admitted = 0
    _arrive(state, params, rank, seen_s)
    plan(state, params, rank)
    if engine.waiting > 0 and engine.blocked == 0:
        admitted = admit_by_rule(state, params, rank, 0, rule.watermark)
    if rule.batch != 0:
        compose(state, params, rank, rule.batch)
    engine.batch_s = batch_time_s(state, params, rank)
    return admitted > 0 or engine.preemptions + engine.draws != before


@kernel
def _warm(state: State, params: Params, loop: Loop, rank: int) -> None:
    """Let the clock of a rank follow what its device did since, through the step that has ended."""
    engine = state.lane[rank]
    head = params.cost.head[0]
    tokens = engine.batch_prefill + engine.batch_decodes if engine.batch_s >= 0.0 else 0
    load = 1.0 if tokens > head.heating_above else 0.0
    engine.warmth = load + (engine.warmth - load) * math.exp(-loop.step_s / head.settle_s)


@kernel
def _launch(state: State, params: Params, loop: Loop, rank: int) -> None:
    """Let the planned step of a rank take as long as the host's launches, which began when it was planned."""
    engine = state.lane[rank]
    launch_s = launching_s(state, params, rank)
    if launch_s > 0.0:
        launched_s = loop.seen_s + launch_s
        engine.batch_s = max(engine.batch_s, launched_s - loop.clock_s)
        loop.launched_s = max(loop.launched_s, launched_s)


@kernel
def _show(state: State, rank: int, later_s: float) -> None:
    """The tokens of the step before are known later: the host was launching. Those count that are the first or the last."""
    engine = state.lane[rank]
    for i in range(engine.residents):
        resident = state.resident[rank, i]
        request = state.request[rank, resident.request]
        if resident.decoding == 1 and resident.kept == 0 and engine.tick - resident.base == 1:
            request.ttft_s += later_s
        if resident.gone == 1:
            request.e2e_s += later_s


@kernel
def _idle(state: State, params: Params, loop: Loop) -> bool:
    """Nobody has a batch to run: time goes on until somebody plans again. False if nothing will ever run again."""
    following_s, again_s, before_s = np.inf, np.inf, loop.clock_s
    for rank in range(state.lane.shape[0]):
        arrival_s = _following_s(state, params, rank)
        following_s = min(following_s, arrival_s)
        if not empty(state, rank):
            again_s = min(again_s, held_up_s(state, params, rank, arrival_s, params.config[0].idle_s))
    if again_s == np.inf or loop.still > 1:
        # Empty engines wait for the next arrival and see it at once. So do those that have planned twice without a change: what
        # was in the way of the first plan (somebody was thrown out, so nobody was let in) is not in that of the second.
        if following_s == np.inf:
            return False
        loop.clock_s = max(loop.clock_s, following_s)
    else:
        loop.clock_s += min(again_s, max(following_s - loop.clock_s, 0.0))
    if params.cost.head[0].settle_s > 0.0:
        for rank in range(state.lane.shape[0]):
            state.lane[rank].warmth *= math.exp((before_s - loop.clock_s) / params.cost.head[0].settle_s)
    loop.seen_s = loop.clock_s
    return True


@kernel
def plan_step(state: State, params: Params, loops: Records[Loop]) -> int:
    """Put the next batches of all ranks together.

    Args:
        state: the arrays of the ranks.
        params: what they share.
        loops: where the loop stands, [1].

    Returns:
        `GOES_ON`; `OVER` when every request is done, or why there is no end.
    """
    loop = loops[0]
    if loop.left == 0:
        return OVER
    if loop.fruitless > loop.patience:
        return FRUITLESS
    loop.step_s, moved = -1.0, False
    loop.launched_s = loop.seen_s
    for rank in range(state.lane.shape[0]):
        moved = _plan_rank(state, params, rank, loop.clock_s, loop.seen_s) or moved
        engine = state.lane[rank]
        if engine.batch_s >= 0.0:
            tokens = engine.batch_prefill + engine.batch_decodes
            engine.batch_s -= (1.0 - engine.warmth) * cooler_s(params.cost, tokens)
            _launch(state, params, loop, rank)
        loop.step_s = max(loop.step_s, engine.batch_s)
    if loop.launched_s > loop.clock_s:
        for rank in range(state.lane.shape[0]):
            _show(state, rank, loop.launched_s - loop.clock_s)
    loop.still = loop.still + 1 if loop.step_s < 0.0 and not moved else 0
    loop.fruitless += 1
    return GOES_ON


@kernel
def end_step(state: State, params: Params, loops: Records[Loop]) -> int:
    """Run the planned batches, at the pace of the slowest; returns `GOES_ON`, or `STUCK` if nothing will ever run again.

    Args:
        state: the arrays of the ranks.
        params: what they share.
        loops: where the loop stands, [1].
    """
    config = params.config[0]
    loop = loops[0]
    step_s = loop.step_s
    for rank in range(state.lane.shape[0]):
        engine = state.lane[rank]
        if step_s >= 0.0 and params.cost.head[0].settle_s > 0.0:
            _warm(state, params, loop, rank)
        if engine.batch_s < 0.0:
            if step_s >= 0.0:
                release(state, params, rank)
            continue
        done = engine.done
        end_batch(state, params, rank, step_s)
        if engine.done > done:
            loop.left -= engine.done - done
            loop.fruitless = 0
            if config.clients > 0:
                _send(state, rank, done, config.way_s)
    if step_s < 0.0:
        return GOES_ON if _idle(state, params, loop) else STUCK
    loop.seen_s = max(loop.clock_s, loop.launched_s) if config.ahead == 1 else loop.clock_s + step_s
    loop.clock_s += step_s
    return GOES_ON


@kernel
def _run(state: State, params: Params, loops: Records[Loop], steps: int) -> int:
    """Step all ranks together, so often; returns `GOES_ON`, `OVER` when every request is done, or why there is no end."""
    for _ in range(steps):
        status = plan_step(state, params, loops)
        if status == GOES_ON:
            status = end_step(state, params, loops)
        if status != GOES_ON:
            return status
    return GOES_ON


def play(state: State, params: Params, loop: Records[Loop]) -> int:
    """Run to the end, in pieces, however long a step takes; returns how it ended."""
    begin(state, params, loop)
    status, steps = GOES_ON, 10
    while status == GOES_ON:
        begun_s = time.perf_counter()
        status = _run(state, params, loop, steps)
        taken_s = max(time.perf_counter() - begun_s, 1e-6)
        steps = max(1, min(2 * steps, int(steps * PIECE_S / taken_s)))
    return status
