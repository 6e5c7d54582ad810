"""Rules that serve first in, first out or by deadlines, and differ in the mode that they choose; all read only the observation."""

from abc import abstractmethod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmgym.baselines.rule import Rule
from llmgym.core.checks import whole
from llmgym.envs.segmented.env import SegmentedPrefill
from llmgym.envs.segmented.modes import TRAINED
from llmgym.envs.segmented.state import (
    ADMIT,
    DECODE_PRESSURE,
    DECODING,
    EVICT,
    FEATURES,
    MOST_OCTAVES,
    REJECT,
    ROW,
    RUN,
    WAIT,
)
from llmgym.errors import InvalidArgument

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
NO = -np.inf
CROSSOVER = 20_000
"""Tokens from which segments of 4096 are faster than full attention on the paper's card, to 0.2 %."""
# what goes first, where several things could be done; each leaves room for a preference below 1
FIRST, DUE, GO_ON, MORE, LAST, IDLE, NEVER = 60.0, 50.0, 40.0, 30.0, 20.0, 10.0, 0.0


def unsquash(y: Floats) -> Floats:
    """X of x / (1 + |x|)."""
    return y / np.maximum(1.0 - np.abs(y), 1e-9)


class Shape(NamedTuple):
    """Which actions are of which kind, int64 [actions] each.

    Attributes:
        kind: the kind.
        which: the waiting request or the slot; 0 where there is none.
        mode: the mode of an admission; -1 elsewhere.
    """

    kind: NDArray[np.int64]
    which: NDArray[np.int64]
    mode: NDArray[np.int64]

    @classmethod
    def of(cls, simulation: SegmentedPrefill) -> "Shape":
        """The actions of an environment."""
        config = simulation.params.config[0]
        window, modes, slots = int(config["window"]), int(config["modes"]), int(config["seats"])
        both = simulation.decide == "all"
        rows = [(ADMIT, k, m) for k in range(window) for m in range(modes)]
        rows += [(kind, j, -1) for kind in (RUN, EVICT) for j in range(slots) if both]
        rows += [(REJECT, k, -1) for k in range(window)]
        rows += [(DECODING, 0, -1)] * both + [(WAIT, 0, -1)]
        return cls(*np.array(rows).T)


class ServerRule(Rule[SegmentedPrefill]):
    """A rule that ranks all actions; the first of those that are allowed is taken.

    Args:
        env: the environment.
        name: of the policy.
    """

    def __init__(self, env: Any, name: str) -> None:
        super().__init__(env, name, SegmentedPrefill)
        self.shape = Shape.of(self._simulation)
        self.unit_s = self._simulation.unit_s

    def entry(self, rows: Floats, name: str) -> Floats:
        """One entry of all candidates, float64 [lanes, actions]; squashed ones as they are."""
        return rows[..., ROW.index(name)]

    def mode(self, name: str) -> int:
        """The place of a mode among those to choose from. Raises `InvalidArgument` where it is not among them."""
        modes = self._simulation.scenario.modes
        if name not in modes:
            raise InvalidArgument(f"baseline {self.name!r} needs {name!r} among modes={modes!r}")
        return modes.index(name)

    @abstractmethod
    def rank(self, obs: NDArray[np.float32], rows: Floats) -> Floats:
        """How early each action is to be taken, float64 [lanes, actions]; -inf where it is not to be taken at all.

        Args:
            obs: observations, float32 [lanes, layout.size].
            rows: the candidates' rows, float64 [lanes, actions, FEATURES].
        """

    def act(self, obs: NDArray[np.float32], mask: NDArray[np.int8] | None) -> NDArray[Any]:
        """The actions of all lanes, int64 [lanes]."""
        rows = self._rows(obs, "candidates").reshape(len(obs), -1, FEATURES)
        there = rows[..., :6].any(axis=2) if mask is None else mask == 1
        rank = np.where(there, np.maximum(self.rank(obs, rows), -1e9), NO)
        return rank.argmax(axis=1)

    def pressed(self, obs: NDArray[np.float32], share: float) -> Bools:
        """Whether a decoding request is beyond this share of its limit on later tokens, and a prompt was run since: [lanes]."""
        late: Bools = unsquash(self._read(obs, "decode.pressure")) > share
        return late & (self._read(obs, "decode.since") > 0.0)

    def serving(self, obs: NDArray[np.float32], rows: Floats, order: Floats | None = None) -> Floats:
        """Rank all that is no admission: decode when later tokens are pressed for time, else run a prompt that fits.

        Args:
            obs: observations.
            rows: the candidates' rows.
            order: preference of the prompts that are admitted, in [0, 1), [lanes, actions]; None: the oldest admission.

        Returns:
            Ranks, [lanes, actions]; a prompt that does not fit waits while something decodes, rejections come last.
        """
        kind, which = self.shape.kind, self.shape.which
        if order is None:
            order = np.broadcast_to(0.9 - which / 100.0, rows.shape[:2])
        fits = self.entry(rows, "room") >= 0.0
        due = self.pressed(obs, DECODE_PRESSURE)[:, None]
        rank = np.full(rows.shape[:2], NEVER)
        rank = np.where(kind == DECODING, np.where(due, DUE, MORE), rank)
        rank = np.where(kind == RUN, np.where(fits, GO_ON, LAST) + order, rank)
        rank = np.where(kind == WAIT, IDLE, rank)
        # a prompt that does not fit is not run while there is something to wait for
        return np.where(
            (kind == RUN) & ~fits & (self._read(obs, "arrived")[:, None] < 1.0), NEVER + order, rank
        )


