"""Questions on real text, with scores that BM25 gives: makes a bank for `llmgym.envs.forage.bank`.

The text is what every Python brings along: the language reference in `pydoc_data` and the documentation strings of the standard
library, read where it runs, so that none of it is copied here. Facts are planted: a few lines with words from a stretch of the
document, which a question asks for. What terms find, and in which lines, is then counted, and lines, windows and parts are scored
with BM25 (Robertson and Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond", 2009) by the package `bm25s`, which the
extra `llmgym[text]` brings. Invented are the facts, and how often a planted line has each of the words that are searched for.
"""

import ast
import importlib.util
import itertools
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmgym.core.checks import whole
from llmgym.envs.forage.bank import COLUMNS, FORMAT
from llmgym.envs.forage.state import (
    KEYS,
    LIST,
    MOST_CHUNKS,
    NOTHING,
    OUTDATED,
    PASSAGES,
    TERMS,
    TRUE,
    Passage,
)
from llmgym.errors import InvalidArgument, LlmgymError

LINE_WORDS = 12
"""Words of a line; a search shows the line that it found."""
WINDOW_LINES = 5
"""Lines that a scan sees."""
PART_LINES = 16
"""Lines of a part: 192 words, about 250 tokens."""
PRESENT = (0.75, 0.60, 0.80)
"""Probability that a planted passage has each of the words that are searched for: those of the model's three terms."""
HINTS, HINTED = 4, 0.2
"""Further words that question and passage may share, and how often a passage has each."""
REGION_PARTS = 3
"""Parts of the document that the words of a question come from: real text around them speaks of the same matters."""
PLANT_LINES = 4
"""Lines over which the words of a planted passage are spread, so that a line shows little of it."""
RIGHT, STALE = 3, 2
"""Right passages of a fact, and outdated ones, that a document has; an episode uses some."""
FREQUENCY = ((3, 14), (2, 11), (10, 30))
"""Parts in which the words of the three terms are found in the document without the facts, from and to."""
_WORD = re.compile(r"[a-z][a-z_]{2,}")
_TRIES = 1000
"""Stretches of a document that are looked at for words of the frequencies that are needed."""
_K1, _B = 1.5, 0.75


class Planted(NamedTuple):
    """One fact of a question.

    Attributes:
        terms: the words that are searched for.
        query: all words of the question for it.
        parts: of its passages, the right ones first.
    """

    terms: list[str]
    query: list[str]
    parts: list[int]


def standard_library() -> list[str]:
    """The words of the language reference and of the standard library's documentation strings, in order of the modules' names."""
    words: list[str] = []
    for text in _texts():
        words += _WORD.findall(text.lower())
    return words


