"""The vector environment whose lanes live on a GPU: `gymnasium.make_vec(id, num_envs=131072, device="cuda")`.

The contract is that of `LaneVectorEnv`: seeds, autoreset modes, masks, metrics, `final_obs`, `reset_mask`. Where it differs, it
does so because nothing here waits for the device:

- Arrays are tensors. Infos always have `metrics` (in `SAME_STEP` mode `final_obs` and `final_info`), with `_metrics` all False
  where no episode ended.
- An action outside the space, or a masked one under `invalid_action="raise"`, leaves its lane where it is; the error comes with
  one of the next calls.
- With `copy=False` the metrics of lanes in which no episode ended are those of the episode that ended last, instead of 0.
"""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode

from llmgym.core import lanes as core
from llmgym.core.checks import choice, whole
from llmgym.core.device import Card, DeviceLanes
from llmgym.core.env import LaneVectorEnv, autoreset_mode_of, check_render_mode
from llmgym.errors import InvalidArgument, ResetNeeded


class DeviceVectorEnv(LaneVectorEnv):
    """Many lanes on a device as a `gymnasium.vector.VectorEnv`; see this module.

    Args:
        num_envs: number of lanes.
        autoreset_mode: as `LaneVectorEnv` takes it.
        copy: return fresh tensors (default). With False, observations, rewards, flags, masks and metrics are the buffers
            themselves and are overwritten by the next step.
        max_episode_steps: truncate after this many steps; None leaves it to the environment.
        render_mode: as for the single environment.
        device: such as `"cuda"` or `"cuda:1"`.
        exact: whether a product and a sum are rounded one after the other, as on a CPU; else the device may round them once.
        arrays: what `reset` and `step` return: `"torch"`, tensors of the device, or `"numpy"`, copies in the memory of the machine.
        **kwargs: the environment's own arguments.

    Raises:
        InvalidArgument: the device is not there, or its memory does not hold the lanes.
        MissingExtra: torch or numba-cuda is not installed.
    """

    def __init__(
        self,
        num_envs: int = 1,
        *,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        copy: bool = True,
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
        device: str = "cuda",
        exact: bool = False,
        arrays: str = "torch",
        **kwargs: Any,
    ) -> None:
        whole("num_envs", num_envs, 1, 2**24)
        if "threads" in kwargs:
            raise InvalidArgument(f"threads={kwargs['threads']!r}: a device has a thread for each lane")
        self._numpy = choice("arrays", arrays, ("torch", "numpy")) == "numpy"
        if max_episode_steps is not None:
            whole("max_episode_steps", max_episode_steps)
        card = self._card(device, exact)
        self.simulation = self.simulation_class(**kwargs)
        check_render_mode(self.simulation, render_mode)
        self.num_envs, self.device = int(num_envs), card.device
        self.autoreset_mode = autoreset_mode_of(autoreset_mode)
        self.lanes: Any = DeviceLanes(self.simulation, self.num_envs, card, max_episode_steps)
        self._describe(copy, render_mode)
        self._torch = self.lanes._torch
        self._columns = self.lanes.buffers.metrics.unbind(1)
        self._every = self._torch.ones(self.num_envs, dtype=self._torch.bool, device=self.device)

    @staticmethod
    def _card(device: Any, exact: bool) -> Any:
        return Card(str(device), exact)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode in every lane, or in those that `options["reset_mask"]` names.

        Args:
            seed: as `LaneVectorEnv.reset` takes it; the worlds are the same.
            options: `reset_mask`, bool [num_envs], of numpy or a tensor of the device.

        Returns:
            Observations float32 [num_envs, layout.size] and infos with `action_mask` (int8 [num_envs, actions]) and `dt`.
        """
        self._check_open("reset")
        options = dict(options or {})
        given = options.get("reset_mask")
        if given is not None and not isinstance(given, np.ndarray):
            options["reset_mask"] = self.lanes.tensor("reset_mask", given).cpu().numpy()
        which = self._reset_mask(options)
        self.lanes.reset(which, self._keys(seed))
        self._seeded = True
        begun = self._every if which is None else self.lanes.tensor("reset_mask", which)
        return self._given(self._out(self.lanes.buffers.obs)), self._given(self._infos(begun))

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Take one decision in every lane.

        Args:
            actions: as `LaneVectorEnv.step` takes them: a tensor of the device, an array there of another library, or one of numpy.

        Returns:
            As `LaneVectorEnv.step`, as tensors of the device or as arrays of numpy; see this module.

        Raises:
            InvalidAction: wrong shape or type, on another device, or an action of an earlier step was outside the space.
            ResetNeeded: before the first reset, or in `DISABLED` mode on a lane whose episode has ended.
            EnvironmentClosed: after `close`.
        """
        self._check_open("step")
        if not self._seeded:
            raise ResetNeeded("call reset() before step()")
        lanes, buffers, torch = self.lanes, self.lanes.buffers, self._torch
        lanes.check()
        if self._mode == core.DISABLED and buffers.ended.any():
            which = buffers.ended.nonzero().reshape(-1).tolist()
            raise ResetNeeded(
                f"lanes {which[:8]}{' and others' if len(which) > 8 else ''} have ended: "
                "reset them with options={'reset_mask': ...} first"
            )
        lanes.load_actions(actions)
        lanes.step(self._mode)
        infos = self._infos(self._every)
        ended = buffers.terminated | buffers.truncated

        def where_ended(tensor: Any) -> Any:
            return tensor.masked_fill(~ended[:, None], 0) if self.copy else tensor

        columns = where_ended(buffers.metrics).unbind(1) if self.copy else self._columns
        metrics: dict[str, Any] = dict(zip(self.simulation.metric_names, columns))
        metrics.update(dict.fromkeys(self._metric_flags, ended))
        if self._mode == core.SAME_STEP:
            dt = infos["dt"]
            infos["final_obs"], infos["_final_obs"] = where_ended(buffers.final_obs), ended
            infos["final_info"] = {
                "action_mask": where_ended(buffers.final_mask),
                "_action_mask": ended,
                "dt": torch.where(ended, dt, 0.0),
                "_dt": ended,
                "metrics": metrics,
                "_metrics": ended,
            }
            infos["_final_info"] = ended
            infos["dt"] = torch.where(ended, 0.0, dt)
        else:
            infos["metrics"], infos["_metrics"] = metrics, ended
        found = (buffers.obs, buffers.reward, buffers.terminated, buffers.truncated)
        return (*(self._given(self._out(tensor)) for tensor in found), self._given(infos))  # type: ignore[return-value]

    def _out(self, array: Any) -> Any:
        return array.clone() if self.copy and not self._numpy else array

    def _given(self, found: Any) -> Any:
        """What `reset` and `step` return, as arrays of numpy where these are wanted."""
        if not self._numpy:
            return found
        if isinstance(found, dict):
            return {name: self._given(part) for name, part in found.items()}
        return found.cpu().numpy()

    def action_masks(self) -> Any:
        """Which actions are allowed now, bool [num_envs, actions]. Raises `ResetNeeded`."""
        self._check_began("action_masks")
        return self._given(self.lanes.buffers.mask.bool())

    def metrics(self) -> dict[str, Any]:
        """Metrics of the running episodes so far, float64 [num_envs] each. Raises `ResetNeeded`."""
        self._check_began("metrics")
        columns = self.lanes.metrics_now().clone().T
        return self._given(dict(zip(self.simulation.metric_names, columns)))  # type: ignore[no-any-return]

    def render(self) -> tuple[Any, ...] | None:
        """One picture or text a lane, as `render_mode` says; copies the state of every lane. Raises `ResetNeeded`."""
        self._check_began("render")
        if self.render_mode is None:
            return None
        states = (self.lanes.state_of(lane) for lane in range(self.num_envs))
        return tuple(self.simulation.render(state, 0, self.render_mode) for state in states)


@functools.cache
def on_device(cls: type[LaneVectorEnv]) -> type[DeviceVectorEnv]:
    """The class of a vector environment whose lanes are on a device; it is a subclass of the one on the CPU."""
    if issubclass(cls, DeviceVectorEnv):
        return cls
    home = {"simulation_class": cls.simulation_class, "__module__": cls.__module__, "__doc__": cls.__doc__}
    return type(f"{cls.__name__}OnDevice", (DeviceVectorEnv, cls), home)
