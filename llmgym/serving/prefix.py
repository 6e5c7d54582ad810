"""Automatic prefix caching: blocks of the cache that hold the beginning of a conversation are found again, as in vLLM.

A request begins with the tokens of its *session*, as far as both go, so a block of it is told apart by session and place: its
*key*. A block that is full gets its key at the moment it is scheduled to be filled. Who is admitted takes the blocks of its keys
instead of computing them, from the first on and as far as they are there, except the block of its last token: that has to be
computed anyway.

A block counts the residents that hold it. When the last one leaves, a block without a key is the next to be handed out; one with
a key goes to the end of a line, the last block of a request first. Blocks are handed out from the beginning of that line when no
others are free, and lose their key then: whoever left longest ago is forgotten first. A resident that is marked (`Resident.forget`)
is forgotten at once when it leaves. Several blocks may have one key, where two
residents have computed the same tokens at the same time; the oldest of them is the one that is found.

All of it applies where `Limits.prefix` is 1, and the arrays are empty elsewhere.
"""

import numpy as np

from llmgym.core.jit import kernel
from llmgym.serving.requests import in_blocks
from llmgym.serving.residents import kv_of
from llmgym.serving.state import NO_KEY, Block, EngineParams, EngineState, Prefixes, Resident


def allocate(engines: int, blocks: int, seats: int, longest: int, keys: int) -> Prefixes:
    """Arrays for engines that remember; `forget_all` lets one begin.

    Args:
        engines: how many.
        blocks: of each cache.
        seats: residents of an engine at most.
        longest: blocks of a request at most.
        keys: keys of an engine at most, see `number_keys`.
    """
    return Prefixes(
        Block.zeros(engines, blocks + 1),
        np.zeros((engines, seats, 1 + longest), np.int32),
        np.zeros((engines, keys), np.int32),
    )


@kernel
def number_keys(state: EngineState, params: EngineParams, lane: int, count: int) -> int:
    """Give the requests of a lane their first keys: those of a conversation begin with the same, other conversations after them.

    Args:
        state: the arrays of the engines; a follower has a higher number than the turn before it, and a longer prompt.
        params: what the engines share.
        lane: number of the engine.
        count: requests of the lane.

    Returns:
        How many keys there are; at most `llmgym.workloads.conversations.most_keys`.
    """
    requests = state.request[lane]
    keys = 0
    for i in range(count):
        requests[i].first_key = NO_KEY
    for i in range(count):
        if requests[i].first_key != NO_KEY:
            continue
        turn = i
        requests[turn].first_key = keys
        while requests[turn].follower > 0:
            turn = requests[turn].follower
            requests[turn].first_key = keys
        longest = requests[turn].prompt + requests[turn].output
        keys += in_blocks(params.config[0], longest) // params.config[0].block
    return keys


@kernel
def forget_all(state: EngineState, lane: int) -> None:
    """Let every block of an engine be free and without a key.

    Args:
        state: the arrays of the engines.
        lane: number of the engine.
    """
    engine = state.lane[lane]
    blocks = state.prefix.block[lane]
    last = blocks.shape[0] - 1
    for i in range(last + 1):
        blocks[i].key, blocks[i].held, blocks[i].before, blocks[i].twin = NO_KEY, 0, 0, 0
        blocks[i].after = i + 1 if i < last else 0
    blocks[0].after = 0
    engine.bare = min(1, last)
    rows = state.prefix.held[lane]
    for i in range(rows.shape[0]):
        rows[i, 0] = i + 1
    engine.free_row = 0
    state.prefix.holder[lane, :] = 0


@kernel
def look_up(state: EngineState, params: EngineParams, lane: int, number: int) -> None:
    """Note how much of a waiting request is in the cache (`Engine.found`), and in blocks that nobody holds (`Engine.revived`).

    Args:
        state: the arrays of the engines.
        params: what the engines share.
        lane: number of the engine.
        number: of the request.
    """
    engine = state.lane[lane]
    block = params.config[0].block
    request = state.request[lane, number]
    most = (request.prompt + request.kept - 1) // block
    found, revived = 0, 0
    while found < most:
        holder = state.prefix.holder[lane, request.first_key + found]
        if holder == 0:
            break
        if state.prefix.block[lane, holder].held == 0:
            revived += 1
        found += 1
    engine.found = found * block
    engine.revived = revived * block


