"""Cheap arguments that the tests make AttentionBudget with, by a short name."""

from typing import Any

CASES: dict[str, dict[str, Any]] = {
    "small": {"scenario": "small", "batches": 32},
    "even": {"scenario": "small", "batches": 32, "reward": "batches", "burst": 1.0},
    "paper": {"scenario": "paper", "batches": 24, "menu": ("softmax", "yat", "slay 2 16 8", "favor")},
    "real": {"scenario": "real", "batches": 24},
    "stress": {"scenario": "stress", "batches": 24},
}
