"""Closed forms of distillation under an energy account: when a teacher's artefact pays, and which ones to make.

Lambert and Luccioni, "Towards Resource-Efficient LLMs" (ICML 2026, arXiv 2605.13981): the account of a pipeline, energy per student
when N students share an artefact, the number N* at which distillation breaks even, and the served tokens that repay extra training.
Students of several sizes that choose among several artefacts are a facility location problem, solved here by enumeration.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llmgym.core.checks import number, whole
from llmgym.errors import InvalidArgument

J_PER_KWH = 3.6e6
MOST_ARTEFACTS = 12
"""Artefacts that `portfolio` chooses among at most: it tries all sets of them."""


def stage_energy_kwh(
    time_s: ArrayLike,
    power_w: ArrayLike,
    begin_s: float | None = None,
    end_s: float | None = None,
    idle_w: float = 0.0,
) -> float:
    """Energy of a stage from samples of its power: the trapezoid rule between them, the first and last held to the ends.

    Args:
        time_s: times of the samples, increasing, seconds, [samples].
        power_w: power at these times, watts, [samples].
        begin_s: begin of the stage, seconds, at or before the first sample; None: that sample.
        end_s: end of the stage, seconds, at or after the last sample; None: that sample.
        idle_w: power without the stage, which is taken off for its whole time, watts; 0: the account of the paper.

    Returns:
        Energy, kWh; negative where a stage draws less than an idle device.

    Raises:
        InvalidArgument: not one finite power at each of increasing times, samples outside the stage, or an idle power below 0.
    """
    times, powers = np.asarray(time_s, np.float64), np.asarray(power_w, np.float64)
    if times.ndim != 1 or times.shape != powers.shape or len(times) == 0:
        raise InvalidArgument(
            f"time_s has shape {times.shape}, power_w {powers.shape}: expected one power a time, at least one"
        )
    if not (np.isfinite(times).all() and (np.diff(times) > 0.0).all()):
        raise InvalidArgument("time_s: expected finite times, each after the one before")
    if not (np.isfinite(powers).all() and (powers >= 0.0).all()):
        raise InvalidArgument("power_w: expected finite powers, none below 0")
    first, last = float(times[0]), float(times[-1])
    begin_s, end_s = first if begin_s is None else begin_s, last if end_s is None else end_s
    if not begin_s <= first or not last <= end_s:
        raise InvalidArgument(
            f"begin_s={begin_s!r}, end_s={end_s!r}: expected a stage around all samples, {first:g} to {last:g}"
        )
    joules = np.trapezoid(powers, times) + powers[0] * (first - begin_s) + powers[-1] * (end_s - last)
    joules -= number("idle_w", idle_w, True) * (end_s - begin_s)
    return float(joules) / J_PER_KWH


def emissions_kg(energy_kwh: float, intensity_g_per_kwh: float, pue: float = 1.0) -> float:
    """Emissions of some energy, kg CO2e: energy times power usage effectiveness times the intensity of the grid.

    Args:
        energy_kwh: energy of the devices, kWh.
        intensity_g_per_kwh: of the grid, g CO2e/kWh.
        pue: energy of the whole site over that of the devices, from 1.

    Returns:
        kg CO2e.

    Raises:
        InvalidArgument: a value below 0, or a PUE below 1.
    """
    if number("pue", pue) < 1.0:
        raise InvalidArgument(f"pue={pue!r}: expected a finite number >= 1")
    return (
        number("energy_kwh", energy_kwh, True)
        * pue
        * number("intensity_g_per_kwh", intensity_g_per_kwh, True)
        / 1000.0
    )


def joules_per_token(energy_kwh: float, tokens: float) -> float:
    """Energy over tokens, J. Raises `InvalidArgument` for energy below 0 and for no tokens."""
    return number("energy_kwh", energy_kwh, True) * J_PER_KWH / number("tokens", tokens)


def relative_quality(scores: Sequence[float], teacher: Sequence[float]) -> float:
    """Mean over the benchmarks of a student's score over its teacher's.

    Args:
        scores: of the student, one a benchmark.
        teacher: of the teacher on the same benchmarks, each above 0.

    Raises:
        InvalidArgument: other numbers of scores, or one that is no positive number.
    """
    if len(scores) != len(teacher) or not teacher:
        raise InvalidArgument(f"scores={scores!r}, teacher={teacher!r}: expected one of each a benchmark")
    ratios = [number("scores", s, True) / number("teacher", t) for s, t in zip(scores, teacher, strict=True)]
    return math.fsum(ratios) / len(ratios)


def energy_per_student(teacher_kwh: float, student_kwh: float, students: int) -> float:
    """Mean energy of a student when several share one artefact of the teacher, kWh.

    Args:
        teacher_kwh: energy of the artefact, kWh.
        student_kwh: energy of each student beside it, kWh.
        students: how many share it, at least 1.

    Returns:
        kWh.

    Raises:
        InvalidArgument: energy below 0, or no student.
    """
    shared = number("teacher_kwh", teacher_kwh, True) / whole("students", students)
    return shared + number("student_kwh", student_kwh, True)


def break_even_reuse(teacher_kwh: float, sft_kwh: float, distilled_kwh: float) -> float:
    """N*: distillation saves energy from more than so many students on, `E_teacher / (E_SFT - E_distilled)`.

    Args:
        teacher_kwh: energy of the teacher's artefact, kWh.
        sft_kwh: energy of a student by supervised fine-tuning, kWh.
        distilled_kwh: energy of the same student from the artefact, kWh.

    Returns:
        Students, not rounded; infinite where a distilled student needs no less energy than one by fine-tuning.

    Raises:
        InvalidArgument: energy below 0.
    """
    saved = number("sft_kwh", sft_kwh, True) - number("distilled_kwh", distilled_kwh, True)
    teacher_kwh = number("teacher_kwh", teacher_kwh, True)
    return teacher_kwh / saved if saved > 0.0 else math.inf


def break_even_tokens(extra_kwh: float, reference_j: float, student_j: float) -> float:
    """T*: so many served tokens repay extra energy of training, `E_extra / (j_reference - j_student)`.

    Args:
        extra_kwh: energy that the student's training took more, kWh.
        reference_j: energy of a token served by what the student replaces, J.
        student_j: energy of a token served by the student, J.

    Returns:
        Tokens; infinite where the student serves for no less.

    Raises:
        InvalidArgument: energy below 0.
    """
    saved = number("reference_j", reference_j, True) - number("student_j", student_j, True)
    extra = number("extra_kwh", extra_kwh, True) * J_PER_KWH
    return extra / saved if saved > 0.0 else math.inf


def best_pipeline(students: int, pipelines: Mapping[str, tuple[float, float]]) -> str:
    """The pipeline with the least mean energy for so many equal students; of equal ones, the first.

    Args:
        students: how many there are.
        pipelines: energy of the artefact that they would share (0: none is needed) and of each student, kWh, by name.

    Raises:
        InvalidArgument: no student, no pipeline, or energy below 0.
    """
    if not pipelines:
        raise InvalidArgument("pipelines: expected at least one")
    return min(pipelines, key=lambda name: energy_per_student(*pipelines[name], students))


@dataclass(frozen=True)
class Portfolio:
    """Which artefacts to make, and which each student uses.

    Attributes:
        open: indices of the artefacts that are used.
        uses: for each student the index of its artefact, -1: none.
        energy_kwh: of all students and of the artefacts that are made for them, kWh.
    """

    open: tuple[int, ...]
    uses: tuple[int, ...]
    energy_kwh: float


def portfolio(artefact_kwh: ArrayLike, alone_kwh: ArrayLike, distilled_kwh: ArrayLike) -> Portfolio:
    """The set of artefacts with the least energy: made artefacts plus, for each student, the cheapest way it has then.

    All sets are tried. Of equal ones the smallest wins, so that a tie is fine-tuning.

    Args:
        artefact_kwh: energy of making each artefact, kWh, [artefacts]; 0 for one that exists.
        alone_kwh: energy of each student without an artefact, kWh, [students]; infinite where it cannot do without.
        distilled_kwh: energy of each student from each artefact, kWh, [students, artefacts]; infinite where it cannot use it.

    Returns:
        Artefacts that are used, what each student uses, and the energy.

    Raises:
        InvalidArgument: shapes that do not fit, too many artefacts, energy below 0, or a student without any way.
    """
    cost = np.asarray(artefact_kwh, np.float64).reshape(-1)
    alone = np.asarray(alone_kwh, np.float64).reshape(-1)
    distilled: NDArray[Any] = np.asarray(distilled_kwh, np.float64)
    if distilled.shape != (len(alone), len(cost)):
        raise InvalidArgument(
            f"distilled_kwh has shape {distilled.shape}: expected {(len(alone), len(cost))}, students by artefacts"
        )
    if len(cost) > MOST_ARTEFACTS:
        raise InvalidArgument(f"artefact_kwh has {len(cost)} entries: at most {MOST_ARTEFACTS} can be tried")
    for name, values in (("artefact_kwh", cost), ("alone_kwh", alone), ("distilled_kwh", distilled)):
        if np.isnan(values).any() or (values < 0.0).any():
            raise InvalidArgument(f"{name}: expected energies, none below 0")
    best = Portfolio((), (), math.inf)
    for chosen in sorted(range(1 << len(cost)), key=lambda bits: (bits.bit_count(), bits)):
        opened = [a for a in range(len(cost)) if chosen >> a & 1]
        ways = np.column_stack([alone, distilled[:, opened]])
        choice = ways.argmin(axis=1)
        total = float(cost[opened].sum() + ways.min(axis=1).sum()) if len(alone) else 0.0
        if total < best.energy_kwh - 1e-9:
            best = Portfolio(tuple(opened), tuple(([-1, *opened])[k] for k in choice), total)
    if not math.isfinite(best.energy_kwh):
        raise InvalidArgument("a student has no way at all: alone_kwh and distilled_kwh are infinite")
    used = tuple(a for a in best.open if a in best.uses)
    return Portfolio(used, best.uses, best.energy_kwh)
