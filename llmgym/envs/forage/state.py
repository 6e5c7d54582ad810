"""What Forage keeps, shows and measures, and what its compiled functions are told."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmgym.core.records import (
    Record,
    Records,
    Records2,
    Records3,
    boolean,
    float32,
    float64,
    int8,
    int16,
    int32,
    metric,
    shown,
    uint8,
    uint64,
)
from llmgym.profiles.cost import StepCost

KEYS, TERMS, SLOTS, LIST = 4, 3, 16, 20
"""Facts that a question needs at most; terms to search each with; candidates that an agent chooses among; passages a list keeps."""
PASSAGES = 64
"""Passages that a key has at most: 5 that speak of the fact, and those of three lists."""
READ, SCAN, GREP = 0, SLOTS, 2 * SLOTS
COMMIT, EVALUATE, ANSWER = GREP + 1, GREP + 2, GREP + 3
FOCUS = ANSWER + 1
ANSWER_CONTEXT = FOCUS + KEYS
RETRIEVE = ANSWER_CONTEXT + 1
DEPTHS = np.array([5, 10, 20, 50])
"""How many parts a retrieval opens."""
RETRIEVE_KEY = RETRIEVE + len(DEPTHS)
READ_ON = RETRIEVE_KEY + len(DEPTHS)
READ_ALL = READ_ON + 1
ACTIONS = READ_ALL + 1
"""Actions: where each kind begins."""
MOST_CHUNKS = 1024
"""Parts of a document at most."""
BLOCK = 16
"""Parts that reading on opens at once."""
NOTHING, TRUE, OUTDATED, WRONG = 0, 1, 2, 3
"""What a passage claims; a wrong passage claims `WRONG` and its part, so that no two agree."""
CURRENT, SCANNED, OPENED = 1, 2, 4
"""Bits of what an agent has seen of a passage."""
NONE, SUFFICIENT, GAPS = 0, 1, 2
"""What the last evaluation said."""

KEY_SHOWN = (
    "exists",
    "known",
    "has a claim in E",
    "claim pending",
    "the two agree",
    "the two differ",
    "sources of the claim in E, n / (n + 1)",
    "authority of the pending claim's source, / 4",
    "terms used, / 3",
    "no term and no candidate left",
    "reported by the last evaluation",
    "focused",
)
"""Columns of a row of `key` in the observation."""
SLOT_SHOWN = ("there is one", "score of its line, / 4", "scanned", "score of the scan, / 4", "posterior")
"""Columns of a row of `slot` in the observation."""
KEY_COLUMNS, SLOT_COLUMNS = len(KEY_SHOWN), len(SLOT_SHOWN)


class Episode(Record):
    """One lane of Forage."""

    key: np.uint64 = uint64("Seeds everything that is drawn.")
    facts: int = int32("Facts that the question needs.")
    chain: bool = boolean("Whether what to look for next depends on the fact before.")
    price: float = float64("Accuracy that a thousand tokens are worth.")
    focus: int = int32("Key that searches are for.")
    steps: int = int32("Actions so far.")
    clock_s: float = float64("Time so far, seconds.")
    tokens: float = float64("Tokens of all calls so far, each once.")
    repeated: float = float64("Tokens of the history that were paid again, at their price.")
    prompt: float = float64("Tokens of the prompt that were paid.")
    greps: int = int32("Searches by a term.")
    found: int = int32("Passages that these listed.")
    scans: int = int32("Glances.")
    reads: int = int32("Passages opened one by one.")
    commits: int = int32("Claims written to E.")
    evaluations: int = int32("Evaluations of E.")
    told: int = int32("Claims that evaluations and the answer were told.")
    focuses: int = int32("Changes of focus.")
    retrievals: int = int32("Retrievals.")
    queries: int = int32("Retrievals whose query was written first.")
    retrieved: int = int32("Parts that retrievals opened.")
    blocks: int = int32("Blocks that were read in order.")
    blocked: int = int32("Parts in them.")
    answers: int = int32("Answers: 0, then 1.")
    whole: bool = boolean("Whether the document was read whole.")
    next_chunk: int = int32("Part at which reading on begins.")
    verdict: int = int32("What the last evaluation said.")
    null: float = float64("Posterior of the list of the focus that no candidate of it is right.", blank=1.0)
    candidates: int = int32("Candidates that can be chosen.")
    accuracy: float = float64("Probability that the answer is right.")
    outcome: float = float64("What the reward counts of the answer: its accuracy, or 0 or 1.")
    paid: float = float64("What tokens have cost so far, in accuracy.")
    waited: float = float64("What seconds have cost so far, in accuracy.")
    beyond: int = int32("Calls longer than the profile was measured.")
    invalid: int = int32("Masked actions.")
    penalty: float = float64("What these have cost.")
    checksum: float = float64("Sum of all that was drawn.")


class Key(Record):
    """One fact that the question needs."""

    term: int = int8("Terms used.")
    hits: int = int16("Passages in the latest list.")
    passages: int = int16("Passages in the table.")
    claim: int = int16("Claim in E; `NOTHING` where there is none.")
    source: int = int16("Part that it was taken from.")
    support: int = int16("Sources of it that were written to E.")
    pending: int = int16("Claim that was read and not written yet.")
    pending_source: int = int16("Part that it was read in.")
    authority: float = float32("How its source is rated.")
    reported: bool = boolean("Whether the last evaluation reported it.")
    seen_true: bool = boolean("Whether the true claim was read.")
    seen_false: int = int16("False claims read.")


class Passage(Record):
    """A passage that some term of a key finds, or that speaks of the fact."""

    chunk: int = int16("Part of the document.")
    listed: int = uint8("Terms that find it: a bit each.")
    claims: int = int16("What it claims, if opened.")
    readable: bool = boolean("Whether opening it yields what it claims.")
    line: float = float32("Score of its line, as of a wrong passage.")
    glance: float = float32("Score of a scan, as of a wrong passage.")
    rated: float = float32("Authority of its source, as of a wrong one.")
    rank: NDArray[np.int16] = int16(
        "Parts that an embedding prefers to it, for the question and for its key, where that was measured.",
        shape=2,
    )
    ahead: int = int16("Parts that the latest retrieval ranked before it.")
    score: float = float32("Its score there.")
    seen: int = uint8("What was seen of it.")
    snippet: float = float32("Score of its line, when it was listed.")
    scan: float = float32("Score of the scan, when it was scanned.")


class Config(Record):
    """Settings that the compiled functions read."""

    chunks: int = int32("Parts of the document.")
    chunk_tokens: int = int32("Tokens of a part.")
    facts: NDArray[np.float64] = float64("Running shares of questions by their number of facts.", shape=KEYS)
    chain: float = float64("Share of chains.")
    listed: NDArray[np.float64] = float64("Probability that a term finds the right passage.", shape=TERMS)
    least: NDArray[np.int64] = int32("Other passages it finds at least.", shape=TERMS)
    hits: NDArray[np.float64] = float64("Mean of the further ones.", shape=TERMS)
    snippet_gap: float = float64("Separation of scores of lines.")
    scan_gap: float = float64("Separation of scores of scans.")
    false_rate: float = float64("Share of other passages that claim something wrong.")
    duplicates: float = float64("Mean number of further right passages.")
    contradictions: float = float64("Mean number of outdated passages.")
    authority_gap: float = float64("Separation of the authority of sources.")
    extract: float = float64("Probability that the right passage yields its fact.")
    expose: float = float64("Probability that an evaluation exposes a false claim.")
    overlook: float = float64("Probability that it overlooks a gap.")
    spurious: float = float64("Probability that it reports a gap that is none.")
    keep: float = float64("Probability that a fact held is used correctly.")
    guess: float = float64("Accuracy of a guess.")
    mislead: float = float64("Factor of a false claim in the context.")
    dilution_tokens: float = float64("Length that halves an answer, tokens.")
    dilution_power: float = float64("Steepness of that.")
    whole_best: float = float64("Accuracy of reading a short document whole.")
    retrieval_gap: float = float64("Separation of embeddings of what is asked for.")
    hop_gap: float = float64("Separation of what is reached only through others.")
    retrieval_false: float = float64("Probability that a retrieved part makes a wrong claim.")
    price_low: float = float64("Lowest price of a thousand tokens.")
    price_high: float = float64("Highest price of a thousand tokens.")
    second_price: float = float64("Price of a second.")
    cache_price: float = float64("Price of a token of the history at each later call.")
    budget_tokens: float = float64("Tokens after which an answer is forced.")
    first_answer: int = int32("Actions before which no answer can be given.")
    max_steps: int = int32("Actions after which an answer is forced.")
    drawn_outcome: int = int32("1: the reward counts whether the answer is right; 0: the probability of it.")
    invalid_cost: float = float64("Cost of a masked action.")


class Observation(Record):
    """What Forage shows beside the rows of the keys and of the candidates."""

    price: float = shown("price of a thousand tokens", unit="(log10 + 5) / 5")
    second_price: float = shown("price of a second", unit="x / (x + 0.001)")
    length: float = shown("parts of the document", unit="(log2 - 4) / 6")
    part: float = shown("tokens of a part", unit="log2 / 13")
    chain: float = shown("what to look for next depends on the fact before", unit="bit")
    facts: float = shown("facts that the question needs", unit="K / 4")
    held: float = shown("facts that E holds a claim for", unit="of 4")
    tokens: float = shown("tokens so far", unit="x / (x + 100,000)")
    steps: float = shown("actions so far", unit="n / (n + 100)")
    evaluations: float = shown("evaluations so far", unit="n / (n + 4)")
    retrievals: float = shown("retrievals so far", unit="n / (n + 4)")
    place: float = shown("where reading on begins", unit="of the document")
    passes: float = shown("how often all was read in order", unit="n / (n + 1)")
    verdict: NDArray[np.float32] = shown("the last evaluation: none, sufficient, gaps", unit="one of", size=3)
    null: float = shown("posterior that no candidate of the latest list is right", unit="probability")


class Metrics(Record):
    """Metrics of an episode of Forage."""

    accuracy: float = metric("Probability that the answer is right; NaN before there is one.", best="max")
    tokens_k: float = metric("Thousands of tokens, each once.", best="min")
    tokens_per_correct_k: float = metric(
        "Thousands of tokens over accuracy; NaN before there is an answer, and where it cannot be right."
    )
    net: float = metric("Accuracy counted by the reward, less what tokens and seconds cost.", best="max")
    time_s: float = metric("Seconds of reading and writing.", best="min")
    reads: float = metric("Passages opened one by one.", best="min")
    scans: float = metric("Glances.")
    greps: float = metric("Searches by a term.")
    evaluations: float = metric("Evaluations of E.")
    commits: float = metric("Claims written to E.")
    parts_opened: float = metric("Parts opened by reading on, retrieval or reading whole.")
    units: float = metric("Claims in E.")
    false_units: float = metric("False ones among these.")
    steps: float = metric("Actions.")
    outcome: float = metric("What the reward counted of the answer; 0 before there is one.")
    token_cost: float = metric("What tokens cost, in accuracy.")
    time_cost: float = metric("What seconds cost, in accuracy.")
    repeated_k: float = metric("Thousands of tokens of the history that were paid again, at their price.")
    beyond: float = metric("Calls longer than the profile was measured.")
    penalty: float = metric("What masked actions cost.")
    invalid_actions: float = metric("Masked actions.")
    world_checksum: float = metric("Sum of all that was drawn, whatever was decided.")


class State(NamedTuple):
    """Arrays of Forage; the first axis is the lane.

    Attributes:
        lane: the episodes, [lanes].
        key: the facts that each question needs, [lanes, 4].
        passage: passages of each, [lanes, 4, 64].
        slot: passages of the focus that can be chosen, the likeliest first, int8 [lanes, 16].
        posterior: probability of each to be right, float64 [lanes, 16].
    """

    lane: Records[Episode]
    key: Records2[Key]
    passage: Records3[Passage]
    slot: NDArray[np.int8]
    posterior: NDArray[np.float64]


class Params(NamedTuple):
    """What all lanes of Forage share.

    Attributes:
        config: the settings, [1].
        cost: what a step of the model costs.
        bank: questions with measured scores, passages [questions, 4, 64]; empty passages where they are drawn.
        sizes: how many passages each key of the bank has, int16 [questions, 4]; 0 questions where they are drawn.
    """

    config: Records[Config]
    cost: StepCost
    bank: Records3[Passage]
    sizes: NDArray[np.int16]
