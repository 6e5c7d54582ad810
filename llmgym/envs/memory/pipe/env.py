"""MemPipe: requests of memory pipelines that queue for a GPU, an FPGA and the link between them, placed stage by stage.

He, Ma, Sun and Cong, "Understand and Accelerate Memory Processing Pipeline for Large Language Model Inference", ICML 2026 (arXiv
2603.29002), map stages to devices once and for all, and measure one request at a time. Here requests meet: the device that is
faster for a stage may be the one that is busy.
"""

from typing import Any, ClassVar

import numpy as np
from gymnasium.spaces import Discrete

from llmgym.core.checks import choice
from llmgym.core.env import LaneEnv, vector_env
from llmgym.core.lanes import Simulation
from llmgym.core.layout import Layout
from llmgym.core.settings import settled
from llmgym.envs.memory.costs import mixture
from llmgym.envs.memory.devices import pcie
from llmgym.envs.memory.law import FPGA, GPU
from llmgym.envs.memory.pipe.kernels import KERNELS
from llmgym.envs.memory.pipe.scenarios import REWARDS, SCENARIOS, Scenario
from llmgym.envs.memory.pipe.state import (
    ALL_PLACED,
    Config,
    Episode,
    Metrics,
    Observation,
    Params,
    Request,
    Span,
    State,
)
from llmgym.envs.memory.resources import Resource


class MemPipe(Simulation):
    """The simulation behind `llmgym/MemPipe-v0`; `MemPipeEnv` lists the arguments.

    Attributes:
        mean_s: mean time of a request on the GPU alone, seconds.
        rate_rps: arrivals a second.
    """

    kernels = KERNELS
    metrics = Metrics
    layout = Layout(head=Observation)
    view = "llmgym.envs.memory.pipe.view"
    hidden: ClassVar[dict[str, str]] = {
        "lane.key": "never: it is what the episode was drawn from",
        "lane.checksum": "at the end of the episode",
        "request.arrival_s": "on arrival",
        "request.cell": "on arrival",
        "request.stage": "on arrival",
        "request.weight": "on arrival",
        "request.ready_s": "on arrival; for a request that waits, at the next end or arrival",
    }

    def __init__(
        self,
        *,
        scenario: str | Scenario = "small",
        reward: str = "latency",
        invalid_action: str = "penalize",
        invalid_cost: float = 0.01,
        **settings: Any,
    ) -> None:
        super().__init__(invalid_action=invalid_action, invalid_cost=invalid_cost)
        chosen: Scenario = settled(scenario, SCENARIOS, settings, "MemPipe", ("about",))
        choice("reward", reward, REWARDS)
        cells, running = mixture(
            chosen.hardware, chosen.mix, chosen.sizes, chosen.batches, kernels=chosen.kernels, by_load=True
        )
        cells["power_w"][:, GPU], cells["power_w"][:, FPGA] = chosen.gpu_w, chosen.fpga_w
        shares = np.diff(running, prepend=0.0)
        self.mean_s = float(shares @ cells["gpu_s"])
        self.rate_rps = chosen.load / self.mean_s
        cells["gpu_j"] = chosen.gpu_w * cells["gpu_s"]
        config = Config.pack(
            chosen,
            slowdown=REWARDS[reward],
            rate_rps=self.rate_rps,
            mean_s=self.mean_s,
            mean_j=chosen.gpu_w * self.mean_s,
            invalid_cost=self.invalid_cost,
        )
        self.scenario = chosen
        self.action_space = Discrete(3 if chosen.wait else 2)
        self.params = Params(config, cells, running, pcie(chosen.link, chosen.setup_s))

    def allocate(self, lanes: int) -> State:
        """New arrays for this number of lanes."""
        requests = self.scenario.requests
        return State(
            Episode.zeros(lanes),
            Request.zeros(lanes, requests),
            Resource.zeros(lanes, 4),
            Span.zeros(lanes, requests, 4),
            np.zeros((lanes, requests), np.float32),
        )

    def redraw(self, state: State, lane: int, key: int) -> None:
        """Draw anew the requests that are still to arrive, and their times; how many an episode has is a setting.

        Args:
            state: arrays of all lanes.
            lane: the lane that gets another future.
            key: seeds the other world, 0 to 2**63 - 1.
        """
        episode, requests, span = state.lane[lane], state.request[lane], state.span[lane]
        other = self.world(key)
        drawn, clock_s = other.request[0], episode["clock_s"]
        n = int(np.searchsorted(requests["arrival_s"], clock_s, side="right"))
        inside, future = requests[:n], requests[n:]
        before = future["arrival_s"].copy()
        future[:] = drawn[n:]
        # gaps are exponential: from now to the next arrival as from one arrival to the next
        future["arrival_s"] += clock_s - drawn["arrival_s"][n - 1]
        future["ready_s"] = future["arrival_s"]
        # who waits decides at the next end of a job, or at the next arrival, which is another one now
        waits = inside["stage"] < ALL_PLACED
        waits &= (inside["ready_s"] > clock_s) & (span["end_s"][:n].max(axis=1) <= clock_s)
        ends = np.concatenate([state.resource["until_s"][lane], inside["ready_s"][~waits]])
        ready = inside["ready_s"][waits]
        ready = np.where(np.isin(ready, before), ends[ends > clock_s].min(initial=np.inf), ready)
        inside["ready_s"][waits] = np.minimum(ready, future["arrival_s"].min(initial=np.inf))
        episode["key"] = other.lane[0]["key"]
        episode["checksum"] = float((requests["arrival_s"] + requests["cell"]).sum())

    def expected_return(self, metrics: dict[str, float]) -> float:
        """Minus the mean time in the system in its unit, minus the weighted mean energy, less penalties."""
        energy = self.scenario.energy_weight * metrics["energy_relative"]
        return -metrics["latency_relative"] - energy - metrics["penalty"]

    def settings(self) -> dict[str, Any]:
        """The scenario with the rate of arrivals and the mean time of a request, for reports."""
        return super().settings() | {"rate_rps": self.rate_rps, "mean_s": self.mean_s}


