"""The KV cache of a node: what it holds of each conversation, least recently used first out.

Tokens of running requests cannot be thrown out and are not in the list; `node.idle` counts those that are. An evicted conversation
loses all it has on the node (engines throw out single blocks, the last ones first; with whole conversations the next turn
finds everything or nothing, which is what Li et al., arXiv 2603.13358, distinguish).
"""

from llmgym.core.jit import kernel
from llmgym.envs.ppd.state import Config, Conversation, State


@kernel(inline=True)
def put(state: State, lane: int, n: int, e: int) -> None:
    """Put a cache entry that is not needed for now into the list of its node, as the most recently used one.

    Args:
        state: arrays of all lanes.
        lane: number of the lane.
        n: number of the node.
        e: number of the cache entry, see `p_entry` and `d_entry`.
    """
    node = state.node[lane, n]
    entry = state.cache[lane, e]
    entry.older, entry.newer, entry.listed = node.newest, -1, 1
    if node.newest >= 0:
        state.cache[lane, node.newest].newer = e
    else:
        node.oldest = e
    node.newest = e
    node.idle += entry.tokens


@kernel(inline=True)
def take(state: State, lane: int, n: int, e: int) -> int:
    """Take a cache entry out of the list of its node, if it is there.

    Args:
        state: arrays of all lanes.
        lane: number of the lane.
        n: number of the node.
        e: number of the cache entry, see `p_entry` and `d_entry`.

    Returns:
        Tokens that the entry holds; 0 if it was not in the list.
    """
    entry = state.cache[lane, e]
    if entry.listed == 0:
        return 0
    node = state.node[lane, n]
    if entry.older >= 0:
        state.cache[lane, entry.older].newer = entry.newer
    else:
        node.oldest = entry.newer
    if entry.newer >= 0:
        state.cache[lane, entry.newer].older = entry.older
    else:
        node.newest = entry.older
    entry.listed = 0
    node.idle -= entry.tokens
    return entry.tokens


@kernel(inline=True)
def keep(state: State, lane: int, n: int, tokens: int) -> None:
    """Throw out the least recently used entries of a node's list until at most so many tokens are left in it.

    Args:
        state: arrays of all lanes.
        lane: number of the lane.
        n: number of the node.
        tokens: that may stay.
    """
    node = state.node[lane, n]
    while node.idle > tokens:
        e = node.oldest
        take(state, lane, n, e)
        state.cache[lane, e].tokens = 0
        state.lane[lane].evictions += 1


@kernel(inline=True)
def missing(config: Config, conversation: Conversation, held: int) -> int:
    """How many tokens D has to prefill of a request.

    The last answer is tokenised anew from its text, which gives other tokens: its KV does not count unless `answer_kv_hit`.

    Args:
        config: of the cluster.
        conversation: whose present turn is the request.
        held: tokens of the conversation that are in D's cache.

    Returns:
        Tokens.
    """
    if held == 0:
        return conversation.context + conversation.prompt + conversation.kept
    if config.answer_kv_hit == 1:
        return conversation.prompt
    return conversation.prompt + conversation.previous
