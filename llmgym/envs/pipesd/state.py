"""What PipeSDNav and PipeSDTune keep and what they are told: the dtypes, arrays and constants of their compiled functions."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmgym.envs.pipesd.draft_tokens import Packed

CONTINUE, UPLOAD, VERIFY = 0, 1, 2
"""What can be done after a drafted token."""
DRAFTING, WAITING, DONE = 0, 1, 2
"""Phases of a client."""
NO_GUESS, WRONG, RIGHT = 0, 1, 2
OUTPUT, ACCEPTED = 0, 1
"""What counts as a token that was made."""
RECENT = 4
"""Confidences of a client that are remembered."""
INTERVALS = 512
"""Remembered for pictures."""
DRAFT, GUESS, AHEAD, SEND, ASK, CHECK, PROMOTED, DROPPED = range(8)
"""Kinds of what pictures show: drafting, guessing the target's token, drafting ahead, uploads, verification, and what became
of the waiting tokens."""

LANE = np.dtype(
    [
        ("clock_s", "f8"),
        ("cloud_free_s", "f8"),
        ("cloud_busy_s", "f8"),
        (
            "client_s",
            "f8",
        ),  # since the first token, summed over the clients that are not done, over their number
        ("energy_j", "f8"),
        ("penalty", "f8"),
        ("checksum", "f8"),
        ("turn", "i4"),  # client whose token was drafted last; -1 when all are done
        ("invalid", "i4"),
        ("intervals", "i8"),
        ("steps", "i8"),
        ("mark_s", "f8"),  # PipeSDTune: when the running step began;
        ("step_tpt_s", "f8"),  # of the last step, and
        ("tpt_sum_s", "f8"),  # summed
        ("step_acceptance", "f8"),
        ("step_length", "f8"),
        ("held", "i8"),  # steps with the same thresholds
        ("moves", "i8"),  # steps with others than before
        ("sequence", "f8"),
        ("token", "f8"),
    ],
    align=True,
)
CLIENT = np.dtype(
    [
        ("key", "u8"),  # of the text
        ("phase", "i4"),
        ("stopped", "i4"),  # the waiting tokens are to be verified as soon as they are promoted
        ("token_s", "f8"),  # when the next token will be drafted,
        ("took_s", "f8"),  # and how long it takes
        ("arrival_s", "f8"),  # of the request at the cloud
        ("verdict_s", "f8"),
        ("asked_s", "f8"),
        ("arrived_s", "f8"),
        ("block", "i4"),  # tokens drafted since the last request (while waiting: without the guess)
        ("sent", "i4"),  # of these
        ("rejected", "i4"),  # which of these is the first that will not be accepted, or -1
        ("product", "f8"),  # C_1
        ("confidence", "f8"),
        ("recent", "f4", (RECENT,)),  # -ln P
        ("guess", "i4"),
        ("guessed", "f8"),  # -ln P
        ("awaited", "i4"),  # tokens at the cloud
        ("awaited_rejected", "i4"),
        ("awaited_product", "f8"),
        ("last", "i4"),  # tokens of the last verdict
        ("last_accepted", "i4"),
        ("last_product", "f8"),
        ("last_s", "f8"),  # from the end of its upload
        ("verdicts", "i4"),  # since the client's last turn
        ("made", "i8"),  # tokens that count towards the end
        ("finish_s", "f8"),
        ("output", "i8"),
        ("accepted", "i8"),
        ("judged", "i8"),
        ("drafted", "i8"),  # guesses included
        ("guesses", "i8"),
        ("promoted", "i8"),
        ("dropped", "i8"),
        ("wasted", "i8"),  # dropped tokens that were uploaded
        ("asked", "i8"),
        ("verdicts_all", "i8"),
        ("rollbacks", "i8"),
        ("uploads", "i8"),
    ],
    align=True,
)
INTERVAL = np.dtype(
    [("kind", "i4"), ("client", "i4"), ("tokens", "i4"), ("start_s", "f8"), ("end_s", "f8")], align=True
)

NUMBER = np.dtype(
    [
        ("clients", "i4"),
        ("proactive", "i4"),
        ("count", "i4"),
        ("tokens", "i8"),  # of an episode and client
        ("most", "i4"),  # tokens of a draft
        ("change_at", "i8"),  # tokens made until speeds change
        ("change_gamma", "f8"),
        ("change_rate", "f8"),
        ("gamma", "f8"),
        ("gamma_wait", "f8"),
        ("jitter", "f8"),
        ("alpha", "f8"),
        ("megabytes", "f8"),  # of a token
        ("verify", "f8"),
        ("verify_token", "f8"),
        ("downlink", "f8"),
        ("energy_weight", "f8"),
        ("invalid_cost", "f8"),
        ("step_tokens", "i4"),  # of PipeSDTune
        ("steps", "i4"),
    ],
    align=True,
)

METRICS = (
    "tpt_ms",
    "duration_s",
    "client_mean_s",
    "output_tokens",
    "accepted_tokens",
    "nav_per_token",
    "draft_mean_tokens",
    "accepted_mean_tokens",
    "acceptance",
    "rollback_rate",
    "energy_j",
    "ecs_j_per_100_tokens",
    "promoted_tokens",
    "dropped_tokens",
    "uploads",
    "upload_wasted_share",
    "link_utilisation",
    "cloud_utilisation",
    "plans",
    "penalty",
    "invalid_actions",
    "world_checksum",
)
"""`tpt_ms` is the paper's time per token: since the beginning, over all tokens of a client (TPOT would leave out the first).

NaN, with nothing to take it of: `tpt_ms` while a client has no token; `nav_per_token` and `ecs_j_per_100_tokens` without output;
means of drafts, `acceptance` and `rollback_rate` before the first verdict; `upload_wasted_share` before a token was uploaded;
utilisations over no time."""


class State(NamedTuple):
    """Arrays of a cloud and its clients; first axis = lane.

    Attributes:
        lane: records `LANE` [lanes].
        client: records `CLIENT` [lanes, clients].
        cursor: records `CURSOR` [lanes, clients], where drafting is in the text.
        link: records `UPLINK` [lanes, clients].
        line: records `BATCH` [lanes, clients, places].
        rates: float32 [lanes, clients, seconds], MB/s.
        estimate: records `ESTIMATE` [lanes, clients].
        log: records `LOG` [lanes, clients, 100].
        ends: int32 [lanes, clients, tokens], the plan of batches.
        work: float64 [lanes, tokens].
        interval: records `INTERVAL` [lanes, 512], a ring.
    """

    lane: NDArray[Any]
    client: NDArray[Any]
    cursor: NDArray[Any]
    link: NDArray[Any]
    line: NDArray[Any]
    rates: NDArray[np.float32]
    estimate: NDArray[Any]
    log: NDArray[Any]
    ends: NDArray[np.int32]
    work: NDArray[np.float64]
    interval: NDArray[Any]


class Params(NamedTuple):
    """What all lanes share.

    Attributes:
        config: record `NUMBER` [1].
        text: the source of tokens.
        law: record `LAW` [1], of the bandwidth.
        levels: float32 [levels], MB/s.
    """

    config: NDArray[Any]
    text: Packed
    law: NDArray[Any]
    levels: NDArray[np.float32]
