"""Neither an observation, nor a mask, nor a rule that is not privileged reads what a real scheduler could not know.

Every environment declares what is hidden (`Simulation.hidden`) and draws it anew on demand (`Simulation.redraw`). Here, at many
moments of an episode, the whole future is drawn anew: how much will arrive and when, every length, outcome and speed that is
still to come, and all that the state derives from them. Not a bit of what can be seen may differ. An environment without a
declaration fails.
"""

import copy
from collections.abc import Collection, Iterable, Mapping
from typing import Any
from unittest import SkipTest

import numpy as np
from numpy.typing import NDArray

from llmgym import baselines
from llmgym.core.lanes import LOOK, Simulation
from llmgym.testing.checks import check_audit, check_observation, check_return
from llmgym.testing.drive import audited, copied, legal_action, same
from llmgym.testing.invariants import Kwargs, make

MOMENTS = (0, 1, 2, 3, 5, 9, 17, 33, 60, 120)
"""Decisions of an episode after which the future is drawn anew."""
WORLDS = 6

HOW = (
    "name in `hidden` every state array ('demand') or field of its records ('lane.key') that a scheduler cannot know, each with "
    "the moment at which it becomes known, name in `shown` the others that differ from world to world, and let `redraw` draw "
    "what is hidden anew"
)


def fields(state: Any, prefix: str = "") -> dict[str, NDArray[Any]]:
    """Every array of a state, and every field of its records, by name."""
    found: dict[str, NDArray[Any]] = {}
    for name, array in zip(state._fields, state):
        if isinstance(array, tuple):
            found |= fields(array, f"{prefix}{name}.")
        elif array.dtype.names:
            found |= {f"{prefix}{name}.{field}": array[field] for field in array.dtype.names}
        else:
            found[f"{prefix}{name}"] = array
    return found


def declared(name: str, names: Collection[str]) -> bool:
    """Whether a field is declared, by itself or with all of its array."""
    return name in names or name.rpartition(".")[0] in names


def changes(before: Any, after: Any) -> set[str]:
    """Names of the fields that differ in any bit."""
    old, new = fields(before), fields(after)
    return {name for name in old if old[name].tobytes() != new[name].tobytes()}


def arguments_for(env_id: str, rule: str, kwargs: Kwargs) -> dict[str, Any]:
    """The arguments of a test case, changed to what a rule needs.

    Args:
        env_id: the environment.
        rule: name of one of its baselines.
        kwargs: arguments of the test case, by name.

    Returns:
        The arguments by name; those that the rule needs replace those of the case, and `rules` and `order` are left out where it
        needs an `action` of its own.

    Raises:
        UnknownName: there is no such rule of this environment.
        InvalidArgument: the name has numbers that the rule does not take.
    """
    needs = baselines.env_kwargs(env_id, rule)
    merged = {**kwargs, **needs}
    if "action" in needs:
        merged = {
            name: value for name, value in merged.items() if name in needs or name not in ("rules", "order")
        }
    return merged


def redrawn(env: Any, key: int) -> Any:
    """A copy of an environment at the same moment, with another future, and its observation and mask written anew."""
    (other,) = copied(env)
    other.simulation.redraw(other.lanes.state, 0, key)
    other.lanes.step(LOOK)
    return other


def look(env: Any) -> list[NDArray[Any]]:
    """What can be seen: the observation and the mask."""
    return [env.lanes.buffers.obs[0].copy(), env.lanes.buffers.mask[0].copy()]


def _declaring(env_id: str, kwargs: Kwargs) -> Any:
    """The environment, which has to say what is hidden, and to be able to draw it anew."""
    env = make(env_id, kwargs)
    simulation: Simulation = env.simulation
    name = type(simulation).__name__
    assert simulation.hidden is not None, f"{name} does not declare what is hidden from a scheduler: {HOW}"
    if type(simulation).redraw is Simulation.redraw and not simulation.only_key_hidden:
        if not simulation.hidden:
            raise SkipTest("nothing is hidden: everything is told at the start")
        raise AssertionError(f"{name} declares what is hidden, but has no `redraw`: {HOW}")
    return env


