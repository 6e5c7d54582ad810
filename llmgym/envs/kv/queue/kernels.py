"""The compiled functions of KVQueue: one decision, one batch. See `llmgym.envs.kv.queue.env` for what they mean."""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmgym.core.jit import kernel
from llmgym.core.lanes import Kernels
from llmgym.core.statistics import mean, quantile, ratio
from llmgym.profiles.cost import StepCost
from llmgym.serving import queue
from llmgym.serving.admission import admissible, admit_by_rule, compose
from llmgym.serving.engine import admit, empty, fits_now, follow, held_up_s, plan, run_batch, start
from llmgym.serving.requests import LIMITS, begin, chunks_of, remaining_area, time_per_token
from llmgym.serving.residents import ENGINE, wait
from llmgym.workloads.traffic import Traffic, draw

ADMIT, PICK, WATERMARK, RULE = 0, 1, 2, 3
LATENCY, SLO, STABILITY = 0, 1, 2
SCALARS, HISTOGRAM = 14, 8
BIN_SHIFT = 20
BATCH_WEIGHT = 0.05
"""Weight of the last batch in the moving average of batch times: about the last twenty."""
BACKLOG_UNIT = 0.01
"""The backlog is shown in hundreds of full caches."""
SCALES = ("capacity", "seat", "cap", "horizon", "batch", "prefill", "prompt", "output", "area", "expected")

LANE = np.dtype(
    [
        *ENGINE,
        ("requests", "i4"),  # of this episode
        ("per_request", "f8"),  # 1 / requests: for the return, which nobody sees before the end
        ("next", "i4"),  # number of the next arrival
        ("seen_s", "f8"),  # the scheduler knows who arrived by then
        ("rejected", "i4"),
        ("rule", "i4"),
        ("invalid", "i4"),
        ("decisions", "i4"),
        ("allowed", "i4"),  # requests the coming batch can admit from the front of the line, at most `slots`
        ("picked", "i4"),  # requests picked for the coming batch
        ("in_system_s", "f8"),  # integral of requests in the system: the sum of all their latencies so far
        ("waiting_s", "f8"),  # integral of waiting requests
        ("area_rate", "f8"),  # estimate: predicted tokens x batches that arrive a second
        ("batch_estimate_s", "f8"),
        ("stability", "f8"),
        ("penalty", "f8"),
        ("unstable", "i4"),
        ("checksum", "f8"),
    ],
    align=True,
)

NUMBER = np.dtype(
    [
        *LIMITS,
        ("mode", "i4"),
        ("every", "i4"),  # batches that a decision lasts
        ("ahead", "i4"),  # 1: a batch is planned while the one before it runs
        ("slots", "i4"),  # waiting requests an observation shows, and the largest admission
        ("reward", "i4"),
        ("waiting_cap", "i4"),
        ("longest", "i4"),  # tokens a request may reach
        ("horizon_s", "f8"),
        ("idle_s", "f8"),
        ("batch_ref_s", "f8"),
        ("window_s", "f8"),
        ("drop_cost", "f8"),
        ("invalid_cost", "f8"),
        ("steps_per_bin", "f8"),
        ("bins_per_step", "i8"),  # times 2**BIN_SHIFT
        ("bins_per_token", "i8"),
        # Reciprocals of the scales of an observation: multiplying is several times faster than dividing.
        *((f"per_{name}", "f8") for name in SCALES),
    ],
    align=True,
)

