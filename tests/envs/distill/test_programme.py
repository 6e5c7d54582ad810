"""DistillProgramme: a plain simulation beside it, GPUs in order, a toy with a known optimum, events, pictures, and wrong input."""

import math
from typing import Any

import gymnasium
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import llmgym  # noqa: F401
from llmgym.envs.distill.env import DistillProgramme, DistillProgrammeEnv, artefact_kwh, may_distil
from llmgym.envs.distill.observing import decoded
from llmgym.envs.distill.published import HALF, KD, ONLINE, PIPELINES, SFT, SYNTHETIC
from llmgym.envs.distill.scenarios import SCENARIOS, Scenario
from llmgym.envs.distill.state import (
    ALLOWED,
    DONE,
    DROPPED,
    ENERGY,
    FEATURES,
    HOURS,
    MAKES,
    MARGIN,
    MOST_MADE,
    SLACK,
    WAITING,
)
from llmgym.errors import InvalidAction, InvalidArgument, LlmgymError, UnknownName
from tests.envs.distill.plain import Plain, wait

ID = "llmgym/DistillProgramme-v0"
SURE: dict[str, Any] = {"noise": 0.0, "quality_noise": 0.0, "value_spread": 0.0}


def act(env: DistillProgrammeEnv, slot: int = 0, pipeline: int = 0, cap: int = 0) -> int:
    """The action that starts the student of a slot with the k-th pipeline."""
    s = env.simulation.scenario
    return (slot * len(s.pipelines) + pipeline) * (1 + len(s.caps)) + cap


def make_it(env: DistillProgrammeEnv, artefact: int, cap: int = 0) -> int:
    """The action that makes an artefact."""
    s = env.simulation.scenario
    return (s.slots * len(s.pipelines) + artefact) * (1 + len(s.caps)) + cap


@pytest.mark.parametrize("scenario", ["small", "paper", "carbon"])
def test_a_plain_simulation_agrees(scenario: str) -> None:
    """Random choices: a simulation of lists gives the same clock, slots, energy, emissions, value and rewards."""
    env = DistillProgrammeEnv(scenario=scenario, idle_w=40.0, carbon_weight=0.3, budget_kwh=150.0)
    rng = np.random.default_rng(0)
    for seed in range(4):
        _, info = env.reset(seed=seed)
        plain, total, ended = Plain(env), 0.0, False
        while not ended:
            seen = [int(i) for i in env.lanes.state.slot[0] if i >= 0]
            assert seen == plain.slots()
            action = int(rng.choice(np.flatnonzero(info["action_mask"])))
            _, reward, ended, _, info = env.step(action)
            total += reward
            plain.step(action)
            assert plain.clock == pytest.approx(env.lanes.state.lane[0]["clock_h"], abs=1e-6)
            assert plain.over() == ended
        metrics = info["metrics"]
        assert metrics["energy_kwh"] == pytest.approx(plain.kwh, rel=1e-6)
        assert metrics["co2_kg"] == pytest.approx(plain.kg, rel=1e-6)
        assert metrics["value"] == pytest.approx(plain.value)
        price = 0.3 * plain.kg + env.simulation.scenario.energy_weight * plain.kwh
        assert total == pytest.approx(plain.value - price - 5.0 * max(plain.kwh - 150.0, 0.0), rel=1e-6)


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**40), choices=st.integers(0, 2**40))
def test_a_gpu_runs_one_job_and_nobody_is_distilled_before_the_artefact(seed: int, choices: int) -> None:
    env = DistillProgrammeEnv(scenario="real", horizon_days=12.0, orders_days=8.0)
    _, info = env.reset(seed=seed)
    rng, ended = np.random.default_rng(choices), False
    while not ended:
        *_, ended, _, info = env.step(int(rng.choice(np.flatnonzero(info["action_mask"]))))
    state = env.lanes.state
    jobs, students = state.job[0][: state.lane[0]["jobs"]], state.student[0]
    for gpu in range(4):
        mine = jobs[jobs["gpu"] == gpu]
        assert (mine["begin_h"][1:] >= mine["end_h"][:-1, 2]).all()
    first = {d: True for d in range(3)}
    for job in jobs:
        assert (np.diff([job["begin_h"], *job["end_h"]]) >= 0.0).all()
        student = students[job["which"]]
        dataset = int(job["which"]) // 2 if job["kind"] == MAKES else int(student["dataset"])
        assert (job["end_h"][0] > job["begin_h"]) == first[dataset]
        first[dataset] = False
        if job["kind"] != MAKES and student["pipeline"] in (KD, SYNTHETIC):
            artefact = 2 * dataset + (student["pipeline"] == SYNTHETIC)
            made = jobs[(jobs["kind"] == MAKES) & (jobs["which"] == artefact)]
            assert (made["end_h"][:, 2] <= job["begin_h"] + 1e-9).any()
            assert (made["version"][made["end_h"][:, 2] <= job["begin_h"] + 1e-9] == job["version"]).any()


