"""Scenarios of MemPipe: named settings of devices, workloads, load and episode."""

from dataclasses import dataclass
from typing import Any

from llmgym.core.checks import choice, number, whole
from llmgym.core.settings import settled
from llmgym.envs.memory.costs import BATCHES, HARDWARE, Mix
from llmgym.envs.memory.law import FPGA_W, GPU_W
from llmgym.envs.memory.place.scenarios import evenly
from llmgym.envs.memory.published import NAMES
from llmgym.errors import InvalidArgument

SHORT_STEPS = evenly(("seer-topk", "seer-threshold", "lserve"))
"""Sparse attention whose requests take milliseconds."""
REWARDS = {"latency": 0, "slowdown": 1}


@dataclass(frozen=True)
class Scenario:
    """Settings of MemPipe; every one of them is also an argument of the environment.

    Attributes:
        about: one line.
        hardware: "mi210+u55c" (published figures) or "h100+u55c" (measured kernels).
        kernels: kernel set of the H100.
        mix: workloads with their weights, which are shares of the load.
        sizes: first and last size index: 0 is 4,096 tokens or 78,125 documents, each further one twice that, 9 beyond the FPGA.
        batches: some of 1, 2, 4, 8, 16, 32.
        load: arrivals, as a multiple of what the GPU alone could serve.
        fused: relevancy on the FPGA runs with retrieval in one kernel; otherwise retrieval is decided on its own.
        wait: there is a third action, to decide later.
        link: bandwidth as a multiple of the published link.
        setup_s: of each copy, s.
        gpu_w: power of the GPU while it works, W.
        fpga_w: power of the FPGA while it works, W.
        energy_weight: lambda, of energy in the reward.
        requests: of an episode.
    """

    about: str
    hardware: str = "mi210+u55c"
    kernels: str = "h100/kernels"
    mix: Mix = SHORT_STEPS
    sizes: tuple[int, int] = (0, 8)
    batches: tuple[int, ...] = BATCHES
    load: float = 1.0
    fused: bool = True
    wait: bool = False
    link: float = 1.0
    setup_s: float = 0.0
    gpu_w: float = GPU_W
    fpga_w: float = FPGA_W
    energy_weight: float = 0.0
    requests: int = 200


SCENARIOS: dict[str, Scenario] = {
    "paper": Scenario(
        "sparse attention and memory as context on MI210 and U55C, milliseconds to seconds, the GPU's own capacity",
        mix=evenly(("dsa", "seer-topk", "seer-threshold", "lserve", "memory-as-context")),
    ),
    "rag": Scenario(
        "four kinds of retrieval and MemAgent, seconds to minutes",
        mix=evenly(("dragin", "flare", "fs-rag", "two-stage-rag", "memagent")),
    ),
    "energy": Scenario(
        "three kinds of sparse attention, the GPU's own capacity, time and energy of equal weight",
        energy_weight=1.0,
    ),
    "h100": Scenario(
        "sparse attention by measured kernels on an H100, half of what it could serve alone",
        hardware="h100+u55c",
        mix=evenly(("dsa", "seer-topk", "lserve")),
        load=0.5,
    ),
    "stress": Scenario(
        "everything there is, also what does not fit the FPGA, twice what the GPU could serve; kernels apart, a slow link, waiting",
        mix=evenly(NAMES),
        sizes=(0, 9),
        load=2.0,
        fused=False,
        wait=True,
        link=0.1,
        setup_s=10e-6,
        energy_weight=0.2,
    ),
    "small": Scenario(
        "three kinds of sparse attention, 40 % more than the GPU alone could serve, 48 requests",
        load=1.4,
        requests=48,
    ),
}


def resolve_scenario(scenario: str | Scenario, settings: dict[str, Any]) -> Scenario:
    """The scenario with the arguments put in, checked.

    Raises:
        UnknownName: a scenario, a setting or a choice that does not exist.
        InvalidArgument: a number out of range.
    """
    chosen: Scenario = settled(scenario, SCENARIOS, settings, "MemPipe", ("about",))
    choice("hardware", chosen.hardware, HARDWARE)
    for name in ("load", "link", "gpu_w", "fpga_w"):
        number(name, getattr(chosen, name))
    for name in ("setup_s", "energy_weight"):
        number(name, getattr(chosen, name), zero=True)
    for name in ("fused", "wait"):
        if not isinstance(getattr(chosen, name), bool):
            raise InvalidArgument(f"{name}={getattr(chosen, name)!r}: expected True or False")
    whole("requests", chosen.requests, 1, 100_000)
    return chosen
