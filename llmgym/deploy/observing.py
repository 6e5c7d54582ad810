"""The observation of KVQueue-v1 of a live engine."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from llmgym.deploy.bundle import HEAD, HISTOGRAM, PER_RUNNING, PER_WAITING, Bundle, layout_of
from llmgym.deploy.facts import (
    CLASS,
    KEPT,
    NOBODY,
    PROMPT,
    Cache,
    Coming,
    Facts,
    Limits,
    Line,
    remaining_area,
)

MOST, MOST_PROGRESS = 4.0, 2.0
"""Ratios to a reference, and the progress, are shown up to these."""
BATCH_WEIGHT = 0.05
"""Weight of the last batch in the moving average of batch times."""
BACKLOG_UNIT = 0.01
"""The backlog is shown in hundreds of full caches."""
PICKED = HEAD.index("picked")
"""Place of `picked`; the histograms come behind it."""
BIN_SHIFT = 20
"""Bins per batch and per token are whole numbers, times 2 to this power."""


CHEAP = frozenset({"short", "kv.free", "residents", "waiting.candidates"})
"""Fields that are known without a look at those that run."""


@dataclass
class _Residents:
    """Those that run: histograms of batches left, of tokens that stay and of tokens held; predicted area, tokens x batches; most
    batches left.
    """

    remaining: list[int]
    held: list[float]
    footprint: list[int]
    area: int
    longest: int


@dataclass
class Episode:
    """What is counted over the requests of an episode; a live engine begins one when it has been empty, or after as many requests.

    Attributes:
        zero_s: when it began, s.
        done: requests completed.
        late: of these, those that took longer than their class is promised.
        preemptions: requests that lost their cache.
        prefilled: prompt tokens computed.
        reused: prompt tokens found in the cache.
        area_rate: predicted tokens x batches that arrive a second.
        batch_estimate_s: moving average of the duration of a batch, s.
        batch_s: duration of the last batch that has ended, s.
        batch_prefill: prompt tokens of the last batch that was planned.
    """

    zero_s: float = 0.0
    done: int = 0
    late: int = 0
    preemptions: int = 0
    prefilled: int = 0
    reused: int = 0
    area_rate: float = 0.0
    batch_estimate_s: float = 0.0
    batch_s: float = 0.0
    batch_prefill: int = 0

    def lasted(self, seconds: float, area: int, window_s: float) -> None:
        """Average over a stretch of time, s, in which requests of so much predicted area arrived."""
        if seconds > 0.0:
            self.area_rate += (area - seconds * self.area_rate) / (seconds + window_s)


class Observer:
    """Fills observations.

    Args:
        bundle: layout, scales and objectives.
        limits: of the engine, whose capacity and seats are the units.
        facts: of the requests.
        cache: tells what of a request is in it.

    Attributes:
        fields: those that are filled; None: all.
    """

    def __init__(self, bundle: Bundle, limits: Limits, facts: Facts, cache: Cache) -> None:
        self._bundle, self._limits, self._facts, self._cache = bundle, limits, facts, cache
        self._scales = bundle.scales
        places: dict[str, slice] = {}
        start = 0
        for name, size in layout_of(bundle.slots, bundle.running):
            places[name] = slice(start, start + size)
            start += size
        self._size = start
        self._at = {name: place.start for name, place in places.items()}
        self._places = places
        self._per_capacity, self._per_seat = 1.0 / limits.capacity, 1.0 / limits.seats
        self.fields: frozenset[str] | None = None
        self._planned, self._now_s = -1, 0.0
        self._residents = _Residents([0] * HISTOGRAM, [0.0] * HISTOGRAM, [0] * HISTOGRAM, 0, 1)
        self._joined = 0
        self._rows: NDArray[np.float32] = np.zeros((0, PER_RUNNING), np.float32)
        self._shown: NDArray[np.float32] = np.zeros((0, PER_WAITING), np.float32)
        self._shown_at: dict[int, int] = {}
        self._times = np.zeros((len(facts.times), 0))
        self._seen: tuple[int, float] | None = None
        self._heads: list[list[int]] | None = None
        # the candidates of the last decision, and where they are in what is shown
        self._last: tuple[Sequence[int], NDArray[np.int64]] = ([], np.zeros(0, np.int64))
        self._head: list[float] = []
        # of a row of `running.candidates`, the four that have a scale: what they are multiplied with, at least and at most
        scales = bundle.scales
        self._by = np.array(
            [[self._per_capacity], [scales.per_output], [scales.per_output], [scales.per_prompt]]
        )
        self._least = np.array([[0], [0], [1], [0]])
        self._most = np.array([[np.inf], [1.0], [1.0], [1.0]])
        # batches left and tokens held as numbers of bins, those of the second after those of the first
        self._bins = np.array([[scales.bins_per_step], [scales.bins_per_token]])
        self._second = np.array([[0], [HISTOGRAM]])

    def observe(
        self,
        coming: Coming,
        line: Line,
        candidates: Sequence[int],
        allowed: NDArray[np.int8],
        episode: Episode,
        now_s: float,
        waiting: int,
        picked: int,
    ) -> NDArray[np.float32]:
        """The observation of one decision.

        Args:
            coming: the batch that comes next.
            line: those that wait.
            candidates: rows of the candidates of the queue, or NOBODY, [slots].
            allowed: 1 for those that fit, int8 [slots].
            episode: what is counted.
            now_s: time, s.
            waiting: requests that wait, those included that wait for something else than room.
            picked: requests picked for this batch so far.

        Returns:
            float32 [entries], as `llmgym.deploy.bundle.layout_of` says.
        """
        out: NDArray[np.float32] = np.zeros(self._size, np.float32)
        fields = self.fields
        if fields is None or "waiting.candidates" in fields:
            shown = self._waiting(out, coming, line, candidates, now_s)
            shown[:, 10] = allowed
        if fields is not None and fields <= CHEAP:
            at, limits = self._at, self._limits
            free = (limits.capacity - coming.used - coming.growth) * self._per_capacity
            out[at["kv.free"]] = max(free, 0.0)
            out[at["residents"]] = len(coming.rows) * self._per_seat
            out[at["short"]] = coming.short
            return out
        if self._planned != coming.plans or self._now_s != now_s:
            self._look(coming, now_s)
            self._head = self._engine(coming, episode, now_s)
        while self._joined < len(coming.new):
            self._join(*coming.new[self._joined], now_s)
            self._joined += 1
        self._decision(out, coming, line, waiting, picked)
        start = self._at["running.candidates"]
        out[start : start + self._rows.size] = self._rows.ravel()
        return out

    def _engine(self, coming: Coming, episode: Episode, now_s: float) -> list[float]:
        """What is told before the candidates, in the order of `HEAD`; 0 where a choice changes it."""
        scales, limits, per_capacity = self._scales, self._limits, self._per_capacity
        done, late = episode.done, episode.late
        if coming.done:
            # their last token is on its way, and nothing can change that any more
            done += len(coming.done)
            for row in coming.done:
                promised = self._bundle.objectives[int(self._facts.whole[row, CLASS])]
                late += int(now_s - self._facts.arrival_s[row] > promised.e2e_s)
        needed = episode.prefilled + episode.reused
        seat, residents = self._per_seat, self._residents
        return [
            coming.used * per_capacity,
            0.0,
            0.0,
            0.0,
            0.0,
            0.0,
            min(episode.area_rate * episode.batch_estimate_s * per_capacity, MOST),
            min(episode.batch_s * scales.per_batch, MOST),
            min(episode.batch_prefill * (1.0 / min(limits.budget, limits.capacity)), 1.0),
            0.0,  # a plan that had to preempt asks nothing more
            min(episode.preemptions * scales.per_expected, 1.0),
            min(done * scales.per_expected, MOST_PROGRESS),
            min(max(now_s - episode.zero_s, 0.0) * scales.per_horizon, 1.0),
            0.0,
            *[count * seat for count in residents.remaining],
            *[count * seat for count in residents.footprint],
            float(coming.short),
            min(late * scales.per_expected, MOST_PROGRESS),
            episode.reused / needed if needed > 0 else 0.0,
        ]

    def _decision(
        self, out: NDArray[np.float32], coming: Coming, line: Line, waiting: int, picked: int
    ) -> None:
        scales, limits, per_capacity = self._scales, self._limits, self._per_capacity
        residents, head = self._residents, self._head
        remaining, held, width = residents.remaining, residents.held, scales.steps_per_bin
        peak, alive, stay = 0.0, 0, 0.0
        longest = float(residents.longest)
        for m in range(HISTOGRAM - 1, -1, -1):
            here = remaining[m]
            if here > 0:
                alive += here
                stay += held[m]
                peak = max(peak, stay + alive * min((m + 1) * width, longest))
        # in the order of `HEAD`
        head[1:6] = (
            max((limits.capacity - coming.used - coming.growth) * per_capacity, 0.0),
            min(peak * per_capacity, MOST),
            len(coming.rows) * self._per_seat,
            min(waiting * scales.per_cap, 1.0),
            min((line.area + residents.area) * per_capacity * BACKLOG_UNIT, 1.0),
        )
        head[PICKED] = picked * self._per_seat
        out[: len(head)] = head

    def _look(self, coming: Coming, now_s: float) -> None:
        """Look at those that ran before: what a step's decisions have in common."""
        self._planned, self._now_s, self._joined = coming.plans, now_s, 0
        self._residents = _Residents([0] * HISTOGRAM, [0.0] * HISTOGRAM, [0] * HISTOGRAM, 0, 1)
        self._rows = np.zeros((0, PER_RUNNING), np.float32)
        if len(coming.computed) == 0:
            return
        scales, limits = self._scales, self._limits
        kv, told = coming.computed, coming.told
        if np.count_nonzero(told) < len(told):
            told = np.where(told > 0, told, scales.default_output)
        produced = kv - coming.prompt
        produced += 1
        for i in coming.prefilling:
            produced[i] = coming.kept[i]
        # one that outlives its prediction has a token left
        foretold = told - produced
        left = np.maximum(foretold, 1)
        both = np.array((left, kv))
        left, areas = both[0], 0
        stays = kv
        if coming.prefilling:
            stays = kv.copy()
            for i in coming.prefilling:
                tokens, had, kept = int(coming.tokens[i]), int(kv[i]), int(coming.kept[i])
                # its area is no sum of arithmetic series as that of the others is
                more = int(left[i])
                areas -= more * had + more * (more + 1) // 2
                areas += remaining_area(limits, tokens, had, kept, kept + more)
                chunks = -(-(tokens - had) // limits.chunk)
                stays[i] = tokens - chunks
        areas += int(left @ kv) + (int(left @ left) + int(left.sum())) // 2
        for i in coming.prefilling:
            left[i] += -(-int(coming.tokens[i] - kv[i]) // limits.chunk)
        longest = int(left.max())
        both *= self._bins
        both >>= BIN_SHIFT
        np.minimum(both, HISTOGRAM - 1, out=both)
        held = np.bincount(left, weights=stays, minlength=HISTOGRAM).tolist()
        both += self._second
        bins = np.bincount(both.ravel(), minlength=2 * HISTOGRAM).tolist()
        self._residents = _Residents(bins[:HISTOGRAM], held, bins[HISTOGRAM:], areas, longest)
        count = min(self._bundle.running, len(kv))
        youngest, old = slice(-1, -count - 1, -1), self._facts
        numbers = np.array(
            (kv[youngest], produced[youngest], foretold[youngest], (coming.tokens - kv)[youngest])
        )
        arrival_s, _, promised, _, counts = old.times.take(coming.at[youngest], axis=1)
        waited = np.maximum(now_s - arrival_s, 0.0)
        table: NDArray[np.float32] = np.zeros((count, PER_RUNNING), np.float32)
        table[:, 0] = 1.0
        table[:, 1:5] = np.minimum(np.maximum(numbers, self._least) * self._by, self._most).T
        table[:, 5] = waited / (waited + scales.window_s)
        if scales.per_class != 0.0:
            table[:, 6] = old.columns[CLASS][coming.at[youngest]] * scales.per_class
        table[:, 7] = np.maximum((promised - waited) / promised, -1.0) * counts
        self._rows = table

    def _join(self, row: int, found: int, tokens: int, now_s: float) -> None:
        """Count one that joins among those that run; it is the youngest of them."""
        facts, scales, last = self._facts, self._scales, HISTOGRAM - 1
        _, kept, told, _, request_class, _ = facts.columns[:, row].tolist()
        told = told if told > 0 else scales.default_output
        predicted = max(told, kept + 1)
        chunks = -(-(tokens - found) // self._limits.chunk)
        left = predicted - kept + chunks
        place = min((left * scales.bins_per_step) >> BIN_SHIFT, last)
        residents = self._residents
        residents.remaining[place] += 1
        residents.held[place] += tokens - chunks
        size = min((found * scales.bins_per_token) >> BIN_SHIFT, last)
        residents.footprint[size] += 1
        for k, counts in ((place, residents.remaining), (HISTOGRAM + size, residents.footprint)):
            self._head[PICKED + 1 + k] = counts[k % HISTOGRAM] * self._per_seat
        residents.area += remaining_area(self._limits, tokens, found, kept, predicted)
        residents.longest = max(residents.longest, left)
        waited = max(now_s - float(facts.arrival_s[row]), 0.0)
        promised, counting = float(facts.promised_s[row, 1]), float(facts.counts[row, 1])
        older = self._rows[: self._bundle.running - 1]
        table = np.empty((len(older) + 1, PER_RUNNING), np.float32)
        table[0] = (
            1.0,
            found * self._per_capacity,
            min(kept * scales.per_output, 1.0),
            min(max(told - kept, 1) * scales.per_output, 1.0),
            min((tokens - found) * scales.per_prompt, 1.0),
            waited / (waited + scales.window_s),
            request_class * scales.per_class,
            max((promised - waited) / promised, -1.0) * counting,
            0.0,
        )
        table[1:] = older
        self._rows = table

    def _waiting(
        self, out: NDArray[np.float32], coming: Coming, line: Line, candidates: Sequence[int], now_s: float
    ) -> NDArray[np.float32]:
        if line.heads is None or self._heads is not line.heads:
            self._find(candidates, line)
        if candidates != self._last[0]:
            if not self._shown_at.keys() >= {*candidates}:
                self._find(candidates, line)
            at = self._shown_at
            self._last = list(candidates), np.array([at[row] for row in candidates])
        if self._seen != (coming.plans, now_s):
            self._show(now_s)
            self._seen = (coming.plans, now_s)
        shown = out[self._places["waiting.candidates"]].reshape(len(candidates), PER_WAITING)
        self._shown.take(self._last[1], 0, shown, "clip")
        return shown

    def _find(self, candidates: Sequence[int], line: Line) -> None:
        """Look up what stays while they wait, of the candidates and of those who are candidates when others are chosen, unless
        each has to be looked for in the cache.
        """
        ahead = [] if self._limits.prefix else line.heads or []
        known = [NOBODY, *chain(candidates, *ahead)]
        at = np.array(known)
        self._shown, self._times = self._facts.shown.take(at, 0), self._facts.times.take(at, 1)
        self._shown_at = dict(zip(known, range(len(known))))
        self._heads, self._seen, self._last = line.heads, None, ([], at)

    def _show(self, now_s: float) -> None:
        """Tell what changes with time, and in the cache."""
        table, times = self._shown, self._times
        waited = np.maximum(now_s - times[0], 0.0)
        table[:, 3] = waited / (waited + self._scales.window_s)
        promised = times[1:3]
        slack = promised - waited
        slack /= promised
        np.maximum(slack, -1.0, out=slack)
        slack *= times[3:]
        table[:, 7:9] = slack.T
        if self._limits.prefix:
            whole = self._facts.whole
            for row, k in self._shown_at.items():
                if row != NOBODY:
                    tokens = int(whole[row, PROMPT] + whole[row, KEPT])
                    table[k, 9] = self._cache.found(row)[0] / tokens
