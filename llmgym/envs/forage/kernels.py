"""The compiled functions of Forage: search, look, read, write down, evaluate, answer. See `llmgym.envs.forage.env`."""

import math

import numpy as np
from numpy.typing import NDArray

from llmgym.core.jit import kernel
from llmgym.core.lanes import Kernels
from llmgym.core.rng import substream, uniform
from llmgym.core.statistics import ratio
from llmgym.envs.forage.beliefs import (
    commit,
    evaluate,
    held,
    known,
    known_from_context,
    known_from_e,
    known_from_whole,
    list_hits,
    open_retrieved,
    read_on,
    sound,
    take,
)
from llmgym.envs.forage.candidates import order
from llmgym.envs.forage.law import guessed
from llmgym.envs.forage.state import (
    ACTIONS,
    ANSWER,
    ANSWER_CONTEXT,
    BLOCK,
    COMMIT,
    DEPTHS,
    EVALUATE,
    FOCUS,
    GREP,
    KEY_COLUMNS,
    KEYS,
    NOTHING,
    OUTDATED,
    READ_ALL,
    READ_ON,
    RETRIEVE,
    RETRIEVE_KEY,
    SCAN,
    SCANNED,
    SLOT_COLUMNS,
    SLOTS,
    TERMS,
    TRUE,
    Episode,
    Metrics,
    Observation,
    Params,
    State,
)
from llmgym.envs.forage.world import ANSWERED, draw_world, rank
from llmgym.profiles.cost import outside, prefill_attention_s, step_time_s

PROMPT, AGENT_PROMPT = 450, 4000
"""Tokens of the question with its options; of the question with its options and the tools and the plan of an agent."""
WRITTEN = 150
"""Tokens that a model writes at each call."""
GREP_TOKENS, HIT_TOKENS, SCAN_TOKENS, COMMIT_TOKENS = 150, 45, 250, 80
"""Tokens that a search, a line that it lists, a glance and an update put into the context."""
READ_PARTS = 1.2
"""Window that is read around a passage, in parts of the document."""
EVALUATE_TOKENS, CLAIM_TOKENS = 500, 80
"""Tokens of the auditor's instructions, and of a claim in E."""
PREFILL_CHUNK = 8192
"""Prompts are prefilled in pieces of this many tokens."""
EMPTY = Episode.blank


@kernel
def reset_lane(state: State, params: Params, lane: int, key: np.uint64) -> None:
    """Draw a question; nothing is read, and the first key has the focus.

    Args:
        state: arrays of all lanes, written to.
        params: what all lanes share.
        lane: the lane that begins anew.
        key: seeds everything that is drawn in the episode.
    """
    state.lane[lane] = EMPTY[0]
    state.lane[lane].key = key
    draw_world(state, params, lane)
    order(state, params, lane)


@kernel
def _call_s(params: Params, context: float, put: float, written: float) -> float:
    """Seconds of one call: prefill of what is new after a cached history, then what is written, token by token."""
    cost = params.cost
    seconds, done, left = 0.0, int(context), int(put)
    while left > 0:
        piece = min(left, PREFILL_CHUNK)
        attention_s = prefill_attention_s(cost, piece, done)
        seconds += step_time_s(cost, piece, attention_s, 0, 0, 1, done + piece)
        done += piece
        left -= piece
    middle = done + int(0.5 * written)
    return seconds + written * step_time_s(cost, 0, 0.0, 1, middle, 1, middle)


@kernel
def _pay(
    state: State, params: Params, lane: int, put: float, written: float, agent: bool, fresh: bool
) -> float:
    """Pay for a call. The first call pays the prompt too.

    Args:
        state: arrays of all lanes.
        params: what all lanes share.
        lane: which.
        put: tokens that are put into the context.
        written: tokens that the model writes.
        agent: whether the call needs the prompt of an agent.
        fresh: whether the call has a context of its own: that of the auditor, or of an answer from E.

    Returns:
        The cost of the tokens and seconds, in accuracy.
    """
    episode, config = state.lane[lane], params.config[0]
    prompt = float(AGENT_PROMPT if agent else PROMPT)
    due = max(prompt - episode.prompt, 0.0)
    episode.prompt += due
    history = episode.tokens
    put += due
    context = 0.0 if fresh else history
    seconds = _call_s(params, context, put, written)
    if outside(params.cost, 0, min(int(put), PREFILL_CHUNK), int(context), 1, int(context + put + written)):
        episode.beyond += 1
    episode.clock_s += seconds
    episode.tokens = history + put + written
    again = config.cache_price * history
    episode.repeated += again
    tokens = episode.price * (put + written + again) / 1000.0
    waited = config.second_price * seconds
    episode.paid += tokens
    episode.waited += waited
    return float(tokens + waited)


