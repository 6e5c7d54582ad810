"""What the PPD cluster keeps and what it is told: records, arrays and constants of its compiled functions.

Nodes prefill (P), decode (D; pD is one that always prefills later turns itself) or do both (R). A conversation is always in
exactly one stage, so a record for each holds everything about it; a node has lists of conversation numbers.

In all compiled functions `state` are the arrays of all lanes and `params` what these share; `lane`, `n` (`p`, `d`), `c` and `e` are
the numbers of a lane, a node (one that prefills, one that decodes), a conversation and an entry of a cache.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmgym.core.jit import kernel
from llmgym.core.records import Record, Records, Records2, float32, float64, int32, uint64
from llmgym.envs.ppd.links import Link
from llmgym.profiles.cost import StepCost
from llmgym.workloads.traffic import Traffic

P, D, PD, R = 0, 1, 2, 3
ROLES = ("P", "D", "pD", "R")
REMOTE, LOCAL = 0, 1
"""Routes of a request: through a P node (x = 0 in the paper), or where its conversation decodes (x = 1)."""

AWAY, GATE, THINK, UNROUTED, P_WAIT, P_RUN, MOVE, D_WAIT, D_RUN, OVER, FAILED = range(11)
"""Stages: not arrived; waits to be let in; between turns; waits for its route; waits at P; P works on it; on its way to D's
scheduler; waits there; in D's batch; over; ended by a timeout."""

HASHED, LEAST_LOADED = 0, 1
RELATIVE, SLO = 0, 1
PHYSICAL, PAPER = 0, 1
OVERALL, DECISION, TIME = 0, 1, 2
"""Why the clock stopped: everything is over; a later turn waits for its route; the time was reached."""

FAR = 2**31 - 1
"""A tick that no node reaches."""

MOST = 4.0
"""Observations of what has no bound end here, in units of their scale."""
RATE_SCALE_RPS, TIME_SCALE_S, STEP_SCALE_S, WEIGHT_SCALE = 20.0, 10.0, 0.05, 10.0
TURN_SCALE, QUEUE_SCALE, BATCH_SCALE, PREFILL_SCALE, TRANSFER_SCALE = 20.0, 50.0, 256.0, 4096.0, 8.0
"""What observations are divided by: the highest rate of the paper's table, its longest conversation, the connections of its client,
and round numbers."""


class Config(Record):
    """The numbers of a cluster."""

    step_s: float = float64("Time to read the weights, and overhead of a step, seconds.")
    prefill_step_s: float = float64("Overhead of a step with prefill, seconds.")
    prefill_token_s: float = float64("Time to prefill a token, seconds.")
    sequence_s: float = float64("Time of a step for each decoding sequence, seconds.")
    context_token_s: float = float64("Time of a step for each token of context that is read, seconds.")
    replica_sequence_s: float = float64("Time of a step of an R node for each decoding sequence, seconds.")
    replica_context_token_s: float = float64(
        "Time of a step of an R node for each token of context, seconds."
    )
    replica_prefill_token_s: float = float64(
        "Time that a prefill token adds on an R node that decodes, seconds."
    )
    handoff_s: float = float64("Time that P's connector takes for each request, seconds.")
    local_s: float = float64("Time until D's scheduler sees a later turn, seconds.")
    local_rate_s2: float = float64("Time until then for each new conversation a second, square seconds.")
    local_token_s: float = float64("Time until then for each token of context and prompt, seconds.")
    replica_s: float = float64("Time until the scheduler of an R node sees a turn, seconds.")
    remote_s: float = float64("Time from the end of a prefill on P until D's scheduler sees it, seconds.")
    remote_token_s: float = float64("Time from then on for each token, seconds.")
    profiled: int = int32("1: steps cost what a profile says; 0: what the latency law says.")
    nodes: int = int32("Nodes of the cluster.")
    ps: int = int32("P nodes: they come first, and the others decode.")
    chunk: int = int32("Most prefill tokens of a step.")
    seats: int = int32("Most sequences of a batch.")
    kv_capacity: int = int32("Tokens that the cache of a node holds.")
    longest: int = int32("Most tokens of a conversation.")
    max_inflight: int = int32("Most conversations that are let in at once; 0: all.")
    max_turns: int = int32("Most turns of a conversation.")
    answer_kv_hit: int = int32("1: the last answer's KV on D serves the next turn.")
    interference: int = int32("`PHYSICAL` or `PAPER`.")
    placement: int = int32("`HASHED` or `LEAST_LOADED`.")
    average_rate: int = int32("1: the rate is all requests over all time; 0: a moving average.")
    default_output: int = int32("Length of an answer of which nothing is told, tokens.")
    reward: int = int32("`RELATIVE` or `SLO`.")
    shaped: int = int32("1: a turn that completes is charged for how slowly its neighbours decode.")
    bypass: int = int32("Later turns with fewer new tokens are prefilled on D without a look at the table.")
    kv_bytes: float = float64("Size of a token's KV cache, bytes.")
    window_s: float = float64("Conversations arrive until then, seconds.")
    limit_s: float = float64("The episode is cut then, seconds.")
    timeout_s: float = float64("A request that takes longer fails, seconds.")
    think_s: float = float64("Median pause before a later turn, seconds.")
    think_sigma: float = float64("Standard deviation of the logarithm of the pause.")
    rate_window_s: float = float64("Time constant of the moving average of rates, seconds.")
    w_ttft: float = float64("Weight of TTFT in the reward.")
    w_tpot: float = float64("Weight of TPOT in the reward.")
    timeout_cost: float = float64("Cost of a request that times out.")
    invalid_cost: float = float64("Cost of a masked action.")
    ttft_slo_s: float = float64("Objective for TTFT, seconds.")
    tpot_slo_s: float = float64("Objective for TPOT, seconds.")
    epoch_s: float = float64("How long a weight is in force, seconds.")
    epochs: int = int32("Epochs after which an episode is cut.")


