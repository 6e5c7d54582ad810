"""What compiled code was made from, as a hash: the key under which it is kept on disk.

Machine code of a kernel depends on the kernel's own code and on all that it refers to: the functions it calls, the numbers
and arrays it takes from its module, from another module or from a closure, and what those refer to in turn. `describe`
walks along these references through the functions themselves, as they are in memory, and reads no source. So it makes no
difference where a function was written: in a package, a script, a notebook, `python -c` or `exec`.

What has no description that is the same in every process (an object known by its address alone, say) raises `Unknown`, and
code that depends on it is not kept on disk. Python's standard library, numpy, numba and llvmlite are known by name and version.

`fingerprint` hashes source files instead, for results that Python code computes.
"""

import ast
import builtins
import dis
import functools
import graphlib
import hashlib
import importlib.util
import os
import re
import sys
import sysconfig
import weakref
from collections.abc import Iterable, Iterator
from enum import Enum
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any, NamedTuple

import llvmlite
import numba
import numpy as np
from numba.core import caching, imputils
from numba.core import types as numba_types
from numba.core.dispatcher import Dispatcher
from numba.core.typing import templates
from numba.np.ufunc.dufunc import DUFunc

_INSTALLED = tuple(os.path.dirname(str(package.__file__)) + os.sep for package in (np, numba, llvmlite))
_STANDARD = tuple(sysconfig.get_path(name) + os.sep for name in ("stdlib", "platstdlib"))
_OTHERS = tuple(f"{os.sep}{name}{os.sep}" for name in ("site-packages", "dist-packages"))
_ADDRESS = re.compile(r"0x[0-9a-f]{4,}|#[0-9a-f]{6,}", re.IGNORECASE)
_PLAIN = (type(None), bool, int, str, bytes, type(Ellipsis))


class Unknown(Exception):
    """What the message names cannot be told apart from others of its kind; machine code that depends on it is not kept."""


class Part(NamedTuple):
    """One function by itself.

    Attributes:
        text: its code, its options and the values it takes from elsewhere.
        calls: the functions, kernels and intrinsics it refers to, in order.
        open: it refers to a module's names, which can be bound anew.
    """

    text: str
    calls: tuple[Any, ...]
    open: bool


_settled: weakref.WeakKeyDictionary[Any, Part] = weakref.WeakKeyDictionary()
"""How a kernel was when it was first compiled: numba keeps that machine code, whatever its module's names mean later."""

_mixed: weakref.WeakSet[Any] = weakref.WeakSet()
"""Kernels of which some signatures were compiled with other values than others."""


def settle(kernel: Any) -> None:
    """Note what a kernel refers to as it is about to be compiled for a signature. Raises `Unknown`."""
    now = Reader().part(kernel)
    then = _settled.setdefault(kernel, now)
    same = now.text == then.text and len(now.calls) == len(then.calls)
    if not same or any(a is not b for a, b in zip(now.calls, then.calls, strict=True)):
        _mixed.add(kernel)
    if kernel in _mixed:
        raise Unknown(f"{_called(kernel)}, which was compiled before what it refers to changed")


def describe(kernel: Any) -> bytes:
    """A hash of a kernel and of all that it refers to, directly or not. Raises `Unknown`."""
    place = {id(kernel): 0}
    order = [kernel]
    edges: list[list[int]] = []
    digest = hashlib.sha256()
    for function in order:
        part = _part(function)
        for called in part.calls:
            if id(called) not in place:
                place[id(called)] = len(order)
                order.append(called)
        edges.append([place[id(called)] for called in part.calls])
        digest.update(f"{part.text}{edges[-1]}\n".encode())
    try:
        tuple(graphlib.TopologicalSorter({i: set(to) - {i} for i, to in enumerate(edges)}).static_order())
    except graphlib.CycleError as error:
        # numba stores machine code of such functions from which one of them is missing
        raise Unknown(
            f"{_called(order[error.args[1][0]])}, which calls itself by way of another function"
        ) from None
    digest.update(_extensions().encode())
    return digest.digest()


def describe_types(kinds: Iterable[Any]) -> str:
    """The types of arguments, with the names of the fields of named tuples. Raises `Unknown`."""
    reader = Reader()
    return ",".join(reader.kind(kind) for kind in kinds)


