"""What AFDRatio keeps, shows and measures: the records, arrays and constants of its compiled functions."""

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

MEANFIELD, GAUSSIAN, SLOT_LEVEL, PIPELINE = 0, 1, 2, 3
"""How an epoch passes; from `SLOT_LEVEL` on there are slots."""
ABSOLUTE, DELTA = 0, 1
"""What an action is: a ratio, or a step on the grid of ratios."""
MOST_SHOWN = 4.0
"""Observed numbers that have no bound of their own are cut here, in units of what they are divided by."""
LOG2_MOST_BATCH = 16.0
"""The largest B is 2^16."""


class Episode(Record):
    """One lane of AFDRatio."""

    key: np.uint64 = uint64("Seeds everything that is drawn.")
    epoch: int = int32("Epochs that have passed.")
    choice: int = int32("Index of the ratio.")
    built: int = int32("1 after the first decision, which builds the first bundle; 0 before.")
    workers: int = int32("x: attention instances that take requests.")
    ffn: int = int32("y: FFN instances.")
    paid: int = int32("Instances of the last cycle, those that drain included.")
    turn: int = int32("Microbatch that takes the next step.")
    switches: int = int32("Changes of the ratio.")
    invalid: int = int32("Masked actions that were taken.")
    seen: int = int32("Requests in the window of finished ones.")
    newest: int = int32("Row of the window that the next finished request goes to.")
    cycle: int = int64("Steps of any microbatch.")
    taken: int = int64("Requests drawn from the backlog.")
    completed: int = int64("Requests that are done.")
    demand_steps: int = int64("Steps that the requests drawn still had to come when they were placed.")
    tokens: int = int64("Tokens produced by requests in slots.")
    done_tokens: int = int64("Tokens produced by the requests that are done.")
    early_tokens: int = int64("Tokens produced by the first 80 % of `stop` completions.")
    early: float = float64("Time at which the last of the first 80 % of `stop` completions was done, cycles.")
    timed: int = int64("Completions whose whole stay was seen.")
    tpot: float = float64("Sum of the times per token of the completions whose whole stay was seen, cycles.")
    clock: float = float64("Simulated time, cycles.")
    ffn_free: float = float64("Time at which the FFN is free, cycles.")
    first_law: int = int32("Number of the law in the first epoch.")
    tau: float = float64("Mean time of a cycle in the last epoch, cycles.")
    idle_attention: float = float64("Idle share of the attention instances in the last epoch.")
    idle_ffn: float = float64("Idle share of the FFN in the last epoch.")
    load_mean: float = float64("Tokens of an attention instance over B at the end of the last epoch, mean.")
    load_max: float = float64("Tokens of the fullest microbatch over B at the end of the last epoch.")
    bound_attention: float = float64("Share of the last epoch's cycles in which attention took longest.")
    bound_comm: float = float64("Share of the last epoch's cycles in which communication took longest.")
    relative: float = float64("Sum over the epochs: throughput over the best of the first law.")
    instance_time: float = float64("Sum over the cycles and changes: instances that are paid for x cycles.")
    output: float = float64("Tokens produced, also where requests have no slots.")
    cycle_time: float = float64("Time that cycles took, changes of the ratio left out, cycles.")
    excess: float = float64("Sum over the cycles: slowest less mean attention, cycles.")
    load_sum: float = float64("Sum over the cycles: mean tokens of a slot.")
    attention_idle_sum: float = float64("Sum over the epochs: idle share of attention x cycles.")
    ffn_idle_sum: float = float64("Sum over the epochs: idle share of the FFN x cycles.")
    bound_attention_sum: float = float64("Cycles in which attention took longest.")
    bound_comm_sum: float = float64("Cycles in which communication took longest.")
    switch_time: float = float64("Time that changes of the ratio took, cycles.")
    ratio_sum: float = float64("Sum over the epochs: attention over FFN instances.")
    penalty: float = float64("What masked actions cost.")
    checksum: float = float64("A number of the world, equal for equal worlds.")
    sum_prompt: int = int64("Sum over the window: prompt, tokens.")
    sum_steps: int = int64("Sum over the window: steps.")
    sum_load: int = int64("Sum over the window: tokens x steps.")
    sum_square: int = int64("Sum over the window: tokens^2 x steps.")


class Worker(Record):
    """One attention instance."""

    free: float = float64("Time at which it can begin the next microbatch, cycles.")
    occupied: int = int32("Slots that hold a request, of all its microbatches.")


class Microbatch(Record):
    """One of the microbatches in flight."""

    back: float = float64("Time at which its tokens are back at attention, cycles.")
    tick: int = int32("Steps that it has taken.")


