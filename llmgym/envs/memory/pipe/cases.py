"""Cheap arguments that the tests make MemPipe with, by a short name."""

from typing import Any

CASES: dict[str, dict[str, Any]] = {
    "small": {"scenario": "small", "requests": 24},
    "slowdown": {"scenario": "energy", "requests": 24, "reward": "slowdown"},
    "apart": {"scenario": "h100", "requests": 24, "fused": False},
    "stress": {"scenario": "stress", "requests": 24},
}
