"""A clairvoyant look ahead, in compiled code: every action in a copy of the world, then a rule to the end."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmgym.baselines.distill.choosing import Options, choose
from llmgym.core.jit import kernel
from llmgym.core.lanes import observing
from llmgym.core.records import Records
from llmgym.envs.distill.env import DistillProgramme
from llmgym.envs.distill.kernels import mask_lane, step_lane
from llmgym.envs.distill.observing import rows
from llmgym.envs.distill.state import Observation, Params, State

MOST_STEPS = 5_000
"""A roll-out is cut after so many steps."""
WIDTH = Observation.dtype.itemsize // 4


@kernel
def copy_lane(state: State) -> None:
    """Copy lane 0 of the state onto lane 1."""
    state.lane[1] = state.lane[0]
    for i in range(state.student.shape[1]):
        state.student[1, i] = state.student[0, i]
    for a in range(state.artefact.shape[1]):
        state.artefact[1, a] = state.artefact[0, a]
    for n in range(state.lane[0].jobs):
        state.job[1, n] = state.job[0, n]
    for gpu in range(state.running.shape[1]):
        state.running[1, gpu] = state.running[0, gpu]
    for s in range(state.slot.shape[1]):
        state.slot[1, s] = state.slot[0, s]
    for d in range(state.day.shape[1]):
        state.day[1, d] = state.day[0, d]


def best_action(simulation: DistillProgramme) -> Callable[[State, Params, Records[Options]], int]:
    """The compiled search of one simulation.

    Returns:
        A function of the state (lane 0 is the world, lane 1 is written to), the params and a rule's options, [1], that returns the
        action with the largest return when the rule goes on after it.
    """
    observe_row = observing(simulation)
    size = simulation.layout.size

    @kernel
    def search(
        state: State,
        params: Params,
        options: Records[Options],
        row: NDArray[np.float32],
        mask: NDArray[np.int8],
        action: NDArray[np.float64],
    ) -> int:
        mask_lane(state, params, 0, mask)
        best, chosen = -math.inf, rows(params) - 1
        for candidate in range(mask.shape[0]):
            if mask[candidate] == 0:
                continue
            copy_lane(state)
            action[0] = candidate
            total, ended, _, _ = step_lane(state, params, 1, action)
            for _ in range(MOST_STEPS):
                if ended:
                    break
                observe_row(state, params, 1, row)
                action[0] = choose(row, WIDTH, params, options[0])
                reward, ended, _, _ = step_lane(state, params, 1, action)
                total += reward
            if total > best + 1e-9:
                best, chosen = total, candidate
        return chosen

    row, mask, action = np.zeros(size, np.float32), np.zeros(simulation.mask_size, np.int8), np.zeros(1)

    def found(state: State, params: Params, options: Any) -> int:
        return int(search(state, params, options, row, mask, action))

    return found