METRICS = (
    "requests",
    "completed",
    "rejected",
    "waiting_end",
    "e2e_mean_s",
    "e2e_p50_s",
    "e2e_p99_s",
    "ttft_mean_s",
    "ttft_p50_s",
    "ttft_p99_s",
    "tpot_mean_s",
    "tpot_p99_s",
    "latency_mean_s",
    "throughput_rps",
    "output_tokens_per_s",
    "goodput_rps",
    "slo_attainment",
    "kv_mean",
    "kv_peak",
    "preemptions",
    "dropped_tokens",
    "dropped_of_capacity",
    "batches",
    "batch_mean_s",
    "duration_s",
    "waiting_mean",
    "invalid_actions",
    "penalty",
    "stability",
    "unstable",
    "world_checksum",
)
"""NaN, with nothing to take it of: `e2e_*` where no request has completed; `ttft_*` where none has a first token; `tpot_*` where
none of the completed has two tokens or more; `latency_mean_s` where every request was rejected; `slo_attainment` where there was
none; rates, and `waiting_mean`, over no time; `kv_mean` and `batch_mean_s` without a batch."""


class State(NamedTuple):
    """Arrays of KVQueue; first axis = lane. See `llmgym.serving.engine`."""

    lane: NDArray[Any]
    resident: NDArray[Any]
    request: NDArray[Any]
    queue: NDArray[np.int32]
    scratch: NDArray[np.int32]


class Params(NamedTuple):
    """What all lanes of KVQueue share."""

    number: NDArray[Any]
    rules: NDArray[Any]
    class_budgets: NDArray[np.int32]
    orders: NDArray[np.int64]
    cost: StepCost
    traffic: Traffic


@kernel
def reset_lane(state: State, params: Params, lane: int, key: np.uint64) -> None:
    """Draw the requests of an episode and wait for the first of them."""
    me = state.lane[lane]
    number = params.number[0]
    start(state, params, lane, key)
    me.rule = 0
    me.next, me.rejected, me.invalid, me.decisions, me.picked, me.unstable = 0, 0, 0, 0, 0, 0
    me.in_system_s, me.waiting_s, me.area_rate, me.stability, me.penalty = 0.0, 0.0, 0.0, 0.0, 0.0
    me.batch_estimate_s = number.batch_ref_s
    requests = state.request[lane]
    count = draw(params.traffic, key, number.horizon_s, requests)
    checksum = 0.0
    for i in range(count):
        asked = requests[i]
        begin(asked, number.longest)
        checksum += asked.arrival_s + asked.prompt + 1e-3 * asked.output
    me.requests = count
    me.per_request = 1.0 / max(count, 1)
    me.checksum = checksum
    if count > 0:
        me.clock_s = requests[0].arrival_s
    me.seen_s = me.clock_s
    _arrive(state, params, lane, 0.0)
    _prepare(state, params, lane)


@kernel(inline=True)
def _prepare(state: State, params: Params, lane: int) -> None:
    """Plan the coming batch and see how many could join it."""
    plan(state, params, lane)
    me = state.lane[lane]
    me.allowed = 0
    if params.number[0].mode == ADMIT and me.waiting > 0:
        me.allowed = admissible(state, params, lane, params.number[0].slots)


@kernel(inline=True)
def _arrive(state: State, params: Params, lane: int, dt: float) -> None:
    """Queue everything that has been seen to arrive and update the estimate of the offered work."""
    me = state.lane[lane]
    area = 0
    if me.next < me.requests and state.request[lane, me.next].arrival_s <= me.seen_s:
        area = _enqueue(state, params, lane)
    if dt > 0.0:
        me.area_rate += (area - dt * me.area_rate) / (dt + params.number[0].window_s)


@kernel(inline=True)
def _enqueue(state: State, params: Params, lane: int) -> int:
    """Queue every request that has been seen to arrive, with the time it has been in the system; returns its predicted area."""
    me = state.lane[lane]
    number = params.number[0]
    area = 0
    while me.next < me.requests and state.request[lane, me.next].arrival_s <= me.seen_s:
        request = me.next
        me.next += 1
        asked = state.request[lane, request]
        if asked.prompt >= number.longest:
            me.rejected += 1
            continue
        since = me.clock_s - asked.arrival_s
        me.in_system_s += since
        me.waiting_s += since
        before = me.waiting_area
        wait(state, params, lane, request)
        area += me.waiting_area - before
    return area


