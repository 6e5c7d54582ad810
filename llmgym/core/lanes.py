"""Lanes: many independent copies of one simulation, advanced by one compiled call.

An environment is a `Simulation`: arrays of records whose first axis is the lane, numbers shared by all lanes, and five compiled
functions on one lane. `Lanes` allocates the arrays, draws a key for every episode and runs the generic loop over them.
`llmgym.core.env` puts gymnasium's single and vector interfaces on top; both run the very same machine code, so a lane of
a vector environment and a single environment with the same seed produce the same bits.
"""

import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, is_dataclass
from typing import Any, ClassVar, NamedTuple

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete, MultiDiscrete
from numpy.typing import NDArray

from llmgym.core.checks import choice, number
from llmgym.core.declared import check_simulation
from llmgym.core.frames import frame_of
from llmgym.core.jit import explained
from llmgym.core.layout import Layout
from llmgym.core.loops import (
    DISABLED,
    HOLD,
    LOOK,
    NEXT_STEP,
    RESET,
    SAME_STEP,
    Buffers,
    Kernels,
    all_allowed,
    loops,
    measuring,
    observing,
)
from llmgym.core.records import Record
from llmgym.errors import InvalidAction, InvalidArgument

__all__ = [
    "DISABLED",
    "HOLD",
    "LOOK",
    "NEXT_STEP",
    "RESET",
    "SAME_STEP",
    "Buffers",
    "Episodes",
    "Kernels",
    "Lanes",
    "Simulation",
    "all_allowed",
    "draw_key",
    "measuring",
    "observing",
    "seeded_key",
]

RUN_STEPS = 10_000
"""Steps of one compiled call of `Lanes.run`."""


class Episodes(NamedTuple):
    """The state of an environment that keeps one record a lane.

    Attributes:
        episode: records [lanes].
    """

    episode: NDArray[Any]


