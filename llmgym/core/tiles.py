"""The state of lanes on a GPU in tiles, so that neighbouring threads read neighbouring memory.

A warp is 32 threads, and each of them has a lane. Where a lane lies in one piece, as on a CPU, the 32 addresses of one
instruction are in 32 different places, and the memory is asked 32 times. In a tile the words of 32 lanes lie side by side: word 0
of all of them, then word 1. What a thread sees is an array whose words are 32 apart (`Spread` records, and strides); kernels are
the same.

Records with arrays in them, and arrays whose first axis is not the lane, stay as they are.
"""

import importlib
import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba import types
from numba.core.typeconv import Conversion
from numba.np.numpy_support import as_dtype
from numpy.typing import NDArray

LANES = 32
"""Lanes of a tile."""
WORD = 8
"""Bytes of a record that stay together."""
AT_ONCE_BYTES = 2**28
"""Memory for what is on its way into tiles."""
_WHOLE = {2: "int16", 4: "int32", 8: "int64"}


class Spread(types.Record):  # type: ignore[misc, name-defined]
    """A record whose words lie a tile apart."""

    def __init__(self, plain: Any) -> None:
        self.plain = plain
        fields = [
            (name, {"type": field.type, "offset": field.offset // WORD * WORD * LANES + field.offset % WORD})
            for name, field in plain.fields.items()
        ]
        super().__init__(fields, padded(plain) * LANES, True)

    def can_convert_from(self, typingctx: Any, other: Any) -> Any:
        """A plain record of the same fields can be stored as this one."""
        return Conversion.safe if other == self.plain else None

    def can_convert_to(self, typingctx: Any, other: Any) -> Any:
        """This can be stored as a plain record of the same fields."""
        return Conversion.safe if other == self.plain else None


def padded(item: Any) -> int:
    """Bytes of an item of an array in a tile, as one lane has it."""
    if isinstance(item, types.Record):  # type: ignore[attr-defined]
        return -(-item.size // WORD) * WORD
    return int(as_dtype(item).itemsize)


def word(item: Any) -> int:
    """Bytes of an item that stay together."""
    return WORD if isinstance(item, types.Record) else padded(item)  # type: ignore[attr-defined]


def tiled(kind: Any) -> bool:
    """Whether an array of this type, with a row for each lane, lies in tiles."""
    item = kind.dtype
    if isinstance(item, types.Record):  # type: ignore[attr-defined]
        return item.aligned and not any(isinstance(part, types.NestedArray) for _, part in item.members)  # type: ignore[attr-defined]
    return True


def words(array: NDArray[Any], lanes: int = 1) -> NDArray[np.uint8]:
    """The bytes of an array as tiles have them: [lanes, words, bytes of a word], items filled up to whole words.

    Args:
        array: with as many rows for each lane.
        lanes: how many lanes it has.
    """
    item = numba.typeof(array).dtype
    items = np.zeros((array.size, padded(item)), np.uint8)
    plain = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    items[:, : array.itemsize] = plain.reshape(array.size, array.itemsize)
    return items.reshape(lanes, -1, word(item))


def fill(tensor: Any, words: Any, which: Any) -> None:
    """Let the first lanes of tiles hold the words of others.

    Args:
        tensor: the tiles, uint8 [tiles, bytes], a tensor of torch.
        words: of the others, uint8 [others, words, bytes of a word], a tensor of the same device.
        which: one of the others for each lane, from lane 0, int64 [lanes], a tensor of the same device.
    """
    _, count, size = words.shape
    there = tensor.view(len(tensor), count, LANES, size)
    if size in _WHOLE:  # one number to move for each word, not so many bytes
        whole = getattr(importlib.import_module("torch"), _WHOLE[size])
        there, words = there.view(whole), words.view(whole)
    tiles_at_once = max(1, AT_ONCE_BYTES // tensor.shape[1])
    for first in range(0, -(-len(which) // LANES), tiles_at_once):
        lanes = which[first * LANES : (first + tiles_at_once) * LANES]
        full, rest = divmod(len(lanes), LANES)
        found = words[lanes]
        inside = found[: full * LANES].view(full, LANES, *found.shape[1:])
        there[first : first + full] = inside.transpose(1, 2)
        if rest:
            there[first + full, :, :rest] = found[full * LANES :].transpose(0, 1)


def seen(kind: Any, which: list[bool]) -> Any:
    """The type of a state as a thread sees it.

    Args:
        kind: numba's type of it.
        which: whether each of its arrays lies in tiles, in order; emptied.
    """
    if isinstance(kind, types.BaseTuple):  # type: ignore[attr-defined]
        inner = tuple(seen(part, which) for part in kind.types)
        return types.BaseTuple.from_types(inner, getattr(kind, "instance_class", None))  # type: ignore[attr-defined]
    if not which.pop(0):
        return kind
    item = Spread(kind.dtype) if isinstance(kind.dtype, types.Record) else kind.dtype  # type: ignore[attr-defined]
    return types.Array(item, kind.ndim, "A")  # type: ignore[attr-defined]


def shifted(
    context: Any, builder: Any, kind: Any, value: Any, lane: Any, which: list[bool], parts: Any
) -> Any:
    """Write the machine code that lets a state begin at a lane.

    Args:
        context: numba's target.
        builder: where the code goes.
        kind: the type of the state, as `seen`.
        value: the state as in the frame.
        lane: number of the lane, a value of 64 bits.
        which: as for `seen`.
        parts: numba's `cgutils` and `populate_array` for the target.

    Returns:
        The value of a state in which any index of a lane leads to this one.
    """
    cgutils, populate_array = parts
    if isinstance(kind, types.BaseTuple):  # type: ignore[attr-defined]
        inner = [
            shifted(context, builder, part, builder.extract_value(value, i), lane, which, parts)
            for i, part in enumerate(kind.types)
        ]
        return context.make_tuple(builder, kind, inner)
    if not which.pop(0):
        return value
    whole = context.make_array(kind)(context, builder, value)
    shape = cgutils.unpack_tuple(builder, whole.shape, kind.ndim)
    number = shape[0].type
    plain = kind.dtype.plain if isinstance(kind.dtype, Spread) else kind.dtype
    strides = [number(padded(plain) * LANES)]
    for size in reversed(shape[1:]):
        strides.insert(0, builder.mul(strides[0], size))
    bits = int(math.log2(LANES))
    tile = builder.mul(builder.lshr(lane, number(bits)), strides[0])
    place = builder.mul(builder.and_(lane, number(LANES - 1)), number(word(plain)))
    data = cgutils.pointer_add(builder, whole.data, builder.add(tile, place))
    array = context.make_array(kind)(context, builder)
    strides[0] = number(0)
    populate_array(array, data, shape, strides, number(padded(plain) * LANES), None)
    return array._getvalue()


def storing(context: Any, cgutils: Any) -> Callable[..., None]:
    """A `pack_value` of numba's target that knows how to store a whole record into a tile or out of one, field by field.

    Args:
        context: the target.
        cgutils: numba's, for the target.
    """
    original = context.pack_value

    def pack_value(builder: Any, kind: Any, value: Any, pointer: Any, align: Any = None) -> None:
        source = _cast.pop(id(value), (None, kind))[1]
        if not isinstance(kind, Spread) and not isinstance(source, Spread):
            original(builder, kind, value, pointer, align)
            return
        there = builder.bitcast(pointer, context.get_value_type(kind))
        for name, field in kind.fields.items():
            item = context.get_data_type(field.type)
            loaded = builder.load(cgutils.get_record_member(builder, value, source.offset(name), item))
            builder.store(loaded, cgutils.get_record_member(builder, there, field.offset, item))

    return pack_value


_cast: dict[int, tuple[Any, Any]] = {}
"""Pointers to a record that bear the type of another layout, with their own: between the cast and the store."""


def cast(context: Any, builder: Any, kind: Any, to: Any, value: Any) -> Any:
    """A record on its way into a tile or out of one; `storing` reads it as what it is."""
    there = builder.bitcast(value, context.get_value_type(to))
    _cast[id(there)] = (there, kind)
    return there
