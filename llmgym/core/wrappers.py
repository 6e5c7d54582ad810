"""The action mask as a part of the observation, for libraries that look for it there.

The environments give the mask in `info["action_mask"]` and by `action_masks()`. RLlib, TorchRL, PettingZoo
and Tianshou read it from a `Dict` observation instead, each under its own names:

    env = MaskInObservation(gymnasium.make("llmgym/KVQueue-v0"), keys=RLLIB)
    envs = VectorMaskInObservation(gymnasium.make_vec("llmgym/KVQueue-v0", num_envs=64), keys=PETTINGZOO)
"""

from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from llmgym.errors import InvalidArgument

RLLIB = ("observations", "action_mask")
PETTINGZOO = ("observation", "action_mask")
"""Keys of PettingZoo; TorchRL's `ActionMask(mask_key="action_mask")` expects them too."""
TIANSHOU = ("obs", "mask")


def _space(env: Any, observation: gymnasium.Space[Any], keys: tuple[str, str]) -> Dict:
    if len(keys) != 2 or not all(isinstance(key, str) for key in keys) or keys[0] == keys[1]:
        raise InvalidArgument(f"keys={keys!r}: expected the names of the observation and of the mask")
    simulation = getattr(env.unwrapped, "simulation", None)
    actions = simulation.mask_size if simulation is not None else 0
    if not actions:
        raise InvalidArgument(f"{env} has no action mask: its actions are {env.unwrapped.action_space}")
    return Dict({keys[0]: observation, keys[1]: Box(0, 1, (actions,), np.int8)})


class MaskInObservation(gymnasium.Wrapper[dict[str, Any], Any, Any, Any], RecordConstructorArgs):
    """Observations of one environment as `{observation: float32 [d], mask: int8 [actions]}`.

    Args:
        env: an environment of this package, wrapped or not.
        keys: names of the observation and of the mask: `RLLIB`, `PETTINGZOO`, `TIANSHOU` or two of your own.

    Raises:
        InvalidArgument: the environment has no mask, or `keys` are not two different names.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], keys: tuple[str, str] = PETTINGZOO) -> None:
        if not isinstance(env, gymnasium.Env):
            raise InvalidArgument(
                f"env={env!r}: expected a single environment; many lanes take VectorMaskInObservation"
            )
        RecordConstructorArgs.__init__(self, keys=keys)
        gymnasium.Wrapper.__init__(self, env)
        self.keys = keys
        self.observation_space = _space(env, env.observation_space, keys)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start an episode; see the environment."""
        obs, info = self.env.reset(seed=seed, options=options)
        return self._join(obs, info), info

    def step(self, action: Any) -> tuple[dict[str, Any], Any, bool, bool, dict[str, Any]]:
        """Take one decision; see the environment."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        return self._join(obs, info), reward, terminated, truncated, info

    def _join(self, obs: Any, info: dict[str, Any]) -> dict[str, Any]:
        return {self.keys[0]: obs, self.keys[1]: info["action_mask"].copy()}

    def action_masks(self) -> NDArray[np.bool_]:
        """Which actions are allowed now, bool [actions]."""
        masks: NDArray[np.bool_] = self.env.get_wrapper_attr("action_masks")()
        return masks


class VectorMaskInObservation(VectorWrapper):  # type: ignore[type-arg]  # gymnasium 1.2 knows no type arguments
    """Observations of a vector environment as `{observation: float32 [N, d], mask: int8 [N, actions]}`.

    In `SAME_STEP` mode `info["final_obs"]` becomes an object array [N] with such a dict for each episode that
    ended and None elsewhere, the form gymnasium's `SyncVectorEnv` gives to `Dict` observations.

    Args:
        envs: a native vector environment of this package, wrapped or not.
        keys: see `MaskInObservation`.

    Raises:
        InvalidArgument: the environment has no mask, or `keys` are not two different names.
    """

    def __init__(self, envs: VectorEnv[Any, Any, Any], keys: tuple[str, str] = PETTINGZOO) -> None:
        if not isinstance(envs, VectorEnv):
            raise InvalidArgument(
                f"envs={envs!r}: expected a vector environment; a single one takes MaskInObservation"
            )
        super().__init__(envs)
        self.keys = keys
        self.single_observation_space = _space(envs, envs.single_observation_space, keys)
        self.observation_space = batch_space(self.single_observation_space, envs.num_envs)

    @property
    def autoreset_mode(self) -> AutoresetMode:
        """That of the lanes: TorchRL looks for it here, and gymnasium's wrappers do not pass it on."""
        mode: AutoresetMode = self.env.metadata["autoreset_mode"]
        return mode

    def reset(
        self, *, seed: Any = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start episodes; see the environment."""
        obs, infos = self.env.reset(seed=seed, options=options)
        return self._join(obs, infos["action_mask"]), infos

    def step(
        self, actions: NDArray[Any]
    ) -> tuple[dict[str, Any], NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]:
        """Take one decision in every lane; see the environment."""
        obs, rewards, terminated, truncated, infos = self.env.step(actions)
        if "final_obs" in infos:
            final: NDArray[np.object_] = np.full(self.num_envs, None, object)
            masks = infos["final_info"]["action_mask"]
            for lane in np.flatnonzero(infos["_final_obs"]):
                final[lane] = self._join(infos["final_obs"][lane], masks[lane])
            infos["final_obs"] = final
        return self._join(obs, infos["action_mask"]), rewards, terminated, truncated, infos

    def _join(self, obs: NDArray[np.float32], mask: NDArray[np.int8]) -> dict[str, Any]:
        copied: Any = mask.copy() if isinstance(mask, np.ndarray) else mask.clone()  # a tensor, on a GPU
        return {self.keys[0]: obs, self.keys[1]: copied}

    def action_masks(self) -> NDArray[np.bool_]:
        """Which actions are allowed now, bool [lanes, actions]."""
        masks: NDArray[np.bool_] = self.env.unwrapped.action_masks()  # type: ignore[attr-defined]
        return masks
