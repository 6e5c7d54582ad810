"""`llmgym room`: how much is left to win over the best tuned rule."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from llmgym.core.checks import keyword_arguments, output_folder
from llmgym.core.told import Told


@dataclass(frozen=True)
class Room(Told):
    """Say how much is left to win: a clairvoyant, which tries every action in copies of the world, against the best tuned rule."""

    env: Annotated[str, tyro.conf.Positional]
    """Environment id, such as llmgym/KVQueue-v1; module:id if a module of yours registers it."""
    scenario: str | None = None
    """Scenario of the environment; its default if left out."""
    tail: str | None = None
    """Rule that goes on in the copies, with numbers or without; the best of those that can, if left out."""
    against: tuple[str, ...] = ()
    """Rules to compare with, tuned where they have a grid; all if left out."""
    privileged: tuple[str, ...] = ()
    """Baselines that know the future and are played too, such as oracle."""
    worlds: int = 24
    """Worlds on which all are compared."""
    tuning: int = 30
    """Worlds on which each value of a grid is tried."""
    seed: int = 10_000
    """Seed of the first world."""
    stride: int = 1
    """The clairvoyant decides at every so many decisions; more is faster, and a lower bound too."""
    horizon: int | None = None
    """Decisions of the rule after which a copy is cut off; to the end if left out."""
    points: int | None = None
    """Values of each entry of the action that are tried, where actions are real numbers."""
    device: str = "cpu"
    """Where the copies are: cpu, or a GPU, such as cuda or cuda:1."""
    env_args: tuple[str, ...] = ()
    """Further arguments of the environment, as name=value."""
    out: Path | None = None
    """File for the same JSON, which compare takes as room=."""
    progress: bool = True
    """Show progress and the time left on stderr."""

    def run(self, console: Console) -> Any:
        from llmgym import evaluation

        if self.out is not None:
            output_folder("out", self.out.parent)
        kwargs = keyword_arguments(self.env_args)
        if self.scenario is not None:
            kwargs["scenario"] = self.scenario
        result = evaluation.room(
            self.env,
            tail=self.tail,
            against=self.against or None,
            privileged=self.privileged,
            worlds=self.worlds,
            tuning=self.tuning,
            seed=self.seed,
            stride=self.stride,
            horizon=self.horizon,
            points=self.points,
            device=self.device,
            progress=self.progress,
            **kwargs,
        )
        if self.out is not None:
            self.out.parent.mkdir(parents=True, exist_ok=True)
        text = result.to_json(self.out)
        if not self.json:
            print(result.table().text(max(console.width, 80)))
        return json.loads(text)
