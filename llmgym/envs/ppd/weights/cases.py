"""Cheap arguments that the tests make PPDWeights with, by a short name."""

from typing import Any

CASES: dict[str, dict[str, Any]] = {
    "small": {"scenario": "small", "conversations": 10, "epoch_s": 0.3, "rates": (4.0, 12.0)},
    "flood": {
        "scenario": "stress",
        "conversations": 20,
        "qps": 6.0,
        "timeout_s": 6.0,
        "kv_capacity": 9000,
        "buffer_gb": 0.5,
        "rates": (4.0,),
        "reference": "table",
        "reward": "relative",
        "epoch_s": 0.5,
        "epochs": 40,
    },
}