def what_differs_is_declared(env_id: str, kwargs: Kwargs, worlds: int = WORLDS) -> None:
    """Every field that differs between worlds is declared as hidden or as shown: else it could be a future in disguise.

    Args:
        env_id: the environment.
        kwargs: arguments to make it with.
        worlds: how many worlds are compared with the first one.

    Raises:
        AssertionError: a field is not declared, declared twice, or declared and not there.
    """
    env = make(env_id, kwargs)
    simulation: Simulation = env.simulation
    name = type(simulation).__name__
    assert simulation.hidden is not None, f"{name} does not declare what is hidden from a scheduler: {HOW}"
    env.reset(seed=0)
    first = copy.deepcopy(env.lanes.state)
    worldly: set[str] = set()
    for seed in range(1, worlds + 1):
        env.reset(seed=seed)
        worldly |= changes(first, env.lanes.state)
    known = {*simulation.hidden, *simulation.shown}
    silent = sorted(field for field in worldly if not declared(field, known))
    assert not silent, f"{silent} depend on the world: declare each in `hidden` or in `shown` of {name}"
    names = fields(first)
    arrays = {field.rpartition(".")[0] for field in names}
    absent = sorted(field for field in known if field not in names and field not in arrays)
    assert not absent, f"{name} declares {absent}, which its state does not have; it has {sorted(names)}"
    both = sorted(field for field in simulation.hidden if declared(field, simulation.shown))
    assert not both, f"{name} declares {both} as hidden and as shown: choose one"


def observations_do_not_read_it(env_id: str, kwargs: Kwargs) -> None:
    """The whole future is drawn anew, at many moments, and neither observation nor mask nor clock differs by a bit."""
    env = _declaring(env_id, kwargs)
    hidden = env.simulation.hidden
    touched: set[str] = set()
    for seed in range(3):
        rng = np.random.default_rng(seed)
        _, info = env.reset(seed=seed)
        for step in range(MOMENTS[-1] + 1):
            if step in MOMENTS:
                before = look(env)
                for key in range(2):
                    other = redrawn(env, 1000 * seed + 10 * step + key)
                    _same_look(env, other, before, f"seed {seed}, step {step}, world {key}")
                    touched |= changes(env.lanes.state, other.lanes.state)
                    audit = audited(other)
                    check_audit(audit, {})
                    clock_s = audited(env).get("clock_s")
                    assert audit.get("clock_s") == clock_s, "redraw moves the clock"
            _, _, terminated, truncated, info = env.step(legal_action(env, info["action_mask"], rng))
            if terminated or truncated:
                break
    undeclared = sorted(name for name in touched if not declared(name, {*hidden, *env.simulation.shown}))
    assert not undeclared, (
        f"redraw changes {undeclared}, which are declared neither in `hidden` nor in `shown`"
    )


def _same_look(env: Any, other: Any, before: list[NDArray[Any]], where: str) -> None:
    """Fail if what can be seen changed with the future; names the fields that did."""
    obs, mask = look(other)
    read = [
        field.name
        for field in env.simulation.layout
        if obs[env.simulation.layout[field.name]].tobytes()
        != before[0][env.simulation.layout[field.name]].tobytes()
    ]
    assert not read, (
        f"{where}: the observation fields {read} show what is hidden: read something a scheduler knows"
    )
    same([obs, mask], before, f"{where}: the action mask shows what is hidden")


def all_of_it_is_drawn_anew(env_id: str, cases: Mapping[str, Kwargs]) -> None:
    """Every field declared hidden changes in some case at some moment, so that the other checks draw all of it anew."""
    left: set[str] = set(_declaring(env_id, next(iter(cases.values()))).simulation.hidden)
    for kwargs in cases.values():
        env = make(env_id, kwargs)
        rng = np.random.default_rng(0)
        _, info = env.reset(seed=0)
        for step in range(MOMENTS[-1] + 1):
            if step in MOMENTS:
                touched = changes(env.lanes.state, redrawn(env, step).lanes.state)
                left -= {*touched, *(name.rpartition(".")[0] for name in touched)}
            _, _, terminated, truncated, info = env.step(legal_action(env, info["action_mask"], rng))
            if terminated or truncated or not left:
                break
    assert not left, f"{sorted(left)} are declared hidden, but `redraw` never changes them"


