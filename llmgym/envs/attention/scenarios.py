"""Scenarios of AttentionBudget: named settings of the GPU, the menu of kernels, the batches, the ledger and the episode."""

from dataclasses import dataclass
from typing import Any

from llmgym import workloads
from llmgym.core.checks import members, number
from llmgym.core.settings import count, flag, given, numbers, option, quantity
from llmgym.envs.attention.costs import LAYERS, LONGEST, PUBLISHED
from llmgym.errors import InvalidArgument
from llmgym.profiles.kernels import check_kernels

REWARDS = {"tokens": 0, "batches": 1}
"""What a batch weighs in the reward, each with the value of `llmgym.envs.attention.state.Config.even`."""
MIXTURE = "mixture"
"""In place of a workload: the lengths of the mixture of short and long prompts."""
MOST_SPLIT = 64


def _check_profile(name: str, value: Any) -> None:
    if not (isinstance(value, str) and value == PUBLISHED):
        check_kernels(name, value)


def _check_menu(name: str, value: Any) -> None:
    menu = members(name, value, "a tuple of kernels, each once")
    if not menu or not all(isinstance(one, str) and one for one in menu) or len(set(menu)) < len(menu):
        raise InvalidArgument(f"{name}={value!r}: expected a tuple of kernels, each once")


def _check_lengths(name: str, value: Any) -> None:
    if not (isinstance(value, str) and value == MIXTURE):
        workloads.check_name(name, value)


def _check_classes(name: str, value: Any) -> None:
    expected = "pairs of a limit and a weight"
    for pair in members(name, value, expected) or ((),):
        if len(members(f"a class of {name}", pair, expected)) != 2:
            raise InvalidArgument(f"{name}={value!r}: expected {expected}")
        number(f"{name}: limit", pair[0], zero=True)
        number(f"{name}: weight", pair[1])


@dataclass(frozen=True)
class Scenario:
    """Settings of AttentionBudget; each of them is also an argument of the environment."""

    about: str
    profile: str = given(
        "h100/kernels",
        "Where times and memory come from.",
        check=_check_profile,
        allowed=f"a kernel set, or `{PUBLISHED}` for the figure of the paper",
    )
    layer: str = option("8x32", "Heads and entries of a head of the attention layer.", LAYERS)
    menu: tuple[str, ...] | None = given(
        ("fused softmax", "slay 1 8 8", "slay 2 16 8", "elu", "favor 256"),
        "Kernels whose checkpoints are resident; `None`: all that the profile has of the layer.",
        allowed="kernels of `profile`, each once",
        check=_check_menu,
        optional=True,
    )
    splits: tuple[int, ...] = numbers(
        (1,),
        "Numbers of parts, one after the other, that a batch can be divided into to save memory; 1 is the first.",
        high=MOST_SPLIT,
        integers=True,
        order="rising",
    )
    layers: int = count(12, "Layers of the model.", high=1000)
    rest: bool = flag(
        False, "Whether the products of a layer of Llama-3.1-8B count beside attention, as measured."
    )
    memory_gb: float = quantity(80.0, "Memory of the GPU, GB.", unit="GB")
    weights_gb: float = quantity(
        0.25,
        "Weights of one resident checkpoint, of which each kernel has its own, GB.",
        zero=True,
        unit="GB",
    )
    slope: float = quantity(
        0.1,
        "Loss per unit of measured relative error, by which budgets of SLAY differ in loss; an assumption.",
        zero=True,
        unit="nat",
    )
    noise: float = quantity(
        1.0, "Deviation of the time of a batch, over the measured spread of its kernel.", zero=True, high=20.0
    )
    lengths: Any = given(
        MIXTURE,
        "Lengths of the prompts: of the mixture of short and long ones, or the prompts of a workload.",
        check=_check_lengths,
        allowed="`mixture`, a workload by name, `Workload`",
    )
    short_share: float = quantity(0.7, "Share of short prompts in the mixture.", zero=True, high=1.0)
    short_median: float = quantity(1500.0, "Median of a short prompt, tokens.", unit="tokens")
    short_sigma: float = quantity(
        1.0, "Standard deviation of the logarithm of a short prompt's length.", zero=True, high=5.0
    )
    long_tokens: tuple[float, float] = numbers(
        (8192.0, 131072.0),
        "Shortest and longest of the long prompts, evenly between, tokens.",
        size=2,
        order="pair",
        unit="tokens",
    )
    longest: int = count(
        LONGEST, "Longer prompts are cut to this length, tokens.", low=128, high=LONGEST, unit="tokens"
    )
    batch: int = count(8, "Most sequences of a batch.", high=64)
    batch_tokens: int = count(
        LONGEST, "Most tokens of a batch of several sequences.", low=128, high=LONGEST, unit="tokens"
    )
    load: float = quantity(1.0, "Work that arrives, over what the GPU can do without loss.")
    burst: float = quantity(1.0, "Rate of arrivals in a burst, over the mean rate.", low=1.0, high=100.0)
    burst_share: float = quantity(0.2, "Share of time in bursts.", high=0.9)
    burst_batches: float = quantity(20.0, "Mean number of batches that arrive in a burst.", unit="batches")
    deadline: tuple[float, float] = numbers(
        (1.0, 4.0),
        "Time until the deadline of a batch of mean tokens, evenly between two values, in mean service times without loss.",
        size=2,
        order="pair",
    )
    deadline_fixed: float = quantity(
        0.5, "Part of that time that does not grow with the tokens.", zero=True, high=1.0
    )
    classes: tuple[tuple[float, float], ...] = given(
        ((0.0, 0.3), (0.05, 0.5), (1.0, 0.2)),
        "Quality classes: largest loss that is accepted, nat, and weight.",
        allowed="pairs of numbers",
        check=_check_classes,
    )
    budget: float = quantity(
        0.02, "Mean loss per token that an episode may end with, nat.", low=1e-6, high=10.0, unit="nat"
    )
    window: int = count(
        4, "Waiting batches that are shown, and that can be chosen from by deferring.", high=64
    )
    late_weight: float = quantity(1.0, "Price of a late token, in tokens on time.", zero=True)
    excess_weight: float = quantity(
        5.0, "Price of a nat above the limit of the class, per token, in tokens on time.", zero=True
    )
    overspend_weight: float = quantity(
        5.0, "Price of the mean loss above the budget, per budget, in all tokens of the episode.", zero=True
    )
    energy_weight: float = quantity(
        0.0, "Price of energy, in what the episode takes without loss, in all its tokens.", zero=True
    )
    batches: int = count(512, "Batches of an episode.", high=100_000)

    def check_together(self) -> None:
        """Raise `InvalidArgument` where a batch can only be divided."""
        if self.splits[0] != 1:
            raise InvalidArgument(f"splits={self.splits!r}: expected 1 first, the whole batch")


