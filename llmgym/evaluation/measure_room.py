"""How much is left to win in an environment: a clairvoyant against the best tuned rule, on the same worlds."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Discrete
from numpy.typing import NDArray

from llmgym.baselines.rule import Rule
from llmgym.core.checks import whole
from llmgym.core.device_env import DeviceVectorEnv
from llmgym.core.env import LaneVectorEnv
from llmgym.core.lanes import Simulation
from llmgym.core.memory import bytes_of_a_lane
from llmgym.core.policy import Policy
from llmgym.errors import InvalidArgument
from llmgym.evaluation.contenders import (
    BASELINE,
    GIVEN,
    Contender,
    check_id,
    make_env,
    merged_kwargs,
    resolve,
    rules_of,
    same_value,
)
from llmgym.evaluation.lookahead import (
    COPIES_BYTES,
    MOST_ACTIONS,
    MOST_COPIES_ON_GPU,
    LookAhead,
    candidates,
    check_tail,
)
from llmgym.evaluation.progress import Bar
from llmgym.evaluation.rollout import EpisodeTable, run
from llmgym.evaluation.room_result import CLAIRVOYANT, RoomResult
from llmgym.evaluation.statistics import check_confidence
from llmgym.evaluation.tuning import tuned
from llmgym.version import __version__

NO_RULES = ("random",)
"""Baselines that are no rules."""
THROUGHOUT = "action="
"""Begins the name of one action throughout."""


def room(
    env_id: str,
    *,
    tail: str | Policy | None = None,
    against: Sequence[str] | None = None,
    privileged: Sequence[str] = (),
    worlds: int = 24,
    tuning: int = 30,
    seed: int = 10_000,
    stride: int = 1,
    horizon: int | None = None,
    points: int | None = None,
    device: str = "cpu",
    confidence: float = 0.95,
    progress: bool = True,
    **env_kwargs: Any,
) -> RoomResult:
    """Measure what knowing the future is worth: a clairvoyant against the best tuned rule, world by world.

    The clairvoyant tries every allowed action in copies of the world, lets a rule go on after it, and takes the best. The copies of
    all worlds step together, on the CPU or on a GPU; the worlds themselves and all rules are on the CPU. What it gains is a lower
    bound of the room.

    Args:
        env_id: a registered environment of this package, such as "llmgym/KVQueue-v1".
        tail: the rule that goes on, a baseline with numbers or without, `action=2` for one action throughout, or an object; None:
            of the tuned rules that act in the environment as it was asked for, the one that did best.
        against: rules to compare with, baselines that are tuned first where they have a grid, or `action=2`; None: all baselines
            that are not privileged, and where none acts with these arguments, each action throughout.
        privileged: baselines that know the future and are played too, such as "oracle".
        worlds: on which all are compared, 2 or more; world i has seed `seed + i`.
        tuning: worlds on which each value of a grid is tried.
        seed: of the first world, at least 0.
        stride: the clairvoyant decides at every so many decisions, and its rule at the others.
        horizon: decisions of the rule after which a copy is cut off; None: to the end.
        points: values of each entry of a Box that are tried; needed for a Box.
        device: where the copies are: `"cpu"` or a GPU, such as `"cuda"` or `"cuda:1"`, where more worlds are played at once. They
            play what they play on the CPU, but for the last bits of log, exp and pow.
        confidence: of all intervals, between 0 and 1.
        progress: a bar on stderr, if that is a terminal.
        **env_kwargs: arguments of the environment, such as `scenario`.

    Returns:
        A `RoomResult`: `print(result.table())`, `result.gain`, `result.percent`, `result.to_json("room.json")`.

    Raises:
        UnknownName: no such environment, or no baseline of that name.
        InvalidArgument: a bad number, a privileged rule among the others, no rule that can go on, a single action or too many, no
            such device, or a privileged `tail` with copies there.
        MissingExtra: torch or numba-cuda is not installed, for a device.
    """
    env_id = check_id(env_id)
    whole("worlds", worlds, 2)
    whole("tuning", tuning)
    whole("seed", seed, 0, 2**63)
    check_confidence(confidence)
    if (device := str(device)) != "cpu":
        DeviceVectorEnv._card(device, True)  # raises where there is none
    plain = make_env(env_id, 1, env_kwargs)
    names = _rules(env_id, env_kwargs, plain) if against is None else list(against)
    for name in (*names, *privileged):
        if _resolve(env_id, name).kind != BASELINE:
            raise InvalidArgument(f"{name!r} is no baseline: room is measured with rules alone")
    if not names:
        raise InvalidArgument(f"against={against!r}: {env_id} needs at least one rule to compare with")
    _check_knowing(env_id, names, privileged, env_kwargs)
    _check_look(env_id, tail, stride, horizon, points, device, env_kwargs, plain)
    named = [name for name in names if not name.startswith(THROUGHOUT)]
    chosen = (
        tuned(env_id, named, episodes=tuning, seed=seed, progress=progress, **env_kwargs) if named else []
    )
    chosen += [name for name in names if name not in named]
    with Bar(len(chosen) + len(privileged), int(worlds), shown=progress) as bar:
        played: dict[str, EpisodeTable] = {}
        for name in (*chosen, *privileged):
            bar.begin(name)
            played[name] = run(env_id, _resolve(env_id, name), worlds, seed, env_kwargs, bar)
    same = [name for name in chosen if played[name].other_world is None]
    if not same:
        raise InvalidArgument(
            f"against={names!r}: each plays another world than the one asked for; name another rule"
        )
    ranked = sorted(same, key=lambda name: -float(played[name].returns.mean()))
    goes_on = _resolve(env_id, _tail(env_id, ranked, plain, env_kwargs) if tail is None else tail)
    made_with = merged_kwargs(goes_on, env_kwargs)

    def build(env: LaneVectorEnv) -> Policy:
        return LookAhead(
            env,
            lambda count: _copies(env_id, count, made_with, device),
            goes_on.build,
            name=CLAIRVOYANT,
            stride=stride,
            horizon=horizon,
            points=points,
            device=device,
        )

    longest = int(played[ranked[0]].steps.max())
    with Bar(1, int(worlds), shown=progress, longest=longest, shrinks=horizon is None) as bar:
        bar.begin(CLAIRVOYANT)
        contender = Contender(CLAIRVOYANT, GIVEN, None, goes_on.env_kwargs, build)
        at_once = None if device == "cpu" else _worlds_at_once(env_id, made_with, points)
        clairvoyant = run(env_id, contender, worlds, seed, env_kwargs, bar, at_once)
    best = played[ranked[0]]
    return RoomResult(
        env_id=env_id,
        env_kwargs=dict(env_kwargs),
        seeds=clairvoyant.seeds,
        rules={name: played[name].returns for name in same},
        knowing={
            CLAIRVOYANT: clairvoyant.returns,
            **{name: played[name].returns for name in privileged},
        },
        tail=goes_on.label,
        stride=int(stride),
        horizon=horizon,
        points=points,
        device=device,
        metrics={name: (_mean(best, name), _mean(clairvoyant, name)) for name in best.headline},
        confidence=confidence,
        wall_s=clairvoyant.wall_s,
        date=datetime.now(UTC).date().isoformat(),
        version=__version__,
    )


class Throughout(Rule[Simulation]):
    """`action=2`: this action throughout.

    Args:
        env: an environment of discrete actions.
        name: of the policy, which says the action.

    Raises:
        InvalidArgument: no such action.
    """

    def __init__(self, env: Any, name: str) -> None:
        super().__init__(env, name, Simulation)  # type: ignore[type-abstract]
        space, text = self._simulation.action_space, name.removeprefix(THROUGHOUT)
        if not isinstance(space, Discrete) or not text.isdecimal() or int(text) >= space.n:
            raise InvalidArgument(f"policy {name!r}: expected action=N with an action of {space}")
        self._action = int(text)

    def act(self, obs: NDArray[np.float32], mask: NDArray[np.int8] | None) -> NDArray[np.int64]:
        """The actions of all lanes, int64 [lanes]; where it is masked, the first that is allowed."""
        actions = np.full(len(obs), self._action)
        if mask is not None:
            masked = mask[:, self._action] == 0
            actions[masked] = mask[masked].argmax(axis=1)
        return actions


def _resolve(env_id: str, policy: str | Policy) -> Contender:
    if isinstance(policy, str) and policy.startswith(THROUGHOUT):
        return Contender(policy, BASELINE, policy, {}, lambda env: Throughout(env, policy))
    return resolve(env_id, policy)


def _mean(table: EpisodeTable, metric: str) -> float:
    values = table.metrics[metric]
    return float(values[np.isfinite(values)].mean()) if np.isfinite(values).any() else float("nan")


def _privileged(env_id: str, name: str, env_kwargs: Mapping[str, Any]) -> bool:
    """Whether a baseline knows what a scheduler cannot."""
    contender = _resolve(env_id, name)
    env = make_env(env_id, 1, merged_kwargs(contender, env_kwargs))
    try:
        return bool(contender.build(env).privileged)
    finally:
        env.close()


def _rules(env_id: str, env_kwargs: Mapping[str, Any], plain: LaneVectorEnv) -> list[str]:
    """All unprivileged baselines that can act with these arguments; if there are none, each action throughout."""
    found = []
    for name in rules_of(env_id):
        try:
            if name not in NO_RULES and not _privileged(env_id, name, env_kwargs):
                found.append(name)
        except InvalidArgument:  # it needs other arguments than were given
            continue
    space = plain.single_action_space
    if not found and isinstance(space, Discrete) and space.n <= MOST_ACTIONS:
        return [f"{THROUGHOUT}{action}" for action in range(int(space.n))]
    return found


def _check_knowing(
    env_id: str, names: Sequence[str], privileged: Sequence[str], env_kwargs: Mapping[str, Any]
) -> None:
    for name in names:
        if _privileged(env_id, name, env_kwargs):
            raise InvalidArgument(f"against: {name!r} is privileged; name it as `privileged` instead")
    for name in privileged:
        if not _privileged(env_id, name, env_kwargs):
            raise InvalidArgument(f"privileged: {name!r} sees no more than others; name it in `against`")


def _check_look(
    env_id: str,
    tail: str | Policy | None,
    stride: int,
    horizon: int | None,
    points: int | None,
    device: str,
    env_kwargs: Mapping[str, Any],
    plain: LaneVectorEnv,
) -> None:
    """Raise `InvalidArgument` for what the clairvoyant cannot do, before anything is played."""
    whole("stride", stride)
    if horizon is not None:
        whole("horizon", horizon)
    contender = None if tail is None else _resolve(env_id, tail)
    env = plain if contender is None else make_env(env_id, 1, merged_kwargs(contender, env_kwargs))
    if contender is not None:
        policy = contender.build(env)
        check_tail(policy, device)
        other = getattr(policy, "other_world", None)
        if other is not None:
            raise InvalidArgument(
                f"tail={tail!r}: it does not play the same world ({other}); name another rule"
            )
    if len(candidates(env.single_action_space, points)) < 2:
        raise InvalidArgument(
            f"tail={tail!r}: it acts by {env.single_action_space}, in which there is nothing to choose; name another rule"
        )


def _copies(env_id: str, count: int, env_kwargs: Mapping[str, Any], device: str) -> LaneVectorEnv:
    """An environment for copies of worlds on a device, where they play what the CPU plays."""
    if device == "cpu":
        return make_env(env_id, count, env_kwargs)
    theirs = {name: value for name, value in env_kwargs.items() if name != "threads"}
    envs: Any = gymnasium.make_vec(env_id, num_envs=count, device=device, exact=True, **theirs).unwrapped
    made: LaneVectorEnv = envs
    return made


def _worlds_at_once(env_id: str, env_kwargs: Mapping[str, Any], points: int | None) -> int:
    """Worlds of which all copies find a place together on a GPU, as far as the memory of the CPU holds the worlds."""
    env = make_env(env_id, 1, env_kwargs)
    full = MOST_COPIES_ON_GPU // (len(candidates(env.single_action_space, points)) + 1)
    return max(1, min(full, COPIES_BYTES // bytes_of_a_lane(env.simulation)))


def _tail(env_id: str, ranked: Sequence[str], plain: LaneVectorEnv, env_kwargs: Mapping[str, Any]) -> str:
    """The best rule that acts as the environment was asked for, by the same actions."""
    for name in ranked:
        needed = merged_kwargs(_resolve(env_id, name), env_kwargs)
        env = make_env(env_id, 1, needed)
        fits = same_value(env.single_action_space, plain.single_action_space)
        env.close()
        if fits:
            return name
    raise InvalidArgument(
        f"tail=None: no rule of {list(ranked)} acts by the actions {plain.single_action_space}; name a policy that does"
    )
