"""Recounts of a lane from its raw arrays, for tests; `llmgym.core.spec.EnvSpec.auditor` says what the numbers are."""

import numpy as np

from llmgym.envs.memory.pipe.env import MemPipe
from llmgym.envs.memory.pipe.state import ALL_PLACED
from llmgym.envs.memory.pipe.state import State as PipeState
from llmgym.envs.memory.place.env import MemPlace
from llmgym.envs.memory.place.state import State as PlaceState


def place(simulation: MemPlace, state: PlaceState, lane: int) -> dict[str, float]:
    """Recount a lane of MemPlace.

    Args:
        simulation: the environment's.
        state: arrays of all lanes.
        lane: the lane that is recounted.

    Returns:
        Requests from the history; what is copied arrives within the step.
    """
    episode = state.lane[lane]
    requests = simulation.scenario.requests
    waiting = float(episode["request"] < requests)
    return {
        "arrived": episode["request"] + waiting,
        "waiting": waiting,
        "running": 0.0,
        "done": float(episode["request"]),
        "clock_s": float(episode["clock_s"]),
        "energy_j": float(episode["energy_j"]),
        "bytes_sent": float(episode["copied_bytes"]),
        "bytes_received": float(episode["copied_bytes"]),
        "bytes_in_flight": 0.0,
        "work_asked": float(requests),
        "work_done": float(np.count_nonzero(state.history[lane]["placed"])),
        "work_left": float(requests - episode["request"]),
    }


def pipe(simulation: MemPipe, state: PipeState, lane: int) -> dict[str, float]:
    """Recount a lane of MemPipe.

    Args:
        simulation: the environment's.
        state: arrays of all lanes.
        lane: the lane that is recounted.

    Returns:
        Requests and stages from the records of the requests, busy time from the spans of the stages.
    """
    episode, requests = state.lane[lane], state.request[lane]
    clock_s = float(episode["clock_s"])
    arrived = requests["arrival_s"] <= clock_s
    done = (requests["stage"] == ALL_PLACED) & (requests["ready_s"] <= clock_s)
    running = arrived & ~done & (requests["device"] >= 0)
    span = state.span[lane]
    ran = span["end_s"] >= 0.0
    # an empty stage has the bit of the stage before it, but runs nowhere
    offloaded = requests["placed"] & ~simulation.params.cells["empty"][requests["cell"]]
    return {
        "arrived": float(arrived.sum()),
        "waiting": float((arrived & ~done & ~running).sum()),
        "running": float(running.sum()),
        "done": float(done.sum()),
        "clock_s": clock_s,
        "energy_j": float(episode["energy_j"]),
        "work_asked": float(state.resource["busy_s"][lane, :2].sum()),
        "work_done": float((span["end_s"] - span["begin_s"])[ran].sum()),
        "work_left": 0.0,
        "stages": float(episode["stages"]),
        "offloaded": float(episode["offloaded"]),
        "offloaded_counted": float(sum(int(bits).bit_count() for bits in offloaded)),
    }
