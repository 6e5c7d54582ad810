"""A device for tests on a machine without one: its memory is the machine's, and its threads run one after the other."""

import functools
from typing import Any

import numba
import torch
from numba import types
from numba.core import cgutils
from numba.core.datamodel.models import RecordModel
from numba.core.registry import cpu_target
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array

from llmgym.core import tiles
from llmgym.core.device_env import DeviceVectorEnv, on_device
from llmgym.core.env import LaneVectorEnv
from llmgym.core.frames import put_together
from llmgym.core.jit import kernel
from llmgym.core.loops import measuring, observing
from llmgym.core.threads import threads_of


@kernel(inline=True)
def claim(counts: Any, turn: int) -> int:
    was = counts[turn]
    counts[turn] = was + 1
    return was


numba.extending.register_model(tiles.Spread)(RecordModel)
numba.extending.lower_cast(types.Record, tiles.Spread)(tiles.cast)
numba.extending.lower_cast(tiles.Spread, types.Record)(tiles.cast)
cpu_target.target_context.pack_value = tiles.storing(cpu_target.target_context, cgutils)


class HostCard:
    device = torch.device("cpu")

    def __init__(self, free: int = 2**30, in_tiles: bool = False) -> None:
        self._free, self.tiles = free, in_tiles

    def free_bytes(self) -> int:
        return self._free

    def flag(self) -> Any:
        return torch.zeros(1, dtype=torch.int64)

    def launch(self, entry: Any, *arguments: int) -> None:
        entry.launch(0, *arguments)

    def beside(self, call: Any) -> Any:
        call()
        return lambda: None

    def entries(self, simulation: Any, arrays: Any, frame: Any, which: Any) -> Any:
        state, *others = numba.typeof(arrays).types
        kind = types.Tuple((tiles.seen(state, [*which]), *others))
        rows = {"observe_lane": observing(simulation), "metrics_lane": measuring(simulation)}
        kernels = simulation.kernels._replace(**rows)

        class Launcher:
            def __init__(self, name: str) -> None:
                self._loop = looping(kernels, name, kind, tuple(which))

            def launch(self, stream: int, most: int, mode: int, limit: int, turn: int, count: int) -> None:
                self._loop(frame, mode, limit, turn, count)

        return Launcher


@functools.cache
def looping(kernels: Any, name: str, kind: Any, which: tuple[bool, ...]) -> Any:
    """A compiled loop over what the threads of a device would do at once."""

    @intrinsic
    def unpack(typing: Any, numbers: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            data = context.make_array(numbers)(context, builder, arguments[0]).data
            return put_together(
                context, builder, kind, lambda at: builder.load(cgutils.gep_inbounds(builder, data, at))
            )

        return kind(numbers), build

    @intrinsic
    def here(typing: Any, state: Any, lane: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            parts = cgutils, populate_array
            return tiles.shifted(context, builder, state, *arguments, [*which], parts)

        return state(state, types.int64), build

    thread = kernel(inline=True)(getattr(threads_of(kernels, claim, here), name))

    @kernel(announce=name)
    def loop(frame: Any, mode: int, limit: int, turn: int, count: int) -> None:
        for i in range(count):
            thread(unpack(frame), i, mode, limit, turn)

    return loop


def make_on_host(
    vector_class: type[LaneVectorEnv], num_envs: int, free: int = 2**30, in_tiles: bool = False, **kwargs: Any
) -> Any:
    """A vector environment on a device that is no device."""
    home = {"_card": staticmethod(lambda device, exact: HostCard(free, in_tiles))}
    made: type[DeviceVectorEnv] = type("OnHost", (on_device(vector_class),), home)
    return made(num_envs, **kwargs)
