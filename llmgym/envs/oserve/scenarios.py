"""Scenarios of OServe: named settings of model, cluster, requests and drift."""

import math
from dataclasses import dataclass
from typing import Any

from llmgym import profiles, workloads
from llmgym.core.checks import members, number, whole
from llmgym.core.settings import count, flag, given, numbers, option, quantity
from llmgym.envs.oserve.placement import INFINIBAND_GB_PER_S, NVLINK_GB_PER_S, check_shape
from llmgym.envs.oserve.shapes import MODELS, MOST_GPUS, check_lengths
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


def _check_types(name: str, value: Any) -> None:
    expected = f"prompt and output tokens of 1 to {MOST_TYPES} types"
    types = members(name, value, expected)
    if len(types) > MOST_TYPES:
        raise InvalidArgument(f"{name}={value!r}: expected {expected}")
    for lengths in types:
        check_lengths(lengths, name)


def _check_workloads(name: str, value: Any) -> None:
    expected = f"names of up to {MOST_TYPES} workloads"
    names = members(name, value, expected)
    if len(names) > MOST_TYPES:
        raise InvalidArgument(f"{name}={value!r}: expected {expected}")
    for one in names:
        workloads.check_name(name, one)


def _check_shapes(name: str, value: Any) -> None:
    for shape in members(name, value, "shapes (tp, pp) of the replicas"):
        check_shape(shape, name)


@dataclass(frozen=True)
class Scenario:
    """Settings of OServe; every one of them is also an argument of the environment."""

    about: str
    model: str = option("llama-2-70b", "The model that the cluster serves.", MODELS)
    kernels: str | None = given(
        None,
        "Kernel set that times of dense layers and attention come from; without one they come from the roofline.",
        check=profiles.check_kernels,
        allowed="a kernel set",
    )
    gpus: int = count(16, "H100s of the cluster, in nodes of eight.", high=MOST_GPUS, unit="GPUs")
    types: tuple[tuple[int, int], ...] = given(
        CORNERS,
        "Prompt and output of each type of requests; not used with `workloads`.",
        check=_check_types,
        allowed=f"1 to {MOST_TYPES} pairs",
        unit="tokens",
    )
    workloads: tuple[str, ...] = given(
        (),
        "Workloads whose lengths are clustered into types; each is a stream of its own.",
        check=_check_workloads,
        allowed=f"names of up to {MOST_TYPES} workloads",
    )
    clusters: int = count(4, "Types that the lengths of `workloads` are clustered into.", high=MOST_TYPES)
    cells: int = count(
        32, "Classes of lengths that stand for the requests of `workloads`, at least `clusters`.", high=256
    )
    mix: tuple[float, ...] | None = numbers(
        None,
        "Mean shares of the types, or of the workloads; without them all are equal.",
        size=(1, MOST_TYPES),
        zero=True,
        some=True,
    )
    drift: str = option(
        "spans",
        "How the mix drifts: not at all, in spans in which one type dominates, in a wave where each dominates in turn, or each "
        "workload by its own course of a day.",
        DRIFTS,
    )
    span_epochs: tuple[int, int] = numbers(
        (5, 10),
        "Shortest and longest span, where the drift is in spans.",
        size=2,
        integers=True,
        order="pair",
        unit="epochs",
    )
    cv: tuple[float, float] = numbers(
        (0.1, 0.7),
        "Least and largest coefficient of variation of the shares, where the drift is in spans; at most the root of one less than "
        "the types.",
        size=2,
        zero=True,
        order="pair",
    )
    amplitude: float = quantity(
        1.0, "Amplitude of the logarithm of a share, where the drift is a wave.", zero=True
    )
    period_epochs: float = quantity(24.0, "Period of a wave, or length of a day.", unit="epochs")
    load: tuple[float, float] = numbers(
        (0.85, 0.9),
        "Least and largest utilisation of the best candidate, if all were known; drawn anew for each span.",
        size=2,
        zero=True,
        order="pair",
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
        check=_check_shapes,
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

    def check_together(self) -> None:
        """Raise `InvalidArgument` where settings contradict each other."""
        whole("cells", self.cells, self.clusters, 256)
        if self.epoch_s < self.drain_s:
            raise InvalidArgument(f"epoch_s={self.epoch_s!r}: expected no less than drain_s={self.drain_s!r}")
        streams = len(self.workloads) or len(self.types)
        if not streams:
            raise InvalidArgument(
                f"types={self.types!r}: expected prompt and output tokens of 1 to {MOST_TYPES} types (or names of workloads)"
            )
        most = math.sqrt(streams - 1)
        if self.cv[1] > most + 1e-9 and self.drift == "spans" and streams > 1:
            raise InvalidArgument(f"cv={self.cv!r}: expected at most {most:.3f} for {streams} types")
        if self.mix is not None and len(self.mix) != streams:
            raise InvalidArgument(f"mix={self.mix!r}: expected {streams} numbers >= 0, not all 0")


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

    Returns:
        Shares of the types, which add up to 1.

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
