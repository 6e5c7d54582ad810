"""vLLM's scheduler with a policy or a rule of KVQueue-v1 in charge of whom it serves next, and whom it throws out.

    vllm serve MODEL --scheduler-cls llmgym.deploy.vllm.GymScheduler --additional-config '{"llmgym": {"policy": "policy.npz"}}'

The class adds to `AsyncScheduler` and copies nothing of it. Before a step it asks the policy, and tells vLLM by what vLLM reads
anyway: the order of the waiting queue and how far it is open, and the order of the running requests, whose last one goes. Whatever
goes wrong is logged, and vLLM schedules by itself from there on. Tried with vLLM 0.24 and 0.32.
"""

import os
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vllm.logger import init_logger
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.request_queue import FCFSRequestQueue

from llmgym.deploy.acting import load
from llmgym.deploy.facts import Limits
from llmgym.deploy.steering import Decision, Steering, ready
from llmgym.errors import InvalidArgument

logger = init_logger("vllm.llmgym")
SECTION, VARIABLE = "llmgym", "LLMGYM_POLICY"
"""Key of `--additional-config` that holds the settings, and the environment variable that names a policy without them."""
SETTINGS = ("policy", "scales", "report_every")
KEPT_TIMES = 100_000
"""Steps whose overhead is kept."""


class Queue(FCFSRequestQueue):
    """vLLM's waiting queue, which tells who comes and goes, and can be shut behind those that a policy has chosen.

    Attributes:
        steering: is told; None: nobody is.
        open: whether everybody is let in.
        chosen: those that are let in where it is not open, by `id`.
        failed: the error of the first thing that could not be told.
    """

    def __init__(self, steering: Steering) -> None:
        super().__init__()
        self.steering: Steering | None = steering
        self.open = True
        self.chosen: set[int] = set()
        self.failed: Exception | None = None

    def _tell(self, what: str, requests: Iterable[Any]) -> None:
        if self.steering is None:
            return
        try:
            for request in requests:
                getattr(self.steering, what)(request)
        except Exception as error:
            self.steering, self.open, self.failed = None, True, error

    def __bool__(self) -> bool:
        if len(self) == 0:
            return False
        return self.open or id(self[0]) in self.chosen or not ready(self[0])

    def add_request(self, request: Any) -> None:
        """A request comes."""
        super().add_request(request)
        self._tell("enter", [request])

    def prepend_request(self, request: Any) -> None:
        """A request comes back to the front: it was preempted."""
        super().prepend_request(request)
        if request.status.name == "PREEMPTED":
            self._tell("preempted", [request])
        self._tell("enter", [request])

    def prepend_requests(self, requests: Iterable[Any]) -> None:
        """Requests that were passed over come back to the front."""
        back = list(requests)
        super().prepend_requests(back)
        self._tell("enter", back)

    def pop_request(self) -> Any:
        """The front leaves."""
        request = super().pop_request()
        self._tell("leave", [request])
        return request

    def remove_request(self, request: Any) -> None:
        """A request is given up."""
        super().remove_request(request)
        self._tell("leave", [request])

    def remove_requests(self, requests: Iterable[Any]) -> None:
        """Several requests are given up."""
        away = list(requests)
        super().remove_requests(away)
        self._tell("leave", away)

    def bring_forward(self, chosen: Sequence[Any], all_ready: bool, places: Sequence[int] = ()) -> None:
        """Put requests in front, in this order; those that wait for something else than room stay ahead of them.

        Args:
            chosen: what comes first.
            all_ready: whether nobody waits for something else than room, which saves a look at everybody.
            places: where each of them is, if it is known; one that is elsewhere costs a look at everybody, and nothing else.
        """
        if all(here is wanted for here, wanted in zip(self, chosen)):
            return
        if all_ready and places and all(self[k] is one for k, one in zip(places, chosen, strict=True)):
            for place in sorted(places, reverse=True):
                del self[place]
            self.extendleft(reversed(chosen))
            return
        names = {id(request) for request in chosen}
        rest = [request for request in self if id(request) not in names]
        held = []
        if not all_ready:
            held = [request for request in rest if not ready(request)]
            rest = [request for request in rest if ready(request)]
        self.clear()
        self.extend([*held, *chosen, *rest])


