"""Rules for SegmentedPrefill: the paper's mode, full and chunked attention, thresholds, greedy and deadline rules, a clairvoyant.

`paper-fixed` is the execution of Shang, Li, Duo, Cai and Su, ICML 2026 (arXiv 2605.11744), which schedules nothing. `full` is the
attention that it is compared with, `chunked-fcfs` follows the defaults of vLLM. The others choose among what the paper compares.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from llmgym.baselines.rule import Factory
from llmgym.baselines.segmented.clairvoyant import ClairvoyantPolicy
from llmgym.baselines.segmented.rules import (
    ChunkedPolicy,
    FullPolicy,
    GreedyPolicy,
    PaperFixedPolicy,
    RandomPolicy,
    ThresholdPolicy,
)
from llmgym.baselines.segmented.triage import TriagePolicy
from llmgym.core.policy import Policy

BASELINES: dict[str, Callable[[Any], Policy]] = {
    "paper-fixed": Factory("paper-fixed", PaperFixedPolicy),
    "full": Factory("full", FullPolicy),
    "chunked-fcfs": Factory("chunked-fcfs", ChunkedPolicy, {"chunk": int}),
    "threshold": Factory("threshold", ThresholdPolicy, {"tokens": int}),
    "memory-greedy": Factory("memory-greedy", GreedyPolicy),
    "edf": Factory("edf", partial(GreedyPolicy, deadlines=True)),
    "triage": Factory(
        "triage", TriagePolicy, {"short": float, "price": float, "give_up": float, "pressure": float}
    ),
    "clairvoyant": Factory("clairvoyant", ClairvoyantPolicy),
    "random": Factory("random", RandomPolicy),
}

GRIDS: dict[str, tuple[str, ...]] = {
    "threshold": tuple(f"threshold:tokens={tokens}" for tokens in (0, 8192, 16_384, 20_000, 32_768, 65_536)),
    "chunked-fcfs": ("chunked-fcfs:chunk=2048",),
    "triage": tuple(
        f"triage:short={short},price={price},give_up={give_up},pressure={pressure}"
        for short in (3, 10)
        for price in (0, 0.1)
        for give_up in (-0.5, 0.3)
        for pressure in (0.2, 0.4, 0.6)
    ),
}
"""The values over which a rule is tuned before it is compared (`llmgym.evaluation.tuned`)."""
BOARDS: dict[str, tuple[str, ...]] = {"small": ("clairvoyant",), "real": ("clairvoyant",)}
"""Scenarios of the leaderboard, each with the rules that are too slow to run on many of its worlds."""
