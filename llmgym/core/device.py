"""Lanes whose arrays live on a device: tensors of torch, which share their memory with compiled functions.

torch owns the memory, says which stream is the current one, and speaks DLPack and `__cuda_array_interface__` to other libraries.
The functions are those of the CPU, compiled once more (`llmgym.core.cuda`); a step is three calls of these
(`llmgym.core.threads`), none of which waits for the device.
"""

import importlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numba
import numpy as np
from gymnasium.spaces import Box, Discrete
from numpy.typing import NDArray

from llmgym.core import tiles
from llmgym.core.frames import frame_of
from llmgym.core.lanes import Lanes, Simulation
from llmgym.core.loops import NEXT_STEP, SAME_STEP, Buffers
from llmgym.core.memory import COPIED, gib
from llmgym.core.threads import TURNS, Work
from llmgym.errors import InvalidAction, InvalidArgument, KernelError, MissingExtra

REST_BYTES = 2**29
"""Memory of a GPU that is left to machine code, to what threads need for themselves, and to other tensors."""
MOST_THREADS = 132 * 2048
"""Threads of a call; if there are more lanes, they take turns. More than any GPU of today holds at once."""
LIST_THREADS = 2**15
"""Threads that work through a list of lanes, most of which is empty."""
_KINDS = {"i": "an integer type", "f": "a real number type"}


class Card:
    """A GPU, and how functions get there.

    Args:
        device: such as `"cuda"` or `"cuda:1"`.
        exact: whether a product and a sum stay two roundings, as on a CPU.

    Attributes:
        device: as torch knows it.
        tiles: whether states lie in tiles there.

    Raises:
        InvalidArgument: there is no such device.
        MissingExtra: torch or numba-cuda is not installed.
    """

    tiles = True

    def __init__(self, device: str, exact: bool) -> None:
        try:
            torch = importlib.import_module("torch")
        except ModuleNotFoundError as error:
            raise MissingExtra(f"device={device!r}", "cuda") from error
        try:
            self.device = torch.device(device)
        except RuntimeError:
            self.device = None
        if self.device is None or self.device.type != "cuda":
            raise InvalidArgument(f"device={device!r}: allowed 'cpu', 'cuda', 'cuda:0', 'cuda:1', ...")
        if not torch.cuda.is_available():
            raise InvalidArgument(f"device={device!r}: torch finds no NVIDIA GPU here; 'cpu' always works")
        if (self.device.index or 0) >= torch.cuda.device_count():
            raise InvalidArgument(
                f"device={device!r}: this machine has {(n := torch.cuda.device_count())} GPU{'s' if n > 1 else ''}"
            )
        self._cuda = importlib.import_module("llmgym.core.cuda")
        if self.device.index is None:
            self.device = torch.device("cuda", torch.cuda.current_device())
        self._torch, self._exact = torch, exact
        self._side: Any = None

    def free_bytes(self) -> int:
        """Memory that tensors can have."""
        cuda = self._torch.cuda
        kept = cuda.memory_reserved(self.device) - cuda.memory_allocated(self.device)
        return int(cuda.mem_get_info(self.device)[0]) + int(kept) - REST_BYTES

    def flag(self) -> Any:
        """A number, int64 [1], that both sides read and write without waiting for each other."""
        return self._torch.zeros(1, dtype=self._torch.int64).pin_memory()

    def entries(
        self, simulation: Simulation, arrays: Any, frame: NDArray[np.int64], which: Sequence[bool]
    ) -> Any:
        """The compiled functions of an environment over arrays of the device.

        Args:
            simulation: the environment.
            arrays: (state, params, buffers, work) of one lane, of numpy, for their types.
            frame: where those of the device are.
            which: whether each array of the state lies in tiles, in order.

        Returns:
            A function from the name of one in `Threads` to something with a method `launch`.
        """
        head = simulation.layout.head
        compiler = self._cuda.Compiler(
            simulation.kernels,
            head,
            simulation.metrics,
            self._torch.cuda.get_device_capability(self.device),
            self._exact,
            which,
        )

        def entry(thread: str) -> Any:
            code = compiler.code(thread, arrays)
            with self._torch.cuda.device(self.device):
                self._torch.cuda.synchronize()  # makes sure that torch's context is there
                return self._cuda.Entry(code, frame)

        return entry

    def launch(self, entry: Any, *arguments: int) -> None:
        """Hand an entry to torch's current stream of this device, whatever device is current."""
        cuda = self._torch.cuda
        with cuda.device(self.device):
            entry.launch(cuda.current_stream(self.device).cuda_stream, *arguments)

    def beside(self, call: Callable[[], None]) -> Callable[[], None]:
        """Let the device do something beside what the current stream does from now on.

        Args:
            call: hands the work to the stream that is current then.

        Returns:
            A function after which the stream that was current goes on only when that is done.
        """
        cuda = self._torch.cuda
        if self._side is None:
            self._side = cuda.Stream(self.device)
        main, side = cuda.current_stream(self.device), self._side
        side.wait_stream(main)
        with cuda.stream(side):
            call()
        return lambda: main.wait_stream(side)


