"""What Unmask keeps, shows and measures, and what its compiled functions are told."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmgym.core.records import (
    Record,
    Records,
    Records2,
    float64,
    int16,
    int32,
    metric,
    shown,
    uint64,
)

MACROS = (
    "next level of DUS",
    "surest 1",
    "surest 2",
    "surest 4",
    "surest 8",
    "EB 0.5",
    "EB 1",
    "EB 2",
    "spaced",
    "all",
)
"""What the actions of `action="macro"` reveal."""
FEATURES = (
    "masked",
    "chosen",
    "confidence",
    "entropy",
    "margin",
    "left",
    "right",
    "near",
    "place",
    "level",
    "fall",
)
"""Columns of the rows of the field `position`."""
MASKED, CHOSEN, CONFIDENCE, ENTROPY, MARGIN, LEFT, RIGHT, NEAR, PLACE, LEVEL, FALL = range(len(FEATURES))
PRICE_DECADES = 2.0
"""Scale of log10 lambda in observations."""
PATIENCE = 64
"""An episode is cut after so many steps for each token: masked actions alone would never end it."""


class Episode(Record):
    """One lane of Unmask."""

    key: np.uint64 = uint64("Seeds everything that is drawn.")
    process: int = int32("Number of the language.")
    streams: int = int32("Texts that are interleaved.")
    block: int = int32("Block that is being filled.")
    excerpt: int = int32("The measured block that it is.")
    revealed: int = int32("Tokens revealed so far.")
    calls: int = int32("Denoiser calls so far.")
    calls_here: int = int32("Of these, in the present block.")
    steps: int = int32("Steps so far.")
    right: int = int32("Tokens revealed that were the likeliest ones.")
    invalid: int = int32("Masked actions.")
    price: float = float64("Lambda, calls per nat.")
    cost: float = float64("What the calls have cost, in calls.")
    clock_s: float = float64("What they took, seconds.")
    kl: float = float64("Sum of what the calls added to the divergence, nats.")
    log_p: float = float64("True log-probability of the finished blocks given the prompt, nats.")
    log_here: float = float64("True log-probability of what is known of the present block, nats.")
    worst: float = float64("Largest share of one call in it, nats.", blank=-np.inf)
    apart: float = float64("Sum of the distances of neighbours that one call revealed, tokens.")
    neighbours: int = int32("Number of these.")
    kind: int = int32("Place of `streams` in the list of the scenario.")
    penalty: float = float64("What masked actions have cost.")
    damage: float = float64(
        "Of measured text: nats that another model finds it less likely with the likeliest tokens."
    )
    checksum: float = float64("Sum of all that was drawn at the start.")


class Position(Record):
    """One position of the present block."""

    confidence: float = float64("Probability of its likeliest token; 1 where it is known.")
    entropy: float = float64("Entropy of its marginal, nats; 0 where it is known.")
    margin: float = float64("Probability of its likeliest token less that of the next; 1 where it is known.")
    fall: float = float64("What its entropy fell by with the last call, nats.")
    log_drawn: float = float64("Log-probability of the token that it would be given, nats.")
    drawn: int = int16("The token that it would be given.")
    right: int = int16("1: that is its likeliest token; 0: it is not.")


class Config(Record):
    """Settings that the compiled functions read."""

    tokens: int = int32("Tokens to generate.")
    block: int = int32("Positions of a block.")
    prompt: int = int32("Tokens of the prompt.")
    score: int = int32("1: a true text is revealed; 0: tokens are drawn from the marginals.")
    set_action: int = int32("0: positions are added; 1: a whole set at once; 2: macros.")
    measured: int = int32("1: the text is measured on a model; 0: it is one of phrases.")
    vocabulary: int = int32("Tokens of a language.")
    processes: int = int32("Languages.")
    show_interleave: int = int32("1: the number of interleaved texts is observed.")
    lambda_low: float = float64("Least lambda, calls per nat.")
    lambda_high: float = float64("Largest lambda, calls per nat.")
    noise: float = float64("Probability with which a token is any token.")
    match: float = float64("Likelihood of the token that a phrase has there.")
    miss: float = float64("Likelihood of any other, over `match`.")
    denoiser_error: float = float64("Weight of the uniform law far from known tokens.")
    error_tokens: float = float64("Distance over which it grows, tokens.")
    invalid_cost: float = float64("Cost of a masked action.")


class Observation(Record):
    """What Unmask shows beside the positions of the block."""

    block: float = shown("blocks that are full", unit="of all")
    calls: float = shown("denoiser calls so far", unit="per token to generate")
    masked: float = shown("masked positions", unit="of the block")
    calls_here: float = shown("denoiser calls in this block", unit="per position")
    chosen: float = shown("positions chosen for the next call", unit="of the block")
    price: float = shown(
        "lambda, what a nat is worth in calls", unit=f"log10 / {PRICE_DECADES:g}", low=-1.0, name="lambda"
    )
    call: float = shown("what a call in this block costs", unit="x / (1 + x), x in mean calls")
    streams: float = shown(
        "texts that are interleaved, 0 where that is not told", unit="of 4", name="interleave"
    )


class Metrics(Record):
    """Metrics of an episode of Unmask; those of tokens are NaN before the first call."""

    nfe: float = metric("Denoiser calls.", best="min")
    kl_nats: float = metric(
        "Log of the law of the generated text over the true one; of a true text the other way round. Its mean is the divergence.",
        best="min",
    )
    objective: float = metric("Cost of the calls plus lambda times `kl_nats`, in calls.", best="min")
    speedup: float = metric("Tokens per call; NaN before the first call.", best="max")
    typical: float = metric(
        "1 where the text is as likely as 95 % of true texts are at least, else 0; NaN before it is complete and if measured.",
        best="max",
    )
    accuracy: float = metric(
        "Share of the tokens of a true text that were the likeliest when they were revealed; NaN in mode `generate`."
    )
    scorer_nats: float = metric(
        "Nats that another model finds the text less likely with the likeliest tokens, each alone; NaN unless measured.",
        best="min",
    )
    nll_nats_per_token: float = metric(
        "Minus the true log-probability of the finished blocks a token, nats; NaN before the first is full."
    )
    time_s: float = metric("What the calls take, seconds.")
    cost_calls: float = metric("What the calls cost, in calls.")
    lambda_calls_per_nat: float = metric("Lambda, what a nat is worth in calls.")
    worst_call_nats: float = metric("Largest share of one call in `kl_nats`; NaN before the first call.")
    spacing_mean_tokens: float = metric(
        "Mean distance of neighbours revealed by one call; NaN where no call revealed two."
    )
    interleave: float = metric("Texts that are interleaved.")
    output_tokens: float = metric("Tokens revealed.")
    penalty: float = metric("What masked actions cost.")
    invalid_actions: float = metric("Masked actions.")
    world_checksum: float = metric("Sum of all that was drawn at the start.")


class State(NamedTuple):
    """Everything that changes; first axis = lane.

    Attributes:
        lane: the episode, [lanes].
        position: positions of the present block, [lanes, block].
        masked: 1 where a position of the block is masked, int8 [lanes, block].
        chosen: 1 where it is chosen for the next call, int8 [lanes, block].
        token: known tokens, -1 where masked; the prompt first, int16 [lanes, prompt + tokens].
        truth: the true text that is revealed in mode `score`, int16 [lanes, prompt + tokens].
        call_of: call that revealed each token, from 0 on, -1 where none did, int16 [lanes, tokens].
        gap: what each call added to `kl_nats`, nats, float32 [lanes, tokens].
        prior: law of the hidden state of each stream at its first position of the block, float64
            [lanes, streams, topics, phrases, LONGEST].
        ends: messages between positions, float64 [lanes, block + 1, topics, phrases].
        now: scratch, float64 [lanes, topics, phrases, LONGEST].
        law: scratch, float64 [lanes, max(vocabulary, phrases, block)].
        tail: scratch, float64 [lanes, max(phrases, block)].
    """

    lane: Records[Episode]
    position: Records2[Position]
    masked: NDArray[np.int8]
    chosen: NDArray[np.int8]
    token: NDArray[np.int16]
    truth: NDArray[np.int16]
    call_of: NDArray[np.int16]
    gap: NDArray[np.float32]
    prior: NDArray[np.float64]
    ends: NDArray[np.float64]
    now: NDArray[np.float64]
    law: NDArray[np.float64]
    tail: NDArray[np.float64]


class Params(NamedTuple):
    """What all lanes of Unmask share.

    Attributes:
        config: the settings, [1].
        lengths: tokens of each phrase, int64 [processes, phrases].
        words: tokens of the phrases, int64 [processes, phrases, LONGEST].
        onward: probability of the next phrase, float64 [processes, topics, phrases, phrases].
        back: `onward` with its last two axes exchanged, float64 [processes, topics, phrases, phrases].
        start: law of the hidden state at the beginning of a text, float64 [processes, topics, phrases, LONGEST].
        level: call of DUS that reveals each position of a block, int64 [block].
        streams: numbers of interleaved texts that a world may have, int64 [some].
        typical: log-probability below which 5 % of true texts lie, nats, float64 [processes, some].
        measured: what a model says of measured blocks, float32 [blocks, 1 + block, block, 4]; see `llmgym.envs.unmask.excerpts`.
        measured_right: 1 where its likeliest token is the true one, uint8 [blocks, 1 + block, block].
        measured_damage: what this token costs by another model, nats, float32 [blocks, 1 + block, block].
        shares: how much of the weaker effects adds to the strongest one, float64 [4].
        call_s: what a call takes, by block, seconds, float64 [blocks].
        call_cost: what it costs, by block, in calls, float64 [blocks].
    """

    config: Records[Config]
    lengths: NDArray[np.int64]
    words: NDArray[np.int64]
    onward: NDArray[np.float64]
    back: NDArray[np.float64]
    start: NDArray[np.float64]
    level: NDArray[np.int64]
    streams: NDArray[np.int64]
    typical: NDArray[np.float64]
    measured: NDArray[np.float32]
    measured_right: NDArray[np.uint8]
    measured_damage: NDArray[np.float32]
    shares: NDArray[np.float64]
    call_s: NDArray[np.float64]
    call_cost: NDArray[np.float64]
