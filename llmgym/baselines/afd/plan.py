"""`llmgym plan afd`: the ratio of attention to FFN instances for a trace and a device, by the closed forms and by simulation.

The forms are those of Song et al., arXiv 2601.21351 (`llmgym.envs.afd.law`), on latencies that are fitted to a profile.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from llmgym.core.checks import choice, number, whole
from llmgym.core.told import Told
from llmgym.envs.afd.costs import LINK_LATENCY_US, PAPER, Coefficients, ProfileFit, fit
from llmgym.envs.afd.law import (
    COMMUNICATION,
    Optimum,
    barrier_ratio,
    communication_time,
    feasible_ratios,
    microbatch_ratio,
    optimal_ratio,
)
from llmgym.envs.afd.requests import Requests, load, of_workload
from llmgym.envs.afd.settings import MOST_BATCH
from llmgym.errors import InvalidArgument

_AROUND = 1.8
"""Factor around the ratios of the formulas within which others are simulated."""
_MOST_RATIOS = 48
"""Ratios that are simulated at most, beside those of the formulas; bundles of many instances have thousands."""
_MOST_SLOTS = 2**19
"""Requests in the simulated pipeline, at most: they take a minute of computing."""


@dataclass(frozen=True)
class Afd(Told):
    """How many attention instances one FFN instance can feed (Song et al., arXiv 2601.21351), what binds, and the throughput."""

    trace: Path | None = None
    """Trace file (Azure, Mooncake, BurstGPT, Vidur or plain CSV) with prompt and output lengths."""
    requests: str = "azure-conv-2023"
    """Without a trace: a named workload, or a law such as geometric:prompt=100,decode=500."""
    profile: str = "h100/llama-3.1-8b"
    """Named profile, the path of a profile folder, or "paper" for the paper's coefficients."""
    batch: int = 128
    """B: requests of a microbatch of one attention instance."""
    batches: int = 2
    """m: microbatches in flight."""
    instances: int | None = None
    """Most instances of a bundle, with which ratios such as 5A-2F count too. Without it, there is one FFN instance."""
    link_gb_per_s: float = 50.0
    """Bandwidth between two instances, GB/s (400 Gb/s is 50)."""
    link_latency_us: float = LINK_LATENCY_US
    """Latency of one way between two instances, microseconds."""
    comm: str = "per_instance"
    """What communication grows with: per_instance or aggregate."""
    simulate: bool = True
    """Check the closed forms with a simulated pipeline."""

    def run(self, console: Console) -> dict[str, Any]:
        """Print what was found.

        Returns:
            The same as numbers.

        Raises:
            LlmgymError: a trace that cannot be read, an unknown name, or a number out of range.
        """
        b, m = whole("batch", self.batch, 1, MOST_BATCH), whole("batches", self.batches, 1, 8)
        if self.instances is not None:
            whole("instances", self.instances, 2, 256)
        choice("comm", self.comm, COMMUNICATION)
        number("link_gb_per_s", self.link_gb_per_s)
        number("link_latency_us", self.link_latency_us, zero=True)
        law = self._requests()
        fitted, profile = self._latencies()
        if profile is not None:
            self._fits(law, profile)
        c = PAPER if fitted is None else fitted.coefficients
        field = optimal_ratio(c, b, law.theta, self.comm, self.instances)
        barrier = barrier_ratio(c, b, law.theta, law.nu, self.comm, self.instances)
        flight = microbatch_ratio(c, b, law.theta, m, self.comm, self.instances)
        unit = "cycles" if fitted is None else "us"
        attention = float(c.attention(b * law.theta))
        link = float(communication_time(c, b, field.ratio, self.comm))
        table = Table(title=f"{law.name} on {self.profile}, B = {b}", title_justify="left", show_header=False)
        rows = [
            ("mean prompt, mean output", f"{law.mean_prompt:,.0f}, {law.mean_steps:,.0f} tokens"),
            ("theta, nu: tokens of a slot, mean and deviation", f"{law.theta:,.0f}, {law.nu:,.0f}"),
            ("mean prompt + mean output, for comparison", f"{law.mean_prompt + law.mean_steps:,.0f}"),
            ("t_A = alpha_A B theta + beta_A", f"{attention:,.1f} {unit}"),
            ("t_C, round trip", f"{link:,.1f} {unit}"),
            ("t_F = alpha_F r B + beta_F", f"{c.alpha_ffn * b:,.2f} r + {c.beta_ffn:,.1f} {unit}"),
            (
                "r_A, r_C, r_peak",
                f"{field.attention_ratio:.2f}, {field.communication_ratio:.2f}, {field.peak_ratio:.2f}",
            ),
            ("r*, mean field", f"{field.ratio:.2f}: {field.binding} binds"),
            ("r*, with a barrier", f"{barrier.ratio:.2f}"),
            (f"r*, {m} microbatches in flight", f"{flight.ratio:.2f}: {flight.binding} binds"),
        ]
        for name, value in rows:
            table.add_row(name, value)
        console.print(table)
        for best, how in ((field, "mean field"), (barrier, "barrier"), (flight, f"{m} in flight")):
            console.print(
                f"[bold]{best.attention_instances}A-{best.ffn_instances}F[/bold] by the {how}: "
                f"{best.feasible_throughput / c.cycle_s:,.0f} tokens/s an instance"
            )
        self._warn(console, law, fitted, profile, barrier.ratio)
        simulated = self._simulate(console, law, c, (field, barrier, flight)) if self.simulate else None
        ways = {"mean_field": field, "barrier": barrier, "in_flight": flight}
        return {
            "requests": law.name,
            "profile": self.profile,
            "batch": b,
            "batches": m,
            "mean_prompt_tokens": law.mean_prompt,
            "mean_output_tokens": law.mean_steps,
            "theta_tokens": law.theta,
            "nu_tokens": law.nu,
            "time_unit": unit,
            "attention_time": attention,
            "round_trip_time": link,
            **{name: asdict(best) for name, best in ways.items()},
            "tokens_per_s": {name: best.feasible_throughput / c.cycle_s for name, best in ways.items()},
            "simulated": simulated,
        }

    def _requests(self) -> Requests:
        if self.trace is None:
            return load(self.requests)
        from llmgym import workloads

        return of_workload(workloads.from_trace(self.trace))

    def _latencies(self) -> tuple[ProfileFit | None, Any]:
        if self.profile == "paper":
            return None, None
        from llmgym import profiles

        profile = profiles.load(self.profile)
        return fit(profile, self.batch, self.link_gb_per_s, self.link_latency_us), profile

    def _fits(self, law: Requests, profile: Any) -> None:
        """Raise `InvalidArgument` if the microbatches of an attention instance fit into no memory of the profile's device."""
        held = self.batch * self.batches * law.theta * profile.kv_bytes_per_token
        if profile.memory_bytes and held > profile.memory_bytes:
            raise InvalidArgument(
                f"batch={self.batch}, batches={self.batches}: {law.theta:,.0f} tokens a slot on average take "
                f"{held / 1e9:,.0f} GB of KV cache on an attention instance; {profile.gpu} has {profile.memory_bytes / 1e9:,.0f} GB"
            )

    def _warn(
        self, console: Console, law: Requests, fitted: ProfileFit | None, profile: Any, ratio: float
    ) -> None:
        """Say where the affine latencies, or the memory, do not reach."""
        if fitted is None:
            return
        from llmgym.profiles.cost import dense_s

        console.print(f"Fit: R^2 {fitted.attention_r2:.4f} (attention), {fitted.ffn_r2:.4f} (FFN).")
        held = self.batch * self.batches * law.theta
        if profile.memory_bytes and profile.kv_bytes_per_token and held > profile.kv_capacity_tokens():
            console.print(
                f"[yellow]KV cache:[/yellow] {held:,.0f} tokens on average in {self.batches} microbatches, "
                f"{profile.kv_capacity_tokens():,} fit beside all weights of the model."
            )
        if not fitted.attention_tokens[0] <= self.batch * law.theta <= fitted.attention_tokens[1]:
            console.print(
                f"[yellow]Attention:[/yellow] {self.batch * law.theta:,.0f} tokens lie outside the fitted range "
                f"{fitted.attention_tokens[0]:,}..{fitted.attention_tokens[1]:,}."
            )
        tokens = round(ratio * self.batch)
        if tokens < fitted.ffn_tokens[0]:
            line = float(fitted.coefficients.ffn(tokens)) * fitted.coefficients.cycle_s
            console.print(
                f"[yellow]FFN:[/yellow] {tokens:,} tokens are not compute bound (from {fitted.ffn_tokens[0]:,} on); there "
                "the line is "
                f"{line / dense_s(profile.step_cost(), tokens) - 1:+.0%} off, so the true ratio is smaller: take a larger batch."
            )

    def _simulate(
        self, console: Console, law: Requests, coefficients: Coefficients, optima: tuple[Optimum, ...]
    ) -> dict[str, Any]:
        """Simulate feasible ratios near those of the formulas, in the pipeline with m microbatches; print the best and tell all."""
        import gymnasium

        from llmgym.baselines.afd.ratio import OraclePolicy

        low = min(best.ratio for best in optima) / _AROUND
        high = max(best.ratio for best in optima) * _AROUND
        pairs = [(r, 1) for r in range(1, int(high) + 2)]
        if self.instances is not None:
            pairs = list(feasible_ratios(self.instances))
        chosen = {(best.attention_instances, best.ffn_instances) for best in optima}
        near = [pair for pair in pairs if low <= pair[0] / pair[1] <= high]
        chosen_or_even = chosen | set(near[:: -(-len(near) // _MOST_RATIOS)])
        tried = [pair for pair in pairs if pair in chosen_or_even]
        slots = self.batch * self.batches * max(x for x, _ in tried)
        if slots > _MOST_SLOTS:
            raise InvalidArgument(
                f"batch={self.batch}: the simulated pipeline would hold {slots:,} requests, at most {_MOST_SLOTS:,} can be; "
                "leave the simulation out with --no-simulate"
            )
        env = gymnasium.make(
            "llmgym/AFDRatio-v0",
            scenario="paper-stationary",
            requests=(law,),
            coefficients=coefficients,
            fidelity="pipeline",
            batch=self.batch,
            batches=self.batches,
            comm=self.comm,
            ratios=tuple(tried),
        )
        ratios = env.unwrapped.simulation.ratios  # type: ignore[attr-defined]
        rates = OraclePolicy(env).search(0, coefficients.values) / coefficients.cycle_s
        best = int(np.argmax(rates))
        console.print(
            f"Simulated pipeline with {self.batches} microbatches, {len(ratios)} ratios: "
            f"best {ratios[best][0]}A-{ratios[best][1]}F with {rates[best]:,.0f} tokens/s an instance; "
            + ", ".join(f"{x}A-{y}F {rates[ratios.index((x, y))]:,.0f}" for x, y in sorted(chosen))
        )
        return {
            "best": f"{ratios[best][0]}A-{ratios[best][1]}F",
            "tokens_per_s": {f"{x}A-{y}F": rate for (x, y), rate in zip(ratios, rates, strict=True)},
        }
