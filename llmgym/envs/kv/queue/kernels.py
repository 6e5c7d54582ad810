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

    config: NDArray[Any]
    rules: NDArray[Any]
    class_budgets: NDArray[np.int32]
    orders: NDArray[np.int64]
    cost: StepCost
    traffic: Traffic


@kernel
def reset_lane(state: State, params: Params, lane: int, key: np.uint64) -> None:
    """Draw the requests of an episode and wait for the first of them."""
    episode = state.lane[lane]
    config = params.config[0]
    start(state, params, lane, key)
    episode.rule = 0
    episode.next, episode.rejected, episode.invalid, episode.decisions, episode.picked, episode.unstable = (
        0,
        0,
        0,
        0,
        0,
        0,
    )
    episode.in_system_s, episode.waiting_s, episode.area_rate, episode.stability, episode.penalty = (
        0.0,
        0.0,
        0.0,
        0.0,
        0.0,
    )
    episode.batch_estimate_s = config.batch_ref_s
    requests = state.request[lane]
    count = draw(params.traffic, key, config.horizon_s, requests)
    checksum = 0.0
    for i in range(count):
        asked = requests[i]
        begin(asked, config.longest)
        checksum += asked.arrival_s + asked.prompt + 1e-3 * asked.output
    episode.requests = count
    episode.per_request = 1.0 / max(count, 1)
    episode.checksum = checksum
    if count > 0:
        episode.clock_s = requests[0].arrival_s
    episode.seen_s = episode.clock_s
    _arrive(state, params, lane, 0.0)
    _prepare(state, params, lane)


@kernel(inline=True)
def _prepare(state: State, params: Params, lane: int) -> None:
    """Plan the coming batch and see how many could join it."""
    plan(state, params, lane)
    episode = state.lane[lane]
    episode.allowed = 0
    if params.config[0].mode == ADMIT and episode.waiting > 0:
        episode.allowed = admissible(state, params, lane, params.config[0].slots)


@kernel(inline=True)
def _arrive(state: State, params: Params, lane: int, dt: float) -> None:
    """Queue everything that has been seen to arrive and update the estimate of the offered work."""
    episode = state.lane[lane]
    area = 0
    if episode.next < episode.requests and state.request[lane, episode.next].arrival_s <= episode.seen_s:
        area = _enqueue(state, params, lane)
    if dt > 0.0:
        episode.area_rate += (area - dt * episode.area_rate) / (dt + params.config[0].window_s)


@kernel(inline=True)
def _enqueue(state: State, params: Params, lane: int) -> int:
    """Queue every request that has been seen to arrive, with the time it has been in the system; returns its predicted area."""
    episode = state.lane[lane]
    config = params.config[0]
    area = 0
    while episode.next < episode.requests and state.request[lane, episode.next].arrival_s <= episode.seen_s:
        request = episode.next
        episode.next += 1
        asked = state.request[lane, request]
        if asked.prompt >= config.longest:
            episode.rejected += 1
            continue
        since = episode.clock_s - asked.arrival_s
        episode.in_system_s += since
        episode.waiting_s += since
        before = episode.waiting_area
        wait(state, params, lane, request)
        area += episode.waiting_area - before
    return area


