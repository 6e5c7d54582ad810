"""Scenarios of KVQueue-v1: vLLM on an H100, with a cache that is too small for everybody."""

from dataclasses import dataclass
from typing import Any

from llmgym.core.settings import flag, given, option, quantity
from llmgym.envs.kv.queue import scenarios as v0
from llmgym.envs.kv.queue_v1.state import GOODPUT, LATENCY
from llmgym.errors import InvalidArgument
from llmgym.serving.targets import Target

REWARDS = {"latency": LATENCY, "goodput": GOODPUT}


def _targets(name: str, value: Any) -> None:
    if not isinstance(value, tuple) or not value or not all(isinstance(one, Target) for one in value):
        raise InvalidArgument(
            f"{name}={value!r}: expected a tuple of llmgym.serving.targets.Target, one a class"
        )


def _text(name: str, value: Any) -> None:
    if not isinstance(value, str):
        raise InvalidArgument(f"{name}={value!r}: expected a text")


@dataclass(frozen=True)
class Scenario(v0.Scenario):
    """Settings of KVQueue-v1; every one of them is also an argument of the environment."""

    targets: tuple[Target, ...] = given(
        (),
        "What each class of requests is promised, and what one counts that gets it; without, every class has `ttft_slo_s` and "
        "`tpot_slo_s`.",
        check=lambda name, value: None if value == () else _targets(name, value),
        allowed="a tuple of `llmgym.serving.targets.Target`",
    )
    reward: str = option(
        "latency", "What the return is: minus latency and late answers, or goodput.", REWARDS
    )
    late_cost: float = quantity(
        0.0, "Price of late answers: what a share of 1 of them takes off the return.", zero=True
    )
    prefix_caching: bool = flag(False, "Whether prefixes are cached, as in vLLM.")
    dense: str = given("sustained", "Option of the profile's dense laws.", check=_text)
    host: str = given("vllm-0.24-steps", "Option of the profile's host laws.", check=_text)


_ENGINE: dict[str, Any] = {
    "budget": 2048,
    "chunk": 2048,
    "seats": 256,
    "block": 16,
    "scheduling": "async-held",
    "overflow": "recompute",
    "first_token": "with-prefill",
    "information": "noisy",
}
"""vLLM V1 with its defaults."""

SCENARIOS: dict[str, Scenario] = {
    "azure-conv-tight": Scenario(
        "conversation trace of Azure 2023 on one H100 with a cache of 32,768 tokens, 1.2 times what it sustains: who is served "
        "first, and how late the last ones may be",
        "azure-conv-2023",
        "h100/llama-3.1-8b",
        load=1.2,
        requests=400,
        kv_capacity=32_768,
        targets=(Target(2.0, 0.05, 1.0, 20.0),),
        late_cost=100.0,
        **_ENGINE,
    ),
    "sessions": Scenario(
        "conversations whose turns come back after a time to think, on an engine that caches prefixes and has room for a part of "
        "them: whose turn is next, and whose prefix is kept",
        "conversations",
        "h100/llama-3.1-8b",
        load=1.5,
        requests=400,
        kv_capacity=24_576,
        longest=8_192,
        seats=64,
        prefix_caching=True,
        targets=(Target(1.0, 0.05, 1.0, 10.0),),
        late_cost=50.0,
        **{name: value for name, value in _ENGINE.items() if name != "seats"},
    ),
    "tiers": Scenario(
        "interactive chat and batch summaries on one such engine: the former have 1 s to the first token, the latter "
        "20 s in all",
        "chat-and-batch",
        "h100/llama-3.1-8b",
        load=1.4,
        requests=400,
        kv_capacity=65_536,
        targets=(Target(1.0, 0.05, 1.0), Target(20.0, 1.0, 0.5, 20.0)),
        reward="goodput",
        **_ENGINE,
    ),
}
