"""What AttentionBudget keeps, shows and measures, and what its compiled functions are told."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmgym.core.records import Record, Records, Records2, float32, float64, int32, metric, shown, uint64
from llmgym.envs.attention.costs import Tables

CROWD = 8.0
"""Numbers of batches and of sequences are shown as n / (n + 8)."""
RECENT = 8
"""The recent rate is that of so many arrivals."""
ROW = ("time", "slack", "loss", "excess", "memory", "parts", "allowed", "defer")
"""Entries of a row of the observation's block of actions."""
TIME, SLACK, LOSS, EXCESS, MEMORY, PARTS, ALLOWED, DEFER = range(len(ROW))
WAITING_ROW = ("waits", "length", "requests", "time", "slack", "limit", "age", "head")
"""Entries of a row of the observation's block of waiting batches."""
WAITS, LENGTH, REQUESTS, NEEDS, LEFT, LIMIT, AGE, HEAD = range(len(WAITING_ROW))

_MEAN_BATCHES, _CROWDED, _BUDGETS = (
    "x / (1 + x), x in mean service times",
    "n / (n + 8)",
    "x / (1 + x), x in budgets",
)
_SIGNED = "x / (1 + |x|), x in mean service times"


class Episode(Record):
    """One lane of AttentionBudget."""

    key: np.uint64 = uint64("Seeds everything that is drawn.")
    oldest: int = int32("Number of the oldest batch that is not served.")
    arrived: int = int32("Batches that have arrived.")
    head: int = int32("Number of the batch that is decided on.")
    position: int = int32("Waiting batches that come before the head and were deferred.")
    done: int = int32("Batches that were served.")
    on_time: int = int32("Of these, those before their deadlines.")
    deferrals: int = int32("Times that the head was deferred.")
    invalid: int = int32("Masked actions.")
    clock_s: float = float64("Simulated time, seconds.")
    busy_s: float = float64("Time in which the GPU worked, seconds.")
    energy_j: float = float64("Energy of the GPU while it worked, joules.")
    tokens: float = float64("Tokens that were served.")
    tokens_on_time: float = float64("Of these, those before their deadlines.")
    tokens_exact: float = float64("Of these, those at no loss.")
    spent: float = float64("The ledger: tokens times loss, nat.")
    value: float = float64("On-time weight so far, in mean batches.")
    late: float = float64("Late weight so far, in mean batches.")
    excess: float = float64("Weight times nat above the limit of the class, in mean batches.")
    penalty: float = float64("What masked actions have cost.")
    checksum: float = float64("Sum of all that was drawn.")


class Batch(Record):
    """One batch: sequences of one length with one deadline."""

    arrival_s: float = float64("Time of its arrival, seconds.")
    due_s: float = float64("Its deadline, seconds.")
    end_s: float = float64("Time at which it was done, -1 before, seconds.", blank=-1.0)
    length: int = int32("Length of each sequence, tokens.")
    requests: int = int32("Sequences.")
    limit: float = float32("Largest loss that its class accepts, nat.")
    noise: float = float32("Deviation of its time, in standard deviations of its kernel.")
    reference_s: float = float32("Time that it would take without loss, seconds.")
    action: int = int32("What served it: kernel x splits + split; -1 before.", blank=-1)
    burst: int = int32("1: it arrived in a burst; 0: it did not.")


class Config(Record):
    """Settings that the compiled functions read."""

    batches: int = int32("Batches of an episode.")
    window: int = int32("Waiting batches that are shown.")
    layers: int = int32("Layers of the model.")
    most: int = int32("Most sequences of a batch.")
    most_tokens: int = int32("Most tokens of a batch of several sequences.")
    longest: int = int32("Longer prompts are cut to this length, tokens.")
    even: int = int32("1: every batch weighs the same in the reward; 0: by its tokens.")
    free_bytes: float = float64("Memory beside the checkpoints, bytes.")
    noise: float = float64("Deviation of times, over the measured spread.")
    mean_s: float = float64("Mean time of a batch without loss, seconds.")
    mean_tokens: float = float64("Mean tokens of a batch.")
    mean_j: float = float64("Energy of a mean batch without loss, joules.")
    load: float = float64("Work that arrives, over what the GPU can do without loss.")
    calm_rps: float = float64("Batches a second outside of bursts.")
    burst_rps: float = float64("Batches a second in a burst.")
    calm_s: float = float64("Mean time between bursts, seconds.")
    burst_s: float = float64("Mean length of a burst, seconds.")
    burst_share: float = float64("Share of time in bursts.")
    soonest: float = float64("Least time until the deadline of a mean batch, in mean service times.")
    latest: float = float64("Most time until the deadline of a mean batch, in mean service times.")
    fixed: float = float64("Part of it that does not grow with the tokens.")
    budget: float = float64("Mean loss per token that the episode may end with, nat.")
    late_weight: float = float64("Price of a late token.")
    excess_weight: float = float64("Price of a nat above the limit of a class, per token.")
    overspend_weight: float = float64("Price of the mean loss above the budget, per budget.")
    energy_weight: float = float64("Price of energy.")
    invalid_cost: float = float64("Cost of a masked action.")


