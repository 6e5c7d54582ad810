"""Conversations as traffic: sessions arrive, and each sends a turn, reads the answer, thinks, and sends the next.

A workload with `Conversations` is read so: its arrivals are those of sessions, its classes say how many tokens the first prompt of
a session has and how long answers are, and a prompt is the conversation so far with the new tokens of the turn.
"""

from dataclasses import dataclass

import numpy as np

from llmgym.core.checks import number, whole
from llmgym.errors import InvalidArgument
from llmgym.workloads.lengths import Lengths, RequestClass, quantiles

_MOST_TURNS = 10_000


@dataclass(frozen=True)
class Think:
    """How long a user thinks; make one with `exponential_think` or `lognormal_think`.

    Attributes:
        law: "exponential" or "lognormal".
        mean_s: mean time, s.
        sigma: standard deviation of its logarithm; 0 for the exponential law.
    """

    law: str
    mean_s: float
    sigma: float = 0.0

    def __post_init__(self) -> None:
        if self.law not in ("exponential", "lognormal"):
            raise InvalidArgument(f"law={self.law!r}: must be 'exponential' or 'lognormal'")
        number("mean_s", self.mean_s, zero=True)
        number("sigma", self.sigma, zero=True)


def exponential_think(mean_s: float) -> Think:
    """Exponential times to think, of this mean (s)."""
    return Think("exponential", number("mean_s", mean_s, zero=True))


def lognormal_think(mean_s: float, sigma: float) -> Think:
    """Lognormal times to think, of this mean (s) and standard deviation of the logarithm."""
    return Think("lognormal", number("mean_s", mean_s, zero=True), number("sigma", sigma))


def geometric(end: float, most: int) -> Lengths:
    """Turns of a conversation that ends after each turn with one probability, and after the last in any case.

    Args:
        end: probability that a turn is the last, above 0, at most 1.
        most: turns at most.

    Returns:
        The law of the number of turns.

    Raises:
        InvalidArgument: a number out of range.
    """
    if number("end", end) > 1.0:
        raise InvalidArgument(f"end={end!r}: must be at most 1")
    most = whole("most", most, 1, _MOST_TURNS)
    ended = 1.0 - (1.0 - end) ** np.arange(1, most)
    steps = np.repeat(np.concatenate([[0.0], ended, [1.0]]), 2)[1:-1]
    turns = np.repeat(np.arange(1.0, most + 1), 2)
    return quantiles(steps.tolist(), turns.tolist(), f"geometric({end:g}, most={most})")


@dataclass(frozen=True)
class Conversations:
    """What makes the requests of a workload turns of conversations.

    Attributes:
        turns: law of the number of turns of a session.
        think: law of the time from the last token of a turn to the next one.
        longest: prompt and output of a turn together, tokens at most. A conversation ends before a turn that would be longer; a
            first turn is shortened.
        new: law of the new tokens of a turn after the first; None: that of the prompts of its class.
    """

    turns: Lengths
    think: Think
    longest: int
    new: Lengths | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.turns, Lengths) or self.turns.high > _MOST_TURNS:
            raise InvalidArgument(f"turns={self.turns!r}: must be a law of at most {_MOST_TURNS} turns")
        if not isinstance(self.think, Think):
            raise InvalidArgument(
                f"think={self.think!r}: must be made by exponential_think or lognormal_think"
            )
        if self.new is not None and not isinstance(self.new, Lengths):
            raise InvalidArgument(f"new={self.new!r}: must be a law of lengths")
        whole("longest", self.longest, 2)

    def most_new_tokens(self, request_class: RequestClass) -> int:
        """What a turn of a class adds to a conversation at most, prompt and answer (tokens)."""
        new = request_class.max_prompt_tokens
        return max(new, self.new.high if self.new is not None else new) + request_class.max_output_tokens


def most_keys(
    conversations: Conversations, classes: tuple[RequestClass, ...], requests: int, longest: int, block: int
) -> int:
    """Keys of blocks that so many requests may need where prefixes are cached, see `llmgym.serving.prefix.number_keys`.

    A conversation needs a key for each block of its longest turn, and each of its turns adds to that only what is new.

    Args:
        conversations: the law of conversations.
        classes: the classes of the workload.
        requests: turns of all conversations.
        longest: prompt and output of a request together, tokens at most.
        block: size of a cache block, tokens.

    Returns:
        Keys, for one engine.
    """
    reach = min(longest, conversations.longest)
    added = max(conversations.most_new_tokens(c) for c in classes)
    return requests * -(-min(reach, added) // block)
