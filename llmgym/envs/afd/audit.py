"""Lanes of AFDRatio and AFDRefill, recounted from the slots and not from the counters: for tests alone."""

import numpy as np
from numpy.typing import NDArray

from llmgym.core.records import Records
from llmgym.envs.afd.ratio.env import AFDRatio
from llmgym.envs.afd.ratio.scenarios import FIDELITIES
from llmgym.envs.afd.ratio.state import SLOT_LEVEL
from llmgym.envs.afd.ratio.state import State as RatioState
from llmgym.envs.afd.refill.env import AFDRefill
from llmgym.envs.afd.refill.state import State as RefillState
from llmgym.envs.afd.requests import Requests
from llmgym.envs.afd.slots import Slot, running_slots


def recount(slots: Records[Slot], wheel: NDArray[np.int32], tick: int) -> tuple[int, int, int]:
    """What one table holds.

    Args:
        slots: [B], of the table.
        wheel: int32 [buckets], of the table.
        tick: steps of the microbatch so far.

    Returns:
        Requests, their tokens, and the steps that they have still to come.
    """
    running = running_slots(slots, wheel)
    requests = slots[running]
    left = (requests["end"] - tick).astype(np.int64)
    had = requests["steps"] - left
    return len(np.unique(running)), int((requests["prompt"] + had).sum()), int(left.sum())


def _most_tokens(law: Requests) -> int:
    return int((law.prompt_tokens + law.steps).max())


def ratio(simulation: AFDRatio, state: RatioState, lane: int) -> dict[str, float]:
    """Requests, their tokens and steps of a lane of AFDRatio; only the clock where requests have no slots.

    Args:
        simulation: of the lane.
        state: of all lanes.
        lane: which one.

    Returns:
        The counts by name: requests, tokens, steps, and the clock in seconds.
    """
    episode = state.lane[lane]
    clock = {"clock_s": float(episode["clock"] * simulation.coefficients.cycle_s)}
    if FIDELITIES[simulation.scenario.fidelity] < SLOT_LEVEL:
        return clock
    workers = state.worker.shape[1]
    tables = [
        recount(state.slot[lane, t], state.wheel[lane, t], int(state.microbatch["tick"][lane, t // workers]))
        for t in range(state.table.shape[1])
    ]
    running, tokens, left = np.sum(tables, axis=0)
    return clock | {
        "arrived": float(episode["taken"]),
        "waiting": 0.0,
        "running": float(running),
        "running_counted": float(state.table["occupied"][lane].sum()),
        "done": float(episode["completed"]),
        "rejected": 0.0,
        "kv_used": float(state.table["load"][lane].sum()),
        "kv_resident": float(tokens),
        "kv_capacity": float(max(map(_most_tokens, simulation.laws)) * state.slot[lane].size),
        "work_asked": float(episode["demand_steps"]),
        "work_done": float(episode["tokens"]),
        "work_left": float(left),
    }


def refill(simulation: AFDRefill, state: RefillState, lane: int) -> dict[str, float]:
    """Requests, their tokens and steps of a lane of AFDRefill.

    Args:
        simulation: of the lane.
        state: of all lanes.
        lane: which one.

    Returns:
        The counts by name: requests, tokens, steps, and the clock in seconds.
    """
    episode = state.lane[lane]
    tick = int(episode["tick"])
    tables = [
        recount(slots, wheel, tick) for slots, wheel in zip(state.slot[lane], state.wheel[lane], strict=True)
    ]
    running, tokens, left = np.sum(tables, axis=0)
    return {
        "arrived": float(episode["taken"]),
        "waiting": float(len(np.unique(state.waiting["number"][lane]))),
        "waiting_counted": float(simulation.scenario.window),
        "running": float(running),
        "running_counted": float(state.table["occupied"][lane].sum()),
        "free": float(episode["left"]),
        "free_counted": float(state.slot[lane].size - running),
        "done": float(episode["completed"]),
        "rejected": 0.0,
        "kv_used": float(state.table["load"][lane].sum()),
        "kv_resident": float(tokens),
        "kv_capacity": float(_most_tokens(simulation.law) * state.slot[lane].size),
        "clock_s": float(episode["clock"] * simulation.coefficients.cycle_s),
        "work_asked": float(episode["demand_steps"]),
        "work_done": float(episode["tokens"]),
        "work_left": float(left),
    }