@kernel(inline=True)
def _read_tokens(params: Params) -> float:
    """Tokens of the window that is read around a passage."""
    return math.floor(READ_PARTS * params.config[0].chunk_tokens + 0.5)


@kernel
def _answer(state: State, params: Params, lane: int, accuracy: float) -> float:
    """End the episode with an answer that is right with this probability. Returns what the reward counts of it."""
    episode = state.lane[lane]
    episode.answers = 1
    episode.accuracy = episode.outcome = accuracy
    if params.config[0].drawn_outcome != 0:
        right = uniform(substream(episode.key, ANSWERED), 0) < accuracy
        episode.outcome = 1.0 if right else 0.0
    return float(episode.outcome)


@kernel
def _answer_from_e(state: State, params: Params, lane: int) -> float:
    """Answer from E. Returns what the reward counts, less the cost."""
    claims = held(state, lane)
    state.lane[lane].told += claims
    cost = _pay(state, params, lane, CLAIM_TOKENS * claims, WRITTEN, False, True)
    known_ = known_from_e(state, params, lane)
    return _answer(state, params, lane, guessed(known_, params.config[0].guess)) - cost


@kernel
def _answer_from_context(state: State, params: Params, lane: int) -> float:
    """Answer from all that was read. Returns what the reward counts, less the cost."""
    known_ = known_from_context(state, params, lane)
    cost = _pay(state, params, lane, 0.0, WRITTEN, False, False)
    return _answer(state, params, lane, guessed(known_, params.config[0].guess)) - cost


@kernel
def _answer_from_whole(state: State, params: Params, lane: int) -> float:
    """Read the whole document in one prompt and answer. Returns what the reward counts, less the cost."""
    config = params.config[0]
    state.lane[lane].whole = True
    cost = _pay(state, params, lane, float(config.chunks) * config.chunk_tokens, WRITTEN, False, False)
    return _answer(state, params, lane, known_from_whole(state, params, lane)) - cost


@kernel
def _retrieve(state: State, params: Params, lane: int, focus: int, depth: int) -> float:
    """Open the parts that an embedding ranks first, for the question (`focus` -1) or a key. Returns the cost."""
    episode, config = state.lane[lane], params.config[0]
    # the question is a query already, anything else is written first
    written = 0 if focus < 0 or episode.tokens == 0.0 else WRITTEN
    episode.retrievals += 1
    episode.queries += 1 if written > 0 else 0
    episode.retrieved += depth
    cost = _pay(state, params, lane, float(depth) * config.chunk_tokens, written, False, False)
    rank(state, params, lane, focus, focus < 0 or sound(state, lane, focus))
    open_retrieved(state, params, lane, focus, depth)
    return cost


@kernel
def _read_on(state: State, params: Params, lane: int) -> float:
    """Open the next parts in order; after the last comes the first. Returns the cost."""
    episode, config = state.lane[lane], params.config[0]
    parts = min(BLOCK, config.chunks - episode.next_chunk % config.chunks)
    begin = episode.next_chunk % config.chunks
    passed = episode.next_chunk - begin
    episode.blocks += 1
    episode.blocked += parts
    cost = _pay(state, params, lane, float(parts) * config.chunk_tokens, WRITTEN, True, False)
    episode.next_chunk = begin
    read_on(state, params, lane, parts)
    episode.next_chunk = passed + begin + parts
    return cost


@kernel
def _look(state: State, params: Params, lane: int, action: int) -> float:
    """Search by a term, scan or read a candidate. Returns the cost."""
    episode, config = state.lane[lane], params.config[0]
    j = episode.focus
    if action == GREP:
        hits = list_hits(state, params, lane, j)
        episode.greps += 1
        episode.found += hits
        return _pay(state, params, lane, GREP_TOKENS + HIT_TOKENS * hits, WRITTEN, True, False)
    i = int(state.slot[lane, action % SLOTS])
    passage = state.passage[lane, j, i]
    if action < SCAN:
        episode.reads += 1
        take(state, lane, j, i, config.authority_gap)
        return _pay(state, params, lane, _read_tokens(params), WRITTEN, True, False)
    episode.scans += 1
    speaks = (passage.claims == TRUE or passage.claims == OUTDATED) and sound(state, lane, j)
    passage.scan = passage.glance + (config.scan_gap if speaks else 0.0)
    passage.seen |= SCANNED
    return _pay(state, params, lane, SCAN_TOKENS, WRITTEN, True, False)


