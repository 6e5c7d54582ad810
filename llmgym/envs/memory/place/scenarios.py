"""Scenarios of MemPlace: named settings of devices, workloads, link and episode."""

from dataclasses import dataclass
from typing import Any

from llmgym.core.checks import choice, number, whole
from llmgym.core.settings import settled
from llmgym.envs.memory.costs import BATCHES, HARDWARE, Mix
from llmgym.envs.memory.law import WORKLOADS
from llmgym.envs.memory.measured import MEASURED
from llmgym.envs.memory.published import NAMES
from llmgym.errors import InvalidArgument

INDEX = {"streamed": 0, "copied": 1}


def evenly(names: Any) -> Mix:
    """These workloads with equal weights."""
    return tuple((name, 1.0) for name in names)


PUBLISHED = evenly(name for name, w in WORKLOADS.items() if w.published)


@dataclass(frozen=True)
class Scenario:
    """Settings of MemPlace; every one of them is also an argument of the environment.

    Attributes:
        about: one line.
        hardware: "mi210+u55c" (published figures) or "h100+u55c" (measured kernels).
        kernels: kernel set of the H100.
        mix: workloads with their weights.
        sizes: first and last size index: 0 is 4,096 tokens or 78,125 documents, each further one twice that, 9 beyond the FPGA.
        batches: some of 1, 2, 4, 8, 16, 32.
        index: "streamed" to the FPGA while it is built, or "copied" when it is needed (of the `paged` workloads).
        link: lowest and highest bandwidth, as multiples of the published link; drawn for each request, evenly in the logarithm.
        setup_s: of each copy, s.
        noise: standard deviation of the log error of every predicted kernel time.
        energy_weight: lambda, of the logarithm of energy in the reward.
        requests: of an episode.
    """

    about: str
    hardware: str = "mi210+u55c"
    kernels: str = "h100/kernels"
    mix: Mix = PUBLISHED
    sizes: tuple[int, int] = (0, 8)
    batches: tuple[int, ...] = BATCHES
    index: str = "streamed"
    link: tuple[float, float] = (1.0, 1.0)
    setup_s: float = 0.0
    noise: float = 0.0
    energy_weight: float = 0.0
    requests: int = 64


SCENARIOS: dict[str, Scenario] = {
    "paper": Scenario(
        "the ten published workloads on MI210 and U55C, 4K to 1M tokens or 78K to 20M documents"
    ),
    "paged": Scenario(
        "the published placement instance scaled with pages, its index copied when the FPGA needs it, links of all speeds",
        mix=evenly(("paged", "paged-decode")),
        index="copied",
        link=(1 / 16, 64.0),
    ),
    "energy": Scenario("as `paper`, with time and energy of equal weight", energy_weight=1.0),
    "h100": Scenario(
        "five workloads by measured kernels on an H100: the FPGA wins some and loses some",
        hardware="h100+u55c",
        mix=evenly(MEASURED),
    ),
    "stress": Scenario(
        "everything there is, also what does not fit the FPGA; slow and fast links, times known within a factor of two",
        mix=evenly(NAMES),
        sizes=(0, 9),
        link=(1 / 16, 4.0),
        setup_s=10e-6,
        noise=0.7,
        energy_weight=0.5,
    ),
    "small": Scenario(
        "the H100 with links from an eighth of the published speed to eight times it, and times that are predicted within 30 %",
        hardware="h100+u55c",
        mix=evenly(MEASURED),
        link=(1 / 8, 8.0),
        noise=0.3,
    ),
}


def check_link(link: Any) -> tuple[float, float]:
    """Lowest and highest multiple of the bandwidth. Raises `InvalidArgument`."""
    if not isinstance(link, tuple) or len(link) != 2:
        raise InvalidArgument(f"link={link!r}: expected the lowest and the highest multiple of the bandwidth")
    low, high = number("link", link[0]), number("link", link[1])
    if not 2.0**-10 <= low <= high <= 2.0**10:
        raise InvalidArgument(f"link={link!r}: expected rising numbers from 1/1024 to 1024")
    return low, high


def resolve_scenario(scenario: str | Scenario, settings: dict[str, Any]) -> Scenario:
    """The scenario with the arguments put in, checked.

    Raises:
        UnknownName: a scenario, a setting or a choice that does not exist.
        InvalidArgument: a number out of range.
    """
    chosen: Scenario = settled(scenario, SCENARIOS, settings, "MemPlace", ("about",))
    choice("hardware", chosen.hardware, HARDWARE)
    choice("index", chosen.index, INDEX)
    check_link(chosen.link)
    for name in ("setup_s", "noise", "energy_weight"):
        number(name, getattr(chosen, name), zero=True)
    if chosen.noise > 5.0:
        raise InvalidArgument(f"noise={chosen.noise!r}: expected a number from 0 to 5")
    whole("requests", chosen.requests, 1, 1_000_000)
    return chosen
