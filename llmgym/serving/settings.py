"""What the settings of an engine must be: one check for everything that runs one."""

from llmgym.core.checks import choice, whole
from llmgym.errors import InvalidArgument
from llmgym.serving.requests import FIRST_TOKENS
from llmgym.serving.residents import PAUSE, RECOMPUTE

OVERFLOWS = {"pause": PAUSE, "recompute": RECOMPUTE}
SCHEDULINGS = {"sync": 0, "async": 1}


def check_engine(
    *,
    chunk: int,
    budget: int,
    seats: int,
    block: int = 1,
    overflow: str,
    first_token: str,
    scheduling: str = "sync",
) -> None:
    """Check what can be checked before the cache and the requests are known.

    Args:
        chunk: longest prefill chunk of one request in one batch, tokens.
        budget: tokens of a batch.
        seats: requests that run at once.
        block: tokens of a cache block.
        overflow: what happens when the next batch does not fit, a key of `OVERFLOWS`.
        first_token: when the first output token appears, a key of `llmgym.serving.requests.FIRST_TOKENS`.
        scheduling: when a batch is planned, a key of `SCHEDULINGS`.

    Raises:
        UnknownName: no such overflow, first token or scheduling.
        InvalidArgument: a number out of range, a block that is no power of two, or blocks where residents are paused.
    """
    choice("overflow", overflow, OVERFLOWS)
    choice("first_token", first_token, FIRST_TOKENS)
    choice("scheduling", scheduling, SCHEDULINGS)
    for name, value in (("budget", budget), ("chunk", chunk), ("seats", seats), ("block", block)):
        whole(name, value)
    if block & (block - 1):
        raise InvalidArgument(f"block={block!r}: expected a power of two")
    if block > 1 and overflow == "pause":
        raise InvalidArgument(f"block={block!r}: more than 1 needs overflow='recompute', not 'pause'")


def cache_in_blocks(kv_capacity: int, block: int) -> int:
    """Tokens of the whole blocks of a cache. Raises `InvalidArgument` if there is none."""
    capacity = whole("kv_capacity", kv_capacity)
    if capacity < block:
        raise InvalidArgument(f"kv_capacity={capacity}: less than one block of {block} tokens")
    return capacity - capacity % block
