"""The compiled functions of an environment, compiled once more, for NVIDIA GPUs.

There is one source of every kernel. numba-cuda compiles a function of `@kernel` for a device when code for a device refers to
it; so what is needed here are entries, one thread a lane (`llmgym.core.threads`), and machine code of them: numba-cuda makes PTX,
nvJitLink makes it machine code of one architecture, without a GPU. It is kept beside the kernels of the CPU, under a hash of all
that it was made from.

Arguments are the numbers of a frame (`llmgym.core.frames`), by value: the GPU keeps them where all threads read them for nothing,
and a launch costs the same for two arrays as for sixty.
"""

import contextlib
import ctypes
import dis
import functools
import hashlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import numba
import numpy as np
from numba.core.dispatcher import Dispatcher

from llmgym.core import cache_folder, frames, threads, tiles
from llmgym.core.fingerprint import Unknown, describe, describe_types, references
from llmgym.core.frames import put_together
from llmgym.core.jit import _TOOLS, _widest, explained
from llmgym.core.loops import Kernels
from llmgym.core.rng import substream
from llmgym.core.threads import threads_of
from llmgym.errors import KernelError, MissingExtra

try:
    if not hasattr(np, "row_stack"):  # numba-cuda 0.30 still looks for what numpy 2.5 has no more
        np.row_stack = np.vstack  # type: ignore[attr-defined]  # noqa: NPY201
    from cuda.bindings import driver, nvjitlink
    from numba import cuda
    from numba.cuda import cgutils
    from numba.cuda.compiler import compile_cuda, kernel_fixup
    from numba.cuda.datamodel.models import RecordModel
    from numba.cuda.descriptor import cuda_target
    from numba.cuda.dispatcher import CUDADispatcher
    from numba.cuda.extending import intrinsic, lower_cast, register_model
    from numba.cuda.np.arrayobj import populate_array
except ImportError as error:
    raise MissingExtra("device='cuda'", "cuda") from error

types = numba.types
BLOCK = 64
"""Threads of a block."""
MOST_REGISTERS = 255
"""The most registers that a thread can have. With fewer of them more threads run at once, and some values go to memory."""
REGISTERS = {"step": 128}
"""What a thread may have, where that is less: KVQueue then steps 1.4 times as fast on an H200 (benchmarks/gpu_tune.py). The calls
that work through lists run few threads, and gain nothing."""
register_model(tiles.Spread)(RecordModel)
lower_cast(types.Record, tiles.Spread)(tiles.cast)
lower_cast(tiles.Spread, types.Record)(tiles.cast)
cuda_target.target_context.pack_value = tiles.storing(cuda_target.target_context, cgutils)
_PACKAGES = ("numba-cuda", "cuda-bindings", "nvidia-nvvm", "nvidia-cuda-nvcc", "nvidia-nvjitlink")


@dataclass(frozen=True)
class Code:
    """Machine code of one entry, and what the linker tells of it.

    Attributes:
        name: of the entry, in the machine code.
        registers: of a thread.
        stack_bytes: memory of a thread for arrays of its own, calls and what has no register.
        spill_bytes: written and read because there were too few registers.
        image: the machine code.
    """

    name: str
    registers: int
    stack_bytes: int
    spill_bytes: int
    image: bytes


class _Device(CUDADispatcher):  # type: ignore[misc]
    """A kernel of the package as other code for the device calls it, compiled without a GPU for the types that a CPU would have."""

    def compile_device(self, args: Any, return_type: Any = None) -> Any:
        if args not in self.overloads:
            options = self.targetoptions
            made = compile_cuda(
                self.py_func,
                return_type,
                args,
                forceinline=options["forceinline"],
                nvvm_options=dict(options["nvvm"]),
                cc=options["cc"],
            )
            self.overloads[args] = made
            made.target_context.insert_user_function(made.entry_point, made.fndesc, [made.library])
        return self.overloads[args]

    def get_call_template(self, args: Any, kws: Any) -> Any:
        return super().get_call_template(
            [_widest(kind) for kind in args], {name: _widest(kind) for name, kind in kws.items()}
        )


