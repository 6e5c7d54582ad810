"""The observation of KVQueue-v1 of a live engine."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmgym.deploy.bundle import HISTOGRAM, PER_RUNNING, Bundle, layout_of
from llmgym.deploy.facts import (
    CLASS,
    KEPT,
    NOBODY,
    PREDICTED,
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
BIN_SHIFT = 20
"""Bins per batch and per token are whole numbers, times 2 to this power."""


CHEAP = frozenset({"short", "kv.free", "residents", "waiting.candidates"})
"""Fields that are known without a look at those that run."""


class _Residents(NamedTuple):
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
        self._base = _Residents([0] * HISTOGRAM, [0.0] * HISTOGRAM, [0] * HISTOGRAM, 0, 1)
        self._rows: NDArray[np.float32] = np.zeros((0, PER_RUNNING), np.float32)

    def observe(
        self,
        coming: Coming,
        line: Line,
        candidates: Sequence[int],
        allowed: Sequence[int],
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
            allowed: 1 for those that fit, [slots].
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
            self._waiting(out, candidates, allowed, now_s)
        if fields is not None and fields <= CHEAP:
            at, limits = self._at, self._limits
            free = (limits.capacity - coming.used - coming.growth) * self._per_capacity
            out[at["kv.free"]] = max(free, 0.0)
            out[at["residents"]] = len(coming.rows) * self._per_seat
            out[at["short"]] = coming.short
            return out
        if self._planned != coming.plans or self._now_s != now_s:
            self._look(coming, now_s)
        self._engine(out, coming, line, episode, now_s, waiting, picked)
        self._running(out, coming, now_s)
        return out

    def _engine(
        self,
        out: NDArray[np.float32],
        coming: Coming,
        line: Line,
        episode: Episode,
        now_s: float,
        waiting: int,
        picked: int,
    ) -> None:
        scales, limits, per_capacity = self._scales, self._limits, self._per_capacity
        residents = self._joined(coming)
        backlog = line.area + residents.area
        peak, alive, stay = 0.0, 0, 0.0
        longest = float(residents.longest)
        for m in range(HISTOGRAM - 1, -1, -1):
            alive += residents.remaining[m]
            stay += residents.held[m]
            if residents.remaining[m] > 0:
                peak = max(peak, stay + alive * min((m + 1) * scales.steps_per_bin, longest))
        seat = self._per_seat
        done, late = episode.done, episode.late
        if coming.done:
            # their last token is on its way, and nothing can change that any more
            done += len(coming.done)
            for row in coming.done:
                promised = self._bundle.objectives[int(self._facts.whole[row, CLASS])]
                late += int(now_s - self._facts.arrival_s[row] > promised.e2e_s)
        needed = episode.prefilled + episode.reused
        # in the order of `HEAD`
        out[: self._at["waiting.candidates"]] = [
            coming.used * per_capacity,
            max((limits.capacity - coming.used - coming.growth) * per_capacity, 0.0),
            min(peak * per_capacity, MOST),
            len(coming.rows) * seat,
            min(waiting * scales.per_cap, 1.0),
            min(backlog * per_capacity * BACKLOG_UNIT, 1.0),
            min(episode.area_rate * episode.batch_estimate_s * per_capacity, MOST),
            min(episode.batch_s * scales.per_batch, MOST),
            min(episode.batch_prefill * (1.0 / min(limits.budget, limits.capacity)), 1.0),
            0.0,  # a plan that had to preempt asks nothing more
            min(episode.preemptions * scales.per_expected, 1.0),
            min(done * scales.per_expected, MOST_PROGRESS),
            min(max(now_s - episode.zero_s, 0.0) * scales.per_horizon, 1.0),
            picked * seat,
            *[count * seat for count in residents.remaining],
            *[count * seat for count in residents.footprint],
            float(coming.short),
            min(late * scales.per_expected, MOST_PROGRESS),
            episode.reused / needed if needed > 0 else 0.0,
        ]

    def _look(self, coming: Coming, now_s: float) -> None:
        """Look at those that ran before: what a step's decisions have in common."""
        self._planned, self._now_s = coming.plans, now_s
        self._base = _Residents([0] * HISTOGRAM, [0.0] * HISTOGRAM, [0] * HISTOGRAM, 0, 1)
        self._rows = np.zeros((0, PER_RUNNING), np.float32)
        if len(coming.computed) == 0:
            return
        scales = self._scales
        whole, kv = coming.whole, coming.computed
        prompt, kept = whole[:, PROMPT], whole[:, KEPT]
        told = np.where(whole[:, PREDICTED] > 0, whole[:, PREDICTED], scales.default_output)
        missing = prompt + kept - kv
        decoding = missing <= 0
        produced = np.where(decoding, kv - prompt + 1, kept)
        predicted = np.maximum(told, produced + 1)
        left = predicted - produced
        stays = kv
        areas = left * (prompt - 1) + left * (predicted + produced + 1) // 2
        if not decoding.all():
            stays = kv.copy()
            for i in np.flatnonzero(~decoding).tolist():
                tokens, had = int(prompt[i] + kept[i]), int(kv[i])
                chunks = -(-(tokens - had) // self._limits.chunk)
                left[i] += chunks
                stays[i] = tokens - chunks
                areas[i] = remaining_area(self._limits, tokens, had, int(kept[i]), int(predicted[i]))
        last = HISTOGRAM - 1
        bins = np.minimum((left * scales.bins_per_step) >> BIN_SHIFT, last)
        sizes = np.minimum((kv * scales.bins_per_token) >> BIN_SHIFT, last)
        self._base = _Residents(
            np.bincount(bins, minlength=HISTOGRAM).tolist(),
            np.bincount(bins, weights=stays, minlength=HISTOGRAM).tolist(),
            np.bincount(sizes, minlength=HISTOGRAM).tolist(),
            int(areas.sum()),
            max(int(left.max()), 1),
        )
        count = min(self._bundle.running, len(kv))
        youngest = slice(-1, -count - 1, -1)
        rows, old = coming.rows[: len(kv)][youngest], self._facts
        waited = np.maximum(now_s - old.arrival_s[rows], 0.0)
        promised = old.promised_s[rows, 1]
        table = np.zeros((count, PER_RUNNING), np.float32)
        table[:, 0] = 1.0
        table[:, 1] = kv[youngest] * self._per_capacity
        table[:, 2] = np.minimum(produced[youngest] * scales.per_output, 1.0)
        table[:, 3] = np.minimum(np.maximum(told - produced, 1)[youngest] * scales.per_output, 1.0)
        table[:, 4] = np.minimum(np.maximum(missing[youngest], 0) * scales.per_prompt, 1.0)
        table[:, 5] = waited / (waited + scales.window_s)
        table[:, 6] = whole[youngest, CLASS] * scales.per_class
        table[:, 7] = np.maximum((promised - waited) / promised, -1.0) * old.counts[rows, 1]
        self._rows = table

    def _joined(self, coming: Coming) -> "_Residents":
        """Those that ran before, and those that join."""
        base = self._base
        if not coming.new:
            return base
        scales, last = self._scales, HISTOGRAM - 1
        remaining, held, footprint = list(base.remaining), list(base.held), list(base.footprint)
        area, longest = base.area, base.longest
        for row, found, tokens in coming.new:
            kept, predicted = self._facts.whole[row, KEPT : PREDICTED + 1].tolist()
            predicted = max(predicted if predicted > 0 else scales.default_output, kept + 1)
            chunks = -(-(tokens - found) // self._limits.chunk)
            left = predicted - kept + chunks
            place = min((left * scales.bins_per_step) >> BIN_SHIFT, last)
            remaining[place] += 1
            held[place] += tokens - chunks
            footprint[min((found * scales.bins_per_token) >> BIN_SHIFT, last)] += 1
            area += remaining_area(self._limits, tokens, found, kept, predicted)
            longest = max(longest, left)
        return _Residents(remaining, held, footprint, area, longest)

    def _waiting(
        self, out: NDArray[np.float32], candidates: Sequence[int], allowed: Sequence[int], now_s: float
    ) -> None:
        facts, window_s = self._facts, self._scales.window_s
        rows = np.array(candidates)
        table = facts.shown[rows]
        waited = np.maximum(now_s - facts.arrival_s[rows], 0.0)
        promised = facts.promised_s[rows]
        table[:, 3] = waited / (waited + window_s)
        table[:, 7:9] = np.maximum((promised - waited[:, None]) / promised, -1.0) * facts.counts[rows]
        if self._limits.prefix:
            for k, row in enumerate(candidates):
                if row != NOBODY:
                    tokens = int(facts.whole[row, PROMPT] + facts.whole[row, KEPT])
                    table[k, 9] = self._cache.found(row)[0] / tokens
        table[:, 10] = allowed
        out[self._places["waiting.candidates"]] = table.ravel()

    def _running(self, out: NDArray[np.float32], coming: Coming, now_s: float) -> None:
        scales, running = self._scales, self._bundle.running
        start = self._at["running.candidates"]
        for row, found, tokens in coming.new[: -running - 1 : -1]:
            kept, predicted, _, request_class = self._facts.whole[row, KEPT : CLASS + 1].tolist()
            told = predicted if predicted > 0 else scales.default_output
            waited = max(now_s - float(self._facts.arrival_s[row]), 0.0)
            promised, counts = float(self._facts.promised_s[row, 1]), float(self._facts.counts[row, 1])
            out[start : start + PER_RUNNING] = (
                1.0,
                found * self._per_capacity,
                min(kept * scales.per_output, 1.0),
                min(max(told - kept, 1) * scales.per_output, 1.0),
                min((tokens - found) * scales.per_prompt, 1.0),
                waited / (waited + scales.window_s),
                request_class * scales.per_class,
                max((promised - waited) / promised, -1.0) * counts,
                0.0,
            )
            start += PER_RUNNING
        older = self._rows[: max(running - len(coming.new), 0)]
        out[start : start + older.size] = older.ravel()
