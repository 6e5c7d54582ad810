"""Which drafted tokens a target model accepts, and how sure the draft was of them: fitted laws, or what a real pair did.

Lossless speculative decoding never changes the text of the target, so the text is a path that no drafting rule can leave. At
each of its positions the draft's own token is accepted if it is the token of the path, with whatever was drafted before;
after a rejected token the draft goes on beside the path, and nothing of that is accepted. A source gives (confidence,
accepted) for position after position of the path of an episode, and confidences beside it.

- `Chain`: positions are easy or hard by turns (a two-state Markov chain); -ln P is exponential where easy, lognormal where
  hard, and a token of confidence P is accepted with probability a_0 P^theta. Calibrated on the statistics that PipeSD (arXiv
  2605.13319, Table 7, appendix) gives of its pairs.
- `Table`: rows measured on a pair of models, or your own.
"""

import csv
import io
import json
import math
from dataclasses import dataclass, field
from importlib.resources import files
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmgym.core.jit import kernel
from llmgym.core.records import Record, Records, float64, int32, int64
from llmgym.core.rng import exponential, integer, normal, substream, uniform
from llmgym.errors import InvalidArgument, UnknownName

LARGEST_DEFICIT = 6.0
"""-ln P of a chain is at most this."""
MOST_STEPS = 12
"""Confidences beside the path that a table of one's own remembers, as many as were measured of the pair."""

STATES, DEFICITS, ACCEPTED, BESIDE, STREAMS = 0, 1, 2, 3, 4
"""Sub-streams of the key of an episode's text."""


class Source(Record):
    """A source as compiled code reads it; all but `table` are those of `Chain`."""

    table: int = int32("Whether tokens come from the rows of a table, 0 or 1.")
    to_hard: float = float64("Probability that a hard position follows an easy one.")
    to_easy: float = float64("Probability that an easy position follows a hard one.")
    easy_mean: float = float64("Mean of -ln P at an easy position.")
    hard_mu: float = float64("Mean of ln(-ln P) at a hard position.")
    hard_sigma: float = float64("Standard deviation of ln(-ln P) at a hard position.")
    most_accepted: float = float64("Acceptance a_0 of a token of confidence 1.")
    power: float = float64("Exponent theta of the acceptance a_0 P^theta.")


class Cursor(Record):
    """Where drafting is in a text."""

    position: int = int64("Next position of the path.")
    stream: int = int64("Streams of a table that the episode has gone through.")
    row: int = int32("Row of a table that the path runs along.")
    place: int = int32("Column of a table that the next position of the path is at.")
    hard: int = int32("Whether the last position of the path is hard, 0 or 1.")
    beside: int = int32("Tokens drafted beside the path, plus one; 0 on the path.")
    beside_hard: int = int32("Whether the last position beside the path is hard, 0 or 1.")
    beside_row: int = int32("Row of the confidences beside the path, of a table.")


@dataclass(frozen=True)
class Chain:
    """Easy and hard positions by turns.

    Attributes:
        name: name of the source.
        to_hard: probability that a hard position follows an easy one.
        to_easy: probability that an easy position follows a hard one.
        easy_mean: mean of -ln P at an easy position.
        hard_mu: mean of ln(-ln P) at a hard position.
        hard_sigma: standard deviation of ln(-ln P) at a hard position.
        most_accepted: acceptance a_0 of a token of confidence 1.
        power: exponent theta of the acceptance a_0 P^theta.
    """

    name: str
    to_hard: float
    to_easy: float
    easy_mean: float
    hard_mu: float
    hard_sigma: float
    most_accepted: float
    power: float

    def __post_init__(self) -> None:
        for name in ("to_hard", "to_easy", "most_accepted"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise InvalidArgument(f"{name}={getattr(self, name)!r}: expected a probability")
        for name in ("easy_mean", "hard_sigma", "power"):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise InvalidArgument(f"{name}={getattr(self, name)!r}: expected a finite number >= 0")
        if not math.isfinite(self.hard_mu):
            raise InvalidArgument(f"hard_mu={self.hard_mu!r}: expected a finite number")


@dataclass(frozen=True, eq=False)
class Table:
    """Rows of positions along a path, as `benchmarks/draft_target.py` measures them.

    Attributes:
        name: name of the source.
        confidence: the draft's probability of its own token, float32 [streams, positions].
        accepted: whether the target accepts that token, uint8 [streams, positions].
        length: positions of each stream that are used, int32 [streams].
        beside_row: row of `beside` where the token was rejected, else -1, int32 [streams, positions].
        beside: confidences of what the draft went on with after a rejected token, float32 [rejected, steps]; the last one
            stands for all later ones.
        about: where the rows come from.
    """

    name: str
    confidence: NDArray[np.float32]
    accepted: NDArray[np.uint8]
    length: NDArray[np.int32]
    beside_row: NDArray[np.int32]
    beside: NDArray[np.float32]
    about: dict[str, Any] = field(default_factory=dict)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Table) and self.name == other.name and self.digest() == other.digest()

    def __hash__(self) -> int:
        return hash((self.name, self.digest()))

    def digest(self) -> bytes:
        """The bytes that matter to a world."""
        return b"".join(a.tobytes() for a in (self.confidence, self.accepted, self.length, self.beside))


