"""What a command of `llmgym` found, as JSON for programs."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Told:
    """Options of every command that prints a table."""

    json: bool = False
    """Print what was found as one JSON object and nothing else; numbers are not rounded, null stands where there is none."""


def as_json(found: Any) -> str:
    """Findings as JSON that every parser reads.

    Args:
        found: dicts, lists, texts, numbers, arrays and paths, inside each other; of another object Python's own form is told.

    Returns:
        The text; null stands for numbers that are not finite, which JSON does not have.
    """
    return json.dumps(_plain(found), indent=1, ensure_ascii=False, default=repr)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value
