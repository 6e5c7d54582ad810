"""Conversations drawn in compiled code: like `llmgym.workloads.traffic.draw`, and besides who follows whom.

The turns of a session have numbers that follow each other, and sessions are numbered by arrival, so that first turns are in order
of arrival; the followers of one session stand between the first turns of two. When a follower arrives nobody knows before the
turn before it is answered: until then its time is that of its session, so that the times of a draw never decrease. Every
quantity of a turn has its counter-based stream, numbered by session and turn.
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from llmgym.core.jit import kernel
from llmgym.core.records import Records, float64, int32
from llmgym.core.rng import exponential, normal, substream, uniform
from llmgym.workloads.traffic import (
    CLASS_WIDTH,
    STREAMS,
    Drawn,
    Head,
    Traffic,
    draw,
    quantile,
    scores,
    told,
    whole_tokens,
)

EXPONENTIAL, LOGNORMAL = 0, 1  # head.think_law
_TURNS, _TALK, _THINK, _NOISE = range(STREAMS, STREAMS + 4)
"""Numbers of the streams of a key, beside those of `traffic`."""


class Turn(Drawn):
    """What `draw_turns` writes for each request."""

    session: int = int32("Number of its session, from 0 on by arrival.")
    follower: int = int32("Number of the next turn of its session; 0 if there is none.")
    think_s: float = float64(
        "Time from the last token of the turn before it to its arrival, seconds; 0 of a first turn."
    )


@kernel
def _next(
    head: Head, table: npt.NDArray[np.float64], kind: int, talk: np.uint64, turn: int
) -> tuple[int, int]:
    """New tokens of a turn after the first, and those of its answer."""
    at = head.class_at + kind * CLASS_WIDTH
    u_new, u_output = scores(table, at, talk, turn)
    law = head.new_at if head.new_at >= 0 else int(table[at + 4])
    new = whole_tokens(quantile(table, law, u_new))
    return new, whole_tokens(quantile(table, int(table[at + 5]), u_output))


@kernel
def _think_s(head: Head, think: np.uint64, turn: int) -> float:
    if head.think_law == EXPONENTIAL:
        return head.think_s * exponential(think, turn)
    sigma = head.think_sigma
    return head.think_s * math.exp(sigma * normal(think, turn) - 0.5 * sigma * sigma)


@kernel
def draw_turns(
    traffic: Traffic, key: np.uint64, horizon_s: float, longest: int, requests: Records[Any]
) -> int:
    """Fill one lane's requests, the turns of one session after the other; the same traffic and key give the same bits.

    Traffic without conversations is that of `draw`, and each request is a session of its own.

    Args:
        traffic: the packed workload.
        key: seeds this world, uint64.
        horizon_s: stop before the first session later than this, seconds; `inf` fills all records.
        longest: prompt and output of a turn together, tokens at most, if that is less than the workload says. A conversation ends
            before a turn that would be longer; a first turn is shortened.
        requests: records [n] with the fields of `Turn`; other fields are left alone. A conversation that has no room ends early, so
            a longer draw has the same turns and may go on after the last.

    Returns:
        How many requests were written, at most n.
    """
    head = traffic.head[0]
    table = traffic.table
    size = len(requests)
    sessions = draw(traffic, key, horizon_s, requests)
    if head.conversations == 0:
        for i in range(sessions):
            requests[i].session, requests[i].follower, requests[i].think_s = i, 0, 0.0
        return sessions
    most = min(longest, head.longest)
    # First the numbers of turns, kept where the sessions are; then the turns, the last session first, as none is in front of its
    # place.
    filled, count = 0, 0
    while count < sessions and filled < size:
        r = requests[count]
        r.prompt = min(r.prompt, most - 1)
        r.output = min(r.output, most - r.prompt)
        r.predicted = min(r.predicted, most - r.prompt)
        wanted = whole_tokens(quantile(table, head.turns_at, uniform(substream(key, _TURNS), count)))
        talk = substream(substream(key, _TALK), count)
        reach, turns = r.prompt + r.output, 1
        while turns < min(wanted, size - filled):
            new, output = _next(head, table, r.request_class, talk, turns)
            if reach + new + output > most:
                break
            reach += new + output
            turns += 1
        r.follower = turns
        filled += turns
        count += 1
    number = filled
    for session in range(count - 1, -1, -1):
        r = requests[session]
        arrival_s, kind, turns = r.arrival_s, r.request_class, r.follower
        prompt, output, predicted = r.prompt, r.output, r.predicted
        talk, think = substream(substream(key, _TALK), session), substream(substream(key, _THINK), session)
        noise = substream(substream(key, _NOISE), session)
        number -= turns
        for turn in range(turns):
            r = requests[number + turn]
            r.think_s = 0.0
            if turn > 0:
                before = prompt + output
                new, output = _next(head, table, kind, talk, turn)
                prompt = before + new
                predicted = told(head, table, kind, output, noise, turn)
                predicted = min(predicted, most - prompt)
                r.think_s = _think_s(head, think, turn)
            r.arrival_s, r.request_class, r.session = arrival_s, kind, session
            r.prompt, r.output, r.predicted = prompt, output, predicted
            r.follower = number + turn + 1 if turn + 1 < turns else 0
    return filled