class PaperFixedPolicy(ServerRule):
    """`paper-fixed`: segments of 4096 with 512 carried and 512 retrieved tokens, first in, first out."""

    def __init__(self, env: Any, name: str = "paper-fixed") -> None:
        super().__init__(env, name)
        self.chosen = self.mode(TRAINED)

    def rank(self, obs: NDArray[np.float32], rows: Floats) -> Floats:
        """Admit the oldest at once."""
        admit = (self.shape.mode == self.chosen) & (self.shape.which == 0)
        rank = self.serving(obs, rows)
        return np.where(self.shape.kind == ADMIT, np.where(admit, FIRST, NO), rank)


class FullPolicy(ServerRule):
    """`full`: full attention, first in, first out; waits until a request fits, rejects one that never does."""

    def __init__(self, env: Any, name: str = "full") -> None:
        super().__init__(env, name)
        self.chosen = self.mode("full")

    def rank(self, obs: NDArray[np.float32], rows: Floats) -> Floats:
        """Admit the oldest once its peak fits beside what the others keep."""
        kind, oldest = self.shape.kind, self.shape.which == 0
        fits, ever = self.entry(rows, "spare") >= 0.0, self.entry(rows, "peak") < 1.0
        mine = (kind == ADMIT) & (self.shape.mode == self.chosen) & oldest
        hopeless = (mine & ~ever & (rows[..., ADMIT] > 0.0)).any(axis=1)[:, None]
        rank = self.serving(obs, rows)
        rank = np.where(kind == ADMIT, np.where(mine & fits, FIRST, NO), rank)
        return np.where((kind == REJECT) & oldest & hopeless, FIRST, rank)


class ChunkedPolicy(ServerRule):
    """`chunked-fcfs`: exact attention in chunks of the oldest prompt, and a token of each that decodes for every chunk.

    Where memory is short, the newest prompt loses its place and starts again later.

    Args:
        env: the environment.
        name: of the policy.
        chunk: tokens of a step, one of the chunked modes.
    """

    def __init__(self, env: Any, name: str = "chunked-fcfs", chunk: int = 2048) -> None:
        super().__init__(env, name)
        self.chosen = self.mode(f"chunked-{whole('chunk', chunk)}")

    def rank(self, obs: NDArray[np.float32], rows: Floats) -> Floats:
        """Admit the oldest while its first chunk fits and no prompt is short of memory."""
        kind, which = self.shape.kind, self.shape.which
        room, there = self.entry(rows, "room"), rows[..., :6].any(axis=2)
        short = ((kind == RUN) & there & (room < 0.0)).any(axis=1)[:, None]
        mine = (kind == ADMIT) & (self.shape.mode == self.chosen) & (which == 0)
        hopeless = (mine & there & (self.entry(rows, "peak") >= 1.0)).any(axis=1)[:, None]
        rank = self.serving(obs, rows)
        # one token for each chunk
        step = np.where(kind == RUN, self.entry(rows, "step"), 0.0).max(axis=1)
        tokens = self._simulation.scenario.decode_tokens
        due = unsquash(self._read(obs, "decode.since")) >= tokens * unsquash(step) - 1e-9
        rank = np.where((kind == DECODING) & due[:, None], DUE, rank)
        rank = np.where(kind == ADMIT, np.where(mine & (room >= 0.0) & ~short & ~hopeless, FIRST, NO), rank)
        rank = np.where((kind == REJECT) & (which == 0) & hopeless, FIRST, rank)
        # the newest that is not the oldest
        newest = np.where((kind == EVICT) & there & (which > 0), which, -1)
        evict = (newest == newest.max(axis=1, keepdims=True)) & (newest > 0)
        return np.where(kind == EVICT, np.where(evict & short, LAST + 5.0, NO), rank)


