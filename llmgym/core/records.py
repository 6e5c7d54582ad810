"""Records: what a simulation keeps, shows and measures, declared once, field by field.

    class Episode(Record):
        \"\"\"One lane of a queue.\"\"\"

        key: int = uint64("Seeds everything that is drawn.")
        clock_s: float = float64("Simulated time, seconds.")
        waiting: NDArray[np.int64] = int64("Requests in each queue.", shape=2)

`Episode.dtype` is numpy's dtype of it, aligned as C would; `Episode.blank` one record with every field at its beginning, so that a
kernel resets a lane with `state.episode[lane] = BLANK[0]`; `Episode.pack(clock_s=0.0, ...)` one record with these values. Kernels
read and write fields as attributes; annotated as `Records[Episode]`, a misspelled field or a wrong type is found by mypy before
anything compiles.

Two kinds of record mean more. The fields of an *observation* (`shown`) carry bounds and units, which the observation space and the
documentation come from; those of *metrics* (`metric`) say which way is better. Kernels write both by name, so no order can drift.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeVar, overload

import numba
import numpy as np
from numba.core import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from llmgym.core.checks import whole
from llmgym.errors import InvalidArgument, UnknownArgument

R = TypeVar("R", bound="Record", covariant=True)
Direction = Literal["min", "max"]


@dataclass(frozen=True)
class Slot:
    """One field of a record as it is declared.

    Attributes:
        kind: numpy's name of its type.
        about: a sentence, with the unit.
        shape: of an array; empty for a number.
        blank: what it is when an episode begins.
        name: what others call it, where that is no name of Python's, such as `queue.age`.
        low: smallest value, for observations.
        high: largest value, for observations.
        unit: of an observation: what it is measured in, or the scale it is divided by.
        best: of a metric that tables and pictures begin with, which way is better.
        table: of an observation: the table of which the entries are a column, see `llmgym.core.layout.Field`.
        actions: of an observation: the actions that belong to row 0 of that table.
    """

    kind: str
    about: str
    shape: tuple[int, ...] = ()
    blank: Any = 0
    name: str = ""
    low: float = 0.0
    high: float = 1.0
    unit: str = ""
    best: Direction | None = None
    table: str = ""
    actions: tuple[int, ...] = ()


def _declaring(kind: str) -> Callable[..., Any]:
    def declare(about: str = "", *, shape: int | tuple[int, ...] = (), blank: Any = 0) -> Any:
        _check_declared(about, shape)
        return Slot(kind, about, (shape,) if isinstance(shape, int) else shape, blank)

    declare.__name__ = declare.__qualname__ = kind
    declare.__doc__ = (
        f"A field of type {kind}: what it is, its shape if it is an array, and what an episode begins with."
    )
    return declare


int8, int16, int32, int64 = (_declaring(kind) for kind in ("int8", "int16", "int32", "int64"))
uint8, uint16, uint64 = (_declaring(kind) for kind in ("uint8", "uint16", "uint64"))
float32, float64 = (_declaring(kind) for kind in ("float32", "float64"))
boolean = _declaring("bool")


def shown(
    about: str,
    *,
    unit: str = "-",
    low: float = 0.0,
    high: float = 1.0,
    size: int = 1,
    name: str = "",
    table: str = "",
    actions: tuple[int, ...] = (),
) -> Any:
    """A field of an observation.

    Args:
        about: what it is, for the documentation.
        unit: what it is measured in, or the scale it is divided by.
        low: smallest value.
        high: largest value.
        size: entries; one is a number, more are an array.
        name: its name in the layout, where that is not the name of the attribute: `queue.age` is no name of Python's.
        table: the table of which the entries are a column, one a row; empty: they are none.
        actions: the actions that belong to row 0 of that table; row i has those i places on.

    Returns:
        What a class of records has as the value of the attribute.

    Raises:
        InvalidArgument: there is no sentence, a wrong size, or `low` is not below `high`.
    """
    _check_declared(about, size)
    if not low < high:
        raise InvalidArgument(f"{about!r}: low={low!r}, high={high!r}: expected the smaller first")
    return Slot(
        "float32",
        about,
        () if size == 1 else (size,),
        0,
        name,
        low,
        high,
        unit,
        table=table,
        actions=actions,
    )


def metric(about: str, *, best: Direction | None = None, name: str = "") -> Any:
    """A metric of an episode.

    Args:
        about: what it is, with its unit, and when it is NaN.
        best: `"min"` or `"max"` for one that tables and pictures begin with; None: it is only told.
        name: its name in tables, where that is not the name of the attribute.

    Returns:
        What a class of records has as the value of the attribute.

    Raises:
        InvalidArgument: there is no sentence, or `best` is something else.
    """
    _check_declared(about, ())
    if best not in ("min", "max", None):
        raise InvalidArgument(f"{about!r}: best={best!r}: expected 'min', 'max' or None")
    return Slot("float64", about, name=name, best=best)


def _check_declared(about: Any, shape: Any) -> None:
    """Raise `InvalidArgument` unless a field is described by a text, and its shape is one."""
    if not isinstance(about, str):
        raise InvalidArgument(f"about={about!r}: expected a sentence")
    for size in shape if isinstance(shape, tuple) else (shape,):
        whole(f"{about!r}: size", size)


class _Attributes(np.void):  # type: ignore[misc]
    """One record whose fields are attributes, as in compiled code: for kernels that run as plain Python, with NUMBA_DISABLE_JIT=1.

    A field comes before what every scalar of numpy has of the same name, such as `size`. Integers of less than 64 bits are
    widened when they are read, as compiled arithmetic does: in numpy, 34 times an int8 of 4 is -120.
    """

    def __getattribute__(self, name: str) -> Any:
        fields = np.void.__getattribute__(self, "dtype").fields
        if fields is None or name not in fields:
            return np.void.__getattribute__(self, name)
        value = self[name]
        return np.int64(value) if isinstance(value, np.integer) and value.itemsize < 8 else value

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value


class Record:
    """What numpy calls a structured dtype, as a class: see this module."""

    declared: ClassVar[Mapping[str, Slot]] = {}
    """Fields of the record in order, by attribute."""
    dtype: ClassVar[np.dtype[np.void]]
    blank: ClassVar[NDArray[np.void]]
    """One record, [1], with every field at its beginning; never written to."""

    if TYPE_CHECKING:  # a record that is read from Python: `record["clock_s"]`

        def __getitem__(self, name: str) -> Any: ...
        def __setitem__(self, name: str, value: Any) -> None: ...

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        declared: dict[str, Slot] = {}
        for part in reversed(cls.__mro__):
            if part is not Record and issubclass(part, Record):
                declared |= _declared_in(part)
        cls.declared = declared
        names = cls.names()
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise InvalidArgument(f"{cls.__name__}: two fields are called {twice!r}")
        cls.dtype = np.dtype([(name, slot.kind, slot.shape) for name, slot in declared.items()], align=True)
        if numba.config.DISABLE_JIT:  # type: ignore[attr-defined]
            cls.dtype = np.dtype((_Attributes, cls.dtype))
        cls.blank = np.zeros(1, cls.dtype)
        for name, slot in declared.items():
            try:
                cls.blank[name] = slot.blank
            except (TypeError, ValueError, OverflowError) as error:
                raise InvalidArgument(f"{cls.__name__}.{name}: blank={slot.blank!r}: {error}") from None
        cls.blank.setflags(write=False)

    @classmethod
    def check_plain(cls, kind: str, what: str) -> None:
        """Raise `InvalidArgument` unless all fields are of one type and lie one after the other, as a row of numbers does.

        Args:
            kind: numpy's name of the type.
            what: whose record this is, for the message.
        """
        for name, slot in cls.declared.items():
            if slot.kind != kind or (kind == "float64" and slot.shape):
                made_by = "shown(...)" if kind == "float32" else "metric(...), one number each"
                raise InvalidArgument(
                    f"{cls.__name__}.{name} is {slot.kind}{list(slot.shape)}: declare the fields of {what} with {made_by}"
                )

    @classmethod
    def zeros(cls, *shape: int) -> Any:
        """An array of records of this class with every byte 0; kernels give them their beginning."""
        return np.zeros(shape, cls.dtype)

    @classmethod
    def pack(cls, source: Any = None, /, **values: Any) -> Any:
        """One record, [1], of all fields.

        Args:
            source: an object with attributes, such as a scenario, which fields of the same name are taken from.
            **values: the others, and what is to be used instead.

        Raises:
            UnknownArgument: a value that is no field.
            InvalidArgument: a field without a value, or with one that it cannot hold.
        """
        for name in values:
            if name not in cls.declared:
                raise UnknownArgument(cls.__name__, name, cls.declared)
        record = np.zeros(1, cls.dtype)
        for name, slot in cls.declared.items():
            value = values[name] if name in values else getattr(source, name, None)
            if name not in values and (callable(value) or not hasattr(source, name)):
                raise InvalidArgument(f"{cls.__name__} needs a value for {name!r}")
            record[0][name] = _held(f"{cls.__name__}.{name}", value, slot)
        return record

    @classmethod
    def packed(cls, **values: Any) -> Any:
        """One record, [1], of some fields; the others are as an episode begins. Raises as `pack` does."""
        rest = {name: cls.blank[name][0] for name in cls.declared if name not in values}
        return cls.pack(**values, **rest)

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Names of the fields as others call them, in order."""
        return tuple(slot.name or name for name, slot in cls.declared.items())

    @classmethod
    def headline(cls) -> dict[str, str]:
        """The metrics that tables and pictures begin with, each with the better direction."""
        return {slot.name or name: slot.best for name, slot in cls.declared.items() if slot.best is not None}


