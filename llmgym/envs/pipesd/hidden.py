"""What an edge of PipeSDNav and PipeSDTune cannot know, and how it is drawn anew (see `Simulation.redraw`).

Whether a drafted token is accepted shows at the verdict. Text, drafting times, bandwidths and the ends of what is under way show
when they come. The first second's bandwidth is known from the probes, that of another second once an upload that began in it is
through. A change of speeds (`change_at`) is in no array: what it does shows in the times of what comes after it.
"""

import numpy as np
from numpy.typing import NDArray

from llmgym.envs.pipesd.draft_tokens import Cursor, Packed
from llmgym.envs.pipesd.state import (
    ASK,
    CHECK,
    DONE,
    NEVER,
    NO_GUESS,
    RIGHT,
    SEND,
    WAITING,
    WRONG,
    Client,
    Config,
    Params,
    State,
)

TRIES = 64
"""Drafting times that are drawn to find one that is longer than what has passed."""

HIDDEN = {
    "lane.checksum": "at the end of the episode",
    "lane.cloud_free_s": "when the verdict comes",
    "lane.cloud_busy_s": "when the verdict comes: booked to the end of a verification",
    "client.key": "never: text and drafting times to come",
    "client.took_s": "when the token is drafted",
    "client.token_s": "when the token is drafted",
    "client.arrival_s": "when the upload is through",
    "client.verdict_s": "when the verdict comes",
    "client.rejected": "at the verdict",
    "client.awaited_rejected": "at the verdict",
    "client.guess": "at the verdict: whether it is right",
    "cursor": "at verdicts, as far as they tell the place in the text",
    "link.free_s": "when the last upload in line is through",
    "line.start_s": "when the upload begins",
    "line.end_s": "when the upload is through",
    "rates": "second by second, as far as uploads are timed",
    "interval": "for pictures: a verification under way, when it ends",
}
SHOWN = frozenset(
    {
        "lane.clock_s",
        "lane.turn",
        "client.block",
        "client.drafted",
        "client.product",
        "client.confidence",
        "client.recent",
        "estimate",  # what was timed, probes before the episode included
        "log",
        "ends",
        "work",
    }
)


def redraw(params: Params, state: State, lane: int, other: State, rng: np.random.Generator) -> None:
    """Draw another text from here on, other verdicts on what was drafted, and other times of what is under way.

    Args:
        params: shared by all lanes.
        state: arrays of all lanes.
        lane: which one.
        other: one lane of another world when it begins.
        rng: draws what the other world does not say.
    """
    episode, clients, config = state.lane[lane], state.client[lane], params.config[0]
    now = float(episode["clock_s"])
    stretch = rng.uniform(0.5, 2.0)  # of the cloud's work: one factor, so that the order of verdicts stays
    rows = state.interval[lane, : min(int(episode["intervals"]), state.interval.shape[1])]
    for k, client in enumerate(clients):
        uploads = rows[np.isin(rows["activity"], (SEND, ASK)) & (rows["client"] == k)]
        timed = {int(upload["start_s"]) for upload in uploads}
        _redraw_uplink(params, state, lane, k, other.rates[0, k], timed, rng)
        client["key"] = other.client["key"][0, k]
        if client["phase"] == DONE:
            continue
        _redraw_verdicts(client, state.cursor[lane, k], params.text, rng)
        if config["gamma_jitter"] > 0.0 and client["token_s"] < NEVER:
            _redraw_drafting(client, config, now, rng)
        if NEVER > client["verdict_s"] > now:
            client["verdict_s"] = now + stretch * (client["verdict_s"] - now)
    if episode["cloud_free_s"] > now:
        more = (stretch - 1.0) * (float(episode["cloud_free_s"]) - now)
        episode["cloud_free_s"] += more
        episode["cloud_busy_s"] += more
    checks = rows["activity"] == CHECK
    for end in ("start_s", "end_s"):
        late = checks & (rows[end] > now)
        rows[end][late] = now + stretch * (rows[end][late] - now)
    episode["checksum"] = other.lane["checksum"][0]


