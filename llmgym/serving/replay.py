"""A measured or planned run of requests, replayed on the engine: when each request has its first and its last token.

Where an environment asks an agent before each batch, a replay follows one admission rule from the first request to the last. It
knows two things more:

- *ranks*: several engines that step together, as data-parallel ranks do that share the experts of a mixture of experts: each has
  a cache, seats and waiting requests of its own, and the slowest sets the pace of every step. Requests go to them in turn.
- *clients*: a closed loop that keeps so many requests in flight on each rank; a request arrives when one ends.

Rows with turns are conversations (`llmgym.serving.conversations`): a turn arrives some time after the last token of the turn before
it, and all turns of a conversation go to one rank.

Not every request ends: a rule may never run it (`vllm-prefill-only` waits for a batch that holds a whole prompt). What is then
still in the engine is *unfinished*. A rule that runs batch after batch and never finishes anybody is told as an error.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmgym.core.checks import choice, number, whole
from llmgym.core.jit import kernel
from llmgym.errors import InvalidArgument, NoProgress
from llmgym.profiles.cost_changes import launches_ahead, slower
from llmgym.profiles.profile import Profile
from llmgym.serving.admission import SCRATCH_ROWS
from llmgym.serving.capacity import saturation, with_class_budgets
from llmgym.serving.loop import (
    FRUITLESS,
    GOES_ON,
    PATIENCE,
    Config,
    Loop,
    Params,
    Rank,
    State,
    begin,
    end_step,
    plan_step,
    play,
)
from llmgym.serving.prefix import allocate
from llmgym.serving.requests import FIRST_TOKENS, derived_limits, time_per_token
from llmgym.serving.rules import Rule, check_prefixes, pack, resolve
from llmgym.serving.settings import HELD, OVERFLOWS, SCHEDULINGS, SYNC, EngineSettings, cache_in_blocks
from llmgym.serving.state import Prefixes, Request, Resident, no_prefixes
from llmgym.serving.targets import Target, check_targets, objective_records
from llmgym.workloads import RequestClass, Workload
from llmgym.workloads import replay as arrivals_of
from llmgym.workloads.arrivals import Rows
from llmgym.workloads.workload import INFORMATION

Floats = NDArray[np.float64]


WAYS = {"none": 0.0, "in-process": 2.7e-3, "streaming": 2.9e-3}
"""How much later than the engine a client has its tokens, s: not at all; in the process that started the engine, without a network,
where it gets the first token and then all others; where it reads every token of every request. From the stamps of vLLM 0.24 in
`benchmarks/results`: at least 1.0 ms until the engine has a request, 1.2 to 2.1 ms (median of runs with 5 to 50 requests running)
until the client has a token, and 0.05 to 0.4 ms more with every token read. With 150 to 200 running it is 5 to 6 ms, not 2."""


def way_seconds(way: str | float) -> float:
    """Seconds of a name of `WAYS`, or of a number. Raises `UnknownName` or `InvalidArgument` if it is neither, or below 0."""
    if isinstance(way, str):
        return WAYS[choice("way", way, WAYS)]
    return number("way", way, zero=True)


LONGEST_S = 1e3
"""The most that a step may be told to take longer, s."""


class Step(NamedTuple):
    """One batch of one rank.

    Attributes:
        time_s: when it began, s.
        rank: which one.
        run: (request, tokens) of everybody in it, oldest resident first; requests are rows.
        preempted: requests that have lost their cache since the rank's batch before.
        blocks: of the cache, in use while it runs.
    """

    time_s: float
    rank: int
    run: tuple[tuple[int, int], ...]
    preempted: tuple[int, ...]
    blocks: int


class Replayed(NamedTuple):
    """What became of the requests.

    Attributes:
        arrival_s: float64 [n], s; of a closed loop or a turn when it was sent, NaN if it never was.
        first_s: float64 [n], when the first output token was there, s; NaN for unfinished requests.
        last_s: float64 [n], when the last one was, s; NaN for unfinished requests.
        rank: int32 [n], where each ran.
        unfinished: requests that never finish.
        preemptions: how often a request lost its cache.
        batches: steps with anything to run, of all ranks together.
        batch_mean_s: mean duration of a step, s; NaN if there was none.
        kv_mean: tokens in the cache over its capacity, mean over the time that steps took and over ranks; NaN if there was none.
        kv_peak: the most of it that was used on any rank.
        reused: prompt tokens that were found in the cache and not computed; after a preemption also the output so far.
        steps: every batch, if they were asked for.
        copied_out: tokens of the cache that were copied to the host's memory.
        copied_in: tokens that were copied back.
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
    reused: int = 0
    steps: tuple[Step, ...] = ()
    copied_out: int = 0
    copied_in: int = 0


