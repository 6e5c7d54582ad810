"""What the settings of an engine may be, said once for everything that runs one: KVQueue, KVProvision and replays."""

from dataclasses import dataclass, field, fields
from typing import Any

from llmgym.core.checks import whole
from llmgym.core.settings import check, count, given, option
from llmgym.errors import InvalidArgument
from llmgym.serving.overflow import PAUSE, RECOMPUTE
from llmgym.serving.requests import FIRST_TOKENS

OVERFLOWS = {"pause": PAUSE, "recompute": RECOMPUTE}
SYNC, ASYNC, HELD = 0, 1, 2
SCHEDULINGS = {"sync": SYNC, "async": ASYNC, "async-held": HELD}


def _power_of_two(name: str, value: Any) -> None:
    if whole(name, value) & (value - 1):
        raise InvalidArgument(f"{name}={value!r}: expected a power of two")


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """Settings of one engine, checked when they are made; the defaults are those of vLLM V1.

    Raises:
        UnknownName: no such overflow, first token or scheduling.
        InvalidArgument: a number out of range, a block that is no power of two, or blocks or held requests where residents are
            paused.
    """

    chunk: int = count(2048, "Longest prefill chunk of one request in one batch, tokens.", unit="tokens")
    budget: int = count(2048, "Most tokens of a batch.", unit="tokens")
    seats: int = count(256, "Most requests that run at once.", unit="requests")
    block: int = given(
        16,
        "Size of a cache block, tokens; more than 1 needs overflow='recompute'. vLLM has 16.",
        allowed="a power of two",
        unit="tokens",
        check=_power_of_two,
    )
    overflow: str = option(
        "recompute",
        "What happens when the next batch does not fit into the cache: residents are paused (swapped out at no cost), or lose "
        "their cache and are recomputed later.",
        OVERFLOWS,
    )
    first_token: str = option(
        "with-prefill",
        "When the first output token of a request appears: one batch after the last prefill chunk, with that chunk, or with it and "
        "its KV stored in the same batch.",
        FIRST_TOKENS,
    )
    scheduling: str = option(
        "async",
        "When a batch is planned: after the one before it has ended (sync), or while that one runs, so that whoever arrives in a "
        "batch misses the next one too (async). With async-held, as in vLLM V1, whoever completes also holds its seat and "
        "blocks while the next one is planned.",
        SCHEDULINGS,
    )

    host_tokens: int = count(
        0,
        "Cache that the host's memory holds, tokens: whoever is preempted or paused is copied there and back, at the time that "
        "the profile says; 0: nothing is copied, and pausing costs nothing.",
        low=0,
        unit="tokens",
    )

    def __post_init__(self) -> None:
        check(self)
        check_overflow(self.overflow, self.block, self.scheduling)


def engine_setting(name: str, default: Any) -> Any:
    """The field of `EngineSettings` of that name as a field of a scenario, with a default of its own."""
    (same,) = (one for one in fields(EngineSettings) if one.name == name)
    return field(default=default, metadata=same.metadata)


def check_overflow(overflow: str, block: int, scheduling: str = "sync") -> None:
    """Raises `InvalidArgument` where residents are paused and the cache has blocks of several tokens (pausing counts single ones)
    or completed requests are held.
    """
    if overflow != "pause":
        return
    if block > 1:
        raise InvalidArgument(f"block={block!r}: more than 1 needs overflow='recompute', not 'pause'")
    if SCHEDULINGS[scheduling] == HELD:
        raise InvalidArgument(f"scheduling={scheduling!r}: it needs overflow='recompute', not 'pause'")


def cache_in_blocks(kv_capacity: int, block: int) -> int:
    """Tokens of the whole blocks of a cache. Raises `InvalidArgument` if there is none."""
    capacity = whole("kv_capacity", kv_capacity)
    if capacity < block:
        raise InvalidArgument(f"kv_capacity={capacity}: less than one block of {block} tokens")
    return capacity - capacity % block
