"""Scenarios of PPDRouting and PPDWeights: named settings of cluster, conversations and episode."""

import math
import re
from dataclasses import dataclass
from typing import Any

from llmgym.core.checks import number
from llmgym.core.settings import count, flag, given, numbers, option, quantity
from llmgym.envs.ppd.cells import RATES_RPS
from llmgym.envs.ppd.conversations import given_as
from llmgym.envs.ppd.state import HASHED, LEAST_LOADED, PAPER, PHYSICAL, ROLES
from llmgym.errors import InvalidArgument
from llmgym.profiles import check_name

PLACEMENTS = {"hash": HASHED, "least-loaded": LEAST_LOADED}
INTERFERENCES = {"physical": PHYSICAL, "paper": PAPER}
RATES = {"recent": 0, "average": 1}
REFERENCES = ("table", "idle")
INFORMATION = ("exact", "noisy", "mean", "none")


def _window(name: str, value: Any) -> None:
    if value != math.inf:
        number(name, value)


def _check_allocation(name: str, value: Any) -> None:
    parse_allocation(value, 2**30)


@dataclass(frozen=True)
class Scenario:
    """Settings of PPDRouting and PPDWeights; every one of them is also an argument of the environments."""

    about: str
    workload: str = given(
        ...,
        "Name of the conversations that come.",
        check=given_as,
        allowed="a name of `llmgym.envs.ppd.conversations.names()`",
    )
    profile: str | None = given(
        None,
        "Name of the profile of steps; `None`: the latencies measured by the paper's authors.",
        check=check_name,
        allowed="a name in `llmgym.profiles.names()`, or a folder",
    )
    allocation: str = given(
        "1P_3D",
        "Nodes: P, D, pD (later turns are always prefilled there) and R (a replica, which does both).",
        check=_check_allocation,
        allowed="counts of P, D, pD and R joined by `_`",
    )
    gpus: int = count(4, "GPUs that exist.")
    qps: float = quantity(4.0, "Rate at which conversations come, conversations a second.", unit="1/s")
    conversations: int = count(500, "Most conversations of an episode.", high=100_000)
    window_s: float = given(
        math.inf, "Conversations arrive until this time, seconds.", allowed="> 0", unit="s", check=_window
    )
    shape: tuple[float, ...] | None = numbers(
        None,
        "Multipliers of `qps` in equally long pieces of `day_s`, over and over, scaled to mean 1; `None`: a steady rate.",
        zero=True,
        some=True,
    )
    day_s: float = quantity(60.0, "Time after which `shape` begins again, seconds.", unit="s")
    limit_s: float = quantity(3600.0, "An episode is cut after this time, seconds.", unit="s")
    max_turns: int = count(20, "Most turns: conversations with more end there.", high=64)
    max_inflight: int | None = count(
        50, "Most conversations that are let in at once; `None`: all.", optional=True
    )
    timeout_s: float = quantity(
        30.0, "A request that takes longer fails and ends its conversation, seconds.", unit="s"
    )
    longest: int = count(
        8192,
        "Most tokens of context, prompt and answer together; a turn that would go beyond does not come.",
        low=2,
        unit="tokens",
    )
    kv_capacity: int | None = count(
        None, "Tokens that a node's cache holds; `None`: what memory leaves.", unit="tokens"
    )
    link_gb_per_s: float | None = quantity(
        None,
        "Bandwidth to each D, GB a second; `None`: only the receiving engine limits it, at 49 GB a second.",
        unit="GB/s",
    )
    buffer_gb: float = quantity(10.0, "Receive buffer of a D, GB.", unit="GB")
    chunk: int = count(2048, "Most prefill tokens of a step.", unit="tokens")
    seats: int = count(256, "Most sequences of a batch.")
    answer_kv_hit: bool = flag(
        False,
        "Whether the last answer's KV on D serves the next turn; as measured, it is tokenised anew and misses.",
    )
    interference: str = option(
        "physical",
        "What a prefill costs those that decode: `physical`, what its tokens cost; `paper`: steps of 50 decodes and more are "
        "slowed down by the factors of the paper's micro-benchmark.",
        INTERFERENCES,
    )
    placement: str = option(
        "hash",
        "How a conversation gets its nodes, which it keeps: by its id, or those with the fewest requests.",
        PLACEMENTS,
    )
    information: str = option(
        "exact",
        "What is told of the length of an answer: the truth (as `max_tokens` in the paper), a prediction, the mean, nothing.",
        INFORMATION,
    )
    noise_scale: float = quantity(1.0, "Factor on the log error of predictions that are `noisy`.", zero=True)
    rate: str = option(
        "recent",
        "Request rate by which the table is read: `recent`, a moving average over 10 seconds; `average`, all requests over all "
        "time, as the prototype does.",
        RATES,
    )
    rates: tuple[float, ...] = numbers(
        RATES_RPS, "Request rates of the table, requests a second.", order="rising", unit="1/s"
    )
    bypass: int = count(
        0,
        "Later turns with fewer new tokens are prefilled on D without a look at the table (512 in the released code).",
        low=0,
        unit="tokens",
    )
    reference: str = option(
        "table",
        "What rewards compare with: `table`, TTFT and TPOT of the turn's cell with all turns through P, at the rate of the table "
        "nearest to `qps` (for a cluster of R alone, of one with a P in it); `idle`, this turn through P in an empty cluster.",
        REFERENCES,
    )
    w_ttft: float = quantity(1.0, "Weight of TTFT in the reward.", zero=True)
    w_tpot: float = quantity(1.0, "Weight of TPOT in the reward.", zero=True)
    timeout_cost: float = quantity(5.0, "Cost of each request that times out.", zero=True)
    ttft_slo_s: float = quantity(0.2, "Objective for the time to the first token, seconds.", unit="s")
    tpot_slo_s: float = quantity(
        0.015, "Objective for the time for each output token after it, seconds.", unit="s"
    )
    epoch_s: float = quantity(10.0, "How long a weight of PPDWeights is in force, seconds.", unit="s")
    epochs: int = count(360, "Epochs after which an episode of PPDWeights is cut.")


