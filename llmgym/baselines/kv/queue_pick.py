"""A rule for KVQueue-v1 that chooses among the candidates of an observation, as a deployed policy has to."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmgym.baselines.rule import Rule
from llmgym.core.checks import number
from llmgym.envs.kv.queue_v1.env import KVQueue
from llmgym.envs.kv.queue_v1.state import PER_WAITING
from llmgym.errors import InvalidArgument

_HERE, _PROMPT, _WAIT, _AREA, _CLASS, _CACHED, _FITS = 0, 1, 3, 4, 6, 9, 10
"""Columns of a waiting candidate."""
NUMBERS: dict[str, type] = {"aging": float, "lead_s": float, "cached_s": float, "watermark": float}


class PickArea(Rule[KVQueue]):
    """`pick-area`: the candidate with the least predicted work first, less what it has waited; the youngest is thrown out.

    What a candidate counts is its predicted area, in seconds of the whole engine, minus `aging` times its wait, plus `lead_s` for
    each class, minus `cached_s` for a prompt that is wholly in the cache. The one that counts least joins if its prompt and a
    `watermark` of the cache fit; if it does not fit, nobody does. With `lead_s=0, cached_s=0` it is `area-aging` among the
    requests that an observation shows.

    Args:
        env: the environment, with `action="pick"`.
        name: of the policy.
        aging: seconds of the engine that a second of waiting makes up for.
        lead_s: seconds by which a class comes before the next.
        cached_s: seconds that a cached prompt counts less.
        watermark: share of the cache that stays free.

    Attributes:
        numbers: the four of these, by name.

    Raises:
        InvalidArgument: another action, or a number that is negative.
    """

    def __init__(
        self,
        env: Any,
        name: str = "pick-area",
        *,
        aging: float = 0.05,
        lead_s: float = 0.0,
        cached_s: float = 0.0,
        watermark: float = 0.02,
    ) -> None:
        super().__init__(env, name, KVQueue)
        if self._simulation.action_mode != "pick":
            raise InvalidArgument(
                f"policy {name!r} needs action='pick', not {self._simulation.action_mode!r}"
            )
        numbers = {"aging": aging, "lead_s": lead_s, "cached_s": cached_s, "watermark": watermark}
        self.numbers = {key: number(key, value, zero=True) for key, value in numbers.items()}
        config = self._simulation.params.config[0]
        self._area_s = float(config["batch_ref_s"] * config["per_capacity"] / config["per_area"])
        self._window_s = float(config["window_s"])
        self._prompt = float(config["per_capacity"] / config["per_prompt"])
        self._classes = len(self._simulation.workload.classes) - 1
        self._slots = int(config["visible"])

    def act(self, obs: NDArray[np.float32], mask: NDArray[np.int8] | None) -> NDArray[Any]:
        """The actions of all lanes, int64 [lanes]."""
        told = self.numbers
        rows = self._rows(obs, "waiting.candidates").reshape(len(obs), self._slots, PER_WAITING)
        wait = np.minimum(rows[..., _WAIT], 1.0 - 1e-6)
        key = (
            self._area_s * rows[..., _AREA]
            - told["aging"] * self._window_s * wait / (1.0 - wait)
            + told["lead_s"] * self._classes * rows[..., _CLASS]
            - told["cached_s"] * rows[..., _CACHED]
        )
        key[rows[..., _HERE] == 0.0] = math.inf
        first = key.argmin(axis=1)
        lane = np.arange(len(obs))
        chosen = rows[lane, first]
        room = self._read(obs, "kv.free") - told["watermark"] >= self._prompt * chosen[:, _PROMPT]
        alone = self._read(obs, "residents") == 0.0
        action = np.where((chosen[:, _FITS] == 1.0) & (room | alone), first + 1, 0)
        action[self._read(obs, "short") == 1.0] = 1 + self._slots
        if mask is None:
            return action
        refused = mask[lane, action] == 0
        action[refused] = mask[refused].argmax(axis=1)
        return action