class Episode(Record):
    """One lane."""

    clock_s: float = float64("Simulated time, seconds.")
    key: np.uint64 = uint64("Seeds everything that is drawn.")
    conversations: int = int32("Conversations of this episode.")
    next: int = int32("First conversation that has not arrived.")
    gate: int = int32("First conversation that has not been let in.")
    open: int = int32("Conversations that are let in and not over.")
    size: int = int32("Conversations on the heap.")
    current: int = int32("Conversation that waits for its route; -1: none.", blank=-1)
    requests: int = int32("Requests so far.")
    done: int = int32("Requests that have completed.")
    failed: int = int32("Requests that have timed out.")
    later: int = int32("Later turns of the episode.")
    later_requests: int = int32("Later turns that have arrived.")
    later_done: int = int32("Later turns that have completed.")
    later_failed: int = int32("Later turns that have timed out.")
    local: int = int32("Later turns that were prefilled where they decode.")
    met: int = int32("Later turns within both objectives.")
    ttft_missed: int = int32("Later turns over the objective for TTFT.")
    tpot_missed: int = int32("Later turns over the objective for TPOT.")
    invalid: int = int32("Masked actions.")
    evictions: int = int32("Conversations that a cache has thrown out.")
    preemptions: int = int32("Sequences that lost their place in a batch.")
    rate_sum: float = float64("Requests, forgotten exponentially.")
    rate_at_s: float = float64("When that count was brought up to date, seconds.")
    first_sum: float = float64("First turns, forgotten exponentially.")
    first_at_s: float = float64("When that count was brought up to date, seconds.")
    sent: int = int32("Requests that are past the gate.")
    output_tokens: float = float64("Tokens of completed answers.")
    p_tokens: float = float64("Tokens prefilled on P.")
    d_tokens: float = float64("Tokens prefilled where they decode.")
    ttft_gain: float = float64("Sum over completed later turns of what was gained in TTFT, as a share.")
    tpot_loss: float = float64("Sum over completed later turns of what was lost in TPOT, as a share.")
    crowd_loss: float = float64(
        "Sum over completed later turns of what their neighbours lost in TPOT, as a share."
    )
    later_ttft_s: float = float64("Sum of TTFT over completed later turns, seconds.")
    later_tpot_s: float = float64("Sum of TPOT over completed later turns, seconds.")
    penalty: float = float64("Cost of masked actions.")
    paid: float = float64("Reward handed out so far.")
    epoch: int = int32("Epochs so far.")
    weight: int = int32("Number of the weight in force.")
    before_done: int = int32("`later_done` when the epoch began.")
    before_requests: int = int32("`later_requests` when the epoch began.")
    before_local: int = int32("`local` when the epoch began.")
    before_met: int = int32("`met` when the epoch began.")
    before_ttft_missed: int = int32("`ttft_missed` when the epoch began.")
    before_tpot_missed: int = int32("`tpot_missed` when the epoch began.")
    before_failed: int = int32("`failed` when the epoch began.")
    before_ttft_s: float = float64("`later_ttft_s` when the epoch began, seconds.")
    before_tpot_s: float = float64("`later_tpot_s` when the epoch began, seconds.")
    checksum: float = float64("A number that tells one world from another.")


