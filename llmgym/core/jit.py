"""Compiling kernels, with a disk cache that cannot go stale.

numba's own disk cache looks at the file a function is written in. A kernel that calls a helper of another module keeps
running the helper's old machine code after the helper was edited. Here a compiled function is stored under a name
that contains a fingerprint of its module and of every module of the package that it imports, directly or not,
together with the numba version, the Python version and the CPU. Any edit gives another name, so nothing is ever stale.

The cache is a user folder (`LLMGYM_CACHE_DIR`, else the platform's cache folder, else a temporary one), so it works where
the installation is read-only. Files are written atomically: processes that compile at the same time do not disturb
each other.
"""

import ast
import functools
import hashlib
import importlib.util
import os
import pickle
import shutil
import sys
import tempfile
import time
import uuid
import warnings
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import Any, TypeVar, overload

import numba
import platformdirs
from numba.core import compiler
from numba.core import types as numba_types
from numba.core.caching import _Cache
from numba.core.codegen import JITCodeLibrary
from numba.core.serialize import dumps

F = TypeVar("F", bound=Callable[..., Any])

STALE_AFTER_DAYS = 30


@functools.cache
def cache_dir() -> Path:
    """The folder compiled kernels are stored in; the first of the candidates that can be written to."""
    candidates = [os.environ.get("LLMGYM_CACHE_DIR"), platformdirs.user_cache_dir("llmgym", appauthor=False)]
    candidates.append(
        os.path.join(tempfile.gettempdir(), f"llmgym-cache-{getattr(os, 'getuid', lambda: 0)()}")
    )
    for candidate in candidates:
        if not candidate:
            continue
        path = Path(candidate) / "kernels"
        try:
            path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=path):
                return path
        except OSError:
            continue
    return Path(tempfile.mkdtemp(prefix="llmgym-cache-"))


@functools.cache
def _source(module: str) -> bytes | None:
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, AttributeError, ValueError):
        return None
    if spec is None or not spec.origin or not spec.origin.endswith(".py"):
        return None
    return Path(spec.origin).read_bytes()


@functools.cache
def _imports(module: str) -> frozenset[str]:
    """Modules of the same top-level package (or of llmgym) that `module` imports anywhere in its source."""
    source = _source(module)
    if source is None:
        return frozenset()
    spec = importlib.util.find_spec(module)
    is_package = spec is not None and spec.submodule_search_locations is not None
    ours = {"llmgym", module.partition(".")[0]}
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".") if is_package else module.split(".")[:-1]
                parents = parents[: len(parents) - node.level + 1]
                base = ".".join([*parents, base] if base else parents)
            found.add(base)
            found.update(f"{base}.{alias.name}" for alias in node.names)
    return frozenset(name for name in found if name.partition(".")[0] in ours and _source(name) is not None)


@functools.cache
def fingerprint(module: str) -> str:
    """Hash of the source of `module` and of everything of its package that it imports, transitively."""
    seen: set[str] = set()
    todo = [module]
    while todo:
        name = todo.pop()
        if name not in seen:
            seen.add(name)
            todo.extend(_imports(name))
    digest = hashlib.sha256()
    for name in sorted(seen):
        digest.update(name.encode() + b"\0" + (_source(name) or b"") + b"\0")
    return digest.hexdigest()


def _describe(value: object) -> str:
    """A text that tells closure values apart, with the fingerprint of any kernel or intrinsic among them."""
    function = getattr(value, "py_func", getattr(value, "_defn", value))
    if isinstance(function, FunctionType):
        cells = [_describe(cell.cell_contents) for cell in function.__closure__ or ()]
        return f"{function.__module__}:{function.__qualname__}:{fingerprint(function.__module__)}:{cells}"
    return repr(value)


class _KernelCache(_Cache):  # type: ignore[misc]
    """Stores each compiled signature of one function in a file of its own."""

    def __init__(self, py_func: FunctionType, announce: str | None) -> None:
        self._py_func = py_func
        self._announce = announce
        self._enabled = _source(py_func.__module__) is not None

    @property
    def cache_path(self) -> str:
        return str(cache_dir())

    def enable(self) -> None:
        self._enabled = True

    def disable(self) -> None:
        self._enabled = False

    def flush(self) -> None:
        for path in cache_dir().glob(f"{self._folder.name}/{self._py_func.__qualname__}-*"):
            path.unlink(missing_ok=True)

    @functools.cached_property
    def _folder(self) -> Path:
        module = self._py_func.__module__
        return cache_dir() / f"{module}-{fingerprint(module)[:16]}"

    def _path(self, sig: object, context: Any) -> Path:
        key = "|".join(
            [
                _describe(self._py_func),
                str(sig),
                repr(context.codegen().magic_tuple()),
                numba.__version__,
                sys.version,
            ]
        )
        name = self._py_func.__qualname__.replace("<", "").replace(">", "")
        return self._folder / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:24]}.nbc"

    def load_overload(self, sig: object, target_context: Any) -> Any:
        target_context.refresh()
        if self._enabled:
            path = self._path(sig, target_context)
            try:
                payload = pickle.loads(path.read_bytes())
                return compiler.CompileResult._rebuild(target_context, *payload)
            except FileNotFoundError:
                pass
            except Exception as error:
                warnings.warn(f"ignoring a damaged kernel cache file {path}: {error!r}", stacklevel=2)
        if self._announce and not os.environ.get("LLMGYM_QUIET"):
            print(
                f"llmgym: compiling {self._announce} for this machine (once; the result is kept in {cache_dir()}) ...",
                file=sys.stderr,
                flush=True,
            )
        return None

    def save_overload(self, sig: object, data: Any) -> None:
        if not self._enabled or data.library.has_dynamic_globals or any(not x.can_cache for x in data.lifted):
            return
        path = self._path(sig, data.target_context)
        temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:12]}.tmp")
        try:
            if not path.parent.exists():
                self._remove_stale()
                path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(dumps(data._reduce()))
            os.replace(temporary, path)
        except OSError as error:
            warnings.warn(f"could not store a compiled kernel in {path.parent}: {error}", stacklevel=2)
            temporary.unlink(missing_ok=True)

    def _remove_stale(self) -> None:
        """Drop the folders of earlier versions of this module that no run has written to for a month."""
        oldest = time.time() - STALE_AFTER_DAYS * 86400
        for folder in cache_dir().glob(f"{self._py_func.__module__}-*"):
            if folder.is_dir() and folder.stat().st_mtime < oldest:
                shutil.rmtree(folder, ignore_errors=True)


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
    """

    def decorate(python_function: FunctionType) -> Any:
        options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "_nrt": allocates}
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
        dispatcher._cache = _KernelCache(dispatcher.py_func, announce)
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
