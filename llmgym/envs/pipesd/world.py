"""One cloud, its clients and their uplinks: the compiled mechanics that PipeSDNav and PipeSDTune share.

Events happen in the order of time: a client has drafted a token, a request reaches the cloud (which verifies one after the
other, as they come), a
verdict reaches a client. `advance` runs until a token was drafted that something is to be decided on; `act` does it. The rules
around a
verdict are those of PipeSD (arXiv 2605.13319, and its released code), see `llmgym.envs.pipesd.nav.env.PipeSDNavEnv`.
"""

import math

import numpy as np

from llmgym.core.jit import kernel
from llmgym.core.rng import normal, substream
from llmgym.envs.pipesd import bandwidth, draft_tokens, estimates, uplink
from llmgym.envs.pipesd import state as at
from llmgym.envs.pipesd.speculation import verification_energy
from llmgym.envs.pipesd.state import Params, State

NEVER = math.inf
TEXT, RATES = 0, 1
"""Sub-streams of the key of an episode, each with one for every client."""
CHECKED = 16
"""Positions of the text that the checksum of a world is made of."""


@kernel
def reset(state: State, params: Params, lane: int, key: np.uint64) -> None:
    """All clients begin to draft at time 0, and the first token of one of them is there."""
    episode = state.lane[lane]
    config = params.config[0]
    episode.clock_s, episode.cloud_free_s, episode.cloud_busy_s, episode.client_s, episode.energy_j = (
        0.0,
        0.0,
        0.0,
        0.0,
        0.0,
    )
    episode.penalty, episode.invalid, episode.intervals, episode.steps, episode.checksum = 0.0, 0, 0, 0, 0.0
    episode.step_tpt_s, episode.tpt_sum_s, episode.step_acceptance, episode.step_length = 0.0, 0.0, 0.0, 0.0
    episode.held, episode.moves, episode.mark_s, episode.sequence, episode.token = 0, 0, 0.0, 0.0, 0.0
    for k in range(config.clients):
        c, cursor, rates = state.client[lane, k], state.cursor[lane, k], state.rates[lane, k]
        c.key = substream(substream(key, TEXT), k)
        bandwidth.draw_rates(params.law[0], params.levels, substream(substream(key, RATES), k), rates)
        draft_tokens.begin(cursor, params.text, c.key)
        for _ in range(CHECKED):
            confidence, accepted = draft_tokens.draft(cursor, params.text, c.key)
            draft_tokens.settle(cursor)
            episode.checksum += confidence + (1.0 if accepted else 0.0)
        episode.checksum += rates[0] + 1e-3 * rates[rates.shape[0] - 1]
        draft_tokens.begin(cursor, params.text, c.key)
        c.phase, c.stopped, c.block, c.sent, c.rejected = at.DRAFTING, 0, 0, 0, -1
        c.token_s, c.arrival_s, c.verdict_s, c.asked_s, c.arrived_s = NEVER, NEVER, NEVER, 0.0, 0.0
        c.product, c.confidence, c.guess, c.guessed = 1.0, 1.0, at.NO_GUESS, 0.0
        for i in range(at.RECENT):
            c.recent[i] = 0.0
        c.awaited, c.awaited_rejected, c.awaited_product = 0, -1, 1.0
        c.last, c.last_accepted, c.last_product, c.last_s, c.verdicts = 0, 0, 1.0, 0.0, 0
        c.made, c.finish_s, c.output, c.accepted, c.judged, c.drafted = 0, 0.0, 0, 0, 0, 0
        c.guesses, c.promoted, c.dropped, c.wasted = 0, 0, 0, 0
        c.asked, c.verdicts_all, c.rollbacks, c.uploads = 0, 0, 0, 0
        uplink.clear(state.link[lane, k])
        beta = config.megabytes / rates[0]
        estimates.begin(state.estimate[lane, k], state.log[lane, k], config.alpha, beta, config.gamma)
        estimates.replan(state.estimate[lane, k], state.ends[lane, k], state.work[lane])
        _go_on(state, params, lane, k)
    advance(state, params, lane)
    episode.client_s = 0.0  # no decision could change what has passed


@kernel(inline=True)
def _note(state: State, lane: int, kind: int, client: int, tokens: int, start_s: float, end_s: float) -> None:
    """Remember what happened, for pictures."""
    episode = state.lane[lane]
    row = state.interval[lane, episode.intervals % state.interval.shape[1]]
    row.kind, row.client, row.tokens, row.start_s, row.end_s = kind, client, tokens, start_s, end_s
    episode.intervals += 1


