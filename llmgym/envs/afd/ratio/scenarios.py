"""Scenarios of AFDRatio: named settings of latencies, requests, ratios and episode."""

from dataclasses import dataclass, replace
from typing import Any

from llmgym import profiles
from llmgym.core.checks import choice, number, whole
from llmgym.core.settings import settled
from llmgym.envs.afd.costs import LINK_LATENCY_US, PAPER, Coefficients, coefficients
from llmgym.envs.afd.law import COMMUNICATION, feasible_ratios
from llmgym.envs.afd.ratio.state import ABSOLUTE, DELTA, GAUSSIAN, MEANFIELD, PIPELINE, SLOT_LEVEL
from llmgym.envs.afd.requests import Requests, load
from llmgym.errors import InvalidArgument
from llmgym.workloads import Workload

FIDELITIES = {"meanfield": MEANFIELD, "gaussian": GAUSSIAN, "slot": SLOT_LEVEL, "pipeline": PIPELINE}
ACTIONS = {"ratio": ABSOLUTE, "delta": DELTA}
STARTS = ("stationary", "cold")
MOST_CYCLES = 1_000_000
"""Cycles of an epoch that are simulated one by one."""
Law = str | Requests | Workload


@dataclass(frozen=True)
class Scenario:
    """Settings of AFDRatio; every one of them is also an argument of the environment.

    Attributes:
        about: one line.
        requests: laws of the requests, see `llmgym.envs.afd.requests.load`; the load changes between them.
        coefficients: latencies; None fits them to `profile`, or takes the paper's where that is None too.
        profile: name of a profile to fit latencies to.
        link_gb_per_s: bandwidth between two instances, for a fitted profile, GB/s.
        link_latency_us: one way, for a fitted profile, us.
        fidelity: "meanfield", "gaussian", "slot" or "pipeline".
        batch: B, requests of a microbatch of one attention instance.
        batches: microbatches in flight, with "pipeline".
        comm: "per_instance" or "aggregate": what communication grows with.
        ratios: what can be chosen: whole numbers r (rA-1F) or pairs (x, y) (xA-yF); None: 1 to `max_ratio`, or all that
            `instances` can build.
        max_ratio: largest ratio where `ratios` is None.
        instances: of a bundle, at most; None: no limit.
        initial: index of the ratio before the first decision, for `action="delta"`; None: the closest to r* of the first law.
        cycles: of an epoch: steps of one microbatch.
        epochs: of an episode.
        stop: an episode also ends when so many requests are done for each attention instance; 0: it does not.
        start: "stationary" (slots as in the long run) or "cold" (all requests new) for the first bundle.
        switch_epochs: mean epochs between two changes of the law; None: the first one stays.
        spread: the coefficients of an episode differ from the nominal ones by up to this share, each for itself.
        switch_cycles: time that a change of the ratio takes, cycles; None: five times t_A.
        window: finished requests over which theta and nu are estimated.
    """

    about: str
    requests: Law | tuple[Law, ...]
    coefficients: Coefficients | None = None
    profile: str | None = None
    link_gb_per_s: float = 50.0
    link_latency_us: float = LINK_LATENCY_US
    fidelity: str = "slot"
    batch: int = 256
    batches: int = 2
    comm: str = "per_instance"
    ratios: tuple[int | tuple[int, int], ...] | None = None
    max_ratio: int = 32
    instances: int | None = None
    initial: int | None = None
    cycles: int = 500
    epochs: int = 100
    stop: int = 0
    start: str = "stationary"
    switch_epochs: float | None = None
    spread: float = 0.0
    switch_cycles: float | None = None
    window: int = 2048


