"""One cloud, its clients and their uplinks: the compiled mechanics that PipeSDNav and PipeSDTune share.

Events happen in the order of time: a client has drafted a token, a request reaches the cloud (which verifies one after the
other, as they come), a verdict reaches a client. `advance` runs until a token was drafted that something is to be decided on;
`act` does it. The rules around a verdict are those of PipeSD (arXiv 2605.13319, and its released code), see
`llmgym.envs.pipesd.nav.env.PipeSDNavEnv`.

Every function works on one lane; where it is about one client, `k` is the number of that client, from 0.
"""

import math

import numpy as np

from llmgym.core.jit import kernel
from llmgym.core.rng import normal, substream
from llmgym.envs.pipesd import bandwidth, draft_tokens, estimates, uplink
from llmgym.envs.pipesd.estimates import Estimate
from llmgym.envs.pipesd.speculation import verification_energy
from llmgym.envs.pipesd.state import (
    AHEAD,
    ASK,
    CHECK,
    DONE,
    DRAFT,
    DRAFTING,
    DROPPED,
    GUESS,
    NEVER,
    NO_GUESS,
    OUTPUT,
    PROMOTED,
    RECENT,
    RIGHT,
    SEND,
    UPLOAD,
    VERIFY,
    WAITING,
    WRONG,
    Client,
    Episode,
    Params,
    State,
)
from llmgym.envs.pipesd.uplink import Uplink

TEXT, RATES = 0, 1
"""Sub-streams of the key of an episode, each with one for every client."""
CHECKED = 16
"""Positions of the text that the checksum of a world is made of."""
LAST_RATE = 1e-3
"""Weight of the last bandwidth in that checksum, so that it differs from the first."""
LEAST_CONFIDENCE = 1e-12
"""A confidence is taken to be at least this, so that it has a logarithm."""
TOKEN, ARRIVAL, VERDICT = 0, 1, 2
"""Events of a client: a token is drafted, its request reaches the cloud, the verdict reaches it."""

NEW_EPISODE, NEW_CLIENT, FREE_LINK, NO_ESTIMATE = Episode.blank, Client.blank, Uplink.blank, Estimate.blank


@kernel
def reset(state: State, params: Params, lane: int, key: np.uint64) -> None:
    """All clients begin to draft at time 0, and the first token of one of them is there.

    Args:
        state: arrays of all lanes.
        params: shared by all lanes.
        lane: number of the lane.
        key: seeds everything that is drawn in the episode, uint64.
    """
    state.lane[lane] = NEW_EPISODE[0]
    episode, config = state.lane[lane], params.config[0]
    for k in range(config.clients):
        state.client[lane, k], state.link[lane, k] = NEW_CLIENT[0], FREE_LINK[0]
        client, cursor, rates = state.client[lane, k], state.cursor[lane, k], state.rates[lane, k]
        client.key = substream(substream(key, TEXT), k)
        bandwidth.draw_rates(params.law[0], params.levels, substream(substream(key, RATES), k), rates)
        draft_tokens.begin(cursor, params.text, client.key)
        for _ in range(CHECKED):
            confidence, accepted = draft_tokens.draft(cursor, params.text, client.key)
            draft_tokens.settle(cursor)
            episode.checksum += confidence + (1.0 if accepted else 0.0)
        episode.checksum += rates[0] + LAST_RATE * rates[rates.shape[0] - 1]
        draft_tokens.begin(cursor, params.text, client.key)
        state.estimate[lane, k] = NO_ESTIMATE[0]
        estimate, beta = state.estimate[lane, k], config.token_mb / rates[0]
        estimates.begin(estimate, state.log[lane, k], config.alpha_s, beta, config.gamma_s)
        estimates.replan(estimate, state.ends[lane, k], state.work[lane])
        _draft_next(state, params, lane, k)
    advance(state, params, lane)
    episode.client_s = 0.0  # no decision could change what has passed


@kernel(inline=True)
def _remember(
    state: State, lane: int, activity: int, client: int, tokens: int, start_s: float, end_s: float
) -> None:
    """Remember an activity, for pictures."""
    episode = state.lane[lane]
    row = state.interval[lane, episode.intervals % state.interval.shape[1]]
    row.activity, row.client, row.tokens, row.start_s, row.end_s = activity, client, tokens, start_s, end_s
    episode.intervals += 1


@kernel(inline=True)
def _draft_next(state: State, params: Params, lane: int, k: int) -> None:
    """A client begins to draft its next token."""
    client, config = state.client[lane, k], params.config[0]
    seconds = config.gamma_wait_s if client.phase == WAITING else config.gamma_s
    if client.made >= config.change_at:
        seconds *= config.change_gamma
    jitter = config.gamma_jitter
    if jitter > 0.0:
        stream = substream(client.key, draft_tokens.STREAMS + 1)
        seconds *= math.exp(jitter * normal(stream, client.drafted) - 0.5 * jitter * jitter)
    client.took_s = seconds
    client.token_s = state.lane[lane].clock_s + seconds


