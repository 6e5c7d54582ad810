"""Lanes of a PPD cluster, recounted from the raw arrays for the tests."""

import numpy as np
from numpy.typing import NDArray

from llmgym.envs.ppd.cluster import PPDCluster
from llmgym.envs.ppd.state import (
    AWAY,
    D_RUN,
    D_WAIT,
    GATE,
    MOVE,
    OVER,
    P_RUN,
    P_WAIT,
    UNROUTED,
    P,
    State,
    turn_numbers,
)


def cluster(simulation: PPDCluster, state: State, lane: int) -> dict[str, float]:
    """Recount requests, tokens and bytes.

    Args:
        simulation: whose lane it is.
        state: arrays of all lanes.
        lane: number of the lane.

    Returns:
        What `llmgym.core.spec.EnvSpec.auditor` describes.
    """
    episode = state.lane[lane]
    conversations = state.conversation[lane, : episode["conversations"]]
    requests = state.request[lane]
    stage = conversations["stage"]
    live = np.sum((stage > AWAY) & (stage < OVER))
    under_way = _under_way(state, lane)
    coming = conversations["moving"].astype(bool) & np.isin(stage, (MOVE, D_WAIT))
    flying = (conversations["context"] + conversations["prompt"])[coming].sum() * simulation.kv_bytes
    links, nodes = state.link[lane], state.node[lane]
    return {
        "arrived": float(episode["requests"]),
        "waiting": float(np.isin(stage, (GATE, UNROUTED, P_WAIT, MOVE, D_WAIT)).sum()),
        "running": float(np.isin(stage, (P_RUN, D_RUN)).sum()),
        "done": float(np.sum(requests["e2e_s"][turn_numbers(state, lane)] >= 0.0)),
        "done_counted": float(episode["done"]),
        "rejected": float(episode["failed"]),
        "live": float(live),
        "distinct": float(len(np.unique(under_way))),
        "found": float(len(under_way)),
        "found_counted": float(live),
        "kv_used": float(nodes["active"].sum() + nodes["idle"].sum()),
        "kv_resident": float(_resident_tokens(simulation, state, lane)),
        "kv_fullest": float(
            np.where(simulation.nodes == P, nodes["idle"], nodes["active"] + nodes["idle"]).max()
        ),
        "kv_capacity": float(simulation.kv_capacity),
        "bytes_sent": float(links["sent_bytes"].sum()),
        "bytes_received": float(links["received_bytes"].sum()),
        "bytes_in_flight": float(flying),
        "clock_s": float(episode["clock_s"]),
    }


def _resident_tokens(simulation: PPDCluster, state: State, lane: int) -> int:
    """Tokens in all caches, gathered from the batches and from what is held of each conversation."""
    conversations = state.conversation[lane, : state.lane["conversations"][lane]]
    number = np.arange(len(conversations))
    tokens = 0
    for n, role in enumerate(simulation.nodes):
        node = state.node[lane, n]
        side, name = (0, "p") if role == P else (1, "d")
        entries = state.cache[lane, 2 * number[conversations[name] == n] + side]
        tokens += int(entries["tokens"][entries["listed"] == 1].sum())
        if role == P:
            continue
        batch = conversations[state.running[lane, n, : node["running"]]]
        held = batch["context"] + batch["prompt"]
        decodes = np.arange(len(batch)) < node["decoding"]
        tokens += int((held + np.where(decodes, node["tick"] - batch["base"], batch["kept"])).sum())
    return tokens


def _under_way(state: State, lane: int) -> NDArray[np.int64]:
    """Conversations that are under way, gathered from the gate, the heap, the lines and the batches, int64 [n]."""
    episode = state.lane[lane]
    numbers = [*range(episode["gate"], episode["next"]), *state.heap[lane, : episode["size"]].tolist()]
    if episode["current"] >= 0:
        numbers.append(int(episode["current"]))
    for n, node in enumerate(state.node[lane]):
        c = int(node["head"])
        while c >= 0:
            numbers.append(c)
            c = int(state.conversation["next"][lane, c])
        if node["serving"] >= 0:
            numbers.append(int(node["serving"]))
        numbers.extend(state.running[lane, n, : node["running"]].tolist())
    return np.array(numbers, np.int64)
