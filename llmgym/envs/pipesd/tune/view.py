"""Pictures of PipeSDTune: those of PipeSDNav, with the thresholds above.

`text` and `picture` are what `llmgym.core.lanes.Simulation.view` asks for, with its arguments.
"""

import numpy as np
from numpy.typing import NDArray

from llmgym.envs.pipesd import view
from llmgym.envs.pipesd.scenarios import Scenario
from llmgym.envs.pipesd.state import Params, State


def _about(params: Params, state: State, lane: int) -> str:
    episode, steps = state.lane[lane], params.config[0]["steps"]
    return (
        f"step {episode['steps']}/{steps}   R_1 {episode['sequence']:.3f}, R_2 {episode['token']:.3f}"
        f"   last step {1000 * episode['step_tpt_s']:.0f} ms per token"
    )


def text(scenario: Scenario, params: Params, state: State, lane: int) -> str:
    """A line of the thresholds, one of the cloud, and one for each client.

    Args:
        scenario: the settings.
        params: shared by all lanes.
        state: arrays of all lanes.
        lane: number of the lane that is shown.

    Returns:
        Lines of text without a line feed at the end.
    """
    return f"{_about(params, state, lane)}\n{view.text(scenario, params, state, lane)}"


def picture(scenario: Scenario, params: Params, state: State, lane: int) -> NDArray[np.uint8]:
    """The last seconds of each edge, its uplink, and the cloud, with the thresholds above: uint8 [420, 820, 3].

    Args:
        scenario: the settings.
        params: shared by all lanes.
        state: arrays of all lanes.
        lane: number of the lane that is shown.

    Returns:
        The picture, RGB, uint8 [height, width, 3].
    """
    return view.picture(scenario, params, state, lane, _about(params, state, lane))
