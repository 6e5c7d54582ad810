"""Parts of result files as numbers, with errors that name the file, the field and the request."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from llmgym.errors import TraceError


def number(file: Path, name: str, value: Any) -> float:
    """A finite number.

    Args:
        file: where it stands, for the message.
        name: of the field, with the request.
        value: what the file says.

    Returns:
        It as a float.

    Raises:
        TraceError: it is none; booleans and texts are none.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise TraceError(f"{file}: {name} is {shown(value)}, expected a finite number")
    return float(value)


def whole(file: Path, name: str, value: Any) -> int:
    """A whole number of 0 or more that int32 holds. Arguments and errors as `number` has them."""
    found = number(file, name, value)
    if found != math.floor(found) or not 0 <= found < 2**31:
        raise TraceError(f"{file}: {name} is {shown(value)}, expected a whole number from 0 to 2147483647")
    return int(found)


def nanoseconds(file: Path, name: str, value: Any) -> int:
    """A time in ns as an int: a float of one since 1970 is rounded to 0.3 us. Arguments and errors as `number` has them."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        raise TraceError(f"{file}: {name} is {shown(value)}, expected a whole number of nanoseconds")
    return value


def entry(file: Path, where: str, record: Any, name: str) -> Any:
    """A field of an object.

    Args:
        file: where it stands, for the message.
        where: what the object is, for the message.
        record: the object.
        name: of the field.

    Raises:
        TraceError: it is no object, or has no such field.
    """
    if not isinstance(record, dict):
        raise TraceError(f"{file}: {where} is {shown(record)}, expected an object")
    if name not in record:
        raise TraceError(f"{file}: {where} has no {name!r}")
    return record[name]


def column(file: Path, name: str, values: Any, length: int | None, read: Callable[..., Any]) -> list[Any]:
    """A list with an entry for each request.

    Args:
        file: where it stands, for the message.
        name: of the field.
        values: what the file says.
        length: entries that it has to have; None for any number.
        read: reads one entry, such as `number`.

    Raises:
        TraceError: it is no list, has another length, or an entry that cannot be read.
    """
    if not isinstance(values, list):
        raise TraceError(f"{file}: {name!r} is {shown(values)}, expected a list")
    if length is not None and len(values) != length:
        raise TraceError(f"{file}: {name!r} has {len(values)} entries, expected {length}, one a request")
    return [read(file, f"{name}[{i}]", value) for i, value in enumerate(values)]


def shown(value: Any) -> str:
    """A value in a message: short, whatever it is."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list"
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def facts(record: dict[str, Any], names: Sequence[str]) -> dict[str, str]:
    """Those of the named fields that a record has a text or a number for, as texts."""
    return {name: str(record[name]) for name in names if isinstance(record.get(name), (str, int, float))}
