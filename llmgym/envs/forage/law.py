"""The closed forms of foraging in a long text: dilution, answers, the posterior of a candidate, and the published results.

Zhang, Wang, Hu, Yang, Gao, Shen and Wan, "SCOUT: Active Information Foraging for Long-Text Understanding with Decoupled Epistemic
States", ICML 2026 (arXiv 2605.04496). The paper publishes accuracies and costs; the dilution law is a least squares fit to its
figure of accuracy by context length.
"""

import math
from typing import NamedTuple

from llmgym.core.jit import kernel

GUESS = 0.25
"""Chance to answer a question of four options without knowing anything."""


class Dilution(NamedTuple):
    """What a model that reads everything in one prompt loses with the length of it.

    Attributes:
        best: accuracy on a short prompt.
        tokens: length at which half of what is above a guess is lost, tokens.
        power: steepness.
    """

    best: float
    tokens: float
    power: float


DILUTION = {
    "gemini-3-pro": Dilution(0.951, 351_000.0, 1.06),
    "gpt-5.1": Dilution(0.726, 434_000.0, 1.61),
    "claude-sonnet-4.5": Dilution(0.866, 91_000.0, 1.73),
}
"""Fits to the figure of accuracy by context length; that of Claude-Sonnet-4.5 includes what its window cuts off."""


class Published(NamedTuple):
    """A row of the paper's main table for one benchmark: accuracy in percent, cost in thousands of tokens, accuracy over cost."""

    accuracy: float
    cost_k: float
    efficiency: float


LOOGLE = {
    "GPT-4.1": Published(56.8, 236.0, 0.24),
    "Gemini-2.5-Pro": Published(56.2, 258.1, 0.22),
    "Claude-Sonnet-4.5": Published(42.5, 100.9, 0.42),
    "GPT-5.1-chat": Published(58.6, 135.9, 0.43),
    "Gemini-3-Pro": Published(68.5, 273.9, 0.25),
    "ReadAgent": Published(27.7, 302.6, 0.09),
    "GraphReader": Published(31.6, 408.1, 0.08),
    "MemAgent": Published(46.0, 302.2, 0.15),
    "Claude Code": Published(63.4, 25.3, 2.51),
    "SCOUT": Published(78.7, 29.7, 2.63),
}
"""LooGLE-v2."""
INFINITE = {
    "GPT-4.1": Published(73.0, 212.7, 0.34),
    "Gemini-2.5-Pro": Published(81.9, 245.4, 0.33),
    "Claude-Sonnet-4.5": Published(65.1, 96.6, 0.67),
    "GPT-5.1-chat": Published(82.6, 118.2, 0.70),
    "Gemini-3-Pro": Published(83.9, 259.1, 0.32),
    "ReadAgent": Published(42.3, 481.8, 0.09),
    "GraphReader": Published(43.1, 327.4, 0.13),
    "MemAgent": Published(68.1, 264.0, 0.26),
    "Claude Code": Published(72.7, 19.2, 3.79),
    "SCOUT": Published(85.6, 21.4, 4.01),
}
"""InfiniteBench."""
ABLATION = {
    "full": (78.2, 29.7),
    "without epistemic state": (70.5, 28.3),
    "without forage actions": (17.7, 27.4),
    "without file tools": (74.2, 31.4),
    "without anchors": (75.5, 29.7),
}
"""Accuracy in percent and cost in thousands of tokens on LooGLE-v2."""
BY_LENGTH = {
    "tokens_k": (64, 128, 256, 512, 1024),
    "gemini-3-pro": (84.0, 81.0, 62.0, 55.0, 42.0),
    "gpt-5.1": (70.5, 66.5, 59.0, 44.5, 35.0),
    "claude-sonnet-4.5": (65.0, 47.0, 33.0, 28.0, 26.0),
    "SCOUT": (79.0, 79.0, 79.0, 79.0, 76.0),
}
"""Accuracy in percent by context length, read off the figure to a point."""


@kernel(inline=True)
def diluted(tokens: float, scale: float, power: float) -> float:
    """What is left of an answer when it is looked for among so many tokens, 0 to 1.

    Args:
        tokens: in the prompt.
        scale: at which half is left, tokens.
        power: steepness.

    Returns:
        A factor.
    """
    return 1.0 / (1.0 + (tokens / scale) ** power)


@kernel(inline=True)
def guessed(known: float, guess: float) -> float:
    """Accuracy where the answer is known with one probability and guessed otherwise with another."""
    return known + (1.0 - known) * guess


@kernel(inline=True)
def weight(listed: float, hits: float, snippet: float, gap: float) -> float:
    """Weight of a passage of a list that nobody has scanned: a share of the prior, times the likelihood ratio of its score.

    Args:
        listed: probability that what is looked for is in the list.
        hits: passages in the list.
        snippet: score of the passage; standard normal for a wrong one, by `gap` higher for the right one.
        gap: how much higher the right passage scores, in standard deviations.

    Returns:
        The weight, to be divided by the sum over all passages and over none of them being right.
    """
    return listed / hits * math.exp(gap * snippet - 0.5 * gap * gap)


def read_everything(tokens: float, law: Dilution = DILUTION["gemini-3-pro"], guess: float = GUESS) -> float:
    """Accuracy of a model that reads so many tokens in one prompt.

    Args:
        tokens: of the document.
        law: of the model.
        guess: accuracy of a guess.

    Returns:
        Accuracy, `guess` to `law.best`.
    """
    return guess + (law.best - guess) * diluted(tokens, law.tokens, law.power)


def ideal_reader(facts: tuple[float, ...], extract: float, keep: float, guess: float = GUESS) -> float:
    """Accuracy of a reader that misses nothing but what extraction and wording lose.

    Args:
        facts: shares of questions that need 1, 2, ... facts.
        extract: probability that reading a passage gives its fact.
        keep: probability that a fact that is held is used correctly.
        guess: accuracy of a guess.

    Returns:
        Accuracy, 0 to 1.
    """
    known = sum(share * (extract * keep) ** (k + 1) for k, share in enumerate(facts))
    return guessed(known, guess)


def expected_return(accuracy: float, tokens_k: float, price: float) -> float:
    """Accuracy less the price of tokens.

    Args:
        accuracy: 0 to 1.
        tokens_k: thousands of tokens.
        price: of a thousand tokens.

    Returns:
        In units of accuracy.
    """
    return accuracy - price * tokens_k