def _texts() -> Iterator[str]:
    from pydoc_data import topics  # type: ignore[import-untyped, unused-ignore]

    yield from topics.topics.values()
    for name in sorted(sys.stdlib_module_names):
        try:
            module = importlib.util.find_spec(name)
            source = Path(module.origin or "").read_text() if module and module.has_location else ""
            tree = ast.parse(source)
        except (OSError, SyntaxError, UnicodeDecodeError, ValueError, ImportError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                yield ast.get_docstring(node) or ""


def _joined(lines: list[list[str]]) -> list[str]:
    """The words of all lines."""
    return list(itertools.chain.from_iterable(lines))


def _scores(texts: list[list[str]], queries: list[list[str]]) -> NDArray[np.float64]:
    """BM25 of every query on every text, [queries, texts]."""
    try:
        import bm25s
    except ImportError as error:
        raise LlmgymError("scores of real text need the package bm25s: pip install 'llmgym[text]'") from error
    index = bm25s.BM25(k1=_K1, b=_B)
    index.index(texts, show_progress=False)
    known = set(index.vocab_dict)
    return np.array(
        [index.get_scores([word for word in query if word in known] or [""]) for query in queries], np.float64
    )


def _plant(lines: list[list[str]], parts: int, rng: np.random.Generator) -> list[Planted]:
    """Put the passages of four facts into the lines of a document, in place."""
    found_in: Counter[str] = Counter()
    for part in range(parts):
        found_in.update(set(_joined(lines[part * PART_LINES : (part + 1) * PART_LINES])))
    places = rng.choice(parts, size=(KEYS, RIGHT + STALE), replace=False)
    facts = []
    for j in range(KEYS):
        terms, hints = _words_of_a_region(lines, parts, found_in, rng)
        for place in places[j]:
            words = [word for word, chance in zip(terms, PRESENT) if rng.random() < chance]
            words += [word for word in hints if rng.random() < HINTED]
            words += [f"value{rng.integers(10**6)}"]
            at = int(place) * PART_LINES + int(rng.integers(PART_LINES - PLANT_LINES + 1))
            for word in words:
                lines[at + int(rng.integers(PLANT_LINES))][int(rng.integers(LINE_WORDS))] = word
        facts.append(Planted(terms, [*terms, *hints], [int(place) for place in places[j]]))
    return facts


def _words_of_a_region(
    lines: list[list[str]], parts: int, found_in: Counter[str], rng: np.random.Generator
) -> tuple[list[str], list[str]]:
    """A word for each term and the further words of a question, all from a few parts in a row."""
    for _ in range(_TRIES):
        first = int(rng.integers(parts - REGION_PARTS + 1)) * PART_LINES
        there = sorted(set(_joined(lines[first : first + REGION_PARTS * PART_LINES])))
        pools = [[w for w in there if low <= found_in[w] <= high] for low, high in FREQUENCY]
        if all(len(pool) > HINTS for pool in pools):
            terms = [str(rng.choice(pool)) for pool in pools]
            rest = sorted({*pools[0], *pools[2]} - {*terms})
            hints = [str(word) for word in rng.choice(rest, size=HINTS, replace=False)]
            if len(set(terms)) == TERMS:
                return terms, hints
    raise InvalidArgument(
        "words: hardly any stretch of the text has words that are in 3 to 30 parts of a document"
    )


def question(words: list[str], parts: int, rng: np.random.Generator) -> tuple[Any, NDArray[np.int16]]:
    """One question with its document, a stretch of the words with four facts planted.

    Args:
        words: of the text.
        parts: of a document.
        rng: draws the stretch and the facts.

    Returns:
        Passages with raw scores in `line` and `glance`, [4, 64], and how many each key has, int16 [4].
    """
    size = parts * PART_LINES * LINE_WORDS
    start = int(rng.integers(len(words) - size))
    lines = [words[i : i + LINE_WORDS] for i in range(start, start + size, LINE_WORDS)]
    facts = _plant(lines, parts, rng)
    queries = [fact.query for fact in facts]
    everything = _joined(queries)
    by_line = _scores(lines, queries)
    half = WINDOW_LINES // 2
    windows = [_joined(lines[max(i - half, 0) : i + half + 1]) for i in range(len(lines))]
    by_window = _scores(windows, queries)
    by_part = _scores(
        [_joined(lines[i : i + PART_LINES]) for i in range(0, len(lines), PART_LINES)], [*queries, everything]
    )
    table, sizes = Passage.zeros(KEYS, PASSAGES), np.zeros(KEYS, np.int16)
    for j, fact in enumerate(facts):
        rows: dict[int, Any] = {}
        for place, part in enumerate(fact.parts):
            rows[part] = Passage.zeros(1)
            rows[part]["claims"] = TRUE if place < RIGHT else OUTDATED
        for t, term in enumerate(fact.terms):
            hits = [i for i, line in enumerate(lines) if term in line]
            for part in dict.fromkeys(i // PART_LINES for i in hits):
                row = rows.setdefault(part, Passage.zeros(1))
                row["listed"] |= 1 << t
                mine = [i for i in hits if i // PART_LINES == part]
                row["line"] = max(row["line"][0], by_line[j, mine].max())
                row["glance"] = max(row["glance"][0], by_window[j, mine].max())
        _cut(rows, fact.parts)
        plain = np.setdiff1d(np.arange(parts), fact.parts)
        for n, (part, row) in enumerate(rows.items()):
            row["chunk"] = part
            for query, score in enumerate((by_part[KEYS], by_part[j])):
                row["rank"][0, query] = int((score[plain] > score[part]).sum())
            table[j, n] = row[0]
        sizes[j] = len(rows)
    return table, sizes


def _cut(rows: dict[int, Any], planted: list[int]) -> None:
    """Keep the first passages of each list, in the order of the document, as a search does, and those that speak of the fact."""
    for t in range(TERMS):
        listed = sorted(part for part, row in rows.items() if (row["listed"][0] >> t) & 1)
        for part in listed[LIST:]:
            rows[part]["listed"] &= 255 ^ (1 << t)
    for part in [part for part, row in rows.items() if row["listed"][0] == 0 and part not in planted]:
        del rows[part]


def build(
    path: str | Path,
    *,
    questions: int = 128,
    parts: int = 256,
    seed: int = 0,
    words: list[str] | None = None,
    about: str = "pydoc_data.topics and documentation strings of the standard library",
) -> dict[str, Any]:
    """Measure questions on the text of this Python, or on another one, and write them as a bank.

    Args:
        path: of the file to write, an `.npz`.
        questions: how many.
        parts: of each document, 24 to 1,024.
        seed: of the stretches and the facts.
        words: of the text, in lower case; None: those of `standard_library`.
        about: what the text is.

    Returns:
        What the bank says of itself: what was measured, with which versions, and how well scores tell right passages from others.

    Raises:
        InvalidArgument: a number out of range, a text that is shorter than one document, or one whose words are all rare or common.
        LlmgymError: the package `bm25s` is not installed.
    """
    whole("questions", questions)
    whole("parts", parts, 24, MOST_CHUNKS)
    words = standard_library() if words is None else words
    if len(words) <= parts * PART_LINES * LINE_WORDS:
        raise InvalidArgument(f"parts={parts!r}: the text has only {len(words):,} words")
    rng = np.random.default_rng(seed)
    measured = [question(words, parts, rng) for _ in range(questions)]
    passages, sizes = np.stack([table for table, _ in measured]), np.stack([size for _, size in measured])
    present = np.arange(PASSAGES) < sizes[..., None]
    other = present & (passages["claims"] == NOTHING)
    right = present & (passages["claims"] == TRUE)
    gaps = {}
    for name in ("line", "glance"):
        listed = right & (passages["listed"] != 0)
        raw = passages[name].astype(np.float64)
        scores = (raw - raw[other].mean()) / raw[other].std()
        gaps[name] = float(scores[listed].mean())
        # what a passage that speaks of the fact would score as a wrong one
        scores = np.where(passages["claims"] == NOTHING, scores, scores - gaps[name])
        passages[name] = np.where(present, scores, 0.0)
    hits = [(passages["listed"] >> t) & 1 for t in range(TERMS)]
    from importlib.metadata import version

    meta = {
        "format": FORMAT,
        "text": about,
        "python": sys.version.split()[0],
        "bm25s": version("bm25s"),
        "numpy": np.__version__,
        "k1": _K1,
        "b": _B,
        "seed": seed,
        "words": len(words),
        "questions": questions,
        "chunks": parts,
        "part_words": PART_LINES * LINE_WORDS,
        "listed": [round(float(hit[right].mean()), 4) for hit in hits],
        "hits": [round(float((hit * present).sum() / sizes.size), 2) for hit in hits],
        "snippet_gap": round(gaps["line"], 4),
        "scan_gap": round(gaps["glance"], 4),
        "in_first": {
            str(depth): round(float((passages["rank"][..., 1][right] < depth).mean()), 4)
            for depth in (5, 10, 20, 50)
        },
    }
    columns: dict[str, Any] = {name: passages[name][present] for name in COLUMNS}
    for name in ("line", "glance"):
        columns[name] = columns[name].astype(np.float16)
    np.savez_compressed(path, meta=np.array(json.dumps(meta)), sizes=sizes, **columns)
    return meta
