"""Scenarios of Forage: named settings of document, question, search, answers and prices."""

import os
from dataclasses import dataclass
from typing import Any

from llmgym.core.settings import count, flag, given, numbers, option, quantity
from llmgym.envs.forage.law import DILUTION, GUESS
from llmgym.envs.forage.state import KEYS, MOST_CHUNKS, TERMS
from llmgym.errors import InvalidArgument
from llmgym.profiles import check_name

ACCOUNTING = ("stream", "rebilled")
"""Whether a token is paid once, or also again at each later call, as part of the history."""
PAPER = DILUTION["gemini-3-pro"]


def _check_text(name: str, value: Any) -> None:
    if not isinstance(value, (str, os.PathLike)) or not os.fspath(value):
        raise InvalidArgument(f"{name}={value!r}: expected 'stdlib', the path of a file, or None")


@dataclass(frozen=True)
class Scenario:
    """Settings of Forage; each of them is also an argument of the environment."""

    about: str
    text: str | None = given(
        None,
        "Where passages and scores come from: `None` draws them from the model; `stdlib` takes those that BM25 gave on the "
        "documentation of Python's standard library; or a file made by `llmgym.envs.forage.text`.",
        check=_check_text,
        allowed="`stdlib`, or a path",
    )
    chunks: int = count(256, "Parts that the document has.", low=16, high=MOST_CHUNKS)
    chunk_tokens: int = count(1000, "Tokens of a part.", low=50, high=8192, unit="tokens")
    facts: tuple[float, ...] = numbers(
        (0.20, 0.35, 0.30, 0.15),
        "Shares of questions that need 1, 2, 3 and 4 facts.",
        size=KEYS,
        zero=True,
        high=1.0,
        total=1.0,
    )
    chain: float = quantity(
        0.5,
        "Share of questions in which what to look for next is known only when the fact before is.",
        zero=True,
        high=1.0,
    )
    listed: tuple[float, ...] = numbers(
        (0.75, 0.60, 0.80),
        "Probabilities that a passage that holds the fact is found by the exact term, a synonym, a broader word.",
        size=TERMS,
        low=0.01,
        high=0.99,
    )
    least: tuple[float, ...] = numbers(
        (1, 1, 0),
        "Other passages that each of the three terms finds at least.",
        size=TERMS,
        zero=True,
        high=10.0,
    )
    hits: tuple[float, ...] = numbers(
        (7.0, 4.9, 21.0),
        "Mean number of further passages that each term finds in 256 parts (Poisson); it grows as parts to the power 0.1.",
        size=TERMS,
        zero=True,
        high=40.0,
    )
    snippet_gap: float = quantity(
        1.0,
        "How much higher the line of a right passage scores, in standard deviations.",
        zero=True,
        high=8.0,
    )
    scan_gap: float = quantity(
        2.0,
        "How much higher a glance at a right passage scores, in standard deviations.",
        zero=True,
        high=8.0,
    )
    false_rate: float = quantity(
        0.08, "Probability that another passage, if opened, yields a wrong claim.", zero=True, high=1.0
    )
    duplicates: float = quantity(
        0.0,
        "Mean number of further passages that hold a fact as well (Poisson, 2 at most).",
        zero=True,
        high=2.0,
    )
    contradictions: float = quantity(
        0.0,
        "Mean number of outdated passages of a fact (Poisson, 2 at most): they look as right, and all make one wrong claim.",
        zero=True,
        high=2.0,
    )
    authority_gap: float = quantity(
        0.0,
        "How much higher the source of a true claim is rated, in standard deviations.",
        zero=True,
        high=8.0,
    )
    extract: float = quantity(0.97, "Probability that opening the right passage yields its fact.", high=1.0)
    anchors: bool = flag(True, "Claims carry their source, by which an evaluation can check them.")
    expose: float = quantity(
        0.45, "Probability that an evaluation exposes a false claim that has an anchor.", zero=True, high=1.0
    )
    expose_bare: float = quantity(
        0.20, "Probability that an evaluation exposes a false claim without an anchor.", zero=True, high=1.0
    )
    overlook: float = quantity(
        0.06, "Probability that an evaluation overlooks a missing fact.", zero=True, high=1.0
    )
    spurious: float = quantity(
        0.03,
        "Probability that an evaluation that finds no gap reports one all the same.",
        zero=True,
        high=1.0,
    )
    keep: float = quantity(0.98, "Probability that a fact that is held is used correctly.", high=1.0)
    guess: float = quantity(GUESS, "Accuracy of a guess.", zero=True, high=0.99)
    mislead: float = quantity(
        0.55,
        "What is left of an answer from all that was read, for each false claim in it.",
        zero=True,
        high=1.0,
    )
    dilution_tokens: float = quantity(
        PAPER.tokens, "Length of a prompt at which half of an answer is lost in it.", unit="tokens"
    )
    dilution_power: float = quantity(PAPER.power, "Steepness of that loss.", high=8.0)
    whole_best: float = quantity(PAPER.best, "Accuracy of reading a short document whole.", high=1.0)
    retrieval_gap: float = quantity(
        3.0, "How much higher an embedding scores the passage that was asked for.", zero=True, high=8.0
    )
    hop_gap: float = quantity(
        1.0,
        "How much higher an embedding scores a passage that the question leads to only by way of others.",
        zero=True,
        high=8.0,
    )
    retrieval_false: float = quantity(
        0.0,
        "Probability that another part that a retrieval opens makes a wrong claim.",
        zero=True,
        high=1.0,
    )
    price: tuple[float, float] = numbers(
        (0.004, 0.004),
        "Accuracy that a thousand tokens are worth; log-uniform between two bounds, and told at the start.",
        size=2,
        low=1e-5,
        high=1.0,
        order="pair",
    )
    second_price: float = quantity(
        0.0, "Accuracy that a second of waiting is worth.", zero=True, high=1.0, unit="1/s"
    )
    accounting: str = option(
        "stream", "What is paid: each token once, or the history again at each call.", ACCOUNTING
    )
    cache_price: float = quantity(
        1.0,
        "Price of a token of the history over that of a new one, where it is paid again.",
        zero=True,
        high=1.0,
    )
    profile: str = given(
        "h100/qwen2.5-72b-tp4",
        "Cost profile of the model that reads, for seconds.",
        check=check_name,
        allowed="see `llmgym profiles`",
    )
    budget_tokens: int = count(
        None,
        "Tokens after which an answer is forced; `None`: the larger of 200,000 and four times the document.",
        low=1000,
        unit="tokens",
    )
    first_answer: int = count(0, "Actions before which no answer can be given.", low=0, high=100_000)
    max_steps: int = count(400, "Actions after which an answer is forced.", low=1, high=100_000)


