"""Who wins: paired runs of policies on equal worlds, statistics, tables, pictures and the report.

    from llmgym.evaluation import compare
    result = compare("llmgym/KVQueue-v0", ["wc-fcfs", "mc-sf"], episodes=30, scenario="tiny")
    print(result.table())
    result.report("report.html")

Names load when first used: importing this package imports neither scipy nor matplotlib.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmgym.evaluation.choose_backend import backend
    from llmgym.evaluation.comparison import Comparison
    from llmgym.evaluation.measure_room import room
    from llmgym.evaluation.paired import compare
    from llmgym.evaluation.results import Difference, Summary
    from llmgym.evaluation.rollout import EpisodeTable, run_episodes
    from llmgym.evaluation.room_result import RoomResult
    from llmgym.evaluation.tables import ResultTable
    from llmgym.evaluation.tuning import tuned

_HOMES = {
    "Comparison": "comparison",
    "Difference": "results",
    "EpisodeTable": "rollout",
    "ResultTable": "tables",
    "RoomResult": "room_result",
    "Summary": "results",
    "backend": "choose_backend",
    "compare": "paired",
    "room": "measure_room",
    "run_episodes": "rollout",
    "tuned": "tuning",
}
__all__ = [
    "Comparison",
    "Difference",
    "EpisodeTable",
    "ResultTable",
    "RoomResult",
    "Summary",
    "backend",
    "compare",
    "room",
    "run_episodes",
    "tuned",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'llmgym.evaluation' has no attribute {name!r}")
    return getattr(importlib.import_module(f"llmgym.evaluation.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