class MemPipeEnv(LaneEnv):
    """Requests of memory pipelines that queue for a GPU, an FPGA and their link, placed stage by stage.

    ## Description
    Requests arrive at random. Each has four stages, one after the other: prepare the memory (prep), compute the relevancy of its
    entries (comp), retrieve some (ret), apply them to inference (apply); some workloads lack some. When a stage is ready (the
    request has arrived, or the stage before is done) the agent gives it to the GPU or to the FPGA. What the stage reads and its
    device lacks is copied first, on the link of that direction. GPU, FPGA and both directions of the link do one job after the
    other, in the order in which the jobs were given. Relevancy on the FPGA takes retrieval with it in one fused kernel (`fused`).

    ## Action Space
    `Discrete(2)`: 0 the GPU, 1 the FPGA; with `wait=True` `Discrete(3)`, 2: decide when the next thing ends or arrives. Masked:
    the FPGA for relevancy and retrieval of an index that it cannot hold, and waiting when there is nothing to wait for. A masked
    action goes to the GPU, is counted in `invalid_actions` and costs `invalid_cost`; `invalid_action="raise"` makes it an error.

    ## Observation Space
    A flat float32 `Box`; `env.unwrapped.layout["finish"]` is the slice of a field, `layout.markdown()` prints the table. Times are
    exact, future arrivals are not shown.

    ## Rewards
    - `"latency"` (default): minus the time that all requests spent in the system since the last step, over requests times the mean
      time of one on the GPU alone, minus lambda times the energy of the stage, likewise. The return is minus `latency_relative`,
      minus lambda times `energy_relative`, less penalties.
    - `"slowdown"`: the time of each request over its own on the GPU alone.

    ## Starting State
    Time 0, at which the first request arrives. Arrivals (Poisson) and requests are drawn from the seed, whatever is decided.

    ## Episode End
    Termination when all `requests` are done.

    ## Arguments
    ```python
    import gymnasium, llmgym
    env = gymnasium.make("llmgym/MemPipe-v0", scenario="paper", load=1.2)
    envs = gymnasium.make_vec("llmgym/MemPipe-v0", num_envs=256, scenario="small")
    ```

    Args:
        scenario: `paper`, `rag`, `energy`, `h100`, `stress`, `small`, or a `Scenario` (see
            `llmgym.envs.memory.pipe.scenarios`). Each setting can be given as an argument of its own: `hardware`, `kernels`,
            `mix`, `sizes`, `batches`, `load`, `fused`, `wait`, `link`, `setup_s`, `gpu_w`, `fpga_w`, `energy_weight`, `requests`.
        reward: `latency` or `slowdown`.
        invalid_action: `penalize` or `raise`.
        invalid_cost: cost of a masked action.
        render_mode: `rgb_array` or `ansi`.

    Raises:
        UnknownName: a scenario, pair of devices, workload, kernel set or setting that does not exist.
        InvalidArgument: a value out of range; the message names it.

    ## Version History
    - v0: first version.
    """

    simulation_class = MemPipe


MemPipeVectorEnv = vector_env(MemPipeEnv)