def come_back(kinds: Iterable[Any]) -> bool:
    """Whether types that are stored are the same types in another process: classes are found by their names there."""
    for kind in kinds:
        for name, part in vars(kind).items():
            if name == "instance_class" and not _importable(part):
                return False
            inner = part if isinstance(part, tuple) else (part,)
            if not come_back(item for item in inner if isinstance(item, numba_types.Type)):
                return False
    return True


def _importable(kind: type) -> bool:
    found: Any = sys.modules.get(kind.__module__) if kind.__module__ != "__main__" else None
    for step in kind.__qualname__.split("."):
        found = getattr(found, step, None)
    return found is kind


def _part(function: Any) -> Part:
    if not _is_kernel(function):
        return Reader().part(function)
    if function in _mixed:
        raise Unknown(f"{_called(function)}, which was compiled before what it refers to changed")
    if function not in _settled:
        part = Reader().part(function)
        if function.overloads and part.open:
            # nobody noted what its names meant when it was compiled
            raise Unknown(f"{_called(function)}, which was called before (decorate it with @kernel)")
        _settled[function] = part
    return _settled[function]


class Reader:
    """Puts one function into words, and gathers what it calls."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.open = False
        self._modules: set[int] = set()

    def part(self, function: Any) -> Part:
        """One function in words, and what it calls is noted in `calls`. Raises `Unknown`."""
        if _is_kernel(function):
            if isinstance(function._cache, caching.FunctionCache):
                raise Unknown(
                    f"{_called(function)}, which numba keeps itself (cache=True; decorate it with @kernel)"
                )
            pipeline = function._compiler.pipeline_class
            options = (
                f"{pipeline.__module__}.{pipeline.__qualname__}{self.value(dict(function.targetoptions))}"
            )
            text = options + self.value(dict(function.locals)) + self._function(function.py_func)
        elif isinstance(function, DUFunc):
            raise Unknown(f"{function!r}")
        elif isinstance(function, FunctionType):
            text = self._function(function)
        else:  # an intrinsic: Python code that writes machine code
            text = f"intrinsic{self.value(dict(function._ctor_kwargs))}{self._function(function._defn)}"
        return Part(text, tuple(self.calls), self.open)

    def _function(self, function: FunctionType) -> str:
        if function.__module__ not in sys.modules:  # where machine code finds its module again
            raise Unknown(f"{_called(function)}, whose module is not in sys.modules")
        code = function.__code__
        names = sorted(set(_names(code)))
        texts = [f"{function.__module__}.{function.__qualname__}", self._code(code)]
        texts += [self.value(function.__defaults__), self.value(function.__kwdefaults__)]
        for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
            try:
                texts.append(f"{name}={self.value(cell.cell_contents, names)}")
            except ValueError:
                texts.append(f"{name} is not bound")
        for name, path in sorted(set(references(code))):
            if name in function.__globals__:
                texts.append(self._reference(name, path, function.__globals__[name], names))
            elif name in sys.modules:  # imported within the function
                texts.append(self._reference(name, (), sys.modules[name], names))
            elif not hasattr(builtins, name):
                raise Unknown(f"{name}, which {_called(function)} does not find")
        return ";".join(texts)

    def _reference(self, name: str, path: tuple[str, ...], value: Any, names: list[str]) -> str:
        """What a function gets for `name.path`: of a module that is the value in it, else what has the name."""
        self.open = True
        for step in path:
            if not isinstance(value, ModuleType) or _is_library(
                getattr(value, "__file__", None), value.__name__
            ):
                break
            name, value = f"{name}.{step}", getattr(value, step, None)
        return f"{name}={self.value(value, names)}"

    def _code(self, code: CodeType) -> str:
        constants = [self._code(c) if isinstance(c, CodeType) else self.value(c) for c in code.co_consts]
        counts = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
        names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
        return f"code({code.co_code.hex()},{code.co_exceptiontable.hex()},{counts},{names},[{','.join(constants)}])"

    def value(self, value: Any, names: list[str] | None = None) -> str:
        """A text that is the same in every process and another for every other value.

        Args:
            value: what a function refers to.
            names: the names its code uses, which pick what counts of a module.
        """
        kind = type(value)
        if kind in _PLAIN:
            return f"{kind.__name__} {value!r}"
        if kind in (float, complex):
            return f"{kind.__name__} {np.array(value).tobytes().hex()}"
        if isinstance(value, ModuleType):
            return self._module(value, names)
        if isinstance(value, (Dispatcher, DUFunc, numba.core.extending._Intrinsic)) or (
            kind is FunctionType and not _is_library(value.__code__.co_filename)
        ):
            self.calls.append(value)
            return "call"
        if isinstance(value, type):
            return self._class(value)
        if isinstance(value, numba_types.Type):
            return self.kind(value)
        if isinstance(value, Enum):
            return f"{self._class(kind)}.{value.name}"
        if isinstance(value, np.dtype) and not value.hasobject:
            return f"dtype {value!r} {value.itemsize} {value.isalignedstruct}"
        if isinstance(value, (np.ndarray, np.generic)) and not value.dtype.hasobject:
            flags = f"{value.flags.c_contiguous}{value.flags.f_contiguous}{value.flags.writeable}{value.flags.aligned}"
            content = hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
            return f"{kind.__name__} {self.value(value.dtype)} {value.shape} {flags} {content}"
        if isinstance(value, tuple):
            what = "tuple" if kind is tuple else self._class(kind)
            return f"{what}({','.join(self.value(item, names) for item in value)})"
        if kind is list:
            return f"list({','.join(map(self.value, value))})"
        if kind in (set, frozenset):
            return f"{kind.__name__}({','.join(sorted(map(self.value, value)))})"
        if kind is dict:
            return f"dict({','.join(f'{self.value(k)}:{self.value(v)}' for k, v in value.items())})"
        return _by_name(value)

    def _module(self, module: ModuleType, names: list[str] | None) -> str:
        if _is_library(getattr(module, "__file__", None), module.__name__):
            return f"module {module.__name__}"
        if names is None:
            raise Unknown(f"{module!r}")
        if id(module) in self._modules:
            return "module"
        self._modules.add(id(module))
        found = [(name, vars(module)[name]) for name in names if name in vars(module)]
        return f"module({','.join(f'{name}={self.value(value, names)}' for name, value in found)})"

    def _class(self, kind: type) -> str:
        title = f"class {kind.__module__}.{kind.__qualname__}"
        if issubclass(kind, Enum):
            return f"{title}({','.join(f'{m.name}={self.value(m.value)}' for m in kind)})"
        if issubclass(kind, tuple) and hasattr(kind, "_fields"):
            return f"{title}({kind._fields},{self.value(dict(kind._field_defaults))})"  # type: ignore[attr-defined]
        return title if issubclass(kind, BaseException) else _by_name(kind)

    def kind(self, kind: Any) -> str:
        """A type of numba's in words. Its own text leaves out the names of a tuple's fields and what a function does."""
        text = f"{type(kind).__module__}.{type(kind).__name__} {kind}"
        if _ADDRESS.search(text):
            raise Unknown(text)
        inner = []
        for name, part in sorted(vars(kind).items()):
            for item in part if isinstance(part, tuple) else (part,):
                if isinstance(item, numba_types.Type):
                    inner.append(f"{name}={self.kind(item)}")
                elif name == "instance_class":
                    inner.append(f"{name}={self._class(item)}")
        return f"{text}({','.join(inner)})"


def _names(code: CodeType) -> Iterator[str]:
    """Every name that code looks up, functions written inside of it included."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def references(code: CodeType) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Every name that code takes from its module, with the attributes it takes of it at once: `a.b.c` gives a and (b, c)."""
    name, path = "", []
    for step in dis.get_instructions(code):
        if name and step.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            path.append(step.argval)
            continue
        if name:
            yield name, tuple(path)
        name, path = (
            (step.argval, []) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME", "IMPORT_NAME") else ("", [])
        )
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from references(constant)


