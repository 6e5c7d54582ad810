"""Rules and closed forms for a serving queue under a KV-cache limit.

The stability law is that of Nie, Si and Zhou (ICML 2026, arXiv 2605.04595); the rules for the same queue are those of vLLM V1,
Jaillet et al. (arXiv 2502.07115: MC-SF and its relatives, clearing), Dai et al. (arXiv 2504.07347: batches under a token
budget) and Dong and Cao (arXiv 2604.11001: class budgets). The rules themselves are data, `CATALOGUE` of
`llmgym.serving.rules` and `area-aging` of its `OF_ENGINES`, carried out by compiled code inside the environment; a policy here only
says which is in force.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmgym.errors import InvalidArgument
from llmgym.serving.capacity import (
    Saturation,
    area,
    budget_rate,
    critical_rate,
    exact_area,
    gap,
    gpus_needed,
    mean_area,
    mixture_rate,
    reserve_rate,
    safe_class_budgets,
    saturation,
    slack,
)
from llmgym.serving.rules import CATALOGUE, resolve

__all__ = [
    "BASELINES",
    "GRIDS",
    "RulePolicy",
    "Saturation",
    "area",
    "budget_rate",
    "critical_rate",
    "exact_area",
    "gap",
    "gpus_needed",
    "mean_area",
    "mixture_rate",
    "reserve_rate",
    "safe_class_budgets",
    "saturation",
    "slack",
]

GRIDS: dict[str, tuple[str, ...]] = {
    "vllm": tuple(f"vllm:watermark={w}" for w in (0.0, 0.01, 0.02, 0.05, 0.1)),
    "area-watermark": tuple(f"area-watermark:watermark={w}" for w in (0.0, 0.01, 0.02, 0.05, 0.1)),
    "area-aging": tuple(
        f"area-aging:aging={aging},watermark={w}"
        for aging in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
        for w in (0.0, 0.02, 0.05)
    ),
    "alpha-clearing": tuple(f"alpha-clearing:headroom={a}" for a in (0.1, 0.2, 0.3)),
    "beta-clearing": tuple(
        f"beta-clearing:headroom={a},clear_probability={b}" for a in (0.1, 0.2, 0.3) for b in (0.1, 0.2)
    ),
}
"""The values over which each rule is tuned before it is compared (`llmgym.evaluation.tune`)."""
BOARDS: dict[str, tuple[str, ...]] = {"tiny-overload": (), "azure-conv-tight": ()}
"""Scenarios of the leaderboard, each with the rules that are too slow to run on many of its worlds."""


class RulePolicy:
    """One rule of the catalogue in every batch.

    On an environment made with `action="rule"` it names the rule. On `action="admit"` (in order of arrival) it can play
    `wc-fcfs`, the largest admission that fits, and on `action="watermark"` it can play `vllm`.
    """

    privileged = False

    def __init__(self, env: Any, name: str) -> None:
        self.name = name
        self.env_kwargs: Mapping[str, Any] = {"action": "rule", "rules": (name,)}
        simulation = env.unwrapped.simulation
        (rule,) = resolve((name,))
        self._mode = simulation.action_mode
        self._rule = 0
        if self._mode == "rule":
            known = [other.name for other in simulation.rules]
            if name not in known:
                raise InvalidArgument(
                    f"the environment was made with rules={known}, which do not include {name!r}"
                )
            self._rule = known.index(name)
        elif self._mode == "admit" and name == "wc-fcfs" and simulation.rules[0].order == "arrival":
            pass
        elif self._mode == "watermark" and name.startswith("vllm") and rule.check == "whole-prompt":
            self._watermark = rule.watermark
        else:
            raise InvalidArgument(
                f"rule {name!r} cannot be played with action={self._mode!r}: make the environment with "
                f"action='rule', rules=({name!r},)"
            )

    def act(self, obs: NDArray[np.float32], mask: NDArray[np.int8] | None) -> NDArray[Any]:
        """Actions of all lanes."""
        lanes = len(obs)
        if self._mode == "rule":
            return np.full(lanes, self._rule, np.int64)
        if self._mode == "watermark":
            return np.full((lanes, 1), self._watermark)
        assert mask is not None
        return mask.shape[1] - 1 - np.argmax(mask[:, ::-1], axis=1)

    def reset(self, lanes: NDArray[np.bool_]) -> None:
        """Nothing is remembered."""

    def take(self, other: "RulePolicy", lanes: NDArray[np.int64]) -> None:
        """Nothing is remembered."""


class RuleFactory:
    def __init__(self, name: str) -> None:
        self.name = name
        self.env_kwargs = {"action": "rule", "rules": (name,)}

    def __call__(self, env: Any) -> RulePolicy:
        return RulePolicy(env, self.name)

    def variant(self, name: str) -> "RuleFactory":
        """The same rule with other numbers, such as `vllm:watermark=0.05`."""
        resolve((name,))
        return RuleFactory(name)


BASELINES = {name: RuleFactory(name) for name in (*CATALOGUE, "area-aging")}
