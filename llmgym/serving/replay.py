"""A measured or planned run of requests, replayed on the engine: when each request has its first and its last token.

Where an environment asks an agent before each batch, a replay follows one admission rule from the first request to the last. It
knows two things more:

- *ranks*: several engines that step together, as data-parallel ranks do that share the experts of a mixture of experts: each has
  a cache, seats and waiting requests of its own, and the slowest sets the pace of every step. Requests go to them in turn.
- *clients*: a closed loop that keeps so many requests in flight on each rank; a request arrives when one ends.

Not every request ends: a rule may never run it (`vllm-prefill-only` waits for a batch that holds a whole prompt). What is then
still in the engine is *unfinished*. A rule that runs batch after batch and never finishes anybody is told as an error.
"""

import time
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmgym.core.checks import choice, whole
from llmgym.core.jit import kernel
from llmgym.errors import InvalidArgument, NoProgress
from llmgym.profiles.cost import StepCost
from llmgym.profiles.profile import Profile
from llmgym.serving.admission import SCRATCH_ROWS, admit_by_rule, compose
from llmgym.serving.capacity import saturation, with_class_budgets
from llmgym.serving.engine import batch_time_s, empty, end_batch, held_up_s, plan, start
from llmgym.serving.requests import FIRST_TOKENS, LIMITS, REQUEST, set_limits, time_per_token
from llmgym.serving.residents import ENGINE, RESIDENT, wait
from llmgym.serving.rules import Rule, pack, resolve
from llmgym.serving.settings import OVERFLOWS, SCHEDULINGS, cache_in_blocks, check_engine
from llmgym.workloads import RequestClass, Workload
from llmgym.workloads import replay as arrivals_of
from llmgym.workloads.arrivals import Rows
from llmgym.workloads.workload import INFORMATION

Floats = NDArray[np.float64]

RANK = np.dtype([*ENGINE, ("next", "i4"), ("asked", "i4"), ("requests", "i4")], align=True)
"""An engine, the number of its next arrival, how many arrivals are known, and how many there are in all."""
NUMBER = np.dtype([*LIMITS, ("ahead", "i4"), ("clients", "i4"), ("idle_s", "f8")], align=True)
LOOP = np.dtype(
    [
        ("clock_s", "f8"),
        ("seen_s", "f8"),  # the schedulers know who arrived by then
        ("left", "i8"),  # requests that have not finished
        ("fruitless", "i8"),  # steps since the last one that finished a request
        ("patience", "i8"),  # so many of them are too many
        ("still", "i8"),  # steps in turn in which nothing ran, nobody was admitted and nobody was thrown out
    ],
    align=True,
)
"""Where the loop over the steps stands, so that it can be left and entered again."""

GOES_ON, OVER, STUCK, FRUITLESS = 0, 1, 2, 3
PIECE_S = 0.1
"""A compiled call takes about so long: Python sees to signals (Ctrl-C) in between."""
PATIENCE = 1_000
"""A rule may throw work away as often as it takes to serve the longest request so many times, without finishing anybody."""


class State(NamedTuple):
    """Arrays of a replay; first axis = rank. See `llmgym.serving.engine`."""

    lane: NDArray[Any]
    resident: NDArray[Any]
    request: NDArray[Any]
    queue: NDArray[np.int32]
    scratch: NDArray[np.int32]


class Params(NamedTuple):
    """What the ranks share."""

    config: NDArray[Any]
    rules: NDArray[Any]
    class_budgets: NDArray[np.int32]
    orders: NDArray[np.int64]
    cost: StepCost


class Replayed(NamedTuple):
    """What became of the requests.

    Attributes:
        arrival_s: float64 [n], s; of a closed loop when each was sent, NaN if it never was.
        first_s: float64 [n], when the first output token was there, s; NaN for unfinished requests.
        last_s: float64 [n], when the last one was, s; NaN for unfinished requests.
        rank: int32 [n], where each ran.
        unfinished: requests that never finish.
        preemptions: how often a request lost its cache.
        batches: steps with anything to run, of all ranks together.
        batch_mean_s: mean duration of a step, s; NaN if there was none.
        kv_mean: tokens in the cache over its capacity, mean over the time that steps took and over ranks; NaN if there was none.
        kv_peak: the most of it that was used on any rank.
    """

    arrival_s: Floats
    first_s: Floats
    last_s: Floats
    rank: NDArray[np.int32]
    unfinished: int
    preemptions: int
    batches: int
    batch_mean_s: float
    kv_mean: float
    kv_peak: float


