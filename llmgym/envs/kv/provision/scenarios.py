"""Scenarios of KVProvision: named settings of cluster, load and episode."""

import math
from dataclasses import dataclass, replace
from typing import Any

from llmgym import profiles, workloads
from llmgym.core.checks import below_one, members, number, whole
from llmgym.core.settings import count, given, numbers, option, quantity
from llmgym.envs.kv.provision.state import EVENT, FLUID
from llmgym.errors import InvalidArgument
from llmgym.serving.capacity import UNLIMITED
from llmgym.serving.rules import resolve
from llmgym.serving.settings import engine_setting

MODES = {"event": EVENT, "fluid": FLUID}


def _check_mix(name: str, value: Any) -> None:
    parts = members(name, value, "weights of the classes for each part of the episode")
    for part in parts:
        weights = members(f"a part of {name}", part, "a weight of each class")
        if not sum(number(f"a weight in {name}", weight, zero=True) for weight in weights) > 0.0:
            raise InvalidArgument(f"{name}={value!r}: expected a weight above 0 in each part")
        if len(weights) != len(parts[0]):
            raise InvalidArgument(f"{name}={value!r}: expected as many weights in each part")
    if not parts:
        raise InvalidArgument(f"{name}={value!r}: expected one part or more")


def _check_rule(name: str, value: Any) -> None:
    resolve((value,))


@dataclass(frozen=True)
class Scenario:
    """Settings of KVProvision; every one of them is also an argument of the environment."""

    about: str
    workload: str = given(
        ...,
        "Workload: lengths, and arrivals where `shape` is None.",
        check=workloads.check_name,
        allowed="a name in `llmgym.workloads.names()`, or a trace file",
    )
    profile: str = given(
        ...,
        "Cost profile of a replica: what a batch costs.",
        check=profiles.check_name,
        allowed="a name in `llmgym.profiles.names()`, or a folder",
    )
    mode: str = option("event", "An engine for every replica, or a fluid in closed form.", MODES)
    max_replicas: int = count(8, "G, the largest target.", high=1024, unit="replicas")
    min_replicas: int = count(
        1, "The smallest target that is allowed, at most `max_replicas`.", low=0, high=1024, unit="replicas"
    )
    initial_replicas: int | None = count(
        None,
        "Replicas that are on when an episode begins, from `min_replicas` to `max_replicas`; None: what the paper's rule asks for.",
        low=0,
        high=1024,
        unit="replicas",
    )
    startup_epochs: int = count(
        2, "Epochs from the decision to start a replica until it serves.", low=0, high=64, unit="epochs"
    )
    epochs: int = count(120, "Epochs of an episode.", unit="epochs")
    epoch_s: float = quantity(60.0, "Length of one epoch, seconds.", unit="s")
    load: float = quantity(
        0.5,
        "Mean work that arrives, as a share of what `max_replicas` can do; ignored where `rate_rps` is given.",
    )
    rate_rps: float | None = quantity(
        None,
        "Mean arrivals a second, where the multiplier of `shape` is 1; None takes them from `load`.",
        unit="req/s",
    )
    shape: tuple[float, ...] | None = numbers(
        None,
        "Multipliers of the rate in equally long pieces of a day, scaled to mean 1; None keeps the workload's own arrivals.",
        zero=True,
        some=True,
    )
    day_s: float | None = quantity(
        None, "Length of the day after which `shape` repeats, seconds; None: the episode.", unit="s"
    )
    variance: float = quantity(
        0.0,
        "Variance of the random level that multiplies the rate, which has mean 1 (with `shape`).",
        zero=True,
    )
    level_s: float = quantity(600.0, "How long a random level lasts, seconds.", unit="s")
    correlation: float = given(
        0.8, "Correlation of one random level with the next.", check=below_one, allowed=">= 0 and < 1"
    )
    mix: tuple[tuple[float, ...], ...] | None = given(
        None,
        "Weights of the workload's classes in equally long parts of the episode; None keeps the workload's phases.",
        check=_check_mix,
        allowed="for each part a weight >= 0 of each class, not all 0",
    )
    rule: str = given(
        "wc-fcfs",
        "Admission rule of every replica; one that reckons with predicted lengths is told the mean of the request's class.",
        check=_check_rule,
        allowed="a name of `llmgym.serving.rules.CATALOGUE`",
    )
    kv_capacity: int | None = count(
        None,
        "M, tokens that the cache of a replica holds; None takes what the profile's memory leaves.",
        unit="tokens",
    )
    chunk: int = engine_setting("chunk", 512)
    budget: int = engine_setting("budget", UNLIMITED)
    seats: int = engine_setting("seats", 256)
    longest: int | None = count(
        None, "Prompt and output together, tokens at most; None takes M.", unit="tokens"
    )
    overflow: str = engine_setting("overflow", "pause")
    first_token: str = engine_setting("first_token", "next-batch")
    waiting_cap: int = count(8192, "An episode ends as unstable when more requests wait.", unit="requests")
    ttft_slo_s: float = quantity(10.0, "Objective for the time to the first token, seconds.", unit="s")
    tpot_slo_s: float = quantity(
        0.1, "Objective for the time per output token after the first, seconds.", unit="s"
    )
    gpu_cost: float = quantity(1.0, "Cost of a GPU-hour, which every other cost is measured against.")
    wait_cost: float = quantity(0.02, "Cost of a request that waits for an hour.", zero=True)
    slo_cost: float = quantity(
        0.0, "Cost of a completed request that missed an objective; above 0 needs mode='event'.", zero=True
    )
    ema_epochs: float = quantity(
        3.0, "Epochs that the moving average of the arrivals averages over.", unit="epochs"
    )
    window: float = quantity(
        500.0,
        "Completed requests over which mean area and tokens are averaged, and batches for their duration.",
    )

    def check_together(self) -> None:
        """Raise `InvalidArgument` where numbers of replicas contradict each other, or a fluid is to miss objectives."""
        whole("min_replicas", self.min_replicas, 0, self.max_replicas)
        if self.initial_replicas is not None:
            whole("initial_replicas", self.initial_replicas, self.min_replicas, self.max_replicas)
        if self.mode == "fluid" and self.slo_cost > 0.0:
            raise InvalidArgument(
                f"slo_cost={self.slo_cost!r}: needs mode='event', a fluid has no requests that could miss"
            )


