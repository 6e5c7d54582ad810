"""The decisions of a step of a live engine, in the order in which KVQueue-v1 asks for them.

`Steering` knows requests as vLLM has them (`request_id`, `num_prompt_tokens`, `num_computed_tokens`, `arrival_time`, `max_tokens`,
`sampling_params`, `priority`, `status`), and imports nothing of vLLM.
"""

import logging
import math
from collections.abc import Iterable, Sequence
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np

from llmgym.deploy.acting import Acting
from llmgym.deploy.bundle import Bundle
from llmgym.deploy.facts import (
    AREA,
    CLASS,
    KEPT,
    NOBODY,
    Cache,
    Coming,
    Facts,
    Limits,
    Line,
)
from llmgym.deploy.observing import BATCH_WEIGHT, Episode, Observer

PREDICTED_KEY, CLASS_KEY = "predicted_output_tokens", "request_class"
"""What `SamplingParams.extra_args` may have: the predicted length of the output, tokens, and the number of the class."""
READY = ("WAITING", "PREEMPTED")
"""Names of the states of those that wait for room alone, and not for a grammar, a transfer or more input."""
NEVER = 2**40
"""Tokens that no output has: the end of one that asks for no end."""
logger = logging.getLogger(__name__)
_name_of, _computed_of = attrgetter("request_id"), attrgetter("num_computed_tokens")


def ready(request: Any) -> bool:
    """Whether a request waits for nothing but room."""
    return request.status.name in READY


class Decision(NamedTuple):
    """What a step is to do.

    Attributes:
        admit: requests that may join, in this order.
        victims: running requests that lose their cache, in this order.
        shown: rows of the candidates when the last decision had been taken.
        held_back: whether somebody who fits was held back.
        places: how many of those that wait came before each that may join.
    """

    admit: list[Any]
    victims: list[Any]
    shown: frozenset[int]
    held_back: bool
    places: list[int]