def _declared_in(part: type[Record]) -> dict[str, Slot]:
    """The fields that one class declares itself. Raises `InvalidArgument` where an annotation declares none."""
    found: dict[str, Slot] = {}
    for name in (*vars(part).get("__annotations__", {}), *vars(part)):
        slot = vars(part).get(name)
        if isinstance(slot, Slot):
            if name in vars(Record):
                raise InvalidArgument(
                    f"{part.__name__}.{name}: every record has something of this name; call the field otherwise"
                )
            found[name] = slot
        elif name in vars(part).get("__annotations__", {}) and name not in vars(Record):
            raise InvalidArgument(
                f"{part.__name__}.{name} declares no field: write `{name}: int = int64(...)`, or another type of this module"
            )
    return found


def _held(name: str, value: Any, slot: Slot) -> Any:
    """A value as a field holds it. Raises `InvalidArgument`."""
    array = None if value is None else np.asarray(value)
    if array is None or array.dtype.kind not in "biuf" or array.shape != slot.shape:
        raise InvalidArgument(f"{name}={value!r}: expected {slot.kind}{list(slot.shape)}")
    kind = np.dtype(slot.kind)
    if kind.kind in "iu":
        limits = np.iinfo(kind)
        if array.dtype.kind == "f" and not np.all(array == np.floor(array)):
            raise InvalidArgument(f"{name}={value!r}: expected a whole number")
        if np.any(array < limits.min) or np.any(array > limits.max):
            raise InvalidArgument(f"{name}={value!r}: expected {limits.min} to {limits.max}")
    return array


