"""How environments are driven in tests: random legal actions, and comparisons that let no bit differ."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from gymnasium.spaces import Box, MultiDiscrete
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from llmgym.core.spec import find

MODES = tuple(AutoresetMode)


def copied(env: Any, *others: Any) -> Any:
    """Copies of an environment in the midst of an episode, and of what acts on it, that go on by themselves.

    They share the simulation, as the lanes of a vector environment do: an episode is in the arrays alone.
    """
    shared = (env.simulation, env.observation_space, env.action_space, env.spec)
    return copy.deepcopy((env, *others), {id(one): one for one in shared})


def legal_actions(space: Any, masks: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
    """Draw one random unmasked action for each lane.

    Args:
        space: of the actions of one lane: Discrete, MultiDiscrete or Box.
        masks: 1 for what is allowed, int8 [lanes, actions]; a Box has no use for its entries.
        rng: source of the draws.

    Returns:
        int64 [lanes] for Discrete, int64 [lanes, parts] for MultiDiscrete, [lanes, *shape] of the type of the space for a Box.
    """
    lanes = len(masks)
    if isinstance(space, Box):
        return rng.uniform(space.low, space.high, (lanes, *space.shape)).astype(space.dtype)
    chances = np.where(masks, rng.random(masks.shape), -1.0)
    if isinstance(space, MultiDiscrete):
        parts = np.split(chances, np.cumsum(space.nvec)[:-1], axis=1)
        return np.stack([part.argmax(axis=1) for part in parts], axis=1)
    return chances.argmax(axis=1)


def legal_action(env: Any, mask: NDArray[Any], rng: np.random.Generator) -> Any:
    """Draw one random unmasked action of a single environment.

    Args:
        env: the environment.
        mask: 1 for what is allowed, int8 [actions].
        rng: source of the draws.

    Returns:
        An int for Discrete, else an array of the shape of the action space.
    """
    action = legal_actions(env.action_space, mask[None], rng)[0]
    return action if isinstance(env.action_space, Box | MultiDiscrete) else int(action)


def same(got: Any, expected: Any, where: str = "") -> None:
    """Fail unless two values are the same bits; dicts have the same keys, tuples and lists the same length.

    Args:
        got: what there is: an array, a number, or dicts, tuples and lists of them.
        expected: what there has to be.
        where: told with the failure.

    Raises:
        AssertionError: they differ in a bit, in a shape or in a dtype.
    """
    if isinstance(expected, dict):
        assert set(got) == set(expected), f"{where}: {sorted(got)} are not {sorted(expected)}"
        for key in expected:
            same(got[key], expected[key], f"{where}.{key}")
    elif isinstance(expected, tuple | list):
        assert len(got) == len(expected), f"{where}: {len(got)} entries are not {len(expected)}"
        for k, value in enumerate(expected):
            same(got[k], value, f"{where}[{k}]")
    else:
        ours, theirs = np.asarray(got), np.asarray(expected)
        assert ours.dtype == theirs.dtype != object and ours.shape == theirs.shape, (
            f"{where}: {ours.dtype}{ours.shape} is not {theirs.dtype}{theirs.shape}"
        )
        assert ours.tobytes() == theirs.tobytes(), f"{where}: {got} is not {expected}"


def audited(env: Any) -> dict[str, float]:
    """Lane 0 of an environment, recounted from its raw arrays; empty where its spec names nothing that does."""
    inner = env.unwrapped
    known = find(inner.spec.id) if inner.spec is not None else None
    if known is None:
        method = getattr(inner.simulation, "audit", None)
        return {} if method is None else dict(method(inner.lanes.state, 0))
    audit = known.auditor()
    return {} if audit is None else audit(inner.simulation, inner.lanes.state, 0)


def row(infos: dict[str, Any], lane: int) -> dict[str, Any]:
    """What a vector environment's infos say about one lane, as a single environment would say it."""
    mine = {}
    for key, value in infos.items():
        if not key.startswith("_") and infos[f"_{key}"][lane]:
            mine[key] = row(value, lane) if isinstance(value, dict) else value[lane]
    return mine


