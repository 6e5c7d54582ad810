"""The compiled functions of MemPlace: draw a request, cost its placement. See `llmgym.envs.memory.place.env`."""

import math

import numpy as np
from numpy.typing import NDArray

from llmgym.core.jit import kernel
from llmgym.core.lanes import Kernels
from llmgym.core.rng import normal, substream, uniform
from llmgym.core.statistics import ratio
from llmgym.envs.memory.costs import drawn
from llmgym.envs.memory.law import FPGA, GPU
from llmgym.envs.memory.observing import observe_request, scaled_intensity, squash
from llmgym.envs.memory.place.state import (
    BYTES_OCTAVES,
    LINK_OCTAVES,
    TIME_DECADES,
    TIME_OFFSET,
    Episode,
    Metrics,
    Observation,
    Params,
    State,
)
from llmgym.envs.memory.placement import PLACEMENTS, allowed, place

CELLS, SPEEDS, ERRORS = 0, 1, 2
"""Sub-streams of the key of an episode."""
GPU_ALONE = 0
"""The placement with every stage on the GPU."""
EMPTY = Episode.blank


@kernel
def reset_lane(state: State, params: Params, lane: int, key: np.uint64) -> None:
    """Begin an episode: nothing is placed yet, and the first request is there.

    Args:
        state: arrays of all lanes.
        params: shared by all lanes.
        lane: number of the lane.
        key: seeds everything that is drawn in the episode, uint64.
    """
    state.lane[lane] = EMPTY[0]
    state.lane[lane].key = key
    for k in range(params.config[0].requests):
        state.history[lane, k].placed = 0.0
    _draw(state, params, lane)


@kernel
def _draw(state: State, params: Params, lane: int) -> None:
    """Draw the next request, the link that it meets, and how far its predicted times are off."""
    episode = state.lane[lane]
    config = params.config[0]
    episode.cell = drawn(params.running, uniform(substream(episode.key, CELLS), episode.request))
    octaves = config.link_low + (config.link_high - config.link_low) * uniform(
        substream(episode.key, SPEEDS), episode.request
    )
    episode.scale = 2.0**octaves
    errors = substream(episode.key, ERRORS)
    for device in range(2):
        for stage in range(4):
            error = 1.0
            if config.noise > 0.0:
                error = math.exp(config.noise * normal(errors, 8 * episode.request + 4 * device + stage))
            state.error[lane, device, stage] = error
            episode.checksum += error
    episode.checksum += episode.cell + octaves


@kernel
def _cost(state: State, params: Params, lane: int, placement: int) -> tuple[float, float, float, float]:
    """Seconds, seconds of these for copies, joules and bytes of a placement of the present request."""
    episode = state.lane[lane]
    return place(params.cells[episode.cell], params.links, episode.scale, placement, state.error[lane])


@kernel
def step_lane(
    state: State, params: Params, lane: int, action: NDArray[np.float64]
) -> tuple[float, bool, bool, float]:
    """Place the request; the next one comes.

    Args:
        state: arrays of all lanes.
        params: shared by all lanes.
        lane: number of the lane.
        action: float64 [1], number of the placement; one that is not allowed runs on the GPU alone.

    Returns:
        Reward, whether the episode is over, whether it is cut, and the time that passed, seconds.
    """
    episode = state.lane[lane]
    config = params.config[0]
    cell = params.cells[episode.cell]
    placement, penalty = int(action[0]), 0.0
    if not allowed(cell, placement):
        episode.invalid += 1
        penalty = config.invalid_cost
        placement = GPU_ALONE
    alone_s, _, alone_j, _ = _cost(state, params, lane, GPU_ALONE)
    best, best_reward, reward, speedup, saving, spent_s = GPU_ALONE, 0.0, 0.0, 0.0, 0.0, 0.0
    for other in range(PLACEMENTS):
        if allowed(cell, other):
            time_s, copying_s, energy_j, copied_bytes = _cost(state, params, lane, other)
            faster, cheaper = math.log(alone_s / time_s), math.log(alone_j / energy_j)
            worth = faster + config.energy_weight * cheaper
            if worth > best_reward:
                best, best_reward = other, worth
            if other == placement:
                reward, speedup, saving, spent_s = worth, faster, cheaper, time_s
                episode.copying_s += copying_s
                episode.energy_j += energy_j
                episode.copied_bytes += copied_bytes
    episode.clock_s += spent_s
    episode.log_speedup += speedup
    episode.log_saving += saving
    episode.regret += best_reward - reward
    episode.penalty += penalty
    episode.optimal += 1 if reward >= best_reward else 0
    episode.offloaded += 1 if placement != GPU_ALONE else 0
    episode.placement, episode.best = placement, best
    past = state.history[lane, episode.request]
    past.log_speedup, past.regret, past.placed = speedup, best_reward - reward, 1.0
    episode.request += 1
    ended = episode.request >= config.requests
    if not ended:
        _draw(state, params, lane)
    return reward - penalty, ended, False, spent_s