def another_future_is_another_episode(env_id: str, kwargs: Kwargs) -> int:
    """What is drawn anew matters: played on in the same way, the two episodes part.

    Returns:
        In how many of the three worlds they also end with other metrics, which small worlds need not.
    """
    env = _declaring(env_id, kwargs)
    if not env.simulation.hidden:
        raise SkipTest("everything is told at the start")
    parted = other_ends = 0
    for seed in range(3):
        env.reset(seed=seed)
        (seen, end), (other_seen, other_end) = (_played(one, seed) for one in (env, redrawn(env, seed)))
        other_ends += end != other_end
        parted += end != other_end or seen != other_seen
    assert parted == 3, (
        f"with another future, {3 - parted} of 3 episodes are the same: redraw all that is to come"
    )
    return other_ends


def _played(env: Any, seed: int) -> tuple[list[bytes], dict[str, float]]:
    """The observations of an episode that is played to its end, and its metrics."""
    rng = np.random.default_rng(seed)
    total = 0.0
    seen = []
    for _ in range(20_000):
        if env.lanes.buffers.ended[0]:
            break
        obs, reward, *_ = env.step(legal_action(env, env.lanes.buffers.mask[0], rng))
        total += reward
        seen.append(obs.tobytes())
    metrics: dict[str, float] = env.metrics()
    check_return(env, total, metrics)
    # without the name of the world, which redraw writes by itself
    return seen, {name: value for name, value in metrics.items() if name != "world_checksum"}


def episode_goes_on_with_another_future(env_id: str, kwargs: Kwargs) -> None:
    """The future is drawn anew again and again, in place: counters stay those of the raw arrays, and the episode ends."""
    env = _declaring(env_id, kwargs)
    for seed in range(2):
        rng = np.random.default_rng(seed)
        env.reset(seed=seed)
        audit = audited(env)
        terminated = truncated = False
        for step in range(20_000):
            if step in MOMENTS:
                env.simulation.redraw(env.lanes.state, 0, 100 * seed + step)
                env.lanes.step(LOOK)
            action = legal_action(env, env.lanes.buffers.mask[0], rng)
            obs, _, terminated, truncated, _ = env.step(action)
            before, audit = audit, audited(env)
            check_audit(audit, before)
            check_observation(env, obs)
            if terminated or truncated:
                break
        assert terminated or truncated, "after a redraw, no end within 20,000 steps"


def rule_does_not_read_it(env_id: str, rule: str, kwargs: Kwargs, moments: Iterable[int] = MOMENTS) -> None:
    """A rule that is not privileged decides alike whatever is still to come, with whatever it remembers.

    Args:
        env_id: the environment.
        rule: name of one of its baselines.
        kwargs: arguments of the environment, before those that the rule needs.
        moments: decisions at which the future is drawn anew.

    Raises:
        AssertionError: a decision differs, or too few were compared.
        SkipTest: the rule says that it is privileged.
    """
    env = _declaring(env_id, arguments_for(env_id, rule, kwargs))
    policy = baselines.make(rule, env)
    if policy.privileged:
        raise SkipTest("it says that it is privileged")
    looked = sorted(moments)
    compared = 0
    for seed in range(2):
        _, info = env.reset(seed=seed)
        policy.reset(np.ones(1, np.bool_))
        for step in range(looked[-1] + 1):
            obs = env.lanes.buffers.obs.copy()
            mask = info["action_mask"][None] if env.simulation.mask_size else None
            if step in looked:
                expected = np.asarray(copy.deepcopy(policy).act(obs, mask))
                # what a rule reads need not change its decision in every world
                for world in range(WORLDS // 2):
                    other, twin = copied(env, policy)
                    other.simulation.redraw(other.lanes.state, 0, 1000 * seed + 7 * step + world)
                    other.lanes.step(LOOK)
                    where = f"seed {seed}, step {step}, world {world}"
                    _same_look(env, other, look(env), where)
                    told = f"{where}: rule {rule!r} decides by what is hidden; if it may, set `privileged = True`"
                    same(np.asarray(twin.act(obs, mask)), expected, told)
                compared += 1
            action = np.asarray(policy.act(obs, mask))[0]
            _, _, terminated, truncated, info = env.step(int(action) if np.ndim(action) == 0 else action)
            if terminated or truncated:
                break
    assert compared > 2, f"only {compared} decisions were compared: name a case with longer episodes first"
