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
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field


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
    batch_s: Callable[[int, int], float]  # of prompt tokens in the batch and tokens in the cache
    clock_s: float = 0.0
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
        self.clock_s = self.requests[0].arrival_s
        self._arrivals()
        self._keep_going()

    # -- one batch ------------------------------------------------------------------------------------------------

    def step(self) -> None:
        """Admit, run one batch, let time pass, receive arrivals, and settle who of the started goes on."""
        if not self.closed:
            self._admit()
        running = [r for r in self.started if self.given.get(r.number, 0) > 0]
        assert running, "an engine with work must run something"
        used = sum(r.cached + self._growth(r, self.given[r.number]) for r in self.started if not r.paused)
        assert used <= self.capacity
        prefilled = sum(self.given[r.number] for r in running if r.to_prefill > 0)
        decoded = sum(1 for r in running if r.to_prefill == 0)
        self.last = (used, prefilled, decoded)
        self.clock_s += self.batch_s(prefilled, used)
        for r in running:
            self._advance(r, self.given[r.number])
        self.started = [r for r in self.started if r.completed_s is None]
        self._arrivals()
        if not self.started and not self.waiting and self.arrived < len(self.requests):
            self.clock_s = self.requests[self.arrived].arrival_s
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
        while self.arrived < len(self.requests) and self.requests[self.arrived].arrival_s <= self.clock_s:
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
            after = r.cached + self._growth(r, tokens)
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
            while r in self.started and self._resident() + self._growth(r, tokens) > self.capacity:
                victim = self.started.pop()
                self.preemptions += 1
                self.closed = True
                self._line_up(victim)
            if r in self.started:
                self.given[r.number] = tokens
                self.left -= tokens
            at += 1

    def _resident(self) -> int:
        """Tokens in the cache once everybody who was given work so far has done it."""
        return sum(
            r.cached + self._growth(r, self.given.get(r.number, 0)) for r in self.started if not r.paused
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
        if resident + self._growth(r, self._wants(r, self.left)) > self.capacity:
            return False
        if not self.started:
            return True
        if self.rule == "vllm":
            return resident + r.to_prefill + self.watermark * self.capacity <= self.capacity
        if self.rule == "reserve-peak":
            final = [q.prompt + max(q.predicted, q.produced + 1) for q in [*self.started, r]]
            return sum(final) <= self.capacity
        if self.rule in ("mc-sf", "fcfs-lookahead", "smallest-area"):
            courses = [self._future(q) for q in [*self.started, r]]
            longest = max(map(len, courses))
            return all(sum(c[t] for c in courses if t < len(c)) <= self.capacity for t in range(longest))
        return True
