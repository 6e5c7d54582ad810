"""How many attention instances one FFN instance can feed: the closed forms of attention-FFN disaggregated decoding.

From Song, Wang, Zhou, Liang, Lyu, Chen, Fan, Zhou, "Theoretically Optimal Attention/FFN Ratios in Disaggregated LLM Serving"
(arXiv 2601.21351v1), renamed "Analytical Provisioning for Attention-FFN Disaggregated LLM Serving under Stochastic Workloads" in
its third version. A bundle has r attention instances, each with a microbatch of B requests and their KV cache, and one FFN
instance that serves all r B tokens of a step. With latencies that are affine in the load (section 3),

    tau = max(t_A, t_C, t_F(r)),    throughput = r B / ((r + 1) tau)  tokens per time and instance,

and the best r is max(r_A, r_C, r_peak) (Theorem 4.4). The workload enters through theta, the mean tokens a slot holds (versions 2
and later), and, where the FFN waits for the slowest instance, through nu, its standard deviation. What is worked out here and not
in the paper says so: `microbatch_time`, `expected_slowest` for any floor, and rational ratios.

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
"""What t_C grows with: the B requests of one attention instance (v1), or all r B requests at the FFN instance."""

ATTENTION, LINK, FFN, WAY = "attention", "communication", "FFN", "round trip"
"""What binds at an optimum: attention or communication balances the FFN, or the FFN alone decides (r_peak); with few
microbatches in flight also their whole round trip."""

Floats = NDArray[np.float64]


# -- what a slot holds ---------------------------------------------------------------------------------------------------


def _requests(prompt_tokens: ArrayLike, steps: ArrayLike) -> tuple[Floats, Floats]:
    prompt, length = np.asarray(prompt_tokens, np.float64), np.asarray(steps, np.float64)
    if prompt.shape != length.shape or prompt.ndim != 1 or prompt.size == 0:
        raise InvalidArgument(
            f"prompt_tokens has shape {prompt.shape}, steps {length.shape}: expected one shape [n], n >= 1"
        )
    if not (np.isfinite(prompt) & (prompt >= 0)).all():
        raise InvalidArgument("prompt_tokens: expected finite numbers >= 0")
    if not (np.isfinite(length) & (length >= 1)).all():
        raise InvalidArgument(
            "steps: expected finite numbers >= 1 (a request is in its slot for at least one step)"
        )
    return prompt, length


def theta(prompt_tokens: ArrayLike, steps: ArrayLike) -> float:
    """Mean tokens of a slot, E[P L + L (L - 1) / 2] / E[L], estimated from finished requests (v2, renewal reward).

    A request with prompt P holds P, P + 1, ..., P + L - 1 tokens in the L steps it stays. It is a mean over steps, so
    long requests count for longer; and P and L of one request belong together, as their covariance counts.

    Args:
        prompt_tokens: [n], tokens.
        steps: L, [n], steps in the slot: for a decode length D of version 1, which stays D + 1 steps, it is D + 1.

    Returns:
        Tokens.

    Raises:
        InvalidArgument: shapes differ, no request, a negative prompt or less than one step.
    """
    p, n = _requests(prompt_tokens, steps)
    return float((p * n + n * (n - 1) / 2).sum() / n.sum())


def nu(prompt_tokens: ArrayLike, steps: ArrayLike) -> float:
    """Standard deviation of the tokens of a slot, from finished requests; arguments as for `theta`. Tokens."""
    p, n = _requests(prompt_tokens, steps)
    second = (n * p * p + p * n * (n - 1) + n * (n - 1) * (2 * n - 1) / 6).sum() / n.sum()
    return math.sqrt(max(float(second) - theta(p, n) ** 2, 0.0))


def theta_geometric(mean_prompt: float, mean_decode: float) -> float:
    """`theta` of geometric decode lengths D = 0, 1, ... with prompts independent of them: mu_P + mu_D (v1), tokens."""
    return number("mean_prompt", mean_prompt, zero=True) + number("mean_decode", mean_decode)


def nu_geometric(prompt_variance: float, mean_decode: float) -> float:
    """`nu` of the same: sqrt(Var(P) + mu_D (mu_D + 1)), tokens."""
    variance = number("prompt_variance", prompt_variance, zero=True)
    decode = number("mean_decode", mean_decode)
    return math.sqrt(variance + decode * (decode + 1.0))


def theta_from_moments(steps: float, steps_squared: float, prompt_steps: float) -> float:
    """`theta` from E[L], E[L^2] and E[P L], tokens.

    Args:
        steps: E[L], at least 1.
        steps_squared: E[L^2].
        prompt_steps: E[P L]; E[P] E[L] where they are independent.
    """
    first, second = number("steps", steps), number("steps_squared", steps_squared)
    if first < 1.0:
        raise InvalidArgument(f"steps={steps!r}: expected a mean of at least one step")
    if second < first * first * (1.0 - 1e-12):
        raise InvalidArgument(
            f"steps_squared={steps_squared!r}: must be at least steps^2 = {first * first:g}"
        )
    return (number("prompt_steps", prompt_steps, zero=True) + (second - first) / 2.0) / first


def finite_load(batch: int, mean_prompt: float, mean_decode: float, requests: int) -> float:
    """Mean load of an instance over the steps in which it finishes `requests` requests from a cold start, tokens.

    B mu_P + B mu_D (1 - (1 - (1 - p)^K) / (K p)) with p = 1 / (mu_D + 1) and K = N / (B p) (v1, section 4, summed in closed
    form). It tends to B (mu_P + mu_D); the ratios that the paper prints are those of this load with N = 10,000.

    Args:
        batch: B.
        mean_prompt: mu_P, tokens.
        mean_decode: mu_D, tokens.
        requests: N.
    """
    b, n = whole("batch", batch), whole("requests", requests)
    prompt, decode = number("mean_prompt", mean_prompt, zero=True), number("mean_decode", mean_decode)
    p = 1.0 / (decode + 1.0)
    steps = n / (b * p)
    missing = -math.expm1(steps * math.log1p(-p)) / (steps * p)
    return b * prompt + b * decode * (1.0 - missing)


# -- time of a step ----------------------------------------------------------------------------------------------------------


def _positive(name: str, values: ArrayLike) -> Floats:
    array = np.asarray(values, np.float64)
    if not (np.isfinite(array) & (array > 0)).all():
        raise InvalidArgument(f"{name}={values!r}: expected finite numbers > 0")
    return array


def communication_time(
    coefficients: Coefficients, batch: int, ratio: ArrayLike, comm: str = "per_instance"
) -> Floats:
    """t_C of a step: alpha_C B + beta_C, or alpha_C r B + beta_C with `comm="aggregate"`; shape of `ratio`."""
    choice("comm", comm, COMMUNICATION)
    r = _positive("ratio", ratio)
    requests = whole("batch", batch) * (r if comm == "aggregate" else np.ones_like(r))
    return np.asarray(coefficients.alpha_comm * requests + coefficients.beta_comm)


def step_time(
    coefficients: Coefficients, batch: int, theta: float, ratio: ArrayLike, comm: str = "per_instance"
) -> Floats:
    """Mean-field tau = max(t_A, t_C, t_F(r)) of a step whose communication is hidden (section 4); shape of `ratio`.

    Args:
        coefficients: the latencies.
        batch: B, requests of a microbatch of one instance.
        theta: mean tokens of a slot.
        ratio: r, attention instances per FFN instance.
        comm: see `COMMUNICATION`.
    """
    b, r = whole("batch", batch), _positive("ratio", ratio)
    attention = coefficients.attention(b * number("theta", theta))
    return np.maximum(
        attention, np.maximum(communication_time(coefficients, b, r, comm), coefficients.ffn(r * b))
    )


_SPAN = 9.0  # standard deviations beyond which a normal law is taken to be nothing
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(96)


def expected_slowest(floor: ArrayLike, mean: ArrayLike, spread: ArrayLike, workers: ArrayLike) -> Floats:
    """E[max(floor, mean + spread max(Z_1 .. Z_workers))] with independent standard normal Z; arguments are broadcast.

    It is floor + spread * the integral of 1 - Phi(x)^workers from (floor - mean) / spread, by Gauss-Legendre (96 nodes, in
    logarithms). `workers` need not be whole. A spread of 0 gives max(floor, mean).
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
    """tau_G(r): a step where the FFN waits for the slowest attention instance, whose loads are normal (v2 and later).

    Args:
        coefficients: the latencies.
        batch: B.
        theta: mean tokens of a slot.
        nu: their standard deviation; the load of an instance is N(B theta, B nu^2). 0 gives `step_time`.
        ratio: r.
        comm: see `COMMUNICATION`.
        workers: instances that the barrier waits for: x of a bundle xA-yF; r, but at least one, if left out.

    Returns:
        Time, shape of `ratio`.
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

    A microbatch goes through attention, link, FFN and link in turn, so m of them cannot go round faster than the whole
    way divided by m, nor faster than either pool. With a barrier (`nu`), t_A is m0 + kappa sigma where a microbatch waits
    for its slowest instance, and m0 + kappa sigma / sqrt(m) where instances that are fast can begin the next one.

    Args:
        coefficients: the latencies.
        batch: B of one microbatch.
        theta: mean tokens of a slot.
        ratio: r.
        batches: m. With 1 nothing overlaps; from 3 on the link is hidden wherever t_C < t_A + t_F.
        nu: standard deviation of the tokens of a slot; 0 for the mean field.
        comm: see `COMMUNICATION`.
        workers: as in `barrier_time`.

    Returns:
        Time, shape of `ratio`; a request gets a token every `batches` times that.
    """
    b, r, m = whole("batch", batch), _positive("ratio", ratio), whole("batches", batches)
    mean = coefficients.attention(b * number("theta", theta))
    wait = kappa(_waited_for(r, workers)) if nu > 0 else np.zeros_like(r)
    wait = wait * coefficients.alpha_attention * number("nu", nu, zero=True) * math.sqrt(b)
    ffn = coefficients.ffn(r * b)
    way = (mean + wait + communication_time(coefficients, b, r, comm) + ffn) / m
    return np.maximum(np.maximum(mean + wait / math.sqrt(m), ffn), way)


