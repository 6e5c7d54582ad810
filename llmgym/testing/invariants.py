"""What holds for every environment, one function each: spaces, bits, lanes, actions, counts, returns, metrics, arguments.

A function takes an id and the arguments to make it with, plays, and raises `AssertionError` where something does not hold, or
`unittest.SkipTest` where an environment does not offer what is checked. What is hidden has functions of its own
(`llmgym.testing.hidden`); what holds of one observation, one recount or one set of metrics is in `llmgym.testing.checks`.
"""

import hashlib
import os
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import Any
from unittest import SkipTest

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from llmgym.core.env import LaneVectorEnv
from llmgym.core.spec import find
from llmgym.errors import InvalidAction, InvalidArgument
from llmgym.testing.checks import (
    Counts,
    check_audit,
    check_metrics,
    check_observation,
    check_return,
    check_tables,
    close,
)
from llmgym.testing.drive import audited, check_lanes_are_singles, copied, legal_action, legal_actions, same

Kwargs = Mapping[str, Any]
Counting = Callable[[Any, dict[str, float]], Counts]

LANE_STEPS = 10_000
"""Steps, over all lanes, in which a vector environment is compared with single ones, at most."""

BAD_ARGUMENTS: dict[str, Any] = {
    "scenario": "no-such",
    "render_mode": "hologram",
    "invalid_action": "no",
    "no_such_argument": 1,
}


def make(env_id: str, kwargs: Kwargs, **more: Any) -> Any:
    """Make a single environment, without wrappers.

    Args:
        env_id: the environment.
        kwargs: arguments to make it with.
        more: further arguments of `gymnasium.make`.

    Returns:
        The environment.
    """
    return gymnasium.make(env_id, **kwargs, **more).unwrapped


def make_strict(env_id: str, kwargs: Kwargs) -> Any:
    """The environment, made so that a masked action is an error, whether or not it has an argument for that."""
    try:
        return make(env_id, {**kwargs, "invalid_action": "raise"})
    except TypeError:
        env = make(env_id, kwargs)
        env.simulation.raise_on_masked = True
        return env


def rollout(env: Any, seed: int | None, action_seed: int, most: int = 100_000) -> Iterator[Any]:
    """Play one episode of random legal actions.

    Args:
        env: a single environment.
        seed: of the world; None: the next one.
        action_seed: of the actions.
        most: steps after which it stops, though the episode goes on.

    Returns:
        An iterator of (obs, reward, terminated, truncated, info): of the reset, with a reward of 0, and of every step.
    """
    rng = np.random.default_rng(action_seed)
    obs, info = env.reset(seed=seed)
    yield obs, 0.0, False, False, info
    for _ in range(most):
        result = env.step(legal_action(env, info["action_mask"], rng))
        yield result
        info = result[4]
        if result[2] or result[3]:
            return


def it_runs(env_id: str, kwargs: Kwargs) -> None:
    """An environment can be made, reset and stepped at all."""
    env = make(env_id, kwargs)
    _, info = env.reset(seed=0)
    env.step(legal_action(env, info["action_mask"], np.random.default_rng(0)))
    env.metrics()


def spaces_and_types(env_id: str, kwargs: Kwargs) -> None:
    """`make` and `make_vec` agree on the spaces, and what they return is in them."""
    envs: Any = gymnasium.make_vec(env_id, num_envs=3, **kwargs)
    assert isinstance(envs, LaneVectorEnv), (
        f"make_vec gives a {type(envs).__name__}: name a LaneVectorEnv as `vector_env` when you register it"
    )
    obs, infos = envs.reset(seed=0)
    single = make(env_id, kwargs)
    assert single.observation_space == envs.single_observation_space, "one lane and many have other spaces"
    assert single.action_space == envs.single_action_space, "one lane and many have other actions"
    check_tables(single)
    rng = np.random.default_rng(0)
    for _ in range(2):
        assert obs.shape == (3, single.simulation.layout.size), f"observations have shape {obs.shape}"
        for lane in range(3):
            check_observation(single, obs[lane])
        assert obs in envs.observation_space
        mask = infos["action_mask"]
        assert mask.shape == (3, envs.simulation.mask_size), f"masks have shape {mask.shape}"
        obs, rewards, terminated, truncated, infos = envs.step(
            legal_actions(envs.single_action_space, mask, rng)
        )
        kinds = [str(part.dtype) for part in (rewards, terminated, truncated, infos["dt"])]
        assert kinds == ["float64", "bool", "bool", "float64"], kinds
    envs.close()