# Quiet nights, a steep morning, a shoulder at noon, the peak late in the afternoon: chosen here, not measured.
_DAY = tuple(
    round(
        1.0
        - 0.5 * math.cos(2.0 * math.pi * (h - 3.0) / 24.0)
        - 0.15 * math.cos(4.0 * math.pi * (h - 1.0) / 24.0),
        3,
    )
    for h in range(24)
)
_SMALL = Scenario(
    "a small cache, short requests and epochs of half a second: an agent can be trained on it in minutes",
    "uniform-tiny",
    "paper/tiny",
    epoch_s=0.5,
    load=0.4,
    shape=_DAY,
    day_s=30.0,
    variance=0.04,
    level_s=5.0,
    chunk=16,
    seats=128,
    waiting_cap=2048,
    ttft_slo_s=0.5,
    tpot_slo_s=0.015,
    gpu_cost=3600.0,
    wait_cost=180.0,
)

SCENARIOS: dict[str, Scenario] = {
    "paper-drift": Scenario(
        "lengths drift from 2:1 to 1:2 prompt:decode (as many tokens, 1.7 times the area) while the load swings twice",
        "uniform-mixed",
        "paper/kv-queue-linear",
        max_replicas=12,
        load=0.5,
        shape=(0.8, 1.0, 1.2, 1.3, 1.2, 1.0, 0.8, 0.7),
        day_s=3600.0,
        variance=0.02,
        mix=((1, 0), (1, 0), (1, 0), (3, 1), (1, 1), (1, 3), (0, 1), (0, 1)),
    ),
    "daily": Scenario(
        "conversation lengths of Azure 2023, Qwen2.5-14B on A100s, a day compressed into two hours",
        "azure-conv-2023",
        "a100/qwen2.5-14b",
        load=0.42,
        shape=_DAY,
        day_s=7200.0,
        variance=0.03,
        rule="vllm",
        chunk=2048,
        budget=2048,
        overflow="recompute",
        first_token="with-prefill",
        ttft_slo_s=2.0,
        tpot_slo_s=0.2,
    ),
    "surge": Scenario(
        "the paper's 1:1 lengths; the rate jumps to 2.5 times and back, and is uncertain throughout",
        "uniform-1:1",
        "paper/kv-queue-1:1",
        max_replicas=10,
        epochs=90,
        load=0.34,
        shape=(1.0, 1.0, 2.5, 1.0, 1.0),
        variance=0.06,
        level_s=900.0,
        correlation=0.3,
    ),
    "small": _SMALL,
    "fluid-small": replace(
        _SMALL, about="the same cluster as a fluid: hundreds of thousands of steps a second", mode="fluid"
    ),
}
