"""A `Workload` written into the two arrays of `Traffic`.

Layout of `Traffic.table`; positions are kept in `Traffic.head` or in the class that uses them.

- law: `UNIFORM, low, count`, or `QUANTILES, k, g`, then k probabilities, k lengths and g + 1 guides, where
  guide j is the knot to start from for probabilities in [j/g, (j+1)/g) (Chen and Asau, "On generating random
  variates from an empirical distribution", AIIE Transactions 6, 1974).
- rows: n prompt lengths, n output lengths; replayed arrival times: n.
- class (`CLASS_WIDTH` numbers): source of lengths, copula correlation rho, sqrt(1 - rho^2), mean output,
  position of the prompt law, of the output law, of the rows, number of rows.
- phase: start, then the cumulated weight of each class.
- profile: start of each piece, then the multiplier of each.
- levels: the rate level at normal scores even in [-LEVEL_SPAN, LEVEL_SPAN].
"""

import functools
import json
import math
from collections.abc import Sequence
from importlib.resources import files

import numpy as np
import numpy.typing as npt

from llmgym.errors import InvalidArgument
from llmgym.workloads import traffic as t
from llmgym.workloads.arrivals import Arrivals, Modulation, Rows
from llmgym.workloads.conversations import Conversations
from llmgym.workloads.lengths import Lengths, RequestClass
from llmgym.workloads.turns import EXPONENTIAL, LOGNORMAL

_PROCESS = {
    "renewal": t.RENEWAL,
    "on-off": t.RENEWAL,
    "regular": t.REGULAR,
    "burst": t.BURST,
    "replay": t.REPLAY,
}
_INFORMATION = {"none": t.NO_PREDICTION, "exact": t.EXACT, "noisy": t.NOISY, "mean": t.CLASS_MEAN}
_PHASE_BY = {"time_s": t.BY_TIME, "request": t.BY_REQUEST, "fraction": t.BY_FRACTION}
_THINK = {"exponential": EXPONENTIAL, "lognormal": LOGNORMAL}
_LEVEL_KNOTS = 1025
_MOST_CHANGES = 1e6  # of the rate, from one request to the next: a draw goes from change to change
_GAMMA_LEAST = 1e-6  # below this variance the two laws agree to 1e-3 of a standard deviation


