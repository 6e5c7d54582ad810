"""Validation while a policy is trained, hooks of one's own, and a beginning from another policy."""

import csv
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from llmgym import policies  # noqa: E402
from llmgym.errors import CheckpointError, InvalidArgument  # noqa: E402
from llmgym.policies import FIRST_TRAINING_SEED, FIRST_VALIDATION_SEED, Callback, Plan, checkpoint  # noqa: E402
from llmgym.policies.run import Run  # noqa: E402
from llmgym.policies.validation import mean_return  # noqa: E402
from tests.policies.test_ppo import plan  # noqa: E402
from tests.policies.toys import GUESS, TOY  # noqa: E402
from tests.policies.toys import mean_return as played  # noqa: E402
from tests.toy import ToyVectorEnv  # noqa: E402

UPDATE = 16 * 128


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> policies.TrainingResult:
    out = tmp_path_factory.mktemp("toy") / "run"
    return policies.train(plan(out, timesteps=20 * UPDATE, validation_episodes=8, validate_every=3))


def test_the_best_is_kept_and_is_as_good_as_it_was_said_to_be(run: Any) -> None:
    tried = np.isfinite(run.curve["validation_return"])
    assert (np.flatnonzero(tried) + 1).tolist() == [3, 6, 9, 12, 15, 18, 20]
    best = run.curve["validation_return"][tried].max()
    assert run.validation_return == best and run.best == run.checkpoint.parent / "best.pt"
    meta = policies.meta(run.best)
    assert meta["best_return"] == best
    assert meta["steps"] == run.curve["steps"][tried][run.curve["validation_return"][tried].argmax()]
    env = ToyVectorEnv(8, autoreset_mode="SAME_STEP")
    policy = policies.load(run.best, env)
    assert mean_return(policy, env) == best
    assert played(TOY, policy.act, lanes=8, seed=FIRST_VALIDATION_SEED) == pytest.approx(best)
    assert policies.meta(run.checkpoint.parent) == meta  # of a folder it is the best one that plays
    assert run.seconds["validation"] > 0.0


def test_a_resumed_run_keeps_a_best_one_that_is_better(run: Any, tmp_path: Path) -> None:
    """Learning is spoilt on purpose; the best one stays."""
    out = tmp_path / "run"
    out.mkdir()
    for name in ("checkpoint.pt", "best.pt"):
        (out / name).write_bytes((run.checkpoint.parent / name).read_bytes())
    spoilt = plan(
        out, timesteps=23 * UPDATE, validation_episodes=8, validate_every=1, resume=True,
        config={"learning_rate": 0.5, "target_kl": None, "anneal": False},
    )  # fmt: skip
    again = policies.train(spoilt)
    assert again.validation_return == run.validation_return
    assert (out / "best.pt").read_bytes() == (run.checkpoint.parent / "best.pt").read_bytes()
    assert len(again.curve["steps"]) == 23 and np.isfinite(again.curve["validation_return"][20:]).all()
    with (out / "learning_curve.csv").open() as file:
        column = [row["validation_return"] for row in csv.DictReader(file)]
    assert [bool(value) for value in column[:6]] == [False, False, True] * 2 and len(column) == 23


@pytest.mark.parametrize("algo", policies.ALGORITHMS)
def test_who_no_longer_gets_better_stops(tmp_path: Path, algo: str) -> None:
    """With a rate of nearly nothing every validation is the same."""
    still = dataclasses.replace(
        plan(tmp_path / "run", timesteps=50 * UPDATE, config={"learning_rate": 1e-12, "normalise_observations": False}),
        algo=algo, validation_episodes=4, validate_every=2, patience=3,
    )  # fmt: skip
    result = policies.train(still)
    assert result.steps == 8 * UPDATE and len(result.curve["steps"]) == 8
    assert policies.meta(result.checkpoint)["steps"] == 8 * UPDATE
    assert policies.meta(result.best)["steps"] == 2 * UPDATE
    more = policies.train(dataclasses.replace(still, resume=True))
    assert more.steps == 14 * UPDATE  # it goes on, and stops after as many again


def test_worlds_of_validation_are_used_by_nothing_else() -> None:
    from llmgym.evaluation.tuning import TUNING_SEEDS
    from llmgym.train import MOST_EVAL_SEED

    assert TUNING_SEEDS + MOST_EVAL_SEED <= FIRST_VALIDATION_SEED < FIRST_TRAINING_SEED
    with pytest.raises(InvalidArgument, match="validation_episodes="):
        Plan(TOY, Path("run"), validation_episodes=FIRST_TRAINING_SEED)
    with pytest.raises(InvalidArgument, match="patience=2: needs validation_episodes"):
        Plan(TOY, Path("run"), patience=2)


