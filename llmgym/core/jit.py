"""Compiling kernels, with a disk cache that cannot go stale.

numba's own disk cache looks at the file a function is written in. A kernel that calls a helper of another module keeps
running the helper's old machine code after the helper was edited. Here a compiled function is stored under a hash of itself
and of all that it refers to, as these are in memory when it is compiled (`llmgym.core.fingerprint`), together with the versions of
Python, numba, llvmlite, numpy and the CPU. Any change gives another name, so nothing is ever stale; a function that refers to
something without a description is compiled anew in each process.

Under LLMGYM_DEBUG=1, kernels check every index against its array, which is slower, and tell file and line of one that is out of
bounds. A kernel that cannot be compiled is always told in words of this package (`explained`).

The cache is a private folder of the user (`llmgym.core.cache_folder`), so it works where the installation is read-only. Files are
written atomically: processes that compile at the same time do not disturb each other.
"""

import contextlib
import difflib
import functools
import hashlib
import os
import pickle
import re
import sys
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FunctionType, TracebackType
from typing import Any, TypeVar, overload

import llvmlite
import numba
import numpy as np
from numba.core import cgutils, compiler, ir, lowering
from numba.core import types as numba_types
from numba.core.bytecode import FunctionIdentity
from numba.core.caching import _Cache
from numba.core.codegen import JITCodeLibrary
from numba.core.serialize import dumps

from llmgym.core import cache_folder
from llmgym.core.cache_folder import cache_dir
from llmgym.core.fingerprint import Unknown, come_back, describe, describe_types, fingerprint, settle
from llmgym.errors import KernelError

__all__ = ["DEBUG", "cache_dir", "explained", "fingerprint", "kernel"]

F = TypeVar("F", bound=Callable[..., Any])

DEBUG = os.environ.get("LLMGYM_DEBUG", "") not in ("", "0")
"""Whether kernels check their indices."""

STALE_AFTER_DAYS = 30

_CHECKSUM_BYTES = 32

_TOOLS = (
    Path(__file__).read_bytes(),
    numba.__version__,
    llvmlite.__version__,
    np.__version__,
    sys.version,
    DEBUG,
    [
        getattr(numba.config, name, None)
        for name in (
            "OPT",
            "BOUNDSCHECK",
            "LOOP_VECTORIZE",
            "SLP_VECTORIZE",
            "DEBUGINFO_DEFAULT",
            "LLVM_REFPRUNE_PASS",
        )
    ],
)
"""What turns a function into machine code, this file included."""


class _Everywhere(Iterator[int]):
    """Numbers that no other process draws.

    numba numbers the functions it compiles, 1, 2, 3, and makes names of machine code from these. In machine code that different
    processes have stored, two functions of one name can then bear one number; linked together, one takes the other's place.
    """

    def __next__(self) -> int:
        return uuid.uuid4().int >> 64


FunctionIdentity._unique_ids = _Everywhere()


def _file_name(text: str) -> str:
    return re.sub(r"[^\w.-]", "", text)[-80:]


class _KernelCache(_Cache):  # type: ignore[misc]
    """Stores each compiled signature of one function in a file of its own."""

    def __init__(self, dispatcher: Any, announce: str | None) -> None:
        self._dispatcher = dispatcher
        self._announce = announce
        self._enabled = True
        self._asked: dict[Any, Path] = {}
        function = dispatcher.py_func
        self._module = _file_name(function.__module__ or "unnamed")
        self._name = _file_name(function.__qualname__)

    @property
    def cache_path(self) -> str:
        return str(cache_dir())

    def enable(self) -> None:
        self._enabled = True

    def disable(self) -> None:
        self._enabled = False

    def flush(self) -> None:
        for path in (cache_dir() / self._module).glob(f"{self._name}-*.nbc"):
            path.unlink(missing_ok=True)

    def _path(self, sig: Any, context: Any) -> Path:
        """Where machine code for these types of arguments is kept. Raises `Unknown`."""
        digest = hashlib.sha256(describe(self._dispatcher))
        digest.update(repr((describe_types(sig), context.codegen().magic_tuple(), _TOOLS)).encode())
        return cache_dir() / self._module / f"{self._name}-{digest.hexdigest()[:32]}.nbc"

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        target_context.refresh()
        kept = "not kept on disk, as caching is off"
        if self._enabled:
            try:
                settle(self._dispatcher)
                path = self._asked[sig] = self._path(sig, target_context)
                kept = f"once; the result is kept in {cache_dir()}"
            except Unknown as error:
                kept = f"in every process, as it depends on {error}"
            else:
                if (found := self._read(path, target_context)) is not None:
                    return found
        if self._announce and not os.environ.get("LLMGYM_QUIET"):
            slow = ", with bounds checks" if DEBUG else ""
            print(
                f"llmgym: compiling {self._announce} for this machine{slow} ({kept}) ...",
                file=sys.stderr,
                flush=True,
            )
        return None

    def _read(self, path: Path, context: Any) -> Any:
        try:
            data = cache_folder.read(path)
            checksum, payload = data[:_CHECKSUM_BYTES], data[_CHECKSUM_BYTES:]
            if hashlib.sha256(payload).digest() != checksum:
                raise OSError("its checksum is wrong")
            result = compiler.CompileResult._rebuild(context, *pickle.loads(payload))
        except FileNotFoundError:
            return None
        except Exception as error:
            warnings.warn(f"ignoring a damaged kernel cache file {path}: {error!r}", stacklevel=2)
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # it is in use: not to be removed as old
        return result

    def save_overload(self, sig: Any, data: Any) -> None:
        asked = self._asked.pop(sig, None)
        if asked is None or data.library.has_dynamic_globals or any(not x.can_cache for x in data.lifted):
            return
        if not come_back((*data.signature.args, data.signature.return_type)):
            return
        try:
            if self._path(sig, data.target_context) != asked:  # something changed while it was compiled
                return
            payload = dumps(data._reduce())
            _remove_stale(cache_dir())
            cache_folder.write(asked, hashlib.sha256(payload).digest() + payload)
        except Unknown:
            return
        except OSError as error:
            warnings.warn(f"could not store a compiled kernel in {asked.parent}: {error}", stacklevel=2)


