"""Rules for distillation programmes: what they choose, what that is worth, and the plan of `llmgym plan distill`."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmgym import baselines
from llmgym.baselines.distill.choosing import cleanest_start
from llmgym.baselines.distill.decide import Decision, Planner
from llmgym.baselines.distill.programme import BASELINES, GRIDS
from llmgym.baselines.distill.programme_file import programme_of, read_programme
from llmgym.cli import main
from llmgym.core.policy import Policy
from llmgym.envs.distill.env import DistillProgrammeEnv
from llmgym.envs.distill.published import KD, SFT, SYNTHETIC
from llmgym.envs.distill.state import MAKES, TRAINS, Observation
from llmgym.envs.memory.place.env import MemPlaceEnv
from llmgym.errors import InvalidArgument, UnknownArgument, UnknownName
from llmgym.evaluation import run_episodes

ID = "llmgym/DistillProgramme-v0"
DOCS = Path(__file__).parents[2] / "docs" / "envs"


def play(rule: str, seed: int = 0, **kwargs: Any) -> tuple[float, dict[str, float], Any]:
    """Return, metrics and last state of an episode."""
    env = DistillProgrammeEnv(invalid_action="raise", **kwargs)
    policy = baselines.make(rule, env)
    assert isinstance(policy, Policy)
    obs, info = env.reset(seed=seed)
    total, ended = 0.0, False
    while not ended:
        obs, reward, ended, _, info = env.step(int(policy.act(obs[None], info["action_mask"][None])[0]))
        total += reward
    return total, info["metrics"], env.lanes.state


def test_names_and_wrong_environment() -> None:
    assert baselines.names(ID) == list(BASELINES)
    env = DistillProgrammeEnv()
    for name, make in BASELINES.items():
        policy = make(env)
        assert policy.name == name and policy.privileged == (name == "oracle")
        with pytest.raises(InvalidArgument, match="DistillProgramme"):
            make(MemPlaceEnv())
    for wrong in ("thrifty:margin=-1", "thrifty:guard=2", "thrifty:dense=0.5", "expected-reuse:future=-1"):
        with pytest.raises(InvalidArgument, match=wrong.partition(":")[2].partition("=")[0]):
            baselines.make(wrong, env)
    for grid in GRIDS.values():
        assert all(baselines.make(one, env) is not None for one in grid)


@pytest.mark.parametrize("scenario", ["small", "real", "carbon", "stress"])
@pytest.mark.parametrize("rule", [name for name in BASELINES if name != "oracle"])
def test_no_rule_chooses_what_is_masked(rule: str, scenario: str) -> None:
    """A masked action is an error here."""
    for seed in range(3):
        play(rule, seed, scenario=scenario, horizon_days=10.0, orders_days=7.0)


def test_what_the_rules_do() -> None:
    """On twelve students of one dataset."""
    kwargs: dict[str, Any] = {
        "scenario": "paper",
        "known": 12,
        "slots": 12,
        "budget_kwh": 1000.0,
        "horizon_days": 40.0,
        "slack_days": (30.0, 30.0),
    }
    made, pipelines = {}, {}
    for rule in ("all-sft", "naive-distill", "reuse-first", "portfolio"):
        _, metrics, state = play(rule, **kwargs)
        made[rule], pipelines[rule] = metrics["artefacts"], set(state.student[0]["pipeline"].tolist())
    assert made == {"all-sft": 0.0, "naive-distill": 12.0, "reuse-first": 0.0, "portfolio": 1.0}
    assert pipelines["all-sft"] == pipelines["reuse-first"] == {SFT} and pipelines["naive-distill"] == {KD}
    assert pipelines["portfolio"] == {SYNTHETIC}


def test_reuse_first_takes_what_is_there() -> None:
    env = DistillProgrammeEnv(scenario="paper")
    policy = baselines.make("reuse-first", env)
    env.reset(seed=0)
    s = env.simulation.scenario
    making = (s.slots * 3 + 1) * 5
    obs, *_, info = env.step(making)
    env.step(int(policy.act(obs[None], info["action_mask"][None])[0]))
    assert SYNTHETIC in env.lanes.state.student[0]["pipeline"]


def test_who_expects_students_makes_artefacts_for_them() -> None:
    """Two students of 13B pay for no artefact; with ten more expected, one is made."""
    kwargs: dict[str, Any] = {
        "scenario": "small", "sizes": (0.0, 0.0, 1.0), "datasets": 1, "known": 2, "per_day": 1.0, "floor": 0.0,
        "slack_days": (6.0, 8.0), "budget_kwh": 1000.0, "split": False,
    }  # fmt: skip
    for seed in range(3):
        env = DistillProgrammeEnv(**kwargs)
        obs, info = env.reset(seed=seed)
        width = env.simulation.scenario.slots * 3 * 2
        chosen = {
            rule: int(baselines.make(rule, env).act(obs[None], info["action_mask"][None])[0])
            for rule in ("portfolio", "n-star", "expected-reuse", "expected-reuse:future=0")
        }
        assert chosen["expected-reuse"] >= width  # it makes one
        assert chosen["portfolio"] == chosen["n-star"] == chosen["expected-reuse:future=0"] < width


def test_a_budget_is_kept_by_who_looks_at_it() -> None:
    guarded = run_episodes(ID, "thrifty", 20, 0, {"scenario": "small"}).metrics["over_budget_kwh"]
    blind = run_episodes(ID, "thrifty:guard=0", 20, 0, {"scenario": "small", "budget_kwh": 150.0})
    assert guarded.max() < 15.0 and blind.metrics["over_budget_kwh"].mean() > 20.0


def test_lower_margins_cap_more_and_save_energy() -> None:
    kwargs = {"scenario": "carbon"}
    found = [run_episodes(ID, f"thrifty:margin={m}", 12, 0, kwargs).metrics for m in (0, 48, 1_000_000)]
    capped = [m["capped_share"].mean() for m in found]
    assert capped[0] > capped[1] > capped[2] == 0.0
    assert found[0]["energy_kwh"].mean() < found[2]["energy_kwh"].mean()


def test_the_cleanest_start() -> None:
    seen = np.zeros(1, Observation.dtype)
    seen["forecast"] = 0.5
    seen["forecast"][0, 10:14] = 0.1
    assert cleanest_start(seen[0], 4.0, 100.0) == 10
    assert cleanest_start(seen[0], 4.0, 8.5) == 8  # the last hour that the deadline leaves
    assert cleanest_start(seen[0], 24.0, 100.0) == 0  # a whole day is the same whenever it begins
    assert cleanest_start(seen[0], 28.0, 100.0) == 10
    assert cleanest_start(seen[0], 4.0, -3.0) == 0


def test_waiting_for_clean_hours_saves_carbon() -> None:
    kwargs = {"scenario": "carbon", "noise": 0.0, "wait_h": 1.0}
    plain = run_episodes(ID, "portfolio", 24, 0, kwargs).metrics
    clean = run_episodes(ID, "carbon-aware", 24, 0, kwargs).metrics
    assert clean["co2_g_per_kwh"].mean() < plain["co2_g_per_kwh"].mean() - 2.0
    assert clean["energy_kwh"].mean() == pytest.approx(plain["energy_kwh"].mean(), rel=0.05)


def test_the_order_of_the_rules_on_the_small_scenario() -> None:
    names = ("thrifty", "expected-reuse", "portfolio", "reuse-first", "random", "all-sft")
    mean = {name: run_episodes(ID, name, 60, 500, {"scenario": "small"}).returns.mean() for name in names}
    assert mean["thrifty"] > 1.1 * mean["portfolio"] > 0.0
    assert mean["portfolio"] > mean["random"] > mean["all-sft"]


@pytest.mark.slow
def test_foresight_is_worth_something_in_small_programmes() -> None:
    """The oracle's roll-out is never worse than the rule it goes on with, and leaves its own world as it is."""
    kwargs = {"scenario": "small", "orders_days": 5.0, "horizon_days": 8.0}
    rule = run_episodes(ID, "thrifty", 6, 10_000, kwargs).returns
    oracle = run_episodes(ID, "oracle", 6, 10_000, kwargs).returns
    assert (oracle >= rule - 1e-6).all() and oracle.mean() > rule.mean() + 1.0


