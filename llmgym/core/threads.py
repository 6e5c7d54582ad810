"""What one thread of a device does for one lane: the loops of `llmgym.core.loops`, taken apart.

A device steps every lane at once, each in a thread of its own. What only few lanes need in a step, the metrics of an episode that
ended and the beginning of the next, would hold up all the others that share a warp with them; so a step only notes in a list which
episodes ended, and further calls work through such lists. Lists take turns: while a step writes its own, those lanes that ended in
the step before can begin at the same time.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmgym.core.loops import NEXT_STEP, SAME_STEP, Kernels
from llmgym.core.rng import substream

TURNS = 3
"""Lists: that of this step, that of the step before, and the one that is emptied for the next."""


class Work(NamedTuple):
    """What the threads share besides the buffers.

    Attributes:
        low: float64 [parts], least value of each part of an action.
        high: float64 [parts], largest value.
        first: int64 [parts], place in a mask of action 0 of each part; empty where masked actions are no error.
        ended: int32 [TURNS, lanes], lanes whose episode ended in a step, from the front; -1 where one began by other means.
        counts: int64 [TURNS], how many lanes each list holds.
        wrong: int64 [1], 1 + number of a lane with an action outside the space or masked, which did not step; 0: there is none.
        now: float64 [lanes, metrics], metrics of the running episodes, where somebody asked for them.
    """

    low: NDArray[np.float64]
    high: NDArray[np.float64]
    first: NDArray[np.int64]
    ended: NDArray[np.int32]
    counts: NDArray[np.int64]
    wrong: NDArray[np.int64]
    now: NDArray[np.float64]


class Threads(NamedTuple):
    """What a thread can do, each a function `(arrays, i, mode, limit, turn)` of arrays (state, params, buffers, work).

    Attributes:
        step: one step of lane `i`; the list of this turn is written.
        finish: write the metrics of the `i`th lane of that list; the `i`th lane of the list before has begun.
        begin: begin an episode in the `i`th lane of the list before that of this turn.
        measure: write the metrics so far of lane `i`.
    """

    step: Callable[..., None]
    finish: Callable[..., None]
    begin: Callable[..., None]
    measure: Callable[..., None]


def threads_of(
    kernels: Kernels, claim: Callable[[NDArray[np.int64], int], int], here: Callable[[Any, int], Any]
) -> Threads:
    """What threads do in one environment.

    Args:
        kernels: its functions; `observe_lane` and `metrics_lane` take whole rows of the buffers.
        claim: `(counts, turn)`: add 1 to a count that other threads add to as well, and give what it was.
        here: `(state, lane)`: the state as the thread of this lane sees it; see `llmgym.core.tiles`.

    Returns:
        Plain functions. `turn` is the list that a step writes; it goes round from 0 to `TURNS` - 1.
    """
    reset_lane, step_lane, observe_lane, mask_lane, metrics_lane = kernels

    def step(arrays: Any, lane: int, mode: int, limit: int, turn: int) -> None:
        state, params, buffers, work = arrays
        if lane == 0:  # nobody reads the list of two steps before any more
            work.counts[(turn + 1) % TURNS] = 0
        buffers.reward[lane] = 0.0
        buffers.dt[lane] = 0.0
        if buffers.ended[lane]:
            if mode == NEXT_STEP:  # it begins in another thread
                buffers.terminated[lane] = False
                buffers.truncated[lane] = False
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
            work.ended[turn, claim(work.counts, turn)] = lane
            if mode == SAME_STEP:
                obs, mask = buffers.final_obs[lane], buffers.final_mask[lane]
            else:
                buffers.ended[lane] = True
        observe_lane(state, params, lane, obs)
        mask_lane(state, params, lane, mask)

    def finish(arrays: Any, i: int, mode: int, limit: int, turn: int) -> None:
        state, params, buffers, work = arrays
        before = (turn + TURNS - 1) % TURNS
        if mode == NEXT_STEP and i < work.counts[before]:
            lane = work.ended[before, i]
            if lane >= 0:
                buffers.ended[lane] = False
        if i < work.counts[turn]:
            lane = work.ended[turn, i]
            metrics_lane(here(state, lane), params, lane, buffers.metrics[lane])

    def begin(arrays: Any, i: int, mode: int, limit: int, turn: int) -> None:
        state, params, buffers, work = arrays
        before = (turn + TURNS - 1) % TURNS
        if i < work.counts[before]:
            lane = work.ended[before, i]
            if mode == NEXT_STEP and not buffers.ended[lane]:  # somebody has reset it since
                work.ended[before, i] = -1
                return
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