@kernel
def _times_per_token(
    first_s: Floats, last_s: Floats, output_tokens: NDArray[np.int64], out: NDArray[np.float64]
) -> None:
    for i in range(out.shape[0]):
        out[i] = time_per_token(first_s[i], last_s[i], output_tokens[i])


def latency_figures(
    arrival_s: Floats, first_s: Floats, last_s: Floats, output_tokens: NDArray[np.integer[Any]]
) -> dict[str, float]:
    """What users of a server see: percentiles of TTFT, TPOT and end-to-end time (s), makespan (s) and output tokens a second.

    TTFT is from arrival to first token, TPOT (last - first) / (output - 1) of requests with two or more output tokens, makespan
    from the first arrival to the last token. All are of the requests that finished: those whose `last_s` is not NaN.

    Returns:
        `ttft_p50_s`, `ttft_p90_s`, `ttft_p99_s`, the same of `tpot` and `e2e`, `makespan_s` and `output_tokens_per_s`. NaN is what
        no request is there for: all if none finished, TPOT if none of those has two output tokens, the tokens a second if the
        makespan is 0.
    """
    done = np.isfinite(last_s)
    arrival, first, last = (np.asarray(x, np.float64)[done] for x in (arrival_s, first_s, last_s))
    output = np.asarray(output_tokens, np.int64)[done]
    tpot = np.zeros(len(output))
    _times_per_token(first, last, output, tpot)
    kinds = {"ttft": first - arrival, "tpot": tpot[~np.isnan(tpot)], "e2e": last - arrival}
    found = {
        f"{kind}_p{p}_s": float(np.percentile(values, p)) if len(values) else np.nan
        for kind, values in kinds.items()
        for p in (50, 90, 99)
    }
    found["makespan_s"] = float(last.max() - np.nanmin(arrival_s)) if len(last) else np.nan
    found["output_tokens_per_s"] = np.nan
    if found["makespan_s"] > 0.0:
        found["output_tokens_per_s"] = float(output.sum()) / found["makespan_s"]
    return found


@kernel
def _arrive(state: State, params: Params, rank: int, seen_s: float) -> None:
    """Queue what has arrived by then."""
    episode = state.lane[rank]
    while episode.next < episode.asked and state.request[rank, episode.next].arrival_s <= seen_s:
        wait(state, params, rank, episode.next)
        episode.next += 1


@kernel
def _send(state: State, rank: int, done_before: int) -> None:
    """A closed loop sends a request for each that has ended since."""
    episode = state.lane[rank]
    for _ in range(episode.done - done_before):
        if episode.asked < episode.requests:
            state.request[rank, episode.asked].arrival_s = episode.clock_s
            episode.asked += 1


@kernel
def _begin(state: State, params: Params, loop: NDArray[Any]) -> None:
    """Empty engines at time 0."""
    config = params.config[0]
    for rank in range(state.lane.shape[0]):
        episode = state.lane[rank]
        start(state, params, rank, np.uint64(rank))
        episode.next = 0
        episode.asked = min(config.clients, episode.requests) if config.clients > 0 else episode.requests
        loop[0].left += episode.requests


@kernel
def _plan_step(state: State, params: Params, rank: int, clock_s: float, seen_s: float) -> bool:
    """Put the next batch of a rank together; returns whether anybody was admitted or thrown out."""
    episode = state.lane[rank]
    rule = params.rules[0]
    episode.clock_s = clock_s
    before = episode.preemptions + episode.draws
    admitted = 0
    _arrive(state, params, rank, seen_s)
    plan(state, params, rank)
    if episode.waiting > 0 and episode.blocked == 0:
        admitted = admit_by_rule(state, params, rank, 0, rule.watermark)
    if rule.batch != 0:
        compose(state, params, rank, rule.batch)
    episode.batch_s = batch_time_s(state, params, rank)
    return admitted > 0 or episode.preemptions + episode.draws != before


