"""A measured or planned run of requests, replayed on the engine: when each request has its first and its last token.

Where an environment asks an agent before each batch, a replay follows one admission rule from the first request to the last. It
knows two things more:

- *ranks*: several engines that step together, as data-parallel ranks do that share the experts of a mixture of experts: each has
  a cache, seats and waiting requests of its own, and the slowest sets the pace of every step. Requests go to them in turn.
- *clients*: a closed loop that keeps so many requests in flight on each rank; a request arrives when one ends.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmgym.core.checks import choice, whole
from llmgym.core.jit import kernel
from llmgym.errors import InvalidArgument
from llmgym.profiles.cost import StepCost
from llmgym.profiles.profile import Profile
from llmgym.serving.admission import SCRATCH_ROWS, admit_by_rule, compose
from llmgym.serving.engine import batch_time_s, end_batch, plan, start
from llmgym.serving.requests import FIRST_TOKENS, LIMITS, REQUEST, set_limits
from llmgym.serving.residents import ENGINE, PAUSE, RECOMPUTE, RESIDENT, wait
from llmgym.serving.rules import Rule, pack, resolve
from llmgym.workloads.arrivals import Rows

Floats = NDArray[np.float64]

SCHEDULINGS = ("sync", "async")
RANK = np.dtype([*ENGINE, ("next", "i4"), ("asked", "i4"), ("requests", "i4")], align=True)
"""An engine, the number of its next arrival, how many arrivals are known, and how many there are in all."""
NUMBER = np.dtype([*LIMITS, ("ahead", "i4"), ("clients", "i4")], align=True)


class State(NamedTuple):
    """Arrays of a replay; first axis = rank. See `llmgym.serving.engine`."""

    lane: NDArray[Any]
    resident: NDArray[Any]
    request: NDArray[Any]
    queue: NDArray[np.int32]
    scratch: NDArray[np.int32]


class Params(NamedTuple):
    """What the ranks share."""

    number: NDArray[Any]
    rules: NDArray[Any]
    class_budgets: NDArray[np.int32]
    orders: NDArray[np.int64]
    cost: StepCost


class Replayed(NamedTuple):
    """What became of the requests.

    Attributes:
        arrival_s: float64 [n], s; of a closed loop when each was sent.
        first_s: float64 [n], when the first output token was there, s.
        last_s: float64 [n], when the last one was, s.
        rank: int32 [n], where each ran.
        preemptions: how often a request lost its cache.
        batches: steps with anything to run, of all ranks together.
        batch_mean_s: mean duration of a step, s.
        kv_mean: tokens in the cache over its capacity, mean over the time that steps took and over ranks.
        kv_peak: the most of it that was used on any rank.
    """

    arrival_s: Floats
    first_s: Floats
    last_s: Floats
    rank: NDArray[np.int32]
    preemptions: int
    batches: int
    batch_mean_s: float
    kv_mean: float
    kv_peak: float


def latency_figures(
    arrival_s: Floats, first_s: Floats, last_s: Floats, output_tokens: NDArray[np.integer[Any]]
) -> dict[str, float]:
    """What users of a server see: percentiles of TTFT, TPOT and end-to-end time (s), makespan (s) and output tokens a second.

    TTFT is from arrival to first token, TPOT (last - first) / (output - 1) of requests with two or more output tokens (NaN if there
    are none), makespan from the first arrival to the last token.
    """
    several = output_tokens > 1
    kinds = {
        "ttft": first_s - arrival_s,
        "tpot": (last_s - first_s)[several] / (output_tokens[several] - 1),
        "e2e": last_s - arrival_s,
    }
    found = {
        f"{kind}_p{p}_s": float(np.percentile(values, p)) if len(values) else float("nan")
        for kind, values in kinds.items()
        for p in (50, 90, 99)
    }
    found["makespan_s"] = float(last_s.max() - arrival_s.min())
    found["output_tokens_per_s"] = float(output_tokens.sum()) / found["makespan_s"]
    return found


@kernel
def _arrive(state: State, params: Params, rank: int, seen_s: float) -> None:
    """Queue what has arrived by then."""
    me = state.lane[rank]
    while me.next < me.asked and state.request[rank, me.next].arrival_s <= seen_s:
        wait(state, params, rank, me.next)
        me.next += 1


@kernel
def _send(state: State, rank: int, done_before: int) -> None:
    """A closed loop sends a request for each that has ended since."""
    me = state.lane[rank]
    for _ in range(me.done - done_before):
        if me.asked < me.requests:
            state.request[rank, me.asked].arrival_s = me.clock_s
            me.asked += 1


@kernel
def _run(state: State, params: Params) -> None:
    """Step all ranks together until every request is done."""
    number = params.number[0]
    ranks = state.lane.shape[0]
    left = 0
    for rank in range(ranks):
        me = state.lane[rank]
        start(state, params, rank, np.uint64(rank))
        me.next = 0
        me.asked = min(number.clients, me.requests) if number.clients > 0 else me.requests
        left += me.requests
    clock_s, seen_s = 0.0, 0.0
    while left > 0:
        step_s = -1.0
        for rank in range(ranks):
            me = state.lane[rank]
            me.clock_s = clock_s
            _arrive(state, params, rank, seen_s)
            plan(state, params, rank)
            if me.waiting > 0 and me.blocked == 0:
                admit_by_rule(state, params, rank, 0, params.rules[0].watermark)
            if params.rules[0].batch != 0:
                compose(state, params, rank, params.rules[0].batch)
            me.batch_s = batch_time_s(state, params, rank)
            step_s = max(step_s, me.batch_s)
        if step_s < 0.0:
            # Empty engines wait for the next arrival and see it at once.
            following_s = np.inf
            for rank in range(ranks):
                me = state.lane[rank]
                if me.next < me.asked:
                    following_s = min(following_s, state.request[rank, me.next].arrival_s)
            if following_s == np.inf:
                return
            clock_s = max(clock_s, following_s)
            seen_s = clock_s
            continue
        for rank in range(ranks):
            me = state.lane[rank]
            if me.batch_s >= 0.0:
                done = me.done
                end_batch(state, params, rank, step_s)
                left -= me.done - done
                if number.clients > 0:
                    _send(state, rank, done)
        seen_s = clock_s if number.ahead == 1 else clock_s + step_s
        clock_s += step_s


def replay(
    rows: Rows,
    profile: Profile,
    *,
    kv_capacity: int | None = None,
    budget: int = 2048,
    seats: int = 256,
    block: int = 16,
    scheduling: str = "async",
    overflow: str = "recompute",
    first_token: str = "with-prefill",
    rule: str | Rule = "vllm:watermark=0",
    ranks: int = 1,
    clients: int | None = None,
) -> Replayed:
    """Replay requests on one engine, or on several that step together. The defaults are those of vLLM V1.

    Args:
        rows: arrivals (s) and lengths (tokens).
        profile: what a step costs.
        kv_capacity: tokens that the cache of a rank holds; None: what the profile's memory leaves.
        budget: tokens of a batch.
        seats: requests that run at once on a rank.
        block: tokens of a block of the cache, a power of two.
        scheduling: `async`, a batch is planned while the one before it runs, or `sync`.
        overflow: `recompute` or `pause`, what happens when the next batch does not fit into the cache.
        first_token: a key of `llmgym.serving.requests.FIRST_TOKENS`.
        rule: who is admitted; a name of the catalogue (`llmgym.serving.rules`) or a `Rule`.
        ranks: engines that step together; requests go to them in turn.
        clients: None: requests arrive as the rows say. Else so many are kept in flight on each rank, and the rows' arrivals
            are not used.

    Raises:
        InvalidArgument: an argument out of range, or a request that can never fit into the cache.
        UnknownName: no such rule, scheduling, overflow or first token.
    """
    whole("ranks", ranks, 1, len(rows.arrival_s))
    if clients is not None:
        whole("clients", clients)
    choice("scheduling", scheduling, SCHEDULINGS)
    choice("first_token", first_token, FIRST_TOKENS)
    capacity = whole("kv_capacity", profile.kv_capacity_tokens() if kv_capacity is None else kv_capacity)
    block = whole("block", block)
    if block & (block - 1):
        raise InvalidArgument(f"block={block}: expected a power of two")
    capacity = capacity // block * block
    reach = rows.prompt_tokens.astype(np.int64) + rows.output_tokens
    if reach.max() > capacity:
        worst = int(reach.argmax())
        raise InvalidArgument(
            f"kv_capacity={capacity}: request {worst} needs {reach[worst]} tokens; no batch could ever hold it"
        )
    overflows = {"pause": PAUSE, "recompute": RECOMPUTE}
    records, class_budgets, orders = pack(
        resolve([rule]), overflows[choice("overflow", overflow, overflows)], 1
    )
    number = np.zeros(1, NUMBER)
    set_limits(
        number[0],
        kv_capacity=capacity,
        chunk=whole("budget", budget),
        budget=budget,
        seats=whole("seats", seats),
        block=block,
        first_token=first_token,
        default_output=int(rows.output_tokens.mean()),
        ttft_slo_s=np.inf,
        tpot_slo_s=np.inf,
    )
    number["ahead"], number["clients"] = scheduling == "async", clients or 0
    n = len(rows.arrival_s)
    most = -(-n // ranks)
    state = State(
        np.zeros(ranks, RANK),
        np.zeros((ranks, seats), RESIDENT),
        np.zeros((ranks, most), REQUEST),
        np.zeros((ranks, len(orders), most + 2), np.int32),
        np.zeros((ranks, SCRATCH_ROWS, seats + 1), np.int32),
    )
    state.request["ttft_s"], state.request["e2e_s"] = -1.0, -1.0
    rank = (np.arange(n) % ranks).astype(np.int32)
    for at in range(ranks):
        chosen = np.flatnonzero(rank == at)
        asked = state.request[at, : len(chosen)]
        asked["arrival_s"] = 0.0 if clients is not None else rows.arrival_s[chosen]
        asked["prompt"], asked["output"] = rows.prompt_tokens[chosen], rows.output_tokens[chosen]
        state.lane[at]["requests"] = len(chosen)
    _run(state, Params(number, records, class_budgets, orders, profile.step_cost()))
    found = state.request[rank, np.arange(n) // ranks]
    lanes = state.lane
    busy_s = max(float(lanes["busy_s"].sum()), 1e-12)
    return Replayed(
        found["arrival_s"].copy(),
        found["arrival_s"] + found["ttft_s"].astype(np.float64),
        found["arrival_s"] + found["e2e_s"].astype(np.float64),
        rank,
        int(lanes["preemptions"].sum()),
        int(lanes["batches"].sum()),
        busy_s / max(int(lanes["batches"].sum()), 1),
        float(lanes["kv_s"].sum()) / busy_s / capacity,
        float(lanes["kv_peak"].max()) / capacity,
    )
