"""Cheap arguments that the tests make PipeSDNav with, by a short name."""

from typing import Any

CASES: dict[str, dict[str, Any]] = {
    "small": {"scenario": "small", "tokens": 40},
    "shared": {
        "scenario": "small",
        "tokens": 40,
        "clients": 3,
        "link": "paper",
        "bandwidth": "4g-driving",
        "gamma_jitter": 0.3,
        "energy_weight": 0.2,
        "max_draft": 5,
    },
    "pair": {"scenario": "small", "tokens": 40, "text": "pair-code", "count": "accepted", "downlink_s": 0.02},
    "idle": {
        "scenario": "small",
        "tokens": 40,
        "proactive": False,
        "bandwidth": "10-80-mbps",
        "change_at": 20,
        "change_gamma": 3.0,
        "change_rate": 0.2,
    },
}
