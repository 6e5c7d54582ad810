"""Cheap arguments that the tests make Forage with, by a short name."""

from typing import Any

MANY = 100_000_000
"""More tokens than any of these episodes takes: actions at random open much."""
CASES: dict[str, dict[str, Any]] = {
    "small": {"scenario": "small", "first_answer": 25, "max_steps": 80, "budget_tokens": MANY},
    "sources": {
        "scenario": "sources",
        "chunks": 64,
        "reward": "outcome",
        "first_answer": 25,
        "max_steps": 80,
    },
    "real": {"scenario": "real", "first_answer": 25, "max_steps": 80},
    "stress": {
        "scenario": "stress",
        "chunks": 64,
        "first_answer": 60,
        "max_steps": 80,
        "budget_tokens": MANY,
    },
}
