"""I11: neither an observation, nor a mask, nor a rule that is not privileged reads what a real scheduler could not know.

Every environment declares what is hidden (`Simulation.hidden`) and draws it anew on demand (`Simulation.redraw`). Here, at many
moments of an episode, the whole future is drawn anew: how much will arrive and when, every length, outcome and speed that is
still to come, and all that the state derives from them. Not a bit of what can be seen may differ. An environment without a
declaration fails.
"""

import copy
from typing import Any

import numpy as np
import pytest

import llmgym
from llmgym import baselines
from llmgym.core.lanes import LOOK, Simulation
from llmgym.envs import scenario_names
from tests.core.drive import legal_action, same
from tests.envs.test_every_env import CASES, check_audit, every_case, every_id, make

MOMENTS = (0, 1, 2, 3, 5, 9, 17, 33, 60, 120)
"""Decisions of an episode after which the future is drawn anew."""
WORLDS = 6

SLOW_RULES = {("llmgym/OServe-v0", "oserve-lstm")}
"""Rules that learn something before they decide."""


def fields(state: Any, prefix: str = "") -> dict[str, np.ndarray]:
    """Every array of a state, and every field of its records, by name."""
    found: dict[str, np.ndarray] = {}
    for name, array in zip(state._fields, state):
        if isinstance(array, tuple):
            found |= fields(array, f"{prefix}{name}.")
        elif array.dtype.names:
            found |= {f"{prefix}{name}.{field}": array[field] for field in array.dtype.names}
        else:
            found[f"{prefix}{name}"] = array
    return found


def declared(name: str, names: Any) -> bool:
    """Whether a field is declared, by itself or with all of its array."""
    return name in names or name.rpartition(".")[0] in names


def changes(before: Any, after: Any) -> set[str]:
    """Names of the fields that differ in any bit."""
    old, new = fields(before), fields(after)
    return {name for name in old if old[name].tobytes() != new[name].tobytes()}


