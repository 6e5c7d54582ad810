"""`llmgym tune`: a search for the settings of a training."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.table import Table

from llmgym.core.checks import keyword_arguments
from llmgym.core.told import Told


@dataclass(frozen=True)
class Tune(Told):
    """Search for the settings of a training with Optuna; the best ones are written as a recipe that `llmgym train` takes.

    A search that was stopped or killed goes on when the same command is given again.
    """

    env: Annotated[str, tyro.conf.Positional]
    """Environment id, such as llmgym/KVQueue-v0; module:id if a module of yours registers it."""
    scenario: str | None = None
    """Scenario of the environment; if neither this nor --env-args is given, the one of its settings."""
    env_args: tuple[str, ...] = ()
    """Further arguments of the environment, as name=value."""
    trials: int = 20
    """Trainings in all, those of before included."""
    timesteps: int | None = None
    """Environment steps of each training, over all lanes; those of the environment's settings if left out."""
    settings: tuple[str, ...] = ()
    """What is searched for: learning_rate, gamma, gae_lambda, entropy, lanes, rollout_steps, minibatch, epochs, clip, network,
    hidden; if left out, learning_rate, gamma, entropy, lanes and hidden. Everything else is as the environment's settings say."""
    validation_episodes: int = 64
    """Worlds on which it is measured what is better; neither training nor comparisons use them."""
    seed: int = 0
    """Of the search and of each training."""
    backend: Literal["local", "ray"] = "local"
    """Where trainings run: in processes of this machine, or as tasks of Ray."""
    workers: int | None = None
    """Trainings at once: 1 if left out, with Ray as many as there are cores."""
    address: str | None = None
    """A Ray cluster that runs, as host:port, ray://host:port or auto; its machines share the folder of the search."""
    out: Path | None = None
    """Folder of the search; runs/tune-<environment>-<scenario> if left out."""
    progress: bool = True
    """Tell of each trial on stderr."""

    def run(self, console: Console) -> dict[str, Any]:
        from llmgym.evaluation.choose_backend import of_command
        from llmgym.evaluation.search import USUAL, as_data, search

        name = self.env.rpartition(":")[2].rpartition("/")[2]
        out = self.out or Path("runs") / "-".join(filter(None, ("tune", name, self.scenario)))
        kwargs = keyword_arguments(self.env_args)
        if self.scenario is not None:
            kwargs["scenario"] = self.scenario
        try:
            with of_command(self.backend, self.workers, self.address) as there:
                found = search(
                    self.env,
                    out,
                    kwargs,
                    trials=self.trials,
                    timesteps=self.timesteps,
                    settings=self.settings or USUAL,
                    validation_episodes=self.validation_episodes,
                    seed=self.seed,
                    progress=self.progress,
                    backend=there,
                )
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"stopped; the same command goes on with --out {out}") from None
        table = Table(title=f"{self.env}: the best trials", title_justify="left")
        columns = ["trial", "value", *(self.settings or USUAL)]
        for column in columns:
            table.add_column("validation return" if column == "value" else column)
        ranked = sorted(found.trials, key=lambda one: (one["value"] != one["value"], -one["value"]))
        for one in ranked[:5]:
            values = [one.get(column, "") for column in columns]
            table.add_row(*(f"{value:.4g}" if isinstance(value, float) else str(value) for value in values))
        console.print(table)
        console.print(f"Written: {found.recipe}; its policy: {found.checkpoint}", soft_wrap=True)
        console.print(f"Go on with llmgym train --env {self.env} --recipe {found.recipe}", soft_wrap=True)
        return as_data(found)
