"""Memory of the reference of segmented execution: by the law, and as it is while a program runs."""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from llmgym.envs.segmented.law import FIRST_POOL, Model
from llmgym.envs.segmented.reference import torch


def predicted_bytes(
    shape: Model,
    tokens: int,
    segment: int | None = None,
    tail: int = 0,
    retrieved: int = 0,
    first: int = FIRST_POOL,
) -> int:
    """Memory at its peak by the law, beyond the weights: KV cache, activations with logits of all tokens, carried tokens and pool.

    Without what the authors' code holds beside these, `llmgym.envs.segmented.law.SEGMENT_BYTES`, which is fitted to their peaks.

    Args:
        shape: of the model.
        tokens: T, of the prompt.
        segment: S; None: the prompt is run whole.
        tail: M.
        retrieved: R; 0: there is no pool.
        first: entries of the pool's buffer at the beginning.

    Returns:
        Bytes.
    """
    each = shape.kv_bytes + shape.whole_bytes
    if segment is None or segment >= tokens:
        return each * tokens
    # the last segment is not in the pool yet when its logits are there
    entries = max(first, 1 << (tokens - segment - 1).bit_length()) if retrieved else 0
    return each * segment + shape.carried_bytes(tail) + shape.pool_bytes * entries


@contextmanager
def peak_of(device: str) -> Iterator[list[int]]:
    """Memory at its peak while a block runs, bytes, beyond what is there when it begins; in the list that it gives.

    On a GPU what torch's allocator says; elsewhere the sum of all tensors that are alive, operator by operator, without what an
    operator uses inside.
    """
    t = torch()
    found: list[int] = []
    if device.startswith("cuda"):
        t.cuda.synchronize()
        t.cuda.reset_peak_memory_stats()
        before = t.cuda.memory_allocated()
        yield found
        t.cuda.synchronize()
        found.append(t.cuda.max_memory_allocated() - before)
        return
    with _counting() as mode:
        yield found
    found.append(mode.peak)


def _counting() -> Any:
    """Counts the bytes of all tensors that operators make while they are alive."""
    dispatch = importlib.import_module("torch.utils._python_dispatch")
    reductions = importlib.import_module("torch.multiprocessing.reductions")
    leaves = importlib.import_module("torch.utils._pytree").tree_leaves

    class Counting(dispatch.TorchDispatchMode):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.alive: dict[int, tuple[Any, int]] = {}
            self.old: set[int] = set()
            self.peak = 0

        def __torch_dispatch__(self, function: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
            for one in leaves((args, kwargs or {})):
                if hasattr(one, "untyped_storage") and one.untyped_storage()._cdata not in self.alive:
                    self.old.add(one.untyped_storage()._cdata)
            result = function(*args, **(kwargs or {}))
            for one in leaves(result):
                if hasattr(one, "untyped_storage"):
                    storage = one.untyped_storage()
                    if storage._cdata not in self.old:
                        self.alive[storage._cdata] = (reductions.StorageWeakRef(storage), storage.nbytes())
            self.alive = {key: part for key, part in self.alive.items() if not part[0].expired()}
            self.peak = max(self.peak, sum(size for _, size in self.alive.values()))
            return result

    return Counting()