class Told(Callback):
    """Writes down what it is told, and ends the training in one hook."""

    def __init__(self, ends_in: str = "", at: int = 2) -> None:
        self.told: list[str] = []
        self.rows: list[Mapping[str, float]] = []
        self._ends_in, self._at = ends_in, at

    def _tell(self, name: str) -> bool | None:
        self.told.append(name)
        return False if name == self._ends_in and self.told.count(name) == self._at else None

    def on_training_start(self, run: Run) -> None:
        assert run.steps == 0 and set(run.state()) >= {"model", "optimizer", "normaliser", "rng"}
        self._tell("start")

    def on_step(self, run: Run) -> bool | None:
        return self._tell("step")

    def on_rollout_end(self, run: Run) -> bool | None:
        return self._tell("rollout")

    def on_update(self, run: Run, row: Mapping[str, float]) -> bool | None:
        assert row["steps"] == run.steps
        self.rows.append(row)
        return self._tell("update")

    def on_training_end(self, run: Run) -> None:
        assert run.path.exists()
        self._tell("end")


class Rows:
    """A logger."""

    def __init__(self) -> None:
        self.rows: list[Mapping[str, float]] = []
        self.closed = 0

    def write(self, row: Mapping[str, float]) -> None:
        self.rows.append(row)

    def close(self) -> None:
        self.closed += 1


@pytest.mark.parametrize("algo", policies.ALGORITHMS)
@pytest.mark.parametrize(
    ("ends_in", "at", "updates"), [("", 0, 3), ("update", 2, 2), ("rollout", 1, 1), ("step", 20, 2)]
)
def test_hooks_are_called_in_turn_and_can_end_it(
    tmp_path: Path, algo: str, ends_in: str, at: int, updates: int
) -> None:
    hooks, rows = Told(ends_in, at), Rows()
    told = dataclasses.replace(
        plan(tmp_path / "run", timesteps=3 * UPDATE), algo=algo, callbacks=(hooks,), loggers=(rows,)
    )
    result = policies.train(told)
    assert hooks.told == ["start", *(["step"] * 16 + ["rollout", "update"]) * updates, "end"]
    assert result.steps == updates * UPDATE == policies.meta(result.checkpoint)["steps"]
    assert rows.rows == hooks.rows and len(rows.rows) == updates and rows.closed == 1
    assert not any(np.isnan(value) for row in rows.rows for value in row.values())


def test_a_policy_begins_with_another(tmp_path: Path) -> None:
    """From one world to another that is observed and acted on alike."""
    first = policies.train(plan(tmp_path / "a", GUESS, timesteps=2 * UPDATE, env_kwargs={"horizon": 8}))
    was = checkpoint.load(first.checkpoint)

    class Look(Callback):
        def on_training_start(self, run: Run) -> None:
            self.model = {name: weights.clone() for name, weights in run.state()["model"].items()}
            self.moments = run.state()["normaliser"]["observations"]["mean"].clone()

    look = Look()
    second = plan(
        tmp_path / "b",
        GUESS,
        timesteps=UPDATE,
        env_kwargs={"horizon": 16},
        init=str(first.checkpoint),
        callbacks=(look,),
    )
    result = policies.train(second)
    assert all(torch.equal(look.model[name], weights) for name, weights in was["model"].items())
    assert torch.equal(look.moments, was["normaliser"]["observations"]["mean"])
    assert policies.meta(result.checkpoint)["init"] == str(first.checkpoint)


@pytest.mark.parametrize(
    ("env_id", "changes", "message"),
    [
        (TOY, {}, "observation field 'number' .* no longer exists"),
        (GUESS, {"env_kwargs": {"kind": "box"}}, "actions were"),
        (GUESS, {"config": {"hidden": (8,)}}, r"hidden=\[64, 64\], not \[8\]: take the same network"),
    ],
)
def test_a_policy_that_does_not_fit_is_no_beginning(
    tmp_path: Path, env_id: str, changes: Any, message: str
) -> None:
    first = policies.train(plan(tmp_path / "a", GUESS, timesteps=UPDATE))
    with pytest.raises(CheckpointError, match=message):
        policies.train(plan(tmp_path / "b", env_id, init=str(first.checkpoint), **changes))