SCENARIOS: dict[str, Scenario] = {
    "paper": Scenario(
        "one question on a document of 256,000 tokens, at the rates that give the paper's results"
    ),
    "any-price": Scenario(
        "the same where a thousand tokens are worth 0.001 to 0.03, told at the start; retrieved parts mislead too",
        retrieval_false=0.02,
        price=(0.001, 0.03),
    ),
    "long": Scenario("a document of a million tokens", chunks=1024),
    "short": Scenario("a document of 64,000 tokens, which reading it whole does not dilute much", chunks=64),
    "sources": Scenario(
        "every fact stands in more than one place, outdated passages contradict it, sources differ in authority",
        retrieval_false=0.02,
        duplicates=0.8,
        contradictions=0.8,
        authority_gap=1.0,
    ),
    "real": Scenario(
        "BM25's own scores on the documentation of Python's standard library, 64,000 tokens in parts of 250, facts planted; "
        "somebody waits for the answer",
        text="stdlib",
        chunk_tokens=250,
        contradictions=0.4,
        retrieval_false=0.02,
        price=(0.004, 0.004),
        second_price=0.002,
    ),
    "stress": Scenario(
        "half a million tokens, poor words, false, outdated and repeated passages, a poor auditor, history paid again",
        chunks=512,
        listed=(0.6, 0.4, 0.6),
        false_rate=0.2,
        duplicates=1.0,
        contradictions=1.5,
        authority_gap=0.7,
        retrieval_false=0.05,
        overlook=0.2,
        spurious=0.15,
        price=(0.0005, 0.03),
        second_price=0.001,
        accounting="rebilled",
        cache_price=0.1,
    ),
    "small": Scenario(
        "a document of 128,000 tokens, at most two facts, prices from 0.002 to 0.016",
        chunks=128,
        facts=(0.4, 0.6, 0.0, 0.0),
        retrieval_false=0.02,
        price=(0.002, 0.016),
    ),
}