@kernel(inline=True)
def step_lane(
    state: State, params: Params, lane: int, action: NDArray[np.float64]
) -> tuple[float, bool, bool, float]:
    """Carry out one decision; unless it only picks a request, run one batch."""
    me = state.lane[lane]
    number = params.number[0]
    before_s = me.in_system_s
    before_dropped = me.dropped
    before_penalty = me.penalty
    before_met = me.met
    before_stability = me.stability
    start_s = me.clock_s
    me.decisions += 1
    rule, watermark = 0, params.rules[0].watermark
    if number.mode <= PICK:
        chosen = int(action[0])
        position, count = 0, chosen
        if number.mode == PICK:
            position, count = chosen - 1, min(chosen, 1)
            if count == 1:
                fits = position < me.waiting and fits_now(
                    state, params, lane, queue.at(state, lane, 0, position)
                )
                count = 1 if fits else _refuse(state, params, lane)
            elif me.residents == 0 and _one_fits(state, params, lane):
                _refuse(state, params, lane)
        elif count > me.allowed or (count == 0 and me.allowed > 0 and me.residents == 0):
            count = _refuse(state, params, lane)
        for _ in range(count):
            admit(state, params, lane, queue.at(state, lane, 0, position))
        if number.mode == PICK:
            if count == 1:
                me.picked += 1
                return 0.0, False, False, 0.0
            me.picked = 0
    elif number.mode == WATERMARK:
        watermark = action[0]
    else:
        rule = int(action[0])
        watermark = params.rules[rule].watermark
        if rule != me.rule:
            me.rule = rule
            follow(state, params, lane, rule)
    terminated, truncated = False, False
    for _ in range(number.every):
        if number.mode > PICK:
            if me.waiting > 0 and me.blocked == 0:
                admit_by_rule(state, params, lane, rule, watermark)
            if params.rules[rule].batch != 0:
                compose(state, params, lane, params.rules[rule].batch)
        population = me.residents + me.waiting
        queued = me.waiting
        dt = run_batch(state, params, lane)
        if dt == 0.0:
            following_s = state.request[lane, me.next].arrival_s if me.next < me.requests else math.inf
            dt = held_up_s(state, lane, following_s, number.idle_s)
            me.clock_s += dt
            me.seen_s = me.clock_s
            me.stability -= dt * number.per_batch
        else:
            me.batch_estimate_s += BATCH_WEIGHT * (dt - me.batch_estimate_s)
            me.stability += me.batch_used * number.per_capacity - 1.0
            me.seen_s = me.clock_s - dt if number.ahead == 1 else me.clock_s
        me.in_system_s += population * dt
        me.waiting_s += queued * dt
        _arrive(state, params, lane, dt)
        if empty(state, lane) and me.next < me.requests:
            # An empty engine waits for the next arrival and sees it at once.
            since_s = me.clock_s
            me.clock_s = max(me.clock_s, min(state.request[lane, me.next].arrival_s, number.horizon_s))
            me.seen_s = me.clock_s
            _arrive(state, params, lane, me.clock_s - since_s)
        _prepare(state, params, lane)
        terminated = me.done + me.rejected >= me.requests
        if not terminated:
            if me.waiting > number.waiting_cap:
                terminated = True
                me.unstable = 1
                left_s = max(number.horizon_s - me.clock_s, 0.0)
                if number.reward == LATENCY:
                    me.penalty += (me.residents + me.waiting) * left_s * me.per_request
                elif number.reward == STABILITY:
                    me.penalty += left_s * number.per_batch
            else:
                truncated = me.clock_s >= number.horizon_s
        if terminated or truncated:
            break
    reward = before_penalty - me.penalty
    if number.reward == LATENCY:
        reward -= (me.in_system_s - before_s) * me.per_request
        reward -= number.drop_cost * (me.dropped - before_dropped) * number.per_capacity
    elif number.reward == SLO:
        reward += (me.met - before_met) * me.per_request
    else:
        reward += me.stability - before_stability
    return reward, terminated, truncated, me.clock_s - start_s


