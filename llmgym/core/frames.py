"""Handing many arrays to compiled code for the price of one.

When Python calls a compiled function, numba takes every array argument apart: its address, shape and strides, about a quarter of a
microsecond each. The arrays of an environment never change, so they are taken apart once, into a *frame*: one int64 array with
those numbers in a row. Compiled code puts the arrays together again from it, in registers.

Whoever holds a frame must keep the arrays alive and in place; compiled code that gets them this way must not keep them, return
them or free them (it cannot: the arrays it sees belong to nobody).
"""

import itertools
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba.core import cgutils, types
from numba.extending import intrinsic
from numba.np.arrayobj import get_itemsize, populate_array
from numpy.typing import NDArray


def frame_of(arrays: Any) -> NDArray[np.int64]:
    """Addresses, shapes and strides (bytes) of the arrays in a tuple, and in the tuples in it, in order; numbers as their bits.

    Returns:
        int64 [numbers].
    """
    numbers: list[int] = []

    def note(part: Any) -> None:
        if isinstance(part, np.ndarray):
            numbers.extend((part.ctypes.data, *part.shape, *part.strides))
        elif isinstance(part, (float, np.floating)):
            numbers.append(int(np.float64(part).view(np.int64)))
        elif isinstance(part, (int, np.integer, np.bool_)):
            numbers.append(int(part))
        else:
            for inner in part:
                note(inner)

    note(arrays)
    return np.array(numbers, np.int64)


def unpacking(arrays: Any) -> Callable[[NDArray[np.int64]], Any]:
    """A function for compiled code that turns the frame of such arrays into the tuple again.

    Args:
        arrays: a tuple of arrays, numbers and such tuples; only their types count.
    """
    kind = numba.typeof(arrays)
    if numba.config.DISABLE_JIT:  # type: ignore[attr-defined]
        return lambda frame: arrays

    @intrinsic  # type: ignore[untyped-decorator]
    def unpack(typing: Any, frame: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            numbers = context.make_array(signature.args[0])(context, builder, arguments[0]).data
            return put_together(
                context, builder, kind, lambda at: builder.load(cgutils.gep_inbounds(builder, numbers, at))
            )

        return kind(frame), build

    return unpack  # type: ignore[no-any-return]


def put_together(context: Any, builder: Any, kind: Any, number: Callable[[int], Any]) -> Any:
    """Write the machine code that makes arrays of the numbers of a frame.

    Args:
        context: numba's target.
        builder: where the code goes.
        kind: numba's type of what was taken apart by `frame_of`.
        number: gives the number at a place of the frame as a value of 64 bits.

    Returns:
        The value of the tuple.
    """
    places = itertools.count()

    def part(kind: Any) -> Any:
        if isinstance(kind, types.BaseTuple):  # type: ignore[attr-defined]
            return context.make_tuple(builder, kind, [part(inner) for inner in kind.types])
        if isinstance(kind, types.Float):  # type: ignore[attr-defined]
            double = builder.bitcast(number(next(places)), context.get_value_type(types.float64))
            return context.cast(builder, double, types.float64, kind)
        if isinstance(kind, (types.Integer, types.Boolean)):  # type: ignore[attr-defined]
            return context.cast(builder, number(next(places)), types.int64, kind)
        array = context.make_array(kind)(context, builder)
        address = builder.inttoptr(number(next(places)), array.data.type)
        shape = [number(next(places)) for _ in range(kind.ndim)]
        strides = [number(next(places)) for _ in range(kind.ndim)]
        populate_array(array, address, shape, strides, get_itemsize(context, kind), None)
        return array._getvalue()

    return part(kind)
