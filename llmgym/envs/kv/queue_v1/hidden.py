"""Another future of a lane of KVQueue-v1: what is still to come, drawn anew so that everything seen so far stays as it is."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmgym.serving.hidden import redraw_outputs
from llmgym.serving.queue import FIRST, HEAD, TAIL

CUT = 0.25
"""Share of the links between a turn and a next one, not yet seen, that are cut: the rest comes as a conversation of its own."""
LEAST = 2
"""Tokens of a turn at least: a new one, and an answer."""


def redraw_future(state: Any, params: Any, lane: int, drawn: NDArray[Any], rng: np.random.Generator) -> None:
    """Draw anew who comes and when, how long prompts and answers are that nobody has seen, and how conversations go on.

    Args:
        state: arrays of all lanes.
        params: what they share.
        lane: which one.
        drawn: requests of another world, whose lengths are taken.
        rng: draws.
    """
    episode, config = state.lane[lane], params.config[0]
    count = _fewer(state.request[lane], int(episode["requests"]), rng)
    requests = state.request[lane, :count]
    seen = requests["ticket"] >= 0
    reach = _reach(requests)
    later = _turns_after(requests)
    # answers first: each leaves room for the turns after it
    redraw_outputs(state, lane, seen, reach - LEAST * later, drawn["output"], rng)
    new = rng.choice(drawn["prompt"], count)
    output = rng.choice(drawn["output"], count)
    for i in np.flatnonzero(~seen):
        before = np.flatnonzero(requests["follower"][:i] == i)
        base = 0 if len(before) == 0 else int(requests[before[0]]["prompt"] + requests[before[0]]["output"])
        room = int(reach[i] - LEAST * later[i]) - base
        requests[i]["prompt"] = base + min(max(int(new[i]) - base, 1), room - 1)
        requests[i]["output"] = min(int(output[i]), base + room - int(requests[i]["prompt"]))
        if requests[i]["predicted"] > 0:
            requests[i]["predicted"] = max(1, round(requests[i]["output"] * rng.lognormal(0.0, 0.5)))
        requests[i]["request_class"] = rng.choice(drawn["request_class"])
        requests[i]["priority"] = requests[i]["request_class"]
        requests[i]["think_s"] = rng.exponential(config["window_s"]) if requests[i]["think_s"] > 0.0 else 0.0
    _cut(requests, rng)
    _come(state, params, lane, requests, rng)
    episode["requests"], episode["per_request"] = count, 1.0 / max(count, 1)
    episode["weight"] = params.objectives["weight"][requests["request_class"]].sum()


def _fewer(requests: NDArray[Any], count: int, rng: np.random.Generator) -> int:
    """How many requests there are now: some of the last sessions, of which nothing has been seen, never come."""
    session = requests["session"][:count]
    last = int(session[requests["ticket"][:count] >= 0].max(initial=0))
    stays = int(rng.integers(last, session[-1], endpoint=True))
    return int(np.searchsorted(session, stays, side="right"))


def _reach(requests: NDArray[Any]) -> NDArray[np.int64]:
    """Tokens of each request's conversation at its end: its blocks have keys up to there."""
    ends = np.zeros(int(requests["session"].max()) + 1, np.int64)
    np.maximum.at(ends, requests["session"], requests["prompt"].astype(np.int64) + requests["output"])
    return ends[requests["session"]]


def _turns_after(requests: NDArray[Any]) -> NDArray[np.int64]:
    """Turns that come after each request in its conversation."""
    after = np.zeros(len(requests), np.int64)
    for i in range(len(requests) - 1, -1, -1):
        follower = requests[i]["follower"]
        if follower > 0:
            after[i] = after[follower] + 1
    return after


def _cut(requests: NDArray[Any], rng: np.random.Generator) -> None:
    for i in np.flatnonzero(requests["follower"] > 0):
        follower = requests[i]["follower"]
        if requests[follower]["ticket"] < 0 and rng.random() < CUT:
            requests[i]["follower"], requests[follower]["think_s"] = 0, 0.0


def _come(state: Any, params: Any, lane: int, requests: NDArray[Any], rng: np.random.Generator) -> None:
    """Draw arrivals later than now, and write the heap of those whose time is settled."""
    episode = state.lane[lane]
    now_s = max(float(episode["clock_s"]), float(episode["seen_s"]))
    follows = np.zeros(len(requests), bool)
    follows[requests["follower"][requests["follower"] > 0]] = True
    first = np.flatnonzero((requests["ticket"] < 0) & ~follows)
    gap_s = float(params.config[0]["window_s"])
    requests["arrival_s"][first] = now_s + np.cumsum(rng.exponential(gap_s, len(first)) + 1e-9)
    answered = np.flatnonzero((requests["e2e_s"] >= 0.0) & (requests["follower"] > 0))
    thinking = requests["follower"][answered]
    thinking = thinking[requests["ticket"][thinking] < 0]
    requests["arrival_s"][thinking] = now_s + rng.exponential(gap_s, len(thinking)) + 1e-9
    coming = np.concatenate([first, thinking])
    coming = coming[np.lexsort((coming, requests["arrival_s"][coming]))]
    line = state.queue[lane, len(params.orders)]
    line[HEAD], line[TAIL] = 0, len(coming)
    line[FIRST : FIRST + len(coming)] = coming