def throughput(ratio: ArrayLike, batch: int, step_time: ArrayLike) -> Floats:
    """Output tokens per time and instance, r B / ((r + 1) tau); shape of `ratio`."""
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
        communication_ratio: r_C, where communication and FFN do, likewise.
        peak_ratio: r_peak, where the throughput of the FFN alone is largest.
        attention_instances: x of the best bundle xA-yF that can be built.
        ffn_instances: y.
        feasible_throughput: of that bundle.
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
    found = [(x, y) for y in range(1, most) for x in range(1, most - y + 1) if math.gcd(x, y) == 1]
    return tuple(sorted(found, key=lambda pair: pair[0] / pair[1]))


def _neighbours(ratio: float, instances: int | None) -> list[tuple[int, int]]:
    """The bundles next below and next above a ratio: xA-1F, or of at most so many instances."""
    if instances is None:
        below = max(math.floor(ratio), 1)
        return [(below, 1), (below + 1, 1)]
    pairs = feasible_ratios(instances)
    at = int(np.searchsorted([x / y for x, y in pairs], ratio))
    return list(pairs[max(at - 1, 0) : at + 1])


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
    found = [(value(x / y, x)[0], x, y) for x, y in _neighbours(ratio, instances)]
    feasible, x, y = max(found, key=lambda entry: entry[0])
    return Optimum(ratio, best, tau, binding, *balance, x, y, feasible)