class Simulation(ABC):
    """Everything one environment is, apart from gymnasium.

    Attributes:
        kernels: its compiled functions.
        episode: the record of a lane, where it is all that a lane remembers; None: `allocate` says what it does.
        metrics: the record that `metrics_lane` writes; None: a row in the order of `metric_names`.
        view: name of the module that draws a lane: functions `text` (for `ansi`) and `picture` (for `rgb_array`), each called with
            the scenario, the params, the state and the lane; empty: the observation is told field by field, as text.
        scenario: the settings, a dataclass with everything resolved; None: there is none.
        params: NamedTuple of numbers and small tables shared by all lanes; never written to.
        layout: the fields of an observation.
        action_space: `Discrete`, `MultiDiscrete` or `Box`, for one lane.
        metric_names: names of the episode metrics, with units: those of `metrics`, or the first of them.
        headline_metrics: those that tables and pictures begin with, each with `"min"` or `"max"`.
        raise_on_masked: True if a masked action is an error, False if it is a penalised no-op.
        invalid_cost: what a masked action costs where it is none.
        hidden: what a scheduler cannot know: names of state arrays (`"demand"`) or of fields of their records
            (`"request.output"`), each with the moment at which it becomes known. None: not declared, which the tests refuse.
        shown: the names of all others that differ from one world to the next when an episode begins: what a scheduler sees of
            the world, and arrays that only hold intermediate results.
        privileged_observation: True if the arguments let an observation show what is hidden (true output lengths as
            predictions, say): every policy that reads it is then privileged.
    """

    kernels: ClassVar[Kernels]
    episode: ClassVar[type[Record] | None] = None
    metrics: ClassVar[type[Record] | None] = None
    view: ClassVar[str] = ""
    render_modes: ClassVar[Sequence[str]] = ("rgb_array", "ansi")
    render_fps: ClassVar[int] = 4
    _modes_follow: ClassVar[bool]
    """Where it is set, nobody chose `render_modes`: they follow from `view`."""

    scenario: Any = None
    params: Any
    layout: Layout
    action_space: "Discrete[Any] | MultiDiscrete[Any] | Box"  # text: gymnasium 1.2 has no MultiDiscrete[...]
    metric_names: tuple[str, ...]
    headline_metrics: Any  # a mapping; of the class, or of one simulation where the scenario changes it
    raise_on_masked: bool = False
    invalid_cost: float = 0.0
    hidden: ClassVar[Mapping[str, str] | None] = None
    shown: ClassVar[frozenset[str]] = frozenset()
    privileged_observation: bool = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if (metrics := vars(cls).get("metrics")) is not None:
            metrics.check_plain("float64", "metrics")
            cls.metric_names = metrics.names()
            if "headline_metrics" not in vars(cls):  # else in another order than that of the record
                cls.headline_metrics = metrics.headline()
        theirs = [part for part in cls.__mro__ if part is not Simulation and "render_modes" in vars(part)]
        if all("_modes_follow" in vars(part) for part in theirs) and cls.render is Simulation.render:
            cls.render_modes = ("rgb_array", "ansi") if cls.view else ("ansi",)
            cls._modes_follow = True

    def __init__(self, *, invalid_action: str = "penalize", invalid_cost: float = 0.01) -> None:
        """What all environments with masks take.

        Args:
            invalid_action: what a masked action is: `"penalize"` (a counted no-op with a price) or `"raise"` (an error).
            invalid_cost: the price, 0 or more.

        Raises:
            UnknownName: another word for `invalid_action`.
            InvalidArgument: a price below 0, or none that is finite.
        """
        self.raise_on_masked = choice("invalid_action", invalid_action, ("penalize", "raise")) == "raise"
        self.invalid_cost = number("invalid_cost", invalid_cost, zero=True)

    def allocate(self, lanes: int) -> Any:
        """New state arrays (a NamedTuple) for this number of lanes; of `episode` alone where that is all there is."""
        if self.episode is None:
            raise NotImplementedError(
                f"{type(self).__name__} has no `episode` record and defines no `allocate`"
            )
        return Episodes(self.episode.zeros(lanes))

    @abstractmethod
    def expected_return(self, metrics: dict[str, float]) -> float:
        """The undiscounted return of an episode, computed from its metrics: what the reward stands for."""

    def render(self, state: Any, lane: int, mode: str) -> Any:
        """A picture of one lane, drawn by the module named in `view`, or the observation as text where there is none.

        Args:
            state: state arrays of all lanes.
            lane: which lane, from 0.
            mode: `rgb_array` or `ansi`.

        Returns:
            uint8 [height, width, 3] for `rgb_array`, text for `ansi`; without a `view` text for both.
        """
        if self.view:
            view = importlib.import_module(self.view)
            draw = view.text if mode == "ansi" else view.picture
            return draw(self.scenario, self.params, state, lane)
        row = np.zeros(self.layout.size, np.float32)
        observing(self)(state, self.params, lane, row)
        return self.layout.text(row)

    def settings(self) -> dict[str, Any]:
        """The scenario with everything resolved, for reports."""
        return asdict(self.scenario) if is_dataclass(self.scenario) else {}  # type: ignore[arg-type]

    def redraw(self, state: Any, lane: int, key: int) -> None:
        """Give a lane another future: draw all that is hidden at this moment anew, and keep what has happened and what was shown.

        Counts, lengths, outcomes and speeds that are still to come are those of the world of `key`, and whatever the state
        derives from them follows. What the lane can observe must not change by a bit: a test of every environment.

        Args:
            state: arrays of all lanes, at any moment of an episode.
            lane: which one.
            key: seeds the other world, 0 to 2**63 - 1.

        Raises:
            InvalidArgument: the environment has not declared what is hidden, or more of it than the key of an episode.
        """
        if self.only_key_hidden:
            state.episode["key"][lane] = key
            return
        raise InvalidArgument(
            f"{type(self).__name__} does not say what is hidden from a scheduler: set `hidden` and `shown`, and define `redraw`"
        )

    @property
    def only_key_hidden(self) -> bool:
        """Whether all that is hidden is drawn, when it comes, from the key that the record of an episode keeps."""
        return self.hidden is not None and set(self.hidden) == {"episode.key"} and self.episode is not None

    def world(self, key: int) -> Any:
        """The state of one lane at the beginning of the episode of `key`."""
        lanes = Lanes(self, 1)
        lanes.reset(None, [key])
        return lanes.state

    @property
    def mask_size(self) -> int:
        """Length of a mask row: number of discrete actions, flat over the parts of a MultiDiscrete; 0 for a Box."""
        if isinstance(self.action_space, Discrete):
            return int(self.action_space.n)
        if isinstance(self.action_space, MultiDiscrete):
            return int(np.sum(self.action_space.nvec))
        return 0

    @property
    def metric_size(self) -> int:
        """Entries of a row of metrics: all that the kernel writes, of which `metric_names` are the first."""
        return len(self.metrics.declared) if self.metrics is not None else len(self.metric_names)

    @property
    def action_size(self) -> int:
        """Entries of one action row."""
        return 1 if isinstance(self.action_space, Discrete) else int(np.prod(self.action_space.shape or (1,)))


def _freeze(params: Any) -> None:
    """Make the arrays of params read-only: nothing may write them, and numba takes a writable copy for another type."""
    if isinstance(params, np.ndarray):
        params.setflags(write=False)
    elif isinstance(params, tuple):
        for part in params:
            _freeze(part)


