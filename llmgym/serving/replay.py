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
from llmgym.core.records import Record, Records, Records2, float64, int32, int64
from llmgym.errors import InvalidArgument, NoProgress
from llmgym.profiles.cost import StepCost
from llmgym.profiles.profile import Profile
from llmgym.serving.admission import SCRATCH_ROWS, admit_by_rule, compose
from llmgym.serving.capacity import saturation, with_class_budgets
from llmgym.serving.engine import batch_time_s, empty, end_batch, held_up_s, plan, start
from llmgym.serving.requests import FIRST_TOKENS, derived_limits, time_per_token
from llmgym.serving.residents import wait
from llmgym.serving.rules import Rule, pack, resolve
from llmgym.serving.settings import OVERFLOWS, SCHEDULINGS, EngineSettings, cache_in_blocks
from llmgym.serving.state import CompiledRule, Engine, Limits, Request, Resident
from llmgym.workloads import RequestClass, Workload
from llmgym.workloads import replay as arrivals_of
from llmgym.workloads.arrivals import Rows
from llmgym.workloads.workload import INFORMATION

Floats = NDArray[np.float64]


class Rank(Engine):
    """An engine and its requests."""

    next: int = int32("Number of its next arrival.")
    sent: int = int32("Requests whose arrival is known.")
    requests: int = int32("Requests in all.")


class Config(Limits):
    """What is set for all ranks."""

    ahead: int = int32("1 if a batch is planned while the one before it runs.")
    clients: int = int32("Requests kept in flight on each rank; 0 if they arrive by themselves.")
    idle_s: float = float64("Time after which an engine that is held up plans again, seconds.")


class Loop(Record):
    """Where the loop over the steps stands, so that it can be left and entered again."""

    clock_s: float = float64("Simulated time, seconds.")
    seen_s: float = float64("The schedulers know who arrived by this time, seconds.")
    left: int = int64("Requests that have not finished.")
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
    scratch: NDArray[np.int32]


class Params(NamedTuple):
    """What the ranks share, an `EngineParams`."""

    config: Records[Config]
    rules: Records[CompiledRule]
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

    Args:
        arrival_s: float64 [n], when each request arrived, s.
        first_s: float64 [n], when its first output token was there, s.
        last_s: float64 [n], when its last one was, s.
        output_tokens: int [n], length of its output, tokens.

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
    times = {"ttft": first - arrival, "tpot": tpot[~np.isnan(tpot)], "e2e": last - arrival}
    figures = {
        f"{name}_p{p}_s": float(np.percentile(values, p)) if len(values) else np.nan
        for name, values in times.items()
        for p in (50, 90, 99)
    }
    figures["makespan_s"] = float(last.max() - np.nanmin(arrival_s)) if len(last) else np.nan
    figures["output_tokens_per_s"] = np.nan
    if figures["makespan_s"] > 0.0:
        figures["output_tokens_per_s"] = float(output.sum()) / figures["makespan_s"]
    return figures


@kernel
def _arrive(state: State, params: Params, rank: int, seen_s: float) -> None:
    """Queue what has arrived by then."""
    engine = state.lane[rank]
    while engine.next < engine.sent and state.request[rank, engine.next].arrival_s <= seen_s:
        wait(state, params, rank, engine.next)
        engine.next += 1


@kernel
def _send(state: State, rank: int, done_before: int) -> None:
    """A closed loop sends a request for each that has ended since."""
    engine = state.lane[rank]
    for _ in range(engine.done - done_before):
        if engine.sent < engine.requests:
            state.request[rank, engine.sent].arrival_s = engine.clock_s
            engine.sent += 1


@kernel
def _begin(state: State, params: Params, loop: Records[Loop]) -> None:
    """Let every engine begin, empty, at time 0."""
    config = params.config[0]
    for rank in range(state.lane.shape[0]):
        engine = state.lane[rank]
        start(state, params, rank, np.uint64(rank))
        engine.sent = min(config.clients, engine.requests) if config.clients > 0 else engine.requests
        loop[0].left += engine.requests


@kernel
def _plan_step(state: State, params: Params, rank: int, clock_s: float, seen_s: float) -> bool:
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
def _idle(state: State, params: Params, loop: Loop) -> bool:
    """Nobody has a batch to run: time goes on until somebody plans again. False if nothing will ever run again."""
    following_s, again_s = np.inf, np.inf
    for rank in range(state.lane.shape[0]):
        engine = state.lane[rank]
        arrival_s = state.request[rank, engine.next].arrival_s if engine.next < engine.sent else np.inf
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
def _run(state: State, params: Params, loops: Records[Loop], steps: int) -> int:
    """Step all ranks together, so often; returns `GOES_ON`, `OVER` when every request is done, or why there is no end."""
    config = params.config[0]
    loop = loops[0]
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
            engine = state.lane[rank]
            if engine.batch_s >= 0.0:
                done = engine.done
                end_batch(state, params, rank, step_s)
                if engine.done > done:
                    loop.left -= engine.done - done
                    loop.fruitless = 0
                    if config.clients > 0:
                        _send(state, rank, done)
        loop.seen_s = loop.clock_s if config.ahead == 1 else loop.clock_s + step_s
        loop.clock_s += step_s
    return GOES_ON