@functools.cache
def prediction_error() -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Quantiles of ln(predicted / true) of a learned length predictor: probabilities and values."""
    data = json.loads(
        (files("llmgym.workloads") / "data" / "length-prediction.json").read_text(encoding="utf-8")
    )
    return tuple(data["probabilities"]), tuple(data["log_ratio"])


@functools.cache
def level_table(modulation: Modulation) -> npt.NDArray[np.float64]:
    """Rate level at even normal scores (float64 [knots]), scaled so that its mean is 1 as it is interpolated."""
    from scipy.special import gammaincinv, ndtr

    z = np.linspace(-t.LEVEL_SPAN, t.LEVEL_SPAN, _LEVEL_KNOTS)
    v = modulation.variance
    if v == 0.0:
        return np.ones(_LEVEL_KNOTS)
    if modulation.law == "lognormal" or v < _GAMMA_LEAST:
        level = np.exp(math.sqrt(math.log1p(v)) * z - 0.5 * math.log1p(v))
    else:
        level = np.asarray(gammaincinv(1.0 / v, ndtr(z))) * v
    fine = np.linspace(-t.LEVEL_SPAN, t.LEVEL_SPAN, 16 * (_LEVEL_KNOTS - 1) + 1)
    middle = 0.5 * (fine[1:] + fine[:-1])
    weight = np.diff(ndtr(fine))
    return np.asarray(level / (np.dot(weight, np.interp(middle, z, level)) / weight.sum()))


class _Table:
    """Numbers put one after another; equal laws and rows are put down once."""

    def __init__(self) -> None:
        self.parts: list[npt.NDArray[np.float64]] = []
        self.size = 0
        self.known: dict[object, int] = {}

    def put(self, numbers: npt.ArrayLike) -> int:
        part = np.ravel(np.asarray(numbers, dtype=np.float64))
        at = self.size
        self.parts.append(part)
        self.size += part.size
        return at

    def quantiles(self, probabilities: tuple[float, ...], values: tuple[float, ...]) -> int:
        p = np.asarray(probabilities)
        guides = p.size
        start = np.searchsorted(p, np.arange(guides + 1) / guides, side="right") - 1
        start = np.minimum(start, np.searchsorted(p, 1.0, side="left") - 1)
        return self.put(np.concatenate([[t.QUANTILES, p.size, guides], p, values, start]))

    def law(self, law: Lengths) -> int:
        if law not in self.known:
            if law.probabilities:
                self.known[law] = self.quantiles(law.probabilities, law.tokens)
            else:
                self.known[law] = self.put([t.UNIFORM, law.low, law.high - law.low + 1])
        return self.known[law]

    def rows(self, rows: Rows) -> int:
        if id(rows) not in self.known:
            self.known[id(rows)] = self.put(np.concatenate([rows.prompt_tokens, rows.output_tokens]))
        return self.known[id(rows)]


def _refuse_endless(arrivals: Arrivals) -> None:
    """Raise `InvalidArgument` where the rate changes so often between two requests that a draw would not come to an end."""
    changes, rate = 0.0, arrivals.rate_rps
    if arrivals.process == "on-off" and arrivals.mean_off_s > 0.0:
        changes += 2.0 / (arrivals.mean_on_s + arrivals.mean_off_s)
    if arrivals.modulation is not None:
        changes += 1.0 / arrivals.modulation.period_s
    if arrivals.profile is not None and arrivals.profile.period_s is not None:
        changes += len(arrivals.profile.starts_s) / arrivals.profile.period_s
    elif arrivals.profile is not None:
        # what one shot ends with; where that is nothing, no request is waited for
        rate *= arrivals.profile.multipliers[-1] or 1.0
    if changes > _MOST_CHANGES * rate:
        raise InvalidArgument(
            f"rate_rps={arrivals.rate_rps!r}: the rate changes {changes / rate:.1e} times between two requests; expected at most "
            f"{_MOST_CHANGES:.0e}"
        )


def pack(
    arrivals: Arrivals,
    classes: Sequence[RequestClass],
    phases: Sequence[tuple[float, tuple[float, ...]]],
    phase_by: str,
    information: str,
    noise_scale: float,
    conversations: Conversations | None = None,
) -> t.Traffic:
    """Write the parts of a validated workload into arrays.

    Args:
        arrivals: the arrival process.
        classes: the kinds of requests.
        phases: start of each and its weights of the classes, as in `Workload`.
        phase_by: what the starts are: "time_s", "request" or "fraction".
        information: what is told of output lengths: "exact", "noisy", "mean" or "none".
        noise_scale: factor on the errors of "noisy".
        conversations: what makes the requests turns, or None.

    Returns:
        The arrays that the compiled draw reads.

    Raises:
        InvalidArgument: the rate changes too often for its requests to be drawn.
    """
    head = t.Head.zeros(1)
    h = head[0]
    table = _Table()
    h["process"] = _PROCESS[arrivals.process]
    h["rate_rps"] = arrivals.rate_rps
    h["shape"] = 1.0 / arrivals.cv**2
    if arrivals.process == "on-off":
        h["on_s"], h["off_s"] = arrivals.mean_on_s, arrivals.mean_off_s
        h["rate_rps"] = arrivals.rate_rps * (arrivals.mean_on_s + arrivals.mean_off_s) / arrivals.mean_on_s
    if arrivals.modulation is not None:
        h["level_period_s"] = arrivals.modulation.period_s
        h["level_correlation"] = arrivals.modulation.correlation
        h["level_at"], h["level_knots"] = table.put(level_table(arrivals.modulation)), _LEVEL_KNOTS
    if arrivals.profile is not None:
        profile = arrivals.profile
        h["profile_at"] = table.put([*profile.starts_s, *profile.multipliers])
        h["profile_pieces"] = len(profile.starts_s)
        h["profile_period_s"] = profile.period_s or 0.0
    h["varying"] = (
        arrivals.process == "on-off" or arrivals.modulation is not None or arrivals.profile is not None
    )
    _refuse_endless(arrivals)
    if arrivals.rows is not None:
        rows = arrivals.rows
        h["replay_at"], h["replay_rows"] = table.put(rows.arrival_s), len(rows)
        h["replay_cycle_s"] = rows.cycle_s
        h["replay_scale"] = len(rows) / (rows.cycle_s * arrivals.rate_rps) if rows.cycle_s > 0.0 else 1.0
        h["replay_from_start"] = arrivals.from_start

    records = []
    for c in classes:
        rho = c.correlation
        numbers = [t.LAWS, rho, math.sqrt(1.0 - rho * rho), c.mean_output_tokens, 0, 0, 0, 0]
        if c.rows is not None:
            numbers[0] = t.ROWS_IN_ORDER if c.rows is arrivals.rows else t.ROWS_AT_RANDOM
            numbers[6:8] = [table.rows(c.rows), len(c.rows)]
        elif c.prompt is not None and c.output is not None:
            numbers[4:6] = [table.law(c.prompt), table.law(c.output)]
        records.append(numbers)
    h["classes"], h["class_at"] = len(records), table.put(records)

    h["phases"], h["phase_by"] = len(phases), _PHASE_BY[phase_by]
    h["phase_at"] = table.put([[start, *np.cumsum(weights) / np.sum(weights)] for start, weights in phases])

    h["information"] = _INFORMATION[information]
    h["noise_scale"] = noise_scale
    if information == "noisy":
        h["noise_at"] = table.quantiles(*prediction_error())
    if conversations is not None:
        h["conversations"], h["longest"] = 1, conversations.longest
        h["turns_at"] = table.law(conversations.turns)
        h["new_at"] = -1 if conversations.new is None else table.law(conversations.new)
        think = conversations.think
        h["think_law"] = _THINK[think.law]
        h["think_s"], h["think_sigma"] = think.mean_s, think.sigma
    return t.Traffic(head, np.concatenate(table.parts))
