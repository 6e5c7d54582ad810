"""Rules for Unmask: DUS and what its paper compares it with, and combinations of these by the price of quality.

Luxembourg, Permuter and Nachmani, "Plan for Speed: Dilated Scheduling for Masked Diffusion Language Models", ICML 2026 (arXiv
2506.19037), sections 3 and 4, and the code released with it. A rule plans the whole set of a call when the call begins, from what
the denoiser says then. All but those of `llmgym.baselines.unmask.privileged` read nothing but the observation.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmgym.baselines.rule import Factory, RandomPolicy, Rule
from llmgym.baselines.unmask.privileged import LookAheadPolicy, mi_greedy
from llmgym.baselines.unmask.sets import Seen, SetPolicy
from llmgym.core.checks import number, whole
from llmgym.core.policy import Policy
from llmgym.envs.unmask.env import Unmask
from llmgym.envs.unmask.planners import best_spaced, budget, confident, next_level, spaced, top
from llmgym.envs.unmask.schedule import (
    SPACING_TOKENS,
    bisection_levels,
    dus_levels,
    fixed_counts,
    level_of,
    rising_counts,
    spacing_gap,
)

Score = Callable[[Seen], NDArray[np.float64]]
SCORES: dict[str, Score] = {
    "confidence": lambda seen: seen.confidence,
    "entropy": lambda seen: -seen.entropy_bits,
    "margin": lambda seen: seen.margin,
    "left-to-right": lambda seen: -np.arange(len(seen.masked), dtype=np.float64),
}
"""What makes a position wanted: the surest token by its probability, its entropy or its margin; the leftmost."""


class LevelsPolicy(SetPolicy):
    """`dus`, `bisection`: a schedule that is fixed beforehand, whatever the model says.

    Args:
        env: the environment.
        name: of the policy.
        levels: positions that each call reveals.
    """

    def __init__(self, env: Any, name: str, levels: list[NDArray[np.int64]]) -> None:
        super().__init__(env, name)
        self.level = level_of(levels)

    def plan(self, seen: Seen, out: NDArray[np.int8]) -> None:
        """Mark what is masked of the next level."""
        next_level(seen.masked, self.level, out)


def _block(env: Any, name: str) -> int:
    """Positions of a block. Raises `InvalidArgument` where the environment is no Unmask."""
    return Rule(env, name, Unmask)._simulation.scenario.block


def dus(env: Any, name: str = "dus", base: int = 2, skip: int = 1) -> Policy:
    """`dus`: the dilated schedule (section 3).

    Args:
        env: the environment.
        name: of the policy.
        base: what the stride is divided by from call to call.
        skip: the first stride is block // base**skip.

    Returns:
        The policy.

    Raises:
        InvalidArgument: the environment is no Unmask, or a number is out of range.
    """
    return LevelsPolicy(env, name, dus_levels(_block(env, name), base, skip))


def _bisection(env: Any, name: str) -> Policy:
    return LevelsPolicy(env, name, bisection_levels(_block(env, name)))


class DeferringPolicy(LevelsPolicy):
    """`dus-skip`: DUS whose unsure positions wait for the next call; the last call reveals all (section 3, optional).

    Args:
        env: the environment.
        name: of the policy.
        threshold: least confidence of a position that is revealed.
    """

    def __init__(self, env: Any, name: str = "dus-skip", threshold: float = 0.3) -> None:
        super().__init__(env, name, dus_levels(_block(env, name)))
        self.threshold = number("threshold", threshold, zero=True)

    def plan(self, seen: Seen, out: NDArray[np.int8]) -> None:
        """Mark the sure positions of all levels so far; all positions of these levels where none is sure."""
        due = (seen.masked == 1) & (self.level <= seen.call)
        sure = due & (seen.confidence >= self.threshold)
        out[:] = due if seen.call >= self.level.max() or not sure.any() else sure


class CountsPolicy(SetPolicy):
    """`confidence`, `entropy`, `margin`, `left-to-right`, and each with `-rising`: so many of the most wanted positions a call.

    Args:
        env: the environment.
        name: of the policy.
        score: what makes a position wanted.
        rising: the counts of DUS; otherwise equal ones.
        calls: calls of a block with equal counts; 0: as many as DUS.
    """

    def __init__(self, env: Any, name: str, score: Score, rising: bool = False, calls: int = 0) -> None:
        super().__init__(env, name)
        whole("calls", calls, 0, self.block)
        self.score = score
        levels = rising_counts(self.block)
        self.counts = levels if rising else fixed_counts(self.block, calls or len(levels))

    def plan(self, seen: Seen, out: NDArray[np.int8]) -> None:
        """Mark the most wanted positions, as many as the counts say."""
        top(seen.masked, self.score(seen), int(self.counts[min(seen.call, len(self.counts) - 1)]), out)


class RandomSetPolicy(CountsPolicy):
    """`random-fixed`, `random-rising`: so many random positions a call.

    Args:
        env: the environment.
        name: of the policy.
        rising: the counts of DUS; otherwise equal ones.
        calls: calls of a block with equal counts; 0: as many as DUS.
    """

    draws = True

    def __init__(self, env: Any, name: str, rising: bool = False, calls: int = 0) -> None:
        super().__init__(env, name, self._any, rising, calls)
        self._generator = np.random.default_rng(0)

    def _any(self, seen: Seen) -> NDArray[np.float64]:
        return self._generator.random(len(seen.masked))


class SpreadPolicy(CountsPolicy):
    """`spread`: the counts of DUS, of the surest positions with the widest gaps that leave so many.

    Args:
        env: the environment.
        name: of the policy.
    """

    def __init__(self, env: Any, name: str = "spread") -> None:
        super().__init__(env, name, SCORES["confidence"], rising=True)

    def plan(self, seen: Seen, out: NDArray[np.int8]) -> None:
        """Mark the surest positions with the widest gaps, as many as the counts say."""
        count = int(self.counts[min(seen.call, len(self.counts) - 1)])
        best_spaced(seen.masked, self.score(seen), count, out)


class BudgetPolicy(SetPolicy):
    """`eb`, `eb-price` and their `hybrid-` forms: the EB sampler, the surest positions that a budget of entropy pays for.

    Ben-Hamu et al., "Accelerated Sampling from Masked Diffusion Models via Entropy Bounded Unmasking" (2025). The hybrid of section
    4.4 accepts of these, the surest first, those that are far enough from all accepted ones.

    Args:
        env: the environment.
        name: of the policy.
        gamma: the budget, bits; with `priced` bits for lambda 1, of which lambda 2 buys half.
        priced: the budget is divided by lambda.
        tokens: least distance in a block that is all masked, g0; 0: no filter.
    """

    def __init__(
        self, env: Any, name: str, gamma: float = 1.0, priced: bool = False, tokens: int = 0
    ) -> None:
        super().__init__(env, name)
        self.gamma, self.priced = number("gamma", gamma, zero=True), priced
        self.tokens = whole("tokens", tokens, 0)

    def plan(self, seen: Seen, out: NDArray[np.int8]) -> None:
        """Mark the surest positions that the budget pays for."""
        gamma = self.gamma / seen.price if self.priced else self.gamma
        budget(seen.masked, seen.entropy_bits, gamma, np.empty(self.block), out)
        if self.tokens:
            gap = spacing_gap(seen.left, self.block, self.tokens)
            spaced(out.copy(), -seen.entropy_bits, gap, out)


class ConfidentPolicy(SetPolicy):
    """`cb`, `hybrid-cb`: the CB sampler, every position above a confidence, and always the surest.

    Wu et al., "Fast-dLLM" (2025).

    Args:
        env: the environment.
        name: of the policy.
        tau: the threshold.
        tokens: least distance in a block that is all masked, g0; 0: no filter.
    """

    def __init__(self, env: Any, name: str, tau: float = 0.5, tokens: int = 0) -> None:
        super().__init__(env, name)
        self.tau, self.tokens = number("tau", tau, zero=True), whole("tokens", tokens, 0)

    def plan(self, seen: Seen, out: NDArray[np.int8]) -> None:
        """Mark the positions above the threshold, and always the surest."""
        confident(seen.masked, seen.confidence, self.tau, out)
        if self.tokens:
            gap = spacing_gap(seen.left, self.block, self.tokens)
            spaced(out.copy(), seen.confidence, gap, out)


class SwitchPolicy(SetPolicy):
    """`switch`: DUS with its first two calls in one where quality is cheap, DUS in between, the EB sampler where it is dear.

    Args:
        env: the environment.
        name: of the policy.
        low: below this lambda the first two calls are one, calls per nat.
        high: from this lambda on the EB sampler reveals.
        gamma: its budget, bits.
    """

    def __init__(
        self, env: Any, name: str = "switch", low: float = 0.4, high: float = 3.0, gamma: float = 1.0
    ) -> None:
        super().__init__(env, name)
        self.low, self.high = number("low", low, zero=True), number("high", high, zero=True)
        self.gamma = number("gamma", gamma, zero=True)
        self._coarse, self._fine = (level_of(dus_levels(self.block, 2, skip)) for skip in (2, 1))

    def plan(self, seen: Seen, out: NDArray[np.int8]) -> None:
        """Mark what the rule for this lambda does."""
        if seen.price >= self.high:
            budget(seen.masked, seen.entropy_bits, self.gamma, np.empty(self.block), out)
        else:
            next_level(seen.masked, self._coarse if seen.price < self.low else self._fine, out)


class FixedSetPolicy(SetPolicy):
    """`one`, `all`: the surest position a call, or the whole block in one call.

    Args:
        env: the environment.
        name: of the policy.
        everything: the whole block.
    """

    def __init__(self, env: Any, name: str, everything: bool) -> None:
        super().__init__(env, name)
        self.everything = everything

    def plan(self, seen: Seen, out: NDArray[np.int8]) -> None:
        """Mark the surest position, or the whole block."""
        top(seen.masked, seen.confidence, self.block if self.everything else 1, out)


def _counts(score: str, rising: bool) -> Callable[..., Policy]:
    return partial(CountsPolicy, score=SCORES[score], rising=rising)


ADD = {"action": "add"}
"""What every rule of sets is made with."""
_CALLS = {"calls": int}
_BUDGET, _GAP = {"gamma": float}, {"tokens": int}

BASELINES: dict[str, Callable[[Any], Policy]] = {
    "dus": Factory("dus", dus, {"base": int, "skip": int}, ADD),
    "dus-skip": Factory("dus-skip", DeferringPolicy, {"threshold": float}, ADD),
    "bisection": Factory("bisection", _bisection, None, ADD),
    "confidence": Factory("confidence", _counts("confidence", False), _CALLS, ADD),
    "confidence-rising": Factory("confidence-rising", _counts("confidence", True), None, ADD),
    "entropy": Factory("entropy", _counts("entropy", False), _CALLS, ADD),
    "entropy-rising": Factory("entropy-rising", _counts("entropy", True), None, ADD),
    "margin": Factory("margin", _counts("margin", False), _CALLS, ADD),
    "margin-rising": Factory("margin-rising", _counts("margin", True), None, ADD),
    "left-to-right": Factory("left-to-right", _counts("left-to-right", False), _CALLS, ADD),
    "random-fixed": Factory("random-fixed", RandomSetPolicy, _CALLS, ADD),
    "random-rising": Factory("random-rising", partial(RandomSetPolicy, rising=True), None, ADD),
    "spread": Factory("spread", SpreadPolicy, None, ADD),
    "eb": Factory("eb", BudgetPolicy, _BUDGET, ADD),
    "cb": Factory("cb", ConfidentPolicy, {"tau": float}, ADD),
    "hybrid-eb": Factory(
        "hybrid-eb", BudgetPolicy, {**_BUDGET, **_GAP}, ADD, gamma=2.0, tokens=SPACING_TOKENS
    ),
    "hybrid-cb": Factory("hybrid-cb", ConfidentPolicy, {"tau": float, **_GAP}, ADD, tokens=SPACING_TOKENS),
    "eb-price": Factory("eb-price", partial(BudgetPolicy, priced=True), _BUDGET, ADD),
    "hybrid-price": Factory(
        "hybrid-price",
        partial(BudgetPolicy, priced=True),
        {**_BUDGET, **_GAP},
        ADD,
        gamma=4.0,
        tokens=SPACING_TOKENS,
    ),
    "switch": Factory("switch", SwitchPolicy, {"low": float, "high": float, "gamma": float}, ADD),
    "one": Factory("one", partial(FixedSetPolicy, everything=False), None, ADD),
    "all": Factory("all", partial(FixedSetPolicy, everything=True), None, ADD),
    "random": Factory("random", partial(RandomPolicy, simulation_class=Unmask), None, ADD),
    "mi-greedy": Factory("mi-greedy", mi_greedy, {"nats": float}, ADD),
    "mi-price": Factory("mi-price", partial(mi_greedy, priced=True), {"nats": float}, ADD),
    "look-ahead": Factory("look-ahead", LookAheadPolicy, {"gamma": float}, ADD),
}

GRIDS: dict[str, tuple[str, ...]] = {
    "dus": ("dus", "dus:skip=2", "dus:skip=3", "dus:base=3", "dus:base=4"),
    "dus-skip": tuple(f"dus-skip:threshold={x}" for x in (0.1, 0.3, 0.5)),
    "confidence": tuple(f"confidence:calls={n}" for n in (0, 8)),
    "entropy": tuple(f"entropy:calls={n}" for n in (0, 8)),
    "margin": tuple(f"margin:calls={n}" for n in (0, 8)),
    "left-to-right": tuple(f"left-to-right:calls={n}" for n in (0, 8)),
    "random-fixed": tuple(f"random-fixed:calls={n}" for n in (0, 8)),
    "eb": tuple(f"eb:gamma={x}" for x in (0.1, 0.5, 1, 2, 4)),
    "cb": tuple(f"cb:tau={x}" for x in (0.3, 0.5, 0.7, 0.9)),
    "hybrid-eb": tuple(f"hybrid-eb:gamma={x}" for x in (1, 2, 4, 8)),
    "hybrid-cb": tuple(f"hybrid-cb:tau={x}" for x in (0.1, 0.3, 0.5, 0.7)),
    "eb-price": tuple(f"eb-price:gamma={x}" for x in (0.25, 0.5, 1, 2, 4)),
    "hybrid-price": tuple(f"hybrid-price:gamma={x},tokens={n}" for x in (1, 4, 16) for n in (4, 6, 8)),
    "switch": tuple(
        f"switch:low={low},high={high},gamma={x}" for low in (0.2, 0.4) for high in (2, 4) for x in (0.5, 1)
    ),
    "mi-greedy": tuple(f"mi-greedy:nats={x}" for x in (0.02, 0.1, 0.5)),
    "mi-price": tuple(f"mi-price:nats={x}" for x in (0.1, 0.2, 0.4, 0.8)),
}
"""The values over which a rule is tuned before it is compared (`llmgym.evaluation.tuned`)."""
BOARDS: dict[str, tuple[str, ...]] = {"small": ("look-ahead",), "real": ()}
"""Scenarios of the leaderboard, each with the rules that are too slow to run on many of its worlds."""
