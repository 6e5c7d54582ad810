"""A small environment to evaluate: episodes of unequal length, a checksum of the world, kinds of worlds."""

from typing import Any, ClassVar, NamedTuple

import numpy as np
from gymnasium.spaces import Box, MultiDiscrete
from numpy.typing import NDArray

from llmgym.core import rng
from llmgym.core.env import LaneEnv, LaneVectorEnv
from llmgym.core.jit import kernel
from llmgym.core.lanes import Kernels, Simulation
from llmgym.core.layout import Field, Layout

LANE = np.dtype([("key", "u8"), ("step", "i4"), ("horizon", "i4"), ("missed", "f8")], align=True)


class State(NamedTuple):
    lane: NDArray[Any]


class Params(NamedTuple):
    shift: float
    broken: bool


@kernel
def reset_lane(state: State, params: Params, lane: int, key: np.uint64) -> None:
    episode = state.lane[lane]
    episode.key, episode.step, episode.missed = key, 0, 0.0
    episode.horizon = 3 + rng.integer(key, 1000, 0, 9)


@kernel
def step_lane(
    state: State, params: Params, lane: int, action: NDArray[np.float64]
) -> tuple[float, bool, bool, float]:
    """Miss a target that is drawn anew for every step; part 1 of the action only costs time."""
    episode = state.lane[lane]
    cost = abs(action[0] - rng.uniform(episode.key, episode.step))
    episode.missed += cost
    episode.step += 1
    if params.broken:
        cost = np.nan
    return -cost, episode.step >= episode.horizon, False, 1.0 + action[1]


@kernel
def observe_lane(state: State, params: Params, lane: int, out: NDArray[np.float32]) -> None:
    episode = state.lane[lane]
    out[0] = rng.uniform(episode.key, episode.step)
    out[1] = 1.0 if episode.step >= episode.horizon else 0.0


@kernel
def mask_lane(state: State, params: Params, lane: int, out: NDArray[np.int8]) -> None:
    for i in range(out.shape[0]):
        out[i] = 0 if i == 3 or state.lane[lane].step >= state.lane[lane].horizon else 1


@kernel
def metrics_lane(state: State, params: Params, lane: int, out: NDArray[np.float64]) -> None:
    episode = state.lane[lane]
    out[0] = episode.missed
    out[1] = float(episode.horizon)
    out[2] = rng.uniform(episode.key, 2000) + params.shift
    out[3] = float(rng.integer(episode.key, 3000, 0, 1))
    out[4] = np.nan if rng.uniform(episode.key, 4000) < 0.3 else episode.missed


class Worlds(Simulation):
    kernels = Kernels(reset_lane, step_lane, observe_lane, mask_lane, metrics_lane)
    headline_metrics: ClassVar[dict[str, str]] = {"missed": "min"}

    def __init__(
        self, *, action: str = "box", shift: float = 0.0, broken: bool = False, strict: bool = False
    ) -> None:
        self.params = Params(float(shift), bool(broken))
        self.layout = Layout(
            [Field("target", 1, 0.0, 1.0, "", "to hit"), Field("over", 1, 0.0, 1.0, "", "1 at the end")]
        )
        self.action_space = (
            Box(np.float32([0.25, 0.5]), np.float32([1.0, 2.0])) if action == "box" else MultiDiscrete([2, 3])
        )
        self.metric_names = ("missed", "steps", "world_checksum", "scenario", "sometimes_s")
        if action == "other":
            self.metric_names = ("missed", "steps", "world_checksum", "scenario", "never_s")
        self.raise_on_masked = strict

    def allocate(self, lanes: int) -> State:
        return State(np.zeros(lanes, LANE))

    def audit(self, state: State, lane: int) -> dict[str, float]:
        return {}

    def expected_return(self, metrics: dict[str, float]) -> float:
        return -metrics["missed"]

    def render(self, state: State, lane: int, mode: str) -> Any:
        return "" if mode == "ansi" else np.zeros((4, 4, 3), np.uint8)


class WorldsEnv(LaneEnv):
    simulation_class = Worlds


class WorldsVectorEnv(LaneVectorEnv):
    simulation_class = Worlds
