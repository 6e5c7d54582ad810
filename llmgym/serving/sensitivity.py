"""What a little more or less time a step does to a replay.

Far below saturation a step that is 3 % longer makes everybody 3 % slower. Near it the same 3 % decide how long the line grows: the
time that requests wait goes with 1 / (1 - load). No profile is exact to 3 %, so a replay near saturation is told with a band.
"""

from typing import Any

from llmgym.core.checks import number, whole
from llmgym.profiles.profile import Profile
from llmgym.serving.capacity import saturation
from llmgym.serving.replay import latency_figures, replay
from llmgym.serving.requests import FIRST_TOKENS
from llmgym.workloads import RequestClass, Workload
from llmgym.workloads import replay as arrivals_of
from llmgym.workloads.arrivals import Rows

STEP_S = 0.3e-3
"""What a step of the same engine differs by from one machine or start to another, s: the steps of vLLM 0.24 that decode, on the
H100s and H200s that were measured (`docs/fidelity.md`)."""
NEAR = 2 / 3
"""Share of the saturated rate in closed form from which a band is told: four fifths of what an engine sustains, where a queue of
one server (M / M / 1) makes a request wait for four others. The closed form is a fifth above that: 16.7 for 14.0 requests a second
in the queueing paper's experiment on an H100, 27 for 22.7 of the Azure conversations (`docs/fidelity.md`)."""


def load(
    rows: Rows,
    profile: Profile,
    kv_capacity: int | None = None,
    budget: int = 2048,
    chunk: int | None = None,
    seats: int = 256,
    ranks: int = 1,
) -> float:
    """Rate of the requests over the rate at which such requests saturate the engines, in closed form (`capacity.saturation`).

    Args:
        rows: arrivals (s) and lengths (tokens).
        profile: what a step costs.
        kv_capacity: tokens that the cache of a rank holds; None: what the profile's memory leaves.
        budget: tokens of a batch.
        chunk: longest chunk of one prompt in a batch, tokens; None: the budget.
        seats: requests that run at once on a rank.
        ranks: engines.

    Returns:
        The share; infinite if all arrive at once, 0 for one request. Prefixes that are found in the cache are not taken off.

    Raises:
        InvalidArgument: a number out of range.
    """
    whole("ranks", ranks)
    if len(rows) < 2:
        return 0.0
    span_s = float(rows.arrival_s.max() - rows.arrival_s.min())
    if span_s == 0.0:
        return float("inf")
    workload = Workload("rows", arrivals_of(rows, from_start=True), (RequestClass(rows=rows),))
    capacity = profile.kv_capacity_tokens() if kv_capacity is None else kv_capacity
    first, stored = FIRST_TOKENS["with-prefill"]
    closed = saturation(
        workload, profile, capacity, budget if chunk is None else chunk, budget, seats, first, stored=stored
    )
    return (len(rows) - 1) / span_s / (closed.rate_rps * ranks)


def band(
    rows: Rows, profile: Profile, step_s: float = STEP_S, **settings: Any
) -> dict[str, tuple[float, float]]:
    """The figures of a replay when every step takes so much less, and so much more.

    Args:
        rows: the requests.
        profile: what a step costs.
        step_s: less and more, s.
        settings: other arguments of `replay`.

    Returns:
        A pair for each key of `latency_figures`, the faster engine first.

    Raises:
        InvalidArgument: `step_s` is no number above 0, or as `replay` does.
    """
    number("step_s", step_s)
    found = []
    for slower_s in (-step_s, step_s):
        served = replay(rows, profile, slower_s=slower_s, **settings)
        found.append(latency_figures(served.arrival_s, served.first_s, served.last_s, rows.output_tokens))
    return {key: (found[0][key], found[1][key]) for key in found[0]}
