"""OServe counted anew from its raw arrays: requests, tokens, GPUs and bytes that must add up."""

import numpy as np

from llmgym.envs.oserve.env import OServe
from llmgym.envs.oserve.hidden import in_system
from llmgym.envs.oserve.state import State


def cluster(simulation: OServe, state: State, lane: int) -> dict[str, float]:
    """Recount one lane, at any moment between two decisions.

    Args:
        simulation: whose state it is.
        state: arrays of all lanes.
        lane: which one.

    Returns:
        The numbers that `llmgym.core.spec.EnvSpec.auditor` names; also `live`, requests that have arrived and not completed,
        `distinct`, requests in the replicas without repetition, `kv_fullest`, the used share of the fullest cache, `gpus`, GPUs
        that are in exactly one replica, `types_waiting`, waiting requests over all types, and `open_arrival_s`, the sum of the
        arrival times of requests that have not completed, seconds.
    """
    episode, slots = state.lane[lane], state.slot[lane]
    tokens = simulation.params.lengths.sum(axis=1)
    waiting, running = in_system(state, lane)
    fullest, resident, used = 0.0, 0, 0
    gpus = np.zeros(simulation.scenario.gpus, np.int64)
    for k, slot in enumerate(slots):
        if slot["shape"] < 0:
            continue
        runs_here = state.heap_id[lane, k, : slot["running"]].tolist()
        resident += int(tokens[state.request["request_class"][lane, runs_here]].sum())
        used += int(slot["kv"])
        fullest = max(fullest, float(slot["kv"]) / float(simulation.table.capacity[slot["shape"]]))
        gpus[slot["gpu"] : slot["gpu"] + slot["gpus"]] += 1
    live, r = int(episode["rows"]), int(episode["free"])
    while r >= 0:
        live, r = live - 1, int(state.request["next"][lane, r])
    here = np.concatenate([waiting, running])
    sent = float(episode["weights_bytes"] + episode["kv_bytes"])
    return {
        "arrived": float(episode["next"]),
        "waiting": float(len(waiting)),
        "waiting_counted": float(episode["waiting"]),
        "running": float(len(running)),
        "running_counted": float(episode["running"]),
        "done": float(episode["next"] - live),
        "done_counted": float(episode["done"]),
        "live": float(live),
        "distinct": float(len(np.unique(here))),
        "kv_used": float(used),
        "kv_resident": float(resident),
        "kv_fullest": fullest,
        "kv_capacity": float(simulation.table.capacity.max() * simulation.places),
        "gpus": float((gpus == 1).sum()),
        "gpus_counted": float(simulation.scenario.gpus),
        "types_waiting": float(state.waits[lane].sum()),
        "types_waiting_counted": float(len(waiting)),
        "bytes_sent": sent,
        "bytes_received": sent - float(episode["flying_bytes"]),
        "bytes_in_flight": float(episode["flying_bytes"]),
        "open_arrival_s": round(float(state.request["arrival_s"][lane, here].sum()), 3),
        "clock_s": float(episode["epoch"] * simulation.scenario.epoch_s),
    }