@kernel(inline=True)
def _upload(state: State, params: Params, lane: int, k: int, measured: int) -> float:
    """What is unsent gets in line on the uplink; returns when it will be through, s."""
    client, config = state.client[lane, k], params.config[0]
    megabytes = config.token_mb
    if client.made >= config.change_at:
        megabytes /= config.change_rate
    tokens = client.block - client.sent
    client.sent = client.block
    client.uploads += 1
    return uplink.put(
        state.link[lane, k],
        state.line[lane, k],
        state.rates[lane, k],
        state.lane[lane].clock_s,
        tokens,
        config.alpha_s,
        megabytes,
        measured,
    )


@kernel(inline=True)
def left(state: State, params: Params, lane: int, k: int) -> int:
    """Tokens that a client has still to make; while it waits, if all that is at the cloud is accepted.

    Args:
        state: arrays of all lanes.
        params: shared by all lanes.
        lane: number of the lane.
        k: number of the client.

    Returns:
        Number of tokens.
    """
    client, config = state.client[lane, k], params.config[0]
    tokens = config.tokens - client.made
    if client.phase == WAITING:
        tokens -= client.awaited + (1 if config.count == OUTPUT else 0)
    return tokens


@kernel(inline=True)
def must_ask(state: State, params: Params, lane: int, k: int) -> bool:
    """Whether the draft of a client is as long as it may be, or may be all that is missing.

    Args:
        state: arrays of all lanes.
        params: shared by all lanes.
        lane: number of the lane.
        k: number of the client.

    Returns:
        True if nothing but asking for a verdict is allowed.
    """
    client, config = state.client[lane, k], params.config[0]
    made = client.block + (1 if config.count == OUTPUT else 0)
    return client.block >= config.max_draft or made >= left(state, params, lane, k)


@kernel(inline=True)
def _begin_draft(client: Client) -> None:
    """The draft of a client is empty."""
    client.block, client.sent, client.rejected, client.product = 0, 0, -1, 1.0


@kernel(inline=True)
def _ask(state: State, params: Params, lane: int, k: int) -> None:
    """Everything unsent goes up at once with the request for a verdict; drafting goes on with a guess of the target's token."""
    client, config = state.client[lane, k], params.config[0]
    client.arrival_s = _upload(state, params, lane, k, 0)
    client.awaited, client.awaited_rejected = client.block, client.rejected
    client.awaited_product = client.product
    client.phase, client.stopped, client.guess = WAITING, 0, NO_GUESS
    client.request_s = state.lane[lane].clock_s
    client.requests += 1
    client.token_s = NEVER
    _begin_draft(client)
    if config.proactive != 0 and left(state, params, lane, k) > 0:
        _draft_next(state, params, lane, k)


@kernel(inline=True)
def act(state: State, params: Params, lane: int, k: int, action: int) -> None:
    """Do what was decided after a drafted token of a client: CONTINUE, UPLOAD or VERIFY.

    Args:
        state: arrays of all lanes.
        params: shared by all lanes.
        lane: number of the lane.
        k: number of the client.
        action: CONTINUE, UPLOAD or VERIFY.
    """
    client = state.client[lane, k]
    client.verdicts = 0
    if action == VERIFY and client.phase == WAITING:
        client.stopped = 1
    elif action == VERIFY:
        _ask(state, params, lane, k)
    else:
        if action == UPLOAD:
            _upload(state, params, lane, k, 1)
        _draft_next(state, params, lane, k)


@kernel(inline=True)
def _finish_uploads(state: State, params: Params, lane: int, k: int) -> None:
    """Batches of a client that are through by now leave the uplink, and the edge has timed them."""
    link, line, now = state.link[lane, k], state.line[lane, k], state.lane[lane].clock_s
    while link.count > 0 and line[link.first].end_s <= now:
        batch = line[uplink.take(link, line)]
        activity = SEND if batch.measured != 0 else ASK
        _remember(state, lane, activity, k, batch.tokens, batch.start_s, batch.end_s)
        if batch.measured != 0:
            seconds = batch.end_s - batch.start_s
            estimates.uploaded(state.estimate[lane, k], state.log[lane, k], batch.tokens, seconds)


@kernel(inline=True)
def _token_drafted(state: State, params: Params, lane: int, k: int) -> bool:
    """A client has drafted a token; returns whether there is something to decide (there is not on a guess)."""
    client, now = state.client[lane, k], state.lane[lane].clock_s
    confidence, accepted = draft_tokens.draft(state.cursor[lane, k], params.text, client.key)
    client.token_s = NEVER
    client.drafted += 1
    estimates.drafted(state.estimate[lane, k], state.log[lane, k], client.took_s)
    deficit = -math.log(max(confidence, LEAST_CONFIDENCE))
    guessing = client.phase == WAITING and client.guess == NO_GUESS
    activity = DRAFT if client.phase == DRAFTING else (GUESS if guessing else AHEAD)
    _remember(state, lane, activity, k, 1, now - client.took_s, now)
    if guessing:
        client.guess = RIGHT if accepted else WRONG
        client.guessed = deficit
        client.guesses += 1
        _draft_next(state, params, lane, k)
        return False
    for i in range(RECENT - 1, 0, -1):
        client.recent[i] = client.recent[i - 1]
    client.recent[0] = deficit
    client.confidence = confidence
    client.product *= confidence
    if not accepted and client.rejected < 0:
        client.rejected = client.block
    client.block += 1
    return True


