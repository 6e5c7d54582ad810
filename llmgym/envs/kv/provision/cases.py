"""Cheap arguments that the tests make KVProvision with, by a short name."""

from typing import Any

CASES: dict[str, dict[str, Any]] = {
    "small": {"scenario": "small", "epochs": 40},
    "fluid": {"scenario": "fluid-small", "epochs": 40},
    "mixed": {"scenario": "fluid-small", "epochs": 16, "workload": "uniform-mixed", "mix": ((3, 1), (1, 3))},
    "overload": {
        "scenario": "small",
        "epochs": 40,
        "max_replicas": 3,
        "load": 1.3,
        "waiting_cap": 60,
        "overflow": "recompute",
    },
}
