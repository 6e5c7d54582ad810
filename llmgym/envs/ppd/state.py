"""What the PPD cluster keeps and what it is told: dtypes, arrays and constants of its compiled functions.

Nodes prefill (P), decode (D; pD is one that always prefills later turns itself) or do both (R). A conversation is always in
exactly one stage, so a record for each holds everything about it; a node has lists of conversation numbers.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmgym.profiles.cost import StepCost
from llmgym.workloads.traffic import Traffic

P, D, PD, R = 0, 1, 2, 3
KINDS = ("P", "D", "pD", "R")
REMOTE, LOCAL = 0, 1
"""Routes of a request: through a P node (x = 0 in the paper), or where its conversation decodes (x = 1)."""

AWAY, GATE, THINK, ASKED, P_WAIT, P_RUN, MOVE, D_WAIT, D_RUN, OVER, FAILED = range(11)
"""Stages: not arrived; waits to be let in; between turns; waits for its route; waits at P; P works on it; on its way to D's
scheduler; waits there; in D's batch; over; ended by a timeout."""

HASHED, LEAST_LOADED = 0, 1
RELATIVE, SLO = 0, 1
PHYSICAL, PAPER = 0, 1
OVERALL, DECISION, TIME = 0, 1, 2
"""Why the clock stopped: everything is over; a later turn waits for its route; the time was reached."""

FAR = 2**31 - 1

LATENCY_FIELDS = (
    "step_s",
    "prefill_step_s",
    "prefill_token_s",
    "sequence_s",
    "context_token_s",
    "replica_sequence_s",
    "replica_context_token_s",
    "replica_prefill_token_s",
    "handoff_s",
    "local_s",
    "local_rate_s2",
    "local_token_s",
    "replica_s",
    "remote_s",
    "remote_token_s",
)

NUMBER = np.dtype(
    [
        *((name, "f8") for name in LATENCY_FIELDS),
        ("tables", "i4"),  # 1: steps cost what the profile says, 0: what the latency law says
        ("nodes", "i4"),
        ("ps", "i4"),  # nodes 0..ps-1 are P, the others decode
        ("chunk", "i4"),  # prefill tokens of a step
        ("seats", "i4"),  # sequences of a batch
        ("kv_capacity", "i4"),  # tokens of a node
        ("longest", "i4"),  # tokens a conversation may reach
        ("max_inflight", "i4"),  # conversations let in at once; 0: all
        ("max_turns", "i4"),
        ("answer_kv_hit", "i4"),
        ("interference", "i4"),
        ("placement", "i4"),
        ("average_rate", "i4"),  # 1: the rate is all requests over all time, 0: a moving average
        ("default_output", "i4"),
        ("reward", "i4"),
        ("shaped", "i4"),
        ("bypass", "i4"),
        ("kv_bytes", "f8"),  # of a token
        ("window_s", "f8"),  # conversations arrive until then
        ("limit_s", "f8"),
        ("timeout_s", "f8"),
        ("think_s", "f8"),
        ("think_sigma", "f8"),
        ("rate_window_s", "f8"),
        ("w_ttft", "f8"),
        ("w_tpot", "f8"),
        ("timeout_cost", "f8"),
        ("invalid_cost", "f8"),
        ("ttft_slo_s", "f8"),
        ("tpot_slo_s", "f8"),
        ("epoch_s", "f8"),
        ("epochs", "i4"),
    ],
    align=True,
)

