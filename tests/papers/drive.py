"""How the paper tests run an engine: many batches of one rule at full speed, and what was served on the way."""

from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

import llmgym  # noqa: F401
from llmgym.core.lanes import HOLD, Lanes
from llmgym.serving.capacity import exact_area


def engine(lanes: int, rule: Any, seed: int = 5, **kwargs: Any) -> Lanes:
    """Lanes of KVQueue that play one rule, reset; a queue of any length is allowed."""
    kwargs = {"horizon_s": 1e7, "waiting_cap": 10**6, "requests": 20_000, **kwargs}
    env = gymnasium.make_vec("llmgym/KVQueue-v0", lanes, action="rule", rules=(rule,), **kwargs)
    env.reset(seed=seed)
    made: Lanes = env.lanes
    made.load_actions(np.zeros(lanes, np.int64))
    return made


@dataclass
class Saturated:
    """Means over a run in which requests always wait.

    Attributes:
        rate_rps: completions a second of one engine.
        used: tokens in the cache of those that ran, over M, mean over batches.
        preemptions: for each completion.
        batch_s: mean duration of a batch.
        area: mean exact area of the completed requests, tokens x batches.
    """

    rate_rps: float
    used: float
    preemptions: float
    batch_s: float
    area: float


def saturate(rule: Any, batches: int = 40_000, warm: int = 3_000, lanes: int = 4, **kwargs: Any) -> Saturated:
    """Run an overloaded engine and leave out its start."""
    run = engine(lanes, rule, **kwargs)
    episode, scenario = run.state.lane, run.simulation.scenario
    for _ in range(warm):
        run.step(HOLD)
    before, already = episode.copy(), run.state.request["e2e_s"] >= 0
    waits = 0
    for _ in range(batches):
        run.step(HOLD)
        waits += np.count_nonzero(episode["waiting"])
    assert not run.buffers.ended.any() and waits > 0.97 * lanes * batches, "the run must stay saturated"
    done, seconds = episode["done"] - before["done"], episode["clock_s"] - before["clock_s"]
    new = (run.state.request["e2e_s"] >= 0) & ~already
    prompt, output = run.state.request["prompt"][new], run.state.request["output"][new]
    return Saturated(
        rate_rps=float((done / seconds).mean()),
        used=float(((episode["kv_s"] - before["kv_s"]) / (episode["busy_s"] - before["busy_s"])).mean())
        / scenario.kv_capacity,
        preemptions=float((episode["preemptions"] - before["preemptions"]).sum() / done.sum()),
        batch_s=float(
            ((episode["busy_s"] - before["busy_s"]) / (episode["batches"] - before["batches"])).mean()
        ),
        area=float(exact_area(prompt, output, scenario.chunk).mean()),
    )


def until(run: Lanes, seconds: float) -> NDArray[np.float64]:
    """Run every lane up to a time and sample the requests that were left waiting when a batch began, every second.

    Returns:
        Clock (s) and requests left waiting, float64 [samples, 2, lanes].
    """
    episode = run.state.lane
    samples, mark = [], 0.0
    while episode["clock_s"].min() < seconds and not run.buffers.ended.all():
        arrived = episode["next"].copy()
        run.step(HOLD)
        if episode["clock_s"].min() >= mark:
            samples.append((episode["clock_s"].copy(), episode["waiting"] - (episode["next"] - arrived)))
            mark += 1.0
    return np.array(samples, np.float64)