@kernel
def _times_per_token(
    first_s: Floats, last_s: Floats, output_tokens: NDArray[np.int64], out: NDArray[np.float64]
) -> None:
    for i in range(out.shape[0]):
        out[i] = time_per_token(first_s[i], last_s[i], output_tokens[i])


def latency_figures(
    arrival_s: Floats,
    first_s: Floats,
    last_s: Floats,
    output_tokens: NDArray[np.integer[Any]],
    *,
    means: bool = False,
) -> dict[str, float]:
    """What users of a server see: percentiles of TTFT, TPOT and end-to-end time (s), makespan (s) and output tokens a second.

    TTFT is from arrival to first token, TPOT (last - first) / (output - 1) of requests with two or more output tokens, makespan
    from the first arrival to the last token. All are of the requests that finished: those whose `last_s` is not NaN.

    Args:
        arrival_s: float64 [n], when each request arrived, s.
        first_s: float64 [n], when its first output token was there, s.
        last_s: float64 [n], when its last one was, s.
        output_tokens: int [n], length of its output, tokens.
        means: whether to tell means too, beside each figure's percentiles.

    Returns:
        `ttft_p50_s`, `ttft_p90_s`, `ttft_p99_s` (and `ttft_mean_s`), the same of `tpot` and `e2e`, `makespan_s` and
        `output_tokens_per_s`. NaN is what no request is there for: all if none finished, TPOT if none of those has two output
        tokens, the tokens a second if the makespan is 0.
    """
    done = np.isfinite(last_s)
    arrival, first, last = (np.asarray(x, np.float64)[done] for x in (arrival_s, first_s, last_s))
    output = np.asarray(output_tokens, np.int64)[done]
    tpot = np.zeros(len(output))
    _times_per_token(first, last, output, tpot)
    times = {"ttft": first - arrival, "tpot": tpot[~np.isnan(tpot)], "e2e": last - arrival}
    figures: dict[str, float] = {}
    for name, values in times.items():
        if means:
            figures[f"{name}_mean_s"] = float(values.mean()) if len(values) else np.nan
        for p in (50, 90, 99):
            figures[f"{name}_p{p}_s"] = float(np.percentile(values, p)) if len(values) else np.nan
    figures["makespan_s"] = float(last.max() - np.nanmin(arrival_s)) if len(last) else np.nan
    figures["output_tokens_per_s"] = np.nan
    if figures["makespan_s"] > 0.0:
        figures["output_tokens_per_s"] = float(output.sum()) / figures["makespan_s"]
    return figures


def _steps(
    state: State, params: Params, loop: Any, rows_of: list[NDArray[np.int64]], outcome: list[int]
) -> Iterator[Step]:
    """Play to the end and tell every batch; how it ended is appended to `outcome`. `rows_of` tells the rows of each rank."""
    begin(state, params, loop)
    ranks = len(state.lane)
    preempted: list[list[int]] = [[] for _ in range(ranks)]
    status = GOES_ON
    while status == GOES_ON:
        before = [_residents(state, rank, rows_of[rank]) for rank in range(ranks)]
        status = plan_step(state, params, loop)
        if status != GOES_ON:
            break
        for rank in range(ranks):
            lane, now = state.lane[rank], _residents(state, rank, rows_of[rank])
            preempted[rank] += sorted(set(before[rank]) - set(now))
            if lane["batch_s"] >= 0.0:
                tokens = np.where(
                    np.arange(len(now)) < lane["walk"], 1, state.resident[rank, : len(now)]["run"]
                )
                yield Step(
                    float(loop["clock_s"][0]),
                    rank,
                    tuple((number, int(run)) for number, run in zip(now, tokens, strict=True) if run > 0),
                    tuple(preempted[rank]),
                    int(lane["batch_used"]) // int(params.config["block"][0]),
                )
                preempted[rank] = []
        status = end_step(state, params, loop)
    outcome.append(status)


