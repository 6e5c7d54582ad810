"""Admission rules of the literature as data, so that one compiled loop carries out all of them.

A rule says in which order waiting requests are looked at, what has to hold for one to be admitted, how a batch is put together and
what happens when the cache overflows. `llmgym.serving.admission` carries it out; `CATALOGUE` names the published ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmgym.core.checks import number, whole
from llmgym.core.records import Records
from llmgym.errors import InvalidArgument, UnknownName
from llmgym.serving.overflow import CLEAR, PAUSE, VICTIMS
from llmgym.serving.queue import ORDERS
from llmgym.serving.state import CompiledRule, Order

LEAST_CLEARED = 0.001
"""A rule clears a resident with at least this probability, so that clearing comes to an end."""

FIRST_CHUNK, WHOLE_PROMPT, PEAK, FUTURE, HEADROOM, CLASS_BUDGET = 0, 1, 2, 3, 4, 5
AS_ADMITTED, DECODE_FIRST, PREFILL_FIRST, PREFILL_ONLY, DECODE_ONLY = 0, 1, 2, 3, 4

CHECKS = {
    "first-chunk": FIRST_CHUNK,
    "whole-prompt": WHOLE_PROMPT,
    "peak": PEAK,
    "future": FUTURE,
    "headroom": HEADROOM,
    "class-budget": CLASS_BUDGET,
}
PREDICTED = ("shortest-output", "smallest-area", "aging", "peak", "future")
"""Orders and checks that reckon with the predicted output lengths of requests."""
BATCHES = {
    "as-admitted": AS_ADMITTED,
    "decode-first": DECODE_FIRST,
    "prefill-first": PREFILL_FIRST,
    "prefill-only": PREFILL_ONLY,
    "decode-only": DECODE_ONLY,
}


@dataclass(frozen=True)
class Rule:
    """An admission rule.

    Attributes:
        name: how tables call it.
        order: in which waiting requests are looked at: `arrival`; `shortest-output` or `smallest-area` (predicted), `aging` (the
            same area less what has been waited, see there); `priority` (lower ones first, then by arrival), `priority-aging`
            (by arrival plus `lead_s` for each step of priority); `deadline` (arrival plus the TTFT objective of the class);
            `longest-prefix` (who finds most of its prompt in the cache, of the first 128 by arrival, as SGLang does).
        check: what must hold for one to be admitted, besides room for its first chunk in the coming batch:
            `first-chunk` nothing more; `whole-prompt` cache + whole prompt + `watermark` * M <= M; `peak` the predicted peaks
            of all residents fit together; `future` no predicted completion time overflows; `headroom` cache + prompt
            <= (1 - `headroom`) * M; `class-budget` at most `class_budgets[class]` admissions a batch.
        batch: `as-admitted` (oldest resident first), `decode-first`, `prefill-first`, `prefill-only`, `decode-only`.
        skip: go on to the next request when one does not fit, and pause misfits alone (a maximal batch).
        victim: who loses its cache on overflow, where residents are preempted: the `youngest`, `oldest`, `largest` or
            `least-computed` (most and fewest tokens in the cache), or `worst-priority`, the last by priority and arrival.
        clears: on overflow each resident loses all progress with `clear_probability`, instead of what the environment does.
        aging: seconds of the whole engine, at its reference rate, that a second of waiting makes up for in the `aging` order.
        lead_s: by how many seconds a step of priority comes before the next, in the `priority-aging` order.
        most: admissions a batch.
        watermark: fraction of M kept free at admission (`whole-prompt` check).
        headroom: fraction of M kept free at admission (`headroom` check).
        clear_probability: see `clears`; at least `LEAST_CLEARED`.
        class_budgets: admissions a batch, for each class of the workload; empty lets the environment derive safe ones
            (`llmgym.serving.capacity.safe_class_budgets`).
    """

    name: str
    order: str = "arrival"
    check: str = "first-chunk"
    batch: str = "as-admitted"
    skip: bool = False
    victim: str = "youngest"
    clears: bool = False
    aging: float = 0.05
    lead_s: float = 10.0
    most: int = 2**31 - 1
    watermark: float = 0.0
    headroom: float = 0.0
    clear_probability: float = 1.0
    class_budgets: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name, value, known in (
            ("order", self.order, ORDERS),
            ("check", self.check, CHECKS),
            ("batch", self.batch, BATCHES),
            ("victim", self.victim, VICTIMS),
        ):
            if value not in known:
                raise UnknownName(f"{name} of a rule", value, known)
        for name in ("watermark", "headroom"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise InvalidArgument(
                    f"{name}={getattr(self, name)!r} of rule {self.name!r}: expected 0 <= {name} < 1"
                )
        for name in ("aging", "lead_s"):
            number(f"{name} (rule {self.name!r})", getattr(self, name), zero=True)
        whole(f"most (rule {self.name!r})", self.most, 1, 2**31 - 1)
        if not LEAST_CLEARED <= self.clear_probability <= 1.0:
            raise InvalidArgument(
                f"clear_probability={self.clear_probability!r} of rule {self.name!r}: expected {LEAST_CLEARED:g} to 1"
            )
        if any(budget < 0 for budget in self.class_budgets):
            raise InvalidArgument(
                f"class_budgets={self.class_budgets!r} of rule {self.name!r}: expected numbers >= 0"
            )

    @property
    def predicts(self) -> bool:
        """Whether the rule reckons with predicted output lengths, so that it has to be told some."""
        return self.order in PREDICTED or self.check in PREDICTED

    @property
    def prioritises(self) -> bool:
        """Whether the rule looks at the priorities of requests, so that they have to have some."""
        return self.order in ("priority", "priority-aging") or self.victim == "worst-priority"

    @property
    def numbers(self) -> tuple[str, ...]:
        """Names of the numbers that make a difference to the rule."""
        used = {
            "watermark": self.check == "whole-prompt",
            "headroom": self.check == "headroom",
            "clear_probability": self.clears,
            "aging": self.order == "aging",
            "lead_s": self.order == "priority-aging",
            "most": True,
        }
        return tuple(name for name, does in used.items() if does)


CATALOGUE: dict[str, Rule] = {
    rule.name: rule
    for rule in (
        # Nie, Si, Zhou (ICML 2026, section 5): first come, first served, work-conserving.
        Rule("wc-fcfs"),
        # The same theorem holds for any maximal batch: look past a request that does not fit.
        Rule("wc-skip", skip=True),
        # vLLM V1: the whole prompt and a watermark must fit; 0.02 is the best of the grid {0, .01, .02, .05, .1}.
        Rule("vllm", check="whole-prompt", watermark=0.02),
        # No overflow by construction: reserve the peak of everything admitted.
        Rule("reserve-peak", check="peak"),
        # Jaillet et al., arXiv 2502.07115: shortest predicted output first, if no future step overflows.
        Rule("mc-sf", order="shortest-output", check="future"),
        # The same look-ahead in order of arrival ("MC-Benchmark" there).
        Rule("fcfs-lookahead", check="future"),
        # The same look-ahead by smallest predicted tokens x batches, for prompts of different lengths.
        Rule("smallest-area", order="smallest-area", check="future"),
        # Of no paper: the obvious combination of the two that do best under recompute, an order by area and vLLM's watermark.
        Rule("area-watermark", order="smallest-area", check="whole-prompt", watermark=0.02),
        # alpha-protection greedy with clearing (Jaillet et al.): alpha = 0.2; all progress is lost on overflow.
        Rule("alpha-clearing", check="headroom", headroom=0.2, clears=True),
        # beta-clearing: each resident is evicted with probability 0.2 until the rest fits.
        Rule("beta-clearing", check="headroom", headroom=0.1, clears=True, clear_probability=0.2),
        # Dong and Cao, arXiv 2604.11001, Algorithm 1: budgets that keep the sum of areas within M.
        Rule("class-budgets", check="class-budget"),
        # Dai, Deng, Li, Peng, arXiv 2504.07347: batches under a token budget.
        Rule("sarathi", batch="decode-first"),
        Rule("orca", batch="prefill-first"),
        Rule("vllm-prefill-only", batch="prefill-only"),
        Rule("faster-transformer", batch="decode-only"),
    )
}

OF_ENGINES: dict[str, Rule] = {
    rule.name: rule
    for rule in (
        # vLLM V1 with scheduling_policy="priority": by (priority, arrival), and the worst by these two is preempted.
        Rule("vllm-priority", order="priority", check="whole-prompt", victim="worst-priority"),
        # Shortest predicted output first, as vLLM's priority mode serves it when the prediction is the priority.
        Rule("shortest-first", order="shortest-output", check="whole-prompt"),
        # Shortest remaining work first, less what was waited (Kleinrock's accumulating priorities, Nav. Res. Logist. Q. 11, 1964).
        Rule("area-aging", order="aging", check="whole-prompt", watermark=0.02),
        # Earliest deadline first (Liu and Layland, J. ACM 20, 1973), the deadline being that of the first token.
        Rule("edf", order="deadline", check="whole-prompt"),
        # Classes in turn, each some seconds ahead of the next: dynamic priorities (Jackson, Nav. Res. Logist. Q. 7, 1960).
        Rule("priority-aging", order="priority-aging", check="whole-prompt"),
        # Whoever has computed least is preempted, since least is lost.
        Rule("least-computed", check="whole-prompt", victim="least-computed"),
        # Zheng et al., SGLang (arXiv 2312.07104), section 3: the longest cached prefix first.
        Rule("longest-prefix", order="longest-prefix", check="whole-prompt"),
    )
}
"""Rules of engines: orders with aging, by deadlines, priorities and cached prefixes, where requests have such."""


def resolve(rules: Sequence[str | Rule]) -> tuple[Rule, ...]:
    """Rules from names of the catalogue or from `Rule` objects; `"vllm:most=4,victim=largest"` changes a number and the victim.

    Raises:
        UnknownName: no rule, no number or no victim of that name.
        InvalidArgument: no rules at all, two of one name, or a value that is not a number.
    """
    resolved = []
    for rule in rules:
        if isinstance(rule, Rule):
            resolved.append(rule)
            continue
        name, changed, changes = str(rule).partition(":")
        known = CATALOGUE | OF_ENGINES
        if name not in known:
            raise UnknownName("rule", name, known)
        made = known[name]
        for change in changes.split(",") if changed else ():
            key, _, text = change.partition("=")
            if key == "victim" and not made.clears:
                made = replace(made, name=str(rule), victim=text)
                continue
            if key not in made.numbers:
                raise UnknownName(f"number of rule {name!r}", key, made.numbers)
            try:
                value = int(text) if key == "most" else float(text)
            except ValueError:
                raise InvalidArgument(f"{rule!r}: {text!r} is not a number") from None
            made = replace(made, name=str(rule), **{key: value})  # type: ignore[arg-type]
        resolved.append(made)
    names = [rule.name for rule in resolved]
    if not resolved or len(set(names)) != len(names):
        raise InvalidArgument(f"rules={list(rules)!r}: expected at least one rule, and each once")
    return tuple(resolved)


def check_prefixes(rules: Sequence[Rule]) -> None:
    """Raises `InvalidArgument` if a rule clears the cache or divides the batch anew: cached prefixes know of neither, as blocks are
    handed out when a batch is planned.
    """
    for rule in rules:
        if rule.clears or rule.batch != "as-admitted":
            raise InvalidArgument(
                f"prefix_caching=True needs a rule that does not clear and runs batches as admitted, not rule={rule.name!r}"
            )


class Packed(NamedTuple):
    """Rules as compiled code reads them.

    Attributes:
        rules: records [rules].
        class_budgets: admissions to a batch, int32 [rules, classes].
        orders: those that must be kept, records [orders].
    """

    rules: Records[CompiledRule]
    class_budgets: NDArray[np.int32]
    orders: Records[Order]


def pack(
    rules: Sequence[Rule],
    overflow: int,
    classes: int,
    *,
    area_per_s: float,
    priorities: bool = False,
    objectives: bool = False,
    prefixes: bool = False,
    orders: Sequence[str] = (),
) -> Packed:
    """Rules as compiled code reads them.

    Args:
        rules: the rules, in the order of their numbers.
        overflow: PAUSE or RECOMPUTE, what the environment does on overflow.
        classes: number of request classes of the workload.
        area_per_s: what the engine gets through at its reference rate, tokens x batches a second; `aging` is measured in it.
        priorities: whether requests have priorities.
        objectives: whether classes have objectives.
        prefixes: whether prefixes are cached.
        orders: further orders to keep, by name, before those of the rules.

    Raises:
        InvalidArgument: a class-budget rule that does not name a budget for each class, a rule that looks at priorities, objectives
            or cached prefixes where there are none, or one that chooses a victim where residents are paused.
    """
    first = [(ORDERS[name], 0.0) for name in orders]
    kept = first + sorted({_order_of(rule, area_per_s) for rule in rules} - set(first))
    records = CompiledRule.zeros(len(rules))
    budgets = np.zeros((len(rules), classes), np.int32)
    for i, rule in enumerate(rules):
        if rule.prioritises and not priorities:
            raise InvalidArgument(
                f"rule={rule.name!r}: it looks at the priorities of requests, and these have none; a replay of rows with a "
                "priority has them"
            )
        if rule.order == "deadline" and not objectives:
            raise InvalidArgument(
                f"rule={rule.name!r}: it looks at the TTFT objectives of classes, and there are none; give targets"
            )
        if rule.order == "longest-prefix" and not prefixes:
            raise InvalidArgument(f"rule={rule.name!r}: it looks at cached prefixes, and none are cached")
        if rule.victim != "youngest" and overflow == PAUSE and not rule.clears:
            raise InvalidArgument(
                f"victim={rule.victim!r} of rule {rule.name!r}: nobody is preempted with overflow='pause'; choose 'recompute'"
            )
        records[i] = CompiledRule.pack(
            rule,
            row=kept.index(_order_of(rule, area_per_s)),
            check=CHECKS[rule.check],
            batch=BATCHES[rule.batch],
            overflow=CLEAR if rule.clears else overflow,
            victim=VICTIMS[rule.victim],
        )[0]
        if rule.check == "class-budget":
            if len(rule.class_budgets) != classes:
                raise InvalidArgument(
                    f"rule {rule.name!r} has {len(rule.class_budgets)} class budgets, the workload has {classes} classes"
                )
            budgets[i] = rule.class_budgets
    return Packed(records, budgets, order_records(kept))


def _order_of(rule: Rule, area_per_s: float) -> tuple[int, float]:
    weight = {"aging": rule.aging * area_per_s, "priority-aging": rule.lead_s}.get(rule.order, 0.0)
    return ORDERS[rule.order], weight


def order_records(orders: Sequence[tuple[int, float]]) -> Records[Order]:
    """Orders as compiled code reads them.

    Args:
        orders: kind and weight of each, see `Order`.
    """
    records = Order.zeros(len(orders))
    for i, (kind, weight) in enumerate(orders):
        records[i]["kind"], records[i]["weight"] = kind, weight  # type: ignore[index]
    return records