class Past(Record):
    """One epoch that has passed, for pictures."""

    ratio: float = float32("Attention over FFN instances.")
    relative: float = float32("Throughput over the best of the first law.")
    idle_attention: float = float32("Idle share of the attention instances.")
    idle_ffn: float = float32("Idle share of the FFN.")
    theta: float = float32("Mean tokens of a slot under the law of the epoch.")
    tau: float = float32("Mean time of a cycle, cycles.")


class Config(Record):
    """The settings of AFDRatio as its compiled functions read them."""

    mode: int = int32("How an epoch passes: MEANFIELD, GAUSSIAN, SLOT_LEVEL or PIPELINE.")
    action: int = int32("What an action is: ABSOLUTE or DELTA.")
    batch: int = int32("B: requests of a microbatch of one attention instance.")
    batches: int = int32("m: microbatches in flight.")
    workers: int = int32("Most attention instances of any ratio.")
    cycles: int = int32("Cycles of an epoch.")
    epochs: int = int32("Epochs of an episode.")
    stop: int = int32("Completions per attention instance that end an episode; 0: none do.")
    stationary: int = int32("1: the first bundle has slots as in the long run; 0: new requests.")
    aggregate: int = int32("1: communication grows with all requests of the FFN; 0: with B.")
    initial: int = int32("Index of the ratio before the first decision.")
    stride: int = int32("Cycles between two draws of the Gaussian loads.")
    window: int = int32("Finished requests that theta and nu are estimated from.")
    switch_chance: float = float64("Chance that the law changes with an epoch.")
    spread: float = float64("Share by which the coefficients of an episode differ at most.")
    switch_cost: float = float64("Time that a change of the ratio takes, cycles.")
    invalid_cost: float = float64("What a masked action costs.")
    cycle_s: float = float64("Length of a cycle, seconds.")
    ratio_scale: float = float64("Largest ratio.")
    instance_scale: float = float64("Most instances, of attention and of the FFN.")
    theta_ref: float = float64("Largest theta of the laws, tokens.")
    nu_ref: float = float64("Largest nu of the laws, tokens, at least 1.")
    prompt_ref: float = float64("Largest mean prompt of the laws, tokens, at least 1.")
    steps_ref: float = float64("Largest mean steps of the laws.")
    tau_ref: float = float64("t_A at the largest theta, cycles.")
    throughput_ref: float = float64("Best throughput of any law, tokens per cycle and instance.")


class Observation(Record):
    """What an agent sees of AFDRatio."""

    ratio: float = shown("attention over FFN instances; 0 before the first decision", unit="largest")
    instances: float = shown(
        "instances that are paid for, those that drain included", unit="most", high=1.0001
    )
    load_mean: float = shown(
        "tokens of a slot at the end of the epoch, mean over the attention instances",
        unit="theta_ref",
        high=MOST_SHOWN,
        name="load.mean",
    )
    load_max: float = shown(
        "tokens of a slot at the end of the epoch in the microbatch that has most",
        unit="theta_ref",
        high=MOST_SHOWN,
        name="load.max",
    )
    tau: float = shown("time of a cycle in the last epoch", unit="tau_ref", high=MOST_SHOWN)
    throughput: float = shown("r B / ((r + 1) tau) of the last epoch", unit="throughput_ref", high=MOST_SHOWN)
    idle_attention: float = shown(
        "idle time of attention instances in the last epoch", unit="share", name="idle.attention"
    )
    idle_ffn: float = shown("idle time of FFN instances in the last epoch", unit="share", name="idle.ffn")
    bound_attention: float = shown(
        "cycles of the last epoch in which attention took longest", unit="share", name="bound.attention"
    )
    bound_comm: float = shown(
        "cycles of the last epoch in which communication took longest",
        unit="share",
        name="bound.communication",
    )
    bound_ffn: float = shown(
        "cycles of the last epoch in which the FFN took longest", unit="share", name="bound.ffn"
    )
    prompt_mean: float = shown(
        "mean prompt of the requests in the window", unit="prompt_ref", high=MOST_SHOWN, name="prompt.mean"
    )
    steps_mean: float = shown(
        "mean steps of the requests in the window", unit="steps_ref", high=MOST_SHOWN, name="steps.mean"
    )
    theta: float = shown(
        "mean tokens of a slot, estimated from the window", unit="theta_ref", high=MOST_SHOWN
    )
    nu: float = shown(
        "standard deviation of the tokens of a slot, estimated from the window",
        unit="nu_ref",
        high=MOST_SHOWN,
    )
    coefficients: NDArray[np.float32] = shown(
        "alpha_A, beta_A, alpha_F, beta_F, alpha_C, beta_C of this episode", unit="nominal", high=2, size=6
    )
    batch: float = shown("B, requests of a microbatch of one attention instance", unit="log2 / 16")
    reference: float = shown("throughput that a reward of 1 stands for", unit="throughput_ref", high=1.0001)


