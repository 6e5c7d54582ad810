"""Scenarios of AFDRefill: named settings of latencies, requests, bundle and episode."""

from dataclasses import dataclass

from llmgym.core.settings import count, given, option, quantity
from llmgym.envs.afd.costs import Coefficients
from llmgym.envs.afd.law import COMMUNICATION
from llmgym.envs.afd.refill.state import EXACT, MEAN, NO_PREDICTION, NOISY
from llmgym.envs.afd.requests import RequestSource, law_of
from llmgym.envs.afd.settings import MOST_BATCH, STARTS, Bundle

INFORMATION = {"exact": EXACT, "noisy": NOISY, "mean": MEAN, "none": NO_PREDICTION}


@dataclass(frozen=True)
class Scenario(Bundle):
    """Settings of AFDRefill; every one of them is also an argument of the environment."""

    requests: RequestSource = given(
        ...,
        "Law of the requests, see `llmgym.envs.afd.requests.load`.",
        check=law_of,
        allowed="law by text, `Requests`, `Workload`",
    )
    batch: int = count(256, "B: slots of an attention instance.", high=MOST_BATCH, unit="slots")
    ratio: int = count(8, "Attention instances, r; there is one FFN instance.", high=1024, unit="instances")
    comm: str = option(
        "per_instance",
        "What communication grows with: the requests of one attention instance, or all of the FFN instance.",
        COMMUNICATION,
    )
    window: int = count(16, "W: waiting requests that can be chosen from.", high=1024, unit="requests")
    cycles: int = count(1000, "Length of an episode, cycles.", high=10_000_000, unit="cycles")
    patience: int = count(8, "A: times that a request may be skipped.", unit="times")
    information: str = option(
        "noisy", "What is told of the steps that a waiting request will stay.", INFORMATION
    )
    noise_scale: float = quantity(
        0.5, 'Standard deviation of the logarithm of a "noisy" prediction\'s error.', zero=True
    )
    start: str = option(
        "stationary",
        "What the slots begin with: requests as in the long run, or all new ones.",
        STARTS,
    )


SCENARIOS: dict[str, Scenario] = {
    "paper": Scenario(
        "the paper's latencies, eight instances of 256 slots, geometric prompts (mean 100) and decode lengths (mean 500)",
        "geometric:prompt=100,decode=500",
    ),
    "constant-prompt": Scenario(
        "the same with prompts that are all alike: the order cannot matter to the next step",
        "geometric:prompt=100,decode=500,prompt_law=constant",
    ),
    "real": Scenario(
        "code completions of Azure 2023 (long prompts, short answers), Llama-3.1-8B on H100, three instances of 128 slots",
        "azure-code-2023",
        profile="h100/llama-3.1-8b",
        batch=128,
        ratio=3,
        cycles=300,
        window=32,
    ),
    "real-long": Scenario(
        "long-context conversations of Mooncake, Qwen2.5-14B on H200, sixteen instances of 16 slots",
        "mooncake-conversation",
        profile="h200/qwen2.5-14b",
        batch=16,
        ratio=16,
        cycles=2000,
    ),
    "stress": Scenario(
        "lognormal prompts (mean 1,000, coefficient of variation 1.5), sixteen instances of 256 slots, nothing known of answers",
        "geometric:prompt=1000,decode=500,prompt_law=lognormal,prompt_cv=1.5",
        ratio=16,
        information="none",
    ),
    "small": Scenario(
        "four instances of 16 slots, short answers to prompts that vary: an agent can be trained on it in minutes",
        "geometric:prompt=120,decode=30,prompt_law=lognormal,prompt_cv=1.5",
        coefficients=Coefficients(
            0.0132, 20.0, 0.664, 10.0, 0.176, 5.0, source="chosen: the paper's shape, in small"
        ),
        batch=16,
        ratio=4,
        window=8,
        cycles=200,
    ),
}
