"""How many attention instances one FFN instance can feed: the closed forms of attention-FFN disaggregated decoding.

From Song, Wang, Zhou, Liang, Lyu, Chen, Fan, Zhou, "Theoretically Optimal Attention/FFN Ratios in Disaggregated LLM Serving"
(arXiv 2601.21351v1), renamed "Analytical Provisioning for Attention-FFN Disaggregated LLM Serving under Stochastic Workloads" in
its third version. A bundle has r attention instances, each with a microbatch of B requests and their KV cache, and one FFN
instance that serves all r B tokens of a step. With latencies that are affine in the load (section 3),

    tau = max(t_A, t_C, t_F(r)),    throughput = r B / ((r + 1) tau)  tokens per time and instance,

and the best r is max(r_A, r_C, r_peak) (Theorem 4.4). The workload enters through theta, the mean tokens a slot holds (versions 2
and later), and, where the FFN waits for the slowest instance, through nu, its standard deviation (`llmgym.envs.afd.occupancy`).
What is worked out here and not in the paper says so: `microbatch_time`, `expected_slowest` for any floor, and rational ratios.

Times are in the unit of the coefficients (see `llmgym.envs.afd.costs`): "cycles" in the paper.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llmgym.core.checks import choice, number, whole
from llmgym.envs.afd.costs import Coefficients
from llmgym.errors import InvalidArgument

COMMUNICATION = ("per_instance", "aggregate")
"""What t_C grows with: the B requests of one attention instance (version 1), or all r B requests at the FFN instance."""

ATTENTION, LINK, FFN, WAY = "attention", "communication", "FFN", "round trip"
"""What binds at an optimum: attention or communication balances the FFN, or the FFN alone decides (r_peak); with few microbatches
in flight also their whole round trip."""

Floats = NDArray[np.float64]

_EQUAL = 1e-9  # times that differ by less than this share are equal: far above rounding errors


# -- time of a step ----------------------------------------------------------------------------------------------------------


def _positive(name: str, values: ArrayLike) -> Floats:
    array = np.asarray(values, np.float64)
    if not (np.isfinite(array) & (array > 0)).all():
        raise InvalidArgument(f"{name}={values!r}: expected finite numbers > 0")
    return array


def communication_time(
    coefficients: Coefficients, batch: int, ratio: ArrayLike, comm: str = "per_instance"
) -> Floats:
    """t_C of a step: alpha_C B + beta_C, or alpha_C r B + beta_C with `comm="aggregate"`.

    Args:
        coefficients: the latencies.
        batch: B, requests of a microbatch of one instance.
        ratio: r, attention instances per FFN instance.
        comm: what communication grows with, one of `COMMUNICATION`.

    Returns:
        Time of the round trip, float64, shape of `ratio`.

    Raises:
        UnknownName: another `comm`.
        InvalidArgument: a number out of range.
    """
    choice("comm", comm, COMMUNICATION)
    r = _positive("ratio", ratio)
    requests = whole("batch", batch) * (r if comm == "aggregate" else np.ones_like(r))
    return np.asarray(coefficients.alpha_comm * requests + coefficients.beta_comm)


def step_time(
    coefficients: Coefficients, batch: int, theta: float, ratio: ArrayLike, comm: str = "per_instance"
) -> Floats:
    """Mean-field tau = max(t_A, t_C, t_F(r)) of a step whose communication is hidden (section 4).

    Args:
        coefficients: the latencies.
        batch: B, requests of a microbatch of one instance.
        theta: mean tokens of a slot.
        ratio: r, attention instances per FFN instance.
        comm: what communication grows with, one of `COMMUNICATION`.

    Returns:
        Time, float64, shape of `ratio`.

    Raises:
        UnknownName: another `comm`.
        InvalidArgument: a number out of range.
    """
    b, r = whole("batch", batch), _positive("ratio", ratio)
    attention = coefficients.attention(b * number("theta", theta))
    return np.maximum(
        attention, np.maximum(communication_time(coefficients, b, r, comm), coefficients.ffn(r * b))
    )


_SPAN = 9.0  # standard deviations beyond which a normal law is taken to be nothing: 1e-19 of it lies there
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(96)


def expected_slowest(floor: ArrayLike, mean: ArrayLike, spread: ArrayLike, workers: ArrayLike) -> Floats:
    """E[max(floor, mean + spread max(Z_1 .. Z_workers))] with independent standard normal Z.

    It is floor + spread * the integral of 1 - Phi(x)^workers from (floor - mean) / spread, by Gauss-Legendre (96 nodes, in
    logarithms). The arguments are broadcast against each other.

    Args:
        floor: what the maximum is at least.
        mean: of each normal variable.
        spread: standard deviation of each; 0 gives max(floor, mean).
        workers: how many there are, above 0; it need not be whole.

    Returns:
        float64, of the shape that the arguments have together, in their unit.
    """
    from scipy.special import log_ndtr

    c, m, s, n = np.broadcast_arrays(*(np.asarray(a, np.float64) for a in (floor, mean, spread, workers)))
    with np.errstate(divide="ignore", invalid="ignore"):
        start = np.where(s > 0, np.clip((c - m) / s, -_SPAN, _SPAN), _SPAN)
    half = (_SPAN - start) / 2.0
    x = start[..., None] + half[..., None] * (_NODES + 1.0)
    area = (-np.expm1(n[..., None] * log_ndtr(x)) * _WEIGHTS).sum(axis=-1) * half
    return np.asarray(np.where(s > 0, np.maximum(c, m - _SPAN * s) + s * area, np.maximum(c, m)))


def kappa(workers: ArrayLike) -> Floats:
    """E[max(Z_1 .. Z_workers)] of standard normal Z: 0, 0.5642, 1.0294, 1.4236 for 1, 2, 4, 8. Shape of `workers`."""
    return expected_slowest(-2.0 * _SPAN, 0.0, 1.0, _positive("workers", workers))


def barrier_time(
    coefficients: Coefficients,
    batch: int,
    theta: float,
    nu: float,
    ratio: ArrayLike,
    comm: str = "per_instance",
    workers: ArrayLike | None = None,
) -> Floats:
    """tau_G(r): a step where the FFN waits for the slowest attention instance, whose loads are normal (versions 2 and later).

    Args:
        coefficients: the latencies.
        batch: B, requests of a microbatch of one instance.
        theta: mean tokens of a slot.
        nu: standard deviation of the tokens of a slot; the load of an instance is N(B theta, B nu^2). 0 gives `step_time`.
        ratio: r, attention instances per FFN instance.
        comm: what communication grows with, one of `COMMUNICATION`.
        workers: instances that the barrier waits for: x of a bundle xA-yF; r, but at least one, if left out.

    Returns:
        Time, float64, shape of `ratio`.

    Raises:
        UnknownName: another `comm`.
        InvalidArgument: a number out of range.
    """
    b, r = whole("batch", batch), _positive("ratio", ratio)
    mean = coefficients.attention(b * number("theta", theta))
    spread = coefficients.alpha_attention * number("nu", nu, zero=True) * math.sqrt(b)
    floor = np.maximum(communication_time(coefficients, b, r, comm), coefficients.ffn(r * b))
    return expected_slowest(floor, mean, spread, _waited_for(r, workers))


def _waited_for(ratio: Floats, workers: ArrayLike | None) -> Floats:
    """Instances that a barrier waits for: r, and at least one."""
    return np.maximum(ratio, 1.0) if workers is None else _positive("workers", workers)


def microbatch_time(
    coefficients: Coefficients,
    batch: int,
    theta: float,
    ratio: ArrayLike,
    batches: int,
    nu: float = 0.0,
    comm: str = "per_instance",
    workers: ArrayLike | None = None,
) -> Floats:
    """Time per step of one microbatch with m of them in flight: max(t_A, t_F, (t_A + t_C + t_F) / m) (worked out here).

    A microbatch goes through attention, link, FFN and link in turn, so m of them cannot go round faster than the whole way divided
    by m, nor faster than either pool. With a barrier (`nu`), t_A is m0 + kappa sigma where a microbatch waits for its slowest
    instance, and m0 + kappa sigma / sqrt(m) where instances that are fast can begin the next one.

    Args:
        coefficients: the latencies.
        batch: B, requests of one microbatch of one instance.
        theta: mean tokens of a slot.
        ratio: r, attention instances per FFN instance.
        batches: m. With 1 nothing overlaps; from 3 on the link is hidden wherever t_C < t_A + t_F.
        nu: standard deviation of the tokens of a slot; 0 for the mean field.
        comm: what communication grows with, one of `COMMUNICATION`.
        workers: instances that the barrier waits for: x of a bundle xA-yF; r, but at least one, if left out.

    Returns:
        Time, float64, shape of `ratio`; a request gets a token every `batches` times that.

    Raises:
        UnknownName: another `comm`.
        InvalidArgument: a number out of range.
    """
    b, r, m = whole("batch", batch), _positive("ratio", ratio), whole("batches", batches)
    mean = coefficients.attention(b * number("theta", theta))
    wait = kappa(_waited_for(r, workers)) if nu > 0 else np.zeros_like(r)
    wait = wait * coefficients.alpha_attention * number("nu", nu, zero=True) * math.sqrt(b)
    ffn = coefficients.ffn(r * b)
    way = (mean + wait + communication_time(coefficients, b, r, comm) + ffn) / m
    return np.maximum(np.maximum(mean + wait / math.sqrt(m), ffn), way)


def throughput(ratio: ArrayLike, batch: int, step_time: ArrayLike) -> Floats:
    """Output tokens per time and instance, r B / ((r + 1) tau).

    Args:
        ratio: r, attention instances per FFN instance.
        batch: B, requests of a microbatch of one instance.
        step_time: tau of a step, shape of `ratio`.

    Returns:
        Tokens per time, float64, shape of `ratio`.

    Raises:
        InvalidArgument: a number out of range.
    """
    r = _positive("ratio", ratio)
    return np.asarray(r * whole("batch", batch) / ((r + 1.0) * _positive("step_time", step_time)))


# -- the best ratio ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Optimum:
    """The best ratio of attention to FFN instances.

    Attributes:
        ratio: r*, a real number.
        throughput: at r*, tokens per time and instance.
        step_time: at r*, in the unit of the coefficients.
        binding: "attention" or "communication" where that balances the FFN, "FFN" where r_peak decides, "round trip" where
            microbatches wait for their own return.
        attention_ratio: r_A, where attention and FFN take equally long; negative if the FFN is always slower.
        communication_ratio: r_C, where communication and FFN take equally long; negative if the FFN is always slower.
        peak_ratio: r_peak, where the throughput of the FFN alone is largest.
        attention_instances: x of the best bundle xA-yF that can be built.
        ffn_instances: y of the best bundle xA-yF that can be built.
        feasible_throughput: of the best bundle that can be built, tokens per time and instance.
    """

    ratio: float
    throughput: float
    step_time: float
    binding: str
    attention_ratio: float
    communication_ratio: float
    peak_ratio: float
    attention_instances: int
    ffn_instances: int
    feasible_throughput: float


def feasible_ratios(instances: int) -> tuple[tuple[int, int], ...]:
    """Bundles (x, y) of at most `instances` instances in lowest terms, x of attention and y of FFN, by rising x / y.

    In lowest terms, as a bundle that is two smaller ones only waits for more instances.

    Raises:
        InvalidArgument: fewer than 2 instances.
    """
    most = whole("instances", instances, 2, 4096)
    pairs = [(x, y) for y in range(1, most) for x in range(1, most - y + 1) if math.gcd(x, y) == 1]
    return tuple(sorted(pairs, key=lambda pair: pair[0] / pair[1]))


def _neighbours(ratio: float, instances: int | None) -> list[tuple[int, int]]:
    """The bundles next below and next above a ratio: xA-1F, or of at most so many instances."""
    if instances is None:
        below = max(math.floor(ratio), 1)
        return [(below, 1), (below + 1, 1)]
    pairs = feasible_ratios(instances)
    above = int(np.searchsorted([x / y for x, y in pairs], ratio))
    return list(pairs[max(above - 1, 0) : above + 1])


def _balance(coefficients: Coefficients, batch: int, theta: float) -> tuple[float, float, float]:
    """r_A, r_C (for communication that does not depend on r) and r_peak."""
    per_ratio = coefficients.alpha_ffn * batch
    attention = coefficients.attention(batch * theta)
    link = coefficients.alpha_comm * batch + coefficients.beta_comm
    return (
        float(attention - coefficients.beta_ffn) / per_ratio,
        (link - coefficients.beta_ffn) / per_ratio,
        math.sqrt(coefficients.beta_ffn / per_ratio),
    )


def _best(
    ratio: float,
    time: Callable[[Any, Any], Floats],
    batch: int,
    binding: str,
    balance: tuple[float, float, float],
    instances: int | None,
) -> Optimum:
    def value(r: float, workers: float) -> tuple[float, float]:
        tau = float(time(r, workers))
        return float(throughput(r, batch, tau)), tau

    best, tau = value(ratio, max(ratio, 1.0))
    bundles = [(value(x / y, x)[0], x, y) for x, y in _neighbours(ratio, instances)]
    feasible, x, y = max(bundles, key=lambda entry: entry[0])
    return Optimum(ratio, best, tau, binding, *balance, x, y, feasible)


def _best_of_pieces(pieces: list[tuple[float, float]], batch: int) -> float:
    """The r that maximises r / ((r + 1) max_i(slope_i r + base_i)); each piece is (slope, base).

    (1 + 1/r) (slope r + base) is convex in r, so is the largest of several: the optimum is where one piece is least, at sqrt(base /
    slope), or where two of them cross.
    """
    candidates = [math.sqrt(base / slope) for slope, base in pieces if slope > 0 and base > 0]
    for i, (slope, base) in enumerate(pieces):
        candidates += [(b - base) / (slope - s) for s, b in pieces[:i] if s != slope]
    possible = np.array([r for r in candidates if r > 0])
    if not possible.size:
        raise InvalidArgument(
            "no finite ratio is best: neither FFN nor communication takes longer with more requests"
        )
    times = np.max([slope * possible + base for slope, base in pieces], axis=0)
    return float(possible[np.argmax(throughput(possible, batch, times))])


def optimal_ratio(
    coefficients: Coefficients,
    batch: int,
    theta: float,
    comm: str = "per_instance",
    instances: int | None = None,
) -> Optimum:
    """The mean-field optimum r* = max(r_A, r_C, r_peak) (Theorem 4.4), and the better of the bundles next to it.

    With `comm="aggregate"` communication grows with r as the FFN does; then the candidates are the balance points of the three
    latencies and the least points of those that grow.

    Args:
        coefficients: the latencies.
        batch: B, requests of a microbatch of one instance.
        theta: mean tokens of a slot (`theta`, or `finite_load` / B, of `llmgym.envs.afd.occupancy`).
        comm: what communication grows with, one of `COMMUNICATION`.
        instances: most instances of a bundle; None allows any number of attention instances and one of FFN.

    Returns:
        The optimum, with times in the unit of the coefficients.

    Raises:
        UnknownName: another `comm`.
        InvalidArgument: a number out of range.
    """
    b, t = whole("batch", batch), number("theta", theta)
    choice("comm", comm, COMMUNICATION)
    balance = _balance(coefficients, b, t)
    if comm == "per_instance":
        ratio = max(balance)
        binding = (ATTENTION, LINK, FFN)[balance.index(ratio)]
    else:
        pieces = [
            (0.0, float(coefficients.attention(b * t))),
            (coefficients.alpha_comm * b, coefficients.beta_comm),
            (coefficients.alpha_ffn * b, coefficients.beta_ffn),
        ]
        ratio = _best_of_pieces(pieces, b)
        times = [slope * ratio + base for slope, base in pieces]
        longest = max(times)
        # At a balance point two latencies are equal, and the one that does not grow binds; elsewhere the longest does.
        names = (ATTENTION, LINK, FFN)
        binding = next(n for n, x in zip(names, times, strict=True) if x >= longest * (1.0 - _EQUAL))
    return _best(ratio, lambda r, _: step_time(coefficients, b, t, r, comm), b, binding, balance, instances)


def microbatch_ratio(
    coefficients: Coefficients,
    batch: int,
    theta: float,
    batches: int,
    comm: str = "per_instance",
    instances: int | None = None,
) -> Optimum:
    """The optimum of the mean field with m microbatches in flight (`microbatch_time`).

    With m = 2 the best ratio is (t_A - t_C - beta_F) / (alpha_F B) where that exceeds r_peak: communication is not hidden at
    balance. From m = 3 on it is that of `optimal_ratio` wherever t_C < t_A + t_F.

    Args:
        coefficients: the latencies.
        batch: B, requests of one microbatch of one instance.
        theta: mean tokens of a slot.
        batches: m, microbatches in flight.
        comm: what communication grows with, one of `COMMUNICATION`.
        instances: most instances of a bundle; None allows any number of attention instances and one of FFN.

    Returns:
        The optimum, with times in the unit of the coefficients.

    Raises:
        UnknownName: another `comm`.
        InvalidArgument: a number out of range.
    """
    b, t, m = whole("batch", batch), number("theta", theta), whole("batches", batches)
    choice("comm", comm, COMMUNICATION)
    attention = float(coefficients.attention(b * t))
    link = (coefficients.alpha_comm * b, coefficients.beta_comm)
    if comm == "per_instance":
        link = (0.0, link[0] + link[1])
    ffn = (coefficients.alpha_ffn * b, coefficients.beta_ffn)
    way = ((ffn[0] + link[0]) / m, (attention + link[1] + ffn[1]) / m)
    pieces = [(0.0, attention), ffn, way]
    ratio = _best_of_pieces(pieces, b)
    times = [slope * ratio + base for slope, base in pieces]
    binding = (ATTENTION, FFN, WAY)[int(np.argmax(np.array(times) >= max(times) * (1.0 - _EQUAL)))]
    return _best(
        ratio,
        lambda r, _: microbatch_time(coefficients, b, t, r, m, 0.0, comm),
        b,
        binding,
        _balance(coefficients, b, t),
        instances,
    )


def barrier_ratio(
    coefficients: Coefficients,
    batch: int,
    theta: float,
    nu: float,
    comm: str = "per_instance",
    instances: int | None = None,
) -> Optimum:
    """The optimum r*_G with a barrier (`barrier_time`), searched numerically.

    Args:
        coefficients: the latencies.
        batch: B, requests of a microbatch of one instance.
        theta: mean tokens of a slot.
        nu: standard deviation of the tokens of a slot.
        comm: what communication grows with, one of `COMMUNICATION`.
        instances: most instances of a bundle; None allows any number of attention instances and one of FFN.

    Returns:
        The optimum, with times in the unit of the coefficients; `binding` and the three balance ratios are those of the mean field.

    Raises:
        UnknownName: another `comm`.
        InvalidArgument: a number out of range.
    """
    from scipy.optimize import minimize_scalar

    field = optimal_ratio(coefficients, batch, theta, comm, instances)
    b = whole("batch", batch)

    def time(r: Any, workers: Any) -> Floats:
        return barrier_time(coefficients, b, theta, nu, r, comm, workers)

    # The barrier lifts attention, so the optimum is near r* or above; on a logarithmic grid first, as a bracket.
    grid = np.exp(np.linspace(math.log(field.ratio / 8.0), math.log(field.ratio * 8.0), 193))
    peak = int(np.argmax(throughput(grid, b, time(grid, np.maximum(grid, 1.0)))))
    low, high = grid[max(peak - 1, 0)], grid[min(peak + 1, len(grid) - 1)]
    best = minimize_scalar(
        lambda r: -float(throughput(r, b, time(r, max(r, 1.0)))),
        bounds=(low, high),
        method="bounded",
        options={"xatol": 1e-9 * field.ratio},
    )
    balance = (field.attention_ratio, field.communication_ratio, field.peak_ratio)
    return _best(float(best.x), time, b, field.binding, balance, instances)
