"""A recount of a lane from its raw arrays, for tests; `llmgym.core.spec.EnvSpec.auditor` says what the numbers are."""

import numpy as np

from llmgym.envs.segmented.env import SegmentedPrefill
from llmgym.envs.segmented.state import DECODE, DONE, LOST, PREFILL, REJECTED, WAITING, State


def recount(simulation: SegmentedPrefill, state: State, lane: int) -> dict[str, float]:
    """Recount a lane.

    Args:
        simulation: the environment's.
        state: arrays of all lanes.
        lane: the lane that is recounted.

    Returns:
        Requests by where they are, a lost one counted among the rejected; memory, bytes; work in tokens of prompts.
    """
    episode, requests = state.lane[lane], state.request[lane]
    config, modes = simulation.params.config[0], simulation.params.modes
    arrived = requests["arrival_s"] <= episode["clock_s"]
    status = requests["status"]
    admitted = np.isin(status, (PREFILL, DECODE))
    resident = 0
    for request in requests[admitted]:
        mode, tokens = modes[int(request["mode"])], int(request["prompt"]) + int(config["output_most"])
        if request["status"] == DECODE:
            resident += int(mode["keep_bytes"]) * tokens
            resident += int(mode["window_bytes"]) * min(tokens, int(mode["window"]))
        elif request["done"]:
            resident += int(mode["token_bytes"]) * int(request["done"]) + int(mode["carried_bytes"])
    prompts = requests["prompt"][arrived].astype(np.int64)
    done = requests["done"][arrived].astype(np.int64)
    slots = state.slot[lane][: int(episode["admitted"])]
    return {
        "arrived": float(arrived.sum()),
        "waiting": float((arrived & (status == WAITING)).sum()),
        "running": float(admitted.sum()),
        "done": float((status == DONE).sum()),
        "rejected": float(np.isin(status, (REJECTED, LOST)).sum()),
        "distinct": float(len(set(slots.tolist()))),
        "live": float(admitted.sum()),
        "clock_s": float(episode["clock_s"]),
        "kv_used": float(episode["resident_bytes"]),
        "kv_resident": float(resident),
        "kv_fullest": float(episode["peak_bytes"]),
        "kv_capacity": float(config["room_bytes"]),
        "work_asked": float(prompts.sum()),
        "work_done": float(done.sum()),
        "work_left": float((prompts - done).sum()),
        "finished": float(episode["done"]),
        "finished_counted": float((status == DONE).sum()),
        "lost": float(episode["lost"]),
        "lost_counted": float((status == LOST).sum()),
        "turned_away": float(episode["rejected"]),
        "turned_away_counted": float((status == REJECTED).sum()),
    }
