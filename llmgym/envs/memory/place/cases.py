"""Cheap arguments that the tests make MemPlace with, by a short name."""

from typing import Any

CASES: dict[str, dict[str, Any]] = {
    "small": {"scenario": "small", "requests": 40, "noise": 0.7},
    "energy": {"scenario": "energy", "requests": 30},
    "paged": {"scenario": "paged", "requests": 30},
    "stress": {"scenario": "stress", "requests": 50},
}