class Cache:
    """What vLLM's cache knows of requests by their rows; see `llmgym.deploy.facts.Cache`.

    Attributes:
        requests: by row.
    """

    def __init__(self, manager: Any, limits: Limits) -> None:
        self.requests: Mapping[int, Any] = {}
        self._manager, self._limits = manager, limits
        self._blocks: dict[int, Sequence[Any]] = {}
        self._held: set[int] = set()

    def begin(self) -> None:
        """Forget what was found in the step before."""
        self._blocks.clear()
        self._held.clear()

    def _found(self, row: int) -> Sequence[Any]:
        if row not in self._blocks:
            request = self.requests[row]
            blocks: Sequence[Any] = ()
            if not getattr(request, "skip_reading_prefix_cache", False):
                # not get_computed_blocks, which counts what it is asked
                hit = self._manager.coordinator.find_longest_cache_hit(
                    request.block_hashes, request.num_tokens - 1
                )
                blocks = hit[0][0]
            self._blocks[row] = blocks
        return self._blocks[row]

    def found(self, row: int) -> tuple[int, int]:
        """Tokens of a waiting request that are in the cache, and those of these in blocks that nobody holds."""
        blocks = self._found(row)
        unheld = sum(block.ref_cnt == 0 and block.block_id not in self._held for block in blocks)
        return len(blocks) * self._limits.block, unheld * self._limits.block

    def hold(self, row: int) -> None:
        """Count the blocks that were found for a request as held from now on."""
        self._held.update(block.block_id for block in self._found(row))

    def freed(self, row: int, computed: int) -> int:
        """Tokens of the blocks that are free when a request with so many tokens in the cache loses it."""
        if not self._limits.prefix:
            return self._limits.in_blocks(computed)
        blocks = self._manager.get_blocks(self.requests[row].request_id).blocks[0]
        return sum(block.ref_cnt == 1 for block in blocks) * self._limits.block


def settings_of(config: Any) -> dict[str, Any]:
    """What `--additional-config` or the environment says.

    Args:
        config: of vLLM, with `additional_config`.

    Returns:
        `policy`, `scales` (None: those of the policy) and `report_every` (steps; 0: never).

    Raises:
        InvalidArgument: no policy is named, a setting has another name, or a value is none.
    """
    extra = getattr(config, "additional_config", None)
    said = extra.get(SECTION, {}) if isinstance(extra, Mapping) else {}
    if isinstance(said, str):
        said = {"policy": said}
    if not isinstance(said, Mapping):
        raise InvalidArgument(
            f"{SECTION}={said!r} of --additional-config: expected the path of a policy, or settings by name"
        )
    unknown = sorted(set(said) - set(SETTINGS))
    if unknown:
        raise InvalidArgument(
            f"{SECTION}.{unknown[0]} of --additional-config: expected one of {', '.join(SETTINGS)}"
        )
    policy = said.get("policy") or os.environ.get(VARIABLE)
    if not isinstance(policy, str):
        raise InvalidArgument(
            f"policy={policy!r}: expected 'identity', a path that ends in .npz, or module:name, in "
            f'--additional-config \'{{"{SECTION}": {{"policy": ...}}}}\' or in {VARIABLE}'
        )
    scales, every = said.get("scales"), said.get("report_every", 0)
    if scales is not None and not isinstance(scales, str):
        raise InvalidArgument(f"scales={scales!r}: expected the path of an exported policy")
    if not isinstance(every, int) or isinstance(every, bool) or every < 0:
        raise InvalidArgument(f"report_every={every!r}: expected a whole number from 0 on")
    return {"policy": policy, "scales": scales, "report_every": every}


