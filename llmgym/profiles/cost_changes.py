"""Step costs made from others: without launches, or with more time in every step."""

import numpy as np

from llmgym.profiles.cost import NEVER_TOKENS, NO_LAUNCHES, TABLES, Launches, StepCost, frozen


def launches_ahead(cost: StepCost, ahead: bool) -> tuple[StepCost, Launches]:
    """Take the launches out of a cost that an engine counts from the plan of a step on.

    Args:
        cost: of a step.
        ahead: whether steps are planned while others run; else launches stay in the cost.

    Returns:
        The cost whose steps take their device and host time alone, and the launches; both as they were where the cost has none of
        this kind.
    """
    if not (ahead and cost.head["launch_ahead"][0]):
        return cost, NO_LAUNCHES
    head = cost.head.copy()
    found = Launches(
        int(head["launch_above"][0]),
        float(head["launch_s"][0]),
        float(head["floor_s"][0]),
        bool(head["launch_ahead"][0]),
    )
    head["launch_above"], head["launch_s"], head["floor_s"], head["launch_ahead"] = NEVER_TOKENS, 0.0, 0.0, 0
    return frozen(head, cost.lines, cost.grids), found


def slower(cost: StepCost, seconds: float) -> StepCost:
    """A cost whose every step takes so many seconds more; less if negative, down to no host time (tables) or no constant."""
    head, lines = cost.head.copy(), cost.lines.copy()
    if head["kind"][0] == TABLES:
        at = int(head["host_at"][0]) + 1
        host = lines[at : at + int(head["host_max"][0])]
        host[:] = np.maximum(host + seconds, 0.0)
    else:
        head["c0_s"] = max(head["c0_s"][0] + seconds, 0.0)
    return frozen(head, lines, cost.grids)
