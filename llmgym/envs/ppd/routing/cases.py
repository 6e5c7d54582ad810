"""Cheap arguments that the tests make PPDRouting with, by a short name."""

from typing import Any

CASES: dict[str, dict[str, Any]] = {
    "small": {"scenario": "small", "conversations": 24},
    "flood": {
        "scenario": "stress",
        "conversations": 40,
        "qps": 6.0,
        "timeout_s": 6.0,
        "kv_capacity": 9000,
        "buffer_gb": 0.5,
        "rates": (4.0,),
        "reference": "table",
        "information": "none",
    },
    "replicas": {
        "scenario": "small",
        "conversations": 24,
        "allocation": "1P_1D_1pD_1R",
        "gpus": 4,
        "reward": "slo",
        "placement": "least-loaded",
        "information": "noisy",
        "rate": "average",
    },
    "profile": {
        "scenario": "small",
        "conversations": 24,
        "workload": "chat",
        "profile": "h100/llama-3.1-8b",
        "interference": "paper",
        "answer_kv_hit": True,
    },
}