if TYPE_CHECKING:
    Array = np.ndarray[Any, Any]

    class Records(Array, Generic[R]):
        """An array of records with one axis: `[lane]` is a record, `["clock_s"]` a field of all."""

        @overload  # type: ignore[override]
        def __getitem__(self, key: int | np.integer[Any]) -> R: ...
        @overload
        def __getitem__(self, key: Any) -> Any: ...
        def __getitem__(self, key: Any) -> Any: ...

    class Records2(Array, Generic[R]):
        """An array of records with two axes: `[lane]` is `Records`, `[lane, i]` a record."""

        @overload  # type: ignore[override]
        def __getitem__(self, key: int | np.integer[Any]) -> Records[R]: ...
        @overload
        def __getitem__(self, key: tuple[int, int]) -> R: ...
        @overload
        def __getitem__(self, key: Any) -> Any: ...
        def __getitem__(self, key: Any) -> Any: ...

    class Records3(Array, Generic[R]):
        """An array of records with three axes: `[lane]` is `Records2`, `[lane, i]` `Records`, `[lane, i, j]` a record."""

        @overload  # type: ignore[override]
        def __getitem__(self, key: int | np.integer[Any]) -> Records2[R]: ...
        @overload
        def __getitem__(self, key: tuple[int, int]) -> Records[R]: ...
        @overload
        def __getitem__(self, key: tuple[int, int, int]) -> R: ...
        @overload
        def __getitem__(self, key: Any) -> Any: ...
        def __getitem__(self, key: Any) -> Any: ...

else:

    class _Plain:
        """At run time an array of records is an array."""

        def __class_getitem__(cls, item: Any) -> Any:
            return NDArray[Any]

    Records = Records2 = Records3 = _Plain


def viewing(record: type[Record]) -> Callable[[NDArray[Any]], Any]:
    """A function for compiled code that sees the first entries of a row as a record, of which it writes the fields.

    Args:
        record: of fields of the row's type only, which lie one after the other: float32 of observations, float64 of metrics.
    """
    dtype = record.dtype
    if numba.config.DISABLE_JIT:  # type: ignore[attr-defined]
        return lambda row: row[: dtype.itemsize // row.itemsize].view(dtype)[0]
    kind: Any = numba.from_dtype(dtype)  # type: ignore[attr-defined]

    @intrinsic  # type: ignore[untyped-decorator]
    def view(typing: Any, row: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
            return builder.bitcast(data, context.get_value_type(kind))

        if not isinstance(row, types.Array) or row.ndim != 1:  # type: ignore[attr-defined]
            return None
        return kind(row), build

    return view  # type: ignore[no-any-return]
