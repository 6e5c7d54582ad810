"""Carrying out an admission rule: which waiting requests join the planned batch, and how the batch is put together.

Works on the state and params that `llmgym.serving.engine` describes; `params.rules` and `params.class_budgets` come from
`llmgym.serving.rules.pack`, and `state.scratch` is int32 [lanes, SCRATCH_ROWS, seats + 1].
"""

from typing import Any

from llmgym.core.jit import kernel
from llmgym.serving import queue
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

SCRATCH_ROWS = 6
_LEFT, _CHUNKS, _BASE, _DONE, _PROMPT, _TOTAL = 0, 1, 2, 3, 4, 5


@kernel
def admit_by_rule(state: Any, params: Any, lane: int, number_of_rule: int, watermark: float) -> int:
    """Admit waiting requests as a rule says; returns how many.

    Args:
        state: see the module.
        params: see the module.
        lane: which lane.
        number_of_rule: index into `params.rules`.
        watermark: fraction of M kept free by the `whole-prompt` check.
    """
    episode = state.lane[lane]
    if episode.blocked == 1 or episode.waiting == 0:
        return 0
    config = params.config[0]
    rule = params.rules[number_of_rule]
    capacity = config.kv_capacity
    if rule.batch == DECODE_ONLY and _decoding(state, lane):
        return 0
    peak = 0
    if rule.check == PEAK:
        for i in range(episode.residents):
            r = state.resident[lane, i]
            peak += in_blocks(
                config, r.prompt - r.kept + max(r.predicted, output_so_far(episode.tick, r) + 1)
            )
    looked_ahead = False
    if rule.check == CLASS_BUDGET:
        for k in range(params.class_budgets.shape[1]):
            state.scratch[lane, 0, k] = 0
    position = 0
    count = 0
    while (
        position < episode.waiting
        and count < rule.most
        and episode.residents < config.seats
        and episode.budget_left > 0
    ):
        request = queue.at(state, lane, rule.row, position)
        fits = fits_now(state, params, lane, request)
        alone = episode.residents == 0
        asked = state.request[lane, request]
        kept = asked.kept
        prompt = asked.prompt + kept
        need = 0
        if fits and rule.check == CLASS_BUDGET:
            kind = asked.kind
            if state.scratch[lane, 0, kind] >= params.class_budgets[number_of_rule, kind]:
                position += 1
                continue
            state.scratch[lane, 0, kind] += 1
        elif fits and not alone:
            if rule.check == WHOLE_PROMPT:
                fits = (
                    episode.used + episode.growth + in_blocks(config, prompt) + watermark * capacity
                    <= capacity
                )
            elif rule.check == HEADROOM:
                fits = (
                    episode.used + episode.growth + in_blocks(config, prompt)
                    <= (1.0 - rule.headroom) * capacity
                )
            elif rule.check == FUTURE:
                if not looked_ahead:
                    _look_ahead(state, params, lane)
                    looked_ahead = True
                fits = _fits_ahead(state, params, lane, request)
        if rule.check == PEAK:
            need = in_blocks(config, asked.prompt + max(predicted_output(config, asked.predicted), kept + 1))
            fits = fits and (alone or peak + need <= capacity)
        if fits:
            if rule.check == FUTURE and looked_ahead:
                _take_ahead(state, params, lane)
            admit(state, params, lane, request)
            peak += need
            count += 1
        elif rule.skip == 1:
            position += 1
        else:
            break
    return count


@kernel(inline=True)
def admissible(state: Any, params: Any, lane: int, most: int) -> int:
    """How many requests from the front of the first order could join the planned batch together, at most `most`."""
    episode = state.lane[lane]
    config = params.config[0]
    if episode.blocked == 1:
        return 0
    total = episode.used + episode.growth
    left = episode.budget_left
    seats = config.seats - episode.residents
    count = 0
    while count < most and count < episode.waiting and count < seats and left > 0:
        request = queue.at(state, lane, 0, count)
        prompt = state.request[lane, request].prompt + state.request[lane, request].kept
        first = min(min(prompt, config.chunk), left)
        left -= first
        if config.first_stored == 1 and first == prompt:
            first += 1
        total += in_blocks(config, first)
        if total > config.kv_capacity:
            break
        count += 1
    return count


@kernel
def _decoding(state: Any, lane: int) -> bool:
    """Whether any resident that is not paused has its prompt behind it."""
    episode = state.lane[lane]
    for i in range(episode.residents):
        r = state.resident[lane, i]
        if r.prefilled == r.prompt and r.paused == 0:
            return True
    return False


@kernel
def _enter(scratch: Any, i: int, config: Any, prompt: int, prefilled: int, kept: int, predicted: int) -> None:
    """Write the predicted course of a request that still has prompt to run, as entry i."""
    chunks = chunks_of(config, prompt - prefilled)
    scratch[_CHUNKS, i] = chunks
    scratch[_LEFT, i] = chunks + max(predicted, kept + 1) - kept - (config.first if chunks > 0 else 0)
    scratch[_BASE, i] = prompt + config.first_stored - chunks
    scratch[_DONE, i] = prefilled
    scratch[_PROMPT, i] = prompt