@kernel
def _go_on(state: State, params: Params, lane: int, k: int) -> None:
    """A client begins to draft its next token."""
    c, config = state.client[lane, k], params.config[0]
    seconds = config.gamma_wait if c.phase == at.WAITING else config.gamma
    if c.made >= config.change_at:
        seconds *= config.change_gamma
    if config.jitter > 0.0:
        stream = substream(c.key, draft_tokens.STREAMS + 1)
        seconds *= math.exp(config.jitter * normal(stream, c.drafted) - 0.5 * config.jitter * config.jitter)
    c.took_s = seconds
    c.token_s = state.lane[lane].clock_s + seconds


@kernel(inline=True)
def _put(state: State, params: Params, lane: int, k: int, measured: int) -> float:
    """What is unsent gets in line; returns when it will be through."""
    c, config = state.client[lane, k], params.config[0]
    megabytes = config.megabytes
    if c.made >= config.change_at:
        megabytes /= config.change_rate
    tokens = c.block - c.sent
    c.sent = c.block
    c.uploads += 1
    return uplink.put(
        state.link[lane, k],
        state.line[lane, k],
        state.rates[lane, k],
        state.lane[lane].clock_s,
        tokens,
        config.alpha,
        megabytes,
        measured,
    )


@kernel(inline=True)
def left(state: State, params: Params, lane: int, k: int) -> int:
    """Tokens that a client has still to make; while it waits, if all that is at the cloud is accepted."""
    c, config = state.client[lane, k], params.config[0]
    tokens = config.tokens - c.made
    if c.phase == at.WAITING:
        tokens -= c.awaited + (1 if config.count == at.OUTPUT else 0)
    return tokens


@kernel(inline=True)
def must_ask(state: State, params: Params, lane: int, k: int) -> bool:
    """The draft is as long as it may be, or may be all that is missing."""
    c, config = state.client[lane, k], params.config[0]
    made = c.block + (1 if config.count == at.OUTPUT else 0)
    return c.block >= config.most or made >= left(state, params, lane, k)


@kernel
def ask(state: State, params: Params, lane: int, k: int) -> None:
    """Everything unsent goes up at once with the request for a verdict; drafting goes on with a guess of the target's token."""
    c, config = state.client[lane, k], params.config[0]
    now = state.lane[lane].clock_s
    c.arrival_s = _put(state, params, lane, k, 0)
    c.awaited, c.awaited_rejected, c.awaited_product = c.block, c.rejected, c.product
    c.phase, c.stopped, c.guess, c.asked_s = at.WAITING, 0, at.NO_GUESS, now
    c.block, c.sent, c.rejected, c.product = 0, 0, -1, 1.0
    c.asked += 1
    c.token_s = NEVER
    if config.proactive != 0 and left(state, params, lane, k) > 0:
        _go_on(state, params, lane, k)


@kernel(inline=True)
def act(state: State, params: Params, lane: int, k: int, action: int) -> None:
    """Do what was decided after a drafted token."""
    c = state.client[lane, k]
    c.verdicts = 0
    if action == at.VERIFY and c.phase == at.WAITING:
        c.stopped = 1
    elif action == at.VERIFY:
        ask(state, params, lane, k)
    else:
        if action == at.UPLOAD:
            _put(state, params, lane, k, 1)
        _go_on(state, params, lane, k)


@kernel
def _carry(state: State, params: Params, lane: int, k: int) -> None:
    """Batches that are through by now: the edge has timed them."""
    link, line, now = state.link[lane, k], state.line[lane, k], state.lane[lane].clock_s
    while link.count > 0 and line[link.first].end_s <= now:
        batch = line[uplink.take(link, line)]
        kind = at.SEND if batch.measured != 0 else at.ASK
        _note(state, lane, kind, k, batch.tokens, batch.start_s, batch.end_s)
        if batch.measured != 0:
            seconds = batch.end_s - batch.start_s
            estimates.uploaded(state.estimate[lane, k], state.log[lane, k], batch.tokens, seconds)


@kernel
def _drafted(state: State, params: Params, lane: int, k: int) -> bool:
    """A token is there; returns whether there is something to decide (there is not on a guess)."""
    c, now = state.client[lane, k], state.lane[lane].clock_s
    confidence, accepted = draft_tokens.draft(state.cursor[lane, k], params.text, c.key)
    c.token_s = NEVER
    c.drafted += 1
    estimates.drafted(state.estimate[lane, k], state.log[lane, k], c.took_s)
    deficit = -math.log(max(confidence, 1e-12))
    guessing = c.phase == at.WAITING and c.guess == at.NO_GUESS
    kind = at.DRAFT if c.phase == at.DRAFTING else (at.GUESS if guessing else at.AHEAD)
    _note(state, lane, kind, k, 1, now - c.took_s, now)
    if guessing:
        c.guess = at.RIGHT if accepted else at.WRONG
        c.guessed = deficit
        c.guesses += 1
        _go_on(state, params, lane, k)
        return False
    for i in range(at.RECENT - 1, 0, -1):
        c.recent[i] = c.recent[i - 1]
    c.recent[0] = deficit
    c.confidence = confidence
    c.product *= confidence
    if not accepted and c.rejected < 0:
        c.rejected = c.block
    c.block += 1
    return True