def _is_library(file: str | None, module: str = "") -> bool:
    """Whether a file belongs to the standard library, numpy, numba or llvmlite; or a module without one, to Python itself."""
    if file is None:
        return module in sys.builtin_module_names
    standard = file.startswith(_STANDARD) and not any(name in file for name in _OTHERS)
    return standard or file.startswith(_INSTALLED)


def _by_name(value: Any) -> str:
    """What a library offers under a name. Raises `Unknown` for anything else."""
    name = str(getattr(value, "__qualname__", None) or getattr(value, "__name__", ""))
    module = getattr(value, "__module__", None) or ("numpy" if isinstance(value, np.ufunc) else "")
    home = sys.modules.get(module)
    if home is not None and _is_library(getattr(home, "__file__", None), module):
        found: Any = home
        for step in name.split("."):
            found = getattr(found, step, None)
        if found is value:
            return f"{module}.{name}"
    text = repr(value)
    raise Unknown(text if len(text) <= 80 else f"{text[:77]}...")


def _is_kernel(value: Any) -> bool:
    return isinstance(value, Dispatcher)


def _called(kernel: Any) -> str:
    function: Any = getattr(kernel, "py_func", kernel)
    return f"{function.__module__}.{function.__qualname__}"


def _extensions() -> str:
    """What teaches numba new functions from outside of it (`numba.extending.overload` and its like): any code may rest on it.

    Raises:
        Unknown: it was written where there is no source file.
    """
    typed, lowered = templates.builtin_registry, imputils.builtin_registry
    return _extended(
        len(typed.functions), len(typed.attributes), len(lowered.functions), len(lowered.getattrs)
    )


