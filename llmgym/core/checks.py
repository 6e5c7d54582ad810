"""What an argument must be: checks whose errors name the argument, its value and what is allowed."""

import contextlib
import json
import math
import os
import sys
import tempfile
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from llmgym.errors import InvalidArgument, ProfileError, TraceError, UnknownName

T = TypeVar("T")


def whole(name: str, value: Any, low: int = 1, high: int = 2**30) -> int:
    """Check that an argument is a whole number in a range.

    Args:
        name: of the argument, for the message.
        value: what was given.
        low: the least that is allowed.
        high: the most that is allowed.

    Returns:
        `value` as an int.

    Raises:
        InvalidArgument: it is no whole number, or lies outside of the range; booleans are no numbers.
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not low <= value <= high:
        raise InvalidArgument(f"{name}={value!r}: expected a whole number from {low} to {high}")
    return int(value)


def number(
    name: str, value: Any, zero: bool = False, *, low: float | None = None, high: float = math.inf
) -> float:
    """Check that an argument is a finite number in a range.

    Args:
        name: of the argument, for the message.
        value: what was given.
        zero: 0 is allowed too, where nothing is said by `low`.
        low: the least that is allowed; None: anything above 0.
        high: the most that is allowed.

    Returns:
        `value` as a float.

    Raises:
        InvalidArgument: it is no finite number, or lies outside of the range; booleans are no numbers.
    """
    plain = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    if isinstance(value, np.floating):
        value = value.item()
    least = 0.0 if low is None else low
    above = low is None and not zero
    # a whole number that no float holds is above every bound but infinity
    if not plain or not least <= value <= min(high, sys.float_info.max) or (above and not value):
        raise InvalidArgument(f"{name}={value!r}: expected a finite number {range_text(least, high, above)}")
    return float(value)


def below_one(name: str, value: Any) -> float:
    """`value` as a float. Raises `InvalidArgument` unless it is 0 or more and less than 1."""
    try:
        if number(name, value, zero=True) < 1.0:
            return float(value)
    except InvalidArgument:
        pass
    raise InvalidArgument(f"{name}={value!r}: expected a finite number >= 0 and < 1")


def range_text(low: float, high: float = math.inf, above: bool = False) -> str:
    """A range in words, as errors and documentation have it.

    Args:
        low: lower end.
        high: upper end, which belongs to it; infinite: there is none.
        above: the lower end does not belong to it.

    Returns:
        Text such as "> 0", ">= 1", "from 0 to 1" or "above 0, up to 1".
    """
    if math.isinf(high):
        return f"{'>' if above else '>='} {low:g}"
    return f"above {low:g}, up to {high:g}" if above else f"from {low:g} to {high:g}"


def members(name: str, value: Any, what: str) -> tuple[Any, ...]:
    """Check that an argument is a tuple, a list or an array of one axis.

    Args:
        name: of the argument, for the message.
        value: what was given.
        what: what is expected, for the message.

    Returns:
        `value` as a tuple; its entries are not checked.

    Raises:
        InvalidArgument: it is something else.
    """
    if isinstance(value, np.ndarray) and value.ndim == 1:
        return tuple(value.tolist())
    if not isinstance(value, (tuple, list)):
        raise InvalidArgument(f"{name}={value!r}: expected {what}")
    return tuple(value)


def loaded(name: str, value: Any, load: Callable[[Any], T], what: str, *kinds: type) -> T:
    """An object that was given as such, or as the text that it is loaded by.

    Args:
        name: of the argument, for messages.
        value: what was given.
        load: makes the object of a text or path.
        what: what is expected, for messages.
        *kinds: classes whose objects are taken as they are.

    Returns:
        The object.

    Raises:
        UnknownName: there is nothing of this name.
        InvalidArgument: `value` is something else; or another error of `load`, with the argument named.
    """
    if kinds and isinstance(value, kinds):
        return value  # type: ignore[return-value]
    if not isinstance(value, (str, os.PathLike)) or not os.fspath(value):
        raise InvalidArgument(f"{name}={value!r}: expected {what}")
    try:
        return load(value)
    except UnknownName as error:
        says = f"{name}={value!r}: unknown {error.kind} {error.name!r}"
        raise UnknownName(error.kind, error.name, error.known, says) from error
    except (InvalidArgument, ProfileError, TraceError) as error:
        if str(error).startswith(f"{name}="):
            raise
        raise type(error)(f"{name}={value!r}: {error}") from error


def choice(name: str, value: Any, known: Collection[str]) -> str:
    """Check that an argument is one of the known names.

    Args:
        name: of the argument, for the message.
        value: what was given.
        known: the names that are allowed.

    Returns:
        `value`.

    Raises:
        UnknownName: it is none of them, or no text.
    """
    if not isinstance(value, str) or value not in known:
        raise UnknownName(name, value, known)
    return value


def output_folder(name: str, path: str | Path) -> Path:
    """`path`, if files can be written there. The folders made to find out are removed again.

    Raises:
        InvalidArgument: no such folder can be made, or nothing can be written into it.
    """
    folder = Path(path)
    made: list[Path] = []
    try:
        for part in reversed([folder, *folder.parents]):
            if not part.exists():
                part.mkdir()
                made.append(part)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(4096))  # a full disk still makes empty files
    except OSError as error:
        where = f" ({error.filename})" if error.filename and Path(error.filename) in folder.parents else ""
        raise InvalidArgument(
            f"{name}={str(path)!r}: cannot be written to: {error.strerror}{where}"
        ) from error
    finally:
        for part in reversed(made):
            with contextlib.suppress(OSError):  # somebody has put something into it
                part.rmdir()
    return folder


def keyword_arguments(texts: tuple[str, ...]) -> dict[str, Any]:
    """`("load=1.2", "action=rule")` as arguments of an environment; values are read as JSON where they are JSON.

    Raises:
        InvalidArgument: one that is not `name=value`.
    """
    parsed: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise InvalidArgument(f"{text!r}: expected name=value")
        try:
            parsed[name] = json.loads(value)
        except json.JSONDecodeError:
            parsed[name] = value
    return parsed
