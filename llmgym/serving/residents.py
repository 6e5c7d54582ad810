"""What a resident of an engine takes of the KV cache and of a batch, and how a request comes to wait."""

from llmgym.core.jit import kernel
from llmgym.serving import queue
from llmgym.serving.requests import in_blocks, predicted_area
from llmgym.serving.state import EngineParams, EngineState, Limits, Resident


@kernel(inline=True)
def output_so_far(tick: int, resident: Resident) -> int:
    """Output tokens a resident has produced."""
    return tick - resident.base if resident.decoding == 1 else resident.kept


@kernel(inline=True)
def kv_of(config: Limits, tick: int, resident: Resident) -> int:
    """What a resident holds in the cache.

    Args:
        config: limits of the engine.
        tick: batches that the engine has run.
        resident: the resident.

    Returns:
        Tokens.
    """
    if resident.decoding == 1:
        return resident.prompt - resident.kept + (tick - resident.base) - (config.first - config.first_stored)
    return resident.prefilled


@kernel(inline=True)
def unit(chunk: int, resident: Resident, left: int) -> int:
    """What a resident takes of the next batch: a chunk of its prompt, or one output token.

    Args:
        chunk: longest chunk of a prompt in this batch, tokens.
        resident: the resident.
        left: tokens of the budget that are free.

    Returns:
        Tokens.
    """
    if resident.gone == 1:
        return 0
    if resident.prefilled < resident.prompt:
        return min(min(resident.prompt - resident.prefilled, chunk), left)
    return min(1, left)


@kernel(inline=True)
def stored_with(config: Limits, tick: int, resident: Resident, tokens: int) -> int:
    """What the cache grows by when a resident runs; where prefill stores its first output as well, that is one token more.

    Args:
        config: limits of the engine.
        tick: batches that the engine has run.
        resident: the resident.
        tokens: what it runs.

    Returns:
        Tokens of the new blocks.
    """
    kv = kv_of(config, tick, resident)
    after = kv + tokens
    if (
        config.first_stored == 1
        and resident.decoding == 0
        and tokens > 0
        and resident.prefilled + tokens == resident.prompt
    ):
        after += 1
    return in_blocks(config, after) - in_blocks(config, kv)


@kernel(inline=True)
def decode_all(state: EngineState, params: EngineParams, lane: int) -> int:
    """What one token each for the residents before `walk` takes; notes what their blocks have not filled.

    Args:
        state: the arrays of the engines.
        params: what the engines share.
        lane: number of the engine.

    Returns:
        Tokens of the new blocks.
    """
    engine = state.lane[lane]
    config = params.config[0]
    engine.unfilled = 0
    if config.block == 1:
        return engine.walk
    growth, unfilled = 0, 0
    for i in range(engine.walk):
        kv = kv_of(config, engine.tick, state.resident[lane, i])
        held = in_blocks(config, kv)
        unfilled += held - kv
        growth += in_blocks(config, kv + 1) - held
    engine.unfilled = unfilled
    return growth


@kernel(inline=True)
def wait(state: EngineState, params: EngineParams, lane: int, number: int) -> None:
    """Put a request among the waiting ones, in every order that is kept.

    Args:
        state: the arrays of the engines.
        params: what the engines share.
        lane: number of the engine.
        number: of the request.
    """
    engine = state.lane[lane]
    request = state.request[lane, number]
    area = predicted_area(params.config[0], request)
    request.area = area
    engine.waiting_area += area
    engine.waiting += 1
    queue.insert(state, params, lane, number)
