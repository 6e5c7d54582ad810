"""What PipeSDNav and PipeSDTune keep, are told and measure: the records, arrays and constants of their compiled functions."""

import math
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
    uint64,
)
from llmgym.envs.pipesd.bandwidth import Law
from llmgym.envs.pipesd.draft_tokens import Cursor, Packed
from llmgym.envs.pipesd.estimates import Estimate, Log
from llmgym.envs.pipesd.uplink import Batch, Uplink

NEVER = math.inf
CONTINUE, UPLOAD, VERIFY = 0, 1, 2
"""What can be done after a drafted token."""
DRAFTING, WAITING, DONE = 0, 1, 2
"""Phases of a client."""
NO_GUESS, WRONG, RIGHT = 0, 1, 2
"""What a client's guess of the target's own token is."""
OUTPUT, ACCEPTED = 0, 1
"""What counts as a token that was made."""
RECENT = 4
"""Confidences of a client that are remembered."""
INTERVALS = 512
"""Activities of a lane that are remembered for pictures."""
DRAFT, GUESS, AHEAD, SEND, ASK, CHECK, PROMOTED, DROPPED = range(8)
"""Activities that pictures show: drafting, guessing the target's token, drafting ahead, uploads, uploads with a request,
verification, and what became of the waiting tokens."""


class Episode(Record):
    """One lane: the cloud, the clock, and the thresholds of PipeSDTune."""

    clock_s: float = float64("Simulated time, seconds.")
    cloud_free_s: float = float64("Time at which the cloud has verified what reached it, seconds.")
    cloud_busy_s: float = float64("Time that the cloud's verifications take, seconds.")
    client_s: float = float64(
        "Time from the first token until a client was done, or until now, mean over clients, seconds."
    )
    energy_j: float = float64("Energy of the cloud's verifications, joules.")
    penalty: float = float64("Price of the masked actions so far.")
    checksum: float = float64("Number that tells worlds apart.")
    turn: int = int32("Client whose token was drafted last; -1 when all are done.")
    invalid: int = int32("Masked actions so far.")
    intervals: int = int64("Activities that were remembered so far.")
    steps: int = int64("Steps of PipeSDTune so far.")
    mark_s: float = float64("Time at which the running step of PipeSDTune began, seconds.")
    step_tpt_s: float = float64("Time per token of the last step of PipeSDTune, seconds.")
    tpt_sum_s: float = float64("Sum of the times per token of the steps of PipeSDTune, seconds.")
    step_acceptance: float = float64("Accepted share of the tokens judged in the last step of PipeSDTune.")
    step_length: float = float64("Mean draft judged in the last step of PipeSDTune, tokens.")
    held: int = int64("Steps of PipeSDTune with the thresholds of the last one.")
    moves: int = int64("Steps of PipeSDTune with other thresholds than the step before.")
    sequence: float = float64("Threshold R_1 of the product of confidences in the last step of PipeSDTune.")
    token: float = float64("Threshold R_2 of a confidence in the last step of PipeSDTune.")