@functools.cache
def _remove_stale(folder: Path) -> None:
    """Drop compiled kernels that no run has used for a month, once a process."""
    oldest = time.time() - STALE_AFTER_DAYS * 86400
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # another process may have been faster
            if path.is_file() and path.lstat().st_mtime < oldest:
                path.unlink()


class _Part(JITCodeLibrary):  # type: ignore[misc]
    """A kernel that only other kernels call: it is linked into them and optimised there, once, with everything around it.

    numba would optimise every function again in each of its callers, and make machine code of each that nobody runs; leaving both
    out makes the compilation of an environment a third shorter. Python calls a kernel through an entry (`_without_entry`).
    """

    class _Codegen:
        """Stands for the real one where numba sets the environment of machine code, of which there is none."""

        @staticmethod
        def set_env(env_name: str, env: object) -> None:
            pass

    @property
    def codegen(self) -> Any:
        return self._Codegen

    def get_pointer_to_function(self, name: str) -> int:
        return 0

    def _optimize_final_module(self) -> None:
        pass

    def _finalize_final_module(self) -> None:
        self._finalize_dynamic_globals()
        self._finalized = True

    def serialize_using_object_code(self) -> Any:
        return self.serialize_using_bitcode()


class _PartCompiler(compiler.Compiler):  # type: ignore[misc]
    """numba's compiler, with a `_Part` to put the result into."""

    def __init__(self, typingctx: Any, targetctx: Any, library: Any, *rest: Any) -> None:
        if library is None:
            library = _Part(targetctx.codegen(), "part")
        super().__init__(typingctx, targetctx, library, *rest)


@overload
def kernel(function: F) -> F: ...
@overload
def kernel(*, announce: str | None = ..., inline: bool = ..., allocates: bool = ...) -> Callable[[F], F]: ...
def kernel(
    function: Any = None, *, announce: str | None = None, inline: bool = False, allocates: bool = False
) -> Any:
    """Compile a function of scalars and arrays with numba; machine code is kept on disk between processes.

    Compiled without the interpreter lock, with C division, and without fast-math, so that results are the same bits
    whatever number of lanes runs together.

    Args:
        function: the function to compile; `@kernel` and `@kernel(...)` both work.
        announce: for entry points (the loops that Python calls at every step), what to name on stderr when it has to be
            compiled. Other kernels can be called from Python too, at the price of a small wrapper on the first call.
        inline: ask LLVM to inline it into its callers.
        allocates: it makes arrays of its own. Without, numba's reference counting is left out: it would touch every array of a
            state at every call, with atomic instructions, which for small kernels is most of the time.

    Returns:
        The compiled function; a decorator where `function` is None.
    """

    def decorate(python_function: FunctionType) -> Any:
        options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "_nrt": allocates}
        if DEBUG:
            options["boundscheck"] = True
        if inline:
            options["forceinline"] = True
        if announce is not None:
            return _cached(numba.njit(**options)(python_function), announce)
        dispatcher = numba.njit(
            no_cpython_wrapper=True, no_cfunc_wrapper=True, pipeline_class=_PartCompiler, **options
        )(python_function)
        return _without_entry(_cached(dispatcher, None), allocates)

    return decorate if function is None else decorate(function)


def _cached(dispatcher: Any, announce: str | None) -> Any:
    if not numba.config.DISABLE_JIT:
        dispatcher._cache = _KernelCache(dispatcher, announce)
    return dispatcher


