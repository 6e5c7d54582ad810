"""How long prefills and steps take on the nodes of a PPD cluster: by the latency law, or by a profile."""

from llmgym.core.jit import kernel
from llmgym.envs.ppd.state import PAPER, Config, Node, Params, R, State
from llmgym.profiles.cost import prefill_attention_s, step_time_s

CROWD = 50
"""`interference="paper"` applies from so many decoding sequences on, where the paper's micro-benchmark begins to show."""
FULL_FACTOR, APPEND_FACTOR = 1.48, 1.02
"""By how much one 1024-token prefill lengthens a decode step at batch 200 in the paper's micro-benchmark: a full prefill, one that
appends."""


@kernel(inline=True)
def prefill_s(config: Config, params: Params, tokens: int, before: int) -> float:
    """Time to prefill tokens of one conversation with nobody beside it.

    Args:
        config: of the cluster.
        params: shared by all lanes.
        tokens: to prefill.
        before: tokens of the conversation that are in the cache already.

    Returns:
        Seconds.
    """
    if config.profiled == 0:
        return tokens * config.prefill_token_s
    seconds = 0.0
    done = 0
    while done < tokens:
        run = min(tokens - done, config.chunk)
        attention = prefill_attention_s(params.cost, run, before + done)
        seconds += step_time_s(params.cost, run, attention, 0, 0, 1, before + done + run)
        done += run
    return seconds


@kernel(inline=True)
def batch_s(state: State, params: Params, lane: int, n: int) -> float:
    """Duration of the step that a decoding node is about to run, without what it receives in it.

    Args:
        state: arrays of all lanes.
        params: shared by all lanes.
        lane: number of the lane.
        n: number of the node; its batch is put together.

    Returns:
        Seconds.
    """
    config = params.config[0]
    node = state.node[lane, n]
    batch = state.running[lane, n]
    prefill, attention_s = 0, 0.0
    full = False
    for i in range(node.decoding, node.running):
        conversation = state.conversation[lane, batch[i]]
        prefill += conversation.run
        full = full or (conversation.run > 0 and conversation.full == 1)
        if config.profiled == 1 and conversation.run > 0:
            held = conversation.context + conversation.prompt + conversation.kept - conversation.left
            attention_s += prefill_attention_s(params.cost, conversation.run, held)
    seconds = 0.0
    if config.profiled == 1:
        seconds = step_time_s(
            params.cost, prefill, attention_s, node.decoding, node.context, node.running, node.active
        )
    else:
        seconds = _law_s(config, node, prefill)
    if config.interference == PAPER and prefill > 0 and node.decoding >= CROWD:
        seconds *= FULL_FACTOR if full else APPEND_FACTOR
    return seconds


@kernel(inline=True)
def _law_s(config: Config, node: Node, prefill: int) -> float:
    """Duration of a step with `prefill` prefill tokens by the latency law, seconds."""
    seconds = config.step_s
    if prefill > 0:
        seconds = max(seconds, config.prefill_step_s + config.prefill_token_s * prefill)
    if node.role == R:
        seconds += config.replica_sequence_s * node.decoding + config.replica_context_token_s * node.context
        if node.decoding > 0:
            seconds += config.replica_prefill_token_s * prefill
    else:
        seconds += config.sequence_s * node.decoding + config.context_token_s * node.context
    return seconds
