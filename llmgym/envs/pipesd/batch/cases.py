"""Cheap arguments that the tests make PipeSDBatch with, by a short name."""

from typing import Any

CASES: dict[str, dict[str, Any]] = {
    "random": {"scenario": "random"},
    "relative": {"scenario": "small", "reward": "relative", "alpha_s": (0.0, 0.0)},
}
