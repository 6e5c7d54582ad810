"""Measured runs as CSV, the layout of `llmgym replay --out`.

Columns `arrival_s`, `prompt_tokens`, `output_tokens`, `first_token_s`, `last_token_s` (s on one clock, tokens), and where they are
there `session` and `priority`. Who has no last token was never answered.
"""

import csv
import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llmgym.errors import TraceError
from llmgym.workloads.runs.record import MeasuredRun

NEEDED = ("arrival_s", "prompt_tokens", "output_tokens", "first_token_s", "last_token_s")


def read(file: Path, text: str) -> MeasuredRun:
    """A run.

    Args:
        file: where it stands, for messages.
        text: the whole file.

    Raises:
        TraceError: a column is missing, a value is no number, or no request was answered.
    """
    reader = csv.DictReader(line for line in text.splitlines() if line.strip())
    header = reader.fieldnames or []
    missing = [name for name in NEEDED if name not in header]
    if missing:
        raise TraceError(
            f"{file}: no column {missing[0]!r}; a measured run needs {', '.join(NEEDED)} (s, tokens), or to be a result file of a "
            "benchmark"
        )
    rows = list(reader)

    def values(name: str) -> NDArray[np.float64]:
        return np.array([_number(file, i + 2, name, row[name]) for i, row in enumerate(rows)], np.float64)

    arrival, prompt, output, first, last = map(values, NEEDED)
    good = np.isfinite(last)
    if not good.any():
        raise TraceError(f"{file}: none of {len(rows)} requests was answered")
    for name, tokens in (("prompt_tokens", prompt), ("output_tokens", output)):
        odd = np.flatnonzero(tokens[good] != np.floor(tokens[good]))
        if len(odd):
            raise TraceError(f"{file}: {name} is {tokens[good][odd[0]]}, expected a whole number")

    def whole(name: str) -> NDArray[np.int32] | None:
        there = name in header and all(row[name] for row in rows)
        return values(name)[good].astype(np.int32) if there else None

    return MeasuredRun(
        "llmgym",
        prompt[good].astype(np.int64),
        output[good].astype(np.int64),
        (first - arrival)[good],
        (last - arrival)[good],
        arrival[good],
        failed=int((~good).sum()),
        session=whole("session"),
        priority=whole("priority"),
    )


def _number(file: Path, line: int, name: str, text: str | None) -> float:
    try:
        return float(text or math.nan)
    except ValueError:
        raise TraceError(f"{file}, line {line}, column {name!r}: {text!r} is not a number") from None


def write(run: MeasuredRun) -> str:
    """A run as CSV."""
    assert run.arrival_s is not None
    lines = [",".join(NEEDED)]
    for i, arrival_s in enumerate(run.arrival_s):
        first_s, last_s = arrival_s + run.ttft_s[i], arrival_s + run.e2e_s[i]
        lines.append(
            f"{arrival_s:.6f},{run.prompt_tokens[i]},{run.output_tokens[i]},{first_s:.6f},{last_s:.6f}"
        )
    return "\n".join(lines) + "\n"