def _referred(function: FunctionType) -> Iterator[Any]:
    """The kernels that a function refers to."""
    for cell in function.__closure__ or ():
        if isinstance(cell.cell_contents, Dispatcher):
            yield cell.cell_contents
    for name, path in references(function.__code__):
        value = function.__globals__.get(name)
        for step in path:
            value = getattr(value, step, None) if isinstance(value, ModuleType) else value
        if isinstance(value, Dispatcher):
            yield value


class Compiler:
    """Compiles what the threads of a GPU do in one environment.

    Args:
        kernels: its functions, as `Simulation.kernels`.
        head: record of the observation; None: the functions write a whole row.
        metrics: record of the metrics; None: a whole row.
        capability: of the GPU, such as (9, 0).
        exact: whether a product and a sum stay two roundings, as on a CPU.
        which: whether each array of the state lies in tiles, in order; see `llmgym.core.tiles`.
    """

    def __init__(
        self,
        kernels: Kernels,
        head: Any,
        metrics: Any,
        capability: tuple[int, int],
        exact: bool,
        which: Sequence[bool],
    ) -> None:
        self._which, self._here = tuple(which), _beginning(which)
        self._options: dict[str, Any] = {
            "device": True,
            "debug": False,
            "opt": True,
            "nvvm": {"opt": 3, "fma": int(not exact)},
            "cc": (*capability, ""),
        }
        self._kernels, self._records = kernels, (head, metrics)
        self._devices: dict[Any, _Device] = {}
        self._made: dict[Any, tuple[bytes, str]] = {}

    def _part(self, function: Any, inline: bool = True) -> _Device:
        return _Device(function, {**self._options, "forceinline": inline})

    def _for_device(self, kernels: list[Any]) -> None:
        """Let numba-cuda compile kernels, and all that they call, as `_Device`: it asks each for its form on a device."""
        while kernels:
            one = kernels.pop()
            if one not in self._devices:
                if any(step.opname == "RAISE_VARARGS" for step in dis.get_instructions(one.py_func)):
                    raise KernelError(f"{one.py_func.__qualname__} raises an error, which a device cannot")
                if one.targetoptions.get("_nrt"):
                    raise KernelError(f"{one.py_func.__qualname__} makes arrays, which a device cannot")
                inline = bool(one.targetoptions.get("forceinline"))
                self._devices[one] = self._part(one.py_func, inline)
                kernels.extend(_referred(one.py_func))

    @functools.cached_property
    def _threads(self) -> threads.Threads:
        """What threads do, as functions of arrays that are ready to be compiled."""
        reset_lane, step_lane, observe_lane, mask_lane, metrics_lane = self._kernels
        head, metrics = self._records
        observe_row, measure_row = observe_lane, metrics_lane
        if head is not None:
            view, width = _viewing(head), head.dtype.itemsize // 4

            def observe_row(state: Any, params: Any, lane: int, row: Any) -> None:
                observe_lane(state, params, lane, view(row), row[width:])

            observe_row = self._part(observe_row)
        if metrics is not None:
            record = _viewing(metrics)

            def measure_row(state: Any, params: Any, lane: int, row: Any) -> None:
                metrics_lane(state, params, lane, record(row))

            measure_row = self._part(measure_row)

        def claim(counts: Any, turn: int) -> int:
            return cuda.atomic.add(counts, turn, 1)

        self._for_device([*self._kernels, substream])
        rows = Kernels(reset_lane, step_lane, observe_row, mask_lane, measure_row)
        return threads_of(rows, self._part(claim), self._here)

    def _use(self) -> None:
        """Tell numba-cuda which form of a kernel is meant: another compiler may have told it another."""
        for kernel, device in self._devices.items():
            kernel._CUDATypingContext__dispatcher = device

    def code(self, thread: str, arrays: Any, registers: int | None = None) -> Code:
        """Compile one of the functions of `Threads`, or take it from disk.

        Args:
            thread: its name.
            arrays: (state, params, buffers, work), of numpy; only their types count.
            registers: a thread has at most; None: as `REGISTERS` says.

        Raises:
            KernelError: it does not compile for a GPU.
        """
        registers = REGISTERS.get(thread, MOST_REGISTERS) if registers is None else registers
        state, *others = numba.typeof(arrays).types
        kind = types.Tuple((tiles.seen(state, [*self._which]), *others))
        path = self._path(thread, kind, registers)
        found = _kept(path)
        if found is None:
            if not os.environ.get("LLMGYM_QUIET"):
                kept = "in every process" if path is None else f"once; the result is kept in {path.parent}"
                home, gpu = self._kernels.step_lane.__module__, "sm_{}{}".format(*self._options["cc"])
                print(
                    f"llmgym: compiling {thread} of {home} for {gpu} ({kept}) ...",
                    file=sys.stderr,
                    flush=True,
                )
            try:
                if (thread, kind) not in self._made:
                    one = getattr(self._threads, thread)
                    self._use()
                    self._made[thread, kind] = self._ptx(one, kind)
                ptx, name = self._made[thread, kind]
            except numba.core.errors.NumbaError as error:
                raise _explained(error) from error
            found = _linked(ptx, name, self._options["cc"], registers)
            if path is not None:
                _keep(path, found)
        return found

    def _path(self, thread: str, kind: Any, registers: int) -> Path | None:
        """Where machine code is kept; None where it depends on what has no description."""
        try:
            digest = hashlib.sha256(describe_types([kind]).encode())
            for one in (*self._kernels, substream):
                digest.update(describe(one))
        except Unknown:
            return None
        sources = [
            Path(module.__file__ or "").read_bytes()
            for module in (sys.modules[__name__], frames, threads, tiles)
        ]
        records = [None if record is None else str(record.dtype) for record in self._records]
        digest.update(
            repr(
                (thread, registers, self._which, self._options, records, sources, _TOOLS, _versions())
            ).encode()
        )
        return cache_folder.cache_dir() / "cuda" / f"{thread}-{digest.hexdigest()[:32]}.cubin"

    def _ptx(self, thread: Callable[..., None], kind: Any) -> tuple[bytes, str]:
        size = _numbers(kind)
        unpack, one = _unpacking(kind), self._part(thread)

        def entry(frame: Any, mode: int, limit: int, turn: int, count: int) -> None:
            for i in range(cuda.grid(1), count, cuda.gridsize(1)):
                one(unpack(frame), i, mode, limit, turn)

        number = types.int64
        made = compile_cuda(
            entry,
            types.void,
            (types.UniTuple(number, size), number, number, number, number),
            nvvm_options=dict(self._options["nvvm"]),
            cc=self._options["cc"],
        )
        library, name = made.library, made.fndesc.llvm_func_name
        library._entry_name = name
        function = library.get_function(name)
        kernel_fixup(function, False)
        return library.get_asm_str(self._options["cc"]).encode(), name


