"""What one thread of a device does for one lane: the loops of `llmgym.core.loops`, taken apart.

A device steps every lane at once, each in a thread of its own. What only few lanes need in a step, the metrics of an episode that
ended and the beginning of the next, would hold up all the others that share a warp with them; so a step only notes these lanes in
two lists, and two further calls work through the lists.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmgym.core.loops import NEXT_STEP, SAME_STEP, Kernels
from llmgym.core.rng import substream

FINISHED, BEGUN = 0, 1
"""Columns of `Work.counts`."""


class Work(NamedTuple):
    """What the threads share besides the buffers.

    Attributes:
        low: float64 [parts], least value of each part of an action.
        high: float64 [parts], largest value.
        first: int64 [parts], place in a mask of action 0 of each part; empty where masked actions are no error.
        finished: int32 [lanes], lanes whose episode ended in this step, from the front.
        begun: int32 [lanes], lanes in which an episode begins in this step, from the front.
        counts: int64 [2, 2], how many lanes the lists hold: the row of this step, and that of the next, which is 0.
        wrong: int64 [1], 1 + number of a lane with an action outside the space or masked, which did not step; 0: there is none.
        now: float64 [lanes, metrics], metrics of the running episodes, where somebody asked for them.
    """

    low: NDArray[np.float64]
    high: NDArray[np.float64]
    first: NDArray[np.int64]
    finished: NDArray[np.int32]
    begun: NDArray[np.int32]
    counts: NDArray[np.int64]
    wrong: NDArray[np.int64]
    now: NDArray[np.float64]


class Threads(NamedTuple):
    """What a thread can do, each a function `(arrays, i, mode, limit, turn)` of arrays (state, params, buffers, work).

    Attributes:
        step: one step of lane `i`.
        finish: write the metrics of the `i`th lane of the list of finished ones.
        begin: begin an episode in the `i`th lane of the list of those that begin.
        measure: write the metrics so far of lane `i`.
    """

    step: Callable[..., None]
    finish: Callable[..., None]
    begin: Callable[..., None]
    measure: Callable[..., None]


def threads_of(
    kernels: Kernels, claim: Callable[[NDArray[np.int64], int, int], int], here: Callable[[Any, int], Any]
) -> Threads:
    """What threads do in one environment.

    Args:
        kernels: its functions; `observe_lane` and `metrics_lane` take whole rows of the buffers.
        claim: `(counts, row, column)`: add 1 to a count that other threads add to as well, and give what it was.
        here: `(state, lane)`: the state as the thread of this lane sees it; see `llmgym.core.tiles`.

    Returns:
        Plain functions. `turn` is the row of `Work.counts` that a step uses; it alternates between 0 and 1.
    """
    reset_lane, step_lane, observe_lane, mask_lane, metrics_lane = kernels

    def step(arrays: Any, lane: int, mode: int, limit: int, turn: int) -> None:
        state, params, buffers, work = arrays
        if lane == 0:  # nobody reads the lists of the step before any more
            work.counts[1 - turn, FINISHED] = 0
            work.counts[1 - turn, BEGUN] = 0
        buffers.reward[lane] = 0.0
        buffers.dt[lane] = 0.0
        if buffers.ended[lane]:
            if mode == NEXT_STEP:
                buffers.terminated[lane] = False
                buffers.truncated[lane] = False
                buffers.ended[lane] = False
                work.begun[claim(work.counts, turn, BEGUN)] = lane
            return
        action = buffers.action[lane]
        allowed = True
        for j in range(action.shape[0]):
            allowed = allowed and work.low[j] <= action[j] and action[j] <= work.high[j]
        if allowed:
            for j in range(work.first.shape[0]):
                allowed = allowed and buffers.mask[lane, work.first[j] + int(action[j])] != 0
        if not allowed:
            work.wrong[0] = lane + 1
            buffers.terminated[lane] = False
            buffers.truncated[lane] = False
            return
        state = here(state, lane)
        reward, terminated, truncated, dt = step_lane(state, params, lane, action)
        buffers.steps[lane] += 1
        if limit > 0 and buffers.steps[lane] >= limit:
            truncated = True
        buffers.reward[lane] = reward
        buffers.terminated[lane] = terminated
        buffers.truncated[lane] = truncated
        buffers.dt[lane] = dt
        obs, mask = buffers.obs[lane], buffers.mask[lane]
        if terminated or truncated:
            work.finished[claim(work.counts, turn, FINISHED)] = lane
            if mode == SAME_STEP:
                work.begun[claim(work.counts, turn, BEGUN)] = lane
                obs, mask = buffers.final_obs[lane], buffers.final_mask[lane]
            else:
                buffers.ended[lane] = True
        observe_lane(state, params, lane, obs)
        mask_lane(state, params, lane, mask)

    def finish(arrays: Any, i: int, mode: int, limit: int, turn: int) -> None:
        state, params, buffers, work = arrays
        if i < work.counts[turn, FINISHED]:
            lane = work.finished[i]
            metrics_lane(here(state, lane), params, lane, buffers.metrics[lane])

    def begin(arrays: Any, i: int, mode: int, limit: int, turn: int) -> None:
        state, params, buffers, work = arrays
        if i < work.counts[turn, BEGUN]:
            lane = work.begun[i]
            state = here(state, lane)
            buffers.episode[lane] += 1
            reset_lane(state, params, lane, substream(buffers.seed_key[lane], buffers.episode[lane]))
            buffers.steps[lane] = 0
            observe_lane(state, params, lane, buffers.obs[lane])
            mask_lane(state, params, lane, buffers.mask[lane])

    def measure(arrays: Any, lane: int, mode: int, limit: int, turn: int) -> None:
        state, params, _, work = arrays
        metrics_lane(here(state, lane), params, lane, work.now[lane])

    return Threads(step, finish, begin, measure)
