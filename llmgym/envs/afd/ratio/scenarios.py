"""Scenarios of AFDRatio: named settings of latencies, requests, ratios and episode."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from llmgym.core.checks import below_one, members, whole
from llmgym.core.settings import count, given, option, quantity
from llmgym.envs.afd.costs import Coefficients
from llmgym.envs.afd.law import COMMUNICATION, feasible_ratios
from llmgym.envs.afd.ratio.state import ABSOLUTE, DELTA, GAUSSIAN, MEANFIELD, PIPELINE, SLOT_LEVEL
from llmgym.envs.afd.settings import MOST_BATCH, STARTS, Bundle
from llmgym.errors import InvalidArgument

FIDELITIES = {"meanfield": MEANFIELD, "gaussian": GAUSSIAN, "slot": SLOT_LEVEL, "pipeline": PIPELINE}
ACTIONS = {"ratio": ABSOLUTE, "delta": DELTA}
MOST_CYCLES = 1_000_000
"""Cycles of an epoch that are simulated one by one, at most: seconds of computing."""
MOST_INSTANCES = 1024
"""Instances of a bundle, at most; a lane holds memory for each."""


def _check_ratios(name: str, value: Any) -> None:
    expected = "one whole number or pair (x, y) or more, no ratio twice"
    pairs = [_pair(name, entry) for entry in members(name, value, expected)]
    if not pairs or len({x / y for x, y in pairs}) < len(pairs):
        raise InvalidArgument(f"{name}={value!r}: expected {expected}")


def _pair(name: str, entry: Any) -> tuple[int, int]:
    x, y = entry if isinstance(entry, (tuple, list)) and len(entry) == 2 else (entry, 1)
    return whole(name, x, 1, MOST_INSTANCES), whole(name, y, 1, MOST_INSTANCES)


@dataclass(frozen=True)
class Scenario(Bundle):
    """Settings of AFDRatio; every one of them is also an argument of the environment."""

    fidelity: str = option(
        "slot", "How an epoch passes: by formula, with Gaussian loads, or request by request.", FIDELITIES
    )
    batch: int = count(
        256, "B: requests of a microbatch of one attention instance.", high=MOST_BATCH, unit="requests"
    )
    batches: int = count(2, "Microbatches in flight in the pipeline.", high=8, unit="microbatches")
    comm: str = option(
        "per_instance",
        "What communication grows with: the requests of one attention instance, or all of the FFN instance.",
        COMMUNICATION,
    )
    ratios: tuple[int | tuple[int, int], ...] | None = given(
        None,
        "Ratios that can be chosen; None: 1 to `max_ratio`, or all that `instances` can build.",
        check=_check_ratios,
        allowed="whole numbers r (rA-1F) or pairs (x, y) (xA-yF)",
    )
    max_ratio: int = count(32, "Largest ratio where `ratios` is None.", high=MOST_INSTANCES)
    instances: int | None = count(
        None, "Most instances of a bundle; None: no limit.", low=2, high=MOST_INSTANCES, unit="instances"
    )
    initial: int | None = count(
        None,
        'Index of the ratio before the first decision, for `action="delta"`; None: the closest to r* of the first law.',
        low=0,
    )
    cycles: int = count(
        500, "Length of an epoch, cycles; a cycle is one step of one microbatch.", unit="cycles"
    )
    epochs: int = count(100, "Length of an episode, epochs.", high=100_000, unit="epochs")
    stop: int = count(
        0,
        "Requests done for each attention instance with which an episode ends too; 0: it does not.",
        low=0,
        unit="requests",
    )
    start: str = option(
        "stationary",
        "What the first bundle begins with: slots as in the long run, or requests that are all new.",
        STARTS,
    )
    switch_epochs: float | None = quantity(
        None,
        "Mean time between two changes of the law, epochs; None: the first one stays.",
        low=1.0,
        unit="epochs",
    )
    spread: float = given(
        0.0,
        "Share by which each coefficient of an episode differs from the nominal one at most.",
        check=below_one,
        allowed=">= 0 and < 1",
        unit="share",
    )
    switch_cycles: float | None = quantity(
        None, "Time that a change of the ratio takes, cycles; None: five times t_A.", zero=True, unit="cycles"
    )
    window: int = count(
        2048, "Finished requests that theta and nu are estimated from.", high=2**20, unit="requests"
    )

    def check_together(self) -> None:
        """Raise `InvalidArgument` where `fidelity` does not go with `stop` or `cycles`, or `instances` not with `ratios`."""
        requests = FIDELITIES[self.fidelity] >= SLOT_LEVEL
        if self.stop and not requests:
            raise InvalidArgument(
                f"stop={self.stop!r}: needs fidelity='slot' or 'pipeline', a formula has no requests to count"
            )
        if not self.stop and requests and self.cycles > MOST_CYCLES:
            raise InvalidArgument(
                f"cycles={self.cycles!r}: at most {MOST_CYCLES:,} in fidelity={self.fidelity!r} without `stop`"
            )
        for x, y in map(partial(_pair, "ratios"), self.ratios or ()):
            if self.instances is not None and x + y > self.instances:
                raise InvalidArgument(
                    f"ratios: {x}A-{y}F needs {x + y} instances, instances={self.instances} are there"
                )


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


def resolve_ratios(scenario: Scenario) -> tuple[tuple[int, int], ...]:
    """What can be chosen: pairs of attention and FFN instances, by rising ratio."""
    budget = scenario.instances
    if scenario.ratios is None:
        if budget is not None:
            return feasible_ratios(budget)
        return tuple((r, 1) for r in range(1, scenario.max_ratio + 1))
    pairs = [_pair("ratios", entry) for entry in scenario.ratios]
    return tuple(sorted(pairs, key=lambda pair: pair[0] / pair[1]))
