"""A rule that weighs time, quality and memory of every waiting request in every mode, and gives up those that come too late."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmgym.baselines.segmented.rules import (
    DUE,
    FIRST,
    GO_ON,
    IDLE,
    MORE,
    NEVER,
    NO,
    Floats,
    ServerRule,
    unsquash,
)
from llmgym.core.checks import number
from llmgym.envs.segmented.state import ADMIT, DECODING, REJECT, RUN, WAIT

LEAST = 5.0
"""Rank of what is done only where nothing else is allowed."""


class TriagePolicy(ServerRule):
    """`triage`: of all prompts, waiting or admitted, the one that is most urgent and still worth it, in its best mode.

    A mode is chosen when the prompt is about to run, not before: by the value that it would have, less the cost of the quality
    that it lacks and a price of its time. Requests whose best value is below `give_up` are rejected. Urgent is the nearest limit;
    prompts that are short are favoured.

    Args:
        env: the environment.
        name: of the policy.
        short: weight of the time that a prompt still needs beside the time until its limit; large: the shortest first.
        price: what a mean prefill's time costs, in the unit of values.
        give_up: value at which a request is rejected; -1: never.
        pressure: share of the limit on later tokens at which decoding goes first.
    """

    def __init__(
        self,
        env: Any,
        name: str = "triage",
        short: float = 3.0,
        price: float = 0.0,
        give_up: float = -0.5,
        pressure: float = 0.4,
    ) -> None:
        super().__init__(env, name)
        self.short, self.price = number("short", short, zero=True), number("price", price, zero=True)
        self.give_up, self.pressure = float(give_up), number("pressure", pressure)
        self.quality_weight = float(self._simulation.params.config[0]["quality_weight"])

    def rank(self, obs: NDArray[np.float32], rows: Floats) -> Floats:
        """The most urgent prompt that is worth it, its admission, or decoding where that is due."""
        kind, lanes = self.shape.kind, len(rows)
        rank = np.full(rows.shape[:2], NO)
        rank[:, kind == WAIT] = IDLE
        rank[:, kind == DECODING] = np.where(self.pressed(obs, self.pressure), DUE, MORE)[:, None]
        run = rows[:, kind == RUN]
        urgency, _ = self._urgency(run)
        rank[:, kind == RUN] = np.where(self.entry(run, "room") >= 0.0, GO_ON + urgency, NEVER)
        # of each waiting request the best mode that fits
        admit = rows[:, kind == ADMIT]
        urgency, value = self._urgency(admit)
        shape = (lanes, -1, len(self._simulation.scenario.modes))
        there = (admit[..., ADMIT] > 0.0).reshape(shape)
        fits = (np.minimum(self.entry(admit, "room"), self.entry(admit, "spare")) >= 0.0).reshape(
            shape
        ) & there
        worth = np.where(fits, (value - self.price * unsquash(self.entry(admit, "rest"))).reshape(shape), NO)
        best = fits & (worth == worth.max(axis=2, keepdims=True))
        rank[:, kind == ADMIT] = np.where(best.reshape(lanes, -1), GO_ON + urgency, NO)
        most = np.where(there, value.reshape(shape), NO).max(axis=2)
        rank[:, kind == REJECT] = np.where(np.isfinite(most) & (most < self.give_up), FIRST, LEAST)
        return rank

    def _urgency(self, rows: Floats) -> tuple[Floats, Floats]:
        """How urgent some candidates are, in (0, 1), and their values less the cost of their quality; [lanes, candidates] each."""
        left, rest = unsquash(self.entry(rows, "left")), unsquash(self.entry(rows, "rest"))
        value = self.entry(rows, "value") - self.quality_weight * self.entry(rows, "shortfall")
        key = left + self.short * rest
        # those that are worth something before those that are not
        return 0.5 - 0.25 * key / (1.0 + np.abs(key)) + 0.2 * (value > 0.0), value