LANE = np.dtype(
    [
        ("clock_s", "f8"),
        ("key", "u8"),
        ("conversations", "i4"),  # of this episode
        ("next", "i4"),  # first that has not arrived
        ("gate", "i4"),  # first that has not been let in
        ("open", "i4"),  # let in and not over
        ("size", "i4"),  # of the heap
        ("current", "i4"),  # conversation that waits for its route; -1
        ("asked", "i4"),  # requests so far
        ("done", "i4"),
        ("failed", "i4"),
        ("later", "i4"),  # later turns of the episode
        ("later_asked", "i4"),
        ("later_done", "i4"),
        ("later_failed", "i4"),
        ("local", "i4"),  # later turns that were prefilled where they decode
        ("met", "i4"),  # later turns within both objectives
        ("ttft_missed", "i4"),
        ("tpot_missed", "i4"),
        ("invalid", "i4"),
        ("evictions", "i4"),
        ("preemptions", "i4"),
        ("rate_sum", "f8"),
        ("rate_at_s", "f8"),
        ("first_sum", "f8"),  # the same of first turns
        ("first_at_s", "f8"),
        ("sent", "i4"),  # requests that got a route
        ("output_tokens", "f8"),
        ("p_tokens", "f8"),  # prefilled on P
        ("d_tokens", "f8"),  # prefilled where it decodes
        ("ttft_gain", "f8"),  # sums over completed later turns
        ("tpot_loss", "f8"),
        ("crowd_loss", "f8"),
        ("later_ttft_s", "f8"),
        ("later_tpot_s", "f8"),
        ("penalty", "f8"),
        ("paid", "f8"),  # reward handed out so far
        ("epoch", "i4"),
        ("weight", "i4"),
        ("before_done", "i4"),  # values when the epoch began
        ("before_asked", "i4"),
        ("before_local", "i4"),
        ("before_met", "i4"),
        ("before_ttft_missed", "i4"),
        ("before_tpot_missed", "i4"),
        ("before_failed", "i4"),
        ("before_ttft_s", "f8"),
        ("before_tpot_s", "f8"),
        ("checksum", "f8"),
    ],
    align=True,
)

NODE = np.dtype(
    [
        ("kind", "i4"),
        ("since_s", "f8"),  # when the last step (or prefill) began
        ("at_s", "f8"),  # when the step (or the prefill) ends; infinite while there is none
        ("head", "i4"),  # of the waiting requests; -1
        ("tail", "i4"),
        ("waiting", "i4"),
        ("oldest", "i4"),  # least recently used entry of its cache; -1
        ("newest", "i4"),
        ("idle", "i4"),  # tokens in the cache that no running request needs
        ("serving", "i4"),  # P: conversation; -1
        ("blocked", "i4"),  # P: finished, but the buffer of its D is full
        ("backlog_s", "f8"),  # P: work of those that wait
        ("running", "i4"),  # sequences
        ("decoding", "i4"),  # of these: the first ones of the list
        ("active", "i4"),  # tokens in the cache of running sequences
        ("context", "i4"),  # of these, of decoding sequences
        ("tick", "i4"),  # steps so far: the progress of all that decode
        ("next_finish", "i4"),  # nobody completes before this tick
        ("oldest_ask_s", "f8"),  # nobody in the batch was asked before
        ("admitted", "i4"),
        ("mean_step_s", "f8"),  # moving average over steps that have ended
        ("busy_s", "f8"),
        ("steps", "i4"),
        ("kv_peak", "i4"),
    ],
    align=True,
)

CONVERSATION = np.dtype(
    [
        ("arrival_s", "f8"),
        ("at_s", "f8"),  # end of THINK or MOVE
        ("asked_s", "f8"),
        ("first_s", "f8"),  # first token of this turn; -1
        ("work_s", "f8"),  # at P, as reckoned when it began to wait, and anew when P began
        ("later", "i4"),  # request number of its second turn
        ("turns", "i4"),
        ("turn", "i4"),
        ("p", "i4"),
        ("d", "i4"),
        ("stage", "i4"),
        ("route", "i4"),
        ("moving", "i4"),  # 1: its KV comes over the link
        ("context", "i4"),  # n: tokens of earlier prompts and answers
        ("prompt", "i4"),  # m: new tokens
        ("output", "i4"),
        ("predicted", "i4"),
        ("previous", "i4"),  # tokens of the last answer
        ("kept", "i4"),  # tokens of this answer from before a preemption
        ("left", "i4"),  # tokens still to prefill on D
        ("run", "i4"),  # of these, in the running step
        ("full", "i4"),  # 1: nothing of it was in D's cache
        ("base", "i4"),  # decoding: answer so far = tick - base
        ("finish", "i4"),
        ("age", "i4"),  # number of its admission
        ("next", "i4"),  # that waits behind it
        ("ttft_ref_s", "f4"),
        ("tpot_ref_s", "f4"),
    ],
    align=True,
)

CACHED = np.dtype([("tokens", "i4"), ("older", "i4"), ("newer", "i4"), ("listed", "i4")], align=True)

