"""What the tests of deployment share: a small world of KVQueue-v1 whose times are exact, and an engine that plays it."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np

from llmgym import profiles, workloads
from llmgym.deploy.bundle import PER_RUNNING, PER_WAITING, Bundle
from llmgym.serving.targets import Target
from llmgym.workloads import RequestClass, Rows, Workload

STEP_S, TOKEN_S = 2.0**-5, 2.0**-16
"""Cost of a step and of a token in use, s: sums of powers of two, so that no clock rounds."""
BLOCKS, BLOCK = 128, 16


def small_rows(seed: int, n: int = 120) -> Rows:
    rng = np.random.default_rng(seed)
    # between two steps, whose times are sums of larger powers of two
    arrival_s = np.floor(np.cumsum(rng.exponential(0.09, n)) * 2**12) / 2**12
    arrival_s += (2 * np.arange(n) + 1) * 2.0**-30
    return Rows(arrival_s - arrival_s[0], rng.integers(1, 400, n), np.append(rng.integers(1, 300, n - 1), 1))


def small_env(seed: int, scheduling: str, **kwargs: Any) -> Any:
    rows = small_rows(seed)
    workload = Workload("small", workloads.replay(rows, from_start=True), (RequestClass(rows=rows),))
    settings: dict[str, Any] = {
        "profile": profiles.linear(STEP_S, TOKEN_S, 0.0),
        "rate_rps": workload.mean_rate_rps,
        "requests": len(rows),
        "information": "noisy",
        "horizon_s": 4096.0,
        "kv_capacity": BLOCKS * BLOCK,
        "budget": 256,
        "chunk": 256,
        "seats": 12,
        "block": BLOCK,
        "targets": (Target(2.0, 1.0, 1.0, 20.0),),
        "late_cost": 100.0,
        "slots": 6,
        "running": 4,
    }
    return gymnasium.make(
        "llmgym/KVQueue-v1", workload=workload, scheduling=scheduling, **{**settings, **kwargs}
    ).unwrapped


def case_of(env: Any, name: str) -> dict[str, Any]:
    """The world of an environment that was reset, as a case of `engine_reference`."""
    chosen = env.simulation.scenario
    drawn = env.lanes.state.request[0, : env.lanes.state.lane[0]["requests"]]
    return {
        "name": name,
        "policy": "fcfs",
        "scheduling": "sync" if chosen.scheduling == "sync" else "async",
        "budget": chosen.budget,
        "seats": chosen.seats,
        "blocks": chosen.kv_capacity // BLOCK,
        "threshold": 0,
        "caching": False,
        "step_s": STEP_S,
        "token_s": TOKEN_S,
        "requests": [[float(r["arrival_s"]), int(r["prompt"]), int(r["output"]), 0, -1] for r in drawn],
        "predicted": [int(r["predicted"]) or None for r in drawn],
        "classes": [int(r["request_class"]) for r in drawn],
    }


def play(env: Any, act: Callable[[Any, Any], int], seed: int) -> tuple[np.ndarray, dict[str, float]]:
    """One episode: what was seen at each decision, and the metrics."""
    obs, info = env.reset(seed=seed)
    seen, ended = [], False
    while not ended:
        seen.append(obs.copy())
        obs, _, terminated, truncated, info = env.step(act(obs, info["action_mask"]))
        ended = terminated or truncated
    return np.stack(seen), info["metrics"]


LATE = {"load": 6, "batch.time": 7}
"""Fields, with their places, that a scheduler which plans ahead knows a step later than the gym: they tell the duration of the step
that is running."""


def random_scorer(bundle: Bundle, seed: int, width: int = 8, *, blind: bool = False) -> Bundle:
    """A bundle with a scorer of random weights, so large that it chooses now this, now that; a blind one does not see `LATE`."""
    rng = np.random.default_rng(seed)
    outside = bundle.size - bundle.slots * PER_WAITING - bundle.running * PER_RUNNING
    shapes = {
        "rest": (width, outside),
        "row.0": (width, PER_WAITING),
        "row.1": (width, PER_RUNNING),
        "summary": (width, 5 * width),
        "own.0": (width, width),
        "own.1": (width, width),
        "link.0": (width, width),
        "link.1": (width, width),
        "score.0": (1, width),
        "score.1": (1, width),
        "plain": (1 + bundle.slots + bundle.running, width),
    }
    weights = {}
    for name, shape in shapes.items():
        weights[f"{name}.weight"] = (2.0 * rng.normal(size=shape)).astype(np.float32)
        weights[f"{name}.bias"] = rng.normal(size=shape[0]).astype(np.float32)
    if blind:
        weights["rest.weight"][:, list(LATE.values())] = 0.0
    return replace(bundle, kind="network", network={"kind": "scorer", "activation": "tanh"}, weights=weights)
