"""What a scheduler cannot know: who will still arrive, and how long the outputs will be that have not ended.

The environments that declare what is hidden (`llmgym.core.lanes.Simulation.redraw`) draw it anew with this.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmgym.serving.state import FAR, EngineState


def redraw_arrivals(
    requests: NDArray[Any], arrived: int, coming: NDArray[Any], rng: np.random.Generator
) -> int:
    """Let others arrive after those that have arrived, and another number of them.

    Args:
        requests: records [n] of a lane, in order of arrival; those from `arrived` on are written over.
        arrived: how many have arrived.
        coming: records of another world that arrive later than now.
        rng: draws how many of these, at least one where there is any.

    Returns:
        How many requests the lane has now in all, at most n.
    """
    room = min(len(coming), len(requests) - arrived)
    count = arrived + (int(rng.integers(1, room, endpoint=True)) if room else 0)
    requests[arrived:count] = coming[: count - arrived]
    return count


def redraw_outputs(
    state: EngineState,
    lane: int,
    arrived: int | NDArray[np.bool_],
    longest: int | NDArray[np.int64],
    pool: NDArray[np.integer[Any]],
    rng: np.random.Generator,
) -> None:
    """Draw another rest of the output of every request that an engine has and that has not ended.

    What a request has produced stays, and so it will produce at least one token more. Predictions stay, since they were told.

    Args:
        state: the arrays of the engines.
        lane: number of the engine.
        arrived: requests that the engine knows: so many of the first ones of its row, or bool [n] where they are.
        longest: tokens a request may reach, all or int64 [n] each.
        pool: int [n], output lengths to draw from, tokens; where it is empty, every output ends with the next token.
        rng: draws them.
    """
    engine, requests = state.lane[lane], state.request[lane]
    running = state.resident[lane, : engine["residents"]]
    decoding = running["decoding"] == 1
    produced = requests["kept"].copy()
    produced[running["request"]] = np.where(decoding, engine["tick"] - running["base"], running["kept"])
    # what is rejected never runs, and so tells nothing about its output
    known = np.arange(arrived) >= 0 if isinstance(arrived, int) else arrived
    unfinished = np.flatnonzero((requests["e2e_s"][: len(known)] < 0) & known)
    least = produced[unfinished] + 1
    limit = longest if isinstance(longest, int) else longest[unfinished]
    most = np.maximum(limit - requests["prompt"][unfinished], least)
    drawn = rng.choice(pool, len(unfinished)) if len(pool) else least
    requests["output"][unfinished] = np.clip(drawn, least, most)
    running["output"] = requests["output"][running["request"]]
    running["finish"][decoding] = (running["base"] + running["output"])[decoding]
    engine["next_finish"] = running["finish"][decoding].min(initial=FAR)