def best_return(env: DistillProgrammeEnv) -> tuple[float, int, list[int]]:
    """The largest return over all sequences of unmasked actions but waiting, how many there are, and the best of them."""
    arrays = [*env.lanes.state, *env.lanes.buffers]

    def search() -> tuple[float, int, list[int]]:
        kept = [array.copy() for array in arrays]
        best, leaves, found = -math.inf, 0, []
        allowed = np.flatnonzero(env.action_masks()[:-1]).tolist()
        for action in allowed or [wait(env)]:
            _, reward, ended, _, _ = env.step(action)
            rest, below, after = (0.0, 1, []) if ended else search()
            leaves += below
            if reward + rest > best:
                best, found = reward + rest, [action, *after]
            for array, old in zip(arrays, kept, strict=True):
                array[...] = old
        return best, leaves, found

    return search()


@pytest.mark.parametrize(
    ("known", "floor", "kwh", "pipeline"),
    [(2, 0.0, 68.83, SFT), (3, 0.0, 100.16, SYNTHETIC), (3, 0.9, 103.06, SFT)],
)
def test_the_optimum_of_a_toy_programme(known: int, floor: float, kwh: float, pipeline: int) -> None:
    """I12. Students of 13B on one dataset: two are fine-tuned, three share synthetic text, unless a floor forbids it.

    All sequences of actions are tried; what is left of the best one is value less a price of 1 for each kWh.
    """
    env = DistillProgrammeEnv(
        scenario="paper",
        **SURE,
        known=known,
        sizes=(0.0, 0.0, 1.0),
        floor=floor,
        energy_weight=1.0,
        value=20.0,
        over_weight=0.0,
        horizon_days=9.0,
        slack_days=(9.0, 9.0),
        caps=(),
        slots=1,
    )
    env.reset(seed=0)
    best, leaves, actions = best_return(env)
    assert leaves > 50
    assert best == pytest.approx(60.0 * known - kwh, abs=0.006)
    env.reset(seed=0)
    for action in actions:
        env.step(action)
    assert (env.lanes.state.student[0]["pipeline"] == pipeline).all()


def test_what_a_candidate_says_comes_true() -> None:
    """Without noise: time, energy, slack and margin of each chosen row are those of the job."""
    env = DistillProgrammeEnv(scenario="stress", **SURE, hard=False, teacher_per_day=0.0, idle_w=0.0, gpus=1)
    obs, info = env.reset(seed=4)
    rng, ended, checked = np.random.default_rng(1), False, 0
    while not ended:
        action = int(rng.choice(np.flatnonzero(info["action_mask"])))
        rows = obs[env.layout["candidate"]].reshape(-1, FEATURES).astype(np.float64)
        assert (rows[:, ALLOWED] == info["action_mask"]).all()
        before = env.lanes.state.lane[0].copy()
        slot, pipeline, _ = decoded(env.simulation.params, action)
        students = env.lanes.state.student[0]
        student = students[env.lanes.state.slot[0, slot]].copy() if slot >= 0 else None
        obs, _, ended, _, info = env.step(action)
        if action == wait(env) or ended:
            continue
        after, row = env.lanes.state.lane[0], rows[action]
        hours, kwh = after["clock_h"] - before["clock_h"], after["energy_kwh"] - before["energy_kwh"]
        assert 48.0 * row[HOURS] / (1.0 - row[HOURS]) == pytest.approx(hours, rel=1e-4)
        assert 100.0 * row[ENERGY] == pytest.approx(kwh, rel=1e-4)
        if student is not None:
            slack = student["deadline_h"] - after["clock_h"]
            assert row[SLACK] == pytest.approx(slack / (abs(slack) + 48.0), abs=1e-4)
            over = env.simulation.params.quality[pipeline, student["size"]] - student["floor"]
            assert row[MARGIN] == pytest.approx(np.clip(over / 0.3, -1.0, 1.0), abs=1e-5)
        checked += 1
    assert checked > 5


