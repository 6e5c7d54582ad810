"""Who waits for what in a PPD cluster: conversations with a time (a heap, earliest first) and the lines of nodes."""

from llmgym.core.jit import kernel
from llmgym.envs.ppd.state import State


@kernel(inline=True)
def push(state: State, lane: int, c: int) -> None:
    """Put a conversation with a time, `at_s`, onto the heap; ties go by number.

    Args:
        state: arrays of all lanes.
        lane: number of the lane.
        c: number of the conversation, whose `at_s` (seconds) is already set.
    """
    episode = state.lane[lane]
    heap, conversations = state.heap[lane], state.conversation[lane]
    i = episode.size
    episode.size += 1
    at_s = conversations[c].at_s
    while i > 0:
        above = heap[(i - 1) // 2]
        above_s = conversations[above].at_s
        if above_s < at_s or (above_s == at_s and above < c):
            break
        heap[i] = above
        i = (i - 1) // 2
    heap[i] = c


@kernel(inline=True)
def pop(state: State, lane: int) -> int:
    """Take the conversation with the earliest time off the heap; returns its number."""
    episode = state.lane[lane]
    heap, conversations = state.heap[lane], state.conversation[lane]
    top = heap[0]
    episode.size -= 1
    last = heap[episode.size]
    i = 0
    while True:
        below = 2 * i + 1
        if below >= episode.size:
            break
        for k in range(below + 1, min(below + 2, episode.size)):
            other, first = conversations[heap[k]], conversations[heap[below]]
            if other.at_s < first.at_s or (other.at_s == first.at_s and heap[k] < heap[below]):
                below = k
        child = conversations[heap[below]]
        if conversations[last].at_s < child.at_s or (
            conversations[last].at_s == child.at_s and last < heap[below]
        ):
            break
        heap[i] = heap[below]
        i = below
    heap[i] = last
    return top


@kernel(inline=True)
def join_line(state: State, lane: int, n: int, c: int) -> None:
    """Put a conversation at the end of a node's line.

    Args:
        state: arrays of all lanes.
        lane: number of the lane.
        n: number of the node.
        c: number of the conversation.
    """
    node = state.node[lane, n]
    state.conversation[lane, c].next = -1
    if node.head < 0:
        node.head = c
    else:
        state.conversation[lane, node.tail].next = c
    node.tail = c
    node.waiting += 1


@kernel(inline=True)
def leave_line(state: State, lane: int, n: int) -> int:
    """Take the first conversation out of a node's line.

    Args:
        state: arrays of all lanes.
        lane: number of the lane.
        n: number of the node; somebody waits there.

    Returns:
        Number of the conversation.
    """
    node = state.node[lane, n]
    c = node.head
    node.head = state.conversation[lane, c].next
    node.waiting -= 1
    return c
