"""Scenarios of KVQueue: named settings of engine, workload and episode."""

from dataclasses import dataclass

from llmgym.serving.capacity import UNLIMITED


@dataclass(frozen=True)
class Scenario:
    """Settings of KVQueue; every one of them is also an argument of the environment.

    Attributes:
        about: one line.
        workload: name of a workload.
        profile: name of a cost profile.
        load: offered load as a fraction of the predicted saturated rate; ignored where `rate_rps` is given.
        rate_rps: arrivals a second; None takes it from `load`.
        requests: of an episode.
        horizon_s: an episode is cut after this time, s.
        kv_capacity: M, tokens; None takes what the profile's memory leaves.
        chunk: longest prefill chunk, tokens.
        budget: tokens of a batch.
        seats: requests that run at once.
        block: tokens of a cache block, a power of two; more than 1 needs overflow="recompute". vLLM has 16.
        scheduling: "sync" plans a batch when the last one has ended; "async" while it runs, so that whoever arrives during a batch
            misses the next one too (vLLM V1).
        longest: prompt and output together, tokens; None takes M.
        overflow: "pause" (swap at no cost) or "recompute".
        first_token: when a request's first output token appears: "next-batch", "with-prefill", or "stored" (with the
            last chunk, its KV in the same batch).
        information: what a scheduler is told of output lengths: "exact", "noisy", "mean" or "none".
        noise_scale: factor on the log error of "noisy".
        waiting_cap: an episode ends as unstable when more requests wait.
        ttft_slo_s: objective for the time to the first token, s.
        tpot_slo_s: objective for the time per output token after it, s.
    """

    about: str
    workload: str
    profile: str
    load: float = 0.9
    rate_rps: float | None = None
    requests: int = 1000
    horizon_s: float = 3600.0
    kv_capacity: int | None = None
    chunk: int = 512
    budget: int = UNLIMITED
    seats: int = 256
    block: int = 1
    scheduling: str = "sync"
    longest: int | None = None
    overflow: str = "pause"
    first_token: str = "next-batch"
    information: str = "exact"
    noise_scale: float = 1.0
    waiting_cap: int = 4096
    ttft_slo_s: float = 10.0
    tpot_slo_s: float = 0.1


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
