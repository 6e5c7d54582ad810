"""How much one engine can serve under a KV-cache limit: the closed forms.

From Nie, Si and Zhou, "A Queueing-Theoretic Framework for Stability Analysis of LLM Inference with KV Cache Memory
Constraints", ICML 2026 (arXiv 2605.04595). A request holds a growing number of tokens for a number of batches; the product, its
*area*, is what it costs. A batch can erase at most M of area, the capacity of the cache. Hence the critical rate
M / (b E[area]): above it every policy diverges (Theorem 4.1), below it, less a slack, any work-conserving one is stable (4.2).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llmgym.core.checks import number
from llmgym.errors import InvalidArgument
from llmgym.profiles import Profile
from llmgym.profiles.cost import prefill_attention_s, step_time_s
from llmgym.serving.rules import Rule
from llmgym.workloads import Workload
from llmgym.workloads.workload import Moment

UNLIMITED = 2**30
_MOST_GPUS = 2**53  # beyond it a float does not count

Lengths = Callable[[NDArray[np.int64], NDArray[np.int64]], ArrayLike]
"""A function of prompts and outputs, int64 [k] each (tokens), with k values."""


def area(prompt: ArrayLike, output: ArrayLike, chunk: int) -> NDArray[np.float64]:
    """Area of a request as the paper writes it, tokens x batches: ((1 + s/c) s + 2 s o + (1 + o) o) / 2.

    Args:
        prompt: prompt lengths s, tokens.
        output: output lengths o, tokens.
        chunk: prefill chunk c, tokens.

    Returns:
        Tokens x batches, in the shape of `prompt` and `output` together.
    """
    s, o = np.asarray(prompt, np.float64), np.asarray(output, np.float64)
    return np.asarray(((1 + s / chunk) * s + 2 * s * o + (1 + o) * o) / 2)


def exact_area(
    prompt: ArrayLike, output: ArrayLike, chunk: int, first: int = 0, stored: int = 0
) -> NDArray[np.float64]:
    """Area that is erased batch by batch, with whole chunks: c n (n-1) / 2 + s + s o + o (o+1) / 2, n = ceil(s / c).

    Args:
        prompt: prompt lengths s, tokens.
        output: output lengths o, tokens.
        chunk: prefill chunk c, tokens.
        first: 1 if the last prefill chunk yields the first output token, as in real engines: then o - 1 decode batches
            follow, the first of which holds s + 1 tokens.
        stored: 1 if that token is stored in the same batch: then all these batches hold one token more.

    Returns:
        Tokens x batches, in the shape of `prompt` and `output` together.
    """
    s, o = np.asarray(prompt, np.float64), np.asarray(output, np.float64) - first
    n = np.ceil(s / chunk)
    return np.asarray(chunk * n * (n - 1) / 2 + s + s * o + o * (o + 1) / 2 + stored * (o + 1))


def _decodes(s: NDArray[np.int64], o: NDArray[np.int64], first: int) -> NDArray[np.int64]:
    return o - first


def _chunks(s: NDArray[np.int64], o: NDArray[np.int64], chunk: int) -> NDArray[np.float64]:
    return np.ceil(s / chunk)


def _decode_area(s: NDArray[np.int64], o: NDArray[np.int64], first: int, stored: int) -> NDArray[np.float64]:
    return s * (o - first) + (o - first) * (o - first + 1) / 2 + stored * (o - first)


def _squared(s: NDArray[np.int64], o: NDArray[np.int64]) -> NDArray[np.int64]:
    return s * s


def _prompt(s: NDArray[np.int64], o: NDArray[np.int64]) -> NDArray[np.int64]:
    return s


def _output(s: NDArray[np.int64], o: NDArray[np.int64]) -> NDArray[np.int64]:
    return o


def _both(s: NDArray[np.int64], o: NDArray[np.int64]) -> NDArray[np.int64]:
    return s + o


def _passes(s: NDArray[np.int64], o: NDArray[np.int64], chunk: int) -> NDArray[np.float64]:
    return np.ceil(s / chunk) + o


PROMPT, OUTPUT, BOTH = Moment(_prompt), Moment(_output), Moment(_both)
"""Lengths of the prompt, of the output and of both together, tokens, for `Workload.expectation`."""


def passes(chunk: int) -> Moment:
    """Batches that a request takes part in: its chunks of prefill and its decodes, for `Workload.expectation`."""
    return Moment(_passes, (chunk,))


@dataclass(frozen=True)
class Fitting:
    """Which requests of a workload a cache can ever hold: those whose prompt and output together are M tokens at most.

    Attributes:
        share: of the requests.
        smallest_tokens: prompt and output of the smallest request of the workload.
        mean_tokens: of all its requests.
        largest_tokens: of the largest that fits; 0 where none does.
    """

    share: float
    smallest_tokens: int
    mean_tokens: float
    largest_tokens: int


def fitting(workload: Workload, kv_capacity: float) -> Fitting:
    """The requests of a workload that fit into a cache of M tokens; those that do not fit can never be served."""
    _positive(kv_capacity=kv_capacity)
    smallest, largest, whole_classes = [], [0], []

    def fits(s: NDArray[np.int64], o: NDArray[np.int64]) -> NDArray[np.bool_]:
        tokens = s + o
        smallest.append(int(tokens.min()))
        small: NDArray[np.bool_] = tokens <= kv_capacity
        largest.append(int(tokens[small].max(initial=0)))
        whole_classes.append(bool(small.all()))
        return small

    share = workload.expectation(fits)
    if all(whole_classes):
        share = 1.0  # not a sum that is nearly 1
    return Fitting(share, min(smallest), workload.expectation(lambda s, o: s + o), max(largest))


def _mean(
    workload: Workload, f: Lengths, within: float = math.inf, phase_weights: Sequence[float] | None = None
) -> float:
    """E[f(s, o)] over the requests of at most `within` tokens."""
    if math.isinf(within):
        return workload.expectation(f, phase_weights)
    share = workload.expectation(lambda s, o: s + o <= within, phase_weights)
    if share == 0.0:
        raise InvalidArgument(f"within={within!r}: no request is so small")
    return workload.expectation(lambda s, o: np.where(s + o <= within, f(s, o), 0.0), phase_weights) / share


def mean_area(
    workload: Workload, chunk: int, exact: bool = False, first: int = 0, within: float = math.inf
) -> float:
    """E[area] over the requests of a workload.

    Args:
        workload: who asks.
        chunk: prefill chunk c, tokens.
        exact: with whole chunks, as `exact_area`, and not as the paper writes it, as `area`.
        first: 1 if the last prefill chunk yields the first output token (with `exact`).
        within: only requests of at most so many tokens, prompt and output together.

    Returns:
        Tokens x batches.

    Raises:
        InvalidArgument: a chunk of 0 or less, or no request of at most `within` tokens.
    """
    _positive(chunk=chunk)
    if exact:
        return _mean(workload, lambda s, o: exact_area(s, o, chunk, first), within)
    return _mean(workload, lambda s, o: area(s, o, chunk), within)


def critical_rate(kv_capacity: float, batch_s: float, mean_area: float) -> float:
    """The critical rate mu = M / (b E[g]), requests a second of one replica.

    Args:
        kv_capacity: M, tokens.
        batch_s: b, seconds of a batch near saturation.
        mean_area: E[g], tokens x batches.

    Raises:
        InvalidArgument: a number of 0 or less.
    """
    _positive(kv_capacity=kv_capacity, batch_s=batch_s, mean_area=mean_area)
    return kv_capacity / (batch_s * mean_area)


def slack(workload: Workload, kv_capacity: float) -> float:
    """The slack delta = max(s + o) / M: the share of the critical rate that Theorem 4.2 gives away."""
    _positive(kv_capacity=kv_capacity)
    return (workload.max_prompt_tokens + workload.max_output_tokens) / kv_capacity


def reserve_rate(workload: Workload, kv_capacity: float, batch_s: float, chunk: int) -> float:
    """Critical rate if admission reserves each request's peak: M / (b E[(s + o) (ceil(s / c) + o)]), requests a second.

    Args:
        workload: who asks.
        kv_capacity: M, tokens.
        batch_s: b, seconds of a batch.
        chunk: prefill chunk c, tokens.

    Raises:
        InvalidArgument: a number of 0 or less.
    """
    held = workload.expectation(lambda s, o: (s + o) * (np.ceil(s / chunk) + o))
    return critical_rate(kv_capacity, batch_s, held)


def budget_rate(workload: Workload, budget: float, batch_s: float) -> float:
    """Rate at which a budget of K tokens a batch is used up: K / (b E[s + o]), requests a second (Dai et al., 2504.07347).

    Args:
        workload: who asks.
        budget: K, tokens of a batch.
        batch_s: b, seconds of a batch.

    Raises:
        InvalidArgument: a number of 0 or less.
    """
    _positive(budget=budget, batch_s=batch_s)
    return budget / (batch_s * workload.expectation(lambda s, o: s + o))


def mixture_rate(shares: Sequence[float], rates: Sequence[float]) -> float:
    """Critical rate of a mixture of workloads: 1 / sum(q_l / mu_l), q_l the share of requests of part l."""
    if len(shares) != len(rates) or not shares:
        raise InvalidArgument(
            f"shares has {len(shares)} entries and rates {len(rates)}: expected the same number, at least 1"
        )
    _positive(**{f"rates[{i}]": rate for i, rate in enumerate(rates)})
    for i, share in enumerate(shares):
        number(f"shares[{i}]", share, zero=True)
    total = number("sum of shares", math.fsum(shares))
    return 1.0 / math.fsum(share / total / rate for share, rate in zip(shares, rates, strict=True))


def gpus_needed(rate_rps: float, rate_per_gpu: float, utilization: float = 0.9) -> int:
    """G = ceil(lambda / (rho mu)): replicas that keep each at most `utilization` busy.

    Args:
        rate_rps: lambda, requests a second of the whole service.
        rate_per_gpu: mu, critical rate of one replica.
        utilization: rho, target in (0, 1].

    Returns:
        A whole number; 0 for a rate of 0.

    Raises:
        InvalidArgument: a number out of range, or so many replicas that they cannot be counted.
    """
    if not math.isfinite(rate_rps) or rate_rps < 0:
        raise InvalidArgument(f"rate_rps={rate_rps!r}: expected a finite number >= 0")
    if not 0 < utilization <= 1:
        raise InvalidArgument(f"utilization={utilization!r}: expected 0 < utilization <= 1")
    _positive(rate_per_gpu=rate_per_gpu)
    served = utilization * rate_per_gpu
    if not rate_rps <= served * _MOST_GPUS:
        raise InvalidArgument(
            f"rate_rps={rate_rps!r}: needs more than {_MOST_GPUS:.0e} GPUs of {served:.3g} requests a second each"
        )
    return math.ceil(rate_rps / served)


def safe_class_budgets(workload: Workload, kv_capacity: float, chunk: int) -> tuple[int, ...]:
    """Admissions to a batch for each class, in proportion to the classes' shares, such that sum(b_k g_k) <= M.

    Dong and Cao (arXiv 2604.11001), Algorithm 1: with those budgets the cache cannot overflow and no memory check is needed. Where
    M is less than one request's area no whole number is safe; the least budget, 1, is returned then, and the engine has to deal
    with overflows.

    Args:
        workload: with the classes.
        kv_capacity: M, tokens.
        chunk: prefill chunk, tokens.

    Returns:
        One whole number a class, 1 or more.
    """
    shares = np.mean([np.asarray(phase.weights) / sum(phase.weights) for phase in workload.phases], axis=0)
    areas = []
    for request_class in workload.classes:
        if workload.conversations is not None:
            alone = replace(workload, classes=(request_class,), phases=())
            areas.append(alone.expectation(lambda prompt, output: exact_area(prompt, output, chunk)))
            continue
        prompt, output, probability = request_class.points()
        areas.append(float(exact_area(prompt, output, chunk) @ probability))
    scale = kv_capacity / float(shares @ np.array(areas))
    return tuple(max(1, math.floor(scale * share)) for share in shares)


def with_class_budgets(rule: Rule, workload: Workload, kv_capacity: int, chunk: int) -> Rule:
    """The rule; if it admits by class budgets and names none, with those of `safe_class_budgets`.

    Args:
        rule: an admission rule.
        workload: with the classes.
        kv_capacity: M, tokens.
        chunk: prefill chunk, tokens.
    """
    if rule.check != "class-budget" or rule.class_budgets:
        return rule
    return replace(rule, class_budgets=safe_class_budgets(workload, kv_capacity, chunk))


def gap(theory: float, measured: float) -> float:
    """|theory - measured| / measured, as the paper reports it."""
    _positive(measured=measured)
    return abs(theory - measured) / measured


@dataclass(frozen=True)
class Saturation:
    """An engine that always has work waiting.

    Attributes:
        rate_rps: requests a second it completes.
        batch_s: mean duration of a batch, s.
        memory_rate_rps: the rate the KV cache allows.
        budget_rate_rps: the rate the token budget allows (inf without one).
        seats_rate_rps: the rate the limit on running requests allows.
        residents: requests in a batch, on average.
        kv_used: mean share of the cache in use.
        mean_area: E[g], tokens x batches.
        binding: what limits it: "KV cache", "token budget" or "sequence limit".
    """

    rate_rps: float
    batch_s: float
    memory_rate_rps: float
    budget_rate_rps: float
    seats_rate_rps: float
    residents: float
    kv_used: float
    mean_area: float
    binding: str


def saturation(
    workload: Workload,
    profile: Profile,
    kv_capacity: int,
    chunk: int,
    budget: int = UNLIMITED,
    seats: int = UNLIMITED,
    first: int = 0,
    phase_weights: Sequence[float] | None = None,
    stored: int = 0,
    within: float = math.inf,
) -> Saturation:
    """Predict the saturated engine: the closed forms, with the batch time that the profile gives for such a batch.

    A batch completes `r` requests on average, where `r` is the least that cache, token budget and seats allow. Its
    composition follows: r E[s] prompt tokens, r E[o] output tokens, r E[area] tokens in the cache. With fewer than one
    prefill chunk a batch on average, batches with and without a chunk are weighted. Only requests of at most `within` tokens
    (prompt and output) are served; the rate is that of these.

    Args:
        workload: who asks.
        profile: what a batch costs.
        kv_capacity: M, tokens.
        chunk: prefill chunk, tokens.
        budget: tokens of a batch.
        seats: requests that run at once.
        first: 1 if the last prefill chunk yields the first output token.
        phase_weights: share of each phase of the workload; None: as the workload says.
        stored: 1 if that token is stored in the same batch.
        within: only requests of at most so many tokens, prompt and output together.

    Returns:
        The prediction; `binding` names the limit.

    Raises:
        InvalidArgument: a number of 0 or less, or no request of at most `within` tokens.
    """
    _positive(kv_capacity=kv_capacity, chunk=chunk, budget=budget, seats=seats)
    chunk = min(chunk, budget)

    def mean(f: Lengths) -> float:
        return _mean(workload, f, within, phase_weights)

    g = mean(Moment(exact_area, (chunk, first, stored)))
    prompt = mean(PROMPT)
    output = mean(Moment(_decodes, (first,)))
    chunks = mean(Moment(_chunks, (chunk,)))
    decode_area = mean(Moment(_decode_area, (first, stored)))
    limits = {
        "KV cache": kv_capacity / g,
        "token budget": budget / (prompt + output),
        "sequence limit": seats / (chunks + output),
    }
    binding = min(limits, key=lambda name: limits[name])
    per_batch = limits[binding]
    cost = profile.step_cost()
    decodes, resident = per_batch * output, per_batch * g
    share = min(1.0, per_batch * chunks)
    tokens = per_batch * prompt / share
    each = prompt / chunks
    context = max(mean(Moment(_squared)) / prompt - each, 0.0) / 2
    attention = tokens / each * prefill_attention_s(cost, max(1, round(each)), round(context))
    kv = round(per_batch * decode_area)
    n = max(1, round(decodes))
    with_chunk = step_time_s(
        cost, round(tokens), attention, n, kv, n + max(1, round(tokens / each)), round(resident)
    )
    without = step_time_s(cost, 0, 0.0, n, kv, n, round(resident))
    batch_s = share * with_chunk + (1 - share) * without
    return Saturation(
        rate_rps=per_batch / batch_s,
        batch_s=batch_s,
        memory_rate_rps=limits["KV cache"] / batch_s,
        budget_rate_rps=limits["token budget"] / batch_s if budget < UNLIMITED else math.inf,
        seats_rate_rps=limits["sequence limit"] / batch_s if seats < UNLIMITED else math.inf,
        residents=per_batch * (chunks + output),
        kv_used=per_batch * g / kv_capacity,
        mean_area=g,
        binding=binding,
    )


def _positive(**values: float) -> None:
    for name, value in values.items():
        number(name, value)
