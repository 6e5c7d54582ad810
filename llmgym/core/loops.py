"""The compiled loops over lanes: what is generic in a step, a reset and a whole episode, around the functions of one environment.

An environment writes its observation and metrics into records, by name; the loops hand it the rows of their buffers as these.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from llmgym.core.frames import unpacking
from llmgym.core.jit import kernel
from llmgym.core.records import viewing
from llmgym.core.rng import substream

NEXT_STEP, SAME_STEP, DISABLED, HOLD, RESET, LOOK = 0, 1, 2, 3, 4, 5
"""What happens to a lane whose episode has ended: gymnasium's three autoreset modes, and `HOLD`, where it waits untouched
(evaluation runs every lane for exactly one episode). With `RESET` nothing steps: the lanes in `which` begin an episode.
With `LOOK` nothing happens, but observations and masks are written anew."""


@kernel(inline=True)
def all_allowed(state: Any, params: Any, lane: int, out: NDArray[np.int8]) -> None:
    """Write the mask of an environment in which every action is always allowed.

    Args:
        state: state arrays; not read.
        params: parameters of the scenario; not read.
        lane: which lane; not read.
        out: written, 1 for every action, int8 [actions].
    """
    for k in range(out.shape[0]):
        out[k] = 1


class Kernels(NamedTuple):
    """The compiled functions of one environment; each works on one lane of the state arrays.

    Attributes:
        reset_lane: `(state, params, lane, key)`: start an episode; its world is a function of the uint64 `key` alone.
        step_lane: `(state, params, lane, action) -> (reward, terminated, truncated, dt_s)`; `action` is a float64 row.
        observe_lane: `(state, params, lane, out, rest)`: write the observation; `out` is the record of `layout.head`, and `rest`
            the float32 row of all that follows it. Where the layout has no record, `(state, params, lane, out)` with the whole row.
        mask_lane: `(state, params, lane, out)`: write 1 (allowed) or 0 for every discrete action, an int8 row.
        metrics_lane: `(state, params, lane, out)`: write the metrics of the episode so far; `out` is the record
            `Simulation.metrics`. Where there is none, a float64 row in the order of `metric_names`.
    """

    reset_lane: Callable[..., None]
    step_lane: Callable[..., tuple[float, bool, bool, float]]
    observe_lane: Callable[..., None]
    mask_lane: Callable[..., None]
    metrics_lane: Callable[..., None]

    @classmethod
    def of(
        cls,
        reset_lane: Callable[..., None],
        step_lane: Callable[..., tuple[float, bool, bool, float]],
        observe_lane: Callable[..., None],
        metrics_lane: Callable[..., None],
    ) -> "Kernels":
        """The compiled functions of an environment in which every action is always allowed.

        Args:
            reset_lane: starts an episode; see `Kernels`.
            step_lane: takes an action; see `Kernels`.
            observe_lane: writes the observation; see `Kernels`.
            metrics_lane: writes the metrics; see `Kernels`.

        Returns:
            These functions, and a `mask_lane` that allows everything.
        """
        return cls(reset_lane, step_lane, observe_lane, all_allowed, metrics_lane)


class Buffers(NamedTuple):
    """What the loop reads and writes for every lane; first axis = lane."""

    action: NDArray[np.float64]
    obs: NDArray[np.float32]
    mask: NDArray[np.int8]
    reward: NDArray[np.float64]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    dt: NDArray[np.float64]
    metrics: NDArray[np.float64]
    final_obs: NDArray[np.float32]
    final_mask: NDArray[np.int8]
    ended: NDArray[np.bool_]
    which: NDArray[np.bool_]
    steps: NDArray[np.int64]
    seed_key: NDArray[np.uint64]
    episode: NDArray[np.int64]


_compiled: dict[Any, tuple[Callable[..., int], Callable[..., int]]] = {}
_by_row: dict[Any, Callable[..., None]] = {}


def observing(simulation: Any) -> Callable[..., None]:
    """The compiled function `(state, params, lane, row)` that writes the whole observation, a float32 row."""
    observe_lane, head = simulation.kernels.observe_lane, simulation.layout.head
    if head is None:
        return observe_lane
    if (observe_lane, head) not in _by_row:
        view, width = viewing(head), head.dtype.itemsize // 4

        @kernel(inline=True)
        def observe_row(state: Any, params: Any, lane: int, row: NDArray[np.float32]) -> None:
            observe_lane(state, params, lane, view(row), row[width:])

        _by_row[observe_lane, head] = observe_row
    return _by_row[observe_lane, head]


def measuring(simulation: Any) -> Callable[..., None]:
    """The compiled function `(state, params, lane, row)` that writes all metrics, a float64 row."""
    metrics_lane, metrics = simulation.kernels.metrics_lane, simulation.metrics
    if metrics is None:
        return metrics_lane
    if (metrics_lane, metrics) not in _by_row:
        view = viewing(metrics)

        @kernel(inline=True)
        def measure_row(state: Any, params: Any, lane: int, row: NDArray[np.float64]) -> None:
            metrics_lane(state, params, lane, view(row))

        _by_row[metrics_lane, metrics] = measure_row
    return _by_row[metrics_lane, metrics]


def _kind(value: Any) -> Any:
    """What numba's type of arrays in tuples depends on: numba takes milliseconds to make the type of a state of records."""
    if isinstance(value, tuple):
        return (type(value), *map(_kind, value))
    if type(value) is not np.ndarray:
        return numba.typeof(value)
    flags = value.flags
    return value.dtype, value.ndim, flags.c_contiguous, flags.f_contiguous, flags.aligned, flags.writeable


