"""Recount of a lane from its raw arrays, for tests; `llmgym.core.spec.EnvSpec.auditor` says what the numbers are."""

import numpy as np

from llmgym.envs.distill.env import DistillProgramme
from llmgym.envs.distill.state import DONE, DROPPED, RUNNING, TRAINS, WAITING, State


def audit(simulation: DistillProgramme, state: State, lane: int) -> dict[str, float]:
    """Recount a lane of DistillProgramme.

    Args:
        simulation: the environment's.
        state: arrays of all lanes.
        lane: the lane that is recounted.

    Returns:
        Students by what they are, energy and hours from the log of all jobs; work is hours of GPUs.
    """
    episode, clock_h = state.lane[lane], float(state.lane[lane]["clock_h"])
    arrived = int(episode["arrived"])
    students = state.student[lane][:arrived]
    jobs = state.job[lane][: episode["jobs"]]
    begins = np.column_stack([jobs["begin_h"], jobs["end_h"][:, :2]])
    hours = np.clip(np.minimum(jobs["end_h"], clock_h) - begins, 0.0, None)
    idle_h = simulation.scenario.gpus * clock_h - hours.sum()
    kwh = (hours * jobs["power_w"]).sum() / 1000.0 + idle_h * simulation.scenario.idle_w / 1000.0
    asked_h = float((jobs["end_h"][:, 2] - jobs["begin_h"]).sum())
    left_h = float(np.clip(jobs["end_h"][:, 2] - np.maximum(jobs["begin_h"], clock_h), 0.0, None).sum())
    count = {kind: float((students["status"] == kind).sum()) for kind in (WAITING, RUNNING, DONE, DROPPED)}
    trained = jobs[jobs["kind"] == TRAINS]["which"]
    return {
        "arrived": float(arrived),
        "waiting": count[WAITING],
        "running": count[RUNNING],
        "done": count[DONE],
        "rejected": count[DROPPED],
        "distinct": float(len(set(trained.tolist()))),
        "live": float(len(trained)),
        "clock_s": 3600.0 * clock_h,
        "energy_j": 3.6e6 * float(episode["energy_kwh"]),
        "kwh": round(float(episode["energy_kwh"]), 6),
        "kwh_counted": round(float(kwh), 6),
        "work_asked": asked_h,
        "work_done": float(episode["busy_h"]),
        "work_left": left_h,
    }
