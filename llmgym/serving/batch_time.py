"""How long the planned batch of an engine takes, and how much of that the host needs to launch it."""

from llmgym.core.jit import kernel
from llmgym.profiles.cost import prefill_attention_s, step_time_s
from llmgym.serving.requests import in_blocks
from llmgym.serving.residents import kv_of
from llmgym.serving.state import EngineParams, EngineState


@kernel(inline=True)
def batch_time_s(state: EngineState, params: EngineParams, lane: int) -> float:
    """How long the planned batch takes; notes what is in it.

    Args:
        state: the arrays of the engines.
        params: what the engines share.
        lane: number of the engine.

    Returns:
        Seconds; -1 if there is nothing to run.
    """
    engine = state.lane[lane]
    config = params.config[0]
    residents = state.resident[lane]
    walk = engine.walk
    decodes = walk
    prefill = 0
    prefill_s = 0.0
    idle_kv = engine.unfilled
    sequences = walk
    for i in range(walk, engine.residents):
        resident = residents[i]
        if resident.paused == 1:
            continue
        if resident.prefilled < resident.prompt:
            idle_kv += in_blocks(config, resident.prefilled)
            if resident.run > 0:
                prefill += resident.run
                prefill_s += prefill_attention_s(params.cost, resident.run, resident.prefilled)
                sequences += 1
        elif resident.run > 0:
            decodes += 1
            sequences += 1
            kv = kv_of(config, engine.tick, resident)
            idle_kv += in_blocks(config, kv) - kv
        else:
            idle_kv += in_blocks(config, kv_of(config, engine.tick, resident))
    if sequences == 0:
        return -1.0
    used = engine.used + engine.growth
    engine.batch_used = used
    engine.batch_prefill = prefill
    engine.batch_decodes = decodes
    read = engine.used - idle_kv
    if config.prefix == 1:
        read = 0
        for i in range(engine.residents):
            resident = residents[i]
            if i < walk or (resident.run > 0 and resident.prefilled == resident.prompt):
                read += kv_of(config, engine.tick, resident)
    return step_time_s(params.cost, prefill, prefill_s, decodes, read, sequences, used) + engine.copy_s


@kernel(inline=True)
def launching_s(state: EngineState, params: EngineParams, lane: int) -> float:
    """What the host takes, from the plan on, to launch the batch that `batch_time_s` looked at.

    Args:
        state: the arrays of the engines.
        params: what the engines share.
        lane: number of the engine.

    Returns:
        Seconds; 0 where it is one CUDA graph.
    """
    engine = state.lane[lane]
    config = params.config[0]
    if engine.batch_prefill + engine.batch_decodes > config.launch_above:
        return config.launch_s
    return config.floor_s if engine.batch_prefill > 0 else 0.0