@kernel
def observe_lane(
    state: State, params: Params, lane: int, out: Observation, rest: NDArray[np.float32]
) -> None:
    """Write the observation.

    Args:
        state: arrays of all lanes.
        params: shared by all lanes.
        lane: number of the lane.
        out: the record of the observation, written.
        rest: float32 [0], not used: the record is the whole observation.
    """
    episode = state.lane[lane]
    cell = params.cells[episode.cell]
    observe_request(cell, out)
    out.time = min(max((math.log10(cell.gpu_s) + TIME_OFFSET) / TIME_DECADES, 0.0), 1.0)
    out.fused = squash(cell.fused_s / cell.gpu_s)
    out.link = math.log2(episode.scale) / LINK_OCTAVES
    out.setup = squash(params.links[0].setup_s / cell.gpu_s)
    out.progress = episode.request / params.config[0].requests
    for stage in range(4):
        out.intensity[stage] = scaled_intensity(cell.intensity[stage])
        out.gpu[stage] = cell.time_s[GPU, stage] / cell.gpu_s
        out.fpga[stage] = squash(cell.time_s[FPGA, stage] / cell.gpu_s)
    out.bytes[0] = _scaled_bytes(cell.raw_build)
    out.bytes[1] = _scaled_bytes(cell.memory_down)
    out.bytes[2] = _scaled_bytes(cell.memory_up)
    out.bytes[3] = _scaled_bytes(cell.query)
    out.bytes[4] = _scaled_bytes(cell.score)
    out.bytes[5] = _scaled_bytes(cell.index)
    out.bytes[6] = _scaled_bytes(cell.raw_apply)


@kernel
def _scaled_bytes(value: float) -> float:
    """Bytes as the observation shows them, in [0, 1]."""
    return min(math.log2(1.0 + value) / BYTES_OCTAVES, 1.0)


@kernel
def mask_lane(state: State, params: Params, lane: int, out: NDArray[np.int8]) -> None:
    """Write which placements are allowed: those that put on the FPGA nothing that is empty or does not fit.

    Args:
        state: arrays of all lanes.
        params: shared by all lanes.
        lane: number of the lane.
        out: int8 [17], written: 1 for placements that are allowed, 0 for the rest.
    """
    cell = params.cells[state.lane[lane].cell]
    for placement in range(PLACEMENTS):
        out[placement] = 1 if allowed(cell, placement) else 0


@kernel
def metrics_lane(state: State, params: Params, lane: int, out: Metrics) -> None:
    """Write the metrics of the episode so far.

    Args:
        state: arrays of all lanes.
        params: shared by all lanes.
        lane: number of the lane.
        out: the record of the metrics, written.
    """
    episode = state.lane[lane]
    count = float(episode.request)
    out.speedup_geomean = math.exp(ratio(episode.log_speedup, count))
    out.energy_saving_geomean = math.exp(ratio(episode.log_saving, count))
    out.regret_mean = ratio(episode.regret, count)
    out.optimal_share = ratio(episode.optimal, count)
    out.request_mean_s = ratio(episode.clock_s, count)
    out.energy_mean_j = ratio(episode.energy_j, count)
    out.copy_share = ratio(episode.copying_s, episode.clock_s)
    out.copied_bytes = episode.copied_bytes
    out.offloaded_share = ratio(episode.offloaded, count)
    out.requests = episode.request
    out.penalty = episode.penalty
    out.invalid_actions = episode.invalid
    out.energy_j = episode.energy_j
    out.duration_s = episode.clock_s
    out.world_checksum = episode.checksum


KERNELS = Kernels(reset_lane, step_lane, observe_lane, mask_lane, metrics_lane)
