"""Pictures of DistillProgramme: what each GPU does, how each student fares, the budget, and the carbon of the grid."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmgym.core.canvas import blank, pixels
from llmgym.envs.distill.grid import intensity_g
from llmgym.envs.distill.published import DATASETS, KINDS, PIPELINES, SIZES
from llmgym.envs.distill.scenarios import Scenario
from llmgym.envs.distill.state import (
    DONE,
    DROPPED,
    EVALUATE,
    MAKES,
    RUNNING,
    WAITING,
    Job,
    Params,
    State,
    Student,
)

WIDTH, HEIGHT = 940, 640
COLOURS = ("#E69F00", "#0072B2", "#56B4E9", "#F0E442", "#CC79A7")
"""By pipeline."""
MADE = ("#004D40", "#26A69A")
"""Logits and text."""
FATES = {
    "waits": "#999999",
    "runs": "#333333",
    "met": "#009E73",
    "late or below its floor": "#D55E00",
    "dropped": "#DDDDDD",
}


def when(hours: float) -> str:
    """A time in words: day and hour."""
    return f"day {int(hours // 24) + 1}, {int(hours % 24):02d}:{int(60 * (hours % 1)):02d}"


def job_name(job: Job, state: State, lane: int) -> str:
    """What a job does, in words.

    Args:
        job: one of `state.job`.
        state: arrays of all lanes.
        lane: the lane of the job.

    Returns:
        A few words, with the artefact or the student.
    """
    if job["kind"] == MAKES:
        return f"{KINDS[int(job['which']) % 2]} of {DATASETS[int(job['which']) // 2]}"
    student = state.student[lane, int(job["which"])]
    return f"{SIZES[student['size']]} {DATASETS[student['dataset']]}, {PIPELINES[student['pipeline']]}"


def fate(student: Student) -> str:
    """What became of a student."""
    status = int(student["status"])
    if status == DONE:
        fine = student["end_h"] <= student["deadline_h"] and student["quality"] >= student["floor"]
        return "met" if fine else "late or below its floor"
    return {WAITING: "waits", RUNNING: "runs", DROPPED: "dropped"}[status]


def text(scenario: Scenario, params: Params, state: State, lane: int) -> str:
    """One lane in words: a line of state, one for each GPU, the artefacts, and the students that can be started.

    Args:
        scenario: the settings.
        params: what all lanes share.
        state: arrays of all lanes.
        lane: the lane that is told.

    Returns:
        Lines of text.
    """
    episode = state.lane[lane]
    clock_h = float(episode["clock_h"])
    lines = [
        f"{when(clock_h)}   {episode['energy_kwh']:.1f} of {scenario.budget_kwh:g} kWh, {episode['co2_kg']:.1f} kg CO2e   "
        f"{episode['done']} of {episode['arrived']} students done, {episode['met']} in time and above their floor, "
        f"{episode['dropped']} dropped"
    ]
    for gpu, number in enumerate(state.running[lane]):
        if number < 0:
            lines.append(f"GPU {gpu}: free")
            continue
        job = state.job[lane, number]
        left = max(float(job["expected_h"]) - clock_h, 0.0)
        lines.append(f"GPU {gpu}: {job_name(job, state, lane)}, about {left:.0f} h left")
    made = [
        f"{KINDS[a % 2]} of {DATASETS[a // 2]} ({one['uses']} uses)"
        for a, one in enumerate(state.artefact[lane])
        if one["ready"]
    ]
    lines.append(f"artefacts: {', '.join(made) or 'none'}")
    for s, number in enumerate(state.slot[lane]):
        if number >= 0:
            student = state.student[lane, number]
            left = float(student["deadline_h"]) - clock_h
            lines.append(
                f"slot {s}: {SIZES[student['size']]} {DATASETS[student['dataset']]}, {left:.0f} h to its deadline, floor "
                f"{student['floor']:.2f}, value {student['value']:.1f}"
            )
    return "\n".join(lines)


def picture(scenario: Scenario, params: Params, state: State, lane: int) -> NDArray[np.uint8]:
    """A picture of one lane: a Gantt chart of the GPUs, a line for each student from order to deadline, energy and carbon.

    Args:
        scenario: the settings.
        params: what all lanes share.
        state: arrays of all lanes.
        lane: the lane that is drawn.

    Returns:
        The picture, uint8 [640, 940, 3].
    """
    episode = state.lane[lane]
    clock_h = float(episode["clock_h"])
    figure = blank(WIDTH, HEIGHT)
    figure.subplots_adjust(left=0.08, right=0.92, top=0.90, bottom=0.07)
    chart, orders, energy = figure.subplots(
        3,
        1,
        sharex=True,
        gridspec_kw={"hspace": 0.22, "height_ratios": [0.5 + 0.4 * scenario.gpus, 2.4, 1.3]},
    )
    _draw_jobs(chart, scenario, state, lane)
    _draw_students(orders, state, lane)
    carbon = _draw_energy(energy, scenario, params, state, lane)
    for axis in (chart, orders, energy):
        axis.axvline(clock_h / 24.0, color="#CC0000", linewidth=1)
        axis.set_xlim(0.0, scenario.horizon_days)
    figure.suptitle(
        f"{when(clock_h)}: {episode['met']} of {episode['arrived']} students met, {episode['dropped']} dropped; "
        f"{episode['energy_kwh']:.0f} of {scenario.budget_kwh:g} kWh, {episode['co2_kg']:.0f} kg CO2e.  Red line: now",
        fontsize=9,
        x=0.08,
        ha="left",
    )
    return pixels(figure, (chart, orders, energy, carbon))


def _draw_jobs(chart: Any, scenario: Scenario, state: State, lane: int) -> None:
    """Bars of what each GPU did and is expected to do; a paler lower half says that it runs under a power cap."""
    episode = state.lane[lane]
    clock_h, seen = float(episode["clock_h"]), {}
    for job in state.job[lane][: episode["jobs"]]:
        ended = job["end_h"][EVALUATE] <= clock_h
        end_h = float(job["end_h"][EVALUATE] if ended else max(job["expected_h"], clock_h))
        begin_h = float(job["begin_h"])
        made = job["kind"] == MAKES
        pipeline = 0 if made else int(state.student[lane, int(job["which"])]["pipeline"])
        colour = MADE[int(job["which"]) % 2] if made else COLOURS[pipeline]
        seen["teacher: " + KINDS[int(job["which"]) % 2] if made else PIPELINES[pipeline]] = colour
        gpu = int(job["gpu"])
        chart.barh(
            gpu,
            (end_h - begin_h) / 24.0,
            left=begin_h / 24.0,
            height=0.8 if job["cap"] == 0 else 0.5,
            color=colour,
            alpha=1.0 if ended else 0.55,
            edgecolor="white",
            linewidth=0.6,
        )
        if end_h - begin_h > 0.035 * 24.0 * scenario.horizon_days:
            student = state.student[lane, int(job["which"])]
            name = (
                DATASETS[int(job["which"]) // 2]
                if made
                else f"{SIZES[student['size']]}\n{DATASETS[student['dataset']]}"
            )
            dark = made or pipeline == 1
            chart.text(
                0.5 * (begin_h + end_h) / 24.0,
                gpu,
                name,
                ha="center",
                va="center",
                fontsize=6,
                color="white" if dark else "black",
            )
    for name, colour in seen.items():
        chart.barh(-5, 0, color=colour, label=name)
    chart.set_yticks(range(scenario.gpus), [f"GPU {gpu}" for gpu in range(scenario.gpus)])
    chart.set_ylim(scenario.gpus - 0.4, -0.6)
    if seen:
        chart.legend(fontsize=7, ncols=7, loc="lower right", bbox_to_anchor=(1.0, 1.0), frameon=False)
    capped = "thin bars run under a power cap; pale: expected"
    chart.text(0.0, 1.04, capped, fontsize=7, transform=chart.transAxes)


def _draw_students(axis: Any, state: State, lane: int) -> None:
    """A line for each student from its order to its deadline, coloured by what became of it; a dot where it was done."""
    students = state.student[lane][: state.lane[lane]["arrived"]]
    for i, student in enumerate(students):
        colour = FATES[fate(student)]
        span = [float(student["arrival_h"]) / 24.0, float(student["deadline_h"]) / 24.0]
        axis.plot(span, [i, i], color=colour, linewidth=1.0 + student["size"], solid_capstyle="butt")
        axis.plot(span[1], i, "|", color="black", markersize=4)
        if student["status"] == DONE:
            axis.plot(float(student["end_h"]) / 24.0, i, "o", color=colour, markersize=3)
    for name, colour in FATES.items():
        axis.plot([], [], color=colour, linewidth=2, label=name)
    axis.set_ylim(max(len(students), 4) - 0.4, -0.6)
    axis.set_ylabel("students, order to deadline")
    axis.legend(fontsize=7, ncols=5, loc="lower right", bbox_to_anchor=(1.0, 0.98), frameon=False)


def _draw_energy(axis: Any, scenario: Scenario, params: Params, state: State, lane: int) -> Any:
    """Energy so far beside the budget, and the carbon intensity of the grid until now."""
    episode, jobs = state.lane[lane], state.job[lane][: state.lane[lane]["jobs"]]
    clock_h = float(episode["clock_h"])
    times = np.linspace(0.0, max(clock_h, 1e-6), 200)
    begins = np.column_stack([jobs["begin_h"], jobs["end_h"][:, :2]])[None]
    hours = np.clip(np.minimum(jobs["end_h"][None], times[:, None, None]) - begins, 0.0, None)
    worked = hours.sum(axis=(1, 2)) if len(jobs) else np.zeros(len(times))
    kwh = (hours * jobs["power_w"][None]).sum(axis=(1, 2)) / 1000.0
    kwh = kwh + (scenario.gpus * times - worked) * scenario.idle_w / 1000.0
    axis.fill_between(times / 24.0, kwh, color="#0072B2", alpha=0.35)
    axis.axhline(scenario.budget_kwh, color="#0072B2", linestyle="--", linewidth=1)
    top = 1.15 * max(scenario.budget_kwh, float(episode["energy_kwh"]))
    axis.set(ylabel="energy, kWh\n(dashed: budget)", xlabel="days", ylim=(0, top))
    carbon: Any = axis.twinx()
    last = min(int(math.floor(clock_h)), 24 * (state.day.shape[1] - 1))
    grams = [
        intensity_g(params.intensity, state.day[lane], int(episode["month"]), h) for h in range(last + 1)
    ]
    carbon.step(np.arange(last + 1) / 24.0, grams, where="post", color="#777777", linewidth=0.8)
    carbon.set_ylabel("grid, g CO2e/kWh")
    carbon.set_ylim(0, 1.3 * max(*grams, 100.0))
    return carbon
