"""Conversations of several turns: how many turns, how long each, and how long the user thinks in between.

- `chat` stands for the ShareGPT and WildChat conversations of Li et al. (arXiv 2603.13358, section 5): 4.3 turns and 300 tokens
  an answer on average.
- `mooncake` are quantiles of one hour of Kimi's traffic (Qin et al., "Mooncake: Trading More Storage for Less Computation", FAST
  2025, conversation trace, Apache-2.0, https://github.com/kvcache-ai/Mooncake; quantiles only). A request is a later turn where
  its blocks begin with all full blocks of an earlier, shorter request; new tokens are what its prompt has beyond that request's
  prompt and answer. Conversations that began before the hour or went on after it are cut.
- `documents` are chosen here: a passage of 800 tokens in every turn, short answers.
- `small_tiny` to `large_huge_paste` are the two turns of the 18 workloads that fill the paper's table.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmgym import workloads
from llmgym.core.checks import loaded, number, whole
from llmgym.envs.ppd.cells import CONTEXTS, FIRST_TURN, SECOND_TURN
from llmgym.errors import InvalidArgument, UnknownName
from llmgym.workloads import Lengths, RequestClass, Workload, fixed, lognormal, quantiles


@dataclass(frozen=True)
class Conversations:
    """The conversations that come: lengths, turns and pauses.

    Attributes:
        name: short name.
        opening: lengths of first turns, and arrivals of conversations (their rate is set by the environment).
        following: lengths of later turns; its arrivals are not used.
        turns: weights of conversations with 1, 2, ... turns.
        think_s: median pause before a later turn, seconds; 0: it comes with the last token of the answer.
        think_sigma: standard deviation of the logarithm of the pause.
        source: where the numbers come from.
    """

    name: str
    opening: Workload
    following: Workload
    turns: tuple[float, ...]
    think_s: float = 0.0
    think_sigma: float = 0.0
    source: str = ""

    def __post_init__(self) -> None:
        for argument in ("opening", "following"):
            if not isinstance(getattr(self, argument), Workload):
                raise InvalidArgument(f"{argument}={getattr(self, argument)!r}: expected a Workload")
        weights = [number("turns", w, zero=True) for w in self.turns]
        if not weights or sum(weights) <= 0.0 or len(weights) > 64:
            raise InvalidArgument(f"turns={self.turns!r}: expected 1 to 64 weights, not all zero")
        number("think_s", self.think_s, zero=True)
        number("think_sigma", self.think_sigma, zero=True)

    @property
    def turns_cdf(self) -> NDArray[np.float64]:
        """Probability of at most 1, 2, ... turns, float64 [len(turns)]."""
        cdf = np.cumsum(self.turns) / np.sum(self.turns)
        cdf[-1] = 1.0
        return cdf

    @property
    def mean_turns(self) -> float:
        """Mean number of turns of a conversation, before any is cut for its length."""
        weights = np.asarray(self.turns)
        return float(weights @ np.arange(1, len(weights) + 1) / weights.sum())


def _law(name: str, prompt: Lengths, output: Lengths, correlation: float = 0.0) -> Workload:
    return Workload(name, workloads.poisson(1.0), (RequestClass(prompt, output, correlation),))


def geometric_turns(least: int, mean: float, most: int) -> tuple[float, ...]:
    """Weights of conversations with a least number of turns and a geometric number more.

    Args:
        least: fewest turns.
        mean: turns on average, if `most` cut nothing off.
        most: turns of the longest conversation, whose weight is not raised by what is cut off.

    Returns:
        Weights of 1, 2, ... `most` turns.

    Raises:
        InvalidArgument: `least` or `most` is no whole number, or `mean` is below `least`.
    """
    whole("least", least)
    whole("most", most, least)
    if not mean >= least:
        raise InvalidArgument(f"mean={mean!r}: expected a number >= least={least}")
    q = (mean - least) / (1.0 + mean - least)
    return (0.0,) * (least - 1) + tuple((1.0 - q) * q**k for k in range(most - least + 1))


def fixed_turns(lengths: Sequence[tuple[int, int]], name: str = "fixed", source: str = "") -> Conversations:
    """Every conversation has turns of the same lengths: (new tokens, answer) of the first, and of all that follow.

    Args:
        lengths: two or more pairs; those from the second on must be equal.
        name: short name.
        source: where the numbers come from.

    Returns:
        The conversations, one a second; all have as many turns as there are pairs.

    Raises:
        InvalidArgument: a single pair, or later ones that differ.
    """
    if len(lengths) < 2 or len(set(lengths[1:])) != 1:
        raise InvalidArgument(f"lengths={lengths!r}: expected two pairs or more, equal from the second on")
    first, later = ((fixed(prompt), fixed(output)) for prompt, output in (lengths[0], lengths[1]))
    weights = (0.0,) * (len(lengths) - 1) + (1.0,)
    return Conversations(name, _law(name, *first), _law(f"{name}, later", *later), weights, source=source)


_CHAT = _law("chat", lognormal(math.log(28), 1.35, 2048), lognormal(math.log(225), 0.8, 2048))
_PROBABILITIES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
_MOONCAKE_FIRST = (
    (891, 898, 907, 1169, 2134, 4353, 5925, 8511, 12080, 16913, 26334, 38150, 87170, 126195),
    (1, 9, 22, 99, 211, 289, 347, 395, 440, 494, 578, 668, 992, 2000),
)
_MOONCAKE_LATER = (
    (1, 6, 8, 11, 15, 23, 37, 91, 314, 1555, 4865, 7791, 17787, 91467),
    (1, 13, 29, 101, 217, 296, 358, 410, 462, 525, 633, 776, 1542, 2000),
)
_MOONCAKE_TURNS = (6161, 1224, 388, 165, 89, 45, 24, 16, 6, 13, 4, 3, 2, 2, 4, 4, 2, 1)
_MOONCAKE_PAUSE_S, _MOONCAKE_PAUSE_SIGMA = 126.0, 0.97


def _mooncake() -> Conversations:
    laws = [
        _law(name, quantiles(_PROBABILITIES, prompt, name), quantiles(_PROBABILITIES, answer, name))
        for name, (prompt, answer) in (
            ("mooncake first turns", _MOONCAKE_FIRST),
            ("mooncake later turns", _MOONCAKE_LATER),
        )
    ]
    return Conversations(
        "mooncake",
        laws[0],
        laws[1],
        tuple(map(float, _MOONCAKE_TURNS)),
        _MOONCAKE_PAUSE_S,
        _MOONCAKE_PAUSE_SIGMA,
        "Mooncake conversation trace, FAST 2025 release, Apache-2.0: quantiles",
    )


CELLS = tuple(f"{context}_{turn_type}" for context in CONTEXTS for turn_type in SECOND_TURN)
"""The 18 workloads that fill the table, `small_tiny` to `large_huge_paste`."""
_PAPER = "Li et al., arXiv 2603.13358, section 5"


def names() -> list[str]:
    """Names of the conversations that `load` knows."""
    return ["chat", "documents", "mooncake", *CELLS]


def load(name: str) -> Conversations:
    """Conversations by name.

    Raises:
        UnknownName: there are none of this name.
    """
    if name == "chat":
        return Conversations("chat", _CHAT, _CHAT, geometric_turns(2, 4.3, 20), source=f"{_PAPER}, fitted")
    if name == "documents":
        laws = _law("documents", lognormal(math.log(800), 0.8, 4096), lognormal(math.log(120), 0.7, 1024))
        return Conversations(name, laws, laws, geometric_turns(2, 5.0, 12), 1.5, 0.7, "chosen here")
    if name == "mooncake":
        return _mooncake()
    if name in CELLS:
        context, _, turn_type = name.partition("_")
        return fixed_turns((FIRST_TURN[context], SECOND_TURN[turn_type]), name, _PAPER)
    raise UnknownName("workload", name, names())


def given_as(argument: str, value: Any) -> Conversations:
    """The conversations that were given for an argument, by name or as they are. Raises `UnknownName` or `InvalidArgument`."""
    return loaded(argument, value, load, "the name of conversations, or Conversations", Conversations)


def without_turns_beyond(conversations: Conversations, most: int) -> Conversations:
    """Conversations cut to at most `most` turns: those that would have more end there."""
    weights = conversations.turns
    if len(weights) <= most:
        return conversations
    return replace(conversations, turns=(*weights[: most - 1], sum(weights[most - 1 :])))
