"""Carrying out an admission rule: which waiting requests join the planned batch, and how the batch is put together.

Works on the arrays that `llmgym.serving.state` describes; `state.scratch` is int32 [engines, SCRATCH_ROWS, seats + 1].
"""

import numpy as np
from numpy.typing import NDArray

from llmgym.core.jit import kernel
from llmgym.serving import prefix, queue
from llmgym.serving.engine import admit, fits_now
from llmgym.serving.requests import chunks_of, in_blocks, predicted_output
from llmgym.serving.residents import kv_of, output_so_far, stored_with, unit
from llmgym.serving.rules import (
    CLASS_BUDGET,
    DECODE_FIRST,
    DECODE_ONLY,
    FUTURE,
    HEADROOM,
    PEAK,
    PREFILL_ONLY,
    WHOLE_PROMPT,
)
from llmgym.serving.state import EngineParams, EngineState, Limits

SCRATCH_ROWS = 6
PREFIXES_COMPARED = 128
"""So many waiting requests are compared by their cached prefixes; SGLang compares none where more than 128 wait."""
_LEFT, _CHUNKS, _BASE, _DONE, _PROMPT, _TOTAL = 0, 1, 2, 3, 4, 5


@kernel
def admit_by_rule(
    state: EngineState, params: EngineParams, lane: int, number_of_rule: int, watermark: float
) -> int:
    """Admit waiting requests as a rule says.

    Args:
        state: the arrays of the engines.
        params: what the engines share.
        lane: number of the engine.
        number_of_rule: index into `params.rules`.
        watermark: share of the cache that the `whole-prompt` check keeps free.

    Returns:
        How many were admitted.
    """
    engine = state.lane[lane]
    if engine.blocked == 1 or engine.waiting == 0:
        return 0
    config = params.config[0]
    rule = params.rules[number_of_rule]
    capacity = config.kv_capacity
    if rule.batch == DECODE_ONLY and _decoding(state, lane):
        return 0
    peak = 0
    if rule.check == PEAK:
        for i in range(engine.residents):
            resident = state.resident[lane, i]
            peak += in_blocks(
                config,
                resident.prompt
                - resident.kept
                + max(resident.predicted, output_so_far(engine.tick, resident) + 1),
            )
    looked_ahead = False
    by_prefix = config.prefix == 1 and params.orders[rule.row].kind == queue.BY_PREFIX
    if rule.check == CLASS_BUDGET:
        for k in range(params.class_budgets.shape[1]):
            state.scratch[lane, 0, k] = 0
    position = 0
    count = 0
    while (
        position < engine.waiting
        and count < rule.most
        and engine.residents < config.seats
        and engine.budget_left > 0
    ):
        number = queue.at(state, lane, rule.row, position)
        if by_prefix:
            number = _longest_prefix(state, params, lane, rule.row)
        fits = fits_now(state, params, lane, number)
        alone = engine.residents == 0
        request = state.request[lane, number]
        kept = request.kept
        more = _whole_prompt(state, params, lane, number)
        need = 0
        if fits and rule.check == CLASS_BUDGET:
            request_class = request.request_class
            if state.scratch[lane, 0, request_class] >= params.class_budgets[number_of_rule, request_class]:
                position += 1
                continue
            state.scratch[lane, 0, request_class] += 1
        elif fits and not alone:
            if rule.check == WHOLE_PROMPT:
                fits = engine.used + engine.growth + more + watermark * capacity <= capacity
            elif rule.check == HEADROOM:
                fits = engine.used + engine.growth + more <= (1.0 - rule.headroom) * capacity
            elif rule.check == FUTURE:
                if not looked_ahead:
                    _look_ahead(state, params, lane)
                    looked_ahead = True
                fits = _fits_ahead(state, params, lane, number)
        if rule.check == PEAK:
            output = max(predicted_output(config, request.predicted), kept + 1)
            need = in_blocks(config, request.prompt + output)
            fits = fits and (alone or peak + need <= capacity)
        if fits:
            if rule.check == FUTURE and looked_ahead:
                _take_ahead(state, params, lane)
            admit(state, params, lane, number)
            peak += need
            count += 1
        elif rule.skip == 1:
            position += 1
        else:
            break
    return count