class ThresholdPolicy(ServerRule):
    """`threshold`: full attention up to some length where it fits, the paper's segments beyond; first in, first out.

    Args:
        env: the environment.
        name: of the policy.
        tokens: the longest prompt that is executed whole.
    """

    def __init__(self, env: Any, name: str = "threshold", tokens: int = CROSSOVER) -> None:
        super().__init__(env, name)
        self.tokens = whole("tokens", tokens, 0)
        self.short, self.long = self.mode("full"), self.mode(TRAINED)

    def rank(self, obs: NDArray[np.float32], rows: Floats) -> Floats:
        """Admit the oldest at once."""
        mode, oldest = self.shape.mode, self.shape.which == 0
        prompt = np.exp2(MOST_OCTAVES * self.entry(rows, "prompt"))
        full = (mode == self.short) & (prompt <= self.tokens + 0.5) & (self.entry(rows, "spare") >= 0.0)
        admit = np.where(full & oldest, FIRST + 0.5, np.where((mode == self.long) & oldest, FIRST, NO))
        return np.where(self.shape.kind == ADMIT, admit, self.serving(obs, rows))


class GreedyPolicy(ServerRule):
    """`memory-greedy`, `edf`: the best mode that fits memory and limit; if there is none, the fastest that fits; else wait.

    A mode fits memory when its peak does beside what the others keep, and the limit when all prompts that are admitted could run
    before. `edf` runs the prompt whose limit is the nearest, `memory-greedy` the oldest.

    Args:
        env: the environment.
        name: of the policy.
        deadlines: whether the nearest limit goes first.
    """

    def __init__(self, env: Any, name: str = "memory-greedy", deadlines: bool = False) -> None:
        super().__init__(env, name)
        self.deadlines = deadlines

    def rank(self, obs: NDArray[np.float32], rows: Floats) -> Floats:
        """Admit the oldest in its mode."""
        kind, oldest = self.shape.kind, self.shape.which == 0
        left, rest = unsquash(self.entry(rows, "left")), unsquash(self.entry(rows, "rest"))
        expected = unsquash(self._read(obs, "backlog"))[:, None] + rest
        fits = self.entry(rows, "spare") >= 0.0
        # among equally good ones the faster; both parts stay below 1
        good = 0.9 * self.entry(rows, "quality") + 1e-3 * (1.0 - self.entry(rows, "rest"))
        fast = 0.9 * (1.0 - expected / (1.0 + expected))
        admit = np.where(expected <= left, FIRST + good, FIRST - 2.0 + fast)
        admit = np.where(fits & oldest, admit, NO)
        order = 0.45 * (1.0 - self.entry(rows, "left")) if self.deadlines else None
        return np.where(kind == ADMIT, admit, self.serving(obs, rows, order))


class RandomPolicy(ServerRule):
    """`random`: any action that is allowed.

    Args:
        env: the environment.
        name: of the policy.
        seed: of the choices.
    """

    draws = True

    def __init__(self, env: Any, name: str = "random", seed: int = 0) -> None:
        super().__init__(env, name)
        self._generator = np.random.default_rng(seed)

    def rank(self, obs: NDArray[np.float32], rows: Floats) -> Floats:
        """Uniform random numbers."""
        return self._generator.random(rows.shape[:2])