class Client(Record):
    """One client: its draft, what it awaits from the cloud, and its counts.

    Its draft is the tokens since the last request; while it waits, the tokens after the guess.
    """

    key: np.uint64 = uint64("Seeds the text and the drafting times.")
    phase: int = int32("DRAFTING, WAITING or DONE.", blank=DRAFTING)
    stopped: int = int32(
        "Whether a verdict on the waiting tokens is to be asked for as soon as they are promoted, 0 or 1."
    )
    token_s: float = float64("Time at which the next token will be drafted, seconds.", blank=NEVER)
    took_s: float = float64("Time that the token which is being drafted takes, seconds.")
    arrival_s: float = float64("Time at which the request will reach the cloud, seconds.", blank=NEVER)
    verdict_s: float = float64("Time at which the verdict will reach the client, seconds.", blank=NEVER)
    request_s: float = float64("Time of the last request, seconds.")
    arrived_s: float = float64("Time at which the last request reached the cloud, seconds.")
    block: int = int32("Tokens of the draft.")
    sent: int = int32("Tokens of the draft that were put on the uplink.")
    rejected: int = int32(
        "Number of the first token of the draft that will not be accepted, or -1.", blank=-1
    )
    product: float = float64("Product C_1 of the confidences of the draft.", blank=1.0)
    confidence: float = float64("Confidence P(D_n) of the newest token.", blank=1.0)
    recent: NDArray[np.float32] = float32("Last values of -ln P, the newest first.", shape=RECENT)
    guess: int = int32("NO_GUESS, WRONG or RIGHT.", blank=NO_GUESS)
    guessed: float = float64("The -ln P of the guess.")
    awaited: int = int32("Tokens at the cloud.")
    awaited_rejected: int = int32(
        "Number of the first token at the cloud that will not be accepted, or -1.", blank=-1
    )
    awaited_product: float = float64("Product of the confidences of the tokens at the cloud.", blank=1.0)
    last: int = int32("Tokens of the last verdict.")
    last_accepted: int = int32("Accepted tokens of the last verdict.")
    last_product: float = float64("Product of the confidences of the tokens of the last verdict.", blank=1.0)
    last_s: float = float64("Time from the arrival of the last request at the cloud to its verdict, seconds.")
    verdicts: int = int32("Verdicts since the client's last turn.")
    made: int = int64("Tokens that count towards the end of the episode.")
    finish_s: float = float64("Time at which the client was done, seconds.")
    output: int = int64("Tokens of the text so far: those accepted, and one of the target for each verdict.")
    accepted: int = int64("Accepted tokens so far.")
    judged: int = int64("Drafted tokens that got a verdict so far.")
    drafted: int = int64("Tokens drafted so far, guesses included.")
    guesses: int = int64("Guesses so far.")
    promoted: int = int64("Waiting tokens that were promoted so far.")
    dropped: int = int64("Waiting tokens that were dropped so far.")
    wasted: int = int64("Dropped tokens that were uploaded.")
    requests: int = int64("Verdicts that were asked for so far.")
    verdicts_all: int = int64("Verdicts so far.")
    rollbacks: int = int64("Verdicts so far that rejected a token.")
    uploads: int = int64("Batches that were put on the uplink so far.")


class Interval(Record):
    """An activity that is remembered for pictures."""

    activity: int = int32("DRAFT, GUESS, AHEAD, SEND, ASK, CHECK, PROMOTED or DROPPED.")
    client: int = int32("Number of the client.")
    tokens: int = int32("Tokens that the activity is about.")
    start_s: float = float64("Time at which it begins, seconds.")
    end_s: float = float64("Time at which it ends, seconds.")


class Config(Record):
    """What a scenario and the arguments of an environment come to."""

    clients: int = int32("Clients that share the cloud.")
    proactive: int = int32("Whether a client drafts while it waits, 0 or 1.")
    count: int = int32("What counts as a token that was made: OUTPUT or ACCEPTED.")
    tokens: int = int64("Tokens that each client makes in an episode.")
    max_draft: int = int32("Tokens of a draft at most.")
    change_at: int = int64("Tokens that a client makes until its speeds change.")
    change_gamma: float = float64("Factor of the drafting time after the change.")
    change_rate: float = float64("Factor of the bandwidth after the change.")
    gamma_s: float = float64("Time to draft a token, seconds.")
    gamma_wait_s: float = float64("Time to draft a token while a verdict is awaited, seconds.")
    gamma_jitter: float = float64("Standard deviation of ln(seconds) of a token.")
    alpha_s: float = float64("Time to start an upload, seconds.")
    token_mb: float = float64("Size of a token on the uplink, MB.")
    verify_s: float = float64("Time of a verification, seconds.")
    verify_token_s: float = float64("Time that each token adds to a verification, seconds.")
    downlink_s: float = float64("Time that a verdict takes to the client, seconds.")
    energy_weight: float = float64("Price of a joule, in units of reward.")
    invalid_cost: float = float64("Price of a masked action, in units of reward.")
    step_tokens: int = int32("Tokens that each client makes in a step of PipeSDTune.")
    steps: int = int32("Steps of an episode of PipeSDTune.")