def test_who_is_expected() -> None:
    """The posterior of the datasets' shares, times the sizes' shares, times what is ordered in the days that are left."""
    env = DistillProgrammeEnv(scenario="small", sizes=(2.0, 1.0, 1.0), concentration=2.0)
    obs, _ = env.reset(seed=3)
    known = env.lanes.state.student[0][:6]
    seen = np.bincount(known["dataset"], minlength=3)
    share = (seen + 2.0) / (6 + 6.0)
    expected = 1.4 * 10.0 * np.outer([0.5, 0.25, 0.25], share).ravel()
    shown = obs[env.layout["expected"]].astype(np.float64)
    assert 4.0 * shown / (1.0 - shown) == pytest.approx(expected, rel=1e-5)


def test_students_come_as_often_as_they_should() -> None:
    numbers, shares = [], []
    env = DistillProgrammeEnv(scenario="small", concentration=1e6)
    for seed in range(300):
        env.reset(seed=seed)
        drawn = env.lanes.state.student[0][: env.lanes.state.lane[0]["students"]]
        numbers.append(len(drawn) - 6)
        shares += drawn["dataset"].tolist()
        assert (drawn["deadline_h"] <= 14 * 24.0).all() and (np.diff(drawn["arrival_h"]) >= 0.0).all()
    assert np.mean(numbers) == pytest.approx(14.0, abs=3.0 * math.sqrt(14.0 / 300))
    assert np.var(numbers) == pytest.approx(14.0, rel=0.3)
    assert np.bincount(shares) / len(shares) == pytest.approx([1 / 3] * 3, abs=0.03)


def test_chances_that_a_floor_lets_a_student_be_distilled() -> None:
    simulation = DistillProgramme(scenario="small")
    assert simulation.params.may[2, 1] == pytest.approx((0.25 - 0.14) / 0.22)
    assert simulation.params.may[0].tolist() == [1.0, 1.0]
    fixed = Scenario("none", floor=0.8)
    assert may_distil(fixed, simulation.params.quality).tolist() == [[0, 0], [0, 1], [1, 1]]


def test_a_hard_budget_ends_the_episode_where_it_is_used_up() -> None:
    env = DistillProgrammeEnv(scenario="paper", hard=True, budget_kwh=20.0, floor=0.0)
    env.reset(seed=0)
    ended, total = False, 0.0
    while not ended:
        _, reward, ended, _, info = env.step(act(env))
        total += reward
    assert info["metrics"]["energy_kwh"] == pytest.approx(20.0, rel=1e-12)
    assert info["metrics"]["over_budget_kwh"] == 0.0
    assert total == pytest.approx(info["metrics"]["value"] - 2.0)


def test_a_new_teacher_makes_artefacts_worthless() -> None:
    env = DistillProgrammeEnv(scenario="paper", teacher_per_day=1.0, noise=0.0)
    for seed in range(6):
        env.reset(seed=seed)
        change = float(env.lanes.state.lane[0]["change_h"])
        hours = float(env.simulation.params.make_h[0, 0] + env.simulation.params.config[0]["prepare_h"])
        env.step(make_it(env, 0))
        ready = bool(env.lanes.state.artefact[0, 0]["ready"])
        assert ready == (change > hours) and not env.lanes.state.artefact[0, 0]["making"]
        if ready:
            assert env.action_masks()[act(env, 0, KD)]
            while float(env.lanes.state.lane[0]["clock_h"]) < change:
                env.step(wait(env))
            assert not env.action_masks()[act(env, 0, KD)]


def test_the_oldest_artefact_makes_room() -> None:
    env = DistillProgrammeEnv(scenario="paper", datasets=3, storage_gb=36.1)
    env.reset(seed=0)
    for artefact, ready in ((0, [0]), (3, [0, 3]), (2, [0, 2, 3]), (4, [2, 3, 4]), (2, [2, 3, 4])):
        env.step(make_it(env, artefact))
        assert np.flatnonzero(env.lanes.state.artefact[0]["ready"]).tolist() == ready


def test_who_is_not_started_is_dropped() -> None:
    env = DistillProgrammeEnv(scenario="paper", slack_days=(0.0, 0.0), horizon_days=6.0)
    env.reset(seed=0)
    ended = False
    while not ended:
        *_, ended, _, info = env.step(wait(env))
    assert info["metrics"]["dropped"] == 10.0 and info["metrics"]["energy_kwh"] == 0.0
    assert (env.lanes.state.student[0]["status"] == DROPPED).all()
    assert math.isnan(info["metrics"]["quality_mean"])