def _redraw_verdicts(client: Client, cursor: Cursor, text: Packed, rng: np.random.Generator) -> None:
    """Which of the tokens without a verdict is the first that will be rejected, and a place in the text that agrees with it."""
    waiting = client["phase"] == WAITING
    awaited = int(client["awaited"]) if waiting else 0
    guessed = int(waiting and client["guess"] != NO_GUESS)
    drafted = awaited + guessed + int(client["block"])
    wrong = int(rng.integers(-1, drafted))  # in the order of drafting; -1: none
    if waiting:
        client["awaited_rejected"] = wrong if wrong < awaited else -1
    if guessed:
        client["guess"] = WRONG if 0 <= wrong <= awaited else RIGHT
    if wrong < 0 or client["block"] == 0:
        client["rejected"] = -1
    else:
        client["rejected"] = max(wrong - awaited - guessed, 0)
    cursor["position"] = client["output"] + (drafted if wrong < 0 else wrong + 1)
    cursor["beside"] = 0 if wrong < 0 else drafted - wrong
    cursor["hard"], cursor["beside_hard"] = rng.integers(0, 2, 2)
    cursor["beside_row"] = rng.integers(0, len(text.beside))
    cursor["row"] = rng.integers(0, len(text.length))
    cursor["place"] = rng.integers(0, text.length[cursor["row"]])


def _redraw_drafting(client: Client, config: Config, now: float, rng: np.random.Generator) -> None:
    """How long the token that is being drafted takes: longer than it has taken by now."""
    seconds = float(config["gamma_wait_s"] if client["phase"] == WAITING else config["gamma_s"])
    if client["made"] >= config["change_at"]:
        seconds *= config["change_gamma"]
    jitter, start = float(config["gamma_jitter"]), float(client["token_s"] - client["took_s"])
    drawn = seconds * np.exp(jitter * rng.standard_normal(TRIES) - 0.5 * jitter * jitter)
    longer = drawn[start + drawn > now]
    if len(longer):
        client["took_s"] = longer[0]
        client["token_s"] = start + longer[0]


def _redraw_uplink(
    params: Params,
    state: State,
    lane: int,
    k: int,
    fresh: NDArray[np.float32],
    timed: set[int],
    rng: np.random.Generator,
) -> None:
    """Other bandwidths of a client, and what follows for uploads that are not through.

    Args:
        params: shared by all lanes.
        state: arrays of all lanes.
        lane: which one.
        k: number of the client.
        fresh: bandwidths of the other world, float32 [seconds], MB/s.
        timed: seconds in which uploads began that are through.
        rng: draws what the other world does not say.
    """
    client, link, rates = state.client[lane, k], state.link[lane, k], state.rates[lane, k]
    seconds = len(rates)
    if seconds == 1:
        return  # the same all the time, and so known from the probes
    line, now, alpha = (
        state.line[lane, k],
        float(state.lane["clock_s"][lane]),
        float(params.config[0]["alpha_s"]),
    )
    places = (int(link["first"]) + np.arange(int(link["count"]))) % len(line)
    timed = timed | {0} | {int(line["start_s"][place]) for place in places if line["end_s"][place] <= now}
    old = rates.copy()
    first = int(now) % seconds + (int(now) in timed)
    rates[first:] = fresh[first:]
    before = now
    for place in places:
        batch = line[place]
        start, end = float(batch["start_s"]), float(batch["end_s"])
        if end <= now:
            continue
        second = int(start)
        megabytes = (end - start - alpha) * old[second % seconds]
        if start > now:  # behind the others
            start, second = before, int(before)
        elif second not in timed:
            slow = fresh[start + alpha + megabytes / fresh > now]
            rates[second % seconds] = rng.choice(slow) if len(slow) else old[second % seconds]
        if start != batch["start_s"] or rates[second % seconds] != old[int(batch["start_s"]) % seconds]:
            batch["start_s"] = start
            batch["end_s"] = start + alpha + megabytes / float(rates[second % seconds])
        if batch["measured"] == 0 and client["arrival_s"] == end:
            client["arrival_s"] = batch["end_s"]
        before = link["free_s"] = batch["end_s"]