class Metrics(Record):
    """What is measured of an episode.

    `tpt_ms` is the paper's time per token: since the beginning, over all tokens of a client (TPOT would leave out the first).
    """

    tpt_ms: float = metric(
        "Time per token, mean over clients, ms; NaN while a client has no token.", best="min"
    )
    duration_s: float = metric("Length of the episode, s.")
    client_mean_s: float = metric("Mean time of a client from the first token on, s.")
    output_tokens: float = metric("Accepted tokens, and one of the target for each verdict.")
    accepted_tokens: float = metric("Drafted tokens that were accepted.")
    nav_per_token: float = metric("Verdicts for each output token; NaN without output.", best="min")
    draft_mean_tokens: float = metric(
        "Mean length of a judged draft, tokens; NaN before the first verdict.", best="max"
    )
    accepted_mean_tokens: float = metric("Mean accepted tokens of a verdict; NaN before the first.")
    acceptance: float = metric(
        "Accepted share of the judged tokens; NaN before the first verdict.", best="max"
    )
    rollback_rate: float = metric("Share of verdicts that rejected a token; NaN before the first.")
    energy_j: float = metric("Energy of the cloud's verifications, J.")
    ecs_j_per_100_tokens: float = metric(
        "Energy of the cloud for 100 output tokens, J; NaN without output.", best="min"
    )
    promoted_tokens: float = metric("Tokens drafted while waiting that became the beginning of a draft.")
    dropped_tokens: float = metric("Tokens drafted while waiting that were dropped.")
    uploads: float = metric("Batches that were put on the uplinks.")
    upload_wasted_share: float = metric(
        "Share of the uploaded tokens that were dropped; NaN before a token was uploaded.", best="min"
    )
    link_utilisation: float = metric("Share of the time in which an uplink was busy; NaN over no time.")
    cloud_utilisation: float = metric("Share of the time in which the cloud was busy; NaN over no time.")
    plans: float = metric("Plans of batches that were made.")
    penalty: float = metric("Price of the masked actions.")
    invalid_actions: float = metric("Masked actions.")
    world_checksum: float = metric("Number that tells worlds apart.")


class State(NamedTuple):
    """Arrays of a cloud and its clients; first axis = lane.

    Attributes:
        lane: records [lanes].
        client: records [lanes, clients].
        cursor: where drafting is in the text, records [lanes, clients].
        link: uplinks, records [lanes, clients].
        line: batches in line on the uplinks, records [lanes, clients, places], each a ring.
        rates: bandwidths, float32 [lanes, clients, seconds], MB/s.
        estimate: what the edges have measured, records [lanes, clients].
        log: what the edges remember of it, records [lanes, clients, 100].
        ends: plans of batches, int32 [lanes, clients, tokens].
        work: intermediate results of planning, float64 [lanes, tokens].
        interval: activities for pictures, records [lanes, 512], a ring.
    """

    lane: Records[Episode]
    client: Records2[Client]
    cursor: Records2[Cursor]
    link: Records2[Uplink]
    line: Records3[Batch]
    rates: NDArray[np.float32]
    estimate: Records2[Estimate]
    log: Records3[Log]
    ends: NDArray[np.int32]
    work: NDArray[np.float64]
    interval: Records2[Interval]


class Params(NamedTuple):
    """What all lanes share.

    Attributes:
        config: record [1].
        text: the source of tokens.
        law: of the bandwidth, record [1].
        levels: of the bandwidth, float32 [levels], MB/s.
    """

    config: Records[Config]
    text: Packed
    law: Records[Law]
    levels: NDArray[np.float32]
