"""Cheap arguments that the tests make PipeSDTune with, by a short name."""

from typing import Any

CASES: dict[str, dict[str, Any]] = {
    "small": {"scenario": "small", "tokens": 200},
    "shared": {
        "scenario": "change",
        "tokens": 120,
        "clients": 3,
        "bandwidth": "4g-driving",
        "gamma_jitter": 0.3,
        "change_at": 60,
        "step_tokens": 5,
    },
    "pair": {"scenario": "mobile", "tokens": 100, "text": "pair-prose-sampled", "step_tokens": 7},
}
