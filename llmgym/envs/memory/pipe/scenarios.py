"""Scenarios of MemPipe: named settings of devices, workloads, load and episode."""

from dataclasses import dataclass

from llmgym.core.settings import count, flag, quantity
from llmgym.envs.memory.costs import Requests, evenly, mix_setting
from llmgym.envs.memory.law import FPGA_W, GPU_W
from llmgym.envs.memory.published import NAMES

SHORT_STEPS = evenly(("seer-topk", "seer-threshold", "lserve"))
"""Sparse attention whose requests take milliseconds."""
REWARDS = {"latency": 0, "slowdown": 1}
"""What the reward counts, each with the value of `llmgym.envs.memory.pipe.state.Config.slowdown`."""


@dataclass(frozen=True)
class Scenario(Requests):
    """Settings of MemPipe; each of them is also an argument of the environment."""

    mix: tuple[tuple[str, float], ...] = mix_setting(
        SHORT_STEPS, "Workloads, each with its weight, which is a share of the load."
    )
    load: float = quantity(1.0, "Arrivals over what the GPU alone could serve.")
    fused: bool = flag(
        True,
        "Relevancy on the FPGA runs with retrieval in one kernel; otherwise retrieval is decided on its own.",
    )
    wait: bool = flag(False, "There is a third action, to decide later.")
    link: float = quantity(1.0, "Bandwidth of the link over the published one.")
    setup_s: float = quantity(0.0, "Fixed time of each copy, seconds.", zero=True, unit="s")
    gpu_w: float = quantity(GPU_W, "Power of the GPU while it works, watts.", unit="W")
    fpga_w: float = quantity(FPGA_W, "Power of the FPGA while it works, watts.", unit="W")
    energy_weight: float = quantity(0.0, "Weight lambda of energy in the reward.", zero=True)
    requests: int = count(200, "Requests of an episode.", high=100_000)


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