class Node(Record):
    """One node of the cluster."""

    role: int = int32("`P`, `D`, `PD` or `R`.")
    since_s: float = float64("When the last step (or prefill) began, seconds.")
    at_s: float = float64(
        "When the step (or the prefill) ends, seconds; infinite while there is none.", blank=math.inf
    )
    head: int = int32("First of the requests that wait; -1: none.", blank=-1)
    tail: int = int32("Last of the requests that wait.", blank=-1)
    waiting: int = int32("Requests that wait.")
    oldest: int = int32("Least recently used entry of its cache; -1: none.", blank=-1)
    newest: int = int32("Most recently used entry of its cache; -1: none.", blank=-1)
    idle: int = int32("Tokens in the cache that no running request needs.")
    serving: int = int32("Conversation that P works on; -1: none.", blank=-1)
    blocked: int = int32("1: P has finished, but the buffer of its D is full.")
    backlog_s: float = float64("Work of those that wait at P, seconds.")
    running: int = int32("Sequences in the batch.")
    decoding: int = int32("Sequences that decode: the first ones of the batch.")
    active: int = int32("Tokens in the cache of sequences in the batch.")
    context: int = int32("Tokens in the cache of decoding sequences.")
    tick: int = int32("Steps so far: the progress of all that decode.")
    next_finish: int = int32("Nobody completes before this tick.", blank=FAR)
    oldest_request_s: float = float64("No request of the batch is older, seconds.", blank=math.inf)
    admitted: int = int32("Sequences that have entered the batch so far.")
    mean_step_s: float = float64("Moving average of the duration of steps that have ended, seconds.")
    busy_s: float = float64("Time worked, seconds; what is running is booked to its end.")
    steps: int = int32("Steps that have begun.")
    kv_peak: int = int32("Most tokens that were in the cache at once.")


class Conversation(Record):
    """One conversation, with the turn that it is in."""

    arrival_s: float = float64("When the conversation begins, seconds.")
    at_s: float = float64("When `THINK` or `MOVE` ends, seconds.")
    request_s: float = float64("When this turn came, seconds.")
    first_s: float = float64("When the first token of this turn came, seconds; -1: not yet.")
    work_s: float = float64("Work at P, seconds: as reckoned when it began to wait, and anew when P began.")
    later: int = int32("Number of its second turn among the requests.")
    turns: int = int32("Turns in all.")
    turn: int = int32("Turns that have completed.")
    p: int = int32("Its P node; -1: none.")
    d: int = int32("The node where it decodes.")
    stage: int = int32("What it waits for: one of the stages of this module.", blank=AWAY)
    route: int = int32("`REMOTE` or `LOCAL`; -1: none yet.", blank=-1)
    moving: int = int32("1: its KV comes over the link.")
    context: int = int32("Tokens of earlier prompts and answers.")
    prompt: int = int32("New tokens of this turn.")
    output: int = int32("Tokens of this answer.")
    predicted: int = int32("Tokens of this answer, as told to the router; 0: not told.")
    previous: int = int32("Tokens of the last answer.")
    kept: int = int32("Tokens of this answer from before a preemption.")
    left: int = int32("Tokens still to prefill on D.")
    run: int = int32("Tokens that the running step prefills.")
    full: int = int32("1: nothing of it was in D's cache.")
    base: int = int32("Tick of its node before its first token: the answer so far is `tick - base`.")
    finish: int = int32("Tick of its node at which the answer is complete.")
    age: int = int32("Number of its admission to the batch.")
    next: int = int32("Conversation that waits behind it; -1: none.", blank=-1)
    ttft_ref_s: float = float32("TTFT that the reward compares with, seconds.")
    tpot_ref_s: float = float32("TPOT that the reward compares with, seconds.")


