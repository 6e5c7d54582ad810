"""A device for tests on a machine without one: its memory is the machine's, and its threads run one after the other."""

from typing import Any

import torch

from llmgym.core.device_env import DeviceVectorEnv, on_device
from llmgym.core.env import LaneVectorEnv
from llmgym.core.frames import unpacking
from llmgym.core.jit import kernel
from llmgym.core.loops import measuring, observing
from llmgym.core.threads import threads_of


@kernel(inline=True)
def claim(counts: Any, row: int, column: int) -> int:
    was = counts[row, column]
    counts[row, column] = was + 1
    return was


class HostCard:
    device = torch.device("cpu")

    def __init__(self, free: int = 2**30) -> None:
        self._free = free

    def free_bytes(self) -> int:
        return self._free

    def flag(self) -> Any:
        return torch.zeros(1, dtype=torch.int64)

    def stream(self) -> int:
        return 0

    def entries(self, simulation: Any, arrays: Any, frame: Any) -> Any:
        functions = threads_of(
            simulation.kernels._replace(
                observe_lane=observing(simulation), metrics_lane=measuring(simulation)
            ),
            claim,
        )
        unpack = unpacking(arrays)

        def entry(name: str) -> Any:
            thread = kernel(inline=True)(getattr(functions, name))

            @kernel(announce=f"{type(simulation).__name__} ({name})")
            def loop(frame: Any, mode: int, limit: int, turn: int, count: int) -> None:
                for i in range(count):
                    thread(unpack(frame), i, mode, limit, turn)

            class Launcher:
                def launch(
                    self, stream: int, most: int, mode: int, limit: int, turn: int, count: int
                ) -> None:
                    loop(frame, mode, limit, turn, count)

            return Launcher()

        return entry


def make_on_host(vector_class: type[LaneVectorEnv], num_envs: int, free: int = 2**30, **kwargs: Any) -> Any:
    """A vector environment on a device that is no device."""
    home = {"_card": staticmethod(lambda device, exact: HostCard(free))}
    made: type[DeviceVectorEnv] = type("OnHost", (on_device(vector_class),), home)
    return made(num_envs, **kwargs)
