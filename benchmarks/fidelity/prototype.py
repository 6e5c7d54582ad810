"""vLLM V1's scheduling in plain Python, with its mechanics as switches: what each of them is worth.

Written from what the scheduler and the engine core of vLLM 0.24.0 do (https://github.com/vllm-project/vllm, `vllm/v1/core` and
`vllm/v1/engine`): running requests first, in order of admission, one token or the rest of the prompt each while the token budget
lasts; then waiting ones in order of arrival, if nobody was preempted, a seat is free and all blocks of the prompt (and of
the output kept from before a preemption) are; when blocks run out the youngest running request loses its own and goes to
the front of the line; the step that ends a prefill yields the first token.

With asynchronous scheduling the engine keeps two batches in flight: batch k + 1 is put together when the result of k - 1 is
known, so whoever arrives while k - 1 runs starts in k + 1, and a seat or block that k frees is free from k + 2 on.

This is no second simulator: the figures reported as the serving model's come from `llmgym.serving`. It tells what the mechanics
that model lacks are worth, and a test holds the two together where they should agree.
"""

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from fidelity.runs import Engine, Floats, Run

Step = Callable[[Sequence[tuple[int, int]], int, int], float]
"""Seconds of a batch: chunks as (tokens, tokens of the request cached before), number of decodes, tokens they read in total."""


@dataclass(frozen=True)
class Mechanics:
    """What is modelled beyond the scheduler's order.

    Attributes:
        asynchronous: a batch is put together while the one before it runs.
        blocks: cache in blocks of `Engine.block_tokens`; in tokens otherwise.
        way_in_s: from the arrival of a request to the moment the scheduler can see it, s.
        way_out_s: from the end of a batch to the moment its tokens are with the client, s.
    """

    asynchronous: bool = True
    blocks: bool = True
    way_in_s: float = 0.0
    way_out_s: float = 0.0


@dataclass
class _Request:
    number: int
    prompt: int
    output: int
    kept: int = 0  # output tokens from before a preemption: recomputed with the prompt
    computed: int = 0
    made: int = 0  # output tokens of all batches put together so far
    blocks: int = 0

    @property
    def left(self) -> int:
        """Tokens still to prefill."""
        return self.prompt + self.kept - self.computed


@dataclass
class Replay:
    """What a replay gives.

    Attributes:
        arrival_s: float64 [n].
        first_s: float64 [n].
        last_s: float64 [n].
        preemptions: how often a request lost its cache.
        batches: how many batches ran.
        mixed: how many of them had both prefill and decodes.
    """

    arrival_s: Floats
    first_s: Floats
    last_s: Floats
    preemptions: int = 0
    batches: int = 0
    mixed: int = 0


@dataclass
class _Batch:
    chunks: list[tuple[int, int]] = field(default_factory=list)
    decodes: int = 0
    kv_tokens: int = 0
    tokens: int = 0
    yields: list[_Request] = field(default_factory=list)
    finishes: list[_Request] = field(default_factory=list)


def replay(run: Run, step: Step, mechanics: Mechanics, in_flight: int | None = None) -> Replay:
    """Replay the requests of a run.

    Args:
        run: the requests and the engine's settings.
        step: duration of a batch, s.
        mechanics: what is modelled.
        in_flight: None for the arrivals of the run; else so many requests are kept in flight, each next one arriving when
            one ends, and `Replay.arrival_s` says when that was.
    """
    return replay_together([run], step, mechanics, in_flight)[0]


def replay_together(
    runs: Sequence[Run], step: Step, mechanics: Mechanics, in_flight: int | None = None
) -> list[Replay]:
    """Replay engines that step together, as data-parallel ranks do that share their experts: the slowest sets the pace.

    Args:
        runs: the requests of each engine.
        step: duration of a batch of one engine, s.
        mechanics: what is modelled.
        in_flight: requests in flight on each engine; see `replay`.
    """
    results, schedulers = [], []
    for run in runs:
        n = len(run.arrival_s)
        result = Replay(run.arrival_s.copy(), np.full(n, np.nan), np.full(n, np.nan))
        if in_flight is not None:
            result.arrival_s[:] = np.where(np.arange(n) < in_flight, 0.0, np.inf)
        results.append(result)
        schedulers.append(_Scheduler(run, mechanics, result))
    depth = 2 if mechanics.asynchronous else 1
    flying: deque[tuple[float, list[_Batch]]] = deque()
    clock_s, device_s = 0.0, 0.0
    while any(scheduler.unfinished for scheduler in schedulers):
        for scheduler in schedulers:
            scheduler.arrive(clock_s)
        batches = [scheduler.schedule() for scheduler in schedulers]
        if any(batch.tokens for batch in batches):
            device_s = max(device_s, clock_s) + max(
                step(batch.chunks, batch.decodes, batch.kv_tokens) for batch in batches if batch.tokens
            )
            flying.append((device_s, batches))
            for result, batch in zip(results, batches, strict=True):
                result.batches += batch.tokens > 0
                result.mixed += bool(batch.chunks) and batch.decodes > 0
            if len(flying) < depth:
                continue
        if flying:
            clock_s, ended = flying.popleft()
            for scheduler, batch in zip(schedulers, ended, strict=True):
                scheduler.update(batch, clock_s)
        else:
            clock_s = max(clock_s, min(scheduler.next_arrival_s for scheduler in schedulers))
    return results


