"""MemPlace: which of the four stages of a memory pipeline run on the FPGA, request by request.

He, Ma, Sun and Cong, "Understand and Accelerate Memory Processing Pipeline for Large Language Model Inference", ICML 2026 (arXiv
2603.29002), place the stages of each workload once and for all. Here a policy does it for each request.
"""

import math
from dataclasses import asdict
from typing import Any, ClassVar

import numpy as np
from gymnasium.spaces import Discrete

from llmgym.core.checks import choice, number
from llmgym.core.env import LaneEnv, LaneVectorEnv
from llmgym.core.lanes import Simulation
from llmgym.core.layout import Field, Layout
from llmgym.core.statistics import counted
from llmgym.envs.memory.costs import mixture
from llmgym.envs.memory.devices import pcie
from llmgym.envs.memory.place.kernels import KERNELS
from llmgym.envs.memory.place.scenarios import Scenario, resolve_scenario
from llmgym.envs.memory.place.state import EDGES, LANE, METRICS, NUMBER, Params, State
from llmgym.envs.memory.placement import PLACEMENTS
from llmgym.envs.memory.published import NAMES


class MemPlace(Simulation):
    """The simulation behind `llmgym/MemPlace-v0`; see `MemPlaceEnv` for the arguments.

    Attributes:
        scenario: the settings.
    """

    kernels = KERNELS
    metric_names = METRICS
    headline_metrics = {  # noqa: RUF012
        "speedup_geomean": "max",
        "energy_saving_geomean": "max",
        "regret_mean": "min",
        "optimal_share": "max",
        "copy_share": "min",
    }

    def __init__(
        self,
        *,
        scenario: str | Scenario = "small",
        invalid_action: str = "penalize",
        invalid_cost: float = 1.0,
        **settings: Any,
    ) -> None:
        chosen = resolve_scenario(scenario, settings)
        choice("invalid_action", invalid_action, ("penalize", "raise"))
        number("invalid_cost", invalid_cost, zero=True)
        cells, running = mixture(
            chosen.hardware,
            chosen.mix,
            chosen.sizes,
            chosen.batches,
            kernels=chosen.kernels,
            copied_index=chosen.index == "copied",
        )
        numbers = np.zeros(1, NUMBER)
        record = numbers[0]
        for name in ("requests", "noise", "energy_weight"):
            record[name] = getattr(chosen, name)
        record["invalid_cost"] = invalid_cost
        record["link_low"], record["link_high"] = (math.log2(scale) for scale in chosen.link)
        self.scenario = chosen
        self.raise_on_masked = invalid_action == "raise"
        self.layout = _layout()
        self.action_space: Discrete[Any] = Discrete(PLACEMENTS)
        self.params = Params(numbers, cells, running, pcie(1.0, chosen.setup_s))

    def allocate(self, lanes: int) -> State:
        """New arrays for this number of lanes."""
        return State(
            np.zeros(lanes, LANE),
            np.ones((lanes, 2, 4)),
            np.zeros((lanes, self.scenario.requests, 3), np.float32),
        )

    hidden: ClassVar[dict[str, str]] = {
        "lane.key": "never: requests, links and errors to come",
        "lane.checksum": "at the end of the episode",
        "error": "when the request has run: the reward tells of those that mattered",
    }
    shown: ClassVar[frozenset[str]] = frozenset({"lane.cell", "lane.scale"})

    def redraw(self, state: State, lane: int, key: int) -> None:
        """Other errors of the times predicted for the present request, and other requests after it; see `Simulation.redraw`."""
        episode, error = state.lane[lane], state.error[lane]
        if episode["request"] < self.scenario.requests:  # the last one has run
            before = error.sum()
            error[:] = np.exp(self.scenario.noise * np.random.default_rng(key).standard_normal(error.shape))
            episode["checksum"] += error.sum() - before
        episode["key"] = key

    def audit(self, state: State, lane: int) -> dict[str, float]:
        """Recount requests from the history; what is copied arrives within the step."""
        episode = state.lane[lane]
        waiting = float(episode["request"] < self.scenario.requests)
        return {
            "arrived": episode["request"] + waiting,
            "waiting": waiting,
            "running": 0.0,
            "done": float(episode["request"]),
            "clock_s": float(episode["clock"]),
            "energy_j": float(episode["joules"]),
            "bytes_sent": float(episode["moved"]),
            "bytes_received": float(episode["moved"]),
            "bytes_in_flight": 0.0,
            "work_asked": float(self.scenario.requests),
            "work_done": float(np.count_nonzero(state.history[lane, :, 2])),
            "work_left": float(self.scenario.requests - episode["request"]),
        }

    def expected_return(self, metrics: dict[str, float]) -> float:
        """Requests times the logarithm of the mean speed-up (and of the mean saving of energy by its weight), less penalties."""
        worth = math.log(metrics["speedup_geomean"])
        worth += self.scenario.energy_weight * math.log(metrics["energy_saving_geomean"])
        return metrics["requests"] * counted(worth) - metrics["penalty"]

    def render(self, state: State, lane: int, mode: str) -> Any:
        """A picture or a text of one lane."""
        from llmgym.envs.memory.place.view import picture, text

        return (picture if mode == "rgb_array" else text)(self.scenario, self.params, state, lane)

    def settings(self) -> dict[str, Any]:
        """The scenario, for reports."""
        return asdict(self.scenario)


