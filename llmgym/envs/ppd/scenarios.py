"""Scenarios of PPDRouting and PPDWeights: named settings of cluster, conversations and episode."""

import math
import re
from dataclasses import dataclass, replace
from typing import Any

from llmgym.core.checks import choice, number, whole
from llmgym.core.settings import settled
from llmgym.envs.ppd.cells import RATES_RPS
from llmgym.envs.ppd.state import HASHED, KINDS, LEAST_LOADED, PAPER, PD, PHYSICAL, D, P, R
from llmgym.errors import InvalidArgument

PLACEMENTS = {"hash": HASHED, "least-loaded": LEAST_LOADED}
INTERFERENCES = {"physical": PHYSICAL, "paper": PAPER}
RATES = {"recent": 0, "average": 1}
REFERENCES = ("table", "idle")
INFORMATION = ("exact", "noisy", "mean", "none")


@dataclass(frozen=True)
class Scenario:
    """Settings of PPDRouting and PPDWeights; every one of them is also an argument of the environments.

    Attributes:
        about: one line.
        workload: name of conversations.
        profile: name of a cost profile; None: the latencies measured by the paper's authors.
        allocation: nodes, such as "1P_3D": P, D, pD (later turns always prefilled there) and R (replica: both).
        gpus: that exist.
        qps: conversations a second.
        conversations: the most of an episode.
        window_s: conversations arrive until then, s.
        shape: multipliers of `qps`, equally long pieces of `day_s`, over and over; scaled to mean 1. None: a steady rate.
        day_s: s.
        limit_s: an episode is cut after this time, s.
        max_turns: conversations with more end there.
        max_inflight: conversations that are let in at once; None: all.
        timeout_s: a request that takes longer fails and ends its conversation, s.
        longest: context, prompt and answer together, tokens; a turn that would go beyond is not asked.
        kv_capacity: tokens of a node's cache; None takes what memory leaves.
        link_gb_per_s: bandwidth to each D, GB/s; None: only the receiving engine limits (49 GB/s).
        buffer_gb: receive buffer of a D, GB.
        chunk: prefill tokens of a step.
        seats: sequences of a batch.
        answer_kv_hit: the last answer's KV on D serves the next turn. False as measured: it is tokenised anew and misses.
        interference: "physical" (a prefill token costs what it costs) or "paper" (steps of 50 decodes and more are slowed
            down by the factors of the paper's micro-benchmark).
        placement: "hash" (sticky, by the conversation's id) or "least-loaded" (then sticky).
        information: what is told of answer lengths: "exact" (as max_tokens in the paper), "noisy", "mean" or "none".
        noise_scale: factor on the log error of "noisy".
        rate: request rate by which the table is read: "recent" (moving average over 10 s) or "average" (all requests over all
            time, as the prototype does).
        rates: request rates of the table, req/s, rising.
        bypass: later turns with fewer new tokens are prefilled on D without a look at the table (512 in the released code).
        reference: what rewards compare with: "table" (TTFT and TPOT of the cell with all turns through P, at the rate of the
            table nearest to `qps`; for a cluster of R alone, of one with a P in it) or "idle" (this turn through P in an empty
            cluster).
        w_ttft: weight of TTFT.
        w_tpot: weight of TPOT.
        timeout_cost: of each request that times out.
        ttft_slo_s: objective for the time to the first token, s.
        tpot_slo_s: objective for the time per output token after it, s.
        epoch_s: PPDWeights: how long a weight is in force, s.
        epochs: PPDWeights: an episode is cut after so many.
    """

    about: str
    workload: str
    profile: str | None = None
    allocation: str = "1P_3D"
    gpus: int = 4
    qps: float = 4.0
    conversations: int = 500
    window_s: float = math.inf
    shape: tuple[float, ...] | None = None
    day_s: float = 60.0
    limit_s: float = 3600.0
    max_turns: int = 20
    max_inflight: int | None = 50
    timeout_s: float = 30.0
    longest: int = 8192
    kv_capacity: int | None = None
    link_gb_per_s: float | None = None
    buffer_gb: float = 10.0
    chunk: int = 2048
    seats: int = 256
    answer_kv_hit: bool = False
    interference: str = "physical"
    placement: str = "hash"
    information: str = "exact"
    noise_scale: float = 1.0
    rate: str = "recent"
    rates: tuple[float, ...] = RATES_RPS
    bypass: int = 0
    reference: str = "table"
    w_ttft: float = 1.0
    w_tpot: float = 1.0
    timeout_cost: float = 5.0
    ttft_slo_s: float = 0.2
    tpot_slo_s: float = 0.015
    epoch_s: float = 10.0
    epochs: int = 360


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
        gpus: that exist.
        gpus_of_node: that a node needs.

    Raises:
        InvalidArgument: no node, a node that is none of these, D without P or P without D, or more GPUs than exist.
    """
    counts = dict.fromkeys(KINDS, 0)
    parts = allocation.split("_") if isinstance(allocation, str) else []
    for part in parts:
        found = _PART.fullmatch(part)
        if found is None or counts[found[2]] or int(found[1]) == 0:
            raise InvalidArgument(
                f"allocation={allocation!r}: expected counts from 1 on of P, D, pD and R joined by '_', such as '1P_3D' or '4R'"
            )
        counts[found[2]] = int(found[1])
    nodes = tuple(
        kind for kind, name in ((P, "P"), (D, "D"), (PD, "pD"), (R, "R")) for _ in range(counts[name])
    )
    if not nodes:
        raise InvalidArgument(
            f"allocation={allocation!r}: no nodes; expected something such as '1P_3D' or '4R'"
        )
    if bool(counts["P"]) != bool(counts["D"] + counts["pD"]):
        raise InvalidArgument(f"allocation={allocation!r}: P needs D (or pD), and they need P")
    if len(nodes) * gpus_of_node > gpus:
        raise InvalidArgument(
            f"allocation={allocation!r}: {len(nodes)} nodes of {gpus_of_node} GPU(s) each, but gpus={gpus}"
        )
    return nodes


def resolve_scenario(scenario: str | Scenario, settings: dict[str, Any], of: str) -> Scenario:
    """The scenario with the arguments put in, checked.

    Raises:
        UnknownName: a scenario, a setting or a choice that does not exist.
        InvalidArgument: a number out of range.
    """
    chosen: Scenario = settled(scenario, SCENARIOS, settings, of, ("about", "workload", "profile"))
    for name, known in (
        ("interference", INTERFERENCES),
        ("placement", PLACEMENTS),
        ("information", INFORMATION),
        ("rate", RATES),
        ("reference", REFERENCES),
    ):
        choice(name, getattr(chosen, name), known)
    for name in ("gpus", "conversations", "chunk", "seats", "epochs"):
        whole(name, getattr(chosen, name))
    whole("conversations", chosen.conversations, high=100_000)
    whole("max_turns", chosen.max_turns, high=64)
    whole("longest", chosen.longest, 2)
    whole("bypass", chosen.bypass, 0)
    for name in ("kv_capacity", "max_inflight"):
        if getattr(chosen, name) is not None:
            whole(name, getattr(chosen, name))
    for name in ("qps", "limit_s", "timeout_s", "buffer_gb", "ttft_slo_s", "tpot_slo_s", "epoch_s", "day_s"):
        number(name, getattr(chosen, name))
    if chosen.window_s != math.inf:
        number("window_s", chosen.window_s)
    if chosen.link_gb_per_s is not None:
        number("link_gb_per_s", chosen.link_gb_per_s)
    for name in ("w_ttft", "w_tpot", "timeout_cost", "noise_scale"):
        number(name, getattr(chosen, name), zero=True)
    if not isinstance(chosen.answer_kv_hit, bool):
        raise InvalidArgument(f"answer_kv_hit={chosen.answer_kv_hit!r}: expected True or False")
    try:
        rates = tuple(number("rates", rate) for rate in chosen.rates)
    except TypeError:
        raise InvalidArgument(f"rates={chosen.rates!r}: expected numbers") from None
    if not rates or list(rates) != sorted(set(rates)):
        raise InvalidArgument(f"rates={chosen.rates!r}: expected one rate or more, rising")
    return replace(chosen, rates=rates)
