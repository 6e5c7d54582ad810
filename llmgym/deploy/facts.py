"""What is known of the requests of a live engine, who waits in which order, and the batch that comes next.

The engine plans as `llmgym.serving.engine` does: who runs what, what that takes of the cache, who could join. Everything is in
numbers of numpy or Python, a row a request; nothing here knows vLLM.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from llmgym.deploy.bundle import PER_WAITING, Bundle

PROMPT, KEPT, PREDICTED, AREA, CLASS, MOST = range(6)
"""Columns of `Facts`: prompt, output kept from before a preemption, predicted output (0 if none is told), predicted area when
it last began to wait, class, and longest output that it asks for."""
NOBODY = -1
"""No request in a row of candidates."""
AHEAD = 8
"""How many of each order are looked at beyond the candidates, who are candidates when others have been chosen."""


@dataclass
class Limits:
    """Settings of a live engine.

    Attributes:
        capacity: of the KV cache, tokens.
        block: tokens of a block of it.
        budget: most tokens of a batch.
        chunk: longest chunk of a prompt, tokens.
        seats: most requests that run.
        longest: prompt and output together, tokens at most.
        watermark: tokens of the cache that an admission leaves free.
        alone: whether `chunk` does not bind a request that is alone.
        prefix: whether prefixes are cached.
    """

    capacity: int
    block: int
    budget: int
    chunk: int
    seats: int
    longest: int
    watermark: int = 0
    alone: bool = False
    prefix: bool = False

    def in_blocks(self, tokens: int) -> int:
        """Tokens of the whole blocks that so many tokens need."""
        return -(-tokens // self.block) * self.block


class Facts:
    """A row for each request that is in the system.

    The last row is nobody's: nothing is known of it, it has just arrived, and NOBODY finds it as -1.

    Attributes:
        columns: int64 [6, rows], see `PROMPT` and the others.
        whole: the same, int64 [rows, 6].
        times: float64 [5, rows], the three that follow.
        arrival_s: float64 [rows], s on the clock of the engine.
        shown: what an observation tells of a request that waits and does not depend on time, float32 [rows, 11].
        promised_s: s to the first and to the last token, float64 [rows, 2]; 1 where nothing is promised.
        counts: 1 where something is promised and not kept or broken yet, float64 [rows, 2].
    """

    def __init__(self, rows: int = 256) -> None:
        self._make(rows)
        self._free = list(range(rows - 2, -1, -1))

    def _make(self, rows: int) -> None:
        self.columns = np.zeros((6, rows), np.int64)
        self.whole = self.columns.T
        self.shown: NDArray[np.float32] = np.zeros((rows, PER_WAITING), np.float32)
        self.times = np.zeros((5, rows))
        self.arrival_s, self.promised_s, self.counts = self.times[0], self.times[1:3].T, self.times[3:].T
        self.arrival_s[:], self.promised_s[:] = np.inf, 1.0

    def _arrays(self) -> tuple[NDArray[Any], ...]:
        return self.whole, self.shown, self.times.T

    def take(self) -> int:
        """A row for a new request."""
        if not self._free:
            before = self._arrays()
            rows = len(self.whole)
            self._make(2 * rows)
            for old, new in zip(before, self._arrays()):
                new[: rows - 1] = old[: rows - 1]
            self._free = list(range(2 * rows - 2, rows - 2, -1))
        return self._free.pop()

    def release(self, row: int) -> None:
        """Give a row back."""
        self._free.append(row)


def remaining_area(limits: Limits, tokens: int, prefilled: int, kept: int, output: int) -> int:
    """Tokens x batches that a request which waits or prefills still takes, if its chunks are never cut short.

    Args:
        limits: of the engine.
        tokens: to prefill, with the output kept from before a preemption.
        prefilled: of these, tokens that are in the cache.
        kept: output from before a preemption, tokens.
        output: length of the whole output, tokens.
    """
    area, done = 0, kept
    left = tokens - prefilled
    if left > 0:
        chunks = -(-left // limits.chunk)
        area = limits.chunk * (chunks * (chunks - 1) // 2) + prefilled * (chunks - 1) + tokens
        done = kept + 1
    more = output - done
    if more > 0:
        area += more * (tokens - kept - 1) + (output * (output + 1) - done * (done + 1)) // 2
    return area


class Line:
    """Those that wait, in every order that has candidates.

    Attributes:
        area: predicted tokens x batches of all of them.
        tokens: what each has to prefill, by row.
        heads: rows of the first ones of each order, as many as a step is likely to look at; None: not known.
    """

    def __init__(self, facts: Facts, bundle: Bundle, limits: Limits) -> None:
        self.area = 0
        self.tokens: dict[int, int] = {}
        self.heads: list[list[int]] | None = None
        # the same without those who were passed over last, and these
        self._left: list[list[int]] = []
        self._away: list[int] = []
        self._facts, self._limits = facts, limits
        self._lists, self._each = bundle.lists, bundle.slots // len(bundle.lists)
        self._default = bundle.scales.default_output
        self._scales, self._objectives = bundle.scales, bundle.objectives
        promised = [(one.ttft_s, one.e2e_s) for one in bundle.objectives]
        self._promised = [
            (*(s if isfinite(s) else 1.0 for s in pair), *(float(isfinite(s)) for s in pair))
            for pair in promised
        ]
        self._orders: list[list[tuple[float, int, int]]] = [[] for _ in bundle.lists]
        self._places: dict[int, list[tuple[float, int, int]]] = {}

    def __len__(self) -> int:
        return len(self.tokens)

    def __contains__(self, row: int) -> bool:
        return row in self.tokens

    def enter(self, row: int, ticket: int) -> int:
        """Let a request wait.

        Args:
            row: of the request.
            ticket: its place in the order of arrival.

        Returns:
            Its predicted area, tokens x batches.
        """
        whole = self._facts.whole
        prompt, kept, predicted, _, request_class = whole[row, :5].tolist()
        expected = predicted if predicted > 0 else self._default
        area = remaining_area(self._limits, prompt + kept, 0, kept, max(expected, kept + 1))
        whole[row, AREA] = area
        scales = self._scales
        self._facts.shown[row] = (
            1.0,
            min((prompt + kept) * scales.per_prompt, 1.0),
            min(predicted * scales.per_output, 1.0),
            0.0,
            min(area * scales.per_area, 1.0),
            min(kept * scales.per_output, 1.0),
            request_class * scales.per_class,
            0.0,
            0.0,
            0.0,
            0.0,
        )
        self._facts.times[1:, row] = self._promised[request_class]
        if kept:
            self._facts.counts[row, 0] = 0.0
        places = []
        for order, name in zip(self._orders, self._lists):
            key = 0.0
            if name == "smallest-area":
                key = float(area)
            elif name == "shortest-output":
                key = float(expected)
            elif name == "deadline":
                key = float(self._facts.arrival_s[row]) + self._objectives[request_class].ttft_s
            place = (key, ticket, row)
            insort(order, place)
            places.append(place)
        self._places[row] = places
        self.heads = None
        self.tokens[row] = prompt + kept
        self.area += area
        return area

    def leave(self, row: int) -> None:
        """Let a request wait no longer."""
        for order, place in zip(self._orders, self._places.pop(row)):
            del order[bisect_left(order, place)]
        self.heads = None
        del self.tokens[row]
        self.area -= int(self._facts.whole[row, AREA])

    def candidates(self, away: Sequence[int] = ()) -> list[int]:
        """Rows of the first requests of each order, or NOBODY, [slots]; one that is in two orders is there once.

        Args:
            away: rows of those that are passed over.
        """
        each, heads, before = self._each, self.heads, self._away
        if heads is None or (len(heads[0]) < len(self.tokens) and len(heads[0]) < each + len(away)):
            much = each + len(away) + AHEAD
            heads = self.heads = [[row for _, _, row in order[:much]] for order in self._orders]
            self._left, self._away = [head.copy() for head in heads], []
        elif before and before != away[: len(before)]:
            self._left, self._away = [head.copy() for head in heads], []
        for row in away[len(self._away) :]:
            for left in self._left:
                if row in left:
                    left.remove(row)
            self._away.append(row)
        found: list[int] = []
        for left in self._left:
            part = left[:each]
            if found:
                part = [NOBODY if row in found else row for row in part]
            if len(part) < each:
                part += [NOBODY] * (each - len(part))
            found += part
        return found

    def place(self, row: int) -> int:
        """How many of those that wait came before one of them; 0 where the order of arrival is not kept."""
        if "arrival" not in self._lists:
            return 0
        at = self._lists.index("arrival")
        return bisect_left(self._orders[at], self._places[row][at])


class Cache(Protocol):
    """What a KV cache knows of requests, by their rows."""

    def found(self, row: int) -> tuple[int, int]:
        """Tokens of a waiting request that are in the cache, and those of these in blocks that nobody holds."""

    def hold(self, row: int) -> None:
        """Count the blocks that were found for a request as held from now on."""

    def freed(self, row: int, computed: int) -> int:
        """Tokens of the blocks that are free when a request with so many tokens in the cache loses it."""


class Coming:
    """The batch that the engine plans next.

    Attributes:
        rows: of those that run, oldest first, and of those that join.
        before: of those that ran when it was planned first, oldest first.
        computed: tokens in the cache of those that ran before, int64 [running].
        at: their rows, int64 [running].
        prompt: their prompts, tokens, int64 [running].
        kept: their output from before a preemption, tokens, int64 [running].
        told: their predicted output, int64 [running]; 0 if none is told.
        tokens: what they have to prefill, int64 [running].
        prefilling: places of those that have not prefilled all of it.
        decodes: requests of the batch that produce a token, and prefill none.
        new: rows of those that join, with their tokens in the cache and the tokens that they have to prefill in all.
        used: tokens of the blocks that they hold.
        growth: tokens of the blocks that the batch adds.
        budget_left: tokens that it may still take.
        short: whether it does not fit into the cache.
        chunk: longest chunk of a prompt in it, tokens.
        done: rows of those whose last token is on its way.
        plans: how often it was planned, over all steps.
    """

    def __init__(self, facts: Facts, limits: Limits, cache: Cache) -> None:
        self._facts, self._limits, self._cache = facts, limits, cache
        self.rows: list[int] = []
        self.before: Sequence[int] = ()
        self.computed: NDArray[np.int64] = np.zeros(0, np.int64)
        self._begun = self.computed
        self._find([])
        self.prefilling: list[int] = []
        self.decodes = 0
        self.new: list[tuple[int, int, int]] = []
        self.used = self.growth = self.budget_left = self.chunk = self.plans = 0
        self.short = False
        self.done: list[int] = []

    def _find(self, rows: Sequence[int]) -> None:
        """Look up what is known of those that run and does not change while they do."""
        self.at = np.array(rows, np.int64)
        found = self._facts.columns.take(self.at, axis=1)
        self.prompt, self.kept, self.told = found[PROMPT], found[KEPT], found[PREDICTED]
        self.tokens = self.prompt + self.kept
        # who has so many in the cache has its last token on its way
        self._last = self.prompt + (found[MOST] - 1)

    def begin(
        self, rows: Sequence[int], computed: NDArray[np.int64], used: int, waiting: int, same: bool = False
    ) -> None:
        """Plan for those that run.

        Args:
            rows: of those that run, oldest first.
            computed: their tokens in the cache, those of the batch that is running included, int64 [running].
            used: tokens of the blocks that are held.
            waiting: requests that wait.
            same: whether the rows are those of the last time, and all that was known of them then is as it was.
        """
        if not same:
            self.before = rows
        self.rows, self.computed, self._begun, self.used = list(rows), computed, computed, used
        if not same:
            self._find(self.rows)
        limits = self._limits
        self.chunk = limits.budget if limits.alone and len(rows) + waiting <= 1 else limits.chunk
        self.done = []
        self._plan(True)

    def _plan(self, first: bool) -> None:
        limits, kv = self._limits, self.computed
        self.plans += 1
        self.new = []
        self.prefilling, self.decodes = [], 0
        self.growth, self.budget_left, self.short = 0, limits.budget, False
        if not self.rows:
            return
        count = len(kv)
        # who decodes runs one token, unless all that it asked for is on its way
        more = kv < self._last
        going = int(np.count_nonzero(more))
        decoding = kv >= self.tokens
        block = limits.block
        if going <= limits.budget and np.count_nonzero(decoding) == count:
            blocks = int(np.count_nonzero(more & (kv % block == 0)))
            taken = self.decodes = going
        else:
            need = np.where(decoding, more, np.minimum(self.tokens - kv, self.chunk))
            ends = np.minimum(need.cumsum(), limits.budget)
            run = ends.copy()
            run[1:] -= ends[:-1]
            taken = int(ends[-1])
            up = block - 1
            blocks = int(((kv + run + up) // block - (kv + up) // block).sum())
            self.prefilling = np.flatnonzero(~decoding).tolist()
            self.decodes = int(np.count_nonzero(decoding & (run > 0)))
        if first and going < count:
            self.done = [self.rows[i] for i in np.flatnonzero(decoding & ~more).tolist()]
        self.growth = blocks * block
        self.budget_left = limits.budget - taken
        self.short = self.used + self.growth > limits.capacity

    def computed_of(self, row: int) -> int:
        """Tokens in the cache of one that ran before, when it was planned first; 0 of others."""
        return int(self._begun[self.before.index(row)]) if row in self.before else 0

    def output_of(self, row: int, computed: int) -> int:
        """Output tokens of a request that has so many tokens in the cache, the one on its way included."""
        prompt, kept = self._facts.whole[row, PROMPT : KEPT + 1].tolist()
        return int(computed - prompt + 1 if computed >= prompt + kept else kept)

    def evict(self, index: int) -> int:
        """Take somebody out of the batch, and plan again; call only while nobody has joined.

        Args:
            index: of the request in `rows`.

        Returns:
            Its row, whose output so far is kept.
        """
        row, computed = self.rows.pop(index), int(self.computed[index])
        self.used -= self._cache.freed(row, computed)
        self._facts.whole[row, KEPT] = self.output_of(row, computed)
        self.computed = np.delete(self.computed, index)
        self._find(self.rows)
        self._plan(False)
        return row

    def lets_in(self) -> bool:
        """Whether there is a seat and a token for one more."""
        return not self.short and self.budget_left > 0 and len(self.rows) < self._limits.seats

    def _first(self, row: int, tokens: int) -> tuple[int, int, int]:
        """Tokens of a newcomer that are in the cache, those of these that nobody holds, and those of its first chunk."""
        found, revived = self._cache.found(row) if self._limits.prefix else (0, 0)
        return found, revived, min(tokens - found, self.chunk, self.budget_left)

    def most(self) -> int:
        """Most tokens to prefill with which a request may join, where no prefix is cached."""
        limits = self._limits
        free = limits.capacity - self.used - self.growth
        if self.rows:
            free -= limits.watermark
        elif limits.in_blocks(min(self.chunk, self.budget_left)) <= free:
            return limits.longest
        return free // limits.block * limits.block

    def fits(self, row: int, tokens: int) -> bool:
        """Whether a request may join as vLLM lets it: its first chunk fits, and its whole prompt unless it is alone.

        Args:
            row: of the request.
            tokens: that it has to prefill.
        """
        limits = self._limits
        if not limits.prefix:
            return tokens <= self.most()
        found, revived, first = self._first(row, tokens)
        total = self.used + self.growth + revived
        if total + limits.in_blocks(first) > limits.capacity:
            return False
        return not self.rows or total + limits.in_blocks(tokens) - found <= limits.capacity - limits.watermark

    def admit(self, row: int, tokens: int) -> None:
        """Let a request join. Call only if `fits`.

        Args:
            row: of the request.
            tokens: that it has to prefill.
        """
        limits = self._limits
        found, revived, run = self._first(row, tokens)
        self.rows.append(row)
        self.new.append((row, found, tokens))
        self.growth += revived + limits.in_blocks(found + run) - limits.in_blocks(found)
        self.budget_left -= run
        if limits.prefix:
            self._cache.hold(row)
