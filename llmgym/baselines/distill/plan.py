"""`llmgym plan distill`: the decision for a programme of students, with its reasons.

The numbers are those of Lambert and Luccioni, ICML 2026, arXiv 2605.13981 (`llmgym.envs.distill.published`).
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from llmgym.baselines.distill.decide import Decision, Planned, Planner
from llmgym.baselines.distill.programme_file import ARTEFACT_NAMES, read_programme
from llmgym.core.told import Told
from llmgym.envs.distill.law import break_even_reuse, emissions_kg
from llmgym.envs.distill.published import KD, PIPELINES, SFT, SIZES, SYNTHETIC
from llmgym.envs.distill.state import MAKES, TRAINS


@dataclass(frozen=True)
class Distill(Told):
    """Which students of a programme to distil, from which shared artefacts (Lambert, Luccioni, ICML 2026), and why."""

    programme: Annotated[Path, tyro.conf.Positional]
    """TOML or JSON file with the students, their floors and deadlines; see docs/envs/distill_programme.md."""

    def run(self, console: Console) -> dict[str, Any]:
        """Print the decision.

        Returns:
            The same as numbers.

        Raises:
            LlmgymError: a file that cannot be read, or something in it that is not allowed.
        """
        planner = Planner(read_programme(self.programme))
        programme = planner.programme
        decision = planner.decide()
        for n in decision.impossible:
            order = programme.orders[n]
            best = max(planner.quality(p, order) for p in (SFT, KD, SYNTHETIC))
            console.print(
                f"[yellow]Left out:[/yellow] {escape(order.name)}: no pipeline reaches its floor of {order.floor:g}; the best "
                f"quality of {SIZES[order.size]} is {best:.2f}."
            )
        if decision.jobs:
            console.print(_artefacts(planner, decision))
            console.print(_students(planner, decision))
        self._totals(console, planner, decision)
        names = [order.name for order in programme.orders]
        return {
            "energy_kwh": decision.energy_kwh,
            "fine_tuning_alone_kwh": planner.all_sft_kwh(),
            "co2_kg": emissions_kg(decision.energy_kwh, programme.intensity_g, programme.pue),
            "budget_kwh": programme.budget_kwh,
            "made": [ARTEFACT_NAMES[a] for a in decision.made],
            "late": [names[n] for n in decision.late],
            "impossible": [names[n] for n in decision.impossible],
            "jobs": [
                {
                    "what": names[job.which] if job.kind == TRAINS else ARTEFACT_NAMES[job.which],
                    "pipeline": PIPELINES[job.pipeline] if job.kind == TRAINS else "make",
                    "cap_w": programme.caps[job.cap - 1] if job.cap else None,
                    "begin_h": job.begin_h,
                    "end_h": job.end_h,
                    "energy_kwh": job.energy_kwh,
                }
                for job in decision.jobs
            ],
        }

    def _totals(self, console: Console, planner: Planner, decision: Decision) -> None:
        programme = planner.programme
        alone, kwh = planner.all_sft_kwh(), decision.energy_kwh
        made = ", ".join(ARTEFACT_NAMES[a] for a in decision.made) or "nothing"
        count = sum(job.kind == TRAINS and job.pipeline != SFT for job in decision.jobs)
        carbon = emissions_kg(kwh, programme.intensity_g, programme.pue)
        console.print(
            f"[bold]Make {made}; distil {count} of {len(programme.orders)} students.[/bold] {kwh:.2f} kWh, against {alone:.2f} "
            f"kWh with fine-tuning alone and no caps; {carbon:.1f} kg CO2e at {programme.intensity_g:g} g/kWh and PUE "
            f"{programme.pue:g}."
        )
        if decision.late:
            names = ", ".join(escape(programme.orders[n].name) for n in decision.late)
            console.print(
                f"[yellow]Late:[/yellow] {len(decision.late)} of {len(programme.orders)} students miss their deadline: {names}."
            )
        if kwh > programme.budget_kwh:
            console.print(
                f"[yellow]Over budget:[/yellow] {kwh - programme.budget_kwh:.2f} kWh more than {programme.budget_kwh:g} kWh; "
                "lower caps, later deadlines or fewer students would help."
            )
        elif math.isfinite(programme.budget_kwh):
            console.print(f"The budget leaves {programme.budget_kwh - kwh:.2f} kWh.")


def _students_of(count: int) -> str:
    return "1 student" if count == 1 else f"{count} students"


def _artefacts(planner: Planner, decision: Decision) -> Table:
    """Each artefact that somebody may use: whether it is made, and why."""
    programme = planner.programme
    table = Table(title="artefacts of the teacher", title_justify="left")
    for name in ("artefact", "decision", "because"):
        table.add_column(name)
    for a, name in enumerate(ARTEFACT_NAMES):
        pipeline = SYNTHETIC if a % 2 else KD
        able = [
            n
            for n, order in enumerate(programme.orders)
            if order.dataset == a // 2 and planner.quality(pipeline, order) >= order.floor
        ]
        uses = [
            job.which
            for job in decision.jobs
            if job.kind == TRAINS and planner.artefact(job.pipeline, programme.orders[job.which]) == a
        ]
        if a in programme.there:
            verb = "uses" if len(uses) == 1 else "use"
            table.add_row(name, "exists", f"{_students_of(len(uses))} {verb} it, at no cost of its own")
        elif a in decision.made:
            table.add_row(name, "[bold]make[/bold]", _why_made(planner, decision, a, uses))
        elif able:
            table.add_row(name, "do not make", _why_not(planner, decision, a, able))
    return table


def _saved(planner: Planner, decision: Decision, pipeline: int, n: int) -> float:
    """Energy that an order saves by a pipeline against fine-tuning, under the cap that it runs under, kWh."""
    job, order = decision.training(n), planner.programme.orders[n]
    cap = 0 if job is None else job.cap
    return planner.training(SFT, order, cap)[1] - planner.training(pipeline, order, cap)[1]


def _why_made(planner: Planner, decision: Decision, artefact: int, users: list[int]) -> str:
    pipeline = SYNTHETIC if artefact % 2 else KD
    saved = math.fsum(_saved(planner, decision, pipeline, n) for n in users)
    cost = next(job.energy_kwh for job in decision.jobs if job.kind == MAKES and job.which == artefact)
    cost = min(cost, planner.making(artefact)[1])
    if saved <= cost:
        told = f"{_students_of(len(users))} save {saved:.2f} of its {cost:.2f} kWh"
        return f"{told}, but deadlines or budget are kept by it"
    pays = break_even_reuse(cost, saved / len(users), 0.0)
    return f"{_students_of(len(users))} save {saved:.2f} kWh, it costs {cost:.2f}; it pays from {pays:.1f} of these on"


def _why_not(planner: Planner, decision: Decision, artefact: int, able: list[int]) -> str:
    pipeline = SYNTHETIC if artefact % 2 else KD
    saved = math.fsum(_saved(planner, decision, pipeline, n) for n in able)
    cost = planner.making(artefact)[1]
    if saved <= 0.0:
        return f"{_students_of(len(able))} may use it and would need {-saved:.2f} kWh more, beside its {cost:.2f}"
    if saved <= cost:
        return f"{_students_of(len(able))} may use it and would save {saved:.2f} kWh, it costs {cost:.2f}"
    if (artefact ^ 1) in (*decision.made, *planner.programme.there):
        return f"{ARTEFACT_NAMES[artefact ^ 1]} saves more"
    return f"{_students_of(len(able))} would save {saved:.2f} of its {cost:.2f} kWh, but not in time"


def _students(planner: Planner, decision: Decision) -> Table:
    """Each job in the order in which it begins."""
    programme = planner.programme
    table = Table(title="what runs", title_justify="left")
    table.add_column("hours", justify="right", no_wrap=True)
    table.add_column("deadline", justify="right", no_wrap=True)
    table.add_column("kWh", justify="right", no_wrap=True)
    if programme.caps:
        table.add_column("cap, W", justify="right", no_wrap=True)
    for name in ("what", "because"):
        table.add_column(name)
    for job in decision.jobs:
        order = programme.orders[job.which] if job.kind == TRAINS else None
        deadline = "-" if order is None or math.isinf(order.deadline_h) else f"{order.deadline_h:g}"
        if order is not None and job.which in decision.late:
            deadline = f"[yellow]{deadline}[/yellow]"
        cap = "-" if job.cap == 0 else f"{programme.caps[job.cap - 1]:g}"
        if order is None:
            what, why = f"make {ARTEFACT_NAMES[job.which]}", ""
        else:
            what, why = f"{escape(order.name)}: {PIPELINES[job.pipeline]}", _why(planner, decision, job)
        caps = [cap] if programme.caps else []
        hours = f"{job.begin_h:.1f} to {job.end_h:.1f}"
        table.add_row(hours, deadline, f"{job.energy_kwh:.2f}", *caps, what, why)
    return table


def _why(planner: Planner, decision: Decision, job: Planned) -> str:
    """Why a student gets its pipeline."""
    order = planner.programme.orders[job.which]
    if job.pipeline != SFT:
        saved = _saved(planner, decision, job.pipeline, job.which)
        return f"saves {saved:.2f} kWh, quality {planner.quality(job.pipeline, order):.2f}"
    could = [p for p in planner.possible(order) if p != SFT]
    if not could:
        best = max(planner.quality(p, order) for p in (KD, SYNTHETIC))
        return f"floor {order.floor:g} is above the {best:.2f} of distillation"
    there = {*decision.made, *planner.programme.there}
    if any(planner.artefact(p, order) in there for p in could):
        return "distilled, somebody would be late"
    return "no artefact pays for it"
