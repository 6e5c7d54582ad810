"""Options of commands that replay requests on an engine, and what their results have in common."""

import math
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from rich.console import Console

from llmgym import profiles
from llmgym.core.told import Told
from llmgym.profiles.profile import Profile
from llmgym.serving.sensitivity import STEP_S


@dataclass(frozen=True, kw_only=True)
class EngineOptions(Told):
    """The engine and its costs."""

    profile: str = "h100/llama-3.1-8b"
    """Cost profile: a name, or the path of its folder."""
    dense: str = "default"
    """Option of the profile's dense laws, such as sustained."""
    host: str = "default"
    """Option of the profile's host laws, such as vllm-0.24."""
    kv_capacity: int | None = None
    """Tokens of the cache of a rank; what the profile's memory leaves if left out."""
    budget: int = 2048
    """Tokens of a batch."""
    chunk: int | None = None
    """Longest chunk of one prompt in a batch, tokens (vLLM's long_prefill_token_threshold); the budget if left out."""
    chunk_alone: bool = True
    """Whether that also binds a request that is alone on its rank: so in vLLM 0.24, not from 0.31 on."""
    block: int = 16
    """Tokens of a block of the cache, a power of two."""
    overflow: str = "recompute"
    """What happens when the next batch does not fit into the cache: recompute or pause."""
    first_token: str = "with-prefill"
    """When the first output token appears: next-batch, with-prefill or stored."""
    seats: int = 256
    """Requests that run at once on a rank."""
    scheduling: str = "async"
    """When a batch is planned: sync, async, or async-held, as vLLM V1 does by default."""
    prefix_caching: bool = False
    """Let the turns of a session find their beginning in the cache; the trace needs a column session."""
    host_tokens: int = 0
    """Cache that the host's memory holds, tokens: who is preempted is copied there and back; the profile needs measured copies."""
    rule: str = "vllm:watermark=0"
    """Admission rule; vllm-priority needs a column priority in the trace (lower first)."""
    ranks: int = 1
    """Data-parallel engines that step together, at the pace of the slowest."""
    clients: int | None = None
    """Requests kept in flight on each rank, instead of the arrivals."""
    way: str = "none"
    """How much later a client has its tokens: none, in-process, streaming (it reads every token), or seconds."""

    def costs(self) -> Profile:
        """The profile with its options. Raises `LlmgymError` if there is no such profile or option."""
        return profiles.load(self.profile, dense=self.dense, host=self.host)

    def for_load(self) -> dict[str, Any]:
        """The settings that the closed form of the load knows too (`llmgym.serving.sensitivity.load`)."""
        return {name: getattr(self, name) for name in ("kv_capacity", "budget", "chunk", "seats", "ranks")}

    def for_replay(self) -> dict[str, Any]:
        """All settings of the engine, as arguments of `llmgym.serving.replay.replay`."""
        named = (one.name for one in fields(EngineOptions))
        others = ("json", "profile", "dense", "host")
        settings = {name: getattr(self, name) for name in named if name not in others}
        return settings | {"way": _way(self.way)}


def _way(text: str) -> str | float:
    try:
        return float(text)
    except ValueError:
        return text


def tell_band(console: Console, share: float, found: dict[str, tuple[float, float]]) -> None:
    """Print the band of a replay near saturation.

    Args:
        console: where to.
        share: rate of the requests over the saturated rate in closed form.
        found: what `llmgym.serving.sensitivity.band` returns.
    """

    def pair(key: str, form: str = ".3g") -> str:
        return " to ".join(shown(value, form) for value in found[key])

    rate = f"at {100 * share:.0f} % of the rate that saturates the engine in closed form"
    console.print(
        f"The requests come {rate if math.isfinite(share) else 'all at once'}; small errors of a "
        f"step decide how long they wait. With {1e3 * STEP_S:.1f} ms a step less and more: first token p50 "
        f"{pair('ttft_p50_s')} s, p90 {pair('ttft_p90_s')} s; time per output token p50 {pair('tpot_p50_s')} s; end to end p50 "
        f"{pair('e2e_p50_s')} s, p90 {pair('e2e_p90_s')} s; {pair('output_tokens_per_s', ',.0f')} output tokens/s."
    )


def shown(value: float, form: str) -> str:
    """A number in a format; "-" for NaN."""
    return "-" if np.isnan(value) else format(value, form)
