"""What decides in a live engine: vLLM's own order, the rule `pick-area`, a network, or an object of one's own."""

import importlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from llmgym.deploy.bundle import PER_WAITING, Bundle, layout_of, read
from llmgym.deploy.network import network
from llmgym.errors import CheckpointError, InvalidArgument

_PROMPT, _WAIT, _AREA, _CLASS, _CACHED, _FITS = 1, 3, 4, 6, 9, 10
"""Columns of a waiting candidate."""


class Acting(Protocol):
    """What decides: an observation and a mask in, an action of KVQueue-v1 out.

    Where it has `fields`, names of fields of the observation, the others may be 0.
    """

    def act(self, obs: NDArray[np.float32], mask: NDArray[np.int8]) -> int:
        """The action for an observation, float32 [entries], and what is allowed, int8 [1 + slots + running]."""


def _place(bundle: Bundle, name: str) -> int:
    start = 0
    for field, size in layout_of(bundle.slots, bundle.running):
        if field == name:
            return start
        start += int(size)
    raise InvalidArgument(f"name={name!r}: no field of the observation")


class Identity:
    """vLLM's own order: the front of the line while it fits, and the youngest goes."""

    fields = frozenset({"short"})

    def __init__(self, bundle: Bundle, capacity: int) -> None:
        self._short, self._youngest = _place(bundle, "short"), 1 + bundle.slots

    def act(self, obs: NDArray[np.float32], mask: NDArray[np.int8]) -> int:
        """The action; see `Acting`."""
        return self._youngest if obs[self._short] else int(mask[1])


class PickArea:
    """The rule `pick-area` of `llmgym.baselines.kv.queue_pick`: least predicted work first, less what it has waited.

    Args:
        bundle: with the rule's numbers.
        capacity: of the engine's cache, tokens.
    """

    fields = frozenset({"short", "kv.free", "residents", "waiting.candidates"})

    def __init__(self, bundle: Bundle, capacity: int) -> None:
        numbers, scales = bundle.numbers or {}, bundle.scales
        aging, lead_s = float(numbers["aging"]), float(numbers["lead_s"])
        self._cached_s, self._watermark = float(numbers["cached_s"]), float(numbers["watermark"])
        self._area_s = scales.batch_ref_s * (1.0 / capacity) / scales.per_area
        self._aging_s = aging * scales.window_s
        self._prompt = 1.0 / capacity / scales.per_prompt
        self._class_s = lead_s * (len(bundle.objectives) - 1)
        self._slots = bundle.slots
        start = _place(bundle, "waiting.candidates")
        self._table = slice(start, start + bundle.slots * PER_WAITING)
        self._short, self._free = _place(bundle, "short"), _place(bundle, "kv.free")
        self._residents = _place(bundle, "residents")

    def act(self, obs: NDArray[np.float32], mask: NDArray[np.int8]) -> int:
        """The action; see `Acting`."""
        if obs[self._short] == 1.0:
            return 1 + self._slots
        # so few numbers that Python is faster with them than numpy
        table: list[float] = obs[self._table].tolist()
        least, chosen = math.inf, 0
        for at in range(0, len(table), PER_WAITING):
            if table[at] == 0.0:
                continue
            wait = min(table[at + _WAIT], 1.0 - 1e-6)
            key = (
                self._area_s * table[at + _AREA]
                - self._aging_s * wait / (1.0 - wait)
                + self._class_s * table[at + _CLASS]
                - self._cached_s * table[at + _CACHED]
            )
            if key < least:
                least, chosen = key, at
        room = float(obs[self._free]) - self._watermark >= self._prompt * table[chosen + _PROMPT]
        if table[chosen + _FITS] == 1.0 and (room or obs[self._residents] == 0.0):
            return chosen // PER_WAITING + 1
        return 0 if mask[0] else int(mask.argmax())


class Network:
    """The most likely action of a trained network."""

    def __init__(self, bundle: Bundle, capacity: int) -> None:
        self._forward = network(bundle)
        self._victims = 1 + bundle.slots

    def act(self, obs: NDArray[np.float32], mask: NDArray[np.int8]) -> int:
        """The action; see `Acting`."""
        first = self._victims
        victims = np.count_nonzero(mask[first:]) > 0
        logits = self._forward(obs, (np.count_nonzero(mask[1:first]) > 0, victims))
        return int(np.where(mask, logits, -np.inf).argmax())


KINDS: dict[str, Callable[[Bundle, int], Acting]] = {
    "identity": Identity,
    "pick-area": PickArea,
    "network": Network,
}


def load(policy: str, scales: str | None, capacity: int) -> tuple[Bundle, Acting]:
    """What a setting names.

    Args:
        policy: `identity`, the path of an exported policy (`.npz`), or `module:name` of something that is called with a bundle and
            the capacity of the cache, and returns an object with `act(obs, mask)`.
        scales: path of an exported policy whose layout and scales go with `module:name`; None: those of `identity`.
        capacity: of the engine's cache, tokens.

    Returns:
        Layout and scales, and what decides.

    Raises:
        CheckpointError: the file cannot be read or was made for another observation.
        InvalidArgument: there is no such module or name, or `policy` is none of the three.
    """
    if policy == "identity":
        bundle = Bundle() if scales is None else read(Path(scales))
        return bundle, Identity(bundle, capacity)
    if policy.endswith(".npz"):
        bundle = read(Path(policy))
        if bundle.kind not in KINDS:
            raise CheckpointError(f"{policy}: kind={bundle.kind!r}: expected one of {', '.join(KINDS)}")
        try:
            return bundle, KINDS[bundle.kind](bundle, capacity)
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"{policy} lacks a part: {error}") from error
    module, colon, name = policy.partition(":")
    if not colon:
        raise InvalidArgument(
            f"policy={policy!r}: expected 'identity', a path that ends in .npz, or module:name"
        )
    try:
        made: Any = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise InvalidArgument(f"policy={policy!r} cannot be imported: {error}") from error
    bundle = Bundle() if scales is None else read(Path(scales))
    acting = made(bundle, capacity)
    if not callable(getattr(acting, "act", None)):
        raise InvalidArgument(f"policy={policy!r}: it made a {type(acting).__name__}, which has no act()")
    return bundle, acting