SCENARIOS: dict[str, Scenario] = {
    "paper": Scenario(
        "the paper's cluster: 1P_3D on four H100, chat of 4.3 turns, 4 conversations a second, at most 50 at once",
        "chat",
    ),
    "real": Scenario(
        "Kimi's conversations (Mooncake): 11,000 tokens at first, minutes between turns; caches forget, Llama-3.1-8B on H100",
        "mooncake",
        "h100/llama-3.1-8b",
        allocation="2P_2D",
        qps=1.0,
        conversations=800,
        max_inflight=None,
        longest=131_072,
        max_turns=18,
        limit_s=7200.0,
        ttft_slo_s=2.0,
        tpot_slo_s=0.02,
        reference="idle",
        epochs=720,
    ),
    "stress": Scenario(
        "long passages in every turn, caches of 48,000 tokens that forget, a 10 GB/s network and a load that comes in waves",
        "documents",
        allocation="2P_2D",
        qps=2.2,
        conversations=300,
        shape=(0.4, 1.0, 1.9, 0.7),
        day_s=40.0,
        max_inflight=None,
        kv_capacity=48_000,
        link_gb_per_s=10.0,
        buffer_gb=2.0,
        reference="idle",
        w_tpot=3.0,
        ttft_slo_s=0.4,
        tpot_slo_s=0.014,
        epoch_s=5.0,
        epochs=120,
    ),
    "small": Scenario(
        "two nodes, pasted prompts and a load that comes in waves: an agent can be trained on it in minutes",
        "small_big_paste",
        allocation="1P_1D",
        gpus=2,
        qps=5.0,
        conversations=60,
        shape=(0.5, 1.6, 0.9),
        day_s=9.0,
        rates=(1.0, 4.0, 8.0, 12.0, 16.0),
        reference="idle",
        w_tpot=6.0,
        ttft_slo_s=0.2,
        tpot_slo_s=0.0105,
        epoch_s=1.0,
        epochs=120,
    ),
}

_PART = re.compile(r"(\d+)(pD|P|D|R)")


def parse_allocation(allocation: Any, gpus: int, gpus_of_node: int = 1) -> tuple[int, ...]:
    """What each node is, P nodes first, then D, pD and R.

    Args:
        allocation: such as "2P_1D_1pD".
        gpus: GPUs that exist.
        gpus_of_node: GPUs that a node needs.

    Returns:
        `P`, `D`, `PD` or `R` for each node.

    Raises:
        InvalidArgument: no node, a node that is none of these, D without P or P without D, or more GPUs than exist.
    """
    counts = dict.fromkeys(ROLES, 0)
    parts = allocation.split("_") if isinstance(allocation, str) else []
    for part in parts:
        match = _PART.fullmatch(part)
        if match is None or counts[match[2]] or int(match[1]) == 0:
            raise InvalidArgument(
                f"allocation={allocation!r}: expected counts from 1 on of P, D, pD and R joined by '_', such as '1P_3D' or '4R'"
            )
        counts[match[2]] = int(match[1])
    nodes = sum(counts.values())
    if not nodes:
        raise InvalidArgument(
            f"allocation={allocation!r}: no nodes; expected something such as '1P_3D' or '4R'"
        )
    if bool(counts["P"]) != bool(counts["D"] + counts["pD"]):
        raise InvalidArgument(f"allocation={allocation!r}: P needs D (or pD), and they need P")
    if nodes * gpus_of_node > gpus:
        raise InvalidArgument(
            f"allocation={allocation!r}: {nodes} nodes of {gpus_of_node} GPU(s) each, but gpus={gpus}"
        )
    return tuple(role for role, name in enumerate(ROLES) for _ in range(counts[name]))
