"""Recount of a lane from its raw arrays, for tests; `llmgym.core.spec.EnvSpec.auditor` says what the numbers are."""

import numpy as np

from llmgym.envs.forage.env import Forage
from llmgym.envs.forage.kernels import (
    CLAIM_TOKENS,
    COMMIT_TOKENS,
    EVALUATE_TOKENS,
    GREP_TOKENS,
    HIT_TOKENS,
    READ_PARTS,
    SCAN_TOKENS,
    WRITTEN,
)
from llmgym.envs.forage.state import NOTHING, OPENED, Episode, State


def forage(simulation: Forage, state: State, lane: int) -> dict[str, float]:
    """Recount a lane of Forage.

    Args:
        simulation: the environment's.
        state: arrays of all lanes.
        lane: the lane that is recounted.

    Returns:
        Actions as requests that are done at once, tokens from the counts of calls, claims from the keys.
    """
    episode, keys = state.lane[lane], state.key[lane]
    counts = {name: int(episode[name]) for name in Episode.declared if episode.dtype[name].kind == "i"}
    calls = sum(
        counts[name]
        for name in ("greps", "scans", "reads", "commits", "evaluations", "blocks", "queries", "answers")
    )
    part = simulation.scenario.chunk_tokens
    whole = simulation.scenario.chunks * bool(episode["whole"])
    tokens = float(episode["prompt"]) + WRITTEN * calls
    tokens += GREP_TOKENS * counts["greps"] + HIT_TOKENS * counts["found"] + SCAN_TOKENS * counts["scans"]
    tokens += np.floor(READ_PARTS * part + 0.5) * counts["reads"] + COMMIT_TOKENS * counts["commits"]
    tokens += EVALUATE_TOKENS * counts["evaluations"] + CLAIM_TOKENS * counts["told"]
    tokens += part * (counts["retrieved"] + counts["blocked"] + whole)
    # an answer that was forced is no action of its own
    taken = calls - counts["queries"] + counts["retrievals"] + counts["focuses"] + counts["invalid"]
    forced = bool(taken > counts["steps"])
    opened = np.count_nonzero(state.passage[lane]["seen"] & OPENED)
    return {
        "arrived": float(counts["steps"]),
        "waiting": 0.0,
        "running": 0.0,
        "done": float(taken - forced),
        "clock_s": float(episode["clock_s"]),
        "tokens": float(episode["tokens"]),
        "tokens_counted": float(tokens),
        "work_asked": float(episode["facts"]),
        "work_done": float(np.count_nonzero(keys["claim"][: episode["facts"]] != NOTHING)),
        "work_left": float(np.count_nonzero(keys["claim"][: episode["facts"]] == NOTHING)),
        "opened": float(opened),
    }
