"""Cheap arguments that the tests make OServe with, by a short name."""

from typing import Any

_CHEAP: dict[str, Any] = {
    "scenario": "small",
    "model": "llama-2-70b",
    "gpus": 8,
    "types": ((496, 510), (2455, 510)),
    "cv": (0.2, 1.0),
    "span_epochs": (1, 3),
    "load": (0.3, 0.6),
    "epochs": 10,
    "epoch_s": 10.0,
    "history": 2,
}

CASES: dict[str, dict[str, Any]] = {
    "menu": _CHEAP,
    "edit": {**_CHEAP, "action": "edit", "reward": "p99", "switch_cost": 0.1},
    "plan": {**_CHEAP, "action": "plan", "switching": "reload", "reward": "slo", "types_known": False},
    "control": {**_CHEAP, "action": "control", "drift": "day", "noise": 0.2},
    "route": {**_CHEAP, "action": "route", "drift": "wave"},
    "overload": {
        **_CHEAP,
        "types": ((2455, 18), (2455, 510)),
        "types_known": False,
        "load": (1.5, 2.0),
        "backlog_s": 8.0,
        "dispatch": "least-work",
        "switching": "free",
    },
}