@kernel
def _longest_prefix(state: EngineState, params: EngineParams, lane: int, row: int) -> int:
    """The waiting request that finds most of its prompt in the cache, of the first ones by arrival; the earliest of several."""
    engine = state.lane[lane]
    chosen, most = queue.at(state, lane, row, 0), -1
    for position in range(min(engine.waiting, PREFIXES_COMPARED)):
        number = queue.at(state, lane, row, position)
        prefix.look_up(state, params, lane, number)
        if engine.found > most:
            chosen, most = number, engine.found
    return chosen


@kernel
def fits_whole(state: EngineState, params: EngineParams, lane: int, number: int) -> bool:
    """Whether a waiting request may join the planned batch as vLLM lets it: its first chunk fits into the batch, and its whole
    prompt into the cache, unless it is alone.

    Args:
        state: the arrays of the engines.
        params: what the engines share.
        lane: number of the engine.
        number: of the request.
    """
    engine = state.lane[lane]
    config = params.config[0]
    if not fits_now(state, params, lane, number):
        return False
    if engine.residents == 0:
        return True
    return engine.used + engine.growth + _whole_prompt(state, params, lane, number) <= config.kv_capacity


@kernel(inline=True)
def _whole_prompt(state: EngineState, params: EngineParams, lane: int, number: int) -> int:
    """Tokens of the blocks that the whole prompt of the request takes that `fits_now` looked at last."""
    config = params.config[0]
    request = state.request[lane, number]
    more = in_blocks(config, request.prompt + request.kept)
    if config.prefix == 1:
        more += state.lane[lane].revived - state.lane[lane].found
    return more


@kernel(inline=True)
def admissible(state: EngineState, params: EngineParams, lane: int, most: int) -> int:
    """How many requests from the front of the first order could join the planned batch together.

    Args:
        state: the arrays of the engines.
        params: what the engines share.
        lane: number of the engine.
        most: looked at, from the front.
    """
    engine = state.lane[lane]
    config = params.config[0]
    if engine.blocked == 1:
        return 0
    total = engine.used + engine.growth
    left = engine.budget_left
    seats = config.seats - engine.residents
    count = 0
    while count < most and count < engine.waiting and count < seats and left > 0:
        request = state.request[lane, queue.at(state, lane, 0, count)]
        prompt = request.prompt + request.kept - request.hosted
        first = min(min(prompt, engine.chunk), left)
        left -= first
        if config.first_stored == 1 and first == prompt:
            first += 1
        total += in_blocks(config, request.hosted + first)
        if total > config.kv_capacity:
            break
        count += 1
    return count


@kernel
def _decoding(state: EngineState, lane: int) -> bool:
    """Whether any resident that is not paused still decodes."""
    engine = state.lane[lane]
    for i in range(engine.residents):
        resident = state.resident[lane, i]
        if resident.prefilled == resident.prompt and resident.paused == 0 and resident.gone == 0:
            return True
    return False


@kernel
def _enter(
    scratch: NDArray[np.int32], i: int, config: Limits, prompt: int, prefilled: int, kept: int, predicted: int
) -> None:
    """Write the predicted course of a request that still has prompt to run, as entry i."""
    chunks = chunks_of(config, prompt - prefilled)
    scratch[_CHUNKS, i] = chunks
    scratch[_LEFT, i] = chunks + max(predicted, kept + 1) - kept - (config.first if chunks > 0 else 0)
    scratch[_BASE, i] = prompt + config.first_stored - chunks
    scratch[_DONE, i] = prefilled
    scratch[_PROMPT, i] = prompt


@kernel(inline=True)
def _memory_at(config: Limits, scratch: NDArray[np.int32], i: int, batches: int) -> int:
    """Predicted tokens of the blocks of entry i after so many batches; 0 once it has completed."""
    if scratch[_LEFT, i] < batches:
        return 0
    tokens = scratch[_BASE, i] + batches
    if batches < scratch[_CHUNKS, i]:
        tokens = min(scratch[_DONE, i] + batches * config.chunk, scratch[_PROMPT, i])
    return in_blocks(config, tokens)


