"""What nobody can know in OServe: the rates that are still to come, the requests, and the answers of those that wait."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmgym.envs.oserve.state import Params, State
from llmgym.serving.hidden import redraw_arrivals

HIDDEN = {
    "lane.requests": "at the end of the episode",
    "lane.checksum": "at the end of the episode",
    "arrival_s": "on arrival",
    "arrival_class": "on arrival; what of it is no more than a type, on admission",
    "request.request_class": "on admission, as far as its type leaves it open",
    "demand": "never: counts are",
}
SHOWN = frozenset(
    {
        *("clock", "plan", "flow", "scratch", "heap_at"),
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
    episode = state.lane[lane]
    arrived = int(episode["next"])
    coming = other.arrival_s[0, : other.lane[0]["requests"]] >= episode["epoch"] * params.config[0]["epoch_s"]
    number = np.arange(state.arrival_s.shape[1])
    episode["requests"] = redraw_arrivals(number, arrived, np.flatnonzero(coming), rng)
    new = slice(arrived, int(episode["requests"]))
    state.arrival_s[lane, new] = other.arrival_s[0, number[new]]
    state.arrival_class[lane, new] = other.arrival_class[0, number[new]]
    state.demand[lane] = other.demand[0]
    fits = np.isfinite(params.work_s)
    requests: Any = state.request[lane]
    waiting, _ = in_system(state, lane)
    for r in waiting[requests["ttft_s"][waiting] < 0.0].tolist():
        c = requests["request_class"][r]
        alike = (params.guess == params.guess[c]) & (params.lengths[:, 0] == params.lengths[c, 0])
        possible = np.flatnonzero(alike & (fits == fits[:, [c]]).all(axis=0))
        requests["request_class"][r] = rng.choice(possible)
    arrivals = slice(0, int(episode["requests"]))
    episode["checksum"] = float((state.arrival_s[lane, arrivals] + state.arrival_class[lane, arrivals]).sum())


def in_system(state: State, lane: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The requests of a lane that have not completed.

    Args:
        state: arrays of all lanes.
        lane: which one.

    Returns:
        Rows of `State.request`: int64 [waiting], of those in the lines of the replicas, and int64 [running].
    """
    waiting: list[int] = []
    running: list[int] = []
    for k, slot in enumerate(state.slot[lane]):
        if slot["shape"] >= 0:
            r = int(slot["head"])
            for _ in range(slot["waiting"]):
                waiting.append(r)
                r = int(state.request["next"][lane, r])
            running += state.heap_id[lane, k, : slot["running"]].tolist()
    return np.array(waiting, np.int64), np.array(running, np.int64)
