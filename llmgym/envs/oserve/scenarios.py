"""Scenarios of OServe: named settings of model, cluster, requests and drift."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llmgym.core.checks import number, whole
from llmgym.core.settings import count, flag, given, option, quantity, settled
from llmgym.envs.oserve.placement import INFINIBAND_GB_PER_S, NVLINK_GB_PER_S
from llmgym.envs.oserve.shapes import MODELS, MOST_GPUS
from llmgym.envs.oserve.state import (
    ADHOC,
    BLIND,
    DAY,
    FIXED,
    FLOW,
    FREE,
    LEAST_KV,
    LEAST_WORK,
    RELOAD,
    ROUND_ROBIN,
    SPANS,
    WAVE,
)
from llmgym.errors import InvalidArgument

DRIFTS = {"fixed": FIXED, "spans": SPANS, "wave": WAVE, "day": DAY}
SWITCHING = {"adhoc": ADHOC, "reload": RELOAD, "free": FREE}
DISPATCH = {
    "flow": FLOW,
    "blind": BLIND,
    "round-robin": ROUND_ROBIN,
    "least-work": LEAST_WORK,
    "least-kv": LEAST_KV,
}

CORNERS = ((496, 18), (496, 510), (2455, 18), (2455, 510))
"""Prompt and output tokens: the corners of the grid of an earlier study of the same group (Jiang et al., arXiv 2502.00722)."""
MOST_TYPES = 9
"""Types, or workloads; there are as many colours in the picture."""
LEAST_EPOCH_S = 10.0
"""An ad hoc switch takes 6 to 10 seconds, and is to be over by the next decision."""


def _ordered(check: Callable[[str, Any], float]) -> Callable[[str, Any], None]:
    """Checks that a setting is two numbers, the smaller first, each of which `check` lets pass."""

    def two(name: str, value: Any) -> None:
        told = InvalidArgument(f"{name}={value!r}: expected two numbers, the smaller first")
        try:
            first, second = value
        except (TypeError, ValueError):
            raise told from None
        if check(name, first) > check(name, second):
            raise told

    return two


_WHOLES = _ordered(whole)
_NUMBERS = _ordered(lambda name, value: number(name, value, zero=True))


@dataclass(frozen=True)
class Scenario:
    """Settings of OServe; every one of them is also an argument of the environment."""

    about: str
    model: str = option("llama-2-70b", "The model that the cluster serves.", MODELS)
    kernels: str | None = given(
        None,
        "Kernel set that times of dense layers and attention come from; without one they come from the roofline.",
        allowed="a kernel set",
    )
    gpus: int = count(16, "H100s of the cluster, in nodes of eight.", high=MOST_GPUS, unit="GPUs")
    types: tuple[tuple[int, int], ...] = given(
        CORNERS,
        "Prompt and output of each type of requests; not used with `workloads`.",
        allowed=f"1 to {MOST_TYPES} pairs",
        unit="tokens",
    )
    workloads: tuple[str, ...] = given(
        (),
        "Workloads whose lengths are clustered into types; each is a stream of its own.",
        allowed=f"names of up to {MOST_TYPES} workloads",
    )
    clusters: int = count(4, "Types that the lengths of `workloads` are clustered into.", high=MOST_TYPES)
    cells: int = count(
        32, "Classes of lengths that stand for the requests of `workloads`, at least `clusters`.", high=256
    )
    mix: tuple[float, ...] | None = given(
        None,
        "Mean shares of the types, or of the workloads; without them all are equal.",
        allowed="numbers >= 0, not all of them 0",
    )
    drift: str = option(
        "spans",
        "How the mix drifts: not at all, in spans in which one type dominates, in a wave where each dominates in turn, or each "
        "workload by its own course of a day.",
        DRIFTS,
    )
    span_epochs: tuple[int, int] = given(
        (5, 10),
        "Shortest and longest span, where the drift is in spans.",
        allowed="two whole numbers from 1",
        unit="epochs",
        check=_WHOLES,
    )
    cv: tuple[float, float] = given(
        (0.1, 0.7),
        "Least and largest coefficient of variation of the shares, where the drift is in spans.",
        allowed="two numbers from 0 to the root of one less than the types",
        check=_NUMBERS,
    )
    amplitude: float = quantity(
        1.0, "Amplitude of the logarithm of a share, where the drift is a wave.", zero=True
    )
    period_epochs: float = quantity(24.0, "Period of a wave, or length of a day.", unit="epochs")
    load: tuple[float, float] = given(
        (0.85, 0.9),
        "Least and largest utilisation of the best candidate, if all were known; drawn anew for each span.",
        allowed="two numbers >= 0",
        check=_NUMBERS,
    )
    noise: float = quantity(
        0.0, "Standard deviation of the logarithm of a rate around its course.", zero=True
    )
    correlation: float = quantity(
        0.8,
        "Correlation of the deviation of a rate from its course, from one epoch to the next.",
        zero=True,
        high=0.999,
    )
    epochs: int = count(50, "Length of an episode.", high=10_000, unit="epochs")
    epoch_s: float = quantity(
        60.0, "Length of an epoch, no less than `drain_s`.", low=LEAST_EPOCH_S, unit="s"
    )
    history: int = count(50, "Epochs whose counts are in the observation.", low=0, high=1000, unit="epochs")
    ewma: float = quantity(0.3, "Weight of the last epoch in the forecast.", zero=True, high=1.0)
    candidates: int = count(12, "Deployments to choose from at most, where the action is the menu.", high=64)
    initial: tuple[tuple[int, int], ...] | None = given(
        None,
        "Shapes (tp, pp) of the first replicas; without them the best equal ones for `mix`.",
        allowed="shapes that use all GPUs",
    )
    switching: str = option(
        "adhoc",
        "How a deployment changes: ad hoc over the links, by reloading weights from disk, or in no time.",
        SWITCHING,
    )
    fix_s: float = quantity(
        6.0,
        "Time that an ad hoc switch takes for process groups, graphs and memory.",
        zero=True,
        unit="s",
    )
    disk_gb_per_s: float = quantity(2.8, "Bandwidth with which a reload reads the weights.", unit="GB/s")
    nvlink_gb_per_s: float = quantity(
        NVLINK_GB_PER_S, "Bandwidth of a GPU inside its node, each way.", unit="GB/s"
    )
    infiniband_gb_per_s: float = quantity(
        INFINIBAND_GB_PER_S, "Bandwidth of a node to the others, each way.", unit="GB/s"
    )
    drain_s: float = quantity(
        5.0,
        "Running requests that need less than this finish on the replica that stops.",
        zero=True,
        unit="s",
    )
    reroute: bool = flag(
        True,
        "Whether requests go to other replicas while some stop; otherwise they wait for those that start.",
    )
    dispatch: str = option(
        "flow",
        "Who gets a request: by type as the linear program says, by the same shares for all types, in turn, the replica with the "
        "least work (with migration of a waiting request a second), or the one with the least cache in use.",
        DISPATCH,
    )
    types_known: bool = flag(
        True, "Whether the type of a request is known at arrival; otherwise it is guessed from the prompt."
    )
    backlog_s: float = quantity(
        1200.0,
        "An episode ends as unstable when more requests wait than are expected to arrive in this time.",
        unit="s",
    )
    slo_scale: float = quantity(
        3.0, "Objective for the end-to-end time.", unit="latencies of the static plan"
    )
    switch_cost: float = quantity(0.0, "Price of a switch.", zero=True, unit="return")


_SMALL = Scenario(
    "OPT-66B on 16 GPUs, strong drift, 40 decisions of half a minute: an agent can be trained on it in minutes",
    "opt-66b",
    span_epochs=(8, 16),
    cv=(0.8, 1.7),
    load=(0.85, 0.95),
    epochs=40,
    epoch_s=30.0,
    history=6,
    ewma=0.85,
    candidates=8,
    backlog_s=300.0,
)

SCENARIOS: dict[str, Scenario] = {
    "paper": Scenario(
        "Llama2-70B on 16 H100s, 50 minutes, spans of 5 to 10 minutes with one dominant type: the paper's short trace",
    ),
    "paper-long": Scenario(
        "the same for OPT-66B over 800 minutes with spans of one to two and a half hours: the paper's long trace",
        "opt-66b",
        span_epochs=(60, 150),
        epochs=800,
    ),
    "real": Scenario(
        "Llama-3.1-70B from measured kernels; Azure's conversations and code, each with its own course of a day (in 2 hours)",
        "llama-3.1-70b",
        "h100/kernels",
        workloads=("azure-conv-2023", "azure-code-2023"),
        mix=(0.6, 0.4),
        drift="day",
        period_epochs=120.0,
        load=(0.9, 0.9),
        noise=0.1,
        epochs=120,
    ),
    "stress": Scenario(
        "OPT-66B on 32 GPUs, a slow network, abrupt and strong drift with bursts, up to and above what can be served",
        "opt-66b",
        gpus=32,
        span_epochs=(2, 6),
        cv=(0.6, 1.7),
        load=(0.8, 1.05),
        noise=0.25,
        correlation=0.6,
        ewma=0.7,
        infiniband_gb_per_s=10.0,
        candidates=24,
        backlog_s=600.0,
    ),
    "small": _SMALL,
}


def spatial_mix(cv: float, dominant: int, types: int = 4) -> tuple[float, ...]:
    """Shares with one dominant type and equal others, whose coefficient of variation (deviation over mean) is `cv`.

    The reading that Jiang et al. (arXiv 2602.12151, section 6) allow of "CV of the workload"; with four types the dominant one has
    0.25 + 0.433 cv.

    Args:
        cv: coefficient of variation, 0 or more.
        dominant: number of the dominant type.
        types: number of types, 2 to 16.

    Raises:
        InvalidArgument: no such type, or a CV that shares cannot have.
    """
    whole("types", types, 2, 16)
    whole("dominant", dominant, 0, types - 1)
    share = 1.0 / types + number("cv", cv, zero=True) * math.sqrt(types - 1) / types
    if share > 1.0 + 1e-12:
        raise InvalidArgument(f"cv={cv!r}: expected at most {math.sqrt(types - 1):.3f} for {types} types")
    rest = max(1.0 - share, 0.0) / (types - 1)
    return tuple(share if j == dominant else rest for j in range(types))


def resolve_scenario(scenario: str | Scenario, settings: dict[str, Any]) -> Scenario:
    """The scenario with the arguments put in, checked.

    Raises:
        UnknownName: a scenario, a setting or a choice that does not exist.
        InvalidArgument: a value out of range, alone or together with another.
    """
    chosen: Scenario = settled(scenario, SCENARIOS, settings, "OServe", ("about",))
    whole("cells", chosen.cells, chosen.clusters, 256)
    if chosen.epoch_s < chosen.drain_s:
        raise InvalidArgument(f"epoch_s={chosen.epoch_s!r}: expected no less than drain_s={chosen.drain_s!r}")
    streams = len(chosen.workloads) or len(chosen.types)
    if not 1 <= streams <= MOST_TYPES:
        raise InvalidArgument(
            f"types={chosen.types!r}: expected prompt and output tokens of 1 to {MOST_TYPES} types (or names of workloads)"
        )
    most = math.sqrt(streams - 1)
    if chosen.cv[1] > most + 1e-9 and chosen.drift == "spans" and streams > 1:
        raise InvalidArgument(f"cv={chosen.cv!r}: expected at most {most:.3f} for {streams} types")
    if chosen.mix is not None:
        mix = tuple(number("mix", share, zero=True) for share in chosen.mix)
        if len(mix) != streams or sum(mix) <= 0.0:
            raise InvalidArgument(f"mix={chosen.mix!r}: expected {streams} numbers >= 0, not all of them 0")
    return chosen
