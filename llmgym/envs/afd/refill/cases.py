"""Cheap arguments that the tests make AFDRefill with, by a short name."""

from typing import Any

CASES: dict[str, dict[str, Any]] = {
    "pick": {"scenario": "small", "cycles": 60, "batch": 8, "ratio": 3, "window": 5, "patience": 2},
    "score": {
        "scenario": "small",
        "cycles": 60,
        "batch": 8,
        "ratio": 3,
        "window": 5,
        "action": "score",
        "reward": "throughput",
        "information": "exact",
    },
    "cold": {
        "scenario": "small",
        "cycles": 60,
        "batch": 8,
        "ratio": 3,
        "window": 12,
        "start": "cold",
        "information": "none",
        "patience": 1,
    },
}