def least_acceptance(source: Chain | Table) -> float:
    """The probability with which a token of a chain is accepted at least; of a table, the mean over all its positions."""
    if isinstance(source, Chain):
        return source.most_accepted * math.exp(-source.power * LARGEST_DEFICIT)
    used = np.arange(source.accepted.shape[1]) < source.length[:, None]
    return float(source.accepted[used].mean())


HUMANEVAL = Chain("humaneval", 0.20, 0.34, 0.0015, math.log(0.095), 1.4, 0.99, 0.5)
"""DeepSeek-Coder 1.3B drafting for 6.7B."""
GSM8K = Chain("gsm8k", 0.46, 0.42, 0.018, -0.74, 0.64, 0.97, 0.6)
"""TinyLlama 1.1B drafting for Llama-2 7B."""
CHAINS = {chain.name: chain for chain in (HUMANEVAL, GSM8K)}


def names() -> list[str]:
    """Names that `load` knows: the calibrated chains, and `pair-<domain>` or `pair-<domain>-sampled` of the measured pair."""
    return [*CHAINS, *_groups()]


def load(source: Any) -> Chain | Table:
    """A source from its name, or as it is.

    Raises:
        UnknownName: there is none of this name.
        InvalidArgument: `source` is something else.
    """
    if isinstance(source, (Chain, Table)):
        return source
    if not isinstance(source, str):
        raise InvalidArgument(f"text={source!r}: expected a name, a Chain or a Table")
    if source in CHAINS:
        return CHAINS[source]
    groups = _groups()
    if source not in groups:
        raise UnknownName("text", source, names())
    folder = files("llmgym.envs.pipesd") / "data" / "draft_pair"
    return read_pair((folder / "draft_target.npz").read_bytes(), _meta(), source, *groups[source])


def _meta() -> dict[str, Any]:
    file = files("llmgym.envs.pipesd") / "data" / "draft_pair" / "meta.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _groups() -> dict[str, tuple[int, int]]:
    """Name -> (domain, temperature) of the measured pair, as the table numbers them; none where it is not there."""
    measured = _meta().get("measured", {"domains": [], "temperatures": []})
    return {
        f"pair-{domain}{'-sampled' if warm else ''}": (d, t)
        for t, warm in enumerate(measured["temperatures"])
        for d, domain in enumerate(measured["domains"])
    }


