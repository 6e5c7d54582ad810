"""Scenarios of KVQueue: named settings of engine, workload and episode."""

from dataclasses import dataclass

from llmgym import profiles, workloads
from llmgym.core.settings import count, given, option, quantity
from llmgym.serving.capacity import UNLIMITED
from llmgym.serving.settings import engine_setting
from llmgym.workloads.workload import INFORMATION


@dataclass(frozen=True)
class Scenario:
    """Settings of KVQueue; every one of them is also an argument of the environment."""

    about: str
    workload: str = given(
        ...,
        "Workload: arrivals and lengths.",
        check=workloads.check_name,
        allowed="a name in `llmgym.workloads.names()`, or a trace file",
    )
    profile: str = given(
        ...,
        "Cost profile: what a batch costs.",
        check=profiles.check_name,
        allowed="a name in `llmgym.profiles.names()`, or a folder",
    )
    load: float = quantity(
        0.9, "Offered load as a fraction of the predicted saturated rate; ignored where `rate_rps` is given."
    )
    rate_rps: float | None = quantity(None, "Arrivals a second; None takes them from `load`.", unit="req/s")
    requests: int = count(1000, "Requests of an episode.", unit="requests")
    horizon_s: float = quantity(3600.0, "An episode is cut after this time, seconds.", unit="s")
    kv_capacity: int | None = count(
        None, "M, tokens that the cache holds; None takes what the profile's memory leaves.", unit="tokens"
    )
    chunk: int = engine_setting("chunk", 512)
    budget: int = engine_setting("budget", UNLIMITED)
    seats: int = engine_setting("seats", 256)
    block: int = engine_setting("block", 1)
    scheduling: str = engine_setting("scheduling", "sync")
    longest: int | None = count(
        None, "Prompt and output together, tokens at most; None takes M.", unit="tokens"
    )
    overflow: str = engine_setting("overflow", "pause")
    first_token: str = engine_setting("first_token", "next-batch")
    information: str = option(
        "exact",
        "What a scheduler is told of output lengths; `noisy` has the errors of a learned predictor.",
        INFORMATION,
    )
    noise_scale: float = quantity(1.0, "Factor on the log error of `noisy` predictions.", zero=True)
    waiting_cap: int = count(4096, "An episode ends as unstable when more requests wait.", unit="requests")
    ttft_slo_s: float = quantity(10.0, "Objective for the time to the first token, seconds.", unit="s")
    tpot_slo_s: float = quantity(
        0.1, "Objective for the time per output token after the first, seconds.", unit="s"
    )


def _paper(ratio: str) -> Scenario:
    return Scenario(
        f"the paper's {ratio} prompt:decode lengths, constant batch time",
        f"uniform-{ratio}",
        f"paper/kv-queue-{ratio}",
    )


_VLLM = {
    "budget": 2048,
    "chunk": 2048,
    "overflow": "recompute",
    "first_token": "with-prefill",
    "information": "noisy",
}

SCENARIOS: dict[str, Scenario] = {
    "paper-1:1": _paper("1:1"),
    "paper-2:1": _paper("2:1"),
    "paper-1:2": _paper("1:2"),
    "mixed": Scenario(
        "first half of the requests 2:1, second half 1:2", "uniform-mixed", "paper/kv-queue-linear"
    ),
    "8:1-guess": Scenario(
        "prompt-heavy; the lengths are a guess that keeps the paper's maximum; the token budget binds",
        "uniform-8:1",
        "paper/kv-queue-linear",
        budget=512,
        overflow="recompute",
    ),
    "tiny": Scenario(
        "a small cache and short requests, for fast experiments",
        "uniform-tiny",
        "paper/tiny",
        requests=1000,
        horizon_s=60.0,
        chunk=16,
        seats=128,
        waiting_cap=4096,
        ttft_slo_s=0.5,
        tpot_slo_s=0.015,
    ),
    "tiny-overload": Scenario(
        "tiny at 1.3 times its capacity for a burst of 400 requests, noisy length predictions, recompute on overflow",
        "uniform-tiny",
        "paper/tiny",
        load=1.3,
        requests=400,
        horizon_s=60.0,
        chunk=16,
        seats=128,
        overflow="recompute",
        information="noisy",
        waiting_cap=1024,
        ttft_slo_s=0.5,
        tpot_slo_s=0.015,
    ),
    "azure-conv": Scenario(
        "conversation trace of Azure 2023, Llama-3.1-8B on one H100, vLLM's defaults",
        "azure-conv-2023",
        "h100/llama-3.1-8b",
        requests=1000,
        ttft_slo_s=1.0,
        tpot_slo_s=0.05,
        **_VLLM,  # type: ignore[arg-type]
    ),
    "azure-conv-tight": Scenario(
        "the same with a cache of 32,768 tokens (4 GiB) and 1.2 times what it sustains: order and admission matter",
        "azure-conv-2023",
        "h100/llama-3.1-8b",
        load=1.2,
        requests=400,
        kv_capacity=32768,
        ttft_slo_s=2.0,
        tpot_slo_s=0.05,
        **_VLLM,  # type: ignore[arg-type]
    ),
    "azure-code": Scenario(
        "code completion trace of Azure 2023, Llama-3.1-8B on one H100, vLLM's defaults",
        "azure-code-2023",
        "h100/llama-3.1-8b",
        load=0.7,
        requests=1000,
        ttft_slo_s=1.0,
        tpot_slo_s=0.05,
        **_VLLM,  # type: ignore[arg-type]
    ),
    "mooncake": Scenario(
        "long-context conversations of Mooncake, Llama-3.1-8B on one H100, vLLM's defaults",
        "mooncake-conversation",
        "h100/llama-3.1-8b",
        requests=400,
        ttft_slo_s=10.0,
        tpot_slo_s=0.1,
        **_VLLM,  # type: ignore[arg-type]
    ),
}
