"""The cache of those that lose their place, in the host's memory: what is there, and what the copies take.

Where `Limits.host_tokens` is above 0, a preempted request's blocks are copied to the host if all of them fit there, and back when
it is admitted again, so that nothing of them is computed twice but the last token; without room its cache is lost, as it is where a
rule clears. A paused resident is swapped out and in, and one for whom the host has no room is preempted. Copies are of whole
blocks and are not overlapped with computing: their time is added to the step that is planned when they are decided. That is the
pessimistic end: an engine that copies beside its kernels hides some of it. How long a token takes comes from the profile
(`llmgym.profiles.Profile.copy_s_per_token`).
"""

from llmgym.core.jit import kernel
from llmgym.serving.requests import in_blocks
from llmgym.serving.state import EngineParams, EngineState


@kernel
def put(state: EngineState, params: EngineParams, lane: int, number: int, tokens: int) -> int:
    """Copy the cache of a request that is preempted to the host, if there is room.

    Args:
        state: the arrays of the engines.
        params: what the engines share.
        lane: number of the engine.
        number: of the request.
        tokens: of its cache, from the first on.

    Returns:
        Tokens that are on the host now: all or none.
    """
    engine = state.lane[lane]
    config = params.config[0]
    blocks = in_blocks(config, tokens)
    if tokens <= 0 or engine.hosted + engine.swapped + blocks > config.host_tokens:
        return 0
    state.request[lane, number].hosted = tokens
    engine.hosted += blocks
    engine.copied_out += blocks
    engine.copy_s += blocks * config.to_host_s
    return tokens


@kernel
def take_back(state: EngineState, params: EngineParams, lane: int, number: int) -> None:
    """Copy the cache of a request that is admitted from the host; its blocks are in use at once.

    Args:
        state: the arrays of the engines.
        params: what the engines share.
        lane: number of the engine.
        number: of the request, with what it has on the host.
    """
    engine = state.lane[lane]
    config = params.config[0]
    blocks = in_blocks(config, state.request[lane, number].hosted)
    engine.used += blocks
    engine.hosted -= blocks
    engine.copied_in += blocks
    engine.copy_s += blocks * config.to_device_s


@kernel
def swap(state: EngineState, params: EngineParams, lane: int, tokens_out: int, tokens_in: int) -> None:
    """Count and time what pausing swaps.

    Args:
        state: the arrays of the engines.
        params: what the engines share.
        lane: number of the engine.
        tokens_out: to the host.
        tokens_in: back.
    """
    engine = state.lane[lane]
    config = params.config[0]
    engine.copied_out += tokens_out
    engine.copied_in += tokens_in
    engine.copy_s += tokens_out * config.to_host_s + tokens_in * config.to_device_s