def _explained(error: Exception) -> Exception:
    """What `llmgym.core.jit.explained` finds; the error's own words where it meets what a device alone has."""
    try:
        return explained(error)
    except Exception:
        return KernelError(str(error))


def _beginning(which: Sequence[bool]) -> Any:
    """The intrinsic `here` of `llmgym.core.threads`, for a state of which these arrays lie in tiles."""

    @intrinsic  # type: ignore[untyped-decorator]
    def here(typing: Any, state: Any, lane: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            value, number = arguments
            parts = cgutils, populate_array
            return tiles.shifted(context, builder, state, value, number, [*which], parts)

        return state(state, types.int64), build

    return here


def _viewing(record: Any) -> Any:
    """As `llmgym.core.records.viewing`, for a device."""
    kind = numba.from_dtype(record.dtype)

    @intrinsic  # type: ignore[untyped-decorator]
    def view(typing: Any, row: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
            return builder.bitcast(data, context.get_value_type(kind))

        return kind(row), build

    return view


def _unpacking(kind: Any) -> Any:
    """As `llmgym.core.frames.unpacking`, for a frame that is a tuple of numbers."""

    @intrinsic  # type: ignore[untyped-decorator]
    def unpack(typing: Any, frame: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return put_together(context, builder, kind, lambda at: builder.extract_value(arguments[0], at))

        return kind(frame), build

    return unpack


def _numbers(kind: Any) -> int:
    """How many numbers the frame of such arrays has."""
    if isinstance(kind, types.BaseTuple):
        return sum(_numbers(inner) for inner in kind.types)
    return 1 + 2 * kind.ndim if isinstance(kind, types.Array) else 1


def _linked(ptx: bytes, name: str, capability: tuple[int, int, str], registers: int) -> Code:
    """Machine code of PTX. Raises `KernelError`."""
    options = [f"-arch=sm_{capability[0]}{capability[1]}", "-O3", "-verbose", f"-maxrregcount={registers}"]
    handle = nvjitlink.create(len(options), options)
    try:
        nvjitlink.add_data(handle, nvjitlink.InputType.PTX, ptx, len(ptx), name)
        nvjitlink.complete(handle)
        image = bytearray(nvjitlink.get_linked_cubin_size(handle))
        nvjitlink.get_linked_cubin(handle, image)
        log = bytearray(nvjitlink.get_info_log_size(handle))
        nvjitlink.get_info_log(handle, log)
    except nvjitlink.nvJitLinkError as error:
        log = bytearray(nvjitlink.get_error_log_size(handle))
        nvjitlink.get_error_log(handle, log)
        raise KernelError(f"{name}: nvJitLink: {error}: {log.decode(errors='replace')}") from error
    finally:
        nvjitlink.destroy(handle)
    told = log.decode(errors="replace")

    def most(pattern: str) -> int:
        return max((int(number) for number in re.findall(pattern, told)), default=0)

    spilt = most(r"(\d+) bytes spill stores") + most(r"(\d+) bytes spill loads")
    return Code(name, most(r"[Uu]sed (\d+) registers"), most(r"(\d+) bytes stack"), spilt, bytes(image))


def _versions() -> list[str]:
    found = [numba.__version__]
    for package in _PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return found


def _kept(path: Path | None) -> Code | None:
    """What is on disk; None where nothing is, or what is there is damaged."""
    try:
        told, _, image = cache_folder.read(path).partition(b"\n") if path is not None else (b"", b"", b"")
        header = json.loads(told) if told else {}
        if not header or hashlib.sha256(image).hexdigest() != header.pop("sha256"):
            return None
        os.utime(path)  # type: ignore[arg-type]  # it is in use: not to be removed as old
        return Code(image=image, **header)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _keep(path: Path, code: Code) -> None:
    header = {**asdict(code), "sha256": hashlib.sha256(code.image).hexdigest()}
    del header["image"]
    with contextlib.suppress(OSError):  # where nothing can be kept, it is compiled again
        cache_folder.write(path, json.dumps(header).encode() + b"\n" + code.image)


class Entry:
    """One entry on the GPU of the current context, with its arguments in place.

    Args:
        code: its machine code.
        frame: int64 [numbers], as `llmgym.core.frames.frame_of` gives them for arrays of the device.
        block: threads of a block.
    """

    def __init__(self, code: Code, frame: Any, block: int = BLOCK) -> None:
        self._block = block
        self._module = _checked(driver.cuModuleLoadData(code.image))
        self._function = _checked(driver.cuModuleGetFunction(self._module, code.name.encode()))
        self._values = np.concatenate([frame, np.zeros(4, np.int64)])
        at = self._values.ctypes.data
        self._addresses = (ctypes.c_void_p * len(self._values))(
            *(at + 8 * i for i in range(len(self._values)))
        )

    def launch(self, stream: int, most: int, mode: int, limit: int, turn: int, count: int) -> None:
        """Run `count` threads, or `most` that take turns, behind all that the stream does already."""
        self._values[-4:] = mode, limit, turn, count
        blocks = -(-min(count, most) // self._block)
        _checked(
            driver.cuLaunchKernel(
                self._function,
                blocks,
                1,
                1,
                self._block,
                1,
                1,
                0,
                stream,
                ctypes.addressof(self._addresses),
                0,
            )
        )


def _checked(result: Any) -> Any:
    error, *values = result
    if error != driver.CUresult.CUDA_SUCCESS:
        raise KernelError(f"the GPU says {driver.cuGetErrorString(error)[1].decode()} ({error.name})")
    return values[0] if values else None