_GEOMETRIC = "geometric:prompt={},decode={},prompt_law=constant"
_SMALL = Scenario(
    "small batches and short requests of three kinds that take turns: an agent can be trained on it in minutes",
    ("geometric:prompt=20,decode=40", "constant:prompt=100,steps=30", "uniform:prompt=10,low=1,high=60"),
    coefficients=Coefficients(
        0.05, 20.0, 0.4, 20.0, 0.1, 5.0, source="chosen: small numbers in the paper's proportions"
    ),
    batch=32,
    max_ratio=16,
    cycles=100,
    epochs=60,
    switch_epochs=15.0,
    window=256,
)

SCENARIOS: dict[str, Scenario] = {
    "paper": Scenario(
        "the paper's experiment as a bandit: one ratio from a cold start until 10,000 requests are done for each instance",
        _GEOMETRIC.format(100, 500),
        fidelity="pipeline",
        ratios=(1, 2, 4, 8, 16, 24, 32),
        cycles=2**30,
        epochs=1,
        stop=10_000,
        start="cold",
    ),
    "paper-stationary": Scenario(
        "the paper's baseline in the long run: 100 epochs, one law, every ratio from 1 to 32",
        _GEOMETRIC.format(100, 500),
    ),
    "paper-shift": Scenario(
        "the paper's three pairs of prompt and decode lengths take turns; best ratios from 2 to 17",
        tuple(_GEOMETRIC.format(*pair) for pair in ((100, 500), (100, 100), (500, 500))),
        cycles=1000,
        switch_epochs=25.0,
    ),
    "real": Scenario(
        "conversations and code of Azure 2023 and ShareGPT, Llama-3.1-8B on H100 with 400 Gb/s links, two FFN instances",
        ("azure-conv-2023", "azure-code-2023", "sharegpt"),
        profile="h100/llama-3.1-8b",
        fidelity="pipeline",
        batch=128,
        ratios=tuple((x, 2) for x in range(1, 17)),
        cycles=200,
        epochs=60,
        switch_epochs=15.0,
    ),
    "real-long": Scenario(
        "long-context conversations of Mooncake and those of Azure, Qwen2.5-14B on H200 with 400 Gb/s links, two microbatches",
        ("mooncake-conversation", "azure-conv-2023"),
        profile="h200/qwen2.5-14b",
        fidelity="pipeline",
        batch=16,
        max_ratio=32,
        cycles=200,
        epochs=60,
        switch_epochs=20.0,
    ),
    "stress": Scenario(
        "heavy-tailed, constant and long answers, coefficients that vary by 30 %, frequent and dear changes, three microbatches",
        (
            "lognormal:prompt=100,steps=500,cv=2",
            "constant:prompt=100,steps=500",
            "geometric:prompt_per_step=0.4,decode=500",
            "geometric:prompt=1000,decode=200,prompt_law=lognormal,prompt_cv=1.5",
        ),
        fidelity="pipeline",
        batches=3,
        batch=128,
        cycles=300,
        epochs=80,
        switch_epochs=6.0,
        spread=0.3,
        switch_cycles=6000.0,
        window=1024,
    ),
    "small": _SMALL,
    "small-gaussian": replace(_SMALL, about="the same with Gaussian loads", fidelity="gaussian"),
    "small-meanfield": replace(_SMALL, about="the same by formula", fidelity="meanfield"),
}