@kernel(inline=True)
def _memory_at(config: Any, scratch: Any, i: int, batches: int) -> int:
    """Predicted tokens of the blocks of entry i after so many batches; 0 once it has completed."""
    if scratch[_LEFT, i] < batches:
        return 0
    tokens = scratch[_BASE, i] + batches
    if batches < scratch[_CHUNKS, i]:
        tokens = min(scratch[_DONE, i] + batches * config.chunk, scratch[_PROMPT, i])
    return in_blocks(config, tokens)


@kernel
def _look_ahead(state: Any, params: Any, lane: int) -> None:
    """Predict the cache at the completion of every resident, if all of them run in every batch from now on."""
    episode = state.lane[lane]
    config = params.config[0]
    scratch = state.scratch[lane]
    for i in range(episode.residents):
        r = state.resident[lane, i]
        if r.decoding == 1:
            scratch[_CHUNKS, i] = 0
            scratch[_LEFT, i] = max(r.predicted - output_so_far(episode.tick, r), 1)
            scratch[_BASE, i] = kv_of(config, episode.tick, r)
            scratch[_DONE, i] = r.prompt
            scratch[_PROMPT, i] = r.prompt
        else:
            _enter(scratch, i, config, r.prompt, r.prefilled, r.kept, r.predicted)
    for j in range(episode.residents):
        total = 0
        for i in range(episode.residents):
            total += _memory_at(config, scratch, i, scratch[_LEFT, j])
        scratch[_TOTAL, j] = total


@kernel
def _fits_ahead(state: Any, params: Any, lane: int, request: int) -> bool:
    """Whether no predicted completion time overflows if this request starts now (arXiv 2502.07115, MC-SF)."""
    episode = state.lane[lane]
    config = params.config[0]
    scratch = state.scratch[lane]
    n = episode.residents
    asked = state.request[lane, request]
    kept = asked.kept
    predicted = predicted_output(config, asked.predicted)
    _enter(scratch, n, config, asked.prompt + kept, 0, kept, predicted)
    own = 0
    for j in range(n):
        if scratch[_TOTAL, j] + _memory_at(config, scratch, n, scratch[_LEFT, j]) > config.kv_capacity:
            return False
        own += _memory_at(config, scratch, j, scratch[_LEFT, n])
    own += _memory_at(config, scratch, n, scratch[_LEFT, n])
    scratch[_TOTAL, n] = own
    return own <= config.kv_capacity


@kernel
def _take_ahead(state: Any, params: Any, lane: int) -> None:
    """Add the request that `_fits_ahead` entered last to the predicted totals."""
    episode = state.lane[lane]
    scratch = state.scratch[lane]
    n = episode.residents
    for j in range(n):
        scratch[_TOTAL, j] += _memory_at(params.config[0], scratch, n, scratch[_LEFT, j])


@kernel
def compose(state: Any, params: Any, lane: int, batch: int) -> None:
    """Divide the token budget anew between prefill and decode, as a `batch` other than `as-admitted` says.

    A resident that would not fit into the cache any more is left out of the batch.
    """
    episode = state.lane[lane]
    config = params.config[0]
    resident = state.resident[lane]
    waits = False
    for i in range(episode.residents):
        resident[i].run = 0
        waits = waits or (resident[i].paused == 0 and resident[i].prefilled < resident[i].prompt)
    episode.budget_left = config.budget
    episode.growth, episode.unfilled = 0, 0
    if batch == DECODE_FIRST:
        _share(state, params, lane, False, False)
        _share(state, params, lane, True, False)
    elif batch == PREFILL_ONLY:
        no_room = _share(state, params, lane, waits, True)
        if no_room and episode.growth == 0:
            _share(state, params, lane, False, False)
    elif batch == DECODE_ONLY:
        _share(state, params, lane, not _decoding(state, lane), False)
    else:
        _share(state, params, lane, True, False)
        _share(state, params, lane, False, False)
    episode.walk = 0


@kernel
def _share(state: Any, params: Any, lane: int, prefill: bool, whole: bool) -> bool:
    """Give budget to the residents that prefill (or to those that decode), oldest first; True if the cache held one back."""
    episode = state.lane[lane]
    config = params.config[0]
    no_room = False
    for i in range(episode.residents):
        r = state.resident[lane, i]
        if r.paused == 1 or (r.prefilled < r.prompt) != prefill:
            continue
        tokens = unit(config, r, episode.budget_left)
        if whole and prefill:
            tokens = r.prompt - r.prefilled
            if tokens > episode.budget_left:
                continue
        need = stored_with(config, episode.tick, r, tokens)
        if episode.used + episode.growth + need > config.kv_capacity:
            no_room = True
            continue
        r.run = tokens
        episode.growth += need
        episode.budget_left -= tokens
    return no_room
