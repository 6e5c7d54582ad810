"""Run policies for a number of episodes, one episode a lane.

Episode i has seed `seed + i`, whatever the policy and however many lanes run together, so the episodes of two policies pair up
world by world. They are played in blocks, which do not depend on where and in which order they are played.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from gymnasium.spaces import Box, MultiDiscrete
from numpy.typing import NDArray

from llmgym.core.checks import whole
from llmgym.core.env import LaneVectorEnv
from llmgym.core.lanes import HOLD
from llmgym.core.policy import Policy
from llmgym.core.registered import Registered
from llmgym.errors import InvalidAction, InvalidArgument, LlmgymError, UnknownName
from llmgym.evaluation.backends import HERE, Backend
from llmgym.evaluation.contenders import (
    GIVEN,
    Contender,
    check_id,
    make_env,
    merged_kwargs,
    other_world,
    resolve,
    same_value,
)
from llmgym.evaluation.progress import Bar

LANES_AT_ONCE = 256
"""Most lanes of one environment: enough to hide the cost of a Python call, few enough for the memory."""

RETURN = "return"


@dataclass(frozen=True, eq=False)
class EpisodeTable:
    """Episodes of one policy, a row each, in the order of their seeds.

    Attributes:
        policy: name of the policy in tables.
        kind: "baseline", "learned" or "given" (an object of the caller's).
        source: name or path that the user gave; None for an object.
        privileged: True if the policy saw what a real scheduler could not, of itself or in the observations.
        env_id: id of the environment.
        env_kwargs: arguments that the environment was made with, those that the policy needs included.
        seeds: seed of each episode, int64 [episodes].
        returns: undiscounted sum of rewards of each episode, float64 [episodes].
        steps: decisions in each episode, int64 [episodes].
        simulated_s: simulated time of each episode, the sum of `dt`, seconds, float64 [episodes].
        terminated: True for an episode that came to its own end, bool [episodes].
        truncated: True for an episode that was cut off, bool [episodes].
        metrics: values of each metric by its name, float64 [episodes] each.
        headline: "min" or "max" of the metrics that the environment declares as its headline, by name.
        wall_s: time that the episodes took, policy and simulation together, seconds.
        act_s: time spent in `policy.act`, seconds.
        calls: how often `policy.act` was called.
        clairvoyant: True if the policy itself saw what a real scheduler could not: in the state, or in a clone of the world.
        privileged_observation: True if the observations of the environment held what a real scheduler could not see.
        other_world: what differs in the world that the policy played in from that of the others; None if nothing does.
    """

    policy: str
    kind: str
    source: str | None
    privileged: bool
    env_id: str
    env_kwargs: Mapping[str, Any]
    seeds: NDArray[np.int64]
    returns: NDArray[np.float64]
    steps: NDArray[np.int64]
    simulated_s: NDArray[np.float64]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    metrics: Mapping[str, NDArray[np.float64]]
    headline: Mapping[str, str]
    wall_s: float
    act_s: float
    calls: int
    clairvoyant: bool = False
    privileged_observation: bool = False
    other_world: str | None = None

    def __len__(self) -> int:
        return len(self.seeds)

    @property
    def decisions(self) -> int:
        """Decisions of all episodes."""
        return int(self.steps.sum())

    @property
    def decision_s(self) -> float:
        """Policy time a decision, s: many lanes decide in one call, so this is below `call_s`."""
        return self.act_s / max(1, self.decisions)

    @property
    def call_s(self) -> float:
        """Policy time a call of `act` (one decision in every lane), s."""
        return self.act_s / max(1, self.calls)

    def column(self, name: str) -> NDArray[np.float64]:
        """`return`, or a metric by its name, float64 [episodes]. Raises `UnknownName`."""
        if name == RETURN:
            return self.returns
        if name not in self.metrics:
            raise UnknownName("metric", name, [RETURN, *self.metrics])
        return self.metrics[name]


def run_episodes(
    env_id: str,
    policy: str | Policy,
    episodes: int = 30,
    seed: int = 10_000,
    env_kwargs: Mapping[str, Any] | None = None,
    progress: bool | Callable[[int, int, int], None] = False,
) -> EpisodeTable:
    """Run a policy for one episode on each of `episodes` worlds.

    Args:
        env_id: a registered environment of this package, such as "llmgym/KVQueue-v0".
        policy: a baseline's name, a learned policy's name, a path to a checkpoint, or a policy object (used as it is).
        episodes: number of episodes, at least 1.
        seed: episode i has seed `seed + i`; at least 0.
        env_kwargs: arguments of the environment; those the policy needs are added.
        progress: True for a bar on stderr, or a function called after every step with the number of episodes
            that ended, of episodes that run, and of the steps they have run.

    Returns:
        One row an episode, in the order of their seeds.

    Raises:
        UnknownName: no such environment or policy.
        InvalidArgument: a bad number, an environment without lanes, or a policy that needs other arguments than were given.
        InvalidAction: the policy's actions are not allowed; the message names the policy.
        LlmgymError: an episode's return is not finite.
    """
    whole("episodes", episodes, 1)
    whole("seed", seed, 0, 2**63)
    env_id = check_id(env_id)
    contender = resolve(env_id, policy)
    if callable(progress):
        return run(env_id, contender, episodes, seed, env_kwargs or {}, progress)
    with Bar(1, episodes, shown=progress) as bar:
        bar.begin(contender.label)
        return run(env_id, contender, episodes, seed, env_kwargs or {}, bar)


def run(
    env_id: str,
    contender: Contender,
    episodes: int,
    seed: int,
    env_kwargs: Mapping[str, Any],
    progress: Callable[[int, int, int], None],
    lanes_at_once: int | None = None,
) -> EpisodeTable:
    """Run a policy for one episode on each of `episodes` worlds, in this process.

    Args:
        env_id: id of the environment.
        contender: the policy.
        episodes: number of episodes, 1 or more.
        seed: seed of the first episode; episode i has seed `seed + i`.
        env_kwargs: arguments of the environment; those that the policy needs are added.
        progress: called after every step with the number of episodes that ended, of episodes that run, and of the steps that
            these have run.
        lanes_at_once: most episodes that run together; None: 256.

    Returns:
        One row an episode, in the order of their seeds.

    Raises:
        InvalidArgument: the policy needs other arguments than were given.
        InvalidAction: an action of the policy is not allowed; the message names the policy.
        LlmgymError: the return of an episode is not finite.
    """
    tables: list[EpisodeTable] = []
    for block in blocks(env_id, contender, episodes, seed, env_kwargs, lanes_at_once):
        before = block.seed - seed
        tables.append(play(block, lambda ended, *others, before=before: progress(before + ended, *others)))
    return joined(tables)


def run_all(
    env_id: str,
    contenders: Sequence[Contender],
    episodes: int,
    seed: int,
    env_kwargs: Mapping[str, Any],
    bar: Bar,
    backend: Backend = HERE,
) -> list[EpisodeTable]:
    """Run policies on the same worlds.

    Args:
        env_id: id of the environment, with the module that registers it in front where there is one.
        contenders: the policies.
        episodes: number of episodes of each policy, 1 or more.
        seed: seed of the first episode.
        env_kwargs: arguments of the environment; those that a policy needs are added.
        bar: shows progress.
        backend: where blocks of episodes are played.

    Returns:
        A table for each policy, in their order.

    Raises:
        InvalidArgument: a policy needs other arguments than were given.
        InvalidAction: an action of a policy is not allowed; the message names it.
        LlmgymError: the return of an episode is not finite, or a block could not be played.
    """
    parts = [blocks(env_id, contender, episodes, seed, env_kwargs) for contender in contenders]
    todo = [block for of_one in parts for block in of_one]
    done = 0

    def handed_out() -> Iterator[Block]:
        for block in todo:
            bar.begin(block.contender.label, done)
            yield block

    tables: dict[int, EpisodeTable] = {}
    for index, table in backend.results(play, handed_out(), bar):
        tables[index] = table
        done += len(table)
        bar.begin(table.policy, done)
    ordered = iter([tables[index] for index in range(len(todo))])
    return [joined([next(ordered) for _ in of_one]) for of_one in parts]


@dataclass(frozen=True)
class Block:
    """Episodes of one policy that are played in one piece, in this process or elsewhere.

    Attributes:
        env: the environment.
        contender: the policy.
        env_kwargs: arguments of the environment, without those that the policy needs.
        seed: seed of the first episode.
        episodes: how many.
        lanes: how many run together.
    """

    env: Registered
    contender: Contender
    env_kwargs: Mapping[str, Any]
    seed: int
    episodes: int
    lanes: int


def blocks(
    env_id: str,
    contender: Contender,
    episodes: int,
    seed: int,
    env_kwargs: Mapping[str, Any],
    lanes_at_once: int | None = None,
) -> list[Block]:
    """The pieces in which episodes of a policy are played, whoever plays them.

    Each is as many as run together. A policy that draws random numbers, and an object of the user's, which may remember anything,
    goes on from one chunk to the next, so all its episodes are one piece.

    Args:
        env_id: id of the environment, with the module that registers it in front where there is one.
        contender: the policy.
        episodes: number of episodes.
        seed: seed of the first one.
        env_kwargs: arguments of the environment.
        lanes_at_once: most episodes that run together; None: 256.

    Returns:
        The pieces, in the order of their seeds.
    """
    env = Registered.of(env_id)
    # Chunks of equal size: one environment and one policy serve all of them, whatever the policy keeps for a lane.
    chunks = math.ceil(episodes / (lanes_at_once or LANES_AT_ONCE))
    lanes = math.ceil(episodes / chunks)
    of_block = episodes if chunks == 1 or _goes_on(env.env_id, contender, env_kwargs) else lanes
    return [
        Block(env, contender, env_kwargs, int(seed) + start, min(of_block, episodes - start), lanes)
        for start in range(0, episodes, of_block)
    ]


def _goes_on(env_id: str, contender: Contender, env_kwargs: Mapping[str, Any]) -> bool:
    """Whether a policy is not the same for every chunk of episodes."""
    if contender.source is None or contender.kind == GIVEN:
        return True
    env = make_env(env_id, 1, merged_kwargs(contender, env_kwargs))
    try:
        return bool(getattr(contender.build(env), "draws", False))
    finally:
        env.close()


def joined(tables: Sequence[EpisodeTable]) -> EpisodeTable:
    """The episodes of several blocks of one policy, in the order of their seeds, as one table."""
    if len(tables) == 1:
        return tables[0]
    whole_of: dict[str, Any] = {
        name: np.concatenate([getattr(table, name) for table in tables])
        for name in ("seeds", "returns", "steps", "simulated_s", "terminated", "truncated")
    }
    whole_of["metrics"] = {
        name: np.concatenate([table.metrics[name] for table in tables]) for name in tables[0].metrics
    }
    for name in ("wall_s", "act_s", "calls"):
        whole_of[name] = sum(getattr(table, name) for table in tables)
    return replace(tables[0], **whole_of)


def play(block: Block, progress: Callable[[int, int, int], None]) -> EpisodeTable:
    """Play a block of episodes in this process.

    Args:
        block: what to play.
        progress: called after every step with the number of episodes of the block that ended, of those that run, and of the steps
            that these have run.

    Returns:
        One row an episode, in the order of their seeds.

    Raises:
        InvalidArgument: the policy needs other arguments than were given.
        InvalidAction: an action of the policy is not allowed; the message names the policy.
        LlmgymError: the return of an episode is not finite.
    """
    env_id, contender, env_kwargs = block.env.register(), block.contender, block.env_kwargs
    episodes, seed, lanes = block.episodes, block.seed, block.lanes
    made_with = merged_kwargs(contender, env_kwargs)
    env = make_env(env_id, lanes, made_with)
    try:
        policy = contender.build(env)
        for name, value in policy.env_kwargs.items():
            if name not in made_with or not same_value(made_with[name], value):
                raise InvalidArgument(
                    f"policy {contender.label!r} asks for {name}={value!r} after its environment was made"
                )
        names = env.simulation.metric_names
        rows: dict[str, Any] = {
            "returns": np.zeros(episodes),
            "steps": np.zeros(episodes, np.int64),
            "simulated_s": np.zeros(episodes),
            "terminated": np.zeros(episodes, np.bool_),
            "truncated": np.zeros(episodes, np.bool_),
        }
        metrics = np.zeros((episodes, len(names)))
        calls, act_s, started = 0, 0.0, time.perf_counter()
        for start in range(0, episodes, lanes):
            count = min(lanes, episodes - start)
            seeds = [seed + start + lane for lane in range(lanes)]
            chunk = _Chunk(env, policy, contender.label, seeds, count)
            chunk.run(start, progress)
            buffers, here = env.lanes.buffers, slice(start, start + count)
            rows["returns"][here] = chunk.returns[:count]
            rows["simulated_s"][here] = chunk.simulated_s[:count]
            rows["steps"][here] = buffers.steps[:count]
            rows["terminated"][here] = buffers.terminated[:count]
            rows["truncated"][here] = buffers.truncated[:count]
            metrics[here] = env.lanes.metric_columns()[:count]
            calls, act_s = calls + chunk.calls, act_s + chunk.act_s
        wall_s = time.perf_counter() - started
        headline = dict(getattr(env.simulation, "headline_metrics", {}))
        # whoever acted on such observations saw what they show, whether the rule looks at it or not
        shown = bool(getattr(env.simulation, "privileged_observation", False))
        world = other_world(env_id, contender, policy, env_kwargs, env.simulation)
    finally:
        env.close()
    bad = np.flatnonzero(~np.isfinite(rows["returns"]))
    if len(bad):
        raise LlmgymError(
            f"{env_id}: {contender.label!r} has the return {rows['returns'][bad[0]]} on seed {seed + bad[0]}"
        )
    return EpisodeTable(
        policy=contender.label,
        kind=contender.kind,
        source=contender.source,
        privileged=bool(policy.privileged) or shown,
        env_id=env_id,
        env_kwargs=made_with,
        seeds=seed + np.arange(episodes, dtype=np.int64),
        metrics={name: metrics[:, index].copy() for index, name in enumerate(names)},
        headline=headline,
        wall_s=wall_s,
        act_s=act_s,
        calls=calls,
        clairvoyant=bool(policy.privileged),
        privileged_observation=shown,
        other_world=world,
        **rows,
    )


class _Chunk:
    """One episode in each of the first `count` lanes; the other lanes wait from the start."""

    def __init__(self, env: LaneVectorEnv, policy: Policy, label: str, seeds: list[int], count: int) -> None:
        self.env, self.policy, self.label, self.count = env, policy, label, count
        env.reset(seed=seeds)
        env.lanes.buffers.ended[count:] = True
        policy.reset(np.ones(env.num_envs, np.bool_))
        self.returns = np.zeros(env.num_envs)
        self.simulated_s = np.zeros(env.num_envs)
        self.act_s = 0.0
        self.calls = 0

    def run(self, before: int, progress: Callable[[int, int, int], None]) -> None:
        """Step until every lane has ended; `before` episodes ended in earlier chunks."""
        lanes = self.env.lanes
        buffers = lanes.buffers
        while not buffers.ended.all():
            self.calls += 1
            self.act_s += load_decision(self.env, self.policy, self.label, self.calls)
            lanes.step(HOLD)
            self.returns += buffers.reward
            self.simulated_s += buffers.dt
            running = lanes.count - int(np.count_nonzero(buffers.ended))
            progress(before + self.count - running, running, self.calls)


def load_decision(env: LaneVectorEnv, policy: Policy, label: str, decision: int, copy: bool = True) -> float:
    """Load the policy's actions in the running lanes, allowed ones in those that wait.

    Args:
        env: the environment.
        policy: decides on all lanes.
        label: of the policy, for messages.
        decision: number of the decision in the episode, for messages.
        copy: whether the policy gets a copy of the observations, which it may write to.

    Returns:
        Time in `policy.act`, seconds.

    Raises:
        InvalidAction: an action of the policy is not allowed.
    """
    buffers, space = env.lanes.buffers, env.single_action_space
    waiting = buffers.ended
    mask: NDArray[np.int8] | None = None
    if buffers.mask.shape[1]:
        mask = buffers.mask.copy()
        # The state after an episode's end may allow nothing, and choosing among nothing breaks some policies.
        mask[waiting & ~buffers.mask.any(axis=1)] = 1
    obs = buffers.obs.copy() if copy else buffers.obs
    started = time.perf_counter()
    actions = np.array(policy.act(obs, mask))
    act_s = time.perf_counter() - started
    if actions.shape != (len(waiting), *(space.shape or ())):
        expected = (len(waiting), *(space.shape or ()))
        raise InvalidAction(
            f"policy {label!r}: actions have shape {actions.shape}, expected {expected} for {space}"
        )
    if isinstance(space, Box) and actions.dtype.kind in "iu":
        actions = actions.astype(np.float64)
    if waiting.any():
        actions[waiting] = _legal(space, buffers.mask)[waiting]
    try:
        env.lanes.load_actions(actions)
    except InvalidAction as error:
        raise InvalidAction(f"policy {label!r}, decision {decision} of the episode: {error}") from error
    return act_s


def _legal(space: Any, mask: NDArray[np.int8]) -> Any:
    """An allowed action for every lane: the first unmasked one, or the one closest to zero."""
    if isinstance(space, Box):
        return np.broadcast_to(np.clip(0.0, space.low, space.high), (len(mask), *space.shape))
    if isinstance(space, MultiDiscrete):
        parts = np.split(mask, np.cumsum(space.nvec.ravel())[:-1], axis=1)
        return np.stack([part.argmax(axis=1) for part in parts], axis=1).reshape(len(mask), *space.shape)
    return mask.argmax(axis=1)
