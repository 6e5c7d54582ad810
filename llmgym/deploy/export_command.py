"""`llmgym export-policy`: a policy or a rule as a file for an engine."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from llmgym.core.checks import output_folder
from llmgym.core.told import Told


@dataclass(frozen=True)
class ExportPolicy(Told):
    """Write a policy or a rule of KVQueue-v1 to a file that vLLM's process reads with numpy alone; see docs/deploy.md."""

    policy: Annotated[str, tyro.conf.Positional]
    """identity, pick-area with its numbers (pick-area:aging=0.05), a shipped policy (KVQueue-v1/ppo-tiers), or a checkpoint."""
    out: Annotated[Path, tyro.conf.Positional]
    """File to write, ending in .npz."""
    scenario: str | None = None
    """Scenario whose scales and objectives count; that of its training, or the environment's default if left out."""

    def run(self, console: Console) -> dict[str, Any]:
        from llmgym.deploy.export import export

        output_folder("out", self.out.parent)
        kwargs: dict[str, Any] = {} if self.scenario is None else {"scenario": self.scenario}
        self.out.parent.mkdir(parents=True, exist_ok=True)
        bundle = export(self.policy, self.out, **kwargs)
        console.print(
            f"Written: {self.out}, {bundle.kind} {bundle.name!r} with {bundle.size} entries of an observation"
        )
        return {"written": self.out, "kind": bundle.kind, "name": bundle.name, "observation": bundle.size}
