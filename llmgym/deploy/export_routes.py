"""Writing the table of PPDRouting to a file that a router reads with numpy alone."""

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from llmgym.deploy.router import FORMAT, TableRule
from llmgym.envs.ppd import cells
from llmgym.envs.ppd.routing.env import PPDRouting
from llmgym.envs.ppd.table import table_of
from llmgym.errors import CheckpointError


def export_routes(
    path: Path, w_ttft: float | None = None, w_tpot: float | None = None, **kwargs: Any
) -> TableRule:
    """Measure the table of a cluster by simulation, unless that was done before, and write its routes.

    Args:
        path: where to, ending in `.npz`; its folder must exist.
        w_ttft: weight of TTFT; None takes that of the environment.
        w_tpot: weight of TPOT; None takes that of the environment.
        **kwargs: arguments of PPDRouting-v0, such as `scenario`.

    Returns:
        The rule that the file holds.

    Raises:
        CheckpointError: the name does not end in `.npz`.
        InvalidArgument: a weight below 0.
    """
    if path.suffix != ".npz":
        raise CheckpointError(f"path={str(path)!r}: expected a name that ends in .npz")
    simulation: Any = gymnasium.make("llmgym/PPDRouting-v0", **kwargs).unwrapped.simulation  # type: ignore[attr-defined]
    table, chosen = table_of(simulation, PPDRouting), simulation.scenario
    routes = table.routes(
        chosen.w_ttft if w_ttft is None else w_ttft, chosen.w_tpot if w_tpot is None else w_tpot
    )
    np.savez(
        path,
        format=np.array(FORMAT),
        routes=routes,
        rates_rps=table.rates,
        context=np.array([cells.SMALL_CONTEXT_TOKENS]),
        ratio=np.array([cells.GENERATES_BELOW, cells.PASTES_ABOVE]),
        answer=np.array(cells.ANSWER_TOKENS),
        balanced=np.array(cells.BALANCED_TOKENS),
        paste=np.array(cells.PASTE_TOKENS),
    )
    return TableRule.read(path)