@pytest.mark.slow
def test_room_between_the_tuned_rule_and_foresight() -> None:
    """The default scenario has at least 5 % to be won."""
    kwargs = {"scenario": "small"}
    tuned = max(run_episodes(ID, one, 60, 90_000, kwargs).returns.mean() for one in GRIDS["thrifty"])
    best = next(
        one for one in GRIDS["thrifty"] if run_episodes(ID, one, 60, 90_000, kwargs).returns.mean() == tuned
    )
    rule = run_episodes(ID, best, 24, 10_000, kwargs).returns.mean()
    assert run_episodes(ID, "oracle", 24, 10_000, kwargs).returns.mean() > 1.05 * rule


# llmgym plan distill

STUDENT = {"size": "13B", "dataset": "math"}


def decide(**table: Any) -> tuple[Planner, Decision]:
    planner = Planner(programme_of({"split": False, **table}))
    return planner, planner.decide()


@pytest.mark.parametrize(
    ("sizes", "kwh", "made"),
    [
        (["1B", "7B", "13B"], 60.36, ()),
        (["1B", "7B", "13B"] * 2, 116.53, (3,)),
        (["13B"] * 2, 68.83, ()),
        (["13B"] * 3, 100.16, (3,)),
        (["1B"] * 11, 72.20, (2,)),
    ],
)
def test_plans_of_one_dataset(sizes: list[str], kwh: float, made: tuple[int, ...]) -> None:
    """The published programmes, with as many GPUs as there are."""
    _, found = decide(gpus=2, student=[{"size": size, "dataset": "math"} for size in sizes])
    assert found.energy_kwh == pytest.approx(kwh, abs=0.0051)
    assert found.made == made and not found.late and not found.impossible


