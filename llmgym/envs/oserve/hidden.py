"""What nobody can know in OServe: the rates that are still to come, the requests, and the answers of those that wait."""

from typing import Any

import numpy as np

from llmgym.envs.oserve.state import Params, State
from llmgym.serving.hidden import redraw_arrivals

HIDDEN = {
    "lane.requests": "at the end of the episode",
    "lane.checksum": "at the end of the episode",
    "request.arrival_s": "on arrival",
    "request.request_class": "on arrival; what of it is no more than a type, on admission",
    "demand": "never: counts are",
}
SHOWN = frozenset(
    {
        *("clock", "plan", "flow", "scratch", "heap_at"),
        # how far a request has got: nowhere, where it is still to arrive
        *(f"request.{name}" for name in ("left", "began_s", "e2e_s", "ttft_s", "next", "node")),
    }
)


def redraw(params: Params, state: State, lane: int, other: State, rng: np.random.Generator) -> None:
    """Give a lane other rates and arrivals from now on, and what waits other answers, as far as its types leave them open.

    An engine reserves the answer when it admits a request, so the class of a running one is known.

    Args:
        params: numbers and tables that all lanes share.
        state: arrays of all lanes, written over.
        lane: which one.
        other: arrays of one lane at the beginning of another episode.
        rng: draws how much arrives, and the answers.
    """
    episode, requests = state.lane[lane], state.request[lane]
    arrived = int(episode["next"])
    drawn: Any = other.request[0, : other.lane[0]["requests"]]
    now_s = episode["epoch"] * params.config[0]["epoch_s"]
    coming = drawn[drawn["arrival_s"] >= now_s]
    episode["requests"] = redraw_arrivals(requests, arrived, coming, rng)
    state.demand[lane] = other.demand[0]
    fits = np.isfinite(params.work_s)
    waits = (requests["began_s"][:arrived] < 0.0) & (requests["e2e_s"][:arrived] < 0.0)
    for r in np.flatnonzero(waits).tolist():
        c = requests["request_class"][r]
        alike = (params.guess == params.guess[c]) & (params.lengths[:, 0] == params.lengths[c, 0])
        possible = np.flatnonzero(alike & (fits == fits[:, [c]]).all(axis=0))
        requests["request_class"][r] = rng.choice(possible)
    all_of_them: Any = requests[: episode["requests"]]
    episode["checksum"] = float((all_of_them["arrival_s"] + all_of_them["request_class"]).sum())
