"""MemPipe: requests of memory pipelines that queue for a GPU, an FPGA and the link between them, placed stage by stage.

He, Ma, Sun and Cong, "Understand and Accelerate Memory Processing Pipeline for Large Language Model Inference", ICML 2026 (arXiv
2603.29002), map stages to devices once and for all, and measure one request at a time. Here requests meet: the device that is
faster for a stage may be the one that is busy.
"""

from dataclasses import asdict
from typing import Any, ClassVar

import numpy as np
from gymnasium.spaces import Discrete

from llmgym.core.checks import choice, number
from llmgym.core.env import LaneEnv, LaneVectorEnv
from llmgym.core.lanes import Simulation
from llmgym.core.layout import Field, Layout
from llmgym.envs.memory.costs import mixture
from llmgym.envs.memory.devices import pcie
from llmgym.envs.memory.law import FPGA, GPU
from llmgym.envs.memory.pipe.kernels import KERNELS
from llmgym.envs.memory.pipe.scenarios import REWARDS, Scenario, resolve_scenario
from llmgym.envs.memory.pipe.state import ALL_PLACED, LANE, METRICS, NUMBER, REQUEST, Params, State
from llmgym.envs.memory.published import NAMES
from llmgym.envs.memory.resources import RESOURCE


class MemPipe(Simulation):
    """The simulation behind `llmgym/MemPipe-v0`; see `MemPipeEnv` for the arguments.

    Attributes:
        scenario: the settings.
        mean_s: mean time of a request on the GPU alone, s.
        rate_rps: arrivals a second.
    """

    kernels = KERNELS
    metric_names = METRICS
    headline_metrics = {  # noqa: RUF012
        "latency_relative": "min",
        "e2e_p99_s": "min",
        "slowdown_mean": "min",
        "energy_mean_j": "min",
        "gpu_utilization": "max",
        "offloaded_share": "max",
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
        chosen = resolve_scenario(scenario, settings)
        choice("reward", reward, REWARDS)
        choice("invalid_action", invalid_action, ("penalize", "raise"))
        number("invalid_cost", invalid_cost, zero=True)
        cells, running = mixture(
            chosen.hardware, chosen.mix, chosen.sizes, chosen.batches, kernels=chosen.kernels, by_load=True
        )
        cells["power_w"][:, GPU], cells["power_w"][:, FPGA] = chosen.gpu_w, chosen.fpga_w
        shares = np.diff(running, prepend=0.0)
        self.mean_s = float(shares @ cells["gpu_s"])
        self.rate_rps = chosen.load / self.mean_s
        cells["gpu_j"] = chosen.gpu_w * cells["gpu_s"]
        numbers = np.zeros(1, NUMBER)
        record = numbers[0]
        for name in ("requests", "fused", "wait", "load", "energy_weight"):
            record[name] = getattr(chosen, name)
        record["slowdown"], record["rate"], record["mean_s"] = REWARDS[reward], self.rate_rps, self.mean_s
        record["mean_j"], record["invalid_cost"] = chosen.gpu_w * self.mean_s, invalid_cost
        self.scenario = chosen
        self.raise_on_masked = invalid_action == "raise"
        self.layout = _layout()
        self.action_space: Discrete[Any] = Discrete(3 if chosen.wait else 2)
        self.params = Params(numbers, cells, running, pcie(chosen.link, chosen.setup_s))

    def allocate(self, lanes: int) -> State:
        """New arrays for this number of lanes."""
        n = self.scenario.requests
        return State(
            np.zeros(lanes, LANE),
            np.zeros((lanes, n), REQUEST),
            np.zeros((lanes, 4), RESOURCE),
            np.full((lanes, n, 4, 4), -1.0),
            np.zeros((lanes, n), np.float32),
        )

    hidden: ClassVar[dict[str, str]] = {
        "lane.key": "never: it is what the episode was drawn from",
        "lane.checksum": "at the end of the episode",
        "request.arrival_s": "on arrival",
        "request.cell": "on arrival",
        "request.stage": "on arrival",
        "request.weight": "on arrival",
        "request.ready_s": "on arrival; for a request that waits, at the next end or arrival",
    }

    def redraw(self, state: State, lane: int, key: int) -> None:
        """Other requests at other times from now on; how many an episode has is a setting. See `Simulation.redraw`."""
        episode, requests, span = state.lane[lane], state.request[lane], state.span[lane]
        other = self.world(key)
        drawn, clock = other.request[0], episode["clock"]
        n = int(np.searchsorted(requests["arrival_s"], clock, side="right"))
        inside, future = requests[:n], requests[n:]
        before = future["arrival_s"].copy()
        future[:] = drawn[n:]
        # gaps are exponential: from now to the next arrival as from one arrival to the next
        future["arrival_s"] += clock - drawn["arrival_s"][n - 1]
        future["ready_s"] = future["arrival_s"]
        # who waits decides at the next end of a job, or at the next arrival, which is another one now
        waits = inside["stage"] < ALL_PLACED
        waits &= (inside["ready_s"] > clock) & (span[:n, :, 3].max(axis=1) <= clock)
        ends = np.concatenate([state.resource["until_s"][lane], inside["ready_s"][~waits]])
        ready = inside["ready_s"][waits]
        ready = np.where(np.isin(ready, before), ends[ends > clock].min(initial=np.inf), ready)
        inside["ready_s"][waits] = np.minimum(ready, future["arrival_s"].min(initial=np.inf))
        episode["key"] = other.lane[0]["key"]
        episode["checksum"] = float((requests["arrival_s"] + requests["cell"]).sum())

    def audit(self, state: State, lane: int) -> dict[str, float]:
        """Recount requests and stages from their records, and busy time from the spans of the stages."""
        episode, requests = state.lane[lane], state.request[lane]
        clock = float(episode["clock"])
        arrived = requests["arrival_s"] <= clock
        placed_all = requests["stage"] == ALL_PLACED
        done = placed_all & (requests["ready_s"] <= clock)
        running = arrived & ~done & (requests["device"] >= 0)
        span = state.span[lane]
        ran = span[:, :, 3] >= 0.0
        kernels = float((span[:, :, 3] - span[:, :, 2])[ran].sum())
        busy = float(state.resource["busy_s"][lane, :2].sum())
        return {
            "arrived": float(arrived.sum()),
            "waiting": float((arrived & ~done & ~running).sum()),
            "running": float(running.sum()),
            "done": float(done.sum()),
            "clock_s": clock,
            "energy_j": float(episode["joules"]),
            "work_asked": busy,
            "work_done": kernels,
            "work_left": 0.0,
            "stages": float(episode["stages"]),
            "offloaded": float(episode["offloaded"]),
            "offloaded_counted": float(sum(int(p).bit_count() for p in self._real(requests))),
        }

    def _real(self, requests: Any) -> Any:
        """Bits of stages on the FPGA, without empty ones that lie between."""
        return requests["placed"] & ~self.params.cells["empty"][requests["cell"]]

    def expected_return(self, metrics: dict[str, float]) -> float:
        """Minus the mean time in the system in its unit, minus the weighted mean energy, less penalties."""
        energy = self.scenario.energy_weight * metrics["energy_relative"]
        return -metrics["latency_relative"] - energy - metrics["penalty"]

    def render(self, state: State, lane: int, mode: str) -> Any:
        """A picture or a text of one lane."""
        from llmgym.envs.memory.pipe.view import picture, text

        if mode == "ansi":
            return text(self.scenario, self.params, state, lane)
        return picture(self.scenario, self.params, self.mean_s, state, lane)

    def settings(self) -> dict[str, Any]:
        """The scenario, for reports."""
        return asdict(self.scenario) | {"rate_rps": self.rate_rps, "mean_s": self.mean_s}


def _layout() -> Layout:
    own = "x / (1 + x), x in mean requests"
    crowd = "n / (n + 8)"
    return Layout(
        [
            Field("workload", len(NAMES), 0, 1, "one of", ", ".join(NAMES)),
            Field("stage", 4, 0, 1, "one of", "prep, comp, ret, apply"),
            Field("size", 1, 0, 1, "index / 9", "tokens or documents, in octaves"),
            Field("batch", 1, 0, 1, "index / 5", "1, 2, 4, 8, 16, 32"),
            Field("intensity", 1, 0, 1, "log10(1 + FLOP/B) / 3.01", "arithmetic intensity of the stage"),
            Field(
                "kernel",
                2,
                0,
                1,
                own,
                "time of the stage on GPU and FPGA; of comp, where it can be fused, with ret",
            ),
            Field("copy", 2, 0, 1, own, "copies that it would need first"),
            Field("finish", 2, 0, 1, own, "how long until it would be done there, queues included"),
            Field("rest", 1, 0, 1, own, "stages of the request after it, on the GPU"),
            Field("data", 2, 0, 1, "bit", "what the stage before wrote is on the FPGA; what prep read is"),
            Field("age", 1, 0, 1, own, "time since the request arrived"),
            Field("backlog", 4, 0, 1, own, "work that GPU, FPGA, link down and link up still have"),
            Field(
                "queue", 2, 0, 1, crowd, "requests whose stage is on the GPU, on the FPGA, or waits for it"
            ),
            Field("inside", 1, 0, 1, crowd, "requests in the system"),
            Field("load", 1, 0, 1, "x / (1 + x)", "arrivals over what the GPU alone could serve"),
            Field("progress", 1, 0, 1, "episode", "requests that are done, in order"),
        ]
    )


class MemPipeEnv(LaneEnv):
    """Requests of memory pipelines that queue for a GPU, an FPGA and their link, placed stage by stage.

    ## Description
    Requests arrive at random. Each has four stages, one after the other: prepare the memory (prep), compute the relevancy of
    its entries (comp), retrieve some (ret), apply them to inference (apply); some workloads lack some. When a stage is
    ready (the request has arrived, or the stage before is done) the agent gives it to the GPU or to the FPGA. What it reads and its
    device lacks is copied first, on the link of that direction. GPU, FPGA and both directions do one job after the other in the
    order in which they were given. Relevancy on the FPGA takes retrieval with it in one fused kernel (`fused`).

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


class MemPipeVectorEnv(LaneVectorEnv):
    """Many lanes of `MemPipeEnv`; see `llmgym.core.env.LaneVectorEnv` for the arguments of every vector environment."""

    simulation_class = MemPipe
