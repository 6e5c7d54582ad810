"""The world of an episode of a PPD cluster: its conversations and their turns, drawn from one key."""

import math

import numpy as np

from llmgym.core.jit import kernel
from llmgym.core.rng import bits, substream, uniform
from llmgym.envs.ppd.state import Conversation, Entry, Episode, Node, Params, R, State, d_entry, p_entry
from llmgym.workloads.traffic import draw

_OPENING, _FOLLOWING, _TURNS, _PLACE = 3, 4, 5, 6
"""Numbers of streams of an episode's key."""
_HIGH_BITS = np.uint64(33)
"""A number of the 31 bits above these serves as the hash of a conversation's id."""
OUTPUT_WEIGHT = 1e-3
"""In the checksum, so that prompts and answers cannot be exchanged."""
EMPTY, EMPTY_NODE, EMPTY_CONVERSATION, EMPTY_ENTRY = (
    record.blank for record in (Episode, Node, Conversation, Entry)
)


@kernel
def begin_world(state: State, params: Params, lane: int, key: np.uint64) -> None:
    """Draw conversations and their turns; every node is idle and empty, and nobody has come yet.

    Args:
        state: arrays of all lanes.
        params: shared by all lanes.
        lane: number of the lane.
        key: seeds everything that is drawn in the episode, uint64.
    """
    config = params.config[0]
    state.lane[lane] = EMPTY[0]
    state.lane[lane].key = key
    for n in range(config.nodes):
        state.node[lane, n] = EMPTY_NODE[0]
        node = state.node[lane, n]
        node.role, node.mean_step_s = params.role[n], config.step_s
        state.link[lane, n] = params.links[n]
    _draw_conversations(state, params, lane, key)


@kernel
def _draw_conversations(state: State, params: Params, lane: int, key: np.uint64) -> None:
    """Draw when conversations begin, their nodes, how many turns they have and how long these are."""
    episode = state.lane[lane]
    config = params.config[0]
    request = state.request[lane]
    room = state.conversation.shape[1]
    count = draw(params.opening, substream(key, _OPENING), config.window_s, request[:room])
    episode.conversations = count
    slots = config.nodes - config.ps
    total = count
    counts, places = substream(key, _TURNS), substream(key, _PLACE)
    for c in range(count):
        state.conversation[lane, c] = EMPTY_CONVERSATION[0]
        conversation = state.conversation[lane, c]
        first = request[c]
        conversation.arrival_s = first.arrival_s
        conversation.prompt, conversation.output = first.prompt, first.output
        conversation.predicted = first.predicted
        conversation.later = total
        conversation.turns = 1
        u = uniform(counts, c)
        while conversation.turns < config.max_turns and u > params.turns[conversation.turns - 1]:
            conversation.turns += 1
        total += conversation.turns - 1
        # one number for both, as a conversation's id is hashed once
        hashed = int(bits(places, c) >> _HIGH_BITS)
        conversation.d = config.ps + hashed % slots
        conversation.p = hashed % config.ps if params.role[conversation.d] != R else -1
        state.cache[lane, p_entry(c)] = EMPTY_ENTRY[0]
        state.cache[lane, d_entry(c)] = EMPTY_ENTRY[0]
    draw(params.following, substream(key, _FOLLOWING), math.inf, request[count:total])
    checksum = 0.0
    for c in range(count):
        conversation = state.conversation[lane, c]
        context = 0
        for k in range(conversation.turns):
            turn = request[conversation.later + k - 1 if k > 0 else c]
            turn.route, turn.ttft_s, turn.e2e_s, turn.moved_bytes = -1, -1.0, -1.0, 0.0
            if k == 0:
                turn.prompt = min(turn.prompt, config.longest - 1)
                turn.output = min(turn.output, config.longest - turn.prompt)
            elif context + turn.prompt + turn.output > config.longest:
                conversation.turns = k
                break
            turn.predicted = min(turn.predicted, config.longest - context - turn.prompt)
            context += turn.prompt + turn.output
            checksum += turn.prompt + OUTPUT_WEIGHT * turn.output
        checksum += conversation.arrival_s
        episode.later += conversation.turns - 1
    episode.checksum = checksum