class Lanes:
    """The arrays of `count` copies of a simulation and the compiled loop over them.

    Args:
        simulation: the environment with its scenario.
        count: number of lanes.
        threads: number of threads that step them.
        limit: steps after which an episode is truncated; None: never.

    Raises:
        InvalidArgument: the simulation is not one that the loops take.
    """

    def __init__(
        self, simulation: Simulation, count: int, *, threads: int = 1, limit: int | None = None
    ) -> None:
        check_simulation(simulation)
        self.simulation = simulation
        self.count = count
        self.limit = limit or 0
        self.state = simulation.allocate(count)
        d, a = simulation.layout.size, simulation.mask_size
        self.buffers = Buffers(
            action=np.zeros((count, simulation.action_size)),
            obs=np.zeros((count, d), np.float32),
            mask=np.zeros((count, a), np.int8),
            reward=np.zeros(count),
            terminated=np.zeros(count, np.bool_),
            truncated=np.zeros(count, np.bool_),
            dt=np.zeros(count),
            metrics=np.zeros((count, simulation.metric_size)),
            final_obs=np.zeros((count, d), np.float32),
            final_mask=np.zeros((count, a), np.int8),
            ended=np.ones(count, np.bool_),
            which=np.ones(count, np.bool_),
            steps=np.zeros(count, np.int64),
            seed_key=np.zeros(count, np.uint64),
            episode=np.full(count, -1, np.int64),
        )
        self._ranges = [
            (int(part[0]), int(part[-1]) + 1)
            for part in np.array_split(np.arange(count), max(1, threads))
            if len(part)
        ]
        self._start()
        self._rows = np.arange(count)
        self._discrete = isinstance(simulation.action_space, Discrete)
        self._actions = int(simulation.action_space.n) if isinstance(simulation.action_space, Discrete) else 0

    def _start(self) -> None:
        _freeze(self.simulation.params)
        arrays = (self.state, self.simulation.params, self.buffers)
        self._frame = frame_of(arrays)
        self._step, self._run = loops(self.simulation, arrays)
        self._pool = ThreadPoolExecutor(len(self._ranges)) if len(self._ranges) > 1 else None

    def __getstate__(self) -> dict[str, Any]:
        """Without compiled code, of which a copy would compile anew, without the addresses of arrays, and without threads."""
        return {
            name: value
            for name, value in vars(self).items()
            if name not in ("_frame", "_step", "_run", "_pool")
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._start()

    def compile(self) -> None:
        """Compile all that an environment runs, or load it from disk, without playing. Raises `KernelError`."""
        try:
            self._step(self._frame, 0, 0, RESET, self.limit)
            self._run(self._frame, 0, 0, self.limit, RUN_STEPS)
        except Exception as error:
            if (told := explained(error)) is error:
                raise
            raise told from error

    def reset(self, which: NDArray[np.bool_] | None, keys: Sequence[int | None]) -> None:
        """Start an episode in the chosen lanes; a lane with a key starts its stream anew, others go on with their next episode."""
        buffers = self.buffers
        buffers.which[:] = True if which is None else which
        for lane in np.flatnonzero(buffers.which).tolist():
            key = keys[lane]
            if key is not None:
                buffers.seed_key[lane] = key
                buffers.episode[lane] = -1
        self.step(RESET)

    def step(self, mode: int) -> int:
        """Advance every lane by the actions in `buffers.action`; returns how many episodes ended in this step.

        Raises:
            KernelError: a kernel cannot be compiled.
        """
        try:
            if self._pool is None:
                return self._step(self._frame, 0, self.count, mode, self.limit)
            jobs = [
                self._pool.submit(self._step, self._frame, lo, hi, mode, self.limit)
                for lo, hi in self._ranges
            ]
            counts = [job.result() for job in jobs]
        except Exception as error:
            if (told := explained(error)) is error:
                raise
            raise told from error
        return min(counts) if min(counts) < 0 else sum(counts)

    def run(self) -> int:
        """Play every running episode to its end with the one action in `buffers.action`; returns the steps taken.

        Nothing is observed on the way, which makes this the fastest way to evaluate a fixed rule. Afterwards `buffers.reward`
        holds returns, `buffers.dt` simulated seconds and `buffers.metrics` the metrics.
        """
        running = ~self.buffers.ended
        self.buffers.reward[running] = 0.0
        self.buffers.dt[running] = 0.0
        steps = 0
        # in pieces, between which Python sees signals: an episode can be long
        while not self.buffers.ended.all():
            if self._pool is None:
                steps += self._run(self._frame, 0, self.count, self.limit, RUN_STEPS)
                continue
            jobs = [
                self._pool.submit(self._run, self._frame, lo, hi, self.limit, RUN_STEPS)
                for lo, hi in self._ranges
            ]
            steps += sum(job.result() for job in jobs)
        return steps

    def load_action(self, action: Any) -> None:
        """Check one action of a single lane and store it. Raises `InvalidAction`."""
        if self._discrete and (type(action) is int or isinstance(action, np.integer)):
            if not 0 <= action < self._actions:
                raise InvalidAction(
                    f"action {action} is outside Discrete({self._actions}): allowed 0..{self._actions - 1}"
                )
            self.buffers.action[0, 0] = action
            if self.simulation.raise_on_masked and not self.buffers.mask[0, action]:
                self._raise_masked(np.array([action]))
            return
        self.load_actions([action])

    def load_actions(self, actions: Any) -> None:
        """Check the actions of all lanes, shape [lanes] or [lanes, parts], and store them. Raises `InvalidAction`."""
        space = self.simulation.action_space
        shape = (self.count, *(space.shape or ()))
        try:
            values = np.asarray(actions)
        except ValueError:
            raise InvalidAction(f"actions {actions!r} are no array: expected shape {shape}") from None
        if values.shape != shape:
            raise InvalidAction(f"actions have shape {values.shape}, expected {shape} for {space}")
        if isinstance(space, Box):
            if values.dtype.kind not in "fiu":
                raise InvalidAction(
                    f"actions have dtype {values.dtype}, expected a real number type for {space}"
                )
            if not np.isfinite(values).all():
                raise InvalidAction(f"actions contain NaN or infinity: {values[~np.isfinite(values)][:4]}")
            if (values < space.low).any() or (values > space.high).any():
                raise InvalidAction(
                    f"actions outside {space}: smallest {values.min():g}, largest {values.max():g}"
                )
        else:
            if values.dtype.kind not in "iu":
                raise InvalidAction(
                    f"actions have dtype {values.dtype}, expected an integer type for {space}"
                )
            high = space.n if isinstance(space, Discrete) else space.nvec
            if (values < 0).any() or (values >= high).any():
                raise InvalidAction(
                    f"actions outside {space}: smallest {values.min()}, largest {values.max()}"
                )
        self.buffers.action[:] = values.reshape(self.count, -1)
        if self.simulation.raise_on_masked and self.simulation.mask_size:
            self._raise_masked(values)

    def _raise_masked(self, values: NDArray[Any]) -> None:
        space = self.simulation.action_space
        flat = values.reshape(self.count, -1)
        if isinstance(space, MultiDiscrete):
            flat = flat + np.concatenate([[0], np.cumsum(space.nvec)[:-1]])
        allowed = self.buffers.mask[self._rows[:, None], flat].all(axis=1) | self.buffers.ended
        if not allowed.all():
            lane = int(np.flatnonzero(~allowed)[0])
            raise InvalidAction(
                f"action {values[lane]} of lane {lane} is masked; allowed: {np.flatnonzero(self.buffers.mask[lane]).tolist()} "
                '(invalid_action="raise" is on; "penalize" makes it a counted no-op)'
            )

    def never_began(self) -> NDArray[np.bool_]:
        """Which lanes have had no episode yet, bool [lanes]."""
        return self.buffers.episode < 0

    def metrics(self, lane: int) -> dict[str, float]:
        """Metrics of the episode that ended last in this lane."""
        return self._named(self.buffers.metrics[lane])

    def metrics_now(self, lane: int) -> dict[str, float]:
        """Metrics of the running episode of this lane so far."""
        row = np.zeros(self.simulation.metric_size)
        measuring(self.simulation)(self.state, self.simulation.params, lane, row)
        return self._named(row)

    def column(self, name: str) -> NDArray[np.float64]:
        """A metric of the episodes that ended last, float64 [lanes]. Raises `UnknownName`."""
        names = self.simulation.metric_names
        return self.buffers.metrics[:, names.index(choice("metric", name, names))].copy()

    def metric_columns(self) -> NDArray[np.float64]:
        """Metrics of the episodes that ended last, float64 [lanes, metrics], in the order of `metric_names`."""
        return self.buffers.metrics[:, : len(self.simulation.metric_names)]

    def _named(self, row: NDArray[np.float64]) -> dict[str, float]:
        return dict(
            zip(self.simulation.metric_names, row.tolist())
        )  # a scenario may tell fewer than there are

    def close(self) -> None:
        """Stop the threads, if there are any."""
        if self._pool is not None:
            self._pool.shutdown()


def draw_key(generator: np.random.Generator) -> int:
    """The key of a lane's episodes, drawn from its gymnasium generator."""
    return int(generator.integers(0, 2**63))


def seeded_key(seed: int) -> int:
    """The key a single environment draws when it is reset with this seed."""
    return draw_key(gymnasium.utils.seeding.np_random(seed)[0])