def test_a_floor_and_a_deadline_force_fine_tuning() -> None:
    _, found = decide(student=[{**STUDENT, "count": 3, "floor": 0.88}])
    assert found.made == () and found.energy_kwh == pytest.approx(103.06, abs=0.006)
    _, found = decide(student=[{**STUDENT, "count": 3, "deadline_h": 60.0}], gpus=3)
    assert found.made == () and not found.late
    _, found = decide(student=[{**STUDENT, "count": 3, "deadline_h": 80.0}], gpus=3)
    assert (
        found.made == (3,) and not found.late
    )  # 3 h of data, 26.5 h of text, 43.2 h of training, 2.7 h of evaluation


def test_an_artefact_that_is_there_is_used() -> None:
    _, found = decide(student=[STUDENT], artefacts=["synthetic text of math"])
    assert found.made == ()
    job = found.training(0)
    assert job is not None and job.pipeline == SYNTHETIC


def test_caps_are_lowered_where_deadlines_leave_time() -> None:
    loose = decide(student=[STUDENT], caps=[500.0, 300.0])[1]
    tight = decide(student=[{**STUDENT, "deadline_h": 57.0}], caps=[500.0, 300.0])[1]
    hard = decide(student=[{**STUDENT, "deadline_h": 56.0}], caps=[500.0, 300.0])[1]
    assert [plan.jobs[0].cap for plan in (loose, tight, hard)] == [2, 0, 0] and not hard.late
    assert loose.energy_kwh < tight.energy_kwh == hard.energy_kwh
    assert decide(student=[{**STUDENT, "deadline_h": 64.0}], caps=[500.0, 300.0])[1].jobs[0].cap == 1