@kernel
def _one_fits(state: State, params: Params, lane: int) -> bool:
    """Whether any of the requests that an observation shows could be picked."""
    for k in range(min(params.number[0].slots, state.lane[lane].waiting)):
        if fits_now(state, params, lane, queue.at(state, lane, 0, k)):
            return True
    return False


@kernel
def _refuse(state: State, params: Params, lane: int) -> int:
    """A masked action: counted, charged, and nothing is admitted."""
    me = state.lane[lane]
    me.invalid += 1
    me.penalty += params.number[0].invalid_cost
    return 0


@kernel(inline=True)
def observe_lane(state: State, params: Params, lane: int, out: NDArray[np.float32]) -> None:
    """Write the observation: see `layout` in `llmgym.envs.kv.queue.env`."""
    me = state.lane[lane]
    number = params.number[0]
    resident = state.resident[lane]
    remaining = state.scratch[lane, 0]
    held = state.scratch[lane, 1]
    footprint = state.scratch[lane, 2]
    for k in range(HISTOGRAM):
        remaining[k], held[k], footprint[k] = 0, 0, 0
    per_step, per_token = number.bins_per_step, number.bins_per_token
    last = HISTOGRAM - 1
    tick = me.tick
    lag = number.first - number.first_stored
    longest = 1
    backlog = me.waiting_area
    for i in range(me.residents):
        r = resident[i]
        if r.decoding == 1:
            produced = tick - r.base
            start = r.prompt - r.kept - lag
            kv = start + produced
            predicted = max(r.predicted, produced + 1)
            left = predicted - produced
            stays = kv
            backlog += left * start + (left * (predicted + produced + 1)) // 2
        else:
            kv = r.prefilled
            predicted = max(r.predicted, r.kept + 1)
            chunks = chunks_of(number, r.prompt - kv)
            left = predicted - r.kept + chunks
            stays = r.prompt - chunks
            backlog += remaining_area(number, r.prompt, kv, r.kept, r.kept, 0, predicted)
        # Unsigned, so that numba does not ask whether an index counts from the end.
        b = np.uint64(min((left * per_step) >> BIN_SHIFT, last))
        remaining[b] += 1
        held[b] += stays
        footprint[np.uint64(min((kv * per_token) >> BIN_SHIFT, last))] += 1
        longest = max(longest, left)
    peak = 0.0
    alive, stay = 0, 0
    width = number.steps_per_bin
    seat = number.per_seat
    per_capacity = number.per_capacity
    for k in range(HISTOGRAM):
        m = last - k
        alive += remaining[m]
        stay += held[m]
        if remaining[m] > 0:
            peak = max(peak, stay + alive * min((m + 1) * width, float(longest)))
        out[SCALARS + m] = remaining[m] * seat
        out[SCALARS + HISTOGRAM + m] = footprint[m] * seat
    out[0] = me.used * per_capacity
    out[1] = (number.kv_capacity - me.used - me.growth) * per_capacity
    out[2] = min(peak * per_capacity, 4.0)
    out[3] = me.residents * seat
    out[4] = min(me.waiting * number.per_cap, 1.0)
    out[5] = min(backlog * per_capacity * BACKLOG_UNIT, 1.0)
    out[6] = min(me.area_rate * me.batch_estimate_s * per_capacity, 4.0)
    out[7] = min(me.batch_s * number.per_batch, 4.0)
    out[8] = min(me.batch_prefill * number.per_prefill, 1.0)
    out[9] = me.blocked
    out[10] = min(me.preemptions * number.per_expected, 1.0)
    out[11] = min(me.done * number.per_expected, 2.0)
    out[12] = min(me.clock_s * number.per_horizon, 1.0)
    out[13] = me.picked * seat
    at = SCALARS + 2 * HISTOGRAM
    clock_s, window_s = me.clock_s, number.window_s
    per_prompt, per_output, per_area = number.per_prompt, number.per_output, number.per_area
    waiting = me.waiting
    for k in range(number.slots):
        if k < waiting:
            asked = state.request[lane, queue.at(state, lane, 0, k)]
            waited = clock_s - asked.arrival_s
            out[at] = min((asked.prompt + asked.kept) * per_prompt, 1.0)
            out[at + 1] = min(asked.predicted * per_output, 1.0)
            out[at + 2] = waited / (waited + window_s)
            out[at + 3] = min(asked.area * per_area, 1.0)
        else:
            for j in range(4):
                out[at + j] = 0.0
        at += 4