def _layout() -> Layout:
    return Layout(
        [
            Field("workload", len(NAMES), 0, 1, "one of", ", ".join(NAMES)),
            Field("size", 1, 0, 1, "index / 9", "tokens or documents, in octaves"),
            Field("batch", 1, 0, 1, "index / 5", "1, 2, 4, 8, 16, 32"),
            Field("time", 1, 0, 1, "(log10 s + 5) / 8", "predicted time on the GPU alone, T"),
            Field(
                "fused", 1, 0, 1, "x / (T + x)", "predicted time of relevancy and retrieval fused on the FPGA"
            ),
            Field("link", 1, -1, 1, "log2 / 10", "bandwidth over the published one"),
            Field("setup", 1, 0, 1, "x / (T + x)", "fixed time of a copy"),
            Field("progress", 1, 0, 1, "episode", "requests placed"),
            Field(
                "intensity",
                4,
                0,
                1,
                "log10(1 + FLOP/B) / 3.01",
                "arithmetic intensity of prep, comp, ret, apply",
            ),
            Field("gpu", 4, 0, 1, "T", "predicted time of each stage on the GPU"),
            Field("fpga", 4, 0, 1, "x / (T + x)", "predicted time of each on the FPGA"),
            Field(
                "bytes",
                EDGES,
                0,
                1,
                "log2(1 + B) / 40",
                "raw memory that prep reads; index to and from the FPGA; query; scores; indices; selected raw memory",
            ),
        ]
    )


class MemPlaceEnv(LaneEnv):
    """Which of the four stages of a memory pipeline run on the FPGA, request by request.

    ## Description
    Sparse attention, retrieval and compressed contexts all process a memory in four stages: prepare it (prep), compute the
    relevancy of its entries (comp), retrieve some (ret), apply them to inference (apply). A GPU and an FPGA are joined by a link. A
    request has a workload, a size (tokens, or documents) and a batch; its stages run one after the other, each on the
    device that the agent says, and what a stage reads and its device lacks is copied first. Relevancy and retrieval on the FPGA
    can be one fused kernel. Requests do not meet: every step is a decision of its own.

    ## Action Space
    `Discrete(17)`: bit i of actions 0 to 15 puts stage i on the FPGA (0 is the GPU alone, 6 the paper's general mapping); 16 is
    that mapping with a fused kernel. Masked: stages that are empty on the FPGA, and relevancy or retrieval there where the index
    does not fit. A masked action runs the request on the GPU alone, is counted in `invalid_actions` and costs
    `invalid_cost`; `invalid_action="raise"` makes it an error.

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


class MemPlaceVectorEnv(LaneVectorEnv):
    """Many lanes of `MemPlaceEnv`; see `llmgym.core.env.LaneVectorEnv` for the arguments of every vector environment."""

    simulation_class = MemPlace