def loops(simulation: Any, arrays: Any) -> tuple[Callable[..., int], Callable[..., int]]:
    """The generic loops, compiled around the functions of one environment: step (and reset), and whole episodes.

    They take the frame of `arrays`, which are (state, params, buffers); see `llmgym.core.frames`.
    """
    kernels = simulation.kernels._replace(
        observe_lane=observing(simulation), metrics_lane=measuring(simulation)
    )
    key = (kernels, _kind(arrays))
    if key not in _compiled or numba.config.DISABLE_JIT:  # type: ignore[attr-defined]
        _compiled[key] = compile_loops(kernels, type(simulation).__name__, unpacking(arrays))
    return _compiled[key]


def compile_loops(
    kernels: Kernels, name: str, unpack: Callable[..., Any]
) -> tuple[Callable[..., int], Callable[..., int]]:
    """Compile the generic loops around the functions of one environment.

    Args:
        kernels: functions of the environment; `observe_lane` and `metrics_lane` take whole rows of the buffers.
        name: of the environment, told on stderr when it has to be compiled.
        unpack: compiled function that turns a frame, int64 [n], into (state, params, buffers); see `llmgym.core.frames`.

    Returns:
        `step_lanes(frame, start, stop, mode, limit)`: one step, or what `mode` says, of the lanes from `start` to before `stop`;
        how many episodes ended, or -1 - lane for a lane whose episode has ended in mode `DISABLED`.
        `run_lanes(frame, start, stop, limit, most)`: steps the running episodes of these lanes to their end with the actions in the
        buffers; how many steps were taken, `most` at most. `limit` is the number of steps after which an episode is truncated; 0:
        none.
    """
    reset_lane, step_lane, observe_lane, mask_lane, metrics_lane = kernels

    @kernel(announce=name)
    def step_lanes(frame: NDArray[np.int64], start: int, stop: int, mode: int, limit: int) -> int:
        state, params, buffers = unpack(frame)
        done = 0
        for lane in range(start, stop):
            begins = buffers.ended[lane]
            ends = False
            if mode == RESET:
                if not buffers.which[lane]:
                    continue
                begins = True
            if mode == LOOK:
                begins = False
            elif begins:
                if mode == DISABLED:
                    return -1 - lane
                buffers.reward[lane] = 0.0
                buffers.dt[lane] = 0.0
                if mode == HOLD:
                    continue
                buffers.terminated[lane] = False
                buffers.truncated[lane] = False
                buffers.ended[lane] = False
            else:
                reward, terminated, truncated, dt = step_lane(state, params, lane, buffers.action[lane])
                buffers.steps[lane] += 1
                if limit > 0 and buffers.steps[lane] >= limit:
                    truncated = True
                buffers.reward[lane] = reward
                buffers.terminated[lane] = terminated
                buffers.truncated[lane] = truncated
                buffers.dt[lane] = dt
                ends = terminated or truncated
                if ends:
                    done += 1
                    metrics_lane(state, params, lane, buffers.metrics[lane])
                    buffers.ended[lane] = mode != SAME_STEP
            # Twice where an episode ends and the next begins in the same step. A loop, so that the compiler sees each call once.
            while True:
                if begins:
                    buffers.episode[lane] += 1
                    reset_lane(state, params, lane, substream(buffers.seed_key[lane], buffers.episode[lane]))
                    buffers.steps[lane] = 0
                observe_lane(state, params, lane, buffers.obs[lane])
                mask_lane(state, params, lane, buffers.mask[lane])
                if begins or not ends or mode != SAME_STEP:
                    break
                for i in range(buffers.obs.shape[1]):
                    buffers.final_obs[lane, i] = buffers.obs[lane, i]
                for i in range(buffers.mask.shape[1]):
                    buffers.final_mask[lane, i] = buffers.mask[lane, i]
                begins = True
        return done

    @kernel(announce=f"{name} (whole episodes)")
    def run_lanes(frame: NDArray[np.int64], start: int, stop: int, limit: int, most: int) -> int:
        state, params, buffers = unpack(frame)
        steps = 0
        for lane in range(start, stop):
            if buffers.ended[lane]:
                continue
            while True:
                if steps >= most:
                    return steps
                reward, terminated, truncated, dt = step_lane(state, params, lane, buffers.action[lane])
                buffers.steps[lane] += 1
                steps += 1
                buffers.reward[lane] += reward
                buffers.dt[lane] += dt
                if limit > 0 and buffers.steps[lane] >= limit:
                    truncated = True
                if terminated or truncated:
                    break
            buffers.terminated[lane] = terminated
            buffers.truncated[lane] = truncated
            buffers.ended[lane] = True
            metrics_lane(state, params, lane, buffers.metrics[lane])
            observe_lane(state, params, lane, buffers.obs[lane])
            mask_lane(state, params, lane, buffers.mask[lane])
        return steps

    return step_lanes, run_lanes
