"""What an argument must be: checks whose errors name the argument, its value and what is allowed."""

import contextlib
import math
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from llmgym.errors import InvalidArgument, UnknownName


def whole(name: str, value: Any, low: int = 1, high: int = 2**30) -> int:
    """`value` as an int. Raises `InvalidArgument` unless it is a whole number in low..high."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not low <= value <= high:
        raise InvalidArgument(f"{name}={value!r}: expected a whole number from {low} to {high}")
    return int(value)


def number(name: str, value: Any, zero: bool = False) -> float:
    """`value` as a float. Raises `InvalidArgument` unless it is finite and positive (or zero, where allowed)."""
    plain = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    if not plain or not math.isfinite(value) or value < 0 or (value == 0 and not zero):
        raise InvalidArgument(f"{name}={value!r}: expected a finite number {'>= 0' if zero else '> 0'}")
    return float(value)


def choice(name: str, value: Any, known: Collection[str]) -> str:
    """`value`, one of the known names. Raises `UnknownName`."""
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
