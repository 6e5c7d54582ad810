"""What SegmentedPrefill keeps, shows and measures, and what its compiled functions are told."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmgym.core.records import Record, Records, Records2, float64, int8, int32, int64, metric, shown, uint64
from llmgym.envs.segmented.modes import Mode

WAITING, PREFILL, DECODE, DONE, REJECTED, LOST = 0, 1, 2, 3, 4, 5
"""Where a request is; before its arrival it is waiting, too."""
ADMIT, RUN, EVICT, REJECT, DECODING, WAIT = 0, 1, 2, 3, 4, 5
"""Kinds of actions, in the order of the first entries of a candidate's row."""
KINDS = 6
ROW = (
    "admit",
    "run",
    "evict",
    "reject",
    "decode",
    "wait",
    "prompt",
    "done",
    "rest",
    "step",
    "left",
    "value",
    "quality",
    "shortfall",
    "peak",
    "kept",
    "room",
    "spare",
)
"""Entries of a candidate's row; the docstring of `SegmentedPrefillEnv` says what they are."""
FEATURES = len(ROW)
CROWD = 8.0
"""Numbers of requests are shown as n / (n + 8)."""
MOST_OCTAVES = 20.0
"""The longest prompt has 2^20 tokens."""
NEVER = -1.0
DECODE_PRESSURE = 0.6
"""Share of the limit on later tokens from which the server that works first in, first out decodes; below it, prompts go first."""

_UNIT = "x / (1 + x), x in mean prefills"
_CROWDED = "n / (n + 8)"


class Episode(Record):
    """One lane of SegmentedPrefill."""

    key: np.uint64 = uint64("Seeds everything that is drawn.")
    oldest: int = int32("Number of the oldest request that is not finished.")
    admitted: int = int32("Requests in `slot`.")
    lost: int = int32("Requests lost as memory ran out.")
    rejected: int = int32("Requests that were rejected.")
    done: int = int32("Requests that are done.")
    forfeited: int = int32("Requests that were open when the episode was cut.")
    evicted: int = int32("Times that a request lost its place.")
    invalid: int = int32("Masked actions.")
    steps: int = int32("Steps of prefill.")
    resident_bytes: int = int64("Memory that requests hold between steps, bytes.")
    peak_bytes: int = int64("The most that requests held at once, bytes.")
    clock_s: float = float64("Simulated time, seconds.")
    busy_s: float = float64("Time of prefill and decoding, seconds.")
    decoded_s: float = float64("Time of the end of the last step of decoding, seconds.")
    since_decode_s: float = float64("Time of prefill since then, seconds.")
    value: float = float64("Value of the requests that are done.")
    shortfall: float = float64("What their answers lack in quality, summed.")
    held_gib_s: float = float64("Memory that requests held, summed over time, GiB s.")
    prompt_tokens: int = int64("Tokens prefilled, those that were lost again too.")
    output_tokens: int = int64("Tokens decoded, first ones included.")
    penalty: float = float64("What masked actions have cost.")
    checksum: float = float64("Sum of all that was drawn.")


class Request(Record):
    """One request."""

    arrival_s: float = float64("Time of its arrival, seconds.")
    limit_s: float = float64("Limit on the time to its first token, seconds.")
    quality: float = float64("Least quality that it wants, over that of full attention.")
    first_s: float = float64("Time of its first token, seconds; -1 before.", blank=NEVER)
    end_s: float = float64("Time of its last token, seconds; -1 before.", blank=NEVER)
    prompt: int = int32("Tokens of its prompt.")
    output: int = int32("Tokens of its output.")
    done: int = int32("Tokens of its prompt that are done.")
    made: int = int32("Tokens of its output that are made.")
    mode: int = int8("Its mode, -1 where it has none.", blank=-1)
    status: int = int8("Where it is: one of `WAITING` to `LOST`.")
    evictions: int = int8("Times that it lost its place.")
    group: int = int8("Its class.")


class Past(Record):
    """One step of prefill or decoding, for pictures."""

    begin_s: float = float64("Its begin, seconds.")
    end_s: float = float64("Its end, seconds.")
    held_bytes: int = int64("Memory that requests held meanwhile, bytes.")
    request: int = int32("The request that was prefilled; -1: a step of decoding; -2: one that was lost.")
    mode: int = int32("The mode of that request.")


class Config(Record):
    """Settings that the compiled functions read."""

    all: int = int32("1: everything is decided; 0: the mode alone.")
    requests: int = int32("Requests of an episode.")
    modes: int = int32("Modes to choose from.")
    paper: int = int32("Row of the paper's mode, after those to choose from.")
    window: int = int32("Oldest waiting requests that can be admitted.")
    seats: int = int32("Requests that are admitted at once.")
    classes: int = int32("Classes of requests.")
    evictions: int = int32("Times that a request can lose its place.")
    most_lost: int = int32("Requests lost at which an episode is cut.")
    output_most: int = int32("Longest output, tokens.")
    decode_tokens: int = int32("Tokens of a step of decoding for each request, at most.")
    weights_bytes: int = int64("Weights of the model, bytes.")
    room_bytes: int = int64("Memory of the card beside the weights, bytes.")
    bytes_per_s: float = float64("Read in decoding, bytes a second.")
    rate_rps: float = float64("Arrivals a second.")
    unit_s: float = float64("Mean time of a prefill in the paper's mode, seconds.")
    limit_s: float = float64("Added to every limit on the time to the first token, seconds.")
    tpot_limit_s: float = float64(
        "Limit on the mean time of a later token, seconds; infinite where there is none."
    )
    quality_weight: float = float64("Cost of each unit of quality that an answer lacks.")
    memory_weight: float = float64("Cost of memory held, 1/(GiB s).")
    lost_cost: float = float64("Cost of a lost request.")
    reject_cost: float = float64("Cost of a rejected request.")
    invalid_cost: float = float64("Cost of a masked action.")
    horizon_s: float = float64("Time at which an episode is cut, seconds.")
    load: float = float64("Arrivals over what the paper's mode could prefill.")


