"""gymnasium's `Env` and `VectorEnv` over the same lanes.

A new environment subclasses the first and names its simulation; the second follows from it:

    class MyEnv(LaneEnv):
        simulation_class = MySimulation

    MyVectorEnv = vector_env(MyEnv)
"""

import importlib
from collections.abc import Sequence
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from llmgym.core import lanes as core
from llmgym.core.checks import whole
from llmgym.core.lanes import Simulation, draw_key, seeded_key
from llmgym.core.layout import Layout
from llmgym.core.memory import make_lanes
from llmgym.errors import EnvironmentClosed, InvalidArgument, ResetNeeded, UnknownName

_MODES = {
    AutoresetMode.NEXT_STEP: core.NEXT_STEP,
    AutoresetMode.SAME_STEP: core.SAME_STEP,
    AutoresetMode.DISABLED: core.DISABLED,
}


def check_render_mode(simulation: Simulation, render_mode: str | None, more: Sequence[str] = ()) -> None:
    """Raise `InvalidArgument` for a render mode that a simulation does not have, and that is none of `more`."""
    if render_mode is not None and render_mode not in (*simulation.render_modes, *more):
        allowed = ", ".join(map(repr, (*simulation.render_modes, *more)))
        raise InvalidArgument(f"render_mode={render_mode!r} is not available; allowed: None, {allowed}")


def _human(simulation: type[Simulation] | Simulation) -> list[str]:
    """The mode that shows every step by itself, where a simulation has something to show."""
    return [HUMAN] if {"ansi", "rgb_array"} & set(simulation.render_modes) else []


HUMAN = "human"
MOST_THREADS = 1024


def check_id(env_id: str) -> str:
    """The id of an environment without the module in front of it (`module:id`), once that module is imported.

    Raises:
        UnknownName: nothing is registered under the id, or the module cannot be imported.
    """
    module, _, name = str(env_id).rpartition(":")
    if module:
        try:
            importlib.import_module(module)
        except (ImportError, TypeError, ValueError) as error:
            says = f"unknown environment id {env_id!r}: module {module!r} cannot be imported: {error}"
            raise UnknownName("environment id", env_id, _ids(), says) from error
    try:
        gymnasium.spec(name)
    except gymnasium.error.Error as error:
        theirs = {
            known
            for known, spec in gymnasium.registry.items()
            if module and _home(spec.entry_point) == module
        }
        raise UnknownName("environment id", env_id, theirs or _ids()) from error
    return name


def _ids() -> set[str]:
    return {known for known in gymnasium.registry if known.startswith("llmgym/")}


def _home(entry_point: Any) -> str:
    return (
        entry_point.partition(":")[0]
        if isinstance(entry_point, str)
        else getattr(entry_point, "__module__", "")
    )


def _show_base(cls: type, base: type) -> None:
    """Name gymnasium's class among the direct bases, where skrl looks for it to tell what an environment is."""
    if base not in cls.__bases__:
        cls.__bases__ = (*cls.__bases__, base)