@kernel
def _arrived(state: State, params: Params, lane: int, k: int) -> None:
    """A request is at the cloud, which verifies it when it is done with those that came before."""
    episode, c, config = state.lane[lane], state.client[lane, k], params.config[0]
    start = max(episode.clock_s, episode.cloud_free_s)
    seconds = config.verify + config.verify_token * (c.awaited + 1)
    episode.cloud_free_s = start + seconds
    episode.cloud_busy_s += seconds
    episode.energy_j += verification_energy(c.awaited)
    c.verdict_s = episode.cloud_free_s + config.downlink
    c.arrival_s, c.arrived_s = NEVER, episode.clock_s
    _note(state, lane, at.CHECK, k, c.awaited, start, episode.cloud_free_s)


@kernel
def _told(state: State, params: Params, lane: int, k: int) -> None:
    """The verdict: the waiting tokens are promoted or dropped, and drafting goes on."""
    episode, c, config = state.lane[lane], state.client[lane, k], params.config[0]
    cursor = state.cursor[lane, k]
    n = c.awaited
    accepted = n if c.awaited_rejected < 0 else c.awaited_rejected
    c.verdict_s = NEVER
    c.last, c.last_accepted, c.last_product = n, accepted, c.awaited_product
    c.last_s = episode.clock_s - c.arrived_s
    c.verdicts += 1
    c.verdicts_all += 1
    c.output += accepted + 1
    c.accepted += accepted
    c.judged += n
    c.made += accepted + (1 if config.count == at.OUTPUT else 0)
    c.awaited = 0
    if accepted < n:
        c.rollbacks += 1
    estimates.finished(state.estimate[lane, k], state.log[lane, k], n)
    c.phase = at.DRAFTING
    promoted = accepted == n and c.guess == at.RIGHT
    if promoted:
        c.promoted += c.block
        _note(state, lane, at.PROMOTED, k, c.block, episode.clock_s, episode.clock_s)
    else:
        if c.guess != at.NO_GUESS:
            _note(state, lane, at.DROPPED, k, c.block, episode.clock_s, episode.clock_s)
        if accepted == n and c.guess == at.NO_GUESS:
            draft_tokens.skip(cursor, params.text, c.key)
        draft_tokens.settle(cursor)
        before = state.link[lane, k].queued
        uplink.withdraw(state.link[lane, k], state.line[lane, k], episode.clock_s)
        c.dropped += c.block
        c.wasted += c.sent - (before - state.link[lane, k].queued)
        c.block, c.sent, c.rejected, c.product = 0, 0, -1, 1.0
    stopped = c.stopped != 0
    c.stopped, c.token_s = 0, NEVER
    if c.made >= config.tokens:
        c.phase, c.finish_s = at.DONE, episode.clock_s
        c.dropped += c.block
        c.block, c.sent = 0, 0
        uplink.withdraw(state.link[lane, k], state.line[lane, k], episode.clock_s)
    elif promoted and stopped:
        ask(state, params, lane, k)
    else:
        _go_on(state, params, lane, k)


@kernel
def _prepare(state: State, params: Params, lane: int, k: int) -> None:
    """Before a decision: what the edge has measured by now, and the plan that follows from it."""
    _carry(state, params, lane, k)
    estimates.replan(state.estimate[lane, k], state.ends[lane, k], state.work[lane])


@kernel
def advance(state: State, params: Params, lane: int) -> None:
    """Run until a client has a token to decide on (`turn`), or all are done (`turn` is -1)."""
    episode, config = state.lane[lane], params.config[0]
    while True:
        first, kind, time, working = -1, 0, NEVER, 0
        for k in range(config.clients):
            c = state.client[lane, k]
            if c.phase != at.DONE:
                working += 1
            if c.token_s < time:
                first, kind, time = k, 0, c.token_s
            if c.arrival_s < time:
                first, kind, time = k, 1, c.arrival_s
            if c.verdict_s < time:
                first, kind, time = k, 2, c.verdict_s
        if first < 0:
            episode.turn = -1
            return
        episode.client_s += (time - episode.clock_s) * working / config.clients
        episode.clock_s = time
        if kind == 1:
            _arrived(state, params, lane, first)
        elif kind == 2:
            _carry(state, params, lane, first)
            _told(state, params, lane, first)
        elif _drafted(state, params, lane, first):
            episode.turn = first
            _prepare(state, params, lane, first)
            return
