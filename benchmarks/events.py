"""What a step simulates in environments whose step is many events, and where the time of such a step goes.

`benchmarks/throughput.py` writes both into its tables.
"""

import time
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete

from llmgym.core.lanes import LOOK, NEXT_STEP
from llmgym.errors import UnknownName

EVENTS = "# Where a step of many events goes"
SIMULATED = {
    "llmgym/AFDRatio-v0": ("output_tokens", "tokens"),
    "llmgym/AFDRefill-v0": ("cycles", "cycles"),
    "llmgym/KVProvision-v0": ("requests", "requests"),
    "llmgym/KVQueue-v0": ("batches", "batches"),
    "llmgym/KVQueue-v1": ("batches", "batches"),
    "llmgym/OServe-v0": ("completed", "requests"),
    "llmgym/PPDRouting-v0": ("output_tokens", "tokens"),
    "llmgym/PPDWeights-v0": ("output_tokens", "tokens"),
    "llmgym/PipeSDNav-v0": ("output_tokens", "tokens"),
    "llmgym/PipeSDTune-v0": ("output_tokens", "tokens"),
}
"""Environments that simulate events: the metric that counts them, and what it counts."""
PLAYED_STEPS = 2_000
"""Steps over which events are counted."""


def legal_action(space: Any, mask: Any, lanes: int, rng: np.random.Generator) -> Any:
    """A random action that the masks allow, for all lanes."""
    if isinstance(space, Box):
        return rng.uniform(space.low, space.high, (lanes, *space.shape)).astype(space.dtype)
    weights = rng.random(mask.shape) * mask
    if isinstance(space, Discrete):
        return weights.argmax(axis=1)
    parts = np.split(weights, np.cumsum(space.nvec)[:-1], axis=1)
    return np.stack([part.argmax(axis=1) for part in parts], axis=1)


def smallest_scenario(env_id: str) -> dict[str, Any]:
    """Arguments for the scenario `small`, or for the default where there is none."""
    try:
        gymnasium.make(env_id, scenario="small").close()
    except UnknownName:
        return {}
    return {"scenario": "small"}


def simulated(env_id: str, kwargs: dict[str, Any]) -> float:
    """What a step simulates, mean over whole episodes of random legal actions; a count of what `SIMULATED` names.

    Args:
        env_id: the environment.
        kwargs: its arguments.

    Raises:
        KeyError: it has no events.
    """
    env: Any = gymnasium.make(env_id, **kwargs).unwrapped
    rng = np.random.default_rng(0)
    counted, steps, seed = 0.0, 0, 0
    while steps < PLAYED_STEPS:
        _, info = env.reset(seed=seed)
        ended = False
        while not ended:
            mask = info.get("action_mask")
            action = legal_action(env.action_space, None if mask is None else mask[None], 1, rng)[0]
            _, _, terminated, truncated, info = env.step(action)
            ended = terminated or truncated
            steps += 1
        seed += 1
        counted += _events(env_id, env.lanes.metrics(0))
    return counted / steps


def _events(env_id: str, metrics: dict[str, float]) -> float:
    """Events of an episode, by its metrics; of tokens that are only told as a rate, these times the length."""
    name, _ = SIMULATED[env_id]
    if name in metrics:
        return metrics[name]
    return metrics[f"{name}_per_s"] * metrics["duration_s"]


def told_simulated(env_id: str, kwargs: dict[str, Any]) -> str:
    """What a step simulates, in words; a dash where it is no events."""
    if env_id not in SIMULATED:
        return "-"
    return f"{simulated(env_id, kwargs):,.1f} {SIMULATED[env_id][1]}"


def events(turns: int, where: str) -> list[str]:
    """A table of where a step goes: the simulation, the worlds of episodes that begin within the time, what is observed.

    Args:
        turns: how often each time is taken.
        where: day, machine and versions.

    Returns:
        Lines of Markdown.
    """
    lines = [
        EVENTS,
        "",
        where,
        "",
        "| environment | scenario | step, us | of it simulation | worlds | observations, masks | a step simulates | a second |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for env_id in SIMULATED:
        kwargs = smallest_scenario(env_id)
        step_us, world_us, look_us = shares(env_id, kwargs, turns)
        count, what = simulated(env_id, kwargs), SIMULATED[env_id][1]
        rest = 1.0 - (world_us + look_us) / step_us
        lines.append(
            f"| {env_id} | {kwargs.get('scenario', 'default')} | {step_us:,.2f} | {rest:.0%} | {world_us / step_us:.0%} "
            f"| {look_us / step_us:.0%} | {count:,.1f} {what} | {1e6 * count / step_us:,.0f} |"
        )
        print(lines[-1], flush=True)
    lines += [
        "",
        "The compiled loop alone, 16 lanes, random legal actions, CPU time, the shortest of several turns. A world is",
        "drawn whenever an episode begins. Simulation is the rest.",
    ]
    return lines


def shares(env_id: str, kwargs: dict[str, Any], turns: int) -> tuple[float, float, float]:
    """The compiled step of one lane of 16 and two parts of it, microseconds: drawing worlds, observations with masks.

    Args:
        env_id: the environment.
        kwargs: its arguments.
        turns: how often each time is taken.
    """
    envs: Any = gymnasium.make_vec(env_id, 16, **kwargs).unwrapped
    inner = envs.lanes
    rng = np.random.default_rng(0)
    envs.reset(seed=0)
    step_s, world_s, look_s = np.inf, np.inf, np.inf
    for _ in range(turns):
        spent, steps, begun = 0.0, 0, 0
        while steps < PLAYED_STEPS // 8:
            mask = inner.buffers.mask if envs.simulation.mask_size else None
            inner.load_actions(legal_action(envs.single_action_space, mask, 16, rng))
            before = inner.buffers.episode.sum()
            start = time.thread_time()
            inner.step(NEXT_STEP)
            spent += time.thread_time() - start
            begun += int(inner.buffers.episode.sum() - before)
            steps += 1
        step_s = min(step_s, spent / steps / 16)
        start = time.thread_time()
        inner.reset(None, [None] * 16)
        world_s = min(world_s, (time.thread_time() - start) / 16 * begun / steps / 16)
        start = time.thread_time()
        for _ in range(100):
            inner.step(LOOK)
        look_s = min(look_s, (time.thread_time() - start) / 1600)
    return 1e6 * step_s, 1e6 * world_s, 1e6 * look_s