def counts_time_bounds_and_return(
    env_id: str, kwargs: Kwargs, seed: int, action_seed: int, counting: Counting | None = None
) -> None:
    """After every step: observations in their bounds, an action that is allowed, counts that add up, a clock that only goes on.

    At the end: finite metrics, and a return that is its metric.

    Args:
        env_id: the environment.
        kwargs: its arguments.
        seed: of the world.
        action_seed: of the actions.
        counting: called with the environment and its metrics, says how many things each metric is taken of; None: not known.
    """
    env = make_strict(env_id, kwargs)
    clock, total, spent = 0.0, 0.0, 0.0
    audit: dict[str, float] = {}
    start = None
    terminated = truncated = False
    info: dict[str, Any] = {}
    for obs, reward, terminated, truncated, info in rollout(env, seed, action_seed):
        check_observation(env, obs)
        assert obs in env.observation_space, obs
        assert type(reward) is float and type(terminated) is bool and type(truncated) is bool
        assert np.isfinite(reward), f"a reward is {reward}"
        mask = info["action_mask"]
        assert mask.dtype == np.int8 and mask.shape == (env.simulation.mask_size,)
        assert set(np.unique(mask)) <= {0, 1}, f"a mask is made of 0 and 1, not of {np.unique(mask)}"
        if isinstance(env.action_space, Discrete):
            assert mask.any(), "no action is allowed: leave at least one in `mask_lane`"
        before, audit = audit, audited(env)
        check_audit(audit, before)
        assert info["dt"] >= 0.0, f"a step took {info['dt']} s"
        spent += info["dt"]
        total += reward
        if "clock_s" in audit:
            start = audit["clock_s"] if start is None else start
            assert audit["clock_s"] >= clock, f"the clock went back from {clock} s to {audit['clock_s']} s"
            clock = audit["clock_s"]
            assert close(clock, start + spent, 1e-9, 1e-9), (
                f"the clock shows {clock} s, the `dt` of all steps add up to {start + spent} s"
            )
    assert terminated or truncated, "no end after 100,000 steps: terminate, or truncate at a horizon"
    metrics = info["metrics"]
    assert set(metrics) == set(env.simulation.metric_names)
    check_metrics(metrics, None if counting is None else counting(env, metrics))
    assert metrics.get("invalid_actions", 0.0) == 0.0, "an unmasked action was counted as invalid"
    check_return(env, total, metrics)


def audit_is_told(env_id: str, kwargs: Kwargs) -> None:
    """Whether an environment lets itself be recounted."""
    env = make(env_id, kwargs)
    env.reset(seed=0)
    audit = audited(env)
    if not audit:
        raise SkipTest(
            "nothing is recounted: name a function in the spec, EnvSpec(..., audit='module:function'), which returns what can be "
            "held to each other, such as clock_s, arrived, waiting, done"
        )
    check_audit(audit, {})


def metrics_before_there_is_anything(env_id: str, kwargs: Kwargs, counting: Counting | None = None) -> None:
    """Right after a reset, and after one step, metrics are finite or NaN, and the return is a number all the same.

    Args:
        env_id: the environment.
        kwargs: arguments to make it with.
        counting: called with the environment and its metrics, says how many things each metric is taken of; None: not known.

    Raises:
        AssertionError: a metric or the return is something else.
    """
    env = make(env_id, kwargs)
    _, info = env.reset(seed=3)
    metrics = env.lanes.metrics_now(0)
    check_metrics(metrics, None if counting is None else counting(env, metrics))
    expected = env.simulation.expected_return(metrics)
    assert np.isfinite(expected), (
        f"expected_return is {expected} where nothing has happened yet: compute it from sums, not from means"
    )
    env.step(legal_action(env, info["action_mask"], np.random.default_rng(0)))
    metrics = env.lanes.metrics_now(0)
    check_metrics(metrics, None if counting is None else counting(env, metrics))


def same_seed_same_bits(env_id: str, kwargs: Kwargs, seed: int, action_seed: int) -> None:
    """Two environments, and one that is reset again, play one episode alike, and go on to the same next one.

    Args:
        env_id: the environment.
        kwargs: arguments to make it with.
        seed: of the world.
        action_seed: of the actions.

    Raises:
        AssertionError: a bit differs.
    """
    first, second = make(env_id, kwargs), make(env_id, kwargs)
    plays = []
    for env in (first, second, first):
        plays.append([*rollout(env, seed, action_seed, 300), env.reset()])
    for which, other in (("another environment", plays[1]), ("the same environment, reset again,", plays[2])):
        assert len(other) == len(plays[0]), f"with the same seed, {which} ends at another step"
        for step, (one, two) in enumerate(zip(plays[0], other)):
            same(list(two), list(one), f"with the same seed, {which} differs at step {step}")