REQUEST = np.dtype(
    [
        ("arrival_s", "f8"),
        ("prompt", "i4"),
        ("output", "i4"),
        ("predicted", "i4"),
        ("kind", "i4"),
        ("route", "i4"),  # -1 until it has one
        ("ttft_s", "f4"),  # -1 until then
        ("e2e_s", "f4"),
        ("moved_bytes", "f4"),  # over the link
    ],
    align=True,
)
"""One turn. The first `conversations` of a lane are first turns, after them come the later ones, conversation by conversation."""

METRICS = (
    "conversations",
    "requests",
    "completed",
    "timeouts",
    "later_turns",
    "later_completed",
    "later_timeouts",
    "success",
    "local_fraction",
    "ttft_mean_s",
    "ttft_p50_s",
    "ttft_p99_s",
    "ttft_first_mean_s",
    "tpot_mean_s",
    "tpot_p99_s",
    "e2e_mean_s",
    "e2e_p50_s",
    "e2e_p99_s",
    "slo_attainment",
    "goodput_rps",
    "throughput_rps",
    "output_tokens_per_s",
    "ttft_gain",
    "tpot_loss",
    "crowd_loss",
    "kv_moved_bytes",
    "prefilled_p_tokens",
    "prefilled_d_tokens",
    "p_utilization",
    "d_utilization",
    "kv_peak",
    "evictions",
    "preemptions",
    "invalid_actions",
    "penalty",
    "duration_s",
    "world_checksum",
)
"""TTFT, TPOT and E2E are of later turns, as in the paper; `ttft_first_mean_s` is of first turns.

NaN, with nothing to take it of: `ttft_*`, `e2e_*`, `ttft_gain`, `tpot_loss` and `crowd_loss` where no later turn has completed;
`tpot_*` where none of those has two tokens or more; `ttft_first_mean_s` where no first turn has; `success` where no turn has ended;
`local_fraction` where no later turn was routed; `slo_attainment` where the conversations have no later turns; rates and
utilisations over no time; `p_utilization` without P nodes."""


class State(NamedTuple):
    """Arrays of the cluster; first axis = lane.

    Attributes:
        lane: records `LANE` [lanes].
        node: records `NODE` [lanes, nodes].
        link: records `llmgym.envs.ppd.links.LINK` [lanes, nodes]; link n ends at node n.
        conversation: records `CONVERSATION` [lanes, conversations].
        request: records `REQUEST` [lanes, requests].
        cache: records `CACHED` [lanes, 2 conversations]: entry `2 c` is what P holds of conversation c, `2 c + 1` what D does.
        running: int32 [lanes, nodes, seats], conversations in the batch of each node, those that decode first.
        heap: int32 [lanes, conversations], those with a time, earliest on top.
        scratch: float32 [lanes, 3, requests], for quantiles.
    """

    lane: NDArray[Any]
    node: NDArray[Any]
    link: NDArray[Any]
    conversation: NDArray[Any]
    request: NDArray[Any]
    cache: NDArray[Any]
    running: NDArray[np.int32]
    heap: NDArray[np.int32]
    scratch: NDArray[np.float32]


class Params(NamedTuple):
    """What all lanes share.

    Attributes:
        number: one record `NUMBER`.
        kind: int64 [nodes], what each node is.
        links: records `LINK` [nodes] that have carried nothing.
        cost: what a step costs, where `tables` is 1.
        opening: arrivals of conversations and lengths of first turns.
        following: lengths of later turns.
        turns: float64 [max_turns], probability that a conversation has at most 1, 2, ... turns.
        rates: float64 [rates], request rates of the table, req/s.
        reference: float64 [2, contexts, types], TTFT and TPOT (s) that rewards compare with; not above 0: reckon them.
        routes: int8 [weights, contexts, types, rates], what the table says.
        weights: float64 [weights].
    """

    config: NDArray[Any]
    kind: NDArray[np.int64]
    links: NDArray[Any]
    cost: StepCost
    opening: Traffic
    following: Traffic
    turns: NDArray[np.float64]
    rates: NDArray[np.float64]
    reference: NDArray[np.float64]
    routes: NDArray[np.int8]
    weights: NDArray[np.float64]
