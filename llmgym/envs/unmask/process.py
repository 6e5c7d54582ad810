"""The text of Unmask: phrases of tokens that follow one another, a hidden semi-Markov chain with noise.

A text has a topic. It is made of phrases, short lists of tokens which are the same in all topics; which phrase follows which is a
Markov chain of the topic. A token is that of its phrase, or with a small probability any token. So some tokens follow from their
neighbours and others do not, a phrase takes several rounds of context to settle, and still every probability is exact: the hidden
state is (topic, phrase, place in the phrase), and sums over it are short. The fast mixing that Luxembourg, Permuter and Nachmani,
"Plan for Speed: Dilated Scheduling for Masked Diffusion Language Models", ICML 2026 (arXiv 2506.19037), Lemma 3.6, suppose holds.
"""

import functools
import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmgym.core.checks import number, whole
from llmgym.errors import InvalidArgument

LONGEST, SHORTEST = 6, 2
"""Tokens of a phrase, at most and at least."""
MOST_TOPICS, MOST_PHRASES, MOST_TOKENS = 2, 16, 64
"""Bounds of a process: its tables and the messages between positions have to fit into a lane."""
PHRASE_SHAPE = 0.45
"""Shape of the Dirichlet law of how common the phrases are in a topic."""
LEAST_SHAPE = 0.001
"""Added to every shape of a row of transitions, so that none is 0."""
START_ROUNDS = 3000
"""Rounds of the power iteration that begins a text."""


class Process(NamedTuple):
    """One language.

    Attributes:
        lengths: tokens of each phrase, int64 [phrases], at most `LONGEST`.
        words: the tokens of each phrase, int64 [phrases, LONGEST]; behind its length 0.
        onward: probability of the next phrase, float64 [topics, phrases, phrases]; rows add up to 1.
        start: law of topic, phrase and place at the beginning of a text, float64 [topics, phrases, LONGEST].
        noise: probability with which a token is any token, each as likely.
        vocabulary: number of tokens.
    """

    lengths: NDArray[np.int64]
    words: NDArray[np.int64]
    onward: NDArray[np.float64]
    start: NDArray[np.float64]
    noise: float
    vocabulary: int

    @property
    def match(self) -> float:
        """Probability of the token that the phrase has there."""
        return 1.0 - self.noise + self.noise / self.vocabulary

    @property
    def miss(self) -> float:
        """Probability of any other token, over `match`."""
        return self.noise / self.vocabulary / self.match


def start_law(lengths: NDArray[np.int64], onward: NDArray[np.float64]) -> NDArray[np.float64]:
    """The law of the hidden state at the beginning of a text: any topic, and the stationary law of its chain.

    Args:
        lengths: tokens of each phrase, int64 [phrases].
        onward: probability of the next phrase, float64 [topics, phrases, phrases].

    Returns:
        Probabilities, float64 [topics, phrases, LONGEST].
    """
    topics, phrases = onward.shape[:2]
    states = [(p, k) for p in range(phrases) for k in range(int(lengths[p]))]
    index = {state: i for i, state in enumerate(states)}
    law = np.zeros((topics, phrases, LONGEST))
    for z in range(topics):
        step = np.zeros((len(states), len(states)))
        for (p, k), i in index.items():
            if k + 1 < lengths[p]:
                step[i, index[p, k + 1]] = 1.0
            else:
                for q in range(phrases):
                    step[i, index[q, 0]] += onward[z, p, q]
        lazy = np.linalg.matrix_power(0.5 * (np.eye(len(states)) + step), START_ROUNDS)
        weights = np.full(len(states), 1.0 / len(states)) @ lazy
        for (p, k), i in index.items():
            law[z, p, k] = weights[i] / weights.sum() / topics
    return law


@functools.lru_cache(maxsize=256)
def phrases_of(
    seed: int,
    topics: int = 2,
    phrases: int = 16,
    vocabulary: int = 32,
    noise: float = 0.02,
    alpha: float = 0.15,
) -> Process:
    """A random language.

    Args:
        seed: which one.
        topics: number of topics.
        phrases: number of phrases, each of 2 to 6 random tokens.
        vocabulary: number of tokens.
        noise: probability with which a token is any token.
        alpha: how evenly a phrase is followed by others: near 0 nearly always by the same one.

    Returns:
        The process; its arrays cannot be written to.

    Raises:
        InvalidArgument: a number is out of range.
    """
    whole("topics", topics, 1, MOST_TOPICS)
    whole("phrases", phrases, 2, MOST_PHRASES)
    whole("vocabulary", vocabulary, 2, MOST_TOKENS)
    number("noise", noise, zero=True), number("alpha", alpha)
    rng = np.random.default_rng(seed)
    lengths = rng.integers(SHORTEST, LONGEST + 1, phrases)
    words = rng.integers(0, vocabulary, (phrases, LONGEST))
    words[np.arange(LONGEST) >= lengths[:, None]] = 0
    onward = np.empty((topics, phrases, phrases))
    for z in range(topics):
        common = rng.dirichlet(np.full(phrases, PHRASE_SHAPE))
        onward[z] = rng.dirichlet(alpha * phrases * common + LEAST_SHAPE, size=phrases)
    return _frozen(Process(lengths, words, onward, start_law(lengths, onward), noise, vocabulary))


def chain_of(onward: NDArray[np.float64]) -> Process:
    """A Markov chain of tokens without noise: every token is a phrase of its own.

    Args:
        onward: probability of the next token, float64 [tokens, tokens].

    Raises:
        InvalidArgument: it is no square matrix whose rows are probabilities, or a probability is 0.
    """
    matrix = np.asarray(onward, np.float64)
    tokens = len(matrix)
    if matrix.shape != (tokens, tokens) or (matrix <= 0).any() or not np.allclose(matrix.sum(axis=1), 1.0):
        raise InvalidArgument(f"onward={onward!r}: expected a square matrix of probabilities above 0")
    lengths = np.ones(tokens, np.int64)
    words = np.zeros((tokens, LONGEST), np.int64)
    words[:, 0] = np.arange(tokens)
    return _frozen(Process(lengths, words, matrix[None], start_law(lengths, matrix[None]), 0.0, tokens))


def _frozen(process: Process) -> Process:
    for part in process[:4]:
        part.setflags(write=False)
    return process


def log_probability(process: Process, text: NDArray[np.int64]) -> float:
    """Log-probability of a text from its beginning, nats: a plain forward recursion, for checks.

    Args:
        process: the language.
        text: tokens, int64 [positions].
    """
    topics, phrases = process.onward.shape[:2]
    law, total = process.start.copy(), 0.0
    for token in text.tolist():
        for p in range(phrases):
            for k in range(int(process.lengths[p])):
                right = token == process.words[p, k]
                law[:, p, k] *= process.noise / process.vocabulary + (1.0 - process.noise) * right
        total += math.log(law.sum())
        law /= law.sum()
        later = np.zeros_like(law)
        for p in range(phrases):
            last = int(process.lengths[p]) - 1
            later[:, p, 1 : last + 1] += law[:, p, :last]
            for z in range(topics):
                later[z, :, 0] += law[z, p, last] * process.onward[z, p]
        law = later
    return total