@kernel(inline=True)
def _request_arrived(state: State, params: Params, lane: int, k: int) -> None:
    """A client's request is at the cloud, which verifies it when it is done with those that came before."""
    episode, client, config = state.lane[lane], state.client[lane, k], params.config[0]
    start = max(episode.clock_s, episode.cloud_free_s)
    seconds = config.verify_s + config.verify_token_s * (client.awaited + 1)
    episode.cloud_free_s = start + seconds
    episode.cloud_busy_s += seconds
    episode.energy_j += verification_energy(client.awaited)
    client.verdict_s = episode.cloud_free_s + config.downlink_s
    client.arrival_s, client.arrived_s = NEVER, episode.clock_s
    _remember(state, lane, CHECK, k, client.awaited, start, episode.cloud_free_s)


@kernel(inline=True)
def _verdict_arrived(state: State, params: Params, lane: int, k: int) -> None:
    """A client has its verdict: the waiting tokens are promoted or dropped, and drafting goes on."""
    episode, client, config = state.lane[lane], state.client[lane, k], params.config[0]
    cursor, link, line, now = state.cursor[lane, k], state.link[lane, k], state.line[lane, k], episode.clock_s
    tokens = client.awaited
    accepted = tokens if client.awaited_rejected < 0 else client.awaited_rejected
    client.verdict_s = NEVER
    client.last, client.last_accepted, client.last_product = tokens, accepted, client.awaited_product
    client.last_s = now - client.arrived_s
    client.verdicts += 1
    client.verdicts_all += 1
    client.output += accepted + 1
    client.accepted += accepted
    client.judged += tokens
    client.made += accepted + (1 if config.count == OUTPUT else 0)
    client.awaited = 0
    if accepted < tokens:
        client.rollbacks += 1
    estimates.judged(state.estimate[lane, k], state.log[lane, k], tokens)
    client.phase = DRAFTING
    promoted = accepted == tokens and client.guess == RIGHT
    if promoted:
        client.promoted += client.block
        _remember(state, lane, PROMOTED, k, client.block, now, now)
    else:
        if client.guess != NO_GUESS:
            _remember(state, lane, DROPPED, k, client.block, now, now)
        if accepted == tokens and client.guess == NO_GUESS:
            draft_tokens.skip(cursor, params.text, client.key)
        draft_tokens.settle(cursor)
        before = link.queued
        uplink.withdraw(link, line, now)
        client.dropped += client.block
        client.wasted += client.sent - (before - link.queued)
        _begin_draft(client)
    stopped = client.stopped != 0
    client.stopped, client.token_s = 0, NEVER
    if client.made >= config.tokens:
        client.phase, client.finish_s = DONE, now
        client.dropped += client.block
        client.block, client.sent = 0, 0
        uplink.withdraw(link, line, now)
    elif promoted and stopped:
        _ask(state, params, lane, k)
    else:
        _draft_next(state, params, lane, k)


@kernel(inline=True)
def _measure(state: State, params: Params, lane: int, k: int) -> None:
    """Before a decision: what the edge has measured by now, and the plan that follows from it."""
    _finish_uploads(state, params, lane, k)
    estimates.replan(state.estimate[lane, k], state.ends[lane, k], state.work[lane])


@kernel(inline=True)
def advance(state: State, params: Params, lane: int) -> None:
    """Run until a client has a token to decide on (`turn`), or all are done (`turn` is -1).

    Args:
        state: arrays of all lanes.
        params: shared by all lanes.
        lane: number of the lane.
    """
    episode, config = state.lane[lane], params.config[0]
    while True:
        first, event, time, working = -1, TOKEN, NEVER, 0
        for k in range(config.clients):
            client = state.client[lane, k]
            if client.phase != DONE:
                working += 1
            if client.token_s < time:
                first, event, time = k, TOKEN, client.token_s
            if client.arrival_s < time:
                first, event, time = k, ARRIVAL, client.arrival_s
            if client.verdict_s < time:
                first, event, time = k, VERDICT, client.verdict_s
        if first < 0:
            episode.turn = -1
            return
        episode.client_s += (time - episode.clock_s) * working / config.clients
        episode.clock_s = time
        if event == ARRIVAL:
            _request_arrived(state, params, lane, first)
        elif event == VERDICT:
            _finish_uploads(state, params, lane, first)
            _verdict_arrived(state, params, lane, first)
        elif _token_drafted(state, params, lane, first):
            episode.turn = first
            _measure(state, params, lane, first)
            return