class Observation(Record):
    """What AttentionBudget shows of the head, the queue and the ledger; a block of waiting batches and one of actions follow."""

    length: float = shown("length of the head's sequences", unit="octaves / 17", name="head.length")
    requests: float = shown("sequences of the head", unit=_CROWDED, name="head.requests")
    slack: float = shown("time until the head's deadline", unit=_SIGNED, low=-1.0, name="head.slack")
    limit: float = shown("largest loss that the head's class accepts", unit=_BUDGETS, name="head.limit")
    age: float = shown("time since the head arrived", unit=_MEAN_BATCHES, name="head.age")
    position: float = shown("waiting batches that were deferred", unit="window")
    waiting: float = shown("batches that wait", unit=_CROWDED)
    backlog: float = shown("time that these would take without loss", unit=_MEAN_BATCHES)
    spent: float = shown("mean loss per token so far", unit=_BUDGETS, name="ledger.spent")
    left: float = shown(
        "what the ledger has left, over the budget of all tokens of the episode (those to come at their mean)",
        low=-1.0,
        unit="budget",
        name="ledger.left",
    )
    rate: float = shown("recent rate of arrivals, over what the GPU can do without loss", unit="x / (1 + x)")
    load: float = shown("mean rate of arrivals, over the same", unit="x / (1 + x)")
    progress: float = shown("batches that were served", unit="episode")


class Metrics(Record):
    """Metrics of an episode of AttentionBudget."""

    goodput_share: float = metric(
        "Share of tokens served before their deadlines; NaN where none was.", best="max"
    )
    slo_attainment: float = metric(
        "Share of batches served before their deadlines; NaN where none was.", best="max"
    )
    loss_mean_nat: float = metric("Mean loss per token, nat; NaN where none was served.", best="min")
    overspent_nat: float = metric(
        "Mean loss above the budget, nat; NaN where no token was served.", best="min"
    )
    on_time_relative: float = metric("Weight on time, over that of an episode of mean batches.")
    late_relative: float = metric("Weight too late, over that of an episode of mean batches.")
    excess_relative: float = metric(
        "Weight times nat above the limit of the class, over the weight of an episode of mean batches."
    )
    overspent_budgets: float = metric("Mean loss above the budget at the end of the episode, in budgets.")
    e2e_p50_s: float = metric("Median time from arrival to end, seconds; NaN where no batch was served.")
    e2e_p99_s: float = metric(
        "99th percentile of that time, seconds; NaN where no batch was served.", best="min"
    )
    exact_share: float = metric("Share of tokens served at no loss; NaN where none was served.")
    throughput_tokens_per_s: float = metric("Tokens served a second; NaN over no time.")
    utilization: float = metric("Share of time in which the GPU worked; NaN over no time.")
    energy_j: float = metric("Energy of the GPU while it worked, joules.")
    energy_relative: float = metric(
        "Energy of the GPU while it worked, over that of an episode of mean batches without loss."
    )
    batches: float = metric("Batches that were served.")
    deferrals: float = metric("Times that the head was deferred.")
    penalty: float = metric("What masked actions cost.")
    invalid_actions: float = metric("Masked actions.")
    duration_s: float = metric("Simulated time, seconds.")
    world_checksum: float = metric("Sum of all that was drawn, whatever was decided.")


class State(NamedTuple):
    """Arrays of AttentionBudget; the first axis is the lane.

    Attributes:
        lane: the episodes, [lanes].
        batch: the batches in the order of their arrival, [lanes, batches].
        scratch: room for latencies while metrics are taken, float32 [lanes, batches].
    """

    lane: Records[Episode]
    batch: Records2[Batch]
    scratch: NDArray[np.float32]


class Params(NamedTuple):
    """What all lanes of AttentionBudget share.

    Attributes:
        config: the settings, [1].
        tables: the menu.
        splits: parts of a batch that can be chosen, int32 [splits].
        quantiles: lengths of prompts at even probabilities, tokens, float64 [knots].
        limits: largest loss of each class, nat, float64 [classes].
        running: running probabilities of the classes, float64 [classes].
    """

    config: Records[Config]
    tables: Tables
    splits: NDArray[np.int32]
    quantiles: NDArray[np.float64]
    limits: NDArray[np.float64]
    running: NDArray[np.float64]
