"""Requests as a decode pool meets them: laws of (prompt, steps in the slot), each a table of equally likely requests.

A table says everything: compiled code draws a row, the trace estimators `theta` and `nu` of `llmgym.envs.afd.law` are exact on it,
and a law, a workload and a trace look the same. Tables of laws are even in the quantiles (the midpoints of 2^15 equal parts), and
where prompt and steps are independent their quantiles form a golden-ratio lattice, which has next to no correlation.

The laws are those of Song et al., arXiv 2601.21351: geometric decode lengths in version 1, any law in the later ones.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llmgym import workloads
from llmgym.core.checks import loaded, number
from llmgym.core.records import Record, Records, float64, int32
from llmgym.envs.afd.occupancy import nu, theta
from llmgym.errors import InvalidArgument, UnknownName
from llmgym.workloads import RequestClass, Workload

ROWS = 2**15
"""Requests in the table of a law, chosen here: the means of a geometric law are then right to 1e-3."""
MOST_TOKENS = 2**24
"""The longest prompt, and the longest stay: sums of loads then stay exact in double precision."""
_GOLDEN = (math.sqrt(5.0) - 1.0) / 2.0


class Law(Record):
    """A law of requests as compiled code sees it."""

    begin: int = int32("First of its rows in the table of all requests.")
    count: int = int32("Its rows in that table.")
    theta: float = float64("Mean tokens of a slot.")
    nu: float = float64("Standard deviation of the tokens of a slot.")
    mean_prompt: float = float64("Mean prompt of a request, tokens.")
    mean_steps: float = float64("Mean steps of a request in its slot.")
    best: float = float64("Largest throughput with a barrier, tokens per cycle and instance.")


@dataclass(frozen=True, eq=False)
class Requests:
    """A law of requests: one of the rows, each with the same probability.

    Attributes:
        name: what tables and pictures call it.
        prompt_tokens: int32 [n], tokens, at least 0.
        steps: int32 [n], steps in the slot, at least 1. In these the KV cache of a request holds prompt, prompt + 1, ...,
            prompt + steps - 1 tokens.

    Raises:
        InvalidArgument: the two have different shapes, or a number is out of range.
    """

    name: str
    prompt_tokens: NDArray[np.int32] = field(repr=False)
    steps: NDArray[np.int32] = field(repr=False)

    def __post_init__(self) -> None:
        for name, least in (("prompt_tokens", 0), ("steps", 1)):
            values = np.asarray(getattr(self, name))
            if values.ndim != 1 or values.size == 0 or values.shape != np.shape(self.steps):
                raise InvalidArgument(
                    f"{name}: shape {values.shape}, expected [n] with n >= 1, the same for both"
                )
            if not np.isfinite(values).all() or (values < least).any() or (values > MOST_TOKENS).any():
                raise InvalidArgument(f"{name}: expected numbers from {least} to {MOST_TOKENS}")
            object.__setattr__(self, name, np.rint(values).astype(np.int32))

    @cached_property
    def theta(self) -> float:
        """Mean tokens of a slot."""
        return theta(self.prompt_tokens, self.steps)

    @cached_property
    def nu(self) -> float:
        """Standard deviation of the tokens of a slot."""
        return nu(self.prompt_tokens, self.steps)

    @property
    def mean_prompt(self) -> float:
        """Mean prompt of a request, tokens."""
        return float(self.prompt_tokens.mean())

    @property
    def mean_steps(self) -> float:
        """Mean steps of a request."""
        return float(self.steps.mean())


def _even(rows: int) -> NDArray[np.float64]:
    return (np.arange(rows) + 0.5) / rows


def _lattice(rows: int) -> NDArray[np.float64]:
    """Second coordinate of a lattice whose first is `_even`, made as even as the first: float64 [rows]."""
    ranks = np.argsort(np.argsort((np.arange(rows) * _GOLDEN) % 1.0))
    return (ranks + 0.5) / rows


def _geometric(mean: float, u: NDArray[np.float64]) -> NDArray[np.float64]:
    """Quantiles of the geometric law on 0, 1, 2, ... with this mean."""
    return np.floor(np.log1p(-u) / math.log1p(-1.0 / (mean + 1.0)))


def _lognormal(mean: float, cv: float, u: NDArray[np.float64]) -> NDArray[np.float64]:
    from scipy.special import ndtri

    variance = math.log1p(cv * cv)
    return np.rint(mean * np.exp(math.sqrt(variance) * ndtri(u) - variance / 2.0))


def _prompts(prompt: float, prompt_cv: float, prompt_law: str, rows: int) -> NDArray[np.float64]:
    number("prompt", prompt, zero=True)
    if prompt_law == "constant" or prompt == 0.0:
        return np.full(rows, float(prompt))
    if prompt_law == "geometric":
        return _geometric(prompt, _lattice(rows))
    if prompt_law == "lognormal":
        return _lognormal(prompt, number("prompt_cv", prompt_cv), _lattice(rows))
    raise UnknownName("prompt_law", prompt_law, ("constant", "geometric", "lognormal"))


def geometric(
    prompt: float = 100.0,
    decode: float = 500.0,
    prompt_law: str = "geometric",
    prompt_cv: float = 1.0,
    prompt_per_step: float = 0.0,
) -> Requests:
    """Geometric decode lengths D on 0, 1, ... (version 1 of the paper): L = D + 1 steps, memoryless.

    Args:
        prompt: mean prompt, tokens.
        decode: mean of D, tokens.
        prompt_law: "constant", "geometric" or "lognormal"; the paper says only that prompts have the mean `prompt`.
        prompt_cv: coefficient of variation of a "lognormal" prompt.
        prompt_per_step: if positive, the prompt is this times D instead: long answers to long prompts.

    Returns:
        A table of `ROWS` requests.

    Raises:
        UnknownName: another `prompt_law`.
        InvalidArgument: a number out of range.
    """
    length = _geometric(number("decode", decode), _even(ROWS))
    if number("prompt_per_step", prompt_per_step, zero=True) > 0.0:
        prompts = np.rint(prompt_per_step * length)
    else:
        prompts = _prompts(prompt, prompt_cv, prompt_law, ROWS)
    return Requests("geometric", prompts, length + 1.0)  # type: ignore[arg-type]  # made whole there, after the check


def constant(prompt: float = 100.0, steps: float = 500.0) -> Requests:
    """Requests that are all alike: their prompt in tokens, and the steps they stay."""
    number("prompt", prompt, zero=True)
    return Requests("constant", np.array([prompt], np.int32), np.array([number("steps", steps)], np.int32))


def uniform(prompt: float = 100.0, low: float = 1.0, high: float = 999.0) -> Requests:
    """Steps that are uniform in low..high, and a constant prompt.

    Args:
        prompt: of every request, tokens.
        low: fewest steps, at least 1.
        high: most steps.

    Returns:
        A table with one request for each number of steps.

    Raises:
        InvalidArgument: a number out of range.
    """
    number("prompt", prompt, zero=True)
    if not 1.0 <= number("low", low) <= number("high", high):
        raise InvalidArgument(f"low={low!r}, high={high!r}: expected 1 <= low <= high")
    steps = np.arange(int(low), int(high) + 1, dtype=np.int32)
    return Requests("uniform", np.full(len(steps), prompt, np.int32), steps)


def lognormal(
    prompt: float = 100.0,
    steps: float = 500.0,
    cv: float = 2.0,
    prompt_law: str = "constant",
    prompt_cv: float = 1.0,
) -> Requests:
    """Lognormal steps, at least 1.

    Args:
        prompt: mean prompt, tokens.
        steps: mean steps.
        cv: coefficient of variation of the steps.
        prompt_law: "constant", "geometric" or "lognormal".
        prompt_cv: coefficient of variation of a "lognormal" prompt.

    Returns:
        A table of `ROWS` requests.

    Raises:
        UnknownName: another `prompt_law`.
        InvalidArgument: a number out of range.
    """
    length = np.maximum(_lognormal(number("steps", steps), number("cv", cv), _even(ROWS)), 1.0)
    prompts = _prompts(prompt, prompt_cv, prompt_law, ROWS)
    return Requests("lognormal", prompts.astype(np.int32), np.minimum(length, MOST_TOKENS).astype(np.int32))


LAWS: dict[str, Callable[..., Requests]] = {
    "geometric": geometric,
    "constant": constant,
    "uniform": uniform,
    "lognormal": lognormal,
}


def of_workload(workload: Workload, rows: int = ROWS) -> Requests:
    """The prompts and outputs of a workload: an output token is a step. Classes count by their mean share over the phases.

    Args:
        workload: its arrivals do not matter, as a decode pool in this model always has work waiting.
        rows: of the table; a class made of trace rows keeps them all if it is the only one. Turns of conversations are drawn.
    """
    if workload.conversations is not None:
        turns = workload.sample(np.random.default_rng(0), rows, information="none")
        return Requests(workload.name, turns.prompt_tokens, turns.output_tokens)
    if len(workload.classes) == 1 and (trace := workload.classes[0].rows) is not None:
        return Requests(workload.name, trace.prompt_tokens, trace.output_tokens)
    shares = np.mean([np.array(phase.weights) / sum(phase.weights) for phase in workload.phases], axis=0)
    counts = np.diff(np.rint(np.concatenate([[0.0], np.cumsum(shares)]) * rows)).astype(int)
    parts = [
        _of_class(request_class, count)
        for request_class, count in zip(workload.classes, counts, strict=True)
        if count > 0
    ]
    prompts, steps = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
    return Requests(workload.name, prompts, steps)


def _of_class(request_class: RequestClass, rows: int) -> tuple[NDArray[Any], NDArray[Any]]:
    u, v = _even(rows), _lattice(rows)
    if request_class.rows is not None:
        chosen = np.minimum((u * len(request_class.rows)).astype(int), len(request_class.rows) - 1)
        return request_class.rows.prompt_tokens[chosen], request_class.rows.output_tokens[chosen]
    assert request_class.prompt is not None and request_class.output is not None
    if request_class.correlation != 0.0:
        from scipy.special import ndtr, ndtri

        rho = request_class.correlation
        v = ndtr(rho * ndtri(u) + math.sqrt(1.0 - rho * rho) * ndtri(v))
    return request_class.prompt.quantile(u), request_class.output.quantile(v)


def of_arrays(prompt_tokens: ArrayLike, steps: ArrayLike, name: str = "trace") -> Requests:
    """Requests that were seen.

    Args:
        prompt_tokens: [n], tokens.
        steps: [n], steps that each was in its slot.
        name: what tables and pictures call them.

    Returns:
        A table with a row for each of them.

    Raises:
        InvalidArgument: shapes differ, no request, a negative prompt or less than one step.
    """
    theta(prompt_tokens, steps)
    return Requests(name, np.asarray(prompt_tokens, np.float64), np.asarray(steps, np.float64))  # type: ignore[arg-type]


@lru_cache(maxsize=64)
def _named(text: str) -> Requests:
    name, _, rest = text.partition(":")
    if name in LAWS:
        arguments: dict[str, Any] = {}
        for part in filter(None, rest.split(",")):
            key, equals, value = part.partition("=")
            if not equals:
                raise InvalidArgument(f"requests={text!r}: {part!r} is not name=value")
            try:
                arguments[key] = float(value)
            except ValueError:
                arguments[key] = value
        try:
            made = LAWS[name](**arguments)
        except TypeError as error:
            raise InvalidArgument(f"requests={text!r}: {error}") from None
        return Requests(text, made.prompt_tokens, made.steps)
    if text not in workloads.names():
        raise UnknownName("requests", text, [*LAWS, *workloads.names()])
    return of_workload(workloads.load(text))


RequestSource = str | Requests | Workload
"""What a law of requests can be given as; see `load`."""


def load(requests: RequestSource) -> Requests:
    """Requests by text, such as `"geometric:prompt=100,decode=500"` or the name of a workload; or from an object.

    Raises:
        UnknownName: no such law or workload.
        InvalidArgument: parameters that the law does not take.
    """
    if isinstance(requests, Requests):
        return requests
    if isinstance(requests, Workload):
        return of_workload(requests)
    if isinstance(requests, str):
        return _named(requests)
    raise InvalidArgument(f"requests={requests!r}: expected a text, Requests or a Workload")


def law_of(argument: str, value: Any) -> Requests:
    """The law that was given for an argument, as `load` takes it. Raises `UnknownName` or `InvalidArgument`."""
    if isinstance(value, Workload):
        return of_workload(value)
    return loaded(argument, value, load, "a law by text, Requests or a Workload", Requests)


def laws_of(argument: str, value: Any) -> tuple[Requests, ...]:
    """The laws that were given for an argument, one or several. Raises `UnknownName` or `InvalidArgument`."""
    laws = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    if not laws:
        raise InvalidArgument(f"{argument}={value!r}: expected at least one law")
    return tuple(law_of(argument, law) for law in laws)


def pack(laws: tuple[Requests, ...]) -> tuple[Records[Law], NDArray[np.int32], NDArray[np.int64]]:
    """Laws of requests for compiled code.

    Returns:
        Records `Law` [laws] (`best` is left 0), rows of (prompt, steps) int32 [n, 2], and the running sum of the steps of each
        law's rows, int64 [n].
    """
    records = Law.zeros(len(laws))
    begin = 0
    for k, law in enumerate(laws):
        records[k] = Law.pack(law, begin=begin, count=len(law.steps), best=0.0)[0]
        begin += len(law.steps)
    rows = np.concatenate([np.stack([law.prompt_tokens, law.steps], axis=1) for law in laws]).astype(np.int32)
    until = np.concatenate([np.cumsum(law.steps, dtype=np.int64) for law in laws])
    return records, rows, until
