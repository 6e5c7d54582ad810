"""Toy environments for the trainers, registered on import: the queue of tests/toy.py, and one to guess
numbers in."""

from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete, MultiDiscrete
from numpy.typing import NDArray

from llmgym.core import rng
from llmgym.core.env import LaneEnv, LaneVectorEnv
from llmgym.core.jit import kernel
from llmgym.core.lanes import Kernels, Simulation
from llmgym.core.layout import Field, Layout

TOY, GUESS, RECALL = "toy/Toy-v0", "toy/Guess-v0", "toy/Recall-v0"
LANE = np.dtype([("key", "u8"), ("x", "f8"), ("y", "f8"), ("step", "i4"), ("total", "f8")], align=True)


class State(NamedTuple):
    lane: NDArray[Any]


class Params(NamedTuple):
    continuous: int
    constant: int
    horizon: int
    terminates: int


@kernel
def draw(episode: Any) -> None:
    episode.x = rng.uniform(episode.key, 2 * episode.step)
    episode.y = rng.uniform(episode.key, 2 * episode.step + 1)


@kernel
def reset_lane(state: State, params: Params, lane: int, key: np.uint64) -> None:
    episode = state.lane[lane]
    episode.key, episode.step, episode.total = key, 0, 0.0
    draw(episode)


@kernel
def step_lane(
    state: State, params: Params, lane: int, action: NDArray[np.float64]
) -> tuple[float, bool, bool, float]:
    """Right is x > 0.5 and the third of [0, 1] that y is in; continuous, 2 + 3x."""
    episode = state.lane[lane]
    if params.constant == 1:
        reward = 1.0
    elif params.continuous == 1:
        reward = -abs(action[0] - (2.0 + 3.0 * episode.x))
    else:
        reward = 0.0
        if int(action[0]) == (1 if episode.x > 0.5 else 0):
            reward += 1.0
        if int(action[1]) == int(3.0 * episode.y):
            reward += 1.0
    episode.step += 1
    episode.total += reward
    draw(episode)
    over = episode.step >= params.horizon
    return reward, over and params.terminates == 1, over and params.terminates == 0, 0.5


@kernel
def observe_lane(state: State, params: Params, lane: int, out: NDArray[np.float32]) -> None:
    episode = state.lane[lane]
    out[0], out[1] = episode.x, episode.y
    # who cannot see the time limit has to value all states alike
    out[2] = episode.step / params.horizon if params.terminates == 1 else 0.0


@kernel
def mask_lane(state: State, params: Params, lane: int, out: NDArray[np.int8]) -> None:
    if params.continuous == 0:
        for index in range(5):
            out[index] = 1
        # one of the two wrong numbers is never allowed
        out[2 + (int(3.0 * state.lane[lane].y) + 1) % 3] = 0


@kernel
def metrics_lane(state: State, params: Params, lane: int, out: NDArray[np.float64]) -> None:
    out[0] = state.lane[lane].total


class Guess(Simulation):
    kernels = Kernels(reset_lane, step_lane, observe_lane, mask_lane, metrics_lane)

    def __init__(
        self, *, kind: str = "multi", constant: bool = False, horizon: int = 8, terminates: bool = False,
        invalid_action: str = "penalize",
    ) -> None:  # fmt: skip
        self.params = Params(int(kind == "box"), int(constant), horizon, int(terminates))
        self.layout = Layout(
            [Field("number", 2, 0, 1, "", "x and y"), Field("time", 1, 0, 1, "", "steps so far")]
        )
        self.action_space: Discrete[Any] | MultiDiscrete[Any] | Box = (
            Box(-2.0, 6.1, (1,), np.float64) if kind == "box" else MultiDiscrete([2, 3])
        )
        self.metric_names = ("total",)
        self.raise_on_masked = invalid_action == "raise"

    def allocate(self, lanes: int) -> State:
        return State(np.zeros(lanes, LANE))

    def audit(self, state: State, lane: int) -> dict[str, float]:
        return {}

    def expected_return(self, metrics: dict[str, float]) -> float:
        return metrics["total"]

    def render(self, state: State, lane: int, mode: str) -> Any:
        return str(state.lane[lane]["step"])


class GuessEnv(LaneEnv):
    simulation_class = Guess


class GuessVectorEnv(LaneVectorEnv):
    simulation_class = Guess


@kernel
def recall_step(
    state: State, params: Params, lane: int, action: NDArray[np.float64]
) -> tuple[float, bool, bool, float]:
    """Right is what x was when the episode began, x > 0.5."""
    episode = state.lane[lane]
    reward = 1.0 if int(action[0]) == (1 if episode.x > 0.5 else 0) else 0.0
    episode.step += 1
    episode.total += reward
    return reward, episode.step >= params.horizon, False, 0.5


@kernel
def recall_observe(state: State, params: Params, lane: int, out: NDArray[np.float32]) -> None:
    episode = state.lane[lane]
    out[0] = (1.0 if episode.x > 0.5 else -1.0) if episode.step == 0 else 0.0


@kernel
def recall_mask(state: State, params: Params, lane: int, out: NDArray[np.int8]) -> None:
    out[:] = 1


class Recall(Guess):
    """What has to be said is shown at the beginning of an episode only."""

    kernels = Kernels(reset_lane, recall_step, recall_observe, recall_mask, metrics_lane)

    def __init__(self, *, horizon: int = 5) -> None:
        super().__init__(horizon=horizon, terminates=True)
        self.layout = Layout([Field("sign", 1, -1, 1, "", "which it is, at the beginning; then 0")])
        self.action_space = Discrete(2)


class RecallEnv(LaneEnv):
    simulation_class = Recall


class RecallVectorEnv(LaneVectorEnv):
    simulation_class = Recall


for name, single, vector in (
    (TOY, "tests.toy:ToyEnv", "tests.toy:ToyVectorEnv"),
    (GUESS, "tests.policies.toys:GuessEnv", "tests.policies.toys:GuessVectorEnv"),
    (RECALL, "tests.policies.toys:RecallEnv", "tests.policies.toys:RecallVectorEnv"),
):
    if name not in gymnasium.registry:
        gymnasium.register(name, entry_point=single, vector_entry_point=vector, disable_env_checker=True)


def mean_return(env_id: str, act: Any, lanes: int = 64, seed: int = 10_000, **kwargs: Any) -> float:
    """Mean return of one episode a lane, on seeds no training uses; `act` maps observations and masks to
    actions."""
    env: Any = gymnasium.make_vec(env_id, num_envs=lanes, autoreset_mode="SAME_STEP", **kwargs)
    obs, infos = env.reset(seed=seed)
    returns, running = np.zeros(lanes), np.ones(lanes, np.bool_)
    while running.any():
        obs, reward, terminated, truncated, infos = env.step(act(obs, infos["action_mask"]))
        returns += reward * running
        running &= ~(terminated | truncated)
    return float(returns.mean())