class GymScheduler(AsyncScheduler):
    """vLLM's scheduler, which asks a policy before each step.

    Attributes:
        steering: what the policy sees and decides; None: vLLM schedules by itself.
        clock: tells the time on which `Request.arrival_time` is, s.
        overhead_s: what the policy and all around it took, a step, s; the latest `KEPT_TIMES` steps.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.steering: Steering | None = None
        self.clock = time.time
        self.overhead_s: deque[float] = deque(maxlen=KEPT_TIMES)
        self._queue: Queue | None = None
        self._under_way: deque[tuple[Any, float]] = deque()
        self._steps = self._report_every = 0
        try:
            self._take_over()
        except Exception as error:
            logger.error("llmgym: vLLM schedules by itself: %s", error)

    def _take_over(self) -> None:
        """Read the settings and the policy, and replace the waiting queue.

        Raises:
            InvalidArgument: the settings, or the engine's, do not allow it.
            CheckpointError: the policy cannot be read.
        """
        chosen = settings_of(self.vllm_config)
        limits = self._limits()
        bundle, acting = load(chosen["policy"], chosen["scales"], limits.capacity)
        self._cache = Cache(self.kv_cache_manager, limits)
        steering = Steering(bundle, acting, limits, self._cache)
        self._cache.requests = steering.requests
        for name, here in (
            ("kv_capacity", limits.capacity),
            ("budget", limits.budget),
            ("seats", limits.seats),
            ("block", limits.block),
            ("prefix_caching", limits.prefix),
        ):
            then = (bundle.engine or {}).get(name, here)
            if then != here:
                logger.warning(
                    "llmgym: %s was made for %s=%s; this engine has %s", bundle.name, name, then, here
                )
        self._report_every = chosen["report_every"]
        self.steering = steering
        self.waiting = self._queue = Queue(steering)
        logger.info("llmgym: %s decides who is served next", bundle.name)

    def _limits(self) -> Limits:
        config = self.scheduler_config
        if config.policy != "fcfs":
            raise InvalidArgument(
                f"scheduling policy {config.policy!r}: expected 'fcfs', whose order a policy changes"
            )
        if len(self.kv_cache_config.kv_cache_groups) != 1:
            raise InvalidArgument("the model has several kinds of KV cache: expected one")
        if self.num_lookahead_tokens:
            raise InvalidArgument("speculative decoding: expected none")
        block, blocks = self.block_size, self.kv_cache_manager.block_pool.num_gpu_blocks - 1
        return Limits(
            capacity=block * blocks,
            block=block,
            budget=self.max_num_scheduled_tokens,
            chunk=self._chunk(),
            seats=self.max_num_running_reqs,
            longest=min(self.max_model_len, block * blocks),
            watermark=block * self.kv_cache_manager.watermark_blocks,
            alone=hasattr(self, "kv_holding_waiting"),  # since 0.31, as that is
            prefix=bool(self.cache_config.enable_prefix_caching),
        )

    def _chunk(self) -> int:
        most: int = self.max_num_scheduled_tokens
        return min(self.scheduler_config.long_prefill_token_threshold or most, most)

    # -- what vLLM calls -------------------------------------------------------------------------------------------

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """Plan a step."""
        if self.steering is None:
            return super().schedule(*args, **kwargs)
        began = time.perf_counter()
        before: list[Any] = []
        try:
            if self.steering.limits.prefix:
                before = list(self.running)
            self._decide()
        except Exception as error:
            self._give_up(error)
        spent = time.perf_counter() - began
        output = super().schedule(*args, **kwargs)
        began = time.perf_counter()
        if self.steering is not None:
            try:
                self._planned(output, before)
            except Exception as error:
                self._give_up(error)
        self._spent(spent + time.perf_counter() - began)
        return output

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        """Take the tokens of a step."""
        found = super().update_from_output(scheduler_output, model_runner_output)
        if self.steering is not None:
            began = time.perf_counter()
            try:
                now_s = self.clock()
                if any(output is scheduler_output for output, _ in self._under_way):
                    planned_s = 0.0
                    while self._under_way:
                        output, planned_s = self._under_way.popleft()
                        if output is scheduler_output:
                            break
                    self.steering.ended(planned_s, now_s)
                self.steering.gone(self.requests, now_s, first=getattr(self, "finished_req_ids", ()))
            except Exception as error:
                self._give_up(error)
            if self.overhead_s:
                self.overhead_s[-1] += time.perf_counter() - began
        return found

    def finish_requests(self, *args: Any, **kwargs: Any) -> Any:
        """Give requests up, as when a client has gone."""
        found = super().finish_requests(*args, **kwargs)
        if self.steering is not None:
            try:
                self.steering.gone(self.requests, self.clock(), completed=False)
            except Exception as error:
                self._give_up(error)
        return found

    def shutdown(self, *args: Any, **kwargs: Any) -> Any:
        """End."""
        self._report()
        return super().shutdown(*args, **kwargs)

    # -- a step ----------------------------------------------------------------------------------------------------

    def _decide(self) -> None:
        steering, queue = self.steering, self._queue
        assert steering is not None and queue is not None
        if queue.failed is not None:
            raise queue.failed
        if len(queue) != len(steering.line):
            # somebody who waited for something else may wait for room alone by now
            for request in queue:
                steering.enter(request)
        pool, limits = self.kv_cache_manager.block_pool, steering.limits
        limits.budget, limits.chunk = self.max_num_scheduled_tokens, self._chunk()
        self._cache.begin()
        used = limits.capacity - limits.block * pool.get_num_free_blocks()
        waiting = self.get_request_counts()[1]
        decision = steering.decide(self.running, used, waiting, self.clock())
        self._carry_out(decision)

    def _carry_out(self, decision: Decision) -> None:
        steering, queue = self.steering, self._queue
        assert steering is not None and queue is not None
        if decision.victims:
            away = {id(request) for request in decision.victims}
            self.running[:] = [
                *(request for request in self.running if id(request) not in away),
                *reversed(decision.victims),
            ]
        queue.bring_forward(decision.admit, len(queue) == len(steering.line), decision.places)
        queue.chosen = {id(request) for request in decision.admit}
        # Shut, unless the next in line was looked at and does not fit, or nobody runs and nobody was chosen: there vLLM's own check
        # says the same, or better.
        queue.open = not decision.held_back
        if queue.open and len(queue) > len(decision.admit):
            following = queue[len(decision.admit)]
            row = steering.row(following)
            queue.open = row in decision.shown
        if not self.running and not decision.admit:
            queue.open = True

    def _planned(self, output: Any, before: Sequence[Any]) -> None:
        steering, queue = self.steering, self._queue
        assert steering is not None and queue is not None
        queue.open = True
        if queue.failed is not None:
            raise queue.failed
        tokens = output.total_num_scheduled_tokens
        if tokens == 0:
            return
        now_s = self.clock()
        run = output.num_scheduled_tokens
        newcomers = []
        if steering.limits.prefix:
            known = {id(request) for request in before}
            newcomers = [
                (request, request.num_computed_tokens - run.get(request.request_id, 0))
                for request in self.running
                if id(request) not in known
            ]
        steering.planned(tokens, newcomers, now_s)
        self._under_way.append((output, now_s))

    def _give_up(self, error: Exception) -> None:
        """Let vLLM schedule by itself from now on, in its own order; nobody is lost."""
        steering, queue = self.steering, self._queue
        self.steering = None
        logger.error(
            "llmgym: vLLM schedules by itself from now on: %s: %s",
            type(error).__name__,
            error,
            exc_info=error,
        )
        if queue is None:
            return
        queue.steering, queue.open = None, True
        tickets = (
            {} if steering is None else {id(r): steering.tickets[row] for row, r in steering.requests.items()}
        )
        last = len(tickets)
        # who was preempted stands in front, then who came first
        order = sorted(queue, key=lambda r: (r.status.name != "PREEMPTED", tickets.get(id(r), last)))
        queue.clear()
        queue.extend(order)

    def _spent(self, seconds: float) -> None:
        self.overhead_s.append(seconds)
        self._steps += 1
        if self._report_every and self._steps % self._report_every == 0:
            self._report()

    def _report(self) -> None:
        if not self.overhead_s:
            return
        times = sorted(self.overhead_s)
        logger.info(
            "llmgym: overhead of a step p50 %.0f us, p99 %.0f us over %d steps",
            1e6 * times[len(times) // 2],
            1e6 * times[min(len(times) * 99 // 100, len(times) - 1)],
            len(times),
        )