def resolve_scenario(scenario: str | Scenario, settings: dict[str, Any]) -> Scenario:
    """The scenario with the arguments put in, checked.

    Raises:
        UnknownName: a scenario, a setting or a choice that does not exist.
        InvalidArgument: a number out of range.
    """
    chosen: Scenario = settled(scenario, SCENARIOS, settings, "AFDRatio", ("about", "profile"))
    for name, options in (("fidelity", FIDELITIES), ("comm", COMMUNICATION), ("start", STARTS)):
        choice(name, getattr(chosen, name), options)
    for name, most in (
        ("batch", 65_536),
        ("batches", 8),
        ("max_ratio", 1024),
        ("cycles", 2**30),
        ("epochs", 100_000),
        ("window", 2**20),
    ):
        whole(name, getattr(chosen, name), 1, most)
    whole("stop", chosen.stop, 0)
    if chosen.instances is not None:
        whole("instances", chosen.instances, 2, 1024)
    for name in ("link_gb_per_s", "switch_epochs"):
        if getattr(chosen, name) is not None:
            number(name, getattr(chosen, name))
    for name in ("link_latency_us", "spread", "switch_cycles"):
        if getattr(chosen, name) is not None:
            number(name, getattr(chosen, name), zero=True)
    if chosen.spread >= 1.0:
        raise InvalidArgument(
            f"spread={chosen.spread!r}: expected a share below 1, coefficients stay positive"
        )
    if chosen.stop and FIDELITIES[chosen.fidelity] < SLOT_LEVEL:
        raise InvalidArgument(
            f"stop={chosen.stop!r}: needs fidelity='slot' or 'pipeline', a formula has no requests to count"
        )
    if not chosen.stop and FIDELITIES[chosen.fidelity] >= SLOT_LEVEL and chosen.cycles > MOST_CYCLES:
        raise InvalidArgument(
            f"cycles={chosen.cycles!r}: at most {MOST_CYCLES:,} in fidelity={chosen.fidelity!r} without `stop`"
        )
    if chosen.switch_epochs is not None and chosen.switch_epochs < 1.0:
        raise InvalidArgument(f"switch_epochs={chosen.switch_epochs!r}: expected at least one epoch")
    return chosen


def resolve_ratios(scenario: Scenario) -> tuple[tuple[int, int], ...]:
    """What can be chosen: pairs of attention and FFN instances, by rising ratio.

    Raises:
        InvalidArgument: no ratio, one that is given twice or needs more instances than there are, or less than one instance.
    """
    budget = scenario.instances
    if scenario.ratios is None:
        if budget is not None:
            return feasible_ratios(budget)
        return tuple((r, 1) for r in range(1, scenario.max_ratio + 1))
    pairs = []
    try:
        given = list(scenario.ratios)
    except TypeError:
        raise InvalidArgument(f"ratios={scenario.ratios!r}: expected whole numbers or pairs (x, y)") from None
    for entry in given:
        x, y = entry if isinstance(entry, (tuple, list)) and len(entry) == 2 else (entry, 1)
        pair = whole("ratios", x, 1, 1024), whole("ratios", y, 1, 1024)
        if budget is not None and sum(pair) > budget:
            raise InvalidArgument(
                f"ratios: {pair[0]}A-{pair[1]}F needs {sum(pair)} instances, instances={budget} are there"
            )
        pairs.append(pair)
    values = [x / y for x, y in pairs]
    if not pairs or len(set(values)) < len(values):
        raise InvalidArgument(f"ratios={scenario.ratios!r}: expected at least one ratio, none of them twice")
    return tuple(sorted(pairs, key=lambda pair: pair[0] / pair[1]))


def resolve_requests(requests: Any) -> tuple[Requests, ...]:
    """The laws, as tables.

    Raises:
        UnknownName: a law or workload that does not exist.
        InvalidArgument: none at all, or parameters that do not fit.
    """
    laws = tuple(requests) if isinstance(requests, (tuple, list)) else (requests,)
    if not laws:
        raise InvalidArgument(f"requests={requests!r}: expected at least one law")
    return tuple(load(law) for law in laws)


def resolve_coefficients(
    given: Coefficients | None,
    profile: "str | profiles.Profile | None",
    batch: int,
    link_gb_per_s: float,
    link_latency_us: float,
) -> Coefficients:
    """The latencies: given ones, those of a profile, or the paper's."""
    if given is not None:
        if not isinstance(given, Coefficients):
            raise InvalidArgument(f"coefficients={given!r}: expected llmgym.envs.afd.costs.Coefficients")
        return given
    if profile is None:
        return PAPER
    found = profile if isinstance(profile, profiles.Profile) else profiles.load(profile)
    return coefficients(found, batch, link_gb_per_s, link_latency_us)