class Observation(Record):
    """What SegmentedPrefill shows before the rows of the candidates."""

    waiting: float = shown("requests that wait", unit=_CROWDED)
    prefilling: float = shown("admitted requests whose prompt is not done", unit=_CROWDED)
    decoding: float = shown("requests that decode", unit=_CROWDED)
    seats: float = shown("admitted requests", unit="of `slots`", name="slots")
    held: float = shown("memory that requests hold", unit="of what the weights leave")
    growth: float = shown(
        "further memory that admitted requests are going to keep", unit="of what the weights leave"
    )
    backlog: float = shown("prefill that admitted requests still need", unit=_UNIT)
    queue_age: float = shown("time that the oldest waiting request has waited", unit=_UNIT, name="queue.age")
    since_decode: float = shown("prefill since the last step of decoding", unit=_UNIT, name="decode.since")
    decode_s: float = shown(
        "time of one token of decoding", unit="x / (1 + x), x in 0.1 s", name="decode.step"
    )
    pressure: float = shown(
        "mean time of a token so far over its limit, of the decoding request that is worst off",
        unit="x / (1 + x)",
        name="decode.pressure",
    )
    lost: float = shown("lost requests", unit="of `most_lost`")
    finished: float = shown("requests that are done, rejected or lost", unit="of the episode")
    arrived: float = shown("requests that have arrived", unit="of the episode")
    load: float = shown("arrivals over what the paper's mode could prefill", unit="x / (1 + x)")


class Metrics(Record):
    """Metrics of an episode of SegmentedPrefill."""

    value: float = metric(
        "Sum over requests that are done of 1, less what they were late, from -1 on.", best="max"
    )
    slo_attainment: float = metric(
        "Share of finished requests that were done in time, first and later tokens; NaN where none is finished.",
        best="max",
    )
    good_share: float = metric(
        "Share of finished requests that were done in time with the quality they want; NaN where none is finished.",
        best="max",
    )
    ttft_mean_s: float = metric("Mean time to first token, seconds; NaN where there was none.", best="min")
    ttft_p50_s: float = metric("Median time to first token, seconds; NaN where there was none.")
    ttft_p99_s: float = metric(
        "99th percentile of the time to first token, seconds; NaN where there was none.", best="min"
    )
    tpot_mean_s: float = metric(
        "Mean over requests of the mean time of a later token, seconds; NaN where none is done."
    )
    e2e_mean_s: float = metric("Mean time from arrival to the last token, seconds; NaN where none is done.")
    quality_mean: float = metric(
        "Mean score over that of full attention; NaN where none is done.", best="max"
    )
    shortfall: float = metric("Sum over requests that are done of the quality that they lack.")
    peak_memory_gib: float = metric("The most memory in use at once, with the weights, GiB.", best="min")
    memory_gib_s: float = metric("Memory that requests held, summed over time, GiB s.")
    utilization: float = metric("Share of time that the card works; NaN over no time.")
    goodput_rps: float = metric("Requests done in time a second; NaN over no time.", best="max")
    prompt_tokens: float = metric("Tokens prefilled, those that were lost again too.")
    output_tokens: float = metric("Tokens decoded.")
    completed: float = metric("Requests that are done.")
    rejected: float = metric("Requests that were rejected.")
    lost: float = metric("Requests lost as memory ran out.")
    forfeited: float = metric("Requests that were open when the episode was cut.")
    evicted: float = metric("Times that a request lost its place.")
    penalty: float = metric("What masked actions cost.")
    invalid_actions: float = metric("Masked actions.")
    duration_s: float = metric("Simulated time, seconds.")
    world_checksum: float = metric("Sum of all that was drawn, whatever was decided.")


class State(NamedTuple):
    """Arrays of SegmentedPrefill; the first axis is the lane.

    Attributes:
        lane: the episodes, [lanes].
        request: the requests in the order of their arrival, [lanes, requests].
        slot: numbers of the admitted requests in the order of their admission, int32 [lanes, slots].
        window: numbers of the oldest waiting requests, -1 where there is none, int32 [lanes, window].
        past: the last steps, [lanes, PAST], as a ring.
        scratch: room for times while metrics are taken, float32 [lanes, requests].
    """

    lane: Records[Episode]
    request: Records2[Request]
    slot: NDArray[np.int32]
    window: NDArray[np.int32]
    past: Records2[Past]
    scratch: NDArray[np.float32]


PAST = 128
"""Steps that a lane remembers for pictures."""


class Params(NamedTuple):
    """What all lanes of SegmentedPrefill share.

    Attributes:
        config: the settings, [1].
        modes: what each mode costs, [modes + 1]; the last is the paper's, by which limits are set.
        classes: cumulative share, least quality and slack of each class, float64 [classes, 3].
        prompts: prompt at evenly spaced probabilities, tokens, float64 [QUANTILES].
        outputs: output at evenly spaced probabilities, tokens, float64 [QUANTILES].
    """

    config: Records[Config]
    modes: Records[Mode]
    classes: NDArray[np.float64]
    prompts: NDArray[np.float64]
    outputs: NDArray[np.float64]
