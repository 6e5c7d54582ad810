"""Recounts of a lane from its raw arrays, for tests; `llmgym.core.spec.EnvSpec.auditor` says what the numbers are."""

import numpy as np

from llmgym.envs.attention.env import AttentionBudget
from llmgym.envs.attention.state import State


def audit(simulation: AttentionBudget, state: State, lane: int) -> dict[str, float]:
    """Recount a lane of AttentionBudget.

    Args:
        simulation: the environment's.
        state: arrays of all lanes.
        lane: the lane that is recounted.

    Returns:
        Batches, tokens and the ledger from the records of the batches.
    """
    episode, batch = state.lane[lane], state.batch[lane]
    clock_s = float(episode["clock_s"])
    arrived = batch["arrival_s"] <= clock_s
    done = batch["action"] >= 0
    tokens = batch["length"].astype(np.float64) * batch["requests"]
    kernel = np.maximum(batch["action"], 0) // len(simulation.splits)
    loss = simulation.params.tables.kernels["loss"][kernel]
    asked, served = float(tokens[arrived].sum()), float(tokens[done].sum())
    return {
        "arrived": float(arrived.sum()),
        "waiting": float((arrived & ~done).sum()),
        "running": 0.0,
        "done": float(done.sum()),
        "served": float(episode["done"]),
        "served_counted": float(done.sum()),
        "clock_s": clock_s,
        "energy_j": float(episode["energy_j"]),
        "tokens": float(episode["tokens"]),
        "tokens_counted": served,
        "work_asked": asked,
        "work_done": served,
        "work_left": float(tokens[arrived & ~done].sum()),
        "ledger_error": abs(float(episode["spent"]) - float((tokens * loss)[done].sum())) / max(asked, 1.0),
    }