def test_schedules_hold_together() -> None:
    """No two jobs at once on a GPU; who is distilled begins after the artefact; late is who ends late."""
    table = [
        {"size": size, "dataset": data, "deadline_h": hours, "count": 2}
        for size, data, hours in (
            ("13B", "math", 150.0),
            ("7B", "math", 90.0),
            ("1B", "code", 20.0),
            ("7B", "tulu", 40.0),
        )
    ]
    for gpus in (1, 2, 4):
        planner, found = decide(student=table, gpus=gpus, caps=[400.0])
        edges = sorted(
            [(job.begin_h, 1) for job in found.jobs] + [(job.end_h, -1) for job in found.jobs],
            key=lambda e: (round(e[0], 6), e[1]),
        )
        assert max(np.cumsum([step for _, step in edges])) <= gpus
        made = {job.which: job.end_h for job in found.jobs if job.kind == MAKES}
        trained = [job for job in found.jobs if job.kind == TRAINS]
        assert sorted(job.which for job in trained) == list(range(8))
        for job in trained:
            order = planner.programme.orders[job.which]
            need = planner.artefact(job.pipeline, order)
            assert need < 0 or made[need] <= job.begin_h + 1e-9
            assert (job.which in found.late) == (job.end_h > order.deadline_h + 1e-9)
        assert found.energy_kwh == pytest.approx(math.fsum(job.energy_kwh for job in found.jobs))


PROGRAMME = """
gpus = 2
budget_kwh = 100.0

[[student]]
name = "tutor"
size = "13B"
dataset = "math"
floor = 0.8
deadline_h = 400
count = 3

[[student]]
name = "judge"
size = "13B"
dataset = "math"
floor = 0.95

[[student]]
name = "perfect"
size = "1B"
dataset = "code"
floor = 0.9
"""


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["plan", "distill", *arguments]) == 0
    return " ".join(capsys.readouterr().out.split())


def test_the_command_tells_the_decision_and_its_reasons(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "240")
    path = tmp_path / "programme.toml"
    path.write_text(PROGRAMME)
    out = said(capsys, str(path))
    for words in (
        "Left out: perfect: no pipeline reaches its floor of 0.9; the best quality of 1B is 0.70.",
        "Make synthetic text of math; distil 3 of 5 students.",
        "3 students save 13.50 kWh, it costs 12.76; it pays from 2.8 of these on",
        "floor 0.95 is above the 0.85 of distillation",
        "saves 4.50 kWh, quality 0.85",
        "3 students may use it and would save 9.30 kWh, it costs 11.00",
        "Over budget: 36.",
    ):
        assert words in out, (words, out)
    path.write_text(PROGRAMME.replace("400", "55").replace("budget_kwh = 100.0", "budget_kwh = 500"))
    out = said(capsys, str(path))
    assert "Late: 2 of 5 students miss their deadline: tutor, tutor." in out and "The budget leaves" in out
    assert "Make nothing" in out
    json_path = tmp_path / "programme.json"
    json_path.write_text('{"student": [{"size": "1B", "dataset": "code"}], "artefacts": ["logits of code"]}')
    out = said(capsys, str(json_path))
    assert (
        "1 student uses it, at no cost of its own" in out and "Make nothing; distil 1 of 1 students." in out
    )


def test_a_name_is_printed_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "programme.json"
    path.write_text(
        '{"student": [{"size": "1B", "dataset": "code", "name": "[/x] [bold]", "deadline_h": 1}]}'
    )
    assert "[/x] [bold]" in said(capsys, str(path))


