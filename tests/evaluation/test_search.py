"""The search for settings of a training: resumed, killed, and on Ray."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llmgym import cli, policies
from llmgym.errors import InvalidArgument, LlmgymError, MissingExtra
from llmgym.evaluation import backends, choose_backend
from llmgym.evaluation.search import SPACE, STORE, search
from llmgym.policies.recipes import recipe, written
from tests.policies.toys import TOY

SETTINGS = ("learning_rate", "rollout_steps", "hidden")


def small(out: Path, trials: int, **others: Any) -> Any:
    given = {"timesteps": 4096, "settings": SETTINGS, "validation_episodes": 4, "progress": False}
    return search(TOY, out, {}, trials=trials, **{**given, **others})


def test_without_optuna_one_line_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingExtra, match=r"pip install 'llmgym\[tune\]'"):
        small(tmp_path, 1)
    assert cli.main(["tune", TOY, "--out", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("llmgym: a search for settings needs the optional 'tune' extra")


@pytest.mark.parametrize("env_id", ["llmgym/KVQueue-v0", "llmgym/KVQueue-v1", "me/Other-v0"])
def test_a_recipe_that_is_written_is_the_one_that_is_read(tmp_path: Path, env_id: str) -> None:
    made = recipe(env_id, None, None, {} if "llmgym" in env_id else {"rate": 2.5, "word": 'with "quotes"'})
    file = tmp_path / "recipe.toml"
    file.write_text(written(env_id, made, "Found\nby hand"))
    again = recipe(env_id, file=file)
    assert (again.config, dict(again.env_kwargs)) == (made.config, dict(made.env_kwargs))
    assert (again.timesteps, again.lanes, again.patience) == (made.timesteps, made.lanes, made.patience)


def test_mistakes_of_a_recipe(tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    for text, message in (
        ("nonsense", "cannot be read: "),
        ('["me/Other-v0"]\nlanes = 3\n', "has me/Other-v0, but not llmgym/KVQueue-v0"),
        ("[KVQueue-v0]\nspeed = 3\n", "has speed, which are no settings"),
    ):
        file.write_text(text)
        with pytest.raises(InvalidArgument, match=message):
            recipe("llmgym/KVQueue-v0", file=file)
    with pytest.raises(InvalidArgument, match="cannot be read: "):
        recipe("llmgym/KVQueue-v0", file=tmp_path / "none.toml")


class Stops(backends.Here):
    """Is killed when it is to give back the second result."""

    def results(self, work: Any, items: Any, tell: Any) -> Iterator[tuple[int, Any]]:
        for number, found in super().results(work, items, tell):
            if number == 1:
                raise KeyboardInterrupt
            yield number, found


def test_a_search_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    pytest.importorskip("optuna")
    pytest.importorskip("torch")
    with pytest.raises(KeyboardInterrupt):
        small(tmp_path, 2, backend=Stops())
    trained = []
    train = policies.train
    monkeypatch.setattr(
        policies, "train", lambda plan: (trained.append((plan.out.name, plan.resume)), train(plan))[1]
    )
    found = small(tmp_path, 2)
    assert trained == [("trial-0001", True)]  # the one that was at work, from its checkpoint
    assert len(found.trials) == 2 and found.value == max(one["value"] for one in found.trials)
    assert found.checkpoint.is_file() and policies.meta(found.checkpoint)["timesteps"] == 4096
    small(tmp_path, 2)
    assert len(trained) == 1  # nothing is left to do
    more = small(tmp_path, 3)
    assert len({one["learning_rate"] for one in more.trials}) == 3  # none is proposed twice
    assert len(trained) == 2 and more.trials[:2] == found.trials and more.value >= found.value
    config = recipe(TOY, file=more.recipe).config
    assert {name: getattr(config, name) for name in SETTINGS} == {
        name: tuple(value) if isinstance(value, list) else value for name, value in more.best.items()
    }
    with pytest.raises(InvalidArgument, match="holds a search with timesteps=4096, not 512"):
        small(tmp_path, 3, timesteps=512)
    words = [
        "tune",
        f"tests.policies.toys:{TOY}",
        "--trials",
        "3",
        "--timesteps",
        "4096",
        "--out",
        str(tmp_path),
    ]
    words += ["--settings", *SETTINGS, "--validation-episodes", "4", "--json"]
    assert cli.main(words) == 0
    assert json.loads(capsys.readouterr().out)["value"] == more.value
    assert (tmp_path / STORE).is_file()


def test_mistakes(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    for others, message in (
        ({"settings": ("speed",)}, "unknown setting to search for 'speed'"),
        ({"settings": ()}, "settings: name at least one of learning_rate"),
        ({"trials": 0}, "trials=0: expected"),
        ({"timesteps": 0}, "timesteps=0: expected"),
        ({"validation_episodes": 0}, "validation_episodes=0: expected"),
    ):
        given: dict[str, Any] = {"trials": 1, **others}
        with pytest.raises(InvalidArgument, match=message):
            small(tmp_path, **given)
    assert set(SETTINGS) <= set(SPACE) and not (tmp_path / STORE).exists()


def test_trials_that_fail_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    pytest.importorskip("optuna")

    def diverges(plan: Any) -> Any:
        raise LlmgymError("training diverged: policy_loss is nan")

    monkeypatch.setattr(policies, "train", diverges)
    with pytest.raises(LlmgymError, match="no trial has come to its end: training diverged"):
        small(tmp_path, 2, progress=True)
    assert capsys.readouterr().err.count("failed: training diverged") == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["local", "ray"])
def test_elsewhere_it_finds_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    pytest.importorskip("optuna")
    if name == "ray":
        pytest.importorskip("ray")
        monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    here = small(tmp_path / "here", 2)
    with choose_backend.backend(name, 1 if name == "ray" else 2) as there:
        found = small(tmp_path / "there", 2, backend=there)
    assert found.trials[0] == here.trials[0] and len(found.trials) == 2