@kernel
def _look_ahead(state: EngineState, params: EngineParams, lane: int) -> None:
    """Predict the cache at the completion of every resident, if all of them run in every batch from now on."""
    engine = state.lane[lane]
    config = params.config[0]
    scratch = state.scratch[lane]
    for i in range(engine.residents):
        resident = state.resident[lane, i]
        if resident.decoding == 1:
            scratch[_CHUNKS, i] = 0
            scratch[_LEFT, i] = max(resident.predicted - output_so_far(engine.tick, resident), 1)
            scratch[_BASE, i] = kv_of(config, engine.tick, resident)
            scratch[_DONE, i] = resident.prompt
            scratch[_PROMPT, i] = resident.prompt
        else:
            _enter(scratch, i, config, resident.prompt, resident.prefilled, resident.kept, resident.predicted)
    for j in range(engine.residents):
        total = 0
        for i in range(engine.residents):
            total += _memory_at(config, scratch, i, scratch[_LEFT, j])
        scratch[_TOTAL, j] = total


@kernel
def _fits_ahead(state: EngineState, params: EngineParams, lane: int, number: int) -> bool:
    """Whether no predicted completion time overflows if this request starts now (arXiv 2502.07115, MC-SF)."""
    engine = state.lane[lane]
    config = params.config[0]
    scratch = state.scratch[lane]
    n = engine.residents
    request = state.request[lane, number]
    kept = request.kept
    predicted = predicted_output(config, request.predicted)
    _enter(scratch, n, config, request.prompt + kept, request.hosted, kept, predicted)
    own = 0
    for j in range(n):
        if scratch[_TOTAL, j] + _memory_at(config, scratch, n, scratch[_LEFT, j]) > config.kv_capacity:
            return False
        own += _memory_at(config, scratch, j, scratch[_LEFT, n])
    own += _memory_at(config, scratch, n, scratch[_LEFT, n])
    scratch[_TOTAL, n] = own
    return own <= config.kv_capacity


@kernel
def _take_ahead(state: EngineState, params: EngineParams, lane: int) -> None:
    """Add the request that `_fits_ahead` entered last to the predicted totals."""
    engine = state.lane[lane]
    scratch = state.scratch[lane]
    n = engine.residents
    for j in range(n):
        scratch[_TOTAL, j] += _memory_at(params.config[0], scratch, n, scratch[_LEFT, j])


@kernel
def compose(state: EngineState, params: EngineParams, lane: int, batch: int) -> None:
    """Divide the token budget anew between prefill and decode.

    A resident that would not fit into the cache any more is left out of the batch.

    Args:
        state: the arrays of the engines.
        params: what the engines share.
        lane: number of the engine.
        batch: how it is divided, a value of `BATCHES` other than that of `as-admitted`.
    """
    engine = state.lane[lane]
    config = params.config[0]
    residents = state.resident[lane]
    waits = False
    for i in range(engine.residents):
        residents[i].run = 0
        waits = waits or (residents[i].paused == 0 and residents[i].prefilled < residents[i].prompt)
    engine.budget_left = config.budget
    engine.growth, engine.unfilled = 0, 0
    if batch == DECODE_FIRST:
        _share(state, params, lane, False, False)
        _share(state, params, lane, True, False)
    elif batch == PREFILL_ONLY:
        no_room = _share(state, params, lane, waits, True)
        if no_room and engine.growth == 0:
            _share(state, params, lane, False, False)
    elif batch == DECODE_ONLY:
        _share(state, params, lane, not _decoding(state, lane), False)
    else:
        _share(state, params, lane, True, False)
        _share(state, params, lane, False, False)
    engine.walk = 0


@kernel
def _share(state: EngineState, params: EngineParams, lane: int, prefill: bool, whole: bool) -> bool:
    """Give budget to the residents that prefill (or to those that decode), oldest first; True if the cache held one back."""
    engine = state.lane[lane]
    config = params.config[0]
    no_room = False
    for i in range(engine.residents):
        resident = state.resident[lane, i]
        if resident.paused == 1 or (resident.prefilled < resident.prompt) != prefill:
            continue
        tokens = unit(engine.chunk, resident, engine.budget_left)
        if whole and prefill:
            tokens = resident.prompt - resident.prefilled
            if tokens > engine.budget_left:
                continue
        need = stored_with(config, engine.tick, resident, tokens)
        if engine.used + engine.growth + need > config.kv_capacity:
            no_room = True
            continue
        resident.run = tokens
        engine.growth += need
        engine.budget_left -= tokens
    return no_room