class Steering:
    """What a policy sees and decides, step after step.

    Args:
        bundle: layout and scales of the policy.
        acting: the policy.
        limits: of the engine.
        cache: of the engine.

    Attributes:
        episode: what is counted.
        decisions: decisions taken so far.
        unpredicted: requests so far that came without a prediction that can be used.
    """

    def __init__(self, bundle: Bundle, acting: Acting, limits: Limits, cache: Cache) -> None:
        self.bundle, self.acting, self.limits = bundle, acting, limits
        self.facts = Facts()
        self.line = Line(self.facts, bundle, limits)
        self.coming = Coming(self.facts, limits, cache)
        self.observer = Observer(bundle, limits, self.facts, cache)
        self.observer.fields = getattr(acting, "fields", None)
        self.episode = Episode(batch_estimate_s=bundle.scales.batch_ref_s)
        self.decisions = self.unpredicted = 0
        self.requests: dict[int, Any] = {}
        self.tickets: dict[int, int] = {}
        self._rows: dict[str, int] = {}
        # those that ran when it was decided last; None: what is known of them may have changed
        self._ran: list[Any] | None = None
        self._next_ticket = 0
        self._length = max(1, round(1.0 / bundle.scales.per_expected))
        self._arrived_area, self._ended_s = 0, -math.inf
        self._lasted_s, self._empty = 0.0, True

    # -- who is in the system --------------------------------------------------------------------------------------

    def row(self, request: Any) -> int:
        """The row of a request, which is known from now on."""
        found = self._rows.get(request.request_id)
        if found is not None:
            return found
        row = self.facts.take()
        prompt, limits = int(request.num_prompt_tokens), self.limits
        predicted, request_class = self._told(request)
        most = request.max_tokens if request.max_tokens is not None else NEVER
        room = max(limits.longest - prompt, 1)
        # in the order of `PROMPT` and the others
        known = (prompt, 0, min(predicted, room), 0, request_class, max(min(most, room), 1))
        self.facts.columns[:, row] = known
        self.facts.arrival_s[row] = request.arrival_time
        self._rows[request.request_id] = row
        self.requests[row] = request
        self.tickets[row] = self._next_ticket
        self._next_ticket += 1
        return row

    def _told(self, request: Any) -> tuple[int, int]:
        """What a request says of itself: its predicted output, tokens, or 0, and its class."""
        extra = getattr(request.sampling_params, "extra_args", None) or {}
        value: Any = extra.get(PREDICTED_KEY)
        predicted = 0
        known = isinstance(value, (int, float)) and not isinstance(value, bool)
        if known and math.isfinite(value) and value >= 1:
            predicted = round(value)
        else:
            self.unpredicted += 1
            if self.unpredicted == 1:
                logger.warning(
                    "llmgym: request %s has extra_args[%r]=%r: expected a number from 1 on; it is reckoned with %d tokens",
                    request.request_id,
                    PREDICTED_KEY,
                    value,
                    self.bundle.scales.default_output,
                )
        request_class = extra.get(CLASS_KEY, request.priority)
        if not isinstance(request_class, int):
            request_class = 0
        return predicted, min(max(request_class, 0), len(self.bundle.objectives) - 1)

    def enter(self, request: Any) -> None:
        """A request waits for room from now on."""
        if not ready(request):
            return
        new = request.request_id not in self._rows
        row = self.row(request)
        if row in self.line:
            return
        area = self.line.enter(row, self.tickets[row])
        if new:
            self._arrived_area += area

    def preempted(self, request: Any) -> None:
        """A running request has lost its cache; what it has produced is kept."""
        self._ran = None
        row = self.row(request)
        whole = self.facts.whole
        whole[row, KEPT] = self.coming.output_of(row, self.coming.computed_of(row))
        self.episode.preemptions += 1

    def leave(self, request: Any) -> None:
        """A request waits no longer."""
        row = self._rows.get(request.request_id)
        if row is not None and row in self.line:
            self.line.leave(row)

    def gone(self, known: Any, now_s: float, completed: bool = True, first: Iterable[str] = ()) -> None:
        """Count and forget requests that the engine knows no more.

        Args:
            known: requests of the engine, by `request_id`.
            now_s: time, s.
            completed: whether they had their last token, and were not given up.
            first: `request_id` of those that are likely to have gone, which saves a look at all the others.
        """
        rows = self._rows
        if len(known) == len(rows):
            return
        names = [name for name in first if name in rows and name not in known]
        if len(rows) - len(names) != len(known):
            names = [name for name in rows if name not in known]
        self._ran = None
        for name in names:
            row = self._rows.pop(name)
            if row in self.line:
                self.line.leave(row)
            if completed:
                self.episode.done += 1
                promised = self.bundle.objectives[int(self.facts.whole[row, CLASS])]
                self.episode.late += int(now_s - self.facts.arrival_s[row] > promised.e2e_s)
            del self.requests[row], self.tickets[row]
            self.facts.release(row)
        self._empty = self._empty or not self._rows

    # -- steps -----------------------------------------------------------------------------------------------------

    def planned(self, tokens: int, newcomers: Sequence[tuple[Any, int]], now_s: float) -> None:
        """Note what the engine has planned.

        Args:
            tokens: of the batch.
            newcomers: requests that have joined it, and how many tokens of each were found in the cache.
            now_s: time, s.
        """
        self.episode.batch_prefill = max(tokens - self.coming.decodes, 0)
        self.episode.prefilled += self.episode.batch_prefill
        self.episode.reused += sum(found for _, found in newcomers)

    def ended(self, planned_s: float, now_s: float) -> None:
        """Note that a batch has ended.

        Args:
            planned_s: when it was planned, s.
            now_s: time, s.
        """
        episode = self.episode
        episode.batch_s = max(now_s - max(planned_s, self._ended_s), 0.0)
        self._ended_s = now_s
        episode.batch_estimate_s += BATCH_WEIGHT * (episode.batch_s - episode.batch_estimate_s)
        self._lasted_s += episode.batch_s

    def _begin(self, now_s: float) -> None:
        """Average over what has passed since the last step, and begin an episode where one ends."""
        episode = self.episode
        if self._empty and self._rows:
            first_s = min(float(self.facts.arrival_s[row]) for row in self._rows.values())
            self.episode = Episode(zero_s=first_s, batch_estimate_s=self.bundle.scales.batch_ref_s)
            self._empty = False
        else:
            if self._lasted_s == 0.0:
                return
            episode.lasted(self._lasted_s, self._arrived_area, self.bundle.scales.window_s)
        self._arrived_area, self._lasted_s = 0, 0.0
        if self.episode.done >= self._length:
            self.episode = Episode(
                zero_s=now_s,
                area_rate=episode.area_rate,
                batch_estimate_s=episode.batch_estimate_s,
                batch_s=episode.batch_s,
                batch_prefill=episode.batch_prefill,
            )

    def decide(self, running: Sequence[Any], used: int, waiting: int, now_s: float) -> Decision:
        """Decide on the step that the engine plans next.

        Args:
            running: requests that run, oldest first.
            used: tokens of the blocks that they hold.
            waiting: requests that wait.
            now_s: time, s.

        Returns:
            Who may join, and who goes.
        """
        self._begin(now_s)
        coming, line, slots = self.coming, self.line, self.bundle.slots
        same = self._ran is not None and self._ran == running
        if same:
            numbers: Sequence[int] = coming.before
        else:
            try:
                numbers = list(map(self._rows.__getitem__, map(_name_of, running)))
            except KeyError:
                numbers = [self.row(request) for request in running]
            self._ran = list(running)
        computed = np.fromiter(map(_computed_of, running), np.int64, len(running))
        coming.begin(numbers, computed, used, waiting, same)
        victims: list[int] = []
        queued = len(line)
        while coming.short and coming.rows:
            candidates = line.candidates()
            mask = np.zeros(1 + slots + self.bundle.running, np.int8)
            mask[1 + slots : 1 + slots + len(coming.rows)] = 1
            action = self._act(candidates, mask, now_s, waiting + len(line) - queued, 0)
            place = action - 1 - slots if mask[action] else 0
            row = coming.evict(len(coming.rows) - 1 - place)
            victims.append(row)
            self.episode.preemptions += 1
            if row not in coming.done:
                line.enter(row, self.tickets[row])
        if victims:
            self._ran = None
            for row in victims:
                if row in line:
                    line.leave(row)
            self.episode.preemptions -= len(victims)
            return Decision([], [self.requests[row] for row in victims], frozenset(), False, [])
        return self._admissions(waiting, now_s)

    def _admissions(self, waiting: int, now_s: float) -> Decision:
        coming, line, slots = self.coming, self.line, self.bundle.slots
        picked: list[int] = []
        held_back = False
        waiting_area = line.area
        while True:
            candidates = line.candidates(picked)
            allowed: list[int] = []
            if coming.lets_in():
                tokens = line.tokens
                if self.limits.prefix:
                    allowed = [int(row != NOBODY and coming.fits(row, tokens[row])) for row in candidates]
                else:
                    most = coming.most()
                    allowed = [1 if row != NOBODY and tokens[row] <= most else 0 for row in candidates]
            if 1 not in allowed:
                break
            mask = np.zeros(1 + slots + self.bundle.running, np.int8)
            mask[0] = len(coming.rows) > 0
            mask[1 : 1 + slots] = allowed
            action = self._act(candidates, mask, now_s, waiting - len(picked), len(picked))
            if not mask[action]:
                # as in the gym, nobody joins; but an engine in which nobody runs must go on
                action = 0 if mask[0] else int(mask.argmax())
            if action == 0:
                held_back = True
                break
            row = candidates[action - 1]
            coming.admit(row, line.tokens[row])
            line.area -= int(self.facts.whole[row, AREA])
            picked.append(row)
        line.area = waiting_area
        admit = [self.requests[row] for row in picked]
        return Decision(admit, [], frozenset(candidates), held_back, [line.place(row) for row in picked])

    def _act(
        self,
        candidates: Sequence[int],
        mask: Any,
        now_s: float,
        waiting: int,
        picked: int,
    ) -> int:
        self.decisions += 1
        allowed = mask[1 : 1 + self.bundle.slots]
        obs = self.observer.observe(
            self.coming, self.line, candidates, allowed, self.episode, now_s, waiting, picked
        )
        action = int(self.acting.act(obs, mask))
        if not 0 <= action < len(mask):
            raise ValueError(f"action={action!r}: expected a number from 0 to {len(mask) - 1}")
        return action
