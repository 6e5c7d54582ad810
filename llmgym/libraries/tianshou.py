"""Native lanes as a vector environment of Tianshou 2.

    from llmgym.libraries.tianshou import TianshouVectorEnv
    envs = gymnasium.make_vec("llmgym:llmgym/KVQueue-v1", 64, autoreset_mode="DISABLED")
    collector = Collector(algorithm, TianshouVectorEnv(envs), VectorReplayBuffer(20_000, 64))

Tianshou resets lanes itself, by number, and steps some of them alone; gymnasium's vector environments know neither.
"""

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from llmgym.core.env import LaneVectorEnv
from llmgym.core.lanes import HOLD
from llmgym.core.wrappers import TIANSHOU, VectorMaskInObservation
from llmgym.errors import InvalidArgument, MissingExtra, ResetNeeded

try:
    from tianshou.env import BaseVectorEnv
except ImportError as error:
    raise MissingExtra("TianshouVectorEnv", "tianshou") from error

Which = int | Sequence[int] | NDArray[Any] | None


class TianshouVectorEnv(BaseVectorEnv):
    """A `LaneVectorEnv` as Tianshou's collectors want it; the same bits as `DummyVectorEnv` of single environments.

    Observations are dicts, `{"obs": float32 [d], "mask": int8 [actions]}`, in an object array [lanes], or with `masks=False` one
    float32 array [lanes, d]. The family of DQN reads the mask; PPO and the others do not.

    Args:
        env: lanes on the CPU, in `DISABLED` mode.
        masks: whether observations hold the mask.

    Raises:
        InvalidArgument: it is something else, in another mode, or has no masks where these are asked for.
    """

    def __init__(self, env: LaneVectorEnv, masks: bool = True) -> None:
        if (
            not isinstance(env, LaneVectorEnv)
            or env.device != "cpu"
            or env.autoreset_mode != AutoresetMode.DISABLED
        ):
            raise InvalidArgument(
                f'env={env}: TianshouVectorEnv takes gymnasium.make_vec(id, num_envs, autoreset_mode="DISABLED") on the cpu'
            )
        self.env, self.masks = env, masks
        self._space: gymnasium.Space[Any] = env.single_observation_space
        if masks:
            self._space = VectorMaskInObservation(env, TIANSHOU).single_observation_space
        self.env_num = self.wait_num = env.num_envs
        self.timeout, self.is_async, self.is_closed = None, False, False
        self.waiting_id: list[int] = []
        self.ready_id = list(range(self.env_num))

    def reset(self, env_id: Which = None, **kwargs: Any) -> tuple[NDArray[Any], NDArray[Any]]:
        """Start an episode in the lanes of these numbers, or in all.

        Args:
            env_id: numbers of lanes; None: all.
            **kwargs: `seed`, a number that each of them gets, as in Tianshou; no other.

        Returns:
            Observations and infos (an object array of dicts), a row for each lane asked for.
        """
        self._assert_is_not_closed()
        lanes, seed = self._numbers(env_id), kwargs.pop("seed", None)
        if kwargs.pop("options", None) or kwargs:
            raise InvalidArgument(f"reset of lanes takes seed alone, not {sorted(kwargs) or ['options']}")
        options = None
        if len(lanes) < self.env_num:
            which = np.zeros(self.env_num, np.bool_)
            which[lanes] = True
            options = {"reset_mask": which}
        obs, infos = self.env.reset(seed=None if seed is None else [seed] * self.env_num, options=options)
        return self._observations(obs, infos["action_mask"], lanes), self._infos(infos, lanes)

    def step(
        self, action: Any, id: Which = None
    ) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.bool_], NDArray[np.bool_], NDArray[Any]]:
        """Take one decision in the lanes of these numbers, or in all; the others stay as they are.

        Args:
            action: an action for each lane asked for.
            id: numbers of lanes; None: all.

        Returns:
            Observations, rewards, terminated, truncated and infos, a row for each lane asked for. Where an episode ended, the
            observation is its last one.

        Raises:
            ResetNeeded: an episode of these lanes has ended, or none has begun.
        """
        self._assert_is_not_closed()
        lanes, inner = self._numbers(id), self.env.lanes
        buffers = inner.buffers
        if buffers.ended[lanes].any():
            raise ResetNeeded(
                f"lanes {lanes[buffers.ended[lanes]].tolist()} have no running episode: reset them"
            )
        actions = np.zeros(
            (self.env_num, *(self.env.single_action_space.shape or ())), np.asarray(action).dtype
        )
        actions[lanes] = action
        ended = buffers.ended.copy()
        held = np.ones(self.env_num, np.bool_)
        held[lanes] = False
        buffers.ended[held] = True  # before actions are checked: none is checked where nothing runs
        try:
            inner.load_actions(actions)
            inner.step(HOLD)
        finally:
            buffers.ended[held] = ended[held]
        infos = {"action_mask": buffers.mask, "dt": buffers.dt}
        return (
            self._observations(buffers.obs, buffers.mask, lanes),
            buffers.reward[lanes],
            buffers.terminated[lanes],
            buffers.truncated[lanes],
            self._infos(infos, lanes, stepped=True),
        )

    def _numbers(self, which: Which) -> NDArray[np.int64]:
        return np.arange(self.env_num) if which is None else np.atleast_1d(np.asarray(which, np.int64))

    def _observations(self, obs: NDArray[Any], mask: NDArray[Any], lanes: NDArray[np.int64]) -> NDArray[Any]:
        rows = obs[lanes]
        if not self.masks:
            return rows
        out: NDArray[np.object_] = np.empty(len(lanes), object)
        for i, lane in enumerate(lanes):
            out[i] = {TIANSHOU[0]: rows[i], TIANSHOU[1]: mask[lane].copy()}
        return out

    def _infos(
        self, infos: dict[str, Any], lanes: NDArray[np.int64], stepped: bool = False
    ) -> NDArray[np.object_]:
        out: NDArray[np.object_] = np.empty(len(lanes), object)
        for i, lane in enumerate(lanes.tolist()):
            out[i] = {"action_mask": infos["action_mask"][lane].copy(), "dt": float(infos["dt"][lane])}
            if stepped:
                out[i]["env_id"] = lane
                if self.env.lanes.buffers.ended[lane]:
                    out[i]["metrics"] = self.env.lanes.metrics(lane)
        return out

    def seed(self, seed: int | list[int] | None = None) -> list[list[int] | None]:
        """Seed the lanes, lane i with `seed + i`, which begins an episode in each, as in Tianshou.

        Args:
            seed: a number, one for each lane, or None: go on.

        Returns:
            The seed of each lane, in a list of its own.
        """
        self._assert_is_not_closed()
        self.env.reset(seed=seed)
        seeds = [seed + i for i in range(self.env_num)] if isinstance(seed, int) else seed
        return [None] * self.env_num if seeds is None else [[one] for one in seeds]

    def get_env_attr(self, key: str, id: Which = None) -> list[Any]:
        """An attribute of single environments, once for each lane asked for."""
        spaces = {"observation_space": self._space, "action_space": self.env.single_action_space}
        return [spaces[key] if key in spaces else getattr(self.env, key)] * len(self._numbers(id))

    def set_env_attr(self, key: str, value: Any, id: Which = None) -> None:
        """Set an attribute of the environment, which all lanes share. Raises `InvalidArgument` if lanes are left out."""
        if len(self._numbers(id)) != self.env_num:
            raise InvalidArgument(f"set_env_attr({key!r}, id={id!r}): lanes share attributes; leave id out")
        setattr(self.env, key, value)

    def render(self, **kwargs: Any) -> list[Any]:
        """A picture or text of each lane, as `render_mode` says."""
        self._assert_is_not_closed()
        return list(self.env.render() or [None] * self.env_num)

    def close(self) -> None:
        """Release the lanes."""
        self._assert_is_not_closed()
        self.env.close()
        self.is_closed = True
