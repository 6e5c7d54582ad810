"""Scout: search what E lacks, look before reading, write down at once, evaluate when the plan looks covered, stop when it suffices.

Zhang et al., "SCOUT: Active Information Foraging for Long-Text Understanding with Decoupled Epistemic States", ICML 2026 (arXiv
2605.04496), method; the numbers that the paper leaves to a language model (how many to look at, when to read) are arguments here.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmgym.baselines.forage.reading import Bools, Ints, Seen, first, seen
from llmgym.baselines.rule import Rule
from llmgym.core.checks import whole
from llmgym.envs.forage.env import Forage
from llmgym.envs.forage.state import (
    ANSWER,
    ANSWER_CONTEXT,
    COMMIT,
    DEPTHS,
    EVALUATE,
    FOCUS,
    GREP,
    KEYS,
    READ,
    RETRIEVE_KEY,
    SCAN,
    TERMS,
)
from llmgym.errors import InvalidArgument


class ScoutPolicy(Rule[Forage]):
    """`scout` and its variants: one fact after the other, a scan of the best candidates, then reading.

    A fact is given up when no term is left. When none is open, E is evaluated: exposed claims are searched for again, reported gaps
    as far as terms are left; without anything to search for, the answer is given.

    Args:
        env: the environment.
        name: of the policy.
        scan: how many of the best candidates are scanned before one is read, 0 to 16.
        read: posterior from which on a candidate is read without scanning more.
        least: posterior of the best candidate below which the next term is taken.
        evaluations: of E, at most.
        retrieve: parts that are retrieved for a fact before it is searched for: 0, 5, 10, 20 or 50.
        sources: sources that a claim needs. Further ones are looked for in the list that is there; of two claims that differ, the
            one whose source has more authority is kept.
        trust: authority, in standard deviations, from which on one source is enough.
        context: answer from all that was read, and not from E.

    Raises:
        InvalidArgument: a number out of range.
    """

    remembered = ("_given_up", "_had", "_retrieved", "_asked", "_evaluations", "_rated")

    def __init__(
        self,
        env: Any,
        name: str = "scout",
        scan: int = 3,
        read: float = 0.6,
        least: float = 0.03,
        evaluations: int = 4,
        retrieve: int = 0,
        sources: int = 1,
        trust: float = 1.0,
        context: bool = False,
    ) -> None:
        super().__init__(env, name, Forage)
        self.scan = whole("scan", scan, 0, 16)
        self.evaluations = whole("evaluations", evaluations, 0, 100)
        self.sources = whole("sources", sources, 1, 5)
        for argument, value in (("read", read), ("least", least)):
            if not 0.0 <= value <= 1.0:
                raise InvalidArgument(f"{argument}={value!r}: expected a number from 0 to 1")
        if retrieve not in (0, *DEPTHS):
            raise InvalidArgument(f"retrieve={retrieve!r}: expected one of 0, {', '.join(map(str, DEPTHS))}")
        self.read, self.least, self.trust = float(read), float(least), float(trust)
        self._answer = ANSWER_CONTEXT if context else ANSWER
        chunks = self._simulation.params.config[0]["chunks"]
        self._retrieve = (
            RETRIEVE_KEY + int(np.searchsorted(DEPTHS, retrieve)) if 0 < retrieve <= chunks else -1
        )
        self._forget(0)

    def reset(self, lanes: NDArray[np.bool_]) -> None:
        """Forget which facts were given up and retrieved, how sources were rated, and how often E was evaluated."""
        if len(self._asked) != len(lanes):
            self._forget(len(lanes))
        for memory in (
            self._given_up,
            self._had,
            self._retrieved,
            self._asked,
            self._evaluations,
            self._rated,
        ):
            memory[lanes] = 0

    def _forget(self, count: int) -> None:
        self._given_up, self._had, self._retrieved = (np.zeros((count, KEYS), np.bool_) for _ in range(3))
        self._asked: Bools = np.zeros(count, np.bool_)
        self._evaluations: Ints = np.zeros(count, np.int64)
        self._rated = np.zeros((count, KEYS))

    def _wanted(self, now: Seen) -> Bools:
        """Which facts E does not hold yet, or not from sources that are enough, [lanes, 4]."""
        return now.exists & (~now.held | ((now.sources < self.sources) & (self._rated < self.trust)))

    def _after_evaluation(self, now: Seen) -> Bools:
        """Open again what an evaluation reported; which lanes have nothing left to search for, [lanes]."""
        again = self._had & ~now.held & now.exists & now.reported
        # on a chain all after a removed one start again
        again |= now.chain[:, None] & (np.cumsum(again, axis=1) > 0) & now.exists
        self._retrieved &= ~(again & ~now.held & self._asked[:, None])
        again |= now.reported & ~now.held & (now.terms < TERMS)
        again &= self._asked[:, None]
        self._given_up &= ~again
        return self._asked & (now.sufficient | ~again.any(axis=1))

    def act(self, obs: NDArray[np.float32], mask: NDArray[np.int8] | None) -> NDArray[Any]:
        """The actions of all lanes, int64 [lanes]."""
        if len(self._asked) != len(obs):
            self.reset(np.ones(len(obs), np.bool_))
        now = seen(self._simulation.layout, obs)
        lanes = np.arange(len(obs))
        here = (lanes, now.focus)
        done = self._after_evaluation(now)
        write = now.pending[here] & self._better(now, here)
        best = now.posterior[:, 0]
        spent = ~now.there[:, 0] | (best < self.least)
        # a fact is given up without a list to look through and a term; one that is held, without a list
        nothing_left = spent & ((now.terms[here] == TERMS) | now.held[here]) & ~write
        for _ in range(KEYS):
            key = first(self._wanted(now) & now.known & ~self._given_up)
            fails = (key == now.focus) & nothing_left
            self._given_up[lanes[fails], key[fails]] = True
        at = (lanes, np.minimum(key, KEYS - 1))
        low = now.there[:, : max(self.scan, 1)] & ~now.scanned[:, : max(self.scan, 1)]
        look = (best < self.read) & low.any(axis=1) & (self.scan > 0)
        action = np.where(look, SCAN + low.argmax(axis=1), READ)
        action = np.where(spent | (now.terms[at] == 0), GREP, action)
        retrieve = ~self._retrieved[at] & (now.terms[at] == 0) & (self._retrieve >= 0)
        action = np.where(retrieve, self._retrieve, action)
        action = np.where(at[1] != now.focus, FOCUS + at[1], action)
        ask = (key == KEYS) & (self._evaluations < self.evaluations)
        action = np.where(ask, EVALUATE, np.where(key == KEYS, self._answer, action))
        action = np.where(write, COMMIT, action)
        action = np.where(done, self._answer, action)
        self._asked = action == EVALUATE
        self._evaluations += self._asked
        self._retrieved[lanes[action == self._retrieve], now.focus[action == self._retrieve]] = True
        wrote = action == COMMIT
        rated = np.where(
            now.agrees[here], np.maximum(self._rated[here], now.authority[here]), now.authority[here]
        )
        self._rated[lanes[wrote], now.focus[wrote]] = rated[wrote]
        self._had = now.held.copy()
        return action.astype(np.int64)

    def _better(self, now: Seen, here: tuple[Ints, Ints]) -> Bools:
        """Whether the pending claim is written: the first is; further ones if they agree, or are of more authority."""
        further = now.agrees[here] | (now.authority[here] > self._rated[here])
        return ~now.held[here] | (further & self._wanted(now)[here])