def test_every_pipeline_needs_what_it_should() -> None:
    """One student of 1B on prepared data each: energy of half the data, and of a teacher beside its student."""
    for name, kwh in (("half", 0.5 * 6.30), ("online", 5.20 + 2.0 * 0.95 * 11.0)):
        pipelines = ("sft", name)
        env = DistillProgrammeEnv(
            scenario="paper",
            **SURE,
            pipelines=pipelines,
            epochs=2.0,
            sizes=(1.0, 0.0, 0.0),
            known=1,
            floor=0.0,
        )
        env.reset(seed=0)
        *_, info = env.step(act(env, 0, 1))
        assert info["metrics"]["energy_kwh"] == pytest.approx(0.37 + kwh + 0.33)
        assert env.lanes.state.student[0, 0]["pipeline"] == (HALF if name == "half" else ONLINE)
        assert info["metrics"]["quality_mean"] == pytest.approx(0.64 if name == "half" else 0.70)


def test_text_costs_by_dataset() -> None:
    split = artefact_kwh(True)
    assert split[[1, 3, 5]].mean() == pytest.approx(10.6) and split[3] / split[5] == pytest.approx(
        4.43 / 2.77
    )
    assert artefact_kwh(False).tolist() == [11.0, 10.6] * 3 and (split[::2] == 11.0).all()


def test_caps_that_change_nothing_are_masked() -> None:
    """KD of 1B draws 218 W: no cap matters. Fine-tuning draws more than every cap."""
    env = DistillProgrammeEnv(scenario="paper", sizes=(1.0, 0.0, 0.0))
    env.reset(seed=0)
    env.step(make_it(env, 0, 4))
    mask = env.action_masks()
    assert mask[[act(env, 0, SFT, c) for c in range(5)]].all()
    assert mask[[act(env, 0, KD, c) for c in range(5)]].tolist() == [True, False, False, False, False]
    assert mask[[make_it(env, 1, c) for c in range(5)]].tolist() == [True, False, False, False, True]
    assert not mask[make_it(env, 2)]  # no second dataset


def test_no_more_artefacts_than_there_is_room_to_remember() -> None:
    env = DistillProgrammeEnv(scenario="paper", horizon_days=60.0, slack_days=(60.0, 60.0), gpus=4)
    env.reset(seed=0)
    env.lanes.state.lane["begun"][0] = MOST_MADE
    env.lanes.state.lane["jobs"][0] = MOST_MADE
    env.step(wait(env))
    assert not env.action_masks()[make_it(env, 0)] and env.action_masks()[act(env)]


def test_waiting() -> None:
    """While students wait it takes `wait_h`; with nobody there it goes on to the next order."""
    env = DistillProgrammeEnv(scenario="small", known=1, gpus=2, teacher_per_day=0.0, noise=0.0)
    env.reset(seed=1)
    *_, info = env.step(wait(env))
    assert info["dt"] == 3.0 * 3600.0
    *_, info = env.step(act(env))
    assert info["dt"] == 0.0  # the other GPU is free
    coming = float(env.lanes.state.student[0, 1]["arrival_h"])
    end = float(env.lanes.state.job[0, 0]["end_h"][2])
    env.step(wait(env))
    assert env.lanes.state.lane[0]["clock_h"] == pytest.approx(min(coming, end))


def test_a_masked_action_waits_and_costs() -> None:
    env = DistillProgrammeEnv(scenario="small", per_day=0.0, invalid_cost=0.5)
    env.reset(seed=0)
    _, reward, _, _, info = env.step(act(env, 0, KD))
    assert reward == -0.5 and info["dt"] == 3.0 * 3600.0
    assert env.metrics()["invalid_actions"] == 1.0 and env.metrics()["waits"] == 0.0
    strict = DistillProgrammeEnv(scenario="small", invalid_action="raise")
    strict.reset(seed=0)
    with pytest.raises(InvalidAction, match="masked"):
        strict.step(act(strict, 0, KD))