class DeviceLanes:
    """Many lanes on a device, and the calls that step them.

    Args:
        simulation: the environment with its scenario.
        count: number of lanes.
        card: the device.
        limit: steps after which an episode is truncated; None: never.

    Attributes:
        buffers: tensors of the device, by the names of `Buffers`.
        bytes_of_a_lane: of the memory of the device.

    Raises:
        InvalidArgument: the arrays do not fit into the memory of the device.
    """

    def __init__(self, simulation: Simulation, count: int, card: Any, limit: int | None = None) -> None:
        self.simulation, self.count, self.card = simulation, count, card
        self._limit, self._turn = limit or 0, 0
        self._torch = importlib.import_module("torch")
        state, params, buffers, work = self._one = one_lane(simulation)
        grows = self._grows = growing(simulation)
        self._tiled = [self.card.tiles and tile for tile in in_tiles(simulation)]
        self.bytes_of_a_lane = lane_bytes(self._one)
        self._check_fits()
        self._state, self._params = [], []
        numbers: list[int] = []
        for array, many, tile in zip(_leaves(state), grows, self._tiled, strict=True):
            tensor, shape = self._placed(array, many, tile)
            self._state.append((array, tensor))
            numbers += _place(tensor, array, shape)
        for part in _leaves(params):
            if isinstance(part, np.ndarray):
                tensor, shape = self._placed(part, False, False)
                self._params.append(tensor)  # keeps its memory
                numbers += _place(tensor, part, shape)
            else:
                numbers += frame_of((part,)).tolist()
        self.buffers: Any = Buffers(*(self._rows(array) for array in buffers))
        self._wrong = card.flag()
        lists = {name: self._rows(array, name == "now") for name, array in work._asdict().items()}
        lists["ended"] = self._torch.zeros((TURNS, count), dtype=self._torch.int32, device=card.device)
        self._shared: Any = Work(**{**lists, "wrong": self._wrong})
        pairs: Any = zip((*buffers, *work), (*self.buffers, *self._shared), strict=True)
        for array, tensor in pairs:
            numbers += _place(tensor, array, tuple(tensor.shape))
        self._made: dict[str, Any] = {}
        self._frame = np.array(numbers)
        self._entries = card.entries(simulation, self._one, self._frame, self._tiled)
        self._wrong_here = self._wrong.numpy()

    def _check_fits(self) -> None:
        each, free = self.bytes_of_a_lane, self.card.free_bytes()
        if self.count * each > free:
            raise InvalidArgument(
                f"num_envs={self.count}: the arrays of the lanes take {gib(self.count * each)}, {self.card.device} has {gib(free)} "
                f"free: {max(free // each, 0)} lanes of this scenario fit"
            )

    def _placed(self, array: NDArray[Any], grows: bool, tile: bool) -> tuple[Any, tuple[int, ...]]:
        """The bytes of an array on the device, once for each lane where it grows with them, and the shape there."""
        lanes = self.count if grows else 1
        row = np.frombuffer(array.tobytes(), np.uint8)
        if tile:
            row = np.repeat(tiles.words(array)[0][:, None], tiles.LANES, axis=1).reshape(-1)
        times = -(-lanes // tiles.LANES) if tile else lanes
        tensor = self._torch.empty((times, len(row)), dtype=self._torch.uint8, device=self.card.device)
        tensor[:] = self._torch.from_numpy(row.copy()).to(self.card.device)
        return tensor, (array.shape[0] * lanes, *array.shape[1:]) if array.shape else ()

    def _rows(self, array: NDArray[Any], grows: bool = True) -> Any:
        """An array as a tensor, with its row once for each lane."""
        plain = array.view(np.int64) if array.dtype == np.uint64 else array
        tensor = self._torch.from_numpy(plain.copy()).to(self.card.device)
        return tensor.expand(self.count, *tensor.shape[1:]).contiguous() if grows else tensor

    def _call(self, thread: str, most: int, mode: int = 0, turn: int = 0) -> None:
        if thread not in self._made:
            self._made[thread] = self._entries(thread)
        self.card.launch(self._made[thread], most, mode, self._limit, turn % TURNS, self.count)

    def compile(self) -> None:
        """Compile all that a step needs, or load it from disk, without playing. Raises `KernelError`."""
        for thread in ("step", "finish", "begin"):
            self._made.setdefault(thread, self._entries(thread))

    def reset(self, which: Any, keys: Sequence[int | None]) -> None:
        """Start an episode in the chosen lanes.

        Args:
            which: bool [lanes], of numpy or a tensor of the device; None: all.
            keys: a lane with a key starts its stream anew, others go on with their next episode.
        """
        torch, buffers = self._torch, self.buffers
        self.check()
        chosen = np.ones(self.count, np.bool_) if which is None else which
        chosen = torch.as_tensor(chosen, device=self.card.device)
        given = np.array([key is not None for key in keys])
        values = np.array([0 if key is None else key for key in keys], np.uint64).view(np.int64)
        anew = torch.from_numpy(given).to(self.card.device) & chosen
        buffers.seed_key.copy_(
            torch.where(anew, torch.from_numpy(values).to(self.card.device), buffers.seed_key)
        )
        buffers.episode.masked_fill_(anew, -1)
        self.begin(chosen)

    def begin(self, which: Any) -> None:
        """Start the next episode in some lanes, bool [lanes], a tensor of the device."""
        torch, buffers, shared = self._torch, self.buffers, self._shared
        for name in ("reward", "dt", "terminated", "truncated", "ended"):
            getattr(buffers, name).masked_fill_(which, 0)
        lanes = which.nonzero().reshape(-1).to(torch.int32)
        free = (self._turn + 1) % TURNS  # a list that the next step empties
        shared.ended[free, : len(lanes)] = lanes
        shared.counts[free] = len(lanes)
        self._call("begin", MOST_THREADS, SAME_STEP, free + 1)

    def step(self, mode: int) -> None:
        """Advance every lane by the actions in `buffers.action`; returns before the device has done it.

        Raises:
            KernelError: a function does not compile for the device.
        """
        turn = self._turn
        if mode == NEXT_STEP:  # lanes that begin and lanes that step are others, so both can be done at once
            join = self.card.beside(lambda: self._call("begin", LIST_THREADS, mode, turn))
            self._call("step", MOST_THREADS, mode, turn)
            join()
        else:
            self._call("step", MOST_THREADS, mode, turn)
        self._call("finish", LIST_THREADS, mode, turn)
        if mode == SAME_STEP:
            self._call("begin", LIST_THREADS, mode, turn + 1)
        self._turn = (turn + 1) % TURNS

    def check(self) -> None:
        """Raise `InvalidAction` if the device has met an action outside the space, or a masked one where that is an error.

        The device is not waited for: what is wrong with the actions of a step may be told at a later one.
        """
        lane = int(self._wrong_here[0]) - 1
        if lane < 0:
            return
        action = self.buffers.action[lane].tolist()  # waits for the device
        self._wrong_here[0] = 0
        space = self.simulation.action_space
        raised = ' or masked, with invalid_action="raise"' if len(self._shared.first) else ""
        raise InvalidAction(
            f"an action of lane {lane} in an earlier step was outside {space}{raised}; the lane did not take that step "
            f"(its last action: {action})"
        )

    def load_actions(self, actions: Any) -> None:
        """Store the actions of all lanes, shape [lanes] or [lanes, parts]. Raises `InvalidAction`."""
        space = self.simulation.action_space
        shape = (self.count, *(space.shape or ()))
        try:
            tensor = self.tensor("actions", actions)
        except InvalidArgument as error:
            raise InvalidAction(str(error)) from None
        if tuple(tensor.shape) != shape:
            raise InvalidAction(f"actions have shape {tuple(tensor.shape)}, expected {shape} for {space}")
        real = tensor.dtype.is_floating_point
        if (
            tensor.dtype == self._torch.bool
            or tensor.dtype.is_complex
            or (real and not isinstance(space, Box))
        ):
            expected = _KINDS["f" if isinstance(space, Box) else "i"]
            raise InvalidAction(f"actions have dtype {tensor.dtype}, expected {expected} for {space}")
        self.buffers.action.copy_(tensor.reshape(self.count, -1))

    def tensor(self, name: str, value: Any) -> Any:
        """A value as a tensor of the device: without a copy, if it is there, else from numpy.

        Args:
            name: of the value, for messages.
            value: a tensor, an array of another library on the same device (DLPack, `__cuda_array_interface__`), or one of numpy.

        Raises:
            InvalidArgument: it is on another device, or no array.
        """
        torch, device = self._torch, self.card.device
        if not isinstance(value, (torch.Tensor, np.ndarray)):
            if hasattr(value, "__cuda_array_interface__"):
                value = torch.as_tensor(value, device="cuda")
            elif hasattr(value, "__dlpack__"):
                value = torch.from_dlpack(value)
        if isinstance(value, torch.Tensor):
            if value.device != device:
                raise InvalidArgument(
                    f"{name} are on {value.device}, the environment is on {device}: expected a tensor there or an array of numpy"
                )
            return value
        try:
            array = np.ascontiguousarray(value)
            return torch.from_numpy(array if array.flags.writeable else array.copy()).to(device)
        except (TypeError, ValueError):
            raise InvalidArgument(f"{name}={value!r}: no array of numbers") from None

    def never_began(self) -> NDArray[np.bool_]:
        """Which lanes have had no episode yet, bool [lanes]."""
        return (self.buffers.episode < 0).cpu().numpy()  # type: ignore[no-any-return]

    def metric_columns(self) -> Any:
        """Metrics of the episodes that ended last, float64 [lanes, metrics], in the order of `metric_names`."""
        return self.buffers.metrics[:, : len(self.simulation.metric_names)]

    def metrics_now(self) -> Any:
        """Metrics of the running episodes so far, float64 [lanes, metrics], on the device."""
        self._call("measure", MOST_THREADS)
        return self._shared.now

    def take(self, source: Lanes, which: NDArray[np.int64]) -> None:
        """Let the first lanes stand where some lanes of the CPU stand now, as `llmgym.core.memory.copy_lanes` does there.

        A lane that has ended waits, as in mode `HOLD`; in other modes an episode begins there only by a reset.

        Args:
            source: lanes of the same simulation; each of those that are copied goes to the device once, however often it is named.
            which: numbers of these, int64 [n], n at most `count`.
        """
        torch, device = self._torch, self.card.device
        sent, place = np.unique(which, return_inverse=True)
        of = torch.from_numpy(place.reshape(-1)).to(device)
        parts = zip(self._state, _leaves(source.state), self._grows, self._tiled, strict=True)
        for (_, tensor), theirs, grows, tile in parts:
            if theirs.size == 0:
                continue
            if not grows:  # of all lanes
                tensor.copy_(torch.from_numpy(theirs.reshape(1, -1).view(np.uint8).copy()))
                continue
            rows = theirs.reshape(source.count, -1).view(np.uint8)[sent]
            if tile:
                words = tiles.words(rows.view(theirs.dtype), len(sent))
                tiles.fill(tensor, torch.from_numpy(words).to(device), of)
            else:
                there = torch.from_numpy(rows).to(device)
                torch.index_select(there, 0, of, out=tensor[: len(which)])
        for name in COPIED:
            theirs = getattr(source.buffers, name)[sent]
            plain = theirs.view(np.int64) if theirs.dtype == np.uint64 else theirs
            getattr(self.buffers, name)[: len(which)] = torch.from_numpy(plain).to(device)[of]

    def state_of(self, lane: int) -> Any:
        """The state of one lane, as numpy arrays for one lane."""

        def one(array: NDArray[Any], tensor: Any, tile: bool) -> NDArray[Any]:
            if not tile:
                row = tensor[lane if len(tensor) > 1 else 0].cpu().numpy()
                return np.frombuffer(row.tobytes(), array.dtype).reshape(array.shape).copy()
            there = tensor[lane // tiles.LANES].cpu().numpy()
            _, count, size = tiles.words(array).shape
            words = there.reshape(count, tiles.LANES, size)[:, lane % tiles.LANES]
            items = words.reshape(array.size, count * size // max(array.size, 1))[:, : array.itemsize]
            return np.frombuffer(items.tobytes(), array.dtype).reshape(array.shape).copy()

        arrays = iter(
            one(array, tensor, tile) for (array, tensor), tile in zip(self._state, self._tiled, strict=True)
        )

        def copied(part: Any) -> Any:
            return type(part)(*map(copied, part)) if isinstance(part, tuple) else next(arrays)

        return copied(self._one[0])

    def close(self) -> None:
        """Free the memory of the device."""
        self._made.clear()


def _leaves(part: Any) -> Iterator[Any]:
    """All arrays and numbers in tuples, in order."""
    if isinstance(part, tuple):
        for inner in part:
            yield from _leaves(inner)
    else:
        yield part


def _place(tensor: Any, array: NDArray[Any], shape: tuple[int, ...]) -> list[int]:
    """Address, shape and strides (bytes), as in a frame, of an array with this shape in the memory of a tensor."""
    strides = [array.itemsize * math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    return [tensor.data_ptr(), *shape, *strides]


def _contiguous(part: Any) -> Any:
    """Params with their arrays in the order of C, which cannot be written to."""
    if isinstance(part, np.ndarray):
        array = part if part.flags.c_contiguous else np.array(part, order="C")
        array.setflags(write=False)
        return array
    if isinstance(part, tuple):
        inner = map(_contiguous, part)
        return type(part)(*inner) if hasattr(part, "_fields") else tuple(inner)
    return part


def growing(simulation: Simulation) -> list[bool]:
    """Which arrays of a state have a part for each lane. Raises `KernelError` where one grows otherwise."""
    grows = []
    for one, two in zip(_leaves(simulation.allocate(1)), _leaves(simulation.allocate(2)), strict=True):
        if not isinstance(one, np.ndarray) or two.shape not in (
            one.shape,
            (2 * one.shape[0], *one.shape[1:]),
        ):
            raise KernelError(
                f"{type(simulation).__name__}.allocate: expected arrays whose first axis is the lane, for a device"
            )
        grows.append(two.shape != one.shape)
    return grows


def lane_bytes(arrays: tuple[Any, Any, Buffers, Work]) -> int:
    """Memory of a device that a lane takes, of `one_lane`."""
    state, _, buffers, work = arrays
    return sum(array.nbytes for array in _leaves((state, buffers, work.ended, work.now)))


def one_lane(simulation: Simulation) -> tuple[Any, Any, Buffers, Work]:
    """State, params, buffers and work of a single lane, as arrays of numpy: what those of a device are copies of."""
    lanes = Lanes(simulation, 1)
    space, parts = simulation.action_space, simulation.action_size
    first = np.zeros(0, np.int64)
    if isinstance(space, Box):
        low, high = space.low.astype(np.float64).reshape(-1), space.high.astype(np.float64).reshape(-1)
    else:
        sizes = np.array([space.n]) if isinstance(space, Discrete) else np.asarray(space.nvec).reshape(-1)
        low, high = np.zeros(parts), sizes - 1.0
        if simulation.raise_on_masked and simulation.mask_size:
            first = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64)
    work = Work(
        low,
        high,
        first,
        ended=np.zeros((TURNS, 1), np.int32),
        counts=np.zeros(TURNS, np.int64),
        wrong=np.zeros(1, np.int64),
        now=np.zeros_like(lanes.buffers.metrics),
    )
    return lanes.state, _contiguous(simulation.params), lanes.buffers, work


def in_tiles(simulation: Simulation) -> list[bool]:
    """Which arrays of a state lie in tiles on a device, in order."""
    state = simulation.allocate(1)
    return [
        grows and array.shape[0] == 1 and tiles.tiled(numba.typeof(array))
        for array, grows in zip(_leaves(state), growing(simulation), strict=True)
    ]
