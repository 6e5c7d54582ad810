"""`llmgym plan kv` and `llmgym plan law`: how many GPUs a load needs under the KV-cache limit.

The closed forms are those of Nie, Si and Zhou, ICML 2026, arXiv 2605.04595 (`llmgym.serving.capacity`).
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from llmgym import profiles, workloads
from llmgym.core.checks import number, whole
from llmgym.core.told import Told
from llmgym.errors import InvalidArgument
from llmgym.profiles import Profile
from llmgym.serving.capacity import (
    Fitting,
    critical_rate,
    fitting,
    gpus_needed,
    mean_area,
    saturation,
)
from llmgym.workloads import Workload

_LEAST_SHARE = 1e-3
"""A cache that holds fewer of the requests than this serves no load; laws of length are no truer than this either."""


@dataclass(frozen=True)
class Kv(Told):
    """How many GPUs a load needs under the KV-cache limit (Nie, Si, Zhou, ICML 2026), and how that comes about."""

    rate: float
    """Requests a second of the whole service."""
    workload: str = "azure-conv-2023"
    """Named workload, or the path of a trace file."""
    profile: str = "h100/llama-3.1-8b"
    """Named profile, or the path of a profile folder."""
    utilization: float = 0.9
    """Share of the critical rate that each GPU may be loaded with."""
    kv_capacity: int | None = None
    """Tokens the cache holds; what the profile's memory leaves if left out."""
    chunk: int = 2048
    """Longest prefill chunk, tokens."""
    budget: int = 2048
    """Tokens of a batch."""
    seats: int = 256
    """Requests that run at once."""
    simulate: bool = True
    """Check the closed form with a simulated saturated engine."""

    def run(self, console: Console) -> dict[str, Any]:
        """Print the plan.

        Returns:
            The same as numbers.

        Raises:
            LlmgymError: a name or number that does not do, or a cache that holds next to none of the requests.
        """
        gpus_needed(number("rate", self.rate), 1.0, self.utilization)
        chunk, budget, seats = (whole(name, getattr(self, name)) for name in ("chunk", "budget", "seats"))
        workload = workloads.load(self.workload)
        profile = profiles.load(self.profile)
        capacity = whole(
            "kv_capacity", profile.kv_capacity_tokens() if self.kv_capacity is None else self.kv_capacity
        )
        fits = fitting(workload, capacity)
        served = _served_rate(console, self.rate, fits, capacity, self.workload)
        predicted = saturation(workload, profile, capacity, chunk, budget, seats, first=1, within=capacity)
        needed = gpus_needed(served, predicted.rate_rps, self.utilization)
        table = Table(title=f"{self.workload} on {self.profile}", title_justify="left", show_header=False)
        for name, value in (
            ("M, tokens the KV cache holds", f"{capacity:,}"),
            ("mean prompt E(s)", f"{workload.expectation(lambda s, o: s):,.0f} tokens"),
            ("mean output E(o)", f"{workload.expectation(lambda s, o: o):,.0f} tokens"),
            ("requests that fit into the cache", f"{fits.share:.1%}"),
            ("mean area of these E(g)", f"{predicted.mean_area:,.0f} tokens x batches"),
            ("delta = max(s + o) / M of these", f"{fits.largest_tokens / capacity:.3f}"),
            (
                "b, a saturated batch",
                f"{1e3 * predicted.batch_s:.2f} ms, {predicted.residents:.3g} requests in it",
            ),
            ("the KV cache allows M / (b E(g))", f"{predicted.memory_rate_rps:.4g} req/s a GPU"),
            ("the token budget allows K / (b E(s + o))", f"{predicted.budget_rate_rps:.4g} req/s a GPU"),
            ("the sequence limit allows", f"{predicted.seats_rate_rps:.4g} req/s a GPU"),
            ("what binds", predicted.binding),
            ("mu, critical rate of one GPU", f"{predicted.rate_rps:.4g} req/s"),
        ):
            table.add_row(name, value)
        console.print(table)
        console.print(
            f"[bold]{needed:,} GPU{'s' * (needed != 1)}[/bold] = ceil({served:g} / ({self.utilization:g} x "
            f"{predicted.rate_rps:.4g})): each is loaded to {served / needed / predicted.rate_rps:.0%} of its critical rate."
        )
        if self.kv_capacity is not None and profile.memory_bytes and profile.kv_bytes_per_token:
            held = profile.kv_capacity_tokens(1.0)
            if capacity > held:
                console.print(
                    f"[yellow]Memory:[/yellow] a cache of {capacity:,} tokens does not fit beside the weights in the memory of "
                    f"{self.profile}; {held:,} do."
                )
        told = {
            "workload": self.workload,
            "profile": self.profile,
            "gpus": needed,
            "rate_rps": self.rate,
            "served_rps": served,
            "kv_capacity_tokens": capacity,
            "fitting_share": fits.share,
            "mean_prompt_tokens": workload.expectation(lambda s, o: s),
            "mean_output_tokens": workload.expectation(lambda s, o: o),
            "mean_area": predicted.mean_area,
            "batch_s": predicted.batch_s,
            "residents": predicted.residents,
            "memory_rate_rps": predicted.memory_rate_rps,
            "budget_rate_rps": predicted.budget_rate_rps,
            "seats_rate_rps": predicted.seats_rate_rps,
            "binding": predicted.binding,
            "critical_rate_rps": predicted.rate_rps,
            "simulated_rate_rps": None,
        }
        if self.simulate:
            told["simulated_rate_rps"] = measured = simulated_rate(workload, profile, capacity, self)
            console.print(
                f"Simulated with work always waiting (vLLM's rule, watermark 0.02): {measured:.4g} req/s a GPU, "
                f"{measured / predicted.rate_rps - 1:+.1%} to the closed form; by that rate "
                f"{gpus_needed(served, measured, self.utilization):,} GPUs."
            )
        return told