def test_slots_are_the_earliest_deadlines() -> None:
    env = DistillProgrammeEnv(scenario="stress")
    _, info = env.reset(seed=2)
    rng, ended = np.random.default_rng(0), False
    while not ended:
        students = env.lanes.state.student[0]
        waits = np.flatnonzero(students["status"] == WAITING)
        order = waits[np.argsort(students["deadline_h"][waits], kind="stable")][:6]
        shown = env.lanes.state.slot[0]
        assert shown[shown >= 0].tolist() == order.tolist()
        *_, ended, _, info = env.step(int(rng.choice(np.flatnonzero(info["action_mask"]))))
    assert (env.lanes.state.student[0]["status"] == DONE).any()


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_pictures_and_texts(scenario: str) -> None:
    env = DistillProgrammeEnv(scenario=scenario, render_mode="rgb_array")
    _, info = env.reset(seed=1)
    assert env.render().shape == (640, 940, 3)  # before anything has happened
    rng = np.random.default_rng(0)
    for _ in range(12):
        *_, ended, _, info = env.step(int(rng.choice(np.flatnonzero(info["action_mask"]))))
        if ended:
            break
    frame = env.render()
    assert frame.shape == (640, 940, 3) and frame.dtype == np.uint8 and frame.std() > 10
    words = env.simulation.render(env.lanes.state, 0, "ansi")
    assert "kWh" in words and "GPU 0" in words and "artefacts:" in words


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_lane_is_small(scenario: str) -> None:
    state = DistillProgramme(scenario=scenario).allocate(1)
    assert sum(array.nbytes for array in state) <= 32 * 1024


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"known": 0}, "known=0"),
        ({"per_day": -1.0}, "per_day=-1.0"),
        ({"per_day": 20.0}, "per_day=20.0.*students"),
        ({"orders_days": 15.0}, "orders_days=15.0"),
        ({"horizon_days": 0.0}, "horizon_days=0.0"),
        ({"gpus": 5}, "gpus=5"),
        ({"sizes": (1.0, 1.0)}, "sizes"),
        ({"sizes": (0.0, 0.0, 0.0)}, "sizes"),
        ({"sizes": (1.0, math.nan, 1.0)}, "sizes=nan"),
        ({"datasets": 4}, "datasets=4"),
        ({"concentration": 0.0}, "concentration=0.0"),
        ({"slack_days": (3.0, 2.0)}, "slack_days"),
        ({"slack_days": 3.0}, "slack_days=3.0"),
        ({"slack_days": (3.0, "x")}, "slack_days"),
        ({"floor_gap": (0.2, 0.1)}, "floor_gap"),
        ({"floor": -0.1}, "floor=-0.1"),
        ({"value": 0.0}, "value=0.0"),
        ({"value_spread": 1.5}, "value_spread=1.5"),
        ({"noise": -0.1}, "noise=-0.1"),
        ({"budget_kwh": 0.0}, "budget_kwh=0.0"),
        ({"hard": 1}, "hard=1"),
        ({"energy_weight": math.inf}, "energy_weight=inf"),
        ({"pue": 0.9}, "pue=0.9"),
        ({"grid": "mars"}, "grid.*mars"),
        ({"month": 13}, "month=13"),
        ({"power": "h900/kernels"}, "h900/kernels"),
        ({"idle_w": -1.0}, "idle_w=-1.0"),
        ({"caps": (400.0, 500.0)}, "caps"),
        ({"caps": (700.0,)}, "caps"),
        ({"caps": (100.0,)}, "caps"),
        ({"caps": 400.0}, "caps=400.0"),
        ({"pipelines": ("kd",)}, "pipelines"),
        ({"pipelines": ("sft", "sft")}, "pipelines"),
        ({"pipelines": ("sft", "magic")}, "magic"),
        ({"epochs": 0.0}, "epochs=0.0"),
        ({"storage_gb": 5.0}, "storage_gb=5.0"),
        ({"teacher_per_day": 2.0}, "teacher_per_day=2.0"),
        ({"slots": 0}, "slots=0"),
        ({"wait_h": 0.0}, "wait_h=0.0"),
        ({"scenario": "huge"}, "scenario.*huge"),
        ({"students": 3}, "students"),
    ],
)
def test_wrong_input_is_named(arguments: dict[str, Any], match: str) -> None:
    with pytest.raises((InvalidArgument, UnknownName, LlmgymError), match=match):
        DistillProgramme(**arguments)


@pytest.mark.parametrize("action", [10_000, -1, 0.5, np.nan, None, "sft"])
def test_actions_that_are_none(action: Any) -> None:
    env = gymnasium.make(ID).unwrapped
    env.reset(seed=0)
    with pytest.raises(InvalidAction):
        env.step(action)


def test_all_pipelines_have_a_name() -> None:
    assert len(PIPELINES) == len(DistillProgramme(pipelines=PIPELINES).params.pipelines) == 5
