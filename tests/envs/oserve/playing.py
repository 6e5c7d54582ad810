"""How the tests of OServe play it."""

from typing import Any

import gymnasium
import numpy as np

ID = "llmgym/OServe-v0"
QUICK = {"scenario": "small", "epochs": 12}


def make(**kwargs: Any) -> Any:
    return gymnasium.make(ID, **kwargs).unwrapped


def play(env: Any, actions: Any, seed: int = 0) -> tuple[float, dict[str, float]]:
    """Return and metrics of an episode; `actions(step, mask)` decides."""
    _, info = env.reset(seed=seed)
    total, step, ended = 0.0, 0, False
    while not ended:
        _, reward, terminated, truncated, info = env.step(actions(step, info["action_mask"]))
        total, step, ended = total + reward, step + 1, terminated or truncated
    return total, info["metrics"]


def graft(env: Any, other: Any, seed: int, epochs: int) -> None:
    """Begin the same world in both, which in `other` goes on as another one from the end of an epoch on.

    All that `other` derives at reset it derives from that other world: how many requests will come, their rates, their classes.
    """
    env.reset(seed=seed), other.reset(seed=seed + 1000)
    ours, theirs = env.lanes.state, other.lanes.state
    until_s = epochs * env.simulation.scenario.epoch_s
    past = slice(0, int((ours.arrival_s[0, : ours.lane[0]["requests"]] < until_s).sum()))
    mine = slice(0, int(theirs.lane[0]["requests"]))
    coming = theirs.arrival_s[0, mine] >= until_s
    room = theirs.arrival_s.shape[1]
    for one, other in ((ours.arrival_s, theirs.arrival_s), (ours.arrival_class, theirs.arrival_class)):
        joined = np.concatenate([one[0, past], other[0, mine][coming]])[:room]
        other[0, : len(joined)] = joined
    theirs.lane["requests"] = min(past.stop + coming.sum(), room)
    theirs.demand[0, :epochs] = ours.demand[0, :epochs]
    theirs.clock[:] = ours.clock  # the hour is known


def number_of(env: Any, *shapes: tuple[int, int]) -> int:
    """The number of the deployment with these shapes."""
    return env.simulation.number_of(shapes)


def four_replicas(**kwargs: Any) -> Any:
    """Sixteen GPUs that begin as four replicas of TP4, where an action is any deployment."""
    return make(
        scenario="paper", action="plan", drift="fixed", initial=((4, 1),) * 4, epochs=6, history=1, **kwargs
    )