@functools.lru_cache(maxsize=1)
def _extended(*lengths: int) -> str:
    typed, lowered = templates.builtin_registry, imputils.builtin_registry
    functions = [
        getattr(template, "_overload_func", template) for template in (*typed.functions, *typed.attributes)
    ]
    functions += [entry[0] for entry in (*lowered.functions, *lowered.getattrs)]
    found: dict[str, str] = {}
    for function in functions:
        if hasattr(function, "_definition_func"):  # an intrinsic, which is read where it is called
            continue
        function = getattr(function, "generic", function) if isinstance(function, type) else function
        module = getattr(function, "__module__", None) or ""
        home = getattr(sys.modules.get(module), "__file__", None)
        code = getattr(function, "__code__", None)
        if module in found or _is_library(home, module) or (code and _is_library(code.co_filename)):
            continue
        if source(module) is None:
            raise Unknown(f"an extension of numba that was written in {module or 'no module'}")
        found[module] = fingerprint(module, outside=True)
    return repr(found)


@functools.cache
def source(module: str) -> bytes | None:
    """Source of a module; None if there is no file of it."""
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, AttributeError, ValueError):
        return None
    if spec is None or not spec.origin or not spec.origin.endswith(".py"):
        return None
    return Path(spec.origin).read_bytes()


@functools.cache
def _imports(module: str, outside: bool) -> frozenset[str]:
    """Modules that `module` imports anywhere in its source: those of its top-level package and llmgym, or all but libraries."""
    text = source(module)
    if text is None:
        return frozenset()
    spec = importlib.util.find_spec(module)
    is_package = spec is not None and spec.submodule_search_locations is not None
    ours = {"llmgym", module.partition(".")[0]}
    found: set[str] = set()
    for node in ast.walk(ast.parse(text)):
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
    if outside:
        for name in tuple(found):  # `import a.b` runs a as well
            steps = name.split(".")
            found.update(".".join(steps[:i]) for i in range(1, len(steps)))
        return frozenset(name for name in found if source(name) is not None and not _is_library(_file(name)))
    return frozenset(name for name in found if name.partition(".")[0] in ours and source(name) is not None)


def _file(module: str) -> str | None:
    spec = importlib.util.find_spec(module)
    return spec.origin if spec else None


@functools.cache
def fingerprint(module: str, outside: bool = False) -> str:
    """Hash of the source of `module` and of what it imports, transitively.

    Args:
        module: its name.
        outside: follow imports into other top-level packages too, and of an installed one take the modules imported
            directly; without, only those of its own package and of llmgym.
    """
    home = module.partition(".")[0]
    seen: set[str] = set()
    todo = [module]
    while todo:
        name = todo.pop()
        if name not in seen:
            seen.add(name)
            installed = outside and any(part in (_file(name) or "") for part in _OTHERS)
            if name.partition(".")[0] == home or not installed:
                todo.extend(_imports(name, outside))
    digest = hashlib.sha256()
    for name in sorted(seen):
        digest.update(name.encode() + b"\0" + (source(name) or b"") + b"\0")
    return digest.hexdigest()