def read_pair(data: bytes, meta: dict[str, Any], name: str, domain: int, temperature: int) -> Table:
    """One group of streams of a file that `benchmarks/draft_target.py` wrote.

    Args:
        data: bytes of `draft_target.npz`.
        meta: contents of `meta.json`.
        name: name of the source.
        domain: number of the domain.
        temperature: number of the temperature. At 0 a stream ends where its text begins to go round in circles.

    Returns:
        The streams of this domain and temperature.
    """
    with np.load(io.BytesIO(data)) as arrays:
        chosen = (arrays["domain"] == domain) & (arrays["temperature"] == temperature)
        positions = arrays["confidence"].shape[1]
        accepted = np.unpackbits(arrays["accepted"], axis=1)[:, :positions]
        row = np.where(accepted == 0, np.cumsum(accepted == 0).reshape(accepted.shape) - 1, -1)
        finest, coarsest = (meta["measured"]["coding"][key] for key in ("finest", "coarsest"))

        def confidence(code: NDArray[np.uint8]) -> NDArray[np.float32]:
            deficit = finest * np.expm1(code / 255.0 * math.log1p(coarsest / finest))
            return np.exp(-deficit).astype(np.float32)

        row, accepted = row[chosen].astype(np.int32), accepted[chosen]
        used, row_of = np.unique(row[row >= 0], return_inverse=True)
        row[row >= 0] = row_of
        return Table(
            name,
            confidence(arrays["confidence"][chosen]),
            accepted,
            np.maximum(arrays["fresh"][chosen], 1).astype(np.int32),
            row,
            confidence(arrays["beyond"][used]),
            {
                "source": meta["what"],
                "date": meta["date"],
                "machine": meta["machine"],
                "script": meta["script"],
            },
        )


def of_rows(name: str, confidence: Any, accepted: Any) -> Table:
    """A table of one's own: the positions of one text, in order.

    After a rejected token the draft is taken to be as sure as it was of the positions that follow in the text.

    Args:
        name: name of the source.
        confidence: the draft's probability of its own token, [positions], in (0, 1].
        accepted: whether the target accepts that token, [positions], 0 or 1.

    Returns:
        A table of one stream.

    Raises:
        InvalidArgument: shapes differ, there are no rows, or a value is out of range.
    """
    p, a = np.asarray(confidence, np.float64), np.asarray(accepted, np.float64)
    if p.ndim != 1 or p.shape != a.shape or len(p) == 0:
        raise InvalidArgument(
            f"text: expected two columns of the same length, got shapes {p.shape}, {a.shape}"
        )
    if not np.all((p > 0.0) & (p <= 1.0)):
        raise InvalidArgument(f"confidence={p[~((p > 0) & (p <= 1))][0]!r}: expected numbers in (0, 1]")
    if not np.all((a == 0) | (a == 1)):
        raise InvalidArgument(f"accepted={a[~((a == 0) | (a == 1))][0]!r}: expected 0 or 1")
    steps = min(MOST_STEPS, len(p))
    wrong = np.flatnonzero(a == 0)
    row = np.full(len(p), -1, np.int32)
    row[wrong] = np.arange(len(wrong))
    beside = p[(wrong[:, None] + 1 + np.arange(steps)) % len(p)].reshape(len(wrong), steps)
    return Table(
        name,
        p[None].astype(np.float32),
        a[None].astype(np.uint8),
        np.array([len(p)], np.int32),
        row[None],
        beside.astype(np.float32),
    )


def from_trace(path: str | PathLike[str]) -> Table:
    """A CSV file with the columns `confidence` and `accepted`, a row for each position of a text.

    Raises:
        InvalidArgument: no such file or columns, or a value out of range.
    """
    try:
        rows = list(csv.DictReader(Path(path).read_text(encoding="utf-8").splitlines()))
    except OSError as error:
        raise InvalidArgument(f"token trace {str(path)!r}: {error.strerror}") from None
    try:
        columns = [[float(row[name]) for row in rows] for name in ("confidence", "accepted")]
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidArgument(
            f"token trace {str(path)!r}: expected columns confidence and accepted of numbers ({error!r})"
        ) from None
    return of_rows(Path(path).stem, *columns)


class Packed(NamedTuple):
    """A source as compiled code reads it: a record `Source` [1], and the arrays of a `Table`, or one unused number in each."""

    source: Records[Source]
    confidence: NDArray[np.float32]
    accepted: NDArray[np.uint8]
    length: NDArray[np.int32]
    beside_row: NDArray[np.int32]
    beside: NDArray[np.float32]


