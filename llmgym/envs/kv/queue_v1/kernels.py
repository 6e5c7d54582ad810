"""The compiled functions of KVQueue-v1: a choice among candidates, and the batches up to the next choice.

What they mean is in `llmgym.envs.kv.queue_v1.env`; the arguments of those in `KERNELS` are in `llmgym.core.lanes.Kernels`.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmgym.core.jit import kernel
from llmgym.core.lanes import Kernels
from llmgym.core.statistics import quantile, ratio
from llmgym.envs.kv.queue.kernels import metrics_lane as v0_metrics_lane
from llmgym.envs.kv.queue.kernels import observe_engine, take_times
from llmgym.envs.kv.queue.state import E2E_S
from llmgym.envs.kv.queue_v1.arrivals import begin_episode, run_once
from llmgym.envs.kv.queue_v1.state import (
    LATENCY,
    NOBODY,
    PER_RUNNING,
    PER_WAITING,
    PICK,
    Episode,
    Metrics,
    Observation,
    Params,
    State,
)
from llmgym.serving import queue
from llmgym.serving.admission import admit_by_rule, compose, fits_whole
from llmgym.serving.engine import admit, follow, plan
from llmgym.serving.overflow import CHOSEN, evict
from llmgym.serving.prefix import look_up
from llmgym.serving.residents import kv_of, output_so_far
from llmgym.serving.rules import AS_ADMITTED

EMPTY = Episode.blank
metrics_of_engine: Any = v0_metrics_lane
MOST_BATCHES = 2**16
"""Batches after which a decision ends even if there is nothing to choose: one compiled call, in which Python sees no signal."""


@kernel
def reset_lane(state: State, params: Params, lane: int, key: np.uint64) -> None:
    """Draw the requests of an episode, wait for the first of them, and run to the first choice."""
    state.lane[lane] = EMPTY[0]
    begin_episode(state, params, lane, key)
    if params.config[0].mode == PICK:
        state.lane[lane].victim = CHOSEN
    plan(state, params, lane)
    _list_candidates(state, params, lane)


@kernel
def _list_candidates(state: State, params: Params, lane: int) -> None:
    """Write who could be chosen now, and which of them an action may choose."""
    episode = state.lane[lane]
    config = params.config[0]
    candidate, allowed = state.candidate[lane], state.allowed[lane]
    slots, lists = config.visible, config.lists
    each = slots // lists
    episode.choices = 0
    for k in range(slots):
        candidate[k], allowed[k] = NOBODY, 0
        position = k % each
        if position >= episode.waiting:
            continue
        number = queue.at(state, lane, k // each, position)
        for j in range(k - position):
            if candidate[j] == number:
                number = NOBODY
                break
        if number == NOBODY:
            continue
        candidate[k] = number
        if episode.short == 0 and fits_whole(state, params, lane, number):
            allowed[k] = 1
            episode.choices += 1
    for k in range(slots, slots + config.running):
        # also those that have completed and are held: nobody who plans ahead can tell them from the others
        i = episode.residents - 1 - (k - slots)
        candidate[k], allowed[k] = max(i, NOBODY), 0
        if i < 0:
            continue
        if episode.short == 1:
            allowed[k] = 1
            episode.choices += 1
        elif config.prefix == 1 and state.resident[lane, i].forget == 0:
            allowed[k] = 1


@kernel(inline=True)
def step_lane(
    state: State, params: Params, lane: int, action: NDArray[np.float64]
) -> tuple[float, bool, bool, float]:
    """Carry out one decision, and run batches until there is something to choose again."""
    episode = state.lane[lane]
    config = params.config[0]
    before_s, before_penalty, before_charged = episode.in_system_s, episode.penalty, episode.charged
    before_met = episode.met_weight
    start_s = episode.clock_s
    episode.decisions += 1
    terminated, truncated = False, False
    runs = True
    rule = 0
    if config.mode == PICK:
        runs = _choose(state, params, lane, int(action[0]))
    else:
        rule = int(action[0])
        if rule != episode.rule:
            episode.rule = rule
            follow(state, params, lane, rule)
    if runs:
        most = MOST_BATCHES if config.mode == PICK else config.every
        for _ in range(most):
            if config.mode != PICK:
                if episode.waiting > 0 and episode.blocked == 0:
                    admit_by_rule(state, params, lane, rule, params.rules[rule].watermark)
                if params.rules[rule].batch != AS_ADMITTED:
                    compose(state, params, lane, params.rules[rule].batch)
            run_once(state, params, lane)
            episode.charged = config.late_cost * episode.late * episode.per_request
            plan(state, params, lane)
            terminated = episode.done + episode.rejected >= episode.requests
            if not terminated:
                if episode.waiting > config.waiting_cap:
                    terminated = True
                    episode.unstable = 1
                else:
                    truncated = episode.clock_s >= config.horizon_s
                if terminated or truncated:
                    _charge_the_rest(state, params, lane, terminated)
            if terminated or truncated:
                break
            if config.mode == PICK:
                _list_candidates(state, params, lane)
                if episode.choices > 0:
                    break
        if terminated or truncated or config.mode != PICK:
            _list_candidates(state, params, lane)
    reward = before_penalty - episode.penalty
    if config.reward == LATENCY:
        reward -= (episode.in_system_s - before_s) * episode.per_request
        reward -= episode.charged - before_charged
    elif episode.weight > 0.0:
        reward += (episode.met_weight - before_met) / episode.weight
    return reward, terminated, truncated, episode.clock_s - start_s


@kernel
def _charge_the_rest(state: State, params: Params, lane: int, unstable: bool) -> None:
    """An episode that ends with requests in the system: they are late, and in an unstable one stay until the horizon."""
    episode = state.lane[lane]
    config = params.config[0]
    left = episode.residents - episode.leaving + episode.waiting
    episode.late += left
    episode.charged = config.late_cost * episode.late * episode.per_request
    if unstable and config.reward == LATENCY:
        episode.in_system_s += left * max(config.horizon_s - episode.clock_s, 0.0)


@kernel
def _choose(state: State, params: Params, lane: int, chosen: int) -> bool:
    """Carry out a choice; returns whether batches run before the next one."""
    episode = state.lane[lane]
    config = params.config[0]
    slots = config.visible
    row = chosen - 1
    may = chosen > 0 and state.allowed[lane, row] == 1
    if episode.short == 1:
        if not may:
            _refuse(state, params, lane)
            row = slots
        evict(state, params, lane, state.candidate[lane, row], True)
        plan(state, params, lane)
        if episode.short == 0:
            episode.blocked = 1
            return True
        _list_candidates(state, params, lane)
        return False
    if chosen == 0:
        if episode.residents == 0 and episode.choices > 0:
            _refuse(state, params, lane)
        episode.picked = 0
        return True
    if not may:
        _refuse(state, params, lane)
        episode.picked = 0
        return True
    if row >= slots:
        state.resident[lane, state.candidate[lane, row]].forget = 1
        _list_candidates(state, params, lane)
        return False
    if config.prefix == 1:
        look_up(state, params, lane, state.candidate[lane, row])
    admit(state, params, lane, state.candidate[lane, row])
    episode.picked += 1
    _list_candidates(state, params, lane)
    if episode.choices > 0 or config.prefix == 1:
        return False
    episode.picked = 0
    return True


@kernel
def _refuse(state: State, params: Params, lane: int) -> None:
    """A masked action: counted and charged."""
    episode = state.lane[lane]
    episode.invalid += 1
    episode.penalty += params.config[0].invalid_cost


@kernel(inline=True)
def observe_lane(
    state: State, params: Params, lane: int, out: Observation, rest: NDArray[np.float32]
) -> None:
    """Write the observation; `rest` tells the candidates, row by row."""
    observe_engine(state, params, lane, out)
    episode = state.lane[lane]
    config = params.config[0]
    out.short = episode.short
    out.free = max(out.free, 0.0)  # a plan that does not fit
    out.late = min(episode.late * config.per_expected, 2.0)
    needed = episode.prefilled + episode.reused
    out.reused = episode.reused / needed if needed > 0 else 0.0
    for i in range(rest.shape[0]):
        rest[i] = 0.0
    slots = config.visible
    i = 0
    for k in range(slots):
        number = state.candidate[lane, k]
        if number != NOBODY:
            request = state.request[lane, number]
            waited = episode.clock_s - request.arrival_s
            promised = params.objectives[request.request_class]
            rest[i] = 1.0
            rest[i + 1] = min((request.prompt + request.kept) * config.per_prompt, 1.0)
            rest[i + 2] = min(request.predicted * config.per_output, 1.0)
            rest[i + 3] = waited / (waited + config.window_s)
            rest[i + 4] = min(request.area * config.per_area, 1.0)
            rest[i + 5] = min(request.kept * config.per_output, 1.0)
            rest[i + 6] = request.request_class * config.per_class
            if request.ttft_s < 0.0:
                rest[i + 7] = _left(waited, promised.ttft_s)
            rest[i + 8] = _left(waited, promised.e2e_s)
            if config.prefix == 1:
                look_up(state, params, lane, number)
                rest[i + 9] = episode.found / (request.prompt + request.kept)
            rest[i + 10] = state.allowed[lane, k]
        i += PER_WAITING
    for k in range(slots, slots + config.running):
        index = state.candidate[lane, k]
        if index != NOBODY:
            resident = state.resident[lane, index]
            request = state.request[lane, resident.request]
            waited = episode.clock_s - request.arrival_s
            produced = output_so_far(episode.tick, resident)
            rest[i] = 1.0
            rest[i + 1] = kv_of(config, episode.tick, resident) * config.per_capacity
            rest[i + 2] = min(produced * config.per_output, 1.0)
            rest[i + 3] = min(max(resident.predicted - produced, 1) * config.per_output, 1.0)
            rest[i + 4] = min((resident.prompt - resident.prefilled) * config.per_prompt, 1.0)
            rest[i + 5] = waited / (waited + config.window_s)
            rest[i + 6] = request.request_class * config.per_class
            rest[i + 7] = _left(waited, params.objectives[request.request_class].e2e_s)
            rest[i + 8] = resident.forget
        i += PER_RUNNING


@kernel(inline=True)
def _left(waited_s: float, promised_s: float) -> float:
    """What is left of a promised time, as a share of it, -1 at least; 0 where nothing is promised."""
    return max((promised_s - waited_s) / promised_s, -1.0) if promised_s < math.inf else 0.0


@kernel(inline=True)
def mask_lane(state: State, params: Params, lane: int, out: NDArray[np.int8]) -> None:
    """Write which actions are allowed."""
    episode = state.lane[lane]
    if params.config[0].mode != PICK:
        for k in range(out.shape[0]):
            out[k] = 1
        return
    nothing_runs = episode.residents == 0 and episode.choices > 0
    out[0] = 0 if episode.short == 1 or nothing_runs else 1
    for k in range(out.shape[0] - 1):
        out[k + 1] = state.allowed[lane, k]


@kernel
def metrics_lane(state: State, params: Params, lane: int, out: Metrics) -> None:
    """Write the metrics of the episode so far; NaN where there is nothing to take one of."""
    metrics_of_engine(state, params, lane, out)
    episode = state.lane[lane]
    out.e2e_p90_s = quantile(state.times[lane, : take_times(state, lane, E2E_S)], 0.9)
    out.late = ratio(episode.late, episode.requests)
    out.goodput = ratio(episode.met_weight, episode.weight)
    out.reused = ratio(episode.reused, episode.prefilled + episode.reused)


KERNELS = Kernels(reset_lane, step_lane, observe_lane, mask_lane, metrics_lane)
