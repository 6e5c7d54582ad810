"""Cheap arguments that the tests make KVQueue with, by a short name."""

from typing import Any

CASES: dict[str, dict[str, Any]] = {
    "admit": {"scenario": "tiny", "requests": 60, "action": "admit"},
    "pick": {"scenario": "tiny", "requests": 60, "action": "pick"},
    "watermark": {"scenario": "tiny", "requests": 60, "action": "watermark"},
    "rule": {"scenario": "tiny", "requests": 60, "action": "rule"},
    "pause": {
        "scenario": "tiny-overload",
        "requests": 60,
        "kv_capacity": 300,
        "waiting_cap": 40,
        "overflow": "pause",
        "information": "mean",
        "reward": "stability",
    },
    "recompute": {
        "scenario": "tiny-overload",
        "requests": 60,
        "kv_capacity": 300,
        "waiting_cap": 40,
        "action": "pick",
        "information": "none",
        "drop_cost": 0.5,
    },
    "budget": {
        "scenario": "tiny-overload",
        "requests": 60,
        "kv_capacity": 300,
        "waiting_cap": 40,
        "budget": 24,
        "first_token": "with-prefill",
        "order": "shortest-output",
    },
    "stored": {
        "scenario": "tiny-overload",
        "requests": 60,
        "kv_capacity": 300,
        "waiting_cap": 40,
        "first_token": "stored",
        "reward": "slo",
        "horizon_s": 3.0,
    },
    "clearing": {
        "scenario": "tiny-overload",
        "requests": 60,
        "kv_capacity": 300,
        "waiting_cap": 40,
        "action": "rule",
        "rules": ("wc-skip", "alpha-clearing", "beta-clearing", "orca"),
    },
    "mixed": {"scenario": "mixed", "requests": 12, "information": "noisy", "slots": 4},
    "horizon": {"scenario": "tiny", "requests": 60, "information": "noisy", "horizon_s": 1.0, "load": 1.2},
}