def lane_is_single(
    env_id: str, kwargs: Kwargs, mode: AutoresetMode, lanes: list[int], action_seed: int, episodes: int = 4
) -> int:
    """A lane of a vector environment is the single environment, bit for bit, over several episodes.

    Args:
        env_id: the environment.
        kwargs: arguments to make it with.
        mode: what happens where an episode has ended.
        lanes: seeds of the lanes.
        action_seed: of the actions.
        episodes: of every lane, unless `LANE_STEPS` end before.

    Returns:
        How many episodes ended, in all lanes.

    Raises:
        AssertionError: a bit differs.
    """
    return check_lanes_are_singles(
        lambda: make(env_id, kwargs),
        lambda n, **more: gymnasium.make_vec(env_id, num_envs=n, **kwargs, **more),
        lanes,
        mode,
        -(-LANE_STEPS // len(lanes)),
        action_seed,
        episodes,
    )


def digest(env_id: str, kwargs: Kwargs) -> str:
    """A hash of everything 8 lanes return in 300 steps."""
    envs: Any = gymnasium.make_vec(env_id, num_envs=8, autoreset_mode=AutoresetMode.SAME_STEP, **kwargs)
    rng = np.random.default_rng(7)
    obs, infos = envs.reset(seed=11)
    summary = hashlib.sha256(obs.tobytes())
    for _ in range(300):
        actions = legal_actions(envs.single_action_space, infos["action_mask"], rng)
        obs, rewards, terminated, truncated, infos = envs.step(actions)
        for part in (obs, rewards, terminated, truncated, infos["dt"], infos["action_mask"]):
            summary.update(np.ascontiguousarray(part).tobytes())
        if "final_info" in infos:
            for name in envs.simulation.metric_names:
                summary.update(infos["final_info"]["metrics"][name].tobytes())
    envs.close()
    return summary.hexdigest()


_ELSEWHERE = """
import importlib, pickle, sys
env_id, cases, module, home, spec, entries = pickle.load(sys.stdin.buffer)
import gymnasium
if module:
    assert module not in sys.modules
    gymnasium.make(f"{module}:{env_id}", **next(iter(cases.values()))).reset(seed=0)
importlib.import_module(home)
import llmgym
if spec:
    llmgym.register(llmgym.EnvSpec(**spec))
elif env_id not in gymnasium.registry:
    gymnasium.register(env_id, entry_point=entries[0], vector_entry_point=entries[1])
from llmgym.testing.invariants import digest
pickle.dump({name: digest(env_id, kwargs) for name, kwargs in cases.items()}, sys.stdout.buffer)
"""


def another_process_same_bits(
    env_id: str, cases: Mapping[str, Kwargs], module: str | None = None
) -> dict[str, str]:
    """A process of its own, with another order of hashes, computes the bits that this one does.

    Args:
        env_id: the environment.
        cases: arguments by name.
        module: one that registers it when gymnasium imports it for the id `module:env_id`; None: not checked.

    Returns:
        The hash of each case.

    Raises:
        AssertionError: it fails, or a hash differs.
        SkipTest: the environment or its arguments cannot be brought to another process.
    """
    single = type(make(env_id, next(iter(cases.values()))))
    home = single.__module__
    if home == "__main__":
        raise SkipTest("it is written in __main__, where another process cannot import it: move it to a file")
    vector: Any = gymnasium.make_vec(env_id, num_envs=1, **next(iter(cases.values())))
    entries = tuple(f"{one.__module__}:{one.__qualname__}" for one in (single, type(vector)))
    spec = find(env_id)
    try:
        question = pickle.dumps((env_id, dict(cases), module, home, asdict(spec) if spec else None, entries))
    except Exception as error:
        raise SkipTest(f"the arguments of its cases cannot be sent to another process: {error}") from None
    here = {name: digest(env_id, kwargs) for name, kwargs in cases.items()}
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": "1"}
    done = subprocess.run(
        [sys.executable, "-c", _ELSEWHERE], env=environment, input=question, capture_output=True
    )
    assert done.returncode == 0, (
        f"another process fails: {done.stderr.decode(errors='replace').strip()[-2000:]}"
    )
    there = pickle.loads(done.stdout)
    differ = sorted(name for name in here if here[name] != there[name])
    assert not differ, (
        f"another process computes other bits in {differ}: nothing may depend on the order of a set or of hashes, on time, "
        "or on a generator that is not seeded by the key"
    )
    return here


def _tries(space: Any, mask: NDArray[np.int8], rng: np.random.Generator) -> Iterator[tuple[Any, bool]]:
    """Every action, or every choice of every part beside allowed ones, and whether it is allowed."""
    if isinstance(space, Discrete):
        yield from ((action, bool(allowed)) for action, allowed in enumerate(mask.tolist()))
        return
    start = 0
    for part, size in enumerate(space.nvec.tolist()):
        for value in range(size):
            action = legal_actions(space, mask[None], rng)[0]
            action[part] = value
            yield action, bool(mask[start + value])
        start += size


def actions_accepted_or_safe(env_id: str, kwargs: Kwargs, seed: int, action_seed: int) -> None:
    """Every unmasked action is accepted and a masked one is safe, tried on copies of states along an episode.

    Args:
        env_id: the environment.
        kwargs: arguments to make it with.
        seed: of the world.
        action_seed: of the actions.

    Raises:
        AssertionError: an unmasked action is refused or counted, or a masked one breaks a bound or is not told.
        SkipTest: the actions are continuous.
    """
    env = make(env_id, kwargs)
    if isinstance(env.action_space, Box):
        raise SkipTest("every element of a continuous action space is allowed")
    strict = make_strict(env_id, kwargs)
    rng = np.random.default_rng(action_seed)
    counted = "invalid_actions" in env.simulation.metric_names
    for number, ((*_, terminated, truncated, info), _) in enumerate(
        zip(rollout(env, seed, action_seed), rollout(strict, seed, action_seed))
    ):
        if terminated or truncated:
            break
        if number % 23:
            continue
        for action, allowed in _tries(env.action_space, info["action_mask"], rng):
            _try(copied(env)[0], copied(strict)[0], action, allowed, counted, rng)


def _try(env: Any, strict: Any, action: Any, allowed: bool, counted: bool, rng: np.random.Generator) -> None:
    """One action on two copies of one state: where masked actions are told, and where they are errors."""
    if allowed:
        same(list(env.step(action)[:4]), list(strict.step(action)[:4]), f"unmasked action {action}")
        assert env.metrics().get("invalid_actions", 0.0) == 0.0, f"unmasked action {action} counts as invalid"
        return
    if not env.simulation.raise_on_masked:
        obs, reward, *_ = env.step(action)
        check_observation(env, obs)
        assert np.isfinite(reward), f"masked action {action} is rewarded with {reward}"
        if counted:
            found = env.metrics()["invalid_actions"]
            assert found == 1.0, f"masked action {action} was counted {found:g} times in invalid_actions"
        check_audit(audited(env), {})
    try:
        strict.step(action)
    except InvalidAction as error:
        assert "masked" in str(error), f"masked action {action}: {error}"
    else:
        raise AssertionError(f"masked action {action} is accepted where masked actions are errors")
    strict.step(legal_action(strict, strict.lanes.buffers.mask[0], rng))


def return_with_masked_actions(env_id: str, kwargs: Kwargs, seed: int, action_seed: int) -> None:
    """The rewards of a policy that knows no masks add up to what its metrics stand for, too.

    Args:
        env_id: the environment.
        kwargs: arguments to make it with.
        seed: of the world.
        action_seed: of the actions.

    Raises:
        AssertionError: it is not, or the episode has no end.
        SkipTest: masked actions are errors in this environment.
    """
    env = make(env_id, kwargs)
    if env.simulation.raise_on_masked:
        raise SkipTest("masked actions are errors here")
    env.reset(seed=seed)
    env.action_space.seed(action_seed % 2**32)
    total, done, steps = 0.0, False, 0
    info: dict[str, Any] = {}
    while not done and steps < 20_000:
        obs, reward, terminated, truncated, info = env.step(env.action_space.sample())
        total, done, steps = total + reward, terminated or truncated, steps + 1
        check_observation(env, obs)
    assert done, "no end after 20,000 steps: terminate, or truncate at a horizon"
    check_audit(audited(env), {})
    check_return(env, total, info["metrics"])


def gymnasium_checker(env_id: str, kwargs: Kwargs) -> None:
    """Gymnasium's own checker has nothing to say, not even a warning; that there is a newer version is none."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*is out of date")
        try:
            check_env(make(env_id, kwargs))
        except (Warning, gymnasium.error.Error) as error:
            raise AssertionError(f"gymnasium's checker says: {error}") from error


def bad_argument_is_named(env_id: str, argument: str, value: Any) -> None:
    """A wrong value, or an argument that there is none, is refused with an error that names the argument.

    Args:
        env_id: the environment.
        argument: name of the argument.
        value: a wrong value for it.

    Raises:
        AssertionError: it is accepted, or the error is another.
    """
    try:
        if argument == "render_mode":
            entry: Any = gymnasium.spec(env_id).entry_point
            creator: Any = (
                gymnasium.envs.registration.load_env_creator(entry) if isinstance(entry, str) else entry
            )
            creator(render_mode=value)
        else:
            make(env_id, {argument: value})
    except (InvalidArgument, TypeError) as error:
        assert argument in str(error), f"{argument}={value!r}: the error does not name {argument!r}: {error}"
    except Exception as error:
        raise AssertionError(
            f"{argument}={value!r}: raises {type(error).__name__} ({error}); raise an InvalidArgument that names it"
        ) from error
    else:
        raise AssertionError(
            f"{argument}={value!r} is accepted: check it in __init__ (see llmgym.core.checks)"
        )
