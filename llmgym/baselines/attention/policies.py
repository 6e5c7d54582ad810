"""Rules for AttentionBudget: one kernel always, the crossover of measured times, deadlines first, and prices of loss and of time.

`always-flash`, `always-slay`, `always-favor`, `crossover`, `slo-greedy` and `dual-budget` follow the SLAY paper (Luna, Bouhsine,
Choromanski, ICML 2026, arXiv 2602.04915) and what it compares with: one kernel for all, or the one that is faster at a length.
None of them defers. `priced` is the strongest plain rule known here. All of these read nothing but the observation. `rollout` and
`offline-dp` see the future.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmgym.baselines.attention.offline import OfflinePolicy
from llmgym.baselines.attention.oracle import LEAST_LEFT, MOST_LEFT, RolloutPolicy
from llmgym.baselines.rule import Factory, RandomPolicy, Rule
from llmgym.core.checks import number
from llmgym.core.policy import Policy
from llmgym.envs.attention.env import AttentionBudget
from llmgym.envs.attention.kernels import LOG_LONGEST
from llmgym.envs.attention.state import CROWD, EXCESS, LOSS, PARTS, ROW, SLACK, TIME

Floats = NDArray[np.float64]

FLASH = ("fused softmax", "softmax")
SLAY = ("slay 2 16 8",)
FAVOR = ("favor 256", "favor")
"""Kernels that a rule prefers, the first of those that a menu has."""
KILO = 1000.0
"""Tokens are priced by the thousand in `dual-budget`."""
LEAST_SLACK = 0.05
"""Least time left that `dual-budget` divides by, in mean service times: late batches are served fast."""
TIE = 1e-6
"""Losses and times that differ by less are equal; observations are float32."""


class Rows(NamedTuple):
    """What an observation says of every action that serves, float64 [lanes, actions], in plain units.

    Attributes:
        time: mean service times.
        slack: time left until the deadline after it, mean service times.
        loss: budgets.
        excess: loss above the limit of the class, budgets.
        parts: parts that the batch is divided into.
        allowed: bool.
    """

    time: Floats
    slack: Floats
    loss: Floats
    excess: Floats
    parts: Floats
    allowed: NDArray[np.bool_]


class AttentionRule(Rule[AttentionBudget]):
    """A rule of AttentionBudget, with what all of them read."""

    def __init__(self, env: Any, name: str) -> None:
        super().__init__(env, name, AttentionBudget)

    def rows(self, obs: NDArray[np.float32], mask: NDArray[np.int8] | None) -> Rows:
        """The block of actions in plain units.

        Args:
            obs: observations [lanes, layout.size].
            mask: of the actions [lanes, actions], or None: what the observation allows.
        """
        block = self._rows(obs, "action").reshape(len(obs), -1, len(ROW))[:, :-1]
        shown = block[..., len(ROW) - 2] > 0.5
        free = shown if mask is None else mask[:, :-1] == 1
        return Rows(
            _plain(block[..., TIME]),
            _plain(block[..., SLACK]),
            _plain(block[..., LOSS]),
            _plain(block[..., EXCESS]),
            np.rint(1.0 / block[..., PARTS].clip(1e-6)),
            free,
        )

    def tokens(self, obs: NDArray[np.float32]) -> Floats:
        """Tokens of the head, float64 [lanes]."""
        requests = self._read(obs, "head.requests")
        return 2.0 ** (LOG_LONGEST * self._read(obs, "head.length")) * requests * CROWD / (1.0 - requests)

    def waiting(self, obs: NDArray[np.float32]) -> Floats:
        """Batches that wait, float64 [lanes]."""
        shown = self._read(obs, "waiting")
        return np.rint(shown * CROWD / (1.0 - shown))


def _plain(x: Floats) -> Floats:
    """Undo x / (1 + |x|)."""
    return x / np.maximum(1.0 - np.abs(x), 1e-9)


def least(rows: Rows, *keys: Floats) -> NDArray[Any]:
    """The allowed action with the least of the first key, among equal ones of the second, and so on; int64 [lanes]."""
    free = rows.allowed
    for key in keys:
        value = np.where(free, key, np.inf)
        best = value.min(axis=1, keepdims=True)
        free = free & (value <= best + TIE * (1.0 + np.abs(best)))
    return free.argmax(axis=1)


class AlwaysPolicy(AttentionRule):
    """`always-flash`, `always-slay`, `always-favor`: one kernel, in as few parts as fit; another where it cannot be used.

    That is the one at the least loss, and the faster of two such. Where a menu has no such kernel the rule is that throughout.

    Args:
        env: the environment.
        name: of the policy.
        preferred: kernels, of which the first that the menu has is used.
    """

    def __init__(self, env: Any, name: str, preferred: tuple[str, ...]) -> None:
        super().__init__(env, name)
        self._mine = _actions_of(self._simulation, preferred)

    def act(self, obs: NDArray[np.float32], mask: NDArray[np.int8] | None) -> NDArray[Any]:
        """The actions of all lanes, int64 [lanes]."""
        rows = self.rows(obs, mask)
        return least(rows, (~self._mine).astype(np.float64), rows.loss * ~self._mine, rows.parts, rows.time)


def _actions_of(simulation: AttentionBudget, preferred: tuple[str, ...]) -> NDArray[np.bool_]:
    """Which actions serve with the first of these kernels that the menu has, bool [actions]."""
    there = [name for name in preferred if name in simulation.menu]
    kernel = simulation.menu.index(there[0]) if there else -1
    mine: NDArray[np.bool_] = np.arange(simulation.defer) // len(simulation.splits) == kernel
    return mine


class CrossoverPolicy(AttentionRule):
    """`crossover`: softmax below the length from which on SLAY is faster in the profile, SLAY(2, 16, 8) from there on.

    Deadlines and the ledger are not looked at. Softmax is fused where the menu has it.

    Args:
        env: the environment.
        name: of the policy.
        tokens: the length; 0 takes the measured one.
    """

    def __init__(self, env: Any, name: str = "crossover", tokens: float = 0.0) -> None:
        super().__init__(env, name)
        menu = self._simulation.menu
        self.tokens_from = number("tokens", tokens, zero=True)
        self._exact = _actions_of(self._simulation, FLASH)
        self._linear = _actions_of(self._simulation, SLAY)
        known = [name for name in FLASH if name in menu]
        if self.tokens_from == 0.0:
            both = bool(known) and SLAY[0] in menu
            self.tokens_from = self._simulation.crossover(SLAY[0], known[0]) if both else float("inf")

    def act(self, obs: NDArray[np.float32], mask: NDArray[np.int8] | None) -> NDArray[Any]:
        """The actions of all lanes, int64 [lanes]."""
        rows = self.rows(obs, mask)
        # lengths are whole; half a token covers the rounding of an observation
        length = 2.0 ** (LOG_LONGEST * self._read(obs, "head.length")) + 0.5
        mine = np.where((length >= self.tokens_from)[:, None], self._linear, self._exact)
        return least(rows, 1.0 - mine, rows.loss * ~mine, rows.parts, rows.time)


class DeadlinePolicy(AttentionRule):
    """`slo-greedy`: of the actions that make the deadline the one at the least loss, the faster of two such; else the fastest."""

    def __init__(self, env: Any, name: str = "slo-greedy") -> None:
        super().__init__(env, name)

    def act(self, obs: NDArray[np.float32], mask: NDArray[np.int8] | None) -> NDArray[Any]:
        """The actions of all lanes, int64 [lanes]."""
        rows = self.rows(obs, mask)
        makes = rows.allowed & (rows.slack >= 0.0)
        gentle = least(rows._replace(allowed=makes), rows.loss, rows.time)
        return np.where(makes.any(axis=1), gentle, least(rows, rows.time))


class DualPolicy(AttentionRule):
    """`dual-budget`: the least of time over time left, plus a price times thousands of tokens times loss.

    After each batch the price moves by `rate` times what the mean loss so far is above the budget, and is never below 0.

    Args:
        env: the environment.
        name: of the policy.
        rate: of the price, per nat.
    """

    remembered = ("_price", "_done")

    def __init__(self, env: Any, name: str = "dual-budget", rate: float = 50.0) -> None:
        super().__init__(env, name)
        self.rate = number("rate", rate)
        self._price: Floats = np.zeros(0)
        self._done: Floats = np.zeros(0)

    def act(self, obs: NDArray[np.float32], mask: NDArray[np.int8] | None) -> NDArray[Any]:
        """The actions of all lanes, int64 [lanes]."""
        rows, budget = self.rows(obs, mask), self._simulation.scenario.budget
        if len(self._price) != len(obs):
            self._price, self._done = np.zeros(len(obs)), np.zeros(len(obs))
        done = np.rint(self._read(obs, "progress") * self._simulation.scenario.batches)
        above = budget * (_plain(self._read(obs, "ledger.spent")) - 1.0)
        moved = np.maximum(self._price + self.rate * above, 0.0)
        self._price = np.where(done > self._done, moved, self._price)
        self._done = done
        left = np.maximum(_plain(self._read(obs, "head.slack")), LEAST_SLACK)[:, None]
        tokens = (self._price * self.tokens(obs) / KILO)[:, None]
        return least(rows, rows.time / left + tokens * rows.loss * budget, rows.time)

    def reset(self, lanes: NDArray[np.bool_]) -> None:
        """Prices of these lanes are 0 again."""
        if len(self._price) == len(lanes):
            self._price, self._done = np.where(lanes, 0.0, self._price), np.where(lanes, 0.0, self._done)


class PricedPolicy(AttentionRule):
    """`priced`: the action that is worth most, with a price of loss and a price of time while others wait.

    Worth is what the reward counts of this batch, less `loss` for every budget of loss per mean token, less `time` for every mean
    service time and batch that waits behind it. The price of loss is divided by the power `pace` of what the ledger has left per
    token to come, in budgets, so that it rises when too much was spent. Where no action makes the deadline and another batch waits,
    `skip` looks at that one first.

    Args:
        env: the environment.
        name: of the policy.
        loss: price of the ledger, in mean batches on time.
        time: price of a mean service time for each batch that waits, in mean batches on time.
        pace: power with which the price of the ledger follows what is left; 0: it is constant.
        skip: 1: what would be late is left for later; 0: the oldest is served first.
    """

    def __init__(
        self,
        env: Any,
        name: str = "priced",
        loss: float = 0.5,
        time: float = 0.3,
        pace: float = 1.0,
        skip: int = 1,
    ) -> None:
        super().__init__(env, name)
        self.loss, self.time = number("loss", loss, zero=True), number("time", time, zero=True)
        self.pace = number("pace", pace, zero=True)
        self.skip = number("skip", skip, zero=True) != 0

    def act(self, obs: NDArray[np.float32], mask: NDArray[np.int8] | None) -> NDArray[Any]:
        """The actions of all lanes, int64 [lanes]."""
        rows, chosen = self.rows(obs, mask), self._simulation.scenario
        makes = rows.allowed & (rows.slack >= 0.0)
        even = self._simulation.reward == "batches"
        tokens = (self.tokens(obs) / self._simulation.mean_tokens)[:, None]
        weight = np.ones_like(tokens) if even else tokens
        worth = weight * np.where(makes, 1.0, -chosen.late_weight)
        worth -= weight * chosen.excess_weight * chosen.budget * rows.excess
        to_come = np.maximum(1.0 - self._read(obs, "progress"), 1e-9)
        left = np.clip(self._read(obs, "ledger.left") / to_come, LEAST_LEFT, MOST_LEFT)
        worth -= self.loss * (left**-self.pace)[:, None] * tokens * rows.loss
        worth -= self.time * rows.time * np.maximum(self.waiting(obs) - 1.0, 0.0)[:, None]
        action = least(rows, -worth, rows.time)
        last = self._simulation.defer
        others = self._rows(obs, "action")[:, -2] > 0.5 if mask is None else mask[:, last] == 1
        return np.where(self.skip & others & ~makes.any(axis=1), last, action)


_PRICES = {"loss": float, "time": float, "pace": float, "skip": int}
BASELINES: dict[str, Callable[[Any], Policy]] = {
    "always-flash": Factory("always-flash", partial(AlwaysPolicy, preferred=FLASH)),
    "always-slay": Factory("always-slay", partial(AlwaysPolicy, preferred=SLAY)),
    "always-favor": Factory("always-favor", partial(AlwaysPolicy, preferred=FAVOR)),
    "crossover": Factory("crossover", CrossoverPolicy, {"tokens": float}),
    "slo-greedy": Factory("slo-greedy", DeadlinePolicy),
    "dual-budget": Factory("dual-budget", DualPolicy, {"rate": float}),
    "priced": Factory("priced", PricedPolicy, _PRICES),
    "random": Factory("random", partial(RandomPolicy, simulation_class=AttentionBudget)),
    "rollout": Factory("rollout", RolloutPolicy, _PRICES),
    "offline-dp": Factory("offline-dp", OfflinePolicy, {"labels": int}),
}

GRIDS: dict[str, tuple[str, ...]] = {
    "crossover": ("crossover", *(f"crossover:tokens={n}" for n in (16384, 32768, 65536, 98304))),
    "dual-budget": tuple(f"dual-budget:rate={rate}" for rate in (0.5, 5, 50, 500)),
    "priced": tuple(
        f"priced:loss={loss},time={time},pace={pace},skip=1"
        for loss in (0.05, 0.1, 0.2, 0.5, 1)
        for time in (0.1, 0.3, 1, 3)
        for pace in (0, 1, 2)
    ),
}
"""The values over which a rule is tuned before it is compared (`llmgym.evaluation.tuned`)."""
BOARDS: dict[str, tuple[str, ...]] = {"small": (), "real": ("rollout",)}
"""Scenarios of the leaderboard, each with the rules that are too slow to run on many of its worlds."""
