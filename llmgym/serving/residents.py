"""Who is in an engine and who waits: the records of an engine and of its residents, and what a resident takes of the cache.

The functions work on any `state` and `params` with the parts that `llmgym.serving.engine` names.
"""

from typing import Any

import numpy as np

from llmgym.core.jit import kernel
from llmgym.serving import queue
from llmgym.serving.requests import in_blocks, predicted_area

PAUSE, RECOMPUTE, CLEAR = 0, 1, 2

ENGINE = [
    ("clock_s", "f8"),
    ("key", "u8"),
    ("tick", "i4"),  # batches so far: the shared progress of the decoding residents
    ("residents", "i4"),
    ("walk", "i4"),  # first resident that is not simply decoding
    ("used", "i4"),  # tokens of the blocks that residents hold who are not paused
    ("unfilled", "i4"),  # of those, not filled yet, of the residents before `walk`
    ("swapped", "i4"),  # tokens of paused residents
    ("paused", "i4"),
    ("growth", "i4"),  # tokens the planned batch adds to the cache
    ("budget_left", "i4"),  # tokens the planned batch may still take
    ("next_finish", "i4"),  # no resident completes before this tick
    ("blocked", "i4"),  # 1 if the plan had to pause or preempt: no admission in this batch
    ("overflow", "i4"),  # PAUSE, RECOMPUTE or CLEAR, in force when the batch was planned
    ("skip", "i4"),  # pausing skips misfits instead of pausing everything younger
    ("clear_probability", "f8"),
    ("waiting", "i4"),
    ("waiting_area", "i8"),  # predicted tokens x batches of the waiting requests
    ("done", "i4"),
    ("met", "i4"),  # completed requests whose TTFT and TPOT were both within their objectives
    ("preemptions", "i4"),
    ("dropped", "i8"),  # tokens thrown away by preemption
    ("draws", "i4"),  # numbers drawn within the episode
    ("batches", "i4"),
    ("batch_used", "i4"),  # tokens in the cache of the residents that ran in the last batch
    ("batch_prefill", "i4"),
    ("batch_decodes", "i4"),
    ("batch_s", "f8"),
    ("busy_s", "f8"),
    ("kv_s", "f8"),  # integral of batch_used over busy time
    ("kv_peak", "i4"),
    ("prefilled", "i8"),
    ("decoded", "i8"),
]

RESIDENT = np.dtype(
    [
        ("request", "i4"),
        ("prompt", "i4"),  # tokens to prefill: the prompt, and after a preemption also the kept output
        ("prefilled", "i4"),
        ("output", "i4"),
        ("predicted", "i4"),
        ("kept", "i4"),  # output tokens from before a preemption
        ("base", "i4"),  # decoding: output so far = tick - base
        ("finish", "i4"),  # decoding: completes when the tick reaches this
        ("run", "i4"),  # tokens planned for the next batch
        ("decoding", "i2"),
        ("paused", "i2"),
    ],
    align=True,
)

FAR = 2**31 - 1


@kernel(inline=True)
def output_so_far(tick: int, r: Any) -> int:
    """Output tokens a resident has produced."""
    return tick - r.base if r.decoding == 1 else r.kept


@kernel(inline=True)
def kv_of(config: Any, tick: int, r: Any) -> int:
    """Tokens of a resident in the cache."""
    if r.decoding == 1:
        return r.prompt - r.kept + (tick - r.base) - (config.first - config.first_stored)
    return r.prefilled


@kernel(inline=True)
def unit(config: Any, r: Any, left: int) -> int:
    """Tokens a resident would take in the next batch if `left` tokens of the budget are free."""
    if r.prefilled < r.prompt:
        return min(min(r.prompt - r.prefilled, config.chunk), left)
    return min(1, left)


@kernel(inline=True)
def stored_with(config: Any, tick: int, r: Any, tokens: int) -> int:
    """Tokens of the blocks the cache grows by when a resident runs `tokens`.

    Where prefill stores its first output as well, that is one token more.
    """
    kv = kv_of(config, tick, r)
    after = kv + tokens
    if config.first_stored == 1 and r.decoding == 0 and tokens > 0 and r.prefilled + tokens == r.prompt:
        after += 1
    return in_blocks(config, after) - in_blocks(config, kv)


@kernel(inline=True)
def decode_all(state: Any, params: Any, lane: int) -> int:
    """Tokens of the blocks that one token each for the residents before `walk` takes; notes what they have not filled."""
    episode = state.lane[lane]
    config = params.config[0]
    episode.unfilled = 0
    if config.block == 1:
        return episode.walk
    growth, unfilled = 0, 0
    for i in range(episode.walk):
        kv = kv_of(config, episode.tick, state.resident[lane, i])
        held = in_blocks(config, kv)
        unfilled += held - kv
        growth += in_blocks(config, kv + 1) - held
    episode.unfilled = unfilled
    return growth


@kernel(inline=True)
def wait(state: Any, params: Any, lane: int, request: int) -> None:
    """Put a request among the waiting ones, in every order that is kept."""
    episode = state.lane[lane]
    asked = state.request[lane, request]
    area = predicted_area(params.config[0], asked)
    asked.area = area
    episode.waiting_area += area
    episode.waiting += 1
    queue.insert(state, params, lane, request)