@kernel
def _idle(state: State, params: Params, loop: Any) -> bool:
    """Nobody has a batch to run: time goes on until somebody plans again. False if nothing will ever run again."""
    following_s, again_s = np.inf, np.inf
    for rank in range(state.lane.shape[0]):
        episode = state.lane[rank]
        arrival_s = state.request[rank, episode.next].arrival_s if episode.next < episode.asked else np.inf
        following_s = min(following_s, arrival_s)
        if not empty(state, rank):
            again_s = min(again_s, held_up_s(state, rank, arrival_s, params.config[0].idle_s))
    if again_s == np.inf or loop.still > 1:
        # Empty engines wait for the next arrival and see it at once. So do those that have planned twice without a change: what
        # was in the way of the first plan (somebody was thrown out, so nobody was let in) is not in that of the second.
        if following_s == np.inf:
            return False
        loop.clock_s = max(loop.clock_s, following_s)
    else:
        loop.clock_s += min(again_s, max(following_s - loop.clock_s, 0.0))
    loop.seen_s = loop.clock_s
    return True


@kernel
def _run(state: State, params: Params, loop_of: NDArray[Any], steps: int) -> int:
    """Step all ranks together, so often; returns `GOES_ON`, `OVER` when every request is done, or why there is no end."""
    config = params.config[0]
    loop = loop_of[0]
    ranks = state.lane.shape[0]
    for _ in range(steps):
        if loop.left == 0:
            return OVER
        if loop.fruitless > loop.patience:
            return FRUITLESS
        step_s, moved = -1.0, False
        for rank in range(ranks):
            moved = _plan_step(state, params, rank, loop.clock_s, loop.seen_s) or moved
            step_s = max(step_s, state.lane[rank].batch_s)
        loop.fruitless += 1
        if step_s < 0.0:
            loop.still = 0 if moved else loop.still + 1
            if not _idle(state, params, loop):
                return STUCK
            continue
        loop.still = 0
        for rank in range(ranks):
            episode = state.lane[rank]
            if episode.batch_s >= 0.0:
                done = episode.done
                end_batch(state, params, rank, step_s)
                if episode.done > done:
                    loop.left -= episode.done - done
                    loop.fruitless = 0
                    if config.clients > 0:
                        _send(state, rank, done)
        loop.seen_s = loop.clock_s if config.ahead == 1 else loop.clock_s + step_s
        loop.clock_s += step_s
    return GOES_ON


def _play(state: State, params: Params, loop: NDArray[Any]) -> int:
    """Run to the end, in pieces, however long a step takes; returns how it ended."""
    _begin(state, params, loop)
    status, steps = GOES_ON, 10
    while status == GOES_ON:
        begun_s = time.perf_counter()
        status = _run(state, params, loop, steps)
        taken_s = max(time.perf_counter() - begun_s, 1e-6)
        steps = max(1, min(2 * steps, int(steps * PIECE_S / taken_s)))
    return status


def _workload(rows: Rows) -> Workload:
    return Workload("rows", arrivals_of(rows, from_start=True), (RequestClass(rows=rows),))


def _told(rows: Rows, information: str | None, seed: int, capacity: int) -> NDArray[np.int32] | None:
    """Output lengths that the scheduler is told, int32 [n], none beyond what the cache allows; None if it is told none."""
    told = rows.predicted_tokens
    if information is not None:
        choice("information", information, INFORMATION)
        sample = _workload(rows).sample(np.random.default_rng(seed), len(rows), information=information)
        told = None if information == "none" else sample.predicted_tokens
    if told is None:
        return None
    return np.minimum(told, np.maximum(capacity - rows.prompt_tokens, 1)).astype(np.int32)