class Metrics(Record):
    """What AFDRatio measures.

    A cycle is bound by what takes longest in it. The time per token counts from a request's entry into its slot, where the first
    token of its prefill is already there, over the tokens after that.
    """

    relative_throughput: float = metric(
        "Mean over the epochs of the throughput over the best of the first law; NaN before the first epoch.",
        best="max",
    )
    throughput_tokens_per_cycle: float = metric(
        "Tokens produced per cycle and instance that is paid for; NaN before the first epoch."
    )
    throughput_tokens_per_s: float = metric(
        "Tokens produced per second and instance that is paid for; NaN before the first epoch.", best="max"
    )
    thr80_tokens_per_cycle: float = metric(
        "Tokens of the first 80 % of `stop` completions, per cycle and instance; NaN before these are done, without `stop` and "
        "without slots."
    )
    tpot_mean_s: float = metric(
        "Mean time per output token, seconds; NaN where no request that began in the episode is done, and without slots before "
        "the first epoch.",
        best="min",
    )
    tau_mean_cycles: float = metric("Mean time of a cycle, cycles; NaN before the first epoch.")
    barrier_excess_cycles: float = metric(
        "Mean over the cycles of slowest less mean attention, cycles; NaN before the first epoch."
    )
    load_mean_tokens: float = metric("Mean tokens of a slot over the cycles; NaN before the first epoch.")
    idle_attention: float = metric("Idle share of attention; NaN before the first epoch.", best="min")
    idle_ffn: float = metric("Idle share of the FFN; NaN before the first epoch.", best="min")
    bound_attention: float = metric("Share of cycles bound by attention; NaN before the first epoch.")
    bound_communication: float = metric("Share of cycles bound by communication; NaN before the first epoch.")
    bound_ffn: float = metric("Share of cycles bound by the FFN; NaN before the first epoch.")
    ratio_mean: float = metric(
        "Mean over the epochs of attention over FFN instances; NaN before the first epoch.", best="min"
    )
    instances_mean: float = metric("Mean instances paid for, over time; NaN before the first epoch.")
    switches: float = metric("Changes of the ratio.", best="min")
    switch_time_s: float = metric("Time that changes of the ratio took, seconds.")
    completed: float = metric("Requests that are done; 0 without slots.")
    output_tokens: float = metric("Tokens produced.")
    epochs: float = metric("Epochs that have passed.")
    penalty: float = metric("What masked actions cost.")
    invalid_actions: float = metric("Masked actions that were taken.")
    duration_s: float = metric("Simulated time, seconds.")
    world_checksum: float = metric("A number of the world, equal for equal worlds.")


class State(NamedTuple):
    """Arrays of AFDRatio; first axis = lane. Table `x * workers + i` is microbatch x of attention instance i.

    Attributes:
        lane: [lanes].
        worker: [lanes, workers].
        microbatch: [lanes, batches].
        table: [lanes, batches * workers].
        slot: [lanes, batches * workers, B].
        wheel: int32 [lanes, batches * workers, buckets].
        coefficients: float64 [lanes, 6], alpha_A, beta_A, alpha_F, beta_F, alpha_C, beta_C of this episode.
        window: int32 [lanes, window, 2], prompt and steps of the requests that finished last.
        law: int32 [lanes, epochs], number of the law in each epoch.
        history: [lanes, epochs], for pictures.
    """

    lane: Records[Episode]
    worker: Records2[Worker]
    microbatch: Records2[Microbatch]
    table: Records2[Table]
    slot: Records3[Slot]
    wheel: NDArray[np.int32]
    coefficients: NDArray[np.float64]
    window: NDArray[np.int32]
    law: NDArray[np.int32]
    history: Records2[Past]


class Params(NamedTuple):
    """What all lanes of AFDRatio share.

    Attributes:
        config: [1], the settings.
        ratios: int32 [ratios, 2], attention and FFN instances of each action.
        law: [laws], of the requests.
        requests: int32 [rows, 2], prompt and steps.
        until: int64 [rows], running sums of the steps of each law.
        coefficients: float64 [6], before they are varied.
    """

    config: Records[Config]
    ratios: NDArray[np.int32]
    law: Records[Law]
    requests: NDArray[np.int32]
    until: NDArray[np.int64]
    coefficients: NDArray[np.float64]