def arguments_for(env_id: str, rule: str, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a test case, changed to what a rule needs."""
    needs = baselines.env_kwargs(env_id, rule)
    merged = {**kwargs, **needs}
    if "action" in needs:
        merged = {
            name: value for name, value in merged.items() if name in needs or name not in ("rules", "order")
        }
    return merged


def redrawn(env: Any, key: int) -> Any:
    """A copy of an environment at the same moment, with another future, and its observation and mask written anew."""
    other = copy.deepcopy(env)
    other.simulation.redraw(other.lanes.state, 0, key)
    other.lanes.step(LOOK)
    return other


def look(env: Any) -> list[np.ndarray]:
    return [env.lanes.buffers.obs[0].copy(), env.lanes.buffers.mask[0].copy()]


@every_case
def test_what_differs_between_worlds_is_declared_hidden_or_shown(env_id, kwargs):
    """A field that depends on the world and that nobody declared could be a future in disguise."""
    env = make(env_id, kwargs)
    simulation: Simulation = env.simulation
    assert simulation.hidden is not None, f"{env_id} does not declare what is hidden"
    env.reset(seed=0)
    first = copy.deepcopy(env.lanes.state)
    worldly = set()
    for seed in range(1, WORLDS + 1):
        env.reset(seed=seed)
        worldly |= changes(first, env.lanes.state)
    known = {*simulation.hidden, *simulation.shown}
    silent = sorted(name for name in worldly if not declared(name, known))
    assert not silent, f"{env_id}: {silent} depend on the world: declare each as hidden or as shown"
    names = fields(first)
    arrays = {name.rpartition(".")[0] for name in names}
    assert not [name for name in known if name not in names and name not in arrays], "declared, but not there"
    both = [name for name in simulation.hidden if declared(name, simulation.shown)]
    assert not both, f"{both} are declared as hidden and as shown"


@every_id
def test_declarations_are_those_of_every_scenario(env_id):
    """What never differs in the small worlds of the other tests may differ in large ones."""
    silent = {}
    for scenario in scenario_names(env_id):
        env = make(env_id, {"scenario": scenario})
        known = {*env.simulation.hidden, *env.simulation.shown}
        env.reset(seed=0)
        first = copy.deepcopy(env.lanes.state)
        worldly = set()
        for seed in (1, 2, 3):
            env.reset(seed=seed)
            worldly |= changes(first, env.lanes.state)
        if found := sorted(name for name in worldly if not declared(name, known)):
            silent[scenario] = found
    assert not silent, "these depend on the world: declare each as hidden or as shown"


@every_case
def test_observations_and_masks_do_not_read_what_is_hidden(env_id, kwargs):
    """The whole future is drawn anew, at many moments; and it was the whole: every field that is declared hidden changes."""
    env = make(env_id, kwargs)
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
                    same(look(other), before, f"seed {seed}, step {step}, world {key}")
                    touched |= changes(env.lanes.state, other.lanes.state)
                    audit = other.simulation.audit(other.lanes.state, 0)
                    check_audit(audit, {})
                    assert audit.get("clock_s") == env.simulation.audit(env.lanes.state, 0).get("clock_s")
            _, _, terminated, truncated, info = env.step(legal_action(env, info["action_mask"], rng))
            if terminated or truncated:
                break
    undeclared = sorted(name for name in touched if not declared(name, {*hidden, *env.simulation.shown}))
    assert not undeclared, f"redraw changes {undeclared}, which are not declared hidden"


@every_id
def test_all_that_is_declared_hidden_is_drawn_anew(env_id):
    """So that the tests above redraw the whole of it."""
    left = set(make(env_id, next(iter(CASES[env_id].values()))).simulation.hidden)
    for kwargs in CASES[env_id].values():
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
    assert not left, f"{env_id}: {sorted(left)} are hidden, but never drawn anew"


@every_case
def test_another_future_is_another_episode(env_id, kwargs):
    """What is drawn anew matters: played on in the same way, the two episodes part."""
    env = make(env_id, kwargs)
    if not env.simulation.hidden:
        pytest.skip("everything is told at the start")
    parted = 0
    for seed in range(3):
        env.reset(seed=seed)
        other = redrawn(env, seed)
        ends = []
        for one in (env, other):
            rng = np.random.default_rng(seed)
            total = 0.0
            for _ in range(20_000):
                if one.lanes.buffers.ended[0]:
                    break
                total += one.step(legal_action(one, one.lanes.buffers.mask[0], rng))[1]
            expected = one.simulation.expected_return(one.metrics())
            assert total == pytest.approx(expected, rel=1e-6, abs=1e-9)
            # without the name of the world, which redraw writes by itself
            ends.append({name: value for name, value in one.metrics().items() if name != "world_checksum"})
        parted += ends[0] != ends[1]
    assert parted == 3


@every_case
def test_an_episode_goes_on_with_another_future(env_id, kwargs):
    """The future is drawn anew again and again, in place: counters stay those of the raw arrays, and the episode ends."""
    env = make(env_id, kwargs)
    for seed in range(2):
        rng = np.random.default_rng(seed)
        env.reset(seed=seed)
        audit = env.simulation.audit(env.lanes.state, 0)
        for step in range(20_000):
            if step in MOMENTS:
                env.simulation.redraw(env.lanes.state, 0, 100 * seed + step)
                env.lanes.step(LOOK)
            action = legal_action(env, env.lanes.buffers.mask[0], rng)
            obs, _, terminated, truncated, _ = env.step(action)
            before, audit = audit, env.simulation.audit(env.lanes.state, 0)
            check_audit(audit, before)
            assert obs in env.observation_space, obs
            if terminated or truncated:
                break
        assert terminated or truncated


def _rules() -> list[Any]:
    found = []
    for env_id in llmgym.env_ids():
        for rule in baselines.names(env_id):
            marks = [pytest.mark.slow] if (env_id, rule) in SLOW_RULES else []
            found.append(pytest.param(env_id, rule, id=f"{env_id.partition('/')[2]}-{rule}", marks=marks))
    return found


@pytest.mark.parametrize(("env_id", "rule"), _rules())
def test_rules_do_not_read_what_is_hidden(env_id, rule):
    """A rule that is not privileged decides the same whatever is still to come, with whatever it remembers."""
    kwargs = arguments_for(env_id, rule, next(iter(CASES[env_id].values())))
    env = make(env_id, kwargs)
    policy = baselines.make(rule, env)
    if policy.privileged:
        pytest.skip("it says that it is privileged")
    compared = 0
    for seed in range(2):
        _, info = env.reset(seed=seed)
        policy.reset(np.ones(1, np.bool_))
        for step in range(MOMENTS[-1] + 1):
            obs = env.lanes.buffers.obs.copy()
            mask = info["action_mask"][None] if env.simulation.mask_size else None
            if step in MOMENTS:
                expected = np.asarray(copy.deepcopy(policy).act(obs, mask))
                for world in range(
                    WORLDS // 2
                ):  # what a rule reads need not change its decision in every one
                    other, twin = copy.deepcopy((env, policy))
                    other.simulation.redraw(other.lanes.state, 0, 1000 * seed + 7 * step + world)
                    other.lanes.step(LOOK)
                    same(look(other), look(env), f"seed {seed}, step {step}, world {world}")
                    same(
                        np.asarray(twin.act(obs, mask)), expected, f"seed {seed}, step {step}, world {world}"
                    )
                compared += 1
            action = np.asarray(policy.act(obs, mask))[0]
            _, _, terminated, truncated, info = env.step(int(action) if np.ndim(action) == 0 else action)
            if terminated or truncated:
                break
    assert compared > 2
