"""What turns of conversations are on average: drawn once, as no formula is at hand for conversations that end at a longest turn."""

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from llmgym.workloads.arrivals import burst
from llmgym.workloads.conversations import Conversations
from llmgym.workloads.lengths import RequestClass

_SESSIONS = 16_384
"""Sessions that means are taken of: those of turns and lengths are then within about 1 %."""
_KEY = 1
"""Of these sessions."""

Points = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]


@lru_cache(maxsize=64)
def points(conversations: Conversations, request_class: RequestClass) -> tuple[Points, float]:
    """Turns of conversations of one class, all alike in weight, for means over them.

    Args:
        conversations: the law of conversations.
        request_class: of all of them.

    Returns:
        Prompts and outputs, int64 [k] each (tokens), of some 16,384 sessions, and the mean number of turns of a session. The
        same every time.
    """
    from llmgym.workloads.packing import pack
    from llmgym.workloads.turns import Turn, draw_turns

    traffic = pack(
        burst(), (request_class,), ((0.0, (1.0,)),), "request", "none", 1.0, conversations=conversations
    )
    drawn = Turn.zeros(math.ceil(_SESSIONS * conversations.turns.mean_tokens))
    count = draw_turns(traffic, np.uint64(_KEY), math.inf, conversations.longest, drawn)
    prompt, output = (drawn[name][:count].astype(np.int64) for name in ("prompt", "output"))
    return (prompt, output), count / (drawn["session"][count - 1] + 1.0)
