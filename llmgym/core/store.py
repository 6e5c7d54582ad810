"""Tables that take seconds or minutes to compute, kept in memory and in the folder of compiled kernels.

    TABLES = Store("tables", "queue")

    def table_of(load):
        return TABLES.get(key({"load": load}, (measure,)), lambda: {"wait_s": measure(load)})["wait_s"]

The key is a hash of what the result depends on: its inputs, and the functions that compute it as they are in memory. A change to
another function of the same module, to a comment or to a picture computes nothing anew; an old result is never taken for a new
one.
"""

import functools
import hashlib
import io
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass
from types import FunctionType, ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmgym.core import cache_folder
from llmgym.core.fingerprint import Reader, Unknown, references
from llmgym.core.lanes import Simulation
from llmgym.core.loops import compile_loops
from llmgym.errors import InvalidArgument

Arrays = Mapping[str, NDArray[Any]]


def running(simulation: type[Simulation]) -> tuple[Callable[..., Any], ...]:
    """The functions that play episodes of a simulation: its kernels, and the loop over lanes."""
    return (*simulation.kernels, compile_loops)


def key(inputs: Any, functions: Iterable[Callable[..., Any]]) -> str | None:
    """A name for the result of a computation, the same in every process.

    Args:
        inputs: what the computation is given: numbers, texts, arrays, and tuples, lists and mappings of these.
        functions: kernels and Python functions that compute the result; they are read once in a process. What they call is
            found by itself, except for classes, methods and what is imported within a function: name those that count here, or
            what comes of them in `inputs`.

    Returns:
        64 hexadecimal digits; None where a function has no description that another process would find again.

    Raises:
        InvalidArgument: `inputs` hold something that cannot be told from another of its class.
    """
    try:
        packages, described = _described(tuple(functions))
    except Unknown:
        return None
    try:
        told = _Reading(packages, strict=True).value(inputs)
    except Unknown as error:
        raise InvalidArgument(
            f"inputs of a computed table: {error} has no description; give its numbers"
        ) from None
    return hashlib.sha256(described + told.encode()).hexdigest()


@functools.lru_cache(maxsize=256)
def _described(functions: tuple[Callable[..., Any], ...]) -> tuple[frozenset[str], bytes]:
    """The packages of functions, and a hash of them and of all that they call. Raises `Unknown`."""
    packages = frozenset({"llmgym", *(str(function.__module__).partition(".")[0] for function in functions)})
    order = list(functions)
    place = {id(function): i for i, function in enumerate(order)}
    digest = hashlib.sha256()
    for function in order:
        part = _Reading(packages).part(function)
        for called in part.calls:
            if id(called) not in place:
                place[id(called)] = len(order)
                order.append(called)
        digest.update(f"{part.text}{[place[id(called)] for called in part.calls]}\n".encode())
    return packages, digest.digest()


class _Reading(Reader):
    """Puts Python functions into words too, which refer to more than machine code can: all else counts by the name of its class.

    Args:
        packages: whose functions are followed; those of others count by their names and versions.
        strict: whether an object without a description raises `Unknown` instead of counting by its class.
    """

    def __init__(self, packages: Collection[str], strict: bool = False) -> None:
        super().__init__()
        self._packages = packages
        self._strict = strict

    def _function(self, function: FunctionType) -> str:
        code = function.__code__
        texts = [f"{function.__module__}.{function.__qualname__}", self._code(code)]
        texts += [self.value(function.__defaults__), self.value(function.__kwdefaults__)]
        for cell in function.__closure__ or ():  # an object in a closure is an input that nobody names
            self._strict, before = True, self._strict
            texts.append(self.value(cell.cell_contents))
            self._strict = before
        for name, path in sorted(set(references(code))):
            if name in function.__globals__:
                texts.append(self._reference(name, path, function.__globals__[name], [*code.co_names]))
        return ";".join(texts)

    def value(self, value: Any, names: list[str] | None = None) -> str:
        if isinstance(value, functools._lru_cache_wrapper):
            value = value.__wrapped__
        if isinstance(value, np.ndarray) and not value.dtype.hasobject:
            content = hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
            return f"array {self.value(value.dtype)} {value.shape} {content}"
        if isinstance(value, (FunctionType, ModuleType)):
            home = value.__module__ if isinstance(value, FunctionType) else value.__name__
            package = home.partition(".")[0]
            if package not in self._packages:
                version = getattr(sys.modules.get(package), "__version__", "")
                return f"{home}.{getattr(value, '__qualname__', '')} {version}"
        if self._strict and is_dataclass(value) and not isinstance(value, type):
            parts = {one.name: getattr(value, one.name) for one in fields(value)}
            return f"{type(value).__module__}.{type(value).__qualname__}{self.value(parts)}"
        try:
            return super().value(value, names)
        except Unknown:
            if self._strict:
                raise
            kind = value if isinstance(value, type) else type(value)
            return f"{kind.__module__}.{kind.__qualname__}"


class Store:
    """Results of one kind by their keys: in memory, else on disk, else computed now and kept in both.

    Args:
        folder: beside the compiled kernels.
        name: what the names of its files begin with.
        most: results in memory; the one that was asked for longest ago goes first.
    """

    def __init__(self, folder: str, name: str, most: int = 64) -> None:
        self._folder, self._name, self._most = folder, name, most
        self._memory: OrderedDict[str, Arrays] = OrderedDict()

    def get(self, key: str | None, compute: Callable[[], Arrays]) -> Arrays:
        """The result of a key.

        Args:
            key: of the function `key`; None: compute the result, and keep nothing.
            compute: gives the result, arrays of numbers by name.

        Returns:
            The arrays, which cannot be written to.
        """
        if key is None:
            return compute()
        if key not in self._memory:
            path = cache_folder.cache_dir().parent / self._folder / f"{self._name}-{key[:32]}.npz"
            found = None
            with suppress(OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
                found = _unpacked(cache_folder.read(path))
            if found is None:
                found = {name: np.asarray(array) for name, array in compute().items()}
                with suppress(OSError):  # where nothing can be kept, it is computed again
                    cache_folder.write(path, _packed(found))
            for array in found.values():
                array.setflags(write=False)
            self._memory[key] = found
        self._memory.move_to_end(key)
        while len(self._memory) > self._most:
            self._memory.popitem(last=False)
        return self._memory[key]

    def forget(self) -> None:
        """Empty the memory; what is on disk stays."""
        self._memory.clear()


def _packed(arrays: Arrays) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)  # type: ignore[arg-type]
    return file.getvalue()


def _unpacked(data: bytes) -> dict[str, NDArray[Any]]:
    with np.load(io.BytesIO(data)) as stored:
        return {name: stored[name] for name in stored.files}
