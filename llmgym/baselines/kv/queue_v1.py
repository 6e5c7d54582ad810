"""Rules for KVQueue-v1: orders, aging and victims of engines in use, each carried out by the engine itself."""

from typing import Any

from llmgym.baselines.kv.queue import RuleFactory
from llmgym.baselines.kv.queue_pick import NUMBERS, PickArea
from llmgym.baselines.kv.queue_rollout import RolloutPolicy
from llmgym.baselines.rule import Factory
from llmgym.serving.rules import OF_ENGINES

NAMES = ("vllm", "area-watermark", "mc-sf", "smallest-area", *OF_ENGINES)

AGING = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
LEAD_S = (1.0, 3.0, 10.0, 30.0)
WATERMARKS = (0.0, 0.01, 0.02, 0.05, 0.1)
VICTIMS = ("youngest", "least-computed", "largest")

GRIDS: dict[str, tuple[str, ...]] = {
    "vllm": tuple(f"vllm:watermark={w}" for w in WATERMARKS),
    "area-watermark": tuple(f"area-watermark:watermark={w}" for w in WATERMARKS),
    "shortest-first": tuple(f"shortest-first:watermark={w}" for w in WATERMARKS),
    "area-aging": tuple(f"area-aging:aging={a},victim={v}" for a in AGING for v in VICTIMS),
    "edf": tuple(f"edf:watermark={w},victim={v}" for w in WATERMARKS[:3] for v in VICTIMS),
    "priority-aging": tuple(f"priority-aging:lead_s={s}" for s in LEAD_S),
    "least-computed": tuple(f"least-computed:watermark={w}" for w in WATERMARKS),
    "pick-area": tuple(
        f"pick-area:aging={a},lead_s={s},cached_s={c}"
        for a in (0.0, 0.02, 0.05, 0.1, 2.0)
        for s in (0.0, 1.0, 3.0)
        for c in (0.0, 3.0)
    ),
    "longest-prefix": tuple(f"longest-prefix:watermark={w}" for w in WATERMARKS),
}
"""The values over which each rule is tuned before it is compared (`llmgym.evaluation.tune`)."""
BOARDS: dict[str, tuple[str, ...]] = {
    "azure-conv-tight": ("rollout",),
    "tiers": ("rollout",),
    "sessions": ("rollout",),
}
"""Scenarios of the leaderboard, each with the rules that are too slow to run on many of its worlds."""

BASELINES: dict[str, Any] = {
    **{name: RuleFactory(name) for name in NAMES},
    "pick-area": Factory("pick-area", PickArea, NUMBERS),
    "rollout": Factory("rollout", RolloutPolicy, {"tail": int}),
}
