"""A search for the settings of a training, by Optuna: each trial trains once, and validation says how good it was.

Validation plays worlds that neither training nor comparisons use (`llmgym.policies.FIRST_VALIDATION_SEED`). Everything is written
down as it comes, in `trials.log`, so a search that was killed goes on with the same command: trials that were at work go on from
their checkpoints.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from llmgym import policies
from llmgym.core.checks import output_folder, whole
from llmgym.core.registered import Registered
from llmgym.errors import InvalidArgument, LlmgymError, MissingExtra, UnknownName
from llmgym.evaluation.backends import HERE, Backend, Tell, silent
from llmgym.policies import Plan
from llmgym.policies.recipes import OF_PLAN, Recipe, recipe, written

STORE = "trials.log"
"""The file, in the folder of a search, that knows all of it."""
RECIPE = "recipe.toml"


@dataclass(frozen=True)
class Between:
    """Numbers between two bounds, all magnitudes alike."""

    low: float
    high: float

    def of(self, trial: Any, name: str) -> Any:
        """What Optuna proposes."""
        return trial.suggest_float(name, self.low, self.high, log=True)


@dataclass(frozen=True)
class OneOf:
    """One of several values."""

    values: tuple[Any, ...]

    def of(self, trial: Any, name: str) -> Any:
        """What Optuna proposes, which knows texts and numbers."""
        shown = {" ".join(map(str, v)) if isinstance(v, tuple) else v: v for v in self.values}
        return shown[trial.suggest_categorical(name, list(shown))]


SPACE: Mapping[str, Between | OneOf] = {
    "learning_rate": Between(1e-4, 3e-3),
    "gamma": OneOf((0.99, 0.997, 0.999, 1.0)),
    "gae_lambda": OneOf((0.9, 0.95, 0.98, 1.0)),
    "entropy": Between(1e-4, 3e-2),
    "lanes": OneOf((64, 128, 256, 512)),
    "rollout_steps": OneOf((16, 32, 64, 128)),
    "minibatch": OneOf((512, 1024, 2048, 4096)),
    "epochs": OneOf((2, 4, 8)),
    "clip": OneOf((0.1, 0.2, 0.3)),
    "network": OneOf(("mlp", "recurrent")),
    "hidden": OneOf(((32, 32), (64, 64), (128, 128))),
}
"""What can be searched for, and where."""
USUAL = ("learning_rate", "gamma", "entropy", "lanes", "hidden")
"""What is searched for if nothing is said."""


@dataclass(frozen=True)
class Trial:
    """One training.

    Attributes:
        number: of the trial.
        env: the environment, for a process that does not know it.
        plan: what is trained.
    """

    number: int
    env: Registered
    plan: Plan


@dataclass(frozen=True)
class Outcome:
    """What a trial gave: the best mean return in validation, NaN where the training failed, and then why."""

    value: float
    steps: int = 0
    why: str = ""


@dataclass(frozen=True)
class Found:
    """What a search has found.

    Attributes:
        best: the best settings.
        value: mean return in validation with them.
        number: of their trial.
        trials: number, value (NaN: failed) and settings of each trial that has ended.
        recipe: file with the best settings, for `llmgym train --recipe`.
        checkpoint: the best policy of that trial.
    """

    best: dict[str, Any]
    value: float
    number: int
    trials: list[dict[str, Any]]
    recipe: Path
    checkpoint: Path


def train_trial(trial: Trial, tell: Tell = silent) -> Outcome:
    """Train as a trial says, from its checkpoint where there is one."""
    trial.env.register()
    plan = replace(trial.plan, resume=(trial.plan.out / "checkpoint.pt").exists())
    try:
        result = policies.train(plan)
    except InvalidArgument:  # which no other settings mend
        raise
    except LlmgymError as error:  # as of one that diverged
        return Outcome(math.nan, why=str(error))
    return Outcome(result.validation_return, result.steps)


def search(
    env_id: str,
    out: Path,
    env_kwargs: Mapping[str, Any] | None = None,
    *,
    trials: int = 20,
    timesteps: int | None = None,
    settings: Sequence[str] = USUAL,
    validation_episodes: int = 64,
    seed: int = 0,
    progress: bool = True,
    backend: Backend = HERE,
) -> Found:
    """Search for settings of a training; a search that is in `out` goes on.

    Args:
        env_id: id of the environment; `module:id` if a module registers it.
        out: folder of the search; on a cluster one that all machines share.
        env_kwargs: its arguments, `scenario` among them; None: those of its recipe.
        trials: how many in all, those of before included.
        timesteps: environment steps of each; None: those of the recipe.
        settings: what is searched for, of `SPACE`; everything else is as the recipe says.
        validation_episodes: worlds of a validation.
        seed: of the search and of each training.
        progress: a line on stderr for each trial.
        backend: where trials run.

    Returns:
        The best settings, which are also in `out/recipe.toml`.

    Raises:
        InvalidArgument: a setting that there is not, a bad number, or another search in `out`.
        LlmgymError: no trial has come to its end.
        MissingExtra: Optuna or torch is not installed.
    """
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise MissingExtra("a search for settings", "tune") from error
    whole("trials", trials)
    whole("validation_episodes", validation_episodes)
    if not settings:
        raise InvalidArgument(f"settings: name at least one of {', '.join(SPACE)}")
    for name in settings:
        if name not in SPACE:
            raise UnknownName("setting to search for", name, SPACE)
    env = Registered.of(env_id)
    kwargs = dict(env_kwargs or {})
    start = recipe(env_id, kwargs.get("scenario"), kwargs.get("action"), kwargs)
    start = replace(
        start, timesteps=whole("timesteps", start.timesteps if timesteps is None else timesteps, 1, 2**62)
    )
    output_folder("out", out)
    out.mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    journal = optuna.storages.journal
    study = optuna.create_study(
        storage=optuna.storages.JournalStorage(journal.JournalFileBackend(str(out / STORE))),
        study_name=env.env_id,
        direction="maximize",
        load_if_exists=True,
    )
    # one that goes on must not propose anew what it proposed first
    study.sampler = optuna.samplers.TPESampler(
        seed=seed + len(study.get_trials(deepcopy=False)), constant_liar=True, n_startup_trials=5
    )
    asked = {
        "environment": env.env_id,
        "arguments": dict(start.env_kwargs),
        "timesteps": start.timesteps,
        "settings": sorted(settings),
        "validation_episodes": validation_episodes,
        "seed": seed,
    }
    check_same(study, asked, out)
    put_back(study, optuna)
    console = Console(stderr=True, quiet=not progress)

    def plan_of(trial: Any) -> Plan:
        made = with_settings(start, {name: SPACE[name].of(trial, name) for name in settings})
        folder = trial.user_attrs.get("folder") or f"trial-{trial.number:04d}"
        trial.set_user_attr("folder", folder)
        trial.set_user_attr("recipe", {**made.config.to_dict(), **{n: getattr(made, n) for n in OF_PLAN}})
        return Plan(
            env_id,
            (out / folder).resolve(),
            dict(start.env_kwargs),
            timesteps=made.timesteps,
            seed=seed,
            lanes=made.lanes,
            patience=made.patience,
            progress=False,
            config=made.config,
            validation_episodes=validation_episodes,
        )

    waiting: dict[int, Any] = {}

    def asked_for() -> Iterator[Trial]:
        number = 0
        while len(ended(study)) + len(waiting) < trials:
            waiting[number] = study.ask()
            plan = plan_of(waiting[number])
            yield Trial(waiting[number].number, env, plan)
            number += 1

    for number, outcome in backend.results(train_trial, asked_for(), silent):
        trial = waiting.pop(number)
        if math.isfinite(outcome.value):
            study.tell(trial, outcome.value)
            best = " (the best so far)" if study.best_trial.number == trial.number else ""
            said = f"{outcome.value:.6g}{best}"
        else:
            trial.set_user_attr("why", outcome.why)
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            said = f"failed: {outcome.why}"
        told = ", ".join(f"{name} {_short(value)}" for name, value in trial.params.items())
        console.print(f"trial {trial.number}: {told}: {said}", highlight=False, soft_wrap=True)
    return result(study, out, env.env_id, start, settings)


def with_settings(start: Recipe, chosen: Mapping[str, Any]) -> Recipe:
    """A recipe with other settings."""
    of_plan = {name: value for name, value in chosen.items() if name in OF_PLAN}
    config = replace(start.config, **{name: value for name, value in chosen.items() if name not in OF_PLAN})
    return replace(start, config=config, **of_plan)


def check_same(study: Any, asked: Mapping[str, Any], out: Path) -> None:
    """Write down what is searched for; raise `InvalidArgument` where the folder is of another search."""
    was = study.user_attrs
    if not was:
        for name, value in asked.items():
            study.set_user_attr(name, value)
        return
    for name, value in asked.items():
        if name in was and was[name] != value:
            raise InvalidArgument(
                f"{out} holds a search with {name}={was[name]!r}, not {value!r}: go on with that, or name another folder with --out"
            )


def put_back(study: Any, optuna: Any) -> None:
    """Trials that were at work when the search was killed come first, in the folders that they have."""
    state = optuna.trial.TrialState
    for trial in study.get_trials(deepcopy=False, states=(state.RUNNING,)):
        study._storage.set_trial_user_attr(trial._trial_id, "put_back", True)
        study.tell(trial.number, state=state.FAIL)
        folder = trial.user_attrs.get("folder", f"trial-{trial.number:04d}")
        study.enqueue_trial(trial.params, user_attrs={"folder": folder})


def ended(study: Any) -> list[Any]:
    """Trials that have come to an end; not those that were put back."""
    return [
        trial
        for trial in study.get_trials(deepcopy=False)
        if trial.state.is_finished() and "put_back" not in trial.user_attrs
    ]


def result(study: Any, out: Path, env_id: str, start: Recipe, settings: Sequence[str]) -> Found:
    """What a search has found so far, its recipe written."""
    over = ended(study)
    done = [trial for trial in over if trial.value is not None]
    if not done:
        why = next((trial.user_attrs["why"] for trial in over if "why" in trial.user_attrs), "none has ended")
        raise LlmgymError(f"no trial has come to its end: {why}")
    best = max(done, key=lambda trial: trial.value)
    values = best.user_attrs["recipe"]
    config = policies.PPOConfig.from_dict(values)
    made = replace(start, config=config, **{name: values[name] for name in OF_PLAN})
    about = (
        f"Found by llmgym tune, the best of {len(done)} trials: mean return {best.value:.6g} in validation.\n"
        f"Searched for: {', '.join(settings)}. Take it with llmgym train --env {env_id} --recipe {out / RECIPE}"
    )
    path = out / RECIPE
    path.write_text(written(env_id, made, about))
    return Found(
        best={name: values[name] for name in settings},
        value=float(best.value),
        number=best.number,
        trials=[
            {"trial": t.number, "value": math.nan if t.value is None else float(t.value), **t.params}
            for t in over
        ],
        recipe=path,
        checkpoint=out / best.user_attrs["folder"] / "best.pt",
    )


def as_data(found: Found) -> dict[str, Any]:
    """For `--json`."""
    return asdict(found)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
