"""When requests arrive: renewal, on/off, regular, burst and replayed processes, with a rate that may vary.

The vocabulary is that of BurstGPT (arXiv:2401.17644) and ServeGen (arXiv:2505.09999): a rate, a coefficient of variation (CV) of
the gaps, and a rate that moves on a slower scale, which is what makes counts per minute overdispersed.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from llmgym.core.checks import number
from llmgym.errors import InvalidArgument


@dataclass(frozen=True, eq=False)
class Rows:
    """The requests of a trace, in order of arrival; two `Rows` are equal only if they are the same object.

    Attributes:
        arrival_s: float64 [n], seconds since the first request, never decreasing.
        prompt_tokens: int32 [n], at least 1.
        output_tokens: int32 [n], at least 1.
        predicted_tokens: int32 [n], at least 1: the output lengths that a scheduler is told; None if it is told none.
        priority: int32 [n], lower ones first, as in vLLM; None if all are alike.
        session: int32 [n], from 0 on: the requests of one session begin with the same tokens, as far as both go, such as the turns
            of a conversation, whose prompts hold all that came before; None if no request has anything in common with another.
        request_class: int32 [n], from 0 on: classes with objectives of their own (`llmgym.serving.targets`); None if there is one.
        turn: int32 [n], number of the turn in its session, from 0 on in the order of the rows. With turns the rows are a closed
            loop: turn 0 arrives at `arrival_s`, a later one `think_s` after the last token of the turn before it, and its
            prompt begins with the prompt and the output of that. None if every row arrives at `arrival_s`.
        think_s: float64 [n], with `turn`: the wait before a turn, s; that of turn 0 is not used.

    Raises:
        InvalidArgument: arrays of different shapes or empty ones, a length that is no whole number from 1 on, arrivals that
            decrease, turns without sessions or times to think, turns that do not count up from 0, or a prompt that is shorter
            than the conversation before it.
    """

    arrival_s: npt.NDArray[np.float64]
    prompt_tokens: npt.NDArray[np.int32]
    output_tokens: npt.NDArray[np.int32]
    predicted_tokens: npt.NDArray[np.int32] | None = None
    priority: npt.NDArray[np.int32] | None = None
    session: npt.NDArray[np.int32] | None = None
    request_class: npt.NDArray[np.int32] | None = None
    turn: npt.NDArray[np.int32] | None = None
    think_s: npt.NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        arrival_s = np.array(self.arrival_s, dtype=np.float64)
        columns = {}
        for name, least in (
            ("prompt_tokens", 1),
            ("output_tokens", 1),
            ("predicted_tokens", 1),
            ("priority", -(2**31)),
            ("session", 0),
            ("request_class", 0),
            ("turn", 0),
        ):
            value = getattr(self, name)
            if value is None and name not in ("prompt_tokens", "output_tokens"):
                continue
            given = np.asarray(value)
            if given.ndim != 1 or given.shape != arrival_s.shape or given.size == 0:
                raise InvalidArgument(f"{name}: shape {given.shape}, must be that of arrival_s and not empty")
            if not np.all(np.equal(np.mod(given, 1), 0) & (given >= least) & (given <= 2**31 - 1)):
                raise InvalidArgument(f"{name}: must be whole numbers from {least} to 2147483647")
            columns[name] = given.astype(np.int32)
        if not np.all(np.isfinite(arrival_s)) or np.any(np.diff(arrival_s) < 0.0):
            raise InvalidArgument("arrival_s: must be finite and must never decrease")
        object.__setattr__(self, "arrival_s", arrival_s - arrival_s[0])
        for name, value in columns.items():
            object.__setattr__(self, name, value)
        if self.turn is not None or self.think_s is not None:
            self._check_turns()

    def _check_turns(self) -> None:
        """Raise `InvalidArgument` unless turns are those of conversations."""
        if self.turn is None or self.think_s is None:
            given, missing = ("think_s", "turn") if self.turn is None else ("turn", "think_s")
            raise InvalidArgument(
                f"{given}: without {missing}; a closed loop needs session, turn and think_s"
            )
        if self.session is None:
            raise InvalidArgument(
                "turn: a turn without its session; a closed loop needs session, turn and think_s"
            )
        think_s = np.array(self.think_s, dtype=np.float64)
        if think_s.shape != self.turn.shape:
            raise InvalidArgument(f"think_s: shape {think_s.shape}, must be that of arrival_s")
        if not np.all(np.isfinite(think_s) & (think_s >= 0.0)):
            worst = int(np.argmin(np.isfinite(think_s) & (think_s >= 0.0)))
            raise InvalidArgument(f"think_s: {think_s[worst]} in row {worst}; must be seconds, 0 or more")
        object.__setattr__(self, "think_s", think_s)
        before = self.turn_before()
        expected = np.where(before < 0, 0, self.turn[before] + 1)
        if np.any(self.turn != expected):
            worst = int(np.argmax(self.turn != expected))
            raise InvalidArgument(
                f"turn: {self.turn[worst]} in row {worst}, where turn {expected[worst]} of session {self.session[worst]} is "
                "expected; the turns of a session count up from 0"
            )
        so_far = self.prompt_tokens[before].astype(np.int64) + self.output_tokens[before]
        short = (before >= 0) & (self.prompt_tokens < so_far)
        if np.any(short):
            worst = int(np.argmax(short))
            raise InvalidArgument(
                f"prompt_tokens: {self.prompt_tokens[worst]} in row {worst}, shorter than the {so_far[worst]} tokens of the "
                f"conversation before it (prompt and output of row {before[worst]})"
            )

    def turn_before(self) -> npt.NDArray[np.int64]:
        """Row of the turn before each turn, int64 [n]; -1 for turn 0, and where the rows have no turns."""
        before = np.full(len(self), -1, np.int64)
        if self.turn is not None and self.session is not None:
            order = np.argsort(self.session, kind="stable")
            follows = self.session[order[1:]] == self.session[order[:-1]]
            before[order[1:][follows]] = order[:-1][follows]
        return before

    def __len__(self) -> int:
        return int(self.arrival_s.size)

    def __repr__(self) -> str:
        return f"Rows({len(self)} requests over {self.arrival_s[-1]:.1f} s)"

    @property
    def cycle_s(self) -> float:
        """Time (s) from one pass over the rows to the next: the span plus one mean gap."""
        n = len(self)
        return float(self.arrival_s[-1]) * n / (n - 1) if n > 1 else 0.0


@dataclass(frozen=True)
class Modulation:
    """A random level that multiplies the rate: constant in each period, mean 1, AR(1) from period to period.

    The level is a function of a Gaussian AR(1) series, so `correlation` is that of the Gaussian series; periods begin at a random
    phase, which keeps the process stationary.

    Attributes:
        period_s: length of a period (s).
        variance: of the level, at most 100.
        correlation: of neighbouring periods, in [0, 1).
        law: "lognormal" or "gamma".
    """

    period_s: float
    variance: float
    correlation: float = 0.0
    law: str = "lognormal"

    def __post_init__(self) -> None:
        number("period_s", self.period_s)
        if number("variance", self.variance, zero=True) > 100.0:
            raise InvalidArgument(f"variance={self.variance!r}: must be at most 100")
        if not 0.0 <= number("correlation", self.correlation, zero=True) < 1.0:
            raise InvalidArgument(f"correlation={self.correlation!r}: must be in [0, 1)")
        if self.law not in ("lognormal", "gamma"):
            raise InvalidArgument(f"law={self.law!r}: must be 'lognormal' or 'gamma'")


@dataclass(frozen=True)
class Profile:
    """Known multipliers of the rate, constant between given times.

    Attributes:
        starts_s: where each piece begins (s), increasing, the first 0.
        multipliers: of the rate in each piece; scaled to a time mean of 1 where the profile is periodic.
        period_s: after which the profile repeats (s), or None for one shot, whose last piece lasts for ever.
    """

    starts_s: tuple[float, ...]
    multipliers: tuple[float, ...]
    period_s: float | None = None

    def __post_init__(self) -> None:
        starts = tuple(number("starts_s", x, zero=True) for x in self.starts_s)
        multipliers = tuple(number("multipliers", x, zero=True) for x in self.multipliers)
        if not starts or starts[0] != 0.0 or any(b <= a for a, b in pairwise(starts)):
            raise InvalidArgument(f"starts_s={self.starts_s!r}: must begin with 0 and increase")
        if len(multipliers) != len(starts):
            raise InvalidArgument(
                f"multipliers={self.multipliers!r}: must be {len(starts)} numbers, one a piece"
            )
        if not any(multipliers):
            raise InvalidArgument(f"multipliers={self.multipliers!r}: at least one must be above zero")
        if self.period_s is not None:
            period = number("period_s", self.period_s)
            if period <= starts[-1]:
                raise InvalidArgument(
                    f"period_s={self.period_s!r}: must be above the last start, {starts[-1]}"
                )
            mean = float(np.dot(multipliers, np.diff([*starts, period]))) / period
            multipliers = tuple(m / mean for m in multipliers)
        object.__setattr__(self, "starts_s", starts)
        object.__setattr__(self, "multipliers", multipliers)


@dataclass(frozen=True)
class Arrivals:
    """An arrival process; make one with `poisson`, `gamma`, `on_off`, `regular`, `burst` or `replay`.

    Attributes:
        process: "renewal", "on-off", "regular", "burst" or "replay".
        rate_rps: long-run mean rate (req/s) of "renewal", "on-off", "regular" and "replay"; `inf` for "burst". With a one-shot
            profile it is the rate where the multiplier is 1.
        cv: coefficient of variation of the gaps (of those while on, for "on-off").
        mean_on_s: mean length (s) of an exponential on period.
        mean_off_s: mean length (s) of an exponential off period; 0 without off periods.
        modulation: random slow variation of the rate, or None.
        profile: known variation of the rate, or None.
        rows: the trace that is replayed, or None.
        from_start: replay begins at the first row rather than at a random one.
    """

    process: str
    rate_rps: float
    cv: float = 1.0
    mean_on_s: float = 0.0
    mean_off_s: float = 0.0
    modulation: Modulation | None = None
    profile: Profile | None = None
    rows: Rows | None = field(default=None)
    from_start: bool = False

    def __post_init__(self) -> None:
        if self.process not in ("renewal", "on-off", "regular", "burst", "replay"):
            raise InvalidArgument(
                f"process={self.process!r}: must be renewal, on-off, regular, burst or replay"
            )
        timeless = self.process == "replay" and self.rows is not None and self.rows.cycle_s == 0.0
        if self.process == "burst" or timeless:
            if not math.isinf(self.rate_rps):
                raise InvalidArgument(
                    f"rate_rps={self.rate_rps!r}: requests that all come at once have no rate to set"
                )
        else:
            number("rate_rps", self.rate_rps)
        number("cv", self.cv)
        if self.process == "on-off":
            number("mean_on_s", self.mean_on_s)
            number("mean_off_s", self.mean_off_s)
        if self.process in ("burst", "replay") and (self.modulation is not None or self.profile is not None):
            raise InvalidArgument(f"process={self.process!r}: its rate cannot be modulated or shaped")
        if (self.process == "replay") != (self.rows is not None):
            raise InvalidArgument("rows: a replay needs the rows of a trace, and only a replay has them")

    def with_rate(self, rate_rps: float) -> "Arrivals":
        """A copy of this process at another mean rate (req/s): CV, on and off times and relative variation stay."""
        return replace(self, rate_rps=number("rate_rps", rate_rps))

    def modulated(
        self, period_s: float, variance: float, correlation: float = 0.0, law: str = "lognormal"
    ) -> "Arrivals":
        """A copy of this process with a random rate level per period; see `Modulation`.

        Args:
            period_s: length of a period (s).
            variance: of the level, whose mean is 1; at most 100.
            correlation: of neighbouring periods, in [0, 1).
            law: of the level: "lognormal" or "gamma".

        Returns:
            The process.

        Raises:
            InvalidArgument: a number is out of range, or the process is a burst or a replay.
        """
        return replace(self, modulation=Modulation(period_s, variance, correlation, law))

    def shaped(
        self, starts_s: Sequence[float], multipliers: Sequence[float], period_s: float | None = None
    ) -> "Arrivals":
        """A copy of this process with a known rate profile; see `Profile`.

        Args:
            starts_s: where each piece begins (s), increasing, the first 0.
            multipliers: of the rate, one a piece, 0 or more.
            period_s: after which the profile repeats (s); None: never, and the last piece lasts for ever.

        Returns:
            The process.

        Raises:
            InvalidArgument: a number is out of range, or the process is a burst or a replay.
        """
        return replace(self, profile=Profile(tuple(starts_s), tuple(multipliers), period_s))


def poisson(rate_rps: float) -> Arrivals:
    """Poisson arrivals at `rate_rps` (req/s)."""
    return Arrivals("renewal", number("rate_rps", rate_rps))


def gamma(rate_rps: float, cv: float) -> Arrivals:
    """Stationary renewal arrivals with gamma gaps of coefficient of variation `cv`; `cv=1` is Poisson."""
    return Arrivals("renewal", number("rate_rps", rate_rps), cv=number("cv", cv))


def on_off(rate_on_rps: float, mean_on_s: float, mean_off_s: float, cv: float = 1.0) -> Arrivals:
    """Arrivals in exponential on periods, with silence in the exponential off periods between them.

    Args:
        rate_on_rps: rate while on (req/s).
        mean_on_s: mean length of an on period (s).
        mean_off_s: mean length of an off period (s).
        cv: coefficient of variation of the gamma gaps while on; 1 is Poisson.

    Returns:
        The process; its `rate_rps` is the mean over on and off periods.

    Raises:
        InvalidArgument: a number is not above 0 and finite.
    """
    on, off = number("mean_on_s", mean_on_s), number("mean_off_s", mean_off_s)
    rate = number("rate_on_rps", rate_on_rps) * on / (on + off)
    return Arrivals("on-off", rate, cv=number("cv", cv), mean_on_s=on, mean_off_s=off)


def regular(rate_rps: float) -> Arrivals:
    """One request every 1 / `rate_rps` seconds, the first at time 0."""
    return Arrivals("regular", number("rate_rps", rate_rps))


def burst() -> Arrivals:
    """Every request at time 0."""
    return Arrivals("burst", math.inf)


def replay(rows: Rows, rate_rps: float | None = None, from_start: bool = False) -> Arrivals:
    """The arrival times of a trace, begun at a random row and repeated at the end.

    Args:
        rows: the trace.
        rate_rps: mean rate (req/s) to which time is scaled; the trace's own by default.
        from_start: begin at the first row, as the trace was recorded.

    Returns:
        The process.

    Raises:
        InvalidArgument: a rate was given for a trace whose requests all come at once.
    """
    own = len(rows) / rows.cycle_s if rows.cycle_s > 0.0 else math.inf
    rate = own if rate_rps is None else number("rate_rps", rate_rps)
    return Arrivals("replay", rate, rows=rows, from_start=from_start)