@kernel
def _allowed(state: State, params: Params, lane: int, action: int) -> bool:
    """Whether an action can be taken now."""
    episode, config = state.lane[lane], params.config[0]
    j = episode.focus
    if action < SCAN:
        return action < episode.candidates
    if action < GREP:
        slot = action - SCAN
        return (
            slot < episode.candidates and state.passage[lane, j, state.slot[lane, slot]].seen & SCANNED == 0
        )
    if action == GREP:
        return state.key[lane, j].term < TERMS and known(state, lane, j)
    if action == COMMIT:
        return state.key[lane, j].pending != NOTHING
    if FOCUS <= action < ANSWER_CONTEXT:
        other = action - FOCUS
        return other < episode.facts and other != j and known(state, lane, other)
    if RETRIEVE <= action < READ_ON:
        depth = DEPTHS[(action - RETRIEVE) % len(DEPTHS)]
        return depth <= config.chunks and (action < RETRIEVE_KEY or known(state, lane, j))
    if action in (ANSWER, ANSWER_CONTEXT, READ_ALL):
        return episode.steps >= config.first_answer
    return True


@kernel
def step_lane(
    state: State, params: Params, lane: int, action: NDArray[np.float64]
) -> tuple[float, bool, bool, float]:
    """Take one action; when tokens or steps are spent, answer from E.

    Args:
        state: arrays of all lanes, written to.
        params: what all lanes share.
        lane: the lane that decides.
        action: float64 [1], the number of an action, below `ACTIONS`.

    Returns:
        Reward, whether the agent has answered, whether an answer from E was forced as tokens or steps were spent, and the seconds
        that have passed.
    """
    episode, config = state.lane[lane], params.config[0]
    decision = int(action[0])
    start_s, reward = episode.clock_s, 0.0
    j = episode.focus
    allowed = _allowed(state, params, lane, decision)
    episode.steps += 1
    if not allowed:
        episode.invalid += 1
        episode.penalty += config.invalid_cost
        reward -= config.invalid_cost
    elif decision <= GREP:
        reward -= _look(state, params, lane, decision)
    elif decision == COMMIT:
        commit(state, lane, j)
        episode.commits += 1
        reward -= _pay(state, params, lane, COMMIT_TOKENS, WRITTEN, True, False)
    elif decision == EVALUATE:
        claims = held(state, lane)
        episode.told += claims
        reward -= _pay(state, params, lane, EVALUATE_TOKENS + CLAIM_TOKENS * claims, WRITTEN, True, True)
        evaluate(state, params, lane)
    elif decision == ANSWER:
        reward += _answer_from_e(state, params, lane)
    elif decision < ANSWER_CONTEXT:
        episode.focus = decision - FOCUS
        episode.focuses += 1
    elif decision == ANSWER_CONTEXT:
        reward += _answer_from_context(state, params, lane)
    elif decision < RETRIEVE_KEY:
        reward -= _retrieve(state, params, lane, -1, DEPTHS[decision - RETRIEVE])
    elif decision < READ_ON:
        reward -= _retrieve(state, params, lane, j, DEPTHS[decision - RETRIEVE_KEY])
    elif decision == READ_ON:
        reward -= _read_on(state, params, lane)
    else:
        reward += _answer_from_whole(state, params, lane)
    ended = episode.answers > 0
    spent = episode.tokens >= config.budget_tokens or episode.steps >= config.max_steps
    if spent and not ended:
        reward += _answer_from_e(state, params, lane)
    # on a chain the focus may ask for something that is not known any more
    while not known(state, lane, episode.focus):
        episode.focus -= 1
    order(state, params, lane)
    return reward, ended, spent and not ended, episode.clock_s - start_s


@kernel(inline=True)
def _clipped(score: float) -> float:
    """A score in units of four standard deviations, -1 to 1."""
    return min(max(0.25 * score, -1.0), 1.0)


@kernel
def _observe_key(state: State, lane: int, j: int, row: NDArray[np.float32]) -> None:
    """Write the row of a key, float32 [columns of `KEY_SHOWN`]."""
    episode, key = state.lane[lane], state.key[lane, j]
    for column in range(KEY_COLUMNS):
        row[column] = 0.0
    if j >= episode.facts:
        return
    both = key.claim != NOTHING and key.pending != NOTHING
    row[0] = 1.0
    row[1] = 1.0 if known(state, lane, j) else 0.0
    row[2] = 1.0 if key.claim != NOTHING else 0.0
    row[3] = 1.0 if key.pending != NOTHING else 0.0
    row[4] = 1.0 if both and key.claim == key.pending else 0.0
    row[5] = 1.0 if both and key.claim != key.pending else 0.0
    row[6] = key.support / (key.support + 1.0)
    row[7] = _clipped(key.authority)
    row[8] = key.term / TERMS
    row[9] = 1.0 if key.term == TERMS and (j != episode.focus or episode.candidates == 0) else 0.0
    row[10] = 1.0 if key.reported else 0.0
    row[11] = 1.0 if j == episode.focus else 0.0


