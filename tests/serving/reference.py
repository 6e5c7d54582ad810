"""A second, slow simulator of the serving queue, in plain Python: what the compiled engine is checked against.

Written from the published descriptions, with nothing taken from `llmgym.serving`: every token is counted one by one, every
predicted future is rolled out batch by batch.

- The model: Nie, Si, Zhou (arXiv 2605.04595), section 2. A batch gives every started request one chunk of its prompt or
  one output token; its tokens stay in memory until it completes; the sum may not exceed M.
- First come, first served, work-conserving; with `skip`, any maximal batch (their Theorem 4.2 covers both). On overflow
  the requests that do not fit are paused and keep their cache at no cost ("pause"), or as in vLLM V1 the youngest is
  preempted, loses its cache and later prefills prompt and output so far again ("recompute"); a batch that preempts
  admits nobody.
- vLLM: admit while resident tokens + the whole prompt + w M <= M. An empty engine admits whatever fits at all.
- Peak reservation: admit while the final footprints s + o fit together.
- MC-SF and its relatives (Jaillet et al., arXiv 2502.07115): admit if memory suffices in every future batch, should all
  started requests and the new one run in every batch from now on and end as predicted.

First output token: "next-batch" produces it in the batch after the last chunk of the prompt (the model of the paper);
"with-prefill" in the batch of the last chunk, its own entry in the cache following one batch later (as engines do);
"stored" in that batch, entry included (the unit-time model of Jaillet et al.).

Blocks (vLLM): the cache is handed out in blocks that one request alone fills. Planning ahead (vLLM V1 with asynchronous
scheduling): a batch is put together while the one before it runs, from what had arrived when that one began.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple


@dataclass
class Request:
    """One request and where it stands."""

    number: int
    arrival_s: float
    prompt: int
    output: int
    predicted: int
    produced: int = 0
    to_prefill: int = 0
    cached: int = 0
    paused: bool = False
    first_token_s: float | None = None
    completed_s: float | None = None


class Batch(NamedTuple):
    """What runs in a batch: (tokens, context) of each prompt chunk, decodes, tokens those read, tokens of used blocks."""

    chunks: list[tuple[int, int]]
    decodes: int
    read: int
    used: int


@dataclass
class World:
    """One engine with its waiting line; call `step` for one batch."""

    requests: Sequence[Request]
    capacity: int
    chunk: int
    budget: int
    seats: int
    first_token: str
    overflow: str
    rule: str
    watermark: float
    batch_s: Callable[[Batch], float]
    block: int = 1
    ahead: bool = False
    clock_s: float = 0.0
    seen_s: float = 0.0
    arrived: int = 0
    waiting: list[Request] = field(default_factory=list)
    started: list[Request] = field(default_factory=list)  # in order of admission
    given: dict[int, int] = field(
        default_factory=dict
    )  # tokens each started request takes in the coming batch
    left: int = 0
    closed: bool = False
    preemptions: int = 0
    last: tuple[int, int, int] = (0, 0, 0)  # used tokens, prompt tokens and output tokens of the last batch

    def __post_init__(self) -> None:
        self.clock_s = self.seen_s = self.requests[0].arrival_s
        self._arrivals()
        self._keep_going()

    # -- one batch ------------------------------------------------------------------------------------------------

    def step(self) -> None:
        """Admit, run one batch, let time pass, receive arrivals, and settle who of the started goes on."""
        if not self.closed:
            self._admit()
        running = [r for r in self.started if self.given.get(r.number, 0) > 0]
        assert running, "an engine with work must run something"
        used = self._resident()
        assert used <= self.capacity
        chunks = [(self.given[r.number], r.cached) for r in running if r.to_prefill > 0]
        decoding = [r for r in running if r.to_prefill == 0]
        self.last = (used, sum(tokens for tokens, _ in chunks), len(decoding))
        self.seen_s = self.clock_s
        self.clock_s += self.batch_s(Batch(chunks, len(decoding), sum(r.cached for r in decoding), used))
        if not self.ahead:
            self.seen_s = self.clock_s
        for r in running:
            self._advance(r, self.given[r.number])
        self.started = [r for r in self.started if r.completed_s is None]
        self._arrivals()
        if not self.started and not self.waiting and self.arrived < len(self.requests):
            self.clock_s = self.seen_s = max(self.clock_s, self.requests[self.arrived].arrival_s)
            self._arrivals()
        self._keep_going()

    def _advance(self, r: Request, tokens: int) -> None:
        r.cached += self._growth(r, tokens)
        if r.to_prefill > 0:
            r.to_prefill -= tokens
            if r.to_prefill > 0 or self.first_token == "next-batch":
                return
        r.produced += 1
        if r.first_token_s is None:
            r.first_token_s = self.clock_s
        if r.produced == r.output:
            r.completed_s = self.clock_s

    def _arrivals(self) -> None:
        while self.arrived < len(self.requests) and self.requests[self.arrived].arrival_s <= self.seen_s:
            self._line_up(self.requests[self.arrived])
            self.arrived += 1

    def _line_up(self, r: Request) -> None:
        r.to_prefill, r.cached, r.paused = r.prompt + r.produced, 0, False
        self.waiting.append(r)
        self.waiting.sort(key=self._priority)

    def _priority(self, r: Request) -> tuple[int, int]:
        if self.rule == "mc-sf":
            return (r.predicted, r.number)
        if self.rule == "smallest-area":
            return (sum(self._future(r)), r.number)
        return (0, r.number)

    # -- what a unit of work takes --------------------------------------------------------------------------------

    def _blocks(self, tokens: int) -> int:
        """Tokens of the blocks that hold so many."""
        return self.block * math.ceil(tokens / self.block)

    def _wants(self, r: Request, left: int) -> int:
        return min(r.to_prefill, self.chunk, left) if r.to_prefill > 0 else min(1, left)

    def _growth(self, r: Request, tokens: int) -> int:
        ends_prompt = 0 < tokens == r.to_prefill
        return tokens + (1 if ends_prompt and self.first_token == "stored" else 0)

    def _future(self, r: Request) -> list[int]:
        """Predicted tokens in the cache in each coming batch until completion, running in every one with full chunks."""
        expected = max(r.predicted, r.produced + 1)
        to_prefill, cached, produced = r.to_prefill, r.cached, r.produced
        course = []
        while produced < expected:
            if to_prefill > 0:
                tokens = min(to_prefill, self.chunk)
                to_prefill -= tokens
                cached += tokens
                if to_prefill == 0 and self.first_token != "next-batch":
                    produced += 1
                    cached += 1 if self.first_token == "stored" else 0
            else:
                cached += 1
                produced += 1
            course.append(cached)
        return course

    # -- who goes on ----------------------------------------------------------------------------------------------

    def _keep_going(self) -> None:
        self.given, self.left, self.closed = {}, self.budget, False
        if self.overflow == "pause":
            self._or_pause()
        else:
            self._or_preempt()

    def _or_pause(self) -> None:
        total, stopped = 0, False
        for r in self.started:
            tokens = self._wants(r, self.left)
            after = self._blocks(r.cached + self._growth(r, tokens))
            r.paused = stopped or total + after > self.capacity
            if r.paused:
                stopped = self.rule != "wc-skip"
                self.closed = stopped
                continue
            self.given[r.number] = tokens
            self.left -= tokens
            total += after

    def _or_preempt(self) -> None:
        at = 0
        while at < len(self.started):
            r = self.started[at]
            tokens = self._wants(r, self.left)
            while r in self.started and self._resident() + self._more(r, tokens) > self.capacity:
                victim = self.started.pop()
                self.preemptions += 1
                self.closed = True
                self._line_up(victim)
            if r in self.started:
                self.given[r.number] = tokens
                self.left -= tokens
            at += 1

    def _more(self, r: Request, tokens: int) -> int:
        return self._blocks(r.cached + self._growth(r, tokens)) - self._blocks(r.cached)

    def _resident(self) -> int:
        """Tokens of the used blocks once everybody who was given work so far has done it."""
        return sum(
            self._blocks(r.cached + self._growth(r, self.given.get(r.number, 0)))
            for r in self.started
            if not r.paused
        )

    # -- who joins ------------------------------------------------------------------------------------------------

    def _admit(self) -> None:
        for r in list(self.waiting):
            if len(self.started) >= self.seats or self.left <= 0:
                break
            if self._may_join(r):
                tokens = self._wants(r, self.left)
                self.waiting.remove(r)
                self.started.append(r)
                self.given[r.number] = tokens
                self.left -= tokens
            elif self.rule != "wc-skip":
                break

    def _may_join(self, r: Request) -> bool:
        resident = self._resident()
        if resident + self._more(r, self._wants(r, self.left)) > self.capacity:
            return False
        if not self.started:
            return True
        if self.rule == "vllm":
            return resident + self._blocks(r.to_prefill) + self.watermark * self.capacity <= self.capacity
        if self.rule == "reserve-peak":
            final = [self._blocks(q.prompt + max(q.predicted, q.produced + 1)) for q in [*self.started, r]]
            return sum(final) <= self.capacity
        if self.rule in ("mc-sf", "fcfs-lookahead", "smallest-area"):
            courses = [self._future(q) for q in [*self.started, r]]
            longest = max(map(len, courses))
            return all(
                sum(self._blocks(c[t]) for c in courses if t < len(c)) <= self.capacity
                for t in range(longest)
            )
        return True
