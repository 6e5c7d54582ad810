"""DistillProgramme once more, with lists and floats, to hold the compiled one to."""

import math
from typing import Any

import numpy as np

from llmgym.envs.distill.env import DistillProgrammeEnv
from llmgym.envs.distill.grid import intensity_g
from llmgym.envs.distill.observing import decoded
from llmgym.envs.distill.world import made_stretch


def wait(env: DistillProgrammeEnv) -> int:
    """The action that waits."""
    return int(env.action_space.n) - 1


class Plain:
    """The programme with lists and floats: jobs on GPUs, energy and emissions by small steps of time."""

    def __init__(self, env: DistillProgrammeEnv) -> None:
        self.env, self.s, self.p = env, env.simulation.scenario, env.simulation.params
        state = env.lanes.state
        self.students = [
            {name: student[name].item() for name in student.dtype.names}
            for student in state.student[0][: state.lane[0]["students"]]
        ]
        self.key, self.config = state.lane[0]["key"], self.p.config[0]
        self.day, self.month = state.day[0].copy(), int(state.lane[0]["month"])
        self.clock = self.kwh = self.kg = self.value = 0.0
        self.gpus: list[dict[str, Any] | None] = [None] * self.s.gpus
        self.ready: dict[int, bool] = {}
        self.prepared: set[int] = set()
        self.fate = ["coming"] * len(self.students)
        self.begun = 0
        self.settle()

    def settle(self) -> None:
        for g, job in enumerate(self.gpus):
            if job is not None and job["end"] <= self.clock + 1e-9:
                self.gpus[g] = None
                if job["artefact"] is not None:
                    self.ready[job["artefact"]] = True
                    continue
                student = self.students[job["student"]]
                quality = self.p.quality[job["pipeline"], student["size"]]
                quality += self.s.quality_noise * student["luck"]
                self.fate[job["student"]] = "done"
                if job["end"] <= student["deadline_h"] and quality >= student["floor"]:
                    self.value += student["value"]
        for i, student in enumerate(self.students):
            if self.fate[i] == "coming" and student["arrival_h"] <= self.clock + 1e-9:
                self.fate[i] = "waits"
            if self.fate[i] == "waits" and student["deadline_h"] <= self.clock + 1e-9:
                self.fate[i] = "dropped"

    def slots(self) -> list[int]:
        waits = [i for i, fate in enumerate(self.fate) if fate == "waits"]
        return sorted(waits, key=lambda i: (self.students[i]["deadline_h"], i))[: self.s.slots]

    def over(self) -> bool:
        return self.clock >= self.config["horizon_h"] - 1e-9 or all(
            f in ("done", "dropped") for f in self.fate
        )

    def event(self) -> float:
        ends = [job["end"] for job in self.gpus if job is not None]
        comes = [s["arrival_h"] for s, fate in zip(self.students, self.fate, strict=True) if fate == "coming"]
        return min([float(self.config["horizon_h"]), *ends, *comes])

    def run(self, until: float) -> None:
        while self.clock < until - 1e-12:
            ends = [
                e for job in self.gpus if job is not None for e in job["stages"] if e > self.clock + 1e-12
            ]
            stop = min([until, math.floor(self.clock + 1e-9) + 1.0, *ends])
            hours, watts = stop - self.clock, 0.0
            for job in self.gpus:
                if job is None:
                    watts += self.s.idle_w
                else:
                    watts += next(
                        w for w, e in zip(job["watts"], job["stages"], strict=True) if e > self.clock + 1e-12
                    )
            hour = math.floor(self.clock + 1e-9)
            grams = intensity_g(self.p.intensity, self.day, self.month, hour)
            self.kwh += watts * hours / 1000.0
            self.kg += watts * hours / 1e6 * self.s.pue * grams
            self.clock = stop

    def step(self, action: int) -> None:
        if action == wait(self.env):
            until = self.event()
            if self.slots():
                until = min(until, self.clock + self.s.wait_h)
            self.run(until)
        else:
            slot, which, cap = decoded(self.p, action)
            job: dict[str, Any] = {"artefact": None, "student": None, "pipeline": which}
            if slot >= 0:
                i = self.slots()[slot]
                student = self.students[i]
                self.fate[i] = "runs"
                job["student"], dataset = i, student["dataset"]
                main = student["stretch"] * self.p.train_h[which, student["size"], cap]
                watts = self.p.train_w[which, student["size"], cap]
                after = self.p.evaluate_h[student["size"], cap]
            else:
                job["artefact"], dataset, after = which, which // 2, 0.0
                main = made_stretch(self.config, self.key, self.begun) * self.p.make_h[which, cap]
                watts, self.begun = self.p.make_w[which, cap], self.begun + 1
            before = 0.0 if dataset in self.prepared else float(self.config["prepare_h"])
            self.prepared.add(dataset)
            job["stages"] = np.cumsum([self.clock + before, main, after]).tolist()
            job["watts"] = [float(self.config["prepare_w"]), watts, self.p.evaluate_w[cap]]
            job["end"] = job["stages"][-1]
            self.gpus[self.gpus.index(None)] = job
        self.settle()
        while not self.over() and None not in self.gpus:
            self.run(self.event())
            self.settle()
