"""Scenarios of MemPlace: named settings of devices, workloads, link and episode."""

from dataclasses import dataclass

from llmgym.core.settings import count, numbers, option, quantity
from llmgym.envs.memory.costs import Requests, evenly
from llmgym.envs.memory.measured import MEASURED
from llmgym.envs.memory.place.state import LINK_OCTAVES
from llmgym.envs.memory.published import NAMES


@dataclass(frozen=True)
class Scenario(Requests):
    """Settings of MemPlace; each of them is also an argument of the environment."""

    index: str = option(
        "streamed",
        "How the index of a `paged` workload gets to the FPGA: `streamed` while it is built, or `copied` when it is needed there.",
        ("streamed", "copied"),
    )
    link: tuple[float, float] = numbers(
        (1.0, 1.0),
        "Lowest and highest bandwidth over the published one, drawn for each request, evenly in the logarithm.",
        size=2,
        low=2.0**-LINK_OCTAVES,
        high=2.0**LINK_OCTAVES,
        order="pair",
    )
    setup_s: float = quantity(0.0, "Fixed time of each copy, seconds.", zero=True, unit="s")
    noise: float = quantity(
        0.0, "Standard deviation of the log error of every predicted kernel time.", zero=True, high=5.0
    )
    energy_weight: float = quantity(0.0, "Weight lambda of the logarithm of energy in the reward.", zero=True)
    requests: int = count(64, "Requests of an episode.", high=1_000_000)


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
