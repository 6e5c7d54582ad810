"""`llmgym plan oserve`: how to divide GPUs into replicas for a load of several request types, and how to route it.

The planner of Jiang et al., arXiv 2602.12151 (`llmgym.baselines.oserve.search`), on the rates of `llmgym.envs.oserve.shapes`.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from llmgym.baselines.oserve.search import brute_force, catalogue_uniform, route_lp
from llmgym.core.checks import choice, whole
from llmgym.core.told import Told
from llmgym.envs.oserve.deployments import Counts, best, evaluate
from llmgym.envs.oserve.placement import switch_plan
from llmgym.envs.oserve.shapes import (
    MODELS,
    MOST_GPUS,
    RateTable,
    deployment_name,
    positive_demand,
    rate_table,
)
from llmgym.errors import InvalidArgument


@dataclass(frozen=True)
class Oserve(Told):
    """Which replica shapes serve a load of several request types best (Jiang et al., arXiv 2602.12151), and who gets what."""

    model: str = "llama-2-70b"
    """The model: opt-30b, opt-66b, llama-30b, llama-2-70b, llama-3.1-70b or qwen2.5-14b."""
    gpus: int = 16
    """H100s, in nodes of eight."""
    prompts: tuple[int, ...] = (496, 496, 2455, 2455)
    """Prompt tokens of each type."""
    outputs: tuple[int, ...] = (18, 510, 18, 510)
    """Output tokens of each type."""
    rates: tuple[float, ...] = (5.0, 2.0, 1.0, 0.5)
    """Requests a second of each type."""
    kernels: str | None = None
    """A kernel set such as h100/kernels, for the models that it holds; the roofline if left out."""

    def run(self, console: Console) -> dict[str, Any]:
        """Print the best deployment, its routing, and what a change to it moves.

        Returns:
            The same as numbers.

        Raises:
            LlmgymError: a name or number that does not do, or a model that fits nowhere.
        """
        model = MODELS[choice("model", self.model, MODELS)]
        whole("gpus", self.gpus, 1, MOST_GPUS)
        if len(self.prompts) != len(self.outputs):
            raise InvalidArgument(f"outputs={self.outputs}: expected one for each of prompts={self.prompts}")
        types = tuple(zip(self.prompts, self.outputs, strict=True))
        load = positive_demand(self.rates, len(types), "rates")
        if load.sum() == 0.0 or any(rate != 0.0 and not 1e-6 <= rate <= 1e6 for rate in load):
            raise InvalidArgument(f"rates={self.rates}: expected 0 or 1e-6 to 1e6, at least one above 0")
        table = rate_table(self.model, types, self.gpus, self.kernels)
        for j, lengths in enumerate(table.classes):
            if not table.rate[:, j].any():
                raise InvalidArgument(
                    f"prompts, outputs: a request of {lengths.prompt:,} + {lengths.output:,} tokens fits into no replica of "
                    f"{self.model} on gpus={self.gpus}; the largest cache holds {table.capacity.max():,} tokens"
                )
        planned = brute_force(table, load, self.gpus).replicas
        equal = catalogue_uniform(table, self.gpus)
        alpha, latency_s = evaluate(table, equal, load[None])
        plain = equal[best(alpha[0], latency_s[0])]
        shown = Table(title=f"{self.model} on {self.gpus} GPUs", title_justify="left")
        for name in ("deployment", "headroom", "unloaded latency, s"):
            shown.add_column(name, justify="left" if name == "deployment" else "right")
        rows = np.array([planned, *equal])
        values, times_s = evaluate(table, rows, load[None])
        for k in [0, *(1 + np.argsort(-values[0, 1:]))]:
            title = deployment_name(table.shapes, rows[k])
            shown.add_row(
                f"[bold]{title}[/bold]" if k == 0 else title, f"{values[0, k]:.3f}", f"{times_s[0, k]:.2f}"
            )
        console.print(shown)
        routing = self._routes(console, table, planned, load)
        before, after = _shapes(table, plain), _shapes(table, planned)
        plan = switch_plan(before, after, model.weight_bytes, self.gpus)
        console.print(
            f"From {deployment_name(table.shapes, plain)}: {plan.changed_gpus} GPUs change, "
            f"{plan.total_bytes / 1e9:,.0f} GB of weights move "
            f"({plan.between_nodes_bytes / 1e9:,.0f} GB between nodes) in {plan.seconds:.2f} s."
        )
        ranked = [0, *(1 + np.argsort(-values[0, 1:]))]
        return {
            "model": self.model,
            "gpus": self.gpus,
            "deployments": [
                {
                    "deployment": deployment_name(table.shapes, rows[k]),
                    "headroom": values[0, k],
                    "latency_s": times_s[0, k],
                }
                for k in ranked
            ],
            "routing": routing,
            "from": deployment_name(table.shapes, plain),
            "changed_gpus": plan.changed_gpus,
            "moved_bytes": plan.total_bytes,
            "between_nodes_bytes": plan.between_nodes_bytes,
            "switch_s": plan.seconds,
        }

    def _routes(self, console: Console, table: RateTable, replicas: Counts, load: Any) -> dict[str, Any]:
        """Print which share of each type goes where, and how much of each is served; the same as numbers, requests/s."""
        routing = route_lp(table, replicas, load)
        if routing.headroom < 1.0:
            console.print(
                f"[yellow]Overload:[/yellow] this deployment serves {routing.headroom:.1%} of every type if all are served alike; "
                f"routed for the most requests, as below, it serves {routing.flow.sum():.4g} of {load.sum():.4g} req/s "
                f"({routing.served:.1%})."
            )
        shown = Table(title="routing, requests a second", title_justify="left")
        shown.add_column("replicas")
        for lengths, rate in zip(table.classes, load, strict=True):
            shown.add_column(f"{lengths.prompt} in, {lengths.output} out\n{rate:g} req/s", justify="right")
        shown.add_column("utilisation", justify="right")
        for s in np.flatnonzero(replicas):
            shares = [f"{abs(flow):.2f}" for flow in routing.flow[s]]
            shown.add_row(f"{replicas[s]} {table.shapes[s]}", *shares, f"{routing.utilization[s]:.0%}")
        shares = [
            f"{flow / rate:.1%}" if rate else "-"
            for flow, rate in zip(routing.flow.sum(axis=0), load, strict=True)
        ]
        shown.add_row("[bold]served[/bold]", *shares, f"{routing.served:.1%}")
        console.print(shown)
        return {
            "headroom": routing.headroom,
            "served_share": routing.served,
            "types": [{"prompt": one.prompt, "output": one.output} for one in table.classes],
            "replicas": [
                {
                    "shape": str(table.shapes[s]),
                    "count": replicas[s],
                    "rates_rps": routing.flow[s],
                    "utilization": routing.utilization[s],
                }
                for s in np.flatnonzero(replicas)
            ],
        }


def _shapes(table: RateTable, replicas: Counts) -> list[tuple[int, int]]:
    return [(shape.tp, shape.pp) for shape, n in zip(table.shapes, replicas, strict=True) for _ in range(n)]
