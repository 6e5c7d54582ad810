"""Whether a simulation says all that an environment needs, checked before anything of it runs."""

from typing import Any

import numpy as np
from gymnasium.spaces import Box, Discrete, MultiDiscrete

from llmgym.core.layout import Layout
from llmgym.core.loops import Kernels
from llmgym.errors import InvalidArgument

_NEEDED = {
    "kernels": "its compiled functions, `Kernels(...)`",
    "layout": "the fields of an observation, `Layout(...)`",
    "action_space": "`Discrete`, `MultiDiscrete` or `Box`",
    "params": "a NamedTuple of numbers, set in `__init__`",
}


def check_simulation(simulation: Any) -> None:
    """Raise `InvalidArgument` unless kernels, metrics, layout, params and actions are there, and are what the loops take.

    Args:
        simulation: a `llmgym.core.lanes.Simulation`, made.
    """
    name = type(simulation).__name__
    for part, what in _NEEDED.items():
        if not hasattr(simulation, part):
            raise InvalidArgument(f"{name} has no `{part}`: it needs {what}")
    if simulation.metrics is None and not hasattr(simulation, "metric_names"):
        raise InvalidArgument(f"{name} has no `metrics`: name the record of its metric(...) fields")
    if not isinstance(simulation.layout, Layout):
        raise InvalidArgument(f"{name}.layout={simulation.layout!r}: expected a Layout")
    _check_space(name, simulation.action_space)
    _check_kernels(name, simulation.kernels, simulation.layout.head is not None)


def _check_space(name: str, space: Any) -> None:
    if not isinstance(space, (Discrete, MultiDiscrete, Box)):
        raise InvalidArgument(f"{name}.action_space={space!r}: expected Discrete, MultiDiscrete or Box")
    if not isinstance(space, Box) and np.any(space.start):
        raise InvalidArgument(f"{name}.action_space={space!r}: expected actions that begin with 0")


def _check_kernels(name: str, kernels: Any, by_name: bool) -> None:
    if not isinstance(kernels, Kernels):
        raise InvalidArgument(f"{name}.kernels={kernels!r}: expected Kernels(...) or Kernels.of(...)")
    expected = {
        "reset_lane": "state, params, lane, key",
        "step_lane": "state, params, lane, action",
        "observe_lane": "state, params, lane, out, rest" if by_name else "state, params, lane, out",
        "mask_lane": "state, params, lane, out",
        "metrics_lane": "state, params, lane, out",
    }
    for kernel, arguments in expected.items():
        function = getattr(kernels, kernel)
        code = getattr(getattr(function, "py_func", function), "__code__", None)
        if code is None:
            raise InvalidArgument(f"{name}: {kernel}={function!r} is no function")
        if code.co_argcount != arguments.count(",") + 1:
            raise InvalidArgument(
                f"{name}: {kernel} takes {code.co_argcount} arguments ({', '.join(code.co_varnames[: code.co_argcount])}); "
                f"expected {kernel}({arguments})"
            )
