"""What is decided in OServe: the kinds of actions, which of them are allowed, and the deployment that each leads to."""

import math
from typing import Any

import numpy as np
from gymnasium.spaces import Box, Discrete
from numpy.typing import NDArray

from llmgym.core.jit import kernel
from llmgym.envs.oserve.shapes import Shape
from llmgym.envs.oserve.state import (
    CONSIDERED,
    CONTROL,
    EDIT,
    MENU,
    NOW,
    PLAN,
    ROUTE,
    Params,
    State,
)
from llmgym.envs.oserve.world import consider

ACTIONS = {"menu": MENU, "edit": EDIT, "plan": PLAN, "control": CONTROL, "route": ROUTE}
MOST_PLANNED = 32.0
"""Action "control": the largest demand, in mean arrivals of the type. Ours: beyond what any mix asks for."""
LOGIT = 8.0
"""Action "route": the largest logit. Ours: shares from 1 to exp(-16) are as good as all and nothing."""


def action_space(
    action: str, candidates: int, edits: int, deployments: int, types: int, places: int
) -> "Discrete[Any] | Box":
    """The action space.

    Args:
        action: a name in `ACTIONS`.
        candidates: deployments of the menu.
        edits: local moves.
        deployments: deployments that there are.
        types: types of requests.
        places: places for replicas.

    Returns:
        A `Discrete`, or for "control" and "route" a float64 `Box`.
    """
    sizes = {"menu": 1 + candidates, "edit": 1 + edits, "plan": deployments}
    if action in sizes:
        return Discrete(sizes[action])
    if action == "control":
        return Box(0.0, 1.0, (1 + types,), np.float64)
    return Box(-1.0, 1.0, (places * types,), np.float64)


def local_moves(shapes: tuple[Shape, ...]) -> NDArray[np.int64]:
    """All edits, int64 [edits, 4]: up to two shapes to take away and up to two to add, -1 for none.

    An edit gives one replica another strategy, splits it into two equal ones, or merges two of one size.
    """
    edits = []
    for s, shape in enumerate(shapes):
        for t, other in enumerate(shapes):
            if s != t and shape.gpus == other.gpus:
                edits.append((s, -1, t, -1))
            if shape.gpus == 2 * other.gpus:
                edits.append((s, -1, t, t))
        for z in range(s, len(shapes)):
            for t, other in enumerate(shapes):
                if shape.gpus == shapes[z].gpus and other.gpus == 2 * shape.gpus:
                    edits.append((s, z, t, -1))
    return np.array(edits, np.int64).reshape(-1, 4)


@kernel
def decide(state: State, params: Params, lane: int, action: NDArray[np.float64]) -> bool:
    """Whether an action changes the deployment.

    Args:
        state: arrays of all lanes; the deployment to change to is written to the last row of `replicas`.
        params: numbers and tables that all lanes share.
        lane: which one.
        action: float64, an element of the action space.

    Returns:
        True if it does; False if the deployment stays, also because the action is masked, which is counted.
    """
    episode, config = state.lane[lane], params.config[0]
    last = params.deployments.shape[0] - 1
    chosen = int(math.floor(action[0] * (last if config.action == CONTROL else 1) + 0.5))
    if config.action == ROUTE:
        for i in range(state.logit.shape[1]):
            state.logit[lane, i] = LOGIT * action[i]
        return False
    if config.action == EDIT:
        if chosen == 0:
            return False
        if episode.stopping == 0 and _legal(state, params, lane, chosen - 1):
            episode.deployment = -1
            return True
    else:
        deployment = chosen
        if config.action == MENU:
            deployment = params.menu[chosen - 1] if chosen > 0 else -1
        if deployment < 0 or (deployment == episode.deployment and config.action != MENU):
            return False
        if episode.stopping == 0 and deployment != episode.deployment:
            episode.deployment = deployment
            consider(state, params, lane, deployment)
            return True
    if config.action != CONTROL:
        episode.invalid += 1
        episode.penalty += config.invalid_cost
    return False


@kernel
def _edit(state: State, params: Params, lane: int, e: int) -> None:
    """Write the deployment after an edit to the last row of `replicas`."""
    replicas, edit = state.replicas[lane], params.edits[e]
    for s in range(replicas.shape[1]):
        replicas[CONSIDERED, s] = replicas[NOW, s]
    for i in range(2):
        if edit[i] >= 0:
            replicas[CONSIDERED, edit[i]] -= 1
        if edit[2 + i] >= 0:
            replicas[CONSIDERED, edit[2 + i]] += 1


@kernel
def _legal(state: State, params: Params, lane: int, e: int) -> bool:
    """Whether an edit takes replicas that exist and leaves some for every type.

    The deployment after it is written to the last row of `replicas`.
    """
    _edit(state, params, lane, e)
    replicas = state.replicas[lane, CONSIDERED]
    for i in range(2):
        s = params.edits[e, i]
        if s >= 0 and state.replicas[lane, NOW, s] - (1 if params.edits[e, 1 - i] == s else 0) < 1:
            return False
    for j in range(params.type_rate.shape[1]):
        served = False
        for s in range(replicas.shape[0]):
            served = served or (replicas[s] > 0 and params.type_rate[s, j] > 0.0)
        if not served:
            return False
    return True


@kernel
def mask_lane(state: State, params: Params, lane: int, out: NDArray[np.int8]) -> None:
    """Write which actions are allowed.

    Args:
        state: arrays of all lanes.
        params: numbers and tables that all lanes share.
        lane: which one.
        out: int8 [actions], written: 1 for those that are allowed, 0 for the others.
    """
    episode, config = state.lane[lane], params.config[0]
    stopping = episode.stopping == 1 and episode.ready_s > episode.epoch * config.epoch_s
    for a in range(out.shape[0]):
        allowed = True
        if config.action == MENU:
            allowed = a == 0 or (not stopping and params.menu[a - 1] != episode.deployment)
        elif config.action == PLAN:
            allowed = a == episode.deployment or not stopping
        elif config.action == EDIT:
            allowed = a == 0 or (not stopping and _legal(state, params, lane, a - 1))
        out[a] = 1 if allowed else 0
