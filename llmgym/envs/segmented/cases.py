"""Cheap arguments that the tests make SegmentedPrefill with, by a short name."""

from typing import Any

CASES: dict[str, dict[str, Any]] = {
    "small": {"scenario": "small", "requests": 12},
    "mode": {"scenario": "small", "requests": 16, "decide": "mode"},
    "real": {"scenario": "real", "requests": 12, "window": 2, "slots": 4},
    "stress": {"scenario": "stress", "requests": 10, "window": 2, "slots": 4},
    "untrained": {"scenario": "untrained", "requests": 10, "horizon_s": 60.0},
}
