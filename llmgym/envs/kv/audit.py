"""Recounts of KVQueue and KVProvision from their raw arrays, for the tests."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmgym.envs.kv.provision.env import KVProvision
from llmgym.envs.kv.provision.state import REQUESTS, WORK_S
from llmgym.envs.kv.provision.state import State as ProvisionState
from llmgym.envs.kv.queue.env import KVQueue
from llmgym.envs.kv.queue.state import State as QueueState
from llmgym.serving.capacity import exact_area
from llmgym.serving.queue import FIRST, HEAD, TAIL
from llmgym.serving.requests import FIRST_TOKENS
from llmgym.serving.state import EngineState


class Inside(NamedTuple):
    """Who is in one engine.

    Attributes:
        residents: records of the residents.
        waiting: numbers of the waiting requests, next first, int32 [n].
        produced: output of each resident so far, tokens, int [residents].
        kv: whole blocks of the cache that each resident holds, tokens, int [residents].
    """

    residents: NDArray[Any]
    waiting: NDArray[np.int32]
    produced: NDArray[Any]
    kv: NDArray[Any]


def inside(state: EngineState, lane: int, first_token: str, block: int = 1) -> Inside:
    """Who is in an engine, and what they hold.

    Args:
        state: the arrays of the engines.
        lane: number of the engine.
        first_token: when the first output token appears, a key of `FIRST_TOKENS`.
        block: size of a cache block, tokens.
    """
    engine, line = state.lane[lane], state.queue[lane, 0]
    residents = state.resident[lane, : engine["residents"]]
    first, stored = FIRST_TOKENS[first_token]
    decoding = residents["decoding"] == 1
    produced = np.where(decoding, engine["tick"] - residents["base"], residents["kept"])
    own = residents["prompt"] - residents["kept"]
    kv = np.where(decoding, own + produced - (first - stored), residents["prefilled"])
    waiting = line[FIRST + line[HEAD] : FIRST + line[TAIL]]
    return Inside(residents, waiting, produced, -(-kv // block) * block)


def queue(simulation: KVQueue, state: QueueState, lane: int) -> dict[str, float]:
    """Requests, tokens and work of one lane of KVQueue, either version.

    Args:
        simulation: of the lane.
        state: arrays of all lanes.
        lane: which one.

    Returns:
        What `EnvSpec.auditor` names, and `kv_planned`, tokens in the cache after the planned batch.
    """
    scenario, episode, requests = simulation.scenario, state.lane[lane], state.request[lane]
    residents, waiting, produced, kv = inside(state, lane, scenario.first_token, scenario.block)
    lives = residents["gone"] == 0  # others have completed, and only hold their seats and blocks
    living, produced = residents[lives], produced[lives]
    came = np.arange(int(episode["requests"])) < episode["next"]
    if simulation.params.config[0]["conversations"]:  # numbers are not in order of arrival
        came = requests["ticket"][: len(came)] >= 0
    arrived = int(came.sum())
    served = np.flatnonzero((requests["e2e_s"][: len(came)] >= 0) & came)
    rejected = np.flatnonzero((requests["prompt"][: len(came)] >= scenario.longest) & came)
    everyone = np.concatenate([living["request"], waiting, served, rejected])
    blocks = state.prefix.block[lane]
    # several may hold one block; those of the planned batch are handed out with the plan
    held = scenario.block * int((blocks["held"][1:] > 0).sum()) - (
        0 if episode["short"] else episode["growth"]
    )
    outputs, kept = requests["output"], requests["kept"]
    return {
        "arrived": float(arrived),
        "arrived_counted": float(episode["next"]),
        "waiting": float(len(waiting)),
        "waiting_counted": float(episode["waiting"]),
        "running": float(len(living)),
        "running_counted": float(episode["residents"] - episode["leaving"]),
        "done": float(len(served)),
        "done_counted": float(episode["done"]),
        "rejected": float(len(rejected)),
        "distinct": float(len(np.unique(everyone))),
        "kv_used": float(episode["used"]),
        "kv_resident": float(kv[residents["paused"] == 0].sum() if len(blocks) == 0 else held),
        "kv_capacity": float(scenario.kv_capacity or 0),
        # a plan that does not fit waits for a victim, and runs only then
        "kv_planned": float(episode["used"] + (0 if episode["short"] else episode["growth"])),
        "clock_s": float(episode["clock_s"]),
        "work_asked": float(outputs[: len(came)][came].sum() - outputs[rejected].sum()),
        "work_done": float(outputs[served].sum() + produced.sum() + kept[waiting].sum()),
        "work_left": float((living["output"] - produced).sum() + (outputs[waiting] - kept[waiting]).sum()),
    }


def potential(simulation: KVQueue, state: QueueState, lane: int) -> int:
    """V, the area that every request in the system still has to take, from true lengths.

    With no recompute and no budget, V falls in every batch by exactly the tokens of the residents that ran, and rises by the
    area of the requests that arrive (section 3 of Nie, Si and Zhou).

    Args:
        simulation: of the lane.
        state: arrays of all lanes.
        lane: which one.

    Returns:
        Tokens x batches.
    """
    chunk, (first, stored) = simulation.scenario.chunk, FIRST_TOKENS[simulation.scenario.first_token]
    residents, waiting, produced, _ = inside(state, lane, simulation.scenario.first_token)
    total = 0
    for r, done in zip(residents, produced.tolist(), strict=True):
        prompt, prefilled = int(r["prompt"]), int(r["prefilled"])
        while prefilled < prompt:
            prefilled = min(prefilled + chunk, prompt)
            total += prefilled
            if prefilled == prompt:
                done += first
                total += stored
        before = prompt - int(r["kept"]) - (first - stored)
        total += sum(before + token for token in range(done + 1, int(r["output"]) + 1))
    prompts, outputs = state.request["prompt"][lane, waiting], state.request["output"][lane, waiting]
    return total + int(exact_area(prompts, outputs, chunk, first, stored).sum())


def provision(simulation: KVProvision, state: ProvisionState, lane: int) -> dict[str, float]:
    """Requests and tokens of all replicas of one lane of KVProvision.

    Args:
        simulation: of the lane.
        state: arrays of all lanes.
        lane: which one.

    Returns:
        What `EnvSpec.auditor` names; in event mode also `live`, slots in use, and `kv_fullest`, the most tokens in a cache so far.
    """
    if simulation.scenario.mode == "fluid":
        return _fluid(simulation, state, lane)
    scenario, episode, engines = simulation.scenario, state.lane[lane], state.engine
    replicas = range(lane * scenario.max_replicas, (lane + 1) * scenario.max_replicas)
    records = engines.lane[replicas.start : replicas.stop]
    waiting = kv = distinct = area = 0
    for e in replicas:
        one = inside(engines, e, scenario.first_token)
        waiting += len(one.waiting)
        area += int(engines.request["area"][e, one.waiting].sum())
        kv += int(one.kv[one.residents["paused"] == 0].sum())
        distinct += len(np.unique(np.concatenate([one.residents["request"], one.waiting])))
    clock_s = float(episode["epoch"] * scenario.epoch_s)
    requests = state.request[lane, : episode["requests"]]
    prompts = requests["prompt"]
    door = int(np.sum(prompts[episode["next"] : episode["arrived"]] > 0))
    return {
        "arrived": float(np.sum(requests["arrival_s"] < clock_s)),
        "waiting": float(waiting + door),
        "waiting_counted": float(episode["waiting"]),
        "waiting_area": float(area),
        "waiting_area_counted": float(records["waiting_area"].sum()),
        "running": float(records["residents"].sum()),
        "live": float(records["filled"].sum()),
        "distinct": float(distinct),
        "done": float(episode["served"]),
        "done_counted": float(records["done"].sum()),
        "rejected": float(np.sum(prompts[: episode["arrived"]] == 0)),
        "kv_used": float(records["used"].sum()),
        "kv_resident": float(kv),
        "kv_fullest": float(records["kv_peak"].max()),
        "kv_capacity": float(simulation.kv_capacity),
        "clock_s": clock_s,
    }


def _fluid(simulation: KVProvision, state: ProvisionState, lane: int) -> dict[str, float]:
    episode = state.lane[lane]
    clock_s = float(episode["epoch"] * simulation.scenario.epoch_s)
    parcel = float(simulation.params.config["parcel"][0])
    requests = state.request[lane, : episode["requests"]]
    parcels = requests[requests["arrival_s"] < clock_s]
    return {
        "arrived": len(parcels) * parcel,
        "waiting": float(state.fluid[lane, REQUESTS]),
        "running": 0.0,
        "done": float(episode["completed"]),
        "rejected": 0.0,
        "clock_s": clock_s,
        "work_asked": float(simulation.params.work[parcels["request_class"], WORK_S].sum() * parcel),
        "work_done": float(episode["used_s"]),
        "work_left": float(state.fluid[lane, WORK_S]),
    }