def pack(source: Chain | Table) -> Packed:
    """The source as compiled code reads it."""
    if isinstance(source, Chain):
        return Packed(
            Source.pack(source, table=0),
            np.ones((1, 1), np.float32),
            np.ones((1, 1), np.uint8),
            np.ones(1, np.int32),
            np.full((1, 1), -1, np.int32),
            np.ones((1, 1), np.float32),
        )
    record = Source.zeros(1)
    record["table"] = 1
    beside = source.beside if len(source.beside) else np.ones((1, 1), np.float32)
    return Packed(record, source.confidence, source.accepted, source.length, source.beside_row, beside)


@kernel(inline=True)
def _turn(hard: int, source: Source, draw: float) -> int:
    """Whether the next position of a chain is hard, 0 or 1; `draw` is uniform in (0, 1)."""
    if hard != 0:
        return 0 if draw < source.to_easy else 1
    return 1 if draw < source.to_hard else 0


@kernel(inline=True)
def _confidence(hard: int, source: Source, key: np.uint64, draw: int) -> float:
    """P of a token of a chain, from one draw of `key`."""
    if hard != 0:
        deficit = math.exp(source.hard_mu + source.hard_sigma * normal(key, draw))
    else:
        deficit = source.easy_mean * exponential(key, draw)
    return math.exp(-min(deficit, LARGEST_DEFICIT))


@kernel
def begin(cursor: Cursor, packed: Packed, key: np.uint64) -> None:
    """Go to the beginning of a text.

    Args:
        cursor: where drafting is.
        packed: the source.
        key: names the text.
    """
    cursor.position, cursor.hard, cursor.beside, cursor.stream, cursor.place = 0, 0, 0, 0, 0
    cursor.row = integer(substream(key, STREAMS), 0, 0, packed.length.shape[0] - 1)


@kernel(inline=True)
def skip(cursor: Cursor, packed: Packed, key: np.uint64) -> None:
    """Go one position on along the path, whose token was told by the target.

    Args:
        cursor: where drafting is.
        packed: the source.
        key: names the text.
    """
    if packed.source[0].table != 0:
        cursor.place += 1
        if cursor.place >= packed.length[cursor.row]:
            cursor.stream += 1
            cursor.place = 0
            cursor.row = integer(substream(key, STREAMS), cursor.stream, 0, packed.length.shape[0] - 1)
    else:
        cursor.hard = _turn(cursor.hard, packed.source[0], uniform(substream(key, STATES), cursor.position))
    cursor.position += 1


@kernel(inline=True)
def draft(cursor: Cursor, packed: Packed, key: np.uint64) -> tuple[float, bool]:
    """Draft the next token.

    On the path the cursor goes one position on. Once a token was rejected it stays, and everything is beside the path until
    `settle`.

    Args:
        cursor: where drafting is.
        packed: the source.
        key: names the text.

    Returns:
        The draft's confidence in the token, and whether the target accepts it.
    """
    source = packed.source[0]
    if cursor.beside > 0:
        steps = cursor.beside
        cursor.beside += 1
        if source.table != 0:
            return float(packed.beside[cursor.beside_row, min(steps, packed.beside.shape[1]) - 1]), False
        stream = substream(substream(key, BESIDE), cursor.position)
        cursor.beside_hard = _turn(cursor.beside_hard, source, uniform(stream, 2 * steps))
        return _confidence(cursor.beside_hard, source, stream, 2 * steps + 1), False
    position = cursor.position
    if source.table != 0:
        row, place = cursor.row, cursor.place
        confidence, accepted = float(packed.confidence[row, place]), packed.accepted[row, place] != 0
        cursor.beside_row = packed.beside_row[row, place]
        skip(cursor, packed, key)
    else:
        skip(cursor, packed, key)
        confidence = _confidence(cursor.hard, source, substream(key, DEFICITS), position)
        accepted = (
            uniform(substream(key, ACCEPTED), position) < source.most_accepted * confidence**source.power
        )
    if not accepted:
        cursor.beside, cursor.beside_hard = 1, cursor.hard
    return confidence, accepted


@kernel(inline=True)
def settle(cursor: Cursor) -> None:
    """After a verdict: what is drafted next is on the path again, after the target's own token."""
    cursor.beside = 0