class _Scheduler:
    """The queue, the running requests and the blocks."""

    def __init__(self, run: Run, mechanics: Mechanics, result: Replay) -> None:
        self.engine: Engine = run.engine
        self.way_out_s = mechanics.way_out_s
        self.result = result
        self.block = run.engine.block_tokens if mechanics.blocks else 1
        self.total = run.engine.kv_tokens // self.block
        self.free = self.total
        self.spare = int(run.engine.watermark * self.total)
        self.way_in_s = mechanics.way_in_s
        self.asked = int(np.isfinite(result.arrival_s).sum())
        self.requests = [
            _Request(i, int(run.prompt_tokens[i]), int(run.output_tokens[i]))
            for i in range(len(run.arrival_s))
        ]
        self.next = 0
        self.unfinished = len(self.requests)
        self.waiting: deque[_Request] = deque()
        self.running: list[_Request] = []

    @property
    def next_arrival_s(self) -> float:
        """When the scheduler sees the next request, s."""
        if self.next == len(self.requests):
            return math.inf
        return float(self.result.arrival_s[self.next]) + self.way_in_s

    def arrive(self, clock_s: float) -> None:
        """Queue what has arrived."""
        while self.next_arrival_s <= clock_s:
            self.waiting.append(self.requests[self.next])
            self.next += 1

    def _more(self, request: _Request, tokens: int) -> int:
        """Blocks that a request needs to hold so many tokens, beyond those it has."""
        return max(-(-tokens // self.block) - request.blocks, 0)

    def _take(self, request: _Request, more: int) -> None:
        request.blocks += more
        self.free -= more

    def _leave(self, request: _Request) -> None:
        self.free += request.blocks
        request.blocks = 0

    def schedule(self) -> _Batch:
        """Put the next batch together; it is empty if there is nothing to run."""
        batch = _Batch()
        left = self.engine.budget_tokens
        preempted = False
        at = 0
        while at < len(self.running) and left > 0:
            request = self.running[at]
            if request.made >= request.output:
                at += 1
                continue
            tokens = min(request.left, left) if request.left > 0 else 1
            more = self._more(request, request.computed + tokens)
            while more > self.free:
                victim = self.running.pop()
                self._preempt(victim)
                preempted = True
                if victim is request:
                    break
            else:
                self._take(request, more)
                self._run(batch, request, tokens)
                left -= tokens
                at += 1
                continue
            break
        while not preempted and self.waiting and left > 0 and len(self.running) < self.engine.seats:
            request = self.waiting[0]
            spare = self.spare if self.running else 0
            if self._more(request, request.left) + spare > self.free:
                break
            self.waiting.popleft()
            self.running.append(request)
            tokens = min(request.left, left)
            self._take(request, self._more(request, tokens))
            self._run(batch, request, tokens)
            left -= tokens
        return batch

    def _preempt(self, victim: _Request) -> None:
        self._leave(victim)
        victim.kept, victim.computed = victim.made, 0
        self.waiting.appendleft(victim)
        self.result.preemptions += 1

    def _run(self, batch: _Batch, request: _Request, tokens: int) -> None:
        batch.tokens += tokens
        if request.left > 0:
            batch.chunks.append((tokens, request.computed))
            request.computed += tokens
            if request.left > 0:
                return
        else:
            batch.decodes += 1
            batch.kv_tokens += request.computed
            request.computed += 1
            request.kept += 1  # keeps `left` at 0
        request.made += 1
        batch.yields.append(request)
        if request.made == request.output:
            batch.finishes.append(request)

    def update(self, batch: _Batch, end_s: float) -> None:
        """Hand out what a batch has made that ended at `end_s`."""
        seen_s = end_s + self.way_out_s
        for request in batch.yields:
            if np.isnan(self.result.first_s[request.number]):
                self.result.first_s[request.number] = seen_s
        for request in batch.finishes:
            self.result.last_s[request.number] = seen_s
            self._leave(request)
            if request in self.running:
                self.running.remove(request)
            else:
                self.waiting.remove(request)
            self.unfinished -= 1
            if self.asked < len(self.requests):
                self.result.arrival_s[self.asked] = seen_s
                self.asked += 1