class LaneEnv(gymnasium.Env[NDArray[np.float32], Any]):
    """One lane as a `gymnasium.Env`; see the environment's own page for what it simulates."""

    simulation_class: ClassVar[type[Simulation]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _show_base(cls, gymnasium.Env)
        simulation = cls.simulation_class
        modes = [*simulation.render_modes, *_human(simulation)]
        cls.metadata = {"render_modes": modes, "render_fps": simulation.render_fps}

    def __init__(self, *, render_mode: str | None = None, **kwargs: Any) -> None:
        self.simulation = self.simulation_class(**kwargs)
        check_render_mode(self.simulation, render_mode, _human(self.simulation))
        self.render_mode = render_mode
        self._viewer: Any = None
        if render_mode == HUMAN:
            human = importlib.import_module("llmgym.core.human")  # and rich, which nothing else here needs
            self._viewer = human.Viewer(self.simulation.render_modes, self.simulation.render_fps)
        self.lanes = make_lanes(self.simulation, 1)
        self.observation_space = self.simulation.layout.box()  # type: ignore[assignment]
        self.action_space = self.simulation.action_space
        self._seeded = False

    @property
    def layout(self) -> Layout:
        """The fields of an observation: `layout["queue.age"]` is a slice."""
        return self.simulation.layout

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Start an episode.

        Args:
            seed: starts the stream of episodes anew; the same seed gives the same episodes. None goes on with the next one.
            options: none are known; anything but None or an empty dict is an error.

        Returns:
            Observation, float32 [layout.size], and info with `action_mask` (int8 [actions]) and `dt` (s, 0 here).
        """
        if options:
            raise InvalidArgument(f"unknown reset options {sorted(options)}; a single environment takes none")
        super().reset(seed=seed)
        key = draw_key(self.np_random) if seed is not None or not self._seeded else None
        self.lanes.reset(None, [key])
        self._seeded = True
        buffers = self.lanes.buffers
        if self._viewer is not None:
            self._viewer.began(self._drawn)
        return buffers.obs[0].copy(), {"action_mask": buffers.mask[0].copy(), "dt": 0.0}

    def step(self, action: Any) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Take one decision.

        Args:
            action: an element of `action_space`.

        Returns:
            Observation (float32 [layout.size], fresh), reward (float), terminated, truncated (bool) and info: `action_mask`
            (int8 [actions], fresh), `dt` (simulated seconds the step took) and, at the end of an episode, `metrics` (dict).

        Raises:
            InvalidAction: the action is outside the space, not a number of the right kind, or masked and masks are enforced.
            ResetNeeded: there is no running episode.
        """
        lanes = self.lanes
        buffers = lanes.buffers
        lanes.load_action(action)
        done = lanes.step(core.DISABLED)
        if done < 0:
            raise ResetNeeded("the episode has ended or never began; call reset() first")
        info: dict[str, Any] = {"action_mask": buffers.mask[0].copy(), "dt": buffers.dt.item()}
        if done:
            info["metrics"] = lanes.metrics(0)
        if self._viewer is not None:
            self._viewer.stepped(self._drawn, buffers.reward.item())
        return (
            buffers.obs[0].copy(),
            buffers.reward.item(),
            buffers.terminated.item(),
            buffers.truncated.item(),
            info,
        )

    def action_masks(self) -> NDArray[np.bool_]:
        """Which actions are allowed now, bool [actions], as sb3-contrib's MaskablePPO asks for it. Raises `ResetNeeded`."""
        self._check_began("action_masks")
        return self.lanes.buffers.mask[0].astype(np.bool_)

    def metrics(self) -> dict[str, float]:
        """Metrics of the episode so far; at its end they are also in `info["metrics"]`. Raises `ResetNeeded`."""
        self._check_began("metrics")
        return self.lanes.metrics_now(0)

    def render(self) -> Any:
        """A picture (uint8 [height, width, 3]) or a text of the current state, as `render_mode` says. Raises `ResetNeeded`.

        With `human` it returns None: every reset and every step shows itself (`llmgym.core.human`).
        """
        self._check_began("render")
        return None if self.render_mode in (None, HUMAN) else self._drawn(self.render_mode)

    def _drawn(self, mode: str | None) -> Any:
        return self.simulation.render(self.lanes.state, 0, str(mode))

    def _check_began(self, what: str) -> None:
        if self.lanes.never_began().any():
            raise ResetNeeded(f"call reset() before {what}()")

    def close(self) -> None:
        """Release the threads, and the terminal or the window of `human`."""
        if self._viewer is not None:
            self._viewer.close()
        self.lanes.close()


class LaneVectorEnv(VectorEnv[NDArray[np.float32], NDArray[Any], NDArray[Any]]):
    """Many lanes as a native `gymnasium.vector.VectorEnv`: one compiled call a step, no Python per lane.

    Args:
        num_envs: number of lanes.
        autoreset_mode: `NEXT_STEP` (default), `SAME_STEP` or `DISABLED`; an `AutoresetMode`, its name or its value.
        copy: return fresh arrays (default). With False, observations, rewards, flags and masks are the buffers themselves and
            are overwritten by the next step.
        threads: number of threads the lanes are divided among, at most 1,024; results do not depend on it.
        max_episode_steps: truncate after this many steps; None leaves it to the environment.
        render_mode: as for the single environment; `render` returns a tuple with one frame a lane.
        device: `"cpu"` (default), or a GPU, such as `"cuda"`: lanes as tensors there, `llmgym.core.device_env.DeviceVectorEnv`.
        **kwargs: the environment's own arguments.
    """

    simulation_class: ClassVar[type[Simulation]]
    device: Any = "cpu"
    """Where the lanes live."""

    def __new__(cls, *args: Any, device: Any = "cpu", **kwargs: Any) -> "LaneVectorEnv":
        if device != "cpu":
            made = importlib.import_module("llmgym.core.device_env")
            return super().__new__(made.on_device(cls))
        return super().__new__(cls)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _show_base(cls, VectorEnv)

    def __init__(
        self,
        num_envs: int = 1,
        *,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        copy: bool = True,
        threads: int = 1,
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
        device: str = "cpu",
        **kwargs: Any,
    ) -> None:
        whole("num_envs", num_envs)
        threads = min(whole("threads", threads, 1, MOST_THREADS), num_envs)
        if max_episode_steps is not None:
            whole("max_episode_steps", max_episode_steps)
        self.simulation = self.simulation_class(**kwargs)
        check_render_mode(self.simulation, render_mode)
        self.num_envs = int(num_envs)
        self.autoreset_mode = autoreset_mode_of(autoreset_mode)
        self.lanes = make_lanes(self.simulation, self.num_envs, threads, max_episode_steps)
        self._describe(copy, render_mode)

    def _describe(self, copy: bool, render_mode: str | None) -> None:
        """Say what a vector environment of this simulation with these lanes is."""
        self.metadata = {
            "render_modes": list(self.simulation.render_modes),
            "render_fps": self.simulation.render_fps,
            "autoreset_mode": self.autoreset_mode,
        }
        self.render_mode = render_mode
        self.copy = copy
        self.single_observation_space = self.simulation.layout.box()
        self.single_action_space = self.simulation.action_space
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._mode = _MODES[self.autoreset_mode]
        self._seeded = False
        self._all = np.ones(self.num_envs, np.bool_)
        self._all.setflags(write=False)
        self._metric_flags = [f"_{name}" for name in self.simulation.metric_names]

    @property
    def layout(self) -> Layout:
        """The fields of an observation: `layout["queue.age"]` is a slice."""
        return self.simulation.layout

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Start an episode in every lane, or in those that `options["reset_mask"]` names.

        Args:
            seed: an int gives lane i the seed `seed + i`, a sequence gives each its own (None: go on). Lane i then behaves as the
                single environment that was reset with that seed, bit for bit.
            options: `reset_mask`, bool [num_envs], at least one True; other keys are an error.

        Returns:
            Observations float32 [num_envs, layout.size] and infos with `action_mask` (int8 [num_envs, actions]) and `dt`.
        """
        self._check_open("reset")
        which = self._reset_mask(dict(options or {}))
        self.lanes.reset(which, self._keys(seed))
        self._seeded = True
        return self._out(self.lanes.buffers.obs), self._infos(self._all if which is None else which.copy())

    def _keys(self, seed: int | Sequence[int | None] | None) -> list[int | None]:
        """A key for every lane that starts its stream anew, None for one that goes on."""
        seeds: list[int | None]
        if seed is None:
            seeds = [None] * self.num_envs
        elif isinstance(seed, (int, np.integer)):
            seeds = [int(seed) + lane for lane in range(self.num_envs)]
        elif isinstance(seed, str) or not hasattr(seed, "__len__"):
            raise InvalidArgument(
                f"seed={seed!r}: expected None, a whole number >= 0, or one of these for each lane"
            )
        else:
            seeds = [int(s) if isinstance(s, np.integer) else s for s in seed]
        if len(seeds) != self.num_envs:
            raise InvalidArgument(
                f"seed has {len(seeds)} entries, expected one for each of {self.num_envs} lanes"
            )
        keys = [None if s is None else seeded_key(s) for s in seeds]
        never_began = self.lanes.never_began()
        if not never_began.any():
            return keys
        fresh = np.random.SeedSequence().generate_state(self.num_envs, np.uint64)
        return [
            int(fresh[lane]) if key is None and never_began[lane] else key for lane, key in enumerate(keys)
        ]

    def _reset_mask(self, options: dict[str, Any]) -> NDArray[np.bool_] | None:
        which = options.pop("reset_mask", None)
        if options:
            raise InvalidArgument(f"unknown reset options {sorted(options)}; known: reset_mask")
        if which is None:
            return None
        if not isinstance(which, np.ndarray) or which.dtype != np.bool_ or which.shape != (self.num_envs,):
            raise InvalidArgument(
                f"reset_mask must be a bool array of shape ({self.num_envs},), got {which!r}"
            )
        if not which.any():
            raise InvalidArgument("reset_mask has no True entry: nothing to reset")
        if not self._seeded:
            raise ResetNeeded("the first reset must start every lane; reset_mask is for later ones")
        return which

    def step(
        self, actions: Any
    ) -> tuple[
        NDArray[np.float32], NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]
    ]:
        """Take one decision in every lane.

        Args:
            actions: int [num_envs] for `Discrete`, int [num_envs, parts] for `MultiDiscrete`, float [num_envs, parts] for `Box`.

        Returns:
            Observations float32 [num_envs, layout.size], rewards float64, terminated and truncated bool [num_envs], and infos:
            `action_mask` int8 [num_envs, actions], `dt` float64 [num_envs]; where episodes ended `metrics` (a dict of arrays),
            or in `SAME_STEP` mode `final_obs` and `final_info`, each with its boolean `_name` array.

        Raises:
            InvalidAction: an action outside the space, of the wrong kind, or masked while masks are enforced.
            ResetNeeded: before the first reset, or in `DISABLED` mode on a lane whose episode has ended.
            EnvironmentClosed: after `close`.
        """
        self._check_open("step")
        if not self._seeded:
            raise ResetNeeded("call reset() before step()")
        lanes = self.lanes
        if self._mode == core.DISABLED and lanes.buffers.ended.any():
            # before anything moves: an error must leave every lane where it was
            which = np.flatnonzero(lanes.buffers.ended).tolist()
            raise ResetNeeded(
                f"lanes {which} have ended: reset them with options={{'reset_mask': ...}} first"
            )
        lanes.load_actions(actions)
        done = lanes.step(self._mode)
        buffers = lanes.buffers
        infos = self._infos(self._all)
        if done:
            ended = buffers.terminated | buffers.truncated
            columns = np.where(ended[:, None], buffers.metrics, 0.0).T
            metrics: dict[str, Any] = dict(zip(self.simulation.metric_names, columns))
            metrics.update(dict.fromkeys(self._metric_flags, ended))
            if self._mode == core.SAME_STEP:
                infos["final_obs"], infos["_final_obs"] = (
                    np.where(ended[:, None], buffers.final_obs, 0.0),
                    ended,
                )
                infos["final_info"] = {
                    "action_mask": np.where(ended[:, None], buffers.final_mask, 0),
                    "_action_mask": ended,
                    "dt": np.where(ended, buffers.dt, 0.0),
                    "_dt": ended,
                    "metrics": metrics,
                    "_metrics": ended,
                }
                infos["_final_info"] = ended
                infos["dt"] = np.where(ended, 0.0, buffers.dt)
            else:
                infos["metrics"], infos["_metrics"] = metrics, ended
        return (
            self._out(buffers.obs),
            self._out(buffers.reward),
            self._out(buffers.terminated),
            self._out(buffers.truncated),
            infos,
        )

    def _out(self, array: Any) -> Any:
        return array.copy() if self.copy else array

    def _infos(self, which: NDArray[np.bool_]) -> dict[str, Any]:
        buffers = self.lanes.buffers
        return {
            "action_mask": self._out(buffers.mask),
            "_action_mask": which,
            "dt": self._out(buffers.dt),
            "_dt": which,
        }

    def action_masks(self) -> NDArray[np.bool_]:
        """Which actions are allowed now, bool [num_envs, actions]. Raises `ResetNeeded`."""
        self._check_began("action_masks")
        return self.lanes.buffers.mask.astype(np.bool_)

    def metrics(self) -> dict[str, NDArray[np.float64]]:
        """Metrics of the running episodes so far, float64 [num_envs] each. Raises `ResetNeeded`."""
        self._check_began("metrics")
        rows = [self.lanes.metrics_now(lane) for lane in range(self.num_envs)]
        return {name: np.array([row[name] for row in rows]) for name in self.simulation.metric_names}

    def render(self) -> tuple[Any, ...] | None:
        """One picture or text a lane, as `render_mode` says. Raises `ResetNeeded`."""
        self._check_began("render")
        if self.render_mode is None:
            return None
        return tuple(
            self.simulation.render(self.lanes.state, lane, self.render_mode) for lane in range(self.num_envs)
        )

    def _check_began(self, what: str) -> None:
        if self.lanes.never_began().any():
            raise ResetNeeded(f"call reset() before {what}()")

    def _check_open(self, what: str) -> None:
        if self.closed:
            raise EnvironmentClosed(f"{what}() after close(): make the environment anew")

    def close_extras(self, **kwargs: Any) -> None:
        """Release the threads."""
        if hasattr(self, "lanes"):  # gymnasium 1.2 also closes what a failing constructor left behind
            self.lanes.close()


def env_classes(simulation: type[Simulation]) -> tuple[type[LaneEnv], type[LaneVectorEnv]]:
    """The single and the vector environment of a simulation.

    One line of its module, `QueueEnv, QueueVectorEnv = env_classes(Queue)`; they are found again by just these names.
    Write a class of its own where the environment needs words for its users.
    """
    home = {
        "simulation_class": simulation,
        "__module__": simulation.__module__,
        "__doc__": simulation.__doc__,
    }
    single = type(f"{simulation.__name__}Env", (LaneEnv,), home)
    return single, vector_env(single)


def vector_env(env: type[LaneEnv]) -> type[LaneVectorEnv]:
    """The vector environment of a single one.

    It has to be bound to its name in the module of the single one, `MyVectorEnv = vector_env(MyEnv)`, by which it is found again.
    """
    name = f"{env.__name__.removesuffix('Env')}VectorEnv"
    about = f"Many lanes of `{env.__name__}`; see there, and `llmgym.core.env.LaneVectorEnv` for the further arguments."
    home = {"simulation_class": env.simulation_class, "__module__": env.__module__, "__doc__": about}
    return type(name, (LaneVectorEnv,), home)


def autoreset_mode_of(value: AutoresetMode | str) -> AutoresetMode:
    """An autoreset mode by itself, its name or its value. Raises `InvalidArgument`."""
    if isinstance(value, AutoresetMode):
        return value
    for mode in AutoresetMode:
        if value in (mode.value, mode.name):
            return mode
    raise InvalidArgument(
        f"autoreset_mode={value!r}: allowed {', '.join(mode.name for mode in AutoresetMode)}"
    )