def _chosen_rule(
    rule: str | Rule, rows: Rows, told: NDArray[np.int32] | None, capacity: int, chunk: int
) -> Rule:
    (chosen,) = resolve([rule])
    if chosen.predicts and told is None:
        raise InvalidArgument(
            f"rule={chosen.name!r}: it reckons with predicted output lengths and is told none; give "
            "information='exact', 'noisy' or 'mean', or rows with predicted_tokens"
        )
    return with_class_budgets(chosen, _workload(rows), capacity, chunk)


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
    information: str | None = None,
    seed: int = 0,
) -> Replayed:
    """Replay requests on one engine, or on several that step together. The defaults are those of vLLM V1.

    Args:
        rows: arrivals (s) and lengths (tokens), and what the scheduler is told of output lengths, if it is.
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
        information: what the scheduler is told of output lengths, instead of the rows' predictions: `exact`, `noisy` (with the
            errors of a learned predictor), `mean` (of all rows) or `none`, see `llmgym.workloads.Workload.traffic`.
        seed: of the errors of `noisy`.

    Raises:
        InvalidArgument: an argument out of range, a request that can never fit into the cache, or a rule that needs predicted
            lengths and is told none.
        UnknownName: no such rule, scheduling, overflow, first token or information.
        NoProgress: the rule goes on throwing work away and finishes nobody.
    """
    whole("ranks", ranks, 1, len(rows.arrival_s))
    whole("seed", seed, 0, 2**63)
    if clients is not None:
        whole("clients", clients)
    check_engine(
        chunk=budget,
        budget=budget,
        seats=seats,
        block=block,
        overflow=overflow,
        first_token=first_token,
        scheduling=scheduling,
    )
    capacity = cache_in_blocks(profile.kv_capacity_tokens() if kv_capacity is None else kv_capacity, block)
    reach = rows.prompt_tokens.astype(np.int64) + rows.output_tokens
    if reach.max() > capacity:
        worst = int(reach.argmax())
        raise InvalidArgument(
            f"kv_capacity={capacity}: request {worst} needs {reach[worst]} tokens; no batch could ever hold it"
        )
    told = _told(rows, information, seed, capacity)
    chosen_rule = _chosen_rule(rule, rows, told, capacity, budget)
    records, class_budgets, orders = pack([chosen_rule], OVERFLOWS[overflow], 1)
    n = len(rows.arrival_s)
    most = -(-n // ranks)
    all_seats, seats = seats, min(seats, most)  # more than requests need no room
    number = np.zeros(1, NUMBER)
    set_limits(
        number[0],
        kv_capacity=capacity,
        chunk=budget,
        budget=budget,
        seats=seats,
        block=block,
        first_token=first_token,
        default_output=int(rows.output_tokens.mean()),
        ttft_slo_s=np.inf,
        tpot_slo_s=np.inf,
    )
    number["ahead"], number["clients"] = SCHEDULINGS[scheduling], clients or 0
    first, _ = FIRST_TOKENS[first_token]
    number["idle_s"] = saturation(
        _workload(rows), profile, capacity, budget, budget, all_seats, first
    ).batch_s
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
        if told is not None:
            asked["predicted"] = told[chosen]
        state.lane[at]["requests"] = len(chosen)
    params = Params(number, records, class_budgets, orders, profile.step_cost())
    loop = np.zeros(1, LOOP)
    serial = -(-rows.prompt_tokens.astype(np.int64) // budget) + rows.output_tokens
    loop["patience"] = PATIENCE * int(serial.max()) + int(serial.sum())
    if _play(state, params, loop) == FRUITLESS:
        raise NoProgress(
            f"rule={chosen_rule.name!r}: {int(loop['fruitless'][0]):,} steps in turn have finished no request, with "
            f"{int(loop['left'][0])} of {n} unfinished and work thrown away {int(state.lane['preemptions'].sum()):,} times; give "
            f"the cache more than kv_capacity={capacity} tokens, or a rule that does not clear all of it"
        )
    found = state.request[rank, np.arange(n) // ranks]
    done = found["e2e_s"] >= 0.0
    arrival_s = found["arrival_s"].copy()
    arrival_s[np.arange(n) // ranks >= state.lane["asked"][rank]] = np.nan
    lanes = state.lane
    busy_s, batches = float(lanes["busy_s"].sum()), int(lanes["batches"].sum())
    return Replayed(
        arrival_s,
        np.where(done, arrival_s + found["ttft_s"].astype(np.float64), np.nan),
        np.where(done, arrival_s + found["e2e_s"].astype(np.float64), np.nan),
        rank,
        int(n - done.sum()),
        int(lanes["preemptions"].sum()),
        batches,
        busy_s / batches if batches else np.nan,
        float(lanes["kv_s"].sum()) / busy_s / capacity if busy_s > 0.0 else np.nan,
        float(lanes["kv_peak"].max()) / capacity,
    )