@dataclass(frozen=True)
class Law(Told):
    """The bare stability law mu = M / (b E[g]) with a batch time of your own measuring."""

    rate: float
    """Requests a second of the whole service."""
    batch_s: float
    """b: seconds of a batch near saturation (the median, or a trimmed mean where it has a heavy tail)."""
    kv_capacity: int
    """M: tokens the cache of one GPU holds."""
    workload: str = "uniform-1:1"
    """Named workload, or the path of a trace file."""
    chunk: int = 512
    """Prefill chunk, tokens."""
    utilization: float = 0.9
    """Share of the critical rate that each GPU may be loaded with."""

    def run(self, console: Console) -> dict[str, Any]:
        """Print the plan.

        Returns:
            The same as numbers.

        Raises:
            LlmgymError: a name or number that does not do, or a cache that holds next to none of the requests.
        """
        gpus_needed(number("rate", self.rate), 1.0, self.utilization)
        capacity, chunk = whole("kv_capacity", self.kv_capacity), whole("chunk", self.chunk)
        number("batch_s", self.batch_s)
        workload = workloads.load(self.workload)
        fits = fitting(workload, capacity)
        served = _served_rate(console, self.rate, fits, capacity, self.workload)
        g = mean_area(workload, chunk, within=capacity)
        mu = critical_rate(capacity, self.batch_s, g)
        delta = fits.largest_tokens / capacity
        needed = gpus_needed(served, mu, self.utilization)
        console.print(
            f"E(g) = {g:,.0f} tokens x batches, mu = {capacity:,} / ({self.batch_s:g} x E(g)) = {mu:.4g} req/s"
        )
        console.print(
            f"stable below mu (1 - delta) = {mu * (1 - delta):.4g} req/s with delta = {delta:.4f}, unstable above mu"
        )
        console.print(
            f"[bold]{needed:,} GPU{'s' * (needed != 1)}[/bold] = ceil({served:g} / ({self.utilization:g} x {mu:.4g}))"
        )
        return {
            "workload": self.workload,
            "gpus": needed,
            "rate_rps": self.rate,
            "served_rps": served,
            "mean_area": g,
            "critical_rate_rps": mu,
            "stable_rate_rps": mu * (1 - delta),
            "delta": delta,
        }


def _served_rate(console: Console, rate: float, fits: Fitting, capacity: int, workload: str) -> float:
    """Requests a second that can be served of a load of `rate`; says so where that is not all of it.

    Raises:
        InvalidArgument: next to none.
    """
    if fits.share < _LEAST_SHARE:
        raise InvalidArgument(
            f"kv_capacity={capacity}: {'none' if fits.share == 0 else 'next to none'} of the requests of {workload} "
            f"fit into the cache; prompt and output take {fits.smallest_tokens:,} tokens at least and "
            f"{fits.mean_tokens:,.0f} on average"
        )
    if fits.share == 1.0:
        return rate
    served: float = rate * fits.share
    console.print(
        f"[yellow]Partial:[/yellow] {fits.share:.2%} of the requests fit into the cache (prompt and output of at most "
        f"{capacity:,} tokens); the others can never be served. Of {rate:g} req/s, {served:.4g} are served."
    )
    return served


def simulated_rate(workload: Workload, profile: Profile, capacity: int, plan: Kv) -> float:
    """Requests a second that an engine with work always waiting completes, after a warm-up.

    Args:
        workload: who asks; its arrivals are not used.
        profile: what a batch costs.
        capacity: tokens that the cache holds.
        plan: chunk, budget and seats.

    Raises:
        InvalidArgument: too few are completed to tell.
    """
    import gymnasium

    requests, lanes = 2000, 4
    # all at once: a bursty workload would let the engine run dry
    workload = workload.with_requests(requests).with_arrivals(workloads.burst())
    drawn = workload.sample(np.random.default_rng(0), 200_000)
    fits = drawn.prompt_tokens + drawn.output_tokens <= capacity
    if not fits.all():  # KVQueue would cut outputs that are too long, and count what it has cut as served
        rows = workloads.Rows(drawn.arrival_s[fits], drawn.prompt_tokens[fits], drawn.output_tokens[fits])
        workload = replace(workload, classes=(workloads.RequestClass(rows=rows),), phases=())
    envs: Any = gymnasium.make_vec(
        "llmgym/KVQueue-v0",
        lanes,
        scenario="azure-conv",
        workload=workload,
        profile=profile,
        kv_capacity=capacity,
        chunk=plan.chunk,
        budget=plan.budget,
        seats=min(plan.seats, requests),
        requests=requests,
        horizon_s=1e9,
        waiting_cap=2**30,
        action="rule",
        rules=("vllm",),
    )
    envs.reset(seed=0)
    state, rates = envs.unwrapped.lanes.state, []
    envs.unwrapped.lanes.run()
    for lane in range(lanes):
        served = state.request[lane][state.request[lane]["e2e_s"] >= 0]
        ends = np.sort(served["arrival_s"] + served["e2e_s"])
        low, high = requests // 5, requests * 4 // 5
        if len(ends) <= high:
            raise InvalidArgument(
                f"kv_capacity={capacity}: the simulated engine completes {len(ends)} of {requests} requests only"
            )
        rates.append((high - low) / (ends[high] - ends[low]))
    return float(np.mean(rates))
