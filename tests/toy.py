"""A queue small enough to check by hand: one server, a coin decides whether a customer arrives in each slot.

The action is how many to serve: a `Discrete` ("number"), the first part of a `MultiDiscrete` ("pair") or a `Box`
("box").
"""

from typing import Any, NamedTuple

import numpy as np
from gymnasium.spaces import Box, Discrete, MultiDiscrete
from numpy.typing import NDArray

from llmgym.core import rng
from llmgym.core.env import LaneEnv, LaneVectorEnv
from llmgym.core.jit import kernel
from llmgym.core.lanes import Kernels, Simulation
from llmgym.core.layout import Field, Layout

LANE = np.dtype(
    [("clock_s", "f8"), ("key", "u8"), ("queue", "i4"), ("step", "i4"), ("waited", "f8")], align=True
)


class State(NamedTuple):
    lane: NDArray[Any]


class Params(NamedTuple):
    arrival: float
    horizon: int
    room: int


@kernel
def reset_lane(state: State, params: Params, lane: int, key: np.uint64) -> None:
    episode = state.lane[lane]
    episode.key, episode.clock_s, episode.queue, episode.step, episode.waited = key, 0.0, 0, 0, 0.0


@kernel
def step_lane(
    state: State, params: Params, lane: int, action: NDArray[np.float64]
) -> tuple[float, bool, bool, float]:
    """Serve up to `action` customers (0, 1 or 2); 2 costs half a customer-second more."""
    episode = state.lane[lane]
    wanted = int(action[0])
    served = min(wanted, episode.queue)
    episode.queue -= served
    cost = float(episode.queue) + (0.5 if wanted == 2 else 0.0)
    if rng.uniform(episode.key, episode.step) < params.arrival:
        episode.queue += 1
    episode.step += 1
    episode.clock_s += 1.0
    episode.waited += cost
    return -cost, episode.queue > params.room, episode.step >= params.horizon, 1.0


@kernel
def observe_lane(state: State, params: Params, lane: int, out: NDArray[np.float32]) -> None:
    out[0] = min(state.lane[lane].queue / params.room, 1.0)
    out[1] = state.lane[lane].step / params.horizon


@kernel
def mask_lane(state: State, params: Params, lane: int, out: NDArray[np.int8]) -> None:
    for k in range(out.shape[0]):
        out[k] = 1
    if out.shape[0] > 0:
        out[1] = 1 if state.lane[lane].queue > 0 else 0
        out[2] = 1 if state.lane[lane].queue > 1 else 0


@kernel
def metrics_lane(state: State, params: Params, lane: int, out: NDArray[np.float64]) -> None:
    out[0] = state.lane[lane].waited
    out[1] = state.lane[lane].clock_s


class Toy(Simulation):
    kernels = Kernels(reset_lane, step_lane, observe_lane, mask_lane, metrics_lane)

    def __init__(
        self,
        *,
        arrival: float = 0.6,
        horizon: int = 40,
        invalid_action: str = "penalize",
        action: str = "number",
    ) -> None:
        self.params = Params(arrival, horizon, 6)
        self.layout = Layout(
            [
                Field("queue.length", 1, 0.0, 1.0, "of the room", "customers waiting"),
                Field("time", 1, 0.0, 1.0, "of the horizon", "steps so far"),
            ]
        )
        self.action_space = {
            "number": Discrete(3),
            "pair": MultiDiscrete([3, 2]),  # the second part changes nothing
            "box": Box(0.0, 2.0, (1,), np.float64),
        }[action]
        self.metric_names = ("waited_s", "duration_s")
        self.raise_on_masked = invalid_action == "raise"

    def allocate(self, lanes: int) -> State:
        return State(np.zeros(lanes, LANE))

    def audit(self, state: State, lane: int) -> dict[str, float]:
        return {"clock_s": float(state.lane[lane]["clock_s"])}

    def expected_return(self, metrics: dict[str, float]) -> float:
        return -metrics["waited_s"]

    def render(self, state: State, lane: int, mode: str) -> Any:
        if mode == "ansi":
            return "#" * int(state.lane[lane]["queue"])
        return np.full((8, 8, 3), 20 * int(state.lane[lane]["queue"]), np.uint8)


class ToyEnv(LaneEnv):
    simulation_class = Toy


class ToyVectorEnv(LaneVectorEnv):
    simulation_class = Toy
