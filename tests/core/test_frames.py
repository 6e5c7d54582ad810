"""Frames: arrays taken apart once and put together again in compiled code."""

from typing import Any, NamedTuple

import numba
import numpy as np

from llmgym.core.frames import frame_of, unpacking


class Inner(NamedTuple):
    small: np.ndarray[Any, Any]
    flag: bool


class Outer(NamedTuple):
    table: np.ndarray[Any, Any]
    inner: Inner
    half: float
    count: int
    records: np.ndarray[Any, Any]


def outer() -> Outer:
    records = np.zeros(3, np.dtype([("a", "i4"), ("b", "f8")], align=True))
    records["b"] = 0.5, 1.5, 2.5
    table = np.arange(24, dtype=np.float32).reshape(4, 6)[:, ::2]  # strided: shape (4, 3)
    return Outer(table, Inner(np.array([7, 8], np.int16), True), -0.25, -3, records)


def test_compiled_code_sees_the_arrays_themselves_and_the_numbers() -> None:
    arrays = outer()
    unpack = unpacking(arrays)

    @numba.njit(_nrt=False)  # type: ignore[untyped-decorator]
    def use(frame: Any) -> tuple[float, int, int]:
        x = unpack(frame)
        x.table[3, 2] = 100.0
        x.records[1].a = 9
        total = x.half + x.inner.small[1] + x.records[2].b + x.table[1, 1]
        return total, x.count, x.table.shape[1] if x.inner.flag else -1

    assert use(frame_of(arrays)) == (-0.25 + 8 + 2.5 + 8.0, -3, 3)
    assert arrays.table[3, 2] == 100.0 and arrays.records["a"].tolist() == [0, 9, 0]


def test_a_frame_of_other_arrays_of_the_same_types_needs_no_new_code() -> None:
    first, second = outer(), outer()
    unpack = unpacking(first)

    @numba.njit(_nrt=False)  # type: ignore[untyped-decorator]
    def corner(frame: Any) -> float:
        return unpack(frame).table[0, 1]

    second.table[0, 1] = 5.0
    assert (corner(frame_of(first)), corner(frame_of(second))) == (2.0, 5.0)
    assert len(corner.signatures) == 1