class Entry(Record):
    """What a node's cache holds of a conversation; entries that no running request needs are in the node's list."""

    tokens: int = int32("Tokens that are held.")
    older: int = int32("Entry that was used before it; -1: none.", blank=-1)
    newer: int = int32("Entry that was used after it; -1: none.", blank=-1)
    listed: int = int32("1: it is in the list.")


class Request(Record):
    """One turn; the first fields are those that `llmgym.workloads.traffic.draw` writes, under its names.

    The first `conversations` of a lane are first turns, after them come the later ones, conversation by conversation.
    """

    arrival_s: float = float64("When the turn came, seconds.")
    prompt: int = int32("New tokens.")
    output: int = int32("Tokens of the answer.")
    predicted: int = int32("Tokens of the answer, as told to the router; 0: not told.")
    request_class: int = int32("Number of the class that its lengths were drawn from.")
    route: int = int32("`REMOTE` or `LOCAL`; -1: none yet.", blank=-1)
    ttft_s: float = float32("Time to the first token, seconds; -1: not completed.", blank=-1.0)
    e2e_s: float = float32("Time to the last token, seconds; -1: not completed.", blank=-1.0)
    moved_bytes: float = float32("Bytes that went over the link.")


class State(NamedTuple):
    """Arrays of the cluster; first axis = lane.

    Attributes:
        lane: records [lanes].
        node: records [lanes, nodes].
        link: records [lanes, nodes]; link n ends at node n.
        conversation: records [lanes, conversations].
        request: records [lanes, requests].
        cache: records [lanes, 2 conversations], see `p_entry` and `d_entry`.
        running: int32 [lanes, nodes, seats], conversations in the batch of each node, those that decode first.
        heap: int32 [lanes, conversations], those with a time, earliest on top.
        scratch: float32 [lanes, 3, requests], for quantiles.
    """

    lane: Records[Episode]
    node: Records2[Node]
    link: Records2[Link]
    conversation: Records2[Conversation]
    request: Records2[Request]
    cache: Records2[Entry]
    running: NDArray[np.int32]
    heap: NDArray[np.int32]
    scratch: NDArray[np.float32]


class Params(NamedTuple):
    """What all lanes share.

    Attributes:
        config: one record.
        role: int64 [nodes], what each node is.
        links: records [nodes] that have carried nothing.
        cost: what a step costs, where `profiled` is 1.
        opening: arrivals of conversations and lengths of first turns.
        following: lengths of later turns.
        turns: float64 [max_turns], probability that a conversation has at most 1, 2, ... turns.
        rates: float64 [rates], request rates of the table, requests a second.
        reference: float64 [2, contexts, types], TTFT and TPOT (seconds) that rewards compare with; not above 0: reckon them.
        routes: int8 [weights, contexts, types, rates], what the table says.
        weights: float64 [weights].
    """

    config: Records[Config]
    role: NDArray[np.int64]
    links: Records[Link]
    cost: StepCost
    opening: Traffic
    following: Traffic
    turns: NDArray[np.float64]
    rates: NDArray[np.float64]
    reference: NDArray[np.float64]
    routes: NDArray[np.int8]
    weights: NDArray[np.float64]


@kernel(inline=True)
def turn_number(conversation: Conversation, c: int) -> int:
    """Number of the present turn of conversation `c` among the requests of its lane."""
    return conversation.later + conversation.turn - 1 if conversation.turn > 0 else c


@kernel(inline=True)
def p_entry(c: int) -> int:
    """Number of the cache entry of what P holds of conversation `c`."""
    return 2 * c


@kernel(inline=True)
def d_entry(c: int) -> int:
    """Number of the cache entry of what D holds of conversation `c`."""
    return 2 * c + 1


def turn_numbers(state: State, lane: int) -> NDArray[np.int64]:
    """Where the turns of an episode are in `state.request`, int64 [turns]: first turns, then the later ones by conversation."""
    conversations = state.conversation[lane, : state.lane["conversations"][lane]]
    later = [
        np.arange(start, start + turns - 1)
        for start, turns in zip(conversations["later"], conversations["turns"], strict=True)
    ]
    return np.concatenate([np.arange(len(conversations)), *later])
