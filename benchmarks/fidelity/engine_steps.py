"""Every step of vLLM as its own engine process sees it; imported by that process, and needs vllm.

`benchmarks/engine_vllm.py` names `Scheduler` and `Steps` to the engine (`scheduler_cls`, `worker_extension_cls`). Both live in the
process that plans and launches, one for one GPU. The first is vLLM's own scheduler for asynchronous scheduling and notes what it
planned and when; the second hands the notes out. What the host needs to launch a step and when the device began and ended it is
noted around the worker's calls; times of the device are read when the notes are taken, so nothing waits for them.
"""

import time
from typing import Any

import torch
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.worker.gpu_worker import Worker


class Note:
    """One step."""

    def __init__(self, began_s: float, scheduler: Any, plan: Any) -> None:
        self.plan = plan
        self.times = [began_s, time.monotonic(), *[float("nan")] * 4]
        self.begin = self.end = None
        prefill = chunks = chunk_cached = decode_cached = 0
        for name, tokens in plan.num_scheduled_tokens.items():
            request = scheduler.requests[name]
            # The scheduler has counted the step's tokens as computed already.
            before = max(request.num_computed_tokens - tokens, 0)
            if tokens > 1 or before < request.num_prompt_tokens:
                prefill, chunks, chunk_cached = prefill + tokens, chunks + 1, chunk_cached + before
            else:
                decode_cached += before
        pool = scheduler.kv_cache_manager.block_pool
        self.counts = [
            plan.total_num_scheduled_tokens,
            len(plan.num_scheduled_tokens),
            prefill,
            chunks,
            chunk_cached,
            decode_cached,
            pool.num_gpu_blocks - 1 - pool.get_num_free_blocks(),  # vLLM keeps one for itself
            len(scheduler.waiting),
            len(getattr(plan, "preempted_req_ids", None) or ()),
        ]


NOTES: list[Note] = []


def _find(plan: Any) -> Note | None:
    return next((note for note in reversed(NOTES[-8:]) if note.plan is plan), None)


def _event() -> Any:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


class Scheduler(AsyncScheduler):
    """vLLM's scheduler, with notes."""

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """Plan a step."""
        began_s = time.monotonic()
        plan = super().schedule(*args, **kwargs)
        if plan.total_num_scheduled_tokens > 0:
            NOTES.append(Note(began_s, self, plan))
        return plan

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        """Take the tokens of a step."""
        note = _find(scheduler_output)
        if note is not None:
            note.times[5] = time.monotonic()
            note.plan = None
        return super().update_from_output(scheduler_output, model_runner_output)


def _watch(worker: type) -> None:
    """Note when the worker launches a step."""
    execute, sample = worker.execute_model, worker.sample_tokens  # type: ignore[attr-defined]
    timed = torch.cuda.is_available()
    now: list[Note | None] = [None]

    def execute_model(self: Any, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        now[0] = note = _find(scheduler_output)
        if note is not None:
            note.times[2] = time.monotonic()
            note.begin = _event() if timed else None
        found = execute(self, scheduler_output, *args, **kwargs)
        if note is not None:
            note.times[3] = time.monotonic()
            note.end = _event() if timed else None
        return found

    def sample_tokens(self: Any, *args: Any, **kwargs: Any) -> Any:
        found = sample(self, *args, **kwargs)
        note = now[0]
        if note is not None:
            note.times[4] = time.monotonic()
            note.end = _event() if timed else None
        return found

    worker.execute_model, worker.sample_tokens = execute_model, sample_tokens  # type: ignore[attr-defined]


_watch(Worker)


class Steps:
    """What the worker can be asked from outside."""

    def take_steps(self) -> list[list[float]]:
        """The steps since the last call, a row of `engine_vllm.ENGINE_COLUMNS` each, and forget them."""
        rows, before = [], None
        for note in NOTES:
            device = [float("nan")] * 2
            if note.begin is not None and note.end is not None:
                note.end.synchronize()
                gap_ms = float("nan") if before is None else before.elapsed_time(note.begin)
                device = [gap_ms, note.begin.elapsed_time(note.end)]
                before = note.end
            rows.append([*note.times, *map(float, note.counts), *device])
        NOTES.clear()
        return rows
