"""The table of deviations: each row is one, each is computed by the tests of its paper, and the page of the docs shows it."""

import csv
import importlib

import pytest

from benchmarks.make_docs import DOCS, PAPERS, deviations
from tests.papers.deviations import FILE, KNOWN

MODULES = {
    "oserve": "test_oserve",
    "ppd": "test_ppd",
    "pipesd": "test_pipesd",
    "afd": "test_afd_ratio",
    "memory": "test_memory_pipeline",
    "kv": "test_kv_queue",
    "dus": "test_dus_phrases",
    "scout": "test_scout",
    "slay": "test_slay",
    "segmented": "test_segmented",
    "distill": "test_distill_energy",
}


@pytest.mark.parametrize("key", KNOWN)
def test_a_row_is_a_deviation_held_tightly(key: str) -> None:
    """The tolerance neither reaches the reference nor leaves room for another number of ours."""
    row = KNOWN[key]
    assert 0.0 < row.tolerance <= 0.5 * abs(row.ours - row.reference)
    assert row.tolerance <= 0.05 * abs(row.ours) or row.tolerance <= 0.1 * abs(row.ours - row.reference)


def test_every_row_is_computed_by_the_tests_of_its_paper() -> None:
    computed = [
        key for name in MODULES.values() for key in importlib.import_module(f"tests.papers.{name}").OURS
    ]
    assert sorted(computed) == sorted(KNOWN)


def test_every_row_says_where_and_why() -> None:
    with FILE.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file, strict=True):
            assert row["key"].partition("/")[0] in PAPERS and row["of"] in ("paper", "simulation")
            assert all(row[name] for name in ("where", "quantity", "unit", "why")), row["key"]


def test_the_page_of_the_docs_is_in_step() -> None:
    """Otherwise run benchmarks/make_docs.py."""
    page = (DOCS / "deviations.md").read_text()
    for of in ("paper", "simulation"):
        assert f"<!-- {of} -->\n{deviations(of)}\n<!-- end -->" in page
