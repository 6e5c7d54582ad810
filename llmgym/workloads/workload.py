"""`Workload`: who asks, as one immutable description that can be sampled, scaled and averaged over."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from llmgym.core.checks import number
from llmgym.errors import InvalidArgument
from llmgym.workloads.arrivals import Arrivals, Rows
from llmgym.workloads.conversations import Conversations
from llmgym.workloads.lengths import MAX_TOKENS, RequestClass
from llmgym.workloads.means import points

if TYPE_CHECKING:
    from llmgym.workloads.traffic import Traffic

INFORMATION = ("exact", "noisy", "mean", "none")
PHASE_BY = ("time_s", "request", "fraction")


class Requests(NamedTuple):
    """Requests in order of arrival; every array has shape [n].

    Attributes:
        arrival_s: float64, time of arrival (s), never decreasing.
        prompt_tokens: int32, at least 1.
        output_tokens: int32, at least 1; what a real scheduler learns only at the end.
        predicted_tokens: int32, output length told to the scheduler, at least 1; 0 with `information="none"`.
        request_class: int32, number of the request's class.
        session: int32, number of its session; without conversations each request is a session of its own.
        turn: int32, turn within the session, from 0.
        priority: int32, lower ones first; 0 for requests that are not rows of a trace with priorities.
        think_s: float64, time (s) from the last token of the turn before it, when it really arrives; 0 of a first turn. The
            `arrival_s` of a later turn is that of its session, and the turns of a session follow each other.
    """

    arrival_s: npt.NDArray[np.float64]
    prompt_tokens: npt.NDArray[np.int32]
    output_tokens: npt.NDArray[np.int32]
    predicted_tokens: npt.NDArray[np.int32]
    request_class: npt.NDArray[np.int32]
    session: npt.NDArray[np.int32]
    turn: npt.NDArray[np.int32]
    priority: npt.NDArray[np.int32]
    think_s: npt.NDArray[np.float64]


@dataclass(frozen=True)
class Moment:
    """A function of lengths that equals another of the same parts, so that its mean over a class is computed once.

    Attributes:
        f: of prompts, outputs and the arguments; a function of a module, whose result depends on nothing else.
        arguments: the others.
    """

    f: Callable[..., npt.ArrayLike]
    arguments: tuple[float, ...] = ()

    def __call__(self, prompt: npt.NDArray[np.int64], output: npt.NDArray[np.int64]) -> npt.ArrayLike:
        return self.f(prompt, output, *self.arguments)


class Phase(NamedTuple):
    """A stretch of the workload with its own mixture of classes.

    Attributes:
        start: where it begins: seconds, a request number, or a fraction of the requests, as `phase_by` says.
        weights: of the classes; need not sum to 1.
    """

    start: float
    weights: tuple[float, ...]


@dataclass(frozen=True)
class Workload:
    """Who asks: arrivals, classes of requests and how their mixture changes.

    Attributes:
        name: short name.
        arrivals: the arrival process.
        classes: the kinds of requests.
        phases: mixtures of the classes, the first starting at 0; one phase with equal weights if empty.
        phase_by: what phases start at: "time_s", "request" (number from 0) or "fraction" (of the length of the arrays that are
            filled, or of the number given to `with_requests`).
        description: one or two sentences.
        source: paper or data set, with its public address.
        licence: SPDX name and attribution line of the data, or "" for a synthetic law.
        date: when the data was recorded or released.
        conversations: None, or what makes the requests turns of conversations: then sessions arrive, a class tells their first
            prompts and all answers, and phases are by time.

    Raises:
        InvalidArgument: no class, phases that do not begin at 0 or do not increase, weights of the wrong
            number, negative, or summing to nothing; conversations of rows of a trace, or with several phases by request.

    Example:
        >>> from llmgym.workloads import RequestClass, Workload, lognormal, poisson, uniform
        >>> chat = RequestClass(uniform(10, 1600), lognormal(5.0, 0.9, max=1000))
        >>> workload = Workload("chat", poisson(2.0), (chat,))
        >>> requests = workload.sample(np.random.default_rng(0), n=100)
    """

    name: str
    arrivals: Arrivals
    classes: tuple[RequestClass, ...]
    phases: tuple[Phase, ...] = ()
    phase_by: str = "request"
    description: str = ""
    source: str = ""
    licence: str = ""
    date: str = ""
    conversations: Conversations | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.arrivals, Arrivals):
            raise InvalidArgument(f"arrivals={self.arrivals!r}: must be made by poisson, gamma, on_off, ...")
        classes = tuple(self.classes)
        if not classes or not all(isinstance(c, RequestClass) for c in classes):
            raise InvalidArgument(f"classes={self.classes!r}: must be one RequestClass or more")
        if self.phase_by not in PHASE_BY:
            raise InvalidArgument(f"phase_by={self.phase_by!r}: must be one of {', '.join(PHASE_BY)}")
        phases = tuple(Phase(*p) for p in self.phases) or (Phase(0.0, (1.0,) * len(classes)),)
        checked = []
        for p in phases:
            weights = tuple(number("weights", w, zero=True) for w in p.weights)
            if len(weights) != len(classes) or sum(weights) <= 0.0:
                raise InvalidArgument(
                    f"weights={p.weights!r}: must be {len(classes)} numbers with a positive sum"
                )
            checked.append(Phase(number("start", p.start, zero=True), weights))
        starts = [p.start for p in checked]
        if starts[0] != 0.0 or any(b <= a for a, b in pairwise(starts)):
            raise InvalidArgument(
                f"phases start at {starts}: the first must start at 0 and each later than the one before"
            )
        if self.phase_by == "fraction" and starts[-1] >= 1.0:
            raise InvalidArgument(f"phases start at {starts}: fractions must be below 1")
        if self.conversations is not None:
            if any(c.rows is not None for c in classes) or self.arrivals.rows is not None:
                raise InvalidArgument(
                    "conversations: need laws of arrivals and lengths, not the rows of a trace"
                )
            if len(checked) > 1 and self.phase_by != "time_s":
                raise InvalidArgument(f"phase_by={self.phase_by!r}: conversations need phases by 'time_s'")
        object.__setattr__(self, "classes", classes)
        object.__setattr__(self, "phases", tuple(checked))

    @property
    def mean_rate_rps(self) -> float:
        """Long-run mean arrival rate (req/s); `inf` for a burst. Of conversations it is that of turns, if all are answered."""
        return self.arrivals.rate_rps * self._turns_per_session

    @property
    def _turns_per_session(self) -> float:
        """Mean number of turns of what arrives, over the phases alike; 1 without conversations."""
        if self.conversations is None:
            return 1.0
        mixtures = np.array([p.weights for p in self.phases])
        weights = (mixtures / mixtures.sum(axis=1, keepdims=True)).mean(axis=0)
        return float(np.dot(weights, [points(self.conversations, c)[1] for c in self.classes]))

    @property
    def max_prompt_tokens(self) -> int:
        """Longest prompt of any class, or of a conversation so far (tokens)."""
        if self.conversations is not None:
            return self.conversations.longest - 1
        return max(c.max_prompt_tokens for c in self.classes)

    @property
    def max_output_tokens(self) -> int:
        """Longest output of any class (tokens)."""
        return max(c.max_output_tokens for c in self.classes)

    def with_rate(self, rate_rps: float) -> "Workload":
        """A copy of this workload at another mean rate (req/s); time is scaled for a replay, the rate for all others.

        Of conversations the rate is that of turns: the times to think stay, and sessions come more often or less.
        """
        rate = number("rate_rps", rate_rps) / self._turns_per_session
        return replace(self, arrivals=self.arrivals.with_rate(rate))

    def with_arrivals(self, arrivals: Arrivals) -> "Workload":
        """A copy of this workload with other arrivals; the rows of a trace are then drawn at random, as pairs of lengths."""
        return replace(self, arrivals=arrivals)

    def with_requests(self, requests: int) -> "Workload":
        """Phases given as fractions become request numbers, for `requests` requests in all."""
        number("requests", requests)
        if self.phase_by != "fraction":
            return self
        phases = tuple(Phase(float(math.floor(p.start * requests)), p.weights) for p in self.phases)
        return replace(self, phases=phases, phase_by="request")

    def traffic(
        self, information: str = "exact", noise_scale: float = 1.0, conversations: bool = False
    ) -> "Traffic":
        """Pack the workload for compiled code.

        Args:
            information: what the scheduler is told of output lengths: "exact"; "noisy", the true length times
                exp(e) with e from the errors of a learned predictor; "mean", the mean of the request's class;
                "none", 0.
            noise_scale: factor on e.
            conversations: whether the caller knows conversations, that is draws with `llmgym.workloads.turns.draw_turns`.

        Raises:
            InvalidArgument: `information` is none of these, or `noise_scale` is negative or not finite, or the workload has
                conversations and the caller does not know them.
        """
        from llmgym.workloads.packing import pack

        if information not in INFORMATION:
            raise InvalidArgument(f"information={information!r}: must be one of {', '.join(INFORMATION)}")
        if self.conversations is not None and not conversations:
            raise InvalidArgument(
                f"workload={self.name!r}: its turns wait for the answer to the turn before them, which is not simulated here"
            )
        scale = number("noise_scale", noise_scale, zero=True)
        return pack(
            self.arrivals, self.classes, self.phases, self.phase_by, information, scale, self.conversations
        )

    def sample(
        self,
        rng: np.random.Generator,
        n: int | None = None,
        horizon_s: float = math.inf,
        information: str = "exact",
        noise_scale: float = 1.0,
    ) -> Requests:
        """Draw requests; takes exactly one number from `rng`, the key of the compiled draw.

        Args:
            rng: source of the key.
            n: at most this many requests; needed when `horizon_s` is infinite.
            horizon_s: no request arrives after this time (s).
            information: see `traffic`; or "rows", the predictions of the trace that the requests are rows of.
            noise_scale: see `traffic`.

        Returns:
            The requests, in the order of arrival; with conversations one session after the other, see `Requests`.

        Raises:
            InvalidArgument: neither `n` nor a finite `horizon_s`; a burst or phases by fraction without `n`; "rows" where a class
                has no rows with predictions.
        """
        from llmgym.workloads.turns import Turn, draw_turns

        if math.isnan(horizon_s) or horizon_s < 0.0:
            raise InvalidArgument(f"horizon_s={horizon_s!r}: must be zero or more")
        if n is not None and n < 0:
            raise InvalidArgument(f"n={n!r}: must be zero or more")
        if n is None and (math.isinf(horizon_s) or math.isinf(self.mean_rate_rps)):
            raise InvalidArgument(
                "n=None: must be given when horizon_s is infinite or all requests come at once"
            )
        if n is None and self.phase_by == "fraction" and len(self.phases) > 1:
            raise InvalidArgument("n=None: must be given for phases by fraction, or call with_requests first")
        told = information != "rows"
        if not told and not self.has_predictions:
            raise InvalidArgument(
                "information='rows': needs classes of rows with predicted_tokens; give 'exact', 'noisy', 'mean' or 'none'"
            )
        traffic = self.traffic(information if told else "none", noise_scale, conversations=True)
        key = rng.integers(0, 2**64, dtype=np.uint64)
        capacity = n if n is not None else 64 + int(1.1 * horizon_s * self.mean_rate_rps)
        while True:
            drawn = Turn.zeros(capacity)
            count = draw_turns(traffic, key, float(horizon_s), MAX_TOKENS, drawn)
            if n is not None or count < capacity:
                break
            capacity *= 2
        request_class = drawn["request_class"][:count].copy()
        predicted, priority = drawn["predicted"][:count].copy(), np.zeros(count, np.int32)
        columns = [c.rows for c in self.classes if c.rows is not None]
        if not told or any(rows.priority is not None for rows in columns):
            place = self._places(key, horizon_s, capacity)[:count]
            for k, c in enumerate(self.classes):
                of = request_class == k
                if c.rows is not None and c.rows.priority is not None:
                    priority[of] = c.rows.priority[place[of]]
                if not told and c.rows is not None and c.rows.predicted_tokens is not None:
                    predicted[of] = c.rows.predicted_tokens[place[of]]
        return Requests(
            drawn["arrival_s"][:count].copy(),
            drawn["prompt"][:count].copy(),
            drawn["output"][:count].copy(),
            predicted,
            request_class,
            session=drawn["session"][:count].copy(),
            turn=(np.arange(count) - np.searchsorted(*2 * (drawn["session"][:count],))).astype(np.int32),
            priority=priority,
            think_s=drawn["think_s"][:count].copy(),
        )

    @property
    def has_predictions(self) -> bool:
        """Whether every request is a row of a trace that has predictions."""
        return all(c.rows is not None and c.rows.predicted_tokens is not None for c in self.classes)

    def _places(self, key: np.uint64, horizon_s: float, capacity: int) -> npt.NDArray[np.int64]:
        """Which row each request that `key` draws is, int64 [capacity]; of a class without rows the number means nothing.

        The same draw once more, from rows that have their own number for an output length.
        """
        from llmgym.workloads.traffic import Drawn, draw

        numbered: dict[int, Rows] = {}

        def of(rows: Rows) -> Rows:
            # one object for one, as rows are replayed in order only where classes and arrivals have the same
            if id(rows) not in numbered:
                numbered[id(rows)] = replace(rows, output_tokens=np.arange(1, len(rows) + 1, dtype=np.int32))
            return numbered[id(rows)]

        arrivals, classes = self.arrivals, self.classes
        if arrivals.rows is not None:
            arrivals = replace(arrivals, rows=of(arrivals.rows))
        classes = tuple(c if c.rows is None else replace(c, rows=of(c.rows)) for c in classes)
        drawn = Drawn.zeros(capacity)
        draw(replace(self, arrivals=arrivals, classes=classes).traffic("none"), key, float(horizon_s), drawn)
        return drawn["output"].astype(np.int64) - 1

    def expectation(
        self,
        f: Callable[[npt.NDArray[np.int64], npt.NDArray[np.int64]], npt.ArrayLike],
        phase_weights: Sequence[float] | None = None,
    ) -> float:
        """E[f(prompt, output)] over the requests of the workload, turns of conversations included.

        Exact for rows of a trace and for uncorrelated uniform or fixed laws with at most 4 million pairs of
        lengths; otherwise a deterministic quadrature of 1024 x 1024 points (relative error about 1e-3 for
        smooth f). Of conversations it is the mean over some 16,384 sessions, the same every time.

        Args:
            f: of prompt and output lengths, two int64 arrays of one shape [k] (tokens); returns k numbers. Means of a `Moment`
                are kept.
            phase_weights: share of the requests in each phase; known by itself with one phase or phases by
                fraction.

        Raises:
            InvalidArgument: several phases by time or request number, without `phase_weights`, or a wrong
                number of them.
        """
        if phase_weights is not None:
            shares = np.array([number("phase_weights", w, zero=True) for w in phase_weights])
            if shares.size != len(self.phases) or shares.sum() <= 0.0:
                raise InvalidArgument(
                    f"phase_weights={list(phase_weights)!r}: must be {len(self.phases)} numbers, not all zero"
                )
        elif len(self.phases) == 1:
            shares = np.ones(1)
        elif self.phase_by == "fraction":
            shares = np.diff([*(p.start for p in self.phases), 1.0])
        else:
            raise InvalidArgument(
                f"phase_weights=None: must be given for {len(self.phases)} phases by {self.phase_by}"
            )
        mixtures = np.array([p.weights for p in self.phases])
        weights = (shares / shares.sum()) @ (mixtures / mixtures.sum(axis=1, keepdims=True))
        total = 0.0
        if self.conversations is not None:
            weights = weights * [points(self.conversations, c)[1] for c in self.classes]
            for weight, c in zip(weights / weights.sum(), self.classes, strict=True):
                prompt, output = points(self.conversations, c)[0]
                total += float(weight) * float(np.asarray(f(prompt, output), dtype=np.float64).mean())
            return total
        for weight, c in zip(weights, self.classes, strict=True):
            if weight > 0.0:
                total += float(weight) * (_mean_once(c, f) if isinstance(f, Moment) else _mean(c, f))
        return total


def _mean(c: RequestClass, f: Callable[..., npt.ArrayLike]) -> float:
    prompt, output, probability = c.points()
    return float(np.dot(np.asarray(f(prompt, output), dtype=np.float64), probability))


_mean_once = lru_cache(maxsize=1024)(_mean)
