"""Cheap arguments that the tests make Unmask with, by a short name."""

from typing import Any

CASES: dict[str, dict[str, Any]] = {
    "small": {"scenario": "small", "tokens": 24, "block": 8, "processes": 2},
    "score": {"scenario": "columns", "tokens": 16, "block": 8, "processes": 2, "mode": "score"},
    "set": {"scenario": "small", "tokens": 24, "block": 8, "processes": 2, "action": "set"},
    "macro": {
        "scenario": "stress",
        "tokens": 32,
        "block": 16,
        "processes": 2,
        "action": "macro",
        "show_interleave": True,
    },
    "time": {"scenario": "mixed", "tokens": 24, "block": 12, "processes": 2, "interleave": (2,)},
    "real": {"scenario": "real", "tokens": 32},
}
