"""Recounts of a lane from its raw arrays, for tests; `llmgym.core.spec.EnvSpec.auditor` says what the numbers are."""

import numpy as np

from llmgym.envs.unmask.env import Unmask
from llmgym.envs.unmask.state import State


def positions(simulation: Unmask, state: State, lane: int) -> dict[str, float]:
    """Recount a lane of Unmask: a request is a token, running while it is chosen, done when it is known.

    Args:
        simulation: the environment's.
        state: arrays of all lanes.
        lane: the lane that is recounted.

    Returns:
        Tokens from the text, calls from the call of each token, divergence from what each call added.
    """
    episode, scenario = state.lane[lane], simulation.scenario
    known = state.token[lane, scenario.prompt :] >= 0
    calls = int(episode["calls"])
    revealed_by = state.call_of[lane][known]
    filled = np.repeat(np.arange(scenario.tokens // scenario.block), scenario.block)[known]
    blocks = {int(call): int(filled[revealed_by == call].max(initial=0)) for call in range(calls)}
    chosen = float(state.chosen[lane].sum())
    return {
        "arrived": float(scenario.tokens),
        "waiting": float((~known).sum()) - chosen,
        "running": chosen,
        "done": float(known.sum()),
        "clock_s": float(episode["clock_s"]),
        "work_asked": float(scenario.tokens),
        "work_done": float(episode["revealed"]),
        "work_left": float((~known).sum()),
        "calls": float(calls),
        "calls_counted": float(len(np.unique(revealed_by))),
        "seconds": round(float(episode["clock_s"]), 9),
        "seconds_counted": round(float(sum(simulation.call_s[block] for block in blocks.values())), 9),
        "known_here": float(scenario.block - state.masked[lane].sum()),
        "known_here_counted": float(_known_here(state, lane, scenario.prompt, scenario.block)),
    }


def _known_here(state: State, lane: int, prompt: int, block: int) -> int:
    """Known tokens of the present block; all of the last one when the text is complete."""
    here = min(int(state.lane[lane]["block"]) * block, state.token.shape[1] - prompt - block)
    return int((state.token[lane, prompt + here : prompt + here + block] >= 0).sum())
