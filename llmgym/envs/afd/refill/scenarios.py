"""Scenarios of AFDRefill: named settings of latencies, requests, bundle and episode."""

from dataclasses import dataclass
from typing import Any

from llmgym.core.checks import choice, number, whole
from llmgym.core.settings import settled
from llmgym.envs.afd.costs import LINK_LATENCY_US, Coefficients
from llmgym.envs.afd.law import COMMUNICATION
from llmgym.envs.afd.ratio.scenarios import STARTS, Law
from llmgym.envs.afd.refill.state import EXACT, MEAN, NO_PREDICTION, NOISY

INFORMATION = {"exact": EXACT, "noisy": NOISY, "mean": MEAN, "none": NO_PREDICTION}


@dataclass(frozen=True)
class Scenario:
    """Settings of AFDRefill; every one of them is also an argument of the environment.

    Attributes:
        about: one line.
        requests: law of the requests, see `llmgym.envs.afd.requests.load`.
        coefficients: latencies; None fits them to `profile`, or takes the paper's where that is None too.
        profile: name of a profile to fit latencies to.
        link_gb_per_s: bandwidth between two instances, for a fitted profile, GB/s.
        link_latency_us: one way, for a fitted profile, us.
        batch: B, slots of an attention instance.
        ratio: r, attention instances; there is one FFN instance.
        comm: "per_instance" or "aggregate": what communication grows with.
        window: W, waiting requests that can be chosen from.
        cycles: of an episode.
        patience: A, times a request may be skipped.
        information: what is told of a request's steps: "exact", "noisy", "mean" or "none".
        noise_scale: standard deviation of the log error of "noisy".
        start: "stationary" (slots as in the long run) or "cold" (all requests new).
    """

    about: str
    requests: Law
    coefficients: Coefficients | None = None
    profile: str | None = None
    link_gb_per_s: float = 50.0
    link_latency_us: float = LINK_LATENCY_US
    batch: int = 256
    ratio: int = 8
    comm: str = "per_instance"
    window: int = 16
    cycles: int = 1000
    patience: int = 8
    information: str = "noisy"
    noise_scale: float = 0.5
    start: str = "stationary"


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


def resolve_scenario(scenario: str | Scenario, settings: dict[str, Any]) -> Scenario:
    """The scenario with the arguments put in, checked.

    Raises:
        UnknownName: a scenario, a setting or a choice that does not exist.
        InvalidArgument: a number out of range.
    """
    chosen: Scenario = settled(scenario, SCENARIOS, settings, "AFDRefill", ("about", "profile"))
    for name, options in (("comm", COMMUNICATION), ("information", INFORMATION), ("start", STARTS)):
        choice(name, getattr(chosen, name), options)
    for name, most in (
        ("batch", 65_536),
        ("ratio", 1024),
        ("window", 1024),
        ("cycles", 10_000_000),
        ("patience", 2**30),
    ):
        whole(name, getattr(chosen, name), 1, most)
    number("link_gb_per_s", chosen.link_gb_per_s)
    for name in ("link_latency_us", "noise_scale"):
        number(name, getattr(chosen, name), zero=True)
    return chosen
