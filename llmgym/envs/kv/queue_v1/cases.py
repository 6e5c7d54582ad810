"""Cheap arguments that the tests make KVQueue-v1 with, by a short name."""

from typing import Any

_SMALL: dict[str, Any] = {
    "workload": "uniform-tiny",
    "profile": "paper/tiny",
    "dense": "default",
    "host": "default",
    "requests": 60,
    "kv_capacity": 320,
    "longest": 160,
    "load": 1.3,
    "targets": (),
    "ttft_slo_s": 0.5,
    "tpot_slo_s": 0.05,
}

CASES: dict[str, dict[str, Any]] = {
    "pick": {**_SMALL, "slots": 6, "running": 4},
    "sync": {
        **_SMALL,
        "scheduling": "sync",
        "slots": 4,
        "running": 2,
        "late_cost": 1.0,
        "information": "mean",
    },
    "rule": {**_SMALL, "action": "rule"},
    "goodput": {**_SMALL, "reward": "goodput", "lists": ("deadline",), "slots": 5, "information": "none"},
    "overload": {**_SMALL, "waiting_cap": 30, "load": 3.0, "budget": 24, "horizon_s": 2.0},
    "tiers": {"scenario": "tiers", "requests": 30},
    "sessions": {"scenario": "sessions", "requests": 40, "kv_capacity": 8192, "seats": 16},
}
