"""What AFDRefill keeps, shows and measures: the records, arrays and constants of its compiled functions."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmgym.core.records import (
    Record,
    Records,
    Records2,
    Records3,
    float32,
    float64,
    int32,
    int64,
    metric,
    shown,
    uint64,
)
from llmgym.envs.afd.requests import Law
from llmgym.envs.afd.slots import Slot, Table

PICK, SCORE = 0, 1
"""What an action is: a waiting request, or a score for each."""
EXCESS, THROUGHPUT = 0, 1
"""What a reward is."""
NO_PREDICTION, EXACT, NOISY, MEAN = 0, 1, 2, 3
"""What is told of the steps of a waiting request."""
MOST_SHOWN = 4.0
"""Observed numbers that have no bound of their own are cut here, in units of what they are divided by."""
FREE_SHOWN = 4.0
"""Free slots of an instance that an observation can tell apart."""


class Episode(Record):
    """One lane of AFDRefill."""

    key: np.uint64 = uint64("Seeds everything that is drawn.")
    cycle: int = int32("Cycles of the episode.")
    tick: int = int32("Steps of the bundle, those before the episode included.")
    left: int = int32("Free slots.")
    invalid: int = int32("Masked actions that were taken.")
    most_skips: int = int32("Most times that a placed request had been skipped.")
    drawn: int = int64("Requests of the backlog that have come into view.")
    newest: int = int64(
        "Number of the youngest request placed since the last cycle; -1 if there is none.", blank=-1
    )
    taken: int = int64(
        "Requests of the episode, those that wait and those that ran at its beginning included."
    )
    placed: int = int64("Requests that were placed.")
    skips: int = int64("Times that the placed requests had been skipped, in all.")
    completed: int = int64("Requests that are done.")
    demand_steps: int = int64(
        "Steps that the requests still had to come when they were placed, or at the beginning."
    )
    tokens: int = int64("Tokens produced.")
    timed: int = int64("Completions whose whole stay was seen.")
    tpot: float = float64("Sum of the times per token of the completions whose whole stay was seen, cycles.")
    clock: float = float64("Simulated time, cycles.")
    tau: float = float64("Time of the last cycle, cycles.")
    excess: float = float64("Sum over the cycles: slowest less mean attention, cycles.")
    relative_excess: float = float64(
        "Sum over the cycles: time lost to unequal loads, over the time with equal ones."
    )
    relative: float = float64("Sum over the cycles: throughput over that of the mean field.")
    load: float = float64("Sum over the cycles: mean tokens of a slot.")
    penalty: float = float64("What masked actions cost.")
    checksum: float = float64("A number of the world, equal for equal worlds.")


class Waiting(Record):
    """One waiting request that can be chosen."""

    number: int = int64("Number in the backlog.")
    prompt: int = int32("Prompt, tokens.")
    steps: int = int32("Steps that it will stay.")
    predicted: int = int32("Steps that are told; 0 if nothing is.")
    skips: int = int32("Times that it has been skipped.")
    chosen: int = int32("While scores are followed: 1 if it will be placed, 2 if it has been.")


class Past(Record):
    """One cycle that has passed, for pictures."""

    slowest: float = float32("Attention of the most loaded instance, cycles.")
    mean: float = float32("Attention with the mean load, cycles.")


class Config(Record):
    """The settings of AFDRefill as its compiled functions read them."""

    action: int = int32("What an action is: PICK or SCORE.")
    reward: int = int32("What a reward is: EXCESS or THROUGHPUT.")
    information: int = int32("What is told of steps: NO_PREDICTION, EXACT, NOISY or MEAN.")
    batch: int = int32("B: slots of an attention instance.")
    workers: int = int32("r: attention instances.")
    window: int = int32("W: waiting requests that can be chosen from.")
    cycles: int = int32("Cycles of an episode.")
    patience: int = int32("A: times that a request may be skipped.")
    stationary: int = int32("1: slots begin as in the long run; 0: with new requests.")
    default_steps: int = int32("Mean steps of a request, told where `information` is MEAN.")
    noise: float = float64("Standard deviation of the logarithm of a prediction's error.")
    invalid_cost: float = float64("What a masked action costs.")
    cycle_s: float = float64("Length of a cycle, seconds.")
    alpha_attention: float = float64("Time of attention for each token in the KV cache, cycles.")
    beta_attention: float = float64("Time of attention without any token, cycles.")
    alpha_ffn: float = float64("Time of the FFN for each request, cycles.")
    beta_ffn: float = float64("Time of the FFN without any request, cycles.")
    comm: float = float64("t_C: time of the link, both ways together, cycles.")
    best: float = float64("Throughput of the mean field, tokens per cycle and instance.")
    load_scale: float = float64("Unit that differences of loads are shown in, tokens.")
    log_prompt: float = float64("1 / log(1 + the longest prompt).")
    log_steps: float = float64("1 / log(1 + the longest stay).")


class Observation(Record):
    """What an agent sees of AFDRefill before the fields for each instance and each waiting request."""

    left: float = shown("free slots still to fill before the next cycle", unit="W")
    due: float = shown(
        "part of the free slots that goes to requests that must not be skipped again", unit="share"
    )
    floor: float = shown(
        "what a cycle takes at least: the longer of FFN and communication", unit="mean t_A", high=MOST_SHOWN
    )
    spread: float = shown(
        "load of the most loaded instance over the mean", unit="load_scale", high=MOST_SHOWN
    )
    current: float = shown(
        "load of the instance that gets the next request, over the mean",
        unit="load_scale",
        low=-MOST_SHOWN,
        high=MOST_SHOWN,
    )
    room: float = shown(
        "load of the most loaded instance over that of the one that gets the next request",
        unit="load_scale",
        high=MOST_SHOWN,
    )
    progress: float = shown("cycles so far", unit="episode")


class Metrics(Record):
    """What AFDRefill measures.

    The time per token counts from a request's entry into its slot, where the first token of its prefill is already there, over the
    tokens after that.
    """

    relative_excess: float = metric(
        "Mean over the cycles of the time lost to unequal loads, over the time with equal ones; NaN before the first cycle.",
        best="min",
    )
    barrier_excess_cycles: float = metric(
        "Mean over the cycles of slowest less mean attention, cycles; NaN before the first cycle.", best="min"
    )
    tau_mean_cycles: float = metric("Mean time of a cycle, cycles; NaN before the first cycle.", best="min")
    relative_throughput: float = metric(
        "Mean over the cycles of the throughput over that of the mean field; NaN before the first cycle."
    )
    throughput_tokens_per_cycle: float = metric(
        "Tokens produced per cycle and instance; NaN before the first cycle."
    )
    throughput_tokens_per_s: float = metric(
        "Tokens produced per second and instance; NaN before the first cycle.", best="max"
    )
    tpot_mean_s: float = metric(
        "Mean time per output token, seconds; NaN where no request that was placed in the episode is done.",
        best="min",
    )
    load_mean_tokens: float = metric("Mean tokens of a slot over the cycles; NaN before the first cycle.")
    completed: float = metric("Requests that are done.")
    placed: float = metric("Requests that were placed.")
    skips_mean: float = metric(
        "Times that a placed request had been skipped, mean; NaN where none was placed.", best="min"
    )
    skips_max: float = metric("Times that a placed request had been skipped, at most.")
    cycles: float = metric("Cycles of the episode.")
    penalty: float = metric("What masked actions cost.")
    invalid_actions: float = metric("Masked actions that were taken.")
    duration_s: float = metric("Simulated time, seconds.")
    world_checksum: float = metric("A number of the world, equal for equal worlds.")


class State(NamedTuple):
    """Arrays of AFDRefill; first axis = lane.

    Attributes:
        lane: [lanes].
        table: [lanes, r], one attention instance each.
        slot: [lanes, r, B].
        wheel: int32 [lanes, r, buckets].
        waiting: [lanes, W], the next requests of the backlog, oldest first.
        order: int32 [lanes, r], instances by rising load.
        history: [lanes, cycles], for pictures.
    """

    lane: Records[Episode]
    table: Records2[Table]
    slot: Records3[Slot]
    wheel: NDArray[np.int32]
    waiting: Records2[Waiting]
    order: NDArray[np.int32]
    history: Records2[Past]


class Params(NamedTuple):
    """What all lanes of AFDRefill share.

    Attributes:
        config: [1], the settings.
        law: [1], of the requests.
        requests: int32 [rows, 2], prompt and steps.
        until: int64 [rows], running sums of the steps.
    """

    config: Records[Config]
    law: Records[Law]
    requests: NDArray[np.int32]
    until: NDArray[np.int64]