LARGE = ("fused softmax", "slay 1 4 8", "slay 1 8 8", "slay 2 16 8")
"""Menu of a model of 8 billion parameters, of which four checkpoints fit."""

SCENARIOS: dict[str, Scenario] = {
    "paper": Scenario(
        "latencies and memory of the paper's figure (A100, softmax written out), all kernels and budgets, short and long prompts",
        profile=PUBLISHED,
        menu=None,
        splits=(1, 2, 4),
        load=4.0,
        burst=3.0,
        budget=0.035,
    ),
    "h100": Scenario(
        "the paper's layer on an H100 beside the fused kernel, all kernels and budgets, bursts",
        menu=None,
        splits=(1, 2, 4),
        load=1.2,
        burst=3.0,
    ),
    "h200": Scenario(
        "the same on an H200",
        profile="h200/kernels",
        menu=None,
        splits=(1, 2, 4),
        memory_gb=141.0,
        load=1.2,
        burst=3.0,
    ),
    "real": Scenario(
        "Llama-3.1-8B in shape on an H200, with all products of a layer; prompts of Mooncake conversations, bursts",
        profile="h200/kernels",
        layer="32x128",
        menu=LARGE,
        splits=(1, 2, 4),
        layers=32,
        rest=True,
        memory_gb=141.0,
        weights_gb=16.1,
        lengths="mooncake-conversation",
        load=0.8,
        burst=3.0,
        deadline=(1.5, 6.0),
        batches=256,
    ),
    "stress": Scenario(
        "long prompts on an H100 at twice what it can do, little memory, strict classes, and a price of energy",
        menu=(
            "fused softmax",
            "softmax",
            "yat",
            "slay 1 4 8",
            "slay 2 16 8",
            "slay 2 16 32",
            "elu",
            "favor 256",
        ),
        splits=(1, 2, 4, 8),
        memory_gb=4.0,
        short_share=0.3,
        load=2.0,
        burst=4.0,
        classes=((0.0, 0.6), (0.05, 0.3), (1.0, 0.1)),
        energy_weight=0.2,
        batches=256,
    ),
    "small": Scenario(
        "five kernels on an H100, a little more than it can do without loss, bursts, 96 batches",
        load=1.2,
        burst=3.0,
        batches=96,
    ),
}
