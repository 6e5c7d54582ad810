"""The compiled functions of DistillProgramme: take a decision, go on until a GPU is free. See `llmgym.envs.distill.env`."""

import numpy as np
from numpy.typing import NDArray

from llmgym.core.jit import kernel
from llmgym.core.lanes import Kernels
from llmgym.core.statistics import ratio
from llmgym.envs.distill.jobs import begin, free_gpu, next_event_h, over, overdraft_kwh, run_until, settle
from llmgym.envs.distill.observing import allowed, decoded, observe_lane, rows
from llmgym.envs.distill.state import MAKES, TRAINS, Metrics, Params, State
from llmgym.envs.distill.world import reset_world

SECONDS = 3600.0
J_PER_KWH = 3.6e6


@kernel
def reset_lane(state: State, params: Params, lane: int, key: np.uint64) -> None:
    """Draw the world of an episode; the known students are ordered.

    Args:
        state: arrays of all lanes, written to.
        params: what all lanes share.
        lane: the lane that begins anew.
        key: seeds everything that is drawn in the episode.
    """
    reset_world(state, params, lane, key)
    settle(state, params, lane)


@kernel
def _wait(state: State, params: Params, lane: int) -> None:
    """Go on to the next event, or, while students wait and a GPU is free, at most as long as the scenario says."""
    until_h = next_event_h(state, params, lane)
    if state.slot[lane, 0] >= 0 and free_gpu(state, params, lane) >= 0:
        until_h = min(until_h, state.lane[lane].clock_h + params.config[0].wait_h)
    run_until(state, params, lane, until_h)
    settle(state, params, lane)


@kernel
def step_lane(
    state: State, params: Params, lane: int, action: NDArray[np.float64]
) -> tuple[float, bool, bool, float]:
    """Start a student, make an artefact or wait; time goes on until a GPU is free.

    Args:
        state: arrays of all lanes, written to.
        params: what all lanes share.
        lane: the lane that decides.
        action: float64 [1], the row of a candidate; the last one waits.

    Returns:
        Reward, whether the episode has ended, False, as none is cut, and the seconds that have passed.
    """
    episode, config = state.lane[lane], params.config[0]
    row, waiting = int(action[0]), rows(params) - 1
    penalty = 0.0
    if not allowed(state, params, lane, row):
        episode.invalid += 1
        penalty = config.invalid_cost
        row = waiting
    elif row == waiting:
        episode.waits += 1
    start_h, value, energy = episode.clock_h, episode.value, episode.energy_kwh
    co2, overdraft = episode.co2_kg, overdraft_kwh(episode, config)
    if row == waiting:
        _wait(state, params, lane)
    else:
        slot, which, cap = decoded(params, row)
        if slot >= 0:
            begin(state, params, lane, TRAINS, state.slot[lane, slot], which, cap)
        else:
            begin(state, params, lane, MAKES, which, 0, cap)
        settle(state, params, lane)
    while not over(state, params, lane) and free_gpu(state, params, lane) < 0:
        run_until(state, params, lane, next_event_h(state, params, lane))
        settle(state, params, lane)
    episode.penalty += penalty
    reward = episode.value - value - config.energy_weight * (episode.energy_kwh - energy)
    reward -= config.carbon_weight * (episode.co2_kg - co2)
    reward -= config.over_weight * (overdraft_kwh(episode, config) - overdraft) + penalty
    return reward, over(state, params, lane), False, SECONDS * (episode.clock_h - start_h)


@kernel
def mask_lane(state: State, params: Params, lane: int, out: NDArray[np.int8]) -> None:
    """Write what is allowed: what a free GPU can do now, and waiting.

    Args:
        state: arrays of all lanes.
        params: what all lanes share.
        lane: the lane that decides.
        out: 1 for each allowed candidate, else 0, written, int8 [candidates].
    """
    for row in range(out.shape[0]):
        out[row] = 1 if allowed(state, params, lane, row) else 0


@kernel
def metrics_lane(state: State, params: Params, lane: int, out: Metrics) -> None:
    """Write the metrics of the episode so far.

    Args:
        state: arrays of all lanes.
        params: what all lanes share.
        lane: the lane that is measured.
        out: the metrics, written.
    """
    episode, config = state.lane[lane], params.config[0]
    overdraft = overdraft_kwh(episode, config)
    priced = config.energy_weight * episode.energy_kwh + config.carbon_weight * episode.co2_kg
    started = 0
    for i in range(episode.arrived):
        started += state.student[lane, i].pipeline >= 0
    out.net_value = episode.value - priced - config.over_weight * overdraft
    out.value_share = ratio(episode.value, episode.offered)
    out.met_share = ratio(episode.met, episode.arrived)
    out.energy_kwh = episode.energy_kwh
    out.energy_per_met_kwh = ratio(episode.energy_kwh, episode.met)
    out.co2_kg = episode.co2_kg
    out.co2_g_per_kwh = ratio(1000.0 * episode.co2_kg, episode.energy_kwh)
    out.over_budget_kwh = overdraft
    out.teacher_kwh = episode.teacher_kwh
    out.idle_kwh = episode.idle_kwh
    out.artefacts = episode.made
    out.reuse_mean = ratio(episode.distilled, episode.made)
    out.distilled_share = ratio(episode.distilled, started)
    out.capped_share = ratio(episode.capped, episode.jobs)
    out.quality_mean = ratio(episode.quality, episode.done)
    out.gpu_utilization = ratio(episode.busy_h, config.gpus * episode.clock_h)
    out.value = episode.value
    out.students = episode.arrived
    out.completed = episode.done
    out.late = episode.late
    out.below_floor = episode.below
    out.dropped = episode.dropped
    out.waits = episode.waits
    out.penalty = episode.penalty
    out.invalid_actions = episode.invalid
    out.energy_j = J_PER_KWH * episode.energy_kwh
    out.duration_s = SECONDS * episode.clock_h
    out.world_checksum = episode.checksum


KERNELS = Kernels(reset_lane, step_lane, observe_lane, mask_lane, metrics_lane)
