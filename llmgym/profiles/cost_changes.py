"""Step costs made from others: without launches, or with more time in every step."""

import numpy as np

from llmgym.profiles.cost import NEVER_TOKENS, TABLES, Launches, StepCost, frozen


def without_launches(cost: StepCost) -> tuple[StepCost, Launches]:
    """A cost whose steps take their device and host time alone, and the launches that it had."""
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