def _best_of_pieces(pieces: list[tuple[float, float]], batch: int) -> float:
    """The r that maximises r / ((r + 1) max_i(slope_i r + base_i)); each piece is (slope, base).

    (1 + 1/r) (slope r + base) is convex in r, so is the largest of several: the optimum is where one piece is least, at
    sqrt(base / slope), or where two of them cross.
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

    With `comm="aggregate"` communication grows with r as the FFN does; then the candidates are the balance points of
    the three latencies and the least points of those that grow.

    Args:
        coefficients: the latencies.
        batch: B.
        theta: mean tokens of a slot (`theta`, or `finite_load` / B).
        comm: see `COMMUNICATION`.
        instances: of a bundle, at most; None allows any number of attention instances and one of FFN.

    Raises:
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
        # At a balance point two latencies are equal, and the one that does not grow is what binds; otherwise the one that is
        # longest.
        names = (ATTENTION, LINK, FFN)
        binding = next(n for n, x in zip(names, times, strict=True) if x >= longest * (1.0 - 1e-9))
    return _best(ratio, lambda r, _: step_time(coefficients, b, t, r, comm), b, binding, balance, instances)


def microbatch_ratio(
    coefficients: Coefficients,
    batch: int,
    theta: float,
    batches: int,
    comm: str = "per_instance",
    instances: int | None = None,
) -> Optimum:
    """The optimum of the mean field with m microbatches in flight (`microbatch_time`); arguments as for `optimal_ratio`.

    With m = 2 the best ratio is (t_A - t_C - beta_F) / (alpha_F B) where that exceeds r_peak: communication is not hidden
    at balance. From m = 3 on it is that of `optimal_ratio` wherever t_C < t_A + t_F.
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
    binding = (ATTENTION, FFN, WAY)[int(np.argmax(np.array(times) >= max(times) * (1.0 - 1e-9)))]
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
    """The optimum r*_G with a barrier (`barrier_time`), found numerically; arguments as for `optimal_ratio`, and `nu`.

    `binding` and the three balance ratios are those of the mean field.
    """
    from scipy.optimize import minimize_scalar

    field = optimal_ratio(coefficients, batch, theta, comm, instances)
    b = whole("batch", batch)

    def time(r: Any, workers: Any) -> Floats:
        return barrier_time(coefficients, b, theta, nu, r, comm, workers)

    # The barrier lifts attention, so the optimum is near r* or above; on a logarithmic grid first, as a bracket.
    grid = np.exp(np.linspace(math.log(field.ratio / 8.0), math.log(field.ratio * 8.0), 193))
    at = int(np.argmax(throughput(grid, b, time(grid, np.maximum(grid, 1.0)))))
    low, high = grid[max(at - 1, 0)], grid[min(at + 1, len(grid) - 1)]
    found = minimize_scalar(
        lambda r: -float(throughput(r, b, time(r, max(r, 1.0)))),
        bounds=(low, high),
        method="bounded",
        options={"xatol": 1e-9 * field.ratio},
    )
    balance = (field.attention_ratio, field.communication_ratio, field.peak_ratio)
    return _best(float(found.x), time, b, field.binding, balance, instances)
