"""Closed forms of distillation: properties, facility location against brute force, power caps, measured power, the grid."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmgym.envs.distill.grid import (
    CALIFORNIA,
    DAY_MEMORY,
    DAY_SPREAD,
    draw_days,
    forecast_g,
    intensity_g,
    monthly,
)
from llmgym.envs.distill.law import (
    best_pipeline,
    break_even_reuse,
    break_even_tokens,
    emissions_kg,
    energy_per_student,
    joules_per_token,
    portfolio,
    relative_quality,
    stage_energy_kwh,
)
from llmgym.envs.distill.power import capped, powers, training_kwh
from llmgym.envs.distill.published import HALF, KD, ONLINE, SFT, STUDENT_KWH, STUDENT_W, SYNTHETIC
from llmgym.errors import InvalidArgument, UnknownName

kwh = st.floats(0.1, 100.0)


@given(teacher=kwh, sft=kwh, distilled=kwh, students=st.integers(1, 100))
def test_distillation_saves_exactly_beyond_the_break_even(
    teacher: float, sft: float, distilled: float, students: int
) -> None:
    n = break_even_reuse(teacher, sft, distilled)
    if math.isfinite(n) and abs(students - n) < 1e-6 * n:
        return
    assert (students > n) == (energy_per_student(teacher, distilled, students) < sft)
    ways = {"sft": (0.0, sft), "kd": (teacher, distilled)}
    assert (best_pipeline(students, ways) == "kd") == (students > n)


@settings(max_examples=60)
@given(data=st.data(), artefacts=st.integers(0, 3), students=st.integers(0, 4))
def test_the_portfolio_is_the_best_of_all_assignments(data: Any, artefacts: int, students: int) -> None:
    cost = [data.draw(kwh) for _ in range(artefacts)]
    alone = [data.draw(kwh) for _ in range(students)]
    maybe = st.one_of(kwh, st.just(math.inf))
    distilled = [[data.draw(maybe) for _ in range(artefacts)] for _ in range(students)]
    found = portfolio(cost, alone, np.array(distilled).reshape(students, artefacts))
    best = math.inf
    for uses in itertools.product(range(-1, artefacts), repeat=students):
        total = sum(cost[a] for a in set(uses) - {-1})
        total += sum(alone[i] if a < 0 else distilled[i][a] for i, a in enumerate(uses))
        best = min(best, total)
    assert found.energy_kwh == pytest.approx(best, rel=1e-9)
    assert set(found.uses) - {-1} == set(found.open)


def test_a_tie_is_fine_tuning() -> None:
    assert portfolio([3.0], [2.0, 2.0, 2.0], [[1.0]] * 3).open == ()
    assert portfolio([2.9], [2.0, 2.0, 2.0], [[1.0]] * 3).open == (0,)
    assert portfolio([0.0, 5.0], [2.0], [[1.0, 0.5]]) == portfolio([0.0], [2.0], [[1.0]])


@given(power=st.floats(100.0, 700.0), cap=st.floats(150.0, 700.0), bound=st.floats(0.0, 1.0))
def test_a_cap_saves_energy_and_takes_time(power: float, cap: float, bound: float) -> None:
    watts, hours = capped(power, 10.0, bound, cap)
    assert watts == min(power, cap)
    if cap >= power:
        assert hours == 10.0
    else:
        clock = ((cap - 70.0) / (power - 70.0)) ** (1.0 / 3.0)
        assert hours == pytest.approx(10.0 * (1.0 - bound + bound / clock))
        assert hours >= 10.0 and watts * hours < power * 10.0


def test_a_cap_of_400_w_does_nothing_to_kd_of_small_students() -> None:
    assert [capped(STUDENT_W[KD][k], 1.0, 0.3, 400.0)[1] == 1.0 for k in range(3)] == [True, True, False]


def test_measured_power_where_it_has_the_stage() -> None:
    """Training and prefill of a layer run at the limit, decode below it; distillation from cached logits was not measured."""
    paper, measured = powers(), powers("h100/kernels")
    assert measured.student[SFT].tolist() == pytest.approx([692.3] * 3) and measured.logits == 692.5
    assert measured.text == 453.9 and measured.static == 133.0
    assert (measured.student[KD] == paper.student[KD]).all() and (measured.student <= 700.0).all()
    assert (paper.student[HALF] == paper.student[SFT]).all()
    assert (paper.student[ONLINE] > paper.student[KD]).all() and (paper.student[ONLINE] < paper.logits).all()
    with pytest.raises(UnknownName, match="h900"):
        powers("h900/kernels")


def test_energy_of_pipelines_without_published_numbers() -> None:
    found = training_kwh(2.0)
    assert found[HALF] == pytest.approx(0.5 * found[SFT])
    assert found[ONLINE] - found[KD] == pytest.approx([2 * 0.95 * 11.0] * 3)
    assert (found[SYNTHETIC] == STUDENT_KWH[SYNTHETIC]).all()


def test_the_grid_of_california() -> None:
    """The sun: cleanest at noon in every month, half of the evening in spring; a mean of 227 g/kWh."""
    means = monthly("california", 1.0)
    assert means.shape == (12, 24) and (means == np.array(CALIFORNIA)).all()
    assert means.mean() == pytest.approx(226.6, abs=0.1)
    assert all(8 <= hour <= 14 for hour in means.argmin(axis=1))
    assert means[3].min() / means[3].max() == pytest.approx(0.51, abs=0.01)
    assert (monthly("flat", 250.0) == 250.0).all()


def test_days_are_as_far_from_their_month_and_as_alike_as_measured() -> None:
    days = np.zeros(20_000)
    draw_days(np.uint64(7), DAY_SPREAD, 0, 0.0, days)
    assert days.std() == pytest.approx(DAY_SPREAD, rel=0.05)
    assert np.corrcoef(days[1:], days[:-1])[0, 1] == pytest.approx(DAY_MEMORY, abs=0.02)
    kept = days.copy()
    draw_days(np.uint64(8), DAY_SPREAD, 100, days[99], days)
    assert (days[:100] == kept[:100]).all() and (days[100:] != kept[100:]).all()


def test_the_forecast_knows_today_and_half_forgets_tomorrow() -> None:
    means, days = monthly("california", 1.0), np.array([0.2, -0.3, 0.1])
    assert forecast_g(means, days, 4, 10, 5) == intensity_g(means, days, 4, 15)
    assert forecast_g(means, days, 4, 20, 8) == pytest.approx(means[4, 4] * math.exp(0.2 * DAY_MEMORY))


def test_quality_and_emissions() -> None:
    assert relative_quality([30.0, 20.0], [40.0, 50.0]) == pytest.approx(0.575)
    assert emissions_kg(10.0, 300.0, 1.2) == pytest.approx(3.6)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: break_even_reuse(-1.0, 2.0, 1.0), "teacher_kwh=-1.0"),
        (lambda: break_even_reuse(1.0, math.nan, 1.0), "sft_kwh=nan"),
        (lambda: break_even_tokens(1.0, 1.0, -2.0), "student_j=-2.0"),
        (lambda: energy_per_student(1.0, 1.0, 0), "students=0"),
        (lambda: joules_per_token(1.0, 0.0), "tokens=0.0"),
        (lambda: emissions_kg(1.0, 1.0, 0.9), "pue=0.9"),
        (lambda: relative_quality([1.0], []), "one of each"),
        (lambda: best_pipeline(3, {}), "pipelines"),
        (lambda: stage_energy_kwh([0.0, 1.0], [1.0]), "one power a time"),
        (lambda: stage_energy_kwh([1.0, 0.0], [1.0, 1.0]), "time_s"),
        (lambda: stage_energy_kwh([0.0, 1.0], [1.0, math.inf]), "power_w"),
        (lambda: stage_energy_kwh([0.0, 1.0], [1.0, 1.0], 0.5), "begin_s=0.5"),
        (lambda: stage_energy_kwh([0.0], [1.0], idle_w=-1.0), "idle_w=-1.0"),
        (lambda: portfolio([1.0], [1.0], [[1.0, 2.0]]), "students by artefacts"),
        (lambda: portfolio([1.0] * 13, [1.0], [[1.0] * 13]), "at most 12"),
        (lambda: portfolio([-1.0], [1.0], [[1.0]]), "artefact_kwh"),
        (lambda: portfolio([1.0], [math.inf], [[math.inf]]), "no way at all"),
        (lambda: capped(600.0, 1.0, 1.5, 400.0), "bound=1.5"),
        (lambda: capped(600.0, 1.0, 0.5, 60.0), "cap_w=60.0"),
        (lambda: powers("h100/llama-3.1-8b"), "h100/llama-3.1-8b"),
        (lambda: powers(epochs=0.0), "epochs=0.0"),
    ],
)
def test_wrong_input_is_named(call: Any, match: str) -> None:
    with pytest.raises((InvalidArgument, UnknownName), match=match):
        call()