@kernel(inline=True)
def step_lane(
    state: State, params: Params, lane: int, action: NDArray[np.float64]
) -> tuple[float, bool, bool, float]:
    """Carry out one decision; unless it only picks a request, run one batch."""
    episode = state.lane[lane]
    config = params.config[0]
    before_s = episode.in_system_s
    before_dropped = episode.dropped
    before_penalty = episode.penalty
    before_met = episode.met
    before_stability = episode.stability
    start_s = episode.clock_s
    episode.decisions += 1
    rule, watermark = 0, params.rules[0].watermark
    if config.mode <= PICK:
        chosen = int(action[0])
        position, count = 0, chosen
        if config.mode == PICK:
            position, count = chosen - 1, min(chosen, 1)
            if count == 1:
                fits = position < episode.waiting and fits_now(
                    state, params, lane, queue.at(state, lane, 0, position)
                )
                count = 1 if fits else _refuse(state, params, lane)
            elif episode.residents == 0 and _one_fits(state, params, lane):
                _refuse(state, params, lane)
        elif count > episode.allowed or (count == 0 and episode.allowed > 0 and episode.residents == 0):
            count = _refuse(state, params, lane)
        for _ in range(count):
            admit(state, params, lane, queue.at(state, lane, 0, position))
        if config.mode == PICK:
            if count == 1:
                episode.picked += 1
                return 0.0, False, False, 0.0
            episode.picked = 0
    elif config.mode == WATERMARK:
        watermark = action[0]
    else:
        rule = int(action[0])
        watermark = params.rules[rule].watermark
        if rule != episode.rule:
            episode.rule = rule
            follow(state, params, lane, rule)
    terminated, truncated = False, False
    for _ in range(config.every):
        if config.mode > PICK:
            if episode.waiting > 0 and episode.blocked == 0:
                admit_by_rule(state, params, lane, rule, watermark)
            if params.rules[rule].batch != 0:
                compose(state, params, lane, params.rules[rule].batch)
        population = episode.residents + episode.waiting
        queued = episode.waiting
        dt = run_batch(state, params, lane)
        if dt == 0.0:
            following_s = (
                state.request[lane, episode.next].arrival_s if episode.next < episode.requests else math.inf
            )
            dt = held_up_s(state, lane, following_s, config.idle_s)
            episode.clock_s += dt
            episode.seen_s = episode.clock_s
            episode.stability -= dt * config.per_batch
        else:
            episode.batch_estimate_s += BATCH_WEIGHT * (dt - episode.batch_estimate_s)
            episode.stability += episode.batch_used * config.per_capacity - 1.0
            episode.seen_s = episode.clock_s - dt if config.ahead == 1 else episode.clock_s
        episode.in_system_s += population * dt
        episode.waiting_s += queued * dt
        _arrive(state, params, lane, dt)
        if empty(state, lane) and episode.next < episode.requests:
            # An empty engine waits for the next arrival and sees it at once.
            since_s = episode.clock_s
            episode.clock_s = max(
                episode.clock_s, min(state.request[lane, episode.next].arrival_s, config.horizon_s)
            )
            episode.seen_s = episode.clock_s
            _arrive(state, params, lane, episode.clock_s - since_s)
        _prepare(state, params, lane)
        terminated = episode.done + episode.rejected >= episode.requests
        if not terminated:
            if episode.waiting > config.waiting_cap:
                terminated = True
                episode.unstable = 1
                left_s = max(config.horizon_s - episode.clock_s, 0.0)
                if config.reward == LATENCY:
                    episode.penalty += (episode.residents + episode.waiting) * left_s * episode.per_request
                elif config.reward == STABILITY:
                    episode.penalty += left_s * config.per_batch
            else:
                truncated = episode.clock_s >= config.horizon_s
        if terminated or truncated:
            break
    reward = before_penalty - episode.penalty
    if config.reward == LATENCY:
        reward -= (episode.in_system_s - before_s) * episode.per_request
        reward -= config.drop_cost * (episode.dropped - before_dropped) * config.per_capacity
    elif config.reward == SLO:
        reward += (episode.met - before_met) * episode.per_request
    else:
        reward += episode.stability - before_stability
    return reward, terminated, truncated, episode.clock_s - start_s


@kernel
def _one_fits(state: State, params: Params, lane: int) -> bool:
    """Whether any of the requests that an observation shows could be picked."""
    for k in range(min(params.config[0].slots, state.lane[lane].waiting)):
        if fits_now(state, params, lane, queue.at(state, lane, 0, k)):
            return True
    return False


@kernel
def _refuse(state: State, params: Params, lane: int) -> int:
    """A masked action: counted, charged, and nothing is admitted."""
    episode = state.lane[lane]
    episode.invalid += 1
    episode.penalty += params.config[0].invalid_cost
    return 0


