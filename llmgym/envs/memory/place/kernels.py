"""The compiled functions of MemPlace: draw a request, cost its placement. See `llmgym.envs.memory.place.env` for what they mean."""

import math

import numpy as np
from numpy.typing import NDArray

from llmgym.core.jit import kernel
from llmgym.core.lanes import Kernels
from llmgym.core.rng import normal, substream, uniform
from llmgym.core.statistics import ratio
from llmgym.envs.memory.costs import BATCHES, SIZES, drawn
from llmgym.envs.memory.place.state import EDGES, LINK_OCTAVES, Params, State
from llmgym.envs.memory.placement import PLACEMENTS, allowed, place
from llmgym.envs.memory.published import NAMES

CELLS, SPEEDS, ERRORS = 0, 1, 2
"""Sub-streams of the key of an episode."""
KINDS = len(NAMES)
TOP_SIZE, TOP_BATCH = SIZES - 1.0, len(BATCHES) - 1.0


@kernel
def reset_lane(state: State, params: Params, lane: int, key: np.uint64) -> None:
    """Nothing is placed yet; the first request is there."""
    episode = state.lane[lane]
    episode.key = key
    episode.request, episode.optimal, episode.offloaded, episode.invalid, episode.placement, episode.best = (
        0,
        0,
        0,
        0,
        -1,
        -1,
    )
    episode.clock, episode.copying, episode.joules, episode.moved, episode.penalty = 0.0, 0.0, 0.0, 0.0, 0.0
    episode.log_speedup, episode.log_saving, episode.regret, episode.checksum = 0.0, 0.0, 0.0, 0.0
    for k in range(params.config[0].requests):
        state.history[lane, k, 2] = 0.0
    _draw(state, params, lane)


@kernel
def _draw(state: State, params: Params, lane: int) -> None:
    """The next request, with the link that it meets and how far its predicted times are off."""
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
def _worth(state: State, params: Params, lane: int, placement: int) -> tuple[float, float, float, float]:
    """Seconds, of these for copies, joules and bytes of a placement of the present request."""
    episode = state.lane[lane]
    return place(params.cells[episode.cell], params.links, episode.scale, placement, state.error[lane])


@kernel
def step_lane(
    state: State, params: Params, lane: int, action: NDArray[np.float64]
) -> tuple[float, bool, bool, float]:
    """Place the request; the next one comes."""
    episode = state.lane[lane]
    config = params.config[0]
    cell = params.cells[episode.cell]
    placement, cost = int(action[0]), 0.0
    if not allowed(cell, placement):
        episode.invalid += 1
        cost = config.invalid_cost
        placement = 0
    alone_s, _, alone_j, _ = _worth(state, params, lane, 0)
    best, best_value, value, speedup, saving = 0, 0.0, 0.0, 0.0, 0.0
    seconds = 0.0
    for other in range(PLACEMENTS):
        if allowed(cell, other):
            time, copying, joules, moved = _worth(state, params, lane, other)
            faster, cheaper = math.log(alone_s / time), math.log(alone_j / joules)
            worth = faster + config.energy_weight * cheaper
            if worth > best_value:
                best, best_value = other, worth
            if other == placement:
                value, speedup, saving, seconds = worth, faster, cheaper, time
                episode.copying += copying
                episode.joules += joules
                episode.moved += moved
    episode.clock += seconds
    episode.log_speedup += speedup
    episode.log_saving += saving
    episode.regret += best_value - value
    episode.penalty += cost
    episode.optimal += 1 if value >= best_value else 0
    episode.offloaded += 1 if placement != 0 else 0
    episode.placement, episode.best = placement, best
    row = state.history[lane, episode.request]
    row[0], row[1], row[2] = speedup, best_value - value, 1.0
    episode.request += 1
    ended = episode.request >= config.requests
    if not ended:
        _draw(state, params, lane)
    return value - cost, ended, False, seconds


@kernel(inline=True)
def squash(value: float) -> float:
    """X / (1 + x), in [0, 1)."""
    return value / (1.0 + value)


@kernel
def observe_lane(state: State, params: Params, lane: int, out: NDArray[np.float32]) -> None:
    """Write the observation: see `layout` in `llmgym.envs.memory.place.env`."""
    episode = state.lane[lane]
    cell = params.cells[episode.cell]
    for k in range(KINDS):
        out[k] = 1.0 if k == cell.workload else 0.0
    at = KINDS
    out[at] = cell.size_index / TOP_SIZE
    out[at + 1] = cell.batch_index / TOP_BATCH
    out[at + 2] = min(max((math.log10(cell.gpu_s) + 5.0) / 8.0, 0.0), 1.0)
    out[at + 3] = squash(cell.fused_s / cell.gpu_s)
    out[at + 4] = math.log2(episode.scale) / LINK_OCTAVES
    out[at + 5] = squash(params.links[0].setup_s / cell.gpu_s)
    out[at + 6] = episode.request / params.config[0].requests
    at += 7
    for stage in range(4):
        out[at + stage] = math.log10(1.0 + cell.intensity[stage]) / 3.01
        out[at + 4 + stage] = cell.time_s[0, stage] / cell.gpu_s
        out[at + 8 + stage] = squash(cell.time_s[1, stage] / cell.gpu_s)
    at += 12
    out[at] = _bytes(cell.raw_build)
    out[at + 1] = _bytes(cell.memory_down)
    out[at + 2] = _bytes(cell.memory_up)
    out[at + 3] = _bytes(cell.query)
    out[at + 4] = _bytes(cell.score)
    out[at + 5] = _bytes(cell.index)
    out[at + EDGES - 1] = _bytes(cell.raw_apply)


@kernel
def _bytes(value: float) -> float:
    return min(math.log2(1.0 + value) / 40.0, 1.0)


@kernel
def mask_lane(state: State, params: Params, lane: int, out: NDArray[np.int8]) -> None:
    """Write which placements there are: none that puts on the FPGA what is empty or does not fit."""
    cell = params.cells[state.lane[lane].cell]
    for placement in range(PLACEMENTS):
        out[placement] = 1 if allowed(cell, placement) else 0


@kernel
def metrics_lane(state: State, params: Params, lane: int, out: NDArray[np.float64]) -> None:
    """Write the episode's metrics, in the order of `METRICS`; NaN where there is nothing to take them of, see there."""
    episode = state.lane[lane]
    count = float(episode.request)
    out[0] = math.exp(ratio(episode.log_speedup, count))
    out[1] = math.exp(ratio(episode.log_saving, count))
    out[2] = ratio(episode.regret, count)
    out[3] = ratio(episode.optimal, count)
    out[4] = ratio(episode.clock, count)
    out[5] = ratio(episode.joules, count)
    out[6] = ratio(episode.copying, episode.clock)
    out[7] = episode.moved
    out[8] = ratio(episode.offloaded, count)
    out[9] = episode.request
    out[10] = episode.penalty
    out[11] = episode.invalid
    out[12] = episode.joules
    out[13] = episode.clock
    out[14] = episode.checksum


KERNELS = Kernels(reset_lane, step_lane, observe_lane, mask_lane, metrics_lane)