def _without_entry(dispatcher: Any, allocates: bool) -> Any:
    """Leave out the code that would let Python call a kernel, and make it only for the kernels that Python does call.

    Unpacking a state of many arrays takes more code than most kernels; leaving it out makes compiling twice as fast.
    """
    if numba.config.DISABLE_JIT:
        return dispatcher

    def remember(result: Any) -> None:
        dispatcher.overloads[tuple(result.signature.args)] = result

    @functools.cache
    def entry() -> Any:
        def call(*arguments: Any) -> Any:
            return dispatcher(*arguments)

        return _cached(numba.njit(nogil=True, error_model="numpy", _nrt=allocates)(call), None)

    typed = dispatcher.get_call_template

    def template(arguments: Any, keywords: Any) -> Any:
        return typed(
            [_widest(kind) for kind in arguments], {name: _widest(kind) for name, kind in keywords.items()}
        )

    dispatcher.add_overload = remember
    dispatcher.get_call_template = template
    dispatcher._compile_for_args = lambda *arguments, **keywords: entry()
    return dispatcher


def _widest(kind: Any) -> Any:
    """One type for all signed integers and one for all floats, so that a kernel is not compiled for each literal and width."""
    kind = numba_types.unliteral(kind)  # type: ignore[attr-defined]
    if isinstance(kind, numba_types.Integer) and kind.signed:  # type: ignore[attr-defined]
        return numba_types.int64
    return numba_types.float64 if isinstance(kind, numba_types.Float) else kind


def _name_lines_out_of_bounds() -> None:
    """Let a failed bounds check say in which line of which kernel it is; numba alone says that some index is out of bounds."""
    lower = lowering.Lower.lower_inst

    def lower_inst(self: Any, instruction: Any) -> None:
        self.builder.llmgym_place = (self.loc, self.func_ir.func_id.func_qualname)
        lower(self, instruction)

    def check(context: Any, builder: Any, index: Any, size: Any, axis: Any = None) -> None:
        place, name = getattr(builder, "llmgym_place", (None, ""))
        where = f"{place.filename}:{place.line}, in {name}: " if place is not None else ""
        which = f" for axis {axis}" if isinstance(axis, int) else ""
        wrong = builder.or_(
            builder.icmp_signed(">=", index, size), builder.icmp_signed("<", index, index.type(0))
        )
        with cgutils.if_unlikely(builder, wrong):
            told = f"{where}index is out of bounds{which}"
            context.call_conv.return_user_exc(builder, IndexError, (told,), loc=place, func_name=name)

    lowering.Lower.lower_inst = lower_inst
    cgutils.do_boundscheck = check


if DEBUG:
    _name_lines_out_of_bounds()

_NUMBA = str(Path(numba.__file__).parent)
_PLACE = re.compile(r'(?:at (\S+?\.py) \((\d+)\)|File "([^"]+?\.py)", line (\d+):)')

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
"""What numba writes around words where colorama is installed."""
_CALLEE = re.compile(r"During: resolving callee type: type\(CPUDispatcher\(<function (\w+) at")


def explained(error: Exception) -> Exception:
    """What went wrong when Python called a kernel: function, file and line if it could not be compiled; else the same error.

    Args:
        error: as caught, with its traceback.
    """
    place = record = name = None
    trace: TracebackType | None = error.__traceback__
    while trace is not None:
        whose = trace.tb_frame.f_locals.get("self")
        if isinstance(found := getattr(whose, "loc", None), ir.Loc):  # a part of the program that numba is at
            place, name = (found.filename, found.line), found._raw_function_name() or name
        if isinstance(whose, numba_types.Record):  # type: ignore[attr-defined]
            record = whose
        trace = trace.tb_next
    message = _COLOUR.sub("", str(error))
    if isinstance(error, numba.core.errors.NumbaError):
        callee = _CALLEE.search(message)
        for found in _PLACE.finditer(message):  # the first outside of numba is the innermost
            path, line = found[1] or found[3], found[2] or found[4]
            if callee is not None and callee.start() < found.start():  # what is called has no place
                place, name = None, callee[1]
                break
            if not os.path.abspath(path).startswith(_NUMBA):
                place, name = (os.path.abspath(path), int(line)), None
                break
        message = _summary(message)
    elif isinstance(error, KeyError) and record is not None and place is not None:
        known = list(record.fields)
        close = difflib.get_close_matches(str(error.args[0]), known, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        message = f"the record has no field {error.args[0]!r}.{hint} It has: {', '.join(known)}"
    elif place is None:
        return error
    where = [f"{place[0]}:{place[1]}"] if place is not None else []
    where += [f"in {name}"] if name else []
    return KernelError(f"{', '.join(where)}{': ' if where else ''}{message}")


def _summary(message: str) -> str:
    """The lines of an error of numba's that say what is wrong, without its own ways through the program."""
    lines = [line.strip(" -") for line in message.splitlines()]
    said = [
        line
        for line in lines
        if line
        and not line.startswith(("Failed in", "Resolution failure", "During", "raised from", "There are"))
    ]
    call = next((line.removeprefix(">>> ") for line in said if line.startswith(">>> ")), "")
    return f"numba cannot compile this: {said[0] if said else message}{f' {call}' if call else ''}"