@kernel(inline=True)
def observe_lane(state: State, params: Params, lane: int, out: NDArray[np.float32]) -> None:
    """Write the observation: see `layout` in `llmgym.envs.kv.queue.env`."""
    episode = state.lane[lane]
    config = params.config[0]
    resident = state.resident[lane]
    remaining = state.scratch[lane, 0]
    held = state.scratch[lane, 1]
    footprint = state.scratch[lane, 2]
    for k in range(HISTOGRAM):
        remaining[k], held[k], footprint[k] = 0, 0, 0
    per_step, per_token = config.bins_per_step, config.bins_per_token
    last = HISTOGRAM - 1
    tick = episode.tick
    lag = config.first - config.first_stored
    longest = 1
    backlog = episode.waiting_area
    for i in range(episode.residents):
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
            chunks = chunks_of(config, r.prompt - kv)
            left = predicted - r.kept + chunks
            stays = r.prompt - chunks
            backlog += remaining_area(config, r.prompt, kv, r.kept, r.kept, 0, predicted)
        # Unsigned, so that numba does not ask whether an index counts from the end.
        b = np.uint64(min((left * per_step) >> BIN_SHIFT, last))
        remaining[b] += 1
        held[b] += stays
        footprint[np.uint64(min((kv * per_token) >> BIN_SHIFT, last))] += 1
        longest = max(longest, left)
    peak = 0.0
    alive, stay = 0, 0
    width = config.steps_per_bin
    seat = config.per_seat
    per_capacity = config.per_capacity
    for k in range(HISTOGRAM):
        m = last - k
        alive += remaining[m]
        stay += held[m]
        if remaining[m] > 0:
            peak = max(peak, stay + alive * min((m + 1) * width, float(longest)))
        out[SCALARS + m] = remaining[m] * seat
        out[SCALARS + HISTOGRAM + m] = footprint[m] * seat
    out[0] = episode.used * per_capacity
    out[1] = (config.kv_capacity - episode.used - episode.growth) * per_capacity
    out[2] = min(peak * per_capacity, 4.0)
    out[3] = episode.residents * seat
    out[4] = min(episode.waiting * config.per_cap, 1.0)
    out[5] = min(backlog * per_capacity * BACKLOG_UNIT, 1.0)
    out[6] = min(episode.area_rate * episode.batch_estimate_s * per_capacity, 4.0)
    out[7] = min(episode.batch_s * config.per_batch, 4.0)
    out[8] = min(episode.batch_prefill * config.per_prefill, 1.0)
    out[9] = episode.blocked
    out[10] = min(episode.preemptions * config.per_expected, 1.0)
    out[11] = min(episode.done * config.per_expected, 2.0)
    out[12] = min(episode.clock_s * config.per_horizon, 1.0)
    out[13] = episode.picked * seat
    at = SCALARS + 2 * HISTOGRAM
    clock_s, window_s = episode.clock_s, config.window_s
    per_prompt, per_output, per_area = config.per_prompt, config.per_output, config.per_area
    waiting = episode.waiting
    for k in range(config.slots):
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
    episode = state.lane[lane]
    config = params.config[0]
    if config.mode == ADMIT:
        least = 1 if episode.residents == 0 and episode.allowed > 0 else 0
        for k in range(config.slots + 1):
            out[k] = 1 if least <= k <= episode.allowed else 0
    elif config.mode == PICK:
        out[0] = 1
        for k in range(config.slots):
            out[k + 1] = 0
            if k < episode.waiting and fits_now(state, params, lane, queue.at(state, lane, 0, k)):
                out[k + 1] = 1
                if episode.residents == 0:
                    out[0] = 0
    else:
        for k in range(out.shape[0]):
            out[k] = 1


@kernel(allocates=True)
def metrics_lane(state: State, params: Params, lane: int, out: NDArray[np.float64]) -> None:
    """Write the episode's metrics, in the order of `METRICS`; NaN where there is nothing to take them of, see there."""
    episode = state.lane[lane]
    config = params.config[0]
    duration = episode.clock_s - state.request[lane, 0].arrival_s if episode.requests > 0 else 0.0
    e2e = np.empty(episode.done, np.float32)
    tpot = np.empty(episode.done, np.float32)
    ttft = np.empty(episode.next, np.float32)
    finished, started, several = 0, 0, 0
    for i in range(episode.next):
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
    out[0] = episode.requests
    out[1] = episode.done
    out[2] = episode.rejected
    out[3] = episode.waiting
    out[4] = mean(e2e)
    out[5] = quantile(e2e, 0.5)
    out[6] = quantile(e2e, 0.99)
    out[7] = mean(ttft)
    out[8] = quantile(ttft, 0.5)
    out[9] = quantile(ttft, 0.99)
    out[10] = mean(tpot)
    out[11] = quantile(tpot, 0.99)
    out[12] = math.nan
    if episode.rejected < episode.requests:
        out[12] = episode.in_system_s / episode.requests
    out[13] = ratio(episode.done, duration)
    out[14] = ratio(episode.decoded, duration)
    out[15] = ratio(episode.met, duration)
    out[16] = ratio(episode.met, episode.requests)
    out[17] = ratio(episode.kv_s, episode.busy_s) / config.kv_capacity
    out[18] = episode.kv_peak / config.kv_capacity
    out[19] = episode.preemptions
    out[20] = episode.dropped
    out[21] = episode.dropped / config.kv_capacity
    out[22] = episode.batches
    out[23] = ratio(episode.busy_s, episode.batches)
    out[24] = duration
    out[25] = ratio(episode.waiting_s, duration)
    out[26] = episode.invalid
    out[27] = episode.penalty
    out[28] = episode.stability
    out[29] = episode.unstable
    out[30] = episode.checksum


KERNELS = Kernels(reset_lane, step_lane, observe_lane, mask_lane, metrics_lane)