def check_lanes_are_singles(
    make_single: Callable[[], Any],
    make_vector: Callable[..., Any],
    seeds: Sequence[int],
    mode: AutoresetMode,
    steps: int,
    action_seed: int,
    enough: int | None = None,
) -> int:
    """Step a vector environment and one single environment per lane, and compare all that they return.

    Args:
        make_single: makes a single environment.
        make_vector: makes a vector environment of so many lanes.
        seeds: of the lanes.
        mode: what happens where an episode has ended.
        steps: of every lane, at most.
        action_seed: of the actions.
        enough: episodes of every lane after which it ends; None: only after all steps.

    Returns:
        How many episodes ended, in all lanes.

    Raises:
        AssertionError: a bit differs.
    """
    envs = make_vector(len(seeds), autoreset_mode=mode)
    singles = [make_single() for _ in seeds]
    rng = np.random.default_rng(action_seed)
    obs, infos = envs.reset(seed=list(seeds))
    for lane, (single, seed) in enumerate(zip(singles, seeds)):
        first, info = single.reset(seed=seed)
        same(obs[lane], first, "reset obs")
        same(row(infos, lane), info, "reset info")
    ended = np.zeros(len(seeds), bool)
    episodes = np.zeros(len(seeds), np.int64)
    for step in range(steps):
        if enough is not None and (episodes >= enough).all():
            break
        actions = legal_actions(envs.single_action_space, infos["action_mask"], rng)
        obs, rewards, terminated, truncated, infos = envs.step(actions)
        assert obs.dtype == np.float32, f"observations are {obs.dtype}, not float32"
        assert infos["action_mask"].dtype == np.int8, f"masks are {infos['action_mask'].dtype}, not int8"
        for lane, single in enumerate(singles):
            where = f"step {step}, lane {lane}, {mode}"
            if mode == AutoresetMode.NEXT_STEP and ended[lane]:
                first, info = single.reset()
                same(obs[lane], first, where)
                same(row(infos, lane), info, where)
                assert rewards[lane] == 0.0 and not terminated[lane] and not truncated[lane], where
                continue
            action = actions[lane] if np.ndim(actions[lane]) else int(actions[lane])
            last, reward, one_terminated, one_truncated, info = single.step(action)
            same(rewards[lane], reward, f"{where} reward")
            assert (bool(terminated[lane]), bool(truncated[lane])) == (one_terminated, one_truncated), where
            if mode == AutoresetMode.SAME_STEP and (one_terminated or one_truncated):
                same(infos["final_obs"][lane], last, f"{where} final_obs")
                mine = row(infos, lane)
                same(mine.pop("final_info"), info, f"{where} final_info")
                del mine["final_obs"]
                first, info = single.reset()
                same(obs[lane], first, where)
                same(mine, info, where)
            else:
                same(obs[lane], last, where)
                same(row(infos, lane), info, where)
        ended = terminated | truncated
        episodes += ended
        if mode == AutoresetMode.DISABLED and ended.any():
            obs, infos = envs.reset(options={"reset_mask": ended})
            for lane in np.flatnonzero(ended).tolist():
                first, info = singles[lane].reset()
                same(obs[lane], first, "reset after the end")
                same(row(infos, lane), info, "reset after the end")
    envs.close()
    return int(episodes.sum())


def same_where_told(got: dict[str, Any], expected: dict[str, Any]) -> None:
    """Vector infos agree: the same keys, the same lanes told about, the same bits for these."""
    assert set(got) == set(expected)
    for key, value in expected.items():
        if key.startswith("_"):
            same(got[key], value, key)
        elif isinstance(value, dict):
            same_where_told(got[key], value)
        else:
            for lane in np.flatnonzero(expected[f"_{key}"]).tolist():
                same(got[key][lane], value[lane], f"{key}[{lane}]")


def check_same_as_sync(native: Any, sync: Any, seeds: Any, steps: int, action_seed: int) -> int:
    """Step a native vector environment and a `SyncVectorEnv`, with resets of some lanes, and compare all that they return.

    Args:
        native: the vector environment.
        sync: a `SyncVectorEnv` of as many single environments, in the same autoreset mode.
        seeds: as `reset` of both takes them.
        steps: of every lane.
        action_seed: of the actions and of the resets.

    Returns:
        How many episodes ended, in all lanes.

    Raises:
        AssertionError: a bit differs.
    """
    mode = native.metadata["autoreset_mode"]
    assert sync.metadata["autoreset_mode"] == mode
    assert native.observation_space == sync.observation_space and native.action_space == sync.action_space
    rng = np.random.default_rng(action_seed)
    ours, theirs = native.reset(seed=seeds), sync.reset(seed=seeds)
    same(ours[0], theirs[0], "reset")
    same_where_told(ours[1], theirs[1])
    masks = ours[1]["action_mask"]
    episodes: int = 0
    for step in range(steps):
        actions = legal_actions(native.single_action_space, masks, rng)
        ours, theirs = native.step(actions), sync.step(actions)
        for part in range(4):
            same(ours[part], theirs[part], f"step {step}, part {part}")
        same_where_told(ours[4], theirs[4])
        masks = ours[4]["action_mask"]
        ended = ours[2] | ours[3]
        episodes += int(ended.sum())
        some = rng.random(len(ended)) < 0.02
        if mode == AutoresetMode.DISABLED:
            some |= ended
        if some.any():
            again = [int(s) if s % 3 else None for s in rng.integers(0, 1000, len(ended))]
            seed = again if rng.random() < 0.5 else None
            ours = native.reset(seed=seed, options={"reset_mask": some})
            theirs = sync.reset(seed=seed, options={"reset_mask": some})
            same(ours[0], theirs[0], f"partial reset after step {step}")
            same_where_told(ours[1], theirs[1])
            masks = ours[1]["action_mask"]
    return episodes