@kernel(inline=True)
def mask_lane(state: State, params: Params, lane: int, out: NDArray[np.int8]) -> None:
    """Write which actions are allowed."""
    me = state.lane[lane]
    number = params.number[0]
    if number.mode == ADMIT:
        least = 1 if me.residents == 0 and me.allowed > 0 else 0
        for k in range(number.slots + 1):
            out[k] = 1 if least <= k <= me.allowed else 0
    elif number.mode == PICK:
        out[0] = 1
        for k in range(number.slots):
            out[k + 1] = 0
            if k < me.waiting and fits_now(state, params, lane, queue.at(state, lane, 0, k)):
                out[k + 1] = 1
                if me.residents == 0:
                    out[0] = 0
    else:
        for k in range(out.shape[0]):
            out[k] = 1


@kernel(allocates=True)
def metrics_lane(state: State, params: Params, lane: int, out: NDArray[np.float64]) -> None:
    """Write the episode's metrics, in the order of `METRICS`; NaN where there is nothing to take them of, see there."""
    me = state.lane[lane]
    number = params.number[0]
    duration = me.clock_s - state.request[lane, 0].arrival_s if me.requests > 0 else 0.0
    e2e = np.empty(me.done, np.float32)
    tpot = np.empty(me.done, np.float32)
    ttft = np.empty(me.next, np.float32)
    finished, started, several = 0, 0, 0
    for i in range(me.next):
        asked = state.request[lane, i]
        first = asked.ttft_s
        last = asked.e2e_s
        if first >= 0.0:
            ttft[started] = first
            started += 1
        if last >= 0.0:
            e2e[finished] = last
            finished += 1
            each = time_per_token(first, last, asked.output)
            if not math.isnan(each):
                tpot[several] = each
                several += 1
    e2e, ttft, tpot = e2e[:finished], ttft[:started], tpot[:several]
    out[0] = me.requests
    out[1] = me.done
    out[2] = me.rejected
    out[3] = me.waiting
    out[4] = mean(e2e)
    out[5] = quantile(e2e, 0.5)
    out[6] = quantile(e2e, 0.99)
    out[7] = mean(ttft)
    out[8] = quantile(ttft, 0.5)
    out[9] = quantile(ttft, 0.99)
    out[10] = mean(tpot)
    out[11] = quantile(tpot, 0.99)
    out[12] = math.nan
    if me.rejected < me.requests:
        out[12] = me.in_system_s / me.requests
    out[13] = ratio(me.done, duration)
    out[14] = ratio(me.decoded, duration)
    out[15] = ratio(me.met, duration)
    out[16] = ratio(me.met, me.requests)
    out[17] = ratio(me.kv_s, me.busy_s) / number.kv_capacity
    out[18] = me.kv_peak / number.kv_capacity
    out[19] = me.preemptions
    out[20] = me.dropped
    out[21] = me.dropped / number.kv_capacity
    out[22] = me.batches
    out[23] = ratio(me.busy_s, me.batches)
    out[24] = duration
    out[25] = ratio(me.waiting_s, duration)
    out[26] = me.invalid
    out[27] = me.penalty
    out[28] = me.stability
    out[29] = me.unstable
    out[30] = me.checksum


KERNELS = Kernels(reset_lane, step_lane, observe_lane, mask_lane, metrics_lane)