def test_the_page_shows_what_the_command_prints(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "118")
    assert main(["plan", "distill", str(DOCS / "distill_programme.toml")]) == 0
    told = "\n".join(line.rstrip() for line in capsys.readouterr().out.splitlines())
    page, file = ((DOCS / f"distill_programme.{kind}").read_text(encoding="utf-8") for kind in ("md", "toml"))
    assert f"```\n{told}\n```" in page
    begins = page.partition("```toml\n")[2].partition("```")[0]
    assert begins in file


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        ("p.toml", None, "cannot be read: No such file"),
        ("p.yaml", "gpus: 2", "expected a file that ends in .toml or .json"),
        ("p.toml", "gpus = ", "this is no TOML"),
        ("p.json", "{", "this is no JSON"),
        ("p.json", "[]", "expected a table"),
        ("p.json", b"\xff\xfe", "this is no JSON"),
        ("p.toml", "gpus = 2", "student: expected at least one"),
        ("p.toml", "student = 3", "student: expected at least one"),
        ("p.toml", "gpu = 2", "'gpu'. Did you mean 'gpus'?"),
        ("p.toml", "student = [3]", "student 1: expected a table"),
        ("p.toml", '[[student]]\nsize = "1B"', "student 1: needs 'dataset'"),
        ("p.toml", '[[student]]\nsize = "2B"\ndataset = "math"', "size of student 1 '2B'"),
        ("p.toml", '[[student]]\nsize = "1B"\ndataset = "maths"', "Did you mean 'math'?"),
        ("p.toml", '[[student]]\nsize = "1B"\ndataset = "math"\nflor = 1', "Did you mean 'floor'?"),
        ("p.toml", '[[student]]\nsize = "1B"\ndataset = "math"\nfloor = -1', "floor of student 1=-1"),
        ("p.toml", '[[student]]\nsize = "1B"\ndataset = "math"\ndeadline_h = 0', "deadline_h of student 1=0"),
        (
            "p.toml",
            '[[student]]\nsize = "1B"\ndataset = "math"\ndeadline_h = nan',
            "deadline_h of student 1=nan",
        ),
        ("p.toml", '[[student]]\nsize = "1B"\ndataset = "math"\ncount = 1.5', "count of student 1=1.5"),
        (
            "p.toml",
            '[[student]]\nsize = "1B"\ndataset = "math"\ncount = 59\n[[student]]\nsize = "1B"\ndataset = "math"\ncount = 9',
            "68 students",
        ),
        ("p.toml", '[[student]]\nsize = "1B"\ndataset = "math"\nname = ""', "name of student 1=''"),
        ("p.toml", 'gpus = 9\n[[student]]\nsize = "1B"\ndataset = "math"', "gpus=9"),
        ("p.toml", 'budget_kwh = -1\n[[student]]\nsize = "1B"\ndataset = "math"', "budget_kwh=-1"),
        ("p.toml", 'caps = [800]\n[[student]]\nsize = "1B"\ndataset = "math"', "caps=[800]"),
        ("p.toml", 'caps = 400\n[[student]]\nsize = "1B"\ndataset = "math"', "caps=400: expected a list"),
        (
            "p.toml",
            'artefacts = ["logits"]\n[[student]]\nsize = "1B"\ndataset = "math"',
            "artefacts 'logits'",
        ),
        ("p.toml", 'power = "h900/kernels"\n[[student]]\nsize = "1B"\ndataset = "math"', "h900/kernels"),
        ("p.toml", 'power = 3\n[[student]]\nsize = "1B"\ndataset = "math"', "power=3"),
        ("p.toml", 'split = 1\n[[student]]\nsize = "1B"\ndataset = "math"', "split=1"),
        ("p.toml", 'pue = 0.5\n[[student]]\nsize = "1B"\ndataset = "math"', "pue=0.5"),
    ],
)
def test_a_wrong_file_is_one_clear_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, words: Any, message: str
) -> None:
    path = tmp_path / name
    if words is not None:
        path.write_bytes(words if isinstance(words, bytes) else words.encode())
    assert main(["plan", "distill", str(path)]) == 2
    out, error = capsys.readouterr()
    assert not out and error.startswith("llmgym: ") and error.count("\n") == 1 and message in error, error
    with pytest.raises((InvalidArgument, UnknownName, UnknownArgument)):
        Planner(read_programme(path))