@kernel
def observe_lane(
    state: State, params: Params, lane: int, out: Observation, rest: NDArray[np.float32]
) -> None:
    """Write the observation.

    Args:
        state: arrays of all lanes.
        params: what all lanes share.
        lane: the lane that is shown.
        out: the fields of the observation before the rows, written.
        rest: rows of the keys (KEY_SHOWN), then of the candidates (SLOT_SHOWN), written, float32 [KEYS * KEY_COLUMNS + SLOTS *
            SLOT_COLUMNS].
    """
    episode, config = state.lane[lane], params.config[0]
    out.price = (math.log10(episode.price) + 5.0) / 5.0
    out.second_price = config.second_price / (config.second_price + 0.001)
    out.length = (math.log2(config.chunks) - 4.0) / 6.0
    out.part = math.log2(config.chunk_tokens) / 13.0
    out.chain = 1.0 if episode.chain else 0.0
    out.facts = episode.facts / KEYS
    out.held = held(state, lane) / KEYS
    out.tokens = episode.tokens / (episode.tokens + 100_000.0)
    out.steps = episode.steps / (episode.steps + 100.0)
    out.evaluations = episode.evaluations / (episode.evaluations + 4.0)
    out.retrievals = episode.retrievals / (episode.retrievals + 4.0)
    out.place = (episode.next_chunk % config.chunks) / config.chunks
    passes = episode.next_chunk // config.chunks
    out.passes = passes / (passes + 1.0)
    for verdict in range(3):
        out.verdict[verdict] = 1.0 if verdict == episode.verdict else 0.0
    out.null = episode.null
    for j in range(KEYS):
        _observe_key(state, lane, j, rest[j * KEY_COLUMNS : (j + 1) * KEY_COLUMNS])
    slots = rest[KEYS * KEY_COLUMNS :]
    for slot in range(SLOTS):
        row = slots[slot * SLOT_COLUMNS : (slot + 1) * SLOT_COLUMNS]
        for column in range(SLOT_COLUMNS):
            row[column] = 0.0
        if slot < episode.candidates:
            passage = state.passage[lane, episode.focus, state.slot[lane, slot]]
            row[0] = 1.0
            row[1] = _clipped(passage.snippet)
            row[2] = 1.0 if passage.seen & SCANNED else 0.0
            row[3] = _clipped(passage.scan) if passage.seen & SCANNED else 0.0
            row[4] = state.posterior[lane, slot]


@kernel
def mask_lane(state: State, params: Params, lane: int, out: NDArray[np.int8]) -> None:
    """Write what is allowed: evaluating and reading on always are.

    Args:
        state: arrays of all lanes.
        params: what all lanes share.
        lane: the lane that decides.
        out: 1 for each allowed action, else 0, written, int8 [ACTIONS].
    """
    for action in range(ACTIONS):
        out[action] = 1 if _allowed(state, params, lane, action) else 0


@kernel
def metrics_lane(state: State, params: Params, lane: int, out: Metrics) -> None:
    """Write the metrics of the episode so far.

    Args:
        state: arrays of all lanes.
        params: what all lanes share.
        lane: the lane that is measured.
        out: the metrics, written.
    """
    episode, config = state.lane[lane], params.config[0]
    false_units = 0
    for j in range(episode.facts):
        claim = state.key[lane, j].claim
        if claim != NOTHING and claim != TRUE:
            false_units += 1
    answered = episode.answers > 0
    out.accuracy = episode.accuracy if answered else math.nan
    out.tokens_k = episode.tokens / 1000.0
    out.tokens_per_correct_k = ratio(episode.tokens / 1000.0, episode.accuracy)
    out.net = episode.outcome - episode.paid - episode.waited
    out.time_s = episode.clock_s
    out.reads, out.scans, out.greps = episode.reads, episode.scans, episode.greps
    out.evaluations, out.commits = episode.evaluations, episode.commits
    out.parts_opened = episode.retrieved + episode.blocked + (config.chunks if episode.whole else 0)
    out.units, out.false_units = held(state, lane), false_units
    out.steps = episode.steps
    out.outcome = episode.outcome
    out.token_cost, out.time_cost = episode.paid, episode.waited
    out.repeated_k = episode.repeated / 1000.0
    out.beyond = episode.beyond
    out.penalty, out.invalid_actions = episode.penalty, episode.invalid
    out.world_checksum = episode.checksum


KERNELS = Kernels(reset_lane, step_lane, observe_lane, mask_lane, metrics_lane)
