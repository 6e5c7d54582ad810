"""MemPlace: which of the four stages of a memory pipeline run on the FPGA, request by request.

He, Ma, Sun and Cong, "Understand and Accelerate Memory Processing Pipeline for Large Language Model Inference", ICML 2026 (arXiv
2603.29002), place the stages of each workload once and for all. Here a policy does it for each request.
"""

import math
from typing import Any, ClassVar

import numpy as np
from gymnasium.spaces import Discrete

from llmgym.core.env import LaneEnv, vector_env
from llmgym.core.lanes import Simulation
from llmgym.core.layout import Layout
from llmgym.core.settings import settled
from llmgym.core.statistics import counted
from llmgym.envs.memory.costs import mixture
from llmgym.envs.memory.devices import pcie
from llmgym.envs.memory.place.kernels import KERNELS
from llmgym.envs.memory.place.scenarios import SCENARIOS, Scenario
from llmgym.envs.memory.place.state import Config, Episode, Metrics, Observation, Params, Past, State
from llmgym.envs.memory.placement import PLACEMENTS


class MemPlace(Simulation):
    """The simulation behind `llmgym/MemPlace-v0`; `MemPlaceEnv` lists the arguments."""

    kernels = KERNELS
    metrics = Metrics
    layout = Layout(head=Observation)
    action_space = Discrete(PLACEMENTS)
    view = "llmgym.envs.memory.place.view"
    hidden: ClassVar[dict[str, str]] = {
        "lane.key": "never: requests, links and errors to come",
        "lane.checksum": "at the end of the episode",
        "error": "when the request has run: the reward tells of those that mattered",
    }
    shown = frozenset({"lane.cell", "lane.scale"})

    def __init__(
        self,
        *,
        scenario: str | Scenario = "small",
        invalid_action: str = "penalize",
        invalid_cost: float = 1.0,
        **settings: Any,
    ) -> None:
        super().__init__(invalid_action=invalid_action, invalid_cost=invalid_cost)
        chosen: Scenario = settled(scenario, SCENARIOS, settings, "MemPlace", ("about",))
        cells, running = mixture(
            chosen.hardware,
            chosen.mix,
            chosen.sizes,
            chosen.batches,
            kernels=chosen.kernels,
            copied_index=chosen.index == "copied",
        )
        low, high = chosen.link
        config = Config.pack(
            chosen, invalid_cost=self.invalid_cost, link_low=math.log2(low), link_high=math.log2(high)
        )
        self.scenario = chosen
        self.params = Params(config, cells, running, pcie(1.0, chosen.setup_s))

    def allocate(self, lanes: int) -> State:
        """New arrays for this number of lanes."""
        return State(Episode.zeros(lanes), np.ones((lanes, 2, 4)), Past.zeros(lanes, self.scenario.requests))

    def redraw(self, state: State, lane: int, key: int) -> None:
        """Draw anew the errors of the times predicted for the present request, and all requests after it.

        Args:
            state: arrays of all lanes.
            lane: the lane that gets another future.
            key: seeds the other world, 0 to 2**63 - 1.
        """
        episode, error = state.lane[lane], state.error[lane]
        if episode["request"] < self.scenario.requests:  # the last one has run
            before = error.sum()
            error[:] = np.exp(self.scenario.noise * np.random.default_rng(key).standard_normal(error.shape))
            episode["checksum"] += error.sum() - before
        episode["key"] = key

    def expected_return(self, metrics: dict[str, float]) -> float:
        """Requests times the logarithm of the mean speed-up (and of the mean saving of energy by its weight), less penalties."""
        worth = math.log(metrics["speedup_geomean"])
        worth += self.scenario.energy_weight * math.log(metrics["energy_saving_geomean"])
        return metrics["requests"] * counted(worth) - metrics["penalty"]


class MemPlaceEnv(LaneEnv):
    """Which of the four stages of a memory pipeline run on the FPGA, request by request.

    ## Description
    Sparse attention, retrieval and compressed contexts all process a memory in four stages: prepare it (prep), compute the
    relevancy of its entries (comp), retrieve some (ret), apply them to inference (apply). A GPU and an FPGA are joined by a link. A
    request has a workload, a size (tokens or documents) and a batch. Its stages run one after the other, each on the device that
    the agent says. What a stage reads and its device lacks is copied first. Relevancy and retrieval on the FPGA can be one fused
    kernel. Requests do not meet: every step is a decision of its own.

    ## Action Space
    `Discrete(17)`: bit i of actions 0 to 15 puts stage i on the FPGA (0 is the GPU alone, 6 the paper's general mapping); 16 is
    that mapping with a fused kernel. Masked: stages that are empty on the FPGA, and relevancy or retrieval there where the index
    does not fit. A masked action runs the request on the GPU alone, is counted in `invalid_actions` and costs `invalid_cost`;
    `invalid_action="raise"` makes it an error.

    ## Observation Space
    A flat float32 `Box`; `env.unwrapped.layout["gpu"]` is the slice of a field, `layout.markdown()` prints the table. Times are
    predictions; with `noise` the true ones differ, and only the reward tells.

    ## Rewards
    log(T_0 / T) + lambda log(E_0 / E), with T_0 and E_0 what the request would have taken on the GPU alone. The return is the
    number of requests times the log of `speedup_geomean` plus lambda times that of `energy_saving_geomean`, less penalties.

    ## Starting State
    The first request. Requests, links and errors are drawn from the seed, whatever is decided.

    ## Episode End
    Termination after `requests` requests.

    ## Arguments
    ```python
    import gymnasium, llmgym
    env = gymnasium.make("llmgym/MemPlace-v0", scenario="paper", energy_weight=0.5)
    envs = gymnasium.make_vec("llmgym/MemPlace-v0", num_envs=256, scenario="small")
    ```

    Args:
        scenario: `paper`, `paged`, `energy`, `h100`, `stress`, `small`, or a `Scenario` (see
            `llmgym.envs.memory.place.scenarios`). Each setting can be given as an argument of its own: `hardware`, `kernels`,
            `mix`, `sizes`, `batches`, `index`, `link`, `setup_s`, `noise`, `energy_weight`, `requests`.
        invalid_action: `penalize` or `raise`.
        invalid_cost: cost of a masked action.
        render_mode: `rgb_array` or `ansi`.

    Raises:
        UnknownName: a scenario, pair of devices, workload, kernel set or setting that does not exist.
        InvalidArgument: a value out of range; the message names it.

    ## Version History
    - v0: first version.
    """

    simulation_class = MemPlace


MemPlaceVectorEnv = vector_env(MemPlaceEnv)
