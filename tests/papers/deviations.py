"""Where llmgym does not give the number that a paper prints: `docs/deviations.csv`, one row a number.

A test of a paper asserts the paper's number, or finds its row here and asserts ours. It never asserts that the paper is wrong.
"""

import csv
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

FILE = Path(__file__).parents[2] / "docs" / "deviations.csv"


class Deviation(NamedTuple):
    """A row; `reference` is the number of the paper (or of another simulation of it), `ours` within `tolerance` is llmgym's."""

    key: str
    reference: float
    ours: float
    tolerance: float


def _read() -> dict[str, Deviation]:
    with FILE.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, strict=True))
    found = {
        row["key"]: Deviation(row["key"], *(float(row[name]) for name in ("reference", "ours", "tolerance")))
        for row in rows
    }
    assert len(found) == len(rows), "a key is there twice"
    return found


KNOWN = _read()


def every_deviation(paper: str) -> Any:
    """Parametrize a test with the rows of one paper, the part of their keys before the slash."""
    rows = [row for key, row in KNOWN.items() if key.partition("/")[0] == paper]
    return pytest.mark.parametrize("row", rows, ids=lambda row: row.key)


def check(row: Deviation, computed: Mapping[str, Callable[[], float]]) -> None:
    """Assert that llmgym gives what the row says; `computed` has a function for every key of the paper."""
    assert float(computed[row.key]()) == pytest.approx(row.ours, abs=row.tolerance)