def _play(state: State, params: Params, loop: Records[Loop]) -> int:
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


def _predictions(rows: Rows, information: str | None, seed: int, capacity: int) -> NDArray[np.int32] | None:
    """Output lengths that the scheduler is told, int32 [n], none beyond what the cache allows; None if it is told none."""
    predicted = rows.predicted_tokens
    if information is not None:
        choice("information", information, INFORMATION)
        sample = _workload(rows).sample(np.random.default_rng(seed), len(rows), information=information)
        predicted = None if information == "none" else sample.predicted_tokens
    if predicted is None:
        return None
    return np.minimum(predicted, np.maximum(capacity - rows.prompt_tokens, 1)).astype(np.int32)


def _chosen_rule(
    rule: str | Rule, rows: Rows, predicted: NDArray[np.int32] | None, capacity: int, chunk: int
) -> Rule:
    (chosen,) = resolve([rule])
    if chosen.predicts and predicted is None:
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

    Returns:
        The times of every request, in the order of the rows, and what the ranks did.

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
    settings = EngineSettings(
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
    predicted = _predictions(rows, information, seed, capacity)
    chosen_rule = _chosen_rule(rule, rows, predicted, capacity, budget)
    records, class_budgets, orders = pack([chosen_rule], OVERFLOWS[overflow], 1)
    n = len(rows.arrival_s)
    most = -(-n // ranks)
    first, _ = FIRST_TOKENS[first_token]
    config = Config.pack(
        settings,
        kv_capacity=capacity,
        chunk=budget,
        seats=min(seats, most),  # more than requests need no room
        default_output=int(rows.output_tokens.mean()),
        ttft_slo_s=np.inf,
        tpot_slo_s=np.inf,
        ahead=SCHEDULINGS[scheduling],
        clients=clients or 0,
        idle_s=saturation(_workload(rows), profile, capacity, budget, budget, seats, first).batch_s,
        **derived_limits(budget, first_token),
    )
    seats = min(seats, most)
    state = State(
        np.repeat(Rank.blank, ranks),  # type: ignore[arg-type]
        Resident.zeros(ranks, seats),
        np.full((ranks, most), Request.blank),  # type: ignore[arg-type]
        np.zeros((ranks, len(orders), most + 2), np.int32),
        np.zeros((ranks, SCRATCH_ROWS, seats + 1), np.int32),
    )
    rank = (np.arange(n) % ranks).astype(np.int32)
    for r in range(ranks):
        chosen = np.flatnonzero(rank == r)
        requests = state.request[r, : len(chosen)]
        requests["arrival_s"] = 0.0 if clients is not None else rows.arrival_s[chosen]
        requests["prompt"], requests["output"] = rows.prompt_tokens[chosen], rows.output_tokens[chosen]
        if predicted is not None:
            requests["predicted"] = predicted[chosen]
        state.lane[r]["requests"] = len(chosen)
    params = Params(config, records, class_budgets, orders, profile.step_cost())
    serial = -(-rows.prompt_tokens.astype(np.int64) // budget) + rows.output_tokens
    loop: Any = Loop.blank.copy()
    loop["patience"] = PATIENCE * int(serial.max()) + int(serial.sum())
    if _play(state, params, loop) == FRUITLESS:
        raise NoProgress(
            f"rule={chosen_rule.name!r}: {int(loop['fruitless'][0]):,} steps in turn have finished no request, with "
            f"{int(loop['left'][0])} of {n} unfinished and work thrown away {int(state.lane['preemptions'].sum()):,} times; give "
            f"the cache more than kv_capacity={capacity} tokens, or a rule that does not clear all of it"
        )
    served = state.request[rank, np.arange(n) // ranks]
    done = served["e2e_s"] >= 0.0
    arrival_s = served["arrival_s"].copy()
    arrival_s[np.arange(n) // ranks >= state.lane["sent"][rank]] = np.nan
    lanes = state.lane
    busy_s, batches = float(lanes["busy_s"].sum()), int(lanes["batches"].sum())
    return Replayed(
        arrival_s,
        np.where(done, arrival_s + served["ttft_s"].astype(np.float64), np.nan),
        np.where(done, arrival_s + served["e2e_s"].astype(np.float64), np.nan),
        rank,
        int(n - done.sum()),
        int(lanes["preemptions"].sum()),
        batches,
        busy_s / batches if batches else np.nan,
        float(lanes["kv_s"].sum()) / busy_s / capacity if busy_s > 0.0 else np.nan,
        float(lanes["kv_peak"].max()) / capacity,
    )
