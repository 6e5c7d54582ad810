"""Cheap arguments that the tests make DistillProgramme with, by a short name."""

from typing import Any

from llmgym.envs.distill.published import PIPELINES

FEW: dict[str, Any] = {"known": 3, "per_day": 1.0, "orders_days": 5.0, "horizon_days": 8.0, "slots": 3}

CASES: dict[str, dict[str, Any]] = {
    "small": {"scenario": "small", **FEW},
    "paper": {
        "scenario": "paper",
        "known": 5,
        "slots": 3,
        "horizon_days": 12.0,
        "noise": 0.1,
        "per_day": 0.3,
        "orders_days": 3.0,
    },
    "stress": {"scenario": "stress", **FEW, "known": 5, "budget_kwh": 150.0, "teacher_per_day": 0.3},
    "carbon": {
        "scenario": "carbon",
        **FEW,
        "power": "h100/kernels",
        "pipelines": PIPELINES,
        "idle_w": 133.0,
        "slots": 2,
        "datasets": 2,
    },
}