def _residents(state: State, rank: int, rows_of: NDArray[np.int64]) -> list[int]:
    """Their requests, as numbers of rows."""
    return [int(row) for row in rows_of[state.resident[rank, : state.lane["residents"][rank]]["request"]]]


def _ranks(rows: Rows, ranks: int) -> NDArray[np.int32]:
    """Where each request runs, int32 [n]: they go to the ranks in turn, and with turns conversations do."""
    before = rows.turn_before()
    rank = ((np.cumsum(before < 0) - 1) % ranks).astype(np.int32)
    for row in np.flatnonzero(before >= 0):
        rank[row] = rank[before[row]]
    return rank


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


def _check_prefixes(rows: Rows, rule: Rule, overflow: str) -> None:
    if rows.session is None:
        raise InvalidArgument(
            "prefix_caching=True: the rows have no session, so that no request begins as another does"
        )
    if overflow != "recompute":
        raise InvalidArgument(f"prefix_caching=True needs overflow='recompute', not overflow={overflow!r}")
    check_prefixes([rule])


def _prefixes(
    rows: Rows, rank: NDArray[np.int32], ranks: int, blocks: int, seats: int, block: int
) -> tuple[Prefixes, NDArray[np.int32]]:
    """The arrays for cached prefixes, and the key of each request's first block, int32 [n]."""
    assert rows.session is not None
    most = -(-(rows.prompt_tokens.astype(np.int64) + rows.output_tokens) // block)
    _, which = np.unique(rows.session, return_inverse=True)
    longest = np.zeros(int(which.max()) + 1, np.int64)
    np.maximum.at(longest, which, most)
    ends = np.cumsum(longest)
    if ends[-1] >= 2**31:
        raise InvalidArgument(f"prefix_caching=True: {int(ends[-1]):,} different blocks are too many")
    made = allocate(ranks, blocks, seats, int(most.max()), int(ends[-1]))
    return made, (ends - longest)[which].astype(np.int32)


def replay(
    rows: Rows,
    profile: Profile,
    *,
    kv_capacity: int | None = None,
    budget: int = 2048,
    chunk: int | None = None,
    chunk_alone: bool = True,
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
    prefix_caching: bool = False,
    host_tokens: int = 0,
    targets: Sequence[Target] = (),
    way: str | float = "none",
    slower_s: float = 0.0,
    log: bool = False,
) -> Replayed:
    """Replay requests on one engine, or on several that step together. The defaults are those of vLLM V1.

    Args:
        rows: arrivals (s) and lengths (tokens), and what the scheduler is told of output lengths and priorities, if it is. Rows
            with turns arrive as their conversations go; of the arrivals only those of first turns are used.
        profile: what a step costs.
        kv_capacity: tokens that the cache of a rank holds; None: what the profile's memory leaves.
        budget: tokens of a batch.
        chunk: longest chunk of one prompt in a batch, tokens, as vLLM's `long_prefill_token_threshold`; None: the budget.
        chunk_alone: whether `chunk` also binds a request that is alone on its rank: so in vLLM 0.24, not in 0.32.
        seats: requests that run at once on a rank.
        block: tokens of a block of the cache, a power of two.
        scheduling: `sync`, a batch is planned when the one before it has ended, `async`, while that one runs, or `async-held`, the
            same, and a completed request holds its seat and its blocks for one plan more.
        overflow: `recompute` or `pause`, what happens when the next batch does not fit into the cache.
        first_token: a key of `llmgym.serving.requests.FIRST_TOKENS`.
        rule: who is admitted; a name of the catalogue (`llmgym.serving.rules`) or a `Rule`.
        ranks: engines that step together; requests go to them in turn.
        clients: None: requests arrive as the rows say. Else so many are kept in flight on each rank, and the rows' arrivals
            are not used; not with turns.
        information: what the scheduler is told of output lengths, instead of the rows' predictions: `exact`, `noisy` (with the
            errors of a learned predictor), `mean` (of all rows) or `none`, see `llmgym.workloads.Workload.traffic`.
        seed: of the errors of `noisy`.
        prefix_caching: whether full blocks are kept when requests leave, and found by others of the same session
            (`llmgym.serving.prefix`).
        host_tokens: cache that the host's memory holds for each rank, tokens: whoever is preempted or paused is copied there and
            back, at the time of the profile's copies (`llmgym.serving.host`). 0: preemption computes again, pausing costs nothing.
        targets: objectives of each class of the rows, for rules that look at them.
        way: how much later a client has its tokens: a name of `WAYS` or s. It is in first and last tokens, and a closed loop sends
            its next request that much later.
        slower_s: what every step takes more than the profile says, s; negative for less.
        log: whether to tell every batch, which takes some hundred times longer.

    Returns:
        The times of every request, in the order of the rows, and what the ranks did.

    Raises:
        InvalidArgument: an argument out of range, a request that can never fit into the cache, or a rule that needs predicted
            lengths or priorities and is told none, or cached prefixes without sessions, or with a rule that clears or divides
            the batch anew, or `clients` of rows with turns, or `host_tokens` with cached prefixes or a profile without
            measured copies.
        UnknownName: no such rule, scheduling, overflow, first token or information.
        NoProgress: the rule goes on throwing work away and finishes nobody.
    """
    whole("ranks", ranks, 1, len(rows.arrival_s))
    whole("seed", seed, 0, 2**63)
    conversations = rows.turn is not None
    if clients is not None:
        whole("clients", clients)
        if conversations:
            raise InvalidArgument(
                f"clients={clients}: the rows have turns, which arrive as their conversations go"
            )
    if targets:
        check_targets(rows, targets)
    settings = EngineSettings(
        budget=budget,
        **({} if chunk is None else {"chunk": chunk}),
        seats=seats,
        block=block,
        overflow=overflow,
        first_token=first_token,
        scheduling=scheduling,
        host_tokens=host_tokens,
    )
    if host_tokens > 0 and prefix_caching:
        raise InvalidArgument(
            f"host_tokens={host_tokens}: copies of cached prefixes are not modelled; use one of the two"
        )
    longest = budget if chunk is None else chunk
    capacity = cache_in_blocks(profile.kv_capacity_tokens() if kv_capacity is None else kv_capacity, block)
    reach = rows.prompt_tokens.astype(np.int64) + rows.output_tokens
    if reach.max() > capacity:
        worst = int(reach.argmax())
        raise InvalidArgument(
            f"kv_capacity={capacity}: request {worst} needs {reach[worst]} tokens; no batch could ever hold it"
        )
    predicted = _predictions(rows, information, seed, capacity)
    chosen_rule = _chosen_rule(rule, rows, predicted, capacity, longest)
    n = len(rows.arrival_s)
    rank = _ranks(rows, ranks)
    rows_of = [np.flatnonzero(rank == r) for r in range(ranks)]
    most = max(map(len, rows_of))
    local = np.zeros(n, np.int64)
    for own in rows_of:
        local[own] = np.arange(len(own))
    first, _ = FIRST_TOKENS[first_token]
    batch_s = saturation(_workload(rows), profile, capacity, longest, budget, seats, first).batch_s
    packed = pack(
        [chosen_rule],
        OVERFLOWS[overflow],
        1,
        area_per_s=capacity / batch_s,
        priorities=rows.priority is not None,
        objectives=bool(targets),
        prefixes=prefix_caching,
    )
    way_s = way_seconds(way)
    cost = profile.step_cost()
    if number("slower_s", slower_s, low=-LONGEST_S, high=LONGEST_S):
        cost = slower(cost, slower_s)
    cost, launches = launches_ahead(cost, SCHEDULINGS[scheduling] != SYNC)
    config = Config.pack(
        settings,
        kv_capacity=capacity,
        chunk=longest,
        seats=min(seats, most),  # more than requests need no room
        default_output=int(rows.output_tokens.mean()),
        ahead=int(SCHEDULINGS[scheduling] != SYNC),
        clients=clients or 0,
        way_s=way_s,
        idle_s=batch_s,
        **derived_limits(
            longest,
            first_token,
            SCHEDULINGS[scheduling] == HELD,
            not chunk_alone,
            prefix_caching,
            conversations,
            host_tokens,
            profile.copy_s_per_token() if host_tokens > 0 else (0.0, 0.0),
            launches,
        ),
    )
    seats = min(seats, most)
    prefixes, first_key = no_prefixes(ranks), np.zeros(n, np.int32)
    if prefix_caching:
        _check_prefixes(rows, chosen_rule, overflow)
        prefixes, first_key = _prefixes(rows, rank, ranks, capacity // block, seats, block)
    state = State(
        np.repeat(Rank.blank, ranks),  # type: ignore[arg-type]
        Resident.zeros(ranks, seats),
        np.full((ranks, most), Request.blank),  # type: ignore[arg-type]
        np.zeros((ranks, len(packed.orders) + conversations, most + 2), np.int32),
        prefixes,
        np.zeros((ranks, SCRATCH_ROWS, seats + 1), np.int32),
    )
    before = rows.turn_before()
    for r, chosen in enumerate(rows_of):
        requests = state.request[r, : len(chosen)]
        requests["arrival_s"] = 0.0 if clients is not None else rows.arrival_s[chosen]
        requests["prompt"], requests["output"] = rows.prompt_tokens[chosen], rows.output_tokens[chosen]
        requests["first_key"] = first_key[chosen]
        if predicted is not None:
            requests["predicted"] = predicted[chosen]
        if rows.priority is not None:
            requests["priority"] = rows.priority[chosen]
        if targets and rows.request_class is not None:
            requests["request_class"] = rows.request_class[chosen]
        if rows.think_s is not None:
            later = before[chosen] >= 0
            requests["think_s"] = rows.think_s[chosen] + way_s
            requests["arrival_s"][later] = np.nan
            requests["follower"][local[before[chosen[later]]]] = np.flatnonzero(later)
        state.lane[r]["requests"] = len(chosen)
    params = Params(config, *packed, objective_records(targets or [Target()]), cost)
    serial = -(-rows.prompt_tokens.astype(np.int64) // min(longest, budget)) + rows.output_tokens
    loop: Any = Loop.blank.copy()
    loop["patience"] = PATIENCE * int(serial.max()) + int(serial.sum())
    outcome: list[int] = []
    steps = tuple(_steps(state, params, loop, rows_of, outcome)) if log else ()
    if (outcome[0] if log else play(state, params, loop)) == FRUITLESS:
        raise NoProgress(
            f"rule={chosen_rule.name!r}: {int(loop['fruitless'][0]):,} steps in turn have finished no request, with "
            f"{int(loop['left'][0])} of {n} unfinished and work thrown away {int(state.lane['preemptions'].sum()):,} times; give "
            f"the cache more than kv_capacity={capacity} tokens, or a rule that does not clear all of it"
        )
    served = state.request[rank, local]
    done = served["e2e_s"] >= 0.0
    arrival_s = served["arrival_s"].copy()
    if not conversations:
        arrival_s[local >= state.lane["sent"][rank]] = np.nan
    lanes = state.lane
    busy_s, batches = float(lanes["busy_s"].sum()), int(lanes["batches"].sum())
    return Replayed(
        arrival_s,
        np.where(done, arrival_s + served["ttft_s"].astype(np.float64) + way_s, np.nan),
        np.where(done, arrival_s + served["e2e_s"].astype(np.float64) + way_s, np.nan),
        rank,
        int(n - done.sum()),
        int(lanes["preemptions"].sum()),
        batches,
        busy_s / batches if batches else np.nan,
        float(lanes["kv_s"].sum()) / busy_s / capacity if busy_s > 0.0 else np.nan,
        float(lanes["kv_peak"].max()) / capacity,
        int(lanes["reused"].sum()),
        steps,
        int(lanes["copied_out"].sum()),
        int(lanes["copied_in"].sum()),
    )