@kernel
def take_found(state: EngineState, params: EngineParams, lane: int, index: int) -> None:
    """Give a newly admitted resident a row, and the blocks that `look_up` found.

    Args:
        state: the arrays of the engines.
        params: what the engines share.
        lane: number of the engine.
        index: of the resident.
    """
    engine = state.lane[lane]
    blocks = state.prefix.block[lane]
    resident = state.resident[lane, index]
    row = engine.free_row
    engine.free_row = state.prefix.held[lane, row, 0]
    resident.row = row
    resident.blocks = engine.found // params.config[0].block
    resident.keyed = resident.blocks
    first = state.request[lane, resident.request].first_key
    for i in range(resident.blocks):
        number = state.prefix.holder[lane, first + i]
        if blocks[number].held == 0:
            blocks[blocks[number].before].after = blocks[number].after
            blocks[blocks[number].after].before = blocks[number].before
        blocks[number].held += 1
        state.prefix.held[lane, row, i] = number


@kernel
def fill(state: EngineState, params: EngineParams, lane: int, index: int) -> None:
    """Give a resident the blocks that it fills in the planned batch, and their keys to those that are full.

    With `held` (vLLM's asynchronous scheduler) the token that is decoded is not known while the batch is planned, and so the
    block that it fills has no key yet.

    Args:
        state: the arrays of the engines.
        params: what the engines share.
        lane: number of the engine.
        index: of the resident, with what it runs.
    """
    config = params.config[0]
    tick = state.lane[lane].tick
    resident = state.resident[lane, index]
    tokens = 1 if index < state.lane[lane].walk else resident.run
    if tokens == 0:
        return
    kv = kv_of(config, tick, resident)
    needed = in_blocks(config, kv + tokens) // config.block
    while resident.blocks < needed:
        state.prefix.held[lane, resident.row, resident.blocks] = _hand_out(state, lane)
        resident.blocks += 1
    known = kv if config.held == 1 and resident.prefilled == resident.prompt else kv + tokens
    name(state, params, lane, resident, known)


@kernel
def name(state: EngineState, params: EngineParams, lane: int, resident: Resident, known: int) -> None:
    """Give their keys to the blocks of a resident that are full.

    Args:
        state: the arrays of the engines.
        params: what the engines share.
        lane: number of the engine.
        resident: whose.
        known: how many of its tokens are known, from the first on.
    """
    blocks = state.prefix.block[lane]
    holder = state.prefix.holder[lane]
    first = state.request[lane, resident.request].first_key
    while resident.keyed < known // params.config[0].block:
        number = state.prefix.held[lane, resident.row, resident.keyed]
        key = first + resident.keyed
        blocks[number].key = key
        if holder[key] == 0:
            holder[key] = number
        else:
            other = holder[key]
            while blocks[other].twin != 0:
                other = blocks[other].twin
            blocks[other].twin = number
        resident.keyed += 1


@kernel
def _hand_out(state: EngineState, lane: int) -> int:
    """A free block, of those without a key if there is any."""
    engine = state.lane[lane]
    blocks = state.prefix.block[lane]
    number = engine.bare
    if number != 0:
        engine.bare = blocks[number].after
    else:
        number = blocks[0].after
        blocks[0].after = blocks[number].after
        blocks[blocks[number].after].before = 0
        _forget(state, lane, number)
    blocks[number].held = 1
    return number


@kernel
def _forget(state: EngineState, lane: int, number: int) -> None:
    """Take its key from a block."""
    blocks = state.prefix.block[lane]
    holder = state.prefix.holder[lane]
    key = blocks[number].key
    if holder[key] == number:
        holder[key] = blocks[number].twin
    else:
        other = holder[key]
        while blocks[other].twin != number:
            other = blocks[other].twin
        blocks[other].twin = blocks[number].twin
    blocks[number].key, blocks[number].twin = NO_KEY, 0


@kernel
def let_go(state: EngineState, params: EngineParams, lane: int, resident: Resident) -> int:
    """Free the blocks of a resident that leaves.

    Args:
        state: the arrays of the engines.
        params: what the engines share.
        lane: number of the engine.
        resident: who leaves.

    Returns:
        Tokens of the blocks that nobody holds any more.
    """
    engine = state.lane[lane]
    blocks = state.prefix.block[lane]
    row = state.prefix.held[lane, resident.row]
    freed = 0
    for i in range(resident.blocks - 1, -1, -1):
        number = row[i]
        blocks[number].held -= 1
        if blocks[number].held > 0:
            continue
        freed += 1
        if resident.forget == 1 and blocks[number].key != NO_KEY:
            _forget(state, lane, number)
        if blocks[number].key == NO_KEY:
            blocks[number].after = engine.bare
            engine.bare = number
        else:
            last = blocks[0].before
            blocks[number].before, blocks[number].after = last, 0
            blocks[last].after = number
            blocks[0].before = number
    row[0] = engine.free_row
    engine.free_row = resident.row
    return freed * params.config[0].block
